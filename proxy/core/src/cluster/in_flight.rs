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
    /// The status of the head that has come, or what the gRPC status amounts to. A head of gRPC without a status is none
    /// if all is well with it: the trailers are yet to tell.
    answer: Option<u16>,
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

    /// Begins the attempt: from here on cluster and endpoint count it among those under way.
    pub fn begin(&mut self, now: Instant) {
        if self.began.replace(now).is_some() {
            return;
        }
        self.cluster.stats.upstream_rq_active().inc();
        self.member.host.active_requests.fetch_add(1, Relaxed);
    }

    /// Begins it as a connection for whatever bytes come: it is no request that goes well or badly.
    pub fn begin_raw(&mut self, now: Instant) {
        self.raw = true;
        self.begin(now);
    }

    /// Notes that the request is one of gRPC: a status of gRPC tells whether it goes well. In other answers the field
    /// means nothing (source/common/router/router.cc, `grpc_request_`).
    pub fn carries_grpc(&mut self) {
        self.is_grpc = true;
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
    /// (Router::Filter::onUpstreamHeaders) a gRPC status in it counts in place of the other if the request is of gRPC, and
    /// `x-envoy-immediate-health-check-fail` as a failed check.
    pub fn answered(&mut self, status: u16, headers: &Headers) {
        self.settle(OutcomeKind::Response, status);
        self.grpc = self.is_grpc.then(|| grpc_status(headers)).flatten();
        self.answer = match self.is_grpc && status < 500 {
            true => self.grpc,
            false => Some(status),
        };
        if let Some(reports) = self.cluster.config.balance.policy.load_reports() {
            self.load_known = reports.take(headers, &self.member.host, Instant::now());
        }
        if self.cluster.config.health_check.is_some() && headers.contains(LEAVE_ME) {
            self.cluster.told_to_leave(&self.member.host);
        }
    }

    /// Notes the trailers of the endpoint's response, which may bring a gRPC status, and the load report that its head
    /// had not.
    pub fn trailed(&mut self, trailers: &Headers) {
        if trailers.is_empty() {
            return;
        }
        if self.is_grpc && self.answer.is_none() {
            self.answer = grpc_status(trailers);
        }
        if self.load_known {
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
        if !self.raw {
            self.judge(status);
        }
        self.cluster.report(&self.member.host, &outcome);
    }

    /// Counts it for the endpoint. As in Envoy's router the head of a response decides, whatever becomes of its body, and
    /// what a limit kept from the endpoint is nothing of its own. A response of gRPC that ends without a status has failed.
    fn judge(&self, status: u16) {
        let host = &self.member.host;
        let is_whole = self.kind == OutcomeKind::Response && !self.is_grpc;
        let answer = self.answer.or(is_whole.then_some(status));
        let well = match (answer, self.kind) {
            (Some(status), _) => status < 500,
            (None, OutcomeKind::Overflow | OutcomeKind::Cancelled) => return,
            (None, _) => false,
        };
        let count = if well { &host.succeeded_requests } else { &host.failed_requests };
        count.fetch_add(1, Relaxed);
        if self.kind == OutcomeKind::Timeout {
            host.timed_out_requests.fetch_add(1, Relaxed);
        }
    }
}

/// With it an endpoint asks to get no requests from now on.
const LEAVE_ME: &str = "x-envoy-immediate-health-check-fail";

/// What the gRPC status among these fields amounts to.
fn grpc_status(fields: &Headers) -> Option<u16> {
    let code = fields.get(Known::GRPC_STATUS).map(std::str::from_utf8)?;
    Some(http_status(code.ok().and_then(|code| code.parse().ok())))
}

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

    /// Succeeded, failed, and took too long at the host of an attempt that `run` has gone its way.
    fn counted(run: impl FnOnce(&mut InFlight)) -> [u64; 3] {
        let mut attempt = choose(&cluster());
        let host = attempt.host().clone();
        run(&mut attempt);
        drop(attempt);
        [&host.succeeded_requests, &host.failed_requests, &host.timed_out_requests].map(|n| n.load(Relaxed))
    }

    #[test]
    fn failures_of_the_endpoint_count_and_what_was_given_up_or_refused_does_not() {
        for (kind, seen) in [
            (OutcomeKind::ConnectFailure, [0, 1, 0]),
            (OutcomeKind::ConnectTimeout, [0, 1, 0]),
            (OutcomeKind::Timeout, [0, 1, 1]),
            (OutcomeKind::Reset, [0, 1, 0]),
            (OutcomeKind::Protocol, [0, 1, 0]),
            (OutcomeKind::Overflow, [0, 0, 0]),
            (OutcomeKind::Cancelled, [0, 0, 0]),
        ] {
            let end = |attempt: &mut InFlight| attempt.end(kind, kind.status(), Instant::now());
            assert_eq!(counted(end), seen, "{kind:?}");
        }
    }

    /// An answer of 503 was one that went well, and so was whatever a TCP connection came to.
    #[test]
    fn the_status_of_an_answer_tells_whether_it_went_well() {
        let answered = |status, end| {
            counted(|attempt| {
                attempt.answered(status, &Headers::new());
                attempt.end(end, status, Instant::now());
            })
        };
        assert_eq!(answered(404, OutcomeKind::Response), [1, 0, 0]);
        assert_eq!(answered(503, OutcomeKind::Response), [0, 1, 0]);
        assert_eq!(answered(200, OutcomeKind::Reset), [1, 0, 0], "its head had come");
        let settled = |status| counted(|attempt| attempt.settle(OutcomeKind::Response, status));
        assert_eq!((settled(200), settled(500)), ([1, 0, 0], [0, 1, 0]));
        for kind in [OutcomeKind::Response, OutcomeKind::ConnectFailure] {
            let raw = counted(|attempt| {
                attempt.begin_raw(Instant::now());
                attempt.settle(kind, 200);
            });
            assert_eq!(raw, [0, 0, 0]);
        }
    }

    /// It depended on the protocol and on outlier detection in heads, and on nothing in trailers.
    #[test]
    fn the_status_of_grpc_counts_where_the_request_is_of_grpc() {
        let fields = |code: Option<&str>| {
            let mut fields = Headers::new();
            code.iter().for_each(|code| fields.append("grpc-status", code.as_bytes()));
            fields
        };
        let run = |is_grpc: bool, status, head, trailers, end: Option<OutcomeKind>| {
            counted(|attempt| {
                if is_grpc {
                    attempt.carries_grpc();
                }
                attempt.answered(status, &fields(head));
                attempt.trailed(&fields(trailers));
                if let Some(end) = end {
                    attempt.settle(end, status);
                }
            })
        };
        let (well, ill) = ([1, 0, 0], [0, 1, 0]);
        for (code, seen) in [("0", well), ("5", well), ("14", ill), ("x", ill)] {
            assert_eq!(run(true, 200, Some(code), None, None), seen, "head {code}");
            assert_eq!(run(true, 200, None, Some(code), None), seen, "trailers {code}");
            assert_eq!(run(false, 200, Some(code), None, None), well, "no gRPC, head {code}");
            assert_eq!(run(false, 200, None, Some(code), None), well, "no gRPC, trailers {code}");
        }
        assert_eq!(run(true, 200, None, None, None), ill, "it ended without a status");
        assert_eq!(run(true, 200, None, None, Some(OutcomeKind::Reset)), ill);
        assert_eq!(
            run(true, 200, None, None, Some(OutcomeKind::Cancelled)),
            [0, 0, 0],
            "nobody waited for it"
        );
        assert_eq!(run(true, 503, None, Some("0"), None), ill, "the head decides");
    }
}
