//! All statistics of the process.

use super::{Block, Kind};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// Every live block. Cloning shares it.
#[derive(Clone, Default)]
pub struct Registry {
    blocks: Arc<Mutex<Vec<Weak<Block>>>>,
    /// Values of counters when they were last reset: workers never have their shards written by others.
    reset: Arc<Mutex<HashMap<String, u64>>>,
}

/// A statistic's value at one moment.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter.
    Counter(u64),
    /// Of a gauge.
    Gauge(u64),
    /// Cumulative counts a bucket of [`super::BUCKETS`], count of all, sum.
    Histogram(Vec<u64>, u64, u64),
}

/// One statistic with its full name.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Prefix and name, such as `cluster.a.upstream_rq_total`.
    pub name: String,
    /// Its value.
    pub value: Value,
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

    /// Makes every counter begin at zero again (`POST /reset_counters`).
    pub fn reset_counters(&self) {
        let counters = self.totals().into_iter().filter_map(|sample| match sample.value {
            Value::Counter(n) => Some((sample.name, n)),
            _ => None,
        });
        *self.reset.lock() = counters.collect();
    }

    /// Every statistic since the last reset, sorted by name.
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = self.totals();
        let reset = self.reset.lock();
        for sample in samples.iter_mut().filter(|_| !reset.is_empty()) {
            if let (Value::Counter(n), Some(before)) = (&mut sample.value, reset.get(&sample.name)) {
                // A counter that is lower belongs to a new resource of that name.
                *n = n.checked_sub(*before).unwrap_or(*n);
            }
        }
        samples
    }

    /// Every statistic, sorted by name. Blocks of one prefix (an old and a new generation of a resource)
    /// are added up.
    fn totals(&self) -> Vec<Sample> {
        let blocks: Vec<Arc<Block>> = self.blocks.lock().iter().filter_map(Weak::upgrade).collect();
        let mut samples: Vec<Sample> = Vec::new();
        for block in blocks {
            for (i, def) in block.defs().iter().enumerate() {
                let value = match def.kind {
                    Kind::Counter => Value::Counter(block.counter(i).get()),
                    Kind::Gauge => Value::Gauge(block.gauge(i).get()),
                    Kind::Histogram => {
                        let (buckets, count, sum) = block.histogram(i).get();
                        Value::Histogram(buckets, count, sum)
                    }
                };
                samples.push(Sample { name: format!("{}{}", block.prefix(), def.name), value });
            }
        }
        samples.sort_by(|a, b| a.name.cmp(&b.name));
        samples.dedup_by(|next, first| next.name == first.name && add(&mut first.value, &next.value));
        samples
    }
}

/// Adds `other` to `to` when they are of one kind.
fn add(to: &mut Value, other: &Value) -> bool {
    match (to, other) {
        (Value::Counter(a), Value::Counter(b)) | (Value::Gauge(a), Value::Gauge(b)) => *a += b,
        (Value::Histogram(a, count, sum), Value::Histogram(b, c, s)) => {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            *count += c;
            *sum += s;
        }
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::stat_block! {
        /// For the test.
        pub struct TestStats { counters: [hits], gauges: [open], histograms: [time] }
    }

    #[test]
    fn a_block_is_visible_while_it_lives_and_counts_over_threads() {
        let registry = Registry::new();
        crate::metrics::set_workers(2);
        let stats = Arc::new(TestStats::new(&registry, "t.a."));
        let threads: Vec<_> = (0..2)
            .map(|w| {
                let stats = stats.clone();
                std::thread::spawn(move || {
                    crate::metrics::enter_worker(w);
                    (0..1000).for_each(|_| stats.hits.inc());
                    stats.open.inc();
                    stats.time.record(7);
                })
            })
            .collect();
        threads.into_iter().for_each(|t| assert!(t.join().is_ok()));
        stats.open.dec();
        let samples = registry.samples();
        assert_eq!(samples[0], Sample { name: "t.a.hits".into(), value: Value::Counter(2000) });
        assert_eq!(samples[1], Sample { name: "t.a.open".into(), value: Value::Gauge(1) });
        let Value::Histogram(buckets, count, sum) = &samples[2].value else { panic!("not a histogram") };
        assert_eq!((buckets[2], buckets[3], *count, *sum), (0, 2, 2, 14));
        registry.reset_counters();
        stats.hits.add(3);
        let samples = registry.samples();
        assert_eq!((&samples[0].value, &samples[1].value), (&Value::Counter(3), &Value::Gauge(1)));
        drop(stats);
        assert!(registry.samples().is_empty());
    }
}
