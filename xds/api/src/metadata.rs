//! Metadata as JSON.

use std::collections::BTreeMap;

use crate::any::struct_to_json;
use sixfold_core::cluster::Criteria;
use sixfold_core::metadata::Metadata;

use crate::pb::envoy::config::core::v3::Metadata as ProtoMetadata;

/// The namespace that load balancers look at.
const LOAD_BALANCER: &str = "envoy.lb";

/// Metadata by namespace. Typed metadata means something to extensions of Envoy only and is left out.
pub fn namespaces(value: &Option<ProtoMetadata>) -> Metadata {
    let Some(ProtoMetadata { filter_metadata, typed_filter_metadata: _ }) = value else {
        return Metadata::default();
    };
    let mut names: Vec<_> = filter_metadata.iter().collect();
    names.sort_by_key(|(name, _)| *name);
    let named = |(name, value): (&String, &_)| (name.clone(), struct_to_json(Clone::clone(value)));
    names.into_iter().map(named).collect::<serde_json::Map<_, _>>().into()
}

/// What chooses a subset of a cluster's endpoints.
pub fn criteria(value: &Option<ProtoMetadata>) -> Criteria {
    Criteria::new(&load_balancing(value))
}

/// What load balancers match: the keys of `envoy.lb`.
pub fn load_balancing(value: &Option<ProtoMetadata>) -> BTreeMap<String, serde_json::Value> {
    let of_balancers = value.as_ref().and_then(|value| value.filter_metadata.get(LOAD_BALANCER));
    match of_balancers.map(|value| struct_to_json(value.clone())) {
        Some(serde_json::Value::Object(map)) => map.into_iter().collect(),
        _ => BTreeMap::new(),
    }
}
