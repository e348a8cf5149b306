//! The way of a response to the client: answers of our own, the head, the end; the response phases on the way.

use super::Env;
use super::clock::{Clock, Expired};
use super::downstream::Downstream;
use super::edge;
use super::exchange::{Exchange, Interrupt, guard};
use super::filtered::FilteredBody;
use super::local_reply;
use super::outgoing::poll_request_body;
use super::pump::write_piece;
use super::stall::Waits;
use crate::deadline::{Timed, within};
use crate::h1::H1Error;
use crate::wire::body::{BodyEvent, Piece};
use crate::wire::h2_headers::Refused;
use bytes::Bytes;
use sixfold_core::budget::Buffered;
use sixfold_core::flags::Flag;
use sixfold_core::hcm::{HttpStats, Profile};
use sixfold_core::headers::{HeaderFault, Known};
use sixfold_core::overload::Act;
use sixfold_core::plugin::{Chain, Direction, HeadPhase, LocalReply};
use sixfold_core::rewrite;
use sixfold_core::stream::Stream;
use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

/// How a head that breaks the rules is answered.
pub(super) struct Refusal {
    /// Status of the answer; `None` resets the stream.
    status: Option<u16>,
    /// Response code details.
    details: &'static str,
    /// What nginx's page says more than the status does.
    told: Option<&'static str>,
}

impl Refusal {
    /// Of bytes that are no request of HTTP/1.
    pub(super) fn of_http1(error: H1Error, profile: Profile) -> Refusal {
        let told = error.told().filter(|_| profile == Profile::Apisix);
        Refusal { status: Some(error.status(profile)), details: error.details(), told }
    }

    /// Of a request that the HTTP/2 library has taken. Envoy's codec resets the stream for what is wrong with
    /// fields; its connection manager answers for the authority, and nginx for everything.
    pub(super) fn of_http2(refused: Refused, profile: Profile) -> Refusal {
        let details = match refused {
            Refused::Fields(HeaderFault::TooMany) => "http2.too_many_headers",
            Refused::Fields(HeaderFault::Underscore) => "http2.unexpected_underscore",
            // nginx alone refuses them, and its log knows no details.
            Refused::Fields(HeaderFault::Repeated) => "",
            Refused::Fields(HeaderFault::Name) => "http2.invalid.header.field",
            Refused::Authority => "http.invalid_authority",
        };
        let is_reset = profile == Profile::Envoy && matches!(refused, Refused::Fields(_));
        Refusal { status: (!is_reset).then_some(400), details, told: None }
    }
}

/// Answers what is no request (`DPE`), as far as it can be answered.
pub(super) async fn refuse<D: Downstream>(
    down: &mut D,
    stream: &mut Stream,
    clock: &mut Clock,
    env: &Env,
    refusal: Refusal,
) {
    let status = refusal.status.unwrap_or_default();
    let mut reply = local_reply::malformed(status, refusal.details, env.hcm.profile);
    if let Some(told) = refusal.told {
        local_reply::show(&mut reply, told);
    }
    if refusal.status.is_none() {
        reply.reset = true;
        stream.flags.insert(Flag::DPE);
        stream.details = Some(refusal.details.into());
    }
    answer_only(Exchange::without_request(down, stream, clock, env), reply).await;
}

/// Answers a request whose head did not come in time.
pub(super) async fn late<D: Downstream>(
    down: &mut D,
    stream: &mut Stream,
    clock: &mut Clock,
    env: &Env,
    which: Expired,
) {
    let exchange = Exchange::without_request(down, stream, clock, env);
    note_timeout(&env.hcm.stats, which);
    answer_only(exchange, local_reply::expired(which, false, env.hcm.profile)).await;
}

/// Logs a request whose client left before its head was complete.
pub(super) async fn left<D: Downstream>(down: &mut D, stream: &mut Stream, clock: &mut Clock, env: &Env) {
    env.hcm.stats.downstream_rq_rx_reset().inc();
    let mut exchange = Exchange::without_request(down, stream, clock, env);
    let status = if env.hcm.profile == Profile::Apisix { 400 } else { 0 };
    exchange.client_lost(Flag::DC, "downstream_remote_disconnect", status);
    exchange.conclude(Ok(())).await;
}

/// Counts a deadline of the connection manager that has passed.
pub(super) fn note_timeout(stats: &HttpStats, which: Expired) {
    match which {
        Expired::Idle => stats.downstream_rq_idle_timeout().inc(),
        Expired::Head => stats.downstream_rq_header_timeout().inc(),
        Expired::Request => stats.downstream_rq_timeout().inc(),
        Expired::MaxStream => stats.downstream_rq_max_duration_reached().inc(),
        _ => {}
    }
}

async fn answer_only<D: Downstream>(mut exchange: Exchange<'_, D>, reply: LocalReply) {
    exchange.close = true;
    if exchange.respond(reply).await.is_err() {
        exchange.down.reset();
    }
    exchange.conclude(Ok(())).await;
}

/// Tells the client how many attempts were made, where its virtual host says so.
pub(super) fn tell_attempts(stream: &mut Stream) {
    if stream.virtual_host.as_ref().is_some_and(|host| host.options.attempt_count_in_response) {
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(stream.upstream.attempts);
        stream.response.headers.set(Known::X_ENVOY_ATTEMPT_COUNT, digits.as_bytes());
    }
}

impl<'a, D: Downstream> Exchange<'a, D> {
    /// What is answered without its request: no filter sees it, and its answer has the time of a stream that begins.
    fn without_request(
        down: &'a mut D,
        stream: &'a mut Stream,
        clock: &'a mut Clock,
        env: &'a Env,
    ) -> Exchange<'a, D> {
        let (timeouts, start) = (&env.hcm.timeouts, clock.restart());
        clock.begin_stream(start, timeouts, env.overload.as_ref());
        if timeouts.stream_idle.is_none_or(|d| d.is_zero()) {
            clock.set_idle(timeouts.idle);
        }
        let mut exchange = Exchange::new(down, stream, clock, env);
        exchange.chain = Cow::Owned(Chain::empty());
        exchange
    }
}

impl<D: Downstream> Exchange<'_, D> {
    /// Answers by the proxy itself: the one door for such answers. Whoever makes one, the route that was chosen
    /// has its header changes made (Envoy's `DownstreamFilterManager::sendLocalReply`).
    pub(super) async fn respond(&mut self, reply: LocalReply) -> Result<(), Interrupt> {
        self.clock.touch();
        if reply.reset {
            self.down.reset();
            return Ok(());
        }
        if self.discards_request() {
            self.discard_request().await;
        }
        let bad_request = reply.status == 400;
        let body = self.put_reply(reply);
        let mut body = self.response_head(body).await?;
        if self.has_no_body() {
            body = Bytes::new();
        }
        self.close |= bad_request;
        if self.stream.response_head_held().is_some() && !body.is_empty() {
            return self.write_held(body).await;
        }
        self.write_head(body.is_empty())?;
        if !body.is_empty() {
            self.write_body(body).await?;
        }
        self.flush().await
    }

    /// Puts a reply in the place of the response; answers its body.
    fn put_reply(&mut self, reply: LocalReply) -> Bytes {
        let table = self.table_options.as_deref();
        let (as_it_is, after_attempts) = (reply.as_it_is, reply.after_attempts);
        let body = local_reply::build(self.stream, &self.env.hcm, reply, |stream| {
            if stream.route.is_some() && !as_it_is {
                // Envoy's formatters do not see the status yet.
                let status = std::mem::take(&mut stream.response.status);
                rewrite::finalize_response(table, stream);
                stream.response.status = status;
                if after_attempts {
                    tell_attempts(stream);
                }
            }
        });
        edge::name_gateway(&self.env.hcm, self.stream);
        body
    }

    /// Whether the rest of the request is of use to nobody but the connection, which carries another request once it
    /// is read. nginx discards it with any answer (`ngx_http_discard_request_body`). Envoy has read what came while
    /// it waited, and closes the connection with an answer that it gives at once.
    pub(super) fn discards_request(&mut self) -> bool {
        let nginx = self.env.hcm.profile == Profile::Apisix;
        if nginx && !self.close {
            // It has no tunnel to become: the head is a request like any other.
            self.down.decline_upgrade();
        }
        let unread = !self.down.is_http2() && self.down.upgrade().is_none() && !self.down.request_ended();
        unread && !self.close && (nginx || self.waited)
    }

    /// Reads what has come of the request's body, within the limits of bodies and buffers. Waits for nothing.
    pub(super) async fn discard_request(&mut self) {
        let hcm = &self.env.hcm;
        let (down, stream, mut room) = (&mut *self.down, &mut *self.stream, hcm.buffer_limit);
        let read = |_: &mut Clock, cx: &mut Timed<'_>| {
            loop {
                match poll_request_body(down, stream, hcm.max_body, cx) {
                    Poll::Ready(Ok(BodyEvent::Data(piece))) => {
                        room = room.saturating_sub(piece.as_slice().len());
                        if room == 0 {
                            return Poll::Ready(false);
                        }
                    }
                    Poll::Ready(Ok(BodyEvent::End)) => return Poll::Ready(true),
                    Poll::Ready(Err(_)) | Poll::Pending => return Poll::Ready(false),
                }
            }
        };
        if within(self.clock, read).await.is_ok_and(|ended| ended) {
            self.request_complete();
        }
    }

    /// Writes a body that is there as a whole through the plugins, and ends the response.
    pub(super) async fn write_body(&mut self, body: Bytes) -> Result<(), Interrupt> {
        let mut filtered =
            FilteredBody::new(Direction::Response, &self.chain, self.stream, &self.env.worker.shared.bodies);
        let mut next = filtered.push(self.stream, Piece::Shared(body), true)?.map(BodyEvent::Data);
        loop {
            match next.take() {
                Some(BodyEvent::Data(piece)) => self.write_piece(piece).await?,
                Some(BodyEvent::End) => break,
                None => {}
            }
            let (stream, filtered) = (&mut *self.stream, &mut filtered);
            let polled = pin!(poll_fn(|cx| filtered.poll(stream, cx)));
            next = guard(self.down, self.clock, polled).await??;
        }
        self.down.finish(&self.stream.response_trailers)?;
        Ok(())
    }

    /// Passes a body that is there as a whole through the plugins, and writes the head when they have seen all of it.
    async fn write_held(&mut self, body: Bytes) -> Result<(), Interrupt> {
        let bodies = &self.env.worker.shared.bodies;
        let mut filtered = FilteredBody::new(Direction::Response, &self.chain, self.stream, bodies);
        let mut whole = Buffered::new(bodies);
        let mut next = filtered.push(self.stream, Piece::Shared(body), true)?.map(BodyEvent::Data);
        loop {
            match next.take() {
                Some(BodyEvent::Data(piece)) if !whole.push(piece.as_slice()) => {
                    return Err(Interrupt::OverBudget);
                }
                Some(BodyEvent::End) => break,
                Some(BodyEvent::Data(_)) | None => {}
            }
            let (stream, filtered) = (&mut *self.stream, &mut filtered);
            let polled = pin!(poll_fn(|cx| filtered.poll(stream, cx)));
            next = guard(self.down, self.clock, polled).await??;
        }
        self.write_whole(whole).await
    }

    /// Writes a response whose plugins have had their turn: head, body, trailers.
    pub(super) async fn write_whole(&mut self, whole: Buffered) -> Result<(), Interrupt> {
        let (body, _held) = whole.finish();
        let ends = body.is_empty() && self.stream.response_trailers.is_empty();
        self.write_head(ends)?;
        if !ends {
            if !body.is_empty() {
                self.write_piece(Piece::Shared(body)).await?;
            }
            self.down.finish(&self.stream.response_trailers)?;
        }
        self.flush().await
    }

    pub(super) async fn write_piece(&mut self, piece: Piece<'_>) -> Result<(), Interrupt> {
        let (down, stream, mut piece) = (&mut *self.down, &mut *self.stream, Some(piece));
        let write = |_: &mut Clock, cx: &mut Timed<'_>| {
            Poll::Ready(piece.take().map_or(Ok(()), |piece| write_piece(down, stream, cx, piece)))
        };
        Ok(within(self.clock, write).await??)
    }

    /// Runs `header_filter`; a plugin may put another answer in the place of a local one.
    async fn response_head(&mut self, body: Bytes) -> Result<Bytes, Interrupt> {
        if !self.chain.has(HeadPhase::HeaderFilter) {
            return Ok(body);
        }
        self.stream.ends_with_head = body.is_empty() || self.has_no_body();
        Ok(match self.header_filters().await? {
            Some(reply) => self.put_reply(reply),
            None => body,
        })
    }

    /// Whether the response ends with its head, whatever body there is for it (RFC 9110 sections 6.4.1 and 9.3.2). It
    /// is asked here, for both codecs, so that no body is made, counted or filtered that nobody gets.
    pub(super) fn has_no_body(&self) -> bool {
        self.down.wants_head_alone() || self.stream.response.has_no_body()
    }

    /// Hands the response's head to the client's connection.
    pub(super) fn write_head(&mut self, end: bool) -> Result<(), Interrupt> {
        let now = self.clock.now();
        self.stream.bytes.traffic = self.down.traffic();
        edge::response(&self.env.hcm, now, self.stream);
        // Without the whole request the connection can't carry another one.
        self.close |= !self.down.request_ended() && !self.down.is_http2();
        self.close |= self.env.drain.should_close();
        let overload = self.env.overload.as_ref();
        if !self.close && overload.is_some_and(|overload| overload.acts(Act::DisableKeepAlive)) {
            self.close = true;
            self.env.hcm.stats.downstream_cx_overload_disable_keepalive().inc();
        }
        if self.env.worker.shared.health_failed.load(Relaxed) {
            // `POST /healthcheck/fail`: clients and balancers in front are told to go elsewhere.
            self.close = true;
            self.stream.response.headers.set(Known::X_ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL, b"true");
        }
        self.stream.response.connection_bytes =
            self.down.write_head(&self.stream.response, end, self.close)?;
        self.stream.response.chunked = self.down.is_chunked();
        self.stream.bytes.head_end = self.down.traffic().sent;
        let stats = &self.env.hcm.stats;
        if !self.stream.health_check {
            stats.downstream_rq_completed().inc();
            stats.count_class(self.stream.response.status);
        }
        if !self.down.request_ended() {
            stats.downstream_rq_response_before_rq_complete().inc();
        }
        self.stream.timing.downstream_tx_begin = Some(now.into_std());
        self.head_sent = true;
        Ok(())
    }

    /// Waits until everything has been written.
    pub(super) async fn flush(&mut self) -> Result<(), Interrupt> {
        let down = &mut *self.down;
        let flushed = within(self.clock, |clock, cx| {
            let flushed = down.poll_flush(cx);
            clock.watch(Waits { client_write: down.backlog(), ..Waits::default() });
            flushed
        });
        Ok(flushed.await??)
    }
}
