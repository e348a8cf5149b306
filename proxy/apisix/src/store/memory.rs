//! A store in this process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use sixfold_core::error::ConfigError;

use super::{Change, Document, Key, Notify, Sink, Store, StoreError, Watch};

/// Resources that are put and deleted by callers in this process. Cloning shares it.
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
    revision: u64,
    created: u64,
    value: Bytes,
}

impl Inner {
    /// Notes a change; the answer is to be called without the lock.
    fn changed(&mut self, key: &Key) -> Option<Notify> {
        self.changed.insert(key.clone());
        self.notify.clone()
    }
}

impl Store for MemoryStore {
    fn changes(&self, sink: &mut dyn Sink) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        let mut inner = self.0.lock();
        for key in std::mem::take(&mut inner.changed) {
            let held = inner.values.get(&key);
            sink.change(Change {
                revision: held.map_or(0, |held| held.revision),
                order: held.map_or(0, |held| held.created),
                value: held.map(|held| Document::json(held.value.clone())),
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

    fn put(&self, key: &Key, value: Bytes) -> Result<u64, StoreError> {
        let mut inner = self.0.lock();
        inner.revision += 1;
        let revision = inner.revision;
        let created = inner.values.get(key).map_or(revision, |held| held.created);
        inner.values.insert(key.clone(), Held { revision, created, value });
        let notify = inner.changed(key);
        drop(inner);
        notify.iter().for_each(|notify| notify());
        Ok(revision)
    }

    fn delete(&self, key: &Key) -> Result<bool, StoreError> {
        let mut inner = self.0.lock();
        if inner.values.remove(key).is_none() {
            return Ok(false);
        }
        let notify = inner.changed(key);
        drop(inner);
        notify.iter().for_each(|notify| notify());
        Ok(true)
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
