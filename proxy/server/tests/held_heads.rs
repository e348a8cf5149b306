//! Heads of responses that wait for their bodies, since a plugin may still change them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::headers::Known;
use sixfold_core::plugin::{BodyPiece, BodyStep, ChainBuilder, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Has the head wait, for so many bytes at most, and says in it how the body begins.
struct Waits {
    limit: usize,
    /// Until the first piece has come, and not to the end.
    for_first: bool,
}

impl Waits {
    fn header_filter<'a>(&'a self, stream: &'a mut Stream, _: Slot) -> Step<'a> {
        stream.response.headers.remove(Known::CONTENT_LENGTH);
        stream.hold_response_head(self.limit);
        Step::Continue
    }

    fn response_body(&self, stream: &mut Stream, _: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        if let Some(first) = piece.data.first().filter(|_| !stream.response.headers.contains("x-first")) {
            stream.response.headers.set("x-first", &[*first]);
            if self.for_first {
                stream.release_response_head();
            }
        }
        BodyStep::Pass
    }
}

async fn serve(up: SocketAddr, plugins: impl IntoIterator<Item = Waits>) -> SocketAddr {
    let mut builder = ChainBuilder::new();
    for waits in plugins {
        let plugin = Plugin::of(waits).header_filter(Waits::header_filter);
        builder.add("waits", plugin.response_body(Waits::response_body).build());
    }
    let mut setup = Setup::new();
    setup.chain = Arc::new(builder.build());
    setup.buffer_limit = 1000;
    setup.cluster("a", &[up], |_| {});
    setup.route("/", "a", |_| {});
    setup.serve().await.0
}

/// What a connection may buffer was the limit, whatever a plugin was set to allow.
#[tokio::test]
async fn a_head_waits_for_as_much_as_the_plugin_that_allows_most() {
    let up = upstream(|_, _| ok(&"z".repeat(5000))).await;
    let waits = |limit| Waits { limit, for_first: false };
    for (limits, expected) in [([0, 0], 500), ([0, 4999], 500), ([5000, 10], 200)] {
        let proxy = serve(up.address, limits.map(waits)).await;
        let answer = ask(proxy, &get("/")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{limits:?}: {answer}");
        assert_eq!(answer.contains("x-first: z\r\n"), expected == 200, "{answer}");
    }
}

/// An upstream whose answer has its second half when it is told so.
async fn halves(go_on: Arc<Notify>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        read_message(&mut socket).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc").await.unwrap();
        go_on.notified().await;
        socket.write_all(b"def").await.unwrap();
    });
    address
}

/// It went with the end, though the plugin had seen what it waited for.
#[tokio::test]
async fn a_head_goes_when_no_plugin_has_it_wait_any_more() {
    let first = || Waits { limit: 0, for_first: true };
    for (plugins, goes) in
        [(vec![first()], true), (vec![first(), Waits { limit: 0, for_first: false }], false)]
    {
        let go_on = Arc::new(Notify::new());
        let proxy = serve(halves(go_on.clone()).await, plugins).await;
        let mut client = TcpStream::connect(proxy).await.unwrap();
        client.write_all(get("/").as_bytes()).await.unwrap();
        let mut begun = Vec::new();
        while goes && !begun.ends_with(b"abc\r\n") {
            assert!(client.read_buf(&mut begun).await.unwrap() > 0, "{}", begun.escape_ascii());
        }
        let waits = std::time::Duration::from_millis(50);
        let more = tokio::time::timeout(waits, client.read_buf(&mut begun)).await;
        assert!(more.is_err(), "{}", begun.escape_ascii());
        go_on.notify_one();
        while !begun.ends_with(b"def\r\n0\r\n\r\n") && !begun.ends_with(b"abcdef\r\n0\r\n\r\n") {
            assert!(client.read_buf(&mut begun).await.unwrap() > 0, "{}", begun.escape_ascii());
        }
        assert!(String::from_utf8(begun).unwrap().contains("x-first: a\r\n"));
    }
}
