//! What a bootstrap says of all clusters (`cluster_manager`).

use sixfold_core::access_log::LogTarget;
use sixfold_core::error::ConfigContext;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::ClusterManager;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::cluster_manager::OutlierDetection;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::Result;

use crate::access_log;

/// For every cluster.
#[derive(Debug, Default)]
pub(super) struct OfAll {
    /// Where outlier detection logs (`outlier_detection.event_log_path`).
    pub(super) outlier_log: Option<LogTarget>,
}

pub(super) fn compile(value: &ClusterManager) -> Result<OfAll> {
    let ClusterManager {
        local_cluster_name,
        outlier_detection,
        upstream_bind_config,
        load_stats_config,
        // A cluster is made once for all workers.
        enable_deferred_cluster_creation: _,
    } = value;
    refuse!(local_cluster_name, upstream_bind_config, load_stats_config);
    let outlier_log = outlier_detection.as_ref().map(outlier_log).transpose().in_key("outlier_detection")?;
    Ok(OfAll { outlier_log: outlier_log.flatten() })
}

fn outlier_log(value: &OutlierDetection) -> Result<Option<LogTarget>> {
    let OutlierDetection { event_log_path, event_service } = value;
    refuse!(event_service);
    Ok((!event_log_path.is_empty()).then(|| access_log::target(event_log_path)))
}
