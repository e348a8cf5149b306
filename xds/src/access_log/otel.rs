//! Access logs that a collector of OpenTelemetry takes (extensions/access_loggers/open_telemetry).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use prost::Message;
use sixfold_core::access_log::{LineFormat, LogSink};
use sixfold_core::custom_tag::CustomTag;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::export::{Batch, ExportStats, Exporter, Ship, Shipped};
use sixfold_core::format::Format;
use sixfold_core::metrics::scope;
use sixfold_core::stream::Stream;
use sixfold_xds_api::format;
use sixfold_xds_api::pb::envoy::extensions::access_loggers::grpc::v3::CommonGrpcAccessLogConfig;
use sixfold_xds_api::pb::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig;
use sixfold_xds_api::pb::opentelemetry::proto::common::v1::any_value::Value;
use sixfold_xds_api::pb::opentelemetry::proto::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::Result;

use crate::collector;
use crate::context::Context;
use crate::custom_tags;
use crate::otlp::{self, Collector, Export, LogRecord, Resource};

/// A log of requests or connections.
pub(super) fn log(
    context: &Context,
    value: &OpenTelemetryAccessLogConfig,
) -> Result<(Arc<dyn LineFormat>, Arc<dyn LogSink>)> {
    let OpenTelemetryAccessLogConfig {
        common_config,
        http_service,
        grpc_service,
        disable_builtin_labels,
        resource_attributes,
        resource_detectors,
        body,
        attributes,
        stat_prefix,
        formatters,
        log_name,
        buffer_flush_interval,
        buffer_size_bytes,
        // Not sent by Envoy either: bodies and attributes are formats.
        filter_state_objects_to_log: _,
        custom_tags,
    } = value;
    refuse!(resource_detectors);
    // Operators are always there.
    format::check_formatters(formatters)?;
    let common = common_config.clone().unwrap_or_default();
    let CommonGrpcAccessLogConfig {
        log_name: common_name,
        grpc_service: common_service,
        transport_api_version: _,
        buffer_flush_interval: common_interval,
        buffer_size_bytes: common_bytes,
        filter_state_objects_to_log: _,
        grpc_stream_retry_policy,
        custom_tags: common_tags,
    } = &common;
    refuse::unset(grpc_stream_retry_policy, "grpc_stream_retry_policy").in_key("common_config")?;
    let collector = match (http_service, grpc_service, common_service) {
        (Some(service), None, None) => Collector::http(context, service)?,
        (None, Some(service), None) => Collector::grpc(context, service)?,
        (None, None, Some(service)) => Collector::grpc(context, service).in_key("common_config")?,
        (None, None, None) => return Err(ConfigError::field("grpc_service", "is missing")),
        _ => {
            let reason = "only one of http_service, grpc_service and common_config.grpc_service may be given";
            return Err(ConfigError::field("grpc_service", reason));
        }
    };
    let log_name = if log_name.is_empty() { common_name } else { log_name };
    let interval = buffer_flush_interval.as_ref().or(common_interval.as_ref()).copied();
    let bytes = buffer_size_bytes.as_ref().or(common_bytes.as_ref()).copied();
    let pace = collector::pace(&interval, &bytes)?;
    let mut resource = Resource { attributes: Vec::new() };
    if !disable_builtin_labels {
        let zone = context.locality.as_ref().map_or("", |locality| &*locality.zone);
        resource.attributes = vec![
            otlp::text("log_name", log_name.as_str()),
            otlp::text("zone_name", zone),
            otlp::text("cluster_name", context.node.cluster.as_str()),
            otlp::text("node_name", context.node.id.as_str()),
        ];
    }
    resource.attributes.extend(resource_attributes.iter().flat_map(|list| list.values.iter().cloned()));
    let attributes = attributes.clone().unwrap_or_default();
    let format = Record {
        body: body.as_ref().map(Template::new).transpose().in_key("body")?,
        attributes: Template::list(&attributes.values).in_key("attributes")?,
        tags: match custom_tags.is_empty() {
            true => custom_tags::tags(common_tags, "custom_tags").in_key("common_config")?,
            false => custom_tags::tags(custom_tags, "custom_tags")?,
        },
    };
    let make = || {
        let build = &context.compile.build;
        let prefix = scope(&["access_logs.open_telemetry_access_log", stat_prefix]);
        let stats = ExportStats::new(&build.metrics, &prefix);
        let ship = Box::new(Records { collector, resource });
        Exporter::new(build.background.clone(), pace, stats, ship)
    };
    // Logs that differ in what their records say have one way out.
    let config = OpenTelemetryAccessLogConfig {
        body: None,
        attributes: None,
        formatters: Vec::new(),
        custom_tags: Vec::new(),
        ..value.clone()
    };
    let sink: Arc<dyn LogSink> = context.exporters.log(super::OPEN_TELEMETRY, config.encode_to_vec(), make);
    Ok((Arc::new(format), sink))
}

/// A value whose texts are formats.
enum Template {
    Text(Format),
    List(Vec<Template>),
    Object(Vec<(String, Template)>),
    Other(AnyValue),
}

impl Template {
    fn new(value: &AnyValue) -> Result<Template> {
        Ok(match &value.value {
            Some(Value::StringValue(text)) => Template::Text(format::text(text).in_key("string_value")?),
            Some(Value::ArrayValue(ArrayValue { values })) => {
                let values = values.iter().enumerate();
                let values = values.map(|(index, value)| Template::new(value).in_index(index));
                Template::List(values.collect::<Result<_>>().in_key("values").in_key("array_value")?)
            }
            Some(Value::KvlistValue(KeyValueList { values })) => {
                Template::Object(Template::list(values).in_key("kvlist_value")?)
            }
            _ => Template::Other(value.clone()),
        })
    }

    fn list(values: &[KeyValue]) -> Result<Vec<(String, Template)>> {
        let nothing = AnyValue::default();
        let one = |KeyValue { key, value, .. }: &KeyValue| {
            let value = Template::new(value.as_ref().unwrap_or(&nothing)).in_key("value")?;
            Ok((key.clone(), value))
        };
        let values = values.iter().enumerate().map(|(index, value)| one(value).in_index(index));
        values.collect::<Result<_>>().in_key("values")
    }

    fn value(&self, stream: &Stream) -> AnyValue {
        let value = match self {
            Template::Text(format) => {
                let mut text = Vec::new();
                format.write_body(stream, &mut text);
                Value::StringValue(String::from_utf8_lossy(&text).into_owned())
            }
            Template::List(values) => {
                let values = values.iter().map(|value| value.value(stream)).collect();
                Value::ArrayValue(ArrayValue { values })
            }
            Template::Object(values) => Value::KvlistValue(KeyValueList { values: all(values, stream) }),
            Template::Other(value) => return value.clone(),
        };
        AnyValue { value: Some(value) }
    }
}

fn all(values: &[(String, Template)], stream: &Stream) -> Vec<KeyValue> {
    let value = |(key, value): &(String, Template)| KeyValue {
        key: key.clone(),
        value: Some(value.value(stream)),
        ..KeyValue::default()
    };
    values.iter().map(value).collect()
}

struct Record {
    body: Option<Template>,
    attributes: Vec<(String, Template)>,
    tags: Vec<CustomTag>,
}

impl LineFormat for Record {
    fn write_line(&self, stream: &Stream, out: &mut Vec<u8>) {
        let mut attributes = all(&self.attributes, stream);
        let tag = |tag: &CustomTag| Some(otlp::text(&tag.name, tag.value(stream)?));
        attributes.extend(self.tags.iter().filter_map(tag));
        let start = stream.start_time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let span = stream.trace.as_ref();
        let record = LogRecord {
            time_unix_nano: u64::try_from(start.as_nanos()).unwrap_or(u64::MAX),
            body: self.body.as_ref().map(|body| body.value(stream)),
            attributes,
            trace_id: span.map_or(Vec::new(), |span| span.trace_id.to_be_bytes().to_vec()),
            span_id: span.map_or(Vec::new(), |span| span.span_id.to_be_bytes().to_vec()),
        };
        // A vector has room for all.
        let _ = record.encode(out);
    }
}

struct Records {
    collector: Collector,
    resource: Resource,
}

impl Ship for Records {
    fn ship<'a>(&'a mut self, batch: Batch) -> Pin<Box<dyn Future<Output = Shipped> + Send + 'a>> {
        let message = Export::encoded(&self.resource, None, batch.records().map(<[u8]>::to_vec));
        Box::pin(async move {
            let taken = self.collector.export(otlp::LOGS, message).await;
            if taken { Shipped::Taken } else { Shipped::Lost }
        })
    }
}
