//! A field as a line of HTTP/1: where it lies, and what is known of it.

use super::{Key, Known};
use std::ops::Range;

/// What stands between a name and its value.
pub(super) const COLON: &[u8] = b": ";
/// What ends a line.
pub(super) const END: &[u8] = b"\r\n";
/// Bytes of a line that are neither name nor value.
pub(super) const AROUND: usize = COLON.len() + END.len();

/// One field: where its line lies in the arena.
#[derive(Clone, Copy)]
pub(super) struct Field {
    pub(super) at: u32,
    pub(super) value_len: u32,
    pub(super) name_len: u16,
    /// 0 for a name that is not well known.
    pub(super) known: u8,
    pub(super) flags: u8,
}

/// Nothing in the line could be read as its end or as the end of its name.
pub(super) const SOUND: u8 = 1;
/// The name has an upper case letter.
pub(super) const UPPER: u8 = 2;

/// What is to be known of a line.
#[inline]
pub(super) fn flags(sound: bool, upper: bool) -> u8 {
    (if sound { SOUND } else { 0 }) | (if upper { UPPER } else { 0 })
}

/// A field as a line of HTTP/1.
#[derive(Clone, Debug)]
pub struct Line {
    /// The id of a well-known name.
    pub known: Option<Known>,
    /// Bytes of the name, which begins the line.
    pub name_len: usize,
    /// Where it lies among [`Headers::wire`], from its name to its line end.
    pub at: Range<usize>,
    /// Whether the name has an upper case letter.
    pub upper: bool,
    /// Whether the name is a token and the value has no CR, LF or NUL: another line must not be written.
    pub sound: bool,
}

impl Line {
    /// The value, out of [`super::Headers::wire`].
    pub fn value<'a>(&self, wire: &'a [u8]) -> &'a [u8] {
        let (from, to) = (self.at.start + self.name_len + COLON.len(), self.at.end - END.len());
        wire.get(from..to).unwrap_or_default()
    }
}

impl Field {
    #[inline]
    pub(super) fn name<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        &buf[self.at as usize..self.at as usize + self.name_len as usize]
    }
    /// Where its value begins.
    #[inline]
    pub(super) fn value_at(&self) -> usize {
        self.at as usize + self.name_len as usize + COLON.len()
    }
    #[inline]
    pub(super) fn value<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        &buf[self.value_at()..self.value_at() + self.value_len as usize]
    }
    /// Where its line lies.
    #[inline]
    pub(super) fn place(&self) -> Range<usize> {
        self.at as usize..self.at as usize + self.len()
    }
    #[inline]
    pub(super) fn is(&self, key: impl Key, buf: &[u8]) -> bool {
        match key.known() {
            Some(known) => self.known == known.0,
            None => {
                // Most often both are in lower case.
                let (own, name) = (self.name(buf), key.name());
                self.known == 0 && own.len() == name.len() && (own == name || own.eq_ignore_ascii_case(name))
            }
        }
    }
    /// Bytes of the arena that are its own.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.name_len as usize + self.value_len as usize + AROUND
    }
    #[inline]
    pub(super) fn known(&self) -> Option<Known> {
        (self.known != 0).then_some(Known(self.known))
    }
}
