//! What is counted of the codecs that clients speak with, of all connection managers together.

use sixfold_core::codec_stats::{Http1Counts, Http2Counts};
use sixfold_core::metrics::Registry;
use std::sync::OnceLock;

/// Of each version from its first connection on.
#[derive(Default)]
pub(crate) struct CodecStats {
    http1: OnceLock<Http1Counts>,
    http2: OnceLock<Http2Counts>,
}

impl CodecStats {
    /// Of HTTP/1.
    pub(crate) fn http1(&self, registry: &Registry) -> &Http1Counts {
        self.http1.get_or_init(|| Http1Counts::new(registry, "http1."))
    }

    /// Of HTTP/2.
    pub(crate) fn http2(&self, registry: &Registry) -> &Http2Counts {
        self.http2.get_or_init(|| Http2Counts::new(registry, "http2."))
    }
}
