//! A connection whose answers are bounded: what is decoded of an answer is kept until it is whole.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that a server may send beyond what was asked for, which is an answer that nobody has asked for.
const MOST: usize = 1 << 20;

/// Bytes of an answer for each of what it is the answer to. Answers are numbers, short texts and addresses, and commands are
/// scripts' digests with keys.
const OF_EACH: usize = 16;

/// A connection that fails when its server sends much more than it was asked for.
pub(super) struct Bounded<W> {
    wire: W,
    /// Bytes that may still come.
    left: usize,
}

impl<W> Bounded<W> {
    pub(super) fn new(wire: W) -> Bounded<W> {
        Bounded { wire, left: MOST }
    }
}

impl<W: AsyncRead + Unpin> AsyncRead for Bounded<W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.wire).poll_read(cx, buf))?;
        let left = self.left.checked_sub(buf.filled().len() - before);
        self.left =
            left.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer is too long"))?;
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Bounded<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.wire).poll_write(cx, buf))?;
        self.left = self.left.saturating_add(written.saturating_mul(OF_EACH)).min(MOST);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
