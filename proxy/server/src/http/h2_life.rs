//! How long a client's HTTP/2 connection lives: idle time, age, draining, and the cut at the end.

use super::Env;
use super::downstream::DownstreamError;
use crate::deadline::{Deadline, TimedOut, after, within};
use crate::wire::h2_guard::HeadWatch;
use crate::wire::h2_keepalive::{Keepalive, Pulse};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use parking_lot::Mutex;
use sixfold_core::hcm::{ConnectionTimeouts, HttpStats};
use sixfold_core::overload::{Overload, Timer};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a client has come with.
#[allow(clippy::large_enum_variant)] // it is handed on at once
pub(super) enum Next {
    /// A stream.
    Stream(http::Request<RecvStream>, SendResponse<Bytes>),
    /// The head of one that did not come to its end in time. There can be no other any more.
    Late(u32),
}

/// How far a connection is on its way to its end. Each stage is left at a deadline, whatever the client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Stage {
    /// Streams come and go; ends when the connection is idle or old, or drains.
    Open,
    /// The first GOAWAY was sent, and streams that the client opened before it heard of it are still served, for
    /// `drain_timeout`. The library sends the last GOAWAY when the client answers its PING, which it need not do.
    Leaving,
    /// Only those streams go on that run; each has deadlines of its own.
    Finishing,
    /// Nothing runs; what waits is written, for `delayed_close_timeout`.
    Closing,
}

/// Why a connection leaves at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// Its listener drains.
    Drain,
    /// The answer to one of its streams is the last.
    Stream,
}

/// What the streams of a connection ask of it.
#[derive(Default)]
pub(super) struct Wishes {
    leave: Notify,
    resets: Mutex<Vec<(SendStream<Bytes>, Reason)>>,
    connection: AtomicWaker,
    /// The connection has ended since its client answered no PING.
    silent: AtomicBool,
    /// What is known of its client.
    heads: Arc<HeadWatch>,
}

impl Wishes {
    pub(super) fn new(heads: Arc<HeadWatch>) -> Wishes {
        Wishes { heads, ..Wishes::default() }
    }

    /// Why a stream can't go on whose connection has ended.
    pub(super) fn closed(&self) -> DownstreamError {
        if self.silent.load(Relaxed) {
            DownstreamError::Silent
        } else if self.heads.is_stalled() {
            DownstreamError::Stalled
        } else {
            DownstreamError::Closed
        }
    }

    /// Ends the connection, with the stream that asks and those before it.
    pub(super) fn leave(&self) {
        self.leave.notify_one();
    }

    /// Resets a stream behind the frames that were given to the library for it: a reset throws away those that the
    /// connection has not taken, and a response that is cut off would not be seen at all.
    pub(super) fn reset(&self, stream: SendStream<Bytes>, reason: Reason) {
        self.resets.lock().push((stream, reason));
        self.connection.wake();
    }

    /// For the connection when it has taken what it could: whether it has something to send now.
    fn reset_streams(&self, cx: &Context<'_>) -> bool {
        self.connection.register(cx.waker());
        let resets = std::mem::take(&mut *self.resets.lock());
        resets.into_iter().map(|(mut stream, reason)| stream.send_reset(reason)).count() > 0
    }
}

type Drain = Pin<Box<dyn Future<Output = Call> + Send>>;

/// A connection and its end.
pub(super) struct Life<T> {
    server: Connection<T, Bytes>,
    drain: Drain,
    wishes: Arc<Wishes>,
    timeouts: ConnectionTimeouts,
    max_requests: Option<u32>,
    stats: Arc<HttpStats>,
    stage: Stage,
    /// When the stage ends, where that is known from its beginning.
    until: Option<Instant>,
    /// When the connection is too old.
    end: Option<Instant>,
    /// Since when no stream is open.
    idle_since: Option<Instant>,
    requests: u32,
    /// What makes its times shorter.
    overload: Option<Arc<Overload>>,
    /// The head that its client is sending.
    heads: Arc<HeadWatch>,
    /// PINGs, where it sends some.
    keepalive: Option<Box<Keepalive>>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Life<T> {
    /// Begins when the handshake is over.
    pub(super) fn new(
        mut server: Connection<T, Bytes>,
        env: &Env,
        wishes: Arc<Wishes>,
        heads: Arc<HeadWatch>,
        pulse: Option<Arc<Pulse>>,
    ) -> Life<T> {
        let keepalive = env.hcm.http2.keepalive.zip(pulse).and_then(|(options, pulse)| {
            let counts = env.http2_counts().clone();
            Some(Box::new(Keepalive::new(options, server.ping_pong()?, pulse, counts)))
        });
        let (drain, asked) = (env.drain.clone(), wishes.clone());
        let drain = Box::pin(async move {
            tokio::select! {
                () = drain.started() => Call::Drain,
                () = asked.leave.notified() => Call::Stream,
            }
        });
        let hcm = &env.hcm;
        let life = Life::with(
            server,
            drain,
            wishes,
            hcm.timeouts.clone(),
            hcm.max_requests_per_connection,
            hcm.stats.clone(),
        );
        Life { overload: env.overload.clone(), heads, keepalive, ..life }
    }

    fn with(
        server: Connection<T, Bytes>,
        drain: Drain,
        wishes: Arc<Wishes>,
        timeouts: ConnectionTimeouts,
        max_requests: Option<u32>,
        stats: Arc<HttpStats>,
    ) -> Life<T> {
        let end = timeouts.max_connection.map(|limit| after(Instant::now(), limit));
        let (stage, until, idle_since) = (Stage::Open, None, None);
        Life {
            server,
            drain,
            wishes,
            timeouts,
            max_requests,
            stats,
            stage,
            until,
            end,
            idle_since,
            requests: 0,
            overload: None,
            heads: Arc::default(),
            keepalive: None,
        }
    }

    /// Whether nothing is served any more and the connection was told to end.
    pub(super) fn is_closing(&self) -> bool {
        self.stage == Stage::Closing
    }

    /// What comes next; `None` is the end of the connection.
    pub(super) async fn next(&mut self) -> Option<Result<Next, h2::Error>> {
        let mut limit = Deadline::unset();
        loop {
            match within(&mut limit, |limit, cx| self.poll_next(limit, cx)).await {
                Ok(Some(Ok(Next::Stream(_, mut respond)))) if self.stage >= Stage::Finishing => {
                    // Opened after the drain time, whether or not the client has heard of it.
                    respond.send_reset(Reason::REFUSED_STREAM);
                }
                Ok(next) => {
                    if matches!(next, Some(Ok(Next::Stream(..)))) {
                        self.count();
                    }
                    return next;
                }
                Err(TimedOut) => match self.stage {
                    Stage::Open if self.is_over() => self.expire(),
                    // The load was to be looked at.
                    Stage::Open => {}
                    Stage::Leaving => self.enter(Stage::Finishing, None),
                    Stage::Finishing => return None,
                    Stage::Closing => {
                        self.stats.downstream_cx_delayed_close_timeout().inc();
                        return None;
                    }
                },
            }
        }
    }

    fn poll_next(
        &mut self,
        limit: &mut Deadline,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Next, h2::Error>>> {
        if self.stage == Stage::Open
            && let Poll::Ready(call) = self.drain.as_mut().poll(cx)
        {
            if call == Call::Drain {
                self.stats.downstream_cx_drain_close().inc();
            }
            self.leave();
        }
        if let Some(keepalive) = &mut self.keepalive {
            keepalive.poll_send(cx);
        }
        loop {
            if let Poll::Ready(accepted) = self.poll_accept(cx) {
                return Poll::Ready(accepted);
            }
            if let Some(late) = self.heads.late().filter(|_| self.stage < Stage::Finishing) {
                // Streams that run are answered; neither another one nor anything else of theirs can come.
                self.leave();
                self.enter(Stage::Finishing, None);
                return Poll::Ready(Some(Ok(Next::Late(late))));
            } else if !self.wishes.reset_streams(cx) {
                break;
            }
        }
        if self.keepalive.as_mut().is_some_and(|keepalive| keepalive.poll_silent(cx).is_ready()) {
            self.wishes.silent.store(true, Relaxed);
            self.enter(Stage::Closing, None);
            return Poll::Ready(None);
        }
        if self.stage == Stage::Finishing && !self.server.has_streams() {
            self.enter(Stage::Closing, Some(after(Instant::now(), self.timeouts.delayed_close)));
            self.server.abrupt_shutdown(Reason::NO_ERROR);
            limit.set(self.until);
            return self.poll_accept(cx);
        }
        limit.set(self.stage_end());
        Poll::Pending
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Next, h2::Error>>> {
        let accepted = self.server.poll_accept(cx);
        accepted.map(|next| next.map(|next| next.map(|(request, respond)| Next::Stream(request, respond))))
    }

    /// When the stage ends. With streams, or the head of one, a connection is not idle.
    fn stage_end(&mut self) -> Option<Instant> {
        if self.stage != Stage::Open {
            return self.until;
        }
        if self.server.has_streams() || self.heads.is_open() {
            self.idle_since = None;
            return self.end;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        let idle = self.timeouts.idle.filter(|d| !d.is_zero());
        let again = idle.and_then(|idle| self.overload.as_ref()?.shortened(Timer::ConnectionIdle, idle));
        let again = again.map(|time| after(since, time.least).max(after(Instant::now(), time.again)));
        [self.idle_end(), again, self.end].into_iter().flatten().min()
    }

    /// When it will have been idle for too long.
    fn idle_end(&self) -> Option<Instant> {
        let (since, idle) = (self.idle_since?, self.timeouts.idle.filter(|d| !d.is_zero())?);
        let shortened = self.overload.as_ref().and_then(|load| load.shortened(Timer::ConnectionIdle, idle));
        Some(after(since, shortened.map_or(idle, |time| time.now)))
    }

    fn is_over(&self) -> bool {
        let now = Instant::now();
        [self.idle_end(), self.end].into_iter().flatten().any(|end| end <= now)
    }

    fn count(&mut self) {
        self.idle_since = None;
        self.requests += 1;
        if self.stage == Stage::Open && self.max_requests.is_some_and(|max| self.requests >= max) {
            self.stats.downstream_cx_max_requests_reached().inc();
            self.leave();
        }
    }

    /// It has been idle, or has lived, for too long.
    fn expire(&mut self) {
        if self.end.is_some_and(|end| end <= Instant::now()) {
            self.stats.downstream_cx_max_duration_reached().inc();
        } else {
            self.stats.downstream_cx_idle_timeout().inc();
        }
        self.leave();
    }

    /// Tells the client to go.
    fn leave(&mut self) {
        self.enter(Stage::Leaving, Some(after(Instant::now(), self.timeouts.drain)));
        self.server.graceful_shutdown();
    }

    fn enter(&mut self, stage: Stage, until: Option<Instant>) {
        self.stage = stage;
        self.until = until;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::wire::h2_guard::{Guarded, PeerTimeouts};
    use sixfold_core::cluster::Http2Options;
    use sixfold_core::metrics::Registry;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::oneshot;

    const IDLE: Duration = Duration::from_secs(60);
    const HEAD: Duration = Duration::from_secs(90);
    const DRAIN: Duration = Duration::from_secs(5);

    struct Played {
        client: DuplexStream,
        drain: oneshot::Sender<()>,
        stats: Arc<HttpStats>,
        /// When the connection ended.
        ended: tokio::task::JoinHandle<Instant>,
    }

    /// A connection that answers each stream after `work`, and the bytes of its client.
    async fn play(work: Duration, max_requests: Option<u32>) -> Played {
        let (near, mut client) = tokio::io::duplex(1 << 20);
        // Preface and SETTINGS; nothing else is ever answered.
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let (drain, drained) = oneshot::channel();
        let stats = Arc::new(HttpStats::new(&Registry::new(), "http.t."));
        let timeouts = ConnectionTimeouts {
            idle: Some(IDLE),
            drain: DRAIN,
            delayed_close: Duration::from_secs(1),
            ..ConnectionTimeouts::default()
        };
        let counted = stats.clone();
        let ended = tokio::spawn(async move {
            let peer = PeerTimeouts { head: Some(HEAD), write: None };
            let heads = Arc::<HeadWatch>::default();
            let near =
                Guarded::server(near, Vec::new(), &Http2Options::default(), peer).watched(heads.clone());
            let server = h2::server::handshake(near).await.unwrap();
            // A sender that is dropped drains nothing.
            let drained = Box::pin(async move {
                if drained.await.is_err() {
                    std::future::pending::<()>().await;
                }
                Call::Drain
            });
            let mut life = Life::with(server, drained, Arc::default(), timeouts, max_requests, counted);
            life.heads = heads;
            while let Some(Ok(next)) = life.next().await {
                let Next::Stream(_, mut respond) = next else { continue };
                tokio::spawn(async move {
                    tokio::time::sleep(work).await;
                    let _ = respond.send_response(http::Response::new(()), true);
                });
            }
            Instant::now()
        });
        Played { client, drain, stats, ended }
    }

    fn request(stream: u8) -> Vec<u8> {
        // GET https / of no authority, in the static table.
        [&[0, 0, 3, 1, 5, 0, 0, 0, stream][..], &[0x82, 0x87, 0x84]].concat()
    }

    /// An idle connection of a client that does not answer the PING behind the first GOAWAY stayed for ever.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_answers_nothing_is_cut_when_its_drain_time_is_over() {
        let start = Instant::now();
        let played = play(Duration::ZERO, None).await;
        assert_eq!(played.ended.await.unwrap() - start, IDLE + DRAIN);
        assert_eq!(played.stats.downstream_cx_idle_timeout().get(), 1);
        drop(played.client);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_begins_when_the_last_stream_ends() {
        let start = Instant::now();
        let mut played = play(Duration::from_secs(7), None).await;
        for n in 0..10 {
            // Streams that begin and end between two looks of a timer of the idle time's length.
            played.client.write_all(&request(2 * n + 1)).await.unwrap();
            tokio::time::sleep(Duration::from_secs(25)).await;
            assert!(!played.ended.is_finished(), "after request {n}");
        }
        let busy = Duration::from_secs(25 * 9 + 7);
        assert_eq!(played.ended.await.unwrap() - start, busy + IDLE + DRAIN);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_that_run_are_ended_and_later_ones_refused() {
        let start = Instant::now();
        let mut played = play(Duration::from_secs(20), None).await;
        played.client.write_all(&request(1)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        played.drain.send(()).unwrap();
        // Within the drain time a stream may have been on its way; beyond, it was not.
        tokio::time::sleep(DRAIN - Duration::from_secs(1)).await;
        played.client.write_all(&request(3)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        played.client.write_all(&request(5)).await.unwrap();
        assert_eq!(played.ended.await.unwrap() - start, Duration::from_secs(25));
        let mut said = Vec::new();
        played.client.read_to_end(&mut said).await.unwrap();
        let refused = [0, 0, 4, 3, 0, 0, 0, 0, 5, 0, 0, 0, 7];
        assert!(said.windows(refused.len()).any(|w| w == refused), "{said:?}");
        for stream in [1, 3] {
            let answered =
                said.windows(9).filter(|w| w[3] == 1 && w[4] & 1 == 1 && w[5..] == [0, 0, 0, stream]);
            assert_eq!(answered.count(), 1, "stream {stream}: {said:?}");
        }
        assert_eq!(played.stats.downstream_cx_drain_close().get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_with_its_last_request() {
        let start = Instant::now();
        let mut played = play(Duration::from_secs(2), Some(2)).await;
        played.client.write_all(&[request(1), request(3)].concat()).await.unwrap();
        assert_eq!(played.ended.await.unwrap() - start, DRAIN);
        assert_eq!(played.stats.downstream_cx_max_requests_reached().get(), 1);
    }

    /// It ended the connection with all streams on it, or was idle.
    #[tokio::test(start_paused = true)]
    async fn half_a_head_is_not_idle_and_when_it_is_late_others_go_on() {
        let start = Instant::now();
        let mut played = play(Duration::from_secs(100), None).await;
        let mut half = request(3);
        // Without END_HEADERS.
        half[4] = 1;
        played.client.write_all(&[request(1), half].concat()).await.unwrap();
        assert_eq!(played.ended.await.unwrap() - start, Duration::from_secs(100));
        let mut said = Vec::new();
        played.client.read_to_end(&mut said).await.unwrap();
        let answered = said.windows(9).filter(|w| w[3] == 1 && w[4] & 1 == 1 && w[5..] == [0, 0, 0, 1]);
        assert_eq!(answered.count(), 1, "{said:?}");
        // The last GOAWAY says that the other stream was not looked at.
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        assert!(said.windows(goaway.len()).any(|w| w == goaway), "{said:?}");
        let start = Instant::now();
        let mut played = play(Duration::ZERO, None).await;
        let mut half = request(1);
        half[4] = 1;
        played.client.write_all(&half).await.unwrap();
        assert_eq!(played.ended.await.unwrap() - start, HEAD);
        assert_eq!(played.stats.downstream_cx_idle_timeout().get(), 0);
        drop(played.client);
    }
}
