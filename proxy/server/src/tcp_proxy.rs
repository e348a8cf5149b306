//! TCP proxying: bytes both ways between a client and an endpoint (Envoy's tcp_proxy, APISIX's passthrough).
//!
//! Clusters, balancers, circuit breakers and connecting are those of requests. The client is not read before
//! the endpoint is there, and it is closed without a word when none can be reached.

mod meter;
mod pump;

use crate::connect::{Connected, Handshake};
use crate::drain::Drain;
use crate::io::{Filtering, Io};
use crate::upstream::{ActiveConnection, UpstreamError, choose_cluster, destination, dial};
use crate::worker::Worker;
use meter::Meter;
use pump::{End, Pump, Side, Watch};
use sixfold_core::cluster::{Choice, Cluster, Criteria, InFlight, Resource, TriedHost};
use sixfold_core::connection::{Connection, UpstreamConnection};
use sixfold_core::flags::Flag;
use sixfold_core::hash::request_hash;
use sixfold_core::listener::TcpProxy;
use sixfold_core::stream::{ByteCounts, Stream};
use sixfold_core::traffic::Traffic;
use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::time::{Instant, timeout_at};

/// Serves a connection until both sides have said all, one of them fails, or a limit ends it.
pub async fn serve(
    mut io: Io,
    connection: Arc<Connection>,
    proxy: Arc<TcpProxy>,
    worker: Arc<Worker>,
    drain: Drain,
) {
    let mut session = Session::new(connection, proxy, io.filtering());
    match session.begin(&worker).await {
        Some((upstream, deadline)) => session.pass(io, upstream, deadline, &drain).await,
        None => session.filtering = io.take_filtering(),
    }
}

/// Counts and logs a connection that a network filter before the proxy ends at its beginning.
pub(crate) fn refused(connection: Arc<Connection>, proxy: Arc<TcpProxy>, filtering: Box<Filtering>) {
    proxy.stats.downstream_cx_total().inc();
    let mut session = Session::new(connection, proxy, Some(&filtering));
    session.filtering = Some(filtering);
}

/// Why a client is closed before an endpoint was reached. Numbers are Envoy's (`UpstreamFailureReason`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// Every attempt to connect failed.
    ConnectFailed = 0,
    /// The cluster has no endpoint to offer.
    NoHealthyUpstream = 1,
    /// The circuit breaker allows no further connection.
    Overflow = 2,
    /// The cluster does not exist.
    NoCluster = 3,
}

impl Refusal {
    fn flag(self) -> Flag {
        match self {
            Refusal::ConnectFailed => Flag::URX,
            Refusal::NoHealthyUpstream => Flag::UH,
            Refusal::Overflow => Flag::UO,
            Refusal::NoCluster => Flag::NC,
        }
    }
}

/// One proxied connection. Its access logs are written when it is dropped, however it ends.
struct Session {
    stream: Stream,
    proxy: Arc<TcpProxy>,
    /// The network filters before this one, once their work is over.
    filtering: Option<Box<Filtering>>,
}

/// A connection to an endpoint and what counts it. Envoy's TCP pools count a connection as one request.
struct Upstream {
    connected: Connected,
    flight: InFlight,
    active: ActiveConnection,
}

impl Session {
    fn new(connection: Arc<Connection>, proxy: Arc<TcpProxy>, filtering: Option<&Filtering>) -> Session {
        let mut stream = Stream::new(connection);
        if let Some(noted) = filtering.and_then(Filtering::context) {
            stream.metadata.clone_from(&noted.metadata);
        }
        stream.start_time = SystemTime::now() - stream.connection.start.elapsed();
        request_hash(&proxy.hash, &mut stream);
        Session { stream, proxy, filtering: None }
    }

    /// Connects to an endpoint; with the connection comes the time at which this one has to end. `None` when there is
    /// none, which is noted.
    async fn begin(&mut self, worker: &Worker) -> Option<(Upstream, Option<Instant>)> {
        self.proxy.stats.downstream_cx_total().inc();
        let start = Instant::from_std(self.stream.connection.start);
        let deadline = self.proxy.max_duration.and_then(|limit| start.checked_add(limit));
        let establishing = self.establish(worker);
        let established = match deadline {
            Some(at) => timeout_at(at, establishing).await,
            None => Ok(establishing.await),
        };
        match established {
            Ok(Ok(upstream)) => return Some((upstream, deadline)),
            Ok(Err(refusal)) => self.refuse(refusal),
            Err(_) => self.overdue(),
        }
        None
    }

    /// Connects to an endpoint, with as many attempts as allowed. As in Envoy each attempt chooses the cluster
    /// anew, and an open circuit breaker is told before attempts are counted.
    async fn establish(&mut self, worker: &Worker) -> Result<Upstream, Refusal> {
        let proxy = self.proxy.clone();
        loop {
            self.stream.random = fastrand::u64(..);
            let (cluster, drawn) = choose_cluster(&proxy.cluster, &self.stream);
            let cluster = cluster.ok_or(Refusal::NoCluster)?;
            let subset = drawn.map_or(&proxy.metadata_match, |(_, member)| &member.metadata_match);
            self.stream.upstream.cluster = Some(cluster.clone());
            let breaker = &cluster.breaker;
            if breaker.count(Resource::Connections) >= breaker.limit(Resource::Connections) {
                cluster.stats.upstream_cx_overflow().inc();
                return Err(Refusal::Overflow);
            }
            if self.stream.upstream.attempts >= proxy.max_connect_attempts.max(1) {
                cluster.stats.upstream_cx_connect_attempts_exceeded().inc();
                return Err(Refusal::ConnectFailed);
            }
            let Some(mut flight) = self.choose_host(&cluster, subset, worker.index) else {
                cluster.stats.upstream_cx_none_healthy().inc();
                return Err(Refusal::NoHealthyUpstream);
            };
            let host = flight.host().clone();
            let Some(permit) = cluster.connection(&host, false) else {
                cluster.stats.upstream_cx_overflow().inc();
                return Err(Refusal::Overflow);
            };
            self.begin_attempt(&mut flight);
            let mut active = ActiveConnection::new(host.clone(), cluster.stats.clone(), Some(permit));
            let timeout = cluster.config.connect_timeout;
            let source = self.stream.connection.source;
            let handshake =
                Handshake { tls: cluster.tls_of(flight.member()), source, ..Handshake::default() };
            match dial(&cluster, &host, handshake, timeout).await {
                Ok(mut connected) => {
                    flight.connected();
                    flight.attached();
                    // However it ends, its one request is under way.
                    active.ends_busy();
                    self.connected(&mut connected);
                    return Ok(Upstream { connected, flight, active });
                }
                Err(error) => {
                    if matches!(error, UpstreamError::Connect(_)) {
                        active.ends_remotely();
                    }
                    self.failed(&error, flight);
                }
            }
        }
    }

    fn choose_host(&self, cluster: &Arc<Cluster>, subset: &Criteria, worker: usize) -> Option<InFlight> {
        let choice = Choice::avoiding(&self.stream.upstream.tried, worker, self.stream.hash, subset);
        cluster.choose(&Choice { destination: destination(cluster, &self.stream), ..choice })
    }

    fn begin_attempt(&mut self, flight: &mut InFlight) {
        let now = std::time::Instant::now();
        flight.begin_raw(now);
        let upstream = &mut self.stream.upstream;
        upstream.attempts += 1;
        upstream.member = Some(flight.member().clone());
        upstream.tried.push(TriedHost::new(flight.member().clone(), now));
    }

    fn connected(&mut self, connected: &mut Connected) {
        let upstream = &mut self.stream.upstream;
        upstream.local = connected.local;
        upstream.connection = Some(UpstreamConnection::new(connected.tls.take()));
        upstream.failure = None;
        if let Some(tried) = upstream.tried.last_mut() {
            tried.connect_ms = Some(connected.connect_ms);
        }
    }

    fn failed(&mut self, error: &UpstreamError, mut flight: InFlight) {
        let kind = error.outcome();
        flight.end(kind, kind.status(), std::time::Instant::now());
        self.stream.flags.insert(Flag::UF);
        self.stream.upstream.failure = Some(match error {
            UpstreamError::Connect(text) => text.clone().into(),
            other => other.text().into(),
        });
    }

    fn refuse(&mut self, refusal: Refusal) {
        if refusal == Refusal::NoCluster {
            self.proxy.stats.downstream_cx_no_route().inc();
        }
        self.stream.flags.insert(refusal.flag());
        self.closed(&format!("tcp_initializion_failure:{}", refusal as u8));
    }

    fn overdue(&mut self) {
        self.proxy.stats.max_downstream_connection_duration().inc();
        self.stream.flags.insert(Flag::DT);
        self.closed("max_connection_duration_reached");
    }

    /// Notes why we close the client, in Envoy's words (`StreamInfo::LocalCloseReasons`).
    fn closed(&mut self, reason: &str) {
        self.stream.set_var("downstream_local_close_reason", reason);
    }

    /// Passes bytes until the end.
    async fn pass(&mut self, client: Io, upstream: Upstream, deadline: Option<Instant>, drain: &Drain) {
        let Upstream { connected, flight, mut active } = upstream;
        let proxy = self.proxy.clone();
        let stats = &flight.cluster().stats;
        let mut forced = pin!(drain.expired());
        let every = client.filtering().and_then(Filtering::report_interval);
        let watch = Watch::new(proxy.idle_timeout, deadline, drain, forced.as_mut());
        let mut watch = watch.reporting(every);
        let mut pump = Pump::new(client, connected.io);
        let mut meter = Meter::new(&proxy.stats, stats);
        let mut end = loop {
            match pump.run(&mut watch, &mut meter, &mut self.stream.bytes).await {
                End::Report => self.report(&mut pump),
                end => break end,
            }
        };
        let remote = matches!(end, End::Closed(Side::Upstream) | End::Failed(Side::Upstream));
        if let End::Failed(side) = end
            && pump.holds_bytes_of(side)
        {
            // What a side said before it went is still passed on.
            let _flushing = (side == Side::Client).then(|| {
                proxy.stats.upstream_flush_total().inc();
                proxy.stats.upstream_flush_active().raise()
            });
            end = loop {
                match pump.flush(side, &mut watch, &mut meter, &mut self.stream.bytes).await {
                    End::Report => self.report(&mut pump),
                    end => break end,
                }
            };
        }
        drop(meter);
        if remote {
            active.ends_remotely();
        }
        match end {
            End::Idle => {
                proxy.stats.idle_timeout().inc();
                self.closed("tcp_session_idle_timeout");
            }
            End::Deadline => self.overdue(),
            End::Drained => self.closed("deferred_close_on_drained_connection"),
            // The filter says why.
            End::Refused | End::Closed(_) | End::Failed(_) | End::Report => {}
        }
        self.note_endpoint(&pump);
        self.filtering = pump.take_filtering();
        if let (End::Refused, Some(filtering)) = (end, &self.filtering) {
            self.stream.bytes.request_body += filtering.held() as u64;
        }
    }
}

impl Session {
    /// Tells the filters of the client's connection how it does.
    fn report(&mut self, pump: &mut Pump) {
        self.note_endpoint(pump);
        if let Some(filtering) = pump.filtering() {
            filtering.report(&mut self.stream);
        }
    }

    /// Notes what the endpoint has told of itself.
    fn note_endpoint(&mut self, pump: &Pump) {
        if let Some(told) = pump.upstream_filtering().and_then(Filtering::context) {
            let peers = &mut self.stream.peers;
            peers.upstream.clone_from(&told.peers.downstream);
            peers.awaited.upstream = told.peers.awaited.downstream;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stream.timing.downstream_tx_end = Some(std::time::Instant::now());
        let ByteCounts { request_body, response_body, upstream_sent, upstream_received, .. } =
            self.stream.bytes;
        self.stream.bytes.traffic =
            Traffic { received: request_body, sent: response_body, ..Traffic::default() };
        if let Some(tried) = self.stream.upstream.tried.last_mut() {
            tried.traffic =
                Traffic { received: upstream_received, sent: upstream_sent, ..Traffic::default() };
        }
        if let Some(filtering) = self.filtering.take() {
            filtering.end_with(&mut self.stream);
        }
        self.proxy.access_logs.iter().for_each(|log| log.log(&self.stream));
    }
}
