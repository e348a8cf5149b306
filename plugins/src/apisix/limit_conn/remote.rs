//! What is under way, counted in Redis as APISIX counts it (`limit-conn/util.lua`): a sorted set of a key's requests by when
//! each is forgotten.

use crate::shared::redis::{Redis, RedisFault, Script, cmd};
use sixfold_core::budget::ByteBudget;
use sixfold_core::export::Background;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds after which a request counts no more, if nothing is said (`key_ttl`).
const KEY_TTL: i64 = 3600;

/// Bytes of what Redis is still to be told of requests that have ended, of one configuration. What comes beyond is not told.
const MOST_LEAVING: usize = 8 << 20;
/// Bytes that one of them takes beside its key: its task, with the command and the connection that it waits for.
const TASK: usize = 1024;

/// Counts one more unless there are as many as may be; answers whether it did, and how many there are then.
static ENTER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, ARGV[3])
local count = redis.call('ZCARD', KEYS[1])
if count >= tonumber(ARGV[1]) then
  return {0, count}
end
redis.call('ZADD', KEYS[1], ARGV[3] + ARGV[2], ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return {1, count + 1}",
    )
});

/// What is under way everywhere.
pub(super) struct Remote {
    redis: Arc<Redis>,
    /// `limit_conn:/apisix/routes/1:<crc>:`
    prefix: Box<[u8]>,
    /// Seconds.
    ttl: i64,
    background: Arc<dyn Background>,
    leaving: ByteBudget,
    /// Whether it was said that Redis is not told of ends: once until it is again.
    is_behind: AtomicBool,
}

/// The place of a request among those that Redis is to be told of.
struct Leaving {
    remote: Arc<Remote>,
    bytes: usize,
}

/// A request that is counted, or may be, until this is dropped.
pub(super) struct RemoteLease {
    /// `None` where it is not.
    counted: Option<Arc<Remote>>,
    key: Vec<u8>,
    request: String,
}

impl Remote {
    pub(super) fn new(
        redis: Arc<Redis>,
        prefix: String,
        ttl: Option<i64>,
        background: Arc<dyn Background>,
    ) -> Arc<Remote> {
        let (prefix, ttl) = (prefix.into_bytes().into(), ttl.unwrap_or(KEY_TTL));
        let (leaving, is_behind) = (ByteBudget::new(MOST_LEAVING), AtomicBool::new(false));
        Arc::new(Remote { redis, prefix, ttl, background, leaving, is_behind })
    }

    /// For a request that is about to be counted.
    pub(super) fn lease(self: &Arc<Remote>, value: &[u8]) -> RemoteLease {
        let request = format!("{:032x}", fastrand::u128(..));
        RemoteLease { counted: Some(self.clone()), key: [&self.prefix, value].concat(), request }
    }

    /// Counts one more; answers how many there are then, or `None` where there are `most` already.
    pub(super) async fn enter(&self, lease: &RemoteLease, most: u64) -> Result<Option<u64>, RedisFault> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let arguments = [most.to_string(), self.ttl.to_string(), now.to_string(), lease.request.clone()];
        let (counted, count): (i64, u64) = self.redis.run(&ENTER, &lease.key, &arguments).await?;
        Ok((counted == 1).then_some(count))
    }
}

impl RemoteLease {
    /// Lets go of a request that there was no room for.
    pub(super) fn leave_uncounted(mut self) {
        self.counted = None;
    }
}

impl Remote {
    /// A place for one more with such a key; `None` where there are too many.
    fn leaving(self: Arc<Remote>, key: &[u8]) -> Option<Leaving> {
        let bytes = key.len() + TASK;
        self.leaving.take(bytes).then(|| Leaving { remote: self.clone(), bytes })
    }

    /// What becomes of a request of which Redis is not told.
    fn not_told(&self, reason: &dyn std::fmt::Display) {
        if !self.is_behind.swap(true, Relaxed) {
            tracing::error!(%reason, "requests that have ended are counted in Redis until their time is over");
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.remote.leaving.give_back(self.bytes);
    }
}

impl Drop for RemoteLease {
    fn drop(&mut self) {
        let Some(remote) = self.counted.take() else { return };
        let (key, request) = (std::mem::take(&mut self.key), std::mem::take(&mut self.request));
        let Some(leaving) = remote.clone().leaving(&key) else {
            return remote.not_told(&"too many wait for it");
        };
        remote.background.spawn(Box::pin(async move {
            let remote = &leaving.remote;
            let mut command = cmd("ZREM");
            command.arg(&key).arg(&request);
            match remote.redis.call(&key, &command).await {
                Ok(_) => remote.is_behind.store(false, Relaxed),
                Err(fault) => remote.not_told(&fault),
            }
        }));
    }
}
