//! Upstream connections and the requests on them.

mod choose;
mod dial;
mod dials;
mod h1;
mod h2;
mod host_pool;
mod kind;
mod kind_pool;
mod open;
mod outbound;
mod pool;
mod queue;
mod resend;
#[cfg(test)]
mod tests;

pub(crate) use choose::destination;
pub(crate) use dial::{ActiveConnection, dial};
pub(crate) use kind::Client;
pub(crate) use outbound::Outbound;
pub use pool::Pools;
pub(crate) use pool::{Checkout, Wanted};
pub(crate) use resend::Resend;
pub(crate) use sixfold_core::hash::choose_cluster;

use crate::deadline::Timed;
use crate::wire::body::{BodyEvent, Piece};
use sixfold_core::cluster::OutcomeKind;
use sixfold_core::connection::UpstreamConnection;
use sixfold_core::flags::Flag;
use sixfold_core::headers::Headers;
use sixfold_core::message::{RequestHead, ResponseHead, Scheme};
use sixfold_core::traffic::Traffic;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

/// Why an attempt at an upstream came to nothing: Envoy's reset reasons (source/common/http/utility.cc
/// `resetReasonToString`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UpstreamError {
    /// The connection could not be opened; with the transport's text.
    Connect(String),
    /// Connecting or the TLS handshake took too long.
    ConnectTimeout,
    /// This process has no descriptor or no memory left for a connection: the endpoint has done nothing.
    Exhausted,
    /// A circuit breaker is open.
    Overflow,
    /// The connection ended before the response did.
    Closed,
    /// The upstream reset the stream.
    Reset,
    /// The upstream refused the stream without processing it, by a reset or by an end of its connection that leaves it out
    /// (GOAWAY).
    Refused,
    /// The connection took no more requests, and this one was not written to it. Another connection may take it.
    Unsent,
    /// The response is not HTTP as it should be.
    Protocol,
    /// The request can't be sent to this upstream.
    Local,
    /// The request has more fields than can be sent to this upstream.
    TooManyHeaders,
}

impl UpstreamError {
    /// As local replies spell it.
    pub(crate) fn text(&self) -> &'static str {
        match self {
            UpstreamError::Connect(_) => "remote connection failure",
            UpstreamError::ConnectTimeout => "connection timeout",
            UpstreamError::Exhausted => "local connection failure",
            UpstreamError::Overflow => "overflow",
            UpstreamError::Closed => "connection termination",
            UpstreamError::Reset => "remote reset",
            UpstreamError::Refused | UpstreamError::Unsent => "remote refused stream reset",
            UpstreamError::Protocol => "protocol error",
            UpstreamError::Local | UpstreamError::TooManyHeaders => "local reset",
        }
    }

    /// The part of the response code details in braces.
    pub(crate) fn details(&self) -> Cow<'static, str> {
        match self {
            UpstreamError::Connect(text) if !text.is_empty() => {
                Cow::Owned(format!("remote_connection_failure|{}", text.replace(' ', "_")))
            }
            UpstreamError::Connect(_) => Cow::Borrowed("remote_connection_failure"),
            UpstreamError::ConnectTimeout => Cow::Borrowed("connection_timeout"),
            UpstreamError::Exhausted => Cow::Borrowed("local_connection_failure"),
            UpstreamError::Overflow => Cow::Borrowed("overflow"),
            UpstreamError::Closed => Cow::Borrowed("connection_termination"),
            UpstreamError::Reset => Cow::Borrowed("remote_reset"),
            UpstreamError::Refused | UpstreamError::Unsent => Cow::Borrowed("remote_refused_stream_reset"),
            UpstreamError::Protocol => Cow::Borrowed("protocol_error"),
            UpstreamError::Local => Cow::Borrowed("local_reset"),
            UpstreamError::TooManyHeaders => Cow::Borrowed("request_headers_too_many"),
        }
    }

    /// The response flag it raises.
    pub(crate) fn flag(&self) -> Flag {
        match self {
            UpstreamError::Connect(_) | UpstreamError::ConnectTimeout | UpstreamError::Exhausted => Flag::UF,
            UpstreamError::Overflow => Flag::UO,
            UpstreamError::Closed => Flag::UC,
            UpstreamError::Reset | UpstreamError::Refused | UpstreamError::Unsent => Flag::UR,
            UpstreamError::Protocol => Flag::UPE,
            UpstreamError::Local | UpstreamError::TooManyHeaders => Flag::LR,
        }
    }

    /// What it makes of the attempt that it ends.
    pub(crate) fn outcome(&self) -> OutcomeKind {
        match self {
            UpstreamError::Connect(_) => OutcomeKind::ConnectFailure,
            UpstreamError::ConnectTimeout => OutcomeKind::ConnectTimeout,
            UpstreamError::Overflow => OutcomeKind::Overflow,
            UpstreamError::Closed | UpstreamError::Reset | UpstreamError::Refused | UpstreamError::Unsent => {
                OutcomeKind::Reset
            }
            UpstreamError::Protocol => OutcomeKind::Protocol,
            UpstreamError::Exhausted | UpstreamError::Local | UpstreamError::TooManyHeaders => {
                OutcomeKind::Cancelled
            }
        }
    }

    /// Whether no byte of the request can have been processed.
    pub(crate) fn before_request(&self) -> bool {
        matches!(
            self,
            UpstreamError::Connect(_)
                | UpstreamError::ConnectTimeout
                | UpstreamError::Exhausted
                | UpstreamError::Overflow
                | UpstreamError::Refused
                | UpstreamError::Unsent
        )
    }
}

/// What the head of a response says about what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadEvent {
    /// An interim response other than 101; the final one follows.
    Interim(u16),
    /// The final head.
    Final {
        /// No body follows.
        end: bool,
        /// What follows is a tunnel.
        tunnel: bool,
    },
}

/// A request on an upstream connection, in either version.
pub(crate) enum UpstreamStream {
    /// The connection itself: one request at a time.
    Http1(Box<h1::H1Upstream>),
    /// One stream of a shared connection.
    Http2(Box<h2::H2Upstream>),
}

/// Calls the same method on whichever version it is.
macro_rules! either {
    ($self:ident, $s:ident => $call:expr) => {
        match $self {
            UpstreamStream::Http1($s) => $call,
            UpstreamStream::Http2($s) => $call,
        }
    };
}

impl UpstreamStream {
    /// Takes the request's head; `end` if there is no body.
    pub(crate) fn write_head(
        &mut self,
        head: &RequestHead,
        scheme: Scheme,
        end: bool,
    ) -> Result<(), UpstreamError> {
        match self {
            UpstreamStream::Http1(s) => s.write_head(head, end),
            UpstreamStream::Http2(s) => s.write_head(head, scheme, end),
        }
    }

    /// Takes a piece of the body.
    pub(crate) fn write_data(&mut self, cx: &mut Timed<'_>, piece: Piece<'_>) -> Result<(), UpstreamError> {
        match self {
            UpstreamStream::Http1(s) => s.write_data(cx, piece.as_slice()),
            UpstreamStream::Http2(s) => {
                s.write_data(piece);
                Ok(())
            }
        }
    }

    /// Ends the body.
    pub(crate) fn finish(&mut self, trailers: &Headers) -> Result<(), UpstreamError> {
        either!(self, s => s.finish(trailers))
    }

    /// Ready when more body may be written: what waits is below the watermark.
    pub(crate) fn poll_writable(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), UpstreamError>> {
        either!(self, s => s.poll_writable(cx))
    }

    /// Sends what waits; ready when nothing does.
    pub(crate) fn poll_flush(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), UpstreamError>> {
        either!(self, s => s.poll_flush(cx))
    }

    /// What the upstream has taken so far, while something waits for it: another number is progress.
    pub(crate) fn backlog(&self) -> Option<u64> {
        either!(self, s => s.backlog())
    }

    /// Reads the head of the response.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Timed<'_>,
        head: &mut ResponseHead,
    ) -> Poll<Result<HeadEvent, UpstreamError>> {
        either!(self, s => s.poll_head(cx, head))
    }

    /// Reads the body of the response; trailers are left in `trailers` with the end.
    pub(crate) fn poll_body(
        &mut self,
        cx: &mut Timed<'_>,
        trailers: &mut Headers,
    ) -> Poll<Result<BodyEvent<'_>, UpstreamError>> {
        either!(self, s => s.poll_body(cx, trailers))
    }

    /// Whether nothing is to come behind what [`UpstreamStream::poll_body`] gave last, as far as that is known yet.
    pub(crate) fn has_all(&self) -> bool {
        match self {
            UpstreamStream::Http1(s) => s.has_all(),
            UpstreamStream::Http2(_) => false,
        }
    }

    /// Takes over what has come of the body while nobody can take more of it. Its bound is flow control's.
    pub(crate) fn poll_ahead(&mut self, cx: &mut Timed<'_>) {
        if let UpstreamStream::Http2(s) = self {
            s.poll_ahead(cx);
        }
    }

    /// Bytes on the wire so far, of the request and its response.
    pub(crate) fn traffic(&self) -> Traffic {
        either!(self, s => s.traffic())
    }

    /// Of those received, the bytes up to the end of the response's head, once it has come.
    pub(crate) fn head_end(&self) -> u64 {
        either!(self, s => s.head_end())
    }

    /// What is known of its connection.
    pub(crate) fn connection(&self) -> &Arc<UpstreamConnection> {
        either!(self, s => s.connection())
    }

    /// Local address of the connection.
    pub(crate) fn local(&self) -> Option<SocketAddr> {
        either!(self, s => s.local())
    }

    /// Whether it is HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        matches!(self, UpstreamStream::Http2(_))
    }
}
