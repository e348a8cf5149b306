//! What is in force, and what is written and is not: for those who ask a gateway.
//!
//! A store has the last value of a resource, be it wrong. What serves may be an earlier one, which nobody else keeps.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use sixfold_core::error::{ConfigError, Place};
use sixfold_core::fast_hash::FastMap;

use super::batch::Pending;
use super::candidate::Candidate;
use super::state::{Fault, State};
use crate::resource::Kind;
use crate::store::{Kept, Key, Store};

/// The values that are in force, and what was refused. It changes as its [`Source`](super::Source) takes changes.
pub struct InForce {
    store: Arc<dyn Store>,
    now: RwLock<Now>,
}

#[derive(Default)]
struct Now {
    values: FastMap<Key, Value>,
    refused: BTreeMap<Key, Told>,
    unread: Vec<ConfigError>,
}

/// A value, and its place among those of its kind.
struct Value {
    order: u64,
    kept: Kept,
}

impl Value {
    /// With so many before it. A file has no revisions: what it holds has those of its places.
    fn at(&self, before: usize) -> Kept {
        let place = before as u64 + 1;
        Kept { created: place, modified: place, ..self.kept.clone() }
    }
}

/// What is told of a value that was refused.
struct Told {
    faults: Vec<Fault>,
    serves: Serves,
}

/// What of a resource is in force whose last value was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    /// What it was before.
    Earlier,
    /// Nothing: it has never had a good value, or none since the process was started.
    Nothing,
    /// It does, though it refers to what is not there: its requests are answered with an error.
    Itself,
}

/// A resource whose last value was refused.
#[derive(Debug, Clone)]
pub struct RefusedResource {
    /// Which.
    pub key: Key,
    /// All that is wrong with it, by name and place.
    pub faults: Vec<ConfigError>,
    /// What is in force of it.
    pub serves: Serves,
}

/// Whether values of a kind are kept to be shown. Nobody is shown those of the others.
pub(super) fn is_shown(kind: Kind) -> bool {
    use Kind::{PluginMetadata, Route, Service, StreamRoute, Upstream};
    matches!(kind, PluginMetadata | Route | Service | StreamRoute | Upstream)
}

impl InForce {
    /// Nothing yet of what `store` has.
    pub(crate) fn new(store: Arc<dyn Store>) -> InForce {
        InForce { store, now: RwLock::default() }
    }

    /// Takes a candidate that is about to be accepted by `state`.
    pub(super) fn follow(&self, candidate: &Candidate, state: &State) {
        let mut now = self.now.write();
        now.unread.clear();
        for (key, pending) in candidate.pending.iter().filter(|(key, _)| is_shown(key.kind)) {
            let Pending::Put(order, fresh) = pending else {
                now.values.remove(key);
                continue;
            };
            match (&fresh.value, now.values.get_mut(key)) {
                (Some(value), _) => {
                    let modified = self.store.shown_revision(fresh.record.revision);
                    let kept = Kept { value: value.clone(), created: *order, modified };
                    now.values.insert(key.clone(), Value { order: *order, kept });
                }
                (None, Some(value)) => value.order = *order,
                (None, None) => {}
            }
        }
        for key in &candidate.answered {
            now.refused.remove(key);
        }
        for (key, refused) in &candidate.refused {
            let is_there = match candidate.pending.get(key) {
                Some(pending) => pending.record().is_some(),
                None => state.resources.get(key).is_some(),
            };
            let serves = match (refused.in_force, is_there) {
                (true, _) => Serves::Itself,
                (false, true) => Serves::Earlier,
                (false, false) => Serves::Nothing,
            };
            now.refused.insert(key.clone(), Told { faults: refused.faults.clone(), serves });
        }
    }

    /// Says why the store could not be read when it was tried last.
    pub(super) fn unread(&self, errors: &[ConfigError]) {
        self.now.write().unread = errors.to_vec();
    }

    /// Has a value be in force.
    #[cfg(test)]
    pub(crate) fn put(&self, key: &Key, value: &str) {
        let kept = Kept { value: value.to_owned().into(), created: 1, modified: 1 };
        self.now.write().values.insert(key.clone(), Value { order: 1, kept });
    }

    /// What keys begin with where they are shown.
    pub(crate) fn prefix(&self) -> &str {
        self.store.prefix()
    }

    /// The value of a resource that is in force.
    pub(crate) fn get(&self, key: &Key) -> Option<Kept> {
        let now = self.now.read();
        let value = now.values.get(key)?;
        let before = || {
            let others = now.values.iter().filter(|(other, _)| other.kind == key.kind);
            others.filter(|(other, its)| (its.order, *other) < (value.order, key)).count()
        };
        Some(if self.store.has_places() { value.at(before()) } else { value.kept.clone() })
    }

    /// All values of a kind that are in force, in the order of a file or, of those that have no such order, by id.
    pub(crate) fn list(&self, kind: Kind) -> Vec<(Key, Kept)> {
        let now = self.now.read();
        let mut all: Vec<_> = now.values.iter().filter(|(key, _)| key.kind == kind).collect();
        if !self.store.has_places() {
            all.sort_by_key(|(key, _)| *key);
            return all.into_iter().map(|(key, value)| (key.clone(), value.kept.clone())).collect();
        }
        all.sort_by_key(|(key, value)| (value.order, *key));
        all.into_iter().enumerate().map(|(before, (key, value))| (key.clone(), value.at(before))).collect()
    }

    /// What was refused of a resource, if its last value was.
    pub(crate) fn refused_of(&self, key: &Key) -> Option<RefusedResource> {
        self.now.read().refused.get(key).and_then(|told| self.refused_resource(key, told))
    }

    /// All that is written and was refused, by kind and id.
    pub fn refused(&self) -> Vec<RefusedResource> {
        let now = self.now.read();
        now.refused.iter().filter_map(|(key, told)| self.refused_resource(key, told)).collect()
    }

    /// How many resources of a kind were refused.
    pub(super) fn refused_number(&self) -> BTreeMap<Kind, u64> {
        let mut numbers = BTreeMap::new();
        for (key, _) in self.now.read().refused.iter().filter(|(_, told)| !told.faults.is_empty()) {
            *numbers.entry(key.kind).or_default() += 1;
        }
        numbers
    }

    /// Why the store could not be read when it was tried last: what it had before is in force.
    pub fn why_unread(&self) -> Vec<ConfigError> {
        self.now.read().unread.clone()
    }

    fn refused_resource(&self, key: &Key, told: &Told) -> Option<RefusedResource> {
        let faults = told.faults.iter().map(|fault| named(&*self.store, fault.clone()));
        let faults: Vec<ConfigError> = faults.collect();
        let is_told = !faults.is_empty();
        is_told.then(|| RefusedResource { key: key.clone(), faults, serves: told.serves })
    }
}

/// The error with the name of its resource, and its place in the file if there is one.
pub(super) fn named(store: &dyn Store, fault: Fault) -> ConfigError {
    let Fault { about, mut error } = fault;
    if let Some(origin) = store.origin(&about) {
        let mut place = error.place.unwrap_or_else(|| Place::new(1, 1));
        place.line = (place.line + origin.line).saturating_sub(1);
        error.place = Some(store.written(place));
        error = error.in_file(origin.file);
    }
    error.in_resource(about.to_string())
}

impl std::fmt::Debug for InForce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} values in force", self.now.read().values.len())
    }
}
