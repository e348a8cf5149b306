//! Whether endpoints are well: active health checks, what becomes of outliers, and the weights that endpoints report, on a
//! thread of its own for the whole process.
//!
//! What is known of an endpoint belongs to its name and address in its cluster: it goes on when the cluster is replaced,
//! as long as it is checked in the same way. A cluster in force is checked until another takes its place; what the
//! checks of that one find before is kept aside. Where checks are APISIX's, answers to clients' requests count with the
//! probes, and nodes are well until they have failed.

mod counted;
mod events;
mod outliers;
mod probe;
mod state;
#[cfg(test)]
mod tests;
mod watched;
mod weights;

pub(crate) use watched::Watched;

use crate::upstream::Pools;
use counted::Counted;
use outliers::Judges;
use parking_lot::Mutex;
use sixfold_core::cluster::{Cluster, EventLog, HealthCheckStats, Reasons};
use sixfold_core::metrics::{Registry, named_scope};
use sixfold_core::plugin::Callout;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use tokio::runtime::Handle;
use weights::Weighers;

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
    checks: Mutex<HashMap<Arc<str>, Checks>>,
    counted: Counted,
    judges: Judges,
    weighers: Weighers,
}

/// The checks of a name.
#[derive(Default)]
struct Checks {
    /// Of the cluster in force.
    in_force: Option<Arc<Watched>>,
    /// Of the one that is to take its place.
    next: Option<Arc<Watched>>,
}

impl HealthChecker {
    /// Asks by `callout`. Nothing is checked yet.
    pub(crate) fn new(callout: Arc<dyn Callout>, registry: Registry) -> HealthChecker {
        HealthChecker {
            callout,
            registry,
            thread: OnceLock::new(),
            checks: Mutex::default(),
            counted: Counted::default(),
            judges: Judges::default(),
            weighers: Weighers::default(),
        }
    }

    /// Checks the endpoints of a candidate, in place of those of the last one, until it is taken for its name or given
    /// up. Those of the cluster in force go on. `None` where nothing is to be checked.
    pub(crate) fn watch(&self, cluster: &Arc<Cluster>) -> Option<Arc<Watched>> {
        let mut checks = self.checks.lock();
        let name = &cluster.config.name;
        let Some(check) = &cluster.config.health_check else {
            checks.get_mut(name).and_then(|checks| checks.next.take());
            return None;
        };
        check.events.iter().for_each(open);
        let runtime = self.thread.get_or_init(thread).clone()?;
        let checks = checks.entry(name.clone()).or_default();
        let stats = match &checks.in_force {
            Some(before) if before.is_counted_as(cluster) => before.stats.clone(),
            _ if !cluster.config.statistics => HealthCheckStats::none(),
            _ => {
                let name = &cluster.config.observability_name;
                HealthCheckStats::new(&self.registry, &named_scope(&["cluster", name, "health_check"]))
            }
        };
        let before = checks.in_force.clone();
        let next = Watched::start(cluster, check.clone(), before, stats, self.callout.clone(), runtime);
        checks.next = Some(next.clone());
        Some(next)
    }

    /// Checks no candidate of this name any longer.
    pub(crate) fn give_up(&self, name: &str) {
        self.checks.lock().get_mut(name).and_then(|checks| checks.next.take());
    }

    /// The cluster takes its place now: call it just before. Its checks take the place of those of the one before it, and
    /// its outliers and reported weights are looked after.
    pub(crate) fn take_over(&self, cluster: &Arc<Cluster>) {
        cluster.outliers.iter().filter_map(|outliers| outliers.config.log.as_ref()).for_each(open);
        self.counted.watch(cluster, &self.callout, || self.thread.get_or_init(thread).clone());
        self.judges.watch(cluster, || self.thread.get_or_init(thread).clone());
        self.weighers.watch(cluster, || self.thread.get_or_init(thread).clone());
        let name = &cluster.config.name;
        let before = self.checks.lock().remove(name).unwrap_or_default();
        let next = before.next.filter(|next| next.is_of(cluster)).or_else(|| self.watch(cluster));
        match next {
            Some(next) => {
                next.take_over();
                let checks = Checks { in_force: Some(next), next: None };
                self.checks.lock().insert(name.clone(), checks);
            }
            None if before.in_force.is_some() => acquit(cluster),
            None => {}
        }
        if cluster.outliers.is_some() {
            // Some may have left or come back since it was made.
            cluster.refresh();
        }
    }

    /// Checks the endpoints of a name no longer.
    pub(crate) fn forget(&self, name: &str) {
        self.counted.forget(name);
        self.judges.forget(name);
        self.weighers.forget(name);
        self.checks.lock().remove(name);
    }
}

/// Opens a log of events.
fn open(log: &EventLog) {
    if let Err(reason) = log.open() {
        tracing::warn!(cluster = log.cluster(), reason, "events of endpoints are not logged");
    }
}

/// The thread of all checks; `None` when there can't be one, and nothing is checked.
fn thread() -> Option<Handle> {
    let started = Pools::thread("health");
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
