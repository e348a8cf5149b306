//! Streams and contexts for tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use parking_lot::Mutex;
use serde_json::Value;
use sixfold_core::connection::Connection;
use sixfold_core::metrics;
use sixfold_core::plugin::{
    BodyChunk, BuildContext, Callout, CalloutError, CalloutFuture, CalloutRequest, CalloutResponse,
    LocalReply, Plugin, SharedState, Step,
};
use sixfold_core::stream::Stream;
use std::sync::Arc;

/// A request from 10.1.2.3 for `example.com`.
pub(crate) fn stream(target: &str, headers: &[(&str, &str)]) -> Stream {
    let (client, own) = (([10, 1, 2, 3], 4000).into(), ([127, 0, 0, 1], 9080).into());
    let mut stream = Stream::new(Arc::new(Connection::plain(client, own)));
    stream.request.authority = b"example.com".to_vec();
    stream.request.target.set(target.as_bytes());
    for (name, value) in headers {
        stream.request.headers.push(name.as_bytes(), value.as_bytes());
    }
    stream
}

/// A service that answers what it is told and keeps what it was asked.
pub(crate) struct Service {
    pub(crate) answer: Mutex<Option<CalloutResponse>>,
    pub(crate) asked: Mutex<Vec<CalloutRequest>>,
}

impl Callout for Service {
    fn send(&self, request: CalloutRequest) -> CalloutFuture {
        self.asked.lock().push(request);
        let answer = self.answer.lock().take();
        Box::pin(async move {
            // Not at once: the plugin has to wait.
            tokio::task::yield_now().await;
            answer.ok_or(CalloutError::Timeout)
        })
    }
}

/// A context whose callouts get `answer` once, then time out.
pub(crate) fn context_with(answer: Option<CalloutResponse>) -> (BuildContext, Arc<Service>) {
    let service = Arc::new(Service { answer: Mutex::new(answer), asked: Mutex::new(Vec::new()) });
    let context = BuildContext {
        callout: service.clone(),
        metrics: metrics::Registry::new(),
        shared: Arc::new(SharedState::default()),
        resource: "/apisix/routes/1".into(),
        attributes: Arc::new(Value::Null),
    };
    (context, service)
}

/// A context without a service.
pub(crate) fn context() -> BuildContext {
    context_with(None).0
}

/// A plugin of the registry.
pub(crate) fn build(name: &str, config: &Value, context: &BuildContext) -> Result<Arc<dyn Plugin>, String> {
    crate::registry().get(name).unwrap().build(config, context)
}

/// A plugin of the registry in a fresh context.
pub(crate) fn plugin(name: &str, config: &Value) -> Arc<dyn Plugin> {
    build(name, config, &context()).unwrap()
}

/// Runs a step to its end; an answer if it gives one.
pub(crate) async fn finish(mut step: Step<'_>) -> Option<LocalReply> {
    loop {
        match step {
            Step::Continue => return None,
            Step::Respond(reply) => return Some(reply),
            Step::ClearRoute => panic!("route cleared"),
            Step::Wait(future) => step = future.await,
        }
    }
}

/// The end of a step that does not wait.
pub(crate) fn now(step: Step<'_>) -> Option<LocalReply> {
    match step {
        Step::Continue => None,
        Step::Respond(reply) => Some(reply),
        _ => panic!("it waits"),
    }
}

/// What a body of these pieces becomes.
pub(crate) fn filter_body(plugin: &dyn Plugin, stream: &mut Stream, pieces: &[&str]) -> String {
    let mut out = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        let mut chunk = BodyChunk { data: piece.as_bytes().into(), last: i + 1 == pieces.len() };
        plugin.body_filter(stream, 0, &mut chunk);
        out.extend_from_slice(&chunk.data);
    }
    String::from_utf8(out).unwrap()
}

/// A response header as text.
pub(crate) fn response_header<'a>(stream: &'a Stream, name: &str) -> Option<&'a str> {
    stream.response.headers.get_str(name)
}

/// A request header as text.
pub(crate) fn request_header<'a>(stream: &'a Stream, name: &str) -> Option<&'a str> {
    stream.request.headers.get_str(name)
}
