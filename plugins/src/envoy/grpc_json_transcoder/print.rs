//! Encoded messages to JSON (protobuf.dev/programming-guides/json), as protobuf's C++ library prints them.

use super::Fault;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use sixfold_xds_api::json::print::{Pretty, duration, timestamp};
use sixfold_xds_api::wire::{Fields, Value};

/// How deep messages may be in each other, and arrays and objects of a body.
pub(super) const MAX_DEPTH: usize = 100;

/// `PrintOptions`, without what is about streams.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PrintOptions {
    /// Lines and spaces.
    pub(super) whitespace: bool,
    /// Fields that have no presence are shown also where they are not there.
    pub(super) defaults: bool,
    /// Enums are numbers.
    pub(super) numbers: bool,
    /// Fields are called as in the definition.
    pub(super) names: bool,
}

/// A message as JSON.
pub(super) fn json(
    message: &MessageDescriptor,
    encoded: &[u8],
    options: PrintOptions,
) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::new();
    Printer::new(&mut out, options).message(message, encoded, 0)?;
    Ok(out)
}

/// A `google.rpc.Status` as JSON; what its details are is looked up in `pool`.
pub(super) fn status(
    status: &Status,
    pool: &DescriptorPool,
    options: PrintOptions,
) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::new();
    let mut printer = Printer::new(&mut out, options);
    printer.out.open_object()?;
    if status.code != 0 || options.defaults {
        printer.out.key("code")?;
        printer.out.bare(status.code)?;
    }
    if !status.message.is_empty() || options.defaults {
        printer.out.key("message")?;
        printer.out.text(&status.message)?;
    }
    if !status.details.is_empty() || options.defaults {
        printer.out.key("details")?;
        printer.out.open_array()?;
        for detail in &status.details {
            printer.out.item()?;
            printer.held(pool, &detail.type_url, &detail.value, 0)?;
        }
        printer.out.close_array()?;
    }
    printer.out.close_object()?;
    Ok(out)
}

/// google/rpc/status.proto
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Status {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
    #[prost(message, repeated, tag = "3")]
    pub(super) details: Vec<prost_types::Any>,
}

/// Whether a message's JSON form is not that of its fields.
pub(super) fn has_own_form(message: &MessageDescriptor) -> bool {
    message.full_name().strip_prefix("google.protobuf.").is_some_and(|name| {
        matches!(
            name,
            "Any"
                | "Timestamp"
                | "Duration"
                | "FieldMask"
                | "Struct"
                | "ListValue"
                | "Value"
                | "BoolValue"
                | "Int32Value"
                | "Int64Value"
                | "UInt32Value"
                | "UInt64Value"
                | "FloatValue"
                | "DoubleValue"
                | "StringValue"
                | "BytesValue"
        )
    })
}

struct Printer<'p> {
    out: Pretty<'p>,
    options: PrintOptions,
}

impl<'p> Printer<'p> {
    fn new(out: &'p mut Vec<u8>, options: PrintOptions) -> Printer<'p> {
        let out = if options.whitespace { Pretty::new(out) } else { Pretty::compact(out) };
        Printer { out, options }
    }

    fn message(&mut self, message: &MessageDescriptor, encoded: &[u8], depth: usize) -> Result<(), Fault> {
        if has_own_form(message) {
            return self.own_form(message, encoded, depth);
        }
        self.out.open_object()?;
        self.fields(message, encoded, depth)?;
        Ok(self.out.close_object()?)
    }

    /// The fields of a message as entries, in the order of their numbers.
    fn fields(&mut self, message: &MessageDescriptor, encoded: &[u8], depth: usize) -> Result<(), Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::invalid("Message too deep"));
        }
        let mut all = values(encoded)?;
        // Those of one number keep their order.
        all.sort_by_key(|(number, _)| *number);
        if !self.options.defaults {
            for values in all.chunk_by(|(one, _), (other, _)| one == other) {
                let field = values.first().and_then(|(number, _)| message.get_field(*number));
                // What the definitions do not have has no name.
                let Some(field) = field else { continue };
                self.field(&field, values, depth)?;
            }
            return Ok(());
        }
        for field in message.fields() {
            let from = all.partition_point(|(number, _)| *number < field.number());
            let to = all.partition_point(|(number, _)| *number <= field.number());
            let values = all.get(from..to).unwrap_or_default();
            let shown = !values.is_empty() || !field.supports_presence();
            if shown {
                self.field(&field, values, depth)?;
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &FieldDescriptor,
        values: &[(u32, Value<'_>)],
        depth: usize,
    ) -> Result<(), Fault> {
        if field.is_group() {
            return Ok(());
        }
        self.out.key(if self.options.names { field.name() } else { field.json_name() })?;
        let kind = field.kind();
        match &kind {
            Kind::Message(entry) if field.is_map() => self.map(entry, values, depth),
            kind if field.is_list() => {
                self.out.open_array()?;
                for (_, value) in values {
                    for item in items(kind, *value) {
                        self.out.item()?;
                        self.value(kind, item, depth)?;
                    }
                }
                Ok(self.out.close_array()?)
            }
            kind => match values {
                [] => self.value(kind, default_of(kind), depth),
                [(_, value)] => self.value(kind, *value, depth),
                [(number, _), ..] => {
                    Err(Fault::invalid(format!("repeated entries for singular field number {number}")))
                }
            },
        }
    }

    fn map(
        &mut self,
        entry: &MessageDescriptor,
        entries: &[(u32, Value<'_>)],
        depth: usize,
    ) -> Result<(), Fault> {
        let (key, held) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
        self.out.open_object()?;
        for (_, encoded) in entries {
            let parts = values(encoded.bytes())?;
            let part = |wanted: u32, kind: &Kind| {
                let found = parts.iter().rev().find(|(number, _)| *number == wanted);
                found.map_or_else(|| default_of(kind), |(_, value)| *value)
            };
            let name = part(1, &key);
            self.out.key(&match key {
                Kind::String => String::from_utf8_lossy(name.bytes()).into_owned(),
                Kind::Bool => (name.bits() != 0).to_string(),
                _ => integer(&key, name).to_string(),
            })?;
            self.value(&held, part(2, &held), depth)?;
        }
        Ok(self.out.close_object()?)
    }

    fn value(&mut self, kind: &Kind, value: Value<'_>, depth: usize) -> Result<(), Fault> {
        match kind {
            Kind::Message(message) => self.message(message, value.bytes(), depth + 1)?,
            Kind::String => self.out.text(&String::from_utf8_lossy(value.bytes()))?,
            Kind::Bytes => self.out.text(&STANDARD.encode(value.bytes()))?,
            Kind::Bool => self.out.bare(value.bits() != 0)?,
            Kind::Double => self.out.double(value.float())?,
            Kind::Float => self.out.float(value.float() as f32)?,
            // A number of JSON holds 53 bits.
            Kind::Int64 | Kind::Uint64 | Kind::Fixed64 | Kind::Sfixed64 | Kind::Sint64 => {
                self.out.text(&integer(kind, value).to_string())?;
            }
            Kind::Enum(of) if of.full_name() == "google.protobuf.NullValue" => self.out.bare("null")?,
            Kind::Enum(of) => {
                let number = value.bits() as i32;
                match of.get_value(number).filter(|_| !self.options.numbers) {
                    Some(known) => self.out.text(known.name())?,
                    None => self.out.bare(number)?,
                }
            }
            kind => self.out.bare(integer(kind, value))?,
        }
        Ok(())
    }

    fn own_form(&mut self, message: &MessageDescriptor, encoded: &[u8], depth: usize) -> Result<(), Fault> {
        let parts = values(encoded)?;
        let number =
            |wanted| parts.iter().rev().find(|(number, _)| *number == wanted).map(|(_, value)| *value);
        let seconds = || number(1).map_or(0, |value| value.bits() as i64);
        let nanos = || number(2).map_or(0, |value| value.bits() as i32);
        match message.name() {
            "Any" => {
                let url = number(1).map_or(&[][..], Value::bytes);
                let held = number(2).map_or(&[][..], Value::bytes);
                self.held(message.parent_pool(), &String::from_utf8_lossy(url), held, depth)
            }
            "Timestamp" => Ok(self.out.text(&timestamp(seconds(), nanos()))?),
            "Duration" => Ok(self.out.text(&duration(seconds(), nanos()))?),
            "FieldMask" => {
                let paths = parts.iter().filter(|(number, _)| *number == 1);
                let paths: Vec<String> =
                    paths.map(|(_, path)| camel(&String::from_utf8_lossy(path.bytes()))).collect();
                Ok(self.out.text(&paths.join(","))?)
            }
            "Struct" => self.structure(&parts, depth),
            "ListValue" => self.list(&parts, depth),
            "Value" => self.any_value(&parts, depth),
            _ => {
                let Some(kind) = message.get_field(1).map(|field| field.kind()) else { return Ok(()) };
                self.value(&kind, number(1).unwrap_or_else(|| default_of(&kind)), depth)
            }
        }
    }

    /// What an `Any` holds: its type beside its fields, or beside `value` where it has a form of its own.
    fn held(&mut self, pool: &DescriptorPool, url: &str, held: &[u8], depth: usize) -> Result<(), Fault> {
        self.out.open_object()?;
        if !url.is_empty() {
            let message = held_message(pool, url)?;
            self.out.key("@type")?;
            self.out.text(url)?;
            if has_own_form(&message) {
                self.out.key("value")?;
                self.message(&message, held, depth + 1)?;
            } else {
                self.fields(&message, held, depth + 1)?;
            }
        }
        Ok(self.out.close_object()?)
    }

    fn structure(&mut self, members: &[(u32, Value<'_>)], depth: usize) -> Result<(), Fault> {
        self.out.open_object()?;
        for (_, member) in members.iter().filter(|(number, _)| *number == 1) {
            let (mut name, mut value) = (&[][..], &[][..]);
            for (number, part) in values(member.bytes())? {
                match number {
                    1 => name = part.bytes(),
                    2 => value = part.bytes(),
                    _ => {}
                }
            }
            self.out.key(&String::from_utf8_lossy(name))?;
            self.any_value(&values(value)?, depth + 1)?;
        }
        Ok(self.out.close_object()?)
    }

    fn list(&mut self, items: &[(u32, Value<'_>)], depth: usize) -> Result<(), Fault> {
        self.out.open_array()?;
        for (_, item) in items.iter().filter(|(number, _)| *number == 1) {
            self.out.item()?;
            self.any_value(&values(item.bytes())?, depth + 1)?;
        }
        Ok(self.out.close_array()?)
    }

    /// A `google.protobuf.Value`.
    fn any_value(&mut self, parts: &[(u32, Value<'_>)], depth: usize) -> Result<(), Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::invalid("Message too deep"));
        }
        match parts.last() {
            Some((2, value)) => Ok(self.out.double(value.float())?),
            Some((3, value)) => Ok(self.out.text(&String::from_utf8_lossy(value.bytes()))?),
            Some((4, value)) => Ok(self.out.bare(value.bits() != 0)?),
            Some((5, value)) => self.structure(&values(value.bytes())?, depth + 1),
            Some((6, value)) => self.list(&values(value.bytes())?, depth + 1),
            _ => Ok(self.out.bare("null")?),
        }
    }
}

/// The message that the type URL of an `Any` names.
pub(super) fn held_message(pool: &DescriptorPool, url: &str) -> Result<MessageDescriptor, Fault> {
    let name = url.rsplit('/').next().unwrap_or_default();
    let unknown = || Fault::not_found(format!("Invalid type URL, unknown type: {name}"));
    pool.get_message_by_name(name).ok_or_else(unknown)
}

/// Numbers and values of the fields of a message.
fn values(encoded: &[u8]) -> Result<Vec<(u32, Value<'_>)>, Fault> {
    let mut fields = Fields::of(encoded);
    let values = fields.by_ref().collect();
    match fields.rest().first() {
        None => Ok(values),
        Some(key) if matches!(key & 7, 6 | 7) => {
            Err(Fault::invalid(format!("unknown wire type: {}", key & 7)))
        }
        Some(_) => Err(Fault::invalid("the message is not valid protobuf")),
    }
}

/// What a field of this kind holds when it is not written.
fn default_of(kind: &Kind) -> Value<'static> {
    match kind {
        Kind::String | Kind::Bytes | Kind::Message(_) => Value::Bytes(&[]),
        _ => Value::Varint(0),
    }
}

/// The elements of a repeated field in one value: several where numbers are packed.
fn items<'v>(kind: &Kind, value: Value<'v>) -> Vec<Value<'v>> {
    match kind {
        Kind::String | Kind::Bytes | Kind::Message(_) => vec![value],
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => value.numbers(1),
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => value.numbers(5),
        _ => value.numbers(0),
    }
}

fn integer(kind: &Kind, value: Value<'_>) -> i128 {
    let bits = value.bits();
    match kind {
        Kind::Int32 | Kind::Sfixed32 => i128::from(bits as i32),
        Kind::Int64 | Kind::Sfixed64 => i128::from(bits as i64),
        Kind::Uint32 | Kind::Fixed32 => i128::from(bits as u32),
        Kind::Sint32 | Kind::Sint64 => i128::from(value.zigzag()),
        _ => i128::from(bits),
    }
}

/// `foo_bar.baz` as `fooBar.baz`.
fn camel(path: &str) -> String {
    let mut made = String::with_capacity(path.len());
    let mut upper = false;
    for letter in path.chars() {
        match letter {
            '_' => upper = true,
            letter if std::mem::take(&mut upper) => made.extend(letter.to_uppercase()),
            letter => made.push(letter),
        }
    }
    made
}
