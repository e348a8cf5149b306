//! Access logs that a service collects by gRPC (extensions/access_loggers/grpc): entries in batches over one stream, which is kept.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use prost::Message;
use sixfold_core::access_log::{LineFormat, LogSink};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::export::{Batch, ExportStats, Exporter, Pace, Ship, Shipped};
use sixfold_core::headers::HeaderName;
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::access_loggers::grpc::v3::{
    CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
};
use sixfold_xds_api::pb::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, not_empty, required};

use super::entry::{self, Common, Extra};
use crate::collector::{self, Grpc, Kept};
use crate::context::Context;
use crate::custom_tags;

/// Where messages go.
const METHOD: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";

/// A log of requests.
pub(super) fn http(
    context: &Context,
    value: &HttpGrpcAccessLogConfig,
) -> Result<(Arc<dyn LineFormat>, Arc<dyn LogSink>)> {
    let HttpGrpcAccessLogConfig {
        common_config,
        additional_request_headers_to_log,
        additional_response_headers_to_log,
        additional_response_trailers_to_log,
    } = value;
    let names = |names: &[String], field: &str| -> Result<Vec<HeaderName>> {
        let name = |name: &String| HeaderName::new(name).map_err(|error| ConfigError::new(error.to_string()));
        let named = names.iter().enumerate().map(|(index, value)| name(value).in_index(index));
        named.collect::<Result<_>>().in_key(field)
    };
    let extra = Extra {
        request: names(additional_request_headers_to_log, "additional_request_headers_to_log")?,
        response: names(additional_response_headers_to_log, "additional_response_headers_to_log")?,
        trailers: names(additional_response_trailers_to_log, "additional_response_trailers_to_log")?,
    };
    let (common, sink) = common_of(context, common_config, super::HTTP_GRPC)?;
    let format =
        Entry { common, write: move |common: &Common, stream: &Stream| entry::http(common, &extra, stream) };
    Ok((Arc::new(format), sink))
}

/// A log of connections.
pub(super) fn tcp(
    context: &Context,
    value: &TcpGrpcAccessLogConfig,
) -> Result<(Arc<dyn LineFormat>, Arc<dyn LogSink>)> {
    let TcpGrpcAccessLogConfig { common_config } = value;
    let (common, sink) = common_of(context, common_config, super::TCP_GRPC)?;
    Ok((Arc::new(Entry { common, write: entry::tcp }), sink))
}

fn common_of(
    context: &Context,
    value: &Option<CommonGrpcAccessLogConfig>,
    kind: &'static str,
) -> Result<(Common, Arc<dyn LogSink>)> {
    let value = required(value, "common_config")?;
    let compile = || -> Result<(Common, Arc<dyn LogSink>)> {
        let CommonGrpcAccessLogConfig {
            log_name,
            grpc_service,
            // There is one version.
            transport_api_version: _,
            buffer_flush_interval,
            buffer_size_bytes,
            filter_state_objects_to_log,
            grpc_stream_retry_policy,
            custom_tags,
        } = value;
        refuse!(grpc_stream_retry_policy);
        let log_name = not_empty(log_name, "log_name")?;
        let service = required(grpc_service, "grpc_service")?;
        let service = collector::grpc(context, service).in_key("grpc_service")?;
        let pace = collector::pace(buffer_flush_interval, buffer_size_bytes)?;
        let common = Common {
            objects: filter_state_objects_to_log.iter().map(|key| key.as_str().into()).collect(),
            tags: custom_tags::tags(custom_tags, "custom_tags")?,
        };
        let make = || exporter(context, service, kind == super::HTTP_GRPC, log_name, pace);
        let sink: Arc<dyn LogSink> = context.exporters.log(kind, value.encode_to_vec(), make);
        Ok((common, sink))
    };
    compile().in_key("common_config")
}

fn exporter(context: &Context, service: Grpc, is_http: bool, log_name: &str, pace: Pace) -> Exporter {
    let build = &context.compile.build;
    let stats = ExportStats::new(&build.metrics, "access_logs.grpc_access_log.");
    let ship = Entries {
        identifier: Identifier { node: Some((*context.node.whole).clone()), log_name: log_name.to_owned() },
        stream: Kept::new(service, METHOD),
        is_http,
    };
    Exporter::new(build.background.clone(), pace, stats, Box::new(ship))
}

/// Writes an entry as a message.
struct Entry<F> {
    common: Common,
    write: F,
}

impl<M: Message, F: Fn(&Common, &Stream) -> M + Send + Sync> LineFormat for Entry<F> {
    fn write_line(&self, stream: &Stream, out: &mut Vec<u8>) {
        // A vector has room for all.
        let _ = (self.write)(&self.common, stream).encode(out);
    }
}

/// Entries as they are, in the place of the messages that they are.
#[derive(Clone, PartialEq, Message)]
struct EncodedEntries {
    #[prost(bytes = "vec", repeated, tag = "1")]
    log_entry: Vec<Vec<u8>>,
}

/// `StreamAccessLogsMessage` with entries as they are.
#[derive(Clone, PartialEq, Message)]
struct EncodedMessage {
    #[prost(message, optional, tag = "1")]
    identifier: Option<Identifier>,
    #[prost(message, optional, tag = "2")]
    http_logs: Option<EncodedEntries>,
    #[prost(message, optional, tag = "3")]
    tcp_logs: Option<EncodedEntries>,
}

struct Entries {
    identifier: Identifier,
    stream: Kept,
    is_http: bool,
}

impl Entries {
    /// Sends entries; the first message of a stream says who sends.
    async fn send(&mut self, entries: EncodedEntries) -> bool {
        let (mut message, identifier) = (EncodedMessage::default(), &self.identifier);
        match self.is_http {
            true => message.http_logs = Some(entries),
            false => message.tcp_logs = Some(entries),
        }
        let encode = |first: bool| {
            let identifier = first.then(|| identifier.clone());
            EncodedMessage { identifier, ..message.clone() }.encode_to_vec()
        };
        self.stream.send(encode).await
    }
}

impl Ship for Entries {
    fn ship<'a>(&'a mut self, batch: Batch) -> Pin<Box<dyn Future<Output = Shipped> + Send + 'a>> {
        let log_entry = batch.records().map(<[u8]>::to_vec).collect();
        Box::pin(async move {
            match self.send(EncodedEntries { log_entry }).await {
                true => Shipped::Taken,
                false => Shipped::Lost,
            }
        })
    }
}
