//! Filters whose secrets a dump hides or does not have: what they do with a request, nobody can tell from it.

use serde_json::{Map, Value};
use sixfold_core::error::ConfigError;

/// What stands for a secret in a dump, of this proxy and of Envoy.
const HIDDEN: &str = "[redacted]";
/// Fields of filters that name a secret; one of the bootstrap has no place in what is compiled from a dump.
const NAMED: [&str; 4] = ["credential", "client_secret", "hmac_secret", "token_secret"];

/// Leaves out of a resource the filters that need secrets, and what routes say for such, and notes each.
pub(super) fn leave_out(resource: &str, value: &mut Value, noted: &mut Vec<ConfigError>) {
    match value {
        Value::Object(object) => {
            if let Some(filters) = object.get_mut("http_filters").and_then(Value::as_array_mut) {
                filters.retain(|filter| keeps(resource, name_of(filter), filter, noted));
            }
            if let Some(settings) = object.get_mut("typed_per_filter_config").and_then(Value::as_object_mut) {
                settings.retain(|name, settings| keeps(resource, name, settings, noted));
            }
            object.values_mut().for_each(|value| leave_out(resource, value, noted));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| leave_out(resource, item, noted)),
        _ => {}
    }
}

fn name_of(filter: &Value) -> &str {
    filter.get("name").and_then(Value::as_str).unwrap_or_default()
}

fn keeps(resource: &str, name: &str, settings: &Value, noted: &mut Vec<ConfigError>) -> bool {
    if !needs_secrets(settings) {
        return true;
    }
    let reason = format!(
        "the filter \"{name}\" is left out: its secrets are not in the dump, and what it does is not known"
    );
    noted.push(ConfigError::new(reason).in_resource(resource));
    false
}

fn needs_secrets(value: &Value) -> bool {
    match value {
        Value::String(text) => text == HIDDEN,
        Value::Array(items) => items.iter().any(needs_secrets),
        Value::Object(object) => {
            NAMED.iter().any(|key| object.get(*key).and_then(Value::as_object).is_some_and(is_of_bootstrap))
                || object.values().any(needs_secrets)
        }
        _ => false,
    }
}

/// Whether a `SdsSecretConfig` names a secret that comes from no control plane.
fn is_of_bootstrap(secret: &Map<String, Value>) -> bool {
    secret.contains_key("name") && !secret.contains_key("sds_config") && !secret.contains_key("typed_config")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    /// One such filter kept all of the dump from being looked at, or was said to refuse the key that it takes.
    #[test]
    fn filters_without_their_secrets_are_left_out_and_named() {
        let hidden = json!({"credentials": [{"key": HIDDEN, "client": "a"}]});
        let route =
            json!({"name": "r", "typed_per_filter_config": {"key": hidden, "cors": {"disabled": true}}});
        let mut listener = json!({"filter_chains": [{"filters": [{"typed_config": {
            "http_filters": [
                {"name": "key", "typed_config": hidden},
                {"name": "named", "typed_config": {"config": {"credentials": {"token_secret": {"name": "t"}}}}},
                {"name": "discovered", "typed_config": {"token_secret": {"name": "t", "sds_config": {"ads": {}}}}},
                {"name": "injects", "typed_config": {"credential": {"name": "c", "typed_config": {}}}},
                {"name": "router"},
            ],
            "route_config": {"virtual_hosts": [{"routes": [route]}]},
        }}]}]});
        let mut noted = Vec::new();
        leave_out("listener \"l\"", &mut listener, &mut noted);
        let manager = &listener["filter_chains"][0]["filters"][0]["typed_config"];
        let names: Vec<_> = manager["http_filters"].as_array().unwrap().iter().map(name_of).collect();
        assert_eq!(names, ["discovered", "injects", "router"]);
        let settings = &manager["route_config"]["virtual_hosts"][0]["routes"][0]["typed_per_filter_config"];
        assert_eq!(*settings, json!({"cors": {"disabled": true}}));
        let told: Vec<_> = noted.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert_eq!(
            told[0],
            "listener \"l\": the filter \"key\" is left out: its secrets are not in the dump, and what it does is not known"
        );
    }
}
