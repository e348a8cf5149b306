//! Envoy's network filters that stand before the last one of their chain, as far as they need what plugins have.

mod ext_authz;
mod ratelimit;

use sixfold_core::plugin::NetworkFilterFactory;

/// All of them.
pub(crate) fn factories() -> [NetworkFilterFactory; 2] {
    [ext_authz::factory(), ratelimit::factory()]
}
