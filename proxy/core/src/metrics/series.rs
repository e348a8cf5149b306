//! Statistics whose labels are known only when there is something to count: series by label values.
//!
//! Each worker has maps of its own, so that a request waits for nobody but, for a moment, a reader. What
//! clients choose may become a label, so all maps together have a bound in bytes: when it is reached, series
//! that have expired give their room (some are kept until then, and shown), and what finds none is counted in one series for the rest. A worker's series
//! are in many parts, and nobody holds more than one at a time or looks at all of them for one request.

use super::{shard, shards};
use crate::budget::ByteBudget;
use crate::fast_hash::FastMap;
use parking_lot::Mutex;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Between label values; no UTF-8 text holds it.
pub const SEPARATOR: u8 = 0xFF;

/// Parts of one thread's series.
const PARTS: usize = 128;
/// Series that a request looks at which finds no room, or those of one part if they are more.
const SWEEP: usize = 512;

/// What a map and a reference-counted key take for a series, roughly, beside key and value.
const OVERHEAD: usize = 64;

/// Bytes that several [`Series`] may take together.
pub struct SeriesBudget {
    bytes: ByteBudget,
    refused: AtomicU64,
}

impl SeriesBudget {
    /// Room for `limit` bytes of keys and values.
    pub fn new(limit: usize) -> Arc<SeriesBudget> {
        Arc::new(SeriesBudget { bytes: ByteBudget::new(limit), refused: AtomicU64::new(0) })
    }

    /// Bytes that are taken.
    pub fn used(&self) -> usize {
        self.bytes.used()
    }

    /// How often a new series found no room, and its value was counted with the rest.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

/// Values of one metric by label values.
pub struct Series<T> {
    /// One for each worker behind one for all other threads.
    shards: Box<[Shard<T>]>,
    /// Of label values, which clients may choose.
    hasher: RandomState,
    budget: Arc<SeriesBudget>,
    /// Bytes that a value takes outside of itself.
    heap: usize,
    /// Series that were not counted for so long are dropped; `None` keeps them.
    expire: Option<Duration>,
    /// They are dropped only where others find no room.
    for_room: bool,
    /// How many had found none at the last look at all of them.
    seen: AtomicU64,
    start: Instant,
}

/// One thread's series, once it has any.
struct Shard<T> {
    parts: OnceLock<Box<[Mutex<Part<T>>]>>,
    round: Mutex<Round>,
}

/// Those whose labels' hash says so.
struct Part<T> {
    series: FastMap<u64, Entry<T>>,
    /// Of everything that found no room.
    rest: Option<T>,
}

/// How far a thread has looked for expired series.
#[derive(Default)]
struct Round {
    /// The next part to look at.
    at: usize,
    /// The second of the last look, since the start, and the parts that were looked at in it.
    second: u32,
    looked: usize,
}

struct Entry<T> {
    key: Arc<[u8]>,
    value: T,
    /// Seconds since the start.
    touched: u32,
}

/// Which series a value is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Labels {
    /// Label values, joined by [`SEPARATOR`].
    Values(Arc<[u8]>),
    /// All that found no room.
    Rest,
}

impl<T: Default> Series<T> {
    /// No series yet. `heap` is how many bytes a value takes outside of itself.
    pub fn new(budget: Arc<SeriesBudget>, heap: usize, expire: Option<Duration>) -> Series<T> {
        let shard = || Shard { parts: OnceLock::new(), round: Mutex::default() };
        let shards = (0..shards()).map(|_| shard()).collect();
        let (hasher, start, seen) = (RandomState::new(), Instant::now(), AtomicU64::new(0));
        Series { shards, hasher, budget, heap, expire, for_room: false, seen, start }
    }

    /// The same, where what has expired is kept, and shown, as long as there is room for it.
    #[must_use]
    pub fn while_there_is_room(mut self) -> Series<T> {
        self.for_room = true;
        self
    }

    fn seconds(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.start).as_secs()).unwrap_or(u32::MAX)
    }

    /// Changes the value of the series with these label values, which begins as the default.
    pub fn touch(&self, key: &[u8], now: Instant, change: impl FnOnce(&mut T)) {
        let Some(own) = self.shards.get(shard()).or_else(|| self.shards.first()) else { return };
        let now = self.seconds(now);
        let hash = self.hasher.hash_one(key);
        let Some(place) = own.parts().get(part_of(hash)) else { return };
        if let Some(entry) = place.lock().series.get_mut(&hash)
            && *entry.key == *key
        {
            entry.touched = now;
            return change(&mut entry.value);
        }
        let cost = self.cost(key);
        let room =
            self.budget.bytes.take(cost) || (self.sweep_some(own, now) && self.budget.bytes.take(cost));
        let mut part = place.lock();
        if part.series.contains_key(&hash) || !room {
            // Another thread was here meanwhile, or labels have the same hash, which nobody can bring about.
            if room {
                self.budget.bytes.give_back(cost);
            }
            self.budget.refused.fetch_add(1, Relaxed);
            return change(part.rest.get_or_insert_default());
        }
        let mut value = T::default();
        change(&mut value);
        part.series.insert(hash, Entry { key: key.into(), value, touched: now });
    }

    /// Looks for expired series in the next parts of a thread, in each once a second; tells whether it looked at any.
    fn sweep_some(&self, shard: &Shard<T>, now: u32) -> bool {
        if self.expire.is_none() {
            return false;
        }
        let mut round = shard.round.lock();
        if round.second != now {
            (round.second, round.looked) = (now, 0);
        }
        let (before, mut seen) = (round.looked, 0);
        while round.looked < PARTS && seen < SWEEP {
            if let Some(part) = shard.parts().get(round.at) {
                let mut part = part.lock();
                seen += part.series.len();
                self.sweep(&mut part, now);
            }
            round.at = (round.at + 1) % PARTS;
            round.looked += 1;
        }
        round.looked > before
    }

    /// Drops what has expired.
    fn sweep(&self, part: &mut Part<T>, now: u32) {
        let Some(expire) = self.expire else { return };
        let expire = expire.as_secs();
        part.series.retain(|_, entry| {
            let keep = u64::from(now.saturating_sub(entry.touched)) < expire;
            if !keep {
                self.budget.bytes.give_back(self.cost(&entry.key));
            }
            keep
        });
        // A burst of labels does not keep its tables.
        if part.series.capacity() > 4 * part.series.len().max(16) {
            part.series.shrink_to_fit();
        }
    }

    /// Visits every series that has not expired in the order of its labels, with the sum over all threads;
    /// what found no room comes last. A worker that counts waits while one part of its series is listed at most.
    pub fn each(&self, now: Instant, add: impl Fn(&mut T, &T), mut visit: impl FnMut(&Labels, &T)) {
        let now = self.seconds(now);
        let mut keys: Vec<(Arc<[u8]>, u64)> = Vec::new();
        let mut rest = None;
        let refused = self.budget.refused();
        let sweeps = self.seen.swap(refused, Relaxed) != refused || !self.for_room;
        for part in self.shards.iter().flat_map(Shard::present) {
            let mut part = part.lock();
            if sweeps {
                self.sweep(&mut part, now);
            }
            keys.extend(part.series.iter().map(|(hash, entry)| (entry.key.clone(), *hash)));
            if let Some(value) = &part.rest {
                add(rest.get_or_insert_default(), value);
            }
        }
        keys.sort_unstable();
        keys.dedup();
        for (key, hash) in keys {
            let mut sum = T::default();
            for part in self.shards.iter().filter_map(|shard| shard.present().get(part_of(hash))) {
                if let Some(entry) = part.lock().series.get(&hash)
                    && entry.key == key
                {
                    add(&mut sum, &entry.value);
                }
            }
            visit(&Labels::Values(key), &sum);
        }
        if let Some(rest) = rest {
            visit(&Labels::Rest, &rest);
        }
    }
}

impl<T> Series<T> {
    fn cost(&self, key: &[u8]) -> usize {
        key.len() + size_of::<Entry<T>>() + self.heap + OVERHEAD
    }
}

impl<T> Shard<T> {
    /// The parts, made for the first series.
    fn parts(&self) -> &[Mutex<Part<T>>] {
        let part = || Mutex::new(Part { series: FastMap::default(), rest: None });
        self.parts.get_or_init(|| (0..PARTS).map(|_| part()).collect())
    }

    /// The parts, none before the first series.
    fn present(&self) -> &[Mutex<Part<T>>] {
        self.parts.get().map_or(&[], |parts| parts)
    }
}

fn part_of(hash: u64) -> usize {
    hash as usize % PARTS
}

impl<T> Drop for Series<T> {
    fn drop(&mut self) {
        for part in self.shards.iter().flat_map(Shard::present) {
            let bytes = part.lock().series.values().map(|entry| self.cost(&entry.key)).sum();
            self.budget.bytes.give_back(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(series: &Series<u64>, now: Instant) -> Vec<(Labels, u64)> {
        let mut all = Vec::new();
        series.each(now, |a, b| *a += b, |labels, value| all.push((labels.clone(), *value)));
        all
    }

    fn values(key: &[u8]) -> Labels {
        Labels::Values(key.into())
    }

    #[test]
    fn series_are_summed_over_threads_in_order() {
        super::super::set_workers(2);
        let (series, now) = (Series::<u64>::new(SeriesBudget::new(1 << 20), 0, None), Instant::now());
        std::thread::scope(|scope| {
            for worker in 0..2 {
                let series = &series;
                scope.spawn(move || {
                    super::super::enter_worker(worker);
                    (0..100).for_each(|_| series.touch(b"b", now, |n| *n += 1));
                    series.touch(b"a", now, |n| *n += 7);
                });
            }
        });
        assert_eq!(all(&series, now), [(values(b"a"), 14), (values(b"b"), 200)]);
    }

    /// The bound was a number of series for each thread, whatever the length of their labels.
    #[test]
    fn what_has_no_room_is_counted_with_the_rest() {
        for length in [8, 2000] {
            let (budget, now) = (SeriesBudget::new(100 << 10), Instant::now());
            let series = Series::<u64>::new(budget.clone(), 0, None);
            let key = |n: u32| format!("{n:0length$}").into_bytes();
            for n in 0..5000 {
                series.touch(&key(n), now, |sum| *sum += 1);
            }
            // Series that are there go on.
            series.touch(&key(0), now, |sum| *sum += 1);
            let all = all(&series, now);
            assert!(budget.used() <= 100 << 10 && budget.used() > 90 << 10, "{}", budget.used());
            assert_eq!(all[0].1, 2);
            let Some((Labels::Rest, rest)) = all.last() else { unreachable!("no rest") };
            assert_eq!(*rest as usize + all.len() - 1, 5000);
            assert_eq!(budget.refused(), *rest);
            drop(series);
            assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn what_has_expired_gives_its_room() {
        let (budget, start) = (SeriesBudget::new(1 << 10), Instant::now());
        let series = Series::<u64>::new(budget.clone(), 100, Some(Duration::from_secs(60)));
        let at = |seconds| start + Duration::from_secs(seconds);
        for n in 0..20u8 {
            series.touch(&[n], at(0), |sum| *sum += 1);
        }
        let full = all(&series, at(59)).len();
        assert!(full < 20);
        series.touch(&[0], at(59), |sum| *sum += 1);
        series.touch(b"late", at(61), |sum| *sum += 1);
        let kept = all(&series, at(61));
        assert_eq!(kept[..2], [(values(&[0]), 2), (values(b"late"), 1)]);
        assert_eq!(kept.len(), 3, "and the rest");
        assert_eq!(all(&series, at(200)).len(), 1);
        assert_eq!(budget.used(), 0);
    }

    /// A bound that was reached once was reached for good.
    #[test]
    fn what_has_expired_may_stay_until_others_need_its_room() {
        let (budget, start) = (SeriesBudget::new(1 << 10), Instant::now());
        let series = Series::<u64>::new(budget, 100, Some(Duration::from_secs(60))).while_there_is_room();
        let at = |seconds| start + Duration::from_secs(seconds);
        series.touch(b"early", at(0), |sum| *sum += 1);
        assert_eq!(all(&series, at(100)), [(values(b"early"), 1)], "there is room");
        for n in 0..20u8 {
            series.touch(&[n], at(100), |sum| *sum += 1);
        }
        assert!(!all(&series, at(100)).contains(&(values(b"early"), 1)), "others had none");
        series.touch(b"late", at(200), |sum| *sum += 1);
        let kept = all(&series, at(200));
        assert!(kept.contains(&(values(b"late"), 1)), "{kept:?}");
    }

    /// One request looked at every series of its worker, and one reader held them all.
    #[test]
    fn one_call_looks_at_a_few_of_many_series() {
        let (budget, start) = (SeriesBudget::new(50_000 * 120), Instant::now());
        let series = Series::<u64>::new(budget.clone(), 0, Some(Duration::from_secs(60)));
        let late = start + Duration::from_secs(100);
        for n in 0..100_000u32 {
            series.touch(&n.to_be_bytes(), start, |sum| *sum += 1);
        }
        let full = budget.used();
        assert!(budget.refused() > 10_000 && full > 5_000_000);
        series.touch(b"late", late, |sum| *sum += 1);
        let freed = full - budget.used();
        assert!(freed > 0 && freed < full / 20, "{freed} of {full}");
        for n in 0..100_000u32 {
            series.touch(&(1_000_000 + n).to_be_bytes(), late, |sum| *sum += 1);
        }
        let all = all(&series, late);
        assert!(all.len() > 40_000 && all.iter().all(|(_, sum)| *sum == 1 || *sum > 100));
        let parts = series.shards.iter().flat_map(Shard::present);
        assert!(parts.map(|part| part.lock().series.len()).max() < Some(all.len() / 64));
    }
}
