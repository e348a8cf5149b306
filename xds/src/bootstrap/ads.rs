//! `dynamic_resources`: what a control plane is asked for, and how it is reached.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::bootstrap::DynamicResources;
use sixfold_xds_api::pb::envoy::config::core::v3::{ConfigSource, Node};
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::Result;

use crate::ads::{AdsConfig, Asks, Kind, Target};
use crate::api::{self, Api};
use crate::context::Context;
use crate::rds::{self, Source};

/// A control plane to follow.
#[derive(Clone)]
pub struct Ads {
    /// What is asked.
    pub config: AdsConfig,
    /// Where.
    pub target: Target,
}

impl Ads {
    /// Whether another bootstrap asks the same control plane for the same, by the same name.
    pub fn is_as(&self, other: &Ads) -> bool {
        let of = |ads: &Ads| {
            let Ads { config, target } = ads;
            let AdsConfig { flavor, node, node_always, wildcards, backoff: _, statics: _ } = config.clone();
            (flavor, node, node_always, wildcards, target.grpc.cluster.name.clone())
        };
        of(self) == of(other)
    }
}

/// Reads `dynamic_resources`; `statics` are the static resources.
pub(super) fn compile(
    context: &Context,
    value: &DynamicResources,
    node: Node,
    statics: BTreeMap<(Kind, Arc<str>), Asks>,
) -> Result<Option<Ads>> {
    let DynamicResources { lds_config, lds_resources_locator, cds_config, cds_resources_locator, ads_config } =
        value;
    refuse!(lds_resources_locator, cds_resources_locator);
    let mut wildcards = BTreeMap::new();
    let configs = [(Kind::Cluster, cds_config, "cds_config"), (Kind::Listener, lds_config, "lds_config")];
    for (kind, value, field) in configs {
        if let Some(value) = value {
            wildcards.insert(kind, over_ads(context, value).in_key(field)?);
        }
    }
    let Some(api) = ads_config else { return Ok(None) };
    if node.id.is_empty() || node.cluster.is_empty() {
        let reason = "needs the id and the cluster of a node: give them in \"node\" or with --service-node and --service-cluster";
        return Err(ConfigError::field("ads_config", reason));
    }
    let Api { flavor, node_always, target, backoff } = api::compile(context, api).in_key("ads_config")?;
    Ok(Some(Ads { config: AdsConfig { flavor, node, node_always, wildcards, backoff, statics }, target }))
}

/// How long the first response is waited for.
fn over_ads(context: &Context, value: &ConfigSource) -> Result<Option<Duration>> {
    match rds::source(context, value)? {
        (Source::Ads, within) => Ok(within),
        _ => Err(ConfigError::new("only ads is supported")),
    }
}

#[cfg(test)]
mod tests;
