//! Upstreams over HTTP/2 that end, refuse, starve and flood: what they do to one request is no other one's loss.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::*;
use h2::server::SendResponse;
use sixfold_core::cluster::{ClusterConfig, UpstreamProtocol};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

fn http2(config: &mut ClusterConfig) {
    config.protocol = UpstreamProtocol::Http2;
    config.connect_timeout = Duration::from_secs(20);
}

/// A proxy of one cluster over HTTP/2.
async fn proxy(upstream: SocketAddr, change: impl FnOnce(&mut ClusterConfig)) -> SocketAddr {
    let mut setup = Setup::new();
    setup.cluster("a", &[upstream], |config| {
        http2(config);
        change(config);
    });
    setup.route("/", "a", |forward| forward.timeouts.request = None);
    setup.serve().await.0
}

type Respond = SendResponse<Bytes>;

/// An HTTP/2 server; `serve` gets the number of the connection, and of the request on it from 1. `after` requests a
/// connection announces its end and goes on with what it has.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

async fn server<F, Fut>(streams: u32, after: Option<usize>, serve: F) -> Server
where
    F: Fn(usize, String, Respond) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let (opened, serve) = (connections.clone(), Arc::new(serve));
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let connection = opened.fetch_add(1, SeqCst);
            let serve = serve.clone();
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                builder.max_concurrent_streams(streams);
                let Ok(mut server) = builder.handshake::<_, Bytes>(socket).await else { return };
                let mut requests = 0;
                while let Some(Ok((request, respond))) = server.accept().await {
                    requests += 1;
                    if after == Some(requests) && connection == 0 {
                        server.graceful_shutdown();
                    }
                    tokio::spawn(serve(connection, request.uri().path().to_owned(), respond));
                }
            });
        }
    });
    Server { address, connections }
}

async fn answer(mut respond: Respond, body: String) {
    let response = http::Response::builder().header("content-length", body.len()).body(()).unwrap();
    if let Ok(mut stream) = respond.send_response(response, false) {
        let _ = stream.send_data(body.into(), true);
    }
}

/// Sends a request and leaves its response unread.
async fn begin(proxy: SocketAddr, path: &str) -> TcpStream {
    let mut socket = TcpStream::connect(proxy).await.unwrap();
    socket.write_all(get(path).as_bytes()).await.unwrap();
    socket
}

async fn eventually(mut probe: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if probe() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 10 s");
}

/// One whose connections announce their end with their first request; `/long` is answered when it is told to.
async fn server_that_leaves() -> (Server, Arc<Notify>) {
    let finish = Arc::new(Notify::new());
    let finished = finish.clone();
    let server = server(100, Some(1), move |connection, path, respond| {
        let finished = finished.clone();
        async move {
            if path == "/long" {
                finished.notified().await;
            }
            answer(respond, format!("{path} on {connection}")).await;
        }
    });
    (server.await, finish)
}

// All requests failed from the announcement on until the last stream of the connection had ended.
#[tokio::test]
async fn a_connection_that_announced_its_end_takes_no_request_and_ends_what_it_has() {
    let (server, finish) = server_that_leaves().await;
    let proxy = proxy(server.address, |_| {}).await;
    let mut long = begin(proxy, "/long").await;
    eventually(|| server.connections.load(SeqCst) == 1).await;
    for _ in 0..5 {
        let response = ask(proxy, &get("/new")).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    }
    let response = ask(proxy, &get("/new")).await;
    assert!(response.ends_with("/new on 1"), "{response}");
    assert_eq!(server.connections.load(SeqCst), 2);
    finish.notify_one();
    assert!(read_message(&mut long).await.unwrap().ends_with("/long on 0"));
}

/// They waited for the next frame of anybody on the connection.
#[tokio::test]
async fn heads_that_are_large_wait_for_nothing() {
    let serve = |_, path: String, respond| answer(respond, path);
    let proxy = proxy(server(100, None, serve).await.address, |_| {}).await;
    // Characters whose code of HPACK is no shorter.
    let value: String = (0..12_000).map(|_| fastrand::char('!'..'~')).filter(|c| *c != '"').collect();
    for n in 0..3 {
        let request = get(&format!("/{n}")).replacen("\r\n\r\n", &format!("\r\nx-large: {value}\r\n\r\n"), 1);
        let response =
            tokio::time::timeout(Duration::from_secs(5), ask(proxy, &request)).await.expect("in time");
        assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with(&format!("/{n}")), "{response}");
    }
}

// It was refused (503 UO): there was no connection to wait for, since the one that ended had gone from the pool.
#[tokio::test]
async fn a_request_waits_for_the_place_of_a_connection_that_announced_its_end() {
    let (server, finish) = server_that_leaves().await;
    let proxy = proxy(server.address, |config| config.breaker.max_connections = 1).await;
    let mut long = begin(proxy, "/long").await;
    eventually(|| server.connections.load(SeqCst) == 1).await;
    let new = tokio::spawn(async move { ask(proxy, &get("/new")).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!new.is_finished());
    finish.notify_one();
    assert!(read_message(&mut long).await.unwrap().ends_with("/long on 0"));
    let response = new.await.unwrap();
    assert!(response.ends_with("/new on 1"), "{response}");
}

// A third request waited for the end of one of the two until its time was over.
#[tokio::test]
async fn more_connections_are_opened_when_the_upstream_allows_few_streams() {
    let finish = Arc::new(Notify::new());
    let finished = finish.clone();
    let server = server(2, None, move |connection, path, respond| {
        let finished = finished.clone();
        async move {
            if path == "/long" {
                finished.notified().await;
            }
            answer(respond, format!("{path} on {connection}")).await;
        }
    })
    .await;
    let proxy = proxy(server.address, |_| {}).await;
    let asking: Vec<_> =
        (0..5).map(|_| tokio::spawn(async move { ask(proxy, &get("/long")).await })).collect();
    eventually(|| server.connections.load(SeqCst) == 3).await;
    for _ in 0..4 {
        assert!(ask(proxy, &get("/short")).await.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(server.connections.load(SeqCst), 3, "the third has room for one");
    for _ in 0..100 {
        finish.notify_waiters();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for asked in asking {
        assert!(asked.await.unwrap().starts_with("HTTP/1.1 200 "));
    }
}

/// Sends a body in frames of `size` bytes for as long as flow control lets it.
async fn stream(mut respond: Respond, size: usize, bytes: usize) {
    let Ok(mut stream) = respond.send_response(http::Response::new(()), false) else { return };
    for _ in 0..bytes / size {
        stream.reserve_capacity(size);
        while stream.capacity() < size {
            match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(_)) => {}
                _ => return,
            }
        }
        if stream.send_data(vec![b'x'; size].into(), false).is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
    let _ = stream.send_data(Bytes::new(), true);
}

// Small frames that wait in the HTTP/2 library ended the connection with everyone's streams, and large ones filled its
// window.
#[tokio::test]
async fn readers_that_are_slow_neither_end_nor_starve_the_others() {
    for (size, clients, length) in [(20, 4, 1 << 20), (16_000, 24, 4 << 20)] {
        let server = server(100, None, move |_, path, respond| async move {
            match path.as_str() {
                "/long" => stream(respond, size, length).await,
                _ => answer(respond, "x".repeat(100_000)).await,
            }
        })
        .await;
        let proxy = proxy(server.address, |config| config.buffer_limit = 64 << 10).await;
        let mut stalled = Vec::new();
        for _ in 0..clients {
            stalled.push(begin(proxy, "/long").await);
        }
        // Until nothing moves any more.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        for _ in 0..5 {
            let response = ask(proxy, &get("/short")).await;
            assert!(response.starts_with("HTTP/1.1 200 "), "frames of {size}: {response}");
        }
        assert_eq!(server.connections.load(SeqCst), 1);
        // They lose nothing by it.
        let mut slow = stalled.pop().unwrap();
        let mut all = Vec::new();
        let mut piece = [0; 65_536];
        while !all.ends_with(b"0\r\n\r\n") {
            let n =
                tokio::time::timeout(Duration::from_secs(30), slow.read(&mut piece)).await.unwrap().unwrap();
            assert!(n > 0, "cut after {} bytes", all.len());
            all.extend_from_slice(&piece[..n]);
        }
        assert!(all.iter().filter(|b| **b == b'x').count() >= length - size);
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// Reads a frame; its kind, flags and payload.
async fn read_frame(socket: &mut TcpStream) -> Option<(u8, u8, Vec<u8>)> {
    let mut header = [0; 9];
    socket.read_exact(&mut header).await.ok()?;
    let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
    let mut payload = vec![0; length as usize];
    socket.read_exact(&mut payload).await.ok()?;
    Some((header[3], header[4], payload))
}

/// An upstream of raw frames; `play` gets the number of the connection, behind the client's preface.
async fn raw<F, Fut>(play: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(usize, TcpStream) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let opened = connections.clone();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let number = opened.fetch_add(1, SeqCst);
            let mut preface = [0; 24];
            if socket.read_exact(&mut preface).await.is_ok() {
                tokio::spawn(play(number, socket));
            }
        }
    });
    (address, connections)
}

/// Answers the first request with 200 and no body, and announces the connection's end.
async fn serve_one(mut socket: TcpStream) {
    socket.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    let mut ended = false;
    while let Some((kind, flags, _)) = read_frame(&mut socket).await {
        ended |= kind <= 1 && flags & 1 == 1;
        if ended {
            // `:status: 200` of HPACK's static table.
            let _ = socket.write_all(&frame(1, 5, 1, &[0x88])).await;
            let _ = socket.write_all(&frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).await;
            return;
        }
    }
}

/// Such a request went out four times without a retry policy, and twelve times with two retries; for Envoy it is refused,
/// and the policy alone sends it again.
#[tokio::test]
async fn a_request_that_came_after_the_last_one_taken_is_refused() {
    let (address, connections) = raw(|number, mut socket| async move {
        if number == 3 {
            return serve_one(socket).await;
        }
        socket.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        while let Some((kind, ..)) = read_frame(&mut socket).await {
            if kind == 1 {
                // No stream was taken, no error.
                socket.write_all(&frame(7, 0, 0, &[0; 8])).await.unwrap();
                return;
            }
        }
    })
    .await;
    let mut setup = Setup::new();
    setup.cluster("a", &[address], http2);
    setup.route("/retried", "a", |forward| forward.retry = retry("refused-stream", 2));
    setup.route("/", "a", |_| {});
    let proxy = setup.serve().await.0;
    let response = ask(proxy, &get("/")).await;
    assert!(
        response.starts_with("HTTP/1.1 503 ") && response.contains("remote refused stream"),
        "{response}"
    );
    assert_eq!(connections.load(SeqCst), 1);
    // A body that is kept for a retry is sent again too.
    let post = "POST /retried HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nbody";
    let response = ask(proxy, post).await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert_eq!(connections.load(SeqCst), 4);
}

// Six requests to an upstream that was silent failed one after the other, each after a time of its own.
#[tokio::test]
async fn those_who_wait_for_a_connection_fail_together() {
    let silent: [&[(u8, Vec<u8>)]; 2] = [&[], &[(4, vec![0, 3, 0, 0, 0, 0])]];
    for says in silent {
        let said: Vec<u8> = says.iter().flat_map(|(kind, payload)| frame(*kind, 0, 0, payload)).collect();
        let (address, connections) = raw(move |_, mut socket| {
            let said = said.clone();
            async move {
                socket.write_all(&said).await.unwrap();
                while read_frame(&mut socket).await.is_some() {}
            }
        })
        .await;
        let proxy = proxy(address, |config| config.connect_timeout = Duration::from_secs(3)).await;
        let asking: Vec<_> =
            (0..6).map(|_| tokio::spawn(async move { ask(proxy, &get("/")).await })).collect();
        for asked in asking {
            let response = asked.await.unwrap();
            assert!(response.contains("connection timeout"), "{response}");
        }
        assert_eq!(connections.load(SeqCst), 1);
    }
}

#[tokio::test]
async fn an_upstream_that_floods_loses_its_connection() {
    for (kind, flags, payload) in [(4, 0, vec![]), (6, 0, vec![0; 8]), (8, 0, vec![0, 0, 0, 1])] {
        let ended = Arc::new(Notify::new());
        let told = ended.clone();
        let (address, _) = raw(move |_, mut socket| {
            let (told, payload) = (told.clone(), payload.clone());
            async move {
                socket.write_all(&frame(4, 0, 0, &[])).await.unwrap();
                let flood = frame(kind, flags, 0, &payload).repeat(1000);
                let (mut read, mut write) = socket.split();
                let mut sink = [0; 65_536];
                let drain = async { while read.read(&mut sink).await.is_ok_and(|n| n > 0) {} };
                let send = async { while write.write_all(&flood).await.is_ok() {} };
                tokio::select! { () = drain => {} () = send => {} }
                told.notify_one();
            }
        })
        .await;
        let proxy = proxy(address, |_| {}).await;
        let mut asking = begin(proxy, "/").await;
        tokio::time::timeout(Duration::from_secs(20), ended.notified()).await.expect("it floods on");
        let response = read_message(&mut asking).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 503 ") || response.starts_with("HTTP/1.1 502 "), "{response}");
    }
}
