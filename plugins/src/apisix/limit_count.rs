//! APISIX's limit-count: so many requests a key in a window of time, over all workers.

mod counter;
mod delayed;
#[cfg(test)]
mod redis_tests;
mod remote;
#[cfg(test)]
mod tests;

use crate::apisix::{self, error_reply};
use crate::shared::counters::{Counters, Key as CounterKey};
use crate::shared::header_names;
use crate::shared::limits::{Key, KeyType, Number, Rejection};
use crate::shared::redis::RedisConfig;
use arc_swap::ArcSwap;
use counter::{Taken, Window};
use remote::{Asked, Remote};
use serde::Deserialize;
use serde_json::Value;
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::headers::HeaderName;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, LocalReply, Metadata, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) fn factory() -> ApisixFactory {
    ApisixFactory::new("limit-count", 1002, include_str!("../../schemas/limit-count.json"), LimitCount::build)
        .agreeing(group)
        .worded(worded)
        .reads_metadata(include_str!("../../schemas/limit-count-metadata.json"), HeaderTexts::of_metadata)
}

/// All resources of a group have one configuration.
fn group(config: &Value) -> Option<(String, String)> {
    let config = Config::deserialize(config).ok()?;
    Some((config.group.clone()?, config.told_apart_by()))
}

/// A count beside rules is told as such.
fn worded(config: &Value, fault: &str) -> Option<&'static str> {
    let both = (config.get("count").is_some() || config.get("time_window").is_some())
        && config.get("rules").is_some();
    (both && fault.starts_with("value should match only one schema")).then_some(BOTH)
}

/// What is said of that.
const BOTH: &str = "count/time_window and rules cannot be specified at the same time";

#[derive(Deserialize)]
struct Config {
    count: Option<Value>,
    time_window: Option<Value>,
    rules: Option<Vec<RuleConfig>>,
    window_type: Window,
    group: Option<String>,
    key: String,
    key_type: KeyType,
    rejected_code: u16,
    rejected_msg: Option<String>,
    policy: String,
    #[serde(flatten)]
    redis: RedisConfig,
    allow_degradation: bool,
    show_limit_quota_header: bool,
    sync_interval: f64,
}

#[derive(Deserialize)]
struct RuleConfig {
    count: Value,
    time_window: Value,
    key: String,
    header_prefix: Option<String>,
}

/// `plugin_metadata`: what the headers are called.
#[derive(Deserialize)]
struct HeaderTexts {
    limit_header: String,
    remaining_header: String,
    reset_header: String,
}

struct LimitCount {
    rules: Vec<Rule>,
    /// Whether `rules` were configured: then a rule whose key is missing does not apply.
    several: bool,
    rejection: Rejection,
    allow_degradation: bool,
    window: Window,
    /// `/apisix/routes/1:<crc>` or the group's name: what `$rate_limiting_info` shows.
    scope: Arc<str>,
    /// What counters are told apart by: the resource and its configuration, or the group. A resource that keeps
    /// its configuration keeps its counters.
    owner: CounterKey,
    counters: Arc<Counters>,
    /// Where it is counted, if not here.
    remote: Option<Remote>,
    /// What the headers of each rule are called; `None` shows none.
    shown: Option<Arc<Shown>>,
}

struct Rule {
    count: Number,
    time_window: Number,
    key: Key,
    /// What its counters are told apart by from those of others, where its window is always the same.
    owner: Option<CounterKey>,
}

/// The headers of the rules, which change with the metadata.
struct Shown {
    metadata: Arc<Metadata>,
    /// Of each rule; a limit that is alone has none.
    prefixes: Box<[Option<String>]>,
    names: ArcSwap<Box<[Names]>>,
}

/// `X-RateLimit-Limit`, `-Remaining` and `-Reset`.
struct Names {
    limit: HeaderName,
    remaining: HeaderName,
    reset: HeaderName,
}

/// What the headers say: kept between the phases.
#[derive(Default)]
struct Quotas(SmallVec<[Quota; 1]>);

struct Quota {
    rule: usize,
    limit: u64,
    taken: Taken,
}

impl LimitCount {
    fn build(config: Config, context: &BuildContext) -> Built {
        config.check_interval()?;
        let redis = config.redis.service(&config.policy, context)?;
        let sync_interval = config.sync_interval().filter(|_| redis.is_some());
        let several = config.rules.is_some();
        let text = config.told_apart_by();
        let counters = Counters::of(&context.shared);
        let scope = match &config.group {
            Some(group) => group.clone(),
            None => format!("{}:{}", context.resource, crc32fast::hash(text.as_bytes())),
        };
        let owner = match &config.group {
            Some(group) => counters.key(("limit-count group", group.as_str(), text.as_str())),
            None => counters.key(("limit-count", &*context.resource, text.as_str())),
        };
        let shown = Shown::new(&config, context.metadata.of("limit-count"))?;
        let remote =
            redis.map(|redis| Remote::new(redis, sync_interval, counters.clone(), &context.background));
        let mut limit = LimitCount {
            rules: rules(&config)?,
            several,
            remote,
            rejection: Rejection { code: config.rejected_code, message: config.rejected_msg },
            allow_degradation: config.allow_degradation,
            window: config.window_type,
            scope: scope.into(),
            owner,
            counters,
            shown: config.show_limit_quota_header.then_some(shown),
        };
        let owners: Vec<Option<CounterKey>> = limit
            .rules
            .iter()
            .enumerate()
            .map(|(index, rule)| Some(limit.owner_of(index, rule.time_window.fixed()?)))
            .collect();
        limit.rules.iter_mut().zip(owners).for_each(|(rule, owner)| rule.owner = owner);
        let shows = limit.shown.is_some();
        let plugin = Plugin::of(limit).access(LimitCount::access);
        Ok(if shows { plugin.header_filter(LimitCount::header_filter).build() } else { plugin.build() })
    }

    /// What a request asks of each rule that applies to it.
    fn asked(&self, stream: &Stream) -> Result<SmallVec<[Asked; 1]>, &'static str> {
        let mut asked = SmallVec::new();
        for (rule, of) in self.rules.iter().enumerate() {
            let Some(value) = of.key.value(stream, self.several) else { continue };
            let limit = of.count.resolve(stream).ok_or("invalid count")?;
            let window = of.time_window.resolve(stream).ok_or("invalid time_window")?;
            let owner = of.owner.unwrap_or_else(|| self.owner_of(rule, window));
            let key = self.counters.key((owner, value.as_slice()));
            asked.push(Asked { rule, key, value, limit, length: Duration::from_secs(window) });
        }
        if asked.is_empty() { Err("no rule applies") } else { Ok(asked) }
    }

    /// What the counters of a rule and a window are told apart by.
    fn owner_of(&self, rule: usize, window: u64) -> CounterKey {
        self.counters.key((self.owner, rule, window, self.window))
    }

    /// Takes one from every rule that applies, in order; the first that is used up rejects.
    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        let asked = match self.asked(stream) {
            Ok(asked) => asked,
            // APISIX gives no message for these.
            Err(reason) => return self.fail(&reason, || LocalReply::new(500, "", "")),
        };
        if let Some(remote) = &self.remote {
            return Step::Wait(Box::pin(self.access_remote(remote, asked, stream, slot)));
        }
        let now = Instant::now();
        for asked in asked {
            let taken = self.window.take(&self.counters, asked.key, asked.limit, asked.length, now);
            if !self.note(stream, slot, asked, taken) {
                return Step::Respond(self.rejection.reply());
            }
        }
        Step::Continue
    }

    async fn access_remote<'a>(
        &'a self,
        remote: &'a Remote,
        asked: SmallVec<[Asked; 1]>,
        stream: &'a mut Stream,
        slot: Slot,
    ) -> Step<'a> {
        for asked in asked {
            match remote.take(self.window, &self.scope, &asked).await {
                Ok(taken) if self.note(stream, slot, asked, taken) => {}
                Ok(_) => return Step::Respond(self.rejection.reply()),
                Err(fault) => return self.fail(&fault, || error_reply(500, "failed to limit count")),
            }
        }
        Step::Continue
    }

    /// Notes what came of asking a rule; whether it lets the request through.
    fn note(&self, stream: &mut Stream, slot: Slot, asked: Asked, taken: Taken) -> bool {
        let Asked { rule, value, limit, .. } = asked;
        self.inform(stream, value, limit, &taken);
        let allowed = taken.allowed;
        if self.shown.is_some() {
            let quota = Quota { rule, limit, taken };
            stream.change_state(slot, |quotas: &mut Quotas| quotas.0.push(quota));
        }
        allowed
    }

    /// What a request gets that can't be counted.
    fn fail<'a>(&self, reason: &dyn std::fmt::Display, reply: impl FnOnce() -> LocalReply) -> Step<'a> {
        if self.allow_degradation {
            return Step::Continue;
        }
        tracing::error!(%reason, scope = &*self.scope, "limit-count failed");
        Step::Respond(reply())
    }

    /// `$rate_limiting_info`, which is made for those whose log shows it.
    fn inform(&self, stream: &mut Stream, value: Vec<u8>, limit: u64, taken: &Taken) {
        let (scope, remaining, reset) = (self.scope.clone(), taken.remaining, taken.reset);
        stream.set_lazy_var("rate_limiting_info", move || {
            let info = serde_json::json!({
                "rate_limiting_key": format!("{scope}:{}", String::from_utf8_lossy(&value)),
                "rate_limiting_limit": limit,
                "rate_limiting_remaining": remaining,
                "rate_limiting_reset": seconds(reset),
            });
            info.to_string().into_bytes()
        });
    }

    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let (Some(quotas), Some(shown)) = (stream.take_state::<Quotas>(slot), &self.shown) else {
            return Step::Continue;
        };
        let (mut text, names) = (Vec::with_capacity(24), shown.names.load());
        for quota in &quotas.0 {
            let Some(names) = names.get(quota.rule) else { continue };
            let headers = &mut stream.response.headers;
            let mut digits = itoa::Buffer::new();
            headers.set(&names.limit, digits.format(quota.limit).as_bytes());
            headers.set(&names.remaining, digits.format(quota.taken.remaining).as_bytes());
            headers.set(&names.reset, hundredths(&mut text, quota.taken.reset));
        }
        Step::Continue
    }
}

/// Seconds, floored to a hundredth.
fn seconds(time: Duration) -> f64 {
    (time.as_millis() / 10) as f64 / 100.0
}

/// [`seconds`] as text, without zeros at its end.
fn hundredths(text: &mut Vec<u8>, time: Duration) -> &[u8] {
    text.clear();
    text.extend_from_slice(itoa::Buffer::new().format(time.as_secs()).as_bytes());
    let rest = (time.subsec_millis() / 10) as u8;
    if rest > 0 {
        text.extend([b'.', b'0' + rest / 10]);
        text.extend((!rest.is_multiple_of(10)).then_some(b'0' + rest % 10));
    }
    text
}

impl Config {
    /// What makes it another limit, for which counting begins anew.
    fn told_apart_by(&self) -> String {
        let rules = self.rules.iter().flatten();
        let rules: Vec<_> = rules.map(|r| (&r.count, &r.time_window, &r.key, &r.header_prefix)).collect();
        let parts = serde_json::json!([
            self.count,
            self.time_window,
            rules,
            self.key,
            self.key_type == KeyType::Var,
            self.key_type == KeyType::Constant,
            self.window_type == Window::Sliding,
            self.rejected_code,
            self.rejected_msg,
            self.allow_degradation,
            self.show_limit_quota_header,
            self.group,
        ]);
        let mut parts = parts.to_string();
        if self.policy != "local" {
            parts = format!("{parts}{} {:?} {}", self.policy, self.redis, self.sync_interval);
        }
        parts
    }

    /// How often what was counted here is told to Redis; `None` for at once.
    fn sync_interval(&self) -> Option<Duration> {
        (self.sync_interval != -1.0).then(|| Duration::try_from_secs_f64(self.sync_interval).ok()).flatten()
    }

    /// What APISIX finds wrong with the interval where it counts in Redis.
    fn check_interval(&self) -> Result<(), ConfigError> {
        let refused = |reason| Err(ConfigError::field("sync_interval", reason));
        if self.policy == "local" || self.sync_interval == -1.0 {
            return Ok(());
        }
        if self.sync_interval < 0.1 {
            return refused("sync_interval should not be smaller than 0.1");
        }
        let window = self.time_window.as_ref().and_then(Value::as_f64);
        if window.is_some_and(|window| self.sync_interval >= window) {
            return refused("sync_interval should be smaller than time_window");
        }
        Ok(())
    }
}

fn rules(config: &Config) -> Result<Vec<Rule>, ConfigError> {
    let Some(rules) = &config.rules else {
        let (Some(count), Some(time_window)) = (&config.count, &config.time_window) else {
            return Err(ConfigError::new("count and time_window, or rules, are required"));
        };
        let key = Key::new(&config.key, config.key_type)?;
        return Ok(vec![Rule {
            count: Number::new(count, 1).in_key("count")?,
            time_window: Number::new(time_window, 1).in_key("time_window")?,
            key,
            owner: None,
        }]);
    };
    if config.count.is_some() || config.time_window.is_some() {
        return Err(ConfigError::field("rules", BOTH));
    }
    if config.group.is_some() {
        return Err(ConfigError::field("group", "group and rules cannot be specified at the same time"));
    }
    let made = rules.iter().enumerate().map(|(index, rule)| {
        let rule = || {
            if rules.iter().take(index).any(|earlier| earlier.key == rule.key) {
                return Err(ConfigError::field("key", format!("duplicate key '{}' in rules", rule.key)));
            }
            Ok(Rule {
                count: Number::new(&rule.count, 1).in_key("count")?,
                time_window: Number::new(&rule.time_window, 1).in_key("time_window")?,
                key: Key::Combination(apisix::template(&rule.key).in_key("key")?),
                owner: None,
            })
        };
        rule().in_index(index).in_key("rules")
    });
    collect(made)
}

impl Shown {
    /// # Errors
    /// A prefix that no header can have.
    fn new(config: &Config, metadata: Arc<Metadata>) -> Result<Arc<Shown>, ConfigError> {
        let prefix = |(index, rule): (usize, &RuleConfig)| {
            Some(rule.header_prefix.clone().unwrap_or_else(|| (index + 1).to_string()))
        };
        let prefixes: Box<[Option<String>]> = match &config.rules {
            Some(rules) => rules.iter().enumerate().map(prefix).collect(),
            None => [None].into(),
        };
        let usual = HeaderTexts::default();
        for (index, prefix) in prefixes.iter().enumerate() {
            usual.names(prefix.as_deref()).in_key("header_prefix").in_index(index).in_key("rules")?;
        }
        let shown = Arc::new(Shown { metadata, prefixes, names: ArcSwap::default() });
        shown.choose();
        shown.metadata.follow(&shown, Shown::choose);
        Ok(shown)
    }

    /// Has the headers be called as the metadata says now.
    fn choose(&self) {
        let told = self.metadata.get::<HeaderTexts>().unwrap_or_default();
        // Both parts of them are names by themselves.
        let names = self.prefixes.iter().filter_map(|prefix| told.names(prefix.as_deref()).ok()).collect();
        self.names.store(Arc::new(names));
    }
}

impl Default for HeaderTexts {
    fn default() -> HeaderTexts {
        let name = |part: &str| format!("X-RateLimit-{part}");
        HeaderTexts {
            limit_header: name("Limit"),
            remaining_header: name("Remaining"),
            reset_header: name("Reset"),
        }
    }
}

impl HeaderTexts {
    fn of_metadata(texts: HeaderTexts) -> Result<HeaderTexts, ConfigError> {
        let HeaderTexts { limit_header, remaining_header, reset_header } = &texts;
        header_names::one(limit_header, "limit_header")?;
        header_names::one(remaining_header, "remaining_header")?;
        header_names::one(reset_header, "reset_header")?;
        Ok(texts)
    }

    /// The names for a rule: its prefix, if it has one, stands before the first `RateLimit-`, whatever is before that.
    fn names(&self, prefix: Option<&str>) -> Result<Names, ConfigError> {
        const BASE: &str = "RateLimit-";
        let name = |text: &str| {
            let text = prefix.map_or_else(
                || text.to_owned(),
                |prefix| text.replacen(BASE, &format!("{prefix}-{BASE}"), 1),
            );
            HeaderName::as_spelled(&text).map_err(|error| ConfigError::new(error.to_string()))
        };
        Ok(Names {
            limit: name(&self.limit_header)?,
            remaining: name(&self.remaining_header)?,
            reset: name(&self.reset_header)?,
        })
    }
}
