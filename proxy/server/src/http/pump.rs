//! Passing a response on while the rest of the request may still be coming: both directions in one loop, each
//! held back by the other side's watermark.

use super::clock::Clock;
use super::downstream::{Downstream, DownstreamError};
use super::exchange::{Exchange, Interrupt};
use super::filtered::FilteredBody;
use super::outgoing::{Outgoing, Replay, SendError};
use super::request_body::RequestBody;
use super::stall::Waits;
use crate::buffer::TURN;
use crate::deadline::{Timed, within};
use crate::upstream::UpstreamStream;
use crate::wire::body::{BodyEvent, Piece};
use bytes::Bytes;
use sixfold_core::budget::Buffered;
use sixfold_core::hcm::Profile;
use sixfold_core::plugin::{Direction, LocalReply};
use sixfold_core::stream::Stream;
use std::task::Poll;

/// Both directions of an exchange whose response has begun.
struct Pump<'p, D> {
    down: &'p mut D,
    up: &'p mut UpstreamStream,
    stream: &'p mut Stream,
    /// What is left of the request, what of it is in memory, and its filters.
    body: &'p mut Outgoing,
    replay: &'p mut Replay,
    request: &'p mut RequestBody,
    response: &'p mut Response,
    /// The last look found nothing new from the upstream: it is its turn.
    owed: bool,
}

/// How far the response is.
struct Response {
    filters: FilteredBody,
    /// `None` once the head has gone out.
    held: Option<Held>,
    /// It has been handed over to its end.
    ended: bool,
}

impl<D: Downstream> Exchange<'_, D> {
    /// Writes the head, then both bodies. `end`: no response body follows; `body`: what is left of the request;
    /// `tunnel`: both directions are bytes until the upstream ends, or the client leaves.
    pub(super) async fn pump(
        &mut self,
        up: &mut UpstreamStream,
        end: bool,
        tunnel: bool,
        body: &mut Outgoing,
        replay: &mut Replay,
    ) -> Result<(), Interrupt> {
        let bodiless = !tunnel && self.has_no_body();
        let end = end || bodiless;
        // To Envoy's filters what goes through a tunnel is a body that streams; to plugins of APISIX it is none.
        let unseen = tunnel && self.env.hcm.profile == Profile::Apisix;
        let filters = match unseen || bodiless {
            true => FilteredBody::unfiltered(Direction::Response),
            false => {
                let bodies = &self.env.worker.shared.bodies;
                FilteredBody::new(Direction::Response, &self.chain, self.stream, bodies)
            }
        };
        let limit = self.stream.response_head_held();
        if end && filters.is_filtered() && limit.is_none() {
            self.write_head(false)?;
            self.write_body(Bytes::new()).await?;
            return self.flush().await;
        }
        // Neither side of a tunnel says anything before its head is there.
        let held = limit.filter(|_| filters.is_filtered() && !end && !tunnel).map(|limit| Held {
            pieces: Buffered::new(&self.env.worker.shared.bodies),
            limit: limit.max(self.env.hcm.buffer_limit),
        });
        if held.is_none() {
            self.write_head(end)?;
        }
        if tunnel {
            self.down.become_tunnel();
        }
        if end {
            return self.flush().await;
        }
        let mut response = Response { filters, held, ended: false };
        loop {
            let mut pump = Pump {
                down: &mut *self.down,
                up,
                stream: &mut *self.stream,
                body,
                replay,
                request: &mut self.request_body,
                response: &mut response,
                owed: false,
            };
            within(self.clock, |clock, cx| pump.poll(clock, cx)).await??;
            match response.held.take() {
                None => return Ok(()),
                Some(held) if response.ended => return self.write_whole(held.pieces).await,
                Some(held) => self.write_begun(held.pieces).await?,
            }
        }
    }

    /// Writes the head and what has come of the body.
    async fn write_begun(&mut self, begun: Buffered) -> Result<(), Interrupt> {
        let (begun, _held) = begun.finish();
        self.write_head(false)?;
        if begun.is_empty() { Ok(()) } else { self.write_piece(Piece::Shared(begun)).await }
    }
}

/// What of a response waits for the rest of it, behind its head.
struct Held {
    pieces: Buffered,
    /// Bytes, at most.
    limit: usize,
}

impl Response {
    /// Keeps a piece, or hands it to the client's connection.
    fn pass<D: Downstream>(
        &mut self,
        down: &mut D,
        stream: &mut Stream,
        cx: &mut Timed<'_>,
        piece: Piece<'_>,
    ) -> Result<(), Interrupt> {
        let Some(Held { pieces, limit }) = &mut self.held else {
            return Ok(write_piece(down, stream, cx, piece)?);
        };
        if pieces.as_slice().len() + piece.as_slice().len() > *limit {
            let reply = LocalReply::new(500, "", "response_payload_too_large");
            return Err(Interrupt::Refused(Box::new(reply)));
        }
        if pieces.push(piece.as_slice()) { Ok(()) } else { Err(Interrupt::OverBudget) }
    }
}

/// What came of looking for more of the response.
#[derive(PartialEq, Eq)]
enum Received {
    Nothing,
    Some,
    /// The end, and the trailers are in the stream.
    End,
}

impl<D: Downstream> Pump<'_, D> {
    /// Ready with the end of the response, or when a head that was held may go.
    fn poll(&mut self, clock: &mut Clock, cx: &mut Timed<'_>) -> Poll<Result<(), Interrupt>> {
        // One look at the clock for all that comes at once.
        let mut moved = false;
        let before = self.passed();
        loop {
            let sent = self.send(clock, cx)?;
            match self.receive(clock, cx)? {
                Received::End => {
                    let flushed = self.down.poll_flush(cx);
                    clock.watch(Waits { client_write: self.down.backlog(), ..Waits::default() });
                    return flushed.map_err(Interrupt::Downstream);
                }
                _ if self.response.held.is_some() && self.stream.response_head_held().is_none() => {
                    return Poll::Ready(Ok(()));
                }
                Received::Nothing if !sent => {}
                _ => {
                    moved = true;
                    if self.passed() - before < TURN {
                        continue;
                    }
                    cx.waker().wake_by_ref();
                }
            }
            if moved {
                clock.touch();
            }
            self.up.poll_ahead(cx);
            let _ = self.up.poll_flush(cx);
            if let Poll::Ready(Err(gone)) = self.down.poll_flush(cx) {
                return Poll::Ready(Err(gone.into()));
            }
            if self.body.rests()
                && let Poll::Ready(gone) = self.down.poll_closed(cx)
            {
                return Poll::Ready(Err(gone.into()));
            }
            clock.watch(self.waits());
            return Poll::Pending;
        }
    }

    /// Bytes that were passed on so far, both ways.
    fn passed(&self) -> u64 {
        self.stream.bytes.upstream_sent + self.stream.bytes.upstream_received
    }

    /// Whose turn it is. In a tunnel either side may speak, and an upstream owes nothing before it has all it
    /// asked for.
    fn waits(&self) -> Waits {
        let bytes = &self.stream.bytes;
        let tunnel = self.body.is_tunnel();
        let owed = self.owed && (tunnel || self.body.done);
        Waits {
            client_body: (self.body.is_starved() && !tunnel).then_some(bytes.request_body),
            client_write: self.down.backlog(),
            upstream_write: self.up.backlog(),
            upstream_read: owed.then_some(bytes.upstream_received + bytes.upstream_sent),
        }
    }

    /// Passes more of the request on; tells whether there was any.
    fn send(&mut self, clock: &mut Clock, cx: &mut Timed<'_>) -> Result<bool, Interrupt> {
        match self.body.poll_send(self.down, self.up, self.stream, self.replay, self.request, cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(false)) => {}
            Poll::Ready(Ok(true)) => {
                self.stream.timing.request_complete = Some(clock.touch().into_std());
            }
            // A failed write is not the end of the response.
            Poll::Ready(Err(SendError::Upstream(_))) => self.body.done = true,
            Poll::Ready(Err(SendError::Downstream(interrupt))) => return Err(interrupt),
        }
        Ok(true)
    }

    /// Passes more of the response on, or its end.
    fn receive(&mut self, clock: &mut Clock, cx: &mut Timed<'_>) -> Result<Received, Interrupt> {
        self.owed = false;
        if self.response.ended {
            return Ok(Received::End);
        }
        if self.down.poll_writable(cx)?.is_pending() {
            return Ok(Received::Nothing);
        }
        if self.response.filters.is_under_way() {
            match self.drain(cx)? {
                Poll::Pending => return Ok(Received::Nothing),
                Poll::Ready(Received::Nothing) => {}
                Poll::Ready(received) => return Ok(received),
            }
        }
        match self.up.poll_body(cx, &mut self.stream.response_trailers) {
            Poll::Pending => {
                self.owed = true;
                Ok(Received::Nothing)
            }
            Poll::Ready(Ok(BodyEvent::Data(piece))) => {
                self.stream.bytes.upstream_received += piece.as_slice().len() as u64;
                if let Some(piece) = self.response.filters.push(self.stream, piece, false)? {
                    self.response.pass(self.down, self.stream, cx, piece)?;
                }
                // Most bodies end with their last piece, and filters have their turn before.
                match (self.up.has_all(), self.response.filters.is_filtered()) {
                    (true, false) => return self.end(clock, cx),
                    (true, true) => clock.end_upstream(),
                    (false, _) => {}
                }
                Ok(Received::Some)
            }
            Poll::Ready(Ok(BodyEvent::End)) => self.end(clock, cx),
            Poll::Ready(Err(error)) => {
                // What came before the failure is passed on before the response is cut.
                let _ = self.down.poll_flush(cx);
                Err(Interrupt::Upstream(error))
            }
        }
    }

    /// Nothing more comes from the upstream.
    fn end(&mut self, clock: &mut Clock, cx: &mut Timed<'_>) -> Result<Received, Interrupt> {
        // Plugins may have taken their time with what came before.
        let now = if self.response.filters.is_filtered() { clock.touch() } else { clock.touch_if_waited() };
        self.stream.timing.upstream_rx_end = Some(now.into_std());
        clock.end_upstream();
        if let Some(piece) = self.response.filters.push(self.stream, Piece::Borrowed(&[]), true)? {
            self.response.pass(self.down, self.stream, cx, piece)?;
        }
        match self.drain(cx)? {
            Poll::Ready(received) => Ok(received),
            Poll::Pending => Ok(Received::Some),
        }
    }

    /// Passes on what comes out of the filters by itself.
    fn drain(&mut self, cx: &mut Timed<'_>) -> Result<Poll<Received>, Interrupt> {
        let mut received = Received::Nothing;
        loop {
            match self.response.filters.poll(self.stream, cx)? {
                Poll::Pending if received == Received::Nothing => return Ok(Poll::Pending),
                Poll::Pending | Poll::Ready(None) => return Ok(Poll::Ready(received)),
                Poll::Ready(Some(BodyEvent::Data(piece))) => {
                    self.response.pass(self.down, self.stream, cx, piece)?;
                    received = Received::Some;
                }
                Poll::Ready(Some(BodyEvent::End)) => {
                    if self.response.held.is_none() {
                        self.down.finish(&self.stream.response_trailers)?;
                    }
                    self.response.ended = true;
                    return Ok(Poll::Ready(Received::End));
                }
            }
        }
    }
}

/// Hands a piece of the response to the client's connection.
pub(super) fn write_piece<D: Downstream>(
    down: &mut D,
    stream: &mut Stream,
    cx: &mut Timed<'_>,
    piece: Piece<'_>,
) -> Result<(), DownstreamError> {
    stream.bytes.response_body += piece.as_slice().len() as u64;
    down.write_data(cx, piece)
}
