//! What a turn of a script may still do.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Instructions of one turn, about a tenth of a second of them. Steps of matching count as instructions.
const TURN: u64 = 10_000_000;

/// How long a turn may take, whatever its instructions are: comparing or joining long texts is one.
const LONGEST: Duration = Duration::from_millis(500);

/// Bytes that are copied at once for about the time of one instruction.
const AT_ONCE: usize = 16;

/// Why a script whose budget is spent ends.
pub(super) const SPENT: &str = "script has run for too long";

/// Instructions that are left, and when the turn ends. A machine runs one script at a time: nobody else counts meanwhile.
pub(super) struct Budget {
    left: AtomicU64,
    made: Instant,
    /// Microseconds after it was made.
    ends: AtomicU64,
}

impl Budget {
    pub(super) fn new() -> Budget {
        let budget = Budget { left: AtomicU64::new(TURN), made: Instant::now(), ends: AtomicU64::new(0) };
        budget.renew();
        budget
    }

    /// A turn begins.
    pub(super) fn renew(&self) {
        self.leave(TURN);
        self.ends.store(micros(self.made.elapsed() + LONGEST), Relaxed);
    }

    pub(super) fn left(&self) -> u64 {
        self.left.load(Relaxed)
    }

    /// Whether nothing is left.
    pub(super) fn is_spent(&self) -> bool {
        self.left() == 0
    }

    /// Says what is left after something was done.
    pub(super) fn leave(&self, left: u64) {
        self.left.store(left, Relaxed);
    }

    /// Takes instructions that have run; whether anything is left, of them and of the time.
    pub(super) fn take(&self, instructions: u64) -> bool {
        let is_late = micros(self.made.elapsed()) > self.ends.load(Relaxed);
        self.leave(if is_late { 0 } else { self.left().saturating_sub(instructions) });
        !self.is_spent()
    }

    /// The same of bytes that are copied.
    pub(super) fn take_bytes(&self, bytes: usize) -> bool {
        self.take((bytes / AT_ONCE) as u64)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
