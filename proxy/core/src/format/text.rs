//! The constant parts of a format: blanks and quotes for the most part.

/// Bytes that are written by one store.
const SHORT: usize = 16;

/// A constant part.
#[derive(Debug, Default)]
pub(super) struct Text {
    /// Its beginning, filled up.
    short: [u8; SHORT],
    all: Box<[u8]>,
}

impl Text {
    pub(super) fn new(text: &[u8]) -> Text {
        let mut short = [0; SHORT];
        short.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
        Text { short, all: text.into() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.all
    }

    /// Appends it.
    #[inline]
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let len = self.all.len();
        if len > SHORT {
            return out.extend_from_slice(&self.all);
        }
        // A length that is known at compile time is copied without a call.
        let start = out.len();
        out.extend_from_slice(&self.short);
        out.truncate(start + len);
    }
}
