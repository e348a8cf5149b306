//! What goes into force and out of it together.

use std::collections::BTreeSet;
use std::time::Instant;

use super::statics::note;
use super::{Change, Compile, Version, World};
use crate::ads::key::Key;
use crate::ads::kind::Kind;
use crate::tracker::Event;

/// In which order resources come into force: what others wait for before them.
const ORDER: [Kind; 6] =
    [Kind::Endpoints, Kind::Secret, Kind::Extension, Kind::Cluster, Kind::Routes, Kind::Listener];

impl<C: Compile> World<C> {
    /// What goes into force and out of it now, complete in itself.
    pub(in crate::ads) fn settle(&mut self, now: Instant) -> Vec<Change<C::Part>> {
        if self.is_at_rest() {
            return Vec::new();
        }
        self.miss_no_longer(now);
        let mut batch = Vec::new();
        for kind in ORDER {
            let waiting: Vec<Key> = self.waiting.iter().filter(|key| key.kind == kind).cloned().collect();
            for key in waiting {
                if self.is_ready(&key, now) {
                    self.put_in_force(&key, &mut batch);
                }
            }
            if kind == Kind::Cluster {
                self.give_endpoints(&mut batch);
            }
        }
        let released: Vec<_> =
            self.lingering.keys().filter(|name| self.is_released(name, now)).cloned().collect();
        for name in released {
            self.lingering.remove(&name);
            let key = Key::of_name(Kind::Cluster, &name);
            self.resources.remove(&key);
            self.compiler.forget(&key);
            self.removals.push(key);
        }
        let removed = std::mem::take(&mut self.removals).into_iter();
        batch.extend(removed.map(|Key { kind, source, name }| Change { kind, source, name, part: None }));
        batch
    }

    /// Whether nothing waits to go into force or out of it, as after most of what comes.
    fn is_at_rest(&self) -> bool {
        self.waiting.is_empty()
            && self.lingering.is_empty()
            && self.due.is_empty()
            && self.removals.is_empty()
    }

    fn put_in_force(&mut self, key: &Key, batch: &mut Vec<Change<C::Part>>) {
        self.go_on_without(key);
        let Some(resource) = self.resources.get_mut(key) else { return };
        let Some(mut next) = resource.next.take() else { return };
        self.waiting.remove(key);
        note(&self.compiler, &self.statics, key, Event::InForce);
        if key.kind == Kind::Endpoints {
            self.due.extend(self.users.of(key).map(|user| user.name.clone()));
        } else {
            let Key { kind, source, name } = key.clone();
            batch.push(Change { kind, source, name, part: next.part.take() });
        }
        if key.kind == Kind::Cluster {
            self.due.insert(key.name.clone());
        }
        resource.before = resource.live.replace(next);
        self.applying.push(key.clone());
    }

    /// Gives clusters in force the endpoints that were accepted for them, none if those have not come in time.
    fn give_endpoints(&mut self, batch: &mut Vec<Change<C::Part>>) {
        for name in std::mem::take(&mut self.due) {
            let cluster = self.resources.get(&Key::of_name(Kind::Cluster, &name));
            let Some(live) = cluster.and_then(|cluster| cluster.live.as_ref()) else { continue };
            let need = live.asks.needs.iter().find(|need| need.kind == Kind::Endpoints);
            let Some(need) = need.cloned() else { continue };
            let key = need.key();
            let assignment = self.resources.get_mut(&key);
            let part = assignment.and_then(|assignment| assignment.live.as_mut());
            // Without a value they are stale.
            let part = part.filter(|live| !live.value.is_empty()).and_then(|live| {
                // It was accepted, so it compiles.
                let mut again = || self.compiler.compile(&key, &live.value).ok();
                live.part.take().or_else(|| again().map(|compiled| compiled.part))
            });
            batch.push(Change { kind: Kind::Endpoints, source: need.source, name, part });
        }
    }

    /// The last batch is in force but for `failed`, each [`World::assigned`], of which what was there before goes on. Answers the versions of
    /// these, which are the last that are known again.
    pub(in crate::ads) fn applied(&mut self, failed: &[Key]) -> Vec<(Key, Option<String>)> {
        let failed: BTreeSet<Key> = failed.iter().cloned().collect();
        for key in std::mem::take(&mut self.applying) {
            let Some(resource) = self.resources.get_mut(&key) else { continue };
            let mut out = resource.before.take();
            if failed.contains(&key) {
                std::mem::swap(&mut resource.live, &mut out);
                let before = resource.live.as_ref().map(|live| (&live.value, &*live.version));
                note(&self.compiler, &self.statics, &key, Event::Reverted(before));
                if resource.live.is_none() {
                    self.end_ttl(&key);
                    self.resources.remove(&key);
                    self.compiler.forget(&key);
                    // It goes on to be shown, as what is refused without ever having been good.
                    if let Some(Version { value, version, .. }) = &out {
                        let refused = Event::Refused { value, version, reason: "" };
                        note(&self.compiler, &self.statics, &key, refused);
                    }
                }
            }
            self.drop_asks(&key, out.map(|out| out.asks));
        }
        let version = |key: &Key| Some(self.resources.get(key)?.live.as_ref()?.version.clone());
        failed.iter().map(|key| (key.clone(), version(key))).collect()
    }
}
