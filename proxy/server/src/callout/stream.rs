//! A callout's body and answer, piece by piece.

use super::{failed, unaskable};
use crate::http::charge;
use crate::upstream::{Outbound, UpstreamError};
use bytes::Bytes;
use sixfold_core::cluster::{Cluster, OutcomeKind};
use sixfold_core::headers::Headers;
use sixfold_core::plugin::{CalloutError, CalloutStream};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::Instant;

/// What went wrong, in words.
pub(super) fn said(error: Option<UpstreamError>) -> CalloutError {
    match error {
        None | Some(UpstreamError::ConnectTimeout) => CalloutError::Timeout,
        Some(UpstreamError::Connect(text)) => failed(text),
        Some(error @ UpstreamError::Exhausted) => CalloutError::Exhausted(error.text()),
        Some(error @ (UpstreamError::Local | UpstreamError::TooManyHeaders)) => unaskable(error.text()),
        Some(other) => failed(other.text()),
    }
}

/// A request under way, and whose statistics tell of it: to Envoy it is an internal one.
pub(super) struct Open {
    pub(super) out: Outbound,
    cluster: Arc<Cluster>,
    start: Instant,
    /// Its head, or that there is none, is counted.
    counted: bool,
    ended: bool,
}

impl Open {
    /// An attempt of a request that began at `start`.
    pub(super) fn new(out: Outbound, cluster: Arc<Cluster>, start: Instant) -> Open {
        Open { out, cluster, start, counted: false, ended: false }
    }

    /// Counts the response whose head has come.
    pub(super) fn count_head(&mut self) {
        if !std::mem::replace(&mut self.counted, true) {
            charge::response_to_own(&self.cluster, self.out.status());
        }
    }

    /// It comes to nothing, or to no more; `None` is the deadline.
    pub(super) fn fail(&mut self, error: Option<&UpstreamError>) {
        let kind = error.map_or(OutcomeKind::Timeout, UpstreamError::outcome);
        self.out.give_up(kind);
        if error.is_none() {
            self.cluster.stats.upstream_rq_timeout().inc();
        }
        if !std::mem::replace(&mut self.counted, true) {
            charge::response_to_own(&self.cluster, if error.is_none() { 504 } else { 503 });
        }
    }

    fn checked<T>(&mut self, polled: Result<T, Option<UpstreamError>>) -> Result<T, CalloutError> {
        polled.map_err(|error| {
            self.fail(error.as_ref());
            said(error)
        })
    }
}

impl CalloutStream for Open {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        self.out.poll_room(cx).map(|polled| self.checked(polled))
    }

    fn send(&mut self, piece: Bytes) {
        self.out.push(piece);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        self.out.poll_passed(cx).map(|polled| self.checked(polled))
    }

    fn finish(&mut self) {
        self.out.end(Headers::new());
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        let head = self.out.poll_begun(cx).map(|polled| self.checked(polled));
        if matches!(head, Poll::Ready(Ok(()))) {
            self.count_head();
        }
        head
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, CalloutError>> {
        let piece = self.out.poll_piece(cx).map(|polled| self.checked(polled));
        if matches!(piece, Poll::Ready(Ok(None))) && !std::mem::replace(&mut self.ended, true) {
            self.count_head();
            let took = self.start.elapsed().as_millis();
            charge::time_of_own(&self.cluster, took.try_into().unwrap_or(u64::MAX));
        }
        piece
    }

    fn status(&self) -> u16 {
        self.out.status()
    }

    fn headers(&self) -> &Headers {
        self.out.headers()
    }

    fn trailers(&self) -> &Headers {
        self.out.trailers()
    }
}
