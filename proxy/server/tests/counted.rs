//! What is counted of connections and requests: bytes on the wire and statistics. The figures are those that Envoy gave
//! for the same bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::access_log::AccessLog;
use sixfold_core::cluster::UpstreamProtocol;
use sixfold_core::format::Format;
use sixfold_core::metrics::{Registry, Value};
use sixfold_core::route::RequireTls;
use sixfold_core::router::{HostRoutes, RouteTable, TableOptions, VirtualHostOptions};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Bytes between the client and us, then between us and the upstream: received and sent, of which heads.
const BYTES: &str = "%DOWNSTREAM_WIRE_BYTES_RECEIVED% %DOWNSTREAM_HEADER_BYTES_RECEIVED% \
    %DOWNSTREAM_WIRE_BYTES_SENT% %DOWNSTREAM_HEADER_BYTES_SENT% \
    %UPSTREAM_WIRE_BYTES_SENT% %UPSTREAM_HEADER_BYTES_SENT% \
    %UPSTREAM_WIRE_BYTES_RECEIVED% %UPSTREAM_HEADER_BYTES_RECEIVED%";

fn setup(format: &str) -> (Setup, Arc<Lines>) {
    let (mut setup, lines) = (Setup::new(), Arc::<Lines>::default());
    let format = Arc::new(Format::envoy(format).unwrap());
    setup.access_logs = vec![AccessLog { filter: None, format, sink: lines.clone() }];
    (setup, lines)
}

/// Everything that was counted under `scope`, zeros aside.
fn counted(registry: &Registry, scope: &str) -> BTreeMap<String, u64> {
    let value = |value| match value {
        Value::Counter(n) | Value::Gauge(n) => n,
        Value::Histogram(seen) => seen.count,
    };
    let samples = registry.samples().into_iter().map(|sample| (sample.name, value(sample.value)));
    let own = |name: &str| name.strip_prefix(scope).map(str::to_owned);
    samples.filter(|(_, n)| *n > 0).filter_map(|(name, n)| Some((own(&name)?, n))).collect()
}

/// The upstream of a route that is tried twice: it answers 500 at first.
fn answer(number: usize, request: &str) -> Vec<u8> {
    match request {
        request if request.starts_with("GET /chunks") => {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n"
                .to_vec()
        }
        request if request.starts_with("GET /broken") => b"HTP/1.1 200 OK\r\n\r\n".to_vec(),
        request if request.starts_with("GET /retried") && number.is_multiple_of(2) => {
            b"HTTP/1.1 500 E\r\nContent-Length: 3\r\n\r\nerr".to_vec()
        }
        request if request.starts_with("GET /interim") => {
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()
        }
        _ => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: up\r\nX-Up: a\r\n\r\nok".to_vec(),
    }
}

/// They were estimates: heads without their start lines and line ends, bodies without their frames, of retries the last
/// attempt alone, of what was refused nothing.
#[tokio::test]
async fn bytes_on_the_wire_of_http1_are_exact() {
    let (mut setup, lines) = setup(BYTES);
    let upstream = upstream(answer).await;
    setup.cluster("a", &[upstream.address], |_| {});
    setup.route("/", "a", |forward| forward.retry = retry("5xx", 1));
    let stats = setup.stats.clone();
    let registry = setup.registry.clone();
    let proxy = setup.serve().await.0;
    let post = "POST /x HTTP/1.1\r\nHost: a.test\r\nx-s: ok\r\n";
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nx-s: ok\r\n\r\n");
    let (mut asked, mut sent) = (0, 0);
    let mut seen = Vec::new();
    for request in [
        get("/plain"),
        get("/chunks"),
        get("/retried"),
        get("/interim"),
        get("/broken"),
        format!("{post}Content-Length: 5\r\n\r\nhello"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;e=1\r\nde\r\n0\r\n\r\n"),
        "GARBAGE\r\n\r\n".to_owned(),
    ] {
        let mut client = TcpStream::connect(proxy).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let before = lines.0.lock().len();
        eventually(|| lines.0.lock().len() > before).await;
        let line = lines.0.lock()[before].trim().to_owned();
        let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
        // What the client got, to the byte.
        let mut response = vec![0; numbers[2] as usize];
        client.read_exact(&mut response).await.unwrap();
        assert_eq!(numbers[0], request.len() as u64, "{request:?}: {line}");
        let head = response.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        let first = response.iter().position(|b| *b == b'\n').unwrap() + 1;
        assert_eq!(numbers[3], (head - first - 2) as u64, "{request:?}: {line}");
        (asked, sent) = (asked + numbers[0], sent + numbers[2]);
        seen.push((numbers[1], numbers[6], numbers[7], numbers[4] - numbers[5]));
    }
    let expected = [
        // Fields of the request; all that the upstream sent; its fields; our start line and the empty line.
        (21, 61, 37, 23),
        (21, 73, 27, 24),
        (21, 40 + 61, 18 + 37, 2 * 25),
        (21, 65, 21, 25),
        (21, 2 * 18, 0, 2 * 24),
        (39, 61, 37, 18 + 2 + 5),
        (48, 61, 37, 18 + 2 + 8 + 7 + 5),
        (0, 0, 0, 0),
    ];
    assert_eq!(seen, expected);
    let own = || (stats.downstream_cx_rx_bytes_total().get(), stats.downstream_cx_tx_bytes_total().get());
    eventually(|| own() == (asked, sent)).await;
    let received = counted(&registry, "cluster.a.")["upstream_cx_rx_bytes_total"];
    assert_eq!(received, seen.iter().map(|(_, received, ..)| received).sum::<u64>());
}

// What the codec says of the connection was left out, which is a field as others are.
#[tokio::test]
async fn the_bytes_of_a_response_s_head_are_those_of_all_its_fields() {
    let (mut setup, lines) = setup("%RESPONSE_HEADERS_BYTES%");
    setup.routes.push(direct("/", "tea".into()));
    let proxy = setup.serve().await.0;
    for closes in ["", "Connection: close\r\n"] {
        let before = lines.0.lock().len();
        let mut client = TcpStream::connect(proxy).await.unwrap();
        client.write_all(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{closes}\r\n").as_bytes()).await.unwrap();
        eventually(|| lines.0.lock().len() > before).await;
    }
    let seen: Vec<u64> = lines.0.lock().iter().map(|line| line.trim().parse().unwrap()).collect();
    assert_eq!(seen[1] - seen[0], "connectionclose".len() as u64);
}

/// Of a cluster, its route and its virtual cluster; external responses and those of retries, any status, and endpoints
/// that refuse stayed at zero or were counted twice.
#[tokio::test]
async fn statistics_of_clusters_move_as_in_envoy() {
    let (mut setup, _) = setup("");
    let silent = nobody();
    let teapot = b"HTTP/1.1 418 E\r\nContent-Length: 0\r\n\r\n".to_vec();
    let upstream = upstream(move |n, request| match request.starts_with("GET /teapot") {
        true => teapot.clone(),
        false => answer(n, request),
    });
    let upstream = upstream.await;
    setup.cluster("a", &[upstream.address], |_| {});
    setup.cluster("dead", &[silent], |_| {});
    setup.cluster("empty", &[], |_| {});
    setup.route("/dead", "dead", |_| {});
    setup.route("/empty", "empty", |_| {});
    setup.route("/", "a", |forward| forward.retry = retry("5xx", 1));
    let registry = setup.registry.clone();
    let proxy = setup.serve().await.0;
    for (path, status) in
        [("/retried", 200), ("/interim", 200), ("/teapot", 418), ("/dead", 503), ("/empty", 503)]
    {
        let answer = ask(proxy, &get(path)).await;
        let answer = if answer.starts_with("HTTP/1.1 100") { "HTTP/1.1 200".to_owned() } else { answer };
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
    let has = |scope: &str, expected: &[(&str, u64)]| {
        let all = counted(&registry, scope);
        for (name, n) in expected {
            assert_eq!(all.get(*name).copied().unwrap_or(0), *n, "{scope}{name}: {all:?}");
        }
    };
    eventually(|| counted(&registry, "cluster.a.").get("external.upstream_rq_time") == Some(&3)).await;
    has(
        "cluster.a.",
        &[
            ("upstream_rq_total", 4),
            ("upstream_rq_completed", 4),
            ("upstream_rq_100", 1),
            ("upstream_rq_1xx", 1),
            ("upstream_rq_200", 2),
            ("upstream_rq_418", 1),
            ("external.upstream_rq_418", 1),
            ("external.upstream_rq_completed", 4),
            ("internal.upstream_rq_completed", 0),
            ("retry.upstream_rq_500", 1),
            ("retry.upstream_rq_5xx", 1),
            ("retry.upstream_rq_completed", 1),
            ("upstream_rq_retry", 1),
            ("upstream_rq_retry_success", 1),
            // The answer that was not passed on went with its connection.
            ("upstream_cx_destroy_local_with_active_rq", 1),
        ],
    );
    let connections = counted(&registry, "cluster.a.");
    assert_eq!(connections["upstream_cx_http1_total"], connections["upstream_cx_total"]);
    has(
        "cluster.dead.",
        &[
            ("upstream_rq_total", 0),
            ("upstream_rq_pending_failure_eject", 1),
            ("upstream_rq_503", 1),
            ("upstream_cx_total", 1),
            ("upstream_cx_http1_total", 1),
            ("upstream_cx_connect_fail", 1),
            ("upstream_cx_destroy", 1),
            ("upstream_cx_destroy_remote", 1),
            ("upstream_cx_active", 0),
        ],
    );
    has("cluster.empty.", &[("upstream_rq_503", 1), ("upstream_rq_completed", 1), ("upstream_rq_total", 0)]);
}

async fn part(proxy: SocketAddr, bytes: &str) {
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(bytes.as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut rest)).await.unwrap().unwrap();
}

/// Nothing was logged or counted of a client that left in the middle of a head.
#[tokio::test]
async fn a_client_that_leaves_in_mid_head_is_logged_and_counted() {
    let (mut setup, lines) = setup(
        "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %REQ(:METHOD)% %DOWNSTREAM_WIRE_BYTES_RECEIVED%",
    );
    setup.routes.push(direct("/", "".into()));
    let registry = setup.registry.clone();
    let proxy = setup.serve().await.0;
    part(proxy, "GET /x HTT").await;
    // An empty line is no request.
    part(proxy, "\r\n").await;
    part(proxy, "").await;
    part(proxy, &get("/")).await;
    eventually(|| counted(&registry, "http.t.").get("downstream_cx_destroy_remote") == Some(&4)).await;
    let logged = lines.0.lock().iter().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
    assert_eq!(logged, ["0 DC downstream_remote_disconnect - 10", "200 - direct_response GET 30"]);
    let all = counted(&registry, "http.t.");
    for (name, n) in [
        ("downstream_rq_total", 2),
        ("downstream_rq_http1_total", 2),
        ("downstream_rq_completed", 1),
        ("downstream_rq_rx_reset", 1),
        ("downstream_cx_http1_total", 2),
        ("downstream_cx_destroy_remote_active_rq", 1),
        ("rq_total", 1),
        ("rq_direct_response", 1),
    ] {
        assert_eq!(all.get(name), Some(&n), "{name}: {all:?}");
    }
}

/// Of connections to upstreams neither their length nor their requests were counted, nor that upstreams end them.
#[tokio::test]
async fn a_connection_that_its_upstream_ends_is_counted() {
    let (mut setup, _) = setup("%RESPONSE_CODE%");
    let up =
        upstream(|_, _| b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec()).await;
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let registry = setup.registry.clone();
    let proxy = setup.serve().await.0;
    ask(proxy, &get("/")).await;
    eventually(|| counted(&registry, "cluster.a.").get("upstream_cx_destroy") == Some(&1)).await;
    for name in ["upstream_cx_close_notify", "upstream_cx_length_ms", "upstream_rq_per_cx"] {
        assert_eq!(counted(&registry, "cluster.a.").get(name), Some(&1), "{name}");
    }
}

#[tokio::test]
async fn a_client_that_gives_up_what_it_asks_for_is_counted() {
    let (mut setup, _) = setup("%RESPONSE_CODE%");
    setup.http2.max_resets = 5;
    let up = upstream(|_, _| Vec::new()).await;
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let registry = setup.registry.clone();
    let proxy = setup.serve().await.0;
    let socket = TcpStream::connect(proxy).await.unwrap();
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    let gone = tokio::spawn(connection);
    while !gone.is_finished() {
        let Ok(mut client) = client.clone().ready().await else { break };
        let request = http::Request::get("http://t/").body(()).unwrap();
        let Ok((response, mut stream)) = client.send_request(request, true) else { break };
        stream.send_reset(h2::Reason::CANCEL);
        drop(response);
        tokio::task::yield_now().await;
    }
    let name = "downstream_rq_too_many_premature_resets";
    eventually(|| counted(&registry, "http.t.").get(name) == Some(&1)).await;
}

/// Neither a 100 of ours nor a stream of an upstream that was given up was counted, nor a body that was too long to be
/// kept for a retry; a stream that the upstream refused was one that it had reset.
#[tokio::test]
async fn streams_and_bodies_that_are_given_up_are_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(socket).await.unwrap();
        let mut kept = Vec::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            match request.uri().path() {
                "/refused" => respond.send_reset(h2::Reason::REFUSED_STREAM),
                "/reset" => respond.send_reset(h2::Reason::CANCEL),
                _ => {
                    let mut body = request.into_body();
                    tokio::spawn(async move {
                        while let Some(Ok(data)) = body.data().await {
                            body.flow_control().release_capacity(data.len()).unwrap();
                        }
                    });
                    kept.push(respond);
                }
            }
        }
    });
    let (mut setup, lines) = setup("%RESPONSE_CODE%");
    setup.cluster("h", &[address], |config| config.protocol = UpstreamProtocol::Http2);
    // Streams are open long before their time is up: the connection is there, since the first of them is refused.
    for (path, time) in [("/silent", Duration::from_millis(500)), ("/", Duration::from_secs(15))] {
        setup.route(path, "h", |forward| {
            forward.timeouts.request = Some(time);
            forward.retry = retry("5xx", 1);
        });
    }
    let registry = setup.registry.clone();
    let proxy = setup.serve().await.0;
    let count = |name: &str| counted(&registry, "cluster.h.").get(name).copied().unwrap_or_default();
    ask(proxy, &get("/refused")).await;
    assert_eq!((count("upstream_rq_tx_reset"), count("upstream_rq_rx_reset")), (0, 0));
    ask(proxy, &get("/silent")).await;
    assert_eq!((count("upstream_rq_tx_reset"), count("upstream_rq_rx_reset")), (1, 0));
    ask(proxy, &get("/reset")).await;
    assert!(count("upstream_rq_rx_reset") > 0);
    let body = "x".repeat(2 << 20);
    let head = "POST /silent HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 2097152\r\n\r\n";
    whole(proxy, &format!("{head}{body}")).await;
    eventually(|| lines.0.lock().len() == 4).await;
    assert_eq!(count("retry_or_shadow_abandoned"), 1);
    let http = counted(&registry, "http.t.");
    assert_eq!(http.get("downstream_rq_1xx"), Some(&1), "{http:?}");
    assert_eq!(http.get("downstream_rq_completed"), Some(&5), "{http:?}");
}

/// It was counted neither as a request that routes answer nor as an answer of theirs.
#[tokio::test]
async fn a_redirect_to_tls_is_a_direct_response() {
    let (setup, _) = setup("%RESPONSE_CODE%");
    let (registry, cell) = (setup.registry.clone(), setup.table.clone());
    let proxy = setup.serve().await.0;
    let options = VirtualHostOptions { require_tls: RequireTls::All, ..VirtualHostOptions::default() };
    let host = HostRoutes::new("all", options, Vec::new());
    let table = RouteTable::new("t", TableOptions::default(), vec![(vec!["*".to_owned()], host)]).unwrap();
    cell.swap(Some(Arc::new(table)));
    assert!(ask(proxy, &get("/")).await.starts_with("HTTP/1.1 301 "));
    eventually(|| counted(&registry, "http.t.").get("downstream_rq_completed") == Some(&1)).await;
    let all = counted(&registry, "http.t.");
    assert_eq!(["rq_total", "rq_direct_response"].map(|name| all.get(name).copied()), [Some(1); 2]);
}
