//! The resources in force: by kind and id, and which hang on which.

use std::collections::BTreeMap;
use std::sync::Arc;

use sixfold_core::error::ConfigError;
use sixfold_core::fast_hash::{FastMap, FastSet};
use sixfold_core::plugin::Chain;
use sixfold_core::route::Route as CoreRoute;
use sixfold_core::router::ApisixRoutes;

use super::batch::Pending;
use super::l4::Linked;
use super::record::Record;
use super::roll::Roll;
use crate::client_certificate::VerifiedNames;
use crate::config::EnabledPlugins;
use crate::listener::Listening;
use crate::plugin::{Catalog, GlobalPlugins, PluginSet};
use crate::resource::{Id, Kind};
use crate::store::Key;
use crate::tls::Certificates;

/// Everything that is in force.
#[derive(Default)]
pub(super) struct State {
    pub(super) resources: Resources,
    /// Resources whose last value is not in force, by itself or for what others are.
    pub(super) refused: BTreeMap<Key, Refused>,
    pub(super) routes: FastMap<Id, Arc<CoreRoute>>,
    pub(super) table: ApisixRoutes,
    pub(super) stream_routes: FastMap<Id, Linked>,
    pub(super) global: Global,
    pub(super) roll: Roll,
    pub(super) certificates: Certificates,
    pub(super) listening: Option<Listening>,
    pub(super) catalog: Option<Arc<Catalog>>,
    /// The list of plugins that the store has told, if it has one.
    pub(super) listed: Option<EnabledPlugins>,
}

/// Resources and what hangs on them.
#[derive(Default)]
pub(super) struct Resources {
    by_kind: BTreeMap<Kind, FastMap<Id, Held>>,
    /// Who refers to a resource.
    dependents: FastMap<Key, FastSet<Key>>,
    /// Who takes part in an agreement of this name.
    parties: FastMap<Arc<str>, FastSet<Key>>,
}

/// A resource and its place among those of its kind.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) order: u64,
    pub(super) record: Arc<Record>,
}

/// The last value of a resource, refused; what was in force before it still is.
pub(super) struct Refused {
    pub(super) faults: Vec<Fault>,
    /// The change, if it may be taken when others change.
    pub(super) waiting: Option<Pending>,
    /// It is in force all the same, and refers to what is not there: its requests are answered with an error, as by
    /// APISIX. Without it they would find another route, and be let pass where this one guards.
    pub(super) in_force: bool,
}

/// A fault, and the resource in which it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) about: Key,
    /// Places are those in the resource.
    pub(super) error: ConfigError,
}

/// The plugins of all global rules as one.
#[derive(Default)]
pub(super) struct Global {
    pub(super) rules: Vec<Arc<PluginSet>>,
    pub(super) names: VerifiedNames,
    pub(super) set: Arc<GlobalPlugins>,
    pub(super) chain: Option<Arc<Chain>>,
}

impl Resources {
    pub(super) fn get(&self, key: &Key) -> Option<&Held> {
        self.by_kind.get(&key.kind)?.get(&key.id)
    }

    /// All of a kind, in no particular order.
    pub(super) fn of(&self, kind: Kind) -> impl Iterator<Item = (&Id, &Held)> {
        self.by_kind.get(&kind).into_iter().flatten()
    }

    /// Who refers to a resource.
    pub(super) fn dependents(&self, key: &Key) -> impl Iterator<Item = &Key> {
        self.dependents.get(key).into_iter().flatten()
    }

    /// Who takes part in an agreement.
    pub(super) fn parties(&self, agreement: &str) -> impl Iterator<Item = &Key> {
        self.parties.get(agreement).into_iter().flatten()
    }

    pub(super) fn insert(&mut self, key: Key, held: Held) {
        for reference in &held.record.references {
            self.dependents.entry(reference.key.clone()).or_default().insert(key.clone());
        }
        for agreement in &held.record.agreements {
            self.parties.entry(agreement.name.clone()).or_default().insert(key.clone());
        }
        self.by_kind.entry(key.kind).or_default().insert(key.id, held);
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Held> {
        let held = self.by_kind.get_mut(&key.kind)?.remove(&key.id)?;
        for reference in &held.record.references {
            forget(&mut self.dependents, &reference.key, key);
        }
        for agreement in &held.record.agreements {
            forget(&mut self.parties, &agreement.name, key);
        }
        Some(held)
    }
}

fn forget<K: std::hash::Hash + Eq>(sets: &mut FastMap<K, FastSet<Key>>, of: &K, member: &Key) {
    if let Some(set) = sets.get_mut(of) {
        set.remove(member);
        if set.is_empty() {
            sets.remove(of);
        }
    }
}
