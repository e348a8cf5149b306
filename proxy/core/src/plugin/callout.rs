//! Requests of plugins to services beside the upstream.

use crate::cluster::ClusterCell;
use crate::headers::{Headers, Known};
use bytes::Bytes;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// A request to a service beside the upstream: authorisation, tokens, key servers.
#[derive(Debug)]
pub struct CalloutRequest {
    /// Whole URI, `http` or `https`.
    pub uri: String,
    /// What is asked for in the place of the URI's path and query, byte for byte: what a client has asked for need not be such
    /// as a URI can have.
    pub target: Option<Vec<u8>>,
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

/// What Envoy's client for requests of its own says of each beside what its caller says (source/common/http/async_client_impl.cc,
/// `AsyncStreamImpl::sendHeaders`, and its router); the default says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnHeaders {
    internal: bool,
    address: Option<Arc<str>>,
    timeout: Option<Duration>,
}

impl OwnHeaders {
    /// That the request is an internal one, and where it comes from where this host's `address` is known (`send_internal`,
    /// `send_xff`).
    pub fn new(address: Option<IpAddr>) -> OwnHeaders {
        OwnHeaders {
            internal: true,
            address: address.map(|address| address.to_string().into()),
            timeout: None,
        }
    }

    /// The same, and that an answer is waited for so long; `None` is no bound, and nothing is said.
    pub fn within(self, timeout: Option<Duration>) -> OwnHeaders {
        OwnHeaders { timeout, ..self }
    }

    /// How long an answer is waited for.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Says it.
    pub fn tell(&self, headers: &mut Headers) {
        if self.internal {
            headers.set(Known::X_ENVOY_INTERNAL, b"true");
        }
        if let Some(address) = &self.address {
            headers.join(Known::X_FORWARDED_FOR, b",", address.as_bytes());
        }
        if let Some(timeout) = self.timeout {
            let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            let mut digits = itoa::Buffer::new();
            headers.set(Known::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, digits.format(millis).as_bytes());
        }
    }
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
    /// Not asked: no request can say it. Whose request it is about may have seen to that, so that whoever lets requests pass
    /// where a service is down must not do so here.
    #[error("{0}")]
    Unaskable(String),
    /// Not asked: this process has no descriptor or no memory left for a connection.
    #[error("{0}")]
    Exhausted(&'static str),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_requests_say_who_asks_and_how_long_an_answer_is_waited_for() {
        let told = |own: OwnHeaders| {
            let mut headers = Headers::new();
            headers.push(b"x-forwarded-for", b"10.0.0.1");
            own.tell(&mut headers);
            let lines = headers.iter().map(|(name, value)| {
                format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
            });
            lines.collect::<Vec<_>>()
        };
        assert_eq!(told(OwnHeaders::default()), ["x-forwarded-for: 10.0.0.1"]);
        let own = OwnHeaders::new(Some(IpAddr::from([192, 0, 2, 2])));
        assert_eq!(told(own.clone()), ["x-forwarded-for: 10.0.0.1,192.0.2.2", "x-envoy-internal: true"]);
        assert_eq!(
            told(OwnHeaders::new(None).within(Some(Duration::from_millis(1500)))),
            ["x-forwarded-for: 10.0.0.1", "x-envoy-internal: true", "x-envoy-expected-rq-timeout-ms: 1500"]
        );
        assert_eq!(own.within(None).timeout(), None);
    }
}
