//! Envoy's grpc_stats filter (source/extensions/filters/http/grpc_stats/grpc_stats_filter.cc): counts calls by their
//! status, under `cluster.NAME.grpc.`.

#[cfg(test)]
mod tests;

use crate::envoy;
use sixfold_core::error::ConfigError;
use sixfold_core::headers::Known;
use sixfold_core::plugin::{BodyPiece, BodyStep, BuildContext, Built, FilterFactory, Plugin, Slot};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig;
use sixfold_xds_api::pb::envoy::extensions::filters::http::grpc_stats::v3::filter_config::PerMethodStatSpecifier;
use sixfold_xds_api::refuse;

pub(crate) fn factory() -> FilterFactory {
    envoy::routeless_filter(build).stateless()
}

fn build(config: FilterConfig, _: &BuildContext) -> Built {
    let FilterConfig {
        emit_filter_state,
        enable_upstream_stats,
        // Means something to statistics of single methods.
        replace_dots_in_grpc_service_name: _,
        per_method_stat_specifier,
    } = config;
    let enable_upstream_stats = &enable_upstream_stats;
    refuse!(enable_upstream_stats);
    let single = match per_method_stat_specifier {
        Some(PerMethodStatSpecifier::IndividualMethodStatsAllowlist(list)) => {
            (!list.services.is_empty()).then_some("individual_method_stats_allowlist")
        }
        Some(PerMethodStatSpecifier::StatsForAllMethods(all)) => all.value.then_some("stats_for_all_methods"),
        None => None,
    };
    match single {
        Some(field) => Err(ConfigError::field(field, "is not supported")),
        None if !emit_filter_state => Ok(Plugin::of(GrpcStats).log(GrpcStats::log).build()),
        None => Ok(Plugin::of(GrpcStats)
            .bodies_of_calls()
            .request_body(GrpcStats::count_requests)
            .response_body(GrpcStats::count_responses)
            .log(GrpcStats::log)
            .build()),
    }
}

struct GrpcStats;

/// How far the two bodies of a call are in their messages.
#[derive(Default)]
struct Frames {
    request: Frame,
    response: Frame,
}

/// The message that a body is in: a flag and four bytes of length before each
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
#[derive(Default)]
struct Frame {
    /// The length, as far as its bytes have come.
    head: u64,
    /// Bytes of the head that have come.
    seen: usize,
    /// Bytes of the message that are still to come.
    left: u64,
}

const HEAD: usize = 5;

impl Frame {
    /// Messages that begin in this piece.
    fn count(&mut self, mut piece: &[u8]) -> u64 {
        let mut count = 0;
        while let Some((byte, rest)) = piece.split_first() {
            if self.left > 0 {
                let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(piece.len());
                self.left -= skipped as u64;
                piece = piece.get(skipped..).unwrap_or_default();
                continue;
            }
            self.head = self.head << 8 | u64::from(*byte);
            self.seen += 1;
            piece = rest;
            if self.seen == HEAD {
                (self.left, self.head, self.seen) = (self.head & u64::from(u32::MAX), 0, 0);
                count += 1;
            }
        }
        count
    }
}

impl GrpcStats {
    fn count_requests(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        stream.bytes.request_messages += count(stream, slot, piece, |frames| &mut frames.request);
        BodyStep::Pass
    }

    fn count_responses(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        stream.bytes.response_messages += count(stream, slot, piece, |frames| &mut frames.response);
        BodyStep::Pass
    }

    /// Calls that end without a status are not counted, as in Envoy.
    fn log(&self, stream: &mut Stream, _: Slot) {
        if !stream.request.is_grpc() {
            return;
        }
        let Some(cluster) = &stream.upstream.cluster else { return };
        let trailers = stream.response_trailers.get_str(Known::GRPC_STATUS);
        let status = trailers.or_else(|| stream.response.headers.get_str(Known::GRPC_STATUS));
        if let Some(status) = status.and_then(|status| status.parse().ok()) {
            cluster.stats.count_grpc(status);
        }
    }
}

/// Messages of a call that begin in a piece.
fn count(stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>, of: fn(&mut Frames) -> &mut Frame) -> u64 {
    if !stream.request.is_grpc() {
        return 0;
    }
    if let Some(frames) = stream.state::<Frames>(slot) {
        return of(frames).count(piece.data);
    }
    let mut frames = Frames::default();
    let count = of(&mut frames).count(piece.data);
    stream.set_state(slot, frames);
    count
}
