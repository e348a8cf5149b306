#![allow(clippy::unwrap_used)]
use super::*;
use crate::cluster::Clusters;
use crate::listener::{ConnectAttempts, TcpStats};
use crate::metrics::Registry;
use crate::route::{Action, ClusterChoice, Ids, PathMatch};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

fn route(name: &str, condition: L4Condition) -> Arc<L4Route> {
    let ids = Ids { route: name.into(), ..Ids::default() };
    let route = Route { ids, ..Route::new(PathMatch::Prefix(Box::default(), false), Action::NonForwarding) };
    let proxy = TcpProxy {
        stat_prefix: "t".into(),
        stats: Arc::new(TcpStats::new(&Registry::new(), "tcp.t.")),
        cluster: ClusterChoice::Named(Clusters::default().cell("a")),
        idle_timeout: None,
        max_duration: None,
        attempts: ConnectAttempts::OfCluster,
        hash: Vec::new(),
        metadata_match: Default::default(),
        buffer_limit: 1 << 20,
        access_logs: Vec::new(),
    };
    Arc::new(L4Route { route: Arc::new(route), condition, filters: Arc::default(), proxy: Arc::new(proxy) })
}

fn condition(
    name: Option<&str>,
    remote: Option<&str>,
    local: Option<&str>,
    port: Option<u16>,
) -> L4Condition {
    let range = |text: Option<&str>| text.map(|text| text.parse().unwrap());
    L4Condition { server_name: name.map(Into::into), remote: range(remote), local: range(local), port }
}

/// The route of a connection from `remote` to `local`.
fn found(routes: &L4Routes, server_name: Option<&str>, remote: &str, local: &str) -> String {
    let subject = L4Subject { server_name, remote: remote.parse().unwrap(), local: local.parse().unwrap() };
    routes.find(&subject).map(|route| route.route.ids.route.to_string()).unwrap_or_default()
}

#[test]
fn conditions_ask_for_client_address_and_port() {
    let routes = L4Routes::new([
        route("port", condition(None, None, None, Some(9101))),
        route("client", condition(None, Some("10.0.0.0/8"), None, None)),
        route("both", condition(None, Some("11.0.0.0/8"), Some("127.0.0.2/32"), None)),
        route("six", condition(None, Some("::1/128"), None, None)),
    ]);
    let told = |remote, local| found(&routes, None, remote, local);
    assert_eq!(told("10.1.1.1:1", "127.0.0.1:9101"), "port", "the first that takes it");
    assert_eq!(told("10.1.1.1:1", "127.0.0.1:9100"), "client");
    assert_eq!(told("11.1.1.1:1", "127.0.0.1:9100"), "");
    assert_eq!(told("11.1.1.1:1", "127.0.0.2:9100"), "both");
    assert_eq!(told("[::1]:1", "[::1]:9100"), "six");
    // Who asks for a name may have none of its own.
    assert_eq!(found(&routes, Some("a.test"), "10.1.1.1:1", "127.0.0.1:9100"), "client");
}

#[test]
fn names_go_from_the_exact_one_to_the_shortest_wildcard() {
    let at = |name, remote| condition(Some(name), remote, None, None);
    let routes = L4Routes::new([
        route("any", at("*", None)),
        route("test", at("*.test", None)),
        route("deep", at("*.a.test", None)),
        route("exact far", at("x.a.test", Some("10.0.0.0/8"))),
        route("exact near", at("x.a.test", Some("127.0.0.1/32"))),
        route("without", condition(None, None, None, None)),
    ]);
    let told = |name, remote: &str| found(&routes, name, remote, "127.0.0.1:9100");
    assert_eq!(told(Some("x.a.test"), "127.0.0.1:1"), "exact near");
    assert_eq!(told(Some("x.a.test"), "10.0.0.1:1"), "exact far");
    // No exact one takes it, so that a wildcard may, of any number of labels.
    assert_eq!(told(Some("x.a.test"), "11.0.0.1:1"), "deep");
    assert_eq!(told(Some("y.x.a.test"), "11.0.0.1:1"), "deep");
    assert_eq!(told(Some("a.test"), "11.0.0.1:1"), "test");
    assert_eq!(told(Some("other"), "11.0.0.1:1"), "any");
    assert_eq!(told(None, "11.0.0.1:1"), "without");
    // A name that is no text at the place where an ending would begin.
    assert_eq!(told(Some("é.test"), "11.0.0.1:1"), "test");
    assert_eq!(told(Some("é"), "11.0.0.1:1"), "any");
    let unnamed =
        L4Routes::new([route("a", at("a.test", None)), route("b", condition(None, None, None, None))]);
    assert_eq!(found(&unnamed, Some("b.test"), "11.0.0.1:1", "127.0.0.1:1"), "b");
}

#[test]
fn a_table_changes_when_the_change_is_in_force() {
    let table = Arc::new(L4Table::default());
    let subject = L4Subject {
        server_name: None,
        remote: "10.0.0.1:1".parse().unwrap(),
        local: "10.0.0.2:2".parse().unwrap(),
    };
    let change = table.change(L4Routes::new([route("a", L4Condition::default())]));
    assert!(table.find(&subject).is_none());
    drop(change.put_in_force());
    assert_eq!(&*table.find(&subject).unwrap().route.ids.route, "a");
}

/// A plugin that counts how often it has come into force.
#[derive(Debug, Default)]
struct Counting(AtomicU32);

impl ConnectionFilter for Counting {
    fn in_force(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[test]
fn plugins_begin_when_the_change_is_in_force() {
    let (table, counting) = (Arc::new(L4Table::default()), Arc::new(Counting::default()));
    let routes = [("a", None), ("b", Some("b.test")), ("c", Some("*.test"))].map(|(name, server_name)| {
        let condition = L4Condition { server_name: server_name.map(Into::into), ..L4Condition::default() };
        let route = Arc::into_inner(route(name, condition)).unwrap();
        Arc::new(L4Route { filters: [counting.clone() as Arc<dyn ConnectionFilter>].into(), ..route })
    });
    drop(table.change(L4Routes::new(routes.clone())));
    assert_eq!(counting.0.load(Relaxed), 0, "it was refused");
    drop(table.change(L4Routes::new(routes)).put_in_force());
    assert_eq!(counting.0.load(Relaxed), 3);
}
