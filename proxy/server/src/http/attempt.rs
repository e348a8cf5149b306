//! One attempt at one endpoint, from choosing its connection to the head of its response.

use super::after_attempt::Response;
use super::charge;
use super::clock::Expired;
use super::downstream::Downstream;
use super::exchange::{Exchange, Interrupt};
use super::forward::Plan;
use super::outgoing::{Outgoing, SendError};
use super::retry::RetryState;
use super::timeouts::RequestTimeouts;
use crate::deadline::within;
use crate::upstream::{Checkout, Client, HeadEvent, Resend, UpstreamError, UpstreamStream, Wanted};
use sixfold_core::cluster::{InFlight, OutcomeKind, TriedHost, UpstreamProtocol};
use sixfold_core::hcm::Profile;
use sixfold_core::headers::Known;
use sixfold_core::message::Scheme;
use sixfold_core::rewrite;
use sixfold_core::stream::Stream;
use std::task::Poll;
use std::time::Duration;

/// How an attempt ended.
pub(super) enum Attempt {
    /// A final response head is in the stream's context.
    Head(Response),
    /// There is none.
    Failed(UpstreamError, bool),
    /// Not in the time of one attempt.
    TimedOut(Expired),
    /// Nor here, but it goes on: the request is hedged.
    Slow(Checkout),
}

impl<D: Downstream> Exchange<'_, D> {
    /// One attempt at one endpoint, up to the head of its response.
    pub(super) async fn attempt(
        &mut self,
        plan: &mut Plan<'_>,
        flight: &mut InFlight,
    ) -> Result<Attempt, Interrupt> {
        self.begin_attempt(plan, flight);
        self.waited = true;
        // Only where TLS takes its server name from the request: then connections for different names are not
        // shared. It must outlive changes to the request.
        let flight = &*flight;
        let tls = plan.cluster.tls_of(flight.member()).and_then(|tls| tls.context());
        let server_name = tls.and_then(|tls| tls.name_of_request(&self.stream.request.authority));
        let offer = self.stream.upstream.offer.clone();
        let mut resend = Resend::default();
        loop {
            let wanted = Wanted {
                cluster: &plan.cluster,
                host: flight.host(),
                tls: plan.cluster.tls_of(flight.member()),
                server_name: server_name.as_deref(),
                offer: offer.as_ref(),
                client: Client::of(&self.stream.connection, &plan.cluster),
                downstream_http2: self.down.is_http2(),
                timeout: plan.limits.connect.unwrap_or(plan.cluster.config.connect_timeout),
                high: plan.forward.high_priority,
                raw: plan.forward.connect_tcp && self.down.upgrade() == Some("connect"),
                now: self.clock.now(),
            };
            let checkout = match self.connection(&wanted, resend.on_new()).await? {
                Ok(checkout) => checkout,
                Err(attempt) => return Ok(attempt),
            };
            flight.attached();
            let routes = charge::routes(self.stream);
            routes.into_iter().flatten().for_each(|stats| stats.upstream_rq_total().inc());
            let pooled = checkout.connect_ms.is_none();
            match self.send(plan, checkout).await? {
                Attempt::Failed(error, sent) => {
                    let replaces = || pooled && plan.retry.as_ref().is_some_and(RetryState::replaces_pooled);
                    if !plan.replay.is_whole(self.stream) || !resend.wanted(&error, replaces) {
                        return Ok(Attempt::Failed(error, sent));
                    }
                    if error == UpstreamError::Closed {
                        self.replaced(flight);
                    }
                }
                other => return Ok(other),
            }
        }
    }

    /// A connection from the pool or a new one, within the time of the attempt.
    async fn connection(
        &mut self,
        wanted: &Wanted<'_>,
        new: bool,
    ) -> Result<Result<Checkout, Attempt>, Interrupt> {
        let pools = &self.env.worker.pools;
        if !new {
            match pools.take_ready(wanted) {
                Ok(Some(checkout)) => return Ok(Ok(checkout)),
                Ok(None) => {}
                Err(error) => return Ok(Err(Attempt::Failed(error, false))),
            }
        }
        // Boxed: opening a connection is rare, and its future larger than all the rest of a request's.
        match self.guarded(Box::pin(pools.take_new(wanted)).as_mut()).await {
            Ok(taken) => Ok(taken.map_err(|error| {
                if matches!(error, UpstreamError::Connect(_) | UpstreamError::ConnectTimeout) {
                    wanted.cluster.stats.upstream_rq_pending_failure_eject().inc();
                }
                Attempt::Failed(error, false)
            })),
            Err(Interrupt::Expired(which @ (Expired::PerTry | Expired::PerTryIdle))) => {
                Ok(Err(Attempt::TimedOut(which)))
            }
            Err(other) => {
                wanted.cluster.stats.upstream_rq_cancelled().inc();
                Err(other)
            }
        }
    }

    /// Sends the request on a connection, up to the head of its response.
    async fn send(&mut self, plan: &mut Plan<'_>, mut checkout: Checkout) -> Result<Attempt, Interrupt> {
        self.connected(&checkout);
        let upgrade = self.down.upgrade().is_some();
        let end = match &self.stream.request_body {
            // The bytes of an upgrade follow once the upstream has agreed, behind the body if it has one of its own.
            _ if upgrade && !self.upgrade_has_body(plan) => true,
            Some(body) => body.is_empty() && self.stream.request_trailers.is_empty(),
            None => self.request_ended() && plan.replay.is_empty() && !self.request_body.is_under_way(),
        };
        let scheme = self.upstream_scheme(plan);
        if let Err(error) = checkout.stream.write_head(&self.stream.request, scheme, end) {
            return Ok(Attempt::Failed(error, false));
        }
        if (self.request_ended() && !upgrade) || self.asks_for_websocket() {
            self.clock.set_per_try(plan.timeouts.per_try);
        }
        self.exchange_heads(plan, checkout, end, upgrade).await
    }

    /// Whether there is a body to be sent before the bytes of an upgrade.
    fn upgrade_has_body(&self, plan: &Plan<'_>) -> bool {
        match &self.stream.request_body {
            Some(body) => !body.is_empty(),
            None => self.down.has_body_before_tunnel() || !plan.replay.is_empty(),
        }
    }

    /// Notes that a pooled connection was dead, as nginx does: it counts among the upstreams, not among the retries.
    fn replaced(&mut self, flight: &InFlight) {
        let now = self.clock.touch().into_std();
        let upstream = &mut self.stream.upstream;
        if let Some(tried) = upstream.tried.last_mut() {
            tried.end(now, 502);
        }
        upstream.tried.push(TriedHost::new(flight.member().clone(), now));
    }

    /// Counts the attempt and writes what each attempt tells its upstream.
    fn begin_attempt(&mut self, plan: &mut Plan<'_>, flight: &mut InFlight) {
        let now = self.clock.now().into_std();
        let stream = &mut *self.stream;
        flight.begin(now, stream.request.is_grpc());
        let host = flight.host();
        plan.begun += 1;
        stream.upstream.attempts = plan.begun;
        stream.upstream.member = Some(flight.member().clone());
        stream.upstream.tried.push(TriedHost::new(flight.member().clone(), now));
        stream.upstream.connection = None;
        stream.upstream.local = None;
        stream.timing.upstream_tx_begin = None;
        stream.timing.upstream_rx_begin = None;
        let config = &plan.cluster.config;
        let policy = plan.retry.as_ref().map(RetryState::policy);
        let timeouts = plan.limits;
        self.clock.begin_attempt(
            policy.and_then(|p| p.per_try_idle_timeout),
            config.max_stream_duration,
            timeouts.send,
            timeouts.read,
        );
        if self.env.hcm.profile == Profile::Apisix {
            // What speaks HTTP/2 there is gRPC, whatever the client says, and its servers reset calls without `te`.
            if config.protocol == UpstreamProtocol::Http2 {
                stream.request.withhold(Known::CONTENT_TYPE);
                stream.request.headers.set(Known::CONTENT_TYPE, b"application/grpc");
                stream.request.headers.set(Known::TE, b"trailers");
            }
            rewrite::apisix_host(plan.forward, host, config.scheme, stream);
            return;
        }
        rewrite::endpoint_host(plan.forward, plan.member, host, plan.suppress, stream);
        if stream.upstream.attempts > 1 {
            let after_timeout = plan.retry.as_ref().is_some_and(|r| r.after_timeout);
            self.tell_of_retry(&plan.timeouts, plan.suppress, after_timeout);
        }
    }

    /// Tells the upstream what there is to a further attempt. That comes after the header changes of the
    /// configuration, which were made once, for the first one (common/router/router.cc `doRetry`).
    fn tell_of_retry(&mut self, timeouts: &RequestTimeouts, suppress: bool, after_timeout: bool) {
        let left = if self.request_ended() { self.clock.route_left() } else { timeouts.global };
        self.tell_of_attempt(timeouts, left, suppress, self.stream.upstream.attempts);
        let tells = self.stream.virtual_host.as_ref().is_some_and(|v| v.options.is_timeout_retry);
        if tells {
            let text: &[u8] = if after_timeout { b"true" } else { b"false" };
            self.stream.request.headers.set(Known::X_ENVOY_IS_TIMEOUT_RETRY, text);
        }
    }

    /// Tells the upstream how long it has, `left` at most, and which attempt this is.
    pub(super) fn tell_of_attempt(
        &mut self,
        timeouts: &RequestTimeouts,
        left: Option<Duration>,
        suppress: bool,
        attempt: u32,
    ) {
        timeouts.announce(left, suppress, &mut self.stream.request.headers);
        if self.stream.virtual_host.as_ref().is_some_and(|v| v.options.attempt_count) {
            let mut digits = itoa::Buffer::new();
            let digits = digits.format(attempt).as_bytes();
            self.stream.request.headers.set(Known::X_ENVOY_ATTEMPT_COUNT, digits);
        }
    }

    /// Notes which connection the request is on.
    pub(super) fn connected(&mut self, checkout: &Checkout) {
        let now = if checkout.connect_ms.is_some() { self.clock.touch() } else { self.clock.now() };
        let upstream = &mut self.stream.upstream;
        upstream.local = checkout.stream.local();
        upstream.connection = Some(checkout.stream.connection().clone());
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
        let (up, filtered) = (&mut checkout.stream, &mut self.request_body);
        let Plan { body, replay, timeouts, .. } = plan;
        *body = Outgoing::new(stream.request_body.clone(), self.env.hcm.max_body, end, upgrade);
        let stats = &self.env.hcm.stats;
        let proxy_continue = self.env.hcm.http1.proxy_100_continue;
        let result = within(clock, |clock, cx| {
            loop {
                match body.poll_send(down, up, stream, replay, filtered, cx) {
                    Poll::Ready(Ok(ended)) => {
                        clock.touch();
                        if ended {
                            clock.end_request();
                            if stream.timing.request_complete.is_none() {
                                stream.timing.request_complete = Some(clock.touch().into_std());
                                clock.set_route(timeouts.global);
                            }
                            clock.set_per_try(timeouts.per_try);
                        }
                        continue;
                    }
                    Poll::Ready(Err(SendError::Downstream(interrupt))) => return Poll::Ready(Err(interrupt)),
                    Poll::Ready(Err(SendError::Upstream(error))) => return Poll::Ready(Ok(Err(error))),
                    Poll::Pending => {}
                }
                if let Poll::Ready(Err(error)) = up.poll_flush(cx) {
                    return Poll::Ready(Ok(Err(error)));
                }
                match up.poll_head(cx, &mut stream.response) {
                    Poll::Ready(Ok(HeadEvent::Interim(status))) => {
                        charge::response(stream, status);
                        if status == 100 && proxy_continue {
                            down.write_continue();
                            stats.count_interim();
                        }
                        clock.touch();
                        continue;
                    }
                    // Switching to a protocol that nobody asked for would hand the client bytes of anything.
                    Poll::Ready(Ok(HeadEvent::Final { .. })) if stream.response.status == 101 && !upgrade => {
                        return Poll::Ready(Ok(Err(UpstreamError::Protocol)));
                    }
                    // The rest of the body would be taken for bytes of the tunnel.
                    Poll::Ready(Ok(HeadEvent::Final { tunnel: true, .. })) if body.comes_first() => {
                        return Poll::Ready(Ok(Err(UpstreamError::Protocol)));
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
                if body.rests()
                    && let Poll::Ready(gone) = down.poll_closed(cx)
                {
                    return Poll::Ready(Err(gone.into()));
                }
                clock.watch(body.waits(down, up, stream));
                return Poll::Pending;
            }
        })
        .await
        .unwrap_or_else(|which| Err(Interrupt::Expired(which)));
        self.heads_exchanged(plan, checkout, result)
    }

    /// What an attempt has come to, by how the wait for the head of its response has ended: with the response, which may
    /// have no body or begin a tunnel, or with a failure of its upstream, or something else has come between.
    fn heads_exchanged(
        &mut self,
        plan: &Plan<'_>,
        checkout: Checkout,
        result: Result<Result<(bool, bool), UpstreamError>, Interrupt>,
    ) -> Result<Attempt, Interrupt> {
        note_traffic(self.stream, &checkout.stream);
        if let (Ok(Ok(_)), Some(tried)) = (&result, self.stream.upstream.tried.last_mut()) {
            tried.head_end = checkout.stream.head_end();
        }
        match result {
            Ok(Ok((end, tunnel))) => Ok(Attempt::Head(Response { checkout, end, tunnel })),
            Ok(Err(error)) => Ok(Attempt::Failed(error, true)),
            Err(Interrupt::Expired(which)) if plan.timeouts.hedges(which) && self.is_request_whole() => {
                Ok(Attempt::Slow(checkout))
            }
            Err(interrupt) => {
                // The attempt is given up, and its stream is reset.
                if checkout.stream.is_http2() {
                    plan.cluster.stats.upstream_rq_tx_reset().inc();
                }
                match interrupt {
                    Interrupt::Expired(which) if which.is_of_attempt() => Ok(Attempt::TimedOut(which)),
                    other => Err(other),
                }
            }
        }
    }

    /// Whether nothing of the request is still to come.
    pub(super) fn is_request_whole(&self) -> bool {
        self.request_ended() && !self.request_body.is_under_way() && self.down.upgrade().is_none()
    }

    /// Notes when and with what status the head of the response came; with `end` nothing follows it.
    pub(super) fn head_arrived(&mut self, flight: &mut InFlight, end: bool) {
        let now = self.clock.touch().into_std();
        let stream = &mut *self.stream;
        stream.timing.upstream_rx_begin = Some(now);
        let status = stream.response.status;
        flight.answered(status, &stream.response.headers, end);
        if let Some(tried) = stream.upstream.tried.last_mut() {
            tried.head(now, status);
        }
    }

    /// Ends an attempt: its deadlines, its times in the log, its counts and its outcome.
    pub(super) fn end_attempt(&mut self, flight: &mut InFlight, kind: OutcomeKind, status: u16) {
        self.clock.end_attempt();
        let now = self.clock.now().into_std();
        // nginx writes 502 for what is not a timeout; what the balancers are told is Envoy's.
        let shown = match (self.env.hcm.profile, status) {
            (Profile::Apisix, 503) if kind.is_failure() => 502,
            _ => status,
        };
        if let Some(tried) = self.stream.upstream.tried.last_mut() {
            tried.end(now, shown);
        }
        flight.end(kind, status, now);
    }
}

/// Notes the bytes on the wire of the attempt, as far as it has come.
pub(super) fn note_traffic(stream: &mut Stream, up: &UpstreamStream) {
    if let Some(tried) = stream.upstream.tried.last_mut() {
        tried.traffic = up.traffic();
        tried.received = stream.bytes.upstream_received;
    }
}
