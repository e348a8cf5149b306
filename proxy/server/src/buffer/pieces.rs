//! Memory for buffers, which each thread keeps for the next taker.

use std::cell::RefCell;
use std::thread::LocalKey;

/// Bytes of a fresh buffer: what one read of a head takes.
pub(crate) const PIECE: usize = 16 * 1024;
/// Bytes of a buffer of long bodies. A read or a write costs the system nearly as much for the sixteenth part of it: who
/// waits is woken, and what came is acknowledged.
pub(crate) const LARGE: usize = 256 * 1024;
/// Buffers of the usual size that a thread keeps for reuse.
const KEPT: usize = 64;
/// Large ones. They are taken for as long as something is passed on, so that a thread seldom has two.
const KEPT_LARGE: usize = 4;

/// Buffers that nobody uses.
pub(super) struct Pieces {
    usual: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
}

/// Those of a thread.
pub(super) type Kept = LocalKey<RefCell<Pieces>>;

impl Pieces {
    pub(super) const fn new() -> Pieces {
        Pieces { usual: Vec::new(), large: Vec::new() }
    }

    /// How many of each size there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize) {
        (self.usual.len(), self.large.len())
    }
}

/// A buffer of the usual size, if one is kept.
#[inline]
pub(super) fn take(kept: &'static Kept) -> Option<Vec<u8>> {
    kept.with_borrow_mut(|pieces| pieces.usual.pop())
}

/// A large one, if one is kept.
#[inline]
pub(super) fn take_large(kept: &'static Kept) -> Option<Vec<u8>> {
    kept.with_borrow_mut(|pieces| pieces.large.pop())
}

/// Keeps a buffer of either size for the next taker; others are freed.
#[inline]
pub(super) fn give_back(kept: &'static Kept, piece: Vec<u8>) {
    let capacity = piece.capacity();
    if capacity != PIECE && capacity != LARGE {
        return;
    }
    kept.with_borrow_mut(|pieces| {
        let (list, most) = match capacity {
            PIECE => (&mut pieces.usual, KEPT),
            _ => (&mut pieces.large, KEPT_LARGE),
        };
        if list.len() < most {
            list.push(piece);
        }
    });
}
