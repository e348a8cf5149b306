//! Messages of google.protobuf whose JSON form is not that of their fields, from that form.

use super::Fault;
use super::encode::{At, Encoder, Weave, invalid, text};
use super::print::{has_own_form, held_message};
use prost::encoding;
use prost_reflect::MessageDescriptor;
use serde_json::{Map, Value as Json};
use sixfold_xds_api::json::{parse_duration, parse_timestamp};
use sixfold_xds_api::wire::put_delimited;

/// Writes the content of the message.
pub(super) fn encode(
    encoder: Encoder,
    message: &MessageDescriptor,
    value: &Json,
    out: &mut Vec<u8>,
    at: At<'_>,
) -> Result<(), Fault> {
    let name = message.name();
    if let (Json::Object(members), false) = (value, matches!(name, "Any" | "Struct" | "Value")) {
        // Their fields are taken too.
        return encoder.members(message, members, &mut Weave::default(), out, at);
    }
    let kind = format!("type.googleapis.com/{}", message.full_name());
    let illegal = |what: &str| {
        let reason = format!("Field '{}', Illegal {what}", at.name());
        Fault::invalid(format!("{at}: invalid value {reason} for type {kind}"))
    };
    match (name, value) {
        ("Any", Json::Object(members)) => any(encoder, message, members, out, at),
        ("Timestamp", Json::String(time)) => {
            let wanted = "timestamp format; timestamps must end with 'Z' or have a valid timezone offset.";
            time_of(parse_timestamp(time).ok_or_else(|| illegal(wanted))?, out);
            Ok(())
        }
        ("Duration", Json::String(time)) => {
            let wanted = "duration format; duration must end with 's'";
            time_of(parse_duration(time).ok_or_else(|| illegal(wanted))?, out);
            Ok(())
        }
        ("FieldMask", Json::String(paths)) => {
            for path in paths.split(',').filter(|path| !path.is_empty()) {
                text(1, snake(path).as_bytes(), out);
            }
            Ok(())
        }
        ("Struct", Json::Object(members)) => structure(members, out),
        ("ListValue", Json::Array(items)) => list(items, out),
        ("Value", value) => any_value(value, out),
        ("Any" | "Timestamp" | "Duration" | "FieldMask" | "Struct" | "ListValue", value) => {
            Err(invalid(at, value, &kind))
        }
        (_, value) => {
            let held = message.get_field(1).ok_or_else(|| invalid(at, value, &kind))?;
            encoder.single(&held, value, &mut Weave::default(), out, at, None)
        }
    }
}

/// `{"@type": URL, …}`: the members beside `@type` are the fields of the message, except that messages with a JSON form of
/// their own stand in `value`.
fn any(
    encoder: Encoder,
    message: &MessageDescriptor,
    members: &Map<String, Json>,
    out: &mut Vec<u8>,
    at: At<'_>,
) -> Result<(), Fault> {
    if members.is_empty() {
        return Ok(());
    }
    let Some(Json::String(url)) = members.get("@type") else {
        let within = at.within();
        return Err(Fault::invalid(format!(
            "{at}: invalid value Missing @type for any field in {within} for type Any"
        )));
    };
    let held = held_message(message.parent_pool(), url)
        .map_err(|fault| Fault::invalid(format!("{at}: invalid value {} for type Any", fault.message)))?;
    text(1, url.as_bytes(), out);
    put_delimited(2, out, |out| match has_own_form(&held) {
        true => members.get("value").map_or(Ok(()), |value| encode(encoder, &held, value, out, at)),
        false => encoder.members(&held, members, &mut Weave::default(), out, at),
    })
}

fn time_of((seconds, nanos): (i64, i32), out: &mut Vec<u8>) {
    encoding::int64::encode(1, &seconds, out);
    encoding::int32::encode(2, &nanos, out);
}

fn structure(members: &Map<String, Json>, out: &mut Vec<u8>) -> Result<(), Fault> {
    for (name, value) in members {
        put_delimited(1, out, |out| {
            text(1, name.as_bytes(), out);
            put_delimited(2, out, |out| any_value(value, out))
        })?;
    }
    Ok(())
}

fn list(items: &[Json], out: &mut Vec<u8>) -> Result<(), Fault> {
    items.iter().try_for_each(|item| put_delimited(1, out, |out| any_value(item, out)))
}

/// google.protobuf.Value: any JSON.
fn any_value(value: &Json, out: &mut Vec<u8>) -> Result<(), Fault> {
    match value {
        Json::Null => encoding::int32::encode(1, &0, out),
        Json::Number(number) => encoding::double::encode(2, &number.as_f64().unwrap_or_default(), out),
        Json::String(value) => text(3, value.as_bytes(), out),
        Json::Bool(value) => encoding::bool::encode(4, value, out),
        Json::Object(members) => return put_delimited(5, out, |out| structure(members, out)),
        Json::Array(items) => return put_delimited(6, out, |out| list(items, out)),
    }
    Ok(())
}

/// `fooBar.baz` as `foo_bar.baz`.
fn snake(path: &str) -> String {
    let mut made = String::with_capacity(path.len() + 2);
    for letter in path.chars() {
        if letter.is_ascii_uppercase() {
            made.push('_');
        }
        made.push(letter.to_ascii_lowercase());
    }
    made
}
