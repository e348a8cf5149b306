//! Endpoints that come by themselves.

use std::sync::Arc;
use std::time::Duration;

use sixfold_core::cluster::{Assignment, Discovery, LoadPolicy};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::pb::envoy::config::cluster::v3::Cluster as ProtoCluster;
use sixfold_xds_api::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use sixfold_xds_api::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use sixfold_xds_api::values::{Result, required};

use super::check_addresses;
use super::endpoints::{self, LoadAssignment};
use crate::context::Context;
use crate::rds::{self, Source};

/// The name of the assignment that a cluster's endpoints come by, and how long a new cluster waits for it; `None`
/// when they do not come so.
pub(crate) fn eds(context: &Context, value: &ProtoCluster) -> Result<Option<(Arc<str>, Option<Duration>)>> {
    let is_eds = value.cluster_discovery_type == Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32));
    if !is_eds {
        let reason = "is for clusters of type EDS";
        let given =
            value.eds_cluster_config.as_ref().map(|_| ConfigError::field("eds_cluster_config", reason));
        return given.map_or(Ok(None), Err);
    }
    if value.load_assignment.is_some() {
        return Err(ConfigError::field("load_assignment", "is not for clusters of type EDS"));
    }
    let EdsClusterConfig { eds_config, service_name } =
        required(&value.eds_cluster_config, "eds_cluster_config")?;
    let source = rds::source(context, required(eds_config, "eds_config").in_key("eds_cluster_config")?);
    let (source, within) = source.in_key("eds_config").in_key("eds_cluster_config")?;
    if source != Source::Ads {
        let error = ConfigError::field("eds_config", "only ads is supported");
        return Err(error.in_key("eds_cluster_config"));
    }
    let name = if service_name.is_empty() { &value.name } else { service_name };
    Ok(Some((name.as_str().into(), within)))
}

/// The endpoints of an assignment that has come by itself, and how long they are good without another; `None` is for
/// ever.
pub(crate) fn assigned(value: &ClusterLoadAssignment) -> Result<(Assignment, Option<Duration>)> {
    let LoadAssignment { hosts, overprovisioning, drop_overload, stale_after } =
        endpoints::compile(Some(value))?;
    check_addresses(&Discovery::Static, &hosts)?;
    let policy = Some(LoadPolicy { overprovisioning, drop_overload });
    Ok((Assignment { hosts, policy }, stale_after))
}
