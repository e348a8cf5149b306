#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::inheritance::Inheritance;
use parking_lot::Mutex;
use sixfold_core::cluster::{Address, HostConfig};
use sixfold_core::listener::ListenerStats;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

#[derive(Default)]
struct Calls {
    failed: AtomicUsize,
    quits: AtomicUsize,
    has_admin_layer: AtomicBool,
    drains: Mutex<Vec<(bool, bool, bool)>>,
}

impl Control for Calls {
    fn listeners(&self) -> Vec<ListenerStatus> {
        vec![ListenerStatus { name: "in".into(), addresses: vec!["127.0.0.1:80".parse().unwrap()] }]
    }
    fn certificates(&self) -> Vec<ContextCertificates> {
        let own = vec![CertificateStatus {
            path: "a.crt".into(),
            serial: "0a".into(),
            names: vec![("dns", "a.test".into())],
            not_before: 0,
            not_after: 1_700_000_000,
        }];
        let authority = CertificateStatus { path: "ca.pem".into(), ..own[0].clone() };
        vec![ContextCertificates { authority: Some(authority), own }]
    }
    fn first_expiry(&self) -> Option<i64> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Some(now.as_secs() as i64 + 9 * 86_400 + 60)
    }
    fn config_dump(&self, request: DumpRequest) -> Result<WriteBody, (StatusCode, String)> {
        let DumpRequest { resource, mask, name_regex, include_eds } = request;
        if resource.as_deref() == Some("nope") {
            return Err((StatusCode::NOT_FOUND, "nope not found in config dump".to_owned()));
        }
        Ok(Box::new(move |out| write!(out, "{resource:?} {mask:?} {name_regex:?} {include_eds}")))
    }
    fn fail_health_checks(&self, fail: bool) {
        self.failed.store(fail.into(), SeqCst);
    }
    fn drain_listeners(&self, keep_open: bool, keep_for_good: bool, inbound_only: bool) {
        self.drains.lock().push((keep_open, keep_for_good, inbound_only));
    }
    fn waiting(&self) -> WarmingNames {
        WarmingNames { clusters: ["c".into()].into(), listeners: ["l".into()].into() }
    }
    fn runtime(&self) -> Vec<RuntimeLayer> {
        let layer = |name: &str, values: &[(&str, &str)]| RuntimeLayer {
            name: name.to_owned(),
            values: values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            is_admin: false,
        };
        let admin = RuntimeLayer { is_admin: true, ..layer("u", &[]) };
        let layers = [layer("s", &[("a", "1"), ("b", "true")]), layer("t", &[("a", "2")])];
        layers.into_iter().chain(self.has_admin_layer.load(SeqCst).then_some(admin)).collect()
    }
    fn quit(&self) {
        self.quits.fetch_add(1, SeqCst);
    }
    fn reopen_logs(&self) {}
    fn set_log_levels(&self, levels: &[(Option<String>, String)]) -> Result<Vec<(String, String)>, String> {
        match levels {
            [(Some(name), _), ..] if name == "nope" => Err("unknown logger name".into()),
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
    cluster: Arc<sixfold_core::cluster::Cluster>,
    of_listeners: [ListenerStats; 2],
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
    let of_listeners = ["a", "b"].map(|name| ListenerStats::new(&metrics, &format!("listener.{name}.")));
    let admin = Arc::new(Admin {
        statistics: Statistics::new(&metrics),
        metrics,
        tags: Arc::default(),
        hosts: vec!["admin.example.com".to_owned()],
        clusters,
        lifecycle: lifecycle.clone(),
        started: Instant::now(),
        info: ServerInfo { version: "v".into(), ..ServerInfo::default() },
        concurrency: 2,
        control: calls.clone(),
        access_logs: Vec::new(),
        flushes: OnceLock::new(),
    });
    let surface = admin.start("127.0.0.1:0".parse().unwrap(), &Inheritance::default()).unwrap();
    Server { surface, calls, lifecycle, cluster, of_listeners }
}

impl Server {
    /// Status, headers in lower case, body with its chunks joined.
    fn ask(&self, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.surface.address).unwrap();
        let (line, headers) = request.split_once('\n').unwrap_or((request, ""));
        let (headers, sent) = headers.split_once("\n\n").unwrap_or((headers, ""));
        let mut headers = headers.replace('\n', "\r\n");
        headers.push_str(if sent.is_empty() { "" } else { "\r\n" });
        let host = if headers.contains("Host: ") { "" } else { "Host: localhost\r\n" };
        write!(stream, "{line} HTTP/1.1\r\n{host}Connection: close\r\n{headers}\r\n{sent}").unwrap();
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
    let mut stream = TcpStream::connect(server.surface.address).unwrap();
    let mut text = String::new();
    for (method, connection) in [("HEAD", "keep-alive"), ("HEAD", "close")] {
        write!(stream, "{method} /ready HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n\r\n")
            .unwrap();
    }
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{text}");
    assert!(text.contains("transfer-encoding: chunked\r\n") && text.ends_with("\r\n\r\n"), "{text}");
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
    let (status, head, page) = server.ask("GET /");
    assert!(status == 200 && head.contains("content-type: text/html"), "{head}");
    assert!(page.contains("<a href=\"stats/prometheus\">/stats/prometheus</a>"), "{page}");
    assert!(page.contains("<form action=\"quitquitquit\" method=\"post\">"), "{page}");
    let help = server.ask("GET /help").2;
    assert!(help.contains("\n  /quitquitquit (POST): ") && help.contains("\n      include_eds: "), "{help}");
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
        "admin.example.com",
        "admin.example.com:15000",
        // Nobody can own these, so no page has them.
        "gateway:15000",
        "gateway.mesh.svc.cluster.local",
        "gateway.mesh.svc",
        "host.internal.",
        "oracle.test",
    ] {
        assert_eq!(server.ask(&format!("GET /config_dump\nHost: {host}\n")).0, 200, "{host}");
    }
    for host in [
        "evil.example.com",
        "evil.example.com:15000",
        "localhost.evil.com",
        "127.0.0.1.evil.com",
        "test.evil.com",
        "evil..test",
        "",
        ".",
        "[evil]",
        "a:b",
    ] {
        assert_eq!(server.ask(&format!("GET /config_dump\nHost: {host}\n")).0, 403, "{host}");
    }
    let evil = "Host: evil.test\nOrigin: http://evil.test\n";
    assert_eq!(server.ask(&format!("GET /config_dump\n{evil}")).0, 403);
    assert_eq!(server.ask(&format!("POST /quitquitquit\n{evil}")).0, 403);
    assert_eq!(server.calls.quits.load(SeqCst), 0);
    for of_a_page in ["Referer: http://evil.test/", "Sec-Fetch-Site: same-origin"] {
        assert_eq!(server.ask(&format!("GET /config_dump\nHost: evil.test\n{of_a_page}\n")).0, 403);
    }
    // A monitor finds the proxy by a name of its own, and has no Origin.
    for path in ["/ready", "/stats", "/stats/prometheus"] {
        assert_ne!(server.ask(&format!("GET {path}\nHost: pod.example.com\n")).0, 403, "{path}");
        assert_eq!(server.ask(&format!("GET {path}\n{evil}")).0, 403, "{path}");
    }
}

#[test]
fn health_checks_fail_and_recover() {
    let server = server();
    // A start that ended after it made the process live, whatever had been said.
    server.lifecycle.set(State::Initializing);
    assert_eq!(server.ask("POST /healthcheck/fail").2, "OK\n");
    assert_eq!(server.ask("GET /ready").2, "INITIALIZING\n");
    server.lifecycle.set(State::Live);
    assert_eq!((server.ask("GET /ready").0, server.ask("GET /ready").2), (503, "DRAINING\n".into()));
    assert_eq!(server.calls.failed.load(SeqCst), 1);
    assert_eq!(server.ask("POST /healthcheck/ok").2, "OK\n");
    assert_eq!(server.ask("GET /ready").0, 200);
    server.ask("POST /drain_listeners?graceful&inboundonly");
    server.ask("POST /drain_listeners?skip_exit");
    server.ask("POST /drain_listeners");
    let drains = [(true, false, true), (true, true, false), (false, false, false)];
    assert_eq!(*server.calls.drains.lock(), drains);
    // A form that can't be read asked for what it might have said otherwise.
    let form = format!("graceful&skip_exit={}", "x".repeat(64 << 10));
    let kind = "Content-Type: application/x-www-form-urlencoded";
    for length in [form.len(), 70_000] {
        let request = format!("POST /drain_listeners\n{kind}\nContent-Length: {length}\n\n{form}");
        assert_eq!(server.ask(&request).0, 400);
    }
    assert_eq!(*server.calls.drains.lock(), drains);
    // What comes with another method is no form.
    let body = "filter=nothing_is_called_so";
    let of = |method: &str| {
        let length = body.len();
        server.ask(&format!("{method} /stats\n{kind}\nContent-Length: {length}\n\n{body}")).2
    };
    assert!(of("POST").is_empty() && of("GET").contains("server.live: "));
}

#[test]
fn clusters_listeners_and_certificates() {
    let server = server();
    let set = server.cluster.hosts.load_full();
    let host = &set.iter().next().unwrap().host;
    host.timed_out_requests.store(3, SeqCst);
    host.pending_requests.store(2, SeqCst);
    let text = server.ask("GET /clusters").2;
    for line in [
        "one::observability_name::one",
        "one::default_priority::max_connections::1024",
        "one::high_priority::max_retries::3",
        "one::added_via_api::false",
        "one::127.0.0.1:9::health_flags::healthy",
        "one::127.0.0.1:9::weight::1",
        "one::127.0.0.1:9::rq_timeout::3",
        "one::127.0.0.1:9::rq_pending_active::2",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
    assert_eq!(server.ask("GET /clusters?filter=two").2, "");
    let (status, _, body) = server.ask("GET /clusters?filter=(");
    assert_eq!((status, body.as_str()), (400, "Invalid re2 regex"));
    let json: serde_json::Value = serde_json::from_str(&server.ask("GET /clusters?format=json").2).unwrap();
    assert_eq!(
        json["cluster_statuses"][0]["host_statuses"][0]["stats"][0],
        serde_json::json!({"name": "cx_active", "type": "GAUGE"})
    );
    assert_eq!(json["cluster_statuses"][0]["circuit_breakers"]["thresholds"][0].get("priority"), None);
    assert_eq!(json["cluster_statuses"][0]["host_statuses"][0]["address"]["socket_address"]["port_value"], 9);
    assert_eq!(server.ask("GET /listeners").2, "in::127.0.0.1:80\n");
    let json: serde_json::Value = serde_json::from_str(&server.ask("GET /listeners?format=json").2).unwrap();
    assert_eq!(json["listener_statuses"][0]["local_address"]["socket_address"]["address"], "127.0.0.1");
    let json: serde_json::Value = serde_json::from_str(&server.ask("GET /certs").2).unwrap();
    assert_eq!(json["certificates"][0]["cert_chain"][0]["expiration_time"], "2023-11-14T22:13:20Z");
    assert_eq!(json["certificates"][0]["ca_cert"][0]["path"], "ca.pem");
}

#[test]
fn statistics_in_every_form() {
    let server = server();
    for active in server.of_listeners.iter() {
        active.downstream_cx_active().inc();
    }
    let text = server.ask("GET /stats?filter=^server%5C.(days|total)").2;
    assert_eq!(text, "server.days_until_first_cert_expiring: 9\nserver.total_connections: 2\n");
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
    for (query, reason) in [
        ("filter=(", "Invalid re2 regex: "),
        ("type=bogus", "invalid &type= param"),
        ("format=bogus", "usage: /stats?format=(json|prometheus|text)\n\n"),
        (
            "histogram_buckets=bogus",
            "usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary)\n",
        ),
    ] {
        let (status, _, body) = server.ask(&format!("GET /stats?{query}"));
        assert!(status == 400 && body.starts_with(reason), "{body}");
    }
    let gauges = server.ask("GET /stats?filter=^server&type=gauges").2;
    assert!(gauges.contains("server.live: 0\n"), "{gauges}");
    let counters = server.ask("GET /stats?filter=^server&type=Counters").2;
    assert!(counters.contains("server.envoy_bug_failures: 0\n") && !counters.contains("live"), "{counters}");
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
        server.ask("POST /logging?paths=http:info,tls:warning").2,
        "active loggers:\n  http: info\n  tls: warning\n\n"
    );
    assert_eq!(server.ask("POST /logging").2, "active loggers:\n\n");
    for (query, reason) in [
        ("level=loud", "unknown logger level"),
        ("paths=http:loud", "unknown logger level"),
        ("paths=http", "empty logger name or empty logger level"),
        ("nope=debug", "unknown logger name"),
        ("http=debug&tls=info", "invalid number of parameters"),
    ] {
        let (status, _, body) = server.ask(&format!("POST /logging?{query}"));
        assert_eq!(status, 400, "{query}");
        assert!(body.starts_with(&format!("error: {reason}\n\nusage: /logging?<name>=<level> ")), "{body}");
        assert!(
            body.contains("\nlevels: trace debug info warning error critical off \nactive loggers:\n"),
            "{body}"
        );
    }
    let (status, head, body) = server.ask("GET /config_dump?resource=r&mask=a,b&name_regex=^b$&include_eds");
    assert_eq!((status, body.as_str()), (200, "Some(\"r\") Some(\"a,b\") Some(Regex(\"^(?:^b$)$\")) true"));
    assert!(head.contains("content-type: application/json"), "{head}");
    assert_eq!(server.ask("GET /config_dump?resource=&mask=").2, "None None None false");
    let (status, _, body) = server.ask("GET /config_dump?name_regex=(");
    assert_eq!(status, 400);
    assert!(body.starts_with("INVALID_ARGUMENT: Error while parsing name_regex from (: "), "{body}");
    let (status, head, body) = server.ask("GET /config_dump?resource=nope");
    assert_eq!((status, body.as_str()), (404, "nope not found in config dump"));
    assert!(head.contains("content-type: text/plain\r"), "{head}");
    for path in ["memory", "contention", "hot_restart_version", "stats/recentlookups"] {
        assert_eq!(server.ask(&format!("GET /{path}")).0, 200);
    }
}

#[test]
fn runtime_and_what_is_waited_for() {
    let server = server();
    let json = |path: &str| -> serde_json::Value { serde_json::from_str(&server.ask(path).2).unwrap() };
    let entries = serde_json::json!({
        "a": {"layer_values": ["1", "2"], "final_value": "2"},
        "b": {"layer_values": ["true", ""], "final_value": "true"},
    });
    assert_eq!(json("GET /runtime"), serde_json::json!({"layers": ["s", "t"], "entries": entries}));
    assert_eq!(server.ask("GET /runtime_modify?a=1").0, 405);
    assert!(server.ask("POST /runtime_modify").2.starts_with("usage: /runtime_modify?key1=value1"));
    // As Envoy answers without an admin layer, also to what curl sends with `-d`, for which the usage was the answer.
    let form =
        "POST /runtime_modify\nContent-Type: application/x-www-form-urlencoded\nContent-Length: 3\n\na=1";
    for request in ["POST /runtime_modify?a=1", form] {
        let (status, _, body) = server.ask(request);
        assert_eq!((status, &*body), (503, "No admin layer specified"), "{request}");
    }
    server.calls.has_admin_layer.store(true, SeqCst);
    let (status, _, body) = server.ask("POST /runtime_modify?a=1");
    assert!(status == 503 && body.contains("can't be changed while the process runs"), "{body}");
    server.calls.has_admin_layer.store(false, SeqCst);
    let dumps = |name: &str, targets: &[&str]| serde_json::json!({"unready_targets_dumps": [{"name": name, "target_names": targets}]});
    let all = ["target Cluster-init-target c", "target Listener-init-target l"];
    assert_eq!(json("GET /init_dump"), dumps("init manager Server", &all));
    assert_eq!(json("GET /init_dump?mask=listener"), dumps("init manager Listener", &all[1..]));
    assert_eq!(json("GET /init_dump?mask=x"), serde_json::json!({}));
}
