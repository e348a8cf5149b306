//! A chain as a [`tower_layer::Layer`]: the plugins of a route around any HTTP service.

use super::http_head::{headers, request_head, request_parts, response_parts};
use super::{BodyChunk, Chain, LocalReply, Outcome, Phases};
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
/// and `header_filter`.
#[derive(Clone)]
pub struct ChainLayer {
    chain: Arc<Chain>,
    connection: Arc<Connection>,
}

/// A plugin of the chain needs the whole request body, which a service of unknown body type can't be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a plugin of the chain needs the whole request body")]
pub struct NeedsRequestBody;

impl ChainLayer {
    /// A layer of the chain, for requests that come by `connection`.
    ///
    /// # Errors
    /// [`NeedsRequestBody`]
    pub fn new(chain: Arc<Chain>, connection: Arc<Connection>) -> Result<ChainLayer, NeedsRequestBody> {
        if chain.request_buffer().is_some() {
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
    chain: Arc<Chain>,
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
    for phase in [Phases::REWRITE, Phases::ACCESS, Phases::BEFORE_PROXY] {
        if let Some(reply) = run(&chain, phase, &mut stream).await {
            return Ok(local(chain, stream, reply).await);
        }
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
    if let Some(reply) = run(&chain, Phases::HEADER_FILTER, &mut stream).await {
        return Ok(answer(chain, stream, reply));
    }
    let changed = response_parts(&stream.response);
    (head.status, head.headers) = (changed.status, changed.headers);
    Ok(http::Response::from_parts(head, ChainBody::new(chain, stream, Source::Inner(Box::pin(body)))))
}

/// Runs one phase; a route that is cleared has no other to go on with.
async fn run(chain: &Chain, phase: Phases, stream: &mut Stream) -> Option<LocalReply> {
    let mut from = 0;
    while chain.has(phase) {
        match chain.run(phase, stream, from).await {
            Outcome::Done => break,
            Outcome::Respond(reply) => return Some(reply),
            Outcome::ClearRoute(slot) => from = slot,
        }
    }
    None
}

/// An answer before the service was called: the response phases still run.
async fn local<R: Body>(
    chain: Arc<Chain>,
    mut stream: Stream,
    reply: LocalReply,
) -> http::Response<ChainBody<R>> {
    let body = put(&mut stream, reply);
    if let Some(other) = run(&chain, Phases::HEADER_FILTER, &mut stream).await {
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

/// A response body on its way through `body_filter`; `log` runs when it is dropped.
pub struct ChainBody<R> {
    chain: Arc<Chain>,
    stream: Stream,
    source: Source<R>,
    /// What is kept for plugins that want the body whole, up to their bound.
    whole: Option<(Vec<u8>, usize)>,
    ended: bool,
}

enum Source<R> {
    Inner(Pin<Box<R>>),
    Local(Option<Bytes>),
}

impl<R> ChainBody<R> {
    fn new(chain: Arc<Chain>, stream: Stream, source: Source<R>) -> ChainBody<R> {
        let whole = chain.response_buffer(&stream).map(|limit| (Vec::new(), limit));
        ChainBody { chain, stream, source, whole, ended: false }
    }

    fn filter(&mut self, data: &[u8], last: bool) -> Bytes {
        let mut chunk = BodyChunk { data: data.into(), last };
        self.chain.body_filter(&mut self.stream, &mut chunk);
        self.stream.bytes.response_body += chunk.data.len() as u64;
        Bytes::copy_from_slice(&chunk.data)
    }

    /// What goes on when a piece has arrived: nothing while the body is kept.
    fn piece(&mut self, data: &[u8]) -> Option<Bytes> {
        match &mut self.whole {
            Some((kept, limit)) if kept.len() + data.len() <= *limit => {
                kept.extend_from_slice(data);
                None
            }
            Some((kept, _)) => {
                // Too long to be changed as a whole: it passes as it is.
                let all = [std::mem::take(kept).as_slice(), data].concat();
                self.whole = None;
                Some(self.filter(&all, false))
            }
            None => Some(self.filter(data, false)),
        }
    }

    fn end(&mut self) -> Bytes {
        self.ended = true;
        let kept = self.whole.take().map(|(kept, _)| kept).unwrap_or_default();
        self.filter(&kept, true)
    }
}

impl<R: Body> Body for ChainBody<R> {
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        let this = &mut *self;
        loop {
            if this.ended {
                return Poll::Ready(None);
            }
            let data = match &mut this.source {
                Source::Local(body) => body.take(),
                Source::Inner(body) => match ready!(body.as_mut().poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(mut data) => Some(data.copy_to_bytes(data.remaining())),
                        Err(trailers) => return Poll::Ready(Some(Ok(trailers.map_data(|_| Bytes::new())))),
                    },
                    Some(Err(error)) => {
                        this.ended = true;
                        return Poll::Ready(Some(Err(error)));
                    }
                    None => None,
                },
            };
            let out = match data {
                Some(data) => this.piece(&data),
                None => Some(this.end()),
            };
            if let Some(out) = out.filter(|out| !out.is_empty()) {
                return Poll::Ready(Some(Ok(Frame::data(out))));
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
