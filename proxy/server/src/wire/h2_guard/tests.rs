use super::frames::Frame;
use super::*;
use sixfold_core::metrics::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PING: u8 = 0x6;

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0, payload.len() as u8, kind, flags];
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

fn options() -> Http2Options {
    Http2Options { max_resets: 10, max_control_frames: 100, ..Http2Options::default() }
}

fn server() -> Guarded<()> {
    let mut guarded = Guarded::server((), Vec::new(), &options(), PeerTimeouts::default());
    guarded.received(PREFACE).unwrap();
    guarded
}

impl Guarded<()> {
    fn takes(&mut self, bytes: &[u8]) -> bool {
        self.received(bytes).is_ok()
    }

    fn answers(&mut self, bytes: &[u8]) {
        let (ledger, counts) = (&mut self.ledger, &self.counts);
        self.outward.scan(bytes, |frame| {
            counts::sent(counts, frame);
            ledger.sent(frame);
        });
    }
}

fn head(stream: u32) -> Vec<u8> {
    frame(Frame::HEADERS, 4, stream, b"abc")
}

fn reset(stream: u32, code: u8) -> Vec<u8> {
    frame(Frame::RST_STREAM, 0, stream, &[0, 0, 0, code])
}

/// How many streams of this kind pass until it is a flood; at most 1,000.
fn until_flood(mut stream: impl FnMut(u32, &mut Guarded<()>) -> bool) -> usize {
    let mut guarded = server();
    (0..1000).take_while(|n| stream(2 * n + 1, &mut guarded)).count()
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_given_up_are_a_flood_whatever_else_they_carry() {
    let plain = until_flood(|n, guarded| guarded.takes(&[head(n), reset(n, 8)].concat()));
    assert_eq!(plain, 10);
    // Trailers made the share of resets look half as large.
    let trailers =
        until_flood(|n, guarded| guarded.takes(&[head(n), head(n), head(n), reset(n, 8)].concat()));
    assert_eq!(trailers, 10);
    // Resets that we are provoked into count as the client's.
    let provoked = until_flood(|n, guarded| {
        guarded.answers(&reset(n, 5));
        guarded.takes(&[head(n), frame(Frame::DATA, 0, n, b"x")].concat())
    });
    assert_eq!(provoked, 10);
}

/// Nothing was counted of HTTP/2 itself.
#[test]
fn frames_are_counted_as_envoy_counts_them() {
    let registry = Registry::new();
    let counted = || {
        let nonzero = |name: &&str| registry.sum("http2.", name) > 0;
        let names = [
            "goaway_sent",
            "inbound_empty_frames_flood",
            "inbound_priority_frames_flood",
            "inbound_window_update_frames_flood",
            "outbound_control_flood",
            "rx_messaging_error",
            "rx_reset",
            "stream_refused_errors",
            "trailers",
            "tx_reset",
        ];
        names.into_iter().filter(nonzero).collect::<Vec<_>>().join(" ")
    };
    let fresh = || server().counted(Http2Counts::new(&registry, "http2."));
    let mut guarded = fresh();
    guarded.takes(&head(1));
    assert_eq!(counted(), "");
    guarded.takes(&[frame(Frame::DATA, 0, 1, b"x"), frame(Frame::HEADERS, 5, 1, b"t")].concat());
    assert_eq!(counted(), "trailers");
    guarded.takes(&reset(1, 7));
    guarded.takes(&head(3));
    guarded.answers(&[reset(3, 1), frame(Frame::GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0])].concat());
    assert_eq!(counted(), "goaway_sent rx_messaging_error rx_reset stream_refused_errors trailers tx_reset");
    drop(guarded);
    assert_eq!(counted(), "");
    for (kind, payload, name) in [
        (Frame::PRIORITY, &b"12345"[..], "inbound_priority_frames_flood"),
        (Frame::WINDOW_UPDATE, b"1234", "inbound_window_update_frames_flood"),
        (Frame::DATA, b"", "inbound_empty_frames_flood"),
        (PING, b"12345678", "outbound_control_flood"),
    ] {
        let mut guarded = fresh();
        guarded.takes(&head(1));
        assert!((0..1000).any(|_| !guarded.takes(&frame(kind, 0, 1, payload))), "{name}");
        assert_eq!(counted(), name);
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_past_buys_no_flood() {
    let mut guarded = server();
    for n in 0..5000 {
        let stream = 2 * n + 1;
        assert!(guarded.takes(&head(stream)));
        guarded.answers(&frame(Frame::HEADERS, 5, stream, b"ok"));
    }
    tokio::time::advance(Duration::from_secs(60)).await;
    let taken = (5000..6000).take_while(|n| guarded.takes(&[head(2 * n + 1), reset(2 * n + 1, 8)].concat()));
    assert_eq!(taken.count(), 10);
}

#[tokio::test(start_paused = true)]
async fn refused_answered_and_old_streams_may_be_reset() {
    let refused = until_flood(|n, guarded| {
        let taken = guarded.takes(&head(n));
        guarded.answers(&reset(n, 7));
        taken
    });
    assert_eq!(refused, 1000);
    let cut_by_us = until_flood(|n, guarded| {
        let taken = guarded.takes(&head(n));
        guarded.answers(&reset(n, 2));
        taken
    });
    assert_eq!(cut_by_us, 1000);
    let mut guarded = server();
    for n in 0..100 {
        let stream = 2 * n + 1;
        assert!(guarded.takes(&head(stream)));
        // The beginning of an endless answer, such as of events.
        guarded.answers(&frame(Frame::DATA, 0, stream, b"event"));
        assert!(guarded.takes(&reset(stream, 8)), "{n}");
    }
    for n in 1000..1020 {
        assert!(guarded.takes(&head(2 * n + 1)));
    }
    tokio::time::advance(Duration::from_secs(2)).await;
    for n in 1000..1020 {
        assert!(guarded.takes(&reset(2 * n + 1, 8)), "{n} had its time");
    }
    // None of them counted: ten more would be a flood.
    for n in 2000..2010 {
        assert!(guarded.takes(&[head(2 * n + 1), reset(2 * n + 1, 8)].concat()), "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn frames_that_ask_for_nothing_are_counted() {
    let cheap = [
        ("WINDOW_UPDATE", frame(Frame::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("acknowledged PING", frame(PING, 1, 0, &[0; 8])),
        ("acknowledged SETTINGS", frame(0x4, 1, 0, &[])),
        ("PRIORITY", frame(0x2, 0, 1, &[0; 5])),
        ("unknown", frame(0x42, 0, 0, &[0; 5])),
        ("empty DATA", frame(Frame::DATA, 0, 1, &[])),
        ("reset of nothing", reset(999, 8)),
    ];
    for (name, bytes) in cheap {
        for mut guarded in [server(), Guarded::client((), &options(), PeerTimeouts::default())] {
            let taken = (0..1000).take_while(|_| guarded.takes(&bytes)).count();
            assert_eq!(taken, 100, "{name}");
        }
        let mut slow = server();
        for n in 0..1000 {
            tokio::time::advance(Duration::from_millis(20)).await;
            assert!(slow.takes(&bytes), "{name} {n}, 50 a second");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn windows_may_be_opened_for_data_that_was_sent() {
    let mut guarded = server();
    let update = frame(Frame::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
    for n in 0..1000 {
        guarded.answers(&frame(Frame::DATA, 0, 1, b"x"));
        assert!((0..20).all(|_| guarded.takes(&update)), "{n}");
    }
    (0..100_000).for_each(|_| guarded.answers(&frame(Frame::DATA, 0, 1, b"x")));
    let saved = (0..10_000).take_while(|_| guarded.takes(&update)).count();
    assert_eq!(saved, 200, "what is saved up is bounded");
}

/// The library ignores streams behind the last one of a GOAWAY: none was ever answered or counted, and each was kept.
#[tokio::test(start_paused = true)]
async fn streams_behind_the_last_one_are_counted_and_not_kept() {
    let mut guarded = server();
    assert!(guarded.takes(&[head(1), head(3)].concat()));
    guarded.answers(&frame(Frame::GOAWAY, 0, 0, &[&[0x7f, 0xff, 0xff, 0xff][..], &[0; 4]].concat()));
    assert!(guarded.takes(&head(5)));
    assert_eq!(guarded.ledger.unanswered(), 3, "the first GOAWAY ends nothing");
    guarded.answers(&frame(Frame::GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0]));
    assert_eq!(guarded.ledger.unanswered(), 2);
    let ignored = (3..10_000).take_while(|n| guarded.takes(&head(2 * n + 1))).count();
    assert_eq!((ignored, guarded.ledger.unanswered()), (100, 2));
    // A GOAWAY that is not written yet ends the streams all the same.
    let few = Http2Options { max_concurrent_streams: 10, ..options() };
    let mut guarded = Guarded::server((), Vec::new(), &few, PeerTimeouts::default());
    guarded.received(PREFACE).unwrap();
    let taken = (0..10_000).take_while(|n| guarded.takes(&head(2 * n + 1))).count();
    assert_eq!((taken, guarded.ledger.unanswered()), (120, 20));
}

#[tokio::test(start_paused = true)]
async fn half_a_header_block_and_a_peer_that_takes_nothing_end_the_connection() {
    let timeouts = PeerTimeouts { head: Some(Duration::from_secs(10)), write: Some(Duration::from_secs(20)) };
    let guarded = |size| {
        let (near, far) = tokio::io::duplex(size);
        (Guarded::server(near, PREFACE.to_vec(), &options(), timeouts), far)
    };
    let (mut reading, mut far) = guarded(1000);
    far.write_all(&head(1)[..10]).await.unwrap();
    let mut got = Vec::new();
    let start = Instant::now();
    let error = loop {
        match reading.read_buf(&mut got).await {
            Ok(_) => tokio::time::advance(Duration::from_secs(3)).await,
            Err(error) => break error,
        }
        // What else comes meanwhile moves nothing.
        if got.len() < 30 {
            far.write_all(b"b").await.unwrap();
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(start.elapsed() <= Duration::from_secs(14), "{:?}", start.elapsed());

    let (mut whole, mut far) = guarded(1000);
    far.write_all(&head(1)).await.unwrap();
    got.clear();
    while got.len() < 24 + 12 {
        whole.read_buf(&mut got).await.unwrap();
    }
    let wait = tokio::time::timeout(Duration::from_secs(3600), whole.read_buf(&mut got));
    assert!(wait.await.is_err(), "nothing is owed");

    let (mut writing, _far) = guarded(10);
    let start = Instant::now();
    let error = writing.write_all(&[0; 100]).await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::ConnectionAborted, 20));
}

#[tokio::test(start_paused = true)]
async fn who_holds_the_connection_hears_of_half_a_head_and_may_go_on() {
    let timeouts = PeerTimeouts { head: Some(Duration::from_secs(10)), write: None };
    let (near, mut far) = tokio::io::duplex(1000);
    let watch = Arc::<HeadWatch>::default();
    let mut guarded = Guarded::server(near, PREFACE.to_vec(), &options(), timeouts).watched(watch.clone());
    let (mut got, sent) = (Vec::new(), frame(Frame::HEADERS, 0, 1, b"a"));
    far.write_all(&sent).await.unwrap();
    while got.len() < PREFACE.len() + sent.len() {
        assert!(!watch.is_open());
        guarded.read_buf(&mut got).await.unwrap();
    }
    assert!(watch.is_open() && watch.late().is_none());
    let start = Instant::now();
    let wait = tokio::time::timeout(Duration::from_secs(60), guarded.read_buf(&mut got));
    assert!(wait.await.is_err());
    assert_eq!((watch.late(), start.elapsed().as_secs()), (Some(1), 60));
    // What is said to it stands between two frames.
    let ping = frame(PING, 0, 0, &[0; 8]);
    guarded.write_all(&ping[..10]).await.unwrap();
    watch.answer(b"answer".to_vec());
    guarded.flush().await.unwrap();
    guarded.write_all(&ping[10..]).await.unwrap();
    guarded.write_all(&ping).await.unwrap();
    let mut said = vec![0; 2 * ping.len() + 6];
    far.read_exact(&mut said).await.unwrap();
    assert_eq!(said, [&ping, b"answer".as_slice(), &ping].concat());
    // Its rest is read all the same, and nothing is owed again.
    far.write_all(&frame(Frame::CONTINUATION, 4, 1, b"d")).await.unwrap();
    assert!(guarded.read_buf(&mut got).await.unwrap() > 0);
    assert_eq!(watch.late(), Some(1));
}

/// They had the deadline of a head, and a block that began where another ended had what was left of its time.
#[tokio::test(start_paused = true)]
async fn trailers_are_no_head_and_each_head_has_its_own_time() {
    let timeouts = PeerTimeouts { head: Some(Duration::from_secs(10)), write: None };
    let (near, mut far) = tokio::io::duplex(1000);
    let watch = Arc::<HeadWatch>::default();
    let mut guarded = Guarded::server(near, PREFACE.to_vec(), &options(), timeouts).watched(watch.clone());
    let (mut got, start) = (Vec::new(), Instant::now());
    let seconds = Duration::from_secs;
    let parts = [
        ([head(1), frame(Frame::HEADERS, 0, 1, b"a")].concat(), 60),
        // The trailers end, and the head of another stream begins.
        ([frame(Frame::CONTINUATION, 4, 1, b"d"), frame(Frame::HEADERS, 0, 3, b"a")].concat(), 6),
        ([frame(Frame::CONTINUATION, 4, 3, b"d"), frame(Frame::HEADERS, 0, 5, b"a")].concat(), 6),
        (frame(Frame::CONTINUATION, 4, 5, b"d"), 60),
    ];
    let mut open = Vec::new();
    for (part, until) in parts {
        far.write_all(&part).await.unwrap();
        while tokio::time::timeout(seconds(until), guarded.read_buf(&mut got)).await.is_ok() {}
        open.push(watch.is_open());
        assert_eq!(watch.late(), None);
    }
    assert_eq!(open, [false, true, true, false]);
    let began = [1, 3, 5, 7].map(|stream| Some((watch.take_begin(stream)? - start).as_secs()));
    assert_eq!(began, [None, Some(60), Some(66), None]);
    assert!(!watch.has_begun.load(Relaxed));
}
