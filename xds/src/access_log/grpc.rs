//! Access logs that a service collects by gRPC (extensions/access_loggers/grpc): entries in batches over one stream, which is kept.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use sixfold_core::access_log::{LineFormat, LogSink};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::export::{Batch, ExportStats, Exporter, Pace, Ship, Shipped};
use sixfold_core::headers::HeaderName;
use sixfold_core::plugin::grpc::Call;
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::access_loggers::grpc::v3::{
    CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
};
use sixfold_xds_api::pb::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, not_empty, required};

use super::entry::{self, Common, Extra};
use crate::collector::{self, Grpc};
use crate::context::Context;
use crate::custom_tags;

/// Where messages go.
const METHOD: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
/// How long the service may take for a message.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a stream is kept at most.
const LIFE: Duration = Duration::from_secs(24 * 3600);

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
    let (common, sink) = common_of(context, common_config, true)?;
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
    let (common, sink) = common_of(context, common_config, false)?;
    Ok((Arc::new(Entry { common, write: entry::tcp }), sink))
}

fn common_of(
    context: &Context,
    value: &Option<CommonGrpcAccessLogConfig>,
    is_http: bool,
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
        let sink = exporter(context, service, is_http, log_name, pace);
        Ok((common, sink))
    };
    compile().in_key("common_config")
}

fn exporter(context: &Context, service: Grpc, is_http: bool, log_name: &str, pace: Pace) -> Arc<dyn LogSink> {
    let build = &context.compile.build;
    let stats = ExportStats::new(&build.metrics, "access_logs.grpc_access_log.");
    let ship = Entries {
        identifier: Identifier { node: Some((*context.node.whole).clone()), log_name: log_name.to_owned() },
        service,
        is_http,
        call: None,
    };
    Arc::new(Exporter::new(build.background.clone(), pace, stats, Box::new(ship)))
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
    service: Grpc,
    is_http: bool,
    /// The stream, once there is one.
    call: Option<Call>,
}

impl Entries {
    /// Sends a message; the first of a stream says who sends. One that was kept may have ended meanwhile.
    async fn send(&mut self, entries: EncodedEntries) -> bool {
        let mut message = EncodedMessage::default();
        match self.is_http {
            true => message.http_logs = Some(entries),
            false => message.tcp_logs = Some(entries),
        }
        if let Some(mut call) = self.call.take()
            && call.is_open()
            && write(&mut call, &message).await
        {
            self.call = Some(call);
            return true;
        }
        message.identifier = Some(self.identifier.clone());
        let mut client = self.service.client.clone();
        client.timeout = LIFE;
        let opened = tokio::time::timeout(PATIENCE, client.call(METHOD, self.service.metadata.clone())).await;
        let Ok(Ok(mut call)) = opened else { return false };
        let sent = write(&mut call, &message).await;
        self.call = sent.then_some(call);
        sent
    }
}

/// Whether a message went out in time.
async fn write(call: &mut Call, message: &EncodedMessage) -> bool {
    let bytes = message.encode_to_vec();
    let sending = async {
        call.send(&bytes).await?;
        call.flush().await
    };
    matches!(tokio::time::timeout(PATIENCE, sending).await, Ok(Ok(())))
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
