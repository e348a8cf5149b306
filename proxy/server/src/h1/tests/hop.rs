use super::*;

use super::super::hop;

/// Request fields after parsing and stripping, without `x: `.
fn stripped(opts: &H1Options, keep_upgrade: bool, fields: &str) -> Vec<String> {
    let request = format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    let (_, mut head) = request_with(opts, request.as_bytes()).unwrap();
    hop::strip_request(&mut head.headers, keep_upgrade, opts.profile);
    lines(&head.headers)
}

#[test]
fn requests_lose_what_belongs_to_the_connection() {
    let fields = "Connection: keep-alive, x-hop\r\nx-hop: 1\r\nKeep-Alive: timeout=5\r\n\
        Proxy-Connection: keep-alive\r\nTE: trailers, deflate\r\nUpgrade-Insecure-Requests: 1\r\n\
        Proxy-Authorization: x\r\nTransfer-Encoding: chunked\r\nUpgrade: y\r\n";
    let kept = ["te: trailers", "upgrade-insecure-requests: 1", "proxy-authorization: x"];
    assert_eq!(stripped(&envoy(), false, fields), kept);
    // nginx does not look at what Connection nominates.
    let kept = [
        "x-hop: 1",
        "Proxy-Connection: keep-alive",
        "Upgrade-Insecure-Requests: 1",
        "Proxy-Authorization: x",
    ];
    assert_eq!(stripped(&apisix(), false, fields), kept);
}

#[test]
fn te_keeps_trailers_alone() {
    assert_eq!(stripped(&envoy(), false, "TE: deflate\r\n"), Vec::<String>::new());
    assert_eq!(stripped(&envoy(), false, "TE: trailers\r\n"), ["te: trailers"]);
    assert_eq!(stripped(&envoy(), false, "TE: deflate\r\nTE: Trailers\r\n"), ["te: trailers"]);
    assert_eq!(stripped(&envoy(), false, "Connection: TE\r\nTE: trailers\r\n"), ["te: trailers"]);
    assert_eq!(stripped(&envoy(), false, "Connection: TE\r\nTE: gzip\r\n"), Vec::<String>::new());
    assert_eq!(stripped(&apisix(), false, "TE: trailers\r\n"), Vec::<String>::new());
}

#[test]
fn an_upgrade_keeps_its_two_fields() {
    let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nKeep-Alive: 1\r\n";
    assert_eq!(stripped(&envoy(), true, fields), ["connection: Upgrade", "upgrade: websocket"]);
    assert_eq!(stripped(&envoy(), false, fields), Vec::<String>::new());
    assert_eq!(stripped(&apisix(), true, fields), ["Connection: upgrade", "Upgrade: websocket"]);
}

#[test]
fn a_client_cannot_nominate_what_the_gateway_owns() {
    for name in ["X-Forwarded-For", "x-forwarded-host", "X-FORWARDED-PROTO", "Host", ":path"] {
        let request =
            format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: {name}\r\n{}\r\n", "X-Forwarded-For: 1\r\n");
        let error = request_with(&envoy(), request.as_bytes()).unwrap_err();
        assert_eq!(error, H1Error::ConnectionHeader, "{name}");
        assert_eq!(error.status(Profile::Envoy), 400);
    }
    // Framing never depends on it either.
    let request = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: Content-Length\r\nContent-Length: 3\r\n\r\n";
    let (parsed, head) = request_with(&envoy(), request).unwrap();
    assert_eq!(parsed.body, BodyLength::Sized(3));
    assert!(head.headers.contains(Known::CONTENT_LENGTH));
}

#[test]
fn a_long_nominated_te_is_refused() {
    let request =
        |len| format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: te\r\nTE: {}\r\n\r\n", "a".repeat(len));
    assert!(request_with(&envoy(), request(255).as_bytes()).is_ok());
    assert!(request_with(&envoy(), request(256).as_bytes()).is_err());
}

#[test]
fn responses_lose_what_belongs_to_the_connection() {
    let bytes = b"HTTP/1.1 200 x\r\nConnection: close\r\nKeep-Alive: 1\r\nProxy-Connection: close\r\n\
        Transfer-Encoding: chunked\r\nUpgrade: h2\r\nX-Stay: 1\r\n\r\n";
    let after = |profile, keep_upgrade| {
        let opts = H1Options::upstream(profile);
        let (_, mut head) = response_with(&opts, RequestKind::Plain, bytes).unwrap();
        hop::strip_response(&mut head.headers, keep_upgrade, profile);
        lines(&head.headers)
    };
    assert_eq!(after(Profile::Envoy, false), ["x-stay: 1"]);
    assert_eq!(after(Profile::Envoy, true), ["connection: close", "upgrade: h2", "x-stay: 1"]);
    let upgraded = ["Connection: upgrade", "Proxy-Connection: close", "Upgrade: h2", "X-Stay: 1"];
    assert_eq!(after(Profile::Apisix, true), upgraded, "nginx says it itself");
    assert_eq!(after(Profile::Apisix, false), ["Proxy-Connection: close", "Upgrade: h2", "X-Stay: 1"]);
}
