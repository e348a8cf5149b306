//! What APISIX's limiters have in common: what they count by, numbers that may be templates, their refusal.

use crate::apisix::{self, error_reply};
use serde::Deserialize;
use serde_json::Value;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::format::{Format, Variable};
use sixfold_core::plugin::LocalReply;
use sixfold_core::stream::Stream;

/// The largest whole number that APISIX counts with.
pub(crate) const MAX_COUNT: u64 = (1 << 53) - 1;

/// How a `key` is read.
#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeyType {
    /// The name of a variable.
    Var,
    /// A template.
    VarCombination,
    /// The text itself.
    Constant,
}

/// What is counted by.
pub(crate) enum Key {
    Variable(Variable),
    Combination(Format),
    Constant(Vec<u8>),
}

/// A number of the configuration, or a template of one.
pub(crate) enum Number {
    Fixed(u64),
    Template {
        format: Format,
        /// The least that it may come to.
        least: u64,
    },
}

/// The answer to what is too much.
pub(crate) struct Rejection {
    pub(crate) code: u16,
    pub(crate) message: Option<String>,
}

impl Key {
    /// From `key` and `key_type`.
    ///
    /// # Errors
    /// What is no template.
    pub(crate) fn new(key: &str, key_type: KeyType) -> Result<Key, ConfigError> {
        Ok(match key_type {
            KeyType::Var => Key::Variable(Variable::parse(key)),
            KeyType::VarCombination => Key::Combination(apisix::template(key).in_key("key")?),
            KeyType::Constant => Key::Constant(key.as_bytes().to_vec()),
        })
    }

    /// What a request is counted by. Nothing of it there: `None` if that makes the rule not apply, else the
    /// client's address.
    pub(crate) fn value(&self, stream: &Stream, optional: bool) -> Option<Vec<u8>> {
        let mut value = Vec::new();
        let resolved = match self {
            Key::Variable(variable) => usize::from(variable.write(stream, &mut value)),
            Key::Combination(format) => format.resolve_count(stream, &mut value),
            Key::Constant(text) => return Some(text.clone()),
        };
        if resolved > 0 && !value.is_empty() {
            return Some(value);
        }
        (!optional).then(|| stream.remote_ip().to_string().into_bytes())
    }
}

impl Number {
    /// A whole number from `least` to [`MAX_COUNT`], or a template of one.
    ///
    /// # Errors
    /// What is neither.
    pub(crate) fn new(value: &Value, least: u64) -> Result<Number, ConfigError> {
        match value {
            Value::String(text) => apisix::template(text).map(|format| Number::Template { format, least }),
            other => {
                other.as_u64().filter(|n| (least..=MAX_COUNT).contains(n)).map(Number::Fixed).ok_or_else(
                    || ConfigError::new(format!("{other} is not a whole number from {least} to {MAX_COUNT}")),
                )
            }
        }
    }

    /// The number, where it is the same for all requests.
    pub(crate) fn fixed(&self) -> Option<u64> {
        match self {
            Number::Fixed(number) => Some(*number),
            Number::Template { .. } => None,
        }
    }

    /// The number for a request; `None` when it is none, and so must not let anything through.
    pub(crate) fn resolve(&self, stream: &Stream) -> Option<u64> {
        match self {
            Number::Fixed(number) => Some(*number),
            Number::Template { format, least } => {
                let text = apisix::value(format, stream);
                let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
                let number = std::str::from_utf8(&text).ok().filter(|_| digits)?.parse().ok()?;
                (*least..=MAX_COUNT).contains(&number).then_some(number)
            }
        }
    }
}

impl Rejection {
    pub(crate) fn reply(&self) -> LocalReply {
        match &self.message {
            Some(message) => error_reply(self.code, message),
            None => LocalReply::new(self.code, "", ""),
        }
    }
}
