//! What collectors of logs and spans are told, by the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use bytes::Bytes;
use http::{HeaderMap, Response};
use parking_lot::Mutex;
use prost::Message;
use sixfold_xds_api::pb::envoy::data::accesslog::v3::AccessLogType;
use sixfold_xds_api::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use sixfold_xds_api::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use sixfold_xds_api::pb::envoy::service::metrics::v3::StreamMetricsMessage;
use std::net::UdpSocket;
use std::sync::Arc;
use support::traffic::upstream;
use support::{Directory, Process, free_port, get, request};

/// The path of a call, and a message or the body.
type Call = (String, Vec<u8>);

/// What a collector was told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Call>>>);

impl Told {
    fn of(&self, path: &str) -> Vec<Vec<u8>> {
        let told = self.0.lock();
        told.iter().filter(|(known, _)| known == path).map(|(_, message)| message.clone()).collect()
    }
}

/// A service of gRPC that takes every message, and says so when the caller has ended.
fn grpc() -> (u16, Told) {
    let told = Told::default();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let keep = told.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let keep = keep.clone();
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(socket).await.unwrap();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(take(request, respond, keep.clone()));
                    }
                });
            }
        });
    });
    (port, told)
}

async fn take(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    keep: Told,
) {
    let path = request.uri().path().to_owned();
    let (mut body, mut bytes) = (request.into_body(), Vec::new());
    while let Some(Ok(piece)) = body.data().await {
        let _ = body.flow_control().release_capacity(piece.len());
        bytes.extend_from_slice(&piece);
        while bytes.len() >= 5 {
            let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            if bytes.len() < 5 + length {
                break;
            }
            keep.0.lock().push((path.clone(), bytes[5..5 + length].to_vec()));
            bytes.drain(..5 + length);
        }
    }
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let Ok(mut answer) = respond.send_response(head, false) else { return };
    let _ = answer.send_data(Bytes::from_static(&[0; 5]), false);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let _ = answer.send_trailers(trailers);
}

/// A service of HTTP/1 that takes every body.
fn http1() -> (u16, Told) {
    let told = Told::default();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, keep) = (listener.local_addr().unwrap().port(), told.clone());
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (socket, keep) = (socket.unwrap(), keep.clone());
            std::thread::spawn(move || serve(socket, &keep));
        }
    });
    (port, told)
}

fn serve(mut socket: std::net::TcpStream, keep: &Told) {
    use std::io::{Read, Write};
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let whole = end + 4 + length.unwrap_or(0);
            if bytes.len() >= whole {
                let path = head.split(' ').nth(1).unwrap().to_owned();
                keep.0.lock().push((path, bytes[end + 4..whole].to_vec()));
                bytes.drain(..whole);
                socket.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").unwrap();
                continue;
            }
        }
        match socket.read(&mut buffer) {
            Ok(n @ 1..) => bytes.extend_from_slice(&buffer[..n]),
            _ => return,
        }
    }
}

const API: &str = "type.googleapis.com/envoy";

struct Running {
    process: Process,
    port: u16,
    admin: u16,
    _directory: Directory,
}

/// A proxy before an upstream, with a log and tracing; `collector` is a cluster of one endpoint, of HTTP/2 or 1.
fn start(collector: u16, http2: bool, access_log: &str, tracing: &str) -> Running {
    start_with(collector, http2, access_log, tracing, "")
}

/// The same with `more` in the bootstrap.
fn start_with(collector: u16, http2: bool, access_log: &str, tracing: &str, more: &str) -> Running {
    let (admin, port, app) = (free_port(), free_port(), upstream());
    let address = |port: u16| format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
    let cluster = |name: &str, port: u16, options: &str| {
        let endpoint = format!("{{endpoint: {{address: {}}}}}", address(port));
        format!(
            "  - {{name: {name}, connect_timeout: 5s, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{endpoint}]}}]}}{options}}}\n"
        )
    };
    let options = match http2 {
        true => format!(
            ", typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{\"@type\": {API}.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{http2_protocol_options: {{}}}}}}}}"
        ),
        false => String::new(),
    };
    let route = "{match: {prefix: /}, name: first, decorator: {operation: op}, route: {cluster: app}}";
    let router = format!(
        "{{name: router, typed_config: {{\"@type\": {API}.extensions.filters.http.router.v3.Router}}}}"
    );
    let manager = format!(
        "{{\"@type\": {API}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: in, http_filters: [{router}], \
         route_config: {{virtual_hosts: [{{name: v, domains: [\"*\"], routes: [{route}]}}]}}, access_log: [{access_log}]{tracing}}}"
    );
    let text = format!(
        "{more}node: {{id: node-1, cluster: own}}\nadmin: {{address: {}}}\nstatic_resources:\n  listeners:\n  - {{name: in, address: {}, \
         filter_chains: [{{filters: [{{name: hcm, typed_config: {manager}}}]}}]}}\n  clusters:\n{}{}",
        address(admin),
        address(port),
        cluster("app", app, ""),
        cluster("collector", collector, &options),
    );
    let directory = Directory::new();
    let file = directory.write("envoy.yaml", &text);
    let mut process = Process::start(&["-c", &file, "--concurrency", "2", "--use-dynamic-base-id"]);
    process.until("readiness", || get(admin, "/ready").filter(|response| response.status == 200));
    Running { process, port, admin, _directory: directory }
}

const GRPC: &str = "grpc_service: {envoy_grpc: {cluster_name: collector}}";

#[test]
fn a_service_of_access_logs_gets_entries_over_one_stream() {
    let (collector, told) = grpc();
    let log = format!(
        "{{name: als, typed_config: {{\"@type\": {API}.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig, \
         common_config: {{log_name: mine, transport_api_version: V3, buffer_flush_interval: 0.05s, {GRPC}, \
         custom_tags: [{{tag: t, literal: {{value: fixed}}}}]}}, additional_request_headers_to_log: [x-a]}}}}"
    );
    let mut running = start(collector, true, &log, "");
    let messages = |running: &mut Running, count: usize| {
        assert_eq!(request(running.port, "GET", "/x?y", &["Host: a.test", "X-A: 1"]).unwrap().status, 200);
        running.process.until("entries", || {
            let told = told.of("/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs");
            (told.len() >= count).then_some(told)
        })
    };
    messages(&mut running, 1);
    let all = messages(&mut running, 2);
    let decoded = all.iter().map(|bytes| StreamAccessLogsMessage::decode(bytes.as_slice()).unwrap());
    let decoded: Vec<_> = decoded.collect();
    let identifier = decoded[0].identifier.as_ref().unwrap();
    assert_eq!(
        (identifier.log_name.as_str(), identifier.node.as_ref().unwrap().id.as_str()),
        ("mine", "node-1")
    );
    assert!(decoded[1].identifier.is_none(), "only the first message of a stream says who sends");
    let Some(LogEntries::HttpLogs(logs)) = &decoded[1].log_entries else { panic!("no entries of requests") };
    let entry = &logs.log_entry[0];
    let (asked, common) = (entry.request.as_ref().unwrap(), entry.common_properties.as_ref().unwrap());
    assert_eq!((asked.path.as_str(), asked.authority.as_str()), ("/x?y", "a.test"));
    assert_eq!((asked.request_headers["x-a"].as_str(), common.custom_tags["t"].as_str()), ("1", "fixed"));
    assert_eq!((common.route_name.as_str(), common.upstream_cluster.as_str()), ("first", "app"));
    assert_eq!(common.access_log_type, AccessLogType::DownstreamEnd as i32);
    assert!(common.duration.is_some() && common.upstream_remote_address.is_some());
    let response = entry.response.as_ref().unwrap();
    assert_eq!((response.response_code.unwrap().value, response.response_body_bytes), (200, 2));
    let admin = running.admin;
    running.process.until("counts", || {
        let text = get(admin, "/stats?filter=grpc_access_log.logs_written").unwrap().body;
        (text == "access_logs.grpc_access_log.logs_written: 2\n").then_some(())
    });
}

/// Whether encoded bytes hold a text.
fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_collector_of_open_telemetry_gets_logs_and_spans() {
    let (collector, told) = grpc();
    let log = format!(
        "{{name: otel, typed_config: {{\"@type\": {API}.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig, \
         common_config: {{log_name: mine, buffer_flush_interval: 0.05s, {GRPC}}}, body: {{string_value: \"%REQ(:PATH)% %RESPONSE_CODE%\"}}, \
         attributes: {{values: [{{key: code, value: {{string_value: \"c%RESPONSE_CODE%\"}}}}]}}}}}}"
    );
    let tracing = format!(
        ", tracing: {{spawn_upstream_span: true, provider: {{name: o, typed_config: {{\"@type\": {API}.config.trace.v3.OpenTelemetryConfig, {GRPC}, service_name: mine.ns}}}}}}"
    );
    let mut running = start(collector, true, &log, &tracing);
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = ["Host: a.test", &format!("traceparent: {parent}")];
    assert_eq!(request(running.port, "GET", "/p", &headers).unwrap().status, 200);
    let path = |path: &str| format!("/opentelemetry.proto.collector.{path}/Export");
    let logs = running.process.until("logs", || told.of(&path("logs.v1.LogsService")).pop());
    assert!(holds(&logs, "/p 200") && holds(&logs, "c200") && holds(&logs, "log_name"));
    // Both may come by themselves.
    let trace = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes();
    let count = |bytes: &[u8]| bytes.windows(16).filter(|window| **window == trace).count();
    let spans = running.process.until("the span and one of what went upstream", || {
        let spans = told.of(&path("trace.v1.TraceService")).concat();
        (count(&spans) == 2).then_some(spans)
    });
    for text in ["service.name", "mine.ns", "op", "http.status_code", "http://a.test/p"] {
        assert!(holds(&spans, text), "{text}");
    }
    assert_ne!(count(&logs), 0);
}

#[test]
fn a_collector_of_zipkin_gets_what_is_sampled() {
    let (collector, told) = http1();
    let tracing = format!(
        ", tracing: {{custom_tags: [{{tag: who, request_header: {{name: x-user, default_value: none}}}}], provider: {{name: z, typed_config: {{\"@type\": \
         {API}.config.trace.v3.ZipkinConfig, collector_cluster: collector, collector_endpoint: /api/v2/spans, collector_endpoint_version: HTTP_JSON, trace_id_128bit: true}}}}}}"
    );
    let mut running = start(collector, false, "", &tracing);
    let own = ["Host: a.test", "x-user: bob"];
    let trace = "x-b3-traceid: 463ac35c9f6413ad48485a3953bb6124";
    let unsampled = [&own[..], &[trace, "x-b3-spanid: a2fb4a1d1a96d312", "x-b3-sampled: 0"]].concat();
    assert_eq!(request(running.port, "GET", "/z", &unsampled).unwrap().status, 200);
    assert_eq!(request(running.port, "GET", "/z", &own).unwrap().status, 200);
    let body = running.process.until("spans", || told.of("/api/v2/spans").pop());
    let spans: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(spans.as_array().unwrap().len(), 1, "{spans}");
    let span = &spans[0];
    assert_eq!((&span["kind"], &span["name"]), (&"SERVER".into(), &"op".into()));
    assert_eq!(span["traceId"].as_str().unwrap().len(), 32);
    assert_eq!(span["localEndpoint"]["serviceName"], "own");
    assert_eq!((&span["tags"]["who"], &span["tags"]["http.status_code"]), (&"bob".into(), &"200".into()));
    assert_eq!(span["tags"]["http.url"], "http://a.test/z");
}

/// What has come to a socket of datagrams so far, until it holds a line.
fn lines_until(socket: &UdpSocket, wanted: &str) -> Vec<String> {
    let (mut lines, mut buffer) = (Vec::new(), [0; 2048]);
    while !lines.iter().any(|line| line == wanted) {
        let n = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no {wanted}: {error}; {lines:?}"));
        lines.extend(String::from_utf8_lossy(&buffer[..n]).lines().map(str::to_owned));
    }
    lines
}

#[test]
fn services_are_told_how_statistics_have_changed() {
    let (collector, told) = grpc();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(support::LIMIT)).unwrap();
    let sink = |kind: &str, fields: &str| {
        format!("- {{name: s, typed_config: {{\"@type\": type.googleapis.com/envoy.{kind}, {fields}}}}}\n")
    };
    let port = socket.local_addr().unwrap().port();
    let dog = format!(
        "address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, max_bytes_per_datagram: 1400"
    );
    let more = [
        "stats_flush_interval: 0.05s\nstats_sinks:\n",
        &sink("config.metrics.v3.DogStatsdSink", &dog),
        &sink("extensions.stat_sinks.open_telemetry.v3.SinkConfig", &format!("{GRPC}, prefix: own")),
        &sink("config.metrics.v3.MetricsServiceConfig", &format!("{GRPC}, emit_tags_as_labels: true")),
    ];
    let mut running = start_with(collector, true, "", "", &more.concat());
    assert_eq!(get(running.port, "/").unwrap().status, 200);
    let tags = "|c|#envoy.http_conn_manager_prefix:in";
    lines_until(&socket, &format!("envoy.http.downstream_rq_total:1{tags}"));
    // What is looked up when somebody wants to know it.
    let mut lines = lines_until(&socket, "envoy.server.concurrency:2|g");
    lines.extend(lines_until(&socket, &format!("envoy.http.downstream_rq_total:0{tags}")));
    assert!(!lines.contains(&format!("envoy.http.downstream_rq_total:1{tags}")), "it is told once");
    running.process.until("metrics of OpenTelemetry", || {
        let told = told.of("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export");
        told.iter().any(|message| holds(message, "own.http.downstream_rq_total")).then_some(())
    });
    let messages = running.process.until("metrics of Envoy's service", || {
        let told = told.of("/envoy.service.metrics.v3.MetricsService/StreamMetrics");
        (told.len() > 1 && told.iter().any(|message| holds(message, "http.downstream_rq_total")))
            .then_some(told)
    });
    let messages = messages.iter().map(|bytes| StreamMetricsMessage::decode(bytes.as_slice()).unwrap());
    let messages: Vec<_> = messages.collect();
    let of = |message: &StreamMetricsMessage| message.identifier.clone().map(|of| of.node.unwrap().id);
    assert_eq!(of(&messages[0]).as_deref(), Some("node-1"));
    assert_eq!(of(&messages[1]), None, "only the first message of a stream says who sends");
    let families = messages.iter().flat_map(|message| &message.envoy_metrics);
    let mut requests = families.filter(|family| family.name() == "http.downstream_rq_total");
    let metric = &requests.next().unwrap().metric[0];
    assert_eq!((metric.label[0].name(), metric.label[0].value()), ("envoy.http_conn_manager_prefix", "in"));
    assert!(metric.counter.is_some() && metric.timestamp_ms() > 0);
}

/// A collector that is not there costs what is told to it and nothing else.
#[test]
fn a_collector_that_is_gone_holds_up_nobody() {
    let log = format!(
        "{{name: als, typed_config: {{\"@type\": {API}.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig, \
         common_config: {{log_name: mine, buffer_flush_interval: 0.05s, {GRPC}}}}}}}"
    );
    let mut running = start(free_port(), true, &log, "");
    for _ in 0..20 {
        assert_eq!(get(running.port, "/").unwrap().status, 200);
    }
    let admin = running.admin;
    running.process.until("counts of what is lost", || {
        let text = get(admin, "/stats?filter=grpc_access_log.logs_dropped").unwrap().body;
        text.trim().rsplit(' ').next()?.parse::<u64>().ok().filter(|lost| *lost >= 20)
    });
}
