//! Opening, changing and closing listeners, on the control thread.

use super::{ActiveListener, ListenerTable, Slot};
use crate::drain::DrainStrategy;
use crate::inheritance::Handed;
use crate::sockets::{self, Reserved};
use crate::worker::{Command, Peer, Shared};
use arc_swap::ArcSwap;
use sixfold_core::listener::{BindAddress, Listener};
use sixfold_core::model::Listeners;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;

/// How long a change waits for workers that look at requests: one that is held up for longer is not to hold up all changes.
const SETTLE: Duration = Duration::from_secs(1);

/// Listeners by name with the addresses they are bound to.
pub type BoundAddresses = Vec<(Arc<str>, Vec<BindAddress>)>;

sixfold_core::stat_block! {
    /// Statistics under `listener_manager.`.
    pub struct ManagerStats {
        counters: [
            listener_added, listener_modified, listener_removed, listener_stopped, listener_in_place_updated,
            listener_create_success, listener_create_failure,
        ],
        gauges: [
            total_listeners_active, total_listeners_draining, total_listeners_warming,
            workers_started,
        ],
        histograms: [],
        zeros: [Gauge "total_filter_chains_draining", Gauge "workers_pinned"],
    }
}

/// Every listener in use.
pub(crate) struct Manager {
    shared: Arc<Shared>,
    stats: ManagerStats,
    listeners: BTreeMap<Arc<str>, Managed>,
    prepared: HashMap<Arc<str>, Prepared>,
    unfinished: Unfinished,
    next_id: u64,
}

/// What a change of many listeners does for all of them together.
#[derive(Default)]
struct Unfinished {
    /// Whether others don't know yet of some that have come.
    hidden: bool,
    /// Whether one of those has no socket: connections are handed over to it.
    targets: bool,
    /// Those whose place was taken, and by whom.
    replaced: Vec<(Arc<ActiveListener>, Arc<ActiveListener>)>,
    /// Their sockets that nobody goes on with.
    closing: Vec<OpenSocket>,
    /// Workers that have not answered in time: they are not waited for again.
    late: BTreeSet<usize>,
}

impl Unfinished {
    /// Waits for a worker's answer, for a bounded time, until it has been late once. What holds one up is nothing to the others.
    async fn heard<T>(&mut self, worker: usize, answer: impl Future<Output = T>) -> Option<T> {
        let bound = if self.late.contains(&worker) { Duration::ZERO } else { SETTLE };
        let heard = tokio::time::timeout(bound, answer).await.ok();
        if heard.is_none() {
            self.late.insert(worker);
        }
        heard
    }
}

/// What a listener that comes has ready.
struct Prepared {
    config: Arc<Listener>,
    /// The addresses that it wants and does not have.
    addresses: HashMap<BindAddress, Reserved>,
}

struct Managed {
    active: Arc<ActiveListener>,
    sockets: HashMap<BindAddress, OpenSocket>,
}

/// The sockets of one address, one for each worker.
struct OpenSocket {
    id: u64,
    slot: Arc<Slot>,
    bound: BindAddress,
    /// The same sockets once more, for a process that takes the place of this one.
    held: Vec<OwnedFd>,
}

impl Manager {
    pub(crate) fn new(shared: Arc<Shared>) -> Manager {
        let stats = ManagerStats::new(&shared.metrics, "listener_manager.");
        stats.workers_started().set(1);
        Manager {
            shared,
            stats,
            listeners: BTreeMap::new(),
            prepared: HashMap::new(),
            unfinished: Unfinished::default(),
            next_id: 0,
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Shows how many listeners wait to be opened.
    pub(crate) fn count_warming(&self, listeners: usize) {
        self.stats.total_listeners_warming().set(listeners as u64);
    }

    /// Counts a listener as one that drains, for as long as that takes.
    fn count_draining(&self, time: Duration) {
        self.stats.total_listeners_draining().inc();
        let stats = self.stats.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            stats.total_listeners_draining().dec();
        });
    }

    fn addresses(&self) -> BoundAddresses {
        let bound = |m: &Managed| {
            let config = &m.active.config;
            if !config.bind {
                return config.addresses.clone();
            }
            let found = |a| m.sockets.get(a).map(|s| s.bound.clone());
            config.addresses.iter().filter_map(found).collect()
        };
        self.listeners.iter().map(|(name, m)| (name.clone(), bound(m))).collect()
    }

    async fn replace(&mut self, config: Arc<Listener>) -> Result<(), String> {
        if config.bind && self.unfinished.targets {
            // Its clients may be meant for those.
            self.publish();
        }
        let name = config.name.clone();
        let previous = self.listeners.get(&name).map(|m| m.active.clone());
        let workers = self.shared.options.concurrency;
        let active = ActiveListener::new(config, previous.as_deref(), &self.shared.drain, workers);
        let active = Arc::new(active);
        let ready = self.prepared.remove(&name).filter(|ready| Arc::ptr_eq(&ready.config, &active.config));
        let opened =
            self.open_missing(&active, ready.map(|ready| ready.addresses).unwrap_or_default()).await?;

        let mut before = self.listeners.remove(&name).map(|m| m.sockets).unwrap_or_default();
        let mut sockets = opened;
        for address in wanted(&active.config) {
            if let Some(kept) = before.remove(address) {
                kept.slot.0.store(active.clone());
                sockets.insert(address.clone(), kept);
            }
        }
        self.listeners.insert(name, Managed { active: active.clone(), sockets });
        self.unfinished.hidden = true;
        self.unfinished.targets |= !active.config.bind;
        match previous {
            Some(previous) => {
                self.stats.listener_modified().inc();
                if previous.drain.is(&active.drain) {
                    self.stats.listener_in_place_updated().inc();
                }
                self.unfinished.replaced.push((previous, active));
            }
            None => self.stats.listener_added().inc(),
        }
        // The file of a socket is in the way of who is to have its path.
        let is_file = |address: &BindAddress, _: &mut OpenSocket| matches!(address, BindAddress::Unix(_));
        let files: Vec<_> = before.extract_if(is_file).map(|(_, socket)| socket).collect();
        self.unfinished.closing.extend(before.into_values());
        self.close(files.into_iter()).await;
        Ok(())
    }

    /// Takes what can fail of a listener: its logs open, its addresses free.
    fn ready(
        &self,
        config: &Arc<Listener>,
        given_up: &HashSet<BindAddress>,
        taken: &HashSet<BindAddress>,
    ) -> Result<Prepared, String> {
        config.access_logs().try_for_each(|log| log.sink.open())?;
        let own = self.listeners.get(&config.name);
        let workers = self.shared.options.concurrency;
        let mut addresses = HashMap::new();
        for address in wanted(config) {
            if own.is_some_and(|own| own.sockets.contains_key(address)) {
                continue;
            }
            let failed = |error: std::io::Error| format!("{}: {error}", address);
            if taken.contains(address) {
                return Err(failed(std::io::ErrorKind::AddrInUse.into()));
            }
            // One that takes in another, or is taken in, is in its way too.
            let given_up = given_up.iter().any(|going| going.overlaps(address));
            if given_up && matches!(address, BindAddress::Unix(_)) {
                // Its file is in the way until then.
                continue;
            }
            let inheritance = &self.shared.options.inheritance;
            let reserved =
                sockets::inherit_or_reserve(inheritance, address, workers, given_up, config.socket)
                    .map_err(failed)?;
            addresses.insert(address.clone(), reserved);
        }
        Ok(Prepared { config: config.clone(), addresses })
    }

    /// Addresses of listeners that will not have them any more after this change.
    fn given_up(&self, going: &[Arc<str>], coming: &[Arc<Listener>]) -> HashSet<BindAddress> {
        let sockets = |name: &Arc<str>| self.listeners.get(name).into_iter().flat_map(|own| &own.sockets);
        let gone = going.iter().flat_map(sockets);
        let left = coming.iter().flat_map(|next| {
            let kept: HashSet<&BindAddress> = wanted(next).collect();
            sockets(&next.name).filter(move |(asked, _)| !kept.contains(asked))
        });
        gone.chain(left).map(|(_, socket)| socket.bound.clone()).collect()
    }

    /// Opens the sockets that a listener wants and does not have yet. After an error none of them stays.
    async fn open_missing(
        &mut self,
        active: &Arc<ActiveListener>,
        mut ready: HashMap<BindAddress, Reserved>,
    ) -> Result<HashMap<BindAddress, OpenSocket>, String> {
        let mut opened = HashMap::new();
        let name = &active.config.name;
        for address in wanted(&active.config) {
            if self.listeners.get(name).is_some_and(|m| m.sockets.contains_key(address)) {
                continue;
            }
            match self.open(address, ready.remove(address), active).await {
                Ok(socket) => {
                    opened.insert(address.clone(), socket);
                }
                Err(error) => {
                    self.close(opened.into_values()).await;
                    return Err(format!("{}: {error}", address));
                }
            }
        }
        Ok(opened)
    }

    /// Opens one address and waits until every worker accepts on it. One that is held up finds what it is told when it goes on:
    /// until then the connections that are its wait in the queue of its socket.
    async fn open(
        &mut self,
        address: &BindAddress,
        ready: Option<Reserved>,
        active: &Arc<ActiveListener>,
    ) -> std::io::Result<OpenSocket> {
        let shared = self.shared.clone();
        let peers = shared.peers.get().map(Vec::as_slice).unwrap_or_default();
        let (inheritance, rights) = (&shared.options.inheritance, active.config.socket);
        let reserve = || sockets::inherit_or_reserve(inheritance, address, peers.len(), false, rights);
        let bound = ready.map_or_else(reserve, Ok)?.listen(active.config.backlog)?;
        inheritance.adopt(&bound.address);
        let held = bound.sockets.iter().map(|socket| socket.as_fd().try_clone_to_owned());
        let mut held: Vec<_> = held.collect::<std::io::Result<_>>()?;
        if matches!(bound.address, BindAddress::Unix(_)) {
            // The workers share one.
            held.truncate(1);
        }
        let id = self.next_id;
        self.next_id += 1;
        let slot = Arc::new(Slot(ArcSwap::from(active.clone())));
        let (mut waiting, mut full) = (Vec::new(), Ok(()));
        // Of sockets that were taken over there may be more than workers.
        for ((worker, peer), socket) in peers.iter().enumerate().cycle().zip(bound.sockets) {
            let (live, acknowledged) = oneshot::channel();
            let command = Command::Listen { id, socket, slot: slot.clone(), live };
            match self.unfinished.heard(worker, peer.commands.send(command)).await {
                Some(Ok(())) => waiting.push((worker, acknowledged)),
                // It has ended.
                Some(Err(_)) => {}
                None => full = Err(std::io::ErrorKind::TimedOut.into()),
            }
        }
        let socket = OpenSocket { id, slot, bound: bound.address, held };
        let mut outcome = full;
        for (worker, mut acknowledged) in waiting {
            match self.unfinished.heard(worker, &mut acknowledged).await {
                Some(told) => {
                    outcome =
                        outcome.and(told.unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into())));
                }
                None => {
                    tokio::spawn(late(address.clone(), acknowledged));
                }
            }
        }
        match outcome {
            Ok(()) => Ok(socket),
            Err(error) => {
                self.close(std::iter::once(socket)).await;
                Err(error)
            }
        }
    }

    /// Every socket that listens, once more.
    pub(crate) fn sockets(&self) -> std::io::Result<Vec<Handed>> {
        let sockets = self.listeners.values().flat_map(|managed| managed.sockets.values());
        let again = |socket: &OpenSocket| {
            let held = socket.held.iter().map(OwnedFd::try_clone).collect::<std::io::Result<_>>()?;
            Ok((socket.bound.clone(), held))
        };
        sockets.map(again).collect()
    }

    /// Stops to accept on sockets that another process has. Their queues stay as they are.
    pub(crate) async fn give_up(&mut self, addresses: &[BindAddress]) {
        let mut given = Vec::new();
        for managed in self.listeners.values_mut() {
            given.extend(managed.sockets.extract_if(|_, socket| addresses.contains(&socket.bound)));
        }
        self.close_as(given.into_iter().map(|(_, socket)| socket), true).await;
    }

    /// Drains listeners, all or those with inbound traffic; with `close` their sockets are closed too.
    pub(crate) async fn drain(
        &mut self,
        inbound_only: bool,
        close: bool,
        strategy: DrainStrategy,
        time: Option<Duration>,
    ) {
        let mut closing = Vec::new();
        for managed in self.listeners.values_mut() {
            if inbound_only && !managed.active.config.inbound {
                continue;
            }
            managed.active.drain.start(strategy, time);
            if close && !managed.sockets.is_empty() {
                self.stats.listener_stopped().inc();
                closing.extend(managed.sockets.drain().map(|(_, socket)| socket));
            }
        }
        self.close(closing.into_iter()).await;
    }

    /// Closes the sockets of listeners that have begun to drain.
    pub(crate) async fn close_draining(&mut self) {
        let draining = self.listeners.values_mut().filter(|m| m.active.drain.is_draining());
        let closing: Vec<_> = draining.flat_map(|m| m.sockets.drain().map(|(_, s)| s)).collect();
        self.close(closing.into_iter()).await;
    }

    async fn close(&self, sockets: impl Iterator<Item = OpenSocket>) {
        self.close_as(sockets, false).await;
    }

    async fn close_as(&self, sockets: impl Iterator<Item = OpenSocket>, handed_over: bool) {
        let peers = self.shared.peers.get().map(Vec::as_slice).unwrap_or_default();
        let mut waiting = Vec::new();
        for socket in sockets {
            for peer in peers {
                let (closed, done) = oneshot::channel();
                tell(peer, Command::Close { id: socket.id, handed_over, closed });
                waiting.push(done);
            }
            if let (BindAddress::Unix(path), false) = (&socket.bound, handed_over) {
                // Nobody shall connect to it any more; connections that wait are still served.
                let _ = std::fs::remove_file(path);
            }
        }
        answers(waiting).await;
    }

    /// Shows workers the listeners that connections may be handed over to, and drains those whose place they have taken.
    fn publish(&mut self) {
        let table = ListenerTable::new(self.listeners.values().map(|m| &m.active));
        self.shared.listeners.store(Arc::new(table));
        self.shared.addresses.store(Arc::new(self.addresses()));
        self.stats.total_listeners_active().set(self.listeners.len() as u64);
        (self.unfinished.hidden, self.unfinished.targets) = (false, false);
        let options = &self.shared.options;
        for (previous, next) in self.unfinished.replaced.drain(..) {
            previous.retire(&next, options.drain_strategy, options.drain_time);
        }
    }
}

impl Listeners for Manager {
    fn prepare(&mut self, going: &[Arc<str>], coming: &[Arc<Listener>]) -> Vec<(Arc<str>, String)> {
        let mut refused = Vec::new();
        let given_up = self.given_up(going, coming);
        let addresses_of = |ready: &Prepared| -> Vec<_> {
            ready.addresses.values().map(|reserved| reserved.address.clone()).collect()
        };
        let mut taken: HashSet<BindAddress> = self.prepared.values().flat_map(addresses_of).collect();
        coming.iter().flat_map(|config| config.access_logs()).for_each(|log| log.sink.start_opening());
        for config in coming {
            if self.prepared.get(&config.name).is_some_and(|ready| Arc::ptr_eq(&ready.config, config)) {
                continue;
            }
            // The addresses of one that waits and that this one takes the place of.
            let before = self.prepared.remove(&config.name);
            for address in before.iter().flat_map(addresses_of) {
                taken.remove(&address);
            }
            drop(before);
            match self.ready(config, &given_up, &taken) {
                Ok(ready) => {
                    taken.extend(addresses_of(&ready));
                    self.shared.filter_stats.show(&self.shared.metrics, &config.listener_filters);
                    self.prepared.insert(config.name.clone(), ready);
                }
                Err(reason) => {
                    self.stats.listener_create_failure().inc();
                    refused.push((config.name.clone(), reason));
                }
            }
        }
        refused
    }

    fn abandon(&mut self, names: &[Arc<str>]) {
        names.iter().for_each(|name| drop(self.prepared.remove(name)));
    }

    /// Their sockets are closed without resetting a connection, their connections are told to go.
    async fn remove(&mut self, names: &[Arc<str>]) {
        self.abandon(names);
        let mut closing = Vec::new();
        for name in names {
            let Some(managed) = self.listeners.remove(name) else { continue };
            self.stats.listener_removed().inc();
            let options = &self.shared.options;
            managed.active.drain.start(options.drain_strategy, Some(options.drain_time));
            self.count_draining(options.drain_time);
            closing.extend(managed.sockets.into_values());
        }
        if !closing.is_empty() {
            self.publish();
            self.close(closing.into_iter()).await;
        }
    }

    /// It is live, with every worker accepting, when this returns. Sockets whose address stays are kept, with
    /// the connections that wait in their queues.
    async fn upsert(&mut self, config: Arc<Listener>) -> Result<(), String> {
        let outcome = self.replace(config).await;
        match &outcome {
            Ok(()) => self.stats.listener_create_success().inc(),
            Err(_) => self.stats.listener_create_failure().inc(),
        }
        outcome
    }

    /// Others hear of all that has come, and what of it took the place of something has that end.
    async fn finish(&mut self) {
        if self.unfinished.hidden {
            self.publish();
        }
        let closing = std::mem::take(&mut self.unfinished).closing;
        self.close(closing.into_iter()).await;
    }

    async fn settled(&mut self) {
        let peers = self.shared.peers.get().map(Vec::as_slice).unwrap_or_default();
        let settle = |peer| {
            let (settled, done) = oneshot::channel();
            tell(peer, Command::Settle(settled));
            done
        };
        answers(peers.iter().map(settle).collect()).await;
    }
}

/// Tells a worker something, at once if it has room for it, else as soon as it has.
fn tell(peer: &Peer, command: Command) {
    if let Err(TrySendError::Full(command)) = peer.commands.try_send(command) {
        let commands = peer.commands.clone();
        tokio::spawn(async move {
            // One that has ended has closed all it had.
            let _ = commands.send(command).await;
        });
    }
}

/// Waits for the answers of workers, for a bounded time. One that has ended answers nothing, and does nothing.
async fn answers(waiting: Vec<oneshot::Receiver<()>>) {
    let all = async {
        for answer in waiting {
            let _ = answer.await;
        }
    };
    let _ = tokio::time::timeout(SETTLE, all).await;
}

/// Hears of a worker that was held up whether it accepts.
async fn late(address: BindAddress, acknowledged: oneshot::Receiver<std::io::Result<()>>) {
    if let Ok(Err(error)) = acknowledged.await {
        tracing::error!("a worker does not listen on {address}: {error}");
    }
}

/// The addresses a listener opens.
fn wanted(listener: &Listener) -> impl Iterator<Item = &BindAddress> {
    listener.addresses.iter().filter(|_| listener.bind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use tokio::time::{Instant, sleep};

    /// Once a worker had been held up, a listener was refused where the queue of another one was full for a moment.
    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_late_is_not_waited_for_again_and_the_others_are() {
        let (mut unfinished, begun) = (Unfinished::default(), Instant::now());
        assert_eq!(unfinished.heard(0, pending::<()>()).await, None);
        assert!(begun.elapsed() >= SETTLE);
        let begun = Instant::now();
        assert_eq!(unfinished.heard(0, pending::<()>()).await, None);
        assert!(begun.elapsed() < SETTLE);
        assert_eq!(unfinished.heard(1, sleep(SETTLE / 2)).await, Some(()));
        assert_eq!(unfinished.heard(0, ready(7)).await, Some(7));
    }
}
