//! Plugins and the chain they form.
//!
//! A route's plugins compile to one flat list a phase, run in order by one future. A handler is synchronous
//! unless it must wait; then it returns a boxed future. Nested Tower layers were measured at 0.4 us a layer
//! and request; a handler here costs one virtual call.

mod callout;
mod chain;
pub mod http_head;
mod layer;
mod registry;

pub use callout::{Callout, CalloutError, CalloutFuture, CalloutRequest, CalloutResponse, Keepalive};
pub use chain::{Chain, ChainBuilder, Outcome, Slot};
pub use layer::{ChainBody, ChainLayer, ChainService, NeedsRequestBody};
pub use registry::{BuildContext, PluginFactory, Registry, SharedState};

use crate::headers::Headers;
use crate::stream::Stream;
use bytes::Bytes;
use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;

bitflags::bitflags! {
    /// Phases of a request, with APISIX's names.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Phases: u8 {
        /// After the route is chosen: authentication, rewrites.
        const REWRITE = 1;
        /// Access control; Envoy's HTTP filters run here, in filter order.
        const ACCESS = 2;
        /// Once the upstream is chosen, before every attempt.
        const BEFORE_PROXY = 4;
        /// The response head is there.
        const HEADER_FILTER = 8;
        /// Every piece of the response body.
        const BODY_FILTER = 16;
        /// The stream has ended.
        const LOG = 32;
    }
}

/// What a handler wants next.
pub enum Step<'a> {
    /// The next handler.
    Continue,
    /// An answer now, without an upstream; the response phases still run.
    Respond(LocalReply),
    /// To wait. Dropping the future must leave nothing behind (the client may go away at any time).
    Wait(Pin<Box<dyn Future<Output = Step<'a>> + Send + 'a>>),
    /// The route to be chosen again (Envoy's `clearRouteCache`): the phase goes on after the same slot in the
    /// new route's chain.
    ClearRoute,
}

/// An answer made by the proxy itself.
#[derive(Debug, Clone, Default)]
pub struct LocalReply {
    /// Status code.
    pub status: u16,
    /// Body; may be empty.
    pub body: Bytes,
    /// Headers beside content-length, date and server.
    pub headers: Headers,
    /// Envoy's response code details.
    pub details: Cow<'static, str>,
    /// Envoy's response flag.
    pub flag: Option<crate::flags::Flag>,
    /// gRPC status in place of the one that the HTTP status maps to.
    pub grpc_status: Option<u32>,
    /// Resets the stream or closes the connection in place of an answer.
    pub reset: bool,
}

impl LocalReply {
    /// A reply with a text body.
    pub fn new(status: u16, body: impl Into<Bytes>, details: impl Into<Cow<'static, str>>) -> LocalReply {
        LocalReply { status, body: body.into(), details: details.into(), ..LocalReply::default() }
    }
}

/// A piece of a body on its way through body filters.
pub struct BodyChunk<'a> {
    /// The bytes; a filter that changes them replaces the `Cow`.
    pub data: Cow<'a, [u8]>,
    /// Whether this is the last piece.
    pub last: bool,
}

/// One plugin with its configuration. It implements only the phases it names.
pub trait Plugin: Send + Sync + 'static {
    /// Its name, as the configuration spells it.
    fn name(&self) -> &str;

    /// The phases it has a handler for.
    fn phases(&self) -> Phases;

    /// Bytes of request body it needs at once before `access`; `None` for the plugins that need none. The
    /// body is then in [`Stream::request_body`]; a longer one is refused with 413.
    fn buffers_request(&self) -> Option<usize> {
        None
    }

    /// Bytes of response body it needs at once in `body_filter`; asked after `header_filter`. A longer body
    /// is passed on as it is.
    fn buffers_response(&self, _stream: &Stream) -> Option<usize> {
        None
    }

    /// Phase `rewrite`. `slot` is the place for its state in [`Stream::slots`].
    fn rewrite<'a>(&'a self, _stream: &'a mut Stream, _slot: usize) -> Step<'a> {
        Step::Continue
    }

    /// Phase `access`.
    fn access<'a>(&'a self, _stream: &'a mut Stream, _slot: usize) -> Step<'a> {
        Step::Continue
    }

    /// Phase `before_proxy`.
    fn before_proxy<'a>(&'a self, _stream: &'a mut Stream, _slot: usize) -> Step<'a> {
        Step::Continue
    }

    /// Phase `header_filter`: [`Stream::response`] may be changed. An answer returned here replaces it.
    fn header_filter<'a>(&'a self, _stream: &'a mut Stream, _slot: usize) -> Step<'a> {
        Step::Continue
    }

    /// Phase `body_filter`.
    fn body_filter(&self, _stream: &mut Stream, _slot: usize, _chunk: &mut BodyChunk<'_>) {}

    /// Phase `log`.
    fn log(&self, _stream: &mut Stream, _slot: usize) {}
}
