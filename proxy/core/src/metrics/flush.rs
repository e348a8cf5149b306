//! Statistics as they are told to services again and again: with what has changed since they were told last.

use super::{Distribution, LabelSet, Registry, Snapshot, TagRules, Tagged, Value};
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

/// Tells a service of statistics (Envoy's `stats_sinks`).
pub trait StatsSink: Send {
    /// Tells of all. Whoever can't be told in time is not.
    fn flush<'a>(&'a mut self, flush: &'a Flush) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
}

/// Statistics at one moment.
pub struct Flush {
    /// When they were looked at.
    pub at: SystemTime,
    /// When they were before that, or when the process began.
    pub since: SystemTime,
    /// When the process began.
    pub start: SystemTime,
    /// Those that were ever counted or set.
    pub points: Vec<Point>,
    rules: Arc<TagRules>,
}

/// One statistic.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// The whole name, such as `cluster.a.upstream_rq_200`.
    pub name: String,
    /// Of one with labels of its own what its name is without them, and the labels.
    pub labelled: Option<(String, LabelSet)>,
    /// Its value.
    pub change: Change,
}

/// A value, and how it has changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Of a counter.
    Counter {
        /// Since the process began, or it was reset.
        total: u64,
        /// Since it was told last.
        delta: u64,
    },
    /// Of a gauge.
    Gauge(u64),
    /// Of a histogram.
    Histogram {
        /// All values.
        total: Box<Distribution>,
        /// Those since it was told last.
        delta: Box<Distribution>,
    },
}

/// Knows what was told last. It keeps 16 bytes of a counter, and of a histogram its distribution.
pub struct Latch {
    registry: Registry,
    rules: Arc<TagRules>,
    hasher: RandomState,
    told: HashMap<u64, Told>,
    start: SystemTime,
    since: SystemTime,
}

enum Told {
    Counter(u64),
    Histogram(Box<Distribution>),
}

impl Latch {
    /// Nothing was told yet. `rules` say which statistics there are, and their tags.
    pub fn new(registry: Registry, rules: Arc<TagRules>) -> Latch {
        let start = SystemTime::now();
        Latch { registry, rules, hasher: RandomState::new(), told: HashMap::new(), start, since: start }
    }

    /// All statistics, which count as told then.
    pub fn flush(&mut self) -> Flush {
        let (at, snapshot) = (SystemTime::now(), self.registry.used());
        let mut next = HashMap::with_capacity(self.told.len());
        let points = points(&snapshot, &self.rules);
        let points = points.map(|(name, labelled, value)| {
            let change = self.change(&name, &value, &mut next);
            Point { name, labelled, change }
        });
        let points = points.collect();
        // What is not there any more is forgotten.
        self.told = next;
        let since = std::mem::replace(&mut self.since, at);
        Flush { at, since, start: self.start, points, rules: self.rules.clone() }
    }

    fn change(&self, name: &str, value: &Value, next: &mut HashMap<u64, Told>) -> Change {
        let key = self.hasher.hash_one(name);
        match *value {
            Value::Gauge(value) => Change::Gauge(value),
            Value::Counter(total) => {
                let before = match self.told.get(&key) {
                    Some(Told::Counter(before)) => *before,
                    _ => 0,
                };
                next.insert(key, Told::Counter(total));
                // One that was reset has begun anew.
                Change::Counter { total, delta: total.checked_sub(before).unwrap_or(total) }
            }
            Value::Histogram(total) => {
                let before = match self.told.get(&key) {
                    Some(Told::Histogram(before)) => **before,
                    _ => Distribution::default(),
                };
                next.insert(key, Told::Histogram(Box::new(total)));
                Change::Histogram { total: Box::new(total), delta: Box::new(total.since(&before)) }
            }
        }
    }
}

type Found = (String, Option<(String, LabelSet)>, Value);

/// Statistics of a snapshot of those that were ever counted or set.
fn points<'s>(snapshot: &'s Snapshot, rules: &'s TagRules) -> impl Iterator<Item = Found> + 's {
    let plain = snapshot.names().filter_map(|at| {
        let mut name = String::new();
        let value = snapshot.read(at, &mut name)?;
        Some((name, None, value))
    });
    let labelled = snapshot.labelled().iter().map(|sample| {
        let family = format!("{}.{}", sample.namespace, sample.family);
        (sample.flat_name(), Some((family, sample.labels.clone())), sample.value)
    });
    plain.chain(labelled).filter(|(name, ..)| rules.filter.keeps(name))
}

impl Flush {
    /// The name of a point without its tags, and these, under the names that Envoy has for them.
    pub fn tagged(&self, point: &Point) -> Tagged {
        if let Some((name, labels)) = &point.labelled {
            let tags = labels.iter().map(|(label, value)| (label.to_string(), value.to_string()));
            return Tagged { name: name.clone(), tags: tags.collect() };
        }
        let mut tagged = self.rules.split(&point.name);
        // Those of the configuration come first, and have names of its choice.
        let own = |name: &String| {
            self.rules.patterns.iter().any(|(known, _)| known == name)
                || self.rules.fixed.iter().any(|(known, _)| known == name)
        };
        for (name, _) in &mut tagged.tags {
            if let Some(rest) = name.strip_prefix("envoy_").filter(|_| !own(name)) {
                *name = format!("envoy.{rest}");
            }
        }
        tagged
    }
}

impl Distribution {
    /// What came after `before`; all of it, if that is not a part of it.
    fn since(&self, before: &Distribution) -> Distribution {
        if before.count > self.count || before.below.iter().zip(&self.below).any(|(before, now)| before > now)
        {
            return *self;
        }
        let mut delta = *self;
        delta.below.iter_mut().zip(before.below).for_each(|(now, before)| *now -= before);
        delta.count -= before.count;
        delta.sum = delta.sum.wrapping_sub(before.sum);
        delta
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::stat_block! {
        /// For the test.
        pub struct TestStats { counters: [upstream_rq_200, unused], gauges: [open], histograms: [time] }
    }

    fn latch(registry: &Registry, rules: TagRules) -> Latch {
        Latch::new(registry.clone(), Arc::new(rules))
    }

    fn changes(flush: &Flush) -> Vec<(&str, Change)> {
        flush.points.iter().map(|point| (point.name.as_str(), point.change.clone())).collect()
    }

    #[test]
    fn what_has_changed_is_told_once() {
        let registry = Registry::new();
        let stats = TestStats::new(&registry, "cluster.a.");
        let mut latch = latch(&registry, TagRules::default());
        assert_eq!(changes(&latch.flush()), []);
        stats.upstream_rq_200().add(3);
        stats.open().inc();
        stats.time().record(7);
        let first = latch.flush();
        let [(open, Change::Gauge(1)), (time, Change::Histogram { delta, .. }), (ok, counter)] =
            &changes(&first)[..]
        else {
            panic!("{:?}", first.points)
        };
        assert_eq!((*open, *time, *ok), ("cluster.a.open", "cluster.a.time", "cluster.a.upstream_rq_200"));
        assert_eq!((counter, delta.count, delta.sum), (&Change::Counter { total: 3, delta: 3 }, 1, 7));
        stats.upstream_rq_200().inc();
        stats.open().dec();
        let second = latch.flush();
        assert!(second.since == first.at && second.start == first.start);
        let told = changes(&second);
        assert_eq!(told[0].1, Change::Gauge(0));
        assert_eq!(told[2].1, Change::Counter { total: 4, delta: 1 });
        let Change::Histogram { delta, total } = &told[1].1 else { panic!("{told:?}") };
        assert_eq!((delta.count, delta.sum, total.count), (0, 0, 1));
        registry.reset_counters();
        stats.upstream_rq_200().add(2);
        assert_eq!(changes(&latch.flush())[2].1, Change::Counter { total: 2, delta: 2 });
        drop(stats);
        assert!(latch.flush().points.is_empty() && latch.told.is_empty());
    }

    #[test]
    fn tags_have_envoys_names() {
        let registry = Registry::new();
        let stats = TestStats::new(&registry, "cluster.a.");
        stats.upstream_rq_200().inc();
        let tags = |rules: TagRules| {
            let flush = latch(&registry, rules).flush();
            let Tagged { name, tags } = flush.tagged(&flush.points[0]);
            tags.iter().fold(name, |all, (tag, value)| format!("{all} {tag}={value}"))
        };
        assert_eq!(
            tags(TagRules::default()),
            "cluster.upstream_rq envoy.response_code=200 envoy.cluster_name=a"
        );
        let fixed = vec![("envoy_own".to_owned(), "x".to_owned())];
        let rules = TagRules {
            fixed,
            defaults: crate::metrics::DefaultTags::Named(Vec::new()),
            ..TagRules::default()
        };
        assert_eq!(tags(rules), "cluster.a.upstream_rq_200 envoy_own=x");
    }
}
