#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, context, stream};
use serde_json::json;
use sixfold_core::cluster::{Cluster, ClusterConfig, MeshCluster};
use sixfold_core::connection::{Certificate, Connection, TlsInfo, UpstreamConnection};
use sixfold_core::flags::Flag;
use sixfold_core::listener::ConnectionFilter;
use sixfold_core::metadata::Metadata;
use sixfold_core::metrics::render::{Form, Page, Selection};
use sixfold_core::metrics::{Registry, TagRules};
use sixfold_core::plugin::LocalNode;
use sixfold_core::traffic::Traffic;
use sixfold_core::workload::{Peer, Workload};
use sixfold_xds_api::istio_pb::stats::{MetricConfig, MetricDefinition};
use std::time::Duration;

fn proxy(direction: TrafficDirection) -> BuildContext {
    let metadata = json!({
        "NAMESPACE": "default", "WORKLOAD_NAME": "web-v1", "CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.29.6",
        "LABELS": {"app": "web", "version": "v1", "service.istio.io/canonical-name": "web", "service.istio.io/canonical-revision": "v1"},
    });
    let node = LocalNode { id: "sidecar".into(), metadata: metadata.as_object().unwrap().clone() };
    BuildContext { direction, node: Arc::new(node), ..context() }
}

fn peer() -> Peer {
    Peer::new(Workload {
        workload: "db-v2".into(),
        namespace: "told".into(),
        service: "db".into(),
        revision: "v2".into(),
        app: "db".into(),
        version: "v2".into(),
        cluster: "Kubernetes".into(),
        ..Workload::default()
    })
}

fn tls(theirs: &str, ours: &str) -> TlsInfo {
    let of = |uri: &str| Some(Arc::new(Certificate { uri_sans: vec![uri.into()], ..Certificate::default() }));
    TlsInfo { peer: of(theirs), local: of(ours), ..TlsInfo::default() }
}

fn cluster(name: &str, said: serde_json::Value) -> Arc<Cluster> {
    let mut metadata = Metadata::default();
    metadata.insert("istio", said);
    let mesh = Some(Arc::new(MeshCluster::new(name, &metadata)));
    let config = ClusterConfig { mesh, ..ClusterConfig::named(name) };
    Cluster::new(config, Vec::new(), None, &Registry::new()).unwrap()
}

fn filter(config: &PluginConfig, context: &BuildContext) -> Alone {
    testing::filter_in(&factory(), &config.encode_to_vec(), &[], context).unwrap()
}

fn end(filter: &Alone, stream: &mut Stream, status: u16) {
    stream.response.status = status;
    stream.timing.downstream_tx_end = Some(stream.timing.start + Duration::from_millis(7));
    stream.bytes.traffic = Traffic { sent: 300, received: 100, ..Traffic::default() };
    filter.log(stream);
}

/// Lines of the page in Prometheus' form that begin so.
fn page(context: &BuildContext, start: &str) -> Vec<String> {
    let (mut out, snapshot) = (Vec::new(), context.metrics.snapshot());
    let (selection, rules) = (Selection::default(), TagRules::default());
    Page { statistics: &snapshot, selection: &selection, rules: &rules }
        .write(Form::Prometheus, &mut out)
        .unwrap();
    let text = String::from_utf8(out).unwrap();
    text.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect()
}

const CALLER: &str = "reporter=\"source\",source_workload=\"web-v1\",source_canonical_service=\"web\",source_canonical_revision=\"v1\",\
    source_workload_namespace=\"default\",source_principal=\"spiffe://t/ns/default/sa/web\",source_app=\"web\",source_version=\"v1\",\
    source_cluster=\"Kubernetes\",destination_workload=\"db-v2\",destination_workload_namespace=\"data\",\
    destination_principal=\"spiffe://t/ns/data/sa/db\",destination_app=\"db\",destination_version=\"v2\",\
    destination_service=\"db.data.svc\",destination_canonical_service=\"db\",destination_canonical_revision=\"v2\",\
    destination_service_name=\"db\",destination_service_namespace=\"data\",destination_cluster=\"Kubernetes\"";

fn called() -> Stream {
    let mut stream = stream("/", &[]);
    let services = json!([{"host": "db.data.svc", "name": "db", "namespace": "data"}]);
    stream.upstream.cluster = Some(cluster("outbound|80||db", json!({"services": services})));
    stream.upstream.connection =
        Some(UpstreamConnection::new(Some(tls("spiffe://t/ns/data/sa/db", "spiffe://t/ns/default/sa/web"))));
    stream.peers.upstream = Some(peer());
    stream
}

#[test]
fn a_caller_counts_whom_it_calls() {
    let context = proxy(TrafficDirection::Outbound);
    let filter = filter(&PluginConfig::default(), &context);
    end(&filter, &mut called(), 200);
    end(&filter, &mut called(), 200);
    let mut failed = called();
    failed.flags.insert(Flag::UF);
    failed.flags.insert(Flag::URX);
    end(&filter, &mut failed, 503);
    let behind = |status: u16, flags: &str| {
        format!(
            "request_protocol=\"http\",response_code=\"{status}\",grpc_response_status=\"\",response_flags=\"{flags}\",connection_security_policy=\"unknown\""
        )
    };
    let (well, badly) = (behind(200, "-"), behind(503, "UF,URX"));
    assert_eq!(
        page(&context, "istio_requests_total"),
        [
            format!("istio_requests_total{{{CALLER},{well}}} 2"),
            format!("istio_requests_total{{{CALLER},{badly}}} 1")
        ]
    );
    let durations = page(&context, "istio_request_duration_milliseconds_");
    assert!(
        durations
            .contains(&format!("istio_request_duration_milliseconds_bucket{{{CALLER},{well},le=\"10\"}} 2"))
    );
    assert!(durations.contains(&format!("istio_request_duration_milliseconds_sum{{{CALLER},{badly}}} 7")));
    assert_eq!(
        page(&context, "istio_response_bytes_sum")[0],
        format!("istio_response_bytes_sum{{{CALLER},{well}}} 600")
    );
    assert_eq!(page(&context, "istio_request_bytes_count").len(), 2);
    assert_eq!(page(&context, "# TYPE istio_request_bytes"), ["# TYPE istio_request_bytes histogram"]);
    assert_eq!(page(&context, "istio_build"), ["istio_build{component=\"proxy\",tag=\"1.29.6\"} 1"]);
    assert_eq!(page(&context, "istio_request_messages_total"), [""; 0], "only calls of gRPC have messages");
}

fn label<'l>(line: &'l str, name: &str) -> &'l str {
    let (_, rest) = line.split_once(&format!("{name}=\"")).unwrap();
    rest.split('"').next().unwrap()
}

#[test]
fn the_called_one_counts_who_calls() {
    let context = proxy(TrafficDirection::Inbound);
    let filter =
        filter(&PluginConfig { disable_host_header_fallback: true, ..PluginConfig::default() }, &context);
    let (client, own) = (([10, 1, 2, 3], 4000).into(), ([127, 0, 0, 1], 9080).into());
    let tls = Some(tls("spiffe://t/ns/data/sa/db", "spiffe://t/ns/default/sa/web"));
    let mut known = Stream::new(Arc::new(Connection { tls, ..Connection::plain(client, own) }));
    known.peers.downstream = Some(peer());
    known.upstream.cluster = Some(cluster("inbound|80||", json!({})));
    end(&filter, &mut known, 200);
    let line = &page(&context, "istio_requests_total")[0];
    for (name, value) in [
        ("reporter", "destination"),
        ("source_workload", "db-v2"),
        ("source_workload_namespace", "data"),
        ("source_principal", "spiffe://t/ns/data/sa/db"),
        ("destination_workload", "web-v1"),
        ("destination_principal", "spiffe://t/ns/default/sa/web"),
        ("destination_service", "web"),
        ("destination_service_name", "web"),
        ("destination_service_namespace", "default"),
        ("connection_security_policy", "mutual_tls"),
    ] {
        assert_eq!(label(line, name), value, "{name}");
    }
    let mut stranger = stream("/", &[]);
    end(&filter, &mut stranger, 200);
    let lines = page(&context, "istio_requests_total");
    let line = lines.iter().find(|line| label(line, "source_workload") == "unknown").unwrap();
    assert_eq!(
        (label(line, "source_principal"), label(line, "source_canonical_revision")),
        ("unknown", "latest")
    );
    assert_eq!(label(line, "connection_security_policy"), "none");
}

#[test]
fn what_is_not_told_is_found_elsewhere() {
    let context = proxy(TrafficDirection::Outbound);
    let with_host = filter(&PluginConfig::default(), &context);
    let service = |stream: &mut Stream, filter: &Alone| {
        end(filter, stream, 200);
        let lines = page(&context, "istio_requests_total");
        let seen = lines.iter().map(|line| {
            format!("{} {}", label(line, "destination_service"), label(line, "destination_service_name"))
        });
        seen.collect::<Vec<_>>()
    };
    assert_eq!(service(&mut stream("/", &[]), &with_host), ["example.com example.com"]);
    let without =
        filter(&PluginConfig { disable_host_header_fallback: true, ..PluginConfig::default() }, &context);
    let mut passed = stream("/", &[]);
    passed.upstream.cluster = Some(cluster("PassthroughCluster", json!({})));
    let seen = service(&mut passed, &without);
    assert!(seen.contains(&"unknown PassthroughCluster".to_owned()), "{seen:?}");
}

#[test]
fn calls_of_grpc_have_a_status_and_messages() {
    let context = proxy(TrafficDirection::Outbound);
    let filter = filter(&PluginConfig::default(), &context);
    let mut call = called();
    call.request.headers.set(Known::CONTENT_TYPE, b"application/grpc");
    call.response_trailers.push(b"grpc-status", b"5");
    (call.bytes.request_messages, call.bytes.response_messages) = (3, 4);
    end(&filter, &mut call, 200);
    let line = &page(&context, "istio_requests_total")[0];
    assert_eq!((label(line, "request_protocol"), label(line, "grpc_response_status")), ("grpc", "5"));
    assert_eq!(
        page(&context, "istio_request_messages_total"),
        [format!("istio_request_messages_total{{{CALLER}}} 3")]
    );
    assert_eq!(
        page(&context, "istio_response_messages_total"),
        [format!("istio_response_messages_total{{{CALLER}}} 4")]
    );
}

#[test]
fn metrics_and_labels_can_be_left_out() {
    let context = proxy(TrafficDirection::Outbound);
    let of = |name: &str, drop, tags: &[&str]| MetricConfig {
        name: name.into(),
        drop,
        tags_to_remove: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        ..MetricConfig::default()
    };
    let metrics = vec![
        of("request_bytes", true, &[]),
        of("requests_total", false, &["response_code", "nobody"]),
        of("", false, &["source_app"]),
    ];
    let filter = filter(&PluginConfig { metrics, ..PluginConfig::default() }, &context);
    [200, 404].into_iter().for_each(|status| end(&filter, &mut called(), status));
    assert_eq!(page(&context, "istio_request_bytes"), [""; 0]);
    let totals = page(&context, "istio_requests_total");
    assert_eq!(totals.len(), 1, "without the status both are one");
    assert!(
        totals[0].ends_with(" 2")
            && !totals[0].contains("response_code=")
            && !totals[0].contains("source_app")
    );
    let sizes = page(&context, "istio_response_bytes_count");
    assert!(sizes.len() == 2 && sizes.iter().all(|line| !line.contains("source_app=")));
}

#[test]
fn labels_have_values_of_expressions() {
    let context = proxy(TrafficDirection::Outbound);
    let dimensions = [
        ("request_method", "request.method"),
        ("destination_port", "string(response.code + 1)"),
        ("source_app", "'other'"),
        ("nothing", "request.headers['x-none']"),
        ("broken", "1 +"),
    ];
    let dimensions = dimensions.map(|(label, text)| (label.to_owned(), text.to_owned())).into();
    let metrics = vec![MetricConfig { dimensions, ..MetricConfig::default() }];
    let filter = filter(&PluginConfig { metrics, ..PluginConfig::default() }, &context);
    [200, 404].into_iter().for_each(|status| end(&filter, &mut called(), status));
    let totals = page(&context, "istio_requests_total");
    assert_eq!(totals.len(), 2);
    let of = |name| label(&totals[0], name);
    assert_eq!((of("request_method"), of("source_app"), of("nothing")), ("GET", "other", "unknown"));
    assert_eq!(of("destination_port"), "201");
    assert!(!totals[0].contains("broken"), "{}", totals[0]);
}

#[test]
fn metrics_of_users_are_refused() {
    let definition = MetricDefinition { name: "mine".into(), value: "1".into(), r#type: 0 };
    let config = PluginConfig { definitions: vec![definition], ..PluginConfig::default() };
    let built = testing::filter(&factory(), &config.encode_to_vec(), &[]).map(|_| ());
    assert_eq!(built.unwrap_err(), "definitions: is not supported");
}

#[test]
fn names_without_labels_are_in_the_text_form() {
    let context = proxy(TrafficDirection::Outbound);
    let filter = filter(&PluginConfig::default(), &context);
    end(&filter, &mut called(), 200);
    let (mut out, snapshot, rules) = (Vec::new(), context.metrics.snapshot(), TagRules::default());
    let page = Page { statistics: &snapshot, selection: &Selection::default(), rules: &rules };
    page.write(Form::Text, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.contains("istiocustom.istio_requests_total.reporter.source.source_workload.web-v1."),
        "{text}"
    );
}

const SLOT: Slot = Slot::new(0, sixfold_core::plugin::Scope::Route);
const BEHIND: &str = "request_protocol=\"tcp\",response_flags=\"-\",connection_security_policy=\"unknown\"";

fn network(config: &PluginConfig, context: &BuildContext) -> Arc<dyn ConnectionFilter> {
    network_factory().build(&config.encode_to_vec(), context).unwrap()
}

/// A connection to an endpoint, of which so many bytes came and went.
fn connected(received: u64, sent: u64) -> Stream {
    let mut connection = called();
    connection.request = Default::default();
    (connection.bytes.request_body, connection.bytes.response_body) = (received, sent);
    connection
}

/// Opened, closed, sent and received, as a caller sees them.
fn counted(context: &BuildContext) -> Vec<String> {
    let names = ["connections_opened", "connections_closed", "sent_bytes", "received_bytes"];
    let lines = names.iter().flat_map(|name| page(context, &format!("istio_tcp_{name}_total{{")));
    let all = format!("{{{CALLER},{BEHIND}}} ");
    lines.map(|line| line.strip_prefix("istio_tcp_").unwrap().replace(&all, "=")).collect()
}

#[test]
fn connections_are_counted_when_they_end() {
    let context = proxy(TrafficDirection::Outbound);
    let filter = network(&PluginConfig::default(), &context);
    filter.on_close(&mut connected(10, 30), SLOT);
    let of = |closed: u8| {
        [
            format!("connections_opened_total={closed}"),
            format!("connections_closed_total={closed}"),
            format!("sent_bytes_total={}", 30 * closed),
            format!("received_bytes_total={}", 10 * closed),
        ]
    };
    assert_eq!(counted(&context), of(1));
    filter.on_close(&mut connected(10, 30), SLOT);
    assert_eq!(counted(&context), of(2));
    assert_eq!(page(&context, "istio_requests_total"), [""; 0]);
}

#[test]
fn connections_are_counted_while_they_last() {
    let context = proxy(TrafficDirection::Outbound);
    let filter = network(&PluginConfig::default(), &context);
    assert_eq!(filter.report_interval(), Some(Duration::from_secs(5)));
    let mut connection = connected(10, 30);
    let peer = connection.peers.upstream.take();
    connection.peers.awaited.upstream = true;
    filter.on_report(&mut connection, SLOT);
    assert_eq!(counted(&context), [""; 0], "the other end has not said who it is");
    (connection.peers.upstream, connection.peers.awaited.upstream) = (peer, false);
    filter.on_report(&mut connection, SLOT);
    let so_far = [
        "connections_opened_total=1",
        "connections_closed_total=0",
        "sent_bytes_total=30",
        "received_bytes_total=10",
    ];
    assert_eq!(counted(&context), so_far);
    filter.on_report(&mut connection, SLOT);
    assert_eq!(counted(&context), so_far, "nothing is counted twice");
    // The labels are those of the beginning.
    connection.flags.insert(Flag::DC);
    (connection.bytes.request_body, connection.bytes.response_body) = (11, 50);
    filter.on_close(&mut connection, SLOT);
    let all = [
        "connections_opened_total=1",
        "connections_closed_total=1",
        "sent_bytes_total=50",
        "received_bytes_total=11",
    ];
    assert_eq!(counted(&context), all);
}

#[test]
fn who_is_called_counts_connections_by_who_calls() {
    let context = proxy(TrafficDirection::Inbound);
    let filter =
        network(&PluginConfig { disable_host_header_fallback: true, ..PluginConfig::default() }, &context);
    let (client, own) = (([10, 1, 2, 3], 4000).into(), ([127, 0, 0, 1], 6379).into());
    let tls = Some(tls("spiffe://t/ns/data/sa/db", "spiffe://t/ns/default/sa/web"));
    let mut connection = Stream::new(Arc::new(Connection { tls, ..Connection::plain(client, own) }));
    connection.peers.awaited.downstream = true;
    filter.on_report(&mut connection, SLOT);
    assert_eq!(page(&context, "istio_tcp"), [""; 0]);
    connection.peers.downstream = Some(peer());
    filter.on_close(&mut connection, SLOT);
    let line = &page(&context, "istio_tcp_connections_opened_total")[0];
    for (name, value) in [
        ("reporter", "destination"),
        ("source_workload", "db-v2"),
        ("source_workload_namespace", "data"),
        ("destination_service", "web"),
        ("request_protocol", "tcp"),
        ("connection_security_policy", "mutual_tls"),
    ] {
        assert_eq!(label(line, name), value, "{name}");
    }
}

#[test]
fn metrics_of_connections_can_be_changed_too() {
    let context = proxy(TrafficDirection::Outbound);
    let dimensions = [("destination_port".to_owned(), "string(destination.port)".to_owned())].into();
    let metrics = vec![
        MetricConfig { name: "tcp_sent_bytes_total".into(), drop: true, ..MetricConfig::default() },
        MetricConfig { dimensions, tags_to_remove: vec!["source_app".into()], ..MetricConfig::default() },
    ];
    let nanos = sixfold_xds_api::pb::google::protobuf::Duration { seconds: 0, nanos: 0 };
    let config = PluginConfig { metrics, tcp_reporting_duration: Some(nanos), ..PluginConfig::default() };
    let filter = network(&config, &context);
    assert_eq!(filter.report_interval(), None);
    filter.on_close(&mut connected(1, 2), SLOT);
    assert_eq!(page(&context, "istio_tcp_sent_bytes_total"), [""; 0]);
    let line = &page(&context, "istio_tcp_received_bytes_total")[0];
    assert!(line.contains("destination_port=\"") && !line.contains("source_app"), "{line}");
}
