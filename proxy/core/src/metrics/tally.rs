//! A distribution that is kept where it is counted, for values of [`Series`](super::series::Series).

use super::{BOUNDS, BUCKETS, Distribution};

/// Counts over Envoy's fixed buckets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Observations up to the bound of each bucket and above that of the one before.
    buckets: [u64; BUCKETS.len()],
    /// Those above all bounds.
    above: u64,
    sum: u64,
}

impl Tally {
    /// Counts one observation.
    #[inline]
    pub fn record(&mut self, value: u64) {
        let place = BOUNDS.iter().zip(&mut self.buckets).find(|(bound, _)| value <= **bound);
        *place.map_or(&mut self.above, |(_, count)| count) += 1;
        self.sum += value;
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Tally) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(own, other)| *own += other);
        self.above += other.above;
        self.sum += other.sum;
    }

    /// What was observed.
    pub fn distribution(&self) -> Distribution {
        let mut seen = Distribution { sum: self.sum, ..Distribution::default() };
        for (below, count) in seen.below.iter_mut().zip(self.buckets) {
            seen.count += count;
            *below = seen.count;
        }
        seen.count += self.above;
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_are_counted_up_to_the_bounds() {
        let (mut one, mut other) = (Tally::default(), Tally::default());
        [0, 1, 5, 7].into_iter().for_each(|value| one.record(value));
        other.record(u64::from(u32::MAX));
        one.add(&other);
        let seen = one.distribution();
        assert_eq!((seen.below[0], seen.below[1], seen.below[2], seen.below[3]), (1, 2, 3, 4));
        assert_eq!((seen.below[18], seen.count, seen.sum), (4, 5, 13 + u64::from(u32::MAX)));
    }
}
