//! Route tables that change under requests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::cluster::ClusterCell;
use sixfold_core::plugin::{ChainBuilder, Plugin, ReadBody, Slot, Step};
use sixfold_core::route::Action;
use sixfold_core::route::RequireTls;
use sixfold_core::router::{HostRoutes, RouteTable, TableOptions, VirtualHostOptions};
use sixfold_core::stream::Stream;
use std::sync::{Arc, Weak};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

/// 5,000 routes, of which the last takes `/ws`.
fn large(to: &Arc<ClusterCell>) -> RouteTable {
    let route = |prefix: String| Arc::new(route(&prefix, Action::Forward(forward(to.clone()))));
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

/// Waits, if it is told to, and has the route of `/to` chosen.
struct Detour {
    waits: bool,
    buffers: bool,
    under_way: Arc<Notify>,
    go_on: Arc<Notify>,
}

impl Detour {
    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        if let Some(step) = self.buffers.then(|| ReadBody::whole(10).ask(stream, slot)).flatten() {
            return step;
        }
        stream.request.target.set(b"/to");
        if !self.waits {
            return Step::ClearRoute;
        }
        Step::Wait(Box::pin(async {
            self.under_way.notify_one();
            self.go_on.notified().await;
            Step::ClearRoute
        }))
    }
}

/// The route was chosen again by the table of then, in which the first one may not have been.
#[tokio::test]
async fn a_route_is_chosen_again_by_the_table_that_the_request_came_in_by() {
    let (old, new) = (upstream(|_, _| ok("old")).await, upstream(|_, _| ok("new")).await);
    for (waits, buffers) in [(true, false), (true, true), (false, false)] {
        let mut setup = Setup::new();
        setup.cluster("old", &[old.address], |_| {});
        setup.cluster("new", &[new.address], |_| {});
        let (under_way, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let detour = Detour { waits, buffers, under_way: under_way.clone(), go_on: go_on.clone() };
        let plugin = Plugin::of(detour).access(Detour::access);
        let mut builder = ChainBuilder::new();
        builder.add("detour", plugin.build());
        setup.chain = Arc::new(builder.build());
        setup.route("/to", "old", |_| {});
        setup.route("/from", "old", |_| {});
        let to = setup.clusters.cell("new");
        let cell = setup.table.clone();
        let (proxy, _) = setup.serve().await;
        let before = cell.load().as_ref().map(Arc::downgrade).unwrap();
        let asking = tokio::spawn(async move { ask(proxy, &get("/from")).await });
        if waits {
            under_way.notified().await;
            let forward = Action::Forward(forward(to));
            drop(cell.swap(Some(Arc::new(table(vec![Arc::new(route("/to", forward))])))));
            assert!(before.strong_count() > 0, "it is kept over the wait");
            go_on.notify_one();
        }
        assert!(asking.await.unwrap().ends_with("old"));
        // What waits no more keeps no table.
        assert_eq!(before.strong_count(), usize::from(!waits));
    }
}

/// Has the route chosen again, of the host `secure`.
struct Secure;

impl Secure {
    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        stream.request.authority = b"secure".to_vec();
        Step::ClearRoute
    }
}

/// The virtual host that a filter leads to was reached without TLS, and none was led away from one that wants it.
#[tokio::test]
async fn a_host_that_is_chosen_again_wants_its_tls() {
    let up = upstream(|_, _| ok("reached")).await;
    let mut builder = ChainBuilder::new();
    builder.add("secure", Plugin::of(Secure).access(Secure::access).build());
    let mut setup = Setup::new();
    setup.chain = Arc::new(builder.build());
    setup.cluster("a", &[up.address], |_| {});
    let (to, cell) = (setup.clusters.cell("a"), setup.table.clone());
    let (proxy, _) = setup.serve().await;
    let (all, none) = (RequireTls::All, RequireTls::None);
    for (from, require_tls, expected) in [(none, all, "301 "), (none, none, "200 "), (all, none, "200 ")] {
        let host = |name: &str, require_tls| {
            let options = VirtualHostOptions { require_tls, ..VirtualHostOptions::default() };
            let routes = vec![Arc::new(route("/", Action::Forward(forward(to.clone()))))];
            (vec![name.to_owned()], HostRoutes::new(name, options, routes))
        };
        let hosts = vec![host("*", from), host("secure", require_tls)];
        cell.swap(Some(Arc::new(RouteTable::new("t", TableOptions::default(), hosts).unwrap())));
        let answer = ask(proxy, &get("/path")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{answer}");
        assert_eq!(answer.contains("location: https://secure/path\r\n"), require_tls == RequireTls::All);
    }
}
