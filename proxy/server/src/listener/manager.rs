//! Opening, changing and closing listeners, on the control thread.

use super::{ActiveListener, ListenerTable, Slot};
use crate::drain::DrainStrategy;
use crate::inheritance::Handed;
use crate::sockets::{self, Reserved};
use crate::worker::{Command, Shared};
use arc_swap::ArcSwap;
use sixfold_core::listener::{BindAddress, Listener};
use sixfold_core::model::Listeners;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a change waits for workers that look at requests.
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
            total_filter_chains_draining, workers_started,
        ],
        histograms: [],
        zeros: [Gauge "workers_pinned"],
    }
}

/// Every listener in use.
pub(crate) struct Manager {
    shared: Arc<Shared>,
    stats: ManagerStats,
    listeners: BTreeMap<Arc<str>, Managed>,
    prepared: HashMap<Arc<str>, Prepared>,
    next_id: u64,
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
        Manager { shared, stats, listeners: BTreeMap::new(), prepared: HashMap::new(), next_id: 0 }
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
        self.publish();
        match previous {
            Some(previous) => {
                self.stats.listener_modified().inc();
                if previous.drain.is(&active.drain) {
                    self.stats.listener_in_place_updated().inc();
                }
                let options = &self.shared.options;
                previous.retire(&active, options.drain_strategy, options.drain_time);
            }
            None => self.stats.listener_added().inc(),
        }
        self.close(before.into_values()).await;
        Ok(())
    }

    /// Takes what can fail of a listener: its logs open, its addresses free.
    fn ready(
        &self,
        config: &Arc<Listener>,
        going: &[Arc<str>],
        coming: &[Arc<Listener>],
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
            let mut reserved = self.prepared.values().flat_map(|other| other.addresses.values());
            if reserved.any(|other| other.address == *address) {
                return Err(failed(std::io::ErrorKind::AddrInUse.into()));
            }
            let given_up = self.is_given_up(address, going, coming);
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

    /// Whether a listener has the address that will not have it any more after this change.
    fn is_given_up(&self, address: &BindAddress, going: &[Arc<str>], coming: &[Arc<Listener>]) -> bool {
        self.listeners.iter().any(|(name, managed)| {
            let held = managed.sockets.iter().find(|(_, socket)| socket.bound == *address);
            let Some((asked, _)) = held else { return false };
            let next = coming.iter().find(|next| next.name == *name);
            going.contains(name) || next.is_some_and(|next| !wanted(next).any(|address| address == asked))
        })
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

    /// Opens one address and waits until every worker accepts on it.
    async fn open(
        &mut self,
        address: &BindAddress,
        ready: Option<Reserved>,
        active: &Arc<ActiveListener>,
    ) -> std::io::Result<OpenSocket> {
        let peers = self.shared.peers.get().map(Vec::as_slice).unwrap_or_default();
        let (inheritance, rights) = (&self.shared.options.inheritance, active.config.socket);
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
        let mut waiting = Vec::new();
        // Of sockets that were taken over there may be more than workers.
        for (peer, socket) in peers.iter().cycle().zip(bound.sockets) {
            let (live, acknowledged) = oneshot::channel();
            let command = Command::Listen { id, socket, slot: slot.clone(), live };
            if peer.commands.send(command).await.is_ok() {
                waiting.push(acknowledged);
            }
        }
        let socket = OpenSocket { id, slot, bound: bound.address, held };
        for acknowledged in waiting {
            let outcome = acknowledged.await.unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into()));
            if let Err(error) = outcome {
                self.close(std::iter::once(socket)).await;
                return Err(error);
            }
        }
        Ok(socket)
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
                if peer.commands.send(Command::Close { id: socket.id, handed_over, closed }).await.is_ok() {
                    waiting.push(done);
                }
            }
            if let (BindAddress::Unix(path), false) = (&socket.bound, handed_over) {
                // Nobody shall connect to it any more; connections that wait are still served.
                let _ = std::fs::remove_file(path);
            }
        }
        for done in waiting {
            // A worker that has ended has closed it.
            let _ = done.await;
        }
    }

    /// Shows workers the listeners that connections may be handed over to.
    fn publish(&self) {
        let table = ListenerTable::new(self.listeners.values().map(|m| &m.active));
        self.shared.listeners.store(Arc::new(table));
        self.shared.addresses.store(Arc::new(self.addresses()));
        self.stats.total_listeners_active().set(self.listeners.len() as u64);
    }
}

impl Listeners for Manager {
    fn prepare(&mut self, going: &[Arc<str>], coming: &[Arc<Listener>]) -> Vec<(Arc<str>, String)> {
        let mut refused = Vec::new();
        coming.iter().flat_map(|config| config.access_logs()).for_each(|log| log.sink.start_opening());
        for config in coming {
            if self.prepared.get(&config.name).is_some_and(|ready| Arc::ptr_eq(&ready.config, config)) {
                continue;
            }
            // The addresses of one that waits and that this one takes the place of.
            self.prepared.remove(&config.name);
            match self.ready(config, going, coming) {
                Ok(ready) => {
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

    async fn settled(&mut self) {
        let peers = self.shared.peers.get().map(Vec::as_slice).unwrap_or_default();
        let all = async {
            let mut waiting = Vec::new();
            for peer in peers {
                let (settled, done) = oneshot::channel();
                if peer.commands.send(Command::Settle(settled)).await.is_ok() {
                    waiting.push(done);
                }
            }
            for done in waiting {
                // A worker that has ended looks at nothing.
                let _ = done.await;
            }
        };
        // A worker that is held up for longer is not to hold up all changes.
        let _ = tokio::time::timeout(SETTLE, all).await;
    }
}

/// The addresses a listener opens.
fn wanted(listener: &Listener) -> impl Iterator<Item = &BindAddress> {
    listener.addresses.iter().filter(|_| listener.bind)
}
