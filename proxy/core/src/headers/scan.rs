//! Looking through names and values sixteen bytes at a time, and eight where there are no more: they are short, and a
//! call of a vector search costs more.

use wide::u8x16;

/// Bytes from which on a call of a vector search costs less.
const LONG: usize = 128;

/// Bytes that are looked at together.
pub(super) const BLOCK: usize = 16;

/// One bit for each byte that is from `from` to `to`.
#[inline(always)]
pub(super) fn between(block: u8x16, from: u8, to: u8) -> u8x16 {
    (block - u8x16::splat(from)).simd_le(u8x16::splat(to - from))
}

/// The same for bytes that are `b`.
#[inline(always)]
pub(super) fn same(block: u8x16, b: u8) -> u8x16 {
    block.simd_eq(u8x16::splat(b))
}

/// The same for controls: below the blank, and DEL.
#[inline(always)]
pub(super) fn control_bytes(block: u8x16) -> u8x16 {
    between(block, 0, b' ' - 1) | same(block, 0x7f)
}

/// The same for what a name has that everybody takes for one: letters, digits, `-` and `_`.
#[inline(always)]
pub(super) fn name_bytes(block: u8x16) -> u8x16 {
    let letters = between(block | u8x16::splat(0x20), b'a', b'z');
    letters | between(block, b'0', b'9') | same(block, b'-') | same(block, b'_')
}

const ONES: u64 = u64::MAX / 255;
const HIGHS: u64 = ONES << 7;

/// One bit in the high end of each byte below `n`, up to the first such byte; those above it may be wrong.
#[inline]
const fn below(word: u64, n: u8) -> u64 {
    word.wrapping_sub(ONES * n as u64) & !word & HIGHS
}

/// The same for bytes that are `b`.
#[inline]
const fn equal(word: u64, b: u8) -> u64 {
    below(word ^ (ONES * b as u64), 1)
}

/// The same for controls: below the blank, and DEL.
#[inline]
const fn controls(word: u64) -> u64 {
    below(word, b' ') | equal(word, 0x7f)
}

/// One bit in the high end of each byte that is an upper case letter.
#[inline]
const fn uppers(word: u64) -> u64 {
    let low = word & !HIGHS;
    let from_a = low + ONES * (0x80 - b'A') as u64;
    let after_z = low + ONES * (0x7f - b'Z') as u64;
    (from_a ^ after_z) & !word & HIGHS
}

/// A name that ends with a colon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NameEnd {
    /// Bytes of the name.
    pub len: usize,
    /// Whether there is an upper case letter in it.
    pub upper: bool,
}

/// Finds the first colon, and writes what stands before it to `room` in lower case, with some of what follows. `None`
/// where `room` ends before the colon, or `bytes` do or nearly do.
#[inline]
pub(super) fn lower_to_colon<const WORDS: usize>(
    bytes: &[u8],
    room: &mut [[u8; 8]; WORDS],
) -> Option<NameEnd> {
    let (mut upper, mut rest) = (0, bytes);
    for (i, to) in room.iter_mut().enumerate() {
        let (word, after) = rest.split_first_chunk::<8>()?;
        rest = after;
        let word = u64::from_le_bytes(*word);
        let (found, letters) = (equal(word, b':'), uppers(word));
        *to = (word | letters >> 2).to_le_bytes();
        if found != 0 {
            // Those below the lowest bit that is set: in front of the colon.
            upper |= letters & (found ^ (found - 1));
            return Some(NameEnd { len: i * 8 + found.trailing_zeros() as usize / 8, upper: upper != 0 });
        }
        upper |= letters;
    }
    None
}

/// Whether a byte is a control: below the blank, or DEL.
#[inline]
const fn is_control(b: u8) -> bool {
    b < b' ' || b == 0x7f
}

/// Where the first byte stands that is told by `in_block`, by `in_word`, which marks the first of them in a word, or by
/// `is`, which say the same of sixteen bytes, eight and one. The last block or word overlaps the one before, in which
/// nothing was found.
#[inline(always)]
fn first(
    bytes: &[u8],
    in_block: impl Fn(u8x16) -> u8x16,
    in_word: impl Fn(u64) -> u64,
    is: impl Fn(u8) -> bool,
) -> Option<usize> {
    let Some(last) = bytes.last_chunk::<BLOCK>() else { return first_of_few(bytes, in_word, is) };
    let in_block = |block: &[u8; BLOCK]| in_block(u8x16::new(*block)).to_bitmask();
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    for (i, block) in blocks.iter().enumerate() {
        let found = in_block(block);
        if found != 0 {
            return Some(i * BLOCK + found.trailing_zeros() as usize);
        }
    }
    if rest.is_empty() {
        return None;
    }
    let found = in_block(last);
    (found != 0).then(|| bytes.len() - BLOCK + found.trailing_zeros() as usize)
}

/// The same of fewer bytes than a block has.
#[inline(always)]
fn first_of_few(bytes: &[u8], in_word: impl Fn(u64) -> u64, is: impl Fn(u8) -> bool) -> Option<usize> {
    let place = |found: u64| found.trailing_zeros() as usize / 8;
    let (Some(front), Some(back)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) else {
        return bytes.iter().position(|b| is(*b));
    };
    let found = in_word(u64::from_le_bytes(*front));
    if found != 0 {
        return Some(place(found));
    }
    let found = in_word(u64::from_le_bytes(*back));
    (found != 0).then(|| bytes.len() - 8 + place(found))
}

/// Where the first control stands from `from` on: the same as [`control`] of what is there, of bytes that are looked at
/// in one piece.
#[inline(always)]
pub(super) fn control_from(bytes: &[u8], from: usize) -> Option<usize> {
    let in_block = |block: &[u8; BLOCK]| control_bytes(u8x16::new(*block)).to_bitmask();
    let mut at = from;
    while let Some(block) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let found = in_block(block);
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize);
        }
        at += BLOCK;
    }
    let Some(last) = bytes.last_chunk() else {
        return bytes.get(at..).and_then(control).map(|place| at + place);
    };
    // What lies before was looked at already.
    let seen = (at + BLOCK).checked_sub(bytes.len())?;
    let found = in_block(last).checked_shr(seen as u32).unwrap_or_default();
    (found != 0).then(|| at + found.trailing_zeros() as usize)
}

/// Where the first control stands: a byte below the blank (the tab too), or DEL.
#[inline]
pub fn control(bytes: &[u8]) -> Option<usize> {
    first(bytes, control_bytes, controls, is_control)
}

/// Where the first `byte` stands.
#[inline]
pub fn find(byte: u8, bytes: &[u8]) -> Option<usize> {
    if bytes.len() > LONG {
        return memchr::memchr(byte, bytes);
    }
    first(bytes, |block| same(block, byte), |word| equal(word, byte), |b| b == byte)
}

/// Where the first of two bytes stands.
#[inline]
pub fn find_either(one: u8, other: u8, bytes: &[u8]) -> Option<usize> {
    if bytes.len() > LONG {
        return memchr::memchr2(one, other, bytes);
    }
    first(
        bytes,
        |block| same(block, one) | same(block, other),
        |word| equal(word, one) | equal(word, other),
        |b| b == one || b == other,
    )
}

/// Whether there is a blank or a control.
#[inline]
pub fn has_blank(bytes: &[u8]) -> bool {
    let in_block = |block| between(block, 0, b' ') | same(block, 0x7f);
    let in_word = |word| below(word, b' ' + 1) | equal(word, 0x7f);
    first(bytes, in_block, in_word, |b| b == b' ' || is_control(b)).is_some()
}

/// Whether all bytes are visible ones of ASCII: no blank, no control, nothing beyond.
#[inline]
pub fn is_visible(bytes: &[u8]) -> bool {
    let in_block = |block| !between(block, b'!', b'~');
    let in_word = |word| below(word, b'!') | equal(word, 0x7f) | word & HIGHS;
    first(bytes, in_block, in_word, |b| !b.is_ascii_graphic()).is_none()
}

/// Whether `is` holds of all bytes, of which there is one at least. What is shorter than a block is filled up with `filler`.
#[inline(always)]
fn all(bytes: &[u8], filler: u8, is: impl Fn(u8x16) -> u8x16) -> bool {
    let is = |block: &[u8; BLOCK]| is(u8x16::new(*block)).to_bitmask() == 0xffff;
    match bytes.last_chunk::<BLOCK>() {
        // Of a longer one every block, the last of which may overlap the one before.
        Some(last) => bytes.as_chunks().0.iter().all(is) && is(last),
        None => {
            let mut block = [filler; BLOCK];
            block.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            !bytes.is_empty() && is(&block)
        }
    }
}

/// Whether all bytes are as in a name that everybody takes for one: letters, digits, `-` and `_`.
#[inline]
pub fn is_plain_name(bytes: &[u8]) -> bool {
    all(bytes, b'a', name_bytes)
}

/// Whether there is nothing but letters, digits, `-`, `.` and `:` in it, as in nearly every authority.
#[inline]
pub fn is_plain_authority(bytes: &[u8]) -> bool {
    all(bytes, b'a', |block| {
        let letters = between(block | u8x16::splat(0x20), b'a', b'z');
        letters | between(block, b'-', b'.') | between(block, b'0', b':')
    })
}

/// Whether there is an upper case letter.
#[inline]
pub(super) fn has_upper(bytes: &[u8]) -> bool {
    // Without a branch a byte: compilers make vectors of it.
    bytes.iter().fold(false, |any, b| any | b.is_ascii_uppercase())
}

/// Whether a value has no CR, LF and NUL: nothing that could be read as the end of its line.
#[inline]
pub fn is_clean(value: &[u8]) -> bool {
    control(value).is_none() || memchr::memchr3(b'\r', b'\n', 0, value).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_at_every_place_is_told_as_one_by_one() {
        for len in 0..40 {
            for at in 0..len {
                for b in 0..=255u8 {
                    for around in [b'a', 0x80, 0xff, b' '] {
                        let mut bytes = vec![around; len];
                        bytes[at] = b;
                        assert_eq!(control(&bytes), bytes.iter().position(|b| is_control(*b)), "{bytes:?}");
                        assert_eq!(
                            has_blank(&bytes),
                            bytes.iter().any(|b| *b == b' ' || is_control(*b)),
                            "{bytes:?}"
                        );
                        assert_eq!(is_clean(&bytes), !matches!(b, b'\r' | b'\n' | 0), "{bytes:?}");
                        for from in [0, at / 2, at, at + 1] {
                            let there = control(&bytes[from..]).map(|place| from + place);
                            assert_eq!(control_from(&bytes, from), there, "{bytes:?} from {from}");
                        }
                        let of_name = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
                        assert_eq!(is_plain_name(&bytes), bytes.iter().all(|b| of_name(*b)), "{bytes:?}");
                        let of_host = |b: &u8| b.is_ascii_alphanumeric() || b"-.:".contains(b);
                        assert_eq!(is_plain_authority(&bytes), bytes.iter().all(of_host), "{bytes:?}");
                        assert_eq!(is_visible(&bytes), bytes.iter().all(u8::is_ascii_graphic), "{bytes:?}");
                        let place = |of: &[u8]| bytes.iter().position(|b| of.contains(b));
                        assert_eq!(find(b, &bytes), place(&[b]), "{bytes:?}");
                        assert_eq!(find_either(b, b'?', &bytes), place(&[b, b'?']), "{bytes:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_first_of_several_is_found() {
        assert_eq!(control(b"abcdef\x01\x00"), Some(6));
        assert_eq!(control(b"abcde\x7f\x01\x7f"), Some(5));
        assert_eq!(control(b"abcdefgh\tbc\x01"), Some(8));
        assert_eq!(control(b""), None);
        for len in [7, 8, 9, 15, 63, 64, 65, 200] {
            let mut bytes = vec![b'a'; len];
            assert_eq!((find(b'#', &bytes), find_either(b'#', b'?', &bytes)), (None, None));
            for at in (0..len).rev() {
                bytes[at] = b'#';
                assert_eq!((find(b'#', &bytes), find_either(b'?', b'#', &bytes)), (Some(at), Some(at)));
            }
        }
    }

    #[test]
    fn a_name_is_lowered_up_to_its_colon_as_byte_by_byte() {
        for len in 0..20 {
            for at in 0..=len {
                for b in 0..=255u8 {
                    let mut bytes = vec![b'x'; len];
                    if let Some(place) = bytes.get_mut(at) {
                        *place = b;
                    }
                    bytes.extend_from_slice(b": Value of it");
                    let colon = bytes.iter().position(|b| *b == b':').unwrap_or_default();
                    let mut room = [[0; 8]; 2];
                    let found = lower_to_colon(&bytes, &mut room);
                    let upper = bytes[..colon].iter().any(u8::is_ascii_uppercase);
                    let want = (colon < 16).then_some(NameEnd { len: colon, upper });
                    assert_eq!(found, want, "{bytes:?}");
                    if found.is_some() {
                        let lower = bytes[..colon].to_ascii_lowercase();
                        assert_eq!(room.as_flattened()[..colon], lower, "{bytes:?}");
                    }
                }
            }
        }
        assert_eq!(lower_to_colon(b"abc", &mut [[0; 8]]), None);
    }
}
