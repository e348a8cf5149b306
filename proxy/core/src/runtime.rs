//! Runtime values: Envoy's layered runtime as far as static and admin layers go.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Runtime keys and their values, read when configuration is compiled.
#[derive(Debug, Clone, Default)]
pub struct Runtime {
    values: BTreeMap<String, Value>,
}

/// The first number that no whole number of a key holds, 2^64.
const BEYOND: f64 = 18_446_744_073_709_551_616.0;

impl Runtime {
    /// From the merged layers.
    pub fn new(values: BTreeMap<String, Value>) -> Runtime {
        Runtime { values }
    }

    /// Keys with their values.
    pub fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    /// A further layer; its keys win.
    pub fn add(&mut self, layer: Runtime) {
        self.values.extend(layer.values);
    }

    /// Whether there is a value of any kind.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The finite number of a key, else the default, for fields of type RuntimeDouble alone: others are whole. A text
    /// that reads as a number is one, as in Envoy (`parseEntryDoubleValue`).
    pub fn number(&self, key: &str, default: f64) -> f64 {
        self.read(key).unwrap_or(default)
    }

    /// The number of a key without its fraction, else the default; see [`Runtime::whole`].
    pub fn integer(&self, key: &str, default: u64) -> u64 {
        self.whole(key).unwrap_or(default)
    }

    /// The number of a key without its fraction, if there is one. One below zero is none, as in Envoy (`uint_value_`),
    /// nor is one that 64 bits do not hold.
    pub fn whole(&self, key: &str) -> Option<u64> {
        self.read(key).filter(|number| (0.0..BEYOND).contains(number)).map(|number| number as u64)
    }

    /// Numerator and denominator of the share that a key stands for: percents, or an object of both
    /// (`parseFractionValue`), whose members that are not said right count as in Envoy.
    pub fn share(&self, key: &str) -> Option<(u64, u64)> {
        match self.values.get(key)? {
            Value::Object(parts) => share_of(parts),
            _ => self.whole(key).map(|percent| (percent, 100)),
        }
    }

    /// Whether what a key gives so many percent of is on, by one draw where that is neither none nor all
    /// (`featureEnabled`).
    pub fn enabled(&self, key: &str, default: u64) -> bool {
        match self.integer(key, default) {
            0 => false,
            100.. => true,
            percent => fastrand::u64(..100) < percent,
        }
    }

    fn read(&self, key: &str) -> Option<f64> {
        let value = self.values.get(key)?;
        let number = value.as_f64().or_else(|| decimal_or_hexadecimal(value.as_str()?.trim()));
        number.filter(|number| number.is_finite())
    }

    /// Whether a boolean key holds, else the default, for `envoy.reloadable_features.*`. The texts `true` and `false`
    /// are such values, in any case, and so are whole numbers: 0 is false.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        let text = |text: &str| match text.trim() {
            text if text.eq_ignore_ascii_case("true") => Some(true),
            text if text.eq_ignore_ascii_case("false") => Some(false),
            _ => None,
        };
        let flag = |value: &Value| value.as_bool().or_else(|| value.as_str().and_then(text));
        let whole = |number: &f64| number.fract() == 0.0 && number.abs() < f64::from(i32::MAX);
        let number = || self.read(key).filter(whole).map(|number| number != 0.0);
        self.values.get(key).and_then(flag).or_else(number).unwrap_or(default)
    }
}

/// The number that a text reads as, by Envoy's reader (`absl::SimpleAtod`).
fn decimal_or_hexadecimal(text: &str) -> Option<f64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1.0, digits),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => hexadecimal(digits).map(|number| sign * number),
        None => text.parse().ok(),
    }
}

/// Digits with or without a point, and with or without an exponent of 2.
fn hexadecimal(digits: &str) -> Option<f64> {
    let (mantissa, exponent) = digits.split_once(['p', 'P']).unwrap_or((digits, "0"));
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && part.is_empty() {
        return None;
    }
    let add = |number: f64, digit: char| Some(number * 16.0 + f64::from(digit.to_digit(16)?));
    let number = whole.chars().chain(part.chars()).try_fold(0.0, add)?;
    let places = i32::try_from(part.len()).ok()?.checked_mul(4)?;
    Some(number * 2f64.powi(exponent.parse::<i32>().ok()?.checked_sub(places)?))
}

/// Of the members of a share; none where one is not known. A numerator that is no number is 0, as it is where it lacks.
fn share_of(parts: &Map<String, Value>) -> Option<(u64, u64)> {
    let (mut numerator, mut denominator) = (0, 100);
    for (name, part) in parts {
        match (name.as_str(), part) {
            ("numerator", part) => numerator = part.as_f64().map_or(0, |number| u64::from(number as u32)),
            ("denominator", Value::String(name)) => {
                denominator = match name.as_str() {
                    "HUNDRED" => 100,
                    "TEN_THOUSAND" => 10_000,
                    "MILLION" => 1_000_000,
                    _ => return None,
                };
            }
            _ => return None,
        }
    }
    Some((numerator, denominator))
}

/// A share of requests, numerator over denominator (type/v3/percent.proto FractionalPercent).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    /// Requests that count, of `denominator`.
    numerator: u64,
    denominator: u64,
}

impl Fraction {
    /// `numerator` of `denominator` requests.
    pub fn new(numerator: u64, denominator: u64) -> Fraction {
        Fraction { numerator, denominator: denominator.max(1) }
    }

    /// The same, but of no more than `numerator` requests.
    #[must_use]
    pub fn at_most(self, numerator: u64) -> Fraction {
        Fraction { numerator: self.numerator.min(numerator), ..self }
    }

    /// Whether a request with this random number is in the share.
    pub fn draw(&self, random: u64) -> bool {
        random % self.denominator < self.numerator
    }
}

impl std::fmt::Display for Fraction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.numerator, self.denominator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// They read as numbers, and a bias of such a one has no endpoint chosen.
    #[test]
    fn what_is_not_finite_is_no_number() {
        for text in ["nan", "NaN", "inf", "-infinity", "1e999"] {
            let runtime = Runtime::new(BTreeMap::from([("x".to_owned(), Value::from(text))]));
            assert_eq!((runtime.number("x", 1.5), runtime.integer("x", 3)), (1.5, 3), "{text}");
        }
    }

    #[test]
    fn texts_are_the_values_that_they_read_as() {
        let values = [
            ("n", "32768"),
            ("yes", "True"),
            ("no", " false"),
            ("x", "1x"),
            ("part", "2.9"),
            ("below", "-1"),
        ];
        let values = values.map(|(key, text)| (key.to_owned(), Value::from(text)));
        let runtime = Runtime::new(BTreeMap::from(values));
        assert_eq!((runtime.number("n", 1.0), runtime.number("x", 1.0)), (32768.0, 1.0));
        assert_eq!(
            ["n", "part", "below", "x", "none"].map(|key| runtime.integer(key, 7)),
            [32768, 2, 7, 7, 7]
        );
        assert_eq!(runtime.number("below", 1.0), -1.0);
        assert!(runtime.flag("yes", false) && !runtime.flag("no", true) && runtime.flag("x", true));
    }

    fn runtime(values: Value) -> Runtime {
        Runtime::new(serde_json::from_value(values).unwrap_or_default())
    }

    /// Each as Envoy 1.40 drew. Texts and objects without a numerator counted for nothing, and any denominator as 100.
    #[test]
    fn shares_are_percents_or_objects() {
        for (value, expected) in [
            (json!("0"), Some((0, 100))),
            (json!(" 0"), Some((0, 100))),
            (json!("50"), Some((50, 100))),
            (json!("0.9"), Some((0, 100))),
            (json!("-0"), Some((0, 100))),
            (json!(200), Some((200, 100))),
            (json!("0x64"), Some((100, 100))),
            (json!("-0X0"), Some((0, 100))),
            (json!("0x1.8p4"), Some((24, 100))),
            (json!("0x"), None),
            (json!("+-0"), None),
            (json!({"numerator": "0", "denominator": "HUNDRED"}), Some((0, 100))),
            (json!({"numerator": "30.0"}), Some((0, 100))),
            (json!({"denominator": "HUNDRED"}), Some((0, 100))),
            (json!({"numerator": 10, "denominator": "TEN_THOUSAND"}), Some((10, 10_000))),
            (json!({}), Some((0, 100))),
            (json!({"numerator": 0, "denominator": 2}), None),
            (json!({"numerator": 0, "denominator": "million"}), None),
            (json!({"numerator": 0, "other": 1}), None),
            (json!("{\"numerator\": 0}"), None),
            (json!(-1), None),
            (json!("-0.5"), None),
            (json!("1e30"), None),
            (json!("inf"), None),
            (json!(false), None),
        ] {
            assert_eq!(runtime(json!({"k": value})).share("k"), expected, "{value}");
        }
        assert_eq!(Runtime::default().share("k"), None);
    }

    /// 2^64 was the greatest number of all.
    #[test]
    fn whole_numbers_fit_in_64_bits() {
        let runtime = runtime(
            json!({"most": 18_446_744_073_709_549_568.0, "beyond": "18446744073709551616", "no": -1}),
        );
        let whole = ["most", "beyond", "no"].map(|key| runtime.whole(key));
        assert_eq!(whole, [Some(18_446_744_073_709_549_568), None, None]);
    }

    /// Read as a boolean 1 was off, and 100 too.
    #[test]
    fn what_is_on_in_percent_is_drawn_once() {
        let runtime = runtime(json!({"all": 100, "text": "100", "none": 0, "half": 50, "true": true}));
        assert!(runtime.enabled("all", 0) && runtime.enabled("text", 0) && runtime.enabled("x", 100));
        assert!(!runtime.enabled("none", 100) && !runtime.enabled("true", 0));
        let on = (0..1000).filter(|_| runtime.enabled("half", 0)).count();
        assert!((300..700).contains(&on), "{on}");
    }

    #[test]
    fn flags_are_numbers_too() {
        let runtime = runtime(json!({"one": 1, "none": "0", "part": 0.5, "on": "TRUE"}));
        let flags =
            ["one", "none", "part", "on"].map(|key| (runtime.flag(key, true), runtime.flag(key, false)));
        assert_eq!(flags, [(true, true), (false, false), (true, false), (true, true)]);
    }
}
