#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::plugin::{BodyPiece, BodyStep, ChainBuilder, Plugin, Slot, Step};
use crate::stream::fixture::stream;
use parking_lot::Mutex;
use std::convert::Infallible;
use std::task::Waker;
use tower_layer::Layer;
use tower_service::Service;

/// Marks what it sees, phase by phase.
#[derive(Default)]
struct Marks {
    deny: bool,
    whole: Option<usize>,
    logged: Arc<Mutex<Vec<String>>>,
}

impl Marks {
    fn plugin(self) -> Plugin {
        let phases = Plugin::of(self).rewrite(Marks::rewrite).access(Marks::access);
        phases.header_filter(Marks::header_filter).response_body(Marks::body).log(Marks::log).build()
    }
    fn rewrite(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        stream.request.target.set(b"/new?x=1");
        stream.request.headers.set("x-rewrite", b"1");
        Step::Continue
    }
    fn access(&self, _: &mut Stream, _: Slot) -> Step<'_> {
        if self.deny { Step::Respond(LocalReply::new(403, "no", "")) } else { Step::Continue }
    }
    fn header_filter(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        stream.response.headers.set("x-filter", b"1");
        stream.response.headers.remove("x-gone");
        Step::Continue
    }
    fn body(&self, _: &mut Stream, _: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        match self.whole {
            Some(limit) if !piece.last => BodyStep::hold(limit),
            _ => BodyStep::Replace([piece.data, if piece.last { b"." } else { b"," }].concat().into()),
        }
    }
    fn log(&self, stream: &mut Stream, _: Slot) {
        self.logged.lock().push(format!("{} {}", stream.response.status, stream.bytes.response_body));
    }
}

/// A body of pieces.
struct Pieces(Vec<&'static str>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.0.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(self.0.remove(0))))))
    }
}

/// Answers with what it was asked.
#[derive(Clone)]
struct Upstream;

impl Service<http::Request<&'static str>> for Upstream {
    type Response = http::Response<Pieces>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: http::Request<&'static str>) -> Self::Future {
        let seen = format!(
            "{} {} {:?}",
            request.method(),
            request.uri(),
            request.headers().get("x-rewrite").unwrap()
        );
        let builder = http::Response::builder().status(201).header("x-seen", seen).header("x-gone", "1");
        std::future::ready(Ok(builder.body(Pieces(vec!["a", "b"])).unwrap()))
    }
}

fn now<F: Future>(future: F) -> F::Output {
    match Box::pin(future).as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

fn send(marks: Marks) -> (http::response::Parts, String) {
    let mut builder = ChainBuilder::new();
    builder.add("marks", marks.plugin());
    let connection = stream("/", &[]).connection;
    let layer = ChainLayer::new(Arc::new(builder.build()), connection).unwrap();
    let request = http::Request::builder().uri("http://h.test/old").body("body").unwrap();
    let (parts, body) = now(layer.layer(Upstream).call(request)).unwrap().into_parts();
    let (mut body, mut text) = (Box::pin(body), String::new());
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
        text.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
    }
    (parts, text)
}

#[test]
fn every_phase_runs_around_the_service() {
    let logged = Arc::new(Mutex::new(Vec::new()));
    let (head, body) = send(Marks { logged: logged.clone(), ..Marks::default() });
    assert_eq!((head.status.as_u16(), body.as_str()), (201, "a,b,."));
    assert_eq!(head.headers["x-seen"], "GET /new?x=1 \"1\"");
    assert_eq!((head.headers.get("x-gone"), head.headers["x-filter"].as_bytes()), (None, &b"1"[..]));
    assert_eq!(*logged.lock(), ["201 5"]);
}

#[test]
fn answers_of_plugins_pass_the_response_phases() {
    let (head, body) = send(Marks { deny: true, ..Marks::default() });
    assert_eq!((head.status.as_u16(), body.as_str()), (403, "no,."));
    assert!(head.headers.contains_key("x-filter") && !head.headers.contains_key("x-seen"));
}

#[test]
fn a_body_that_outgrows_what_a_plugin_holds_passes_it() {
    assert_eq!(send(Marks { whole: Some(2), ..Marks::default() }).1, "ab.");
    assert_eq!(send(Marks { whole: Some(1), ..Marks::default() }).1, "ab");
}

#[test]
fn chains_that_read_the_request_body_are_refused() {
    let mut builder = ChainBuilder::new();
    builder.add("wants", Plugin::of(()).request_body(|(), _, _, _| BodyStep::Pass).build());
    let layer = ChainLayer::new(Arc::new(builder.build()), stream("/", &[]).connection);
    assert_eq!(layer.err(), Some(NeedsRequestBody));
}
