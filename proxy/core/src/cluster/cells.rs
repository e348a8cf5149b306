//! The names of clusters, and what they stand for.

use super::Cluster;
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::sync::Notify;

/// The place of a cluster's name in the process.
pub struct ClusterCell {
    /// The cluster's name.
    pub name: Arc<str>,
    current: ArcSwapOption<Cluster>,
    changes: Notify,
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
        let replaced = self.current.swap(cluster);
        self.changes.notify_waiters();
        replaced
    }

    /// Ends with the first swap after this call, for all who wait. Call it before [`ClusterCell::load`], then no
    /// change is missed in between; it may be dropped at any time.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + '_ {
        self.changes.notified()
    }

    /// Waits until the name stands for a cluster. It may be dropped at any time.
    pub async fn comes(&self) -> Arc<Cluster> {
        loop {
            let changed = self.changed();
            if let Some(cluster) = self.load() {
                return cluster;
            }
            changed.await;
        }
    }
}

impl std::fmt::Debug for ClusterCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cluster {}", self.name)
    }
}

/// Parts of the names: a new name copies one of them.
const PARTS: usize = 256;

type Part = HashMap<Arc<str>, Arc<ClusterCell>>;

/// All cluster names of the process. Requests read them without a lock; whoever hands out or forgets cells holds
/// one, so that no cell is forgotten that is being handed out.
pub struct Clusters {
    parts: Box<[ArcSwap<Part>]>,
    hasher: RandomState,
    writing: Mutex<()>,
    come: AtomicBool,
}

impl Default for Clusters {
    fn default() -> Clusters {
        let empty = Arc::new(Part::new());
        let parts = (0..PARTS).map(|_| ArcSwap::new(empty.clone())).collect();
        let come = AtomicBool::new(false);
        Clusters { parts, hasher: RandomState::new(), writing: Mutex::default(), come }
    }
}

impl Clusters {
    /// The cell of a name, made when it is new.
    pub fn cell(&self, name: &str) -> Arc<ClusterCell> {
        self.cell_with(name, || name.into())
    }

    /// The same; a new cell shares the name.
    pub fn cell_of(&self, name: &Arc<str>) -> Arc<ClusterCell> {
        self.cell_with(name, || name.clone())
    }

    fn cell_with(&self, name: &str, shared: impl FnOnce() -> Arc<str>) -> Arc<ClusterCell> {
        let _writing = self.writing.lock();
        let place = self.part(name);
        let part = place.load();
        if let Some(cell) = part.get(name) {
            return cell.clone();
        }
        let name = shared();
        let (current, changes) = (ArcSwapOption::empty(), Notify::new());
        let cell = Arc::new(ClusterCell { name: name.clone(), current, changes });
        let mut next = Part::clone(&part);
        next.insert(name, cell.clone());
        place.store(Arc::new(next));
        self.come.store(true, Relaxed);
        cell
    }

    /// The cluster of a name, if there is one: for names that only a request knows (`cluster_header`). Takes no
    /// lock.
    pub fn find(&self, name: &str) -> Option<Arc<Cluster>> {
        self.part(name).load().get(name)?.load()
    }

    /// Every cluster there is, by name.
    pub fn all(&self) -> Vec<Arc<Cluster>> {
        let mut all = Vec::new();
        for part in &self.parts {
            all.extend(part.load().values().filter_map(|cell| cell.load()));
        }
        all.sort_by(|a, b| a.config.name.cmp(&b.config.name));
        all
    }

    /// Whether names have come since this was asked last, which who brought them may have let go of again.
    pub(crate) fn have_come(&self) -> bool {
        self.come.swap(false, Relaxed)
    }

    /// Forgets names that stand for nothing and that no route holds.
    pub fn sweep(&self) {
        let _writing = self.writing.lock();
        let is_used = |cell: &Arc<ClusterCell>| Arc::strong_count(cell) > 1 || cell.current.load().is_some();
        for place in &self.parts {
            let part = place.load();
            if !part.values().all(is_used) {
                let used = part.iter().filter(|(_, cell)| is_used(cell));
                place.store(Arc::new(used.map(|(name, cell)| (name.clone(), cell.clone())).collect()));
            }
        }
    }

    /// The part that a name belongs to.
    fn part(&self, name: &str) -> &ArcSwap<Part> {
        &self.parts[self.hasher.hash_one(name) as usize % PARTS]
    }

    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.load().len()).sum()
    }
}

impl std::fmt::Debug for Clusters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} cluster names", self.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::ClusterConfig;
    use crate::metrics::Registry;

    /// Once all workers took one lock for every request with a `cluster_header`.
    #[test]
    fn a_request_finds_its_cluster_while_names_are_written() {
        let clusters = Arc::new(Clusters::default());
        let _writing = clusters.writing.lock();
        let (found, answer) = std::sync::mpsc::channel();
        let reader = clusters.clone();
        // Not joined: it would never end if it needed the lock.
        std::thread::spawn(move || found.send(reader.find("a").is_none()));
        assert_eq!(answer.recv_timeout(std::time::Duration::from_secs(10)), Ok(true));
    }

    #[test]
    fn who_waits_for_a_cluster_is_woken_when_it_comes_and_when_it_goes() {
        let cell = Clusters::default().cell("c");
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let (mut one, mut other) = (Box::pin(cell.changed()), Box::pin(cell.changed()));
        assert!(one.as_mut().poll(&mut context).is_pending());
        cell.swap(None);
        assert!(one.as_mut().poll(&mut context).is_ready());
        assert!(other.as_mut().poll(&mut context).is_ready(), "it began before the change");
        assert!(Box::pin(cell.changed()).as_mut().poll(&mut context).is_pending());
    }

    #[test]
    fn who_waits_for_a_cluster_gets_the_first_that_comes() {
        let cell = Clusters::default().cell("c");
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut comes = Box::pin(cell.comes());
        assert!(comes.as_mut().poll(&mut context).is_pending());
        cell.swap(None);
        assert!(comes.as_mut().poll(&mut context).is_pending());
        let cluster = Cluster::new(ClusterConfig::named("c"), Vec::new(), None, &Registry::new()).unwrap();
        cell.swap(Some(cluster));
        assert!(comes.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn names_are_forgotten_that_nobody_holds() {
        let clusters = Clusters::default();
        let held = clusters.cell("held");
        for n in 0..2000 {
            clusters.cell(&n.to_string());
        }
        assert_eq!(clusters.len(), 2001);
        clusters.sweep();
        assert_eq!(clusters.len(), 1);
        assert!(Arc::ptr_eq(&held, &clusters.cell("held")));
    }
}
