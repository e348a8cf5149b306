//! Gateways on an etcd of three members, one after the other of which has a fault.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::etcd::{Cluster, Relay, until};
use support::gateway::{Gateway, Ports, ask_on, route, start};
use support::wrk::{ASKED, wrk};
use support::{Directory, LIMIT, free_port, get, request};

/// Clients that write at the same time.
const WRITERS: usize = 8;

/// Times that a test may wait for, in place of half a minute.
const QUICK: &str = "timeout: 2, watch_timeout: 1, resync_delay: 0, health_check_timeout: 1";

fn config(ports: Ports, role: &str, urls: &[String], more: &str) -> String {
    let provider = format!("role: {role}\n  role_{role}: {{config_provider: etcd}}");
    ports.config(&format!("{provider}\n  etcd: {{host: {urls:?}, {more}}}"))
}

fn gateway(directory: &Directory, urls: &[String]) -> Gateway {
    let ports = Ports::free();
    directory.write("config.yaml", &config(ports, "traditional", urls, QUICK));
    Gateway::start(directory, ports)
}

fn uri_of(text: &str) -> String {
    serde_json::from_str::<Value>(text).unwrap()["uri"].as_str().unwrap().to_owned()
}

/// Writes routes until `end` is, and notes the last one that was acknowledged. What is refused for want of an etcd may have
/// been done or not.
fn write(gateway: &Gateway, writer: usize, end: &AtomicBool, acknowledged: &AtomicUsize) {
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", gateway.ports.admin)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    };
    let (mut stream, target) = (connect(), format!("/apisix/admin/routes/of-{writer}"));
    for n in 1.. {
        if end.load(SeqCst) {
            break;
        }
        let body = route(&format!("/of/{writer}/{n}"), "x");
        match ask_on(&mut stream, &gateway.key, "PUT", &target, &body) {
            Some(answer) if [200, 201].contains(&answer.status) => acknowledged.store(n, SeqCst),
            Some(answer) => {
                assert_eq!(answer.status, 503, "{}", answer.body);
                std::thread::sleep(Duration::from_millis(10));
            }
            None => stream = connect(),
        }
    }
}

#[test]
fn a_leader_that_is_killed_costs_no_request_and_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::start(3, &[]);
    let dead = format!("http://127.0.0.1:{}", free_port());
    let urls = [vec![dead], cluster.urls()].concat();
    let directories = [Directory::new(), Directory::new()];
    let mut gateways = directories.each_ref().map(|directory| gateway(directory, &urls));
    assert_eq!(gateways[0].ask("PUT", "/routes/steady", &route(ASKED.0, ASKED.1)).status, 201);
    gateways.iter_mut().for_each(|gateway| {
        gateway.until_status("/svc/1/api", 200);
    });
    let (end, acknowledged) = (AtomicBool::new(false), [const { AtomicUsize::new(0) }; WRITERS]);
    let now = || acknowledged.each_ref().map(|acknowledged| acknowledged.load(SeqCst));
    std::thread::scope(|scope| {
        for (writer, acknowledged) in acknowledged.iter().enumerate() {
            let (gateway, end) = (&gateways[writer % 2], &end);
            scope.spawn(move || write(gateway, writer, end, acknowledged));
        }
        let asked = gateways
            .each_ref()
            .map(|gateway| scope.spawn(|| wrk(gateway.ports.http, 500, Duration::from_secs(8))));
        let faults = || {
            std::thread::sleep(Duration::from_secs(2));
            let leader = cluster.leader();
            cluster.members[leader].kill();
            let (killed, before) = (Instant::now(), now());
            until("writes with another leader", || {
                now().iter().zip(before).all(|(now, before)| *now > before)
            });
            eprintln!("all write again {:?} after the leader was killed", killed.elapsed());
            cluster.members[leader].start_again();
        };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(faults));
        let asked = asked.map(|asked| asked.join());
        end.store(true, SeqCst);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
        for asked in asked {
            let asked = asked.unwrap();
            eprintln!("{} requests, p50 {:?}, p99 {:?}", asked.requests, asked.median, asked.p99);
        }
    });
    for (writer, acknowledged) in now().into_iter().enumerate() {
        let kept = uri_of(&cluster.members[0].get(&format!("/apisix/routes/of-{writer}")).unwrap());
        let number: usize = kept.rsplit('/').next().unwrap().parse().unwrap();
        assert!(number >= acknowledged, "{kept}, and {acknowledged} was acknowledged");
        for gateway in &mut gateways {
            gateway.until_status(&kept, 200);
            let shown: Value =
                serde_json::from_str(&gateway.ask("GET", &format!("/routes/of-{writer}"), "").body).unwrap();
            assert_eq!(shown["value"]["uri"], kept);
        }
    }
}

/// A member that stands still takes connections and keeps those that it has: the watch on it says nothing, and no more.
#[test]
fn members_that_stand_still_are_left_whichever_they_are() {
    let cluster = Cluster::start(3, &[]);
    let directory = Directory::new();
    let mut gateway = gateway(&directory, &cluster.urls());
    assert_eq!(gateway.ask("PUT", "/routes/0", &route("/of/0", "x")).status, 201);
    gateway.until_status("/of/0", 200);
    // Each of them in turn: one of these is the leader, one is the one that is followed.
    for (n, member) in cluster.members.iter().enumerate() {
        member.signal("STOP");
        let begun = Instant::now();
        let (path, target) = (format!("/of/{n}/again"), format!("/routes/{n}"));
        until("a write", || {
            let answer = gateway.ask("PUT", &target, &route(&path, "x"));
            assert!([200, 201, 503].contains(&answer.status), "{}", answer.body);
            answer.status != 503
        });
        gateway.until_status(&path, 200);
        eprintln!("live {:?} after member {n} had stopped", begun.elapsed());
        assert_eq!(get(gateway.ports.status, "/status/ready").unwrap().status, 200);
        member.signal("CONT");
        until("all members", || member.get(&format!("/apisix/routes/{n}")).is_some());
    }
    // What was acknowledged before each fault is there after all of them.
    for n in 0..3 {
        gateway.until_status(&format!("/of/{n}/again"), 200);
    }
}

#[test]
fn what_was_changed_and_compacted_while_no_member_was_reached_is_found() {
    let (cluster, directory) = (Cluster::start(3, &[]), Directory::new());
    let relays: Vec<Relay> = cluster.members.iter().map(|member| Relay::to(member.port)).collect();
    let urls: Vec<String> = relays.iter().map(|relay| format!("http://127.0.0.1:{}", relay.port)).collect();
    let mut gateway = gateway(&directory, &urls);
    for id in ["stays", "changes", "goes"] {
        assert_eq!(gateway.ask("PUT", &format!("/routes/{id}"), &route(&format!("/{id}"), "x")).status, 201);
        gateway.until_status(&format!("/{id}"), 200);
    }
    relays.iter().for_each(|relay| relay.set_open(false));
    // It said that all was read while nothing was heard.
    let control = gateway.ports.control;
    let unread = || get(control, "/v1/refused").unwrap().body;
    until("a word of the outage", || unread().contains("has no healthy etcd endpoint"));
    let writer = &cluster.members[2];
    writer.put("/apisix/routes/changes", &route("/changed", "x"));
    writer.delete("/apisix/routes/goes");
    writer.compact(writer.put("/apisix/routes/comes", &route("/comes", "x")));
    for id in ["stays", "changes", "goes"] {
        assert_eq!(get(gateway.ports.http, &format!("/{id}")).unwrap().status, 200, "{id}");
    }
    assert_eq!(get(gateway.ports.status, "/status/ready").unwrap().status, 200);
    assert_eq!(gateway.ask("PUT", "/routes/stays", &route("/other", "x")).status, 503);
    relays.iter().for_each(|relay| relay.set_open(true));
    gateway.until_status("/comes", 200);
    until("its end", || unread().contains("\"unread\":[]"));
    gateway.until_status("/goes", 404);
    gateway.until_status("/changes", 404);
    assert_eq!(get(gateway.ports.http, "/changed").unwrap().status, 200);
    assert_eq!(get(gateway.ports.http, "/stays").unwrap().status, 200);
}

/// config.yaml's plugins were asked of etcd for half a minute and more, during which nothing else was taken; where it was gone
/// they were not in force until somebody wrote something.
#[test]
fn what_is_read_again_while_etcd_is_away_waits_for_it_and_holds_up_nothing() {
    let (cluster, directory) = (Cluster::start(1, &[]), Directory::new());
    let relay = Relay::to(cluster.members[0].port);
    let ports = Ports::free();
    let slow = "timeout: 30, watch_timeout: 50, resync_delay: 0";
    let text = config(ports, "traditional", &[format!("http://127.0.0.1:{}", relay.port)], slow);
    directory.write("config.yaml", &format!("plugins: [mocking]\n{text}"));
    let mut gateway = Gateway::start(&directory, ports);
    let member = &cluster.members[0];
    member.put("/apisix/routes/1", &route("/one", "x"));
    member.put(
        "/apisix/routes/2",
        r#"{"uri":"/two","plugins":{"fault-injection":{"abort":{"http_status":418}}}}"#,
    );
    gateway.until_status("/one", 200);
    let reload = |directory: &Directory, gateway: &Gateway, listed: &str| {
        directory.write("config.yaml", &format!("plugins: {listed}\n{text}"));
        let begun = Instant::now();
        let answer = gateway.ask("PUT", "/plugins/reload", "");
        assert_eq!((answer.status, answer.body.trim()), (200, "done"));
        gateway.process.signal("HUP");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    };
    // It is gone: what it has is read when it is back, though nothing is written then.
    relay.set_open(false);
    reload(&directory, &gateway, "[mocking, fault-injection]");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(get(ports.http, "/two").unwrap().status, 404);
    relay.set_open(true);
    gateway.until_status("/two", 418);
    // It stands still, and is asked again while nothing has come of the first time.
    member.put(
        "/apisix/routes/3",
        r#"{"uri":"/three","plugins":{"echo":{"body":"third"},"mocking":{"response_example":"x"}}}"#,
    );
    member.signal("STOP");
    reload(&directory, &gateway, "[mocking, echo]");
    reload(&directory, &gateway, "[mocking, fault-injection, echo]");
    assert_eq!(get(ports.http, "/two").unwrap().status, 418, "as it was");
    assert_eq!(get(ports.http, "/three").unwrap().status, 404);
    member.signal("CONT");
    gateway.until_status("/three", 200);
    gateway.until_status("/one", 200);
    // Nor does it hold up the end.
    member.signal("STOP");
    reload(&directory, &gateway, "[mocking]");
    let begun = Instant::now();
    gateway.process.signal("TERM");
    assert_eq!(gateway.process.wait(), 0);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    member.signal("CONT");
    let errors = gateway.process.errors();
    assert!(
        errors.contains("etcd is not followed: what config.yaml says of plugins takes effect"),
        "{errors}"
    );
}

/// What an APISIX 3 has in its etcd: directories, values with all that its Admin API adds, fields encrypted by its default
/// keyring, keys of plugins and of what is not here.
#[test]
fn gateways_take_what_apisix_has_written() {
    let (cluster, upstream) = (Cluster::start(3, &[]), support::traffic::upstream());
    let member = &cluster.members[1];
    for name in ["routes", "services", "upstreams", "consumers", "plugins", "ssls", "secrets", "global_rules"]
    {
        member.put(&format!("/apisix/{name}/"), "init_dir");
    }
    let times = json!({"create_time": 1_732_000_000, "update_time": 1_732_000_001});
    let put = |key: &str, value: Value| {
        let mut value = value;
        value.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
        member.put(&format!("/apisix/{key}"), &value.to_string())
    };
    put(
        "upstreams/u",
        json!({"id": "u", "type": "roundrobin", "hash_on": "vars", "scheme": "http", "pass_host": "pass",
        "nodes": {format!("127.0.0.1:{upstream}"): 1}}),
    );
    put("services/s", json!({"id": "s", "upstream_id": "u"}));
    put(
        "plugin_configs/p",
        json!({"id": "p", "plugins": {"response-rewrite": {"headers": {"set": {"x-of": "config"}}}}}),
    );
    put(
        "global_rules/g",
        json!({"id": "g", "plugins": {"request-id": {"header_name": "X-Request-Id",
        "include_in_response": true, "algorithm": "uuid"}}}),
    );
    put(
        "consumer_groups/team",
        json!({"id": "team", "plugins": {"proxy-rewrite": {"headers": {"set": {"x-team": "a"}}}}}),
    );
    put("consumers/jack", json!({"username": "jack", "group_id": "team"}));
    // `userkey` by the second key of the default ring, as an APISIX before 3.0 has written it.
    put(
        "consumers/jack/credentials/cred",
        json!({"id": "cred", "plugins": {"key-auth": {"key": "mt39FazQccyMqt4ctoRV7w=="}}}),
    );
    put("plugin_metadata/file-logger", json!({"id": "file-logger", "log_format": {"host": "$host"}}));
    put(
        "secrets/vault/1",
        json!({"id": "vault/1", "prefix": "kv/apisix", "token": "root", "uri": "http://127.0.0.1:8200"}),
    );
    put("protos/1", json!({"id": "1", "content": "syntax = \"proto3\"; package p; message M {}"}));
    put("data_plane/server_info/0f5c", json!({"version": "3.18.0"}));
    member.put("/apisix/gen_id", "1");
    put(
        "routes/00000000000000000042",
        json!({"id": "00000000000000000042", "uri": "/keyed/*", "methods": ["GET"], "priority": 0,
        "status": 1, "service_id": "s", "plugin_config_id": "p", "plugins": {"key-auth": {"header": "apikey",
        "query": "apikey", "hide_credentials": false, "_meta": {"disable": false}}}}),
    );
    put("routes/off", json!({"id": "off", "uri": "/off", "status": 0, "priority": 0, "upstream_id": "u"}));
    // What is nothing harms nobody.
    member.put("/apisix/routes/torn", "{\"uri\":");
    member.put("/apisix/routes/a/b", "{}");
    let (directories, ports) = ([Directory::new(), Directory::new()], [Ports::free(), Ports::free()]);
    member.put("/apisix/plugins", r#"[{"name":"key-auth"},{"name":"request-id"},{"name":"response-rewrite"},{"name":"proxy-rewrite"},{"name":"mqtt-proxy","stream":true}]"#);
    directories[0].write("config.yaml", &config(ports[0], "data_plane", &cluster.urls(), QUICK));
    directories[1].write("config.yaml", &config(ports[1], "traditional", &cluster.urls(), QUICK));
    let mut processes = directories.each_ref().map(start);
    for (process, ports) in processes.iter_mut().zip(ports) {
        let answer = process.until("the route", || {
            request(ports.http, "GET", "/keyed/a", &["apikey: userkey"]).filter(|answer| answer.status == 200)
        });
        assert!(
            answer.head.contains("x-of: config") && answer.head.contains("x-request-id: "),
            "{}",
            answer.head
        );
        assert_eq!(get(ports.http, "/keyed/a").unwrap().status, 401);
        assert_eq!(get(ports.http, "/off").unwrap().status, 404);
        process.until("its readiness", || {
            get(ports.status, "/status/ready").filter(|answer| answer.status == 200)
        });
    }
    // What the one writes is for the other, and has an APISIX's form.
    let key = std::fs::read_to_string(directories[1].path("data/admin-key")).unwrap();
    let consumer = r#"{"username":"jill","plugins":{"key-auth":{"key":"of-jill"}}}"#;
    let answer =
        support::gateway::call(ports[1].admin, key.trim(), "PUT", "/apisix/admin/consumers", consumer)
            .unwrap();
    assert_eq!(answer.status, 201, "{}", answer.body);
    processes[0].until("the consumer", || {
        request(ports[0].http, "GET", "/keyed/a", &["apikey: of-jill"]).filter(|answer| answer.status == 200)
    });
    let kept: Value = serde_json::from_str(&member.get("/apisix/consumers/jill").unwrap()).unwrap();
    assert_eq!(kept["username"], "jill");
    assert_ne!(kept["plugins"]["key-auth"]["key"], "of-jill", "encrypted");
}
