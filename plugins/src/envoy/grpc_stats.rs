//! Envoy's grpc_stats filter (source/extensions/filters/http/grpc_stats/grpc_stats_filter.cc): counts calls by their
//! status, under `cluster.NAME.grpc.`.

#[cfg(test)]
mod tests;

use crate::envoy;
use sixfold_core::error::ConfigError;
use sixfold_core::headers::Known;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, Plugin, Slot};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig;
use sixfold_xds_api::pb::envoy::extensions::filters::http::grpc_stats::v3::filter_config::PerMethodStatSpecifier;
use sixfold_xds_api::refuse;

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build).stateless()
}

fn build(config: FilterConfig, _: Vec<FilterConfig>, _: &BuildContext) -> Built {
    let FilterConfig {
        // What counts messages for filters and formats that there are not here.
        emit_filter_state: _,
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
        None => Ok(Plugin::of(GrpcStats).log(GrpcStats::log).build()),
    }
}

struct GrpcStats;

impl GrpcStats {
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
