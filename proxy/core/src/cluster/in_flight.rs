//! Attempts at endpoints: counted while they live, and told once when they end.

use super::{Choice, Cluster, Health, Host, Member};
use crate::grpc_status;
use crate::headers::{Headers, Known};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// What an attempt at an endpoint came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Number of the worker that made it.
    pub worker: usize,
    /// How it ended.
    pub kind: OutcomeKind,
    /// Status of the response; for an attempt without one what Envoy's outlier detection takes it for: 504
    /// after a timeout, 503 after another failure, 0 when it was given up.
    pub status: u16,
    /// Its beginning and its end; `None` for one that never began.
    pub span: Option<(Instant, Instant)>,
}

impl Outcome {
    /// From its beginning to its end: waiting for a connection, connecting, the whole exchange.
    pub fn elapsed(&self) -> Duration {
        self.span.map_or(Duration::ZERO, |(began, ended)| ended.saturating_duration_since(began))
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeKind {
    /// A response came; to a TCP proxy the connection is one.
    Response,
    /// The connection was refused, or its TLS handshake failed.
    ConnectFailure,
    /// Connecting took too long.
    ConnectTimeout,
    /// The response took too long.
    Timeout,
    /// The endpoint ended the connection or reset the stream before the response was complete.
    Reset,
    /// What came is no response.
    Protocol,
    /// A circuit breaker let nothing through to the endpoint.
    Overflow,
    /// It was given up for reasons that are not the endpoint's: the client left, a limit on the client's side
    /// passed, a plugin answered.
    Cancelled,
}

/// Who made the outcome (Envoy's `split_external_local_origin_errors`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This proxy: nothing of the endpoint's was seen.
    Local,
    /// The endpoint: it answered, badly or well, or cut what it had begun.
    Upstream,
}

impl OutcomeKind {
    /// Who made it.
    pub fn origin(self) -> Origin {
        match self {
            OutcomeKind::Response | OutcomeKind::Reset | OutcomeKind::Protocol => Origin::Upstream,
            _ => Origin::Local,
        }
    }

    /// Whether it failed: neither did the endpoint answer nor was the attempt given up.
    pub fn is_failure(self) -> bool {
        !matches!(self, OutcomeKind::Response | OutcomeKind::Cancelled)
    }

    /// The status that stands for an attempt without a response.
    pub fn status(self) -> u16 {
        match self {
            OutcomeKind::Response | OutcomeKind::Cancelled => 0,
            OutcomeKind::ConnectTimeout | OutcomeKind::Timeout => 504,
            _ => 503,
        }
    }
}

/// An attempt at an endpoint, from the balancer's choice to its end. Whenever and wherever it is dropped, what
/// it counted is given back and its outcome is reported, once.
pub struct InFlight {
    cluster: Arc<Cluster>,
    member: Arc<Member>,
    worker: usize,
    /// When it began; until then it was only chosen, and nothing counts it.
    began: Option<Instant>,
    ended: Option<Instant>,
    kind: OutcomeKind,
    status: u16,
    /// The request is one of gRPC.
    is_grpc: bool,
    /// What the gRPC status in the head of the response amounts to.
    grpc: Option<u16>,
    /// The status of the head that has come, or what the gRPC status at the end amounts to, which is yet to come behind a
    /// head of gRPC that is well.
    answer: Option<u16>,
    /// Nobody gets its response.
    set_aside: bool,
    /// Outlier detection knows that the response is late.
    late: bool,
    /// It is a connection that carries bytes, of which nobody tells whether they go well.
    raw: bool,
    /// Its head brought a load report: none is looked for in its trailers.
    load_known: bool,
    /// Everybody has heard of its end.
    reported: bool,
}

impl InFlight {
    pub(super) fn new(cluster: Arc<Cluster>, member: Arc<Member>, worker: usize) -> InFlight {
        let kind = OutcomeKind::Cancelled;
        InFlight {
            cluster,
            member,
            worker,
            began: None,
            ended: None,
            kind,
            status: 0,
            is_grpc: false,
            grpc: None,
            answer: None,
            set_aside: false,
            late: false,
            raw: false,
            load_known: false,
            reported: false,
        }
    }

    /// The endpoint that was chosen.
    pub fn host(&self) -> &Arc<Host> {
        &self.member.host
    }

    /// The endpoint with what was configured of it when it was chosen.
    pub fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// Its cluster.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Begins the attempt: from here on cluster and endpoint count it among those under way. Of a request of gRPC the
    /// status of gRPC tells whether it goes well; in other answers the field means nothing (source/common/router/
    /// router.cc, `grpc_request_`).
    pub fn begin(&mut self, now: Instant, is_grpc: bool) {
        self.is_grpc = is_grpc;
        if self.began.replace(now).is_some() {
            return;
        }
        self.cluster.stats.upstream_rq_active().inc();
        self.member.host.active_requests.fetch_add(1, Relaxed);
    }

    /// Begins it as a connection for whatever bytes come: it is no request that goes well or badly.
    pub fn begin_raw(&mut self, now: Instant) {
        self.raw = true;
        self.begin(now, false);
    }

    /// Counts a request that is given to a connection: one that none was found for is none to the endpoint.
    pub fn attached(&self) {
        self.cluster.stats.upstream_rq_total().inc();
        self.member.host.total_requests.fetch_add(1, Relaxed);
    }

    /// Notes that what began as a connection for whatever bytes come is one.
    pub fn connected(&mut self) {
        self.settle(OutcomeKind::Response, 200);
    }

    /// Notes what will be reported should nothing else happen: an attempt is cancelled until somebody says
    /// otherwise.
    fn settle(&mut self, kind: OutcomeKind, status: u16) {
        (self.kind, self.status) = (kind, status);
    }

    /// Notes the head of the endpoint's response: what will be reported should nothing else happen; with `end` nothing
    /// follows it. As in Envoy (Router::Filter::onUpstreamHeaders) a gRPC status in it counts for outlier detection in
    /// place of the other if the request is of gRPC, and `x-envoy-immediate-health-check-fail` as a failed check.
    pub fn answered(&mut self, status: u16, headers: &Headers, end: bool) {
        self.settle(OutcomeKind::Response, status);
        self.grpc = self.is_grpc.then(|| status_of_grpc(headers)).flatten();
        // A gRPC status that a body follows is not the last word (`handleNon5xxResponseHeaders`).
        self.answer = match (self.is_grpc && status < 500, end) {
            (false, _) => Some(status),
            (true, true) => Some(self.grpc.unwrap_or(NO_STATUS)),
            (true, false) => None,
        };
        if let Some(reports) = self.cluster.config.balance.policy.load_reports() {
            self.load_known = reports.take(headers, &self.member.host, Instant::now());
        }
        if self.cluster.config.health_check.is_some() && headers.contains(LEAVE_ME) {
            self.cluster.told_to_leave(&self.member.host);
        }
    }

    /// Notes the end of the endpoint's response with its trailers, if there are any: they may bring a gRPC status, without
    /// which a call has failed, and the load report that its head had not.
    pub fn trailed(&mut self, trailers: &Headers) {
        if self.is_grpc && self.answer.is_none() {
            self.answer = Some(status_of_grpc(trailers).unwrap_or(NO_STATUS));
        }
        if trailers.is_empty() || self.load_known {
            return;
        }
        if let Some(reports) = self.cluster.config.balance.policy.load_reports() {
            self.load_known = reports.take(trailers, &self.member.host, Instant::now());
        }
    }

    /// Notes that its response is nobody's: another attempt takes its place, or has a better one. To the endpoint that is
    /// an error whatever the status; outlier detection hears the status.
    pub fn set_aside(&mut self) {
        self.set_aside = true;
    }

    /// Tells outlier detection that the response is late, though the attempt goes on (`onSoftPerTryTimeout`). It does not
    /// hear it again should the attempt end so.
    pub fn late(&mut self, now: Instant) {
        self.late = true;
        if let Some(outliers) = &self.cluster.outliers {
            outliers.report(&self.member.host, &self.outcome(OutcomeKind::Timeout, 504, now));
        }
    }

    /// Ends it: what it counted is given back and its outcome reported now. A second end is none.
    pub fn end(&mut self, kind: OutcomeKind, status: u16, now: Instant) {
        self.settle(kind, status);
        self.ended = Some(now);
        self.report();
    }

    fn outcome(&self, kind: OutcomeKind, status: u16, ended: Instant) -> Outcome {
        Outcome { worker: self.worker, kind, status, span: self.began.map(|began| (began, ended)) }
    }

    fn report(&mut self) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        if self.began.is_some() {
            self.cluster.stats.upstream_rq_active().dec();
            self.member.host.active_requests.fetch_sub(1, Relaxed);
        }
        let grpc = self.grpc.filter(|_| self.kind == OutcomeKind::Response);
        let status = grpc.unwrap_or(self.status);
        let outcome = self.outcome(self.kind, status, self.ended.unwrap_or_else(Instant::now));
        if !self.raw {
            self.judge(status);
        }
        let is_known = self.late && self.kind == OutcomeKind::Timeout;
        self.cluster.report(&self.member.host, &outcome, !is_known);
    }

    /// Counts it for the endpoint. As in Envoy's router the head of a response decides, whatever becomes of its body, and
    /// what a limit kept from the endpoint is nothing of its own. Of gRPC the end decides, which nobody may have waited for.
    fn judge(&self, status: u16) {
        let host = &self.member.host;
        let is_whole = self.kind == OutcomeKind::Response && !self.is_grpc;
        let answer = self.answer.or(is_whole.then_some(status));
        let well = match (answer, self.kind) {
            _ if self.set_aside => false,
            (Some(status), _) => status < 500,
            (None, OutcomeKind::Overflow | OutcomeKind::Cancelled | OutcomeKind::Response) => return,
            (None, _) => false,
        };
        let count = if well { &host.succeeded_requests } else { &host.failed_requests };
        count.fetch_add(1, Relaxed);
        if self.kind == OutcomeKind::Timeout {
            host.timed_out_requests.fetch_add(1, Relaxed);
        }
    }
}

/// What a call of gRPC that ends without a status amounts to.
const NO_STATUS: u16 = 500;

/// With it an endpoint asks to get no requests from now on.
const LEAVE_ME: &str = "x-envoy-immediate-health-check-fail";

/// What the gRPC status among these fields amounts to.
fn status_of_grpc(fields: &Headers) -> Option<u16> {
    let code = fields.get(Known::GRPC_STATUS).map(std::str::from_utf8)?;
    Some(code.ok().and_then(|code| code.parse().ok()).map_or(NO_STATUS, grpc_status::to_http))
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.report();
    }
}

impl Cluster {
    /// Chooses an endpoint; `None` when none may be used. The choice reports its own end.
    pub fn choose(self: &Arc<Cluster>, choice: &Choice<'_>) -> Option<InFlight> {
        let member = self.balancer.choose(choice)?;
        Some(InFlight::new(self.clone(), member, choice.worker))
    }

    /// The endpoint of this address, if it is there and may be used; whatever the balancer would choose.
    pub fn choose_address(self: &Arc<Cluster>, address: SocketAddr, worker: usize) -> Option<InFlight> {
        let hosts = self.hosts.load();
        let is_usable = |member: &&Arc<Member>| matches!(member.health(), Health::Healthy | Health::Degraded);
        let member = hosts.at(address).filter(is_usable)?;
        Some(InFlight::new(self.clone(), member.clone(), worker))
    }

    /// The one door by which everybody hears of an attempt's end, outlier detection unless it knows of that.
    fn report(&self, host: &Host, outcome: &Outcome, to_outliers: bool) {
        if let Some(outliers) = self.outliers.as_ref().filter(|_| to_outliers) {
            outliers.report(host, outcome);
        }
        self.balancer.report(host, outcome);
    }
}

#[cfg(test)]
mod tests;
