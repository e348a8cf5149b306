//! Runtime values: Envoy's layered runtime as far as static and admin layers go.

use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Runtime keys and their values, read when configuration is compiled.
#[derive(Debug, Clone, Default)]
pub struct Runtime {
    values: BTreeMap<String, Value>,
}

impl Runtime {
    /// From the merged layers.
    pub fn new(values: BTreeMap<String, Value>) -> Runtime {
        Runtime { values }
    }

    /// The finite number of a key, else the default. A text that reads as a number is one, as in Envoy
    /// (`parseEntryDoubleValue`).
    pub fn number(&self, key: &str, default: f64) -> f64 {
        self.read(key).unwrap_or(default)
    }

    /// The number of a key without its fraction, else the default. One below zero is none, as in Envoy (`uint_value_`).
    pub fn integer(&self, key: &str, default: u64) -> u64 {
        self.read(key).filter(|number| *number >= 0.0).map_or(default, |number| number as u64)
    }

    fn read(&self, key: &str) -> Option<f64> {
        let value = self.values.get(key)?;
        let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
        number.filter(|number| number.is_finite())
    }

    /// Whether a boolean key holds, else the default. The texts `true` and `false` are such values, in any case.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        let text = |text: &str| match text.trim() {
            text if text.eq_ignore_ascii_case("true") => Some(true),
            text if text.eq_ignore_ascii_case("false") => Some(false),
            _ => None,
        };
        let flag = |value: &Value| value.as_bool().or_else(|| value.as_str().and_then(text));
        self.values.get(key).and_then(flag).unwrap_or(default)
    }

    /// The raw value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }
}

/// A share of requests, numerator over denominator (type/v3/percent.proto FractionalPercent).
#[derive(Debug, Clone)]
pub struct Fraction {
    /// Requests that count, of `denominator`; shared so that a runtime layer could change it.
    numerator: Arc<AtomicU64>,
    denominator: u64,
}

impl Fraction {
    /// `numerator` of `denominator` requests.
    pub fn new(numerator: u64, denominator: u64) -> Fraction {
        Fraction { numerator: Arc::new(AtomicU64::new(numerator)), denominator: denominator.max(1) }
    }

    /// Whether a request with this random number is in the share.
    pub fn draw(&self, random: u64) -> bool {
        random % self.denominator < self.numerator.load(Relaxed)
    }
}

impl std::fmt::Display for Fraction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.numerator.load(Relaxed), self.denominator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
