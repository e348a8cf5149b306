//! A callout's body and answer, piece by piece.

use super::failed;
use crate::upstream::{Outbound, UpstreamError};
use bytes::Bytes;
use sixfold_core::headers::Headers;
use sixfold_core::plugin::{CalloutError, CalloutStream};
use std::task::{Context, Poll};

/// What went wrong, in words.
pub(super) fn said(error: Option<UpstreamError>) -> CalloutError {
    match error {
        None | Some(UpstreamError::ConnectTimeout) => CalloutError::Timeout,
        Some(UpstreamError::Connect(text)) => failed(text),
        Some(error @ UpstreamError::Exhausted) => CalloutError::Exhausted(error.text()),
        Some(other) => failed(other.text()),
    }
}

impl CalloutStream for Outbound {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        self.poll_room(cx).map_err(said)
    }

    fn send(&mut self, piece: Bytes) {
        self.push(piece);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        self.poll_passed(cx).map_err(said)
    }

    fn finish(&mut self) {
        self.end(Headers::new());
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CalloutError>> {
        self.poll_begun(cx).map_err(said)
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, CalloutError>> {
        self.poll_piece(cx).map_err(said)
    }

    fn status(&self) -> u16 {
        self.status()
    }

    fn headers(&self) -> &Headers {
        self.headers()
    }

    fn trailers(&self) -> &Headers {
        self.trailers()
    }
}
