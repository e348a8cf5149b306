//! The service at the inside of a layer.

use super::{BoxError, GateBody};
use bytes::Bytes;
use http_body_util::Full;
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tower_service::Service;

/// The body of a request as a layer sees it: whole if a plugin of the chain asked for it, else empty (the
/// body itself streams to the upstream).
pub type RequestBody = Full<Bytes>;

/// Stands for everything behind the plugin.
#[derive(Clone, Debug)]
pub struct Gate {
    _private: (),
}

impl Gate {
    pub(super) fn new() -> Gate {
        Gate { _private: () }
    }
}

/// Where a request and its response are handed over.
#[derive(Default)]
pub(super) struct Exchange {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    request: Option<http::request::Parts>,
    response: Option<http::Response<GateBody>>,
    waker: Option<Waker>,
}

impl Exchange {
    /// The request that the layer has passed on, once.
    pub(super) fn take_request(&self) -> Option<http::request::Parts> {
        self.state.lock().request.take()
    }

    /// Answers the gate.
    pub(super) fn give(&self, response: http::Response<GateBody>) {
        let mut state = self.state.lock();
        state.response = Some(response);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

impl Service<http::Request<RequestBody>> for Gate {
    type Response = http::Response<GateBody>;
    type Error = BoxError;
    type Future = GateFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<RequestBody>) -> GateFuture {
        let (parts, _) = request.into_parts();
        let exchange = parts.extensions.get::<Arc<Exchange>>().cloned();
        if let Some(exchange) = &exchange {
            exchange.state.lock().request = Some(parts);
        }
        GateFuture { exchange }
    }
}

/// The response of what is behind the plugin.
pub struct GateFuture {
    exchange: Option<Arc<Exchange>>,
}

impl Future for GateFuture {
    type Output = Result<http::Response<GateBody>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(exchange) = &self.exchange else {
            return Poll::Ready(Err("the layer dropped the request's extensions".into()));
        };
        let mut state = exchange.state.lock();
        match state.response.take() {
            Some(response) => Poll::Ready(Ok(response)),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
