//! Collectors of OpenTelemetry, by gRPC or HTTP (source/extensions/tracers/opentelemetry).

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, UNIX_EPOCH};

use prost::Message;
use sixfold_core::error::ConfigError;
use sixfold_core::export::{Batch, Ship, Shipped};
use sixfold_core::hcm::SpanKind;
use sixfold_core::stream::Stream;
use sixfold_core::trace::{Part, Propagation, Span, SpanFormat, Tracing};
use sixfold_xds_api::pb::envoy::config::trace::v3::OpenTelemetryConfig;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::Result;

use super::Made;
use crate::context::Context;
use crate::otlp::{self, Collector, Export, Resource, SpanStatus};

/// The name of a service that does not say what it is called.
const UNKNOWN: &str = "unknown_service:envoy";

pub(super) fn tracer(context: &Context, value: &OpenTelemetryConfig) -> Result<Made> {
    let OpenTelemetryConfig {
        grpc_service,
        http_service,
        exporter,
        service_name,
        resource_detectors,
        sampler,
        // What waits has a bound in bytes.
        max_cache_size: _,
        set_telemetry_sdk_resource_attributes,
        set_service_name_resource_attribute,
        set_instrumentation_scope,
    } = value;
    refuse!(exporter, sampler);
    let collector = match (grpc_service, http_service) {
        (Some(service), None) => Collector::grpc(context, service)?,
        (None, Some(service)) => Collector::http(context, service)?,
        (None, None) => return Err(ConfigError::field("grpc_service", "is missing")),
        (Some(_), Some(_)) => {
            let reason = "must not be given together with grpc_service";
            return Err(ConfigError::field("http_service", reason));
        }
    };
    let is_on = |flag: &Option<sixfold_xds_api::pb::google::protobuf::BoolValue>| {
        flag.as_ref().is_none_or(|flag| flag.value)
    };
    let mut resource = Resource { attributes: Vec::new() };
    if is_on(set_service_name_resource_attribute) {
        let name = if service_name.is_empty() { UNKNOWN } else { service_name.as_str() };
        resource.attributes.push(otlp::text("service.name", name));
    }
    if is_on(set_telemetry_sdk_resource_attributes) {
        resource.add_sdk();
    }
    resource.detect(resource_detectors)?;
    let scoped = is_on(set_instrumentation_scope);
    Ok(Made {
        propagation: Propagation { b3: false, w3c: true, long_ids: true, shares_spans: false },
        format: Box::new(Format),
        ship: Box::new(Spans { collector, resource, scoped }),
        stats: "tracing.opentelemetry.",
    })
}

struct Format;

impl SpanFormat for Format {
    fn write_span(&self, tracing: &Tracing, stream: &Stream, span: &Span, part: Part, out: &mut Vec<u8>) {
        let (id, parent, kind) = match part {
            Part::Request => (span.span_id, span.parent_id, tracing.kind),
            Part::Upstream => (span.upstream_id.unwrap_or_default(), Some(span.span_id), SpanKind::Client),
        };
        let (start, length) = super::times(stream, part);
        let start = stream.start_time.duration_since(UNIX_EPOCH).unwrap_or_default() + start;
        let tags = tracing.tags(stream, part);
        let is_error = tags.iter().any(|(name, value)| name == "error" && value == "true");
        let record = otlp::Span {
            trace_id: span.trace_id.to_be_bytes().to_vec(),
            span_id: id.to_be_bytes().to_vec(),
            trace_state: span.state.to_string(),
            parent_span_id: parent.map_or(Vec::new(), |parent| parent.to_be_bytes().to_vec()),
            name: tracing.operation(stream),
            kind: match kind {
                SpanKind::Client => otlp::SpanKind::Client,
                SpanKind::Server => otlp::SpanKind::Server,
            } as i32,
            start_time_unix_nano: nanos(start),
            end_time_unix_nano: nanos(start + length),
            attributes: tags.into_iter().map(|(name, value)| otlp::text(&name, value)).collect(),
            status: is_error.then(|| SpanStatus { message: String::new(), code: 2 }),
        };
        // A vector has room for all.
        let _ = record.encode(out);
    }
}

fn nanos(of: Duration) -> u64 {
    u64::try_from(of.as_nanos()).unwrap_or(u64::MAX)
}

struct Spans {
    collector: Collector,
    resource: Resource,
    /// Whether it is told what makes the spans.
    scoped: bool,
}

impl Ship for Spans {
    fn ship<'a>(&'a mut self, batch: Batch) -> Pin<Box<dyn Future<Output = Shipped> + Send + 'a>> {
        let scope = self.scoped.then(otlp::scope);
        let message = Export::encoded(&self.resource, scope, batch.records().map(<[u8]>::to_vec));
        Box::pin(async move {
            let taken = self.collector.export(otlp::TRACES, message).await;
            if taken { Shipped::Taken } else { Shipped::Lost }
        })
    }
}
