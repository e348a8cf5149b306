//! What requests and responses have in common, and what their headers say about compressing them.

use crate::shared::coding::parts;
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::headers::{Headers, Known};
use sixfold_core::matcher::StringMatcher;
use sixfold_core::plugin::BuildContext;
use sixfold_xds_api::matcher;
use sixfold_xds_api::pb::envoy::config::core::v3::RuntimeFeatureFlag;
use sixfold_xds_api::pb::envoy::extensions::filters::http::compressor::v3::compressor::CommonDirectionConfig;
use sixfold_xds_api::pb::google::protobuf::UInt32Value;
use sixfold_xds_api::values::runtime_flag;
use std::sync::Arc;

/// Shorter bodies are not compressed unless that is configured.
const LEAST_LENGTH: u32 = 30;

/// What is compressed unless types are configured (compressor_filter.cc `defaultContentEncoding`).
const TYPES: [&str; 20] = [
    "text/html",
    "text/plain",
    "text/css",
    "application/javascript",
    "application/x-javascript",
    "text/javascript",
    "text/x-javascript",
    "text/ecmascript",
    "text/js",
    "text/jscript",
    "text/x-js",
    "application/ecmascript",
    "application/x-json",
    "application/xml",
    "application/json",
    "image/svg+xml",
    "text/xml",
    "application/xhtml+xml",
    "application/grpc-web",
    "application/grpc-web+proto",
];

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.compressor.LIBRARY.CODING.`, and its `request.` or `response.`.
    pub struct DirectionStats {
        counters: [
            compressed, not_compressed, total_uncompressed_bytes, total_compressed_bytes, content_length_too_small,
        ],
        gauges: [],
        histograms: [],
    }
}

/// The settings of a direction.
pub(super) struct Direction {
    pub(super) enabled: bool,
    pub(super) least_length: u64,
    pub(super) types: Types,
    pub(super) stats: DirectionStats,
}

/// Which types of content are compressed.
#[derive(Clone)]
pub(super) enum Types {
    /// These, in lower case.
    Listed(Arc<[Box<[u8]>]>),
    Matching(Arc<[StringMatcher]>),
}

impl Direction {
    // Deprecated fields mean what they meant.
    #[allow(deprecated)]
    pub(super) fn new(
        config: Option<&CommonDirectionConfig>,
        context: &BuildContext,
        stats: DirectionStats,
    ) -> Result<Direction, ConfigError> {
        let nothing = CommonDirectionConfig::default();
        let CommonDirectionConfig { enabled, min_content_length, content_type, content_type_matcher } =
            config.unwrap_or(&nothing);
        let mut direction = Direction::older(min_content_length, content_type, enabled, context, stats);
        if !content_type_matcher.is_empty() {
            let matchers = content_type_matcher.iter().enumerate();
            let matchers = collect(matchers.map(|(index, value)| matcher::string(value).in_index(index)));
            direction.types = Types::Matching(matchers.in_key("content_type_matcher")?.into());
        }
        Ok(direction)
    }

    /// From the fields that there were first.
    pub(super) fn older(
        least_length: &Option<UInt32Value>,
        types: &[String],
        enabled: &Option<RuntimeFeatureFlag>,
        context: &BuildContext,
        stats: DirectionStats,
    ) -> Direction {
        let listed = |types: &mut dyn Iterator<Item = &str>| {
            Types::Listed(types.map(|kind| kind.to_ascii_lowercase().into_bytes().into()).collect())
        };
        let least_length = least_length.as_ref().map_or(0, |length| length.value);
        Direction {
            enabled: runtime_flag(&context.runtime, enabled),
            least_length: u64::from(if least_length == 0 { LEAST_LENGTH } else { least_length }),
            types: match types {
                [] => listed(&mut TYPES.into_iter()),
                types => listed(&mut types.iter().map(String::as_str)),
            },
            stats,
        }
    }

    /// Whether the length, if the head says one, is not too small.
    pub(super) fn is_long_enough(&self, headers: &Headers) -> bool {
        let Some(length) = headers.get(Known::CONTENT_LENGTH) else { return true };
        let length: Option<u64> = std::str::from_utf8(length).ok().and_then(|text| text.parse().ok());
        let enough = length.is_some_and(|length| length >= self.least_length);
        if !enough {
            self.stats.content_length_too_small().inc();
        }
        enough
    }
}

impl Types {
    /// Whether what the head says is among them; nothing is.
    pub(super) fn allow(&self, headers: &Headers) -> bool {
        headers.get(Known::CONTENT_TYPE).is_none_or(|kind| self.has(kind))
    }

    /// Whether the type, without its parameters, is among them.
    pub(super) fn has(&self, kind: &[u8]) -> bool {
        let kind = kind.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        match self {
            Types::Listed(types) => types.iter().any(|listed| listed.eq_ignore_ascii_case(kind)),
            Types::Matching(matchers) => matchers.iter().any(|matcher| matcher.matches(kind)),
        }
    }
}

/// Whether no coding that compresses is among those of the transfer.
pub(super) fn transfer_allows(headers: &Headers) -> bool {
    const CODINGS: [&[u8]; 5] = [b"gzip", b"br", b"deflate", b"compress", b"zstd"];
    let compresses = |part: &[u8]| CODINGS.iter().any(|coding| coding.eq_ignore_ascii_case(part));
    !headers.get_all(Known::TRANSFER_ENCODING).flat_map(parts).any(compresses)
}

/// A strong validator is none of what is compressed: it goes, or becomes weak.
pub(super) fn settle_etag(headers: &mut Headers, weaken: bool) {
    let Some(etag) = headers.get(Known::ETAG) else { return };
    let is_weak = etag.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(b"W/"));
    if is_weak || etag.len() <= 2 {
        return;
    }
    if weaken {
        let weak = [b"W/", etag].concat();
        headers.set(Known::ETAG, &weak);
    } else {
        headers.remove(Known::ETAG);
    }
}

/// Says that the response depends on Accept-Encoding.
pub(super) fn vary(headers: &mut Headers) {
    const NAME: &[u8] = b"Accept-Encoding";
    match headers.get(Known::VARY) {
        None => headers.set(Known::VARY, NAME),
        Some(vary) if parts(vary).any(|part| part == NAME) => {}
        Some(vary) => {
            let both = [vary, b", ", NAME].concat();
            headers.set(Known::VARY, &both);
        }
    }
}
