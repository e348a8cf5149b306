//! Bytes both ways with bounded buffers: what one side does not take, the other is not asked for.

use crate::io::Io;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep_until;

/// Bytes held for each direction.
const BUFFER: usize = 16 << 10;

/// Why passing bytes ended.
#[derive(Debug)]
pub(super) enum End {
    /// Both sides have said all.
    Closed,
    /// One side failed.
    Failed(io::Error),
    /// No byte came for too long.
    Idle,
    /// The connection has lived long enough.
    Deadline,
}

/// Two connections and what is on its way between them.
pub(super) struct Pump {
    client: Io,
    endpoint: Io,
    up: Flow,
    down: Flow,
}

/// One direction.
struct Flow {
    buffer: Box<[u8]>,
    /// The bytes not yet written: `buffer[start..end]`.
    start: usize,
    end: usize,
    stage: Stage,
    /// Whether something was written that may still sit in the writer.
    unflushed: bool,
}

#[derive(PartialEq)]
enum Stage {
    Passing,
    /// The reader has said all; the rest is to be written.
    Ending,
    Done,
}

impl Pump {
    pub(super) fn new(client: Io, endpoint: Io) -> Pump {
        Pump { client, endpoint, up: Flow::new(), down: Flow::new() }
    }

    /// Passes bytes until the end; `count` is told of bytes from the client and from the endpoint.
    pub(super) async fn run(
        &mut self,
        idle: Option<Duration>,
        deadline: Option<Instant>,
        mut count: impl FnMut(u64, u64),
    ) -> End {
        let mut last = Instant::now();
        let far = || Instant::now() + Duration::from_secs(86_400 * 365);
        let mut quiet = pin!(sleep_until(idle.map_or_else(far, |i| last + i).into()));
        let mut over = pin!(sleep_until(deadline.unwrap_or_else(far).into()));
        poll_fn(|cx| {
            let (mut up, mut down) = (0, 0);
            let first = self.up.poll(cx, &mut self.client, &mut self.endpoint, &mut up);
            let second = self.down.poll(cx, &mut self.endpoint, &mut self.client, &mut down);
            if up + down > 0 {
                last = Instant::now();
                count(up, down);
            }
            match (first, second) {
                (Poll::Ready(Err(e)), _) | (_, Poll::Ready(Err(e))) => return Poll::Ready(End::Failed(e)),
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Closed),
                _ => {}
            }
            // The timer is moved only when it fires, not with every byte.
            while let (Some(idle), Poll::Ready(())) = (idle, quiet.as_mut().poll(cx)) {
                if last.elapsed() >= idle {
                    return Poll::Ready(End::Idle);
                }
                quiet.as_mut().reset((last + idle).into());
            }
            if deadline.is_some() && over.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::Deadline);
            }
            Poll::Pending
        })
        .await
    }
}

impl Flow {
    fn new() -> Flow {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Flow { buffer, start: 0, end: 0, stage: Stage::Passing, unflushed: false }
    }

    /// Goes as far as it can; ready when the reader's end has reached the writer.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
        read: &mut u64,
    ) -> Poll<io::Result<()>> {
        loop {
            while self.start < self.end {
                let rest = self.buffer.get(self.start..self.end).unwrap_or_default();
                match ready!(Pin::new(&mut *to).poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    n => self.start += n,
                }
                self.unflushed = true;
            }
            match self.stage {
                Stage::Done => return Poll::Ready(Ok(())),
                Stage::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.stage = Stage::Done;
                }
                Stage::Passing => match self.fill(cx, from) {
                    Poll::Ready(Ok(n)) => *read += n as u64,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending => {
                        if self.unflushed {
                            ready!(Pin::new(&mut *to).poll_flush(cx))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    fn fill(&mut self, cx: &mut Context<'_>, from: &mut Io) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(from).poll_read(cx, &mut buffer))?;
        let n = buffer.filled().len();
        (self.start, self.end) = (0, n);
        if n == 0 {
            self.stage = Stage::Ending;
        }
        Poll::Ready(Ok(n))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    fn pair() -> (Io, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours.into(), theirs)
    }

    async fn run(
        idle: Option<Duration>,
        deadline: Option<Instant>,
        client: Io,
        endpoint: Io,
    ) -> (End, u64, u64) {
        let (mut up, mut down) = (0, 0);
        let end = Pump::new(client, endpoint)
            .run(idle, deadline, |u, d| {
                up += u;
                down += d;
            })
            .await;
        (end, up, down)
    }

    #[tokio::test]
    async fn each_side_may_end_before_the_other() {
        let (client, mut ours) = pair();
        let (endpoint, mut theirs) = pair();
        let passing = tokio::spawn(run(None, None, client, endpoint));
        ours.write_all(b"question").await.unwrap();
        ours.shutdown().await.unwrap();
        let mut question = Vec::new();
        theirs.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        theirs.write_all(b"the answer").await.unwrap();
        drop(theirs);
        let mut answer = Vec::new();
        ours.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"the answer");
        let (end, up, down) = passing.await.unwrap();
        assert!(matches!(end, End::Closed), "{end:?}");
        assert_eq!((up, down), (8, 10));
    }

    #[tokio::test]
    async fn a_side_that_does_not_read_stops_the_other() {
        let (client, mut ours) = pair();
        let (endpoint, theirs) = pair();
        let passing = tokio::spawn(run(None, None, client, endpoint));
        let writing = async {
            let mut written = 0usize;
            while let Ok(Ok(n)) =
                tokio::time::timeout(Duration::from_millis(200), ours.write(&[7; 64 << 10])).await
            {
                written += n;
            }
            written
        };
        let written = writing.await;
        assert!(written < 4 << 20, "{written} bytes went nowhere");
        drop((ours, theirs));
        passing.await.unwrap();
    }

    #[tokio::test]
    async fn silence_ends_it_and_bytes_put_that_off() {
        let (client, mut ours) = pair();
        let (endpoint, _theirs) = pair();
        let start = Instant::now();
        let idle = Some(Duration::from_millis(150));
        let passing = tokio::spawn(run(idle, None, client, endpoint));
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(60)).await;
            ours.write_all(b"x").await.unwrap();
        }
        let (end, up, _) = passing.await.unwrap();
        assert!(matches!(end, End::Idle), "{end:?}");
        assert_eq!(up, 4);
        assert!(start.elapsed() >= Duration::from_millis(380), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn the_deadline_ends_it() {
        let (client, _ours) = pair();
        let (endpoint, _theirs) = pair();
        let deadline = Some(Instant::now() + Duration::from_millis(20));
        assert!(matches!(run(None, deadline, client, endpoint).await.0, End::Deadline));
    }
}
