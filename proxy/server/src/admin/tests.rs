#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use sixfold_core::cluster::{Address, HostConfig};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

#[derive(Default)]
struct Calls {
    failed: AtomicUsize,
    quits: AtomicUsize,
    drains: Mutex<Vec<(bool, bool)>>,
}

impl Control for Calls {
    fn listeners(&self) -> Vec<ListenerStatus> {
        vec![ListenerStatus { name: "in".into(), addresses: vec!["127.0.0.1:80".parse().unwrap()] }]
    }
    fn certificates(&self) -> Vec<CertificateStatus> {
        vec![CertificateStatus {
            path: "a.crt".into(),
            serial: "0a".into(),
            names: vec![("dns", "a.test".into())],
            not_before: 0,
            not_after: 1_700_000_000,
        }]
    }
    fn config_dump(&self) -> Vec<serde_json::Value> {
        vec![serde_json::json!({"static_clusters": [{"cluster": {"name": "a"}}, {"cluster": {"name": "b"}}]})]
    }
    fn fail_health_checks(&self, fail: bool) {
        self.failed.store(fail.into(), SeqCst);
    }
    fn drain_listeners(&self, graceful: bool, inbound_only: bool) {
        self.drains.lock().push((graceful, inbound_only));
    }
    fn quit(&self) {
        self.quits.fetch_add(1, SeqCst);
    }
    fn reopen_logs(&self) {}
    fn set_log_levels(&self, levels: &[(Option<String>, String)]) -> Result<Vec<(String, String)>, String> {
        match levels {
            [(_, level)] if level == "loud" => Err("unknown logger level".into()),
            levels => {
                Ok(levels.iter().map(|(n, l)| (n.clone().unwrap_or("all".into()), l.clone())).collect())
            }
        }
    }
}

struct Server {
    surface: Surface,
    calls: Arc<Calls>,
    lifecycle: Lifecycle,
    _cluster: Arc<sixfold_core::cluster::Cluster>,
}

fn server() -> Server {
    let (calls, lifecycle, clusters) =
        (Arc::new(Calls::default()), Lifecycle::default(), Arc::<Clusters>::default());
    let metrics = Registry::new();
    let mut config = sixfold_core::cluster::ClusterConfig::named("one");
    config.added_via_api = false;
    let host = HostConfig::new(Address::Ip("127.0.0.1:9".parse().unwrap()));
    let cluster = sixfold_core::cluster::Cluster::new(config, vec![host], None, &metrics).unwrap();
    clusters.cell("one").swap(Some(cluster.clone()));
    cluster.stats.responses().count(200);
    let admin = Admin {
        statistics: Statistics::new(&metrics),
        metrics,
        tags: Arc::default(),
        hosts: vec!["admin.test".to_owned()],
        clusters,
        lifecycle: lifecycle.clone(),
        started: Instant::now(),
        info: ServerInfo { version: "v".into(), ..ServerInfo::default() },
        concurrency: 2,
        control: calls.clone(),
        failed_from: Mutex::default(),
        access_logs: Vec::new(),
    };
    let surface = admin.start("127.0.0.1:0".parse().unwrap()).unwrap();
    Server { surface, calls, lifecycle, _cluster: cluster }
}

impl Server {
    /// Status, headers in lower case, body with its chunks joined.
    fn ask(&self, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.surface.address).unwrap();
        let (line, headers) = request.split_once('\n').unwrap_or((request, ""));
        let headers = headers.replace('\n', "\r\n");
        let host = if headers.contains("Host: ") { "" } else { "Host: localhost\r\n" };
        write!(stream, "{line} HTTP/1.1\r\n{host}Connection: close\r\n{headers}\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, mut rest) = text.split_once("\r\n\r\n").unwrap();
        let mut body = String::new();
        while let Some((size, after)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            body.push_str(&after[..size]);
            rest = after.get(size + 2..).unwrap_or_default();
        }
        (head[9..12].parse().unwrap(), head.to_ascii_lowercase(), body)
    }
}

#[test]
fn ready_has_envoys_words_and_headers() {
    let server = server();
    assert_eq!(server.ask("GET /ready").2, "PRE_INITIALIZING\n");
    server.lifecycle.set(State::Live);
    let (status, head, body) = server.ask("GET /ready");
    assert_eq!((status, body.as_str()), (200, "LIVE\n"));
    for header in [
        "cache-control: no-cache, max-age=0",
        "content-type: text/plain; charset=utf-8",
        "server: envoy",
        "transfer-encoding: chunked",
        "x-content-type-options: nosniff",
    ] {
        assert!(head.contains(header), "{header} is not in {head}");
    }
    // hyper leaves `transfer-encoding` out of answers to HEAD; Envoy does not.
    let (status, _, body) = server.ask("HEAD /ready");
    assert_eq!((status, body.as_str()), (200, ""));
}

#[test]
fn wrong_paths_methods_and_origins() {
    let server = server();
    let (status, _, body) = server.ask("GET /nope");
    assert_eq!(status, 404);
    assert!(body.starts_with("invalid path. admin commands are:\n  /: "), "{body}");
    let (status, _, body) = server.ask("GET /quitquitquit");
    assert_eq!((status, body.as_str()), (405, "Method GET not allowed, POST required."));
    assert_eq!(server.ask("POST /quitquitquit\nOrigin: http://evil.test\n").0, 403);
    assert_eq!(server.calls.quits.load(SeqCst), 0);
    assert_eq!(server.ask("POST /quitquitquit\nOrigin: http://localhost\n").0, 200);
    assert_eq!(server.calls.quits.load(SeqCst), 1);
    assert_eq!((server.ask("GET /").0, server.ask("GET /").2), (200, server.ask("GET /help").2));
}

/// A page whose name points to 127.0.0.1 has the same Host and Origin, and could read and command everything.
#[test]
fn only_names_of_the_operator_are_hosts() {
    let server = server();
    for host in [
        "127.0.0.1:15000",
        "[::1]:15000",
        "[::1]",
        "10.0.0.1",
        "LOCALHOST:1",
        "admin.test",
        "admin.test:15000",
    ] {
        assert_eq!(server.ask(&format!("GET /config_dump\nHost: {host}\n")).0, 200, "{host}");
    }
    for host in
        ["evil.test", "evil.test:15000", "localhost.evil.test", "127.0.0.1.evil.test", "", "[evil]", "a:b"]
    {
        assert_eq!(server.ask(&format!("GET /config_dump\nHost: {host}\n")).0, 403, "{host}");
    }
    let evil = "Host: evil.test\nOrigin: http://evil.test\n";
    assert_eq!(server.ask(&format!("GET /config_dump\n{evil}")).0, 403);
    assert_eq!(server.ask(&format!("POST /quitquitquit\n{evil}")).0, 403);
    assert_eq!(server.calls.quits.load(SeqCst), 0);
    // A monitor finds the proxy by a name of its own, and has no Origin.
    for path in ["/ready", "/stats", "/stats/prometheus"] {
        assert_ne!(server.ask(&format!("GET {path}\nHost: pod.svc.test\n")).0, 403, "{path}");
        assert_eq!(server.ask(&format!("GET {path}\n{evil}")).0, 403, "{path}");
    }
}

#[test]
fn health_checks_fail_and_recover() {
    let server = server();
    server.lifecycle.set(State::Live);
    assert_eq!(server.ask("POST /healthcheck/fail").2, "OK\n");
    assert_eq!((server.ask("GET /ready").0, server.ask("GET /ready").2), (503, "DRAINING\n".into()));
    assert_eq!(server.calls.failed.load(SeqCst), 1);
    assert_eq!(server.ask("POST /healthcheck/ok").2, "OK\n");
    assert_eq!(server.ask("GET /ready").0, 200);
    server.ask("POST /drain_listeners?graceful&inboundonly");
    assert_eq!(*server.calls.drains.lock(), [(true, true)]);
}

#[test]
fn clusters_listeners_and_certificates() {
    let server = server();
    let text = server.ask("GET /clusters").2;
    for line in [
        "one::observability_name::one",
        "one::default_priority::max_connections::1024",
        "one::high_priority::max_retries::3",
        "one::added_via_api::false",
        "one::127.0.0.1:9::health_flags::healthy",
        "one::127.0.0.1:9::weight::1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
    let json: serde_json::Value = serde_json::from_str(&server.ask("GET /clusters?format=json").2).unwrap();
    assert_eq!(json["cluster_statuses"][0]["host_statuses"][0]["address"]["socket_address"]["port_value"], 9);
    assert_eq!(server.ask("GET /listeners").2, "in::127.0.0.1:80\n");
    let json: serde_json::Value = serde_json::from_str(&server.ask("GET /listeners?format=json").2).unwrap();
    assert_eq!(json["listener_statuses"][0]["local_address"]["socket_address"]["address"], "127.0.0.1");
    let json: serde_json::Value = serde_json::from_str(&server.ask("GET /certs").2).unwrap();
    assert_eq!(json["certificates"][0]["cert_chain"][0]["expiration_time"], "2023-11-14T22:13:20Z");
}

#[test]
fn statistics_in_every_form() {
    let server = server();
    let text = server.ask("GET /stats?filter=^cluster%5C.one.*rq_2").2;
    assert_eq!(text, "cluster.one.upstream_rq_200: 1\ncluster.one.upstream_rq_2xx: 1\n");
    let used = server.ask("GET /stats?usedonly&filter=server").2;
    assert!(used.contains("server.concurrency: 2\n") && used.contains("server.live: 0\n"), "{used}");
    assert!(server.ask("GET /stats?format=json&filter=rq_200").2.contains("\"cluster.one.upstream_rq_200\""));
    let prometheus = server.ask("GET /stats/prometheus").2;
    assert!(
        prometheus.contains(
            "envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"one\"} 1\n"
        )
    );
    assert!(prometheus.contains("envoy_server_live{} 0\n"), "{prometheus}");
    assert_eq!(server.ask("GET /stats?filter=(").0, 400);
    assert_eq!(server.ask("POST /reset_counters").2, "OK\n");
    assert_eq!(server.ask("GET /stats?usedonly&filter=rq_200").2, "");
}

#[test]
fn server_info_logging_and_dump() {
    let server = server();
    let info: serde_json::Value = serde_json::from_str(&server.ask("GET /server_info").2).unwrap();
    assert_eq!((&info["version"], &info["state"]), (&"v".into(), &"PRE_INITIALIZING".into()));
    assert_eq!(server.ask("POST /logging?level=debug").2, "active loggers:\n  all: debug\n\n");
    assert_eq!(
        server.ask("POST /logging?paths=http:info,tls:warn").2,
        "active loggers:\n  http: info\n  tls: warn\n\n"
    );
    assert_eq!(server.ask("POST /logging?level=loud").0, 400);
    let dump: serde_json::Value =
        serde_json::from_str(&server.ask("GET /config_dump?name_regex=^b$").2).unwrap();
    assert_eq!(dump["configs"][0]["static_clusters"], serde_json::json!([{"cluster": {"name": "b"}}]));
    let dump: serde_json::Value =
        serde_json::from_str(&server.ask("GET /config_dump?resource=static_clusters").2).unwrap();
    assert_eq!(dump["configs"].as_array().unwrap().len(), 2);
    assert_eq!(server.ask("GET /config_dump?resource=nope").0, 404);
    for path in ["memory", "runtime", "hot_restart_version"] {
        assert_eq!(server.ask(&format!("GET /{path}")).0, 200);
    }
}
