//! A bound on bytes that many hold together.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

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
