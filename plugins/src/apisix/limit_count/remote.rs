//! Counting in Redis, as APISIX does it (`limit-count-redis.lua`, `sliding-window/`): the same keys and values, so that
//! gateways of both kinds share a limit.

use super::counter::{Taken, Window};
use super::delayed::Delayed;
use crate::shared::counters::{Counters, Key};
use crate::shared::redis::{Redis, RedisFault, Script};
use sixfold_core::export::Background;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Adds to a counter that lasts a window from its first request on; answers what it has come to and the milliseconds that it
/// lasts.
static ADD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
  return {tonumber(ARGV[1]), ARGV[2] * 1000}
end
return {redis.call('INCRBY', KEYS[1], ARGV[1]), left}",
    )
});

/// Adds to the counter of a sliding window unless that and what is near of the window before (`ARGV[4]`) reach the limit.
static SLIDE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local count = tonumber(redis.call('GET', KEYS[1]) or 0)
local limit = tonumber(ARGV[2])
if count >= limit or count + tonumber(ARGV[4]) >= limit then
  return {0, count}
end
local new = redis.call('INCRBY', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) < 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return {1, new}",
    )
});

/// What a request asks of a rule.
pub(super) struct Asked {
    /// Its place among the rules.
    pub(super) rule: usize,
    /// What is counted by here.
    pub(super) key: Key,
    /// The text of that.
    pub(super) value: Vec<u8>,
    pub(super) limit: u64,
    /// Of the window.
    pub(super) length: Duration,
}

/// Counters in Redis.
pub(super) struct Remote {
    redis: Arc<Redis>,
    delayed: Option<Arc<Delayed>>,
}

/// A counter in Redis.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) window: Window,
    /// `<scope>:<value>`
    pub(super) name: Arc<[u8]>,
    pub(super) limit: u64,
    pub(super) length: Duration,
}

/// What is left at a counter; less than nothing when more was taken than there was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Left {
    pub(super) remaining: i64,
    /// Time until the window ends.
    pub(super) reset: Duration,
}

impl Remote {
    /// Counters at a service, told every `interval` what was counted here, or else with each request.
    pub(super) fn new(
        redis: Arc<Redis>,
        interval: Option<Duration>,
        counters: Arc<Counters>,
        background: &Arc<dyn Background>,
    ) -> Remote {
        let delayed =
            interval.map(|interval| Delayed::new(redis.clone(), interval, counters, background.clone()));
        Remote { redis, delayed }
    }

    /// Takes one.
    pub(super) async fn take(&self, window: Window, scope: &str, asked: &Asked) -> Result<Taken, RedisFault> {
        let name = [scope.as_bytes(), b":", &asked.value].concat().into();
        let place = Place { window, name, limit: asked.limit, length: asked.length };
        // A window that ends before it is told of would never be.
        if let Some(delayed) = self.delayed.as_ref().filter(|delayed| delayed.interval < asked.length) {
            return Ok(delayed.take(asked.key, place).await);
        }
        place.take(&self.redis).await
    }
}

impl Place {
    async fn take(&self, redis: &Redis) -> Result<Taken, RedisFault> {
        if self.window == Window::Sliding {
            return self.slide(redis).await;
        }
        let left = self.add(redis, 1).await?;
        Ok(Taken {
            allowed: left.remaining >= 0,
            remaining: u64::try_from(left.remaining).unwrap_or(0),
            reset: left.reset,
        })
    }

    /// Adds whatever was let through already.
    pub(super) async fn add(&self, redis: &Redis, count: u64) -> Result<Left, RedisFault> {
        let now = Turn::of(self.length);
        let (name, seconds) = match self.window {
            Window::Fixed => ([b"plugin-limit-count:v1:", &*self.name].concat(), self.length.as_secs()),
            Window::Sliding => (self.counter(now.number), 2 * self.length.as_secs()),
        };
        let (used, lasts): (i64, u64) =
            redis.run(&ADD, &name, &[count.to_string(), seconds.to_string()]).await?;
        let remaining = i64::try_from(self.limit).unwrap_or(i64::MAX).saturating_sub(used);
        Ok(match self.window {
            Window::Fixed => Left { remaining, reset: Duration::from_millis(lasts) },
            Window::Sliding => {
                // What was added is added: without the window before, less is known and nothing lost.
                let near = self.before(redis, now).await.unwrap_or(0.0);
                Left { remaining: (remaining as f64 - near).floor() as i64, reset: now.left }
            }
        })
    }

    async fn slide(&self, redis: &Redis) -> Result<Taken, RedisFault> {
        let now = Turn::of(self.length);
        let near = self.before(redis, now).await?;
        let lasts = 2 * self.length.as_secs();
        let arguments = ["1".to_owned(), self.limit.to_string(), lasts.to_string(), near.to_string()];
        let (allowed, count): (i64, u64) = redis.run(&SLIDE, &self.counter(now.number), &arguments).await?;
        let free = self.limit as f64 - count as f64;
        let remaining = if allowed == 1 { (free - near).max(0.0) as u64 } else { 0 };
        // Whoever comes too early may come when enough of the window before has passed.
        let reset = match near > 0.0 && free > 0.0 && allowed != 1 {
            true => {
                let rate = near / now.left.as_secs_f64().max(f64::MIN_POSITIVE);
                Duration::try_from_secs_f64((now.left.as_secs_f64() - free / rate).max(0.0))
                    .unwrap_or(now.left)
            }
            false => now.left,
        };
        Ok(Taken { allowed: allowed == 1, remaining, reset })
    }

    /// How much of the window before is near.
    async fn before(&self, redis: &Redis, now: Turn) -> Result<f64, RedisFault> {
        let Some(before) = now.number.checked_sub(1) else { return Ok(0.0) };
        let count: Option<u64> = redis.get(&self.counter(before)).await?;
        let count = count.unwrap_or(0).min(self.limit);
        Ok(count as f64 * (now.left.as_secs_f64() / self.length.as_secs_f64()))
    }

    /// The key of the counter of a sliding window.
    fn counter(&self, number: u64) -> Vec<u8> {
        [b"plugin-limit-count:", &*self.name, format!(".{number}.counter").as_bytes()].concat()
    }
}

/// Which window it is by the clock, and how long it lasts.
#[derive(Clone, Copy)]
struct Turn {
    number: u64,
    left: Duration,
}

impl Turn {
    fn of(length: Duration) -> Turn {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let length = length.as_millis().max(1);
        let passed = now.as_millis() % length;
        let number = u64::try_from(now.as_millis() / length).unwrap_or(u64::MAX);
        Turn { number, left: Duration::from_millis((length - passed).try_into().unwrap_or(u64::MAX)) }
    }
}
