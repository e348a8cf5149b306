use super::*;

use sixfold_core::message::Version;

fn upstream() -> H1Options {
    H1Options::upstream(Profile::Envoy)
}

#[test]
fn status_lines() {
    for (line, status) in [
        ("HTTP/1.1 200 OK", Some(200)),
        ("HTTP/1.1 200", Some(200)),
        ("HTTP/1.1 200 ", Some(200)),
        ("HTTP/1.1  404 Not: Found", Some(404)),
        ("HTTP/1.0 200 OK", Some(200)),
        ("HTTP/1.1 999 x", Some(999)),
        ("HTTP/1.1 099 x", None),
        ("HTTP/1.1 20 x", None),
        ("HTTP/1.1 2000 x", None),
        ("HTTP/1.1 20x OK", None),
        ("HTTP/1.1 +20 OK", None),
        ("HTTP/1.1", None),
        ("HTTP/1.1 ", None),
        ("HTTP/11 200 OK", None),
        ("http/1.1 200 OK", None),
        ("GARBAGE", None),
        ("ICY 200 OK", None),
        (" HTTP/1.1 200 OK", None),
    ] {
        let bytes = format!("{line}\r\n\r\n");
        let got = response_with(&upstream(), RequestKind::Plain, bytes.as_bytes());
        assert_eq!(got.ok().map(|(_, head)| head.status), status, "{line:?}");
    }
    // Both were taken. Envoy refuses both; nginx takes the first for HTTP/0.9 and passes the others on.
    for profile in [Profile::Envoy, Profile::Apisix] {
        let opts = H1Options::upstream(profile);
        for start in ["\r\nHTTP/1.1 200 OK", "\nHTTP/1.1 200 OK", "\r\n\r\nHTTP/1.1 200 OK"] {
            let bytes = format!("{start}\r\n\r\n");
            assert!(response_with(&opts, RequestKind::Plain, bytes.as_bytes()).is_err(), "{start:?}");
        }
        for control in ["\0", "\x01", "\x1b", "\x7f", "\r"] {
            let bytes = format!("HTTP/1.1 200 O{control}K\r\n\r\n");
            assert!(response_with(&opts, RequestKind::Plain, bytes.as_bytes()).is_err(), "{control:?}");
        }
    }
    let bad_name = b"HTTP/1.1 200 OK\r\nbad header: 1\r\n\r\n";
    assert!(response_with(&upstream(), RequestKind::Plain, bad_name).is_err());
}

#[test]
fn where_a_response_ends() {
    use BodyLength::{Chunked, None as No, Sized, UntilClose};
    use RequestKind::{Connect, Head, Plain};
    const CL: &str = "Content-Length: 3\r\n";
    const TE: &str = "Transfer-Encoding: chunked\r\n";
    // What it answers, status line, fields, body and whether the connection goes on; None is a refusal.
    type Row = (RequestKind, &'static str, &'static str, Option<(BodyLength, bool)>);
    let rows: &[Row] = &[
        (Plain, "1.1 200", CL, Some((Sized(3), true))),
        (Plain, "1.1 200", "Content-Length: 0\r\n", Some((Sized(0), true))),
        (Plain, "1.1 200", TE, Some((Chunked, true))),
        (Plain, "1.1 200", "", Some((UntilClose, false))),
        (Plain, "1.1 404", "", Some((UntilClose, false))),
        (Plain, "1.1 200", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", None),
        (Plain, "1.1 200", "Content-Length: 3\r\nContent-Length: 3\r\n", None),
        (Plain, "1.1 200", "Content-Length: 3, 3\r\n", None),
        (Plain, "1.1 200", "Content-Length: x\r\n", None),
        (Plain, "1.1 200", "Transfer-Encoding: gzip\r\n", None),
        (Plain, "1.1 200", "Transfer-Encoding: gzip, chunked\r\n", None),
        (Plain, "1.1 200", "Content-Length: 3\r\nConnection: close\r\n", Some((Sized(3), false))),
        (Plain, "1.0 200", CL, Some((Sized(3), false))),
        (Plain, "1.0 200", "Content-Length: 3\r\nConnection: keep-alive\r\n", Some((Sized(3), true))),
        (
            Plain,
            "1.0 200",
            "Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n",
            Some((Chunked, false)),
        ),
        (Plain, "1.0 200", "", Some((UntilClose, false))),
        (Plain, "1.1 204", "", Some((No, true))),
        (Plain, "1.1 204", "Content-Length: 0\r\n", Some((No, true))),
        (Plain, "1.1 204", CL, None),
        (Plain, "1.1 204", TE, None),
        (Plain, "1.1 304", CL, Some((No, true))),
        (Plain, "1.1 304", TE, Some((No, true))),
        (Plain, "1.1 304", "", Some((No, true))),
        (Plain, "1.1 100", "", Some((No, true))),
        (Plain, "1.1 103", "", Some((No, true))),
        (Plain, "1.1 103", CL, None),
        (Plain, "1.1 101", "Connection: upgrade\r\nUpgrade: x\r\n", Some((No, false))),
        (Head, "1.1 200", CL, Some((No, true))),
        (Head, "1.1 200", TE, Some((No, true))),
        (Head, "1.1 200", "", Some((No, true))),
        (Head, "1.1 200", "Content-Length: x\r\n", None),
        (Connect, "1.1 200", "", Some((No, false))),
        (Connect, "1.1 200", "Content-Length: 0\r\n", Some((No, false))),
        (Connect, "1.1 200", CL, None),
        (Connect, "1.1 200", TE, None),
        (Connect, "1.1 403", CL, Some((Sized(3), true))),
    ];
    for (kind, line, fields, expected) in rows {
        let bytes = format!("HTTP/{line} x\r\n{fields}\r\n");
        let got = response_with(&upstream(), *kind, bytes.as_bytes());
        let got = got.ok().map(|(parsed, _)| (parsed.body, parsed.keep_alive));
        assert_eq!(got, *expected, "{kind:?} {line} {fields:?}");
    }
    // nginx reads over framing fields where there can be no body.
    let lax = H1Options::upstream(Profile::Apisix);
    let (parsed, head) = response_with(&lax, Plain, b"HTTP/1.1 204 x\r\nContent-Length: 3\r\n\r\n").unwrap();
    assert_eq!(parsed.body, No);
    assert!(!head.headers.contains(Known::CONTENT_LENGTH));
}

#[test]
fn interim_responses_and_tunnels_are_told_apart() {
    let read = |options: &H1Options, kind, line: &str| {
        let bytes = format!("HTTP/1.1 {line}\r\n\r\n");
        let (parsed, _) = response_with(options, kind, bytes.as_bytes()).unwrap();
        (parsed.interim, parsed.tunnel)
    };
    let kinds = |kind, line: &str| read(&upstream(), kind, line);
    assert_eq!(kinds(RequestKind::Plain, "100 Continue"), (true, false));
    assert_eq!(kinds(RequestKind::Plain, "102 x"), (true, false));
    // Envoy goes by the fields, nginx by the status.
    let fields = "\r\nConnection: Upgrade\r\nUpgrade: x";
    assert_eq!(kinds(RequestKind::Plain, &format!("101 x{fields}")), (false, true));
    assert_eq!(kinds(RequestKind::Plain, "101 x"), (false, false));
    assert_eq!(kinds(RequestKind::Plain, "101 x\r\nUpgrade: x"), (false, false));
    let apisix = H1Options::upstream(Profile::Apisix);
    assert_eq!(read(&apisix, RequestKind::Plain, "101 x"), (false, true));
    assert_eq!(kinds(RequestKind::Plain, "200 x"), (false, false));
    assert_eq!(kinds(RequestKind::Connect, "200 x"), (false, true));
    assert_eq!(kinds(RequestKind::Connect, "404 x"), (false, false));
}

#[test]
fn a_response_head_keeps_its_fields() {
    let bytes = b"HTTP/1.0 200 OK\r\nHost: kept\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nhello";
    let (parsed, head) = response_with(&upstream(), RequestKind::Plain, bytes).unwrap();
    assert_eq!(parsed.consumed, bytes.len() - 5);
    assert_eq!(head.version, Version::Http10);
    assert_eq!(lines(&head.headers), ["host: kept", "set-cookie: a", "set-cookie: b"]);
    assert_eq!(H1Error::Truncated.details(), "http1.codec_error");
}
