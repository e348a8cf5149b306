//! Bodies on their way through plugins, piece by piece.
//!
//! Each filter of a direction has a state of its own: what one holds back, or has given up on, changes nothing
//! for the others. What passes all of them untouched is never copied.

use super::{Chain, Direction, LocalReply, Position};
use crate::headers::{HeaderName, Headers};
use crate::stream::Stream;
use bytes::Bytes;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// A piece of a body as a handler sees it, behind the filters before it.
#[derive(Debug, Clone, Copy)]
pub struct BodyPiece<'a> {
    /// The bytes; what the handler has held before comes first.
    pub data: &'a [u8],
    /// Whether this is the end. The last piece may be empty; the message's trailers, if it has any, are in the
    /// stream by then.
    pub last: bool,
}

/// What a handler does with a piece.
pub enum BodyStep {
    /// It goes on as it is.
    Pass,
    /// This goes on in its place; nothing, if it is empty.
    Replace(Bytes),
    /// This goes on in the place of the last piece, and trailers of the message follow, each in the place of those of its
    /// name: what only the end of the work tells. Of a piece that is not the last there are no trailers.
    Finish(Bytes, Vec<(HeaderName, Vec<u8>)>),
    /// Nothing goes on yet: the piece comes again, with the next one behind it. The last piece can't be held; it
    /// then passes.
    Hold(Hold),
    /// The direction stands still until the future says what to do with the piece. Dropping it must leave
    /// nothing behind.
    Wait(BodyFuture),
    /// An answer in place of the exchange. Once the head of the response has gone out, the stream is cut instead.
    Respond(Box<LocalReply>),
    /// The handler needs more memory than bodies may take ([`Stream::bodies`]): 503 in place of the exchange, or a cut.
    OverBudget,
}

/// What a handler waits for.
pub type BodyFuture = Pin<Box<dyn Future<Output = BodyStep> + Send>>;

/// How much is held for a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Bytes.
    pub limit: usize,
    /// What becomes of a body that is longer.
    pub on_overflow: Overflow,
}

/// What becomes of a body that is longer than a handler can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// It passes this handler, what was held and all that follows. The other handlers of the chain go on.
    Pass,
    /// The exchange ends: 413 for a request; 500, or a cut, for a response.
    Refuse,
}

impl BodyStep {
    /// Holds up to `limit` bytes; a longer body passes as it is.
    pub fn hold(limit: usize) -> BodyStep {
        BodyStep::Hold(Hold { limit, on_overflow: Overflow::Pass })
    }
}

/// What a handler does with trailers, which are in the stream and may be changed there.
pub enum TrailersStep {
    /// The next handler.
    Continue,
    /// These in place of what is there.
    Replace(Headers),
    /// To wait. Dropping the future must leave nothing behind.
    Wait(TrailersFuture),
    /// An answer in place of the exchange. Once the head of the response has gone out, the stream is cut instead.
    Respond(Box<LocalReply>),
}

/// What a handler of trailers waits for.
pub type TrailersFuture = Pin<Box<dyn Future<Output = TrailersStep> + Send>>;

/// What became of a piece.
#[derive(Debug)]
pub enum Filtered {
    /// It goes on as it came.
    Same,
    /// This goes on in its place; nothing, if it is empty.
    Data(Bytes),
    /// A handler waits; [`BodyFilters::poll`] tells how it ends. No further piece until then.
    Waiting,
    /// An answer of a handler.
    Respond(Box<LocalReply>),
    /// Longer than a handler can hold, and it must not pass.
    TooLong,
    /// There is no room for what a handler keeps.
    OverBudget,
}

/// One direction of one exchange on its way through the filters of a chain.
///
/// It holds memory only for handlers that hold a piece or wait; each of them bounds how much. Every call takes the
/// same chain.
pub struct BodyFilters {
    direction: Direction,
    /// Of the chain's filters of this direction, those that are meant.
    part: Range<usize>,
    /// By index among the chain's filters of this direction.
    kept: Vec<(usize, Kept)>,
    waiting: Option<Waiting>,
    /// Of the handlers of trailers, those that are left.
    trailers: Range<usize>,
    trailers_wait: Option<TrailersFuture>,
}

/// What is kept for a filter between pieces.
enum Kept {
    /// Bytes that it holds.
    Held(Vec<u8>),
    /// The body has outgrown it: it is not asked any more.
    Outgrown,
}

struct Waiting {
    at: usize,
    future: BodyFuture,
    piece: Bytes,
    last: bool,
}

/// A piece between two filters.
enum Piece<'a> {
    Given(&'a [u8]),
    /// With what a filter has held before it: it grows in place when it is held again.
    Joined(Vec<u8>),
    Own(Bytes),
}

impl Piece<'_> {
    fn as_slice(&self) -> &[u8] {
        match self {
            Piece::Given(data) => data,
            Piece::Joined(data) => data,
            Piece::Own(data) => data,
        }
    }

    fn into_vec(self) -> Vec<u8> {
        match self {
            Piece::Given(data) => data.to_vec(),
            Piece::Joined(data) => data,
            Piece::Own(data) => data.into(),
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Piece::Given(data) => Bytes::copy_from_slice(data),
            Piece::Joined(data) => data.into(),
            Piece::Own(data) => data,
        }
    }
}

impl BodyFilters {
    /// The filters of one direction, before the first piece.
    pub fn new(direction: Direction) -> BodyFilters {
        let all = 0..usize::MAX;
        BodyFilters {
            direction,
            part: all.clone(),
            kept: Vec::new(),
            waiting: None,
            trailers: all,
            trailers_wait: None,
        }
    }

    /// Those of the request that stand at `from` or behind it, and before `until`, each where it is given; `None` where the chain has none
    /// there.
    pub fn of_request(chain: &Chain, from: Option<Position>, until: Option<Position>) -> Option<BodyFilters> {
        let bodies = chain.body(Direction::Request).iter().map(|placed| placed.position);
        let trailers = chain.trailers(Direction::Request).iter().map(|placed| placed.position);
        let (part, trailers) = (part_of(&bodies, from, until), part_of(&trailers, from, until));
        let filters = BodyFilters { part, trailers, ..BodyFilters::new(Direction::Request) };
        (!filters.part.is_empty() || !filters.trailers.is_empty()).then_some(filters)
    }

    /// Whether a handler waits.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Bytes of memory that are kept between pieces: what handlers hold, and the piece one of them waits with.
    pub fn held(&self) -> usize {
        let held = self.kept.iter().map(|(_, kept)| match kept {
            Kept::Held(bytes) => bytes.capacity(),
            Kept::Outgrown => 0,
        });
        held.sum::<usize>() + self.waiting.as_ref().map_or(0, |waiting| waiting.piece.len())
    }

    /// Runs the filters on a piece.
    pub fn push(&mut self, chain: &Chain, stream: &mut Stream, data: &[u8], last: bool) -> Filtered {
        self.run(chain, stream, self.part.start, Piece::Given(data), last)
    }

    /// Goes on with the piece that a handler waits for. Ready at once when none does.
    pub fn poll(&mut self, chain: &Chain, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Filtered> {
        loop {
            let Some(waiting) = &mut self.waiting else { return Poll::Ready(Filtered::Data(Bytes::new())) };
            let step = ready!(waiting.future.as_mut().poll(cx));
            let Some(Waiting { at, piece, last, .. }) = self.waiting.take() else { continue };
            let filtered = match self.settle(stream, at, step, Piece::Own(piece), last) {
                Settled::Next(piece) => self.run(chain, stream, at + 1, piece, last),
                Settled::End(filtered) => filtered,
            };
            if !matches!(filtered, Filtered::Waiting) {
                return Poll::Ready(filtered);
            }
        }
    }

    /// Runs the handlers of trailers, after the last piece; ready at once when there are no trailers. What one of them
    /// answers in place of the exchange ends the run.
    pub fn poll_trailers(
        &mut self,
        chain: &Chain,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Box<LocalReply>>> {
        let handlers = chain.trailers(self.direction);
        loop {
            let step = match &mut self.trailers_wait {
                Some(future) => ready!(future.as_mut().poll(cx)),
                None => match handlers.get(self.trailers.start).filter(|_| !self.trailers.is_empty()) {
                    Some(handler) if !trailers(stream, self.direction).is_empty() => {
                        handler.on.call(stream, handler.position.slot())
                    }
                    _ => return Poll::Ready(None),
                },
            };
            self.trailers_wait = None;
            match step {
                TrailersStep::Continue => self.trailers.start += 1,
                TrailersStep::Replace(headers) => {
                    *trailers(stream, self.direction) = headers;
                    self.trailers.start += 1;
                }
                TrailersStep::Wait(future) => self.trailers_wait = Some(future),
                TrailersStep::Respond(reply) => return Poll::Ready(Some(reply)),
            }
        }
    }

    fn run(
        &mut self,
        chain: &Chain,
        stream: &mut Stream,
        mut at: usize,
        mut piece: Piece<'_>,
        last: bool,
    ) -> Filtered {
        let filters = chain.body(self.direction);
        while let Some(filter) = filters.get(at).filter(|_| at < self.part.end) {
            if piece.as_slice().is_empty() && !last {
                return Filtered::Data(Bytes::new());
            }
            // To plugins of APISIX what goes through a tunnel is no body.
            let is_seen = !stream.is_tunnel || !filter.position.is_part();
            let Some(mut held) = self.take_held(at).filter(|_| is_seen) else {
                at += 1;
                continue;
            };
            if !held.is_empty() {
                held.extend_from_slice(piece.as_slice());
                piece = Piece::Joined(held);
            }
            let step =
                filter.on.call(stream, filter.position.slot(), &BodyPiece { data: piece.as_slice(), last });
            match self.settle(stream, at, step, piece, last) {
                Settled::Next(next) => piece = next,
                Settled::End(filtered) => return filtered,
            }
            at += 1;
        }
        match piece {
            Piece::Given(_) => Filtered::Same,
            changed => Filtered::Data(changed.into_bytes()),
        }
    }

    /// Does what the filter at `at` wants done with the piece it was asked about.
    fn settle<'p>(
        &mut self,
        stream: &mut Stream,
        at: usize,
        step: BodyStep,
        piece: Piece<'p>,
        last: bool,
    ) -> Settled<'p> {
        match step {
            BodyStep::Pass => Settled::Next(piece),
            BodyStep::Replace(data) => Settled::Next(Piece::Own(data)),
            BodyStep::Finish(data, fields) => {
                for (name, value) in fields.iter().filter(|_| last) {
                    trailers(stream, self.direction).set(name, value);
                }
                Settled::Next(Piece::Own(data))
            }
            BodyStep::Hold(_) if last => Settled::Next(piece),
            BodyStep::Hold(hold) if piece.as_slice().len() <= hold.limit => {
                self.kept.push((at, Kept::Held(piece.into_vec())));
                Settled::End(Filtered::Data(Bytes::new()))
            }
            BodyStep::Hold(hold) if hold.on_overflow == Overflow::Refuse => Settled::End(Filtered::TooLong),
            BodyStep::Hold(_) => {
                self.kept.push((at, Kept::Outgrown));
                Settled::Next(piece)
            }
            BodyStep::Wait(future) => {
                self.waiting = Some(Waiting { at, future, piece: piece.into_bytes(), last });
                Settled::End(Filtered::Waiting)
            }
            BodyStep::Respond(reply) => Settled::End(Filtered::Respond(reply)),
            BodyStep::OverBudget => Settled::End(Filtered::OverBudget),
        }
    }

    /// What the filter at `at` holds, taken out; `None` if the body has outgrown it.
    fn take_held(&mut self, at: usize) -> Option<Vec<u8>> {
        let Some(found) = self.kept.iter().position(|(filter, _)| *filter == at) else {
            return Some(Vec::new());
        };
        match &self.kept.get(found)?.1 {
            Kept::Outgrown => None,
            Kept::Held(_) => match self.kept.swap_remove(found).1 {
                Kept::Held(held) => Some(held),
                Kept::Outgrown => None,
            },
        }
    }
}

/// What follows from a step.
enum Settled<'p> {
    /// The next filter, with this piece.
    Next(Piece<'p>),
    /// No further filter.
    End(Filtered),
}

/// Of positions in their order, the part at `from` and behind it, and before `until`.
fn part_of(
    positions: &(impl Iterator<Item = Position> + Clone),
    from: Option<Position>,
    until: Option<Position>,
) -> Range<usize> {
    let before = |bound: Position| positions.clone().take_while(|position| *position < bound).count();
    let start = from.map_or(0, before);
    start..until.map_or(positions.clone().count(), before).max(start)
}

fn trailers(stream: &mut Stream, direction: Direction) -> &mut Headers {
    match direction {
        Direction::Request => &mut stream.request_trailers,
        Direction::Response => &mut stream.response_trailers,
    }
}

#[cfg(test)]
mod tests;
