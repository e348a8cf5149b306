//! Endpoints that come by themselves.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sixfold_core::cluster::{Address, Assignment, Discovery, HostConfig, LoadPolicy};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::pb::envoy::config::cluster::v3::Cluster as ProtoCluster;
use sixfold_xds_api::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use sixfold_xds_api::pb::envoy::config::core::v3::ConfigSource;
use sixfold_xds_api::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use sixfold_xds_api::values::{Result, required};

use super::check_addresses;
use super::endpoints::{self, LoadAssignment};
use crate::context::Context;
use crate::rds::{self, Source};

/// The assignment that a cluster's endpoints come by.
pub(crate) struct Assigned {
    /// Where it comes from.
    pub(crate) source: Source,
    /// Its name.
    pub(crate) name: Arc<str>,
    /// How long a new cluster waits for it; `None` is for ever.
    pub(crate) within: Option<Duration>,
}

/// The assignment that a cluster's endpoints come by; `None` when they do not come so.
pub(crate) fn eds(context: &Context, value: &ProtoCluster) -> Result<Option<Assigned>> {
    assigned_by(value, |source| rds::source(context, source))
}

/// The same without a look at the disk: a file that is missing is found by [`eds`].
pub(super) fn eds_unseen(context: &Context, value: &ProtoCluster) -> Result<Option<Assigned>> {
    assigned_by(value, |source| rds::source_unseen(context, source))
}

fn assigned_by(
    value: &ProtoCluster,
    source: impl FnOnce(&ConfigSource) -> Result<(Source, Option<Duration>)>,
) -> Result<Option<Assigned>> {
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
    let source = source(required(eds_config, "eds_config").in_key("eds_cluster_config")?);
    let (source, within) = source.in_key("eds_config").in_key("eds_cluster_config")?;
    let name = if service_name.is_empty() { &value.name } else { service_name };
    Ok(Some(Assigned { source, name: name.as_str().into(), within }))
}

/// The endpoints of an assignment that has come by itself, and how long they are good without another; `None` is for
/// ever.
pub(crate) fn assigned(value: &ClusterLoadAssignment) -> Result<(Assignment, Option<Duration>)> {
    let LoadAssignment { hosts, overprovisioning, drop_overload, stale_after } =
        endpoints::compile(Some(value))?;
    check_addresses(&Discovery::Static, &hosts)?;
    let policy = Some(LoadPolicy { overprovisioning, drop_overload });
    Ok((Assignment { hosts: first_of_each(hosts), policy }, stale_after))
}

/// Of endpoints with one address the first alone, whatever their localities and priorities
/// (source/extensions/clusters/eds/eds.cc, `all_new_hosts`): twice as much traffic is for one of weight two.
fn first_of_each(mut hosts: Vec<HostConfig>) -> Vec<HostConfig> {
    let addresses: HashSet<&Address> = hosts.iter().map(|host| &host.address).collect();
    if addresses.len() < hosts.len() {
        let mut seen = HashSet::new();
        hosts.retain(|host| seen.insert(host.address.clone()));
    }
    hosts
}
