//! Counts of the last seconds, for all workers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Parts of a window: each counts that much of its time.
const PARTS: usize = 30;

/// Requests and successes of a window of time, in parts that are begun anew as time goes on.
///
/// A part is one number, so that no lock is needed: the period that it counts for, its requests and its successes.
pub(super) struct Window {
    began: Instant,
    part: Duration,
    parts: [AtomicU64; PARTS],
}

/// What a window has seen.
pub(super) struct Counts {
    pub(super) total: f64,
    pub(super) successes: f64,
    /// Requests a second.
    pub(super) rps: f64,
}

/// Bits of a count; one that is full counts no further.
const BITS: u32 = 22;
const FULL: u64 = (1 << BITS) - 1;

impl Window {
    /// Of so much time, at least a second.
    pub(super) fn new(window: Duration, now: Instant) -> Window {
        let part = window.max(Duration::from_secs(1)) / PARTS as u32;
        Window { began: now, part, parts: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// The period that is now, from 1: in 20 bits, so that an old part is taken for a new one after a million periods of
    /// silence only.
    fn period(&self, now: Instant) -> u64 {
        let periods = now.saturating_duration_since(self.began).as_nanos() / self.part.as_nanos().max(1);
        periods as u64 + 1
    }

    pub(super) fn add(&self, success: bool, now: Instant) {
        let period = self.period(now);
        let Some(part) = self.parts.get(period as usize % PARTS) else { return };
        let mark = (period & 0xf_ffff) << (2 * BITS);
        let next = |value: u64| {
            let (mut total, mut successes) = match value >> (2 * BITS) == mark >> (2 * BITS) {
                true => ((value >> BITS) & FULL, value & FULL),
                false => (0, 0),
            };
            if total < FULL {
                (total, successes) = (total + 1, successes + u64::from(success));
            }
            Some(mark | total << BITS | successes)
        };
        let _ = part.fetch_update(Relaxed, Relaxed, next);
    }

    pub(super) fn counts(&self, now: Instant) -> Counts {
        let period = self.period(now);
        let (mut total, mut successes) = (0, 0);
        for part in &self.parts {
            let value = part.load(Relaxed);
            let age = period.wrapping_sub(value >> (2 * BITS)) & 0xf_ffff;
            if value != 0 && age < PARTS as u64 {
                total += (value >> BITS) & FULL;
                successes += value & FULL;
            }
        }
        let seconds = (self.part * PARTS as u32).as_secs_f64();
        Counts { total: total as f64, successes: successes as f64, rps: total as f64 / seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let start = Instant::now();
        let window = Window::new(Duration::from_secs(30), start);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        (0..10).for_each(|n| window.add(n % 2 == 0, at(0)));
        window.add(true, at(20));
        let seen = |seconds| {
            let counts = window.counts(at(seconds));
            (counts.total, counts.successes)
        };
        assert_eq!((seen(20), seen(29), seen(30)), ((11.0, 6.0), (11.0, 6.0), (1.0, 1.0)));
        assert_eq!(seen(60), (0.0, 0.0));
        // The place of a part that is over is taken by the next.
        window.add(false, at(60));
        assert_eq!((seen(60), window.counts(at(60)).rps), ((1.0, 0.0), 1.0 / 30.0));
    }

    #[test]
    fn all_workers_count_together() {
        let start = Instant::now();
        let window = Window::new(Duration::from_secs(30), start);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let window = &window;
                scope.spawn(move || (0..1000).for_each(|_| window.add(worker < 2, start)));
            }
        });
        let counts = window.counts(start);
        assert_eq!((counts.total, counts.successes), (4000.0, 2000.0));
    }
}
