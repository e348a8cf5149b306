//! Connections of a surface: how many there are, and which may be closed for another.

use super::wire::Wire;
use crate::deadline::{Deadline, Limit, after};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Connections served at once. Beyond, the oldest that is idle is closed for a new one: a readiness probe must not
/// wait for clients that keep connections without a use.
pub(super) const MOST_CONNECTIONS: usize = if cfg!(test) { 16 } else { 512 };
/// How long a client may take nothing of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection is doing.
#[derive(Default)]
pub(super) struct Activity {
    serving: AtomicBool,
    writing: AtomicBool,
    /// The next head is that of an answer to HEAD whose body would go out in chunks.
    chunked: AtomicBool,
}

impl Activity {
    /// Has the next head say `transfer-encoding: chunked`, which hyper leaves out of answers to HEAD.
    pub(super) fn say_chunked(&self) {
        self.chunked.store(true, Relaxed);
    }

    fn is_idle(&self) -> bool {
        !self.serving.load(Relaxed) && !self.writing.load(Relaxed)
    }
}

/// An answer is being made.
pub(super) struct Serving(Arc<Activity>);

impl Serving {
    pub(super) fn new(activity: Arc<Activity>) -> Serving {
        activity.serving.store(true, Relaxed);
        Serving(activity)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.serving.store(false, Relaxed);
    }
}

/// One open connection.
pub(super) struct Place {
    pub(super) activity: Arc<Activity>,
    pub(super) task: AbortHandle,
}

/// All of them, the oldest first.
#[derive(Default)]
pub(super) struct Places(pub(super) VecDeque<Place>);

impl Places {
    /// Makes room for one more; `false` when all are busy.
    pub(super) fn make_room(&mut self) -> bool {
        if self.0.len() < MOST_CONNECTIONS {
            return true;
        }
        self.0.retain(|place| !place.task.is_finished());
        if self.0.len() < MOST_CONNECTIONS {
            return true;
        }
        let Some(at) = self.0.iter().position(|place| place.activity.is_idle()) else { return false };
        if let Some(place) = self.0.remove(at) {
            place.task.abort();
        }
        true
    }
}

/// A head without a body behind it, with a line more.
fn with_chunked(head: &[u8]) -> Vec<u8> {
    match head.strip_suffix(b"\r\n\r\n") {
        Some(lines) => [lines, b"\r\ntransfer-encoding: chunked\r\n\r\n"].concat(),
        None => Vec::new(),
    }
}

/// A socket whose client must take what is written.
pub(super) struct Watched {
    stream: Wire,
    activity: Arc<Activity>,
    write: Deadline,
    /// A head with a line more than hyper has given it, as far as it has not been written.
    longer: Vec<u8>,
}

impl Watched {
    pub(super) fn new(stream: Wire, activity: Arc<Activity>) -> Watched {
        Watched { stream, activity, write: Deadline::unset(), longer: Vec::new() }
    }

    /// Writes what is longer than hyper knows, to its end.
    fn poll_longer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.longer.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.longer))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.longer.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    /// The client's time runs while it takes nothing.
    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.activity.writing.store(polled.is_pending(), Relaxed);
        if polled.is_ready() {
            self.write.set(None);
            return polled;
        }
        if !self.write.is_set() {
            self.write.set(Some(after(Instant::now(), WRITE_TIMEOUT)));
        }
        self.write.poll_expired(cx).map(|timed_out| Err(timed_out.into()))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.activity.chunked.swap(false, Relaxed) {
            self.longer = with_chunked(data);
        }
        if self.longer.is_empty() {
            let polled = Pin::new(&mut self.stream).poll_write(cx, data);
            return self.watch(cx, polled);
        }
        let polled = self.poll_longer(cx);
        self.watch(cx, polled).map_ok(|()| data.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::super::*;
    use super::MOST_CONNECTIONS;
    use std::io::{ErrorKind, Read, Write};
    use std::net::TcpStream;

    struct Page(usize);

    impl Answer for Page {
        fn at_once(&self, _: &Query) -> Option<Reply> {
            Some(Reply::text(StatusCode::OK, vec![b'x'; self.0]))
        }

        fn answer(&self, _: &Query) -> Reply {
            Reply::text(StatusCode::OK, "")
        }
    }

    fn connect(address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    fn asks(stream: &mut TcpStream) {
        stream.write_all(b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    }

    fn is_open(stream: &mut TcpStream) -> bool {
        stream.set_nonblocking(true).unwrap();
        matches!(stream.read(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// As many idle connections as there may be kept `/ready` from answering until their time was up.
    #[test]
    fn idle_connections_make_room_for_a_new_one() {
        let surface =
            Surface::start("t", (std::net::Ipv4Addr::LOCALHOST, 0).into(), Arc::new(Page(2))).unwrap();
        let mut idle: Vec<_> = (0..MOST_CONNECTIONS).map(|_| connect(surface.address)).collect();
        let mut probe = connect(surface.address);
        asks(&mut probe);
        let mut answer = [0; 15];
        probe.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        let open = idle.iter_mut().filter_map(|stream| is_open(stream).then_some(())).count();
        assert_eq!(
            open,
            MOST_CONNECTIONS - 1,
            "one was closed for it, and it did not wait for the others' time"
        );
        assert!(!is_open(&mut idle[0]), "the oldest");
    }

    #[test]
    fn a_connection_whose_answer_is_on_its_way_is_not_idle() {
        let surface =
            Surface::start("t", (std::net::Ipv4Addr::LOCALHOST, 0).into(), Arc::new(Page(32 << 20))).unwrap();
        let mut reader = connect(surface.address);
        asks(&mut reader);
        let mut start = [0; 15];
        reader.read_exact(&mut start).unwrap();
        let idle: Vec<_> = (0..2 * MOST_CONNECTIONS).map(|_| connect(surface.address)).collect();
        let mut total = start.len();
        let mut piece = vec![0; 1 << 20];
        while total < 32 << 20 {
            match reader.read(&mut piece).unwrap() {
                0 => panic!("cut after {total} bytes"),
                n => total += n,
            }
        }
        drop(idle);
    }
}
