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
