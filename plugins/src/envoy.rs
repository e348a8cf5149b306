//! Envoy's HTTP filters, and what all of them use: their factories, and shares of requests from their
//! protobuf messages.

mod cors;
mod fault;

use prost::{Message, Name};
use sixfold_core::plugin::{BuildContext, Plugin, PluginFactory};
use sixfold_xds_api::pb::envoy::r#type::v3::FractionalPercent;
use sixfold_xds_api::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use std::sync::Arc;

/// All of them.
pub(crate) fn factories() -> Vec<Arc<dyn PluginFactory>> {
    vec![cors::factory(), fault::factory()]
}

/// Builds a filter from its configuration and the overrides for the route, least specific first.
pub(crate) type Make = fn(config: &[u8], overrides: &[&[u8]]) -> Result<Arc<dyn Plugin>, String>;

/// The factory of a filter whose configuration has the type of this URL.
pub(crate) fn filter(type_url: &'static str, make: Make) -> Arc<dyn PluginFactory> {
    Arc::new(Factory { type_url, make })
}

struct Factory {
    type_url: &'static str,
    make: Make,
}

impl PluginFactory for Factory {
    fn name(&self) -> &'static str {
        self.type_url
    }

    fn build_filter(
        &self,
        config: &[u8],
        overrides: &[&[u8]],
        _: &BuildContext,
    ) -> Result<Arc<dyn Plugin>, String> {
        (self.make)(config, overrides)
    }
}

/// A filter's message from its bytes.
pub(crate) fn decode<M: Message + Default + Name>(bytes: &[u8]) -> Result<M, String> {
    M::decode(bytes).map_err(|e| format!("is not a valid {}: {e}", M::full_name()))
}

/// A share of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Requests that count, of `of`.
    pub(crate) numerator: u32,
    /// 100, 10,000 or 1,000,000.
    pub(crate) of: u32,
}

impl Share {
    /// type/v3/percent.proto FractionalPercent; a missing one is none.
    pub(crate) fn new(value: Option<FractionalPercent>) -> Share {
        let value = value.unwrap_or_default();
        let of = match value.denominator() {
            DenominatorType::Hundred => 100,
            DenominatorType::TenThousand => 10_000,
            DenominatorType::Million => 1_000_000,
        };
        Share { numerator: value.numerator, of }
    }

    /// Whether this request is in the share.
    pub(crate) fn draw(self) -> bool {
        fastrand::u32(..self.of) < self.numerator
    }
}
