//! What tells connections to one endpoint apart, and how long one lives.

use super::Wanted;
use crate::connect::Alpn;
use sixfold_core::cluster::{Cluster, ClusterConfig, ClusterStats};
use sixfold_core::connection::{Connection, Source};
use sixfold_core::proxy_protocol::Told;
use sixfold_core::tls::{AlpnList, ClientTls};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// Whose a connection is to its endpoint; by default this proxy's own.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    /// Whose address it comes from.
    pub(crate) source: Option<Source>,
    /// Whom the endpoint is told of.
    pub(crate) told: Option<Told>,
}

impl Client {
    /// The client of a request to a cluster.
    #[inline]
    pub(crate) fn of(connection: &Connection, cluster: &Cluster) -> Client {
        let told = |version| Told { version, from: connection.remote, to: connection.local };
        Client { source: connection.source, told: cluster.config.proxy_protocol.map(told) }
    }

    /// Whether it is this proxy alone.
    #[inline]
    pub(super) fn is_self(self) -> bool {
        self.source.is_none() && self.told.is_none()
    }
}

/// Which requests may share a connection: the same version, TLS settings, server name, offer of protocols and client that it is said to be of. Its connections, and the
/// requests that wait for one, hold the same object.
#[derive(Default)]
pub(super) struct Kind {
    alpn: Alpn,
    /// The cluster holds the settings: when it has been replaced, and nobody has them, no request comes any more.
    tls: Option<Weak<ClientTls>>,
    server_name: Option<Box<str>>,
    offer: Option<AlpnList>,
    client: Client,
    /// Connections that are open or being opened.
    open: AtomicUsize,
}

impl Kind {
    /// What a request needs.
    pub(super) fn of(wanted: &Wanted<'_>) -> Kind {
        let tls = wanted.tls.map(Arc::downgrade);
        let server_name = Kind::name_of(wanted).map(Into::into);
        let offer = Kind::offer_of(wanted).cloned();
        Kind {
            alpn: wanted.alpn(),
            tls,
            server_name,
            offer,
            client: wanted.client,
            open: AtomicUsize::new(0),
        }
    }

    /// The server name that a request brings along.
    pub(super) fn name_of<'a>(wanted: &Wanted<'a>) -> Option<&'a str> {
        wanted.server_name.filter(|_| wanted.tls.is_some())
    }

    /// What is offered in the place of all that is configured; without TLS there is no offer.
    fn offer_of<'a>(wanted: &Wanted<'a>) -> Option<&'a AlpnList> {
        wanted.offer.filter(|_| wanted.tls.is_some())
    }

    /// What its requests have offered in the place of all that is configured.
    pub(super) fn offer(&self) -> Option<&AlpnList> {
        self.offer.as_ref()
    }

    /// Whose its connections are to their endpoint.
    pub(super) fn client(&self) -> Client {
        self.client
    }

    /// The server name that its requests brought along.
    pub(super) fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// Whether a request may take such a connection.
    pub(super) fn serves(&self, wanted: &Wanted<'_>) -> bool {
        self.alpn == wanted.alpn()
            && self.client == wanted.client
            && match (&self.tls, wanted.tls) {
                (None, None) => true,
                (Some(a), Some(b)) => {
                    std::ptr::eq(a.as_ptr(), Arc::as_ptr(b))
                        && self.server_name.as_deref() == wanted.server_name
                        && self.offer.as_ref() == wanted.offer
                }
                _ => false,
            }
    }

    /// Whether no request can want it any more.
    pub(super) fn is_replaced(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.strong_count() == 0)
    }

    /// Connections that are open or being opened, but for those that have left their place to others.
    pub(super) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Counts one more connection.
    pub(super) fn enter(&self) {
        self.open.fetch_add(1, Relaxed);
    }

    /// Counts one connection less.
    pub(super) fn leave(&self) {
        self.open.fetch_sub(1, Relaxed);
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

/// Why a connection takes no more requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It had none for too long.
    Idle,
    /// It is too old.
    Age,
    /// It has had enough of them.
    Requests,
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

    /// Whether and why a connection takes no more requests, which was opened then, has had so many of them, and none
    /// since `idle`.
    pub(super) fn end(
        &self,
        opened: Instant,
        requests: u32,
        idle: Option<Instant>,
        now: Instant,
    ) -> Option<End> {
        let over = |limit: Option<Duration>, since| limit.is_some_and(|t| now.duration_since(since) >= t);
        if over(self.duration, opened) {
            Some(End::Age)
        } else if requests >= self.requests {
            Some(End::Requests)
        } else if idle.is_some_and(|since| over(self.idle, since)) {
            Some(End::Idle)
        } else {
            None
        }
    }
}

impl End {
    /// Counts it.
    pub(super) fn count(self, stats: &ClusterStats) {
        match self {
            End::Idle => stats.upstream_cx_idle_timeout().inc(),
            End::Age => stats.upstream_cx_max_duration_reached().inc(),
            End::Requests => stats.upstream_cx_max_requests().inc(),
        }
    }
}
