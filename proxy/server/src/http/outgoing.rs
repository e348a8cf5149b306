//! The request body on its way to an upstream: replayed, buffered or live.

use super::downstream::{Downstream, DownstreamError};
use super::exchange::Interrupt;
use super::mirror::Mirrors;
use super::request_body::RequestBody;
use super::stall::Waits;
use crate::deadline::Timed;
use crate::upstream::{UpstreamError, UpstreamStream};
use crate::wire::body::{BodyEvent, Piece};
use bytes::Bytes;
use sixfold_core::budget::{Buffered, ByteBudget, Reservation};
use sixfold_core::headers::Headers;
use sixfold_core::stream::Stream;
use std::sync::Arc;
use std::task::{Poll, ready};

/// Bytes of a body in memory that are written at once: the rest waits for the upstream's watermark.
const STRIDE: usize = 64 << 10;

/// What is made of the request body beside sending it: its start is kept for another attempt, and mirrors get it too.
pub(super) struct Replay {
    /// `None` where nothing is kept, which is of most requests.
    kept: Option<Buffered>,
    limit: usize,
    /// More came than the limit or the process allows: no retry any more.
    overflowed: bool,
    wanted: bool,
    mirrors: Option<Box<Mirrors>>,
}

/// Why sending the body stopped.
pub(super) enum SendError {
    /// On the client's side.
    Downstream(Interrupt),
    /// On the upstream's side.
    Upstream(UpstreamError),
}

/// The next piece of the request body, counted: first what was read ahead of it. Bytes beyond `max` end the request.
pub(super) fn poll_request_body<'d, D: Downstream>(
    down: &'d mut D,
    stream: &mut Stream,
    max: Option<u64>,
    cx: &mut Timed<'_>,
) -> Poll<Result<BodyEvent<'d>, Interrupt>> {
    if let Some(read_ahead) = stream.read_ahead.take().filter(|read_ahead| !read_ahead.is_empty()) {
        return Poll::Ready(Ok(BodyEvent::Data(Piece::Shared(*read_ahead))));
    }
    let event = ready!(down.poll_body(cx, &mut stream.request_trailers))?;
    if let BodyEvent::Data(piece) = &event {
        stream.bytes.request_body += piece.as_slice().len() as u64;
        if max.is_some_and(|max| stream.bytes.request_body > max) {
            return Poll::Ready(Err(Interrupt::TooLarge));
        }
    }
    Poll::Ready(Ok(event))
}

/// The body of one attempt: first what is in memory of it, then what the client still sends. It goes on, where it
/// stands, once the response has begun.
pub(super) struct Outgoing {
    /// Bytes sent of what an earlier attempt kept.
    replayed: usize,
    /// What is left of the whole body, where a plugin wanted it.
    buffered: Option<Bytes>,
    /// Bytes that the client may send in all.
    max: Option<u64>,
    /// Nothing is left to be sent.
    pub(super) done: bool,
    /// The last look found the upstream ready and nothing new from the client.
    starved: bool,
    phase: Upgrading,
}

/// How far an upgrade has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upgrading {
    /// There is none: bytes are a body.
    No,
    /// The request has a body of its own, and its bytes come first.
    Body,
    /// Nothing is sent before the upstream agrees.
    Asked,
    /// Bytes are those of a tunnel.
    Done,
}

impl Outgoing {
    /// The body of an attempt; `done` when the head is all.
    pub(super) fn new(buffered: Option<Bytes>, max: Option<u64>, done: bool, upgrade: bool) -> Outgoing {
        let phase = match upgrade {
            true if done => Upgrading::Asked,
            true => Upgrading::Body,
            false => Upgrading::No,
        };
        Outgoing { replayed: 0, buffered, max, done: done && !upgrade, starved: false, phase }
    }

    /// Of an attempt that has not begun.
    pub(super) fn none() -> Outgoing {
        Outgoing::new(None, None, true, false)
    }

    /// The upstream has agreed to the upgrade. What goes through a tunnel is no body: it has no limit.
    pub(super) fn become_tunnel(&mut self) {
        self.phase = Upgrading::Done;
        self.max = None;
    }

    /// The upstream has answered an upgrade by a response: there is no body but the request's own.
    pub(super) fn end_without_upgrade(&mut self) {
        self.done |= self.phase == Upgrading::Asked;
        if self.phase == Upgrading::Body {
            self.phase = Upgrading::No;
        }
    }

    /// Whether the body of the request of an upgrade has not been sent whole.
    pub(super) fn comes_first(&self) -> bool {
        self.phase == Upgrading::Body
    }

    /// Whether bytes are those of a tunnel.
    pub(super) fn is_tunnel(&self) -> bool {
        self.phase == Upgrading::Done
    }

    /// Whether it is the client's turn.
    pub(super) fn is_starved(&self) -> bool {
        self.starved
    }

    /// Whether the client is not read from.
    pub(super) fn rests(&self) -> bool {
        self.done || self.phase == Upgrading::Asked
    }

    /// Sends the next piece; `true` when that was the end.
    pub(super) fn poll_send<D: Downstream>(
        &mut self,
        down: &mut D,
        up: &mut UpstreamStream,
        stream: &mut Stream,
        replay: &mut Replay,
        filtered: &mut RequestBody,
        cx: &mut Timed<'_>,
    ) -> Poll<Result<bool, SendError>> {
        self.starved = false;
        if self.rests() {
            return Poll::Pending;
        }
        ready!(up.poll_writable(cx)).map_err(SendError::Upstream)?;
        if let Some(body) = &mut self.buffered {
            let before = body.len();
            let sent = self.send_stored(up, &stream.request_trailers, cx).map_err(SendError::Upstream)?;
            let left = self.buffered.as_ref().map_or(0, Bytes::len);
            stream.bytes.upstream_sent += (before - left) as u64;
            return Poll::Ready(Ok(sent));
        }
        if let Some(piece) = replay.next(self.replayed) {
            self.replayed += piece.len();
            stream.bytes.upstream_sent += piece.len() as u64;
            up.write_data(cx, Piece::Borrowed(piece)).map_err(SendError::Upstream)?;
            return Poll::Ready(Ok(false));
        }
        // Over HTTP/1 the end of the connection is how a client leaves; over HTTP/2 it ends its side alone, and leaves by
        // a reset.
        let leaves = self.phase == Upgrading::Done && !down.is_http2();
        let next = filtered.poll(down, stream, self.max, cx);
        self.starved = next.is_pending() && !filtered.is_waiting();
        match ready!(next).map_err(SendError::Downstream)? {
            BodyEvent::Data(piece) => {
                let bytes = piece.as_slice();
                stream.bytes.upstream_sent += bytes.len() as u64;
                let had_room = !replay.overflowed;
                self.replayed = replay.keep(bytes);
                if let (true, true, Some(cluster)) = (had_room, replay.overflowed, &stream.upstream.cluster) {
                    cluster.stats.retry_or_shadow_abandoned().inc();
                }
                if let Some(mirrors) = &mut replay.mirrors {
                    mirrors.push(&piece);
                }
                up.write_data(cx, piece).map_err(SendError::Upstream)?;
                Poll::Ready(Ok(false))
            }
            BodyEvent::End if leaves => {
                Poll::Ready(Err(SendError::Downstream(DownstreamError::Closed.into())))
            }
            BodyEvent::End => {
                if let Some(mut mirrors) = replay.mirrors.take() {
                    mirrors.end(&stream.request_trailers);
                }
                self.finish(up, stream)
            }
        }
    }

    /// Sends the next piece of a body in memory; `true` when that was the end.
    fn send_stored(
        &mut self,
        up: &mut UpstreamStream,
        trailers: &Headers,
        cx: &mut Timed<'_>,
    ) -> Result<bool, UpstreamError> {
        let body = self.buffered.get_or_insert_default();
        let piece = body.split_to(body.len().min(STRIDE));
        let last = body.is_empty();
        if !piece.is_empty() {
            up.write_data(cx, Piece::Shared(piece))?;
        }
        if last {
            self.done = true;
            up.finish(trailers)?;
        }
        Ok(last)
    }

    /// Takes what is left of a body that was read to its end, so that the attempt can go on by itself.
    pub(super) fn detach(&mut self, replay: &Replay) {
        if !self.done && self.buffered.is_none() {
            let rest = replay.as_slice().get(self.replayed..).unwrap_or_default();
            self.buffered = Some(Bytes::copy_from_slice(rest));
        }
    }

    /// Sends the next piece of what is left then; `true` when that was the end.
    pub(super) fn poll_rest(
        &mut self,
        up: &mut UpstreamStream,
        trailers: &Headers,
        cx: &mut Timed<'_>,
    ) -> Poll<Result<bool, UpstreamError>> {
        if self.done {
            return Poll::Pending;
        }
        ready!(up.poll_writable(cx))?;
        Poll::Ready(self.send_stored(up, trailers, cx))
    }

    /// Whom the exchange of heads waits for. Before it has the whole request an upstream owes nothing.
    pub(super) fn waits<D: Downstream>(&self, down: &D, up: &UpstreamStream, stream: &Stream) -> Waits {
        let upstream_write = up.backlog();
        Waits {
            client_body: self.starved.then_some(stream.bytes.request_body),
            client_write: down.backlog(),
            upstream_write,
            upstream_read: (upstream_write.is_none() && self.rests()).then_some(0),
        }
    }

    fn finish(&mut self, up: &mut UpstreamStream, stream: &Stream) -> Poll<Result<bool, SendError>> {
        match self.phase {
            Upgrading::Body => (self.phase, self.buffered) = (Upgrading::Asked, None),
            _ => self.done = true,
        }
        Poll::Ready(up.finish(&stream.request_trailers).map(|()| true).map_err(SendError::Upstream))
    }
}

impl Replay {
    /// Keeps up to `limit` bytes, if they are `wanted`.
    pub(super) fn new(budget: &Arc<ByteBudget>, limit: usize, wanted: bool) -> Replay {
        Replay {
            kept: wanted.then(|| Buffered::new(budget)),
            limit,
            overflowed: false,
            wanted,
            mirrors: None,
        }
    }

    /// Has mirrors get what comes of the body from here on.
    pub(super) fn mirror_to(&mut self, mirrors: Mirrors) {
        self.mirrors = Some(Box::new(mirrors));
    }

    /// Bytes that are kept at most.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// What was kept, and its place among the bodies that the process holds.
    pub(super) fn take(&mut self) -> Option<(Bytes, Reservation)> {
        self.kept.take().map(Buffered::finish)
    }

    /// Whether all that was read of the body is still there to be sent again.
    pub(super) fn is_whole(&self, stream: &Stream) -> bool {
        let read = stream.bytes.request_body > 0;
        !read || stream.request_body.is_some() || (self.wanted && !self.overflowed)
    }

    /// More came than could be kept.
    pub(super) fn has_overflowed(&self) -> bool {
        self.overflowed
    }

    /// Whether nothing has to be sent again.
    pub(super) fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    fn as_slice(&self) -> &[u8] {
        self.kept.as_ref().map_or(&[], Buffered::as_slice)
    }

    /// The response has begun: nothing more is kept, and what was sent already is freed.
    pub(super) fn release(&mut self, sent: &Outgoing) {
        self.wanted = false;
        if sent.replayed >= self.as_slice().len() {
            self.kept = None;
        }
    }

    fn next(&self, sent: usize) -> Option<&[u8]> {
        let rest = self.as_slice().get(sent..)?;
        let piece = &rest[..rest.len().min(STRIDE)];
        (!piece.is_empty()).then_some(piece)
    }

    /// Keeps a piece that goes out now; answers how much is kept.
    fn keep(&mut self, bytes: &[u8]) -> usize {
        match &mut self.kept {
            Some(kept) if self.wanted => {
                let fits = kept.as_slice().len() + bytes.len() <= self.limit;
                if !fits || !kept.push(bytes) {
                    self.overflowed = true;
                    self.kept = None;
                }
            }
            // What the response found unsent has gone out before this piece.
            _ => self.kept = None,
        }
        self.as_slice().len()
    }
}
