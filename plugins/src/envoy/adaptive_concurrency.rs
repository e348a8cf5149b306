//! Envoy's adaptive_concurrency filter (source/extensions/filters/http/adaptive_concurrency): as many requests at a time as
//! can be answered without their waiting for one another, as latencies tell.

mod gradient;
mod latencies;
#[cfg(test)]
mod tests;

use crate::envoy;
use gradient::{Controller, Gauges, GradientStats, Settings};
use sixfold_core::error::ConfigContext;
use sixfold_core::metrics::scope;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::AdaptiveConcurrency as Config;
use sixfold_xds_api::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::adaptive_concurrency::ConcurrencyControllerConfig;
use sixfold_xds_api::values::{one_of, runtime_flag};
use std::sync::Arc;
use std::time::Instant;

pub(crate) fn factory() -> FilterFactory {
    envoy::routeless_filter(build)
}

#[allow(clippy::needless_pass_by_value)] // the form that `envoy::routeless_filter` asks for
fn build(config: Config, context: &BuildContext) -> Built {
    let Config { enabled, concurrency_limit_exceeded_status, concurrency_controller_config } = &config;
    let is_on = runtime_flag(&context.runtime, enabled);
    let controller = one_of::<Config, _>(concurrency_controller_config, "concurrency_controller_config")?;
    let ConcurrencyControllerConfig::GradientControllerConfig(gradient) = controller;
    let settings = Settings::new(gradient).in_key("gradient_controller_config")?;
    if !is_on {
        return Ok(Plugin::default());
    }
    // What is no failure is 503, as in Envoy.
    let status = concurrency_limit_exceeded_status.and_then(|status| u16::try_from(status.code).ok());
    let prefix = scope(&[&context.scope, "adaptive_concurrency", "gradient_controller"]);
    let gauges = context.shared.get_or_insert(&format!("gauges of adaptive_concurrency {prefix}"), || {
        Gauges::new(GradientStats::new(&context.metrics, &prefix))
    });
    let filter = AdaptiveConcurrency {
        status: status.filter(|status| *status >= 400).unwrap_or(503),
        controller: Arc::new(Controller::new(settings, gauges, Instant::now())),
    };
    let plugin = Plugin::of(filter)
        .access(AdaptiveConcurrency::access)
        .foretelling(AdaptiveConcurrency::foretell)
        .log(AdaptiveConcurrency::log)
        .in_force(|filter| filter.controller.show_from_now());
    Ok(plugin.build())
}

struct AdaptiveConcurrency {
    status: u16,
    /// Of the process, over all workers.
    controller: Arc<Controller>,
}

/// A request under way; its place is free again when this is dropped, however it ended.
struct Active {
    controller: Arc<Controller>,
    began: Instant,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.controller.leave();
    }
}

impl AdaptiveConcurrency {
    fn foretell(&self, _: &Stream) -> Vec<String> {
        let status = self.status;
        vec![format!(
            "answers {status} (reached_concurrency_limit) where more requests are under way than it has found to be best"
        )]
    }

    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let now = Instant::now();
        if !self.controller.enter(now) {
            let text = "reached concurrency limit";
            return Step::Respond(LocalReply::new(self.status, text, "reached_concurrency_limit"));
        }
        stream.set_state(slot, Active { controller: self.controller.clone(), began: now });
        Step::Continue
    }

    /// Only what was answered tells how long it takes.
    fn log(&self, stream: &mut Stream, slot: Slot) {
        let Some(active) = stream.take_state::<Active>(slot) else { return };
        if stream.timing.downstream_tx_end.is_some() {
            self.controller.sample(active.began, Instant::now());
        }
    }
}
