//! Values of type `google.protobuf.Any`: which message they hold, and taking it out.

use std::collections::BTreeMap;

use envoy_types::pb::google::protobuf::{Any, ListValue, Struct, Value, value::Kind};
use prost::{Message, Name};
use sixfold_core::document::Node;
use sixfold_core::error::ConfigError;
use std::borrow::Cow;

use crate::constraints;
use crate::json::encode_node;
use crate::wire::decode;

/// A message in the form of a struct: `xds.type.v3.TypedStruct` and, with the same fields, `udpa.type.v1.TypedStruct`.
#[derive(Clone, PartialEq, Message)]
pub struct TypedStruct {
    /// Type URL of the message.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// Its fields as in JSON.
    #[prost(message, optional, tag = "2")]
    pub value: Option<Struct>,
}

/// The full name of the message in an `Any`; for a `TypedStruct` (of `xds.type.v3` or `udpa.type.v1`) the one that
/// the struct stands for.
///
/// # Errors
/// An empty type, and a `TypedStruct` that can't be decoded.
pub fn type_name(any: &Any) -> Result<String, ConfigError> {
    let name = name_of_url(&any.type_url);
    let name = if is_typed_struct(name) {
        name_of_url(&typed_struct(any)?.type_url).to_owned()
    } else {
        name.to_owned()
    };
    if name.is_empty() {
        return Err(ConfigError::new("the type is missing"));
    }
    Ok(name)
}

/// Takes the message out of an `Any`, after a look at its type. A `TypedStruct` of that type is converted by the
/// JSON mapping.
///
/// # Errors
/// Another type, bytes or a struct that are not such a message, and a struct that breaks a rule of it.
pub fn unpack<M: Message + Default + Name>(any: &Any) -> Result<M, ConfigError> {
    let wanted = M::full_name();
    let name = name_of_url(&any.type_url);
    if name == wanted {
        return decode(&any.value);
    }
    let (found, bytes) = resolve(any)?;
    if found == wanted {
        return decode(&bytes);
    }
    Err(ConfigError::new(format!("must be of type {wanted}, not {found}")))
}

/// The full name and the bytes of the message in an `Any`; a `TypedStruct` is converted by the JSON mapping, and held
/// against the rules of the message that it stands for: nobody else sees that message, where one that comes as itself is
/// looked at with what it stands in.
///
/// # Errors
/// An empty type, a `TypedStruct` that is not valid, does not fit its type or breaks a rule of it.
pub fn resolve(any: &Any) -> Result<(String, Cow<'_, [u8]>), ConfigError> {
    let name = type_name(any)?;
    if !is_typed_struct(name_of_url(&any.type_url)) {
        return Ok((name, Cow::Borrowed(any.value.as_slice())));
    }
    let json = struct_to_json(typed_struct(any)?.value.unwrap_or_default());
    let bytes = encode_node(&name, &Node::from_json(json)).map_err(|mut error| {
        // A struct has no places.
        error.place = None;
        error.in_key("value")
    })?;
    match constraints::faults(&name, &bytes).into_iter().reduce(ConfigError::and) {
        Some(broken) => Err(broken.in_key("value")),
        None => Ok((name, Cow::Owned(bytes))),
    }
}

/// The JSON of a `TypedStruct`, for a type that is no message of protobuf.
///
/// # Errors
/// Another message, and one that can't be decoded.
pub fn struct_of(any: &Any) -> Result<serde_json::Value, ConfigError> {
    if !is_typed_struct(name_of_url(&any.type_url)) {
        let name = name_of_url(&any.type_url);
        return Err(ConfigError::new(format!("{name} has to come as the type_url of a TypedStruct")));
    }
    Ok(struct_to_json(typed_struct(any)?.value.unwrap_or_default()))
}

/// Puts a message into an `Any`.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// The full name after the last slash of a type URL.
pub fn name_of_url(url: &str) -> &str {
    url.rsplit_once('/').map_or(url, |(_, name)| name)
}

fn is_typed_struct(name: &str) -> bool {
    matches!(name, "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct")
}

/// Both versions of the message have the same fields.
fn typed_struct(any: &Any) -> Result<TypedStruct, ConfigError> {
    TypedStruct::decode(any.value.as_slice())
        .map_err(|error| ConfigError::new(format!("is not a valid {}: {error}", name_of_url(&any.type_url))))
}

/// The JSON that a struct stands for; whole numbers become integers. Members are in the order of their keys, so that
/// the same configuration gives the same, its errors among it.
pub fn struct_to_json(value: Struct) -> serde_json::Value {
    let members: BTreeMap<String, Value> = value.fields.into_iter().collect();
    serde_json::Value::Object(members.into_iter().map(|(key, value)| (key, value_to_json(value))).collect())
}

/// The struct that the members of a JSON object stand for.
pub fn json_to_struct(members: serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct { fields: members.into_iter().map(|(key, value)| (key, json_to_value(value))).collect() }
}

/// The value that JSON stands for; numbers beyond 2^53 lose their last digits, as all numbers of a value are f64.
pub fn json_to_value(value: serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        serde_json::Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        serde_json::Value::String(value) => Kind::StringValue(value),
        serde_json::Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(json_to_value).collect() })
        }
        serde_json::Value::Object(members) => Kind::StructValue(json_to_struct(members)),
    };
    Value { kind: Some(kind) }
}

/// The JSON that a value stands for.
pub fn value_to_json(value: Value) -> serde_json::Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        // Within 2^53 every whole f64 is exact.
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 => {
            (value as i64).into()
        }
        Some(Kind::NumberValue(value)) => value.into(),
        Some(Kind::StringValue(value)) => value.into(),
        Some(Kind::StructValue(value)) => struct_to_json(value),
        Some(Kind::ListValue(ListValue { values })) => values.into_iter().map(value_to_json).collect(),
    }
}

/// The value that stands for JSON.
pub fn value_of_json(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => Kind::StringValue(value.clone()),
        Json::Array(values) => {
            Kind::ListValue(ListValue { values: values.iter().map(value_of_json).collect() })
        }
        Json::Object(members) => {
            let members = members.iter().map(|(key, value)| (key.clone(), value_of_json(value)));
            Kind::StructValue(Struct { fields: members.collect() })
        }
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::message_from_node;
    use envoy_types::pb::envoy::extensions::filters::http::{lua::v3::LuaPerRoute, router::v3::Router};

    fn any(yaml: &str) -> Any {
        let node = Node::parse(yaml, &Default::default()).unwrap();
        message_from_node(&node).unwrap()
    }

    #[test]
    fn messages_are_unpacked_by_type() {
        let packed = pack(&Router { suppress_envoy_headers: true, ..Router::default() });
        assert_eq!(packed.type_url, "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router");
        assert!(unpack::<Router>(&packed).unwrap().suppress_envoy_headers);
        assert_eq!(
            unpack::<LuaPerRoute>(&packed).unwrap_err().to_string(),
            "must be of type envoy.extensions.filters.http.lua.v3.LuaPerRoute, not envoy.extensions.filters.http.router.v3.Router"
        );
        let broken = Any { value: vec![0xff], ..packed };
        assert!(unpack::<Router>(&broken).unwrap_err().reason.contains("is not a valid"));
        assert_eq!(type_name(&Any::default()).unwrap_err().reason, "the type is missing");
    }

    // The order was that of a hash map: of two faults either was told.
    #[test]
    fn the_members_of_a_struct_are_in_order() {
        let names: Vec<String> = (0..20).map(|n| format!("m{n:02}")).collect();
        let fields = names.iter().map(|name| (name.clone(), Value::default())).collect();
        let json = struct_to_json(Struct { fields });
        assert!(json.as_object().unwrap().keys().eq(&names));
    }

    #[test]
    fn structs_and_json_stand_for_each_other() {
        let json = serde_json::json!({"a": null, "b": true, "c": 1, "d": 1.5, "e": "x", "f": [1, {"g": []}]});
        let serde_json::Value::Object(members) = json.clone() else { unreachable!() };
        assert_eq!(struct_to_json(json_to_struct(members)), json);
    }

    // They were held against no rule: `requires_all` of nothing is what everybody has.
    #[test]
    fn typed_structs_keep_the_rules_of_what_they_stand_for() {
        let refused = |kind: &str, value: &str| {
            let text = format!(
                "{{'@type': type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/{kind}, value: {value}}}"
            );
            resolve(&any(&text)).unwrap_err().into_all().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            refused(
                "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
                "{rules: [{match: {prefix: /}, requires: {requires_all: {requirements: []}}}]}"
            ),
            ["value.rules[0].requires.requires_all.requirements: must have at least 2 items, not 0"]
        );
        // Each fault is told, and so are those of what stands within.
        let fault = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";
        assert_eq!(
            refused(
                "envoy.config.route.v3.VirtualHost",
                &format!(
                    "{{domains: [a], typed_per_filter_config: {{f: {{'@type': {fault}, headers: [{{name: ''}}]}}}}}}"
                )
            ),
            [
                "value.typed_per_filter_config.f.headers[0].name: must not be empty",
                "value.name: must not be empty"
            ]
        );
    }

    #[test]
    fn typed_structs_stand_for_their_type() {
        for kind in ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"] {
            let text = format!(
                "{{\"@type\": type.googleapis.com/{kind}, type_url: type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, value: {{suppressEnvoyHeaders: true, bogus: 1}}}}"
            );
            let bogus = any(&text);
            assert_eq!(type_name(&bogus).unwrap(), Router::full_name());
            assert_eq!(
                unpack::<Router>(&bogus).unwrap_err().to_string(),
                "value.bogus: unknown field of envoy.extensions.filters.http.router.v3.Router"
            );
            let json = struct_of(&bogus).unwrap();
            assert_eq!(json, serde_json::json!({"suppressEnvoyHeaders": true, "bogus": 1}));
            let good = any(&text.replace(", bogus: 1", ""));
            assert!(unpack::<Router>(&good).unwrap().suppress_envoy_headers);
        }
        let plain = pack(&Router::default());
        let reason =
            "envoy.extensions.filters.http.router.v3.Router has to come as the type_url of a TypedStruct";
        assert_eq!(struct_of(&plain).unwrap_err().to_string(), reason);
    }
}
