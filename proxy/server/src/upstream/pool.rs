//! Pools of upstream connections: one set for each worker, so that taking one never waits for another thread.

use super::dials::Waiting;
use super::h1::H1Upstream;
use super::host_pool::HostPool;
use super::kind::{Client, Kind, Limits};
use super::kind_pool::{Idle, Ready, Shared};
use super::open::{Opened, Order};
use super::queue::{Grant, Place, Queue};
use super::{UpstreamError, UpstreamStream};
use crate::connect::Alpn;
use parking_lot::Mutex;
use sixfold_core::cluster::{Breaker, Cluster, ConnectionPermit, Host, Permit, Resource, UpstreamProtocol};
use sixfold_core::fast_hash::FastMap;
use sixfold_core::tls::{AlpnList, ClientTls};
use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Connections without a request that a worker keeps, over all endpoints and both versions of HTTP. Beyond it those
/// that were used last longest ago are closed.
const MAX_IDLE: usize = 4096;
/// How long a request waits for a connection or for room on one before it looks again: an upstream that allows more
/// streams, a connection of another kind that is idle now, or another worker that closes one, tells nobody.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The upstream connections of one worker; a clone is the same.
#[derive(Clone)]
pub struct Pools(Arc<Mutex<State>>);

struct State {
    hosts: FastMap<u64, HostPool>,
    max_idle: usize,
    /// Connections without a request, or a few more or fewer: streams end without telling.
    idle: usize,
}

/// What a request wants.
pub(crate) struct Wanted<'a> {
    /// Its cluster.
    pub(crate) cluster: &'a Arc<Cluster>,
    /// Its endpoint.
    pub(crate) host: &'a Arc<Host>,
    /// TLS towards it.
    pub(crate) tls: Option<&'a Arc<ClientTls>>,
    /// Server name for TLS, where the cluster takes it from the request, as it is sent.
    pub(crate) server_name: Option<&'a str>,
    /// What is offered by ALPN in the place of all that is configured.
    pub(crate) offer: Option<&'a AlpnList>,
    /// Whose connection it is to the endpoint, where it is not ours alone.
    pub(crate) client: Client,
    /// Whether the client speaks HTTP/2.
    pub(crate) downstream_http2: bool,
    /// Bounds connecting.
    pub(crate) timeout: Duration,
    /// Counts against the HIGH limits.
    pub(crate) high: bool,
    /// Wants the connection's bytes, without HTTP (the end of a CONNECT).
    pub(crate) raw: bool,
    /// The moment of the request.
    pub(crate) now: Instant,
}

/// A connection for one request.
pub(crate) struct Checkout {
    /// The request's stream.
    pub(crate) stream: UpstreamStream,
    /// Milliseconds it took to connect; `None` for a connection that was there.
    pub(crate) connect_ms: Option<u32>,
}

/// What a request does next for a connection that it shares.
enum Next {
    Ready(Ready),
    /// Waits for a dial.
    Dial(Waiting),
    /// Waits for room on the connections that there are.
    Room(Arc<Notify>),
    /// Opens one of its own: there is nothing to share.
    Alone(Arc<Kind>, ConnectionPermit, Place),
    /// Waits for one of its own.
    Queue(Arc<Queue>, Arc<Kind>),
}

/// What comes of waiting for a connection.
enum Granted {
    /// A connection, or the place of one, that another request has left.
    Freed(Grant),
    /// Leave to open one.
    Leave(ConnectionPermit, Place),
}

impl Wanted<'_> {
    pub(super) fn breaker(&self) -> &Breaker {
        self.cluster.breaker(self.high)
    }

    pub(super) fn alpn(&self) -> Alpn {
        match self.cluster.config.protocol {
            _ if self.raw => Alpn::None,
            UpstreamProtocol::Http1 => Alpn::Http1,
            UpstreamProtocol::Http2 => Alpn::Http2,
            UpstreamProtocol::Auto => Alpn::Auto,
            UpstreamProtocol::Downstream if self.downstream_http2 => Alpn::Http2,
            UpstreamProtocol::Downstream => Alpn::Http1,
        }
    }

    /// Counts the request among those under way, which the breaker may refuse.
    pub(super) fn begin(&self) -> Result<Permit, UpstreamError> {
        self.breaker().acquire(Resource::Requests).ok_or_else(|| {
            self.cluster.stats.upstream_rq_active_overflow().inc();
            UpstreamError::Overflow
        })
    }

    fn checkout(&self, ready: Ready) -> Checkout {
        let (stream, connect_ms) = match ready {
            Ready::Whole(mut idle) => {
                idle.connection.home = Some(idle.limits);
                (UpstreamStream::Http1(idle.connection), idle.connect_ms)
            }
            Ready::Stream(stream, connect_ms) => (UpstreamStream::Http2(stream), connect_ms),
        };
        Checkout { stream, connect_ms }
    }
}

thread_local! {
    /// Those of the thread's worker, with its number; another thread has some of its own.
    static OF_THREAD: RefCell<Option<(Pools, usize)>> = const { RefCell::new(None) };
}

impl Default for Pools {
    fn default() -> Pools {
        Pools::with_max_idle(MAX_IDLE)
    }
}

/// A request that waits for a connection to an endpoint, which counts it.
struct PendingRequest<'h>(&'h Host);

impl PendingRequest<'_> {
    fn at(host: &Host) -> PendingRequest<'_> {
        host.pending_requests.fetch_add(1, Relaxed);
        PendingRequest(host)
    }
}

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        self.0.pending_requests.fetch_sub(1, Relaxed);
    }
}

impl Pools {
    /// Those of this thread, and the number of its worker: for requests of our own, which no client's connection
    /// brings. A thread that is no worker counts as the first.
    pub(crate) fn of_thread() -> (Pools, usize) {
        OF_THREAD.with_borrow_mut(|of| of.get_or_insert_with(|| (Pools::default(), 0)).clone())
    }

    /// Starts a thread of this name for requests of our own, whose idle connections are looked at each second, and
    /// answers where tasks are given to it.
    ///
    /// # Errors
    /// There can't be one.
    pub(crate) fn thread(name: &str) -> io::Result<Handle> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let run = move || {
            runtime.block_on(async {
                let (pools, _) = Pools::of_thread();
                let mut sweep = tokio::time::interval(Duration::from_secs(1));
                loop {
                    sweep.tick().await;
                    pools.sweep();
                }
            });
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(handle)
    }

    /// Makes them those of this thread, which is worker `index`.
    pub(crate) fn enter(&self, index: usize) {
        OF_THREAD.set(Some((self.clone(), index)));
    }

    /// Pools that keep so many connections without a request.
    pub(super) fn with_max_idle(max_idle: usize) -> Pools {
        Pools(Arc::new(Mutex::new(State { hosts: FastMap::default(), max_idle, idle: 0 })))
    }

    /// A connection that is there already.
    pub(crate) fn take_ready(&self, wanted: &Wanted<'_>) -> Result<Option<Checkout>, UpstreamError> {
        let mut state = self.0.lock();
        let Some(pool) = state.hosts.get_mut(&wanted.host.id) else { return Ok(None) };
        let Some(kind) = pool.existing(wanted) else { return Ok(None) };
        let Some(ready) = kind.take(wanted)? else { return Ok(None) };
        if let Ready::Whole(_) = ready {
            state.idle = state.idle.saturating_sub(1);
        }
        drop(state);
        Ok(Some(wanted.checkout(ready)))
    }

    /// A connection that no request has used before; over HTTP/2 one that takes another request.
    pub(crate) async fn take_new(&self, wanted: &Wanted<'_>) -> Result<Checkout, UpstreamError> {
        let stats = &wanted.cluster.stats;
        let Some(_pending) = wanted.breaker().acquire(Resource::Pending) else {
            stats.upstream_rq_pending_overflow().inc();
            return Err(UpstreamError::Overflow);
        };
        stats.upstream_rq_pending_total().inc();
        let _waiting = (stats.upstream_rq_pending_active().raise(), PendingRequest::at(wanted.host));
        if matches!(wanted.alpn(), Alpn::Http2 | Alpn::Auto) {
            return self.take_shared(wanted).await;
        }
        let (queue, kind, leave) = self.with_pool(wanted, |pool| {
            let kind = pool.kind(wanted).kind.clone();
            let leave = leave_to_open(pool, wanted, &kind);
            (pool.queue.clone(), kind, leave)
        });
        match leave {
            Some((permit, place)) => self.open(wanted, &kind, permit, place).await,
            None => self.wait(wanted, &queue, &kind).await,
        }
    }

    fn with_pool<T>(&self, wanted: &Wanted<'_>, f: impl FnOnce(&mut HostPool) -> T) -> T {
        let mut state = self.0.lock();
        let new = || HostPool::new(wanted.host.clone());
        f(state.hosts.entry(wanted.host.id).or_insert_with(new))
    }

    /// Opens a connection for one request.
    async fn open(
        &self,
        wanted: &Wanted<'_>,
        kind: &Arc<Kind>,
        permit: ConnectionPermit,
        place: Place,
    ) -> Result<Checkout, UpstreamError> {
        let room = self.with_pool(wanted, |pool| pool.of_kind(kind).map(|pool| pool.room.clone()));
        let order = Order::of(wanted, kind.clone());
        let (opened, connect_ms) = order.open(permit, place, room.unwrap_or_default()).await?;
        match opened {
            Opened::Whole(connection) => self.begin(wanted, connection, Some(connect_ms)),
            // ALPN agreed on what can be shared after all.
            shared => {
                self.add(&order, shared, connect_ms);
                self.take_ready(wanted)?.ok_or(UpstreamError::Overflow)
            }
        }
    }

    /// Begins the request on a connection of HTTP/1. Where the breaker refuses it the connection is left to others.
    fn begin(
        &self,
        wanted: &Wanted<'_>,
        mut connection: Box<H1Upstream>,
        connect_ms: Option<u32>,
    ) -> Result<Checkout, UpstreamError> {
        let begun = wanted.begin().map(|request| connection.request = Some(request));
        let limits = Limits::of(&wanted.cluster.config);
        let idle = Idle { connection, since: wanted.now, limits, connect_ms };
        let checkout = wanted.checkout(Ready::Whole(idle));
        match begun {
            Ok(()) => Ok(checkout),
            Err(error) => {
                self.give_back(checkout, wanted.now);
                Err(error)
            }
        }
    }

    /// Waits for a connection that another request gives back, or for one to end. As in Envoy it is the
    /// request's own deadlines that bound the wait.
    async fn wait(
        &self,
        wanted: &Wanted<'_>,
        queue: &Arc<Queue>,
        kind: &Arc<Kind>,
    ) -> Result<Checkout, UpstreamError> {
        let (cluster, host) = (wanted.cluster, wanted.host);
        loop {
            let place = match self.granted(wanted, queue, kind).await? {
                Granted::Leave(permit, place) => return self.open(wanted, kind, permit, place).await,
                Granted::Freed(Grant::Connection(mut connection)) => {
                    if connection.is_usable() && connection.active.is_kept(cluster) {
                        return self.begin(wanted, connection, None);
                    }
                    // It ended, said something unasked, or is one too many now: its place is this request's.
                    connection.active.leave_place()
                }
                Granted::Freed(Grant::Place(place)) => Some(place),
            };
            let Some(place) = place else { continue };
            let last = || (kind.open() <= 1).then(|| cluster.force_connection(host, wanted.high));
            // Another worker may have been faster.
            match cluster.connection(host, wanted.high).or_else(last) {
                Some(permit) => return self.open(wanted, kind, permit, place).await,
                None => place.forfeit(),
            }
        }
    }

    /// Waits for its turn, or for room that nobody tells of.
    async fn granted(
        &self,
        wanted: &Wanted<'_>,
        queue: &Arc<Queue>,
        kind: &Arc<Kind>,
    ) -> Result<Granted, UpstreamError> {
        let mut turn = queue.join(kind.clone());
        loop {
            if let Ok(grant) = tokio::time::timeout(LOOK_AGAIN, &mut turn).await {
                return grant.map(Granted::Freed).map_err(|_| UpstreamError::Closed);
            }
            let Some(permit) = self.with_pool(wanted, |pool| permit(pool, wanted)) else { continue };
            turn.close();
            return Ok(match turn.try_recv() {
                Ok(grant) => Granted::Freed(grant),
                Err(_) => Granted::Leave(permit, Place::new(queue, kind)),
            });
        }
    }

    /// A stream of a connection that requests share, opened when those there are have no room; or, by ALPN, a
    /// connection of HTTP/1.
    async fn take_shared(&self, wanted: &Wanted<'_>) -> Result<Checkout, UpstreamError> {
        loop {
            match self.next(wanted)? {
                Next::Ready(ready) => return Ok(wanted.checkout(ready)),
                Next::Dial(waiting) => waiting.end().await?,
                Next::Room(room) => {
                    let _ = tokio::time::timeout(LOOK_AGAIN, room.notified()).await;
                }
                Next::Alone(kind, permit, place) => return self.open(wanted, &kind, permit, place).await,
                Next::Queue(queue, kind) => return self.wait(wanted, &queue, &kind).await,
            }
        }
    }

    fn next(&self, wanted: &Wanted<'_>) -> Result<Next, UpstreamError> {
        self.with_pool(wanted, |pool| {
            let own = pool.kind(wanted);
            if let Some(ready) = own.take(wanted)? {
                return Ok(Next::Ready(ready));
            }
            let each = wanted.cluster.config.http2.max_concurrent_streams.min(own.allowed);
            if let Some(waiting) = own.dials.join(each) {
                return Ok(Next::Dial(waiting));
            }
            let kind = own.kind.clone();
            let leave = leave_to_open(pool, wanted, &kind);
            let queue = pool.queue.clone();
            let own = pool.kind(wanted);
            let Some((permit, place)) = leave else {
                let whole = own.unshared && !own.is_shared();
                return Ok(if whole { Next::Queue(queue, kind) } else { Next::Room(own.room.clone()) });
            };
            if own.unshared {
                return Ok(Next::Alone(kind, permit, place));
            }
            let (dialing, waiting) = own.dials.begin();
            let (order, room, pools) = (Order::of(wanted, kind), own.room.clone(), self.clone());
            // A task of its own: it goes on when the request that asked first has gone.
            tokio::spawn(async move {
                let opened = order.open(permit, place, room).await;
                dialing.end(opened.map(|(opened, connect_ms)| pools.add(&order, opened, connect_ms)));
            });
            Ok(Next::Dial(waiting))
        })
    }

    /// Adds a connection that was opened for whoever waits.
    fn add(&self, order: &Order, opened: Opened, connect_ms: u32) {
        let limits = Limits::of(&order.cluster.config);
        let connect_ms = Some(connect_ms);
        let mut state = self.0.lock();
        let pool = state.hosts.get_mut(&order.host.id).and_then(|pool| pool.of_kind(&order.kind));
        // Whoever opened it holds its kind, so the pool keeps that.
        let Some(pool) = pool else { return };
        match opened {
            Opened::Shared(connection) => pool.share(Shared { connection, limits, connect_ms }),
            Opened::Whole(connection) => {
                pool.unshared = true;
                pool.keep(Idle { connection, since: Instant::now(), limits, connect_ms });
            }
        }
        state.kept();
    }

    /// Takes a connection back after its request. One that can't be used again is closed.
    pub(crate) fn give_back(&self, checkout: Checkout, now: Instant) {
        let UpstreamStream::Http1(mut connection) = checkout.stream else { return };
        let Some(limits) = connection.home.take() else { return };
        if !connection.is_reusable() {
            return;
        }
        if connection.active.host.is_removed() || connection.active.is_outdated() {
            return;
        }
        if connection.requests >= limits.requests {
            connection.active.stats.upstream_cx_max_requests().inc();
            return;
        }
        connection.rest();
        // What the upstream has said unasked would answer the next request, and that may be another client's.
        if !connection.is_usable() {
            return;
        }
        let mut state = self.0.lock();
        let Some(pool) = state.hosts.get_mut(&connection.active.host.id) else { return };
        let Some(connection) = pool.queue.offer(connection) else { return };
        // It is there, since the connection is of it.
        let Some(pool) = pool.of_kind(&connection.pool_kind) else { return };
        pool.keep(Idle { connection, since: now, limits, connect_ms: None });
        state.kept();
    }

    /// Closes connections that were idle for too long, that are older than allowed, or whose endpoint is gone.
    /// The worker calls it every second.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut state = self.0.lock();
        state.hosts.retain(|_, pool| pool.sweep(now));
        state.count();
        state.trim();
    }
}

impl State {
    /// Counts one more that is kept, and closes the oldest when there are too many.
    fn kept(&mut self) {
        self.idle += 1;
        self.trim();
    }

    fn count(&mut self) {
        self.idle = self.hosts.values().map(HostPool::idle).sum();
    }

    /// Closes the oldest when there are too many.
    fn trim(&mut self) {
        if self.idle <= self.max_idle {
            return;
        }
        // Some at once: it is not done for each.
        let left = self.max_idle - self.max_idle / 8;
        let mut ages: Vec<Instant> = self.hosts.values().flat_map(HostPool::ages).collect();
        self.idle = ages.len();
        if self.idle <= self.max_idle {
            return;
        }
        let (_, moment, _) = ages.select_nth_unstable(self.idle - left - 1);
        let moment = *moment;
        self.hosts.values_mut().for_each(|pool| pool.forget(moment));
        self.count();
    }
}

/// Leave to open a connection. A request whose kind has none always gets it, as in Envoy, whatever the limits say
/// (common/conn_pool/conn_pool_base.cc `tryCreateNewConnection`): nothing would end its wait.
fn leave_to_open(
    pool: &mut HostPool,
    wanted: &Wanted<'_>,
    kind: &Arc<Kind>,
) -> Option<(ConnectionPermit, Place)> {
    let Wanted { cluster, host, high, .. } = *wanted;
    // The first of its kind closes no other's: two kinds that take turns would open a connection for each request.
    let permit = match kind.open() {
        0 => cluster.connection(host, high),
        _ => permit(pool, wanted),
    };
    let permit = permit.or_else(|| {
        cluster.stats.upstream_cx_overflow().inc();
        (kind.open() == 0).then(|| cluster.force_connection(host, high))
    })?;
    Some((permit, Place::new(&pool.queue, kind)))
}

/// Leave by the limits. A connection that is idle and can't serve the request is closed to make room, unless that makes
/// none: who takes turns with requests that wait would lose its connection to each look of theirs.
fn permit(pool: &mut HostPool, wanted: &Wanted<'_>) -> Option<ConnectionPermit> {
    let Wanted { cluster, host, high, .. } = *wanted;
    cluster.connection(host, high).or_else(|| {
        let made = cluster.wants_one_closed(host, high) && pool.close_oldest();
        made.then(|| cluster.connection(host, high)).flatten()
    })
}
