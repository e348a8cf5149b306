//! What becomes of requests when the process has no descriptor left. Alone in its binary, for that is true of all its threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sixfold_core::cluster::{CountedChecks, Limits};
use sixfold_core::hcm::Profile;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Checks by which one failure of any kind puts a node out.
fn checks() -> CountedChecks {
    let passive = Limits {
        healthy_statuses: Box::new([200]),
        unhealthy_statuses: Box::new([500, 502, 503]),
        successes: 1,
        http_failures: 1,
        tcp_failures: 1,
        timeouts: 1,
    };
    CountedChecks { passive, ends_count: true, ..CountedChecks::default() }
}

/// Two such requests put a node out that nobody had asked.
#[tokio::test]
async fn no_node_is_blamed_for_what_the_process_lacks() {
    let mut setup = Setup::new();
    setup.profile = Profile::Apisix;
    // Each request takes a connection of its own.
    let last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nup";
    let node = upstream(|_, _| last.to_vec()).await;
    setup.cluster("a", &[node.address], |config| config.checks = Some(Arc::new(checks())));
    setup.route("/", "a", |forward| forward.retry = retry("connect-failure", 1));
    let cluster = setup.clusters.find("a").unwrap();
    let proxy = setup.serve().await.0;
    let mut client = TcpStream::connect(proxy).await.unwrap();
    let mut ask = async || {
        client.write_all(get("/").as_bytes()).await.unwrap();
        read_message(&mut client).await.unwrap()
    };
    assert!(ask().await.starts_with("HTTP/1.1 200 "));
    let asked = node.requests.load(Ordering::Relaxed);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    let answer = ask().await;
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert_eq!(node.requests.load(Ordering::Relaxed), asked);
    let hosts = cluster.hosts.load();
    let counts = hosts.iter().next().unwrap().host.counts();
    assert_eq!((counts.tcp_failures, counts.http_failures, counts.timeouts), (0, 0, 0));
    assert!(ask().await.starts_with("HTTP/1.1 200 "));
}
