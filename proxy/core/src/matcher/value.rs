//! Tests of metadata, whose values are JSON.

use super::StringMatcher;
use crate::metadata::{Metadata, below, noted};
use serde_json::Value;
use std::ops::Range;
use std::sync::Arc;

/// Envoy's ValueMatcher. What is not there is present to none.
#[derive(Debug)]
pub enum ValueMatcher {
    /// It is null.
    Null,
    /// A number within.
    Within(Range<f64>),
    /// This number.
    Number(f64),
    /// A text that passes.
    Text(StringMatcher),
    /// This truth.
    Bool(bool),
    /// It is there; never, when it need not be.
    Present(bool),
    /// A list, one of whose values passes.
    OneOf(Box<ValueMatcher>),
    /// One of these passes.
    Any(Box<[ValueMatcher]>),
}

/// Envoy's MetadataMatcher: a test of what stands at a place.
#[derive(Debug)]
pub struct MetadataMatcher {
    /// Whose metadata it is.
    pub namespace: Box<str>,
    /// The first key.
    pub key: Box<str>,
    /// Those below it.
    pub path: Box<[Box<str>]>,
    /// The test of what is there, or is not.
    pub value: ValueMatcher,
    /// Passes what the test does not.
    pub invert: bool,
}

impl ValueMatcher {
    /// Whether a value passes; `None` is one that is not there.
    pub fn matches(&self, value: Option<&Value>) -> bool {
        let number = || value.and_then(Value::as_f64);
        match self {
            ValueMatcher::Null => value.is_some_and(Value::is_null),
            ValueMatcher::Within(range) => number().is_some_and(|number| range.contains(&number)),
            ValueMatcher::Number(wanted) => number() == Some(*wanted),
            ValueMatcher::Text(test) => {
                value.and_then(Value::as_str).is_some_and(|text| test.matches(text.as_bytes()))
            }
            ValueMatcher::Bool(wanted) => value.and_then(Value::as_bool) == Some(*wanted),
            ValueMatcher::Present(wanted) => *wanted && value.is_some(),
            ValueMatcher::OneOf(test) => value
                .and_then(Value::as_array)
                .is_some_and(|values| values.iter().any(|value| test.matches(Some(value)))),
            ValueMatcher::Any(tests) => tests.iter().any(|test| test.matches(value)),
        }
    }
}

impl MetadataMatcher {
    /// Whether there is anything at the place.
    pub fn is_there(&self, metadata: &[(Arc<str>, Arc<str>, Value)]) -> bool {
        self.value_in(metadata).is_some()
    }

    /// Whether metadata by namespace and key passes.
    pub fn matches(&self, metadata: &[(Arc<str>, Arc<str>, Value)]) -> bool {
        self.passes(self.value_in(metadata))
    }

    /// Whether metadata of something that is configured passes.
    pub fn matches_configured(&self, metadata: &Metadata) -> bool {
        let first = metadata.get(&self.namespace).and_then(|values| values.get(&*self.key));
        self.passes(first.and_then(|value| below(value, &self.path)))
    }

    fn passes(&self, value: Option<&Value>) -> bool {
        self.value.matches(value) != self.invert
    }

    /// What is tested, if it is there.
    pub fn value_in<'m>(&self, metadata: &'m [(Arc<str>, Arc<str>, Value)]) -> Option<&'m Value> {
        below(noted(metadata, &self.namespace, &self.key)?, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_value_is_tested_by_its_kind() {
        let passes = |test: &ValueMatcher| {
            let values =
                [json!(null), json!(1.5), json!("a"), json!(true), json!(["b", "a"]), json!({"a": 1})];
            let mut passes: Vec<bool> = values.iter().map(|value| test.matches(Some(value))).collect();
            passes.push(test.matches(None));
            passes.into_iter().map(u8::from).map(|bit| char::from(b'0' + bit)).collect::<String>()
        };
        let text = || ValueMatcher::Text(StringMatcher::exact("a"));
        assert_eq!(passes(&ValueMatcher::Null), "1000000");
        assert_eq!(passes(&ValueMatcher::Within(1.5..2.0)), "0100000");
        assert_eq!(passes(&ValueMatcher::Within(1.0..1.5)), "0000000");
        assert_eq!(passes(&ValueMatcher::Number(1.5)), "0100000");
        assert_eq!(passes(&text()), "0010000");
        assert_eq!(passes(&ValueMatcher::Bool(true)), "0001000");
        assert_eq!(passes(&ValueMatcher::Bool(false)), "0000000");
        assert_eq!(passes(&ValueMatcher::Present(true)), "1111110");
        assert_eq!(passes(&ValueMatcher::Present(false)), "0000000");
        assert_eq!(passes(&ValueMatcher::OneOf(Box::new(text()))), "0000100");
        let either = [text(), ValueMatcher::OneOf(Box::new(text()))];
        assert_eq!(passes(&ValueMatcher::Any(either.into())), "0010100");
    }

    #[test]
    fn metadata_is_found_by_its_place() {
        let metadata = [
            ("jwt".into(), "payload".into(), json!({"sub": "old"})),
            ("other".into(), "payload".into(), json!({"sub": "bob"})),
            ("jwt".into(), "payload".into(), json!({"sub": "alice", "nested": {"role": "chief"}})),
        ];
        let passes = |key: &str, path: &[&str], wanted: &str, invert: bool| {
            let path = path.iter().map(|key| (*key).into()).collect();
            let value = ValueMatcher::Text(StringMatcher::exact(wanted));
            let (namespace, key) = ("jwt".into(), key.into());
            MetadataMatcher { namespace, key, path, value, invert }.matches(&metadata)
        };
        assert!(passes("payload", &["sub"], "alice", false));
        assert!(!passes("payload", &["sub"], "old", false), "it was said again");
        assert!(!passes("payload", &["sub"], "bob", false));
        assert!(passes("payload", &["nested", "role"], "chief", false));
        assert!(!passes("payload", &["nested"], "chief", false));
        assert!(!passes("nothing", &[], "alice", false) && passes("nothing", &[], "alice", true));
    }
}
