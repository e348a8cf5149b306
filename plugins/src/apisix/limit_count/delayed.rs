//! Counting here and telling Redis of it now and then (`sync_interval`): a request waits for Redis at the beginning of a
//! window, and for none after that. What several gateways let through may be over the limit by what they have not told yet.

use super::counter::Taken;
use super::remote::{Left, Place};
use crate::shared::counters::{Counter, Counters, Key, LONGEST, nanoseconds};
use crate::shared::redis::Redis;
use parking_lot::Mutex;
use sixfold_core::export::Background;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Counters that wait to be told of. One that finds no room is told of with its next request that does.
const MAX_WAITING: usize = 10_000;
/// Bytes of their names, which clients may have a say in.
const MAX_WAITING_BYTES: usize = 4 << 20;

/// Counters of this process that Redis is told of.
pub(super) struct Delayed {
    redis: Arc<Redis>,
    pub(super) interval: Duration,
    /// Of each: how much was taken since Redis was told, and what Redis has said is left.
    counters: Arc<Counters>,
    background: Arc<dyn Background>,
    untold: Mutex<Untold>,
}

/// What Redis is to be told of.
#[derive(Default)]
struct Untold {
    waiting: HashMap<Key, Place>,
    /// Bytes of the names of what waits.
    bytes: usize,
    /// One task tells of everything, one counter after the other: a second one would tell the same again.
    is_told: bool,
}

impl Untold {
    /// Has a counter wait, unless it does or there is no room.
    fn put(&mut self, key: Key, place: &Place) {
        let bytes = self.bytes + place.name.len();
        if self.waiting.len() >= MAX_WAITING || bytes > MAX_WAITING_BYTES || self.waiting.contains_key(&key) {
            return;
        }
        self.bytes = bytes;
        self.waiting.insert(key, place.clone());
    }

    fn take(&mut self) -> HashMap<Key, Place> {
        self.bytes = 0;
        std::mem::take(&mut self.waiting)
    }
}

impl Delayed {
    pub(super) fn new(
        redis: Arc<Redis>,
        interval: Duration,
        counters: Arc<Counters>,
        background: Arc<dyn Background>,
    ) -> Arc<Delayed> {
        Arc::new(Delayed { redis, interval, counters, background, untold: Mutex::default() })
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
        let mut untold = self.untold.lock();
        untold.put(key, place);
        if !std::mem::replace(&mut untold.is_told, true) {
            self.background.spawn(Box::pin(tell_all(Arc::downgrade(self), self.interval)));
        }
    }

    /// Tells of what waits; whether there is anything more to tell.
    async fn tell_once(&self) -> bool {
        let mut waiting = self.untold.lock().take().into_iter();
        while let Some((key, place)) = waiting.next() {
            let count = self.counter(key, |counter| counter.count);
            if count == 0 {
                continue;
            }
            match place.add(&self.redis, count).await {
                Ok(left) => self.learn(key, left, count),
                Err(fault) => {
                    tracing::warn!(%fault, "sync to redis failed, trying again");
                    // The others would wait as long for the same: this one is the last to be tried again.
                    let mut untold = self.untold.lock();
                    for (key, place) in waiting.by_ref().chain([(key, place)]) {
                        untold.put(key, &place);
                    }
                }
            }
        }
        let mut untold = self.untold.lock();
        untold.is_told = !untold.waiting.is_empty();
        untold.is_told
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

/// Tells Redis at every interval, for as long as there is something to tell and somebody who counts.
async fn tell_all(delayed: Weak<Delayed>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(delayed) = delayed.upgrade() else { return };
        if !delayed.tell_once().await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apisix::limit_count::counter::Window;

    /// Names are as long as what clients send: 10,000 of 8 KB were 80 MB a service for as long as Redis was away.
    #[test]
    fn what_waits_is_bounded_by_its_bytes() {
        let place = |length: usize| Place {
            window: Window::Fixed,
            name: vec![b'a'; length].into(),
            limit: 1,
            length: Duration::from_secs(1),
        };
        let counters = Counters::default();
        let mut untold = Untold::default();
        for number in 0..2 * MAX_WAITING {
            untold.put(counters.key(number), &place(8192));
            untold.put(counters.key(number), &place(8192));
        }
        assert_eq!((untold.waiting.len(), untold.bytes), (MAX_WAITING_BYTES / 8192, MAX_WAITING_BYTES));
        assert_eq!((untold.take().len(), untold.bytes), (MAX_WAITING_BYTES / 8192, 0));
        (0..2 * MAX_WAITING).for_each(|number| untold.put(counters.key(number), &place(8)));
        assert_eq!(untold.waiting.len(), MAX_WAITING);
    }
}
