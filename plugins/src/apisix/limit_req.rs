//! APISIX's limit-req: requests a second and key, evened out (`resty.limit.req`).

use crate::shared::counters::{Counter, Counters, Key as CounterKey, LONGEST, nanoseconds};
use crate::shared::limits::{Key, KeyType, Rejection};
use crate::shared::redis::{Redis, RedisConfig, RedisFault, Script};
use serde::Deserialize;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub(crate) fn factory() -> ApisixFactory {
    ApisixFactory::new("limit-req", 1001, include_str!("../../schemas/limit-req.json"), LimitReq::build)
}

#[derive(Deserialize)]
struct Config {
    rate: f64,
    burst: f64,
    key: String,
    key_type: KeyType,
    policy: String,
    #[serde(flatten)]
    redis: RedisConfig,
    rejected_code: u16,
    rejected_msg: Option<String>,
    nodelay: bool,
    allow_degradation: bool,
}

struct LimitReq {
    bucket: Bucket,
    key: Key,
    rejection: Rejection,
    /// Whether requests that come too fast wait for their turn.
    delays: bool,
    allow_degradation: bool,
    /// Where it is counted, if not here.
    remote: Option<Remote>,
    /// What counters are told apart by: the resource and its configuration.
    owner: CounterKey,
    counters: Arc<Counters>,
}

/// Buckets in Redis.
struct Remote {
    redis: Arc<Redis>,
    /// What keys begin with: `limit_req:/apisix/routes/1:<crc>:`.
    prefix: Box<[u8]>,
}

/// Adds a request to a bucket as APISIX keeps it (`limit-req/util.lua`): thousandths of requests in `excess`, milliseconds
/// since 1970 in `last`. Answers whether it fits, and what is in the bucket then.
static ADD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local kept = redis.call('HMGET', KEYS[1], 'excess', 'last')
local excess = 0
if kept[1] and kept[2] then
  local passed = math.abs(tonumber(ARGV[3]) - tonumber(kept[2]))
  excess = math.max(tonumber(kept[1]) - tonumber(ARGV[1]) * passed / 1000 + 1000, 0)
  if excess > tonumber(ARGV[2]) then
    return {0, tostring(excess)}
  end
end
redis.call('HSET', KEYS[1], 'excess', excess, 'last', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {1, tostring(excess)}",
    )
});

/// A bucket that leaks `rate` requests a second.
#[derive(Clone, Copy)]
struct Bucket {
    rate: f64,
    /// Requests beyond the rate that it holds.
    burst: f64,
}

/// Requests are kept in millionths of one.
const UNIT: f64 = 1e6;

/// A shorter delay is none.
const LEAST_DELAY: Duration = Duration::from_millis(1);

impl Config {
    /// What makes it another limit, for which counting begins anew.
    fn told_apart_by(&self) -> String {
        let combined = self.key_type == KeyType::VarCombination;
        let answer = (self.rejected_code, &self.rejected_msg, self.nodelay, self.allow_degradation);
        let parts = serde_json::json!([self.rate, self.burst, self.key, combined, answer]).to_string();
        if self.policy == "local" { parts } else { format!("{parts}{} {:?}", self.policy, self.redis) }
    }
}

impl LimitReq {
    fn build(config: Config, context: &BuildContext) -> Built {
        let text = config.told_apart_by();
        let prefix = format!("limit_req:{}:{}:", context.resource, crc32fast::hash(text.as_bytes()));
        let remote = config.redis.service(&config.policy, context)?;
        let counters = Counters::of(&context.shared);
        let limit = LimitReq {
            bucket: Bucket { rate: config.rate, burst: config.burst },
            key: Key::new(&config.key, config.key_type)?,
            owner: counters.key(("limit-req", &*context.resource, text.as_str())),
            remote: remote.map(|redis| Remote { redis, prefix: prefix.into_bytes().into() }),
            allow_degradation: config.allow_degradation,
            rejection: Rejection { code: config.rejected_code, message: config.rejected_msg },
            delays: !config.nodelay,
            counters,
        };
        Ok(Plugin::of(limit).access(LimitReq::access).build())
    }

    fn access<'a>(&'a self, stream: &'a mut Stream, _: Slot) -> Step<'a> {
        let value = self.key.value(stream, false).unwrap_or_default();
        if let Some(remote) = &self.remote {
            return Step::Wait(Box::pin(async move {
                match remote.add(self.bucket, &value).await {
                    Ok(added) => self.wait(added),
                    Err(_) if self.allow_degradation => Step::Continue,
                    Err(fault) => {
                        tracing::error!(%fault, "limit-req failed");
                        Step::Respond(LocalReply::new(500, "", ""))
                    }
                }
            }));
        }
        let now = self.counters.time(Instant::now());
        let key = self.counters.key((self.owner, value.as_slice()));
        self.wait(self.counters.change(key, now, |counter| self.bucket.add(counter, now)))
    }

    /// Has a request wait for its turn, or refuses it.
    fn wait<'a>(&self, added: Option<Duration>) -> Step<'a> {
        match added {
            None => Step::Respond(self.rejection.reply()),
            Some(delay) if self.delays && delay >= LEAST_DELAY => Step::Wait(Box::pin(async move {
                tokio::time::sleep(delay).await;
                Step::Continue
            })),
            Some(_) => Step::Continue,
        }
    }
}

impl Remote {
    /// As [`Bucket::add`].
    async fn add(&self, bucket: Bucket, value: &[u8]) -> Result<Option<Duration>, RedisFault> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let lasts = (bucket.burst / bucket.rate).ceil().min(LONGEST.as_secs_f64()) as u64 + 1;
        let (rate, burst) = (bucket.rate * 1000.0, bucket.burst * 1000.0);
        let arguments = [rate.to_string(), burst.to_string(), now.to_string(), lasts.to_string()];
        let key = [&self.prefix, value].concat();
        let (fits, excess): (i64, f64) = self.redis.run(&ADD, &key, &arguments).await?;
        Ok((fits == 1).then(|| seconds(excess / rate)))
    }
}

impl Bucket {
    /// Adds a request; how long it has to wait, or `None` where there is no room for it, and then nothing changes.
    fn add(self, counter: &mut Counter, now: u64) -> Option<Duration> {
        let excess = if counter.until == 0 {
            0.0
        } else {
            let passed = Duration::from_nanos(now.saturating_sub(counter.before)).as_secs_f64();
            (counter.count as f64 / UNIT - self.rate * passed + 1.0).max(0.0)
        };
        if excess > self.burst {
            return None;
        }
        counter.count = (excess * UNIT) as u64;
        counter.before = now;
        // From then on it is as if there had been none.
        counter.until =
            now.saturating_add(nanoseconds(seconds((excess + 1.0) / self.rate).min(LONGEST)).max(1));
        Some(seconds(excess / self.rate))
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
    use super::*;
    use crate::testing::redis::{RedisServer, connecting, free_port};
    use crate::testing::{Alone, build, context, now, plugin, stream};
    use serde_json::{Value, json};
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    fn status(plugin: &Alone, headers: &[(&str, &str)]) -> u16 {
        now(plugin.access(&mut stream("/", headers))).map_or(0, |reply| reply.status)
    }

    fn statuses(config: Value, n: usize) -> Vec<u16> {
        let plugin = plugin("limit-req", &config);
        (0..n).map(|_| status(&plugin, &[])).collect()
    }

    #[test]
    fn buckets_leak_at_their_rate() {
        let bucket = Bucket { rate: 10.0, burst: 2.0 };
        let mut counter = Counter::default();
        let mut add = |ms: u64| bucket.add(&mut counter, ms * 1_000_000).map(|delay| delay.as_millis());
        // At once: the first passes, two wait in turn, the fourth is too much.
        assert_eq!([add(1), add(1), add(1), add(1)], [Some(0), Some(100), Some(200), None]);
        // One has leaked, and what was refused has taken nothing.
        assert_eq!([add(101), add(101)], [Some(200), None]);
        // At the rate nobody waits.
        assert_eq!([add(1000), add(1100), add(1200)], [Some(0), Some(0), Some(0)]);
    }

    /// A counter is forgotten exactly when it no longer means anything.
    #[test]
    fn counters_last_until_they_are_empty() {
        let bucket = Bucket { rate: 10.0, burst: 2.0 };
        let mut counter = Counter::default();
        (0..3).for_each(|_| _ = bucket.add(&mut counter, 1));
        assert_eq!(counter.until, 1 + 300_000_000);
        let slow = Bucket { rate: f64::MIN_POSITIVE, burst: f64::MAX };
        let mut counter = Counter::default();
        assert_eq!(slow.add(&mut counter, 0), Some(Duration::ZERO));
        assert_eq!(counter.until, nanoseconds(LONGEST));
        assert_eq!(slow.add(&mut counter, 0), Some(Duration::MAX));
    }

    #[test]
    fn what_is_too_much_is_rejected() {
        let config = json!({"rate": 0.1, "burst": 0.1, "key": "remote_addr"});
        assert_eq!(statuses(config, 3), [0, 503, 503]);
        let config =
            json!({"rate": 0.1, "burst": 2, "key": "remote_addr", "nodelay": true, "rejected_code": 429});
        assert_eq!(statuses(config, 5), [0, 0, 0, 429, 429]);
        let config = json!({"rate": 0.1, "burst": 0, "key": "remote_addr", "rejected_msg": "later"});
        let plugin = plugin("limit-req", &config);
        status(&plugin, &[]);
        let reply = now(plugin.access(&mut stream("/", &[]))).unwrap();
        assert_eq!(reply.body, "{\"error_msg\":\"later\"}\n");
    }

    #[test]
    fn keys_tell_clients_apart() {
        for config in [
            json!({"rate": 0.1, "burst": 0, "key": "http_x_user"}),
            json!({"rate": 0.1, "burst": 0, "key": "$http_x_user $remote_addr", "key_type": "var_combination"}),
        ] {
            let plugin = plugin("limit-req", &config);
            let of = |user| status(&plugin, &[("x-user", user)]);
            assert_eq!([of("a"), of("b"), of("a")], [0, 0, 503]);
        }
        // Nothing of the key is there: the client's address.
        let config = json!({"rate": 0.1, "burst": 0, "key": "$http_x_user", "key_type": "var_combination"});
        assert_eq!(statuses(config, 2), [0, 503]);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_their_turn() {
        let plugin = plugin("limit-req", &json!({"rate": 0.01, "burst": 5, "key": "remote_addr"}));
        let begun = tokio::time::Instant::now();
        assert!(plugin.access(&mut stream("/", &[])).await.is_none());
        assert_eq!(begun.elapsed().as_secs(), 0);
        assert!(plugin.access(&mut stream("/", &[])).await.is_none());
        assert!((99..=100).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    }

    #[test]
    fn counters_live_as_long_as_their_configuration() {
        let context = context();
        // As a limiter of another resource would.
        let _kept = Counters::of(&context.shared);
        let of = |config: Value, resource: &str| {
            let context = BuildContext { resource: resource.into(), ..context.clone() };
            status(&build("limit-req", &config, &context).unwrap(), &[])
        };
        let config = || json!({"rate": 0.1, "burst": 0, "key": "remote_addr"});
        assert_eq!([of(config(), "a"), of(config(), "a"), of(config(), "b")], [0, 503, 0]);
        let mut changed = config();
        changed["rejected_code"] = 429.into();
        assert_eq!(of(changed, "a"), 0);
    }

    /// Four workers at once: the limit is the process's, to the request.
    #[test]
    fn four_workers_let_exactly_the_burst_through() {
        let (context, passed) = (context(), AtomicUsize::new(0));
        let config = json!({"rate": 0.001, "burst": 99, "key": "remote_addr", "nodelay": true});
        let workers: Vec<_> = (0..4).map(|_| build("limit-req", &config, &context).unwrap()).collect();
        std::thread::scope(|scope| {
            for plugin in &workers {
                scope.spawn(|| {
                    let through = (0..100).filter(|_| status(plugin, &[]) == 0).count();
                    passed.fetch_add(through, Relaxed);
                });
            }
        });
        assert_eq!(passed.load(Relaxed), 100);
    }

    #[tokio::test]
    async fn gateways_share_a_bucket() {
        let server = RedisServer::start(&[]);
        let config = json!({"rate": 0.1, "burst": 1, "key": "remote_addr", "nodelay": true,
            "policy": "redis", "redis_host": "127.0.0.1", "redis_port": server.port});
        let gateway = || build("limit-req", &config, &connecting().0).unwrap();
        let (one, other) = (gateway(), gateway());
        let mut statuses = Vec::new();
        for plugin in [&one, &other, &one, &other] {
            statuses.push(plugin.access(&mut stream("/", &[])).await.map_or(0, |reply| reply.status));
        }
        assert_eq!(statuses, [0, 0, 503, 503]);
    }

    #[tokio::test]
    async fn without_redis_nothing_passes_unless_that_is_wanted() {
        for (degrades, status) in [(false, 500), (true, 0)] {
            let config = json!({"rate": 1, "burst": 1, "key": "remote_addr", "allow_degradation": degrades,
                "policy": "redis", "redis_host": "127.0.0.1", "redis_port": free_port()});
            let plugin = build("limit-req", &config, &connecting().0).unwrap();
            let reply = plugin.access(&mut stream("/", &[])).await;
            assert_eq!(reply.map_or(0, |reply| reply.status), status);
        }
    }
}
