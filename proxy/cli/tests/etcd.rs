//! The real binary with a real etcd: roles, faults, and changes that others make.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::net::TcpStream;
use std::time::{Duration, Instant};
use support::etcd::{Etcd, until};
use support::gateway::{Gateway, Ports, call, route, start};
use support::{Directory, LIMIT, get, output};

fn config(ports: Ports, role: &str, etcd: &Etcd) -> String {
    ports.config(&format!(
        "role: {role}\n  role_{role}: {{config_provider: etcd}}\n  etcd: {{host: ['{}'], resync_delay: 0}}",
        etcd.url()
    ))
}

fn gateway(directory: &Directory, ports: Ports, etcd: &Etcd) -> Gateway {
    directory.write("config.yaml", &config(ports, "traditional", etcd));
    Gateway::start(directory, ports)
}

#[test]
fn what_anybody_writes_is_live_and_what_the_gateway_writes_is_for_anybody() {
    let (etcd, directory, ports) = (Etcd::start(), Directory::new(), Ports::free());
    let mut gateway = gateway(&directory, ports, &etcd);
    etcd.put("/apisix/routes/1", &route("/one", "theirs"));
    gateway.until_status("/one", 200);
    assert_eq!(get(ports.http, "/one").unwrap().body, "theirs");
    let shown = gateway.ask("GET", "/routes/1", "");
    let found: serde_json::Value = serde_json::from_str(&shown.body).unwrap();
    assert_eq!(found["key"], "/apisix/routes/1");
    let revision = etcd.put("/apisix/gen_id", "1");
    assert_eq!(found["createdIndex"].as_u64().unwrap(), revision - 1);
    etcd.delete("/apisix/routes/1");
    gateway.until_status("/one", 404);
    assert_eq!(gateway.ask("PUT", "/routes/2", &route("/two", "ours")).status, 201);
    gateway.until_status("/two", 200);
    let kept: serde_json::Value = serde_json::from_str(&etcd.get("/apisix/routes/2").unwrap()).unwrap();
    assert_eq!((&kept["id"], &kept["uri"]), (&"2".into(), &"/two".into()));
    assert!(kept["create_time"].is_u64() && kept["update_time"].is_u64());
    // An id that is made is a revision of etcd.
    let made: serde_json::Value =
        serde_json::from_str(&gateway.ask("POST", "/routes", &route("/three", "x")).body).unwrap();
    let id: u64 = made["value"]["id"].as_str().unwrap().parse().unwrap();
    assert!(id > revision, "{made}");
    // What ends by a lease goes by itself, the soonest too.
    assert_eq!(gateway.ask("PUT", "/routes/4?ttl=0", &route("/four", "short")).status, 201);
    gateway.until_status("/four", 200);
    gateway.until_status("/four", 404);
    // What is wrong keeps what was there, and nothing else.
    etcd.put("/apisix/routes/2", "{\"uri\":");
    etcd.put("/apisix/routes/5", &route("/five", "after"));
    gateway.until_status("/five", 200);
    assert_eq!(get(ports.http, "/two").unwrap().body, "ours");
    // How long a change takes that was answered.
    let mut taken = Vec::new();
    for n in 0..20 {
        let path = format!("/n{n}");
        let start = Instant::now();
        assert_eq!(
            gateway.ask("PUT", "/routes/1", &route(&path, "x")).status,
            if n == 0 { 201 } else { 200 }
        );
        let written = start.elapsed();
        taken.push((gateway.until_status(&path, 200), written));
    }
    taken.sort();
    eprintln!("written in {:?}, in force {:?} after (medians of 20)", taken[10].1, taken[10].0);
}

#[test]
fn an_etcd_that_is_killed_costs_writes_and_nothing_else() {
    let (mut etcd, directory, ports) = (Etcd::start(), Directory::new(), Ports::free());
    let mut gateway = gateway(&directory, ports, &etcd);
    assert_eq!(gateway.ask("PUT", "/routes/1", &route("/one", "first")).status, 201);
    gateway.until_status("/one", 200);
    etcd.kill();
    for (method, body) in
        [("PUT", route("/one", "second")), ("GET", String::new()), ("DELETE", String::new())]
    {
        let answer = gateway.ask(method, "/routes/1", &body);
        let words = "{\"error_msg\":\"has no healthy etcd endpoint available\"}\n";
        assert_eq!((answer.status, answer.body.as_str()), (503, words), "{method}");
    }
    assert_eq!(get(ports.http, "/one").unwrap().body, "first");
    assert_eq!(get(ports.status, "/status/ready").unwrap().status, 200);
    etcd.start_again();
    // What is written at once after that is not missed.
    etcd.put("/apisix/routes/2", &route("/two", "theirs"));
    gateway.until_status("/two", 200);
    assert_eq!(gateway.ask("PUT", "/routes/1", &route("/three", "third")).status, 200);
    gateway.until_status("/three", 200);
}

/// What is said of the store: `apisix_etcd_reachable`, `apisix_config_read`, and whether `/v1/refused` has a reason.
fn told_of_store(ports: Ports) -> Option<(bool, bool, bool)> {
    let page = get(ports.http, "/apisix/prometheus/metrics").filter(|answer| answer.status == 200)?.body;
    let is_one = |name: &str| page.lines().any(|line| line == format!("{name} 1"));
    let told = get(ports.control, "/v1/refused")?.body;
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let unread = told["unread"].as_array().unwrap();
    Some((is_one("apisix_etcd_reachable"), is_one("apisix_config_read"), !unread.is_empty()))
}

/// Both numbers were 1 for ever, and nothing told of an etcd that was away: no alert could fire.
#[test]
fn numbers_and_the_control_api_tell_that_etcd_is_away() {
    let (mut etcd, directory, ports) = (Etcd::start(), Directory::new(), Ports::free());
    etcd.put("/apisix/routes/m", r#"{"uri":"/apisix/prometheus/metrics","plugins":{"public-api":{}}}"#);
    let (there, away) = ((true, true, false), (false, false, true));
    {
        let mut gateway = gateway(&directory, ports, &etcd);
        let mut until = |told| {
            gateway.process.until("what is told of etcd", || told_of_store(ports).filter(|it| *it == told));
        };
        until(there);
        etcd.kill();
        until(away);
        etcd.start_again();
        until(there);
        gateway.process.signal("TERM");
        assert_eq!(gateway.process.wait(), 0);
    }
    etcd.kill();
    let mut gateway = Gateway::start(&directory, ports);
    gateway.until_status("/apisix/prometheus/metrics", 200);
    assert_eq!(told_of_store(ports), Some(away), "at its start");
    etcd.start_again();
    gateway.process.until("etcd", || told_of_store(ports).filter(|told| *told == there));
}

#[test]
fn it_starts_and_serves_what_was_read_last_while_etcd_is_away() {
    let (mut etcd, directory, ports) = (Etcd::start(), Directory::new(), Ports::free());
    {
        let mut gateway = gateway(&directory, ports, &etcd);
        assert_eq!(gateway.ask("PUT", "/routes/1", &route("/one", "first")).status, 201);
        assert_eq!(gateway.ask("PUT", "/routes/2", &route("/two", "second")).status, 201);
        assert_eq!(gateway.ask("DELETE", "/routes/2", "").status, 200);
        gateway.until_status("/one", 200);
        gateway.process.signal("TERM");
        assert_eq!(gateway.process.wait(), 0);
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(directory.path("data/etcd.redb")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "credentials are in it");
    etcd.kill();
    let mut gateway = Gateway::start(&directory, ports);
    gateway.until_status("/one", 200);
    assert_eq!(get(ports.http, "/two").unwrap().status, 404);
    gateway.process.until("its readiness", || get(ports.status, "/status/ready").filter(|a| a.status == 200));
    etcd.start_again();
    etcd.put("/apisix/routes/3", &route("/three", "third"));
    gateway.until_status("/three", 200);
    assert_eq!(get(ports.http, "/one").unwrap().body, "first");
}

#[test]
fn without_anything_to_serve_a_data_plane_waits_and_others_say_why_they_do_not_start() {
    let (mut etcd, directory, ports) = (Etcd::start(), Directory::new(), Ports::free());
    etcd.kill();
    directory.write("config.yaml", &config(ports, "traditional", &etcd));
    let mut process = start(&directory);
    assert_eq!(process.wait(), 1);
    let errors = process.errors();
    assert!(errors.contains("config.yaml:"), "{errors}");
    assert!(errors.contains("deployment.etcd.host: has no healthy etcd endpoint available"), "{errors}");
    directory.write("config.yaml", &config(ports, "data_plane", &etcd));
    let mut process = start(&directory);
    process.until("the status page", || get(ports.status, "/status"));
    assert_eq!(get(ports.status, "/status/ready").map(|answer| answer.status), Some(503));
    etcd.start_again();
    process.until("a configuration", || {
        get(ports.status, "/status/ready").filter(|answer| answer.status == 200)
    });
    etcd.put("/apisix/routes/1", &route("/one", "first"));
    process.until("a route", || get(ports.http, "/one").filter(|answer| answer.status == 200));
}

#[test]
fn a_control_plane_writes_for_data_planes() {
    let (etcd, directories) = (Etcd::start(), [Directory::new(), Directory::new()]);
    let [control, data] = [Ports::free(), Ports::free()];
    // Those of streams that are there stay: a gateway of APISIX would run none without them.
    etcd.put("/apisix/plugins", r#"[{"name":"cors"},{"name":"ip-restriction","stream":true}]"#);
    let listed = "plugins: [mocking, echo]\n";
    directories[0].write("config.yaml", &format!("{listed}{}", config(control, "control_plane", &etcd)));
    let mut writer = start(&directories[0]);
    writer.until("the Admin API", || TcpStream::connect(("127.0.0.1", control.admin)).ok());
    assert!(TcpStream::connect(("127.0.0.1", control.http)).is_err(), "it serves no traffic");
    directories[1].write("config.yaml", &config(data, "data_plane", &etcd));
    let mut server = start(&directories[1]);
    let key = std::fs::read_to_string(directories[0].path("data/admin-key")).unwrap();
    let put = |id: &str, body: &str| {
        call(control.admin, key.trim(), "PUT", &format!("/apisix/admin/routes/{id}"), body).unwrap().status
    };
    assert_eq!(put("1", &route("/one", "first")), 201);
    server.until("the route", || get(data.http, "/one").filter(|answer| answer.body == "first"));
    assert!(TcpStream::connect(("127.0.0.1", data.admin)).is_err(), "it has no Admin API");
    // The list of plugins is the control plane's.
    let told = etcd.get("/apisix/plugins").unwrap();
    assert_eq!(told, r#"[{"name":"mocking"},{"name":"echo"},{"name":"ip-restriction","stream":true}]"#);
    let limited = r#"{"uri":"/two","plugins":{"fault-injection":{"abort":{"http_status":418}}}}"#;
    assert_eq!(put("2", limited), 400);
    etcd.put("/apisix/routes/2", limited);
    etcd.put("/apisix/plugins", r#"[{"name":"mocking"},{"name":"fault-injection"},{"name":"unheard-of"}]"#);
    server.until("the plugin", || get(data.http, "/two").filter(|answer| answer.status == 418));
    etcd.put("/apisix/plugins", r#"[{"name":"mocking"}]"#);
    etcd.put("/apisix/routes/3", &route("/three", "third"));
    server.until("a later route", || get(data.http, "/three").filter(|answer| answer.body == "third"));
    assert_eq!(get(data.http, "/one").unwrap().body, "first");
}

/// A plugin that was switched off for all ran again after a restart, and one that only the list has ended its routes.
#[test]
fn the_list_of_plugins_outlives_etcd_with_the_resources() {
    let (mut etcd, directory, ports) = (Etcd::start(), Directory::new(), Ports::free());
    etcd.put("/apisix/plugins", r#"[{"name":"mocking"}]"#);
    etcd.put("/apisix/routes/1", &route("/one", "first"));
    etcd.put(
        "/apisix/routes/2",
        r#"{"uri":"/two","plugins":{"fault-injection":{"abort":{"http_status":418}}}}"#,
    );
    directory
        .write("config.yaml", &format!("plugins: [fault-injection]\n{}", config(ports, "data_plane", &etcd)));
    let serves = || {
        let mut process = start(&directory);
        process.until("the route", || get(ports.http, "/one").filter(|answer| answer.body == "first"));
        assert_eq!(get(ports.http, "/two").unwrap().status, 404, "its plugin is off");
        process.signal("TERM");
        assert_eq!(process.wait(), 0);
    };
    serves();
    etcd.kill();
    serves();
}

/// config.yaml says nothing of a part of the list that nobody has written yet: APISIX's gateways would run none of it.
#[test]
fn what_config_yaml_does_not_list_is_what_apisix_has_by_default() {
    for (listed, part, other) in [
        ("plugins: [echo]\n", r#"{"name":"echo"}"#, r#"{"name":"limit-conn","stream":true}"#),
        ("stream_plugins: [syslog]\n", r#"{"name":"syslog","stream":true}"#, r#"{"name":"key-auth"}"#),
    ] {
        let (etcd, directory, ports) = (Etcd::start(), Directory::new(), Ports::free());
        directory.write("config.yaml", &format!("{listed}{}", config(ports, "control_plane", &etcd)));
        let mut writer = start(&directory);
        writer.until("the Admin API", || TcpStream::connect(("127.0.0.1", ports.admin)).ok());
        let told = etcd.get("/apisix/plugins").unwrap();
        assert!(told.contains(part) && told.contains(other), "{told}");
        assert_eq!(told.matches("stream").count() > 1, listed.starts_with("plugins"), "{told}");
    }
}

/// `dump` printed an empty file under another prefix, and nothing could be looked at without an Admin API that runs.
#[test]
fn what_an_etcd_has_is_dumped_checked_and_explained_and_nothing_is_written() {
    let (mut etcd, directory, ports) = (Etcd::start(), Directory::new(), Ports::free());
    etcd.put("/gw/plugins", r#"[{"name":"mocking"}]"#);
    etcd.put("/gw/routes/1", &route("/one", "first"));
    let config = directory.path("config.yaml");
    let run = |arguments: &[&str]| {
        let output = output(&[arguments, &["-c", &config]].concat());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    for role in ["traditional", "data_plane"] {
        let text = self::config(ports, role, &etcd).replace("etcd: {", "etcd: {prefix: /gw, timeout: 2, ");
        directory.write("config.yaml", &format!("plugins: [mocking, echo]\n{text}"));
        let (code, dumped, errors) = run(&["dump"]);
        assert!(code == Some(0) && dumped.contains("uri: \"/one\""), "{dumped}{errors}");
        let (code, told, errors) = run(&["validate"]);
        assert!(code == Some(0) && told.contains("OK") && errors.is_empty(), "{told}{errors}");
        let (code, explained, errors) = run(&["explain", "GET", "http://a.test/one"]);
        assert!(code == Some(0) && explained.contains("mocking"), "{explained}{errors}");
        // By the list that such a gateway follows, or by its own.
        etcd.put("/gw/routes/2", r#"{"uri":"/two","plugins":{"echo":{"body":"x"}}}"#);
        let (code, _, errors) = run(&["validate"]);
        let unknown = errors.starts_with("warning: etcd /gw:")
            && errors.contains("route \"2\": plugins.echo: unknown plugin [echo]");
        assert_eq!((code, unknown), (Some(0), role == "data_plane"), "{errors}");
        // Nobody's write keeps a gateway from a start that is checked like that.
        assert_eq!(run(&["validate", "--strict"]).0, Some(i32::from(unknown)));
        etcd.delete("/gw/routes/2");
    }
    assert_eq!(etcd.get("/gw/plugins").unwrap(), r#"[{"name":"mocking"}]"#);
    assert_eq!(etcd.get("/gw/routes/"), None, "no directories");
    assert!(!std::fs::exists(directory.path("data")).unwrap());
    etcd.kill();
    let (code, told, errors) = run(&["validate"]);
    let unseen = "APISIX configuration: OK; resources in etcd were not looked at: ";
    assert!(code == Some(0) && told.contains(unseen) && errors.is_empty(), "{told}{errors}");
    let (code, _, errors) = run(&["dump"]);
    assert!(code == Some(1) && errors.contains("deployment.etcd.host: "), "{errors}");
}

/// What was read was not kept while another process had the file; both serve.
#[test]
fn two_gateways_of_one_folder_serve() {
    let (etcd, directory, ports) = (Etcd::start(), Directory::new(), [Ports::free(), Ports::free()]);
    let mut first = gateway(&directory, ports[0], &etcd);
    assert_eq!(first.ask("PUT", "/routes/1", &route("/one", "x")).status, 201);
    let mut second = gateway(&directory, ports[1], &etcd);
    first.until_status("/one", 200);
    second.until_status("/one", 200);
}

/// A member that takes connections and never answers held the start up for as long as its timeout is.
#[test]
fn an_etcd_that_never_answers_does_not_hold_up_a_start_with_something_to_serve() {
    let (etcd, directory, ports) = (Etcd::start(), Directory::new(), Ports::free());
    {
        let mut gateway = gateway(&directory, ports, &etcd);
        assert_eq!(gateway.ask("PUT", "/routes/1", &route("/one", "x")).status, 201);
        gateway.until_status("/one", 200);
        gateway.process.signal("TERM");
        assert_eq!(gateway.process.wait(), 0);
    }
    etcd.signal("STOP");
    let begun = Instant::now();
    let mut gateway = Gateway::start(&directory, ports);
    gateway.until_status("/one", 200);
    assert!(begun.elapsed() < Duration::from_secs(10).min(LIMIT), "{:?}", begun.elapsed());
    gateway.process.signal("TERM");
    assert_eq!(gateway.process.wait(), 0);
    etcd.signal("CONT");
    until("etcd", || etcd.get("/apisix/routes/1").is_some());
}
