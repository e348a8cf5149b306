//! Many frames by one read and one write: HTTP/2's library reads and writes a DATA frame of 16 KiB at a time.

use crate::buffer::{LARGE, PIECE, ReadBuffer, WORTH_A_WRITE, WriteBuffer};
use crate::deadline::Timed;
use crate::io::Transport;
use std::io::{self, IoSlice};
use std::task::{Poll, ready};
use tokio::io::ReadBuf;

/// A write of this length is worth waiting for another.
const LONG: usize = 4 * 1024;

/// A transport that reads ahead of whoever asks for less than there is, and puts long writes together until they are
/// flushed.
///
/// The library flushes after each long frame of data, and once more when it has no further one. So a flush right behind such a
/// write does nothing here, and the one after it counts. All else that it writes, however long, it flushes once.
pub(crate) struct Batched<T> {
    io: T,
    ahead: ReadBuffer,
    /// The last read brought all that it had asked for.
    much: bool,
    out: WriteBuffer,
    /// The last write was a long frame of data, and nobody has flushed since.
    long: bool,
}

impl<T> Batched<T> {
    /// Over a transport of which nothing was read.
    pub(crate) fn new(io: T) -> Batched<T> {
        let (ahead, out) = (ReadBuffer::below(4 * LARGE), WriteBuffer::default());
        Batched { io, ahead, much: false, out, long: false }
    }

    /// Bytes that were taken and wait for the transport.
    pub(crate) fn unsent(&self) -> usize {
        self.out.len()
    }
}

impl<T: Transport> Transport for Batched<T> {
    fn poll_read(&mut self, cx: &mut Timed<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.much && self.ahead.is_empty() && !self.ahead.has_failed() {
            let (before, room) = (buf.filled().len(), buf.remaining());
            ready!(self.io.poll_read(cx, buf))?;
            self.much = buf.filled().len() - before == room.min(PIECE);
            return Poll::Ready(Ok(()));
        }
        if self.ahead.is_empty() {
            let read = self.ahead.poll_fill_body(&mut self.io, cx, None);
            self.much = matches!(read, Poll::Ready(Ok(PIECE..)));
            if ready!(read)? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let n = self.ahead.filled().len().min(buf.remaining());
        buf.put_slice(&self.ahead.filled()[..n]);
        self.ahead.consume(n);
        if self.ahead.is_empty() {
            self.ahead.stop_waiting();
            self.ahead.release();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(&mut self, cx: &mut Timed<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        if len <= LONG && self.out.len() == 0 {
            self.long = false;
            return self.io.poll_write_vectored(cx, bufs);
        }
        while self.out.len() >= WORTH_A_WRITE {
            ready!(self.out.poll_flush(&mut self.io, cx))?;
        }
        bufs.iter().for_each(|buf| self.out.put(buf));
        // The library hands over the payload of such a frame apart from its head, and nothing else in two pieces.
        self.long = bufs.len() > 1 && len > LONG;
        if self.out.len() >= WORTH_A_WRITE {
            if let Poll::Ready(Err(error)) = self.out.poll_flush(&mut self.io, cx) {
                return Poll::Ready(Err(error));
            }
            self.out.release();
        }
        Poll::Ready(Ok(len))
    }

    fn poll_flush(&mut self, cx: &mut Timed<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.long) {
            // Should no other flush come, this one is asked for again.
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        if self.out.len() == 0 {
            self.out.release();
            return self.io.poll_flush(cx);
        }
        ready!(self.out.poll_flush(&mut self.io, cx))?;
        self.out.release();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, cx: &mut Timed<'_>) -> Poll<io::Result<()>> {
        ready!(self.out.poll_flush(&mut self.io, cx))?;
        self.io.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::deadline::{Deadline, poll_within};
    use std::task::{Context, Waker};

    /// Notes the lengths of writes and of what reads ask for.
    #[derive(Default)]
    struct Noted {
        written: Vec<usize>,
        asked: Vec<usize>,
        there: usize,
        blocked: bool,
    }

    impl Transport for Noted {
        fn is_readable(&self) -> bool {
            self.there > 0
        }

        fn poll_read(&mut self, _: &mut Timed<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.asked.push(buf.remaining());
            let n = self.there.min(buf.remaining());
            if n == 0 {
                return Poll::Pending;
            }
            self.there -= n;
            buf.put_slice(&vec![b'x'; n]);
            Poll::Ready(Ok(()))
        }

        fn poll_write_vectored(
            &mut self,
            _: &mut Timed<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            if self.blocked {
                return Poll::Pending;
            }
            self.written.push(bufs.iter().map(|buf| buf.len()).sum());
            Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
        }

        fn poll_flush(&mut self, _: &mut Timed<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(&mut self, _: &mut Timed<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn now<R>(poll: impl FnOnce(&mut Timed<'_>) -> Poll<R>) -> Poll<R> {
        poll_within(&mut Deadline::unset(), &mut Context::from_waker(Waker::noop()), |_, cx| poll(cx))
            .map(Result::unwrap)
    }

    /// One frame of data, written as the library does.
    fn send(io: &mut Batched<Noted>) -> Poll<usize> {
        let (head, data) = ([0; 9], vec![0; PIECE]);
        let slices = [IoSlice::new(&head), IoSlice::new(&data)];
        let written = now(|cx| io.poll_write_vectored(cx, &slices)).map(Result::unwrap);
        assert!(now(|cx| io.poll_flush(cx)).is_ready() || io.io.blocked);
        written
    }

    #[test]
    fn frames_of_data_go_out_together() {
        let mut io = Batched::new(Noted::default());
        (0..3).for_each(|_| assert_eq!(send(&mut io), Poll::Ready(PIECE + 9)));
        assert!(io.io.written.is_empty(), "{:?}", io.io.written);
        // The flush of a library that has no further frame.
        assert!(now(|cx| io.poll_flush(cx)).is_ready());
        assert_eq!(io.io.written, [3 * (PIECE + 9)]);
        (0..8).for_each(|_| assert!(send(&mut io).is_ready()));
        assert_eq!(io.io.written[1..], [8 * (PIECE + 9)], "enough for a write");
        assert!(now(|cx| io.poll_write_vectored(cx, &[IoSlice::new(b"ping")])).is_ready());
        assert_eq!(io.io.written[2..], [4], "what is short goes at once");
    }

    /// The library flushes them once, and nobody would have come again: a large head waited for the next frame of another stream.
    #[test]
    fn what_is_long_and_no_data_goes_out_by_its_one_flush() {
        let mut io = Batched::new(Noted::default());
        for n in 1..=2 {
            let head = vec![0; 6 * 1024];
            assert!(now(|cx| io.poll_write_vectored(cx, &[IoSlice::new(&head)])).is_ready());
            assert!(now(|cx| io.poll_flush(cx)).is_ready());
            assert_eq!(io.io.written, vec![6 * 1024; n]);
        }
        (0..8).for_each(|_| assert!(send(&mut io).is_ready()));
        assert!(now(|cx| io.poll_flush(cx)).is_ready());
        assert_eq!((io.out.len(), io.out.capacity()), (0, 0), "who is idle holds no memory");
    }

    #[test]
    fn what_the_peer_does_not_take_is_bounded() {
        let mut io = Batched::new(Noted { blocked: true, ..Noted::default() });
        let taken = (0..100).take_while(|_| send(&mut io).is_ready()).count();
        assert_eq!(taken, 8);
        io.io.blocked = false;
        assert!(now(|cx| io.poll_shutdown(cx)).is_ready());
        assert_eq!(io.io.written, [8 * (PIECE + 9)], "the end comes behind it");
    }

    #[test]
    fn reads_ask_for_more_once_there_is_much() {
        let mut io = Batched::new(Noted { there: 300_000, ..Noted::default() });
        let mut read = 0;
        let mut room = vec![0; 8 * 1024];
        while read < 300_000 {
            let mut buf = ReadBuf::new(&mut room);
            assert!(now(|cx| io.poll_read(cx, &mut buf)).is_ready());
            read += buf.filled().len();
        }
        assert_eq!(io.io.asked[..2], [8 * 1024, LARGE]);
        assert_eq!(io.io.asked.len(), 3, "{:?}", io.io.asked);
        io.io.there = 5;
        let mut buf = ReadBuf::new(&mut room);
        assert!(now(|cx| io.poll_read(cx, &mut buf)).is_ready());
        assert_eq!(buf.filled().len(), 5);
        assert!(io.ahead.is_empty() && !io.much);
    }
}
