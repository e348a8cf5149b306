//! Encoded messages to JSON, as Envoy's administration shows them: fields in the order of their numbers, by the names
//! of their definition, without what is a default, and without secrets.

mod mask;
mod pretty;
#[cfg(test)]
mod tests;
mod well_known;

pub use mask::{Mask, held_type};
pub use pretty::Pretty;
pub use well_known::{duration, timestamp};

use std::borrow::Cow;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::schema::{Cardinality, FieldSchema, Kind, TypeSchema};
use crate::wire::{Fields, Value};

/// What is shown in a secret's place.
const REDACTED: &str = "[redacted]";
/// How deep messages may be in each other: as deep as protobuf reads them.
const MAX_DEPTH: usize = 100;

/// How a value is shown.
#[derive(Clone, Copy)]
struct View<'m> {
    /// Whether it is a secret, or in one (`udpa.annotations.sensitive`).
    hide: bool,
    mask: &'m Mask,
    depth: usize,
}

impl<'m> View<'m> {
    /// How a field of the message is shown.
    fn within(self, hide: bool, mask: &'m Mask) -> View<'m> {
        View { hide: self.hide || hide, mask, depth: self.depth + 1 }
    }

    /// The same of a message that stands in the place of this one.
    fn same(self, hide: bool) -> View<'m> {
        self.within(hide, self.mask)
    }

    fn shows(self, field: &str) -> bool {
        self.mask.of(field).is_some()
    }

    fn is_too_deep(self) -> bool {
        self.depth > MAX_DEPTH
    }
}

impl Pretty<'_> {
    /// The message `full_name` as a value, of it what `mask` shows. Whatever the definitions call sensitive is hidden, also
    /// within `Any` and `TypedStruct`: texts and bytes become `[redacted]`, other values are left out
    /// (`MessageUtil::redact`). Of an `Any` of a type that is not known only the type is shown. Bytes that are no message
    /// are shown up to there.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn message(&mut self, full_name: &str, encoded: &[u8], mask: &Mask) -> io::Result<()> {
        let view = View { hide: false, mask, depth: 0 };
        match TypeSchema::message(full_name) {
            Some(schema) => message(self, schema, encoded, view),
            None => self.empty(),
        }
    }

    /// The same with its type in `@type`, as an `Any` is shown.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn any(&mut self, type_url: &str, encoded: &[u8], mask: &Mask) -> io::Result<()> {
        well_known::show_any(self, type_url, encoded, View { hide: false, mask, depth: 0 })
    }

    /// `{}`
    fn empty(&mut self) -> io::Result<()> {
        self.open_object()?;
        self.close_object()
    }
}

/// A message as a value.
fn message(out: &mut Pretty<'_>, schema: TypeSchema, encoded: &[u8], view: View<'_>) -> io::Result<()> {
    if view.is_too_deep() {
        return out.empty();
    }
    if let Some(shown) = well_known::show(out, schema, encoded, view) {
        return shown;
    }
    out.open_object()?;
    fields(out, schema, encoded, view)?;
    out.close_object()
}

/// The fields of a message as entries.
fn fields(out: &mut Pretty<'_>, schema: TypeSchema, encoded: &[u8], view: View<'_>) -> io::Result<()> {
    let mut all: Vec<(u32, Value<'_>)> = Fields::of(encoded).collect();
    // Those of one number keep their order.
    all.sort_by_key(|(number, _)| *number);
    for values in all.chunk_by(|(one, _), (other, _)| one == other) {
        let field = values.first().and_then(|(number, _)| schema.field_by_number(*number));
        // What the definitions do not have has no name.
        let Some(field) = field else { continue };
        let Some(mask) = view.mask.of(field.name) else { continue };
        let values: Vec<Value<'_>> = values.iter().map(|(_, value)| *value).collect();
        let view = view.within(field.sensitive, mask);
        match field.cardinality {
            Cardinality::Single => single(out, field, &values, view)?,
            Cardinality::Repeated => repeated(out, field, &values, view)?,
            Cardinality::Map => map(out, field, &values, view)?,
        }
    }
    Ok(())
}

/// A field of one value: of several scalars the last counts, of several messages what they are together.
fn single(out: &mut Pretty<'_>, field: FieldSchema, values: &[Value<'_>], view: View<'_>) -> io::Result<()> {
    let Some(last) = values.last() else { return Ok(()) };
    if let Kind::Message(schema) = field.kind {
        let encoded = match values {
            [one] => Cow::Borrowed(one.bytes()),
            several => Cow::Owned(several.iter().flat_map(|value| value.bytes()).copied().collect()),
        };
        out.key(field.name)?;
        return message(out, schema, &encoded, view);
    }
    let explicit = field.optional || !field.oneof.is_empty();
    let hidden = view.hide && !matches!(field.kind, Kind::String | Kind::Bytes);
    if hidden || (!explicit && is_default(field.kind, *last)) {
        return Ok(());
    }
    out.key(field.name)?;
    scalar(out, field.kind, *last, view.hide)
}

fn is_default(kind: Kind, value: Value<'_>) -> bool {
    match kind {
        Kind::String | Kind::Bytes | Kind::Message(_) => value.bytes().is_empty(),
        // Of a float, zero is the one of all bits zero.
        Kind::Double | Kind::Float => value.float().to_bits() == 0,
        kind => value.integer(kind) == 0,
    }
}

fn repeated(
    out: &mut Pretty<'_>,
    field: FieldSchema,
    values: &[Value<'_>],
    view: View<'_>,
) -> io::Result<()> {
    let hidden = view.hide && !matches!(field.kind, Kind::String | Kind::Bytes | Kind::Message(_));
    let mut items = values.iter().flat_map(|value| value.items(field.kind)).peekable();
    if hidden || items.peek().is_none() {
        return Ok(());
    }
    out.key(field.name)?;
    out.open_array()?;
    for item in items {
        out.item()?;
        value(out, field.kind, item, view)?;
    }
    out.close_array()
}

fn map(out: &mut Pretty<'_>, field: FieldSchema, values: &[Value<'_>], view: View<'_>) -> io::Result<()> {
    let Kind::Message(entry) = field.kind else { return Ok(()) };
    let (Some(key), Some(held)) = (entry.field_by_number(1), entry.field_by_number(2)) else { return Ok(()) };
    let hidden = view.hide && !matches!(held.kind, Kind::String | Kind::Bytes | Kind::Message(_));
    if hidden {
        return Ok(());
    }
    out.key(field.name)?;
    out.open_object()?;
    for (at, encoded) in values.iter().enumerate() {
        let name = part_of(*encoded, key);
        // Of two of one key the last counts.
        if values.get(at + 1..).is_some_and(|later| later.iter().any(|other| part_of(*other, key) == name)) {
            continue;
        }
        let name = match key.kind {
            Kind::String => String::from_utf8_lossy(name.bytes()).into_owned(),
            Kind::Bool => (name.integer(key.kind) != 0).to_string(),
            kind => name.integer(kind).to_string(),
        };
        out.key(&name)?;
        value(out, held.kind, part_of(*encoded, held), view)?;
    }
    out.close_object()
}

/// Key or value of a map's entry.
fn part_of<'a>(entry: Value<'a>, field: FieldSchema) -> Value<'a> {
    let found = Fields::of(entry.bytes()).filter(|(number, _)| *number == field.number).last();
    found.map_or_else(|| Value::default_of(field.kind), |(_, value)| value)
}

fn value(out: &mut Pretty<'_>, kind: Kind, value: Value<'_>, view: View<'_>) -> io::Result<()> {
    match kind {
        Kind::Message(schema) => message(out, schema, value.bytes(), view),
        kind => scalar(out, kind, value, view.hide),
    }
}

/// A value that is no message.
fn scalar(out: &mut Pretty<'_>, kind: Kind, value: Value<'_>, hide: bool) -> io::Result<()> {
    match kind {
        Kind::String if hide => out.text(REDACTED),
        Kind::String => out.text(&String::from_utf8_lossy(value.bytes())),
        Kind::Bytes if hide => out.text(&STANDARD.encode(REDACTED)),
        Kind::Bytes => out.text(&STANDARD.encode(value.bytes())),
        Kind::Bool => out.bare(value.integer(kind) != 0),
        Kind::Double => out.double(value.float()),
        Kind::Float => out.float(value.float() as f32),
        // A number of JSON holds 53 bits.
        Kind::Int64 | Kind::Uint64 | Kind::Fixed64 | Kind::Sfixed64 | Kind::Sint64 => {
            out.text(&value.integer(kind).to_string())
        }
        Kind::Enum(schema) => {
            let number = value.integer(kind);
            match schema.values().find(|(_, known)| i128::from(*known) == number) {
                Some(_) if schema.name() == "google.protobuf.NullValue" => out.bare("null"),
                Some((name, _)) => out.text(name),
                None => out.bare(number),
            }
        }
        kind => out.bare(value.integer(kind)),
    }
}
