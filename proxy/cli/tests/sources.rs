//! Resources from sources beside the stream of all types: files that are replaced as a ConfigMap is, and streams of one type.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use bytes::Bytes;
use http::Request;
use sixfold_xds_api::pb::envoy::service::discovery::v3::DiscoveryRequest;
use sixfold_xds_api::wire;
use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use support::traffic::{Traffic, upstream};
use support::xds::types::{CLUSTER, ENDPOINTS, EXTENSION, LISTENER, PREFIX, ROUTES};
use support::xds::{Messages, endpoints, listener, routes};
use support::{Directory, LIMIT, Process, free_port, get, xds};
use tokio::sync::watch;

/// Texts of resources by type and name.
type Known = BTreeMap<(&'static str, String), String>;

/// A control plane that answers each stream with what it knows of the type that is asked for there.
struct Plane {
    known: watch::Sender<Known>,
    /// Method and names of each first request of a stream, and what of a later one is refused.
    heard: Receiver<(String, String, String)>,
}

impl Plane {
    fn start(path: PathBuf) -> Plane {
        let (known, resources) = watch::channel(Known::new());
        let (tell, heard) = channel();
        xds::serve(path, move |request, respond| answer(request, respond, resources.clone(), tell.clone()));
        Plane { known, heard }
    }

    fn set(&self, kind: &'static str, name: &str, text: &str) {
        self.known.send_modify(|known| drop(known.insert((kind, name.to_owned()), text.to_owned())));
    }

    /// Waits until a stream is opened by this method; answers what is asked for.
    fn opened(&self, method: &str) -> String {
        loop {
            let (found, names, _) = self.heard.recv_timeout(LIMIT).expect(method);
            if found.ends_with(method) {
                return names;
            }
        }
    }

    /// Waits until something is refused on a stream of this method.
    fn refused(&self, method: &str) -> String {
        loop {
            let (found, _, error) = self.heard.recv_timeout(LIMIT).expect(method);
            if found.ends_with(method) && !error.is_empty() {
                return error;
            }
        }
    }
}

type Heard = Sender<(String, String, String)>;

async fn answer(
    request: Request<h2::RecvStream>,
    respond: h2::server::SendResponse<Bytes>,
    mut known: watch::Receiver<Known>,
    tell: Heard,
) {
    let method = request.uri().path().to_owned();
    let (mut out, mut messages) = (xds::begin(respond), Messages::of(request.into_body()));
    let (mut asked, mut sent, mut nonce) = (None::<DiscoveryRequest>, BTreeMap::new(), 0);
    loop {
        let now = known.borrow_and_update().clone();
        if let Some(asked) = &asked {
            let wanted = |(kind, name): &(&str, String)| {
                asked.type_url == format!("{PREFIX}.{kind}")
                    && (asked.resource_names.is_empty() || asked.resource_names.contains(name))
            };
            let now: Known = now.into_iter().filter(|(key, _)| wanted(key)).collect();
            if !now.is_empty() && now != sent {
                nonce += 1;
                out.send_data(response(&now, nonce), false).unwrap();
                sent = now;
            }
        }
        tokio::select! {
            came = messages.next() => {
                let Some(came) = came else { return };
                for message in came {
                    let request: DiscoveryRequest = wire::decode(&message).unwrap();
                    let error = request.error_detail.as_ref().map(|error| error.message.clone());
                    if asked.is_none() || error.is_some() {
                        let _ = tell.send((method.clone(), request.resource_names.join(" "), error.unwrap_or_default()));
                    }
                    asked = Some(request);
                }
            }
            changed = known.changed() => if changed.is_err() { return },
        }
    }
}

fn response(resources: &Known, nonce: usize) -> Bytes {
    let (kind, _) = resources.keys().next().unwrap();
    let resource =
        |((kind, _), text): (&(&str, String), &String)| format!("{{\"@type\": {PREFIX}.{kind}, {text}}}");
    let all: Vec<String> = resources.iter().map(resource).collect();
    let text = format!(
        "{{type_url: {PREFIX}.{kind}, nonce: '{nonce}', version_info: 'v{nonce}', resources: [{}]}}",
        all.join(", ")
    );
    xds::framed("DiscoveryResponse", &text)
}

/// Streams of their own to the control plane.
const API: &str = "initial_fetch_timeout: 0s, resource_api_version: V3, api_config_source: {api_type: GRPC, transport_api_version: V3, \
                   set_node_on_first_message_only: true, grpc_services: [{envoy_grpc: {cluster_name: xds-grpc}}]}";

fn bootstrap(admin: u16, dynamic: &str, clusters: &str) -> String {
    format!(
        "node: {{id: node, cluster: c}}\nadmin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}\n\
         dynamic_resources: {{{dynamic}}}\nstatic_resources: {{clusters: [{clusters}]}}\n"
    )
}

/// A file's text.
fn file(kind: &str, resources: &[&str]) -> String {
    let resource = |text: &&str| format!("- {{\"@type\": {PREFIX}.{kind}, {text}}}\n");
    format!("version_info: v\nresources:\n{}", resources.iter().map(resource).collect::<String>())
}

/// A folder as kubelet mounts a ConfigMap: names are links into a folder behind a link, which is replaced.
struct ConfigMap {
    directory: Directory,
    version: usize,
}

impl ConfigMap {
    fn new(files: &[(&str, &str)]) -> ConfigMap {
        let mut map = ConfigMap { directory: Directory::new(), version: 0 };
        map.put(files);
        for (name, _) in files {
            symlink(format!("..data/{name}"), map.directory.path(name)).unwrap();
        }
        map
    }

    fn put(&mut self, files: &[(&str, &str)]) {
        self.version += 1;
        let folder = format!("..{}", self.version);
        std::fs::create_dir(self.directory.path(&folder)).unwrap();
        for (name, text) in files {
            self.directory.write(&format!("{folder}/{name}"), text);
        }
        symlink(folder, self.directory.path("..new")).unwrap();
        std::fs::rename(self.directory.path("..new"), self.directory.path("..data")).unwrap();
    }
}

#[test]
fn a_proxy_is_made_of_files_that_are_replaced_as_a_config_map_is() {
    let (admin, port) = (free_port(), free_port());
    let names = ["cds.yaml", "lds.yaml", "eds.yaml", "rds.yaml"];
    // Texts are made when the folder is known.
    let mut map = ConfigMap::new(&names.map(|name| (name, "")));
    let path = |name: &str| map.directory.path(name);
    let config = format!("{{path_config_source: {{path: {}}}}}", path("eds.yaml"));
    let cluster =
        |name: &str| format!("name: {name}, type: EDS, eds_cluster_config: {{eds_config: {config}}}");
    let (a, b) = (cluster("a"), cluster("b"));
    let rds = format!("rds: {{route_config_name: r, config_source: {{path: {}}}}}", path("rds.yaml"));
    let lds = file(LISTENER, &[&listener(port, &rds)]);
    let eds =
        file(ENDPOINTS, &["a", "b"].map(|name| endpoints(name, upstream())).each_ref().map(String::as_str));
    let rds = |cluster: &str| file(ROUTES, &[&routes(&format!("route: {{cluster: {cluster}}}"))]);
    let dynamic = format!(
        "cds_config: {{path_config_source: {{path: {}, watched_directory: {{path: {}}}}}}}, lds_config: {{path: {}}}",
        path("cds.yaml"),
        path(""),
        path("lds.yaml")
    );
    let config = map.directory.write("envoy.yaml", &bootstrap(admin, &dynamic, ""));
    let put = |map: &mut ConfigMap, cds: &str, leads_to: &str| {
        map.put(&[("cds.yaml", cds), ("lds.yaml", &lds), ("eds.yaml", &eds), ("rds.yaml", &rds(leads_to))]);
    };
    put(&mut map, &file(CLUSTER, &[&a]), "a");
    let mut process = Process::start(&["-c", &config, "--concurrency", "2"]);
    process.until("readiness", || get(admin, "/ready").filter(|answer| answer.status == 200));
    assert_eq!(get(port, "/").unwrap().body, "ok");
    let dump = get(admin, "/config_dump").unwrap().body;
    assert!(dump.contains("\"dynamic_active_clusters\"") && dump.contains("\"dynamic_listeners\""), "{dump}");

    // Under load another cluster comes, then the routes lead there while the first one goes.
    let mut traffic = Traffic::new();
    traffic.http1(port, "/", std::time::Duration::from_millis(1));
    let there = |cluster: &str| {
        get(admin, "/clusters").unwrap().body.contains(&format!("{cluster}::default_priority"))
    };
    put(&mut map, &file(CLUSTER, &[&a, &b]), "a");
    process.until("the other cluster", || there("b").then_some(()));
    put(&mut map, &file(CLUSTER, &[&b]), "b");
    process.until("the other cluster alone", || (!there("a")).then_some(()));
    // What is wrong with one resource is told with its place, and the others count.
    let wrong = format!("- {{\"@type\": {PREFIX}.{CLUSTER}, name: c, connect_timeout: soon}}\n");
    put(&mut map, &(file(CLUSTER, &[&b]) + &wrong), "b");
    let dump = process.until("the fault in the dump", || {
        let dump = get(admin, "/config_dump?resource=dynamic_active_clusters").unwrap().body;
        dump.contains("error_state").then_some(dump)
    });
    assert!(dump.contains("cds.yaml:4:") && dump.contains("connect_timeout"), "{dump}");
    // All stays what it is when a file can't be used at all.
    put(&mut map, "resources: [", "b");
    let rejected = || get(admin, "/stats?filter=cds.update_rejected").unwrap().body;
    process.until("two refusals", || rejected().contains("update_rejected: 2").then_some(()));
    let tally = traffic.stop();
    assert_eq!(tally.failed, Vec::<String>::new(), "of {} requests", tally.done);
    assert!(tally.done > 100, "{}", tally.done);
    assert_eq!(get(port, "/").unwrap().body, "ok");
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
    let log = process.errors();
    assert!(log.contains("cluster \"c\": connect_timeout"), "{log}");
}

/// A bootstrap with a listener of its own whose routes, which must lead to clusters that are there, are in a file.
fn with_routes_in_a_file(
    directory: &Directory,
    (admin, port): (u16, u16),
    dynamic: &str,
    clusters: &str,
) -> String {
    let validated = format!("{}, validate_clusters: true", routes("route: {cluster: c}"));
    let path = directory.write("rds.yaml", &file(ROUTES, &[&validated]));
    let rds = format!("rds: {{route_config_name: r, config_source: {{path: {path}}}}}");
    let listeners = format!("static_resources: {{listeners: [{{{}}}], ", listener(port, &rds));
    bootstrap(admin, dynamic, clusters).replace("static_resources: {", &listeners)
}

/// The fields of a cluster named `c`.
fn leads_to(port: u16) -> String {
    format!("name: c, load_assignment: {{{}}}", endpoints("c", port))
}

/// They were read before the file of the clusters, refused, and never looked at again.
#[test]
fn routes_of_a_file_lead_to_clusters_of_another() {
    let (directory, admin, port) = (Directory::new(), free_port(), free_port());
    let cds = directory.write("cds.yaml", &file(CLUSTER, &[&leads_to(upstream())]));
    let text = with_routes_in_a_file(&directory, (admin, port), &format!("cds_config: {{path: {cds}}}"), "");
    let config = directory.write("envoy.yaml", &text);
    let mut process = Process::start(&["-c", &config, "--concurrency", "1"]);
    process.until("readiness", || get(admin, "/ready").filter(|answer| answer.status == 200));
    process.until("the routes", || get(port, "/").filter(|answer| answer.body == "ok"));
    let stats = get(admin, "/stats?filter=http.l.rds.r.update_").unwrap().body;
    assert!(stats.contains("update_success: 1") && stats.contains("update_rejected: 0"), "{stats}");
    let dump = get(admin, "/config_dump?resource=dynamic_route_configs").unwrap().body;
    assert!(dump.contains("\"version_info\": \"v\""), "{dump}");
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
    assert!(!process.errors().contains("refused"), "{}", process.errors());
}

/// The listener answered 404 for as long as the file was not another one.
#[test]
fn routes_of_a_file_that_were_refused_are_tried_again() {
    let (directory, admin, port) = (Directory::new(), free_port(), free_port());
    let text = with_routes_in_a_file(&directory, (admin, port), "", "");
    let config = directory.write("envoy.yaml", &text);
    let mut process = Process::start(&["-c", &config, "--concurrency", "1", "--log-level", "warning"]);
    process.until("readiness", || get(admin, "/ready").filter(|answer| answer.status == 200));
    assert_eq!(get(port, "/").unwrap().status, 404);
    let dump = get(admin, "/config_dump?resource=dynamic_route_configs").unwrap().body;
    assert!(dump.contains("unknown cluster"), "{dump}");
    let cluster = format!("clusters: [{{{}}}]", leads_to(upstream()));
    directory.write("envoy.yaml", &text.replace("clusters: []", &cluster));
    process.signal("HUP");
    process.until("the routes", || get(port, "/").filter(|answer| answer.body == "ok"));
    let stats = get(admin, "/stats?filter=http.l.rds.r.update_").unwrap().body;
    assert!(stats.contains("update_success: 1") && stats.contains("update_rejected: 1"), "{stats}");
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
    assert_eq!(process.errors().matches("unknown cluster").count(), 1, "{}", process.errors());
}

/// Clusters by a file, endpoints, listeners and routes by a stream each: nothing is in force before what it names.
#[test]
fn order_holds_over_sources_that_are_mixed() {
    let directory = Directory::new();
    let plane = Plane::start(directory.0.join("XDS"));
    let (admin, port) = (free_port(), free_port());
    let eds = format!("name: c, type: EDS, eds_cluster_config: {{eds_config: {{{API}}}}}");
    let cds = directory.write("cds.yaml", &file(CLUSTER, &[&eds]));
    let dynamic = format!("cds_config: {{path: {cds}}}, lds_config: {{{API}}}");
    let service = xds::service(xds::CLUSTER, &directory.path("XDS"));
    let config = directory.write("envoy.yaml", &bootstrap(admin, &dynamic, &service));
    let mut process = Process::start(&["-c", &config, "--concurrency", "2"]);
    assert_eq!(plane.opened("ListenerDiscoveryService/StreamListeners"), "");
    let rds = format!("rds: {{route_config_name: r, config_source: {{{API}}}}}");
    plane.set(LISTENER, "l", &listener(port, &rds));
    assert_eq!(plane.opened("RouteDiscoveryService/StreamRoutes"), "r");
    plane.set(ROUTES, "r", &routes("route: {cluster: c}"));
    assert_eq!(get(admin, "/ready").unwrap().status, 503, "the endpoints have not come");
    assert_eq!(get(port, "/"), None, "nor is the listener open that leads there");
    plane.set(ENDPOINTS, "c", &endpoints("c", upstream()));
    process.until("readiness", || get(admin, "/ready").filter(|answer| answer.status == 200));
    assert_eq!(get(port, "/").unwrap().body, "ok");
    let stats = get(admin, "/stats?filter=connected_state").unwrap().body;
    assert!(stats.contains("listener_manager.lds.control_plane.connected_state: 1"), "{stats}");
    // What is wrong is refused where it came from, and changes nothing.
    plane.set(ROUTES, "r", &routes("route: {cluster: c, timeout: -1s}"));
    let error = plane.refused("StreamRoutes");
    assert!(error.contains("\"r\": virtual_hosts[0].routes[0].route.timeout"), "{error}");
    assert_eq!(get(port, "/").unwrap().body, "ok");
    plane.set(ROUTES, "r", &routes("direct_response: {status: 200, body: {inline_string: new}}"));
    process.until("the new routes", || get(port, "/").filter(|answer| answer.body == "new"));
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
}

const FAULT: &str = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";

/// A listener whose filter gets its configuration by a stream of its own.
fn faulty(port: u16) -> String {
    let answer = "direct_response: {status: 200, body: {inline_string: ok}}";
    let filter =
        format!("{{name: f, config_discovery: {{config_source: {{{API}}}, type_urls: [{FAULT}]}}}}, ");
    let text = listener(port, &format!("route_config: {{{}}}", routes(answer)));
    text.replace("http_filters: [", &format!("http_filters: [{filter}"))
}

fn fault(status: u16) -> String {
    let abort = format!("abort: {{http_status: {status}, percentage: {{numerator: 100}}}}");
    format!("name: f, typed_config: {{\"@type\": {FAULT}, {abort}}}")
}

/// It was for listeners of a control plane alone.
#[test]
fn a_listener_of_the_bootstrap_waits_for_the_configuration_of_its_filter() {
    let directory = Directory::new();
    let plane = Plane::start(directory.0.join("XDS"));
    let (admin, port) = (free_port(), free_port());
    let service = xds::service(xds::CLUSTER, &directory.path("XDS"));
    let bare = bootstrap(admin, "", &service);
    let with = |listener: &str| {
        let listeners = format!("static_resources: {{listeners: [{{{listener}}}], ");
        bare.replace("static_resources: {", &listeners)
    };
    let config = directory.write("envoy.yaml", &with(&faulty(port)));
    let mut process = Process::start(&["-c", &config, "--concurrency", "2"]);
    assert_eq!(plane.opened("ExtensionConfigDiscoveryService/StreamExtensionConfigs"), "f");
    assert_eq!(get(admin, "/ready").unwrap().status, 503, "the start waits for it");
    assert_eq!(get(port, "/"), None);
    for status in [418, 419] {
        plane.set(EXTENSION, "f", &fault(status));
        process.until("the filter", || get(port, "/").filter(|answer| answer.status == status));
    }
    // The listener serves a moment before the whole of the process is ready.
    process.until("readiness", || get(admin, "/ready").filter(|answer| answer.status == 200));
    let dump = get(admin, "/config_dump?resource=dynamic_listeners").unwrap().body;
    assert!(!dump.contains("\"l\""), "it is the bootstrap's: {dump}");
    // Another bootstrap changes it, and the next takes it away.
    directory.write("envoy.yaml", &with(&faulty(port).replace("inline_string: ok", "inline_string: new")));
    process.signal("HUP");
    process.until("the other bootstrap", || {
        let dump = get(admin, "/config_dump?resource=static_listeners").unwrap().body;
        dump.contains("\"new\"").then_some(())
    });
    assert_eq!(get(port, "/").unwrap().status, 419, "with the filter that has come");
    directory.write("envoy.yaml", &bare);
    process.signal("HUP");
    process.until("its end", || get(port, "/").is_none().then_some(()));
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
}

/// A filter gets its configuration by a stream of its own, and each other one after it.
#[test]
fn filters_are_configured_by_a_stream_of_their_own() {
    let directory = Directory::new();
    let plane = Plane::start(directory.0.join("XDS"));
    let (admin, port) = (free_port(), free_port());
    let service = xds::service(xds::CLUSTER, &directory.path("XDS"));
    let dynamic = format!("lds_config: {{{API}}}");
    let config = directory.write("envoy.yaml", &bootstrap(admin, &dynamic, &service));
    let mut process = Process::start(&["-c", &config, "--concurrency", "2"]);
    plane.set(LISTENER, "l", &faulty(port));
    assert_eq!(plane.opened("ExtensionConfigDiscoveryService/StreamExtensionConfigs"), "f");
    assert_eq!(get(port, "/"), None, "the listener waits for its filter");
    for status in [418, 419] {
        plane.set(EXTENSION, "f", &fault(status));
        process.until("the filter", || get(port, "/").filter(|answer| answer.status == status));
    }
    // What is no good is refused on that stream, and the last good one goes on.
    plane.set(EXTENSION, "f", &fault(99));
    let error = plane.refused("StreamExtensionConfigs");
    assert!(error.contains("extension \"f\"") && error.contains("http_status"), "{error}");
    assert_eq!(get(port, "/").unwrap().status, 419);
    let dump = get(admin, "/config_dump?resource=ecds_filters").unwrap().body;
    assert!(dump.contains("\"version_info\": \"v2\"") && dump.contains("\"error_state\""), "{dump}");
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
}

/// APISIX's plugins come so too, as a struct; what is wrong with one is told in APISIX's words in the NACK.
#[test]
fn plugins_of_apisix_come_by_a_stream_of_their_own() {
    const PLUGINS: &str = "type.googleapis.com/sixfold.plugins.v1.Plugins";
    let directory = Directory::new();
    let plane = Plane::start(directory.0.join("XDS"));
    let (admin, port) = (free_port(), free_port());
    let service = xds::service(xds::CLUSTER, &directory.path("XDS"));
    let dynamic = format!("lds_config: {{{API}}}");
    let config = directory.write("envoy.yaml", &bootstrap(admin, &dynamic, &service));
    let mut process = Process::start(&["-c", &config, "--concurrency", "2"]);
    let answer = "direct_response: {status: 200, body: {inline_string: ok}}";
    let filter =
        format!("{{name: f, config_discovery: {{config_source: {{{API}}}, type_urls: [{PLUGINS}]}}}}, ");
    let text = listener(port, &format!("route_config: {{{}}}", routes(answer)));
    plane.set(LISTENER, "l", &text.replace("http_filters: [", &format!("http_filters: [{filter}")));
    let plugins = |rewrite: &str| {
        let of = "\"@type\": type.googleapis.com/xds.type.v3.TypedStruct";
        let value = format!("{{plugins: {{response-rewrite: {rewrite}}}}}");
        format!("name: f, typed_config: {{{of}, type_url: {PLUGINS}, value: {value}}}")
    };
    for status in [201, 202] {
        plane.set(EXTENSION, "f", &plugins(&format!("{{status_code: {status}}}")));
        process.until("the plugins", || get(port, "/").filter(|answer| answer.status == status));
    }
    plane.set(EXTENSION, "f", &plugins("{status_code: 99}"));
    let error = plane.refused("StreamExtensionConfigs");
    assert!(error.contains("value.plugins.response-rewrite.status_code"), "{error}");
    assert!(error.contains("failed to check the configuration of plugin response-rewrite err:"), "{error}");
    assert_eq!(get(port, "/").unwrap().status, 202, "the last good ones go on");
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
}

/// As Envoy says it: what is named must be there, and a stream is one of gRPC.
#[test]
fn what_is_no_source_is_refused_with_its_place() {
    let directory = Directory::new();
    let cases = [
        (
            "cds_config: {path: /none/cds.yaml}",
            "3:34: dynamic_resources.cds_config.path: /none/cds.yaml: No such file",
        ),
        (
            "lds_config: {api_config_source: {api_type: REST, cluster_names: [a]}}",
            "dynamic_resources.lds_config.api_config_source.api_type: REST is not supported",
        ),
    ];
    for (dynamic, reason) in cases {
        let config = directory.write("envoy.yaml", &bootstrap(free_port(), dynamic, ""));
        let output = support::output(&["validate", "-c", &config]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(reason), "{said}");
    }
    // Routes of a file that is missing had no place.
    let rds = "rds: {route_config_name: r, config_source: {path: /none/rds.yaml}}";
    let text = format!("static_resources:\n  listeners:\n  - {{{}}}\n", listener(free_port(), rds));
    let config = directory.write("envoy.yaml", &text);
    let output = support::output(&["validate", "-c", &config]);
    let said = String::from_utf8_lossy(&output.stderr);
    let place = said.contains("envoy.yaml:3:") && said.contains("listener \"l\": ");
    assert!(place && said.contains("rds.config_source.path: /none/rds.yaml: No such file"), "{said}");
}
