//! The sending half of an HTTP/2 stream: what waits for flow control, and how it ends.

use super::body::Piece;
use crate::deadline::Timed;
use bytes::Bytes;
use h2::{Reason, SendStream};
use http::HeaderMap;
use std::collections::VecDeque;
use std::task::Poll;

/// Bytes of a frame before its payload.
pub(crate) const FRAME_HEAD: u64 = 9;
/// Bytes of the largest DATA frame, unless the peer allows more.
const FRAME: u64 = 16 << 10;

/// Sends a body within the peer's windows; what they don't allow yet waits here.
pub(crate) struct H2Send {
    stream: SendStream<Bytes>,
    waiting: VecDeque<Bytes>,
    bytes: usize,
    /// Bytes that the windows have let pass.
    sent: u64,
    /// DATA frames that they took, about.
    frames: u64,
    end: End,
}

enum End {
    /// More may come.
    Open,
    /// The end follows what waits, with these trailers.
    Wanted(Option<HeaderMap>),
    /// The end was sent.
    Sent,
}

impl H2Send {
    /// Of a stream; `ended` if its head was its end.
    pub(crate) fn new(stream: SendStream<Bytes>, ended: bool) -> H2Send {
        H2Send {
            stream,
            waiting: VecDeque::new(),
            bytes: 0,
            sent: 0,
            frames: 0,
            end: if ended { End::Sent } else { End::Open },
        }
    }

    /// Adds a piece behind what waits.
    pub(crate) fn push(&mut self, piece: Piece<'_>) {
        let bytes = piece.into_bytes();
        if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.waiting.push_back(bytes);
            self.stream.reserve_capacity(self.bytes);
        }
    }

    /// Ends the stream after what waits.
    pub(crate) fn finish(&mut self, trailers: Option<HeaderMap>) {
        if matches!(self.end, End::Open) {
            self.end = End::Wanted(trailers);
        }
    }

    /// Bytes that wait for the peer's windows.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// What was sent so far, while something waits: another number is progress.
    pub(crate) fn backlog(&self) -> Option<u64> {
        (self.bytes > 0).then_some(self.sent)
    }

    /// Bytes on the wire of the body so far.
    pub(crate) fn wire_len(&self) -> u64 {
        self.sent + self.frames * FRAME_HEAD
    }

    /// Sends as much as the windows allow. Ready when nothing waits any more.
    pub(crate) fn poll_flush(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), h2::Error>> {
        while !self.waiting.is_empty() {
            let mut room = self.stream.capacity();
            if room == 0 {
                match self.stream.poll_capacity(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => return Poll::Ready(Err(Reason::CANCEL.into())),
                    Poll::Ready(Some(granted)) => room = granted?,
                }
            }
            self.send_piece(room)?;
        }
        if let End::Wanted(trailers) = &mut self.end {
            let trailers = trailers.take();
            self.end = End::Sent;
            match trailers {
                Some(trailers) => self.stream.send_trailers(trailers)?,
                None => self.stream.send_data(Bytes::new(), true)?,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The next piece that waits, up to `room` bytes of it.
    fn send_piece(&mut self, room: usize) -> Result<(), h2::Error> {
        let Some(first) = self.waiting.front_mut() else { return Ok(()) };
        let piece = first.split_to(room.min(first.len()));
        if first.is_empty() {
            self.waiting.pop_front();
        }
        self.bytes -= piece.len();
        self.sent += piece.len() as u64;
        self.frames += (piece.len() as u64).div_ceil(FRAME);
        let last = self.waiting.is_empty() && matches!(self.end, End::Wanted(None));
        if last {
            self.end = End::Sent;
        }
        self.stream.send_data(piece, last)
    }

    /// Sends what the windows allow at once, and forgets the rest: the stream is to be reset behind it.
    pub(crate) fn give_granted(&mut self) {
        self.end = End::Open;
        while !self.waiting.is_empty() && self.stream.capacity() > 0 {
            if self.send_piece(self.stream.capacity()).is_err() {
                break;
            }
        }
        self.waiting.clear();
        self.bytes = 0;
    }

    pub(crate) fn into_stream(self) -> SendStream<Bytes> {
        self.stream
    }

    /// Resets the stream.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.waiting.clear();
        self.bytes = 0;
        self.end = End::Sent;
        self.stream.send_reset(reason);
    }

    /// Ready when the peer has reset the stream.
    pub(crate) fn poll_reset(&mut self, cx: &mut Timed<'_>) -> Poll<Result<Reason, h2::Error>> {
        self.stream.poll_reset(cx)
    }

    /// Whether the end was sent.
    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.end, End::Sent)
    }
}
