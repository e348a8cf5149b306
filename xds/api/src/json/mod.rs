//! The JSON mapping of protobuf (protobuf.dev/programming-guides/json) between documents and Envoy's messages.
//!
//! A document's [`Node`]s are written straight to protobuf's wire form, guided by the table in
//! [`crate::schema`], and decoded from there into the typed message. So every error knows path, line and column,
//! and the cost is that of one pass.

pub(crate) mod encode;
pub mod print;
pub(crate) mod scalar;
mod well_known;

#[cfg(test)]
mod tests;

pub use well_known::{parse_duration, parse_timestamp};

use prost::{Message, Name};
use sixfold_core::document::Node;
use sixfold_core::error::{ConfigError, nearest};

use crate::schema::TypeSchema;

/// Reads a message from its JSON form.
///
/// Fields may be written as in the definition (`filter_chains`) or in lowerCamelCase, enum values by name or
/// number, durations as `15s`. A value inside an `Any` names its type in `@type`.
///
/// # Errors
/// Unknown fields and types, values that don't fit, two members of a oneof; with path and place.
pub fn message_from_node<M: Message + Default + Name>(node: &Node) -> Result<M, ConfigError> {
    let (message, faults) = message_with_faults(node);
    faults.map_or(Ok(message), Err)
}

/// [`message_from_node`] for whoever looks for faults: what is right of the message, and all that is wrong with it.
pub fn message_with_faults<M: Message + Default + Name>(node: &Node) -> (M, Option<ConfigError>) {
    let mut bytes = Vec::new();
    let written = write_node(&M::full_name(), node, &mut bytes);
    match M::decode(bytes.as_slice()) {
        Ok(message) => (message, written.err()),
        Err(error) => {
            let undecoded = ConfigError::new(error.to_string()).at(node.place);
            (M::default(), Some(written.err().unwrap_or(undecoded)))
        }
    }
}

/// Writes the wire form of the message `full_name` that a node describes.
///
/// # Errors
/// As [`message_from_node`]; also when there is no message of that name.
pub fn encode_node(full_name: &str, node: &Node) -> Result<Vec<u8>, ConfigError> {
    let mut bytes = Vec::new();
    write_node(full_name, node, &mut bytes)?;
    Ok(bytes)
}

fn write_node(full_name: &str, node: &Node, bytes: &mut Vec<u8>) -> Result<(), ConfigError> {
    let schema = TypeSchema::message(full_name)
        .ok_or_else(|| ConfigError::new(unknown_type(full_name)).at(node.place))?;
    encode::message(schema, node, bytes)
}

/// What is said of a type that Envoy's API does not have.
pub fn unknown_type(name: &str) -> String {
    let old =
        ["v2", "v2alpha", "v2alpha1"].iter().any(|version| name.split('.').any(|part| part == *version));
    if old {
        return format!("type \"{name}\" is of Envoy's API version 2, which Envoy takes no longer");
    }
    match nearest(name, TypeSchema::names()) {
        Some(near) => format!("unknown type \"{name}\"; did you mean \"{near}\"?"),
        None => format!("unknown type \"{name}\""),
    }
}

/// Whether a message of this full name is known to Envoy's API, be it supported here or not.
pub fn is_known_type(full_name: &str) -> bool {
    TypeSchema::message(full_name).is_some()
}
