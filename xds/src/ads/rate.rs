//! How many requests a control plane may be sent (`rate_limit_settings`).

use std::time::{Duration, Instant};

/// A bucket of tokens, one for a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Tokens that a full bucket has (`max_tokens`), 100 by default.
    pub burst: u32,
    /// Tokens that come in a second (`fill_rate`), 10 by default.
    pub fill_rate: f64,
}

impl Default for RateLimit {
    fn default() -> RateLimit {
        RateLimit { burst: 100, fill_rate: 10.0 }
    }
}

/// What is left of one at a time.
#[derive(Debug)]
pub(super) struct Bucket {
    limit: RateLimit,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(limit: RateLimit, now: Instant) -> Bucket {
        Bucket { limit, tokens: f64::from(limit.burst), at: now }
    }

    /// Whether there is a token to [`spend`](Bucket::spend).
    pub(super) fn has_token(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + since * self.limit.fill_rate).min(f64::from(self.limit.burst));
        self.at = now;
        self.tokens >= 1.0
    }

    /// Takes the token that is there.
    pub(super) fn spend(&mut self) {
        self.tokens = (self.tokens - 1.0).max(0.0);
    }

    /// When there is a token again.
    pub(super) fn next(&self) -> Option<Instant> {
        let missing = (1.0 - self.tokens).max(0.0) / self.limit.fill_rate;
        // A moment more, lest the sum of the parts be less than a token.
        let wait = Duration::try_from_secs_f64(missing).ok()?.saturating_add(Duration::from_millis(1));
        self.at.checked_add(wait)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_burst_is_followed_by_the_rate() {
        let mut now = Instant::now();
        let mut bucket = Bucket::new(RateLimit { burst: 3, fill_rate: 10.0 }, now);
        let take = |bucket: &mut Bucket, now| {
            let there = bucket.has_token(now);
            assert_eq!(bucket.has_token(now), there, "a look takes none");
            if there {
                bucket.spend();
            }
            there
        };
        assert_eq!((0..5).filter(|_| take(&mut bucket, now)).count(), 3);
        let next = bucket.next().unwrap();
        assert!(next > now && next <= now + Duration::from_millis(102), "{:?}", next - now);
        for _ in 0..10 {
            now = bucket.next().unwrap();
            assert!(take(&mut bucket, now) && !take(&mut bucket, now));
        }
        now += Duration::from_secs(3600);
        assert_eq!((0..5).filter(|_| take(&mut bucket, now)).count(), 3);
    }
}
