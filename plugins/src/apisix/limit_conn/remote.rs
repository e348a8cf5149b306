//! What is under way, counted in Redis as APISIX counts it (`limit-conn/util.lua`): a sorted set of a key's requests by when
//! each is forgotten.

use crate::shared::redis::{Redis, RedisFault, Script, cmd};
use sixfold_core::export::Background;
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds after which a request counts no more, if nothing is said (`key_ttl`).
const KEY_TTL: i64 = 3600;

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
        Arc::new(Remote { redis, prefix, ttl, background })
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

impl Drop for RemoteLease {
    fn drop(&mut self) {
        let Some(remote) = self.counted.take() else { return };
        let (key, request) = (std::mem::take(&mut self.key), std::mem::take(&mut self.request));
        let redis = remote.redis.clone();
        remote.background.spawn(Box::pin(async move {
            let mut command = cmd("ZREM");
            command.arg(&key).arg(&request);
            if let Err(fault) = redis.call(&key, &command).await {
                tracing::error!(%fault, "a request that has ended is counted until its time is over");
            }
        }));
    }
}
