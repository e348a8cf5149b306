//! Traffic while routes are written as fast as clients can, and how long a change takes until it is live.
//!
//! The short form of each runs with all tests and asks for what holds on any machine. The long one says figures:
//! `cargo test --profile release -p sixfold --test admin_load -- --ignored --nocapture --test-threads 1`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::etcd::Etcd;
use support::gateway::{Gateway, Ports, ask_on, route, start};
use support::{Directory, LIMIT, get};

/// Clients that write at the same time.
const WRITERS: usize = 32;
/// Clients that ask at the same time.
const READERS: usize = 4;
/// Their pause between requests: it is how long one takes that is asked for, not how many there may be.
const PAUSE: Duration = Duration::from_millis(1);

/// How long requests took, sorted, and how many failed.
struct Measured {
    taken: Vec<Duration>,
    failed: usize,
}

impl Measured {
    fn at(&self, part: f64) -> Duration {
        let index = (self.taken.len() as f64 * part) as usize;
        self.taken[index.min(self.taken.len() - 1)]
    }
}

/// Asks on connections that stay open until `end` is.
fn traffic(port: u16, end: &AtomicBool) -> Measured {
    let mut measured = Measured { taken: Vec::new(), failed: 0 };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                scope.spawn(|| {
                    let (mut taken, mut failed) = (Vec::new(), 0);
                    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                    stream.set_read_timeout(Some(LIMIT)).unwrap();
                    let mut buffer = [0; 4096];
                    while !end.load(SeqCst) {
                        let begun = Instant::now();
                        let asked = stream.write_all(b"GET /steady HTTP/1.1\r\nHost: a\r\n\r\n");
                        let read = stream.read(&mut buffer).unwrap_or_default();
                        let answer = &buffer[..read];
                        if asked.is_err()
                            || !answer.starts_with(b"HTTP/1.1 200 ")
                            || !answer.ends_with(b"steady")
                        {
                            failed += 1;
                            stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                        }
                        taken.push(begun.elapsed());
                        std::thread::sleep(PAUSE);
                    }
                    (taken, failed)
                })
            })
            .collect();
        for (taken, failed) in readers.into_iter().map(|reader| reader.join().unwrap()) {
            measured.taken.extend(taken);
            measured.failed += failed;
        }
    });
    measured.taken.sort();
    measured
}

/// Traffic for so long, with and without writes; answers both, and the writes.
fn under_writes(gateway: &Gateway, time: Duration) -> (Measured, Measured, usize) {
    let ports = gateway.ports;
    let end = AtomicBool::new(false);
    let quiet = std::thread::scope(|scope| {
        let asked = scope.spawn(|| traffic(ports.http, &end));
        std::thread::sleep(time);
        end.store(true, SeqCst);
        asked.join().unwrap()
    });
    end.store(false, SeqCst);
    let written = AtomicUsize::new(0);
    let busy = std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (end, written, key) = (&end, &written, &gateway.key);
            scope.spawn(move || {
                let mut stream = TcpStream::connect(("127.0.0.1", ports.admin)).unwrap();
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                let target = format!("/apisix/admin/routes/of-{writer}");
                for n in 0.. {
                    if end.load(SeqCst) {
                        break;
                    }
                    let answer =
                        ask_on(&mut stream, key, "PUT", &target, &route(&format!("/of/{writer}/{n}"), "x"))
                            .unwrap();
                    assert!([200, 201].contains(&answer.status), "{}", answer.body);
                    written.fetch_add(1, SeqCst);
                }
            });
        }
        let asked = scope.spawn(|| traffic(ports.http, &end));
        std::thread::sleep(time);
        end.store(true, SeqCst);
        asked.join().unwrap()
    });
    let written = written.load(SeqCst);
    let rate = written as f64 / time.as_secs_f64();
    eprintln!(
        "{rate:.0} writes a second by {WRITERS} clients; p50 {:?} and p99 {:?} without, {:?} and {:?} with them; {} of {} failed",
        quiet.at(0.5),
        quiet.at(0.99),
        busy.at(0.5),
        busy.at(0.99),
        busy.failed,
        busy.taken.len()
    );
    (quiet, busy, written)
}

fn gateway(deployment: &str) -> (Directory, Gateway) {
    let (directory, ports) = (Directory::new(), Ports::free());
    directory.write("config.yaml", &ports.config(deployment));
    let mut gateway = Gateway::start(&directory, ports);
    assert_eq!(gateway.ask("PUT", "/routes/steady", &route("/steady", "steady")).status, 201);
    gateway.until_status("/steady", 200);
    (directory, gateway)
}

fn of_etcd(etcd: &Etcd) -> String {
    let provider = "role: traditional\n  role_traditional: {config_provider: etcd}";
    format!("{provider}\n  etcd: {{host: ['{}']}}", etcd.url())
}

#[test]
fn no_request_fails_while_routes_are_written() {
    let (_directory, gateway) = gateway("role: traditional");
    let (quiet, busy, written) = under_writes(&gateway, Duration::from_secs(2));
    assert_eq!((quiet.failed, busy.failed), (0, 0));
    assert!(written > WRITERS, "{written} writes");
    // The last one of each is in force.
    let all = gateway.ask("GET", "/routes", "");
    let all: serde_json::Value = serde_json::from_str(&all.body).unwrap();
    for uri in all["list"].as_array().unwrap().iter().map(|one| one["value"]["uri"].as_str().unwrap()) {
        support::etcd::until(uri, || get(gateway.ports.http, uri).is_some_and(|answer| answer.status == 200));
    }
}

#[test]
#[ignore = "a minute on each store, and figures that a busy machine has no part in"]
fn a_minute_of_writes() {
    let etcd = Etcd::start();
    for deployment in ["role: traditional".to_owned(), of_etcd(&etcd)] {
        let (_directory, gateway) = gateway(&deployment);
        let (quiet, busy, written) = under_writes(&gateway, Duration::from_secs(60));
        assert_eq!((quiet.failed, busy.failed), (0, 0));
        assert!(written >= 500 * 60, "{written} writes");
        assert!(busy.at(0.99) <= quiet.at(0.99) * 2, "{:?} and {:?}", busy.at(0.99), quiet.at(0.99));
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
        [("embedded", "role: traditional".to_owned(), (5, 15)), ("etcd", of_etcd(&etcd), (20, 20))]
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
