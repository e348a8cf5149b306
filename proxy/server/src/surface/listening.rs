//! Where a surface listens, and whether it does: another process may take its place.

use super::{Answer, accept};
use crate::deadline::after;
use crate::inheritance::{Handed, Inheritance};
use crate::sockets::{self, ListenSocket};
use sixfold_core::listener::{BindAddress, SocketRights};
use sixfold_core::tls::ServerContext;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Connections that wait to be accepted, as of the standard library's listeners.
const BACKLOG: u32 = 128;
/// How often connections are looked at that are to end.
const LOOK: Duration = Duration::from_millis(2);

/// What a surface does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Takes them.
    Accepting,
    /// Leaves new ones in the queue, and ends those that it has with their answers.
    Paused,
    /// The same for good; the listener is closed.
    Retired,
}

/// How many connections there are.
#[derive(Debug, Clone, Default)]
pub(super) struct Counter(Arc<AtomicUsize>);

/// One of them.
pub(super) struct Counted(Counter);

impl Counter {
    pub(super) fn one_more(&self) -> Counted {
        self.0.fetch_add(1, Relaxed);
        Counted(self.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// A running server; it stops when this is dropped.
#[derive(Debug)]
pub struct Surface {
    /// Where it listens.
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    open: Counter,
    /// The listener once more, for a process that takes the place of this one.
    held: Option<OwnedFd>,
}

impl Surface {
    /// Starts a server on a thread called `name`. Port 0 takes a free one.
    ///
    /// # Errors
    /// When the address can't be bound or the thread not be started.
    pub fn start(name: &str, address: SocketAddr, answer: Arc<dyn Answer>) -> io::Result<Surface> {
        Surface::start_with(name, address, answer, None, &Inheritance::default())
    }

    /// [`Surface::start`] with TLS, if there is a context for it, and on a socket of another process, if there is one.
    ///
    /// # Errors
    /// As of [`Surface::start`].
    pub fn start_with(
        name: &str,
        address: SocketAddr,
        answer: Arc<dyn Answer>,
        tls: Option<Arc<ServerContext>>,
        inheritance: &Inheritance,
    ) -> io::Result<Surface> {
        let listener = listen(address, inheritance)?;
        let held = Some(listener.as_fd().try_clone_to_owned()?);
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(answer.threads())
            .thread_keep_alive(Duration::from_secs(1))
            .build()?;
        let (mode, mut told) = watch::channel(Mode::Accepting);
        let (open, inheritance) = (Counter::default(), inheritance.clone());
        let (counter, mode_of_connections) = (open.clone(), told.clone());
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                let accepting = async {
                    inheritance.opened().await;
                    accept(listener, answer, tls, (mode_of_connections, counter)).await;
                    // What it has taken is answered until the process ends.
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = accepting => {}
                    // Nobody has it any more.
                    () = async { while told.changed().await.is_ok() {} } => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Surface { address, mode, open, held })
    }

    /// Its listening socket once more.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn socket(&self) -> io::Result<Handed> {
        let held = self.held.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        Ok((BindAddress::Ip(self.address), held))
    }

    /// Accepts no connection, and ends those that there are with their answers; waits for that, but not beyond
    /// `limit`. New ones wait until it goes on, or are another process's.
    pub fn pause(&self, limit: Duration) {
        self.mode.send_replace(Mode::Paused);
        let deadline = after(Instant::now(), limit);
        while self.open.0.load(Relaxed) > 0 && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
    }

    /// Accepts connections again.
    pub fn resume(&self) {
        self.mode.send_replace(Mode::Accepting);
    }

    /// How many connections there are.
    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        self.open.0.load(Relaxed)
    }

    /// Leaves the listener to another process for good. What it has taken is answered.
    pub fn retire(&mut self) {
        self.held = None;
        self.mode.send_replace(Mode::Retired);
    }
}

fn listen(address: SocketAddr, inheritance: &Inheritance) -> io::Result<std::net::TcpListener> {
    let address = available(address, Socket::new(Domain::IPV6, Type::STREAM, None).err());
    let wanted = BindAddress::Ip(address);
    if !inheritance.has(&wanted) {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        return Ok(listener);
    }
    let reserved = sockets::inherit_or_reserve(inheritance, &wanted, 1, false, SocketRights::default())?;
    let bound = reserved.listen(BACKLOG)?;
    inheritance.adopt(&bound.address);
    match bound.sockets.into_iter().next() {
        Some(ListenSocket::Tcp(listener)) => Ok(listener),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// The address; for every one of IPv6, and so of IPv4, every one of IPv4 where this is why there is no IPv6.
fn available(address: SocketAddr, without: Option<io::Error>) -> SocketAddr {
    let has_ipv6 = without.is_none_or(|error| error.raw_os_error() != Some(libc::EAFNOSUPPORT));
    match address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !has_ipv6 {
        true => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()),
        false => address,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::surface::{Query, Reply};
    use http::StatusCode;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    struct Slow;

    impl Answer for Slow {
        fn at_once(&self, query: &Query) -> Option<Reply> {
            (query.path != "/slow").then(|| Reply::text(StatusCode::OK, "quick"))
        }

        fn answer(&self, _: &Query) -> Reply {
            std::thread::sleep(Duration::from_millis(200));
            Reply::text(StatusCode::OK, "slow")
        }
    }

    fn ask(address: SocketAddr, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        stream
    }

    fn until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        while !all.ends_with(end) {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            all.push(byte[0]);
        }
        all
    }

    #[test]
    fn a_pause_answers_what_has_come_and_leaves_the_rest_waiting() {
        let any = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let surface = Surface::start("t", any, Arc::new(Slow)).unwrap();
        let mut idle = ask(surface.address, "/");
        until(&mut idle, b"quick");
        let mut slow = ask(surface.address, "/slow");
        while surface.connections() < 2 {
            std::thread::sleep(LOOK);
        }
        surface.pause(Duration::from_secs(10));
        assert!(until(&mut slow, b"slow").starts_with(b"HTTP/1.1 200"));
        assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "one that is idle is closed");
        let mut waiting = ask(surface.address, "/");
        waiting.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(waiting.read(&mut [0; 1]).is_err(), "nobody takes it");
        waiting.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        surface.resume();
        until(&mut waiting, b"quick");
    }

    /// A connection that had been accepted was closed before its first request was read.
    #[test]
    fn a_request_that_is_on_its_way_when_a_pause_begins_is_answered() {
        let any = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let surface = Surface::start("t", any, Arc::new(Slow)).unwrap();
        let mut early = TcpStream::connect(surface.address).unwrap();
        early.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        while surface.connections() == 0 {
            std::thread::sleep(LOOK);
        }
        std::thread::scope(|scope| {
            scope.spawn(|| surface.pause(Duration::from_secs(10)));
            while *surface.mode.borrow() == Mode::Accepting {
                std::thread::sleep(LOOK);
            }
            write!(early, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            let answer = String::from_utf8(until(&mut early, b"quick")).unwrap();
            assert!(answer.contains("connection: close"), "{answer}");
        });
    }

    #[test]
    fn another_one_goes_on_with_the_queue_of_one_that_retires() {
        let any = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let mut first = Surface::start("t", any, Arc::new(Slow)).unwrap();
        let inheritance = Inheritance::new(vec![first.socket().unwrap()]);
        let second = Surface::start_with("t", first.address, Arc::new(Slow), None, &inheritance).unwrap();
        assert_eq!(second.address, first.address);
        assert_eq!(inheritance.adopted(), [BindAddress::Ip(first.address)]);
        first.pause(Duration::from_secs(10));
        let mut waiting = ask(first.address, "/");
        first.retire();
        drop(first);
        inheritance.open();
        until(&mut waiting, b"quick");
    }

    /// Pods may have addresses of either family, and what asks them has that of the cluster.
    #[test]
    fn every_address_is_one_of_both_families() {
        let every: SocketAddr = "[::]:7085".parse().unwrap();
        let none = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
        assert_eq!(available(every, Some(none)), "0.0.0.0:7085".parse().unwrap());
        assert_eq!(available(every, Some(io::ErrorKind::Other.into())), every);
        let surface = Surface::start("t", "[::]:0".parse().unwrap(), Arc::new(Slow)).unwrap();
        for host in ["127.0.0.1", "::1"] {
            let address = SocketAddr::new(host.parse().unwrap(), surface.address.port());
            if surface.address.is_ipv4() && address.is_ipv6() {
                continue;
            }
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /quick HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with("quick"), "{host}: {answer}");
        }
    }
}
