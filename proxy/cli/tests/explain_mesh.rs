//! `sixfold explain` of what running proxies of meshes have, and of what listeners find out of connections.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde_json::{Value, json};
use sixfold_core::compile::CompileContext;
use sixfold_xds::ads::{Key, Kind};
use sixfold_xds::bootstrap::{self, ProcessContext};
use sixfold_xds::dump::{self, Dump, Transient};
use sixfold_xds::tracker::Event;
use sixfold_xds_api::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::{Directory, output};

const SCENARIOS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../xds/conformance/scenarios");
const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions.filters";

/// What a recorded stream leaves behind, encoded.
fn recorded(file: &Path) -> BTreeMap<Key, Arc<[u8]>> {
    let unpacked = std::process::Command::new("gzip").arg("-dc").arg(file).output().unwrap();
    let mut known = BTreeMap::new();
    for line in String::from_utf8(unpacked.stdout).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let kind = Kind::of_type_url(line["type_url"].as_str().unwrap_or_default());
        let Some(kind) = kind.filter(|_| line["direction"] == "response") else { continue };
        let response = STANDARD.decode(line["b64"].as_str().unwrap()).unwrap();
        let response = DeltaDiscoveryResponse::decode(response.as_slice()).unwrap();
        let key = |name: &str| Key::of_name(kind, &name.into());
        for resource in response.resources {
            known.insert(key(&resource.name), resource.resource.unwrap().value.into());
        }
        for name in response.removed_resources {
            known.remove(&key(&name));
        }
    }
    known
}

/// The dump of a proxy that has these.
fn dump_of(resources: &BTreeMap<Key, Arc<[u8]>>) -> String {
    let process = ProcessContext::new(CompileContext::detached(sixfold_plugins::registry()));
    let bootstrap = bootstrap::load("node: {id: node}\n", "envoy.yaml", &process).unwrap().shown;
    for (key, value) in resources {
        process.tracker.note(key, Event::Accepted { value, version: "1" });
        process.tracker.note(key, Event::InForce);
    }
    let dump = Dump {
        bootstrap,
        tracker: process.tracker,
        secrets: process.secrets,
        clusters: process.compile.clusters,
        transient: Transient::default(),
    };
    let all = dump::Request { resource: None, mask: None, names: None, include_eds: false };
    let mut out = Vec::new();
    dump.find(all).unwrap()(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn files(folder: impl AsRef<Path>) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path())
}

/// The answer, or what is said instead; and what is warned of.
fn explain(arguments: &[&str]) -> (Result<Value, String>, String) {
    let output = output(&[&["explain", "--output", "json"], arguments].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    if output.status.success() {
        (Ok(serde_json::from_slice(&output.stdout).unwrap()), said)
    } else {
        (Err(said), String::new())
    }
}

/// One with configurations of filters that come by themselves failed as a whole.
#[test]
fn every_recorded_proxy_is_explained_by_its_dump() {
    let (directory, mut asked) = (Directory::new(), 0);
    let recordings = files(SCENARIOS).flat_map(files);
    for file in recordings.filter(|file| file.to_string_lossy().ends_with(".delta.jsonl.gz")) {
        let known = recorded(&file);
        let listener = known.keys().find(|key| key.kind == Kind::Listener);
        let Some(listener) = listener.map(|key| key.name.to_string()) else { continue };
        let dump = directory.write("dump.json", &dump_of(&known));
        let (story, warned) = explain(&["GET", "http://a.test/", "--dump", &dump, "--listener", &listener]);
        // Scripts are a feature of the build.
        let is_script = |said: &str| said.lines().all(|line| line.contains("--features lua"));
        let is_told = story.as_ref().map_or_else(|said| is_script(said), |_| is_script(&warned));
        assert!(is_told, "{}: {story:?} {warned}", file.display());
        asked += 1;
    }
    assert!(asked > 30, "{asked}");
}

/// The command that the page gives for a sidecar said that no HTTP is looked at: HTTP is what an inspector finds.
#[test]
fn a_request_of_a_sidecar_meets_the_chain_of_http() {
    let directory = Directory::new();
    let known = recorded(&Path::new(SCENARIOS).join("bookinfo/productpage.delta.jsonl.gz"));
    let dump = directory.write("dump.json", &dump_of(&known));
    let request = ["GET", "http://reviews:9080/", "--dump", &dump, "--destination", "127.240.1.7:9080"];
    let story = explain(&request).0.unwrap();
    assert_eq!(story["detected"], json!({"by": "http_inspector", "found": "http/1.1"}));
    let cluster = story["clusters"][0]["name"].as_str().unwrap_or_default();
    assert!(cluster.contains("reviews"), "{story:#}");
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

/// A chain with a connection manager that has these filters before the router.
fn chain(routes: (&str, Value), filters: &[Value]) -> Value {
    let router =
        json!({"name": "router", "typed_config": {"@type": format!("{EXTENSIONS}.http.router.v3.Router")}});
    let filters: Vec<&Value> = filters.iter().chain([&router]).collect();
    let mut manager = json!({
        "@type": format!("{EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "s",
        "http_filters": filters,
    });
    manager[routes.0] = routes.1;
    json!({"filters": [{"name": "hcm", "typed_config": manager}]})
}

fn inspector(kind: &str) -> Value {
    let name = if kind == "http_inspector" { "HttpInspector" } else { "TlsInspector" };
    json!({"name": kind, "typed_config": {"@type": format!("{EXTENSIONS}.listener.{kind}.v3.{name}")}})
}

#[test]
fn a_chain_is_chosen_by_what_the_inspectors_find() {
    let directory = Directory::new();
    let answers = json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
        {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    ]}]});
    let told = |inspectors: &[Value], condition: Value, request: &[&str]| {
        let mut http = chain(("route_config", answers.clone()), &[]);
        http["name"] = "http".into();
        http["filter_chain_match"] = condition;
        let tcp = json!({"@type": format!("{EXTENSIONS}.network.tcp_proxy.v3.TcpProxy"), "stat_prefix": "t", "cluster": "c"});
        let other = json!({"name": "bytes", "filters": [{"name": "t", "typed_config": tcp}]});
        let listener = json!({
            "name": "l", "address": address(21000), "filter_chains": [http],
            "listener_filters": inspectors, "default_filter_chain": other,
        });
        let clusters = json!([{"name": "c", "load_assignment": {"cluster_name": "c"}}]);
        let bootstrap = json!({"static_resources": {"listeners": [listener], "clusters": clusters}});
        let file = directory.write("envoy.json", &bootstrap.to_string());
        let story = explain(&[&["GET"], request, &["-c", &file]].concat()).0.unwrap();
        let found = story["detected"]["found"].as_str().unwrap_or("-").to_owned();
        (story["filter_chain"]["name"].as_str().unwrap().to_owned(), found)
    };
    let pair = |chain: &str, found: &str| (chain.to_owned(), found.to_owned());
    let (http, plain) = (json!({"application_protocols": ["http/1.1", "h2c"]}), "http://127.0.0.1:21000/");
    assert_eq!(told(&[inspector("http_inspector")], http.clone(), &[plain]), pair("http", "http/1.1"));
    assert_eq!(
        told(&[inspector("http_inspector")], http.clone(), &[plain, "--alpn", "h2c"]),
        pair("http", "h2c")
    );
    assert_eq!(told(&[], http, &[plain]), pair("bytes", "-"));
    let (tls, secure) = (json!({"transport_protocol": "tls"}), "https://127.0.0.1:21000/");
    assert_eq!(told(&[inspector("tls_inspector")], tls.clone(), &[secure]), pair("http", "TLS"));
    let mut off = inspector("tls_inspector");
    off["filter_disabled"] = json!({"any_match": true});
    assert_eq!(told(&[off], tls, &[secure]), pair("bytes", "nothing, it is off here"));
}

/// One filter of another listener that this binary has not, or one route to a cluster that had not come, was the end of it.
#[test]
fn what_a_dump_has_that_is_not_known_here_matters_to_requests_that_meet_it() {
    let directory = Directory::new();
    let unknown = json!({"name": "x", "typed_config": {"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": "a/b.C"}});
    let discovered = json!({"name": "e", "config_discovery": {
        "config_source": {"ads": {}}, "type_urls": [format!("{EXTENSIONS}.http.cors.v3.Cors")],
    }});
    let rds = |name: &str| ("rds", json!({"route_config_name": name, "config_source": {"ads": {}}}));
    let listener = |name: &str, port: u16, chain: Value| {
        let listener = json!({
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": name, "address": address(port), "filter_chains": [chain],
        });
        json!({"name": name, "active_state": {"listener": listener}})
    };
    let routes = |name: &str, routes: Value| {
        json!({"route_config": {
            "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            "name": name, "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}],
        }})
    };
    let leads_to = |path: &str, cluster: &str| json!({"name": cluster, "match": {"path": path}, "route": {"cluster": cluster}});
    let extension = json!({"ecds_filter": {
        "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        "name": "e", "typed_config": {"@type": format!("{EXTENSIONS}.http.cors.v3.Cors")},
    }});
    let admin = "type.googleapis.com/envoy.admin.v3";
    let dump = json!({"configs": [
        {"@type": format!("{admin}.ListenersConfigDump"), "dynamic_listeners": [
            listener("good", 21000, chain(rds("r"), &[discovered])),
            listener("bad", 21001, chain(rds("r"), &[unknown])),
            listener("wrong", 21002, chain(rds("w"), &[])),
            listener("waits", 21003, chain(rds("none"), &[])),
        ]},
        {"@type": format!("{admin}.EcdsConfigDump"), "ecds_filters": [extension]},
        {"@type": format!("{admin}.RoutesConfigDump"), "dynamic_route_configs": [
            routes("r", json!([leads_to("/a", "a"), leads_to("/b", "not-yet")])),
            routes("w", json!([{"match": {"prefix": "/"}, "route": {"cluster": "a", "timeout": "-1s"}}])),
        ]},
        {"@type": format!("{admin}.ClustersConfigDump"), "dynamic_warming_clusters": [{"cluster": {
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": "a", "load_assignment": {"cluster_name": "a"},
        }}]},
    ]});
    let file = directory.write("dump.json", &dump.to_string());
    let told = |url: &str| explain(&["GET", url, "--dump", &file]);
    for (path, cluster) in [("/a", "a"), ("/b", "not-yet")] {
        let (story, warned) = told(&format!("http://127.0.0.1:21000{path}"));
        let story = story.unwrap();
        assert_eq!((&story["route"]["name"], &story["filters"][0]["name"]), (&cluster.into(), &"e".into()));
        assert!(warned.contains("warning: listener \"bad\": ") && warned.contains("timeout"), "{warned}");
    }
    let said = |url: &str| told(url).0.unwrap_err();
    assert!(
        said("http://127.0.0.1:21001/").contains("listener \"bad\": "),
        "{}",
        said("http://127.0.0.1:21001/")
    );
    assert!(said("http://127.0.0.1:21002/").contains("timeout"));
    let waits = told("http://127.0.0.1:21003/").0.unwrap();
    assert_eq!(waits["outcome"], "the routes \"none\" come from a control plane and are not known here");
}
