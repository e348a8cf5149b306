//! Requests on a shared HTTP/2 upstream connection.

use super::dial::Seat;
use super::{ActiveConnection, HeadEvent, UpstreamError};
use crate::deadline::Timed;
use crate::io::Io;
use crate::wire::body::{BodyEvent, Piece};
use crate::wire::h2_guard::{Guarded, PeerTimeouts};
use crate::wire::h2_headers::{self, HeadError};
use crate::wire::h2_keepalive::{self, Keepalive, Pulse, Silent};
use crate::wire::h2_recv::H2Recv;
use crate::wire::h2_send::{FRAME_HEAD, H2Send};
use bytes::Bytes;
use h2::Reason;
use h2::client::{ResponseFuture, SendRequest};
use parking_lot::Mutex;
use sixfold_core::cluster::{ClusterConfig, ClusterStats, Host, Permit};
use sixfold_core::codec_stats::Http2Counts;
use sixfold_core::connection::UpstreamConnection;
use sixfold_core::headers::{HeaderRules, Headers, Known};
use sixfold_core::message::{Method, RequestHead, ResponseHead, Scheme};
use sixfold_core::traffic::Traffic;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// How long a connection that made room for another one may take to say so.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// A connection that many requests share. A task of its own reads and writes it until the last is done.
pub(super) struct H2Connection {
    send: SendRequest<Bytes>,
    state: Arc<H2State>,
    task: AbortHandle,
    local: Option<SocketAddr>,
    known: Arc<UpstreamConnection>,
    watermark: usize,
    rules: HeaderRules,
    /// What is known of the upstream, and after how long without a sign of life a request is to follow a PING.
    doubt: Option<(Arc<Pulse>, Duration)>,
}

/// What a connection, its task and its streams share.
pub(super) struct H2State {
    closed: AtomicBool,
    streams: AtomicU32,
    pub(super) opened: Instant,
    pub(super) requests: AtomicU32,
    pub(super) stats: Arc<ClusterStats>,
    counts: Http2Counts,
    host: Arc<Host>,
    /// [`Host::falls`] when it was opened.
    falls: u32,
    /// When the last stream ended, in microseconds since it was opened.
    idle_since: AtomicU64,
    seat: Mutex<Seat>,
    /// Told when a stream or the connection ends: somebody may wait for its room.
    room: Arc<Notify>,
}

impl H2Connection {
    /// Speaks the preface, waits for the upstream's and starts the connection's task. An upstream that allows no
    /// stream is waited for: the caller bounds that.
    pub(super) async fn open(
        io: Io,
        config: &ClusterConfig,
        mut active: ActiveConnection,
        known: Arc<UpstreamConnection>,
        room: Arc<Notify>,
    ) -> Result<H2Connection, UpstreamError> {
        let (local, options) = (io.local_addr(), &config.http2);
        let counts = active.stats.http2();
        let pulse = Keepalive::pulse(options.keepalive.as_ref());
        let guarded =
            Guarded::client(io, options, PeerTimeouts::default()).felt(pulse.clone()).counted(counts.clone());
        let (send, mut connection) = h2::client::Builder::new()
            .initial_window_size(options.stream_window)
            .initial_connection_window_size(options.upstream_window())
            .data_frame_budget(FRAME_BUDGET)
            .max_header_list_size(options.max_header_list)
            // None until the upstream has said how many.
            .initial_max_send_streams(0)
            .enable_push(false)
            .handshake::<_, Bytes>(guarded)
            .await
            .map_err(|_| UpstreamError::Closed)?;
        let mut keepalive = options.keepalive.zip(pulse.clone()).and_then(|(options, pulse)| {
            Some(Box::new(Keepalive::new(options, connection.ping_pong()?, pulse, counts.clone())))
        });
        let doubt = pulse.zip(options.keepalive.and_then(|keepalive| keepalive.idle));
        let state = Arc::new(H2State {
            closed: AtomicBool::new(false),
            streams: AtomicU32::new(0),
            opened: Instant::now(),
            requests: AtomicU32::new(0),
            stats: active.stats.clone(),
            counts,
            host: active.host.clone(),
            falls: active.host.falls(),
            idle_since: AtomicU64::new(0),
            seat: Mutex::new(active.leave_seat()),
            room,
        });
        let mut connection = Box::pin(connection);
        poll_fn(|cx| match connection.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(Err(UpstreamError::Closed)),
            Poll::Pending if send.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        })
        .await?;
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let ended = poll_fn(|cx| h2_keepalive::poll_with(&mut keepalive, connection.as_mut(), cx)).await;
            // Its streams hear of it.
            drop(connection);
            match ended {
                Err(Silent) => {
                    tracing::debug!(upstream = %active.host.label, "HTTP/2 connection whose PING was not answered");
                }
                Ok(ended) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, upstream = %active.host.label, "HTTP/2 connection ended");
                    }
                    // Nobody else has it: it was we who ended it.
                    if Arc::strong_count(&shared) > 1 {
                        active.ends_remotely();
                    }
                }
            }
            if shared.streams.load(Relaxed) > 0 {
                active.ends_busy();
            }
            shared.closed.store(true, Relaxed);
            active.carried(shared.requests.load(Relaxed));
            // Whoever waits for room finds the circuit breaker's count gone down already.
            drop(active);
            shared.leave();
            shared.room.notify_waiters();
        });
        let task = task.abort_handle();
        let (watermark, rules) = (config.buffer_limit, config.header_rules);
        Ok(H2Connection { send, state, task, local, known, watermark, rules, doubt })
    }

    /// Whether the connection takes no more requests: it has ended, its end was announced (GOAWAY), its stream
    /// ids are used up, or the endpoint has been found ill since.
    pub(super) fn is_ending(&mut self) -> bool {
        self.state.closed.load(Relaxed)
            || self.state.host.falls() != self.state.falls
            || matches!(self.send.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
    }

    /// Streams that the upstream allows at once, now.
    pub(super) fn allowed(&self) -> u32 {
        u32::try_from(self.send.current_max_send_streams()).unwrap_or(u32::MAX)
    }

    /// Streams under way.
    pub(super) fn streams(&self) -> u32 {
        self.state.streams.load(Relaxed)
    }

    /// Since when there has been none; `None` while there is one.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let since = Duration::from_micros(self.state.idle_since.load(Relaxed));
        (self.streams() == 0).then(|| self.state.opened + since)
    }

    /// Closes a connection without streams. What it took is free at once, its end comes soon.
    pub(super) fn close(self) {
        self.state.leave();
        let task = self.task.clone();
        drop(self);
        // An upstream that takes nothing must not keep it.
        tokio::spawn(async move {
            tokio::time::sleep(CLOSE_TIME).await;
            task.abort();
        });
    }

    pub(super) fn state(&self) -> &H2State {
        &self.state
    }

    /// A place for one more request.
    pub(super) fn stream(&self, request: Permit) -> H2Upstream {
        if let Some((pulse, idle)) = &self.doubt {
            pulse.doubt(*idle);
        }
        self.state.streams.fetch_add(1, Relaxed);
        self.state.counts.streams_active().inc();
        self.state.requests.fetch_add(1, Relaxed);
        H2Upstream {
            connection: self.send.clone(),
            state: self.state.clone(),
            local: self.local,
            known: self.known.clone(),
            watermark: self.watermark,
            rules: self.rules,
            head: None,
            response: None,
            send: None,
            recv: None,
            end: false,
            asks: Asks::Response,
            done: false,
            broken: false,
            traffic: Traffic::default(),
            _request: request,
        }
    }
}

impl H2State {
    /// Gives up its place among the connections.
    fn leave(&self) {
        let seat = std::mem::take(&mut *self.seat.lock());
        drop(seat);
    }

    /// A stream has ended.
    fn ended(&self) {
        // Written first: who sees no stream sees since when.
        if self.streams.load(Relaxed) == 1 {
            let since = u64::try_from(self.opened.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.idle_since.store(since, Relaxed);
        }
        self.streams.fetch_sub(1, Relaxed);
        self.counts.streams_active().dec();
        self.room.notify_one();
    }
}

/// What the library may hold of small DATA frames, over all streams, before it ends the connection, at 256 less its
/// length for each: 256 Ki frames of one byte. A response whose reader is slow is read on into [`H2Recv`], where a
/// byte is a byte, so that only what comes between two looks at a stream waits there.
const FRAME_BUDGET: usize = 64 << 20;

/// What a request asks its upstream for.
enum Asks {
    /// A response.
    Response,
    /// A tunnel (CONNECT).
    Tunnel,
    /// Another protocol, by extended CONNECT (RFC 8441); over HTTP/1 an upgrade.
    Upgrade(Box<[u8]>),
}

impl Asks {
    fn of(head: &RequestHead) -> Asks {
        match head.headers.get(Known::UPGRADE) {
            Some(protocol) => Asks::Upgrade(protocol.into()),
            None if head.method == Method::CONNECT => Asks::Tunnel,
            None => Asks::Response,
        }
    }

    /// Whether the response opens the tunnel. That of an upgrade becomes what HTTP/1 has in its place (Envoy's
    /// `Utility::transformUpgradeResponseFromH2toH1`).
    fn granted(&self, head: &mut ResponseHead) -> bool {
        match self {
            Asks::Response => false,
            Asks::Tunnel => (200..300).contains(&head.status),
            Asks::Upgrade(protocol) => {
                let granted = head.status == 200;
                if granted {
                    head.status = 101;
                    head.headers.set(Known::UPGRADE, protocol);
                    head.headers.set(Known::CONNECTION, b"upgrade");
                }
                granted
            }
        }
    }
}

/// One request.
pub(crate) struct H2Upstream {
    connection: SendRequest<Bytes>,
    state: Arc<H2State>,
    local: Option<SocketAddr>,
    known: Arc<UpstreamConnection>,
    watermark: usize,
    rules: HeaderRules,
    /// The head, until the connection has room for another stream.
    head: Option<http::Request<()>>,
    response: Option<ResponseFuture>,
    send: Option<H2Send>,
    recv: Option<H2Recv>,
    /// The request ends with its head.
    end: bool,
    /// What it asks for: a tunnel, or an upgrade to this protocol.
    asks: Asks,
    done: bool,
    /// Writing failed; the response may still be there to read.
    broken: bool,
    /// What was counted of it, the body that was sent aside.
    traffic: Traffic,
    _request: Permit,
}

impl H2Upstream {
    pub(super) fn write_head(
        &mut self,
        head: &RequestHead,
        scheme: Scheme,
        end: bool,
    ) -> Result<(), UpstreamError> {
        let request = h2_headers::write_request(head, scheme).map_err(|error| match error {
            HeadError::TooMany => UpstreamError::TooManyHeaders,
            HeadError::Target | HeadError::Status => UpstreamError::Local,
        })?;
        self.asks = Asks::of(head);
        // An upstream that has not said so knows no such CONNECT (RFC 8441 section 3).
        if matches!(self.asks, Asks::Upgrade(_)) && !self.connection.is_extended_connect_protocol_enabled() {
            return Err(UpstreamError::Local);
        }
        self.head = Some(request);
        // The bytes of a tunnel follow.
        self.end = end && matches!(self.asks, Asks::Response);
        self.traffic = Traffic::default();
        self.traffic.head_sent = h2_headers::request_len(head);
        self.traffic.sent = self.traffic.head_sent + FRAME_HEAD;
        Ok(())
    }

    /// Opens the stream once the upstream allows one more.
    fn poll_open(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), UpstreamError>> {
        if self.head.is_some() {
            // Whatever the connection has, it has not seen this request.
            ready!(self.connection.poll_ready(cx)).map_err(|_| UpstreamError::Unsent)?;
            if let Some(request) = self.head.take() {
                let (response, send) =
                    self.connection.send_request(request, self.end).map_err(|_| UpstreamError::Unsent)?;
                self.response = Some(response);
                self.send = Some(H2Send::new(send, self.end));
            }
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn write_data(&mut self, piece: Piece<'_>) {
        if let Some(send) = &mut self.send {
            send.push(piece);
        }
    }

    pub(super) fn finish(&mut self, trailers: &Headers) -> Result<(), UpstreamError> {
        let trailers = (!trailers.is_empty()).then(|| h2_headers::to_map(trailers)).transpose();
        let trailers = trailers.map_err(|_| UpstreamError::TooManyHeaders)?;
        if let Some(send) = &mut self.send {
            send.finish(trailers);
        }
        Ok(())
    }

    pub(super) fn poll_writable(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), UpstreamError>> {
        ready!(self.poll_open(cx))?;
        // Nothing can be written any more: what is left of the request stays where it is, and the response is read.
        if self.broken {
            return Poll::Pending;
        }
        let watermark = self.watermark;
        let Some(send) = self.send.as_mut().filter(|send| send.len() >= watermark) else {
            return Poll::Ready(Ok(()));
        };
        match send.poll_flush(cx) {
            Poll::Pending if send.len() < watermark => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
            Poll::Ready(flushed) => {
                self.broken |= flushed.is_err();
                if self.broken { Poll::Pending } else { Poll::Ready(Ok(())) }
            }
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), UpstreamError>> {
        ready!(self.poll_open(cx))?;
        if let Some(send) = self.send.as_mut().filter(|_| !self.broken) {
            // A stream that the upstream has answered and closed refuses data; the answer counts, and the reader
            // hears of any other reason.
            self.broken |= ready!(send.poll_flush(cx)).is_err();
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn backlog(&self) -> Option<u64> {
        match &self.send {
            Some(send) => send.backlog(),
            // The connection has no room for the stream yet.
            None => self.head.as_ref().map(|_| 0),
        }
    }

    pub(super) fn poll_head(
        &mut self,
        cx: &mut Timed<'_>,
        head: &mut ResponseHead,
    ) -> Poll<Result<HeadEvent, UpstreamError>> {
        ready!(self.poll_open(cx))?;
        let Some(response) = &mut self.response else {
            return Poll::Ready(Err(UpstreamError::Closed));
        };
        let response = ready!(Pin::new(response).poll(cx)).map_err(|e| reason(&e))?;
        self.response = None;
        let (parts, recv) = response.into_parts();
        h2_headers::read_response(&parts, &self.rules, head).map_err(|_| UpstreamError::Protocol)?;
        self.traffic.head_received = head.headers.wire_len() as u64;
        self.traffic.received = self.traffic.head_received + FRAME_HEAD;
        let tunnel = self.asks.granted(head);
        let end = recv.is_end_stream() && !tunnel;
        self.done = end;
        self.recv = Some(H2Recv::new(recv));
        Poll::Ready(Ok(HeadEvent::Final { end, tunnel }))
    }

    pub(super) fn poll_body(
        &mut self,
        cx: &mut Timed<'_>,
        trailers: &mut Headers,
    ) -> Poll<Result<BodyEvent<'_>, UpstreamError>> {
        let Some(recv) = &mut self.recv else {
            return Poll::Ready(Ok(BodyEvent::End));
        };
        match ready!(recv.poll_data(cx)) {
            Some(Ok(data)) => {
                self.traffic.received += data.len() as u64 + FRAME_HEAD;
                Poll::Ready(Ok(BodyEvent::Data(Piece::Shared(data))))
            }
            Some(Err(e)) => Poll::Ready(Err(reason(&e))),
            None => {
                let map = ready!(recv.poll_trailers(cx)).map_err(|e| reason(&e))?;
                if let Some(map) = map {
                    self.state.counts.trailers().inc();
                    h2_headers::read_trailers(&map, &self.rules, trailers)
                        .map_err(|_| UpstreamError::Protocol)?;
                }
                self.done = true;
                Poll::Ready(Ok(BodyEvent::End))
            }
        }
    }

    /// Takes over what has come of the response while nobody can take more of it.
    pub(super) fn poll_ahead(&mut self, cx: &mut Context<'_>) {
        if let Some(recv) = &mut self.recv {
            recv.poll_ahead(cx);
        }
    }

    pub(super) fn connection(&self) -> &Arc<UpstreamConnection> {
        &self.known
    }

    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    /// Bytes on the wire up to the end of the response's head, once it has come.
    pub(super) fn head_end(&self) -> u64 {
        self.traffic.head_received + FRAME_HEAD
    }

    /// Bytes on the wire so far, of the request and its response.
    pub(super) fn traffic(&self) -> Traffic {
        let body = self.send.as_ref().map_or(0, H2Send::wire_len);
        Traffic { sent: self.traffic.sent + body, ..self.traffic }
    }
}

impl Drop for H2Upstream {
    fn drop(&mut self) {
        self.state.ended();
        if let Some(send) = &mut self.send
            && (!self.done || !send.is_ended())
        {
            send.reset(Reason::CANCEL);
        }
    }
}

/// What an error of the HTTP/2 library means for the request.
fn reason(error: &h2::Error) -> UpstreamError {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => UpstreamError::Refused,
        // The library ends so the streams above the last one that the upstream has taken, and no others (RFC 9113
        // section 6.8). For Envoy they are refused: the retry policy says whether they go out again.
        Some(_) if error.is_go_away() && error.is_remote() => UpstreamError::Refused,
        Some(_) if error.is_remote() && error.is_reset() => UpstreamError::Reset,
        Some(_) if error.is_library() => UpstreamError::Protocol,
        _ => UpstreamError::Closed,
    }
}
