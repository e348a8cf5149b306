//! Who may compute: so many at a time.
//!
//! Whoever has begun comes before those who have not, so that few are under way at once. Of those who have not, the last to
//! come is the first to go: a readiness probe is answered though a hundred scrapes came before it, and a client that has
//! waited for long has mostly left.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Turns of those who compute.
#[derive(Clone)]
pub(super) struct Turns(Arc<Mutex<Queue>>);

struct Queue {
    free: usize,
    begun: VecDeque<oneshot::Sender<Turn>>,
    new: Vec<oneshot::Sender<Turn>>,
}

impl Turns {
    pub(super) fn new(at_once: usize) -> Turns {
        Turns(Arc::new(Mutex::new(Queue { free: at_once, begun: VecDeque::new(), new: Vec::new() })))
    }

    /// Waits for a first turn.
    pub(super) async fn turn(&self) -> Turn {
        self.wait(|queue, turn| queue.new.push(turn)).await
    }

    /// Waits for another turn, of one who has given it away in between.
    pub(super) async fn turn_again(&self) -> Turn {
        self.wait(|queue, turn| queue.begun.push_back(turn)).await
    }

    async fn wait(&self, join: impl FnOnce(&mut Queue, oneshot::Sender<Turn>)) -> Turn {
        let comes = {
            let mut queue = self.0.lock();
            if queue.free > 0 {
                queue.free -= 1;
                return Turn(self.clone());
            }
            // Those whose clients have left are not kept.
            queue.new.retain(|waiting| !waiting.is_closed());
            let (turn, comes) = oneshot::channel();
            join(&mut queue, turn);
            comes
        };
        // It is dropped where it is sent only; without a turn at all nobody would ever go on.
        comes.await.unwrap_or_else(|_| Turn(self.clone()))
    }
}

/// A turn, until it is dropped.
pub(super) struct Turn(Turns);

impl Drop for Turn {
    fn drop(&mut self) {
        let mut queue = self.0.0.lock();
        let next = queue.begun.pop_front().or_else(|| queue.new.pop());
        match next {
            Some(next) => {
                drop(queue);
                // Who has left drops it, and the next one gets it.
                let _ = next.send(Turn(self.0.clone()));
            }
            None => queue.free += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::pin::pin;

    #[test]
    fn who_has_begun_goes_on_first_and_then_who_came_last() {
        let turns = Turns::new(1);
        let first = turns.turn().now_or_never();
        assert!(first.is_some());
        let (mut early, mut late) = (pin!(turns.turn()), pin!(turns.turn()));
        let mut again = pin!(turns.turn_again());
        assert!(early.as_mut().now_or_never().is_none() && late.as_mut().now_or_never().is_none());
        assert!(again.as_mut().now_or_never().is_none());
        {
            // One that leaves while it waits takes no turn with it.
            let mut gone = pin!(turns.turn_again());
            assert!(gone.as_mut().now_or_never().is_none());
        }
        drop(first);
        let second = again.now_or_never();
        assert!(second.is_some() && late.as_mut().now_or_never().is_none());
        drop(second);
        let third = late.now_or_never();
        assert!(third.is_some() && early.as_mut().now_or_never().is_none());
        drop(third);
        drop(early.now_or_never());
        assert_eq!(turns.0.lock().free, 1);
    }
}
