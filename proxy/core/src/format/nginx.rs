//! nginx's variables, and those that APISIX's core sets.

use super::certificate::{peer, tls};
use super::envoy::host_name;
use super::fixed::{hex, millis_so_far, random_bits, seconds, upstream_remote};
use super::operator::has_request;
use super::read::{Read, ip, join, number, socket};
use super::time::TimeFormat;
use super::variable::{client_forwarded_for, some};
use crate::cluster::{Address, TriedHost, UpstreamProtocol};
use crate::flags::Flag;
use crate::headers::Known;
use crate::message::{CONNECTION_CLOSE, Scheme, Version};
use crate::stream::{SENT_ARGS, Stream};
use base64::Engine as _;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// The function of a variable.
pub(super) fn find(name: &str) -> Option<Read> {
    VARIABLES.iter().find(|(n, _)| *n == name).map(|(_, read)| *read)
}

/// Names of all variables that are read.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    VARIABLES.iter().map(|(name, _)| *name)
}

/// As nginx decodes it, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

static HOST_NAME: LazyLock<String> = LazyLock::new(host_name);
static TIME_LOCAL: LazyLock<Option<TimeFormat>> =
    LazyLock::new(|| TimeFormat::local("%d/%b/%Y:%H:%M:%S %z").ok());
static TIME_ISO8601: LazyLock<Option<TimeFormat>> =
    LazyLock::new(|| TimeFormat::local("%Y-%m-%dT%H:%M:%S%:z").ok());

/// What variables that APISIX declares for its plugins have until one of those assigns them.
pub(super) fn declared(name: &str) -> Option<&'static str> {
    DECLARED.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
}

const DECLARED: &[(&str, &str)] = &[
    ("llm_cache_creation_input_tokens", "0"),
    ("llm_cache_read_input_tokens", "0"),
    ("llm_completion_tokens", "0"),
    ("llm_content_risk_level", ""),
    ("llm_end_user_id", ""),
    ("llm_has_tool_calls", "false"),
    ("llm_model", ""),
    ("llm_prompt_tokens", "0"),
    ("llm_reasoning_tokens", "0"),
    ("llm_stream", "false"),
    ("llm_time_to_first_token", "0"),
    ("llm_tool_count", "0"),
    ("llm_total_tokens", "0"),
    ("opentelemetry_context_traceparent", ""),
    ("opentelemetry_span_id", ""),
    ("opentelemetry_trace_id", ""),
    ("original_x_forwarded_for", ""),
    ("rate_limiting_info", ""),
    ("request_line", ""),
    ("request_llm_model", ""),
    ("request_type", "traditional_http"),
    ("upstream_connection", ""),
    ("upstream_mirror_host", ""),
    ("upstream_mirror_uri", ""),
    ("upstream_upgrade", ""),
    ("zipkin_context_traceparent", ""),
    ("zipkin_span_id", ""),
    ("zipkin_trace_id", ""),
];

const VARIABLES: &[(&str, Read)] = &[
    // The request.
    ("request_method", Read::Text(method)),
    ("method", Read::Text(method)),
    ("uri", Read::Text(|s| some(s.request.target.path()))),
    ("request_uri", Read::Text(|s| some(request_uri(s)))),
    ("request", Read::Make(request_line)),
    ("args", Read::Text(sent_query)),
    ("query_string", Read::Text(sent_query)),
    ("is_args", Read::Text(|s| Some(if sent_query(s).is_some() { b"?" } else { b"" }))),
    ("remote_user", Read::Make(remote_user)),
    ("scheme", Read::Text(|s| Some(s.request.scheme.as_str().as_bytes()))),
    ("https", Read::Text(|s| Some(if s.request.scheme == Scheme::Https { b"on" } else { b"" }))),
    ("host", Read::Make(host)),
    ("http_host", Read::Text(|s| some(&s.request.authority))),
    ("http_user_agent", Read::Text(|s| s.request.headers.get(Known::USER_AGENT))),
    ("http_referer", Read::Text(|s| s.request.headers.get(Known::REFERER))),
    ("server_protocol", Read::Text(|s| Some(if has_request(s) { version(s.request.version) } else { b"" }))),
    ("content_length", Read::Text(|s| s.request.headers.get(Known::CONTENT_LENGTH))),
    (
        "content_type",
        Read::Text(|s| {
            let sent = s.request.withheld(Known::CONTENT_TYPE);
            sent.or_else(|| s.request.headers.get(Known::CONTENT_TYPE))
        }),
    ),
    ("request_id", Read::Make(request_id)),
    ("apisix_request_id", Read::Make(request_id)),
    ("request_length", Read::Number(|s| Some(s.bytes.traffic.received))),
    (
        "request_time",
        Read::Make(|s, out| {
            seconds(out, millis_so_far(s));
            true
        }),
    ),
    (
        "request_completion",
        Read::Text(|s| {
            let complete = s.timing.downstream_tx_end.is_some() && !s.flags.contains(Flag::DC);
            Some(if complete { b"OK" } else { b"" })
        }),
    ),
    // Of loggers that are told to have it.
    ("resp_body", Read::Text(|_| Some(b""))),
    ("request_body", Read::Text(|s| s.request_body.as_deref())),
    ("proxy_add_x_forwarded_for", Read::Make(forwarded_for)),
    // The client's connection.
    (
        "remote_addr",
        Read::Make(|s, out| {
            ip(out, s.remote.ip());
            true
        }),
    ),
    (
        "remote_port",
        Read::Make(|s, out| {
            // One that nobody has told is none.
            if s.remote.port() > 0 {
                number(out, s.remote.port().into());
            }
            true
        }),
    ),
    ("binary_remote_addr", Read::Make(binary_address)),
    (
        "realip_remote_addr",
        Read::Make(|s, out| {
            ip(out, s.connection.direct_remote.ip());
            true
        }),
    ),
    ("realip_remote_port", Read::Number(|s| Some(s.connection.direct_remote.port().into()))),
    (
        "proxy_protocol_addr",
        Read::Make(|s, out| {
            let there = s.connection.remote != s.connection.direct_remote;
            if there {
                ip(out, s.connection.remote.ip());
            }
            there
        }),
    ),
    (
        "proxy_protocol_port",
        Read::Number(|s| {
            (s.connection.remote != s.connection.direct_remote).then(|| s.connection.remote.port().into())
        }),
    ),
    (
        "server_addr",
        Read::Make(|s, out| {
            ip(out, s.connection.local.ip());
            true
        }),
    ),
    ("server_port", Read::Number(|s| Some(s.connection.local.port().into()))),
    ("server_name", Read::Text(|_| Some(b"_"))),
    ("connection", Read::Number(|s| Some(s.connection.id))),
    (
        "connection_time",
        Read::Make(|s, out| {
            seconds(out, s.connection.start.elapsed().as_millis() as u64);
            true
        }),
    ),
    ("connection_requests", Read::Number(|s| Some(s.request.ordinal.into()))),
    // The response.
    (
        "status",
        Read::Make(|s, out| {
            status(out, s.response.status);
            true
        }),
    ),
    ("bytes_sent", Read::Number(|s| Some(s.bytes.traffic.sent))),
    ("body_bytes_sent", Read::Number(|s| Some(body_bytes_sent(s)))),
    ("sent_http_transfer_encoding", Read::Text(|s| s.response.chunked.then_some(&b"chunked"[..]))),
    ("sent_http_connection", Read::Text(|s| has_request(s).then(|| sent_connection(s).as_bytes()))),
    // Of streams alone.
    ("protocol", Read::Text(|s| (!has_request(s)).then_some(&b"TCP"[..]))),
    ("bytes_received", Read::Number(|s| (!has_request(s)).then_some(s.bytes.request_body))),
    (
        "session_time",
        Read::Make(|s, out| {
            let there = !has_request(s);
            if there {
                seconds(out, millis_so_far(s));
            }
            there
        }),
    ),
    // The upstream.
    ("upstream_addr", Read::Make(upstream_addresses)),
    (
        "upstream_status",
        Read::Make(|s, out| {
            attempts(s, out, |tried, out| match tried.status {
                // Given up before there was one: the client left.
                0 => out.push(b'-'),
                code => number(out, code.into()),
            })
        }),
    ),
    ("upstream_response_time", Read::Make(|s, out| attempts(s, out, |t, out| time(out, t.response_ms())))),
    (
        "upstream_connect_time",
        Read::Make(|s, out| attempts(s, out, |t, out| time(out, Some(t.connect_ms.unwrap_or(0))))),
    ),
    ("upstream_header_time", Read::Make(|s, out| attempts(s, out, |t, out| time(out, t.header_ms())))),
    (
        "upstream_response_length",
        Read::Make(|s, out| attempts(s, out, |t, out| number(out, t.response_length()))),
    ),
    ("upstream_http_server", Read::Text(|s| some(&s.upstream.server))),
    (
        "upstream_bytes_received",
        Read::Make(|s, out| attempts(s, out, |t, out| number(out, t.traffic.received))),
    ),
    ("upstream_bytes_sent", Read::Make(|s, out| attempts(s, out, |t, out| number(out, t.traffic.sent)))),
    ("upstream_scheme", Read::Text(|s| Some(upstream_scheme(s)))),
    ("upstream_host", Read::Text(|s| some(&s.request.authority))),
    (
        "apisix_upstream_response_time",
        Read::Make(|s, out| attempts(s, out, |t, out| time(out, t.response_ms()))),
    ),
    // As it is configured: a name that was resolved is a name.
    (
        "upstream_unresolved_host",
        Read::Text(|s| {
            let host = &s.upstream.member.as_ref()?.host;
            some(host.hostname.as_bytes()).or(Some(host.label.as_bytes())).map(crate::message::strip_port)
        }),
    ),
    // Only what rewrites the target sets it.
    ("upstream_uri", Read::Text(|_| Some(b""))),
    ("balancer_ip", Read::Make(|s, out| upstream_remote(s).map(|address| ip(out, address.ip())).is_some())),
    ("balancer_port", Read::Number(|s| Some(upstream_remote(s)?.port().into()))),
    ("proxy_host", Read::Text(|s| Some(s.upstream.cluster.as_ref()?.config.name.as_bytes()))),
    ("proxy_port", Read::Number(|s| Some(upstream_remote(s)?.port().into()))),
    ("response_source", Read::Text(|s| Some(source(s).as_bytes()))),
    // The resources.
    ("route_id", Read::Text(|s| some(s.route.as_ref()?.ids.route.as_bytes()))),
    ("route_name", Read::Text(|s| some(s.route.as_ref()?.name.as_bytes()))),
    ("service_id", Read::Text(|s| some(s.route.as_ref()?.ids.service.as_bytes()))),
    ("service_name", Read::Text(|s| some(s.route.as_ref()?.ids.service_name.as_bytes()))),
    // TLS.
    ("ssl_protocol", Read::Text(|s| some(tls(s)?.version.as_bytes()))),
    ("ssl_cipher", Read::Text(|s| some(tls(s)?.cipher.as_bytes()))),
    ("ssl_server_name", Read::Text(|s| Some(s.connection.server_name()?.as_bytes()))),
    ("ssl_alpn_protocol", Read::Text(|s| tls(s)?.alpn.as_deref())),
    ("ssl_session_reused", Read::Text(|s| Some(if tls(s)?.resumed { b"r" } else { b"." }))),
    ("ssl_client_verify", Read::Text(|s| Some(verified(s)?.as_bytes()))),
    ("ssl_client_s_dn", Read::Text(|s| Some(peer(s)?.subject.as_bytes()))),
    ("ssl_client_i_dn", Read::Text(|s| Some(peer(s)?.issuer.as_bytes()))),
    (
        "ssl_client_serial",
        Read::Make(|s, out| {
            peer(s).map(|c| out.extend(c.serial.bytes().map(|b| b.to_ascii_uppercase()))).is_some()
        }),
    ),
    ("ssl_client_fingerprint", Read::Text(|s| Some(peer(s)?.sha1.as_bytes()))),
    ("ssl_client_raw_cert", Read::Text(|s| Some(peer(s)?.pem.as_bytes()))),
    ("ssl_client_cert", Read::Make(indented_certificate)),
    // The clock and the process.
    ("time_local", Read::Make(|_, out| clock(out, &TIME_LOCAL))),
    ("time_iso8601", Read::Make(|_, out| clock(out, &TIME_ISO8601))),
    (
        "msec",
        Read::Make(|_, out| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            seconds(out, since.as_millis() as u64);
            true
        }),
    ),
    ("hostname", Read::Text(|_| Some(HOST_NAME.as_bytes()))),
    ("pid", Read::Number(|_| Some(std::process::id().into()))),
    ("nginx_version", Read::Text(|_| Some(env!("CARGO_PKG_VERSION").as_bytes()))),
];

/// The method, unless what came was no request.
fn method(stream: &Stream) -> Option<&[u8]> {
    has_request(stream).then(|| stream.request.method.as_str().as_bytes())
}

fn request_uri(stream: &Stream) -> &[u8] {
    some(&stream.original_target).unwrap_or_else(|| stream.request.target.full())
}

fn version(version: Version) -> &'static [u8] {
    match version {
        Version::Http2 => b"HTTP/2.0",
        Version::Http3 => b"HTTP/3.0",
        http1 => http1.as_str().as_bytes(),
    }
}

fn request_line(stream: &Stream, out: &mut Vec<u8>) -> bool {
    let request = &stream.request;
    let sent = request.sent.as_deref();
    let method = sent.and_then(|sent| sent.method.as_ref()).unwrap_or(&request.method);
    let sent = sent.and_then(|sent| some(&sent.target)).or_else(|| stream.var("real_request_uri"));
    let target = sent.unwrap_or_else(|| request_uri(stream));
    let parts = [method.as_str().as_bytes(), target, version(request.version)];
    join(out, b" ", parts.into_iter())
}

/// The host without its port and a dot at its end, in lower case; the server's name when there is none, and nothing
/// when what came was no request.
fn host(stream: &Stream, out: &mut Vec<u8>) -> bool {
    match some(stream.request.server_name()) {
        Some(host) => out.extend(host.iter().map(u8::to_ascii_lowercase)),
        None if has_request(stream) => out.push(b'_'),
        None => {}
    }
    true
}

/// The query that the client sent, unless it is empty: what a plugin makes of it is the upstream's to see.
pub(super) fn sent_query(stream: &Stream) -> Option<&[u8]> {
    stream.var(SENT_ARGS).or_else(|| stream.request.target.query()).and_then(some)
}

/// The user of Basic credentials (`ngx_http_auth_basic_user`).
fn remote_user(stream: &Stream, out: &mut Vec<u8>) -> bool {
    let Some(value) = stream.request.headers.get(Known::AUTHORIZATION) else { return false };
    let Some((scheme, credentials)) = value.split_at_checked(6) else { return false };
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return false;
    }
    let decoded = BASE64.decode(credentials.trim_ascii_start()).unwrap_or_default();
    let Some(colon) = memchr::memchr(b':', &decoded) else { return false };
    out.extend_from_slice(&decoded[..colon]);
    true
}

/// What went to the client behind the head, with its framing (`ngx_http_log_body_bytes_sent`).
fn body_bytes_sent(stream: &Stream) -> u64 {
    let bytes = &stream.bytes;
    if bytes.head_end == 0 { bytes.response_body } else { bytes.traffic.sent.saturating_sub(bytes.head_end) }
}

/// 32 hexadecimal digits that belong to the request.
fn request_id(stream: &Stream, out: &mut Vec<u8>) -> bool {
    let (high, low) = random_bits(stream);
    hex(out, high, 16);
    hex(out, low, 16);
    true
}

/// What a response says of its connection as nginx tells it, over HTTP/2 too: that this is kept, unless a client over HTTP/1
/// was told otherwise.
pub fn sent_connection(stream: &Stream) -> &'static str {
    match (stream.response.status, stream.response.connection_bytes) {
        (101, _) => "upgrade",
        (_, CONNECTION_CLOSE) => "close",
        _ => "keep-alive",
    }
}

fn forwarded_for(stream: &Stream, out: &mut Vec<u8>) -> bool {
    if let Some(sent) = client_forwarded_for(stream) {
        out.extend_from_slice(&sent);
        out.extend_from_slice(b", ");
    }
    ip(out, stream.remote.ip());
    true
}

fn binary_address(stream: &Stream, out: &mut Vec<u8>) -> bool {
    match stream.remote.ip() {
        std::net::IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
        std::net::IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
    }
    true
}

/// Three digits, as nginx's logs have them: `000` for none.
fn status(out: &mut Vec<u8>, status: u16) {
    if status == 0 {
        out.extend_from_slice(b"000");
    } else {
        number(out, status.into());
    }
}

/// The upstream's scheme as APISIX names it; `http` while there is no upstream.
fn upstream_scheme(stream: &Stream) -> &'static [u8] {
    let config = stream.upstream.cluster.as_ref().map(|cluster| &cluster.config);
    let secure = config.is_some_and(|c| c.tls.is_some() || c.scheme == Scheme::Https);
    match (config.map(|c| c.protocol), secure) {
        (Some(UpstreamProtocol::Http2), false) => b"grpc",
        (Some(UpstreamProtocol::Http2), true) => b"grpcs",
        (_, false) => b"http",
        (_, true) => b"https",
    }
}

fn tried(stream: &Stream) -> bool {
    !stream.upstream.tried.is_empty()
}

/// Appends one value an attempt.
fn attempts(stream: &Stream, out: &mut Vec<u8>, write: impl Fn(&TriedHost, &mut Vec<u8>)) -> bool {
    for (i, attempt) in stream.upstream.tried.iter().enumerate() {
        if i > 0 {
            out.extend_from_slice(b", ");
        }
        write(attempt, out);
    }
    tried(stream)
}

fn upstream_addresses(stream: &Stream, out: &mut Vec<u8>) -> bool {
    attempts(stream, out, |attempt, out| match &attempt.member.host.address {
        Address::Ip(address) => socket(out, *address),
        Address::Unix(_) => {
            out.extend_from_slice(b"unix:");
            out.extend_from_slice(attempt.member.host.label.as_bytes());
        }
        Address::Name(..) => out.extend_from_slice(attempt.member.host.label.as_bytes()),
    })
}

fn time(out: &mut Vec<u8>, millis: Option<u32>) {
    match millis {
        Some(millis) => seconds(out, millis.into()),
        None => out.push(b'-'),
    }
}

fn source(stream: &Stream) -> &'static str {
    match stream.source {
        crate::stream::ResponseSource::None => "",
        crate::stream::ResponseSource::Upstream => "upstream",
        crate::stream::ResponseSource::Gateway => "apisix",
        crate::stream::ResponseSource::Proxy => "nginx",
    }
}

fn verified(stream: &Stream) -> Option<&'static str> {
    let tls = tls(stream)?;
    Some(match (&tls.peer, tls.peer_validated) {
        (None, _) => "NONE",
        (Some(_), true) => "SUCCESS",
        (Some(_), false) => "FAILED",
    })
}

/// PEM with a tab before every line but the first, so that it fits in one header.
fn indented_certificate(stream: &Stream, out: &mut Vec<u8>) -> bool {
    let Some(certificate) = peer(stream) else { return false };
    join(out, b"\n\t", certificate.pem.trim_end().split('\n').map(str::as_bytes))
}

fn clock(out: &mut Vec<u8>, format: &LazyLock<Option<TimeFormat>>) -> bool {
    format.as_ref().map(|format| format.write(SystemTime::now(), out)).is_some()
}
