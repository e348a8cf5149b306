//! Earliest deadline first: weighted turns (source/common/upstream/edf_scheduler.h).

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A queue of indexes that come up in proportion to their weights.
pub(super) struct Edf {
    heap: BinaryHeap<Entry>,
    order: u64,
}

/// An index in the queue. While its weight stays the same, deadlines are multiples of one over it, counted
/// from `base`: adding them up would drift and spoil ties.
struct Entry {
    base: f64,
    turns: f64,
    weight: f64,
    deadline: f64,
    order: u64,
    index: usize,
}

impl Edf {
    /// Queues every index with a weight above zero.
    pub(super) fn new(weights: impl IntoIterator<Item = f64>) -> Edf {
        let mut edf = Edf { heap: BinaryHeap::new(), order: 0 };
        for (index, weight) in weights.into_iter().enumerate() {
            edf.push(index, weight, 0.0, 1.0);
        }
        edf
    }

    /// A queue that has already given a random number of turns, so that workers do not move in step.
    pub(super) fn started(weights: impl IntoIterator<Item = f64, IntoIter: Clone>) -> Edf {
        let weights = weights.into_iter();
        let mut edf = Edf::new(weights.clone());
        let all: Vec<f64> = weights.collect();
        for _ in 0..fastrand::usize(..all.len().max(1)) {
            edf.pick(|i| all.get(i).copied().unwrap_or_default());
        }
        edf
    }

    /// The next index; it is queued again with the weight it has now.
    pub(super) fn pick(&mut self, weight: impl FnOnce(usize) -> f64) -> Option<usize> {
        let entry = self.heap.pop()?;
        let weight = weight(entry.index);
        if weight == entry.weight {
            self.push(entry.index, weight, entry.base, entry.turns + 1.0);
        } else {
            self.push(entry.index, weight, entry.deadline, 1.0);
        }
        Some(entry.index)
    }

    fn push(&mut self, index: usize, weight: f64, base: f64, turns: f64) {
        if weight > 0.0 {
            let deadline = base + turns / weight;
            self.heap.push(Entry { base, turns, weight, deadline, order: self.order, index });
            self.order += 1;
        }
    }
}

impl Ord for Entry {
    /// The heap gives its greatest: the earliest deadline, then the first queued.
    fn cmp(&self, other: &Entry) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_follow_the_weights() {
        let weights = [3.0, 1.0, 0.0];
        let mut edf = Edf::new(weights);
        let order: Vec<usize> = (0..8).filter_map(|_| edf.pick(|i| weights[i])).collect();
        assert_eq!(order, [0, 0, 1, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn an_empty_queue_gives_nothing() {
        assert_eq!(Edf::new([]).pick(|_| 1.0), None);
        assert_eq!(Edf::started([0.0]).pick(|_| 1.0), None);
    }
}
