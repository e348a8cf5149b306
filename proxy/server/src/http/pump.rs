//! Passing a response on while the rest of the request may still be coming: both directions in one loop, each
//! held back by the other side's watermark.

use super::body::{BodyEvent, Piece};
use super::downstream::{Downstream, Gone};
use super::exchange::{Exchange, Interrupt};
use super::outgoing::poll_request_body;
use super::respond::write_filtered;
use crate::deadline::within;
use crate::upstream::UpstreamStream;
use sixfold_core::plugin::Phases;
use std::task::Poll;

impl<D: Downstream> Exchange<'_, D> {
    /// Writes the head, then both bodies. `end`: no response body follows; `sent_all`: none of the request is
    /// left; `tunnel`: both directions are bytes until one side closes.
    pub(super) async fn pump(
        &mut self,
        up: &mut UpstreamStream,
        end: bool,
        tunnel: bool,
        sent_all: bool,
    ) -> Result<(), Interrupt> {
        let chain = self.chain.clone();
        let filtered = chain.has(Phases::BODY_FILTER);
        let wants_whole = if filtered && !tunnel { chain.response_buffer(self.stream) } else { None };
        self.write_head(end && !filtered)?;
        if tunnel {
            self.down.become_tunnel();
        }
        let mut whole = wants_whole.map(|limit| (Vec::new(), limit));
        let mut sending = tunnel || !sent_all;
        let mut receiving = !end;
        // What goes through a tunnel is no body.
        let max_body = self.env.hcm.max_body.filter(|_| !tunnel);
        if end && filtered {
            self.filter_end(&[]).await?;
        }
        if end {
            return self.flush().await;
        }
        let (down, clock, stream) = (&mut *self.down, &mut *self.clock, &mut *self.stream);
        within(clock, |clock, cx| {
            loop {
                let mut progress = false;
                if sending && up.poll_writable(cx).is_ready() {
                    match poll_request_body(down, stream, max_body, cx) {
                        Poll::Ready(Ok(BodyEvent::Data(piece))) => {
                            stream.bytes.upstream_sent += piece.as_slice().len() as u64;
                            // A failed write is not the end of the response.
                            let _ = up.write_data(cx, piece);
                            progress = true;
                        }
                        Poll::Ready(Ok(BodyEvent::End)) if tunnel => {
                            return Poll::Ready(Err(Gone::Closed.into()));
                        }
                        Poll::Ready(Ok(BodyEvent::End)) => {
                            let _ = up.finish(&stream.request_trailers);
                            stream.timing.request_complete = Some(clock.touch().into_std());
                            sending = false;
                            progress = true;
                        }
                        Poll::Ready(Err(interrupt)) => return Poll::Ready(Err(interrupt)),
                        Poll::Pending => {}
                    }
                }
                if receiving && down.poll_writable(cx)?.is_ready() {
                    match up.poll_body(cx, &mut stream.response_trailers) {
                        Poll::Ready(Ok(BodyEvent::Data(piece))) => {
                            stream.bytes.upstream_received += piece.as_slice().len() as u64;
                            progress = true;
                            match &mut whole {
                                Some((kept, limit)) if kept.len() + piece.as_slice().len() <= *limit => {
                                    kept.extend_from_slice(piece.as_slice());
                                }
                                Some((kept, _)) => {
                                    // Too long to be changed as a whole: it passes as it is.
                                    let kept = std::mem::take(kept);
                                    whole = None;
                                    stream.bytes.response_body +=
                                        (kept.len() + piece.as_slice().len()) as u64;
                                    down.write_data(cx, Piece::Borrowed(&kept))?;
                                    down.write_data(cx, piece)?;
                                }
                                None if wants_whole.is_some() => {
                                    stream.bytes.response_body += piece.as_slice().len() as u64;
                                    down.write_data(cx, piece)?;
                                }
                                None => write_filtered(down, stream, &chain, cx, piece, false)?,
                            }
                        }
                        Poll::Ready(Ok(BodyEvent::End)) => {
                            stream.timing.upstream_rx_end = Some(clock.touch().into_std());
                            if filtered && (whole.is_some() || wants_whole.is_none()) {
                                let rest = whole.take().map(|(kept, _)| kept).unwrap_or_default();
                                write_filtered(down, stream, &chain, cx, Piece::Borrowed(&rest), true)?;
                            }
                            down.finish(&stream.response_trailers)?;
                            receiving = false;
                        }
                        Poll::Ready(Err(error)) => {
                            // What came before the failure is passed on before the response is cut.
                            let _ = down.poll_flush(cx);
                            return Poll::Ready(Err(Interrupt::Upstream(error)));
                        }
                        Poll::Pending => {}
                    }
                }
                if !receiving {
                    return down.poll_flush(cx).map_err(Interrupt::Gone);
                }
                if progress {
                    clock.touch();
                    continue;
                }
                let _ = up.poll_flush(cx);
                if let Poll::Ready(Err(gone)) = down.poll_flush(cx) {
                    return Poll::Ready(Err(gone.into()));
                }
                if !sending && down.poll_gone(cx).is_ready() {
                    return Poll::Ready(Err(Gone::Closed.into()));
                }
                return Poll::Pending;
            }
        })
        .await?
    }

    /// Runs the body filters on the end of a response that has no body.
    async fn filter_end(&mut self, body: &[u8]) -> Result<(), Interrupt> {
        let (down, stream, chain) = (&mut *self.down, &mut *self.stream, self.chain.clone());
        within(self.clock, |_, cx| {
            Poll::Ready(write_filtered(down, stream, &chain, cx, Piece::Borrowed(body), true))
        })
        .await??;
        self.down.finish(&self.stream.response_trailers)?;
        Ok(())
    }
}
