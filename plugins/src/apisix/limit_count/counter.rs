//! Counters by key, shared by all workers.

use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// How windows follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
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

const SHARDS: usize = 16;

/// Keys a shard keeps at most.
const MAX_KEYS: usize = 65_536;

/// A few maps, each with a lock of its own: workers seldom meet.
pub(super) struct Counters {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    entries: HashMap<Box<[u8]>, Entry>,
    /// When it was last looked through for what is over: at most once a second, however fast new keys come.
    swept: Option<Instant>,
}

const SWEEP: Duration = Duration::from_secs(1);

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
        let shard = &mut *shard.lock();
        if !shard.entries.contains_key(key) {
            shard.make_room(now);
            shard.entries.insert(key.into(), Entry { start: now, window, current: 0, previous: 0 });
        }
        let Some(entry) = shard.entries.get_mut(key) else {
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

impl Shard {
    /// When it is full it drops what is over; if nothing is, it forgets one key rather than grow without end.
    fn make_room(&mut self, now: Instant) {
        if self.entries.len() < MAX_KEYS {
            return;
        }
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP) {
            self.swept = Some(now);
            self.entries.retain(|_, e| now.saturating_duration_since(e.start) < e.window * 2);
        }
        if self.entries.len() >= MAX_KEYS
            && let Some(key) = self.entries.keys().next().cloned()
        {
            self.entries.remove(&key);
        }
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
        let now = Instant::now();
        let entry = |start| Entry { start, window: WINDOW, current: 0, previous: 0 };
        let keys = (0..MAX_KEYS as u64).map(|i| (i.to_le_bytes()[..].into(), entry(now)));
        let mut shard = Shard { entries: keys.collect(), swept: None };
        shard.make_room(now);
        assert_eq!(shard.entries.len(), MAX_KEYS - 1);
        let over = now + WINDOW * 3;
        shard.swept = Some(over);
        shard.entries.insert(b"one more"[..].into(), entry(now));
        shard.make_room(over);
        assert_eq!(shard.entries.len(), MAX_KEYS - 1, "it was looked through a moment ago");
        shard.entries.insert(b"another"[..].into(), entry(now));
        shard.make_room(over + SWEEP);
        assert!(shard.entries.is_empty());
    }
}
