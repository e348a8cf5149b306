//! Idle connections of callouts.

use super::failed;
use bytes::Bytes;
use http_body_util::Full;
use parking_lot::Mutex;
use sixfold_core::plugin::{CalloutError, CalloutRequest, Keepalive};
use std::collections::HashMap;
use std::thread::ThreadId;
use std::time::Instant;

/// Sends requests on one connection.
pub(super) type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

/// What a connection can be used for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) tls: bool,
    pub(super) verify: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

impl Key {
    /// The service that a request is for.
    pub(super) fn of(request: &CalloutRequest) -> Result<Key, CalloutError> {
        let uri: http::Uri = request.uri.parse().map_err(failed)?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(failed(format_args!("'{}' is neither http nor https", request.uri))),
        };
        let host = uri.host().ok_or_else(|| failed(format_args!("'{}' has no host", request.uri)))?;
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Key { tls, verify: request.verify_tls, host: host.to_ascii_lowercase(), port })
    }
}

/// Connections and the moment each is let go.
type Idle = Vec<(Sender, Instant)>;

#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<HashMap<(ThreadId, Key), Idle>>,
}

impl Pool {
    /// A connection that this thread kept, the one used last first.
    pub(super) fn take(&self, key: &Key) -> Option<Sender> {
        let mut idle = self.idle.lock();
        let list = idle.get_mut(&(std::thread::current().id(), key.clone()))?;
        while let Some((sender, until)) = list.pop() {
            if Instant::now() < until && !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    /// Keeps a connection, and lets go of those that waited too long.
    pub(super) fn put(&self, key: Key, sender: Sender, keepalive: Keepalive) {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        let list = idle.entry((std::thread::current().id(), key)).or_default();
        list.retain(|(sender, until)| now < *until && !sender.is_closed());
        if list.len() < keepalive.connections && !sender.is_closed() {
            list.push((sender, now + keepalive.idle));
        }
    }
}
