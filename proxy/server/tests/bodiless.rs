//! Responses that end with their head, whatever body there is for them: answers to HEAD, 204, 304.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::*;
use sixfold_core::access_log::AccessLog;
use sixfold_core::format::Format;
use sixfold_core::hcm::Profile;
use sixfold_core::headers::{HeaderRules, Known};
use sixfold_core::plugin::{BodyPiece, BodyStep, ChainBuilder, LocalReply, Plugin, Slot, Step};
use sixfold_core::route::{Action, DirectResponse};
use sixfold_core::stream::Stream;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Answers of its own under `/STATUS` and `/dead`, an upstream under the rest; the bytes of each body go to the log.
fn setup(profile: Profile, up: SocketAddr) -> (Setup, Arc<Lines>) {
    let (mut setup, lines) = (Setup::new(), Arc::<Lines>::default());
    let format = match profile {
        Profile::Envoy => Format::envoy("%RESPONSE_CODE% %BYTES_SENT%").unwrap(),
        Profile::Apisix => Format::apisix("$status $body_bytes_sent").unwrap(),
    };
    if profile == Profile::Apisix {
        setup.header_rules = HeaderRules::APISIX;
    }
    setup.profile = profile;
    setup.access_logs = vec![AccessLog { filter: None, format: Arc::new(format), sink: lines.clone() }];
    for status in [200, 204, 304] {
        let direct = DirectResponse { status, body: "hello".into(), body_format: None };
        setup.routes.push(Arc::new(route(&format!("/{status}"), Action::Direct(direct.into()))));
    }
    setup.cluster("dead", &[nobody()], |_| {});
    setup.cluster("up", &[up], |_| {});
    setup.route("/dead", "dead", |_| {});
    setup.route("/", "up", |_| {});
    (setup, lines)
}

const ANSWERS: [(&str, &str); 4] = [("HEAD", "/200"), ("HEAD", "/dead"), ("GET", "/204"), ("GET", "/304")];

/// A DATA frame followed the head, and clients took the connection for broken.
#[tokio::test]
async fn over_http2_no_data_follows_the_head_of_an_answer_of_our_own() {
    for profile in [Profile::Envoy, Profile::Apisix] {
        let up = upstream(|_, _| ok("")).await;
        let (setup, lines) = setup(profile, up.address);
        let (proxy, _) = setup.serve().await;
        let socket = TcpStream::connect(proxy).await.unwrap();
        let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::spawn(connection);
        for (method, path) in ANSWERS {
            let request = http::Request::builder().method(method).uri(format!("http://t{path}"));
            let (response, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
            let response = response.await.unwrap();
            let length = response.headers().get("content-length").cloned();
            assert!(response.body().is_end_stream(), "{profile:?} {method} {path}: {response:?}");
            assert_eq!(
                method == "HEAD",
                length.is_some_and(|l| l != "0") && response.status() != 304,
                "{path}"
            );
        }
        eventually(|| lines.0.lock().len() == ANSWERS.len()).await;
        for line in lines.0.lock().iter() {
            assert!(line.trim_end().ends_with(" 0"), "{profile:?}: {line}");
        }
    }
}

/// The body that was not sent was counted.
#[tokio::test]
async fn over_http1_what_is_not_sent_is_not_counted() {
    for profile in [Profile::Envoy, Profile::Apisix] {
        let up = upstream(|_, _| ok("")).await;
        let (setup, lines) = setup(profile, up.address);
        let (proxy, _) = setup.serve().await;
        for (n, (method, path)) in ANSWERS.into_iter().enumerate() {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
            let response = whole(proxy, &request).await;
            assert!(response.ends_with("\r\n\r\n"), "{response}");
            eventually(|| lines.0.lock().len() == n + 1).await;
            let line = lines.0.lock()[n].clone();
            assert!(line.trim_end().ends_with(" 0"), "{profile:?} {method} {path}: {line}");
        }
    }
}

fn tell_end<'a>(_: &'a (), stream: &'a mut Stream, _: Slot) -> Step<'a> {
    let ends = stream.ends_with_head.to_string();
    stream.response.headers.set("x-ends", ends.as_bytes());
    Step::Continue
}

#[tokio::test]
async fn plugins_know_with_the_head_whether_anything_follows() {
    let up = upstream(|_, request| if request.contains(" /empty ") { ok("") } else { ok("hello") }).await;
    let (mut setup, _) = setup(Profile::Envoy, up.address);
    let mut builder = ChainBuilder::new();
    builder.add("p", Plugin::of(()).header_filter(tell_end).build());
    setup.chain = Arc::new(builder.build());
    let (proxy, _) = setup.serve().await;
    for (line, ends) in [
        ("GET /full", false),
        ("HEAD /full", true),
        ("GET /empty", true),
        ("GET /200", false),
        ("HEAD /200", true),
        ("GET /204", true),
    ] {
        let response =
            whole(proxy, &format!("{line} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")).await;
        assert!(response.contains(&format!("x-ends: {ends}\r\n")), "{line}: {response}");
    }
}

/// Wants the whole body and can't stand an empty one, as what undoes an encoding.
fn demanding(_: &(), _: &mut Stream, _: Slot, piece: &BodyPiece<'_>) -> BodyStep {
    match piece.data.is_empty() {
        _ if !piece.last => BodyStep::hold(100),
        true => BodyStep::Respond(Box::new(LocalReply::new(500, "", "empty"))),
        false => BodyStep::Replace(Bytes::from_static(b"filtered")),
    }
}

fn unsized_response<'a>(_: &'a (), stream: &'a mut Stream, _: Slot) -> Step<'a> {
    stream.response.headers.remove(Known::CONTENT_LENGTH);
    Step::Continue
}

/// A filter that was run on the body of a response that has none refused it, and the client's connection was cut.
#[tokio::test]
async fn no_filter_runs_where_there_is_no_body() {
    let up = upstream(|_, request| {
        let head = match request.split(' ').nth(1).unwrap() {
            "/not-modified" => "304 Not Modified\r\nETag: \"a\"",
            "/nothing" => "204 No Content",
            _ if request.starts_with("HEAD") => "200 OK\r\nContent-Length: 30",
            _ => return ok("body"),
        };
        format!("HTTP/1.1 {head}\r\n\r\n").into_bytes()
    })
    .await;
    let (mut setup, _) = setup(Profile::Apisix, up.address);
    let mut builder = ChainBuilder::new();
    builder.add("p", Plugin::of(()).header_filter(unsized_response).response_body(demanding).build());
    setup.chain = Arc::new(builder.build());
    let (proxy, _) = setup.serve().await;
    let mut client = TcpStream::connect(proxy).await.unwrap();
    for (request, status) in [("HEAD /", "200"), ("GET /not-modified", "304"), ("GET /nothing", "204")] {
        client.write_all(format!("{request} HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes()).await.unwrap();
        let response = read_message(&mut client).await.unwrap();
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {response}");
        assert!(response.ends_with("\r\n\r\n") && !response.contains("chunked"), "{request}: {response}");
    }
    // The connection has lived, and what has a body is filtered.
    client.write_all(get("/").as_bytes()).await.unwrap();
    let response = read_message(&mut client).await.unwrap();
    assert!(response.contains("filtered"), "{response}");
}

/// A plugin may ask the upstream for more than the client asked for.
fn asks_for_all<'a>(_: &'a (), stream: &'a mut Stream, _: Slot) -> Step<'a> {
    stream.request.method = http::Method::GET;
    Step::Continue
}

#[tokio::test]
async fn a_client_that_asked_for_the_head_gets_no_body_of_an_upstream_that_was_asked_for_all() {
    let up = upstream(|_, request| {
        assert!(request.starts_with("GET "), "{request}");
        ok("hello")
    })
    .await;
    let (mut setup, lines) = setup(Profile::Apisix, up.address);
    let mut builder = ChainBuilder::new();
    builder.add("p", Plugin::of(()).rewrite(asks_for_all).build());
    setup.chain = Arc::new(builder.build());
    let (proxy, _) = setup.serve().await;
    let socket = TcpStream::connect(proxy).await.unwrap();
    let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    for n in 0..2 {
        let request = http::Request::head("http://t/").body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let response = response.await.unwrap();
        assert!(response.status() == 200 && response.body().is_end_stream(), "{response:?}");
        eventually(|| lines.0.lock().len() == n + 1).await;
        assert_eq!(lines.0.lock()[n].trim_end(), "200 0");
    }
}
