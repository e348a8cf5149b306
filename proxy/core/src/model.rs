//! The model: what is configured now, and how a change is applied to it.
//!
//! Sources produce a [`Diff`]; the control thread alone applies it. Clusters come first, then route tables
//! and certificates, then listeners, and what is no longer there goes last, so that nothing in use ever
//! points at nothing.

use crate::cluster::{Cluster, Clusters};
use crate::listener::Listener;
use crate::router::{RouteTable, RouteTableCell};
use crate::tls::ContextChange;
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Changes to the model by name. `None` removes.
#[derive(Debug, Default)]
pub struct Diff {
    /// Clusters.
    pub clusters: Vec<(Arc<str>, Option<Arc<Cluster>>)>,
    /// Route tables that listeners refer to by name.
    pub route_tables: Vec<(Arc<str>, Option<Arc<RouteTable>>)>,
    /// Certificates of listeners that stay. They are shown with the routes they come with.
    pub contexts: Vec<ContextChange>,
    /// Listeners.
    pub listeners: Vec<(Arc<str>, Option<Arc<Listener>>)>,
    /// What the source no longer needs: freeing thousands of resources takes milliseconds, so it is done when
    /// the change is in force.
    pub replaced: Option<Box<dyn Any + Send>>,
}

impl Diff {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.clusters.is_empty()
            && self.route_tables.is_empty()
            && self.contexts.is_empty()
            && self.listeners.is_empty()
    }
}

/// What the server must do after a change.
#[derive(Debug, Default)]
pub struct ListenerChanges {
    /// Listeners that are new or different, with what they replace.
    pub upserted: Vec<(Arc<Listener>, Option<Arc<Listener>>)>,
    /// Listeners that are gone.
    pub removed: Vec<Arc<Listener>>,
}

/// What is configured now. Lives on the control thread.
#[derive(Default)]
pub struct Model {
    clusters: Arc<Clusters>,
    tables: BTreeMap<Arc<str>, Arc<RouteTableCell>>,
    listeners: BTreeMap<Arc<str>, Arc<Listener>>,
    /// Replaced parts that a request may still hold; dropped here once nobody else does, since the last
    /// drop of a large table would stall a worker.
    retired: Vec<Arc<dyn Any + Send + Sync>>,
    generation: u64,
}

impl Model {
    /// An empty model whose cluster names are `clusters`.
    pub fn new(clusters: Arc<Clusters>) -> Model {
        Model { clusters, ..Model::default() }
    }

    /// The cluster names, for sources that compile routes.
    pub fn clusters(&self) -> &Arc<Clusters> {
        &self.clusters
    }

    /// The cell of a route table, made when its name is new: for sources that compile listeners.
    pub fn table_cell(&mut self, name: &str) -> Arc<RouteTableCell> {
        if let Some(cell) = self.tables.get(name) {
            return cell.clone();
        }
        let cell = RouteTableCell::new(name, None);
        self.tables.insert(cell.name.clone(), cell.clone());
        cell
    }

    /// Listeners now, by name.
    pub fn listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.values()
    }

    /// Number of changes applied so far.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Applies a change. Requests see each part at their next load of it; the server opens and closes
    /// listeners after what is returned.
    pub fn apply(&mut self, diff: Diff) -> ListenerChanges {
        self.generation += 1;
        let (gone, come): (Vec<_>, Vec<_>) = diff.clusters.into_iter().partition(|(_, c)| c.is_none());
        for (name, cluster) in come {
            let old = self.clusters.cell(&name).swap(cluster);
            self.retire(old);
        }
        for (name, table) in diff.route_tables {
            let old = self.table_cell(&name).swap(table);
            self.retire(old);
        }
        diff.contexts.into_iter().for_each(ContextChange::put_in_force);
        let mut changes = ListenerChanges::default();
        for (name, listener) in diff.listeners {
            match listener {
                Some(listener) => {
                    let old = self.listeners.insert(name, listener.clone());
                    changes.upserted.push((listener, old));
                }
                None => changes.removed.extend(self.listeners.remove(&name)),
            }
        }
        for (name, _) in gone {
            let old = self.clusters.cell(&name).swap(None);
            self.retire(old);
        }
        drop(diff.replaced);
        self.sweep();
        changes
    }

    /// Keeps a replaced part until only the control thread holds it.
    pub fn retire<T: Send + Sync + 'static>(&mut self, part: Option<Arc<T>>) {
        self.retired.extend(part.map(|p| p as Arc<dyn Any + Send + Sync>));
    }

    /// Drops retired parts that nobody else holds; call it now and then. Tells how many are left.
    pub fn sweep(&mut self) -> usize {
        self.retired.retain(|part| Arc::strong_count(part) > 1);
        self.clusters.sweep();
        self.retired.len()
    }
}
