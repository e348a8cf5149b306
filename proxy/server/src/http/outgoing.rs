//! The request body on its way to an upstream: replayed, buffered or live.

use super::body::{BodyEvent, Piece};
use super::downstream::Downstream;
use super::exchange::Interrupt;
use super::filtered::{FilteredBody, poll_filtered_request};
use super::stall::Waits;
use crate::deadline::Timed;
use crate::upstream::{UpstreamError, UpstreamStream};
use sixfold_core::stream::Stream;
use std::task::{Poll, ready};

/// The start of the request body, kept for another attempt.
pub(super) struct Replay {
    pub(super) kept: Vec<u8>,
    pub(super) limit: usize,
    /// More came than the limit allows: no retry any more.
    pub(super) overflowed: bool,
    pub(super) wanted: bool,
}

/// Why sending the body stopped.
pub(super) enum SendError {
    /// On the client's side.
    Downstream(Interrupt),
    /// On the upstream's side.
    Upstream(UpstreamError),
}

/// The next piece of the request body, counted. Bytes beyond `max` end the request.
pub(super) fn poll_request_body<'d, D: Downstream>(
    down: &'d mut D,
    stream: &mut Stream,
    max: Option<u64>,
    cx: &mut Timed<'_>,
) -> Poll<Result<BodyEvent<'d>, Interrupt>> {
    let event = ready!(down.poll_body(cx, &mut stream.request_trailers))?;
    if let BodyEvent::Data(piece) = &event {
        stream.bytes.request_body += piece.as_slice().len() as u64;
        if max.is_some_and(|max| stream.bytes.request_body > max) {
            return Poll::Ready(Err(Interrupt::TooLarge));
        }
    }
    Poll::Ready(Ok(event))
}

/// The body of one attempt: first what was kept of an earlier one, then what the client still sends.
pub(super) struct Outgoing {
    pub(super) replayed: usize,
    /// The whole body, where a plugin wanted it.
    pub(super) buffered: Option<bytes::Bytes>,
    /// Bytes that the client may send in all.
    pub(super) max: Option<u64>,
    pub(super) done: bool,
    /// Nothing is sent before the upstream agrees to the upgrade.
    pub(super) held: bool,
    /// The last look found the upstream ready and nothing new from the client.
    pub(super) starved: bool,
}

impl Outgoing {
    /// Sends the next piece; `true` when that was the end.
    pub(super) fn poll_send<D: Downstream>(
        &mut self,
        down: &mut D,
        up: &mut UpstreamStream,
        stream: &mut Stream,
        replay: &mut Replay,
        filtered: &mut FilteredBody,
        cx: &mut Timed<'_>,
    ) -> Poll<Result<bool, SendError>> {
        self.starved = false;
        if self.done || self.held {
            return Poll::Pending;
        }
        ready!(up.poll_writable(cx)).map_err(SendError::Upstream)?;
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
        let next = poll_filtered_request(filtered, down, stream, self.max, cx);
        self.starved = next.is_pending() && !filtered.is_waiting();
        match ready!(next).map_err(SendError::Downstream)? {
            BodyEvent::Data(piece) => {
                let bytes = piece.as_slice();
                stream.bytes.upstream_sent += bytes.len() as u64;
                replay.keep(bytes);
                self.replayed = replay.kept.len();
                up.write_data(cx, piece).map_err(SendError::Upstream)?;
                Poll::Ready(Ok(false))
            }
            BodyEvent::End => self.finish(up, stream),
        }
    }

    /// Whom the exchange of heads waits for. Before it has the whole request an upstream owes nothing.
    pub(super) fn waits<D: Downstream>(&self, down: &D, up: &UpstreamStream, stream: &Stream) -> Waits {
        let upstream_write = up.backlog();
        Waits {
            client_body: self.starved.then_some(stream.bytes.request_body),
            client_write: down.backlog(),
            upstream_write,
            upstream_read: (upstream_write.is_none() && (self.done || self.held)).then_some(0),
        }
    }

    fn finish(&mut self, up: &mut UpstreamStream, stream: &Stream) -> Poll<Result<bool, SendError>> {
        self.done = true;
        Poll::Ready(up.finish(&stream.request_trailers).map(|()| true).map_err(SendError::Upstream))
    }
}

impl Replay {
    /// Whether all that was read of the body is still there to be sent again.
    pub(super) fn is_whole(&self, stream: &Stream) -> bool {
        let read = stream.bytes.request_body > 0;
        !read || stream.request_body.is_some() || (self.wanted && !self.overflowed)
    }

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
