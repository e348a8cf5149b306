//! Copies of requests for mirrors: what they get, and that nothing that becomes of them touches the request.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use parking_lot::Mutex;
use sixfold_core::cluster::UpstreamProtocol;
use sixfold_core::metrics::Registry;
use sixfold_core::route::{ClusterChoice, ForwardOptions, MirrorPolicy};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// What an upstream was sent.
type Seen = Arc<Mutex<Vec<String>>>;

/// An upstream that answers everything, and what it was sent.
async fn recording(answer: impl Fn(usize) -> Vec<u8> + Send + Sync + 'static) -> (Upstream, Seen) {
    let seen = Seen::default();
    let sent = seen.clone();
    let up = upstream(move |number, request| {
        sent.lock().push(request.to_owned());
        answer(number)
    })
    .await;
    (up, seen)
}

/// A proxy whose requests go to `a`, and copies to the mirrors.
struct Mirrored {
    setup: Setup,
}

impl Mirrored {
    fn new(a: SocketAddr, mirrors: &[SocketAddr]) -> Mirrored {
        let mut setup = Setup::new();
        setup.cluster("a", &[a], |_| {});
        for (number, address) in mirrors.iter().enumerate() {
            setup.cluster(&format!("m{number}"), &[*address], |_| {});
        }
        Mirrored { setup }
    }

    fn route(mut self, names: &[&str], change: impl FnOnce(&mut ForwardOptions)) -> Mirrored {
        let to = |name: &&str| MirrorPolicy::to(ClusterChoice::Named(self.setup.clusters.cell(name)));
        let mirrors: Vec<_> = names.iter().map(to).collect();
        self.setup.route("/", "a", |forward| {
            forward.mirrors = Some(mirrors.into());
            change(forward);
        });
        self
    }

    async fn serve(self) -> (SocketAddr, Registry) {
        let registry = self.setup.registry.clone();
        (self.setup.serve().await.0, registry)
    }
}

/// What is counted of a cluster, without the share of responses that is counted apart as well.
fn counted(registry: &Registry, cluster: &str, name: &str) -> u64 {
    let apart = registry.sum(&format!("cluster.{cluster}.internal."), name);
    let external = registry.sum(&format!("cluster.{cluster}.external."), name);
    registry.sum(&format!("cluster.{cluster}."), name) - apart - external
}

/// A peer that takes connections and what `reads` bytes of them, and says nothing.
async fn silent(reads: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; reads];
            let _ = socket.read_exact(&mut bytes).await;
            held.push(socket);
        }
    });
    address
}

#[tokio::test]
async fn mirrors_get_the_request_once_and_their_answers_go_nowhere() {
    let (a, sent) = recording(|number| if number == 0 { status(503) } else { ok("answer") }).await;
    let (one, first) = recording(|_| status(500)).await;
    let (two, second) = recording(|_| ok("nobody reads this")).await;
    let mirrored = Mirrored::new(a.address, &[one.address, two.address]);
    let (proxy, registry) =
        mirrored.route(&["m0", "m1", "nowhere"], |f| f.retry = retry("5xx", 1)).serve().await;
    let response = ask(proxy, "POST /p?q HTTP/1.1\r\nHost: h:80\r\nContent-Length: 5\r\n\r\nhello").await;
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("answer"), "{response}");
    eventually(|| first.lock().len() == 1 && second.lock().len() == 1).await;
    assert_eq!(sent.lock().len(), 2, "the retry is nothing to the mirrors");
    for copy in [&first.lock()[0], &second.lock()[0]] {
        assert!(copy.starts_with("POST /p?q HTTP/1.1\r\nhost: h-shadow:80\r\n"), "{copy}");
        assert!(copy.contains("\r\nx-envoy-internal: true\r\n") && copy.ends_with("\r\n\r\nhello"), "{copy}");
    }
    // Their connections go back to the pools.
    ask(proxy, &get("/")).await;
    eventually(|| first.lock().len() == 2 && second.lock().len() == 2).await;
    eventually(|| counted(&registry, "m1", "upstream_rq_active") == 0).await;
    assert_eq!((one.connections.load(SeqCst), two.connections.load(SeqCst)), (1, 1));
    let of = |cluster, name| counted(&registry, cluster, name);
    assert_eq!(
        (of("m0", "upstream_rq_total"), of("m0", "upstream_rq_5xx"), of("m1", "upstream_rq_2xx")),
        (2, 2, 2)
    );
}

/// They counted by the status of HTTP, whatever that of gRPC was.
#[tokio::test]
async fn what_a_mirror_says_counts_for_its_endpoint() {
    let (a, _) = recording(|_| ok("")).await;
    let calls = ["grpc-status: 0\r\n", "grpc-status: 14\r\n", ""];
    let (mirror, seen) = recording(move |number| {
        let status = calls.get(number).copied().unwrap_or_default();
        format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{status}\r\n").into_bytes()
    })
    .await;
    let mirrored = Mirrored::new(a.address, &[mirror.address]).route(&["m0"], |_| {});
    let endpoint =
        mirrored.setup.clusters.cell("m0").load().unwrap().hosts.load().iter().next().unwrap().host.clone();
    let (proxy, _) = mirrored.serve().await;
    let call = "GET /s/m HTTP/1.1\r\nHost: h\r\ncontent-type: application/grpc\r\nconnection: close\r\n\r\n";
    let counts = || [&endpoint.succeeded_requests, &endpoint.failed_requests].map(|count| count.load(SeqCst));
    for expected in [[1, 0], [1, 1], [1, 2]] {
        ask(proxy, call).await;
        eventually(|| counts().iter().sum::<u64>() == expected.iter().sum::<u64>()).await;
        assert_eq!(counts(), expected);
    }
    assert_eq!(seen.lock().len(), 3);
}

/// A chunked body is passed on piece by piece, with its trailers, before the request is complete.
#[tokio::test]
async fn bodies_stream_to_mirrors_with_their_trailers() {
    let (a, _) = recording(|_| ok("")).await;
    let (mirror, address) = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    };
    let mut mirrored = Mirrored::new(a.address, &[address]);
    mirrored.setup.http1.enable_trailers = true;
    mirrored.setup.cluster("m0", &[address], |config| config.http1.enable_trailers = true);
    let (proxy, registry) = mirrored.route(&["m0"], |_| {}).serve().await;
    let mut client = TcpStream::connect(proxy).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let (mut copy, _) = mirror.accept().await.unwrap();
    let mut got = String::new();
    let mut read_until = async |copy: &mut TcpStream, end: &str| {
        while !got.ends_with(end) {
            got.push(char::from(copy.read_u8().await.unwrap()));
        }
        got.clone()
    };
    read_until(&mut copy, "3\r\nabc\r\n").await;
    client.write_all(b"2\r\nde\r\n0\r\nx-t: 1\r\n\r\n").await.unwrap();
    let all = read_until(&mut copy, "2\r\nde\r\n0\r\nx-t: 1\r\n\r\n").await;
    assert!(all.contains("transfer-encoding: chunked\r\n"), "{all}");
    assert!(read_message(&mut client).await.unwrap().starts_with("HTTP/1.1 200 "));
    copy.write_all(&ok("x")).await.unwrap();
    eventually(|| counted(&registry, "m0", "upstream_rq_2xx") == 1).await;
}

/// A mirror that reads nothing would hold up the client in Envoy.
#[tokio::test]
async fn a_mirror_that_is_slow_is_given_up_and_holds_up_nobody() {
    let (a, sent) = recording(|_| ok("done")).await;
    let slow = silent(10).await;
    let (proxy, registry) =
        Mirrored::new(a.address, &[slow]).route(&["m0"], |f| f.timeouts.request = None).serve().await;
    let body = "z".repeat(12 << 20);
    let request = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let response = ask(proxy, &request).await;
    assert!(response.ends_with("done"), "{response}");
    assert!(sent.lock()[0].ends_with(&body));
    eventually(|| counted(&registry, "m0", "upstream_rq_active") == 0).await;
    assert_eq!(counted(&registry, "a", "retry_or_shadow_abandoned"), 1);
    assert_eq!(counted(&registry, "m0", "upstream_cx_active"), 0, "half a request is no request");
}

/// Little is on the way to it.
fn with_a_small_window() -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket.listen(8).unwrap()
}

/// Its time ran from when it had first been full, though it took pieces all the while.
#[tokio::test]
async fn a_mirror_that_is_late_and_goes_on_taking_gets_the_whole_body() {
    const PIECE: usize = 64 << 10;
    // More than the system keeps for a socket.
    const AHEAD: usize = 96 * PIECE;
    const WHOLE: usize = AHEAD + 150 * PIECE;
    let (a, _) = recording(|_| ok("done")).await;
    let late = with_a_small_window();
    let mut late_one = Mirrored::new(a.address, &[late.local_addr().unwrap()]);
    late_one.setup.buffer_limit = 32 << 20;
    let (proxy, registry) =
        late_one.route(&["m0"], |f| f.timeouts.request = Some(Duration::from_secs(2))).serve().await;
    let (took, mut taken) = tokio::sync::mpsc::channel(1000);
    let mirror = tokio::spawn(async move {
        let (mut copy, _) = late.accept().await.unwrap();
        let mut piece = vec![0; PIECE];
        while copy.read_exact(&mut piece).await.is_ok() {
            let _ = took.send(()).await;
            // Longer than that for all of them.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client
        .write_all(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {WHOLE}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    client.write_all(&vec![b'z'; AHEAD]).await.unwrap();
    // From here on it is behind by as much as sockets can't take.
    for _ in 0..150 {
        taken.recv().await.expect("the copy goes on");
        client.write_all(&[b'z'; PIECE]).await.unwrap();
    }
    assert!(read_message(&mut client).await.unwrap().starts_with("HTTP/1.1 200 "));
    assert_eq!(counted(&registry, "m0", "upstream_rq_timeout"), 0);
    assert_eq!(counted(&registry, "a", "retry_or_shadow_abandoned"), 0);
    mirror.abort();
}

/// Its time began when it had taken the end of the body, which it never did: the copy and what it held stayed for ever.
#[tokio::test]
async fn a_mirror_that_stops_in_the_middle_of_a_body_is_given_up_in_time() {
    let (a, _) = recording(|_| ok("done")).await;
    // That of the request itself, too.
    let limit = Some(Duration::from_secs(3));
    let stopped = with_a_small_window();
    let (proxy, registry) = Mirrored::new(a.address, &[stopped.local_addr().unwrap()])
        .route(&["m0"], |f| f.timeouts.request = limit)
        .serve()
        .await;
    // More than sockets and the connection's own buffer take, and less than may wait for a mirror besides.
    let body = "z".repeat(4_400_000);
    let request = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for _ in 0..3 {
        let response = ask(proxy, &request).await;
        assert!(response.ends_with("done"), "{response}");
    }
    eventually(|| counted(&registry, "m0", "upstream_rq_active") == 0).await;
    let given_up = counted(&registry, "a", "retry_or_shadow_abandoned");
    assert_eq!(given_up + counted(&registry, "m0", "upstream_rq_timeout"), 3);
    assert_eq!(counted(&registry, "m0", "upstream_cx_active"), 0);
}

#[tokio::test]
async fn mirrors_that_fail_hang_or_are_not_there_change_nothing() {
    let (a, _) = recording(|_| ok("answer")).await;
    let (closer, _) = recording(|_| Vec::new()).await;
    let dead = nobody();
    let hanging = silent(0).await;
    let mut mirrored = Mirrored::new(a.address, &[closer.address, dead, hanging]);
    mirrored.setup.cluster("empty", &[], |_| {});
    let names = ["m0", "m1", "m2", "empty", "nowhere"];
    let limit = Some(Duration::from_secs(3));
    let (proxy, registry) = mirrored.route(&names, |f| f.timeouts.request = limit).serve().await;
    for _ in 0..3 {
        let response = ask(proxy, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab").await;
        assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("answer"), "{response}");
    }
    let of = |cluster, name| counted(&registry, cluster, name);
    eventually(|| of("m2", "upstream_rq_timeout") == 3).await;
    for name in ["m0", "m1", "m2"] {
        assert_eq!(of(name, "upstream_rq_active"), 0, "{name}");
        assert_eq!(of(name, "upstream_rq_5xx"), 3, "{name}");
    }
    assert_eq!((of("empty", "upstream_cx_none_healthy"), of("empty", "upstream_rq_5xx")), (3, 3));
    assert_eq!(of("m2", "upstream_cx_active"), 0);
}

/// The breakers of a mirror's cluster hold for copies: one that waits for a connection is bounded like any request.
#[tokio::test]
async fn breakers_of_the_mirrors_cluster_hold() {
    let (a, _) = recording(|_| ok("answer")).await;
    let hanging = silent(0).await;
    let mut mirrored = Mirrored::new(a.address, &[]);
    mirrored.setup.cluster("m0", &[hanging], |config| {
        config.breaker.max_connections = 1;
        config.breaker.max_pending = 1;
    });
    // All of them come before the first is over.
    let limit = Some(Duration::from_secs(3));
    let (proxy, registry) = mirrored.route(&["m0"], |f| f.timeouts.request = limit).serve().await;
    let of = |name| counted(&registry, "m0", name);
    assert!(ask(proxy, &get("/")).await.ends_with("answer"));
    eventually(|| of("upstream_rq_total") == 1).await;
    for _ in 1..5 {
        assert!(ask(proxy, &get("/")).await.ends_with("answer"));
    }
    eventually(|| of("upstream_rq_pending_overflow") == 3).await;
    assert_eq!(of("upstream_rq_pending_total"), 2, "what is refused does not wait");
    eventually(|| of("upstream_rq_timeout") == 2).await;
    assert_eq!((of("upstream_rq_active"), of("upstream_rq_pending_active")), (0, 0));
}

/// A client that leaves in the middle takes its copies with it; one that was served leaves them alone.
#[tokio::test]
async fn a_copy_of_half_a_request_goes_with_it() {
    let (a, _) = recording(|_| ok("answer")).await;
    let hanging = silent(0).await;
    let (proxy, registry) =
        Mirrored::new(a.address, &[hanging]).route(&["m0"], |f| f.timeouts.request = None).serve().await;
    let of = |name| counted(&registry, "m0", name);
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf").await.unwrap();
    eventually(|| of("upstream_rq_active") == 1).await;
    drop(client);
    eventually(|| of("upstream_rq_active") == 0 && of("upstream_cx_active") == 0).await;
    assert_eq!(of("upstream_rq_5xx"), 0);
    assert!(ask(proxy, &get("/")).await.ends_with("answer"));
    eventually(|| of("upstream_rq_active") == 1).await;
}

/// Without a timeout a copy that nobody answers would stay for ever.
#[tokio::test]
async fn the_end_of_a_drain_is_the_end_of_copies() {
    let (a, _) = recording(|_| ok("answer")).await;
    let hanging = silent(0).await;
    let mirrored = Mirrored::new(a.address, &[hanging]).route(&["m0"], |f| f.timeouts.request = None);
    let registry = mirrored.setup.registry.clone();
    let (proxy, drain) = mirrored.setup.serve().await;
    assert!(ask(proxy, &get("/")).await.ends_with("answer"));
    let active = || counted(&registry, "m0", "upstream_rq_active");
    eventually(|| active() == 1).await;
    drain.start(sixfold_server::drain::DrainStrategy::Immediate, Some(Duration::from_millis(100)));
    eventually(|| active() == 0).await;
}

#[tokio::test]
async fn copies_go_over_http2_too() {
    let (a, _) = recording(|_| ok("answer")).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mirror = listener.local_addr().unwrap();
    let seen = Seen::default();
    let sent = seen.clone();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut server = h2::server::handshake(socket).await.unwrap();
        while let Some(Ok((request, mut respond))) = server.accept().await {
            let sent = sent.clone();
            tokio::spawn(async move {
                let (head, mut body) = request.into_parts();
                let mut bytes = Vec::new();
                while let Some(Ok(piece)) = body.data().await {
                    let _ = body.flow_control().release_capacity(piece.len());
                    bytes.extend_from_slice(&piece);
                }
                let length = bytes.len();
                sent.lock().push(format!("{} {} {length}", head.method, head.uri));
                let _ = respond.send_response(http::Response::new(()), true);
            });
        }
    });
    let mut mirrored = Mirrored::new(a.address, &[]);
    mirrored.setup.cluster("m0", &[mirror], |config| config.protocol = UpstreamProtocol::Http2);
    let (proxy, registry) = mirrored.route(&["m0"], |_| {}).serve().await;
    let body = "z".repeat(300_000);
    let post = format!("POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert!(ask(proxy, &post).await.ends_with("answer"));
    assert!(ask(proxy, &get("/y")).await.ends_with("answer"));
    eventually(|| counted(&registry, "m0", "upstream_rq_2xx") == 2).await;
    let mut seen = seen.lock().clone();
    seen.sort();
    assert_eq!(seen, ["GET http://test-shadow/y 0", "POST http://h-shadow/x 300000"]);
    assert_eq!(counted(&registry, "m0", "upstream_rq_active"), 0);
}
