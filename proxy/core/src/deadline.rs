//! Moments that a configured time leads to.
//!
//! A configuration may hold any number for a time, and adding one that the clock can't tell to a moment is a panic: whoever adds
//! a configured time to one does it by [`after`].

use std::time::{Duration, Instant};

/// Longer than any connection lasts.
pub const YEAR: Duration = Duration::from_secs(86400 * 365);

/// A moment of a clock: the standard library's, or Tokio's, which tests may stop.
pub trait Moment: Copy {
    /// So much later, if the clock can tell it.
    fn later(self, by: Duration) -> Option<Self>;
}

impl Moment for Instant {
    fn later(self, by: Duration) -> Option<Instant> {
        self.checked_add(by)
    }
}

impl Moment for tokio::time::Instant {
    fn later(self, by: Duration) -> Option<tokio::time::Instant> {
        self.checked_add(by)
    }
}

/// `limit` after `start`; a limit beyond what the clock can tell is a year.
pub fn after<M: Moment>(start: M, limit: Duration) -> M {
    start.later(limit).or_else(|| start.later(YEAR)).unwrap_or(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_clock_can_tell_is_a_year() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(after(start, second), start + second);
        assert_eq!(after(start, Duration::MAX), start + YEAR);
        assert_eq!(after(start, Duration::from_secs(i64::MAX.unsigned_abs())), start + YEAR);
        let start = tokio::time::Instant::now();
        assert_eq!((after(start, second), after(start, Duration::MAX)), (start + second, start + YEAR));
    }
}
