//! SIGTERM while clients are served: what was asked is answered, and everybody is told to go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};
use support::envoy::{bootstrap_of, cluster, listener};
use support::traffic::{Tally, Traffic, exchange, open_websocket, upstream};
use support::{Directory, Process, free_port, get};

struct Running {
    process: Process,
    port: u16,
    _directory: Directory,
}

fn start(drain_seconds: &str) -> Running {
    let (directory, admin, port) = (Directory::new(), free_port(), free_port());
    let resources = [
        listener("in", port, "{match: {prefix: /}, route: {cluster: up, timeout: 0s}}"),
        cluster("up", upstream()),
    ];
    let file = directory.write("envoy.yaml", &bootstrap_of(admin, &resources));
    let options = ["--concurrency", "2", "--use-dynamic-base-id", "--log-level", "warning", "--drain-time-s"];
    let arguments: Vec<&str> = ["-c", &file].into_iter().chain(options).chain([drain_seconds]).collect();
    let mut process = Process::start(&arguments);
    process.until("readiness", || get(admin, "/ready").filter(|response| response.status == 200));
    Running { process, port, _directory: directory }
}

/// SIGTERM in the middle of everything; what the clients saw.
fn end_under_load() -> Tally {
    let Running { mut process, port, _directory } = start("20");
    let mut traffic = Traffic::new();
    for nth in 0..12 {
        traffic.http1(port, "/fast", Duration::from_millis(nth * nth));
    }
    for _ in 0..4 {
        traffic.http1(port, "/slow", Duration::ZERO);
    }
    for _ in 0..2 {
        traffic.http2(port, "/fast", 8);
        traffic.http2(port, "/slow", 8);
    }
    let mut websockets: Vec<_> = (0..4).map(|_| open_websocket(port, "/ws").unwrap()).collect();
    std::thread::sleep(Duration::from_millis(fastrand::u64(600..900)));
    process.signal("TERM");
    let mut tally = traffic.join();
    for (nth, socket) in websockets.iter_mut().enumerate() {
        if let Err(error) = exchange(socket, "still here") {
            tally.failed.push(format!("WebSocket {nth}: {error}"));
        }
    }
    assert!(process.0.try_wait().unwrap().is_none(), "the process waits for its WebSockets");
    drop(websockets);
    assert_eq!(process.wait(), 0);
    tally
}

#[test]
fn sigterm_fails_no_request() {
    for _ in 0..2 {
        let tally = end_under_load();
        println!("{} exchanges, {} failed", tally.done, tally.failed.len());
        assert_eq!(tally.failed, [""; 0]);
        assert!(tally.done > 100, "hardly any traffic: {}", tally.done);
    }
}

#[test]
#[ignore = "takes a minute"]
fn thirty_sigterms_fail_no_request() {
    let (mut done, mut failed) = (0, Vec::new());
    for _ in 0..30 {
        let tally = end_under_load();
        done += tally.done;
        failed.extend(tally.failed);
    }
    println!("30 ends: {done} exchanges, {} failed", failed.len());
    assert_eq!(failed, [""; 0]);
}

#[test]
fn a_websocket_has_until_the_deadline() {
    let Running { mut process, port, _directory } = start("5");
    let mut socket = open_websocket(port, "/ws").unwrap();
    process.signal("TERM");
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2500) {
        exchange(&mut socket, "still here").unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(process.wait(), 0);
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(15), "{took:?}");
    assert!(exchange(&mut socket, "gone").is_err());
}

/// SIGTERM was heard once the first configuration had been read, however long that took.
#[test]
fn sigterm_is_heard_while_the_first_configuration_is_read() {
    let directory = Directory::new();
    let clusters: String = (0..200_000).map(|nth| format!("  - name: c{nth}\n")).collect();
    // Read to its end, it is refused.
    let bootstrap = format!("static_resources:\n  clusters:\n{clusters}  - no_such_field: 1\n");
    let file = directory.write("envoy.yaml", &bootstrap);
    let mut process = Process::start(&["-c", &file, "--use-dynamic-base-id"]);
    let status = format!("/proc/{}/status", process.0.id());
    let catches = |line: &str| {
        let mask = line.strip_prefix("SigCgt:")?;
        u64::from_str_radix(mask.trim(), 16).ok().filter(|mask| mask & (1 << 14) != 0)
    };
    process.until("SIGTERM is caught", || std::fs::read_to_string(&status).ok()?.lines().find_map(catches));
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
}
