//! Holds a request's `Host` against what its connection has proved.
//!
//! A client chooses the certificate, and with it whether it has to show one itself, by the name in its TLS
//! hello. So that it can't take a name without verification and then ask for a host with it, every request
//! over TLS is looked up again by its host, as APISIX does it. Where some paths are served without a certificate
//! (`skip_mtls_uri_regex`) the handshake lets everybody in, and this is what asks for it.

use std::sync::Arc;

use serde_json::{Value, json};
use sixfold_core::expr::Expr;
use sixfold_core::plugin::{LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use sixfold_core::tls::NameTable;

/// Which server names ask for a client's certificate; empty when none does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VerifiedNames(pub(crate) Vec<(Box<str>, Asks)>);

/// What a server name asks of clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Asks {
    /// Nothing.
    #[default]
    Nothing,
    /// A certificate, but for paths that one of these patterns finds.
    Certificate(Arc<[String]>),
}

impl Asks {
    fn demand(&self) -> Demand {
        match self {
            Asks::Nothing => Demand::Nothing,
            Asks::Certificate(paths) if paths.is_empty() => Demand::Certificate,
            Asks::Certificate(paths) => match skips(paths) {
                Ok(skips) => Demand::Unless(Arc::new(skips)),
                // They were compiled when the resource was read.
                Err(_) => Demand::Certificate,
            },
        }
    }
}

/// Whether a request's path is one of those that are served without a certificate.
///
/// # Errors
/// A pattern that does not compile.
pub(crate) fn skips(paths: &[String]) -> Result<Expr, String> {
    let each = paths.iter().map(|path| json!(["uri", "~~", path]));
    let any = match paths {
        [_] => each.collect::<Vec<Value>>(),
        _ => std::iter::once(json!("OR")).chain(each).collect(),
    };
    Expr::new(&Value::Array(any)).map_err(|error| error.to_string())
}

impl VerifiedNames {
    /// The guard, if any name asks for a certificate.
    pub(crate) fn guard(&self) -> Option<Plugin> {
        if self.0.is_empty() {
            return None;
        }
        let mut guard = Guard { names: NameTable::default(), ends: Vec::new(), any: Demand::Nothing };
        for (name, asks) in &self.0 {
            let demand = asks.demand();
            if &**name == "*" {
                if !matches!(demand, Demand::Nothing) {
                    guard.any = demand;
                }
                continue;
            }
            let end = name.strip_prefix('*').filter(|_| !matches!(demand, Demand::Nothing));
            guard.ends.extend(end.map(str::to_ascii_lowercase));
            guard.names.insert(name, demand);
        }
        Some(Plugin::of(guard).rewrite(Guard::rewrite).build())
    }
}

/// What a request has to prove.
enum Demand {
    Nothing,
    Certificate,
    /// The same, but for requests for which this holds.
    Unless(Arc<Expr>),
}

impl Demand {
    /// Whether a request without a valid certificate is let pass.
    fn skips(&self, stream: &Stream) -> bool {
        match self {
            Demand::Nothing => true,
            Demand::Certificate => false,
            Demand::Unless(expr) => expr.eval(stream).unwrap_or(false),
        }
    }
}

struct Guard {
    names: NameTable<Demand>,
    /// Of names with a star that ask for a certificate. A certificate's star is one label, a route's any text: so
    /// that no host reaches the routes of such a name unseen, they count for all that ends like them.
    ends: Vec<String>,
    /// For hosts that no name covers.
    any: Demand,
}

impl Guard {
    /// What a request for `host` has to prove.
    fn asks(&self, host: &str) -> &Demand {
        let ends = |end: &String| {
            let at = host.len().checked_sub(end.len());
            at.and_then(|at| host.get(at..)).is_some_and(|tail| tail.eq_ignore_ascii_case(end))
        };
        match self.names.get(host) {
            Some(demand) => demand,
            None if self.ends.iter().any(ends) => &Demand::Certificate,
            None => &self.any,
        }
    }

    fn refuses(&self, stream: &Stream) -> bool {
        let connection = &stream.connection;
        let Some(tls) = &connection.tls else { return false };
        let Ok(host) = std::str::from_utf8(stream.request.host()) else { return true };
        let host = host.trim_end_matches('.');
        let name = connection.server_name().map(|name| name.strip_suffix('.').unwrap_or(name));
        // The name that the client was let in by may have left the question open.
        let of_name = name.map_or(&self.any, |name| self.names.get(name).unwrap_or(&self.any));
        if matches!(of_name, Demand::Unless(_)) && !tls.peer_validated && !of_name.skips(stream) {
            return true;
        }
        match self.asks(host) {
            Demand::Nothing => false,
            demand => {
                let same_name = name.is_some_and(|name| name.eq_ignore_ascii_case(host));
                !(same_name && (tls.peer_validated || demand.skips(stream)))
            }
        }
    }

    fn rewrite(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        match self.refuses(stream) {
            true => Step::Respond(LocalReply::new(400, "", "client_certificate_required")),
            false => Step::Continue,
        }
    }
}
