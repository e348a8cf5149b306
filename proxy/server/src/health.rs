//! Whether endpoints are well: active health checks, and what becomes of outliers, on a thread of its own for the whole
//! process.
//!
//! What is known of an endpoint belongs to its name and address in its cluster: it goes on when the cluster is replaced,
//! as long as it is checked in the same way.

mod outliers;
mod probe;
mod state;
#[cfg(test)]
mod tests;

use crate::upstream::Pools;
use outliers::Judges;
use parking_lot::Mutex;
use probe::Target;
use sixfold_core::cluster::{Cluster, HealthCheck, HealthCheckStats, Host, HostObserver, Member, Reasons};
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::Callout;
use state::{Change, State, Verdict};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// How long changes of health are collected before the cluster takes them: a balancer is built anew for each.
const SETTLE: Duration = Duration::from_millis(2);
/// How often idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);
/// What checkers have against endpoints.
const CHECKED: Reasons = Reasons::ACTIVE_CHECK
    .union(Reasons::PENDING_CHECK)
    .union(Reasons::DEGRADED_CHECK)
    .union(Reasons::EXCLUDED_CHECK);

/// Checks the endpoints of clusters that want it. Its thread starts with the first of them.
pub(crate) struct HealthChecker {
    callout: Arc<dyn Callout>,
    registry: Registry,
    thread: OnceLock<Option<Handle>>,
    watched: Mutex<HashMap<Arc<str>, Arc<Watched>>>,
    judges: Judges,
}

/// The endpoints of a cluster that are checked.
pub(crate) struct Watched {
    cluster: Weak<Cluster>,
    /// The one before it, which may be in force still.
    before: Option<Weak<Cluster>>,
    check: Arc<HealthCheck>,
    callout: Arc<dyn Callout>,
    stats: HealthCheckStats,
    runtime: Handle,
    this: Weak<Watched>,
    /// By the host's number.
    sessions: Mutex<HashMap<u64, Session>>,
    /// What other sessions of these hosts knew.
    known: HashMap<u64, Arc<Mutex<State>>>,
    /// Endpoints whose first check has not come to an end.
    unchecked: watch::Sender<usize>,
    scheduled: AtomicBool,
}

/// The checks of one endpoint; they end when this is dropped.
struct Session {
    state: Arc<Mutex<State>>,
    task: AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HealthChecker {
    /// Asks by `callout`. Nothing is checked yet.
    pub(crate) fn new(callout: Arc<dyn Callout>, registry: Registry) -> HealthChecker {
        HealthChecker {
            callout,
            registry,
            thread: OnceLock::new(),
            watched: Mutex::default(),
            judges: Judges::default(),
        }
    }

    /// Looks after the outliers of a cluster, and checks its endpoints, in place of those of the one before it of its name. `None` where nothing is to
    /// be checked.
    pub(crate) fn watch(&self, cluster: &Arc<Cluster>) -> Option<Arc<Watched>> {
        self.judges.watch(cluster, || self.thread.get_or_init(thread).clone());
        let Some(check) = &cluster.config.health_check else {
            if self.unwatch(&cluster.config.name) {
                acquit(cluster);
            }
            return None;
        };
        let runtime = self.thread.get_or_init(thread).clone()?;
        let mut watched = self.watched.lock();
        let before = watched.remove(&cluster.config.name);
        let known = before.as_ref().filter(|before| before.check.fingerprint == check.fingerprint);
        let stats = match &before {
            Some(before) if before.is_counted_as(cluster) => before.stats.clone(),
            _ if !cluster.config.statistics => HealthCheckStats::none(),
            _ => {
                let name = &cluster.config.observability_name;
                HealthCheckStats::new(&self.registry, &format!("cluster.{name}.health_check."))
            }
        };
        let next = Arc::new_cyclic(|this| Watched {
            cluster: Arc::downgrade(cluster),
            before: before.as_ref().map(|before| before.cluster.clone()),
            check: check.clone(),
            callout: self.callout.clone(),
            stats,
            runtime,
            this: this.clone(),
            sessions: Mutex::default(),
            known: known.map(|known| known.states()).unwrap_or_default(),
            unchecked: watch::Sender::new(0),
            scheduled: AtomicBool::new(false),
        });
        drop(before);
        let observer: Arc<dyn HostObserver> = next.clone();
        cluster.observe(Arc::downgrade(&observer));
        next.hosts_changed(cluster);
        watched.insert(cluster.config.name.clone(), next.clone());
        Some(next)
    }

    /// Checks the endpoints of a cluster no longer; tells whether they were.
    pub(crate) fn forget(&self, name: &str) -> bool {
        self.judges.forget(name);
        self.unwatch(name)
    }

    fn unwatch(&self, name: &str) -> bool {
        self.watched.lock().remove(name).is_some()
    }
}

/// The thread of all checks; `None` when there can't be one, and nothing is checked.
fn thread() -> Option<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let started = runtime.and_then(|runtime| {
        let handle = runtime.handle().clone();
        let checking = move || {
            runtime.block_on(async {
                let (pools, _) = Pools::of_thread();
                let mut sweep = tokio::time::interval(SWEEP);
                loop {
                    sweep.tick().await;
                    pools.sweep();
                }
            });
        };
        std::thread::Builder::new().name("health".to_owned()).spawn(checking)?;
        Ok(handle)
    });
    if let Err(error) = &started {
        tracing::error!(%error, "no thread for health checks: endpoints that want them stay unhealthy");
    }
    started.ok()
}

/// Takes back what checks had against the endpoints of a cluster that wants none any more.
fn acquit(cluster: &Cluster) {
    let mut changed = false;
    for member in cluster.hosts.load().iter() {
        changed |= member.host.set_reason(CHECKED, false);
    }
    if changed {
        cluster.refresh();
    }
}

impl Watched {
    /// Ends when every endpoint has been checked once.
    pub(crate) async fn all_checked(&self) {
        // The sender is here.
        let _ = self.unchecked.subscribe().wait_for(|unchecked| *unchecked == 0).await;
    }

    /// Whether every endpoint has been checked once.
    pub(crate) fn is_all_checked(&self) -> bool {
        *self.unchecked.borrow() == 0
    }

    fn is_counted_as(&self, cluster: &Cluster) -> bool {
        self.cluster.upgrade().is_some_and(|before| Arc::ptr_eq(&before.stats, &cluster.stats))
    }

    fn states(&self) -> HashMap<u64, Arc<Mutex<State>>> {
        self.sessions.lock().iter().map(|(id, session)| (*id, session.state.clone())).collect()
    }

    /// Begins to check an endpoint, or goes on with it.
    fn begin(&self, cluster: &Cluster, member: &Member) -> Session {
        let state = self.known.get(&member.host.id).cloned();
        let state = state.unwrap_or_else(|| Arc::new(Mutex::new(State::new(self.check.initial_jitter))));
        let target = Target::new(cluster, &self.check, &member.host, self.callout.clone());
        let run = run(self.this.clone(), member.host.clone(), state.clone(), target);
        Session { task: self.runtime.spawn(run).abort_handle(), state }
    }

    /// Takes what came of a check; answers how long to wait for the next.
    fn take(&self, host: &Host, state: &Mutex<State>, verdict: &Verdict) -> Duration {
        let stats = &self.stats;
        match verdict {
            Verdict::Passed { .. } => stats.success().inc(),
            Verdict::Failed { network, .. } => {
                stats.failure().inc();
                if *network {
                    stats.network_failure().inc();
                }
            }
        }
        let mut state = state.lock();
        let first = state.is_first();
        let change = state.take(&self.check, host.reasons(), verdict);
        let mut changed = false;
        for (reason, on) in change.reasons {
            changed |= host.set_reason(reason, on);
        }
        let cluster = self.cluster.upgrade();
        if let (Verdict::Passed { .. }, Some(outliers)) =
            (verdict, cluster.as_ref().and_then(|c| c.outliers.as_ref()))
            && !host.reasons().contains(Reasons::ACTIVE_CHECK)
        {
            changed |= outliers.passed_check(host);
        }
        let traffic = cluster.as_ref().is_some_and(|cluster| cluster.stats.upstream_cx_total().get() > 0);
        let wait = state.wait(&self.check, change.kind, verdict.passed(), traffic);
        state.due = Instant::now() + wait;
        drop(state);
        let name = cluster.as_ref().map(|cluster| &*cluster.config.name).unwrap_or_default();
        if let Verdict::Failed { reason, .. } = verdict
            && (first || self.check.log_failures || change.kind == Change::Changed)
        {
            tracing::info!(cluster = name, endpoint = %host.label, reason, "health check failed");
        } else if change.kind == Change::Changed {
            tracing::info!(cluster = name, endpoint = %host.label, "health check passed");
        }
        if changed || first {
            self.schedule();
        }
        wait
    }

    /// Lets the cluster take what has changed, in a moment and all at once.
    fn schedule(&self) {
        if self.scheduled.swap(true, Relaxed) {
            return;
        }
        let this = self.this.clone();
        self.runtime.spawn(async move {
            tokio::time::sleep(SETTLE).await;
            if let Some(this) = this.upgrade() {
                this.scheduled.store(false, Relaxed);
                this.show();
            }
        });
    }

    fn show(&self) {
        let before = self.before.as_ref().and_then(Weak::upgrade);
        for cluster in before.iter().chain(&self.cluster.upgrade()) {
            cluster.refresh();
        }
        let (mut unchecked, mut healthy, mut degraded) = (0, 0, 0);
        for session in self.sessions.lock().values() {
            let state = session.state.lock();
            unchecked += usize::from(state.is_first());
            healthy += u64::from(state.healthy);
            degraded += u64::from(state.degraded);
        }
        self.stats.healthy().set(healthy);
        self.stats.degraded().set(degraded);
        self.unchecked.send_if_modified(|now| std::mem::replace(now, unchecked) != unchecked);
    }
}

impl HostObserver for Watched {
    /// Checks endpoints that have come, and no longer those that have gone.
    fn hosts_changed(&self, cluster: &Cluster) {
        let hosts = cluster.hosts.load();
        let mut sessions = self.sessions.lock();
        let before = sessions.len();
        let mut gone: HashMap<_, _> = sessions.drain().collect();
        for member in hosts.iter() {
            let id = member.host.id;
            let goes_on = || gone.remove(&id).unwrap_or_else(|| self.begin(cluster, member));
            sessions.entry(id).or_insert_with(goes_on);
        }
        if gone.is_empty() && sessions.len() == before && before > 0 {
            return;
        }
        let unchecked = sessions.values().filter(|session| session.state.lock().is_first()).count();
        drop(sessions);
        self.unchecked.send_replace(unchecked);
    }
}

/// Checks an endpoint again and again.
async fn run(watched: Weak<Watched>, host: Arc<Host>, state: Arc<Mutex<State>>, target: Target) {
    loop {
        let due = state.lock().due;
        tokio::time::sleep_until(due).await;
        let Some(watching) = watched.upgrade() else { return };
        watching.stats.attempt().inc();
        let check = watching.check.clone();
        drop(watching);
        let verdict = match tokio::time::timeout(check.timeout, target.check(&check)).await {
            Ok(verdict) => verdict,
            Err(_) => Verdict::silent("timeout"),
        };
        let Some(watching) = watched.upgrade() else { return };
        watching.take(&host, &state, &verdict);
    }
}
