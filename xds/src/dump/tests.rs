#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::ads::{Key, Kind};
use crate::bootstrap;
use crate::rds::Source;
use crate::testing;
use crate::tracker::Event;
use serde_json::{Value, json};
use sixfold_core::document::Node;
use sixfold_xds_api::json::encode_node;

const MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

fn listener(name: &str, routes: &str) -> String {
    format!(
        "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{{name: f, \
         typed_config: {{\"@type\": type.googleapis.com/{MANAGER}, stat_prefix: s, {routes}, http_filters: [{{name: r, typed_config: \
         {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"
    )
}

fn inline(name: &str) -> String {
    format!("route_config: {{name: {name}, virtual_hosts: [{{name: v, domains: ['*']}}]}}")
}

fn world() -> Dump {
    let process = testing::process();
    let text = format!(
        "node: {{id: node}}\nstatic_resources:\n  secrets: [{{name: s, generic_secret: {{secret: {{inline_string: KEY}}}}}}]\n  \
         clusters: [{{name: fixed, load_assignment: {{cluster_name: fixed, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: 127.0.0.1, port_value: 9}}}}}}}}]}}]}}}}]\n  listeners: [{}]\n",
        listener("here", &inline("of-here"))
    );
    let compiled = bootstrap::load(&text, "e.yaml", &process).unwrap();
    for (name, cluster) in &compiled.diff.clusters {
        process.compile.clusters.cell(name).swap(cluster.clone());
    }
    // Somebody must hold them.
    std::mem::forget(compiled.diff);
    let tracker = process.tracker.clone();
    let accept = |kind: Kind, name: &str, version: &str, yaml: &str| {
        let value = encoded(kind, yaml);
        tracker.note(&Key::of_name(kind, &name.into()), Event::Accepted { value: &value, version });
    };
    let live = |kind: Kind, name: &str, version: &str, yaml: &str| {
        accept(kind, name, version, yaml);
        tracker.note(&Key::of_name(kind, &name.into()), Event::InForce);
    };
    live(Kind::Cluster, "c", "1", "{name: c, connect_timeout: 1s}");
    accept(Kind::Cluster, "c", "2", "{name: c, connect_timeout: 2s}");
    accept(Kind::Cluster, "warm", "3", "{name: warm}");
    live(Kind::Cluster, "cold", "4", "{name: cold}");
    live(Kind::Listener, "l", "5", &listener("l", &inline("of-l")));
    let bad = encoded(Kind::Listener, "{name: bad}");
    let refused = Event::Refused { value: &bad, version: "6", reason: "address: is missing" };
    tracker.note(&Key::of_name(Kind::Listener, &"bad".into()), refused);
    live(Kind::Routes, "table", "7", "{name: table}");
    live(Kind::Extension, "ext", "8", "{name: ext}");
    tracker.set_drain_time(std::time::Duration::from_secs(3600));
    live(Kind::Listener, "drains", "4", &listener("drains", &inline("of-drains")));
    tracker.note(&Key::of_name(Kind::Listener, &"drains".into()), Event::Gone);
    tracker.note_version(Kind::Cluster, "9");
    let of_file = Key::new(Kind::Routes, &Source::Path("/routes.yaml".into()), &"of-file".into());
    let value = encoded(Kind::Routes, "{name: of-file}");
    tracker.note(&of_file, Event::Accepted { value: &value, version: "3" });
    tracker.note(&of_file, Event::InForce);
    let transient = Transient { warming_clusters: ["cold".into()].into(), ..Transient::default() };
    Dump {
        bootstrap: compiled.shown,
        tracker,
        secrets: process.secrets,
        clusters: process.compile.clusters,
        transient,
    }
}

fn encoded(kind: Kind, yaml: &str) -> Arc<[u8]> {
    let node = Node::parse(yaml, &Default::default()).unwrap();
    encode_node(name_of_url(kind.type_url()), &node).unwrap().into()
}

fn ask(
    dump: &Dump,
    resource: &str,
    mask: &str,
    names: Option<&dyn Fn(&str) -> bool>,
) -> Result<Value, Refused> {
    let (resource, mask) = (Some(resource.to_owned()), Some(mask.to_owned()));
    let write = dump.find(Request { resource, mask, names, include_eds: true })?;
    let mut out = Vec::new();
    write(&mut out).unwrap();
    Ok(serde_json::from_slice(&out).unwrap())
}

/// The list of a section by a path, with its times left out.
fn list(dump: &Value, section: &str, field: &str) -> Vec<Value> {
    let configs = dump["configs"].as_array().unwrap();
    let kind = format!("type.googleapis.com/envoy.admin.v3.{section}");
    let section = configs.iter().find(|config| config["@type"] == kind.as_str()).expect(section);
    section[field].as_array().cloned().unwrap_or_default()
}

#[test]
fn everything_is_shown_where_envoy_shows_it() {
    let all = ask(&world(), "", "", None).unwrap();
    let kinds: Vec<&str> = all["configs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|config| config["@type"].as_str().unwrap().rsplit('.').next().unwrap())
        .collect();
    let wanted =
        ["Bootstrap", "Clusters", "Ecds", "Endpoints", "Listeners", "ScopedRoutes", "Routes", "Secrets"];
    assert_eq!(kinds, wanted.map(|name| format!("{name}ConfigDump")));
    assert_eq!(all["configs"][0]["bootstrap"]["node"], json!({"id": "node", "user_agent_name": "sixfold"}));
    assert!(all["configs"][0]["last_updated"].is_string());
    assert_eq!(all["configs"][1]["version_info"], "9");
    assert!(!all.to_string().contains("KEY"), "secrets are hidden");

    let names = |section, field, at: &str| -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let item = |item: &Value| (text(item.pointer(at).unwrap()), text(&item["version_info"]));
        list(&all, section, field).iter().map(item).collect()
    };
    let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    let clusters = |field| names("ClustersConfigDump", field, "/cluster/name");
    assert_eq!(clusters("static_clusters"), [pair("fixed", "")]);
    assert_eq!(clusters("dynamic_active_clusters"), [pair("c", "1")]);
    assert_eq!(clusters("dynamic_warming_clusters"), [pair("c", "2"), pair("cold", "4"), pair("warm", "3")]);
    let active = &list(&all, "ClustersConfigDump", "dynamic_active_clusters")[0];
    assert_eq!(active["cluster"]["connect_timeout"], "1s");
    assert_eq!(active["cluster"]["@type"], "type.googleapis.com/envoy.config.cluster.v3.Cluster");
    assert!(active["last_updated"].as_str().unwrap().ends_with('Z'));
    let routes = |field| names("RoutesConfigDump", field, "/route_config/name");
    assert_eq!(routes("static_route_configs"), [pair("of-here", ""), pair("of-l", "")]);
    assert_eq!(routes("dynamic_route_configs"), [pair("table", "7"), pair("of-file", "3")]);
    assert_eq!(names("EcdsConfigDump", "ecds_filters", "/ecds_filter/name"), [pair("ext", "8")]);
    assert_eq!(names("SecretsConfigDump", "static_secrets", "/name"), [pair("s", "")]);

    let listeners = list(&all, "ListenersConfigDump", "dynamic_listeners");
    let [bad, good, drains] = &listeners[..] else { panic!("{listeners:?}") };
    assert_eq!((&drains["name"], &drains["draining_state"]["version_info"]), (&"drains".into(), &"4".into()));
    assert_eq!((&good["name"], &good["active_state"]["version_info"]), (&"l".into(), &"5".into()));
    assert_eq!(bad["error_state"]["details"], "address: is missing");
    assert_eq!(bad["error_state"]["failed_configuration"]["name"], "bad");
    assert!(bad["error_state"]["last_update_attempt"].is_string() && bad.get("active_state").is_none());

    let endpoints = &list(&all, "EndpointsConfigDump", "static_endpoint_configs")[0]["endpoint_config"];
    let of_fixed = json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": "fixed",
        "endpoints": [{
            "locality": {},
            "lb_endpoints": [{
                "endpoint": {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 9}},
                    "health_check_config": {},
                },
                "health_status": "HEALTHY",
                "load_balancing_weight": 1,
            }],
            "load_balancing_weight": 0,
        }],
        "policy": {"overprovisioning_factor": 140},
    });
    assert_eq!(*endpoints, of_fixed, "as Envoy 1.40 has it");
}

/// The answers are those of Envoy 1.40.
#[test]
fn lists_masks_and_names_choose() {
    let dump = world();
    let wrong = |reason: &str| Err(Refused::Wrong(reason.to_owned()));
    let missing = Err(Refused::NotFound("nope not found in config dump".to_owned()));
    assert_eq!(ask(&dump, "nope", "", None), missing);
    let reason = "version_info is not a repeated field. Use ?mask=version_info to get only this field";
    assert_eq!(ask(&dump, "version_info", "", None), wrong(reason));
    let reason = "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field";
    assert_eq!(ask(&dump, "bootstrap", "", None), wrong(reason));
    let reason = "FieldMask nope could not be successfully applied to any configs.";
    assert_eq!(ask(&dump, "", "nope", None), wrong(reason));
    for mask in ["nope", "cluster.nope", "cluster.name.x"] {
        let reason = format!("FieldMask paths: \"{mask}\"\n could not be successfully used.");
        assert_eq!(ask(&dump, "dynamic_active_clusters", mask, None), wrong(&reason));
    }
    let reason = "FieldMask paths: \"active_state.listener.name\"\n could not be successfully used.";
    assert_eq!(ask(&dump, "dynamic_listeners", "active_state.listener.name", None), wrong(reason));

    let shown = ask(&dump, "dynamic_active_clusters", "cluster.name,version_info", None).unwrap();
    let cluster = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    let item = "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster";
    let wanted = json!({"@type": item, "version_info": "1", "cluster": {"@type": cluster, "name": "c"}});
    assert_eq!(shown, json!({ "configs": [wanted] }));
    let bad = |name: &str| name == "bad";
    let shown = ask(&dump, "dynamic_listeners", "name,active_state.version_info", Some(&bad)).unwrap();
    let item = "type.googleapis.com/envoy.admin.v3.ListenersConfigDump.DynamicListener";
    assert_eq!(shown, json!({ "configs": [{"@type": item, "name": "bad"}] }));
    assert_eq!(ask(&dump, "static_listeners", "", Some(&bad)), Ok(json!({})));
    let shown = ask(&dump, "", "bootstrap.node.id", None).unwrap();
    let item = "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump";
    assert_eq!(shown, json!({ "configs": [{"@type": item, "bootstrap": {"node": {"id": "node"}}}] }));
    let nobody = |_: &str| false;
    let all = ask(&dump, "", "", Some(&nobody)).unwrap();
    assert_eq!(all["configs"].as_array().unwrap().len(), 8);
    assert_eq!(all["configs"][6], json!({"@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump"}));
    let write =
        dump.find(Request { resource: Some("static_endpoint_configs".to_owned()), ..Request::default() });
    assert!(matches!(write, Err(Refused::NotFound(_))), "only when it is asked for");
}

/// Thousands of routes were decoded at once to be shown.
#[test]
fn resources_are_encoded_one_at_a_time() {
    let dump = world();
    for index in 0..2000 {
        let value = encoded(Kind::Cluster, &format!("{{name: {}-{index}}}", "x".repeat(1000)));
        let name = format!("{index}").into();
        let accepted = Event::Accepted { value: &value, version: "1" };
        dump.tracker.note(&Key::of_name(Kind::Cluster, &name), accepted);
    }
    struct Stops(usize);
    impl Write for Stops {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            if self.0 > 10_000 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut out = Stops(0);
    let write = dump.find(Request::default()).ok().unwrap();
    assert!(write(&mut out).is_err(), "a client that has left ends it");
    assert!(out.0 < 20_000, "{}", out.0);
}
