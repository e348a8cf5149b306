//! Services that collect logs and spans, and how they are reached.

use std::sync::Arc;
use std::time::Duration;

use sixfold_core::cluster::ClusterCell;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::export::Pace;
use sixfold_core::headers::Headers;
use sixfold_core::plugin::grpc::{Call, Client};
use sixfold_core::plugin::{Callout, CalloutRequest, OwnHeaders};
use sixfold_xds_api::pb::envoy::config::core::v3::{
    GrpcService, HeaderValue, HeaderValueOption, HttpService,
};
use sixfold_xds_api::pb::google::protobuf::{Duration as ProtoDuration, UInt32Value};
use sixfold_xds_api::target::{GrpcTarget, HttpTarget};
use sixfold_xds_api::values::{Result, duration_or, header_name, required, timeout_or};
use sixfold_xds_api::{format, refuse};

use crate::context::Context;

/// How long a service may take for a batch where the configuration does not say.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one may take for which the configuration sets no bound: what comes behind it waits.
const LONGEST: Duration = Duration::from_secs(60);
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
    own: OwnHeaders,
}

/// core/v3/grpc_service.proto. The cluster need not be there.
pub(crate) fn grpc(context: &Context, value: &GrpcService) -> Result<Grpc> {
    let GrpcService { timeout, initial_metadata, retry_policy, target_specifier: _ } = value;
    refuse!(retry_policy);
    let target = GrpcTarget::of(value)?;
    refuse::unset(&target.retry, "retry_policy").in_key("envoy_grpc")?;
    let mut metadata = Headers::new();
    for (index, value) in initial_metadata.iter().enumerate() {
        add_header(&mut metadata, value).in_index(index).in_key("initial_metadata")?;
    }
    let timeout = timeout_or(timeout, None, "timeout")?;
    let client = target.client(timeout, MAX_ANSWER, &context.compile.build);
    Ok(Grpc { client: Client { timeout: timeout.unwrap_or(PATIENCE), ..client }, metadata })
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
    let HttpService { http_uri, request_headers_to_add, formatters } = value;
    format::check_formatters(formatters)?;
    let mut headers = Headers::new();
    for (index, option) in request_headers_to_add.iter().enumerate() {
        let HeaderValueOption { header, append: _, append_action: _, keep_empty_value: _ } = option;
        let header = required(header, "header");
        let added = header.and_then(|header| add_header(&mut headers, header).in_key("header"));
        added.in_index(index).in_key("request_headers_to_add")?;
    }
    let uri = required(http_uri, "http_uri")?;
    let service = || -> Result<Http> {
        let target = HttpTarget::of(uri, Some(PATIENCE))?;
        let cluster = context.compile.clusters.cell(target.cluster);
        let http = Http::within(target.timeout, context, cluster, target.whole_uri()?);
        Ok(Http { headers, ..http })
    };
    service().in_key("http_uri")
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
        // A stream has no end that could be told.
        client.timeout = LIFE;
        client.own = client.own.within(None);
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
    /// The name of its cluster.
    pub(crate) fn cluster(&self) -> &str {
        &self.cluster.name
    }

    /// A service of HTTP that is described in another way.
    pub(crate) fn of(context: &Context, cluster: Arc<ClusterCell>, uri: String) -> Http {
        Http::within(Some(PATIENCE), context, cluster, uri)
    }

    fn within(timeout: Option<Duration>, context: &Context, cluster: Arc<ClusterCell>, uri: String) -> Http {
        Http {
            callout: context.compile.build.callout.clone(),
            cluster,
            uri,
            headers: Headers::new(),
            timeout: timeout.unwrap_or(LONGEST),
            own: OwnHeaders::new(context.compile.local_address).within(timeout),
        }
    }

    /// Sends a body; whether the service has taken it.
    pub(crate) async fn post(&self, content_type: &[u8], body: Vec<u8>) -> bool {
        let mut headers = self.headers.clone();
        headers.set(sixfold_core::headers::Known::CONTENT_TYPE, content_type);
        self.own.tell(&mut headers);
        let request = CalloutRequest {
            uri: self.uri.clone(),
            target: None,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{context, read};
    use parking_lot::Mutex;
    use sixfold_core::plugin::{CalloutError, CalloutFuture, CalloutStreamFuture};

    /// What was asked, and how long an answer was waited for.
    #[derive(Default)]
    struct Asked(Mutex<Vec<(Headers, Duration)>>);

    impl Callout for Asked {
        fn send(&self, request: CalloutRequest) -> CalloutFuture {
            self.0.lock().push((request.headers, request.timeout));
            Box::pin(async { Err(CalloutError::Timeout) })
        }

        fn open(&self, request: CalloutRequest) -> CalloutStreamFuture {
            self.0.lock().push((request.headers, request.timeout));
            Box::pin(async { Err(CalloutError::Timeout) })
        }
    }

    // A time of 0 was no time at all, and what was sent was lost; that a collector's requests are the proxy's own was not said.
    #[tokio::test]
    async fn collectors_hear_whose_requests_they_get_and_may_take_time() {
        let asked = Arc::new(Asked::default());
        let mut context = context();
        context.compile.build.callout = asked.clone();
        let address = Some(std::net::IpAddr::from([192, 0, 2, 2]));
        (context.compile.local_address, context.compile.build.local_address) = (address, address);
        let service =
            |timeout: &str| format!("http_uri: {{uri: 'otel.test/v1', cluster: c, timeout: {timeout}}}");
        http(&context, &read(&service("0s"))).unwrap().post(b"a/b", vec![1]).await;
        http(&context, &read(&service("2s"))).unwrap().post(b"a/b", vec![1]).await;
        for (given, skips) in [("timeout: 3s", false), ("timeout: 0s", true)] {
            let text = format!("{{envoy_grpc: {{cluster_name: c, skip_envoy_headers: {skips}}}, {given}}}");
            grpc(&context, &read(&text)).unwrap().export("/a/B", &[]).await;
        }
        let asked: Vec<_> = asked.0.lock().drain(..).collect();
        let times: Vec<_> = asked.iter().map(|(_, time)| time.as_secs()).collect();
        assert_eq!(times, [LONGEST.as_secs(), 2, 3, PATIENCE.as_secs()]);
        let said =
            |name: &str| asked.iter().map(|(of, _)| of.get_str(name).unwrap_or("-")).collect::<Vec<_>>();
        assert_eq!(said("x-envoy-internal"), ["true", "true", "true", "-"]);
        assert_eq!(said("x-forwarded-for"), ["192.0.2.2", "192.0.2.2", "192.0.2.2", "-"]);
        assert_eq!(said("x-envoy-expected-rq-timeout-ms"), ["-", "2000", "3000", "-"]);
        assert_eq!(said("grpc-timeout"), ["-", "-", "3000m", "-"]);
    }
}
