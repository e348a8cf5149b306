//! Requests that wait for a connection, since a circuit breaker allows no more of them.

use super::h1::H1Upstream;
use super::kind::Kind;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::sync::oneshot;

/// The requests that wait for a connection of one worker to one endpoint to come back or to end. There is one of
/// their kind, which another has: so each gets its turn.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<VecDeque<Waiting>>,
    /// Whether somebody may wait: nearly always nobody does, and the lock is left alone.
    crowded: AtomicBool,
}

struct Waiting {
    kind: Arc<Kind>,
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
    /// Joins the queue. What is granted to a request that has gone is granted to the next one.
    pub(super) fn join(&self, kind: Arc<Kind>) -> oneshot::Receiver<Grant> {
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
    pub(super) fn offer(&self, mut connection: Box<H1Upstream>) -> Option<Box<H1Upstream>> {
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
            let at = waiting.iter().position(|w| Arc::ptr_eq(&w.kind, &connection.pool_kind))?;
            let sender = waiting.remove(at)?.sender;
            drop(waiting);
            match sender.send(Grant::Connection(connection)) {
                Err(Grant::Connection(back)) => connection = back,
                _ => return None,
            }
        }
    }

    /// Who gets the place of a connection that has ended: the first of its kind, since that may have no other one,
    /// else the first of all.
    fn next(&self, kind: &Arc<Kind>) -> Option<Waiting> {
        let mut waiting = self.waiting.lock();
        let own = waiting.iter().position(|w| Arc::ptr_eq(&w.kind, kind));
        waiting.remove(own.unwrap_or(0))
    }
}

/// One counted connection. When it ends, a request that waits gets its place.
pub(crate) struct Place(Option<(Arc<Queue>, Arc<Kind>)>);

impl Place {
    /// Counts one more of this kind.
    pub(super) fn new(queue: &Arc<Queue>, kind: &Arc<Kind>) -> Place {
        kind.enter();
        Place(Some((queue.clone(), kind.clone())))
    }

    /// Gives the place up without telling those that wait: another one's end will.
    pub(super) fn forfeit(mut self) {
        if let Some((_, kind)) = self.0.take() {
            kind.leave();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while let Some((queue, kind)) = self.0.take() {
            let next = queue.next(&kind);
            kind.leave();
            let Some(next) = next else { return };
            next.kind.enter();
            if let Err(Grant::Place(mut back)) =
                next.sender.send(Grant::Place(Place(Some((queue, next.kind)))))
            {
                // That request has gone.
                self.0 = back.0.take();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use super::*;

    fn queue() -> (Arc<Queue>, Arc<Kind>) {
        Default::default()
    }

    #[test]
    fn a_place_goes_to_the_first_that_still_waits_and_else_is_free() {
        let (queue, kind) = queue();
        let place = Place::new(&queue, &kind);
        let gone = queue.join(kind.clone());
        let mut first = queue.join(kind.clone());
        let mut second = queue.join(kind.clone());
        drop(gone);
        drop(place);
        assert!(matches!(first.try_recv(), Ok(Grant::Place(_))), "it is taken and dropped at once");
        assert_eq!(kind.open(), 1);
        assert!(matches!(second.try_recv(), Ok(Grant::Place(_))));
        assert_eq!(kind.open(), 0);
    }

    /// The only connection of a kind went to whoever waited first, and those of its own kind were left without any.
    #[test]
    fn a_place_goes_to_its_own_kind_first_and_counts_where_it_goes() {
        let ((queue, kind), other) = (queue(), Arc::new(Kind::default()));
        let mut others = queue.join(other.clone());
        let mut own = queue.join(kind.clone());
        drop(Place::new(&queue, &kind));
        assert!(others.try_recv().is_err());
        let Ok(Grant::Place(place)) = own.try_recv() else { panic!("it got none") };
        drop(place);
        let Ok(Grant::Place(place)) = others.try_recv() else { panic!("nobody else wants it") };
        assert_eq!((kind.open(), other.open()), (0, 1));
        drop(place);
        assert_eq!(other.open(), 0);
    }

    #[test]
    fn a_place_that_nobody_fetched_is_not_lost() {
        let (queue, kind) = queue();
        let (first, mut second) = (queue.join(kind.clone()), queue.join(kind.clone()));
        drop(Place::new(&queue, &kind));
        drop(first);
        assert!(second.try_recv().is_ok());
    }

    /// Requests that gave up stayed in the queue for as long as no connection came back: behind tunnels, for hours.
    #[test]
    fn those_that_have_gone_do_not_pile_up() {
        let (queue, kind) = queue();
        let mut waiting = queue.join(kind.clone());
        (0..10_000).for_each(|_| drop(queue.join(kind.clone())));
        assert!(queue.waiting.lock().len() < 100);
        drop(Place::new(&queue, &kind));
        assert!(matches!(waiting.try_recv(), Ok(Grant::Place(_))), "who still waits keeps its turn");
    }

    #[test]
    fn a_forfeited_place_wakes_nobody() {
        let (queue, kind) = queue();
        let mut waiting = queue.join(kind.clone());
        Place::new(&queue, &kind).forfeit();
        assert!(waiting.try_recv().is_err());
        assert_eq!(kind.open(), 0);
    }
}
