//! `sixfold explain`: what it says is what was recorded of Envoy, and what a running proxy does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use sixfold_core::document::Node;
use std::path::{Path, PathBuf};
use support::{Directory, Process, free_port, get, output};

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../conformance");

/// Families whose routes are explained.
const FAMILIES: [&str; 7] =
    ["vhost", "match-path", "match-headers", "match-query", "match-misc", "redirect", "direct"];

/// Cases in which filters choose the route or answer before it, or that this proxy refuses by name.
const LEFT_OUT: [&str; 4] = [
    "match-path.matcher-tree",
    "match-misc.filter-state",
    "match-misc.dynamic-metadata",
    "match-misc.require-tls-filters",
];

fn explain(arguments: &[&str]) -> Value {
    let output = output(&[&["explain", "--output", "json"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn manager(extra: &Value) -> Value {
    let extensions = "type.googleapis.com/envoy.extensions.filters";
    let mut manager = json!({
        "@type": format!("{extensions}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "s",
        "http_filters": [{"name": "router", "typed_config": {"@type": format!("{extensions}.http.router.v3.Router")}}],
    });
    extra.as_object().into_iter().flatten().for_each(|(key, value)| manager[key] = value.clone());
    manager
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

/// The bootstrap of a case.
fn bootstrap(case: &Value) -> Value {
    let mut routes = json!({"name": "table"});
    case["route_config"]
        .as_object()
        .into_iter()
        .flatten()
        .for_each(|(key, value)| routes[key] = value.clone());
    if case["routes"].is_array() {
        routes["virtual_hosts"] = json!([{"name": "all", "domains": ["*"], "routes": case["routes"]}]);
    }
    if case["vhosts"].is_array() {
        routes["virtual_hosts"] = case["vhosts"].clone();
    }
    let mut extra = case["hcm"].clone();
    if extra.is_null() {
        extra = json!({});
    }
    extra["route_config"] = routes;
    let chain = json!({"filters": [{"name": "hcm", "typed_config": manager(&extra)}]});
    let cluster = |name: &str| {
        let endpoint = json!({"endpoint": {"address": address(9)}});
        json!({"name": name, "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}})
    };
    let runtime = if case["runtime"].is_object() { case["runtime"].clone() } else { json!({}) };
    let clusters = ["a", "b", "c", "d"].map(cluster);
    json!({
        "layered_runtime": {"layers": [{"name": "static", "static_layer": runtime}]},
        "static_resources": {
            "listeners": [{"name": "case", "address": address(21000), "filter_chains": [chain]}],
            "clusters": clusters,
        },
    })
}

/// Compares one step; answers whether it is one that can be compared.
fn check(id: &str, file: &str, step: &Value, log: &str, recorded: &Value) -> bool {
    let plain = ["raw", "repeat", "observe", "proto", "admin", "conn"].iter().all(|key| step[*key].is_null());
    if !plain || step["path"].as_str().is_some_and(str::is_empty) {
        return false;
    }
    let text = |key: &str, default: &str| step[key].as_str().unwrap_or(default).to_owned();
    let (method, path) = (text("method", "GET"), text("path", "/"));
    let mut arguments =
        vec![method, path, "-c".to_owned(), file.to_owned(), "--listener".to_owned(), "case".to_owned()];
    let host = text("host", "oracle.test");
    if !arguments[1].contains("://") {
        arguments.extend(["-H".to_owned(), format!("host: {host}")]);
    }
    for header in step["headers"].as_array().into_iter().flatten() {
        arguments.extend(["-H".to_owned(), header.as_str().unwrap().to_owned()]);
    }
    let story = explain(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let words: Vec<&str> = log.split_whitespace().collect();
    let [status, .., cluster, route] = words.as_slice() else { panic!("{log}") };
    let what = format!("{id}: {arguments:?} was {log}: {story:#}");
    let named = story["route"]["name"].as_str().filter(|name| !name.is_empty()).unwrap_or("-");
    // What require_tls answers has no route in Envoy's log.
    assert_eq!(named, *route, "{what}");
    if *cluster != "-" {
        assert_eq!(story["clusters"][0]["name"], *cluster, "{what}");
    }
    let location = &recorded["headers"]["location"][0];
    let action = &story["action"];
    match action["kind"].as_str() {
        Some("forward") => {
            let hit = &recorded["hits"][0];
            if hit["path"].is_string() {
                assert_eq!(action["upstream_path"], hit["path"], "{what}");
            }
        }
        Some(_) => {
            // Calls of gRPC are told by their own status.
            if !arguments.iter().any(|argument| argument.contains("application/grpc")) {
                assert_eq!(action["status"].to_string(), *status, "{what}");
            }
            if location.is_string() {
                assert_eq!(action["location"], *location, "{what}");
            }
        }
        None => assert!(story["outcome"].as_str().unwrap().contains(status), "{what}"),
    }
    true
}

#[test]
fn routes_are_those_that_were_recorded() {
    let directory = Directory::new();
    let mut compared = 0;
    for family in FAMILIES {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
        let cases = read(Path::new(CASES).join(format!("cases/{family}.yaml")));
        let cases = Node::parse_file_text(&cases, "cases.yaml").unwrap().to_json();
        let expected = read(Path::new(CASES).join(format!("expected/{family}.json")));
        let expected: Value = serde_json::from_str(&expected).unwrap();
        for case in cases["cases"].as_array().unwrap() {
            let id = format!("{family}.{}", case["name"].as_str().unwrap());
            let (steps, log) = (&expected[&id]["steps"], &expected[&id]["log"]);
            let requests = case["requests"].as_array().unwrap();
            let same = |list: &Value| list.as_array().is_some_and(|list| list.len() == requests.len());
            let is_special = ["filter_chains", "listener", "bootstrap", "clusters"]
                .iter()
                .any(|key| !case[*key].is_null());
            if LEFT_OUT.contains(&id.as_str()) || is_special || !same(steps) || !same(log) {
                continue;
            }
            let file = directory.write(&format!("{id}.json"), &bootstrap(case).to_string());
            for (at, step) in requests.iter().enumerate() {
                let line = log[at].as_str().unwrap();
                compared += usize::from(check(&id, &file, step, line, &steps[at]));
            }
        }
    }
    assert!(compared > 200, "only {compared} requests were compared");
}

/// Two routes lose before the third, for what each of them asks.
const ROUTED: &str = "
- {name: other, match: {path: /other}, route: {cluster: a}}
- {name: canary, match: {prefix: /api, headers: [{name: x-env, string_match: {exact: canary}}]}, route: {cluster: b}}
- name: api
  match: {prefix: /api}
  route: {cluster: a, prefix_rewrite: /v2, timeout: 3s, retry_policy: {retry_on: '5xx', num_retries: 2}}
";

fn routed(port: u16, admin: u16) -> String {
    let routes = Node::parse_file_text(ROUTED, "routes.yaml").unwrap().to_json();
    let cors = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"});
    let mut bootstrap = bootstrap(&json!({"routes": routes}));
    let listener = &mut bootstrap["static_resources"]["listeners"][0];
    listener["address"] = address(port);
    let filters = &mut listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"];
    filters.as_array_mut().unwrap().insert(0, json!({"name": "cors", "typed_config": cors}));
    bootstrap["admin"] = json!({"address": address(admin)});
    bootstrap.to_string()
}

#[test]
fn it_says_why_earlier_routes_lost() {
    let directory = Directory::new();
    let file = directory.write("envoy.json", &routed(21000, 1));
    let story = explain(&["GET", "http://127.0.0.1:21000/api/x?y", "-H", "x-env: dev", "-c", &file]);
    let passed = story["passed_over"].as_array().unwrap();
    assert_eq!(
        passed[0],
        json!({"route": "other", "reason": "path", "wanted": "path is \"/other\"", "seen": "/api/x"})
    );
    assert_eq!(
        passed[1],
        json!({"route": "canary", "reason": "header", "wanted": "header x-env is \"canary\"", "seen": "dev"})
    );
    assert_eq!(story["route"]["name"], "api");
    assert_eq!(story["action"]["upstream_path"], "/v2/x?y");
    assert_eq!(story["action"]["timeouts"]["request"], 3000);
    assert_eq!(story["action"]["retry"]["attempts"], 2);
    assert_eq!(story["clusters"][0]["endpoints"][0]["address"], "127.0.0.1:9");
    assert_eq!(story["filters"][0]["name"], "cors");
    let printed = output(&["explain", "GET", "http://127.0.0.1:21000/api/x?y", "-c", &file]);
    let text = String::from_utf8(printed.stdout).unwrap();
    for part in [
        "passed over   2 earlier routes",
        "\"canary\" for its header: header x-env is \"canary\"; the request has none",
        "route         \"api\"",
        "forward to cluster \"a\"",
        "timeout request: 3000 ms",
        "127.0.0.1:9 weight 1, priority 0",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

/// Filters that judge a request are run over it; nobody is asked.
#[test]
fn filters_say_what_becomes_of_the_request() {
    const FILTERS: &str = "
- name: jwt
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
    providers:
      near: {issuer: i, local_jwks: {inline_string: ''}}
      far: {issuer: f, remote_jwks: {http_uri: {uri: 'http://keys.test/jwks?a', cluster: a, timeout: 1s}}}
    rules:
    - {match: {prefix: /near}, requires: {provider_name: near}}
    - {match: {prefix: /far}, requires: {provider_name: far}}
- name: rbac
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    rules:
      action: ALLOW
      policies:
        shop:
          permissions: [{url_path: {path: {prefix: /shop}}}]
          principals: [{authenticated: {principal_name: {exact: 'spiffe://t/shop'}}}]
        rest: {permissions: [{not_rule: {url_path: {path: {prefix: /shop}}}}], principals: [{any: true}]}
- name: authz
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
    http_service: {server_uri: {uri: 'http://authz.test', cluster: b, timeout: 1s}, path_prefix: /check}
- name: limit
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
    domain: d
    rate_limit_service: {transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: c}}}
";
    const ROUTES: &str = "
- {match: {prefix: /limited}, route: {cluster: a, rate_limits: [{actions: [{remote_address: {}}]}]}}
- {match: {prefix: /}, route: {cluster: a}}
";
    let json = |text: &str| Node::parse_file_text(text, "part.yaml").unwrap().to_json();
    let mut bootstrap = bootstrap(&json!({"routes": json(ROUTES)}));
    let manager = &mut bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0];
    let filters = manager["typed_config"]["http_filters"].as_array_mut().unwrap();
    filters.splice(..0, json(FILTERS).as_array().unwrap().iter().cloned());
    let directory = Directory::new();
    let file = directory.write("envoy.json", &bootstrap.to_string());
    let told = |arguments: &[&str]| {
        let host = ["-H", "host: a.test", "-c", &file, "--listener", "case"];
        let story = explain(&[&["GET"], arguments, &host].concat());
        let filters = story["filters"].as_array().unwrap().iter();
        filters.map(|filter| filter.get("verdict").cloned().unwrap_or_default()).collect::<Vec<_>>()
    };
    let passes = json!({"kind": "passes"});
    let asks =
        |cluster: &str, path: &str| json!({"kind": "asks", "service": {"cluster": cluster, "path": path}});
    assert_eq!(told(&["/a?b"]), [&passes, &passes, &asks("b", "/check/a"), &passes].map(Value::clone));
    let limited = told(&["/limited"]);
    assert_eq!(limited[3], asks("c", "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"));
    // Behind one that answers nothing runs.
    let near = told(&["/near"]);
    let missing = json!({
        "kind": "answers", "status": 401, "body": "Jwt is missing", "details": "jwt_authn_access_denied{Jwt_is_missing}",
    });
    assert_eq!(near, [missing, Value::Null, Value::Null, Value::Null]);
    // Its keys would be fetched; what its token says of the sender is taken as true.
    let token = "authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJmIn0.AAAA";
    assert_eq!(told(&["/far", "-H", token])[..2], [asks("a", "/jwks"), passes.clone()]);
    assert_eq!(told(&["/shop"])[1]["status"], 403);
    assert_eq!(told(&["/shop", "--peer", "spiffe://t/shop", "--sni", "shop"])[1], passes);
    let text = output(&["explain", "GET", "http://a.test/shop", "-c", &file, "--listener", "case"]);
    let text = String::from_utf8(text.stdout).unwrap();
    let lines = [
        "jwt as of listener: Access; lets the request pass\n",
        "rbac as of listener: Access; answers 403 (rbac_access_denied_matched_policy[none])\n",
        "authz as of listener: Access, HeaderFilter\n",
        "outcome       the filter \"rbac\" answers in the place of the route\n",
    ];
    assert!(lines.iter().all(|line| text.contains(line)), "{text}");
}

/// Filters were passed over that answer or change a request, and nothing was said of those that have no part in it.
#[test]
fn every_filter_says_what_it_would_do() {
    const FILTERS: &str = "
- name: limit
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
    stat_prefix: s
    token_bucket: {max_tokens: 3, fill_interval: 60s}
    filter_enabled: {default_value: {numerator: 100}}
    filter_enforced: {default_value: {numerator: 100}}
- name: fault
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
    abort: {http_status: 503, percentage: {numerator: 5}}
    headers: [{name: x-fault, present_match: true}]
- name: health
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck
    pass_through_mode: false
    headers: [{name: ':path', string_match: {exact: /healthz}}]
- name: basic
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.basic_auth.v3.BasicAuth
    users: {inline_string: 'jack:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M='}
    forward_username_header: x-user
- name: mutation
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
    mutations: {request_mutations: [{append: {header: {key: x-added, value: v}}}, {remove: x-gone}]}
- name: slow
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit
    stat_prefix: s
    enable_mode: RESPONSE
    limit_kbps: 1
- name: demand
  typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand}
";
    let mut bootstrap =
        bootstrap(&json!({"routes": [{"match": {"prefix": "/"}, "route": {"cluster": "a"}}]}));
    let manager = &mut bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0];
    let filters = manager["typed_config"]["http_filters"].as_array_mut().unwrap();
    let own = Node::parse_file_text(FILTERS, "part.yaml").unwrap().to_json();
    filters.splice(..0, own.as_array().unwrap().iter().cloned());
    let directory = Directory::new();
    let file = directory.write("envoy.json", &bootstrap.to_string());
    let text = |path: &str, headers: &[&str]| {
        let url = format!("http://a.test{path}");
        let headers = headers.iter().flat_map(|header| ["-H", header]);
        let arguments = ["explain", "GET", &url, "-c", &file, "--listener", "case"];
        let printed = output(&arguments.into_iter().chain(headers).collect::<Vec<_>>());
        String::from_utf8(printed.stdout).unwrap()
    };
    let jack = "authorization: Basic amFjazp0ZXN0";
    let shown = text("/a", &[jack, "x-gone: 1", "x-fault: 1"]);
    for line in [
        "limit as of listener: Access; answers 429 (local_rate_limited) once a bucket of 3 tokens is empty\n",
        "fault as of listener: Access; answers 503 (fault_filter_abort): 5 of 100 requests\n",
        "health as of listener: Access, HeaderFilter; lets the request pass\n",
        "basic as of listener: Access; lets the request pass, and changes x-user\n",
        "mutation as of listener: Access; lets the request pass, and changes x-added, x-gone\n",
        "slow as of listener: HeaderFilter, ResponseBody; acts on what comes later\n",
        "demand as of listener: does nothing here\n",
    ] {
        assert!(shown.contains(line), "{line} is not in\n{shown}");
    }
    let unmet = text("/a", &[jack]);
    assert!(unmet.contains("fault as of listener: Access; lets the request pass\n"), "{unmet}");
    let refused = text("/a", &[]);
    assert!(refused.contains("basic as of listener: Access; answers 401 ("), "{refused}");
    assert!(
        refused.contains("outcome       the filter \"basic\" answers in the place of the route"),
        "{refused}"
    );
    assert!(text("/healthz", &[]).contains("health as of listener: Access, HeaderFilter; answers 200 ("));
}

/// By its administration, and by the dump as a file.
#[test]
fn a_running_proxy_is_explained() {
    let (directory, port, admin) = (Directory::new(), free_port(), free_port());
    let file = directory.write("envoy.json", &routed(port, admin));
    let mut process = Process::start(&[
        "-c",
        &file,
        "--concurrency",
        "1",
        "--use-dynamic-base-id",
        "--log-level",
        "warning",
    ]);
    process.until("readiness", || get(admin, "/ready").filter(|response| response.status == 200));
    let address = format!("127.0.0.1:{admin}");
    let url = format!("http://127.0.0.1:{port}/api");
    let story = explain(&["GET", &url, "-H", "x-env: canary", "--admin", &address]);
    assert_eq!(
        (story["route"]["name"].as_str(), story["clusters"][0]["name"].as_str()),
        (Some("canary"), Some("b"))
    );
    let dump = directory.write("dump.json", &get(admin, "/config_dump").unwrap().body);
    assert_eq!(explain(&["GET", &url, "-H", "x-env: canary", "--dump", &dump])["route"], story["route"]);
    let nobody = output(&["explain", "GET", &url, "--admin", "127.0.0.1:1"]);
    assert!(
        !nobody.status.success() && String::from_utf8_lossy(&nobody.stderr).contains("--admin 127.0.0.1:1")
    );
}

const RESOURCES: &str = "
services: [{id: s, plugins: {response-rewrite: {headers: {set: {x: y}}}}, upstream: {nodes: {'127.0.0.1:9': 3}}}]
global_rules: [{id: g, plugins: {prometheus: {}}}]
routes:
- {id: put, uri: /hello, methods: [PUT], service_id: s}
- {id: get, uri: /hello, service_id: s, plugins: {limit-count: {count: 1, time_window: 60}}, vars: [[arg_a, '==', '1']]}
- {id: rest, uri: /*, service_id: s}
#END
";

#[test]
fn apisix_s_routes_are_explained() {
    let directory = Directory::new();
    let file = directory.write("apisix.yaml", RESOURCES);
    let story = explain(&["GET", "http://127.0.0.1:9080/hello?a=1", "-c", &file]);
    let passed = &story["passed_over"][0];
    assert_eq!(
        (&passed["route"], &passed["reason"], &passed["seen"]),
        (&json!("put"), &json!("method"), &json!("GET"))
    );
    assert_eq!(story["route"]["name"], "get");
    let filters = story["filters"].as_array().unwrap();
    let told: Vec<_> =
        filters.iter().map(|f| (f["name"].as_str().unwrap(), f["settings"].as_str().unwrap())).collect();
    for (name, from) in
        [("prometheus", "global_rules/g"), ("limit-count", "routes/get"), ("response-rewrite", "services/s")]
    {
        assert!(told.contains(&(name, from)), "{told:?}");
    }
    assert_eq!(story["clusters"][0]["endpoints"][0]["weight"], 3);
    let other = explain(&["GET", "http://127.0.0.1:9080/hello?a=2", "-c", &file]);
    assert_eq!(other["route"]["name"], "rest");
    let passed = &other["passed_over"][1];
    assert_eq!(
        (&passed["reason"], &passed["wanted"], &passed["seen"]),
        (&json!("vars"), &json!("arg_a == \"1\""), &json!("2"))
    );
    // Each port has a listener for IPv4 and one for IPv6; a URL need not name the port at all.
    for (url, listener) in [
        ("http://shop.test:9080/hello?a=1", "http/0.0.0.0:9080"),
        ("http://shop.test/hello?a=1", "http/0.0.0.0:9080"),
        ("/hello?a=1", "http/0.0.0.0:9080"),
        ("https://shop.test:9443/hello?a=1", "https/0.0.0.0:9443"),
        ("https://shop.test/hello?a=1", "https/0.0.0.0:9443"),
    ] {
        let story = explain(&["GET", url, "-c", &file]);
        assert_eq!(
            (&story["listener"]["name"], &story["route"]["name"]),
            (&json!(listener), &json!("get")),
            "{url}"
        );
    }
}

/// The client's Host was told, and the route's own cluster, whatever `pass_host` and traffic-split say.
#[test]
fn host_and_cluster_are_those_that_the_upstream_sees() {
    const RESOURCES: &str = "routes:
  - {id: rw, uri: /rw, upstream: {nodes: {'127.0.0.1:1': 1}, pass_host: rewrite, upstream_host: up.example}}
  - {id: node, uri: /node, upstream: {nodes: {'localhost:31801': 1}, pass_host: node}}
  - {id: nodes, uri: /nodes, upstream: {nodes: {'a.test:1': 1, 'b.test:80': 1}, pass_host: node}}
  - id: split
    uri: /split
    plugins: {traffic-split: {rules: [{weighted_upstreams: [{upstream: {nodes: {'127.0.0.1:2': 1}}, weight: 1}]}]}}
    upstream: {nodes: {'127.0.0.1:1': 1}}
  - id: some
    uri: /some
    plugins:
      traffic-split:
        _meta: {filter: [[arg_q, '==', '1']]}
        rules: [{weighted_upstreams: [{upstream: {nodes: {'127.0.0.1:2': 1}, pass_host: rewrite, upstream_host: b.example}, weight: 1}]}]
    upstream: {nodes: {'127.0.0.1:1': 1}}
#END
";
    let directory = Directory::new();
    let file = directory.write("apisix.yaml", RESOURCES);
    let story = |path: &str| explain(&["GET", &format!("http://shop.test{path}"), "-c", &file]);
    let text = |path: &str| {
        let shown = output(&["explain", "GET", &format!("http://shop.test{path}"), "-c", &file]);
        String::from_utf8(shown.stdout).unwrap()
    };
    assert_eq!(story("/rw")["action"]["upstream_host"], "up.example");
    assert_eq!(story("/node")["action"]["upstream_host"], "localhost:31801");
    let nodes = story("/nodes");
    let hosts: Vec<_> = nodes["clusters"][0]["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["host"].as_str().unwrap())
        .collect();
    assert_eq!((&nodes["action"]["upstream_host"], hosts), (&Value::Null, vec!["a.test:1", "b.test"]));
    assert!(text("/nodes").contains("as the node's own name, /nodes\n"), "{}", text("/nodes"));
    let split = text("/split");
    let said = "; sends 100 % to cluster \"routes/split/traffic-split/0/0\"\n";
    assert!(split.contains(said) && split.contains("unless traffic-split chooses"), "{split}");
    // Of what it chooses neither nodes nor Host were told, and its condition was not looked at.
    assert!(text("/some?q=1").contains("cluster       \"routes/some/traffic-split/0/0\", as b.example\n"));
    let chosen = &story("/some?q=1")["clusters"][1];
    let endpoint = &chosen["endpoints"][0]["address"];
    assert_eq!((&chosen["upstream_host"], endpoint), (&json!("b.example"), &json!("127.0.0.1:2")));
    let (own, left) = (story("/some"), text("/some"));
    assert_eq!(own["clusters"].as_array().unwrap().len(), 1);
    assert_eq!(own["filters"][0]["verdict"], json!({"kind": "left_out"}));
    assert!(left.contains("; is left out by _meta.filter\n") && !left.contains("unless"), "{left}");
}

/// Whom a request is from was not known, and what that changes of the plugins.
#[test]
fn consumers_are_found_as_the_gateway_finds_them() {
    const RESOURCES: &str = "consumers:
  - {username: jack, group_id: g, labels: {team: a}, plugins: {key-auth: {key: one}, proxy-rewrite: {uri: /x}}}
  - {username: ann, plugins: {basic-auth: {username: ann, password: x}}}
consumer_groups:
  - {id: g, plugins: {limit-count: {count: 5, time_window: 60}}}
routes:
  - {id: r, uri: /a, plugins: {key-auth: {}, limit-count: {count: 1, time_window: 60}}, upstream: {nodes: {'127.0.0.1:1': 1}}}
  - {id: open, uri: /open, plugins: {cors: {}}, upstream: {nodes: {'127.0.0.1:1': 1}}}
  - {id: both, uri: /both, plugins: {key-auth: {}, basic-auth: {}}, upstream: {nodes: {'127.0.0.1:1': 1}}}
#END
";
    let directory = Directory::new();
    let file = directory.write("apisix.yaml", RESOURCES);
    // The first that found somebody decided, where the gateway asks all of them.
    let both = explain(&["GET", "http://a.test/both", "-H", "authorization: Basic YW5uOng=", "-c", &file]);
    let told = (&both["consumer"]["by"], &both["consumer"]["refused"]["status"]);
    assert_eq!(told, (&json!("basic-auth and key-auth"), &json!(401)));
    let told = |arguments: &[&str]| explain(&[&["GET", "http://a.test/a", "-c", &file], arguments].concat());
    let story = told(&["-H", "apikey: one"]);
    assert_eq!(
        story["consumer"],
        json!({"name": "jack", "group": "g", "labels": {"team": "a"}, "by": "key-auth", "brings": ["proxy-rewrite", "limit-count"]})
    );
    let filters = story["filters"].as_array().unwrap();
    let settings = |name: &str| filters.iter().find(|f| f["name"] == name).unwrap()["settings"].clone();
    assert_eq!(settings("limit-count"), "consumer_groups/g");
    assert_eq!(settings("proxy-rewrite"), "consumers/jack");
    assert_eq!(told(&["--consumer", "jack"])["filters"], story["filters"]);
    let refused = told(&["-H", "apikey: two"]);
    assert_eq!(refused["consumer"]["refused"]["status"], 401);
    assert!(refused["consumer"].get("name").is_none());
    let open = explain(&["GET", "http://a.test/open", "-c", &file]);
    assert!(open.get("consumer").is_none());
    let text = output(&["explain", "GET", "http://a.test/a", "-H", "apikey: one", "-c", &file]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("consumer      \"jack\" of group \"g\" by key-auth\n"), "{text}");
    let unknown = output(&["explain", "GET", "http://a.test/a", "--consumer", "joe", "-c", &file]);
    assert_eq!(String::from_utf8_lossy(&unknown.stderr), "no consumer is called \"joe\"\n");
}

#[test]
fn what_is_asked_wrongly_is_told() {
    let directory = Directory::new();
    let file = directory.write("envoy.json", &routed(21000, 1));
    for (arguments, said) in [
        (
            vec!["GET", "/", "-c", file.as_str(), "--listener", "no"],
            "no listener is called \"no\"; there are: case",
        ),
        (vec!["GET", "ftp://a/", "-c", file.as_str()], "only http and https are known"),
        (vec!["GET", "/", "-H", "bad", "-c", file.as_str()], "a header is NAME: VALUE"),
        (vec!["GET", "/"], "--config"),
    ] {
        let output = output(&[&["explain"], arguments.as_slice()].concat());
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && errors.contains(said), "{errors}");
    }
}

/// One member of weighted clusters has a host, filters and retries of its own.
const WEIGHTED: &str = "
- name: split
  match: {prefix: /}
  route:
    retry_policy: {retry_on: '5xx', num_retries: 2}
    weighted_clusters:
      clusters:
      - {name: a, weight: 80}
      - {name: b, weight: 15, host_rewrite_literal: b.test, typed_per_filter_config: {cors: {'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}}}
      - {name: a, weight: 5}
";

#[test]
fn what_a_member_of_weighted_clusters_has_of_its_own_is_told() {
    let directory = Directory::new();
    let mut bootstrap: Value = serde_json::from_str(&routed(21000, 1)).unwrap();
    let manager = &mut bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0];
    let routes = Node::parse_file_text(WEIGHTED, "routes.yaml").unwrap().to_json();
    manager["typed_config"]["route_config"]["virtual_hosts"][0]["routes"] = routes;
    bootstrap["static_resources"]["clusters"][1]["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http_protocol_options": {}},
            "retry_policy": {"retry_on": "reset", "num_retries": 7},
        },
    });
    let file = directory.write("envoy.json", &bootstrap.to_string());
    let story = explain(&["GET", "http://a.test/", "-c", &file, "--listener", "case"]);
    let action = &story["action"];
    assert_eq!((&action["upstream_host"], &action["retry"]["attempts"]), (&json!("a.test"), &json!(2)));
    let members = action["to"]["weighted"].as_array().unwrap();
    let own = ["upstream_host", "retry", "filters"];
    assert!(own.iter().all(|key| members[0].get(key).is_none()), "{members:#?}");
    assert_eq!(
        (&members[1]["upstream_host"], &members[1]["retry"]["attempts"]),
        (&json!("b.test"), &json!(7))
    );
    assert_eq!((story["filters"][0]["name"].as_str(), &members[1]["filters"]), (Some("cors"), &json!([])));
    let clusters = story["clusters"].as_array().unwrap();
    assert_eq!(clusters.iter().map(|cluster| &cluster["name"]).collect::<Vec<_>>(), ["a", "b"]);
    let printed = output(&["explain", "GET", "http://a.test/", "-c", &file, "--listener", "case"]);
    let text = String::from_utf8(printed.stdout).unwrap();
    for part in [
        "of cluster \"b\": as b.test",
        "of cluster \"b\": retries: 7 on reset",
        "of cluster \"b\": no filters",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

/// The filters of the route were run over a request, whatever the member that it goes to says of them.
#[test]
fn filters_are_those_of_the_member_that_the_request_goes_to() {
    let directory = Directory::new();
    let of = |kind: &str, rules: Value| {
        let kind = format!("type.googleapis.com/envoy.extensions.filters.http.rbac.v3.{kind}");
        let mut settings = json!({"@type": kind});
        settings.as_object_mut().unwrap().extend(rules.as_object().cloned().unwrap_or_default());
        settings
    };
    let nobody = json!({"rbac": {"rules": {"action": "ALLOW", "policies": {}}}});
    let clusters = json!([
        {"name": "a", "weight": 1},
        {"name": "a", "weight": 1, "typed_per_filter_config": {"guard": of("RBACPerRoute", nobody)}},
    ]);
    let routes =
        |weighted: Value| json!([{"match": {"prefix": "/"}, "route": {"weighted_clusters": weighted}}]);
    let explained = |weighted: Value, number: &str| {
        let mut bootstrap: Value = serde_json::from_str(&routed(21000, 1)).unwrap();
        let manager = &mut bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0];
        manager["typed_config"]["route_config"]["virtual_hosts"][0]["routes"] = routes(weighted);
        let filters = manager["typed_config"]["http_filters"].as_array_mut().unwrap();
        filters.insert(0, json!({"name": "guard", "typed_config": of("RBAC", json!({}))}));
        let file = directory.write("envoy.json", &bootstrap.to_string());
        explain(&["GET", "http://a.test/", "-H", number, "-c", &file, "--listener", "case"])
    };
    let by_header = json!({"header_name": "w", "clusters": clusters});
    // The listener's own has no rules and nothing to say.
    for (number, index, verdict) in [("w: 0", 0, Value::Null), ("w: 1", 1, json!("answers"))] {
        let story = explained(by_header.clone(), number);
        let drawn = json!({"index": index, "to": {"cluster": "a"}, "at_random": false});
        assert_eq!(story["drawn"], drawn, "{story:#}");
        assert_eq!(story["filters"][0]["verdict"]["kind"], verdict, "{story:#}");
        let of_member = &story["action"]["to"]["weighted"][1]["filters"][0];
        assert_eq!(of_member["verdict"]["kind"], "answers", "{story:#}");
    }
    let story = explained(json!({"clusters": clusters}), "w: 1");
    assert_eq!(
        (&story["drawn"]["index"], &story["drawn"]["at_random"]),
        (&json!(0), &json!(true)),
        "{story:#}"
    );
}

/// What the proxy answers with 503 was said to be a 404.
#[test]
fn routes_that_are_not_looked_through_are_told_as_what_is_answered() {
    let directory = Directory::new();
    let regex = |i: usize| {
        let path = json!({"safe_regex": {"regex": format!("/.*{i:04x}(?:y|z)*[0-9]")}});
        json!({"match": path, "direct_response": {"status": 200}})
    };
    let routes: Vec<Value> = (0..600).map(regex).collect();
    let file = directory.write("envoy.json", &bootstrap(&json!({"routes": routes})).to_string());
    let path: String = (0..600).map(|i| format!("{i:04x}")).collect();
    let story = explain(&["GET", &format!("http://a.test/{path}x"), "-c", &file, "--listener", "case"]);
    let (status, details) = (&story["action"]["status"], &story["action"]["details"]);
    assert_eq!((status, details), (&json!(503), &json!("route_search_cut_short")), "{story:#}");
}
