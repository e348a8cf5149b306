//! Envoy's grpc_stats filter (source/extensions/filters/http/grpc_stats/grpc_stats_filter.cc): counts calls by their
//! status, and their messages, under `cluster.NAME.grpc.`.

#[cfg(test)]
mod tests;

use crate::envoy;
use sixfold_core::error::ConfigError;
use sixfold_core::headers::{Headers, Known};
use sixfold_core::message::is_grpc_content_type;
use sixfold_core::plugin::{
    BodyPiece, BodyStep, BuildContext, Built, FilterFactory, Plugin, Slot, Step, TrailersStep,
};
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
    match per_method_stat_specifier {
        Some(PerMethodStatSpecifier::IndividualMethodStatsAllowlist(list)) if !list.services.is_empty() => {
            Err(ConfigError::field("individual_method_stats_allowlist", "is not supported"))
        }
        Some(PerMethodStatSpecifier::StatsForAllMethods(all)) if all.value => {
            Err(ConfigError::field("stats_for_all_methods", "is not supported"))
        }
        _ => Ok(Plugin::of(GrpcStats { tells: emit_filter_state })
            .bodies_of_calls()
            .access(GrpcStats::access)
            .judging()
            .request_body(GrpcStats::request_body)
            .header_filter(GrpcStats::header_filter)
            .response_body(GrpcStats::response_body)
            .response_trailers(GrpcStats::response_trailers)
            .build()),
    }
}

struct GrpcStats {
    /// Whether the stream is told of its messages (`emit_filter_state`).
    tells: bool,
}

/// A call.
#[derive(Default)]
struct Call {
    /// Whether its cluster counts it: its path names a service and a method.
    counts: bool,
    /// Whether it is answered by gRPC.
    is_answered: bool,
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
    /// What a request is where it passes is what counts: whatever comes after may change it.
    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        if stream.request.is_grpc() {
            let counts = names_a_method(stream.request.target.path());
            stream.set_state(slot, Call { counts, ..Call::default() });
        }
        Step::Continue
    }

    fn request_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let Some(call) = stream.state::<Call>(slot) else { return BodyStep::Pass };
        let (count, counts) = (call.request.count(piece.data), call.counts);
        if self.tells {
            stream.bytes.request_messages += count;
        }
        if let Some(cluster) = stream.upstream.cluster.as_ref().filter(|_| counts) {
            cluster.stats.count_grpc_messages(count, 0);
        }
        BodyStep::Pass
    }

    fn header_filter<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        let head = &stream.response;
        let is_grpc = head.headers.get(Known::CONTENT_TYPE).is_some_and(is_grpc_content_type);
        let is_answered = head.status == 200 && is_grpc;
        let Some(call) = stream.state::<Call>(slot) else { return Step::Continue };
        call.is_answered = is_answered;
        if call.counts {
            count(stream, &stream.response.headers);
        }
        Step::Continue
    }

    fn response_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let Some(call) = stream.state::<Call>(slot).filter(|call| call.is_answered) else {
            return BodyStep::Pass;
        };
        let (count, counts) = (call.response.count(piece.data), call.counts);
        if self.tells {
            stream.bytes.response_messages += count;
        }
        if let Some(cluster) = stream.upstream.cluster.as_ref().filter(|_| counts) {
            cluster.stats.count_grpc_messages(0, count);
        }
        BodyStep::Pass
    }

    fn response_trailers(&self, stream: &mut Stream, slot: Slot) -> TrailersStep {
        if stream.state::<Call>(slot).is_some_and(|call| call.counts) {
            count(stream, &stream.response_trailers);
        }
        TrailersStep::Continue
    }
}

/// Counts the status that is among these fields. Calls that end without one are not counted, as in Envoy.
fn count(stream: &Stream, fields: &Headers) {
    if let (Some(cluster), Some(status)) = (&stream.upstream.cluster, fields.get_str(Known::GRPC_STATUS)) {
        cluster.stats.count_grpc(status);
    }
}

/// Whether a path has two parts that are not empty (source/common/grpc/common.cc, `resolveServiceAndMethod`).
fn names_a_method(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).count() == 2
}
