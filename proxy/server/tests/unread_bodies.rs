//! Answers of our own to requests whose body nobody reads: the connection goes on when the body had come.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::access_log::AccessLog;
use sixfold_core::format::Format;
use sixfold_core::hcm::Profile;
use sixfold_core::headers::HeaderRules;
use sixfold_core::plugin::{ChainBuilder, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

fn setup(profile: Profile) -> Setup {
    let mut setup = Setup::new();
    if profile == Profile::Apisix {
        setup.header_rules = HeaderRules::APISIX;
    }
    setup.profile = profile;
    let dead = nobody();
    setup.cluster("dead", &[dead], |_| {});
    setup.routes.push(direct("/direct", "hello".into()));
    setup.route("/", "dead", |_| {});
    setup
}

fn post(path: &str, framed: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: t\r\n{framed}")
}

const SIZED: &str = "Content-Length: 5\r\n\r\nhello";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-t: 1\r\n\r\n";

fn closes(response: &str) -> bool {
    response.to_ascii_lowercase().contains("connection: close\r\n")
}

/// Each of them ended its connection.
#[tokio::test]
async fn a_body_that_had_come_before_the_answer_keeps_the_connection() {
    for profile in [Profile::Envoy, Profile::Apisix] {
        let (mut setup, lines) = (setup(profile), Arc::<Lines>::default());
        let format = Arc::new(Format::envoy("%BYTES_RECEIVED%").unwrap());
        setup.access_logs = vec![AccessLog { filter: None, format, sink: lines.clone() }];
        let (proxy, _) = setup.serve().await;
        let mut client = TcpStream::connect(proxy).await.unwrap();
        for framed in [SIZED, CHUNKED, SIZED] {
            client.write_all(post("/", framed).as_bytes()).await.unwrap();
            let response = read_message(&mut client).await.unwrap();
            assert!(response.starts_with("HTTP/1.1 50") && !closes(&response), "{profile:?}: {response}");
        }
        eventually(|| lines.0.lock().len() == 3).await;
        assert!(lines.0.lock().iter().all(|line| line.trim_end() == "5"), "{lines:?}");
    }
}

/// What a delay and an abort do.
fn denies_later<'a>(_: &'a (), _: &'a mut Stream, _: Slot) -> Step<'a> {
    Step::Wait(Box::pin(async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Step::Respond(LocalReply::new(503, "denied", "denied"))
    }))
}

/// The same once a long body has come.
fn denies_late<'a>(_: &'a (), _: &'a mut Stream, _: Slot) -> Step<'a> {
    Step::Wait(Box::pin(async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Step::Respond(LocalReply::new(503, "denied", "denied"))
    }))
}

#[tokio::test]
async fn a_plugin_that_answers_after_a_wait_keeps_it_too() {
    for profile in [Profile::Envoy, Profile::Apisix] {
        let mut setup = setup(profile);
        let mut builder = ChainBuilder::new();
        builder.add("p", Plugin::of(()).access(denies_later).build());
        setup.chain = Arc::new(builder.build());
        let (proxy, _) = setup.serve().await;
        let mut client = TcpStream::connect(proxy).await.unwrap();
        for framed in [CHUNKED, SIZED] {
            client.write_all(post("/", framed).as_bytes()).await.unwrap();
            let response = read_message(&mut client).await.unwrap();
            assert!(response.ends_with("denied") && !closes(&response), "{profile:?}: {response}");
        }
    }
}

/// No more than 64 KiB were read of a body while a plugin was waited for, and a connection with a longer one was ended.
#[tokio::test]
async fn a_long_body_that_comes_while_a_plugin_is_waited_for_keeps_it_too() {
    let limit = 512 << 10;
    for (length, goes_on) in [(300_000, true), (limit - 20_000, true), (2 * limit, false)] {
        let mut setup = setup(Profile::Envoy);
        setup.buffer_limit = limit;
        let mut builder = ChainBuilder::new();
        builder.add("p", Plugin::of(()).access(denies_late).build());
        setup.chain = Arc::new(builder.build());
        let (proxy, _) = setup.serve().await;
        let mut client = TcpStream::connect(proxy).await.unwrap();
        let request = post("/", &format!("Content-Length: {length}\r\n\r\n{}", "x".repeat(length)));
        client.write_all(request.as_bytes()).await.unwrap();
        let response = read_message(&mut client).await.unwrap();
        assert!(response.ends_with("denied"), "{response}");
        assert_eq!(closes(&response), !goes_on, "{length}: {response}");
        if goes_on {
            client.write_all(post("/", SIZED).as_bytes()).await.unwrap();
            let response = read_message(&mut client).await.unwrap();
            assert!(response.ends_with("denied") && !closes(&response), "{response}");
        }
    }
}

/// Envoy reads no body before an answer that it gives at once; nginx drops it.
#[tokio::test]
async fn an_answer_at_once_closes_as_it_does_in_envoy() {
    for (profile, want) in [(Profile::Envoy, true), (Profile::Apisix, false)] {
        let (proxy, _) = setup(profile).serve().await;
        let response = ask(proxy, &post("/direct", SIZED)).await;
        assert!(response.ends_with("hello") && closes(&response) == want, "{profile:?}: {response}");
    }
}

#[tokio::test]
async fn a_body_that_has_not_come_whole_or_is_broken_still_ends_the_connection() {
    for profile in [Profile::Envoy, Profile::Apisix] {
        let (proxy, _) = setup(profile).serve().await;
        for framed in ["Content-Length: 6\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX"] {
            let response = ask(proxy, &post("/", framed)).await;
            assert!(response.starts_with("HTTP/1.1 50") && closes(&response), "{profile:?}: {response}");
        }
    }
}
