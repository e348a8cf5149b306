//! Redirects that are followed by the proxy: each is a request of its own, and the client sees none of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::*;
use parking_lot::Mutex;
use sixfold_core::access_log::AccessLog;
use sixfold_core::format::Format;
use sixfold_core::headers::HeaderName;
use sixfold_core::route::{InternalRedirect, RequireTls};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

fn redirect(to: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 4\r\n\r\nbody").into_bytes()
}

/// Requests to `/from` are redirected to what `to` says; `/to` has a cluster of its own.
async fn setup(to: &'static str) -> (Setup, Arc<Mutex<Vec<String>>>, Upstream) {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let (asked, answered) = (seen.clone(), seen.clone());
    let from = upstream(move |_, request| {
        asked.lock().push(request.to_owned());
        redirect(to)
    })
    .await;
    let target = upstream(move |_, request| {
        answered.lock().push(request.to_owned());
        ok("target")
    })
    .await;
    let mut setup = Setup::new();
    setup.cluster("from", &[from.address], |_| {});
    setup.cluster("to", &[target.address], |_| {});
    setup.route("/from", "from", |f| f.internal_redirect = Some(InternalRedirect::default().into()));
    setup.route("/to", "to", |_| {});
    setup.routes.push(direct("/own", Bytes::from_static(b"own")));
    (setup, seen, from)
}

/// Where requests are logged from now on: status, details, cluster, and bytes of the body.
fn log_lines(setup: &mut Setup) -> Arc<Lines> {
    let lines = Arc::new(Lines::default());
    let format =
        Format::envoy("%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %UPSTREAM_CLUSTER_RAW% %BYTES_RECEIVED%\n");
    setup.access_logs =
        vec![AccessLog { filter: None, format: Arc::new(format.unwrap()), sink: lines.clone() }];
    lines
}

#[tokio::test]
async fn a_redirect_is_followed_with_the_body_and_logged_by_itself() {
    let (mut setup, seen, _) = setup("http://h/to?q#f").await;
    let lines = log_lines(&mut setup);
    let (stats, registry) = (setup.stats.clone(), setup.registry.clone());
    let (hcm, worker) = setup.build();
    let (proxy, _) = serve(hcm, worker.clone()).await;
    let mut client = TcpStream::connect(proxy).await.unwrap();
    for body in ["hello", "again"] {
        let request = format!("POST /from HTTP/1.1\r\nHost: h\r\nx-a: 1\r\nContent-Length: 5\r\n\r\n{body}");
        client.write_all(request.as_bytes()).await.unwrap();
        let response = read_message(&mut client).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("target"), "{response}");
        let followed = seen.lock().pop().unwrap();
        assert!(followed.starts_with("POST /to?q HTTP/1.1\r\nhost: h\r\n"), "{followed}");
        assert!(followed.contains("\r\nx-envoy-original-url: http://h/from\r\n"), "{followed}");
        assert!(followed.contains("\r\nx-a: 1\r\n") && followed.ends_with(body), "{followed}");
    }
    eventually(|| lines.0.lock().len() == 4).await;
    assert_eq!(lines.0.lock()[..2], ["302 internal_redirect to 5\n", "200 via_upstream to 5\n"]);
    // What was followed is a request, and no response.
    assert_eq!((stats.downstream_rq_total().get(), stats.downstream_rq_completed().get()), (4, 2));
    assert_eq!(registry.sum("cluster.from.", "upstream_internal_redirect_succeeded_total"), 2);
    assert_eq!(registry.sum("cluster.from.", "upstream_rq_active"), 0);
    eventually(|| worker.shared.bodies.used() == 0).await;
}

/// The bytes that had come with the first request were none of the second.
#[tokio::test]
async fn a_body_that_goes_no_further_is_told_of_in_both_lines() {
    let mut setup = Setup::new();
    let from =
        upstream(|_, _| String::from_utf8(redirect("http://h/to")).unwrap().replace("302", "303").into())
            .await;
    let target = upstream(|_, _| ok("target")).await;
    setup.cluster("from", &[from.address], |_| {});
    setup.cluster("to", &[target.address], |_| {});
    let policy = InternalRedirect { codes: vec![303], ..InternalRedirect::default() };
    setup.route("/from", "from", move |f| f.internal_redirect = Some(policy.into()));
    setup.route("/to", "to", |_| {});
    let lines = log_lines(&mut setup);
    let (proxy, _) = setup.serve().await;
    let response = ask(proxy, "POST /from HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello").await;
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("target"), "{response}");
    eventually(|| lines.0.lock().len() == 2).await;
    assert_eq!(lines.0.lock()[..], ["303 internal_redirect to 5\n", "200 via_upstream to 5\n"]);
}

/// Its line named the cluster of a route that no request without TLS has.
#[tokio::test]
async fn a_redirect_to_a_host_that_wants_tls_leads_to_no_cluster() {
    let (mut setup, _, _) = setup("http://h/to").await;
    setup.host.require_tls = RequireTls::All;
    // What the redirect does not say is taken off the request that follows it.
    let copied_headers = vec![HeaderName::new("x-forwarded-proto").unwrap()].into();
    let policy = InternalRedirect { copied_headers, ..InternalRedirect::default() };
    setup.route("/tls", "from", move |f| f.internal_redirect = Some(policy.into()));
    let lines = log_lines(&mut setup);
    let (proxy, _) = setup.serve().await;
    let response = ask(proxy, "GET /tls HTTP/1.1\r\nHost: h\r\nx-forwarded-proto: https\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 301 "), "{response}");
    eventually(|| lines.0.lock().len() == 2).await;
    assert_eq!(lines.0.lock()[0], "302 internal_redirect - 0\n");
}

#[tokio::test]
async fn what_answers_may_be_the_proxy_itself() {
    let (setup, _, _) = setup("http://h/own").await;
    let (proxy, _) = setup.serve().await;
    let response = ask(proxy, &get("/from")).await;
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("own"), "{response}");
}

/// A response that comes before the request is complete can't be followed: the rest of the body is on its way.
#[tokio::test]
async fn a_request_that_is_not_complete_is_not_sent_again() {
    let address = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut byte = [0];
            tokio::io::AsyncReadExt::read_exact(&mut socket, &mut byte).await.unwrap();
            socket.write_all(&redirect("http://h/to")).await.unwrap();
            std::future::pending::<()>().await;
        });
        address
    };
    let (mut setup, _, _) = setup("").await;
    setup.cluster("early", &[address], |_| {});
    setup.route("/early", "early", |f| f.internal_redirect = Some(InternalRedirect::default().into()));
    let registry = setup.registry.clone();
    let (proxy, _) = setup.serve().await;
    let response = ask(proxy, "POST /early HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf").await;
    assert!(response.starts_with("HTTP/1.1 302 "), "{response}");
    assert_eq!(registry.sum("cluster.early.", "upstream_internal_redirect_failed_total"), 1);
}

#[tokio::test]
async fn redirects_are_followed_over_http2_too() {
    let (setup, seen, from) = setup("http://h/to").await;
    let (proxy, _) = setup.serve().await;
    let socket = TcpStream::connect(proxy).await.unwrap();
    let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..2 {
        let request = http::Request::post("http://h/from").body(()).unwrap();
        let (response, mut body) = client.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"hello"), true).unwrap();
        let (head, mut body) = response.await.unwrap().into_parts();
        assert_eq!((head.status.as_u16(), body.data().await.unwrap().unwrap()), (200, "target".into()));
        assert!(seen.lock().pop().unwrap().contains("hello"));
    }
    assert_eq!(from.requests.load(SeqCst), 2);
}
