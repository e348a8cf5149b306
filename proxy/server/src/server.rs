//! The running server: workers, the control thread, and what others may ask of them.

use crate::admin::{Lifecycle, State};
use crate::dns::{Discoverer, Resolver};
use crate::drain::DrainStrategy;
use crate::listener::manager::Manager;
use crate::listener::{BoundAddresses, ListenerError};
use crate::memory;
use crate::worker::{Command, Options, Peer, Shared, Worker};
use parking_lot::Mutex;
use sixfold_core::cluster::Clusters;
use sixfold_core::connection::Certificate;
use sixfold_core::metrics::{self, Registry};
use sixfold_core::model::{Diff, Model};
use sixfold_core::plugin::Callout;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Commands that may wait for a worker or the control thread.
const QUEUE: usize = 1024;
/// How long a change waits for the first look-ups of its DNS clusters.
const WARMING: Duration = Duration::from_secs(5);
/// How often retired parts of the model are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// What is drained, and how.
#[derive(Debug, Clone, Copy)]
pub struct DrainRequest {
    /// Leaves outbound listeners alone (`inboundonly`).
    pub inbound_only: bool,
    /// Closes listening sockets at once; else after `time` (`graceful`).
    pub close_now: bool,
    /// How clients are told.
    pub strategy: DrainStrategy,
    /// After so long what is left is closed by force; `None` never does that.
    pub time: Option<Duration>,
}

/// A running server. Cloning shares it.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    model: Arc<Mutex<Model>>,
    lifecycle: Lifecycle,
    control: mpsc::Sender<Control>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the control thread is asked.
enum Control {
    Apply(Box<Diff>, oneshot::Sender<Result<(), Vec<ListenerError>>>),
    Drain(DrainRequest, oneshot::Sender<()>),
    CloseDraining,
    Shutdown(Duration, oneshot::Sender<()>),
}

impl Server {
    /// Starts workers and the control thread; nothing listens yet. Call it once a process and before any
    /// configuration is compiled: statistics are laid out for its workers.
    ///
    /// # Errors
    /// The operating system has no threads or descriptors left.
    pub fn start(
        options: Options,
        registry: Registry,
        clusters: Arc<Clusters>,
        callout: Arc<dyn Callout>,
        lifecycle: Lifecycle,
    ) -> io::Result<Server> {
        metrics::set_workers(options.concurrency);
        let shared = Arc::new(Shared::new(clusters.clone(), registry, callout, options));
        let (mut peers, mut threads) = (Vec::new(), Vec::new());
        for index in 0..shared.options.concurrency {
            let worker = Arc::new(Worker::new(index, shared.clone()));
            let (commands, queue) = mpsc::channel(QUEUE);
            peers.push(Peer { commands, connections: worker.connections.clone() });
            threads.push(spawn(&format!("worker-{index}"), move || {
                metrics::enter_worker(index);
                worker.run(queue)
            })?);
        }
        // Set once, here.
        let _ = shared.peers.set(peers);
        let model = Arc::new(Mutex::new(Model::new(clusters)));
        let (control, queue) = mpsc::channel(QUEUE);
        let thread = ControlThread { manager: Manager::new(shared.clone()), model: model.clone() };
        let back = control.downgrade();
        threads.push(spawn("control", move || thread.run(queue, back))?);
        Ok(Server(Arc::new(Inner { shared, model, lifecycle, control, threads: Mutex::new(threads) })))
    }

    /// What all workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// Sets what resolves the names of DNS clusters. Without it they have no endpoints but fixed ones. Only the
    /// first call counts.
    pub fn set_resolver(&self, resolver: Arc<Resolver>) {
        let _ = self.0.shared.resolver.set(resolver);
    }

    /// The model, for sources that compile configuration and pages that show it. The lock must not be held
    /// across anything slow: applying a change waits for it.
    pub fn model(&self) -> &Arc<Mutex<Model>> {
        &self.0.model
    }

    /// Where the server is in its life: an atomic, which sources make [`State::Live`] once each of them has
    /// given its first configuration.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.0.lifecycle
    }

    /// Applies a change. When this returns requests see it and new listeners accept on every worker.
    ///
    /// # Errors
    /// Listeners that can't be used; all the rest of the change is in force, and what those listeners were
    /// before goes on.
    pub async fn apply(&self, diff: Diff) -> Result<(), Vec<ListenerError>> {
        let (done, answer) = oneshot::channel();
        self.ask(Control::Apply(Box::new(diff), done)).await;
        answer.await.unwrap_or(Ok(()))
    }

    /// [`Server::apply`] for threads without a runtime.
    ///
    /// # Errors
    /// As [`Server::apply`].
    pub fn apply_blocking(&self, diff: Diff) -> Result<(), Vec<ListenerError>> {
        let (done, answer) = oneshot::channel();
        if self.0.control.blocking_send(Control::Apply(Box::new(diff), done)).is_err() {
            return Ok(());
        }
        answer.blocking_recv().unwrap_or(Ok(()))
    }

    /// Listeners with the addresses they are bound to, port 0 resolved.
    pub fn addresses(&self) -> Arc<BoundAddresses> {
        self.0.shared.addresses.load_full()
    }

    /// Begins to drain; returns when sockets that were to be closed now are closed. The server is no longer
    /// live unless only inbound listeners are meant.
    pub async fn drain(&self, request: DrainRequest) {
        if !request.inbound_only {
            self.0.lifecycle.set(State::Draining);
        }
        let (done, answer) = oneshot::channel();
        self.ask(Control::Drain(request, done)).await;
        // Without an answer the server has ended, which drains too.
        let _ = answer.await;
    }

    /// Fails health checks, or lets them pass again (`/healthcheck/fail`, `/healthcheck/ok`).
    pub fn fail_health_checks(&self, fail: bool) {
        self.0.shared.health_failed.store(fail, Relaxed);
    }

    /// Certificates that listeners show now, each once.
    pub fn certificates(&self) -> Vec<Arc<Certificate>> {
        let model = self.0.model.lock();
        let mut all: Vec<Arc<Certificate>> = Vec::new();
        for chain in model.listeners().flat_map(|l| l.chains.iter().chain(&l.default_chain)) {
            for context in chain.tls.iter().flat_map(|tls| tls.contexts()) {
                all.extend(context.certificates().cloned());
            }
        }
        all.sort_by(|a, b| a.sha256.cmp(&b.sha256));
        all.dedup_by(|a, b| a.sha256 == b.sha256);
        all
    }

    /// Ends the server: closes all sockets, waits until connections have ended or `deadline` has passed,
    /// then ends all threads.
    pub async fn shutdown(&self, deadline: Duration) {
        self.0.lifecycle.set(State::Draining);
        let (done, answer) = oneshot::channel();
        self.ask(Control::Shutdown(deadline, done)).await;
        let _ = answer.await;
        let threads = std::mem::take(&mut *self.0.threads.lock());
        for thread in threads {
            // They end at once now; a panic on one was reported when it happened.
            let _ = thread.join();
        }
    }

    /// Connections that clients have open now.
    pub fn connections(&self) -> usize {
        self.0.shared.drain.connections()
    }

    async fn ask(&self, question: Control) {
        // A server that has ended answers nothing, which the caller notices by the dropped answer.
        let _ = self.0.control.send(question).await;
    }
}

/// Starts a thread with a runtime of its own.
fn spawn<F: Future<Output = ()>>(
    name: &str,
    work: impl FnOnce() -> F + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(work()))
}

struct ControlThread {
    manager: Manager,
    model: Arc<Mutex<Model>>,
}

impl ControlThread {
    async fn run(mut self, mut queue: mpsc::Receiver<Control>, back: mpsc::WeakSender<Control>) {
        let mut sweep = tokio::time::interval(SWEEP);
        let mut look = tokio::time::interval(memory::LOOK);
        let mut trimmer = memory::Trimmer::default();
        loop {
            let question = tokio::select! {
                question = queue.recv() => question,
                _ = sweep.tick() => {
                    self.model.lock().sweep();
                    continue;
                }
                _ = look.tick() => {
                    trimmer.look();
                    continue;
                }
            };
            match question {
                Some(Control::Apply(diff, done)) => {
                    let _ = done.send(self.apply(*diff).await);
                }
                Some(Control::Drain(request, done)) => {
                    self.drain(request, &back).await;
                    let _ = done.send(());
                }
                Some(Control::CloseDraining) => self.manager.close_draining().await,
                Some(Control::Shutdown(deadline, done)) => {
                    self.shutdown(deadline).await;
                    let _ = done.send(());
                    return;
                }
                None => return self.shutdown(Duration::ZERO).await,
            }
        }
    }

    /// Clusters and routes first, so that a listener finds them from its first connection on.
    async fn apply(&mut self, mut diff: Diff) -> Result<(), Vec<ListenerError>> {
        let mut errors = Vec::new();
        let listeners = std::mem::take(&mut diff.listeners);
        let gone: Vec<_> = diff.clusters.extract_if(.., |(_, cluster)| cluster.is_none()).collect();
        self.resolve(&diff).await;
        self.model.lock().apply(diff);
        let (removed, upserted): (Vec<_>, Vec<_>) = listeners.into_iter().partition(|(_, l)| l.is_none());
        // Addresses of listeners that go may be taken by those that come.
        self.manager.remove(removed.iter().map(|(name, _)| &**name)).await;
        let mut accepted = removed;
        for (name, listener) in upserted {
            let Some(config) = listener else { continue };
            match self.manager.upsert(config.clone()).await {
                Ok(()) => accepted.push((name, Some(config))),
                Err(error) => errors.push(error),
            }
        }
        self.model.lock().apply(Diff { clusters: gone, listeners: accepted, ..Diff::default() });
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Starts discovery for new DNS clusters, and waits for their first addresses as long as [`WARMING`].
    async fn resolve(&self, diff: &Diff) {
        let Some(resolver) = self.manager.shared().resolver.get() else { return };
        let discoverer = Discoverer::new(resolver.clone(), tokio::runtime::Handle::current());
        let clusters = diff.clusters.iter().filter_map(|(_, cluster)| cluster.as_ref());
        let first: Vec<_> = clusters.filter_map(|cluster| discoverer.start(cluster)).collect();
        if !first.is_empty() {
            // A name that is not resolved by then gets its endpoints later.
            let _ = tokio::time::timeout(WARMING, futures_util::future::join_all(first)).await;
        }
    }

    async fn drain(&mut self, request: DrainRequest, back: &mpsc::WeakSender<Control>) {
        let DrainRequest { inbound_only, close_now, strategy, time } = request;
        if !inbound_only {
            self.manager.shared().drain.start(strategy, time);
        }
        self.manager.drain(inbound_only, close_now, strategy, time).await;
        if let (false, Some(time), back) = (close_now, time, back.clone()) {
            tokio::spawn(async move {
                tokio::time::sleep(time).await;
                if let Some(control) = back.upgrade() {
                    let _ = control.send(Control::CloseDraining).await;
                }
            });
        }
    }

    async fn shutdown(&mut self, deadline: Duration) {
        let shared = self.manager.shared().clone();
        shared.drain.start(DrainStrategy::Immediate, Some(deadline));
        self.manager.drain(false, true, DrainStrategy::Immediate, Some(deadline)).await;
        // Connections past the deadline are dropped by their own tasks; a moment more lets them.
        let _ =
            tokio::time::timeout(deadline.saturating_add(Duration::from_millis(100)), shared.drain.idle())
                .await;
        for peer in shared.peers.get().into_iter().flatten() {
            let _ = peer.commands.send(Command::Stop).await;
        }
    }
}
