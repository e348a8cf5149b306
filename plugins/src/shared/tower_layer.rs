//! Any [`tower_layer::Layer`] as a plugin.
//!
//! A layer wraps a service and sees the request on its way in and the response on its way out, while a plugin
//! is asked twice. So the layer is put around a gate that stands for everything behind the plugin. In the
//! request phase the layered service is driven until it calls the gate: its changes to the head are taken
//! over and the phases go on. In `header_filter` the response is handed to the gate, and what the layered
//! service makes of it comes back. A layer that does not call the gate answers by itself.
//!
//! What a layer should know: its service is cloned for every request (so limits belong in what clones
//! share); between the two phases nobody polls its future, so a deadline is seen when the response arrives;
//! the request's extensions must be kept, for they tell the gate which request it has got.

mod body;
mod gate;
#[cfg(test)]
mod tests;

pub use body::GateBody;
pub use gate::{Gate, RequestBody};

use body::{Layered, Transform};
use bytes::Bytes;
use gate::Exchange;
use http_body::Body;
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use sixfold_core::headers::Known;
use sixfold_core::plugin::http_head;
use sixfold_core::plugin::{BodyPiece, BodyStep, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tower::util::ServiceExt;
use tower_layer::Layer;
use tower_service::Service;

/// An error of a layered service.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes of an answer that a layer makes by itself.
const MAX_ANSWER: usize = 1 << 20;

type Response = http::Response<Layered>;
type Running = Pin<Box<dyn Future<Output = Result<Response, BoxError>> + Send>>;

/// A foreign layer in a chain.
pub struct TowerLayer<S> {
    name: String,
    service: Mutex<S>,
    status_of: fn(&BoxError) -> u16,
}

/// What is kept of a request between its phases.
struct UnderWay {
    future: Running,
    exchange: Arc<Exchange>,
}

impl<S> TowerLayer<S> {
    /// A plugin of this name that is `layer` around the rest of the chain.
    pub fn new<L: Layer<Gate, Service = S>>(name: impl Into<String>, layer: &L) -> TowerLayer<S> {
        TowerLayer {
            name: name.into(),
            service: Mutex::new(layer.layer(Gate::new())),
            status_of: default_status,
        }
    }

    /// Chooses the status of the answer to a request whose layer fails; by default 504 for an elapsed
    /// timeout, else 500.
    #[must_use]
    pub fn status_of_error(mut self, status_of: fn(&BoxError) -> u16) -> TowerLayer<S> {
        self.status_of = status_of;
        self
    }

    fn failure(&self, error: &BoxError) -> LocalReply {
        tracing::warn!(plugin = self.name, %error, "layer failed");
        LocalReply::new((self.status_of)(error), "", "layer_failed")
    }

    /// The answer of a layer that did not call the gate.
    async fn answer(&self, result: Result<Response, BoxError>) -> LocalReply {
        match result {
            Ok(response) => {
                let (head, body) = response.into_parts();
                match read(body).await {
                    Ok(body) => {
                        let mut reply = LocalReply::new(head.status.as_u16(), body, "layer_answered");
                        reply.headers = http_head::headers(&head.headers);
                        reply
                    }
                    Err(error) => self.failure(&error),
                }
            }
            Err(error) => self.failure(&error),
        }
    }
}

fn default_status(error: &BoxError) -> u16 {
    if error.is::<tower::timeout::error::Elapsed>() { 504 } else { 500 }
}

async fn read(body: Layered) -> Result<Bytes, BoxError> {
    let Layered::Other(mut body) = body else { return Ok(Bytes::new()) };
    let mut out = Vec::new();
    while let Some(frame) = body.frame().await {
        let data = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            Err(error) => return Err(error),
        };
        if out.len() + data.len() > MAX_ANSWER {
            return Err(Box::new(TooLong));
        }
        out.extend_from_slice(&data);
    }
    Ok(out.into())
}

#[derive(Debug, thiserror::Error)]
#[error("the layer's answer is longer than {MAX_ANSWER} bytes")]
struct TooLong;

impl<S, B> TowerLayer<S>
where
    S: Service<http::Request<RequestBody>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn start(&self, request: http::Request<RequestBody>) -> Running {
        let service = self.service.lock().clone();
        Box::pin(async move {
            let response = service.oneshot(request).await.map_err(Into::into)?;
            Ok(response.map(Layered::new))
        })
    }
}

impl<S, B> TowerLayer<S>
where
    S: Service<http::Request<RequestBody>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    /// The plugin.
    pub fn build(self) -> Plugin {
        let plugin = Plugin::of(self).access(Self::access).header_filter(Self::header_filter);
        plugin.response_body(Self::response_body).build()
    }

    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        let before = http_head::request_parts(&stream.request);
        let exchange = Arc::new(Exchange::default());
        let body = Full::new(stream.request_body.clone().unwrap_or_default());
        let mut request = http::Request::from_parts(before.clone(), body);
        request.extensions_mut().insert(exchange.clone());
        let mut future = self.start(request);
        // Most layers go straight to the gate: that needs no future of the phase.
        let mut cx = Context::from_waker(Waker::noop());
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(result) => {
                Step::Wait(Box::pin(async move { Step::Respond(self.answer(result).await) }))
            }
            Poll::Pending => match exchange.take_request() {
                Some(after) => {
                    http_head::apply_request(&mut stream.request, &before, &after);
                    stream.set_state(slot, UnderWay { future, exchange });
                    Step::Continue
                }
                None => Step::Wait(Box::pin(async move {
                    let called = std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
                        Poll::Ready(result) => Poll::Ready(Err(result)),
                        Poll::Pending => {
                            exchange.take_request().map_or(Poll::Pending, |r| Poll::Ready(Ok(r)))
                        }
                    });
                    match called.await {
                        Ok(after) => {
                            http_head::apply_request(&mut stream.request, &before, &after);
                            stream.set_state(slot, UnderWay { future, exchange });
                            Step::Continue
                        }
                        Err(result) => Step::Respond(self.answer(result).await),
                    }
                })),
            },
        }
    }

    fn header_filter<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        let Some(under_way) = stream.take_state::<UnderWay>(slot) else { return Step::Continue };
        let UnderWay { mut future, exchange } = *under_way;
        let mut cx = Context::from_waker(Waker::noop());
        // A deadline that has passed goes before the response.
        let mut polled = future.as_mut().poll(&mut cx);
        let before = http_head::response_parts(&stream.response);
        let (body, feed) = GateBody::new();
        if polled.is_pending() {
            exchange.give(http::Response::from_parts(before.clone(), body));
            polled = future.as_mut().poll(&mut cx);
        }
        match polled {
            Poll::Ready(result) => self.respond(stream, slot, &before, feed, result),
            Poll::Pending => Step::Wait(Box::pin(async move {
                let result = future.await;
                self.respond(stream, slot, &before, feed, result)
            })),
        }
    }

    fn response_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let Some(transform) = stream.state::<Transform>(slot) else { return BodyStep::Pass };
        match transform.pass(piece.data, piece.last) {
            Ok(data) => BodyStep::Replace(data.into()),
            // What is missing must not be taken for the end.
            Err(error) => BodyStep::Respond(Box::new(self.failure(&error))),
        }
    }
}

impl<S> TowerLayer<S> {
    /// Takes the layered response over.
    fn respond<'a>(
        &self,
        stream: &mut Stream,
        slot: Slot,
        before: &http::response::Parts,
        feed: body::Feed,
        result: Result<Response, BoxError>,
    ) -> Step<'a> {
        let response = match result {
            Ok(response) => response,
            Err(error) => return Step::Respond(self.failure(&error)),
        };
        let (after, body) = response.into_parts();
        http_head::apply_response(&mut stream.response, before, &after);
        if let Layered::Other(body) = body {
            let headers = &mut stream.response.headers;
            match body.size_hint().exact() {
                Some(len) => headers.set(Known::CONTENT_LENGTH, len.to_string().as_bytes()),
                None => {
                    headers.remove(Known::CONTENT_LENGTH);
                }
            }
            stream.set_state(slot, Transform::new(body, feed));
        }
        Step::Continue
    }
}
