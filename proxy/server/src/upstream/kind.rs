//! What tells connections to one endpoint apart, and how long one lives.

use super::Wanted;
use crate::connect::Alpn;
use sixfold_core::cluster::ClusterConfig;
use sixfold_core::tls::ClientTls;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Which requests may share a connection: the same version, equal TLS settings and server name.
#[derive(Clone, Default)]
pub(super) struct Kind {
    alpn: Alpn,
    tls: Option<Arc<ClientTls>>,
    authority: Option<Box<str>>,
}

impl Kind {
    /// What a request needs.
    pub(super) fn of(wanted: &Wanted<'_>) -> Kind {
        let authority = wanted.authority.filter(|_| wanted.tls.is_some()).map(Into::into);
        Kind { alpn: wanted.alpn(), authority, tls: wanted.tls.cloned() }
    }

    /// TLS of its connections.
    pub(super) fn tls(&self) -> Option<&Arc<ClientTls>> {
        self.tls.as_ref()
    }

    /// Whether a request may take such a connection.
    pub(super) fn serves(&self, wanted: &Wanted<'_>) -> bool {
        self.is(wanted.alpn(), wanted.tls, wanted.authority)
    }

    /// Whether connections of both serve the same requests.
    pub(super) fn is_same(&self, other: &Kind) -> bool {
        self.is(other.alpn, other.tls.as_ref(), other.authority.as_deref())
    }

    fn is(&self, alpn: Alpn, tls: Option<&Arc<ClientTls>>, authority: Option<&str>) -> bool {
        self.alpn == alpn
            && match (&self.tls, tls) {
                (None, None) => true,
                (Some(a), Some(b)) => Arc::ptr_eq(a, b) && self.authority.as_deref() == authority,
                _ => false,
            }
    }
}

/// How long a connection lives, by its cluster's settings when it was opened.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    idle: Option<Duration>,
    duration: Option<Duration>,
    pub(super) requests: u32,
    pub(super) max_idle: usize,
    pub(super) streams: u32,
}

impl Limits {
    pub(super) fn of(config: &ClusterConfig) -> Limits {
        Limits {
            idle: config.idle_timeout,
            duration: config.max_connection_duration,
            requests: config.max_requests_per_connection.unwrap_or(u32::MAX),
            max_idle: config.max_idle,
            streams: config.http2.max_concurrent_streams,
        }
    }

    /// Whether a connection without a request has had its time.
    pub(super) fn expired(&self, opened: Instant, used: Instant, now: Instant) -> bool {
        self.idle.is_some_and(|t| now.duration_since(used) >= t) || self.too_old(opened, now)
    }

    /// Whether a connection takes no more requests because of its age.
    pub(super) fn too_old(&self, opened: Instant, now: Instant) -> bool {
        self.duration.is_some_and(|t| now.duration_since(opened) >= t)
    }
}
