//! The one engine that runs the phases of a chain, for the server and for [`ChainLayer`](super::ChainLayer).

use super::{Chain, Consumer, HeadPhase, LocalReply, Position, ReadBody, Recreated, Step};
use crate::stream::Stream;
use std::sync::Arc;

/// What became of a phase.
pub enum Outcome {
    /// All handlers ran.
    Done,
    /// One of them answers.
    Respond(LocalReply),
    /// The route must be chosen again; the phase goes on behind this position of the new route's chain.
    ClearRoute(Position),
    /// The consumer is known; the phase goes on behind this position.
    Identify(Position, Arc<Consumer>),
    /// The body must be read; the phase goes on with the handler at this position.
    ReadBody(Position, ReadBody),
    /// Another request is to answer; if it does not, the phase goes on with the handler of this index.
    Recreate(usize, Box<Recreated>),
}

/// What became of the request phases.
pub enum Passed {
    /// They are over: the request goes where its route says.
    Done,
    /// A plugin answers.
    Respond(LocalReply),
    /// The caller chooses the route again, puts its chain in the place of this one, and calls again.
    ClearRoute,
    /// The chain is another one now, for a consumer is known who brings plugins. The caller calls again.
    Identified,
    /// The caller reads so much of the request's body and calls again.
    ReadBody(ReadBody),
}

impl Chain {
    /// Runs one phase.
    pub async fn run(&self, phase: HeadPhase, stream: &mut Stream) -> Outcome {
        self.run_where(phase, stream, 0, |_| true).await
    }

    /// Runs one phase from the handler of this index on.
    pub async fn run_from(&self, phase: HeadPhase, stream: &mut Stream, from: usize) -> Outcome {
        self.run_where(phase, stream, from, |_| true).await
    }

    /// Runs the handlers of one phase at positions for which `wanted` holds.
    async fn run_where(
        &self,
        phase: HeadPhase,
        stream: &mut Stream,
        from: usize,
        wanted: impl Fn(Position) -> bool,
    ) -> Outcome {
        let handlers = self.head(phase).iter().enumerate().skip(from);
        for (index, placed) in handlers.filter(|(_, placed)| wanted(placed.position)) {
            let mut step = placed.on.call(stream, placed.position.slot());
            loop {
                match step {
                    Step::Continue => break,
                    Step::Respond(reply) => return Outcome::Respond(reply),
                    Step::ClearRoute => return Outcome::ClearRoute(placed.position),
                    Step::Identify(consumer) => return Outcome::Identify(placed.position, consumer),
                    Step::ReadBody(wanted) => return Outcome::ReadBody(placed.position, wanted),
                    Step::Recreate(request) => return Outcome::Recreate(index, request),
                    Step::Wait(future) => step = future.await,
                }
            }
        }
        Outcome::Done
    }
}

/// Where a request stands in its request phases: `rewrite`, `rewrite` of what its consumer brings, `access`.
///
/// The chain may change under it, when the route is chosen again or a consumer is known: it then goes on behind
/// the same position.
pub struct RequestPhases {
    at: At,
    after: Option<Position>,
    /// The handler at that position has asked for the body, and is asked again.
    again: bool,
    /// The chain is one that the request has not met before.
    enters: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    Rewrite,
    /// The plugins that the consumer has brought were not there before (APISIX's `rewrite_in_consumer`).
    RewriteOfConsumer,
    Access,
    Over,
}

impl Default for RequestPhases {
    fn default() -> RequestPhases {
        RequestPhases { at: At::Rewrite, after: None, again: false, enters: true }
    }
}

impl RequestPhases {
    /// Runs what is left of them.
    pub async fn run(&mut self, chain: &mut Arc<Chain>, stream: &mut Stream) -> Passed {
        loop {
            // A route chosen again brings a chain that the consumer is not in yet.
            let identified = self.at > At::Rewrite && lay_over(chain, stream);
            if identified || std::mem::take(&mut self.enters) {
                chain.strip_owned(stream, |begins, position| {
                    self.is_to_begin(begins, position, chain.brought())
                });
            }
            if identified {
                return Passed::Identified;
            }
            let (phase, next) = match self.at {
                At::Rewrite => (HeadPhase::Rewrite, At::RewriteOfConsumer),
                At::RewriteOfConsumer => (HeadPhase::Rewrite, At::Access),
                At::Access => (HeadPhase::Access, At::Over),
                At::Over => return Passed::Done,
            };
            let outcome = self.run_phase(phase, chain, stream).await;
            self.again = false;
            match outcome {
                Outcome::Done | Outcome::Recreate(..) => (self.at, self.after) = (next, None),
                Outcome::Respond(reply) => return Passed::Respond(reply),
                Outcome::ClearRoute(position) => {
                    (self.after, self.enters) = (Some(position), true);
                    return Passed::ClearRoute;
                }
                Outcome::Identify(position, consumer) => {
                    self.after = Some(position);
                    stream.identify(consumer);
                }
                Outcome::ReadBody(position, wanted) => {
                    (self.after, self.again) = (Some(position), true);
                    return Passed::ReadBody(wanted);
                }
            }
        }
    }

    /// Where the plugin stands that has asked for the body.
    pub fn asker(&self) -> Option<Position> {
        self.after.filter(|_| self.again)
    }

    /// Whether the plugin with its first handler there has not run yet, and so has said nothing yet.
    fn is_to_begin(&self, begins: HeadPhase, position: Position, brought: Option<&[Position]>) -> bool {
        let is_left = self.after.is_none_or(|after| position > after);
        match begins {
            HeadPhase::Rewrite if self.at == At::Rewrite => is_left,
            HeadPhase::Rewrite => is_left && brought.is_some_and(|brought| brought.contains(&position)),
            _ => self.at < At::Access || is_left,
        }
    }

    async fn run_phase(&self, phase: HeadPhase, chain: &Chain, stream: &mut Stream) -> Outcome {
        let again = self.again;
        let is_left =
            |position| self.after.is_none_or(|after| position > after || (again && position == after));
        match self.at {
            At::RewriteOfConsumer => {
                let brought = chain.brought().unwrap_or_default();
                if brought.is_empty() {
                    return Outcome::Done;
                }
                chain.run_where(phase, stream, 0, |p| is_left(p) && brought.contains(&p)).await
            }
            _ => chain.run_where(phase, stream, 0, is_left).await,
        }
    }
}

/// Lays the consumer's plugins over a chain that has none of a consumer yet; tells whether it did.
fn lay_over(chain: &mut Arc<Chain>, stream: &Stream) -> bool {
    let consumer = stream.consumer.as_ref().filter(|consumer| consumer.brings_plugins());
    let (Some(consumer), None) = (consumer, chain.brought()) else { return false };
    *chain = consumer.chain(chain);
    true
}

#[cfg(test)]
mod tests;
