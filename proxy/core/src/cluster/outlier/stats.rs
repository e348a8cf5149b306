//! What outlier detection counts.

use super::Cause;
use crate::metrics::Counter;

crate::stat_block! {
    /// Statistics under `cluster.NAME.outlier_detection.`.
    pub struct OutlierStats {
        counters: [
            ejections_overflow, ejections_enforced_total,
            // Deprecated, and asked for by older dashboards.
            ejections_total, ejections_consecutive_5xx, ejections_success_rate,
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
        zeros: [Counter "ejections_detected_degradation"],
    }
}

impl OutlierStats {
    /// Counts what has been detected. The deprecated counters go by other rules: that of successes for both origins.
    pub(super) fn count_detected(&self, cause: Cause) {
        let (detected, _) = self.of(cause);
        detected.inc();
        match cause {
            Cause::Consecutive5xx => self.ejections_consecutive_5xx().inc(),
            Cause::SuccessRate | Cause::LocalSuccessRate => self.ejections_success_rate().inc(),
            _ => {}
        }
    }

    /// Counts what may be acted on, whether it is or not.
    pub(super) fn count_allowed(&self, cause: Cause) {
        if matches!(cause, Cause::Consecutive5xx | Cause::SuccessRate) {
            self.ejections_total().inc();
        }
    }

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
