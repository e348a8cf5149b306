//! The life of a request, top to bottom.
//!
//! Admit it (Host, path, trust), choose virtual host and route, run the request phases, then redirect, answer
//! or forward; write the response through the response phases; log. Every wait is guarded by the stream's
//! deadlines and by the client's presence.

use super::body::{BodyEvent, Piece};
use super::clock::{Clock, Expired};
use super::downstream::{Downstream, Gone};
use super::edge;
use super::local_reply;
use super::{Env, codec_profile};
use crate::h1::H1Error;
use crate::h1::reason::reason_phrase;
use crate::upstream::{UpstreamError, choose_cluster};
use bytes::{Bytes, BytesMut};
use sixfold_core::flags::Flag;
use sixfold_core::hcm::Profile;
use sixfold_core::headers::Known;
use sixfold_core::path::{self, Prepared};
use sixfold_core::plugin::{BodyChunk, Chain, LocalReply, Outcome, Phases};
use sixfold_core::route::Action;
use sixfold_core::router::RouteTable;
use sixfold_core::stream::{ResponseSource, Stream};
use sixfold_core::{redirect, rewrite};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

/// What ends a request before its response is complete.
#[derive(Debug)]
pub(crate) enum Interrupt {
    /// The client went away.
    Gone(Gone),
    /// A deadline passed.
    Expired(Expired),
    /// The upstream failed after its response had begun.
    Upstream(UpstreamError),
}

impl From<Gone> for Interrupt {
    fn from(gone: Gone) -> Interrupt {
        Interrupt::Gone(gone)
    }
}

/// One request and what serves it.
pub(super) struct Exchange<'a, D> {
    pub(super) down: &'a mut D,
    pub(super) stream: &'a mut Stream,
    pub(super) clock: &'a mut Clock,
    pub(super) env: &'a Env,
    /// Pinned for the length of the request: an update affects later requests only.
    pub(super) table: Option<Arc<RouteTable>>,
    pub(super) chain: Arc<Chain>,
    /// The response's head has been handed to the client's connection.
    pub(super) head_sent: bool,
    /// The connection must end with this response.
    pub(super) close: bool,
}

/// Serves the request whose head is in `stream`.
pub(super) async fn serve<D: Downstream>(down: &mut D, stream: &mut Stream, clock: &mut Clock, env: &Env) {
    let hcm = &env.hcm;
    hcm.stats.downstream_rq_total.inc();
    hcm.stats.downstream_rq_active.inc();
    stream.random = fastrand::u64(..);
    clock.set_idle(hcm.timeouts.stream_idle);
    clock.set_max_stream(stream.timing.start.into(), hcm.timeouts.max_stream);
    if down.upgrade().is_some() {
        // An upgrade goes on in both directions: it is never complete.
    } else if down.request_ended() {
        stream.timing.request_complete = Some(stream.timing.start);
    } else {
        clock.set_request(hcm.timeouts.request);
    }
    let chain = hcm.chain.clone();
    let table = hcm.routes.load();
    let mut exchange = Exchange { down, stream, clock, env, table, chain, head_sent: false, close: false };
    exchange.run().await;
    exchange.finish();
}

/// Answers bytes that are no request (`DPE`), as far as they can be answered.
pub(super) async fn refuse<D: Downstream>(
    down: &mut D,
    stream: &mut Stream,
    clock: &mut Clock,
    env: &Env,
    error: H1Error,
) {
    let profile = codec_profile(env.hcm.profile);
    let status = error.status(profile);
    let mut reply = LocalReply::new(status, reason_phrase(status, profile), error.details());
    reply.flag = Some(Flag::DPE);
    answer_only(down, stream, clock, env, reply).await;
}

/// Answers a request whose head did not come in time (`request_headers_timeout`).
pub(super) async fn late<D: Downstream>(down: &mut D, stream: &mut Stream, clock: &mut Clock, env: &Env) {
    let reply = LocalReply::new(408, "request header timeout", "request_header_timeout");
    answer_only(down, stream, clock, env, reply).await;
}

async fn answer_only<D: Downstream>(
    down: &mut D,
    stream: &mut Stream,
    clock: &mut Clock,
    env: &Env,
    mut reply: LocalReply,
) {
    env.hcm.stats.downstream_rq_total.inc();
    env.hcm.stats.downstream_rq_active.inc();
    // What was parsed before the error is not shown: it may be anything.
    stream.request.clear();
    if env.hcm.profile == Profile::Apisix {
        reply.body = Bytes::new();
    }
    let chain = Arc::new(Chain::empty());
    let mut exchange =
        Exchange { down, stream, clock, env, table: None, chain, head_sent: false, close: true };
    if exchange.respond(reply, false).await.is_err() {
        exchange.down.reset();
    }
    exchange.finish();
}

impl<D: Downstream> Exchange<'_, D> {
    async fn run(&mut self) {
        let Err(interrupt) = self.proxy().await else { return };
        match interrupt {
            Interrupt::Expired(which) if !self.head_sent => {
                self.note_timeout(which);
                let complete = self.down.request_ended();
                let reply = local_reply::expired(which, complete, self.env.hcm.profile);
                let routed = matches!(which, Expired::Route | Expired::PerTry | Expired::PerTryIdle);
                if self.respond(reply, routed).await.is_err() {
                    self.down.reset();
                }
            }
            Interrupt::Expired(which) => {
                self.note_timeout(which);
                if let Some(flag) = local_reply::flag(which) {
                    self.stream.flags.insert(flag);
                }
                self.stream.details = local_reply::details(which);
                self.down.reset();
            }
            Interrupt::Gone(Gone::Closed) => {
                self.stream.flags.insert(Flag::DC);
                self.stream.details = "downstream_remote_disconnect".into();
                self.down.reset();
            }
            Interrupt::Gone(Gone::Malformed) => {
                self.env.hcm.stats.downstream_cx_protocol_error.inc();
                let mut reply = LocalReply::new(400, "Bad Request", "http1.codec_error");
                reply.flag = Some(Flag::DPE);
                self.close = true;
                if self.head_sent || self.respond(reply, false).await.is_err() {
                    self.down.reset();
                }
            }
            Interrupt::Upstream(error) => {
                self.stream.flags.insert(error.flag());
                self.stream.details =
                    format!("upstream_reset_after_response_started{{{}}}", error.details()).into();
                self.env.hcm.stats.rq_reset_after_downstream_response_started.inc();
                self.down.reset();
            }
        }
    }

    /// From the head of the request to the end of the response.
    async fn proxy(&mut self) -> Result<(), Interrupt> {
        if let Some(reply) = self.admit() {
            return self.respond(reply, false).await;
        }
        self.find_route();
        if let Some(reply) = self.require_tls() {
            return self.respond(reply, false).await;
        }
        if let Some(reply) = self.refuse_upgrade() {
            return self.respond(reply, false).await;
        }
        if let Some(reply) = self.request_phases().await? {
            self.name_cluster();
            return self.respond(reply, false).await;
        }
        let Some(route) = self.stream.route.clone() else {
            return self.no_route().await;
        };
        match &route.action {
            Action::Forward(forward) => self.forward(&route, forward).await,
            Action::Redirect(to) => {
                let mut reply = LocalReply::new(to.status, "", "direct_response");
                reply.headers.append(Known::LOCATION, &redirect::location(to, &route, self.stream));
                self.env.hcm.stats.rq_redirect.inc();
                self.respond(reply, true).await
            }
            Action::Direct(direct) => {
                self.env.hcm.stats.rq_direct_response.inc();
                let mut reply = LocalReply::new(direct.status, direct.body.clone(), "direct_response");
                if let Some(format) = &direct.body_format {
                    let mut body = Vec::new();
                    format.format.write_body(self.stream, &mut body);
                    reply.body = body.into();
                    reply.headers.append(Known::CONTENT_TYPE, format.content_type.as_bytes());
                }
                self.respond(reply, true).await
            }
            Action::NonForwarding => {
                let mut reply = LocalReply::new(503, "", "cluster_not_found");
                reply.flag = Some(Flag::NC);
                self.respond(reply, true).await
            }
        }
    }

    /// Checks and prepares what every request needs: Host, path, client address, headers at the edge.
    fn admit(&mut self) -> Option<LocalReply> {
        let hcm = &self.env.hcm;
        let stream = &mut *self.stream;
        if hcm.profile == Profile::Envoy && !self.down.has_host() {
            return Some(LocalReply::new(400, "", "missing_host_header"));
        }
        match path::prepare(&hcm.path, stream) {
            Prepared::Ready => {}
            Prepared::Reject(status, details) => return Some(LocalReply::new(status, "", details)),
            Prepared::Redirect(_) if stream.request.is_grpc() => {
                return Some(LocalReply::new(400, "", "path_normalization_failed"));
            }
            Prepared::Redirect(to) => {
                hcm.stats.downstream_rq_redirected_with_normalized_path.inc();
                let mut reply = LocalReply::new(307, "", "path_normalization_failed");
                reply.headers.append(Known::LOCATION, &to);
                return Some(reply);
            }
        }
        edge::request(hcm, self.table.as_deref(), stream)
    }

    /// Chooses virtual host, route and chain.
    fn find_route(&mut self) {
        self.stream.virtual_host = None;
        self.stream.route = None;
        let found = self.table.as_ref().and_then(|table| table.find(self.stream));
        let Some(found) = found else { return };
        let chain = match &found.route {
            Some(route) => route.chain.as_ref(),
            None => found.virtual_host.options.chain.as_ref(),
        };
        if let Some(chain) = chain {
            self.chain = chain.clone();
        }
        self.stream.virtual_host = Some(found.virtual_host);
        self.stream.route = found.route;
        if let Some(route) = &self.stream.route
            && let Action::Forward(forward) = &route.action
        {
            if forward.timeouts.idle.is_some() {
                self.clock.set_idle(forward.timeouts.idle);
            }
            if let Some(limit) = forward.timeouts.max_stream {
                self.clock.set_max_stream(self.stream.timing.start.into(), Some(limit));
            }
        }
    }

    fn require_tls(&mut self) -> Option<LocalReply> {
        let to = redirect::require_tls(self.stream)?;
        let mut reply = LocalReply::new(301, "", "direct_response");
        reply.headers.append(Known::LOCATION, &to);
        Some(reply)
    }

    /// An upgrade must be enabled by the route or the connection manager.
    fn refuse_upgrade(&mut self) -> Option<LocalReply> {
        let wanted = self.down.upgrade()?;
        let action = &self.stream.route.as_ref()?.action;
        let of_route = match action {
            Action::Forward(f) => f.upgrades.iter().find(|(name, _)| **name == *wanted),
            _ => None,
        };
        let setting = of_route.or_else(|| self.env.hcm.upgrades.iter().find(|(name, _)| **name == *wanted));
        if setting.is_some_and(|(_, enabled)| *enabled) {
            return None;
        }
        if self.env.hcm.profile == Profile::Apisix {
            // nginx drops the headers and forwards an ordinary request.
            self.down.decline_upgrade();
            return None;
        }
        self.name_cluster();
        self.env.hcm.stats.downstream_rq_ws_on_non_ws_route.inc();
        self.close = true;
        Some(LocalReply::new(403, "", "upgrade_failed"))
    }

    /// An answer before the request is forwarded is logged with the cluster it was meant for, as in Envoy.
    fn name_cluster(&mut self) {
        let route = self.stream.route.clone();
        if let Some(Action::Forward(forward)) = route.as_deref().map(|r| &r.action) {
            self.stream.upstream.cluster = choose_cluster(&forward.cluster, self.stream).0;
        }
    }

    /// Runs `rewrite` and `access`; `Some` is an answer without an upstream.
    async fn request_phases(&mut self) -> Result<Option<LocalReply>, Interrupt> {
        let mut from = 0;
        loop {
            let chain = self.chain.clone();
            if let Some(limit) = chain.request_buffer()
                && self.stream.request_body.is_none()
                && let Some(reply) = self.buffer_request(limit).await?
            {
                return Ok(Some(reply));
            }
            let mut cleared = None;
            for phase in [Phases::REWRITE, Phases::ACCESS] {
                if !chain.has(phase) {
                    continue;
                }
                match self.phase(&chain, phase, from).await? {
                    Outcome::Done => {}
                    Outcome::Respond(reply) => return Ok(Some(reply)),
                    Outcome::ClearRoute(slot) => {
                        cleared = Some(slot);
                        break;
                    }
                }
            }
            let Some(slot) = cleared else { return Ok(None) };
            from = slot;
            self.find_route();
        }
    }

    /// Runs one phase that may wait, under the stream's deadlines.
    pub(super) async fn phase(
        &mut self,
        chain: &Chain,
        phase: Phases,
        from: usize,
    ) -> Result<Outcome, Interrupt> {
        let mut running = pin!(chain.run(phase, self.stream, from));
        let (down, clock) = (&mut *self.down, &mut *self.clock);
        poll_fn(|cx| match running.as_mut().poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(Ok(outcome)),
            Poll::Pending => interrupted(down, clock, cx).map(Err),
        })
        .await
    }

    /// Waits for something else under the stream's deadlines.
    pub(super) async fn guarded<F: Future>(&mut self, future: F) -> Result<F::Output, Interrupt> {
        let mut future = pin!(future);
        let (down, clock) = (&mut *self.down, &mut *self.clock);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => interrupted(down, clock, cx).map(Err),
        })
        .await
    }

    /// Reads the whole request body for the plugins that need it.
    async fn buffer_request(&mut self, limit: usize) -> Result<Option<LocalReply>, Interrupt> {
        let mut body = BytesMut::new();
        let (down, clock, stream) = (&mut *self.down, &mut *self.clock, &mut *self.stream);
        let whole = poll_fn(|cx| {
            loop {
                if let Poll::Ready(which) = clock.poll(cx) {
                    return Poll::Ready(Err(Interrupt::Expired(which)));
                }
                match down.poll_body(cx, &mut stream.request_trailers) {
                    Poll::Pending => {
                        let _ = down.poll_flush(cx);
                        return Poll::Pending;
                    }
                    Poll::Ready(Err(gone)) => return Poll::Ready(Err(gone.into())),
                    Poll::Ready(Ok(BodyEvent::End)) => return Poll::Ready(Ok(true)),
                    Poll::Ready(Ok(BodyEvent::Data(piece))) => {
                        if body.len() + piece.as_slice().len() > limit {
                            return Poll::Ready(Ok(false));
                        }
                        body.extend_from_slice(piece.as_slice());
                        stream.bytes.request_body += piece.as_slice().len() as u64;
                        clock.touch();
                    }
                }
            }
        })
        .await?;
        if !whole {
            self.close = true;
            self.env.hcm.stats.downstream_rq_too_large.inc();
            return Ok(Some(LocalReply::new(413, "Payload Too Large", "request_payload_too_large")));
        }
        self.request_complete();
        self.stream.request_body = Some(body.freeze());
        Ok(None)
    }

    /// Notes that the request has been read to its end.
    pub(super) fn request_complete(&mut self) {
        let now = self.clock.touch();
        self.clock.set_request(None);
        self.stream.timing.request_complete = Some(now.into_std());
    }

    async fn no_route(&mut self) -> Result<(), Interrupt> {
        self.env.hcm.stats.no_route.inc();
        let mut reply = LocalReply::new(404, "", "route_not_found");
        reply.flag = Some(Flag::NR);
        if self.env.hcm.profile == Profile::Apisix {
            reply.body = Bytes::from_static(b"{\"error_msg\":\"404 Route Not Found\"}\n");
        }
        self.respond(reply, false).await
    }

    /// Answers by the proxy itself. `routed` applies the route's header changes, as Envoy's router does to its
    /// own answers.
    pub(super) async fn respond(&mut self, reply: LocalReply, routed: bool) -> Result<(), Interrupt> {
        self.clock.touch();
        if reply.reset {
            self.down.reset();
            return Ok(());
        }
        let bad_request = reply.status == 400;
        let body = local_reply::build(self.stream, &self.env.hcm, reply);
        if routed {
            // Envoy's formatters do not see the status yet.
            let status = std::mem::take(&mut self.stream.response.status);
            rewrite::finalize_response(self.table.as_deref(), self.stream);
            self.stream.response.status = status;
        }
        let body = self.response_head(body).await?;
        self.close |= bad_request;
        self.write_head(body.is_empty())?;
        if !body.is_empty() {
            let (down, stream, chain) = (&mut *self.down, &mut *self.stream, &*self.chain);
            poll_fn(|cx| {
                Poll::Ready(write_filtered(down, stream, chain, cx, Piece::Shared(body.clone()), true))
            })
            .await?;
            self.down.finish(&self.stream.response_trailers)?;
        }
        self.flush().await
    }

    /// Runs `header_filter`; a plugin may put another answer in the place of a local one.
    async fn response_head(&mut self, body: Bytes) -> Result<Bytes, Interrupt> {
        let chain = self.chain.clone();
        if !chain.has(Phases::HEADER_FILTER) {
            return Ok(body);
        }
        match self.phase(&chain, Phases::HEADER_FILTER, 0).await? {
            Outcome::Respond(reply) => Ok(local_reply::build(self.stream, &self.env.hcm, reply)),
            _ => Ok(body),
        }
    }

    /// Hands the response's head to the client's connection.
    pub(super) fn write_head(&mut self, end: bool) -> Result<(), Interrupt> {
        let now = self.clock.now();
        edge::response(&self.env.hcm, self.stream);
        // Without the whole request the connection can't carry another one.
        self.close |= !self.down.request_ended() && !self.down.is_http2();
        self.close |= self.env.drain.should_close();
        if self.env.worker.shared.health_failed.load(Relaxed) {
            // `POST /healthcheck/fail`: clients and balancers in front are told to go elsewhere.
            self.close = true;
            self.stream.response.headers.set(Known::X_ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL, b"true");
        }
        let head = &self.stream.response;
        self.stream.bytes.response_head = head.headers.wire_len() as u64;
        self.down.write_head(head, end, self.close)?;
        self.stream.timing.downstream_tx_begin = Some(now.into_std());
        self.head_sent = true;
        Ok(())
    }

    /// Waits until everything has been written.
    pub(super) async fn flush(&mut self) -> Result<(), Interrupt> {
        let (down, clock) = (&mut *self.down, &mut *self.clock);
        poll_fn(|cx| match down.poll_flush(cx) {
            Poll::Ready(done) => Poll::Ready(done.map_err(Interrupt::Gone)),
            Poll::Pending => clock.poll(cx).map(|which| Err(Interrupt::Expired(which))),
        })
        .await?;
        Ok(())
    }

    fn note_timeout(&self, which: Expired) {
        let stats = &self.env.hcm.stats;
        match which {
            Expired::Idle => stats.downstream_rq_idle_timeout.inc(),
            Expired::Request => stats.downstream_rq_timeout.inc(),
            Expired::MaxStream => stats.downstream_rq_max_duration_reached.inc(),
            _ => {}
        }
        if let (Some(cluster), Expired::Route | Expired::PerTry) = (&self.stream.upstream.cluster, which) {
            cluster.stats.upstream_rq_timeout.inc();
        }
    }

    /// Counts and logs the request.
    fn finish(self) {
        let now = self.clock.now();
        let stream = self.stream;
        stream.timing.downstream_tx_end = Some(now.into_std());
        let stats = &self.env.hcm.stats;
        stats.downstream_rq_active.dec();
        stats.downstream_rq_completed.inc();
        match stream.response.status / 100 {
            1 => stats.downstream_rq_1xx.inc(),
            2 => stats.downstream_rq_2xx.inc(),
            3 => stats.downstream_rq_3xx.inc(),
            4 => stats.downstream_rq_4xx.inc(),
            5 => stats.downstream_rq_5xx.inc(),
            _ => {}
        }
        stats.downstream_rq_time.record((now.into_std() - stream.timing.start).as_millis() as u64);
        count_virtual_cluster(stream);
        self.chain.log(stream);
        for log in &self.env.hcm.access_logs {
            log.log(stream);
        }
        if stream.source == ResponseSource::None && stream.response.status != 0 {
            stream.source = ResponseSource::Proxy;
        }
    }
}

/// Counts the request in the first virtual cluster that it belongs to.
fn count_virtual_cluster(stream: &Stream) {
    let Some(clusters) = stream.virtual_host.as_ref().map(|v| &v.options.virtual_clusters) else { return };
    let found = clusters.iter().find(|c| c.headers.iter().all(|m| m.matches(&stream.request)));
    if let Some(cluster) = found {
        cluster.stats.count_status(stream.response.status);
    }
}

/// Ready when a deadline has passed or the client is gone.
pub(super) fn interrupted<D: Downstream>(
    down: &mut D,
    clock: &mut Clock,
    cx: &mut Context<'_>,
) -> Poll<Interrupt> {
    if let Poll::Ready(which) = clock.poll(cx) {
        return Poll::Ready(Interrupt::Expired(which));
    }
    // What was queued before the wait (100 Continue) must not wait with it.
    if let Poll::Ready(Err(gone)) = down.poll_flush(cx) {
        return Poll::Ready(gone.into());
    }
    down.poll_gone(cx).map(|()| Interrupt::Gone(Gone::Closed))
}

/// Writes a piece of the response through the body filters.
pub(super) fn write_filtered<D: Downstream>(
    down: &mut D,
    stream: &mut Stream,
    chain: &Chain,
    cx: &mut Context<'_>,
    piece: Piece<'_>,
    last: bool,
) -> Result<(), Gone> {
    if !chain.has(Phases::BODY_FILTER) {
        stream.bytes.response_body += piece.as_slice().len() as u64;
        return down.write_data(cx, piece);
    }
    let mut chunk = BodyChunk { data: piece.as_slice().into(), last };
    chain.body_filter(stream, &mut chunk);
    stream.bytes.response_body += chunk.data.len() as u64;
    down.write_data(cx, Piece::Borrowed(&chunk.data))
}
