//! The life of one downstream connection: listener filters, hand-over, chain choice, TLS, network filter.

use super::accept::Counted;
use super::filters::{self, FilterError, Findings};
use super::{ActiveChain, ActiveListener, Slot};
use crate::buffer::{ReadBuffer, WriteBuffer};
use crate::closing;
use crate::connect::set_options;
use crate::deadline::Deadline;
use crate::drain::Drain;
use crate::http;
use crate::io::{Filtering, Io, Socket};
use crate::tcp_proxy::{self, Routed, Terms};
use crate::tls::{self, HandshakeError, Unnamed};
use crate::worker::Worker;
use sixfold_core::connection::{Connection, Kept};
use sixfold_core::flags::Flag;
use sixfold_core::hcm::Profile;
use sixfold_core::listener::{
    ConnectionFilter, L4Proxy, L4Subject, ListenerStats, MatchInput, NetworkFilter,
};
use sixfold_core::overload::Timer;
use sixfold_core::stream::Stream;
use sixfold_core::tls::HandshakeFailure;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How long the client of a `direct_response` may take to read it.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// What addresses of unix sockets look like.
const NO_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Serves an accepted connection until it ends.
pub(super) async fn run(mut socket: Socket, slot: Arc<Slot>, worker: Arc<Worker>, _counted: Counted) {
    let start = Instant::now();
    let listener = slot.0.load_full();
    if let Some(tcp) = socket.as_tcp() {
        // Fails only on a connection that is gone already, which the next read will tell.
        let _ = set_options(tcp, listener.config.tcp_keepalive);
    }
    let peer = socket.peer_addr();
    let local = socket.local_addr();
    let mut found = Findings::of(peer, local);
    if !inspect(&listener, &mut socket, &mut found, &worker).await {
        return socket.refuse();
    }
    // What was in force when the client came may not be any more: a stricter policy has come since.
    let listener = listener.as_of(slot.0.load_full());
    let listener = match hand_over(&listener, &found, local, &worker) {
        None => listener,
        Some(meant) => {
            let address = found.local;
            // Its own filters look at the connection too; it does not hand over again.
            if !inspect(&meant, &mut socket, &mut found, &worker).await {
                return socket.refuse();
            }
            match address.and_then(|address| listener_of(address, &worker)) {
                Some(now) => meant.as_of(now),
                None => meant,
            }
        }
    };
    let input = MatchInput {
        destination: found.local,
        server_name: found.server_name.as_deref(),
        tls: found.tls,
        application_protocols: &found.protocols,
        direct_source: peer,
        source: found.remote,
    };
    let connection = Connection {
        id: worker.shared.next_connection_id(),
        start,
        listener: listener.config.name.clone(),
        filter_chain: "".into(),
        listener_metadata: listener.config.metadata.clone(),
        chain_metadata: Arc::default(),
        remote: found.remote.unwrap_or(NO_ADDRESS),
        direct_remote: peer.unwrap_or(NO_ADDRESS),
        local: found.local.unwrap_or(NO_ADDRESS),
        local_restored: found.restored,
        direct_local: local.unwrap_or(NO_ADDRESS),
        requested_server_name: found.server_name.clone(),
        tls: None,
        source: found.source,
        filter_state: Default::default(),
        kept: Kept::default(),
    };
    match listener.choose(&input) {
        Some(chain) => serve_chain(socket, connection, &listener, chain, &worker).await,
        None => {
            listener.config.stats.no_filter_chain_match().inc();
            socket.refuse();
            log(&listener, Arc::new(connection), Some(("filter_chain_not_found", Flag::NR)));
        }
    }
}

/// Runs the listener filters; tells whether the connection goes on.
async fn inspect(
    listener: &ActiveListener,
    socket: &mut Socket,
    found: &mut Findings,
    worker: &Worker,
) -> bool {
    let (config, shared) = (&listener.config, &worker.shared);
    if config.listener_filters.is_empty() {
        return true;
    }
    let inspecting = config.stats.downstream_pre_cx_active().raise();
    let mut seen = Vec::new();
    let mut deadline = Deadline::configured(config.filters_timeout);
    let filters = filters::run(&config.listener_filters, socket, &mut seen, found, shared, &mut deadline);
    // A listener that goes away does not wait for clients that say nothing.
    let outcome = listener.waiting(worker.index).connection().serve(filters).await;
    drop(inspecting);
    socket.unread(seen);
    let Some(outcome) = outcome else { return false };
    match outcome {
        Ok(()) => true,
        Err(FilterError::Closed) => {
            config.stats.downstream_listener_filter_remote_close().inc();
            false
        }
        Err(FilterError::TimedOut) => {
            config.stats.downstream_pre_cx_timeout().inc();
            config.continue_on_timeout
        }
        Err(reason) => {
            match reason {
                FilterError::Broken => config.stats.downstream_listener_filter_error().inc(),
                FilterError::ProxyProtocol => shared.filter_stats.proxy_failed(&shared.metrics),
                // The inspectors count theirs.
                _ => {}
            }
            tracing::debug!(listener = %config.name, %reason, "a listener filter refuses a connection");
            false
        }
    }
}

/// The listener of the address that a redirected connection was meant for, if it is another one.
fn hand_over(
    listener: &ActiveListener,
    found: &Findings,
    local: Option<SocketAddr>,
    worker: &Worker,
) -> Option<Arc<ActiveListener>> {
    let meant = found.local.filter(|meant| listener.config.use_original_dst && Some(*meant) != local)?;
    let other = listener_of(meant, worker)?;
    (other.config.name != listener.config.name).then_some(other)
}

fn listener_of(address: SocketAddr, worker: &Worker) -> Option<Arc<ActiveListener>> {
    worker.shared.listeners.load().find(address).cloned()
}

/// The time for a handshake, which is shorter under load.
fn handshake_time(time: Duration, listener: &ActiveListener, worker: &Worker) -> Duration {
    let overload = worker.shared.overload.get().filter(|_| !listener.config.spared.load);
    let shortened = overload.and_then(|overload| overload.shortened(Timer::Handshake, time));
    shortened.map_or(time, |time| time.now)
}

async fn serve_chain(
    socket: Socket,
    mut connection: Connection,
    listener: &ActiveListener,
    active: &ActiveChain,
    worker: &Arc<Worker>,
) {
    let _open = Open::new(listener.config.stats.clone(), connection.start);
    let chain = &active.chain;
    connection.filter_chain = chain.name.clone();
    connection.chain_metadata = chain.metadata.clone();
    let drain = active.drain_of(worker.index);
    let guard = drain.connection();
    let mut io = match &chain.tls {
        None => Io::plain(socket),
        Some(tls) => {
            let mut deadline = Deadline::after(handshake_time(chain.handshake_timeout, listener, worker));
            let unnamed = if is_apisix(&chain.filter) { Unnamed::Alert } else { Unnamed::Close };
            let handshake = tls::accept(socket, tls, unnamed, &mut deadline);
            // A listener that goes away does not wait for handshakes beyond its deadline either.
            let outcome = drain.connection().serve(Box::pin(handshake)).await;
            match count_handshake(outcome, &listener.config.stats) {
                Ok(accepted) => {
                    connection.tls = Some(accepted.info);
                    accepted.io
                }
                Err(plain) => {
                    let connection = Arc::new(connection);
                    let manager = active.http.clone().filter(|_| is_apisix(&chain.filter));
                    match (plain, manager) {
                        (Some(socket), Some(manager)) => {
                            let (io, shared) = (Io::plain(*socket), connection.clone());
                            let work = http::refuse_plain(io, shared, manager, worker.clone(), drain);
                            guard.serve(Box::pin(work)).await;
                        }
                        _ => count_unserved(&chain.filter),
                    }
                    return log(listener, connection, None);
                }
            }
        }
    };
    if let NetworkFilter::Routed(proxy) = &chain.filter {
        let work = serve_routed(io, connection, listener, proxy.clone(), worker, drain);
        guard.serve(Box::pin(work)).await;
        return;
    }
    let connection = Arc::new(connection);
    let shared = connection.clone();
    let refused = |filtering| {
        if let NetworkFilter::Tcp(proxy) = &chain.filter {
            tcp_proxy::refused(connection.clone(), Terms::of(proxy.clone()), filtering);
        }
    };
    let filtered = Filtering::is_needed(&chain.filters, &connection);
    let context = || Stream::new(connection.clone());
    if filtered && !pass_filters(&mut io, &chain.filters, context(), &drain, refused).await {
        return log(listener, connection, None);
    }
    match (&chain.filter, &active.http) {
        (NetworkFilter::Http(_), Some(manager)) => {
            let work = http::serve(io, shared, manager.clone(), worker.clone(), drain);
            guard.serve(Box::pin(work)).await;
        }
        (NetworkFilter::Tcp(proxy), _) => {
            let work = tcp_proxy::serve(io, shared, proxy.clone(), worker.clone(), drain);
            guard.serve(Box::pin(work)).await;
        }
        (NetworkFilter::Direct(bytes), _) => {
            guard.serve(Box::pin(direct(io, bytes))).await;
        }
        // A connection manager is made ready with its chain; routes were looked at before.
        (NetworkFilter::Http(_) | NetworkFilter::Routed(_), _) => {}
    }
    log(listener, connection, None);
}

/// Serves a connection as the table of a listener's routes says.
async fn serve_routed(
    mut io: Io,
    mut connection: Connection,
    listener: &ActiveListener,
    proxy: Arc<L4Proxy>,
    worker: &Arc<Worker>,
    drain: Drain,
) {
    let tls = connection.tls.as_ref();
    let asked = tls.map(|tls| tls.server_name.clone().or_else(|| proxy.fallback_name.clone()));
    let server_name = asked.flatten();
    // The destination that the PROXY protocol tells is nobody's here, as in nginx.
    (connection.local, connection.local_restored) = (connection.direct_local, false);
    let client = proxy.client(&connection);
    let subject = L4Subject { server_name: server_name.as_deref(), remote: client, local: connection.local };
    let route = proxy.routes.find(&subject);
    let connection = Arc::new(connection);
    let Some(route) = route else {
        proxy.stats.downstream_cx_total().inc();
        proxy.stats.downstream_cx_no_route().inc();
        return log(listener, connection, Some(("filter_chain_not_found", Flag::NR)));
    };
    let _active = proxy.upstream.sessions_active().raise();
    let terms = Terms::routed(Routed { route, listener: proxy.clone(), server_name, client });
    let refused = |filtering| tcp_proxy::refused(connection.clone(), terms.clone(), filtering);
    let filters = terms.filters();
    let mut context = Stream::new(connection.clone());
    terms.enter(&mut context);
    if filters.is_empty() || pass_filters(&mut io, &filters, context, &drain, refused).await {
        tcp_proxy::serve_under(io, connection.clone(), terms, worker.clone(), drain).await;
    }
    log(listener, connection, None);
}

/// Tells the filters before the last one of the connection, and has them asked about its bytes from then on; tells
/// whether all let it in. `refused` is told where one does not.
async fn pass_filters(
    io: &mut Io,
    filters: &Arc<[Arc<dyn ConnectionFilter>]>,
    context: Stream,
    drain: &Drain,
    refused: impl FnOnce(Box<Filtering>),
) -> bool {
    // A listener that goes away does not wait for what filters wait for.
    let begun = drain.connection().serve(Box::pin(Filtering::begin(filters, context))).await;
    match begun {
        Some(Ok(filtering)) => {
            io.filter(filtering);
            true
        }
        Some(Err(filtering)) => {
            let delay = filtering.closing().map_or(Duration::ZERO, |closing| closing.delay);
            drain.connection().serve(tokio::time::sleep(delay)).await;
            refused(filtering);
            false
        }
        None => false,
    }
}

/// Writes a fixed answer and closes once the client has it.
async fn direct(mut io: Io, bytes: &[u8]) {
    let mut out = WriteBuffer::default();
    out.tail().extend_from_slice(bytes);
    closing::linger(&mut io, &mut out, &mut ReadBuffer::default(), ANSWER_TIME).await;
}

/// Counts a connection that ends with its handshake: a connection manager of Envoy is there before that.
fn count_unserved(filter: &NetworkFilter) {
    if let NetworkFilter::Http(manager) = filter {
        let stats = &manager.stats;
        stats.downstream_cx_total().inc();
        stats.downstream_cx_ssl_total().inc();
        stats.downstream_cx_destroy().inc();
        stats.downstream_cx_destroy_remote().inc();
    }
}

/// Whether what stands behind a chain is as in APISIX's nginx, which tells clients why it does not serve them.
fn is_apisix(filter: &NetworkFilter) -> bool {
    match filter {
        NetworkFilter::Http(manager) => manager.profile == Profile::Apisix,
        NetworkFilter::Routed(_) => true,
        NetworkFilter::Tcp(_) | NetworkFilter::Direct(_) => false,
    }
}

/// Counts how a handshake ended. Where it did not begin, for the client does not speak TLS, its connection is left.
fn count_handshake(
    outcome: Option<Result<tls::Accepted, HandshakeError>>,
    stats: &ListenerStats,
) -> Result<tls::Accepted, Option<Box<Socket>>> {
    match outcome {
        Some(Ok(accepted)) => {
            stats.tls().count(&accepted.info);
            return Ok(accepted);
        }
        Some(Err(HandshakeError::Io(error))) if error.kind() == io::ErrorKind::TimedOut => {
            stats.downstream_cx_transport_socket_connect_timeout().inc();
        }
        Some(Err(reason)) => {
            tracing::debug!(%reason, "a TLS handshake failed");
            stats.tls().count_failure(reason.failure());
            if let HandshakeError::PlainText(socket) = reason {
                return Err(Some(socket));
            }
        }
        None => stats.tls().count_failure(HandshakeFailure::Other),
    }
    Err(None)
}

/// Writes the listener's own access logs when a connection ends; `refused` says why no chain served it.
fn log(listener: &ActiveListener, connection: Arc<Connection>, refused: Option<(&'static str, Flag)>) {
    if listener.config.access_logs.is_empty() {
        return;
    }
    let elapsed = connection.start.elapsed();
    let mut stream = Stream::new(connection);
    stream.start_time = SystemTime::now() - elapsed;
    if let Some((details, flag)) = refused {
        stream.flags.insert(flag);
        stream.details = Some(details.into());
    }
    stream.timing.downstream_tx_end = Some(Instant::now());
    listener.config.access_logs.iter().for_each(|log| log.log(&stream));
}

/// An open connection in the listener's statistics.
pub(super) struct Open {
    stats: Arc<ListenerStats>,
    start: Instant,
}

impl Open {
    pub(super) fn new(stats: Arc<ListenerStats>, start: Instant) -> Open {
        stats.downstream_cx_total().inc();
        stats.downstream_cx_active().inc();
        Open { stats, start }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stats.downstream_cx_active().dec();
        self.stats.downstream_cx_destroy().inc();
        self.stats.downstream_cx_length_ms().record(self.start.elapsed().as_millis() as u64);
    }
}
