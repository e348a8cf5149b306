//! Reading the bootstrap and its route files again: all of it is in force, or nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::net::{TcpListener, TcpStream};
use support::envoy::{Resource, bootstrap_of, cluster, listener};
use support::{Directory, Process, free_port, get, read, send};

struct Running {
    process: Process,
    directory: Directory,
    admin: u16,
}

impl Running {
    fn start(admin: u16, directory: Directory, bootstrap: &str) -> Running {
        let file = directory.write("envoy.yaml", bootstrap);
        let log = directory.path("log.txt");
        let options = ["--concurrency", "2", "--use-dynamic-base-id", "--log-level", "info"];
        let mut process = Process::start(&[&["-c", &file, "--log-path", &log], &options[..]].concat());
        process.until("readiness", || get(admin, "/ready").filter(|response| response.status == 200));
        Running { process, directory, admin }
    }

    /// How many lines of the log have this.
    fn told(&self, what: &str) -> usize {
        let log = std::fs::read_to_string(self.directory.path("log.txt")).unwrap_or_default();
        log.lines().filter(|line| line.contains(what)).count()
    }

    fn until_told(&mut self, what: &str, times: usize) {
        let log = self.directory.path("log.txt");
        self.process.until(what, || {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            (log.lines().filter(|line| line.contains(what)).count() >= times).then_some(())
        });
    }

    fn until_body(&mut self, port: u16, body: &str) {
        self.process.until(body, || get(port, "/").filter(|response| response.body == body));
    }

    /// Has a bootstrap read again, and waits until it is refused.
    fn refuse(&mut self, bootstrap: &str) {
        let times = self.told("configuration refused") + 1;
        self.directory.write("envoy.yaml", bootstrap);
        self.process.signal("HUP");
        self.until_told("configuration refused", times);
    }

    fn replace(&self, name: &str, text: &[u8]) {
        let next = self.directory.path("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, self.directory.path(name)).unwrap();
    }
}

fn says(name: &str, port: u16, body: &str) -> Resource {
    let answer = format!("direct_response: {{status: 200, body: {{inline_string: {body}}}}}");
    listener(
        name,
        port,
        &format!(
            "{{match: {{path: /up}}, route: {{cluster: up, prefix_rewrite: /}}}}, {{match: {{prefix: /}}, {answer}}}"
        ),
    )
}

/// The first listener had changed, the last was closed, and the cluster had no endpoint any more, while the log said
/// that the old configuration stays.
#[test]
fn a_bootstrap_that_is_refused_when_it_is_applied_changes_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_port = taken.local_addr().unwrap().port();
    let (admin, a, c, other) = (free_port(), free_port(), free_port(), free_port());
    let text = bootstrap_of(admin, &[says("a", a, "old"), says("c", c, "c"), cluster("up", c)]);
    let mut running = Running::start(admin, Directory::new(), &text);
    let refused = bootstrap_of(
        admin,
        &[says("a", a, "new"), says("b", taken_port, "b"), says("d", other, "d"), cluster("up", free_port())],
    );
    let unlogged = refused.replace(&taken_port.to_string(), &free_port().to_string()).replace(
        "stat_prefix: b,",
        "stat_prefix: b, access_log: [{name: f, typed_config: {\"@type\": \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /proc/nolog}}],",
    );
    for (text, reason) in [(refused, "in use"), (unlogged, "/proc/nolog")] {
        running.refuse(&text);
        assert!(running.told(reason) > 0, "{reason}");
        assert_eq!(get(a, "/").unwrap().body, "old");
        assert_eq!(get(a, "/up").unwrap().body, "c");
        assert_eq!(get(c, "/").unwrap().body, "c");
        assert_eq!(get(other, "/"), None, "what was ready is given back");
        let dump = get(running.admin, "/config_dump").unwrap().body;
        assert!(dump.contains("\"old\"") && !dump.contains("\"new\""), "{dump}");
    }
    // What the refused ones did not take away goes now, and its address may be taken at once.
    let good = bootstrap_of(admin, &[says("a", a, "new"), says("b", c, "b"), cluster("up", a)]);
    running.directory.write("envoy.yaml", &good);
    running.process.signal("HUP");
    running.until_body(a, "new");
    running.until_body(c, "b");
    assert_eq!(get(a, "/up").unwrap().body, "new");
    running.process.until("the new bootstrap", || {
        let dump = get(admin, "/config_dump")?.body;
        (dump.contains("\"new\"") && !dump.contains("\"old\"")).then_some(())
    });
    assert_eq!(get(admin, "/listeners").unwrap().body.lines().count(), 2);
}

/// Routes in a file, of which the first is for the share of requests that the runtime says.
fn routes(body: &str) -> String {
    let answer =
        |body: &str| format!("direct_response: {{status: 200, body: {{inline_string: \"{body}\"}}}}");
    format!(
        "resources: [{{\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: r, virtual_hosts: \
         [{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: /, runtime_fraction: {{default_value: {{numerator: 100}}, \
         runtime_key: k}}}}, {}}}, {{match: {{prefix: /}}, {}}}]}}]}}]\n",
        answer(body),
        answer("none")
    )
}

const ROUTER: &str = "{name: router, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";
/// No request is in the share.
const NONE: &str = "layered_runtime: {layers: [{name: s, static_layer: {k: 0}}]}\n";

/// A bootstrap with a listener whose routes are in this file, and others in their lines; `more` are fields of it.
fn by_file(admin: u16, port: u16, path: &str, others: &[Resource], more: &str) -> String {
    let listener = format!(
        "  - {{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{filters: [\
         {{name: hcm, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.\
         http_connection_manager.v3.HttpConnectionManager, stat_prefix: s, rds: {{route_config_name: r, config_source: \
         {{path_config_source: {{path: \"{path}\"}}}}}}, http_filters: [{ROUTER}]}}}}]}}]}}\n"
    );
    let list = "  listeners:\n";
    bootstrap_of(admin, others).replace(list, &format!("{list}{listener}")) + more
}

/// A change of a file that came with a refused bootstrap was taken for known, and the next versions were compiled by the
/// refused one; what an accepted one said reached no route of a file.
#[test]
fn routes_in_files_belong_to_the_bootstrap_in_force() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (admin, port, directory) = (free_port(), free_port(), Directory::new());
    let file = directory.write("routes.yaml", &routes("first"));
    let mut running = Running::start(admin, directory, &by_file(admin, port, &file, &[], ""));
    assert_eq!(get(port, "/").unwrap().body, "first");
    let busy = [says("b", taken.local_addr().unwrap().port(), "b")];
    running.replace("routes.yaml", routes("second").as_bytes());
    running.refuse(&by_file(admin, port, &file, &busy, NONE));
    running.until_body(port, "second");
    running.replace("routes.yaml", routes("third").as_bytes());
    running.until_body(port, "third");
    running.directory.write("envoy.yaml", &by_file(admin, port, &file, &[], NONE));
    running.process.signal("HUP");
    running.until_body(port, "none");
    running.directory.write("envoy.yaml", &by_file(admin, port, &file, &[], ""));
    running.process.signal("HUP");
    running.until_body(port, "third");
}

const FAULT: &str = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";

/// A filter's configuration: this share of requests is answered 418.
fn fault(percent: u32) -> String {
    let abort = format!("abort: {{http_status: 418, percentage: {{numerator: {percent}}}}}");
    format!(
        "resources: [{{\"@type\": type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig, name: f, typed_config: \
         {{\"@type\": {FAULT}, {abort}}}}}]\n"
    )
}

/// Another request on a connection that is kept alive; the body of its answer.
fn ask(connection: &mut TcpStream) -> String {
    send(connection, "GET", "/", &[]);
    let answer = read(connection).expect("an answer");
    assert!(!answer.head.contains("connection: close"), "{}", answer.head);
    answer.body
}

/// It went, or served what the refused bootstrap said, until it was put back.
#[test]
fn a_refused_bootstrap_leaves_listeners_alone_that_wait_for_their_filters() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (admin, port, directory) = (free_port(), free_port(), Directory::new());
    let file = directory.write("f.yaml", &fault(0));
    let discovered = format!(
        "{{name: f, config_discovery: {{config_source: {{path_config_source: {{path: \"{file}\"}}}}, type_urls: [{FAULT}]}}}}"
    );
    // The filter, before the router of the listener that comes first.
    let late = |text: String| text.replacen("http_filters: [", &format!("http_filters: [{discovered}, "), 1);
    let busy = || says("b", taken.local_addr().unwrap().port(), "b");
    let up = || cluster("up", port);
    let mut running =
        Running::start(admin, directory, &late(bootstrap_of(admin, &[says("late", port, "old"), up()])));
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert_eq!(ask(&mut connection), "old");
    let counted = |event: &str| {
        let stats = get(admin, &format!("/stats?filter=listener_manager.listener_{event}")).unwrap().body;
        stats.trim().rsplit_once(' ').unwrap().1.parse::<u32>().unwrap()
    };
    let before = ["added", "modified", "removed"].map(counted);
    for refused in [
        late(bootstrap_of(admin, &[says("late", port, "new"), busy(), up()])),
        bootstrap_of(admin, &[says("late", port, "plain"), busy(), up()]),
        bootstrap_of(admin, &[busy(), up()]),
    ] {
        running.refuse(&refused);
        assert_eq!(ask(&mut connection), "old");
    }
    // What has come for them still counts, and is the only thing that did.
    running.replace("f.yaml", fault(100).as_bytes());
    running.process.until("the filter", || get(port, "/").filter(|answer| answer.status == 418));
    let [added, modified, removed] = before;
    assert_eq!(["added", "modified", "removed"].map(counted), [added, modified + 1, removed]);
    // An accepted one takes it away, and its address may be taken at once.
    running.directory.write("envoy.yaml", &bootstrap_of(admin, &[says("other", port, "other"), up()]));
    running.process.signal("HUP");
    running.until_body(port, "other");
    assert_eq!(["added", "modified", "removed"].map(counted), [added + 1, modified + 1, removed + 1]);
}

/// Nothing was said of a file that could not be read any more, and a FIFO in its place stopped every later change.
#[test]
fn a_file_that_cannot_be_read_is_told_of_once_and_holds_nothing_up() {
    let (admin, port, directory) = (free_port(), free_port(), Directory::new());
    let file = directory.write("routes.yaml", &routes("first"));
    let mut running = Running::start(admin, directory, &by_file(admin, port, &file, &[], ""));
    running.replace("routes.yaml", b"a\xff");
    running.until_told("not UTF-8", 1);
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    running.until_told("is a directory", 1);
    std::fs::remove_dir(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    running.until_told("is no regular file", 1);
    assert_eq!(get(port, "/").unwrap().body, "first");
    // A bootstrap that is read again meanwhile is not held up, nor is one that is no file refused late.
    running.directory.write("envoy.yaml", &by_file(admin, port, &file, &[], NONE));
    running.process.signal("HUP");
    running.until_body(port, "none");
    running.replace("routes.yaml", routes("second").as_bytes());
    running.directory.write("envoy.yaml", &by_file(admin, port, &file, &[], ""));
    running.process.signal("HUP");
    running.until_body(port, "second");
    for what in ["not UTF-8", "is a directory", "is no regular file"] {
        assert_eq!(running.told(what), 1, "{what}");
    }
    running.process.signal("TERM");
    assert_eq!(running.process.wait(), 0);
}

/// The log said that all of it was applied, and the administration listened where it had.
#[test]
fn what_a_new_start_alone_takes_is_warned_of() {
    let (admin, port, other) = (free_port(), free_port(), free_port());
    let resources = |body: &str| [says("l", port, body), cluster("up", port)];
    let mut running = Running::start(admin, Directory::new(), &bootstrap_of(admin, &resources("first")));
    running.directory.write("envoy.yaml", &bootstrap_of(other, &resources("second")));
    running.process.signal("HUP");
    running.until_body(port, "second");
    running.until_told("admin has changed, which a new start alone takes", 1);
    assert_eq!(running.told("node has changed"), 0);
}

/// The two waited for one another for ever.
#[test]
fn the_configuration_is_shown_while_another_is_put_in_force() {
    let (admin, port) = (free_port(), free_port());
    let resources = |body: &str| [says("l", port, body), cluster("up", port)];
    let mut running = Running::start(admin, Directory::new(), &bootstrap_of(admin, &resources("first")));
    for round in 1..=20 {
        let body = format!("round{round}x");
        running.directory.write("envoy.yaml", &bootstrap_of(admin, &resources(&body)));
        running.process.signal("HUP");
        let dumps: Vec<_> = (0..3)
            .map(|_| std::thread::spawn(move || get(admin, "/config_dump").map(|response| response.status)))
            .collect();
        for dump in dumps {
            assert_eq!(dump.join().unwrap(), Some(200), "round {round}");
        }
        running.until_body(port, &body);
    }
}
