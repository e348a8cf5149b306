//! How a window counts.

use crate::shared::counters::{Counter, Counters, Key, LONGEST, nanoseconds};
use serde::Deserialize;
use std::time::{Duration, Instant};

/// How windows follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Window {
    /// From the first request of a key on.
    Fixed,
    /// The window before counts by the share of it that is still near.
    Sliding,
}

/// What taking one came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Taken {
    pub(super) allowed: bool,
    /// Requests that are left in the window.
    pub(super) remaining: u64,
    /// Time until the window ends.
    pub(super) reset: Duration,
}

impl Window {
    /// Takes one of `limit` in `length` from the counter of `key`.
    pub(super) fn take(
        self,
        counters: &Counters,
        key: Key,
        limit: u64,
        length: Duration,
        now: Instant,
    ) -> Taken {
        let (now, length) = (counters.time(now), nanoseconds(length.min(LONGEST)).max(1));
        counters.change(key, now, |counter| match self {
            Window::Fixed => take_fixed(counter, limit, length, now),
            Window::Sliding => take_sliding(counter, limit, length, now),
        })
    }
}

fn take_fixed(counter: &mut Counter, limit: u64, length: u64, now: u64) -> Taken {
    if counter.until == 0 {
        counter.until = now + length;
    }
    let allowed = counter.count < limit;
    counter.count += u64::from(allowed);
    Taken {
        allowed,
        remaining: limit.saturating_sub(counter.count),
        reset: Duration::from_nanos(counter.until.saturating_sub(now)),
    }
}

/// A window that is over still counts during the next one, so a counter lasts two.
fn take_sliding(counter: &mut Counter, limit: u64, length: u64, now: u64) -> Taken {
    if counter.until == 0 {
        counter.until = now + 2 * length;
    } else if counter.until.saturating_sub(length) <= now {
        counter.until += length;
        (counter.before, counter.count) = (counter.count, 0);
    }
    let left = counter.until.saturating_sub(length).saturating_sub(now);
    let estimated = counter.before as f64 * (left as f64 / length as f64) + counter.count as f64;
    let allowed = estimated < limit as f64;
    counter.count += u64::from(allowed);
    let remaining = (limit as f64 - estimated - f64::from(u8::from(allowed))).max(0.0);
    Taken { allowed, remaining: remaining as u64, reset: Duration::from_nanos(left) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn fixed_windows_begin_with_the_first_request() {
        let (counters, start) = (Counters::default(), Instant::now());
        let take = |s: u64| {
            let now = start + Duration::from_secs(s);
            let taken = Window::Fixed.take(&counters, counters.key("k"), 2, WINDOW, now);
            (taken.allowed, taken.remaining, taken.reset.as_secs())
        };
        assert_eq!([take(0), take(3), take(9)], [(true, 1, 10), (true, 0, 7), (false, 0, 1)]);
        assert_eq!(take(10), (true, 1, 10));
    }

    #[test]
    fn sliding_windows_count_what_is_near() {
        let (counters, start) = (Counters::default(), Instant::now());
        let take = |ms: u64| {
            let now = start + Duration::from_millis(ms);
            Window::Sliding.take(&counters, counters.key("k"), 4, WINDOW, now).allowed
        };
        assert_eq!([take(0), take(0), take(0), take(0), take(1)], [true, true, true, true, false]);
        // 5 s into the next window half of the four count: two are left.
        assert_eq!([take(15_000), take(15_000), take(15_000)], [true, true, false]);
        assert!(take(60_000));
    }

    #[test]
    fn windows_of_any_length_count() {
        let (counters, now) = (Counters::default(), Instant::now());
        for (window, key) in [(Window::Fixed, 1), (Window::Sliding, 2)] {
            let take = || window.take(&counters, counters.key(key), 1, Duration::MAX, now).allowed;
            assert_eq!([take(), take()], [true, false]);
        }
    }
}
