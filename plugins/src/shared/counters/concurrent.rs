//! Counters of what is under way: bounded by it, for each is there as long as something is counted.

use super::{Key, SHARDS};
use hashbrown::HashTable;
use parking_lot::Mutex;
use sixfold_core::plugin::SharedState;
use std::sync::Arc;

/// The process's counters of what is under way.
pub(crate) struct Concurrent {
    shards: [Shard; SHARDS],
}

impl Default for Concurrent {
    fn default() -> Concurrent {
        Concurrent { shards: std::array::from_fn(|_| Shard::default()) }
    }
}

/// Keys and how often each is counted, which is never 0.
#[derive(Default)]
struct Shard(Mutex<HashTable<(Key, u64)>>);

/// One that is counted, until it is dropped.
pub(crate) struct Lease {
    counters: Arc<Concurrent>,
    key: Key,
}

impl Concurrent {
    /// The process's; it lasts while a limiter holds it.
    pub(crate) fn of(shared: &SharedState) -> Arc<Concurrent> {
        shared.get_or_insert("counters of what is under way", Concurrent::default)
    }

    /// Counts one more of `key`, and tells how many there are now; `None` where there are `most` already.
    pub(crate) fn enter(self: &Arc<Concurrent>, key: Key, most: u64) -> Option<(Lease, u64)> {
        let mut counts = self.shard(key).lock();
        let found = counts.find_mut(key.0[1], |(of, _)| *of == key);
        let count = found.as_ref().map_or(0, |(_, count)| *count);
        if count >= most {
            return None;
        }
        match found {
            Some(found) => found.1 += 1,
            None => _ = counts.insert_unique(key.0[1], (key, 1), |(of, _)| of.0[1]),
        }
        Some((Lease { counters: self.clone(), key }, count + 1))
    }

    fn shard(&self, key: Key) -> &Mutex<HashTable<(Key, u64)>> {
        &self.shards[key.0[0] as usize % SHARDS].0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut counts = self.counters.shard(self.key).lock();
        let Ok(mut found) = counts.find_entry(self.key.0[1], |(of, _)| *of == self.key) else { return };
        found.get_mut().1 -= 1;
        if found.get().1 > 0 {
            return;
        }
        found.remove();
        // Gives back what a flood has taken.
        if counts.capacity() > 64 && counts.len() < counts.capacity() / 8 {
            let least = counts.len() * 2;
            counts.shrink_to(least, |(of, _)| of.0[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::shared::counters::Counters;

    #[test]
    fn what_is_under_way_is_counted_and_nothing_else_kept() {
        let (keys, counters) = (Counters::default(), Arc::new(Concurrent::default()));
        let enter = |key: u64, most: u64| counters.enter(keys.key(key), most);
        let (one, first) = enter(1, 2).unwrap();
        let (_two, second) = enter(1, 2).unwrap();
        assert_eq!((first, second, enter(1, 2).is_none(), enter(2, 0).is_none()), (1, 2, true, true));
        drop(one);
        assert_eq!(enter(1, 2).unwrap().1, 2);
        let many: Vec<_> = (10..100_010).map(|key| enter(key, 1).unwrap()).collect();
        let held = |counters: &Concurrent| {
            let of = |shard: &Shard| {
                let counts = shard.0.lock();
                (counts.len(), counts.allocation_size())
            };
            counters.shards.iter().map(of).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        };
        assert_eq!(held(&counters).0, 100_001);
        drop(many);
        let (left, bytes) = held(&counters);
        assert!(left == 1 && bytes < 64 * 4096, "{left} {bytes}");
    }
}
