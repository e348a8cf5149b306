//! Numbers, booleans, strings, bytes and enums.

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{alphabet, engine::general_purpose::NO_PAD};
use prost::encoding;
use sixfold_core::document::{Node, Value};
use sixfold_core::error::{ConfigError, nearest};

use super::encode::mismatch;
use crate::schema::{Kind, TypeSchema};

const LENIENT: GeneralPurposeConfig = NO_PAD.with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Writes a value that is no message, with its key.
pub(crate) fn write(kind: Kind, number: u32, node: &Node, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    match kind {
        Kind::Double => encoding::double::encode(number, &float(node)?, out),
        Kind::Float => encoding::float::encode(number, &(float(node)? as f32), out),
        Kind::Int64 => encoding::int64::encode(number, &integer(node)?, out),
        Kind::Uint64 => encoding::uint64::encode(number, &integer(node)?, out),
        Kind::Int32 => encoding::int32::encode(number, &integer(node)?, out),
        Kind::Uint32 => encoding::uint32::encode(number, &integer(node)?, out),
        Kind::Fixed64 => encoding::fixed64::encode(number, &integer(node)?, out),
        Kind::Fixed32 => encoding::fixed32::encode(number, &integer(node)?, out),
        Kind::Sfixed64 => encoding::sfixed64::encode(number, &integer(node)?, out),
        Kind::Sfixed32 => encoding::sfixed32::encode(number, &integer(node)?, out),
        Kind::Sint64 => encoding::sint64::encode(number, &integer(node)?, out),
        Kind::Sint32 => encoding::sint32::encode(number, &integer(node)?, out),
        Kind::Bool => encoding::bool::encode(number, &boolean(node)?, out),
        Kind::String | Kind::Message(_) => match &node.value {
            Value::String(text) => encoding::string::encode(number, text, out),
            _ => return Err(mismatch("a string", node)),
        },
        Kind::Bytes => encoding::bytes::encode(number, &bytes(node)?, out),
        Kind::Enum(schema) => encoding::int32::encode(number, &enum_value(schema, node)?, out),
    }
    Ok(())
}

/// A boolean, also as one of the words that protobuf's C++ parser takes within quotes (`absl::SimpleAtob`).
fn boolean(node: &Node) -> Result<bool, ConfigError> {
    let is = |text: &str, words: [&str; 5]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    match &node.value {
        Value::Bool(value) => Ok(*value),
        Value::String(text) if is(text, ["true", "t", "yes", "y", "1"]) => Ok(true),
        Value::String(text) if is(text, ["false", "f", "no", "n", "0"]) => Ok(false),
        _ => Err(mismatch("true or false", node)),
    }
}

/// An integer, as a number or a string, also when it is written like `1.0`, `1e3` or, in quotes, `0x1F90`, as for
/// protobuf's C++ parser (`absl::SimpleHexAtoi`).
fn integer<T: TryFrom<i128>>(node: &Node) -> Result<T, ConfigError> {
    let whole = |value: f64| (value.fract() == 0.0 && value.abs() < 2f64.powi(64)).then_some(value as i128);
    let value = match &node.value {
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => Some(i128::from(value)),
            (None, Some(value)) => Some(i128::from(value)),
            (None, None) => number.as_f64().and_then(whole),
        },
        Value::String(text) => text
            .parse()
            .ok()
            .or_else(|| text.parse().ok().and_then(whole))
            .or_else(|| i128::from_str_radix(text.strip_prefix("0x")?, 16).ok()),
        _ => None,
    };
    let Some(value) = value else { return Err(mismatch("an integer", node)) };
    T::try_from(value).map_err(|_| {
        ConfigError::new(format!("{value} does not fit {}", std::any::type_name::<T>())).at(node.place)
    })
}

/// A number, also as a string, with `NaN`, `Infinity` and `-Infinity`.
pub(super) fn float(node: &Node) -> Result<f64, ConfigError> {
    let value = match &node.value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            // Rust also reads `inf` and `nan`, which the mapping does not have.
            text if text.ends_with(|c: char| c.is_ascii_digit() || c == '.') => text.parse().ok(),
            _ => None,
        },
        _ => None,
    };
    value.ok_or_else(|| mismatch("a number", node))
}

/// Base64 with the standard or the URL-safe alphabet, padded or not.
fn bytes(node: &Node) -> Result<Vec<u8>, ConfigError> {
    let Some(text) = node.as_str() else { return Err(mismatch("a string in base64", node)) };
    STANDARD
        .decode(text)
        .or_else(|_| URL_SAFE.decode(text))
        .map_err(|error| ConfigError::new(format!("is not base64: {error}")).at(node.place))
}

/// An enum value by name in any case, as Envoy's parser is set to take it, or by number, also in quotes. Numbers that the
/// definition does not have are refused: nothing could be done with them.
fn enum_value(schema: TypeSchema, node: &Node) -> Result<i32, ConfigError> {
    let found = match &node.value {
        Value::String(text) => {
            let wanted = text.parse::<i32>().ok();
            let is = |name: &str, number| name.eq_ignore_ascii_case(text) || Some(number) == wanted;
            schema.values().find(|(name, number)| is(name, *number)).map(|(_, number)| number)
        }
        Value::Number(_) => {
            let wanted: i32 = integer(node)?;
            schema.values().find(|(_, number)| *number == wanted).map(|(_, number)| number)
        }
        // The null of google.protobuf.NullValue.
        Value::Null if schema.name() == "google.protobuf.NullValue" => Some(0),
        _ => return Err(mismatch("the name of an enum value", node)),
    };
    found.ok_or_else(|| unknown_enum_value(schema, node))
}

fn unknown_enum_value(schema: TypeSchema, node: &Node) -> ConfigError {
    let names: Vec<&str> = schema.values().map(|(name, _)| name).collect();
    let given = match &node.value {
        Value::String(text) => format!("\"{text}\""),
        value => match value {
            Value::Number(number) => number.to_string(),
            _ => node.kind().to_owned(),
        },
    };
    let hint = match node.as_str().and_then(|text| nearest(text, names.iter().copied())) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("expected one of {}", names.join(", ")),
    };
    ConfigError::new(format!("unknown value {given} of {}; {hint}", schema.name())).at(node.place)
}
