//! Counters by key, shared by all workers.

use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// How windows follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Window {
    /// From the first request of a key on.
    #[default]
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

const SHARDS: usize = 16;

/// Keys a shard keeps at most.
const MAX_KEYS: usize = 65_536;

/// A few maps, each with a lock of its own: workers seldom meet.
pub(super) struct Counters {
    hasher: RandomState,
    shards: [Mutex<HashMap<Box<[u8]>, Entry>>; SHARDS],
}

struct Entry {
    /// When the current window began.
    start: Instant,
    window: Duration,
    current: u64,
    /// Count of the window before (sliding).
    previous: u64,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters { hasher: RandomState::new(), shards: Default::default() }
    }
}

impl Counters {
    /// Takes one of `limit` in `window` from the counter of `key`.
    pub(super) fn take(&self, kind: Window, key: &[u8], limit: u64, window: Duration, now: Instant) -> Taken {
        let shard = &self.shards[self.hasher.hash_one(key) as usize % SHARDS];
        let mut entries = shard.lock();
        if !entries.contains_key(key) {
            make_room(&mut entries, now);
            entries.insert(key.into(), Entry { start: now, window, current: 0, previous: 0 });
        }
        let Some(entry) = entries.get_mut(key) else {
            return Taken { allowed: true, remaining: limit.saturating_sub(1), reset: window };
        };
        match kind {
            Window::Fixed => entry.take_fixed(limit, now),
            Window::Sliding => entry.take_sliding(limit, now),
        }
    }
}

impl Entry {
    fn take_fixed(&mut self, limit: u64, now: Instant) -> Taken {
        if now.saturating_duration_since(self.start) >= self.window {
            (self.start, self.current) = (now, 0);
        }
        let allowed = self.current < limit;
        self.current += u64::from(allowed);
        Taken { allowed, remaining: limit.saturating_sub(self.current), reset: self.left(now) }
    }

    fn take_sliding(&mut self, limit: u64, now: Instant) -> Taken {
        let windows = now.saturating_duration_since(self.start).as_nanos() / self.window.as_nanos().max(1);
        if windows > 0 {
            self.previous = if windows == 1 { self.current } else { 0 };
            self.current = 0;
            self.start += self.window.saturating_mul(u32::try_from(windows).unwrap_or(u32::MAX));
        }
        let left = self.left(now);
        let share = left.as_secs_f64() / self.window.as_secs_f64();
        let estimated = self.previous as f64 * share + self.current as f64;
        let allowed = estimated < limit as f64;
        self.current += u64::from(allowed);
        let remaining = (limit as f64 - estimated - f64::from(u8::from(allowed))).max(0.0);
        Taken { allowed, remaining: remaining as u64, reset: left }
    }

    fn left(&self, now: Instant) -> Duration {
        self.window.saturating_sub(now.saturating_duration_since(self.start))
    }
}

/// A full shard drops what is over; if nothing is, it forgets one key rather than grow without end.
fn make_room(entries: &mut HashMap<Box<[u8]>, Entry>, now: Instant) {
    if entries.len() < MAX_KEYS {
        return;
    }
    entries.retain(|_, e| now.saturating_duration_since(e.start) < e.window * 2);
    if entries.len() >= MAX_KEYS
        && let Some(key) = entries.keys().next().cloned()
    {
        entries.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn fixed_windows_begin_with_the_first_request() {
        let (counters, start) = (Counters::default(), Instant::now());
        let take = |s: u64| {
            let taken = counters.take(Window::Fixed, b"k", 2, WINDOW, start + Duration::from_secs(s));
            (taken.allowed, taken.remaining, taken.reset.as_secs())
        };
        assert_eq!([take(0), take(3), take(9)], [(true, 1, 10), (true, 0, 7), (false, 0, 1)]);
        assert_eq!(take(10), (true, 1, 10));
    }

    #[test]
    fn sliding_windows_count_what_is_near() {
        let (counters, start) = (Counters::default(), Instant::now());
        let take = |ms: u64| {
            counters.take(Window::Sliding, b"k", 4, WINDOW, start + Duration::from_millis(ms)).allowed
        };
        assert_eq!([take(0), take(0), take(0), take(0), take(1)], [true, true, true, true, false]);
        // 5 s into the next window half of the four count: two are left.
        assert_eq!([take(15_000), take(15_000), take(15_000)], [true, true, false]);
        assert!(take(60_000));
    }

    #[test]
    fn keys_do_not_grow_without_end() {
        let mut entries = HashMap::new();
        let now = Instant::now();
        for i in 0..MAX_KEYS as u64 {
            let entry = Entry { start: now, window: WINDOW, current: 0, previous: 0 };
            entries.insert(i.to_le_bytes()[..].into(), entry);
        }
        make_room(&mut entries, now);
        assert_eq!(entries.len(), MAX_KEYS - 1);
        entries.insert(b"one more"[..].into(), Entry { start: now, window: WINDOW, current: 0, previous: 0 });
        make_room(&mut entries, now + WINDOW * 3);
        assert!(entries.is_empty());
    }
}
