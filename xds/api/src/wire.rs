//! Parts of an encoded message that are taken out before it is decoded.
//!
//! Decoded, a route is some kilobytes; a table of thousands is decoded one route at a time.

use std::ops::Range;

use prost::{Message, Name};
use sixfold_core::error::ConfigError;

use crate::schema::Kind;

/// Decodes a message.
///
/// # Errors
/// Bytes that are no such message.
pub fn decode<M: Message + Default + Name>(bytes: &[u8]) -> Result<M, ConfigError> {
    M::decode(bytes).map_err(|error| ConfigError::new(format!("is not a valid {}: {error}", M::full_name())))
}

/// An encoded message without certain parts, and these parts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Split<'a> {
    /// The message without the parts.
    pub rest: Vec<u8>,
    /// The encoded parts in order, by the message that holds them.
    pub parts: Vec<Vec<&'a [u8]>>,
}

/// Takes the messages at `path` out, field numbers from the outermost message to the parts: `[2, 3]` takes
/// `virtual_hosts.routes` out of a RouteConfiguration, one list for each virtual host.
///
/// # Errors
/// Bytes that are no protobuf message.
pub fn split<'a>(message: &'a [u8], path: &[u32]) -> Result<Split<'a>, ConfigError> {
    let mut parts = Vec::new();
    let rest = take_out(message, path, &mut parts);
    let rest = rest.ok_or_else(|| ConfigError::new("is not a valid protobuf message"))?;
    Ok(Split { rest, parts })
}

fn take_out<'a>(mut message: &'a [u8], path: &[u32], parts: &mut Vec<Vec<&'a [u8]>>) -> Option<Vec<u8>> {
    let (wanted, deeper) = path.split_first()?;
    let holder = parts.len();
    if deeper.is_empty() {
        parts.push(Vec::new());
    }
    let mut rest = Vec::new();
    while !message.is_empty() {
        let (key, after_key) = varint(message)?;
        // A field's number and its type; only length-delimited ones hold messages.
        if key >> 3 != u64::from(*wanted) || key & 7 != 2 {
            let end = message.len() - skip(key & 7, after_key)?.len();
            rest.extend_from_slice(&message[..end]);
            message = &message[end..];
            continue;
        }
        let (inner, after) = delimited(after_key)?;
        if deeper.is_empty() {
            parts.get_mut(holder)?.push(inner);
        } else {
            let inner = take_out(inner, deeper, parts)?;
            put_varint(key, &mut rest);
            put_varint(inner.len() as u64, &mut rest);
            rest.extend_from_slice(&inner);
        }
        message = after;
    }
    Some(rest)
}

/// The text in field `number` of an encoded message, without decoding the rest: the name of a resource, even of one
/// that can't be decoded behind it. `None` when there is no such field, or what comes before it is no message.
pub fn text(message: &[u8], number: u32) -> Option<&str> {
    let (_, value) = Fields::of(message).find(|(found, _)| *found == number)?;
    match value {
        Value::Bytes(text) => std::str::from_utf8(text).ok(),
        _ => None,
    }
}

/// Where the messages at `path` are in an encoded one, field numbers from the outermost message to theirs: `[2, 3]` is
/// `virtual_hosts.routes` of a RouteConfiguration. What can't be read ends the search.
pub fn messages(message: &[u8], path: &[u32]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    collect_messages(message, 0, path, &mut found);
    found
}

fn collect_messages(message: &[u8], start: usize, path: &[u32], found: &mut Vec<Range<usize>>) {
    let Some((wanted, deeper)) = path.split_first() else {
        found.push(start..start + message.len());
        return;
    };
    let mut rest = message;
    while let Some((key, after)) = varint(rest) {
        let Some((value, after)) = Value::read(key & 7, after) else { return };
        if let (true, Value::Bytes(inner)) = (key >> 3 == u64::from(*wanted), value) {
            let offset = message.len() - after.len() - inner.len();
            collect_messages(inner, start + offset, deeper, found);
        }
        rest = after;
    }
}

/// An encoded value, by its wire type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A varint.
    Varint(u64),
    /// Eight bytes.
    Fixed64(u64),
    /// Four bytes.
    Fixed32(u32),
    /// Length-delimited: a string, bytes, a message, or packed numbers.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// What a field of this kind holds when it is not written.
    pub(crate) fn default_of(kind: Kind) -> Value<'static> {
        match kind {
            Kind::String | Kind::Bytes | Kind::Message(_) => Value::Bytes(&[]),
            _ => Value::Varint(0),
        }
    }

    /// Its bytes; none for a number.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Value::Bytes(bytes) => bytes,
            _ => &[],
        }
    }

    /// The bits of a number; none for bytes.
    pub fn bits(self) -> u64 {
        match self {
            Value::Varint(value) | Value::Fixed64(value) => value,
            Value::Fixed32(value) => u64::from(value),
            Value::Bytes(_) => 0,
        }
    }

    /// The number whose sign stands in its last bit (`sint32`, `sint64`).
    pub fn zigzag(self) -> i64 {
        let bits = self.bits();
        (bits >> 1) as i64 ^ -((bits & 1) as i64)
    }

    /// The integer, boolean or enum of this kind.
    pub(crate) fn integer(self, kind: Kind) -> i128 {
        let (narrow, wide) = (self.bits() as u32, self.bits());
        match kind {
            Kind::Int32 | Kind::Sfixed32 | Kind::Enum(_) => i128::from(narrow as i32),
            Kind::Int64 | Kind::Sfixed64 => i128::from(wide as i64),
            Kind::Uint32 | Kind::Fixed32 => i128::from(narrow),
            Kind::Sint32 | Kind::Sint64 => i128::from(self.zigzag()),
            _ => i128::from(wide),
        }
    }

    /// The number of kind float or double.
    pub fn float(self) -> f64 {
        match self {
            Value::Fixed64(bits) => f64::from_bits(bits),
            Value::Fixed32(bits) => f64::from(f32::from_bits(bits)),
            _ => 0.0,
        }
    }

    /// The elements of a repeated field of this kind in one value: several where numbers are packed.
    pub(crate) fn items(self, kind: Kind) -> Vec<Value<'a>> {
        match kind {
            Kind::String | Kind::Bytes | Kind::Message(_) => vec![self],
            Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => self.numbers(1),
            Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => self.numbers(5),
            _ => self.numbers(0),
        }
    }

    /// The numbers of this wire type in one value: several where they are packed.
    pub fn numbers(self, wire_type: u64) -> Vec<Value<'a>> {
        let Value::Bytes(mut packed) = self else { return vec![self] };
        let mut items = Vec::new();
        while let Some((value, after)) = Value::read(wire_type, packed) {
            items.push(value);
            packed = after;
        }
        items
    }

    /// The value of a wire type, and what follows it.
    fn read(wire_type: u64, bytes: &'a [u8]) -> Option<(Value<'a>, &'a [u8])> {
        match wire_type {
            0 => varint(bytes).map(|(value, after)| (Value::Varint(value), after)),
            1 => bytes
                .split_first_chunk()
                .map(|(value, after)| (Value::Fixed64(u64::from_le_bytes(*value)), after)),
            2 => delimited(bytes).map(|(value, after)| (Value::Bytes(value), after)),
            5 => bytes
                .split_first_chunk()
                .map(|(value, after)| (Value::Fixed32(u32::from_le_bytes(*value)), after)),
            _ => None,
        }
    }
}

/// The numbers and values of an encoded message's fields, up to the first that can't be read.
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Those of a message.
    pub fn of(message: &'a [u8]) -> Fields<'a> {
        Fields(message)
    }

    /// What is left: after the last field nothing, unless there is what can't be read.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u32, Value<'a>);

    fn next(&mut self) -> Option<(u32, Value<'a>)> {
        let (key, after) = varint(self.0)?;
        let (value, after) = Value::read(key & 7, after)?;
        self.0 = after;
        Some((u32::try_from(key >> 3).ok()?, value))
    }
}

/// What is packed into every `Any` of a type in an encoded message, however deep. It is found without decoding the
/// message, by the bytes of the name: what merely looks like one comes too, and one whose value is written before its
/// type does not.
pub fn packed<'a>(message: &'a [u8], type_name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    memchr::memmem::find_iter(message, type_name).filter_map(move |at| {
        let (key, after_key) = varint(message.get(at + type_name.len()..)?)?;
        // Any.value
        let (value, _) = (key == (2 << 3 | 2)).then(|| delimited(after_key))??;
        Some(value)
    })
}

/// What follows a field's value.
fn skip(wire_type: u64, value: &[u8]) -> Option<&[u8]> {
    // No groups, which no message of Envoy has.
    Value::read(wire_type, value).map(|(_, after)| after)
}

fn delimited(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, after) = varint(value)?;
    after.split_at_checked(usize::try_from(len).ok()?)
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

/// Writes a length-delimited field whose content `write` appends: also after a fault of it, with what was right.
///
/// # Errors
/// Those of `write`.
pub fn put_delimited<E>(
    number: u32,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    put_varint(u64::from(number) << 3 | 2, out);
    // Nearly all messages are shorter than 128 bytes, so one byte is kept for the length.
    let length_at = out.len();
    out.push(0);
    let written = write(out);
    let length = out.len() - length_at - 1;
    match (u8::try_from(length), out.get_mut(length_at)) {
        (Ok(short), Some(byte)) if short < 0x80 => *byte = short,
        _ => {
            let mut prefix = Vec::with_capacity(10);
            put_varint(length as u64, &mut prefix);
            out.splice(length_at..=length_at, prefix);
        }
    }
    written
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pb::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};

    fn table() -> RouteConfiguration {
        let route = |name: &str| Route { name: name.into(), ..Route::default() };
        let host = |name: &str, routes: Vec<Route>| VirtualHost {
            name: name.into(),
            routes,
            include_request_attempt_count: true,
            ..VirtualHost::default()
        };
        let long = "x".repeat(300);
        RouteConfiguration {
            name: "t".into(),
            virtual_hosts: vec![
                host("a", vec![route("1"), route(&long)]),
                host("b", vec![]),
                host("c", vec![route("3")]),
            ],
            ..RouteConfiguration::default()
        }
    }

    #[test]
    fn parts_and_rest_make_the_message_again() {
        let whole = table();
        let bytes = whole.encode_to_vec();
        let Split { rest, parts } = split(&bytes, &[2, 3]).unwrap();
        let mut decoded = RouteConfiguration::decode(rest.as_slice()).unwrap();
        assert!(decoded.virtual_hosts.iter().all(|host| host.routes.is_empty()));
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [2, 0, 1]);
        for (host, routes) in decoded.virtual_hosts.iter_mut().zip(&parts) {
            host.routes = routes.iter().map(|route| Route::decode(*route).unwrap()).collect();
        }
        assert_eq!(decoded, whole);
    }

    #[test]
    fn parts_are_found_where_they_are() {
        let bytes = table().encode_to_vec();
        let named = |range: &Range<usize>| Route::decode(&bytes[range.clone()]).unwrap().name;
        let found = messages(&bytes, &[2, 3]);
        assert_eq!(
            found.iter().map(named).collect::<Vec<_>>(),
            ["1".to_owned(), "x".repeat(300), "3".to_owned()]
        );
        assert_eq!(messages(&bytes, &[]), std::slice::from_ref(&(0..bytes.len())));
        let mut broken = bytes[..found[0].end].to_vec();
        broken.push(0xff);
        assert!(messages(&broken, &[7]).is_empty());
    }

    #[test]
    fn a_name_is_read_before_what_is_broken() {
        let mut bytes = table().encode_to_vec();
        assert_eq!(text(&bytes, 1), Some("t"));
        bytes.push(0xff);
        assert_eq!(text(&bytes, 1), Some("t"));
        assert_eq!(text(&bytes, 99), None);
        for bad in [&[][..], &[0xff], &[0x0a, 0x05, b'x'], &[0x0a, 0x01, 0xff]] {
            assert_eq!(text(bad, 1), None);
        }
    }

    #[test]
    fn bytes_that_are_cut_or_no_message_are_refused() {
        let bytes = table().encode_to_vec();
        let refused = (1..bytes.len()).filter(|cut| split(&bytes[..*cut], &[2, 3]).is_err()).count();
        // Only between fields a cut leaves a message.
        assert!(refused > bytes.len() - 8, "{refused} of {}", bytes.len());
        for bad in [&[0xff; 12][..], &[0x0b], &[0x12, 0x05, 0x1a], &[0x12]] {
            assert_eq!(split(bad, &[2, 3]).unwrap_err().to_string(), "is not a valid protobuf message");
        }
    }
}
