//! `${{NAME}}` and `${{NAME:=default}}` in configuration files.

use std::borrow::Cow;
use std::collections::HashMap;

use sixfold_core::document::{Entry, Node, Number, Object, Value};
use sixfold_core::error::{ConfigError, Place};

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
    /// `false` by it becomes one indeed; keys stay strings.
    ///
    /// # Errors
    /// A variable that is not set and has no default, and keys that become equal.
    pub fn substitute(&self, node: Node) -> Result<Node, ConfigError> {
        let place = node.place;
        let value = match node.value {
            Value::String(text) => match substitute_text(&text, self).map_err(|e| e.at(place))? {
                Cow::Borrowed(_) => Value::String(text),
                Cow::Owned(replaced) => typed(replaced),
            },
            Value::Array(items) => {
                Value::Array(items.into_iter().map(|item| self.substitute(item)).collect::<Result<_, _>>()?)
            }
            Value::Object(object) => Value::Object(self.substitute_object(object)?),
            other => other,
        };
        Ok(Node { place, value })
    }

    fn substitute_object(&self, object: Object) -> Result<Object, ConfigError> {
        let entries = object.into_entries().into_iter().map(|entry| {
            let Entry { key, key_place, value } = entry;
            let key = substitute_text(&key, self).map_err(|e| e.at(key_place))?.into_owned();
            let value = self.substitute(value).map_err(|e| e.in_key(&key))?;
            Ok(Entry { key, key_place, value })
        });
        Object::new(entries.collect::<Result<_, ConfigError>>()?)
    }
}

/// Replaces variables in `text`. Line breaks stay where they are, unless a value brings some.
///
/// # Errors
/// A variable that is not set and has no default.
pub fn substitute_text<'a>(text: &'a str, environment: &EnvVars) -> Result<Cow<'a, str>, ConfigError> {
    substitute(text, environment).map_err(|unset| unset.error())
}

/// [`substitute_text`] of a whole file: the error has its place.
///
/// # Errors
/// A variable that is not set and has no default.
pub(crate) fn substitute_file<'a>(text: &'a str, environment: &EnvVars) -> Result<Cow<'a, str>, ConfigError> {
    let behind = |at| Place::behind(text.get(..at).unwrap_or_default());
    substitute(text, environment).map_err(|unset| unset.error().at(behind(unset.at)))
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
    }
}

fn substitute<'a>(text: &'a str, environment: &EnvVars) -> Result<Cow<'a, str>, Unset<'a>> {
    let mut result = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${{") {
        let (before, from) = rest.split_at(start);
        let Some((reference, length)) = reference(from) else {
            // No reference after all: keep the three characters and go on behind them.
            result.push_str(before);
            result.push_str("${{");
            rest = from.get(3..).unwrap_or_default();
            continue;
        };
        result.push_str(before);
        match environment.get(reference.name).or_else(|| reference.default.map(str::to_owned)) {
            Some(value) => result.push_str(&value),
            None => {
                return Err(Unset { name: reference.name, at: text.len() - from.len() });
            }
        }
        rest = from.get(length..).unwrap_or_default();
    }
    if result.is_empty() && rest.len() == text.len() {
        return Ok(Cow::Borrowed(text));
    }
    result.push_str(rest);
    Ok(Cow::Owned(result))
}

struct Reference<'a> {
    name: &'a str,
    default: Option<&'a str>,
}

/// The reference that `text` begins with, and how long it is.
fn reference(text: &str) -> Option<(Reference<'_>, usize)> {
    let body = text.strip_prefix("${{")?;
    let end = body.find("}}")?;
    let inner = body.get(..end)?;
    let (name, default) = match inner.split_once(":=") {
        Some((name, default)) => (name.trim(), Some(default.trim())),
        None => (inner.trim(), None),
    };
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_name.then_some((Reference { name, default }, end + 5))
}

/// What a replaced string is: a number, a boolean, or a string still.
fn typed(text: String) -> Value {
    match text.as_str() {
        "true" => return Value::Bool(true),
        "false" => return Value::Bool(false),
        _ => {}
    }
    let trimmed = text.trim();
    if let Ok(integer) = trimmed.parse::<i64>() {
        return Value::Number(integer.into());
    }
    // Lua's tonumber knows neither inf nor nan.
    let numeric = trimmed.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    match trimmed.parse::<f64>().ok().filter(|_| numeric).and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None => Value::String(text),
    }
}
