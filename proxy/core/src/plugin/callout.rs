//! Requests of plugins to services beside the upstream.

use crate::headers::Headers;
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;

/// A request to a service beside the upstream: authorisation, tokens, key servers.
#[derive(Debug)]
pub struct CalloutRequest {
    /// Whole URI, `http` or `https`.
    pub uri: String,
    /// Method.
    pub method: http::Method,
    /// Headers; Host comes from the URI unless it is among them.
    pub headers: Headers,
    /// Body.
    pub body: Bytes,
    /// Bounds the whole exchange.
    pub timeout: std::time::Duration,
    /// Whether the service's certificate is verified.
    pub verify_tls: bool,
    /// Bytes of response body that are read; a longer one is an error.
    pub max_body: usize,
    /// Keeps the connection for the next callout; `None` closes it.
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

/// Sends callouts; the server implements it on hyper.
pub trait Callout: Send + Sync {
    /// Sends one request and reads the answer.
    fn send(&self, request: CalloutRequest) -> CalloutFuture;
}
