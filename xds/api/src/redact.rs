//! Hiding secrets in documents that are shown.

use serde_json::{Map, Value};

use crate::schema::{Cardinality, FieldSchema, Kind, TypeSchema};

/// What is shown in a secret's place.
const REDACTED: &str = "[redacted]";

/// The same in base64, as JSON has bytes.
const REDACTED_BYTES: &str = "W3JlZGFjdGVkXQ==";

/// Hides in the JSON form of a message whatever `udpa.annotations.sensitive` marks in Envoy's definitions, also
/// inside of `Any` and `TypedStruct`: texts and bytes become `[redacted]`, other values are left out, and so is
/// everything below a marked message (source/common/protobuf/utility.cc `MessageUtil::redact`).
pub fn redact(full_name: &str, value: &mut Value) {
    if let Some(schema) = TypeSchema::message(full_name) {
        message(schema, value, false);
    }
}

fn message(schema: TypeSchema, value: &mut Value, hide: bool) {
    match schema.name() {
        "google.protobuf.Any" => any(value, hide),
        "xds.type.v3.TypedStruct" => typed_struct(value, hide),
        name if name.starts_with("google.protobuf.") && hide => blank(value),
        _ => {
            if let Value::Object(object) = value {
                fields(schema, object, hide);
            }
        }
    }
}

fn fields(schema: TypeSchema, object: &mut Map<String, Value>, hide: bool) {
    object.retain(|key, value| {
        let Some(field) = schema.field(key) else { return true };
        let hide = hide || field.sensitive;
        match (field.cardinality, &mut *value) {
            (Cardinality::Repeated, Value::Array(items)) => {
                items.iter_mut().for_each(|item| single(field, item, hide));
            }
            (Cardinality::Map, Value::Object(entries)) => {
                entries.values_mut().for_each(|entry| map_value(field, entry, hide));
            }
            (_, value) => single(field, value, hide),
        }
        !(hide && value.is_null())
    });
}

/// A map is a list of messages with key and value.
fn map_value(field: FieldSchema, value: &mut Value, hide: bool) {
    if let Kind::Message(entry) = field.kind
        && let Some(field) = entry.field_by_number(2)
    {
        single(field, value, hide);
    }
}

fn single(field: FieldSchema, value: &mut Value, hide: bool) {
    match field.kind {
        Kind::Message(schema) => message(schema, value, hide),
        Kind::Bytes if hide => *value = REDACTED_BYTES.into(),
        _ if hide => blank(value),
        _ => {}
    }
}

fn any(value: &mut Value, hide: bool) {
    let schema = value.get("@type").and_then(Value::as_str).and_then(of_url);
    match (schema, value.get_mut("value")) {
        (Some(schema), Some(inner)) if schema.name().starts_with("google.protobuf.") => {
            message(schema, inner, hide)
        }
        (Some(schema), _) => message(schema, value, hide),
        // Nothing is known of it, and it may be a secret.
        (None, _) if hide => blank(value),
        (None, _) => {}
    }
}

fn typed_struct(value: &mut Value, hide: bool) {
    let url = value.get("type_url").or_else(|| value.get("typeUrl")).and_then(Value::as_str);
    let schema = url.and_then(of_url);
    match (schema, value.get_mut("value")) {
        (Some(schema), Some(inner)) => message(schema, inner, hide),
        (None, Some(inner)) if hide => blank(inner),
        _ => {}
    }
}

fn of_url(url: &str) -> Option<TypeSchema> {
    TypeSchema::message(url.rsplit('/').next().unwrap_or(url))
}

/// Hides every value, whatever it is.
fn blank(value: &mut Value) {
    match value {
        Value::String(text) => *text = REDACTED.to_owned(),
        Value::Array(items) => items.iter_mut().for_each(blank),
        Value::Object(entries) => {
            entries.iter_mut().filter(|(key, _)| *key != "@type").for_each(|(_, value)| blank(value))
        }
        other => *other = Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Inline private keys were printed by `/config_dump`.
    #[test]
    fn secrets_are_hidden_wherever_they_are() {
        let tls = |key: Value| {
            json!({
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {"tls_certificates": [
                    {"certificate_chain": {"inline_string": "CERT"}, "private_key": key, "password": {"filename": "/p"}},
                ]},
            })
        };
        let mut bootstrap = json!({
            "node": {"id": "n"},
            "static_resources": {
                "secrets": [
                    {"name": "a", "tlsCertificate": {"privateKey": {"inline_bytes": "S0VZ"}}},
                    {"name": "b", "session_ticket_keys": {"keys": [{"inline_string": "KEY"}]}},
                    {"name": "c", "generic_secret": {"secret": {"inline_string": "KEY"}}},
                ],
                "listeners": [{"filter_chains": [
                    {"transport_socket": {"name": "t", "typed_config": tls(json!({"inline_string": "KEY"}))}},
                    {"transport_socket": {"name": "t", "typed_config": {
                        "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
                        "type_url": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.TlsCertificate",
                        "value": {"private_key": {"inline_string": "KEY"}},
                    }}},
                ]}],
            },
        });
        redact("envoy.config.bootstrap.v3.Bootstrap", &mut bootstrap);
        let text = bootstrap.to_string();
        assert!(!text.contains("KEY") && !text.contains("S0VZ"), "{text}");
        let resources = &bootstrap["static_resources"];
        assert_eq!(resources["secrets"][0]["tlsCertificate"]["privateKey"]["inline_bytes"], REDACTED_BYTES);
        let socket = &resources["listeners"][0]["filter_chains"][0]["transport_socket"];
        let certificate = &socket["typed_config"]["common_tls_context"]["tls_certificates"][0];
        assert_eq!(certificate["certificate_chain"]["inline_string"], "CERT", "what is public stays");
        assert_eq!(certificate["password"]["filename"], REDACTED);
        assert_eq!((&bootstrap["node"]["id"], &resources["secrets"][0]["name"]), (&"n".into(), &"a".into()));
    }
}
