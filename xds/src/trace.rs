//! Tracing of connection managers, and the collectors of spans.

mod opentelemetry;
mod zipkin;

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use sixfold_core::access_log::LogSink;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::export::{ExportStats, Exporter, Pace, Ship};
use sixfold_core::hcm::SpanKind;
use sixfold_core::runtime::Fraction;
use sixfold_core::stream::Stream;
use sixfold_core::trace::{Part, Propagation, Provider, RouteTracing, Sampling, SpanFormat, Tracing};
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::route::v3::Tracing as ProtoRouteTracing;
use sixfold_xds_api::pb::envoy::config::trace::v3::tracing::Http as ProtoProvider;
use sixfold_xds_api::pb::envoy::config::trace::v3::tracing::http::ConfigType;
use sixfold_xds_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::Tracing as ProtoTracing;
use sixfold_xds_api::pb::envoy::r#type::v3::{FractionalPercent, Percent};
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, fraction};

use crate::context::Context;
use crate::custom_tags;

const ZIPKIN: &str = "envoy.config.trace.v3.ZipkinConfig";
const OPEN_TELEMETRY: &str = "envoy.config.trace.v3.OpenTelemetryConfig";

/// Bytes of a path in tags.
const MAX_PATH: u32 = 256;
/// When spans are sent: as Envoy's tracers do, five at once or after a while, which here is a number of bytes.
const PACE: Pace = Pace { interval: Duration::from_secs(1), bytes: 16 << 10 };

/// `tracing` of a connection manager; `by_request_id` is what the extension of request ids says.
pub(crate) fn compile(
    context: &Context,
    value: &ProtoTracing,
    kind: SpanKind,
    by_request_id: bool,
) -> Result<Tracing> {
    let ProtoTracing {
        client_sampling,
        random_sampling,
        overall_sampling,
        // Adds events of the stream to spans, of which there are none here.
        verbose: _,
        max_path_tag_length,
        custom_tags,
        provider,
        spawn_upstream_span,
        operation,
        upstream_operation,
        no_context_propagation,
    } = value;
    refuse!(operation, upstream_operation);
    let share =
        |percent: &Option<Percent>, key: &str, field: &str| share(context, percent, key).in_key(field);
    let sampling = Sampling {
        client: share(client_sampling, "tracing.client_enabled", "client_sampling")?,
        random: share(random_sampling, "tracing.random_sampling", "random_sampling")?,
        overall: share(overall_sampling, "tracing.global_enabled", "overall_sampling")?,
    };
    let provider = match provider {
        Some(value) => Some(self::provider(context, value).in_key("provider")?),
        None => context.tracer.clone(),
    };
    Ok(Tracing {
        kind,
        sampling,
        by_request_id,
        max_path: max_path_tag_length.as_ref().map_or(MAX_PATH, |length| length.value) as usize,
        tags: custom_tags::tags(custom_tags, "custom_tags")?,
        spawns_upstream: spawn_upstream_span.as_ref().is_some_and(|spawns| spawns.value),
        provider,
        is_silent: *no_context_propagation,
    })
}

/// `tracing` of a route.
pub(crate) fn of_route(context: &Context, value: &ProtoRouteTracing) -> Result<RouteTracing> {
    let ProtoRouteTracing {
        client_sampling,
        random_sampling,
        overall_sampling,
        custom_tags,
        operation,
        upstream_operation,
    } = value;
    refuse!(operation, upstream_operation);
    // What is not given is everything, not what the connection manager says (common/router/config_impl.cc RouteTracingImpl).
    let share = |value: &Option<FractionalPercent>, key: &str, field: &str| {
        let all = FractionalPercent { numerator: 100, ..FractionalPercent::default() };
        fraction(&context.runtime, key, value.as_ref().unwrap_or(&all)).in_key(field)
    };
    let sampling = Sampling {
        client: share(client_sampling, "tracing.client_enabled", "client_sampling")?,
        random: share(random_sampling, "tracing.random_sampling", "random_sampling")?,
        overall: share(overall_sampling, "tracing.global_enabled", "overall_sampling")?,
    };
    Ok(RouteTracing { sampling, tags: custom_tags::tags(custom_tags, "custom_tags")? })
}

/// A share of requests, all by default; the share of a runtime key goes before it.
fn share(context: &Context, percent: &Option<Percent>, key: &str) -> Result<Fraction> {
    const OF: u64 = 10_000;
    let percent = percent.as_ref().map_or(100.0, |percent| percent.value);
    if !(0.0..=100.0).contains(&percent) {
        return Err(ConfigError::new("must be between 0 and 100"));
    }
    let (numerator, of) =
        context.runtime.share(key).unwrap_or_else(|| ((percent * 100.0).round() as u64, OF));
    Ok(Fraction::new(numerator, of))
}

/// A collector of spans: the same for the same configuration, for which all is looked at all the same.
pub(crate) fn provider(context: &Context, value: &ProtoProvider) -> Result<Arc<Provider>> {
    let ProtoProvider { name, config_type } = value;
    let Some(ConfigType::TypedConfig(config)) = config_type else {
        return Err(ConfigError::field("typed_config", "is missing"));
    };
    let made = match any::type_name(config).in_key("typed_config")?.as_str() {
        ZIPKIN => any::unpack(config).and_then(|value| zipkin::tracer(context, &value)),
        OPEN_TELEMETRY => any::unpack(config).and_then(|value| opentelemetry::tracer(context, &value)),
        other => return Err(refuse::extension("tracing provider", name, other)),
    };
    let Made { propagation, format, ship, stats } = made.in_key("typed_config")?;
    Ok(context.exporters.tracer(value.encode_to_vec(), || {
        let build = &context.compile.build;
        let stats = ExportStats::new(&build.metrics, stats);
        let sink: Arc<dyn LogSink> = Arc::new(Exporter::new(build.background.clone(), PACE, stats, ship));
        Provider { propagation, format, sink }
    }))
}

/// What a kind of collectors is made of.
struct Made {
    propagation: Propagation,
    format: Box<dyn SpanFormat>,
    ship: Box<dyn Ship>,
    /// Prefix of its statistics.
    stats: &'static str,
}

/// When a span began, from the beginning of its request on, and how long it took.
fn times(stream: &Stream, part: Part) -> (Duration, Duration) {
    let timing = &stream.timing;
    let begin = match part {
        Part::Request => timing.start,
        Part::Upstream => timing.upstream_tx_begin.unwrap_or(timing.start),
    };
    let end = match part {
        Part::Request => timing.downstream_tx_end,
        Part::Upstream => timing.upstream_rx_end.or(timing.downstream_tx_end),
    };
    let end = end.unwrap_or(begin);
    (begin.saturating_duration_since(timing.start), end.saturating_duration_since(begin))
}

#[cfg(test)]
mod tests;
