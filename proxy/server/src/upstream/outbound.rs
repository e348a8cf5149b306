//! A request of our own on a connection of the pools: a callout, or the copy of a client's for a mirror.

use super::{Checkout, Client, HeadEvent, Pools, Resend, UpstreamError, UpstreamStream, Wanted};
use crate::deadline::{Deadline, Timed, poll_within};
use crate::wire::body::{BodyEvent, Piece};
use bytes::Bytes;
use sixfold_core::cluster::{InFlight, OutcomeKind};
use sixfold_core::hcm::Profile;
use sixfold_core::headers::Headers;
use sixfold_core::message::{RequestHead, ResponseHead};
use std::collections::VecDeque;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;

/// A request under way. It counts as an attempt at its endpoint until it is dropped.
pub(crate) struct Outbound {
    pools: Pools,
    flight: Option<InFlight>,
    checkout: Option<Checkout>,
    deadline: Deadline,
    sending: Sending,
    response: ResponseHead,
    trailers: Headers,
    /// No body follows the head.
    empty: bool,
    head_seen: bool,
    pooled: bool,
    resend: Resend,
}

/// The request's body on its way out.
#[derive(Default)]
struct Sending {
    waiting: VecDeque<Bytes>,
    trailers: Headers,
    finished: bool,
    sent: bool,
}

impl Outbound {
    /// For an attempt that has begun, within the time of its request.
    pub(crate) fn new(flight: InFlight, pools: Pools, deadline: Deadline) -> Outbound {
        Outbound {
            pools,
            flight: Some(flight),
            checkout: None,
            deadline,
            sending: Sending::default(),
            response: ResponseHead::default(),
            trailers: Headers::new(),
            empty: false,
            head_seen: false,
            pooled: false,
            resend: Resend::default(),
        }
    }

    /// Takes a connection and writes the head; `open` leaves a body to come behind `body`.
    pub(crate) async fn begin(
        &mut self,
        head: &RequestHead,
        body: &Bytes,
        open: bool,
    ) -> Result<(), UpstreamError> {
        self.checkout = None;
        let Some(flight) = &self.flight else { return Err(UpstreamError::Local) };
        let cluster = flight.cluster();
        let socket = cluster.tls_of(flight.member());
        let context = socket.and_then(|tls| tls.context());
        let server_name = context.and_then(|context| context.name_of_request(&head.authority));
        let wanted = Wanted {
            cluster,
            host: flight.host(),
            tls: socket,
            server_name: server_name.as_deref(),
            offer: None,
            client: Client::default(),
            downstream_http2: false,
            timeout: cluster.config.connect_timeout,
            high: false,
            raw: false,
            now: Instant::now(),
        };
        let ready = if self.resend.on_new() { None } else { self.pools.take_ready(&wanted)? };
        let mut checkout = match ready {
            Some(checkout) => checkout,
            None => Box::pin(self.pools.take_new(&wanted)).await?,
        };
        flight.attached();
        self.pooled = checkout.connect_ms.is_none();
        let end = !open && body.is_empty();
        checkout.stream.write_head(head, head.scheme, end)?;
        let waiting = Some(body.clone()).filter(|body| !body.is_empty()).into_iter().collect();
        self.sending = Sending { waiting, trailers: Headers::new(), finished: !open, sent: end };
        self.checkout = Some(checkout);
        Ok(())
    }

    /// Whether the request goes out again after `error`: it was the connection that failed it. Envoy replaces no connection
    /// of its pools that has died under a request.
    pub(crate) fn resends(&mut self, error: &UpstreamError, idempotent: bool) -> bool {
        let profile = self.flight.as_ref().map(|flight| flight.cluster().config.profile);
        let replaces = profile == Some(Profile::Apisix) && self.pooled && !self.head_seen && idempotent;
        self.resend.wanted(error, || replaces)
    }

    /// Reports how it ended without a response, or with half of one.
    pub(crate) fn give_up(&mut self, kind: OutcomeKind) {
        self.checkout = None;
        if let Some(mut flight) = self.flight.take() {
            flight.end(kind, kind.status(), std::time::Instant::now());
        }
    }

    /// Status of the response whose head has come.
    pub(crate) fn answered(&self) -> Option<u16> {
        self.head_seen.then_some(self.response.status)
    }

    /// The head of the response; `Err(None)` is the deadline.
    pub(crate) fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Option<UpstreamError>>> {
        if self.head_seen {
            return Poll::Ready(Ok(()));
        }
        let response = &mut self.response;
        let head =
            ready!(poll_parts(&mut self.checkout, &mut self.deadline, &mut self.sending, cx, |up, cx| {
                loop {
                    if let HeadEvent::Final { end, .. } = ready!(up.poll_head(cx, response))? {
                        return Poll::Ready(Ok(end));
                    }
                }
            }))?;
        (self.empty, self.head_seen) = (head, true);
        if let Some(flight) = &mut self.flight {
            flight.answered(self.response.status, &self.response.headers, head);
        }
        Poll::Ready(Ok(()))
    }

    /// Ready for another piece of the body; `Err(None)` is the deadline.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Option<UpstreamError>>> {
        let polled = poll_parts(&mut self.checkout, &mut self.deadline, &mut self.sending, cx, |up, cx| {
            up.poll_writable(cx)
        });
        match ready!(polled) {
            Ok(()) if !self.sending.waiting.is_empty() => Poll::Pending,
            other => Poll::Ready(other),
        }
    }

    /// Ready when the connection has taken what there is of the body; `Err(None)` is the deadline.
    pub(crate) fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Option<UpstreamError>>> {
        let polled = poll_parts(&mut self.checkout, &mut self.deadline, &mut self.sending, cx, |up, cx| {
            up.poll_flush(cx)
        });
        match ready!(polled) {
            Ok(()) if !self.sending.waiting.is_empty() => Poll::Pending,
            other => Poll::Ready(other),
        }
    }

    /// Takes a piece of the body.
    pub(crate) fn push(&mut self, piece: Bytes) {
        self.sending.waiting.push_back(piece);
    }

    /// Ends the body.
    pub(crate) fn end(&mut self, trailers: Headers) {
        (self.sending.trailers, self.sending.finished) = (trailers, true);
    }

    /// Bounds what is left of the exchange.
    pub(crate) fn limit(&mut self, at: Option<Instant>) {
        self.deadline.set(at);
    }

    /// The next piece of the response, behind its head; `None` at its end, when the connection has gone back to its
    /// pool. `Err(None)` is the deadline.
    pub(crate) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, Option<UpstreamError>>> {
        ready!(self.poll_begun(cx))?;
        if self.empty || self.checkout.is_none() {
            self.done();
            return Poll::Ready(Ok(None));
        }
        let trailers = &mut self.trailers;
        let polled = poll_parts(&mut self.checkout, &mut self.deadline, &mut self.sending, cx, |up, cx| {
            Poll::Ready(Ok(match ready!(up.poll_body(cx, trailers))? {
                BodyEvent::Data(piece) => Some(piece.into_bytes()),
                BodyEvent::End => None,
            }))
        });
        let piece = ready!(polled)?;
        if piece.is_none() {
            self.done();
        }
        Poll::Ready(Ok(piece))
    }

    /// Status of the response; 0 before its head has come.
    pub(crate) fn status(&self) -> u16 {
        self.response.status
    }

    /// Headers of the response.
    pub(crate) fn headers(&self) -> &Headers {
        &self.response.headers
    }

    /// Trailers of the response.
    pub(crate) fn trailers(&self) -> &Headers {
        &self.trailers
    }

    /// The headers of the response, and none left here.
    pub(crate) fn take_headers(&mut self) -> Headers {
        std::mem::take(&mut self.response.headers)
    }

    /// Gives the connection back after the response.
    fn done(&mut self) {
        if let Some(checkout) = self.checkout.take() {
            self.pools.give_back(checkout, Instant::now());
        }
        if let Some(mut flight) = self.flight.take() {
            flight.trailed(&self.trailers);
            flight.end(OutcomeKind::Response, self.response.status, std::time::Instant::now());
        }
    }
}

/// Sends what waits, then polls; `Err(None)` is the deadline.
fn poll_parts<T>(
    checkout: &mut Option<Checkout>,
    deadline: &mut Deadline,
    sending: &mut Sending,
    cx: &mut Context<'_>,
    poll: impl FnOnce(&mut UpstreamStream, &mut Timed<'_>) -> Poll<Result<T, UpstreamError>>,
) -> Poll<Result<T, Option<UpstreamError>>> {
    let Some(checkout) = checkout else { return Poll::Ready(Err(Some(UpstreamError::Closed))) };
    let polled = poll_within(deadline, cx, |_, cx| {
        sending.pass_on(&mut checkout.stream, cx)?;
        poll(&mut checkout.stream, cx)
    });
    match ready!(polled) {
        Ok(result) => Poll::Ready(result.map_err(Some)),
        Err(_) => Poll::Ready(Err(None)),
    }
}

impl Sending {
    fn pass_on(&mut self, up: &mut UpstreamStream, cx: &mut Timed<'_>) -> Result<(), UpstreamError> {
        while !self.waiting.is_empty()
            && let Poll::Ready(room) = up.poll_writable(cx)
        {
            room?;
            if let Some(piece) = self.waiting.pop_front() {
                up.write_data(cx, Piece::Shared(piece))?;
            }
        }
        if self.waiting.is_empty()
            && self.finished
            && !self.sent
            && let Poll::Ready(room) = up.poll_writable(cx)
        {
            room?;
            self.sent = true;
            up.finish(&self.trailers)?;
        }
        match up.poll_flush(cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }
}
