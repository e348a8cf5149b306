//! Moments in strftime formats. What a format gives for a second is kept a thread, so that a log line copies
//! bytes and patches the fraction.

use jiff::Timestamp;
use jiff::fmt::strtime::BrokenDownTime;
use jiff::tz::TimeZone;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

/// A compiled strftime format with Envoy's additions: `%3f` (1 to 9 digits of the fraction), `%f` (9), `%E3S`
/// (seconds with a fraction) and `%Ez`.
#[derive(Debug)]
pub struct TimeFormat {
    id: u64,
    pieces: Box<[Piece]>,
    zone: TimeZone,
}

#[derive(Debug)]
enum Piece {
    /// Directives that stay the same for a second.
    Second(Box<str>),
    /// Digits of the fraction.
    Fraction(usize),
}

/// What a format gives for one second, fractions left as zeros.
struct Rendered {
    id: u64,
    second: i64,
    text: Vec<u8>,
    /// Where fractions stand, and their digits.
    fractions: Vec<(usize, usize)>,
}

/// Formats kept a thread; a power of two.
const KEPT: usize = 8;

thread_local! {
    static CACHE: RefCell<[Option<Rendered>; KEPT]> = const { RefCell::new([const { None }; KEPT]) };
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl TimeFormat {
    /// Envoy's default, `2026-01-31T12:00:00.000Z`.
    pub const ENVOY: &'static str = "%Y-%m-%dT%H:%M:%E3SZ";

    /// Compiles a format for universal time.
    ///
    /// # Errors
    /// When it has a directive that is not known.
    pub fn utc(format: &str) -> Result<TimeFormat, String> {
        TimeFormat::new(format, TimeZone::UTC)
    }

    /// Compiles a format for the local time zone.
    ///
    /// # Errors
    /// When it has a directive that is not known.
    pub fn local(format: &str) -> Result<TimeFormat, String> {
        TimeFormat::new(format, TimeZone::system())
    }

    fn new(format: &str, zone: TimeZone) -> Result<TimeFormat, String> {
        let pieces = split(format).into();
        let format = TimeFormat { id: NEXT_ID.fetch_add(1, Relaxed), pieces, zone };
        format.render(0)?;
        Ok(format)
    }

    /// Appends `time`.
    pub fn write(&self, time: SystemTime, out: &mut Vec<u8>) {
        let (second, nanos) = match time.duration_since(UNIX_EPOCH) {
            Ok(since) => (since.as_secs() as i64, since.subsec_nanos()),
            // Before 1970 the fraction counts the other way; no request comes from there.
            Err(before) => (-(before.duration().as_secs() as i64), 0),
        };
        self.write_parts(second, nanos, out);
    }

    /// Appends a moment given in Unix seconds.
    pub fn write_seconds(&self, second: i64, out: &mut Vec<u8>) {
        self.write_parts(second, 0, out);
    }

    fn write_parts(&self, second: i64, nanos: u32, out: &mut Vec<u8>) {
        CACHE.with_borrow_mut(|cache| {
            let place = &mut cache[self.id as usize % KEPT];
            let kept = place.as_ref().is_some_and(|r| r.id == self.id && r.second == second);
            if !kept {
                *place = self.render(second).ok();
            }
            let Some(rendered) = place else { return };
            let start = out.len();
            out.extend_from_slice(&rendered.text);
            for (at, digits) in &rendered.fractions {
                patch(&mut out[start + at..start + at + digits], nanos);
            }
        });
    }

    fn render(&self, second: i64) -> Result<Rendered, String> {
        let timestamp = Timestamp::from_second(second).map_err(|e| e.to_string())?;
        let time = BrokenDownTime::from(&timestamp.to_zoned(self.zone.clone()));
        let mut rendered = Rendered { id: self.id, second, text: Vec::new(), fractions: Vec::new() };
        for piece in &self.pieces {
            match piece {
                Piece::Second(format) => {
                    let text = time.to_string(format.as_bytes()).map_err(|e| e.to_string())?;
                    rendered.text.extend_from_slice(text.as_bytes());
                }
                Piece::Fraction(digits) => {
                    rendered.fractions.push((rendered.text.len(), *digits));
                    rendered.text.resize(rendered.text.len() + digits, b'0');
                }
            }
        }
        Ok(rendered)
    }
}

/// Writes the leading digits of a fraction of a second.
fn patch(digits: &mut [u8], nanos: u32) {
    let mut rest = nanos / 10u32.pow(9u32.saturating_sub(digits.len() as u32));
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// Splits a format at its fractions.
fn split(format: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut second = String::new();
    let mut fraction = |second: &mut String, digits: usize| {
        if !second.is_empty() {
            pieces.push(Piece::Second(std::mem::take(second).into()));
        }
        pieces.push(Piece::Fraction(digits));
    };
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        second.push_str(before);
        let bytes = after.as_bytes();
        let digits = |at: usize| bytes.get(at).filter(|b| (b'1'..=b'9').contains(*b)).map(|b| b - b'0');
        let used = match (bytes.first(), digits(0), digits(1), bytes.get(1), bytes.get(2)) {
            (Some(b'f'), ..) => {
                fraction(&mut second, 9);
                1
            }
            (_, Some(n), _, Some(b'f'), _) => {
                fraction(&mut second, n.into());
                2
            }
            (Some(b'E'), _, Some(n), _, Some(b'S')) => {
                second.push_str("%S.");
                fraction(&mut second, n.into());
                3
            }
            (Some(b'E'), _, _, Some(b'*'), Some(b'S')) => {
                second.push_str("%S.");
                fraction(&mut second, 9);
                3
            }
            (Some(b'E'), _, _, Some(b'z'), _) => {
                second.push_str("%:z");
                2
            }
            (Some(b'%'), ..) => {
                second.push_str("%%");
                1
            }
            _ => {
                second.push('%');
                0
            }
        };
        rest = &after[used..];
    }
    second.push_str(rest);
    if !second.is_empty() {
        pieces.push(Piece::Second(second.into()));
    }
    pieces
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    fn at(format: &str, millis: u64) -> String {
        let mut out = Vec::new();
        TimeFormat::utc(format).unwrap().write(UNIX_EPOCH + Duration::from_millis(millis), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn formats_and_fractions() {
        const T: u64 = 1_700_000_000_045;
        for (format, text) in [
            (TimeFormat::ENVOY, "2023-11-14T22:13:20.045Z"),
            ("%Y/%m/%dT%H:%M:%S%z", "2023/11/14T22:13:20+0000"),
            ("%s", "1700000000"),
            ("%s%3f", "1700000000045"),
            ("%s.%6f", "1700000000.045000"),
            ("%f|%9f|%1f", "045000000|045000000|0"),
            ("%H%%%M", "22%13"),
            ("%d/%b/%Y:%T %z", "14/Nov/2023:22:13:20 +0000"),
            ("%FT%T%Ez", "2023-11-14T22:13:20+00:00"),
            ("", ""),
            ("plain", "plain"),
        ] {
            assert_eq!(at(format, T), text, "{format}");
        }
    }

    #[test]
    fn the_kept_second_is_not_used_for_another() {
        let format = TimeFormat::utc("%S.%3f").unwrap();
        let mut out = Vec::new();
        for millis in [1_000u64, 1_999, 2_000, 1_001] {
            format.write(UNIX_EPOCH + Duration::from_millis(millis), &mut out);
            out.push(b' ');
        }
        assert_eq!(out, b"01.000 01.999 02.000 01.001 ");
    }

    #[test]
    fn unknown_directives_are_refused() {
        assert!(TimeFormat::utc("%@").is_err());
        assert!(TimeFormat::utc("%").is_err());
    }
}
