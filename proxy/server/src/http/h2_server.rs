//! A client's HTTP/2 connection: each stream is a task, and the same request path.

use super::clock::{Clock, time_of_day};
use super::downstream::{Downstream, DownstreamError};
use super::h2_life::{Life, Next, Wishes};
use super::h2_streams::{self, Opened};
use super::respond::{self, Refusal};
use super::{Env, exchange, h2_late, timeouts};
use crate::buffer::{ReadBuffer, WriteBuffer};
use crate::closing;
use crate::deadline::{Deadline, Timed, TimedOut, bounded, within};
use crate::io::Io;
use crate::wire::body::{BodyEvent, Piece};
use crate::wire::h2_guard::{FLOOD, GIVEN_UP, Guarded, HeadWatch, PeerTimeouts, STALLED};
use crate::wire::h2_headers::Refused;
use crate::wire::h2_keepalive::Keepalive;
use crate::wire::h2_send::{FRAME_HEAD, H2Send};
use crate::wire::{PREFACE, h2_headers};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use sixfold_core::connection::Connection;
use sixfold_core::headers::{HeaderFault, HeaderRules, Headers, Known};
use sixfold_core::message::{Method, RequestHead, ResponseHead, Scheme};
use sixfold_core::stream::Stream;
use sixfold_core::traffic::Traffic;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Poll, ready};
use std::time::Duration;

/// How long the preface may take when the connection manager has no idle timeout.
const PREFACE_TIME: Duration = Duration::from_secs(60);
/// Bytes that the bookkeeping of small DATA frames may come to for each byte of the connection's window, so that
/// the window may be full of frames of 15 bytes. The library counts 256 bytes a frame less those it carries.
const SMALL_FRAMES: usize = 16;
/// The most of it, however large the window is.
const MAX_SMALL_FRAMES: usize = 32 << 20;
/// How long a stream that we have reset is remembered. Until then whatever its client still sends of it is passed over
/// (RFC 9113 section 5.1); trailers of one that is forgotten end the connection.
const RESETS_KEPT: Duration = Duration::from_secs(30);
/// Of how many a connection remembers that: of as many as it may have at once, within these bounds.
const MIN_RESETS_KEPT: u32 = 50;
const MAX_RESETS_KEPT: u32 = 1024;

/// Serves the connection from its first byte.
pub(super) async fn serve(mut io: Io, connection: Arc<Connection>, env: Arc<Env>) {
    let mut read = ReadBuffer::default();
    let patience = env.hcm.timeouts.idle.filter(|d| !d.is_zero()).unwrap_or(PREFACE_TIME);
    let mut deadline = Deadline::after(patience);
    let preface = within(&mut deadline, |_, cx| {
        loop {
            if let Some(whole) = has_preface(read.filled()) {
                return Poll::Ready(Some(whole));
            }
            match ready!(read.poll_fill(&mut io, cx)) {
                Ok(1..) => {}
                _ => return Poll::Ready(None),
            }
        }
    });
    match preface.await {
        Ok(Some(true)) => serve_from(io, read.take(), connection, env).await,
        Ok(Some(false)) => {
            env.hcm.stats.downstream_cx_protocol_error().inc();
            // The library would close with bytes unread, which resets; the client is to see an end.
            let patience = env.hcm.timeouts.delayed_close;
            if !closing::linger(&mut io, &mut WriteBuffer::default(), &mut read, patience).await {
                env.hcm.stats.downstream_cx_delayed_close_timeout().inc();
            }
        }
        Ok(None) => {}
        Err(TimedOut) => env.hcm.stats.downstream_cx_idle_timeout().inc(),
    }
}

/// Whether this is the beginning of a connection with the client's preface (RFC 9113 section 3.4); `None` while it is
/// only the beginning of a preface.
pub(super) fn has_preface(bytes: &[u8]) -> Option<bool> {
    let known = bytes.len().min(PREFACE.len());
    let same = bytes[..known] == PREFACE[..known];
    if same && known < PREFACE.len() { None } else { Some(same) }
}

/// Serves the connection; `read` is what was read from it already, from the preface on.
pub(super) async fn serve_from(io: Io, read: Vec<u8>, connection: Arc<Connection>, env: Arc<Env>) {
    let stats = env.hcm.stats.clone();
    stats.downstream_cx_http2_total().inc();
    let _active = stats.downstream_cx_http2_active().raise();
    // The library does not say who closed the connection: before we do or drain, clients do.
    let mut remotely = !env.drain.is_draining();
    match run(io, read, connection, &env).await {
        Ok(ours) => remotely &= !ours,
        Err(error) => {
            let kind = error.get_io().map(std::io::Error::kind);
            match kind {
                Some(GIVEN_UP) => stats.downstream_rq_too_many_premature_resets().inc(),
                Some(_) => {}
                None => {
                    stats.downstream_cx_protocol_error().inc();
                    env.http2_counts().rx_messaging_error().inc();
                }
            }
            remotely &= !is_ours(&error);
            tracing::debug!(%error, "HTTP/2 connection ended");
        }
    }
    env.ending.remotely.store(remotely, Relaxed);
}

/// Whether we have ended a connection with it: for what the client sent, or since it took nothing.
fn is_ours(error: &h2::Error) -> bool {
    match error.get_io().map(std::io::Error::kind) {
        Some(kind) => [STALLED, FLOOD, GIVEN_UP].contains(&kind),
        None => !error.is_remote(),
    }
}

/// Serves the connection to its end; whether we have ended it.
async fn run(io: Io, read: Vec<u8>, connection: Arc<Connection>, env: &Arc<Env>) -> Result<bool, h2::Error> {
    let timeouts = &env.hcm.timeouts;
    let (which, head) = timeouts::first_of_head(timeouts);
    let peer = PeerTimeouts { head: Some(head), write: timeouts.send };
    let heads = Arc::<HeadWatch>::default();
    let pulse = Keepalive::pulse(env.hcm.http2.keepalive.as_ref());
    let guarded = Guarded::server(io, read, &env.hcm.http2, peer)
        .watched(heads.clone())
        .felt(pulse.clone())
        .counted(env.http2_counts().clone());
    let mut limit = Deadline::after(timeouts.idle.filter(|d| !d.is_zero()).unwrap_or(PREFACE_TIME));
    let handshake = bounded(&mut limit, builder(env).handshake::<_, Bytes>(guarded)).await;
    let Ok(server) = handshake else { return Ok(true) };
    let wishes = Arc::new(Wishes::new(heads.clone()));
    let mut life = Life::new(server?, env, wishes.clone(), heads.clone(), pulse);
    while let Some(next) = life.next().await {
        let (request, respond) = match next? {
            Next::Stream(request, respond) => (request, respond),
            Next::Late(number) => {
                // It is a rare future, and a large one.
                let answer = Box::pin(h2_late::answer(connection.clone(), number, env, which, head));
                heads.answer(answer.await);
                continue;
            }
        };
        let began = heads.take_begin(respond.stream_id().as_u32());
        let (connection, env, wishes) = (connection.clone(), env.clone(), wishes.clone());
        h2_streams::serve(Opened { request, respond, began, connection, env, wishes });
    }
    Ok(life.is_closing())
}

fn builder(env: &Env) -> h2::server::Builder {
    let options = &env.hcm.http2;
    let mut builder = h2::server::Builder::new();
    let small_frames = (options.downstream_window() as usize).saturating_mul(SMALL_FRAMES);
    builder
        .initial_window_size(options.stream_window)
        .initial_connection_window_size(options.downstream_window())
        .data_frame_budget(small_frames.min(MAX_SMALL_FRAMES))
        .max_concurrent_streams(options.max_concurrent_streams)
        .max_header_list_size(options.max_header_list)
        .max_send_buffer_size(env.hcm.buffer_limit)
        .reset_stream_duration(RESETS_KEPT)
        .max_concurrent_reset_streams(
            options.max_concurrent_streams.clamp(MIN_RESETS_KEPT, MAX_RESETS_KEPT) as usize
        )
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(Some(options.max_resets as usize));
    if options.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

/// Serves one stream, in a context and with a clock that earlier ones may have used.
pub(super) async fn serve_stream(opened: Opened, stream: &mut Stream, clock: &mut Clock) {
    let Opened { request, respond, began, connection, env, wishes } = opened;
    env.hcm.stats.downstream_rq_http2_total().inc();
    let counts = env.http2_counts();
    let _active = counts.streams_active().raise();
    stream.connection = connection;
    let now = clock.restart();
    let start = began.unwrap_or(now);
    stream.reset(start.into_std());
    let day = time_of_day(now);
    stream.start_time = day.checked_sub(now.saturating_duration_since(start)).unwrap_or(day);
    let (mut client, read) = H2Client::new(request, respond, wishes, stream, &env);
    match read {
        Ok(()) => exchange::serve(&mut client, stream, clock, &env).await,
        Err(refused) => {
            if matches!(refused, Refused::Fields(HeaderFault::Underscore)) {
                counts.requests_rejected_with_underscores_in_headers().inc();
            }
            // What was parsed before the error is not shown: it may be anything.
            stream.request.clear();
            let refusal = Refusal::of_http2(refused, env.hcm.profile);
            respond::refuse(&mut client, stream, clock, &env, refusal).await;
        }
    }
}

/// The client's side of one stream.
struct H2Client {
    recv: RecvStream,
    respond: SendResponse<Bytes>,
    send: Option<H2Send>,
    ended: bool,
    /// Bytes given out and not yet acknowledged to flow control.
    owed: usize,
    watermark: usize,
    rules: HeaderRules,
    has_host: bool,
    head_alone: bool,
    upgrade: Option<Box<str>>,
    /// What was counted of it, the body that was sent aside.
    traffic: Traffic,
    wishes: Arc<Wishes>,
}

impl H2Client {
    /// Copies the request's head into `stream`; the library's form of it is freed here, not after the request.
    fn new(
        request: http::Request<RecvStream>,
        respond: SendResponse<Bytes>,
        wishes: Arc<Wishes>,
        stream: &mut Stream,
        env: &Env,
    ) -> (H2Client, Result<(), Refused>) {
        let (parts, recv) = request.into_parts();
        let rules = env.hcm.header_rules;
        let own = if stream.connection.tls.is_some() { Scheme::Https } else { Scheme::Http };
        let read = h2_headers::read_request(&parts, &rules, env.hcm.profile, own, &mut stream.request);
        // Clients number their streams 1, 3, 5.
        stream.request.ordinal = respond.stream_id().as_u32().div_ceil(2);
        let head = h2_headers::request_len(&stream.request);
        let protocol = parts.extensions.get::<h2::ext::Protocol>();
        if let (Some(protocol), Ok(())) = (protocol, &read) {
            as_upgrade(&mut stream.request, protocol.as_str());
        }
        let upgrade = (parts.method == http::Method::CONNECT)
            .then(|| protocol.map_or("connect", h2::ext::Protocol::as_str).to_ascii_lowercase().into());
        let client = H2Client {
            ended: recv.is_end_stream(),
            recv,
            respond,
            send: None,
            owed: 0,
            watermark: env.hcm.buffer_limit,
            rules,
            has_host: parts.uri.authority().is_some() || !stream.request.authority.is_empty(),
            head_alone: parts.method == http::Method::HEAD,
            upgrade,
            traffic: Traffic { received: head + FRAME_HEAD, head_received: head, ..Traffic::default() },
            wishes,
        };
        (client, read)
    }
}

/// Who ended the stream.
fn gone(error: &h2::Error, wishes: &Wishes) -> DownstreamError {
    match (error.is_reset(), error.is_remote()) {
        (true, true) => DownstreamError::Reset,
        (true, false) => DownstreamError::Protocol,
        (false, _) => wishes.closed(),
    }
}

/// Extended CONNECT (RFC 8441 section 5) asks for what an upgrade asks for over HTTP/1, and everybody sees it as that
/// (Envoy's `Utility::transformUpgradeRequestFromH2toH1`).
fn as_upgrade(head: &mut RequestHead, protocol: &str) {
    head.method = Method::GET;
    head.headers.set(Known::UPGRADE, protocol.as_bytes());
    head.headers.set(Known::CONNECTION, b"upgrade");
}

impl Downstream for H2Client {
    fn poll_body(
        &mut self,
        cx: &mut Timed<'_>,
        trailers: &mut Headers,
    ) -> Poll<Result<BodyEvent<'_>, DownstreamError>> {
        if self.owed > 0 {
            let _ = self.recv.flow_control().release_capacity(std::mem::take(&mut self.owed));
        }
        if self.ended {
            return Poll::Ready(Ok(BodyEvent::End));
        }
        match ready!(self.recv.poll_data(cx)) {
            Some(Ok(data)) => {
                self.owed = data.len();
                self.traffic.received += data.len() as u64 + FRAME_HEAD;
                Poll::Ready(Ok(BodyEvent::Data(Piece::Shared(data))))
            }
            Some(Err(error)) => Poll::Ready(Err(gone(&error, &self.wishes))),
            None => {
                if let Some(map) =
                    ready!(self.recv.poll_trailers(cx)).map_err(|error| gone(&error, &self.wishes))?
                {
                    h2_headers::read_trailers(&map, &self.rules, trailers)
                        .map_err(|_| DownstreamError::Malformed)?;
                }
                self.ended = true;
                Poll::Ready(Ok(BodyEvent::End))
            }
        }
    }

    fn request_ended(&self) -> bool {
        self.ended
    }

    fn write_continue(&mut self) {
        let mut interim = http::Response::new(());
        *interim.status_mut() = http::StatusCode::CONTINUE;
        let _ = self.respond.send_informational(interim);
    }

    fn write_head(&mut self, head: &ResponseHead, end: bool, close: bool) -> Result<u8, DownstreamError> {
        if close && self.upgrade.is_some() {
            // As Envoy does with an upgrade that is refused: its GOAWAY goes before the answer.
            self.wishes.leave();
        }
        let mut response = h2_headers::write_response(head).map_err(|_| DownstreamError::Malformed)?;
        if head.status == 101 {
            // There is no 101 here (RFC 8441 section 5).
            *response.status_mut() = http::StatusCode::OK;
        }
        let send = self.respond.send_response(response, end).map_err(|_| self.wishes.closed())?;
        self.traffic.head_sent = head.headers.wire_len() as u64;
        self.traffic.sent = self.traffic.head_sent + FRAME_HEAD;
        self.send = Some(H2Send::new(send, end));
        Ok(0)
    }

    fn is_chunked(&self) -> bool {
        false
    }

    fn write_data(&mut self, _cx: &mut Timed<'_>, piece: Piece<'_>) -> Result<(), DownstreamError> {
        if let Some(send) = &mut self.send {
            send.push(piece);
        }
        Ok(())
    }

    fn finish(&mut self, trailers: &Headers) -> Result<(), DownstreamError> {
        let trailers = (!trailers.is_empty()).then(|| h2_headers::to_map(trailers)).transpose();
        if let Some(send) = &mut self.send {
            send.finish(trailers.map_err(|_| DownstreamError::Malformed)?);
        }
        Ok(())
    }

    fn poll_writable(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), DownstreamError>> {
        let watermark = self.watermark;
        match &mut self.send {
            Some(send) if send.len() >= watermark => match send.poll_flush(cx) {
                Poll::Pending if send.len() < watermark => Poll::Ready(Ok(())),
                other => other.map_err(|_| self.wishes.closed()),
            },
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_flush(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), DownstreamError>> {
        match &mut self.send {
            Some(send) => send.poll_flush(cx).map_err(|_| self.wishes.closed()),
            None => Poll::Ready(Ok(())),
        }
    }

    fn backlog(&self) -> Option<u64> {
        self.send.as_ref()?.backlog()
    }

    fn poll_closed(&mut self, cx: &mut Timed<'_>) -> Poll<DownstreamError> {
        match &mut self.send {
            Some(send) => send.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        }
        // It does not say whose reset it is; that of a broken message is nearly always ours.
        .map(|reset| match reset {
            Ok(Reason::PROTOCOL_ERROR) => DownstreamError::Protocol,
            Ok(_) => DownstreamError::Reset,
            Err(error) => gone(&error, &self.wishes),
        })
    }

    fn reset(&mut self) {
        match self.send.take() {
            Some(mut send) => {
                send.give_granted();
                self.traffic.sent += send.wire_len();
                self.wishes.reset(send.into_stream(), Reason::INTERNAL_ERROR);
            }
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    fn become_tunnel(&mut self) {}

    fn upgrade(&self) -> Option<&str> {
        self.upgrade.as_deref()
    }

    fn has_body_before_tunnel(&self) -> bool {
        false
    }

    fn decline_upgrade(&mut self) {
        self.upgrade = None;
    }

    fn wants_head_alone(&self) -> bool {
        self.head_alone
    }

    fn keeps_alive(&self) -> bool {
        true
    }

    fn is_http2(&self) -> bool {
        true
    }

    fn traffic(&self) -> Traffic {
        let body = self.send.as_ref().map_or(0, H2Send::wire_len);
        Traffic { sent: self.traffic.sent + body, ..self.traffic }
    }

    fn has_host(&self) -> bool {
        self.has_host
    }
}
