//! `sixfold envoy` and what it does on signals and administration commands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::Duration;
use support::{Directory, Process, bootstrap, free_port, get, read, request, send};

struct Running {
    process: Process,
    directory: Directory,
    admin: u16,
    port: u16,
}

fn start(options: &[&str]) -> Running {
    start_beside(options, "")
}

/// The same with other listeners beside the first.
fn start_beside(options: &[&str], listeners: &str) -> Running {
    let directory = Directory::new();
    let (admin, port) = (free_port(), free_port());
    let text = bootstrap(admin, port, "first", &directory.0.join("access.log")) + listeners;
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
    let of_listener = format!("listener.127.0.0.1_{}.http.in.downstream_rq_2xx: 1\n", running.port);
    assert_eq!(stats, format!("http.in.downstream_rq_2xx: 1\n{of_listener}"));
    let dump: serde_json::Value =
        serde_json::from_str(&get(running.admin, "/config_dump").unwrap().body).unwrap();
    let routes = dump["configs"].as_array().unwrap().iter().find(|part| {
        part["@type"].as_str().unwrap().ends_with("RoutesConfigDump")
            && !part["static_route_configs"].is_null()
    });
    assert_eq!(routes.unwrap()["static_route_configs"][0]["route_config"]["name"], "r");
    assert_eq!(dump["configs"][0]["bootstrap"]["node"]["id"], "node");
    // The administration's own log has a line for each of its requests, in Envoy's default format.
    let log = running.directory.path("admin.log");
    running.process.until("the administration's log", || {
        let text = std::fs::read_to_string(&log).ok()?;
        let line = text.lines().find(|line| line.contains("/listeners"))?;
        assert!(line.contains("\"GET /listeners HTTP/1.1\" 200 - 0 "), "{line}");
        Some(())
    });
}

/// A log that only opening shows to be impossible is an error of the log, not of the address.
#[test]
fn a_log_of_the_administration_that_cannot_be_opened_is_named() {
    let directory = Directory::new();
    let text = bootstrap(free_port(), free_port(), "first", &directory.0.join("access.log"));
    let log = directory.path("admin.log");
    let file = directory.path("envoy.yaml");
    std::fs::write(&file, text.replace(&log, "/proc/nolog")).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_sixfold"))
        .args(["envoy", "-c", &file])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("admin: access_log: can't open /proc/nolog"), "{said}");
}

#[test]
fn names_on_the_command_line_override_the_bootstraps() {
    let running = start(&["--service-cluster", "other", "--service-zone", "z"]);
    let info = get(running.admin, "/server_info").unwrap().body;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let node = &info["node"];
    assert_eq!(
        (&node["id"], &node["cluster"], &node["locality"]["zone"]),
        (&"node".into(), &"other".into(), &"z".into())
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

#[test]
fn questions_about_the_binary_are_answered_without_a_configuration() {
    for (option, stdout, stderr) in [
        ("--version", concat!("sixfold ", env!("CARGO_PKG_VERSION"), "\n"), ""),
        ("--hot-restart-version", "", "disabled\n"),
    ] {
        let output = support::output(&["envoy", option]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), stdout);
        assert_eq!(String::from_utf8_lossy(&output.stderr), stderr);
    }
}

const ROUTER: &str = "{name: router, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";
const FAULT: &str = "{name: envoy.filters.http.fault, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}}, ";

/// A file with a route that answers 200 with this body, but `fault` where there is a filter for it.
fn routes(body: &str, fault: u16) -> String {
    format!(
        "resources:\n- \"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration\n  name: r\n  virtual_hosts:\n\
         \x20 - name: v\n    domains: [\"*\"]\n    typed_per_filter_config:\n      envoy.filters.http.fault:\n\
         \x20       \"@type\": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault\n\
         \x20       abort: {{http_status: {fault}, percentage: {{numerator: 100}}}}\n\
         \x20   routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: \"{body}\"}}}}}}]\n"
    )
}

/// A bootstrap whose listeners, by port and with filters before the router, have their routes in a file.
fn by_file(admin: u16, listeners: &[(u16, &str)], path: &str) -> String {
    let listeners = listeners.iter().map(|(port, filters)| {
        format!(
            "{{name: l{port}, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{filters: [\
             {{name: hcm, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.\
             http_connection_manager.v3.HttpConnectionManager, stat_prefix: s, rds: {{route_config_name: r, config_source: \
             {{path_config_source: {{path: \"{path}\"}}}}}}, http_filters: [{filters}{ROUTER}]}}}}]}}]}}"
        )
    });
    let listeners = listeners.collect::<Vec<_>>().join(", ");
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}\n\
         static_resources: {{listeners: [{listeners}]}}\n"
    )
}

/// Two connection managers with different filters have one route configuration in a file: each answers by its own
/// filters, and both follow it.
#[test]
fn routes_in_a_file_are_followed() {
    let directory = Directory::new();
    let (admin, plain, faulty) = (free_port(), free_port(), free_port());
    let file = directory.write("routes.yaml", &routes("first", 501));
    let bootstrap = directory.write("envoy.yaml", &by_file(admin, &[(plain, ""), (faulty, FAULT)], &file));
    let mut process = Process::start(&["-c", &bootstrap, "--concurrency", "2", "--log-level", "warning"]);
    process.until("readiness", || get(admin, "/ready").filter(|response| response.status == 200));
    assert_eq!(get(plain, "/").unwrap().body, "first");
    assert_eq!(get(faulty, "/").unwrap().status, 501);
    let replace = |text: &str| {
        let next = directory.write("next.yaml", text);
        std::fs::rename(next, &file).unwrap();
    };
    replace("resources: [}");
    replace(&routes("second", 502));
    process.until("the second version", || get(plain, "/").filter(|response| response.body == "second"));
    process.until("it for the other filters", || get(faulty, "/").filter(|response| response.status == 502));
    let rejected = || get(admin, "/stats?filter=http.s.rds.r.update_rejected").unwrap().body;
    let before = rejected();
    replace("resources: []");
    process.until("its refusal", || (rejected() != before).then_some(()));
    // A listener that comes while the file is wrong has the last good version.
    let more = free_port();
    directory.write("envoy.yaml", &by_file(admin, &[(plain, ""), (faulty, FAULT), (more, FAULT)], &file));
    process.signal("HUP");
    process.until("the new listener", || get(more, "/").filter(|response| response.status == 502));
    assert_eq!(get(plain, "/").unwrap().body, "second");
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
    assert!(process.errors().contains("must be one route configuration, not 0"), "it is told");
}

#[test]
fn a_file_with_routes_must_be_there_and_need_not_be_right() {
    let directory = Directory::new();
    let (admin, port) = (free_port(), free_port());
    let file = directory.path("routes.yaml");
    let bootstrap = directory.write("envoy.yaml", &by_file(admin, &[(port, "")], &file));
    let mut process = Process::start(&["-c", &bootstrap]);
    assert_eq!(process.wait(), 1);
    let errors = process.errors();
    assert!(errors.contains(&format!("{file}: No such file")), "{errors}");
    // Nobody waits the 15 s of initial_fetch_timeout for what is there and wrong.
    directory.write("routes.yaml", &routes("x", 500).replace("name: r", "name: other"));
    let mut process = Process::start(&["-c", &bootstrap, "--log-level", "warning"]);
    process.until("readiness", || get(admin, "/ready").filter(|response| response.status == 200));
    assert_eq!(get(port, "/").unwrap().status, 404);
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
    let errors = process.errors();
    assert!(
        errors.contains("resources[0].name: must be \"r\", which is asked for, not \"other\""),
        "{errors}"
    );
}

/// A listener of which the load of the process is of no account.
fn spared(port: u16, how: &str) -> String {
    let extensions = "type.googleapis.com/envoy.extensions.filters";
    format!(
        r#"
  - name: spared
    {how}: true
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": {extensions}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: spared
          route_config:
            virtual_hosts:
            - name: v
              domains: ["*"]
              routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: spared}}}}}}]
          http_filters:
          - name: router
            typed_config: {{"@type": {extensions}.http.router.v3.Router}}
"#
    )
}

fn is_spared(port: u16) -> bool {
    get(port, "/").is_some_and(|response| (response.status, response.body.as_str()) == (200, "spared"))
}

/// A process with this load, and with listeners beside the first: a heap of a byte is always full.
fn under_load(monitor: &str, actions: &str, listeners: &str) -> Running {
    let manager = format!(
        "overload_manager: {{refresh_interval: 0.05s, resource_monitors: [{{name: m, typed_config: {{'@type': type.googleapis.com/envoy.extensions.resource_monitors.{monitor}}}}}], actions: [{actions}]}}"
    );
    start_beside(&["--config-yaml", &manager], listeners)
}

#[test]
fn under_load_requests_are_refused_and_connections_end() {
    let heap = "fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 1";
    let action = |name: &str| {
        format!("{{name: envoy.overload_actions.{name}, triggers: [{{name: m, threshold: {{value: 0.9}}}}]}}")
    };
    let beside = |name: &str| {
        let port = free_port();
        (under_load(heap, &action(name), &spared(port, "bypass_overload_manager")), port)
    };
    let (running, other) = beside("stop_accepting_requests");
    assert!(is_spared(other));
    let refused = get(running.port, "/").unwrap();
    assert_eq!((refused.status, refused.body.as_str()), (503, "envoy overloaded"));
    let stats = get(running.admin, "/stats?filter=overload").unwrap().body;
    assert!(stats.contains("http.in.downstream_rq_overload_close: 1\n"), "{stats}");
    assert!(stats.contains("overload.envoy.overload_actions.stop_accepting_requests.active: 1\n"), "{stats}");
    let running = under_load(heap, &action("disable_http_keepalive"), "");
    let last = get(running.port, "/").unwrap();
    assert_eq!((last.status, last.body.as_str()), (200, "first"));
    let stats = get(running.admin, "/stats?filter=overload_disable").unwrap().body;
    assert!(stats.contains("http.in.downstream_cx_overload_disable_keepalive: 1\n"), "{stats}");
    let (running, other) = beside("reject_incoming_connections");
    assert!(get(running.port, "/").is_none() && is_spared(other));
    let stats = get(running.admin, "/stats?filter=overload_reject").unwrap().body;
    assert!(stats.contains("downstream_cx_overload_reject: 1\n"), "{stats}");
    let (running, other) = beside("stop_accepting_connections");
    // The system takes the connection, and nobody else does.
    let mut waits = TcpStream::connect(("127.0.0.1", running.port)).unwrap();
    send(&mut waits, "GET", "/", &[]);
    waits.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let heard = waits.read(&mut [0]);
    assert!(heard.is_err_and(|error| error.kind() == ErrorKind::WouldBlock) && is_spared(other));
    let stats = get(running.admin, "/stats?filter=downstream_cx_total").unwrap().body;
    assert!(
        stats.contains(&format!("listener.127.0.0.1_{}.downstream_cx_total: 0\n", running.port)),
        "{stats}"
    );
}

#[test]
fn no_more_connections_than_the_process_may_have_are_kept() {
    let other = free_port();
    let mut running = under_load(
        "downstream_connections.v3.DownstreamConnectionsConfig, max_active_downstream_connections: 1",
        "",
        &spared(other, "ignore_global_conn_limit"),
    );
    // One that is not counted takes no place.
    let mut beside = TcpStream::connect(("127.0.0.1", other)).unwrap();
    send(&mut beside, "GET", "/", &[]);
    assert_eq!(read(&mut beside).unwrap().body, "spared");
    let mut one = TcpStream::connect(("127.0.0.1", running.port)).unwrap();
    send(&mut one, "GET", "/", &[]);
    assert_eq!(read(&mut one).unwrap().body, "first");
    assert!(get(running.port, "/").is_none(), "there is one already");
    assert!(is_spared(other), "which is of no account there");
    drop(one);
    running.process.until("place", || get(running.port, "/").filter(|response| response.status == 200));
}
