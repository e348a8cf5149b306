//! What a turn of a script may still do.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Instructions of one turn, about a tenth of a second of them. Steps of matching count as instructions.
const TURN: u64 = 10_000_000;

/// Why a script whose budget is spent ends.
pub(super) const SPENT: &str = "script has run for too long";

/// Instructions that are left. A machine runs one script at a time: nobody else counts meanwhile.
pub(super) struct Budget(AtomicU64);

impl Budget {
    pub(super) fn new() -> Budget {
        Budget(AtomicU64::new(TURN))
    }

    /// A turn begins.
    pub(super) fn renew(&self) {
        self.0.store(TURN, Relaxed);
    }

    pub(super) fn left(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Whether nothing is left.
    pub(super) fn is_spent(&self) -> bool {
        self.left() == 0
    }

    /// Says what is left after something was done.
    pub(super) fn leave(&self, left: u64) {
        self.0.store(left, Relaxed);
    }

    /// Takes instructions that have run; whether anything is left.
    pub(super) fn take(&self, instructions: u64) -> bool {
        self.leave(self.left().saturating_sub(instructions));
        !self.is_spent()
    }
}
