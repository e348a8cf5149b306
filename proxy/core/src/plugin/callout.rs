//! Requests of plugins to services beside the upstream.

use crate::cluster::ClusterCell;
use crate::headers::Headers;
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};

/// A request to a service beside the upstream: authorisation, tokens, key servers.
#[derive(Debug)]
pub struct CalloutRequest {
    /// Whole URI, `http` or `https`.
    pub uri: String,
    /// The cluster of the configuration that it goes to: with its endpoints, connections, TLS and circuit breakers. The
    /// URI then says Host and path alone. `None` goes to the URI's own host.
    pub cluster: Option<Arc<ClusterCell>>,
    /// Other endpoints that are tried when one gives no answer, 0 for none.
    pub retries: u32,
    /// Method.
    pub method: http::Method,
    /// Headers; Host comes from the URI unless it is among them.
    pub headers: Headers,
    /// Body.
    pub body: Bytes,
    /// Bounds the whole exchange.
    pub timeout: std::time::Duration,
    /// Whether the certificate of the URI's host is verified.
    pub verify_tls: bool,
    /// Bytes of response body that are read; a longer one is an error.
    pub max_body: usize,
    /// Keeps the connection to the URI's host for the next callout; `None` closes it.
    pub keepalive: Option<Keepalive>,
}

/// How connections of callouts are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Connections without a request are closed after so long.
    pub idle: std::time::Duration,
    /// Connections kept for one service by one worker.
    pub connections: usize,
}

impl Default for Keepalive {
    /// 60 s and 5 connections, APISIX's defaults for its own callouts.
    fn default() -> Keepalive {
        Keepalive { idle: std::time::Duration::from_secs(60), connections: 5 }
    }
}

/// The answer of such a service.
#[derive(Debug)]
pub struct CalloutResponse {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: Headers,
    /// The whole body.
    pub body: Bytes,
}

/// Why there was none.
#[derive(Debug, thiserror::Error)]
pub enum CalloutError {
    /// Not within the time.
    #[error("timeout")]
    Timeout,
    /// Not reachable, or not HTTP.
    #[error("{0}")]
    Failed(String),
}

/// The future of a callout.
pub type CalloutFuture = Pin<Box<dyn Future<Output = Result<CalloutResponse, CalloutError>> + Send>>;

/// A request whose bodies go both ways piece by piece: gRPC, and whatever is too long to be held. Dropping it resets it.
pub trait CalloutStream: Send {
    /// Ready when another piece may be sent.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CalloutError>>;

    /// Sends a piece. Call it when [`CalloutStream::poll_ready`] says so: else what waits grows.
    fn send(&mut self, piece: Bytes);

    /// Ready when all that was sent has been passed to the connection, which happens while the stream is polled.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        self.poll_ready(cx)
    }

    /// Ends the request's body.
    fn finish(&mut self);

    /// Ready when the head of the response has come. Whoever waits for it need not wait to send.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CalloutError>>;

    /// The next piece of the response, after its head; `None` at its end.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, CalloutError>>;

    /// Status of the response; 0 before its head.
    fn status(&self) -> u16;

    /// Headers of the response.
    fn headers(&self) -> &Headers;

    /// Trailers of the response, after its end.
    fn trailers(&self) -> &Headers;
}

/// The future of a stream that is being opened.
pub type CalloutStreamFuture =
    Pin<Box<dyn Future<Output = Result<Box<dyn CalloutStream>, CalloutError>> + Send>>;

/// Which service a plugin wants a connection to, where it speaks another protocol than HTTP.
#[derive(Debug, Clone, Copy)]
pub struct ConnectRequest<'a> {
    /// Its name or address; one of IPv6 may stand in brackets.
    pub host: &'a str,
    /// Its port.
    pub port: u16,
    /// TLS towards it, and whether its certificate is verified.
    pub tls: Option<VerifyTls>,
    /// Bounds it all: the name's resolution, the connection, the handshake.
    pub timeout: std::time::Duration,
}

/// Whether a certificate is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VerifyTls {
    /// By the authorities that callouts trust, and for the name that was asked for.
    Yes,
    /// Any will do.
    No,
}

/// A connection as bytes.
pub trait CalloutWire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> CalloutWire for T {}

/// The future of a connection that is being opened.
pub type ConnectFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Box<dyn CalloutWire>, CalloutError>> + Send + 'a>>;

/// Sends callouts over the connections of the thread that asks.
pub trait Callout: Send + Sync {
    /// Sends one request and reads the answer.
    fn send(&self, request: CalloutRequest) -> CalloutFuture;

    /// Sends a request without its body and hands out its stream; `timeout` bounds all of it.
    fn open(&self, request: CalloutRequest) -> CalloutStreamFuture;

    /// Opens a connection for another protocol than HTTP. It belongs to the thread that asks.
    fn connect<'a>(&'a self, request: ConnectRequest<'a>) -> ConnectFuture<'a> {
        let reason = format!("nothing reaches {}:{} from here", request.host, request.port);
        Box::pin(async { Err(CalloutError::Failed(reason)) })
    }
}
