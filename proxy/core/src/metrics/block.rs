//! Blocks of statistics that a resource declares once.

use super::codes::{self, Codes};
use super::{BUCKETS, HISTOGRAM_SLOTS, Histogram, Value, shard, shards};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

/// What a statistic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Is set as a whole.
    Number,
    /// A distribution.
    Histogram,
}

/// One statistic of a block: its name below the block's prefix, its kind, and where its value is.
#[derive(Clone, Copy, Debug)]
pub struct StatDef {
    /// As Envoy spells it, such as `upstream_rq_total`.
    pub name: &'static str,
    /// Counter, gauge, number or histogram.
    pub kind: Kind,
    /// First of its slots in a shard.
    pub slot: usize,
}

/// The values of a resource's statistics under one prefix such as `cluster.a.`.
///
/// A shard is made when its worker counts something for the first time: what no worker uses costs its name.
pub struct Block {
    prefix: Box<str>,
    defs: &'static [StatDef],
    /// One for each worker behind one for all other threads.
    shards: Box<[OnceLock<Box<[AtomicU64]>>]>,
    /// Counts by status, in blocks of responses.
    codes: Option<Codes>,
    /// What was never counted is not shown.
    sparse: bool,
    /// Values when counters were last reset: workers never have their shards written by others.
    reset: Mutex<Option<Box<Reset>>>,
}

/// The slot of what is shown and never counted: no shard reaches so far.
#[doc(hidden)]
pub const NEVER: usize = usize::MAX / 2;

/// In the cell of a gauge: it was changed.
const CHANGED: u64 = 1;

/// What counters were when they were last reset.
struct Reset {
    slots: Box<[u64]>,
    codes: Vec<(u16, u64)>,
}

impl Block {
    /// A block of zeros.
    pub fn new(prefix: &str, defs: &'static [StatDef]) -> Arc<Block> {
        Arc::new(Block::of(prefix, defs, None, false))
    }

    /// A block of zeros of which only what was counted is shown.
    pub fn sparse(prefix: &str, defs: &'static [StatDef]) -> Arc<Block> {
        Arc::new(Block::of(prefix, defs, None, true))
    }

    /// A block of zeros that counts statuses too. With `sparse` only what was counted is shown, as of the
    /// statistics that Envoy makes when it counts them.
    pub fn of_responses(prefix: &str, defs: &'static [StatDef], sparse: bool) -> Arc<Block> {
        Arc::new(Block::of(prefix, defs, Some(Codes::new()), sparse))
    }

    fn of(prefix: &str, defs: &'static [StatDef], codes: Option<Codes>, sparse: bool) -> Block {
        let shards = (0..shards()).map(|_| OnceLock::new()).collect();
        Block { prefix: prefix.into(), defs, shards, codes, sparse, reset: Mutex::new(None) }
    }

    /// The statistics of another block that `self` has too, by name. For a block that nobody else has.
    pub(super) fn copy(&self, other: &Block) {
        for def in self.defs {
            let same = other.defs.iter().find(|known| known.name == def.name && known.kind == def.kind);
            let Some(same) = same else { continue };
            match (def.kind, other.value(same)) {
                (Kind::Counter, Value::Counter(n)) => self.add(def.slot, n),
                (Kind::Gauge, Value::Gauge(n)) if other.is_used(same) => self.change(def.slot, n as i64),
                (Kind::Number, Value::Gauge(n)) => self.put(def.slot, n),
                _ => {}
            }
        }
    }

    /// With its final dot, such as `cluster.a.`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Every statistic that the block declares. Statuses are not among them.
    pub fn defs(&self) -> &'static [StatDef] {
        self.defs
    }

    /// The definition at an index: that of a status behind those that are declared.
    pub(super) fn def(&self, index: u32) -> Option<&'static StatDef> {
        let index = index as usize;
        self.defs.get(index).or_else(|| codes::def(u16::try_from(index - self.defs.len()).ok()?))
    }

    /// The indices of statuses that were counted.
    pub(super) fn code_indices(&self) -> impl Iterator<Item = u32> {
        let seen = self.codes.as_ref().map(Codes::seen).unwrap_or_default();
        seen.into_iter().map(|status| self.defs.len() as u32 + u32::from(status))
    }

    /// Whether a statistic is shown.
    pub(super) fn shows(&self, def: &StatDef) -> bool {
        !self.sparse
            || match def.kind {
                Kind::Counter | Kind::Number => self.sum(def.slot) > 0,
                Kind::Gauge => self.level(def.slot) > 0,
                Kind::Histogram => Histogram { block: Some(self), slot: def.slot }.get().count > 0,
            }
    }

    /// Counts one more response of a status, where statuses are counted.
    pub(super) fn count_code(&self, status: u16) {
        if let Some(codes) = &self.codes {
            codes.inc(status);
        }
    }

    /// Slots of a shard.
    fn slots(&self) -> usize {
        // Those that are never counted stand first, and have none.
        self.defs.last().filter(|def| def.slot != NEVER).map_or(0, |def| def.slot + slots(def.kind))
    }

    #[inline]
    pub(super) fn add(&self, slot: usize, n: u64) {
        self.add_all([(slot, n)]);
    }

    /// Adds to several slots, of which the shard is looked for once.
    #[inline]
    pub(super) fn add_all<const N: usize>(&self, slots: [(usize, u64); N]) {
        let own = shard();
        match self.shards.get(own).and_then(OnceLock::get) {
            Some(cells) if own != 0 => {
                for (slot, n) in slots {
                    // This thread alone writes here.
                    let Some(cell) = cells.get(slot) else { return };
                    cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
                }
            }
            _ => self.add_first(own, &slots),
        }
    }

    /// Changes a gauge. Its cells have the sum above a bit that says whether it was ever changed.
    #[inline]
    pub(super) fn change(&self, slot: usize, by: i64) {
        let (own, by) = (shard(), (by as u64) << 1);
        match self.shards.get(own).and_then(OnceLock::get) {
            Some(cells) if own != 0 => {
                // This thread alone writes here.
                let Some(cell) = cells.get(slot) else { return };
                cell.store(cell.load(Relaxed).wrapping_add(by) | CHANGED, Relaxed);
            }
            _ => {
                self.add_first(own, &[(slot, by)]);
                let cell = self.shards.get(own).or_else(|| self.shards.first()).and_then(OnceLock::get);
                cell.and_then(|cells| cells.get(slot)).into_iter().for_each(|cell| {
                    cell.fetch_or(CHANGED, Relaxed);
                });
            }
        }
    }

    /// Sets a number, in the shard of all threads that are no workers.
    pub(super) fn put(&self, slot: usize, n: u64) {
        let cell = self.shards.first().and_then(|shard| self.cells(shard).get(slot));
        cell.into_iter().for_each(|cell| cell.store(n, Relaxed));
    }

    /// The sum of a gauge over all threads: below zero while one thread's part is seen and another's is not.
    pub(super) fn level(&self, slot: usize) -> i64 {
        self.each_cell(slot).fold(0, |sum: i64, cell| sum.wrapping_add(cell as i64 >> 1))
    }

    /// Whether a gauge was ever changed or set.
    pub(super) fn is_changed(&self, slot: usize) -> bool {
        self.each_cell(slot).any(|cell| cell & CHANGED != 0)
    }

    /// Whether nothing of it was ever counted or set.
    pub(super) fn is_untouched(&self) -> bool {
        self.shards.iter().all(|shard| shard.get().is_none())
            && self.codes.as_ref().is_none_or(Codes::is_untouched)
    }

    /// Whether a statistic was ever counted or set, be it that it is zero again (Envoy's `Metric::used`).
    pub(super) fn is_used(&self, def: &StatDef) -> bool {
        // Nobody has asked most clusters of a mesh for anything.
        if self.is_untouched() {
            return false;
        }
        match (def.kind, self.value(def)) {
            (Kind::Gauge, _) => self.is_changed(def.slot),
            (_, Value::Counter(n) | Value::Gauge(n)) => n != 0,
            (_, Value::Histogram(seen)) => seen.count != 0,
        }
    }

    /// What is added to the shard that several threads share, or first to one.
    #[cold]
    fn add_first(&self, own: usize, slots: &[(usize, u64)]) {
        let Some(shard) = self.shards.get(own).or_else(|| self.shards.first()) else { return };
        let cells = self.cells(shard);
        for (slot, n) in slots {
            if let Some(cell) = cells.get(*slot) {
                cell.fetch_add(*n, Relaxed);
            }
        }
    }

    fn cells<'a>(&self, shard: &'a OnceLock<Box<[AtomicU64]>>) -> &'a [AtomicU64] {
        shard.get_or_init(|| (0..self.slots()).map(|_| AtomicU64::new(0)).collect())
    }

    fn each_cell(&self, slot: usize) -> impl Iterator<Item = u64> {
        let cells = self.shards.iter().filter_map(OnceLock::get);
        cells.filter_map(move |cells| cells.get(slot)).map(|cell| cell.load(Relaxed))
    }

    /// The sum over all threads, but of a gauge.
    pub(super) fn sum(&self, slot: usize) -> u64 {
        self.each_cell(slot).fold(0, u64::wrapping_add)
    }

    /// The value of a statistic of the block; a counter's since the last reset.
    pub fn value(&self, def: &StatDef) -> Value {
        match def.kind {
            Kind::Counter => {
                let reset = self.reset.lock();
                let Some((status, codes)) = codes::status(def.slot).zip(self.codes.as_ref()) else {
                    let before = reset.as_ref().and_then(|reset| reset.slots.get(def.slot).copied());
                    return Value::Counter(self.sum(def.slot).wrapping_sub(before.unwrap_or(0)));
                };
                let before = reset.as_ref().and_then(|reset| reset.codes.iter().find(|(s, _)| *s == status));
                Value::Counter(codes.get(status).wrapping_sub(before.map_or(0, |(_, count)| *count)))
            }
            Kind::Gauge => Value::Gauge(self.level(def.slot).max(0) as u64),
            Kind::Number => Value::Gauge(self.sum(def.slot)),
            Kind::Histogram => Value::Histogram(Histogram { block: Some(self), slot: def.slot }.get()),
        }
    }

    /// Makes every counter begin at zero again.
    pub(super) fn reset_counters(&self) {
        let slots = (0..self.slots()).map(|slot| self.sum(slot)).collect();
        let codes = self.codes.iter().flat_map(|codes| codes.seen().into_iter().map(|s| (s, codes.get(s))));
        *self.reset.lock() = Some(Box::new(Reset { slots, codes: codes.collect() }));
    }

    /// Shards that have been made.
    #[cfg(test)]
    pub(super) fn made(&self) -> usize {
        self.shards.iter().filter(|shard| shard.get().is_some()).count()
    }
}

/// Slots that a statistic takes.
const fn slots(kind: Kind) -> usize {
    match kind {
        Kind::Counter | Kind::Gauge | Kind::Number => 1,
        Kind::Histogram => HISTOGRAM_SLOTS,
    }
}

/// The first slot of the statistic at `index`, when `singles` counters, gauges and numbers come before the histograms.
#[doc(hidden)]
pub const fn slot(index: usize, singles: usize) -> usize {
    if index <= singles { index } else { singles + (index - singles) * HISTOGRAM_SLOTS }
}

const _: () = assert!(HISTOGRAM_SLOTS == BUCKETS.len() + 2);

/// Declares a struct of statistics with `new(&Registry, prefix)` and a method for each statistic:
/// `stat_block! { /// docs  pub struct ClusterStats { counters: [a, b], gauges: [c], histograms: [d] } }`
/// has `stats.a().inc()`. The struct is one pointer; which slot a statistic has is known when it is compiled.
/// `ssl_handshake = "ssl.handshake"` is shown under that name. `numbers: [e]` may stand before the histograms. What
/// stands in `zeros: [Counter "f", Gauge "g"]` behind them is never counted, takes no room and is shown as 0: what dashboards
/// ask Envoy for and cannot happen here, or is not counted.
#[macro_export]
macro_rules! stat_block {
    ($(#[$meta:meta])* pub struct $name:ident {
        counters: [$($c:ident $(= $shown:literal)?),* $(,)?], gauges: [$($g:ident),* $(,)?],
        $(numbers: [$($n:ident),* $(,)?],)?
        histograms: [$($h:ident),* $(,)?]
        $(, zeros: [$($z:ident $never:literal),* $(,)?])? $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone)]
        #[allow(unreachable_pub)]
        pub struct $name(Option<std::sync::Arc<$crate::metrics::Block>>);

        const _: () = {
            #[allow(unused_imports)]
            use $crate::metrics::{Block, Counter, Gauge, Histogram, Kind, Number, Registry, StatDef, block_slot};

            // A block of what is never counted alone has none.
            #[allow(non_camel_case_types, clippy::upper_case_acronyms, dead_code)]
            enum Stat { $($c,)* $($g,)* $($($n,)*)? $($h,)* }

            #[allow(dead_code)]
            const SINGLES: usize =
                <[&str]>::len(&[$(stringify!($c),)* $(stringify!($g),)* $($(stringify!($n),)*)?]);

            const DEFS: &[StatDef] = &[
                $($(StatDef { name: $never, kind: Kind::$z, slot: $crate::metrics::NEVER_COUNTED },)*)?
                $(StatDef { name: [$($shown,)? stringify!($c)][0], kind: Kind::Counter, slot: block_slot(Stat::$c as usize, SINGLES) },)*
                $(StatDef { name: stringify!($g), kind: Kind::Gauge, slot: block_slot(Stat::$g as usize, SINGLES) },)*
                $($(StatDef { name: stringify!($n), kind: Kind::Number, slot: block_slot(Stat::$n as usize, SINGLES) },)*)?
                $(StatDef { name: stringify!($h), kind: Kind::Histogram, slot: block_slot(Stat::$h as usize, SINGLES) },)*
            ];

            #[allow(missing_docs, unreachable_pub, dead_code)]
            impl $name {
                /// Zeros under `prefix` (with its final dot), visible in `registry` for as long as this lives.
                pub fn new(registry: &Registry, prefix: &str) -> Self {
                    $name(Some(registry.register(Block::new(prefix, DEFS))))
                }

                /// Zeros under `prefix`, each visible from its first count on.
                pub fn sparse(registry: &Registry, prefix: &str) -> Self {
                    $name(Some(registry.register(Block::sparse(prefix, DEFS))))
                }

                /// Zeros in a block of responses, visible in `registry` for as long as this lives.
                pub fn of_responses(registry: &Registry, prefix: &str, sparse: bool) -> Self {
                    $name(Some(registry.register(Block::of_responses(prefix, DEFS, sparse))))
                }

                /// Zeros that no registry shows by itself: for statistics that are computed.
                pub fn apart(prefix: &str) -> Self {
                    $name(Some(Block::new(prefix, DEFS)))
                }

                /// Where the values are, to be shared.
                pub fn shared(&self) -> Option<&std::sync::Arc<Block>> {
                    self.0.as_ref()
                }

                /// Where the values are.
                pub fn block(&self) -> Option<&Block> {
                    self.0.as_deref()
                }

                /// Counts nothing and costs nothing, for a resource whose statistics nobody shows.
                pub fn none() -> Self {
                    $name(None)
                }

                $(#[inline] pub fn $c(&self) -> Counter<'_> {
                    Counter::new(self.0.as_deref(), block_slot(Stat::$c as usize, SINGLES))
                })*
                $(#[inline] pub fn $g(&self) -> Gauge<'_> {
                    Gauge::new(self.0.as_deref(), block_slot(Stat::$g as usize, SINGLES))
                })*
                $($(#[inline] pub fn $n(&self) -> Number<'_> {
                    Number::new(self.0.as_deref(), block_slot(Stat::$n as usize, SINGLES))
                })*)?
                $(#[inline] pub fn $h(&self) -> Histogram<'_> {
                    Histogram::new(self.0.as_deref(), block_slot(Stat::$h as usize, SINGLES))
                })*
            }
        };
    };
}
