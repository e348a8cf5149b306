//! The control thread: it applies changes, one after the other, and never waits for the network.

use super::warming::{Cold, Helpers, Lack, Warm, Warming};
use super::{DrainRequest, QUEUE, SWEEP, WarmingNames};
use crate::admin::{Lifecycle, State};
use crate::dns::Discoverer;
use crate::drain::DrainStrategy;
use crate::health::HealthChecker;
use crate::inheritance::Handed;
use crate::listener::manager::Manager;
use crate::memory;
use crate::worker::Command;
use sixfold_core::cluster::Cluster;
use sixfold_core::listener::{BindAddress, Listener};
use sixfold_core::model::{ApplyError, Diff, Model};
use sixfold_core::tls::ContextChange;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// How long routes and listeners wait for clusters that lack secrets, at least: these come from beside the process, but
/// whoever hands them out may have to have them made first.
const FIRST_SECRETS: Duration = Duration::from_secs(5);
/// Changes that wait behind one that waits for its clusters; more end that one's wait.
const BEHIND: usize = QUEUE;

/// What the control thread is asked.
pub(super) enum Control {
    Apply(Change),
    Drain(DrainRequest, oneshot::Sender<()>),
    CloseDraining,
    /// Answers what waits.
    Warming(oneshot::Sender<WarmingNames>),
    /// Answers once no listener waits.
    Warm(oneshot::Sender<()>),
    /// Answers every socket that listens.
    Sockets(oneshot::Sender<std::io::Result<Vec<Handed>>>),
    /// Ends connections, and answers nothing more.
    Shutdown(Ending),
}

/// How a server ends.
pub(super) struct Ending {
    /// How long connections have.
    pub(super) limit: Duration,
    /// The addresses that another process has.
    pub(super) handed_over: Vec<BindAddress>,
    /// Told when no connection is accepted any more.
    pub(super) let_go: oneshot::Sender<()>,
    /// Told when connections have ended.
    pub(super) done: oneshot::Sender<()>,
}

impl Ending {
    /// At once, and nobody is told.
    fn now() -> Ending {
        let ((let_go, _), (done, _)) = (oneshot::channel(), oneshot::channel());
        Ending { limit: Duration::ZERO, handed_over: Vec::new(), let_go, done }
    }
}

/// A change to be applied.
pub(super) struct Change {
    pub(super) diff: Box<Diff>,
    /// How long routes and listeners of the change may wait for clusters that are new with it.
    pub(super) patience: Duration,
    /// Told when its turn has come and it is not refused as a whole; dropped if it is.
    pub(super) begun: Option<oneshot::Sender<()>>,
    pub(super) done: oneshot::Sender<Vec<ApplyError>>,
}

/// A change whose new clusters are not warm yet.
struct Held {
    change: Change,
    cold: Cold,
    /// What of it could not be used.
    errors: Vec<ApplyError>,
    since: Instant,
}

impl Held {
    fn until(&self) -> Instant {
        let patience = self.change.patience;
        let lacks_secret = self.cold.values().any(|lack| *lack == Lack::Secrets);
        self.since + if lacks_secret { patience.max(FIRST_SECRETS) } else { patience }
    }
}

pub(super) struct ControlThread {
    manager: Manager,
    model: Arc<Model>,
    lifecycle: Lifecycle,
    warming: Warming,
    /// Listeners of a start that need not wait any longer, and open with the last of them.
    opening: Vec<(Arc<str>, Option<Arc<Listener>>)>,
    checker: HealthChecker,
    held: Option<Held>,
    behind: VecDeque<Change>,
    /// Who wants to know when no listener waits any more.
    until_warm: Vec<oneshot::Sender<()>>,
}

impl ControlThread {
    pub(super) fn new(manager: Manager, model: Arc<Model>, lifecycle: Lifecycle) -> ControlThread {
        let shared = manager.shared();
        let warming = Warming::new(&shared.metrics);
        let checker = HealthChecker::new(shared.callout.clone(), shared.metrics.clone());
        let (held, behind, until_warm) = (None, VecDeque::new(), Vec::new());
        let opening = Vec::new();
        ControlThread { manager, model, lifecycle, warming, opening, checker, held, behind, until_warm }
    }

    fn is_starting(&self) -> bool {
        self.lifecycle.get() == State::Initializing
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Control>, back: mpsc::WeakSender<Control>) {
        let mut sweep = tokio::time::interval(SWEEP);
        let mut look = tokio::time::interval(memory::LOOK);
        let (mut trimmer, mut starting) = (memory::Trimmer::default(), true);
        loop {
            let until = self.held.as_ref().map(Held::until);
            tokio::select! {
                question = queue.recv() => match question {
                    Some(Control::Apply(change)) => self.take(change).await,
                    Some(Control::Drain(request, done)) => {
                        self.drain(request, &back).await;
                        let _ = done.send(());
                    }
                    Some(Control::CloseDraining) => self.manager.close_draining().await,
                    // Who asked may have gone.
                    Some(Control::Warming(answer)) => drop(answer.send(self.warming.names())),
                    Some(Control::Warm(done)) => self.until_warm.push(done),
                    Some(Control::Sockets(answer)) => drop(answer.send(self.manager.sockets())),
                    Some(Control::Shutdown(ending)) => return self.shutdown(ending).await,
                    None => return self.shutdown(Ending::now()).await,
                },
                warm = self.warming.warm() => self.warmed(warm).await,
                () = at(until) => self.release().await,
                _ = sweep.tick() => {
                    self.model.look_after(std::time::Instant::now());
                }
                _ = look.tick() => {
                    trimmer.look();
                }
            }
            if self.held.is_none() && self.warming.listeners() == 0 {
                if starting && !self.until_warm.is_empty() {
                    // What is left of the start is not worth keeping the code and the memory of all of it.
                    memory::end_start();
                    starting = false;
                }
                // Who asked may have gone.
                for done in self.until_warm.drain(..) {
                    let _ = done.send(());
                }
            }
        }
    }

    /// Applies a change in its turn.
    async fn take(&mut self, mut change: Change) {
        if self.held.is_some() {
            show_contexts(&mut change.diff);
            self.bring_endpoints(&mut change.diff).await;
        }
        if self.held.is_some() && self.needs_no_turn(&change.diff) {
            // It waits for nothing, having neither routes nor listeners.
            return self.begin(change).await;
        }
        self.behind.push_back(change);
        if self.behind.len() > BEHIND {
            self.release().await;
        }
        self.work_off().await;
    }

    /// Gives endpoints to clusters that a held change waits for: who sends them may wait for that change. The others are left
    /// to their turn, and so are those of clusters that a change of before says more of.
    async fn bring_endpoints(&mut self, diff: &mut Diff) {
        let Some(held) = &self.held else { return };
        let endpoints = std::mem::take(&mut diff.endpoints);
        let mut awaited: BTreeSet<&str> = held.cold.keys().map(|name| &**name).collect();
        let said = self.behind.iter().flat_map(|change| clusters_of(&change.diff)).chain(clusters_of(diff));
        said.for_each(|name| {
            awaited.remove(name);
        });
        let (awaited, others) = endpoints.into_iter().partition(|(name, _)| awaited.contains(&**name));
        diff.endpoints = others;
        let mut awaited = Diff { endpoints: awaited, ..Diff::default() };
        if awaited.endpoints.is_empty() {
            return;
        }
        self.hold_back(&mut awaited);
        // What serves until then is to have them too.
        let serves = |(name, _): &(Arc<str>, _)| self.model.clusters().find(name).is_some();
        let (endpoints, others): (Vec<_>, Vec<_>) = awaited.endpoints.into_iter().partition(serves);
        diff.endpoints.extend(others);
        // Those of clusters that are there can't fail.
        let _ = self.put_in_force(Diff { endpoints, ..Diff::default() }).await;
        for (name, cluster) in awaited.clusters {
            if let Some(cluster) = cluster {
                self.warmed_cluster(name, cluster).await;
            }
        }
    }

    /// Whether nothing that waits says anything of what a change brings: certificates, and clusters that are others.
    fn needs_no_turn(&self, diff: &Diff) -> bool {
        let Some(held) = &self.held else { return false };
        // What leads to a cluster that goes may be among what waits.
        let comes = diff.clusters.iter().all(|(_, cluster)| cluster.is_some());
        if !comes || !diff.route_tables.is_empty() || !diff.listeners.is_empty() {
            return false;
        }
        let waits = self.behind.iter().chain([&held.change]).flat_map(|change| clusters_of(&change.diff));
        let said: BTreeSet<&str> = waits.chain(held.cold.keys().map(|name| &**name)).collect();
        clusters_of(diff).all(|name| !said.contains(name))
    }

    async fn work_off(&mut self) {
        while self.held.is_none()
            && let Some(change) = self.behind.pop_front()
        {
            self.begin(change).await;
        }
    }

    /// Applies a change, or holds it when routes or listeners would find clusters missing that a moment brings.
    async fn begin(&mut self, mut change: Change) {
        if change.diff.whole {
            // Before a cluster of it begins to warm, which would take its place by itself.
            let errors = Model::prepare(&mut change.diff, &mut self.manager);
            if !errors.is_empty() {
                // Who asked may have gone.
                let _ = change.done.send(errors);
                return;
            }
        }
        if let Some(begun) = change.begun.take() {
            let _ = begun.send(());
        }
        self.warming.count_changes(&change.diff, &self.manager.shared().clusters);
        let cold = self.hold_back(&mut change.diff);
        let uses = !change.diff.route_tables.is_empty() || !change.diff.listeners.is_empty();
        if cold.is_empty() || !uses {
            return self.finish(change, Vec::new()).await;
        }
        show_contexts(&mut change.diff);
        // The cold ones may wait for what comes by these: secrets have a cluster of their own.
        let clusters = change.diff.clusters.extract_if(.., |(_, cluster)| cluster.is_some()).collect();
        let endpoints = std::mem::take(&mut change.diff.endpoints);
        let errors = self.put_in_force(Diff { clusters, endpoints, ..Diff::default() }).await;
        self.held = Some(Held { change, cold, errors, since: Instant::now() });
    }

    /// [`Warming::hold_back`] with the helpers of this process.
    fn hold_back(&mut self, diff: &mut Diff) -> Cold {
        let dns = self.manager.shared().dns.get();
        let discoverer = dns.map(|dns| Discoverer::new(dns.clone()));
        let clusters = self.model.clusters();
        let helpers = Helpers { clusters, discoverer: discoverer.as_ref(), checker: &self.checker };
        self.warming.hold_back(diff, &helpers)
    }

    /// Applies what is left of a change; `errors` are those of what was applied before.
    async fn finish(&mut self, mut change: Change, mut errors: Vec<ApplyError>) {
        // Also of those that are to wait: who has sent them is told now or never.
        errors.extend(Model::prepare(&mut change.diff, &mut self.manager));
        let coming = &change.diff.listeners;
        self.opening.retain(|(name, _)| !coming.iter().any(|(other, _)| other == name));
        let starting = self.is_starting();
        self.warming.hold_back_listeners(&mut change.diff, starting);
        if self.warming.listeners() == 0 {
            // Those that they waited for have been taken back.
            change.diff.listeners.append(&mut self.opening);
        }
        self.manager.count_warming(self.warming.listeners());
        errors.extend(self.put_in_force(*change.diff).await);
        // Who asked may have gone.
        let _ = change.done.send(errors);
    }

    async fn put_in_force(&mut self, diff: Diff) -> Vec<ApplyError> {
        for (name, cluster) in &diff.clusters {
            match cluster {
                Some(cluster) => self.checker.take_over(cluster),
                None => self.checker.forget(name),
            }
        }
        self.model.apply(diff, &mut self.manager).await
    }

    async fn warmed(&mut self, warm: Warm) {
        match warm {
            Warm::Cluster(name, cluster) => self.warmed_cluster(name, cluster).await,
            Warm::Listener(name, listener) => {
                self.manager.count_warming(self.warming.listeners());
                self.opening.push((name, Some(listener)));
                if self.is_starting() && self.warming.listeners() > 0 {
                    // The others follow at once, and nobody shall find some without them.
                    return;
                }
                let listeners = std::mem::take(&mut self.opening);
                let diff = Diff { listeners, ..Diff::default() };
                for error in self.put_in_force(diff).await {
                    tracing::error!("{error}");
                }
            }
        }
    }

    /// Puts a cluster in force that has waited; the held change may go on with its last.
    async fn warmed_cluster(&mut self, name: Arc<str>, cluster: Arc<Cluster>) {
        let diff = Diff { clusters: vec![(name.clone(), Some(cluster))], ..Diff::default() };
        // Clusters alone can't fail.
        let _ = self.put_in_force(diff).await;
        let Some(held) = &mut self.held else { return };
        held.cold.remove(&name);
        if held.cold.is_empty() {
            self.release().await;
        }
    }

    /// Applies the held change, and what waits behind it.
    async fn release(&mut self) {
        if let Some(held) = self.held.take() {
            self.finish(held.change, held.errors).await;
        }
        self.work_off().await;
    }

    async fn drain(&mut self, request: DrainRequest, back: &mpsc::WeakSender<Control>) {
        let DrainRequest { inbound_only, close_now, keep_open, strategy, time } = request;
        if !inbound_only {
            self.manager.shared().drain.start(strategy, time);
        }
        self.manager.drain(inbound_only, close_now, strategy, time).await;
        if let (false, Some(time), back) = (close_now || keep_open, time, back.clone()) {
            tokio::spawn(async move {
                tokio::time::sleep(time).await;
                if let Some(control) = back.upgrade() {
                    let _ = control.send(Control::CloseDraining).await;
                }
            });
        }
    }

    async fn shutdown(&mut self, ending: Ending) {
        let Ending { limit, handed_over, let_go, done } = ending;
        self.manager.give_up(&handed_over).await;
        let shared = self.manager.shared().clone();
        shared.drain.start(DrainStrategy::Immediate, Some(limit));
        self.manager.drain(false, true, DrainStrategy::Immediate, Some(limit)).await;
        // Of both, nobody may want to know.
        let _ = let_go.send(());
        // Connections past the limit are dropped by their own tasks; a moment more lets them.
        let grace = limit.saturating_add(Duration::from_millis(100));
        let _ = tokio::time::timeout(grace, shared.drain.idle()).await;
        // The process ends when they have.
        for peer in shared.peers.get().into_iter().flatten() {
            let _ = peer.commands.send(Command::Stop).await;
        }
        let _ = done.send(());
    }
}

/// Shows the secrets of a change that waits at once. Handshakes are to have the newest, and in its turn the change would
/// put its own in the place of those that have come since; of what waits for secrets some may be held with it.
fn show_contexts(diff: &mut Diff) {
    if !diff.whole {
        std::mem::take(&mut diff.contexts).into_iter().for_each(ContextChange::put_in_force);
    }
}

/// Clusters that a change says anything of, be it of their endpoints.
fn clusters_of(diff: &Diff) -> impl Iterator<Item = &str> {
    let clusters = diff.clusters.iter().map(|(name, _)| &**name);
    clusters.chain(diff.endpoints.iter().map(|(name, _)| &**name))
}

/// Ends at that time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
