//! APISIX's schemas as data, and the validator that answers in APISIX's own words.
//!
//! The schemas are draft-07 JSON in `proxy/apisix/schemas`. They are what the Admin API serves, and they
//! are compiled once into a tree of checks. Validation fills defaults into the instance while it runs, as
//! the engine behind APISIX (api7/jsonschema) does, and its messages are the ones that APISIX's users and
//! its tests know.

mod compile;
mod resources;
mod rules;
#[cfg(test)]
mod tests;
mod validate;

use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use sixfold_core::error::{FaultKind, MAX_FAULTS};

pub use self::resources::{plugin_meta, plugins_list, resource, secret};
use self::rules::Check;
pub(crate) use self::validate::lua_type;

/// A compiled schema.
#[derive(Debug, Clone)]
pub struct Schema {
    source: Arc<Value>,
    check: Arc<Check>,
}

/// A schema that can't be compiled: where in it, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("schema at '{at}': {reason}")]
pub struct SchemaError {
    /// A JSON pointer into the schema.
    pub at: String,
    /// What is wrong there.
    pub reason: String,
}

/// Why an instance does not match its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Where in the instance, from the root down.
    pub path: Vec<Step>,
    /// The reason in APISIX's words, with the properties on the way in front of it.
    pub message: String,
    /// What would be right, where those words do not say it.
    pub hint: Option<String>,
    /// What sort of fault it is.
    pub kind: FaultKind,
}

impl Violation {
    /// One of which the message says everything.
    pub fn new(path: Vec<Step>, message: impl Into<String>) -> Violation {
        Violation { path, message: message.into(), hint: None, kind: FaultKind::Wrong }
    }

    /// One of a plugin that nobody knows.
    pub(crate) fn unknown_plugin(name: &str, hint: Option<String>) -> Violation {
        let unknown = Violation::new(Vec::new(), format!("unknown plugin [{name}]"));
        Violation { hint, kind: FaultKind::UnknownPlugin, ..unknown }
    }
}

/// One step into a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A position in an array, from 0.
    Index(usize),
    /// A key of an object.
    Key(String),
}

impl Schema {
    /// Compiles `source`.
    ///
    /// # Errors
    /// [`SchemaError`] for a keyword with a value of the wrong kind, a keyword that this validator does not
    /// know, or a pattern that is no regular expression.
    pub fn compile(source: Value) -> Result<Schema, SchemaError> {
        let check = compile::compile(&source)?;
        Ok(Schema { source: Arc::new(source), check: Arc::new(check) })
    }

    /// Compiles a schema that is part of the program; one that does not compile refuses every instance.
    pub fn builtin(text: &str) -> Schema {
        let compiled = serde_json::from_str(text)
            .map_err(|e| SchemaError { at: String::new(), reason: e.to_string() })
            .and_then(Schema::compile);
        compiled.unwrap_or_else(|e| Schema::refusing(&e))
    }

    fn refusing(error: &SchemaError) -> Schema {
        Schema { source: Arc::new(Value::Bool(false)), check: Arc::new(Check::Broken(error.to_string())) }
    }

    /// The schema as data, as the Admin API serves it.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// Checks `instance` and writes the schema's defaults into it.
    ///
    /// A string that refers to a secret (`$env://`, `$secret://`) is accepted wherever a string is, since
    /// its value is only known later.
    ///
    /// # Errors
    /// The first [`Violation`], which is what the Admin API answers; the instance may hold some of the defaults then.
    pub fn validate(&self, instance: &mut Value) -> Result<(), Violation> {
        self.up_to(1, instance).into_iter().next().map_or(Ok(()), Err)
    }

    /// [`Schema::validate`] with every fault, the first of which is the one that it answers; [`MAX_FAULTS`] at most.
    ///
    /// # Errors
    /// All of them.
    pub fn validate_all(&self, instance: &mut Value) -> Result<(), Vec<Violation>> {
        let violations = self.up_to(MAX_FAULTS, instance);
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }

    fn up_to(&self, limit: usize, instance: &mut Value) -> Vec<Violation> {
        let violation = |failure: validate::Failure| {
            let validate::Failure { mut path, message, hint } = failure;
            path.reverse();
            Violation { hint, ..Violation::new(path, message) }
        };
        validate::faults(&self.check, instance, limit).into_iter().map(violation).collect()
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Spells a path as `upstream.nodes[0].host`; the root is the empty string.
pub fn display_path(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Index(index) => text.push_str(&format!("[{index}]")),
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
        }
    }
    text
}

/// Whether `text` refers to a secret that is resolved later (APISIX compares the prefix without case).
pub fn is_secret_reference(text: &str) -> bool {
    ["$env://", "$secret://"]
        .iter()
        .any(|prefix| text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix)))
}
