//! A service that is asked by HTTP (source/extensions/filters/common/ext_authz/ext_authz_http_impl.cc).

use super::Answering;
use super::answer::{Answer, Verdict, is_field};
use super::check::{PARTIAL_BODY, Shape, seen};
use super::config::Body;
use crate::envoy::mutations::Change;
use bytes::Bytes;
use serde_json::Value;
use sixfold_core::cluster::ClusterCell;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::format::Format;
use sixfold_core::headers::{HeaderName, Headers, Known};
use sixfold_core::matcher::StringMatcher;
use sixfold_core::plugin::{
    BuildContext, Callout, CalloutError, CalloutRequest, CalloutResponse, OwnHeaders,
};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::config::core::v3::HeaderValue;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_authz::v3::{
    AuthorizationRequest, AuthorizationResponse, HttpService as ProtoService,
};
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::ListStringMatcher;
use sixfold_xds_api::target::HttpTarget;
use sixfold_xds_api::values::{Result, header_name, required};
use sixfold_xds_api::{format, matcher, refuse};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of the service's answer that are read; a longer one is none. Envoy reads 32 MiB.
const MAX_ANSWER: usize = 1 << 20;
/// Names, of an answer that lets a request pass, of headers that the request loses.
const HEADERS_TO_REMOVE: &str = "x-envoy-auth-headers-to-remove";
/// Told of every request.
const ALWAYS_TOLD: [&str; 4] = ["authorization", ":method", ":path", ":authority"];
/// Told to the client of every answer that does not let a request pass, where there is a list of what is.
const ALWAYS_TO_CLIENT: [&str; 4] = [":status", "content-length", "www-authenticate", "location"];

/// The service, and what of its answers goes where.
pub(super) struct HttpService {
    callout: Arc<dyn Callout>,
    cluster: Arc<ClusterCell>,
    own: OwnHeaders,
    path: PathChange,
    add: Box<[(HeaderName, Format)]>,
    sorting: Arc<Sorting>,
}

enum PathChange {
    Prefix(String),
    Override(String),
}

/// Which headers of an answer go where.
struct Sorting {
    upstream: Box<[StringMatcher]>,
    upstream_append: Box<[StringMatcher]>,
    /// `None` is all but Host.
    client: Option<Box<[StringMatcher]>>,
    client_on_success: Box<[StringMatcher]>,
    metadata: Box<[StringMatcher]>,
}

/// The list of headers that are told, where the service itself has one.
pub(super) fn allowed_headers(value: &ProtoService) -> Option<&ListStringMatcher> {
    #[allow(deprecated)]
    value.authorization_request.as_ref()?.allowed_headers.as_ref()
}

/// The list with what every service is told.
pub(super) fn with_always_told(list: Box<[StringMatcher]>) -> Box<[StringMatcher]> {
    list.into_iter().chain(ALWAYS_TOLD.map(StringMatcher::exact)).collect()
}

impl HttpService {
    pub(super) fn new(
        value: &ProtoService,
        timeout: Duration,
        context: &BuildContext,
    ) -> Result<HttpService> {
        let ProtoService {
            server_uri,
            path_prefix,
            path_override,
            authorization_request,
            authorization_response,
            retry_policy,
        } = value;
        refuse!(retry_policy);
        // Where it is says the cluster, and not its URI.
        let target =
            HttpTarget::of(required(server_uri, "server_uri")?, Some(timeout)).in_key("server_uri")?;
        let default = AuthorizationResponse::default();
        let answers = authorization_response.as_ref().unwrap_or(&default);
        Ok(HttpService {
            callout: context.callout.clone(),
            cluster: context.clusters.cell(target.cluster),
            // Of the proxy's own address Envoy says nothing here.
            own: OwnHeaders::new(None).within(target.timeout),
            path: path(path_prefix, path_override)?,
            add: headers_to_add(authorization_request.as_ref()).in_key("authorization_request")?,
            sorting: Arc::new(Sorting::new(answers).in_key("authorization_response")?),
        })
    }

    /// Asks about a request.
    pub(super) fn ask(&self, shape: &Shape, body: Option<&Body>, stream: &Stream) -> Answering {
        let request = self.request(shape, body, stream);
        let target = request.target.as_deref().unwrap_or_default();
        if target.iter().any(|byte| byte.is_ascii_control() || *byte == b' ') {
            return Box::pin(async { Answer::unaskable() });
        }
        // Over HTTP/2 not every path can be sent.
        let is_plain = ::http::uri::PathAndQuery::try_from(target).is_ok();
        let (asked, sorting) = (self.callout.send(request), self.sorting.clone());
        let started = Instant::now();
        Box::pin(async move {
            match asked.await {
                Ok(mut answer) => {
                    // A header of the answer to Envoy, whose router adds it.
                    let millis = started.elapsed().as_millis().to_string();
                    answer.headers.set(Known::X_ENVOY_UPSTREAM_SERVICE_TIME, millis.as_bytes());
                    sorting.answer(&answer)
                }
                Err(error) => {
                    tracing::debug!(%error, "the authorisation service gave no answer");
                    match error {
                        CalloutError::Unaskable(_) => Answer::unaskable(),
                        _ if is_plain => Answer::error(),
                        _ => Answer::unaskable(),
                    }
                }
            }
        })
    }

    fn request(&self, shape: &Shape, body: Option<&Body>, stream: &Stream) -> CalloutRequest {
        let (mut headers, mut path, mut method) = (Headers::new(), Vec::new(), ::http::Method::GET);
        for (name, value) in shape.headers(stream) {
            match name.as_str() {
                ":path" => path = value,
                ":method" => method = ::http::Method::from_bytes(&value).unwrap_or_default(),
                ":authority" | "host" => headers.set(Known::HOST, &value),
                // Those of this request are its own.
                "content-length" | "transfer-encoding" | "connection" | "upgrade" | "expect" | "te" => {}
                name if name.starts_with(':') => {}
                name => {
                    if let Ok(name) = HeaderName::new(name) {
                        headers.append(&name, &value);
                    }
                }
            }
        }
        let seen = body.and_then(|body| seen(body, stream));
        if let Some((_, cut)) = seen {
            headers.append(PARTIAL_BODY, if cut { b"true" } else { b"false" });
        }
        let mut value = Vec::new();
        for (name, format) in &self.add {
            value.clear();
            format.write_header(stream, &mut value);
            // An empty value is not added, as by routes.
            if !value.is_empty() {
                headers.set(name, &value);
            }
        }
        self.own.tell(&mut headers);
        let body = seen.map_or_else(Bytes::new, |(seen, _)| Bytes::copy_from_slice(seen));
        if body.is_empty() {
            headers.append(Known::CONTENT_LENGTH, b"0");
        }
        CalloutRequest {
            uri: "http://ext-authz/".to_owned(),
            target: Some(self.path.of(&path)),
            cluster: Some(self.cluster.clone()),
            retries: 0,
            method,
            headers,
            body,
            timeout: self.own.timeout().unwrap_or(Duration::MAX),
            verify_tls: true,
            max_body: MAX_ANSWER,
            keepalive: None,
        }
    }
}

fn path(prefix: &str, instead: &str) -> Result<PathChange> {
    match (prefix, instead) {
        (prefix, "") if prefix.is_empty() || prefix.starts_with('/') => {
            Ok(PathChange::Prefix(prefix.to_owned()))
        }
        (_, "") => Err(ConfigError::field("path_prefix", "must begin with /")),
        ("", instead) if instead.starts_with('/') => Ok(PathChange::Override(instead.to_owned())),
        ("", _) => Err(ConfigError::field("path_override", "must begin with /")),
        _ => Err(ConfigError::field("path_override", "must not be given together with path_prefix")),
    }
}

impl PathChange {
    /// What the service is asked for in the place of `path`, byte for byte what the upstream is.
    fn of(&self, path: &[u8]) -> Vec<u8> {
        let (prefix, path) = match self {
            PathChange::Prefix(prefix) => (prefix.as_str(), path),
            PathChange::Override(instead) => (instead.as_str(), &b""[..]),
        };
        let slash: &[u8] = if prefix.starts_with('/') || path.starts_with(b"/") { b"" } else { b"/" };
        [slash, prefix.as_bytes(), path].concat()
    }
}

fn headers_to_add(value: Option<&AuthorizationRequest>) -> Result<Box<[(HeaderName, Format)]>> {
    // The other field goes with the filter's own of that name.
    #[allow(deprecated)]
    let Some(AuthorizationRequest { allowed_headers: _, headers_to_add }) = value else {
        return Ok(Box::default());
    };
    let one = |(index, value): (usize, &HeaderValue)| {
        let HeaderValue { key, value, raw_value } = value;
        let one = || {
            refuse!(raw_value);
            Ok((header_name(key, "key")?, format::text(value).in_key("value")?))
        };
        one().in_index(index)
    };
    headers_to_add.iter().enumerate().map(one).collect::<Result<_>>().in_key("headers_to_add")
}

impl Sorting {
    fn new(value: &AuthorizationResponse) -> Result<Sorting> {
        let AuthorizationResponse {
            allowed_upstream_headers,
            allowed_upstream_headers_to_append,
            allowed_client_headers,
            allowed_client_headers_on_success,
            dynamic_metadata_from_headers,
        } = value;
        let list = matcher::strings_of;
        let client = list(allowed_client_headers, "allowed_client_headers")?;
        let always = ALWAYS_TO_CLIENT.map(StringMatcher::exact);
        Ok(Sorting {
            upstream: list(allowed_upstream_headers, "allowed_upstream_headers")?,
            upstream_append: list(allowed_upstream_headers_to_append, "allowed_upstream_headers_to_append")?,
            client: (!client.is_empty()).then(|| client.into_iter().chain(always).collect()),
            client_on_success: list(allowed_client_headers_on_success, "allowed_client_headers_on_success")?,
            metadata: list(dynamic_metadata_from_headers, "dynamic_metadata_from_headers")?,
        })
    }

    /// What an answer says: 200 lets the request pass, 5xx is no answer, and all others deny it.
    fn answer(&self, from: &CalloutResponse) -> Answer {
        if (500..600).contains(&from.status) {
            return Answer::error();
        }
        let is_ok = from.status == 200;
        let mut answer = Answer {
            verdict: if is_ok { Verdict::Ok } else { Verdict::Denied },
            status: (!is_ok).then_some(from.status),
            body: if is_ok { Bytes::new() } else { from.body.clone() },
            ..Answer::default()
        };
        let mut added = Vec::new();
        for (name, value) in from.headers.iter() {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            if !is_field(&name, value) {
                continue;
            }
            if name == HEADERS_TO_REMOVE {
                let names = String::from_utf8_lossy(value).into_owned();
                let names = names.split(',').map(str::trim).filter(|name| is_ok && !name.is_empty());
                answer.remove.extend(names.map(str::to_owned));
                continue;
            }
            let is_in = |list: &[StringMatcher]| list.iter().any(|test| test.matches(name.as_bytes()));
            if !is_ok && self.client.as_deref().map_or(name != "host", is_in) {
                answer.headers.push(Change::add(&name, value));
            }
            if is_ok && is_in(&self.upstream) {
                answer.request.push(Change::set(&name, value));
            }
            if is_ok && is_in(&self.upstream_append) {
                added.push(Change::add(&name, value));
            }
            if is_ok && is_in(&self.client_on_success) {
                answer.response.push(Change::add(&name, value));
            }
            if is_in(&self.metadata) {
                answer.metadata.insert(name, Value::String(String::from_utf8_lossy(value).into_owned()));
            }
        }
        // What replaces comes first.
        answer.request.append(&mut added);
        answer
    }
}
