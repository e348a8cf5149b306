//! `dynamic_resources`: what control planes and files are asked for, and how they are reached.

use std::collections::BTreeMap;

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::bootstrap::DynamicResources;
use sixfold_xds_api::pb::envoy::config::core::v3::Node;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::Result;

use crate::ads::{AdsConfig, Key, Kind, Static, Target, Wildcard};
use crate::api::{self, Api};
use crate::context::Context;
use crate::rds;

/// What is to be followed.
#[derive(Clone)]
pub struct Ads {
    /// What is asked.
    pub config: AdsConfig,
    /// Where the stream of all types goes, if there is one.
    pub target: Option<Target>,
}

impl Ads {
    /// Whether another bootstrap asks the same, by the same names.
    pub fn is_as(&self, other: &Ads) -> bool {
        let of = |ads: &Ads| {
            let Ads { config, target } = ads;
            let AdsConfig { node, ads, wildcards, statics: _ } = config.clone();
            let target = target.as_ref().map(|target| target.grpc.cluster.name.clone());
            (node, ads.map(|ads| (ads.flavor, ads.node_always)), wildcards, target)
        };
        of(self) == of(other)
    }
}

/// Reads `dynamic_resources`; `statics` are the static resources.
pub(super) fn compile(
    context: &Context,
    value: &DynamicResources,
    node: Node,
    statics: BTreeMap<Key, Static>,
) -> Result<Ads> {
    let DynamicResources { lds_config, lds_resources_locator, cds_config, cds_resources_locator, ads_config } =
        value;
    refuse!(lds_resources_locator, cds_resources_locator);
    let mut wildcards = BTreeMap::new();
    let configs = [(Kind::Cluster, cds_config, "cds_config"), (Kind::Listener, lds_config, "lds_config")];
    for (kind, value, field) in configs {
        if let Some(value) = value {
            // Of files too, as in Envoy.
            identified(&node, field)?;
            let (source, within) = rds::source(context, value).in_key(field)?;
            wildcards.insert(kind, Wildcard { source, within });
        }
    }
    let mut ads = None;
    if let Some(api) = ads_config {
        identified(&node, "ads_config")?;
        ads = Some(api::compile(context, api).in_key("ads_config")?);
    }
    let (ads, target) = ads.map(|Api { stream, target }| (stream, target)).unzip();
    Ok(Ads { config: AdsConfig { node, ads, wildcards, statics }, target })
}

/// Who asks must say who it is.
fn identified(node: &Node, field: &str) -> Result<()> {
    if node.id.is_empty() || node.cluster.is_empty() {
        let reason = "needs the id and the cluster of a node: give them in \"node\" or with --service-node and --service-cluster";
        return Err(ConfigError::field(field, reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
