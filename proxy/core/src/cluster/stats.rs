//! Statistics of a cluster.

use super::grpc_stats::GrpcStats;
use crate::metrics::{Counter, Registry, count_class};
use std::ops::Deref;
use std::sync::OnceLock;

crate::stat_block! {
    /// The fixed part of a cluster's statistics, as Envoy names them.
    pub struct ClusterCounts {
        counters: [
            upstream_cx_total, upstream_cx_http1_total, upstream_cx_http2_total, upstream_cx_connect_fail,
            upstream_cx_connect_timeout, upstream_cx_idle_timeout, upstream_cx_overflow, upstream_cx_destroy,
            upstream_cx_destroy_local, upstream_cx_destroy_remote, upstream_cx_max_requests,
            upstream_cx_max_duration_reached, upstream_cx_none_healthy, upstream_cx_rx_bytes_total,
            upstream_cx_tx_bytes_total, upstream_cx_protocol_error,
            upstream_rq_total, upstream_rq_completed, upstream_rq_timeout, upstream_rq_per_try_timeout,
            upstream_rq_per_try_idle_timeout, upstream_rq_max_duration_reached, upstream_rq_rx_reset,
            upstream_rq_tx_reset, upstream_rq_cancelled, upstream_rq_maintenance_mode, upstream_rq_pending_total,
            upstream_rq_pending_overflow, upstream_rq_active_overflow, upstream_rq_pending_failure_eject,
            upstream_rq_retry, upstream_rq_retry_success, upstream_rq_retry_overflow,
            upstream_rq_retry_limit_exceeded, upstream_rq_retry_backoff_exponential,
            upstream_rq_retry_backoff_ratelimited,
            upstream_rq_1xx, upstream_rq_2xx, upstream_rq_3xx, upstream_rq_4xx, upstream_rq_5xx,
            upstream_rq_200, upstream_rq_201, upstream_rq_204, upstream_rq_301, upstream_rq_302, upstream_rq_304,
            upstream_rq_400, upstream_rq_401, upstream_rq_403, upstream_rq_404, upstream_rq_409, upstream_rq_429,
            upstream_rq_500, upstream_rq_502, upstream_rq_503, upstream_rq_504,
            lb_healthy_panic, lb_recalculate_zone_structures, membership_change, update_attempt, update_success,
            update_failure, update_empty, bind_errors, retry_or_shadow_abandoned, ssl_handshake,
            ssl_fail_verify_error, ssl_connection_error, original_dst_host_invalid,
        ],
        gauges: [
            upstream_cx_active, upstream_rq_active, upstream_rq_pending_active, membership_total,
            membership_healthy, membership_degraded, membership_excluded,
        ],
        histograms: [upstream_rq_time, upstream_cx_connect_ms],
    }
}

/// Statistics under `cluster.NAME.`.
pub struct ClusterStats {
    counts: ClusterCounts,
    /// Where statistics that are made later are shown; `None` where none are.
    registry: Option<Registry>,
    grpc: OnceLock<GrpcStats>,
}

impl ClusterStats {
    /// Zeros for the cluster of this name.
    pub fn named(registry: &Registry, name: &str) -> ClusterStats {
        let counts = ClusterCounts::new(registry, &format!("cluster.{name}."));
        ClusterStats { counts, registry: Some(registry.clone()), grpc: OnceLock::new() }
    }

    /// Statistics that nobody counts, for a source whose surfaces show none.
    pub fn none() -> ClusterStats {
        ClusterStats { counts: ClusterCounts::none(), registry: None, grpc: OnceLock::new() }
    }

    /// Counts a gRPC call by its status, under `grpc.`; the first call of a cluster makes the place.
    pub fn count_grpc(&self, status: u32) {
        let (Some(registry), Some(block)) = (&self.registry, &self.counts.0) else { return };
        let made = || GrpcStats::new(registry, &format!("{}grpc.", block.prefix()));
        self.grpc.get_or_init(made).count(status);
    }

    /// Counts a completed request by its status: code, class and completion.
    pub fn count_status(&self, status: u16) {
        self.upstream_rq_completed().inc();
        count_class(
            status,
            [
                self.upstream_rq_1xx(),
                self.upstream_rq_2xx(),
                self.upstream_rq_3xx(),
                self.upstream_rq_4xx(),
                self.upstream_rq_5xx(),
            ],
        );
        if let Some(code) = self.code(status) {
            code.inc();
        }
    }

    fn code(&self, status: u16) -> Option<Counter<'_>> {
        Some(match status {
            200 => self.upstream_rq_200(),
            201 => self.upstream_rq_201(),
            204 => self.upstream_rq_204(),
            301 => self.upstream_rq_301(),
            302 => self.upstream_rq_302(),
            304 => self.upstream_rq_304(),
            400 => self.upstream_rq_400(),
            401 => self.upstream_rq_401(),
            403 => self.upstream_rq_403(),
            404 => self.upstream_rq_404(),
            409 => self.upstream_rq_409(),
            429 => self.upstream_rq_429(),
            500 => self.upstream_rq_500(),
            502 => self.upstream_rq_502(),
            503 => self.upstream_rq_503(),
            504 => self.upstream_rq_504(),
            _ => return None,
        })
    }
}

impl Deref for ClusterStats {
    type Target = ClusterCounts;
    fn deref(&self) -> &ClusterCounts {
        &self.counts
    }
}
