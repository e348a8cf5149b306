//! Entries as they are written: the default one (`get_full_log`) and that of a `log_format` (`get_custom_format_log`).

use super::format::Members;
use crate::shared::query::{Pair, form_pairs};
use sixfold_core::format::{Variable, client_forwarded_for, quote, sent_connection};
use sixfold_core::headers::{Headers, Known};
use sixfold_core::route::Route;
use sixfold_core::stream::Stream;
use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::{Duration, Instant, UNIX_EPOCH};

const FORWARDED_FOR: &[u8] = b"x-forwarded-for";
const REAL_IP: &[u8] = b"x-real-ip";

/// Headers and arguments that are logged, as many as OpenResty hands out.
const MOST_PAIRS: usize = 100;

macro_rules! variables {
    ($($name:ident = $text:literal;)*) => {
        $(static $name: LazyLock<Variable> = LazyLock::new(|| Variable::parse($text));)*
    };
}

variables! {
    ARGS = "args";
    BYTES_SENT = "bytes_sent";
    CLIENT = "remote_addr";
    HOST = "host";
    HOST_NAME = "hostname";
    HTTP_HOST = "http_host";
    METHOD = "request_method";
    REQUEST_LENGTH = "request_length";
    REQUEST_URI = "request_uri";
    SCHEME = "scheme";
    SERVER_PORT = "server_port";
    UPSTREAM = "upstream_addr";
}

/// Bodies that an entry holds.
pub(super) struct Bodies<'a> {
    pub(super) request: Option<&'a [u8]>,
    pub(super) response: Option<&'a [u8]>,
}

/// The resources of a request that a route took.
fn ids(stream: &Stream) -> Option<&sixfold_core::route::Ids> {
    stream.route.as_deref().map(|route: &Route| &route.ids)
}

/// Writes an entry of a `log_format`.
pub(super) fn write_custom(stream: &Stream, format: &Members, unrouted: Option<&str>, out: &mut Vec<u8>) {
    let ids = ids(stream);
    let start = out.len();
    // A route's own go before what the format says of them.
    let is_told = |key: &str| ids.is_some() && matches!(key, "route_id" | "service_id");
    let mut has_route = format.write(stream, is_told, "route_id", out);
    if let Some(ids) = ids {
        if !ids.service.is_empty() {
            member(out, "service_id", ids.service.as_bytes());
        }
        if !ids.route.is_empty() {
            has_route = true;
            member(out, "route_id", ids.route.as_bytes());
        }
    }
    end(out, start, unrouted.filter(|_| !has_route));
}

/// Writes the default entry, and what is added to it.
pub(super) fn write_default(
    stream: &Stream,
    bodies: &Bodies<'_>,
    extra: Option<&Members>,
    unrouted: Option<&str>,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    request(stream, bodies.request, out);
    response(stream, bodies.response, out);
    key(out, "server");
    out.extend_from_slice(b"{\"hostname\":");
    text(out, &HOST_NAME, stream);
    member(out, "version", env!("CARGO_PKG_VERSION").as_bytes());
    out.push(b'}');
    let ids = ids(stream);
    let upstream = UPSTREAM.get(stream);
    if let Some(upstream) = &upstream {
        member(out, "upstream", upstream);
    }
    match ids {
        Some(ids) => member(out, "service_id", ids.service.as_bytes()),
        None => member(out, "service_id", &HOST.get(stream).unwrap_or_default()),
    }
    let route = ids.map(|ids| &*ids.route).filter(|route| !route.is_empty());
    if let Some(route) = route {
        member(out, "route_id", route.as_bytes());
    }
    if let Some(consumer) = &stream.consumer {
        key(out, "consumer");
        out.extend_from_slice(b"{\"username\":");
        quote(out, consumer.name.as_bytes());
        out.push(b'}');
    }
    key(out, "client_ip");
    text(out, &CLIENT, stream);
    let has_latency = times(stream, out);
    let is_told = |key: &str| match key {
        "upstream" => upstream.is_some(),
        "route_id" => route.is_some(),
        "consumer" => stream.consumer.is_some(),
        "upstream_latency" => has_latency,
        _ => ALWAYS.contains(&key),
    };
    let added = extra.is_some_and(|extra| extra.write(stream, is_told, "route_id", out));
    end(out, start, unrouted.filter(|_| route.is_none() && !added));
}

/// Members that every default entry has.
const ALWAYS: [&str; 8] =
    ["request", "response", "server", "service_id", "client_ip", "start_time", "latency", "apisix_latency"];

fn request(stream: &Stream, body: Option<&[u8]>, out: &mut Vec<u8>) {
    let uri = REQUEST_URI.get(stream).unwrap_or_default();
    key(out, "request");
    out.extend_from_slice(b"{\"url\":");
    let mut url = Vec::with_capacity(uri.len() + 64);
    SCHEME.write(stream, &mut url);
    url.extend_from_slice(b"://");
    HOST.write(stream, &mut url);
    url.push(b':');
    SERVER_PORT.write(stream, &mut url);
    url.extend_from_slice(&uri);
    quote(out, &url);
    member(out, "uri", &uri);
    key(out, "method");
    text(out, &METHOD, stream);
    key(out, "headers");
    request_headers(stream, out);
    key(out, "querystring");
    let args = ARGS.get(stream).unwrap_or_default();
    let pairs: Vec<Pair<'_>> = form_pairs(&args).take(MOST_PAIRS).collect();
    object(out, &pairs, |out, value| match value {
        Some(value) => quote(out, value),
        None => out.extend_from_slice(b"true"),
    });
    key(out, "size");
    REQUEST_LENGTH.write(stream, out);
    if let Some(body) = body.filter(|body| !body.is_empty()) {
        member(out, "body", body);
    }
    out.push(b'}');
}

/// Those of the client, as plugins have changed them: what its upstream is told in their place is that one's alone.
fn request_headers(stream: &Stream, out: &mut Vec<u8>) {
    let is_told = stream.upstream.is_told_of_client;
    let of_client =
        |name: &[u8]| name.eq_ignore_ascii_case(REAL_IP) || name.eq_ignore_ascii_case(FORWARDED_FOR);
    let host = HTTP_HOST.get(stream).filter(|host| !host.is_empty());
    let has_host = host.is_some();
    let withheld = stream.request.sent.as_deref().map(|sent| &sent.withheld);
    let has_lines = withheld.is_some_and(|withheld| withheld.contains(Known::X_FORWARDED_FOR));
    let forwarded = client_forwarded_for(stream).filter(|_| is_told && !has_lines);
    let kept =
        stream.request.headers.iter().filter(|(name, _)| {
            !(is_told && of_client(name) || has_host && name.eq_ignore_ascii_case(b"host"))
        });
    let host = host.as_deref().map(|host| (&b"host"[..], host));
    let forwarded = forwarded.as_deref().map(|value| (FORWARDED_FOR, value));
    let withheld = withheld.into_iter().flat_map(Headers::iter);
    headers(out, host.into_iter().chain(kept).chain(forwarded).chain(withheld));
}

fn response(stream: &Stream, body: Option<&[u8]>, out: &mut Vec<u8>) {
    key(out, "response");
    out.extend_from_slice(b"{\"status\":");
    out.extend_from_slice(itoa::Buffer::new().format(stream.response.status).as_bytes());
    key(out, "headers");
    let own = |name: &[u8]| {
        name.eq_ignore_ascii_case(b"connection") || name.eq_ignore_ascii_case(b"transfer-encoding")
    };
    let kept = stream.response.headers.iter().filter(|(name, _)| !own(name));
    let chunked = stream.response.chunked.then_some((&b"transfer-encoding"[..], &b"chunked"[..]));
    let connection = (&b"connection"[..], sent_connection(stream).as_bytes());
    headers(out, kept.chain(chunked).chain([connection]));
    key(out, "size");
    BYTES_SENT.write(stream, out);
    if let Some(body) = body {
        member(out, "body", body);
    }
    out.push(b'}');
}

/// `start_time` and latencies, in milliseconds; tells whether there is that of an upstream.
fn times(stream: &Stream, out: &mut Vec<u8>) -> bool {
    let since = stream.start_time.duration_since(UNIX_EPOCH).unwrap_or_default();
    key(out, "start_time");
    out.extend_from_slice(itoa::Buffer::new().format(since.as_millis()).as_bytes());
    let end = stream.timing.downstream_tx_end.unwrap_or_else(Instant::now);
    let whole = end.saturating_duration_since(stream.timing.start);
    key(out, "latency");
    millis(out, whole);
    let mut tried = stream.upstream.tried.iter().filter_map(|tried| tried.response_ms()).peekable();
    let upstream = tried.peek().is_some().then(|| Duration::from_millis(tried.map(u64::from).sum()));
    if let Some(upstream) = upstream {
        key(out, "upstream_latency");
        millis(out, upstream);
    }
    key(out, "apisix_latency");
    millis(out, whole.saturating_sub(upstream.unwrap_or_default()));
    upstream.is_some()
}

/// Milliseconds, with microseconds behind the point.
fn millis(out: &mut Vec<u8>, time: Duration) {
    let micros = time.as_micros();
    out.extend_from_slice(itoa::Buffer::new().format(micros / 1000).as_bytes());
    let rest = (micros % 1000) as u32;
    if rest > 0 {
        out.push(b'.');
        out.extend([rest / 100, rest / 10 % 10, rest % 10].map(|digit| b'0' + digit as u8));
    }
}

/// Headers as an object: names in lower case, values of a repeated one as a list.
fn headers<'a>(out: &mut Vec<u8>, lines: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
    let pairs: Vec<(Cow<'_, [u8]>, &[u8])> = lines
        .take(MOST_PAIRS)
        .map(|(name, value)| {
            let has_upper = name.iter().any(u8::is_ascii_uppercase);
            let name = if has_upper { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) };
            (name, value)
        })
        .collect();
    object(out, &pairs, |out, value| quote(out, value));
}

/// An object of pairs, with a list for a key that is there several times. There are few of them.
fn object<V>(out: &mut Vec<u8>, pairs: &[(Cow<'_, [u8]>, V)], write: impl Fn(&mut Vec<u8>, &V)) {
    out.push(b'{');
    let mut is_first = true;
    for (at, (key, value)) in pairs.iter().enumerate() {
        if pairs.iter().take(at).any(|(earlier, _)| earlier == key) {
            continue;
        }
        if !std::mem::take(&mut is_first) {
            out.push(b',');
        }
        quote(out, key);
        out.push(b':');
        let mut others = pairs.iter().skip(at + 1).filter(|(other, _)| other == key).peekable();
        if others.peek().is_none() {
            write(out, value);
            continue;
        }
        out.push(b'[');
        write(out, value);
        for (_, other) in others {
            out.push(b',');
            write(out, other);
        }
        out.push(b']');
    }
    out.push(b'}');
}

/// A key behind a comma.
fn key(out: &mut Vec<u8>, key: &str) {
    out.push(b',');
    quote(out, key.as_bytes());
    out.push(b':');
}

/// A string with its key, behind a comma.
fn member(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    key(out, name);
    quote(out, value);
}

fn text(out: &mut Vec<u8>, variable: &Variable, stream: &Stream) {
    quote(out, &variable.get(stream).unwrap_or_default());
}

/// Ends an entry whose members each have a comma before them.
fn end(out: &mut Vec<u8>, start: usize, route: Option<&str>) {
    if let Some(route) = route {
        member(out, "route_id", route.as_bytes());
    }
    match out.get_mut(start) {
        Some(first) => *first = b'{',
        None => out.push(b'{'),
    }
    out.push(b'}');
}
