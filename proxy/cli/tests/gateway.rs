//! `sixfold quickstart` and `sixfold run`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use support::{Directory, Process, Response, free_port, get, output, request};

/// A curl line of the invitation: the words that the shell would make of it.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words
}

fn run_curl(line: &str, port: u16) -> Response {
    let words = words(line);
    let headers: Vec<&str> =
        words.windows(2).filter(|pair| pair[0] == "-H").map(|pair| pair[1].as_str()).collect();
    let base = format!("http://127.0.0.1:{port}");
    let path = words.last().unwrap().strip_prefix(&base).unwrap();
    request(port, "GET", path, &headers).unwrap()
}

/// The line that changes a route.
fn run_patch(line: &str) -> Response {
    let words = words(line);
    let after = |flag: &str| &words[words.iter().position(|word| word == flag).unwrap() + 1];
    let url = words.last().unwrap().strip_prefix("http://127.0.0.1:").unwrap();
    let (port, path) = url.split_once('/').unwrap();
    let (key, body) = (after("-H"), after("-d"));
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap();
    let length = body.len();
    write!(stream, "PATCH /{path} HTTP/1.1\r\nHost: a\r\n{key}\r\nContent-Length: {length}\r\n\r\n{body}")
        .unwrap();
    support::read(&mut stream).unwrap()
}

#[test]
fn the_quickstarts_curl_lines_work() {
    let (directory, port) = (Directory::new(), free_port());
    let port_text = port.to_string();
    let files = directory.path("files");
    let arguments = ["quickstart", "--port", &port_text, "--directory", &files, "--log-level", "warn"];
    let mut process = Process::start(&arguments);
    let mut lines = Vec::new();
    for line in BufReader::new(process.0.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let last = line.starts_with("All of it is in");
        lines.push(line);
        if last {
            break;
        }
    }
    if lines.is_empty() {
        panic!("{}", process.errors());
    }
    let curls: Vec<&String> = lines.iter().filter(|line| line.starts_with("curl ")).collect();
    let [curls @ .., patch, changed] = curls.as_slice() else { panic!("{lines:?}") };
    assert!(curls.len() >= 5, "{lines:?}");
    for curl in curls {
        let response = run_curl(curl, port);
        assert_eq!(response.status, 200, "{curl}: {response:?}");
    }
    let answer = |response: &Response| serde_json::from_str::<serde_json::Value>(&response.body).unwrap();
    let nodes: std::collections::BTreeSet<String> =
        (0..4).map(|_| answer(&run_curl(curls[0], port))["node"].to_string()).collect();
    assert_eq!(nodes.len(), 2, "both nodes are asked in turn");
    // What is there is the user's, and was written over.
    let again = output(&arguments);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains("is not written over"), "{again:?}");
    assert_eq!(answer(&run_curl(curls[1], port))["headers"]["host"], "internal.example");
    assert_eq!(get(port, "/version?version=1").unwrap().status, 404);
    // Without a key, and with one too often.
    assert_eq!(get(port, "/keyed").unwrap().status, 401);
    let keyed = curls.iter().find(|line| line.ends_with("/keyed'")).unwrap();
    let limited = (0..6).map(|_| run_curl(keyed, port).status).filter(|status| *status == 429).count();
    assert_eq!(limited, 2, "one of five was asked before");
    // The Admin API changes routes.
    assert_eq!(run_curl(changed, port).status, 404);
    let patched = run_patch(patch);
    assert_eq!(patched.status, 200, "{patched:?}");
    process.until("the new route", || Some(run_curl(changed, port)).filter(|r| r.status == 200));
    process.signal("INT");
    assert_eq!(process.wait(), 0);
}

fn configuration(port: u16, status: u16) -> String {
    format!(
        "deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n\
         apisix:\n  node_listen: [{{ip: 127.0.0.1, port: {port}}}]\n  ssl: {{enable: false}}\n  \
         status: {{ip: 127.0.0.1, port: {status}}}\nnginx_config:\n  http: {{enable_access_log: false}}\n"
    )
}

#[test]
fn run_serves_what_the_files_say() {
    let (directory, port, status) = (Directory::new(), free_port(), free_port());
    let config = directory.write("config.yaml", &configuration(port, status));
    directory
        .write("apisix.yaml", "routes:\n  - {id: a, uri: /a, upstream: {nodes: {'127.0.0.1:1': 1}}}\n#END\n");
    let mut process = Process::start(&["run", "-c", &config, "--log-format", "json"]);
    process.until("readiness", || get(status, "/status/ready").filter(|r| r.status == 200));
    assert_eq!(get(status, "/status").unwrap().body, "{\"status\":\"ok\"}");
    assert_eq!(get(port, "/none").unwrap().status, 404);
    assert_eq!(get(port, "/a").unwrap().status, 502);
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
    let log = process.errors();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    assert!(lines.clone().any(|line| line["fields"]["message"] == "serving"), "{log}");
}

/// An upstream that answers with its name and the Host that it was asked for.
fn named(name: &'static str) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
            let host = head.iter().find_map(|line| line.strip_prefix("Host: ")).unwrap_or_default();
            let body = format!("{name} {host}");
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    port
}

/// By traffic-split: to an upstream in place, to one by its id, and to the route's own, which there need not be.
#[test]
fn traffic_is_split_among_upstreams() {
    let (directory, port, status) = (Directory::new(), free_port(), free_port());
    let config = directory.write("config.yaml", &configuration(port, status));
    let [own, inline, by_id] = [named("own"), named("inline"), named("by-id")];
    let inline =
        format!("{{nodes: {{'127.0.0.1:{inline}': 1}}, pass_host: rewrite, upstream_host: rewritten.test}}");
    let split = format!(
        "{{traffic-split: {{rules: [{{match: [{{vars: [[arg_to, '==', id]]}}], weighted_upstreams: [{{upstream_id: 7}}]}}, \
         {{match: [{{vars: [[arg_to, '==', split]]}}], weighted_upstreams: [{{upstream: {inline}, weight: 2}}, {{weight: 2}}]}}, \
         {{match: [{{vars: [[arg_to, '==', gone]]}}], weighted_upstreams: [{{upstream_id: none}}]}}]}}}}"
    );
    let text = format!(
        "routes:\n  - {{id: a, uri: /a, plugins: {split}, upstream: {{nodes: {{'127.0.0.1:{own}': 1}}}}}}\n  \
         - {{id: b, uri: /b, plugins: {split}}}\nupstreams:\n  - {{id: 7, nodes: {{'127.0.0.1:{by_id}': 1}}}}\n#END\n"
    );
    directory.write("apisix.yaml", &text);
    let mut process = Process::start(&["run", "-c", &config, "--log-level", "warn"]);
    process.until("readiness", || get(status, "/status/ready").filter(|r| r.status == 200));
    let host = "localhost";
    let ask = |path: &str| get(port, path).map(|r| (r.status, r.body)).unwrap();
    for path in ["/a?to=id", "/b?to=id"] {
        assert_eq!(ask(path), (200, format!("by-id {host}")), "{path}");
        let gone = path.replace("to=id", "to=gone");
        assert_eq!(ask(&gone), (500, "failed to fetch upstream info by upstream id: none".to_owned()));
    }
    // Each worker takes its own turns.
    let answers: std::collections::BTreeSet<(u16, String)> = (0..40).map(|_| ask("/a?to=split")).collect();
    let expected = [(200, "inline rewritten.test".to_owned()), (200, format!("own {host}"))];
    assert_eq!(answers, expected.into());
    let of_none: std::collections::BTreeSet<u16> = (0..40).map(|_| ask("/b?to=split").0).collect();
    assert_eq!(of_none, [200, 503].into());
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
}

/// The value of the series of a name that has all of these labels.
#[track_caller]
fn series(page: &str, name: &str, labels: &[&str]) -> f64 {
    let found: Vec<&str> = page
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?} in\n{page}");
    found[0].rsplit(' ').next().unwrap().parse().unwrap()
}

/// An upstream that answers everything with `ok`.
fn upstream() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            std::thread::spawn(move || {
                let mut line = String::new();
                while stream.read_line(&mut line).is_ok_and(|n| n > 0) {
                    if line == "\r\n" {
                        stream
                            .get_mut()
                            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                            .unwrap();
                    }
                    line.clear();
                }
            });
        }
    });
    port
}

#[test]
fn the_page_of_metrics_tells_of_requests() {
    let (directory, port, status, metrics) = (Directory::new(), free_port(), free_port(), free_port());
    let config = directory.write(
        "config.yaml",
        &format!(
            "{}plugin_attr:\n  prometheus: {{export_addr: {{ip: 127.0.0.1, port: {metrics}}}}}\n",
            configuration(port, status)
        ),
    );
    let upstream_port = upstream();
    let resources = format!(
        "services:\n  - {{id: s, name: shop, hosts: ['*.shop.test'], upstream: {{nodes: {{'127.0.0.1:{}': 1}}}}}}\n\
         routes:\n  - {{id: a, uris: [/exact, /a/*], service_id: s}}\n  - {{id: gone, uri: /gone, \
         upstream: {{nodes: {{'127.0.0.1:1': 1}}}}}}\n\
         upstreams:\n  - {{id: checked, nodes: {{'127.0.0.1:1': 1, '127.0.0.1:{}': 1}}, checks: {{active: {{http_path: /, \
         healthy: {{interval: 1, successes: 1}}, unhealthy: {{interval: 1, tcp_failures: 1}}}}}}}}\n\
         global_rules:\n  - {{id: g, plugins: {{prometheus: {{}}}}}}\n#END\n",
        upstream(),
        upstream_port
    );
    directory.write("apisix.yaml", &resources);
    let mut process = Process::start(&["run", "-c", &config]);
    process.until("readiness", || get(status, "/status/ready").filter(|r| r.status == 200));
    for path in ["/a/x?y=z", "/a/", "/exact"] {
        assert_eq!(request(port, "GET", path, &["Host: eu.shop.test:80"]).unwrap().body, "ok");
    }
    assert_eq!((get(port, "/gone").unwrap().status, get(port, "/none").unwrap().status), (502, 404));
    assert_eq!(get(metrics, "/").unwrap().status, 404);
    // Requests are counted once their answers have been sent.
    let response = process.until("counts", || {
        get(metrics, "/apisix/prometheus/metrics")
            .filter(|page| ["code=\"404\"", "route=\"gone\""].iter().all(|label| page.body.contains(label)))
    });
    assert!(response.status == 200 && response.head.contains("content-type: text/plain"), "{response:?}");
    let page = &response.body;
    let of_route = ["route=\"a\"", "service=\"s\"", "node=\"127.0.0.1\"", "consumer=\"\""];
    let with = |more: &[&'static str]| [&of_route[..], more].concat();
    let matched = ["code=\"200\"", "matched_host=\"*.shop.test\"", "response_source=\"upstream\""];
    let http =
        |uri: &'static str| series(page, "apisix_http_status", &with(&[&matched[..], &[uri]].concat()));
    assert_eq!((http("matched_uri=\"/a/*\""), http("matched_uri=\"/exact\"")), (2.0, 1.0));
    let lost = ["code=\"404\"", "route=\"\"", "matched_uri=\"\"", "response_source=\"apisix\""];
    assert_eq!(series(page, "apisix_http_status", &lost), 1.0);
    let failed = ["code=\"502\"", "route=\"gone\"", "matched_uri=\"/gone\"", "response_source=\"nginx\""];
    assert_eq!(series(page, "apisix_http_status", &failed), 1.0);
    for kind in ["type=\"request\"", "type=\"upstream\"", "type=\"apisix\""] {
        assert_eq!(series(page, "apisix_http_latency_count", &with(&[kind])), 3.0);
        assert_eq!(series(page, "apisix_http_latency_bucket", &with(&[kind, "le=\"60000\""])), 3.0);
    }
    assert!(series(page, "apisix_bandwidth", &with(&["type=\"egress\""])) > 6.0);
    assert!(series(page, "apisix_bandwidth", &with(&["type=\"ingress\""])) > 90.0);
    assert_eq!(series(page, "apisix_http_requests_total", &[]), 5.0);
    assert_eq!(series(page, "apisix_nginx_metric_errors_total", &[]), 0.0);
    assert!(series(page, "apisix_nginx_http_current_connections", &["state=\"accepted\""]) >= 5.0);
    assert_eq!(series(page, "apisix_node_info", &["hostname=\"", "version=\""]), 1.0);
    // There was none: of the health of nodes the page said nothing.
    let node = |port: u16, value: u8| {
        format!(
            "apisix_upstream_status{{name=\"/upstreams/checked\",ip=\"127.0.0.1\",port=\"{port}\"}} {value}\n"
        )
    };
    let page = process.until("a node that is found to be away", || {
        let page = get(metrics, "/apisix/prometheus/metrics")?.body;
        page.contains(&node(1, 0)).then_some(page)
    });
    assert!(page.contains("# TYPE apisix_upstream_status gauge\n"), "{page}");
    assert!(page.contains(&node(upstream_port, 1)), "{page}");
    assert_eq!(page.matches("\napisix_upstream_status").count(), 2, "{page}");
    process.signal("INT");
    assert_eq!(process.wait(), 0);
}

#[test]
fn answers_of_the_gateway_look_like_apisixs() {
    let (directory, port, status) = (Directory::new(), free_port(), free_port());
    let config = directory.write("config.yaml", &configuration(port, status));
    directory.write(
        "apisix.yaml",
        "routes:\n  - {id: a, uri: /a, upstream: {nodes: {'127.0.0.1:1': 1}}}\n  - {id: n, uri: /n, plugins: {}}\n#END\n",
    );
    let mut process = Process::start(&["run", "-c", &config]);
    process.until("readiness", || get(status, "/status/ready").filter(|r| r.status == 200));
    for (path, line, kind) in [
        ("/none", "HTTP/1.1 404 Not Found", "text/plain; charset=utf-8"),
        ("/a", "HTTP/1.1 502 Bad Gateway", "text/html; charset=utf-8"),
        ("/n", "HTTP/1.1 503 Service Temporarily Unavailable", "text/html; charset=utf-8"),
    ] {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        support::send(&mut stream, "GET", path, &["Connection: close"]);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let head: Vec<&str> = text.split("\r\n\r\n").next().unwrap().lines().collect();
        assert_eq!(head[0], line);
        let mut names: Vec<&str> = head[1..].iter().map(|l| l.split(':').next().unwrap()).collect();
        names.sort_unstable();
        let mut expected = vec!["Connection", "Content-Length", "Content-Type", "Date", "Server"];
        if path == "/a" {
            expected.push("X-APISIX-Upstream-Status");
        }
        assert_eq!(names, expected, "{text}");
        assert!(head.contains(&format!("Content-Type: {kind}").as_str()), "{text}");
        assert!(text.contains("Server: APISIX/"), "{text}");
    }
    process.signal("INT");
    assert_eq!(process.wait(), 0);
}

/// Both were set when all plugins had run, so that nobody could hide the version.
#[test]
fn plugins_change_what_the_gateway_says_of_itself() {
    let (directory, port, status) = (Directory::new(), free_port(), free_port());
    let config = directory.write("config.yaml", &configuration(port, status));
    let route = |id: &str, plugins: &str| {
        format!(
            "  - {{id: {id}, uri: /{id}, plugins: {{{plugins}}}, upstream: {{nodes: {{'127.0.0.1:1': 1}}}}}}\n"
        )
    };
    let mock = "mocking: {response_example: x, with_mock_header: false}";
    let rewrite = |headers: &str| format!("response-rewrite: {{headers: {headers}}}");
    let seen = "response-rewrite: {vars: [[sent_http_server, '~~', '^APISIX/']], headers: {set: {x-saw: \
                '$sent_http_server $sent_http_x_apisix_upstream_status'}}}";
    let routes = [
        route("set", &rewrite("{set: {Server: me, X-APISIX-Upstream-Status: 7}}")),
        route("removed", &rewrite("{remove: [Server, X-APISIX-Upstream-Status]}")),
        route("added", &rewrite("{add: ['Server: me']}")),
        route("mocked", &format!("{}, {mock}", rewrite("{set: {Server: me}}"))),
        route("seen", seen),
        route("connection", &rewrite("{set: {x-saw: $sent_http_connection}}")),
        route("kept", ""),
    ];
    directory.write("apisix.yaml", &format!("routes:\n{}#END\n", routes.concat()));
    let mut process = Process::start(&["run", "-c", &config, "--log-level", "error"]);
    process.until("readiness", || get(status, "/status/ready").filter(|r| r.status == 200));
    let asked = |path: &str, fields: &[&str]| {
        let head = request(port, "GET", path, fields).unwrap().head;
        let of = |name: &str| {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            lines
                .filter(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, v)| v.to_owned())
                .collect::<Vec<_>>()
        };
        (of("server"), of("x-apisix-upstream-status"), of("x-saw"))
    };
    let told = |path: &str| asked(path, &[]);
    let (none, me) = (Vec::<String>::new(), vec!["me".to_owned()]);
    assert_eq!(told("/set"), (me.clone(), vec!["7".to_owned()], none.clone()));
    assert_eq!(told("/removed"), (none.clone(), none.clone(), none.clone()));
    let failed = vec!["502".to_owned()];
    assert_eq!(told("/added"), (me.clone(), failed.clone(), none.clone()));
    assert_eq!(told("/mocked"), (me, none.clone(), none));
    let (own, ..) = told("/kept");
    assert!(own.len() == 1 && own[0].starts_with("apisix/"), "{own:?}");
    assert_eq!(told("/seen"), (own.clone(), failed, vec![format!("{} 502", own[0])]));
    // It was `keep-alive` to them before the head was written, whatever that says.
    assert_eq!(told("/connection").2, ["keep-alive"]);
    assert_eq!(asked("/connection", &["Connection: close"]).2, ["close"]);
    process.signal("INT");
    assert_eq!(process.wait(), 0);
}

/// The field's name was in lower case, and what can't be counted had the message of a store that fails.
#[test]
fn refusals_of_plugins_are_written_as_in_apisix() {
    let (directory, port, status) = (Directory::new(), free_port(), free_port());
    let config = directory.write("config.yaml", &configuration(port, status));
    let rules = "{rules: [{count: 1, time_window: 60, key: $arg_a}]}";
    directory.write(
        "apisix.yaml",
        &format!(
            "routes:\n  - {{id: k, uri: /k, plugins: {{key-auth: {{}}}}, upstream: {{nodes: {{'127.0.0.1:1': 1}}}}}}\n  \
             - {{id: l, uri: /l, plugins: {{limit-count: {rules}}}, upstream: {{nodes: {{'127.0.0.1:1': 1}}}}}}\n#END\n"
        ),
    );
    let mut process = Process::start(&["run", "-c", &config, "--log-level", "error"]);
    process.until("readiness", || get(status, "/status/ready").filter(|r| r.status == 200));
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    support::send(&mut stream, "GET", "/k", &["Connection: close"]);
    let mut refused = String::new();
    stream.read_to_string(&mut refused).unwrap();
    assert!(
        refused.starts_with("HTTP/1.1 401 ") && refused.contains("WWW-Authenticate: apikey"),
        "{refused}"
    );
    let uncounted = get(port, "/l").unwrap();
    assert!(uncounted.status == 500, "{uncounted:?}");
    assert!(uncounted.body.contains("<title>500 Internal Server Error</title>"), "{uncounted:?}");
    // nginx says what is wrong with a head that is too large.
    let large = request(port, "GET", "/", &[&format!("X-Large: {}", "a".repeat(60_000))]).unwrap();
    assert!(large.status == 400, "{}", large.head);
    assert!(large.body.contains("<title>400 Request Header Or Cookie Too Large</title>"), "{}", large.body);
    process.signal("INT");
    assert_eq!(process.wait(), 0);
}

#[test]
fn a_wrong_file_stops_the_start() {
    let directory = Directory::new();
    let config = directory.write("config.yaml", &configuration(free_port(), free_port()));
    directory.write("apisix.yaml", "routes: 5\n#END\n");
    let mut process = Process::start(&["run", "-c", &config]);
    assert_eq!(process.wait(), 1);
    assert!(process.errors().contains("apisix.yaml:1:"), "no place");
}

#[test]
fn a_wrong_resource_is_left_out_and_keeps_its_last_good_value() {
    let (directory, port, status) = (Directory::new(), free_port(), free_port());
    let config = directory.write("config.yaml", &configuration(port, status));
    let answer = |text: &str| {
        format!(
            "plugins: {{mocking: {{content_type: text/plain, response_example: {text}, with_mock_header: false}}}}"
        )
    };
    let text = |a: &str, b: &str| format!("routes:\n  - {{id: a, {a}}}\n  - {{id: b, {b}}}\n#END\n");
    let good = |id: &str, version: &str| format!("uri: /{id}, {}", answer(version));
    let write = |text: &str| {
        directory.write("next", text);
        std::fs::rename(directory.path("next"), directory.path("apisix.yaml")).unwrap();
    };
    write(&text("urii: /a", &good("b", "b1")));
    let mut process = Process::start(&["run", "-c", &config]);
    process.until("readiness", || get(status, "/status/ready").filter(|r| r.status == 200));
    assert_eq!(get(port, "/a").map(|r| r.status), Some(404));
    write(&text(&good("a", "a1"), &good("b", "b2")));
    process.until("both", || get(port, "/a").filter(|r| r.body == "a1"));
    write(&text("uri: 5", &good("b", "b3")));
    process.until("the good one", || get(port, "/b").filter(|r| r.body == "b3"));
    assert_eq!(get(port, "/a").map(|r| r.body).as_deref(), Some("a1"));
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
    let log = process.errors();
    assert!(log.contains("apisix.yaml:2:13: route \"a\": urii: "), "{log}");
    assert!(log.contains("route \"a\": uri: property \"uri\" validation failed"), "{log}");
}
