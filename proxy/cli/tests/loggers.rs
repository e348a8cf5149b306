//! Loggers, public-api and variables of bodies, with the real binary and a server that collects entries.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use support::{Directory, LIMIT, Process, free_port, get};

/// What a collector got: head and body.
type Collected = (String, Value);

/// A server that takes batches and refuses the first `failures` of them.
fn collector(failures: usize) -> (u16, Receiver<Collected>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, (sender, receiver)) = (listener.local_addr().unwrap().port(), channel());
    std::thread::spawn(move || {
        for (nth, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let Some((head, body)) = read(&mut stream) else { continue };
            let status = if nth < failures { "500 Oh" } else { "200 OK" };
            let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            if nth >= failures && sender.send((head, serde_json::from_slice(&body).unwrap())).is_err() {
                return;
            }
        }
    });
    (port, receiver)
}

/// A request whose body has a length.
fn read(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let (mut got, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut piece).ok().filter(|count| *count > 0)?;
        got.extend_from_slice(&piece[..count]);
        let Some(end) = got.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&got[..end]).into_owned();
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if got.len() >= end + 4 + length.unwrap_or(0) {
            return Some((head, got[end + 4..].to_vec()));
        }
    }
}

/// An upstream that says which request it got.
fn upstream() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                while let Some((head, body)) = read(&mut stream) {
                    let line = head.lines().next().unwrap_or_default();
                    let text = format!("{line}|{}", String::from_utf8_lossy(&body));
                    let length = text.len();
                    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}");
                }
            });
        }
    });
    port
}

fn post(port: u16, path: &str, kind: &str, body: &str) -> support::Response {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: a.test\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    support::read(&mut stream).unwrap()
}

fn start(directory: &Directory, more: &str, resources: &str) -> (Process, u16) {
    let (port, status) = (free_port(), free_port());
    let config = directory.write(
        "config.yaml",
        &format!(
            "deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n\
             apisix:\n  node_listen: [{{ip: 127.0.0.1, port: {port}}}]\n  ssl: {{enable: false}}\n  \
             enable_control: false\n  status: {{ip: 127.0.0.1, port: {status}}}\n\
             nginx_config: {{http: {{enable_access_log: false}}}}\n{more}"
        ),
    );
    directory.write("apisix.yaml", &format!("{resources}\n#END\n"));
    let mut process = Process::start(&["run", "-c", &config, "--log-level", "error"]);
    process.until("readiness", || get(status, "/status/ready").filter(|r| r.status == 200));
    (process, port)
}

#[test]
fn entries_reach_a_collector_and_those_that_wait_do_at_the_end() {
    let (directory, (collects, collected), up) = (Directory::new(), collector(1), upstream());
    let resources = format!(
        "routes:\n  - id: now\n    uri: /now\n    plugins:\n      http-logger: {{uri: 'http://127.0.0.1:{collects}/logs?a=b', \
         batch_max_size: 1, auth_header: Basic eA, max_retry_count: 1, retry_delay: 0, include_req_body: true, include_resp_body: true}}\n    \
         upstream: {{nodes: {{'127.0.0.1:{up}': 1}}}}\n  \
         - id: late\n    uri: /late\n    plugins:\n      http-logger: {{uri: 'http://127.0.0.1:{collects}', \
         log_format: {{u: $uri, k: $post_arg.k}}}}\n    upstream: {{nodes: {{'127.0.0.1:{up}': 1}}}}"
    );
    let (mut process, port) = start(&directory, "", &resources);
    assert_eq!(post(port, "/now", "text/plain", "what").status, 200);
    let (head, entry) = collected.recv_timeout(LIMIT).expect("it is sent again");
    let fields = ["Host: 127.0.0.1\r\n", "Authorization: Basic eA\r\n", "Content-Type: application/json\r\n"];
    assert!(head.starts_with("POST /logs?a=b HTTP/1.1\r\n"), "{head}");
    assert!(fields.iter().all(|field| format!("{head}\r\n").contains(field)), "{head}");
    assert_eq!((&entry["request"]["body"], &entry["route_id"]), (&"what".into(), &"now".into()));
    assert_eq!(entry["response"]["body"], Value::from("POST /now HTTP/1.1|what"));
    assert_eq!(entry["upstream"], Value::from(format!("127.0.0.1:{up}")));
    assert!(entry["upstream_latency"].is_number() && entry["response"]["size"].is_u64(), "{entry}");
    assert_eq!(post(port, "/late", "application/json", "{\"k\": 7}").status, 200);
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
    let (_, entries) = collected.recv_timeout(LIMIT).expect("what waits is sent at the end");
    assert_eq!(entries, serde_json::json!([{"u": "/late", "k": "7", "route_id": "late"}]));
}

/// Entries had the host and the two fields that the upstream is told, and nothing of the connection.
#[test]
fn entries_have_the_request_of_the_client() {
    let (directory, (collects, collected), up) = (Directory::new(), collector(0), upstream());
    let logger =
        |more: &str| format!("http-logger: {{uri: 'http://127.0.0.1:{collects}', batch_max_size: 1{more}}}");
    let format = ", log_format: {r: $http_x_real_ip, f: $http_x_forwarded_for, h: $http_host, c: $sent_http_connection}";
    let rewritten = format!("{{nodes: {{'127.0.0.1:{up}': 1}}, pass_host: rewrite, upstream_host: up.test}}");
    let resources = format!(
        "routes:\n  - {{id: a, uri: /a, plugins: {{{}}}, upstream: {rewritten}}}\n  \
         - {{id: b, uri: /b, plugins: {{{}}}, upstream: {rewritten}}}",
        logger(""),
        logger(format)
    );
    let (_process, port) = start(&directory, "", &resources);
    let entry = |path: &str, fields: &[&str]| {
        let fields = [&["Host: a.test:80"][..], fields].concat();
        assert_eq!(support::request(port, "GET", path, &fields).unwrap().status, 200);
        collected.recv_timeout(LIMIT).expect("an entry").1
    };
    let own = ["X-Real-IP: 7.7.7.7", "X-Forwarded-For: 1.1.1.1", "Connection: close"];
    let (plain, told) = (entry("/a", &[]), entry("/a", &own));
    let of = |entry: &Value, name: &str| entry["request"]["headers"][name].clone();
    assert_eq!(of(&plain, "host"), "a.test:80");
    assert_eq!((of(&plain, "x-real-ip"), of(&plain, "x-forwarded-for")), (Value::Null, Value::Null));
    assert_eq!(of(&told, "x-real-ip"), "7.7.7.7");
    assert_eq!(of(&told, "x-forwarded-for"), "1.1.1.1");
    assert_eq!(told["response"]["headers"]["connection"], "close");
    let twice = entry("/a", &["X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 2.2.2.2"]);
    assert_eq!(of(&twice, "x-forwarded-for"), serde_json::json!(["1.1.1.1", "2.2.2.2"]));
    let told = entry("/b", &own);
    let expected =
        serde_json::json!({"r": "7.7.7.7", "f": "1.1.1.1", "h": "a.test:80", "c": "close", "route_id": "b"});
    assert_eq!(told, expected);
    let plain = entry("/b", &[]);
    assert_eq!((&plain["r"], &plain["f"]), (&Value::Null, &Value::Null), "{plain}");
}

#[test]
fn files_are_written_and_opened_anew() {
    let (directory, up) = (Directory::new(), upstream());
    let log = directory.path("requests.log");
    let resources = format!(
        "plugin_metadata:\n  - {{id: file-logger, path: '{log}', log_format: {{u: $uri, s: $status}}}}\n\
         routes:\n  - id: 1\n    uri: /a/*\n    plugins: {{file-logger: {{}}}}\n    \
         upstream: {{nodes: {{'127.0.0.1:{up}': 1}}}}"
    );
    let (mut process, port) = start(&directory, "", &resources);
    let lines = |count: usize| {
        let text = std::fs::read_to_string(&log).ok()?;
        Some(text.lines().map(str::to_owned).collect::<Vec<_>>()).filter(|lines| lines.len() == count)
    };
    assert!(!std::path::Path::new(&log).exists(), "nothing was logged so far");
    assert_eq!(get(port, "/a/1").unwrap().status, 200);
    let first = process.until("a line", || lines(1));
    assert_eq!(first, ["{\"u\":\"/a/1\",\"s\":200,\"route_id\":\"1\"}"]);
    std::fs::rename(&log, directory.path("moved.log")).unwrap();
    process.signal("USR1");
    process.until("another file", || std::path::Path::new(&log).exists().then_some(()));
    assert_eq!(get(port, "/a/2").unwrap().status, 200);
    process.until("a line there", || lines(1).filter(|lines| lines[0].contains("/a/2")));
}

#[test]
fn public_api_shows_metrics_to_those_who_have_a_key() {
    let directory = Directory::new();
    let more = "plugin_attr: {prometheus: {enable_export_server: false, export_uri: /metrics, metric_prefix: my_}}\n";
    let resources = "consumers:\n  - {username: jack, plugins: {key-auth: {key: k}}}\n\
         global_rules:\n  - {id: 1, plugins: {prometheus: {}}}\n\
         routes:\n  - {id: open, uri: /metrics, plugins: {public-api: {}}}\n  \
         - {id: keyed, uri: /mine, plugins: {key-auth: {}, public-api: {uri: /metrics}}}\n  \
         - {id: none, uri: /none, plugins: {public-api: {}}}";
    let (mut process, port) = start(&directory, more, resources);
    assert_eq!(get(port, "/none").unwrap().status, 404);
    // A request is counted once it has ended, which its client does not wait for.
    let counted = "my_http_status{code=\"404\",route=\"none\"";
    let page = process.until("the request is counted", || {
        Some(get(port, "/metrics").unwrap()).filter(|page| page.body.contains(counted))
    });
    assert!(page.head.contains("text/plain"), "{page:?}");
    assert_eq!(get(port, "/mine").unwrap().status, 401);
    assert!(get(port, "/mine?apikey=k").unwrap().body.contains("my_node_info"));
    assert_eq!(post(port, "/metrics", "text/plain", "").status, 404, "it is asked by GET");
}

/// No variable had a part of the body while routes were looked for.
#[test]
fn routes_are_chosen_by_bodies() {
    let (directory, up) = (Directory::new(), upstream());
    let route = |id: &str, vars: &str| {
        format!(
            "  - {{id: {id}, uri: /*, vars: {vars}, plugins: {{proxy-rewrite: {{uri: /{id}}}}}, \
             upstream: {{nodes: {{'127.0.0.1:{up}': 1}}}}}}\n"
        )
    };
    let resources = format!(
        "routes:\n{}{}{}{}",
        route("json", "[['post_arg.model', '==', 'large']]"),
        route("form", "[['post_arg_k', '==', 'v']]"),
        route("graphql", "[['graphql_root_fields', 'has', 'owner']]"),
        route("rest", "[['request_method', '~=', 'PUT']]"),
    );
    let more = "graphql: {max_size: 64}\n";
    let (_process, port) = start(&directory, more, &resources);
    let chosen = |kind: &str, body: &str| {
        let answer = post(port, "/x", kind, body).body;
        let (line, sent) = answer.split_once('|').unwrap();
        assert_eq!(sent, body, "the whole body goes on");
        line.split(' ').nth(1).unwrap().to_owned()
    };
    let (json, form) = ("application/json", "application/x-www-form-urlencoded");
    assert_eq!(chosen(json, "{\"model\": \"large\"}"), "/json");
    assert_eq!(chosen(json, "{\"model\": \"small\"}"), "/rest");
    assert_eq!(chosen(form, "a=b&k=v"), "/form");
    assert_eq!(chosen("application/graphql", "query { owner(id: 1) { name } repo }"), "/graphql");
    assert_eq!(chosen("application/graphql", &format!("query {{ owner }} {}", " ".repeat(60))), "/rest");
    assert_eq!(get(port, "/x").unwrap().body, "GET /rest HTTP/1.1|");
}
