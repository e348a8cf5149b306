//! A client's HTTP/1 connection: one request after another, each driven inline.

use super::clock::{Clock, Expired, time_of_day};
use super::downstream::{Downstream, DownstreamError};
use super::respond::{self, Refusal};
use super::{Env, exchange, h2_server, timeouts};
use crate::buffer::{ReadBuffer, WriteBuffer};
use crate::closing;
use crate::deadline::{Timed, after, within};
use crate::drain::Beginning;
use crate::h1::{
    BodyEncoder, BodyLength, H1Error, HeadParser, Parsed, RequestKind, ResponseContext, encode_response,
};
use crate::io::Io;
use crate::wire::body::{BodyEvent, Piece};
use crate::wire::h1_body::{BodyError, BodyReader, Next};
use sixfold_core::budget::Reservation;
use sixfold_core::connection::Connection;
use sixfold_core::hcm::Profile;
use sixfold_core::headers::{Headers, Known};
use sixfold_core::message::{Method, ResponseHead, Scheme, Version};
use sixfold_core::overload::Timer;
use sixfold_core::stream::Stream;
use sixfold_core::traffic::Traffic;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes that are read ahead while a request is being served: of later ones, or of its body.
const READ_AHEAD: usize = 64 * 1024;
/// Bytes that nginx's log shows of a line that is no request line.
const MAX_LINE: usize = 8 * 1024;
/// How long a connection without a request stays open once draining has begun. One may be on its way already, and
/// closing would lose it; its answer tells the client to go. A head that is on its way has as long to come to its end.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// The client's side of the connection.
pub(super) struct H1Client {
    io: Io,
    read: ReadBuffer,
    out: WriteBuffer,
    env: Arc<Env>,
    parser: HeadParser,
    body: BodyReader,
    encoder: BodyEncoder,
    kind: RequestKind,
    version: Version,
    has_host: bool,
    upgrade: Option<Box<str>>,
    /// The place in the budget of what was read ahead beyond [`READ_AHEAD`].
    ahead: Option<Reservation>,
    /// The connection may carry another request.
    keep_alive: bool,
    /// The response was cut.
    cut: bool,
    tunnel: bool,
    requests: u32,
    /// What had been read and written when the request began.
    before: (u64, u64),
    /// Bytes of the fields of both heads, received and sent.
    fields: (u64, u64),
    expected: Expected,
}

/// What the next bytes of a connection are to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// A request of HTTP/1.
    Request,
    /// That, or HTTP/2 with prior knowledge.
    EitherVersion,
    /// TLS: they are known to be none, and no request is served.
    Tls,
}

/// How waiting for a request ended.
enum Arrival {
    /// Its head is in the stream's context.
    Request,
    /// It is HTTP/2, of which the preface has been read.
    Http2,
    /// No further request comes.
    End,
    /// The client left in the middle of a head.
    Left,
    /// None came for too long.
    Idle,
    /// None is under way, and the connection has lived as long as it may.
    Overdue,
    /// What came is no request.
    Refused(H1Error),
    /// The head took too long: which of its limits has passed.
    Late(Expired),
}

/// Serves the connection.
pub(super) async fn serve(io: Io, connection: Arc<Connection>, env: Arc<Env>, expected: Expected) {
    let mut client = H1Client::new(io, env.clone(), expected);
    let stats = env.hcm.stats.clone();
    let mut active = None;
    let lifetime = env.hcm.timeouts.max_connection.map(|limit| after(Instant::now(), limit));
    let mut stream = Box::new(Stream::new(connection.clone()));
    let mut clock = Clock::new();
    let drain = env.drain.clone();
    let started = pin!(drain.started());
    let mut draining = Beginning::new(&drain, started);
    loop {
        let arrival = client.arrival(&env, &mut stream, &mut clock, lifetime, &mut draining).await;
        if matches!(arrival, Arrival::Request | Arrival::Refused(_) | Arrival::Late(_) | Arrival::Left) {
            stats.downstream_rq_http1_total().inc();
            active.get_or_insert_with(|| {
                stats.downstream_cx_http1_total().inc();
                env.http1_counts();
                stats.downstream_cx_http1_active().raise()
            });
        }
        match arrival {
            Arrival::Request => {
                if lifetime.is_some_and(|end| clock.now() >= end) {
                    stats.downstream_cx_max_duration_reached().inc();
                    client.keep_alive = false;
                }
                exchange::serve(&mut client, &mut stream, &mut clock, &env).await;
            }
            Arrival::Http2 => {
                let read = client.read.take();
                return h2_server::serve_from(client.io, read, connection, env.clone()).await;
            }
            Arrival::End => break,
            Arrival::Left => {
                client.body = BodyReader::new(BodyLength::UntilClose);
                env.ending.left();
                client.show_refused(&mut stream);
                respond::left(&mut client, &mut stream, &mut clock, &env).await;
                break;
            }
            Arrival::Idle => {
                stats.downstream_cx_idle_timeout().inc();
                break;
            }
            Arrival::Overdue => {
                stats.downstream_cx_max_duration_reached().inc();
                break;
            }
            Arrival::Refused(error) => {
                stats.downstream_cx_protocol_error().inc();
                if error.is_of_underscore() {
                    env.http1_counts().requests_rejected_with_underscores_in_headers().inc();
                }
                client.keep_alive = false;
                // What was read belongs to what was refused.
                client.body = BodyReader::new(BodyLength::UntilClose);
                // As far as it was read: what is left from the request before says nothing about this one.
                client.kind = RequestKind::from(&stream.request.method);
                client.show_refused(&mut stream);
                let refusal = Refusal::of_http1(error, env.hcm.profile);
                respond::refuse(&mut client, &mut stream, &mut clock, &env, refusal).await;
                client.linger(env.hcm.timeouts.delayed_close).await;
                break;
            }
            Arrival::Late(which) => {
                client.body = BodyReader::new(BodyLength::UntilClose);
                client.keep_alive = false;
                client.kind = RequestKind::from(&stream.request.method);
                client.show_refused(&mut stream);
                respond::late(&mut client, &mut stream, &mut clock, &env, which).await;
                client.linger(env.hcm.timeouts.delayed_close).await;
                break;
            }
        }
        if !client.goes_on() {
            client.close(env.hcm.timeouts.delayed_close).await;
            break;
        }
    }
}

impl H1Client {
    fn new(io: Io, env: Arc<Env>, expected: Expected) -> H1Client {
        H1Client {
            io,
            read: ReadBuffer::below(env.hcm.buffer_limit),
            out: WriteBuffer::default(),
            env,
            parser: HeadParser::new(),
            body: BodyReader::new(BodyLength::None),
            encoder: BodyEncoder::Discard,
            kind: RequestKind::Plain,
            version: Version::Http11,
            has_host: false,
            upgrade: None,
            ahead: None,
            keep_alive: true,
            cut: false,
            tunnel: false,
            requests: 0,
            before: (0, 0),
            fields: (0, 0),
            expected,
        }
    }

    /// Waits for the head of the next request.
    async fn arrival(
        &mut self,
        env: &Env,
        stream: &mut Stream,
        clock: &mut Clock,
        lifetime: Option<Instant>,
        draining: &mut Beginning<'_, impl Future<Output = ()>>,
    ) -> Arrival {
        stream.reset(clock.restart_at_last().into_std());
        self.read.begin_wait();
        self.before = (self.read.consumed(), self.out.given());
        self.fields = (0, 0);
        let last =
            env.hcm.timeouts.idle.filter(|d| !d.is_zero()).map_or(LAST_REQUEST, |d| d.min(LAST_REQUEST));
        let (mut begun, mut held, mut ending) = (false, false, env.drain.is_draining());
        match ending {
            true => clock.set_idle(Some(last)),
            false => {
                let (idle, load) = (env.hcm.timeouts.idle, env.overload.as_ref());
                clock.set_idle_under(idle, Timer::ConnectionIdle, load);
            }
        }
        // As in Envoy a connection of the right age without a request lives on for the drain time.
        clock.set_end(lifetime.map(|end| after(end, env.hcm.timeouts.drain)));
        let arrived = within(clock, |clock, cx| {
            loop {
                if !self.read.is_empty() {
                    if !begun {
                        begun = true;
                        let now = clock.restart();
                        stream.timing.start = now.into_std();
                        stream.start_time = time_of_day(now);
                    }
                    if let Some(arrival) = self.head(stream) {
                        if held {
                            clock.end_head();
                        }
                        return Poll::Ready(arrival);
                    }
                    // Most heads come whole: deadlines are for the others.
                    if !std::mem::replace(&mut held, true) {
                        begin_head(env, clock, ending);
                    }
                }
                match self.read.poll_fill(&mut self.io, cx) {
                    Poll::Ready(Ok(1..)) => continue,
                    Poll::Ready(_) => {
                        self.env.ending.remotely.store(true, Relaxed);
                        let left = begun && self.parser.is_started();
                        return Poll::Ready(if left { Arrival::Left } else { Arrival::End });
                    }
                    Poll::Pending => {}
                }
                if !begun {
                    self.out.release();
                }
                if !ending && draining.has_come(cx) {
                    ending = true;
                    if begun {
                        clock.bound_head(Instant::now(), LAST_REQUEST);
                    } else {
                        clock.touch();
                        clock.set_idle(Some(last));
                    }
                }
                return Poll::Pending;
            }
        });
        arrived.await.unwrap_or_else(|which| match which {
            _ if begun => Arrival::Late(which),
            Expired::MaxStream => Arrival::Overdue,
            _ if ending => Arrival::End,
            _ => Arrival::Idle,
        })
    }

    /// What the bytes that were read come to; `None` while they are too few to tell.
    fn head(&mut self, stream: &mut Stream) -> Option<Arrival> {
        if self.expected == Expected::EitherVersion {
            if h2_server::has_preface(self.read.filled())? {
                return Some(Arrival::Http2);
            }
            self.expected = Expected::Request;
        }
        match self.parser.request(self.read.filled(), &mut stream.request, &self.env.h1) {
            Ok(Some(_)) if self.expected == Expected::Tls => Some(Arrival::Refused(H1Error::PlainOnTls)),
            Ok(Some(parsed)) if self.claims_tls(&parsed, stream) => {
                Some(Arrival::Refused(H1Error::HttpsOnPlaintext))
            }
            Ok(Some(parsed)) => {
                self.begin(stream, parsed);
                Some(Arrival::Request)
            }
            Ok(None) => None,
            Err(error) => Some(Arrival::Refused(error)),
        }
    }

    /// Whether the target says `https` though the connection has no TLS and nobody before us can have ended it. The
    /// client would choose its own scheme (Envoy's `validate_scheme`); APISIX's is always the connection's.
    fn claims_tls(&self, parsed: &Parsed, stream: &Stream) -> bool {
        let hcm = &self.env.hcm;
        parsed.scheme == Some(Scheme::Https)
            && stream.connection.tls.is_none()
            && hcm.client_address.is_first_hop()
            && hcm.profile == Profile::Envoy
    }

    /// What logs show of what is no request: in Envoy nothing, in nginx what was understood of it and its first line.
    fn show_refused(&self, stream: &mut Stream) {
        let nginx = self.env.hcm.profile == Profile::Apisix;
        if !nginx || !self.parser.has_start_line() {
            stream.request.clear();
        }
        if nginx {
            stream.request.ordinal = self.requests + 1;
            let line = self.read.filled().trim_ascii_start();
            let end = line.iter().position(|b| matches!(b, b'\r' | b'\n')).unwrap_or(line.len());
            stream.set_var("request", line.get(..end.min(MAX_LINE)).unwrap_or_default());
        }
    }

    /// Makes the connection ready for the request that was parsed.
    fn begin(&mut self, stream: &mut Stream, parsed: Parsed) {
        self.read.consume(parsed.consumed);
        self.requests += 1;
        stream.request.ordinal = self.requests;
        self.body = BodyReader::new(parsed.body);
        self.kind = RequestKind::from(&stream.request.method);
        self.version = stream.request.version;
        self.keep_alive = parsed.keep_alive;
        self.has_host = parsed.has_host;
        self.cut = false;
        let secure = stream.connection.tls.is_some();
        stream.request.scheme = parsed.scheme.unwrap_or(if secure { Scheme::Https } else { Scheme::Http });
        self.fields.0 = parsed.field_bytes;
        self.upgrade = if stream.request.method == Method::CONNECT {
            Some("connect".into())
        } else if parsed.upgrade {
            let name = stream.request.headers.get_str(Known::UPGRADE).unwrap_or_default();
            Some(name.to_ascii_lowercase().into())
        } else {
            None
        };
        if self.env.hcm.max_requests_per_connection.is_some_and(|max| self.requests >= max) {
            self.env.hcm.stats.downstream_cx_max_requests_reached().inc();
            self.keep_alive = false;
        }
    }

    /// Whether another request may come.
    fn goes_on(&mut self) -> bool {
        self.body.settle(&mut self.read);
        self.ahead = None;
        self.keep_alive && !self.cut && !self.tunnel && self.body.is_ended() && self.out.len() == 0
    }

    /// Reads on until the client is gone; while a plugin is waited for more of the body than else.
    fn poll_ahead(&mut self, cx: &mut Timed<'_>, plugin: bool) -> Poll<DownstreamError> {
        // The piece given last must stay where it is; nothing is read ahead behind it.
        while self.read.filled().len() < READ_AHEAD || (plugin && self.takes_body()) {
            match ready!(self.read.poll_fill(&mut self.io, cx)) {
                Ok(1..) => {}
                _ => {
                    self.env.ending.left();
                    return Poll::Ready(DownstreamError::Closed);
                }
            }
        }
        Poll::Pending
    }

    /// Whether more of the body than [`READ_AHEAD`] may be read ahead: Envoy's filters take as much of it into memory as may
    /// wait on a connection, and here it is a part of the budget for bodies.
    fn takes_body(&mut self) -> bool {
        let (env, here) = (&self.env, self.read.filled().len());
        let may = env.hcm.profile == Profile::Envoy && here < env.hcm.buffer_limit;
        if !may || self.body.is_ended() || self.upgrade.is_some() {
            return false;
        }
        let budget = &env.worker.shared.bodies;
        // The buffer doubles when it is full.
        self.ahead.get_or_insert_with(|| Reservation::empty(budget)).resize(2 * here)
    }

    /// Ends the connection after its last response.
    async fn close(&mut self, patience: Duration) {
        let rest = !self.body.is_ended() || !self.read.is_empty();
        if self.cut || self.tunnel || !rest {
            let in_time = closing::close(&mut self.io, &mut self.out, patience).await;
            self.count_late_close(in_time);
        } else {
            self.linger(patience).await;
        }
    }

    /// Ends it so that the client can still read the answer.
    async fn linger(&mut self, patience: Duration) {
        let left = closing::linger(&mut self.io, &mut self.out, &mut self.read, patience).await;
        self.env.ending.remotely.store(left, Relaxed);
        self.count_late_close(left);
    }

    fn count_late_close(&self, in_time: bool) {
        if !in_time {
            self.env.hcm.stats.downstream_cx_delayed_close_timeout().inc();
        }
    }
}

/// A stream has begun whose head has not come as a whole (Envoy's `ConnectionManagerImpl::newStream`): it has all deadlines of
/// a stream, and the connection is not idle.
fn begin_head(env: &Env, clock: &mut Clock, ending: bool) {
    let (limits, start) = (&env.hcm.timeouts, clock.now());
    clock.begin_stream(start, limits, env.overload.as_ref());
    clock.set_request(start, limits.request);
    let last = ending.then_some(LAST_REQUEST);
    if let Some(limit) = [timeouts::head(limits), last].into_iter().flatten().min() {
        clock.bound_head(start, limit);
    }
}

impl Downstream for H1Client {
    fn poll_body(
        &mut self,
        cx: &mut Timed<'_>,
        trailers: &mut Headers,
    ) -> Poll<Result<BodyEvent<'_>, DownstreamError>> {
        if self.ahead.is_some() && self.read.filled().len() <= READ_AHEAD {
            self.ahead = None;
        }
        let opts = &self.env.h1;
        match ready!(self.body.poll_next(&mut self.read, &mut self.io, cx, trailers, opts)) {
            Ok(Next::Data(at)) => Poll::Ready(Ok(BodyEvent::Data(Piece::Borrowed(&self.read.filled()[at])))),
            Ok(Next::End) => {
                self.ahead = None;
                if self.tunnel {
                    self.env.ending.left();
                }
                Poll::Ready(Ok(BodyEvent::End))
            }
            Err(BodyError::Io | BodyError::Codec(H1Error::Truncated)) => {
                self.env.ending.left();
                Poll::Ready(Err(DownstreamError::Closed))
            }
            Err(BodyError::Codec(_)) => Poll::Ready(Err(DownstreamError::Malformed)),
        }
    }

    fn request_ended(&self) -> bool {
        self.body.is_ended() && self.upgrade.is_none()
    }

    fn write_continue(&mut self) {
        self.out.tail().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
    }

    fn write_head(&mut self, head: &ResponseHead, end: bool, close: bool) -> Result<u8, DownstreamError> {
        let context = ResponseContext {
            request: self.kind,
            version: self.version,
            end_stream: end,
            keep_alive: self.keep_alive && !close,
        };
        let encoded = encode_response(self.out.tail(), head, context, &self.env.h1)
            .map_err(|_| DownstreamError::Malformed)?;
        self.encoder = encoded.body;
        self.fields.1 += encoded.field_bytes;
        self.keep_alive = encoded.keep_alive;
        Ok(encoded.connection_bytes)
    }

    fn is_chunked(&self) -> bool {
        self.encoder == BodyEncoder::Chunked
    }

    fn write_data(&mut self, cx: &mut Timed<'_>, piece: Piece<'_>) -> Result<(), DownstreamError> {
        let data = piece.as_slice();
        match self.encoder.begin(self.out.tail(), data.len()) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            // More than the announced length: the client has its whole response, the rest is dropped.
            Err(_) => {
                self.keep_alive = false;
                return Ok(());
            }
        }
        self.out.write_through(&mut self.io, cx, data).map_err(|_| DownstreamError::Closed)?;
        self.encoder.end(self.out.tail());
        Ok(())
    }

    fn finish(&mut self, trailers: &Headers) -> Result<(), DownstreamError> {
        let trailers = (!trailers.is_empty()).then_some(trailers);
        // nginx passes on those of gRPC, and others never come to be trailers there.
        let ended = match self.env.hcm.profile {
            Profile::Apisix => self.encoder.finish_with(self.out.tail(), trailers, &self.env.h1),
            Profile::Envoy => self.encoder.finish(self.out.tail(), trailers, &self.env.h1),
        };
        if ended.is_err() {
            self.cut = true;
        }
        Ok(())
    }

    fn poll_writable(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), DownstreamError>> {
        if self.out.len() < self.env.hcm.buffer_limit {
            return Poll::Ready(Ok(()));
        }
        match self.poll_flush(cx) {
            Poll::Pending if self.out.len() < self.env.hcm.buffer_limit => Poll::Ready(Ok(())),
            other => other,
        }
    }

    fn poll_flush(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), DownstreamError>> {
        self.out.poll_flush(&mut self.io, cx).map_err(|_| DownstreamError::Closed)
    }

    fn backlog(&self) -> Option<u64> {
        self.out.backlog()
    }

    fn poll_closed(&mut self, cx: &mut Timed<'_>) -> Poll<DownstreamError> {
        self.poll_ahead(cx, false)
    }

    fn poll_left(&mut self, cx: &mut Timed<'_>) -> Poll<DownstreamError> {
        self.poll_ahead(cx, true)
    }

    fn reset(&mut self) {
        self.cut = true;
        self.keep_alive = false;
    }

    fn become_tunnel(&mut self) {
        self.tunnel = true;
        self.encoder = BodyEncoder::Raw;
        self.body.settle(&mut self.read);
        self.body = BodyReader::new(BodyLength::UntilClose);
    }

    fn upgrade(&self) -> Option<&str> {
        self.upgrade.as_deref()
    }

    fn has_body_before_tunnel(&self) -> bool {
        self.env.hcm.profile == Profile::Apisix
            && self.upgrade.is_some()
            && !self.tunnel
            && !self.body.is_ended()
    }

    fn decline_upgrade(&mut self) {
        self.upgrade = None;
    }

    fn wants_head_alone(&self) -> bool {
        self.kind == RequestKind::Head
    }

    fn keeps_alive(&self) -> bool {
        self.keep_alive
    }

    fn is_http2(&self) -> bool {
        false
    }

    fn traffic(&self) -> Traffic {
        let read = self.read.consumed() + self.body.waiting(&self.read);
        Traffic {
            received: read - self.before.0,
            sent: self.out.given() - self.before.1,
            head_received: self.fields.0,
            head_sent: self.fields.1,
        }
    }

    fn has_host(&self) -> bool {
        self.has_host
    }
}
