//! `sixfold doctor` finds what would keep a configuration from serving.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpListener;
use support::gateway::{Gateway, Ports};
use support::{Directory, free_port, output};

const FILE: &str = "role: data_plane\n  role_data_plane: {config_provider: yaml}";

/// Exit code and what was found.
fn doctor(file: &str) -> (Option<i32>, Value) {
    let done = output(&["doctor", "-c", file, "--output", "json"]);
    let told = String::from_utf8(done.stdout).unwrap();
    (done.status.code(), serde_json::from_str(&told).unwrap_or_else(|_| panic!("{told:?} {:?}", done.stderr)))
}

/// `state check about: reason` of everything that is not well.
fn ill(found: &Value) -> Vec<String> {
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let lines = found["checks"].as_array().unwrap().iter().filter(|line| line["state"] != "ok");
    lines
        .map(|line| {
            assert!(!text(line, "advice").is_empty(), "{line}");
            let [state, check, about, reason] =
                ["state", "check", "about", "reason"].map(|key| text(line, key));
            format!("{state} {check} {about}: {reason}")
        })
        .collect()
}

/// A certificate for `a.test` that is good between these years, and its key.
fn certificate(from: i32, to: i32) -> (String, String) {
    let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn faults_of(found: &Value) -> Vec<String> {
    ill(found).into_iter().filter(|line| line.starts_with("fault")).collect()
}

#[test]
fn a_gateway_that_can_serve_is_well() {
    let directory = Directory::new();
    let config = directory.write("config.yaml", &Ports::free().config(FILE));
    let (cert, key) = certificate(2020, 2120);
    let resources = serde_json::json!({
        "routes": [{"uri": "/a", "upstream": {"nodes": {"localhost:80": 1}, "type": "roundrobin"}}],
        "ssls": [{"id": "a", "sni": "a.test", "cert": cert, "key": key}],
    });
    directory.write("apisix.yaml", &format!("{resources}\n#END\n"));
    let (mut code, mut found) = doctor(&config);
    // Another test may have got one of the ports that were free.
    if faults_of(&found).iter().all(|fault| fault.starts_with("fault port")) && code == Some(1) {
        directory.write("config.yaml", &Ports::free().config(FILE));
        (code, found) = doctor(&config);
    }
    assert_eq!((code, faults_of(&found)), (Some(0), vec![]), "{found:#}");
    let told = found["checks"].to_string();
    for part in ["\"about\":\"localhost (routes", "ssl \\\"a\\\"", "apisix.node_listen[0]", "expires in "] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // For people: a line each, and the sum at the end.
    let text = String::from_utf8(output(&["doctor", "-c", &config]).stdout).unwrap();
    assert!(text.contains("ok       port") && text.contains("\n0 faults, "), "{text}");
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn each_thing_that_is_wrong_with_a_gateway_is_named() {
    let (directory, ports) = (Directory::new(), Ports::free());
    let held = TcpListener::bind(("127.0.0.1", ports.http)).unwrap();
    let (expired, expired_key) = certificate(2000, 2010);
    let (later, later_key) = certificate(2100, 2110);
    let (cert, _) = certificate(2020, 2120);
    let (_, other_key) = certificate(2020, 2120);
    let nobody = free_port();
    let config = ports
        .config(FILE)
        .replace("apisix:\n", &format!("apisix:\n  dns_resolver: [\"127.0.0.1:{nobody}\"]\n"));
    let config = directory.write("config.yaml", &config);
    let resources = serde_json::json!({
        "upstreams": [{"id": "u", "nodes": [{"host": "nothing.invalid.", "port": 80, "weight": 1}], "type": "roundrobin"}],
        "ssls": [
            {"id": "old", "sni": "a.test", "cert": expired, "key": expired_key},
            {"id": "young", "sni": "b.test", "cert": later, "key": later_key},
            {"id": "pair", "sni": "c.test", "cert": cert, "key": other_key},
        ],
    });
    directory.write("apisix.yaml", &format!("{resources}\n#END\n"));
    let (code, found) = doctor(&config);
    let faults = faults_of(&found).join("\n");
    assert_eq!(code, Some(1), "{faults}");
    let process = std::process::id();
    for part in [
        format!("fault port 127.0.0.1:{} (apisix.node_listen[0]): held by ", ports.http),
        format!(", process {process}"),
        "fault certificate ssl \"old\": \"CN=rcgen self signed cert\" has expired ".to_owned(),
        "fault certificate ssl \"young\": \"CN=rcgen self signed cert\" is valid only in ".to_owned(),
        "fault certificate ssl \"pair\": ".to_owned(),
        "fault name nothing.invalid. (upstreams[\"u\"]): ".to_owned(),
    ] {
        assert!(faults.contains(&part), "{part} is not in\n{faults}");
    }
    drop(held);
}

/// Beside the gateway that it is about it says that all is well.
/// What nobody has asked for was a fault, where the gateway starts and leaves it out.
#[test]
fn ports_by_default_that_are_held_are_warnings() {
    let (directory, ports) = (Directory::new(), Ports::free());
    let held = TcpListener::bind("127.0.0.1:7085");
    let config = ports.config(FILE);
    let config = config.replace(&format!("status: {{port: {}}}", ports.status), "enable_control: true");
    let config = directory.write("config.yaml", &config);
    directory.write("apisix.yaml", "routes: []\n#END\n");
    let (code, found) = doctor(&config);
    let status = found["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|line| line["about"].as_str().unwrap().ends_with("(apisix.status)"));
    let status = status.unwrap();
    assert_eq!(status["state"], "warning", "{found}");
    assert!(status["advice"].as_str().unwrap().contains("starts without it"), "{found}");
    assert!(code == Some(0) || !faults_of(&found).is_empty(), "{found}");
    drop(held);
}

#[test]
fn a_gateway_that_serves_already_holds_its_own_ports() {
    let (directory, ports) = (Directory::new(), Ports::free());
    let config = directory.write("config.yaml", &ports.config("role: traditional"));
    let gateway = Gateway::start(&directory, ports);
    let (code, found) = doctor(&config);
    assert_eq!((code, faults_of(&found)), (Some(0), vec![]), "{found:#}");
    let served = format!("served by this configuration, process {}", gateway.process.0.id());
    assert!(found.to_string().contains(&served), "{found:#}");
    // Of another file it is a stranger.
    let other = directory.write("other.yaml", &ports.config("role: traditional"));
    let (code, found) = doctor(&other);
    assert_eq!(code, Some(1), "{found:#}");
    assert!(faults_of(&found).join("\n").contains("held by sixfold, process "), "{found:#}");
}

#[test]
fn members_of_an_etcd_are_asked_who_they_are() {
    let (directory, ports) = (Directory::new(), Ports::free());
    let config = |port: u16| {
        let etcd = format!(
            "role: traditional\n  role_traditional: {{config_provider: etcd}}\n  etcd: {{host: [\"http://127.0.0.1:{port}\"]}}"
        );
        directory.write("config.yaml", &ports.config(&etcd))
    };
    let (code, found) = doctor(&config(free_port()));
    assert_eq!(code, Some(1));
    assert!(faults_of(&found).join("\n").contains("(deployment.etcd.host): 127.0.0.1:"), "{found:#}");
    for (body, count) in [("{\"etcdserver\":\"3.5.9\"}", 0), ("hello", 1)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = config(listener.local_addr().unwrap().port());
        let server = std::thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                // The first connection only looks whether there is somebody.
                if stream.read(&mut [0; 1024]).unwrap_or(0) > 0 {
                    let length = body.len();
                    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
                }
            }
        });
        let (_, found) = doctor(&config);
        server.join().unwrap();
        // Another test may have got one of the ports that were free.
        let faults = faults_of(&found).iter().filter(|fault| fault.starts_with("fault server")).count();
        assert_eq!(faults, count, "{found:#}");
    }
}

#[test]
fn a_bootstrap_is_looked_at_too() {
    let directory = Directory::new();
    let (cert, key) = certificate(2000, 2010);
    let (chain, key) = (directory.write("cert.pem", &cert), directory.write("key.pem", &key));
    let (port, control_plane) = (free_port(), TcpListener::bind("127.0.0.1:0").unwrap());
    let bootstrap = |xds: u16, log: &str| {
        let log = directory.path(log);
        format!(
            r#"
node: {{id: node, cluster: c}}
dynamic_resources:
  ads_config: {{api_type: GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    http2_protocol_options: {{}}
    load_assignment: {{cluster_name: xds, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {xds}}}}}}}}}]}}]}}
  listeners:
  - name: in
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: {chain}}}, private_key: {{filename: {key}}}}}]}}
      filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: t
          cluster: xds
          access_log: [{{name: f, typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {log}}}}}]
"#
        )
    };
    let file =
        directory.write("envoy.yaml", &bootstrap(control_plane.local_addr().unwrap().port(), "access.log"));
    let (code, found) = doctor(&file);
    let told = found.to_string();
    assert_eq!(code, Some(1), "{found:#}");
    assert!(faults_of(&found).iter().any(|fault| fault.contains("has expired ")), "{found:#}");
    for part in [format!("127.0.0.1:{port} (listener \\\"in\\\")"), "control plane \\\"xds\\\"".to_owned()] {
        assert!(told.contains(&part), "{part}: {told}");
    }
    let file = directory.write("envoy.yaml", &bootstrap(free_port(), "none/access.log"));
    let faults = faults_of(&doctor(&file).1).join("\n");
    assert!(faults.contains("(control plane \"xds\"): 127.0.0.1:"), "{faults}");
    assert!(faults.contains("fault folder ") && faults.contains("/none "), "{faults}");
}

#[test]
fn what_can_not_be_looked_at_is_trouble() {
    let directory = Directory::new();
    for arguments in [
        vec!["doctor", "-c", "/no/such/file.yaml"],
        vec!["doctor"],
        vec!["doctor", "-c", &directory.write("x.yaml", "something: else\n")],
    ] {
        let done = output(&arguments);
        assert_eq!(done.status.code(), Some(2), "{arguments:?}");
        assert!(!done.stderr.is_empty() && done.stdout.is_empty(), "{arguments:?}");
    }
}
