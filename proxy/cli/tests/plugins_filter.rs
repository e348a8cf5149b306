//! APISIX's plugins as an HTTP filter of an Envoy configuration, and the examples in `deploy`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::Value;
use sixfold_core::document::Node;
use support::{Directory, Process, free_port, get, output, request};

const EXAMPLE: &str = include_str!("../../../deploy/envoy/plugins.yaml");
const ENVOY_FILTER: &str = include_str!("../../../deploy/istio/plugins.yaml");

/// The example on ports that are free, on several workers.
fn start(text: &str) -> (Process, Directory, u16) {
    let (directory, admin, port) = (Directory::new(), free_port(), free_port());
    let text = text.replace("15000", &admin.to_string()).replace("10000", &port.to_string());
    let file = directory.write("envoy.yaml", &text);
    let mut process = Process::start(&[
        "-c",
        &file,
        "--concurrency",
        "4",
        "--use-dynamic-base-id",
        "--log-level",
        "warning",
    ]);
    process.until("readiness", || get(admin, "/ready").filter(|response| response.status == 200));
    (process, directory, port)
}

#[test]
fn the_example_limits_and_marks() {
    let (_process, _directory, port) = start(EXAMPLE);
    let statuses = [1, 2, 3].map(|_| get(port, "/api").unwrap());
    assert_eq!(statuses.each_ref().map(|response| response.status), [200, 200, 429]);
    assert!(statuses[0].head.contains("x-ratelimit-remaining: 1"), "{}", statuses[0].head);
    assert!(statuses.iter().all(|response| response.head.contains("x-served-by: sixfold")));
    for _ in 0..4 {
        let response = get(port, "/health").unwrap();
        assert_eq!((response.status, response.body.as_str()), (200, "healthy\n"));
        assert!(response.head.contains("x-served-by") && !response.head.contains("x-ratelimit"));
    }
}

/// The one in front answers first; what the plugins do to a request, the one behind sees.
#[test]
fn filters_before_and_behind_it_keep_their_turn() {
    const RBAC: &str = "\"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
    let rule = |name: &str, path: &str| {
        format!(
            "- {{name: {name}, typed_config: {{{RBAC}, rules: {{action: DENY, policies: {{p: {{permissions: \
             [{{url_path: {{path: {{prefix: {path}}}}}}}], principals: [{{any: true}}]}}}}}}}}}}\n          "
        )
    };
    let text = EXAMPLE
        .replace("- name: sixfold.plugins\n", &format!("{}- name: sixfold.plugins\n", rule("before", "/before")))
        .replace(
            "- name: envoy.filters.http.router\n",
            &format!("{}- name: envoy.filters.http.router\n", rule("behind", "/behind")),
        )
        .replace("                  response-rewrite:", "                  proxy-rewrite: {regex_uri: [\"^/to\", \"/behind\"]}\n                  response-rewrite:");
    let (_process, _directory, port) = start(&text);
    assert_eq!(get(port, "/before").unwrap().status, 403);
    assert_eq!(get(port, "/before").unwrap().status, 403);
    assert_eq!(get(port, "/before").unwrap().status, 403, "what is refused before is not counted");
    let rewritten = get(port, "/to").unwrap();
    assert_eq!(rewritten.status, 403);
    assert!(rewritten.head.contains("x-ratelimit-remaining: 1"), "it was counted: {}", rewritten.head);
    let origin = request(port, "GET", "/api", &["Origin: http://a"]).unwrap();
    assert_eq!(origin.status, 200);
}

#[test]
fn what_is_wrong_is_told_in_apisix_s_words() {
    let directory = Directory::new();
    let text = EXAMPLE.replace("{count: 2,", "{count: [],").replace("x-served-by: sixfold", "x: [1]");
    let file = directory.write("envoy.yaml", &text);
    let output = output(&["validate", "-c", &file]);
    let said = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success());
    for part in [
        "virtual_hosts[0].typed_per_filter_config.sixfold.plugins.value.plugins.limit-count",
        "failed to check the configuration of plugin limit-count err:",
        "http_filters[1].typed_config.value.plugins.response-rewrite",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

/// What istiod would put into a listener and a virtual host is taken.
#[test]
fn the_envoy_filter_of_istio_is_taken() {
    let document = Node::parse_file_text(ENVOY_FILTER, "plugins.yaml").unwrap().to_json();
    let patches = document["spec"]["configPatches"].as_array().unwrap();
    let value = |kind: &str| {
        let patch = patches.iter().find(|patch| patch["applyTo"] == kind).unwrap();
        patch["patch"]["value"].clone()
    };
    let mut bootstrap = Node::parse_file_text(EXAMPLE, "plugins.yaml").unwrap().to_json();
    let manager =
        &mut bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
    manager["http_filters"][1] = value("HTTP_FILTER");
    let host = &mut manager["route_config"]["virtual_hosts"][0];
    let Value::Object(merged) = value("VIRTUAL_HOST") else { panic!("not an object") };
    merged.into_iter().for_each(|(key, value)| host[key] = value);
    let (_process, _directory, port) = start(&bootstrap.to_string());
    let answer = get(port, "/api").unwrap();
    assert!(answer.head.contains("x-ratelimit-limit: 100") && answer.head.contains("x-served-by: sixfold"));
}
