//! JSON to encoded messages (protobuf.dev/programming-guides/json), with what path and query bind woven in
//! (grpc_transcoding/request_weaver.h). Values come in the order of the JSON, what is bound behind them.

use super::Fault;
use super::print::has_own_form;
use super::well_known;
use crate::shared::base64;
use crate::shared::json::Json;
use prost::encoding::{self, WireType};
use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use sixfold_xds_api::wire::put_delimited;
use std::collections::HashSet;
use std::fmt;

/// What is said of an object where a value belongs.
const OBJECT: &str = "invalid value Starting an object on a scalar field for type";

/// Values of fields that path and query have bound.
#[derive(Debug, Default, Clone)]
pub(super) struct Weave {
    values: Vec<(FieldDescriptor, String)>,
    messages: Vec<(FieldDescriptor, Weave)>,
}

impl Weave {
    /// Binds the field at the end of a path, which is not empty.
    pub(super) fn bind(&mut self, path: &[FieldDescriptor], value: String) {
        let Some((first, rest)) = path.split_first() else { return };
        if rest.is_empty() {
            self.values.push((first.clone(), value));
            return;
        }
        let at = self.messages.iter().position(|(field, _)| field == first).unwrap_or_else(|| {
            self.messages.push((first.clone(), Weave::default()));
            self.messages.len() - 1
        });
        if let Some((_, weave)) = self.messages.get_mut(at) {
            weave.bind(rest, value);
        }
    }

    fn below(&mut self, name: &str) -> Option<&mut Weave> {
        self.messages.iter_mut().find(|(field, _)| field.name() == name).map(|(_, weave)| weave)
    }

    fn is_empty(&self) -> bool {
        self.values.is_empty() && self.messages.iter().all(|(_, weave)| weave.is_empty())
    }
}

/// Where a value is, as errors tell it.
#[derive(Clone, Copy, Default)]
pub(super) struct At<'a> {
    parent: Option<&'a At<'a>>,
    field: Option<&'a FieldDescriptor>,
    index: Option<usize>,
}

impl<'a> At<'a> {
    pub(super) fn below(&'a self, field: &'a FieldDescriptor, index: Option<usize>) -> At<'a> {
        At { parent: Some(self), field: Some(field), index }
    }

    /// The name of the field.
    pub(super) fn name(&self) -> &'a str {
        self.field.map_or("", FieldDescriptor::name)
    }

    /// The name of the message that has the field.
    pub(super) fn within(&self) -> &'a str {
        self.field.map_or("", |field| field.parent_message().full_name())
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent.filter(|parent| parent.field.is_some()) {
            write!(f, "{parent}.")?;
        }
        f.write_str(self.name())?;
        self.index.map_or(Ok(()), |index| write!(f, "[{index}]"))
    }
}

/// How JSON is read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Encoder {
    /// Names of enums in any case, with `-` for `_`.
    pub(super) any_case: bool,
    /// What is bound and stands in the body too must be equal.
    pub(super) rejects_collisions: bool,
}

impl Encoder {
    /// A whole message from its JSON.
    pub(super) fn message(
        self,
        message: &MessageDescriptor,
        json: &Json,
        weave: &mut Weave,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        if has_own_form(message) {
            return self.own_form(message, json, weave, out, At::default());
        }
        match json {
            Json::Object(members) => self.members(message, members, weave, out, At::default()),
            _ => Err(Fault::invalid(": Root element must be a message.")),
        }
    }

    /// The members of an object as fields of a message.
    pub(super) fn members(
        self,
        message: &MessageDescriptor,
        members: &[(String, Json)],
        weave: &mut Weave,
        out: &mut Vec<u8>,
        at: At<'_>,
    ) -> Result<(), Fault> {
        for (key, value) in members {
            // What is not known is ignored.
            let Some(field) = field_of(message, key) else { continue };
            if matches!(value, Json::Bool(_) | Json::Number(_) | Json::String(_)) {
                self.meet(key, value, weave, out, at)?;
            }
            let mut none = Weave::default();
            let below = weave.below(key).unwrap_or(&mut none);
            self.field(&field, value, below, out, at)?;
        }
        self.rest(weave, out, at)
    }

    /// The body has a value for a field that is bound: that of the body counts.
    fn meet(
        self,
        name: &str,
        value: &Json,
        weave: &mut Weave,
        out: &mut Vec<u8>,
        at: At<'_>,
    ) -> Result<(), Fault> {
        // One pass: a query may bind a field thousands of times.
        let met = weave.values.extract_if(.., |(field, _)| field.name() == name);
        for (field, bound) in met {
            if field.is_list() {
                self.single(&field, &Json::String(bound), &mut Weave::default(), out, at, None)?;
            } else if self.rejects_collisions && !agree(&field, &bound, value) {
                return Err(Fault::invalid(format!(
                    "The binding value \"{bound}\" of the field {name} is conflicting with the value {value} in the body."
                )));
            }
        }
        Ok(())
    }

    /// What is bound and has not been in the body.
    fn rest(self, weave: &mut Weave, out: &mut Vec<u8>, at: At<'_>) -> Result<(), Fault> {
        for (field, bound) in std::mem::take(&mut weave.values) {
            self.single(&field, &Json::String(bound), &mut Weave::default(), out, at, None)?;
        }
        for (field, mut below) in std::mem::take(&mut weave.messages) {
            if !below.is_empty() {
                let at = at.below(&field, None);
                put_delimited(field.number(), out, |out| match field.kind() {
                    Kind::Message(any) if any.full_name() == "google.protobuf.Any" => {
                        self.own_form(&any, &Json::Null, &mut below, out, at)
                    }
                    _ => self.rest(&mut below, out, at),
                })?;
            }
        }
        Ok(())
    }

    /// A message whose JSON form is not that of its fields. What is bound of an `Any` stands among its members.
    fn own_form(
        self,
        message: &MessageDescriptor,
        value: &Json,
        weave: &mut Weave,
        out: &mut Vec<u8>,
        at: At<'_>,
    ) -> Result<(), Fault> {
        if message.name() != "Any" || weave.is_empty() {
            well_known::encode(self, message, value, out, at)?;
            return self.rest(weave, out, at);
        }
        let mut members = if let Json::Object(members) = value { members.clone() } else { Vec::new() };
        let bound = std::mem::take(&mut weave.values).into_iter();
        members.extend(bound.map(|(field, bound)| (field.name().to_owned(), Json::String(bound))));
        well_known::encode(self, message, &Json::Object(members), out, at)
    }

    /// A field with all its elements.
    pub(super) fn field(
        self,
        field: &FieldDescriptor,
        value: &Json,
        weave: &mut Weave,
        out: &mut Vec<u8>,
        at: At<'_>,
    ) -> Result<(), Fault> {
        let kind = field.kind();
        match value {
            Json::Null if !takes_null(&kind) => Ok(()),
            Json::Object(members) if field.is_map() => self.map(field, &kind, members, out, at),
            Json::Array(_) if field.is_map() => Err(Fault::invalid(format!(
                "{at}: invalid value Cannot bind a list to map for field '{}'. for type Map",
                field.name()
            ))),
            Json::Array(items) if field.is_list() && !(is_json(&kind) && items.is_empty()) => {
                self.items(field, &kind, items, out, at, &mut 0)
            }
            Json::Array(_) if !is_json(&kind) => {
                Err(Fault::invalid(format!("{at}: Proto field is not repeating, cannot start list.")))
            }
            value => self.single(field, value, weave, out, at, field.is_list().then_some(0)),
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn items(
        self,
        field: &FieldDescriptor,
        kind: &Kind,
        items: &[Json],
        out: &mut Vec<u8>,
        at: At<'_>,
        index: &mut usize,
    ) -> Result<(), Fault> {
        for item in items {
            match item {
                Json::Null if !takes_null(kind) => continue,
                // A list within the list stands for its elements.
                Json::Array(nested) if !is_json(kind) => {
                    self.items(field, kind, nested, out, at, index)?;
                    continue;
                }
                item => self.single(field, item, &mut Weave::default(), out, at, Some(*index))?,
            }
            *index += 1;
        }
        Ok(())
    }

    pub(super) fn map(
        self,
        field: &FieldDescriptor,
        kind: &Kind,
        members: &[(String, Json)],
        out: &mut Vec<u8>,
        at: At<'_>,
    ) -> Result<(), Fault> {
        let Kind::Message(entry) = kind else { return Ok(()) };
        let (key_field, value_field) = (entry.map_entry_key_field(), entry.map_entry_value_field());
        let mut keys = HashSet::with_capacity(members.len());
        for (index, (key, value)) in members.iter().enumerate() {
            if !keys.insert(key) {
                let at = at.below(field, index.checked_sub(1));
                return Err(Fault::invalid(format!("{at}: Repeated map key: '{key}' is already set.")));
            }
            let at = at.below(field, Some(index));
            let key = Json::String(key.clone());
            put_delimited(field.number(), out, |out| {
                self.single(&key_field, &key, &mut Weave::default(), out, at, None)?;
                self.field(&value_field, value, &mut Weave::default(), out, at)
            })?;
        }
        Ok(())
    }

    /// One value with its key.
    pub(super) fn single(
        self,
        field: &FieldDescriptor,
        value: &Json,
        weave: &mut Weave,
        out: &mut Vec<u8>,
        parent: At<'_>,
        index: Option<usize>,
    ) -> Result<(), Fault> {
        let at = parent.below(field, index);
        match field.kind() {
            Kind::Message(message) if has_own_form(&message) => {
                put_delimited(field.number(), out, |out| self.own_form(&message, value, weave, out, at))
            }
            Kind::Message(message) => match value {
                Json::Object(members) if !field.is_map() => {
                    put_delimited(field.number(), out, |out| self.members(&message, members, weave, out, at))
                }
                value => Err(invalid(at, value, &format!("type.googleapis.com/{}", message.full_name()))),
            },
            _ if matches!(value, Json::Object(_)) => {
                Err(Fault::invalid(format!("{parent}: {OBJECT} {}", field.name())))
            }
            Kind::Enum(of) => match self.enumerated(&of, value) {
                Some(number) => {
                    encoding::int32::encode(field.number(), &number, out);
                    Ok(())
                }
                None => Err(invalid(at, value, &format!("type.googleapis.com/{}", of.full_name()))),
            },
            kind => match scalar(&kind, field.number(), value, out) {
                Some(()) => Ok(()),
                None => Err(invalid(at, value, type_name(&kind))),
            },
        }
    }

    fn enumerated(self, of: &EnumDescriptor, value: &Json) -> Option<i32> {
        let Json::String(name) = value else {
            return if *value == Json::Null { Some(0) } else { i32::try_from(integer(value)?).ok() };
        };
        if let Some(known) = of.get_value_by_name(name) {
            return Some(known.number());
        }
        let upper = || name.to_ascii_uppercase().replace('-', "_");
        let known = self.any_case.then(upper).and_then(|upper| of.get_value_by_name(&upper));
        // A number that is a text is to be one of the enum's.
        known
            .map(|known| known.number())
            .or_else(|| of.get_value(name.parse().ok()?).map(|known| known.number()))
    }
}

/// The field that is called so in JSON or in the definition.
pub(super) fn field_of(message: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    message.get_field_by_json_name(name).or_else(|| message.get_field_by_name(name))
}

/// `AT: invalid value SHOWN for type TYPE`.
pub(super) fn invalid(at: At<'_>, value: &Json, kind: &str) -> Fault {
    let shown = match value {
        Json::String(text) => format!("\"{text}\""),
        other => other.to_string(),
    };
    Fault::invalid(format!("{at}: invalid value {shown} for type {kind}"))
}

/// Whether null is a value of this kind instead of its absence.
fn takes_null(kind: &Kind) -> bool {
    match kind {
        Kind::Message(message) => message.full_name() == "google.protobuf.Value",
        Kind::Enum(of) => of.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}

/// Whether a list is one value of this kind.
fn is_json(kind: &Kind) -> bool {
    let Kind::Message(message) = kind else { return false };
    matches!(message.full_name(), "google.protobuf.Value" | "google.protobuf.ListValue")
}

/// Whether a text that is bound and a value of the body are one value of the field.
fn agree(field: &FieldDescriptor, bound: &str, value: &Json) -> bool {
    if let Json::String(text) = value {
        return text == bound;
    }
    let kind = field.kind();
    let (mut one, mut other) = (Vec::new(), Vec::new());
    let bound = scalar(&kind, 1, &Json::String(bound.to_owned()), &mut one);
    bound.is_some() && scalar(&kind, 1, value, &mut other).is_some() && one == other
}

/// Writes a value that is no message and no enum; `None` if it is none of the kind.
pub(super) fn scalar(kind: &Kind, number: u32, value: &Json, out: &mut Vec<u8>) -> Option<()> {
    let whole = || integer(value);
    match kind {
        Kind::Int32 => encoding::int32::encode(number, &whole()?.try_into().ok()?, out),
        Kind::Sint32 => encoding::sint32::encode(number, &whole()?.try_into().ok()?, out),
        Kind::Sfixed32 => encoding::sfixed32::encode(number, &whole()?.try_into().ok()?, out),
        Kind::Int64 => encoding::int64::encode(number, &whole()?.try_into().ok()?, out),
        Kind::Sint64 => encoding::sint64::encode(number, &whole()?.try_into().ok()?, out),
        Kind::Sfixed64 => encoding::sfixed64::encode(number, &whole()?.try_into().ok()?, out),
        Kind::Uint32 => encoding::uint32::encode(number, &whole()?.try_into().ok()?, out),
        Kind::Fixed32 => encoding::fixed32::encode(number, &whole()?.try_into().ok()?, out),
        Kind::Uint64 => encoding::uint64::encode(number, &whole()?.try_into().ok()?, out),
        Kind::Fixed64 => encoding::fixed64::encode(number, &whole()?.try_into().ok()?, out),
        Kind::Double => encoding::double::encode(number, &float(value)?, out),
        Kind::Float => {
            let wide = float(value)?;
            let narrow = wide as f32;
            (wide.is_infinite() || !narrow.is_infinite()).then_some(())?;
            encoding::float::encode(number, &narrow, out);
        }
        Kind::Bool => encoding::bool::encode(number, &boolean(value)?, out),
        Kind::String => text(number, value.as_str()?.as_bytes(), out),
        Kind::Bytes => text(number, &bytes_of(value.as_str()?)?, out),
        Kind::Message(_) | Kind::Enum(_) => return None,
    }
    Some(())
}

/// What base64 stands for: of one of its two alphabets, with padding that is whole or not there, and spaces anywhere.
fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let mut plain: String = text.chars().filter(|letter| !matches!(letter, ' ' | '\t'..='\r')).collect();
    if plain.contains(['-', '_']) {
        (!plain.contains(['+', '/'])).then_some(())?;
        plain = plain.replace('-', "+").replace('_', "/");
    }
    (!plain.ends_with('=') || plain.len().is_multiple_of(4)).then_some(())?;
    base64::decode(plain)
}

/// Writes a string or bytes.
pub(super) fn text(number: u32, text: &[u8], out: &mut Vec<u8>) {
    encoding::encode_key(number, WireType::LengthDelimited, out);
    encoding::encode_varint(text.len() as u64, out);
    out.extend_from_slice(text);
}

fn integer(value: &Json) -> Option<i128> {
    match value {
        Json::String(text) => text.parse().ok(),
        Json::Number(number) => {
            number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from)).or_else(|| {
                let float = number.as_f64()?;
                (float.fract() == 0.0 && float.abs() < 1e19).then_some(float as i128)
            })
        }
        _ => None,
    }
}

fn float(value: &Json) -> Option<f64> {
    match value {
        Json::Number(number) => number.as_f64(),
        Json::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            text => text.parse().ok().filter(|float: &f64| float.is_finite()),
        },
        _ => None,
    }
}

/// absl's `SimpleAtob`.
fn boolean(value: &Json) -> Option<bool> {
    let text = match value {
        Json::Bool(value) => return Some(*value),
        value => value.as_str()?,
    };
    let is_one_of = |words: [&str; 5]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
    match text {
        _ if is_one_of(["true", "t", "yes", "y", "1"]) => Some(true),
        _ if is_one_of(["false", "f", "no", "n", "0"]) => Some(false),
        _ => None,
    }
}

fn type_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Double => "TYPE_DOUBLE",
        Kind::Float => "TYPE_FLOAT",
        Kind::Int32 => "TYPE_INT32",
        Kind::Int64 => "TYPE_INT64",
        Kind::Uint32 => "TYPE_UINT32",
        Kind::Uint64 => "TYPE_UINT64",
        Kind::Sint32 => "TYPE_SINT32",
        Kind::Sint64 => "TYPE_SINT64",
        Kind::Fixed32 => "TYPE_FIXED32",
        Kind::Fixed64 => "TYPE_FIXED64",
        Kind::Sfixed32 => "TYPE_SFIXED32",
        Kind::Sfixed64 => "TYPE_SFIXED64",
        Kind::Bool => "TYPE_BOOL",
        Kind::String => "TYPE_STRING",
        Kind::Bytes => "TYPE_BYTES",
        Kind::Message(_) => "TYPE_MESSAGE",
        Kind::Enum(_) => "TYPE_ENUM",
    }
}
