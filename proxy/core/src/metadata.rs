//! Metadata of what is configured: routes, clusters, endpoints.

use serde_json::{Map, Value};

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
