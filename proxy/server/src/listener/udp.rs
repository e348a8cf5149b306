//! Receiving datagrams on one socket of one worker, for all clients whose datagrams the kernel gives it.
//!
//! A client is who sends from one address and port to one address of ours. Its first datagram begins a session, a task of
//! its own; those that follow go to its inbox. What all sessions may hold is bounded: beyond that datagrams are dropped, and
//! counted.

use super::accept::{Counted, place};
use super::connection::Open;
use super::{ActiveListener, Slot};
use crate::datagrams::{Datagrams, Path};
use crate::tcp_proxy::{Routed, Terms};
use crate::udp_proxy::{self, LONGEST, WAITING, Waiting};
use crate::worker::Worker;
use sixfold_core::connection::Connection;
use sixfold_core::listener::{L4Subject, NetworkFilter};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// A pause after an error of the socket that is about no datagram.
const PAUSE: Duration = Duration::from_millis(10);

/// Ends of sessions that wait to be heard of. They go before datagrams: there are never more than sessions.
const ENDS: usize = 16 << 10;

/// Datagrams that are taken before other tasks of the worker have their turn.
const TURN: usize = 64;

/// Makes a socket ready on the worker's runtime; the future receives until it is told to close, and tells when nothing
/// more is received. Sessions go on until they end by themselves.
pub(super) fn receive(
    socket: std::net::UdpSocket,
    slot: Arc<Slot>,
    worker: Arc<Worker>,
    closing: oneshot::Receiver<oneshot::Sender<()>>,
) -> io::Result<impl Future<Output = ()> + Send> {
    let socket = Arc::new(Datagrams::new(socket)?);
    let (ended, ends) = mpsc::channel(ENDS);
    let receiver = Receiver {
        socket,
        slot,
        worker,
        sessions: HashMap::new(),
        held: Arc::default(),
        ended,
        ends,
        next: 0,
    };
    Ok(receiver.run(closing))
}

struct Receiver {
    socket: Arc<Datagrams>,
    slot: Arc<Slot>,
    worker: Arc<Worker>,
    sessions: HashMap<Path, Client>,
    /// Bytes of datagrams that wait.
    held: Arc<AtomicUsize>,
    /// Told by each session that ends.
    ended: mpsc::Sender<(Path, u64)>,
    ends: mpsc::Receiver<(Path, u64)>,
    /// The number of the next session.
    next: u64,
}

/// A client with a session.
struct Client {
    number: u64,
    inbox: mpsc::Sender<Waiting>,
}

/// Says that a session has ended, however it does.
struct Ending(mpsc::Sender<(Path, u64)>, Path, u64);

impl Drop for Ending {
    fn drop(&mut self) {
        // Who received for it may be gone.
        let _ = self.0.try_send((self.1, self.2));
    }
}

impl Receiver {
    async fn run(mut self, mut closing: oneshot::Receiver<oneshot::Sender<()>>) {
        let mut buffer = vec![0; LONGEST];
        let mut taken = 0;
        let closed = loop {
            tokio::select! {
                biased;
                closed = &mut closing => break closed.ok(),
                Some((path, number)) = self.ends.recv() => self.forget(path, number),
                received = self.socket.receive(&mut buffer) => match received {
                    Ok((length, path)) => self.deliver(buffer.get(..length).unwrap_or_default(), path),
                    Err(error) => {
                        tracing::debug!(%error, "can't receive a datagram");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
            taken += 1;
            if taken % TURN == 0 {
                tokio::task::yield_now().await;
            }
        };
        if let Some(closed) = closed {
            // The control thread may have given up waiting.
            let _ = closed.send(());
        }
    }

    fn forget(&mut self, path: Path, number: u64) {
        if self.sessions.get(&path).is_some_and(|client| client.number == number) {
            self.sessions.remove(&path);
        }
        if self.sessions.capacity() > 1024 && self.sessions.len() < self.sessions.capacity() / 8 {
            self.sessions.shrink_to_fit();
        }
    }

    fn deliver(&mut self, datagram: &[u8], path: Path) {
        let listener = self.slot.0.load_full();
        let Some(chain) = listener.only_chain() else { return };
        let NetworkFilter::Routed(proxy) = &chain.chain.filter else { return };
        let Some(waiting) = Waiting::new(datagram, &self.held, proxy.udp.waiting) else {
            return proxy.upstream.datagrams_dropped().inc();
        };
        let waiting = match self.sessions.get(&path) {
            None => waiting,
            Some(client) => match client.inbox.try_send(waiting) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(_)) => return proxy.upstream.datagrams_dropped().inc(),
                // It has ended, and that is not known here yet.
                Err(mpsc::error::TrySendError::Closed(waiting)) => waiting,
            },
        };
        self.sessions.remove(&path);
        if self.sessions.len() >= proxy.udp.sessions {
            return proxy.upstream.datagrams_dropped().inc();
        }
        self.begin(waiting, path, &listener);
    }

    /// Begins a session with a client's first datagram.
    fn begin(&mut self, first: Waiting, path: Path, listener: &Arc<ActiveListener>) {
        let Some(chain) = listener.only_chain() else { return };
        let NetworkFilter::Routed(proxy) = &chain.chain.filter else { return };
        let Ok(place) = place(listener, &self.worker) else { return };
        let start = Instant::now();
        let connection = Connection {
            id: self.worker.shared.next_connection_id(),
            start,
            listener: listener.config.name.clone(),
            filter_chain: chain.chain.name.clone(),
            ..Connection::plain(path.client, path.local)
        };
        let subject = L4Subject { server_name: None, remote: path.client, local: path.local };
        let Some(route) = proxy.routes.find(&subject) else {
            proxy.stats.downstream_cx_total().inc();
            return proxy.stats.downstream_cx_no_route().inc();
        };
        let terms =
            Terms::routed(Routed { route, listener: proxy.clone(), server_name: None, client: path.client });
        let (inbox, datagrams) = mpsc::channel(WAITING);
        // There is room for the first.
        let _ = inbox.try_send(first);
        let number = self.next;
        self.next += 1;
        self.sessions.insert(path, Client { number, inbox });
        let ending = Ending(self.ended.clone(), path, number);
        let counted = Counted::new(&self.worker.connections, place);
        let open = Open::new(listener.config.stats.clone(), start);
        let (drain, proxy) = (chain.drain_of(self.worker.index), proxy.clone());
        let guard = drain.connection();
        let work = udp_proxy::serve(
            self.socket.clone(),
            path,
            datagrams,
            Arc::new(connection),
            terms,
            self.worker.clone(),
            drain,
        );
        tokio::spawn(async move {
            let _held = (counted, open, proxy.upstream.sessions_active().raise(), ending);
            guard.serve(Box::pin(work)).await;
        });
    }
}
