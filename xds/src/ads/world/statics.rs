//! Clusters and listeners of the bootstrap, which the control plane can neither change nor remove.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::{Asks, Compile, Key, Resource, Version, World};
use crate::ads::kind::Kind;
use crate::tracker::Event;

impl<C: Compile> World<C> {
    /// Takes those of another bootstrap of the process, which puts them in force itself, also in the place of what the
    /// control plane has sent by their names. Answers those that are no longer the bootstrap's.
    pub(in crate::ads) fn set_statics(&mut self, statics: BTreeMap<Key, Asks>, now: Instant) -> Vec<Key> {
        // Before anything is dropped, so that what goes on to be named is not asked for once more.
        statics.iter().for_each(|(key, asks)| self.users.add(key, asks));
        let names = statics.keys().cloned().collect();
        let before = std::mem::replace(&mut self.statics, names);
        let gone: Vec<Key> = before.difference(&self.statics).cloned().collect();
        gone.iter().for_each(|key| self.drop_resource(key));
        for (key, asks) in statics {
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
            self.resources.insert(key, Resource { live: Some(in_force(asks, now)), ..Resource::new() });
        }
        gone
    }

    /// Forgets a resource without taking it out of force.
    fn drop_resource(&mut self, key: &Key) {
        self.end_ttl(key);
        self.waiting.remove(key);
        if key.kind == Kind::Cluster {
            self.lingering.remove(&key.name);
        }
        let Some(Resource { next, live, before, .. }) = self.resources.remove(key) else { return };
        self.compiler.note(key, Event::Gone);
        for version in [next, live, before].into_iter().flatten() {
            self.drop_asks(key, Some(version.asks));
        }
    }
}

/// A version that nobody has sent.
fn in_force<P>(asks: Asks, now: Instant) -> Version<P> {
    Version { value: Arc::default(), version: String::new(), part: None, asks, since: now }
}
