//! Each limit just below it, at it and just above it.

use super::*;

/// A head of exactly `len` bytes.
fn head_of(len: usize) -> Vec<u8> {
    let rest = b"GET / HTTP/1.1\r\nHost: h\r\nX: \r\n\r\n".len();
    format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(len - rest)).into_bytes()
}

/// A head of exactly `count` fields, Host counted.
fn fields_of(count: usize) -> Vec<u8> {
    let more: String = (1..count).map(|i| format!("x-{i}: v\r\n")).collect();
    format!("GET / HTTP/1.1\r\nHost: h\r\n{more}\r\n").into_bytes()
}

fn error_of(opts: &H1Options, bytes: &[u8]) -> Option<H1Error> {
    request_with(opts, bytes).err()
}

#[test]
fn head_bytes() {
    for opts in [envoy(), H1Options { max_head_bytes: 4096, ..envoy() }] {
        let max = opts.max_head_bytes;
        assert_eq!(error_of(&opts, &head_of(max - 1)), None);
        assert_eq!(error_of(&opts, &head_of(max)), None);
        assert_eq!(error_of(&opts, &head_of(max + 1)), Some(H1Error::HeadersTooLarge));
        // Without its end the head is refused as soon as it is too large.
        let mut head = RequestHead::default();
        let unfinished = &head_of(max + 10)[..max + 1];
        let error = HeadParser::new().request(unfinished, &mut head, &opts).unwrap_err();
        assert_eq!(error, H1Error::HeadersTooLarge);
        assert_eq!((error.status(Profile::Envoy), error.details()), (431, "http1.headers_too_large"));
        assert_eq!(HeadParser::new().request(&unfinished[..max], &mut head, &opts), Ok(None));
    }
    assert_eq!(envoy().max_head_bytes, 60 * 1024);
    assert_eq!(H1Options::upstream(Profile::Envoy).max_head_bytes, 80 * 1024);
}

#[test]
fn empty_lines_count_as_head() {
    let opts = H1Options { max_head_bytes: 100, ..envoy() };
    let mut head = RequestHead::default();
    assert_eq!(HeadParser::new().request(&b"\r\n".repeat(50), &mut head, &opts), Ok(None));
    let error = HeadParser::new().request(&b"\r\n".repeat(51), &mut head, &opts);
    assert_eq!(error, Err(H1Error::HeadersTooLarge));
}

#[test]
fn field_count() {
    for opts in [envoy(), counted(10)] {
        let max = opts.rules.max_count;
        assert_eq!(error_of(&opts, &fields_of(max - 1)), None);
        assert_eq!(error_of(&opts, &fields_of(max)), None);
        assert_eq!(error_of(&opts, &fields_of(max + 1)), Some(H1Error::TooManyHeaders));
    }
    let error = H1Error::TooManyHeaders;
    assert_eq!((error.status(Profile::Envoy), error.details()), (431, "http1.too_many_headers"));
    assert_eq!(envoy().rules.max_count, 100);
}

#[test]
fn nginx_limits_each_line() {
    let opts = apisix();
    let line = |len: usize| {
        let path = "a".repeat(len - b"GET / HTTP/1.1\r\n".len());
        format!("GET /{path} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes()
    };
    assert_eq!(error_of(&opts, &line(8191)), None);
    assert_eq!(error_of(&opts, &line(8192)), None);
    assert_eq!(error_of(&opts, &line(8193)), Some(H1Error::UriTooLong));
    assert_eq!(H1Error::UriTooLong.status(Profile::Apisix), 414);
    let field = |len: usize| {
        let value = "a".repeat(len - b"X: \r\n".len());
        format!("GET / HTTP/1.1\r\nHost: h\r\nX: {value}\r\n\r\n").into_bytes()
    };
    assert_eq!(error_of(&opts, &field(8191)), None);
    assert_eq!(error_of(&opts, &field(8192)), None);
    assert_eq!(error_of(&opts, &field(8193)), Some(H1Error::HeadersTooLarge));
    assert_eq!(H1Error::HeadersTooLarge.status(Profile::Apisix), 400);
}

#[test]
fn name_length() {
    let opts = H1Options { max_head_bytes: 1 << 20, ..envoy() };
    let name = |len: usize| format!("GET / HTTP/1.1\r\nHost: h\r\n{}: v\r\n\r\n", "n".repeat(len));
    let (_, head) = request_with(&opts, name(65_535).as_bytes()).unwrap();
    assert_eq!(head.headers.iter().next().unwrap().0.len(), 65_535);
    assert!(error_of(&opts, name(65_536).as_bytes()).is_some());
}

#[test]
fn chunk_size_digits() {
    let mut trailers = Headers::new();
    let mut size = |digits: &str| {
        Decoder::new(BodyLength::Chunked).decode(digits.as_bytes(), &mut trailers, &envoy()).is_ok()
    };
    assert!(size("00000000000000f\r\n"));
    assert!(size("000000000000000f\r\n"));
    assert!(!size("0000000000000000f\r\n"));
    assert!(size("ffffffffffffffff\r\n"));
    assert!(!size("10000000000000000\r\n"));
}

#[test]
fn chunk_extensions() {
    let mut trailers = Headers::new();
    let mut extension = |len: usize| {
        let bytes = format!("1;{}\r\na\r\n0\r\n\r\n", "e".repeat(len - 1));
        Decoder::new(BodyLength::Chunked).decode(bytes.as_bytes(), &mut trailers, &envoy()).is_ok()
    };
    assert!(extension(16 * 1024 - 1));
    assert!(extension(16 * 1024));
    assert!(!extension(16 * 1024 + 1));
    // The limit is for the whole body, not for one chunk.
    let chunk = format!("1;{}\r\na\r\n", "e".repeat(999));
    let (result, _) = decode_all(BodyLength::Chunked, chunk.repeat(17).as_bytes(), &envoy());
    assert!(result.is_err());
}

#[test]
fn trailers() {
    let opts = H1Options { max_head_bytes: 40, enable_trailers: true, ..counted(3) };
    for enable_trailers in [true, false] {
        let opts = H1Options { enable_trailers, ..opts.clone() };
        let body = |trailers: &str| format!("0\r\n{trailers}\r\n");
        let error =
            |trailers: &str| decode_all(BodyLength::Chunked, body(trailers).as_bytes(), &opts).0.err();
        assert_eq!(error("a: 1\r\nb: 1\r\n"), None);
        assert_eq!(error("a: 1\r\nb: 1\r\nc: 1\r\n"), None);
        assert_eq!(error("a: 1\r\nb: 1\r\nc: 1\r\nd: 1\r\n"), Some(H1Error::TooManyHeaders));
        let long = |len: usize| format!("a: {}\r\n", "v".repeat(len - "a: \r\n\r\n".len()));
        assert_eq!(error(&long(39)), None);
        assert_eq!(error(&long(40)), None);
        assert_eq!(error(&long(41)), Some(H1Error::HeadersTooLarge));
    }
}

#[test]
fn nominated_fields() {
    let request = |count: usize| {
        let names: Vec<String> = (0..count).map(|i| format!("x-{i}")).collect();
        format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: {}\r\n\r\n", names.join(", "))
    };
    assert_eq!(error_of(&envoy(), request(9).as_bytes()), None);
    assert_eq!(error_of(&envoy(), request(10).as_bytes()), Some(H1Error::ConnectionHeader));
    assert_eq!(error_of(&envoy(), request(300).as_bytes()), Some(H1Error::ConnectionHeader));
}
