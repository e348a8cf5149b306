//! APISIX's limit-conn: requests of a key that are under way at once (`resty.limit.conn`).

mod remote;
mod streams;
#[cfg(test)]
mod tests;

use crate::apisix;
use crate::shared::counters::concurrent::{Concurrent, Lease};
use crate::shared::counters::{Counters, Key as CounterKey};
use crate::shared::limits::{Key, KeyType, Number, Rejection};
use crate::shared::redis::RedisConfig;
use remote::{Remote, RemoteLease};
use serde::Deserialize;
use serde_json::Value;
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn factory() -> ApisixFactory {
    ApisixFactory::new("limit-conn", 1003, include_str!("../../schemas/limit-conn.json"), LimitConn::build)
        .in_streams(streams::SCHEMA, streams::build)
}

/// `only_use_default_delay` is not among it: APISIX learns how long requests take in an object that each of them has of
/// its own, so that the delay of the next one is the default whatever is said.
#[derive(Deserialize)]
struct Config {
    conn: Option<Value>,
    burst: Option<Value>,
    default_conn_delay: f64,
    key: Option<String>,
    key_type: KeyType,
    policy: String,
    #[serde(flatten)]
    redis: RedisConfig,
    /// Seconds that a request is counted in Redis at most.
    key_ttl: Option<i64>,
    rejected_code: u16,
    rejected_msg: Option<String>,
    allow_degradation: bool,
    rules: Option<Vec<RuleConfig>>,
}

#[derive(Deserialize)]
struct RuleConfig {
    conn: Value,
    burst: Value,
    key: String,
}

struct LimitConn {
    rules: Vec<Rule>,
    /// Whether `rules` were configured: then one that can't be read from the request does not apply.
    several: bool,
    /// Seconds that a request waits for each `conn` that are before it.
    delay: f64,
    rejection: Rejection,
    allow_degradation: bool,
    /// What counters are told apart by: the resource and its configuration.
    owner: CounterKey,
    counters: Arc<Counters>,
    running: Arc<Concurrent>,
    /// Where it is counted, if not here.
    remote: Option<Arc<Remote>>,
}

struct Rule {
    conn: Number,
    burst: Number,
    key: Key,
}

/// A rule as it is for one request.
struct Limit {
    conn: u64,
    burst: u64,
    value: Vec<u8>,
}

/// What a request counts as, until it has ended.
#[derive(Default)]
struct Leases {
    here: SmallVec<[Lease; 2]>,
    remote: Vec<RemoteLease>,
}

/// A shorter delay is none.
const LEAST_DELAY: Duration = Duration::from_millis(1);

impl Config {
    /// What makes it another limit, for which counting begins anew.
    fn told_apart_by(&self) -> String {
        let rules = self.rules.iter().flatten();
        let rules: Vec<_> = rules.map(|rule| (&rule.conn, &rule.burst, &rule.key)).collect();
        let combined = self.key_type == KeyType::VarCombination;
        let answer =
            (self.default_conn_delay, self.rejected_code, &self.rejected_msg, self.allow_degradation);
        let parts = serde_json::json!([self.conn, self.burst, self.key, combined, rules, answer]).to_string();
        match self.policy.as_str() {
            "local" => parts,
            policy => format!("{parts}{policy} {:?} {:?}", self.redis, self.key_ttl),
        }
    }

    fn rules(&self) -> Result<Vec<Rule>, ConfigError> {
        let numbers = |conn: &Value, burst: &Value| {
            Ok((Number::new(conn, 1).in_key("conn")?, Number::new(burst, 0).in_key("burst")?))
        };
        if let Some(rules) = &self.rules {
            let rule = |(index, rule): (usize, &RuleConfig)| {
                let key = apisix::template(&rule.key).in_key("key");
                let made = numbers(&rule.conn, &rule.burst)
                    .and_then(|(conn, burst)| Ok(Rule { conn, burst, key: Key::Combination(key?) }));
                made.in_index(index)
            };
            return collect(rules.iter().enumerate().map(rule)).in_key("rules");
        }
        let (Some(conn), Some(burst), Some(key)) = (&self.conn, &self.burst, &self.key) else {
            return Err(ConfigError::new("conn, burst and key, or rules, are required"));
        };
        let (conn, burst) = numbers(conn, burst)?;
        Ok(vec![Rule { conn, burst, key: Key::new(key, self.key_type)? }])
    }
}

impl LimitConn {
    fn build(config: Config, context: &BuildContext) -> Built {
        let text = config.told_apart_by();
        let prefix = format!("limit_conn:{}:{}:", context.resource, crc32fast::hash(text.as_bytes()));
        let redis = config.redis.service(&config.policy, context)?;
        let counters = Counters::of(&context.shared);
        let limit = LimitConn {
            rules: config.rules()?,
            several: config.rules.is_some(),
            delay: config.default_conn_delay,
            owner: counters.key(("limit-conn", &*context.resource, text.as_str())),
            remote: redis.map(|redis| Remote::new(redis, prefix, config.key_ttl, context.background.clone())),
            rejection: Rejection { code: config.rejected_code, message: config.rejected_msg },
            allow_degradation: config.allow_degradation,
            running: Concurrent::of(&context.shared),
            counters,
        };
        Ok(Plugin::of(limit).access(LimitConn::access).log(LimitConn::log).build())
    }

    /// The rules that apply; `None` where one that has to is wrong for the request.
    fn limits(&self, stream: &Stream) -> Option<SmallVec<[Limit; 1]>> {
        let mut limits = SmallVec::new();
        for rule in &self.rules {
            let numbers = rule.conn.resolve(stream).zip(rule.burst.resolve(stream));
            match numbers.zip(rule.key.value(stream, self.several)) {
                Some(((conn, burst), value)) => limits.push(Limit { conn, burst, value }),
                None if self.several => {}
                None => return None,
            }
        }
        Some(limits).filter(|limits| !limits.is_empty())
    }

    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        match self.limits(stream) {
            Some(limits) => self.enter(limits, stream, slot),
            None if self.allow_degradation => Step::Continue,
            None => Step::Respond(LocalReply::new(500, "", "")),
        }
    }

    /// Enters the limits in order, each after the delay of the one before.
    fn enter<'a>(&'a self, limits: SmallVec<[Limit; 1]>, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        if let Some(remote) = &self.remote {
            return Step::Wait(Box::pin(self.enter_remote(remote, limits, stream, slot)));
        }
        let mut limits = limits.into_iter();
        while let Some(limit) = limits.next() {
            let key = self.counters.key((self.owner, limit.value.as_slice()));
            let Some((lease, count)) = self.running.enter(key, limit.most()) else {
                return Step::Respond(self.rejection.reply());
            };
            stream.change_state(slot, |leases: &mut Leases| leases.here.push(lease));
            let delay = self.delay(&limit, count);
            if delay >= LEAST_DELAY {
                let rest = limits.collect();
                return Step::Wait(Box::pin(async move {
                    tokio::time::sleep(delay).await;
                    self.enter(rest, stream, slot)
                }));
            }
        }
        Step::Continue
    }

    async fn enter_remote<'a>(
        &'a self,
        remote: &'a Arc<Remote>,
        limits: SmallVec<[Limit; 1]>,
        stream: &'a mut Stream,
        slot: Slot,
    ) -> Step<'a> {
        for limit in limits {
            // It is there before it is counted: whoever goes away in between is counted out again.
            let lease = remote.lease(&limit.value);
            match remote.enter(&lease, limit.most()).await {
                Ok(Some(count)) => {
                    stream.change_state(slot, |leases: &mut Leases| leases.remote.push(lease));
                    let delay = self.delay(&limit, count);
                    if delay >= LEAST_DELAY {
                        tokio::time::sleep(delay).await;
                    }
                }
                Ok(None) => {
                    lease.leave_uncounted();
                    return Step::Respond(self.rejection.reply());
                }
                Err(_) if self.allow_degradation => {}
                Err(fault) => {
                    tracing::error!(%fault, "limit-conn failed");
                    return Step::Respond(LocalReply::new(500, "", ""));
                }
            }
        }
        Step::Continue
    }

    /// Whoever is over the limit waits the longer the more are.
    fn delay(&self, limit: &Limit, count: u64) -> Duration {
        let times = count.saturating_sub(1).checked_div(limit.conn).unwrap_or(0);
        Duration::try_from_secs_f64(self.delay * times as f64).unwrap_or(Duration::MAX)
    }

    fn log(&self, stream: &mut Stream, slot: Slot) {
        drop(stream.take_state::<Leases>(slot));
    }
}

impl Limit {
    /// How many may be under way.
    fn most(&self) -> u64 {
        self.conn.saturating_add(self.burst)
    }
}
