//! What must hold for any bytes that a client sends as JSON; called by the crate's `fuzz`.

use super::elements::Elements;
use super::encode::{Encoder, Weave};
use super::parse;
use super::print::{self, MAX_DEPTH, PrintOptions};
use crate::shared::json::Json;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

/// The bytes as a text of JSON, as an array that comes in pieces, and as messages.
///
/// What is JSON to serde_json is the same JSON here, and what is JSON here is read again from how it is written. An array has the
/// same elements however it is cut. What becomes a message is one, and its JSON becomes the same message.
pub(crate) fn check(data: &[u8]) {
    let read = parse::read(data, MAX_DEPTH);
    if let Ok(strict) = Json::read(data, MAX_DEPTH) {
        let same = read.as_ref().is_ok_and(|json| agree(json, &strict));
        assert!(same, "{strict} is read as {read:?}");
    }
    check_elements(data);
    let Ok(json) = read else { return };
    let again = parse::read(json.to_string().as_bytes(), MAX_DEPTH);
    assert!(again.as_ref().is_ok_and(|again| agree(again, &json)), "{json} is read again as {again:?}");
    let pool = DescriptorPool::global();
    for name in ["google.protobuf.Type", "google.protobuf.Struct"] {
        if let Some(message) = pool.get_message_by_name(name) {
            check_message(&message, &json);
        }
    }
}

/// Whether both are one value, but for the last bits of numbers and the sign of nought, which the two readers round differently.
fn agree(one: &Json, other: &Json) -> bool {
    match (one, other) {
        (Json::Number(one), Json::Number(other)) => match (one.as_f64(), other.as_f64()) {
            (Some(one), Some(other)) => (one - other).abs() <= one.abs() * 1e-15 + f64::from_bits(4),
            _ => false,
        },
        (Json::Array(one), Json::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| agree(one, other))
        }
        (Json::Object(one), Json::Object(other)) => {
            let same = |((one, of_one), (other, of_other)): (&(String, Json), &(String, Json))| {
                one == other && agree(of_one, of_other)
            };
            one.len() == other.len() && one.iter().zip(other).all(same)
        }
        (one, other) => one == other,
    }
}

fn check_elements(data: &[u8]) {
    let split = |pieces: &[&[u8]]| {
        let (mut elements, mut all) = (Elements::default(), Vec::new());
        for piece in pieces {
            all.extend(elements.push(piece).map_err(|fault| fault.message)?);
        }
        elements.finish().map_err(|fault| fault.message)?;
        Ok::<_, String>(all)
    };
    let whole = split(&[data]);
    for at in [1, data.len() / 3, data.len() / 2, data.len().saturating_sub(1)] {
        let (first, second) = data.split_at(at.min(data.len()));
        assert_eq!(split(&[first, second]), whole, "cut at {at}");
    }
    let Ok(Json::Array(items)) = Json::read(data, MAX_DEPTH) else { return };
    let elements = whole.as_ref().map_or(&[][..], Vec::as_slice);
    assert_eq!(elements.len(), items.len(), "{whole:?}");
    for (element, item) in elements.iter().zip(&items) {
        assert_eq!(Json::read(element, MAX_DEPTH).ok().as_ref(), Some(item));
    }
}

fn check_message(message: &MessageDescriptor, json: &Json) {
    let Some(encoded) = encode(message, json) else { return };
    let decoded = DynamicMessage::decode(message.clone(), &*encoded);
    assert!(decoded.is_ok(), "{json} is no {}: {decoded:?}", message.name());
    // What can't be told in JSON, for it is too deep or no moment, is told so.
    let Ok(printed) = print::json(message, &encoded, PrintOptions::default()) else { return };
    // By our reader: serde_json rounds long numbers.
    let told = |printed: &[u8]| Json::read(printed, 2 * MAX_DEPTH).ok();
    let again = parse::read(&printed, 2 * MAX_DEPTH).ok().and_then(|json| encode(message, &json));
    let again = again.and_then(|again| print::json(message, &again, PrintOptions::default()).ok());
    let both = told(&printed).zip(again.as_deref().and_then(told));
    assert!(
        both.is_some_and(|(one, other)| agree(&one, &other)),
        "{} becomes {:?}",
        String::from_utf8_lossy(&printed),
        again.as_deref().map(String::from_utf8_lossy)
    );
}

fn encode(message: &MessageDescriptor, json: &Json) -> Option<Vec<u8>> {
    let mut encoded = Vec::new();
    Encoder::default().message(message, json, &mut Weave::default(), &mut encoded).ok()?;
    Some(encoded)
}
