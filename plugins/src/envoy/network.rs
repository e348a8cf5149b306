//! Envoy's network filters that stand before the last one of their chain, as far as they need what plugins have.

mod ext_authz;
mod local_ratelimit;
mod ratelimit;

use sixfold_core::plugin::NetworkFilterFactory;

/// All of them.
pub(crate) fn factories() -> [NetworkFilterFactory; 3] {
    [ext_authz::factory(), local_ratelimit::factory(), ratelimit::factory()]
}
