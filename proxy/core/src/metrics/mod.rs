//! Counters, gauges and histograms, sharded by worker.
//!
//! A worker thread writes only its own shard, so counting costs a load and a store without a locked
//! instruction; every other thread shares shard 0. Readers add the shards up. A resource declares its
//! statistics as one block ([`stat_block!`]): the names are static text, the values one small allocation a
//! shard, and dropping the resource drops its statistics.

mod block;
mod registry;
pub mod render;
mod tags;

pub use block::{Block, Kind, StatDef};
pub use registry::{Registry, Sample, Value};
pub use tags::{StatsFilter, TagRules, Tagged};

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

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
    SHARDS.load(Relaxed).saturating_sub(1).max(1)
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

/// The values of one block: `slots` numbers a shard.
pub(crate) struct Cells {
    shards: Box<[Box<[AtomicU64]>]>,
}

impl Cells {
    pub(crate) fn new(slots: usize) -> Arc<Cells> {
        let shard = || (0..slots).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Cells { shards: (0..SHARDS.load(Relaxed)).map(|_| shard()).collect() })
    }

    #[inline]
    fn add(&self, slot: usize, n: u64) {
        let shard = shard();
        match self.shards.get(shard) {
            Some(cells) if shard != 0 => {
                let cell = &cells[slot];
                cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
            }
            _ => {
                self.shards[0][slot].fetch_add(n, Relaxed);
            }
        }
    }

    fn sum(&self, slot: usize) -> u64 {
        self.shards.iter().fold(0u64, |sum, cells| sum.wrapping_add(cells[slot].load(Relaxed)))
    }
}

/// A number that only grows.
#[derive(Clone)]
pub struct Counter {
    cells: Arc<Cells>,
    slot: usize,
}

impl Counter {
    /// A counter that belongs to no registry.
    pub fn standalone() -> Counter {
        Counter { cells: Cells::new(1), slot: 0 }
    }
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.cells.add(self.slot, 1);
    }
    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.cells.add(self.slot, n);
    }
    /// The sum over all threads.
    pub fn get(&self) -> u64 {
        self.cells.sum(self.slot)
    }
}

/// A number that goes up and down.
#[derive(Clone)]
pub struct Gauge {
    cells: Arc<Cells>,
    slot: usize,
}

impl Gauge {
    /// A gauge that belongs to no registry.
    pub fn standalone() -> Gauge {
        Gauge { cells: Cells::new(1), slot: 0 }
    }
    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.cells.add(self.slot, 1);
    }
    /// Takes one away.
    #[inline]
    pub fn dec(&self) {
        self.cells.add(self.slot, u64::MAX);
    }
    /// Adds `n`, which may be negative.
    #[inline]
    pub fn add(&self, n: i64) {
        if n != 0 {
            self.cells.add(self.slot, n as u64);
        }
    }
    /// Adds one for as long as the guard lives: how everything that begins and ends is counted.
    #[inline]
    pub fn raise(&self) -> Raised<'_> {
        self.inc();
        Raised(self)
    }
    /// Makes the value `n`; for gauges that one control thread alone writes.
    pub fn set(&self, n: u64) {
        let now = self.get();
        self.cells.add(self.slot, n.wrapping_sub(now));
    }
    /// The sum over all threads; never below zero once every writer has settled.
    pub fn get(&self) -> u64 {
        (self.cells.sum(self.slot) as i64).max(0) as u64
    }
}

/// One in a gauge; dropping it takes it away, wherever that happens.
#[must_use]
pub struct Raised<'a>(&'a Gauge);

impl Drop for Raised<'_> {
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

/// Slots a histogram takes: a bucket each, one for what is larger, and the sum.
pub(crate) const HISTOGRAM_SLOTS: usize = BUCKETS.len() + 2;

/// A distribution over Envoy's fixed buckets, usually of milliseconds.
#[derive(Clone)]
pub struct Histogram {
    cells: Arc<Cells>,
    slot: usize,
}

impl Histogram {
    /// Counts one observation.
    #[inline]
    pub fn record(&self, value: u64) {
        let bucket = BUCKETS.iter().position(|b| value as f64 <= *b).unwrap_or(BUCKETS.len());
        self.cells.add(self.slot + bucket, 1);
        self.cells.add(self.slot + BUCKETS.len() + 1, value);
    }
    /// Cumulative counts for [`BUCKETS`], then the count of all, then the sum.
    pub fn get(&self) -> (Vec<u64>, u64, u64) {
        let mut total = 0;
        let mut cumulative = Vec::with_capacity(BUCKETS.len());
        for i in 0..BUCKETS.len() {
            total += self.cells.sum(self.slot + i);
            cumulative.push(total);
        }
        total += self.cells.sum(self.slot + BUCKETS.len());
        (cumulative, total, self.cells.sum(self.slot + BUCKETS.len() + 1))
    }
}
