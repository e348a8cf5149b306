//! One request to a service, on a connection of the pools.

use super::failed;
use crate::deadline::{Deadline, Timed, poll_within};
use crate::upstream::{Checkout, HeadEvent, Pools, Resend, UpstreamError, UpstreamStream, Wanted};
use crate::wire::body::{BodyEvent, Piece};
use bytes::Bytes;
use sixfold_core::cluster::{Cluster, InFlight, OutcomeKind};
use sixfold_core::hcm::Profile;
use sixfold_core::headers::Headers;
use sixfold_core::message::{RequestHead, ResponseHead};
use sixfold_core::plugin::{CalloutError, CalloutRequest, CalloutStream};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;

/// A request under way. It counts as an attempt at its endpoint until it is dropped.
pub(super) struct Outbound {
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
    finished: bool,
    sent: bool,
}

impl Outbound {
    /// For an attempt that has begun, within the time of its request.
    pub(super) fn new(flight: InFlight, pools: Pools, deadline: Deadline) -> Outbound {
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

    /// Takes a connection and writes the head; `open` leaves the body to come.
    pub(super) async fn begin(
        &mut self,
        cluster: &Arc<Cluster>,
        request: &CalloutRequest,
        head: &RequestHead,
        open: bool,
    ) -> Result<(), UpstreamError> {
        self.checkout = None;
        let Some(flight) = &self.flight else { return Err(UpstreamError::Local) };
        let socket = cluster.tls_of(flight.member());
        let context = socket.and_then(|tls| tls.context());
        let server_name = context.and_then(|context| context.name_of_request(&head.authority));
        let wanted = Wanted {
            cluster,
            host: flight.host(),
            tls: socket,
            server_name: server_name.as_deref(),
            downstream_http2: false,
            timeout: cluster.config.connect_timeout,
            high: false,
            raw: false,
            profile: Profile::Apisix,
            now: Instant::now(),
        };
        let ready = if self.resend.on_new() { None } else { self.pools.take_ready(&wanted)? };
        let mut checkout = match ready {
            Some(checkout) => checkout,
            None => Box::pin(self.pools.take_new(&wanted)).await?,
        };
        flight.attached();
        self.pooled = checkout.connect_ms.is_none();
        let end = !open && request.body.is_empty();
        checkout.stream.write_head(head, head.scheme, end)?;
        let waiting = Some(request.body.clone()).filter(|body| !body.is_empty());
        self.sending = Sending { waiting: waiting.into_iter().collect(), finished: !open, sent: end };
        self.checkout = Some(checkout);
        Ok(())
    }

    /// Whether the request goes out again after `error`: it was the connection that failed it.
    pub(super) fn resends(&mut self, error: &UpstreamError, idempotent: bool) -> bool {
        let replaces = self.pooled && !self.head_seen && idempotent;
        self.resend.wanted(error, || replaces)
    }

    /// Reports that there is no response.
    pub(super) fn fail(&mut self, error: &UpstreamError) {
        self.checkout = None;
        if let Some(mut flight) = self.flight.take() {
            let kind = error.outcome();
            flight.end(kind, kind.status(), std::time::Instant::now());
        }
    }

    /// The head of the response; `Err(None)` is the deadline.
    pub(super) fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Option<UpstreamError>>> {
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
            flight.settle(OutcomeKind::Response, self.response.status);
        }
        Poll::Ready(Ok(()))
    }

    /// The headers of the response, and none left here.
    pub(super) fn take_headers(&mut self) -> Headers {
        std::mem::take(&mut self.response.headers)
    }

    /// Gives the connection back after the response.
    fn done(&mut self) {
        if let Some(checkout) = self.checkout.take() {
            self.pools.give_back(checkout, Instant::now());
        }
        if let Some(mut flight) = self.flight.take() {
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
            up.finish(&Headers::new())?;
        }
        match up.poll_flush(cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }
}

/// What went wrong, in words.
pub(super) fn said(error: Option<UpstreamError>) -> CalloutError {
    match error {
        None | Some(UpstreamError::ConnectTimeout) => CalloutError::Timeout,
        Some(UpstreamError::Connect(text)) => failed(text),
        Some(other) => failed(other.text()),
    }
}

impl CalloutStream for Outbound {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        let full = |sending: &Sending| !sending.waiting.is_empty();
        let polled = poll_parts(&mut self.checkout, &mut self.deadline, &mut self.sending, cx, |up, cx| {
            up.poll_writable(cx)
        });
        match ready!(polled) {
            Ok(()) if full(&self.sending) => Poll::Pending,
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(said(error))),
        }
    }

    fn send(&mut self, piece: Bytes) {
        self.sending.waiting.push_back(piece);
    }

    fn finish(&mut self) {
        self.sending.finished = true;
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        if self.head_seen {
            return Poll::Ready(Ok(()));
        }
        self.poll_begun(cx).map_err(said)
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, CalloutError>> {
        if !self.head_seen {
            ready!(self.poll_head(cx))?;
        }
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
        match ready!(polled) {
            Ok(None) => {
                self.done();
                Poll::Ready(Ok(None))
            }
            Ok(piece) => Poll::Ready(Ok(piece)),
            Err(error) => Poll::Ready(Err(said(error))),
        }
    }

    fn status(&self) -> u16 {
        self.response.status
    }

    fn headers(&self) -> &Headers {
        &self.response.headers
    }

    fn trailers(&self) -> &Headers {
        &self.trailers
    }
}
