use super::*;

use sixfold_core::message::{Method, Scheme, Version};

/// Status of the refusal, 0 for an accepted request.
fn status(opts: &H1Options, bytes: &[u8]) -> u16 {
    request_with(opts, bytes).map_or_else(|e| e.status(opts.profile), |_| 0)
}

#[test]
fn a_plain_request_is_read_into_the_head() {
    let bytes = b"GET /a?b=c HTTP/1.1\r\nHost: example.com:80\r\nX-Mixed: 1\r\nAccept: */*\r\n\r\nrest";
    let (parsed, head) = request_with(&envoy(), bytes).unwrap();
    assert_eq!(parsed.consumed, bytes.len() - 4);
    assert_eq!(parsed.body, BodyLength::None);
    assert!(parsed.keep_alive && parsed.has_host && !parsed.upgrade && !parsed.expect_continue);
    assert_eq!(head.method, Method::GET);
    assert_eq!(head.version, Version::Http11);
    assert_eq!((head.target.path(), head.target.query()), (&b"/a"[..], Some(&b"b=c"[..])));
    assert_eq!(head.authority, b"example.com:80");
    assert_eq!(lines(&head.headers), ["x-mixed: 1", "accept: */*"]);
    let (_, head) = request_with(&apisix(), bytes).unwrap();
    assert_eq!(lines(&head.headers), ["X-Mixed: 1", "Accept: */*"]);
}

#[test]
fn request_lines() {
    // Envoy, then nginx.
    #[rustfmt::skip]
    let rows: &[(&[u8], u16, u16)] = &[
        (b"GET / HTTP/1.1", 0, 0),
        (b"\r\nGET / HTTP/1.1", 0, 0),
        (b"\r\n\n\r\nGET / HTTP/1.1", 0, 0),
        (b"GET  /  HTTP/1.1", 0, 0),
        (b"GET\t/\tHTTP/1.1", 0, 400),
        (b"GET / HTTP/1.1 ", 0, 0),
        (b" GET / HTTP/1.1", 400, 400),
        (b"\rGET / HTTP/1.1", 400, 400),
        (b"GET / HTTP/1.1\r", 400, 400),
        (b"GET / HTTP/1.1 x", 400, 400),
        (b"GET /a b HTTP/1.1", 400, 400),
        (b"GET HTTP/1.1", 400, 400),
        (b"GET", 400, 400),
        (b"GARBAGE", 400, 400),
        (b"get / HTTP/1.1", 400, 400),
        (b"Get / HTTP/1.1", 400, 400),
        (b"FOO / HTTP/1.1", 400, 0),
        (b"M-SEARCH / HTTP/1.1", 400, 0),
        (b"G@T / HTTP/1.1", 400, 400),
        (b"PURGE / HTTP/1.1", 0, 0),
        (b"PROPFIND / HTTP/1.1", 0, 0),
        (b"UNSUBSCRIBE / HTTP/1.1", 0, 0),
        (b"GET / HTTP/1.0", 426, 0),
        (b"GET / HTTP/2.0", 426, 505),
        (b"GET / HTTP/3.0", 426, 505),
        (b"GET / HTTP/0.9", 426, 400),
        (b"GET / HTTP/1.2", 426, 0),
        (b"GET / HTTP/1.10", 400, 0),
        (b"GET / HTTP/1.100", 400, 400),
        (b"GET / HTTP/11.1", 400, 400),
        (b"GET / HTTP/1.", 400, 400),
        (b"GET / HTTP/1", 400, 400),
        (b"GET / http/1.1", 400, 400),
        (b"GET / HTTPS/1.1", 400, 400),
        (b"GET /", 426, 400),
        (b"GET /a|b HTTP/1.1", 0, 0),
        (b"GET /a\"b<c>{d}^`\\ HTTP/1.1", 0, 0),
        (b"GET /%zz%00 HTTP/1.1", 0, 0),
        (b"GET /a#b HTTP/1.1", 0, 0),
        (b"GET /caf\xc3\xa9 HTTP/1.1", 400, 0),
        (b"GET /\x01 HTTP/1.1", 400, 400),
        (b"GET /\x7f HTTP/1.1", 400, 400),
        (b"GET /\0 HTTP/1.1", 400, 400),
        (b"GET //evil.com/x HTTP/1.1", 0, 0),
        (b"GET a HTTP/1.1", 400, 400),
        (b"GET ?a HTTP/1.1", 400, 400),
        (b"GET * HTTP/1.1", 400, 400),
        (b"OPTIONS * HTTP/1.1", 0, 400),
        (b"GET http:///a HTTP/1.1", 400, 400),
        (b"GET http://h HTTP/1.1", 0, 0),
        (b"GET http://h:80 HTTP/1.1", 0, 0),
        (b"GET http://h: HTTP/1.1", 400, 400),
        (b"GET http://h:65535/ HTTP/1.1", 0, 0),
        (b"GET http://h:65536/ HTTP/1.1", 400, 400),
        (b"GET http://h:1x/ HTTP/1.1", 400, 400),
        (b"GET http://u@h/ HTTP/1.1", 0, 400),
        (b"GET http://u@v@h/ HTTP/1.1", 400, 400),
        (b"GET http://h#f HTTP/1.1", 400, 400),
        (b"GET http://h\\@evil/ HTTP/1.1", 400, 400),
        (b"GET http://[::1]:8080/ HTTP/1.1", 0, 0),
        (b"GET http://[::1/ HTTP/1.1", 400, 400),
        (b"GET http://[zz]/ HTTP/1.1", 400, 400),
        (b"GET ftp://h/ HTTP/1.1", 400, 0),
        (b"GET 1http://h/ HTTP/1.1", 400, 400),
        (b"GET http:/h/ HTTP/1.1", 400, 400),
        (b"CONNECT h:443 HTTP/1.1", 0, 405),
        (b"CONNECT h HTTP/1.1", 400, 400),
        (b"CONNECT h:443/ HTTP/1.1", 400, 400),
        (b"CONNECT u@h:443 HTTP/1.1", 400, 400),
        (b"CONNECT / HTTP/1.1", 400, 405),
    ];
    for (line, on_envoy, on_apisix) in rows {
        let request = [line, &b"\r\nHost: h\r\n\r\n"[..]].concat();
        assert_eq!(status(&envoy(), &request), *on_envoy, "envoy: {:?}", text(line));
        let expected = if line.starts_with(b"CONNECT") { 405 } else { *on_apisix };
        assert_eq!(status(&apisix(), &request), expected, "apisix: {:?}", text(line));
    }
}

#[test]
fn details_are_envoys() {
    let details = |request: &[u8]| request_with(&envoy(), request).unwrap_err().details();
    assert_eq!(details(b"GET / HTTP/1.0\r\n\r\n"), "low_version");
    assert_eq!(details(b"GET ftp://h/ HTTP/1.1\r\n\r\n"), "http1.invalid_scheme");
    assert_eq!(details(b"GET http://u@v@h/ HTTP/1.1\r\n\r\n"), "http1.invalid_url");
    assert_eq!(details(b"CONNECT h HTTP/1.1\r\n\r\n"), "http1.invalid_url");
    assert_eq!(details(b"CONNECT h:1 HTTP/1.1\r\nContent-Length: 1\r\n\r\n"), "http1.body_disallowed");
    assert_eq!(details(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), "http.invalid_authority");
    assert_eq!(details(b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"), "http.invalid_authority");
    assert_eq!(details(b"GET / HTTP/1.1\r\nX: a\rb\r\n\r\n"), "http1.invalid_characters");
    assert_eq!(details(b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n"), "http1.invalid_characters");
    let forwarded = b"GET / HTTP/1.1\r\nConnection: X-Forwarded-For\r\n\r\n";
    assert_eq!(details(forwarded), "http1.connection_header_rejected");
}

/// What programs behind may take for a blank would make another request line of it.
#[test]
fn a_form_feed_is_no_part_of_a_target() {
    for target in ["/a\x0cb", "/\x0c", "/a?b\x0cc"] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(status(&envoy(), request.as_bytes()), 400, "{target:?}");
        assert_eq!(status(&apisix(), request.as_bytes()), 400, "{target:?}");
    }
}

#[test]
fn absolute_targets_replace_host() {
    let rows: &[(&str, &str, &str)] = &[
        ("http://foo.com/p?q=1", "foo.com", "/p?q=1"),
        ("http://FOO.com", "FOO.com", "/"),
        ("https://u:p@foo.com:8443/p", "foo.com:8443", "/p"),
        ("http://foo.com:80/", "foo.com:80", "/"),
        ("http://[::1]:8080/x", "[::1]:8080", "/x"),
        ("http://foo.com//a/../b", "foo.com", "//a/../b"),
        ("http://foo.com?q", "foo.com", "?q"),
    ];
    for (target, authority, path) in rows {
        let request = format!("GET {target} HTTP/1.1\r\nHost: bar\r\n\r\n");
        let (parsed, head) = request_with(&envoy(), request.as_bytes()).unwrap();
        assert_eq!(
            (text(&head.authority), text(head.target.full())),
            (authority.to_string(), path.to_string())
        );
        let https = target.starts_with("https");
        assert_eq!(parsed.scheme, Some(if https { Scheme::Https } else { Scheme::Http }));
        let strict = H1Options { strict: true, ..envoy() };
        assert_eq!(status(&strict, request.as_bytes()), 400);
    }
    let (_, head) = request_with(&apisix(), b"GET http://foo.com?q HTTP/1.1\r\nHost: b\r\n\r\n").unwrap();
    assert_eq!(text(head.target.full()), "/?q");
    let off = H1Options { allow_absolute_url: false, ..envoy() };
    let (parsed, head) = request_with(&off, b"GET http://foo.com/p HTTP/1.1\r\nHost: bar\r\n\r\n").unwrap();
    assert_eq!((text(&head.authority), text(head.target.full())), ("bar".into(), "http://foo.com/p".into()));
    assert_eq!(parsed.scheme, None);
}

#[test]
fn connect_and_asterisk_forms() {
    let (parsed, head) = request_with(&envoy(), b"CONNECT h.test:443 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(head.target.is_empty() && parsed.has_host);
    assert_eq!(text(&head.authority), "h.test:443");
    let (_, head) = request_with(&envoy(), b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(text(head.target.full()), "*");
}

#[test]
fn hosts() {
    // Envoy, then nginx.
    let rows: &[(&[u8], u16, u16)] = &[
        (b"Host: h\r\n", 0, 0),
        (b"Host:\r\n", 0, 400),
        (b"", 0, 400),
        (b"Host: user@h\r\n", 400, 400),
        (b"Host: h.\r\n", 0, 0),
        (b"Host: h.:80\r\n", 0, 0),
        (b"Host: h..\r\n", 0, 400),
        (b"Host: .h\r\n", 0, 0),
        (b"Host: a b\r\n", 400, 400),
        (b"Host: a/b\r\n", 400, 400),
        (b"Host: a\\b\r\n", 400, 0),
        (b"Host: a..b\r\n", 0, 400),
        (b"Host: .\r\n", 0, 400),
        (b"Host: :80\r\n", 0, 400),
        (b"Host: h:x\r\n", 0, 0),
        (b"Host: [::1]:80\r\n", 0, 0),
        (b"Host: caf\xc3\xa9\r\n", 400, 0),
        (b"Host: a\tb\r\n", 400, 400),
        (b"Host: a\r\nHost: b\r\n", 0, 400),
        (b"Host: a\r\nHost: a\r\n", 0, 400),
    ];
    for (fields, on_envoy, on_apisix) in rows {
        let request = [b"GET / HTTP/1.1\r\n", *fields, b"\r\n"].concat();
        assert_eq!(status(&envoy(), &request), *on_envoy, "envoy: {:?}", text(fields));
        assert_eq!(status(&apisix(), &request), *on_apisix, "apisix: {:?}", text(fields));
    }
    let host = |request: &[u8]| {
        let (parsed, head) = request_with(&envoy(), request).unwrap();
        (parsed.has_host, text(&head.authority))
    };
    assert_eq!(host(b"GET / HTTP/1.1\r\n\r\n"), (false, String::new()));
    assert_eq!(host(b"GET / HTTP/1.1\r\nHost:\r\n\r\n"), (true, String::new()));
    assert_eq!(host(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), (true, "a,b".into()));
    let strict = H1Options { strict: true, ..envoy() };
    assert_eq!(status(&strict, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), 400);
}

#[test]
fn http10_gets_the_default_host() {
    let opts = H1Options {
        accept_http_10: true,
        default_host_for_http_10: Some((*b"default.host").into()),
        ..envoy()
    };
    let (parsed, head) = request_with(&opts, b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert!(parsed.has_host && !parsed.keep_alive);
    assert_eq!(text(&head.authority), "default.host");
    let (_, head) = request_with(&opts, b"GET / HTTP/1.0\r\nHost: h\r\n\r\n").unwrap();
    assert_eq!(text(&head.authority), "h");
    let (parsed, _) = request_with(&opts, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(!parsed.has_host);
}

#[test]
fn values_are_unfolded_trimmed_and_joined() {
    let request = b"GET / HTTP/1.1\r\nHost: h\r\nA:  x y \r\nB: 1\r\n  2\r\n\t3\r\nAccept: a\r\n\
        Cookie: c\r\nAccept: b\r\nCookie: d\r\nX: 1\r\nX: 2\r\nE:\r\nL: caf\xe9\r\n\r\n";
    let (_, head) = request_with(&envoy(), request).unwrap();
    let values: Vec<String> = head.headers.iter().map(|(n, v)| text(n) + "=" + &text(v)).collect();
    assert_eq!(
        values,
        ["a=x y", "b=1 2 3", "accept=a,b", "cookie=c", "cookie=d", "x=1", "x=2", "e=", "l=caf\u{fffd}"]
    );
}

#[test]
fn underscores() {
    let request = b"GET / HTTP/1.1\r\nHost: h\r\nx_y: 1\r\nz: 2\r\n\r\n";
    let with =
        |underscores| H1Options { rules: HeaderRules { underscores, ..HeaderRules::ENVOY }, ..envoy() };
    let (_, head) = request_with(&with(Underscores::Allow), request).unwrap();
    assert_eq!(lines(&head.headers), ["x_y: 1", "z: 2"]);
    let (_, head) = request_with(&with(Underscores::Drop), request).unwrap();
    assert_eq!(lines(&head.headers), ["z: 2"]);
    let error = request_with(&with(Underscores::Reject), request).unwrap_err();
    assert_eq!((error.status(Profile::Envoy), error.details()), (400, "http1.unexpected_underscore"));
}

#[test]
fn upgrades_and_expectations() {
    let flags = |opts: &H1Options, fields: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n");
        let (parsed, head) = request_with(opts, request.as_bytes()).unwrap();
        (parsed.upgrade, parsed.expect_continue, lines(&head.headers))
    };
    let (upgrade, _, kept) = flags(&envoy(), "Connection: keep-alive, Upgrade\r\nUpgrade: websocket");
    assert!(upgrade);
    assert_eq!(kept, ["connection: keep-alive, Upgrade", "upgrade: websocket"]);
    assert!(!flags(&envoy(), "Upgrade: websocket").0);
    assert!(!flags(&envoy(), "Connection: upgrade").0);
    let h2c = "Connection: Upgrade, HTTP2-Settings, keep-alive\r\nUpgrade: h2c\r\nHTTP2-Settings: AA";
    let (upgrade, _, kept) = flags(&envoy(), h2c);
    assert_eq!((upgrade, kept), (false, vec!["connection: keep-alive".to_owned()]));
    assert!(flags(&apisix(), h2c).0);
    assert!(flags(&envoy(), "Expect: 100-Continue").1);
    assert!(!flags(&envoy(), "Expect: 200-ok").1);
}

#[test]
fn a_parser_goes_on_with_the_next_request() {
    let bytes =
        b"GET /1 HTTP/1.1\r\nHost: h\r\nA: 1\r\n\r\nPOST /2 HTTP/1.1\r\nHost: i\r\nContent-Length: 0\r\n\r\n";
    let (mut parser, mut head) = (HeadParser::new(), RequestHead::default());
    let first = parser.request(bytes, &mut head, &envoy()).unwrap().unwrap();
    assert!(!parser.is_started());
    let second = parser.request(&bytes[first.consumed..], &mut head, &envoy()).unwrap().unwrap();
    assert_eq!(first.consumed + second.consumed, bytes.len());
    assert_eq!((text(head.target.full()), text(&head.authority)), ("/2".into(), "i".into()));
    assert_eq!(lines(&head.headers), ["content-length: 0"]);
    assert_eq!(parser.request(b"\r\n", &mut head, &envoy()), Ok(None));
    assert!(!parser.is_started());
    assert_eq!(parser.request(b"\r\nG", &mut head, &envoy()), Ok(None));
    assert!(parser.is_started());
}

/// Time for a head that trickles in byte by byte must grow with its size, not with its square.
#[test]
fn a_trickling_head_is_scanned_once() {
    let request = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n y\r\n\r\n", "a\r\n ".repeat(12_000));
    let took = || {
        let (mut parser, mut head) = (HeadParser::new(), RequestHead::default());
        let start = std::time::Instant::now();
        for end in 1..request.len() {
            assert_eq!(parser.request(&request.as_bytes()[..end], &mut head, &envoy()), Ok(None));
        }
        assert!(parser.request(request.as_bytes(), &mut head, &envoy()).unwrap().is_some());
        start.elapsed()
    };
    // A machine may stall in one turn, a square is slow in each.
    let turns: Vec<_> = (0..5).map(|_| took()).collect();
    let least = turns.iter().min().unwrap();
    assert!(*least < std::time::Duration::from_millis(500), "{turns:?}");
}

/// nginx passed both of two Upgrade fields on, and an upstream may take the second; an empty one was an upgrade for
/// one part of the proxy and none for another.
#[test]
fn exactly_one_protocol_goes_on() {
    let upgrade = |opts: &H1Options, fields: &str| {
        let request =
            format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, x-a\r\nx-a: 1\r\n{fields}\r\n");
        let (parsed, head) = request_with(opts, request.as_bytes()).unwrap();
        assert_eq!(parsed.upgrade, head.headers.contains(Known::UPGRADE), "{fields}");
        let of = |known| head.headers.get_all(known).map(text).collect::<Vec<_>>().join("|");
        (of(Known::UPGRADE), of(Known::CONNECTION))
    };
    let both = "Upgrade: websocket\r\nUpgrade: h2c\r\n";
    let pair = |upgrade: &str, connection: &str| (upgrade.to_owned(), connection.to_owned());
    // Envoy knows no such type, and answers 403.
    assert_eq!(upgrade(&envoy(), both), pair("websocket,h2c", "Upgrade"));
    for fields in [both, "Upgrade: h2c\r\nUpgrade: websocket\r\n", "Upgrade: h2c, websocket\r\n"] {
        assert_eq!(upgrade(&apisix(), fields), pair("websocket", "upgrade"), "{fields}");
    }
    assert_eq!(upgrade(&apisix(), "Upgrade: h2c, x\r\n"), pair("h2c", "upgrade"));
    for fields in ["Upgrade:\r\n", "Upgrade:\r\nUpgrade:\r\n"] {
        assert_eq!(upgrade(&envoy(), fields), pair("", ""), "{fields}");
        assert_eq!(upgrade(&apisix(), fields), pair("", "x-a"), "{fields}");
    }
    assert_eq!(upgrade(&envoy(), "Upgrade:\r\nUpgrade: websocket\r\n"), pair("websocket", "Upgrade"));
    let (parsed, head) =
        request_with(&apisix(), b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n").unwrap();
    assert!(!parsed.upgrade && head.headers.is_empty());
}

#[test]
fn controls_in_a_value_are_named() {
    for value in ["a\0b", "a\rb", "a\x01b", "a\x7fb"] {
        let request = format!("GET / HTTP/1.1\r\nHost: h\r\nA: {value}\r\n\r\n");
        let error = request_with(&envoy(), request.as_bytes()).unwrap_err();
        assert_eq!(error.details(), "http1.invalid_characters", "{value:?}");
        assert_eq!(error.status(Profile::Envoy), 400);
    }
}

#[test]
fn the_first_of_joined_values_may_be_empty() {
    let request = b"GET / HTTP/1.1\r\nHost: h\r\nAccept:\r\nAccept: admin\r\nAccept:\r\n\r\n";
    assert_eq!(lines(&request_with(&envoy(), request).unwrap().1.headers), ["accept: admin"]);
}
