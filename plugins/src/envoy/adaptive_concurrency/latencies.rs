//! Latencies of many requests, in few numbers that all workers add to.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Parts of each power of two: values are told apart to about six of a hundred.
const PARTS: usize = 16;

/// Powers of two of microseconds: up to an hour.
const POWERS: usize = 32;

/// A distribution.
pub(super) struct Latencies {
    counts: Box<[AtomicU32]>,
}

impl Latencies {
    pub(super) fn new() -> Latencies {
        Latencies { counts: (0..POWERS * PARTS).map(|_| AtomicU32::new(0)).collect() }
    }

    pub(super) fn add(&self, micros: u64) {
        if let Some(count) = self.counts.get(place(micros)) {
            count.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(count.load(Relaxed))).sum()
    }

    /// The value that this share of all is not above; `None` of none. All are forgotten.
    pub(super) fn take(&self, share: f64) -> Option<u64> {
        let counts: Vec<u64> = self.counts.iter().map(|count| u64::from(count.swap(0, Relaxed))).collect();
        let all: u64 = counts.iter().sum();
        let wanted = ((all as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let found = counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.map(value)
    }
}

/// Values below [`PARTS`] have a place each; above, each power of two has as many.
fn place(micros: u64) -> usize {
    let micros = micros.min((1 << POWERS) - 1);
    let power = (u64::BITS - micros.leading_zeros()).saturating_sub(PARTS.ilog2() + 1) as usize;
    power * PARTS + (micros >> power) as usize
}

/// The middle of a place.
fn value(place: usize) -> u64 {
    let power = (place / PARTS).saturating_sub(1);
    let part = place - power * PARTS;
    ((part as u64) << power) + ((1 << power) >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_about_as_they_were() {
        for micros in [0, 1, 15, 16, 17, 100, 999, 1000, 123_456, 10_000_000, 3_599_999_999] {
            let latencies = Latencies::new();
            latencies.add(micros);
            let found = latencies.take(0.5);
            let error = found.map(|found| found.abs_diff(micros) as f64 / micros.max(1) as f64);
            assert!(error.is_some_and(|error| error < 0.07), "{micros}: {found:?}");
            assert_eq!((latencies.len(), latencies.take(0.5)), (0, None));
        }
    }

    #[test]
    fn percentiles_are_those_of_all() {
        let latencies = Latencies::new();
        (1..=100).for_each(|n| latencies.add(n * 1000));
        assert_eq!(latencies.len(), 100);
        let median = latencies.take(0.5).unwrap_or_default();
        assert!((47_000..=53_000).contains(&median), "{median}");
    }
}
