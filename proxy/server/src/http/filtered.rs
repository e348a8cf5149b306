//! Bodies on their way through the plugins of the chain, between the codecs of both sides.

use super::exchange::Interrupt;
use crate::budget::Reservation;
use crate::wire::body::{BodyEvent, Piece};
use bytes::Bytes;
use sixfold_core::budget::ByteBudget;
use sixfold_core::plugin::{BodyFilters, Chain, Direction, Filtered, LocalReply, Position};
use sixfold_core::stream::Stream;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

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
    /// The place of what they keep among the bodies that the process holds.
    held: Reservation,
}

impl Plugins {
    /// Accounts for what the filters keep now.
    fn account(&mut self) -> Result<(), Interrupt> {
        match self.held.resize(self.filters.held()) {
            true => Ok(()),
            false => Err(Interrupt::OverBudget),
        }
    }
}

/// How far the body is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing has come.
    Before,
    Body,
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
            Box::new(Plugins { chain: chain.clone(), filters, held: Reservation::empty(bodies) })
        });
        FilteredBody { plugins, ..FilteredBody::unfiltered(direction) }
    }

    /// What no plugin looks at, such as the bytes of a tunnel.
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
        let filtered = match self.plugins.as_deref_mut() {
            Some(plugins) => {
                let filtered = plugins.filters.push(&plugins.chain, stream, piece.as_slice(), last);
                plugins.account()?;
                filtered
            }
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
            if !plugins.filters.is_waiting() {
                break;
            }
            let filtered = plugins.filters.poll(&plugins.chain, stream, cx);
            plugins.account()?;
            let filtered = ready!(filtered);
            if let Some(data) = self.settle(filtered)? {
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
            Filtered::TooLong if self.direction == Direction::Request => Err(Interrupt::TooLarge),
            Filtered::TooLong => {
                let reply = LocalReply::new(500, "", "response_payload_too_large");
                Err(Interrupt::Refused(Box::new(reply)))
            }
        }
    }

    fn passed(&mut self) {
        if self.stage == Stage::End {
            self.stage = Stage::Trailers;
        }
    }
}
