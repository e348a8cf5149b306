//! Plugins and the chain they form.
//!
//! A route's plugins compile to one flat list a phase, run in order by one future. A handler is synchronous
//! unless it must wait; then it returns a boxed future. Nested Tower layers were measured at 0.4 us a layer
//! and request; a handler here costs one virtual call.

mod begin;
mod body;
mod callout;
mod chain;
mod consumer;
mod factory;
pub mod grpc;
mod guard;
mod handlers;
pub mod http_head;
mod identities;
mod layer;
mod metadata;
mod owned;
mod part;
mod public_api;
mod registry;
mod run;
mod settled;
mod slot;

pub(crate) use begin::Begins;
pub use body::{
    BodyFilters, BodyFuture, BodyPiece, BodyStep, Filtered, Hold, Overflow, TrailersFuture, TrailersStep,
};
pub use callout::{
    Callout, CalloutError, CalloutFuture, CalloutRequest, CalloutResponse, CalloutStream,
    CalloutStreamFuture, CalloutWire, ConnectFuture, ConnectRequest, Keepalive, OwnHeaders, VerifyTls,
};
pub use chain::{Chain, ChainBuilder, Member};
pub use consumer::Consumer;
#[cfg(test)]
pub(crate) use consumer::kept_chains;
pub use factory::{
    ApisixFactory, BroughtUpstream, Built, BuiltInStreams, FilterConfig, FilterFactory, Kind,
    NetworkFilterFactory, RunPolicy, StreamPart,
};
pub use guard::Guard;
pub use handlers::{BodyFn, HeadFn, LogFn, Plugin, PluginBuilder, TrailersFn};
pub use identities::{ByKey, Consumers, ConsumersChange, Credential, Identities, Identity, Proof};
pub use layer::{ChainBody, ChainBodyError, ChainLayer, ChainService, NeedsRequestBody};
pub use metadata::{Metadata, MetadataChange, PluginMetadata, Prepared};
pub use owned::OwnedHeaders;
pub use part::Part;
pub use public_api::{Endpoint, MakeEndpoint, PublicApi, PublicApis};
pub use registry::{BuildContext, LocalNode, Registry, SharedState, TrafficDirection, brought_name};
pub use run::{Outcome, Passed, RequestPhases};
pub use slot::{PluginStates, Position, Scope, Slot};

use crate::headers::Headers;
use crate::message::RequestHead;
use crate::stream::Stream;
use bytes::Bytes;
use std::any::Any;
use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// A phase in which a handler looks at a head, with APISIX's names. It may wait and it may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadPhase {
    /// After the route is chosen: authentication, rewrites.
    Rewrite,
    /// Access control; Envoy's HTTP filters run here, in filter order.
    Access,
    /// Once the endpoint is chosen, before every attempt.
    BeforeProxy,
    /// The response head is there.
    HeaderFilter,
}

impl HeadPhase {
    /// Its name, as people are told of it.
    pub(super) fn name(self) -> &'static str {
        match self {
            HeadPhase::Rewrite => "Rewrite",
            HeadPhase::Access => "Access",
            HeadPhase::BeforeProxy => "BeforeProxy",
            HeadPhase::HeaderFilter => "HeaderFilter",
        }
    }

    /// In the order in which a request meets them.
    pub const ALL: [HeadPhase; 4] =
        [HeadPhase::Rewrite, HeadPhase::Access, HeadPhase::BeforeProxy, HeadPhase::HeaderFilter];
}

/// Which message a body or trailers belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The request, on its way to the upstream.
    Request,
    /// The response, on its way to the client.
    Response,
}

impl Direction {
    /// Both.
    pub const ALL: [Direction; 2] = [Direction::Request, Direction::Response];
}

/// What a handler wants next.
pub enum Step<'a> {
    /// The next handler.
    Continue,
    /// An answer now, without an upstream; the response phases still run.
    Respond(LocalReply),
    /// To wait. Dropping the future must leave nothing behind (the client may go away at any time).
    Wait(Pin<Box<dyn Future<Output = Step<'a>> + Send + 'a>>),
    /// The route to be chosen again (Envoy's `clearRouteCache`): the phase goes on behind the same position in
    /// the new route's chain. Means something in `rewrite` and `access` only.
    ClearRoute,
    /// The consumer is known. What it lays over the route's plugins runs from here on; of `rewrite` first the
    /// rest, then that of the plugins which the consumer has brought (APISIX's `rewrite_in_consumer`). Means
    /// something in `rewrite` and `access` only.
    Identify(Arc<Consumer>),
    /// To be asked again once the request's body is there: whole in [`Stream::request_body`](crate::stream::Stream::request_body), or its beginning in
    /// [`Stream::read_ahead`](crate::stream::Stream::read_ahead), as the plugins before this one have made it. Of a request without a
    /// body nothing is there, the body of an upgrade is never read, and the handler is asked again all the same. Means
    /// something in `rewrite` and `access` only.
    ReadBody(ReadBody),
    /// To have another request answer the client in the place of this response (Envoy's `recreateStream`). Where it has no
    /// route, or the client is still sending, the handler is asked again, and the response goes on. Means something in
    /// `header_filter` only.
    Recreate(Box<Recreated>),
}

/// A request in the place of one that has had its response.
pub struct Recreated {
    /// Its head; it has no body.
    pub head: RequestHead,
    /// What is told to the plugins that see its response ([`Stream::answers_for`](crate::stream::Stream::answers_for)).
    pub answers_for: Arc<dyn Any + Send + Sync>,
}

/// How much of the request's body a handler wants before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadBody {
    /// Bytes.
    pub limit: usize,
    /// What becomes of a longer one: it is refused with 413, or its beginning is enough.
    pub on_overflow: Overflow,
}

/// What a handler keeps that has asked for the whole body.
struct BodyAsked;

impl ReadBody {
    /// The whole body, which is refused beyond so many bytes.
    pub fn whole(limit: usize) -> ReadBody {
        ReadBody { limit, on_overflow: Overflow::Refuse }
    }

    /// The step of a handler that goes on with the body alone, when it is asked first: to be asked again, for which it
    /// keeps state in its slot. `None` then, also where nothing was read: of an upgrade.
    pub fn ask<'a>(self, stream: &mut Stream, slot: Slot) -> Option<Step<'a>> {
        if stream.take_state::<BodyAsked>(slot).is_some() {
            return None;
        }
        stream.set_state(slot, BodyAsked);
        Some(Step::ReadBody(self))
    }
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
    /// The plugin encodes the answer by itself, so that the configuration changes neither headers nor body of it, and
    /// gRPC clients get it like all others: CORS preflights in Envoy.
    pub as_it_is: bool,
    /// Envoy's router gives the answer, after it has begun to look for an endpoint: it says how many attempts were
    /// made where the virtual host wants that told (`include_attempt_count_in_response`).
    pub after_attempts: bool,
}

impl LocalReply {
    /// A reply with a text body.
    pub fn new(status: u16, body: impl Into<Bytes>, details: impl Into<Cow<'static, str>>) -> LocalReply {
        LocalReply { status, body: body.into(), details: details.into(), ..LocalReply::default() }
    }
}
