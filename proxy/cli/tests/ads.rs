//! A control plane over a unix socket, as pilot-agent has it, and the binary that follows it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use bytes::Bytes;
use http::HeaderMap;
use sixfold_xds_api::wire;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use support::traffic::upstream;
use support::xds::types::{CLUSTER, ENDPOINTS, LISTENER, PREFIX, ROUTES, SECRET};
use support::xds::{Messages, endpoints, routes};
use support::{Directory, LIMIT, Process, free_port, get, xds};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// A start that waited in vain for what comes by the stream took five seconds, each time.
const TOO_LONG: Duration = Duration::from_secs(4);
/// So often it is tried, since on a busy machine any start may take long.
const TURNS: usize = 3;

/// A control plane that says what the test tells it to.
struct Plane {
    /// Type, nonce and names of each request.
    requests: Receiver<(String, String, String)>,
    orders: mpsc::Sender<Order>,
}

enum Order {
    Send(Bytes),
    Cut,
}

impl Plane {
    fn start(path: PathBuf) -> Plane {
        let (heard, requests) = channel();
        let (orders, mut queue) = mpsc::channel(16);
        xds::listen(path, async move |stream| serve(stream, &heard, &mut queue).await);
        Plane { requests, orders }
    }

    /// The next request of a type; those of others are passed over.
    fn request(&self, kind: &str) -> (String, String) {
        loop {
            let (found, nonce, name) = self.requests.recv_timeout(LIMIT).expect(kind);
            if found == kind {
                return (nonce, name);
            }
        }
    }

    fn send(&self, kind: &str, nonce: &str, name: &str, text: &str) {
        let response = format!(
            "{{type_url: {PREFIX}.{kind}, nonce: '{nonce}', resources: [{{name: '{name}', resource: {{\"@type\": {PREFIX}.{kind}, {text}}}}}]}}"
        );
        let framed = xds::framed("DeltaDiscoveryResponse", &response);
        self.orders.blocking_send(Order::Send(framed)).unwrap();
    }

    /// Sends a resource and waits until it is acknowledged.
    fn bring(&self, kind: &str, nonce: &str, name: &str, text: &str) {
        self.send(kind, nonce, name, text);
        while self.request(kind).0 != nonce {}
    }

    fn cut(&self) {
        self.orders.blocking_send(Order::Cut).unwrap();
    }
}

async fn serve(
    stream: UnixStream,
    heard: &Sender<(String, String, String)>,
    orders: &mut mpsc::Receiver<Order>,
) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let Some(Ok((request, respond))) = connection.accept().await else { return };
    assert_eq!(
        request.uri().path(),
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
    );
    let (mut out, mut messages) = (xds::begin(respond), Messages::of(request.into_body()));
    loop {
        tokio::select! {
            came = messages.next() => {
                let Some(came) = came else { return };
                for message in came {
                    let text = |field| wire::text(&message, field).unwrap_or_default().to_owned();
                    let kind = text(2).trim_start_matches(PREFIX).trim_start_matches('.').to_owned();
                    let _ = heard.send((kind, text(6), text(3)));
                }
            }
            order = orders.recv() => match order {
                Some(Order::Send(bytes)) => out.send_data(bytes, false).unwrap(),
                Some(Order::Cut) | None => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    let _ = out.send_trailers(trailers);
                    connection.graceful_shutdown();
                    while let Some(Ok(_)) = connection.accept().await {}
                    return;
                }
            },
            other = connection.accept() => assert!(other.is_some_and(|other| other.is_ok()), "the client has gone"),
        }
    }
}

const RDS: &str = "rds: {route_config_name: r, config_source: {ads: {}, initial_fetch_timeout: 0s}}";

fn listener(port: u16) -> String {
    xds::listener(port, RDS)
}

fn bootstrap(admin: u16, directory: &Directory, clusters: &str, listeners: &str) -> String {
    xds::bootstrap(admin, &directory.path("XDS"), "DELTA_GRPC", clusters, listeners)
}

const EDS: &str = "type: EDS, eds_cluster_config: {eds_config: {ads: {}, initial_fetch_timeout: 0s}}";

/// A static cluster whose endpoints come by the stream, and a static listener that leads there.
fn statics(cluster: &str, port: u16) -> (String, String) {
    let routes = format!("route_config: {{{}}}", routes(&format!("route: {{cluster: {cluster}}}")));
    let listener = listener(port).replace(RDS, &routes).replace("name: l,", &format!("name: {cluster},"));
    (format!("  - {{name: {cluster}, {EDS}}}\n"), format!("  - {{{listener}}}\n"))
}

#[test]
fn a_world_comes_by_a_unix_socket_and_outlives_its_stream() {
    let directory = Directory::new();
    let plane = Plane::start(directory.0.join("XDS"));
    let (admin, port) = (free_port(), free_port());
    let file = directory.write("envoy.yaml", &bootstrap(admin, &directory, "", ""));
    let mut process = Process::start(&["-c", &file, "--concurrency", "2"]);
    assert_eq!(plane.request(CLUSTER).0, "");
    assert_eq!(plane.request(LISTENER).0, "");
    assert_eq!(get(admin, "/ready").unwrap().status, 503, "nothing has come");

    plane.send(CLUSTER, "1", "c", &format!("name: c, {EDS}"));
    assert_eq!(plane.request(ENDPOINTS), (String::new(), "c".to_owned()));
    plane.send(LISTENER, "2", "l", &listener(port));
    assert_eq!(plane.request(ROUTES), (String::new(), "r".to_owned()));
    plane.bring(ROUTES, "3", "r", &routes("route: {cluster: c}"));
    assert!(get(port, "/").is_none(), "its cluster has no endpoints yet");
    plane.bring(ENDPOINTS, "4", "c", &endpoints("c", upstream()));
    assert_eq!(get(port, "/").unwrap().body, "ok");
    process.until("readiness", || get(admin, "/ready").filter(|answer| answer.status == 200));
    let stats = get(admin, "/stats?usedonly&filter=update_success$").unwrap().body;
    for name in ["cluster_manager.cds", "listener_manager.lds", "cluster.c"] {
        assert!(stats.contains(&format!("{name}.update_success: 1")), "{stats}");
    }

    plane.cut();
    let again = plane.request(CLUSTER);
    assert_eq!((again.0.as_str(), get(port, "/").unwrap().body.as_str()), ("", "ok"));
    assert_eq!(plane.request(ROUTES), (String::new(), "r".to_owned()));
    // What is wrong changes nothing, what is right comes at once.
    plane.send(ROUTES, "1", "r", &routes("route: {cluster: c, timeout: -1s}"));
    assert_eq!((plane.request(ROUTES).0.as_str(), get(port, "/").unwrap().body.as_str()), ("1", "ok"));
    plane.bring(ROUTES, "2", "r", &routes("direct_response: {status: 200, body: {inline_string: new}}"));
    assert_eq!(get(port, "/").unwrap().body, "new");
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
}

/// Filters as users of a mesh have them: each brought, and changed, by itself.
#[test]
fn filters_come_by_themselves_and_are_replaced() {
    const EXTENSION: &str = "config.core.v3.TypedExtensionConfig";
    let directory = Directory::new();
    let plane = Plane::start(directory.0.join("XDS"));
    let (admin, port) = (free_port(), free_port());
    let file = directory.write("envoy.yaml", &bootstrap(admin, &directory, "", ""));
    let mut process = Process::start(&["-c", &file, "--concurrency", "2"]);
    let kinds =
        ["local_ratelimit.v3.LocalRateLimit", "header_mutation.v3.HeaderMutation", "buffer.v3.Buffer"];
    let urls = kinds.map(|kind| format!("{PREFIX}.extensions.filters.http.{kind}")).join(", ");
    let discovered = format!(
        "http_filters: [{{name: own, config_discovery: {{config_source: {{ads: {{}}}}, type_urls: [{urls}]}}}}, "
    );
    let text = listener(port).replace("http_filters: [", &discovered);
    plane.request(LISTENER);
    plane.send(LISTENER, "1", "l", &text);
    assert_eq!(plane.request(EXTENSION), (String::new(), "own".to_owned()));
    let bring = |nonce: &str, kind: &str, fields: &str| {
        let config = format!("{{\"@type\": {PREFIX}.extensions.filters.http.{kind}, {fields}}}");
        plane.bring(EXTENSION, nonce, "own", &format!("name: own, typed_config: {config}"));
    };
    let all = "{default_value: {numerator: 100}}";
    let limit = |bucket: &str| {
        format!("stat_prefix: s, token_bucket: {{{bucket}}}, filter_enabled: {all}, filter_enforced: {all}")
    };
    bring("2", kinds[0], &limit("max_tokens: 0, fill_interval: 1s"));
    plane.bring(ROUTES, "3", "r", &routes("direct_response: {status: 200, body: {inline_string: ok}}"));
    process.until("a limit", || get(port, "/").filter(|answer| answer.status == 429));
    bring("4", kinds[1], "mutations: {response_mutations: [{append: {header: {key: x-a, value: b}}}]}");
    process.until("a header", || get(port, "/").filter(|answer| answer.head.contains("x-a: b")));
    bring("5", kinds[2], "max_request_bytes: 10");
    process.until("another filter", || get(port, "/").filter(|answer| !answer.head.contains("x-a: ")));
    assert_eq!(get(port, "/").unwrap().status, 200);
}

/// A start waited for five seconds: the stream began only then by which alone the endpoints could come. Those of a bootstrap
/// that was read again were never asked for.
#[test]
fn static_clusters_get_their_endpoints_by_the_stream_at_the_start_and_after_a_reload() {
    assert!((0..TURNS).any(|_| static_clusters_get_their_endpoints() < TOO_LONG));
}

/// How long the start took.
fn static_clusters_get_their_endpoints() -> Duration {
    let directory = Directory::new();
    let plane = Plane::start(directory.0.join("XDS"));
    let (admin, first, second) = (free_port(), free_port(), free_port());
    let (clusters, listeners) = statics("first", first);
    let file = directory.write("envoy.yaml", &bootstrap(admin, &directory, &clusters, &listeners));
    let start = Instant::now();
    let mut process = Process::start(&["-c", &file, "--concurrency", "2"]);
    assert_eq!(plane.request(ENDPOINTS), (String::new(), "first".to_owned()));
    // What else there is comes before.
    plane.bring(CLUSTER, "1", "c", "name: c");
    plane.send(LISTENER, "2", "l", &listener(free_port()));
    plane.send(ENDPOINTS, "3", "first", &endpoints("first", upstream()));
    process.until("an answer", || get(first, "/").filter(|answer| answer.body == "ok"));
    assert_eq!(plane.request(ROUTES), (String::new(), "r".to_owned()));
    plane.bring(ROUTES, "4", "r", &routes("direct_response: {status: 200}"));
    process.until("readiness", || get(admin, "/ready").filter(|answer| answer.status == 200));
    let took = start.elapsed();

    let (more_clusters, more_listeners) = statics("second", second);
    let text = bootstrap(admin, &directory, &(clusters + &more_clusters), &(listeners + &more_listeners));
    directory.write("envoy.yaml", &text);
    process.signal("HUP");
    while plane.request(ENDPOINTS).1 != "second" {}
    plane.send(ENDPOINTS, "5", "second", &endpoints("second", upstream()));
    process.until("an answer of the second", || get(second, "/").filter(|answer| answer.body == "ok"));
    assert_eq!(get(first, "/").unwrap().body, "ok");
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
    took
}

/// The same of a secret.
#[test]
fn a_start_is_given_the_secrets_that_it_waits_for() {
    assert!((0..TURNS).any(|_| static_clusters_get_their_secrets() < TOO_LONG));
}

/// How long the start took.
fn static_clusters_get_their_secrets() -> Duration {
    let directory = Directory::new();
    let plane = Plane::start(directory.0.join("XDS"));
    let (admin, port) = (free_port(), free_port());
    let (_, listeners) = statics("mutual", port);
    let clusters = format!(
        "  - {{name: mutual, load_assignment: {{{}}}, transport_socket: {{name: t, typed_config: {{\"@type\": \
         {PREFIX}.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {{tls_certificate_sds_secret_configs: \
         [{{name: s, sds_config: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}}}}]}}}}}}}}\n",
        endpoints("mutual", free_port())
    );
    let file = directory.write("envoy.yaml", &bootstrap(admin, &directory, &clusters, &listeners));
    let start = Instant::now();
    let mut process = Process::start(&["-c", &file, "--concurrency", "2"]);
    assert_eq!(plane.request(SECRET), (String::new(), "s".to_owned()));
    plane.bring(CLUSTER, "1", "c", "name: c");
    assert_eq!(get(port, "/"), None, "its cluster lacks its certificate");
    let key = rcgen::KeyPair::generate().unwrap();
    let chain = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap().self_signed(&key).unwrap().pem();
    let key = key.serialize_pem();
    let certificate = format!(
        "tls_certificate: {{certificate_chain: {{inline_string: {chain:?}}}, private_key: {{inline_string: {key:?}}}}}"
    );
    plane.bring(SECRET, "2", "s", &format!("name: s, {certificate}"));
    // Nobody listens there.
    process.until("an answer", || get(port, "/").filter(|answer| answer.status == 503));
    let took = start.elapsed();
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
    took
}
