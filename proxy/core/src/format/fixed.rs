//! Envoy's operators without arguments.

use super::certificate;
use super::operator::{Duration, Point, has_request};
use super::read::{Read, ip, join, number, socket, underscored};
use crate::cluster::TriedHost;
use crate::headers::Headers;
use crate::stream::Stream;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// The function of an operator: `None` when the name is not known, `Some(None)` when it is and there is never a
/// value here.
pub(super) fn find(name: &str) -> Option<Option<Read>> {
    let tables =
        OPERATORS.iter().chain(&certificate::PEER).chain(&certificate::LOCAL).chain(&certificate::UPSTREAM);
    if let Some((_, read)) = tables.into_iter().find(|(n, _)| *n == name) {
        return Some(Some(*read));
    }
    ABSENT.contains(&name).then_some(None)
}

/// The names of all of them.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let tables =
        OPERATORS.iter().chain(&certificate::PEER).chain(&certificate::LOCAL).chain(&certificate::UPSTREAM);
    tables.map(|(name, _)| *name).chain(ABSENT.iter().copied())
}

/// Whether a length may follow an operator: only those whose value can be long have one in Envoy.
pub(super) fn takes_length(name: &str) -> bool {
    const FIXED: [&str; 11] = [
        "START_TIME",
        "START_TIME_LOCAL",
        "EMIT_TIME",
        "EMIT_TIME_LOCAL",
        "COMMON_DURATION",
        "GRPC_STATUS",
        "GRPC_STATUS_NUMBER",
        "UPSTREAM_METADATA",
        "REQUESTED_SERVER_NAME",
        "HOSTNAME",
        "RESPONSE_CODE_DETAILS",
    ];
    !FIXED.contains(&name) && find(name).is_none() && certificate::validity(name).is_none()
}

/// Operators for what sixfold does not have: they print the missing value.
const ABSENT: &[&str] = &[
    "ROUNDTRIP_DURATION",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "UPSTREAM_DETECTED_CLOSE_TYPE",
    "UPSTREAM_LOCAL_CLOSE_REASON",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "DOWNSTREAM_TLS_GROUP",
    "DOWNSTREAM_TLS_SESSION_ID",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "DOWNSTREAM_CX_RTT",
    "DOWNSTREAM_LOCAL_OTHERNAME_SAN",
    "DOWNSTREAM_PEER_OTHERNAME_SAN",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256",
    "DOWNSTREAM_PEER_CHAIN_SERIALS",
    "DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_ISSUER_SERIAL",
    "ROUTE_RESOLUTION_COUNT",
    "ROUTE_RESOLUTION_TIME_US",
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED",
    "UPSTREAM_TLS_GROUP",
    "UPSTREAM_TLS_SESSION_ID",
];

const OPERATORS: &[(&str, Read)] = &[
    ("PROTOCOL", Read::Text(protocol)),
    ("UPSTREAM_PROTOCOL", Read::Text(|s| Some(s.upstream.version?.as_str().as_bytes()))),
    ("RESPONSE_CODE", Read::Number(|s| Some(s.response.status.into()))),
    ("RESPONSE_CODE_DETAILS", Read::Make(|s, out| text_underscored(out, s.details.as_deref()))),
    ("RESPONSE_FLAGS", Read::Make(|s, out| flags(s, out, false))),
    ("RESPONSE_FLAGS_LONG", Read::Make(|s, out| flags(s, out, true))),
    ("DOWNSTREAM_LOCAL_CLOSE_REASON", Read::Text(|s| s.var("downstream_local_close_reason"))),
    ("CONNECTION_TERMINATION_DETAILS", Read::Text(|s| s.var("connection_termination_details"))),
    ("DURATION", Read::Number(|s| Some(millis_so_far(s)))),
    ("REQUEST_DURATION", Read::Number(|s| millis(s, Point::DownstreamRxBegin, Point::DownstreamRxEnd))),
    ("REQUEST_TX_DURATION", Read::Number(|s| millis(s, Point::DownstreamRxBegin, Point::UpstreamTxEnd))),
    ("RESPONSE_DURATION", Read::Number(|s| millis(s, Point::DownstreamRxBegin, Point::UpstreamRxBegin))),
    ("RESPONSE_TX_DURATION", Read::Number(|s| millis(s, Point::UpstreamRxBegin, Point::DownstreamTxEnd))),
    // Only QUIC counts them.
    ("BYTES_RETRANSMITTED", Read::Number(|_| Some(0))),
    ("PACKETS_RETRANSMITTED", Read::Number(|_| Some(0))),
    ("BYTES_RECEIVED", Read::Number(|s| Some(s.bytes.request_body))),
    ("BYTES_SENT", Read::Number(|s| Some(s.bytes.response_body))),
    ("DOWNSTREAM_HEADER_BYTES_RECEIVED", Read::Number(|s| Some(s.bytes.traffic.head_received))),
    ("DOWNSTREAM_HEADER_BYTES_SENT", Read::Number(|s| Some(s.bytes.traffic.head_sent))),
    ("DOWNSTREAM_WIRE_BYTES_RECEIVED", Read::Number(|s| Some(s.bytes.traffic.received))),
    ("DOWNSTREAM_WIRE_BYTES_SENT", Read::Number(|s| Some(s.bytes.traffic.sent))),
    ("DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED", Read::Number(|s| Some(s.bytes.traffic.head_received))),
    ("DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT", Read::Number(|s| Some(s.bytes.traffic.head_sent))),
    ("UPSTREAM_HEADER_BYTES_SENT", Read::Number(|s| Some(s.upstream.traffic().head_sent))),
    ("UPSTREAM_HEADER_BYTES_RECEIVED", Read::Number(|s| Some(s.upstream.traffic().head_received))),
    ("UPSTREAM_WIRE_BYTES_SENT", Read::Number(|s| Some(s.upstream.traffic().sent))),
    ("UPSTREAM_WIRE_BYTES_RECEIVED", Read::Number(|s| Some(s.upstream.traffic().received))),
    ("UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT", Read::Number(|s| Some(s.upstream.traffic().head_sent))),
    (
        "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED",
        Read::Number(|s| Some(s.upstream.traffic().head_received)),
    ),
    ("REQUEST_HEADERS_BYTES", Read::Number(|s| Some(request_bytes(s)))),
    ("RESPONSE_HEADERS_BYTES", Read::Number(|s| Some(response_bytes(s)))),
    ("RESPONSE_TRAILERS_BYTES", Read::Number(|s| Some(bytes(&s.response_trailers)))),
    ("DOWNSTREAM_REMOTE_ADDRESS", Read::Make(|s, out| address(out, Some(s.remote)))),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Read::Make(|s, out| only_ip(out, Some(s.remote)))),
    ("DOWNSTREAM_REMOTE_PORT", Read::Number(|s| Some(s.remote.port().into()))),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Read::Make(|s, out| address(out, Some(s.connection.direct_remote)))),
    (
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
        Read::Make(|s, out| only_ip(out, Some(s.connection.direct_remote))),
    ),
    ("DOWNSTREAM_DIRECT_REMOTE_PORT", Read::Number(|s| Some(s.connection.direct_remote.port().into()))),
    ("DOWNSTREAM_LOCAL_ADDRESS", Read::Make(|s, out| address(out, Some(s.connection.local)))),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Read::Make(|s, out| only_ip(out, Some(s.connection.local)))),
    ("DOWNSTREAM_LOCAL_PORT", Read::Number(|s| Some(s.connection.local.port().into()))),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS", Read::Make(|s, out| address(out, Some(s.connection.direct_local)))),
    (
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT",
        Read::Make(|s, out| only_ip(out, Some(s.connection.direct_local))),
    ),
    ("DOWNSTREAM_DIRECT_LOCAL_PORT", Read::Number(|s| Some(s.connection.direct_local.port().into()))),
    ("UPSTREAM_HOST", Read::Text(|s| Some(s.upstream.member.as_ref()?.host.label.as_bytes()))),
    ("UPSTREAM_HOST_NAME", Read::Text(host_name)),
    ("UPSTREAM_HOST_NAME_WITHOUT_PORT", Read::Text(|s| host_name(s).map(crate::message::strip_port))),
    ("UPSTREAM_HOSTS_ATTEMPTED", Read::Make(|s, out| attempted(s, out, false, false))),
    ("UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT", Read::Make(|s, out| attempted(s, out, false, true))),
    ("UPSTREAM_HOST_NAMES_ATTEMPTED", Read::Make(|s, out| attempted(s, out, true, false))),
    ("UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT", Read::Make(|s, out| attempted(s, out, true, true))),
    ("UPSTREAM_REMOTE_ADDRESS", Read::Make(|s, out| address(out, connected_to(s)))),
    ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Read::Make(|s, out| only_ip(out, connected_to(s)))),
    ("UPSTREAM_REMOTE_PORT", Read::Number(|s| Some(connected_to(s)?.port().into()))),
    ("UPSTREAM_LOCAL_ADDRESS", Read::Make(|s, out| address(out, s.upstream.local))),
    ("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Read::Make(|s, out| only_ip(out, s.upstream.local))),
    ("UPSTREAM_LOCAL_PORT", Read::Number(|s| Some(s.upstream.local?.port().into()))),
    (
        "UPSTREAM_CLUSTER",
        Read::Text(|s| Some(s.upstream.cluster.as_ref()?.config.observability_name.as_bytes())),
    ),
    ("UPSTREAM_CLUSTER_RAW", Read::Text(|s| Some(s.upstream.cluster.as_ref()?.config.name.as_bytes()))),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", Read::Number(|s| Some(s.upstream.attempts.into()))),
    (
        "UPSTREAM_TRANSPORT_FAILURE_REASON",
        Read::Make(|s, out| text_underscored(out, s.upstream.failure.as_deref())),
    ),
    ("ROUTE_NAME", Read::Text(|s| some(s.route.as_ref()?.name.as_bytes()))),
    ("VIRTUAL_CLUSTER_NAME", Read::Text(virtual_cluster)),
    ("DOWNSTREAM_TLS_VERSION", Read::Text(|s| some(s.connection.tls.as_ref()?.version.as_bytes()))),
    ("DOWNSTREAM_TLS_CIPHER", Read::Text(|s| some(s.connection.tls.as_ref()?.cipher.as_bytes()))),
    ("CONNECTION_ID", Read::Number(|s| Some(s.connection.id))),
    ("UPSTREAM_CONNECTION_ID", Read::Number(|s| Some(s.upstream.connection.as_ref()?.id))),
    ("STREAM_ID", Read::Make(|s, out| uuid(out, s))),
    ("UNIQUE_ID", Read::Make(|s, out| uuid(out, s))),
    ("TRACE_ID", Read::Text(|s| s.var("trace_id"))),
    ("SPAN_ID", Read::Text(|s| s.var("span_id"))),
    ("ACCESS_LOG_TYPE", Read::Text(|s| Some(log_type(s).as_bytes()))),
    ("LOCAL_REPLY_BODY", Read::Text(|s| Some(&s.local_body))),
    // No filter here sets a flag of its own, and no address is one of a listener inside Envoy.
    ("CUSTOM_FLAGS", Read::Text(|_| Some(b""))),
    ("DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID", Read::Text(|_| Some(b""))),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID", Read::Text(|_| Some(b""))),
    ("UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID", Read::Text(|s| connected_to(s).map(|_| &b""[..]))),
    ("UPSTREAM_CONNECTION_POOL_READY_DURATION", Read::Number(pool_ready)),
    ("LISTENER_NAME", Read::Text(|s| some(s.connection.listener.as_bytes()))),
    ("FILTER_CHAIN_NAME", Read::Text(|s| some(s.connection.filter_chain.as_bytes()))),
];

fn some(text: &[u8]) -> Option<&[u8]> {
    (!text.is_empty()).then_some(text)
}

fn protocol(stream: &Stream) -> Option<&[u8]> {
    let known = has_request(stream) || stream.response.status != 0;
    known.then(|| stream.request.version.as_str().as_bytes())
}

/// A TCP connection is logged with a stream that never had a request or an answer.
fn log_type(stream: &Stream) -> &'static str {
    if protocol(stream).is_some() { "DownstreamEnd" } else { "TcpConnectionEnd" }
}

fn text_underscored(out: &mut Vec<u8>, text: Option<&str>) -> bool {
    underscored(out, text.unwrap_or_default());
    text.is_some()
}

/// The flags; Envoy prints `-` for none in every output, JSON and headers included.
fn flags(stream: &Stream, out: &mut Vec<u8>, long: bool) -> bool {
    match (stream.flags.is_empty(), long) {
        (true, _) => out.push(b'-'),
        (false, true) => stream.flags.write_long(out),
        (false, false) => stream.flags.write_short(out),
    }
    true
}

/// Milliseconds until the stream ended, or until now.
pub(super) fn millis_so_far(stream: &Stream) -> u64 {
    let end = stream.timing.downstream_tx_end.unwrap_or_else(Instant::now);
    end.saturating_duration_since(stream.timing.start).as_millis() as u64
}

fn millis(stream: &Stream, from: Point, to: Point) -> Option<u64> {
    Duration { from, to, nanos: 1_000_000 }.of(stream)
}

/// Names and values of a block, as Envoy counts a header map.
fn bytes(headers: &Headers) -> u64 {
    (headers.wire_len() - 4 * headers.len()) as u64
}

/// Bytes of the request's head as Envoy counts them (`HeaderMap::byteSize`): names and values, pseudo-headers too.
pub fn request_bytes(stream: &Stream) -> u64 {
    if !has_request(stream) {
        return 0;
    }
    let request = &stream.request;
    // Envoy refuses a request without an authority before it knows the scheme.
    let scheme = if request.authority.is_empty() { 0 } else { request.scheme.as_str().len() };
    let pseudo = [
        (":method", request.method.as_str().len()),
        (":path", request.target.full().len()),
        (":authority", request.authority.len()),
        (":scheme", scheme),
    ];
    let there = pseudo.iter().filter(|(_, value)| *value > 0);
    bytes(&request.headers) + there.map(|(name, value)| (name.len() + value) as u64).sum::<u64>()
}

/// Bytes of the response's head as Envoy counts them (`HeaderMap::byteSize`): names and values, with `:status` and what says
/// that the connection ends.
pub fn response_bytes(stream: &Stream) -> u64 {
    // `:status` and its three digits.
    let status = if stream.response.status == 0 { 0 } else { 10 };
    bytes(&stream.response.headers) + status + u64::from(stream.response.connection_bytes)
}

fn address(out: &mut Vec<u8>, address: Option<SocketAddr>) -> bool {
    address.map(|address| socket(out, address)).is_some()
}

fn only_ip(out: &mut Vec<u8>, address: Option<SocketAddr>) -> bool {
    address.map(|address| ip(out, address.ip())).is_some()
}

/// Where the last attempt's connection leads. Envoy knows it of a connection alone (`UpstreamRequest::onPoolReady`),
/// not of an endpoint that could not be reached.
pub(super) fn connected_to(stream: &Stream) -> Option<SocketAddr> {
    stream.upstream.connection.as_ref()?;
    upstream_remote(stream)
}

/// The address of the last attempt's endpoint.
pub(super) fn upstream_remote(stream: &Stream) -> Option<SocketAddr> {
    match &stream.upstream.member.as_ref()?.host.address {
        crate::cluster::Address::Ip(address) => Some(*address),
        _ => None,
    }
}

/// Milliseconds that the last attempt waited for its connection.
fn pool_ready(stream: &Stream) -> Option<u64> {
    let tried = stream.upstream.tried.last()?;
    let ready = stream.timing.upstream_tx_begin.map(|ready| ready.saturating_duration_since(tried.began));
    ready.map(|waited| waited.as_millis() as u64).or_else(|| tried.response_ms().map(Into::into))
}

fn host_name(stream: &Stream) -> Option<&[u8]> {
    let host = &stream.upstream.member.as_ref()?.host;
    some(host.hostname.as_bytes()).or(Some(host.label.as_bytes()))
}

fn attempted(stream: &Stream, out: &mut Vec<u8>, names: bool, without_port: bool) -> bool {
    let tried = &stream.upstream.tried;
    // One that was tried again is named once.
    let first = |(at, host): &(usize, &TriedHost)| {
        !tried.iter().take(*at).any(|earlier| Arc::ptr_eq(&earlier.member.host, &host.member.host))
    };
    let hosts = tried.iter().enumerate().filter(first).map(|(_, tried)| {
        let host = &tried.member.host;
        let text = if names && !host.hostname.is_empty() { &host.hostname } else { &host.label };
        if without_port { crate::message::strip_port(text.as_bytes()) } else { text.as_bytes() }
    });
    join(out, b",", hosts)
}

fn virtual_cluster(stream: &Stream) -> Option<&[u8]> {
    let clusters = &stream.virtual_host.as_ref()?.options.virtual_clusters;
    some(clusters.get(stream.virtual_cluster? as usize)?.name.as_bytes())
}

/// A UUID of version 4 from the request's random number: the same for every log of the request.
fn uuid(out: &mut Vec<u8>, stream: &Stream) -> bool {
    let (high, low) = random_bits(stream);
    let high = high & !0xf000 | 0x4000;
    let low = low & !(0b11 << 62) | 0b10 << 62;
    for (i, (word, shift, digits)) in
        [(high, 32, 8), (high, 16, 4), (high, 0, 4), (low, 48, 4), (low, 0, 12)].into_iter().enumerate()
    {
        if i > 0 {
            out.push(b'-');
        }
        hex(out, word >> shift, digits);
    }
    true
}

/// 128 bits that belong to the request.
pub(super) fn random_bits(stream: &Stream) -> (u64, u64) {
    let seed = stream.random ^ stream.connection.id.rotate_left(40);
    let mut random = fastrand::Rng::with_seed(seed);
    (stream.random, random.u64(..))
}

/// Appends the last `digits` hexadecimal digits of a number.
pub(super) fn hex(out: &mut Vec<u8>, n: u64, digits: u32) {
    for i in (0..digits).rev() {
        let digit = (n >> (4 * i) & 15) as u8;
        out.push(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
    }
}

/// Appends seconds with three digits of their fraction, as nginx prints times.
pub(super) fn seconds(out: &mut Vec<u8>, millis: u64) {
    number(out, millis / 1000);
    out.push(b'.');
    for divisor in [100, 10, 1] {
        out.push(b'0' + (millis / divisor % 10) as u8);
    }
}
