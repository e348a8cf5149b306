//! Metadata as JSON.

use std::collections::BTreeMap;

use crate::any::struct_to_json;
use crate::pb::envoy::config::core::v3::Metadata;

/// The namespace that load balancers look at.
const LOAD_BALANCER: &str = "envoy.lb";

/// Metadata by namespace. Typed metadata means something to extensions of Envoy only and is left out.
pub fn namespaces(value: &Option<Metadata>) -> serde_json::Map<String, serde_json::Value> {
    let Some(Metadata { filter_metadata, typed_filter_metadata: _ }) = value else {
        return serde_json::Map::new();
    };
    let mut names: Vec<_> = filter_metadata.iter().collect();
    names.sort_by_key(|(name, _)| *name);
    names.into_iter().map(|(name, value)| (name.clone(), struct_to_json(value.clone()))).collect()
}

/// What load balancers match: the keys of `envoy.lb`.
pub fn load_balancing(value: &Option<Metadata>) -> BTreeMap<String, serde_json::Value> {
    match namespaces(value).remove(LOAD_BALANCER) {
        Some(serde_json::Value::Object(map)) => map.into_iter().collect(),
        _ => BTreeMap::new(),
    }
}
