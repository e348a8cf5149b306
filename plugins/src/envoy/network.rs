//! Envoy's network filters that stand before the last one of their chain, as far as they need what plugins have.

mod ext_authz;
mod local_ratelimit;
mod metadata_exchange;
mod ratelimit;

use super::istio_stats;
use sixfold_core::plugin::NetworkFilterFactory;

/// All of them.
pub(crate) fn factories() -> [NetworkFilterFactory; 5] {
    [
        ext_authz::factory(),
        local_ratelimit::factory(),
        istio_stats::network_factory(),
        metadata_exchange::factory(),
        ratelimit::factory(),
    ]
}
