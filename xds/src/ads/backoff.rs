//! How long to wait before the next stream.

use std::time::Duration;

/// Bounds of the waits between attempts to reach a control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffConfig {
    /// Upper bound of the first wait, 500 ms by default.
    pub base: Duration,
    /// Upper bound of every wait, 30 s by default.
    pub max: Duration,
}

impl Default for BackoffConfig {
    fn default() -> BackoffConfig {
        BackoffConfig { base: Duration::from_millis(500), max: Duration::from_secs(30) }
    }
}

/// Fully jittered exponential waits: any time from zero to a bound that doubles, so that a thousand clients of a
/// control plane that comes back do not come all at once (Envoy's `JitteredExponentialBackOffStrategy`).
#[derive(Debug)]
pub(super) struct Backoff {
    config: BackoffConfig,
    bound: Duration,
    random: fastrand::Rng,
}

impl Backoff {
    pub(super) fn new(config: BackoffConfig, random: fastrand::Rng) -> Backoff {
        Backoff { bound: config.base, config, random }
    }

    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.bound.mul_f64(self.random.f64());
        self.bound = (self.bound * 2).min(self.config.max);
        wait
    }

    /// The control plane has answered: the next outage begins with short waits.
    pub(super) fn reset(&mut self) {
        self.bound = self.config.base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_are_jittered_from_zero() {
        let config = BackoffConfig::default();
        let mut least = [Duration::MAX; 10];
        let mut most = [Duration::ZERO; 10];
        for seed in 0..500 {
            let mut backoff = Backoff::new(config, fastrand::Rng::with_seed(seed));
            for (least, most) in least.iter_mut().zip(&mut most) {
                let wait = backoff.next();
                *least = wait.min(*least);
                *most = wait.max(*most);
            }
            backoff.reset();
            assert!(backoff.next() < config.base);
        }
        let bounds =
            [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000, 30000].map(Duration::from_millis);
        for ((least, most), bound) in least.into_iter().zip(most).zip(bounds) {
            assert!(
                most < bound && most > bound.mul_f64(0.9) && least < bound.mul_f64(0.1),
                "{least:?}..{most:?}"
            );
        }
    }
}
