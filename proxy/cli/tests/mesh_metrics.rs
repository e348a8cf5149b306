//! Two sidecars of the binary, configured as Istio's control plane does it, with mutual TLS between them: each knows the
//! workload of the other, over HTTP and over TCP, and shows it under the names that Istio's dashboards read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use support::authority::Authority;
use support::traffic::upstream;
use support::{Directory, Process, free_port, get, request};

const API: &str = "type.googleapis.com/envoy.extensions";
const ISTIO: &str = "\"@type\": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com";

/// Labels by which the dashboards of Istio's add-ons for Grafana (`manifests/addons/dashboards`) and Kiali tell calls apart.
const CALLS: [&str; 18] = [
    "reporter",
    "connection_security_policy",
    "request_protocol",
    "response_flags",
    "source_workload",
    "source_workload_namespace",
    "source_canonical_service",
    "source_canonical_revision",
    "source_principal",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
];

/// The metrics that they read, with what those of requests have beside [`CALLS`].
const METRICS: [(&str, &[&str]); 8] = [
    ("istio_requests_total", &["response_code", "grpc_response_status"]),
    ("istio_request_duration_milliseconds_bucket", &["response_code", "le"]),
    ("istio_request_bytes_bucket", &["response_code", "le"]),
    ("istio_response_bytes_bucket", &["response_code", "le"]),
    ("istio_tcp_sent_bytes_total", &[]),
    ("istio_tcp_received_bytes_total", &[]),
    ("istio_tcp_connections_opened_total", &[]),
    ("istio_tcp_connections_closed_total", &[]),
];

/// An application that speaks first, and then says every line again.
fn greeter() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(socket.try_clone().unwrap());
                let mut line = String::from("hello\n");
                while socket.write_all(line.as_bytes()).is_ok() {
                    line.clear();
                    if !matches!(lines.read_line(&mut line), Ok(1..)) {
                        return;
                    }
                }
            });
        }
    });
    port
}

fn address(port: u16) -> String {
    format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}")
}

/// A filter that Istio's control plane sends as a `TypedStruct`.
fn of_istio(name: &str, kind: &str, value: &str) -> String {
    format!("{{name: {name}, typed_config: {{{ISTIO}/{kind}, value: {{{value}}}}}}}")
}

fn exchange() -> String {
    let value = "protocol: istio-peer-exchange, enable_discovery: true";
    of_istio("istio.metadata_exchange", "envoy.tcp.metadataexchange.config.MetadataExchange", value)
}

fn stats(fields: &str) -> String {
    format!(
        "{{name: istio.stats, typed_config: {{\"@type\": type.googleapis.com/stats.PluginConfig{fields}}}}}"
    )
}

/// TLS of one side, by a certificate of the mesh.
fn tls(side: &str, authority: &Authority, account: &str, protocols: &str, more: &str) -> String {
    let certificate = authority.identity(&format!("spiffe://cluster.local/ns/default/sa/{account}"));
    format!(
        "transport_socket: {{name: tls, typed_config: {{\"@type\": {API}.transport_sockets.tls.v3.{side}, \
         common_tls_context: {{alpn_protocols: [{protocols}], tls_certificates: [{certificate}], {}}}{more}}}}}",
        authority.trusted()
    )
}

fn tcp_proxy(cluster: &str) -> String {
    format!(
        "{{name: tcp, typed_config: {{\"@type\": {API}.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: \"{cluster}\", cluster: \"{cluster}\"}}}}"
    )
}

fn manager(cluster: &str, filters: &[String]) -> String {
    let router =
        format!("{{name: router, typed_config: {{\"@type\": {API}.filters.http.router.v3.Router}}}}");
    format!(
        "{{name: http, typed_config: {{\"@type\": {API}.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: s, \
         route_config: {{virtual_hosts: [{{name: v, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: \"{cluster}\"}}}}]}}]}}, \
         http_filters: [{}, {router}]}}}}",
        filters.join(", ")
    )
}

fn cluster(name: &str, port: u16, more: &str) -> String {
    format!(
        "  - {{name: \"{name}\", connect_timeout: 5s, load_assignment: {{cluster_name: \"{name}\", endpoints: [{{lb_endpoints: [{{endpoint: {{address: {}}}}}]}}]}}{more}}}\n",
        address(port)
    )
}

struct Sidecar {
    process: Process,
    admin: u16,
    _directory: Directory,
}

impl Sidecar {
    /// The sidecar of the first version of an application.
    fn start(app: &str, listeners: &str, clusters: &str) -> Sidecar {
        let admin = free_port();
        let labels = format!(
            "app: {app}, version: v1, service.istio.io/canonical-name: {app}, service.istio.io/canonical-revision: v1"
        );
        let text = format!(
            "node:\n  id: sidecar~127.0.0.1~{app}-v1-1.default~default.svc.cluster.local\n  cluster: {app}.default\n  metadata:\n    \
             {{NAME: {app}-v1-1, NAMESPACE: default, WORKLOAD_NAME: {app}-v1, CLUSTER_ID: Kubernetes, ISTIO_VERSION: 1.29.6, LABELS: {{{labels}}}, \
             OWNER: kubernetes://apis/apps/v1/namespaces/default/deployments/{app}-v1}}\n\
             admin: {{address: {}}}\nstatic_resources:\n  listeners:\n{listeners}  clusters:\n{clusters}",
            address(admin)
        );
        let directory = Directory::new();
        let file = directory.write("envoy.yaml", &text);
        let mut process = Process::start(&["-c", &file, "--concurrency", "2", "--use-dynamic-base-id"]);
        process.until("readiness", || get(admin, "/ready").filter(|response| response.status == 200));
        Sidecar { process, admin, _directory: directory }
    }

    /// The series of a metric, once there are so many and all have such a value.
    fn series(&mut self, metric: &str, value: u64) -> Vec<String> {
        let admin = self.admin;
        let (start, end) = (format!("{metric}{{"), format!("}} {value}"));
        self.process.until(metric, || {
            let page = get(admin, "/stats/prometheus")?.body;
            let lines = page.lines().filter(|line| line.starts_with(&start)).map(str::to_owned);
            let lines: Vec<String> = lines.collect();
            lines.iter().any(|line| line.ends_with(&end)).then_some(lines)
        })
    }
}

fn label<'l>(line: &'l str, name: &str) -> &'l str {
    let (_, rest) = line.split_once(&format!("{name}=\"")).unwrap_or_else(|| panic!("no {name} in {line}"));
    rest.split('"').next().unwrap()
}

/// The sidecar of `reviews`, behind which an application of HTTP and one of TCP are, and its port.
fn called(authority: &Authority) -> (Sidecar, u16) {
    let port = free_port();
    let more = ", require_client_certificate: true";
    let chain = |wanted: &str, offered: &str, filters: &[String]| {
        let tls = tls("DownstreamTlsContext", authority, "reviews", offered, more);
        format!(
            "{{filter_chain_match: {{transport_protocol: tls, application_protocols: [{wanted}]}}, {tls}, filters: [{}]}}",
            filters.join(", ")
        )
    };
    let peers = "downstream_discovery: [{istio_headers: {}}], downstream_propagation: [{istio_headers: {}}]";
    let peers = of_istio("istio.metadata_exchange", "io.istio.http.peer_metadata.Config", peers);
    let of_requests = stats(", disable_host_header_fallback: true");
    let of_connections = stats(", disable_host_header_fallback: true, tcp_reporting_duration: 0.1s");
    let http = chain(
        "istio-http/1.1, istio-h2",
        "h2, http/1.1",
        &[exchange(), manager("inbound|9080||", &[peers, of_requests])],
    );
    let tcp = chain(
        "istio-peer-exchange, istio",
        "istio-peer-exchange, h2, http/1.1",
        &[exchange(), of_connections, tcp_proxy("inbound|6379||")],
    );
    let inspector = format!(
        "{{name: tls, typed_config: {{\"@type\": {API}.filters.listener.tls_inspector.v3.TlsInspector}}}}"
    );
    let listener = format!(
        "  - {{name: virtualInbound, traffic_direction: INBOUND, address: {}, listener_filters: [{inspector}], filter_chains: [{http}, {tcp}]}}\n",
        address(port)
    );
    let clusters =
        [cluster("inbound|9080||", upstream(), ""), cluster("inbound|6379||", greeter(), "")].concat();
    (Sidecar::start("reviews", &listener, &clusters), port)
}

/// The sidecar of `productpage`, which calls that one, and its ports for HTTP and TCP.
fn caller(authority: &Authority, called: u16) -> (Sidecar, u16, u16) {
    let (http, tcp) = (free_port(), free_port());
    let peers = "upstream_discovery: [{istio_headers: {}}], upstream_propagation: [{istio_headers: {}}]";
    let peers = of_istio("istio.metadata_exchange", "io.istio.http.peer_metadata.Config", peers);
    let alpn = "{name: istio.alpn, typed_config: {\"@type\": type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig, \
                alpn_override: [{alpn_override: [istio-http/1.0, istio, http/1.0]}, {upstream_protocol: HTTP11, alpn_override: [istio-http/1.1, istio, http/1.1]}]}}";
    let host = "reviews.default.svc.cluster.local";
    let names = [9080, 6379].map(|port| format!("outbound|{port}||{host}"));
    let listener = |port: u16, filters: &[String]| {
        format!(
            "  - {{name: \"0.0.0.0_{port}\", traffic_direction: OUTBOUND, address: {}, filter_chains: [{{filters: [{}]}}]}}\n",
            address(port),
            filters.join(", ")
        )
    };
    let listeners = [
        listener(http, &[manager(&names[0], &[peers, alpn.to_owned(), stats("")])]),
        listener(tcp, &[stats(", tcp_reporting_duration: 0.1s"), tcp_proxy(&names[1])]),
    ];
    let tls = tls("UpstreamTlsContext", authority, "productpage", "istio-peer-exchange, istio", "");
    let more = format!(
        ", {tls}, filters: [{}], metadata: {{filter_metadata: {{istio: {{services: [{{host: {host}, name: reviews, namespace: default}}]}}}}}}",
        exchange()
    );
    let clusters = names.map(|name| cluster(&name, called, &more));
    (Sidecar::start("productpage", &listeners.concat(), &clusters.concat()), http, tcp)
}

/// Who calls and who is called, as both sides must see it.
const WHO: [(&str, &str); 16] = [
    ("source_workload", "productpage-v1"),
    ("source_workload_namespace", "default"),
    ("source_canonical_service", "productpage"),
    ("source_canonical_revision", "v1"),
    ("source_app", "productpage"),
    ("source_version", "v1"),
    ("source_cluster", "Kubernetes"),
    ("source_principal", "spiffe://cluster.local/ns/default/sa/productpage"),
    ("destination_workload", "reviews-v1"),
    ("destination_workload_namespace", "default"),
    ("destination_canonical_service", "reviews"),
    ("destination_canonical_revision", "v1"),
    ("destination_principal", "spiffe://cluster.local/ns/default/sa/reviews"),
    ("destination_service_name", "reviews"),
    ("destination_service_namespace", "default"),
    ("destination_cluster", "Kubernetes"),
];

/// The one series of a metric is of these two workloads, seen by this side.
fn check(series: &[String], is_caller: bool, protocol: &str) {
    let [line] = series else { panic!("not one series: {series:#?}") };
    for (name, value) in WHO {
        assert_eq!(label(line, name), value, "{name} in {line}");
    }
    let (reporter, service, policy) = match is_caller {
        true => ("source", "reviews.default.svc.cluster.local", "unknown"),
        false => ("destination", "reviews", "mutual_tls"),
    };
    assert_eq!((label(line, "reporter"), label(line, "connection_security_policy")), (reporter, policy));
    assert_eq!((label(line, "destination_service"), label(line, "request_protocol")), (service, protocol));
}

#[test]
fn both_sides_of_a_call_show_whom_it_was_between() {
    let authority = Authority::new();
    let (mut reviews, port) = called(&authority);
    let (mut productpage, http, tcp) = caller(&authority, port);

    for _ in 0..2 {
        assert_eq!(request(http, "GET", "/reviews/0", &["Host: reviews:9080"]).unwrap().status, 200);
    }
    let mut client = TcpStream::connect(("127.0.0.1", tcp)).unwrap();
    client.set_read_timeout(Some(support::LIMIT)).unwrap();
    let mut lines = BufReader::new(client.try_clone().unwrap());
    let mut said = String::new();
    lines.read_line(&mut said).unwrap();
    client.write_all(b"ping\n").unwrap();
    lines.read_line(&mut said).unwrap();
    assert_eq!(said, "hello\nping\n");

    for (sidecar, is_caller) in [(&mut productpage, true), (&mut reviews, false)] {
        let series = sidecar.series("istio_requests_total", 2);
        check(&series, is_caller, "http");
        assert_eq!((label(&series[0], "response_code"), label(&series[0], "response_flags")), ("200", "-"));
        // The connection is still open.
        check(&sidecar.series("istio_tcp_connections_opened_total", 1), is_caller, "tcp");
        check(&sidecar.series("istio_tcp_connections_closed_total", 0), is_caller, "tcp");
        check(&sidecar.series("istio_tcp_sent_bytes_total", 11), is_caller, "tcp");
        check(&sidecar.series("istio_tcp_received_bytes_total", 5), is_caller, "tcp");
    }
    drop((client, lines));
    for (sidecar, is_caller) in [(&mut productpage, true), (&mut reviews, false)] {
        check(&sidecar.series("istio_tcp_connections_closed_total", 1), is_caller, "tcp");
        check(&sidecar.series("istio_tcp_connections_opened_total", 1), is_caller, "tcp");
        let told = get(sidecar.admin, "/stats?filter=metadata_exchange").unwrap().body;
        for count in ["alpn_protocol_found: 1", "metadata_added: 1", "initial_header_not_found: 0"] {
            assert!(told.contains(&format!("metadata_exchange.{count}\n")), "{count} in {told}");
        }
        let page = get(sidecar.admin, "/stats/prometheus").unwrap().body;
        assert!(page.contains("istio_build{component=\"proxy\",tag=\"1.29.6\"} 1\n"));
        for (metric, more) in METRICS {
            let line = page.lines().find(|line| line.starts_with(&format!("{metric}{{")));
            let line = line.unwrap_or_else(|| panic!("no {metric}"));
            CALLS.iter().chain(more).for_each(|name| assert!(!label(line, name).contains('=')));
        }
    }
}
