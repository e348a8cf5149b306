//! Bytes from one socket to another that never come into our memory: splice(2), by way of a pipe.

use crate::deadline::Timed;
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::pipe2;
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Poll, ready};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// A step that brings less is not worth a pipe: copying it costs no more.
pub(super) const WORTH_IT: usize = 16 * 1024;
/// Pipes that a thread keeps; a connection has one for as long as bytes are in it.
const KEPT: usize = 4;
/// Pipes of the process at most. Connections beyond, whose peers are slow, have their bytes copied.
const MOST: usize = 256;

static OPEN: AtomicUsize = AtomicUsize::new(0);
/// The system knows no such thing, or not for sockets.
static UNKNOWN: AtomicBool = AtomicBool::new(false);

thread_local! {
    static IDLE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe and how many bytes are in it.
pub(super) struct Pipe {
    inlet: OwnedFd,
    outlet: OwnedFd,
    held: usize,
}

/// What filling a pipe came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// So many bytes are in it.
    Bytes(usize),
    /// The reader has said all.
    End,
    /// It can't be filled, with these bytes or at all: they have to be copied.
    Unable,
}

impl Pipe {
    /// An empty one; `None` if there are too many, or no descriptors left.
    pub(super) fn take() -> Option<Pipe> {
        if UNKNOWN.load(Relaxed) {
            return None;
        }
        if let Some(pipe) = IDLE.with_borrow_mut(Vec::pop) {
            return Some(pipe);
        }
        if OPEN.fetch_add(1, Relaxed) >= MOST {
            OPEN.fetch_sub(1, Relaxed);
            return None;
        }
        match pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC) {
            Ok((outlet, inlet)) => Some(Pipe { inlet, outlet, held: 0 }),
            Err(_) => {
                OPEN.fetch_sub(1, Relaxed);
                None
            }
        }
    }

    /// Keeps an empty one for the next taker.
    pub(super) fn give_back(self) {
        if self.held == 0 {
            IDLE.with_borrow_mut(|idle| {
                if idle.len() < KEPT {
                    idle.push(self);
                }
            });
        }
    }

    /// Bytes that are in it.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Moves what there is into it, `most` bytes at most, which wait in the kernel while the writer takes none. It must be
    /// empty, for a full one can't be told from a reader that has nothing.
    pub(super) fn poll_fill(
        &mut self,
        from: &TcpStream,
        most: usize,
        cx: &mut Timed<'_>,
    ) -> Poll<io::Result<Filled>> {
        loop {
            match from.try_io(Interest::READABLE, || fill(from, &self.inlet, most)) {
                Ok(None) => return Poll::Ready(Ok(Filled::Unable)),
                Ok(Some(0)) => return Poll::Ready(Ok(Filled::End)),
                Ok(Some(n)) => {
                    self.held += n;
                    return Poll::Ready(Ok(Filled::Bytes(n)));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready!(from.poll_read_ready(cx))?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                    UNKNOWN.store(true, Relaxed);
                    return Poll::Ready(Ok(Filled::Unable));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Moves what is in it to the writer, as far as that takes it now; how much that was.
    pub(super) fn poll_drain(&mut self, to: &TcpStream, cx: &mut Timed<'_>) -> Poll<io::Result<usize>> {
        loop {
            match to.try_io(Interest::WRITABLE, || step(&self.outlet, to, self.held)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    self.held -= n.min(self.held);
                    return Poll::Ready(Ok(n));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready!(to.poll_write_ready(cx))?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

/// One step into a pipe. `None` if the socket has bytes that only a read brings: urgent data ends every splice, as if there
/// were no more, and is passed over by a read.
fn fill(from: &TcpStream, inlet: &OwnedFd, most: usize) -> io::Result<Option<usize>> {
    match step(from, inlet, most) {
        Ok(n @ 1..) => Ok(Some(n)),
        Err(error) if !matches!(error.kind(), io::ErrorKind::WouldBlock) => Err(error),
        Ok(_) | Err(_) => {
            let n = recv(from.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)?;
            Ok((n == 0).then_some(0))
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Relaxed);
    }
}

fn step<A: std::os::fd::AsFd, B: std::os::fd::AsFd>(from: A, to: B, len: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(from, None, to, None, len, flags)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::deadline::{Deadline, within};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    async fn soon<T>(mut poll: impl FnMut(&mut Timed<'_>) -> Poll<T>) -> T {
        within(&mut Deadline::after(Duration::from_secs(60)), |_, cx| poll(cx)).await.unwrap()
    }

    #[tokio::test]
    async fn bytes_go_from_socket_to_socket_and_the_end_is_seen() {
        let ((mut client, from), (to, mut server)) = (pair().await, pair().await);
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        let expected = sent.clone();
        tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
        });
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            server.read_to_end(&mut all).await.unwrap();
            all
        });
        let mut pipe = Pipe::take().unwrap();
        let mut moved = 0;
        loop {
            match soon(|cx| pipe.poll_fill(&from, 100_000, cx)).await.unwrap() {
                Filled::Bytes(n) => assert!(n <= 100_000 && n == pipe.held()),
                filled => {
                    assert_eq!(filled, Filled::End);
                    break;
                }
            }
            while pipe.held() > 0 {
                moved += soon(|cx| pipe.poll_drain(&to, cx)).await.unwrap();
            }
        }
        drop(to);
        assert_eq!(moved, expected.len());
        assert!(reader.await.unwrap() == expected);
        pipe.give_back();
        assert_eq!(IDLE.with_borrow(Vec::len), 1, "it is there for the next one");
    }
}
