//! The one interface in which both codecs meet on the client's side.

use crate::deadline::Timed;
use crate::wire::body::{BodyEvent, Piece};
use sixfold_core::headers::Headers;
use sixfold_core::message::ResponseHead;
use sixfold_core::traffic::Traffic;
use std::task::Poll;

/// The client is gone, or what it sends is no HTTP any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DownstreamError {
    /// It closed the connection.
    Closed,
    /// Its connection was ended since it took nothing of what was written.
    Stalled,
    /// Its connection was ended since it did not answer a PING.
    Silent,
    /// It reset its stream.
    Reset,
    /// Its stream was reset for what it sent: a body of another length than it had announced.
    Protocol,
    /// Its body is malformed.
    Malformed,
}

/// A request of a client and the way back to it. The head of the request is in the stream context already.
pub(crate) trait Downstream: Send {
    /// The next piece of the request body; trailers are left in `trailers` with the end.
    fn poll_body(
        &mut self,
        cx: &mut Timed<'_>,
        trailers: &mut Headers,
    ) -> Poll<Result<BodyEvent<'_>, DownstreamError>>;

    /// Whether the request has been read to its end.
    fn request_ended(&self) -> bool;

    /// Answers `Expect: 100-continue`.
    fn write_continue(&mut self);

    /// Takes the head of the response; `end` if no body follows. `close` asks that the connection end with it. Answers
    /// the bytes, of name and value, of the field that says what becomes of the connection; 0 where there is none.
    fn write_head(&mut self, head: &ResponseHead, end: bool, close: bool) -> Result<u8, DownstreamError>;

    /// Whether the body of the response goes in chunks, once its head has been taken.
    fn is_chunked(&self) -> bool;

    /// Takes a piece of the response body.
    fn write_data(&mut self, cx: &mut Timed<'_>, piece: Piece<'_>) -> Result<(), DownstreamError>;

    /// Ends the response.
    fn finish(&mut self, trailers: &Headers) -> Result<(), DownstreamError>;

    /// Ready when more may be written: what waits is below the watermark.
    fn poll_writable(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), DownstreamError>>;

    /// Sends what waits; ready when nothing does.
    fn poll_flush(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), DownstreamError>>;

    /// What the client has taken so far, while something waits for it: another number is progress.
    fn backlog(&self) -> Option<u64>;

    /// Ready when the client has gone away. Asked while nothing else is read from it.
    fn poll_closed(&mut self, cx: &mut Timed<'_>) -> Poll<DownstreamError>;

    /// The same while a plugin is waited for. It may answer, and then the connection carries another request if this one has
    /// come whole: so more is read ahead.
    fn poll_left(&mut self, cx: &mut Timed<'_>) -> Poll<DownstreamError> {
        self.poll_closed(cx)
    }

    /// Cuts a response that can't be completed: the client must not take it for whole.
    fn reset(&mut self);

    /// From here on both directions are bytes (101, or 2xx to CONNECT).
    fn become_tunnel(&mut self);

    /// The type of the upgrade that the client asks for, in lower case: `websocket`, `connect`.
    fn upgrade(&self) -> Option<&str>;

    /// Whether the request of an upgrade has a body that has not been read to its end. nginx passes it on before it tunnels;
    /// in Envoy's profile all that follows the head is the tunnel's.
    fn has_body_before_tunnel(&self) -> bool;

    /// The request is served as an ordinary one.
    fn decline_upgrade(&mut self);

    /// Whether the client asked for a head alone (HEAD). The method in the context may be another by now: plugins
    /// change it for the upstream.
    fn wants_head_alone(&self) -> bool;

    /// Bytes on the wire so far, of the request and its response.
    fn traffic(&self) -> Traffic;

    /// Whether the client lets the connection carry another request behind this one.
    fn keeps_alive(&self) -> bool;

    /// Whether streams share the connection.
    fn is_http2(&self) -> bool;

    /// Whether a Host or authority came with the request.
    fn has_host(&self) -> bool;
}
