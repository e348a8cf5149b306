//! APISIX's prometheus: what its metrics say of requests, and their text.

mod disabled;
mod metrics;
mod render;
mod settings;
mod streams;
#[cfg(test)]
mod tests;

pub use metrics::Metrics;

use crate::apisix::message_reply;
use crate::shared::batches;
use disabled::DisabledLabels;
use http::Method;
use metrics::Observation;
use serde::Deserialize;
use serde_json::Value;
use sixfold_core::error::ConfigError;
use sixfold_core::headers::Known;
use sixfold_core::offload::{self, Lane};
use sixfold_core::plugin::{
    ApisixFactory, BuildContext, Built, Endpoint, LocalReply, Metadata, Plugin, PublicApi, SharedState, Slot,
    Step,
};
use sixfold_core::stream::Stream;
use std::sync::Arc;

pub(crate) fn factory() -> ApisixFactory {
    let schema = include_str!("../../schemas/prometheus.json");
    let factory = ApisixFactory::new("prometheus", 500, schema, Prometheus::build);
    let metadata = include_str!("../../schemas/prometheus-metadata.json");
    let factory = factory.prefer_route().endpoint(endpoint).reads_metadata(metadata, DisabledLabels::read);
    factory.in_streams(schema, streams::build).looking_on()
}

/// The page of metrics as an endpoint of the gateway: there is one where it has no port of its own
/// (`plugin_attr.prometheus.enable_export_server: false`).
fn endpoint(context: &BuildContext) -> Result<Option<Endpoint>, ConfigError> {
    let attribute = |name| context.attributes.get(name);
    if attribute("enable_export_server").and_then(Value::as_bool) != Some(false) {
        return Ok(None);
    }
    let metrics = shared(&context.shared, &context.attributes, &context.metrics)?;
    let uri = attribute("export_uri").and_then(Value::as_str).unwrap_or(EXPORT_URI);
    Ok(Some(Endpoint { uri: uri.into(), methods: [Method::GET].into(), api: Arc::new(Page(metrics)) }))
}

/// The page of metrics, for a route.
struct Page(Arc<Metrics>);

impl PublicApi for Page {
    /// It is written beside the worker: there may be many series.
    fn answer<'a>(&'a self, _: &'a mut Stream) -> Step<'a> {
        Step::Wait(Box::pin(async {
            let metrics = self.0.clone();
            let page = offload::run(Lane::Long, move || {
                let mut page = Vec::new();
                metrics.render(&mut page).map(|()| page)
            });
            Step::Respond(match page.await {
                Some(Ok(page)) => {
                    let mut reply = LocalReply::new(200, page, "");
                    reply.headers.set(Known::CONTENT_TYPE, b"text/plain");
                    reply
                }
                _ => message_reply(500, "Failed to retrieve metrics: no data available"),
            })
        }))
    }
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
    Ok(state.get_or_insert("prometheus", || Metrics::new(settings, statistics.clone(), batches::all(state))))
}

#[derive(Deserialize, Clone, Copy)]
struct Config {
    prefer_name: bool,
}

struct Prometheus {
    metrics: Arc<Metrics>,
    metadata: Arc<Metadata>,
    prefer_name: bool,
}

impl Prometheus {
    fn build(config: Config, context: &BuildContext) -> Built {
        let metrics = shared(&context.shared, &context.attributes, &context.metrics)?;
        let metadata = context.metadata.of("prometheus");
        let prometheus = Prometheus { metrics, metadata, prefer_name: config.prefer_name };
        Ok(Plugin::of(prometheus).log(Prometheus::log).build())
    }

    fn log(&self, stream: &mut Stream, _: Slot) {
        let disabled = self.metadata.get::<DisabledLabels>();
        self.metrics.record(&Observation::of(stream, self.prefer_name), stream, disabled.as_deref());
    }
}
