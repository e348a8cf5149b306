//! All statistics of the process.

use super::{Block, Kind, Labelled, LabelledSample, Sample, Snapshot, Text};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

/// Every live block. Cloning shares it.
#[derive(Clone, Default)]
pub struct Registry(Arc<Known>);

#[derive(Default)]
struct Known {
    blocks: Mutex<Vec<Weak<Block>>>,
    views: Mutex<Vec<View>>,
    texts: Mutex<Vec<Weak<Text>>>,
    labelled: Mutex<Vec<Weak<dyn Labelled>>>,
}

/// Statistics that are put together when they are asked for: they cost nothing else.
pub trait Computed: Send + Sync {
    /// Hands out blocks with the values of this moment, such as those of a `stat_block!`'s `apart`.
    fn compute(&self, show: &mut dyn FnMut(&Arc<Block>));
}

#[derive(Clone)]
enum View {
    Computed(Weak<dyn Computed>),
    /// Statistics of a block under another prefix too.
    Mirror(Arc<Mirror>),
}

struct Mirror {
    of: Weak<Block>,
    /// Makes the block that is shown.
    make: Box<dyn Fn() -> Option<Arc<Block>> + Send + Sync>,
}

impl View {
    fn is_live(&self) -> bool {
        match self {
            View::Computed(view) => view.strong_count() > 0,
            View::Mirror(mirror) => mirror.of.strong_count() > 0,
        }
    }
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// Makes a block visible for as long as somebody else holds it.
    pub fn register(&self, block: Arc<Block>) -> Arc<Block> {
        let mut blocks = self.0.blocks.lock();
        // Dead blocks are swept now and then, so that churn of resources does not grow the list.
        if blocks.len().is_power_of_two() {
            blocks.retain(|b| b.strong_count() > 0);
        }
        blocks.push(Arc::downgrade(&block));
        block
    }

    /// A text that is visible for as long as somebody holds it.
    pub fn text(&self, name: &str) -> Arc<Text> {
        let text = Arc::new(Text::new(name));
        let mut texts = self.0.texts.lock();
        if texts.len().is_power_of_two() {
            texts.retain(|text| text.strong_count() > 0);
        }
        texts.push(Arc::downgrade(&text));
        text
    }

    /// Makes what `view` computes visible for as long as it lives.
    pub fn register_computed(&self, view: Weak<dyn Computed>) {
        self.add_view(View::Computed(view));
    }

    /// Shows the statistics of `of` that `make`'s block has too there as well, for as long as `of` lives.
    pub fn mirror(&self, of: &Arc<Block>, make: impl Fn() -> Option<Arc<Block>> + Send + Sync + 'static) {
        self.add_view(View::Mirror(Arc::new(Mirror { of: Arc::downgrade(of), make: Box::new(make) })));
    }

    /// Makes statistics with labels of their own visible for as long as they live.
    pub fn register_labelled(&self, labelled: Weak<dyn Labelled>) {
        let mut all = self.0.labelled.lock();
        all.retain(|known| known.strong_count() > 0);
        all.push(labelled);
    }

    /// Statistics with labels of their own, sorted by family and labels.
    fn labelled(&self) -> Vec<LabelledSample> {
        let live: Vec<_> = self.0.labelled.lock().iter().filter_map(Weak::upgrade).collect();
        let mut samples = Vec::new();
        live.iter().for_each(|labelled| labelled.list(&mut |sample| samples.push(sample)));
        samples.sort_by(|a, b| (&a.family, &a.labels).cmp(&(&b.family, &b.labels)));
        samples
    }

    fn add_view(&self, view: View) {
        let mut views = self.0.views.lock();
        if views.len().is_power_of_two() {
            views.retain(View::is_live);
        }
        views.push(view);
    }

    fn computed(&self) -> Vec<Arc<Block>> {
        // What is computed takes locks of its own, and may be the last to hold its source.
        let views: Vec<View> = self.0.views.lock().clone();
        let mut blocks = Vec::new();
        for view in views {
            match view {
                View::Computed(view) => {
                    if let Some(view) = view.upgrade() {
                        view.compute(&mut |block| blocks.push(block.clone()));
                    }
                }
                View::Mirror(mirror) => {
                    if let Some((of, shown)) = mirror.of.upgrade().zip((mirror.make)()) {
                        shown.copy(&of);
                        blocks.push(shown);
                    }
                }
            }
        }
        blocks
    }

    fn live(&self) -> Vec<Arc<Block>> {
        self.0.blocks.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Makes every counter begin at zero again (`POST /reset_counters`).
    pub fn reset_counters(&self) {
        self.live().iter().for_each(|block| block.reset_counters());
    }

    /// Every statistic, in the order of the names.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_of(false)
    }

    /// Those that were ever counted or set, be it that they are zero again: in a mesh few of very many.
    pub fn used(&self) -> Snapshot {
        self.snapshot_of(true)
    }

    fn snapshot_of(&self, used_only: bool) -> Snapshot {
        let mut blocks = self.live();
        blocks.extend(self.computed());
        let texts = self.0.texts.lock().iter().filter_map(Weak::upgrade).collect();
        Snapshot::new(blocks, texts, self.labelled(), used_only)
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
            Some(match def.kind {
                Kind::Gauge => block.level(def.slot).max(0) as u64,
                _ => block.sum(def.slot),
            })
        };
        self.live().iter().filter(|block| block.prefix().starts_with(scope)).filter_map(value).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, clippy::unwrap_used)]
    use super::super::{Value, enter_worker, set_workers};
    use super::*;

    crate::stat_block! {
        /// For the test.
        pub struct TestStats { counters: [hits], gauges: [open], numbers: [hash], histograms: [time, size] }
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
        assert_eq!(samples[0], Sample { name: "t.a.hash".into(), value: Value::Gauge(0) });
        assert_eq!(samples[1], Sample { name: "t.a.hits".into(), value: Value::Counter(2000) });
        assert_eq!(samples[2], Sample { name: "t.a.open".into(), value: Value::Gauge(1) });
        let (Value::Histogram(size), Value::Histogram(time)) = (&samples[3].value, &samples[4].value) else {
            panic!("not histograms")
        };
        assert_eq!((time.below[2], time.below[3], time.count, time.sum), (0, 2, 2, 14));
        assert_eq!((size.below[18], size.count, size.sum), (0, 2, 2 << 40));
        registry.reset_counters();
        stats.hits().add(3);
        let samples = registry.samples();
        assert_eq!((&samples[1].value, &samples[2].value), (&Value::Counter(3), &Value::Gauge(1)));
        drop(stats);
        assert!(registry.samples().is_empty());
    }

    crate::stat_block! {
        /// For the test.
        pub struct WithZeros {
            counters: [hits], gauges: [], histograms: [time],
            zeros: [Counter "never.there", Gauge "buffered", Histogram "long"],
        }
    }

    #[test]
    fn what_is_never_counted_is_shown_as_zero() {
        let registry = Registry::new();
        let stats = WithZeros::new(&registry, "z.");
        stats.hits().inc();
        stats.time().record(7);
        for round in 0..2 {
            let shown: Vec<_> =
                registry.samples().into_iter().map(|sample| (sample.name, sample.value)).collect();
            let none = Value::Histogram(super::super::Distribution::default());
            for (name, value) in
                [("z.buffered", Value::Gauge(0)), ("z.long", none), ("z.never.there", Value::Counter(0))]
            {
                assert!(shown.contains(&(name.into(), value)), "{name}: {shown:?}");
            }
            assert_eq!(shown.len(), 5);
            assert_eq!(registry.sum("z.", "hits"), 1, "round {round}: a sum goes over the whole life");
            registry.reset_counters();
        }
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

    /// A version's hash of 64 bits ended at `i64::MAX`.
    #[test]
    fn numbers_are_set_whole_and_gauges_are_known_to_have_been_changed() {
        let registry = Registry::new();
        let stats = TestStats::new(&registry, "t.n.");
        for n in [u64::MAX, 1 << 63, 7] {
            stats.hash().set(n);
            assert_eq!((stats.hash().get(), registry.sum("t.n.", "hash")), (n, n));
        }
        stats.open().add(-3);
        assert_eq!(stats.open().get(), 0, "of one thread's part alone");
        stats.open().add(5);
        stats.open().inc();
        stats.open().dec();
        assert_eq!((stats.open().get(), registry.sum("t.n.", "open")), (2, 2));
        stats.open().set(0);
        let block = stats.block().unwrap();
        let used = |name: &str| block.is_used(block.defs().iter().find(|def| def.name == name).unwrap());
        assert_eq!(["hits", "open", "hash", "time"].map(used), [false, true, true, false]);
        assert!(!TestStats::new(&registry, "t.m.").block().unwrap().is_used(&block.defs()[1]));
    }

    #[test]
    fn texts_are_there_while_somebody_holds_them() {
        let registry = Registry::new();
        let text = registry.text("t.version_text");
        let shown = || -> Vec<(String, Option<Arc<str>>)> {
            registry.snapshot().texts().iter().map(|text| (text.name().to_owned(), text.get())).collect()
        };
        assert_eq!(shown(), [("t.version_text".to_owned(), None)]);
        text.set("a");
        text.set("b");
        assert_eq!(shown(), [("t.version_text".to_owned(), Some("b".into()))]);
        drop(text);
        assert_eq!(shown(), []);
    }

    crate::stat_block! {
        /// For the test.
        pub struct Shown { counters: [hits, other = "more.other"], gauges: [open], histograms: [] }
    }

    struct Gate;

    impl Computed for Gate {
        fn compute(&self, show: &mut dyn FnMut(&Arc<Block>)) {
            let shown = Shown::apart("t.gate.");
            shown.open().set(4);
            shown.shared().into_iter().for_each(show);
        }
    }

    #[test]
    fn what_is_computed_is_there_while_its_source_lives() {
        let registry = Registry::new();
        let (stats, gate) = (TestStats::new(&registry, "t.c."), Arc::new(Gate));
        registry.mirror(stats.shared().unwrap(), || Shown::apart("t.mirror.").shared().cloned());
        let weak: Weak<Gate> = Arc::downgrade(&gate);
        registry.register_computed(weak);
        stats.hits().add(2);
        stats.open().inc();
        let value = |name: &str| registry.samples().into_iter().find(|s| s.name == name).map(|s| s.value);
        assert_eq!(value("t.gate.open"), Some(Value::Gauge(4)));
        assert_eq!(value("t.gate.more.other"), Some(Value::Counter(0)));
        assert_eq!(value("t.mirror.hits"), Some(Value::Counter(2)));
        assert_eq!(value("t.mirror.open"), Some(Value::Gauge(1)));
        registry.reset_counters();
        assert_eq!(value("t.mirror.hits"), Some(Value::Counter(0)));
        drop((stats, gate));
        assert!(registry.samples().is_empty());
    }
}
