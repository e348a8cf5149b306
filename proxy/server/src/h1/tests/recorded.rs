//! What Envoy was recorded to answer to raw requests and to malformed upstream responses.

use super::*;

#[test]
fn refused_requests() {
    let start = "POST / HTTP/1.1\r\nHost: h\r\n";
    let rows: &[(&str, u16, &str)] = &[
        ("Content-Length: x", 400, "http1.codec_error"),
        ("Content-Length: -1", 400, "http1.codec_error"),
        ("Content-Length: 1\r\nContent-Length: 1", 400, "http1.codec_error"),
        ("Content-Length: 1\r\nContent-Length: 2", 400, "http1.codec_error"),
        ("Content-Length: 1, 1", 400, "http1.codec_error"),
        ("Content-Length: +1", 400, "http1.codec_error"),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 3",
            400,
            "http1.content_length_and_chunked_not_allowed",
        ),
        ("Transfer-Encoding: gzip", 501, "http1.invalid_transfer_encoding"),
        ("Transfer-Encoding: gzip, chunked", 501, "http1.invalid_transfer_encoding"),
        ("Transfer-Encoding: identity", 501, "http1.invalid_transfer_encoding"),
        ("Transfer-Encoding: xchunked", 501, "http1.invalid_transfer_encoding"),
    ];
    for (fields, status, details) in rows {
        let error = request_with(&envoy(), format!("{start}{fields}\r\n\r\n").as_bytes()).unwrap_err();
        assert_eq!((error.status(Profile::Envoy), error.details()), (*status, *details), "{fields:?}");
    }
    let error = request_with(&envoy(), "GET /caf\u{e9} HTTP/1.1\r\nHost: h\r\n\r\n".as_bytes()).unwrap_err();
    assert_eq!((error.status(Profile::Envoy), error.details()), (400, "http1.codec_error"));
    let chunk = decode_all(BodyLength::Chunked, b"zz\r\n\r\n", &envoy()).0.unwrap_err();
    assert_eq!((chunk.status(Profile::Envoy), chunk.details()), (400, "http1.codec_error"));
}

#[test]
fn refused_responses() {
    let upstream = H1Options::upstream(Profile::Envoy);
    for bytes in [
        "HTTP/1.1 200 OK\r\nbad header: 1\r\n\r\n",
        "GARBAGE\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ] {
        assert!(response_with(&upstream, RequestKind::Plain, bytes.as_bytes()).is_err(), "{bytes:?}");
    }
    let http10 = b"HTTP/1.0 200 OK\r\n\r\nhello";
    let (parsed, _) = response_with(&upstream, RequestKind::Plain, http10).unwrap();
    assert_eq!(parsed.body, BodyLength::UntilClose);
}
