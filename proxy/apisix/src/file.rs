//! APISIX's standalone files, `apisix.yaml` and `apisix.json`.
//!
//! A YAML file is split into the items of its top-level lists by indentation alone, and an item is parsed
//! only when the hash of its text is new: finding the changed one of 5,000 routes takes a millisecond,
//! parsing all of them two hundred. Whatever is not laid out in the usual way (flow style at the top,
//! anchors that items share, several documents) is parsed as a whole instead, so the split never decides
//! what a file means.

mod split;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use sixfold_core::document::{Format, MAX_DOCUMENT_BYTES, Node, Options, Value};
use sixfold_core::error::{ConfigError, Place};
use xxhash_rust::xxh64::xxh64;

use crate::config::{EnvVars, Replaced, UNSET, holds_unset, substitute_file};
use crate::resource::Kind;
use crate::store::move_lines;
use crate::watch::Found;
use sixfold_core::files::Stamp;

/// A top-level list of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Section {
    /// The list of enabled plugins.
    Plugins,
    /// Resources.
    Resources(Kind),
}

/// The content of an item, for telling whether it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    hash: u64,
    length: usize,
}

/// One item of a list, not parsed yet if the split found it.
#[derive(Debug, Clone, PartialEq)]
pub struct Item<'a> {
    /// The list it is in.
    pub section: Section,
    /// Its position in the list, from 1.
    pub index: usize,
    /// The line it begins at, from 1.
    pub line: u32,
    /// Of its text.
    pub fingerprint: Fingerprint,
    content: Content<'a>,
}

#[derive(Debug, Clone, PartialEq)]
enum Content<'a> {
    Text(&'a str),
    Parsed(Node),
}

impl Section {
    /// The list that a top-level key names.
    pub fn from_key(key: &str) -> Option<Section> {
        match key {
            "plugins" => Some(Section::Plugins),
            key => Kind::from_section(key).map(Section::Resources),
        }
    }

    /// The top-level key.
    pub fn key(self) -> &'static str {
        match self {
            Section::Plugins => "plugins",
            Section::Resources(kind) => kind.section(),
        }
    }
}

impl Fingerprint {
    /// As a revision.
    pub(crate) fn revision(self) -> u64 {
        self.hash ^ (self.length as u64).rotate_left(32)
    }

    fn of(text: &str) -> Fingerprint {
        Fingerprint { hash: xxh64(text.as_bytes(), 0), length: text.len() }
    }
}

impl Item<'_> {
    /// The item as a document, lines counted from its first. `None` if the text is no item by itself, so that
    /// the file has to be read as a whole.
    pub fn parse(&self) -> Option<Node> {
        let text = match &self.content {
            Content::Parsed(node) => {
                let mut node = node.clone();
                move_lines(&mut node, |line| line.saturating_sub(self.line.saturating_sub(1)));
                return Some(node);
            }
            Content::Text(text) => text,
        };
        let root = Node::parse(text, &Options::default()).ok()?;
        let Value::Array(items) = root.value else { return None };
        let mut items = items.into_iter();
        let (node, None) = (items.next()?, items.next()) else { return None };
        Some(node)
    }
}

/// Reads the text of a file.
///
/// # Errors
/// A file that is missing, unreadable, no UTF-8 or larger than 32 MiB.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    read_stamped(path).map(|(text, _)| text)
}

/// [`read`] with what tells this file from the one that takes its place.
pub(crate) fn read_stamped(path: &Path) -> Result<(String, Found), ConfigError> {
    let error = |reason: String| ConfigError::new(reason).in_file(path.display().to_string());
    let opened = |e: std::io::Error| error(format!("can't be opened: {e}"));
    // Opening a pipe would wait for whoever writes into it.
    if !std::fs::metadata(path).map_err(opened)?.is_file() {
        return Err(error("is no regular file".to_owned()));
    }
    let file = std::fs::File::open(path).map_err(opened)?;
    let stamp = Stamp::of(&file.metadata().map_err(opened)?).ok();
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| error(format!("can't be read: {e}")))?;
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(error(format!("larger than the limit of {MAX_DOCUMENT_BYTES} bytes")));
    }
    let text = ConfigError::utf8(bytes).map_err(|e| e.in_file(path.display().to_string()))?;
    Ok((text, stamp))
}

/// Whether a YAML file was written to its end: `#END` stands there, with nothing but white space behind it.
pub fn is_complete(text: &str) -> bool {
    // APISIX looks at the last ten bytes alone.
    let tail = text.as_bytes().get(text.len().saturating_sub(10)..).unwrap_or_default();
    tail.trim_ascii_end().ends_with(b"#END")
}

/// Whether there is anything but comments in a YAML file.
pub(crate) fn has_content(text: &str) -> bool {
    let text = text.trim_start_matches('\u{feff}');
    text.lines().map(str::trim_start).any(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Replaces `${{VAR}}` in the text of a YAML file.
pub fn substitute<'a>(text: &'a str, environment: &EnvVars) -> Replaced<'a> {
    substitute_file(text, environment)
}

/// The items of a YAML file (variables replaced) by indentation, `None` if its layout is not the usual one.
pub fn split(text: &str) -> Option<Vec<Item<'_>>> {
    split::split(text)
}

/// What a file holds as a whole.
#[derive(Debug, Default)]
pub struct Whole {
    /// Its items.
    pub items: Vec<Item<'static>>,
    /// What is odd about it.
    pub warnings: Vec<ConfigError>,
    /// Faults of its syntax, lists that are none, and of a JSON file variables that are not set.
    pub errors: Vec<ConfigError>,
    /// Kinds of which variables that are not set hide a resource or what it is called.
    pub(crate) hidden: BTreeSet<Kind>,
}

/// The items of a file by parsing all of it.
pub fn parse(text: &str, format: Format, environment: &EnvVars) -> Whole {
    let mut whole = Whole::default();
    let Whole { items, warnings, errors, hidden } = &mut whole;
    let root = match (read_tree(text, format, warnings), format) {
        // YAML's variables were replaced in the text.
        (Ok(root), Format::Yaml) => root,
        (Ok(root), Format::Json) => environment.substitute(root, errors).0,
        (Err(error), _) => {
            errors.push(error);
            return whole;
        }
    };
    let Some(object) = root.as_object() else {
        if !root.is_null() {
            let reason = format!("expected lists by name (routes, upstreams, ...), found {}", root.kind());
            errors.push(ConfigError::new(reason).at(root.place));
        }
        return whole;
    };
    for entry in object.entries() {
        let Some(section) = Section::from_key(&entry.key) else {
            if entry.key.contains(UNSET) {
                hidden.extend(Kind::ALL);
            }
            warnings.push(unknown_section(&entry.key, entry.key_place));
            continue;
        };
        if let Section::Resources(kind) = section
            && hides(kind, &entry.value)
        {
            hidden.insert(kind);
        }
        match &entry.value.value {
            Value::Null => {}
            Value::Object(object) if object.is_empty() => {}
            Value::String(_) if holds_unset(&entry.value) => {}
            Value::Array(list) => items.extend(list.iter().zip(1..).map(|(node, index)| Item {
                section,
                index,
                line: node.place.line,
                fingerprint: Fingerprint::of(&node.to_json().to_string()),
                content: Content::Parsed(node.clone()),
            })),
            _ => {
                let reason = format!("expected a list, found {}", entry.value.kind());
                errors.push(ConfigError::field(&entry.key, reason).at(entry.value.place));
            }
        }
    }
    whole
}

/// Whether a variable that is not set stands for a resource of a list, for the list, or for what a resource is called.
fn hides(kind: Kind, list: &Node) -> bool {
    let Value::Array(items) = &list.value else { return holds_unset(list) };
    items.iter().any(|item| {
        let Some(object) = item.as_object() else { return holds_unset(item) };
        let is_id = |key: &str| key == kind.id_field() || key.contains(UNSET);
        object
            .entries()
            .iter()
            .any(|entry| is_id(&entry.key) && (entry.key.contains(UNSET) || holds_unset(&entry.value)))
    })
}

/// Reads a document. A key that is given twice is odd; the last one counts, as in APISIX.
pub(crate) fn read_tree(
    text: &str,
    format: Format,
    warnings: &mut Vec<ConfigError>,
) -> Result<Node, ConfigError> {
    let options = Options { format, allow_empty: true, ..Options::default() };
    Node::parse(text, &options).or_else(|strict| {
        let lenient = Options { last_key_counts: true, ..options };
        let root = Node::parse(text, &lenient).map_err(|_| strict.clone())?;
        warnings.push(ConfigError { reason: format!("{}: the last one counts", strict.reason), ..strict });
        Ok(root)
    })
}

/// APISIX ignores such a key, and people keep their anchors under one.
fn unknown_section(key: &str, place: Place) -> ConfigError {
    let known = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Credential).map(Kind::section);
    ConfigError::unknown_key(key, known.chain(["plugins"])).in_key(key).at(place)
}
