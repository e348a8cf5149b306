//! Tunnels over either version of HTTP on either side: upgrades, extended CONNECT (RFC 8441), CONNECT that is passed on
//! and CONNECT that ends here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::clock::{StoppedClock, settle};
use common::*;
use h2::ext::Protocol;
use sixfold_core::cluster::{ClusterCell, UpstreamProtocol};
use sixfold_core::hcm::Profile;
use sixfold_core::headers::HeaderRules;
use sixfold_core::retry::RetryPolicy;
use sixfold_core::route::{Action, ClusterChoice, Forward, ForwardOptions, PathMatch, Route};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What an upstream still says when the client has ended its side.
const LEAVE: &[u8] = b"bye";

/// Sends back what comes, after `greeting` and whatever `head` ends; takes leave once the other side has ended.
async fn echo(head: bool, greeting: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while head && !seen.ends_with(b"\r\n\r\n") {
                    seen.push(socket.read_u8().await.unwrap());
                }
                let line = String::from_utf8_lossy(&seen).lines().next().unwrap_or_default().to_owned();
                socket.write_all(greeting.replace("LINE", &line).as_bytes()).await.unwrap();
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.write_all(LEAVE).await;
            });
        }
    });
    address
}

/// An HTTP/2 server that takes every CONNECT, says what it was asked for, and sends back what comes, with a leave like the
/// other's.
async fn echo_http2(extended: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let mut builder = h2::server::Builder::new();
            if extended {
                builder.enable_connect_protocol();
            }
            tokio::spawn(async move {
                let mut server = builder.handshake::<_, Bytes>(socket).await.unwrap();
                while let Some(Ok((request, mut respond))) = server.accept().await {
                    tokio::spawn(async move {
                        let protocol = request.extensions().get::<Protocol>().map(Protocol::as_str);
                        let asked = format!(
                            "{} {} {}",
                            request.method(),
                            protocol.unwrap_or("-"),
                            request.headers().contains_key("upgrade")
                        );
                        let response = http::Response::builder().header("x-asked", asked).body(()).unwrap();
                        let mut send = respond.send_response(response, false).unwrap();
                        let mut body = request.into_body();
                        while let Some(Ok(data)) = body.data().await {
                            let _ = body.flow_control().release_capacity(data.len());
                            send.send_data(data, false).unwrap();
                        }
                        let _ = send.send_data(Bytes::from_static(LEAVE), true);
                    });
                }
            });
        }
    });
    address
}

/// A proxy with one cluster, which CONNECT and everything else goes to.
async fn proxy(upstream: SocketAddr, http2: bool, ends: bool) -> SocketAddr {
    counted_proxy(upstream, http2, ends).await.0
}

/// The same with the cluster.
async fn counted_proxy(upstream: SocketAddr, http2: bool, ends: bool) -> (SocketAddr, Arc<ClusterCell>) {
    let mut setup = Setup::new();
    setup.upgrades = Box::new([("websocket".into(), true), ("connect".into(), true)]);
    setup.http2.allow_connect = true;
    setup.cluster("a", &[upstream], |config| {
        if http2 {
            config.protocol = UpstreamProtocol::Http2;
        }
    });
    let to = ClusterChoice::Named(setup.clusters.cell("a"));
    let options = ForwardOptions { connect_tcp: ends, ..ForwardOptions::default() };
    let forward = Forward { options: options.into(), ..Forward::to(to) };
    let connect = Route { path: PathMatch::Connect, ..route("/", Action::Forward(forward)) };
    setup.routes.push(Arc::new(connect));
    setup.route("/", "a", |_| {});
    let cell = setup.clusters.cell("a");
    (setup.serve().await.0, cell)
}

/// Sends the head and, once that is answered, some bytes; answers the head and the bytes that come back.
async fn over_http1(proxy: SocketAddr, head: &str) -> (String, String) {
    let mut socket = TcpStream::connect(proxy).await.unwrap();
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(socket.read_u8().await.unwrap());
    }
    socket.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    socket.read_exact(&mut bytes).await.unwrap();
    (String::from_utf8(answer).unwrap(), String::from_utf8_lossy(&bytes).into_owned())
}

/// A client that the server's settings have reached, as far as `request` needs them: they say whether it knows extended
/// CONNECT.
async fn http2_client(proxy: SocketAddr, request: &http::Request<()>) -> h2::client::SendRequest<Bytes> {
    let socket = TcpStream::connect(proxy).await.unwrap();
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let client = client.ready().await.unwrap();
    while request.extensions().get::<Protocol>().is_some() && !client.is_extended_connect_protocol_enabled() {
        tokio::task::yield_now().await;
    }
    client
}

/// The same over HTTP/2.
async fn over_http2(proxy: SocketAddr, request: http::Request<()>) -> (http::response::Parts, String) {
    let mut client = http2_client(proxy, &request).await;
    let (response, mut send) = client.send_request(request, false).unwrap();
    let (parts, mut body) = response.await.unwrap().into_parts();
    send.send_data(Bytes::from_static(b"ping"), false).unwrap();
    let mut bytes = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        bytes.extend_from_slice(&data);
        if bytes.ends_with(b"ping") {
            break;
        }
    }
    (parts, String::from_utf8_lossy(&bytes).into_owned())
}

/// Over HTTP/2, sends some bytes and ends its side with them, or with the head where there are none; answers all that
/// comes back until the other side ends too.
async fn half_closed_over_http2(proxy: SocketAddr, request: http::Request<()>, bytes: Bytes) -> Vec<u8> {
    let mut client = http2_client(proxy, &request).await;
    let (response, mut send) = client.send_request(request, bytes.is_empty()).unwrap();
    let mut body = response.await.unwrap().into_body();
    if !bytes.is_empty() {
        send.send_data(bytes, true).unwrap();
    }
    let mut answer = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.expect("the tunnel goes on until both sides have ended");
        let _ = body.flow_control().release_capacity(data.len());
        answer.extend_from_slice(&data);
    }
    answer
}

const WEBSOCKET: &str = "GET /chat HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
const CONNECT: &str = "CONNECT h.test:443 HTTP/1.1\r\nHost: h.test:443\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX-Line: LINE\r\n\r\n";

fn extended() -> http::Request<()> {
    let request = http::Request::builder().method("CONNECT").uri("http://t/chat");
    request.extension(Protocol::from_static("websocket")).body(()).unwrap()
}

fn connect() -> http::Request<()> {
    http::Request::builder().method("CONNECT").uri("h.test:443").body(()).unwrap()
}

/// The request went on as CONNECT with the authority for a path.
#[tokio::test]
async fn extended_connect_is_an_upgrade_over_http1() {
    let proxy = proxy(echo(true, SWITCHED).await, false, false).await;
    let (head, bytes) = over_http2(proxy, extended()).await;
    assert_eq!((head.status.as_u16(), &*bytes), (200, "ping"));
    assert_eq!(head.headers["x-line"], "GET /chat HTTP/1.1");
    assert!(!head.headers.contains_key("upgrade") && !head.headers.contains_key("connection"));
}

/// An upgrade was an ordinary request over HTTP/2, and its bytes went nowhere.
#[tokio::test]
async fn an_upgrade_is_extended_connect_over_http2() {
    let proxy = proxy(echo_http2(true).await, true, false).await;
    let (head, bytes) = over_http1(proxy, WEBSOCKET).await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
    assert!(head.contains("x-asked: CONNECT websocket false\r\n"), "{head}");
    assert_eq!(bytes, "ping");
    let (head, bytes) = over_http2(proxy, extended()).await;
    assert_eq!((head.status.as_u16(), &*bytes), (200, "ping"));
    assert_eq!(head.headers["x-asked"], "CONNECT websocket false");
}

#[tokio::test]
async fn an_upstream_without_extended_connect_gets_no_upgrade() {
    let proxy = proxy(echo_http2(false).await, true, false).await;
    let answer = ask(proxy, WEBSOCKET).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("local reset"), "{answer}");
}

#[tokio::test]
async fn connect_is_passed_on_over_both_versions() {
    let http1 = proxy(echo(true, "HTTP/1.1 200 OK\r\nX-Line: LINE\r\n\r\n").await, false, false).await;
    let http2 = proxy(echo_http2(false).await, true, false).await;
    let (head, bytes) = over_http1(http1, CONNECT).await;
    assert!(head.contains("x-line: CONNECT h.test:443 HTTP/1.1\r\n") && bytes == "ping", "{head}");
    let (head, bytes) = over_http2(http1, connect()).await;
    assert_eq!((head.headers["x-line"].as_bytes(), &*bytes), (&b"CONNECT h.test:443 HTTP/1.1"[..], "ping"));
    let (head, bytes) = over_http1(http2, CONNECT).await;
    assert!(
        head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("x-asked: CONNECT - false\r\n"),
        "{head}"
    );
    assert_eq!(bytes, "ping");
    let (head, bytes) = over_http2(http2, connect()).await;
    assert_eq!((head.headers["x-asked"].as_bytes(), &*bytes), (&b"CONNECT - false"[..], "ping"));
}

/// `connect_config` was refused.
#[tokio::test]
async fn connect_ends_here_where_the_route_says_so() {
    let proxy = proxy(echo(false, "").await, false, true).await;
    let (head, bytes) = over_http1(proxy, CONNECT).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && !head.contains("content-length"), "{head}");
    assert_eq!(bytes, "ping");
    let (head, bytes) = over_http2(proxy, connect()).await;
    assert_eq!((head.status.as_u16(), &*bytes), (200, "ping"));
}

/// The end of the client's side destroyed the tunnel, and what the upstream had still to say was lost.
#[tokio::test]
async fn a_client_of_http2_ends_its_side_alone() {
    let connected = "HTTP/1.1 200 OK\r\n\r\n";
    let http2 = proxy(echo_http2(true).await, true, false).await;
    let tunnels = [
        ("CONNECT that ends here", proxy(echo(false, "").await, false, true).await, connect()),
        ("CONNECT over HTTP/1", proxy(echo(true, connected).await, false, false).await, connect()),
        ("CONNECT over HTTP/2", http2, connect()),
        ("an upgrade over HTTP/1", proxy(echo(true, SWITCHED).await, false, false).await, extended()),
        ("an upgrade over HTTP/2", http2, extended()),
    ];
    // The last is more than buffers hold: it goes to the upstream whole before the end does.
    for len in [0, 4, 4 << 20] {
        let bytes = Bytes::from(vec![b'x'; len]);
        for (name, proxy, request) in &tunnels {
            let answer = half_closed_over_http2(*proxy, request.clone(), bytes.clone()).await;
            assert_eq!(answer.len(), len + LEAVE.len(), "{name}, {len} bytes");
            assert!(answer.starts_with(&bytes) && answer.ends_with(LEAVE), "{name}, {len} bytes");
        }
    }
}

/// Over HTTP/1 the end of the connection is all that tells of a client that has gone.
#[tokio::test]
async fn a_client_of_http1_ends_both_sides() {
    let proxy = proxy(echo(false, "").await, false, true).await;
    let mut socket = TcpStream::connect(proxy).await.unwrap();
    socket.write_all(CONNECT.as_bytes()).await.unwrap();
    socket.write_all(b"ping").await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\nping") {
        seen.push(socket.read_u8().await.unwrap());
    }
    socket.shutdown().await.unwrap();
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "{rest:?}");
}

/// Nothing bounded the wait for a 101: the request of a WebSocket has no end, from which its timeouts would run.
#[tokio::test]
async fn a_silent_upstream_of_a_websocket_meets_the_timeouts_of_its_route() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = Setup::new();
    setup.upgrades = Box::new([("websocket".into(), true)]);
    setup.cluster("a", &[silent.local_addr().unwrap()], |_| {});
    let short = Some(Duration::from_millis(200));
    setup.route("/once", "a", |forward| forward.timeouts.request = short);
    setup.route("/twice", "a", |forward| {
        forward.timeouts.request = Some(Duration::from_secs(20));
        let policy = Arc::into_inner(retry("5xx", 1).unwrap()).unwrap();
        forward.retry = Some(Arc::new(RetryPolicy { per_try_timeout: short, ..policy }));
    });
    let proxy = setup.serve().await.0;
    for (path, attempts) in [("/once", 1), ("/twice", 2)] {
        let answer = whole(proxy, &WEBSOCKET.replace("/chat", path)).await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{path}: {answer}");
        for _ in 0..attempts {
            silent.accept().await.unwrap();
        }
    }
}

/// Once the upstream has agreed the tunnel lives on.
#[tokio::test]
async fn an_open_websocket_outlives_the_timeout_of_its_route() {
    let mut setup = Setup::new();
    setup.upgrades = Box::new([("websocket".into(), true)]);
    setup.cluster("a", &[echo(true, SWITCHED).await], |_| {});
    setup.route("/", "a", |forward| forward.timeouts.request = Some(Duration::from_millis(200)));
    let proxy = setup.serve().await.0;
    let clock = StoppedClock::new();
    let mut socket = TcpStream::connect(proxy).await.unwrap();
    socket.write_all(WEBSOCKET.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    settle().await;
    clock.pass(Duration::from_millis(500)).await;
    clock.go_on();
    socket.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    socket.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
}

/// A proxy that lets WebSockets through to an upstream.
async fn websockets(profile: Profile, up: &Upstream) -> SocketAddr {
    let mut setup = Setup::new();
    setup.profile = profile;
    if profile == Profile::Apisix {
        setup.header_rules = HeaderRules::APISIX;
    }
    setup.upgrades = Box::new([("websocket".into(), true)]);
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    setup.serve().await.0
}

const WITH_LENGTH: &str =
    "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc";
const IN_CHUNKS: &str = "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";

/// The body of a request for a WebSocket was thrown away; nginx passes it on before it looks for the 101.
#[tokio::test]
async fn apisix_passes_the_body_of_an_upgrade_on() {
    let up = upstream(|_, request| match request.contains("/declines") {
        true => ok(request),
        false => [b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", request.as_bytes()]
            .concat(),
    })
    .await;
    let proxy = websockets(Profile::Apisix, &up).await;
    for (request, end) in [(WITH_LENGTH, "\r\n\r\nabc"), (IN_CHUNKS, "\r\n\r\n3\r\nabc\r\n0\r\n\r\n")] {
        let mut client = TcpStream::connect(proxy).await.unwrap();
        // Bytes of the tunnel may come with the request.
        client.write_all(format!("{request}GET /tunnel HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        // The upstream's first message is the request; what follows it is of the tunnel.
        while !answer.contains(end) {
            let mut piece = [0; 4096];
            let read = client.read(&mut piece);
            let got = tokio::time::timeout(Duration::from_secs(10), read).await.expect(&answer).unwrap();
            assert_ne!(got, 0, "{answer}");
            answer.push_str(std::str::from_utf8(&piece[..got]).unwrap());
        }
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(!answer.contains("Content-Length: 0"), "{answer}");
    }
    // Turned down, it is a request like any other, and the connection has the next.
    let mut client = TcpStream::connect(proxy).await.unwrap();
    for request in [WITH_LENGTH, IN_CHUNKS, WITH_LENGTH] {
        let request = request.replace("POST /", "POST /declines");
        client.write_all(request.as_bytes()).await.unwrap();
        let answer = read_message(&mut client).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("abc"), "{answer}");
    }
    assert!(up.connections.load(std::sync::atomic::Ordering::SeqCst) <= 3, "connections go on");
}

/// Envoy leaves the length of an upgrade as it is; all that follows waits for the answer.
#[tokio::test]
async fn envoy_passes_the_length_of_an_upgrade_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let up = Upstream { address, connections: Arc::default(), requests: Arc::default() };
    let proxy = websockets(Profile::Envoy, &up).await;
    let head_of = async |socket: &mut TcpStream| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap()
    };
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(WITH_LENGTH.as_bytes()).await.unwrap();
    let mut upstream = listener.accept().await.unwrap().0;
    let head = head_of(&mut upstream).await;
    assert!(head.contains("content-length: 3\r\n"), "{head}");
    upstream.write_all(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n").await.unwrap();
    let mut body = [0; 3];
    upstream.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"abc");
    // An upstream that declines waits for three bytes: they must not be those of another request.
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(WITH_LENGTH.as_bytes()).await.unwrap();
    let mut upstream = listener.accept().await.unwrap().0;
    head_of(&mut upstream).await;
    upstream.write_all(&status(403)).await.unwrap();
    assert!(read_message(&mut client).await.unwrap().starts_with("HTTP/1.1 403 "));
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), upstream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.is_empty(), "{rest:?}");
}

/// Without an Upgrade field a 101 opened a tunnel; Envoy takes it for a response without a body.
#[tokio::test]
async fn a_switch_to_no_protocol_is_no_tunnel_of_envoys() {
    let up = upstream(|_, _| b"HTTP/1.1 101 S\r\n\r\nabc".to_vec()).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let answer = whole(websockets(Profile::Envoy, &up).await, request).await;
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
    assert!(answer.contains("connection: close\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    let half = upstream(|_, _| b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\nabc".to_vec()).await;
    let answer = whole(websockets(Profile::Envoy, &half).await, request).await;
    assert!(answer.contains("connection: close\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

/// The end of an upstream's bytes, which ends the tunnel, was called the upstream's own, of nothing under way. Recorded from
/// Envoy.
#[tokio::test]
async fn the_end_of_connect_is_counted_by_who_ends_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (proxy, cell) = counted_proxy(listener.local_addr().unwrap(), false, true).await;
    let counted = async |ends: [u64; 4]| {
        eventually(|| {
            let cluster = cell.load().unwrap();
            let stats = &cluster.stats;
            let now = [
                stats.upstream_cx_destroy_local(),
                stats.upstream_cx_destroy_local_with_active_rq(),
                stats.upstream_cx_destroy_remote(),
                stats.upstream_cx_destroy_remote_with_active_rq(),
            ];
            now.map(|counter| counter.get()) == ends
        })
        .await;
    };
    let open = async || {
        let mut client = http2_client(proxy, &connect()).await;
        let (response, send) = client.send_request(connect(), false).unwrap();
        let body = response.await.unwrap().into_body();
        (client, send, body, listener.accept().await.unwrap().0)
    };
    let (_client, mut send, mut body, mut upstream) = open().await;
    send.send_data(Bytes::new(), true).unwrap();
    assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0);
    drop(upstream);
    while body.data().await.is_some_and(|data| data.is_ok()) {}
    counted([0, 0, 1, 0]).await;
    let (_client, mut send, mut body, upstream) = open().await;
    drop(upstream);
    while body.data().await.is_some_and(|data| data.is_ok()) {}
    // The tunnel may be gone.
    let _ = send.send_data(Bytes::new(), true);
    counted([1, 1, 1, 0]).await;
    let (_client, mut send, _body, _upstream) = open().await;
    send.send_reset(h2::Reason::CANCEL);
    counted([2, 2, 1, 0]).await;
    let (_client, _send, _body, upstream) = open().await;
    upstream.set_zero_linger().unwrap();
    drop(upstream);
    counted([2, 2, 2, 1]).await;
}
