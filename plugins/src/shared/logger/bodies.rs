//! Beginnings of bodies that entries hold.

use super::expression;
use bytes::Bytes;
use serde_json::Value;
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
    /// It was there as a whole, or so much of it as is kept.
    Read(Bytes),
    /// What has come so far.
    Pieces(Vec<u8>),
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
            Capture::Read(body) => Some(body),
            Capture::Pieces(pieces) => Some(pieces.into()),
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
        stream.set_state(slot, Captured { request: Capture::Read(body), ..Captured::default() });
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
        Capture::Unwanted | Capture::Read(_) => Some(false),
        Capture::Pieces(_) => Some(true),
    };
    if let Some(decided) = stream.state::<Captured>(slot).and_then(|captured| is_kept(of(captured))) {
        return decided;
    }
    let decided = wants(stream);
    let capture = if decided { Capture::Pieces(Vec::new()) } else { Capture::Unwanted };
    stream.change_state(slot, |captured| *of(captured) = capture);
    decided
}

/// Keeps a piece, as far as there is room for it among `most` bytes.
pub(super) fn keep(
    stream: &mut Stream,
    slot: Slot,
    of: fn(&mut Captured) -> &mut Capture,
    piece: &BodyPiece<'_>,
    most: usize,
) {
    let Some(captured) = stream.state::<Captured>(slot) else { return };
    if let Capture::Pieces(pieces) = of(captured) {
        let room = most.saturating_sub(pieces.len()).min(piece.data.len());
        pieces.extend_from_slice(piece.data.get(..room).unwrap_or_default());
    }
}
