//! Tables of formats and what they give, and a fuzz over random ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod nginx;

use super::*;
use crate::cluster::{Address, Cluster, ClusterConfig, HostConfig, HostSet, TriedHost, UpstreamProtocol};
use crate::connection::{Certificate, Connection, TlsInfo};
use crate::flags::Flag;
use crate::headers::Known;
use crate::message::{Scheme, Target, Version};
use bytes::Bytes;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

fn metadata(value: &str) -> crate::metadata::Metadata {
    let mut metadata = crate::metadata::Metadata::default();
    metadata.insert("ns", json!({"k": value}));
    metadata
}

fn connection() -> Connection {
    Connection {
        id: 7,
        start: Instant::now(),
        listener: "ingress".into(),
        filter_chain: "".into(),
        listener_metadata: Arc::new(metadata("of listener")),
        chain_metadata: Arc::new(metadata("of chain")),
        remote: "10.0.0.9:4001".parse().unwrap(),
        direct_remote: "10.0.0.1:4000".parse().unwrap(),
        local: "127.0.0.1:80".parse().unwrap(),
        local_restored: false,
        direct_local: "[::1]:8080".parse().unwrap(),
        requested_server_name: None,
        tls: None,
        source: None,
        filter_state: Default::default(),
        kept: Default::default(),
    }
}

/// A request that an upstream answered.
pub(crate) fn stream() -> Stream {
    let mut s = Stream::new(Arc::new(connection()));
    s.random = 0x0123_4567_89ab_cdef;
    s.start_time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_045);
    s.timing.request_complete = Some(s.timing.start + Duration::from_millis(2));
    s.timing.upstream_tx_begin = Some(s.timing.start + Duration::from_millis(3));
    s.timing.upstream_tx_end = Some(s.timing.start + Duration::from_millis(4));
    s.timing.upstream_rx_begin = Some(s.timing.start + Duration::from_millis(9));
    s.timing.downstream_tx_end = Some(s.timing.start + Duration::from_millis(12));
    s.request.authority = b"Oracle.test:81".to_vec();
    s.request.target = Target::new(b"/p/q?q=1&r=a%20b&flag");
    s.request.headers.push(b"X-A", b"abc");
    s.request.headers.push(b"Cookie", b"sid=42; theme=\"dark\"");
    s.response.status = 200;
    s.response.headers.push(b"x-r", b"r");
    s.remote = "1.2.3.4:5678".parse().unwrap();
    s.details = Some("via upstream".into());
    s.bytes.request_body = 5;
    s.bytes.response_body = 1234;
    let config = HostConfig::new(Address::Ip("127.0.0.1:9000".parse().unwrap()));
    let member = HostSet::new(vec![config], None).iter().next().unwrap().clone();
    let began = Instant::now();
    let after = |ms: u64| began + Duration::from_millis(ms);
    let tried = |status, ms: Option<u64>| TriedHost {
        status,
        head_at: ms.map(after),
        ended_at: ms.map(after),
        ..TriedHost::new(member.clone(), began)
    };
    s.upstream.tried = vec![tried(502, None), tried(200, Some(6))];
    s.upstream.member = Some(member);
    s.upstream.attempts = 2;
    s.upstream.version = Some(Version::Http2);
    s.metadata.push(("ns".into(), "k".into(), json!({"b": 1.0, "a": ["x", 2.5, null]})));
    s.metadata.push(("ns".into(), "s".into(), json!("text")));
    s
}

fn cluster(config: ClusterConfig) -> Arc<Cluster> {
    Cluster::new(config, Vec::new(), None, &crate::metrics::Registry::new()).unwrap()
}

fn log(format: &str, stream: &Stream) -> String {
    let mut out = Vec::new();
    Format::envoy(format).unwrap().write_log(stream, &mut out);
    String::from_utf8(out).unwrap()
}

fn value(template: &str, stream: &Stream) -> String {
    let mut out = Vec::new();
    Format::apisix(template).unwrap().write_value(stream, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn envoy_operators() {
    let mut s = stream();
    for (format, line) in [
        ("plain 100%%", "plain 100%"),
        ("", ""),
        ("%REQ(X-A)% %REQ(X-NONE?x-a)% %REQ(X-A):2% %REQ(X-NONE)%", "abc abc ab -"),
        (
            "%REQ(:METHOD)% %REQ(:path)% %REQ(:AUTHORITY)% %REQ(:SCHEME)%",
            "GET /p/q?q=1&r=a%20b&flag Oracle.test:81 http",
        ),
        ("%REQ_WITHOUT_QUERY(:PATH)%", "/p/q"),
        ("%RESP(X-R)% %RESP(:STATUS)% %TRAILER(X-T)%", "r 200 -"),
        (
            "%PATH% %PATH(NQ)% %PATH(NQ:ORIG)% %PATH(WQ:PATH)%",
            "/p/q?q=1&r=a%20b&flag /p/q - /p/q?q=1&r=a%20b&flag",
        ),
        ("%QUERY_PARAM(q)% %QUERY_PARAM(none)% %QUERY_PARAMS%", "1 - q=1&r=a%20b&flag"),
        // Neither names nor values were decoded.
        (
            "%QUERY_PARAM(r)% %QUERY_PARAMS(ORIG)% %QUERY_PARAMS(DECODED)%",
            "a b q=1&r=a%20b&flag q=1&r=a%20b&flag",
        ),
        ("%START_TIME%", "2023-11-14T22:13:20.045Z"),
        ("%START_TIME(%Y/%m/%d %s.%3f)%", "2023/11/14 1700000000.045"),
        (
            "%PROTOCOL% %UPSTREAM_PROTOCOL% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS%",
            "HTTP/1.1 HTTP/2 200 via_upstream",
        ),
        ("%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%", "- -"),
        ("%BYTES_RECEIVED% %BYTES_SENT%", "5 1234"),
        (
            "%DURATION% %REQUEST_DURATION% %REQUEST_TX_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION%",
            "12 2 4 9 3",
        ),
        ("%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:us)% %COMMON_DURATION(US_RX_BEG:DS_RX_BEG:ms)%", "9000 -"),
        ("%COMMON_DURATION(US_CX_BEG:US_CX_END:ns)%", "-"),
        (
            "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT%",
            "1.2.3.4:5678 1.2.3.4 5678",
        ),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.1"),
        (
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(23)% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(0)%",
            "1.2.2.0/23 0.0.0.0/0",
        ),
        // More bits than there are, what is no number, and fewer than none.
        (
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(129)% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(x)% [%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(-1)%]",
            "1.2.3.4/32 1.2.3.4 []",
        ),
        (
            "%DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT(127)% %UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(8)%",
            "::/127 -",
        ),
        ("%XFCC_VALUE(uri)%", "-"),
        ("%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_DIRECT_LOCAL_ADDRESS%", "127.0.0.1:80 [::1]:8080"),
        (
            "%UPSTREAM_HOST% %UPSTREAM_REMOTE_PORT% %UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_CLUSTER%",
            "127.0.0.1:9000 - - -",
        ),
        ("%UPSTREAM_REQUEST_ATTEMPT_COUNT% %UPSTREAM_HOSTS_ATTEMPTED%", "2 127.0.0.1:9000"),
        ("%UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT%", "127.0.0.1"),
        ("%ROUTE_NAME% %VIRTUAL_CLUSTER_NAME% %REQUESTED_SERVER_NAME%", "- - -"),
        ("%REQUESTED_SERVER_NAME(SNI_FIRST)%", "Oracle.test"),
        (
            "%DYNAMIC_METADATA(ns:s)% %DYNAMIC_METADATA(ns:k:a)% %DYNAMIC_METADATA(ns:none)%",
            "text [\"x\",2.5,null] -",
        ),
        ("%METADATA(ROUTE)% %DYNAMIC_METADATA(:s)%", "- -"),
        (
            "%METADATA(LISTENER:ns:k)% %METADATA(LISTENER_FILTER_CHAIN:ns:k)% %METADATA(LISTENER:other:k)%",
            "of listener of chain -",
        ),
        ("%METADATA(DYNAMIC:ns)%", "{\"k\":{\"a\":[\"x\",2.5,null],\"b\":1},\"s\":\"text\"}"),
        (
            "%DYNAMIC_METADATA([\"ns\", \"s\"])% %METADATA(ROUTE:ns:k)% %DYNAMIC_METADATA(ns:s):2%",
            "text - te",
        ),
        ("%FILTER_STATE(x)% %UPSTREAM_PEER_SUBJECT% %TLS_JA3_FINGERPRINT% [%CUSTOM_FLAGS%]", "- - - []"),
        ("%LISTENER_NAME% %COMMON_DURATION(DS_CX_BEG:DS_RX_BEG:ms)%", "ingress 0"),
        ("%GRPC_STATUS% %GRPC_STATUS_NUMBER%", "- -"),
        ("%ENVIRONMENT(SIXFOLD_NOT_SET)%", "-"),
        ("%CONNECTION_ID% %ACCESS_LOG_TYPE%", "7 DownstreamEnd"),
        ("%UNIQUE_ID%", "01234567-89ab-4def-"),
        (
            "%COALESCE({\"operators\":[{\"command\":\"REQ\",\"param\":\"none\"},{\"command\":\"REQ\",\"param\":\":method\",\"max_length\":2}]})%",
            "GE",
        ),
        ("%COALESCE({\"operators\":[\"ROUTE_NAME\",\"PROTOCOL\"]})%", "HTTP/1.1"),
    ] {
        let text = log(format, &s);
        let expected = if format.contains("UNIQUE") { text.starts_with(line) } else { text == line };
        assert!(expected, "{format}: {text:?} is not {line:?}");
    }
    s.flags.insert(Flag::DI);
    s.flags.insert(Flag::UF);
    assert_eq!(
        log("%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%", &s),
        "DI,UF DelayInjected,UpstreamConnectionFailure"
    );
    s.request.headers.push(b"content-type", b"application/grpc");
    s.response_trailers.push(b"grpc-status", b"14");
    assert_eq!(
        log("%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%", &s),
        "Unavailable UNAVAILABLE 14"
    );
    s.request.headers.push(b"x-forwarded-client-cert", b"By=a;URI=spiffe://b");
    assert_eq!(log("%XFCC_VALUE(Uri)% %XFCC_VALUE(uri):3%", &s), "spiffe://b spiffe://b");
    s.request.headers.push(b"x-envoy-original-path", b"/old?x");
    assert_eq!(log("%PATH% %PATH(NQ:ORIG)%", &s), "/old?x /old");
}

#[test]
fn wrong_envoy_formats_are_refused() {
    for format in [
        "%",
        "%NOPE%",
        "%REQ%",
        "%REQ()%",
        "%REQ(a?b?c)%",
        "%REQ(a b)%",
        "%PROTOCOL(x)%",
        "%DOWNSTREAM_REMOTE_ADDRESS(8)%",
        "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(8):3%",
        "%XFCC_VALUE%",
        "%XFCC_VALUE(foo)%",
        "% %",
        "%PROTOCOL",
        "%REQ(x):y%",
        "%req(x)%",
        "%START_TIME(%@)%",
        "%COMMON_DURATION(DS_RX_BEG:DS_RX_END:h)%",
        "%METADATA()%",
        "%METADATA(NOPE:x)%",
        "%GRPC_STATUS(x)%",
        "%PATH(x)%",
        "%COALESCE({})%",
        "%COALESCE({\"operators\":[]})%",
        "%COALESCE({\"operators\":[\"NOPE\"]})%",
        "%CEL(request.path +)%",
        "%CEL%",
        "%FILE_CONTENT(/does/not/exist)%",
        "%VIRTUAL_HOST_NAME%",
        "%FILTER_STATE%",
        // These were taken.
        "%RESPONSE_CODE:2%",
        "%START_TIME:3%",
        "%FILTER_STATE(a:X)%",
        "%FILTER_STATE(a:FIELD)%",
        "%FILTER_STATE(a:FIELD:)%",
        "%FILTER_STATE(a:TYPED:5)%",
        "%FILTER_STATE(a:PLAIN:5)%",
        "%FILTER_STATE(:TYPED)%",
        "%UPSTREAM_TLS_SESSION_REUSED%",
        "%DOWNSTREAM_REMOTE_ADDRESS_ENDPOINT_ID%",
    ] {
        assert!(Format::envoy(format).is_err(), "{format}");
    }
    let error = |format| Format::envoy(format).unwrap_err();
    assert_eq!(error("a %NOPE% b"), "operator NOPE: is not known");
    // What is a slip could not be told from what there is not yet.
    assert_eq!(error("%RSEP(x)%"), "operator RSEP: is not known; did you mean RESP?");
    assert_eq!(
        error("%BYTES_RECIEVED%"),
        "operator BYTES_RECIEVED: is not known; did you mean BYTES_RECEIVED?"
    );
    assert_eq!(error("%CEL(request.path +)%"), "operator CEL: it ends too early");
}

#[test]
fn expressions_are_printed() {
    let mut stream = stream();
    stream.request.target.set(b"/a(b)?c");
    let line = |format: &str| {
        let mut out = Vec::new();
        Format::envoy(format).unwrap().write_log(&stream, &mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(line("%CEL(request.url_path)%"), "/a(b)");
    assert_eq!(line("%CEL(request.url_path):2% %CEL(request.headers['x-none'])%"), "/a -");
    assert_eq!(line("%CEL(size(request.query) == 1 ? 'one' : 'more')%"), "one");
    let json =
        serde_json::json!({"a": "%CEL(size(request.query))%", "b": "%TYPED_CEL(size(request.query))%"});
    let mut out = Vec::new();
    Format::json(&json, Default::default()).unwrap().write_log(&stream, &mut out);
    assert_eq!(String::from_utf8(out).unwrap(), r#"{"a":"1","b":1}"#);
}

/// They were refused.
#[test]
fn newer_names_of_envoys_operators() {
    let mut s = stream();
    s.details = Some("via upstream".into());
    s.request.headers.push(b"x-new", b"1");
    assert_eq!(
        log("%REQUEST_HEADER(x-none?x-new):5%|%RESPONSE_HEADER(x-none)%|%RESPONSE_TRAILER(x-none)%", &s),
        "1|-|-"
    );
    assert_eq!(log("%BYTES_RETRANSMITTED%|%UPSTREAM_SERVER_NAME%|%COMMON_DURATION(A:B:ms)%", &s), "0|-|-");
    assert_eq!(
        log(
            "%RESPONSE_CODE_DETAILS%|%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%|%RESPONSE_CODE_DETAILS(X)%",
            &s
        ),
        "via_upstream|via upstream|via_upstream"
    );
}

#[test]
fn the_default_line_and_a_broken_request() {
    let mut s = stream();
    s.bytes.response_body = 3;
    assert_eq!(
        log(ENVOY_DEFAULT, &s),
        "[2023-11-14T22:13:20.045Z] \"GET /p/q?q=1&r=a%20b&flag HTTP/1.1\" 200 - 5 3 12 - \"-\" \"-\" \"-\" \"Oracle.test:81\" \"127.0.0.1:9000\"\n"
    );
    let mut broken = Stream::new(Arc::new(connection()));
    broken.response.status = 400;
    assert_eq!(log("%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%", &broken), "- - HTTP/1.1");
    broken.response.status = 0;
    assert_eq!(
        log("%REQ(:METHOD)% %PROTOCOL% %RESPONSE_CODE% %ACCESS_LOG_TYPE%", &broken),
        "- - 0 TcpConnectionEnd"
    );
}

#[test]
fn outputs_differ_in_what_is_missing_and_in_escapes() {
    let mut s = stream();
    s.request.headers.push(b"x-evil", b"a\r\nb\"\x7f\t");
    let format = Format::envoy("<%REQ(x-none)%|%REQ(x-evil)%>").unwrap();
    let write = |with: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        with(&mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(write(&|out| format.write_header(&s, out)), "<|a  b\" \t>");
    assert_eq!(write(&|out| format.write_log(&s, out)), "<-|a\\x0D\\x0Ab\"\\x7F\\x09>");
    assert_eq!(write(&|out| format.write_body(&s, out)), "<-|a\r\nb\"\x7f\t>");
    assert_eq!(write(&|out| format.write_value(&s, out)), "<|a\r\nb\"\x7f\t>");
    assert_eq!(write(&|out| format.write_escaped(&s, out, Escape::Nginx)), "<-|a\\x0D\\x0Ab\\x22\\x7F\\x09>");
    assert_eq!(write(&|out| format.write_escaped(&s, out, Escape::Json)), "<|a\\r\\nb\\\"\\u007f\\t>");
    let omitting = Format::envoy("<%REQ(x-none)%>").unwrap().omit_empty();
    assert_eq!(write(&|out| omitting.write_log(&s, out)), "<>");
}

#[test]
fn json_documents_keep_types_and_sort_keys() {
    let mut s = stream();
    s.local_body = Bytes::from_static(b"line\n\"q\"");
    let write = |document: serde_json::Value, options| {
        let mut out = Vec::new();
        Format::json(&document, options).unwrap().write_log(&s, &mut out);
        String::from_utf8(out).unwrap()
    };
    let document = json!({
        "code": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "none": "%REQ(X-NONE)%", "fixed": 5, "empty": "",
        "both": "%REQ(:METHOD)% %RESPONSE_CODE%", "gap": "<%REQ(x-none)%>", "body": "%LOCAL_REPLY_BODY%",
        "nested": {"proto": "%PROTOCOL%", "list": ["%RESPONSE_CODE%", "text", true]},
        "deep": {"gone": {"x": "%REQ(x-none)%"}}, "meta": "%DYNAMIC_METADATA(ns:k)%", "cut": "%REQ(:METHOD):2%",
    });
    assert_eq!(
        write(document.clone(), JsonOptions::default()),
        concat!(
            "{\"body\":\"line\\n\\\"q\\\"\",\"both\":\"GET 200\",\"code\":200,\"cut\":\"GE\",",
            "\"deep\":{\"gone\":{\"x\":null}},\"empty\":\"\",\"fixed\":5,\"flags\":\"-\",\"gap\":\"<->\",",
            "\"meta\":{\"a\":[\"x\",2.5,null],\"b\":1},\"nested\":{\"list\":[200,\"text\",true],\"proto\":\"HTTP/1.1\"},",
            "\"none\":null}"
        )
    );
    let omitted = write(document, JsonOptions { omit_empty: true, ..JsonOptions::default() });
    assert!(
        !omitted.contains("none") && !omitted.contains("deep") && omitted.contains("\"gap\":\"<>\""),
        "{omitted}"
    );
    // One that is written stayed.
    let nulls = json!({"list": [null, 1], "gone": null});
    assert_eq!(write(nulls.clone(), JsonOptions::default()), r#"{"gone":null,"list":[null,1]}"#);
    let omitting = JsonOptions { omit_empty: true, ..JsonOptions::default() };
    assert_eq!(write(nulls, omitting), r#"{"list":[1]}"#);
    let apisix = JsonOptions { dialect: Dialect::Apisix, ..JsonOptions::default() };
    assert_eq!(
        write(json!({"h": "$host", "n": "$arg_none", "t": "a $host", "o": {"m": "$request_method"}}), apisix),
        "{\"h\":\"oracle.test\",\"o\":{\"m\":\"GET\"},\"t\":\"a $host\"}"
    );
    // Numbers are those of APISIX; no template; five deep.
    assert_eq!(
        write(
            json!({"s": "$status", "p": "$server_port", "x": "$host $host", "y": "${host}", "e": {"n": "$arg_none"},
                "l": ["a", 1, true, "$host"], "d": {"d": {"d": {"d": {"d": {"a": "b"}}}}}}),
            apisix
        ),
        r#"{"d":{"d":{"d":{"d":{"d":{}}}}},"e":{},"l":["a",1,true,"oracle.test"],"p":"80","s":200}"#
    );
    let error = Format::json(&json!({"a": {"b": "%X%"}}), JsonOptions::default()).unwrap_err();
    assert_eq!(error, "a: b: operator X: is not known");
}

#[test]
fn certificates() {
    let certificate = Certificate {
        subject: "CN=a".into(),
        uri_sans: vec!["spiffe://x".into(), "spiffe://y".into()],
        serial: "0ab".into(),
        not_after: 1_700_000_000,
        pem: "-----BEGIN\nAB\n-----END\n".into(),
        ..Certificate::default()
    };
    let tls = TlsInfo {
        version: "TLSv1.3",
        cipher: "X",
        peer: Some(certificate.into()),
        peer_validated: true,
        ..TlsInfo::default()
    };
    let mut s = Stream::new(Arc::new(Connection { tls: Some(tls), ..connection() }));
    s.request.scheme = Scheme::Https;
    assert_eq!(
        log(
            "%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_PEER_SUBJECT% %DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_LOCAL_SUBJECT%",
            &s
        ),
        "TLSv1.3 CN=a spiffe://x,spiffe://y -"
    );
    assert_eq!(
        log("%DOWNSTREAM_PEER_CERT_V_END% %DOWNSTREAM_PEER_CERT_V_END(%Y)%", &s),
        "2023-11-14T22:13:20.000Z 2023"
    );
    assert_eq!(log("%DOWNSTREAM_PEER_CERT%", &s), "-----BEGIN%0AAB%0A-----END%0A");
    assert_eq!(
        value("$ssl_client_verify $ssl_client_serial $https $ssl_client_cert", &s),
        "SUCCESS 0AB on -----BEGIN\n\tAB\n\t-----END"
    );
}

/// Random formats over random streams: never a panic, never a raw control byte in a log line, JSON that parses.
#[test]
fn fuzz_formats() {
    let mut random = fastrand::Rng::with_seed(11);
    let pieces = [
        "%",
        "%%",
        "$",
        "${",
        "}",
        "(",
        ")",
        ":",
        "?",
        "5",
        "REQ",
        "(x-a)",
        "%REQ(x-evil)%",
        "%REQ(x-evil):3%",
        "%START_TIME%",
        "%DURATION%",
        "%RESPONSE_CODE%",
        "host",
        "$arg_q",
        "${arg_r ?? d}",
        "$post_arg.a[*]..b",
        "$graphql_name",
        "\\",
        "%f",
        "\u{e9}",
        "%DYNAMIC_METADATA(ns)%",
        "%PATH(NQ)%",
        "$http_x_evil",
        "%COALESCE({\"operators\":[\"PROTOCOL\"]})%",
        ",",
        "??",
    ];
    for _ in 0..20_000 {
        let text: String = (0..random.usize(0..6)).map(|_| pieces[random.usize(0..pieces.len())]).collect();
        let mut s = stream();
        let junk: Vec<u8> = (0..random.usize(0..20)).map(|_| random.u8(..)).collect();
        s.request.headers.push(b"x-evil", &junk);
        s.request.target = Target::new(&junk);
        s.request_body = Some(Bytes::from(junk));
        s.request.headers.push(b"content-type", b"application/json");
        for format in [Format::envoy(&text), Format::apisix(&text)].into_iter().flatten() {
            let mut out = Vec::new();
            format.write_log(&s, &mut out);
            assert!(!out.iter().any(|b| *b < 0x20 || *b == 0x7f), "{text:?}: {out:?}");
            format.write_header(&s, &mut out);
            format.write_value(&s, &mut out);
        }
        for dialect in [Dialect::Envoy, Dialect::Apisix] {
            let options = JsonOptions { dialect, omit_empty: random.bool() };
            let Ok(format) = Format::json(&json!({"a": text, "b": [text], "c": {"d": text}}), options) else {
                continue;
            };
            let mut out = Vec::new();
            format.write_log(&s, &mut out);
            assert!(
                serde_json::from_slice::<serde_json::Value>(&out).is_ok(),
                "{text:?}: {}",
                String::from_utf8_lossy(&out)
            );
        }
    }
}

/// All of it was decoded. As Envoy 1.40 prints them.
#[test]
fn decoded_queries_keep_what_is_not_readable() {
    let mut s = stream();
    for (query, line) in [
        ("a=x%41%21%23%25%26%2B%3d%60%7e", "a=xA!#%&+=`~"),
        ("%00%0a%20%22%3C%3e%5c%5E%7b%7c%7D%7f%c3%A9", "%00%0a%20%22%3C%3e%5c%5E%7b%7c%7D%7f%c3%A9"),
        ("a=%zz1&%%41&%1gx", "a=zz1&A&1gx"),
        ("a=%2525&%4", "a=%25&%4"),
        ("%", "%"),
        ("a+b", "a+b"),
    ] {
        s.request.target.set(format!("/?{query}").as_bytes());
        assert_eq!(log("%QUERY_PARAMS(DECODED)%", &s), line, "{query}");
    }
}

/// As Envoy 1.40 printed them.
#[test]
fn filter_state_is_text_or_json() {
    use crate::stream::FilterObject;
    let mut s = stream();
    let value = b"va\"l /p".as_slice().into();
    s.set_filter_state(FilterObject { key: "my.str".into(), value, hashable: false, read_only: false });
    let value = b"a\xff".as_slice().into();
    s.set_filter_state(FilterObject { key: "odd".into(), value, hashable: false, read_only: false });
    for (format, printed) in [
        ("%FILTER_STATE(my.str)%", r#""va\"l /p""#),
        ("%FILTER_STATE(my.str):3%", "\"va"),
        ("%FILTER_STATE(my.str:)%", r#""va\"l /p""#),
        ("%FILTER_STATE(my.str:PLAIN)%", "va\"l /p"),
        ("%FILTER_STATE(my.str:PLAIN):3%", "va\""),
        ("%FILTER_STATE(my.str:TYPED)%", r#""va\"l /p""#),
        ("%FILTER_STATE(my.str:FIELD:value)%", "-"),
        ("%FILTER_STATE(none:PLAIN)%", "-"),
        ("%UPSTREAM_FILTER_STATE(my.str:PLAIN)%", "-"),
        // What is no UTF-8 is told as in every other JSON string.
        ("%FILTER_STATE(odd:TYPED)%", r#""a\u00ff""#),
    ] {
        assert_eq!(log(format, &s), printed, "{format}");
    }
}

/// They were there and never had a value.
#[test]
fn upstream_connections_are_told_of() {
    use crate::connection::UpstreamConnection;
    let mut s = stream();
    let certificate = |name: &str| Certificate {
        subject: format!("CN={name}"),
        issuer: "CN=ca".into(),
        uri_sans: vec![format!("spiffe://{name}")],
        dns_sans: vec![name.to_owned(), format!("www.{name}")],
        not_before: 0,
        not_after: 86_400,
        pem: "-----BEGIN".into(),
        ..Certificate::default()
    };
    let all = "%UPSTREAM_TLS_VERSION% %UPSTREAM_TLS_CIPHER% %UPSTREAM_SERVER_NAME% %UPSTREAM_PEER_SUBJECT% %UPSTREAM_PEER_ISSUER% %UPSTREAM_PEER_URI_SAN% %UPSTREAM_PEER_DNS_SAN% %UPSTREAM_PEER_IP_SAN% %UPSTREAM_PEER_CERT% %UPSTREAM_PEER_CERT_V_START% %UPSTREAM_PEER_CERT_V_END% %UPSTREAM_LOCAL_URI_SAN% %UPSTREAM_LOCAL_DNS_SAN%";
    assert_eq!(log(&format!("%UPSTREAM_CONNECTION_ID% {all}"), &s), ["-"; 14].join(" "));
    s.upstream.connection = Some(Arc::new(UpstreamConnection {
        id: 9,
        tls: Some(TlsInfo {
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
            server_name: Some("sni.test".into()),
            peer: Some(certificate("up").into()),
            local: Some(certificate("us").into()),
            ..TlsInfo::default()
        }),
    }));
    assert_eq!(log("%UPSTREAM_CONNECTION_ID%", &s), "9");
    assert_eq!(
        log(all, &s),
        "TLSv1.3 TLS_AES_128_GCM_SHA256 sni.test CN=up CN=ca spiffe://up up,www.up - -----BEGIN 1970-01-01T00:00:00.000Z 1970-01-02T00:00:00.000Z spiffe://us us,www.us"
    );
    // Envoy has these of clients alone.
    assert!(Format::envoy("%UPSTREAM_PEER_SERIAL%").is_err());
}
