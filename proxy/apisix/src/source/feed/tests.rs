#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use sixfold_core::model::Model;
use sixfold_core::router::RouteTableCell;

use super::*;
use crate::config::Config;
use crate::resource::Kind;
use crate::store::{Key, MemoryStore, StoreExt};
use crate::testing;

const PATIENCE: Duration = Duration::from_secs(20);

/// A source of a store in memory whose changes go into a model, each application told.
struct Gateway {
    store: MemoryStore,
    table: Arc<RouteTableCell>,
    applied: Receiver<Instant>,
    _feed: Feed,
}

impl Gateway {
    fn new(routes: usize) -> Gateway {
        let model = Model::default();
        let context = testing::context_of(&model);
        let table = context.routes.clone();
        let store = MemoryStore::default();
        store.put(&Key::new(Kind::Upstream, "u"), r#"{"nodes": {"127.0.0.1:80": 1}}"#.into()).unwrap();
        for nth in 0..routes {
            put(&store, nth, 0);
        }
        let config = Config::standalone("", &testing::environment()).unwrap();
        let mut source = Source::new(config, Arc::new(store.clone()), context);
        let update = source.pull().unwrap();
        assert_eq!(update.refused, []);
        model.apply_detached(update.diff);
        let (told, applied) = channel();
        let feed = Feed::start(source, move |diff| {
            model.apply_detached(diff);
            // The test may have ended.
            let _ = told.send(Instant::now());
        });
        Gateway { store, table, applied, _feed: feed.unwrap() }
    }

    /// The route that a path leads to.
    fn find(&self, path: &str) -> Option<String> {
        find(&self.table, path)
    }
}

fn find(table: &RouteTableCell, path: &str) -> Option<String> {
    let mut stream = testing::stream("h.test", path, None);
    table.load()?.find(&mut stream)?.route.map(|route| route.ids.route.to_string())
}

fn put(store: &MemoryStore, nth: usize, version: u64) {
    let value = format!(
        r#"{{"uris": ["/api/v{}/r{nth}/*", "/version/{nth}/{version}"], "upstream_id": "u", "plugins": {{"other": {{}}}}}}"#,
        nth % 10
    );
    store.put(&Key::new(Kind::Route, format!("r{nth}").as_str()), value.into()).unwrap();
}

#[test]
fn what_is_put_and_deleted_is_in_force() {
    let gateway = Gateway::new(3);
    assert_eq!(gateway.find("/version/1/0").as_deref(), Some("r1"));
    put(&gateway.store, 1, 1);
    gateway.applied.recv_timeout(PATIENCE).unwrap();
    assert_eq!((gateway.find("/version/1/0"), gateway.find("/version/1/1").as_deref()), (None, Some("r1")));
    assert_eq!(gateway.store.delete(&Key::new(Kind::Route, "r1")), Ok(true));
    gateway.applied.recv_timeout(PATIENCE).unwrap();
    assert_eq!((gateway.find("/version/1/1"), gateway.find("/api/v1/r1/x")), (None, None));
    assert_eq!(gateway.store.delete(&Key::new(Kind::Route, "r1")), Ok(false));
}

#[test]
fn a_resource_may_come_before_what_it_needs() {
    let gateway = Gateway::new(1);
    let route = Key::new(Kind::Route, "early");
    gateway.store.put(&route, r#"{"uri": "/early", "upstream_id": "late"}"#.into()).unwrap();
    gateway.applied.recv_timeout(PATIENCE).unwrap();
    assert_eq!(gateway.find("/early").as_deref(), Some("early"), "which answers with an error");
    let late = Key::new(Kind::Upstream, "late");
    gateway.store.put(&late, r#"{"nodes": {"127.0.0.1:81": 1}}"#.into()).unwrap();
    gateway.applied.recv_timeout(PATIENCE).unwrap();
    assert_eq!(gateway.find("/early").as_deref(), Some("early"));
}

/// Whoever ended the process waited for the change that was being taken, however long that took.
#[test]
fn the_end_waits_for_no_change() {
    let store = MemoryStore::default();
    let config = Config::standalone("", &testing::environment()).unwrap();
    let context = testing::context_of(&Model::default());
    let source = Source::new(config, Arc::new(store.clone()), context);
    let ((begun, begins), (go_on, told)) = (channel(), channel::<()>());
    let feed = Feed::start(source, move |_| {
        begun.send(()).unwrap();
        let _ = told.recv();
    });
    put(&store, 1, 0);
    begins.recv_timeout(PATIENCE).unwrap();
    let (ended, ends) = channel();
    std::thread::spawn(move || {
        drop(feed);
        let _ = ended.send(());
    });
    ends.recv_timeout(PATIENCE).expect("it waits");
    drop(go_on);
}

#[test]
fn a_burst_is_few_batches() {
    let gateway = Gateway::new(50);
    for version in 1..=20 {
        (0..50).for_each(|nth| put(&gateway.store, nth, version));
    }
    let mut batches = 0;
    while (0..50).any(|nth| gateway.find(&format!("/version/{nth}/20")).is_none()) {
        gateway.applied.recv_timeout(PATIENCE).unwrap();
        batches += 1;
    }
    assert!(batches < 500, "{batches} batches for 1,000 changes");
}

/// Puts one of `routes` routes `rate` times a second for `time`, while others look up routes that stay; prints
/// how long changes took to be in force.
fn change(routes: usize, rate: u32, time: Duration) {
    let gateway = Gateway::new(routes);
    let (stop, lookups) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (table, ended, counted) = (gateway.table.clone(), stop.clone(), lookups.clone());
    let traffic = std::thread::spawn(move || {
        let mut nth = 0;
        while !ended.load(SeqCst) {
            nth = (nth + 1) % routes;
            let path = format!("/api/v{}/r{nth}/x", nth % 10);
            assert_eq!(find(&table, &path), Some(format!("r{nth}")), "{path}");
            counted.fetch_add(1, SeqCst);
            std::thread::sleep(Duration::from_micros(200));
        }
    });
    let (start, mut took, mut version) = (Instant::now(), Vec::new(), 0);
    while start.elapsed() < time {
        std::thread::sleep(
            (start + version * Duration::from_secs(1) / rate).saturating_duration_since(Instant::now()),
        );
        version += 1;
        let nth = (version as usize * 7919) % routes;
        let written = Instant::now();
        put(&gateway.store, nth, u64::from(version));
        // Every fiftieth is followed until it is in force.
        if version % 50 == 0 {
            while gateway.find(&format!("/version/{nth}/{version}")).is_none() {
                gateway.applied.recv_timeout(PATIENCE).unwrap();
            }
            took.push(written.elapsed());
        }
    }
    stop.store(true, SeqCst);
    traffic.join().expect("a lookup failed while routes changed");
    took.sort_unstable();
    let at = |part: usize| took.get(took.len() * part / 100).copied().unwrap_or_default();
    eprintln!(
        "{version} changes of {routes} routes in {:?}: in force after {:?} (median), {:?} (99 of 100); {} lookups",
        start.elapsed(),
        at(50),
        at(99),
        lookups.load(SeqCst)
    );
    assert!(lookups.load(SeqCst) > 100);
}

#[test]
fn changes_fail_no_lookup() {
    change(500, 500, Duration::from_secs(1));
}

#[test]
#[ignore = "takes ten seconds"]
fn a_thousand_changes_a_second_of_5000_routes_fail_no_lookup() {
    change(5000, 1000, Duration::from_secs(10));
}

/// One change at a time, with nothing else going on: prints how long it takes to be in force.
#[test]
#[ignore = "measures"]
fn one_change_of_5000_routes_is_soon_in_force() {
    let gateway = Gateway::new(5000);
    let mut took = Vec::new();
    for version in 1..=100 {
        let written = Instant::now();
        put(&gateway.store, version * 37, version as u64);
        took.push(gateway.applied.recv_timeout(PATIENCE).unwrap() - written);
        assert!(gateway.find(&format!("/version/{}/{version}", version * 37)).is_some());
    }
    took.sort_unstable();
    eprintln!("one of 5,000 routes in force after {:?} (median), {:?} (worst of 100)", took[50], took[99]);
}
