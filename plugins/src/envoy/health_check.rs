//! Envoy's health_check filter (source/extensions/filters/http/health_check/health_check.cc): answers those who ask
//! whether this proxy is well, or lets them ask what is behind it.

#[cfg(test)]
mod tests;

use crate::envoy;
use sixfold_core::cluster::ClusterCell;
use sixfold_core::error::ConfigError;
use sixfold_core::flags::Flag;
use sixfold_core::matcher::HeaderMatcher;
use sixfold_core::metrics::scope;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use sixfold_xds_api::matcher;
use sixfold_xds_api::pb::envoy::extensions::filters::http::health_check::v3::HealthCheck as Config;
use sixfold_xds_api::values::positive_duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const HEALTHCHECKED_CLUSTER: &str = "x-envoy-upstream-healthchecked-cluster";
const DEGRADED: &str = "x-envoy-degraded";

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.health_check.`: checks that are answered here.
    pub struct CheckStats {
        counters: [
            request_total, ok, failed, degraded, cached_response, failed_cluster_not_found, failed_cluster_empty,
            failed_cluster_unhealthy,
        ],
        gauges: [],
        histograms: [],
    }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::routeless_filter(build)
}

fn build(config: Config, context: &BuildContext) -> Built {
    let Config { pass_through_mode, cache_time, cluster_min_healthy_percentages, headers } = config;
    let Some(pass_through) = pass_through_mode else {
        return Err(ConfigError::field("pass_through_mode", "is missing"));
    };
    let cache = cache_time.is_some().then(|| positive_duration(&cache_time, Duration::ZERO, "cache_time"));
    let cache = cache.transpose()?.map(|time| Cache { time, since: Instant::now(), last: AtomicU64::new(0) });
    if cache.is_some() && !pass_through.value {
        return Err(ConfigError::field("cache_time", "is for pass_through_mode"));
    }
    let share = |(name, share): (&String, &_)| (context.clusters.cell(name), percent(share));
    let filter = HealthCheck {
        headers: matcher::headers(&headers, "headers")?.into(),
        pass_through: pass_through.value,
        cache,
        clusters: cluster_min_healthy_percentages.iter().map(share).collect(),
        failing: context.failing_checks.clone(),
        cluster: context.local_cluster.clone(),
        stats: CheckStats::new(&context.metrics, &scope(&[&context.scope, "health_check"])),
    };
    Ok(Plugin::of(filter)
        .access(HealthCheck::access)
        .judging()
        .header_filter(HealthCheck::header_filter)
        .build())
}

/// A share of endpoints; decimals do not count, as in Envoy.
fn percent(share: &sixfold_xds_api::pb::envoy::r#type::v3::Percent) -> u64 {
    share.value.clamp(0.0, 100.0) as u64
}

struct HealthCheck {
    headers: Box<[HeaderMatcher]>,
    /// Checks go on to the upstream, as long as this proxy itself is well.
    pass_through: bool,
    cache: Option<Cache>,
    /// Clusters, and the percentage of their endpoints that must be well.
    clusters: Box<[(Arc<ClusterCell>, u64)]>,
    /// Whether somebody has told this proxy to fail.
    failing: Arc<AtomicBool>,
    /// What this proxy is one of.
    cluster: Arc<str>,
    stats: CheckStats,
}

/// The upstream's last answer to a check.
struct Cache {
    /// How long it is good.
    time: Duration,
    since: Instant,
    /// Milliseconds since then when it came, and what it was, in one number that workers share; 0 is none.
    last: AtomicU64,
}

#[derive(Clone, Copy)]
struct Health {
    status: u16,
    degraded: bool,
}

/// Why a check is answered as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// The proxy is well, and so are the clusters that are asked for.
    Well,
    /// Somebody has told this proxy to fail.
    Told,
    /// The upstream's last answer is good still.
    Cached,
    /// A cluster is not there.
    NotFound,
    /// It has no endpoints.
    Empty,
    /// Too few of them are well.
    Unhealthy,
}

impl Reason {
    /// Response code details.
    fn details(self) -> &'static str {
        match self {
            Reason::Well => "health_check_ok",
            Reason::Told => "health_check_failed",
            Reason::Cached => "health_check_cached",
            Reason::NotFound => "health_check_failed_cluster_not_found",
            Reason::Empty => "health_check_failed_cluster_empty",
            Reason::Unhealthy => "health_check_failed_cluster_unhealthy",
        }
    }
}

/// The request is a check.
struct Check;

impl Cache {
    /// The answer, as long as it is good.
    fn get(&self) -> Option<Health> {
        let last = self.last.load(Relaxed);
        let came = Duration::from_millis(last >> 17);
        let is_good = last != 0 && self.since.elapsed() < came + self.time;
        is_good.then_some(Health { status: last as u16, degraded: last & (1 << 16) != 0 })
    }

    /// Keeps an answer, unless there is one that is good: what is answered from it does not make it so for longer.
    fn put(&self, health: Health) {
        if self.get().is_none() {
            let came = (self.since.elapsed().as_millis() as u64) << 17;
            self.last.store(came | u64::from(health.degraded) << 16 | u64::from(health.status), Relaxed);
        }
    }
}

impl HealthCheck {
    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        if !self.headers.iter().all(|header| header.matches(&stream.request)) {
            return Step::Continue;
        }
        stream.set_state(slot, Check);
        stream.health_check = true;
        let cached = self.cache.as_ref().and_then(Cache::get);
        let failing = self.failing.load(Relaxed);
        if self.pass_through && !failing && cached.is_none() {
            return Step::Continue;
        }
        let status = |status| Health { status, degraded: false };
        let (health, reason) = match cached {
            _ if failing => (status(503), Reason::Told),
            Some(health) => (health, Reason::Cached),
            None => match self.clusters.iter().find_map(|(cluster, share)| lacking(cluster, *share)) {
                Some(reason) => (status(503), reason),
                None => (status(200), Reason::Well),
            },
        };
        self.count(health, reason);
        let mut reply = LocalReply::new(health.status, "", reason.details());
        if !(200..300).contains(&health.status) {
            reply.flag = Some(Flag::LH);
        }
        if health.degraded {
            reply.headers.set(DEGRADED, b"");
        }
        Step::Respond(reply)
    }

    fn count(&self, health: Health, reason: Reason) {
        let stats = &self.stats;
        stats.request_total().inc();
        let well = (200..300).contains(&health.status);
        if well {
            stats.ok().inc()
        } else {
            stats.failed().inc()
        }
        if health.degraded {
            stats.degraded().inc();
        }
        match reason {
            Reason::Well | Reason::Told => {}
            Reason::Cached => stats.cached_response().inc(),
            Reason::NotFound => stats.failed_cluster_not_found().inc(),
            Reason::Empty => stats.failed_cluster_empty().inc(),
            Reason::Unhealthy => stats.failed_cluster_unhealthy().inc(),
        }
    }

    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        if stream.take_state::<Check>(slot).is_none() {
            return Step::Continue;
        }
        let response = &mut stream.response;
        if let Some(cache) = self.cache.as_ref().filter(|_| self.pass_through && !self.failing.load(Relaxed))
        {
            let degraded = response.headers.get(DEGRADED).is_some();
            cache.put(Health { status: response.status, degraded });
        }
        response.headers.set(HEALTHCHECKED_CLUSTER, self.cluster.as_bytes());
        Step::Continue
    }
}

/// Why a cluster has too few endpoints that are well, if it has.
fn lacking(cell: &ClusterCell, share: u64) -> Option<Reason> {
    let Some(cluster) = cell.load() else { return Some(Reason::NotFound) };
    let hosts = cluster.hosts.load();
    let (total, well) = (hosts.total() as u64, (hosts.healthy() + hosts.degraded()) as u64);
    match total {
        0 => (share > 0).then_some(Reason::Empty),
        total => (100 * well < total * share).then_some(Reason::Unhealthy),
    }
}
