//! Zipkin's collectors, version 2 of its API (<https://zipkin.io/zipkin-api/>), as JSON.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::export::{Batch, Ship, Shipped};
use sixfold_core::hcm::SpanKind;
use sixfold_core::stream::Stream;
use sixfold_core::trace::{Part, Propagation, Span, SpanFormat, Tracing};
use sixfold_xds_api::pb::envoy::config::trace::v3::ZipkinConfig;
use sixfold_xds_api::pb::envoy::config::trace::v3::zipkin_config::{
    CollectorEndpointVersion, TraceContextOption,
};
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, bool_or, enum_value, not_empty};

use super::Made;
use crate::collector::{self, Http};
use crate::context::Context;
use crate::route::cluster_cell;

pub(super) fn tracer(context: &Context, value: &ZipkinConfig) -> Result<Made> {
    let ZipkinConfig {
        collector_cluster,
        collector_endpoint,
        trace_id_128bit,
        shared_span_context,
        collector_endpoint_version,
        collector_hostname,
        split_spans_for_request,
        trace_context_option,
        collector_service,
        timestamp_trace_ids,
    } = value;
    refuse!(split_spans_for_request, timestamp_trace_ids);
    let version: CollectorEndpointVersion =
        enum_value(*collector_endpoint_version, "collector_endpoint_version")?;
    let refused = match version {
        CollectorEndpointVersion::HttpJson => None,
        // What it is where nothing is said.
        #[allow(deprecated)]
        CollectorEndpointVersion::DeprecatedAndUnavailableDoNotUse => Some("must be HTTP_JSON".to_owned()),
        other => Some(format!("{} is not supported", other.as_str_name())),
    };
    if let Some(reason) = refused {
        return Err(ConfigError::field("collector_endpoint_version", reason));
    }
    let service = match collector_service {
        Some(service) => {
            let service = collector::http(context, service).in_key("collector_service")?;
            context.has_cluster(service.cluster()).in_key("collector_service.http_uri.cluster")?;
            service
        }
        None => {
            let name = not_empty(collector_cluster, "collector_cluster")?;
            let cluster = cluster_cell(context, true, name).in_key("collector_cluster")?;
            let path = not_empty(collector_endpoint, "collector_endpoint")?;
            if !path.starts_with('/') {
                return Err(ConfigError::field("collector_endpoint", "must begin with /"));
            }
            let host = if collector_hostname.is_empty() { name } else { collector_hostname };
            let uri = format!("http://{host}{path}");
            let checked: std::result::Result<http::Uri, _> = uri.parse();
            checked.map_err(|error| ConfigError::field("collector_endpoint", error.to_string()))?;
            Http::of(context, cluster, uri)
        }
    };
    let option: TraceContextOption = enum_value(*trace_context_option, "trace_context_option")?;
    Ok(Made {
        propagation: Propagation {
            b3: true,
            w3c: option == TraceContextOption::UseB3WithW3cPropagation,
            long_ids: *trace_id_128bit,
            shares_spans: bool_or(shared_span_context, true),
        },
        format: Box::new(Format { service: context.node.cluster.clone() }),
        ship: Box::new(Spans(service)),
        stats: "tracing.zipkin.",
    })
}

/// Spans in JSON.
struct Format {
    service: String,
}

impl SpanFormat for Format {
    fn write_span(&self, tracing: &Tracing, stream: &Stream, span: &Span, part: Part, out: &mut Vec<u8>) {
        let tags: Map<String, Value> =
            tracing.tags(stream, part).into_iter().map(|(name, value)| (name, value.into())).collect();
        let (id, parent, kind) = match part {
            Part::Request => (span.span_id, span.parent_id, kind(tracing.kind)),
            Part::Upstream => (span.upstream_id.unwrap_or_default(), Some(span.span_id), "CLIENT"),
        };
        let (start, length) = super::times(stream, part);
        let own = stream.connection.local;
        let address = if own.is_ipv4() { "ipv4" } else { "ipv6" };
        let trace = match u64::try_from(span.trace_id) {
            Ok(short) => format!("{short:016x}"),
            Err(_) => format!("{:032x}", span.trace_id),
        };
        let start = stream.start_time.duration_since(UNIX_EPOCH).unwrap_or_default() + start;
        let mut record = json!({
            "traceId": trace,
            "id": format!("{id:016x}"),
            "kind": kind,
            "name": tracing.operation(stream),
            "timestamp": micros(start),
            "duration": micros(length).max(1),
            "localEndpoint": {"serviceName": self.service, address: own.ip().to_string(), "port": own.port()},
            "tags": tags,
        });
        if let Some(parent) = parent {
            record["parentId"] = format!("{parent:016x}").into();
        }
        out.extend_from_slice(record.to_string().as_bytes());
    }
}

fn kind(of: SpanKind) -> &'static str {
    match of {
        SpanKind::Client => "CLIENT",
        SpanKind::Server => "SERVER",
    }
}

fn micros(of: Duration) -> u64 {
    u64::try_from(of.as_micros()).unwrap_or(u64::MAX)
}

struct Spans(Http);

impl Ship for Spans {
    fn ship<'a>(&'a mut self, batch: Batch) -> Pin<Box<dyn Future<Output = Shipped> + Send + 'a>> {
        let records: Vec<&[u8]> = batch.records().collect();
        let body = [b"[", records.join(&b","[..]).as_slice(), b"]"].concat();
        Box::pin(async move {
            match self.0.post(b"application/json", body).await {
                true => Shipped::Taken,
                false => Shipped::Lost,
            }
        })
    }
}
