//! Envoy's command operators as they are evaluated.

use super::Written;
use super::certificate::Validity;
use super::client_cert;
use super::network::Network;
use super::read::{Read, number};
use super::time::TimeFormat;
use crate::cel::Program;
use crate::headers::{HeaderName, Headers, Known};
use crate::metadata::{below, noted};
use crate::stream::Stream;
use percent_encoding::percent_decode;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::time::{Instant, SystemTime};

/// A prepared operator.
#[derive(Debug)]
pub(super) enum Operator {
    /// One without arguments.
    Read(Read),
    /// One that is known and never has a value here.
    Missing,
    /// A value that was known when the configuration was.
    Constant(Box<[u8]>),
    Header {
        side: Side,
        first: Header,
        second: Option<Header>,
    },
    /// A header cut at its `?`.
    WithoutQuery(Box<Operator>),
    Path {
        query: bool,
        of: UrlPart,
    },
    QueryParameter(Box<str>),
    /// Decoded or as it was sent.
    Query(bool),
    Start(TimeFormat),
    Emit(TimeFormat),
    Duration(Duration),
    GrpcStatus(GrpcForm),
    Metadata {
        of: MetadataOf,
        namespace: Box<str>,
        path: Box<[Box<str>]>,
    },
    /// An object of the filter state: its text, or that as JSON.
    FilterState {
        key: Box<str>,
        typed: bool,
    },
    /// The value of an expression, as text or as JSON.
    Cel {
        program: Box<Program>,
        typed: bool,
    },
    /// A field of a peer that is in the filter state.
    PeerField {
        key: Box<str>,
        field: Box<str>,
    },
    /// The first that is there.
    ServerName(&'static [Address]),
    Validity {
        of: Validity,
        format: TimeFormat,
    },
    /// An address without its port, cut to a network.
    Network(Network),
    /// One value of `x-forwarded-client-cert`.
    ClientCert(client_cert::Key),
    /// The first that has a value, each with its length.
    Coalesce(Box<[(Operator, Option<usize>)]>),
}

/// Whose fields are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Request,
    Response,
    Trailers,
}

/// A field of a message.
#[derive(Debug)]
pub(super) enum Header {
    Method,
    Path,
    Authority,
    Scheme,
    Status,
    Named(HeaderName),
    /// Never there.
    None,
}

/// Which path is meant.
#[derive(Clone, Copy, Debug)]
pub(super) enum UrlPart {
    Current,
    Original,
    OriginalOrCurrent,
}

/// Where a server name comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Address {
    Sni,
    Host,
}

/// How a gRPC status is printed.
#[derive(Clone, Copy, Debug)]
pub(super) enum GrpcForm {
    Camel,
    Snake,
    Number,
}

/// Whose metadata is meant.
#[derive(Clone, Copy, Debug)]
pub(super) enum MetadataOf {
    Dynamic,
    Cluster,
    Route,
    VirtualHost,
    Endpoint,
    Listener,
    FilterChain,
}

/// The time between two moments, in units of so many nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Duration {
    pub(super) from: Point,
    pub(super) to: Point,
    pub(super) nanos: u128,
}

/// A moment of a request (`COMMON_DURATION`): downstream and upstream, receiving and sending.
#[derive(Clone, Copy, Debug)]
pub(super) enum Point {
    DownstreamConnected,
    DownstreamRxBegin,
    DownstreamRxEnd,
    UpstreamTxBegin,
    UpstreamTxEnd,
    UpstreamRxBegin,
    UpstreamRxEnd,
    DownstreamTxBegin,
    DownstreamTxEnd,
    /// Of connecting and the handshake, which are not timed, and those of filters.
    Unknown,
}

impl Point {
    /// A name that is none of these is a moment that some filter of Envoy's may set, and nobody sets here.
    pub(super) fn parse(name: &str) -> Point {
        match name {
            "DS_CX_BEG" => Point::DownstreamConnected,
            "DS_RX_BEG" => Point::DownstreamRxBegin,
            "DS_RX_END" => Point::DownstreamRxEnd,
            "US_TX_BEG" => Point::UpstreamTxBegin,
            "US_TX_END" => Point::UpstreamTxEnd,
            "US_RX_BEG" => Point::UpstreamRxBegin,
            "US_RX_END" => Point::UpstreamRxEnd,
            "DS_TX_BEG" => Point::DownstreamTxBegin,
            "DS_TX_END" => Point::DownstreamTxEnd,
            _ => Point::Unknown,
        }
    }

    fn of(self, stream: &Stream) -> Option<Instant> {
        let timing = &stream.timing;
        match self {
            Point::DownstreamConnected => Some(stream.connection.start),
            Point::DownstreamRxBegin => Some(timing.start),
            Point::DownstreamRxEnd => timing.request_complete,
            Point::UpstreamTxBegin => timing.upstream_tx_begin,
            Point::UpstreamTxEnd => timing.upstream_tx_end,
            Point::UpstreamRxBegin => timing.upstream_rx_begin,
            Point::UpstreamRxEnd => timing.upstream_rx_end,
            Point::DownstreamTxBegin => timing.downstream_tx_begin,
            Point::DownstreamTxEnd => timing.downstream_tx_end,
            Point::Unknown => None,
        }
    }
}

impl Duration {
    /// The time, if both moments have come in this order.
    pub(super) fn of(self, stream: &Stream) -> Option<u64> {
        let (from, to) = (self.from.of(stream)?, self.to.of(stream)?);
        Some((to.checked_duration_since(from)?.as_nanos() / self.nanos) as u64)
    }
}

impl Operator {
    /// Appends the value. What the default log line has is written in place, see [`super::Part`].
    #[inline(always)]
    pub(super) fn write(&self, stream: &Stream, out: &mut Vec<u8>) -> Written {
        match self {
            Operator::Read(read @ Read::Number(_)) => json_if(read.write(stream, out)),
            Operator::Read(read) => text_if(read.write(stream, out)),
            Operator::Header { side, first, second } => {
                let written = first.write(stream, *side, out);
                match second {
                    Some(second) if written == Written::Missing => second.write_instead(stream, *side, out),
                    _ => written,
                }
            }
            other => other.write_other(stream, out),
        }
    }

    fn write_other(&self, stream: &Stream, out: &mut Vec<u8>) -> Written {
        match self {
            Operator::Read(_) | Operator::Header { .. } | Operator::Missing => Written::Missing,
            Operator::Constant(text) => put(out, Some(text)),
            Operator::WithoutQuery(header) => {
                let start = out.len();
                let written = header.write(stream, out);
                if let Some(mark) = memchr::memchr(b'?', &out[start..]) {
                    out.truncate(start + mark);
                }
                written
            }
            Operator::Path { query, of } => put(out, path(stream, *query, *of)),
            Operator::QueryParameter(name) => put(
                out,
                stream.request.target.query().and_then(|q| query_parameter(q, name.as_bytes())).as_deref(),
            ),
            Operator::Query(false) => put(out, stream.request.target.query()),
            Operator::Query(true) => put(out, stream.request.target.query().map(readable).as_deref()),
            Operator::Start(format) => time(out, format, stream.start_time),
            Operator::Emit(format) => time(out, format, SystemTime::now()),
            Operator::Duration(duration) => json_if(duration.of(stream).map(|n| number(out, n)).is_some()),
            Operator::GrpcStatus(form) => write_grpc_status(stream, *form, out),
            Operator::Metadata { of, namespace, path } => metadata(stream, *of, namespace, path, out),
            Operator::FilterState { key, typed } => filter_state(stream, key, *typed, out),
            Operator::Cel { program, typed: false } => text_if(program.write(stream, false, out)),
            Operator::Cel { program, typed: true } => json_if(program.write(stream, true, out)),
            Operator::PeerField { key, field } => {
                let peer = stream.peers.named(key);
                put(out, peer.and_then(|peer| peer.field(field)).map(str::as_bytes))
            }
            Operator::ServerName(order) => put(out, order.iter().find_map(|from| server_name(stream, *from))),
            Operator::Validity { of, format } => text_if(of.write(stream, format, out)),
            Operator::Network(network) => text_if(network.write(stream, out)),
            Operator::ClientCert(key) => text_if(key.write(&stream.request.headers, out)),
            Operator::Coalesce(operators) => coalesce(operators, stream, out),
        }
    }
}

fn text_if(there: bool) -> Written {
    if there { Written::Text } else { Written::Missing }
}

fn json_if(there: bool) -> Written {
    if there { Written::Json } else { Written::Missing }
}

fn put(out: &mut Vec<u8>, text: Option<&[u8]>) -> Written {
    text_if(text.map(|text| out.extend_from_slice(text)).is_some())
}

fn filter_state(stream: &Stream, key: &str, typed: bool, out: &mut Vec<u8>) -> Written {
    if let Some(peer) = stream.peers.named(key) {
        sorted_json(&peer.to_json(), out);
        return Written::Json;
    }
    let Some(object) = stream.filter_object(key) else { return Written::Missing };
    if !typed {
        return put(out, Some(&object.value));
    }
    super::json::quote(out, &object.value);
    Written::Json
}

fn time(out: &mut Vec<u8>, format: &TimeFormat, time: SystemTime) -> Written {
    format.write(time, out);
    Written::Text
}

fn coalesce(operators: &[(Operator, Option<usize>)], stream: &Stream, out: &mut Vec<u8>) -> Written {
    let start = out.len();
    for (operator, max) in operators {
        let written = operator.write(stream, out);
        if written != Written::Missing && out.len() > start {
            out.truncate(max.map_or(out.len(), |max| start + max));
            return written;
        }
    }
    Written::Missing
}

impl Header {
    fn write_instead(&self, stream: &Stream, side: Side, out: &mut Vec<u8>) -> Written {
        self.write(stream, side, out)
    }

    #[inline(always)]
    fn write(&self, stream: &Stream, side: Side, out: &mut Vec<u8>) -> Written {
        let request = &stream.request;
        let text = match self {
            Header::Method => has_request(stream).then(|| request.method.as_str().as_bytes()),
            Header::Path => (!request.target.is_empty()).then(|| request.target.full()),
            Header::Authority => (!request.authority.is_empty()).then_some(request.authority.as_slice()),
            Header::Scheme => has_request(stream).then(|| request.scheme.as_str().as_bytes()),
            Header::Status if stream.response.status != 0 => {
                number(out, stream.response.status.into());
                return Written::Text;
            }
            Header::Named(name) => match side {
                Side::Request => request.headers.get(name),
                Side::Response => stream.response.headers.get(name),
                Side::Trailers => stream.response_trailers.get(name),
            },
            Header::Status | Header::None => None,
        };
        put(out, text)
    }
}

/// Whether a request was parsed at all: a broken one, and a TCP connection, leave an empty head.
pub(crate) fn has_request(stream: &Stream) -> bool {
    let request = &stream.request;
    !(request.target.is_empty() && request.authority.is_empty() && request.headers.is_empty())
}

fn path(stream: &Stream, query: bool, of: UrlPart) -> Option<&[u8]> {
    let current = || (!stream.request.target.is_empty()).then(|| stream.request.target.full());
    let original = || {
        let header = stream.request.headers.get(Known::X_ENVOY_ORIGINAL_PATH);
        header.or_else(|| (!stream.original_target.is_empty()).then_some(stream.original_target.as_slice()))
    };
    let path = match of {
        UrlPart::Current => current(),
        UrlPart::Original => original(),
        UrlPart::OriginalOrCurrent => original().or_else(current),
    }?;
    match memchr::memchr(b'?', path) {
        Some(mark) if !query => path.get(..mark),
        _ => Some(path),
    }
}

fn server_name(stream: &Stream, from: Address) -> Option<&[u8]> {
    let name = match from {
        Address::Sni => stream.connection.requested_server_name.as_deref().map(str::as_bytes),
        Address::Host => Some(stream.request.host()),
    };
    name.filter(|name| !name.is_empty())
}

/// Names of gRPC's codes in Envoy's two spellings, by number.
const GRPC_NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

/// The gRPC status of a response: its trailers', its headers', else what the HTTP status maps to.
pub fn grpc_status(stream: &Stream) -> u32 {
    let of = |headers: &Headers| {
        let value = headers.get(Known::GRPC_STATUS)?;
        // Envoy takes a number that it can't read for unknown.
        Some(std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()).unwrap_or(2))
    };
    of(&stream.response_trailers)
        .or_else(|| of(&stream.response.headers))
        .unwrap_or_else(|| crate::grpc_status::of_http(stream.response.status))
}

fn write_grpc_status(stream: &Stream, form: GrpcForm, out: &mut Vec<u8>) -> Written {
    if !stream.request.is_grpc() {
        return Written::Missing;
    }
    let code = grpc_status(stream);
    let name = match (GRPC_NAMES.get(code as usize), form) {
        (Some((camel, _)), GrpcForm::Camel) => *camel,
        (Some((_, snake)), GrpcForm::Snake) => *snake,
        _ => {
            number(out, code.into());
            return Written::Json;
        }
    };
    put(out, Some(name.as_bytes()))
}

fn metadata(
    stream: &Stream,
    of: MetadataOf,
    namespace: &str,
    path: &[Box<str>],
    out: &mut Vec<u8>,
) -> Written {
    let upstream = &stream.upstream;
    let metadata = match of {
        MetadataOf::Dynamic => return dynamic_metadata(stream, namespace, path, out),
        MetadataOf::Cluster => upstream.cluster.as_ref().map(|c| &c.config.metadata),
        MetadataOf::Route => stream.route.as_ref().map(|r| &r.metadata),
        MetadataOf::VirtualHost => stream.virtual_host.as_ref().map(|v| &v.options.metadata),
        MetadataOf::Endpoint => upstream.member.as_ref().map(|m| &m.metadata),
        MetadataOf::Listener => Some(&*stream.connection.listener_metadata),
        MetadataOf::FilterChain => Some(&*stream.connection.chain_metadata),
    };
    write_value(metadata.and_then(|m| m.get(namespace)).and_then(|v| below(v, path)), out)
}

fn dynamic_metadata(stream: &Stream, namespace: &str, path: &[Box<str>], out: &mut Vec<u8>) -> Written {
    if let Some((key, rest)) = path.split_first() {
        return write_value(noted(&stream.metadata, namespace, key).and_then(|v| below(v, rest)), out);
    }
    let entries = stream.metadata.iter().filter(|(ns, _, _)| **ns == *namespace);
    let all: Map<String, Value> = entries.map(|(_, k, v)| (k.to_string(), v.clone())).collect();
    write_value((!all.is_empty()).then_some(&Value::Object(all)), out)
}

/// Appends a value of metadata: a string as it is, anything else as JSON with sorted keys.
fn write_value(value: Option<&Value>, out: &mut Vec<u8>) -> Written {
    match value {
        None | Some(Value::Null) => Written::Missing,
        Some(Value::String(text)) => put(out, Some(text.as_bytes())),
        Some(value) => {
            sorted_json(value, out);
            Written::Json
        }
    }
}

/// Appends JSON with sorted keys.
fn sorted_json(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            out.push(b'{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                super::json::quote(out, key.as_bytes());
                out.push(b':');
                sorted_json(value, out);
            }
            out.push(b'}');
        }
        Value::Array(list) => {
            out.push(b'[');
            for (i, value) in list.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                sorted_json(value, out);
            }
            out.push(b']');
        }
        Value::String(text) => super::json::quote(out, text.as_bytes()),
        // Protobuf's numbers are doubles: a whole one is printed without a fraction.
        Value::Number(n) => match n.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 1e15) {
            Some(whole) => out.extend_from_slice(itoa::Buffer::new().format(whole as i64).as_bytes()),
            None => out.extend_from_slice(n.to_string().as_bytes()),
        },
        other => out.extend_from_slice(other.to_string().as_bytes()),
    }
}

/// The first value of a query parameter; names and values are decoded
/// (`Http::Utility::QueryParamsMulti::parseAndDecodeQueryString`).
fn query_parameter<'q>(query: &'q [u8], name: &[u8]) -> Option<Cow<'q, [u8]>> {
    query.split(|b| *b == b'&').find_map(|pair| {
        let (key, value) = match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &b""[..]),
        };
        (*decoded(key) == *name).then(|| decoded(value))
    })
}

/// A query to be read by people (`Http::Utility::PercentEncoding::urlDecode`): what a URL may hold as it is is decoded, blanks,
/// quotes, controls and what is not ASCII stay encoded, and a `%` that begins no escape is left out unless the text ends
/// within two bytes.
fn readable(text: &[u8]) -> Cow<'_, [u8]> {
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let stays = |byte: u8| !byte.is_ascii_graphic() || b"\"<>\\^{|}".contains(&byte);
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let [byte, after @ ..] = rest {
        rest = after;
        match (byte, after) {
            (b'%', [high, low, behind @ ..]) => {
                if let Some((upper, lower)) = hex(*high).zip(hex(*low)) {
                    match upper << 4 | lower {
                        byte if stays(byte) => out.extend_from_slice(&[b'%', *high, *low]),
                        byte => out.push(byte),
                    }
                    rest = behind;
                }
            }
            _ => out.push(*byte),
        }
    }
    Cow::Owned(out)
}

fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    percent_decode(text).into()
}
