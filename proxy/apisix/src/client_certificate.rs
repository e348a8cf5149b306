//! Holds a request's `Host` against what its connection has proved.
//!
//! A client chooses the certificate, and with it whether it has to show one itself, by the name in its TLS
//! hello. So that it can't take a name without verification and then ask for a host with it, every request
//! over TLS is looked up again by its host, as APISIX does it.

use sixfold_core::plugin::{LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use sixfold_core::tls::NameTable;

/// Which server names ask for a client's certificate; empty when none does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VerifiedNames(pub(crate) Vec<(Box<str>, bool)>);

impl VerifiedNames {
    /// The guard, if any name asks for a certificate.
    pub(crate) fn guard(&self) -> Option<Plugin> {
        if self.0.is_empty() {
            return None;
        }
        let mut guard = Guard { names: NameTable::default(), ends: Vec::new(), any: false };
        for (name, verified) in &self.0 {
            if &**name == "*" {
                guard.any |= *verified;
                continue;
            }
            guard.names.insert(name, *verified);
            guard.ends.extend(name.strip_prefix('*').filter(|_| *verified).map(str::to_ascii_lowercase));
        }
        Some(Plugin::of(guard).rewrite(Guard::rewrite).build())
    }
}

struct Guard {
    names: NameTable<bool>,
    /// Of names with a star that ask for a certificate. A certificate's star is one label, a route's any text: so
    /// that no host reaches the routes of such a name unseen, they count for all that ends like them.
    ends: Vec<String>,
    /// For hosts that no name covers.
    any: bool,
}

impl Guard {
    /// Whether a request for `host` needs a certificate.
    fn asks(&self, host: &str) -> bool {
        let ends = |end: &String| {
            let at = host.len().checked_sub(end.len());
            at.and_then(|at| host.get(at..)).is_some_and(|tail| tail.eq_ignore_ascii_case(end))
        };
        match self.names.get(host) {
            Some(verified) => *verified,
            None => self.any || self.ends.iter().any(ends),
        }
    }

    fn refuses(&self, stream: &Stream) -> bool {
        let connection = &stream.connection;
        let Some(tls) = &connection.tls else { return false };
        let Ok(host) = std::str::from_utf8(stream.request.host()) else { return true };
        let host = host.trim_end_matches('.');
        if !self.asks(host) {
            return false;
        }
        let same_name = connection
            .server_name()
            .is_some_and(|name| name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case(host));
        !(tls.peer_validated && same_name)
    }

    fn rewrite(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        match self.refuses(stream) {
            true => Step::Respond(LocalReply::new(400, "", "client_certificate_required")),
            false => Step::Continue,
        }
    }
}
