//! Envoy's lua filter: in builds that have it, and what the others say of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::{Directory, free_port};

/// A listener that answers by itself, behind a script.
fn bootstrap(admin: u16, port: u16) -> String {
    let extensions = "type.googleapis.com/envoy.extensions.filters";
    let script = "function envoy_on_request(h) if h:headers():get('x-deny') then h:respond({[':status'] = '403'}, 'no') end end \
                  function envoy_on_response(h) h:headers():add('x-script', 'ran') end";
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}\n\
         static_resources:\n  listeners:\n  - name: web\n    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\n    \
         filter_chains:\n    - filters:\n      - name: hcm\n        typed_config:\n          \
         \"@type\": {extensions}.network.http_connection_manager.v3.HttpConnectionManager\n          stat_prefix: web\n          \
         http_filters:\n          - name: script\n            typed_config:\n              \"@type\": {extensions}.http.lua.v3.Lua\n              \
         default_source_code: {{inline_string: \"{script}\"}}\n          \
         - {{name: router, typed_config: {{\"@type\": {extensions}.http.router.v3.Router}}}}\n          \
         route_config: {{virtual_hosts: [{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200}}}}]}}]}}\n"
    )
}

#[cfg(feature = "lua")]
#[test]
fn scripts_run() {
    use support::{Process, get, request};
    let (directory, admin, port) = (Directory::new(), free_port(), free_port());
    let file = directory.write("envoy.yaml", &bootstrap(admin, port));
    let mut process = Process::start(&[
        "-c",
        &file,
        "--concurrency",
        "2",
        "--use-dynamic-base-id",
        "--log-level",
        "warning",
    ]);
    process.until("readiness", || get(admin, "/ready").filter(|response| response.status == 200));
    let answer = get(port, "/").unwrap();
    assert!(answer.status == 200 && answer.head.contains("x-script: ran"), "{}", answer.head);
    let denied = request(port, "GET", "/", &["x-deny: 1"]).unwrap();
    assert_eq!((denied.status, denied.body.as_str()), (403, "no"));
    let stats = get(admin, "/stats?filter=lua").unwrap().body;
    assert!(
        stats.contains("http.web.lua.errors: 0") && stats.contains("http.web.lua.executions: 4"),
        "{stats}"
    );
}

#[cfg(not(feature = "lua"))]
#[test]
fn a_build_without_it_says_how_to_get_it() {
    let directory = Directory::new();
    let file = directory.write("envoy.yaml", &bootstrap(free_port(), free_port()));
    let output = support::output(&["validate", "-c", &file]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("build with --features lua"), "{said}");
}
