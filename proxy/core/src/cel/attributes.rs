//! Envoy's attributes (docs/root/intro/arch_overview/advanced/attributes.rst): what expressions can ask of a request.

use super::value::{Map, Value};
use crate::connection::{Certificate, TlsInfo};
use crate::format::{grpc_status, response_bytes};
use crate::headers::Known;
use crate::stream::Stream;
use std::net::SocketAddr;
use std::time::{Instant, UNIX_EPOCH};

/// One of them, without what it belongs to.
#[derive(Debug)]
pub(super) struct Attribute {
    pub(super) name: &'static str,
    pub(super) read: Read,
}

/// Reads its value; `None` is not there.
pub(super) type Read = for<'a> fn(&'a Stream) -> Option<Value<'a>>;

const fn of(name: &'static str, read: Read) -> Attribute {
    Attribute { name, read }
}

/// The attributes below a name; `None` if there is no such name.
pub(super) fn below(root: &str) -> Option<&'static [Attribute]> {
    Some(match root {
        "request" => REQUEST,
        "response" => RESPONSE,
        "source" => SOURCE,
        "destination" => DESTINATION,
        "connection" => CONNECTION,
        "upstream" => UPSTREAM,
        "xds" => XDS,
        _ => return None,
    })
}

/// What is no list of attributes but a map of its own.
pub(super) fn root(name: &str) -> Option<Read> {
    match name {
        "metadata" => Some(|s| Some(Value::Map(Map::Metadata(s)))),
        "filter_state" => Some(|s| Some(Value::Map(Map::FilterState(s)))),
        // Nothing here leaves any with the upstream.
        "upstream_filter_state" => Some(|_| None),
        _ => None,
    }
}

fn text<'a>(bytes: &'a [u8]) -> Option<Value<'a>> {
    Some(Value::text(bytes))
}

fn full<'a>(bytes: &'a [u8]) -> Option<Value<'a>> {
    (!bytes.is_empty()).then(|| Value::text(bytes))
}

fn int(number: u64) -> Option<Value<'static>> {
    i64::try_from(number).ok().map(Value::Int)
}

fn header(stream: &Stream, name: Known) -> Option<Value<'_>> {
    stream.request.headers.get(name).map(Value::text)
}

fn owned(text: String) -> Option<Value<'static>> {
    Some(Value::text(text.into_bytes()))
}

fn between(from: Option<Instant>, to: Option<Instant>) -> Option<Value<'static>> {
    let time = to?.checked_duration_since(from?)?;
    Some(Value::Duration(i128::try_from(time.as_nanos()).ok()?))
}

/// Bytes of a head's names and values.
fn head_bytes(stream: &Stream) -> u64 {
    let request = &stream.request;
    let pseudo = [
        (":method", request.method.as_str().len()),
        (":path", request.target.full().len()),
        (":authority", request.authority.len()),
        (":scheme", request.scheme.as_str().len()),
    ];
    let pseudo: usize = pseudo.iter().filter(|(_, len)| *len > 0).map(|(name, len)| name.len() + len).sum();
    let fields: usize = request.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    (pseudo + fields) as u64
}

fn fields_bytes(headers: &crate::headers::Headers) -> u64 {
    headers.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum()
}

fn response_head_bytes(stream: &Stream) -> u64 {
    if stream.response.status == 0 { 0 } else { response_bytes(stream) }
}

fn size(stream: &Stream) -> Option<Value<'_>> {
    match stream.request.headers.get(Known::CONTENT_LENGTH) {
        Some(length) => std::str::from_utf8(length).ok()?.parse().ok().map(Value::Int),
        None => int(stream.bytes.request_body),
    }
}

static REQUEST: &[Attribute] = &[
    of("headers", |s| Some(Value::Map(Map::RequestHeaders(&s.request)))),
    of("path", |s| full(s.request.target.full())),
    of("url_path", |s| full(s.request.target.path())),
    of("host", |s| full(&s.request.authority)),
    of("scheme", |s| text(s.request.scheme.as_str().as_bytes())),
    of("method", |s| text(s.request.method.as_str().as_bytes())),
    of("referer", |s| header(s, Known::REFERER)),
    of("useragent", |s| header(s, Known::USER_AGENT)),
    of("id", |s| header(s, Known::X_REQUEST_ID)),
    of("protocol", |s| text(s.request.version.as_str().as_bytes())),
    of("query", |s| text(s.request.target.query().unwrap_or_default())),
    of("time", |s| {
        let since = s.start_time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(Value::Timestamp(i128::try_from(since.as_nanos()).ok()?))
    }),
    of("duration", |s| between(Some(s.timing.start), s.timing.downstream_tx_end)),
    of("size", size),
    of("total_size", |s| int(s.bytes.request_body + head_bytes(s))),
    of("headers_bytes", |s| int(head_bytes(s))),
];

static RESPONSE: &[Attribute] = &[
    of("code", |s| (s.response.status > 0).then(|| Value::Int(s.response.status.into()))),
    of("code_details", |s| full(s.details.as_deref().unwrap_or_default().as_bytes())),
    of("flags", |s| int(s.flags.bits().into())),
    of("grpc_status", |s| Some(Value::Int(grpc_status(s).into()))),
    of("headers", |s| Some(Value::Map(Map::ResponseHeaders(&s.response)))),
    of("trailers", |s| Some(Value::Map(Map::Fields(&s.response_trailers)))),
    of("size", |s| int(s.bytes.response_body)),
    of("total_size", |s| {
        int(s.bytes.response_body + response_head_bytes(s) + fields_bytes(&s.response_trailers))
    }),
    of("headers_bytes", |s| int(response_head_bytes(s))),
    of("backend_latency", |s| between(s.timing.upstream_tx_begin, s.timing.upstream_rx_end)),
];

fn address(address: SocketAddr) -> Option<Value<'static>> {
    owned(address.to_string())
}

fn port(address: SocketAddr) -> Option<Value<'static>> {
    Some(Value::Int(address.port().into()))
}

static SOURCE: &[Attribute] = &[of("address", |s| address(s.remote)), of("port", |s| port(s.remote))];

static DESTINATION: &[Attribute] =
    &[of("address", |s| address(s.connection.local)), of("port", |s| port(s.connection.local))];

fn tls(stream: &Stream) -> Option<&TlsInfo> {
    stream.connection.tls.as_ref()
}

fn peer(stream: &Stream) -> Option<&Certificate> {
    tls(stream)?.peer.as_deref()
}

fn own(stream: &Stream) -> Option<&Certificate> {
    tls(stream)?.local.as_deref()
}

fn upstream_tls(stream: &Stream) -> Option<&TlsInfo> {
    stream.upstream.connection.as_ref()?.tls.as_ref()
}

fn upstream_peer(stream: &Stream) -> Option<&Certificate> {
    upstream_tls(stream)?.peer.as_deref()
}

fn upstream_own(stream: &Stream) -> Option<&Certificate> {
    upstream_tls(stream)?.local.as_deref()
}

fn subject(certificate: &Certificate) -> Option<Value<'_>> {
    text(certificate.subject.as_bytes())
}

fn first(names: &[String]) -> Option<Value<'_>> {
    text(names.first()?.as_bytes())
}

static CONNECTION: &[Attribute] = &[
    of("mtls", |s| Some(Value::Bool(peer(s).is_some()))),
    of("requested_server_name", |s| {
        text(s.connection.requested_server_name.as_deref().unwrap_or_default().as_bytes())
    }),
    of("tls_version", |s| text(tls(s)?.version.as_bytes())),
    of("subject_local_certificate", |s| subject(own(s)?)),
    of("subject_peer_certificate", |s| subject(peer(s)?)),
    of("uri_san_local_certificate", |s| first(&own(s)?.uri_sans)),
    of("uri_san_peer_certificate", |s| first(&peer(s)?.uri_sans)),
    of("dns_san_local_certificate", |s| first(&own(s)?.dns_sans)),
    of("dns_san_peer_certificate", |s| first(&peer(s)?.dns_sans)),
    of("sha256_peer_certificate_digest", |s| text(peer(s)?.sha256.as_bytes())),
    of("id", |s| Some(Value::Uint(s.connection.id))),
    of("termination_details", |s| s.var("connection_termination_details").and_then(full)),
    // No request comes by a connection whose transport failed.
    of("transport_failure_reason", |_| None),
];

fn endpoint(stream: &Stream) -> Option<SocketAddr> {
    match stream.upstream.member.as_ref()?.host.address {
        crate::cluster::Address::Ip(address) => Some(address),
        _ => None,
    }
}

static UPSTREAM: &[Attribute] = &[
    of("address", |s| owned(s.upstream.member.as_ref()?.host.address.to_string())),
    of("port", |s| port(endpoint(s)?)),
    of("local_address", |s| address(s.upstream.local?)),
    of("transport_failure_reason", |s| text(s.upstream.failure.as_deref().unwrap_or_default().as_bytes())),
    of("request_attempt_count", |s| Some(Value::Uint(s.upstream.attempts.into()))),
    of("tls_version", |s| text(upstream_tls(s)?.version.as_bytes())),
    of("subject_local_certificate", |s| subject(upstream_own(s)?)),
    of("subject_peer_certificate", |s| subject(upstream_peer(s)?)),
    of("uri_san_local_certificate", |s| first(&upstream_own(s)?.uri_sans)),
    of("uri_san_peer_certificate", |s| first(&upstream_peer(s)?.uri_sans)),
    of("dns_san_peer_certificate", |s| first(&upstream_peer(s)?.dns_sans)),
    of("sha256_peer_certificate_digest", |s| text(upstream_peer(s)?.sha256.as_bytes())),
];

static XDS: &[Attribute] = &[
    of("cluster_name", |s| text(s.upstream.cluster.as_ref()?.config.name.as_bytes())),
    of("cluster_metadata", |s| {
        Some(Value::Map(Map::Configured(&s.upstream.cluster.as_ref()?.config.metadata)))
    }),
    of("route_name", |s| text(s.route.as_ref()?.name.as_bytes())),
    of("route_metadata", |s| Some(Value::Map(Map::Configured(&s.route.as_ref()?.metadata)))),
    of("virtual_host_name", |s| text(s.virtual_host.as_ref()?.name.as_bytes())),
    of("virtual_host_metadata", |s| {
        Some(Value::Map(Map::Configured(&s.virtual_host.as_ref()?.options.metadata)))
    }),
    of("filter_chain_name", |s| text(s.connection.filter_chain.as_bytes())),
    of("upstream_host_metadata", |s| {
        Some(Value::Map(Map::Configured(&s.upstream.member.as_ref()?.metadata)))
    }),
];
