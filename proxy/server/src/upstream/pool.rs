//! Pools of upstream connections: one set for each worker, so that taking one never waits for another thread.

use super::h1::H1Upstream;
use super::h2::H2Connection;
use super::queue::{Grant, Place, Queue};
use super::{Alive, UpstreamError, UpstreamStream, dial};
use crate::connect::{Alpn, Connected};
use crate::h1::{H1Options, HeaderCase, Profile};
use parking_lot::Mutex;
use sixfold_core::cluster::{self, Cluster, Host, Resource, UpstreamProtocol};
use sixfold_core::fast_hash::FastMap;
use sixfold_core::tls::ClientTls;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// The upstream connections of one worker.
#[derive(Default)]
pub struct Pools {
    hosts: Mutex<FastMap<u64, HostPool>>,
}

/// Connections to one endpoint.
#[derive(Default)]
struct HostPool {
    idle: Vec<Idle>,
    shared: Vec<Shared>,
    /// Held while an HTTP/2 connection is being opened: others wait for it instead of opening more.
    opening: Arc<tokio::sync::Mutex<()>>,
    queue: Arc<Queue>,
}

/// An idle HTTP/1 connection.
struct Idle {
    connection: Box<H1Upstream>,
    kind: Kind,
    since: Instant,
    limits: Limits,
}

/// An HTTP/2 connection.
struct Shared {
    connection: H2Connection,
    host: Weak<Host>,
    kind: Kind,
    used: Instant,
    limits: Limits,
}

/// Which requests may share a connection: equal TLS settings and server name.
#[derive(Clone, Default)]
pub(super) struct Kind {
    tls: Option<Arc<ClientTls>>,
    authority: Option<Box<str>>,
}

impl Kind {
    fn serves(&self, wanted: &Wanted<'_>) -> bool {
        match (&self.tls, &wanted.cluster.config.tls) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) && self.authority.as_deref() == wanted.authority,
            _ => false,
        }
    }

    /// Whether connections of both serve the same requests.
    pub(super) fn is_same(&self, other: &Kind) -> bool {
        match (&self.tls, &other.tls) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) && self.authority == other.authority,
            _ => false,
        }
    }
}

/// How long a connection lives, by its cluster's settings when it was opened.
#[derive(Clone, Copy)]
struct Limits {
    idle: Option<Duration>,
    duration: Option<Duration>,
    requests: u32,
    max_idle: usize,
    streams: u32,
}

impl Limits {
    fn of(config: &cluster::ClusterConfig) -> Limits {
        Limits {
            idle: config.idle_timeout,
            duration: config.max_connection_duration,
            requests: config.max_requests_per_connection.unwrap_or(u32::MAX),
            max_idle: config.max_idle,
            streams: config.http2.max_concurrent_streams,
        }
    }

    fn expired(&self, opened: Instant, used: Instant, now: Instant) -> bool {
        self.idle.is_some_and(|t| now.duration_since(used) >= t) || self.too_old(opened, now)
    }

    fn too_old(&self, opened: Instant, now: Instant) -> bool {
        self.duration.is_some_and(|t| now.duration_since(opened) >= t)
    }
}

/// What a request wants.
pub(crate) struct Wanted<'a> {
    /// Its cluster.
    pub(crate) cluster: &'a Cluster,
    /// Its endpoint.
    pub(crate) host: &'a Arc<Host>,
    /// Server name for TLS, where the cluster takes it from the request.
    pub(crate) authority: Option<&'a str>,
    /// Whether the client speaks HTTP/2.
    pub(crate) downstream_http2: bool,
    /// Bounds connecting.
    pub(crate) timeout: Duration,
    /// Counts against the HIGH limits.
    pub(crate) high: bool,
    /// Whose manners HTTP/1 shows.
    pub(crate) profile: Profile,
    /// The moment of the request.
    pub(crate) now: Instant,
}

/// A connection for one request.
pub(crate) struct Checkout {
    /// The request's stream.
    pub(crate) stream: UpstreamStream,
    /// Milliseconds it took to connect; `None` for a connection that was there.
    pub(crate) connect_ms: Option<u32>,
    kind: Kind,
    limits: Limits,
}

impl Wanted<'_> {
    fn breaker(&self) -> &cluster::Breaker {
        if self.high { &self.cluster.high_breaker } else { &self.cluster.breaker }
    }

    fn alpn(&self) -> Alpn {
        match self.cluster.config.protocol {
            UpstreamProtocol::Http1 => Alpn::Http1,
            UpstreamProtocol::Http2 => Alpn::Http2,
            UpstreamProtocol::Auto => Alpn::Auto,
            UpstreamProtocol::Downstream if self.downstream_http2 => Alpn::Http2,
            UpstreamProtocol::Downstream => Alpn::Http1,
        }
    }

    async fn dial(&self) -> Result<Connected, UpstreamError> {
        dial(self.cluster, self.host, self.authority, self.alpn(), self.timeout).await
    }

    fn kind(&self) -> Kind {
        let tls = self.cluster.config.tls.clone();
        Kind { authority: self.authority.filter(|_| tls.is_some()).map(Into::into), tls }
    }

    fn h1_options(&self) -> H1Options {
        let http1 = &self.cluster.config.http1;
        let mut opts = H1Options::upstream(self.profile);
        opts.enable_trailers = http1.enable_trailers;
        opts.allow_chunked_length = http1.allow_chunked_length;
        opts.rules = self.cluster.config.header_rules;
        opts.max_head_bytes = http1.max_head_bytes;
        if http1.header_case != HeaderCase::Lower {
            opts.header_case = http1.header_case;
        }
        opts
    }
}

impl Pools {
    /// A connection for a request: one that is there, else a new one.
    pub(crate) async fn take(&self, wanted: &Wanted<'_>) -> Result<Checkout, UpstreamError> {
        if let Some(found) = self.take_ready(wanted)? {
            return Ok(found);
        }
        let stats = &wanted.cluster.stats;
        stats.upstream_rq_pending_total().inc();
        let Some(_pending) = wanted.breaker().acquire(Resource::Pending) else {
            stats.upstream_rq_pending_overflow().inc();
            return Err(UpstreamError::Overflow);
        };
        match wanted.alpn() {
            Alpn::Http2 | Alpn::Auto => self.open_shared(wanted).await,
            _ => {
                let queue = self.queue(wanted);
                match self.connection_permit(wanted, &queue) {
                    Some(permit) => self.open(wanted, permit, Place::new(&queue)).await,
                    None => self.wait(wanted, &queue).await,
                }
            }
        }
    }

    fn queue(&self, wanted: &Wanted<'_>) -> Arc<Queue> {
        self.hosts.lock().entry(wanted.host.id).or_default().queue.clone()
    }

    /// A connection that is there already.
    pub(crate) fn take_ready(&self, wanted: &Wanted<'_>) -> Result<Option<Checkout>, UpstreamError> {
        let mut hosts = self.hosts.lock();
        let Some(pool) = hosts.get_mut(&wanted.host.id) else { return Ok(None) };
        let now = wanted.now;
        while let Some(at) = pool.idle.iter().rposition(|i| i.kind.serves(wanted)) {
            let mut idle = pool.idle.swap_remove(at);
            if idle.connection.is_usable() && !idle.limits.expired(idle.connection.opened, idle.since, now) {
                let stream = UpstreamStream::Http1(idle.connection);
                return Ok(Some(Checkout { stream, connect_ms: None, kind: idle.kind, limits: idle.limits }));
            }
        }
        pool.shared.retain(|s| !s.connection.is_closed());
        let found = pool.shared.iter_mut().find(|s| {
            s.kind.serves(wanted)
                && s.connection.streams() < s.limits.streams
                && s.connection.state().requests.load(Relaxed) < s.limits.requests
                && !s.limits.too_old(s.connection.state().opened, now)
        });
        let Some(shared) = found else { return Ok(None) };
        let Some(permit) = wanted.breaker().acquire(Resource::Requests) else {
            wanted.cluster.stats.upstream_rq_active_overflow().inc();
            return Err(UpstreamError::Overflow);
        };
        shared.used = now;
        let stream = UpstreamStream::Http2(Box::new(shared.connection.stream(Some(permit))));
        Ok(Some(Checkout { stream, connect_ms: None, kind: shared.kind.clone(), limits: shared.limits }))
    }

    /// Leave to open a connection. A worker that has none to the endpoint always gets one; idle ones that
    /// can't serve the request are closed to make room.
    fn connection_permit(&self, wanted: &Wanted<'_>, queue: &Queue) -> Option<cluster::Permit> {
        let breaker = wanted.breaker();
        if let Some(permit) = breaker.acquire(Resource::Connections) {
            return Some(permit);
        }
        let unfit = self.hosts.lock().get_mut(&wanted.host.id).map(|pool| std::mem::take(&mut pool.idle));
        if unfit.is_some_and(|idle| !idle.is_empty())
            && let Some(permit) = breaker.acquire(Resource::Connections)
        {
            return Some(permit);
        }
        wanted.cluster.stats.upstream_cx_overflow().inc();
        (queue.open() == 0).then(|| breaker.force(Resource::Connections))
    }

    async fn open(
        &self,
        wanted: &Wanted<'_>,
        permit: cluster::Permit,
        place: Place,
    ) -> Result<Checkout, UpstreamError> {
        let connected = wanted.dial().await?;
        let stats = wanted.cluster.stats.clone();
        let alive = Alive::new(wanted.host.clone(), stats, Some(permit)).at(place);
        let opts = Arc::new(wanted.h1_options());
        let connection = H1Upstream::new(connected.io, opts, wanted.cluster.config.buffer_limit, alive);
        Ok(Checkout {
            stream: UpstreamStream::Http1(Box::new(connection)),
            connect_ms: Some(connected.connect_ms),
            kind: wanted.kind(),
            limits: Limits::of(&wanted.cluster.config),
        })
    }

    /// Waits for a connection that another request gives back, or for one to end. As in Envoy it is the
    /// request's own deadlines that bound the wait.
    async fn wait(&self, wanted: &Wanted<'_>, queue: &Arc<Queue>) -> Result<Checkout, UpstreamError> {
        let pending = wanted.cluster.stats.upstream_rq_pending_active().raise();
        loop {
            let place = match queue.join(wanted.kind()).await {
                Ok(Grant::Connection(mut connection)) => {
                    if connection.is_usable() {
                        return Ok(Checkout {
                            stream: UpstreamStream::Http1(connection),
                            connect_ms: None,
                            kind: wanted.kind(),
                            limits: Limits::of(&wanted.cluster.config),
                        });
                    }
                    // It ended, or said something unasked, since it was given back: its place is this request's.
                    connection.alive.leave_place()
                }
                Ok(Grant::Place(place)) => Some(place),
                Err(_) => return Err(UpstreamError::Closed),
            };
            let Some(place) = place else { continue };
            let breaker = wanted.breaker();
            let last = || (queue.open() <= 1).then(|| breaker.force(Resource::Connections));
            // Another worker may have been faster.
            match breaker.acquire(Resource::Connections).or_else(last) {
                Some(permit) => {
                    drop(pending);
                    return self.open(wanted, permit, place).await;
                }
                None => place.forfeit(),
            }
        }
    }

    /// Opens an HTTP/2 connection (or one of either version by ALPN), or takes the one that somebody else has
    /// opened in the meantime.
    async fn open_shared(&self, wanted: &Wanted<'_>) -> Result<Checkout, UpstreamError> {
        let (opening, queue) = {
            let mut hosts = self.hosts.lock();
            let pool = hosts.entry(wanted.host.id).or_default();
            (pool.opening.clone(), pool.queue.clone())
        };
        let _one = opening.lock().await;
        if let Some(found) = self.take_ready(wanted)? {
            return Ok(found);
        }
        let Some(permit) = self.connection_permit(wanted, &queue) else {
            wanted.cluster.stats.upstream_rq_pending_overflow().inc();
            return Err(UpstreamError::Overflow);
        };
        let place = Place::new(&queue);
        let config = &wanted.cluster.config;
        let connected = wanted.dial().await?;
        let limits = Limits::of(config);
        let stats = wanted.cluster.stats.clone();
        let alive = Alive::new(wanted.host.clone(), stats, Some(permit)).at(place);
        if wanted.alpn() == Alpn::Auto && connected.alpn.as_deref() != Some(b"h2") {
            let opts = Arc::new(wanted.h1_options());
            let connection = H1Upstream::new(connected.io, opts, config.buffer_limit, alive);
            let stream = UpstreamStream::Http1(Box::new(connection));
            return Ok(Checkout {
                stream,
                connect_ms: Some(connected.connect_ms),
                kind: wanted.kind(),
                limits,
            });
        }
        let connection = H2Connection::open(connected.io, config, alive).await?;
        let Some(permit) = wanted.breaker().acquire(Resource::Requests) else {
            wanted.cluster.stats.upstream_rq_active_overflow().inc();
            return Err(UpstreamError::Overflow);
        };
        let stream = UpstreamStream::Http2(Box::new(connection.stream(Some(permit))));
        let host = Arc::downgrade(wanted.host);
        let shared = Shared { connection, host, kind: wanted.kind(), used: Instant::now(), limits };
        self.hosts.lock().entry(wanted.host.id).or_default().shared.push(shared);
        Ok(Checkout { stream, connect_ms: Some(connected.connect_ms), kind: wanted.kind(), limits })
    }

    /// Takes a connection back after its request. One that can't be used again is closed.
    pub(crate) fn give_back(&self, checkout: Checkout, now: Instant) {
        let Checkout { stream, kind, limits, .. } = checkout;
        let UpstreamStream::Http1(mut connection) = stream else { return };
        if !connection.is_reusable() {
            return;
        }
        if connection.requests >= limits.requests {
            connection.alive.stats.upstream_cx_max_requests().inc();
            return;
        }
        connection.rest();
        // What the upstream has said unasked would answer the next request, and that may be another client's.
        if !connection.is_usable() {
            return;
        }
        let mut hosts = self.hosts.lock();
        let pool = hosts.entry(connection.alive.host.id).or_default();
        let Some(connection) = pool.queue.offer(connection, &kind) else { return };
        if limits.max_idle == 0 {
            return;
        }
        if pool.idle.len() >= limits.max_idle {
            pool.idle.swap_remove(0);
        }
        pool.idle.push(Idle { connection, kind, since: now, limits });
    }

    /// Closes connections that were idle for too long, that are older than allowed, or whose endpoint is gone.
    /// The worker calls it every second.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut hosts = self.hosts.lock();
        hosts.retain(|_, pool| {
            pool.idle.retain_mut(|idle| {
                let expired = idle.limits.expired(idle.connection.opened, idle.since, now);
                let stats = &idle.connection.alive.stats;
                if idle.limits.too_old(idle.connection.opened, now) {
                    stats.upstream_cx_max_duration_reached().inc();
                } else if expired {
                    stats.upstream_cx_idle_timeout().inc();
                }
                // An endpoint that only its idle connections still hold has left its cluster.
                let gone = Arc::strong_count(&idle.connection.alive.host) <= 1;
                !expired && !gone && idle.connection.is_usable()
            });
            pool.shared.retain(|s| {
                let busy = s.connection.streams() > 0;
                let expired = s.limits.expired(s.connection.state().opened, s.used, now);
                let gone = s.host.strong_count() <= 1;
                !s.connection.is_closed() && (busy || !(expired || gone))
            });
            let opening = Arc::strong_count(&pool.opening) > 1;
            opening || !pool.idle.is_empty() || !pool.shared.is_empty() || Arc::strong_count(&pool.queue) > 1
        });
    }
}
