//! What must hold for any bytes at all. The fuzz targets in `proxy/fuzz` call these functions, and so does a
//! test on stable; a broken promise is a failed assertion.

mod trailers;

pub use trailers::trailers;

use sixfold_core::headers::{HeaderRules, Headers, Known, Underscores};
use sixfold_core::message::{Method, RequestHead, ResponseHead, Version};

use super::framing::{
    ContentLength, FramingFields, TransferEncoding, parse_length, request_framing, response_framing,
};
use super::options::{H1Options, HeaderCase, Profile};
use super::{
    BodyEncoder, BodyLength, Decoder, H1Error, HeadParser, RequestKind, ResponseContext, encode_request,
    encode_response,
};

/// A connection's bytes, read as requests and as responses, in one piece and in many.
///
/// The first byte chooses the options, the second the cut. The outcome must not depend on the cut, no more may
/// be consumed than there is, and whatever is accepted and written out again must be read as the same message,
/// by the strict parser too.
pub fn codec(data: &[u8]) {
    let [choice, cut, stream @ ..] = data else { return };
    let opts = options(*choice);
    let kinds = [RequestKind::Plain, RequestKind::Head, RequestKind::Connect];
    for side in [Side::Requests, Side::Responses(kinds[usize::from(*cut) % 3])] {
        let whole = read(side, stream, stream.len(), &opts);
        for step in [1, 2 + usize::from(*cut % 61)] {
            let cut = read(side, stream, step, &opts);
            assert_eq!(whole, cut, "the outcome depends on the cut ({step} bytes a read)");
        }
        for message in &whole.messages {
            check_round_trip(message, &opts);
        }
    }
}

/// Header fields after a fixed request line and after a fixed status line.
///
/// A request must never end with the connection; Content-Length and Transfer-Encoding decide alone and only
/// when they are beyond doubt; where httparse accepts the head too it must have seen the same framing fields
/// and the same end.
pub fn framing(data: &[u8]) {
    let [choice, fields @ ..] = data else { return };
    let opts = options(*choice);
    for method in ["GET", "POST", "CONNECT"] {
        let target = if method == "CONNECT" { "h:1" } else { "/" };
        let start = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n");
        let bytes = [start.as_bytes(), fields, b"\r\n\r\n"].concat();
        let mut head = RequestHead::default();
        let Ok(Some(parsed)) = HeadParser::new().request(&bytes, &mut head, &opts) else { continue };
        assert!(parsed.consumed <= bytes.len());
        assert_ne!(parsed.body, BodyLength::UntilClose, "a request that ends with the connection");
        let mut seen = FramingFields::of(&head.headers);
        check_decision(parsed.body, &seen);
        compare_with_httparse(&bytes, parsed.consumed, &head.headers, &opts);
        // Deciding again from the finished block gives the same.
        let again = request_framing(&head.method, head.version, &seen, &opts);
        let allowed = opts.allow_chunked_length && parsed.body == BodyLength::Chunked;
        assert!(allowed || again.map(|f| f.body) == Ok(parsed.body), "{again:?}");
        // Nothing but the two fields may decide.
        (seen.upgrade, seen.connection_upgrade, seen.expect_continue) = (false, false, false);
        (seen.close, seen.keep_alive, seen.nominates) = (true, false, false);
        let bare = request_framing(&head.method, head.version, &seen, &opts);
        assert_eq!(bare.map(|f| f.body), again.map(|f| f.body));
    }
    for status in [101, 103, 200, 204, 304] {
        let bytes = [format!("HTTP/1.1 {status} x\r\n").as_bytes(), fields, b"\r\n\r\n"].concat();
        for kind in [RequestKind::Plain, RequestKind::Head, RequestKind::Connect] {
            let mut head = ResponseHead::default();
            let Ok(Some(parsed)) = HeadParser::new().response(&bytes, &mut head, kind, &opts) else {
                continue;
            };
            let bodiless = status != 200 || kind != RequestKind::Plain;
            assert_eq!(bodiless, parsed.body == BodyLength::None, "{status} {kind:?} {:?}", parsed.body);
            if !bodiless {
                check_decision(parsed.body, &FramingFields::of(&head.headers));
            }
            let again =
                response_framing(status, head.version, kind, &FramingFields::of(&head.headers), &opts);
            assert_eq!(again.map(|f| f.body), Ok(parsed.body));
            assert!(parsed.body != BodyLength::UntilClose || !parsed.keep_alive);
        }
    }
}

fn options(choice: u8) -> H1Options {
    let bit = |n: u8| choice >> n & 1 == 1;
    let profile = if bit(0) { Profile::Apisix } else { Profile::Envoy };
    H1Options {
        strict: bit(1),
        enable_trailers: bit(2),
        allow_chunked_length: bit(3),
        accept_http_10: bit(4) || profile == Profile::Apisix,
        header_case: if bit(5) { HeaderCase::Preserve } else { HeaderCase::Lower },
        rules: HeaderRules {
            underscores: if bit(6) { Underscores::Drop } else { Underscores::Allow },
            max_count: if bit(7) { 8 } else { 100 },
            join: profile == Profile::Envoy,
        },
        max_head_bytes: if bit(7) { 200 } else { 60 * 1024 },
        ..H1Options::downstream(profile)
    }
}

#[derive(Clone, Copy)]
enum Side {
    Requests,
    Responses(RequestKind),
}

/// What a side made of its bytes.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    messages: Vec<Message>,
    error: Option<H1Error>,
}

#[derive(Debug, PartialEq)]
struct Message {
    start: Start,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    length: BodyLength,
    keep_alive: bool,
    body: Vec<u8>,
    trailers: Vec<(Vec<u8>, Vec<u8>)>,
    complete: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Start {
    Request { method: Method, authority: Vec<u8>, target: Vec<u8>, upgrade: bool },
    Response { status: u16, kind: RequestKind },
}

/// Reads messages off `stream`, `step` bytes arriving at a time.
fn read(side: Side, stream: &[u8], step: usize, opts: &H1Options) -> Outcome {
    let mut outcome = Outcome::default();
    let mut parser = HeadParser::new();
    let mut body: Option<Decoder> = None;
    let (mut request, mut response) = (RequestHead::default(), ResponseHead::default());
    let mut trailers = Headers::new();
    let (mut start, mut end) = (0, 0);
    loop {
        let buf = stream.get(start..end).unwrap_or_default();
        let step_done = match &mut body {
            None => {
                let parsed = match side {
                    Side::Requests => read_request(&mut parser, buf, &mut request, opts),
                    Side::Responses(kind) => read_response(&mut parser, buf, &mut response, kind, opts),
                };
                parsed.map(|parsed| {
                    parsed.map(|(consumed, message)| {
                        body = Some(Decoder::new(message.length));
                        outcome.messages.push(message);
                        consumed
                    })
                })
            }
            Some(decoder) => decoder.decode(buf, &mut trailers, opts).map(|decoded| {
                assert!(decoded.data.len() <= decoded.consumed && decoded.consumed <= buf.len());
                if let Some(message) = outcome.messages.last_mut() {
                    message.body.extend_from_slice(decoded.data);
                    if decoded.end {
                        message.trailers = owned(&trailers);
                        message.complete = true;
                        trailers.clear();
                    }
                }
                let more = decoded.consumed > 0 || decoded.end;
                if decoded.end {
                    body = None;
                }
                more.then_some(decoded.consumed)
            }),
        };
        match step_done {
            Err(error) => {
                outcome.error = Some(error);
                return outcome;
            }
            Ok(Some(consumed)) => {
                assert!(consumed <= buf.len(), "more consumed than there is");
                start += consumed;
            }
            Ok(None) if end == stream.len() => return outcome,
            Ok(None) => end = stream.len().min(end + step.max(1)),
        }
        let last = outcome.messages.last();
        if body.is_none() && last.is_some_and(|m| m.complete && !m.keep_alive) {
            return outcome;
        }
    }
}

type Read = Result<Option<(usize, Message)>, H1Error>;

fn read_request(parser: &mut HeadParser, buf: &[u8], head: &mut RequestHead, opts: &H1Options) -> Read {
    let Some(parsed) = parser.request(buf, head, opts)? else { return Ok(None) };
    assert!(parsed.consumed > 0 && parsed.consumed <= opts.max_head_bytes);
    let start = Start::Request {
        method: head.method.clone(),
        authority: head.authority.clone(),
        target: head.target.full().to_vec(),
        upgrade: parsed.upgrade,
    };
    Ok(Some((parsed.consumed, Message::new(start, &head.headers, parsed.body, parsed.keep_alive))))
}

fn read_response(
    parser: &mut HeadParser,
    buf: &[u8],
    head: &mut ResponseHead,
    kind: RequestKind,
    opts: &H1Options,
) -> Read {
    let Some(parsed) = parser.response(buf, head, kind, opts)? else { return Ok(None) };
    assert!(parsed.consumed > 0 && parsed.consumed <= opts.max_head_bytes);
    assert!((100..=999).contains(&head.status));
    let start = Start::Response { status: head.status, kind };
    Ok(Some((parsed.consumed, Message::new(start, &head.headers, parsed.body, parsed.keep_alive))))
}

impl Message {
    fn new(start: Start, headers: &Headers, length: BodyLength, keep_alive: bool) -> Message {
        assert!(headers.iter().all(|(n, v)| is_clean(n) && is_clean(v)), "a line end inside a field");
        let (body, trailers) = (Vec::new(), Vec::new());
        Message { start, fields: owned(headers), length, keep_alive, body, trailers, complete: false }
    }
}

fn is_clean(bytes: &[u8]) -> bool {
    !bytes.iter().any(|b| matches!(b, 0 | b'\r' | b'\n'))
}

fn owned(headers: &Headers) -> Vec<(Vec<u8>, Vec<u8>)> {
    headers.iter().map(|(n, v)| (n.to_ascii_lowercase(), v.to_vec())).collect()
}

/// Fields that the codec itself writes or leaves out.
fn is_framing(name: &[u8]) -> bool {
    matches!(
        Known::find(name),
        Some(Known::CONTENT_LENGTH | Known::TRANSFER_ENCODING | Known::CONNECTION | Known::HOST)
    )
}

/// Writes a complete message as the next hop would get it, and reads that.
fn check_round_trip(message: &Message, opts: &H1Options) {
    if !message.complete && message.length != BodyLength::UntilClose {
        return;
    }
    let mut headers = Headers::new();
    message.fields.iter().for_each(|(n, v)| headers.push(n, v));
    let mut out = Vec::new();
    let end_stream = message.length.is_empty();
    let (encoder, side) = match &message.start {
        Start::Request { method, authority, target, upgrade } => {
            let origin = target.starts_with(b"/") && !target.contains(&b'#');
            if *upgrade || *method == Method::CONNECT || !origin || authority.is_empty() {
                return;
            }
            let mut head =
                RequestHead { method: method.clone(), authority: authority.clone(), ..Default::default() };
            head.target.set(target);
            head.headers = headers;
            let encoded = encode_request(&mut out, &head, end_stream, false, opts);
            (encoded.map(|e| e.body), Side::Requests)
        }
        Start::Response { status, kind } => {
            let context =
                ResponseContext { request: *kind, version: Version::Http11, end_stream, keep_alive: true };
            let head = ResponseHead { status: *status, headers, ..Default::default() };
            let encoded = encode_response(&mut out, &head, context, opts);
            (encoded.map(|e| e.body), Side::Responses(*kind))
        }
    };
    let Ok(mut encoder) = encoder else {
        assert!(opts.allow_chunked_length, "an accepted message cannot be written");
        return;
    };
    if encoder == BodyEncoder::Raw {
        return;
    }
    let middle = message.body.len() / 2;
    let mut trailers = Headers::new();
    message.trailers.iter().for_each(|(n, v)| trailers.push(n, v));
    let (front, back) = message.body.split_at_checked(middle).unwrap_or_default();
    let written = encoder
        .data(&mut out, front)
        .and_then(|()| encoder.data(&mut out, back))
        .and_then(|()| encoder.finish(&mut out, Some(&trailers), opts));
    assert_eq!(written, Ok(()), "the body does not fit its own head");

    let lax = H1Options {
        max_head_bytes: 1 << 24,
        max_line_bytes: None,
        rules: HeaderRules { max_count: 1 << 16, ..opts.rules },
        ..opts.clone()
    };
    for strict in [false, true] {
        let again = read(side, &out, out.len(), &H1Options { strict, ..lax.clone() });
        assert_eq!(again.error, None, "the next hop refuses what we write");
        assert_eq!(again.messages.len(), 1, "the next hop sees another number of messages");
        let Some(other) = again.messages.first() else { return };
        assert!(other.complete);
        let same_start = match (&message.start, &other.start) {
            (
                Start::Request { method: a, authority: b, target: c, .. },
                Start::Request { method, authority, target, .. },
            ) => a == method && b == authority && c == target,
            (a, b) => a == b,
        };
        assert!(same_start, "{:?} became {:?}", message.start, other.start);
        let fields =
            |m: &Message| m.fields.iter().filter(|(n, _)| !is_framing(n)).cloned().collect::<Vec<_>>();
        assert_eq!(fields(message), fields(other));
        assert_eq!(message.body, other.body);
        assert_eq!(message.trailers, other.trailers);
    }
}

/// Only clean framing fields decide, and each as it must.
fn check_decision(body: BodyLength, fields: &FramingFields) {
    match body {
        BodyLength::Chunked => assert_eq!(fields.transfer_encoding, TransferEncoding::Chunked),
        BodyLength::Sized(n) => {
            assert_eq!(fields.transfer_encoding, TransferEncoding::Absent);
            assert_eq!(fields.content_length, ContentLength::Bytes(n));
        }
        BodyLength::None | BodyLength::UntilClose => {
            assert_eq!(fields.transfer_encoding, TransferEncoding::Absent);
            assert_eq!(fields.content_length, ContentLength::Absent);
        }
    }
}

/// Where httparse takes the head as well, both saw the same framing fields and the same end.
fn compare_with_httparse(bytes: &[u8], consumed: usize, headers: &Headers, opts: &H1Options) {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(end)) = request.parse(bytes) else { return };
    assert_eq!(end, consumed, "httparse sees another end");
    for known in [Known::CONTENT_LENGTH, Known::TRANSFER_ENCODING] {
        let ours: Vec<_> = headers.get_all(known).map(<[u8]>::trim_ascii).collect();
        let theirs: Vec<_> = request
            .headers
            .iter()
            .filter(|h| h.name.eq_ignore_ascii_case(known.as_str()))
            .map(|h| h.value.trim_ascii())
            .collect();
        let dropped = ours.is_empty() && known == Known::CONTENT_LENGTH;
        let may_drop = opts.allow_chunked_length || matches!(theirs[..], [n] if parse_length(n) == Some(0));
        assert!(ours == theirs || (dropped && may_drop), "{known:?}: {ours:?} and {theirs:?}");
    }
}
