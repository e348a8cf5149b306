//! Counters of limiters: one store for the process, bounded in bytes whatever clients send.
//!
//! Clients choose many of the keys that limits count by. So a key is kept as a hash of 128 bits under a random
//! secret of the process: a long key costs as much as a short one, and nobody can look for two that meet. What
//! is over goes by time; when the store is full, what matters least goes (see [`Counter`]).

pub(crate) mod concurrent;
#[cfg(test)]
mod tests;

use hashbrown::HashTable;
use parking_lot::Mutex;
use sixfold_core::plugin::SharedState;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Parts of the store, each with a lock of its own: workers seldom meet, and looking through one takes some
/// tens of microseconds.
const SHARDS: usize = 64;

/// Bytes of all counters and their index, at most: room for 1.1 million keys.
const MAX_BYTES: usize = 64 << 20;

/// Bytes a counter takes in the index of its shard: a position and a tag, at the least load behind a growth.
const INDEX_BYTES: usize = 9;

/// Counters of one shard, at most.
const MAX_OF_SHARD: usize = MAX_BYTES / SHARDS / (size_of::<Entry>() + INDEX_BYTES);

/// How often the whole store is looked through for what is over, one shard after the other.
const SWEEP: Duration = Duration::from_secs(1);

/// Counters that are looked at to choose which one a full shard forgets.
const SAMPLE: usize = 8;

/// The longest time a counter may be told to last; what configuration or a client asks beyond is this.
pub(crate) const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What is counted for one key.
///
/// When there is no room for another key, one of a random few is forgotten: first what is over; then what has
/// the lower order of magnitude in `count`, so that a flood of new keys drives out itself and not the clients
/// that are limited; then what was not asked for the longest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counter {
    /// When it stops meaning anything, in nanoseconds of [`Counters::time`]. 0 for one that is new.
    pub(crate) until: u64,
    /// How much was taken.
    pub(crate) count: u64,
    /// Whatever else the limiter needs to keep, such as the count of the window before.
    pub(crate) before: u64,
}

/// The hash of what a limiter counts by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key([u64; 2]);

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: Key,
    counter: Counter,
    /// When it was last asked for, in seconds.
    used: u32,
}

/// The store.
pub(crate) struct Counters {
    secret: RandomState,
    began: Instant,
    shards: [Mutex<Shard>; SHARDS],
    /// When the next shard is to be looked through, and how many were so far.
    next_sweep: AtomicU64,
    swept: AtomicU64,
}

/// Counters one behind the other, so that a random one is at hand and none has an allocation of its own.
#[derive(Default)]
struct Shard {
    entries: Vec<Entry>,
    index: HashTable<u32>,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            secret: RandomState::new(),
            began: Instant::now(),
            shards: std::array::from_fn(|_| Mutex::default()),
            next_sweep: AtomicU64::new(0),
            swept: AtomicU64::new(0),
        }
    }
}

impl Counters {
    /// The process's store; it lasts while a limiter holds it.
    pub(crate) fn of(shared: &SharedState) -> Arc<Counters> {
        shared.get_or_insert("counters", Counters::default)
    }

    /// The key of what limiters tell apart: who counts, which of its rules, whom.
    pub(crate) fn key(&self, parts: impl Hash) -> Key {
        // Two inputs under one secret: SipHash's answers to them have nothing to do with each other.
        Key([self.secret.hash_one((0u8, &parts)), self.secret.hash_one((1u8, &parts))])
    }

    /// A moment in nanoseconds since the store was made.
    pub(crate) fn time(&self, now: Instant) -> u64 {
        nanoseconds(now.saturating_duration_since(self.began))
    }

    /// Changes the counter of `key`; one that is over or was forgotten is new.
    pub(crate) fn change<T>(&self, key: Key, now: u64, change: impl FnOnce(&mut Counter) -> T) -> T {
        self.sweep(now);
        self.shards[key.0[0] as usize % SHARDS].lock().change(key, now, change)
    }

    /// Drops what is over from the next shard, if it is time to.
    fn sweep(&self, now: u64) {
        let due = self.next_sweep.load(Relaxed);
        let next = now + nanoseconds(SWEEP) / SHARDS as u64;
        if now < due || self.next_sweep.compare_exchange(due, next, Relaxed, Relaxed).is_err() {
            return;
        }
        let shard = self.swept.fetch_add(1, Relaxed) as usize % SHARDS;
        // Whoever holds it is at work there: it has its turn in a second.
        if let Some(mut shard) = self.shards[shard].try_lock() {
            shard.sweep(now);
        }
    }
}

/// As many as fit.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Entry {
    /// What is forgotten first has the least of these.
    fn worth(&self, now: u64) -> (bool, u32, u32) {
        (self.counter.until > now, self.counter.count.checked_ilog2().map_or(0, |order| order + 1), self.used)
    }
}

impl Shard {
    fn change<T>(&mut self, key: Key, now: u64, change: impl FnOnce(&mut Counter) -> T) -> T {
        let used = (now / 1_000_000_000) as u32;
        let found = self.position(key).and_then(|at| self.entries.get_mut(at));
        if let Some(entry) = found {
            if entry.counter.until <= now {
                entry.counter = Counter::default();
            }
            entry.used = used;
            return change(&mut entry.counter);
        }
        let mut counter = Counter::default();
        let answer = change(&mut counter);
        if self.entries.len() >= MAX_OF_SHARD {
            self.forget_one(now);
        }
        self.insert(Entry { key, counter, used });
        answer
    }

    fn position(&self, key: Key) -> Option<usize> {
        let is = |at: &u32| self.entries.get(*at as usize).is_some_and(|entry| entry.key == key);
        self.index.find(key.0[1], is).map(|at| *at as usize)
    }

    fn insert(&mut self, entry: Entry) {
        if self.entries.len() == self.entries.capacity() {
            // A quarter more and not the double: what is not used is not paid for either.
            self.entries.reserve_exact((self.entries.len() / 4).max(16));
        }
        let entries = &self.entries;
        let hash = |at: &u32| entries.get(*at as usize).map_or(0, |entry| entry.key.0[1]);
        self.index.insert_unique(entry.key.0[1], entries.len() as u32, hash);
        self.entries.push(entry);
    }

    fn forget_one(&mut self, now: u64) {
        let sample = (0..SAMPLE).map(|_| fastrand::usize(..self.entries.len().max(1)));
        let worst = sample.min_by_key(|at| self.entries.get(*at).map(|entry| entry.worth(now)));
        if let Some(at) = worst {
            self.remove(at);
        }
    }

    /// Takes a counter out; the last one gets its place.
    fn remove(&mut self, at: usize) {
        let (Some(gone), Some(moved)) = (self.entries.get(at).copied(), self.entries.last().copied()) else {
            return;
        };
        let last = self.entries.len() - 1;
        if let Ok(place) = self.index.find_entry(gone.key.0[1], |i| *i as usize == at) {
            place.remove();
        }
        if let Some(place) = self.index.find_mut(moved.key.0[1], |i| *i as usize == last) {
            *place = at as u32;
        }
        self.entries.swap_remove(at);
    }

    /// Drops what is over, and gives back memory that a quarter would do for.
    fn sweep(&mut self, now: u64) {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.counter.until > now);
        if self.entries.len() == before {
            return;
        }
        if self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
            self.index = HashTable::with_capacity(self.entries.len());
        }
        self.index.clear();
        let entries = &self.entries;
        let hash = |at: &u32| entries.get(*at as usize).map_or(0, |entry| entry.key.0[1]);
        for (at, entry) in (0u32..).zip(entries) {
            self.index.insert_unique(entry.key.0[1], at, hash);
        }
    }
}
