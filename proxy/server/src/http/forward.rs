//! Forwarding: choose a cluster, make the upstream's request, try endpoints until one answers.

use super::body::{BodyEvent, Piece};
use super::clock::Expired;
use super::downstream::{Downstream, Gone};
use super::exchange::{Exchange, Interrupt};
use super::local_reply;
use super::retry::{Decision, Ending, RetryState};
use super::timeouts::RequestTimeouts;
use crate::upstream::{Checkout, HeadEvent, UpstreamError, Wanted};
use sixfold_core::balance::{Choice, Feedback};
use sixfold_core::cluster::{Cluster, Host};
use sixfold_core::flags::Flag;
use sixfold_core::hcm::Profile;
use sixfold_core::headers::Known;
use sixfold_core::message::Scheme;
use sixfold_core::plugin::{LocalReply, Outcome, Phases};
use sixfold_core::route::{ClusterChoice, Forward, Route, WeightedCluster};
use sixfold_core::stream::{ResponseSource, Stream, Tried};
use sixfold_core::{hash, rewrite};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

/// A request on its way to a cluster: what all attempts share.
pub(super) struct Plan<'r> {
    route: &'r Route,
    forward: &'r Forward,
    /// The member of weighted clusters that was drawn.
    member: Option<&'r WeightedCluster>,
    pub(super) cluster: Arc<Cluster>,
    timeouts: RequestTimeouts,
    retry: Option<RetryState>,
    /// What was sent of the body, while a retry may need it again.
    replay: Replay,
    /// A cookie that the hash policy made, for the response.
    set_cookie: Option<Vec<u8>>,
    suppress: bool,
}

/// The start of the request body, kept for another attempt.
pub(super) struct Replay {
    kept: Vec<u8>,
    limit: usize,
    /// More came than the limit allows: no retry any more.
    overflowed: bool,
    wanted: bool,
}

/// How an attempt ended.
enum Attempt {
    /// A final response head is in the stream's context.
    Head { checkout: Box<Checkout>, end: bool, tunnel: bool, sent_all: bool },
    /// There is none.
    Failed(UpstreamError, bool),
    /// Not in the time of one attempt.
    TimedOut(Expired),
}

impl<D: Downstream> Exchange<'_, D> {
    /// Forwards the request and passes the response on.
    pub(super) async fn forward(&mut self, route: &Route, forward: &Forward) -> Result<(), Interrupt> {
        let mut plan = match self.plan(route, forward) {
            Ok(plan) => plan,
            Err(reply) => return self.respond(reply, true).await,
        };
        if !self.down.is_http2() && self.down.upgrade().is_none() {
            self.answer_expect();
        }
        if self.down.request_ended() && self.down.upgrade().is_none() {
            self.clock.set_route(plan.timeouts.global);
        }
        loop {
            match self.phase_before_proxy().await? {
                None => {}
                Some(reply) => return self.respond(reply, true).await,
            }
            let attempt = match self.choose_host(&plan) {
                None => {
                    let reply = self.no_host(&plan);
                    return self.respond(reply, true).await;
                }
                Some(host) => self.attempt(&mut plan, host).await?,
            };
            match self.judge(&mut plan, attempt).await? {
                Verdict::Again => {}
                Verdict::Answer(reply) => return self.respond(*reply, true).await,
                Verdict::Pass { checkout, end, tunnel, sent_all } => {
                    return self.pass(plan, *checkout, end, tunnel, sent_all).await;
                }
            }
        }
    }

    /// Chooses the cluster and prepares the request for it.
    fn plan<'r>(&mut self, route: &'r Route, forward: &'r Forward) -> Result<Plan<'r>, LocalReply> {
        let hcm = &self.env.hcm;
        let (request_hash, set_cookie) = hash::request_hash(&forward.hash, self.stream);
        self.stream.hash = request_hash;
        let (cluster, member) = choose_cluster(&forward.cluster, self.stream);
        let Some(cluster) = cluster else {
            hcm.stats.no_cluster.inc();
            let mut reply = LocalReply::new(forward.cluster_not_found, "", "cluster_not_found");
            reply.flag = Some(Flag::NC);
            return Err(reply);
        };
        self.stream.upstream.cluster = Some(cluster.clone());
        if let Some(chain) = member.and_then(|m| m.chain.as_ref()) {
            self.chain = chain.clone();
        }
        if let Some(reply) = rewrite::strict_check(&hcm.router, self.stream) {
            return Err(reply);
        }
        let policy = cluster
            .config
            .retry
            .as_ref()
            .or(forward.retry.as_ref())
            .or_else(|| self.stream.virtual_host.as_ref().and_then(|v| v.options.retry.as_ref()));
        let policy = policy.cloned();
        let timeouts =
            RequestTimeouts::decide(&forward.timeouts, policy.as_deref(), &hcm.router, self.stream);
        let retry = RetryState::new(policy.as_ref(), self.stream);
        if timeouts.max_stream.is_some() {
            self.clock.set_max_stream(self.stream.timing.start.into(), timeouts.max_stream);
        }
        let upgrading = self.down.upgrade().is_some();
        rewrite::finalize_request(self.table.as_deref(), route, forward, member, hcm, upgrading, self.stream);
        let limit = route
            .body_buffer_limit
            .or_else(|| self.stream.virtual_host.as_ref().and_then(|v| v.options.body_buffer_limit));
        let limit = limit.map_or(hcm.buffer_limit, |l| usize::try_from(l).unwrap_or(usize::MAX));
        let replay = Replay { kept: Vec::new(), limit, overflowed: false, wanted: retry.is_some() };
        let suppress = hcm.router.suppress_envoy_headers || hcm.profile == Profile::Apisix;
        Ok(Plan { route, forward, member, cluster, timeouts, retry, replay, set_cookie, suppress })
    }

    /// Envoy answers `Expect: 100-continue` itself unless it is told to forward it.
    fn answer_expect(&mut self) {
        let headers = &mut self.stream.request.headers;
        let expects = headers.get(Known::EXPECT).is_some_and(|v| v.eq_ignore_ascii_case(b"100-continue"));
        if expects && !self.env.hcm.http1.proxy_100_continue {
            headers.remove(Known::EXPECT);
            if !self.down.request_ended() {
                self.down.write_continue();
            }
        }
    }

    async fn phase_before_proxy(&mut self) -> Result<Option<LocalReply>, Interrupt> {
        let chain = self.chain.clone();
        if !chain.has(Phases::BEFORE_PROXY) {
            return Ok(None);
        }
        match self.phase(&chain, Phases::BEFORE_PROXY, 0).await? {
            Outcome::Respond(reply) => Ok(Some(reply)),
            _ => Ok(None),
        }
    }

    fn choose_host(&mut self, plan: &Plan<'_>) -> Option<Arc<Host>> {
        let retry = plan.retry.as_ref().map(RetryState::policy);
        let again = self.stream.upstream.attempts > 0;
        let hosts = plan.cluster.hosts.load();
        let choice = Choice {
            hosts: &hosts,
            worker: self.env.worker.index,
            hash: self.stream.hash,
            random: fastrand::u64(..),
            attempt: self.stream.upstream.attempts,
            tried: &self.stream.upstream.tried,
            predicates: retry.filter(|_| again).map_or(&[][..], |r| &r.host_predicates),
            host_attempts: retry.map_or(1, |r| r.host_attempts),
            previous_priorities: retry.filter(|_| again).and_then(|r| r.previous_priorities),
            subset: plan.member.map_or(&plan.forward.metadata_match, |m| {
                if m.metadata_match.is_empty() { &plan.forward.metadata_match } else { &m.metadata_match }
            }),
        };
        plan.cluster.balancer.choose(&choice)
    }

    fn no_host(&mut self, plan: &Plan<'_>) -> LocalReply {
        plan.cluster.stats.upstream_cx_none_healthy.inc();
        let apisix = self.env.hcm.profile == Profile::Apisix;
        let body = if apisix { "" } else { "no healthy upstream" };
        let status = if apisix && self.stream.upstream.attempts > 0 { 502 } else { 503 };
        let mut reply = LocalReply::new(status, body, "no_healthy_upstream");
        reply.flag = Some(Flag::UH);
        reply
    }

    /// One attempt at one endpoint, up to the head of its response.
    async fn attempt(&mut self, plan: &mut Plan<'_>, host: Arc<Host>) -> Result<Attempt, Interrupt> {
        self.begin_attempt(plan, &host);
        // The server name is only asked for by TLS, and then it must outlive changes to the request.
        let authority = plan
            .cluster
            .config
            .tls
            .as_ref()
            .map(|_| String::from_utf8_lossy(&self.stream.request.authority).into_owned());
        let wanted = Wanted {
            cluster: &plan.cluster,
            host: &host,
            authority: authority.as_deref(),
            downstream_http2: self.down.is_http2(),
            timeout: plan.forward.timeouts.connect.unwrap_or(plan.cluster.config.connect_timeout),
            high: plan.forward.high_priority,
            profile: super::codec_profile(self.env.hcm.profile),
            now: self.clock.now(),
        };
        let pools = &self.env.worker.pools;
        let taken = match pools.take_ready(&wanted) {
            Ok(Some(checkout)) => Ok(checkout),
            Ok(None) => match self.guarded(self.env.worker.pools.take(&wanted)).await {
                Ok(taken) => taken,
                Err(Interrupt::Expired(which @ (Expired::PerTry | Expired::PerTryIdle))) => {
                    return Ok(Attempt::TimedOut(which));
                }
                Err(other) => return Err(other),
            },
            Err(error) => Err(error),
        };
        let mut checkout = match taken {
            Ok(checkout) => checkout,
            Err(error) => return Ok(Attempt::Failed(error, false)),
        };
        self.connected(&checkout);
        let upgrade = self.down.upgrade().is_some();
        let end = (self.down.request_ended() && plan.replay.kept.is_empty() && !upgrade)
            || self.stream.request_body.as_ref().is_some_and(|b| b.is_empty());
        let scheme = self.upstream_scheme(plan);
        if let Err(error) = checkout.stream.write_head(&self.stream.request, scheme, end) {
            return Ok(Attempt::Failed(error, false));
        }
        if self.down.request_ended() && !upgrade {
            self.clock.set_per_try(plan.timeouts.per_try);
        }
        self.exchange_heads(plan, checkout, end, upgrade).await
    }

    /// Counts the attempt and writes what each attempt tells its upstream.
    fn begin_attempt(&mut self, plan: &Plan<'_>, host: &Arc<Host>) {
        let stream = &mut *self.stream;
        stream.upstream.attempts += 1;
        stream.upstream.host = Some(host.clone());
        stream.upstream.tried.push(Tried {
            host: host.clone(),
            status: 0,
            connect_ms: None,
            header_ms: None,
            response_ms: None,
        });
        let stats = &plan.cluster.stats;
        stats.upstream_rq_total.inc();
        stats.upstream_rq_active.inc();
        host.active_requests.fetch_add(1, Relaxed);
        host.total_requests.fetch_add(1, Relaxed);
        if let Some(stats) = &plan.route.stats {
            stats.upstream_rq_total.inc();
        }
        let config = &plan.cluster.config;
        let policy = plan.retry.as_ref().map(RetryState::policy);
        let timeouts = &plan.forward.timeouts;
        let progress = timeouts.read.map(|read| timeouts.send.map_or(read, |send| send.min(read)));
        self.clock.begin_attempt(
            policy.and_then(|p| p.per_try_idle_timeout),
            config.max_stream_duration,
            progress,
        );
        if self.env.hcm.profile == Profile::Apisix {
            rewrite::apisix_host(plan.forward, host, config.scheme, stream);
            return;
        }
        rewrite::endpoint_host(plan.forward, plan.member, host, plan.suppress, stream);
        let left = if self.down.request_ended() { self.clock.route_left() } else { plan.timeouts.global };
        plan.timeouts.announce(left, plan.suppress, &mut stream.request.headers);
        let attempts = stream.upstream.attempts;
        if let Some(options) = stream.virtual_host.as_ref().map(|v| &v.options) {
            if options.attempt_count {
                let mut digits = itoa::Buffer::new();
                stream.request.headers.set(Known::X_ENVOY_ATTEMPT_COUNT, digits.format(attempts).as_bytes());
            }
            if options.is_timeout_retry && attempts > 1 {
                let after = plan.retry.as_ref().is_some_and(|r| r.after_timeout);
                let text: &[u8] = if after { b"true" } else { b"false" };
                stream.request.headers.set(Known::X_ENVOY_IS_TIMEOUT_RETRY, text);
            }
        }
    }

    fn connected(&mut self, checkout: &Checkout) {
        let now = if checkout.connect_ms.is_some() { self.clock.touch() } else { self.clock.now() };
        let upstream = &mut self.stream.upstream;
        upstream.local = checkout.stream.local();
        upstream.version = Some(if checkout.stream.is_http2() {
            sixfold_core::message::Version::Http2
        } else {
            sixfold_core::message::Version::Http11
        });
        if let Some(tried) = upstream.tried.last_mut() {
            tried.connect_ms = checkout.connect_ms;
        }
        self.stream.timing.upstream_tx_begin = Some(now.into_std());
        self.stream.bytes.upstream_sent = 0;
        self.stream.bytes.upstream_received = 0;
    }

    fn upstream_scheme(&self, plan: &Plan<'_>) -> Scheme {
        match (&plan.cluster.config.tls, self.env.hcm.profile) {
            (_, Profile::Envoy) => self.stream.request.scheme,
            (Some(_), _) => Scheme::Https,
            (None, _) => plan.cluster.config.scheme,
        }
    }

    /// Sends the request while waiting for the head of the response.
    async fn exchange_heads(
        &mut self,
        plan: &mut Plan<'_>,
        mut checkout: Checkout,
        end: bool,
        upgrade: bool,
    ) -> Result<Attempt, Interrupt> {
        let (down, clock, stream) = (&mut *self.down, &mut *self.clock, &mut *self.stream);
        let up = &mut checkout.stream;
        let mut body =
            Outgoing { replayed: 0, buffered: stream.request_body.clone(), done: end, held: upgrade };
        let proxy_continue = self.env.hcm.http1.proxy_100_continue;
        let result = poll_fn(|cx| {
            loop {
                if let Poll::Ready(which) = clock.poll(cx) {
                    return Poll::Ready(Err(Interrupt::Expired(which)));
                }
                match body.poll_send(down, up, stream, &mut plan.replay, cx) {
                    Poll::Ready(Ok(ended)) => {
                        clock.touch();
                        if ended {
                            clock.set_request(None);
                            if stream.timing.request_complete.is_none() {
                                stream.timing.request_complete = Some(clock.touch().into_std());
                                clock.set_route(plan.timeouts.global);
                            }
                            clock.set_per_try(plan.timeouts.per_try);
                        }
                        continue;
                    }
                    Poll::Ready(Err(SendError::Gone(gone))) => return Poll::Ready(Err(gone.into())),
                    Poll::Ready(Err(SendError::Upstream(error))) => return Poll::Ready(Ok(Err(error))),
                    Poll::Pending => {}
                }
                if let Poll::Ready(Err(error)) = up.poll_flush(cx) {
                    return Poll::Ready(Ok(Err(error)));
                }
                match up.poll_head(cx, &mut stream.response) {
                    Poll::Ready(Ok(HeadEvent::Interim(status))) => {
                        if status == 100 && proxy_continue {
                            down.write_continue();
                        }
                        clock.touch();
                        continue;
                    }
                    Poll::Ready(Ok(HeadEvent::Final { end, tunnel })) => {
                        return Poll::Ready(Ok(Ok((end, tunnel))));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Ok(Err(error))),
                    Poll::Pending => {}
                }
                if let Poll::Ready(Err(gone)) = down.poll_flush(cx) {
                    return Poll::Ready(Err(gone.into()));
                }
                if (body.done || body.held) && down.poll_gone(cx).is_ready() {
                    return Poll::Ready(Err(Gone::Closed.into()));
                }
                return Poll::Pending;
            }
        })
        .await;
        let sent_all = body.done;
        match result {
            Ok(Ok((end, tunnel))) => {
                Ok(Attempt::Head { checkout: Box::new(checkout), end, tunnel, sent_all })
            }
            Ok(Err(error)) => Ok(Attempt::Failed(error, true)),
            Err(Interrupt::Expired(which @ (Expired::PerTry | Expired::PerTryIdle | Expired::Progress))) => {
                Ok(Attempt::TimedOut(which))
            }
            Err(other) => {
                self.end_attempt(&plan.cluster, 0);
                Err(other)
            }
        }
    }

    /// Decides what follows an attempt.
    async fn judge(&mut self, plan: &mut Plan<'_>, attempt: Attempt) -> Result<Verdict, Interrupt> {
        let cluster = plan.cluster.clone();
        let high = plan.forward.high_priority;
        let can_replay = !plan.replay.overflowed;
        match attempt {
            Attempt::Head { checkout, end, tunnel, sent_all } => {
                self.head_arrived();
                let ending = Ending::Response(&self.stream.response);
                let decision = plan
                    .retry
                    .as_mut()
                    .filter(|_| can_replay && !tunnel)
                    .map_or(Decision::Done, |r| r.decide(&ending, &cluster, high, true));
                if let Decision::Retry(wait) = decision {
                    let status = self.stream.response.status;
                    self.end_attempt(&cluster, status);
                    drop(checkout);
                    self.back_off(wait).await?;
                    return Ok(Verdict::Again);
                }
                self.raise(&decision, plan.route);
                Ok(Verdict::Pass { checkout, end, tunnel, sent_all })
            }
            Attempt::Failed(error, sent) => {
                let status = if matches!(error, UpstreamError::ConnectTimeout) { 504 } else { 503 };
                self.failed(&cluster, status);
                let decision = plan
                    .retry
                    .as_mut()
                    .filter(|_| can_replay)
                    .map_or(Decision::Done, |r| r.decide(&Ending::Failed(&error), &cluster, high, sent));
                if let Decision::Retry(wait) = decision {
                    self.back_off(wait).await?;
                    return Ok(Verdict::Again);
                }
                self.raise(&decision, plan.route);
                self.stream.upstream.failure = match &error {
                    UpstreamError::Connect(text) => Some(text.clone().into()),
                    _ => None,
                };
                self.stream.source = ResponseSource::Proxy;
                let retried = self.stream.upstream.attempts > 1;
                let reply = local_reply::upstream_failed(&error, retried, self.env.hcm.profile);
                cluster.stats.count_status(reply.status);
                Ok(Verdict::Answer(Box::new(reply)))
            }
            Attempt::TimedOut(which) => {
                cluster.stats.upstream_rq_per_try_timeout.inc();
                self.failed(&cluster, 504);
                let ending = if which == Expired::Progress {
                    Ending::Failed(&UpstreamError::Closed)
                } else {
                    Ending::PerTryTimeout
                };
                let decision = plan
                    .retry
                    .as_mut()
                    .filter(|_| can_replay)
                    .map_or(Decision::Done, |r| r.decide(&ending, &cluster, high, true));
                if let Decision::Retry(wait) = decision {
                    self.back_off(wait).await?;
                    return Ok(Verdict::Again);
                }
                self.raise(&decision, plan.route);
                self.stream.source = ResponseSource::Proxy;
                let complete = self.down.request_ended();
                let reply = local_reply::expired(which, complete, self.env.hcm.profile);
                cluster.stats.count_status(reply.status);
                Ok(Verdict::Answer(Box::new(reply)))
            }
        }
    }

    /// The flag of a retry that was wanted and not made.
    fn raise(&mut self, decision: &Decision, route: &Route) {
        match decision {
            Decision::Exhausted => {
                self.stream.flags.insert(Flag::URX);
                if let Some(stats) = &route.stats {
                    stats.upstream_rq_retry_limit_exceeded.inc();
                }
            }
            Decision::Overflow => self.stream.flags.insert(Flag::UO),
            Decision::Done | Decision::Retry(_) => {}
        }
    }

    async fn back_off(&mut self, wait: Duration) -> Result<(), Interrupt> {
        self.clock.end_attempt();
        self.clock.touch();
        if wait.is_zero() {
            return Ok(());
        }
        self.guarded(tokio::time::sleep(wait)).await
    }

    fn head_arrived(&mut self) {
        let now = self.clock.touch().into_std();
        let stream = &mut *self.stream;
        stream.timing.upstream_rx_begin = Some(now);
        let sent = stream.timing.upstream_tx_begin.unwrap_or(now);
        if let Some(tried) = stream.upstream.tried.last_mut() {
            tried.status = stream.response.status;
            tried.header_ms = Some((now - sent).as_millis() as u32);
        }
    }

    fn failed(&mut self, cluster: &Cluster, status: u16) {
        self.clock.touch();
        if let Some(host) = &self.stream.upstream.host {
            host.failed_requests.fetch_add(1, Relaxed);
        }
        self.end_attempt(cluster, status);
    }

    /// Gives back what an attempt counted, and tells the balancer.
    pub(super) fn end_attempt(&mut self, cluster: &Cluster, status: u16) {
        self.clock.end_attempt();
        let now = self.clock.now().into_std();
        cluster.stats.upstream_rq_active.dec();
        let stream = &mut *self.stream;
        let Some(host) = &stream.upstream.host else { return };
        host.active_requests.fetch_sub(1, Relaxed);
        let sent = stream.timing.upstream_tx_begin.unwrap_or(now);
        let elapsed = now.saturating_duration_since(sent);
        let mut connect = 0;
        if let Some(tried) = stream.upstream.tried.last_mut() {
            tried.response_ms = Some(elapsed.as_millis() as u32);
            connect = tried.connect_ms.unwrap_or(0);
            if tried.status == 0 {
                tried.status = status;
            }
        }
        let elapsed = elapsed + Duration::from_millis(u64::from(connect));
        cluster.balancer.report(host, Feedback { worker: self.env.worker.index, status, elapsed });
    }

    /// Passes a response on: head, body, trailers, in both directions.
    async fn pass(
        &mut self,
        plan: Plan<'_>,
        mut checkout: Checkout,
        end: bool,
        tunnel: bool,
        sent_all: bool,
    ) -> Result<(), Interrupt> {
        let cluster = plan.cluster.clone();
        let status = self.stream.response.status;
        self.stream.source = ResponseSource::Upstream;
        self.stream.details = "via_upstream".into();
        cluster.stats.count_status(status);
        self.count_route(&plan, status);
        self.response_headers(&plan);
        self.clock.set_per_try(None);
        let chain = self.chain.clone();
        if chain.has(Phases::HEADER_FILTER)
            && let Outcome::Respond(reply) = self.phase(&chain, Phases::HEADER_FILTER, 0).await?
        {
            self.end_attempt(&cluster, status);
            drop(checkout);
            return self.respond(reply, false).await;
        }
        if tunnel {
            self.clock.set_route(None);
        } else if self.down.upgrade().is_some() {
            self.close = true;
        }
        let result = self.pump(&mut checkout.stream, end, tunnel, sent_all).await;
        self.end_attempt(&cluster, status);
        let started = self.stream.timing.request_complete.unwrap_or(self.stream.timing.start);
        let now = self.clock.now();
        let elapsed = now.into_std().saturating_duration_since(started);
        cluster.stats.upstream_rq_time.record(elapsed.as_millis() as u64);
        if result.is_ok() {
            self.env.worker.pools.give_back(checkout, now);
        }
        result
    }

    fn count_route(&self, plan: &Plan<'_>, status: u16) {
        let Some(stats) = &plan.route.stats else { return };
        stats.upstream_rq_completed.inc();
        match status / 100 {
            1 => stats.upstream_rq_1xx.inc(),
            2 => stats.upstream_rq_2xx.inc(),
            3 => stats.upstream_rq_3xx.inc(),
            4 => stats.upstream_rq_4xx.inc(),
            5 => stats.upstream_rq_5xx.inc(),
            _ => {}
        }
        if status == 503 {
            stats.upstream_rq_503.inc();
        }
    }

    /// What Envoy's router adds to an upstream's response, and the header changes of the configuration.
    fn response_headers(&mut self, plan: &Plan<'_>) {
        let stream = &mut *self.stream;
        if !plan.suppress {
            let now = stream.timing.upstream_rx_begin.unwrap_or(stream.timing.start);
            let from = stream.timing.request_complete.unwrap_or(stream.timing.start);
            let millis = now.saturating_duration_since(from).as_millis();
            let mut digits = itoa::Buffer::new();
            stream
                .response
                .headers
                .set(Known::X_ENVOY_UPSTREAM_SERVICE_TIME, digits.format(millis).as_bytes());
        }
        let in_response = stream.virtual_host.as_ref().is_some_and(|v| v.options.attempt_count_in_response);
        if in_response {
            let mut digits = itoa::Buffer::new();
            let digits = digits.format(stream.upstream.attempts);
            stream.response.headers.set(Known::X_ENVOY_ATTEMPT_COUNT, digits.as_bytes());
        }
        if let Some(cookie) = &plan.set_cookie {
            stream.response.headers.append(Known::SET_COOKIE, cookie);
        }
        rewrite::finalize_upstream_response(self.table.as_deref(), plan.member, stream);
    }
}

/// The cluster of a request, and the weighted member that named it.
fn choose_cluster<'r>(
    choice: &'r ClusterChoice,
    stream: &Stream,
) -> (Option<Arc<Cluster>>, Option<&'r WeightedCluster>) {
    match choice {
        ClusterChoice::Named(cell) => (cell.load(), None),
        ClusterChoice::Header(name, clusters) => {
            (stream.request.headers.get_str(name).and_then(|n| clusters.find(n)), None)
        }
        ClusterChoice::Weighted(weighted) => match hash::weighted(weighted, stream) {
            Some(member) => (choose_cluster(&member.cluster, stream).0, Some(member)),
            None => (None, None),
        },
    }
}

/// What follows an attempt.
enum Verdict {
    /// Another one.
    Again,
    /// An answer of our own.
    Answer(Box<LocalReply>),
    /// The response.
    Pass { checkout: Box<Checkout>, end: bool, tunnel: bool, sent_all: bool },
}

/// Why sending the body stopped.
enum SendError {
    Gone(Gone),
    Upstream(UpstreamError),
}

/// The body of one attempt: first what was kept of an earlier one, then what the client still sends.
struct Outgoing {
    replayed: usize,
    /// The whole body, where a plugin wanted it.
    buffered: Option<bytes::Bytes>,
    done: bool,
    /// Nothing is sent before the upstream agrees to the upgrade.
    held: bool,
}

impl Outgoing {
    /// Sends the next piece; `true` when that was the end.
    fn poll_send<D: Downstream>(
        &mut self,
        down: &mut D,
        up: &mut crate::upstream::UpstreamStream,
        stream: &mut Stream,
        replay: &mut Replay,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Result<bool, SendError>> {
        if self.done || self.held {
            return Poll::Pending;
        }
        std::task::ready!(up.poll_writable(cx)).map_err(SendError::Upstream)?;
        if let Some(body) = self.buffered.take() {
            stream.bytes.upstream_sent += body.len() as u64;
            up.write_data(cx, Piece::Shared(body)).map_err(SendError::Upstream)?;
            return self.finish(up, stream);
        }
        if self.replayed < replay.kept.len() {
            let piece = &replay.kept[self.replayed..];
            self.replayed = replay.kept.len();
            stream.bytes.upstream_sent += piece.len() as u64;
            up.write_data(cx, Piece::Borrowed(piece)).map_err(SendError::Upstream)?;
            return Poll::Ready(Ok(false));
        }
        match std::task::ready!(down.poll_body(cx, &mut stream.request_trailers)).map_err(SendError::Gone)? {
            BodyEvent::Data(piece) => {
                let bytes = piece.as_slice();
                stream.bytes.request_body += bytes.len() as u64;
                stream.bytes.upstream_sent += bytes.len() as u64;
                replay.keep(bytes);
                self.replayed = replay.kept.len();
                up.write_data(cx, piece).map_err(SendError::Upstream)?;
                Poll::Ready(Ok(false))
            }
            BodyEvent::End => self.finish(up, stream),
        }
    }

    fn finish(
        &mut self,
        up: &mut crate::upstream::UpstreamStream,
        stream: &Stream,
    ) -> Poll<Result<bool, SendError>> {
        self.done = true;
        Poll::Ready(up.finish(&stream.request_trailers).map(|()| true).map_err(SendError::Upstream))
    }
}

impl Replay {
    fn keep(&mut self, bytes: &[u8]) {
        if !self.wanted || self.overflowed {
            return;
        }
        if self.kept.len() + bytes.len() > self.limit {
            self.overflowed = true;
            self.kept = Vec::new();
        } else {
            self.kept.extend_from_slice(bytes);
        }
    }
}
