//! The request body on its way through the plugins, which may be read ahead for one that wants it whole.
//!
//! A plugin of the request phases sees the body as the plugins before it have made it, as Envoy's filters do: what is read for
//! it passes their handlers at once, and the rest of the handlers later.

use super::downstream::Downstream;
use super::exchange::{Exchange, Interrupt, guard};
use super::filtered::FilteredBody;
use super::outgoing::poll_request_body;
use super::stall::Waits;
use crate::deadline::{Timed, within};
use crate::wire::body::{BodyEvent, Piece};
use bytes::Bytes;
use sixfold_core::budget::Buffered;
use sixfold_core::hcm::Profile;
use sixfold_core::plugin::{Direction, Overflow, Position, ReadBody};
use sixfold_core::stream::Stream;
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Poll, ready};

/// The request body with the plugins that look at it, in sections: one ends in front of each plugin for which the beginning of
/// the body was read. What was read ahead has passed all of them but the last.
pub(super) struct RequestBody {
    /// What the rest of the body passes before it is where the beginning is. Nearly always empty.
    ahead: Vec<FilteredBody>,
    last: FilteredBody,
    /// The last section is that in front of this plugin.
    until: Option<Position>,
    /// The most that a plugin has let in of a body that is in memory as a whole, as filters of Envoy do: what those behind it
    /// make of it may be no longer.
    most: Option<usize>,
    /// An upgrade is asked for: what the plugins see goes on behind the end of the request's own body, if it has one.
    goes_on: bool,
}

impl RequestBody {
    /// What no plugin looks at so far.
    pub(super) fn unfiltered() -> RequestBody {
        let last = FilteredBody::unfiltered(Direction::Request);
        RequestBody { ahead: Vec::new(), last, until: None, most: None, goes_on: false }
    }

    /// Whether there is an upgrade is known: what the client sends ends with what comes now.
    pub(super) fn settle_upgrade(&mut self) {
        self.goes_on = false;
    }

    /// Whether something of the body may be in the filters still.
    pub(super) fn is_under_way(&self) -> bool {
        self.sections().any(FilteredBody::is_under_way)
    }

    /// Whether it is a plugin that is waited for.
    pub(super) fn is_waiting(&self) -> bool {
        self.sections().any(FilteredBody::is_waiting)
    }

    /// Whether a plugin has refused the body at once when it was shown something else than the end.
    pub(super) fn is_refused_midway(&self) -> bool {
        self.sections().any(FilteredBody::is_refused_midway)
    }

    fn sections(&self) -> impl Iterator<Item = &FilteredBody> {
        self.ahead.iter().chain([&self.last])
    }

    /// Begins the next section.
    fn go_on(&mut self, section: FilteredBody, until: Option<Position>) {
        let passed = std::mem::replace(&mut self.last, section);
        if passed.is_filtered() && !passed.is_over() {
            self.ahead.push(passed);
        }
        self.until = until.or(self.until);
    }

    /// The next piece behind the plugins. Bytes of the client beyond `max` end the request.
    pub(super) fn poll<'d, D: Downstream>(
        &mut self,
        down: &'d mut D,
        stream: &mut Stream,
        max: Option<u64>,
        cx: &mut Timed<'_>,
    ) -> Poll<Result<BodyEvent<'d>, Interrupt>> {
        if !self.last.is_filtered() {
            return poll_passed(&mut self.ahead, down, stream, max, cx);
        }
        loop {
            if let Some(event) = ready!(self.last.poll(stream, cx))? {
                return Poll::Ready(Ok(event));
            }
            let next = ready!(poll_passed(&mut self.ahead, down, stream, max, cx))?;
            if self.goes_on && matches!(next, BodyEvent::End) {
                return Poll::Ready(Ok(BodyEvent::End));
            }
            if let Some(piece) = take(&mut self.last, stream, next)? {
                return Poll::Ready(Ok(BodyEvent::Data(piece)));
            }
        }
    }
}

/// What was read ahead, then what comes through these sections.
fn poll_passed<'d, D: Downstream>(
    sections: &mut [FilteredBody],
    down: &'d mut D,
    stream: &mut Stream,
    max: Option<u64>,
    cx: &mut Timed<'_>,
) -> Poll<Result<BodyEvent<'d>, Interrupt>> {
    let Some((last, before)) = sections.split_last_mut() else {
        return poll_request_body(down, stream, max, cx);
    };
    if let Some(ahead) = stream.read_ahead.take().filter(|ahead| !ahead.is_empty()) {
        return Poll::Ready(Ok(BodyEvent::Data(Piece::Shared(*ahead))));
    }
    loop {
        if let Some(event) = ready!(last.poll(stream, cx))? {
            return Poll::Ready(Ok(event));
        }
        let next = ready!(poll_passed(before, down, stream, max, cx))?;
        if let Some(piece) = take(last, stream, next)? {
            return Poll::Ready(Ok(BodyEvent::Data(piece)));
        }
    }
}

/// Hands a section what comes next, and answers what goes on at once.
fn take(
    section: &mut FilteredBody,
    stream: &mut Stream,
    next: BodyEvent<'_>,
) -> Result<Option<Piece<'static>>, Interrupt> {
    let (piece, last) = match next {
        BodyEvent::Data(piece) => (piece.into_bytes(), false),
        BodyEvent::End => (Bytes::new(), true),
    };
    section.push(stream, Piece::Shared(piece), last)
}

impl<D: Downstream> Exchange<'_, D> {
    /// Reads of the request body what a plugin wants of it, as the plugins before it have made it. What comes through a tunnel
    /// is none.
    pub(super) async fn read_ahead(
        &mut self,
        wanted: ReadBody,
        asker: Option<Position>,
    ) -> Result<(), Interrupt> {
        let ReadBody { limit, on_overflow } = wanted;
        let refuses = on_overflow == Overflow::Refuse;
        if self.down.upgrade().is_some() || !self.stream.has_request_body() {
            return Ok(());
        }
        if asker > self.request_body.until {
            self.begin_section(asker);
        }
        if refuses && self.env.hcm.profile == Profile::Envoy {
            self.request_body.most = self.request_body.most.max(Some(limit.max(self.env.hcm.buffer_limit)));
        }
        if self.stream.request_body.is_none() {
            return self.read_body(limit, refuses).await;
        }
        // It is there for another plugin, which allows more of it.
        self.pass_whole(limit, refuses).await
    }

    /// Puts the plugins that look at the request body before it; one that was read whole goes through them at
    /// once, and so the same to every attempt.
    pub(super) async fn filter_request(&mut self) -> Result<(), Interrupt> {
        let is_upgrade = self.down.upgrade().is_some();
        let is_unseen = is_upgrade && self.env.hcm.profile == Profile::Apisix;
        if is_unseen || !self.chain.filters_of(Direction::Request, self.stream) {
            return Ok(());
        }
        self.begin_section(None);
        self.request_body.goes_on = is_upgrade;
        if self.stream.request_body.is_none() {
            return Ok(());
        }
        let most = self.request_body.most;
        self.pass_whole(most.unwrap_or(usize::MAX), most.is_some()).await?;
        self.frame_request(self.announced_length());
        Ok(())
    }

    /// Puts the plugins before the body that stand before `until`, and have not seen it.
    fn begin_section(&mut self, until: Option<Position>) {
        let (chain, bodies) = (&self.chain, &self.env.worker.shared.bodies);
        let section = FilteredBody::of_request(chain, self.stream, bodies, self.request_body.until, until);
        self.request_body.go_on(section, until);
    }

    /// Has a body that was read whole pass the last section.
    async fn pass_whole(&mut self, limit: usize, refuses: bool) -> Result<(), Interrupt> {
        if !self.request_body.last.is_filtered() {
            let length = self.stream.request_body.as_ref().map_or(0, Bytes::len);
            return if refuses && length > limit { Err(Interrupt::TooLarge) } else { Ok(()) };
        }
        let mut passed = Buffered::new(&self.env.worker.shared.bodies);
        let mut keep = |piece: Piece<'_>| match piece.as_slice() {
            piece if refuses && passed.as_slice().len() + piece.len() > limit => Err(Interrupt::TooLarge),
            piece if passed.push(piece) => Ok(()),
            _ => Err(Interrupt::OverBudget),
        };
        let body = self.stream.request_body.take().unwrap_or_default();
        if let Some(piece) = self.request_body.last.push(self.stream, Piece::Shared(body), true)? {
            keep(piece)?;
        }
        loop {
            let (stream, section) = (&mut *self.stream, &mut self.request_body.last);
            let next = pin!(poll_fn(|cx| section.poll(stream, cx)));
            match guard(self.down, self.clock, next).await?? {
                Some(BodyEvent::Data(piece)) => keep(piece)?,
                Some(BodyEvent::End) | None => break,
            }
        }
        let (body, held) = passed.finish();
        (self.stream.request_body, self.held) = (Some(body), Some(held));
        Ok(())
    }

    /// Reads the request body to its end. A longer one is refused, or more than `limit` bytes are enough.
    async fn read_body(&mut self, limit: usize, refuses: bool) -> Result<(), Interrupt> {
        let max = self.env.hcm.max_body;
        let mut body = Buffered::new(&self.env.worker.shared.bodies);
        self.answer_expect(false);
        let (down, clock, stream) = (&mut *self.down, &mut *self.clock, &mut *self.stream);
        let filtered = &mut self.request_body;
        let ended = within(clock, |clock, cx| {
            loop {
                let waiting = filtered.is_waiting();
                // One more says whether there is more.
                if !refuses && !waiting && body.as_slice().len() > limit && !down.request_ended() {
                    return Poll::Ready(Ok(false));
                }
                match filtered.poll(down, stream, max, cx) {
                    Poll::Pending => {
                        let _ = down.poll_flush(cx);
                        let waiting = filtered.is_waiting();
                        if waiting && let Poll::Ready(gone) = down.poll_closed(cx) {
                            return Poll::Ready(Err(gone.into()));
                        }
                        clock.watch(Waits {
                            client_body: (!waiting).then_some(stream.bytes.request_body),
                            client_write: down.backlog(),
                            ..Waits::default()
                        });
                        return Poll::Pending;
                    }
                    Poll::Ready(Err(interrupt)) => return Poll::Ready(Err(interrupt)),
                    Poll::Ready(Ok(BodyEvent::End)) => return Poll::Ready(Ok(true)),
                    Poll::Ready(Ok(BodyEvent::Data(piece))) => {
                        if refuses && body.as_slice().len() + piece.as_slice().len() > limit {
                            return Poll::Ready(Err(Interrupt::TooLarge));
                        }
                        if !body.push(piece.as_slice()) {
                            return Poll::Ready(Err(Interrupt::OverBudget));
                        }
                        clock.touch();
                    }
                }
            }
        })
        .await??;
        let (body, held) = body.finish();
        self.held = Some(held);
        if ended {
            self.request_complete();
            self.stream.request_body = Some(body);
        } else {
            self.stream.read_ahead = (!body.is_empty()).then(|| Box::new(body));
        }
        Ok(())
    }
}
