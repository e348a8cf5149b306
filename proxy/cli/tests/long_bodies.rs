//! Routes that are chosen by what is in long bodies: the worker that has such a request has others too.
//!
//! What each kind of variable costs: `cargo test --profile release -p sixfold --test long_bodies -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::gateway::{Ports, start};
use support::{Directory, LIMIT, Process, get, read};

/// So often it is tried whether others go on.
const TURNS: usize = 5;

/// A gateway with one worker.
struct Gateway {
    _directory: Directory,
    _process: Process,
    port: u16,
}

fn gateway() -> Gateway {
    let (directory, ports) = (Directory::new(), Ports::free());
    let provider = "role: data_plane\n  role_data_plane: {config_provider: yaml}";
    let config = ports.config(provider).replace("worker_processes: 2", "worker_processes: 1");
    directory.write("config.yaml", &format!("{config}graphql: {{max_size: 67108864}}\n"));
    let answer =
        |text: &str| format!("plugins: {{mocking: {{response_example: {text}, with_mock_header: false}}}}");
    let mut routes = format!("routes:\n- {{id: ping, uri: /ping, {}}}\n", answer("pong"));
    // Others ask for more of the same body.
    for (id, variable, value) in
        [("field", "post_arg.z", "x"), ("form", "post_arg_z", "x"), ("graphql", "graphql_name", "last")]
    {
        for n in 0..20 {
            let vars = format!("[[\"{variable}{n}\", \"==\", \"never\"]]");
            let vars = if id == "graphql" { format!("[[\"{variable}\", \"==\", \"no{n}\"]]") } else { vars };
            routes += &format!(
                "- {{id: {id}{n}, uri: /{id}, priority: {}, vars: {vars}, {}}}\n",
                n + 1,
                answer("wrong")
            );
        }
        routes += &format!(
            "- {{id: {id}, uri: /{id}, vars: [[\"{variable}\", \"==\", \"{value}\"]], {}}}\n",
            answer("found")
        );
    }
    directory.write("apisix.yaml", &format!("{routes}#END\n"));
    let mut process = start(&directory);
    process.until("the gateway", || get(ports.http, "/ping").filter(|answer| answer.status == 200));
    Gateway { _directory: directory, _process: process, port: ports.http }
}

/// A body of so many bytes, and its type.
fn body(path: &str, size: usize) -> (&'static str, Vec<u8>) {
    let filled = |head: &str, piece: &str, tail: &str| {
        let mut body = head.as_bytes().to_vec();
        while body.len() + piece.len() + tail.len() <= size {
            body.extend_from_slice(piece.as_bytes());
        }
        body.extend_from_slice(tail.as_bytes());
        body
    };
    match path {
        "/field" => ("application/json", filled("{\"a\":[0", ",0", "],\"z\":\"x\"}")),
        "/form" => ("application/x-www-form-urlencoded", filled("a=1", "&b%20=2", "&z=x")),
        _ => ("application/graphql", filled("query last { a", " b", " }")),
    }
}

/// Sends the body, and asks on another connection meanwhile; answers the longest that such a request took, and how long the one
/// with the body took from its last byte on.
fn held(gateway: &Gateway, path: &str, size: usize) -> (Duration, Duration) {
    let (kind, body) = body(path, size);
    let (begun, end) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let pings = scope.spawn(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
            let mut longest = Duration::ZERO;
            while !end.load(SeqCst) {
                let at = Instant::now();
                support::send(&mut stream, "GET", "/ping", &[]);
                assert_eq!(read(&mut stream).unwrap().body, "pong");
                if begun.load(SeqCst) {
                    longest = longest.max(at.elapsed());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            longest
        });
        let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
        stream.set_read_timeout(Some(2 * LIMIT)).unwrap();
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        // All but the end: what is measured is the search, and not how the body comes.
        let (before, last) = body.split_at(length - 1);
        stream.write_all(before).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        begun.store(true, SeqCst);
        let at = Instant::now();
        stream.write_all(last).unwrap();
        let answer = read(&mut stream);
        let took = at.elapsed();
        end.store(true, SeqCst);
        let longest = pings.join().unwrap();
        assert_eq!(answer.map(|answer| answer.body).as_deref(), Some("found"), "{path}");
        (longest, took)
    })
}

/// The worker searched a body of 64 MiB by itself, and answered nobody for as long.
#[test]
fn others_are_answered_while_a_long_body_is_searched() {
    let gateway = gateway();
    for (path, size) in [("/field", 48 << 20), ("/form", 16 << 20), ("/graphql", 16 << 20)] {
        // A worker that searches by itself holds others up each time, a busy machine now and then.
        let free = (0..TURNS).any(|_| {
            let (longest, took) = held(&gateway, path, size);
            eprintln!("{path}: {size} bytes in {took:?}, others waited for {longest:?} at most");
            longest < (took / 3).max(Duration::from_millis(100))
        });
        assert!(free, "{path}");
    }
    // Short ones are searched at once.
    for path in ["/field", "/form", "/graphql"] {
        held(&gateway, path, 60 << 10);
        held(&gateway, path, 70 << 10);
    }
}

#[test]
#[ignore = "figures that a busy machine has no part in"]
fn how_long_a_worker_is_held() {
    let gateway = gateway();
    for path in ["/field", "/form", "/graphql"] {
        for mib in [1, 16, 64] {
            let mut all: Vec<_> = (0..5).map(|_| held(&gateway, path, mib << 20)).collect();
            all.sort();
            let (longest, took) = all[2];
            eprintln!(
                "{path}, {mib} MiB: answered after {took:?}; others waited for {longest:?} at most (medians of 5)"
            );
        }
    }
}
