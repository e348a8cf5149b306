//! From one sidecar to another over mutual TLS, in the shapes that istiod gives both: what a request costs the two of
//! them together.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::envoy::{EXTENSIONS, address};
use super::load;
use super::measure::Bench;
use super::peers::{Peer, with_bootstrap};
use super::procfs;
use super::stats::Estimate;
use crate::process::{Background, free_port, output, root};

/// Istio's access log.
const LOG_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% \
     %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% \
     %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
     \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% \
     %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";
const SERVER_NAME: &str = "outbound_.9080_._.server.default.svc.cluster.local";

/// What a pair of sidecars took.
#[derive(Debug)]
pub(super) struct Sidecars {
    pub peer: Peer,
    /// CPU microseconds a request of both
    pub cpu: Estimate,
    /// Requests a second through both, on one core
    pub rate: Estimate,
    /// Ours divided by this peer's CPU a request, turn by turn
    pub ratio: Estimate,
    /// Resident megabytes of both after the last request
    pub resident: f64,
}

/// The sidecar of a client and that of a server.
struct Pair {
    peer: Peer,
    port: u16,
    processes: [Background; 2],
    turns: Vec<(f64, f64)>,
}

/// Where the certificates of the two are.
struct Identities {
    authority: PathBuf,
    client: PathBuf,
    server: PathBuf,
}

/// # Errors
/// A sidecar does not start, or a request fails.
pub(super) fn measure(bench: &Bench<'_>, peers: &[Peer]) -> Result<Vec<Sidecars>> {
    let identities = Identities::make(bench.dir)?;
    let peers = [Peer::Sixfold, Peer::Envoy].into_iter().filter(|peer| peers.contains(peer));
    let mut pairs = peers.map(|peer| Pair::start(bench, peer, &identities)).collect::<Result<Vec<_>>>()?;
    for _ in 0..bench.effort.rounds {
        for pair in &mut pairs {
            let before = pair.cpu_micros()?;
            let done = load::http1(&pair.url(), bench.effort.seconds)?;
            pair.turns.push(((pair.cpu_micros()? - before) / done.requests, done.rate));
        }
    }
    let of = |peer: Peer| pairs.iter().find(|pair| pair.peer == peer).map(|pair| pair.turns.as_slice());
    let ours: Vec<f64> = of(Peer::Sixfold).unwrap_or_default().iter().map(|turn| turn.0).collect();
    pairs.iter().map(|pair| pair.row(&ours)).collect()
}

impl Identities {
    fn make(dir: &Path) -> Result<Self> {
        let certificates = root().join("xds/conformance/certs");
        let identity = |name: &str| -> Result<PathBuf> {
            let place = dir.join(name);
            let mut command = Command::new("sh");
            command.arg(certificates.join("workload.sh")).args(["default", name]).arg(&place);
            output(command.stderr(Stdio::null()))?;
            Ok(place)
        };
        let authority = certificates.join("mesh-ca.crt");
        Ok(Self { authority, client: identity("client")?, server: identity("server")? })
    }

    /// What both sides of a connection have alike.
    fn common(&self, own: &Path, alpn: &[&str], names: &Value) -> Value {
        json!({
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": alpn,
            "tls_certificates": [{
                "certificate_chain": {"filename": own.with_extension("crt")},
                "private_key": {"filename": own.with_extension("key")}}],
            "validation_context": {"trusted_ca": {"filename": self.authority}, "match_typed_subject_alt_names": [
                {"san_type": "URI", "matcher": names}]}})
    }

    fn of_client(&self) -> Value {
        let names = json!({"exact": "spiffe://cluster.local/ns/default/sa/server"});
        let common = self.common(&self.client, &["istio-peer-exchange", "istio"], &names);
        json!({"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext"),
            "sni": SERVER_NAME, "common_tls_context": common}})
    }

    fn of_server(&self) -> Value {
        let common = self.common(
            &self.server,
            &["istio-peer-exchange", "h2", "http/1.1"],
            &json!({"prefix": "spiffe://cluster.local/"}),
        );
        json!({"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext"),
            "require_client_certificate": true, "common_tls_context": common}})
    }
}

impl Pair {
    fn start(bench: &Bench<'_>, peer: Peer, identities: &Identities) -> Result<Self> {
        let (inbound, outbound) = (free_port()?, free_port()?);
        let dir = bench.dir.join(format!("sidecar-{}", peer.name()));
        let server = sidecar(peer, inbound, false, bench.upstream.http1, identities)?;
        let client = sidecar(peer, outbound, true, inbound, identities)?;
        let start = |name: &str, port: u16, bootstrap: &Value| -> Result<Background> {
            let dir = dir.join(name);
            fs::create_dir_all(&dir)?;
            let file = dir.join("bootstrap.json");
            fs::write(&file, bootstrap.to_string())?;
            let mut command = with_bootstrap(peer, &bench.programs.sixfold, &bench.programs.envoy, &file);
            command.stdout(File::create(dir.join("stdout.log"))?);
            let mut process = Background::spawn(command.stderr(File::create(dir.join("stderr.log"))?))?;
            process
                .wait_for_port(port, Duration::from_secs(60))
                .with_context(|| dir.display().to_string())?;
            Ok(process)
        };
        let processes = [start("server", inbound, &server)?, start("client", outbound, &client)?];
        Ok(Self { peer, port: outbound, processes, turns: Vec::new() })
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    fn cpu_micros(&self) -> Result<f64> {
        self.processes.iter().map(|process| procfs::cpu_micros(process.id())).sum()
    }

    fn row(&self, ours: &[f64]) -> Result<Sidecars> {
        let (cpu, rate): (Vec<f64>, Vec<f64>) = self.turns.iter().copied().unzip();
        let ratio: Vec<f64> = ours.iter().zip(&cpu).map(|(ours, theirs)| ours / theirs).collect();
        let none = Estimate { median: f64::NAN, low: f64::NAN, high: f64::NAN };
        Ok(Sidecars {
            peer: self.peer,
            cpu: Estimate::of(&cpu).context("no turn was measured")?,
            rate: Estimate::of(&rate).context("no turn was measured")?,
            ratio: Estimate::of(&ratio).unwrap_or(none),
            resident: self
                .processes
                .iter()
                .map(|process| procfs::resident_megabytes(process.id()))
                .sum::<Result<f64>>()?,
        })
    }
}

/// The bootstrap of a sidecar that takes requests at a port and passes them on to another: what istiod sends, in one file. Envoy gets all but
/// Istio's own filters, which it does not have.
fn sidecar(peer: Peer, port: u16, is_client: bool, upstream: u16, identities: &Identities) -> Result<Value> {
    let name = if is_client { "outbound|9080||server.default.svc.cluster.local" } else { "inbound|9080||" };
    let has_istio = peer == Peer::Sixfold;
    let exchange = json!([{"name": "istio.metadata_exchange", "typed_config": of_istio(
        "envoy.tcp.metadataexchange.config.MetadataExchange",
        &json!({"enable_discovery": true, "protocol": "istio-peer-exchange"}))}]);
    let mut filters = vec![json!({
        "name": "envoy.filters.network.http_connection_manager", "typed_config": manager(name, is_client, has_istio)})];
    let none = u32::MAX;
    let service = "server.default.svc.cluster.local";
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "10s", "alt_stat_name": format!("{name};"),
        "circuit_breakers": {"thresholds": [
            {"max_connections": none, "max_pending_requests": none, "max_requests": none, "max_retries": none}]},
        "metadata": {"filter_metadata": {"istio": {"services": [
            {"host": service, "name": service, "namespace": "default"}]}}},
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}]}});
    if is_client {
        cluster["lb_policy"] = json!("LEAST_REQUEST");
        cluster["transport_socket"] = identities.of_client();
        if has_istio {
            cluster["filters"] = exchange;
        }
    } else if has_istio {
        filters.insert(0, exchange[0].clone());
    }
    let mut chain = json!({"filters": filters});
    if !is_client {
        chain["transport_socket"] = identities.of_server();
    }
    Ok(json!({
        "node": node(if is_client { "client" } else { "server" }),
        "admin": {"address": address(free_port()?)},
        "static_resources": {
            "listeners": [{"name": name, "address": address(port), "filter_chains": [chain],
                "traffic_direction": if is_client { "OUTBOUND" } else { "INBOUND" }}],
            "clusters": [cluster]}}))
}

/// What a sidecar says of its workload.
fn node(app: &str) -> Value {
    let pod = format!("{app}-v1-7d4b9c6f5-x2x7k");
    json!({
        "id": format!("sidecar~10.0.0.1~{pod}.default~default.svc.cluster.local"), "cluster": format!("{app}.default"),
        "metadata": {
            "NAME": pod, "NAMESPACE": "default", "WORKLOAD_NAME": format!("{app}-v1"), "CLUSTER_ID": "Kubernetes",
            "MESH_ID": "cluster.local", "ISTIO_VERSION": "1.29.6",
            "OWNER": format!("kubernetes://apis/apps/v1/namespaces/default/deployments/{app}-v1"),
            "LABELS": {"app": app, "version": "v1", "service.istio.io/canonical-name": app,
                "service.istio.io/canonical-revision": "v1"}}})
}

/// The configuration of a filter of Istio's, as istiod writes it.
fn of_istio(kind: &str, value: &Value) -> Value {
    json!({"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": format!("type.googleapis.com/{kind}"), "value": value})
}

/// The filters of a connection manager in istiod's order.
fn http_filters(is_client: bool, has_istio: bool) -> Vec<Value> {
    let of_envoy = |name: &str, kind: &str, more: Value| {
        let mut config = json!({"@type": format!("{EXTENSIONS}.filters.http.{kind}")});
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        Some(json!({"name": format!("envoy.filters.http.{name}"), "typed_config": config}))
    };
    let of_istio = |name: &str, kind: &str, value: Value| {
        has_istio.then(|| json!({"name": name, "typed_config": of_istio(kind, &value)}))
    };
    let discovery = json!([{"istio_headers": {}}, {"workload_discovery": {}}]);
    let peers = match is_client {
        true => json!({"upstream_propagation": [{"istio_headers": {}}], "upstream_discovery": discovery}),
        false => {
            json!({"downstream_propagation": [{"istio_headers": {}}], "downstream_discovery": discovery})
        }
    };
    let alpn = json!({"alpn_override": [
        {"upstream_protocol": "HTTP10", "alpn_override": ["istio-http/1.0", "istio", "http/1.0"]},
        {"upstream_protocol": "HTTP11", "alpn_override": ["istio-http/1.1", "istio", "http/1.1"]},
        {"upstream_protocol": "HTTP2", "alpn_override": ["istio-h2", "istio", "h2"]}]});
    let stats = if is_client { json!({}) } else { json!({"disable_host_header_fallback": true}) };
    let grpc = json!({"emit_filter_state": true, "stats_for_all_methods": false});
    let filters = [
        of_istio("istio.metadata_exchange", "io.istio.http.peer_metadata.Config", peers),
        of_envoy("grpc_stats", "grpc_stats.v3.FilterConfig", grpc),
        of_istio("istio.alpn", "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig", alpn)
            .filter(|_| is_client),
        of_envoy("fault", "fault.v3.HTTPFault", json!({})),
        of_envoy("cors", "cors.v3.Cors", json!({})),
        of_istio("istio.stats", "stats.PluginConfig", stats),
        of_envoy("router", "router.v3.Router", json!({})),
    ];
    filters.into_iter().flatten().collect()
}

/// Tags of spans: none is made in this test, as one request in a hundred is in a mesh that has a collector.
fn custom_tags(app: &str) -> Value {
    let of_rules = |action: &str, what: &str, key: &str| {
        json!({"tag": format!("istio.authorization.dry_run.{action}_policy.{what}"), "metadata": {
            "kind": {"request": {}}, "metadata_key": {"key": "envoy.filters.http.rbac", "path": [
                {"key": format!("istio_dry_run_{action}_shadow_{key}")}]}}})
    };
    let literal =
        |tag: &str, value: &str| json!({"tag": format!("istio.{tag}"), "literal": {"value": value}});
    json!([
        of_rules("allow", "name", "effective_policy_id"),
        of_rules("allow", "result", "engine_result"),
        of_rules("deny", "name", "effective_policy_id"),
        of_rules("deny", "result", "engine_result"),
        literal("canonical_revision", "v1"),
        literal("canonical_service", app),
        literal("cluster_id", "Kubernetes"),
        literal("mesh_id", "cluster.local"),
        literal("namespace", "default")
    ])
}

/// The connection manager of either side.
fn manager(name: &str, is_client: bool, has_istio: bool) -> Value {
    let mut route = json!({"match": {"prefix": "/"}, "name": "default", "decorator": {"operation": "server:9080/*"},
        "route": {"cluster": name, "timeout": "0s"}});
    let mut manager = json!({
        "@type": format!("{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "http_filters": http_filters(is_client, has_istio),
        "tracing": {"client_sampling": {"value": 100.0}, "random_sampling": {"value": 1.0}, "overall_sampling": {"value": 100.0},
            "custom_tags": custom_tags(if is_client { "client" } else { "server" })},
        "access_log": [{"name": "envoy.access_loggers.file", "typed_config": {
            "@type": format!("{EXTENSIONS}.access_loggers.file.v3.FileAccessLog"), "path": "/dev/stdout",
            "log_format": {"text_format_source": {"inline_string": LOG_FORMAT}}}}],
        "use_remote_address": false, "proxy_100_continue": true, "stream_idle_timeout": "0s", "normalize_path": true,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "request_id_extension": {"typed_config": {"@type": format!("{EXTENSIONS}.request_id.uuid.v3.UuidRequestIdConfig"),
            "use_request_id_for_trace_sampling": true}}});
    if is_client {
        route["route"]["retry_policy"] = json!({
            "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", "num_retries": 2,
            "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {
                "@type": format!("{EXTENSIONS}.retry.host.previous_hosts.v3.PreviousHostsPredicate")}}],
            "host_selection_retry_max_attempts": "5"});
    } else {
        manager["server_name"] = json!("istio-envoy");
        manager["forward_client_cert_details"] = json!("APPEND_FORWARD");
        manager["set_current_client_cert_details"] = json!({"subject": true, "dns": true, "uri": true});
    }
    manager["route_config"] = json!({"name": "9080", "validate_clusters": false, "virtual_hosts": [
        {"name": "server", "domains": ["*"], "include_request_attempt_count": is_client, "routes": [route]}]});
    manager
}

impl Sidecars {
    pub(super) fn one_line(&self) -> String {
        format!(
            "sidecar to sidecar, {}: {} us of CPU a request, {:.0} requests/s, {:.1} MB",
            self.peer.name(),
            self.cpu.shown(1),
            self.rate.median,
            self.resident
        )
    }
}

/// A table of what was measured; empty when nothing was.
pub(super) fn section(rows: &[Sidecars]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = "\n## Sidecar to sidecar\n\nHTTP/1.1 from a client to its sidecar, over mutual TLS to that of the server, to the server, and back; connections \
                    are kept. Both sidecars have one worker each on the same core, the filters, tracing settings and access log that istiod \
                    gives them: sixfold with istio.stats, istio.metadata_exchange and istio.alpn, Envoy without these, which it does not \
                    have. CPU and memory are those of both.\n\n\
                    | proxy | CPU us a request | ours / theirs | requests/s | resident MB |\n| --- | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    for row in rows {
        let ratio = if row.peer == Peer::Sixfold { String::new() } else { row.ratio.shown(3) };
        let _ = writeln!(
            text,
            "| {} | {} | {ratio} | {} | {:.1} |",
            row.peer.name(),
            row.cpu.shown(1),
            row.rate.shown(0),
            row.resident
        );
    }
    text
}
