//! The schemas of APISIX's resources, with the references between their files resolved.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::{Schema, SchemaError};
use crate::resource::Kind;

/// The files of `proxy/apisix/schemas`, by the names that `$ref` uses.
const FILES: &[(&str, &str)] = &[
    ("consumer.json", include_str!("../../schemas/consumer.json")),
    ("consumer_group.json", include_str!("../../schemas/consumer_group.json")),
    ("credential.json", include_str!("../../schemas/credential.json")),
    ("definitions.json", include_str!("../../schemas/definitions.json")),
    ("global_rule.json", include_str!("../../schemas/global_rule.json")),
    ("health_check.json", include_str!("../../schemas/health_check.json")),
    ("plugin_config.json", include_str!("../../schemas/plugin_config.json")),
    ("plugin_meta.json", include_str!("../../schemas/plugin_meta.json")),
    ("plugins.json", include_str!("../../schemas/plugins.json")),
    ("proto.json", include_str!("../../schemas/proto.json")),
    ("route.json", include_str!("../../schemas/route.json")),
    ("secret.json", include_str!("../../schemas/secret.json")),
    ("service.json", include_str!("../../schemas/service.json")),
    ("ssl.json", include_str!("../../schemas/ssl.json")),
    ("stream_route.json", include_str!("../../schemas/stream_route.json")),
    ("upstream.json", include_str!("../../schemas/upstream.json")),
];

/// How deep references may lead; the deepest in use is route, upstream, health check, definition.
const MAX_REFERENCES: usize = 8;

/// The schema of a resource. A plugin's metadata has none here: its plugin brings it.
pub fn resource(kind: Kind) -> &'static Schema {
    macro_rules! lazily {
        ($($kind:ident => $file:literal,)*) => {
            match kind {
                $(Kind::$kind => {
                    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| load($file));
                    &SCHEMA
                })*
            }
        };
    }
    lazily! {
        Consumer => "consumer.json",
        ConsumerGroup => "consumer_group.json",
        Credential => "credential.json",
        GlobalRule => "global_rule.json",
        PluginConfig => "plugin_config.json",
        PluginMetadata => "definitions.json#/plugins",
        Proto => "proto.json",
        Route => "route.json",
        Secret => "definitions.json#/plugins",
        Service => "service.json",
        Ssl => "ssl.json",
        StreamRoute => "stream_route.json",
        Upstream => "upstream.json",
    }
}

/// The schema of a secret of one manager: `vault`, `aws` or `gcp`.
pub fn secret(manager: &str) -> Option<&'static Schema> {
    static VAULT: LazyLock<Schema> = LazyLock::new(|| load("secret.json#/vault"));
    static AWS: LazyLock<Schema> = LazyLock::new(|| load("secret.json#/aws"));
    static GCP: LazyLock<Schema> = LazyLock::new(|| load("secret.json#/gcp"));
    match manager {
        "vault" => Some(&VAULT),
        "aws" => Some(&AWS),
        "gcp" => Some(&GCP),
        _ => None,
    }
}

/// The schema of `_meta`, which every plugin's configuration may have.
pub fn plugin_meta() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| load("plugin_meta.json#"));
    &SCHEMA
}

/// The schema of the list of enabled plugins, `plugins` of apisix.yaml.
pub fn plugins_list() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| load("plugins.json#"));
    &SCHEMA
}

fn load(reference: &str) -> Schema {
    follow(reference, "", 0).and_then(Schema::compile).unwrap_or_else(|e| Schema::refusing(&e))
}

/// The schema that `reference` (`file#/pointer`, the file empty for the same one) names, references in it
/// replaced by what they name.
fn follow(reference: &str, from: &str, depth: usize) -> Result<Value, SchemaError> {
    let error = |reason: String| SchemaError { at: reference.to_owned(), reason };
    if depth > MAX_REFERENCES {
        return Err(error("too many references".to_owned()));
    }
    let (file, pointer) = reference.split_once('#').unwrap_or((reference, ""));
    let file = if file.is_empty() { from } else { file };
    let text = FILES.iter().find(|(name, _)| *name == file).map(|(_, text)| *text);
    let text = text.ok_or_else(|| error("no such file".to_owned()))?;
    // Parsed again for every reference: this happens once per schema, at start.
    let document: Value = serde_json::from_str(text).map_err(|e| error(e.to_string()))?;
    let target = document.pointer(pointer).ok_or_else(|| error("no such definition".to_owned()))?;
    inline(target, file, depth)
}

fn inline(schema: &Value, file: &str, depth: usize) -> Result<Value, SchemaError> {
    Ok(match schema {
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| inline(item, file, depth)).collect::<Result<_, _>>()?)
        }
        Value::Object(map) => {
            let mut merged = match map.get("$ref").and_then(Value::as_str) {
                Some(reference) => match follow(reference, file, depth + 1)? {
                    Value::Object(map) => map,
                    other => return Ok(other),
                },
                None => Map::new(),
            };
            for (key, value) in map.iter().filter(|(key, _)| *key != "$ref") {
                merged.insert(key.clone(), inline(value, file, depth)?);
            }
            Value::Object(merged)
        }
        other => other.clone(),
    })
}
