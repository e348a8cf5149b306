//! Route tables that change under requests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::cluster::ClusterCell;
use sixfold_core::route::Action;
use sixfold_core::router::RouteTable;
use std::sync::{Arc, Weak};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

/// 5,000 routes, of which the last takes `/ws`.
fn large(to: &Arc<ClusterCell>) -> RouteTable {
    let route = |prefix: String| Arc::new(route(&prefix, Action::Forward(Box::new(forward(to.clone())))));
    table((1..5000).map(|n| route(format!("/svc/{n}/"))).chain([route("/ws".to_owned())]).collect())
}

/// Each open WebSocket once kept the whole table that it was routed by.
#[tokio::test]
async fn a_replaced_table_is_freed_though_websockets_run_that_it_routed() {
    let up = upstream(|_, request| {
        let switched =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        if request.starts_with("GET") { switched.into() } else { request.into() }
    })
    .await;
    let mut setup = Setup::new();
    setup.upgrades = Box::new([("websocket".into(), true)]);
    setup.cluster("a", &[up.address], |_| {});
    let to = setup.clusters.cell("a");
    let cell = setup.table.clone();
    let (proxy, _) = setup.serve().await;
    let (mut sockets, mut replaced): (Vec<TcpStream>, Vec<Weak<RouteTable>>) = Default::default();
    for _ in 0..20 {
        replaced.extend(cell.swap(Some(Arc::new(large(&to)))).as_ref().map(Arc::downgrade));
        let mut socket = TcpStream::connect(proxy).await.unwrap();
        socket.write_all(UPGRADE.as_bytes()).await.unwrap();
        let head = read_message(&mut socket).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        sockets.push(socket);
    }
    let kept = replaced.iter().filter(|table| table.strong_count() > 0).count();
    assert_eq!((replaced.len(), kept), (20, 0), "tables replaced, and those still held");
    for mut socket in sockets {
        socket.write_all(b"ping\r\n\r\n").await.unwrap();
        assert_eq!(read_message(&mut socket).await.unwrap(), "ping\r\n\r\n");
    }
}
