#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::dns::ResolverConfig;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sixfold_core::cluster::{Address, ClusterConfig, Clusters, HostConfig, UpstreamProtocol};
use sixfold_core::hcm::Profile;
use sixfold_core::headers::Headers;
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::{Keepalive, OwnHeaders, VerifyTls, grpc};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A service on loopback; it counts connections and closes each after `per_connection` requests.
struct Service {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Service {
    async fn start(tls: Option<tokio_rustls::TlsAcceptor>) -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, SeqCst);
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(TokioIo::new(stream)).await;
                            }
                        }
                        None => serve(TokioIo::new(stream)).await,
                    }
                });
            }
        });
        Service { port, connections }
    }

    fn request(&self, path: &str) -> CalloutRequest {
        CalloutRequest {
            uri: format!("http://127.0.0.1:{}{path}", self.port),
            target: None,
            cluster: None,
            retries: 0,
            method: http::Method::POST,
            headers: Headers::new(),
            body: Bytes::from_static(b"question"),
            timeout: Duration::from_secs(5),
            verify_tls: true,
            max_body: 1000,
            keepalive: Some(Keepalive::default()),
        }
    }
}

async fn serve<T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static>(io: T) {
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service_fn(answer)).await;
}

#[allow(clippy::disallowed_methods, reason = "a test's own body")]
async fn answer(
    request: http::Request<Incoming>,
) -> Result<http::Response<Full<Bytes>>, std::convert::Infallible> {
    let path = request.uri().to_string();
    if path == "/slow" {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    let header = |name: &str| request.headers().get(name).map_or("-", |v| v.to_str().unwrap()).to_owned();
    let (host, custom) = (header("host"), header("x-a"));
    let builder =
        http::Response::builder().status(if path == "/deny" { 403 } else { 200 }).header("x-b", "2");
    let builder = if path == "/close" { builder.header("connection", "close") } else { builder };
    let method = request.method().clone();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let text = match path.as_str() {
        "/long" => "x".repeat(1001),
        _ => format!("{method} {path} {host} {custom} {}", String::from_utf8_lossy(&body)),
    };
    Ok(builder.body(Full::new(Bytes::from(text))).unwrap())
}

fn dns() -> DnsCache {
    DnsCache::start(ResolverConfig::default()).unwrap()
}

fn callout(trusted: Option<PathBuf>) -> Callouts {
    Callouts::new(dns(), CalloutConfig { trusted })
}

#[tokio::test]
async fn requests_and_answers_carry_head_and_body() {
    let service = Service::start(None).await;
    let callout = callout(None);
    let mut request = service.request("/p?q=1");
    request.headers.push(b"x-a", b"1");
    let response = callout.send(request).await.unwrap();
    assert_eq!((response.status, response.headers.get("x-b")), (200, Some(&b"2"[..])));
    assert_eq!(response.body, format!("POST /p?q=1 127.0.0.1:{} 1 question", service.port));

    let mut request = service.request("/deny");
    request.headers.push(b"host", b"other.test");
    let response = callout.send(request).await.unwrap();
    assert_eq!((response.status, &response.body[..]), (403, &b"POST /deny other.test - question"[..]));
}

#[tokio::test]
async fn connections_are_kept_unless_told_otherwise() {
    let service = Service::start(None).await;
    let callout = callout(None);
    for _ in 0..3 {
        callout.send(service.request("/")).await.unwrap();
    }
    assert_eq!(service.connections.load(SeqCst), 1);
    // The service closes: the next request opens another.
    callout.send(service.request("/close")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    callout.send(service.request("/")).await.unwrap();
    assert_eq!(service.connections.load(SeqCst), 2);
    for _ in 0..2 {
        callout.send(CalloutRequest { keepalive: None, ..service.request("/") }).await.unwrap();
    }
    assert!(service.connections.load(SeqCst) >= 3);
}

#[tokio::test]
async fn bounds_and_failures_are_errors() {
    let service = Service::start(None).await;
    let callout = callout(None);
    let slow = CalloutRequest { timeout: Duration::from_millis(50), ..service.request("/slow") };
    assert!(matches!(callout.send(slow).await, Err(CalloutError::Timeout)));
    let error = |e: CalloutError| e.to_string();
    assert!(error(callout.send(service.request("/long")).await.unwrap_err()).contains("1000 bytes"));
    let closed = crate::nobody::nobody();
    for (uri, reason) in [
        (format!("http://{closed}/"), "refused"),
        ("ftp://a/".into(), "neither http nor https"),
        ("http://".into(), ""),
        ("/only/path".into(), "neither http nor https"),
    ] {
        let request = CalloutRequest { uri: uri.clone(), ..service.request("/") };
        let said = error(callout.send(request).await.unwrap_err());
        assert!(said.contains(reason), "{uri}: {said}");
    }
}

/// A codec leaves out a field that no message can have: the service was asked without it.
#[tokio::test]
async fn what_no_request_can_say_is_not_asked() {
    let service = Service::start(None).await;
    let callout = callout(None);
    let header = |name: &str, value: &[u8]| {
        let mut request = service.request("/");
        request.headers.push(name.as_bytes(), value);
        request
    };
    for request in [
        header("x-a", b"/a\n"),
        header("x-a", b"\r"),
        header("x-a", b"\0"),
        header("x a", b"1"),
        header("host", b"a b"),
        CalloutRequest { target: Some(b"/a b".to_vec()), ..service.request("/") },
        service.request("/a b"),
    ] {
        let error = callout.send(request).await.unwrap_err();
        assert!(matches!(error, CalloutError::Unaskable(_)), "{error}");
    }
    assert_eq!(service.connections.load(SeqCst), 0);
    assert!(callout.open(header("x-a", b"\n")).await.is_err());
}

#[tokio::test]
async fn services_over_tls_are_verified_unless_told_otherwise() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let service = Service::start(Some(Arc::new(config).into())).await;
    let file =
        std::env::temp_dir().join(format!("sixfold-callout-{}-{}.pem", std::process::id(), service.port));
    std::fs::write(&file, made.cert.pem()).unwrap();
    let request = |verify_tls| CalloutRequest {
        uri: format!("https://localhost:{}/tls", service.port),
        verify_tls,
        ..service.request("/")
    };
    assert_eq!(callout(Some(file.clone())).send(request(true)).await.unwrap().status, 200);
    assert_eq!(callout(None).send(request(false)).await.unwrap().status, 200);
    assert!(callout(None).send(request(true)).await.is_err());
    assert!(callout(Some("/nowhere".into())).send(request(true)).await.is_err());
    // And so are connections for other protocols.
    let raw = async |callout: Callouts, verify| {
        let request = ConnectRequest {
            host: "localhost",
            port: service.port,
            tls: Some(verify),
            timeout: Duration::from_secs(5),
        };
        said(callout.connect(request).await?).await
    };
    assert!(raw(callout(Some(file.clone())), VerifyTls::Yes).await.unwrap().starts_with("HTTP/1.1 200 OK"));
    assert!(raw(callout(None), VerifyTls::No).await.unwrap().ends_with("GET /raw a - "));
    assert!(raw(callout(None), VerifyTls::Yes).await.is_err());
    std::fs::remove_file(file).unwrap();
}

/// What the service answers on a connection of bytes.
async fn said(mut wire: Box<dyn CalloutWire>) -> Result<String, CalloutError> {
    let mut text = String::new();
    wire.write_all(b"GET /raw HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.map_err(failed)?;
    wire.read_to_string(&mut text).await.map_err(failed)?;
    Ok(text)
}

#[tokio::test]
async fn connections_for_other_protocols_are_bytes() {
    let service = Service::start(None).await;
    let callout = callout(None);
    let request = |host, port| ConnectRequest { host, port, tls: None, timeout: Duration::from_secs(20) };
    let wire = callout.connect(request("localhost", service.port)).await.unwrap();
    assert!(said(wire).await.unwrap().ends_with("GET /raw a - "));
    let closed = crate::nobody::nobody().port();
    assert!(callout.connect(request("127.0.0.1", closed)).await.is_err());
    assert!(callout.connect(request("no such name", 1)).await.is_err());
}

/// A cluster of the configuration.
fn cluster(
    addresses: Vec<Address>,
    change: impl FnOnce(&mut ClusterConfig),
) -> Arc<sixfold_core::cluster::ClusterCell> {
    let mut config = ClusterConfig::named("c");
    change(&mut config);
    let hosts = addresses.into_iter().map(HostConfig::new).collect();
    let cell = Clusters::default().cell("c");
    cell.swap(Some(Cluster::new(config, hosts, None, &Registry::new()).unwrap()));
    cell
}

#[tokio::test]
async fn clusters_bring_their_endpoints_unix_sockets_and_retries() {
    let service = Service::start(None).await;
    let dead = crate::nobody::nobody();
    let alive = Address::Ip(([127, 0, 0, 1], service.port).into());
    let cell = cluster(vec![Address::Ip(dead), alive.clone()], |_| {});
    let callout = callout(None);
    let request = |retries| CalloutRequest {
        uri: "http://named.test/p".into(),
        cluster: Some(cell.clone()),
        retries,
        ..service.request("/")
    };
    for _ in 0..4 {
        let answer = callout.send(request(1)).await.unwrap();
        assert_eq!(answer.body, "POST /p named.test - question");
    }
    // Where its sender says so, what is asked for is not the URI's.
    let asked = CalloutRequest { target: Some(br"/a\^|".to_vec()), ..request(1) };
    assert_eq!(callout.send(asked).await.unwrap().body, r"POST /a\^| named.test - question");
    let mut failed = 0;
    for _ in 0..4 {
        failed += usize::from(callout.send(request(0)).await.is_err());
    }
    assert_eq!(failed, 2, "they take turns");

    let path =
        std::env::temp_dir().join(format!("sixfold-callout-{}-{}.sock", std::process::id(), service.port));
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(TokioIo::new(stream)));
        }
    });
    let unix = cluster(vec![Address::Unix(path.clone())], |_| {});
    let answer = callout.send(CalloutRequest { cluster: Some(unix), ..request(0) }).await.unwrap();
    assert_eq!(answer.body, "POST /p named.test - question");
    std::fs::remove_file(path).unwrap();

    let nobody = Clusters::default().cell("nobody");
    let error = callout.send(CalloutRequest { cluster: Some(nobody), ..request(0) }).await.unwrap_err();
    assert!(error.to_string().contains("no cluster 'nobody'"), "{error}");
}

// A callout opened connections with nginx's manners whoever had described the cluster, and requests of clients then went over
// them: folded fields were refused, names that are none let pass.
#[tokio::test]
async fn a_cluster_says_whose_manners_its_connections_have() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Ip(listener.local_addr().unwrap());
    let callout = callout(None);
    let answer = |field: &str| format!("HTTP/1.1 200 Fine\r\n{field}\r\ncontent-length: 0\r\n\r\n");
    for (profile, length, folded, bad) in [
        (Profile::Envoy, "\r\ncontent-length: 8\r\n", true, false),
        (Profile::Apisix, "\r\nContent-Length: 8\r\n", false, true),
    ] {
        for (field, passes) in [("x-a: a\r\n b", folded), ("Bad@Name: 2", bad)] {
            let cell = cluster(vec![address.clone()], |config| config.profile = profile);
            let request = CalloutRequest {
                uri: "http://named.test/p".into(),
                target: None,
                cluster: Some(cell),
                retries: 0,
                method: http::Method::POST,
                headers: Headers::new(),
                body: Bytes::from_static(b"question"),
                timeout: Duration::from_secs(5),
                verify_tls: true,
                max_body: 1000,
                keepalive: None,
            };
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut seen = vec![0; 1000];
                let read = stream.read(&mut seen).await.unwrap();
                stream.write_all(answer(field).as_bytes()).await.unwrap();
                String::from_utf8_lossy(&seen[..read]).into_owned()
            };
            let (answered, seen) = tokio::join!(callout.send(request), serve);
            assert!(seen.contains(length), "{profile:?}: {seen}");
            assert_eq!(answered.is_ok(), passes, "{profile:?} {field}");
        }
    }
}

// A service was asked again when its pooled connection had died under a request, where Envoy does not: it may have done by then
// what it was asked for.
#[tokio::test]
async fn a_pooled_connection_that_dies_is_replaced_by_nginx_alone() {
    for (profile, replaces) in [(Profile::Envoy, false), (Profile::Apisix, true)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Ip(listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        tokio::spawn(async move {
            // Of each connection the first request is answered, and the second is read.
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut seen = vec![0; 1000];
                for answered in [true, false] {
                    let read = stream.read(&mut seen).await.unwrap();
                    count.fetch_add(usize::from(read > 0), SeqCst);
                    if answered {
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                    }
                }
            }
        });
        let cell = cluster(vec![address], |config| config.profile = profile);
        let callout = callout(None);
        let request = || CalloutRequest {
            uri: "http://named.test/p".into(),
            target: None,
            cluster: Some(cell.clone()),
            retries: 0,
            method: http::Method::GET,
            headers: Headers::new(),
            body: Bytes::new(),
            timeout: Duration::from_secs(5),
            verify_tls: true,
            max_body: 1000,
            keepalive: None,
        };
        assert!(callout.send(request()).await.is_ok());
        assert_eq!(callout.send(request()).await.is_ok(), replaces, "{profile:?}");
        assert_eq!(asked.load(SeqCst), if replaces { 3 } else { 2 });
    }
}

// A URI may hold what a client sends: each host was remembered for ever.
#[tokio::test]
async fn hosts_of_free_uris_are_bounded_and_leave_with_their_connections() {
    let service = Service::start(None).await;
    let services = Services::new(dns(), trust::Trust::start(None)).with_most(3);
    let callout = Callouts(Arc::new(services));
    for last in 1..=9 {
        let uri = format!("http://127.0.0.{last}:{}/", service.port);
        let request = CalloutRequest { uri, ..service.request("/") };
        // Only the first of these addresses is listened on.
        assert_eq!(callout.send(request).await.is_ok(), last == 1);
        assert!(callout.0.count() <= 3);
    }
    assert_eq!(callout.0.count(), 3);
    assert_eq!(callout.send(service.request("/")).await.unwrap().status, 200);
    assert_eq!(service.connections.load(SeqCst), 2, "what was forgotten is opened anew");
}

/// Every callout took one lock of the process, and made a text to look its service up.
#[tokio::test]
async fn a_service_that_a_worker_knows_is_found_while_others_are_added() {
    let service = Service::start(None).await;
    let services = Services::new(dns(), trust::Trust::start(None));
    let callout = Callouts(Arc::new(services));
    callout.send(service.request("/")).await.unwrap();
    let _busy = callout.0.busy();
    // Would wait for ever, for a lock that the test itself holds.
    let uri: http::Uri = service.request("/").uri.parse().unwrap();
    let known = callout.0.cluster(Asked::of(&service.request("/"), &uri).unwrap()).await;
    assert_eq!(known.unwrap().hosts.load().total(), 1);
}

/// Echoes messages; one that begins with `!` is refused with status 7.
async fn grpc_service() -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut server = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((request, respond))) = server.accept().await {
                    tokio::spawn(echo(request, respond));
                }
            });
        }
    });
    Address::Ip(address)
}

async fn echo(request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    assert_eq!(request.headers()["te"], "trailers");
    assert_eq!(request.headers()["content-type"], "application/grpc");
    let kind = if request.uri().path() == "/page" { "text/html" } else { "application/grpc" };
    let mut body = request.into_body();
    let response = http::Response::builder().header("content-type", kind).body(()).unwrap();
    let mut out = respond.send_response(response, false).unwrap();
    let mut refused = false;
    while let Some(Ok(piece)) = body.data().await {
        body.flow_control().release_capacity(piece.len()).unwrap();
        refused |= piece.get(5) == Some(&b'!');
        if !refused {
            out.send_data(piece, false).unwrap();
        }
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", if refused { "7" } else { "0" }.parse().unwrap());
    trailers.insert("grpc-message", "as%20%C3%A4sked".parse().unwrap());
    out.send_trailers(trailers).unwrap();
}

#[tokio::test]
async fn grpc_calls_are_unary_or_streams_and_end_with_their_status() {
    let address = grpc_service().await;
    let cell = cluster(vec![address], |config| config.protocol = UpstreamProtocol::Http2);
    let client = grpc::Client {
        own: OwnHeaders::default(),
        callout: Arc::new(callout(None)),
        cluster: cell.clone(),
        authority: "service.test".into(),
        timeout: Duration::from_secs(10),
        max_message: 1000,
    };
    let answer = client.unary("/a.B/C", Headers::new(), b"hello").await.unwrap();
    assert_eq!(answer, "hello");
    let refused = client.unary("/a.B/C", Headers::new(), b"!no").await.unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (7, "as \u{e4}sked"));
    let long = client.unary("/a.B/C", Headers::new(), &[b'x'; 1001]).await.unwrap_err();
    assert_eq!(long.code, 8);
    // Its bytes were taken for a message.
    let page = client.unary("/page", Headers::new(), b"<html>").await.unwrap_err();
    assert_eq!((page.code, page.message.as_str()), (2, "an answer of type \"text/html\", which is not gRPC"));

    let mut call = client.call("/a.B/Stream", Headers::new()).await.unwrap();
    for word in ["one", "two", "three"] {
        call.send(word.as_bytes()).await.unwrap();
        assert_eq!(call.receive().await.unwrap().unwrap(), word);
    }
    call.finish();
    assert_eq!(call.receive().await, Ok(None));
    drop(call);
    let cluster = cell.load().unwrap();
    let stats = &cluster.stats;
    assert_eq!((stats.upstream_rq_total().get(), stats.upstream_rq_active().get()), (5, 0));

    let dead = crate::nobody::nobody();
    let nowhere = self::cluster(vec![Address::Ip(dead)], |config| config.protocol = UpstreamProtocol::Http2);
    let client = grpc::Client { cluster: nowhere, ..client };
    assert_eq!(client.unary("/a.B/C", Headers::new(), b"x").await.unwrap_err().code, 14);
}
