//! Beginnings of bodies that entries hold.

use super::expression;
use bytes::Bytes;
use serde_json::Value;
use sixfold_core::budget::{Buffered, Reservation};
use sixfold_core::error::ConfigError;
use sixfold_core::expr::Expr;
use sixfold_core::plugin::{BodyPiece, Overflow, ReadBody, Slot, Step};
use sixfold_core::stream::Stream;

/// Whether entries hold the body of one direction, and how much of it.
pub(super) struct BodyRule {
    include: bool,
    when: Option<Expr>,
    /// Bytes.
    pub(super) most: usize,
}

/// What was kept of the bodies of one exchange.
#[derive(Default)]
pub(super) struct Captured {
    pub(super) request: Capture,
    pub(super) response: Capture,
}

/// What was kept of a body.
#[derive(Default)]
pub(super) enum Capture {
    /// Nobody has asked yet whether it is wanted.
    #[default]
    Undecided,
    Unwanted,
    /// It was there as a whole, or so much of it as is kept, with its place among the bodies that the process has in memory.
    // The place is given back with it.
    #[allow(dead_code)]
    Read(Bytes, Reservation),
    /// What has come so far.
    Pieces(Buffered),
}

impl BodyRule {
    pub(super) fn new(
        include: bool,
        when: Option<&Value>,
        field: &'static str,
        most: usize,
    ) -> Result<BodyRule, ConfigError> {
        Ok(BodyRule { include, when: when.map(|rule| expression(rule, field)).transpose()?, most })
    }

    pub(super) fn wants(&self, stream: &Stream) -> bool {
        self.include && self.when.as_ref().is_none_or(|when| when.eval(stream).unwrap_or(false))
    }
}

impl Capture {
    /// The bytes, if any were to be kept.
    pub(super) fn into_body(self) -> Option<Bytes> {
        match self {
            Capture::Undecided | Capture::Unwanted => None,
            Capture::Read(body, _) => Some(body),
            Capture::Pieces(pieces) => Some(pieces.finish().0),
        }
    }
}

/// Has the beginning of the request's body read, of `most` bytes, and keeps it; a step, while that is to be waited for.
pub(super) fn read_ahead<'a>(stream: &mut Stream, slot: Slot, most: usize) -> Option<Step<'a>> {
    let wanted = ReadBody { limit: most, on_overflow: Overflow::Pass };
    if let Some(step) = wanted.ask(stream, slot) {
        return Some(step);
    }
    let beginning = |body: &Bytes| body.slice(..body.len().min(most));
    let read = stream.request_body.as_ref().map(beginning);
    let read = read.or_else(|| stream.read_ahead.as_deref().map(beginning));
    if let Some(body) = read {
        let mut place = Reservation::empty(stream.bodies());
        let request = if place.resize(body.len()) { Capture::Read(body, place) } else { Capture::Unwanted };
        stream.set_state(slot, Captured { request, ..Captured::default() });
    }
    None
}

/// The beginning of a request's body that was read whole for somebody else.
pub(super) fn read_whole(stream: &Stream, most: usize) -> Option<Bytes> {
    stream.request_body.as_ref().map(|body| body.slice(..body.len().min(most)))
}

/// Whether pieces of a body are kept; `wants` decides at the first of them.
pub(super) fn decide(
    stream: &mut Stream,
    slot: Slot,
    of: fn(&mut Captured) -> &mut Capture,
    wants: impl FnOnce(&Stream) -> bool,
) -> bool {
    let is_kept = |capture: &mut Capture| match capture {
        Capture::Undecided => None,
        Capture::Unwanted | Capture::Read(..) => Some(false),
        Capture::Pieces(_) => Some(true),
    };
    if let Some(decided) = stream.state::<Captured>(slot).and_then(|captured| is_kept(of(captured))) {
        return decided;
    }
    let decided = wants(stream);
    let capture = if decided { Capture::Pieces(Buffered::new(stream.bodies())) } else { Capture::Unwanted };
    stream.change_state(slot, |captured| *of(captured) = capture);
    decided
}

/// Keeps a piece, as far as there is room for it among `most` bytes. Where the process has too much of bodies in memory nothing is
/// kept of this one.
pub(super) fn keep(
    stream: &mut Stream,
    slot: Slot,
    of: fn(&mut Captured) -> &mut Capture,
    piece: &BodyPiece<'_>,
    most: usize,
) {
    let Some(captured) = stream.state::<Captured>(slot) else { return };
    let capture = of(captured);
    if let Capture::Pieces(pieces) = capture {
        let room = most.saturating_sub(pieces.as_slice().len()).min(piece.data.len());
        if !pieces.push(piece.data.get(..room).unwrap_or_default()) {
            *capture = Capture::Unwanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::stream;
    use sixfold_core::budget::ByteBudget;
    use sixfold_core::plugin::Scope;
    use std::sync::Arc;

    /// Half a MiB of each direction of each request was held beside all bounds.
    #[test]
    fn what_is_kept_comes_out_of_the_bodies_in_memory() {
        const SLOT: Slot = Slot::new(1, Scope::Route);
        fn of(captured: &mut Captured) -> &mut Capture {
            &mut captured.response
        }
        let budget = Arc::new(ByteBudget::new(8 << 10));
        let piece = BodyPiece { data: &[b'x'; 5 << 10], last: false };
        let mut logged = stream("/", &[]);
        logged.bodies = Some(budget.clone());
        let keep = |logged: &mut Stream| {
            let decided = decide(logged, SLOT, of, |_| true);
            keep(logged, SLOT, of, &piece, 1 << 20);
            decided
        };
        assert!(keep(&mut logged));
        assert_eq!(budget.used(), 5 << 10);
        // There is no room for twice as much: nothing is left of it.
        keep(&mut logged);
        assert_eq!(budget.used(), 0);
        assert!(!keep(&mut logged));
        let captured = logged.take_state::<Captured>(SLOT).map(|captured| *captured).unwrap_or_default();
        assert!(captured.response.into_body().is_none());
    }
}
