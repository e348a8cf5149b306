//! Counting here and telling Redis of it now and then (`sync_interval`): a request waits for Redis at the beginning of a
//! window, and for none after that. What several gateways let through may be over the limit by what they have not told yet.

use super::counter::Taken;
use super::remote::{Left, Place};
use crate::shared::background;
use crate::shared::counters::{Counter, Counters, Key, LONGEST, nanoseconds};
use crate::shared::redis::Redis;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Counters that wait to be told of. One that finds no room is told of with its next request that does.
const MAX_WAITING: usize = 10_000;

/// Counters of this process that Redis is told of.
pub(super) struct Delayed {
    redis: Arc<Redis>,
    pub(super) interval: Duration,
    /// Of each: how much was taken since Redis was told, and what Redis has said is left.
    counters: Arc<Counters>,
    waiting: Mutex<HashMap<Key, Place>>,
}

impl Delayed {
    pub(super) fn new(redis: Arc<Redis>, interval: Duration, counters: Arc<Counters>) -> Arc<Delayed> {
        Arc::new(Delayed { redis, interval, counters, waiting: Mutex::default() })
    }

    /// Takes one; asks Redis first what there is when that is not known.
    pub(super) async fn take(self: &Arc<Delayed>, key: Key, place: Place) -> Taken {
        if let Some(taken) = self.take_known(key, &place) {
            return taken;
        }
        // While Redis does not answer, the whole limit is for this process.
        let left = place.add(&self.redis, 0).await.unwrap_or_else(|fault| {
            tracing::warn!(%fault, "sync to redis failed, counting locally");
            let remaining = i64::try_from(place.limit).unwrap_or(i64::MAX);
            Left { remaining, reset: place.length }
        });
        self.learn(key, left, 0);
        // It has been forgotten already where there are too many.
        let nothing = Taken { allowed: left.remaining > 0, remaining: 0, reset: left.reset };
        self.take_known(key, &place).unwrap_or(nothing)
    }

    fn take_known(self: &Arc<Delayed>, key: Key, place: &Place) -> Option<Taken> {
        let now = self.counters.time(Instant::now());
        let taken = self.counters.change(key, now, |counter| {
            if counter.until <= now {
                return None;
            }
            let left = counter.before.saturating_sub(counter.count);
            counter.count += u64::from(left > 0);
            let reset = Duration::from_nanos(counter.until - now);
            Some(Taken { allowed: left > 0, remaining: left.saturating_sub(1), reset })
        })?;
        if taken.allowed {
            self.tell(key, place);
        }
        Some(taken)
    }

    /// Has Redis told of a counter when it is time to.
    fn tell(self: &Arc<Delayed>, key: Key, place: &Place) {
        let mut waiting = self.waiting.lock();
        let is_first = waiting.is_empty();
        if waiting.len() < MAX_WAITING {
            waiting.entry(key).or_insert_with(|| place.clone());
        }
        if is_first {
            background::spawn(self.clone().tell_all());
        }
    }

    async fn tell_all(self: Arc<Delayed>) {
        tokio::time::sleep(self.interval).await;
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for (key, place) in waiting {
            let count = self.counter(key, |counter| counter.count);
            if count == 0 {
                continue;
            }
            match place.add(&self.redis, count).await {
                Ok(left) => self.learn(key, left, count),
                Err(fault) => {
                    tracing::warn!(%fault, "sync to redis failed, trying again");
                    self.tell(key, &place);
                }
            }
        }
    }

    /// Notes what Redis has said, which knows of `told`.
    fn learn(&self, key: Key, left: Left, told: u64) {
        self.counter(key, |counter| {
            let now = self.counters.time(Instant::now());
            counter.count = counter.count.saturating_sub(told);
            counter.before = u64::try_from(left.remaining).unwrap_or(0);
            counter.until = now.saturating_add(nanoseconds(left.reset.min(LONGEST)).max(1));
        });
    }

    fn counter<T>(&self, key: Key, change: impl FnOnce(&mut Counter) -> T) -> T {
        self.counters.change(key, self.counters.time(Instant::now()), change)
    }
}
