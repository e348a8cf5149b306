//! All statistics of the process.

use super::{Block, Kind, Sample, Snapshot};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

/// Every live block. Cloning shares it.
#[derive(Clone, Default)]
pub struct Registry {
    blocks: Arc<Mutex<Vec<Weak<Block>>>>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// Makes a block visible for as long as somebody else holds it.
    pub fn register(&self, block: Arc<Block>) -> Arc<Block> {
        let mut blocks = self.blocks.lock();
        // Dead blocks are swept now and then, so that churn of resources does not grow the list.
        if blocks.len().is_power_of_two() {
            blocks.retain(|b| b.strong_count() > 0);
        }
        blocks.push(Arc::downgrade(&block));
        block
    }

    fn live(&self) -> Vec<Arc<Block>> {
        self.blocks.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Makes every counter begin at zero again (`POST /reset_counters`).
    pub fn reset_counters(&self) {
        self.live().iter().for_each(|block| block.reset_counters());
    }

    /// Every statistic, in the order of the names.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.live())
    }

    /// Every statistic with a string for its name, which is for few of them or for tests.
    pub fn samples(&self) -> Vec<Sample> {
        let mut all = Vec::new();
        self.snapshot().each(|name, value| all.push(Sample { name: name.to_owned(), value: *value }));
        all
    }

    /// The sum of one counter or gauge over all blocks whose prefix begins with `scope`, resets aside.
    pub fn sum(&self, scope: &str, name: &str) -> u64 {
        let value = |block: &Arc<Block>| {
            let def = block.defs().iter().find(|def| def.name == name && def.kind != Kind::Histogram)?;
            Some((block.sum(def.slot) as i64).max(0) as u64)
        };
        self.live().iter().filter(|block| block.prefix().starts_with(scope)).filter_map(value).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use super::super::{Value, enter_worker, set_workers};
    use super::*;

    crate::stat_block! {
        /// For the test.
        pub struct TestStats { counters: [hits], gauges: [open], histograms: [time, size] }
    }

    #[test]
    fn a_block_is_visible_while_it_lives_and_counts_over_threads() {
        let registry = Registry::new();
        set_workers(2);
        let stats = TestStats::new(&registry, "t.a.");
        let threads: Vec<_> = (0..2)
            .map(|w| {
                let stats = stats.clone();
                std::thread::spawn(move || {
                    enter_worker(w);
                    (0..1000).for_each(|_| stats.hits().inc());
                    stats.open().inc();
                    stats.time().record(7);
                    stats.size().record(1 << 40);
                })
            })
            .collect();
        threads.into_iter().for_each(|t| assert!(t.join().is_ok()));
        stats.open().dec();
        let samples = registry.samples();
        assert_eq!(samples[0], Sample { name: "t.a.hits".into(), value: Value::Counter(2000) });
        assert_eq!(samples[1], Sample { name: "t.a.open".into(), value: Value::Gauge(1) });
        let (Value::Histogram(size), Value::Histogram(time)) = (&samples[2].value, &samples[3].value) else {
            panic!("not histograms")
        };
        assert_eq!((time.below[2], time.below[3], time.count, time.sum), (0, 2, 2, 14));
        assert_eq!((size.below[18], size.count, size.sum), (0, 2, 2 << 40));
        registry.reset_counters();
        stats.hits().add(3);
        let samples = registry.samples();
        assert_eq!((&samples[0].value, &samples[1].value), (&Value::Counter(3), &Value::Gauge(1)));
        drop(stats);
        assert!(registry.samples().is_empty());
    }

    /// Each statistic had a handle of 16 bytes, and each worker's shard was made with the block.
    #[test]
    fn what_is_not_counted_costs_next_to_nothing() {
        let registry = Registry::new();
        let stats = TestStats::new(&registry, "t.b.");
        assert_eq!(size_of_val(&stats), size_of::<usize>());
        assert_eq!(stats.0.as_ref().map(|block| block.made()), Some(0));
        assert_eq!((stats.hits().get(), stats.open().get(), stats.time().get().count), (0, 0, 0));
        stats.hits().inc();
        stats.open().set(0);
        assert_eq!(stats.0.as_ref().map(|block| block.made()), Some(1));
        let none = TestStats::none();
        none.hits().inc();
        none.open().set(3);
        none.time().record(1);
        assert_eq!((none.hits().get(), none.open().get(), none.time().get().count), (0, 0, 0));
        assert_eq!(registry.sum("t.", "hits"), 1);
    }
}
