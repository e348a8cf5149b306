//! What the JSON mapping must know of every Envoy message: fields, types and enum values.
//!
//! The build script writes all of it into one table of a few hundred kilobytes that is read where it lies in
//! the binary: nothing is loaded, nothing stays on the heap, and only pages that are touched are resident.
//!
//! Layout, all numbers little endian, `str` an offset and a length (u32 each) in the string pool:
//! counts of types, fields and values (u32); types sorted by name, `str` name, first (u32), count (u16), kind
//! (0 message, 1 map entry, 2 enum), 0; fields, `str` name, `str` JSON name, `str` oneof or empty, `str` encoded
//! `validate.rules` or empty, number (u32), type (u32), scalar type as in descriptor.proto, cardinality (0 single,
//! 1 repeated, 2 map), whether it is a secret (`udpa.annotations.sensitive`), flags (1: a member of its oneof must be
//! given, `validate.required`; 2: `optional`); enum values, `str` name, number (i32); the pool of strings and rules.

use sixfold_core::error::ConfigError;

static TABLE: &[u8] = BYTES;

const BYTES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schema.bin"));

const HEADER: usize = 12;
const TYPE_SIZE: usize = 16;
const FIELD_SIZE: usize = 44;
const VALUE_SIZE: usize = 12;

/// A message or enum of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TypeSchema {
    name: &'static str,
    index: usize,
    first: usize,
    count: usize,
    kind: u8,
}

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FieldSchema {
    pub(crate) name: &'static str,
    /// The oneof that the field belongs to, or empty.
    pub(crate) oneof: &'static str,
    pub(crate) number: u32,
    pub(crate) kind: Kind,
    pub(crate) cardinality: Cardinality,
    /// Whether `udpa.annotations.sensitive` marks it.
    pub(crate) sensitive: bool,
    /// Its `validate.rules`, encoded, or empty.
    pub(crate) rules: &'static [u8],
    /// Whether one of the fields of its oneof must be given.
    pub(crate) oneof_required: bool,
    /// Whether the definition calls it optional, so that its absence is no default.
    pub(crate) optional: bool,
}

/// How many values a field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cardinality {
    Single,
    Repeated,
    Map,
}

/// The type of a field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Double,
    Float,
    Int64,
    Uint64,
    Int32,
    Fixed64,
    Fixed32,
    Bool,
    String,
    Bytes,
    Uint32,
    Sfixed32,
    Sfixed64,
    Sint32,
    Sint64,
    Message(TypeSchema),
    Enum(TypeSchema),
}

fn u32_at(offset: usize) -> usize {
    let bytes = TABLE.get(offset..offset + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    bytes.map_or(0, |bytes| u32::from_le_bytes(bytes) as usize)
}

fn u8_at(offset: usize) -> u8 {
    TABLE.get(offset).copied().unwrap_or_default()
}

fn bytes_at(offset: usize) -> &'static [u8] {
    let begin = VALUES_END + u32_at(offset);
    TABLE.get(begin..begin + u32_at(offset + 4)).unwrap_or_default()
}

fn str_at(offset: usize) -> &'static str {
    std::str::from_utf8(bytes_at(offset)).unwrap_or_default()
}

/// One of the counts that the table begins with, read when this is compiled.
const fn count(place: usize) -> usize {
    u32::from_le_bytes([BYTES[place], BYTES[place + 1], BYTES[place + 2], BYTES[place + 3]]) as usize
}

const TYPE_COUNT: usize = count(0);
const TYPES_END: usize = HEADER + TYPE_COUNT * TYPE_SIZE;
const FIELDS_END: usize = TYPES_END + count(4) * FIELD_SIZE;
const VALUES_END: usize = FIELDS_END + count(8) * VALUE_SIZE;

fn type_at(index: usize) -> TypeSchema {
    let offset = HEADER + index * TYPE_SIZE;
    TypeSchema {
        name: str_at(offset),
        index,
        first: u32_at(offset + 8),
        count: u32_at(offset + 12) & 0xffff,
        kind: u8_at(offset + 14),
    }
}

impl TypeSchema {
    /// The message of this full name (`envoy.config.route.v3.Route`).
    pub(crate) fn message(full_name: &str) -> Option<TypeSchema> {
        // The deprecated name of the same message, which the shipped descriptors do not have.
        let full_name = match full_name {
            "udpa.type.v1.TypedStruct" => "xds.type.v3.TypedStruct",
            name => name,
        };
        let (mut low, mut high) = (0, TYPE_COUNT);
        while low < high {
            let middle = low + (high - low) / 2;
            // Bytes are in the order of the text, and need not be looked at as such to be compared.
            match bytes_at(HEADER + middle * TYPE_SIZE).cmp(full_name.as_bytes()) {
                std::cmp::Ordering::Equal => {
                    let found = type_at(middle);
                    return (found.kind != 2).then_some(found);
                }
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The error of a message that has no member of a oneof, one of which must be given: their names are what a user
    /// can write, that of the oneof is not.
    pub(crate) fn missing_member(self, oneof: &str) -> ConfigError {
        let mut members: Vec<_> = self.fields().filter(|field| field.oneof == oneof).collect();
        members.sort_by_key(|field| field.number);
        let names: Vec<_> = members.iter().map(|field| field.name).collect();
        match names[..] {
            [name] => ConfigError::field(name, "is missing"),
            _ => ConfigError::new(format!("one of {} is missing", names.join(", "))),
        }
    }

    /// The type at a place of the table.
    #[cfg(test)]
    pub(crate) fn at(index: usize) -> TypeSchema {
        type_at(index)
    }

    /// Full names of all messages and enums.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        (0..TYPE_COUNT).map(|index| type_at(index).name)
    }

    /// How many types the table has.
    pub(crate) fn count() -> usize {
        TYPE_COUNT
    }

    /// Its place among the types of the table.
    pub(crate) fn index(self) -> usize {
        self.index
    }

    /// Full name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The fields of a message in the order of its definition.
    pub(crate) fn fields(self) -> impl Iterator<Item = FieldSchema> {
        self.field_offsets().map(field_at)
    }

    /// The field that is called so in the definition or in JSON.
    pub(crate) fn field(self, name: &str) -> Option<FieldSchema> {
        self.field_offsets()
            .find(|offset| str_at(*offset) == name || str_at(offset + 8) == name)
            .map(field_at)
    }

    /// The field of this number.
    pub(crate) fn field_by_number(self, number: u32) -> Option<FieldSchema> {
        self.field_offsets().find(|offset| u32_at(offset + 32) == number as usize).map(field_at)
    }

    fn field_offsets(self) -> impl Iterator<Item = usize> {
        let count = if self.kind == 2 { 0 } else { self.count };
        (self.first..self.first + count).map(|index| TYPES_END + index * FIELD_SIZE)
    }

    /// The names and numbers of an enum.
    pub(crate) fn values(self) -> impl Iterator<Item = (&'static str, i32)> {
        let count = if self.kind == 2 { self.count } else { 0 };
        (self.first..self.first + count).map(|index| {
            let offset = FIELDS_END + index * VALUE_SIZE;
            // The number was written as an i32, so the bits are taken back as one.
            (str_at(offset), u32_at(offset + 8) as u32 as i32)
        })
    }
}

fn field_at(offset: usize) -> FieldSchema {
    let target = || type_at(u32_at(offset + 36));
    // Numbers of google.protobuf.FieldDescriptorProto.Type; groups are refused when the table is made.
    let kind = match u8_at(offset + 40) {
        1 => Kind::Double,
        2 => Kind::Float,
        3 => Kind::Int64,
        4 => Kind::Uint64,
        5 => Kind::Int32,
        6 => Kind::Fixed64,
        7 => Kind::Fixed32,
        8 => Kind::Bool,
        9 => Kind::String,
        11 => Kind::Message(target()),
        13 => Kind::Uint32,
        14 => Kind::Enum(target()),
        15 => Kind::Sfixed32,
        16 => Kind::Sfixed64,
        17 => Kind::Sint32,
        18 => Kind::Sint64,
        _ => Kind::Bytes,
    };
    FieldSchema {
        name: str_at(offset),
        oneof: str_at(offset + 16),
        number: u32_at(offset + 32) as u32,
        kind,
        cardinality: match u8_at(offset + 41) {
            1 => Cardinality::Repeated,
            2 => Cardinality::Map,
            _ => Cardinality::Single,
        },
        sensitive: u8_at(offset + 42) != 0,
        rules: bytes_at(offset + 24),
        oneof_required: u8_at(offset + 43) & 1 != 0,
        optional: u8_at(offset + 43) & 2 != 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_table_has_envoys_types() {
        let route = TypeSchema::message("envoy.config.route.v3.Route").unwrap();
        let field = route.field("match").unwrap();
        assert_eq!((field.number, field.cardinality), (1, Cardinality::Single));
        assert!(
            matches!(field.kind, Kind::Message(kind) if kind.name() == "envoy.config.route.v3.RouteMatch")
        );
        let per_filter = route.field("typedPerFilterConfig").unwrap();
        assert_eq!((per_filter.name, per_filter.cardinality), ("typed_per_filter_config", Cardinality::Map));
        assert_eq!(route.field("redirect").unwrap().oneof, "action");
        let certificate = "envoy.extensions.transport_sockets.tls.v3.TlsCertificate";
        let certificate = TypeSchema::message(certificate).unwrap();
        let secret = |name| certificate.field(name).unwrap().sensitive;
        assert_eq!((secret("private_key"), secret("certificate_chain")), (true, false));
        assert_eq!(route.field_by_number(2).unwrap().name, "route");
        assert_eq!(route.field("matches").map(|field| field.name), None);
        assert_eq!(TypeSchema::message("envoy.config.route.v3.Rout"), None);
        assert_eq!(
            TypeSchema::message("envoy.config.cluster.v3.Cluster.LbPolicy"),
            None,
            "an enum is no message"
        );
        let cluster = TypeSchema::message("envoy.config.cluster.v3.Cluster").unwrap();
        let Kind::Enum(policy) = cluster.field("lb_policy").unwrap().kind else { unreachable!() };
        assert!(policy.values().any(|value| value == ("RING_HASH", 2)));
        assert!(TABLE.len() < 1 << 20, "{} bytes", TABLE.len());
        println!("{} bytes, {} types", TABLE.len(), TYPE_COUNT);
    }

    #[test]
    fn every_type_is_found_by_its_name() {
        for index in 0..TYPE_COUNT {
            let found = type_at(index);
            if found.kind != 2 {
                assert_eq!(TypeSchema::message(found.name), Some(found));
                for field in found.fields() {
                    assert!(!field.name.is_empty() && field.number > 0);
                }
            } else {
                assert!(found.values().all(|(name, _)| !name.is_empty()));
            }
        }
    }
}
