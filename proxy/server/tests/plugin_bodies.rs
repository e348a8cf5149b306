//! Bodies that plugins have read, on their way to the upstream.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::*;
use sixfold_core::access_log::AccessLog;
use sixfold_core::cluster::UpstreamProtocol;
use sixfold_core::format::Format;
use sixfold_core::headers::Known;
use sixfold_core::plugin::{
    BodyPiece, BodyStep, ChainBuilder, LocalReply, Plugin, ReadBody, Slot, Step, TrailersStep,
};
use sixfold_core::stream::Stream;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Reads the whole body, as forward-auth does, and copies a length that belongs to another message.
struct Reader;

impl Reader {
    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        if let Some(step) = ReadBody::whole(1 << 20).ask(stream, slot) {
            return step;
        }
        let length = stream.request_body.as_ref().unwrap().len().to_string();
        stream.request.headers.set("x-read", length.as_bytes());
        stream.request.headers.set(Known::CONTENT_LENGTH, b"77");
        Step::Continue
    }
}

fn setup(up: SocketAddr, change: impl FnOnce(&mut sixfold_core::cluster::ClusterConfig)) -> Setup {
    let mut builder = ChainBuilder::new();
    let reader = Plugin::of(Reader).access(Reader::access);
    builder.add("reader", reader.build());
    let mut setup = Setup::new();
    setup.chain = Arc::new(builder.build());
    setup.cluster("a", &[up], change);
    setup.route("/", "a", |forward| forward.retry = retry("5xx", 2));
    setup
}

async fn serve(up: SocketAddr, change: impl FnOnce(&mut sixfold_core::cluster::ClusterConfig)) -> SocketAddr {
    setup(up, change).serve().await.0
}

/// The same body in each way of sending it.
fn posts(body: &str) -> [String; 2] {
    [
        format!("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        format!(
            "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ),
    ]
}

/// The upstream got `Content-Length: 0` and no body, whatever the client had sent.
#[tokio::test]
async fn a_body_that_a_plugin_has_read_goes_on_whole_and_on_retries() {
    let up = upstream(|n, request| {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        match n % 2 {
            0 => status(500),
            _ => ok(&format!("{length} {body}")),
        }
    })
    .await;
    let proxy = serve(up.address, |_| {}).await;
    for post in posts("hello, body") {
        let response = ask(proxy, &post).await;
        assert!(response.ends_with("\r\n\r\n11 hello, body"), "{response}");
    }
    assert_eq!(up.requests.load(SeqCst), 4);
}

#[tokio::test]
async fn a_body_that_a_plugin_has_read_goes_on_over_http2_from_both_codecs() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let (head, mut body) = request.into_parts();
                    tokio::spawn(async move {
                        let mut text = format!("{} ", head.headers["content-length"].to_str().unwrap());
                        while let Some(piece) = body.data().await {
                            text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
                        }
                        let response =
                            http::Response::builder().header("content-length", text.len()).body(()).unwrap();
                        respond.send_response(response, false).unwrap().send_data(text.into(), true).unwrap();
                    });
                }
            });
        }
    });
    let proxy = serve(address, |config| config.protocol = UpstreamProtocol::Http2).await;
    for post in posts("hello, body") {
        let response = ask(proxy, &post).await;
        assert!(response.ends_with("\r\n\r\n11 hello, body"), "{response}");
    }
    let socket = tokio::net::TcpStream::connect(proxy).await.unwrap();
    let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://t/").body(()).unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(b"hello, body"), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "11 hello, body");
}

/// A chain of these plugins before one cluster.
async fn serve_chain(up: SocketAddr, plugins: Vec<Plugin>) -> SocketAddr {
    let mut builder = ChainBuilder::new();
    plugins.into_iter().for_each(|plugin| builder.add("p", plugin));
    let mut setup = Setup::new();
    setup.chain = Arc::new(builder.build());
    setup.cluster("a", &[up], |_| {});
    setup.route("/", "a", |forward| forward.retry = retry("5xx", 2));
    setup.serve().await.0
}

/// Removes what says how long the body is, which the plugins of these tests change.
fn unsized_request<'a>(_: &'a (), stream: &'a mut Stream, _: Slot) -> Step<'a> {
    stream.request.headers.remove(Known::CONTENT_LENGTH);
    Step::Continue
}

fn unsized_response<'a>(_: &'a (), stream: &'a mut Stream, _: Slot) -> Step<'a> {
    stream.response.headers.remove(Known::CONTENT_LENGTH);
    Step::Continue
}

fn shout(_: &(), _: &mut Stream, _: Slot, piece: &BodyPiece<'_>) -> BodyStep {
    BodyStep::Replace(piece.data.to_ascii_uppercase().into())
}

/// Takes the whole body, up to 8 bytes, and puts it into brackets.
fn bracket(_: &(), _: &mut Stream, _: Slot, piece: &BodyPiece<'_>) -> BodyStep {
    match piece.last {
        true => BodyStep::Replace([b"[", piece.data, b"]"].concat().into()),
        false => BodyStep::hold(8),
    }
}

/// Waits a moment, then refuses what is bad.
fn judge(_: &(), _: &mut Stream, _: Slot, piece: &BodyPiece<'_>) -> BodyStep {
    if !piece.last {
        return BodyStep::hold(1 << 20);
    }
    let is_bad = piece.data.starts_with(b"bad");
    BodyStep::Wait(Box::pin(async move {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        match is_bad {
            true => BodyStep::Respond(Box::new(LocalReply::new(403, "bad", "judged"))),
            false => BodyStep::Pass,
        }
    }))
}

fn body_of(request: &str) -> String {
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    match head.contains("transfer-encoding: chunked") {
        // All of these come in one chunk.
        true => body.lines().nth(1).unwrap_or_default().to_owned(),
        false => body.to_owned(),
    }
}

fn read_whole<'a>((): &'a (), stream: &'a mut Stream, slot: Slot) -> Step<'a> {
    ReadBody::whole(100).ask(stream, slot).unwrap_or(Step::Continue)
}

#[tokio::test]
async fn request_bodies_go_through_plugins_once_for_all_attempts() {
    let up = upstream(|n, request| match n % 2 {
        0 => status(500),
        _ => ok(&body_of(request)),
    })
    .await;
    let shouts = || Plugin::of(()).access(unsized_request).request_body(shout).build();
    let brackets = || Plugin::of(()).access(unsized_request).request_body(bracket).build();
    let judges = || Plugin::of(()).request_body(judge).build();
    // One that has it read changes nothing for the others.
    let reads = Plugin::of(()).access(read_whole).build();
    for (plugins, expected) in [
        (vec![shouts()], "HELLO"),
        (vec![brackets(), shouts(), judges()], "[HELLO]"),
        (vec![reads, brackets(), shouts(), judges()], "[HELLO]"),
    ] {
        let proxy = serve_chain(up.address, plugins).await;
        for post in posts("hello") {
            let response = ask(proxy, &post).await;
            assert!(response.ends_with(&format!("\r\n\r\n{expected}")), "{response}");
        }
    }
}

#[tokio::test]
async fn a_plugin_that_looks_at_the_request_body_may_answer() {
    let up = upstream(|_, request| {
        let body = request.split_once("\r\n\r\n").unwrap().1;
        assert!(!body.contains("bad"), "the upstream gets nothing of it: {request}");
        ok("from upstream")
    })
    .await;
    let proxy = serve_chain(up.address, vec![Plugin::of(()).request_body(judge).build()]).await;
    for post in posts("bad body") {
        let response = ask(proxy, &post).await;
        assert!(response.starts_with("HTTP/1.1 403 ") && response.ends_with("bad"), "{response}");
    }
    assert!(ask(proxy, &posts("good body")[0]).await.ends_with("from upstream"));
}

/// A plugin whose buffer a body outgrew switched off all that the chain did with bodies.
#[tokio::test]
async fn a_response_that_outgrows_one_plugin_meets_the_others() {
    let up = upstream(|_, request| match request.contains("/long") {
        true => ok("hello, body"),
        false => ok("hello"),
    })
    .await;
    let plugins = || {
        vec![
            Plugin::of(()).header_filter(unsized_response).response_body(bracket).build(),
            Plugin::of(()).response_body(shout).build(),
        ]
    };
    for turned in [false, true] {
        let mut plugins = plugins();
        if turned {
            plugins.reverse();
        }
        let proxy = serve_chain(up.address, plugins).await;
        let (short, long) = (ask(proxy, &get("/")).await, ask(proxy, &get("/long")).await);
        assert!(short.contains("[HELLO]"), "{short}");
        assert!(long.contains("HELLO, BODY"), "{long}");
    }
}

#[tokio::test]
async fn a_response_that_a_plugin_refuses_is_cut() {
    let up = upstream(|_, request| ok(if request.contains("/bad") { "bad body" } else { "good body" })).await;
    let proxy = serve_chain(up.address, vec![Plugin::of(()).response_body(judge).build()]).await;
    assert!(ask(proxy, &get("/")).await.ends_with("good body"));
    let mut client = tokio::net::TcpStream::connect(proxy).await.unwrap();
    client.write_all(get("/bad").as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let _ = client.read_to_end(&mut all).await;
    let text = String::from_utf8_lossy(&all);
    assert!(text.starts_with("HTTP/1.1 200 ") && !text.contains("bad"), "{text}");
}

#[tokio::test]
async fn answers_of_the_proxy_wait_for_plugins_too() {
    fn deny<'a>(_: &'a (), _: &'a mut Stream, _: Slot) -> Step<'a> {
        Step::Respond(LocalReply::new(401, "bad answer", "denied"))
    }
    let up = upstream(|_, _| ok("never")).await;
    let plugins =
        vec![Plugin::of(()).access(deny).header_filter(unsized_response).response_body(shout).build()];
    let proxy = serve_chain(up.address, plugins).await;
    let response = ask(proxy, &get("/")).await;
    assert!(response.starts_with("HTTP/1.1 401 ") && response.contains("BAD ANSWER"), "{response}");
}

#[tokio::test]
async fn plugins_see_and_change_trailers_of_both_messages() {
    fn mark_request(_: &(), stream: &mut Stream, _: Slot) -> TrailersStep {
        stream.request_trailers.set("x-marked", b"up");
        TrailersStep::Continue
    }
    fn mark_response(_: &(), stream: &mut Stream, _: Slot) -> TrailersStep {
        let mut trailers = stream.response_trailers.clone();
        trailers.set("x-marked", b"down");
        TrailersStep::Wait(Box::pin(async {
            tokio::task::yield_now().await;
            TrailersStep::Replace(trailers)
        }))
    }
    let plugin = Plugin::of(()).request_trailers(mark_request).response_trailers(mark_response).build();
    let mut body = ask_with_trailers(plugin).await.into_body();
    while body.data().await.is_some() {}
    let got = body.trailers().await.unwrap().unwrap();
    assert_eq!((got["x-own"].as_bytes(), got["x-marked"].as_bytes()), (&b"1"[..], &b"down"[..]));
}

#[tokio::test]
async fn trailers_that_a_plugin_refuses_end_the_exchange() {
    fn refuse(_: &(), _: &mut Stream, _: Slot) -> TrailersStep {
        TrailersStep::Wait(Box::pin(async {
            tokio::task::yield_now().await;
            TrailersStep::Respond(Box::new(LocalReply::new(403, "bad", "refused")))
        }))
    }
    let response = ask_with_trailers(Plugin::of(()).request_trailers(refuse).build()).await;
    assert_eq!(response.status(), 403);
    // The head has gone out: the stream is cut.
    let response = ask_with_trailers(Plugin::of(()).response_trailers(refuse).build()).await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    while let Some(Ok(_)) = body.data().await {}
    assert!(body.trailers().await.is_err());
}

/// The answer to a request with trailers, by an upstream that sends them back with `x`.
async fn ask_with_trailers(plugin: Plugin) -> http::Response<h2::RecvStream> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(socket).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(Ok(_)) = body.data().await {}
                let Ok(Some(trailers)) = body.trailers().await else { return };
                let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                send.send_data("x".into(), false).unwrap();
                send.send_trailers(trailers).unwrap();
            });
        }
    });
    let mut builder = ChainBuilder::new();
    builder.add("trailers", plugin);
    let mut setup = Setup::new();
    setup.chain = Arc::new(builder.build());
    setup.cluster("a", &[address], |config| config.protocol = UpstreamProtocol::Http2);
    setup.route("/", "a", |_| {});
    let proxy = setup.serve().await.0;
    let socket = tokio::net::TcpStream::connect(proxy).await.unwrap();
    let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://t/").body(()).unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(b"hello"), false).unwrap();
    let sent = http::HeaderMap::from_iter([(http::HeaderName::from_static("x-own"), "1".parse().unwrap())]);
    body.send_trailers(sent).unwrap();
    response.await.unwrap()
}

/// The response may begin while most of a body in memory is still to be sent; the rest was lost.
#[tokio::test]
async fn a_body_that_a_plugin_has_read_goes_on_after_the_response_has_begun() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    const LENGTH: usize = 900_000;
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        socket.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        let mut body = vec![0; LENGTH];
        socket.read_exact(&mut body).await.unwrap();
        assert!(body.iter().all(|b| *b == b'z'));
        socket.write_all(b"5\r\nwhole\r\n0\r\n\r\n").await.unwrap();
        let _ = socket.read_u8().await;
    });
    let proxy = serve(address, |cluster| cluster.buffer_limit = 1000).await;
    let response = ask(proxy, &posts(&"z".repeat(LENGTH))[0]).await;
    assert!(response.contains("whole"), "{response}");
}

/// A hundred clients that stall in their bodies took a hundred times what one may.
#[tokio::test]
async fn bodies_that_plugins_read_share_one_budget() {
    let up = upstream(|_, request| ok(&request.split_once("\r\n\r\n").unwrap().1.len().to_string())).await;
    let mut setup = setup(up.address, |_| {});
    setup.options.body_budget = 300_000;
    let (hcm, worker) = setup.build();
    let bodies = worker.shared.bodies.clone();
    let (proxy, _) = common::serve(hcm.clone(), worker).await;
    let mut stalled = TcpStream::connect(proxy).await.unwrap();
    let half = "z".repeat(100_000);
    let head = "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 200000\r\n\r\n";
    stalled.write_all(format!("{head}{half}").as_bytes()).await.unwrap();
    eventually(|| bodies.used() >= 100_000).await;
    // There is no room for another one of its size, and for a small one there is.
    let post = &posts(&"y".repeat(250_000))[0];
    let mut refused = TcpStream::connect(proxy).await.unwrap();
    let _ = refused.write_all(post.as_bytes()).await;
    let mut response = String::new();
    let _ = refused.read_to_string(&mut response).await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert_eq!(hcm.stats.downstream_rq_overload_close().get(), 1);
    assert!(ask(proxy, &posts("small")[0]).await.ends_with("\r\n\r\n5"));
    // The first one is served, and gives its room back.
    stalled.write_all(half.as_bytes()).await.unwrap();
    assert!(read_message(&mut stalled).await.unwrap().ends_with("200000"));
    eventually(|| bodies.used() == 0).await;
    assert!(ask(proxy, post).await.ends_with("250000"));
}

/// What was kept for a retry stayed until the last byte of the response.
#[tokio::test]
async fn a_body_that_is_kept_for_a_retry_is_freed_when_the_response_begins() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (got, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (has, begin) = (got.clone(), go.clone());
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        read_message(&mut socket).await.unwrap();
        has.notify_one();
        begin.notified().await;
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab").await.unwrap();
        begin.notified().await;
        socket.write_all(b"cde").await.unwrap();
    });
    let mut setup = setup(address, |_| {});
    setup.chain = Arc::new(ChainBuilder::new().build());
    let (hcm, worker) = setup.build();
    let bodies = worker.shared.bodies.clone();
    let (proxy, _) = common::serve(hcm, worker).await;
    let post = posts(&"z".repeat(100_000))[0].clone();
    let asked = tokio::spawn(async move { ask(proxy, &post).await });
    got.notified().await;
    assert!(bodies.used() >= 100_000, "it is kept while there is no response");
    go.notify_one();
    eventually(|| bodies.used() == 0).await;
    assert!(!asked.is_finished());
    go.notify_one();
    assert!(asked.await.unwrap().ends_with("abcde"));
}

/// Holds what comes until the end.
fn whole(_: &(), _: &mut Stream, _: Slot, _: &BodyPiece<'_>) -> BodyStep {
    BodyStep::hold(1 << 20)
}

/// What plugins held of bodies that passed them was in no budget.
#[tokio::test]
async fn bodies_that_plugins_hold_share_the_budget() {
    let up = upstream(|_, request| {
        let length = if request.contains("/long") { 250_000 } else { 5 };
        ok(&"z".repeat(length))
    })
    .await;
    for of_request in [true, false] {
        let plugin = match of_request {
            true => Plugin::of(()).request_body(whole).build(),
            false => Plugin::of(()).response_body(whole).build(),
        };
        let mut builder = ChainBuilder::new();
        builder.add("whole", plugin);
        let (mut setup, lines) = (Setup::new(), Arc::<Lines>::default());
        setup.chain = Arc::new(builder.build());
        setup.cluster("a", &[up.address], |_| {});
        setup.route("/", "a", |_| {});
        setup.options.body_budget = 100_000;
        let format =
            Arc::new(Format::envoy("%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%").unwrap());
        setup.access_logs = vec![AccessLog { filter: None, format, sink: lines.clone() }];
        let (hcm, worker) = setup.build();
        let bodies = worker.shared.bodies.clone();
        let (proxy, _) = common::serve(hcm.clone(), worker).await;
        let (request, status) = match of_request {
            true => (posts(&"y".repeat(250_000))[0].clone(), 503),
            false => (get("/long"), 200),
        };
        let mut client = TcpStream::connect(proxy).await.unwrap();
        let _ = client.write_all(request.as_bytes()).await;
        let mut all = Vec::new();
        let _ = client.read_to_end(&mut all).await;
        let text = String::from_utf8_lossy(&all);
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")) && !text.contains("zz"), "{text}");
        eventually(|| !lines.0.lock().is_empty()).await;
        assert!(
            lines.0.lock()[0].starts_with(&format!("{status} OM buffered_bodies_over_budget")),
            "{lines:?}"
        );
        assert_eq!(hcm.stats.downstream_rq_overload_close().get(), 1);
        eventually(|| bodies.used() == 0).await;
        let small = if of_request { posts("small")[0].clone() } else { get("/") };
        assert!(ask(proxy, &small).await.ends_with("zzzzz"));
        eventually(|| bodies.used() == 0).await;
    }
}
