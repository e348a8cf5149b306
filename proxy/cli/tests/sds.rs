//! Secrets over a unix socket, as an agent of a mesh hands them out, and the binary that is made of them: clients come to
//! one listener in plain text, go on over mutual TLS to another one, and from there to the upstream.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use bytes::Bytes;
use http::Request;
use sixfold_xds_api::pb::envoy::service::discovery::v3::DiscoveryRequest;
use sixfold_xds_api::wire;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use support::authority::{Authority, certificate};
use support::traffic::{Traffic, upstream};
use support::xds::Messages;
use support::{Directory, LIMIT, Process, free_port, get, xds};
use tokio::sync::watch;

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const IDENTITY: &str = "spiffe://cluster.local/ns/default/sa/app";

/// A certificate as a secret.
fn secret(certificate: &str) -> String {
    format!("tls_certificate: {certificate}")
}

/// Secrets by name, as text.
type Known = BTreeMap<String, String>;

/// Hands secrets out, each again when it changes.
struct Agent {
    known: watch::Sender<Known>,
    /// Name and error of every answer to a secret, empty when it was taken.
    answers: Receiver<(String, String)>,
}

impl Agent {
    fn start(path: PathBuf) -> Agent {
        let (known, secrets) = watch::channel(Known::new());
        let (heard, answers) = channel();
        xds::serve(path, move |request, respond| {
            assert_eq!(request.uri().path(), "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets");
            stream_of_one(request, respond, secrets.clone(), heard.clone())
        });
        Agent { known, answers }
    }

    fn set(&self, name: &str, text: &str) {
        self.known.send_modify(|known| drop(known.insert(name.to_owned(), text.to_owned())));
    }

    /// Waits for the next answer about a secret.
    fn answer(&self, name: &str) -> String {
        loop {
            let (found, error) = self.answers.recv_timeout(LIMIT).expect(name);
            if found == name {
                return error;
            }
        }
    }
}

/// A stream by which one secret is asked for.
async fn stream_of_one(
    request: Request<h2::RecvStream>,
    respond: h2::server::SendResponse<Bytes>,
    mut secrets: watch::Receiver<Known>,
    heard: Sender<(String, String)>,
) {
    let (mut out, mut messages) = (xds::begin(respond), Messages::of(request.into_body()));
    let (mut name, mut sent, mut nonce) = (String::new(), None, 0);
    loop {
        let now = secrets.borrow_and_update().get(&name).cloned();
        if now.is_some() && now != sent {
            nonce += 1;
            out.send_data(response(&name, now.as_deref().unwrap_or_default(), nonce), false).unwrap();
            sent = now;
        }
        tokio::select! {
            came = messages.next() => {
                let Some(came) = came else { return };
                for message in came {
                    let request: DiscoveryRequest = wire::decode(&message).unwrap();
                    name = request.resource_names.join(" ");
                    if !request.response_nonce.is_empty() {
                        let error = request.error_detail.map(|error| error.message);
                        let _ = heard.send((name.clone(), error.unwrap_or_default()));
                    }
                }
            }
            changed = secrets.changed() => if changed.is_err() { return },
        }
    }
}

fn response(name: &str, text: &str, nonce: usize) -> Bytes {
    let text = format!(
        "{{type_url: {SECRET}, nonce: '{nonce}', version_info: v, resources: [{{\"@type\": {SECRET}, name: '{name}', {text}}}]}}"
    );
    xds::framed("DiscoveryResponse", &text)
}

fn sds(name: &str) -> String {
    format!(
        "{{name: {name}, sds_config: {{initial_fetch_timeout: 0s, resource_api_version: V3, api_config_source: {{api_type: GRPC, \
         transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{{envoy_grpc: {{cluster_name: sds-grpc}}}}]}}}}}}"
    )
}

/// TLS of a side whose peer must have a name that begins so.
fn tls(side: &str, rest: &str, peer: &str) -> String {
    format!(
        "{{name: envoy.transport_sockets.tls, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}, \
         {rest}, common_tls_context: {{tls_certificate_sds_secret_configs: [{}], combined_validation_context: {{\
         default_validation_context: {{match_subject_alt_names: [{{prefix: '{peer}'}}]}}, \
         validation_context_sds_secret_config: {}}}}}}}}}",
        sds("default"),
        sds("ROOTCA")
    )
}

fn listener(name: &str, port: u16, cluster: &str, socket: &str) -> String {
    let extensions = "type.googleapis.com/envoy.extensions.filters";
    format!(
        "  - {{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{{socket}filters: [\
         {{name: hcm, typed_config: {{\"@type\": {extensions}.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: {name}, \
         http_filters: [{{name: router, typed_config: {{\"@type\": {extensions}.http.router.v3.Router}}}}], route_config: {{virtual_hosts: [\
         {{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]}}}}}}]}}]}}\n"
    )
}

fn bootstrap(admin: u16, ports: [u16; 2], upstream: u16, socket: &str) -> String {
    let address = |port: u16| format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
    let load = |name: &str, address: &str, metadata: &str| {
        format!(
            "load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{{metadata}endpoint: {{address: {address}}}}}]}}]}}"
        )
    };
    let server = format!(
        "transport_socket: {}, ",
        tls("DownstreamTlsContext", "require_client_certificate: true", "spiffe://cluster.local/")
    );
    format!(
        "node: {{id: sidecar~127.0.0.1~a.b~b.svc, cluster: a.b}}\nadmin: {{address: {}}}\nstatic_resources:\n  listeners:\n{}{}  clusters:\n\
         \x20 - {{name: mesh, connect_timeout: 5s, max_requests_per_connection: 3, transport_socket_matches: [\
         {{name: tlsMode-istio, match: {{tlsMode: istio}}, transport_socket: {}}}, \
         {{name: tlsMode-disabled, match: {{}}, transport_socket: {{name: raw, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}}}], {}}}\n\
         \x20 - {{name: app, {}}}\n\
         \x20 - {}\n",
        address(admin),
        listener("out", ports[0], "mesh", ""),
        listener("in", ports[1], "app", &server),
        tls("UpstreamTlsContext", "sni: outbound_.80_._.app", IDENTITY),
        load(
            "mesh",
            &address(ports[1]),
            "metadata: {filter_metadata: {envoy.transport_socket_match: {tlsMode: istio}}}, "
        ),
        load("app", &address(upstream), ""),
        xds::service("sds-grpc", socket),
    )
}

fn statistic(admin: u16, name: &str) -> u64 {
    let page = get(admin, &format!("/stats?filter=^{}$", name.replace('.', "\\."))).unwrap().body;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.unwrap_or_else(|| panic!("{name} in {page:?}")).parse().unwrap()
}

#[test]
fn secrets_are_waited_for_rotated_under_load_and_kept_when_others_are_no_good() {
    let directory = Directory::new();
    let agent = Agent::start(directory.0.join("sds"));
    let (admin, out, inward) = (free_port(), free_port(), free_port());
    let text = bootstrap(admin, [out, inward], upstream(), &directory.path("sds"));
    let file = directory.write("envoy.yaml", &text);
    let mut process = Process::start(&["-c", &file, "--concurrency", "2"]);

    // One listener needs secrets, and so does the cluster of the other: none is open before they have come.
    process.until("the administration", || get(admin, "/ready").filter(|answer| answer.status == 503));
    assert_eq!((get(out, "/"), get(inward, "/")), (None, None));
    let authority = Authority::new();
    agent.set("default", &secret(&authority.identity(IDENTITY)));
    assert_eq!(agent.answer("default"), "");
    agent.set("ROOTCA", &authority.trusted());
    assert_eq!(agent.answer("ROOTCA"), "");
    process.until("readiness", || get(admin, "/ready").filter(|answer| answer.status == 200));
    let answer = process.until("an answer", || get(out, "/").filter(|answer| answer.status != 503));
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));

    // A certificate a moment, under load that opens connections all the time.
    let mut traffic = Traffic::new();
    for _ in 0..4 {
        traffic.http1(out, "/", Duration::from_millis(1));
    }
    let end = Instant::now() + Duration::from_secs(3);
    let mut rotations = 0;
    while Instant::now() < end {
        agent.set("default", &secret(&authority.identity(IDENTITY)));
        assert_eq!(agent.answer("default"), "");
        rotations += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    // What is no good is refused, and what there was stays.
    agent.set("default", &secret(&certificate("nothing", "nothing")));
    let refused = agent.answer("default");
    assert!(refused.contains("secret \"default\"") && refused.contains("certificate_chain"), "{refused}");
    let handshakes = statistic(admin, "cluster.mesh.ssl.handshake");
    process.until("more handshakes", || {
        (statistic(admin, "cluster.mesh.ssl.handshake") > handshakes + 5).then_some(())
    });
    let tally = traffic.stop();
    assert_eq!(tally.failed, Vec::<String>::new(), "of {} requests", tally.done);
    assert!(rotations > 10 && tally.done > 100, "{rotations} rotations, {} requests", tally.done);
    assert_eq!(statistic(admin, "sds.default.update_success"), rotations + 1);
    assert_eq!(statistic(admin, "sds.default.update_rejected"), 1);
    // The first secret alone makes no settings yet.
    let updates = statistic(admin, "cluster.mesh.client_ssl_socket_factory.ssl_context_update_by_sds");
    assert_eq!(updates, rotations + 1);

    // An identity that the other side does not expect, and one of an authority that it does not know.
    agent.set("default", &secret(&authority.identity("spiffe://cluster.local/ns/default/sa/other")));
    assert_eq!(agent.answer("default"), "");
    process.until("refusal of another name", || get(out, "/").filter(|answer| answer.status == 503));
    agent.set("default", &secret(&authority.identity(IDENTITY)));
    process.until("an answer again", || get(out, "/").filter(|answer| answer.status == 200));
    agent.set("ROOTCA", &Authority::new().trusted());
    process.until("refusal of another authority", || get(out, "/").filter(|answer| answer.status == 503));
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
}

/// The cluster was not known to who asks for secrets, and they were never asked for.
#[test]
fn secrets_are_asked_of_a_cluster_that_comes_when_the_bootstrap_is_read_again() {
    // A busy machine takes long for it once, and not in each turn.
    assert!((0..3).any(|_| an_answer_after_a_reload() < Duration::from_secs(4)));
}

/// How long it takes to come.
fn an_answer_after_a_reload() -> Duration {
    let directory = Directory::new();
    let agent = Agent::start(directory.0.join("sds"));
    let authority = Authority::new();
    agent.set("default", &secret(&authority.identity(IDENTITY)));
    agent.set("ROOTCA", &authority.trusted());
    let (admin, out, inward) = (free_port(), free_port(), free_port());
    let text = bootstrap(admin, [out, inward], upstream(), &directory.path("sds"));
    let (without, _) = text.split_once("static_resources:").unwrap();
    let file = directory.write("envoy.yaml", without);
    let mut process = Process::start(&["-c", &file, "--concurrency", "2"]);
    process.until("readiness", || get(admin, "/ready").filter(|answer| answer.status == 200));
    directory.write("envoy.yaml", &text);
    let start = Instant::now();
    process.signal("HUP");
    process.until("an answer", || get(out, "/").filter(|answer| answer.body == "ok"));
    let took = start.elapsed();
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
    took
}
