//! Outlier detection.

use std::sync::Arc;
use std::time::Duration;

use sixfold_core::cluster::{CAUSES, Cause, EventLog, FailurePercentage, OutlierDetection, SuccessRate};
use sixfold_core::error::{ConfigError, Faults};
use sixfold_core::runtime::Runtime;
use sixfold_xds_api::pb::envoy::config::cluster::v3::OutlierDetection as ProtoDetection;
use sixfold_xds_api::pb::google::protobuf::UInt32Value;
use sixfold_xds_api::refused;
use sixfold_xds_api::values::{Result, bool_or, duration_or, positive_duration, u32_in, u32_or};

use crate::context::Context;

/// Of the cluster of this name.
pub(super) fn compile(
    context: &Context,
    value: &ProtoDetection,
    name: &str,
) -> Result<Arc<OutlierDetection>> {
    let ProtoDetection {
        consecutive_5xx,
        interval,
        base_ejection_time,
        max_ejection_percent,
        enforcing_consecutive_5xx: _,
        enforcing_success_rate: _,
        success_rate_minimum_hosts,
        success_rate_request_volume,
        success_rate_stdev_factor,
        consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure: _,
        split_external_local_origin_errors,
        consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure: _,
        enforcing_local_origin_success_rate: _,
        failure_percentage_threshold,
        enforcing_failure_percentage: _,
        enforcing_failure_percentage_local_origin: _,
        failure_percentage_minimum_hosts,
        failure_percentage_request_volume,
        max_ejection_time,
        max_ejection_time_jitter,
        successful_active_health_check_uneject_host,
        monitors,
        always_eject_one_host,
        detect_degraded_hosts,
    } = value;
    let defaults = OutlierDetection::default();
    let mut faults = Faults::default();
    faults.take(refused!(monitors, detect_degraded_hosts));
    let sink = context.outlier_log.as_ref().map(|target| context.compile.log_sinks.sink(target));
    let log = faults.take(sink.transpose().map_err(ConfigError::new));
    let log = log.map(|sink| EventLog::new(sink, name));
    let base_ejection =
        faults.take(positive_duration(base_ejection_time, defaults.base_ejection, "base_ejection_time"));
    let max_ejection =
        positive_duration(max_ejection_time, defaults.max_ejection.max(base_ejection), "max_ejection_time");
    let max_ejection = faults.take(max_ejection);
    if max_ejection < base_ejection {
        let reason = "must not be shorter than base_ejection_time";
        faults.take::<()>(Err(ConfigError::field("max_ejection_time", reason)));
    }
    let jitter = duration_or(max_ejection_time_jitter, defaults.jitter, "max_ejection_time_jitter");
    let threshold = percent(
        failure_percentage_threshold,
        defaults.failure_percentage.threshold,
        "failure_percentage_threshold",
    );
    let keys = Keys(&context.runtime);
    let detection = OutlierDetection {
        interval: keys
            .time("interval_ms", faults.take(positive_duration(interval, defaults.interval, "interval"))),
        base_ejection: keys.time("base_ejection_time_ms", base_ejection),
        max_ejection: keys.time("max_ejection_time_ms", max_ejection),
        jitter: keys.time("max_ejection_time_jitter_ms", faults.take(jitter)),
        max_ejected_percent: keys
            .number(
                "max_ejection_percent",
                faults.take(percent(
                    max_ejection_percent,
                    defaults.max_ejected_percent,
                    "max_ejection_percent",
                )),
            )
            .min(100),
        always_one: bool_or(always_eject_one_host, defaults.always_one),
        back_by_check: bool_or(successful_active_health_check_uneject_host, defaults.back_by_check),
        split_local: *split_external_local_origin_errors,
        consecutive_5xx: keys.number("consecutive_5xx", u32_or(consecutive_5xx, defaults.consecutive_5xx)),
        consecutive_gateway: keys.number(
            "consecutive_gateway_failure",
            u32_or(consecutive_gateway_failure, defaults.consecutive_gateway),
        ),
        consecutive_local: keys.number(
            "consecutive_local_origin_failure",
            u32_or(consecutive_local_origin_failure, defaults.consecutive_local),
        ),
        success_rate: SuccessRate {
            hosts: keys.number(
                "success_rate_minimum_hosts",
                u32_or(success_rate_minimum_hosts, defaults.success_rate.hosts),
            ),
            requests: keys.number(
                "success_rate_request_volume",
                u32_or(success_rate_request_volume, defaults.success_rate.requests),
            ),
            stdev_factor: keys.number(
                "success_rate_stdev_factor",
                u32_or(success_rate_stdev_factor, defaults.success_rate.stdev_factor),
            ),
        },
        failure_percentage: FailurePercentage {
            hosts: keys.number(
                "failure_percentage_minimum_hosts",
                u32_or(failure_percentage_minimum_hosts, defaults.failure_percentage.hosts),
            ),
            requests: keys.number(
                "failure_percentage_request_volume",
                u32_or(failure_percentage_request_volume, defaults.failure_percentage.requests),
            ),
            threshold: keys.number("failure_percentage_threshold", faults.take(threshold)),
        },
        enforcing: faults.take(enforcing(value, defaults.enforcing, keys)),
        log,
    };
    faults.end(Arc::new(detection))
}

/// The runtime's keys, one for each field, that take the place of what is configured (source/common/upstream/
/// outlier_detection_impl.h).
#[derive(Clone, Copy)]
struct Keys<'a>(&'a Runtime);

impl Keys<'_> {
    fn number(self, key: &str, configured: u32) -> u32 {
        let number = self.0.integer(&format!("outlier_detection.{key}"), configured.into());
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// Of so many milliseconds, one at least: an interval of none would leave no time for anything else.
    fn time(self, key: &str, configured: Duration) -> Duration {
        let milliseconds = self.0.whole(&format!("outlier_detection.{key}"));
        milliseconds.map_or(configured, |milliseconds| Duration::from_millis(milliseconds.max(1)))
    }
}

/// How likely each cause ejects, in percent.
fn enforcing(value: &ProtoDetection, defaults: [u32; CAUSES], keys: Keys<'_>) -> Result<[u32; CAUSES]> {
    let mut enforcing = defaults;
    let mut faults = Faults::default();
    for (cause, value, field) in [
        (Cause::Consecutive5xx, &value.enforcing_consecutive_5xx, "enforcing_consecutive_5xx"),
        (
            Cause::GatewayFailure,
            &value.enforcing_consecutive_gateway_failure,
            "enforcing_consecutive_gateway_failure",
        ),
        (
            Cause::LocalOrigin,
            &value.enforcing_consecutive_local_origin_failure,
            "enforcing_consecutive_local_origin_failure",
        ),
        (Cause::SuccessRate, &value.enforcing_success_rate, "enforcing_success_rate"),
        (
            Cause::LocalSuccessRate,
            &value.enforcing_local_origin_success_rate,
            "enforcing_local_origin_success_rate",
        ),
        (Cause::FailurePercentage, &value.enforcing_failure_percentage, "enforcing_failure_percentage"),
        (
            Cause::LocalFailurePercentage,
            &value.enforcing_failure_percentage_local_origin,
            "enforcing_failure_percentage_local_origin",
        ),
    ] {
        let share = percent(value, defaults[cause as usize], field);
        enforcing[cause as usize] = keys.number(field, faults.take(share));
    }
    faults.end(enforcing)
}

fn percent(value: &Option<UInt32Value>, default: u32, field: &str) -> Result<u32> {
    u32_in(value, default, 0..=100, field)
}
