//! Heads of requests that do not come to their end: a stream begins with the first byte of its head, and has all its
//! deadlines from then on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::access_log::AccessLog;
use sixfold_core::format::Format;
use sixfold_core::hcm::{ConnectionTimeouts, HttpStats};
use sixfold_core::route::ForwardOptions;
use sixfold_server::drain::{Drain, DrainStrategy};
use sixfold_server::http::{self, Manager};
use sixfold_server::io::{Io, Socket};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

const HALF: &[u8] = b"GET / HTTP/1.1\r\nHo";
const REST: &[u8] = b"st: t\r\n\r\n";

/// A client of a proxy whose clock stands still but when the test moves it.
struct Client {
    socket: UnixStream,
    said: Vec<u8>,
    ended: bool,
    stats: Arc<HttpStats>,
    lines: Arc<Lines>,
    drain: Drain,
}

impl Client {
    async fn new(change: impl FnOnce(&mut ConnectionTimeouts)) -> Client {
        let mut setup = Setup::new();
        setup.routes.push(direct("/", bytes::Bytes::from_static(b"hello")));
        change(&mut setup.timeouts);
        Client::of(setup).await
    }

    async fn of(mut setup: Setup) -> Client {
        let (socket, near) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        near.set_nonblocking(true).unwrap();
        let lines = Arc::new(Lines::default());
        let format = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n";
        let format = Arc::new(Format::envoy(format).unwrap());
        setup.access_logs = vec![AccessLog { filter: None, format, sink: lines.clone() }];
        let (stats, drain) = (setup.stats.clone(), Drain::new());
        let (hcm, worker) = setup.build();
        let io = Io::plain(Socket::unix(tokio::net::UnixStream::from_std(near).unwrap()));
        let local = "127.0.0.1:80".parse().unwrap();
        let connection = connection("127.0.0.1:1".parse().unwrap(), local);
        tokio::spawn(http::serve(io, connection, Manager::new(hcm), worker, drain.clone()));
        let mut client = Client { socket, said: Vec::new(), ended: false, stats, lines, drain };
        client.settle().await;
        client
    }

    /// Lets the proxy hear of everything, and reads what it says.
    async fn settle(&mut self) {
        clock::settle().await;
        let mut piece = [0; 4096];
        loop {
            match self.socket.read(&mut piece) {
                Ok(0) => break self.ended = true,
                Ok(n) => self.said.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => break self.ended = true,
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
        self.settle().await;
    }

    async fn pass(&mut self, millis: u64) {
        tokio::time::advance(Duration::from_millis(millis)).await;
        self.settle().await;
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.said).into_owned()
    }

    /// The line of the log, once it is there.
    fn line(&self) -> String {
        let lines = self.lines.0.lock();
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].trim().to_owned()
    }
}

type Change = fn(&mut ConnectionTimeouts);

const TWO: Option<Duration> = Some(Duration::from_secs(2));

/// Each limit of a stream, alone, with what Envoy says of it. Connections without a stream have no limit.
const LIMITS: [(Change, &str, &str); 4] = [
    (
        |t| (t.idle, t.stream_idle, t.request) = (None, None, TWO),
        "- request_overall_timeout",
        "request timeout",
    ),
    (
        |t| (t.idle, t.stream_idle, t.max_stream) = (None, None, TWO),
        "- max_duration_timeout",
        "downstream duration timeout",
    ),
    (|t| (t.idle, t.stream_idle) = (None, TWO), "SI stream_idle_timeout", "stream timeout"),
    (
        |t| (t.idle, t.stream_idle, t.request_headers) = (None, None, TWO),
        "- request_header_timeout",
        "request header timeout",
    ),
];

#[tokio::test(start_paused = true)]
async fn half_a_head_has_every_limit_of_a_stream() {
    for (change, logged, body) in LIMITS {
        for begun in [b"G".as_slice(), HALF, b"\r\n\r\n", b"PRI * HT"] {
            let mut client = Client::new(change).await;
            // A connection without a stream waits for ever.
            client.pass(60_000).await;
            client.send(begun).await;
            // What else comes of the head is no event.
            client.pass(1500).await;
            client.send(b"x").await;
            client.pass(400).await;
            assert!(client.said.is_empty() && !client.ended, "{logged}: {}", client.said());
            client.pass(200).await;
            let said = client.said();
            assert!(said.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{logged}: {said}");
            assert!(said.contains("connection: close\r\n") && said.ends_with(body), "{said}");
            assert!(client.ended);
            assert_eq!(client.line(), format!("408 {logged}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn timeouts_of_heads_are_counted_by_their_names() {
    let counts: [fn(&HttpStats) -> u64; 4] = [
        |stats| stats.downstream_rq_timeout().get(),
        |stats| stats.downstream_rq_max_duration_reached().get(),
        |stats| stats.downstream_rq_idle_timeout().get(),
        |stats| stats.downstream_rq_header_timeout().get(),
    ];
    for (at, (change, logged, _)) in LIMITS.into_iter().enumerate() {
        let mut client = Client::new(change).await;
        client.send(HALF).await;
        client.pass(2100).await;
        let counted = counts.map(|count| count(&client.stats));
        let mut expected = [0; 4];
        expected[at] = 1;
        assert_eq!(counted, expected, "{logged}");
        assert_eq!(client.stats.downstream_rq_total().get(), 1);
        assert_eq!(client.stats.downstream_cx_idle_timeout().get(), 0);
    }
}

/// It was closed after the idle time of a connection that has no stream, without a word.
#[tokio::test(start_paused = true)]
async fn a_connection_with_half_a_head_is_not_idle() {
    let change: Change = |t| (t.idle, t.stream_idle) = (TWO, None);
    let mut client = Client::new(change).await;
    client.send(HALF).await;
    client.pass(30_000).await;
    assert!(!client.ended);
    client.send(REST).await;
    assert!(client.said().starts_with("HTTP/1.1 200 OK\r\n"), "{}", client.said());
    client.pass(1900).await;
    assert!(!client.ended);
    client.pass(200).await;
    assert!(client.ended, "idle from the end of its stream on");
    // Where no limit of a stream is set, there is one all the same.
    let mut client = Client::new(change).await;
    client.send(HALF).await;
    client.pass(299_000).await;
    assert!(!client.ended);
    client.pass(2000).await;
    assert_eq!(client.line(), "408 - request_header_timeout");
}

/// Its time began anew once the head was there.
#[tokio::test(start_paused = true)]
async fn a_request_has_its_time_from_its_first_byte() {
    let up = upstream(|_, _| ok("all")).await;
    let mut setup = Setup::new();
    setup.timeouts.request = TWO;
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let mut client = Client::of(setup).await;
    client.send(b"POST / HTTP/1.1\r\nHost: t\r\nContent-").await;
    client.pass(1500).await;
    client.send(b"Length: 5\r\n\r\nbo").await;
    client.pass(400).await;
    assert!(client.said.is_empty() && !client.ended, "{}", client.said());
    client.pass(200).await;
    assert_eq!(client.line(), "408 - request_overall_timeout");
    let mut client = Client::new(|t| (t.stream_idle, t.max_stream) = (None, TWO)).await;
    client.send(HALF).await;
    client.pass(1900).await;
    client.send(REST).await;
    assert!(client.said().starts_with("HTTP/1.1 200 OK\r\n"), "{}", client.said());
    // The next stream has its own.
    client.said.clear();
    client.pass(60_000).await;
    client.send(&[HALF, REST].concat()).await;
    assert!(client.said().starts_with("HTTP/1.1 200 OK\r\n"), "{}", client.said());
}

/// Half a head took the short time away that a connection has while it drains.
#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_half_a_head() {
    let change: Change = |t| t.idle = None;
    for before in [true, false] {
        let mut client = Client::new(change).await;
        if before {
            client.send(HALF).await;
        }
        client.drain.start(DrainStrategy::Immediate, None);
        client.settle().await;
        if !before {
            client.send(HALF).await;
        }
        client.pass(900).await;
        assert!(!client.ended);
        client.pass(200).await;
        assert!(client.said().starts_with("HTTP/1.1 408 "), "{before}: {}", client.said());
        assert_eq!(client.line(), "408 - request_header_timeout");
        // One that comes to its end is answered.
        let mut client = Client::new(change).await;
        client.send(HALF).await;
        client.drain.start(DrainStrategy::Immediate, None);
        client.pass(900).await;
        client.send(REST).await;
        assert!(client.said().starts_with("HTTP/1.1 200 OK\r\n"), "{}", client.said());
        assert!(client.ended);
    }
}

/// Preface, SETTINGS, and HEADERS of a stream without END_HEADERS.
fn half_of_http2() -> Vec<u8> {
    let head = [0x82, 0x86, 0x84, 0x41, 0x01, b'a'];
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let frame = [0, 0, head.len() as u8, 1, 1, 0, 0, 0, 1];
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &settings, &frame, &head].concat()
}

/// It had a limit only where `request_headers_timeout` or the connection's idle time is set, and was never logged.
#[tokio::test(start_paused = true)]
async fn half_a_head_over_http2_has_every_limit_of_a_stream() {
    for (change, logged, _) in LIMITS {
        let mut client = Client::new(change).await;
        client.send(&half_of_http2()).await;
        client.pass(1900).await;
        assert!(!client.ended, "{logged}");
        client.pass(200).await;
        assert!(client.ended, "{logged}");
        assert_eq!(client.line(), format!("408 {logged}"));
        // HEADERS that end the stream, and GOAWAY, of no stream.
        let (head, status) = ([1, 5, 0, 0, 0, 1], b"\x07:status\x03408");
        assert!(client.said.windows(head.len()).any(|w| w == head), "{:?}", client.said);
        assert!(client.said.windows(status.len()).any(|w| w == status), "{:?}", client.said);
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(client.said.windows(goaway.len()).any(|w| w == goaway), "{:?}", client.said);
    }
    let mut client = Client::new(|t| (t.idle, t.stream_idle) = (TWO, None)).await;
    client.send(&half_of_http2()).await;
    client.pass(299_000).await;
    assert!(!client.ended, "a connection with half a head is not idle");
    client.pass(2000).await;
    assert!(client.ended);
    assert_eq!(client.line(), "408 - request_header_timeout");
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A request for `/`, as a header block.
const BLOCK: [u8; 6] = [0x82, 0x86, 0x84, 0x41, 0x01, b'a'];
const TRAILERS: [u8; 5] = [0, 1, b'x', 1, b'y'];
/// Settled so often, all buffers between an upstream and a client that reads nothing are full.
const FILLING: usize = 50;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let head = [0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
    [&head, payload].concat()
}

fn headers(flags: u8, stream: u8, block: &[u8]) -> Vec<u8> {
    frame(1, flags, stream, block)
}

fn continuation(stream: u8) -> Vec<u8> {
    frame(9, END_HEADERS, stream, b"")
}

impl Client {
    /// Whether a frame of this kind was said of the stream, or of the connection.
    fn heard(&self, kind: u8, stream: u8) -> bool {
        let (mut rest, mut found) = (&self.said[..], false);
        while let [a, b, c, of, _, _, _, _, number, ..] = rest {
            found |= (*of, *number) == (kind, stream);
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            rest = rest.get(9 + length..).unwrap_or_default();
        }
        found
    }

    /// As [`Client::pass`], of a client that reads nothing.
    async fn pause(&mut self, millis: u64) {
        // Megabytes are on their way, until all buffers are full.
        async fn full() {
            for _ in 0..FILLING {
                clock::settle().await;
            }
        }
        full().await;
        tokio::time::advance(Duration::from_millis(millis)).await;
        full().await;
    }
}

/// A proxy for an upstream that answers with so many bytes.
async fn proxied(bytes: usize, change: Change, route: impl FnOnce(&mut ForwardOptions)) -> Client {
    let up = upstream(move |_, _| ok(&"x".repeat(bytes))).await;
    let mut setup = Setup::new();
    setup.buffer_limit = 64 << 10;
    change(&mut setup.timeouts);
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", route);
    Client::of(setup).await
}

/// Its time began anew once the head was there.
#[tokio::test(start_paused = true)]
async fn a_request_over_http2_has_its_time_from_its_first_byte() {
    for (change, logged, _) in &LIMITS[..2] {
        let mut client = proxied(3, *change, |_| {}).await;
        client.send(&[PREFACE, &headers(0, 1, &BLOCK)].concat()).await;
        client.pass(1500).await;
        client.send(&continuation(1)).await;
        client.pass(400).await;
        assert!(!client.heard(1, 1), "{logged}");
        client.pass(200).await;
        assert!(client.heard(1, 1), "{logged}");
        assert!(client.line().ends_with(logged), "{}", client.line());
        // The next stream has its own.
        client.send(&headers(END_STREAM | END_HEADERS, 3, &BLOCK)).await;
        client.settle().await;
        assert!(client.heard(0, 3), "{logged}: {:?}", client.said);
    }
}

/// They had the deadline of a head, and ended the connection for all others.
#[tokio::test(start_paused = true)]
async fn half_of_the_trailers_is_no_head() {
    let change: Change = |t| (t.idle, t.stream_idle, t.request_headers) = (None, None, TWO);
    let mut client = proxied(3, change, |_| {}).await;
    let begun = [headers(END_HEADERS, 1, &BLOCK), frame(0, 0, 1, b"abc"), headers(END_STREAM, 1, &TRAILERS)];
    client.send(&[PREFACE, &begun.concat()].concat()).await;
    client.pass(3000).await;
    client.send(&continuation(1)).await;
    client.settle().await;
    assert!(client.heard(0, 1), "{:?}", client.said);
    client.send(&headers(END_STREAM | END_HEADERS, 3, &BLOCK)).await;
    client.settle().await;
    assert!(client.heard(0, 3), "{:?}", client.said);
    // Of a stream that is over they keep no connection from being idle.
    let mut client = Client::new(|t| (t.idle, t.stream_idle) = (TWO, None)).await;
    client.send(&[PREFACE, &headers(END_HEADERS, 1, &BLOCK)].concat()).await;
    assert!(client.heard(0, 1), "{:?}", client.said);
    client.send(&headers(END_STREAM, 1, &TRAILERS)).await;
    client.pass(1900).await;
    assert!(!client.heard(7, 0));
    client.pass(200).await;
    assert!(client.heard(7, 0), "{:?}", client.said);
}

/// The connection ended with all its streams, by the time of one.
#[tokio::test(start_paused = true)]
async fn a_client_that_pauses_over_http2_has_the_time_of_its_streams() {
    const SIZE: usize = 8 << 20;
    let windows = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff".as_slice(),
        &frame(8, 0, 0, &[0x7f, 0xff, 0, 0]),
        &headers(END_STREAM | END_HEADERS, 1, &BLOCK),
    ]
    .concat();
    let change: Change = |t| (t.idle, t.stream_idle) = (None, TWO);
    for never in [true, false] {
        let route = |f: &mut ForwardOptions| {
            f.timeouts.request = None;
            f.timeouts.idle = never.then_some(Duration::ZERO);
        };
        let mut client = proxied(SIZE, change, route).await;
        client.socket.write_all(&windows).unwrap();
        client.pause(5000).await;
        for _ in 0..1000 {
            client.settle().await;
            if client.said.len() > SIZE || client.heard(3, 1) {
                break;
            }
        }
        assert!(!client.ended, "{never}: {}", client.said.len());
        assert_eq!((client.said.len() > SIZE, client.heard(3, 1)), (never, !never));
        if !never {
            assert_eq!(client.line(), "200 SI stream_idle_timeout");
        }
        client.send(&headers(END_STREAM | END_HEADERS, 3, &BLOCK)).await;
        client.settle().await;
        assert!(client.heard(1, 3), "{never}");
    }
    // Where nothing else ends it, we do in the end.
    let route = |f: &mut ForwardOptions| f.timeouts.request = None;
    let mut client = proxied(SIZE, |t| (t.idle, t.stream_idle) = (None, None), route).await;
    client.socket.write_all(&windows).unwrap();
    client.pause(299_000).await;
    assert_eq!(client.stats.downstream_cx_destroy().get(), 0);
    client.pause(2000).await;
    let stats = &client.stats;
    let ends = [stats.downstream_cx_destroy_local().get(), stats.downstream_cx_destroy_remote().get()];
    assert_eq!(ends, [1, 0]);
    assert_eq!(client.line(), "200 SI stream_idle_timeout");
}

/// The connection ended with all its streams.
#[tokio::test(start_paused = true)]
async fn trailers_of_streams_that_were_reset_are_passed_over() {
    let mut client = Client::new(|_| {}).await;
    client.send(PREFACE).await;
    let streams = (0..60u8).map(|n| 2 * n + 1);
    for stream in streams.clone() {
        client.send(&headers(END_HEADERS, stream, &BLOCK)).await;
        assert!(client.heard(3, stream), "it was answered early: {stream}");
    }
    for stream in streams {
        client.send(&headers(END_STREAM | END_HEADERS, stream, &TRAILERS)).await;
    }
    client.send(&headers(END_STREAM | END_HEADERS, 201, &BLOCK)).await;
    assert!(client.heard(1, 201) && !client.heard(7, 0), "{:?}", client.said);
}
