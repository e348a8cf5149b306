//! Changes on their way to be taken: read one by one, then held against everything else.
//!
//! What is wrong is taken out, and with it what can't be without it, until the rest fits together. So a wrong
//! resource keeps its last good value, and the others change. An item without an id has one only as long as it is the
//! same one at its position: what was deleted before it must not stay in its name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sixfold_core::document::Node;
use sixfold_core::error::ConfigError;

use super::in_force::is_shown;
use super::record::{Builder, Fresh, Record};
use super::state::{Fault, Held, Refused, State};
use crate::config::{EnabledPlugins, walk};
use crate::item::{Reader, Reference, Refusal};
use crate::plugin::Catalog;
use crate::resource::{Id, Kind};
use crate::store::{Change, Key, Sink};

/// Changes against the state that is in force, which they leave as it is.
pub(super) struct Batch<'a> {
    pub(super) state: &'a State,
    pub(super) builder: Builder<'a>,
    pub(super) catalog: Arc<Catalog>,
    /// The list of plugins that the store has told, if it has one.
    pub(super) listed: Option<EnabledPlugins>,
    pub(super) pending: BTreeMap<Key, Pending>,
    /// Of these keys what was refused before no longer counts.
    pub(super) answered: BTreeSet<Key>,
    /// The largest revision of each kind.
    pub(super) revisions: BTreeMap<Kind, u64>,
    pub(super) refused: BTreeMap<Key, Refused>,
    /// Keys under which another resource than the one that comes is in force.
    taken: BTreeSet<Key>,
    /// What resources refer to that are wrong by themselves.
    unread: BTreeMap<Key, Vec<Reference>>,
    /// Kinds of which there may be more resources than are known.
    hidden: BTreeSet<Kind>,
    /// What is odd about resources that are taken.
    pub(super) warnings: Vec<Fault>,
}

/// What is to become of a resource.
#[derive(Clone)]
pub(super) enum Pending {
    Put(u64, Fresh),
    Delete,
}

impl Pending {
    pub(super) fn record(&self) -> Option<&Arc<Record>> {
        match self {
            Pending::Put(_, fresh) => Some(&fresh.record),
            Pending::Delete => None,
        }
    }
}

impl<'a> Batch<'a> {
    pub(super) fn new(state: &'a State, builder: Builder<'a>) -> Batch<'a> {
        let catalog = state.catalog.clone().unwrap_or_else(|| builder.catalog(None));
        Batch {
            state,
            builder,
            catalog,
            listed: state.listed.clone(),
            pending: BTreeMap::new(),
            answered: BTreeSet::new(),
            revisions: BTreeMap::new(),
            refused: BTreeMap::new(),
            taken: BTreeSet::new(),
            unread: BTreeMap::new(),
            hidden: BTreeSet::new(),
            warnings: Vec::new(),
        }
    }

    /// A resource as it will be.
    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Record>> {
        match self.pending.get(key) {
            Some(pending) => pending.record(),
            None => self.state.resources.get(key).map(|held| &held.record),
        }
    }

    /// The place of a resource among those of its kind, as it will be.
    pub(super) fn order(&self, key: &Key) -> Option<u64> {
        match self.pending.get(key) {
            Some(Pending::Put(order, _)) => Some(*order),
            Some(Pending::Delete) => None,
            None => self.state.resources.get(key).map(|held| held.order),
        }
    }

    /// All resources of a kind as they will be, in their order.
    pub(super) fn all(&self, kind: Kind) -> Vec<&Arc<Record>> {
        let mut all = self.entries(kind);
        all.sort_by_key(|(order, ..)| *order);
        all.into_iter().map(|(.., record)| record).collect()
    }

    /// All resources of a kind as they will be with their orders, sorted by nothing.
    pub(super) fn entries(&self, kind: Kind) -> Vec<(u64, Id, &Arc<Record>)> {
        let kept = self.state.resources.of(kind).map(|(id, held)| (Key::new(kind, id.clone()), held));
        let kept = kept.filter(|(key, _)| !self.pending.contains_key(key));
        let kept = kept.map(|(key, held)| (held.order, key.id, &held.record));
        let fresh = self.pending.iter().filter(|(key, _)| key.kind == kind);
        let fresh = fresh.filter_map(|(key, pending)| match pending {
            Pending::Put(order, fresh) => Some((*order, key.id.clone(), &fresh.record)),
            Pending::Delete => None,
        });
        kept.chain(fresh).collect()
    }

    /// Who refers to a resource, and is not about to change.
    pub(super) fn steady_dependents(&self, key: &Key) -> impl Iterator<Item = &'a Key> {
        self.state.resources.dependents(key).filter(|dependent| !self.pending.contains_key(*dependent))
    }

    /// Reads and compiles a resource.
    ///
    /// # Errors
    /// All that is wrong with it, and what it refers to.
    fn read(
        &mut self,
        key: &Key,
        revision: u64,
        node: &Node,
    ) -> Result<Fresh, (Vec<ConfigError>, Vec<Reference>)> {
        let environment = &self.builder.context.environment;
        let reader = Reader { catalog: &self.catalog, environment, hints: true, elsewhere: false };
        let placed = |error: ConfigError| {
            let place = error.field.as_deref().and_then(|field| walk(node, field).2);
            error.at(place.unwrap_or(node.place))
        };
        let all = |error: ConfigError| error.into_all().into_iter().map(placed);
        let before = self.state.resources.get(key).map(|held| &*held.record);
        match reader.read(key, node) {
            Ok(parsed) => {
                let warnings = parsed.warnings.iter().cloned();
                let warnings = warnings.map(|error| Fault { about: key.clone(), error });
                self.warnings.extend(warnings);
                if key.kind == Kind::StreamRoute && !self.builder.config.listens_to_streams() {
                    let reason = "nothing listens for it: apisix.stream_proxy names no address, or apisix.proxy_mode is http";
                    self.warnings
                        .push(Fault { about: key.clone(), error: ConfigError::new(reason).at(node.place) });
                }
                let built = self.builder.build(key, revision, parsed, &self.catalog, before);
                built.map_err(|error| (all(error).collect(), Vec::new()))
            }
            Err(Refusal { mut errors, references, plugins }) => {
                errors.extend(self.builder.plugins(key, &plugins, None).err().into_iter().flat_map(all));
                Err((errors, references))
            }
        }
    }

    /// Takes up again what waits for others to change.
    pub(super) fn take_up(&mut self) {
        for (key, refused) in &self.state.refused {
            if let (Some(waiting), false) = (&refused.waiting, self.answered.contains(key)) {
                self.answered.insert(key.clone());
                self.pending.insert(key.clone(), waiting.clone());
            }
        }
    }

    pub(super) fn refuse(&mut self, key: Key, faults: Vec<Fault>, waiting: Option<Pending>) {
        let none = || Refused { faults: Vec::new(), waiting: None, in_force: false };
        let all = self.refused.entry(key).or_insert_with(none);
        all.faults.extend(faults);
        all.waiting = waiting.or(all.waiting.take());
        all.in_force = false;
    }

    /// Leaves a change in that refers to what is not there, and tells of it.
    fn bear(&mut self, key: &Key, fault: Fault) {
        self.refuse(key.clone(), vec![fault], None);
        if let Some(refused) = self.refused.get_mut(key) {
            refused.in_force = true;
        }
    }

    /// Whether a change goes into force although it refers to what is not there: a route, of streams too, a service or a consumer that
    /// nothing is known of that is better.
    fn is_bearable(&self, key: &Key, reference: &Key) -> bool {
        let known_better = || {
            let is_whole = self.state.refused.get(key).is_none_or(|refused| !refused.in_force);
            self.state.resources.get(key).is_some() && is_whole && !self.taken.contains(key)
        };
        matches!(key.kind, Kind::Route | Kind::StreamRoute | Kind::Service | Kind::Consumer)
            && reference.kind != Kind::Ssl
            && self.get(reference).is_none()
            && !known_better()
    }

    /// Takes back what was told of resources whose references lead somewhere by now.
    fn relieve(&mut self) {
        let borne = self.state.refused.iter().filter(|(_, refused)| refused.in_force);
        let relieved =
            borne.filter(|(key, _)| !self.refused.contains_key(*key) && !self.answered.contains(*key));
        let relieved = relieved.filter(|(key, _)| {
            let references = self.get(key).map(|record| &record.references);
            references.into_iter().flatten().all(|reference| self.refusal(reference).is_none())
        });
        let relieved: Vec<Key> = relieved.map(|(key, _)| key.clone()).collect();
        self.answered.extend(relieved);
    }

    /// Takes a change out. What it would have replaced stays, if that is an earlier value of the same resource.
    pub(super) fn take_out(&mut self, key: &Key) -> Option<Pending> {
        let out = self.pending.remove(key);
        let was_deletion = matches!(out, Some(Pending::Delete));
        if !was_deletion && self.taken.contains(key) && self.state.resources.get(key).is_some() {
            self.pending.insert(key.clone(), Pending::Delete);
        }
        out
    }

    /// Takes out what does not fit together with the rest.
    pub(super) fn settle(&mut self) {
        loop {
            let mut wrong = self.dangling();
            if wrong.is_empty() {
                let disagreeing = self.disagreeing().into_iter();
                wrong =
                    disagreeing.map(|(key, fault)| Wrong { key, fault: Some(fault), bears: false }).collect();
            }
            if wrong.is_empty() {
                return self.relieve();
            }
            for Wrong { key, fault, bears } in wrong {
                match fault {
                    Some(fault) if bears && self.pending.contains_key(&key) => self.bear(&key, fault),
                    fault => {
                        let waiting = self.take_out(&key);
                        self.refuse(key, fault.into_iter().collect(), waiting);
                    }
                }
            }
        }
    }

    /// Changes after which a reference would lead nowhere, or to what it can't; with what is to be told of it.
    fn dangling(&self) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        for (key, pending) in &self.pending {
            let told = |reference: &Reference| {
                let refused = self.refused.get(key).filter(|refused| refused.in_force);
                refused.is_some_and(|refused| {
                    refused.faults.iter().any(|f| f.error.place == Some(reference.place))
                })
            };
            let references = pending.record().map(|record| &record.references);
            for reference in references.into_iter().flatten().filter(|reference| !told(reference)) {
                if let Some(refusal) = self.refusal(reference) {
                    let bears = self.is_bearable(key, &reference.key);
                    wrong.push(Wrong { key: key.clone(), fault: refusal.fault(key, reference), bears });
                }
            }
            // A new value can only become wrong for others by being of another type.
            if pending.record().is_some() && key.kind != Kind::Ssl {
                continue;
            }
            for dependent in self.steady_dependents(key) {
                let Some(record) = self.get(dependent) else { continue };
                let refers = |reference: &&Reference| reference.key == *key && !reference.lets_go;
                for reference in record.references.iter().filter(refers) {
                    if let Some(refusal) = self.refusal(reference) {
                        let fault = refusal.fault(dependent, reference);
                        wrong.push(Wrong { key: key.clone(), fault, bears: false });
                    }
                }
            }
        }
        wrong
    }

    fn refusal(&self, reference: &Reference) -> Option<Dangling> {
        let key = &reference.key;
        if let Some(target) = self.get(key) {
            return target.refuses(reference).map(Dangling::Told);
        }
        let before = || self.state.refused.get(key).filter(|_| !self.answered.contains(key));
        Some(match self.refused.get(key).or_else(before) {
            Some(refused) if refused.faults.is_empty() => Dangling::Untold,
            Some(_) => Dangling::Told(format!("{key} is wrong itself")),
            None if self.hidden.contains(&key.kind) => Dangling::Untold,
            None => Dangling::Told(format!("there is no {key}")),
        })
    }

    /// Tells of resources that are wrong by themselves what is wrong with their references, too.
    pub(super) fn look_at_unread(&mut self) {
        for (key, references) in std::mem::take(&mut self.unread) {
            let wrong =
                references.iter().filter_map(|reference| self.refusal(reference)?.fault(&key, reference));
            let wrong: Vec<Fault> = wrong.collect();
            if self.refused.contains_key(&key) && !wrong.is_empty() {
                self.refuse(key, wrong, None);
            }
        }
    }

    /// Changes that make resources differ in what they must have in common. Those that do not change are right;
    /// among those that do it is the first.
    fn disagreeing(&self) -> Vec<(Key, Fault)> {
        let mut wrong = Vec::new();
        let mut first: BTreeMap<&str, u64> = BTreeMap::new();
        let fresh = self.pending.iter().filter_map(|(key, pending)| Some((key, pending.record()?)));
        for (key, record) in fresh {
            for agreement in &record.agreements {
                let steady = self.state.resources.parties(&agreement.name);
                let steady = steady.filter(|party| !self.pending.contains_key(*party));
                let agreed = steady.filter_map(|party| {
                    let held = self.state.resources.get(party)?;
                    held.record.agreements.iter().find(|other| other.name == agreement.name)
                });
                let agreed = agreed.map(|agreement| agreement.print).next();
                let agreed =
                    agreed.unwrap_or_else(|| *first.entry(&agreement.name).or_insert(agreement.print));
                if agreed != agreement.print {
                    let error = ConfigError::field(&agreement.field, agreement.reason);
                    wrong.push((key.clone(), Fault { about: key.clone(), error }));
                }
            }
        }
        wrong
    }
}

/// A change that does not fit, and what is to be told of it.
struct Wrong {
    key: Key,
    fault: Option<Fault>,
    /// It goes into force all the same.
    bears: bool,
}

/// Why a reference can't be.
enum Dangling {
    /// For this reason.
    Told(String),
    /// What it leads to was not read, since a variable in it is not set, or may be there by another such variable: that is
    /// all there is to tell.
    Untold,
}

impl Dangling {
    fn fault(self, about: &Key, reference: &Reference) -> Option<Fault> {
        let Dangling::Told(reason) = self else { return None };
        let error = ConfigError::field(reference.field, reason).at(reference.place);
        Some(Fault { about: about.clone(), error })
    }
}

impl Sink for Batch<'_> {
    fn plugins(&mut self, listed: Option<EnabledPlugins>) {
        self.catalog = self.builder.catalog(listed.as_ref());
        self.listed = listed;
    }

    fn anew(&mut self) {
        self.catalog = self.builder.catalog(self.listed.as_ref());
    }

    fn change(&mut self, change: Change) {
        let Change { key, revision, order, value, takes_place } = change;
        let largest = self.revisions.entry(key.kind).or_default();
        *largest = revision.max(*largest);
        self.answered.insert(key.clone());
        self.warnings.retain(|warning| warning.about != key);
        self.refused.remove(&key);
        self.unread.remove(&key);
        match takes_place {
            true => self.taken.insert(key.clone()),
            false => self.taken.remove(&key),
        };
        let before: Option<&Held> = self.state.resources.get(&key);
        let same_catalog = self.state.catalog.as_ref().is_some_and(|c| Arc::ptr_eq(c, &self.catalog));
        let Some(document) = value else {
            match before {
                Some(_) => self.pending.insert(key, Pending::Delete),
                None => self.pending.remove(&key),
            };
            return;
        };
        if let Some(before) = before.filter(|held| same_catalog && held.record.revision == revision) {
            if self.state.refused.get(&key).is_some_and(|refused| refused.in_force) {
                // What was told of it still holds, unless others have changed.
                self.answered.remove(&key);
            }
            match before.order == order {
                true => self.pending.remove(&key),
                false => {
                    let fresh = Fresh { record: before.record.clone(), template: None, value: None };
                    self.pending.insert(key, Pending::Put(order, fresh))
                }
            };
            return;
        }
        if document.is_unread() {
            self.refuse(key, Vec::new(), None);
            return;
        }
        let shown = is_shown(key.kind).then(|| document.text());
        let read = document.read().map_err(|error| (vec![error], Vec::new()));
        match read.and_then(|node| self.read(&key, revision, &node)) {
            Ok(fresh) => {
                self.pending.insert(key, Pending::Put(order, Fresh { value: shown, ..fresh }));
            }
            Err((errors, references)) => {
                self.take_out(&key);
                self.unread.insert(key.clone(), references);
                let faults = errors.into_iter().map(|error| Fault { about: key.clone(), error }).collect();
                self.refuse(key, faults, None);
            }
        }
    }

    fn hidden(&mut self, kinds: BTreeSet<Kind>) {
        self.hidden = kinds;
    }

    fn start_over(&mut self) {
        self.pending.clear();
        self.refused.clear();
        self.answered.clear();
        self.taken.clear();
        self.unread.clear();
        self.warnings.clear();
    }
}
