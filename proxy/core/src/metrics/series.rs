//! Statistics whose labels are known only when there is something to count: series by label values.
//!
//! Each worker has a map of its own, so that a request waits for nobody but, for a moment, a reader. What
//! clients choose may become a label, so all maps together have a bound in bytes: when it is reached, series
//! that have expired give their room, and what finds none is counted in one series for the rest.

use super::{shard, shards};
use crate::budget::ByteBudget;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Between label values; no UTF-8 text holds it.
pub const SEPARATOR: u8 = 0xFF;

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
    shards: Box<[Mutex<Shard<T>>]>,
    budget: Arc<SeriesBudget>,
    /// Bytes that a value takes outside of itself.
    heap: usize,
    /// Series that were not counted for so long are dropped; `None` keeps them.
    expire: Option<Duration>,
    start: Instant,
}

/// One thread's series.
struct Shard<T> {
    series: HashMap<Arc<[u8]>, Entry<T>>,
    /// Of everything that found no room.
    rest: Option<T>,
    /// When expired series were last looked for, in seconds since the start.
    swept: u32,
}

struct Entry<T> {
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
        let shard = || Mutex::new(Shard { series: HashMap::new(), rest: None, swept: 0 });
        let shards = (0..shards()).map(|_| shard()).collect();
        Series { shards, budget, heap, expire, start: Instant::now() }
    }

    fn cost(&self, key: &[u8]) -> usize {
        key.len() + size_of::<Entry<T>>() + self.heap + OVERHEAD
    }

    fn seconds(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.start).as_secs()).unwrap_or(u32::MAX)
    }

    /// Changes the value of the series with these label values, which begins as the default.
    pub fn touch(&self, key: &[u8], now: Instant, change: impl FnOnce(&mut T)) {
        let Some(own) = self.shards.get(shard()).or_else(|| self.shards.first()) else { return };
        let now = self.seconds(now);
        let mut shard = own.lock();
        if let Some(entry) = shard.series.get_mut(key) {
            entry.touched = now;
            return change(&mut entry.value);
        }
        if !self.budget.bytes.take(self.cost(key)) {
            // At most once a second, since it looks at every series.
            let sweep = self.expire.is_some() && shard.swept != now;
            if sweep {
                self.sweep(&mut shard, now);
            }
            if !sweep || !self.budget.bytes.take(self.cost(key)) {
                self.budget.refused.fetch_add(1, Relaxed);
                return change(shard.rest.get_or_insert_default());
            }
        }
        let mut value = T::default();
        change(&mut value);
        shard.series.insert(key.into(), Entry { value, touched: now });
    }

    /// Drops what has expired.
    fn sweep(&self, shard: &mut Shard<T>, now: u32) {
        let Some(expire) = self.expire else { return };
        shard.swept = now;
        let expire = expire.as_secs();
        shard.series.retain(|key, entry| {
            let keep = u64::from(now.saturating_sub(entry.touched)) < expire;
            if !keep {
                self.budget.bytes.give_back(self.cost(key));
            }
            keep
        });
        // A burst of labels does not keep its tables.
        if shard.series.capacity() > 4 * shard.series.len().max(16) {
            shard.series.shrink_to_fit();
        }
    }

    /// Visits every series that has not expired in the order of its labels, with the sum over all threads;
    /// what found no room comes last. A worker that counts waits for one look-up at most, or while its series
    /// are listed.
    pub fn each(&self, now: Instant, add: impl Fn(&mut T, &T), mut visit: impl FnMut(&Labels, &T)) {
        let now = self.seconds(now);
        let mut keys: Vec<Arc<[u8]>> = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            self.sweep(&mut shard, now);
            keys.extend(shard.series.keys().cloned());
        }
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let mut sum = T::default();
            for shard in &self.shards {
                if let Some(entry) = shard.lock().series.get(&key) {
                    add(&mut sum, &entry.value);
                }
            }
            visit(&Labels::Values(key), &sum);
        }
        let mut rest = None;
        for shard in &self.shards {
            if let Some(value) = &shard.lock().rest {
                add(rest.get_or_insert_default(), value);
            }
        }
        if let Some(rest) = rest {
            visit(&Labels::Rest, &rest);
        }
    }
}

impl<T> Drop for Series<T> {
    fn drop(&mut self) {
        for shard in &mut self.shards {
            let series = &shard.get_mut().series;
            let bytes = |key: &Arc<[u8]>| key.len() + size_of::<Entry<T>>() + self.heap + OVERHEAD;
            self.budget.bytes.give_back(series.keys().map(bytes).sum());
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
}
