//! Messages of OpenTelemetry's protocol (opentelemetry-proto, versions 1 of logs, metrics, traces and their collectors), as far as they are sent.

use prost::{Enumeration, Message};
use sixfold_core::error::ConfigContext;
use sixfold_xds_api::pb::envoy::config::core::v3::{GrpcService, HttpService, TypedExtensionConfig};
use sixfold_xds_api::pb::opentelemetry::proto::common::v1::any_value::Value;
use sixfold_xds_api::pb::opentelemetry::proto::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use sixfold_xds_api::values::{Result, required};
use sixfold_xds_api::{any, refuse};

use crate::collector::{self, Grpc, Http};
use crate::context::Context;

const ENVIRONMENT: &str =
    "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig";

/// Where logs go.
pub(crate) const LOGS: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
/// Where statistics go.
pub(crate) const METRICS: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
/// Where spans go.
pub(crate) const TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Who collects.
pub(crate) enum Collector {
    /// A service of gRPC.
    Grpc(Grpc),
    /// One that gets requests of HTTP.
    Http(Http),
}

impl Collector {
    /// The one that a field `grpc_service` names.
    pub(crate) fn grpc(context: &Context, service: &GrpcService) -> Result<Collector> {
        collector::grpc(context, service).map(Collector::Grpc).in_key("grpc_service")
    }

    /// The one that a field `http_service` names.
    pub(crate) fn http(context: &Context, service: &HttpService) -> Result<Collector> {
        collector::http(context, service).map(Collector::Http).in_key("http_service")
    }

    /// Sends a message to one of the services above; whether it was taken.
    pub(crate) async fn export(&self, method: &str, message: Vec<u8>) -> bool {
        match self {
            Collector::Grpc(service) => service.export(method, &message).await,
            Collector::Http(service) => service.post(b"application/x-protobuf", message).await,
        }
    }
}

/// `ExportLogsServiceRequest`, `ExportMetricsServiceRequest` and `ExportTraceServiceRequest`, which have one form, with records that are
/// encoded already.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<OfResource>,
}

#[derive(Clone, PartialEq, Message)]
struct OfResource {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<OfScope>,
}

/// Who sends.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub(crate) attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct OfScope {
    #[prost(message, optional, tag = "1")]
    scope: Option<InstrumentationScope>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    records: Vec<Vec<u8>>,
}

impl Export {
    /// A batch of encoded records, encoded.
    pub(crate) fn encoded(
        resource: &Resource,
        scope: Option<InstrumentationScope>,
        records: impl Iterator<Item = Vec<u8>>,
    ) -> Vec<u8> {
        let scopes = vec![OfScope { scope, records: records.collect() }];
        let resources = vec![OfResource { resource: Some(resource.clone()), scopes }];
        Export { resources }.encode_to_vec()
    }
}

impl Resource {
    /// Adds what sends.
    pub(crate) fn add_sdk(&mut self) {
        self.attributes.push(text("telemetry.sdk.language", "rust"));
        self.attributes.push(text("telemetry.sdk.name", "sixfold"));
        self.attributes.push(text("telemetry.sdk.version", env!("CARGO_PKG_VERSION")));
    }

    /// Adds what detectors find out (`resource_detectors`): `OTEL_RESOURCE_ATTRIBUTES`, as `key=value` with commas between.
    pub(crate) fn detect(&mut self, detectors: &[TypedExtensionConfig]) -> Result<()> {
        for (index, detector) in detectors.iter().enumerate() {
            self.detect_by(detector).in_index(index).in_key("resource_detectors")?;
        }
        Ok(())
    }

    fn detect_by(&mut self, detector: &TypedExtensionConfig) -> Result<()> {
        let TypedExtensionConfig { name, typed_config } = detector;
        let kind = any::type_name(required(typed_config, "typed_config")?).in_key("typed_config")?;
        if kind != ENVIRONMENT {
            return Err(refuse::extension("resource detector", name, &kind));
        }
        let told = std::env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        for (key, value) in told.split(',').filter_map(|pair| pair.split_once('=')) {
            self.attributes.retain(|known| known.key != key);
            self.attributes.push(text(key, value));
        }
        Ok(())
    }
}

/// A log record.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct LogRecord {
    #[prost(fixed64, tag = "1")]
    pub(crate) time_unix_nano: u64,
    #[prost(message, optional, tag = "5")]
    pub(crate) body: Option<AnyValue>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) attributes: Vec<KeyValue>,
    #[prost(bytes = "vec", tag = "9")]
    pub(crate) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "10")]
    pub(crate) span_id: Vec<u8>,
}

/// A span.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    pub(crate) trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(crate) name: String,
    #[prost(enumeration = "SpanKind", tag = "6")]
    pub(crate) kind: i32,
    #[prost(fixed64, tag = "7")]
    pub(crate) start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    pub(crate) end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    pub(crate) attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    pub(crate) status: Option<SpanStatus>,
}

/// How what a span stands for ended.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct SpanStatus {
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    /// 0 unset, 1 well, 2 badly.
    #[prost(int32, tag = "3")]
    pub(crate) code: i32,
}

/// Whose part of a call a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub(crate) enum SpanKind {
    Unspecified = 0,
    Server = 2,
    Client = 3,
}

/// An attribute that is a text.
pub(crate) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(value.into())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

/// What makes the spans.
pub(crate) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "sixfold".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}
