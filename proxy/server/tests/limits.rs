//! What bounds requests and connections: circuit breakers, lengths, ages; and who may steer them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::clock::StoppedClock;
use common::*;
use sixfold_core::cluster::BreakerLimits;
use sixfold_core::hcm::Profile;
use sixfold_core::headers::Known;
use sixfold_core::plugin::{ChainBuilder, Member, Plugin, Position, Slot, Step};
use sixfold_core::stream::Stream;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A circuit breaker with room for one connection.
fn one_connection(config: &mut sixfold_core::cluster::ClusterConfig) {
    config.breaker = BreakerLimits { max_connections: 1, ..BreakerLimits::default() };
}

#[tokio::test]
async fn requests_that_wait_get_the_connection_or_the_place_of_one_that_ended() {
    for close in [false, true] {
        let up = upstream(move |_, _| {
            std::thread::sleep(Duration::from_millis(30));
            let header = if close { "Connection: close\r\n" } else { "" };
            format!("HTTP/1.1 200 OK\r\n{header}Content-Length: 2\r\n\r\nok").into_bytes()
        })
        .await;
        let mut setup = Setup::new();
        setup.cluster("a", &[up.address], one_connection);
        setup.route("/", "a", |_| {});
        let (proxy, _) = setup.serve().await;
        let asking: Vec<_> =
            (0..4).map(|_| tokio::spawn(async move { ask(proxy, &get("/")).await })).collect();
        for asked in asking {
            let response = asked.await.unwrap();
            assert!(response.starts_with("HTTP/1.1 200 OK"), "close: {close}: {response}");
        }
        assert_eq!(up.connections.load(SeqCst), if close { 4 } else { 1 });
    }
}

// A connection used to go to the next request that waited without a look at what was still to be read from it.
#[tokio::test]
async fn what_an_upstream_says_unasked_reaches_no_request_that_waits() {
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nEVIL!";
    let up = upstream(move |number, _| {
        if number > 0 {
            return ok("fine");
        }
        std::thread::sleep(Duration::from_millis(50));
        // One read takes exactly the response that was asked for, and sees nothing of what follows.
        let length = 16_384 - "HTTP/1.1 200 OK\r\nContent-Length: 16342\r\n\r\n".len();
        let asked = ok(&"x".repeat(length));
        assert_eq!(asked.len(), 16_384);
        [&asked, evil.as_bytes()].concat()
    })
    .await;
    let mut setup = Setup::new();
    setup.cluster("a", &[up.address], one_connection);
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    let asking: Vec<_> = (0..4).map(|_| tokio::spawn(async move { ask(proxy, &get("/")).await })).collect();
    for asked in asking {
        let response = asked.await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200 OK") && !response.contains("EVIL"), "{response}");
    }
}

#[tokio::test]
async fn bodies_beyond_the_limit_are_refused_in_both_framings() {
    let up = upstream(|_, request| ok(request.split_once("\r\n\r\n").unwrap().1)).await;
    let mut setup = Setup::new();
    (setup.profile, setup.max_body) = (Profile::Apisix, Some(10));
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    let sized =
        |body: &str| format!("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert!(ask(proxy, &sized("0123456789")).await.ends_with("0123456789"));
    let long = ask(proxy, &sized("0123456789a")).await;
    assert!(long.starts_with("HTTP/1.1 413 ") && long.contains("Connection: close"), "{long}");
    assert_eq!(up.requests.load(SeqCst), 1);
    let chunked = "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n6\r\nabcdef\r\n0\r\n\r\n";
    let long = ask(proxy, chunked).await;
    assert!(long.starts_with("HTTP/1.1 413 "), "{long}");
    assert_eq!(up.requests.load(SeqCst), 1, "the upstream has seen no whole request");
}

#[tokio::test]
async fn only_clients_of_envoy_steer_retries_and_timeouts() {
    for (profile, requests) in [(Profile::Envoy, 3), (Profile::Apisix, 1)] {
        let up = upstream(|_, request| {
            let kept = request.to_ascii_lowercase().contains("x-envoy-max-retries");
            status(if kept { 501 } else { 500 })
        })
        .await;
        let mut setup = Setup::new();
        setup.profile = profile;
        setup.cluster("a", &[up.address], |_| {});
        setup.route("/", "a", |_| {});
        let (proxy, _) = setup.serve().await;
        let request = "GET / HTTP/1.1\r\nHost: t\r\nX-Forwarded-For: 10.0.0.1\r\nX-Envoy-Retry-On: 5xx\r\n\
                       X-Envoy-Max-Retries: 2\r\n\r\n";
        let response = ask(proxy, request).await;
        let is_kept = response.starts_with("HTTP/1.1 501 ");
        assert_eq!((up.requests.load(SeqCst), is_kept), (requests, profile == Profile::Apisix), "{response}");
    }
}

#[tokio::test]
async fn a_connection_that_is_old_enough_ends_after_its_response_or_idle() {
    let up = upstream(|_, _| ok("x")).await;
    let mut setup = Setup::new();
    setup.timeouts.max_connection = Some(Duration::from_millis(100));
    setup.timeouts.drain = Duration::from_millis(400);
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    let clock = StoppedClock::new();
    let (mut busy, mut idle) =
        (TcpStream::connect(proxy).await.unwrap(), TcpStream::connect(proxy).await.unwrap());
    for client in [&mut busy, &mut idle] {
        client.write_all(get("/").as_bytes()).await.unwrap();
        assert!(!read_message(client).await.unwrap().contains("connection: close"));
    }
    clock.pass(Duration::from_millis(150)).await;
    busy.write_all(get("/").as_bytes()).await.unwrap();
    assert!(read_message(&mut busy).await.unwrap().contains("connection: close"));
    clock.go_on();
    let end = tokio::time::timeout(Duration::from_secs(5), idle.read(&mut [0; 1])).await;
    assert_eq!(end.unwrap().unwrap(), 0);
}

/// Sends a request for `/from` to `/to`.
struct Detour;

impl Detour {
    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        stream.request.target.set(b"/to");
        Step::ClearRoute
    }
}

/// Counts its phases in a request header.
struct Witness;

impl Witness {
    fn rewrite(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        stream.request.headers.join(Known::VIA, b",", b"rewrite");
        Step::Continue
    }

    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        stream.request.headers.join(Known::VIA, b",", b"access");
        Step::Continue
    }
}

#[tokio::test]
async fn a_route_that_is_chosen_again_brings_its_own_chain_and_repeats_no_phase() {
    let up = upstream(|_, request| {
        let via = request.lines().find_map(|line| line.strip_prefix("via: ")).unwrap_or("none");
        ok(&format!("{} {via}", request.split(' ').nth(1).unwrap()))
    })
    .await;
    let chain = |detour: bool| {
        let mut builder = ChainBuilder::new();
        if detour {
            builder.add("detour", Plugin::of(Detour).access(Detour::access).build());
        }
        let plugin = Plugin::of(Witness).rewrite(Witness::rewrite).access(Witness::access).build();
        let position = Position::of_filter(1);
        builder.push(Member { name: "witness".into(), position, plugin: Arc::new(plugin) });
        Arc::new(builder.build())
    };
    let mut setup = Setup::new();
    setup.cluster("a", &[up.address], |_| {});
    setup.chain = chain(false);
    setup.route("/to", "a", |_| {});
    setup.route("/from", "a", |_| {});
    let from = setup.routes.pop().unwrap();
    let mut from = Arc::into_inner(from).unwrap();
    from.chain = Some(chain(true));
    setup.routes.push(Arc::new(from));
    let (proxy, _) = setup.serve().await;
    assert!(ask(proxy, &get("/from")).await.ends_with("/to rewrite,access"));
    assert!(ask(proxy, &get("/to")).await.ends_with("/to rewrite,access"));
}

/// Tells the upstream which endpoint was chosen.
struct Teller;

impl Teller {
    fn before_proxy(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let member = stream.upstream.member.as_ref();
        let host = member.map_or_else(String::new, |member| member.host.address.to_string());
        stream.request.headers.set(Known::VIA, host.as_bytes());
        Step::Continue
    }
}

#[tokio::test]
async fn before_proxy_sees_the_endpoint() {
    let up = upstream(|_, request| {
        ok(request.lines().find_map(|line| line.strip_prefix("via: ")).unwrap_or("none"))
    })
    .await;
    let mut builder = ChainBuilder::new();
    builder.add("teller", Plugin::of(Teller).before_proxy(Teller::before_proxy).build());
    let mut setup = Setup::new();
    setup.cluster("a", &[up.address], |_| {});
    setup.chain = Arc::new(builder.build());
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    assert!(ask(proxy, &get("/")).await.ends_with(&up.address.to_string()));
}
