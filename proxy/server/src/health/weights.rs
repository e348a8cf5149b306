//! Weights that endpoints report: workers note the reports, and this makes weights of them.

use parking_lot::Mutex;
use sixfold_core::cluster::Cluster;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

/// No period is shorter, as in Envoy.
const SHORTEST: Duration = Duration::from_millis(100);
/// No period is longer.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Who makes the weights of each cluster, by its name.
#[derive(Default)]
pub(super) struct Weighers(Mutex<HashMap<Arc<str>, Weigher>>);

/// The task of one cluster; it ends when this is dropped.
struct Weigher(AbortHandle);

impl Drop for Weigher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Weighers {
    /// Makes the weights of a cluster in place of those of the one before it, if its endpoints report any.
    pub(super) fn watch(&self, cluster: &Arc<Cluster>, runtime: impl FnOnce() -> Option<Handle>) {
        let name = &cluster.config.name;
        let Some(reports) = cluster.config.balance.policy.load_reports() else { return self.forget(name) };
        let Some(runtime) = runtime() else { return };
        let period = reports.update.clamp(SHORTEST, LONGEST);
        let task = runtime.spawn(weigh(Arc::downgrade(cluster), period)).abort_handle();
        self.0.lock().insert(name.clone(), Weigher(task));
    }

    pub(super) fn forget(&self, name: &str) {
        self.0.lock().remove(name);
    }
}

async fn weigh(cluster: Weak<Cluster>, period: Duration) {
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(cluster) = cluster.upgrade() else { return };
        cluster.reweigh(Instant::now());
    }
}
