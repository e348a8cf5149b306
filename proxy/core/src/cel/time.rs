//! Times and spans of time.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use std::io::Write as _;

const SECOND: i128 = 1_000_000_000;

/// Units of spans, the longest first.
const UNITS: [(&str, i128); 6] =
    [("ms", 1_000_000), ("us", 1_000), ("ns", 1), ("h", 3600 * SECOND), ("m", 60 * SECOND), ("s", SECOND)];

/// A time from RFC 3339.
pub(super) fn timestamp(text: &str) -> Option<i128> {
    text.parse::<Timestamp>().ok().map(Timestamp::as_nanosecond)
}

/// A span such as `1h30m` or `1.5s`.
pub(super) fn duration(text: &str) -> Option<i128> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut sum = 0i128;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let (unit, nanos) = UNITS.iter().find(|(unit, _)| after.starts_with(unit))?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || whole.len() > 18 || fraction.contains('.') {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        sum += whole * nanos;
        let mut part = *nanos;
        for digit in fraction.bytes().take(18) {
            part /= 10;
            sum += i128::from(digit - b'0') * part;
        }
        rest = after.get(unit.len()..)?;
    }
    Some(sign * sum)
}

/// The date and time of the day of a time, in a zone: UTC, or one that is so many hours and minutes away. Zones with a
/// name are in files.
pub(super) fn civil(nanos: i128, zone: Option<&str>) -> Option<DateTime> {
    let offset = match zone {
        None | Some("UTC" | "Z" | "") => Offset::UTC,
        Some(zone) => {
            let (sign, rest) = match zone.strip_prefix('-') {
                Some(rest) => (-1, rest),
                None => (1, zone.strip_prefix('+').unwrap_or(zone)),
            };
            let (hours, minutes) = rest.split_once(':')?;
            Offset::from_seconds(sign * (small(hours)? * 3600 + small(minutes)? * 60)).ok()?
        }
    };
    let time = Timestamp::from_nanosecond(nanos).ok()?;
    Some(time.to_zoned(TimeZone::fixed(offset)).datetime())
}

/// A number of hours or minutes, without a sign of its own.
fn small(digits: &str) -> Option<i32> {
    let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| digits.parse::<u8>().ok()).flatten().map(i32::from)
}

/// As `absl::FormatDuration` prints it.
pub(super) fn write_duration(nanos: i128, out: &mut Vec<u8>) {
    if nanos == 0 {
        return out.push(b'0');
    }
    if nanos < 0 {
        out.push(b'-');
    }
    let nanos = nanos.unsigned_abs();
    const SECOND: u128 = 1_000_000_000;
    if nanos < SECOND {
        let (unit, size) = match nanos {
            1_000_000.. => ("ms", 1_000_000),
            1_000.. => ("us", 1_000),
            _ => ("ns", 1),
        };
        return write_part(nanos, size, unit, out);
    }
    for (unit, size) in [("h", 3600 * SECOND), ("m", 60 * SECOND)] {
        let whole = match unit {
            "h" => nanos / size,
            _ => nanos % (3600 * SECOND) / size,
        };
        if whole > 0 {
            let _ = write!(out, "{whole}{unit}");
        }
    }
    let rest = nanos % (60 * SECOND);
    if rest > 0 {
        write_part(rest, SECOND, "s", out);
    }
}

/// A number of units with its fraction.
fn write_part(nanos: u128, size: u128, unit: &str, out: &mut Vec<u8>) {
    let (whole, mut rest) = (nanos / size, nanos % size);
    let _ = write!(out, "{whole}");
    if rest > 0 {
        out.push(b'.');
        let mut part = size;
        while rest > 0 {
            part /= 10;
            out.push(b'0' + (rest / part) as u8);
            rest %= part;
        }
    }
    out.extend_from_slice(unit.as_bytes());
}

/// As `absl::FormatTime` prints it.
pub(super) fn write_timestamp(nanos: i128, out: &mut Vec<u8>) {
    let Some(time) = civil(nanos, None) else { return };
    let _ = write!(
        out,
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        time.year(),
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    );
    let fraction = nanos.rem_euclid(SECOND);
    if fraction > 0 {
        let digits = format!("{fraction:09}");
        let _ = write!(out, ".{}", digits.trim_end_matches('0'));
    }
    out.extend_from_slice(b"+00:00");
}
