//! Requests that wait for a connection, since a circuit breaker allows no more of them.

use super::h1::H1Upstream;
use super::kind::Kind;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use tokio::sync::oneshot;

/// The connections of one worker to one endpoint, counted, and the requests that wait for one to come back or
/// to end.
#[derive(Default)]
pub(super) struct Queue {
    open: AtomicUsize,
    waiting: Mutex<VecDeque<Waiting>>,
    /// Whether somebody may wait: nearly always nobody does, and the lock is left alone.
    crowded: AtomicBool,
}

struct Waiting {
    kind: Kind,
    sender: oneshot::Sender<Grant>,
}

/// What a request that waited gets.
pub(super) enum Grant {
    /// A connection that another request has given back.
    Connection(Box<H1Upstream>),
    /// The place of a connection that has ended: a new one may be opened.
    Place(Place),
}

impl Queue {
    /// Connections that are open or being opened.
    pub(super) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Joins the queue. What is granted to a request that has gone is granted to the next one.
    pub(super) fn join(&self, kind: Kind) -> oneshot::Receiver<Grant> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        // Where no connection comes back for long those that have gone must not pile up: they leave before it grows.
        if waiting.len() == waiting.capacity() {
            waiting.retain(|w| !w.sender.is_closed());
        }
        waiting.push_back(Waiting { kind, sender });
        self.crowded.store(true, Relaxed);
        receiver
    }

    /// Gives a connection to the first request that it serves, else back. It is closed when all that wait need
    /// another kind: its place is worth more to them than it is.
    pub(super) fn offer(&self, mut connection: Box<H1Upstream>, kind: &Kind) -> Option<Box<H1Upstream>> {
        // One worker alone gives back here and joins here.
        if !self.crowded.load(Relaxed) {
            return Some(connection);
        }
        loop {
            let mut waiting = self.waiting.lock();
            waiting.retain(|w| !w.sender.is_closed());
            if waiting.is_empty() {
                self.crowded.store(false, Relaxed);
                return Some(connection);
            }
            let at = waiting.iter().position(|w| w.kind.is_same(kind))?;
            let sender = waiting.remove(at)?.sender;
            drop(waiting);
            match sender.send(Grant::Connection(connection)) {
                Err(Grant::Connection(back)) => connection = back,
                _ => return None,
            }
        }
    }
}

/// One counted connection. When it ends, the first request that waits gets its place.
pub(crate) struct Place(Option<Arc<Queue>>);

impl Place {
    /// Counts one more.
    pub(super) fn new(queue: &Arc<Queue>) -> Place {
        queue.open.fetch_add(1, Relaxed);
        Place(Some(queue.clone()))
    }

    /// Gives the place up without telling those that wait: another one's end will.
    pub(super) fn forfeit(mut self) {
        if let Some(queue) = self.0.take() {
            queue.open.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while let Some(queue) = self.0.take() {
            let Some(next) = queue.waiting.lock().pop_front() else {
                queue.open.fetch_sub(1, Relaxed);
                return;
            };
            if let Err(Grant::Place(mut back)) = next.sender.send(Grant::Place(Place(Some(queue)))) {
                // That request has gone.
                self.0 = back.0.take();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_place_goes_to_the_first_that_still_waits_and_else_is_free() {
        let queue = Arc::new(Queue::default());
        let place = Place::new(&queue);
        let gone = queue.join(Kind::default());
        let mut first = queue.join(Kind::default());
        let mut second = queue.join(Kind::default());
        drop(gone);
        drop(place);
        assert!(matches!(first.try_recv(), Ok(Grant::Place(_))), "it is taken and dropped at once");
        assert_eq!(queue.open(), 1);
        assert!(matches!(second.try_recv(), Ok(Grant::Place(_))));
        assert_eq!(queue.open(), 0);
    }

    #[test]
    fn a_place_that_nobody_fetched_is_not_lost() {
        let queue = Arc::new(Queue::default());
        let (first, mut second) = (queue.join(Kind::default()), queue.join(Kind::default()));
        drop(Place::new(&queue));
        drop(first);
        assert!(second.try_recv().is_ok());
    }

    /// Requests that gave up stayed in the queue for as long as no connection came back: behind tunnels, for hours.
    #[test]
    fn those_that_have_gone_do_not_pile_up() {
        let queue = Queue::default();
        let mut waiting = queue.join(Kind::default());
        (0..10_000).for_each(|_| drop(queue.join(Kind::default())));
        assert!(queue.waiting.lock().len() < 100);
        let queue = Arc::new(queue);
        drop(Place::new(&queue));
        assert!(matches!(waiting.try_recv(), Ok(Grant::Place(_))), "who still waits keeps its turn");
    }

    #[test]
    fn a_forfeited_place_wakes_nobody() {
        let queue = Arc::new(Queue::default());
        let mut waiting = queue.join(Kind::default());
        Place::new(&queue).forfeit();
        assert!(waiting.try_recv().is_err());
        assert_eq!(queue.open(), 0);
    }
}
