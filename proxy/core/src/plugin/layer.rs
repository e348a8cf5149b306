//! A chain as a [`tower_layer::Layer`]: the plugins of a route around any HTTP service.

use super::http_head::{header_map, headers, request_head, request_parts, response_parts};
use super::{BodyFilters, Chain, Direction, Filtered, HeadPhase, LocalReply, Outcome, Passed, RequestPhases};
use crate::connection::Connection;
use crate::headers::Known;
use crate::stream::{ResponseSource, Stream};
use bytes::{Buf, Bytes};
use http_body::{Body, Frame};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Instant, SystemTime};

/// Puts a chain around a service. The service stands for the upstream: it is called between `before_proxy`
/// and `header_filter`. A plugin that asks for the request's body ([`Step::ReadBody`](super::Step::ReadBody)) has the
/// request answered with 500.
#[derive(Clone)]
pub struct ChainLayer {
    chain: Arc<Chain>,
    connection: Arc<Connection>,
}

/// A plugin of the chain reads the request body, which a service of unknown body type can't be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a plugin of the chain reads the request body")]
pub struct NeedsRequestBody;

impl ChainLayer {
    /// A layer of the chain, for requests that come by `connection`.
    ///
    /// # Errors
    /// [`NeedsRequestBody`]
    pub fn new(chain: Arc<Chain>, connection: Arc<Connection>) -> Result<ChainLayer, NeedsRequestBody> {
        if chain.filters(Direction::Request) {
            Err(NeedsRequestBody)
        } else {
            Ok(ChainLayer { chain, connection })
        }
    }
}

impl<S> tower_layer::Layer<S> for ChainLayer {
    type Service = ChainService<S>;

    fn layer(&self, inner: S) -> ChainService<S> {
        ChainService { layer: self.clone(), inner }
    }
}

/// A service with a chain around it.
#[derive(Clone)]
pub struct ChainService<S> {
    layer: ChainLayer,
    inner: S,
}

impl<S, B, R> tower_service::Service<http::Request<B>> for ChainService<S>
where
    S: tower_service::Service<http::Request<B>, Response = http::Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Body + Send + 'static,
{
    type Response = http::Response<ChainBody<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        // The service that is ready goes with the request.
        let fresh = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, fresh);
        let ChainLayer { chain, connection } = self.layer.clone();
        Box::pin(exchange(chain, connection, inner, request))
    }
}

async fn exchange<S, B, R>(
    mut chain: Arc<Chain>,
    connection: Arc<Connection>,
    mut inner: S,
    request: http::Request<B>,
) -> Result<http::Response<ChainBody<R>>, S::Error>
where
    S: tower_service::Service<http::Request<B>, Response = http::Response<R>>,
    R: Body,
{
    let (mut parts, body) = request.into_parts();
    let mut stream = Stream::new(connection);
    stream.request = request_head(&parts);
    stream.start_time = SystemTime::now();
    stream.timing.start = Instant::now();
    let before = request_parts(&stream.request);
    if let Some(reply) = request_phases(&mut chain, &mut stream).await {
        return Ok(local(chain, stream, reply).await);
    }
    let after = request_parts(&stream.request);
    if before.uri != after.uri {
        parts.uri = after.uri;
    }
    (parts.method, parts.headers) = (after.method, after.headers);
    let (mut head, body) = inner.call(http::Request::from_parts(parts, body)).await?.into_parts();

    stream.source = ResponseSource::Upstream;
    stream.response.status = head.status.as_u16();
    stream.response.version = stream.request.version;
    stream.response.headers = headers(&head.headers);
    if let Outcome::Respond(reply) = chain.run(HeadPhase::HeaderFilter, &mut stream).await {
        return Ok(answer(chain, stream, reply));
    }
    let changed = response_parts(&stream.response);
    (head.status, head.headers) = (changed.status, changed.headers);
    Ok(http::Response::from_parts(head, ChainBody::new(chain, stream, Source::Inner(Box::pin(body)))))
}

/// Runs the phases before the service. A route that is cleared has no other to go on with.
async fn request_phases(chain: &mut Arc<Chain>, stream: &mut Stream) -> Option<LocalReply> {
    let mut phases = RequestPhases::default();
    loop {
        match phases.run(chain, stream).await {
            Passed::Done => break,
            Passed::Respond(reply) => return Some(reply),
            Passed::ClearRoute => {}
            Passed::Identified if chain.filters(Direction::Request) => {
                return Some(LocalReply::new(500, "", "consumer_plugin_reads_request_body"));
            }
            Passed::Identified => {}
            Passed::ReadBody(_) => return Some(LocalReply::new(500, "", "plugin_reads_request_body")),
        }
    }
    match chain.run(HeadPhase::BeforeProxy, stream).await {
        Outcome::Respond(reply) => Some(reply),
        _ => None,
    }
}

/// An answer before the service was called: the response phases still run.
async fn local<R: Body>(
    chain: Arc<Chain>,
    mut stream: Stream,
    reply: LocalReply,
) -> http::Response<ChainBody<R>> {
    let body = put(&mut stream, reply);
    if let Outcome::Respond(other) = chain.run(HeadPhase::HeaderFilter, &mut stream).await {
        return answer(chain, stream, other);
    }
    respond(chain, stream, body)
}

fn answer<R: Body>(chain: Arc<Chain>, mut stream: Stream, reply: LocalReply) -> http::Response<ChainBody<R>> {
    let body = put(&mut stream, reply);
    respond(chain, stream, body)
}

fn put(stream: &mut Stream, reply: LocalReply) -> Bytes {
    stream.source = ResponseSource::Gateway;
    stream.response.clear();
    stream.response.status = reply.status;
    stream.response.headers = reply.headers;
    if !reply.body.is_empty() {
        stream.response.headers.set_if_absent(Known::CONTENT_TYPE, b"text/plain");
    }
    reply.body
}

fn respond<R: Body>(chain: Arc<Chain>, stream: Stream, body: Bytes) -> http::Response<ChainBody<R>> {
    let mut response = http::Response::new(());
    let head = response_parts(&stream.response);
    (*response.status_mut(), *response.headers_mut()) = (head.status, head.headers);
    let (parts, ()) = response.into_parts();
    http::Response::from_parts(parts, ChainBody::new(chain, stream, Source::Local(Some(body))))
}

/// A response body on its way through the chain; `log` runs when it is dropped.
pub struct ChainBody<R> {
    chain: Arc<Chain>,
    stream: Stream,
    source: Source<R>,
    filters: BodyFilters,
    stage: Stage,
}

enum Source<R> {
    Inner(Pin<Box<R>>),
    Local(Option<Bytes>),
}

/// How far the response is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Body,
    /// The last piece is in the filters.
    End,
    Trailers,
    Over,
}

/// Why a body that went through a chain ended early.
#[derive(Debug, thiserror::Error)]
pub enum ChainBodyError<E> {
    /// The service's own body failed.
    #[error(transparent)]
    Service(E),
    /// A plugin refused it after its head had gone out.
    #[error("a plugin refused the response: {0}")]
    Refused(std::borrow::Cow<'static, str>),
}

/// The reason given when a plugin can't hold as much as it must.
const TOO_LONG: &str = "response_payload_too_large";

impl<R> ChainBody<R> {
    fn new(chain: Arc<Chain>, stream: Stream, source: Source<R>) -> ChainBody<R> {
        let filters = BodyFilters::new(Direction::Response);
        ChainBody { chain, stream, source, filters, stage: Stage::Body }
    }

    /// What the filters made of a piece.
    fn passed<E>(&mut self, filtered: Filtered, piece: &Bytes) -> Result<Bytes, ChainBodyError<E>> {
        let data = match filtered {
            Filtered::Same => piece.clone(),
            Filtered::Data(data) => data,
            Filtered::Waiting => return Ok(Bytes::new()),
            Filtered::Respond(reply) => return self.refused(reply.details),
            Filtered::TooLong | Filtered::OverBudget => return self.refused(TOO_LONG.into()),
        };
        if self.stage == Stage::End {
            self.stage = Stage::Trailers;
        }
        self.stream.bytes.response_body += data.len() as u64;
        Ok(data)
    }

    fn refused<E>(&mut self, details: std::borrow::Cow<'static, str>) -> Result<Bytes, ChainBodyError<E>> {
        self.stage = Stage::Over;
        Err(ChainBodyError::Refused(details))
    }
}

impl<R: Body> ChainBody<R> {
    /// The next piece of the service's body or of an answer; `None` at its end.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, R::Error>>> {
        let body = match &mut self.source {
            Source::Local(body) => return Poll::Ready(body.take().map(Ok)),
            Source::Inner(body) => body,
        };
        loop {
            match ready!(body.as_mut().poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(mut data) => return Poll::Ready(Some(Ok(data.copy_to_bytes(data.remaining())))),
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.stream.response_trailers = headers(&trailers);
                        }
                    }
                },
            }
        }
    }
}

impl<R: Body> Body for ChainBody<R> {
    type Data = Bytes;
    type Error = ChainBodyError<R::Error>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        loop {
            let (filtered, piece) = match this.stage {
                Stage::Over => return Poll::Ready(None),
                Stage::Trailers => {
                    let refused = ready!(this.filters.poll_trailers(&this.chain, &mut this.stream, cx));
                    this.stage = Stage::Over;
                    if let Some(reply) = refused {
                        return Poll::Ready(Some(Err(ChainBodyError::Refused(reply.details))));
                    }
                    if this.stream.response_trailers.is_empty() {
                        return Poll::Ready(None);
                    }
                    return Poll::Ready(Some(Ok(Frame::trailers(header_map(
                        &this.stream.response_trailers,
                    )))));
                }
                _ if this.filters.is_waiting() => {
                    (ready!(this.filters.poll(&this.chain, &mut this.stream, cx)), Bytes::new())
                }
                _ => {
                    let piece = match ready!(this.poll_source(cx)).transpose() {
                        Ok(piece) => piece,
                        Err(error) => {
                            this.stage = Stage::Over;
                            return Poll::Ready(Some(Err(ChainBodyError::Service(error))));
                        }
                    };
                    let last = piece.is_none();
                    if last {
                        this.stage = Stage::End;
                    }
                    let piece = piece.unwrap_or_default();
                    (this.filters.push(&this.chain, &mut this.stream, &piece, last), piece)
                }
            };
            match this.passed(filtered, &piece) {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

impl<R> Drop for ChainBody<R> {
    fn drop(&mut self) {
        self.chain.log(&mut self.stream);
    }
}

#[cfg(test)]
mod tests;
