//! Requests on a shared HTTP/2 upstream connection.

use super::{Alive, HeadEvent, UpstreamError};
use crate::deadline::Timed;
use crate::http::body::{BodyEvent, Piece};
use crate::http::h2_guard::{Guarded, Patience};
use crate::http::h2_headers::{self, HeadError};
use crate::http::h2_send::H2Send;
use crate::io::Io;
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use sixfold_core::cluster::{ClusterConfig, Permit};
use sixfold_core::headers::{HeaderRules, Headers};
use sixfold_core::message::{RequestHead, ResponseHead, Scheme};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Poll, ready};
use tokio::time::Instant;

/// A connection that many requests share. A task of its own reads and writes it until the last is done.
pub(super) struct H2Connection {
    send: SendRequest<Bytes>,
    state: Arc<H2State>,
    local: Option<SocketAddr>,
    watermark: usize,
    rules: HeaderRules,
}

/// What a connection, its task and its streams share.
pub(super) struct H2State {
    closed: AtomicBool,
    streams: AtomicU32,
    pub(super) opened: Instant,
    pub(super) requests: AtomicU32,
}

impl H2Connection {
    /// Speaks the preface and starts the connection's task.
    pub(super) async fn open(
        io: Io,
        config: &ClusterConfig,
        alive: Alive,
    ) -> Result<H2Connection, UpstreamError> {
        let (local, options) = (io.local_addr(), &config.http2);
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(options.stream_window)
            .initial_connection_window_size(options.connection_window)
            .max_header_list_size(options.max_header_list)
            .initial_max_send_streams(options.max_concurrent_streams as usize)
            .enable_push(false)
            .handshake::<_, Bytes>(Guarded::client(io, options, Patience::default()))
            .await
            .map_err(|_| UpstreamError::Closed)?;
        alive.stats.upstream_cx_http2_total().inc();
        let state = Arc::new(H2State {
            closed: AtomicBool::new(false),
            streams: AtomicU32::new(0),
            opened: Instant::now(),
            requests: AtomicU32::new(0),
        });
        let shared = state.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, upstream = %alive.host.label, "HTTP/2 connection ended");
            }
            shared.closed.store(true, Relaxed);
            drop(alive);
        });
        let (watermark, rules) = (config.buffer_limit, config.header_rules);
        Ok(H2Connection { send, state, local, watermark, rules })
    }

    /// Whether the connection is of no more use.
    pub(super) fn is_closed(&self) -> bool {
        self.state.closed.load(Relaxed)
    }

    /// Streams under way.
    pub(super) fn streams(&self) -> u32 {
        self.state.streams.load(Relaxed)
    }

    pub(super) fn state(&self) -> &H2State {
        &self.state
    }

    /// A place for one more request.
    pub(super) fn stream(&self, permit: Option<Permit>) -> H2Upstream {
        self.state.streams.fetch_add(1, Relaxed);
        self.state.requests.fetch_add(1, Relaxed);
        H2Upstream {
            connection: self.send.clone(),
            state: self.state.clone(),
            local: self.local,
            watermark: self.watermark,
            rules: self.rules,
            head: None,
            response: None,
            send: None,
            recv: None,
            owed: 0,
            end: false,
            done: false,
            _permit: permit,
        }
    }
}

/// One request.
pub(crate) struct H2Upstream {
    connection: SendRequest<Bytes>,
    state: Arc<H2State>,
    local: Option<SocketAddr>,
    watermark: usize,
    rules: HeaderRules,
    /// The head, until the connection has room for another stream.
    head: Option<http::Request<()>>,
    response: Option<ResponseFuture>,
    send: Option<H2Send>,
    recv: Option<RecvStream>,
    /// Bytes given out and not yet acknowledged to flow control.
    owed: usize,
    /// The request ends with its head.
    end: bool,
    done: bool,
    _permit: Option<Permit>,
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
        self.head = Some(request);
        self.end = end;
        Ok(())
    }

    /// Opens the stream once the upstream allows one more.
    fn poll_open(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), UpstreamError>> {
        if self.head.is_some() {
            ready!(self.connection.poll_ready(cx)).map_err(|e| reason(&e))?;
            if let Some(request) = self.head.take() {
                let (response, send) =
                    self.connection.send_request(request, self.end).map_err(|e| reason(&e))?;
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
        let watermark = self.watermark;
        match &mut self.send {
            Some(send) if send.len() >= watermark => match send.poll_flush(cx) {
                Poll::Pending if send.len() < watermark => Poll::Ready(Ok(())),
                other => other.map_err(|e| reason(&e)),
            },
            _ => Poll::Ready(Ok(())),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), UpstreamError>> {
        ready!(self.poll_open(cx))?;
        match &mut self.send {
            // A stream that the upstream has answered and closed refuses data; the answer counts.
            Some(send) => match ready!(send.poll_flush(cx)) {
                Err(e) if e.is_reset() && e.reason() == Some(Reason::NO_ERROR) => Poll::Ready(Ok(())),
                other => Poll::Ready(other.map_err(|e| reason(&e))),
            },
            None => Poll::Ready(Ok(())),
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
        let end = recv.is_end_stream();
        self.done = end;
        self.recv = Some(recv);
        Poll::Ready(Ok(HeadEvent::Final { end, tunnel: false }))
    }

    pub(super) fn poll_body(
        &mut self,
        cx: &mut Timed<'_>,
        trailers: &mut Headers,
    ) -> Poll<Result<BodyEvent<'_>, UpstreamError>> {
        let Some(recv) = &mut self.recv else {
            return Poll::Ready(Ok(BodyEvent::End));
        };
        if self.owed > 0 {
            // The last piece has been passed on, so the upstream may send as much again.
            let _ = recv.flow_control().release_capacity(std::mem::take(&mut self.owed));
        }
        match ready!(recv.poll_data(cx)) {
            Some(Ok(data)) => {
                self.owed = data.len();
                Poll::Ready(Ok(BodyEvent::Data(Piece::Shared(data))))
            }
            Some(Err(e)) => Poll::Ready(Err(reason(&e))),
            None => {
                let map = ready!(recv.poll_trailers(cx)).map_err(|e| reason(&e))?;
                if let Some(map) = map {
                    h2_headers::read_trailers(&map, &self.rules, trailers)
                        .map_err(|_| UpstreamError::Protocol)?;
                }
                self.done = true;
                Poll::Ready(Ok(BodyEvent::End))
            }
        }
    }

    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.local
    }
}

impl Drop for H2Upstream {
    fn drop(&mut self) {
        self.state.streams.fetch_sub(1, Relaxed);
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
        Some(_) if error.is_remote() && error.is_reset() => UpstreamError::Reset,
        Some(_) if error.is_library() => UpstreamError::Protocol,
        Some(_) if error.is_go_away() && error.is_remote() => UpstreamError::Closed,
        _ if error.is_io() => UpstreamError::Closed,
        _ => UpstreamError::Closed,
    }
}
