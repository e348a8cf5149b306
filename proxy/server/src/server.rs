//! The running server: workers, the control thread, and what others may ask of them.

mod control;
#[cfg(test)]
mod tests;
mod waiting;
mod warming;

use self::control::{Change, Control, ControlThread, Ending};
use crate::admin::{Lifecycle, State};
use crate::deadline::after;
use crate::dns::DnsCache;
use crate::drain::DrainStrategy;
use crate::inheritance::Handed;
use crate::listener::BoundAddresses;
use crate::listener::manager::Manager;
use crate::overload;
use crate::worker::{Options, Peer, Shared, Worker};
use parking_lot::Mutex;
use sixfold_core::listener::BindAddress;
use sixfold_core::metrics::{self, Registry};
use sixfold_core::model::{ApplyError, Diff, Model};
use sixfold_core::overload::Overload;
use sixfold_core::plugin::Callout;
use sixfold_core::tls::Held;
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Commands that may wait for a worker or the control thread.
const QUEUE: usize = 1024;
/// How long routes and listeners of a change wait for the first answers for names that are new with it: long
/// enough for a resolver that works, so that no request finds a cluster missing; short enough that one that is
/// silent holds nobody up.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long threads have to end once the time for their connections is over: a plugin may hold one up.
const LAST_TURN: Duration = Duration::from_secs(1);
/// How often a thread that is to end is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// How often retired parts of the model are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// What is drained, and how.
#[derive(Debug, Clone, Copy)]
pub struct DrainRequest {
    /// Leaves outbound listeners alone (`inboundonly`).
    pub inbound_only: bool,
    /// Closes listening sockets at once; else after `time` (`graceful`).
    pub close_now: bool,
    /// Sockets that are not closed at once are not closed at all (`skip_exit`).
    pub keep_open: bool,
    /// How clients are told.
    pub strategy: DrainStrategy,
    /// After so long what is left is closed by force; `None` never does that.
    pub time: Option<Duration>,
}

/// Names of what waits to be put in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WarmingNames {
    /// Clusters that lack endpoints, checks or secrets.
    pub clusters: BTreeSet<Arc<str>>,
    /// Listeners that lack routes or secrets.
    pub listeners: BTreeSet<Arc<str>>,
}

/// A running server. Cloning shares it.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    model: Arc<Model>,
    lifecycle: Lifecycle,
    control: mpsc::Sender<Control>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Server {
    /// Starts workers and the control thread, which alone changes `model` from now on; nothing listens yet.
    /// Call it once a process and before any configuration is compiled: statistics are laid out for its workers.
    ///
    /// # Errors
    /// The operating system has no threads or descriptors left.
    pub fn start(
        options: Options,
        registry: Registry,
        model: Arc<Model>,
        callout: Arc<dyn Callout>,
        lifecycle: Lifecycle,
    ) -> io::Result<Server> {
        metrics::set_workers(options.concurrency);
        let shared = Arc::new(Shared::new(model.clusters().clone(), registry, callout, options));
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
        let (control, queue) = mpsc::channel(QUEUE);
        let thread = ControlThread::new(Manager::new(shared.clone()), model.clone(), lifecycle.clone());
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
    pub fn set_dns(&self, dns: DnsCache) {
        dns.count_in(&self.0.shared.metrics);
        let _ = self.0.shared.dns.set(dns);
    }

    /// Has the load measured, and done about it what is configured. Only the first call counts.
    pub fn set_overload(&self, overload: Overload) {
        overload::watch(&self.0.shared, Arc::new(overload));
    }

    /// The model, for sources that compile configuration and pages that show it.
    pub fn model(&self) -> &Arc<Model> {
        &self.0.model
    }

    /// Where the server is in its life: an atomic, which sources make [`State::Live`] once each of them has
    /// given its first configuration.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.0.lifecycle
    }

    /// Applies a change. When this returns requests see it and new listeners accept on every worker, but for
    /// clusters whose endpoints and listeners whose routes are not there yet: those take their places as soon as they
    /// are, and routes and listeners of the change wait a quarter of a second for clusters.
    ///
    /// # Errors
    /// What can't be used; all the rest of the change is in force, and what that was before goes on.
    pub async fn apply(&self, diff: Diff) -> Result<(), Vec<ApplyError>> {
        let (change, answer) = change(diff, PATIENCE);
        self.ask(Control::Apply(change)).await;
        outcome(answer.await)
    }

    /// [`Server::apply`] for threads without a runtime.
    ///
    /// # Errors
    /// As [`Server::apply`].
    pub fn apply_blocking(&self, diff: Diff) -> Result<(), Vec<ApplyError>> {
        self.apply_within(diff, PATIENCE)
    }

    /// The same with another time for routes and listeners to wait for clusters that are new with the change.
    ///
    /// # Errors
    /// As [`Server::apply`].
    pub fn apply_within(&self, diff: Diff, patience: Duration) -> Result<(), Vec<ApplyError>> {
        let (change, answer) = change(diff, patience);
        if self.0.control.blocking_send(Control::Apply(change)).is_err() {
            return Ok(());
        }
        outcome(answer.blocking_recv())
    }

    /// [`Server::apply_blocking`] of what others may bring more for: `begun` is called once it is not refused as a whole
    /// and no later change can come before it. It may wait for what they bring, and of one that is refused they hear nothing.
    ///
    /// # Errors
    /// As [`Server::apply`].
    pub fn apply_before(&self, diff: Diff, begun: impl FnOnce()) -> Result<(), Vec<ApplyError>> {
        let (mut change, answer) = change(diff, PATIENCE);
        let (tell, told) = oneshot::channel();
        change.begun = Some(tell);
        if self.0.control.blocking_send(Control::Apply(change)).is_err() {
            return Ok(());
        }
        if told.blocking_recv().is_ok() {
            begun();
        }
        outcome(answer.blocking_recv())
    }

    /// Waits until no listener waits for routes that have to come by themselves: each does so for as long as its
    /// `initial_fetch_timeout` says. For threads without a runtime.
    pub fn wait_until_warm(&self) {
        let (done, answer) = oneshot::channel();
        if self.0.control.blocking_send(Control::Warm(done)).is_ok() {
            // Without an answer the server has ended.
            let _ = answer.blocking_recv();
        }
    }

    /// What waits to be put in force. Waits for the control thread; not for a thread of a runtime.
    pub fn warming(&self) -> WarmingNames {
        let (done, answer) = oneshot::channel();
        let asked = self.0.control.blocking_send(Control::Warming(done));
        // Nothing waits on a server that has ended.
        asked.ok().and_then(|()| answer.blocking_recv().ok()).unwrap_or_default()
    }

    /// Listeners with the addresses they are bound to, port 0 resolved; those of one that opens no sockets are as
    /// configured.
    pub fn addresses(&self) -> Arc<BoundAddresses> {
        self.0.shared.addresses.load_full()
    }

    /// Begins to drain; returns when sockets that were to be closed now are closed. As in Envoy the server stays live: who
    /// empties it for another reason than its end says so by itself.
    pub async fn drain(&self, request: DrainRequest) {
        let (done, answer) = oneshot::channel();
        self.ask(Control::Drain(request, done)).await;
        // Without an answer the server has ended, which drains too.
        let _ = answer.await;
    }

    /// Fails health checks, or lets them pass again (`/healthcheck/fail`, `/healthcheck/ok`).
    pub fn fail_health_checks(&self, fail: bool) {
        self.0.shared.health_failed.store(fail, Relaxed);
    }

    /// Certificates of the contexts of listeners and then of clusters in the order of their names, each context once: many
    /// may share one.
    pub fn certificates(&self) -> Vec<Held> {
        let listeners = self.0.model.listeners();
        let chains = listeners.iter().flat_map(|l| l.chains.iter().chain(&l.default_chain));
        let of_listeners = chains.flat_map(|chain| chain.tls.iter().flat_map(|tls| tls.contexts()));
        let clusters = self.0.model.clusters().all();
        let of_clusters = clusters.iter().flat_map(|cluster| cluster.config.all_tls());
        let of_clusters = of_clusters.filter_map(|tls| tls.context());
        let servers = each_once(of_listeners).into_iter().map(|context| context.held());
        servers.chain(each_once(of_clusters).into_iter().map(|context| context.held())).collect()
    }

    /// When the first of them ends, in Unix seconds; `None` without any.
    pub fn first_expiry(&self) -> Option<i64> {
        let ends = |Held { authority, own }: Held| {
            authority.into_iter().chain(own).map(|origin| origin.certificate.not_after).min()
        };
        self.certificates().into_iter().filter_map(ends).min()
    }

    /// The sockets of every listener, for a process that is to take the place of this one. Waits for the control thread; not
    /// for a thread of a runtime.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn sockets(&self) -> io::Result<Vec<Handed>> {
        let (done, answer) = oneshot::channel();
        let asked = self.0.control.blocking_send(Control::Sockets(done));
        // A server that has ended has none.
        asked.ok().and_then(|()| answer.blocking_recv().ok()).unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Ends the server: closes all sockets, waits until connections have ended or `deadline` has passed,
    /// then ends all threads. A thread that does not come back from what it does within another second is left
    /// to the end of the process.
    pub async fn shutdown(&self, deadline: Duration) {
        self.0.lifecycle.set(State::Draining);
        self.shutdown_beside(deadline, Vec::new(), || ()).await;
    }

    /// The same beside a process that has the sockets of these addresses: what waits in their queues is left to it. Nobody is
    /// told that this one drains: whoever asks means the place that the other one has. `let_go` is called as soon as
    /// connections are accepted here no more, or can't be any more.
    pub async fn shutdown_beside(
        &self,
        deadline: Duration,
        handed_over: Vec<BindAddress>,
        let_go: impl FnOnce(),
    ) {
        let limit = after(Instant::now(), deadline.saturating_add(LAST_TURN));
        let ((gone, is_gone), (done, is_done)) = (oneshot::channel(), oneshot::channel());
        let closed = async {
            let ending = Ending { limit: deadline, handed_over, let_go: gone, done };
            self.ask(Control::Shutdown(ending)).await;
            let _ = is_gone.await;
            let_go();
            let _ = is_done.await;
        };
        // The control thread waits for every worker, of which one may be held up.
        let _ = tokio::time::timeout_at(limit, closed).await;
        let threads = std::mem::take(&mut *self.0.threads.lock());
        for thread in threads {
            end(thread, limit).await;
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

/// Those that are there several times once, where they come first.
fn each_once<T>(all: impl Iterator<Item = Arc<T>>) -> Vec<Arc<T>> {
    let mut seen = HashSet::new();
    all.filter(|one| seen.insert(Arc::as_ptr(one))).collect()
}

fn change(diff: Diff, patience: Duration) -> (Change, oneshot::Receiver<Vec<ApplyError>>) {
    let (done, answer) = oneshot::channel();
    (Change { diff: Box::new(diff), patience, begun: None, done }, answer)
}

/// A server that has ended has nothing to complain of.
fn outcome(answer: Result<Vec<ApplyError>, oneshot::error::RecvError>) -> Result<(), Vec<ApplyError>> {
    match answer {
        Ok(errors) if !errors.is_empty() => Err(errors),
        _ => Ok(()),
    }
}

/// Waits for a thread, but not beyond a time.
async fn end(thread: JoinHandle<()>, limit: Instant) {
    while !thread.is_finished() {
        if Instant::now() >= limit {
            tracing::warn!(thread = thread.thread().name(), "held up: it is not waited for");
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    // A panic on it was reported when it happened.
    let _ = thread.join();
}

/// Starts a thread with a runtime of its own.
fn spawn<F: Future<Output = ()>>(
    name: &str,
    work: impl FnOnce() -> F + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(work()))
}
