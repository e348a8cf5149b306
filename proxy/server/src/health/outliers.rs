//! What becomes of outliers: workers count, and this decides.

use parking_lot::Mutex;
use sixfold_core::cluster::{Cluster, Outliers};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

/// No interval is longer.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Who looks after the outliers of each cluster, by its name.
#[derive(Default)]
pub(super) struct Judges(Mutex<HashMap<Arc<str>, Judge>>);

/// The task of one cluster; it ends when this is dropped.
struct Judge {
    outliers: Arc<Outliers>,
    /// Those that share these counts: the one in force, and the next.
    clusters: Clusters,
    task: AbortHandle,
}

type Clusters = Arc<Mutex<Vec<Weak<Cluster>>>>;

impl Drop for Judge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Judges {
    /// Looks after a cluster's outliers in place of those of the one before it. Counts that go on keep their interval.
    pub(super) fn watch(&self, cluster: &Arc<Cluster>, runtime: impl FnOnce() -> Option<Handle>) {
        let Some(outliers) = &cluster.outliers else { return self.forget(&cluster.config.name) };
        let mut judges = self.0.lock();
        let before = judges.remove(&cluster.config.name);
        let clusters = before.as_ref().map(|judge| judge.clusters.clone()).unwrap_or_default();
        {
            let mut clusters = clusters.lock();
            clusters.retain(|cluster| cluster.strong_count() > 0);
            clusters.push(Arc::downgrade(cluster));
        }
        let judge = match before {
            Some(judge) if Arc::ptr_eq(&judge.outliers, outliers) => judge,
            _ => {
                let Some(runtime) = runtime() else { return };
                let task = runtime.spawn(judge(outliers.clone(), clusters.clone())).abort_handle();
                Judge { outliers: outliers.clone(), clusters, task }
            }
        };
        judges.insert(cluster.config.name.clone(), judge);
    }

    pub(super) fn forget(&self, name: &str) {
        self.0.lock().remove(name);
    }
}

async fn judge(outliers: Arc<Outliers>, clusters: Clusters) {
    let interval = outliers.config.interval.clamp(Duration::from_millis(1), LONGEST);
    let mut look = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let changed = tokio::select! {
            () = outliers.wait() => outliers.eject(Instant::now()),
            _ = look.tick() => outliers.look(Instant::now()),
        };
        if changed {
            let clusters: Vec<_> = clusters.lock().iter().filter_map(Weak::upgrade).collect();
            clusters.iter().for_each(|cluster| cluster.refresh());
        }
    }
}
