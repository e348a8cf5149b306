//! Requests that a cluster in maintenance turns away (source/common/router/router.cc).

use sixfold_core::cluster::Cluster;
use sixfold_core::flags::Flag;
use sixfold_core::hcm::HttpConnectionManager;
use sixfold_core::headers::Known;
use sixfold_core::plugin::LocalReply;

/// The answer to a request that the cluster turns away.
pub(super) fn refusal(cluster: &Cluster, hcm: &HttpConnectionManager) -> Option<LocalReply> {
    let percent = u32::from(cluster.config.maintenance);
    if percent == 0 || fastrand::u32(..100) >= percent {
        return None;
    }
    cluster.stats.upstream_rq_maintenance_mode().inc();
    let mut reply = LocalReply::new(503, "maintenance mode", "maintenance_mode");
    reply.flag = Some(Flag::UO);
    if !hcm.router.suppress_envoy_headers {
        reply.headers.append(Known::X_ENVOY_OVERLOADED, b"true");
    }
    Some(reply)
}
