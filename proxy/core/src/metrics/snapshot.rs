//! All statistics in the order of their names.

use super::{Block, Kind, LabelledSample, StatDef, Text, Value};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

/// The statistics that there were at one moment, sorted by name; their values are read as they are visited.
///
/// It keeps eight bytes for each statistic. Names are put together one at a time, in one buffer.
pub struct Snapshot {
    blocks: Vec<Arc<Block>>,
    /// Block and statistic of it, by name.
    order: Vec<(u32, u32)>,
    texts: Vec<Arc<Text>>,
    /// Those with labels of their own, sorted by family and labels.
    labelled: Vec<LabelledSample>,
    /// How many values were read.
    #[cfg(test)]
    pub(super) reads: std::sync::atomic::AtomicUsize,
}

impl Snapshot {
    /// With `used_only` those alone that were ever counted or set: the others of a prefix, which may have blocks that were,
    /// add nothing to them.
    pub(super) fn new(
        mut blocks: Vec<Arc<Block>>,
        mut texts: Vec<Arc<Text>>,
        labelled: Vec<LabelledSample>,
        used_only: bool,
    ) -> Snapshot {
        blocks.retain(|block| !used_only || !block.is_untouched());
        blocks.sort_by(|a, b| a.prefix().cmp(b.prefix()));
        texts.sort_by(|a, b| a.name().cmp(b.name()));
        let mut sorted: HashMap<*const StatDef, Vec<u32>> = HashMap::new();
        let most = if used_only { 0 } else { blocks.iter().map(|block| block.defs().len()).sum() };
        let mut order = Vec::with_capacity(most);
        for (index, block) in blocks.iter().enumerate() {
            let defs = block.defs();
            let by_name = sorted.entry(defs.as_ptr()).or_insert_with(|| by_name(defs));
            let is_wanted = |def: &StatDef| block.shows(def) && (!used_only || block.is_used(def));
            let shown = by_name.iter().filter(|at| block.def(**at).is_some_and(is_wanted));
            order.extend(shown.map(|def| (index as u32, *def)));
            order.extend(block.code_indices().map(|def| (index as u32, def)));
        }
        let mut snapshot = Snapshot {
            blocks,
            order,
            texts,
            labelled,
            #[cfg(test)]
            reads: std::sync::atomic::AtomicUsize::new(0),
        };
        snapshot.sort();
        snapshot
    }

    /// Blocks are in order already, but one may have its prefix inside another's (`http.a.` and `http.a.b.`): those stand
    /// side by side, and their names are mixed among themselves alone.
    fn sort(&mut self) {
        let mut order = std::mem::take(&mut self.order);
        let prefix =
            |(block, _): &(u32, u32)| self.blocks.get(*block as usize).map_or("", |block| block.prefix());
        let mut rest = &mut order[..];
        while let Some(first) = rest.first() {
            let outer = prefix(first);
            let inside = rest.partition_point(|at| prefix(at).starts_with(outer));
            let (group, others) = rest.split_at_mut(inside);
            group.sort_by(|a, b| self.compare(*a, *b));
            rest = others;
        }
        self.order = order;
    }

    fn at(&self, (block, def): (u32, u32)) -> Option<(&Block, &StatDef)> {
        let block = self.blocks.get(block as usize)?;
        Some((block, block.def(def)?))
    }

    fn compare(&self, a: (u32, u32), b: (u32, u32)) -> Ordering {
        let (Some((one, first)), Some((other, second))) = (self.at(a), self.at(b)) else {
            return Ordering::Equal;
        };
        if a.0 == b.0 {
            return first.name.cmp(second.name);
        }
        // A cluster's breakers have prefixes inside its own.
        match (one.prefix().strip_prefix(other.prefix()), other.prefix().strip_prefix(one.prefix())) {
            (Some(inside), _) => joined_cmp(inside, first.name, second.name),
            (None, Some(inside)) => joined_cmp(inside, second.name, first.name).reverse(),
            (None, None) => one.prefix().cmp(other.prefix()),
        }
    }

    /// Where each name begins, in order. Blocks of one prefix (an old and a new generation of a resource) have
    /// the same names side by side.
    pub(super) fn names(&self) -> impl Iterator<Item = usize> {
        let same = |at: usize| {
            let pair = (at.checked_sub(1).and_then(|before| self.order.get(before)), self.order.get(at));
            matches!(pair, (Some(a), Some(b)) if self.compare(*a, *b) == Ordering::Equal)
        };
        (0..self.order.len()).filter(move |at| !same(*at))
    }

    /// The texts, in the order of their names.
    pub fn texts(&self) -> &[Arc<Text>] {
        &self.texts
    }

    /// Whether what is at `at` was ever counted or set, in any block of the prefix.
    pub(super) fn is_used(&self, at: usize) -> bool {
        let Some(first) = self.order.get(at) else { return false };
        let same = self.order.iter().skip(at).take_while(|other| self.compare(*first, **other).is_eq());
        same.filter_map(|other| self.at(*other)).any(|(block, def)| block.is_used(def))
    }

    /// Puts the name at `at` into `name` and answers its value, that of all blocks of the prefix together.
    pub(super) fn read(&self, at: usize, name: &mut String) -> Option<Value> {
        self.name(at, name)?;
        self.value(at)
    }

    /// Puts the name at `at` into `name` and answers what it is the name of.
    pub(super) fn name(&self, at: usize, name: &mut String) -> Option<Kind> {
        let (block, def) = self.at(*self.order.get(at)?)?;
        name.clear();
        name.push_str(block.prefix());
        name.push_str(def.name);
        Some(def.kind)
    }

    /// The value at `at`, that of all blocks of the prefix together.
    pub(super) fn value(&self, at: usize) -> Option<Value> {
        #[cfg(test)]
        self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let first = *self.order.get(at)?;
        let (block, def) = self.at(first)?;
        let mut value = block.value(def);
        let more = self.order.iter().skip(at + 1);
        for (block, def) in more
            .take_while(|other| self.compare(first, **other) == Ordering::Equal)
            .filter_map(|other| self.at(*other))
        {
            value.add(&block.value(def));
        }
        Some(value)
    }

    /// Statistics with labels of their own, sorted by family and labels.
    pub fn labelled(&self) -> &[LabelledSample] {
        &self.labelled
    }

    /// Visits every statistic without labels of its own, with its full name.
    pub fn each(&self, mut visit: impl FnMut(&str, &Value)) {
        let mut name = String::new();
        for at in self.names() {
            if let Some(value) = self.read(at, &mut name) {
                visit(&name, &value);
            }
        }
    }
}

/// One statistic with its full name.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Prefix and name, such as `cluster.a.upstream_rq_total`.
    pub name: String,
    /// Its value.
    pub value: Value,
}

/// How a name that is of two parts compares to another one; they are put together only in thought.
fn joined_cmp(first: &str, rest: &str, other: &str) -> Ordering {
    let other = other.as_bytes();
    let (begin, end) = other.split_at(first.len().min(other.len()));
    first.as_bytes().cmp(begin).then_with(|| rest.as_bytes().cmp(end))
}

/// Positions of definitions in the order of their names.
fn by_name(defs: &[StatDef]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..defs.len() as u32).collect();
    order.sort_by_key(|index| defs.get(*index as usize).map(|def| def.name));
    order
}

impl Value {
    /// Adds a value of the same kind; one of another kind changes nothing.
    pub fn add(&mut self, other: &Value) {
        match (self, other) {
            (Value::Counter(a), Value::Counter(b)) | (Value::Gauge(a), Value::Gauge(b)) => {
                *a = a.saturating_add(*b);
            }
            (Value::Histogram(a), Value::Histogram(b)) => {
                a.below.iter_mut().zip(b.below).for_each(|(a, b)| *a += b);
                a.count += b.count;
                a.sum += b.sum;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Registry;
    use super::*;

    crate::stat_block! {
        /// For the test.
        pub struct Outer { counters: [zebra, ant], gauges: [], histograms: [] }
    }
    crate::stat_block! {
        /// For the test.
        pub struct Inner { counters: [b], gauges: [], histograms: [] }
    }

    #[test]
    fn names_are_sorted_over_nested_prefixes_and_generations_add_up() {
        let registry = Registry::new();
        let (old, new) = (Outer::new(&registry, "x.a."), Outer::new(&registry, "x.a."));
        let _inner =
            (Inner::new(&registry, "x.a.m."), Inner::new(&registry, "x.b."), Inner::new(&registry, "w."));
        old.ant().inc();
        new.ant().add(2);
        let mut seen = Vec::new();
        registry.snapshot().each(|name, value| seen.push((name.to_owned(), *value)));
        let names: Vec<&str> = seen.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["w.b", "x.a.ant", "x.a.m.b", "x.a.zebra", "x.b.b"]);
        assert_eq!(seen[1].1, Value::Counter(3));
        // What nobody has counted is left out before anything is sorted.
        let mut used = Vec::new();
        registry.used().each(|name, value| used.push((name.to_owned(), *value)));
        assert_eq!(used, [("x.a.ant".to_owned(), Value::Counter(3))]);
        assert_eq!(registry.used().order.len(), 2, "of two generations");
    }

    #[test]
    fn parts_compare_as_what_they_are_parts_of() {
        let all = ["", "a", "ab", "b", "ba", "m.", "m.b", "m.ba", "zebra"];
        for first in all {
            for rest in all {
                for other in all {
                    let whole = format!("{first}{rest}");
                    assert_eq!(joined_cmp(first, rest, other), whole.as_str().cmp(other), "{whole} {other}");
                }
            }
        }
    }
}
