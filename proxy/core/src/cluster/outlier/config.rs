//! What outlier detection is told.

use crate::cluster::EventLog;
use std::time::Duration;

/// Which endpoints are outliers, and for how long they leave (Envoy's OutlierDetection).
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierDetection {
    /// Time between looks at rates, and at who may come back; 10 s by default.
    pub interval: Duration,
    /// Time that an endpoint leaves for the first time, and so much longer each time; 30 s by default.
    pub base_ejection: Duration,
    /// It never leaves for longer; 300 s by default, at least the time of the first.
    pub max_ejection: Duration,
    /// Added to that: anything below this, by chance. 0 by default.
    pub jitter: Duration,
    /// Endpoints that may be gone at once, percent of all; 10 by default.
    pub max_ejected_percent: u32,
    /// One may leave whatever that says.
    pub always_one: bool,
    /// An active check that an endpoint passes lets it come back; true by default.
    pub back_by_check: bool,
    /// Failures of this proxy's own (connections, time) do not count as 503 and 504, but apart.
    pub split_local: bool,
    /// Statuses of 500 and more in a row, 5 by default; 0 never.
    pub consecutive_5xx: u32,
    /// Statuses 502, 503 and 504 in a row, 5 by default; 0 never.
    pub consecutive_gateway: u32,
    /// Failures of this proxy's own in a row, 5 by default; 0 never.
    pub consecutive_local: u32,
    /// Rates of success that are far below the others'.
    pub success_rate: SuccessRate,
    /// Rates of failure that are too high by themselves.
    pub failure_percentage: FailurePercentage,
    /// Share of detections that are acted on, percent, by [`Cause`]; by default all but those of gateways' failures and of
    /// percentages of failures, which are 0.
    pub enforcing: [u32; CAUSES],
    /// Where it is logged who leaves and comes back (`cluster_manager.outlier_detection` of a bootstrap).
    pub log: Option<EventLog>,
}

impl Default for OutlierDetection {
    /// What Envoy's fields say when they are not set.
    fn default() -> OutlierDetection {
        OutlierDetection {
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            jitter: Duration::ZERO,
            max_ejected_percent: 10,
            always_one: false,
            back_by_check: true,
            split_local: false,
            consecutive_5xx: 5,
            consecutive_gateway: 5,
            consecutive_local: 5,
            success_rate: SuccessRate { hosts: 5, requests: 100, stdev_factor: 1900 },
            failure_percentage: FailurePercentage { hosts: 5, requests: 50, threshold: 85 },
            enforcing: [100, 0, 100, 100, 100, 0, 0],
            log: None,
        }
    }
}

/// When a rate of success is an outlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuccessRate {
    /// Endpoints with enough requests that there must be, 5 by default.
    pub hosts: u32,
    /// Requests in an interval that are enough, 100 by default.
    pub requests: u32,
    /// Standard deviations below the mean, in thousandths; 1900 by default.
    pub stdev_factor: u32,
}

/// When a rate of failure is too high.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailurePercentage {
    /// Endpoints with enough requests that there must be, 5 by default.
    pub hosts: u32,
    /// Requests in an interval that are enough, 50 by default.
    pub requests: u32,
    /// Percent, 85 by default.
    pub threshold: u32,
}

/// Why an endpoint is an outlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Statuses of 500 and more.
    Consecutive5xx,
    /// 502, 503, 504.
    GatewayFailure,
    /// Failures of this proxy's own.
    LocalOrigin,
    /// Success is rarer than with the others.
    SuccessRate,
    /// The same of failures of this proxy's own.
    LocalSuccessRate,
    /// Failures are too many.
    FailurePercentage,
    /// The same of failures of this proxy's own.
    LocalFailurePercentage,
}

/// Number of [`Cause`]s.
pub const CAUSES: usize = 7;
