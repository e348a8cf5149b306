//! The receiving half of an HTTP/2 stream: what has come and was not passed on yet.

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;
use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

/// Pieces below this length are put together: held as they came, each would cost many times its bytes.
const SMALL: usize = 1024;

/// Reads a body. What is read ahead is not acknowledged to flow control before it is passed on, so that it is bounded
/// by the stream's window.
pub(crate) struct H2Recv {
    stream: RecvStream,
    ahead: VecDeque<Bytes>,
    /// Small pieces, behind those in `ahead`.
    tail: BytesMut,
    /// How the body ended, behind all that.
    end: Option<Result<(), h2::Error>>,
    /// Bytes given out and not yet acknowledged to flow control.
    owed: usize,
}

impl H2Recv {
    /// Of a stream.
    pub(crate) fn new(stream: RecvStream) -> H2Recv {
        H2Recv { stream, ahead: VecDeque::new(), tail: BytesMut::new(), end: None, owed: 0 }
    }

    /// The next piece; `None` at the end, which trailers may follow. The piece before it has been passed on: the peer
    /// may send as much again.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if self.owed > 0 {
            let _ = self.stream.flow_control().release_capacity(std::mem::take(&mut self.owed));
        }
        let next = match self.ahead.pop_front() {
            Some(piece) => Some(Ok(piece)),
            None if !self.tail.is_empty() => Some(Ok(self.tail.split().freeze())),
            None => match self.end.take() {
                Some(end) => end.err().map(Err),
                None => ready!(self.stream.poll_data(cx)),
            },
        };
        if next.is_none() {
            self.end = Some(Ok(()));
        }
        if let Some(Ok(piece)) = &next {
            self.owed = piece.len();
        }
        Poll::Ready(next)
    }

    /// The trailers behind the end.
    pub(crate) fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        self.stream.poll_trailers(cx)
    }

    /// Takes over what has come while nobody can take it: frames of a few bytes that wait in the library are counted
    /// against the connection, and it would end with everyone's streams.
    pub(crate) fn poll_ahead(&mut self, cx: &mut Context<'_>) {
        while self.end.is_none()
            && let Poll::Ready(next) = self.stream.poll_data(cx)
        {
            match next {
                Some(Ok(piece)) if piece.len() < SMALL => self.tail.extend_from_slice(&piece),
                Some(Ok(piece)) => {
                    if !self.tail.is_empty() {
                        self.ahead.push_back(self.tail.split().freeze());
                    }
                    self.ahead.push_back(piece);
                }
                Some(Err(error)) => self.end = Some(Err(error)),
                None => self.end = Some(Ok(())),
            }
        }
    }
}
