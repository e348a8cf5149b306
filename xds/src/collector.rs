//! Services that collect logs and spans, and how they are reached.

use std::sync::Arc;
use std::time::Duration;

use sixfold_core::cluster::ClusterCell;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::export::Pace;
use sixfold_core::headers::Headers;
use sixfold_core::plugin::grpc::{Call, Client};
use sixfold_core::plugin::{Callout, CalloutRequest};
use sixfold_xds_api::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use sixfold_xds_api::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use sixfold_xds_api::pb::envoy::config::core::v3::{
    GrpcService, HeaderValue, HeaderValueOption, HttpService, HttpUri,
};
use sixfold_xds_api::pb::google::protobuf::{Duration as ProtoDuration, UInt32Value};
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, duration_or, header_name, not_empty, one_of, required, timeout_or};

use crate::context::Context;
use crate::route::cluster_cell;

/// How long a service may take for a batch where the configuration does not say.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a stream is kept at most.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Bytes of an answer, which nobody reads.
const MAX_ANSWER: usize = 1 << 20;

/// A service that is called by gRPC.
#[derive(Clone)]
pub(crate) struct Grpc {
    /// Calls it.
    pub(crate) client: Client,
    /// What every call has beside gRPC's own headers.
    pub(crate) metadata: Headers,
}

/// A service that gets requests of HTTP.
#[derive(Clone)]
pub(crate) struct Http {
    callout: Arc<dyn Callout>,
    cluster: Arc<ClusterCell>,
    uri: String,
    headers: Headers,
    timeout: Duration,
}

/// core/v3/grpc_service.proto. The cluster need not be there.
pub(crate) fn grpc(context: &Context, value: &GrpcService) -> Result<Grpc> {
    let GrpcService { timeout, initial_metadata, retry_policy, target_specifier } = value;
    refuse!(retry_policy);
    let TargetSpecifier::EnvoyGrpc(target) = one_of::<GrpcService, _>(target_specifier, "target_specifier")?
    else {
        return Err(ConfigError::field("google_grpc", "is not supported"));
    };
    let EnvoyGrpc {
        cluster_name,
        authority,
        retry_policy,
        max_receive_message_length: _,
        skip_envoy_headers: _,
    } = target;
    refuse::unset(retry_policy, "retry_policy").in_key("envoy_grpc")?;
    let name = not_empty(cluster_name, "cluster_name").in_key("envoy_grpc")?;
    let cluster = cluster_cell(context, false, name).in_key("cluster_name").in_key("envoy_grpc")?;
    let authority = if authority.is_empty() { name } else { authority.as_str() };
    let mut metadata = Headers::new();
    for (index, value) in initial_metadata.iter().enumerate() {
        add_header(&mut metadata, value).in_index(index).in_key("initial_metadata")?;
    }
    let client = Client {
        callout: context.compile.build.callout.clone(),
        cluster,
        authority: authority.to_owned(),
        timeout: timeout_or(timeout, None, "timeout")?.unwrap_or(PATIENCE),
        max_message: MAX_ANSWER,
    };
    Ok(Grpc { client, metadata })
}

fn add_header(headers: &mut Headers, value: &HeaderValue) -> Result<()> {
    let HeaderValue { key, value, raw_value } = value;
    let name = header_name(key, "key")?;
    let bytes = if raw_value.is_empty() { value.as_bytes() } else { raw_value };
    if sixfold_core::headers::control(bytes).is_some() {
        return Err(ConfigError::field("value", "must not hold control characters"));
    }
    headers.append(&name, bytes);
    Ok(())
}

/// core/v3/http_service.proto.
pub(crate) fn http(context: &Context, value: &HttpService) -> Result<Http> {
    let HttpService { http_uri, request_headers_to_add, formatters: _ } = value;
    let mut headers = Headers::new();
    for (index, option) in request_headers_to_add.iter().enumerate() {
        let HeaderValueOption { header, append: _, append_action: _, keep_empty_value: _ } = option;
        let header = required(header, "header");
        let added = header.and_then(|header| add_header(&mut headers, header).in_key("header"));
        added.in_index(index).in_key("request_headers_to_add")?;
    }
    let uri = required(http_uri, "http_uri")?;
    let (cluster, timeout, uri) = http_uri_of(context, uri).in_key("http_uri")?;
    Ok(Http { callout: context.compile.build.callout.clone(), cluster, uri, headers, timeout })
}

fn http_uri_of(context: &Context, value: &HttpUri) -> Result<(Arc<ClusterCell>, Duration, String)> {
    let HttpUri { uri, timeout, http_upstream_type } = value;
    let HttpUpstreamType::Cluster(name) = one_of::<HttpUri, _>(http_upstream_type, "http_upstream_type")?;
    let cluster = cluster_cell(context, false, not_empty(name, "cluster")?).in_key("cluster")?;
    let timeout = duration_or(timeout, PATIENCE, "timeout")?;
    let uri = not_empty(uri, "uri")?;
    // Without a scheme the rest is host and path, as in Envoy.
    let uri = if uri.contains("://") { uri.to_owned() } else { format!("http://{uri}") };
    let parsed: std::result::Result<http::Uri, _> = uri.parse();
    match parsed {
        Ok(parsed) if parsed.host().is_some() => Ok((cluster, timeout, uri)),
        Ok(_) => Err(ConfigError::field("uri", "has no host")),
        Err(error) => Err(ConfigError::field("uri", error.to_string())),
    }
}

impl Grpc {
    /// Sends one message; whether the service has taken it.
    pub(crate) async fn export(&self, method: &str, message: &[u8]) -> bool {
        self.client.unary(method, self.metadata.clone(), message).await.is_ok()
    }
}

/// A stream to a service of gRPC, kept from one message to the next.
pub(crate) struct Kept {
    service: Grpc,
    method: &'static str,
    /// The stream, once there is one.
    call: Option<Call>,
}

impl Kept {
    /// None yet, for this method (`/package.Service/Method`).
    pub(crate) fn new(service: Grpc, method: &'static str) -> Kept {
        Kept { service, method, call: None }
    }

    /// Sends a message; whether it went out in time. `encode` makes it, of the first one of a stream when it is told so. A stream
    /// that was kept may have ended meanwhile.
    pub(crate) async fn send(&mut self, encode: impl Fn(bool) -> Vec<u8>) -> bool {
        if let Some(mut call) = self.call.take()
            && call.is_open()
            && write(&mut call, &encode(false)).await
        {
            self.call = Some(call);
            return true;
        }
        let mut client = self.service.client.clone();
        client.timeout = LIFE;
        let metadata = self.service.metadata.clone();
        let opened = tokio::time::timeout(PATIENCE, client.call(self.method, metadata)).await;
        let Ok(Ok(mut call)) = opened else { return false };
        let sent = write(&mut call, &encode(true)).await;
        self.call = sent.then_some(call);
        sent
    }
}

/// Whether a message went out in time.
async fn write(call: &mut Call, message: &[u8]) -> bool {
    let sending = async {
        call.send(message).await?;
        call.flush().await
    };
    matches!(tokio::time::timeout(PATIENCE, sending).await, Ok(Ok(())))
}

impl Http {
    /// A service of HTTP that is described in another way.
    pub(crate) fn of(context: &Context, cluster: Arc<ClusterCell>, uri: String) -> Http {
        let (callout, headers) = (context.compile.build.callout.clone(), Headers::new());
        Http { callout, cluster, uri, headers, timeout: PATIENCE }
    }

    /// Sends a body; whether the service has taken it.
    pub(crate) async fn post(&self, content_type: &[u8], body: Vec<u8>) -> bool {
        let mut headers = self.headers.clone();
        headers.set(sixfold_core::headers::Known::CONTENT_TYPE, content_type);
        let request = CalloutRequest {
            uri: self.uri.clone(),
            cluster: Some(self.cluster.clone()),
            retries: 1,
            method: http::Method::POST,
            headers,
            body: body.into(),
            timeout: self.timeout,
            verify_tls: true,
            max_body: MAX_ANSWER,
            keepalive: None,
        };
        matches!(self.callout.send(request).await, Ok(answer) if (200..300).contains(&answer.status))
    }
}

/// `buffer_flush_interval`, 1 s by default, and `buffer_size_bytes`, 16 KiB by default.
pub(crate) fn pace(interval: &Option<ProtoDuration>, bytes: &Option<UInt32Value>) -> Result<Pace> {
    let interval = duration_or(interval, Duration::from_secs(1), "buffer_flush_interval")?;
    if interval.is_zero() {
        return Err(ConfigError::field("buffer_flush_interval", "must be greater than 0s"));
    }
    let bytes = bytes.as_ref().map_or(16 << 10, |bytes| bytes.value as usize);
    Ok(Pace { interval, bytes })
}
