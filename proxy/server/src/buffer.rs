//! Buffers of a connection: what was read and not yet parsed, what is to be written.
//!
//! A connection holds memory only while it holds bytes: buffers go back to a list of the thread when they
//! run empty, so that ten thousand idle connections cost no buffers.

use crate::deadline::Timed;
use crate::io::Transport;
use std::cell::RefCell;
use std::io;
use std::task::{Poll, ready};
use std::thread::LocalKey;
use tokio::io::ReadBuf;
use tokio::task::coop::has_budget_remaining;

/// Bytes of a fresh buffer: what one read takes.
const PIECE: usize = 16 * 1024;
/// Buffers a thread keeps for reuse.
const KEPT: usize = 64;
/// Data up to this length is copied behind what waits to be written; longer data is written from its place.
const COPY_LIMIT: usize = 4 * 1024;

thread_local! {
    /// Fully initialised: reading zeroes nothing.
    static READ: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    /// Empty: writing appends.
    static WRITE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn take_piece(list: &'static LocalKey<RefCell<Vec<Vec<u8>>>>) -> Option<Vec<u8>> {
    list.with(|free| free.borrow_mut().pop())
}

/// Keeps a piece of the usual size for the next taker; larger ones are freed.
fn give_back(list: &'static LocalKey<RefCell<Vec<Vec<u8>>>>, piece: Vec<u8>) {
    if piece.capacity() == PIECE {
        list.with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(piece);
            }
        });
    }
}

/// Lends memory for one read.
pub(crate) fn lend<R>(read: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut piece = take_piece(&READ).unwrap_or_else(|| vec![0; PIECE]);
    let read = read(&mut piece);
    give_back(&READ, piece);
    read
}

/// Bytes that were read and not consumed.
#[derive(Default)]
pub(crate) struct ReadBuffer {
    /// Empty, or fully initialised memory of which `start..end` is filled.
    data: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes that were consumed in all.
    consumed: u64,
    /// Nothing could be read the last time: whoever asks again has most likely been woken by what has come.
    waited: bool,
    /// Whom the transport wakes when there is something, as long as nothing has been read since it was told.
    told: Option<Woken>,
}

/// A waker, as far as one is told from another.
type Woken = (usize, usize);

fn woken(cx: &Timed<'_>) -> Woken {
    let waker = cx.waker();
    (waker.data().addr(), std::ptr::from_ref(waker.vtable()).addr())
}

/// Whom a transport wakes that has just had nothing. Not one that was not asked, since the runtime lets a task do only
/// so much in one go: it wakes the task at once then, and tells the transport nothing.
fn told(cx: &Timed<'_>) -> Option<Woken> {
    has_budget_remaining().then(|| woken(cx))
}

impl ReadBuffer {
    /// What was read and not consumed.
    #[inline]
    pub(crate) fn filled(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    /// Whether nothing waits to be consumed.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes that were consumed so far.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// A wait begins that nothing has been heard of yet.
    pub(crate) fn begin_wait(&mut self) {
        self.waited = false;
    }

    /// Nobody waits any more, and others may read from the transport.
    pub(crate) fn stop_waiting(&mut self) {
        (self.waited, self.told) = (false, None);
    }

    /// Forgets the first `n` filled bytes.
    #[inline]
    pub(crate) fn consume(&mut self, n: usize) {
        let n = n.min(self.end - self.start);
        self.consumed += n as u64;
        self.start += n;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Reads once, behind what is there. `Ok(0)` is the end of the stream. When nothing can be read an empty
    /// buffer gives its memory back until the next call.
    pub(crate) fn poll_fill<T: Transport>(
        &mut self,
        io: &mut T,
        cx: &mut Timed<'_>,
    ) -> Poll<io::Result<usize>> {
        let waited = std::mem::take(&mut self.waited);
        if !waited && self.is_empty() && !self.may_read(io, cx) {
            self.waited = true;
            self.release();
            return Poll::Pending;
        }
        self.make_room();
        if waited && let Some(read) = self.try_fill(io) {
            return Poll::Ready(read);
        }
        let mut room = ReadBuf::new(&mut self.data[self.end..]);
        match io.poll_read(cx, &mut room) {
            Poll::Pending => {
                self.waited = true;
                self.told = told(cx);
                self.release();
                Poll::Pending
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Ready(Ok(())) => {
                let n = room.filled().len();
                self.told = None;
                self.end += n;
                Poll::Ready(Ok(n))
            }
        }
    }

    /// Whether a read is worth a try; who waits is told of what comes. A transport that knows whom to wake and has seen
    /// nothing since need not be told again.
    #[inline]
    fn may_read<T: Transport>(&mut self, io: &mut T, cx: &mut Timed<'_>) -> bool {
        if self.told == Some(woken(cx)) && !io.is_readable() {
            return false;
        }
        let ready = io.poll_readable(cx).is_ready();
        self.told = if ready { None } else { told(cx) };
        ready
    }

    /// Reads at once, as whoever has been woken may; `None` if there is nothing after all.
    #[inline]
    fn try_fill<T: Transport>(&mut self, io: &mut T) -> Option<io::Result<usize>> {
        match io.try_read(&mut self.data[self.end..]) {
            Ok(n) => {
                self.told = None;
                self.end += n;
                Some(Ok(n))
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => None,
            Err(e) => Some(Err(e)),
        }
    }

    fn make_room(&mut self) {
        if self.data.is_empty() {
            self.data = take_piece(&READ).unwrap_or_else(|| vec![0; PIECE]);
        } else if self.end == self.data.len() {
            if self.start > 0 {
                self.data.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            } else {
                // Callers bound what they let pile up (heads, chunk lines), and so this growth.
                let larger = (self.data.len() * 2).max(PIECE);
                self.data.resize(larger, 0);
            }
        }
    }

    /// Gives the memory back if nothing is in it.
    pub(crate) fn release(&mut self) {
        if self.is_empty() && !self.data.is_empty() {
            give_back(&READ, std::mem::take(&mut self.data));
        }
    }

    /// Takes everything that is there.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let bytes = self.filled().to_vec();
        self.consume(bytes.len());
        self.release();
        bytes
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        give_back(&READ, std::mem::take(&mut self.data));
    }
}

/// Bytes that wait to be written.
#[derive(Default)]
pub(crate) struct WriteBuffer {
    data: Vec<u8>,
    sent: usize,
    /// Something was handed to the transport that may still hold it (TLS records).
    unflushed: bool,
    /// Bytes that the transport has taken in all.
    taken: u64,
}

impl WriteBuffer {
    /// Where encoders append.
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        if self.data.capacity() == 0 {
            self.data = take_piece(&WRITE).unwrap_or_else(|| Vec::with_capacity(PIECE));
        }
        &mut self.data
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.data.len() - self.sent
    }

    /// Bytes that were given to be written so far.
    pub(crate) fn given(&self) -> u64 {
        self.taken + self.len() as u64
    }

    /// What the transport has taken so far, while it still has to take something: another number is progress.
    pub(crate) fn backlog(&self) -> Option<u64> {
        (self.len() > 0 || self.unflushed).then_some(self.taken)
    }

    /// Writes what waits and then `data`, as much as the transport takes now; the rest of `data` waits.
    pub(crate) fn write_through<T: Transport>(
        &mut self,
        io: &mut T,
        cx: &mut Timed<'_>,
        mut data: &[u8],
    ) -> io::Result<()> {
        if data.len() > COPY_LIMIT {
            self.unflushed = true;
            while self.len() + data.len() > 0 {
                let written = match self.poll_write_both(io, cx, data) {
                    Poll::Pending => break,
                    Poll::Ready(written) => written?,
                };
                let waiting = self.len();
                self.taken += written.saturating_sub(waiting) as u64;
                self.advance(written.min(waiting));
                data = &data[written.saturating_sub(waiting)..];
            }
        }
        if !data.is_empty() {
            self.tail().extend_from_slice(data);
        }
        Ok(())
    }

    fn poll_write_both<T: Transport>(
        &self,
        io: &mut T,
        cx: &mut Timed<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let waiting = &self.data[self.sent..];
        let result = if waiting.is_empty() {
            ready!(io.poll_write(cx, data))
        } else {
            let slices = [io::IoSlice::new(waiting), io::IoSlice::new(data)];
            ready!(io.poll_write_vectored(cx, &slices))
        };
        Poll::Ready(match result {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            other => other,
        })
    }

    fn advance(&mut self, n: usize) {
        self.taken += n as u64;
        self.sent += n;
        if self.sent == self.data.len() {
            self.sent = 0;
            self.data.clear();
        }
    }

    /// Forgets what waits: nothing is written any more. It was given all the same.
    pub(crate) fn abandon(&mut self) {
        self.taken = self.given();
        self.unflushed = false;
        self.data.clear();
        self.sent = 0;
        self.release();
    }

    /// Writes everything that waits and flushes the transport.
    pub(crate) fn poll_flush<T: Transport>(
        &mut self,
        io: &mut T,
        cx: &mut Timed<'_>,
    ) -> Poll<io::Result<()>> {
        while self.len() > 0 {
            self.unflushed = true;
            match ready!(io.poll_write(cx, &self.data[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.advance(n),
            }
        }
        if self.unflushed {
            ready!(io.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Gives the memory back if nothing waits.
    pub(crate) fn release(&mut self) {
        if self.len() == 0 && self.data.capacity() > 0 {
            let mut data = std::mem::take(&mut self.data);
            data.clear();
            give_back(&WRITE, data);
        }
    }
}

impl Drop for WriteBuffer {
    fn drop(&mut self) {
        let mut data = std::mem::take(&mut self.data);
        data.clear();
        give_back(&WRITE, data);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::deadline::{Deadline, poll_within, within};
    use crate::io::Io;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    async fn soon<T>(mut poll: impl FnMut(&mut Timed<'_>) -> Poll<T>) -> T {
        within(&mut Deadline::after(Duration::from_secs(60)), |_, cx| poll(cx)).await.unwrap()
    }

    #[tokio::test]
    async fn what_was_read_is_consumed_in_order_and_grows_when_needed() {
        let (mut near, mut far) = tokio::io::duplex(64 * 1024);
        let mut buffer = ReadBuffer::default();
        far.write_all(&[b"ab".as_slice(), &[b'x'; 40_000]].concat()).await.unwrap();
        let mut total = 0;
        while total < 40_002 {
            total += soon(|cx| buffer.poll_fill(&mut near, cx)).await.unwrap();
        }
        assert_eq!(&buffer.filled()[..4], b"abxx");
        buffer.consume(40_002);
        assert!(buffer.is_empty());
        drop(far);
        assert_eq!(soon(|cx| buffer.poll_fill(&mut near, cx)).await.unwrap(), 0);
    }

    /// A task that has done all that it may do in one go is told to wait by the runtime, not by the transport, which
    /// then knows nobody to wake.
    #[tokio::test]
    async fn a_wait_for_the_runtime_is_none_for_the_transport() {
        for begins in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let near = listener.accept().await.unwrap().0;
            near.set_nodelay(true).unwrap();
            let mut near = Io::from(near);
            let mut buffer = ReadBuffer::default();
            soon(|cx| {
                while has_budget_remaining() {
                    assert!(pin!(tokio::task::consume_budget()).poll(cx).is_ready());
                }
                assert!(buffer.poll_fill(&mut near, cx).is_pending());
                Poll::Ready(())
            })
            .await;
            if begins {
                buffer.begin_wait();
            }
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                far.write_all(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_secs(60)).await;
            });
            let came =
                tokio::time::timeout(Duration::from_secs(5), soon(|cx| buffer.poll_fill(&mut near, cx)));
            assert_eq!(came.await.expect("it is told of what comes").unwrap(), 1);
        }
    }

    /// Counts how often it is asked whether there is anything, and how often it is read.
    #[derive(Default)]
    struct Counted {
        bytes: &'static [u8],
        asked: usize,
        read: usize,
    }

    impl Transport for Counted {
        fn poll_readable(&mut self, _: &mut Timed<'_>) -> Poll<()> {
            self.asked += 1;
            if self.bytes.is_empty() { Poll::Pending } else { Poll::Ready(()) }
        }

        fn is_readable(&self) -> bool {
            !self.bytes.is_empty()
        }

        fn poll_read(&mut self, _: &mut Timed<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.read += 1;
            if self.bytes.is_empty() {
                return Poll::Pending;
            }
            buf.put_slice(std::mem::take(&mut self.bytes));
            Poll::Ready(Ok(()))
        }

        fn poll_write_vectored(
            &mut self,
            _: &mut Timed<'_>,
            _: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(&mut self, _: &mut Timed<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(&mut self, _: &mut Timed<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// The runtime was asked twice for each piece that came: whether there is one, and again by the read.
    #[tokio::test]
    async fn who_has_waited_reads_at_once_and_a_fresh_wait_asks_first() {
        let (mut io, mut buffer) = (Counted::default(), ReadBuffer::default());
        let poll = |buffer: &mut ReadBuffer, io: &mut Counted| {
            let cx = &mut Context::from_waker(Waker::noop());
            let filled = poll_within(&mut Deadline::unset(), cx, |_, cx| buffer.poll_fill(io, cx));
            filled.map(|filled| filled.unwrap().unwrap())
        };
        assert!(poll(&mut buffer, &mut io).is_pending());
        assert_eq!((io.asked, io.read, buffer.data.len()), (1, 0, 0), "it takes no memory to ask");
        io.bytes = b"abc";
        assert_eq!(poll(&mut buffer, &mut io), Poll::Ready(3));
        assert_eq!((io.asked, io.read), (1, 1));
        buffer.consume(3);
        assert!(poll(&mut buffer, &mut io).is_pending() && poll(&mut buffer, &mut io).is_pending());
        assert_eq!((io.asked, io.read, buffer.data.len()), (2, 2, 0), "woken by something else");
        buffer.begin_wait();
        assert!(poll(&mut buffer, &mut io).is_pending());
        assert_eq!((io.asked, io.read), (2, 2), "it knows whom to wake");
        buffer.stop_waiting();
        assert!(poll(&mut buffer, &mut io).is_pending());
        assert_eq!((io.asked, io.read), (3, 2));
        buffer.begin_wait();
        io.bytes = b"def";
        assert_eq!(poll(&mut buffer, &mut io), Poll::Ready(3));
        assert_eq!((io.asked, io.read), (4, 3), "something has come since");
    }

    /// Another task than the one that was told must be told itself.
    #[tokio::test]
    async fn who_was_not_told_is_told() {
        let (mut io, mut buffer) = (Counted::default(), ReadBuffer::default());
        let mut poll = |waker: &Waker| {
            buffer.begin_wait();
            let cx = &mut Context::from_waker(waker);
            let filled = poll_within(&mut Deadline::unset(), cx, |_, cx| buffer.poll_fill(&mut io, cx));
            (filled.is_pending(), io.asked)
        };
        let other = Waker::from(std::sync::Arc::new(Other));
        let noop = Waker::noop();
        assert_eq!(
            [noop, noop, &other, &other, noop].map(&mut poll),
            [1, 1, 2, 2, 3].map(|asked| (true, asked))
        );
    }

    struct Other;

    impl std::task::Wake for Other {
        fn wake(self: std::sync::Arc<Self>) {}
    }

    #[tokio::test]
    async fn pieces_are_used_again_by_those_who_read_and_those_who_write() {
        let kept = || (READ.with_borrow(Vec::len), WRITE.with_borrow(Vec::len));
        let mut out = WriteBuffer::default();
        out.tail().extend_from_slice(b"head");
        let (mut near, _far) = tokio::io::duplex(64);
        soon(|cx| out.poll_flush(&mut near, cx)).await.unwrap();
        out.release();
        assert_eq!(kept(), (0, 1));
        let mut again = WriteBuffer::default();
        assert!(again.tail().is_empty() && again.data.capacity() == PIECE);
        assert_eq!(kept(), (0, 0));
        let mut read = ReadBuffer::default();
        read.make_room();
        read.release();
        assert_eq!(kept(), (1, 0));
        assert!(READ.with_borrow(|free| free.iter().all(|piece| piece.len() == PIECE)));
    }

    #[tokio::test]
    async fn writes_keep_their_order_through_a_narrow_transport() {
        let (mut near, mut far) = tokio::io::duplex(1000);
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all
        });
        let mut out = WriteBuffer::default();
        out.tail().extend_from_slice(b"head");
        let body = vec![b'y'; 10_000];
        soon(|cx| Poll::Ready(out.write_through(&mut near, cx, &body))).await.unwrap();
        soon(|cx| Poll::Ready(out.write_through(&mut near, cx, b"tail"))).await.unwrap();
        soon(|cx| out.poll_flush(&mut near, cx)).await.unwrap();
        drop(near);
        let all = reader.await.unwrap();
        assert_eq!((&all[..4], &all[all.len() - 4..], all.len()), (&b"head"[..], &b"tail"[..], 10_008));
    }
}
