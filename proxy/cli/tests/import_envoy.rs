//! Envoy bootstraps, imported: the gateway answers as the bootstrap itself is answered by.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::Value;
use support::echo::{echo, gateway, gateway_beside, started};
use support::{Directory, Response, free_port, output, request, sixfold};

const BOOTSTRAP: &str = include_str!("examples/import/envoy.yaml");
const GUARDED: &str = include_str!("examples/import/envoy-guarded.yaml");

fn import(directory: &Directory, text: &str) -> (i32, Value, String) {
    let file = directory.write("envoy.yaml", text);
    let into = directory.path("gateway");
    let done = output(&["import", "--from", "envoy", &file, "--directory", &into, "--output", "json"]);
    let report = serde_json::from_slice(&done.stdout).unwrap_or(Value::Null);
    let code = done.status.code().unwrap();
    assert!(code < 2, "{report:#}{}", String::from_utf8_lossy(&done.stderr));
    (code, report, into)
}

/// What of an answer is the same for both: the body of those that were not refused.
fn ask(port: u16, line: &str, headers: &[&str]) -> (u16, String, Option<String>, Option<String>) {
    let (method, path) = line.split_once(' ').unwrap();
    let mut all = vec!["Connection: close"];
    all.extend_from_slice(headers);
    let Response { status, head, body } = request(port, method, path, &all).expect(line);
    let header = |name: &str| {
        let found = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}: ")));
        found.map(|line| line.split_once(": ").unwrap().1.replace(&port.to_string(), "PORT"))
    };
    let body = if status == 200 { body } else { String::new() };
    (status, body, header("location"), header("x-served-by"))
}

#[test]
fn both_answer_the_same_requests_alike() {
    let directory = Directory::new();
    let (echo, ports) = (echo(), [free_port(), free_port(), free_port(), free_port()]);
    let [first, second, own_first, own_second] = ports;
    let text = BOOTSTRAP
        .replace("port_value: 8081", &format!("port_value: {echo}"))
        .replace("port_value: 9901", &format!("port_value: {}", free_port()))
        .replace("port_value: 10000", &format!("port_value: {first}"))
        .replace("port_value: 10001", &format!("port_value: {second}"));
    let (code, report, into) = import(&directory, &text);
    assert_eq!(code, 0, "{report:#}");
    gateway_beside(&into, &[(first, own_first), (second, own_second)]);
    // Routes tell listeners apart by their ports.
    let resources = std::fs::read_to_string(format!("{into}/apisix.yaml")).unwrap();
    let resources = resources.replace(&format!("\"{first}\""), &format!("\"{own_first}\""));
    let resources = resources.replace(&format!("\"{second}\""), &format!("\"{own_second}\""));
    std::fs::write(format!("{into}/apisix.yaml"), &resources).unwrap();
    let mut command = sixfold();
    command.args(["envoy", "-c", &directory.path("envoy.yaml")]);
    let _envoy = started(command, first);
    let _gateway = started(gateway(&into), own_first);
    for (line, headers) in [
        ("GET /health", &["Host: shop.test"][..]),
        ("GET /health", &["Host: shop.test:8080"]),
        ("GET /health", &["Host: a.shop.test"]),
        ("GET /health", &["Host: else.test"]),
        ("GET /health/", &["Host: shop.test"]),
        ("GET /old/x?a=b", &["Host: shop.test"]),
        ("GET /away/x?a=b", &["Host: shop.test"]),
        ("GET /cut/x/y?a=b", &["Host: shop.test"]),
        ("GET /cut", &["Host: shop.test"]),
        ("GET /items/12", &["Host: shop.test"]),
        ("GET /items/12/x", &["Host: shop.test"]),
        ("GET /any", &["Host: shop.test", "X-Version: beta", "X-Secret: s"]),
        ("GET /any", &["Host: shop.test", "X-Version: beta", "X-Not: b", "X-Beta: no"]),
        ("GET /any", &["Host: shop.test", "X-Version: beta", "X-Not: ab"]),
        ("GET /cut/x", &["Host: shop.test", "X-Version: beta", "X-Not: b"]),
        ("GET /sep/x", &["Host: shop.test", "X-Version: beta", "X-Not: b"]),
        ("GET /sep", &["Host: shop.test"]),
        ("GET /sep/x", &["Host: shop.test"]),
        ("GET /separate", &["Host: shop.test"]),
        ("GET /cASE", &["Host: shop.test"]),
        ("GET /query?debug=1", &["Host: shop.test"]),
        ("GET /query", &["Host: shop.test"]),
        ("GET /broken", &["Host: shop.test"]),
        ("GET /a", &["Host: else.test"]),
        ("POST /a/longer/x", &["Host: else.test", "Content-Length: 0"]),
        ("GET /gone/x", &["Host: else.test"]),
        ("GET /nothing", &["Host: else.test"]),
    ] {
        assert_eq!(
            ask(own_first, line, headers),
            ask(first, line, headers),
            "{line} {headers:?}\n{resources}"
        );
    }
    for line in ["GET /a/longer", "GET /gone/x", "GET /b"] {
        let headers = &["Host: shop.test"];
        assert_eq!(ask(own_second, line, headers), ask(second, line, headers), "{line}\n{resources}");
    }
}

#[test]
fn what_is_not_taken_over_is_reported_and_guards_stay_closed() {
    let directory = Directory::new();
    let (code, report, into) = import(&directory, GUARDED);
    assert_eq!(code, 1, "{report:#}");
    let found = |what: &str, kind: &str| {
        let findings = report["findings"].as_array().unwrap();
        let is =
            |finding: &&Value| finding["what"].as_str().unwrap().starts_with(what) && finding["kind"] == kind;
        let finding = findings.iter().find(is).unwrap_or_else(|| panic!("no {kind} {what} in {report:#}"));
        finding["line"].as_u64().unwrap() as usize
    };
    let line = |text: &str| GUARDED.lines().position(|line| line.contains(text)).unwrap() + 1;
    assert_eq!(found("listener \"web\": tls_certificates", "manual"), line("missing/cert.pem"));
    assert_eq!(found("connection manager \"api\": tracing", "unsupported"), line("tracing: {}"));
    assert_eq!(
        found("filter \"envoy.filters.http.jwt_authn\"", "manual"),
        line("- name: envoy.filters.http.jwt_authn")
    );
    assert_eq!(
        found("route \"sticky\": route.request_mirror_policies", "unsupported"),
        line("request_mirror_policies")
    );
    assert_eq!(found("cluster \"eds\": type", "manual"), line("type: EDS"));
    assert_eq!(found("cluster \"two\": circuit_breakers", "unsupported"), line("circuit_breakers"));
    found("cluster \"unused\": no route leads to it", "exact");
    let resources = std::fs::read_to_string(format!("{into}/apisix.yaml")).unwrap();
    let node = sixfold_core::document::Node::parse_file_text(&resources, "apisix.yaml").unwrap().to_json();
    let named = |section: &str, key: &str, name: &str| {
        let items = node[section].as_array().unwrap();
        items.iter().find(|item| item[key] == name).unwrap_or_else(|| panic!("{name}: {resources}")).clone()
    };
    let closed = named("routes", "name", "closed");
    assert_eq!(closed["plugins"]["mocking"]["response_status"], 403, "{closed:#}");
    assert!(closed.get("upstream_id").is_none(), "{closed:#}");
    let open = named("routes", "name", "open");
    let plugins = open["plugins"].as_object().unwrap();
    assert_eq!(
        plugins.keys().collect::<Vec<_>>(),
        ["ip-restriction", "cors", "limit-count", "traffic-split"],
        "{open:#}"
    );
    assert_eq!(plugins["ip-restriction"]["whitelist"][0], "10.0.0.0/8");
    let one = named("upstreams", "id", open["upstream_id"].as_str().unwrap());
    assert_eq!(
        (&one["retries"], &one["scheme"], &one["nodes"][1]["priority"]),
        (&2.into(), &"grpc".into(), &(-1).into())
    );
    assert_eq!(one["checks"]["active"]["unhealthy"]["http_failures"], 3, "{one:#}");
    let sticky = named("upstreams", "id", named("routes", "name", "sticky")["upstream_id"].as_str().unwrap());
    assert_eq!((&sticky["type"], &sticky["key"]), (&"chash".into(), &"x-user".into()), "{sticky:#}");
    let stream = &node["stream_routes"][0];
    assert_eq!(stream["server_port"], 5432, "{resources}");
}

/// A listener of these chains, each with one route to a cluster.
fn chained(chains: &[(&str, &str, &str)]) -> String {
    let types = "type.googleapis.com/envoy.extensions.filters";
    let chain = |(matches, filters, routes): &(&str, &str, &str)| {
        format!(
            "    - filter_chain_match: {matches}\n      filters:\n{filters}      - name: hcm\n        typed_config:\n          \
             \"@type\": {types}.network.http_connection_manager.v3.HttpConnectionManager\n          stat_prefix: x\n          \
             http_filters: [{{name: router, typed_config: {{\"@type\": {types}.http.router.v3.Router}}}}]\n          \
             route_config: {{name: r, virtual_hosts: [{{name: v, domains: [\"*\"], routes: [{routes}]}}]}}\n"
        )
    };
    let chains: String = chains.iter().map(chain).collect();
    format!(
        "static_resources:\n  clusters: [{{name: one, type: STATIC, load_assignment: {{cluster_name: one, endpoints: [{{lb_endpoints: \
         [{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: 80}}}}}}}}]}}]}}}}]\n  \
         listeners:\n  - name: web\n    address: {{socket_address: {{address: 0.0.0.0, port_value: 8080}}}}\n    filter_chains:\n{chains}"
    )
}

#[test]
fn chains_are_told_apart_and_whom_one_keeps_out_is_not_let_in() {
    let guard = "      - {name: guard, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: g}}\n";
    let to = |name: &str| format!("{{name: {name}, match: {{prefix: /}}, route: {{cluster: one}}}}");
    let denies = "{name: denies, match: {prefix: /admin, dynamic_metadata: [{filter: f, path: [{key: k}], value: {present_match: true}}]}, direct_response: {status: 403}}";
    let odd = "{name: odd, match: {prefix: /odd, cookies: [{name: c}]}, route: {cluster: one}}";
    let text = chained(&[
        ("{}", "", &format!("{denies}, {odd}, {}", to("rest"))),
        ("{server_names: [a.test, \"*.b.test\"]}", "", &to("named")),
        ("{source_prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}", "", &to("near")),
        ("{source_type: EXTERNAL}", "", &to("untold")),
        ("{server_names: [c.test]}", guard, &to("guarded")),
    ]);
    let directory = Directory::new();
    let (code, report, into) = import(&directory, &text);
    assert_eq!(code, 1, "{report:#}");
    let resources = std::fs::read_to_string(format!("{into}/apisix.yaml")).unwrap();
    let node = sixfold_core::document::Node::parse_file_text(&resources, "apisix.yaml").unwrap().to_json();
    let routes = node["routes"].as_array().unwrap();
    let named = |name: &str| routes.iter().find(|route| route["name"] == name);
    assert_eq!(named("named").unwrap()["vars"][0][2], "^(?:a\\.test|.+\\.b\\.test)$", "{resources}");
    assert_eq!(named("near").unwrap()["vars"][0][1], "ipmatch", "{resources}");
    assert!(
        named("rest").unwrap()["priority"].as_u64() < named("near").unwrap()["priority"].as_u64(),
        "{resources}"
    );
    assert_eq!(named("guarded").unwrap()["plugins"]["mocking"]["response_status"], 403, "{resources}");
    assert_eq!(named("denies").unwrap()["plugins"]["mocking"]["response_status"], 403, "{resources}");
    assert!(named("untold").is_none() && named("odd").is_none(), "{resources}");
}

/// A guard that a share of a route's requests had was not looked at.
#[test]
fn whom_a_member_of_weighted_clusters_keeps_out_is_not_let_in() {
    let types = "type.googleapis.com/envoy.extensions.filters.http";
    let rules = format!(
        "{{\"@type\": {types}.rbac.v3.RBACPerRoute, rbac: {{rules: {{action: DENY, policies: {{all: {{permissions: [{{any: true}}], principals: [{{any: true}}]}}}}}}}}}}"
    );
    let cors = format!("{{\"@type\": {types}.cors.v3.CorsPolicy}}");
    let route = |name: &str, own: &str| {
        format!(
            "{{name: {name}, match: {{prefix: /{name}}}, route: {{weighted_clusters: {{clusters: [{{name: one, weight: 1, typed_per_filter_config: {{{own}}}}}, {{name: one, weight: 1}}]}}}}}}"
        )
    };
    let routes = [route("guarded", &format!("guard: {rules}")), route("shared", &format!("cors: {cors}"))];
    let text = chained(&[("{}", "", &routes.join(", "))]).replace(
        "http_filters: [",
        &format!("http_filters: [{{name: guard, typed_config: {{\"@type\": {types}.rbac.v3.RBAC}}}}, {{name: cors, typed_config: {{\"@type\": {types}.cors.v3.Cors}}}}, "),
    );
    let directory = Directory::new();
    let (code, report, into) = import(&directory, &text);
    assert_eq!(code, 1, "{report:#}");
    let told = |what: &str| {
        let findings = report["findings"].as_array().unwrap().iter();
        let mut of = findings.filter(|one| one["what"].as_str().unwrap().starts_with(what));
        of.any(|one| one["kind"] == "manual")
    };
    assert!(told("route \"guarded\": route.weighted_clusters.typed_per_filter_config.guard"), "{report:#}");
    assert!(told("route \"shared\": route.weighted_clusters.typed_per_filter_config"), "{report:#}");
    let resources = std::fs::read_to_string(format!("{into}/apisix.yaml")).unwrap();
    let node = sixfold_core::document::Node::parse_file_text(&resources, "apisix.yaml").unwrap().to_json();
    let named = |name: &str| {
        node["routes"].as_array().unwrap().iter().find(|route| route["name"] == name).unwrap().clone()
    };
    let guarded = named("guarded");
    assert!(
        guarded["plugins"]["mocking"]["response_status"] == 403 && guarded.get("upstream_id").is_none(),
        "{resources}"
    );
    assert!(named("shared").get("upstream_id").is_some(), "{resources}");
}
