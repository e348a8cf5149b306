//! The names of clusters, and what they stand for.

use super::Cluster;
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// The place of a cluster's name in the process.
pub struct ClusterCell {
    /// The cluster's name.
    pub name: Arc<str>,
    current: ArcSwapOption<Cluster>,
}

impl ClusterCell {
    /// What the name stands for now; `None` for an unknown cluster (503 NC).
    #[inline]
    pub fn load(&self) -> Option<Arc<Cluster>> {
        self.current.load_full()
    }

    /// Puts a cluster in force, or takes away what is; answers what was there, for the control thread to drop.
    /// One caller at a time: the control thread, or whoever holds the lock of names of its own.
    pub fn swap(&self, cluster: Option<Arc<Cluster>>) -> Option<Arc<Cluster>> {
        let before = self.current.load_full();
        if let Some(cluster) = &cluster {
            cluster.enter(before.as_deref());
        }
        let replaced = before.as_deref().filter(|b| !cluster.as_deref().is_some_and(|c| std::ptr::eq(c, *b)));
        if let Some(replaced) = replaced {
            replaced.leave(cluster.as_deref());
        }
        self.current.swap(cluster)
    }
}

impl std::fmt::Debug for ClusterCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cluster {}", self.name)
    }
}

/// All cluster names of the process.
#[derive(Default)]
pub struct Clusters {
    cells: Mutex<HashMap<Arc<str>, Arc<ClusterCell>>>,
}

impl Clusters {
    /// The cell of a name, made when it is new.
    pub fn cell(&self, name: &str) -> Arc<ClusterCell> {
        let mut cells = self.cells.lock();
        if let Some(cell) = cells.get(name) {
            return cell.clone();
        }
        let name: Arc<str> = name.into();
        let cell = Arc::new(ClusterCell { name: name.clone(), current: ArcSwapOption::empty() });
        cells.insert(name, cell.clone());
        cell
    }

    /// The cluster of a name, if there is one: for names that only a request knows (`cluster_header`).
    pub fn find(&self, name: &str) -> Option<Arc<Cluster>> {
        self.cells.lock().get(name)?.load()
    }

    /// Every cluster there is, by name.
    pub fn all(&self) -> Vec<Arc<Cluster>> {
        let mut all: Vec<_> = self.cells.lock().values().filter_map(|c| c.load()).collect();
        all.sort_by(|a, b| a.config.name.cmp(&b.config.name));
        all
    }

    /// Forgets names that stand for nothing and that no route holds.
    pub fn sweep(&self) {
        self.cells.lock().retain(|_, cell| Arc::strong_count(cell) > 1 || cell.current.load().is_some());
    }
}

impl std::fmt::Debug for Clusters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} cluster names", self.cells.lock().len())
    }
}
