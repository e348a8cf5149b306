//! `${{NAME}}` and `${{NAME:=default}}` in configuration files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use sixfold_core::document::{Entry, Node, Number, Object, Value};
use sixfold_core::error::{ConfigError, FaultKind, Place};

/// The variables that a configuration may refer to.
#[derive(Debug, Clone)]
pub enum EnvVars {
    /// Those of this process.
    Process,
    /// These, for tests and validation.
    Fixed(HashMap<String, String>),
}

impl EnvVars {
    /// The value of a variable, if it is set and is text.
    pub fn get(&self, name: &str) -> Option<String> {
        match self {
            EnvVars::Process => std::env::var(name).ok(),
            EnvVars::Fixed(map) => map.get(name).cloned(),
        }
    }

    /// Replaces variables in every string and key of a document. A string that becomes a number, `true` or
    /// `false` by it becomes one indeed; keys stay strings. `errors` gets every variable that is not set and has no default,
    /// for which a word with its name stands then, and keys that become equal. With it comes what the others were as text.
    pub fn substitute(&self, node: Node, errors: &mut Vec<ConfigError>) -> (Node, Texts) {
        let mut texts = Texts::default();
        let node = self.below(node, &mut Vec::new(), &mut texts, errors);
        (node, texts)
    }

    fn below(
        &self,
        node: Node,
        path: &mut Vec<String>,
        texts: &mut Texts,
        errors: &mut Vec<ConfigError>,
    ) -> Node {
        let place = node.place;
        let value = match node.value {
            Value::String(text) => match self.text(&text, place, path, errors) {
                Cow::Borrowed(_) => Value::String(text),
                Cow::Owned(replaced) => texts.typed(replaced, place),
            },
            Value::Array(items) => {
                let items = items.into_iter().enumerate().map(|(index, item)| {
                    path.push(format!("[{index}]"));
                    let item = self.below(item, path, texts, errors);
                    path.pop();
                    item
                });
                Value::Array(items.collect())
            }
            Value::Object(object) => Value::Object(self.object(object, path, texts, errors)),
            other => other,
        };
        Node { place, value }
    }

    fn object(
        &self,
        object: Object,
        path: &mut Vec<String>,
        texts: &mut Texts,
        errors: &mut Vec<ConfigError>,
    ) -> Object {
        let entries = object.into_entries().into_iter().map(|entry| {
            let Entry { key: written, key_place, value } = entry;
            let key = self.text(&written, key_place, path, errors).into_owned();
            path.push(written);
            let value = self.below(value, path, texts, errors);
            path.pop();
            Entry { key, key_place, value }
        });
        let entries: Vec<Entry> = entries.collect();
        Object::new(entries).unwrap_or_else(|error| {
            errors.push(placed(error, path));
            Object::default()
        })
    }

    fn text<'a>(
        &self,
        text: &'a str,
        place: Place,
        path: &[String],
        errors: &mut Vec<ConfigError>,
    ) -> Cow<'a, str> {
        let (replaced, unset) = substitute(text, self);
        errors.extend(unset.iter().map(|unset| placed(unset.error().at(place), path)));
        replaced
    }
}

/// What numbers and booleans that came of variables were as text, by their places: a password of digits is one still.
#[derive(Debug, Clone, Default)]
pub struct Texts(HashMap<Place, String>);

impl Texts {
    /// The text of a value that came of a variable.
    pub(super) fn of(&self, node: &Node) -> Option<Value> {
        let is_typed = matches!(node.value, Value::Number(_) | Value::Bool(_));
        self.0.get(&node.place).filter(|_| is_typed).map(|text| Value::String(text.clone()))
    }

    fn typed(&mut self, text: String, place: Place) -> Value {
        let value = typed(&text);
        match value {
            Some(value) => {
                self.0.insert(place, text);
                value
            }
            None => Value::String(text),
        }
    }
}

/// An error below these keys.
fn placed(error: ConfigError, path: &[String]) -> ConfigError {
    path.iter().rev().fold(error, |error, key| error.in_key(key))
}

/// Replaces variables in `text`. Line breaks stay where they are, unless a value brings some.
///
/// # Errors
/// A variable that is not set and has no default.
pub fn substitute_text<'a>(text: &'a str, environment: &EnvVars) -> Result<Cow<'a, str>, ConfigError> {
    let (replaced, unset) = substitute(text, environment);
    unset.first().map_or(Ok(replaced), |unset| Err(unset.error()))
}

/// A text with its variables replaced.
#[derive(Debug, Default)]
pub struct Replaced<'a> {
    /// The text; for a variable that is not set and has no default a word with its name stands in it.
    pub text: Cow<'a, str>,
    /// An error for each of those, with its place.
    pub unset: Vec<ConfigError>,
    /// Where what stands in it was written.
    pub places: Places,
}

/// Where the parts of a text with its variables replaced stand in the text as somebody wrote it.
#[derive(Debug, Default)]
pub struct Places(Vec<Moved>);

/// A variable: where its value begins and ends, and where it was written itself.
#[derive(Debug)]
struct Moved {
    value: (Place, Place),
    written: (Place, Place),
}

impl Places {
    fn of(written: &str, replaced: &str, edits: Vec<Edit>) -> Places {
        let (mut here, mut there) = (Cursor::new(written), Cursor::new(replaced));
        let moved = edits.into_iter().map(|Edit { written, value }| Moved {
            written: (here.at(written.start), here.at(written.end)),
            value: (there.at(value.start), there.at(value.end)),
        });
        Places(moved.collect())
    }

    /// Where something was written that stands at `place` now; what is in a value, where its variable was.
    pub fn written(&self, place: Place) -> Place {
        let key = |place: Place| (place.line, place.column);
        let before = self.0.partition_point(|moved| key(moved.value.0) <= key(place));
        let Some(Moved { value, written }) = before.checked_sub(1).and_then(|last| self.0.get(last)) else {
            return place;
        };
        if key(place) < key(value.1) {
            return written.0;
        }
        let column = match place.line == value.1.line {
            true => place.column - value.1.column + written.1.column,
            false => place.column,
        };
        Place::new(place.line - value.1.line + written.1.line, column)
    }
}

/// Counts the places of a text from one offset to the next.
struct Cursor<'a> {
    text: &'a str,
    offset: usize,
    place: Place,
}

impl<'a> Cursor<'a> {
    fn new(text: &'a str) -> Cursor<'a> {
        Cursor { text, offset: 0, place: Place::new(1, 1) }
    }

    fn at(&mut self, offset: usize) -> Place {
        for char in self.text.get(self.offset..offset).unwrap_or_default().chars() {
            self.place = match char {
                '\n' => Place::new(self.place.line + 1, 1),
                _ => Place::new(self.place.line, self.place.column + 1),
            };
        }
        self.offset = offset;
        self.place
    }
}

/// [`substitute_text`] of a whole file.
pub(crate) fn substitute_file<'a>(text: &'a str, environment: &EnvVars) -> Replaced<'a> {
    let mut edits = Vec::new();
    let (replaced, unset) = substitute_noting(text, environment, &mut edits);
    let mut cursor = Cursor::new(text);
    Replaced {
        unset: unset.iter().map(|unset| unset.error().at(cursor.at(unset.at))).collect(),
        places: Places::of(text, &replaced, edits),
        text: replaced,
    }
}

/// What stands for a variable that is not set, with `-` and its name behind it so that two of them are not equal, where a
/// file is looked through all the same. YAML takes it for a word.
pub(crate) const UNSET: &str = "sixfold-variable-that-is-not-set";

/// Whether a fault is told of what stands for such a variable: of what it would be nothing is known.
pub(crate) fn is_of_unset(fault: &ConfigError) -> bool {
    fault.to_string().contains(UNSET)
}

/// Whether such a variable is in it.
pub(crate) fn holds_unset(node: &Node) -> bool {
    match &node.value {
        Value::String(text) => text.contains(UNSET),
        Value::Array(items) => items.iter().any(holds_unset),
        Value::Object(object) => {
            object.entries().iter().any(|entry| entry.key.contains(UNSET) || holds_unset(&entry.value))
        }
        _ => false,
    }
}

/// A variable that is not set and has no default, and how far into the text it is.
struct Unset<'a> {
    name: &'a str,
    at: usize,
}

impl Unset<'_> {
    fn error(&self) -> ConfigError {
        let name = self.name;
        ConfigError::new(format!("failed to handle configuration: can't find environment variable {name}"))
            .of_kind(FaultKind::UnsetVariable)
    }
}

/// A variable in a text and its value in another, in bytes from their beginnings.
struct Edit {
    written: Range<usize>,
    value: Range<usize>,
}

fn substitute<'a>(text: &'a str, environment: &EnvVars) -> (Cow<'a, str>, Vec<Unset<'a>>) {
    substitute_noting(text, environment, &mut Vec::new())
}

fn substitute_noting<'a>(
    text: &'a str,
    environment: &EnvVars,
    edits: &mut Vec<Edit>,
) -> (Cow<'a, str>, Vec<Unset<'a>>) {
    let (mut result, mut missing) = (String::new(), Vec::new());
    let mut rest = text;
    // Behind the last end there are no references, however many begin.
    let last = text.rfind("}}").unwrap_or_default();
    while let Some(start) = rest.find("${{").filter(|start| text.len() - rest.len() + start < last) {
        let (before, from) = rest.split_at(start);
        let Some((reference, length)) = reference(from) else {
            // No reference after all: keep the three characters and go on behind them.
            result.push_str(before);
            result.push_str("${{");
            rest = from.get(3..).unwrap_or_default();
            continue;
        };
        result.push_str(before);
        let (written, value) = (text.len() - from.len(), result.len());
        match environment.get(reference.name).or_else(|| reference.default.map(str::to_owned)) {
            Some(value) => result.push_str(&value),
            None => {
                result.push_str(UNSET);
                result.push('-');
                result.push_str(reference.name);
                missing.push(Unset { name: reference.name, at: written });
            }
        }
        edits.push(Edit { written: written..written + length, value: value..result.len() });
        rest = from.get(length..).unwrap_or_default();
    }
    if result.is_empty() && rest.len() == text.len() {
        return (Cow::Borrowed(text), missing);
    }
    result.push_str(rest);
    (Cow::Owned(result), missing)
}

struct Reference<'a> {
    name: &'a str,
    default: Option<&'a str>,
}

/// The reference that `text` begins with, and how long it is. No more of the text is looked at than belongs to it.
fn reference(text: &str) -> Option<(Reference<'_>, usize)> {
    let body = text.strip_prefix("${{")?.trim_start();
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (name, rest) = body.split_at(body.find(|c| !is_part(c)).unwrap_or(body.len()));
    if name.is_empty() {
        return None;
    }
    let rest = rest.trim_start();
    let (default, rest) = match rest.strip_prefix(":=") {
        Some(rest) => rest.split_once("}}").map(|(default, rest)| (Some(default.trim()), rest))?,
        None => (None, rest.strip_prefix("}}")?),
    };
    Some((Reference { name, default }, text.len() - rest.len()))
}

/// What a replaced string is if it is a number or a boolean.
fn typed(text: &str) -> Option<Value> {
    match text {
        "true" => return Some(Value::Bool(true)),
        "false" => return Some(Value::Bool(false)),
        _ => {}
    }
    let trimmed = text.trim();
    if let Ok(integer) = trimmed.parse::<i64>() {
        return Some(Value::Number(integer.into()));
    }
    // Lua's tonumber knows neither inf nor nan.
    let numeric = trimmed.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    trimmed.parse::<f64>().ok().filter(|_| numeric).and_then(Number::from_f64).map(Value::Number)
}
