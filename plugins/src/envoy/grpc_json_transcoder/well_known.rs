//! Messages of google.protobuf whose JSON form is not that of their fields, from that form.

use super::Fault;
use super::encode::{At, Encoder, Weave, invalid, text};
use super::print::{has_own_form, held_message};
use crate::shared::json::Json;
use prost::encoding;
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
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
    let kind = || format!("type.googleapis.com/{}", message.full_name());
    let illegal = |what: &str| {
        let reason = format!("Field '{}', Illegal {what}", at.name());
        Fault::invalid(format!("{at}: invalid value {reason} for type {}", kind()))
    };
    let wrong = || invalid(at, value, &kind());
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
        ("Struct", Json::Object(members)) => {
            let fields = message.get_field(1).filter(FieldDescriptor::is_map).ok_or_else(wrong)?;
            encoder.map(&fields, &fields.kind(), members, out, at)
        }
        ("ListValue", Json::Array(items)) => {
            let values = message.get_field(1).ok_or_else(wrong)?;
            encoder.items(&values, &values.kind(), items, out, at, &mut 0)
        }
        ("Any" | "Timestamp" | "Duration" | "FieldMask" | "Struct" | "ListValue", _) => Err(wrong()),
        (name, value) => {
            // Which of the fields of a Value; a wrapper has one.
            let (number, of) = match value {
                _ if name != "Value" => (1, None),
                Json::Null => (1, None),
                Json::Number(_) => (2, None),
                Json::String(_) => (3, None),
                Json::Bool(_) => (4, None),
                Json::Object(_) => (5, Some("google.protobuf.Struct")),
                Json::Array(_) => (6, Some("google.protobuf.ListValue")),
            };
            // Definitions that are not google's may hold themselves.
            let is_right = |field: &FieldDescriptor| match field.kind() {
                Kind::Message(held) => of == Some(held.full_name()),
                _ => of.is_none(),
            };
            let held = message.get_field(number).filter(is_right).ok_or_else(wrong)?;
            encoder.single(&held, value, &mut Weave::default(), out, at, None)
        }
    }
}

/// `{"@type": URL, …}`: the members beside `@type` are the fields of the message, except that messages with a JSON form of
/// their own stand in `value`.
fn any(
    encoder: Encoder,
    message: &MessageDescriptor,
    members: &[(String, Json)],
    out: &mut Vec<u8>,
    at: At<'_>,
) -> Result<(), Fault> {
    if members.is_empty() {
        return Ok(());
    }
    let member = |wanted: &str| members.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
    let Some(Json::String(url)) = member("@type") else {
        let within = at.within();
        return Err(Fault::invalid(format!(
            "{at}: invalid value Missing @type for any field in {within} for type Any"
        )));
    };
    let held = held_message(message.parent_pool(), url)
        .map_err(|fault| Fault::invalid(format!("{at}: invalid value {} for type Any", fault.message)))?;
    text(1, url.as_bytes(), out);
    // Where something is in it is told from it.
    let at = At::default();
    put_delimited(2, out, |out| match has_own_form(&held) {
        true => member("value").map_or(Ok(()), |value| encode(encoder, &held, value, out, at)),
        false => encoder.members(&held, members, &mut Weave::default(), out, at),
    })
}

fn time_of((seconds, nanos): (i64, i32), out: &mut Vec<u8>) {
    encoding::int64::encode(1, &seconds, out);
    encoding::int32::encode(2, &nanos, out);
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
