#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{Alone, finish, now, request_header, response_header, stream};
use std::time::Duration;
use tower::util::{MapRequestLayer, MapResponseLayer};

fn header(value: &str) -> http::HeaderValue {
    value.parse().unwrap()
}

/// A layer written by hand: it adds headers both ways, and answers `/deny` by itself.
#[derive(Clone)]
struct Stamp;

#[derive(Clone)]
struct Stamped<S>(S);

impl<S> Layer<S> for Stamp {
    type Service = Stamped<S>;
    fn layer(&self, inner: S) -> Stamped<S> {
        Stamped(inner)
    }
}

impl<S> Service<http::Request<RequestBody>> for Stamped<S>
where
    S: Service<http::Request<RequestBody>, Response = http::Response<GateBody>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    type Response = http::Response<UnsyncBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: http::Request<RequestBody>) -> Self::Future {
        if request.uri().path() == "/deny" {
            let answer = http::Response::builder().status(403).header("x-why", "path");
            let body = UnsyncBody::new(Full::from("denied").map_err(|never| match never {}));
            return Box::pin(std::future::ready(Ok(answer.body(body).unwrap())));
        }
        request.headers_mut().insert("x-request-stamp", header("in"));
        request.headers_mut().remove("x-secret");
        *request.uri_mut() = "/new?q=1".parse().unwrap();
        let sent = self.0.call(request);
        Box::pin(async move {
            let mut response = sent.await.map_err(Into::into)?;
            *response.status_mut() = http::StatusCode::ACCEPTED;
            response.headers_mut().insert("x-response-stamp", header("out"));
            // In capitals, piece by piece.
            Ok(response.map(|body| {
                UnsyncBody::new(body.map_frame(|f| f.map_data(|d| d.to_ascii_uppercase().into())))
            }))
        })
    }
}

type UnsyncBody = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

fn respond(s: &mut Stream) {
    s.response.status = 200;
    s.response.headers.push(b"Content-Length", b"5");
    s.response.headers.push(b"X-Upstream", b"1");
}

#[tokio::test]
async fn a_hand_written_layer_sees_both_ways() {
    let plugin = Alone::new(TowerLayer::new("stamp", &Stamp).build());
    let mut s = stream("/old", &[("X-Secret", "s"), ("x-kept", "k")]);
    assert!(finish(plugin.access(&mut s)).await.is_none());
    assert_eq!(
        (s.request.target.full(), request_header(&s, "x-request-stamp")),
        (&b"/new?q=1"[..], Some("in"))
    );
    assert_eq!((request_header(&s, "x-secret"), request_header(&s, "x-kept")), (None, Some("k")));
    assert_eq!(s.request.authority, b"example.com");
    respond(&mut s);
    assert!(now(plugin.header_filter(&mut s)).is_none());
    assert_eq!((s.response.status, response_header(&s, "x-response-stamp")), (202, Some("out")));
    assert_eq!((response_header(&s, "x-upstream"), response_header(&s, "content-length")), (Some("1"), None));
    assert_eq!(plugin.response_body(&mut s, &["he", "llo"]), "HELLO");
}

#[tokio::test]
async fn a_layer_may_answer_by_itself() {
    let plugin = Alone::new(TowerLayer::new("stamp", &Stamp).build());
    let mut s = stream("/deny", &[]);
    let reply = finish(plugin.access(&mut s)).await.unwrap();
    assert_eq!((reply.status, &reply.body[..]), (403, &b"denied"[..]));
    assert_eq!(reply.headers.get("x-why"), Some(&b"path"[..]));
    // The answer is nobody's response: the layer does not see it again.
    assert!(now(plugin.header_filter(&mut s)).is_none());
}

#[tokio::test]
async fn towers_own_layers_change_heads_and_leave_the_body_alone() {
    let adds = MapRequestLayer::new(|mut r: http::Request<RequestBody>| {
        r.headers_mut().append("x-a", header("2"));
        r
    });
    let marks = MapResponseLayer::new(|mut r: http::Response<GateBody>| {
        r.headers_mut().insert("x-b", header("1"));
        r
    });
    let plugin = Alone::new(TowerLayer::new("tower", &tower_layer::Stack::new(adds, marks)).build());
    let mut s = stream("/p?x", &[("x-a", "1")]);
    assert!(now(plugin.access(&mut s)).is_none());
    assert_eq!(s.request.headers.get_all("x-a").collect::<Vec<_>>(), [b"1", b"2"]);
    respond(&mut s);
    assert!(now(plugin.header_filter(&mut s)).is_none());
    assert_eq!((response_header(&s, "x-b"), response_header(&s, "content-length")), (Some("1"), Some("5")));
    assert_eq!(plugin.response_body(&mut s, &["hello"]), "hello");
    // Nobody touched this one: its spelling is still the upstream's.
    assert!(s.response.headers.iter().any(|(name, _)| name == b"X-Upstream"));
}

#[tokio::test]
async fn bodies_can_be_replaced() {
    let replaces =
        MapResponseLayer::new(|r: http::Response<GateBody>| r.map(|_| Full::new(Bytes::from("other"))));
    let plugin = Alone::new(TowerLayer::new("replace", &replaces).build());
    let mut s = stream("/", &[]);
    now(plugin.access(&mut s));
    respond(&mut s);
    now(plugin.header_filter(&mut s));
    assert_eq!(response_header(&s, "content-length"), Some("5"));
    assert_eq!(plugin.response_body(&mut s, &["he", "llo"]), "other");
}

#[tokio::test(start_paused = true)]
async fn late_responses_are_timed_out() {
    let plugin = Alone::new(
        TowerLayer::new("timeout", &tower::timeout::TimeoutLayer::new(Duration::from_secs(1))).build(),
    );
    for (wait, status) in [(500, None), (1500, Some(504))] {
        let mut s = stream("/", &[]);
        assert!(finish(plugin.access(&mut s)).await.is_none());
        tokio::time::sleep(Duration::from_millis(wait)).await;
        respond(&mut s);
        assert_eq!(finish(plugin.header_filter(&mut s)).await.map(|r| r.status), status);
    }
}

/// Waits before it goes on, longer than the timeout around it allows.
#[tokio::test(start_paused = true)]
async fn layers_may_wait_before_the_gate() {
    use tower::util::AndThenLayer;
    let slow = |seconds| {
        tower_layer::layer_fn(move |gate: Gate| {
            tower::service_fn(move |request: http::Request<RequestBody>| {
                let mut gate = gate.clone();
                async move {
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    gate.call(request).await
                }
            })
        })
    };
    let same = AndThenLayer::new(|r: http::Response<GateBody>| async { Ok::<_, BoxError>(r) });
    let timeout = tower::timeout::TimeoutLayer::new(Duration::from_secs(2));
    for (seconds, status) in [(1, None), (3, Some(418))] {
        let layers =
            tower_layer::Stack::new(slow(seconds), tower_layer::Stack::new(same.clone(), timeout.clone()));
        let plugin = Alone::new(TowerLayer::new("slow", &layers).status_of_error(|_| 418).build());
        let reply = finish(plugin.access(&mut stream("/", &[]))).await;
        assert_eq!(reply.map(|r| r.status), status);
    }
}

#[tokio::test]
async fn targets_that_no_uri_holds_stay_as_they_are() {
    let plugin =
        Alone::new(TowerLayer::new("same", &MapRequestLayer::new(|r: http::Request<RequestBody>| r)).build());
    let mut s = stream("/a\"<b>\x7f", &[]);
    now(plugin.access(&mut s));
    assert_eq!(s.request.target.full(), b"/a\"<b>\x7f");
}

#[tokio::test]
async fn lost_extensions_are_an_error() {
    let loses =
        MapRequestLayer::new(|_: http::Request<RequestBody>| http::Request::new(RequestBody::default()));
    let plugin = Alone::new(TowerLayer::new("loses", &loses).build());
    assert_eq!(finish(plugin.access(&mut stream("/", &[]))).await.unwrap().status, 500);
}
