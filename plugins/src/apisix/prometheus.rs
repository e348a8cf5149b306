//! APISIX's prometheus: what its metrics say of requests, and their text.

mod metrics;
mod render;
mod settings;
#[cfg(test)]
mod tests;

pub use metrics::Metrics;

use crate::apisix::{self, Made};
use metrics::Observation;
use serde::Deserialize;
use sixfold_core::plugin::{BuildContext, Phases, Plugin, PluginFactory, SharedState};
use sixfold_core::stream::Stream;
use std::sync::Arc;

pub(crate) fn factory() -> Arc<dyn PluginFactory> {
    apisix::apisix("prometheus", 500, include_str!("../../schemas/prometheus.json"), Prometheus::make)
}

/// Where the page of metrics is by default (`plugin_attr.prometheus.export_uri`).
pub const EXPORT_URI: &str = "/apisix/prometheus/metrics";

/// The metrics of the process, as `plugin_attr.prometheus` sets them up; the first caller's settings hold
/// for as long as anybody keeps the metrics. Whoever serves the page keeps them and calls
/// [`Metrics::render`].
///
/// # Errors
/// Settings that can't be used.
pub fn shared(
    state: &SharedState,
    attributes: &serde_json::Value,
    statistics: &sixfold_core::metrics::Registry,
) -> Result<Arc<Metrics>, String> {
    let settings = settings::Settings::new(attributes)?;
    Ok(state.get_or_insert("prometheus", || Metrics::new(settings, statistics.clone())))
}

#[derive(Deserialize, Clone, Copy)]
struct Config {
    #[serde(default)]
    prefer_name: bool,
}

struct Prometheus {
    metrics: Arc<Metrics>,
    prefer_name: bool,
}

impl Prometheus {
    fn make(config: Config, context: &BuildContext) -> Made {
        let metrics = shared(&context.shared, &context.attributes, &context.metrics)?;
        Ok(Arc::new(Prometheus { metrics, prefer_name: config.prefer_name }))
    }
}

impl Plugin for Prometheus {
    fn name(&self) -> &str {
        "prometheus"
    }

    fn phases(&self) -> Phases {
        Phases::LOG
    }

    fn log(&self, stream: &mut Stream, _slot: usize) {
        self.metrics.record(&Observation::of(stream, self.prefer_name), stream);
    }
}
