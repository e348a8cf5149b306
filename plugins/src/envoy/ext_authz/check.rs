//! What the service is told of a request (source/extensions/filters/common/ext_authz/check_request_utils.cc).

use super::config::Body;
use crate::envoy::authz::{self, Peer};
use crate::envoy::service;
use sixfold_core::format::Format;
use sixfold_core::matcher::StringMatcher;
use sixfold_core::stream::Stream;
use sixfold_xds_api::any::json_to_struct;
use sixfold_xds_api::format;
use sixfold_xds_api::pb::envoy::config::core::v3::{HeaderMap, HeaderValue, Metadata};
use sixfold_xds_api::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request, TlsSession};
use sixfold_xds_api::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use sixfold_xds_api::values::Result;
use std::collections::HashMap;
use std::sync::Arc;

/// Says of the body whether it was cut.
pub(super) const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// What of a request is told.
pub(super) struct Shape {
    /// Headers that are; all without a list.
    pub(super) allowed: Option<Box<[StringMatcher]>>,
    /// Headers that are not, whatever else says so.
    pub(super) disallowed: Box<[StringMatcher]>,
    /// Values are told as they are and lines of one name are not joined.
    pub(super) raw: bool,
    /// The peer's certificate, where it is told.
    pub(super) certificate: Option<Format>,
    pub(super) tls_session: bool,
    pub(super) labels: HashMap<String, String>,
    pub(super) extensions: HashMap<String, String>,
    pub(super) metadata: Box<[Arc<str>]>,
    pub(super) route_metadata: Box<[Box<str>]>,
}

impl Shape {
    /// What writes the peer's certificate.
    pub(super) fn certificate() -> Result<Format> {
        format::text("%DOWNSTREAM_PEER_CERT%")
    }

    fn tells(&self, name: &[u8]) -> bool {
        let is_in = |list: &[StringMatcher]| list.iter().any(|test| test.matches(name));
        !is_in(&self.disallowed) && self.allowed.as_deref().is_none_or(is_in)
    }

    /// The headers that are told, those of the request's line among them, in their order and in lower case.
    pub(super) fn headers(&self, stream: &Stream) -> Vec<(String, Vec<u8>)> {
        let head = &stream.request;
        let line = [
            (":authority", head.authority.as_slice()),
            (":path", head.target.full()),
            (":method", head.method.as_str().as_bytes()),
            (":scheme", head.scheme.as_str().as_bytes()),
        ];
        let mut told: Vec<(String, Vec<u8>)> = Vec::new();
        let line = line.iter().map(|(name, value)| (name.as_bytes(), *value));
        for (name, value) in line.chain(head.headers.iter()) {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            if name == PARTIAL_BODY || !self.tells(name.as_bytes()) {
                continue;
            }
            let known = told.iter_mut().find(|(known, _)| *known == name).filter(|_| !self.raw);
            match known {
                Some((_, values)) => {
                    values.push(b',');
                    values.extend_from_slice(&self.value(value));
                }
                None => told.push((name, self.value(value))),
            }
        }
        told
    }

    fn value(&self, value: &[u8]) -> Vec<u8> {
        if self.raw { value.to_vec() } else { authz::sanitized(value).into_bytes() }
    }

    /// The request for the service.
    pub(super) fn check(&self, body: Option<&Body>, stream: &Stream) -> CheckRequest {
        let head = &stream.request;
        let connection = &stream.connection;
        let seen = body.and_then(|body| seen(body, stream));
        let mut headers = self.headers(stream);
        if let Some((_, cut)) = seen {
            headers.push((PARTIAL_BODY.to_owned(), cut.to_string().into_bytes()));
        }
        let text = |bytes: &[u8]| authz::sanitized(bytes);
        let mut http = HttpRequest {
            id: stream.random.to_string(),
            method: head.method.to_string(),
            path: text(head.target.full()),
            host: text(&head.authority),
            scheme: head.scheme.as_str().to_owned(),
            size: i64::try_from(stream.bytes.request_body).unwrap_or(i64::MAX),
            protocol: head.version.as_str().to_owned(),
            ..HttpRequest::default()
        };
        if self.raw {
            let raw = |(key, raw_value)| HeaderValue { key, raw_value, ..HeaderValue::default() };
            http.header_map = Some(HeaderMap { headers: headers.into_iter().map(raw).collect() });
        } else {
            http.headers = headers.into_iter().map(|(name, value)| (name, text(&value))).collect();
        }
        match (seen, body.is_some_and(|body| body.as_bytes)) {
            (Some((seen, _)), true) => http.raw_body = seen.to_vec(),
            (Some((seen, _)), false) => http.body = text(seen),
            (None, _) => {}
        }
        let service = head.headers.get("x-envoy-downstream-service-cluster").map(text).unwrap_or_default();
        let certificate = authz::certificate(self.certificate.as_ref(), stream);
        let source = authz::peer(connection, Peer::Client);
        let destination = authz::peer(connection, Peer::Proxy);
        let sni = connection.tls.as_ref().filter(|_| self.tls_session).map(|tls| tls.server_name.as_deref());
        CheckRequest {
            attributes: Some(AttributeContext {
                source: Some(sixfold_xds_api::pb::envoy::service::auth::v3::attribute_context::Peer {
                    service,
                    certificate,
                    ..source
                }),
                destination: Some(sixfold_xds_api::pb::envoy::service::auth::v3::attribute_context::Peer {
                    labels: self.labels.clone(),
                    ..destination
                }),
                request: Some(Request { time: authz::timestamp(stream.start_time), http: Some(http) }),
                context_extensions: self.extensions.clone(),
                metadata_context: Some(service::told_metadata(stream, &self.metadata)),
                route_metadata_context: Some(self.metadata_of_route(stream)),
                tls_session: sni.map(|sni| TlsSession { sni: sni.unwrap_or_default().to_owned() }),
            }),
        }
    }

    fn metadata_of_route(&self, stream: &Stream) -> Metadata {
        let mut told = Metadata::default();
        let Some(route) = &stream.route else { return told };
        for namespace in &self.route_metadata {
            if let Some(serde_json::Value::Object(values)) = route.metadata.get(namespace) {
                told.filter_metadata.insert(namespace.to_string(), json_to_struct(values.clone()));
            }
        }
        told
    }
}

/// What the service sees of the body, and whether it is less than there was of it; `None` where there is none.
pub(super) fn seen<'s>(body: &Body, stream: &'s Stream) -> Option<(&'s [u8], bool)> {
    let there = stream.request_body.as_ref().or(stream.read_ahead.as_deref())?;
    let seen = there.get(..body.max).unwrap_or(there);
    (!seen.is_empty()).then_some((seen, seen.len() < there.len()))
}
