//! Configuration documents (YAML or JSON) whose every key and value knows its place in the text.
//!
//! A document is read into a tree of [`Node`]s and only then turned into types, so that every later
//! complaint can name line and column. Input is hostile by default: size, depth and the growth through
//! aliases are limited ([`Options`]), and a key that is given twice is an error.

mod de;
mod json;
mod scalar;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use serde::de::DeserializeOwned;
pub use serde_json::Number;

use crate::error::ConfigError;
pub use crate::error::Place;

/// Largest document accepted by default: 32 MiB.
pub const MAX_DOCUMENT_BYTES: usize = 32 << 20;

/// How deep values may be nested by default.
pub const MAX_DEPTH: usize = 128;

/// How many nodes aliases may add by default. A string counts as one more for every 64 bytes.
pub const MAX_ALIAS_NODES: usize = 1 << 18;

/// The two notations of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// RFC 8259.
    Json,
    /// YAML 1.2 with the booleans and octal numbers of 1.1, as yaml-cpp (Envoy) and libyaml (APISIX) read it.
    Yaml,
}

impl Format {
    /// JSON for names that end in `.json`, else YAML (of which JSON is nearly a subset).
    pub fn from_file_name(name: &str) -> Self {
        match name.rsplit_once('.') {
            Some((_, extension)) if extension.eq_ignore_ascii_case("json") => Format::Json,
            _ => Format::Yaml,
        }
    }
}

/// Limits and dialect of a document.
#[derive(Clone, Debug)]
pub struct Options {
    /// Notation; default YAML.
    pub format: Format,
    /// Largest text in bytes; default [`MAX_DOCUMENT_BYTES`].
    pub max_bytes: usize,
    /// Deepest nesting of arrays and objects; default [`MAX_DEPTH`].
    pub max_depth: usize,
    /// What aliases may add; default [`MAX_ALIAS_NODES`].
    pub max_alias_nodes: usize,
    /// Whether a document without any value is `Null` instead of an error; default false.
    pub allow_empty: bool,
    /// Whether plain YAML numbers outside of 32-bit integers become strings, as in Envoy, whose YAML
    /// reader leaves `1.5` and `5000000000` to protobuf's JSON mapping (source/common/protobuf/yaml_utility.cc).
    /// Default false.
    pub wide_numbers_as_text: bool,
    /// Whether the plain YAML scalars `y`, `n`, `Y` and `N` are booleans, as for yaml-cpp, Envoy's reader; default false.
    pub letters_as_booleans: bool,
    /// Whether of a key that is given twice the last one counts, as for APISIX's readers, instead of being an
    /// error; default false.
    pub last_key_counts: bool,
    /// Whether what follows the first of several YAML documents is passed over, and a comma before the end of an array
    /// or object of JSON as well, instead of being errors; default false.
    pub lenient: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            format: Format::Yaml,
            max_bytes: MAX_DOCUMENT_BYTES,
            max_depth: MAX_DEPTH,
            max_alias_nodes: MAX_ALIAS_NODES,
            allow_empty: false,
            wide_numbers_as_text: false,
            letters_as_booleans: false,
            last_key_counts: false,
            lenient: false,
        }
    }
}

impl Options {
    /// What Envoy's readers, yaml-cpp and protobuf's JSON parser, make of a file of this name, but for numbers.
    pub fn envoy(name: &str) -> Self {
        Options { letters_as_booleans: true, last_key_counts: true, lenient: true, ..Options::for_file(name) }
    }

    /// The defaults for the format that the file's name tells.
    pub fn for_file(name: &str) -> Self {
        Options { format: Format::from_file_name(name), ..Options::default() }
    }
}

/// A value and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where the value begins.
    pub place: Place,
    /// The value.
    pub value: Value,
}

/// What a [`Node`] holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing at all.
    Null,
    /// `true` or `false`; in YAML also `yes`, `no`, `on`, `off` without quotes.
    Bool(bool),
    /// Integer or float, kept apart.
    Number(Number),
    /// A string.
    String(String),
    /// A list.
    Array(Vec<Node>),
    /// Keys and values in the order of the text.
    Object(Object),
}

/// One key of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key as text; YAML keys that look like numbers or booleans are taken literally.
    pub key: String,
    /// Where the key begins.
    pub key_place: Place,
    /// The value.
    pub value: Node,
}

/// Keys and values in the order of the text, each key once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object(Vec<Entry>);

/// Objects up to this many keys are checked for duplicates pair by pair, without a hash map.
const PAIRWISE_KEYS: usize = 12;

impl Object {
    /// An object of these entries.
    ///
    /// # Errors
    /// When a key occurs twice.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, ConfigError> {
        // Most objects have one or two keys, and a vector begins with room for four.
        entries.shrink_to_fit();
        if entries.len() <= PAIRWISE_KEYS {
            for (index, entry) in entries.iter().enumerate() {
                if let Some(first) = entries.iter().take(index).find(|first| first.key == entry.key) {
                    return Err(duplicate(entry, first.key_place));
                }
            }
        } else {
            let mut seen: HashMap<&str, Place> = HashMap::with_capacity(entries.len());
            for entry in &entries {
                if let Some(first) = seen.insert(&entry.key, entry.key_place) {
                    return Err(duplicate(entry, first));
                }
            }
        }
        Ok(Object(entries))
    }

    /// [`Object::new`] by [`Options::last_key_counts`].
    fn with(entries: Vec<Entry>, last_key_counts: bool) -> Result<Self, ConfigError> {
        if last_key_counts { Ok(Object::last_counts(entries)) } else { Object::new(entries) }
    }

    /// An object of these entries, of those with one key the last.
    fn last_counts(entries: Vec<Entry>) -> Self {
        let last: HashMap<String, usize> =
            entries.iter().enumerate().map(|(at, entry)| (entry.key.clone(), at)).collect();
        let kept = entries.into_iter().enumerate().filter(|(at, entry)| last.get(&entry.key) == Some(at));
        Object(kept.map(|(_, entry)| entry).collect())
    }

    /// The entry of a key. A scan: objects of configuration are small, big ones are iterated.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.key == key)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// All entries in the order of the text.
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// All values, to be changed in place.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.0.iter_mut().map(|entry| &mut entry.value)
    }

    /// All entries, by value.
    pub fn into_entries(self) -> Vec<Entry> {
        self.0
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Where a second YAML document begins, which is passed over by a lenient reader ([`Options::lenient`]).
pub fn second_document(text: &str) -> Option<Place> {
    let marker = |line: &str| {
        line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
    };
    let is_content = |line: &str| !line.trim_start().is_empty() && !line.trim_start().starts_with(['#', '%']);
    let mut begun = false;
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if marker(line) && begun {
            return Some(Place::new(u32::try_from(index + 1).unwrap_or(u32::MAX), 1));
        }
        begun |= is_content(line);
    }
    None
}

fn duplicate(entry: &Entry, first: Place) -> ConfigError {
    ConfigError::new(format!("duplicate key, first given at {first}")).in_key(&entry.key).at(entry.key_place)
}

impl Node {
    /// Reads a document.
    ///
    /// # Errors
    /// Syntax, duplicate keys, exceeded limits, no value at all (unless allowed), several YAML documents;
    /// always with a place.
    pub fn parse(text: &str, options: &Options) -> Result<Node, ConfigError> {
        if text.len() > options.max_bytes {
            return Err(ConfigError::new(format!(
                "the document has {} bytes, more than the limit of {}",
                text.len(),
                options.max_bytes
            ))
            .at(Place::new(1, 1)));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let node = match options.format {
            Format::Json => json::parse(text, options)?,
            Format::Yaml => yaml::parse(text, options)?,
        };
        match node {
            Some(node) => Ok(node),
            None if options.allow_empty => Ok(Node { place: Place::new(1, 1), value: Value::Null }),
            None => Err(ConfigError::new("the document is empty").at(Place::new(1, 1))),
        }
    }

    /// Reads a document of the format that the file's name tells, and names the file in errors.
    ///
    /// # Errors
    /// As [`Node::parse`].
    pub fn parse_file_text(text: &str, file: &str) -> Result<Node, ConfigError> {
        Node::parse(text, &Options::for_file(file)).map_err(|error| error.in_file(file))
    }

    /// A node made by a program, at no particular place (line 0).
    pub fn from_json(value: serde_json::Value) -> Node {
        let value = match value {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(value),
            serde_json::Value::Number(value) => Value::Number(value),
            serde_json::Value::String(value) => Value::String(value),
            serde_json::Value::Array(items) => Value::Array(items.into_iter().map(Node::from_json).collect()),
            serde_json::Value::Object(map) => Value::Object(Object(
                map.into_iter()
                    .map(|(key, value)| Entry {
                        key,
                        key_place: Place::default(),
                        value: Node::from_json(value),
                    })
                    .collect(),
            )),
        };
        Node { place: Place::default(), value }
    }

    /// The same value without places.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => serde_json::Value::Bool(*value),
            Value::Number(value) => serde_json::Value::Number(value.clone()),
            Value::String(value) => serde_json::Value::String(value.clone()),
            Value::Array(items) => serde_json::Value::Array(items.iter().map(Node::to_json).collect()),
            Value::Object(object) => serde_json::Value::Object(
                object.0.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect(),
            ),
        }
    }

    /// Reads a type with serde.
    ///
    /// # Errors
    /// What serde complains about, with the path of the field and its place.
    pub fn deserialize<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        T::deserialize(self).map_err(|error| error.at(self.place))
    }

    /// The value of a key, if this is an object that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.as_object().and_then(|object| object.get(key))
    }

    /// The object, if it is one.
    pub fn as_object(&self) -> Option<&Object> {
        match &self.value {
            Value::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The items, if it is an array.
    pub fn as_array(&self) -> Option<&[Node]> {
        match &self.value {
            Value::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The text, if it is a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Whether there is no value.
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// The kind of value in the words of an error: `a string`, `an object`.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "null",
            Value::Bool(true) => "the boolean true",
            Value::Bool(false) => "the boolean false",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        }
    }
}
