//! Messages of google.protobuf whose JSON form is not that of their fields.

use prost::encoding;
use sixfold_core::document::{Node, Value};
use sixfold_core::error::{ConfigContext, ConfigError};

use super::encode::{fields, message as encode_message, mismatch};
use super::{scalar, unknown_type};
use crate::schema::{FieldSchema, Kind, TypeSchema};
use crate::values::LONGEST_SECONDS;
use crate::wire::put_delimited;

const PREFIX: &str = "google.protobuf.";

/// Writes the message if it has a JSON form of its own, else `None`.
pub(super) fn message(schema: TypeSchema, node: &Node, out: &mut Vec<u8>) -> Option<Result<(), ConfigError>> {
    let name = schema.name().strip_prefix(PREFIX)?;
    // Protobuf's C++ parser also takes the fields of these, so `{seconds: 60}` for a duration.
    if node.as_object().is_some() && !matches!(name, "Any" | "Struct" | "Value") {
        return None;
    }
    let written = match name {
        "Any" => any(node, out),
        "Duration" => duration(node, out),
        "Timestamp" => timestamp(node, out),
        "Struct" => structure(node, out),
        "ListValue" => list_value(node, out),
        "Value" => value(node, out),
        "BoolValue" | "Int32Value" | "Int64Value" | "UInt32Value" | "UInt64Value" | "FloatValue"
        | "DoubleValue" | "StringValue" | "BytesValue" => wrapper(schema, node, out),
        _ => return None,
    };
    Some(written)
}

/// Whether null is a value of the field instead of its absence.
pub(super) fn accepts_null(field: FieldSchema) -> bool {
    match field.kind {
        Kind::Message(schema) => schema.name() == "google.protobuf.Value",
        Kind::Enum(schema) => schema.name() == "google.protobuf.NullValue",
        _ => false,
    }
}

/// Whether a list is one value of the field.
pub(super) fn is_list(field: FieldSchema) -> bool {
    let Kind::Message(schema) = field.kind else { return false };
    matches!(schema.name(), "google.protobuf.Value" | "google.protobuf.ListValue")
}

fn wrapper(schema: TypeSchema, node: &Node, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    match schema.field_by_number(1) {
        Some(field) => scalar::write(field.kind, 1, node, out),
        None => Err(mismatch("a value", node)),
    }
}

/// `{"@type": "type.googleapis.com/NAME", …}`: the fields beside `@type` are those of the message, except that
/// messages with a JSON form of their own stand in `value`.
fn any(node: &Node, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    let Some(object) = node.as_object() else { return Err(mismatch("an object with \"@type\"", node)) };
    if object.is_empty() {
        return Ok(());
    }
    let Some(type_node) = object.get("@type") else {
        return Err(ConfigError::new("\"@type\" is missing").at(node.place));
    };
    let Some(url) = type_node.as_str() else { return Err(mismatch("a string", type_node)).in_key("@type") };
    let unknown = |reason: String| ConfigError::field("@type", reason).at(type_node.place);
    let (_, name) = url
        .rsplit_once('/')
        .ok_or_else(|| unknown(format!("\"{url}\" is no type URL, it must hold a \"/\"")))?;
    let schema = TypeSchema::message(name).ok_or_else(|| unknown(unknown_type(name)))?;
    encoding::string::encode(1, &url.to_owned(), out);
    put_delimited(2, out, |out| {
        if !has_own_form(schema) {
            return fields(schema, object, Some("@type"), out);
        }
        for entry in object.entries() {
            match entry.key.as_str() {
                "@type" => {}
                "value" => encode_message(schema, &entry.value, out).in_key("value")?,
                key => {
                    let reason = format!("unknown field; the content of {name} stands in \"value\"");
                    return Err(ConfigError::field(key, reason).at(entry.key_place));
                }
            }
        }
        Ok(())
    })
}

fn has_own_form(schema: TypeSchema) -> bool {
    schema.name().strip_prefix(PREFIX).is_some_and(|name| name != "Empty")
}

/// `1.5s`: seconds with up to nine decimals.
fn duration(node: &Node, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    let Some(text) = node.as_str() else { return Err(mismatch("a duration like \"1.5s\"", node)) };
    let (seconds, nanos) = parse_duration(text).ok_or_else(|| {
        ConfigError::new(format!("\"{text}\" is no duration, it must be seconds like \"15s\" or \"0.25s\""))
            .at(node.place)
    })?;
    seconds_and_nanos(seconds, nanos, out);
    Ok(())
}

fn seconds_and_nanos(seconds: i64, nanos: i32, out: &mut Vec<u8>) {
    if seconds != 0 {
        encoding::int64::encode(1, &seconds, out);
    }
    if nanos != 0 {
        encoding::int32::encode(2, &nanos, out);
    }
}

/// Seconds and nanoseconds of the same sign, at most 10,000 years as in google/protobuf/duration.proto.
pub fn parse_duration(text: &str) -> Option<(i64, i32)> {
    let text = text.strip_suffix('s')?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let seconds: i64 =
        digits(whole)?.parse().ok().filter(|seconds: &i64| seconds.unsigned_abs() <= LONGEST_SECONDS)?;
    let nanos = nanos(fraction)?;
    Some(if negative { (-seconds, -nanos) } else { (seconds, nanos) })
}

fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

/// Decimals of a second, at most nine.
fn nanos(fraction: &str) -> Option<i32> {
    let missing = 9u32.checked_sub(u32::try_from(digits(fraction)?.len()).ok()?)?;
    Some(fraction.parse::<i32>().ok()? * 10i32.pow(missing))
}

/// RFC 3339.
fn timestamp(node: &Node, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    let Some(text) = node.as_str() else {
        return Err(mismatch("a time like \"2030-01-31T12:00:00Z\"", node));
    };
    let (seconds, nanos) = parse_timestamp(text).ok_or_else(|| {
        ConfigError::new(format!("\"{text}\" is no time, it must be like \"2030-01-31T12:00:00Z\""))
            .at(node.place)
    })?;
    seconds_and_nanos(seconds, nanos, out);
    Ok(())
}

/// Seconds since 1970 and nanoseconds of a time of RFC 3339.
pub fn parse_timestamp(text: &str) -> Option<(i64, i32)> {
    let (date, time) = text.split_once(['T', 't'])?;
    let (clock, offset) = match time.strip_suffix(['Z', 'z']) {
        Some(clock) => (clock, 0),
        None => {
            let sign_at = time.rfind(['+', '-'])?;
            let (clock, zone) = time.split_at_checked(sign_at)?;
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let minutes = number(hours, 2, 0..=23)? * 60 + number(minutes, 2, 0..=59)?;
            (clock, if zone.starts_with('-') { -minutes } else { minutes })
        }
    };
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let days =
        days_from_civil(number(year, 4, 1..=9999)?, number(month, 2, 1..=12)?, number(day, 2, 1..=31)?);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = clock.splitn(3, ':');
    let (hour, minute, second) = (parts.next()?, parts.next()?, parts.next()?);
    let seconds =
        number(hour, 2, 0..=23)? * 3600 + number(minute, 2, 0..=59)? * 60 + number(second, 2, 0..=59)?;
    Some((days * 86_400 + seconds - offset * 60, nanos(fraction)?))
}

fn number(text: &str, length: usize, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
    digits(text).filter(|text| text.len() == length)?.parse().ok().filter(|value| range.contains(value))
}

/// Days from 1970-01-01 in the Gregorian calendar, counted in eras of 400 years that begin in March.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn structure(node: &Node, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    let Some(object) = node.as_object() else { return Err(mismatch("an object", node)) };
    for entry in object.entries() {
        put_delimited(1, out, |out| {
            encoding::string::encode(1, &entry.key, out);
            put_delimited(2, out, |out| value(&entry.value, out))
        })
        .in_key(&entry.key)?;
    }
    Ok(())
}

fn list_value(node: &Node, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    let Some(items) = node.as_array() else { return Err(mismatch("an array", node)) };
    for (index, item) in items.iter().enumerate() {
        put_delimited(1, out, |out| value(item, out)).in_index(index)?;
    }
    Ok(())
}

/// google.protobuf.Value: any JSON.
fn value(node: &Node, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    match &node.value {
        Value::Null => encoding::int32::encode(1, &0, out),
        Value::Number(_) => encoding::double::encode(2, &scalar::float(node)?, out),
        Value::String(text) => encoding::string::encode(3, text, out),
        Value::Bool(value) => encoding::bool::encode(4, value, out),
        Value::Object(_) => return put_delimited(5, out, |out| structure(node, out)),
        Value::Array(_) => return put_delimited(6, out, |out| list_value(node, out)),
    }
    Ok(())
}
