//! Keys of series: few bytes, made of numbers that stand for what does not change from one request to the next.

use std::cell::RefCell;

thread_local! {
    /// Kept so that a key costs no allocation.
    static KEY: RefCell<Key> = const { RefCell::new(Key(Vec::new())) };
}

/// Longest key that a thread keeps the memory of.
const KEPT: usize = 4 << 10;

/// A key that is being made.
pub(super) struct Key(Vec<u8>);

impl Key {
    /// Hands out an empty one.
    pub(super) fn with<T>(make: impl FnOnce(&mut Key) -> T) -> T {
        KEY.with_borrow_mut(|key| {
            key.0.clear();
            let made = make(key);
            key.0.shrink_to(KEPT);
            made
        })
    }

    /// Adds a number.
    pub(super) fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    /// Adds a text, so that it can't be taken for a part of another one.
    pub(super) fn text(&mut self, text: &[u8]) {
        self.0.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.0.extend_from_slice(text);
    }

    /// All that was added.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
