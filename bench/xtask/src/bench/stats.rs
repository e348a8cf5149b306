//! Medians with distribution-free intervals: a handful of runs on a shared machine is not normally distributed.

/// A median with an interval that holds the true median with at least 95 % probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    /// From order statistics: the narrowest symmetric pair of samples with enough coverage, which for fewer than
    /// nine samples is the smallest and the largest. None without samples.
    pub(super) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let cut = (0..sorted.len() / 2).rev().find(|cut| coverage(sorted.len(), *cut) >= 0.95).unwrap_or(0);
        let high = sorted.len().checked_sub(cut + 1)?;
        Some(Self { median: median(&sorted)?, low: *sorted.get(cut)?, high: *sorted.get(high)? })
    }

    /// The median and the interval with so many decimals; empty when there is none.
    pub(super) fn shown(self, digits: usize) -> String {
        if self.median.is_nan() {
            return String::new();
        }
        let Self { median, low, high } = self;
        format!("{median:.digits$} ({low:.digits$}-{high:.digits$})")
    }
}

/// The probability that the median lies between sample `cut` and sample `n - 1 - cut` of `n` sorted ones.
fn coverage(n: usize, cut: usize) -> f64 {
    let mut chosen = 1.0; // n over 0
    let mut tail = 0.0;
    for k in 0..=cut {
        tail += chosen;
        chosen *= (n - k) as f64 / (k + 1) as f64;
    }
    1.0 - 2.0 * tail / 2f64.powi(n as i32)
}

fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some((upper + *sorted.get(sorted.len() / 2 - 1)?) / 2.0)
}

/// The sample below which this share (0 to 1) of all samples lies. Sorts them. None without samples.
pub(super) fn quantile(samples: &mut [f64], share: f64) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    let last = samples.len().checked_sub(1)?;
    samples.get((share * last as f64).round() as usize).copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn seven_samples_need_their_whole_range_and_twenty_do_not() {
        let seven: Vec<f64> = (1..=7).map(f64::from).collect();
        assert_eq!(Estimate::of(&seven), Some(Estimate { median: 4.0, low: 1.0, high: 7.0 }));
        let twenty: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        // The usual table: ranks 6 and 15 of 20 hold the median with 95.9 %.
        assert_eq!(Estimate::of(&twenty), Some(Estimate { median: 10.5, low: 6.0, high: 15.0 }));
    }

    #[test]
    fn few_samples_are_no_error() {
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[3.0]), Some(Estimate { median: 3.0, low: 3.0, high: 3.0 }));
    }

    #[test]
    fn a_quantile_is_a_sample() {
        let mut samples: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(&mut samples, 0.99), Some(99.0));
        assert_eq!(quantile(&mut [], 0.5), None);
    }
}
