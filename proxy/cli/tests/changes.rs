//! Changes of the configuration while clients are served: none of them is to notice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};
use support::envoy::{bootstrap_of, cluster, listener};
use support::traffic::{Traffic, sleep_until, upstream};
use support::{Directory, Process, free_port, get};

/// 1,000 changes a minute.
const INTERVAL: Duration = Duration::from_millis(60);
const CHURNING: u32 = 40;

/// Routes that stay, one that tells the version, and some that come, change and go.
struct Resources {
    upstream: u16,
    churning: BTreeMap<u32, u32>,
}

impl Resources {
    /// Adds, changes or removes one to five routes.
    fn change(&mut self, version: u32) {
        for _ in 0..fastrand::usize(1..=5) {
            let id = fastrand::u32(..CHURNING);
            if self.churning.contains_key(&id) && fastrand::bool() {
                self.churning.remove(&id);
            } else {
                self.churning.insert(id, version);
            }
        }
    }

    fn text(&self, version: u32) -> String {
        let node = format!("upstream: {{nodes: {{'127.0.0.1:{}': 1}}}}", self.upstream);
        let mut text = String::from("routes:\n");
        for (id, churned) in &self.churning {
            let plugin =
                format!("plugins: {{response-rewrite: {{headers: {{set: {{x-of: '{churned}'}}}}}}}}");
            writeln!(text, "  - {{id: c{id}, uri: /churn/{id}, {plugin}, {node}}}").unwrap();
        }
        let version = format!(
            "mocking: {{content_type: text/plain, response_example: 'v{version}', with_mock_header: false}}"
        );
        writeln!(text, "  - {{id: version, uri: /version, plugins: {{{version}}}, {node}}}").unwrap();
        for stays in 0..4 {
            writeln!(text, "  - {{id: s{stays}, uri: /stays/{stays}/*, {node}}}").unwrap();
        }
        writeln!(text, "  - {{id: ws, uri: /ws, enable_websocket: true, {node}}}\n#END").unwrap();
        text
    }
}

fn replace(directory: &Directory, name: &str, text: &str) {
    directory.write("next", text);
    std::fs::rename(directory.path("next"), directory.path(name)).unwrap();
}

/// Changes the configuration `changes` times at a rate of 1,000 a minute; every change is seen in force before the
/// next one is written.
fn change_under_load(changes: u32) {
    let (directory, port, status) = (Directory::new(), free_port(), free_port());
    let config = directory.write(
        "config.yaml",
        &format!(
            "deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n\
             apisix:\n  node_listen: [{{ip: 127.0.0.1, port: {port}}}]\n  ssl: {{enable: false}}\n  \
             status: {{ip: 127.0.0.1, port: {status}}}\n\
             nginx_config: {{worker_processes: 2, http: {{enable_access_log: false}}}}\n"
        ),
    );
    let mut resources = Resources { upstream: upstream(), churning: BTreeMap::new() };
    replace(&directory, "apisix.yaml", &resources.text(0));
    let mut process = Process::start(&["run", "-c", &config, "--log-level", "warn"]);
    process.until("readiness", || get(status, "/status/ready").filter(|r| r.status == 200));
    let mut traffic = Traffic::new();
    for nth in 0..4 {
        traffic.http1(port, &format!("/stays/{nth}/x"), Duration::from_millis(nth));
        traffic.websocket(port, "/ws");
    }
    traffic.http2(port, "/stays/0/y", 4);
    run_changes(&mut process, traffic, changes, port, |_, version| {
        if version % 20 == 0 {
            assert_churning_routes(port, &resources.churning);
        }
        resources.change(version);
        replace(&directory, "apisix.yaml", &resources.text(version));
    });
}

/// Makes the changes one after the other with `change` until `/version` answers the last; then nobody may have
/// failed.
fn run_changes(
    process: &mut Process,
    traffic: Traffic,
    changes: u32,
    port: u16,
    mut change: impl FnMut(&mut Process, u32),
) {
    let (start, mut slowest) = (Instant::now(), Duration::ZERO);
    for version in 1..=changes {
        sleep_until(start + INTERVAL * (version - 1));
        change(process, version);
        let (written, wanted) = (Instant::now(), format!("v{version}"));
        process.until(&wanted, || get(port, "/version").filter(|r| r.body == wanted));
        slowest = slowest.max(written.elapsed());
    }
    let took = start.elapsed();
    let tally = traffic.stop();
    println!(
        "{changes} changes in {took:.1?}, each in force within {slowest:.1?}; {} exchanges, {} failed",
        tally.done,
        tally.failed.len()
    );
    assert_eq!(tally.failed, [""; 0]);
    assert!(tally.done > changes as usize, "hardly any traffic: {}", tally.done);
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
}

fn assert_churning_routes(port: u16, churning: &BTreeMap<u32, u32>) {
    for id in 0..CHURNING {
        let response = get(port, &format!("/churn/{id}")).unwrap();
        match churning.get(&id) {
            Some(version) => assert!(response.head.contains(&format!("x-of: {version}\r\n")), "{response:?}"),
            None => assert_eq!(response.status, 404, "{response:?}"),
        }
    }
}

#[test]
fn changes_of_ten_seconds_fail_no_request() {
    change_under_load(170);
}

#[test]
#[ignore = "takes a minute"]
fn a_thousand_changes_a_minute_fail_no_request() {
    change_under_load(1000);
}

/// Each member was held against what the others were: a file that changes all of them at once was refused for ever,
/// and taken at the next start.
#[test]
fn a_limit_of_a_whole_group_changes_in_one_file() {
    let (directory, port, status, up) = (Directory::new(), free_port(), free_port(), upstream());
    let config = directory.write(
        "config.yaml",
        &format!(
            "deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n\
             apisix:\n  node_listen: [{{ip: 127.0.0.1, port: {port}}}]\n  ssl: {{enable: false}}\n  \
             status: {{ip: 127.0.0.1, port: {status}}}\n\
             nginx_config: {{worker_processes: 1, http: {{enable_access_log: false}}}}\n"
        ),
    );
    let member = |id: &str, count: u32| {
        let limit = format!("limit-count: {{group: g, count: {count}, time_window: 3600}}");
        let node = format!("upstream: {{nodes: {{'127.0.0.1:{up}': 1}}}}");
        format!("  - {{id: {id}, uri: /{id}, plugins: {{{limit}}}, {node}}}\n")
    };
    let file = |a: u32, b: u32, last: &str| {
        format!("routes:\n{}{}{}#END\n", member("a", a), member("b", b), member(last, b))
    };
    let limit = |path: &str| {
        let head = get(port, path)?.head;
        head.lines().find_map(|line| line.strip_prefix("x-ratelimit-limit: ")?.parse::<u32>().ok())
    };
    replace(&directory, "apisix.yaml", &file(1000, 1000, "c"));
    let mut process = Process::start(&["run", "-c", &config, "--log-level", "warn"]);
    process.until("the first limit", || limit("/a").filter(|limit| *limit == 1000));
    replace(&directory, "apisix.yaml", &file(2000, 2000, "c"));
    process.until("the limit of all", || limit("/b").filter(|limit| *limit == 2000));
    assert_eq!(limit("/a"), Some(2000));
    // One that leaves the others alone is refused; the rest of its file is taken.
    replace(&directory, "apisix.yaml", &file(3000, 2000, "d"));
    process.until("the rest of the file", || limit("/d").filter(|limit| *limit == 2000));
    assert_eq!((limit("/a"), limit("/b")), (Some(2000), Some(2000)));
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
}

/// A bootstrap read again on SIGHUP: one listener that stays as it is, one whose routes change every time, and others
/// that come and go, as do clusters.
fn reload_under_load(changes: u32) {
    let (directory, admin, stays, changing) = (Directory::new(), free_port(), free_port(), free_port());
    let (upstream, extra) = (upstream(), [free_port(), free_port()]);
    let text = |version: u32| {
        let all = "{match: {prefix: /}, route: {cluster: up, timeout: 0s}}";
        let answer = format!("direct_response: {{status: 200, body: {{inline_string: v{version}}}}}");
        let mut resources = vec![
            cluster("up", upstream),
            listener("stays", stays, all),
            listener("changing", changing, &format!("{{match: {{path: /version}}, {answer}}}, {all}")),
        ];
        for (nth, port) in extra.into_iter().enumerate() {
            // Closing a listener takes the time that handshakes under way may need, so that is not done every time.
            if (version as usize / 20 + nth).is_multiple_of(2) {
                let name = format!("extra{nth}");
                resources.push(cluster(&name, fastrand::u16(1..)));
                resources.push(listener(
                    &name,
                    port,
                    &format!("{{match: {{prefix: /}}, route: {{cluster: {name}}}}}"),
                ));
            }
        }
        fastrand::shuffle(&mut resources);
        bootstrap_of(admin, &resources)
    };
    replace(&directory, "envoy.yaml", &text(0));
    let file = directory.path("envoy.yaml");
    let options =
        ["--concurrency", "2", "--use-dynamic-base-id", "--log-level", "warning", "--drain-time-s", "5"];
    let arguments: Vec<&str> = ["-c", &file].into_iter().chain(options).collect();
    let mut process = Process::start(&arguments);
    process.until("readiness", || get(admin, "/ready").filter(|r| r.status == 200));
    let mut traffic = Traffic::new();
    for nth in 0..3 {
        traffic.http1(stays, "/x", Duration::from_millis(nth));
        traffic.http1(changing, "/x", Duration::from_millis(nth));
        traffic.websocket(stays, "/ws");
    }
    traffic.http2(stays, "/y", 4);
    traffic.http2(changing, "/y", 4);
    run_changes(&mut process, traffic, changes, changing, |process, version| {
        replace(&directory, "envoy.yaml", &text(version));
        process.signal("HUP");
    });
}

#[test]
fn reloads_of_ten_seconds_fail_no_request() {
    reload_under_load(170);
}

#[test]
#[ignore = "takes a minute"]
fn a_thousand_reloads_a_minute_fail_no_request() {
    reload_under_load(1000);
}
