//! Upstreams that close: connections that died in the pool, answers that come before the request was read, and what an
//! APISIX gateway says of all that.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::hcm::Profile;
use sixfold_core::retry::{RetryOn, RetryPolicy};
use sixfold_core::route::ForwardOptions;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// nginx's retries, of which none are left.
fn as_nginx(forward: &mut ForwardOptions) {
    let on = RetryOn::NGINX_ERROR_TIMEOUT;
    forward.retry = Some(Arc::new(RetryPolicy { on, num_retries: 0, ..RetryPolicy::default() }));
}

async fn gateway(upstream: SocketAddr) -> SocketAddr {
    let mut setup = Setup::new();
    setup.profile = Profile::Apisix;
    setup.cluster("a", &[upstream], |_| {});
    setup.route("/", "a", as_nginx);
    setup.serve().await.0
}

// It was 502, for every method, whenever the upstream's keep-alive time ended as the next request came.
#[tokio::test]
async fn a_pooled_connection_that_died_is_replaced_where_nginx_would() {
    for (method, served) in
        [("GET", true), ("PUT", true), ("DELETE", true), ("POST", false), ("PATCH", false)]
    {
        let up = upstream(|number, _| if number == 1 { Vec::new() } else { ok("fine") }).await;
        let gateway = gateway(up.address).await;
        assert!(ask(gateway, &get("/")).await.ends_with("fine"));
        let request = format!("{method} / HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nbody");
        let response = ask(gateway, &request).await;
        if served {
            assert!(
                response.starts_with("HTTP/1.1 200 ") && response.ends_with("fine"),
                "{method}: {response}"
            );
        } else {
            assert!(response.starts_with("HTTP/1.1 502 "), "{method}: {response}");
            assert!(response.contains("\r\nX-APISIX-Upstream-Status: 502\r\n"), "{response}");
        }
        assert_eq!(up.requests.load(SeqCst), if served { 3 } else { 2 });
    }
}

#[tokio::test]
async fn a_new_connection_that_dies_is_not_replaced() {
    let up = upstream(|_, _| Vec::new()).await;
    let gateway = gateway(up.address).await;
    assert!(ask(gateway, &get("/")).await.starts_with("HTTP/1.1 502 "));
    assert_eq!(up.requests.load(SeqCst), 1);
}

#[tokio::test]
async fn a_node_that_refuses_is_a_502_in_the_header_too() {
    let dead = nobody();
    let response = ask(gateway(dead).await, &get("/")).await;
    assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
    assert!(response.contains("\r\nX-APISIX-Upstream-Status: 502\r\n"), "{response}");
}

/// Refuses every upload from its head and closes with the rest unread.
async fn refuses_uploads() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = [0; 1024];
                let _ = socket.read(&mut head).await;
                let answer = format!(
                    "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 40000\r\nConnection: close\r\n\r\n{:x<40000}",
                    ""
                );
                let _ = socket.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

// Many were lost: writing on found the connection reset, and what had come before that was not looked at.
#[tokio::test]
async fn an_answer_that_comes_before_the_upload_was_read_reaches_the_client() {
    let up = refuses_uploads().await;
    for profile in [Profile::Envoy, Profile::Apisix] {
        let mut setup = Setup::new();
        setup.profile = profile;
        setup.cluster("a", &[up], |_| {});
        setup.route("/", "a", as_nginx);
        let proxy = setup.serve().await.0;
        for round in 0..30 {
            let socket = TcpStream::connect(proxy).await.unwrap();
            let (mut read, mut write) = socket.into_split();
            let sending = tokio::spawn(async move {
                let head = "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 2097152\r\n\r\n";
                let _ = write.write_all(head.as_bytes()).await;
                for _ in 0..32 {
                    if write.write_all(&[b'y'; 65_536]).await.is_err() {
                        break;
                    }
                }
                write
            });
            let mut response = Vec::new();
            let mut piece = [0; 65_536];
            while response.iter().filter(|b| **b == b'x').count() < 40_000 {
                match tokio::time::timeout(Duration::from_secs(10), read.read(&mut piece)).await {
                    Ok(Ok(n)) if n > 0 => response.extend_from_slice(&piece[..n]),
                    other => panic!(
                        "{profile:?}, round {round}: {other:?} after {} bytes: {}",
                        response.len(),
                        String::from_utf8_lossy(&response[..response.len().min(300)])
                    ),
                }
            }
            assert!(response.starts_with(b"HTTP/1.1 413 "));
            sending.abort();
        }
    }
}
