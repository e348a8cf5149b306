use super::*;

/// Content-Length and chunked framing came out in lower case beside fields that kept their spelling.
#[test]
fn preserved_spelling_holds_for_framing_fields_too() {
    let opts = H1Options { header_case: HeaderCase::Preserve, ..envoy() };
    let written = |request: &str, end: bool| {
        let (_, mut head) = request_with(&opts, request.as_bytes()).unwrap();
        super::super::hop::strip_request(&mut head.headers, false, Profile::Envoy);
        let mut out = Vec::new();
        encode_request(&mut out, &head, end, true, &opts).unwrap();
        text(&out)
    };
    let chunked = "POST / HTTP/1.1\r\nHOST: h\r\nTransfer-Encoding: chunked\r\nX-Own: 1\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(
        written(chunked, false),
        "POST / HTTP/1.1\r\nHOST: h\r\nX-Own: 1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
    let sized = "POST / HTTP/1.1\r\nHost: h\r\nContent-length: 0\r\n\r\n";
    assert_eq!(
        written(sized, true),
        "POST / HTTP/1.1\r\nHost: h\r\nContent-length: 0\r\nconnection: close\r\n\r\n"
    );
    let bytes = b"HTTP/1.1 200 OK\r\nTRANSFER-Encoding: chunked\r\nCONNECTION: close\r\n\r\n";
    let (_, mut head) = response_with(&opts, RequestKind::Plain, bytes).unwrap();
    super::super::hop::strip_response(&mut head.headers, false, Profile::Envoy);
    let mut out = Vec::new();
    encode_response(&mut out, &head, ResponseContext::default(), &opts).unwrap();
    assert_eq!(text(&out), "HTTP/1.1 200 OK\r\nTRANSFER-Encoding: chunked\r\nCONNECTION: close\r\n\r\n");
}

#[test]
fn nginx_writes_its_own_fields_before_those_of_apisix() {
    let bytes = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: a/b\r\nContent-Length: 0\r\nX-Own: 1\r\n\r\n";
    let written = |opts: &H1Options| {
        let (_, head) = response_with(opts, RequestKind::Plain, bytes).unwrap();
        let mut out = Vec::new();
        encode_response(&mut out, &head, ResponseContext::default(), opts).unwrap();
        text(&out)
    };
    assert_eq!(
        written(&H1Options::upstream(Profile::Apisix)),
        "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 0\r\nX-Own: 1\r\nConnection: close\r\nServer: x\r\n\r\n"
    );
    assert!(written(&envoy()).starts_with("HTTP/1.1 200 OK\r\nserver: x\r\n"));
}

/// A spelling was kept only if both sides were told to: in Envoy it belongs to the message that was read with it.
#[test]
fn the_side_that_reads_a_message_says_whether_its_spelling_is_kept() {
    let request = b"GET / HTTP/1.1\r\nHOST: h\r\nX-Own: 1\r\n\r\n";
    let response = b"HTTP/1.1 200 OK\r\nX-Own: 1\r\nContent-LENGTH: 0\r\n\r\n";
    let with = |header_case| H1Options { header_case, ..envoy() };
    for (reads, writes, host, own, length) in [
        (HeaderCase::Preserve, HeaderCase::Lower, "HOST", "X-Own", "Content-LENGTH"),
        (HeaderCase::Preserve, HeaderCase::ProperCase, "HOST", "X-Own", "Content-LENGTH"),
        (HeaderCase::Lower, HeaderCase::Preserve, "host", "x-own", "content-length"),
        (HeaderCase::Lower, HeaderCase::ProperCase, "Host", "X-Own", "Content-Length"),
    ] {
        let (_, head) = request_with(&with(reads), request).unwrap();
        let written = request_text(&head, true, false, &with(writes)).0;
        assert_eq!(written, format!("GET / HTTP/1.1\r\n{host}: h\r\n{own}: 1\r\n\r\n"));
        let (_, head) = response_with(&with(reads), RequestKind::Plain, response).unwrap();
        let mut out = Vec::new();
        let context = ResponseContext { end_stream: true, keep_alive: true, ..ResponseContext::default() };
        encode_response(&mut out, &head, context, &with(writes)).unwrap();
        assert_eq!(text(&out), format!("HTTP/1.1 200 OK\r\n{own}: 1\r\n{length}: 0\r\n\r\n"));
    }
}

/// The phrase of an upstream was lost, which nginx passes on, and Envoy where it is told to.
#[test]
fn a_reason_phrase_goes_on_with_its_status() {
    let line = |opts: &H1Options, bytes: &[u8], status: Option<u16>| {
        let (_, mut head) = response_with(opts, RequestKind::Plain, bytes).unwrap();
        head.status = status.unwrap_or(head.status);
        let mut out = Vec::new();
        encode_response(&mut out, &head, ResponseContext::default(), opts).unwrap();
        text(&out).split_once("\r\n").unwrap().0.to_owned()
    };
    let told = H1Options { forward_reason: true, ..envoy() };
    for (sent, on_nginx, on_envoy) in [
        ("200 Fine By Me", "200 Fine By Me", "200 OK"),
        ("600 What", "600 What", "600 Unknown"),
        ("418 I'm a \u{e9}\ttea pot ", "418 I'm a \u{e9}\ttea pot ", "418 Unknown"),
        ("200 ", "200 ", "200 OK"),
    ] {
        let bytes = format!("HTTP/1.1 {sent}\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(
            line(&H1Options::upstream(Profile::Apisix), bytes.as_bytes(), None),
            format!("HTTP/1.1 {on_nginx}")
        );
        assert_eq!(line(&told, bytes.as_bytes(), None), format!("HTTP/1.1 {on_nginx}"));
        assert_eq!(line(&envoy(), bytes.as_bytes(), None), format!("HTTP/1.1 {on_envoy}"));
        // It says nothing of another status that a plugin has put in the place of its own.
        assert_eq!(line(&told, bytes.as_bytes(), Some(404)), "HTTP/1.1 404 Not Found");
    }
}

use sixfold_core::message::{Method, Target, Version};

fn request_head(method: Method, fields: &[(&str, &str)]) -> RequestHead {
    let mut head =
        RequestHead { method, authority: b"h".to_vec(), target: Target::new(b"/p?q"), ..Default::default() };
    for (name, value) in fields {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    head
}

fn request_text(
    head: &RequestHead,
    end_stream: bool,
    close: bool,
    opts: &H1Options,
) -> (String, BodyEncoder) {
    let mut out = Vec::new();
    let body = encode_request(&mut out, head, end_stream, close, opts).unwrap().body;
    (String::from_utf8(out).unwrap(), body)
}

fn response_text(
    status: u16,
    fields: &[(&str, &str)],
    context: ResponseContext,
    opts: &H1Options,
) -> (String, EncodedResponse) {
    let mut head = ResponseHead { status, ..Default::default() };
    for (name, value) in fields {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    let mut out = Vec::new();
    let encoded = encode_response(&mut out, &head, context, opts).unwrap();
    (String::from_utf8(out).unwrap(), encoded)
}

#[test]
fn requests_are_framed_by_length_or_chunks() {
    let (text, body) =
        request_text(&request_head(Method::POST, &[("content-length", "3")]), false, false, &envoy());
    assert_eq!(text, "POST /p?q HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n");
    assert_eq!(body, BodyEncoder::Sized(3));
    let (text, body) = request_text(&request_head(Method::GET, &[("x", "1")]), false, false, &envoy());
    assert_eq!(text, "GET /p?q HTTP/1.1\r\nhost: h\r\nx: 1\r\ntransfer-encoding: chunked\r\n\r\n");
    assert_eq!(body, BodyEncoder::Chunked);
    // A Transfer-Encoding that came this far is not believed.
    let head = request_head(Method::POST, &[("transfer-encoding", "gzip"), ("content-length", "3")]);
    let (text, body) = request_text(&head, false, false, &envoy());
    assert!(!text.contains("transfer-encoding"));
    assert_eq!(body, BodyEncoder::Sized(3));
    // The stream has ended: no length but 0 can be true.
    let (text, body) =
        request_text(&request_head(Method::POST, &[("content-length", "3")]), true, false, &envoy());
    assert_eq!(text, "POST /p?q HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(body, BodyEncoder::Discard);
}

#[test]
fn some_methods_without_a_body_say_so() {
    let method = |name: &str| Method::from_bytes(name.as_bytes()).unwrap();
    for name in ["POST", "PUT", "PATCH", "OPTIONS", "PROPFIND", "PURGE"] {
        let (text, _) = request_text(&request_head(method(name), &[]), true, false, &envoy());
        assert!(text.contains("\r\ncontent-length: 0\r\n"), "{name}");
        let (text, _) = request_text(&request_head(method(name), &[]), true, false, &apisix());
        assert!(!text.to_lowercase().contains("content-length"), "{name}");
    }
    for name in ["GET", "HEAD", "DELETE", "TRACE"] {
        let (text, body) = request_text(&request_head(method(name), &[]), true, false, &envoy());
        assert_eq!(text, format!("{name} /p?q HTTP/1.1\r\nhost: h\r\n\r\n"));
        assert_eq!(body, BodyEncoder::Discard);
    }
}

#[test]
fn tunnels_have_no_framing() {
    let mut head = request_head(Method::CONNECT, &[]);
    head.target.clear();
    head.authority = b"h.test:443".to_vec();
    let (text, body) = request_text(&head, false, false, &envoy());
    assert_eq!(text, "CONNECT h.test:443 HTTP/1.1\r\nhost: h.test:443\r\n\r\n");
    assert_eq!(body, BodyEncoder::Raw);
    let head = request_head(Method::GET, &[("connection", "Upgrade"), ("upgrade", "websocket")]);
    let (text, body) = request_text(&head, true, true, &envoy());
    assert_eq!(text, "GET /p?q HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");
    assert_eq!(body, BodyEncoder::Raw);
    // A body of its own keeps its frame, so that an upstream that does not upgrade reads no second request.
    let (text, body) = request_text(&head, false, false, &envoy());
    assert!(text.ends_with("transfer-encoding: chunked\r\n\r\n"));
    assert_eq!(body, BodyEncoder::Chunked);
}

#[test]
fn names_are_spelled_as_configured() {
    let head = request_head(Method::POST, &[("X-mIxed", "1"), ("x-added_by-2us", "2")]);
    let with = |header_case, profile| {
        let opts = H1Options { header_case, ..H1Options::upstream(profile) };
        request_text(&head, false, true, &opts).0
    };
    assert_eq!(
        with(HeaderCase::Lower, Profile::Envoy),
        "POST /p?q HTTP/1.1\r\nhost: h\r\nx-mixed: 1\r\nx-added_by-2us: 2\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    );
    assert_eq!(
        with(HeaderCase::ProperCase, Profile::Envoy),
        "POST /p?q HTTP/1.1\r\nHost: h\r\nX-MIxed: 1\r\nX-Added_By-2us: 2\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(
        with(HeaderCase::Preserve, Profile::Envoy),
        "POST /p?q HTTP/1.1\r\nhost: h\r\nx-mixed: 1\r\nx-added_by-2us: 2\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n",
        "nothing came with a spelling that is kept"
    );
    assert_eq!(
        with(HeaderCase::Preserve, Profile::Apisix),
        "POST /p?q HTTP/1.1\r\nHost: h\r\nX-mIxed: 1\r\nx-added_by-2us: 2\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
}

#[test]
fn nothing_can_break_out_of_its_line() {
    let head = request_head(
        Method::GET,
        &[
            ("a", "x\r\nevil: 1"),
            ("b", "x\nevil: 1"),
            ("c", "x\revil: 1"),
            ("d", "x\0"),
            ("e\r\nevil", "1"),
            ("f: evil", "1"),
            ("", "1"),
            (":path", "/"),
            ("g", "kept"),
        ],
    );
    let (text, _) = request_text(&head, true, false, &envoy());
    assert_eq!(text, "GET /p?q HTTP/1.1\r\nhost: h\r\ng: kept\r\n\r\n");
    let mut out = b"before".to_vec();
    for target in ["/a b", "/a\r\nx: y", "/a\0", "", "/\x7f"] {
        let head = RequestHead { target: Target::new(target.as_bytes()), ..request_head(Method::GET, &[]) };
        let error = encode_request(&mut out, &head, true, false, &envoy());
        assert_eq!(error, Err(EncodeError::Target), "{target:?}");
    }
    for authority in ["a b", "a\r\nx: y", "a\n"] {
        let head = RequestHead { authority: authority.into(), ..request_head(Method::GET, &[]) };
        let error = encode_request(&mut out, &head, true, false, &envoy());
        assert_eq!(error, Err(EncodeError::Authority), "{authority:?}");
    }
    for length in [&["1", "1"][..], &["x"], &["-1"], &["1, 1"]] {
        let fields: Vec<_> = length.iter().map(|l| ("content-length", *l)).collect();
        let error = encode_request(&mut out, &request_head(Method::POST, &fields), false, false, &envoy());
        assert_eq!(error, Err(EncodeError::ContentLength), "{length:?}");
    }
    assert_eq!(out, b"before");
    for status in [0, 99, 1000] {
        let head = ResponseHead { status, ..Default::default() };
        let error = encode_response(&mut out, &head, ResponseContext::default(), &envoy());
        assert_eq!(error, Err(EncodeError::Status));
    }
}

#[test]
fn responses_are_framed_by_what_they_answer() {
    use BodyEncoder::{Chunked, Discard, Raw, Sized};
    use RequestKind::{Connect, Head, Plain};
    const CL: &[(&str, &str)] = &[("content-length", "3")];
    const NO: &[(&str, &str)] = &[];
    const LEN: Option<&str> = Some("content-length: 3");
    const ZERO: Option<&str> = Some("content-length: 0");
    const TE: Option<&str> = Some("transfer-encoding: chunked");
    // What it answers, status, fields, whether it ends with the head; the framing field and the body.
    type Row =
        (RequestKind, u16, &'static [(&'static str, &'static str)], bool, Option<&'static str>, BodyEncoder);
    let rows: &[Row] = &[
        (Plain, 200, CL, false, LEN, Sized(3)),
        (Plain, 200, NO, false, TE, Chunked),
        (Plain, 200, NO, true, ZERO, Discard),
        (Plain, 200, CL, true, ZERO, Discard),
        (Plain, 204, NO, true, None, Discard),
        (Plain, 204, CL, false, LEN, Discard),
        (Plain, 304, NO, true, None, Discard),
        (Plain, 304, CL, true, LEN, Discard),
        (Plain, 100, NO, false, None, Discard),
        (Plain, 101, NO, false, None, Raw),
        (Head, 200, CL, true, LEN, Discard),
        (Head, 200, NO, true, TE, Discard),
        (Head, 200, NO, false, TE, Discard),
        (Connect, 200, NO, false, None, Raw),
        (Connect, 404, NO, true, ZERO, Discard),
    ];
    for (request, status, fields, end_stream, framing, body) in rows {
        let context = ResponseContext {
            request: *request,
            end_stream: *end_stream,
            keep_alive: true,
            version: Version::Http11,
        };
        let (text, encoded) = response_text(*status, fields, context, &envoy());
        let found =
            text.lines().find(|l| l.starts_with("content-length") || l.starts_with("transfer-encoding"));
        assert_eq!((found, encoded.body), (*framing, *body), "{request:?} {status} {fields:?} {end_stream}");
    }
}

#[test]
fn the_connection_header_follows_the_context() {
    let head = |keep_alive, version, profile, fields: &[(&str, &str)], end_stream| {
        let context = ResponseContext { keep_alive, version, end_stream, ..Default::default() };
        let opts = H1Options { header_case: HeaderCase::Lower, ..H1Options::downstream(profile) };
        response_text(200, fields, context, &opts)
    };
    let (text, _) = head(true, Version::Http11, Profile::Envoy, &[("connection", "x"), ("a", "b")], true);
    assert_eq!(text, "HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 0\r\n\r\n");
    let (text, _) = head(false, Version::Http11, Profile::Envoy, &[], true);
    assert_eq!(text, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let (text, _) = head(true, Version::Http10, Profile::Envoy, &[], true);
    assert_eq!(text, "HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n");
    let (text, encoded) = head(true, Version::Http10, Profile::Envoy, &[], false);
    assert_eq!(text, "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\n");
    assert_eq!((encoded.body, encoded.keep_alive), (BodyEncoder::Raw, false));
    let (text, _) = head(true, Version::Http11, Profile::Apisix, &[], true);
    assert_eq!(text, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n");
    let (text, _) = head(true, Version::Http10, Profile::Apisix, &[], false);
    assert_eq!(text, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
    let context = ResponseContext { keep_alive: true, ..Default::default() };
    let (text, _) = response_text(101, &[("connection", "Upgrade"), ("upgrade", "x")], context, &envoy());
    assert_eq!(text, "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: x\r\n\r\n");
}

#[test]
fn reason_phrases() {
    use super::super::reason::reason_phrase;
    for (status, on_envoy, on_nginx) in [
        (200, "OK", "OK"),
        (302, "Found", "Moved Temporarily"),
        (413, "Payload Too Large", "Request Entity Too Large"),
        (503, "Service Unavailable", "Service Temporarily Unavailable"),
        (431, "Request Header Fields Too Large", "Request Header Fields Too Large"),
        (299, "Unknown", ""),
        (599, "Last Unassigned Server Error Code", ""),
    ] {
        assert_eq!(reason_phrase(status, Profile::Envoy), on_envoy);
        assert_eq!(reason_phrase(status, Profile::Apisix), on_nginx);
    }
}

#[test]
fn bodies() {
    let on = H1Options { enable_trailers: true, ..envoy() };
    let mut trailers = Headers::new();
    trailers.push(b"x-t", b"1");
    trailers.push(b"content-length", b"9");
    let mut out = Vec::new();
    let mut body = BodyEncoder::Chunked;
    body.data(&mut out, b"").unwrap();
    body.data(&mut out, &[b'a'; 26]).unwrap();
    body.data(&mut out, b"b").unwrap();
    body.finish(&mut out, Some(&trailers), &on).unwrap();
    let expected = format!("1a\r\n{}\r\n1\r\nb\r\n0\r\nx-t: 1\r\n\r\n", "a".repeat(26));
    assert_eq!(text(&out), expected);
    out.clear();
    body.finish(&mut out, Some(&trailers), &envoy()).unwrap();
    assert_eq!(text(&out), "0\r\n\r\n");
    out.clear();
    let mut body = BodyEncoder::Sized(3);
    body.data(&mut out, b"ab").unwrap();
    assert_eq!(body.finish(&mut out, None, &envoy()), Err(EncodeError::BodyTooShort));
    assert_eq!(body.data(&mut out, b"cd"), Err(EncodeError::BodyTooLong));
    body.data(&mut out, b"c").unwrap();
    assert_eq!(body.finish(&mut out, None, &envoy()), Ok(()));
    assert_eq!(text(&out), "abc");
    out.clear();
    BodyEncoder::Discard.data(&mut out, b"not for HEAD").unwrap();
    assert!(out.is_empty());
    BodyEncoder::Raw.data(&mut out, b"raw").unwrap();
    assert_eq!(text(&out), "raw");
}

#[test]
fn chunk_headers() {
    for len in [0usize, 1, 15, 16, 255, 4096, 65_535, usize::MAX] {
        let mut out = Vec::new();
        super::super::encode::chunk_header(&mut out, len);
        assert_eq!(text(&out), format!("{len:x}\r\n"));
    }
}
