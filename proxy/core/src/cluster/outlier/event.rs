//! What outlier detection logs (data/cluster/v3 OutlierDetectionEvent).

use super::{Cause, Monitor, Outliers};
use crate::cluster::event_log::Event;
use std::time::{Duration, Instant};

/// What a detection was made of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Evidence {
    /// A number of failures in a row.
    InARow,
    /// A rate of success, the mean of all, and the least that is no outlier, percent.
    Rarer(f64, f64, f64),
    /// A rate of success, percent.
    TooMany(f64),
}

/// Envoy's name of a cause.
fn name(cause: Cause) -> &'static str {
    match cause {
        Cause::Consecutive5xx => "CONSECUTIVE_5XX",
        Cause::GatewayFailure => "CONSECUTIVE_GATEWAY_FAILURE",
        Cause::LocalOrigin => "CONSECUTIVE_LOCAL_ORIGIN_FAILURE",
        Cause::SuccessRate => "SUCCESS_RATE",
        Cause::LocalSuccessRate => "SUCCESS_RATE_LOCAL_ORIGIN",
        Cause::FailurePercentage => "FAILURE_PERCENTAGE",
        Cause::LocalFailurePercentage => "FAILURE_PERCENTAGE_LOCAL_ORIGIN",
    }
}

impl Outliers {
    /// Logs a detection, whether it is acted on or not.
    pub(super) fn tell_ejection(
        &self,
        monitor: &Monitor,
        (cause, evidence): (Cause, Evidence),
        enforced: bool,
        now: Instant,
    ) {
        let Some(log) = &self.config.log else { return };
        let (times, returned) = {
            let ejection = monitor.ejection.lock();
            (ejection.times, ejection.returned)
        };
        let since = returned.map(|at| now.saturating_duration_since(at));
        let whole = |percent: f64| percent as u32;
        let event = start(name(cause), since)
            .with("cluster_name", log.cluster())
            .with("upstream_url", &*monitor.host.label)
            .with("action", "EJECT")
            .with("num_ejections", times)
            .with("enforced", enforced);
        log.write(&match evidence {
            Evidence::InARow => event.with_message("eject_consecutive_event", Event::default()),
            Evidence::Rarer(rate, mean, threshold) => event.with_message(
                "eject_success_rate_event",
                Event::default()
                    .with("host_success_rate", whole(rate))
                    .with("cluster_average_success_rate", whole(mean))
                    .with("cluster_success_rate_ejection_threshold", whole(threshold)),
            ),
            Evidence::TooMany(rate) => event.with_message(
                "eject_failure_percentage_event",
                Event::default().with("host_success_rate", whole(rate)),
            ),
        });
    }

    /// Logs that an endpoint has come back. Envoy leaves its cause at the first there is.
    pub(super) fn tell_return(&self, monitor: &Monitor, times: u32, ejected: Option<Instant>, now: Instant) {
        let Some(log) = &self.config.log else { return };
        let since = ejected.map(|at| now.saturating_duration_since(at));
        let event = start(name(Cause::Consecutive5xx), since)
            .with("cluster_name", log.cluster())
            .with("upstream_url", &*monitor.host.label)
            .with("action", "UNEJECT")
            .with("num_ejections", times)
            .with("enforced", false);
        log.write(&event);
    }
}

/// `since` the last time that it left or came back.
fn start(kind: &str, since: Option<Duration>) -> Event {
    let event = Event::default().with("type", kind).now();
    match since {
        // A 64-bit number in protobuf's JSON is text.
        Some(since) => event.with("secs_since_last_action", since.as_secs().to_string()),
        None => event,
    }
}
