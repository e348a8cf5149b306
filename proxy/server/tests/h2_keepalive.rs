//! Peers over HTTP/2 that are not there any more: what becomes of the requests that they had.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::access_log::AccessLog;
use sixfold_core::cluster::{ClusterConfig, Http2Keepalive, UpstreamProtocol};
use sixfold_core::format::Format;
use sixfold_core::metrics::{Registry, Value};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const TIME: Duration = Duration::from_millis(50);

fn soon() -> Option<Http2Keepalive> {
    Some(Http2Keepalive { interval: Some(TIME), jitter: Duration::ZERO, timeout: TIME, idle: None })
}

/// An HTTP/2 server that says its SETTINGS, and `answer` to each request; PINGs of the first `answered` connections' alone
/// are answered. Counts the connections.
async fn server(answered: usize, answer: &'static [u8]) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let opened = connections.clone();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let is_answered = opened.fetch_add(1, SeqCst) < answered;
            tokio::spawn(async move {
                socket.write_all(EMPTY_SETTINGS).await.unwrap();
                socket.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
                let mut head = [0; 9];
                while socket.read_exact(&mut head).await.is_ok() {
                    let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
                    socket.read_exact(&mut payload).await.unwrap();
                    match (head[3], head[4]) {
                        (1, _) if !answer.is_empty() => {
                            let head = [&[0, 0, 1, 1, 5][..], &head[5..], answer].concat();
                            socket.write_all(&head).await.unwrap();
                        }
                        (6, 0) if is_answered => {
                            let pong = [&[0, 0, 8, 6, 1, 0, 0, 0, 0][..], &payload].concat();
                            let _ = socket.write_all(&pong).await;
                        }
                        _ => {}
                    }
                }
            });
        }
    });
    (address, connections)
}

fn counter(registry: &Registry, name: &str) -> u64 {
    let found = registry.samples().into_iter().find(|sample| sample.name == name);
    match found.unwrap_or_else(|| panic!("no {name}")).value {
        Value::Counter(n) | Value::Gauge(n) => n,
        Value::Histogram(_) => panic!("{name}"),
    }
}

fn setup(upstream: SocketAddr, change: impl FnOnce(&mut ClusterConfig)) -> (Setup, Arc<Lines>) {
    let (mut setup, lines) = (Setup::new(), Arc::<Lines>::default());
    let format = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%";
    let format = Arc::new(Format::envoy(format).unwrap());
    setup.access_logs = vec![AccessLog { filter: None, format, sink: lines.clone() }];
    setup.cluster("a", &[upstream], |config| {
        config.protocol = UpstreamProtocol::Http2;
        change(config);
    });
    setup.route("/", "a", |_| {});
    (setup, lines)
}

// `connection_keepalive` was refused. What is asserted is what Envoy 1.40 answers, logs and counts.
#[tokio::test]
async fn an_upstream_that_is_not_there_is_found_out() {
    let (upstream, connections) = server(0, &[]).await;
    let (setup, lines) = setup(upstream, |config| config.http2.keepalive = soon());
    let registry = setup.registry.clone();
    let proxy = setup.serve().await.0;
    let response = ask(proxy, &get("/")).await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(response.ends_with("reset reason: connection termination"), "{response}");
    let log = lines.0.lock().concat();
    assert_eq!(log.trim(), "503 UC upstream_reset_before_response_started{connection_termination}");
    eventually(|| counter(&registry, "cluster.a.upstream_cx_destroy") == 1).await;
    for (name, expected) in
        [("http2.keepalive_timeout", 1), ("upstream_cx_destroy_local", 1), ("upstream_cx_destroy_remote", 0)]
    {
        assert_eq!(counter(&registry, &format!("cluster.a.{name}")), expected, "{name}");
    }
    assert_eq!(connections.load(SeqCst), 1);
}

#[tokio::test]
async fn an_upstream_that_answers_keeps_its_connection() {
    // `:status 200`, in the static table.
    let (upstream, connections) = server(1, &[0x88]).await;
    let long = Duration::from_secs(20);
    let often = Http2Keepalive { timeout: long, interval: Some(Duration::from_millis(5)), ..soon().unwrap() };
    let (setup, _) = setup(upstream, |config| config.http2.keepalive = Some(often));
    let proxy = setup.serve().await.0;
    for _ in 0..10 {
        assert!(ask(proxy, &get("/")).await.starts_with("HTTP/1.1 200 "));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(connections.load(SeqCst), 1);
}

/// Nothing is sent for time alone.
#[tokio::test]
async fn a_request_after_idle_time_goes_behind_a_ping() {
    let (upstream, connections) = server(0, &[]).await;
    let idle = Http2Keepalive { interval: None, idle: Some(TIME), ..soon().unwrap() };
    let (setup, lines) = setup(upstream, |config| config.http2.keepalive = Some(idle));
    let proxy = setup.serve().await.0;
    // Within the idle time nobody doubts, so that this one is not found out.
    let mut first = TcpStream::connect(proxy).await.unwrap();
    first.write_all(get("/").as_bytes()).await.unwrap();
    eventually(|| connections.load(SeqCst) == 1).await;
    tokio::time::sleep(6 * TIME).await;
    assert_eq!(lines.0.lock().len(), 0);
    let response = ask(proxy, &get("/")).await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(read_message(&mut first).await.unwrap().starts_with("HTTP/1.1 503 "));
}

#[tokio::test]
async fn a_client_that_is_not_there_is_found_out() {
    let (upstream, _) = server(0, &[]).await;
    let (mut setup, lines) = setup(upstream, |_| {});
    setup.http2.keepalive = soon();
    let proxy = setup.serve().await.0;
    let mut client = TcpStream::connect(proxy).await.unwrap();
    // GET http / of no authority, in the static table, and one of `:authority` "a".
    let request = [&[0, 0, 6, 1, 5, 0, 0, 0, 1][..], &[0x82, 0x86, 0x84, 0x41, 1, b'a']].concat();
    client.write_all(&[PREFACE, EMPTY_SETTINGS, &request].concat()).await.unwrap();
    let mut said = Vec::new();
    let read = client.read_to_end(&mut said);
    let _ = tokio::time::timeout(Duration::from_secs(10), read).await.expect("it was not closed");
    assert!(said.windows(5).any(|head| head == [0, 0, 8, 6, 0]), "a PING: {said:?}");
    eventually(|| !lines.0.lock().is_empty()).await;
    assert_eq!(lines.0.lock().concat().trim(), "0 DC downstream_local_disconnect(http2_ping_timeout)");
}
