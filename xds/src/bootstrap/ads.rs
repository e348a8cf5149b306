//! `dynamic_resources`: what control planes and files are asked for, and how they are reached.

use std::collections::BTreeMap;

use sixfold_core::error::{ConfigContext, ConfigError, Faults};
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
    let (mut wildcards, mut faults) = (BTreeMap::new(), Faults::default());
    let configs = [(Kind::Cluster, cds_config, "cds_config"), (Kind::Listener, lds_config, "lds_config")];
    // Of files too, as in Envoy.
    let asking = configs.iter().filter(|(_, value, _)| value.is_some()).map(|(_, _, field)| *field);
    let asking = asking.chain(ads_config.as_ref().map(|_| "ads_config")).next();
    faults.take(asking.map_or(Ok(()), |field| identified(&node, field)));
    for (kind, value, field) in configs {
        let source = value.as_ref().map(|value| rds::source(context, value).in_key(field)).transpose();
        if let Some((source, within)) = faults.take(source) {
            wildcards.insert(kind, Wildcard { source, within });
        }
    }
    let ads = ads_config.as_ref().map(|api| api::compile(context, api).in_key("ads_config")).transpose();
    let (ads, target) = faults.take(ads).map(|Api { stream, target }| (stream, target)).unzip();
    faults.end(Ads { config: AdsConfig { node, ads, wildcards, statics }, target })
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
