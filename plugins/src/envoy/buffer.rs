//! Envoy's buffer filter (source/extensions/filters/http/buffer/buffer_filter.cc): has the whole request read before it
//! goes on to the next filter, announces its length, and refuses one that is too long with 413.

#[cfg(test)]
mod tests;

use crate::envoy;
use sixfold_core::error::ConfigError;
use sixfold_core::headers::Known;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, Plugin, ReadBody, Slot, Step};
use sixfold_core::stream::Stream;
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
        Some(limit) if limit.value > 0 => {
            let limit = limit.value as usize;
            Ok(Plugin::of(RequestBuffer { limit })
                .access(RequestBuffer::access)
                .foretelling(RequestBuffer::foretell)
                .build())
        }
        _ => Err(ConfigError::field("max_request_bytes", "must be greater than 0")),
    }
}

/// The filter of a route.
struct RequestBuffer {
    /// Bytes.
    limit: usize,
}

impl RequestBuffer {
    fn foretell(&self, _: &Stream) -> Vec<String> {
        vec![format!(
            "holds a body until all of it has come, and answers 413 to more than {} bytes",
            self.limit
        )]
    }

    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        if let Some(step) = ReadBody::whole(self.limit).ask(stream, slot) {
            return step;
        }
        let headers = &mut stream.request.headers;
        if let Some(body) = &stream.request_body
            && !headers.contains(Known::CONTENT_LENGTH)
        {
            headers.set(Known::CONTENT_LENGTH, itoa::Buffer::new().format(body.len()).as_bytes());
        }
        Step::Continue
    }
}
