//! What outlier detection counts.

use super::Cause;
use crate::metrics::Counter;

crate::stat_block! {
    /// Statistics under `cluster.NAME.outlier_detection.`.
    pub struct OutlierStats {
        counters: [
            ejections_overflow, ejections_enforced_total,
            ejections_detected_consecutive_5xx, ejections_enforced_consecutive_5xx,
            ejections_detected_consecutive_gateway_failure, ejections_enforced_consecutive_gateway_failure,
            ejections_detected_consecutive_local_origin_failure,
            ejections_enforced_consecutive_local_origin_failure,
            ejections_detected_success_rate, ejections_enforced_success_rate,
            ejections_detected_local_origin_success_rate, ejections_enforced_local_origin_success_rate,
            ejections_detected_failure_percentage, ejections_enforced_failure_percentage,
            ejections_detected_local_origin_failure_percentage,
            ejections_enforced_local_origin_failure_percentage,
        ],
        gauges: [ejections_active],
        histograms: [],
    }
}

impl OutlierStats {
    /// The counters of detections and of those that were acted on.
    pub(super) fn of(&self, cause: Cause) -> (Counter<'_>, Counter<'_>) {
        match cause {
            Cause::Consecutive5xx => {
                (self.ejections_detected_consecutive_5xx(), self.ejections_enforced_consecutive_5xx())
            }
            Cause::GatewayFailure => (
                self.ejections_detected_consecutive_gateway_failure(),
                self.ejections_enforced_consecutive_gateway_failure(),
            ),
            Cause::LocalOrigin => (
                self.ejections_detected_consecutive_local_origin_failure(),
                self.ejections_enforced_consecutive_local_origin_failure(),
            ),
            Cause::SuccessRate => {
                (self.ejections_detected_success_rate(), self.ejections_enforced_success_rate())
            }
            Cause::LocalSuccessRate => (
                self.ejections_detected_local_origin_success_rate(),
                self.ejections_enforced_local_origin_success_rate(),
            ),
            Cause::FailurePercentage => {
                (self.ejections_detected_failure_percentage(), self.ejections_enforced_failure_percentage())
            }
            Cause::LocalFailurePercentage => (
                self.ejections_detected_local_origin_failure_percentage(),
                self.ejections_enforced_local_origin_failure_percentage(),
            ),
        }
    }
}
