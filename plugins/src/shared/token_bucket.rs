//! Token buckets that fill continuously, shared by all workers without a lock.

use sixfold_core::error::ConfigError;
use sixfold_xds_api::pb::envoy::r#type::v3::TokenBucket as ProtoBucket;
use sixfold_xds_api::values::{positive_duration, required, u32_or};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Buckets of Envoy's filters that hold anything fill no faster (`LocalRateLimiterImpl`).
const LEAST_INTERVAL: Duration = Duration::from_millis(50);

/// How much a bucket holds and how it fills.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate {
    /// The most tokens that it holds.
    pub(crate) max: u32,
    /// So many come at once, as the configuration says it; the bucket spreads them.
    per_fill: NonZeroU32,
    /// How often.
    interval: Duration,
}

impl Rate {
    /// As a message says it (type/v3/token_bucket.proto).
    ///
    /// # Errors
    /// It gains nothing, or more often than every 50 ms.
    pub(crate) fn of_message(value: &ProtoBucket) -> Result<Rate, ConfigError> {
        let ProtoBucket { max_tokens, tokens_per_fill, fill_interval } = value;
        required(fill_interval, "fill_interval")?;
        let interval = positive_duration(fill_interval, Duration::ZERO, "fill_interval")?;
        if *max_tokens > 0 && interval < LEAST_INTERVAL {
            return Err(ConfigError::field("fill_interval", "must be at least 50ms"));
        }
        let per_fill = NonZeroU32::new(u32_or(tokens_per_fill, 1));
        let per_fill =
            per_fill.ok_or_else(|| ConfigError::field("tokens_per_fill", "must be greater than 0"))?;
        Ok(Rate { max: *max_tokens, per_fill, interval })
    }

    /// A full bucket.
    pub(crate) fn bucket(self, now: Instant) -> TokenBucket {
        TokenBucket::new(self, now)
    }

    /// How long a token takes, in nanoseconds.
    pub(crate) fn token(self) -> f64 {
        self.interval.as_nanos() as f64 / f64::from(self.per_fill.get())
    }
}

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
    fn new(rate: Rate, now: Instant) -> TokenBucket {
        let (max, rate) = (f64::from(rate.max), 1e9 / rate.token().max(1.0));
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

    fn bucket(max: u32, seconds: u64, now: Instant) -> TokenBucket {
        Rate { max, per_fill: NonZeroU32::MIN, interval: Duration::from_secs(seconds) }.bucket(now)
    }

    /// One that gains nothing was never full, and let nothing pass.
    #[test]
    fn what_gains_nothing_is_no_bucket() {
        let read = |yaml: &str| {
            Rate::of_message(&crate::testing::read(yaml)).map(|rate| rate.max).map_err(|e| e.to_string())
        };
        for (yaml, expected) in [
            ("{max_tokens: 2, fill_interval: 1s}", Ok(2)),
            ("{max_tokens: 0, fill_interval: 0.01s}", Ok(0)),
            (
                "{max_tokens: 1, tokens_per_fill: 0, fill_interval: 1s}",
                Err("tokens_per_fill: must be greater than 0"),
            ),
            ("{max_tokens: 1}", Err("fill_interval: is missing")),
            ("{max_tokens: 0, fill_interval: 0s}", Err("fill_interval: must be longer than 0s")),
            ("{max_tokens: 1, fill_interval: 0.01s}", Err("fill_interval: must be at least 50ms")),
        ] {
            assert_eq!(read(yaml), expected.map_err(str::to_owned), "{yaml}");
        }
    }

    #[test]
    fn tokens_come_back_evenly_and_no_more_than_fit() {
        let start = Instant::now();
        let bucket = bucket(2, 10, start);
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
        let bucket = bucket(1000, 3600, start);
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
