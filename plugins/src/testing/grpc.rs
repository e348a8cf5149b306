//! gRPC services for tests.

use super::context;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use sixfold_core::headers::Headers;
use sixfold_core::plugin::{
    BuildContext, Callout, CalloutError, CalloutFuture, CalloutRequest, CalloutStream, CalloutStreamFuture,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What a service does with a message.
pub(crate) enum Reply {
    /// Sends one back.
    Message(Vec<u8>),
    /// Ends the call with this status.
    Status(u32),
    /// Nothing.
    Silence,
    /// The connection goes.
    Cut,
}

type Answer = Box<dyn FnMut(&[u8]) -> Reply + Send>;

/// A service that answers each message, and keeps what it was sent.
pub(crate) struct GrpcService {
    answer: Mutex<Answer>,
    /// Path, headers, time and messages of each call.
    pub(crate) calls: Mutex<Vec<Call>>,
}

pub(crate) struct Call {
    pub(crate) path: String,
    pub(crate) headers: Headers,
    pub(crate) timeout: Duration,
    pub(crate) messages: Vec<Bytes>,
}

impl GrpcService {
    pub(crate) fn new(answer: impl FnMut(&[u8]) -> Reply + Send + 'static) -> Arc<GrpcService> {
        Arc::new(GrpcService { answer: Mutex::new(Box::new(answer)), calls: Mutex::default() })
    }

    /// A context in which the service is called, whatever the cluster.
    pub(crate) fn context(self: &Arc<Self>) -> BuildContext {
        BuildContext { callout: Arc::new(Caller(self.clone())), scope: "http.h.".into(), ..context() }
    }
}

struct Caller(Arc<GrpcService>);

impl Callout for Caller {
    fn send(&self, _: CalloutRequest) -> CalloutFuture {
        Box::pin(async { Err(CalloutError::Failed("not over gRPC".to_owned())) })
    }

    fn open(&self, request: CalloutRequest) -> CalloutStreamFuture {
        let service = self.0.clone();
        Box::pin(async move {
            tokio::task::yield_now().await;
            let path = request.uri.splitn(4, '/').nth(3).map(|path| format!("/{path}")).unwrap_or_default();
            let mut calls = service.calls.lock();
            let call = calls.len();
            let CalloutRequest { headers, timeout, .. } = request;
            calls.push(Call { path, headers, timeout, messages: Vec::new() });
            drop(calls);
            let mut head = Headers::new();
            head.append("content-type", b"application/grpc");
            let stream = Stream {
                service,
                call,
                received: BytesMut::new(),
                replies: VecDeque::new(),
                ended: None,
                head,
                trailers: Headers::new(),
                waker: None,
            };
            Ok(Box::new(stream) as Box<dyn CalloutStream>)
        })
    }
}

struct Stream {
    service: Arc<GrpcService>,
    call: usize,
    received: BytesMut,
    replies: VecDeque<Bytes>,
    /// How it ends; `None` is by a cut.
    ended: Option<Option<u32>>,
    head: Headers,
    trailers: Headers,
    waker: Option<Waker>,
}

impl Stream {
    fn take(&mut self, message: Bytes) {
        let reply = (self.service.answer.lock())(&message);
        self.service.calls.lock()[self.call].messages.push(message);
        match reply {
            Reply::Message(bytes) => {
                let mut piece = BytesMut::new();
                piece.put_u8(0);
                piece.put_u32(bytes.len() as u32);
                piece.put_slice(&bytes);
                self.replies.push_back(piece.freeze());
            }
            Reply::Status(code) => self.ended = Some(Some(code)),
            Reply::Cut => self.ended = Some(None),
            Reply::Silence => {}
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl CalloutStream for Stream {
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, piece: Bytes) {
        self.received.extend_from_slice(&piece);
        while let Some((head, rest)) = self.received.split_first_chunk::<5>() {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if rest.len() < length {
                break;
            }
            self.received.advance(5);
            let message = self.received.split_to(length).freeze();
            self.take(message);
        }
    }

    fn finish(&mut self) {
        self.ended.get_or_insert(Some(0));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll_head(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        Poll::Ready(Ok(()))
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, CalloutError>> {
        if let Some(piece) = self.replies.pop_front() {
            return Poll::Ready(Ok(Some(piece)));
        }
        match self.ended {
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(None) => Poll::Ready(Err(CalloutError::Failed("cut".to_owned()))),
            Some(Some(code)) => {
                self.trailers.set("grpc-status", code.to_string().as_bytes());
                Poll::Ready(Ok(None))
            }
        }
    }

    fn status(&self) -> u16 {
        200
    }

    fn headers(&self) -> &Headers {
        &self.head
    }

    fn trailers(&self) -> &Headers {
        &self.trailers
    }
}
