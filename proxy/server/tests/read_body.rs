//! Bodies that a plugin asks for when it runs, whole or their beginning.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::headers::Known;
use sixfold_core::plugin::{
    BodyPiece, BodyStep, ChainBuilder, LocalReply, Overflow, Plugin, ReadBody, Slot, Step,
};
use sixfold_core::stream::Stream;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
    // More than is read at once.
    let long = "x".repeat(1_000_000);
    let answer = ask(proxy, &post("/", &long)).await;
    assert!(answer.contains("beginning ") && answer.ends_with(", 1000000 came"), "{answer}");
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

/// Wraps each piece, after a moment; the letter tells who did it.
struct Wraps(char);

impl Wraps {
    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        stream.request.headers.remove(Known::CONTENT_LENGTH);
        Step::Continue
    }

    fn piece(&self, _: &mut Stream, _: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let text = String::from_utf8_lossy(piece.data).into_owned();
        let letter = self.0;
        let wrapped = if text.is_empty() { text } else { format!("{letter}{text}{letter}") };
        BodyStep::Wait(Box::pin(async move {
            tokio::task::yield_now().await;
            match wrapped.contains("evil") {
                true => BodyStep::Respond(Box::new(LocalReply::new(403, "evil", "judged"))),
                false => BodyStep::Replace(wrapped.into()),
            }
        }))
    }
}

fn wraps(letter: char) -> Plugin {
    Plugin::of(Wraps(letter)).access(Wraps::access).request_body(Wraps::piece).build()
}

/// Makes each piece many times as long, and tells the upstream of the last.
struct Grows(usize);

impl Grows {
    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        stream.request.headers.remove(Known::CONTENT_LENGTH);
        Step::Continue
    }

    fn piece(&self, stream: &mut Stream, _: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        assert!(piece.data.len() <= 64 << 10, "{} at once", piece.data.len());
        if piece.last {
            stream.request.headers.set("x-seen", b"the end");
        }
        BodyStep::Replace(piece.data.repeat(self.0).into())
    }
}

fn grows(times: usize) -> Plugin {
    Plugin::of(Grows(times)).access(Grows::access).request_body(Grows::piece).build()
}

/// A body that was read whole went through the plugins behind as one piece, and what they made of it had no bound.
#[tokio::test]
async fn what_is_made_of_a_whole_body_is_bounded_and_made_piece_by_piece() {
    let long = "x".repeat(200_000);
    for times in [1, 2] {
        let proxy = serve_all([reader(1 << 20, Overflow::Refuse), grows(times)]).await;
        let answer = ask(proxy, &post("/", &long)).await;
        // The upstream counts the lines of chunks too.
        let came = answer.rsplit_once("the end, ").and_then(|(_, came)| came.strip_suffix(" came"));
        let came: usize = came.and_then(|came| came.parse().ok()).unwrap_or_else(|| panic!("{answer}"));
        assert!((times * 200_000..times * 200_000 + 1000).contains(&came), "{came}");
    }
    let proxy = serve_all([reader(1 << 20, Overflow::Refuse), grows(6)]).await;
    let answer = ask(proxy, &post("/", &long)).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

/// Notes the body it is shown, then is as good as the next plugin.
struct Notes(ReadBody);

impl Notes {
    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        if let Some(step) = self.0.ask(stream, slot) {
            return step;
        }
        let seen = stream.request_body.as_ref().or(stream.read_ahead.as_deref()).cloned().unwrap_or_default();
        stream.request.headers.append("x-seen", &seen);
        Step::Continue
    }
}

fn notes(limit: usize, on_overflow: Overflow) -> Plugin {
    Plugin::of(Notes(ReadBody { limit, on_overflow })).access(Notes::access).build()
}

/// What the readers saw, and what came.
async fn serve_seeing(plugins: impl IntoIterator<Item = Plugin>) -> SocketAddr {
    let up = upstream(|n, request| {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let seen: Vec<_> = head.lines().filter_map(|line| line.strip_prefix("x-seen: ")).collect();
        // Of a chunked body the lines between those that tell lengths.
        let pieces: Vec<_> = match head.contains("transfer-encoding: chunked") {
            true => body.lines().skip(1).step_by(2).collect(),
            false => vec![body],
        };
        match n % 2 {
            0 => status(500),
            _ => ok(&format!("{} {}", seen.join(" "), pieces.concat())),
        }
    })
    .await;
    let mut builder = ChainBuilder::new();
    plugins.into_iter().for_each(|plugin| builder.add("p", plugin));
    let mut setup = Setup::new();
    setup.chain = Arc::new(builder.build());
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |forward| forward.retry = retry("5xx", 2));
    setup.serve().await.0
}

/// A reader was shown the bytes of the client, past the plugins in front of it: what it let pass went on as what they made
/// of it.
#[tokio::test]
async fn a_body_is_read_as_the_plugins_before_have_made_it() {
    let whole = || notes(100, Overflow::Refuse);
    let some = || notes(100, Overflow::Pass);
    for (plugins, expected) in [
        (vec![wraps('a'), whole()], "ahia ahia"),
        (vec![whole(), wraps('a')], "hi ahia"),
        (vec![wraps('a'), whole(), wraps('b'), some(), wraps('c')], "ahia bahiab cbahiabc"),
        (vec![wraps('a'), some(), wraps('b'), whole()], "ahia bahiab bahiab"),
        (vec![wraps('a'), wraps('b'), some(), whole()], "bahiab bahiab bahiab"),
    ] {
        let proxy = serve_seeing(plugins).await;
        let chunked = "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
        for post in [post("/", "hi"), chunked.to_owned()] {
            let answer = ask(proxy, &post).await;
            assert!(answer.ends_with(&format!("\r\n\r\n{expected}")), "{expected}: {answer}");
        }
    }
}

/// Of a body of which the beginning was read the rest takes the same way, behind it.
#[tokio::test]
async fn the_rest_of_a_body_passes_what_its_beginning_has_passed() {
    let some = |limit| notes(limit, Overflow::Pass);
    let proxy = serve_seeing([wraps('a'), some(3), wraps('b'), some(8), wraps('c')]).await;
    let mut client = tokio::net::TcpStream::connect(proxy).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: t\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    for piece in ["12", "34", "56", "78"] {
        client.write_all(format!("2\r\n{piece}\r\n").as_bytes()).await.unwrap();
        clock::settle().await;
    }
    client.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    // The first was content with one piece, the second with two.
    let expected = "a12a ba12abba34ab cba12abba34abccba56abccba78abc";
    assert!(answer.ends_with(expected), "{answer}");
}

#[tokio::test]
async fn limits_and_answers_hold_for_what_the_plugins_before_make_of_a_body() {
    let proxy = serve_seeing([wraps('a'), notes(5, Overflow::Refuse)]).await;
    assert!(ask(proxy, &post("/", "123")).await.ends_with("a123a a123a"));
    assert!(ask(proxy, &post("/", "1234")).await.starts_with("HTTP/1.1 413 "));
    let readers = || [notes(100, Overflow::Refuse), wraps('a'), notes(5, Overflow::Refuse)];
    let proxy = serve_seeing(readers()).await;
    assert!(ask(proxy, &post("/", "123")).await.ends_with("123 a123a a123a"));
    assert!(ask(proxy, &post("/", "1234")).await.starts_with("HTTP/1.1 413 "));
    for plugins in [vec![wraps('a'), notes(100, Overflow::Refuse)], readers().into()] {
        let answer = ask(serve_seeing(plugins).await, &post("/", "evil")).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    }
}

/// Nothing is read, and nothing is made up, of a request without a body.
#[tokio::test]
async fn a_request_without_a_body_stays_one() {
    struct Tells;
    impl Tells {
        fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
            let has_body = stream.has_request_body().to_string();
            stream.request.headers.append("x-seen", has_body.as_bytes());
            Step::Continue
        }
    }
    let tells = || Plugin::of(Tells).access(Tells::access).build();
    let proxy = serve_seeing([tells(), notes(100, Overflow::Refuse), tells()]).await;
    assert!(ask(proxy, &get("/")).await.ends_with("false  false "));
    assert!(ask(proxy, &post("/", "hi")).await.ends_with("true hi true hi"));
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
