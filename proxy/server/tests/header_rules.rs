//! The rules for header fields, over both versions of HTTP and on both sides.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::*;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use sixfold_core::access_log::AccessLog;
use sixfold_core::cluster::UpstreamProtocol;
use sixfold_core::format::Format;
use sixfold_core::hcm::Profile;
use sixfold_core::headers::{HeaderRules, Underscores};
use sixfold_core::plugin::{ChainBuilder, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// A proxy in front of an upstream that answers with the head it got.
async fn echo(profile: Profile, rules: HeaderRules) -> (SocketAddr, Upstream) {
    let up = upstream(|_, request| ok(request.split("\r\n\r\n").next().unwrap())).await;
    let mut setup = Setup::new();
    (setup.profile, setup.header_rules) = (profile, rules);
    setup.upgrades = Box::new([("websocket".into(), true)]);
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    (setup.serve().await.0, up)
}

async fn http2(proxy: SocketAddr) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(proxy).await.unwrap();
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    client
}

fn get_with(fields: &[(String, String)]) -> Request<()> {
    let mut request = Request::get("http://h.test/").body(()).unwrap();
    for (name, value) in fields {
        request
            .headers_mut()
            .append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
    }
    request
}

/// Status and body of a request over HTTP/2, or why its stream was reset.
async fn ask_http2(proxy: SocketAddr, fields: &[(String, String)]) -> Result<(u16, String), h2::Reason> {
    let (response, _) = http2(proxy).await.send_request(get_with(fields), true).unwrap();
    let response = response.await.map_err(|e| e.reason().unwrap())?;
    let status = response.status().as_u16();
    let (mut stream, mut body) = (response.into_body(), Vec::new());
    while let Some(data) = stream.data().await {
        body.extend_from_slice(&data.map_err(|e| e.reason().unwrap())?);
    }
    Ok((status, String::from_utf8(body).unwrap()))
}

fn ask_http1(fields: &[(String, String)]) -> String {
    let fields: String = fields.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    format!("GET / HTTP/1.1\r\nHost: h.test\r\n{fields}\r\n")
}

fn field(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// Over HTTP/2 `x_user` reached the upstream beside `x-user`, whatever the configuration said.
#[tokio::test]
async fn underscores_are_refused_or_dropped_over_both_versions() {
    let fields = [field("x_user", "eve"), field("x-user", "bob")];
    for (profile, underscores) in [
        (Profile::Envoy, Underscores::Reject),
        (Profile::Envoy, Underscores::Drop),
        (Profile::Apisix, Underscores::Drop),
    ] {
        let (proxy, up) = echo(profile, HeaderRules { underscores, ..HeaderRules::ENVOY }).await;
        let over1 = ask(proxy, &ask_http1(&fields)).await;
        let over2 = ask_http2(proxy, &fields).await;
        if underscores == Underscores::Reject {
            assert!(over1.starts_with("HTTP/1.1 400 "), "{over1}");
            assert_eq!(over2, Err(h2::Reason::INTERNAL_ERROR));
            assert_eq!(up.requests.load(SeqCst), 0);
        } else {
            for seen in [over1, over2.unwrap().1] {
                assert!(!seen.contains("x_user") && seen.contains("x-user: bob"), "{seen}");
            }
        }
    }
}

/// 1,500 cookies, and as many other fields, passed over HTTP/2 where 100 fields are allowed.
#[tokio::test]
async fn fields_are_counted_one_by_one_over_both_versions() {
    let (proxy, up) = echo(Profile::Envoy, HeaderRules::ENVOY).await;
    let (nginx, _) = echo(Profile::Apisix, HeaderRules { max_count: 100, ..HeaderRules::APISIX }).await;
    for name in ["cookie", "accept", "x-own"] {
        // Host counts, and so do four pseudo-headers.
        let many = |n: usize| vec![field(name, "v"); n];
        assert!(ask(proxy, &ask_http1(&many(99))).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(ask_http2(proxy, &many(96)).await.unwrap().0, 200);
        let seen = up.requests.load(SeqCst);
        assert!(ask(proxy, &ask_http1(&many(100))).await.starts_with("HTTP/1.1 431 "));
        for n in [97, 400, 1500] {
            assert_eq!(ask_http2(proxy, &many(n)).await, Err(h2::Reason::INTERNAL_ERROR), "{n} {name}");
        }
        assert_eq!(up.requests.load(SeqCst), seen, "none of them is forwarded");
        assert_eq!(ask_http2(nginx, &many(97)).await.unwrap().0, 400);
    }
}

#[tokio::test]
async fn trailers_are_counted_over_both_versions() {
    let (proxy, _) = echo(Profile::Envoy, HeaderRules { max_count: 20, ..HeaderRules::ENVOY }).await;
    for (n, passes) in [(20, true), (21, false), (500, false)] {
        let lines: String = (0..n).map(|i| format!("x-{i}: 1\r\n")).collect();
        let request = format!(
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n{lines}\r\n"
        );
        let status = if passes { "HTTP/1.1 200 " } else { "HTTP/1.1 400 " };
        assert!(ask(proxy, &request).await.starts_with(status), "{n}");

        let request = Request::post("http://h.test/").body(()).unwrap();
        let (response, mut send) = http2(proxy).await.send_request(request, false).unwrap();
        send.send_data(Bytes::from_static(b"a"), false).unwrap();
        let mut trailers = HeaderMap::new();
        (0..n).for_each(|i| {
            trailers.append(HeaderName::try_from(format!("x-{i}")).unwrap(), HeaderValue::from_static("1"));
        });
        send.send_trailers(trailers).unwrap();
        let response = response.await;
        assert_eq!(response.is_ok_and(|r| r.status() == 200), passes, "{n}");
    }
}

/// `Upgrade: websocket` and `Upgrade: h2c` both went on, and an upstream may take the second.
#[tokio::test]
async fn one_protocol_goes_on() {
    let fields =
        [field("Connection", "Upgrade, X-Hop"), field("Upgrade", "h2c"), field("Upgrade", "websocket")];
    let (proxy, _) = echo(Profile::Apisix, HeaderRules::APISIX).await;
    let seen = ask(proxy, &ask_http1(&fields)).await.to_ascii_lowercase();
    assert!(
        seen.contains("\r\nupgrade: websocket\r\n") && seen.contains("\r\nconnection: upgrade\r\n"),
        "{seen}"
    );
    assert!(!seen.contains("h2c") && !seen.contains("x-hop"), "{seen}");
    for profile in [Profile::Envoy, Profile::Apisix] {
        let (proxy, _) = echo(profile, HeaderRules::ENVOY).await;
        let seen = ask(proxy, &ask_http1(&[field("Connection", "Upgrade"), field("Upgrade", "")])).await;
        assert!(seen.starts_with("HTTP/1.1 200 "), "{seen}");
        assert!(!seen.to_ascii_lowercase().contains("upgrade:"), "{seen}");
    }
    let (proxy, up) = echo(Profile::Envoy, HeaderRules::ENVOY).await;
    assert!(ask(proxy, &ask_http1(&fields[0..3])).await.starts_with("HTTP/1.1 403 "));
    assert_eq!(up.requests.load(SeqCst), 0);
}

fn expects<'a>(_: &'a (), stream: &'a mut Stream, _: Slot) -> Step<'a> {
    stream.request.headers.set("expect", b"100-continue");
    Step::Continue
}

/// A client that had not asked for it was told to go on, and the upstream was not asked.
#[tokio::test]
async fn what_a_filter_expects_is_asked_of_the_upstream() {
    let up = upstream(|_, request| ok(request.split("\r\n\r\n").next().unwrap())).await;
    let mut setup = Setup::new();
    setup.profile = Profile::Envoy;
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let mut builder = ChainBuilder::new();
    builder.add("p", Plugin::of(()).access(expects).build());
    setup.chain = Arc::new(builder.build());
    let proxy = setup.serve().await.0;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";
    let seen = ask(proxy, request).await;
    assert!(seen.starts_with("HTTP/1.1 200 ") && seen.contains("expect: 100-continue"), "{seen}");
}

fn removes_upgrade<'a>(_: &'a (), stream: &'a mut Stream, _: Slot) -> Step<'a> {
    stream.request.headers.remove("upgrade");
    Step::Continue
}

/// The upstream got a request that named an option which it did not have.
#[tokio::test]
async fn an_upgrade_that_a_filter_removes_is_none() {
    let up = upstream(|_, request| ok(request.split("\r\n\r\n").next().unwrap())).await;
    let mut setup = Setup::new();
    setup.profile = Profile::Envoy;
    setup.upgrades = Box::new([("websocket".into(), true)]);
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let mut builder = ChainBuilder::new();
    builder.add("p", Plugin::of(()).access(removes_upgrade).build());
    setup.chain = Arc::new(builder.build());
    let proxy = setup.serve().await.0;
    let seen = ask(proxy, &ask_http1(&[field("Connection", "Upgrade"), field("Upgrade", "websocket")])).await;
    assert!(seen.starts_with("HTTP/1.1 200 "), "{seen}");
    assert!(!seen.to_ascii_lowercase().contains("connection: upgrade"), "{seen}");
}

/// An HTTP/2 upstream that answers with so many fields in head and trailers.
async fn wide_upstream(head: usize, trailers: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let fields = |n: usize| {
        let mut map = HeaderMap::new();
        (0..n).for_each(|_| {
            map.append("set-cookie", HeaderValue::from_static("a=b"));
        });
        map
    };
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let mut response = http::Response::new(());
                    *response.headers_mut() = fields(head);
                    let mut send = respond.send_response(response, false).unwrap();
                    send.send_trailers(fields(trailers)).unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn responses_of_http2_upstreams_are_counted_too() {
    // `:status` counts.
    for (head, trailers, status) in [(90, 90, 200), (99, 1, 200), (100, 1, 502), (1200, 1, 502)] {
        let address = wide_upstream(head, trailers).await;
        let mut setup = Setup::new();
        setup.cluster("a", &[address], |config| config.protocol = UpstreamProtocol::Http2);
        setup.route("/", "a", |_| {});
        let (proxy, _) = setup.serve().await;
        let got = ask_http2(proxy, &[]).await.unwrap().0;
        assert_eq!(got, status, "{head} fields, {trailers} trailers");
    }
    let address = wide_upstream(1, 101).await;
    let mut setup = Setup::new();
    setup.cluster("a", &[address], |config| config.protocol = UpstreamProtocol::Http2);
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    assert!(ask_http2(proxy, &[]).await.is_err(), "the response is cut before its trailers");
}

/// 30,000 fields for an HTTP/2 upstream ended the connection's task with a panic.
#[tokio::test]
async fn more_fields_than_http2_can_carry_are_answered() {
    let address = wide_upstream(1, 1).await;
    let mut setup = Setup::new();
    setup.header_rules.max_count = 100_000;
    setup.http1.max_head_bytes = 1 << 20;
    setup.cluster("a", &[address], |config| config.protocol = UpstreamProtocol::Http2);
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    let many: Vec<_> = (0..30_000).map(|i| field(&format!("x-{i}"), "v")).collect();
    let answer = ask(proxy, &ask_http1(&many)).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

/// Two lines of credentials reached the upstream, which might believe another one than a plugin had looked at.
#[tokio::test]
async fn nginx_takes_one_line_of_what_it_keeps_one_of() {
    let field = |name: &str| vec![(name.to_owned(), "a".to_owned()), (name.to_owned(), "b".to_owned())];
    let (nginx, up) = echo(Profile::Apisix, HeaderRules::APISIX).await;
    for name in [
        "authorization",
        "if-match",
        "if-none-match",
        "if-modified-since",
        "if-range",
        "content-range",
        "expect",
    ] {
        let answer = ask(nginx, &ask_http1(&field(name))).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{name}: {answer}");
        assert_eq!(ask_http2(nginx, &field(name)).await.unwrap().0, 400, "{name}");
    }
    assert_eq!(up.requests.load(SeqCst), 0);
    for name in ["content-type", "range", "referer", "x-any"] {
        assert!(ask(nginx, &ask_http1(&field(name))).await.starts_with("HTTP/1.1 200 "), "{name}");
    }
    let (envoy, _) = echo(Profile::Envoy, HeaderRules::ENVOY).await;
    assert!(ask(envoy, &ask_http1(&field("authorization"))).await.starts_with("HTTP/1.1 200 "));
}

/// All three were a client that had gone away (DC). What its connection did is one thing, a stream that it resets another,
/// and a third a body that is not as long as its head had announced.
#[tokio::test]
async fn who_ended_a_stream_is_told_by_its_flag() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let lines = Arc::<Lines>::default();
    let mut setup = Setup::new();
    let format = Arc::new(Format::envoy("%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n").unwrap());
    setup.access_logs = vec![AccessLog { filter: None, format, sink: lines.clone() }];
    setup.cluster("a", &[silent.local_addr().unwrap()], |_| {});
    setup.route("/", "a", |_| {});
    let proxy = setup.serve().await.0;
    let logged = async |count: usize| {
        eventually(|| lines.0.lock().len() >= count).await;
        lines.0.lock()[count - 1].trim().to_owned()
    };
    let mut client = http2(proxy).await;
    let (_response, mut body) = client.send_request(get_with(&[]), false).unwrap();
    let (_reached, _) = silent.accept().await.unwrap();
    body.send_reset(h2::Reason::CANCEL);
    assert_eq!(logged(1).await, "DR http2.remote_reset");

    let announced = [("content-length".to_owned(), "5".to_owned())];
    let (_response, mut body) = client.send_request(get_with(&announced), false).unwrap();
    body.send_data(Bytes::from_static(b"abcdefghij"), true).unwrap();
    assert_eq!(logged(2).await, "DPE http2.remote_reset");

    let mut plain = TcpStream::connect(proxy).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (_reached, _) = silent.accept().await.unwrap();
    drop(plain);
    assert_eq!(logged(3).await, "DC downstream_remote_disconnect");
}
