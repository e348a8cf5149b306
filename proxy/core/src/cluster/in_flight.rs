//! Attempts at endpoints: counted while they live, and told once when they end.

use super::{Choice, Cluster, Host, Member};
use crate::headers::{Headers, Known};
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

    /// Whether the endpoint failed: neither did it answer nor was the attempt given up.
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
    /// What the response's gRPC status amounts to, where outliers are looked for.
    grpc: Option<u16>,
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
            grpc: None,
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

    /// Begins the attempt: from here on cluster and endpoint count it among those under way.
    pub fn begin(&mut self, now: Instant) {
        if self.began.replace(now).is_some() {
            return;
        }
        self.cluster.stats.upstream_rq_active().inc();
        self.member.host.active_requests.fetch_add(1, Relaxed);
    }

    /// Counts a request that is given to a connection: one that none was found for is none to the endpoint.
    pub fn attached(&self) {
        self.cluster.stats.upstream_rq_total().inc();
        self.member.host.total_requests.fetch_add(1, Relaxed);
    }

    /// Notes what will be reported should nothing else happen: an attempt is cancelled until somebody says
    /// otherwise.
    pub fn settle(&mut self, kind: OutcomeKind, status: u16) {
        (self.kind, self.status) = (kind, status);
    }

    /// Notes the head of the endpoint's response: what will be reported should nothing else happen. As in Envoy
    /// (Router::Filter::onUpstreamHeaders) a gRPC status in it counts in place of the other, and
    /// `x-envoy-immediate-health-check-fail` as a failed check.
    pub fn answered(&mut self, status: u16, headers: &Headers) {
        self.settle(OutcomeKind::Response, status);
        if self.cluster.outliers.is_some() {
            let grpc = headers.get(Known::GRPC_STATUS).map(std::str::from_utf8);
            self.grpc = grpc.map(|code| http_status(code.ok().and_then(|code| code.parse().ok())));
        }
        if let Some(reports) = self.cluster.config.balance.policy.load_reports() {
            self.load_known = reports.take(headers, &self.member.host, Instant::now());
        }
        if self.cluster.config.health_check.is_some() && headers.contains(LEAVE_ME) {
            self.cluster.told_to_leave(&self.member.host);
        }
    }

    /// Notes the trailers of the endpoint's response, which may bring the load report that its head had not.
    pub fn trailed(&mut self, trailers: &Headers) {
        if self.load_known || trailers.is_empty() {
            return;
        }
        if let Some(reports) = self.cluster.config.balance.policy.load_reports() {
            self.load_known = reports.take(trailers, &self.member.host, Instant::now());
        }
    }

    /// Ends it: what it counted is given back and its outcome reported now. A second end is none.
    pub fn end(&mut self, kind: OutcomeKind, status: u16, now: Instant) {
        self.settle(kind, status);
        self.ended = Some(now);
        self.report();
    }

    fn report(&mut self) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        let span = self.began.map(|began| (began, self.ended.unwrap_or_else(Instant::now)));
        if span.is_some() {
            self.cluster.stats.upstream_rq_active().dec();
            self.member.host.active_requests.fetch_sub(1, Relaxed);
        }
        let grpc = self.grpc.filter(|_| self.kind == OutcomeKind::Response);
        let status = grpc.unwrap_or(self.status);
        let outcome = Outcome { worker: self.worker, kind: self.kind, status, span };
        self.cluster.report(&self.member.host, &outcome);
    }
}

/// With it an endpoint asks to get no requests from now on.
const LEAVE_ME: &str = "x-envoy-immediate-health-check-fail";

/// The HTTP status of a gRPC status (source/common/grpc/status.cc `grpcToHttpStatus`).
fn http_status(code: Option<u32>) -> u16 {
    match code {
        Some(0) => 200,
        Some(1) => 499,
        Some(3 | 9 | 11) => 400,
        Some(4) => 504,
        Some(5) => 404,
        Some(6 | 10) => 409,
        Some(7) => 403,
        Some(8) => 429,
        Some(12) => 501,
        Some(14) => 503,
        Some(16) => 401,
        _ => 500,
    }
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

    /// The one door by which everybody hears of an attempt's end.
    fn report(&self, host: &Host, outcome: &Outcome) {
        if outcome.kind.is_failure() {
            host.failed_requests.fetch_add(1, Relaxed);
        }
        if let Some(outliers) = &self.outliers {
            outliers.report(host, outcome);
        }
        self.balancer.report(host, outcome);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Address, ClusterConfig, Criteria, HostConfig, Policy};
    use super::*;
    use crate::metrics::Registry;

    fn cluster() -> Arc<Cluster> {
        let mut config = ClusterConfig::named("c");
        config.balance.policy = Policy::ApisixLeastConn;
        let hosts = ["10.0.0.1:80", "10.0.0.2:80"].map(|a| HostConfig::new(Address::Ip(a.parse().unwrap())));
        Cluster::new(config, hosts.into(), None, &Registry::new()).unwrap()
    }

    fn choose(cluster: &Arc<Cluster>) -> InFlight {
        let choice = Choice {
            worker: 0,
            hash: None,
            random: 0,
            attempt: 0,
            tried: &[],
            predicates: &[],
            host_attempts: 1,
            previous_priorities: None,
            subset: Criteria::NONE,
            destination: None,
        };
        cluster.choose(&choice).unwrap()
    }

    #[test]
    fn an_attempt_counts_from_its_beginning_to_its_drop_and_is_reported_once() {
        let cluster = cluster();
        let mut first = choose(&cluster);
        let host = first.host().clone();
        assert_eq!(host.active_requests.load(Relaxed), 0, "it is only chosen");
        first.begin(Instant::now());
        first.begin(Instant::now());
        first.attached();
        assert_eq!((host.active_requests.load(Relaxed), cluster.stats.upstream_rq_active().get()), (1, 1));
        // The balancer counts the choice: the next one goes to the other host, and back once it is dropped.
        let second = choose(&cluster);
        assert_ne!(second.host().id, host.id);
        drop(first);
        assert_eq!((host.active_requests.load(Relaxed), cluster.stats.upstream_rq_active().get()), (0, 0));
        assert_eq!((host.total_requests.load(Relaxed), host.failed_requests.load(Relaxed)), (1, 0));
        let third = choose(&cluster);
        assert_eq!(third.host().id, host.id, "the balancer heard of the end");
        // A choice that came to nothing is told too, and counts nowhere.
        drop(second);
        let fourth = choose(&cluster);
        assert_ne!(fourth.host().id, host.id);
        assert_eq!(fourth.host().total_requests.load(Relaxed), 0);
    }

    #[test]
    fn an_attempt_is_over_when_it_is_ended_and_not_again_when_it_is_dropped() {
        let cluster = cluster();
        let mut attempt = choose(&cluster);
        let host = attempt.host().clone();
        attempt.begin(Instant::now());
        attempt.end(OutcomeKind::Timeout, 504, Instant::now());
        let seen = || (host.active_requests.load(Relaxed), host.failed_requests.load(Relaxed));
        assert_eq!((seen(), cluster.stats.upstream_rq_active().get()), ((0, 1), 0));
        attempt.end(OutcomeKind::Timeout, 504, Instant::now());
        drop(attempt);
        assert_eq!((seen(), cluster.stats.upstream_rq_active().get()), ((0, 1), 0));
    }

    #[test]
    fn failures_of_the_endpoint_count_and_what_was_given_up_does_not() {
        let cluster = cluster();
        let now = Instant::now();
        for (kind, failed) in [
            (OutcomeKind::ConnectFailure, 1),
            (OutcomeKind::ConnectTimeout, 1),
            (OutcomeKind::Timeout, 1),
            (OutcomeKind::Reset, 1),
            (OutcomeKind::Protocol, 1),
            (OutcomeKind::Overflow, 1),
            (OutcomeKind::Cancelled, 0),
        ] {
            let mut attempt = choose(&cluster);
            let host = attempt.host().clone();
            let before = host.failed_requests.load(Relaxed);
            attempt.begin(now);
            attempt.end(kind, kind.status(), now);
            assert_eq!(host.failed_requests.load(Relaxed) - before, failed, "{kind:?}");
        }
        let mut attempt = choose(&cluster);
        let host = attempt.host().clone();
        let before = host.failed_requests.load(Relaxed);
        attempt.begin(now);
        attempt.end(OutcomeKind::Response, 503, now);
        assert_eq!(host.failed_requests.load(Relaxed), before);
    }
}
