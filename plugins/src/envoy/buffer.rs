//! Envoy's buffer filter (source/extensions/filters/http/buffer/buffer_filter.cc): has the whole request read before it
//! goes to the upstream, and refuses one that is too long with 413.

#[cfg(test)]
mod tests;

use crate::envoy;
use sixfold_core::error::ConfigError;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, Plugin};
use sixfold_xds_api::pb::envoy::extensions::filters::http::buffer::v3::buffer_per_route::Override;
use sixfold_xds_api::pb::envoy::extensions::filters::http::buffer::v3::{Buffer, BufferPerRoute};

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build).stateless()
}

/// The most specific level counts alone.
fn build(config: Buffer, levels: Vec<BufferPerRoute>, _: &BuildContext) -> Built {
    let Buffer { max_request_bytes } = match levels.into_iter().next_back() {
        None => config,
        Some(BufferPerRoute { r#override }) => match r#override {
            Some(Override::Disabled(true)) => return Ok(Plugin::default()),
            Some(Override::Disabled(false)) => return Err(ConfigError::field("disabled", "must be true")),
            Some(Override::Buffer(buffer)) => buffer,
            None => return Err(ConfigError::new("one of disabled and buffer is missing")),
        },
    };
    match max_request_bytes {
        Some(limit) if limit.value > 0 => Ok(Plugin::of(()).needs_request_body(limit.value as usize).build()),
        _ => Err(ConfigError::field("max_request_bytes", "must be greater than 0")),
    }
}
