//! What a bootstrap says of all clusters (`cluster_manager`).

use std::collections::BTreeSet;
use std::sync::Arc;

use sixfold_core::access_log::LogTarget;
use sixfold_core::error::ConfigContext;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::ClusterManager;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::cluster_manager::OutlierDetection;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::Result;

use crate::access_log;
use crate::context::unknown_cluster;

/// For every cluster.
#[derive(Debug, Default)]
pub(super) struct OfAll {
    /// Where outlier detection logs (`outlier_detection.event_log_path`).
    pub(super) outlier_log: Option<LogTarget>,
    /// The cluster of this proxy and those like it.
    pub(super) local_cluster: Option<Arc<str>>,
}

/// `clusters` are those of the bootstrap.
pub(super) fn compile(value: &ClusterManager, clusters: &BTreeSet<String>) -> Result<OfAll> {
    let ClusterManager {
        local_cluster_name,
        outlier_detection,
        upstream_bind_config,
        load_stats_config,
        // A cluster is made once for all workers.
        enable_deferred_cluster_creation: _,
    } = value;
    refuse!(upstream_bind_config, load_stats_config);
    if !local_cluster_name.is_empty() && !clusters.contains(local_cluster_name) {
        let known = clusters.iter().map(String::as_str);
        let unknown = unknown_cluster(local_cluster_name, " in static_resources", known);
        return Err(unknown.in_key("local_cluster_name"));
    }
    let local_cluster = (!local_cluster_name.is_empty()).then(|| local_cluster_name.as_str().into());
    let outlier_log = outlier_detection.as_ref().map(outlier_log).transpose().in_key("outlier_detection")?;
    Ok(OfAll { outlier_log: outlier_log.flatten(), local_cluster })
}

fn outlier_log(value: &OutlierDetection) -> Result<Option<LogTarget>> {
    let OutlierDetection { event_log_path, event_service } = value;
    refuse!(event_service);
    Ok((!event_log_path.is_empty()).then(|| access_log::target(event_log_path)))
}
