//! Small HTTP servers for administration, status and metrics, on a thread of their own.
//!
//! An answer that is quick is given on that thread; one that has much to put together (statistics of
//! thousands of clusters) is made on another, so that a readiness probe never waits for it. What is written while it
//! is sent has a thread to itself (`pages`).

mod connections;
mod listening;
mod pages;
mod turns;
mod wire;

use bytes::Bytes;
use connections::{Activity, Doing, Place, Places, Serving, Watched};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
pub use listening::Surface;
use listening::{Counter, Mode};
pub use pages::WriteBody;
use pages::{Pages, Piece};
use sixfold_core::tls::ServerContext;
use std::convert::Infallible;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use turns::Turns;
use wire::Wire;

/// How long a client may take for the head of a request, and for a form.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take for a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a connection without a request has for one, when its server is to take no more.
const LAST_REQUEST: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 1 });

/// Bytes of a body beyond what is wanted that are read for nothing, at most.
const MAX_PASSED: u64 = 16 << 20;

/// The longest form of a request, in bytes. A longer one is as if it were not there.
const MAX_FORM: usize = 64 << 10;

/// Threads that give answers which are not quick, at most.
const THREADS: usize = 4;

/// A request: a form has become its parameters, and a body is read for who wants one.
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
    /// The client.
    pub peer: SocketAddr,
    /// The body for who [wants one](Answer::max_body), empty for others; how long it is, as far as that is known, if it is
    /// longer.
    pub body: Result<Bytes, u64>,
}

impl Query {
    fn new<B>(request: &Request<B>, peer: SocketAddr) -> Query {
        Query {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            parameters: parameters(request.uri().query().unwrap_or_default()),
            headers: request.headers().clone(),
            peer,
            body: Ok(Bytes::new()),
        }
    }

    /// Whether its parameters are in its body: a form that is posted says what the target does not (Envoy's
    /// `AdminFilter::queryParams`).
    fn is_form(&self) -> bool {
        let kind = self.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        self.method == Method::POST
            && self.parameters.is_empty()
            && kind == Some(b"application/x-www-form-urlencoded".as_slice())
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

/// The parameters of a query or a form, decoded.
fn parameters(text: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
    };
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(name, value)| (decode(name), decode(value))).collect()
}

/// A body.
pub enum Content {
    /// In one piece.
    Whole(Bytes),
    /// Written while it is sent, on a thread that may be busy for a while: a page of every statistic is never
    /// in memory as a whole.
    Written(WriteBody),
}

/// An answer.
pub struct Reply {
    /// Status code.
    pub status: StatusCode,
    /// `content-type`
    pub content_type: &'static str,
    /// Body.
    pub body: Content,
    /// Further headers.
    pub headers: Vec<(header::HeaderName, HeaderValue)>,
    /// Sends the body in chunks, as Envoy's administration does.
    pub chunked: bool,
}

impl Reply {
    /// An answer with a text body.
    pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
        let content_type = "text/plain; charset=UTF-8";
        let body = Content::Whole(body.into());
        Reply { status, content_type, body, headers: Vec::new(), chunked: false }
    }

    /// An answer with a text body that is written while it is sent.
    pub fn written(write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static) -> Reply {
        let body = Content::Written(Box::new(write));
        Reply { body, chunked: true, ..Reply::text(StatusCode::OK, "") }
    }

    /// An answer with a JSON body.
    pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Reply {
        Reply { content_type: "application/json", ..Reply::text(status, body) }
    }

    async fn into_response(self, makers: &Makers, busy: &Activity) -> Response<Payload> {
        let payload = match self.body {
            Content::Whole(data) => Payload::Whole { data: Some(data), chunked: self.chunked },
            Content::Written(write) => {
                busy.turns_to(Doing::AwaitsTurn);
                let turn = makers.pages.turn().await;
                busy.turns_to(Doing::Works);
                match makers.pages.write(turn, write) {
                    Ok(pieces) => Payload::Pieces(pieces),
                    Err(error) => return unwritten(&error),
                }
            }
        };
        let mut response = Response::new(payload);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.extend(self.headers);
        response
    }
}

/// The answer when there is nobody to write another.
fn unwritten(error: &io::Error) -> Response<Payload> {
    let text = format!("the page can't be written: {error}\n");
    let mut response = Response::new(Payload::Whole { data: Some(text.into()), chunked: false });
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

/// A request whose answer has been sent, or given up.
pub struct Answered {
    /// The client.
    pub remote: SocketAddr,
    /// Where it came to.
    pub local: SocketAddr,
    /// Its method, version and headers, without a body.
    pub request: Request<()>,
    /// When it had come.
    pub start: std::time::Instant,
    /// Status code of the answer.
    pub status: StatusCode,
    /// Bytes of its body that were handed over.
    pub sent: u64,
}

/// Answers the requests of one server.
pub trait Answer: Send + Sync + 'static {
    /// The answer, when it is quick to give; called on the server's thread.
    fn at_once(&self, query: &Query) -> Option<Reply>;

    /// Any other answer; called on a thread that may be busy for a while.
    fn answer(&self, query: &Query) -> Reply;

    /// The answer to a request whose head alone is enough for one, such as a client that may not ask at all: its body is
    /// not read. Asked only where there is a [`Answer::max_body`]; called on the server's thread.
    fn turned_away(&self, _: &Query) -> Option<Reply> {
        None
    }

    /// The longest body that is wanted, in bytes; `None` for none at all. Forms are no parameters then.
    fn max_body(&self) -> Option<usize> {
        None
    }

    /// How many answers may be made at the same time by [`Answer::answer`].
    fn threads(&self) -> usize {
        THREADS
    }

    /// Whether [`Answer::answered`] wants to know of requests.
    fn follows(&self) -> bool {
        false
    }

    /// Writes an access log, say; called on the server's thread.
    fn answered(&self, _: &Answered) {}
}

/// Who makes the answers that are not quick.
#[derive(Clone)]
struct Makers {
    commands: Turns,
    pages: Pages,
}

/// Accepts until it is told to give the listener up.
async fn accept(
    listener: TcpListener,
    answer: Arc<dyn Answer>,
    tls: Option<Arc<ServerContext>>,
    (mode, open): (watch::Receiver<Mode>, Counter),
) {
    let makers = Makers { commands: Turns::new(answer.threads()), pages: Pages::new(THREADS) };
    let mut places = Places::default();
    let mut retired = mode.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            () = until(&mut retired, |mode| mode == Mode::Retired) => return,
            accepted = accept_in(&listener, mode.clone()) => accepted,
        };
        let Ok((stream, remote)) = accepted else {
            // Out of file descriptors, say: goes on when some are free again.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        if !places.make_room() {
            // All are being worked for. Whoever asks now is told at once to ask again.
            continue;
        }
        let activity = Arc::new(Activity::default());
        let addresses = (remote, stream.local_addr().unwrap_or(remote));
        let (answer, busy, makers, tls) = (answer.clone(), activity.clone(), makers.clone(), tls.clone());
        let (mut mode, mode_of_answers, counted) = (mode.clone(), mode.clone(), open.one_more());
        let task = tokio::spawn(async move {
            let _counted = counted;
            let service = hyper::service::service_fn(|request: Request<Incoming>| {
                let (answer, busy, makers) = (answer.clone(), busy.clone(), makers.clone());
                let mode = mode_of_answers.clone();
                async move {
                    let serving = Serving::new(busy.clone());
                    let follow = answer.follows().then(|| Followed::new(answer.clone(), addresses, &request));
                    let is_head = request.method() == Method::HEAD;
                    let mut response = respond(answer, request, remote, &makers, &busy).await;
                    if *mode.borrow() != Mode::Accepting {
                        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                    }
                    if is_head && response.body().is_chunked() {
                        busy.say_chunked();
                    }
                    let status = response.status();
                    let follow = follow.map(|follow| follow.with_status(status));
                    Ok::<_, Infallible>(response.map(|payload| Served { payload, follow, _serving: serving }))
                }
            });
            let handshake = Wire::accept(stream, tls.as_deref());
            let Ok(Ok(wire)) = tokio::time::timeout(HEAD_TIMEOUT, handshake).await else { return };
            let io = Watched::new(wire, busy.clone());
            let mut connection = std::pin::pin!(
                hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .serve_connection(TokioIo::new(io), service)
            );
            // A client that breaks off or talks nonsense concerns nobody else.
            tokio::select! {
                _ = connection.as_mut() => {}
                () = until(&mut mode, |mode| mode != Mode::Accepting) => {
                    // A request that is on its way is answered, and the connection ends with that.
                    if tokio::time::timeout(LAST_REQUEST, connection.as_mut()).await.is_err() {
                        connection.as_mut().graceful_shutdown();
                        let _ = connection.await;
                    }
                }
            }
        });
        places.0.push(Place { activity, task: task.abort_handle() });
    }
}

/// Waits for a mode; for ever once nobody can change it any more, which ends the server.
async fn until(mode: &mut watch::Receiver<Mode>, is: impl Fn(Mode) -> bool) {
    if mode.wait_for(|mode| is(*mode)).await.is_err() {
        std::future::pending().await
    }
}

/// Accepts a connection once that may be.
async fn accept_in(
    listener: &TcpListener,
    mut mode: watch::Receiver<Mode>,
) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        until(&mut mode, |mode| mode == Mode::Accepting).await;
        tokio::select! {
            biased;
            () = until(&mut mode, |mode| mode != Mode::Accepting) => {}
            accepted = listener.accept() => return accepted,
        }
    }
}

async fn respond(
    answer: Arc<dyn Answer>,
    request: Request<Incoming>,
    peer: SocketAddr,
    makers: &Makers,
    busy: &Activity,
) -> Response<Payload> {
    let mut query = Query::new(&request, peer);
    if let Some(limit) = answer.max_body() {
        if let Some(reply) = answer.turned_away(&query) {
            return reply.into_response(makers, busy).await;
        }
        let body = tokio::time::timeout(BODY_TIMEOUT, read(request, limit, busy)).await;
        busy.turns_to(Doing::Works);
        let Ok(Some(body)) = body else {
            let reply = Reply::text(StatusCode::BAD_REQUEST, "the body can't be read\n");
            return reply.into_response(makers, busy).await;
        };
        query.body = body;
    } else if query.is_form() {
        #[allow(clippy::disallowed_methods)] // it is capped
        let form = Limited::new(request.into_body(), MAX_FORM).collect();
        busy.turns_to(Doing::AwaitsClient);
        let form = tokio::time::timeout(HEAD_TIMEOUT, form).await;
        busy.turns_to(Doing::Works);
        // Without what it says a command might be another one.
        let Ok(Ok(form)) = form else {
            let reply = Reply::text(StatusCode::BAD_REQUEST, "the form can't be read\n");
            return reply.into_response(makers, busy).await;
        };
        query.parameters = parameters(&String::from_utf8_lossy(&form.to_bytes()));
    }
    // What takes long runs beside this thread, which must go on answering `/ready`.
    #[allow(clippy::disallowed_methods)]
    let reply = match answer.at_once(&query) {
        Some(reply) => reply,
        None => {
            busy.turns_to(Doing::AwaitsTurn);
            let turn = makers.commands.turn().await;
            busy.turns_to(Doing::Works);
            let work = move || {
                let _turn = turn;
                answer.answer(&query)
            };
            tokio::task::spawn_blocking(work)
                .await
                .unwrap_or_else(|_| Reply::text(StatusCode::INTERNAL_SERVER_ERROR, "the command failed\n"))
        }
    };
    reply.into_response(makers, busy).await
}

/// A body, or how long it is if that is longer than `limit`; `None` when the client breaks off. One that is not much longer
/// is read to its end, so that its client hears the answer.
async fn read(request: Request<Incoming>, limit: usize, busy: &Activity) -> Option<Result<Bytes, u64>> {
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let (mut body, mut read) = (request.into_body(), Vec::new());
    let mut size: u64 = 0;
    loop {
        busy.turns_to(Doing::AwaitsClient);
        let Some(frame) = body.frame().await else { break };
        let Some(data) = frame.ok()?.into_data().ok() else { continue };
        size += data.len() as u64;
        if size <= limit as u64 {
            read.extend_from_slice(&data);
        } else if size > limit as u64 + MAX_PASSED {
            break;
        }
    }
    match size <= limit as u64 {
        true => Some(Ok(read.into())),
        false => Some(Err(length.unwrap_or(0).max(size))),
    }
}

/// What is sent: in one piece, with or without its length, or piece by piece.
enum Payload {
    Whole { data: Option<Bytes>, chunked: bool },
    Pieces(mpsc::Receiver<Piece>),
}

impl Payload {
    /// Whether it goes out without its length.
    fn is_chunked(&self) -> bool {
        !matches!(self, Payload::Whole { chunked: false, .. })
    }
}

/// A payload on its way: its connection is busy until it has been handed over.
struct Served {
    payload: Payload,
    follow: Option<Followed>,
    _serving: Serving,
}

/// Tells of a request when it is dropped with its answer.
struct Followed {
    answer: Arc<dyn Answer>,
    answered: Answered,
}

impl Followed {
    fn new(
        answer: Arc<dyn Answer>,
        (remote, local): (SocketAddr, SocketAddr),
        request: &Request<Incoming>,
    ) -> Followed {
        let mut head = Request::new(());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.version_mut() = request.version();
        *head.headers_mut() = request.headers().clone();
        let (start, status) = (std::time::Instant::now(), StatusCode::INTERNAL_SERVER_ERROR);
        Followed { answer, answered: Answered { remote, local, request: head, start, status, sent: 0 } }
    }

    fn with_status(mut self, status: StatusCode) -> Followed {
        self.answered.status = status;
        self
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.answer.answered(&self.answered);
    }
}

impl Body for Served {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.payload).poll_frame(context);
        if let (Poll::Ready(Some(Ok(frame))), Some(follow)) = (&polled, &mut self.follow) {
            follow.answered.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.payload.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.payload.size_hint()
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Payload::Whole { data, .. } => {
                let data = data.take().filter(|data| !data.is_empty());
                Poll::Ready(data.map(|data| Ok(Frame::data(data))))
            }
            Payload::Pieces(pieces) => pieces.poll_recv(context).map(|piece| match piece {
                Some(Piece::Data(data)) => Some(Ok(Frame::data(data))),
                Some(Piece::End) => None,
                None => Some(Err(io::ErrorKind::BrokenPipe.into())),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Payload::Whole { data, chunked: false } if data.as_ref().is_none_or(Bytes::is_empty))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Payload::Whole { data: Some(data), chunked: false } => {
                http_body::SizeHint::with_exact(data.len() as u64)
            }
            _ => http_body::SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Read;
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    /// Writes a gigabyte, or as much of it as somebody takes.
    struct Endless(Arc<AtomicUsize>);

    impl Answer for Endless {
        fn at_once(&self, _: &Query) -> Option<Reply> {
            None
        }

        fn answer(&self, query: &Query) -> Reply {
            if query.path == "/command" {
                return Reply::text(StatusCode::OK, "done");
            }
            if let Some(pieces) = query.get("pieces").and_then(|n| n.parse::<usize>().ok()) {
                let piece = vec![b'y'; 32 << 10];
                return Reply::written(move |out| (0..pieces).try_for_each(|_| out.write_all(&piece)));
            }
            let (written, fails) = (self.0.clone(), query.has("fails"));
            Reply::written(move |out| {
                for _ in 0..if fails { 3 } else { 1 << 20 } {
                    out.write_all(&[b'x'; 1 << 10])?;
                    written.fetch_add(1 << 10, SeqCst);
                }
                if fails { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
            })
        }
    }

    fn ask(surface: &Surface, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(surface.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        stream
    }

    /// Pages were made whole before the first byte was sent, however slow the client.
    #[test]
    fn a_written_body_waits_for_its_client() {
        let written = Arc::new(AtomicUsize::new(0));
        let any = "127.0.0.1:0".parse().unwrap();
        let surface = Surface::start("endless", any, Arc::new(Endless(written.clone()))).unwrap();
        let mut client = ask(&surface, "/");
        client.read_exact(&mut vec![0; 1 << 20]).unwrap();
        // Sockets hold some megabytes; the rest is not written before it is taken.
        let mut before = 0;
        while written.load(SeqCst) != before {
            before = written.load(SeqCst);
            std::thread::sleep(Duration::from_millis(200));
        }
        assert!(before < 64 << 20, "{before} bytes");
        client.read_exact(&mut vec![0; before + (1 << 20)]).unwrap();
        assert!(written.load(SeqCst) > before);
        drop(client);
        // What failed has no proper end.
        let mut text = Vec::new();
        let _ = ask(&surface, "/?fails").read_to_end(&mut text);
        assert!(!text.ends_with(b"0\r\n\r\n"));
    }

    /// Four clients that read slowly held all threads: no command was answered for ten seconds, and again.
    #[test]
    fn slow_readers_hold_up_no_command() {
        let any = "127.0.0.1:0".parse().unwrap();
        let surface = Surface::start("slow", any, Arc::new(Endless(Arc::default()))).unwrap();
        let mut first = [0];
        let readers: Vec<TcpStream> = (0..6)
            .map(|_| {
                let mut reader = ask(&surface, "/");
                reader.read_exact(&mut first).unwrap();
                reader
            })
            .collect();
        let answer = |path: &str| {
            let mut client = ask(&surface, path);
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            text
        };
        assert!(answer("/command").ends_with("done"));
        drop(readers);
    }

    /// Sixteen pages that nobody read kept all others from being written for ten seconds, and again.
    #[test]
    fn pages_that_nobody_reads_hold_up_no_other_page() {
        let any = "127.0.0.1:0".parse().unwrap();
        let surface = Surface::start("unread", any, Arc::new(Endless(Arc::default()))).unwrap();
        let unread: Vec<TcpStream> = (0..pages::MOST_WAITING).map(|_| ask(&surface, "/")).collect();
        let begins = |mut reader: &TcpStream| {
            let mut line = [0; 13];
            reader.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"HTTP/1.1 200 ");
        };
        unread.iter().for_each(begins);
        // Until each of them waits.
        std::thread::sleep(Duration::from_millis(500));
        let lengths = [("/?pieces=1", 1), ("/?pieces=2", 2), ("/?pieces=400", 400)];
        for (path, pieces) in lengths {
            let took = || {
                let start = std::time::Instant::now();
                let mut client = ask(&surface, path);
                client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                let mut text = String::new();
                client.read_to_string(&mut text).unwrap();
                assert!(text.ends_with("\r\n0\r\n\r\n"), "{path}: cut off");
                assert!(text.matches('y').count() >= pieces << 15, "{path}");
                start.elapsed()
            };
            // The pages are small: whoever waited for the others would wait for seconds, each time.
            let most = Duration::from_secs(if pieces < 3 { 1 } else { 5 });
            assert!((0..3).any(|_| took() < most), "{path}");
        }
        drop(unread);
    }
}
