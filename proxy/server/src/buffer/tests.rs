//! Tests of the buffers.

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
        let came = tokio::time::timeout(Duration::from_secs(5), soon(|cx| buffer.poll_fill(&mut near, cx)));
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

    fn poll_write_vectored(&mut self, _: &mut Timed<'_>, _: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
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
    assert_eq!([noop, noop, &other, &other, noop].map(&mut poll), [1, 1, 2, 2, 3].map(|asked| (true, asked)));
}

struct Other;

impl std::task::Wake for Other {
    fn wake(self: std::sync::Arc<Self>) {}
}

#[tokio::test]
async fn pieces_are_used_again_by_those_who_read_and_those_who_write() {
    let kept = || (READ.with_borrow(|kept| kept.count().0), WRITE.with_borrow(|kept| kept.count().0));
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
    read.make_room(PIECE);
    read.release();
    assert_eq!(kept(), (1, 0));
    assert_eq!(readable(PIECE).len(), PIECE);
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

/// What is there goes into one piece, as far as the body goes, and nothing that is not of the body is read for long.
#[tokio::test]
async fn a_body_is_read_as_a_whole_behind_what_came_with_its_head() {
    let (mut near, mut far) = tokio::io::duplex(LARGE);
    let mut buffer = ReadBuffer::below(1 << 20);
    far.write_all(&[b'x'; 100_000]).await.unwrap();
    assert_eq!(soon(|cx| buffer.poll_fill(&mut near, cx)).await.unwrap(), PIECE, "a head has no more room");
    buffer.consume(200);
    let left = (100_000 - PIECE) as u64;
    soon(|cx| {
        buffer.gather(&mut near, cx, left);
        Poll::Ready(())
    })
    .await;
    assert_eq!(buffer.filled().len(), 99_800);
    buffer.consume(99_800);
    assert!(buffer.data.len() == LARGE);
    assert!(soon(|cx| Poll::Ready(buffer.poll_fill_body(&mut near, cx, None).is_pending())).await);
    assert_eq!(buffer.data.len(), 0, "who waits holds no memory");
    drop(far);
    assert_eq!(soon(|cx| buffer.poll_fill_body(&mut near, cx, None)).await.unwrap(), 0);
}

#[tokio::test]
async fn a_low_limit_is_kept_by_what_is_read() {
    let (mut near, mut far) = tokio::io::duplex(LARGE);
    far.write_all(&[b'x'; 200_000]).await.unwrap();
    for (limit, most) in [(0, PIECE), (32 << 10, PIECE), (128 << 10, 32 << 10)] {
        let mut buffer = ReadBuffer::below(limit);
        let read = soon(|cx| buffer.poll_fill_body(&mut near, cx, None)).await.unwrap();
        assert_eq!(read, most, "{limit}");
    }
}

#[tokio::test]
async fn a_few_bytes_keep_no_large_buffer() {
    let (mut near, mut far) = tokio::io::duplex(LARGE);
    let mut buffer = ReadBuffer::below(1 << 20);
    far.write_all(&[b'x'; 50_000]).await.unwrap();
    soon(|cx| buffer.poll_fill_body(&mut near, cx, None)).await.unwrap();
    buffer.consume(49_990);
    assert!(soon(|cx| Poll::Ready(buffer.poll_fill_body(&mut near, cx, None).is_pending())).await);
    assert_eq!((buffer.filled(), buffer.data.len()), (&b"xxxxxxxxxx"[..], PIECE));

    let (mut near, _far) = tokio::io::duplex(60_000);
    let mut out = WriteBuffer::default();
    (0..5).for_each(|_| out.put(&[b'y'; 15_000]));
    assert_eq!(out.data.capacity(), LARGE);
    assert!(soon(|cx| Poll::Ready(out.poll_flush(&mut near, cx).is_pending())).await);
    assert_eq!((out.len(), out.data.capacity()), (15_000, PIECE));
}

/// What was left of a large buffer was copied into memory of its own, which grew by doubling and was given back to nobody.
#[tokio::test]
async fn a_slow_peer_leaves_buffers_of_the_two_sizes() {
    let (mut near, mut far) = tokio::io::duplex(60_000);
    let mut out = WriteBuffer::default();
    let kept = || WRITE.with_borrow(Pieces::count);
    for (more, waiting, capacity) in
        [(75_000, 15_000, PIECE), (50_000, 5_000, PIECE), (90_000, 35_000, 35_000)]
    {
        (0..more / 5_000).for_each(|_| out.put(&[b'y'; 5_000]));
        assert_eq!(out.data.capacity(), LARGE, "{more}");
        assert!(soon(|cx| Poll::Ready(out.poll_flush(&mut near, cx).is_pending())).await);
        assert_eq!((out.len(), out.data.capacity()), (waiting, capacity));
        assert_eq!(kept().1, 1, "{more}");
        far.read_exact(&mut [0; 60_000]).await.unwrap();
    }
    out.put(&[b'y'; 5_000]);
    assert_eq!((out.data.capacity(), kept().1), (LARGE, 0));
    out.abandon();
    assert_eq!(kept().1, 1);
}

/// What a slow peer has taken stayed in memory until it had taken everything, which may be a body of any length.
#[tokio::test]
async fn what_was_taken_is_forgotten_while_more_comes() {
    let (mut near, mut far) = tokio::io::duplex(10_000);
    let mut out = WriteBuffer::default();
    let mut taken = vec![0; 10_000];
    for turn in 0..100 {
        let piece = [turn; 10_000];
        soon(|cx| Poll::Ready(out.write_through(&mut near, cx, &piece))).await.unwrap();
        if turn >= 3 {
            // A task may do only so much in one go.
            tokio::task::yield_now().await;
            let _ = soon(|cx| Poll::Ready(out.poll_flush(&mut near, cx))).await;
            far.read_exact(&mut taken).await.unwrap();
            assert_eq!(taken, [turn - 3; 10_000]);
        }
    }
    assert!(out.len() <= 40_000 && out.data.capacity() <= LARGE, "{}", out.data.capacity());
}
