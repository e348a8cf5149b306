//! Fields of an encoded message that its definition does not have: whoever sent it speaks a newer language, and decoding passes
//! over them.

use std::collections::{BTreeMap, BTreeSet};

use crate::any::name_of_url;
use crate::schema::{Kind, TypeSchema};
use crate::wire::{self, Fields};

/// How deep messages may be nested; prost decodes no deeper.
const MAX_DEPTH: usize = 100;

/// Numbers of unknown fields by the type that lacks them.
pub type UnknownFields = BTreeMap<&'static str, BTreeSet<u32>>;

/// The unknown fields of the encoded message `full_name` and of all that is in it, also in an `Any` of a known type. Types
/// that are not known are passed over, and so are bytes that are no message.
pub fn fields(full_name: &str, bytes: &[u8]) -> UnknownFields {
    let mut found = UnknownFields::new();
    if let Some(schema) = TypeSchema::message(full_name) {
        message(schema, bytes, 0, &mut found);
    }
    found
}

fn message(schema: TypeSchema, bytes: &[u8], depth: usize, found: &mut UnknownFields) {
    if depth > MAX_DEPTH {
        return;
    }
    if schema.name() == "google.protobuf.Any" {
        let (Some(url), packed) = (wire::text(bytes, 1), wire::messages(bytes, &[2])) else { return };
        let Some(schema) = TypeSchema::message(name_of_url(url)) else { return };
        let packed = packed.last().and_then(|range| bytes.get(range.clone()));
        return message(schema, packed.unwrap_or_default(), depth + 1, found);
    }
    for (number, value) in Fields::of(bytes) {
        match schema.field_by_number(number).map(|field| field.kind) {
            Some(Kind::Message(inner)) => message(inner, value.bytes(), depth + 1, found),
            Some(_) => {}
            None => drop(found.entry(schema.name()).or_default().insert(number)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wire::put_delimited;

    fn put(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
        put_delimited::<()>(number, out, |out| {
            out.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn fields_that_a_definition_does_not_have_are_found_however_deep() {
        const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
        let mut timeout = vec![8, 5];
        put(900, b"new", &mut timeout);
        let mut cluster = Vec::new();
        put(1, b"name", &mut cluster);
        assert_eq!(fields(CLUSTER, &cluster), UnknownFields::new());
        put(4, &timeout, &mut cluster);
        put(9000, b"x", &mut cluster);
        put(9001, b"x", &mut cluster);
        let own = |numbers: &[u32]| numbers.iter().copied().collect::<BTreeSet<_>>();
        let expected =
            UnknownFields::from([(CLUSTER, own(&[9000, 9001])), ("google.protobuf.Duration", own(&[900]))]);
        assert_eq!(fields(CLUSTER, &cluster), expected);
        let mut packed = Vec::new();
        put(1, format!("type.googleapis.com/{CLUSTER}").as_bytes(), &mut packed);
        put(2, &cluster, &mut packed);
        assert_eq!(fields("google.protobuf.Any", &packed), expected);
        assert_eq!(fields("no.such.Type", &cluster), UnknownFields::new());
        assert_eq!(fields(CLUSTER, &[0xff]), UnknownFields::new());
    }
}
