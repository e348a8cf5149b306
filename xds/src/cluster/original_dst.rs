//! Clusters that connect to where the client was going.

use std::time::Duration;

use sixfold_core::cluster::{OriginalDestination, Policy};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::matcher::HeaderTarget;
use sixfold_xds_api::pb::envoy::config::cluster::v3::Cluster as ProtoCluster;
use sixfold_xds_api::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy, OriginalDstLbConfig,
};
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, port, positive_duration};

/// How often endpoints that nobody needs are forgotten unless the cluster says otherwise.
const CLEANUP: Duration = Duration::from_secs(5);
/// The header that is asked unless the cluster names another.
const HEADER: &str = "x-envoy-original-dst-host";

/// Where the destination is read.
pub(super) fn discovery(value: &ProtoCluster) -> Result<OriginalDestination> {
    let provided = value.lb_policy == LbPolicy::ClusterProvided as i32;
    if !provided || value.load_balancing_policy.is_some() {
        return Err(ConfigError::field(
            "lb_policy",
            "must be CLUSTER_PROVIDED for clusters of type ORIGINAL_DST",
        ));
    }
    if value.load_assignment.is_some() {
        return Err(ConfigError::field("load_assignment", "is not for clusters of type ORIGINAL_DST"));
    }
    let Some(LbConfig::OriginalDstLbConfig(config)) = &value.lb_config else {
        return Ok(OriginalDestination::default());
    };
    options(config).in_key("original_dst_lb_config")
}

fn options(value: &OriginalDstLbConfig) -> Result<OriginalDestination> {
    let OriginalDstLbConfig { use_http_header, http_header_name, upstream_port_override, metadata_key } =
        value;
    refuse!(metadata_key);
    let header = match (*use_http_header, http_header_name.as_str()) {
        (false, "") => None,
        (false, _) => {
            return Err(ConfigError::field("http_header_name", "means nothing without use_http_header"));
        }
        (true, "") => Some(HeaderTarget::of_request(HEADER)),
        (true, name) => Some(HeaderTarget::of_request(name)),
    };
    let port_override =
        upstream_port_override.as_ref().map(|value| port(value.value, "upstream_port_override"));
    Ok(OriginalDestination { header, port: port_override.transpose()? })
}

/// The policy of such a cluster; `None` for others, which can't leave it to themselves.
pub(super) fn policy(value: &ProtoCluster, policy: LbPolicy) -> Result<Option<Policy>> {
    let kind = ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32);
    if value.cluster_discovery_type != Some(kind) {
        return match policy {
            LbPolicy::ClusterProvided => {
                let reason = "CLUSTER_PROVIDED is for clusters of type ORIGINAL_DST";
                Err(ConfigError::field("lb_policy", reason))
            }
            _ => Ok(None),
        };
    }
    let cleanup = positive_duration(&value.cleanup_interval, CLEANUP, "cleanup_interval")?;
    Ok(Some(Policy::OriginalDst { cleanup }))
}
