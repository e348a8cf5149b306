//! Envoy's messages as they are defined, for whoever writes about them.

use crate::schema::{Cardinality, Kind, TypeSchema};

/// A field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// As in the definition.
    pub name: &'static str,
    /// The oneof that it belongs to, or empty.
    pub oneof: &'static str,
    /// The full name of the message that it holds, one or several; `None` for anything else, maps too.
    pub message: Option<&'static str>,
}

/// Full names of all messages and enums there are.
pub fn names() -> impl Iterator<Item = &'static str> {
    TypeSchema::names()
}

/// The fields of the message of this full name, in the order of its definition; `None` when there is none.
pub fn fields(message: &str) -> Option<Vec<Field>> {
    let field = |field: crate::schema::FieldSchema| Field {
        name: field.name,
        oneof: field.oneof,
        message: match field.kind {
            Kind::Message(of) if field.cardinality != Cardinality::Map => Some(of.name()),
            _ => None,
        },
    };
    Some(TypeSchema::message(message)?.fields().map(field).collect())
}
