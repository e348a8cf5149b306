//! A client's HTTP/2 connection: each stream is a task, and the same request path.

use super::body::{BodyEvent, Piece};
use super::clock::{Clock, after};
use super::downstream::{Downstream, Gone};
use super::h2_guard::Guarded;
use super::h2_send::H2Send;
use super::h2_streams::{self, Opened};
use super::{Env, PREFACE, exchange, h2_headers};
use crate::io::Io;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use sixfold_core::connection::Connection;
use sixfold_core::headers::Headers;
use sixfold_core::message::{ResponseHead, Scheme};
use sixfold_core::stream::Stream;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// How long the preface may take when the connection manager has no idle timeout.
const PREFACE_TIME: Duration = Duration::from_secs(60);

/// Serves the connection from its first byte.
pub(super) async fn serve(mut io: Io, connection: Arc<Connection>, env: Arc<Env>) {
    let mut read = Vec::with_capacity(PREFACE.len());
    let patience = env.hcm.timeouts.idle.filter(|d| !d.is_zero()).unwrap_or(PREFACE_TIME);
    match tokio::time::timeout(patience, preface(&mut io, &mut read)).await {
        Ok(Ok(true)) => serve_from(io, read, connection, env).await,
        Ok(Ok(false)) => {
            env.hcm.stats.downstream_cx_protocol_error.inc();
            // The library would close with bytes unread, which resets; the client is to see an end.
            let _ = tokio::time::timeout(env.hcm.timeouts.delayed_close, farewell(&mut io)).await;
        }
        Ok(Err(_)) | Err(_) => {}
    }
}

/// Reads the client's preface (RFC 9113 section 3.4); `false` when it is something else.
async fn preface(io: &mut Io, read: &mut Vec<u8>) -> std::io::Result<bool> {
    while read.len() < PREFACE.len() {
        let mut missing = io.take((PREFACE.len() - read.len()) as u64);
        if missing.read_buf(read).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if !PREFACE.starts_with(read) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn farewell(io: &mut Io) {
    let mut unread = [0; 1024];
    let _ = io.shutdown().await;
    while io.read(&mut unread).await.is_ok_and(|n| n > 0) {}
}

/// Serves the connection; `read` is what was read from it already.
pub(super) async fn serve_from(io: Io, read: Vec<u8>, connection: Arc<Connection>, env: Arc<Env>) {
    let stats = env.hcm.stats.clone();
    stats.downstream_cx_http2_total.inc();
    let _active = stats.downstream_cx_http2_active.raise();
    if let Err(error) = run(io, read, connection, env).await {
        if !error.is_io() {
            stats.downstream_cx_protocol_error.inc();
        }
        tracing::debug!(%error, "HTTP/2 connection ended");
    }
}

async fn run(io: Io, read: Vec<u8>, connection: Arc<Connection>, env: Arc<Env>) -> Result<(), h2::Error> {
    let options = &env.hcm.http2;
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .max_concurrent_streams(options.max_concurrent_streams)
        .max_header_list_size(options.max_header_list)
        .max_send_buffer_size(env.hcm.buffer_limit)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(Some(options.max_resets as usize));
    if options.allow_connect {
        builder.enable_connect_protocol();
    }
    let guarded = Guarded::new(io, read, options);
    let mut server = builder.handshake::<_, Bytes>(guarded).await?;
    let mut draining = pin!(env.drain.started());
    let mut drained = false;
    let mut limits = ConnectionLimits::new(&env);
    loop {
        let next = poll_fn(|cx| {
            if !drained && draining.as_mut().poll(cx).is_ready() {
                drained = true;
                env.hcm.stats.downstream_cx_drain_close.inc();
                server.graceful_shutdown();
            }
            let accepted = server.poll_accept(cx);
            if accepted.is_pending() && limits.poll_expired(server.has_streams(), cx).is_ready() && !drained {
                drained = true;
                server.graceful_shutdown();
                return server.poll_accept(cx);
            }
            accepted
        })
        .await;
        let Some(accepted) = next else { return Ok(()) };
        let (request, respond) = accepted?;
        let (connection, env) = (connection.clone(), env.clone());
        limits.requests += 1;
        if env.hcm.max_requests_per_connection.is_some_and(|max| limits.requests >= max) && !drained {
            drained = true;
            env.hcm.stats.downstream_cx_max_requests_reached.inc();
            server.graceful_shutdown();
        }
        h2_streams::serve(Opened { request, respond, connection, env });
    }
}

/// When a connection has lived long enough.
struct ConnectionLimits {
    timer: std::pin::Pin<Box<tokio::time::Sleep>>,
    idle: Option<std::time::Duration>,
    end: Option<Instant>,
    busy: Instant,
    requests: u32,
}

impl ConnectionLimits {
    fn new(env: &Env) -> ConnectionLimits {
        let now = Instant::now();
        let timeouts = &env.hcm.timeouts;
        let end = timeouts.max_connection.map(|limit| after(now, limit));
        let idle = timeouts.idle.filter(|d| !d.is_zero());
        let mut limits = ConnectionLimits {
            timer: Box::pin(tokio::time::sleep_until(now)),
            idle,
            end,
            busy: now,
            requests: 0,
        };
        limits.arm();
        limits
    }

    fn arm(&mut self) {
        let idle = self.idle.map(|d| after(self.busy, d));
        let far = self.busy + std::time::Duration::from_secs(86400 * 365);
        let next = [idle, self.end].into_iter().flatten().min().unwrap_or(far);
        self.timer.as_mut().reset(next);
    }

    /// Ready when the connection was idle, or has lived, for too long. With streams it is not idle.
    fn poll_expired(&mut self, has_streams: bool, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if has_streams {
                self.busy = now;
            }
            let ended = self.end.is_some_and(|end| now >= end);
            if ended || self.idle.is_some_and(|d| now >= after(self.busy, d)) {
                self.end = None;
                self.idle = None;
                self.arm();
                return Poll::Ready(());
            }
            self.arm();
        }
    }
}

/// Serves one stream, in a context and with a clock that earlier ones may have used.
pub(super) async fn serve_stream(opened: Opened, stream: &mut Stream, clock: &mut Clock) {
    let Opened { request, respond, connection, env } = opened;
    env.hcm.stats.downstream_rq_http2_total.inc();
    let secure = connection.tls.is_some();
    stream.connection = connection;
    let now = clock.restart();
    stream.reset(now.into_std());
    stream.start_time = SystemTime::now();
    let mut client = H2Client::new(request, respond, stream, env.hcm.buffer_limit);
    stream.request.scheme = if secure { Scheme::Https } else { Scheme::Http };
    exchange::serve(&mut client, stream, clock, &env).await;
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
    has_host: bool,
    upgrade: Option<Box<str>>,
}

impl H2Client {
    /// Copies the request's head into `stream`; the library's form of it is freed here, not after the request.
    fn new(
        request: http::Request<RecvStream>,
        respond: SendResponse<Bytes>,
        stream: &mut Stream,
        watermark: usize,
    ) -> H2Client {
        let (parts, recv) = request.into_parts();
        h2_headers::read_request(&parts, &mut stream.request);
        stream.bytes.request_head = stream.request.headers.wire_len() as u64;
        let upgrade = (parts.method == http::Method::CONNECT).then(|| {
            let protocol = parts.extensions.get::<h2::ext::Protocol>();
            protocol.map_or("connect", h2::ext::Protocol::as_str).to_ascii_lowercase().into()
        });
        H2Client {
            ended: recv.is_end_stream(),
            recv,
            respond,
            send: None,
            owed: 0,
            watermark,
            has_host: parts.uri.authority().is_some() || !stream.request.authority.is_empty(),
            upgrade,
        }
    }
}

impl Downstream for H2Client {
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        trailers: &mut Headers,
    ) -> Poll<Result<BodyEvent<'_>, Gone>> {
        if self.owed > 0 {
            let _ = self.recv.flow_control().release_capacity(std::mem::take(&mut self.owed));
        }
        if self.ended {
            return Poll::Ready(Ok(BodyEvent::End));
        }
        match ready!(self.recv.poll_data(cx)) {
            Some(Ok(data)) => {
                self.owed = data.len();
                Poll::Ready(Ok(BodyEvent::Data(Piece::Shared(data))))
            }
            Some(Err(_)) => Poll::Ready(Err(Gone::Closed)),
            None => {
                if let Some(map) = ready!(self.recv.poll_trailers(cx)).map_err(|_| Gone::Closed)? {
                    trailers.clear();
                    h2_headers::from_map(&map, trailers);
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

    fn write_head(&mut self, head: &ResponseHead, end: bool, _close: bool) -> Result<(), Gone> {
        let response = h2_headers::write_response(head).map_err(|_| Gone::Malformed)?;
        let send = self.respond.send_response(response, end).map_err(|_| Gone::Closed)?;
        self.send = Some(H2Send::new(send, end));
        Ok(())
    }

    fn write_data(&mut self, _cx: &mut Context<'_>, piece: Piece<'_>) -> Result<(), Gone> {
        if let Some(send) = &mut self.send {
            send.push(piece);
        }
        Ok(())
    }

    fn finish(&mut self, trailers: &Headers) -> Result<(), Gone> {
        if let Some(send) = &mut self.send {
            send.finish((!trailers.is_empty()).then(|| h2_headers::to_map(trailers)));
        }
        Ok(())
    }

    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let watermark = self.watermark;
        match &mut self.send {
            Some(send) if send.len() >= watermark => match send.poll_flush(cx) {
                Poll::Pending if send.len() < watermark => Poll::Ready(Ok(())),
                other => other.map_err(|_| Gone::Closed),
            },
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        match &mut self.send {
            Some(send) => send.poll_flush(cx).map_err(|_| Gone::Closed),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.send {
            Some(send) => send.poll_reset(cx).map(|_| ()),
            None => self.respond.poll_reset(cx).map(|_| ()),
        }
    }

    fn reset(&mut self) {
        match &mut self.send {
            Some(send) => send.reset(Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }

    fn become_tunnel(&mut self) {}

    fn upgrade(&self) -> Option<&str> {
        self.upgrade.as_deref()
    }

    fn decline_upgrade(&mut self) {
        self.upgrade = None;
    }

    fn is_http2(&self) -> bool {
        true
    }

    fn has_host(&self) -> bool {
        self.has_host
    }
}
