//! Counters, gauges and histograms, sharded by worker.
//!
//! A worker thread writes only its own shard, so counting costs a load and a store without a locked
//! instruction; every other thread shares shard 0. Readers add the shards up. A resource declares its
//! statistics as one block ([`stat_block!`]): the names are static text, the values one small allocation a
//! shard that is made when something is counted, and dropping the resource drops its statistics.
//!
//! What has labels that are known only when a request comes is a [`series::Series`].

mod block;
mod codes;
mod default_tags;
pub mod flush;
mod labelled;
mod registry;
pub mod render;
pub mod responses;
pub mod series;
mod snapshot;
pub mod statsd;
mod tags;
mod tally;
mod text;

pub use block::{Block, Kind, StatDef};
#[doc(hidden)]
pub use block::{NEVER as NEVER_COUNTED, slot as block_slot};
pub use labelled::{LabelSet, Labelled, LabelledSample};
pub use registry::{Computed, Registry};
pub use snapshot::{Sample, Snapshot};
pub use tags::{DefaultTags, StatsFilter, TagPattern, TagRules, Tagged};
pub use tally::Tally;
pub use text::Text;

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static SHARDS: AtomicUsize = AtomicUsize::new(1);

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(0) };
}

/// Says how many workers there will be. Blocks made afterwards have that many shards and one more; call it
/// once, before any configuration is compiled.
pub fn set_workers(workers: usize) {
    SHARDS.store(workers + 1, Relaxed);
}

/// Number of workers that [`set_workers`] was told, at least 1: how many copies per-worker state has.
pub fn workers() -> usize {
    shards().saturating_sub(1).max(1)
}

/// Number of shards: one for each worker, and one for all other threads.
pub(crate) fn shards() -> usize {
    SHARDS.load(Relaxed)
}

/// Makes the calling thread worker number `worker` (from 0) for the rest of its life. No two threads may
/// take one number: a shard has one writer.
pub fn enter_worker(worker: usize) {
    SHARD.with(|s| s.set(worker + 1));
}

/// The calling thread's shard: 1 and up for workers, 0 for every other thread.
#[inline]
pub fn shard() -> usize {
    SHARD.with(Cell::get)
}

/// A prefix of statistics from its parts: one dot behind each that is not empty, as Envoy's scopes have it.
pub fn scope(parts: &[&str]) -> String {
    let mut scope = String::new();
    for part in parts.iter().map(|part| part.trim_end_matches('.')).filter(|part| !part.is_empty()) {
        scope.push_str(part);
        scope.push('.');
    }
    scope
}

/// [`scope`] of what has a name of its own: a cluster, listener, connection manager, TCP proxy or secret. Envoy writes no
/// colon there (`createScope`, common/stats/utility.cc), as it does in prefixes that filters are given.
pub fn named_scope(parts: &[&str]) -> String {
    let scope = scope(parts);
    if !scope.contains([':', '\0']) {
        return scope;
    }
    scope.replace("://", "_").replace(":/", "_").replace([':', '\0'], "_")
}

/// A statistic's value at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// Of a counter.
    Counter(u64),
    /// Of a gauge or a number.
    Gauge(u64),
    /// Of a histogram.
    Histogram(Distribution),
}

/// What a histogram has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Cumulative counts for [`BUCKETS`].
    pub below: [u64; BUCKETS.len()],
    /// Count of all.
    pub count: u64,
    /// Sum of all.
    pub sum: u64,
}

impl Distribution {
    /// How many values are in each bucket, and behind them how many are larger than all bounds.
    pub fn counts(&self) -> impl Iterator<Item = u64> + '_ {
        let mut below = 0;
        let up_to = self.below.iter().copied().chain([self.count]);
        up_to.map(move |up_to| up_to.saturating_sub(std::mem::replace(&mut below, up_to)))
    }
}

/// A number that only grows.
#[derive(Clone, Copy)]
pub struct Counter<'a> {
    block: Option<&'a Block>,
    slot: usize,
}

impl<'a> Counter<'a> {
    #[doc(hidden)]
    #[inline]
    pub fn new(block: Option<&'a Block>, slot: usize) -> Self {
        Counter { block, slot }
    }
    /// Adds one.
    #[inline]
    pub fn inc(self) {
        self.add(1);
    }
    /// Adds `n`.
    #[inline]
    pub fn add(self, n: u64) {
        if let Some(block) = self.block {
            block.add(self.slot, n);
        }
    }
    /// The sum over all threads, resets aside.
    pub fn get(self) -> u64 {
        self.block.map_or(0, |block| block.sum(self.slot))
    }
}

/// Counts a response by the class of its status: `first` is the counter of 1xx, and those of 2xx to 5xx are declared right
/// behind it.
#[inline]
pub fn count_class(status: u16, first: Counter<'_>) {
    if let Some(class) = class(status) {
        Counter { slot: first.slot + class, ..first }.inc();
    }
}

/// The class of a status, 0 for 1xx to 4 for 5xx.
#[inline]
fn class(status: u16) -> Option<usize> {
    (100..600).contains(&status).then(|| usize::from(status / 100) - 1)
}

/// A number that goes up and down.
#[derive(Clone, Copy)]
pub struct Gauge<'a> {
    block: Option<&'a Block>,
    slot: usize,
}

impl<'a> Gauge<'a> {
    #[doc(hidden)]
    #[inline]
    pub fn new(block: Option<&'a Block>, slot: usize) -> Self {
        Gauge { block, slot }
    }
    /// Adds one.
    #[inline]
    pub fn inc(self) {
        self.add(1);
    }
    /// Takes one away.
    #[inline]
    pub fn dec(self) {
        self.add(-1);
    }
    /// Adds `n`, which may be negative.
    #[inline]
    pub fn add(self, n: i64) {
        if let Some(block) = self.block
            && n != 0
        {
            block.change(self.slot, n);
        }
    }
    /// Adds one for as long as the guard lives: how everything that begins and ends is counted.
    #[inline]
    pub fn raise(self) -> GaugeGuard<'a> {
        self.inc();
        GaugeGuard(self)
    }
    /// Makes the value `n`; for gauges that one control thread alone writes.
    pub fn set(self, n: u64) {
        if let Some(block) = self.block {
            let change = (n as i64).wrapping_sub(block.level(self.slot));
            // What is set again and again is mostly what it was.
            if change != 0 || !block.is_changed(self.slot) {
                block.change(self.slot, change);
            }
        }
    }
    /// The sum over all threads; never below zero once every writer has settled.
    pub fn get(self) -> u64 {
        self.block.map_or(0, |block| block.level(self.slot).max(0) as u64)
    }
}

/// A gauge that is only ever set, to anything up to `u64::MAX`: hashes, times. One control thread alone sets it.
#[derive(Clone, Copy)]
pub struct Number<'a> {
    block: Option<&'a Block>,
    slot: usize,
}

impl<'a> Number<'a> {
    #[doc(hidden)]
    #[inline]
    pub fn new(block: Option<&'a Block>, slot: usize) -> Self {
        Number { block, slot }
    }
    /// Makes the value `n`.
    pub fn set(self, n: u64) {
        if let Some(block) = self.block {
            block.put(self.slot, n);
        }
    }
    /// What was set last.
    pub fn get(self) -> u64 {
        self.block.map_or(0, |block| block.sum(self.slot))
    }
}

/// One in a gauge; dropping it takes it away, wherever that happens.
#[must_use]
pub struct GaugeGuard<'a>(Gauge<'a>);

impl Drop for GaugeGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Upper bounds, in the histogram's unit, of Envoy's buckets.
pub const BUCKETS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0, 60000.0,
    300000.0, 600000.0, 1800000.0, 3600000.0,
];

/// The largest whole number in each bucket.
const BOUNDS: [u64; BUCKETS.len()] = {
    let mut bounds = [0; BUCKETS.len()];
    let mut i = 0;
    while i < BUCKETS.len() {
        bounds[i] = BUCKETS[i] as u64;
        i += 1;
    }
    bounds
};

/// Slots a histogram takes: a bucket each, one for what is larger, and the sum.
pub(crate) const HISTOGRAM_SLOTS: usize = BUCKETS.len() + 2;

/// A distribution over Envoy's fixed buckets, usually of milliseconds.
#[derive(Clone, Copy)]
pub struct Histogram<'a> {
    block: Option<&'a Block>,
    slot: usize,
}

impl<'a> Histogram<'a> {
    #[doc(hidden)]
    #[inline]
    pub fn new(block: Option<&'a Block>, slot: usize) -> Self {
        Histogram { block, slot }
    }
    /// Counts one observation.
    #[inline]
    pub fn record(self, value: u64) {
        let Some(block) = self.block else { return };
        let bucket = BOUNDS.iter().position(|bound| value <= *bound).unwrap_or(BUCKETS.len());
        block.add_all([(self.slot + bucket, 1), (self.slot + BUCKETS.len() + 1, value)]);
    }
    /// What was observed over all threads.
    pub fn get(self) -> Distribution {
        let sum = |offset: usize| self.block.map_or(0, |block| block.sum(self.slot + offset));
        let mut seen = Distribution::default();
        for (bucket, below) in seen.below.iter_mut().enumerate() {
            seen.count += sum(bucket);
            *below = seen.count;
        }
        seen.count += sum(BUCKETS.len());
        seen.sum = sum(BUCKETS.len() + 1);
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::{named_scope, scope};

    /// As Envoy 1.40 shows a cluster and a connection manager of these names, and a filter's prefix.
    #[test]
    fn names_have_no_colon_and_prefixes_stay() {
        assert_eq!(named_scope(&["cluster", "c:4"]), "cluster.c_4.");
        assert_eq!(named_scope(&["http", "h:p://q", "rds", "a.b:80."]), "http.h_p_q.rds.a.b_80.");
        assert_eq!(named_scope(&["tcp", "t:/\0"]), "tcp.t__.");
        assert_eq!(scope(&["lr:7", "", "http_local_rate_limit"]), "lr:7.http_local_rate_limit.");
    }
}
