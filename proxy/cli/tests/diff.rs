//! `sixfold diff` compares what files mean, `sixfold fmt` writes them anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::{Directory, output};

/// Exit code and standard output.
fn told(arguments: &[&str]) -> (Option<i32>, String) {
    let done = output(arguments);
    (done.status.code(), String::from_utf8(done.stdout).unwrap())
}

#[test]
fn what_means_the_same_is_no_difference() {
    let directory = Directory::new();
    let one = directory.write(
        "one.yaml",
        "routes:\n- {id: 1, uri: /a, methods: [GET, POST], upstream: {nodes: {'127.0.0.1:80': 1}, type: roundrobin}}\n#END\n",
    );
    let other = directory.write(
        "other.json",
        r#"{"routes": [{"id": "1", "uris": ["/a"], "status": 1, "priority": 0, "methods": ["POST", "GET"],
            "upstream": {"nodes": [{"host": "127.0.0.1", "port": 80, "weight": 1}]}}]}"#,
    );
    assert_eq!(told(&["diff", &one, &other]), (Some(0), String::new()));
    let changed = directory.write(
        "changed.yaml",
        "routes:\n- {id: 1, uri: /a, upstream: {nodes: {'127.0.0.1:80': 2}}}\n- {id: 2, uri: /b}\n#END\n",
    );
    let (code, text) = told(&["diff", &one, &changed]);
    assert_eq!(code, Some(1));
    for line in [
        "changed  route \"1\"",
        "removed  methods: [\"GET\",\"POST\"]",
        "changed  upstream.nodes[0].weight: 1 -> 2",
        "added    route \"2\"",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let (_, text) = told(&["diff", &one, &changed, "--output", "json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["equal"], json!(false));
    assert_eq!(json["differences"][1], json!({"resource": "route \"2\"", "change": "added", "fields": []}));
}

#[test]
fn a_config_is_compared_after_its_defaults() {
    let directory = Directory::new();
    let one = directory.write("one.yaml", "apisix: {enable_http2: true}\n");
    let other = directory.write("other.yaml", "apisix: {node_listen: 9080}\n");
    assert_eq!(told(&["diff", &one, &one]), (Some(0), String::new()));
    let changed = directory.write("changed.yaml", "nginx_config: {worker_processes: 7}\n");
    let (code, text) = told(&["diff", &one, &changed]);
    assert_eq!(code, Some(1));
    assert!(text.contains("nginx_config.worker_processes: ") && text.contains(" -> 7"), "{text}");
    assert!(!text.contains("enable_http2"), "{text}");
    assert_eq!(told(&["diff", &other, &directory.write("r.yaml", "routes: []\n")]).0, Some(2));
}

#[test]
fn bootstraps_are_compared_as_messages() {
    let directory = Directory::new();
    let bootstrap = |timeout: &str, secret: &str| {
        format!(
            r#"
static_resources:
  clusters: [{{name: a, {timeout}}}, {{name: b}}]
  secrets: [{{name: s, tls_certificate: {{private_key: {{inline_string: {secret}}}}}}}]
"#
        )
    };
    let one = directory.write("one.yaml", &bootstrap("connect_timeout: 5s", "x"));
    let other = directory.write("other.yaml", &bootstrap("connectTimeout: 5.000s, type: STATIC", "x"));
    assert_eq!(told(&["diff", &one, &other]), (Some(0), String::new()));
    let changed = directory.write("changed.yaml", &bootstrap("connect_timeout: 6s", "other"));
    let (code, text) = told(&["diff", &one, &changed]);
    assert_eq!(code, Some(1));
    assert!(
        text.contains("changed  cluster \"a\"\n           changed  connect_timeout: \"5s\" -> \"6s\"\n"),
        "{text}"
    );
    assert!(text.contains("private_key.inline_string: \"sha256:") && !text.contains("other"), "{text}");
}

#[test]
fn a_file_is_written_anew_once() {
    let directory = Directory::new();
    let file = directory.write("a.yaml", "routes:\n- uri: /a   # the path\n  id: 1\n#END\n");
    let (code, text) = told(&["fmt", "--check", &file]);
    assert_eq!((code, text), (Some(1), format!("{file}: not as `sixfold fmt` writes it\n")));
    assert_eq!(told(&["fmt", &file]).0, Some(0));
    let written = std::fs::read_to_string(&file).unwrap();
    assert_eq!(written, "routes:\n  - id: 1\n    uri: /a # the path\n#END\n");
    assert_eq!(told(&["fmt", "--check", &file]), (Some(0), String::new()));
    let anchors = "routes: [&a {uri: /a}, *a]\n#END\n";
    let file = directory.write("b.yaml", anchors);
    assert_eq!(told(&["fmt", &file]).0, Some(2));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), anchors);
}
