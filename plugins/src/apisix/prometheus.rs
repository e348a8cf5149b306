//! APISIX's prometheus: what its metrics say of requests, and their text.

mod metrics;
mod render;
mod settings;
#[cfg(test)]
mod tests;

pub use metrics::Metrics;

use metrics::Observation;
use serde::Deserialize;
use sixfold_core::error::ConfigError;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, Plugin, SharedState, Slot};
use sixfold_core::stream::Stream;
use std::sync::Arc;

pub(crate) fn factory() -> ApisixFactory {
    let schema = include_str!("../../schemas/prometheus.json");
    ApisixFactory::new("prometheus", 500, schema, Prometheus::build).prefer_route()
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
) -> Result<Arc<Metrics>, ConfigError> {
    let settings = settings::Settings::new(attributes)?;
    Ok(state.get_or_insert("prometheus", || Metrics::new(settings, statistics.clone())))
}

#[derive(Deserialize, Clone, Copy)]
struct Config {
    prefer_name: bool,
}

struct Prometheus {
    metrics: Arc<Metrics>,
    prefer_name: bool,
}

impl Prometheus {
    fn build(config: Config, context: &BuildContext) -> Built {
        let metrics = shared(&context.shared, &context.attributes, &context.metrics)?;
        let prometheus = Prometheus { metrics, prefer_name: config.prefer_name };
        Ok(Plugin::of(prometheus).log(Prometheus::log).build())
    }

    fn log(&self, stream: &mut Stream, _: Slot) {
        self.metrics.record(&Observation::of(stream, self.prefer_name), stream);
    }
}
