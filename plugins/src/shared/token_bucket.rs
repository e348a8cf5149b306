//! Token buckets that fill continuously, shared by all workers without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A bucket of at most `max` tokens that fills at an even rate (Envoy's AtomicTokenBucketImpl): all it keeps is the
/// moment at which it would have been empty.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    max: f64,
    /// Tokens a second.
    rate: f64,
    began: Instant,
    /// Seconds since `began`, as the bits of a float; below zero for one that was full when it was made.
    empty_at: AtomicU64,
}

impl TokenBucket {
    /// A full bucket of `max` tokens that gains `per_fill` of them every `interval`.
    pub(crate) fn new(max: u32, per_fill: u32, interval: Duration, now: Instant) -> TokenBucket {
        let (max, rate) = (f64::from(max), f64::from(per_fill) / interval.as_secs_f64().max(1e-9));
        let empty_at = AtomicU64::new((-max / rate).to_bits());
        TokenBucket { max, rate, began: now, empty_at }
    }

    /// A bucket for what goes on at an even rate of so many tokens a second: it holds those of a second, and at first those of
    /// `first`.
    pub(crate) fn paced(rate: f64, first: Duration, now: Instant) -> TokenBucket {
        let first = first.as_secs_f64().min(1.0);
        TokenBucket { max: rate, rate, began: now, empty_at: AtomicU64::new((-first).to_bits()) }
    }

    /// Takes `tokens` whether they are there or not, and tells how long it takes until they are.
    pub(crate) fn reserve(&self, tokens: f64, now: Instant) -> Duration {
        let now = self.seconds(now);
        let next = |bits: u64| {
            let there = ((now - f64::from_bits(bits)) * self.rate).min(self.max);
            Some((now - (there - tokens) / self.rate).to_bits())
        };
        let before = match self.empty_at.fetch_update(Relaxed, Relaxed, next) {
            Ok(before) | Err(before) => f64::from_bits(before),
        };
        let left = ((now - before) * self.rate).min(self.max) - tokens;
        Duration::try_from_secs_f64((-left / self.rate).max(0.0)).unwrap_or(Duration::MAX)
    }

    /// Takes `tokens` if there are so many.
    pub(crate) fn take(&self, tokens: f64, now: Instant) -> bool {
        let now = self.seconds(now);
        let next = |bits: u64| {
            let there = self.tokens(f64::from_bits(bits), now);
            // Rounding must not cost a token.
            (there >= tokens - 1e-6).then(|| (now - (there - tokens).max(0.0) / self.rate).to_bits())
        };
        self.empty_at.fetch_update(Relaxed, Relaxed, next).is_ok()
    }

    /// Tokens that are there, parts of one among them.
    pub(crate) fn left(&self, now: Instant) -> f64 {
        self.tokens(f64::from_bits(self.empty_at.load(Relaxed)), self.seconds(now))
    }

    /// The most that it holds.
    pub(crate) fn max(&self) -> f64 {
        self.max
    }

    /// How long it takes until there is a whole token.
    pub(crate) fn next_token(&self, now: Instant) -> Duration {
        let missing = (1.0 - self.left(now)).max(0.0);
        Duration::try_from_secs_f64(missing / self.rate).unwrap_or(Duration::MAX)
    }

    fn tokens(&self, empty_at: f64, now: f64) -> f64 {
        ((now - empty_at) * self.rate).clamp(0.0, self.max)
    }

    fn seconds(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.began).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_evenly_and_no_more_than_fit() {
        let start = Instant::now();
        let bucket = TokenBucket::new(2, 1, Duration::from_secs(10), start);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(bucket.take(1.0, at(0)) && bucket.take(1.0, at(0)) && !bucket.take(1.0, at(0)));
        assert_eq!(bucket.next_token(at(0)).as_secs_f64().round(), 10.0);
        assert!(!bucket.take(1.0, at(9)) && (bucket.left(at(5)) - 0.5).abs() < 1e-6);
        assert!(bucket.take(1.0, at(11)) && !bucket.take(1.0, at(11)));
        assert_eq!((bucket.left(at(1000)), bucket.max()), (2.0, 2.0));
    }

    #[test]
    fn what_is_reserved_is_waited_for_in_turn() {
        let start = Instant::now();
        let bucket = TokenBucket::paced(1000.0, Duration::from_millis(50), start);
        let wait = |tokens: f64, at: u64| {
            bucket.reserve(tokens, start + Duration::from_millis(at)).as_secs_f64() * 1000.0
        };
        let waits = [wait(50.0, 0), wait(100.0, 0), wait(100.0, 0), wait(0.0, 100), wait(500.0, 1100)];
        assert_eq!(waits.map(f64::round), [0.0, 100.0, 200.0, 100.0, 0.0]);
        assert_eq!([wait(2000.0, 9000), wait(1.0, 9000)].map(f64::round), [1000.0, 1001.0]);
    }

    #[test]
    fn workers_together_take_no_more_than_there_is() {
        let (start, taken) = (Instant::now(), AtomicU64::new(0));
        let bucket = TokenBucket::new(1000, 1, Duration::from_secs(3600), start);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let took = (0..1000).filter(|_| bucket.take(1.0, start)).count();
                    taken.fetch_add(took as u64, Relaxed);
                });
            }
        });
        // Rounding may cost a part of one.
        assert!((999..=1000).contains(&taken.load(Relaxed)), "{taken:?}");
    }
}
