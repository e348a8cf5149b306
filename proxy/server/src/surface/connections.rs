//! Connections of a surface: how many there are, and which may be closed for another.

use super::wire::Wire;
use crate::deadline::{Deadline, Limit, after};
use parking_lot::Mutex;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Connections served at once. Beyond, the one that waits for longest is closed for a new one: a readiness probe must not
/// wait for clients that keep connections without a use, that do not send what they have begun, or that take no answer.
pub(super) const MOST_CONNECTIONS: usize = if cfg!(test) { 16 } else { 512 };
/// How long a client that takes nothing of its answer is one that reads: those that only wait are closed first.
const SENDING: Duration = Duration::from_secs(1);
/// How long a client may take nothing of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection is doing.
pub(super) struct Activity {
    state: Mutex<State>,
    /// The next head is that of an answer to HEAD whose body would go out in chunks.
    chunked: AtomicBool,
}

/// What is done for a connection's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doing {
    /// Nothing, for want of a request or of the rest of one.
    AwaitsClient,
    /// Nothing, for others come first.
    AwaitsTurn,
    /// An answer is sent, of which the client has taken something lately.
    Sends,
    /// An answer is made.
    Works,
}

struct State {
    doing: Doing,
    /// The client does not take what is written.
    blocked: bool,
    /// Since when it is as it is.
    since: Instant,
}

impl Default for Activity {
    fn default() -> Activity {
        let state = State { doing: Doing::AwaitsClient, blocked: false, since: Instant::now() };
        Activity { state: Mutex::new(state), chunked: AtomicBool::new(false) }
    }
}

impl Activity {
    /// Has the next head say `transfer-encoding: chunked`, which hyper leaves out of answers to HEAD.
    pub(super) fn say_chunked(&self) {
        self.chunked.store(true, Relaxed);
    }

    /// What it does from now on.
    pub(super) fn turns_to(&self, doing: Doing) {
        let mut state = self.state.lock();
        (state.doing, state.since) = (doing, Instant::now());
    }

    /// Its client does not take what is written, or has taken some of it.
    fn set_blocked(&self, blocked: bool) {
        let mut state = self.state.lock();
        if state.blocked != blocked {
            (state.blocked, state.since) = (blocked, Instant::now());
        }
    }

    /// What it waits for and since when; `None` while it works.
    fn waits(&self) -> Option<(Doing, Instant)> {
        let state = self.state.lock();
        let doing = match state.blocked {
            true if state.since.elapsed() < SENDING => Doing::Sends,
            true => Doing::AwaitsClient,
            false => state.doing,
        };
        (doing != Doing::Works).then_some((doing, state.since))
    }
}

/// An answer is being made.
pub(super) struct Serving(Arc<Activity>);

impl Serving {
    pub(super) fn new(activity: Arc<Activity>) -> Serving {
        activity.turns_to(Doing::Works);
        Serving(activity)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.turns_to(Doing::AwaitsClient);
    }
}

/// One open connection.
pub(super) struct Place {
    pub(super) activity: Arc<Activity>,
    pub(super) task: AbortHandle,
}

/// All of them.
#[derive(Default)]
pub(super) struct Places(pub(super) Vec<Place>);

impl Places {
    /// Makes room for one more; `false` when all are being worked for.
    pub(super) fn make_room(&mut self) -> bool {
        if self.0.len() < MOST_CONNECTIONS {
            return true;
        }
        self.0.retain(|place| !place.task.is_finished());
        if self.0.len() < MOST_CONNECTIONS {
            return true;
        }
        let waits = |(at, place): (usize, &Place)| Some((place.activity.waits()?, at));
        let Some((_, at)) = self.0.iter().enumerate().filter_map(waits).min() else { return false };
        self.0.swap_remove(at).task.abort();
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
        self.activity.set_blocked(polled.is_pending());
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
    use super::{MOST_CONNECTIONS, WRITE_TIMEOUT};
    use parking_lot::Mutex;
    use std::io::{ErrorKind, Read, Write};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

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
        let mut total = start.len();
        let mut piece = vec![0; 1 << 20];
        let mut idle = Vec::new();
        while total < 32 << 20 {
            if idle.len() < 2 * MOST_CONNECTIONS {
                idle.push(connect(surface.address));
            }
            reader.read_exact(&mut piece).unwrap_or_else(|error| panic!("cut after {total} bytes: {error}"));
            total += piece.len();
        }
        drop(idle);
    }

    /// A page of 12 MiB, and what is sent is echoed by those that want a body.
    struct Taken(Option<usize>);

    impl Answer for Taken {
        fn at_once(&self, query: &Query) -> Option<Reply> {
            let size = if query.path == "/ready" { 2 } else { 12 << 20 };
            Some(Reply::text(StatusCode::OK, vec![b'x'; size]))
        }

        fn answer(&self, _: &Query) -> Reply {
            Reply::text(StatusCode::OK, "")
        }

        fn max_body(&self) -> Option<usize> {
            self.0
        }
    }

    /// Half forms counted as work for ten seconds: with as many as there are places nobody else was answered.
    #[test]
    fn clients_that_stall_make_room_for_a_new_one() {
        let form = "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                    Content-Length: 10\r\n\r\na";
        let body = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\na";
        let untaken = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for (what, request, max_body) in
            [("form", form, None), ("body", body, Some(1 << 20)), ("answer", untaken, None)]
        {
            let any = (std::net::Ipv4Addr::LOCALHOST, 0).into();
            let surface = Surface::start("t", any, Arc::new(Taken(max_body))).unwrap();
            let mut stalled = Vec::new();
            for _ in 0..2 * MOST_CONNECTIONS {
                let mut client = connect(surface.address);
                client.write_all(request.as_bytes()).unwrap();
                stalled.push(client);
                // Until its head has been read, or its answer waits.
                std::thread::sleep(Duration::from_millis(20));
            }
            let start = std::time::Instant::now();
            for _ in 0..3 {
                let mut probe = connect(surface.address);
                asks(&mut probe);
                let mut answer = [0; 15];
                probe.read_exact(&mut answer).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(&answer, b"HTTP/1.1 200 OK", "{what}");
            }
            assert!(start.elapsed() < WRITE_TIMEOUT / 2, "{what}: {:?}", start.elapsed());
        }
    }

    /// Pages that wait until they may go on, and how many are made at once.
    #[derive(Default)]
    struct Slow {
        now: Arc<AtomicUsize>,
        most: Arc<AtomicUsize>,
        go_on: Arc<Mutex<()>>,
    }

    impl Answer for Slow {
        fn at_once(&self, query: &Query) -> Option<Reply> {
            (query.path == "/ready").then(|| Reply::text(StatusCode::OK, "ok"))
        }

        fn answer(&self, _: &Query) -> Reply {
            let (now, most, go_on) = (self.now.clone(), self.most.clone(), self.go_on.clone());
            Reply::written(move |out| {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                drop(go_on.lock());
                now.fetch_sub(1, SeqCst);
                out.write_all(b"a page")
            })
        }
    }

    /// Each page that was asked for was made at once, on a thread of its own.
    #[test]
    fn pages_take_turns_and_those_that_wait_make_room() {
        let any = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let slow = Slow::default();
        let (now, most, go_on) = (slow.now.clone(), slow.most.clone(), slow.go_on.clone());
        let held = go_on.lock();
        let surface = Surface::start("t", any, Arc::new(slow)).unwrap();
        let mut readers: Vec<_> = (0..MOST_CONNECTIONS).map(|_| connect(surface.address)).collect();
        for reader in &mut readers {
            reader.write_all(b"GET /stats HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        }
        // Some are made, and the others are there.
        while now.load(SeqCst) < THREADS || surface.connections() < MOST_CONNECTIONS {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut probe = connect(surface.address);
        asks(&mut probe);
        let mut answer = [0; 15];
        probe.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        drop(held);
        let whole = |reader: &mut TcpStream| {
            let mut text = String::new();
            reader.read_to_string(&mut text).is_ok() && text.contains("a page")
        };
        let answered = readers.iter_mut().map(whole).filter(|answered| *answered).count();
        assert_eq!(answered, MOST_CONNECTIONS - 1, "one made room for the probe");
        assert_eq!(most.load(SeqCst), THREADS);
    }
}
