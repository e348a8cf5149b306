//! When attempts begin and end, on a clock that moves only when a test says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::clock::{StoppedClock, settle};
use common::{Setup, get, ok, read_message, status};
use parking_lot::Mutex;
use sixfold_core::matcher::HeaderTarget;
use sixfold_core::metrics::Registry;
use sixfold_core::retry::{RateLimitedBackOff, RetryOn, RetryPolicy};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::Instant;

/// More than any test sees.
const MOST: usize = 100;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What the upstream does about an attempt.
enum Reply {
    Answer(Vec<u8>),
    /// The head of a response at once, its body of one byte a second later.
    SlowBody,
    Silence,
    /// The same so many milliseconds later, if the connection is still there.
    Late(u64, Vec<u8>),
}

/// What the upstream sees, in milliseconds after the start.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Seen {
    Attempt(u64),
    /// The connection of an attempt that was not answered was closed.
    Closed(u64),
}

/// Plays the upstream: one reply an attempt, then silence.
async fn upstream(clock: &StoppedClock, replies: Vec<Reply>) -> (SocketAddr, Receiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, seen) = channel(MOST);
    let start = clock.start;
    let replies = Arc::new(Mutex::new(VecDeque::from(replies)));
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(play(socket, replies.clone(), start, sender.clone()));
        }
    });
    (address, seen)
}

async fn play(
    mut socket: TcpStream,
    replies: Arc<Mutex<VecDeque<Reply>>>,
    start: Instant,
    seen: Sender<Seen>,
) {
    let now = || start.elapsed().as_millis() as u64;
    while read_message(&mut socket).await.is_some() {
        seen.try_send(Seen::Attempt(now())).unwrap();
        let reply = replies.lock().pop_front();
        match reply.unwrap_or(Reply::Silence) {
            Reply::Answer(bytes) => socket.write_all(&bytes).await.unwrap(),
            Reply::SlowBody => {
                socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n").await.unwrap();
                tokio::time::sleep(ms(1000)).await;
                let _ = socket.write_all(b"x").await;
            }
            Reply::Late(wait, bytes) => {
                let left = tokio::time::timeout(ms(wait), socket.read(&mut [0; 1])).await;
                if left.is_ok() {
                    let _ = seen.try_send(Seen::Closed(now()));
                    return;
                }
                socket.write_all(&bytes).await.unwrap();
            }
            Reply::Silence => {
                let _ = socket.read(&mut [0; 1]).await;
                let _ = seen.try_send(Seen::Closed(now()));
                return;
            }
        }
    }
}

fn policy(retries: u32) -> RetryPolicy {
    RetryPolicy {
        on: RetryOn::SERVER_ERROR,
        num_retries: retries,
        // The shortest there is: the next millisecond at the latest.
        base_interval: Duration::from_micros(1),
        max_interval: Duration::from_micros(1),
        ..RetryPolicy::default()
    }
}

/// A proxy with this policy and timeout in front of the upstream.
async fn proxy(upstream: SocketAddr, policy: RetryPolicy, timeout: Option<Duration>) -> SocketAddr {
    setup(upstream, policy, timeout, false).serve().await.0
}

fn setup(upstream: SocketAddr, policy: RetryPolicy, timeout: Option<Duration>, hedge: bool) -> Setup {
    let mut setup = Setup::new();
    setup.cluster("a", &[upstream], |_| {});
    setup.route("/", "a", |forward| {
        forward.retry = Some(Arc::new(policy));
        forward.timeouts.request = timeout;
        forward.hedge_on_per_try_timeout = hedge;
    });
    setup
}

/// Sends a request; its response comes through the channel with the millisecond it arrived in.
async fn ask(clock: &StoppedClock, proxy: SocketAddr) -> Receiver<(u64, String)> {
    let (sender, answers) = channel(MOST);
    let start = clock.start;
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(get("/").as_bytes()).await.unwrap();
    tokio::spawn(async move {
        let response = read_message(&mut client).await.unwrap_or_default();
        let _ = sender.try_send((start.elapsed().as_millis() as u64, response));
    });
    answers
}

fn all<T>(channel: &mut Receiver<T>) -> Vec<T> {
    std::iter::from_fn(|| channel.try_recv().ok()).collect()
}

/// The one answer so far: when, and its status.
fn answered(answers: &mut Receiver<(u64, String)>) -> (u64, u16) {
    let (at, response) = answers.try_recv().expect("no answer yet");
    (at, response.split(' ').nth(1).unwrap().parse().unwrap())
}

/// Moments of timers have a granularity of a millisecond, and a back-off is one at most.
#[track_caller]
fn assert_seen(seen: &[Seen], expected: &[Seen]) {
    let kinds = |seen: &[Seen]| -> Vec<(bool, u64)> {
        seen.iter()
            .map(|one| match one {
                Seen::Attempt(at) => (true, *at),
                Seen::Closed(at) => (false, *at),
            })
            .collect()
    };
    let (got, want) = (kinds(seen), kinds(expected));
    let near = |(a, b): (&(bool, u64), &(bool, u64))| a.0 == b.0 && a.1.abs_diff(b.1) <= 8;
    assert!(got.len() == want.len() && got.iter().zip(&want).all(near), "{seen:?}, not {expected:?}");
}

#[tokio::test]
async fn every_attempt_has_its_own_time_and_ends_before_the_next_begins() {
    let clock = StoppedClock::new();
    let (address, mut seen) = upstream(&clock, Vec::new()).await;
    let policy = RetryPolicy { per_try_timeout: Some(ms(300)), ..policy(2) };
    let proxy = proxy(address, policy, Some(ms(15_000))).await;
    let mut answers = ask(&clock, proxy).await;
    clock.to(ms(299)).await;
    assert_seen(&all(&mut seen), &[Seen::Attempt(0)]);
    clock.to(ms(890)).await;
    use Seen::{Attempt, Closed};
    // Nothing is hedged: an attempt is given up before another one is made.
    assert_seen(&all(&mut seen), &[Closed(300), Attempt(300), Closed(600), Attempt(600)]);
    assert!(answers.try_recv().is_err());
    clock.to(ms(920)).await;
    assert_seen(&all(&mut seen), &[Closed(900)]);
    let (at, code) = answered(&mut answers);
    assert!(code == 504 && (900..910).contains(&at), "{code} at {at}");
}

#[tokio::test]
async fn the_whole_timeout_covers_all_attempts() {
    let clock = StoppedClock::new();
    let (address, mut seen) = upstream(&clock, Vec::new()).await;
    let policy = RetryPolicy { per_try_timeout: Some(ms(300)), ..policy(10) };
    let proxy = proxy(address, policy, Some(ms(1000))).await;
    let mut answers = ask(&clock, proxy).await;
    clock.to(ms(998)).await;
    assert!(answers.try_recv().is_err());
    let attempts = all(&mut seen).iter().filter(|one| matches!(one, Seen::Attempt(_))).count();
    assert_eq!(attempts, 4);
    clock.to(ms(1005)).await;
    let (at, code) = answered(&mut answers);
    assert!(code == 504 && (1000..=1002).contains(&at), "{code} at {at}");
    clock.to(ms(1400)).await;
    assert_seen(&all(&mut seen), &[Seen::Closed(1000)]);
}

#[tokio::test]
async fn a_retry_after_the_whole_timeout_does_not_begin() {
    let clock = StoppedClock::new();
    let (address, mut seen) = upstream(&clock, vec![Reply::Answer(asks_to_wait())]).await;
    let proxy = proxy(address, waits_when_asked(), Some(ms(600))).await;
    let mut answers = ask(&clock, proxy).await;
    clock.to(ms(598)).await;
    assert!(answers.try_recv().is_err(), "it waits for the retry");
    clock.to(ms(605)).await;
    let (at, code) = answered(&mut answers);
    assert!(code == 504 && (600..=602).contains(&at), "{code} at {at}");
    clock.to(ms(1700)).await;
    assert_seen(&all(&mut seen), &[Seen::Attempt(0)]);
}

#[tokio::test]
async fn an_upstream_that_names_a_time_is_asked_again_after_it() {
    let clock = StoppedClock::new();
    let replies = vec![Reply::Answer(asks_to_wait()), Reply::Answer(ok("done"))];
    let (address, mut seen) = upstream(&clock, replies).await;
    let proxy = proxy(address, waits_when_asked(), None).await;
    let mut answers = ask(&clock, proxy).await;
    clock.to(ms(999)).await;
    assert_seen(&all(&mut seen), &[Seen::Attempt(0)]);
    clock.to(ms(1505)).await;
    let again = all(&mut seen);
    // Up to half as much again, so that clients do not come back all at once.
    assert!(matches!(again[..], [Seen::Attempt(1000..=1502)]), "{again:?}");
    assert_eq!(answered(&mut answers).1, 200);
}

fn asks_to_wait() -> Vec<u8> {
    b"HTTP/1.1 503 X\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n".to_vec()
}

fn waits_when_asked() -> RetryPolicy {
    let limited = RateLimitedBackOff {
        headers: vec![(HeaderTarget::of_response("retry-after"), false)],
        max_interval: ms(300_000),
    };
    RetryPolicy { rate_limited: Some(limited), ..policy(1) }
}

#[tokio::test]
async fn a_back_off_is_waited_for() {
    let clock = StoppedClock::new();
    let (address, mut seen) = upstream(&clock, (0..9).map(|_| Reply::Answer(status(503))).collect()).await;
    let policy = RetryPolicy { base_interval: ms(40), max_interval: ms(100), ..policy(4) };
    let proxy = proxy(address, policy, None).await;
    let mut answers = ask(&clock, proxy).await;
    clock.to(ms(400)).await;
    let moments: Vec<u64> = all(&mut seen)
        .iter()
        .map(|one| match one {
            Seen::Attempt(at) | Seen::Closed(at) => *at,
        })
        .collect();
    assert_eq!(moments.len(), 5, "{moments:?}");
    // Each wait is below base * 2^(n-1), and below the maximum.
    for (pair, ceiling) in moments.windows(2).zip([40, 80, 100, 100]) {
        assert!(pair[1] - pair[0] <= ceiling + 2, "{moments:?}");
    }
    assert_eq!(answered(&mut answers).1, 503);
}

#[tokio::test]
async fn silence_within_an_attempt_ends_it() {
    let clock = StoppedClock::new();
    let (address, mut seen) = upstream(&clock, vec![Reply::Silence, Reply::Answer(ok("done"))]).await;
    let policy = RetryPolicy { per_try_idle_timeout: Some(ms(200)), ..policy(1) };
    let proxy = proxy(address, policy, None).await;
    let mut answers = ask(&clock, proxy).await;
    clock.to(ms(198)).await;
    assert_seen(&all(&mut seen), &[Seen::Attempt(0)]);
    clock.to(ms(210)).await;
    assert_seen(&all(&mut seen), &[Seen::Closed(200), Seen::Attempt(200)]);
    assert_eq!(answered(&mut answers).1, 200);
}

#[tokio::test]
async fn a_slow_request_body_is_no_silence() {
    let clock = StoppedClock::new();
    let (address, mut seen) = upstream(&clock, vec![Reply::Answer(ok("done"))]).await;
    let policy =
        RetryPolicy { per_try_timeout: Some(ms(250)), per_try_idle_timeout: Some(ms(200)), ..policy(1) };
    let proxy = proxy(address, policy, Some(ms(300))).await;
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n").await.unwrap();
    for nth in 1..=4 {
        clock.to(ms(150 * nth)).await;
        client.write_all(b"x").await.unwrap();
    }
    settle().await;
    // The other timeouts begin with the end of the request.
    assert_seen(&all(&mut seen), &[Seen::Attempt(600)]);
    assert!(read_message(&mut client).await.unwrap().starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_body_may_take_longer_than_an_attempt_has_for_its_head() {
    let clock = StoppedClock::new();
    let (address, mut seen) = upstream(&clock, vec![Reply::SlowBody]).await;
    let policy = RetryPolicy { per_try_timeout: Some(ms(300)), ..policy(1) };
    let proxy = proxy(address, policy, Some(ms(15_000))).await;
    let mut answers = ask(&clock, proxy).await;
    clock.to(ms(1010)).await;
    let (at, response) = answers.try_recv().unwrap();
    assert!(response.ends_with('x') && (1000..1005).contains(&at), "{response} at {at}");
    assert_seen(&all(&mut seen), &[Seen::Attempt(0)]);
}

/// A hedged request: 300 ms an attempt, so many retries, 15 s for all. Answers what the upstream sees, what the client
/// gets, and the statistics.
async fn hedged(
    clock: &StoppedClock,
    replies: Vec<Reply>,
    retries: u32,
) -> (Receiver<Seen>, Receiver<(u64, String)>, Registry) {
    let (address, seen) = upstream(clock, replies).await;
    let policy = RetryPolicy { per_try_timeout: Some(ms(300)), ..policy(retries) };
    let setup = setup(address, policy, Some(ms(15_000)), true);
    let registry = setup.registry.clone();
    let proxy = setup.serve().await.0;
    (seen, ask(clock, proxy).await, registry)
}

#[tokio::test]
async fn a_slow_attempt_goes_on_beside_the_next_and_its_answer_counts() {
    let clock = StoppedClock::new();
    let replies = vec![Reply::Late(500, ok("first")), Reply::Late(900, ok("second"))];
    let (mut seen, mut answers, registry) = hedged(&clock, replies, 1).await;
    clock.to(ms(490)).await;
    use Seen::{Attempt, Closed};
    assert_seen(&all(&mut seen), &[Attempt(0), Attempt(300)]);
    assert_eq!(registry.sum("cluster.a.", "upstream_rq_active"), 2);
    clock.to(ms(520)).await;
    let (at, response) = answers.try_recv().unwrap();
    assert!(response.ends_with("first") && (500..510).contains(&at), "{response} at {at}");
    // The other one is given up.
    assert_seen(&all(&mut seen), &[Closed(500)]);
    assert_eq!(registry.sum("cluster.a.", "upstream_rq_active"), 0);
    assert_eq!(registry.sum("cluster.a.", "upstream_rq_per_try_timeout"), 0);
}

#[tokio::test]
async fn the_next_attempt_may_answer_first_and_the_slow_one_is_given_up() {
    let clock = StoppedClock::new();
    let (mut seen, mut answers, registry) =
        hedged(&clock, vec![Reply::Silence, Reply::Answer(ok("second"))], 1).await;
    clock.to(ms(320)).await;
    let (at, response) = answers.try_recv().unwrap();
    assert!(response.ends_with("second") && (300..315).contains(&at), "{response} at {at}");
    assert_seen(&all(&mut seen), &[Seen::Attempt(0), Seen::Attempt(300), Seen::Closed(300)]);
    assert_eq!(registry.sum("cluster.a.", "upstream_rq_active"), 0);
}

/// What the one endpoint counted: answers, failures, timeouts.
fn endpoint_counts(setup: &Setup) -> impl Fn() -> [u64; 3] + use<> {
    let cluster = setup.clusters.cell("a").load().unwrap();
    let host = cluster.hosts.load().iter().next().unwrap().host.clone();
    move || {
        [&host.succeeded_requests, &host.failed_requests, &host.timed_out_requests].map(|n| n.load(Relaxed))
    }
}

/// A slow attempt counted as a timeout also where another one's answer ended it, and a bad answer that another attempt
/// made good was none to its endpoint.
#[tokio::test]
async fn attempts_of_a_hedged_request_count_by_their_own_end() {
    use Reply::{Answer, Late, Silence};
    let cases = [
        (vec![Silence, Answer(ok("second"))], 15_000, [1, 0, 0]),
        (vec![Late(700, ok("good")), Answer(status(503))], 15_000, [1, 1, 0]),
        (vec![Late(500, status(404)), Late(500, ok("good"))], 15_000, [1, 1, 0]),
        (vec![], 900, [0, 2, 2]),
    ];
    let clock = StoppedClock::new();
    let mut end = 0;
    for (replies, limit, expected) in cases {
        let (address, _seen) = upstream(&clock, replies).await;
        let on = RetryOn::SERVER_ERROR | RetryOn::RETRIABLE_4XX | RetryOn::RETRIABLE_STATUS_CODES;
        let policy = RetryPolicy { on, status_codes: vec![404], per_try_timeout: Some(ms(300)), ..policy(1) };
        let setup = setup(address, policy, Some(ms(limit)), true);
        let counts = endpoint_counts(&setup);
        let proxy = setup.serve().await.0;
        let mut answers = ask(&clock, proxy).await;
        end += 1100;
        clock.to(ms(end)).await;
        answers.try_recv().expect("an answer");
        assert_eq!(counts(), expected);
    }
}

/// Whatever its status, a response in whose place another attempt was made is an error of its endpoint.
#[tokio::test]
async fn a_retried_response_is_an_error_of_its_endpoint() {
    let clock = StoppedClock::new();
    let (address, _seen) =
        upstream(&clock, vec![Reply::Answer(status(409)), Reply::Answer(ok("second"))]).await;
    let policy = RetryPolicy { on: RetryOn::RETRIABLE_4XX, ..policy(1) };
    let setup = setup(address, policy, None, false);
    let counts = endpoint_counts(&setup);
    let proxy = setup.serve().await.0;
    let mut answers = ask(&clock, proxy).await;
    clock.to(ms(50)).await;
    assert!(answers.try_recv().unwrap().1.ends_with("second"));
    assert_eq!(counts(), [1, 1, 0]);
}

/// A bad response waits for the attempts beside it; the last one is passed on whatever it is.
#[tokio::test]
async fn bad_responses_wait_for_good_ones() {
    let clock = StoppedClock::new();
    let bad_then_good = vec![Reply::Late(700, ok("good")), Reply::Answer(status(503))];
    let (_seen, mut answers, _) = hedged(&clock, bad_then_good, 1).await;
    clock.to(ms(690)).await;
    assert!(answers.try_recv().is_err(), "the first attempt may do better");
    clock.to(ms(720)).await;
    assert!(answers.try_recv().unwrap().1.ends_with("good"));
}

#[tokio::test]
async fn the_last_of_bad_responses_is_passed_on() {
    let clock = StoppedClock::new();
    let all_bad = vec![Reply::Late(500, status(503)), Reply::Late(600, status(502))];
    let (_seen, mut answers, registry) = hedged(&clock, all_bad, 1).await;
    clock.to(ms(880)).await;
    assert!(answers.try_recv().is_err());
    clock.to(ms(930)).await;
    assert!(answers.try_recv().unwrap().1.starts_with("HTTP/1.1 502 "));
    assert_eq!(registry.sum("cluster.a.", "upstream_rq_active"), 0);
}

#[tokio::test]
async fn without_another_retry_a_slow_attempt_has_all_the_time_there_is() {
    let clock = StoppedClock::new();
    let (mut seen, mut answers, _) = hedged(&clock, vec![Reply::Late(1200, ok("late"))], 0).await;
    clock.to(ms(1190)).await;
    assert_seen(&all(&mut seen), &[Seen::Attempt(0)]);
    assert!(answers.try_recv().is_err());
    clock.to(ms(1220)).await;
    assert!(answers.try_recv().unwrap().1.ends_with("late"));
}

#[tokio::test]
async fn the_whole_timeout_ends_all_attempts_of_a_hedged_request() {
    let clock = StoppedClock::new();
    let (address, mut seen) = upstream(&clock, Vec::new()).await;
    let policy = RetryPolicy { per_try_timeout: Some(ms(300)), ..policy(2) };
    let setup = setup(address, policy, Some(ms(1000)), true);
    let registry = setup.registry.clone();
    let proxy = setup.serve().await.0;
    let mut answers = ask(&clock, proxy).await;
    clock.to(ms(990)).await;
    assert_seen(&all(&mut seen), &[Seen::Attempt(0), Seen::Attempt(300), Seen::Attempt(600)]);
    clock.to(ms(1010)).await;
    assert_eq!(answered(&mut answers).1, 504);
    assert_seen(&all(&mut seen), &[Seen::Closed(1000), Seen::Closed(1000), Seen::Closed(1000)]);
    assert_eq!(registry.sum("cluster.a.", "upstream_rq_timeout"), 3);
    assert_eq!(registry.sum("cluster.a.", "upstream_rq_active"), 0);
}
