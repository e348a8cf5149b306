//! A bound on bytes that many hold together.

use bytes::Bytes;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

/// What a buffer takes with its first bytes.
const FIRST: usize = 4 << 10;

/// Bytes that several holders may have together, whichever thread they are on.
#[derive(Debug)]
pub struct ByteBudget {
    limit: usize,
    used: AtomicUsize,
}

impl ByteBudget {
    /// A budget of so many bytes, of which none is taken.
    pub const fn new(limit: usize) -> ByteBudget {
        ByteBudget { limit, used: AtomicUsize::new(0) }
    }

    /// A budget without a bound, for whoever works on bodies outside of a server.
    pub fn unbounded() -> &'static Arc<ByteBudget> {
        static UNBOUNDED: LazyLock<Arc<ByteBudget>> = LazyLock::new(|| Arc::new(ByteBudget::new(usize::MAX)));
        &UNBOUNDED
    }

    /// Bytes that are taken.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Takes so many bytes; `false`, and none is taken, when there is no room for all of them.
    #[must_use]
    pub fn take(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|all| *all <= self.limit);
        self.used.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    /// Gives back what was taken.
    #[inline]
    pub fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            self.used.fetch_sub(bytes, Relaxed);
        }
    }
}

/// Bytes taken from a budget; dropping it gives them back.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<ByteBudget>,
    bytes: usize,
}

impl Reservation {
    /// Nothing yet.
    #[must_use]
    pub fn empty(budget: &Arc<ByteBudget>) -> Reservation {
        Reservation { budget: budget.clone(), bytes: 0 }
    }

    /// Makes it so many bytes; `false`, and it stays as it was, when there is no room for the difference.
    #[must_use]
    pub fn resize(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes && !self.budget.take(bytes - self.bytes) {
            return false;
        }
        self.budget.give_back(self.bytes.saturating_sub(bytes));
        self.bytes = bytes;
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// A body that grows within the budget.
#[derive(Debug)]
pub struct Buffered {
    bytes: Vec<u8>,
    held: Reservation,
}

impl Buffered {
    /// Nothing yet; takes no memory.
    #[must_use]
    pub fn new(budget: &Arc<ByteBudget>) -> Buffered {
        Buffered { bytes: Vec::new(), held: Reservation::empty(budget) }
    }

    /// Adds a piece; `false`, and nothing is added, when the process holds too much already.
    #[must_use]
    pub fn push(&mut self, piece: &[u8]) -> bool {
        let needed = self.bytes.len() + piece.len();
        if needed > self.held.bytes {
            let grown = needed.max(self.held.bytes * 2).max(FIRST);
            if !self.held.resize(grown) {
                return false;
            }
            self.bytes.reserve_exact(grown - self.bytes.len());
        }
        self.bytes.extend_from_slice(piece);
        true
    }

    /// Takes out what there is, and begins anew.
    #[must_use]
    pub fn take(&mut self) -> Buffered {
        let next = Buffered::new(&self.held.budget);
        std::mem::replace(self, next)
    }

    /// What was added.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// The whole body, and its place in the budget: keep that for as long as the body.
    pub fn finish(self) -> (Bytes, Reservation) {
        (self.bytes.into(), self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is() {
        let budget = ByteBudget::new(10);
        assert!(budget.take(10) && !budget.take(1) && !budget.take(usize::MAX));
        budget.give_back(4);
        assert_eq!((budget.used(), budget.take(5), budget.take(4), budget.used()), (6, false, true, 10));
    }

    #[test]
    fn bodies_grow_within_the_budget_and_give_it_back() {
        let budget = Arc::new(ByteBudget::new(64 << 10));
        let (mut one, mut two) = (Buffered::new(&budget), Buffered::new(&budget));
        assert_eq!(budget.used(), 0);
        for piece in 0..10u8 {
            assert!(one.push(&[piece; 3000]));
        }
        assert!(budget.used() >= 30_000 && budget.used() < 2 * 30_000);
        assert!(two.push(&[7; 20_000]) && !two.push(&[7; 20_000]), "there is no room for both");
        assert_eq!(two.as_slice().len(), 20_000, "a refused piece leaves what was there");
        let (body, held) = one.finish();
        assert_eq!((body.len(), body[29_999]), (30_000, 9));
        drop(held);
        assert!(two.push(&[7; 20_000]));
        drop(two);
        assert_eq!(budget.used(), 0);
    }

    /// A budget that adds first and looks then refuses what fits while somebody is being refused.
    #[test]
    fn who_is_refused_takes_no_room_from_others() {
        let budget = ByteBudget::new(10);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..100_000).for_each(|_| assert!(!budget.take(11))));
            scope.spawn(|| {
                for _ in 0..100_000 {
                    assert!(budget.take(10));
                    budget.give_back(10);
                }
            });
        });
    }
}
