//! Names of servers and what they stand for.

use std::borrow::Cow;
use std::collections::HashMap;

/// Values by server name: exact names and wildcards of one label (`*.example.com`).
#[derive(Debug, Clone)]
pub struct NameTable<T> {
    exact: HashMap<Box<str>, T>,
    /// By what follows `*.`.
    wildcards: HashMap<Box<str>, T>,
}

impl<T> Default for NameTable<T> {
    fn default() -> NameTable<T> {
        NameTable { exact: HashMap::new(), wildcards: HashMap::new() }
    }
}

impl<T> NameTable<T> {
    /// Adds a name unless it is there already; tells whether it was new.
    pub fn insert(&mut self, name: &str, value: T) -> bool {
        let name = name.to_ascii_lowercase();
        let (map, key) = match name.strip_prefix("*.") {
            Some(rest) => (&mut self.wildcards, rest),
            None => (&mut self.exact, &*name),
        };
        if map.contains_key(key) {
            return false;
        }
        map.insert(key.into(), value);
        true
    }

    /// What a name stands for: its own entry, else the wildcard one label above it.
    pub fn get(&self, name: &str) -> Option<&T> {
        let name = match name.bytes().any(|b| b.is_ascii_uppercase()) {
            true => Cow::Owned(name.to_ascii_lowercase()),
            false => Cow::Borrowed(name),
        };
        self.exact.get(&*name).or_else(|| {
            let (label, rest) = name.split_once('.')?;
            self.wildcards.get(rest).filter(|_| !label.is_empty())
        })
    }

    /// All values, one for each name.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.exact.values().chain(self.wildcards.values())
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcards.is_empty()
    }
}
