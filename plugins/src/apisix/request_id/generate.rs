//! Names that no two requests have.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

/// How a name is made.
pub(super) enum Algorithm {
    /// Version 4: all of it is drawn.
    Uuid,
    /// Version 7: it begins with the time, and those of one thread ascend.
    UuidV7,
    Nanoid,
    /// The time in seconds and 128 drawn bits, in digits of base 62.
    Ksuid,
    /// So many bytes of these.
    Range {
        length: usize,
        of: Box<[u8]>,
    },
}

impl Algorithm {
    /// A new name.
    pub(super) fn make(&self) -> Vec<u8> {
        match self {
            Algorithm::Uuid => uuid(fastrand::u128(..), 4),
            Algorithm::UuidV7 => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                uuid(v7(u64::try_from(now.as_millis()).unwrap_or(0)), 7)
            }
            Algorithm::Nanoid => nanoid(),
            Algorithm::Ksuid => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                ksuid(now.as_secs().saturating_sub(KSUID_EPOCH) as u32, fastrand::u128(..)).to_vec()
            }
            Algorithm::Range { length, of } => (0..*length)
                .map(|_| of.get(fastrand::usize(..of.len().max(1))).copied().unwrap_or(b'0'))
                .collect(),
        }
    }
}

/// The text of a UUID (RFC 9562); its version and variant are put over these bits.
fn uuid(bits: u128, version: u128) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bits = bits & !(0xF << 76) & !(0b11 << 62) | version << 76 | 0b10 << 62;
    let mut text = Vec::with_capacity(36);
    for (at, byte) in bits.to_be_bytes().into_iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push(b'-');
        }
        text.extend([DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    text
}

/// What APISIX's names of version 7 are made of: the time in milliseconds, the number of the name within it, and bits
/// that are drawn once a millisecond.
#[derive(Clone, Copy)]
struct Last {
    millis: u64,
    number: u32,
    drawn: u64,
}

/// Names of one millisecond.
const NUMBERS: u32 = 1 << 18;

/// The bits of the next name of this thread. When the numbers of a millisecond are used up, those of the next one are
/// begun, for a worker does not wait.
fn v7(now: u64) -> u128 {
    thread_local! {
        static LAST: Cell<Last> = const { Cell::new(Last { millis: 0, number: 0, drawn: 0 }) };
    }
    let last = LAST.get();
    let next = if now > last.millis || last.number + 1 == NUMBERS {
        Last { millis: now.max(last.millis + 1), number: 0, drawn: fastrand::u64(..1 << 56) }
    } else {
        Last { number: last.number + 1, ..last }
    };
    LAST.set(next);
    let (high, low) = (u128::from(next.number >> 6), u128::from(next.number & 0x3F));
    u128::from(next.millis) << 80 | high << 64 | low << 56 | u128::from(next.drawn)
}

/// 21 letters of an alphabet of 64, from a generator that nobody foresees.
fn nanoid() -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"-_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut drawn = [0; 21];
    if aws_lc_rs::rand::fill(&mut drawn).is_err() {
        fastrand::fill(&mut drawn);
    }
    drawn.iter().map(|byte| LETTERS[usize::from(byte & 63)]).collect()
}

/// When KSUIDs begin to count, in seconds of Unix time.
const KSUID_EPOCH: u64 = 1_400_000_000;

/// 27 digits of base 62.
fn ksuid(seconds: u32, drawn: u128) -> [u8; 27] {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut limbs = [seconds, (drawn >> 96) as u32, (drawn >> 64) as u32, (drawn >> 32) as u32, drawn as u32];
    let mut text = [b'0'; 27];
    for digit in text.iter_mut().rev() {
        let mut rest = 0;
        for limb in &mut limbs {
            let value = rest << 32 | u64::from(*limb);
            (*limb, rest) = ((value / 62) as u32, value % 62);
        }
        *digit = DIGITS.get(rest as usize).copied().unwrap_or(b'0');
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn text(name: Vec<u8>) -> String {
        String::from_utf8(name).unwrap()
    }

    #[test]
    fn uuids_say_their_version_and_variant() {
        let bits = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef;
        assert_eq!(text(uuid(bits, 4)), "01234567-89ab-4def-8123-456789abcdef");
        assert_eq!(text(uuid(u128::MAX, 7)), "ffffffff-ffff-7fff-bfff-ffffffffffff");
    }

    #[test]
    fn version_7_ascends_whatever_the_clock_does() {
        let at = 1 << 47;
        let mut before = String::new();
        for (n, now) in (0..NUMBERS + 2).map(|n| (n, at - u64::from(n % 2))) {
            let name = text(uuid(v7(now), 7));
            assert!(name > before, "{n}: {name} after {before}");
            before = name;
        }
        // The numbers of the millisecond are used up, and the next one has begun.
        assert!(before.starts_with("80000000-0001-7000-"), "{before}");
    }

    /// From the description of the format: the largest value, and an example.
    #[test]
    fn ksuids_are_as_described() {
        assert_eq!(&ksuid(u32::MAX, u128::MAX), b"aWgEPTl1tmebfsQzFP4bxwgy80V");
        assert_eq!(&ksuid(0, 0), b"000000000000000000000000000");
        let example = ksuid(107_608_047, 0xB5A1_CD34_B5F9_9D11_54FB_6853_345C_9735);
        assert_eq!(&example, b"0ujtsYcgvSTl8PAuAdqWYSMnLOv");
    }

    #[test]
    fn nanoids_are_of_their_letters() {
        let name = text(nanoid());
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{name}");
        assert_ne!(nanoid(), nanoid());
    }
}
