//! A request on an HTTP/1 upstream connection. The task of the downstream connection drives it inline.

use super::kind::{Kind, Limits};
use super::{ActiveConnection, HeadEvent, UpstreamError};
use crate::buffer::{ReadBuffer, WriteBuffer};
use crate::deadline::Timed;
use crate::h1::{BodyEncoder, BodyLength, H1Error, H1Options, HeadParser, RequestKind, encode_request};
use crate::io::{IdleState, Io, Transport};
use crate::wire::body::{BodyEvent, Piece};
use crate::wire::h1_body::{BodyError, BodyReader, Next};
use sixfold_core::cluster::Permit;
use sixfold_core::connection::UpstreamConnection;
use sixfold_core::headers::Headers;
use sixfold_core::message::{RequestHead, ResponseHead};
use sixfold_core::traffic::Traffic;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Poll, ready};
use tokio::time::Instant;

/// An HTTP/1 connection to an upstream, idle or with its one request.
pub(crate) struct H1Upstream {
    io: Io,
    read: ReadBuffer,
    out: WriteBuffer,
    opts: Arc<H1Options>,
    parser: HeadParser,
    body: BodyReader,
    encoder: BodyEncoder,
    kind: RequestKind,
    watermark: usize,
    /// The connection's bytes go as they are: an upstream behind a CONNECT that ends here (Envoy's `TcpUpstream`).
    raw: bool,
    /// The upstream lets the connection go on after this response.
    keep_alive: bool,
    request_sent: bool,
    /// The client has ended its side of a tunnel: so does this side, behind the last byte.
    half_closes: bool,
    head_seen: bool,
    /// What had been read and written when the request began.
    before: (u64, u64),
    /// Bytes of the fields of heads, received and sent.
    fields: (u64, u64),
    /// Writing failed; the response may still be there to read.
    broken: Option<UpstreamError>,
    local: Option<SocketAddr>,
    connection: Arc<UpstreamConnection>,
    pub(super) opened: Instant,
    pub(super) requests: u32,
    /// Which requests it serves.
    pub(super) pool_kind: Arc<Kind>,
    /// How long it lives, while it has a request after which it may go back to its pool.
    pub(super) home: Option<Limits>,
    /// The place of its request among those under way.
    pub(super) request: Option<Permit>,
    pub(super) active: ActiveConnection,
}

impl H1Upstream {
    pub(super) fn new(
        io: Io,
        opts: Arc<H1Options>,
        watermark: usize,
        active: ActiveConnection,
        connection: Arc<UpstreamConnection>,
        pool_kind: Arc<Kind>,
        raw: bool,
    ) -> H1Upstream {
        H1Upstream {
            local: io.local_addr(),
            connection,
            io,
            read: ReadBuffer::below(watermark),
            out: WriteBuffer::default(),
            opts,
            parser: HeadParser::new(),
            body: BodyReader::new(BodyLength::None),
            encoder: BodyEncoder::Discard,
            kind: RequestKind::Plain,
            watermark,
            raw,
            keep_alive: true,
            request_sent: true,
            half_closes: false,
            head_seen: true,
            before: (0, 0),
            fields: (0, 0),
            broken: None,
            opened: Instant::now(),
            requests: 0,
            pool_kind,
            home: None,
            request: None,
            active,
        }
    }

    /// Whether an idle connection can take a request: the upstream has neither closed it nor said anything. One that can't
    /// must be dropped.
    pub(super) fn is_usable(&mut self) -> bool {
        let state = if self.read.is_empty() { self.io.idle_state() } else { IdleState::HasData };
        match state {
            IdleState::Alive => return true,
            IdleState::Closed => self.active.ends_remotely(),
            IdleState::HasData => self.active.stats.upstream_cx_protocol_error().inc(),
        }
        false
    }

    /// Whether a request is under way: it, or its response, is not complete.
    fn is_busy(&self) -> bool {
        !(self.request_sent && self.head_seen && self.body.is_ended())
    }

    /// Bytes on the wire so far, of the request and its response.
    pub(super) fn traffic(&self) -> Traffic {
        let waiting = match self.head_seen {
            true => self.body.waiting(&self.read),
            false => self.read.filled().len() as u64,
        };
        Traffic {
            received: self.read.consumed() + waiting - self.before.0,
            sent: self.out.given() - self.before.1,
            head_received: self.fields.0,
            head_sent: self.fields.1,
        }
    }

    /// Bytes on the wire up to the end of the response's head, once it has come.
    pub(super) fn head_end(&self) -> u64 {
        self.read.consumed() - self.before.0
    }

    /// Whether the connection can take another request after this one.
    pub(super) fn is_reusable(&mut self) -> bool {
        self.keep_alive
            && self.broken.is_none()
            && self.request_sent
            && self.head_seen
            && self.body.is_ended()
            && self.out.len() == 0
            && {
                self.body.settle(&mut self.read);
                self.read.is_empty()
            }
    }

    /// Gives back the buffers and the place among requests: the connection is idle.
    pub(super) fn rest(&mut self) {
        self.request = None;
        self.read.stop_waiting();
        self.read.release();
        self.out.release();
    }

    pub(super) fn write_head(&mut self, head: &RequestHead, end: bool) -> Result<(), UpstreamError> {
        self.requests += 1;
        self.active.carried(self.requests);
        if self.raw {
            self.encoder = BodyEncoder::Raw;
            self.body = BodyReader::new(BodyLength::UntilClose);
            (self.keep_alive, self.head_seen, self.request_sent) = (false, false, false);
            return Ok(());
        }
        self.kind = RequestKind::from(&head.method);
        self.before = (self.read.consumed(), self.out.given());
        let encoded = encode_request(self.out.tail(), head, end, false, &self.opts)
            .map_err(|_| UpstreamError::Local)?;
        self.encoder = encoded.body;
        self.fields = (0, encoded.field_bytes);
        self.keep_alive = true;
        self.head_seen = false;
        self.request_sent = end && !encoded.owes;
        self.body = BodyReader::new(BodyLength::None);
        Ok(())
    }

    pub(super) fn write_data(&mut self, cx: &mut Timed<'_>, data: &[u8]) -> Result<(), UpstreamError> {
        if self.broken.is_some() {
            return Ok(());
        }
        match self.encoder.begin(self.out.tail(), data.len()) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(_) => return Err(UpstreamError::Local),
        }
        let written = self.out.write_through(&mut self.io, cx, data);
        self.encoder.end(self.out.tail());
        self.note(written.is_err());
        Ok(())
    }

    pub(super) fn finish(&mut self, trailers: &Headers) -> Result<(), UpstreamError> {
        if self.broken.is_some() {
            return Ok(());
        }
        self.request_sent = true;
        let trailers = (!trailers.is_empty()).then_some(trailers);
        if self.encoder.closes() {
            (self.keep_alive, self.half_closes) = (false, true);
        }
        self.encoder.finish(self.out.tail(), trailers, &self.opts).map_err(|_| UpstreamError::Local)
    }

    /// A failed write is not the end: the upstream may have answered before it closed.
    fn note(&mut self, failed: bool) {
        if failed && self.broken.is_none() {
            self.broken = Some(UpstreamError::Closed);
            self.out.abandon();
        }
    }

    pub(super) fn poll_writable(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), UpstreamError>> {
        // Nothing can be written any more: what is left of the request stays where it is, and the response is read.
        if self.broken.is_some() {
            return Poll::Pending;
        }
        if self.out.len() < self.watermark {
            return Poll::Ready(Ok(()));
        }
        match self.poll_flush(cx) {
            Poll::Pending if self.out.len() < self.watermark => Poll::Ready(Ok(())),
            other => other,
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Timed<'_>) -> Poll<Result<(), UpstreamError>> {
        if self.broken.is_none() {
            let result = ready!(self.out.poll_flush(&mut self.io, cx));
            self.note(result.is_err());
        }
        if self.half_closes && self.broken.is_none() {
            // An upstream that is gone by now is found by reading.
            let _ = ready!(self.io.poll_shutdown(cx));
            self.half_closes = false;
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn backlog(&self) -> Option<u64> {
        self.out.backlog().filter(|_| self.broken.is_none())
    }

    pub(super) fn poll_head(
        &mut self,
        cx: &mut Timed<'_>,
        head: &mut ResponseHead,
    ) -> Poll<Result<HeadEvent, UpstreamError>> {
        if self.raw {
            head.clear();
            head.status = 200;
            self.head_seen = true;
            return Poll::Ready(Ok(HeadEvent::Final { end: false, tunnel: true }));
        }
        loop {
            if !self.read.is_empty() {
                let parsed = self
                    .parser
                    .response(self.read.filled(), head, self.kind, &self.opts)
                    .map_err(|_| UpstreamError::Protocol)?;
                if let Some(parsed) = parsed {
                    self.read.consume(parsed.consumed);
                    self.fields.0 += parsed.field_bytes;
                    if parsed.interim {
                        return Poll::Ready(Ok(HeadEvent::Interim(head.status)));
                    }
                    self.head_seen = true;
                    if self.keep_alive && !parsed.keep_alive {
                        self.active.stats.upstream_cx_close_notify().inc();
                    }
                    self.keep_alive &= parsed.keep_alive && !parsed.tunnel;
                    self.body =
                        BodyReader::new(if parsed.tunnel { BodyLength::UntilClose } else { parsed.body });
                    if parsed.tunnel {
                        self.encoder = BodyEncoder::Raw;
                    }
                    let end = !parsed.tunnel && parsed.body.is_empty();
                    return Poll::Ready(Ok(HeadEvent::Final { end, tunnel: parsed.tunnel }));
                }
            }
            match ready!(self.read.poll_fill(&mut self.io, cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(Err(self.ended_early())),
            }
        }
    }

    /// What the end of the connection means before the head is there. An end inside a message breaks the protocol,
    /// however it came about: Envoy has its parser see it (`CodecClient::onEvent`).
    fn ended_early(&mut self) -> UpstreamError {
        self.active.ends_remotely();
        if self.read.is_empty() { UpstreamError::Closed } else { UpstreamError::Protocol }
    }

    pub(super) fn poll_body(
        &mut self,
        cx: &mut Timed<'_>,
        trailers: &mut Headers,
    ) -> Poll<Result<BodyEvent<'_>, UpstreamError>> {
        let until_close = self.body.is_until_close();
        let next = ready!(self.body.poll_next(&mut self.read, &mut self.io, cx, trailers, &self.opts));
        let ended = matches!(next, Ok(Next::End)) && until_close;
        if ended && self.raw && !self.request_sent {
            // As Envoy counts it, we end the tunnel then, with the client's side under way.
            self.active.ends_busy();
        } else if ended || matches!(next, Err(BodyError::Io | BodyError::Codec(H1Error::Truncated))) {
            self.active.ends_remotely();
        }
        Poll::Ready(match next {
            Ok(Next::End) => Ok(BodyEvent::End),
            Ok(Next::Data(at)) => Ok(BodyEvent::Data(Piece::Borrowed(&self.read.filled()[at]))),
            Err(BodyError::Io) if self.body.is_until_close() => Err(UpstreamError::Closed),
            Err(BodyError::Codec(_) | BodyError::Io) => Err(UpstreamError::Protocol),
        })
    }

    /// Whether the response has been read to its end.
    pub(super) fn has_all(&self) -> bool {
        self.body.is_ended()
    }

    pub(super) fn connection(&self) -> &Arc<UpstreamConnection> {
        &self.connection
    }

    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.local
    }
}

impl Drop for H1Upstream {
    fn drop(&mut self) {
        if self.is_busy() {
            self.active.ends_busy();
        }
    }
}
