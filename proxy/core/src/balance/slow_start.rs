//! Slow start: a new host's weight grows with its age.

use crate::cluster::Host;
use std::time::{Duration, Instant};

/// Window and shape of the growth (common/v3 SlowStartConfig).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct SlowStart {
    window: Duration,
    aggression: f64,
    least: f64,
}

impl SlowStart {
    /// From window, aggression and minimum weight percent.
    pub(super) fn new((window, aggression, least_percent): (Duration, f64, f64)) -> SlowStart {
        SlowStart { window, aggression, least: least_percent / 100.0 }
    }

    /// What the host's weight is multiplied with at `now`.
    pub(super) fn factor(&self, host: &Host, now: Instant) -> f64 {
        let age = host.age(now);
        if age >= self.window {
            return 1.0;
        }
        let share = age.max(Duration::from_millis(1)).as_secs_f64() / self.window.as_secs_f64();
        // Without any the host has the least until the window ends.
        let grown = if self.aggression > 0.0 { share.powf(1.0 / self.aggression) } else { 0.0 };
        grown.max(self.least)
    }
}

/// The factor of a host; 1 without slow start.
pub(super) fn factor(config: Option<&SlowStart>, host: &Host) -> f64 {
    config.map_or(1.0, |c| c.factor(host, Instant::now()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::testing::hosts;
    use proptest::prelude::*;

    #[test]
    fn weight_grows_over_the_window() {
        let host = hosts(&[1]).remove(0);
        let start = Instant::now();
        host.start(start);
        let at = |slow: SlowStart, ms| slow.factor(&host, start + Duration::from_millis(ms));
        let linear = SlowStart::new((Duration::from_secs(10), 1.0, 10.0));
        assert_eq!((at(linear, 0), at(linear, 5_000), at(linear, 10_000)), (0.1, 0.5, 1.0));
        let eager = SlowStart::new((Duration::from_secs(10), 2.0, 10.0));
        assert!(at(eager, 5_000) > 0.7);
        let none = SlowStart::new((Duration::from_secs(10), 0.0, 10.0));
        assert_eq!((at(none, 5_000), at(none, 9_999), at(none, 10_000)), (0.1, 0.1, 1.0));
        host.start(start + Duration::from_secs(20));
        assert_eq!((at(linear, 20_000), at(linear, 25_000)), (0.1, 0.5), "it was ill and is well again");
    }

    proptest! {
        /// Envoy's formula, whatever is configured; it never falls, and ends with the window.
        #[test]
        fn the_factor_is_envoys(
            window in 1u64..100_000,
            aggression in 0.05f64..20.0,
            percent in 0.0f64..100.0,
            ages in proptest::collection::vec(0u64..200_000, 2),
        ) {
            let host = hosts(&[1]).remove(0);
            let start = Instant::now();
            host.start(start);
            let slow = SlowStart::new((Duration::from_millis(window), aggression, percent));
            let at = |age| slow.factor(&host, start + Duration::from_millis(age));
            for age in &ages {
                let share = (*age).max(1) as f64 / window as f64;
                let grown = share.powf(1.0 / aggression).max(percent / 100.0);
                let expected = if *age >= window { 1.0 } else { grown };
                prop_assert!((at(*age) - expected).abs() < 1e-9, "{} of {}", at(*age), expected);
            }
            let (early, late) = (ages[0].min(ages[1]), ages[0].max(ages[1]));
            prop_assert!(at(early) <= at(late));
        }
    }
}
