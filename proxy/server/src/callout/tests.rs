#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::dns::ResolverConfig;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
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

fn callout(trusted: Option<PathBuf>) -> HttpCallout {
    let resolver = Resolver::new(ResolverConfig::default()).unwrap();
    HttpCallout::new(Arc::new(resolver), CalloutConfig { trusted })
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
    tokio::time::sleep(Duration::from_millis(20)).await;
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
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
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
    std::fs::remove_file(file).unwrap();
}
