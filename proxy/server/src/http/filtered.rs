//! Bodies on their way through the plugins of the chain, between the codecs of both sides.

use super::exchange::Interrupt;
use crate::wire::body::{BodyEvent, Piece};
use bytes::Bytes;
use sixfold_core::budget::{ByteBudget, Reservation};
use sixfold_core::plugin::{BodyFilters, Chain, Direction, Filtered, LocalReply, Position};
use sixfold_core::stream::Stream;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Bytes that plugins are shown at a time. A body that was read whole comes as one piece: what a plugin makes of that could
/// be a hundred times as long, all of it at once.
const SHOWN: usize = 64 << 10;

/// Bytes of what a plugin has made that are accounted for until the next piece; less is no matter.
const ACCOUNTED: usize = 16 << 10;

/// The body of one message, with the plugins that look at it. Without any it costs nothing.
pub(super) struct FilteredBody {
    /// `None` where no plugin looks at the body, which is nearly everywhere: it takes no more than a pointer.
    plugins: Option<Box<Plugins>>,
    direction: Direction,
    stage: Stage,
}

struct Plugins {
    chain: Arc<Chain>,
    filters: BodyFilters,
    /// What of a long piece they have not been shown yet.
    rest: Bytes,
    /// The place of what they keep, and of what they have made last, among the bodies that the process holds.
    held: Reservation,
}

impl Plugins {
    /// Accounts for what the filters keep now, and for what they have made.
    fn account(&mut self, filtered: Option<&Filtered>) -> Result<(), Interrupt> {
        let made = match filtered {
            Some(Filtered::Data(data)) if data.len() > ACCOUNTED => data.len(),
            _ => 0,
        };
        match self.held.resize(self.filters.held() + made) {
            true => Ok(()),
            false => Err(Interrupt::OverBudget),
        }
    }

    /// Whether there is more of a long piece, and nobody waits.
    fn is_to_show(&self) -> bool {
        !self.rest.is_empty() && !self.filters.is_waiting()
    }

    /// Shows the filters a piece, and answers what goes on.
    fn show(&mut self, stream: &mut Stream, piece: &[u8], last: bool) -> Result<Filtered, Interrupt> {
        let filtered = self.filters.push(&self.chain, stream, piece, last);
        self.account(Some(&filtered))?;
        Ok(filtered)
    }

    /// Shows them more of a long piece, the end of the body with its last bytes.
    fn show_more(&mut self, stream: &mut Stream, last: bool) -> Result<Filtered, Interrupt> {
        let piece = self.rest.split_to(SHOWN.min(self.rest.len()));
        let last = last && self.rest.is_empty();
        Ok(match self.show(stream, &piece, last)? {
            Filtered::Same => Filtered::Data(piece),
            filtered => filtered,
        })
    }
}

/// How far the body is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing has come.
    Before,
    Body,
    /// It was refused before its end had come.
    Refused,
    /// The end has come and is in the filters.
    End,
    /// The end has passed them.
    Trailers,
    Over,
}

impl FilteredBody {
    /// Before the first piece; what plugins keep comes out of `bodies`.
    pub(super) fn new(
        direction: Direction,
        chain: &Arc<Chain>,
        stream: &Stream,
        bodies: &Arc<ByteBudget>,
    ) -> FilteredBody {
        let filters = chain.filters_of(direction, stream).then(|| BodyFilters::new(direction));
        FilteredBody::by(filters, direction, chain, bodies)
    }

    /// The same of a request, with those plugins alone that stand at `from` or behind it, and before `until`.
    pub(super) fn of_request(
        chain: &Arc<Chain>,
        stream: &Stream,
        bodies: &Arc<ByteBudget>,
        from: Option<Position>,
        until: Option<Position>,
    ) -> FilteredBody {
        let looked_at = chain.filters_of(Direction::Request, stream);
        let filters = if looked_at { BodyFilters::of_request(chain, from, until) } else { None };
        FilteredBody::by(filters, Direction::Request, chain, bodies)
    }

    fn by(
        filters: Option<BodyFilters>,
        direction: Direction,
        chain: &Arc<Chain>,
        bodies: &Arc<ByteBudget>,
    ) -> FilteredBody {
        let plugins = filters.map(|filters| {
            let (chain, rest, held) = (chain.clone(), Bytes::new(), Reservation::empty(bodies));
            Box::new(Plugins { chain, filters, rest, held })
        });
        FilteredBody { plugins, ..FilteredBody::unfiltered(direction) }
    }

    /// What no plugin looks at.
    pub(super) fn unfiltered(direction: Direction) -> FilteredBody {
        FilteredBody { plugins: None, direction, stage: Stage::Before }
    }

    /// Whether a plugin looks at the body.
    pub(super) fn is_filtered(&self) -> bool {
        self.plugins.is_some()
    }

    /// Whether something of the body may be in the filters still.
    pub(super) fn is_under_way(&self) -> bool {
        self.plugins.is_some() && !matches!(self.stage, Stage::Before | Stage::Over)
    }

    /// Whether a filter has refused it at once when it was shown something else than the end.
    pub(super) fn is_refused_midway(&self) -> bool {
        self.stage == Stage::Refused
    }

    /// Whether all of it has passed the filters.
    pub(super) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether it is a plugin that is waited for.
    pub(super) fn is_waiting(&self) -> bool {
        let waiting = |plugins: &Plugins| plugins.filters.is_waiting() || self.stage == Stage::Trailers;
        self.plugins.as_deref().is_some_and(waiting)
    }

    /// Takes the next piece, or with `last` the end; answers what goes on at once.
    pub(super) fn push<'p>(
        &mut self,
        stream: &mut Stream,
        piece: Piece<'p>,
        last: bool,
    ) -> Result<Option<Piece<'p>>, Interrupt> {
        self.stage = if last { Stage::End } else { Stage::Body };
        let shown = self.show(stream, piece, last);
        if !last && matches!(shown, Err(Interrupt::Refused(_))) {
            self.stage = Stage::Refused;
        }
        shown
    }

    fn show<'p>(
        &mut self,
        stream: &mut Stream,
        piece: Piece<'p>,
        last: bool,
    ) -> Result<Option<Piece<'p>>, Interrupt> {
        let filtered = match self.plugins.as_deref_mut() {
            Some(plugins) if piece.as_slice().len() > SHOWN => {
                plugins.rest = piece.into_bytes();
                return Ok(self.show_more(stream)?.map(Piece::Shared));
            }
            Some(plugins) => plugins.show(stream, piece.as_slice(), last)?,
            None => Filtered::Same,
        };
        match filtered {
            Filtered::Same => {
                self.passed();
                Ok(Some(piece).filter(|piece| !piece.as_slice().is_empty()))
            }
            other => Ok(self.settle(other)?.map(Piece::Shared)),
        }
    }

    /// What comes out of the filters without another piece. Ready with `None` when they want the next one.
    pub(super) fn poll(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<BodyEvent<'static>>, Interrupt>> {
        while let Some(plugins) = self.plugins.as_deref_mut() {
            let data = if plugins.filters.is_waiting() {
                let filtered = plugins.filters.poll(&plugins.chain, stream, cx);
                plugins.account(match &filtered {
                    Poll::Ready(filtered) => Some(filtered),
                    Poll::Pending => None,
                })?;
                self.settle(ready!(filtered))?
            } else if !plugins.rest.is_empty() {
                self.show_more(stream)?
            } else {
                // What was made last has been taken.
                plugins.account(None)?;
                break;
            };
            if let Some(data) = data {
                return Poll::Ready(Ok(Some(BodyEvent::Data(Piece::Shared(data)))));
            }
        }
        if self.stage == Stage::Trailers {
            let refused = match self.plugins.as_deref_mut() {
                Some(Plugins { chain, filters, .. }) => ready!(filters.poll_trailers(chain, stream, cx)),
                None => None,
            };
            self.stage = Stage::Over;
            if let Some(reply) = refused {
                return Poll::Ready(Err(Interrupt::Refused(reply)));
            }
        }
        Poll::Ready(Ok((self.stage == Stage::Over).then_some(BodyEvent::End)))
    }

    /// Shows the plugins what there is of a long piece, until something comes out or one of them has to be waited for.
    fn show_more(&mut self, stream: &mut Stream) -> Result<Option<Bytes>, Interrupt> {
        let last = self.stage == Stage::End;
        while let Some(plugins) = self.plugins.as_deref_mut().filter(|plugins| plugins.is_to_show()) {
            let filtered = plugins.show_more(stream, last)?;
            if let Some(data) = self.settle(filtered)? {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    fn settle(&mut self, filtered: Filtered) -> Result<Option<Bytes>, Interrupt> {
        match filtered {
            Filtered::Waiting => Ok(None),
            Filtered::Same => {
                self.passed();
                Ok(None)
            }
            Filtered::Data(data) => {
                self.passed();
                Ok(Some(data).filter(|data| !data.is_empty()))
            }
            Filtered::Respond(reply) => Err(Interrupt::Refused(reply)),
            Filtered::OverBudget => Err(Interrupt::OverBudget),
            Filtered::TooLong if self.direction == Direction::Request => Err(Interrupt::TooLarge),
            Filtered::TooLong => {
                let reply = LocalReply::new(500, "", "response_payload_too_large");
                Err(Interrupt::Refused(Box::new(reply)))
            }
        }
    }

    fn passed(&mut self) {
        let is_left = self.plugins.as_deref().is_some_and(|plugins| !plugins.rest.is_empty());
        if self.stage == Stage::End && !is_left {
            self.stage = Stage::Trailers;
        }
    }
}
