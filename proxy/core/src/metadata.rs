//! Metadata: of what is configured, which are routes, clusters, endpoints, and what is noted of a request.

use serde_json::{Map, Value};
use std::sync::Arc;

/// What is noted under a key, of the notes of [`crate::stream::Stream::metadata`]: of two with one key the later counts.
pub fn noted<'m>(all: &'m [(Arc<str>, Arc<str>, Value)], namespace: &str, key: &str) -> Option<&'m Value> {
    let found = all.iter().rfind(|(of, name, _)| **of == *namespace && **name == *key);
    found.map(|(_, _, value)| value)
}

/// What a value has at the end of these keys, each of which names a member of an object; the value itself without any.
pub fn below<'v>(value: &'v Value, path: &[impl AsRef<str>]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, key| value.get(key.as_ref()))
}

/// Values by namespace (core/v3/base.proto Metadata, as JSON). Nearly everything has none, and then this is one
/// word: an empty map of `serde_json` takes nine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(Option<Box<Map<String, Value>>>);

impl Metadata {
    /// The value of a namespace.
    #[inline]
    pub fn get(&self, namespace: &str) -> Option<&Value> {
        self.0.as_ref()?.get(namespace)
    }

    /// All of them, by namespace.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().flat_map(|map| map.iter()).map(|(name, value)| (name.as_str(), value))
    }

    /// Sets the value of a namespace.
    pub fn insert(&mut self, namespace: &str, value: Value) {
        self.0.get_or_insert_default().insert(namespace.to_owned(), value);
    }
}

impl From<Map<String, Value>> for Metadata {
    fn from(map: Map<String, Value>) -> Metadata {
        Metadata((!map.is_empty()).then(|| Box::new(map)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_later_note_counts_and_its_members_are_found() {
        let note = |space: &str, key: &str, value| (space.into(), key.into(), value);
        let all = [
            note("n", "k", json!({"a": "old"})),
            note("n", "k", json!({"a": {"b": [1]}})),
            note("m", "k", json!(1)),
            note("n", "l", json!(2)),
        ];
        let found = |path: &[&str]| noted(&all, "n", "k").and_then(|value| below(value, path)).cloned();
        assert_eq!(found(&[]), Some(json!({"a": {"b": [1]}})));
        assert_eq!(found(&["a", "b"]), Some(json!([1])));
        assert_eq!((found(&["b"]), found(&["a", "b", "0"])), (None, None));
        assert_eq!((noted(&all, "k", "n"), noted(&[], "n", "k")), (None, None));
    }
}
