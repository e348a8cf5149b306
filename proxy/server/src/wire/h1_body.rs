//! Reading an HTTP/1 body from a connection: the decoder of the codec over the connection's buffer.

use crate::buffer::ReadBuffer;
use crate::deadline::Timed;
use crate::h1::{BodyLength, Decoder, H1Error, H1Options};
use crate::io::Transport;
use sixfold_core::headers::Headers;
use std::ops::Range;
use std::task::{Poll, ready};

/// One body being read. The piece that was given last is consumed by the next call.
pub(crate) struct BodyReader {
    decoder: Decoder,
    /// Bytes of the buffer that belong to the last piece and its framing.
    used: usize,
    ended: bool,
}

/// What comes next.
pub(crate) enum Next {
    /// Data at this place among the buffer's filled bytes.
    Data(Range<usize>),
    /// The end.
    End,
}

/// Why a body can't be read on.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// Framing is broken, or the connection ended early.
    Codec(H1Error),
    /// The connection failed.
    Io,
}

impl BodyReader {
    /// Of a body that ends as `length` says.
    pub(crate) fn new(length: BodyLength) -> BodyReader {
        BodyReader { decoder: Decoder::new(length), used: 0, ended: length.is_empty() }
    }

    /// Whether the end was reached.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Whether nothing but the end of the connection ends the body: then no end comes too early.
    pub(crate) fn is_until_close(&self) -> bool {
        !self.ended && self.decoder.is_until_close()
    }

    /// Bytes of the buffer that belong to the message: all of them until it has ended, then the piece given last.
    pub(crate) fn waiting(&self, buffer: &ReadBuffer) -> u64 {
        if self.ended { self.used as u64 } else { buffer.filled().len() as u64 }
    }

    /// Lets go of the piece given last.
    pub(crate) fn settle(&mut self, buffer: &mut ReadBuffer) {
        buffer.consume(std::mem::take(&mut self.used));
        if self.ended && !buffer.is_empty() {
            // What belongs to later messages may wait for long.
            buffer.shrink();
        }
    }

    /// The next piece.
    pub(crate) fn poll_next<T: Transport>(
        &mut self,
        buffer: &mut ReadBuffer,
        io: &mut T,
        cx: &mut Timed<'_>,
        trailers: &mut Headers,
        opts: &H1Options,
    ) -> Poll<Result<Next, BodyError>> {
        self.settle(buffer);
        loop {
            if self.ended {
                return Poll::Ready(Ok(Next::End));
            }
            self.gather(buffer, io, cx);
            let filled = buffer.filled();
            let decoded = self.decoder.decode(filled, trailers, opts).map_err(BodyError::Codec)?;
            self.ended = decoded.end;
            if !decoded.data.is_empty() {
                let start = decoded.data.as_ptr() as usize - filled.as_ptr() as usize;
                self.used = decoded.consumed;
                return Poll::Ready(Ok(Next::Data(start..start + decoded.data.len())));
            }
            let consumed = decoded.consumed;
            buffer.consume(consumed);
            if self.ended {
                return Poll::Ready(Ok(Next::End));
            }
            let left = self.decoder.remaining();
            if ready!(buffer.poll_fill_body(io, cx, left)).map_err(|_| BodyError::Io)? == 0 {
                self.decoder.finish().map_err(BodyError::Codec)?;
                self.ended = true;
            }
        }
    }

    /// Reads more behind the start of a body that came with its head, if there is more: it goes out by one write.
    fn gather<T: Transport>(&mut self, buffer: &mut ReadBuffer, io: &mut T, cx: &mut Timed<'_>) {
        let here = buffer.filled().len() as u64;
        if let Some(left) = self.decoder.remaining()
            && here > 0
        {
            buffer.gather(io, cx, left.saturating_sub(here));
        }
    }
}
