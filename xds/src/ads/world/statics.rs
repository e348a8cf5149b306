//! Clusters and listeners of the bootstrap, which the control plane can neither change nor remove.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::{Asks, Compile, Compiled, Key, Resource, Version, World};
use crate::ads::kind::Kind;
use crate::tracker::Event;

/// A cluster or a listener of the bootstrap.
#[derive(Debug, Clone, PartialEq)]
pub enum Static {
    /// It comes into force with the bootstrap, and asks for these.
    InForce(Asks),
    /// A listener, encoded, with filters whose configurations come by themselves: it comes into force when they are
    /// there, and again with each other one.
    Late(Arc<[u8]>),
}

/// Notes for who shows it what becomes of a resource that is not of the bootstrap.
pub(super) fn note<C: Compile>(compiler: &C, statics: &BTreeSet<Key>, key: &Key, event: Event<'_>) {
    if !statics.contains(key) {
        compiler.note(key, event);
    }
}

impl<C: Compile> World<C> {
    /// Whether a resource is one of the bootstrap.
    pub(in crate::ads) fn is_static(&self, key: &Key) -> bool {
        self.statics.contains(key)
    }

    /// Takes those of another bootstrap of the process, which puts them in force itself, also in the place of what the
    /// control plane has sent by their names. Answers those that are no longer the bootstrap's.
    pub(in crate::ads) fn set_statics(&mut self, statics: BTreeMap<Key, Static>, now: Instant) -> Vec<Key> {
        let (mut in_force, mut late) = (Vec::new(), Vec::new());
        for (key, resource) in statics {
            match resource {
                Static::InForce(asks) => in_force.push((key, asks)),
                Static::Late(value) => match self.compiler.compile(&key, &value) {
                    Ok(compiled) => late.push((key, value, compiled)),
                    // It was compiled with the bootstrap, and what has come of what it names was good.
                    Err(error) => tracing::error!("{} is not in force: {error}", key.shown()),
                },
            }
        }
        // Before anything is dropped, so that what goes on to be named is not asked for once more.
        in_force.iter().for_each(|(key, asks)| self.users.add(key, asks));
        late.iter().for_each(|(key, _, Compiled { asks, .. })| self.users.add(key, asks));
        self.wait_for_nothing_denied(&in_force);
        let names = in_force.iter().map(|(key, _)| key).chain(late.iter().map(|(key, ..)| key)).cloned();
        let names = names.collect();
        let before = std::mem::replace(&mut self.statics, names);
        let gone: Vec<Key> = before.difference(&self.statics).cloned().collect();
        let went_late =
            std::mem::replace(&mut self.late_statics, late.iter().map(|(key, ..)| key.clone()).collect());
        // Nobody else takes them out of force.
        self.removals.extend(gone.iter().filter(|key| went_late.contains(key)).cloned());
        gone.iter().for_each(|key| self.drop_resource(key));
        for (key, value, Compiled { part, asks }) in late {
            self.drop_resource(&key);
            self.removals.retain(|removed| *removed != key);
            let again = asks.clone();
            let version = Version { value, version: String::new(), part: Some(part), asks, since: now };
            self.wait(&key, version);
            self.drop_asks(&key, Some(again));
        }
        for (key, asks) in in_force {
            self.drop_resource(&key);
            self.removals.retain(|removed| *removed != key);
            let is_given = |key: Key| {
                let endpoints = self.resources.get(&key);
                endpoints
                    .and_then(|endpoints| endpoints.live.as_ref())
                    .is_some_and(|live| !live.value.is_empty())
            };
            let mut needs = asks.needs.iter().filter(|need| need.kind == Kind::Endpoints);
            if needs.any(|need| is_given(need.key())) {
                self.due.insert(key.name.clone());
            }
            self.resources
                .insert(key, Box::new(Resource { live: Some(there(asks, now)), ..Resource::new() }));
        }
        gone
    }

    /// Of routes that were refused before, or can't be read, nothing is told anew to those who ask for them now.
    fn wait_for_nothing_denied(&mut self, asking: &[(Key, Asks)]) {
        for need in asking.iter().flat_map(|(_, asks)| &asks.needs).filter(|need| need.kind == Kind::Routes) {
            let key = need.key();
            if self.denied.contains(&key) && !self.resources.contains_key(&key) {
                self.compiler.missing(&key);
            }
        }
    }

    /// Forgets a resource without taking it out of force.
    fn drop_resource(&mut self, key: &Key) {
        self.end_ttl(key);
        self.waiting.remove(key);
        if key.kind == Kind::Cluster {
            self.lingering.remove(&key.name);
        }
        let Some(resource) = self.resources.remove(key) else { return };
        let Resource { next, live, before, expires: _ } = *resource;
        self.compiler.note(key, Event::Gone);
        for version in [next, live, before].into_iter().flatten() {
            self.drop_asks(key, Some(version.asks));
        }
    }
}

/// A version that nobody has sent.
fn there<P>(asks: Asks, now: Instant) -> Version<P> {
    Version { value: Arc::default(), version: String::new(), part: None, asks, since: now }
}
