//! Traffic while routes are written as fast as clients can, and how long a change takes until it is live.
//!
//! The short form of each runs with all tests and asks for what holds on any machine. The long one says figures:
//! `cargo test --profile release -p sixfold --test admin_load -- --ignored --nocapture --test-threads 1`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::etcd::{Cluster, Etcd};
use support::gateway::{Gateway, Ports, ask_on, route, start};
use support::wrk::{ASKED, Measured, wrk};
use support::{Directory, LIMIT, get};

/// Clients that write at the same time.
const WRITERS: usize = 32;
/// Requests a second: it is how long one takes that is asked for, not how many there may be.
const RATE: u32 = 1000;

/// Writes routes on one connection until `end` is; each write must be done.
fn write(gateway: &Gateway, writer: usize, end: &AtomicBool, written: &AtomicUsize) {
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.ports.admin)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let target = format!("/apisix/admin/routes/of-{writer}");
    for n in 0.. {
        if end.load(SeqCst) {
            break;
        }
        let body = route(&format!("/of/{writer}/{n}"), "x");
        let answer = ask_on(&mut stream, &gateway.key, "PUT", &target, &body).unwrap();
        assert!([200, 201].contains(&answer.status), "{}", answer.body);
        written.fetch_add(1, SeqCst);
    }
}

/// Traffic for so long, with and without writes; answers both, and the writes.
fn under_writes(what: &str, gateway: &Gateway, time: Duration) -> (Measured, Measured, usize) {
    let quiet = wrk(gateway.ports.http, RATE, time);
    let (end, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    let busy = std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (end, written) = (&end, &written);
            scope.spawn(move || write(gateway, writer, end, written));
        }
        let asked = scope.spawn(|| wrk(gateway.ports.http, RATE, time));
        let asked = asked.join();
        end.store(true, SeqCst);
        asked.unwrap()
    });
    let written = written.load(SeqCst);
    let rate = written as f64 / time.as_secs_f64();
    eprintln!(
        "{what}: {rate:.0} writes a second by {WRITERS} clients; {} and {} requests, none failed; p50 {:?} and p99 {:?} \
         without, {:?} and {:?} with writes",
        quiet.requests, busy.requests, quiet.median, quiet.p99, busy.median, busy.p99,
    );
    (quiet, busy, written)
}

fn gateway(deployment: &str) -> (Directory, Gateway) {
    let (directory, ports) = (Directory::new(), Ports::free());
    directory.write("config.yaml", &ports.config(deployment));
    let mut gateway = Gateway::start(&directory, ports);
    assert_eq!(gateway.ask("PUT", "/routes/steady", &route(ASKED.0, ASKED.1)).status, 201);
    gateway.until_status("/svc/1/api", 200);
    (directory, gateway)
}

fn of_etcd(urls: &[String]) -> String {
    let provider = "role: traditional\n  role_traditional: {config_provider: etcd}";
    format!("{provider}\n  etcd: {{host: {urls:?}}}")
}

/// Ten seconds of it, on a machine that may have other things to do.
#[test]
fn no_request_fails_while_routes_are_written() {
    let (_directory, gateway) = gateway("role: traditional");
    let (_, _, written) = under_writes("embedded", &gateway, Duration::from_secs(10));
    assert!(written >= 100 * 10, "{written} writes");
    // The last one of each is in force.
    let all = gateway.ask("GET", "/routes", "");
    let all: serde_json::Value = serde_json::from_str(&all.body).unwrap();
    for item in all["list"].as_array().unwrap() {
        let uri = item["value"]["uri"].as_str().unwrap();
        support::etcd::until(uri, || get(gateway.ports.http, uri).is_some_and(|answer| answer.status == 200));
    }
}

#[test]
#[ignore = "minutes on each store, and figures that a busy machine has no part in"]
fn a_minute_of_writes() {
    let (etcd, cluster) = (Etcd::start(), Cluster::start(3, &[]));
    let stores = [
        ("embedded", "role: traditional".to_owned(), 500),
        ("etcd", of_etcd(&[etcd.url()]), 500),
        // Three members that share a disk and its journal are slower than three machines.
        ("three members", of_etcd(&cluster.urls()), 0),
    ];
    for (what, deployment, least) in stores {
        let (_directory, gateway) = gateway(&deployment);
        let (quiet, busy, written) = under_writes(what, &gateway, Duration::from_secs(60));
        assert!(written >= least * 60, "{written} writes");
        assert!(busy.p99 <= quiet.p99 * 2, "{:?} and {:?}", busy.p99, quiet.p99);
    }
}

/// Waits on one connection until a path has another answer than 404.
fn until_live(stream: &mut TcpStream, path: &str) -> Duration {
    let begun = Instant::now();
    loop {
        support::send(stream, "GET", path, &[]);
        let answer = support::read(stream).unwrap();
        if answer.status == 200 {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < LIMIT, "{path} is {}", answer.status);
    }
}

fn percentiles(what: &str, mut taken: Vec<Duration>) -> (Duration, Duration) {
    taken.sort();
    let (median, last) = (taken[taken.len() / 2], taken[taken.len() * 99 / 100]);
    eprintln!("{what}: in force {median:?} after the answer (median of {}), p99 {last:?}", taken.len());
    (median, last)
}

#[test]
#[ignore = "figures that a busy machine has no part in"]
fn a_change_is_live_soon_after_its_answer() {
    let etcd = Etcd::start();
    for (what, deployment, bounds) in
        [("embedded", "role: traditional".to_owned(), (5, 15)), ("etcd", of_etcd(&[etcd.url()]), (20, 20))]
    {
        let (_directory, gateway) = gateway(&deployment);
        let mut http = TcpStream::connect(("127.0.0.1", gateway.ports.http)).unwrap();
        let mut admin = TcpStream::connect(("127.0.0.1", gateway.ports.admin)).unwrap();
        admin.set_read_timeout(Some(LIMIT)).unwrap();
        let taken = (0..300).map(|n| {
            let path = format!("/n{n}");
            let asked = ask_on(&mut admin, &gateway.key, "PUT", "/apisix/admin/routes/n", &route(&path, "x"));
            assert!(asked.unwrap().status < 300);
            until_live(&mut http, &path)
        });
        let (median, last) = percentiles(what, taken.collect());
        assert!(median <= Duration::from_millis(bounds.0) && last <= Duration::from_millis(bounds.1));
    }
}

#[test]
#[ignore = "figures that a busy machine has no part in"]
fn a_changed_file_is_live_soon() {
    let (directory, ports) = (Directory::new(), Ports::free());
    let provider = "role: data_plane\n  role_data_plane: {config_provider: yaml}";
    directory.write("config.yaml", &ports.config(provider));
    let put = |n: usize| {
        let item = format!(
            "routes:\n- id: n\n  uri: /n{n}\n  plugins: {{mocking: {{response_example: x}}}}\n#END\n"
        );
        std::fs::rename(directory.write("next", &item), directory.path("apisix.yaml")).unwrap();
    };
    put(0);
    let mut process = start(&directory);
    process.until("the gateway", || get(ports.http, "/n0").filter(|answer| answer.status == 200));
    let mut http = TcpStream::connect(("127.0.0.1", ports.http)).unwrap();
    let taken = (1..200).map(|n| {
        put(n);
        until_live(&mut http, &format!("/n{n}"))
    });
    let (median, _) = percentiles("file", taken.collect());
    assert!(median <= Duration::from_millis(20));
}
