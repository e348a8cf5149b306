//! Subsets of endpoints: `lb_subset_config`, and the policy of the same name.

use std::collections::BTreeSet;

use sixfold_core::cluster::{Criterion, SubsetConfig, SubsetFallback, SubsetSelector};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::any::struct_to_json;
use sixfold_xds_api::pb::envoy::config::cluster::v3::cluster::LbSubsetConfig;
use sixfold_xds_api::pb::envoy::config::cluster::v3::cluster::lb_subset_config::{
    LbSubsetFallbackPolicy, LbSubsetMetadataFallbackPolicy, LbSubsetSelector,
    lb_subset_selector::LbSubsetSelectorFallbackPolicy,
};
use sixfold_xds_api::pb::envoy::extensions::load_balancing_policies::subset::v3::{Subset, subset};
use sixfold_xds_api::values::{Result, enum_value};

/// `lb_subset_config`; without selectors there are no subsets, as in Envoy.
pub(super) fn older(value: &LbSubsetConfig) -> Result<Option<SubsetConfig>> {
    compile(value, false)
}

/// The policy. Its enums have the numbers of the older form.
pub(super) fn newer(value: &Subset) -> Result<Option<SubsetConfig>> {
    let Subset {
        fallback_policy,
        default_subset,
        subset_selectors,
        allow_redundant_keys,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
        // By whoever compiles the list of policies.
        subset_lb_policy: _,
    } = value.clone();
    let selector = |value: subset::LbSubsetSelector| {
        let subset::LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } =
            value;
        LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset }
    };
    let older = LbSubsetConfig {
        fallback_policy,
        default_subset,
        subset_selectors: subset_selectors.into_iter().map(selector).collect(),
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
    };
    compile(&older, allow_redundant_keys)
}

fn compile(value: &LbSubsetConfig, allow_redundant_keys: bool) -> Result<Option<SubsetConfig>> {
    let LbSubsetConfig {
        fallback_policy,
        default_subset,
        subset_selectors,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
    } = value;
    let fallback = match enum_value(*fallback_policy, "fallback_policy")? {
        LbSubsetFallbackPolicy::NoFallback => SubsetFallback::None,
        LbSubsetFallbackPolicy::AnyEndpoint => SubsetFallback::Any,
        LbSubsetFallbackPolicy::DefaultSubset => SubsetFallback::Default,
    };
    let list: LbSubsetMetadataFallbackPolicy =
        enum_value(*metadata_fallback_policy, "metadata_fallback_policy")?;
    let default_subset = default_subset.clone().map(struct_to_json);
    let default_subset = default_subset.iter().filter_map(|value| value.as_object()).flatten();
    let selectors = subset_selectors
        .iter()
        .enumerate()
        .map(|(index, value)| selector(value).in_index(index).in_key("subset_selectors"))
        .collect::<Result<Box<[_]>>>()?;
    if selectors.is_empty() {
        return Ok(None);
    }
    Ok(Some(SubsetConfig {
        fallback,
        default_subset: default_subset.map(|(key, value)| Criterion::new(key, value.clone())).collect(),
        selectors,
        locality_weights: *locality_weight_aware,
        scale_locality_weights: *scale_locality_weight,
        panic_mode_any: *panic_mode_any,
        list_as_any: *list_as_any,
        allow_redundant_keys,
        fallback_list: list == LbSubsetMetadataFallbackPolicy::FallbackList,
    }))
}

fn selector(value: &LbSubsetSelector) -> Result<SubsetSelector> {
    let LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = value;
    let keys = sorted(keys);
    if keys.is_empty() {
        return Err(ConfigError::field("keys", "must not be empty"));
    }
    if *single_host_per_subset && keys.len() != 1 {
        let reason = format!("is for one key, not {}", keys.len());
        return Err(ConfigError::field("single_host_per_subset", reason));
    }
    let fewer = sorted(fallback_keys_subset);
    let fallback = match enum_value(*fallback_policy, "fallback_policy")? {
        LbSubsetSelectorFallbackPolicy::NotDefined => None,
        LbSubsetSelectorFallbackPolicy::NoFallback => Some(SubsetFallback::None),
        LbSubsetSelectorFallbackPolicy::AnyEndpoint => Some(SubsetFallback::Any),
        LbSubsetSelectorFallbackPolicy::DefaultSubset => Some(SubsetFallback::Default),
        LbSubsetSelectorFallbackPolicy::KeysSubset => {
            if fewer.is_empty() || fewer.len() == keys.len() || !fewer.iter().all(|key| keys.contains(key)) {
                let reason = "must be some of the selector's keys, and not all of them";
                return Err(ConfigError::field("fallback_keys_subset", reason));
            }
            Some(SubsetFallback::Keys(fewer))
        }
    };
    Ok(SubsetSelector { keys, single_host: *single_host_per_subset, fallback })
}

/// Each once and in order, as balancers have them.
fn sorted(keys: &[String]) -> Box<[Box<str>]> {
    keys.iter().collect::<BTreeSet<_>>().into_iter().map(|key| key.as_str().into()).collect()
}
