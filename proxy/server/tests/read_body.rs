//! Bodies that a plugin asks for when it runs, whole or their beginning.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::plugin::{ChainBuilder, LocalReply, Overflow, Plugin, ReadBody, Slot, Step};
use sixfold_core::stream::Stream;
use std::net::SocketAddr;
use std::sync::Arc;

/// Asks for the body of every request but those to `/free`, and tells the upstream what it has seen of it.
struct Reader(ReadBody);

struct Asked;

impl Reader {
    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        if stream.request.target.path() == b"/free" {
            return Step::Continue;
        }
        if stream.take_state::<Asked>(slot).is_none() {
            stream.set_state(slot, Asked);
            return Step::ReadBody(self.0);
        }
        let seen = match &stream.request_body {
            Some(whole) => format!("whole {}", whole.len()),
            None => format!("beginning {}", stream.read_ahead.as_deref().map_or(0, |read| read.len())),
        };
        stream.request.headers.set("x-seen", seen.as_bytes());
        Step::Continue
    }
}

fn reader(limit: usize, on_overflow: Overflow) -> Plugin {
    Plugin::of(Reader(ReadBody { limit, on_overflow })).access(Reader::access).build()
}

/// A proxy with the plugin, and an upstream that fails every second request and else answers what it got.
async fn serve(limit: usize, on_overflow: Overflow) -> SocketAddr {
    serve_all([reader(limit, on_overflow)]).await
}

async fn serve_all(plugins: impl IntoIterator<Item = Plugin>) -> SocketAddr {
    let up = upstream(|n, request| {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let seen = head.lines().find_map(|line| line.strip_prefix("x-seen: ")).unwrap_or("nothing");
        match n % 2 {
            0 => status(500),
            _ => ok(&format!("{seen}, {} came", body.len())),
        }
    })
    .await;
    let mut builder = ChainBuilder::new();
    for plugin in plugins {
        builder.add("reader", plugin);
    }
    let mut setup = Setup::new();
    setup.chain = Arc::new(builder.build());
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |forward| forward.retry = retry("5xx", 2));
    setup.serve().await.0
}

fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_whole_body_is_read_within_its_limit_and_only_where_it_is_asked_for() {
    let proxy = serve(10, Overflow::Refuse).await;
    let answer = ask(proxy, &post("/", "0123456789")).await;
    assert!(answer.ends_with("whole 10, 10 came"), "{answer}");
    let answer = ask(proxy, &post("/", "0123456789a")).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let answer = ask(proxy, &post("/free", "0123456789a")).await;
    assert!(answer.ends_with("nothing, 11 came"), "{answer}");
}

/// The rest follows what was read, on every attempt.
#[tokio::test]
async fn the_beginning_of_a_body_goes_on_with_its_rest() {
    let proxy = serve(10, Overflow::Pass).await;
    let answer = ask(proxy, &post("/", "0123456789")).await;
    assert!(answer.ends_with("whole 10, 10 came"), "{answer}");
    let long = "x".repeat(100_000);
    let answer = ask(proxy, &post("/", &long)).await;
    assert!(answer.contains("beginning ") && answer.ends_with(", 100000 came"), "{answer}");
}

/// What one plugin had let in, the next one took for less than it was.
#[tokio::test]
async fn a_limit_holds_for_what_another_plugin_has_had_read() {
    for (first, length) in
        [((20, Overflow::Refuse), 15), ((12, Overflow::Pass), 11), ((10, Overflow::Pass), 100)]
    {
        let proxy = serve_all([reader(first.0, first.1), reader(10, Overflow::Refuse)]).await;
        let answer = ask(proxy, &post("/", &"x".repeat(length))).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{length}: {answer}");
        let answer = ask(proxy, &post("/", "0123456789")).await;
        assert!(answer.ends_with("whole 10, 10 came"), "{answer}");
    }
}

struct Deny;

impl Deny {
    fn access(&self, _: &mut Stream, _: Slot) -> Step<'_> {
        Step::Respond(LocalReply::new(403, "", ""))
    }
}

/// Whoever refuses a request by its head waits for none of its body.
#[tokio::test]
async fn nothing_is_read_for_a_plugin_behind_one_that_refuses() {
    let deny = Plugin::of(Deny).access(Deny::access).build();
    let proxy = serve_all([deny, reader(10, Overflow::Refuse)]).await;
    let head = "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\n";
    let answer = tokio::time::timeout(std::time::Duration::from_secs(10), ask(proxy, head)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}
