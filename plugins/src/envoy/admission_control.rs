//! Envoy's admission_control filter (source/extensions/filters/http/admission_control): refuses a part of the requests
//! when too few of the last ones succeeded, the more the fewer.

#[cfg(test)]
mod tests;
mod window;

use crate::envoy;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::Known;
use sixfold_core::metrics::scope;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::config::core::v3::{RuntimePercent, RuntimeUInt32};
use sixfold_xds_api::pb::envoy::extensions::filters::http::admission_control::v3::AdmissionControl as Config;
use sixfold_xds_api::pb::envoy::extensions::filters::http::admission_control::v3::admission_control::success_criteria::{
    GrpcCriteria, HttpCriteria,
};
use sixfold_xds_api::pb::envoy::extensions::filters::http::admission_control::v3::admission_control::{
    EvaluationCriteria, SuccessCriteria,
};
use sixfold_xds_api::pb::envoy::r#type::v3::Int32Range;
use sixfold_xds_api::values::{one_of, optional_duration, runtime_double, runtime_flag, runtime_integer};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use window::Window;

const WINDOW: Duration = Duration::from_secs(30);

/// gRPC statuses that are failures unless others are configured: ABORTED, DATA_LOSS, DEADLINE_EXCEEDED, INTERNAL,
/// RESOURCE_EXHAUSTED, UNAVAILABLE (success_criteria_evaluator.cc).
const FAILURES: [u32; 6] = [10, 15, 4, 13, 8, 14];

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.admission_control.`.
    pub struct AdmissionStats { counters: [rq_rejected, rq_success, rq_failure], gauges: [], histograms: [] }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::routeless_filter(build)
}

#[allow(clippy::needless_pass_by_value)] // the form that `envoy::routeless_filter` asks for
fn build(config: Config, context: &BuildContext) -> Built {
    let Config {
        enabled,
        sampling_window,
        aggression,
        sr_threshold,
        rps_threshold,
        max_rejection_probability,
        evaluation_criteria,
    } = &config;
    let is_on = runtime_flag(&context.runtime, enabled);
    if !is_on {
        return Ok(Plugin::default());
    }
    let window = optional_duration(sampling_window, "sampling_window")?.unwrap_or(WINDOW);
    let percent = |value: &Option<RuntimePercent>, default: f64| {
        let configured =
            value.as_ref().and_then(|value| value.default_value.as_ref()).map(|percent| percent.value);
        let key = value.as_ref().map_or("", |value| value.runtime_key.as_str());
        (context.runtime.number(key, configured.unwrap_or(default)) / 100.0).clamp(0.0, 1.0)
    };
    let rps = |value: &RuntimeUInt32| runtime_integer(&context.runtime, value) as f64;
    let filter = Admission {
        window: Arc::new(Window::new(window, Instant::now())),
        aggression: runtime_double(&context.runtime, aggression, 1.0).max(1.0),
        threshold: percent(sr_threshold, 95.0).max(0.01),
        least_rps: rps_threshold.as_ref().map_or(0.0, rps),
        most: percent(max_rejection_probability, 80.0),
        success: Success::new(one_of::<Config, _>(evaluation_criteria, "evaluation_criteria")?)?,
        stats: AdmissionStats::new(&context.metrics, &scope(&[&context.scope, "admission_control"])),
    };
    Ok(Plugin::of(filter)
        .access(Admission::access)
        .foretelling(Admission::foretell)
        .log(Admission::log)
        .build())
}

struct Admission {
    /// Of the process, where Envoy has one for each of its threads.
    window: Arc<Window>,
    aggression: f64,
    /// The share of successes at which nothing is refused.
    threshold: f64,
    /// Fewer requests a second are all let through.
    least_rps: f64,
    /// The probability that is never exceeded.
    most: f64,
    success: Success,
    stats: AdmissionStats,
}

/// What counts as a success.
struct Success {
    http: Box<[Range<i32>]>,
    /// `None`: all but [`FAILURES`].
    grpc: Option<Box<[u32]>>,
}

/// The request was let through, and its end counts.
struct Admitted;

impl Success {
    fn new(value: &EvaluationCriteria) -> Result<Success, ConfigError> {
        let EvaluationCriteria::SuccessCriteria(SuccessCriteria { http_criteria, grpc_criteria }) = value;
        let http = match http_criteria {
            None => std::iter::once(100..500).collect(),
            Some(HttpCriteria { http_success_status }) => {
                let ranges = http_success_status.iter().enumerate().map(|(index, range)| {
                    let Int32Range { start, end } = *range;
                    // An empty range holds nothing; Envoy's own example has one.
                    if start <= end && (100..600).contains(&start) && (100..=600).contains(&end) {
                        return Ok(start..end);
                    }
                    Err(ConfigError::new("must be a range of statuses between 100 and 600").in_index(index))
                });
                let ranges: Result<Box<[_]>, _> = ranges.collect();
                ranges.in_key("http_success_status").in_key("http_criteria").in_key("success_criteria")?
            }
        };
        let grpc = grpc_criteria
            .as_ref()
            .map(|GrpcCriteria { grpc_success_status }| grpc_success_status.as_slice().into());
        Ok(Success { http, grpc })
    }

    /// Of a stream that has ended.
    fn holds(&self, stream: &Stream) -> bool {
        let response = &stream.response;
        if !response.headers.get(Known::CONTENT_TYPE).is_some_and(sixfold_core::message::is_grpc_content_type)
        {
            return self.http.iter().any(|range| range.contains(&i32::from(response.status)));
        }
        let status = response
            .headers
            .get(Known::GRPC_STATUS)
            .or_else(|| stream.response_trailers.get(Known::GRPC_STATUS));
        let status = status.and_then(|status| std::str::from_utf8(status).ok()?.parse().ok());
        match (&self.grpc, status) {
            (_, None) => false,
            (Some(listed), Some(status)) => listed.contains(&status),
            (None, Some(status)) => !FAILURES.contains(&status),
        }
    }
}

impl Admission {
    fn foretell(&self, _: &Stream) -> Vec<String> {
        let (most, threshold) = (self.most * 100.0, self.threshold * 100.0);
        let when =
            format!("up to {most} % of requests where less than {threshold} % of those before succeeded");
        vec![format!("answers 503 (denied_by_admission_control) to {when}")]
    }

    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let counts = self.window.counts(Instant::now());
        if counts.rps >= self.least_rps && fastrand::f64() < self.probability(counts.total, counts.successes)
        {
            self.stats.rq_rejected().inc();
            return Step::Respond(LocalReply::new(503, "", "denied_by_admission_control"));
        }
        stream.set_state(slot, Admitted);
        Step::Continue
    }

    /// ((requests - successes / threshold) / (requests + 1)) ^ (1 / aggression), at most what is configured.
    fn probability(&self, total: f64, successes: f64) -> f64 {
        let share = (total - successes / self.threshold) / (total + 1.0);
        let share = if self.aggression == 1.0 { share } else { share.max(0.0).powf(1.0 / self.aggression) };
        share.clamp(0.0, self.most)
    }

    fn log(&self, stream: &mut Stream, slot: Slot) {
        if stream.take_state::<Admitted>(slot).is_none() {
            return;
        }
        let success = self.success.holds(stream);
        self.window.add(success, Instant::now());
        if success {
            self.stats.rq_success().inc();
        } else {
            self.stats.rq_failure().inc();
        }
    }
}
