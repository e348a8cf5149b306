//! Forwarding: choose a cluster, make the upstream's request, try endpoints until one answers.

use super::after_attempt::{AfterAttempt, Response};
use super::attempt::note_traffic;
use super::charge;
use super::downstream::Downstream;
use super::edge;
use super::exchange::{Exchange, Interrupt};
use super::local_reply;
use super::outgoing::{Outgoing, Replay};
use super::respond::tell_attempts;
use super::retry::RetryState;
use super::shed;
use super::timeouts::RequestTimeouts;
use crate::upstream::destination;
use sixfold_core::cluster::{Choice, Cluster, InFlight, OutcomeKind};
use sixfold_core::flags::Flag;
use sixfold_core::hcm::Profile;
use sixfold_core::headers::Known;
use sixfold_core::message::Version;
use sixfold_core::plugin::{HeadPhase, LocalReply, Outcome};
use sixfold_core::route::{Action, Forward, Route, Timeouts, WeightedCluster};
use sixfold_core::stream::ResponseSource;
use sixfold_core::{draw, hash, rewrite};
use std::sync::Arc;

/// What shares of requests are counted by.
const MILLION: u32 = 1_000_000;

/// A request on its way to a cluster: what all attempts share.
pub(super) struct Plan<'r> {
    pub(super) forward: &'r Forward,
    /// The forwarding's, or the route's own where a plugin has chosen the cluster.
    pub(super) limits: &'r Timeouts,
    /// The member of weighted clusters that was drawn.
    pub(super) member: Option<&'r WeightedCluster>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) timeouts: RequestTimeouts,
    pub(super) retry: Option<RetryState>,
    /// What was sent of the body, while a retry may need it again.
    pub(super) replay: Replay,
    /// What is left of the body for the attempt under way.
    pub(super) body: Outgoing,
    /// A cookie that the hash policy made, for the response.
    set_cookie: Option<Vec<u8>>,
    pub(super) suppress: bool,
    /// Attempts that have begun.
    pub(super) begun: u32,
}

/// Where a request goes.
struct Chosen<'r> {
    cluster: Arc<Cluster>,
    member: Option<&'r WeightedCluster>,
    set_cookie: Option<Vec<u8>>,
}

impl<D: Downstream> Exchange<'_, D> {
    /// Forwards the request and passes the response on.
    pub(super) async fn forward(&mut self, route: &Route, forward: &Forward) -> Result<(), Interrupt> {
        // Before the upstream's request is made, which has no such header.
        self.answer_expect(false);
        self.forget_removed_upgrade();
        if forward.hash.iter().any(|policy| policy.input.is_of_body()) {
            Box::pin(async {
                let of_body: Vec<_> =
                    forward.hash.iter().flat_map(|policy| policy.input.body_variables()).collect();
                self.read_variables(&of_body).await
            })
            .await?;
        }
        let mut plan = match self.plan(route, forward) {
            Ok(plan) => plan,
            Err(reply) => return self.respond(*reply).await,
        };
        self.filter_request().await?;
        if self.request_ended() || self.asks_for_websocket() {
            self.clock.set_route(plan.timeouts.global);
        }
        if plan.timeouts.hedge {
            // Boxed: few requests are hedged.
            return Box::pin(self.forward_hedged(plan)).await;
        }
        loop {
            let Some(mut flight) = self.choose_host(&plan) else {
                let reply = self.no_host(&plan);
                return self.respond(reply).await;
            };
            if let Some(reply) = self.before_proxy(&flight).await? {
                return self.respond(reply).await;
            }
            self.mirror(&mut plan);
            let attempt = match self.attempt(&mut plan, &mut flight).await {
                Ok(attempt) => attempt,
                Err(interrupt) => {
                    let kind = interrupt.outcome();
                    self.end_attempt(&mut flight, kind, kind.status());
                    return Err(interrupt);
                }
            };
            match self.after_attempt(&mut plan, &mut flight, attempt, false) {
                AfterAttempt::Retry(wait) => self.back_off(wait).await?,
                // There is none beside it.
                AfterAttempt::Await => {}
                AfterAttempt::Redirected(next) => return Err(Interrupt::Redirected(next)),
                AfterAttempt::Reply(reply) => return self.respond(*reply).await,
                AfterAttempt::Forward(response) => return self.pass(&mut plan, &mut flight, response).await,
            }
        }
    }

    /// An answer before the request is forwarded is logged with the cluster it was meant for, as in Envoy.
    pub(super) fn name_cluster(&mut self) {
        if self.stream.route.as_ref().is_some_and(|route| route.leads_to().is_some()) {
            self.stream.upstream.cluster = draw::cluster_of(self.stream);
        }
    }

    /// The cluster that was settled with the route, or that a plugin has put in its place; or the answer to a request that
    /// goes to none.
    fn choose<'r>(&mut self, forward: &'r Forward) -> Result<Chosen<'r>, Box<LocalReply>> {
        let hcm = &self.env.hcm;
        let (request_hash, set_cookie) = hash::request_hash(&forward.hash, self.stream);
        self.stream.hash = request_hash;
        let drawn = &self.stream.upstream.drawn;
        let member = drawn.member(&forward.cluster);
        let Some(cluster) = drawn.cluster(&forward.cluster) else {
            hcm.stats.no_cluster().inc();
            let mut reply = LocalReply::new(forward.cluster_not_found, "", "cluster_not_found");
            reply.flag = Some(Flag::NC);
            return Err(Box::new(reply));
        };
        // Envoy makes the cookie when a balancer asks for the hash.
        let set_cookie = set_cookie.filter(|_| cluster.config.balance.policy.takes_hash());
        self.stream.upstream.cluster = Some(cluster.clone());
        charge::enter(self.stream);
        if let Some(reply) = shed::refusal(&cluster, hcm) {
            charge::response(self.stream, reply.status);
            return Err(Box::new(reply));
        }
        if let Some(reply) = self.drops_overload(&cluster) {
            return Err(Box::new(reply));
        }
        Ok(Chosen { cluster, member, set_cookie })
    }

    /// Chooses the cluster and prepares the request for it.
    fn plan<'r>(&mut self, route: &'r Route, forward: &'r Forward) -> Result<Plan<'r>, Box<LocalReply>> {
        let Chosen { cluster, member, set_cookie } = self.choose(forward)?;
        let hcm = &self.env.hcm;
        if let Some(reply) = rewrite::strict_check(&hcm.router, self.stream) {
            return Err(Box::new(reply));
        }
        let policy = forward.retry_policy(Some(&cluster.config), self.stream.virtual_host.as_deref());
        let policy = policy.as_deref();
        // In APISIX no header of a client steers timeouts and retries.
        let steered = hcm.profile == Profile::Envoy;
        let limits = match &route.action {
            Action::Forward(own) if own.own_timeouts => &own.timeouts,
            _ => &forward.timeouts,
        };
        let timeouts = RequestTimeouts::decide(
            limits,
            policy.map(|p| &**p),
            &hcm.router,
            forward.hedge_on_per_try_timeout,
            steered,
            self.stream,
        );
        let retry = RetryState::new(policy, steered, self.stream);
        let suppress = hcm.router.suppress_envoy_headers || !steered;
        if steered {
            // Before the configuration's changes, which may read it, change it and take it off.
            self.tell_of_attempt(&timeouts, timeouts.global, suppress, 1);
        }
        let upgrading = self.down.upgrade().is_some();
        let begun = self.stream.upstream.attempts;
        // Envoy's router counts an attempt before it changes headers and looks for a host.
        self.stream.upstream.attempts += u32::from(steered);
        rewrite::finalize_request(
            self.table_options.as_deref(),
            route,
            forward,
            member,
            hcm,
            upgrading,
            self.stream,
        );
        let limit = route
            .body_buffer_limit()
            .or_else(|| self.stream.virtual_host.as_ref().and_then(|v| v.options.body_buffer_limit));
        let limit = limit.map_or(hcm.buffer_limit, |l| usize::try_from(l).unwrap_or(usize::MAX));
        let again = retry.is_some() || forward.internal_redirect.is_some();
        let replay = Replay::new(&self.env.worker.shared.bodies, limit, again);
        let body = Outgoing::none();
        Ok(Plan {
            forward,
            limits,
            member,
            cluster,
            timeouts,
            retry,
            replay,
            body,
            set_cookie,
            suppress,
            begun,
        })
    }

    /// The answer to requests of which a cluster is to get less, or none (`drop_overloads`; router.cc `checkDropOverload`).
    fn drops_overload(&self, cluster: &Cluster) -> Option<LocalReply> {
        let share = cluster.drop_overload();
        if share == 0 || share < MILLION && fastrand::u32(..MILLION) >= share {
            return None;
        }
        let (text, details, header, flag) = match share {
            MILLION.. => (
                "unconditional drop overload",
                "unconditional_drop_overload",
                "x-envoy-unconditional-drop-overload",
                Flag::UDO,
            ),
            _ => ("drop overload", "drop_overload", "x-envoy-drop-overload", Flag::DO),
        };
        charge::response(self.stream, 503);
        let hcm = &self.env.hcm;
        let mut reply = local_reply::own(503, text, details, hcm.profile);
        reply.flag = Some(flag);
        if !hcm.router.suppress_envoy_headers {
            reply.headers.set(header, b"true");
        }
        Some(reply)
    }

    /// Takes `Connection: upgrade` from a request whose `Upgrade` a filter has removed: it would name an option that is not there.
    fn forget_removed_upgrade(&mut self) {
        let headers = &mut self.stream.request.headers;
        let is_envoy = self.env.hcm.profile == Profile::Envoy;
        if is_envoy && self.down.upgrade().is_some() && !headers.contains(Known::UPGRADE) {
            headers.remove(Known::CONNECTION);
        }
    }

    /// Answers `Expect: 100-continue`, unless it is forwarded (`proxy_100_continue`). Envoy does so at the head, whatever becomes
    /// of the request: what a filter says after it is for the upstream. nginx does when it begins to read the body, also where there
    /// is none or it has come.
    pub(super) fn answer_expect(&mut self, at_head: bool) {
        let nginx = self.env.hcm.profile == Profile::Apisix;
        if nginx == at_head {
            return;
        }
        let request = &mut self.stream.request;
        let expects =
            request.headers.get(Known::EXPECT).is_some_and(|v| v.eq_ignore_ascii_case(b"100-continue"));
        let tunnels = self.down.upgrade().is_some() && !self.down.has_body_before_tunnel();
        if !expects || (nginx && (self.down.is_http2() || tunnels)) {
            return;
        }
        if self.env.hcm.http1.proxy_100_continue {
            return;
        }
        request.withhold(Known::EXPECT);
        request.headers.remove(Known::EXPECT);
        if request.version != Version::Http10 {
            self.down.write_continue();
            self.env.hcm.stats.count_interim();
        }
    }

    /// Runs `before_proxy`, which sees the endpoint that was chosen.
    pub(super) async fn before_proxy(&mut self, flight: &InFlight) -> Result<Option<LocalReply>, Interrupt> {
        if !self.chain.has(HeadPhase::BeforeProxy) {
            return Ok(None);
        }
        let chain = Arc::clone(&self.chain);
        self.stream.upstream.member = Some(flight.member().clone());
        let announced = self.announced_length();
        let outcome = self.phase(&chain, HeadPhase::BeforeProxy).await?;
        self.frame_request(announced);
        match outcome {
            Outcome::Respond(reply) => Ok(Some(reply)),
            _ => Ok(None),
        }
    }

    /// An endpoint for an attempt.
    pub(super) fn choose_host(&mut self, plan: &Plan<'_>) -> Option<InFlight> {
        let retry = plan.retry.as_ref().map(RetryState::policy);
        let again = plan.begun > 0;
        if let Some(wanted) = self.stream.upstream.wanted.as_deref().filter(|_| !again) {
            let worker = self.env.worker.index;
            let flight = wanted.address.and_then(|address| plan.cluster.choose_address(address, worker));
            if flight.is_some() || wanted.strict.is_some() {
                return flight;
            }
        }
        let configured = plan.member.map_or(&plan.forward.metadata_match, |m| &m.metadata_match);
        // What filters have found out about the request is over what is configured.
        let found = self.stream.metadata.iter().filter(|(namespace, ..)| **namespace == *"envoy.lb");
        let mut found = found.map(|(_, key, value)| (&**key, value)).peekable();
        let merged = found.peek().is_some().then(|| configured.merged(found));
        let choice = Choice {
            worker: self.env.worker.index,
            hash: self.stream.hash,
            random: fastrand::u64(..),
            attempt: plan.begun,
            tried: &self.stream.upstream.tried,
            predicates: retry.filter(|_| again).map_or(&[][..], |r| &r.host_predicates),
            host_attempts: retry.map_or(1, |r| r.host_attempts),
            previous_priorities: retry.filter(|_| again).and_then(|r| r.previous_priorities),
            subset: merged.as_ref().unwrap_or(configured),
            destination: destination(&plan.cluster, self.stream),
        };
        plan.cluster.choose(&choice)
    }

    /// The answer when there is none.
    pub(super) fn no_host(&mut self, plan: &Plan<'_>) -> LocalReply {
        plan.cluster.stats.upstream_cx_none_healthy().inc();
        let apisix = self.env.hcm.profile == Profile::Apisix;
        // APISIX tells an upstream without nodes apart from one of whose nodes none was picked.
        let status =
            if apisix && (plan.begun > 0 || plan.cluster.hosts.load().total() > 0) { 502 } else { 503 };
        charge::response(self.stream, status);
        let wanted = self.stream.upstream.wanted.as_deref().filter(|_| plan.begun == 0);
        let status = wanted.and_then(|wanted| wanted.strict).unwrap_or(status);
        let profile = self.env.hcm.profile;
        if !apisix {
            self.stream.upstream.attempts = plan.begun + 1;
        }
        let mut reply = local_reply::own(status, "no healthy upstream", "no_healthy_upstream", profile);
        reply.flag = Some(Flag::UH);
        reply.after_attempts = true;
        reply
    }

    /// Passes a response on: head, body, trailers, in both directions.
    pub(super) async fn pass(
        &mut self,
        plan: &mut Plan<'_>,
        flight: &mut InFlight,
        response: Response,
    ) -> Result<(), Interrupt> {
        let Response { mut checkout, end, tunnel } = response;
        let status = self.stream.response.status;
        self.stream.source = ResponseSource::Upstream;
        self.stream.details = Some("via_upstream".into());
        if self.refuses_websocket(tunnel) {
            let reply = self.refused_handshake();
            note_traffic(self.stream, &checkout.stream);
            self.end_attempt(flight, OutcomeKind::Response, status);
            drop(checkout);
            return self.respond(reply).await;
        }
        charge::response(self.stream, status);
        if self.env.hcm.profile == Profile::Apisix {
            edge::hide_upstream_headers(&mut self.stream.response.headers);
        }
        self.response_headers(plan);
        edge::name_gateway(&self.env.hcm, self.stream);
        self.clock.set_per_try(None);
        if self.chain.has(HeadPhase::HeaderFilter) {
            match self.filter_head(end, tunnel).await {
                Ok(None) => {}
                Ok(Some(reply)) => {
                    self.end_attempt(flight, OutcomeKind::Response, status);
                    drop(checkout);
                    return self.respond(reply).await;
                }
                Err(interrupt) => {
                    if matches!(interrupt, Interrupt::Redirected(_)) {
                        self.end_attempt(flight, OutcomeKind::Response, status);
                    }
                    return Err(interrupt);
                }
            }
        }
        if tunnel {
            self.clock.set_route(None);
            plan.body.become_tunnel();
            self.stream.is_tunnel = true;
        } else if self.down.upgrade().is_some() && !self.down.is_http2() {
            self.without_upgrade();
        }
        plan.body.end_without_upgrade();
        self.request_body.settle_upgrade();
        let result = self.pump(&mut checkout.stream, end, tunnel, &mut plan.body, &mut plan.replay).await;
        note_traffic(self.stream, &checkout.stream);
        if result.is_ok() {
            flight.trailed(&self.stream.response_trailers);
        }
        let given_up = result.as_ref().is_err_and(|i| !matches!(i, Interrupt::Upstream(_)));
        if given_up && checkout.stream.is_http2() {
            plan.cluster.stats.upstream_rq_tx_reset().inc();
        }
        let kind = match &result {
            Err(Interrupt::Upstream(error)) => error.outcome(),
            _ => OutcomeKind::Response,
        };
        self.end_attempt(flight, kind, status);
        let started = self.stream.timing.request_complete.unwrap_or(self.stream.timing.start);
        let now = self.clock.now();
        let elapsed = now.into_std().saturating_duration_since(started);
        charge::time(self.stream, elapsed.as_millis() as u64);
        if result.is_ok() {
            self.env.worker.pools.give_back(checkout, now);
        }
        result
    }

    /// Runs `header_filter` on the response of an upstream. The time that filters take is not the upstream's.
    async fn filter_head(&mut self, end: bool, tunnel: bool) -> Result<Option<LocalReply>, Interrupt> {
        // Behind the 101 of a tunnel there is one: what goes through it.
        self.stream.ends_with_head = end || (!tunnel && self.has_no_body());
        let left = self.clock.route_left();
        self.clock.set_route(None);
        let filtered = self.header_filters().await;
        if !end {
            self.clock.set_route(left);
        }
        filtered
    }

    /// The request of a WebSocket has no end; Envoy's timeouts of the route and of its attempts begin with its head
    /// (source/common/router/router.cc), and end when the upstream has agreed.
    pub(super) fn asks_for_websocket(&self) -> bool {
        self.down.upgrade() == Some("websocket")
    }

    /// Whether the upstream turns a WebSocket down by a response that is no error.
    fn refuses_websocket(&self, tunnel: bool) -> bool {
        let answered = !tunnel && self.env.hcm.profile == Profile::Envoy && self.stream.response.status < 400;
        answered && self.asks_for_websocket()
    }

    /// The answer in the place of such a response: one of our own with the headers of the upstream's
    /// (common/router/upstream_codec_filter.cc).
    fn refused_handshake(&mut self) -> LocalReply {
        self.clock.set_per_try(None);
        self.close |= !self.down.is_http2();
        let response = &mut self.stream.response;
        let mut reply = LocalReply::new(response.status, "", "websocket_handshake_unsuccessful");
        reply.headers = std::mem::take(&mut response.headers);
        reply
    }

    /// The upstream has answered an upgrade by a response. nginx goes on with the next request of the connection; in
    /// Envoy the request of an upgrade has no end, and the client may have sent bytes of its tunnel already.
    fn without_upgrade(&mut self) {
        if self.env.hcm.profile == Profile::Envoy {
            self.close = true;
            return;
        }
        self.down.decline_upgrade();
        if self.down.request_ended() {
            self.request_complete();
        }
    }

    /// What Envoy's router adds to an upstream's response, and the header changes of the configuration.
    fn response_headers(&mut self, plan: &Plan<'_>) {
        let stream = &mut *self.stream;
        if let (false, Some(from)) = (plan.suppress, stream.timing.request_complete) {
            let now = stream.timing.upstream_rx_begin.unwrap_or(from);
            let millis = now.saturating_duration_since(from).as_millis() as u64;
            let mut digits = itoa::Buffer::new();
            stream
                .response
                .headers
                .set(Known::X_ENVOY_UPSTREAM_SERVICE_TIME, digits.format(millis).as_bytes());
        }
        tell_attempts(stream);
        if let Some(cookie) = &plan.set_cookie {
            stream.response.headers.append(Known::SET_COOKIE, cookie);
        }
        rewrite::finalize_upstream_response(self.table_options.as_deref(), plan.member, stream);
    }
}
