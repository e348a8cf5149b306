//! Blocks of statistics that a resource declares once.

use super::{Cells, Counter, Gauge, HISTOGRAM_SLOTS, Histogram};
use std::sync::Arc;

/// What a statistic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One statistic of a block: its name below the block's prefix, and its kind.
#[derive(Clone, Copy, Debug)]
pub struct StatDef {
    /// As Envoy spells it, such as `upstream_rq_total`.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
}

/// The values of a resource's statistics under one prefix such as `cluster.a.`.
pub struct Block {
    prefix: Box<str>,
    defs: &'static [StatDef],
    cells: Arc<Cells>,
}

impl Block {
    /// A block of zeros.
    pub fn new(prefix: &str, defs: &'static [StatDef]) -> Arc<Block> {
        let slots = defs.iter().map(slots).sum();
        Arc::new(Block { prefix: prefix.into(), defs, cells: Cells::new(slots) })
    }

    /// With its final dot, such as `cluster.a.`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Every statistic of the block.
    pub fn defs(&self) -> &'static [StatDef] {
        self.defs
    }

    fn slot(&self, index: usize) -> usize {
        self.defs.iter().take(index).map(slots).sum()
    }

    /// The counter at `index` of the definitions.
    pub fn counter(&self, index: usize) -> Counter {
        Counter { cells: self.cells.clone(), slot: self.slot(index) }
    }
    /// The gauge at `index` of the definitions.
    pub fn gauge(&self, index: usize) -> Gauge {
        Gauge { cells: self.cells.clone(), slot: self.slot(index) }
    }
    /// The histogram at `index` of the definitions.
    pub fn histogram(&self, index: usize) -> Histogram {
        Histogram { cells: self.cells.clone(), slot: self.slot(index) }
    }
}

fn slots(def: &StatDef) -> usize {
    match def.kind {
        Kind::Counter | Kind::Gauge => 1,
        Kind::Histogram => HISTOGRAM_SLOTS,
    }
}

/// Declares a struct of statistics with `new(&Registry, prefix)`:
/// `stat_block! { /// docs  pub struct ClusterStats { counters: [a, b], gauges: [c], histograms: [d] } }`.
#[macro_export]
macro_rules! stat_block {
    ($(#[$meta:meta])* pub struct $name:ident {
        counters: [$($c:ident),* $(,)?], gauges: [$($g:ident),* $(,)?], histograms: [$($h:ident),* $(,)?] $(,)?
    }) => {
        $(#[$meta])*
        #[allow(missing_docs, unreachable_pub)]
        pub struct $name {
            $(pub $c: $crate::metrics::Counter,)*
            $(pub $g: $crate::metrics::Gauge,)*
            $(pub $h: $crate::metrics::Histogram,)*
            _block: std::sync::Arc<$crate::metrics::Block>,
        }

        #[allow(unreachable_pub)]
        impl $name {
            const DEFS: &'static [$crate::metrics::StatDef] = &[
                $($crate::metrics::StatDef { name: stringify!($c), kind: $crate::metrics::Kind::Counter },)*
                $($crate::metrics::StatDef { name: stringify!($g), kind: $crate::metrics::Kind::Gauge },)*
                $($crate::metrics::StatDef { name: stringify!($h), kind: $crate::metrics::Kind::Histogram },)*
            ];

            /// Zeros under `prefix` (with its final dot), visible in `registry` for as long as this lives.
            pub fn new(registry: &$crate::metrics::Registry, prefix: &str) -> Self {
                let block = registry.register($crate::metrics::Block::new(prefix, Self::DEFS));
                #[allow(unused_mut, unused_variables)]
                let mut index = 0..Self::DEFS.len();
                $name {
                    $($c: block.counter(index.next().unwrap_or_default()),)*
                    $($g: block.gauge(index.next().unwrap_or_default()),)*
                    $($h: block.histogram(index.next().unwrap_or_default()),)*
                    _block: block,
                }
            }
        }
    };
}
