//! Envoy's fault filter (source/extensions/filters/http/fault/fault_filter.cc): delays and aborts.
//!
//! Runtime keys are read when the configuration is compiled. Those with a downstream cluster's name in them
//! (`x-envoy-downstream-service-cluster`) are not.

#[cfg(test)]
mod tests;

use crate::envoy;
use serde_json::Value;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::flags::Flag;
use sixfold_core::headers::{HeaderName, Known};
use sixfold_core::matcher::HeaderMatcher;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::route::Route;
use sixfold_core::runtime::{Fraction, Runtime};
use sixfold_core::stream::Stream;
use sixfold_xds_api::any::struct_to_json;
use sixfold_xds_api::pb::envoy::extensions::filters::common::fault::v3::FaultDelay;
use sixfold_xds_api::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use sixfold_xds_api::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use sixfold_xds_api::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault};
use sixfold_xds_api::pb::envoy::r#type::v3::FractionalPercent;
use sixfold_xds_api::values::{duration, fractional_percent};
use sixfold_xds_api::{destructure, matcher};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// Whose dynamic metadata it is.
const NAME: &str = "envoy.filters.http.fault";

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.fault.`, of all configurations of the filter together.
    pub struct FaultStats {
        counters: [delays_injected, aborts_injected, faults_overflow],
        gauges: [active_faults],
        histograms: [],
        zeros: [Counter "response_rl_injected"],
    }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build)
}

/// The most specific configuration holds whole.
fn build(config: HttpFault, mut overrides: Vec<HttpFault>, context: &BuildContext) -> Built {
    let scope = format!("{}fault.", context.scope);
    let make = || FaultStats::new(&context.metrics, &scope);
    let stats = context.shared.get_or_insert(&format!("statistics {scope}"), make);
    let fault = Fault::new(&overrides.pop().unwrap_or(config), stats, &context.runtime)?;
    Ok(Plugin::of(fault).access(Fault::access).foretelling(Fault::foretell).build())
}

struct Fault {
    delay: Option<(Delay, Share)>,
    abort: Option<(Abort, Share, String)>,
    upstream_cluster: String,
    headers: Vec<HeaderMatcher>,
    downstream_nodes: Vec<String>,
    /// Of all configurations with these statistics together.
    max_active: Option<u64>,
    metadata: Vec<(Arc<str>, Arc<str>, Value)>,
    /// Shared by all of a connection manager: the bound looks at the gauge.
    stats: Arc<FaultStats>,
}

enum Delay {
    Fixed(Duration),
    Header {
        /// A runtime key's, in place of what requests ask for.
        instead: Option<Duration>,
    },
}

enum Abort {
    Http(u16),
    Grpc(u32),
    Header { http: Option<u16>, grpc: Option<u32> },
}

/// The share of requests that are hit.
#[derive(Clone, Copy)]
struct Share {
    fraction: Fraction,
    /// A request may lower it: no runtime key says what it is.
    lowers: bool,
}

/// A fault under way; it counts until the stream ends.
struct Active(Arc<FaultStats>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active_faults().dec();
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

/// Runtime keys where the configuration names none.
mod keys {
    pub(super) const DELAY_PERCENT: &str = "fault.http.delay.fixed_delay_percent";
    pub(super) const DELAY_DURATION: &str = "fault.http.delay.fixed_duration_ms";
    pub(super) const ABORT_PERCENT: &str = "fault.http.abort.abort_percent";
    pub(super) const ABORT_HTTP_STATUS: &str = "fault.http.abort.http_status";
    pub(super) const ABORT_GRPC_STATUS: &str = "fault.http.abort.grpc_status";
    pub(super) const MAX_ACTIVE_FAULTS: &str = "fault.http.max_active_faults";
}

/// The key that the configuration names, else the usual one.
fn key<'a>(named: &'a str, usual: &'a str) -> &'a str {
    if named.is_empty() { usual } else { named }
}

impl Fault {
    fn new(config: &HttpFault, stats: Arc<FaultStats>, runtime: &Runtime) -> Result<Fault, ConfigError> {
        destructure!(HttpFault {
            delay,
            abort,
            upstream_cluster,
            headers,
            downstream_nodes,
            max_active_faults,
            delay_percent_runtime,
            abort_percent_runtime,
            delay_duration_runtime,
            abort_http_status_runtime,
            max_active_faults_runtime,
            abort_grpc_status_runtime,
            filter_metadata,
            // There are none by downstream clusters.
            disable_downstream_cluster_stats: _
        } refusing { response_rate_limit, response_rate_limit_percent_runtime } = config);
        let delay = delay.as_ref().map(|value| {
            let share =
                Share::new(&value.percentage, runtime, key(delay_percent_runtime, keys::DELAY_PERCENT))?;
            Ok((Delay::new(value, runtime, key(delay_duration_runtime, keys::DELAY_DURATION))?, share))
        });
        let abort = abort.as_ref().map(|value| {
            let share =
                Share::new(&value.percentage, runtime, key(abort_percent_runtime, keys::ABORT_PERCENT))?;
            let http = key(abort_http_status_runtime, keys::ABORT_HTTP_STATUS);
            let grpc = key(abort_grpc_status_runtime, keys::ABORT_GRPC_STATUS);
            let body = key(&value.response_body, "fault filter abort").to_owned();
            Ok((Abort::new(value, runtime, http, grpc)?, share, body))
        });
        let max_active = runtime.whole(key(max_active_faults_runtime, keys::MAX_ACTIVE_FAULTS));
        let name: Arc<str> = NAME.into();
        let metadata = match filter_metadata.clone().map(struct_to_json) {
            Some(Value::Object(map)) => map.into_iter().map(|(k, v)| (name.clone(), k.into(), v)).collect(),
            _ => Vec::new(),
        };
        Ok(Fault {
            delay: delay.transpose().in_key("delay")?,
            abort: abort.transpose().in_key("abort")?,
            upstream_cluster: upstream_cluster.clone(),
            headers: matcher::headers(headers, "headers")?,
            downstream_nodes: downstream_nodes.clone(),
            max_active: max_active.or(max_active_faults.map(|n| n.value.into())),
            metadata,
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

    /// How long a request is held that is hit, and how many are.
    fn meant_delay(&self, stream: &Stream) -> Option<(Duration, Fraction)> {
        let (delay, share) = self.delay.as_ref()?;
        let headers = HEADERS.as_ref()?;
        let (time, fraction) = match delay {
            Delay::Fixed(time) => (*time, share.fraction),
            Delay::Header { instead } => {
                let asked = Duration::from_millis(number(stream, &headers.delay)?);
                (instead.unwrap_or(asked), share.asked(stream, &headers.delay_percentage))
            }
        };
        // Envoy counts milliseconds with a sign: what it has no number for has gone by.
        let is_ahead = !time.is_zero() && i64::try_from(time.as_millis()).is_ok();
        is_ahead.then_some((time, fraction))
    }

    fn delay(&self, stream: &Stream) -> Option<Duration> {
        let (time, fraction) = self.meant_delay(stream)?;
        fraction.draw(fastrand::u64(..)).then_some(time)
    }

    /// The answer to a request that is hit, and how many are.
    fn meant_abort(&self, stream: &Stream) -> Option<(LocalReply, Fraction)> {
        let (abort, share, body) = self.abort.as_ref()?;
        let headers = HEADERS.as_ref()?;
        let (status, grpc, fraction) = match abort {
            Abort::Http(status) => (*status, None, share.fraction),
            Abort::Grpc(status) => (200, Some(*status), share.fraction),
            Abort::Header { http, grpc } => {
                let fraction = share.asked(stream, &headers.abort_percentage);
                let asked = number(stream, &headers.abort).and_then(|n| u16::try_from(n).ok());
                match asked.filter(|status| (200..600).contains(status)) {
                    Some(status) => (http.unwrap_or(status), None, fraction),
                    None => {
                        let asked = u32::try_from(number(stream, &headers.abort_grpc)?).ok()?;
                        (200, Some(grpc.unwrap_or(asked)), fraction)
                    }
                }
            }
        };
        let mut reply = LocalReply::new(status, body.clone(), "fault_filter_abort");
        reply.grpc_status = grpc;
        reply.flag = Some(Flag::FI);
        Some((reply, fraction))
    }

    fn abort(&self, stream: &Stream) -> Option<LocalReply> {
        let (reply, fraction) = self.meant_abort(stream)?;
        fraction.draw(fastrand::u64(..)).then_some(reply)
    }

    /// What may become of a request, with how many of them it does.
    fn foretell(&self, stream: &Stream) -> Vec<String> {
        let is_drawn = |fraction: &Fraction| fraction.draw(0);
        let hit = |what: String, fraction: Fraction| format!("{what}: {fraction} requests");
        if !self.is_meant(stream) {
            return Vec::new();
        }
        let delay = self.meant_delay(stream).filter(|(_, fraction)| is_drawn(fraction));
        let delay =
            delay.map(|(time, fraction)| hit(format!("holds it for {} ms", time.as_millis()), fraction));
        let abort = self.meant_abort(stream).filter(|(_, fraction)| is_drawn(fraction));
        let abort = abort.map(|(reply, fraction)| {
            let grpc = reply.grpc_status.map(|status| format!(", gRPC {status}")).unwrap_or_default();
            hit(format!("answers {}{grpc} ({})", reply.status, reply.details), fraction)
        });
        delay.into_iter().chain(abort).collect()
    }

    /// Counts the fault and says so in the metadata; `false` when there are too many (`tryIncActiveFaults`).
    fn begin(&self, stream: &mut Stream, slot: Slot) -> bool {
        if stream.state::<Active>(slot).is_some() {
            return true;
        }
        if self.max_active.is_some_and(|max| self.stats.active_faults().get() >= max) {
            self.stats.faults_overflow().inc();
            return false;
        }
        self.stats.active_faults().inc();
        stream.set_state(slot, Active(self.stats.clone()));
        stream.metadata.extend(self.metadata.iter().cloned());
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

impl Delay {
    fn new(value: &FaultDelay, runtime: &Runtime, key: &str) -> Result<Delay, ConfigError> {
        let FaultDelay { percentage: _, fault_delay_secifier } = value;
        let instead = runtime.whole(key).map(Duration::from_millis);
        match fault_delay_secifier {
            Some(FaultDelaySecifier::FixedDelay(time)) => {
                let time = duration(time).in_key("fixed_delay")?;
                if time.is_zero() {
                    return Err(ConfigError::field("fixed_delay", "must be greater than 0"));
                }
                Ok(Delay::Fixed(instead.unwrap_or(time)))
            }
            Some(FaultDelaySecifier::HeaderDelay(_)) => Ok(Delay::Header { instead }),
            None => Err(ConfigError::new("one of fixed_delay and header_delay is missing")),
        }
    }
}

impl Abort {
    fn new(value: &FaultAbort, runtime: &Runtime, http: &str, grpc: &str) -> Result<Abort, ConfigError> {
        let FaultAbort { percentage: _, error_type, response_body: _ } = value;
        let in_range = |status: &u16| (200..600).contains(status);
        let http = runtime.whole(http).and_then(|status| u16::try_from(status).ok()).filter(in_range);
        let grpc = runtime.whole(grpc).and_then(|status| u32::try_from(status).ok());
        match error_type {
            Some(ErrorType::HttpStatus(status)) => {
                let status = u16::try_from(*status).ok().filter(in_range);
                let status =
                    status.ok_or_else(|| ConfigError::field("http_status", "must be from 200 to 599"))?;
                Ok(Abort::Http(http.unwrap_or(status)))
            }
            Some(ErrorType::GrpcStatus(status)) => Ok(Abort::Grpc(grpc.unwrap_or(*status))),
            Some(ErrorType::HeaderAbort(_)) => Ok(Abort::Header { http, grpc }),
            None => Err(ConfigError::new("one of http_status, grpc_status and header_abort is missing")),
        }
    }
}

impl Share {
    fn new(value: &Option<FractionalPercent>, runtime: &Runtime, key: &str) -> Result<Share, ConfigError> {
        let told = runtime.share(key);
        // A share that is missing is none.
        let given = value.as_ref().map_or(Ok((0, 100)), fractional_percent).in_key("percentage")?;
        let (numerator, denominator) = told.unwrap_or(given);
        Ok(Share { fraction: Fraction::new(numerator, denominator), lowers: told.is_none() })
    }

    /// That of a request, which may lower it and not raise it.
    fn asked(self, stream: &Stream, name: &HeaderName) -> Fraction {
        match number(stream, name).filter(|_| self.lowers) {
            Some(numerator) => self.fraction.at_most(numerator),
            None => self.fraction,
        }
    }
}

fn goes_to(stream: &Stream, cluster: &str) -> bool {
    let choice = stream.route.as_deref().and_then(Route::leads_to);
    choice.and_then(|choice| stream.upstream.drawn.cluster_name(choice)) == Some(cluster)
}

fn number(stream: &Stream, name: &HeaderName) -> Option<u64> {
    stream.request.headers.get_str(name)?.trim().parse().ok()
}
