//! Accepting connections on one socket of one worker.

use super::{ActiveListener, Slot, connection, udp};
use crate::io::Socket;
use crate::sockets::{self, ListenSocket};
use crate::worker::{Command, Worker};
use futures_util::future::Either;
use sixfold_core::overload::{Act, Full, Place};
use std::fs::File;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long handshakes under way are waited for once nothing new may begin.
const LAST_HANDSHAKES: Duration = Duration::from_millis(200);
/// Pauses while descriptors or memory are short.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// That an acceptor is to close its socket.
pub(crate) struct Closing {
    /// The socket is another process's now, and so is what waits in its queue.
    pub(crate) handed_over: bool,
    /// Told when it is closed.
    pub(crate) done: oneshot::Sender<()>,
}

/// Makes a socket ready on the worker's runtime; the future accepts until it is told to close, and tells when
/// the socket is closed.
pub(crate) fn accept(
    socket: ListenSocket,
    slot: Arc<Slot>,
    worker: Arc<Worker>,
    closing: oneshot::Receiver<Closing>,
) -> io::Result<impl Future<Output = ()> + Send> {
    let socket = match socket {
        ListenSocket::Tcp(tcp) => Listening::Tcp(TcpListener::from_std(tcp)?),
        ListenSocket::Unix(unix) => Listening::Unix(UnixListener::from_std(unix)?),
        ListenSocket::Udp(udp) => return Ok(Either::Right(udp::receive(udp, slot, worker, closing)?)),
    };
    let acceptor = Acceptor { socket, slot, worker, reserve: reserve(), pause: BACK_OFF.0, rests: None };
    Ok(Either::Left(acceptor.run(closing)))
}

/// A descriptor to give up when there are no others, so that a connection can be accepted and closed.
fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listening {
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Listening::Tcp(tcp) => Ok(Socket::tcp(tcp.accept().await?.0)),
            Listening::Unix(unix) => Ok(Socket::unix(unix.accept().await?.0)),
        }
    }
}

struct Acceptor {
    socket: Listening,
    slot: Arc<Slot>,
    worker: Arc<Worker>,
    reserve: Option<File>,
    pause: Duration,
    /// Until when nothing is accepted, for want of descriptors or memory.
    rests: Option<Instant>,
}

impl Acceptor {
    async fn run(mut self, mut closing: oneshot::Receiver<Closing>) {
        let mut accepts = self.worker.shared.accepts.subscribe();
        let inheritance = self.worker.shared.options.inheritance.clone();
        let mut opened = pin!(inheritance.opened());
        let mut is_open = false;
        let closed = loop {
            let accepting = is_open
                && self.rests.is_none()
                && (*accepts.borrow_and_update() || self.slot.0.load().config.spared.load);
            let rested = self.rests.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                closed = &mut closing => break closed.ok(),
                () = &mut opened, if !is_open => is_open = true,
                Ok(()) = accepts.changed() => {}
                () = tokio::time::sleep_until(rested), if self.rests.is_some() => self.rests = None,
                accepted = self.socket.accept(), if accepting => self.take(accepted),
            }
        };
        if !closed.as_ref().is_some_and(|closing| closing.handed_over) {
            self.empty_queue().await;
        }
        drop(self);
        if let Some(Closing { done, .. }) = closed {
            // The control thread may have given up waiting.
            let _ = done.send(());
        }
    }

    fn take(&mut self, accepted: io::Result<Socket>) {
        match accepted {
            Ok(socket) => {
                self.pause = BACK_OFF.0;
                dispatch(socket, &self.slot, &self.worker);
            }
            Err(e) if sockets::is_of_connection(&e) => {}
            Err(e) => self.back_off(&e),
        }
    }

    /// Has better times waited for. With no descriptor left one waiting client is turned away, which is kinder
    /// than silence.
    fn back_off(&mut self, error: &io::Error) {
        let name = &self.slot.0.load().config.name.clone();
        tracing::warn!(listener = %name, %error, "can't accept connections");
        if sockets::is_exhaustion(error) && self.reserve.take().is_some() {
            let turned_away = futures_util::FutureExt::now_or_never(self.socket.accept());
            drop(turned_away);
            self.reserve = reserve();
        }
        self.rests = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(BACK_OFF.1);
    }

    /// Serves every connection that has begun, so that closing the socket resets none.
    async fn empty_queue(&mut self) {
        if let Listening::Tcp(tcp) = &self.socket
            && let Err(error) = sockets::refuse_new(tcp)
        {
            tracing::debug!(%error, "connections in the last moment may be reset");
        }
        let mut last = pin!(tokio::time::sleep(LAST_HANDSHAKES));
        loop {
            tokio::select! {
                biased;
                accepted = self.socket.accept() => match accepted {
                    Ok(socket) => dispatch(socket, &self.slot, &self.worker),
                    Err(e) if sockets::is_of_connection(&e) => {}
                    Err(_) => return,
                },
                () = &mut last => return,
            }
        }
    }
}

/// The place of one more connection of a listener, as far as the load of the process leaves one.
pub(super) fn place(listener: &ActiveListener, worker: &Worker) -> Result<Option<Place>, Full> {
    let (config, Some(overload)) = (&listener.config, worker.shared.overload.get()) else { return Ok(None) };
    if !config.spared.load && overload.acts(Act::RejectConnections) {
        config.stats.downstream_cx_overload_reject().inc();
        return Err(Full);
    }
    if config.spared.limit {
        return Ok(None);
    }
    overload.connect().inspect_err(|Full| config.stats.downstream_global_cx_overflow().inc())
}

/// Serves a connection here or, where the listener wants it, on the worker with the fewest.
fn dispatch(socket: Socket, slot: &Arc<Slot>, worker: &Arc<Worker>) {
    let listener = slot.0.load_full();
    let Ok(place) = place(&listener, worker) else { return socket.refuse() };
    let mut here = Counted::new(&worker.connections, place);
    let peer = match listener.config.exact_balance && socket.as_tcp().is_some() {
        true => worker.shared.less_busy(worker.index),
        false => None,
    };
    let Some((peer, place)) = peer.and_then(|p| Some((p, p.commands.try_reserve().ok()?))) else {
        tokio::spawn(connection::run(socket, slot.clone(), worker.clone(), here));
        return;
    };
    if let Some(Ok((stream, _))) = socket.into_std() {
        let adopted = Adopted {
            stream,
            slot: slot.clone(),
            counted: Counted::new(&peer.connections, here.place.take()),
        };
        // Once it is sent its client may be answered, and come again.
        drop(here);
        place.send(Command::Adopt(adopted));
    }
}

/// A connection on its way to another worker, and counted there already.
pub(crate) struct Adopted {
    stream: std::net::TcpStream,
    slot: Arc<Slot>,
    counted: Counted,
}

impl Adopted {
    /// Serves it on `worker`, whose runtime must be driving this.
    pub(crate) fn serve(self, worker: &Arc<Worker>) {
        match TcpStream::from_std(self.stream) {
            Ok(stream) => {
                tokio::spawn(connection::run(Socket::tcp(stream), self.slot, worker.clone(), self.counted));
            }
            Err(error) => tracing::warn!(%error, "can't take a connection over"),
        }
    }
}

/// One of a worker's connections.
pub(crate) struct Counted {
    count: Arc<AtomicUsize>,
    /// Its place among those that the process may have.
    place: Option<Place>,
}

impl Counted {
    pub(super) fn new(count: &Arc<AtomicUsize>, place: Option<Place>) -> Counted {
        count.fetch_add(1, Relaxed);
        Counted { count: count.clone(), place }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
    }
}
