//! `sixfold envoy` and what it does on signals and administration commands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::net::TcpStream;
use support::{Directory, Process, bootstrap, free_port, get, read, request, send};

struct Running {
    process: Process,
    directory: Directory,
    admin: u16,
    port: u16,
}

fn start(options: &[&str]) -> Running {
    let directory = Directory::new();
    let (admin, port) = (free_port(), free_port());
    let text = bootstrap(admin, port, "first", &directory.0.join("access.log"));
    let file = directory.write("envoy.yaml", &text);
    let mut arguments =
        vec!["-c", &file, "--concurrency", "2", "--use-dynamic-base-id", "--log-level", "warning"];
    arguments.extend(options);
    let mut process = Process::start(&arguments);
    process.until("readiness", || get(admin, "/ready").filter(|response| response.status == 200));
    Running { process, directory, admin, port }
}

#[test]
fn serves_a_bootstrap_without_a_command() {
    let directory = Directory::new();
    let address = directory.path("admin.txt");
    let mut running = start(&["--admin-address-path", &address, "--file-flush-interval-msec", "10"]);
    let response = get(running.port, "/x?y").unwrap();
    assert_eq!((response.status, response.body.as_str()), (200, "first"));
    assert_eq!(std::fs::read_to_string(&address).unwrap(), format!("127.0.0.1:{}", running.admin));
    let log = running.directory.path("access.log");
    running
        .process
        .until("log line", || std::fs::read_to_string(&log).ok().filter(|text| text == "GET /x?y 200\n"));
    let listeners = get(running.admin, "/listeners").unwrap().body;
    assert_eq!(listeners, format!("in::127.0.0.1:{}\n", running.port));
    let stats = get(running.admin, "/stats?filter=http.in.downstream_rq_2xx").unwrap().body;
    assert_eq!(stats, "http.in.downstream_rq_2xx: 1\n");
    let dump: serde_json::Value =
        serde_json::from_str(&get(running.admin, "/config_dump").unwrap().body).unwrap();
    assert_eq!(dump["configs"][3]["static_route_configs"][0]["route_config"]["name"], "r");
    assert_eq!(dump["configs"][0]["bootstrap"]["node"]["id"], "n");
}

#[test]
fn names_on_the_command_line_override_the_bootstraps() {
    let running = start(&["--service-cluster", "other", "--service-zone", "z"]);
    let info = get(running.admin, "/server_info").unwrap().body;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let node = &info["node"];
    assert_eq!(
        (&node["id"], &node["cluster"], &node["locality"]["zone"]),
        (&"n".into(), &"other".into(), &"z".into())
    );
}

#[test]
fn sigterm_ends_idle_connections_and_finishes() {
    let mut running = start(&[]);
    let mut kept = TcpStream::connect(("127.0.0.1", running.port)).unwrap();
    send(&mut kept, "GET", "/", &[]);
    assert_eq!(read(&mut kept).unwrap().status, 200);
    running.process.signal("TERM");
    assert_eq!(running.process.wait(), 0);
    assert_eq!(read(&mut kept), None, "the connection was closed");
    let log = std::fs::read_to_string(running.directory.path("access.log")).unwrap();
    assert_eq!(log, "GET / 200\n", "the last lines are written");
    assert_eq!(get(running.port, "/"), None);
}

#[test]
fn sigint_and_quitquitquit_end_too() {
    let mut running = start(&[]);
    running.process.signal("INT");
    assert_eq!(running.process.wait(), 0);
    let mut running = start(&[]);
    assert_eq!(request(running.admin, "POST", "/quitquitquit", &[]).unwrap().body, "OK\n");
    assert_eq!(running.process.wait(), 0);
}

#[test]
fn sighup_reads_the_bootstrap_again_and_refuses_a_bad_one() {
    let mut running = start(&[]);
    let log = running.directory.0.join("access.log");
    let second = bootstrap(running.admin, running.port, "second", &log);
    running.directory.write("envoy.yaml", &second.replace("prefix:", "prefx:"));
    running.process.signal("HUP");
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(get(running.port, "/").unwrap().body, "first", "a bad update harms nothing");
    running.directory.write("envoy.yaml", &second);
    running.process.signal("HUP");
    let port = running.port;
    running.process.until("second", || get(port, "/").filter(|response| response.body == "second"));
}

#[test]
fn sigusr1_opens_logs_anew() {
    let mut running = start(&["--file-flush-interval-msec", "10"]);
    let log = running.directory.path("access.log");
    std::fs::rename(&log, running.directory.path("moved.log")).unwrap();
    running.process.signal("USR1");
    running.process.until("new log", || std::fs::metadata(&log).ok());
    get(running.port, "/after").unwrap();
    running
        .process
        .until("line", || std::fs::read_to_string(&log).ok().filter(|text| text.contains("/after")));
}

#[test]
fn health_checks_fail_on_request() {
    let running = start(&[]);
    assert_eq!(request(running.admin, "POST", "/healthcheck/fail", &[]).unwrap().body, "OK\n");
    assert_eq!(get(running.admin, "/ready").unwrap().body, "DRAINING\n");
    assert!(get(running.port, "/").unwrap().head.contains("connection: close"));
    request(running.admin, "POST", "/healthcheck/ok", &[]).unwrap();
    assert_eq!(get(running.admin, "/ready").unwrap().body, "LIVE\n");
    let levels = request(running.admin, "POST", "/logging?paths=upstream:debug", &[]).unwrap().body;
    assert!(levels.starts_with("active loggers:\n") && levels.contains("  upstream: debug\n"), "{levels}");
}

#[test]
fn a_taken_port_ends_the_start_with_a_reason() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let directory = Directory::new();
    let port = taken.local_addr().unwrap().port();
    let text = bootstrap(free_port(), port, "x", &directory.0.join("a.log"));
    let file = directory.write("envoy.yaml", &text);
    let mut process = Process::start(&["envoy", "-c", &file]);
    assert_eq!(process.wait(), 1);
    let errors = process.errors();
    assert!(errors.contains(&format!("127.0.0.1:{port}")) && errors.contains("in use"), "{errors}");
}

#[test]
fn the_mode_validate_serves_nothing() {
    let directory = Directory::new();
    let text = bootstrap(1, 1, "x", &directory.0.join("a.log"));
    let file = directory.write("envoy.yaml", &text);
    let output = support::output(&["envoy", "--mode", "validate", "-c", &file]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("OK\n"));
    assert!(!directory.0.join("a.log").exists(), "a check leaves files behind");
}
