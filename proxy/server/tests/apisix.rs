//! What the request path does otherwise where it stands for APISIX's nginx.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::access_log::AccessLog;
use sixfold_core::cluster::UpstreamProtocol;
use sixfold_core::format::Format;
use sixfold_core::hcm::{ApisixPath, PathOptions, Profile};
use sixfold_core::headers::HeaderRules;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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

#[tokio::test]
async fn a_client_that_left_is_a_499() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut setup, lines) = setup("$status $upstream_status [$request_completion]");
    setup.cluster("a", &[silent.local_addr().unwrap()], |_| {});
    setup.route("/", "a", |_| {});
    let proxy = setup.serve().await.0;
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(get("/").as_bytes()).await.unwrap();
    let (mut asked, _) = silent.accept().await.unwrap();
    read_message(&mut asked).await.unwrap();
    drop(client);
    assert_eq!(first_line(&lines).await, "499 - []");
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_a_502_in_the_log() {
    let (mut setup, lines) = setup("$status [$upstream_status] [$upstream_addr]");
    let (refuses, answers) = (nobody(), upstream(|_, _| ok("up")).await);
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

/// A client over HTTP/1 never heard how its call had ended, and the service saw what type the client had said.
#[tokio::test]
async fn a_client_of_http1_gets_the_status_of_its_grpc_call() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(socket).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let types: Vec<_> = request.headers().get_all("content-type").iter().collect();
            assert_eq!(types, ["application/grpc"]);
            let mut send = respond.send_response(http::Response::new(()), false).unwrap();
            send.send_data(bytes::Bytes::from_static(b"hello"), false).unwrap();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            send.send_trailers(trailers).unwrap();
        }
    });
    let (mut setup, lines) = setup("$content_type $http_content_type");
    setup.cluster("a", &[address], |config| config.protocol = UpstreamProtocol::Http2);
    setup.route("/", "a", |_| {});
    let proxy = setup.serve().await.0;
    let ask_it = "POST / HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\n";
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(ask_it.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("\r\n5\r\nhello\r\n0\r\ngrpc-status: 0\r\n\r\n"), "{answer}");
    assert_eq!(first_line(&lines).await, "text/plain text/plain");
}

/// A refused request was logged as `GET  HTTP/1.1`, one whose client left in mid-head not at all.
#[tokio::test]
async fn what_is_no_request_is_logged_as_it_came() {
    let (mut setup, lines) =
        setup("$status [$request] [$request_method] [$request_uri] [$host] [$server_protocol]");
    setup.routes.push(direct("/", "".into()));
    let proxy = setup.serve().await.0;
    for (sent, line) in [
        ("GARBAGE\r\n\r\n", "400 [GARBAGE] [-] [-] [] []"),
        ("GET /x?y HTTP/1.1\r\nX: 1\r\n\r\n", "400 [GET /x?y HTTP/1.1] [GET] [/x?y] [_] [HTTP/1.1]"),
        (
            "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: z\r\n\r\n",
            "400 [POST /x HTTP/1.1] [POST] [/x] [a] [HTTP/1.1]",
        ),
        ("GET /x HTTP/3.1\r\nHost: a\r\n\r\n", "505 [GET /x HTTP/3.1] [-] [-] [] []"),
    ] {
        let before = lines.0.lock().len();
        assert!(whole(proxy, sent).await.starts_with(&format!("HTTP/1.1 {}", &line[..3])), "{sent:?}");
        eventually(|| lines.0.lock().len() > before).await;
        assert_eq!(lines.0.lock()[before].trim(), line, "{sent:?}");
    }
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(b"GET /x HTT").await.unwrap();
    drop(client);
    eventually(|| lines.0.lock().len() == 5).await;
    assert_eq!(lines.0.lock()[4].trim(), "400 [GET /x HTT] [-] [-] [] []");
}

/// They were bodies alone, or heads without their lines, and of several attempts the last one's.
#[tokio::test]
async fn bytes_in_the_log_are_those_on_the_wire() {
    let (mut setup, lines) = setup(
        "$request_length $bytes_sent $body_bytes_sent [$upstream_bytes_sent] [$upstream_bytes_received] \
         [$upstream_response_length]",
    );
    let seen = Arc::<Lines>::default();
    let told = seen.clone();
    let up = upstream(move |_, request| {
        told.0.lock().push(request.to_owned());
        ok("up")
    });
    let (refuses, answers) = (nobody(), up.await);
    setup.cluster("both", &[refuses, answers.address], |_| {});
    setup.route("/", "both", |forward| forward.retry = retry("connect-failure", 1));
    let proxy = setup.serve().await.0;
    let request = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for n in 0..2 {
        let answer = ask(proxy, request).await;
        eventually(|| lines.0.lock().len() == n + 1).await;
        let sent = seen.0.lock()[n].len();
        let first = if lines.0.lock()[n].contains(", ") { "0, " } else { "" };
        let expected = format!(
            "{} {} 2 [{first}{sent}] [{first}{}] [{first}2]",
            request.len(),
            answer.len(),
            ok("up").len()
        );
        assert_eq!(lines.0.lock()[n].trim(), expected);
    }
    assert!(
        lines.0.lock().iter().any(|line| line.contains("[0, ")),
        "one began at the endpoint that refuses"
    );
}

/// The access log is nginx's: it sees what the client sent. `$request_uri` was normalised there, and
/// `$http_x_forwarded_for` had the address that is added for the upstream.
#[tokio::test]
async fn the_access_log_has_the_request_as_the_client_sent_it() {
    let (mut setup, lines) = setup("");
    let format = "$request_uri $uri $http_x_forwarded_for $upstream_http_content_type";
    setup.access_logs[0].format = Arc::new(Format::nginx_log(format).unwrap());
    setup.path = PathOptions { apisix: Some(ApisixPath::default()), ..PathOptions::default() };
    let up = upstream(|_, _| ok("up")).await;
    setup.cluster("a", &[up.address], |_| {});
    setup.cluster("none", &[nobody()], |_| {});
    setup.route("/none", "none", |_| {});
    setup.route("/", "a", |_| {});
    let proxy = setup.serve().await.0;
    let from = |path: &str, fields: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    for (request, line) in [
        (from("/a//b/../c?q=1", "X-Forwarded-For: 1.2.3.4\r\n"), "/a//b/../c?q=1 /a/c 1.2.3.4 -"),
        (from("/a", ""), "/a /a - -"),
        (from("/a", "X-Forwarded-For: 127.0.0.1\r\n"), "/a /a 127.0.0.1 -"),
        // The page is ours, and not the upstream's.
        (from("/none", ""), "/none /none - -"),
    ] {
        let before = lines.0.lock().len();
        ask(proxy, &request).await;
        eventually(|| lines.0.lock().len() > before).await;
        assert_eq!(lines.0.lock()[before].trim(), line, "{request:?}");
    }
}

/// Counted without the framing of chunks, which nginx counts; what a hop takes off was gone from the log, and so was
/// the upstream's own Server.
#[tokio::test]
async fn the_access_log_counts_framing_and_shows_what_a_hop_takes_off() {
    let (mut setup, lines) = setup("");
    let format = "$body_bytes_sent $sent_http_transfer_encoding $upstream_response_length $upstream_http_server \
                  $http_upgrade $http_te $connection_requests|$proxy_add_x_forwarded_for|$request";
    setup.access_logs[0].format = Arc::new(Format::nginx_log(format).unwrap());
    let up = upstream(|_, request| match request.contains("/chunked") {
        true => b"HTTP/1.1 200 OK\r\nServer: up\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            .to_vec(),
        false => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
    })
    .await;
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let proxy = setup.serve().await.0;
    let mut client = TcpStream::connect(proxy).await.unwrap();
    for (request, line) in [
        (
            "GET /chunked HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nTE: trailers\r\n\r\n",
            "12 chunked 12 up h2c trailers 1|127.0.0.1|GET /chunked HTTP/1.1",
        ),
        (
            "GET http://b/ HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n",
            "2 - 2 - - - 2|1.1.1.1, 127.0.0.1|GET http://b/ HTTP/1.1",
        ),
    ] {
        let before = lines.0.lock().len();
        client.write_all(request.as_bytes()).await.unwrap();
        read_message(&mut client).await.unwrap();
        eventually(|| lines.0.lock().len() > before).await;
        assert_eq!(lines.0.lock()[before].trim(), line, "{request:?}");
    }
}

/// What an upstream tells nginx alone went on to the client, and a request without Host got an empty one.
#[tokio::test]
async fn what_is_meant_for_nginx_and_what_is_empty_goes_no_further() {
    let (mut setup, _) = setup("$status");
    let up = upstream(|_, request| {
        let has_host = request.to_ascii_lowercase().contains("host:");
        let told = "X-Accel-Redirect: /y\r\nx-accel-buffering: no\r\nX-Pad: 1\r\nX-Accel-Other: 1";
        format!("HTTP/1.1 200 OK\r\n{told}\r\nX-Host: {has_host}\r\nContent-Length: 0\r\n\r\n").into_bytes()
    })
    .await;
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let proxy = setup.serve().await.0;
    let answer = ask(proxy, "GET / HTTP/1.0\r\n\r\n").await;
    let told: Vec<&str> = answer.lines().filter(|line| line.to_ascii_lowercase().starts_with("x-")).collect();
    assert_eq!(told, ["X-Accel-Other: 1", "X-Host: false"]);
}

/// It ended the connection, which nginx keeps.
#[tokio::test]
async fn a_websocket_that_the_upstream_turns_down_leaves_the_connection_to_the_next_request() {
    let (mut setup, _) = setup("$status");
    let up = upstream(|_, _| b"HTTP/1.1 418 No Tea\r\nContent-Length: 2\r\n\r\nno".to_vec()).await;
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    setup.upgrades = Box::new([("websocket".into(), true)]);
    let proxy = setup.serve().await.0;
    let mut client = TcpStream::connect(proxy).await.unwrap();
    for _ in 0..2 {
        let ask = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        client.write_all(ask.as_bytes()).await.unwrap();
        let answer = read_message(&mut client).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 418 No Tea\r\n"), "{answer}");
        assert!(answer.contains("\r\nConnection: keep-alive\r\n") && answer.ends_with("no"), "{answer}");
    }
    assert_eq!(up.requests.load(std::sync::atomic::Ordering::SeqCst), 2);
}
