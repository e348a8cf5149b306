//! Clients and upstreams that stop in the middle: each wait has a limit, and it is charged to who is waited for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::clock::{StoppedClock, settle};
use common::*;
use sixfold_core::cluster::BreakerLimits;
use sixfold_core::hcm::{HttpStats, Profile};
use sixfold_core::plugin::{BodyPiece, BodyStep, ChainBuilder, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// A limit that passes in a test.
const SHORT: Duration = Duration::from_millis(250);
/// What timers are rounded by, and more.
const NEAR: Duration = Duration::from_millis(20);
/// Settled so often, all buffers between an upstream and a client that reads nothing are full.
const FILLING: usize = 50;
/// More than any buffer on the way holds.
const LARGE: usize = 32 << 20;

/// The statistics of the proxy, to see its connections end.
struct Seen(Arc<HttpStats>);

impl Seen {
    fn new(setup: &Setup) -> Seen {
        Seen(setup.stats.clone())
    }

    async fn no_connection_is_left(&self) {
        let start = Instant::now();
        assert!(self.0.downstream_cx_total().get() > 0);
        while self.0.downstream_cx_active().get() > 0 || self.0.downstream_rq_active().get() > 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "a connection stays");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A client that takes little before it stalls.
async fn stalled(proxy: SocketAddr, request: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut socket = socket.connect(proxy).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    // The first byte shows that an answer is on its way.
    socket.read_u8().await.unwrap();
    socket
}

/// An upstream with a response of `LARGE` bytes.
async fn large() -> SocketAddr {
    // Made before anybody asks: on a busy machine it takes longer than a client may wait.
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").into_bytes();
    let whole = [head, vec![b'x'; LARGE]].concat();
    upstream(move |_, _| whole.clone()).await.address
}

#[tokio::test]
async fn clients_that_read_no_more_are_closed() {
    for profile in [Profile::Envoy, Profile::Apisix] {
        let mut setup = Setup::new();
        setup.profile = profile;
        match profile {
            Profile::Envoy => setup.timeouts.stream_idle = Some(SHORT),
            Profile::Apisix => (setup.timeouts.stream_idle, setup.timeouts.send) = (None, Some(SHORT)),
        }
        setup.timeouts.delayed_close = SHORT;
        setup.cluster("a", &[large().await], |_| {});
        setup.route("/", "a", |f| f.timeouts.request = None);
        let body = bytes::Bytes::from(vec![b'y'; LARGE]);
        setup.routes.insert(0, direct("/local", body));
        let (seen, registry) = (Seen::new(&setup), setup.registry.clone());
        let (proxy, _) = setup.serve().await;
        for path in ["/", "/local"] {
            let stalled = stalled(proxy, &get(path)).await;
            seen.no_connection_is_left().await;
            drop(stalled);
        }
        // An answer that is short since the machine is busy ends in time.
        assert!(registry.sum("http.", "downstream_cx_delayed_close_timeout") > 0);
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_a_408_and_the_end() {
    let up = upstream(|_, _| ok("all")).await;
    let mut setup = Setup::new();
    setup.profile = Profile::Apisix;
    (setup.timeouts.stream_idle, setup.timeouts.body) = (None, Some(SHORT));
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let seen = Seen::new(&setup);
    let (proxy, _) = setup.serve().await;
    let mut socket = TcpStream::connect(proxy).await.unwrap();
    socket.write_all(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\nabc").await.unwrap();
    let response = read_message(&mut socket).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 408 ") && response.contains("Connection: close"), "{response}");
    seen.no_connection_is_left().await;
}

/// The shorter of `send` and `read` ended whatever was slow.
#[tokio::test]
async fn a_slow_client_is_not_charged_to_the_upstream() {
    let up = upstream(|_, request| ok(&request.len().to_string())).await;
    let mut setup = Setup::new();
    setup.profile = Profile::Apisix;
    setup.timeouts.stream_idle = None;
    setup.cluster("a", &[up.address], |_| {});
    setup.cluster("large", &[large().await], |_| {});
    for (path, cluster) in [("/large", "large"), ("/", "a")] {
        setup.route(path, cluster, |f| {
            f.timeouts.request = None;
            (f.timeouts.send, f.timeouts.read) = (Some(SHORT), Some(SHORT));
        });
    }
    let (proxy, _) = setup.serve().await;
    // No time passes but that of the client.
    let clock = StoppedClock::new();
    let mut socket = TcpStream::connect(proxy).await.unwrap();
    socket.write_all(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\n").await.unwrap();
    settle().await;
    for _ in 0..4 {
        clock.pass(SHORT * 2).await;
        socket.write_all(b"x").await.unwrap();
        settle().await;
    }
    let response = read_message(&mut socket).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200 OK"), "{response}");
    let mut reader = stalled(proxy, &get("/large")).await;
    // Until all buffers are full.
    for _ in 0..FILLING {
        settle().await;
    }
    clock.pass(SHORT * 4).await;
    // From here on it is quick: through so small a window the kernel's probes, which wait longer each time, may take minutes.
    socket2::SockRef::from(&reader).set_recv_buffer_size(4 << 20).unwrap();
    let mut left = LARGE;
    let mut piece = vec![0; 1 << 16];
    while left > 0 {
        let n = reader.read(&mut piece).await.unwrap();
        assert!(n > 0, "cut {left} bytes before the end");
        left = left.saturating_sub(n);
    }
}

#[tokio::test]
async fn an_upstream_that_owes_an_answer_has_its_time_from_the_end_of_the_request() {
    let up = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = Setup::new();
    setup.profile = Profile::Apisix;
    setup.cluster("a", &[up.local_addr().unwrap()], |_| {});
    setup.route("/", "a", |f| {
        (f.timeouts.send, f.timeouts.read) = (Some(Duration::from_millis(1)), Some(SHORT));
    });
    let (proxy, _) = setup.serve().await;
    let start = Instant::now();
    let response = ask(proxy, &get("/")).await;
    assert!(response.starts_with("HTTP/1.1 504 "), "{response}");
    assert!(start.elapsed() >= SHORT, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_silent_tunnel_ends_after_the_read_timeout_and_either_side_may_speak() {
    let up = upstream(|_, _| {
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".to_vec()
    })
    .await;
    let mut setup = Setup::new();
    setup.profile = Profile::Apisix;
    setup.timeouts.stream_idle = None;
    setup.cluster("a", &[up.address], |_| {});
    let read = SHORT * 4;
    setup.route("/", "a", |f| {
        (f.timeouts.send, f.timeouts.read) = (Some(Duration::from_millis(50)), Some(read));
        f.upgrades = Box::new([("websocket".into(), true)]);
    });
    let seen = Seen::new(&setup);
    let (proxy, _) = setup.serve().await;
    let clock = StoppedClock::new();
    let mut socket = TcpStream::connect(proxy).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let response = read_message(&mut socket).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 101 "), "{response}");
    settle().await;
    clock.pass(read / 2).await;
    socket.write_all(b"hello").await.unwrap();
    settle().await;
    clock.pass(read - NEAR).await;
    assert_eq!(seen.0.downstream_cx_active().get(), 1, "it ended too early");
    clock.pass(2 * NEAR).await;
    clock.go_on();
    seen.no_connection_is_left().await;
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest).await;
}

/// Telling HTTP/2 from HTTP/1 waited for the idle time, and then waiting for a request did.
#[tokio::test]
async fn a_connection_without_a_request_is_idle_once() {
    let mut setup = Setup::new();
    setup.timeouts.idle = Some(SHORT * 4);
    let seen = Seen::new(&setup);
    let (proxy, _) = setup.serve().await;
    let clock = StoppedClock::new();
    let mut socket = TcpStream::connect(proxy).await.unwrap();
    settle().await;
    clock.pass(SHORT * 4 - NEAR).await;
    assert_eq!(seen.0.downstream_cx_active().get(), 1, "it ended too early");
    clock.pass(SHORT * 4).await;
    assert_eq!(seen.0.downstream_cx_idle_timeout().get(), 1, "one wait, not two");
    clock.go_on();
    assert_eq!(socket.read(&mut [0; 1]).await.unwrap(), 0);
    seen.no_connection_is_left().await;
}

/// A client that was to wait for it heard it only where an upstream was, and only for a body. nginx forwards no request
/// before it has answered it.
#[tokio::test]
async fn a_client_that_expects_it_hears_100_before_anything_else() {
    for (profile, body, answers) in [
        (Profile::Envoy, "", 1),
        (Profile::Envoy, "body", 1),
        (Profile::Apisix, "", 0),
        (Profile::Apisix, "body", 0),
    ] {
        let mut setup = Setup::new();
        setup.profile = profile;
        setup.routes.push(direct("/local", bytes::Bytes::from_static(b"local")));
        let up = upstream(|_, request| ok(request.split_once("\r\n\r\n").unwrap().1)).await;
        setup.cluster("a", &[up.address], |_| {});
        setup.route("/", "a", |_| {});
        let (proxy, _) = setup.serve().await;
        for (path, answers, end) in [("/local", answers, "local"), ("/", 1, body)] {
            let mut socket = TcpStream::connect(proxy).await.unwrap();
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: t\r\nExpect: 100-Continue\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            socket.write_all(head.as_bytes()).await.unwrap();
            for _ in 0..answers {
                let interim = read_message(&mut socket).await.unwrap();
                assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n", "{profile:?} {path} {body}");
            }
            socket.write_all(body.as_bytes()).await.unwrap();
            let response = read_message(&mut socket).await.unwrap();
            assert!(response.starts_with("HTTP/1.1 200 OK") && response.ends_with(end), "{path}: {response}");
        }
    }
}

/// Small frames that nobody took yet used up what the HTTP/2 library allows them, and all streams ended.
#[tokio::test]
async fn stalled_streams_of_small_frames_leave_the_connection_to_others() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let up = upstream(|_, _| ok("alive")).await;
    let mut setup = Setup::new();
    setup.cluster("silent", &[silent.local_addr().unwrap()], |config| {
        // Whoever comes second waits for the first, and its body with it.
        config.breaker = BreakerLimits { max_connections: 1, ..BreakerLimits::default() };
    });
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/silent", "silent", |f| f.timeouts.request = None);
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    let (client, connection) = h2::client::handshake(TcpStream::connect(proxy).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let ask = |method: &str, path: &str| {
        http::Request::builder().method(method).uri(format!("http://t{path}")).body(()).unwrap()
    };
    let mut stalled = Vec::new();
    for _ in 0..5 {
        let (response, mut body) = client.send_request(ask("POST", "/silent"), false).unwrap();
        let (mut left, piece) = (200 << 10, bytes::Bytes::from_static(&[b'x'; 50]));
        body.reserve_capacity(left);
        while left > 0 {
            std::future::poll_fn(|cx| body.poll_capacity(cx)).await.unwrap().unwrap();
            while left > 0 && body.capacity() >= piece.len() {
                body.send_data(piece.clone(), false).unwrap();
                left = left.saturating_sub(piece.len());
            }
        }
        stalled.push((response, body));
        client = client.ready().await.unwrap();
    }
    let (response, _) = client.send_request(ask("GET", "/"), true).unwrap();
    let response = tokio::time::timeout(Duration::from_secs(20), response).await.unwrap();
    assert_eq!(response.expect("the connection lives").status(), 200);
    drop(stalled);
}

/// How long a route gives its upstream, and how long filters of the response take.
const ROUTE: Duration = Duration::from_millis(500);
const FILTER: Duration = Duration::from_millis(800);

fn slow_head<'a>(_: &'a (), stream: &'a mut Stream, _: Slot) -> Step<'a> {
    Step::Wait(Box::pin(async move {
        tokio::time::sleep(FILTER).await;
        stream.response.headers.set("x-seen", b"yes");
        Step::Continue
    }))
}

fn slow_body(_: &(), _: &mut Stream, _: Slot, piece: &BodyPiece<'_>) -> BodyStep {
    let bytes = bytes::Bytes::copy_from_slice(piece.data);
    BodyStep::Wait(Box::pin(async move {
        tokio::time::sleep(FILTER).await;
        BodyStep::Replace(bytes)
    }))
}

/// They were charged to the upstream, and the answer for its being late met the same deadline again: nobody got any.
#[tokio::test]
async fn the_time_of_filters_is_not_the_upstreams() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let up = upstream(|_, request| ok(if request.contains("/full") { "hello" } else { "" })).await;
    for of_head in [true, false] {
        let mut setup = Setup::new();
        let mut builder = ChainBuilder::new();
        let plugin = match of_head {
            true => Plugin::of(()).header_filter(slow_head).build(),
            false => Plugin::of(()).response_body(slow_body).build(),
        };
        builder.add("slow", plugin);
        setup.chain = Arc::new(builder.build());
        setup.cluster("silent", &[silent.local_addr().unwrap()], |_| {});
        setup.cluster("a", &[up.address], |_| {});
        setup.route("/silent", "silent", |f| f.timeouts.request = Some(ROUTE));
        setup.route("/", "a", |f| f.timeouts.request = Some(ROUTE));
        let (proxy, _) = setup.serve().await;
        for (path, status, end) in [
            ("/full", 200, "\r\n\r\nhello"),
            ("/empty", 200, "\r\n\r\n"),
            ("/silent", 504, "upstream request timeout"),
        ] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
            let response = whole(proxy, &request).await;
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{of_head} {path}: {response}");
            assert!(response.ends_with(end), "{of_head} {path}: {response}");
            assert_eq!(response.contains("x-seen: yes"), of_head, "{path}: {response}");
        }
    }
}

/// The same of the longest time that a stream may have.
#[tokio::test]
async fn an_answer_for_a_stream_that_took_too_long_passes_filters_that_wait() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = Setup::new();
    let mut builder = ChainBuilder::new();
    builder.add("slow", Plugin::of(()).header_filter(slow_head).build());
    setup.chain = Arc::new(builder.build());
    setup.timeouts.max_stream = Some(SHORT);
    setup.cluster("silent", &[silent.local_addr().unwrap()], |_| {});
    setup.route("/", "silent", |_| {});
    let (proxy, _) = setup.serve().await;
    let response = whole(proxy, "GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").await;
    assert!(response.contains("x-seen: yes"), "{response}");
}
