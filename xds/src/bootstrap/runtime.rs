//! `layered_runtime`: keys that configuration is compiled with.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sixfold_core::error::{ConfigContext, ConfigError, Faults};
use sixfold_core::runtime::Runtime;
use sixfold_xds_api::any::struct_to_json;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::runtime_layer::LayerSpecifier;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::{LayeredRuntime, RuntimeLayer};
use sixfold_xds_api::pb::google::protobuf::Struct;
use sixfold_xds_api::values::Result;

use crate::skipped;

/// Whether this number does nothing in Envoy either.
type IsIdle = fn(u64) -> bool;

/// Keys that do something by themselves in Envoy and nothing here, those that end in a dot with all that begin so, and
/// which numbers of theirs do nothing in Envoy either. Beside them stand those that the fields of clusters and
/// connection managers are compiled with (docs/root/configuration of Envoy, the pages on runtimes).
const ACTING: [(&str, IsIdle); 11] = [
    ("fault.http.", never),
    ("fault.tcp.", never),
    ("health_check.max_interval", unlimited),
    ("health_check.min_interval", |milliseconds| milliseconds <= 1),
    ("health_check.verify_cluster", always),
    ("http_connection_manager.path_with_escaped_slashes_action", never),
    ("overload.premature_reset_min_stream_lifetime_seconds", |seconds| seconds == 1),
    ("overload.premature_reset_total_stream_count", |count| count == 500),
    ("upstream.base_retry_backoff_ms", |milliseconds| milliseconds == 25),
    ("upstream.use_http2", always),
    ("upstream.use_retry", always),
];

/// Limits of connections of one listener each, which nothing here has: refused where the bootstrap has that listener. Many have
/// one for a listener that is called otherwise.
const LISTENER_LIMITS: &str = "envoy.resource_limits.listener.";

/// What control planes write for no limit.
fn unlimited(limit: u64) -> bool {
    limit >= i32::MAX as u64
}

fn always(percent: u64) -> bool {
    percent >= 100
}

fn never(_: u64) -> bool {
    false
}

/// The merged layers: later ones win. Nested objects are keys with dots. `listeners` are the names of the bootstrap's own.
pub(super) fn compile(value: Option<&LayeredRuntime>, listeners: &BTreeSet<&str>) -> Result<Runtime> {
    let (mut runtime, mut names, mut faults) = (Runtime::default(), BTreeSet::new(), Faults::default());
    // Which layer has said last what a key is.
    let mut owners = BTreeMap::new();
    for (index, RuntimeLayer { name, layer_specifier }) in
        value.iter().flat_map(|value| value.layers.iter().enumerate())
    {
        let mut within = Faults::default();
        if !names.insert(name) {
            let twice = ConfigError::field("name", format!("layer \"{name}\" is given twice"));
            within.take::<()>(Err(twice));
        }
        let layer = layer(layer_specifier.as_ref(), &mut within);
        faults.take(within.end(()).in_index(index).in_key("layers"));
        owners.extend(layer.values().keys().map(|key| (key.clone(), index)));
        runtime.add(layer);
    }
    for (key, index) in owners {
        if acts_in_envoy(&key, &runtime) {
            let fault = ConfigError::field(&key, "is not supported").in_key("static_layer");
            faults.take::<()>(Err(fault.in_index(index).in_key("layers")));
        }
        let limited = key.strip_prefix(LISTENER_LIMITS).and_then(|key| key.strip_suffix(".connection_limit"));
        let Some(listener) = limited.filter(|_| runtime.whole(&key).is_some_and(|limit| !unlimited(limit)))
        else {
            continue;
        };
        let instead = "the filter connection_limit, and the monitor downstream_connections of overload_manager, limit \
                       connections";
        if listeners.contains(listener) {
            let fault =
                ConfigError::field(&key, format!("is not supported: {instead}")).in_key("static_layer");
            faults.take::<()>(Err(fault.in_index(index).in_key("layers")));
        } else {
            skipped::note(format!(
                "layered_runtime.layers[{index}].static_layer.{key}: has no effect: {instead}"
            ));
        }
    }
    faults.end(runtime)
}

fn layer(value: Option<&LayerSpecifier>, faults: &mut Faults) -> Runtime {
    let mut unsupported = |field: &str| faults.take::<()>(Err(ConfigError::field(field, "is not supported")));
    match value {
        Some(LayerSpecifier::StaticLayer(layer)) => return static_layer(layer, faults),
        // Empty until somebody changes it over the administration interface.
        Some(LayerSpecifier::AdminLayer(_)) => {}
        Some(LayerSpecifier::DiskLayer(_)) => unsupported("disk_layer"),
        Some(LayerSpecifier::RtdsLayer(_)) => unsupported("rtds_layer"),
        None => unsupported("layer_specifier"),
    }
    Runtime::default()
}

fn static_layer(value: &Struct, faults: &mut Faults) -> Runtime {
    let layer = Runtime::new(flat(value));
    for (key, value) in layer.values() {
        if matches!(value, Value::Null | Value::Array(_)) {
            let fault = ConfigError::field(key, "is no value that a key may have");
            faults.take::<()>(Err(fault.in_key("static_layer")));
        }
    }
    layer
}

/// Whether a key, by its value, has Envoy do something that nothing does here. What is no number says nothing, but where
/// the key may be a share.
fn acts_in_envoy(key: &str, runtime: &Runtime) -> bool {
    let found =
        ACTING.iter().find(|(acting, _)| *acting == key || acting.ends_with('.') && key.starts_with(acting));
    found.is_some_and(|(acting, harmless)| match runtime.whole(key) {
        Some(number) => !harmless(number),
        None => acting.starts_with("fault.") && runtime.share(key).is_some(),
    })
}

/// The values of a layer as text.
pub(crate) fn values(layer: &Struct) -> BTreeMap<String, String> {
    let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    flat(layer).into_iter().map(|(key, value)| (key, text(value))).collect()
}

fn flat(layer: &Struct) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    if let Value::Object(members) = struct_to_json(layer.clone()) {
        members.into_iter().for_each(|(key, value)| flatten(key, value, &mut values));
    }
    values
}

fn flatten(key: String, value: Value, values: &mut BTreeMap<String, Value>) {
    // A share is an object that is a value.
    let is_share = |name: &str| matches!(name, "numerator" | "denominator");
    match value {
        Value::Object(members) if !members.is_empty() && !members.keys().any(|name| is_share(name)) => {
            members.into_iter().for_each(|(name, value)| flatten(format!("{key}.{name}"), value, values));
        }
        value => drop(values.insert(key, value)),
    }
}

#[cfg(test)]
mod tests;
