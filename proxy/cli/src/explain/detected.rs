//! What listener filters find out of a connection before its filter chain is chosen.

use super::request::Asked;
use serde_json::{Value, json};
use sixfold_core::listener::{Listener, ListenerFilter};
use std::net::SocketAddr;
use std::sync::Arc;

/// What is known when the chain is chosen.
#[derive(Default)]
pub(super) struct Detected {
    pub(super) tls: bool,
    pub(super) server_name: Option<Arc<str>>,
    pub(super) protocols: Vec<Box<[u8]>>,
    /// The same for people; `None` where nothing looks at the connection.
    pub(super) shown: Option<Value>,
}

/// What the inspectors of these listeners, which the connection comes by one after the other, would find.
pub(super) fn of(listeners: &[&Listener], asked: &Asked, destination: Option<SocketAddr>) -> Detected {
    let all = || listeners.iter().flat_map(|listener| &listener.listener_filters);
    let looks = |wanted: &ListenerFilter| {
        all().filter_map(|filter| filter.for_destination(destination)).any(|filter| filter == wanted)
    };
    if asked.is_tls() {
        if !looks(&ListenerFilter::TlsInspector) {
            let off = |filter: &ListenerFilter| match filter {
                ListenerFilter::Except(_, filter) => **filter == ListenerFilter::TlsInspector,
                _ => false,
            };
            let shown =
                all().any(off).then(|| json!({"by": "tls_inspector", "found": "nothing, it is off here"}));
            return Detected { shown, ..Detected::default() };
        }
        let found = match &asked.server_name {
            Some(name) => format!("TLS for \"{name}\""),
            None => "TLS".to_owned(),
        };
        return Detected {
            tls: true,
            server_name: asked.server_name.clone(),
            protocols: asked.protocols.clone(),
            shown: Some(json!({"by": "tls_inspector", "found": found})),
        };
    }
    if !looks(&ListenerFilter::HttpInspector) {
        return Detected::default();
    }
    let protocols: Vec<Box<[u8]>> = match asked.protocols.as_slice() {
        [] => vec![b"http/1.1"[..].into()],
        given => given.to_vec(),
    };
    let found: Vec<_> = protocols.iter().map(|protocol| String::from_utf8_lossy(protocol)).collect();
    let shown = Some(json!({"by": "http_inspector", "found": found.join(", ")}));
    Detected { protocols, shown, ..Detected::default() }
}
