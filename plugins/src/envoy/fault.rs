//! Envoy's fault filter (source/extensions/filters/http/fault/fault_filter.cc): delays and aborts.

#[cfg(test)]
mod tests;

use crate::envoy::{self, Fraction};
use serde_json::Value;
use sixfold_core::cluster::ClusterCell;
use sixfold_core::error::ConfigError;
use sixfold_core::flags::Flag;
use sixfold_core::headers::{HeaderName, Known};
use sixfold_core::matcher::HeaderMatcher;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::route::{Action, ClusterChoice};
use sixfold_core::stream::Stream;
use sixfold_xds_api::any::struct_to_json;
use sixfold_xds_api::matcher;
use sixfold_xds_api::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use sixfold_xds_api::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use sixfold_xds_api::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// Whose dynamic metadata it is.
const NAME: &str = "envoy.filters.http.fault";

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.fault.`, of all configurations of the filter together.
    pub struct FaultStats {
        counters: [delays_injected, aborts_injected, response_rl_injected, faults_overflow],
        gauges: [active_faults],
        histograms: [],
    }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build)
}

/// The most specific configuration holds whole.
fn build(config: HttpFault, mut overrides: Vec<HttpFault>, context: &BuildContext) -> Built {
    let stats = FaultStats::new(&context.metrics, &format!("{}fault.", context.scope));
    let fault = Fault::new(overrides.pop().unwrap_or(config), stats)?;
    Ok(Plugin::of(fault).access(Fault::access).build())
}

struct Fault {
    delay: Option<(Delay, Fraction)>,
    abort: Option<(Abort, Fraction, String)>,
    upstream_cluster: String,
    headers: Vec<HeaderMatcher>,
    downstream_nodes: Vec<String>,
    max_active: Option<u32>,
    active: Arc<AtomicU32>,
    metadata: Vec<(Arc<str>, Value)>,
    stats: FaultStats,
}

enum Delay {
    Fixed(Duration),
    Header,
}

enum Abort {
    Http(u16),
    Grpc(u32),
    Header,
}

/// A fault under way; it counts until the stream ends.
struct Active(Arc<AtomicU32>, FaultStats);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
        self.1.active_faults().dec();
    }
}

/// Headers with which a request asks for its own faults.
struct FaultHeaders {
    delay: HeaderName,
    delay_percentage: HeaderName,
    abort: HeaderName,
    abort_grpc: HeaderName,
    abort_percentage: HeaderName,
}

static HEADERS: LazyLock<Option<FaultHeaders>> = LazyLock::new(|| {
    let name = |suffix: &str| HeaderName::new(&format!("x-envoy-fault-{suffix}")).ok();
    Some(FaultHeaders {
        delay: name("delay-request")?,
        delay_percentage: name("delay-request-percentage")?,
        abort: name("abort-request")?,
        abort_grpc: name("abort-grpc-request")?,
        abort_percentage: name("abort-request-percentage")?,
    })
});

impl Fault {
    fn new(config: HttpFault, stats: FaultStats) -> Result<Fault, ConfigError> {
        if config.response_rate_limit.is_some() {
            return Err(ConfigError::field("response_rate_limit", "is not supported"));
        }
        let runtime = [
            ("delay_percent_runtime", &config.delay_percent_runtime),
            ("abort_percent_runtime", &config.abort_percent_runtime),
            ("delay_duration_runtime", &config.delay_duration_runtime),
            ("abort_http_status_runtime", &config.abort_http_status_runtime),
            ("max_active_faults_runtime", &config.max_active_faults_runtime),
            ("abort_grpc_status_runtime", &config.abort_grpc_status_runtime),
            ("response_rate_limit_percent_runtime", &config.response_rate_limit_percent_runtime),
        ];
        if let Some((field, _)) = runtime.iter().find(|(_, key)| !key.is_empty()) {
            return Err(ConfigError::field(field, "is not supported"));
        }
        let delay = config.delay.map(|delay| {
            let kind =
                match delay.fault_delay_secifier {
                    Some(FaultDelaySecifier::FixedDelay(time)) => {
                        let time = duration(time.seconds, time.nanos).filter(|t| !t.is_zero());
                        Delay::Fixed(time.ok_or_else(|| {
                            ConfigError::field("delay.fixed_delay", "must be greater than 0")
                        })?)
                    }
                    Some(FaultDelaySecifier::HeaderDelay(_)) => Delay::Header,
                    None => {
                        return Err(ConfigError::field(
                            "delay",
                            "one of fixed_delay and header_delay is missing",
                        ));
                    }
                };
            Ok((kind, Fraction::new(delay.percentage)))
        });
        let metadata = config.filter_metadata.map(struct_to_json);
        Ok(Fault {
            delay: delay.transpose()?,
            abort: config.abort.as_ref().map(abort).transpose()?,
            upstream_cluster: config.upstream_cluster,
            headers: matcher::headers(&config.headers, "headers")?,
            downstream_nodes: config.downstream_nodes,
            max_active: config.max_active_faults.map(|n| n.value),
            active: Arc::default(),
            metadata: match metadata {
                Some(Value::Object(map)) => map.into_iter().map(|(k, v)| (k.into(), v)).collect(),
                _ => Vec::new(),
            },
            stats,
        })
    }

    /// Whether the request is one that faults are for.
    fn is_meant(&self, stream: &Stream) -> bool {
        let node = || stream.request.headers.get(Known::X_ENVOY_DOWNSTREAM_SERVICE_NODE);
        let node_is = |wanted: &String| node().is_some_and(|n| n == wanted.as_bytes());
        (self.upstream_cluster.is_empty() || goes_to(stream, &self.upstream_cluster))
            && (self.downstream_nodes.is_empty() || self.downstream_nodes.iter().any(node_is))
            && self.headers.iter().all(|h| h.matches(&stream.request))
    }

    fn delay(&self, stream: &Stream) -> Option<Duration> {
        let (delay, fraction) = self.delay.as_ref()?;
        let headers = HEADERS.as_ref()?;
        let (time, fraction) = match delay {
            Delay::Fixed(time) => (*time, *fraction),
            Delay::Header => {
                let ms = number(stream, &headers.delay)?;
                (Duration::from_millis(ms), lowered(*fraction, stream, &headers.delay_percentage))
            }
        };
        (!time.is_zero() && fraction.draw()).then_some(time)
    }

    fn abort(&self, stream: &Stream) -> Option<LocalReply> {
        let (abort, fraction, body) = self.abort.as_ref()?;
        let headers = HEADERS.as_ref()?;
        let (status, grpc, fraction) = match abort {
            Abort::Http(status) => (*status, None, *fraction),
            Abort::Grpc(status) => (200, Some(*status), *fraction),
            Abort::Header => {
                let fraction = lowered(*fraction, stream, &headers.abort_percentage);
                let http = number(stream, &headers.abort).and_then(|n| u16::try_from(n).ok());
                match http.filter(|status| (200..600).contains(status)) {
                    Some(status) => (status, None, fraction),
                    None => (200, Some(u32::try_from(number(stream, &headers.abort_grpc)?).ok()?), fraction),
                }
            }
        };
        if !fraction.draw() {
            return None;
        }
        let mut reply = LocalReply::new(status, body.clone(), "fault_filter_abort");
        reply.grpc_status = grpc;
        reply.flag = Some(Flag::FI);
        Some(reply)
    }

    /// Counts the fault and says so in the metadata; `false` when there are too many (`tryIncActiveFaults`).
    fn begin(&self, stream: &mut Stream, slot: Slot) -> bool {
        if stream.state::<Active>(slot).is_some() {
            return true;
        }
        if self.max_active.is_some_and(|max| self.active.load(Relaxed) >= max) {
            self.stats.faults_overflow().inc();
            return false;
        }
        self.active.fetch_add(1, Relaxed);
        self.stats.active_faults().inc();
        stream.set_state(slot, Active(self.active.clone(), self.stats.clone()));
        let entries = self.metadata.iter().map(|(key, value)| (NAME.into(), key.clone(), value.clone()));
        stream.metadata.extend(entries);
        true
    }

    fn abort_step<'a>(&self, stream: &mut Stream, slot: Slot) -> Step<'a> {
        match self.abort(stream) {
            Some(reply) if self.begin(stream, slot) => {
                self.stats.aborts_injected().inc();
                Step::Respond(reply)
            }
            _ => Step::Continue,
        }
    }

    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        if !self.is_meant(stream) {
            return Step::Continue;
        }
        let Some(delay) = self.delay(stream).filter(|_| self.begin(stream, slot)) else {
            return self.abort_step(stream, slot);
        };
        self.stats.delays_injected().inc();
        stream.flags.insert(Flag::DI);
        Step::Wait(Box::pin(async move {
            tokio::time::sleep(delay).await;
            self.abort_step(stream, slot)
        }))
    }
}

fn duration(seconds: i64, nanos: i32) -> Option<Duration> {
    Some(Duration::new(seconds.try_into().ok()?, nanos.try_into().ok()?))
}

fn abort(config: &FaultAbort) -> Result<(Abort, Fraction, String), ConfigError> {
    let kind = match &config.error_type {
        Some(ErrorType::HttpStatus(status)) => {
            let status = u16::try_from(*status).ok().filter(|s| (200..600).contains(s));
            Abort::Http(
                status.ok_or_else(|| ConfigError::field("abort.http_status", "must be from 200 to 599"))?,
            )
        }
        Some(ErrorType::GrpcStatus(status)) => Abort::Grpc(*status),
        Some(ErrorType::HeaderAbort(_)) => Abort::Header,
        None => {
            let reason = "one of http_status, grpc_status and header_abort is missing";
            return Err(ConfigError::field("abort", reason));
        }
    };
    let body = match config.response_body.as_str() {
        "" => "fault filter abort".to_owned(),
        body => body.to_owned(),
    };
    Ok((kind, Fraction::new(config.percentage), body))
}

fn goes_to(stream: &Stream, cluster: &str) -> bool {
    let is = |cell: &ClusterCell| *cell.name == *cluster;
    match stream.route.as_deref().map(|r| &r.action) {
        Some(Action::Forward(forward)) => match &forward.cluster {
            ClusterChoice::Named(cell) => is(cell),
            ClusterChoice::Header(name, _) => {
                name.values(&stream.request).next().is_some_and(|v| v == cluster.as_bytes())
            }
            // The member is drawn with the request's own random number, so the answer is the same later.
            ClusterChoice::Weighted(members) => {
                let member = sixfold_core::hash::weighted(members, stream).map(|(_, member)| member);
                matches!(member.map(|m| &m.cluster), Some(ClusterChoice::Named(cell)) if is(cell))
            }
        },
        _ => false,
    }
}

fn number(stream: &Stream, name: &HeaderName) -> Option<u64> {
    stream.request.headers.get_str(name)?.trim().parse().ok()
}

/// A request may lower its fraction, not raise it.
fn lowered(fraction: Fraction, stream: &Stream, name: &HeaderName) -> Fraction {
    let asked = number(stream, name).and_then(|n| u32::try_from(n).ok());
    Fraction { numerator: asked.map_or(fraction.numerator, |n| n.min(fraction.numerator)), ..fraction }
}
