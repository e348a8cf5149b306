//! Istio's statistics (contrib/istio/filters/http/istio_stats): the metrics of requests by who calls whom, which Istio's dashboards
//! and tools read.

mod key;
mod labels;
mod overrides;
mod store;
mod tcp;
#[cfg(test)]
mod tests;

use crate::envoy;
use key::Key;
use labels::{End, Own, View};
use overrides::Overrides;
use prost::Message;
use sixfold_core::error::ConfigError;
use sixfold_core::format::grpc_status;
use sixfold_core::headers::Known;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, Plugin, Slot, TrafficDirection};
use sixfold_core::stream::Stream;
use sixfold_core::workload::identity;
use sixfold_xds_api::istio_pb::stats::{PluginConfig, Reporter as ProtoReporter};
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::duration_or;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::Store;
pub(crate) use tcp::factory as network_factory;

/// `tcp_reporting_duration` where it is not said.
const REPORTS_EVERY: Duration = Duration::from_secs(5);

pub(crate) fn factory() -> FilterFactory {
    // What it counts is the process's, not its connection manager's.
    envoy::routeless_filter(|config, context| build(&config, context)).stateless()
}

fn build(config: &PluginConfig, context: &BuildContext) -> Built {
    Ok(Plugin::of(IstioStats::new(config, context)?).log(IstioStats::log).build())
}

/// Whose view of a call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reporter {
    /// The caller's.
    Source,
    /// The called one's.
    Destination,
    /// That of a gateway before several workloads.
    Waypoint,
}

struct IstioStats {
    store: Arc<Store>,
    reporter: Reporter,
    /// Whether Host says which service is called, where the cluster does not.
    host_fallback: bool,
    own: Own,
    overrides: Overrides,
    /// How often connections are counted while they last; zero is never.
    reports_every: Duration,
    /// Stands for all of this in keys.
    number: u64,
}

impl IstioStats {
    fn new(config: &PluginConfig, context: &BuildContext) -> Result<IstioStats, ConfigError> {
        let number = identity(&(context.direction, config.encode_to_vec()));
        let PluginConfig {
            disable_host_header_fallback,
            // Of connections; requests are counted when they end.
            tcp_reporting_duration,
            metrics,
            definitions,
            reporter,
            // Deprecated, and without effect in Envoy too.
            rotation_interval: _,
            graceful_deletion_interval: _,
        } = config;
        refuse!(definitions);
        let reporter = match ProtoReporter::try_from(*reporter) {
            Ok(ProtoReporter::ServerGateway) => Reporter::Waypoint,
            Ok(ProtoReporter::Unspecified) if context.direction == TrafficDirection::Inbound => {
                Reporter::Destination
            }
            Ok(ProtoReporter::Unspecified) => Reporter::Source,
            Err(_) => return Err(ConfigError::field("reporter", "is unknown")),
        };
        Ok(IstioStats {
            store: Store::of(context),
            reporter,
            host_fallback: !disable_host_header_fallback,
            own: Own::new(&context.node.metadata),
            overrides: Overrides::new(metrics),
            reports_every: duration_or(tcp_reporting_duration, REPORTS_EVERY, "tcp_reporting_duration")?,
            number,
        })
    }

    /// Whether it counts as the caller.
    fn is_of_caller(&self) -> bool {
        self.reporter == Reporter::Source
    }

    fn log(&self, stream: &mut Stream, _: Slot) {
        let now = stream.timing.downstream_tx_end.unwrap_or_else(Instant::now);
        let stream = &*stream;
        let (view, end) = (View::new(self, stream), End::of(stream));
        let duration = now.saturating_duration_since(stream.timing.start).as_millis() as u64;
        let (bytes, traffic) = (&stream.bytes, stream.bytes.traffic);
        Key::with(|key| {
            view.add_to(self.number, key);
            end.add_to(key);
            self.overrides.add_to(stream, key);
            self.store.http.touch(key.bytes(), now, |counts| {
                counts.about.get_or_insert_with(|| self.about(&view, &end, &self.overrides.values(stream)));
                counts.requests += 1;
                counts.duration.record(duration);
                counts.request_bytes.record(traffic.received);
                counts.response_bytes.record(traffic.sent);
                counts.request_messages += bytes.request_messages;
                counts.response_messages += bytes.response_messages;
            });
        });
    }
}

impl End {
    fn of(stream: &Stream) -> End {
        let is_grpc = stream.request.is_grpc();
        let has_status = stream.response.status != 0
            || stream.response_trailers.contains(Known::GRPC_STATUS)
            || stream.response.headers.contains(Known::GRPC_STATUS);
        End {
            is_grpc,
            status: stream.response.status,
            grpc_status: (is_grpc && has_status).then(|| grpc_status(stream)),
            flags: stream.flags,
        }
    }
}
