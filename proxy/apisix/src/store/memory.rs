//! A store in this process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use sixfold_core::error::ConfigError;

use super::kept::{end_of, now};
use super::{Action, Change, Committed, Document, Kept, Key, Notify, Sink, Store, StoreError, Watch, Write};
use crate::resource::Kind;

/// Resources that are put and deleted by callers in this process. Cloning shares it. A value whose time is over is there no
/// more; that is told with the next change.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    values: BTreeMap<Key, Held>,
    /// What nobody has looked at yet.
    changed: BTreeSet<Key>,
    revision: u64,
    notify: Option<Notify>,
}

struct Held {
    kept: Kept,
    /// When it is over, in milliseconds since 1970.
    end: Option<u64>,
}

impl Inner {
    /// Takes out what is over.
    fn expire(&mut self) {
        let now = now();
        let over = self.values.iter().filter(|(_, held)| held.end.is_some_and(|end| end <= now));
        for key in over.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.remove(&key);
        }
    }

    /// Takes out a value, with a consumer its credentials.
    fn remove(&mut self, key: &Key) {
        let is_of = |other: &Key| {
            let whose = other.of_consumer().map(|(whose, _)| whose);
            key.kind == Kind::Consumer && whose == Some(key.id.as_str())
        };
        for (gone, _) in self.values.extract_if(.., |other, _| other == key || is_of(other)) {
            self.changed.insert(gone);
        }
    }

    fn commit(&mut self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        let at = |key| self.values.get(key).map_or(0, |held: &Held| held.kept.modified);
        if writes.iter().any(|write| write.expected.is_some_and(|expected| expected != at(&write.key))) {
            return Err(StoreError::Changed);
        }
        self.revision += 1;
        let revision = self.revision;
        let replaced = writes.into_iter().map(|Write { key, action, .. }| {
            let replaced = self.values.contains_key(&key);
            match action {
                Action::Delete => self.remove(&key),
                Action::Keep => return replaced,
                Action::Put(value, ttl) => {
                    let created = self.values.get(&key).map_or(revision, |held| held.kept.created);
                    let kept = Kept { value, created, modified: revision };
                    self.values.insert(key.clone(), Held { kept, end: ttl.map(end_of) });
                }
            }
            if self.values.contains_key(&key) {
                self.changed.insert(key);
            }
            replaced
        });
        Ok(Committed { replaced: replaced.collect(), revision })
    }
}

impl Store for MemoryStore {
    fn changes(&self, sink: &mut dyn Sink) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        let mut inner = self.0.lock();
        inner.expire();
        for key in std::mem::take(&mut inner.changed) {
            let held = inner.values.get(&key);
            sink.change(Change {
                revision: held.map_or(0, |held| held.kept.modified),
                order: held.map_or(0, |held| held.kept.created),
                value: held.map(|held| Document::json(held.kept.value.clone())),
                key,
                takes_place: false,
            });
        }
        Ok(Vec::new())
    }

    fn watch(&self, notify: Notify) -> std::io::Result<Watch> {
        let waiting = {
            let mut inner = self.0.lock();
            inner.notify = Some(notify.clone());
            !inner.changed.is_empty()
        };
        if waiting {
            notify();
        }
        Ok(Box::new(Watching(self.0.clone())))
    }

    fn get(&self, key: &Key) -> Result<Option<Kept>, StoreError> {
        let mut inner = self.0.lock();
        inner.expire();
        Ok(inner.values.get(key).map(|held| held.kept.clone()))
    }

    fn list(&self, kind: Kind) -> Result<Vec<(Key, Kept)>, StoreError> {
        let mut inner = self.0.lock();
        inner.expire();
        let of_kind = inner.values.iter().filter(|(key, _)| key.kind == kind);
        Ok(of_kind.map(|(key, held)| (key.clone(), held.kept.clone())).collect())
    }

    fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        let mut inner = self.0.lock();
        inner.expire();
        let committed = inner.commit(writes)?;
        let notify = inner.notify.clone();
        drop(inner);
        notify.iter().for_each(|notify| notify());
        Ok(committed)
    }

    fn next_id(&self) -> Result<u64, StoreError> {
        let mut inner = self.0.lock();
        inner.revision += 1;
        Ok(inner.revision)
    }
}

struct Watching(Arc<Mutex<Inner>>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.lock().notify = None;
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} resources in memory", self.0.lock().values.len())
    }
}
