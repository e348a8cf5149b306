//! What the request path does otherwise where it stands for APISIX's nginx.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::access_log::AccessLog;
use sixfold_core::cluster::UpstreamProtocol;
use sixfold_core::format::Format;
use sixfold_core::hcm::Profile;
use sixfold_core::headers::HeaderRules;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// APISIX's side of the request path, with a log of this format.
fn setup(format: &str) -> (Setup, Arc<Lines>) {
    let (mut setup, lines) = (Setup::new(), Arc::<Lines>::default());
    (setup.profile, setup.header_rules) = (Profile::Apisix, HeaderRules::APISIX);
    let format = Arc::new(Format::apisix(format).unwrap());
    setup.access_logs = vec![AccessLog { filter: None, format, sink: lines.clone() }];
    (setup, lines)
}

async fn first_line(lines: &Lines) -> String {
    eventually(|| !lines.0.lock().is_empty()).await;
    lines.0.lock()[0].trim().to_owned()
}

/// An address at which nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_client_that_left_is_a_499() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut setup, lines) = setup("$status $upstream_status");
    setup.cluster("a", &[silent.local_addr().unwrap()], |_| {});
    setup.route("/", "a", |_| {});
    let proxy = setup.serve().await.0;
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(get("/").as_bytes()).await.unwrap();
    let (mut asked, _) = silent.accept().await.unwrap();
    read_message(&mut asked).await.unwrap();
    drop(client);
    assert_eq!(first_line(&lines).await, "499 -");
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_a_502_in_the_log() {
    let (mut setup, lines) = setup("$status [$upstream_status] [$upstream_addr]");
    let (refuses, answers) = (nobody().await, upstream(|_, _| ok("up")).await);
    setup.cluster("none", &[refuses], |_| {});
    setup.cluster("both", &[refuses, answers.address], |_| {});
    setup.route("/none", "none", |_| {});
    setup.route("/both", "both", |forward| forward.retry = retry("connect-failure", 1));
    let proxy = setup.serve().await.0;
    assert!(ask(proxy, &get("/none")).await.starts_with("HTTP/1.1 502 "));
    assert_eq!(first_line(&lines).await, format!("502 [502] [{refuses}]"));
    // Whichever comes first, one of two requests in turn begins at the one that refuses.
    for _ in 0..2 {
        assert!(ask(proxy, &get("/both")).await.ends_with("up"));
    }
    eventually(|| lines.0.lock().len() == 3).await;
    let tried_twice = format!("200 [502, 200] [{refuses}, {}]", answers.address);
    assert!(lines.0.lock().iter().any(|line| line.trim() == tried_twice), "{lines:?}");
}

/// Servers of gRPC reset calls without it; nginx's grpc_pass sends it whatever the client said.
#[tokio::test]
async fn an_upstream_of_grpc_is_told_that_trailers_are_understood() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(socket).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let told: Vec<_> = request.headers().get_all("te").iter().cloned().collect();
            let mut response = http::Response::builder();
            for te in told {
                response = response.header("x-told", te);
            }
            respond.send_response(response.body(()).unwrap(), true).unwrap();
        }
    });
    let (mut setup, _) = setup("$status");
    setup.cluster("a", &[address], |config| config.protocol = UpstreamProtocol::Http2);
    setup.route("/", "a", |_| {});
    let proxy = setup.serve().await.0;
    for said in ["", "TE: trailers\r\n", "TE: deflate\r\n"] {
        let request = format!("GET / HTTP/1.1\r\nHost: t\r\n{said}\r\n");
        let response = ask(proxy, &request).await.to_ascii_lowercase();
        let told: Vec<&str> = response.lines().filter(|line| line.starts_with("x-told:")).collect();
        assert_eq!(told, ["x-told: trailers"], "{said}");
    }
}
