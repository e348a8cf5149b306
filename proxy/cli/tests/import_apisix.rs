//! APISIX's own files and exports, imported: what is taken serves, what is not is named.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::echo::{echo, gateway, gateway_beside, started};
use support::{Directory, Response, free_port, output, request};

const RESOURCES: &str = include_str!("examples/import/apisix.yaml");
const CONFIG: &str = include_str!("examples/import/apisix-config.yaml");
const RESOURCES_JSON: &str = include_str!("examples/import/apisix.json");
const ADMIN: &str = include_str!("examples/import/apisix-admin.json");
const ADC: &str = include_str!("examples/import/adc.yaml");

fn import(directory: &Directory, name: &str, text: &str) -> (i32, Value, String) {
    let file = directory.write(name, text);
    let into = directory.path("gateway");
    let done = output(&["import", "--from", "apisix", &file, "--directory", &into, "--output", "json"]);
    let report = serde_json::from_slice(&done.stdout).unwrap_or(Value::Null);
    let code = done.status.code().unwrap();
    assert!(code < 2, "{report:#}{}", String::from_utf8_lossy(&done.stderr));
    let checked = output(&["validate", "-c", &format!("{into}/config.yaml")]);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stderr));
    (code, report, into)
}

fn found<'r>(report: &'r Value, what: &str) -> (&'r str, u64, &'r str) {
    let findings = report["findings"].as_array().unwrap();
    let is = |finding: &&Value| finding["what"].as_str().unwrap().starts_with(what);
    let finding = findings.iter().find(is).unwrap_or_else(|| panic!("no {what} in {report:#}"));
    (finding["kind"].as_str().unwrap(), finding["line"].as_u64().unwrap(), finding["note"].as_str().unwrap())
}

/// Status and body of a request to a gateway on a port of its own.
fn serve(into: &str, theirs: u16, asked: &[(&str, &[&str], u16)]) {
    let port = free_port();
    let config = std::fs::read_to_string(format!("{into}/config.yaml")).unwrap();
    let config = match config.contains("apisix:\n") {
        true => config.replace(&format!("node_listen: {theirs}\n"), &format!("node_listen: {port}\n")),
        false => format!("apisix:\n  node_listen: {port}\n{config}"),
    };
    std::fs::write(format!("{into}/config.yaml"), config).unwrap();
    gateway_beside(into, &[]);
    let _gateway = started(gateway(into), port);
    for (path, headers, status) in asked {
        let mut all = vec!["Connection: close"];
        all.extend_from_slice(headers);
        let Response { status: got, head, body } = request(port, "GET", path, &all).unwrap();
        assert_eq!(got, *status, "{path} {headers:?}: {head}{body}");
    }
}

#[test]
fn resources_are_taken_but_for_what_needs_lua() {
    let directory = Directory::new();
    let text = RESOURCES.replace("8081", &echo().to_string());
    let (code, report, into) = import(&directory, "apisix.yaml", &text);
    assert_eq!(code, 1, "{report:#}");
    let line = |part: &str| RESOURCES.lines().position(|line| line.contains(part)).unwrap() as u64 + 1;
    let (kind, at, note) = found(&report, "route \"scripted\": plugins.serverless-pre-function");
    assert_eq!((kind, at), ("manual", line("serverless-pre-function:")));
    assert!(note.contains("lets in nobody") && note.contains("docs/plugins/without-lua.md"), "{note}");
    assert_eq!(found(&report, "route \"filtered\": filter_func").0, "manual");
    assert_eq!(found(&report, "route \"filtered\": filter_func").1, line("filter_func:"));
    assert_eq!(found(&report, "route \"wrong\": upstream").0, "manual");
    assert_eq!(found(&report, "route \"house\": plugins.our-own-plugin").0, "manual");
    assert_eq!(found(&report, "file: house").0, "approximate");
    assert_eq!(found(&report, "consumer \"jack\"").0, "exact");
    // A stream without its guard would let everybody in.
    assert_eq!(found(&report, "stream route \"guarded\": plugins.our-own-guard").0, "manual");
    assert!(!std::fs::read_to_string(format!("{into}/apisix.yaml")).unwrap().contains("stream_routes"));
    let host: &[&str] = &["Host: any"];
    serve(
        &into,
        9080,
        &[
            ("/orders/1", host, 200),
            ("/orders/1", host, 200),
            ("/orders/1", host, 503),
            ("/scripted", host, 403),
            ("/filtered", host, 403),
            ("/house", host, 403),
            ("/wrong", host, 404),
        ],
    );
}

#[test]
fn a_config_yaml_brings_the_resources_beside_it() {
    let directory = Directory::new();
    directory.write("apisix.json", RESOURCES_JSON);
    let (code, report, into) = import(&directory, "config.yaml", CONFIG);
    assert_eq!(code, 1, "{report:#}");
    let (kind, line, _) = found(&report, "config.yaml: nginx_config.http_server_configuration_snippet");
    assert_eq!((kind, line), ("manual", 6));
    assert_eq!(found(&report, "config.yaml: apisix.extra_lua_path").1, 3);
    assert_eq!(found(&report, "route \"1\"").0, "exact");
    let config = std::fs::read_to_string(format!("{into}/config.yaml")).unwrap();
    assert!(config.contains("config_provider: \"yaml\"") && !config.contains("snippet"), "{config}");
    // Resources of a store or an etcd stay there.
    let other = Directory::new();
    let (code, _, into) = import(&other, "config.yaml", "deployment: {role: traditional}\n");
    assert_eq!(code, 0);
    assert!(!std::path::Path::new(&into).join("apisix.yaml").exists());
}

#[test]
fn what_the_admin_api_lists_and_what_an_etcd_holds_is_one() {
    let jack: &[&str] = &["Host: any", "apikey: jacks-key"];
    let asked: &[(&str, &[&str], u16)] = &[("/hello", jack, 200), ("/hello", &["Host: any"], 401)];
    let text = ADMIN.replace("8081", &echo().to_string());
    let listed = Directory::new();
    let (code, report, into) = import(&listed, "export.json", &text);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(found(&report, "credential \"jack/credentials/one\"").1, 9);
    serve(&into, 9080, asked);
    // The same keys and values as `etcdctl get --prefix -w json` has them, and each kind by itself.
    let list: Value = serde_json::from_str(&text).unwrap();
    let list = list["list"].as_array().unwrap();
    let coded = |text: &str| STANDARD.encode(text);
    let pairs: Vec<Value> = list
        .iter()
        .map(|item| json!({"key": coded(item["key"].as_str().unwrap()), "value": coded(&item["value"].to_string())}))
        .chain([json!({"key": coded("/apisix/routes/"), "value": coded("init_dir")})])
        .collect();
    let dump = json!({"header": {"revision": 9}, "kvs": pairs, "count": 5}).to_string();
    let by_kind = json!({"routes": {"list": [list[0]]}, "services": {"list": [list[1]]}, "consumers": {"list": [list[2], list[3]]}});
    let of_old = json!({"node": {"key": "/apisix", "nodes": list}, "action": "get"});
    for other in [dump, by_kind.to_string(), of_old.to_string()] {
        let directory = Directory::new();
        let (code, report, other) = import(&directory, "dump.json", &other);
        assert_eq!(code, 0, "{report:#}");
        let resources = |folder: &str| std::fs::read_to_string(format!("{folder}/apisix.yaml")).unwrap();
        assert_eq!(resources(&other), resources(&into));
    }
}

#[test]
fn files_of_adc_serve() {
    let directory = Directory::new();
    let (code, report, into) = import(&directory, "adc.yaml", &ADC.replace("8081", &echo().to_string()));
    assert_eq!(code, 0, "{report:#}");
    let shop = "Host: shop.test";
    serve(
        &into,
        9080,
        &[
            ("/books/1", &[shop], 401),
            ("/books/1", &[shop, "apikey: jacks-key"], 200),
            ("/open", &[shop], 200),
            ("/open", &["Host: other.test"], 404),
        ],
    );
}

#[test]
fn a_variable_that_is_not_set_is_left_to_be_set() {
    let directory = Directory::new();
    let text = "routes:\n  - id: 1\n    uri: /a\n    upstream: {nodes: {\"${{SIXFOLD_NO_SUCH_HOST}}:80\": 1}}\n#END\n";
    let file = directory.write("apisix.yaml", text);
    let done = output(&["import", "--from", "apisix", &file, "--directory", &directory.path("out")]);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(done.status.code(), Some(1), "{said}{done:?}");
    assert!(said.contains("SIXFOLD_NO_SUCH_HOST"), "{said}");
    let written = std::fs::read_to_string(directory.path("out/apisix.yaml")).unwrap();
    assert!(written.contains("${{SIXFOLD_NO_SUCH_HOST}}"), "{written}");
}

/// It was said to be done by other programs alone.
#[test]
fn what_config_yaml_has_by_now_is_said_to_go_there() {
    let directory = Directory::new();
    let text = "routes:\n  - id: 1\n    uri: /a\n    plugins: {log-rotate: {}}\n    upstream: {nodes: {\"127.0.0.1:1\": 1}}\n#END\n";
    let (code, report, _) = import(&directory, "apisix.yaml", text);
    assert_eq!(code, 1, "{report:#}");
    let (kind, _, note) = found(&report, "route \"1\": plugins.log-rotate");
    assert!(kind == "manual" && note.contains("`plugins` of config.yaml"), "{note}");
}
