#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::wire::PREFACE;
use crate::wire::h2_guard::{Guarded, PeerTimeouts};
use h2::client::SendRequest;
use sixfold_core::cluster::Http2Options;
use std::future::poll_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;

const PING: u8 = 6;
const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const WINDOW_UPDATE: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn options() -> Http2Keepalive {
    Http2Keepalive { interval: Some(seconds(10)), jitter: Duration::ZERO, timeout: seconds(3), idle: None }
}

/// What a connection is connected with, played by bytes.
struct Peer {
    socket: DuplexStream,
    start: Instant,
    pulse: Arc<Pulse>,
    counts: Http2Counts,
    send: SendRequest<bytes::Bytes>,
    /// When it was ended, in seconds.
    ended: JoinHandle<u64>,
}

impl Peer {
    async fn of(options: Http2Keepalive, buffer: usize) -> Peer {
        let (near, mut socket) = tokio::io::duplex(buffer);
        let start = Instant::now();
        let counts = Http2Counts::new(&sixfold_core::metrics::Registry::new(), "http2.");
        let pulse = Keepalive::pulse(Some(&options)).unwrap();
        let guarded = Guarded::client(near, &Http2Options::default(), PeerTimeouts::default())
            .felt(Some(pulse.clone()));
        let builder = h2::client::Builder::new();
        let (send, mut connection) = builder.handshake(guarded).await.unwrap();
        let pings = connection.ping_pong().unwrap();
        let keepalive = Keepalive::new(options, pings, pulse.clone(), counts.clone());
        let ended = tokio::spawn(async move {
            let (mut connection, mut keepalive) = (Box::pin(connection), Some(Box::new(keepalive)));
            let ended = poll_fn(|cx| poll_with(&mut keepalive, connection.as_mut(), cx)).await;
            assert!(ended.is_err(), "{ended:?}", ended = ended.ok());
            start.elapsed().as_secs()
        });
        socket.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        socket.write_all(&EMPTY_SETTINGS).await.unwrap();
        Peer { socket, start, pulse, counts, send, ended }
    }

    /// The payload of the next PING that asks for an answer, and when it came, in seconds.
    async fn ping(&mut self) -> (Vec<u8>, u64) {
        loop {
            let mut head = [0; 9];
            self.socket.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            self.socket.read_exact(&mut payload).await.unwrap();
            if head[3] == PING && head[4] == 0 {
                return (payload, self.start.elapsed().as_secs());
            }
        }
    }

    async fn answer(&mut self, payload: &[u8]) {
        self.socket.write_all(&[&[0, 0, 8, PING, 1, 0, 0, 0, 0][..], payload].concat()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_ping_comes_an_interval_after_the_answer_and_silence_ends_the_connection() {
    let mut peer = Peer::of(options(), 1 << 16).await;
    for round in 1..=3 {
        let (payload, at) = peer.ping().await;
        assert_eq!(at, 10 * round + (round - 1));
        sleep(seconds(1)).await;
        peer.answer(&payload).await;
    }
    assert_eq!(peer.ping().await.1, 43);
    assert_eq!(peer.counts.keepalive_timeout().get(), 0);
    assert_eq!(peer.ended.await.unwrap(), 46);
    assert_eq!(peer.counts.keepalive_timeout().get(), 1);
}

/// An answer may be behind other frames.
#[tokio::test(start_paused = true)]
async fn a_peer_that_says_anything_is_there() {
    let mut peer = Peer::of(options(), 1 << 16).await;
    let (payload, _) = peer.ping().await;
    for _ in 0..5 {
        sleep(seconds(2)).await;
        peer.socket.write_all(&WINDOW_UPDATE).await.unwrap();
    }
    sleep(seconds(2)).await;
    peer.answer(&payload).await;
    assert_eq!(peer.ping().await.1, 32);
    assert_eq!(peer.ended.await.unwrap(), 35);
}

#[tokio::test(start_paused = true)]
async fn without_an_interval_only_doubt_asks() {
    let mut peer = Peer::of(Http2Keepalive { interval: None, ..options() }, 1 << 16).await;
    sleep(seconds(4)).await;
    peer.pulse.doubt(seconds(5));
    sleep(seconds(3600)).await;
    assert!(!peer.ended.is_finished());
    peer.pulse.doubt(seconds(5));
    let (payload, at) = peer.ping().await;
    assert_eq!(at, 3604);
    // No second one while the answer is not here.
    peer.pulse.doubt(seconds(5));
    peer.answer(&payload).await;
    sleep(seconds(60)).await;
    peer.pulse.doubt(seconds(5));
    assert_eq!(peer.ping().await.1, 3664);
    assert_eq!(peer.ended.await.unwrap(), 3667);
}

/// The library does not read while it can't write, so that neither the answer nor anything else would be seen.
#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_a_long_write_slowly_is_there() {
    let mut peer = Peer::of(options(), 64).await;
    sleep(seconds(1)).await;
    let (_response, mut body) = peer.send.send_request(http::Request::new(()), false).unwrap();
    body.send_data(vec![b'x'; 60_000].into(), true).unwrap();
    for _ in 0..100 {
        sleep(seconds(1)).await;
        peer.socket.read_exact(&mut [0; 64]).await.unwrap();
    }
    assert!(!peer.ended.is_finished());
    assert_eq!(peer.ended.await.unwrap(), 104);
}

#[tokio::test(start_paused = true)]
async fn jitter_makes_an_interval_longer_by_less_than_it() {
    let jitter = seconds(10);
    let mut times = Vec::new();
    for _ in 0..30 {
        let mut peer = Peer::of(Http2Keepalive { jitter, ..options() }, 1 << 16).await;
        times.push(peer.ping().await.1);
    }
    assert!(times.iter().all(|at| (10..20).contains(at)), "{times:?}");
    assert!(times.iter().any(|at| *at != times[0]), "{times:?}");
}
