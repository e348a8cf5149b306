//! Nodes to protobuf's wire form.

use sixfold_core::document::{Entry, Node, Object, Value};
use sixfold_core::error::{ConfigContext, ConfigError, Place, collect};

use super::{scalar, well_known};
use crate::schema::{Cardinality, FieldSchema, Kind, TypeSchema};
use crate::wire::put_delimited;

/// The error of a value of the wrong kind.
pub(super) fn mismatch(expected: &str, node: &Node) -> ConfigError {
    ConfigError::new(format!("must be {expected}, not {}", node.kind())).at(node.place)
}

/// Writes the fields of a message, without its length. What has a fault is left out, and the rest is written.
pub(super) fn message(schema: TypeSchema, node: &Node, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    if let Some(written) = well_known::message(schema, node, out) {
        return written;
    }
    let Some(object) = node.as_object() else { return Err(mismatch("an object", node)) };
    fields(schema, object, None, out)
}

/// Writes the entries of an object as the fields of a message, leaving out the key `skip`.
pub(super) fn fields(
    schema: TypeSchema,
    object: &Object,
    skip: Option<&str>,
    out: &mut Vec<u8>,
) -> Result<(), ConfigError> {
    // Which fields were written, to find two of one oneof. A field that is given under both of its names is written
    // twice, and the wire form has the rule for it: the last value counts, messages are merged, lists joined.
    let mut written: Vec<(FieldSchema, &str)> = Vec::with_capacity(object.len());
    let given = object.entries().iter().filter(|entry| skip != Some(entry.key.as_str()));
    collect(given.map(|entry| {
        let Entry { key, value, .. } = entry;
        let field = schema.field(key).ok_or_else(|| unknown_field(schema, entry))?;
        // A null is as if the field were not given, except where null is a value.
        if value.is_null() && !well_known::accepts_null(field) {
            return Ok(());
        }
        check_alone(&written, field, key, entry.key_place)?;
        written.push((field, key));
        field_value(field, value, out).in_key(key)
    }))
    .map(drop)
}

fn unknown_field(schema: TypeSchema, entry: &Entry) -> ConfigError {
    let names: Vec<&str> = schema.fields().map(|field| field.name).collect();
    let mut error = ConfigError::unknown_key(&entry.key, names);
    error.reason = error.reason.replacen("unknown field", &format!("unknown field of {}", schema.name()), 1);
    error.in_key(&entry.key).at(entry.key_place)
}

/// Refuses a field whose oneof another of the fields that were written is of, each with the name that it was given by.
pub(crate) fn check_alone(
    written: &[(FieldSchema, &str)],
    field: FieldSchema,
    given: &str,
    place: Place,
) -> Result<(), ConfigError> {
    for (other, key) in written {
        if !field.oneof.is_empty() && other.oneof == field.oneof && other.number != field.number {
            let reason = format!("\"{key}\" is given too, and only one of them may be");
            return Err(ConfigError::field(given, reason).at(place));
        }
    }
    Ok(())
}

/// Writes a field with its key, all elements of a repeated one.
fn field_value(field: FieldSchema, node: &Node, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    match field.cardinality {
        Cardinality::Single => single(field, node, out),
        Cardinality::Map => map(field, node, out),
        Cardinality::Repeated => repeated(field, node, out),
    }
}

/// Writes all elements. As for protobuf's C++ parser, which Envoy leaves in its lenient mode, one value that is no
/// array is a list of one, a list within the list stands for its elements, and a null for the type's default.
fn repeated(field: FieldSchema, node: &Node, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    let Some(items) = node.as_array() else { return single(field, node, out) };
    let written = items.iter().enumerate().map(|(index, item)| {
        let nested = item.as_array().is_some() && !well_known::is_list(field);
        // Not packed: readers must accept both, and so one way serves all types.
        let written = match item.is_null() && !well_known::accepts_null(field) {
            true => default(field, out),
            false if nested => repeated(field, item, out),
            false => single(field, item, out),
        };
        written.in_index(index)
    });
    collect(written).map(drop)
}

/// Writes the default of the field's type, with its key.
fn default(field: FieldSchema, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    match field.kind {
        Kind::Message(_) | Kind::String | Kind::Bytes => put_delimited(field.number, out, |_| Ok(())),
        kind => {
            let zero = match kind {
                Kind::Bool => Value::Bool(false),
                _ => Value::Number(0.into()),
            };
            scalar::write(kind, field.number, &Node { place: Place::default(), value: zero }, out)
        }
    }
}

fn map(field: FieldSchema, node: &Node, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    let Some(object) = node.as_object() else { return Err(mismatch("an object", node)) };
    let Kind::Message(entry_schema) = field.kind else { return Err(mismatch("a map", node)) };
    let (Some(key_field), Some(value_field)) =
        (entry_schema.field_by_number(1), entry_schema.field_by_number(2))
    else {
        return Err(mismatch("a map", node));
    };
    let written = object.entries().iter().map(|entry| {
        if entry.value.is_null() && !well_known::accepts_null(value_field) {
            return Err(mismatch("a value", &entry.value).in_key(&entry.key));
        }
        let key = map_key(key_field, entry).in_key(&entry.key)?;
        let written = put_delimited(field.number, out, |out| {
            single(key_field, &key, out)?;
            single(value_field, &entry.value, out)
        });
        written.in_key(&entry.key)
    });
    collect(written).map(drop)
}

/// Keys are strings in JSON whatever their type.
fn map_key(field: FieldSchema, entry: &Entry) -> Result<Node, ConfigError> {
    let value = match (field.kind, entry.key.as_str()) {
        (Kind::Bool, "true") => Value::Bool(true),
        (Kind::Bool, "false") => Value::Bool(false),
        (Kind::Bool, _) => return Err(ConfigError::new("the key must be true or false").at(entry.key_place)),
        _ => Value::String(entry.key.clone()),
    };
    Ok(Node { place: entry.key_place, value })
}

/// Writes one value with its key.
fn single(field: FieldSchema, node: &Node, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    match field.kind {
        Kind::Message(schema) => put_delimited(field.number, out, |out| message(schema, node, out)),
        kind => scalar::write(kind, field.number, node, out),
    }
}
