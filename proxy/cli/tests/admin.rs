//! The administration interface over a world that a control plane serves, as `istioctl proxy-config` and Istio's agent
//! ask for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use sixfold_xds_api::json::encode_node;
use std::time::Duration;
use support::{Directory, Process, Response, free_port, get, request};

const TYPES: &str = "type.googleapis.com/envoy";

/// A control plane with a world, and a proxy that follows it.
struct World {
    directory: Directory,
    _plane: Process,
    proxy: Process,
    admin: u16,
}

fn manager(routes: &str) -> String {
    format!(
        "{{name: hcm, typed_config: {{\"@type\": {TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: s, {routes}, http_filters: [{{name: router, typed_config: {{\"@type\": {TYPES}.extensions.filters.http.router.v3.Router}}}}]}}}}"
    )
}

fn listener(name: &str, filters: &str) -> String {
    format!(
        "- \"@type\": {TYPES}.config.listener.v3.Listener\n  name: {name}\n  address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}\n  \
         filter_chains: [{{filters: [{filters}]}}]\n",
        free_port()
    )
}

fn secret_listener(name: &str, secret: &str) -> String {
    let tls = format!(
        "transport_socket: {{name: tls, typed_config: {{\"@type\": {TYPES}.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: {secret}, sds_config: {{ads: {{}}, initial_fetch_timeout: 0s}}}}]}}}}}}"
    );
    listener(name, &manager("route_config: {name: of-tls}"))
        .replace("[{filters", &format!("[{{{tls}, filters"))
}

fn clusters() -> String {
    format!(
        "- \"@type\": {TYPES}.config.cluster.v3.Cluster\n  name: eds\n  type: EDS\n  connect_timeout: 1.5s\n  \
         eds_cluster_config: {{service_name: service, eds_config: {{ads: {{}}}}}}\n\
         - \"@type\": {TYPES}.config.endpoint.v3.ClusterLoadAssignment\n  cluster_name: service\n  endpoints: \
         [{{locality: {{region: r}}, lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 9}}}}}}}}]}}]\n\
         - \"@type\": {TYPES}.config.route.v3.RouteConfiguration\n  name: table\n  \
         virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: eds}}}}]}}]\n"
    )
}

fn waits() -> String {
    format!(
        "- \"@type\": {TYPES}.config.cluster.v3.Cluster\n  name: waits\n  type: EDS\n  \
         eds_cluster_config: {{eds_config: {{ads: {{}}, initial_fetch_timeout: 0s}}}}\n"
    )
}

fn secret() -> String {
    let certs = concat!(env!("CARGO_MANIFEST_DIR"), "/../conformance/certs");
    let read = |name: &str| std::fs::read_to_string(format!("{certs}/{name}")).unwrap();
    let secret = json!([{
        "@type": format!("{TYPES}.extensions.transport_sockets.tls.v3.Secret"),
        "name": "cert",
        "tls_certificate": {
            "certificate_chain": {"inline_string": read("server.crt")},
            "private_key": {"inline_string": read("server.key")},
        },
    }]);
    secret.to_string()
}

fn bootstrap(admin: u16, socket: &str) -> String {
    format!(
        r#"
node: {{id: sidecar~127.0.0.1~a.b~b.svc.cluster.local, cluster: a.b, metadata: {{ISTIO_VERSION: 1.31.0}}}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
layered_runtime: {{layers: [{{name: s, static_layer: {{a.b: true, c: 7}}}}, {{name: admin, admin_layer: {{}}}}]}}
dynamic_resources:
  lds_config: {{ads: {{}}, initial_fetch_timeout: 0s}}
  cds_config: {{ads: {{}}, initial_fetch_timeout: 0s}}
  ads_config: {{api_type: GRPC, grpc_services: [{{envoy_grpc: {{cluster_name: xds-grpc}}}}]}}
static_resources:
  secrets: [{{name: fixed, generic_secret: {{secret: {{inline_string: VERY-SECRET}}}}}}]
  clusters:
  - name: xds-grpc
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment: {{cluster_name: xds-grpc, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: {socket}}}}}}}}}]}}]}}
"#
    )
}

impl World {
    fn start() -> World {
        let directory = Directory::new();
        std::fs::create_dir(directory.0.join("world")).unwrap();
        let rds = "rds: {route_config_name: table, config_source: {ads: {}}}";
        let bad = "{name: tcp, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy}}";
        directory.write("world/clusters.yaml", &clusters());
        directory.write("world/secret.json", &secret());
        directory.write("world/l1.yaml", &listener("by-rds", &manager(rds)));
        directory.write("world/l2.yaml", &listener("inline", &manager("route_config: {name: of-listener}")));
        directory.write("world/l3.yaml", &listener("bad", bad));
        directory.write("world/l4.yaml", &secret_listener("tls", "cert"));
        let socket = directory.path("XDS");
        let plane = Process::start(&[
            "xds",
            "serve",
            &directory.path("world"),
            "--listen",
            &format!("unix:{socket}"),
        ]);
        let admin = free_port();
        let file = directory.write("envoy.yaml", &bootstrap(admin, &socket));
        let proxy = Process::start(&["envoy", "-c", &file, "--concurrency", "1"]);
        let mut world = World { directory, _plane: plane, proxy, admin };
        world.until("readiness", |world| (world.get("/ready").status == 200).then_some(()));
        // These wait for what never comes, and a start waits for all that it has.
        let rds =
            "rds: {route_config_name: nobody-has-it, config_source: {ads: {}, initial_fetch_timeout: 0s}}";
        world.directory.write("world/l5.yaml", &listener("rds-waits", &manager(rds)));
        world.directory.write("world/l6.yaml", &secret_listener("tls-waits", "nobody-has-it"));
        world.directory.write("world/waits.yaml", &waits());
        world.until("what waits", |world| {
            let targets = world.json("/init_dump").to_string();
            ["Cluster-init-target waits", "Listener-init-target rds-waits"]
                .iter()
                .all(|target| targets.contains(target))
                .then_some(())
        });
        world
    }

    fn until<T>(&mut self, what: &str, mut done: impl FnMut(&World) -> Option<T>) -> T {
        let start = std::time::Instant::now();
        loop {
            if let Some(found) = done(self) {
                return found;
            }
            if self.proxy.0.try_wait().unwrap().is_some() {
                panic!("the process ended before {what}: {}", self.proxy.errors());
            }
            assert!(start.elapsed() < support::LIMIT, "no {what}: {}", self.dump(""));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn get(&self, path: &str) -> Response {
        get(self.admin, path).unwrap_or(Response { status: 0, head: String::new(), body: String::new() })
    }

    fn post(&self, path: &str) -> Response {
        request(self.admin, "POST", path, &[]).unwrap()
    }

    fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        serde_json::from_str(&answer.body).unwrap_or(Value::String(answer.body))
    }

    fn dump(&self, query: &str) -> Value {
        self.json(&format!("/config_dump{query}"))
    }
}

/// The section of a type.
fn section<'a>(dump: &'a Value, kind: &str) -> &'a Value {
    let url = format!("{TYPES}.admin.v3.{kind}");
    let configs = dump["configs"].as_array().expect("configs");
    configs.iter().find(|config| config["@type"] == url.as_str()).expect(kind)
}

/// The entry of a list whose name is at that pointer.
fn named<'a>(list: &'a Value, pointer: &str, name: &str) -> &'a Value {
    let list = list.as_array().expect(name);
    list.iter()
        .find(|entry| entry.pointer(pointer) == Some(&name.into()))
        .unwrap_or_else(|| panic!("{name} of {list:?}"))
}

#[test]
fn a_served_world_is_dumped_as_tools_of_the_mesh_read_it() {
    let mut world = World::start();
    let dump = world.dump("?include_eds");
    // What istioctl does first: every message must be one of its type, by its definition.
    for config in dump["configs"].as_array().unwrap() {
        let kind = config["@type"].as_str().unwrap().rsplit('/').next().unwrap();
        let mut message = config.clone();
        message.as_object_mut().unwrap().remove("@type");
        let node = sixfold_core::document::Node::from_json(message);
        encode_node(kind, &node).unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
    assert!(!dump.to_string().contains("PRIVATE KEY") && !dump.to_string().contains("VERY-SECRET"));
    let bootstrap = section(&dump, "BootstrapConfigDump");
    assert_eq!(bootstrap["bootstrap"]["node"]["metadata"]["ISTIO_VERSION"], "1.31.0");
    assert!(bootstrap["last_updated"].is_string());

    let clusters = section(&dump, "ClustersConfigDump");
    assert_eq!(clusters["static_clusters"][0]["cluster"]["name"], "xds-grpc");
    let eds = named(&clusters["dynamic_active_clusters"], "/cluster/name", "eds");
    assert_eq!(
        (&eds["cluster"]["type"], &eds["cluster"]["connect_timeout"]),
        (&"EDS".into(), &"1.500s".into())
    );
    let version = eds["version_info"].as_str().unwrap().to_owned();
    assert!(!version.is_empty() && eds["last_updated"].is_string());
    named(&clusters["dynamic_warming_clusters"], "/cluster/name", "waits");
    let endpoints = section(&dump, "EndpointsConfigDump");
    let service = named(&endpoints["dynamic_endpoint_configs"], "/endpoint_config/cluster_name", "service");
    let locality = &service["endpoint_config"]["endpoints"][0];
    assert_eq!(
        (&locality["locality"], &locality["lb_endpoints"][0]["health_status"]),
        (&json!({"region": "r"}), &"HEALTHY".into())
    );

    let listeners = &section(&dump, "ListenersConfigDump")["dynamic_listeners"];
    for name in ["by-rds", "inline", "tls"] {
        assert_eq!(named(listeners, "/name", name)["active_state"]["listener"]["name"], name);
    }
    assert_eq!(named(listeners, "/name", "rds-waits")["warming_state"]["listener"]["name"], "rds-waits");
    let bad = &named(listeners, "/name", "bad")["error_state"];
    assert_eq!(bad["failed_configuration"]["name"], "bad");
    assert!(bad["details"].as_str().unwrap().contains("stat_prefix"), "{bad}");
    assert!(bad["last_update_attempt"].is_string() && !bad["version_info"].as_str().unwrap().is_empty());
    let routes = section(&dump, "RoutesConfigDump");
    named(&routes["static_route_configs"], "/route_config/name", "of-listener");
    let table = named(&routes["dynamic_route_configs"], "/route_config/name", "table");
    assert_eq!(table["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["cluster"], "eds");
    let secrets = section(&dump, "SecretsConfigDump");
    assert_eq!(
        secrets["static_secrets"][0]["secret"]["generic_secret"]["secret"]["inline_string"],
        "[redacted]"
    );
    let cert = named(&secrets["dynamic_active_secrets"], "/name", "cert");
    assert!(
        cert["secret"]["tls_certificate"]["certificate_chain"]["inline_string"]
            .as_str()
            .unwrap()
            .starts_with("-----BEGIN")
    );
    assert_eq!(cert["secret"]["tls_certificate"]["private_key"]["inline_string"], "[redacted]");
    let waits = named(&secrets["dynamic_warming_secrets"], "/name", "nobody-has-it");
    assert_eq!(waits["version_info"], "uninitialized");

    // A change is another version, what was removed drains; what was refused and is right now has no error.
    let changed = clusters_changed();
    world.directory.write("world/clusters.yaml", &changed);
    world.directory.write("world/l3.yaml", &listener("bad", &manager("route_config: {name: mended}")));
    std::fs::remove_file(world.directory.0.join("world/l2.yaml")).unwrap();
    world.until("the change", |world| {
        let dump = world.dump("");
        let clusters = &section(&dump, "ClustersConfigDump")["dynamic_active_clusters"];
        let eds = named(clusters, "/cluster/name", "eds");
        let listeners = section(&dump, "ListenersConfigDump")["dynamic_listeners"].as_array()?.clone();
        let mended = listeners.iter().any(|l| l["name"] == "bad" && l.get("error_state").is_none());
        let removed = listeners.iter().find(|l| l["name"] == "inline");
        let gone = removed.is_some_and(|l| {
            l.get("active_state").is_none() && l["draining_state"]["listener"]["name"] == "inline"
        });
        let is_new = eds["version_info"] != version.as_str() && eds["cluster"]["connect_timeout"] == "2s";
        (is_new && mended && gone).then_some(())
    });
}

fn clusters_changed() -> String {
    clusters().replace("connect_timeout: 1.5s", "connect_timeout: 2s")
}

#[test]
fn lists_masks_and_names_choose_from_a_dump() {
    let world = World::start();
    let shown = world.dump("?resource=dynamic_active_clusters&mask=cluster.name&name_regex=e.*");
    let item = json!({
        "@type": format!("{TYPES}.admin.v3.ClustersConfigDump.DynamicCluster"),
        "cluster": {"@type": format!("{TYPES}.config.cluster.v3.Cluster"), "name": "eds"},
    });
    assert_eq!(shown, json!({ "configs": [item] }));
    for (query, status, body) in [
        ("resource=nope", 404, "nope not found in config dump"),
        (
            "resource=bootstrap",
            400,
            "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field",
        ),
        ("mask=nope", 400, "FieldMask nope could not be successfully applied to any configs."),
        ("resource=dynamic_endpoint_configs", 404, "dynamic_endpoint_configs not found in config dump"),
    ] {
        let answer = world.get(&format!("/config_dump?{query}"));
        assert_eq!((answer.status, answer.body.as_str()), (status, body), "{query}");
    }
}

/// They were 0: what waits for a control plane to send more waits before it is known to who puts it in force.
#[test]
fn what_waits_for_more_to_come_is_warming() {
    let mut world = World::start();
    let warming = |world: &World| world.get("/stats?filter=warming").body;
    let expected = "cluster.eds.warming_state: 0\ncluster.waits.warming_state: 1\ncluster.xds-grpc.warming_state: 0\n\
                    cluster_manager.warming_clusters: 1\nlistener_manager.total_listeners_warming: 2\n";
    assert_eq!(warming(&world), expected);
    let endpoints =
        format!("- \"@type\": {TYPES}.config.endpoint.v3.ClusterLoadAssignment\n  cluster_name: waits\n");
    world.directory.write("world/waits-endpoints.yaml", &endpoints);
    let routes = format!("- \"@type\": {TYPES}.config.route.v3.RouteConfiguration\n  name: nobody-has-it\n");
    world.directory.write("world/waits-routes.yaml", &routes);
    world.until("the cluster and a listener", |world| {
        let now = warming(world);
        let lines =
            ["cluster.waits.warming_state: 0", "cluster_manager.warming_clusters: 0", "listeners_warming: 1"];
        lines.iter().all(|line| now.contains(line)).then_some(())
    });
}

#[test]
fn every_other_command_answers() {
    let mut world = World::start();
    let clusters = world.get("/clusters").body;
    for line in [
        "eds::added_via_api::true",
        "eds::eds_service_name::service",
        "eds::127.0.0.1:9::region::r",
        "xds-grpc::added_via_api::false",
    ] {
        assert!(clusters.lines().any(|l| l == line), "{line} of {clusters}");
    }
    let all = world.json("/clusters?format=json");
    let eds = named(&all["cluster_statuses"], "/name", "eds");
    assert_eq!((&eds["added_via_api"], &eds["eds_service_name"]), (&true.into(), &"service".into()));
    assert!(world.get("/listeners").body.contains("by-rds::127.0.0.1:"));
    let listeners = world.json("/listeners?format=json");
    assert_eq!(
        named(&listeners["listener_statuses"], "/name", "by-rds")["local_address"]["socket_address"]["address"],
        "127.0.0.1"
    );
    let manager = &world.json("/init_dump?mask=listener")["unready_targets_dumps"][0];
    assert_eq!(manager["name"], "init manager Listener");
    let runtime = world.json("/runtime");
    assert_eq!(runtime["layers"], json!(["s", "admin"]));
    assert_eq!(runtime["entries"]["c"], json!({"layer_values": ["7", ""], "final_value": "7"}));
    let info = world.json("/server_info");
    assert_eq!((&info["node"]["cluster"], &info["hot_restart_version"]), (&"a.b".into(), &"disabled".into()));
    assert_eq!(info["command_line_options"]["concurrency"], 1);
    assert!(world.json("/memory")["allocated"].is_string());
    assert_eq!(
        world.json("/certs")["certificates"][0]["cert_chain"][0]["subject_alt_names"][0]["dns"],
        "server.test"
    );
    for path in
        ["/", "/help", "/contention", "/hot_restart_version", "/stats/prometheus", "/stats/recentlookups"]
    {
        assert_eq!(world.get(path).status, 200, "{path}");
    }
    let used = world.get("/stats?usedonly&filter=^(cluster_manager%5C.cds|listener_manager%5C.lds)%5C.(update_success|update_rejected)$").body;
    assert!(used.contains("listener_manager.lds.update_rejected: "), "{used}");

    // What changes something is asked for by POST alone.
    for path in [
        "drain_listeners",
        "logging",
        "quitquitquit",
        "reset_counters",
        "healthcheck/fail",
        "reopen_logs",
        "runtime_modify",
    ] {
        let answer = world.get(&format!("/{path}"));
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (405, "Method GET not allowed, POST required."),
            "{path}"
        );
    }
    let levels = world.post("/logging?paths=admin:debug,http2:info").body;
    for line in ["  admin: debug", "  http2: info", "  wasm: "] {
        assert!(levels.lines().any(|l| l.starts_with(line)), "{line} of {levels}");
    }
    let answer = world.post("/logging?nobody=debug");
    assert!(
        answer.status == 400 && answer.body.starts_with("error: unknown logger name\n\nusage: "),
        "{answer:?}"
    );
    assert_eq!(world.post("/reset_counters").body, "OK\n");
    assert_eq!(world.post("/drain_listeners?graceful&skip_exit&inboundonly").body, "OK\n");
    assert!(world.get("/listeners").body.contains("by-rds::"), "sockets stay open");
    assert_eq!(world.post("/quitquitquit").body, "OK\n");
    assert_eq!(world.proxy.wait(), 0);
}
