//! A request on an HTTP/1 upstream connection. The task of the downstream connection drives it inline.

use super::kind::{Kind, Limits};
use super::{ActiveConnection, HeadEvent, UpstreamError};
use crate::buffer::{ReadBuffer, WriteBuffer};
use crate::deadline::Timed;
use crate::h1::{BodyEncoder, BodyLength, H1Options, HeadParser, RequestKind, encode_request};
use crate::io::{IdleState, Io};
use crate::wire::body::{BodyEvent, Piece};
use crate::wire::h1_body::{BodyError, BodyReader, Next};
use sixfold_core::cluster::Permit;
use sixfold_core::headers::Headers;
use sixfold_core::message::{RequestHead, ResponseHead};
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
    /// The upstream lets the connection go on after this response.
    keep_alive: bool,
    request_sent: bool,
    head_seen: bool,
    /// Writing failed; the response may still be there to read.
    broken: Option<UpstreamError>,
    local: Option<SocketAddr>,
    pub(super) opened: Instant,
    pub(super) requests: u32,
    /// What it goes back to its pool by, while it has a request.
    pub(super) home: Option<(Kind, Limits)>,
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
    ) -> H1Upstream {
        active.stats.upstream_cx_http1_total().inc();
        H1Upstream {
            local: io.local_addr(),
            io,
            read: ReadBuffer::default(),
            out: WriteBuffer::default(),
            opts,
            parser: HeadParser::new(),
            body: BodyReader::new(BodyLength::None),
            encoder: BodyEncoder::Discard,
            kind: RequestKind::Plain,
            watermark,
            keep_alive: true,
            request_sent: true,
            head_seen: true,
            broken: None,
            opened: Instant::now(),
            requests: 0,
            home: None,
            request: None,
            active,
        }
    }

    /// Whether an idle connection can take a request: the upstream has neither closed it nor said anything.
    pub(super) fn is_usable(&mut self) -> bool {
        self.read.is_empty() && matches!(self.io.idle_state(), IdleState::Alive)
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
        self.read.release();
        self.out.release();
    }

    pub(super) fn write_head(&mut self, head: &RequestHead, end: bool) -> Result<(), UpstreamError> {
        self.requests += 1;
        self.kind = RequestKind::from(&head.method);
        self.encoder = encode_request(self.out.tail(), head, end, false, &self.opts)
            .map_err(|_| UpstreamError::Local)?;
        self.keep_alive = true;
        self.head_seen = false;
        self.request_sent = end;
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
            self.keep_alive = false;
        }
        self.encoder.finish(self.out.tail(), trailers, &self.opts).map_err(|_| UpstreamError::Local)
    }

    /// A failed write is not the end: the upstream may have answered before it closed.
    fn note(&mut self, failed: bool) {
        if failed && self.broken.is_none() {
            self.broken = Some(UpstreamError::Closed);
            self.out = WriteBuffer::default();
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
        loop {
            if !self.read.is_empty() {
                let parsed = self
                    .parser
                    .response(self.read.filled(), head, self.kind, &self.opts)
                    .map_err(|_| UpstreamError::Protocol)?;
                if let Some(parsed) = parsed {
                    self.read.consume(parsed.consumed);
                    if parsed.interim {
                        return Poll::Ready(Ok(HeadEvent::Interim(head.status)));
                    }
                    self.head_seen = true;
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
    fn ended_early(&self) -> UpstreamError {
        if self.read.is_empty() { UpstreamError::Closed } else { UpstreamError::Protocol }
    }

    pub(super) fn poll_body(
        &mut self,
        cx: &mut Timed<'_>,
        trailers: &mut Headers,
    ) -> Poll<Result<BodyEvent<'_>, UpstreamError>> {
        let next = ready!(self.body.poll_next(&mut self.read, &mut self.io, cx, trailers, &self.opts));
        Poll::Ready(match next {
            Ok(Next::End) => Ok(BodyEvent::End),
            Ok(Next::Data(at)) => Ok(BodyEvent::Data(Piece::Borrowed(&self.read.filled()[at]))),
            Err(BodyError::Io) if self.body.is_until_close() => Err(UpstreamError::Closed),
            Err(BodyError::Codec(_) | BodyError::Io) => Err(UpstreamError::Protocol),
        })
    }

    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.local
    }
}
