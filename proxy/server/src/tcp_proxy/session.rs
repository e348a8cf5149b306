//! A connection that is to be passed on: which cluster and endpoint it goes to, and what is noted of it.

use super::{End, Terms};
use crate::connect::{Connected, Handshake};
use crate::io::Filtering;
use crate::udp_proxy;
use crate::upstream::{ActiveConnection, UpstreamError, choose_cluster, destination, dial};
use crate::worker::Worker;
use sixfold_core::cluster::{Choice, Cluster, Criteria, InFlight, Resource, Seen, TriedHost};
use sixfold_core::connection::{Connection, Source, UpstreamConnection};
use sixfold_core::flags::Flag;
use sixfold_core::hash::request_hash;
use sixfold_core::listener::{ConnectAttempts, SILENCE};
use sixfold_core::proxy_protocol::Told;
use sixfold_core::route::{Forward, ForwardOptions};
use sixfold_core::stream::{ByteCounts, Stream};
use sixfold_core::traffic::Traffic;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

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

    /// What nginx's `$status` says of it.
    fn status(self) -> u16 {
        match self {
            Refusal::ConnectFailed | Refusal::Overflow => 502,
            Refusal::NoHealthyUpstream | Refusal::NoCluster => 500,
        }
    }
}

/// One proxied connection. Its access logs are written when it is dropped, however it ends.
pub(crate) struct Session {
    pub(crate) stream: Stream,
    pub(crate) terms: Terms,
    /// How it goes to the cluster that a plugin has chosen.
    chosen: Option<Arc<ForwardOptions>>,
    /// The network filters before this one, once their work is over.
    pub(crate) filtering: Option<Box<Filtering>>,
}

/// A connection to an endpoint and what counts it. Envoy's TCP pools count a connection as one request.
pub(crate) struct Upstream {
    pub(crate) reached: Reached,
    pub(crate) flight: InFlight,
    pub(crate) active: ActiveConnection,
}

/// By what an endpoint is spoken to.
pub(crate) enum Reached {
    Tcp(Box<Connected>),
    Udp(UdpSocket),
}

/// What is spoken with endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl Session {
    pub(crate) fn new(connection: Arc<Connection>, terms: Terms, filtering: Option<&Filtering>) -> Session {
        let mut stream = Stream::new(connection);
        terms.enter(&mut stream);
        let mut chosen = None;
        if let Some(noted) = filtering.and_then(Filtering::context) {
            stream.metadata.clone_from(&noted.metadata);
            if let Some(cluster) = &noted.upstream.destination {
                stream.upstream.destination = Some(cluster.clone());
                chosen = Some(Forward::to_chosen(cluster.clone()).options);
            }
        }
        stream.start_time = SystemTime::now() - stream.connection.start.elapsed();
        match &chosen {
            Some(options) => request_hash(&options.hash, &mut stream),
            None => request_hash(&terms.proxy.hash, &mut stream),
        };
        Session { stream, terms, chosen, filtering: None }
    }

    /// How long both sides may be silent; `None` is for ever.
    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        match &self.chosen {
            Some(options) => options.timeouts.silence.or(Some(SILENCE)),
            None => self.terms.proxy.idle_timeout,
        }
    }

    /// Connects to an endpoint; with the connection comes the time at which this one has to end. `None` when there is
    /// none, which is noted.
    pub(crate) async fn begin(
        &mut self,
        worker: &Worker,
        transport: Transport,
    ) -> Option<(Upstream, Option<Instant>)> {
        self.terms.stats().downstream_cx_total().inc();
        let start = Instant::from_std(self.stream.connection.start);
        let deadline = self.terms.proxy.max_duration.and_then(|limit| start.checked_add(limit));
        let establishing = self.establish(worker, transport);
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
    async fn establish(&mut self, worker: &Worker, transport: Transport) -> Result<Upstream, Refusal> {
        let (proxy, begun) = (self.terms.proxy.clone(), Instant::now());
        loop {
            self.stream.random = fastrand::u64(..);
            let (cluster, member) = match &self.stream.upstream.destination {
                Some(chosen) => (chosen.load(), None),
                None => choose_cluster(&proxy.cluster, &self.stream),
            };
            let cluster = cluster.ok_or(Refusal::NoCluster)?;
            let subset = member.map_or(&proxy.metadata_match, |member| &member.metadata_match);
            self.stream.upstream.cluster = Some(cluster.clone());
            let breaker = &cluster.breaker;
            if breaker.count(Resource::Connections) >= breaker.limit(Resource::Connections) {
                cluster.stats.upstream_cx_overflow().inc();
                return Err(Refusal::Overflow);
            }
            if !self.may_try(&cluster, begun) {
                cluster.stats.upstream_cx_connect_attempts_exceeded().inc();
                return Err(Refusal::ConnectFailed);
            }
            let Some(mut flight) = self.choose_host(&cluster, subset, worker.index) else {
                cluster.stats.upstream_cx_none_healthy().inc();
                // Where all were tried it is the connecting that has failed.
                let tried = !self.stream.upstream.tried.is_empty() && self.terms.routed.is_some();
                return Err(if tried { Refusal::ConnectFailed } else { Refusal::NoHealthyUpstream });
            };
            let host = flight.host().clone();
            let Some(permit) = cluster.connection(&host, false) else {
                cluster.stats.upstream_cx_overflow().inc();
                return Err(Refusal::Overflow);
            };
            self.begin_attempt(&mut flight);
            let mut active = ActiveConnection::new(host.clone(), cluster.stats.clone(), Some(permit));
            let way = Way {
                transport,
                server_name: self.terms.asked_name(),
                source: self.stream.connection.source,
                told: self.terms.told(&cluster, &self.stream),
            };
            match way.reach(&cluster, &flight).await {
                Ok(mut reached) => {
                    flight.connected();
                    flight.attached();
                    // However it ends, its one request is under way.
                    active.ends_busy();
                    self.connected(&mut reached);
                    return Ok(Upstream { reached, flight, active });
                }
                Err(error) => {
                    if matches!(error, UpstreamError::Connect(_)) {
                        active.ends_remotely();
                    }
                    self.failed(&error, flight);
                    if error == UpstreamError::Exhausted {
                        // Nobody was asked, as nginx's status says too.
                        self.ends_with(500);
                        return Err(Refusal::ConnectFailed);
                    }
                    if self.may_try(&cluster, begun) {
                        // What APISIX counts before its next attempt, too late or not; the last one counts by the end.
                        cluster.saw(&host, Seen::TcpFailure);
                    }
                }
            }
        }
    }

    /// Whether one more attempt is allowed.
    fn may_try(&self, cluster: &Cluster, begun: Instant) -> bool {
        let attempts = self.stream.upstream.attempts;
        match self.terms.proxy.attempts {
            ConnectAttempts::Fixed(most) => attempts < most.max(1),
            ConnectAttempts::OfCluster => match cluster.config.retry.as_deref() {
                _ if attempts == 0 => true,
                Some(policy) => {
                    let in_time = policy.deadline.is_none_or(|deadline| begun.elapsed() < deadline);
                    attempts <= policy.num_retries && in_time
                }
                None => false,
            },
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

    fn connected(&mut self, reached: &mut Reached) {
        let upstream = &mut self.stream.upstream;
        let connect_ms = match reached {
            Reached::Tcp(connected) => {
                upstream.local = connected.local;
                upstream.connection = Some(UpstreamConnection::new(connected.tls.take()));
                connected.connect_ms
            }
            Reached::Udp(socket) => {
                upstream.local = socket.local_addr().ok();
                upstream.connection = Some(UpstreamConnection::new(None));
                0
            }
        };
        upstream.failure = None;
        if let Some(tried) = upstream.tried.last_mut() {
            tried.connect_ms = Some(connect_ms);
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
            self.terms.stats().downstream_cx_no_route().inc();
        }
        // Unless it was for want of something of our own.
        if refusal == Refusal::ConnectFailed && self.stream.response.status == 0 {
            self.not_reached();
        }
        self.stream.flags.insert(refusal.flag());
        self.ends_with(refusal.status());
        self.closed(&format!("tcp_initializion_failure:{}", refusal as u8));
    }

    pub(crate) fn overdue(&mut self) {
        self.terms.stats().max_downstream_connection_duration().inc();
        self.stream.flags.insert(Flag::DT);
        self.ends_with(500);
        self.closed("max_connection_duration_reached");
    }

    /// Notes why we close the client, in Envoy's words (`StreamInfo::LocalCloseReasons`).
    pub(crate) fn closed(&mut self, reason: &str) {
        self.stream.set_var("downstream_local_close_reason", reason);
    }

    /// Notes that the endpoint could not be reached, and that no other is tried.
    pub(crate) fn not_reached(&mut self) {
        let upstream = &self.stream.upstream;
        if let (Some(cluster), Some(member)) = (&upstream.cluster, &upstream.member) {
            cluster.saw_no_way(&member.host);
        }
        self.ends_with(502);
    }

    /// Notes how passing bytes came to its end: to nginx every end is well once an endpoint was reached, and APISIX's
    /// metrics tell them apart by their reason.
    pub(crate) fn ends_by(&mut self, end: End) {
        if self.terms.routed.is_none() {
            return;
        }
        match end.reason() {
            Some(reason) => {
                self.stream.set_var("stream_session_reason", reason);
                self.ends_with(200);
            }
            None => self.ends_with(500),
        }
    }

    /// Notes what nginx's `$status` would say of its end. Envoy has no such thing.
    fn ends_with(&mut self, status: u16) {
        if self.terms.routed.is_some() && self.stream.response.status == 0 {
            self.stream.response.status = status;
        }
    }
}

/// How an endpoint is reached.
struct Way {
    transport: Transport,
    /// The server name by TLS, where the endpoint speaks it.
    server_name: Option<Arc<str>>,
    source: Option<Source>,
    /// Whose connection it is told that this is.
    told: Option<Told>,
}

impl Way {
    async fn reach(&self, cluster: &Cluster, flight: &InFlight) -> Result<Reached, UpstreamError> {
        if self.transport == Transport::Udp {
            return udp_proxy::reach(cluster, flight.host()).await.map(Reached::Udp);
        }
        let handshake = Handshake {
            tls: cluster.tls_of(flight.member()),
            server_name: self.server_name.as_deref(),
            source: self.source,
            told: self.told,
            ..Handshake::default()
        };
        let stats = &cluster.stats;
        stats.upstream_rq_pending_total().inc();
        let pending = stats.upstream_rq_pending_active().raise();
        let connected = dial(cluster, flight.host(), handshake, cluster.config.connect_timeout).await;
        drop(pending);
        if let Err(UpstreamError::Connect(_) | UpstreamError::ConnectTimeout) = &connected {
            stats.upstream_rq_pending_failure_eject().inc();
        }
        connected.map(|connected| Reached::Tcp(Box::new(connected)))
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
            if self.terms.routed.is_some() && tried.status == 0 {
                tried.status = self.stream.response.status;
            }
        }
        if let Some(filtering) = self.filtering.take() {
            filtering.end_with(&mut self.stream);
        }
        self.terms.access_logs().for_each(|log| log.log(&self.stream));
    }
}
