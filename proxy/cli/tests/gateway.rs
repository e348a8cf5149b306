//! `sixfold quickstart` and `sixfold run`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{BufRead, BufReader};
use support::{Directory, Process, Response, free_port, get, request};

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
        let last = line.starts_with("Its routes are in");
        lines.push(line);
        if last {
            break;
        }
    }
    if lines.is_empty() {
        panic!("{}", process.errors());
    }
    let curls: Vec<&String> = lines.iter().filter(|line| line.starts_with("curl ")).collect();
    assert!(curls.len() >= 3, "{lines:?}");
    for curl in &curls {
        let response = run_curl(curl, port);
        assert_eq!(response.status, 200, "{curl}: {response:?}");
    }
    let answer = |response: &Response| serde_json::from_str::<serde_json::Value>(&response.body).unwrap();
    let nodes: std::collections::BTreeSet<String> =
        (0..4).map(|_| answer(&run_curl(curls[0], port))["node"].to_string()).collect();
    assert_eq!(nodes.len(), 2, "both nodes are asked in turn");
    assert_eq!(answer(&run_curl(curls[1], port))["headers"]["host"], "internal.example");
    assert_eq!(get(port, "/version?version=1").unwrap().status, 404);
    // Editing the file changes the routes.
    let resources = directory.0.join("files/apisix.yaml");
    let text = std::fs::read_to_string(&resources).unwrap();
    std::fs::write(&resources, text.replace("uri: /version", "uri: /release")).unwrap();
    process.until("the new route", || get(port, "/release?version=2").filter(|r| r.status == 200));
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

#[test]
fn a_wrong_file_stops_the_start() {
    let directory = Directory::new();
    let config = directory.write("config.yaml", &configuration(free_port(), free_port()));
    directory.write("apisix.yaml", "routes:\n  - {id: a, urii: /a}\n#END\n");
    let mut process = Process::start(&["run", "-c", &config]);
    assert_eq!(process.wait(), 1);
    assert!(process.errors().contains("apisix.yaml:2:"), "no place");
}
