//! A bounded cache of what was used lately.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::mem;

/// Values by key, of which those that were not asked for longest make room, in two generations: a look-up brings a value
/// into the young one, and when that has half of the entries, the old one is dropped and it takes its place. So
/// every call takes constant time but for that one drop, and there are never more than `most` entries.
pub(crate) struct Cache<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    most: usize,
}

impl<K: Hash + Eq, V> Cache<K, V> {
    /// An empty one for `most` entries, at least one.
    pub(crate) fn new(most: usize) -> Cache<K, V> {
        Cache { young: HashMap::new(), old: HashMap::new(), most: most.max(1) }
    }

    /// The value of a key.
    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        if let Some((key, value)) = self.old.remove_entry(key) {
            self.insert(key, value);
        }
        self.young.get(key)
    }

    /// Puts a value in, in the place of an earlier one.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= (self.most / 2).max(1) && !self.young.contains_key(&key) {
            self.old = mem::take(&mut self.young);
            // There is room for one alone.
            if self.old.len() >= self.most {
                self.old.clear();
            }
        }
        self.young.insert(key, value);
    }

    /// Takes a value out.
    pub(crate) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.young.remove(key);
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_bound_holds() {
        for most in [1, 2, 3, 4, 100] {
            let mut cache = Cache::new(most);
            for n in 0..1000 {
                cache.insert(n, n * 2);
                assert_eq!(cache.get(&n), Some(&(n * 2)));
                assert!(cache.young.len() + cache.old.len() <= most, "{most}");
                if most >= 4 {
                    assert_eq!(cache.get(&0), Some(&0), "{most}: it was asked for all the time");
                }
            }
            cache.remove(&999);
            assert_eq!(cache.get(&999), None);
        }
    }
}
