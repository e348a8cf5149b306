//! What is made once, for as long as somebody has it.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};

/// Entries that are not worth a sweep.
const FEW: usize = 16;

/// When a table whose entries end elsewhere is swept as it grows: whenever it has twice as many as the last sweep left, so
/// that those that have ended are never more than the others by much, and adding many takes time in proportion to their
/// number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sweep {
    left: usize,
}

impl Sweep {
    /// Whether it is time, before another entry is added to `entries`.
    pub fn is_due(self, entries: usize) -> bool {
        entries >= FEW.max(self.left * 2)
    }

    /// Says how many entries a sweep has left.
    pub fn done(&mut self, left: usize) {
        self.left = left;
    }
}

/// Values by key for as long as somebody else holds them: what equals another is made once.
#[derive(Debug)]
pub struct Interned<K, V: ?Sized> {
    known: HashMap<K, Weak<V>>,
    sweep: Sweep,
}

impl<K, V: ?Sized> Default for Interned<K, V> {
    fn default() -> Interned<K, V> {
        Interned { known: HashMap::new(), sweep: Sweep::default() }
    }
}

impl<K: Hash + Eq, V: ?Sized> Interned<K, V> {
    /// The value of this key that somebody holds.
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
    {
        self.known.get(key)?.upgrade()
    }

    /// Takes a value in, in the place of one that there was by this key.
    pub fn insert(&mut self, key: K, value: &Arc<V>) {
        if self.sweep.is_due(self.known.len()) {
            self.known.retain(|_, value| value.strong_count() > 0);
            self.sweep.done(self.known.len());
        }
        self.known.insert(key, Arc::downgrade(value));
    }

    /// The value of this key that somebody holds, else one that is made now.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> Arc<V>
    where
        V: Sized,
    {
        if let Some(held) = self.get(&key) {
            return held;
        }
        let made = Arc::new(make());
        self.insert(key, &made);
        made
    }

    /// The values that somebody holds.
    pub fn held(&self) -> impl Iterator<Item = Arc<V>> {
        self.known.values().filter_map(Weak::upgrade)
    }

    /// Entries, some of which nobody may hold any more.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn values_are_there_while_somebody_holds_them() {
        let mut known: Interned<String, u32> = Interned::default();
        let one = Arc::new(1);
        known.insert("a".to_owned(), &one);
        assert!(Arc::ptr_eq(&known.get("a").unwrap(), &one));
        drop(one);
        assert_eq!((known.get("a"), known.get("b")), (None, None));
        let made = known.get_or_insert_with("a".to_owned(), || 2);
        assert!(Arc::ptr_eq(&known.get_or_insert_with("a".to_owned(), || 3), &made));
    }

    /// Each new value looked through all others.
    #[test]
    fn what_nobody_holds_is_dropped_now_and_then() {
        let mut known = Interned::default();
        let held: Vec<_> = (0..1000).map(Arc::new).collect();
        held.iter().for_each(|value| known.insert(**value, value));
        assert_eq!(known.len(), 1000);
        assert!(known.sweep.left >= 512, "not at each");
        drop(held);
        for n in 1000..3000 {
            known.insert(n, &Arc::new(n));
            assert!(known.len() <= 1025);
        }
        assert!(known.len() <= 17);
    }
}
