//! Envoy's local_ratelimit filter (source/extensions/filters/http/local_ratelimit/local_ratelimit.cc): token buckets
//! of this process, over all of its workers.

mod limiter;
#[cfg(test)]
mod tests;

use crate::envoy;
use crate::shared::counters::Counters;
use limiter::{Buckets, Kept, Verdict};
use sixfold_core::cluster::ClusterCell;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::flags::Flag;
use sixfold_core::header_ops::{HeaderOps, Side};
use sixfold_core::headers::Known;
use sixfold_core::metrics::scope;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::rate_limit::{self, Descriptor, LimitPolicy, OfHost};
use sixfold_core::runtime::Fraction;
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::config::core::v3::HeaderValueOption;
use sixfold_xds_api::pb::envoy::extensions::common::ratelimit::v3::{
    VhRateLimitsOptions, XRateLimitHeadersRfcVersion,
};
use sixfold_xds_api::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit as Config;
use sixfold_xds_api::values::{bool_or, enum_value, runtime_fraction};
use sixfold_xds_api::{header_ops, rate_limit as compiled};
use smallvec::SmallVec;
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// `google.rpc.Code.RESOURCE_EXHAUSTED`
const RESOURCE_EXHAUSTED: u32 = 8;

/// What a request that is limited is told, and the response code details.
const LIMITED: &str = "local_rate_limited";

sixfold_core::stat_block! {
    /// Statistics under `STAT_PREFIX.http_local_rate_limit.`.
    pub struct LimitStats {
        counters: [enabled, enforced, rate_limited, ok, shadow_mode],
        gauges: [],
        histograms: [],
    }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build).told_apart()
}

/// The most specific configuration holds whole.
fn build(own: Config, levels: Vec<Config>, context: &BuildContext) -> Built {
    if levels.iter().any(|level| level.token_bucket.is_none()) {
        // Envoy asks it of every level below the filter.
        return Err(ConfigError::field("token_bucket", "is missing: settings of a route must have one"));
    }
    let config = levels.into_iter().next_back().unwrap_or(own);
    let filter = LocalRateLimit::new(&config, context)?;
    if filter.enabled.is_none() {
        return Ok(Plugin::default());
    }
    let shows = filter.shows_headers || filter.buckets.has_descriptors();
    let plugin = Plugin::of(filter).access(LocalRateLimit::access).foretelling(LocalRateLimit::foretell);
    Ok(if shows { plugin.header_filter(LocalRateLimit::header_filter).build() } else { plugin.build() })
}

struct LocalRateLimit {
    status: u16,
    grpc_status: Option<u32>,
    buckets: Arc<Buckets>,
    /// Each connection has its own.
    per_connection: bool,
    /// The cluster whose members share the tokens evenly.
    peers: Option<Arc<ClusterCell>>,
    enabled: Option<Fraction>,
    enforced: Option<Fraction>,
    /// Of a request that would be limited, were that enforced.
    request_headers: HeaderOps,
    response_headers: HeaderOps,
    /// X-RateLimit headers are shown.
    shows_headers: bool,
    retry_after: bool,
    /// What descriptors are made by; empty, those of the route.
    policies: Box<[LimitPolicy]>,
    /// Which of the route's.
    stage: u32,
    of_host: OfHost,
    stats: LimitStats,
}

/// Of most requests one or none.
type Descriptors<'s> = SmallVec<[Descriptor<'s>; 2]>;

/// What is to become of a request.
struct Judged {
    allowed: bool,
    /// What would limit it only counts.
    shadow: bool,
    /// What the response tells of the bucket.
    shown: Option<Kept>,
    /// How long one that is limited has to wait, where that is told.
    wait: Option<Duration>,
}

/// What the response tells.
struct Shown(Kept);

impl LocalRateLimit {
    fn new(config: &Config, context: &BuildContext) -> Result<LocalRateLimit, ConfigError> {
        let Config {
            stat_prefix,
            status,
            token_bucket,
            filter_enabled,
            filter_enforced,
            request_headers_to_add_when_not_enforced,
            response_headers_to_add,
            descriptors,
            stage,
            local_rate_limit_per_downstream_connection,
            local_cluster_rate_limit,
            enable_x_ratelimit_headers,
            vh_rate_limits,
            always_consume_default_token_bucket,
            rate_limited_as_resource_exhausted,
            rate_limits,
            // The store of counters bounds how many values of a wildcard have a bucket.
            max_dynamic_descriptors: _,
            enable_retry_after_header,
        } = config;
        let per_connection = *local_rate_limit_per_downstream_connection;
        let peers = match (local_cluster_rate_limit, &context.peers) {
            (None, _) => None,
            (Some(_), _) if per_connection => {
                let reason = "must not be given together with local_rate_limit_per_downstream_connection";
                return Err(ConfigError::field("local_cluster_rate_limit", reason));
            }
            (Some(_), Some(peers)) => Some(context.clusters.cell(peers)),
            (Some(_), None) => {
                let reason = "needs cluster_manager.local_cluster_name in the bootstrap";
                return Err(ConfigError::field("local_cluster_rate_limit", reason));
            }
        };
        let share = |value: &Option<_>, field| {
            value.as_ref().map(|value| runtime_fraction(&context.runtime, value)).transpose().in_key(field)
        };
        let version = enum_value::<XRateLimitHeadersRfcVersion>(
            *enable_x_ratelimit_headers,
            "enable_x_ratelimit_headers",
        )?;
        // What is no failure limits as 429, as in Envoy.
        let status =
            status.and_then(|status| u16::try_from(status.code).ok()).filter(|status| *status >= 400);
        let consume_default = bool_or(always_consume_default_token_bucket, true);
        Ok(LocalRateLimit {
            status: status.unwrap_or(429),
            grpc_status: rate_limited_as_resource_exhausted.then_some(RESOURCE_EXHAUSTED),
            buckets: Arc::new(Buckets::new(
                token_bucket,
                consume_default,
                descriptors,
                Counters::of(&context.shared),
            )?),
            per_connection,
            peers,
            enabled: share(filter_enabled, "filter_enabled")?,
            enforced: share(filter_enforced, "filter_enforced")?,
            request_headers: additions(
                request_headers_to_add_when_not_enforced,
                "request_headers_to_add_when_not_enforced",
            )?,
            response_headers: additions(response_headers_to_add, "response_headers_to_add")?,
            shows_headers: version == XRateLimitHeadersRfcVersion::DraftVersion03,
            retry_after: *enable_retry_after_header,
            policies: compiled::policies(
                rate_limits,
                &context.local_cluster,
                &context.runtime,
                "rate_limits",
            )?,
            stage: *stage,
            of_host: match enum_value(*vh_rate_limits, "vh_rate_limits")? {
                VhRateLimitsOptions::Override => OfHost::Fallback,
                VhRateLimitsOptions::Include => OfHost::Included,
                VhRateLimitsOptions::Ignore => OfHost::Ignored,
            },
            stats: LimitStats::new(&context.metrics, &scope(&[stat_prefix, "http_local_rate_limit"])),
        })
    }

    /// This process's part of the tokens.
    fn share(&self) -> f64 {
        let cluster = self.peers.as_ref().and_then(|peers| peers.load());
        match cluster.map_or(0, |cluster| cluster.hosts.load().total()) {
            0 => 1.0,
            members => 1.0 / members as f64,
        }
    }

    /// What the request is, as the filter or else its route and virtual host say.
    fn descriptors<'s>(&'s self, stream: &'s Stream) -> Descriptors<'s> {
        let mut descriptors = Descriptors::new();
        if !self.buckets.has_descriptors() {
            return descriptors;
        }
        if !self.policies.is_empty() {
            descriptors.extend(self.policies.iter().filter_map(|policy| policy.describe(stream)));
            return descriptors;
        }
        // Those with a key that turns them off are for other filters.
        let policies = rate_limit::policies_of(stream, self.stage, self.of_host);
        let policies = policies.filter(|policy| policy.enabled.is_none());
        descriptors.extend(policies.filter_map(|policy| policy.describe(stream)));
        descriptors
    }

    /// The buckets of a request, of which there is a token in a process that has just begun: those that only count, and the
    /// first that limits.
    fn foretell(&self, stream: &Stream) -> Vec<String> {
        if self.enabled.is_none_or(|share| !share.draw(0)) {
            return Vec::new();
        }
        let is_enforced = self.enforced.is_some_and(|share| share.draw(0));
        let of_bucket = |(most, shadow): (u64, bool)| {
            let what = match !shadow && is_enforced {
                false => "counts it as limited".to_owned(),
                true => format!("answers {} ({LIMITED})", self.status),
            };
            if most == 0 {
                return what;
            }
            let whose = if self.per_connection { " of its connection" } else { "" };
            format!("{what} once a bucket of {most} tokens{whose} is empty")
        };
        self.buckets.foretell(&self.descriptors(stream)).into_iter().map(of_bucket).collect()
    }

    fn judge(&self, stream: &Stream, now: Instant) -> Judged {
        let descriptors = self.descriptors(stream);
        let buckets = self.per_connection.then(|| {
            let fresh = || Arc::new(self.buckets.anew(now)) as Arc<dyn Any + Send + Sync>;
            stream.connection.kept.limiter.get_or_init(fresh).downcast_ref::<Buckets>()
        });
        let verdict = match buckets.flatten() {
            Some(buckets) => buckets.judge(&descriptors, 1.0, now),
            None => self.buckets.judge(&descriptors, self.share(), now),
        };
        let Verdict { allowed, told, shadow, x_ratelimit } = verdict;
        let told_wait = told.as_ref().filter(|_| !allowed && self.retry_after && self.status == 429);
        Judged {
            allowed,
            shadow,
            wait: told_wait.map(|told| told.next_token(now)),
            shown: told.filter(|_| x_ratelimit.unwrap_or(self.shows_headers)).map(limiter::Told::keep),
        }
    }

    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        if !self.enabled.as_ref().is_some_and(|share| share.draw(fastrand::u64(..))) {
            return Step::Continue;
        }
        self.stats.enabled().inc();
        let Judged { allowed, shadow, shown, wait } = self.judge(stream, Instant::now());
        if let Some(shown) = shown {
            stream.set_state(slot, Shown(shown));
        }
        if allowed {
            self.stats.ok().inc();
            return Step::Continue;
        }
        self.stats.rate_limited().inc();
        if shadow {
            self.stats.shadow_mode().inc();
            return Step::Continue;
        }
        if !self.enforced.as_ref().is_some_and(|share| share.draw(fastrand::u64(..))) {
            self.request_headers.apply(stream, Side::Request);
            return Step::Continue;
        }
        self.stats.enforced().inc();
        let mut reply = LocalReply::new(self.status, LIMITED, LIMITED);
        (reply.flag, reply.grpc_status) = (Some(Flag::RL), self.grpc_status);
        // Formats may ask for what the answer has already.
        std::mem::swap(&mut stream.response.headers, &mut reply.headers);
        self.response_headers.apply(stream, Side::Response);
        std::mem::swap(&mut stream.response.headers, &mut reply.headers);
        if let Some(wait) = wait {
            let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
            reply.headers.set_if_absent(Known::RETRY_AFTER, seconds.to_string().as_bytes());
        }
        Step::Respond(reply)
    }

    /// The headers of draft-ietf-httpapi-ratelimit-headers-03, under the names that they had before.
    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let Some(shown) = stream.take_state::<Shown>(slot) else { return Step::Continue };
        let (limit, remaining, next_token) = shown.0.numbers(Instant::now());
        for (name, value) in [
            ("x-ratelimit-limit", limit),
            ("x-ratelimit-remaining", remaining),
            ("x-ratelimit-reset", next_token.as_secs_f64().ceil() as u64),
        ] {
            stream.response.headers.append(name, value.to_string().as_bytes());
        }
        Step::Continue
    }
}

fn additions(values: &[HeaderValueOption], field: &str) -> Result<HeaderOps, ConfigError> {
    Ok(HeaderOps { add: header_ops::additions(values, field)?, ..HeaderOps::default() })
}
