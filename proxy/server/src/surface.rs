//! Small HTTP servers for administration, status and metrics, on a thread of their own.
//!
//! An answer that is quick is given on that thread; one that has much to put together (statistics of
//! thousands of clusters) is made on another, so that a readiness probe never waits for it.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

/// Connections served at once; more wait in the accept queue.
const MOST_CONNECTIONS: usize = 512;

/// How long a client may take for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A request without its body, which no command has.
#[derive(Debug, Clone)]
pub struct Query {
    /// Method.
    pub method: Method,
    /// Path without the query.
    pub path: String,
    /// Parameters in order, decoded.
    pub parameters: Vec<(String, String)>,
    /// Headers.
    pub headers: HeaderMap,
}

impl Query {
    fn new<B>(request: &Request<B>) -> Query {
        let decode = |text: &str| {
            let spaced = text.replace('+', " ");
            percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
        };
        let parameters = request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Query {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            parameters: parameters
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (decode(name), decode(value)))
                .collect(),
            headers: request.headers().clone(),
        }
    }

    /// The first value of a parameter; empty for one without `=`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Whether a parameter is there, with any value.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code.
    pub status: StatusCode,
    /// `content-type`
    pub content_type: &'static str,
    /// Body.
    pub body: Bytes,
    /// Further headers.
    pub headers: Vec<(header::HeaderName, HeaderValue)>,
    /// Sends the body in chunks, as Envoy's administration does.
    pub chunked: bool,
}

impl Reply {
    /// An answer with a text body.
    pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
        let content_type = "text/plain; charset=UTF-8";
        Reply { status, content_type, body: body.into(), headers: Vec::new(), chunked: false }
    }

    /// An answer with a JSON body.
    pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Reply {
        Reply { content_type: "application/json", ..Reply::text(status, body) }
    }

    fn into_response(self) -> Response<Payload> {
        let mut response = Response::new(Payload { data: Some(self.body), chunked: self.chunked });
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.extend(self.headers);
        response
    }
}

/// Answers the requests of one server.
pub trait Answer: Send + Sync + 'static {
    /// The answer, when it is quick to give; called on the server's thread.
    fn at_once(&self, query: &Query) -> Option<Reply>;

    /// Any other answer; called on a thread that may be busy for a while.
    fn answer(&self, query: &Query) -> Reply;
}

/// A running server; it stops when this is dropped.
#[derive(Debug)]
pub struct Surface {
    /// Where it listens.
    pub address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Surface {
    /// Starts a server on a thread called `name`. Port 0 takes a free one.
    ///
    /// # Errors
    /// When the address can't be bound or the thread not be started.
    pub fn start(name: &str, address: SocketAddr, answer: Arc<dyn Answer>) -> io::Result<Surface> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .thread_keep_alive(Duration::from_secs(1))
            .build()?;
        let (stop, stopped) = oneshot::channel();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = accept(listener, answer) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Surface { address, _stop: stop })
    }
}

async fn accept(listener: TcpListener, answer: Arc<dyn Answer>) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, say: goes on when some are free again.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request: Request<Incoming>| {
                let answer = answer.clone();
                async move { Ok::<_, Infallible>(respond(answer, &request).await) }
            });
            // A client that breaks off or talks nonsense concerns nobody else.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(place);
        });
    }
}

async fn respond(answer: Arc<dyn Answer>, request: &Request<Incoming>) -> Response<Payload> {
    let query = Query::new(request);
    // What takes long runs beside this thread, which must go on answering `/ready`.
    #[allow(clippy::disallowed_methods)]
    let reply = match answer.at_once(&query) {
        Some(reply) => reply,
        None => tokio::task::spawn_blocking(move || answer.answer(&query))
            .await
            .unwrap_or_else(|_| Reply::text(StatusCode::INTERNAL_SERVER_ERROR, "the command failed\n")),
    };
    reply.into_response()
}

/// A body in one piece, with or without its length.
struct Payload {
    data: Option<Bytes>,
    chunked: bool,
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.data.take().filter(|data| !data.is_empty()).map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        !self.chunked && self.data.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match &self.data {
            Some(data) if !self.chunked => http_body::SizeHint::with_exact(data.len() as u64),
            _ => http_body::SizeHint::default(),
        }
    }
}
