//! Limits between two steps of one party, as nginx measures them: a step is bytes that move, and the time runs only
//! while that party is the one that everybody waits for.

use super::clock::Expired;
use crate::deadline::after;
use std::time::Duration;
use tokio::time::Instant;

/// Whom an exchange waits for, each with what it has done so far: another number is a step. `None` is nobody's turn.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Waits {
    /// The client owes more of its request's body.
    pub(crate) client_body: Option<u64>,
    /// Bytes wait that the client does not take.
    pub(crate) client_write: Option<u64>,
    /// Bytes wait that the upstream does not take.
    pub(crate) upstream_write: Option<u64>,
    /// The upstream owes more of its response, or either side of a tunnel may speak.
    pub(crate) upstream_read: Option<u64>,
}

/// The limits of one exchange, and the waits under way.
#[derive(Default)]
pub(super) struct Stalls {
    client_body: Stall,
    client_write: Stall,
    upstream_write: Stall,
    upstream_read: Stall,
    /// Whether there is any limit: in Envoy's mode there is none.
    limited: bool,
}

#[derive(Default)]
struct Stall {
    limit: Option<Duration>,
    seen: u64,
    until: Option<Instant>,
}

impl Stalls {
    /// Forgets all waits and all limits but the client's: `client_body_timeout` and `send_timeout`.
    pub(super) fn restart(&mut self, body: Option<Duration>, write: Option<Duration>) {
        self.client_body = Stall::new(body);
        self.client_write = Stall::new(write);
        self.end_attempt();
    }

    /// An upstream's `timeout.send` and `timeout.read`.
    pub(super) fn begin_attempt(&mut self, write: Option<Duration>, read: Option<Duration>) {
        self.upstream_write = Stall::new(write);
        self.upstream_read = Stall::new(read);
        self.count();
    }

    pub(super) fn end_attempt(&mut self) {
        self.begin_attempt(None, None);
    }

    fn count(&mut self) {
        let all = [&self.client_body, &self.client_write, &self.upstream_write, &self.upstream_read];
        self.limited = all.iter().any(|stall| stall.limit.is_some());
    }

    /// Takes note of who is waited for now; tells whether a deadline has moved.
    pub(super) fn watch(&mut self, waits: Waits) -> bool {
        self.limited
            && self.client_body.watch(waits.client_body)
                | self.client_write.watch(waits.client_write)
                | self.upstream_write.watch(waits.upstream_write)
                | self.upstream_read.watch(waits.upstream_read)
    }

    pub(super) fn deadlines(&self) -> [(Expired, Option<Instant>); 4] {
        [
            (Expired::UpstreamWrite, self.upstream_write.until),
            (Expired::UpstreamRead, self.upstream_read.until),
            (Expired::ClientBody, self.client_body.until),
            (Expired::ClientWrite, self.client_write.until),
        ]
    }
}

impl Stall {
    fn new(limit: Option<Duration>) -> Stall {
        Stall { limit: limit.filter(|d| !d.is_zero()), ..Stall::default() }
    }

    fn watch(&mut self, done: Option<u64>) -> bool {
        let (Some(limit), Some(done)) = (self.limit, done) else { return self.until.take().is_some() };
        if self.until.is_some() && self.seen == done {
            return false;
        }
        self.seen = done;
        self.until = Some(after(Instant::now(), limit));
        true
    }
}
