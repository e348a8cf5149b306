//! Heads of requests that do not come to their end: a stream begins with the first byte of its head, and has all its
//! deadlines from then on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::access_log::AccessLog;
use sixfold_core::format::Format;
use sixfold_core::hcm::{ConnectionTimeouts, HttpStats};
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

    /// Lets the proxy hear of everything, and reads what it says. Meanwhile the clock does not move by itself, since a thread
    /// is busy.
    #[allow(clippy::disallowed_methods)] // it is that a thread is busy which keeps the clock
    async fn settle(&mut self) {
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(10))).await.unwrap();
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
