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

    /// Adds a text that is written at its end, as [`Key::text`] adds one.
    pub(super) fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let begin = self.0.len();
        self.text(&[]);
        let text = self.0.len();
        write(&mut self.0);
        let length = self.0.len().saturating_sub(text) as u32;
        if let Some(place) = self.0.get_mut(begin..text) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }

    /// All that was added.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_written_is_one_that_was_added() {
        let (mut added, mut written) = (Key(Vec::new()), Key(Vec::new()));
        for text in [&b"ab"[..], b"", b"c"] {
            added.text(text);
            written.write(|out| out.extend_from_slice(text));
        }
        assert_eq!(added.bytes(), written.bytes());
    }
}
