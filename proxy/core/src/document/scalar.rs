//! What a YAML scalar without quotes means.

use serde_json::Number;

use super::{Options, Value};

/// Resolves a plain scalar: null, the booleans of YAML 1.1 (`y` and `n` if the options say so), integers (decimal, `0x`, `0o` and a leading
/// zero for octal), floats; everything else is a string. `.inf` and `.nan` stay strings, JSON has no such numbers.
pub(super) fn resolve(text: &str, options: &Options) -> Value {
    // Most scalars of a configuration begin with a letter that none of the special words begins with.
    let value = match text.as_bytes().first() {
        None | Some(b'~' | b'n' | b'N') if is_null(text) => Some(Value::Null),
        Some(b't' | b'T' | b'f' | b'F' | b'y' | b'Y' | b'n' | b'N' | b'o' | b'O') => {
            let letter = || if options.letters_as_booleans { letter(text) } else { None };
            boolean(text).or_else(letter).map(Value::Bool)
        }
        Some(b'0'..=b'9' | b'-' | b'+' | b'.') => {
            number(text, options.wide_numbers_as_text).map(Value::Number)
        }
        _ => None,
    };
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Whether the text stands for null.
pub(super) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// The booleans of YAML 1.1 that are a single letter.
fn letter(text: &str) -> Option<bool> {
    match text {
        "y" | "Y" => Some(true),
        "n" | "N" => Some(false),
        _ => None,
    }
}

/// The YAML 1.1 booleans in lower case, upper case or capitalised, without those of a single letter.
pub(super) fn boolean(text: &str) -> Option<bool> {
    let rest = text.get(1..)?;
    let upper = text.bytes().all(|b| b.is_ascii_uppercase());
    let lower_rest = rest.bytes().all(|b| b.is_ascii_lowercase());
    if !upper && !lower_rest {
        return None;
    }
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// An integer or a float.
pub(super) fn number(text: &str, wide_numbers_as_text: bool) -> Option<Number> {
    if let Some(number) = integer(text) {
        let narrow = number.as_i64().is_some_and(|value| i32::try_from(value).is_ok());
        return (narrow || !wide_numbers_as_text).then_some(number);
    }
    if wide_numbers_as_text || !looks_like_float(text) {
        return None;
    }
    text.parse().ok().and_then(Number::from_f64)
}

fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    if !digits.as_bytes().first()?.is_ascii_digit() {
        return None;
    }
    let magnitude = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => radix(digits.get(2..)?, 16)?,
        [b'0', b'o', ..] => radix(digits.get(2..)?, 8)?,
        [b'0', _, ..] => radix(digits, 8)?,
        _ => radix(digits, 10)?,
    };
    if !negative {
        return Some(Number::from(magnitude));
    }
    0i64.checked_sub_unsigned(magnitude).map(Number::from)
}

fn radix(digits: &str, radix: u32) -> Option<u64> {
    // `from_str_radix` takes a sign, which is not allowed here.
    if !digits.as_bytes().first()?.is_ascii_alphanumeric() {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`, so that `1.2.3`, `inf` and `-` stay strings.
fn looks_like_float(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent_fits = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    !(whole.is_empty() && fraction.is_empty()) && digits(whole) && digits(fraction) && exponent_fits
}
