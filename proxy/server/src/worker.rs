//! Workers: one thread each, with its own runtime, pools and timers. A connection stays on its worker.

use crate::budget::default_budget;
use crate::descriptors;
use crate::dns::DnsCache;
use crate::drain::{Drain, DrainStrategy};
use crate::inheritance::Inheritance;
use crate::listener::filters::FilterStats;
use crate::listener::{Adopted, BoundAddresses, Closing, ListenerTable, Slot};
use crate::sockets::ListenSocket;
use crate::upstream::Pools;
use crate::wire::codecs::CodecStats;
use arc_swap::ArcSwap;
use sixfold_core::budget::ByteBudget;
use sixfold_core::cluster::Clusters;
use sixfold_core::metrics::Registry;
use sixfold_core::overload::Overload;
use sixfold_core::plugin::Callout;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

/// How often idle upstream connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// What belongs to one worker.
pub struct Worker {
    /// Its number from 0.
    pub index: usize,
    /// Upstream connections.
    pub pools: Pools,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Downstream connections it serves now.
    pub connections: Arc<AtomicUsize>,
}

/// What all workers share.
pub struct Shared {
    /// Cluster names.
    pub clusters: Arc<Clusters>,
    /// Statistics.
    pub metrics: Registry,
    /// Drain of the whole process.
    pub drain: Drain,
    /// Requests to services beside the upstreams.
    pub callout: Arc<dyn Callout>,
    /// As started.
    pub options: Options,
    /// Sessions of UDP on all workers.
    pub(crate) udp_sessions: Arc<AtomicUsize>,
    /// Bodies that requests hold in memory.
    pub bodies: Arc<ByteBudget>,
    /// `POST /healthcheck/fail`: responses carry `connection: close` and
    /// `x-envoy-immediate-health-check-fail`.
    pub health_failed: Arc<AtomicBool>,
    /// The process's load, where something is done about it.
    pub(crate) overload: OnceLock<Arc<Overload>>,
    /// Whether connections are accepted: not under load.
    pub(crate) accepts: watch::Sender<bool>,
    /// What listener filters have found.
    pub(crate) filter_stats: FilterStats,
    /// What is counted of the codecs that clients speak with.
    pub(crate) codecs: CodecStats,
    /// Listeners by address, for connections that are handed over (`use_original_dst`).
    pub(crate) listeners: ArcSwap<ListenerTable>,
    /// What listeners are bound to.
    pub(crate) addresses: ArcSwap<BoundAddresses>,
    /// All workers in order, once they run.
    pub(crate) peers: OnceLock<Vec<Peer>>,
    /// Resolves the names of DNS clusters, once it is set.
    pub(crate) dns: OnceLock<DnsCache>,
}

/// How the server was started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of workers.
    pub concurrency: usize,
    /// Time that old listeners and filter chains get, 600 s by default (`--drain-time-s`).
    pub drain_time: Duration,
    /// How responses tell clients to go (`--drain-strategy`).
    pub drain_strategy: DrainStrategy,
    /// Bytes of bodies that all requests together may hold in memory: a quarter of what the process may use, at
    /// least 64 MiB.
    pub body_budget: usize,
    /// Sessions of UDP on all workers, each of which has a descriptor: half of those that the process may have.
    pub udp_sessions: usize,
    /// Sockets of another process whose place this one takes; none by default.
    pub inheritance: Inheritance,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            concurrency: std::thread::available_parallelism().map_or(1, usize::from),
            drain_time: Duration::from_secs(600),
            drain_strategy: DrainStrategy::Gradual,
            body_budget: default_budget(),
            udp_sessions: descriptors::limit() / 2,
            inheritance: Inheritance::default(),
        }
    }
}

/// A worker as others see it.
pub(crate) struct Peer {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) connections: Arc<AtomicUsize>,
}

/// What a worker is told.
pub(crate) enum Command {
    /// Accept connections on a socket; `live` is told once it does.
    Listen { id: u64, socket: ListenSocket, slot: Arc<Slot>, live: oneshot::Sender<io::Result<()>> },
    /// Let nothing new in on the sockets of an address, serve what waits in their queues, close them. What was `handed_over`
    /// is another process's, also what waits there.
    Close { id: u64, handed_over: bool, closed: oneshot::Sender<()> },
    /// Serve a connection that another worker accepted.
    Adopt(Adopted),
    /// Tell that no request is being looked at: all that is done without a wait of its own is done.
    Settle(oneshot::Sender<()>),
    /// End, with all that is left.
    Stop,
}

impl Shared {
    /// The shared part of a server.
    pub fn new(
        clusters: Arc<Clusters>,
        metrics: Registry,
        callout: Arc<dyn Callout>,
        options: Options,
    ) -> Shared {
        Shared {
            clusters,
            metrics,
            drain: Drain::new(),
            callout,
            udp_sessions: Arc::default(),
            bodies: Arc::new(ByteBudget::new(options.body_budget)),
            options,
            health_failed: Arc::default(),
            overload: OnceLock::new(),
            accepts: watch::Sender::new(true),
            filter_stats: FilterStats::default(),
            codecs: CodecStats::default(),
            listeners: ArcSwap::default(),
            addresses: ArcSwap::default(),
            peers: OnceLock::new(),
            dns: OnceLock::new(),
        }
    }

    /// The number of the next connection, from 1.
    pub fn next_connection_id(&self) -> u64 {
        sixfold_core::connection::next_id()
    }

    /// The worker with the fewest connections, unless it is `asking` itself or no better off.
    pub(crate) fn less_busy(&self, asking: usize) -> Option<&Peer> {
        let peers = self.peers.get()?;
        let own = peers.get(asking)?.connections.load(Relaxed);
        let (load, peer) =
            peers.iter().map(|p| (p.connections.load(Relaxed), p)).min_by_key(|(load, _)| *load)?;
        (load < own).then_some(peer)
    }
}

impl Worker {
    /// Worker number `index`.
    pub fn new(index: usize, shared: Arc<Shared>) -> Worker {
        Worker { index, pools: Pools::default(), shared, connections: Arc::default() }
    }

    /// Does what it is told until it is told to stop. Connections are tasks of the runtime that drives this.
    pub(crate) async fn run(self: Arc<Worker>, mut commands: mpsc::Receiver<Command>) {
        let mut sockets: HashMap<u64, Vec<oneshot::Sender<Closing>>> = HashMap::new();
        self.pools.enter(self.index);
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let command = tokio::select! {
                command = commands.recv() => command,
                _ = sweep.tick() => {
                    self.pools.sweep();
                    continue;
                }
            };
            let Some(command) = command else { return };
            match command {
                Command::Listen { id, socket, slot, live } => {
                    let (close, closing) = oneshot::channel();
                    let opened = crate::listener::accept(socket, slot, self.clone(), closing);
                    let opened = opened.map(|accepting| {
                        tokio::spawn(accepting);
                        sockets.entry(id).or_default().push(close);
                    });
                    // Nobody waits any more when the server ends meanwhile.
                    let _ = live.send(opened);
                }
                Command::Close { id, handed_over, closed } => {
                    let closing = sockets.remove(&id).unwrap_or_default();
                    close(closing, handed_over, closed);
                }
                Command::Adopt(adopted) => adopted.serve(&self),
                Command::Settle(settled) => {
                    // Every other task of this thread waits for something while this one runs. Who asked may have gone.
                    let _ = settled.send(());
                }
                Command::Stop => return,
            }
        }
    }
}

/// Has acceptors close their sockets; `closed` is told once all have.
fn close(acceptors: Vec<oneshot::Sender<Closing>>, handed_over: bool, closed: oneshot::Sender<()>) {
    let mut waiting = Vec::with_capacity(acceptors.len());
    for acceptor in acceptors {
        let (done, told) = oneshot::channel();
        if acceptor.send(Closing { handed_over, done }).is_ok() {
            waiting.push(told);
        }
    }
    tokio::spawn(async move {
        for told in waiting {
            // One that has ended has closed it.
            let _ = told.await;
        }
        // The control thread may have given up waiting.
        let _ = closed.send(());
    });
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "worker {}", self.index)
    }
}
