//! Envoy's bandwidth_limit filter (source/extensions/filters/http/bandwidth_limit): bodies go on no faster than configured,
//! all of them together.

#[cfg(test)]
mod tests;

use crate::envoy;
use crate::shared::token_bucket::TokenBucket;
use bytes::Bytes;
use sixfold_core::error::ConfigError;
use sixfold_core::headers::HeaderName;
use sixfold_core::metrics::scope;
use sixfold_core::plugin::{
    BodyPiece, BodyStep, BuildContext, Built, Direction, FilterFactory, Plugin, Slot, Step,
};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::http::bandwidth_limit::v3::BandwidthLimit as Config;
use sixfold_xds_api::pb::envoy::extensions::filters::http::bandwidth_limit::v3::bandwidth_limit::EnableMode;
use sixfold_xds_api::values::{enum_value, header_name, optional_duration, runtime_flag};
use std::time::{Duration, Instant};

/// How much is there at first: what comes in this time.
const FILL_INTERVAL: Duration = Duration::from_millis(50);

sixfold_core::stat_block! {
    /// Statistics under `STAT_PREFIX.http_bandwidth_limit.`.
    pub struct BandwidthStats {
        counters: [
            request_enabled, response_enabled, request_enforced, response_enforced, request_incoming_total_size,
            response_incoming_total_size, request_allowed_total_size, response_allowed_total_size,
        ],
        gauges: [request_pending, response_pending],
        // Of the last piece that came, and that went on.
        numbers: [request_incoming_size, request_allowed_size, response_incoming_size, response_allowed_size],
        histograms: [request_transfer_duration, response_transfer_duration],
    }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build).told_apart()
}

/// The most specific configuration holds whole.
fn build(own: Config, levels: Vec<Config>, context: &BuildContext) -> Built {
    if levels.iter().any(|level| level.limit_kbps.is_none()) {
        return Err(ConfigError::field("limit_kbps", "is missing: settings of a route must have one"));
    }
    let config = levels.into_iter().next_back().unwrap_or(own);
    let Config {
        stat_prefix,
        enable_mode,
        limit_kbps,
        fill_interval,
        runtime_enabled,
        enable_response_trailers,
        response_trailer_prefix,
    } = &config;
    let mode: EnableMode = enum_value(*enable_mode, "enable_mode")?;
    if mode == EnableMode::Disabled || !runtime_flag(&context.runtime, runtime_enabled) {
        return Ok(Plugin::default());
    }
    let Some(limit) = limit_kbps.as_ref().filter(|limit| limit.value > 0) else {
        return Err(ConfigError::field("limit_kbps", "must be at least 1"));
    };
    let interval = optional_duration(fill_interval, "fill_interval")?.unwrap_or(FILL_INTERVAL);
    let filter = BandwidthLimit {
        kib: limit.value,
        bucket: TokenBucket::paced(limit.value as f64 * 1024.0, interval, Instant::now()),
        trailers: enable_response_trailers.then(|| Trailers::new(response_trailer_prefix)).transpose()?,
        stats: BandwidthStats::new(&context.metrics, &scope(&[stat_prefix, "http_bandwidth_limit"])),
    };
    let mut plugin = Plugin::of(filter);
    if mode != EnableMode::Response {
        plugin = plugin
            .access(BandwidthLimit::access)
            .foretelling(BandwidthLimit::foretell)
            .request_body(BandwidthLimit::request_body);
    }
    if mode != EnableMode::Request {
        plugin =
            plugin.header_filter(BandwidthLimit::header_filter).response_body(BandwidthLimit::response_body);
    }
    Ok(plugin.build())
}

struct BandwidthLimit {
    /// KiB a second.
    kib: u64,
    /// Bytes, of both directions and all streams.
    bucket: TokenBucket,
    trailers: Option<Trailers>,
    stats: BandwidthStats,
}

/// Names of the trailers that tell how long bodies took, and how much of that they waited here.
struct Trailers {
    request: HeaderName,
    request_filter: HeaderName,
    response: HeaderName,
    response_filter: HeaderName,
}

impl Trailers {
    fn new(prefix: &str) -> Result<Trailers, ConfigError> {
        let name = |what: &str| match prefix {
            "" => header_name(&format!("bandwidth-{what}-delay-ms"), "response_trailer_prefix"),
            prefix => header_name(&format!("{prefix}-bandwidth-{what}-delay-ms"), "response_trailer_prefix"),
        };
        Ok(Trailers {
            request: name("request")?,
            request_filter: name("request-filter")?,
            response: name("response")?,
            response_filter: name("response-filter")?,
        })
    }
}

/// What is known of the bodies of a stream.
#[derive(Default)]
struct Bodies {
    request: Body,
    response: Body,
}

#[derive(Default)]
struct Body {
    /// When the first piece came; it counts as pending from then on.
    began: Option<(Instant, Pending)>,
    waited: Duration,
    took: Duration,
}

/// A body that counts as pending until it is over, however that comes.
struct Pending(BandwidthStats, Direction);

impl Pending {
    fn new(stats: &BandwidthStats, direction: Direction) -> Pending {
        match direction {
            Direction::Request => stats.request_pending().inc(),
            Direction::Response => stats.response_pending().inc(),
        }
        Pending(stats.clone(), direction)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        match self.1 {
            Direction::Request => self.0.request_pending().dec(),
            Direction::Response => self.0.response_pending().dec(),
        }
    }
}

impl BandwidthLimit {
    fn foretell(&self, _: &Stream) -> Vec<String> {
        vec![format!("lets {} KiB of bodies pass a second, of all requests together", self.kib)]
    }

    fn access(&self, _: &mut Stream, _: Slot) -> Step<'_> {
        self.stats.request_enabled().inc();
        Step::Continue
    }

    fn header_filter(&self, _: &mut Stream, _: Slot) -> Step<'_> {
        self.stats.response_enabled().inc();
        Step::Continue
    }

    fn request_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        self.body(Direction::Request, stream, slot, piece)
    }

    fn response_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        self.body(Direction::Response, stream, slot, piece)
    }

    /// A piece goes on once the bytes of it are there; what comes behind it waits for it.
    fn body(&self, direction: Direction, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let now = tokio::time::Instant::now().into_std();
        let (wait, took) = stream.change_state(slot, |bodies: &mut Bodies| {
            let body = match direction {
                Direction::Request => &mut bodies.request,
                Direction::Response => &mut bodies.response,
            };
            if body.began.is_none() {
                body.began = Some((now, Pending::new(&self.stats, direction)));
            }
            let wait = self.bucket.reserve(piece.data.len() as f64, now);
            body.waited += wait;
            if piece.last {
                let began = body.began.take().map_or(now, |(began, _)| began);
                body.took = now.saturating_duration_since(began) + wait;
            }
            (wait, body.took)
        });
        self.count(direction, piece, wait, took);
        if piece.last && direction == Direction::Response {
            self.tell(stream, slot);
        }
        if wait.is_zero() {
            return BodyStep::Pass;
        }
        let data = Bytes::copy_from_slice(piece.data);
        BodyStep::Wait(Box::pin(async move {
            tokio::time::sleep(wait).await;
            BodyStep::Replace(data)
        }))
    }

    fn count(&self, direction: Direction, piece: &BodyPiece<'_>, wait: Duration, took: Duration) {
        let (stats, bytes) = (&self.stats, piece.data.len() as u64);
        let (enforced, totals, sizes, duration) = match direction {
            Direction::Request => (
                stats.request_enforced(),
                [stats.request_incoming_total_size(), stats.request_allowed_total_size()],
                [stats.request_incoming_size(), stats.request_allowed_size()],
                stats.request_transfer_duration(),
            ),
            Direction::Response => (
                stats.response_enforced(),
                [stats.response_incoming_total_size(), stats.response_allowed_total_size()],
                [stats.response_incoming_size(), stats.response_allowed_size()],
                stats.response_transfer_duration(),
            ),
        };
        totals.iter().for_each(|total| total.add(bytes));
        // The end may come by itself, which is no piece in Envoy.
        if bytes > 0 {
            sizes.iter().for_each(|size| size.set(bytes));
        }
        if !wait.is_zero() {
            enforced.inc();
        }
        if piece.last {
            duration.record(took.as_millis() as u64);
        }
    }

    /// Tells the client how long the bodies took.
    fn tell(&self, stream: &mut Stream, slot: Slot) {
        let Some(names) = &self.trailers else { return };
        let Some(Bodies { request, response }) = stream.state::<Bodies>(slot) else { return };
        let told = [
            (&names.request, request.took),
            (&names.request_filter, request.waited),
            (&names.response, response.took),
            (&names.response_filter, response.waited),
        ];
        for (name, time) in told.into_iter().filter(|(_, time)| !time.is_zero()) {
            stream.response_trailers.set(name, time.as_millis().to_string().as_bytes());
        }
    }
}
