//! Every way known to us to make two parsers disagree about where a request ends.

use super::*;

/// What a request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    /// No body.
    No,
    /// Content-Length.
    Len(u64),
    Chunked,
    /// Refused with this status.
    Bad(u16),
}
use Is::*;

fn outcome(opts: &H1Options, request: &[u8]) -> Is {
    match request_with(opts, request) {
        Err(error) => Bad(error.status(opts.profile)),
        Ok((parsed, head)) => {
            assert!(
                !(head.headers.contains(Known::CONTENT_LENGTH) && parsed.body == BodyLength::Chunked),
                "both framings would be passed on"
            );
            match parsed.body {
                BodyLength::None => No,
                BodyLength::Sized(n) => Len(n),
                BodyLength::Chunked => Chunked,
                BodyLength::UntilClose => panic!("a request that ends with the connection"),
            }
        }
    }
}

/// Field lines, then what Envoy and nginx make of them.
#[rustfmt::skip]
const FIELDS: &[(&[u8], Is, Is)] = &[
    // Transfer-Encoding: the value.
    (b"Transfer-Encoding: chunked", Chunked, Chunked),
    (b"Transfer-Encoding: Chunked", Chunked, Chunked),
    (b"Transfer-Encoding: CHUNKED", Chunked, Chunked),
    (b"Transfer-Encoding: cHuNkEd", Chunked, Chunked),
    (b"Transfer-Encoding:chunked", Chunked, Chunked),
    (b"Transfer-Encoding:   chunked", Chunked, Chunked),
    (b"Transfer-Encoding: chunked   ", Chunked, Chunked),
    (b"Transfer-Encoding:\tchunked", Chunked, Bad(501)),
    (b"Transfer-Encoding: chunked\t", Chunked, Bad(501)),
    (b"Transfer-Encoding: \t chunked \t ", Chunked, Bad(501)),
    (b"Transfer-Encoding: \x0bchunked", Bad(400), Bad(501)),
    (b"Transfer-Encoding: chunked\x0b", Bad(400), Bad(501)),
    (b"Transfer-Encoding: \x0cchunked", Bad(400), Bad(501)),
    (b"Transfer-Encoding: chunked\x0c", Bad(400), Bad(501)),
    (b"Transfer-Encoding: chunked\x7f", Bad(400), Bad(501)),
    (b"Transfer-Encoding: chunked\x01", Bad(400), Bad(501)),
    (b"Transfer-Encoding: chunked\0", Bad(400), Bad(400)),
    (b"Transfer-Encoding: \0chunked", Bad(400), Bad(400)),
    (b"Transfer-Encoding: chunked\r", Bad(400), Bad(400)),
    (b"Transfer-Encoding: \rchunked", Bad(400), Bad(400)),
    (b"Transfer-Encoding: chunked\x80", Bad(501), Bad(501)),
    (b"Transfer-Encoding: chunked\xa0", Bad(501), Bad(501)),
    (b"Transfer-Encoding: chun\xc7\xb5ed", Bad(501), Bad(501)),
    (b"Transfer-Encoding: chunked, identity", Bad(501), Bad(501)),
    (b"Transfer-Encoding: identity, chunked", Bad(501), Bad(501)),
    (b"Transfer-Encoding: gzip, chunked", Bad(501), Bad(501)),
    (b"Transfer-Encoding: gzip,chunked", Bad(501), Bad(501)),
    (b"Transfer-Encoding: chunked, gzip", Bad(501), Bad(501)),
    (b"Transfer-Encoding: chunked, chunked", Bad(501), Bad(501)),
    (b"Transfer-Encoding: chunked,", Bad(501), Bad(501)),
    (b"Transfer-Encoding: ,chunked", Bad(501), Bad(501)),
    (b"Transfer-Encoding: identity", Bad(501), Bad(501)),
    (b"Transfer-Encoding: gzip", Bad(501), Bad(501)),
    (b"Transfer-Encoding: deflate", Bad(501), Bad(501)),
    (b"Transfer-Encoding: trailers", Bad(501), Bad(501)),
    (b"Transfer-Encoding: x", Bad(501), Bad(501)),
    (b"Transfer-Encoding: ", Bad(501), Bad(501)),
    (b"Transfer-Encoding:", Bad(501), Bad(501)),
    (b"Transfer-Encoding: xchunked", Bad(501), Bad(501)),
    (b"Transfer-Encoding: chunkedx", Bad(501), Bad(501)),
    (b"Transfer-Encoding: chunke", Bad(501), Bad(501)),
    (b"Transfer-Encoding: chunked;q=1", Bad(501), Bad(501)),
    (b"Transfer-Encoding: chunked; foo", Bad(501), Bad(501)),
    (b"Transfer-Encoding: \"chunked\"", Bad(501), Bad(501)),
    (b"Transfer-Encoding: 'chunked'", Bad(501), Bad(501)),
    (b"Transfer-Encoding: chun ked", Bad(501), Bad(501)),
    (b"Transfer-Encoding: chunked chunked", Bad(501), Bad(501)),
    (b"Transfer-Encoding: %63hunked", Bad(501), Bad(501)),
    (b"Transfer-Encoding: : chunked", Bad(501), Bad(501)),
    (b"Transfer-Encoding: chunked\r\n ", Chunked, Bad(400)),
    // The name.
    (b"transfer-encoding: chunked", Chunked, Chunked),
    (b"TRANSFER-ENCODING: chunked", Chunked, Chunked),
    (b"Transfer-Encoding : chunked", Bad(400), Bad(400)),
    (b"Transfer-Encoding\t: chunked", Bad(400), Bad(400)),
    (b" Transfer-Encoding: chunked", No, Bad(400)),
    (b"\tTransfer-Encoding: chunked", No, Bad(400)),
    (b"Transfer Encoding: chunked", Bad(400), Bad(400)),
    (b"Transfer_Encoding: chunked", No, No),
    (b"Transfer-Encoding\0: chunked", Bad(400), Bad(400)),
    (b"\0Transfer-Encoding: chunked", Bad(400), Bad(400)),
    (b"Transfer-Encoding\x7f: chunked", Bad(400), Bad(400)),
    (b"Transfer-Encoding\x0b: chunked", Bad(400), Bad(400)),
    (b"Transfer-Encoding\r: chunked", Bad(400), Bad(400)),
    (b"Transfer-Encoding\x80: chunked", Bad(400), No),
    (b"Transfer-Encoding\xa0: chunked", Bad(400), No),
    (b"Transfer-Encoding(: chunked", Bad(400), No),
    (b"Transfer-Encoding+: chunked", No, No),
    (b"\"Transfer-Encoding\": chunked", Bad(400), No),
    (b"Transfer-Encoding", Bad(400), Bad(400)),
    (b"Transfer-Encoding; chunked", Bad(400), Bad(400)),
    (b": chunked", Bad(400), Bad(400)),
    (b" : chunked", No, Bad(400)),
    // Line ends.
    (b"X: y\nTransfer-Encoding: chunked", Chunked, Chunked),
    (b"X: y\rTransfer-Encoding: chunked", Bad(400), Bad(400)),
    (b"X: y\r\rTransfer-Encoding: chunked", Bad(400), Bad(400)),
    (b"X: y\n\rTransfer-Encoding: chunked", Bad(400), Bad(400)),
    (b"X: y\r\r\nTransfer-Encoding: chunked", Bad(400), Bad(400)),
    (b"X: y\0\r\nTransfer-Encoding: chunked", Bad(400), Bad(400)),
    (b"X: y\r\n Transfer-Encoding: chunked", No, Bad(400)),
    (b"X: y\r\n\tTransfer-Encoding: chunked", No, Bad(400)),
    (b"X:\r\n Transfer-Encoding: chunked", No, Bad(400)),
    (b"X: y\n Transfer-Encoding: chunked", No, Bad(400)),
    (b"Transfer-Encoding:\r\n chunked", Chunked, Bad(400)),
    (b"Transfer-Encoding:\r\n\tchunked", Chunked, Bad(400)),
    (b"Transfer-Encoding:\n chunked", Chunked, Bad(400)),
    (b"Transfer-Encoding: chun\r\n ked", Bad(501), Bad(400)),
    (b"Transfer-Encoding: chunked\r\n , identity", Bad(501), Bad(400)),
    (b"Transfer-Encoding\r\n : chunked", Bad(400), Bad(400)),
    // Several.
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", Bad(400), Bad(400)),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", Bad(400), Bad(400)),
    (b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", Bad(400), Bad(400)),
    (b"Transfer-Encoding: chunked\r\ntransfer-encoding: x", Bad(400), Bad(400)),
    (b"Transfer-Encoding:\r\nTransfer-Encoding: chunked", Bad(400), Bad(400)),
    // Content-Length: the value.
    (b"Content-Length: 0", Len(0), Len(0)),
    (b"Content-Length: 5", Len(5), Len(5)),
    (b"Content-Length:5", Len(5), Len(5)),
    (b"Content-Length: 00005", Len(5), Len(5)),
    (b"Content-Length:    5", Len(5), Len(5)),
    (b"Content-Length: 5   ", Len(5), Len(5)),
    (b"Content-Length:\t5", Len(5), Bad(400)),
    (b"Content-Length: 5\t", Len(5), Bad(400)),
    (b"Content-Length: +5", Bad(400), Bad(400)),
    (b"Content-Length: -5", Bad(400), Bad(400)),
    (b"Content-Length: -0", Bad(400), Bad(400)),
    (b"Content-Length: 5 5", Bad(400), Bad(400)),
    (b"Content-Length: 5,5", Bad(400), Bad(400)),
    (b"Content-Length: 5, 6", Bad(400), Bad(400)),
    (b"Content-Length: 5,", Bad(400), Bad(400)),
    (b"Content-Length:", Bad(400), Bad(400)),
    (b"Content-Length: 0x5", Bad(400), Bad(400)),
    (b"Content-Length: 5h", Bad(400), Bad(400)),
    (b"Content-Length: 5.0", Bad(400), Bad(400)),
    (b"Content-Length: 5e1", Bad(400), Bad(400)),
    (b"Content-Length: 1_0", Bad(400), Bad(400)),
    (b"Content-Length: \"5\"", Bad(400), Bad(400)),
    (b"Content-Length: 5;", Bad(400), Bad(400)),
    (b"Content-Length: \xd9\xa5", Bad(400), Bad(400)),
    (b"Content-Length: 5\x0b", Bad(400), Bad(400)),
    (b"Content-Length: 5\0", Bad(400), Bad(400)),
    (b"Content-Length: 5\r", Bad(400), Bad(400)),
    (b"Content-Length: 9223372036854775807", Len(i64::MAX as u64), Len(i64::MAX as u64)),
    (b"Content-Length: 9223372036854775808", Bad(400), Bad(400)),
    (b"Content-Length: 18446744073709551615", Bad(400), Bad(400)),
    (b"Content-Length: 18446744073709551616", Bad(400), Bad(400)),
    (b"Content-Length: 18446744073709551621", Bad(400), Bad(400)),
    (b"Content-Length: 4294967301", Len(4294967301), Len(4294967301)),
    // The name, and several.
    (b"content-length: 5", Len(5), Len(5)),
    (b"CONTENT-LENGTH: 5", Len(5), Len(5)),
    (b"Content-Length : 5", Bad(400), Bad(400)),
    (b"Content_Length: 5", No, No),
    (b"Content-Length:\r\n 5", Len(5), Bad(400)),
    (b"Content-Length: 5\r\n 6", Bad(400), Bad(400)),
    (b"Content-Length: 5\r\nContent-Length: 5", Bad(400), Bad(400)),
    (b"Content-Length: 5\r\nContent-Length: 6", Bad(400), Bad(400)),
    (b"Content-Length: 0\r\nContent-Length: 0", Bad(400), Bad(400)),
    (b"Content-Length:\r\nContent-Length: 5", Bad(400), Bad(400)),
    (b"Content-Length: 5\r\ncontent-length: 0", Bad(400), Bad(400)),
    // Both.
    (b"Content-Length: 5\r\nTransfer-Encoding: chunked", Bad(400), Bad(400)),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 5", Bad(400), Bad(400)),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 0", Bad(400), Bad(400)),
    (b"Transfer-Encoding: chunked\r\nContent-Length: x", Bad(400), Bad(400)),
    (b"Transfer-Encoding: identity\r\nContent-Length: 5", Bad(501), Bad(501)),
    (b"Transfer-Encoding: gzip, chunked\r\nContent-Length: 5", Bad(501), Bad(501)),
    (b"Transfer-Encoding: xchunked\r\nContent-Length: 5", Bad(501), Bad(501)),
    (b"Content-Length: 5\r\nTransfer_Encoding: chunked", Len(5), Len(5)),
    (b"Content-Length: 5\r\nX: y\nTransfer-Encoding: chunked", Bad(400), Bad(400)),
    (b"Content-Length: 5\r\nTransfer-Encoding:\r\n chunked", Bad(400), Bad(400)),
    (b"Content-Length: 5\r\nTE: chunked", Len(5), Len(5)),
    (b"X: 1", No, No),
];

#[test]
fn every_variant_has_one_reading_or_none() {
    assert!(FIELDS.len() >= 120, "{} variants", FIELDS.len());
    for method in ["POST", "GET", "DELETE", "OPTIONS"] {
        for (fields, on_envoy, on_apisix) in FIELDS {
            // An X field before them, so that a folded first line folds into something.
            let request =
                [method.as_bytes(), b" / HTTP/1.1\r\nHost: h\r\nX: 0\r\n", fields, b"\r\n\r\n"].concat();
            let shown = String::from_utf8_lossy(fields).into_owned();
            assert_eq!(outcome(&envoy(), &request), *on_envoy, "envoy, {method}: {shown:?}");
            assert_eq!(outcome(&apisix(), &request), *on_apisix, "apisix, {method}: {shown:?}");
        }
    }
}

#[test]
fn strict_handling_only_ever_refuses_more() {
    for (fields, on_envoy, on_apisix) in FIELDS {
        let request = [b"POST / HTTP/1.1\r\nHost: h\r\nX: 0\r\n", *fields, b"\r\n\r\n"].concat();
        for (mut opts, lax) in [(envoy(), on_envoy), (apisix(), on_apisix)] {
            opts.strict = true;
            let strict = outcome(&opts, &request);
            assert!(strict == *lax || matches!(strict, Bad(400)), "{:?}", String::from_utf8_lossy(fields));
            let lax_line_end = memchr::memmem::find(fields, b"\r\n ").is_some()
                || fields.windows(2).any(|w| w[1] == b'\n' && w[0] != b'\r');
            assert!(!lax_line_end || matches!(strict, Bad(400)), "{:?}", String::from_utf8_lossy(fields));
        }
    }
}

#[test]
fn chunked_wins_over_a_length_only_where_that_is_allowed() {
    let opts = H1Options { allow_chunked_length: true, ..envoy() };
    let bytes = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n";
    let (parsed, head) = request_with(&opts, bytes).unwrap();
    assert_eq!(parsed.body, BodyLength::Chunked);
    assert!(!head.headers.contains(Known::CONTENT_LENGTH));
    for more in ["Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n"] {
        let text = String::from_utf8_lossy(bytes).replace("Host: h\r\n", &format!("Host: h\r\n{more}"));
        assert_eq!(outcome(&opts, text.as_bytes()), Bad(400));
    }
}

#[test]
fn http10_has_no_chunks_and_no_bodies_until_close() {
    let opts = H1Options { accept_http_10: true, ..envoy() };
    for opts in [opts, apisix()] {
        let chunked = b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(outcome(&opts, chunked), Bad(400));
        assert_eq!(outcome(&opts, b"POST / HTTP/1.0\r\nHost: h\r\n\r\n"), No);
        assert_eq!(outcome(&opts, b"POST / HTTP/1.0\r\nHost: h\r\nContent-Length: 2\r\n\r\n"), Len(2));
    }
}

#[test]
fn connect_has_no_body() {
    for (fields, expected) in [
        ("", No),
        ("Content-Length: 0\r\n", No),
        ("Content-Length: 1\r\n", Bad(400)),
        ("Transfer-Encoding: chunked\r\n", Bad(501)),
    ] {
        let request = format!("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        assert_eq!(outcome(&envoy(), request.as_bytes()), expected, "{fields}");
        assert_eq!(outcome(&apisix(), request.as_bytes()), Bad(405));
    }
    assert_eq!(outcome(&apisix(), b"TRACE / HTTP/1.1\r\nHost: h\r\n\r\n"), Bad(405));
    assert_eq!(outcome(&envoy(), b"TRACE / HTTP/1.1\r\nHost: h\r\n\r\n"), No);
}

#[test]
fn the_connection_goes_on_as_version_and_fields_say() {
    let rows: &[(&str, &str, bool)] = &[
        ("1.1", "", true),
        ("1.1", "Connection: close", false),
        ("1.1", "Connection: Close", false),
        ("1.1", "Connection: keep-alive, close", false),
        ("1.1", "Connection: x-close", true),
        ("1.1", "Connection: keep-alive", true),
        ("1.1", "Connection: a\r\nConnection: close", false),
        ("1.1", "Proxy-Connection: close", false),
        ("1.0", "", false),
        ("1.0", "Connection: keep-alive", true),
        ("1.0", "Connection: Keep-Alive", true),
        ("1.0", "Connection: keep-alive, close", false),
        ("1.0", "Connection: x", false),
    ];
    for (version, fields, keep_alive) in rows {
        let end = if fields.is_empty() { "" } else { "\r\n" };
        let request = format!("GET / HTTP/{version}\r\nHost: h\r\n{fields}{end}\r\n");
        for opts in [H1Options { accept_http_10: true, ..envoy() }, apisix()] {
            let (parsed, _) = request_with(&opts, request.as_bytes()).unwrap();
            assert_eq!(parsed.keep_alive, *keep_alive, "{version} {fields:?}");
        }
    }
}
