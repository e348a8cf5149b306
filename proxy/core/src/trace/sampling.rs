//! Which requests are traced: what an earlier proxy has decided, else what chance says
//! (common/http/conn_manager_utility.cc `mutateTracingRequestHeader`).

use crate::headers::{Headers, Known};
use crate::runtime::Fraction;

/// Why a request is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is not.
    None,
    /// By chance.
    Sampling,
    /// The client wants it (`x-client-trace-id`).
    Client,
    /// A service wants it (`x-envoy-force-trace`).
    Service,
}

/// The shares of requests that are traced.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// Of those that the client wants traced.
    pub client: Fraction,
    /// Of all others.
    pub random: Fraction,
    /// Of those that would be traced by now.
    pub overall: Fraction,
}

/// Characters of a UUID, and where the decision stands among them: the version, which is always 4 otherwise.
const UUID: usize = 36;
const DECISION: usize = 14;

impl Sampling {
    /// Decides about a request, and writes the decision into its id.
    pub(super) fn decide(&self, headers: &mut Headers) -> Reason {
        let Some(id) = headers.get(Known::X_REQUEST_ID) else { return Reason::None };
        let Some(number) = number(id) else { return Reason::None };
        let told = decision(id);
        let mut reason = match told {
            Reason::None if headers.contains("x-client-trace-id") && self.client.draw(fastrand::u64(..)) => {
                Reason::Client
            }
            Reason::None if headers.contains(Known::X_ENVOY_FORCE_TRACE) => Reason::Service,
            Reason::None if self.random.draw(number) => Reason::Sampling,
            told => told,
        };
        if reason != Reason::None && !self.overall.draw(number) {
            reason = Reason::None;
        }
        if reason != told {
            note(headers, reason);
        }
        reason
    }
}

/// Whether the id of a request says that a service wants it traced.
pub fn is_forced(headers: &Headers) -> bool {
    headers.get(Known::X_REQUEST_ID).is_some_and(|id| decision(id) == Reason::Service)
}

/// What chance is made of: the first eight digits.
fn number(id: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(id.get(..8)?).ok()?;
    u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+')).map(|number| number % 10_000)
}

fn decision(id: &[u8]) -> Reason {
    match id.get(DECISION).filter(|_| id.len() == UUID) {
        Some(b'9') => Reason::Sampling,
        Some(b'a') => Reason::Service,
        Some(b'b') => Reason::Client,
        _ => Reason::None,
    }
}

fn note(headers: &mut Headers, reason: Reason) {
    let id = headers.get(Known::X_REQUEST_ID).and_then(|id| <[u8; UUID]>::try_from(id).ok());
    let Some(mut id) = id else { return };
    id[DECISION] = match reason {
        Reason::None => b'4',
        Reason::Sampling => b'9',
        Reason::Service => b'a',
        Reason::Client => b'b',
    };
    headers.set(Known::X_REQUEST_ID, &id);
}
