//! What the user's config.yaml says by itself, for faults that are found after it was read.

use sixfold_core::document::{Node, Value};
use sixfold_core::error::{ConfigError, Place};

/// A config.yaml as it was written, without defaults.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) file: String,
    pub(super) document: Node,
}

impl Written {
    /// Whether the user's file has this key, such as `apisix.node_listen[1].port`; a null takes a default away
    /// and is no value.
    pub(super) fn has(&self, path: &str) -> bool {
        let (rest, node, _) = walk(&self.document, path);
        rest.is_empty() && !node.is_null()
    }

    /// Where a key stands, or the nearest above it that the user has written.
    pub(super) fn place(&self, path: &str) -> Option<Place> {
        walk(&self.document, path).2
    }

    /// The error of a key, with the place of the nearest one above it that the user has written.
    pub(super) fn fault(&self, path: &str, reason: String) -> ConfigError {
        let error = ConfigError::field(path, reason).in_file(&self.file);
        match self.place(path) {
            Some(place) => error.at(place),
            None => error,
        }
    }
}

/// Follows a path as far as a document goes: what is left of it, the last node, and where its key stands.
pub(crate) fn walk<'a, 'n>(document: &'n Node, path: &'a str) -> (&'a str, &'n Node, Option<Place>) {
    let (mut rest, mut node, mut place) = (path, document, None);
    while !rest.is_empty() {
        let (key, after) = first_key(rest);
        let next = match &node.value {
            Value::Object(object) => object.entry(key).map(|entry| (&entry.value, entry.key_place)),
            Value::Array(items) => {
                let item = key.parse().ok().and_then(|index: usize| items.get(index));
                item.map(|item| (item, item.place))
            }
            _ => None,
        };
        let Some((value, at)) = next else { break };
        (rest, node, place) = (after, value, Some(at));
    }
    (rest, node, place)
}

/// `a` and what follows of `a.b`, `a[0].b` and `[0].b` (whose key is `0`).
fn first_key(path: &str) -> (&str, &str) {
    if let Some((index, after)) = path.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        return (index, after.strip_prefix('.').unwrap_or(after));
    }
    let end = path.find(['.', '[']).unwrap_or(path.len());
    let (key, after) = path.split_at(end);
    (key, after.strip_prefix('.').unwrap_or(after))
}
