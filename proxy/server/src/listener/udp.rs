//! Receiving datagrams on one socket of one worker, for all clients whose datagrams the kernel gives it.
//!
//! A client is who sends from one address and port to one address of ours. Its first datagram begins a session, a task of
//! its own; those that follow go to its inbox. What all sessions may hold is bounded. Where there is no place for another
//! session one of this socket's that is little used leaves; beyond the other bounds datagrams are dropped, and counted.

use super::accept::{Closing, Counted, place};
use super::connection::Open;
use super::{ActiveListener, Slot};
use crate::datagrams::{Datagrams, Path};
use crate::tcp_proxy::{Routed, Terms};
use crate::udp_proxy::{self, Correspondent, LONGEST, Shown, WAITING, Waiting};
use crate::worker::Worker;
use sixfold_core::connection::Connection;
use sixfold_core::listener::{L4Proxy, L4Subject, NetworkFilter, UdpLimits};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// A pause after an error of the socket that is about no datagram.
const PAUSE: Duration = Duration::from_millis(10);

/// Ends of sessions that wait to be heard of. They go before datagrams: there are never more than sessions.
const ENDS: usize = 2 * UdpLimits::SESSIONS;

/// Datagrams that are taken before other tasks of the worker have their turn.
const TURN: usize = 64;

/// Sessions that are looked at, at most, for one that may leave.
const LOOKS: usize = 64;

/// Makes a socket ready on the worker's runtime; the future receives until it is told to close, and tells when nothing
/// more is received. Sessions that wait for an answer then are given a moment for it.
pub(super) fn receive(
    socket: std::net::UdpSocket,
    slot: Arc<Slot>,
    worker: Arc<Worker>,
    closing: oneshot::Receiver<Closing>,
) -> io::Result<impl Future<Output = ()> + Send> {
    let socket = Arc::new(Datagrams::new(socket)?);
    let (ended, ends) = mpsc::channel(ENDS);
    let receiver = Receiver {
        socket,
        slot,
        worker,
        sessions: HashMap::new(),
        turns: VecDeque::new(),
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
    /// In which order sessions are looked at when one has to leave; those that have ended too, for a while.
    turns: VecDeque<(Path, u64)>,
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
    shown: Arc<Shown>,
}

impl Client {
    /// Hands a datagram to the session; whether there was room for it. `None` where that has ended.
    fn pass(&self, datagram: &[u8], held: &Arc<AtomicUsize>, most: usize) -> Option<bool> {
        let place = match self.inbox.try_reserve() {
            Ok(place) => place,
            Err(mpsc::error::TrySendError::Full(())) => return Some(false),
            Err(mpsc::error::TrySendError::Closed(())) => return None,
        };
        let Some(waiting) = Waiting::new(datagram, held, most) else { return Some(false) };
        self.shown.used.store(true, Relaxed);
        place.send(waiting);
        Some(true)
    }
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
    async fn run(mut self, mut closing: oneshot::Receiver<Closing>) {
        let mut buffer = vec![0; LONGEST];
        let mut taken = 0;
        let inheritance = self.worker.shared.options.inheritance.clone();
        let mut opened = std::pin::pin!(inheritance.opened());
        let mut is_open = false;
        let closed = loop {
            tokio::select! {
                biased;
                closed = &mut closing => break closed.ok(),
                () = &mut opened, if !is_open => is_open = true,
                Some((path, number)) = self.ends.recv() => self.forget(path, number),
                received = self.socket.receive(&mut buffer), if is_open => match received {
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
        if let Some(Closing { done, .. }) = closed {
            // The control thread may have given up waiting.
            let _ = done.send(());
        }
    }

    fn forget(&mut self, path: Path, number: u64) {
        if self.sessions.get(&path).is_some_and(|client| client.number == number) {
            self.sessions.remove(&path);
        }
        if self.sessions.capacity() > 1024 && self.sessions.len() < self.sessions.capacity() / 8 {
            self.sessions.shrink_to_fit();
        }
        if self.turns.len() > 1024 + 2 * self.sessions.len() {
            let sessions = &self.sessions;
            let lives =
                |(path, number): &(Path, u64)| sessions.get(path).is_some_and(|c| c.number == *number);
            self.turns.retain(lives);
        }
    }

    /// Has one session leave, which was not used for longest as nearly as a second chance for each tells; whether there was
    /// one.
    fn displace(&mut self, proxy: &L4Proxy) -> bool {
        let mut looks = 0;
        while let Some((path, number)) = self.turns.pop_front() {
            let Some(client) = self.sessions.get(&path).filter(|client| client.number == number) else {
                continue;
            };
            looks += 1;
            if client.shown.used.swap(false, Relaxed) && looks < LOOKS {
                self.turns.push_back((path, number));
                continue;
            }
            client.shown.displaced.notify_one();
            self.sessions.remove(&path);
            proxy.upstream.sessions_displaced().inc();
            return true;
        }
        false
    }

    fn deliver(&mut self, datagram: &[u8], path: Path) {
        let listener = self.slot.0.load_full();
        let Some(chain) = listener.only_chain() else { return };
        let NetworkFilter::Routed(proxy) = &chain.chain.filter else { return };
        let known = self.sessions.get(&path).map(|c| c.pass(datagram, &self.held, proxy.udp.waiting));
        match known {
            Some(Some(true)) => return,
            Some(Some(false)) => return proxy.upstream.datagrams_dropped().inc(),
            Some(None) => drop(self.sessions.remove(&path)),
            None => {}
        }
        self.begin(datagram, path, &listener);
    }

    /// Whether there is a place for one more session, once another has left perhaps. Whatever other sockets have: one without
    /// any session has a place.
    fn has_place(&mut self, proxy: &L4Proxy) -> bool {
        let (shared, own) = (&self.worker.shared, self.sessions.len());
        let all_are_full = shared.udp_sessions.load(Relaxed) >= shared.options.udp_sessions;
        let is_full = own >= proxy.udp.sessions || (all_are_full && own > 0);
        !is_full || self.displace(proxy)
    }

    /// Begins a session with a client's first datagram.
    fn begin(&mut self, first: &[u8], path: Path, listener: &Arc<ActiveListener>) {
        let Some(chain) = listener.only_chain() else { return };
        let NetworkFilter::Routed(proxy) = &chain.chain.filter else { return };
        let subject = L4Subject { server_name: None, remote: path.client, local: path.local };
        let Some(route) = proxy.routes.find(&subject) else {
            proxy.stats.downstream_cx_total().inc();
            return proxy.stats.downstream_cx_no_route().inc();
        };
        let Ok(place) = place(listener, &self.worker) else { return };
        if !self.has_place(proxy) {
            return proxy.upstream.datagrams_dropped().inc();
        }
        let Some(first) = Waiting::new(first, &self.held, proxy.udp.waiting) else {
            return proxy.upstream.datagrams_dropped().inc();
        };
        let start = Instant::now();
        let connection = Connection {
            id: self.worker.shared.next_connection_id(),
            start,
            listener: listener.config.name.clone(),
            filter_chain: chain.chain.name.clone(),
            listener_metadata: listener.config.metadata.clone(),
            chain_metadata: chain.chain.metadata.clone(),
            ..Connection::plain(path.client, path.local)
        };
        let terms =
            Terms::routed(Routed { route, listener: proxy.clone(), server_name: None, client: path.client });
        let (inbox, datagrams) = mpsc::channel(WAITING);
        // There is room for the first.
        let _ = inbox.try_send(first);
        let (number, shown) = (self.next, Arc::<Shown>::default());
        self.next += 1;
        self.sessions.insert(path, Client { number, inbox, shown: shown.clone() });
        self.turns.push_back((path, number));
        let ending = Ending(self.ended.clone(), path, number);
        let counted = (
            Counted::new(&self.worker.connections, place),
            Counted::new(&self.worker.shared.udp_sessions, None),
        );
        let open = Open::new(listener.config.stats.clone(), start);
        let (drain, proxy) = (chain.drain_of(self.worker.index), proxy.clone());
        let guard = drain.connection();
        let client = Correspondent { answers: self.socket.clone(), path, inbox: datagrams, shown };
        let work = udp_proxy::serve(client, Arc::new(connection), terms, self.worker.clone(), drain);
        tokio::spawn(async move {
            let _held = (counted, open, proxy.upstream.sessions_active().raise(), ending);
            guard.serve(Box::pin(work)).await;
        });
    }
}
