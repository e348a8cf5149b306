//! Envoy's compressor filter (source/extensions/filters/http/compressor/compressor_filter.cc): compresses bodies of
//! responses as their clients accept it, and those of requests where that is configured.

mod accept;
mod direction;
#[cfg(test)]
mod tests;

use crate::envoy;
use crate::shared::coding::{Coding, EncodeLibrary, Encoder, no_transform};
use accept::{Accepted, Candidate, Decision};
use bytes::Bytes;
use direction::{Direction, DirectionStats};
use parking_lot::Mutex;
use prost::Message;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::{Headers, Known};
use sixfold_core::message::Method;
use sixfold_core::metrics::scope;
use sixfold_core::offload::{self, Lane};
use sixfold_core::plugin::{
    BodyPiece, BodyStep, BuildContext, Built, FilterFactory, LocalReply, Plugin, Slot, Step,
};
use sixfold_core::stream::Stream;
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use sixfold_xds_api::pb::envoy::extensions::compression::gzip::compressor::v3::Gzip;
use sixfold_xds_api::pb::envoy::extensions::filters::http::compressor::v3::compressor::{
    RequestDirectionConfig, ResponseDirectionConfig,
};
use sixfold_xds_api::pb::envoy::extensions::filters::http::compressor::v3::compressor_per_route::Override;
use sixfold_xds_api::pb::envoy::extensions::filters::http::compressor::v3::{
    Compressor as Config, CompressorOverrides, CompressorPerRoute, ResponseDirectionOverrides,
};
use sixfold_xds_api::values::required;
use std::sync::Arc;

/// Bytes of a piece that are compressed on the worker; a longer one is compressed beside it.
const AT_ONCE: usize = 32 << 10;

const STATUS_HEADER: &str = "x-envoy-compression-status";

sixfold_core::stat_block! {
    /// Statistics of responses, beside those of their direction.
    pub struct ResponseStats {
        counters: [
            no_accept_header, header_identity, header_compressor_used, header_compressor_overshadowed, header_wildcard,
            header_not_valid, not_compressed_etag,
        ],
        gauges: [],
        histograms: [],
    }
}

pub(crate) fn factory() -> FilterFactory {
    let library =
        TypedExtensionConfig { name: "gzip".to_owned(), typed_config: Some(any::pack(&Gzip::default())) };
    let stand_in = Config { compressor_library: Some(library), ..Config::default() };
    envoy::filter(build).standing_in(stand_in.encode_to_vec())
}

/// The most specific level is laid over the filter's own settings.
#[allow(clippy::needless_pass_by_value)] // the form that `envoy::filter` asks for
fn build(config: Config, levels: Vec<CompressorPerRoute>, context: &BuildContext) -> Built {
    let mut filter = Compressor::new(&config, context)?;
    match levels.into_iter().next_back().map(|CompressorPerRoute { r#override }| r#override) {
        None => {}
        Some(Some(Override::Disabled(true))) => filter.response.enabled = false,
        Some(Some(Override::Disabled(false))) => return Err(ConfigError::field("disabled", "must be true")),
        Some(Some(Override::Overrides(overrides))) => filter.lay_over(&overrides).in_key("overrides")?,
        Some(None) => return Err(ConfigError::new("one of disabled and overrides is missing")),
    }
    let compresses_requests = filter.request.enabled;
    let plugin = Plugin::of(filter)
        .access(Compressor::access)
        .judging()
        .header_filter(Compressor::header_filter)
        .response_body(Compressor::response_body);
    Ok(if compresses_requests {
        plugin.request_body(Compressor::request_body).build()
    } else {
        plugin.build()
    })
}

struct Compressor {
    library: EncodeLibrary,
    request: Direction,
    response: Direction,
    response_stats: ResponseStats,
    /// For who decides between several compressors.
    candidate: Arc<Candidate>,
    disable_on_etag: bool,
    weaken_etag: bool,
    remove_accept_encoding: bool,
    uncompressible: Box<[u16]>,
    status_header: bool,
}

/// What the filter keeps of a request.
#[derive(Default)]
struct Kept {
    /// Accept-Encoding as it came here.
    accept: Option<Vec<u8>>,
    request: Option<Shared>,
    response: Option<Shared>,
}

/// An encoder that may be at work beside the worker.
type Shared = Arc<Mutex<Encoder>>;

/// Why a response is not compressed, as far as the header says it.
#[derive(Clone, Copy)]
enum Skipped {
    ContentLengthTooSmall,
    ContentTypeNotAllowed,
    EtagNotAllowed,
    StatusCodeNotAllowed,
    /// Something that the header does not say.
    Other,
}

impl Skipped {
    fn shown(self) -> Option<&'static str> {
        match self {
            Skipped::ContentLengthTooSmall => Some("ContentLengthTooSmall"),
            Skipped::ContentTypeNotAllowed => Some("ContentTypeNotAllowed"),
            Skipped::EtagNotAllowed => Some("EtagNotAllowed"),
            Skipped::StatusCodeNotAllowed => Some("StatusCodeNotAllowed"),
            Skipped::Other => None,
        }
    }
}

impl Compressor {
    // Deprecated fields mean what they meant.
    #[allow(deprecated)]
    fn new(config: &Config, context: &BuildContext) -> Result<Compressor, ConfigError> {
        let Config {
            content_length,
            content_type,
            disable_on_etag_header,
            remove_accept_encoding_header,
            runtime_enabled,
            compressor_library,
            request_direction_config,
            response_direction_config,
            choose_first,
        } = config;
        let library = required(compressor_library, "compressor_library")
            .and_then(|library| EncodeLibrary::new(library).in_key("compressor_library"))?;
        let prefix = [&*context.scope, "compressor", &library.name, library.coding.name()];
        let stats = |direction: &str| {
            let [of, compressor, name, coding] = prefix;
            DirectionStats::new(&context.metrics, &scope(&[of, compressor, name, coding, direction]))
        };
        let request = match request_direction_config {
            Some(RequestDirectionConfig { common_config }) => {
                Direction::new(common_config.as_ref(), context, stats("request"))
                    .in_key("common_config")
                    .in_key("request_direction_config")?
            }
            None => Direction { enabled: false, ..Direction::new(None, context, stats("request"))? },
        };
        // Older fields count where the newer message is missing.
        let older = ResponseDirectionConfig {
            disable_on_etag_header: *disable_on_etag_header,
            remove_accept_encoding_header: *remove_accept_encoding_header,
            ..ResponseDirectionConfig::default()
        };
        let ResponseDirectionConfig {
            common_config,
            disable_on_etag_header,
            weaken_etag_on_compress,
            remove_accept_encoding_header,
            uncompressible_response_codes,
            status_header_enabled,
        } = response_direction_config.as_ref().unwrap_or(&older);
        let response = match response_direction_config {
            Some(_) => Direction::new(common_config.as_ref(), context, stats("response"))
                .in_key("common_config")
                .in_key("response_direction_config")?,
            None => Direction::older(content_length, content_type, runtime_enabled, context, stats("")),
        };
        let [of, compressor, name, coding] = prefix;
        let response_scope = scope(&[of, compressor, name, coding]);
        Ok(Compressor {
            candidate: Arc::new(Candidate {
                coding: library.coding.token(),
                types: response.types.clone(),
                choose_first: *choose_first,
            }),
            library,
            request,
            response,
            response_stats: ResponseStats::new(&context.metrics, &response_scope),
            disable_on_etag: *disable_on_etag_header && !*weaken_etag_on_compress,
            weaken_etag: *weaken_etag_on_compress,
            remove_accept_encoding: *remove_accept_encoding_header,
            uncompressible: uncompressible_response_codes
                .iter()
                .filter_map(|code| u16::try_from(*code).ok())
                .collect(),
            status_header: *status_header_enabled,
        })
    }

    /// What a route says over the filter's own settings.
    fn lay_over(&mut self, overrides: &CompressorOverrides) -> Result<(), ConfigError> {
        let CompressorOverrides { response_direction_config, compressor_library } = overrides;
        if let Some(ResponseDirectionOverrides { remove_accept_encoding_header }) = response_direction_config
        {
            // That it is there turns compression on.
            self.response.enabled = true;
            if let Some(remove) = remove_accept_encoding_header {
                self.remove_accept_encoding = remove.value;
            }
        }
        if let Some(library) = compressor_library {
            self.library = EncodeLibrary::new(library).in_key("compressor_library")?;
            self.candidate = Arc::new(Candidate {
                coding: self.library.coding.token(),
                types: self.candidate.types.clone(),
                choose_first: self.candidate.choose_first,
            });
        }
        Ok(())
    }

    fn coding(&self) -> Coding {
        self.library.coding
    }

    fn encoder(&self) -> Option<Shared> {
        self.library.encoder().ok().map(|encoder| Arc::new(Mutex::new(encoder)))
    }

    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let accept = stream.request.headers.get(Known::ACCEPT_ENCODING).map(<[u8]>::to_vec);
        accept::register(stream, &self.candidate, accept.is_some());
        if self.response.enabled && self.remove_accept_encoding {
            stream.request.headers.remove(Known::ACCEPT_ENCODING);
        }
        let mut kept = Kept { accept, ..Kept::default() };
        let request = &stream.request;
        let compressible = self.request.enabled
            && has_body(&request.headers, Some(&request.method))
            && !request.headers.contains(Known::UPGRADE)
            && self.request.is_long_enough(&request.headers)
            && self.request.types.allow(&request.headers)
            && !request.headers.contains(Known::CONTENT_ENCODING)
            && direction::transfer_allows(&request.headers);
        kept.request = if compressible { self.encoder() } else { None };
        if kept.request.is_some() {
            let headers = &mut stream.request.headers;
            headers.remove(Known::CONTENT_LENGTH);
            headers.set(Known::CONTENT_ENCODING, self.coding().token().as_bytes());
            self.request.stats.compressed().inc();
        } else {
            self.request.stats.not_compressed().inc();
        }
        if kept.accept.is_some() || kept.request.is_some() {
            stream.set_state(slot, kept);
        }
        Step::Continue
    }

    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let accept = stream.state::<Kept>(slot).and_then(|kept| kept.accept.take());
        let may = self.response.enabled && self.response.is_long_enough(&stream.response.headers);
        let skipped = if may { self.skipped(stream) } else { Some(Skipped::ContentLengthTooSmall) };
        let has_body = !stream.ends_with_head && has_body(&stream.response.headers, None);
        let wanted = has_body && may && self.is_wanted(stream, accept.as_deref());
        let encoder = match skipped {
            None if wanted && direction::transfer_allows(&stream.response.headers) => self.encoder(),
            _ => None,
        };
        if self.status_header && self.response.enabled {
            self.show_status(&mut stream.response.headers, skipped, encoder.is_some());
        }
        let headers = &mut stream.response.headers;
        if encoder.is_some() {
            direction::settle_etag(headers, self.weaken_etag);
            headers.remove(Known::CONTENT_LENGTH);
            headers.set(Known::CONTENT_ENCODING, self.coding().token().as_bytes());
            self.response.stats.compressed().inc();
        } else {
            self.response.stats.not_compressed().inc();
        }
        // A cache must know of it also where this client does not accept the coding.
        if may && skipped.is_none() {
            direction::vary(headers);
        }
        match stream.state::<Kept>(slot) {
            Some(kept) => kept.response = encoder,
            None if encoder.is_some() => {
                stream.set_state(slot, Kept { response: encoder, ..Kept::default() });
            }
            None => {}
        }
        Step::Continue
    }

    /// Why the response can't be compressed whatever its client accepts.
    fn skipped(&self, stream: &Stream) -> Option<Skipped> {
        let response = &stream.response;
        let headers = &response.headers;
        if response.status == 101 || headers.contains(Known::UPGRADE) {
            return Some(Skipped::Other);
        }
        if !self.response.types.allow(headers) {
            return Some(Skipped::ContentTypeNotAllowed);
        }
        if no_transform(headers) {
            return Some(Skipped::Other);
        }
        if self.disable_on_etag && headers.contains(Known::ETAG) {
            self.response_stats.not_compressed_etag().inc();
            return Some(Skipped::EtagNotAllowed);
        }
        if headers.contains(Known::CONTENT_ENCODING) {
            return Some(Skipped::Other);
        }
        self.uncompressible.contains(&response.status).then_some(Skipped::StatusCodeNotAllowed)
    }

    /// Whether the client accepts this coding more than those of other compressors of the chain.
    fn is_wanted(&self, stream: &mut Stream, accept: Option<&[u8]>) -> bool {
        let stats = &self.response_stats;
        let Some(accept) = accept else {
            stats.no_accept_header().inc();
            return false;
        };
        let Decision { accepted, coding } = accept::decide(stream, accept);
        let wanted = coding == self.coding().token();
        match accepted {
            Accepted::Coding if wanted => stats.header_compressor_used().inc(),
            Accepted::Coding => stats.header_compressor_overshadowed().inc(),
            Accepted::Identity => stats.header_identity().inc(),
            Accepted::Wildcard => stats.header_wildcard().inc(),
            Accepted::Nothing => stats.header_not_valid().inc(),
        }
        wanted
    }

    /// Says what has been done and why, behind what other compressors have said.
    fn show_status(&self, headers: &mut Headers, skipped: Option<Skipped>, compressed: bool) {
        let coding = self.coding().token();
        let status = match skipped.map(Skipped::shown) {
            None if compressed => {
                // Without a length it is empty, as in Envoy.
                let length = headers.get(Known::CONTENT_LENGTH).unwrap_or_default();
                format!("{coding};Compressed;OriginalLength={}", String::from_utf8_lossy(length))
            }
            Some(Some(reason)) => format!("{coding};{reason}"),
            _ => return,
        };
        headers.join(STATUS_HEADER, b",", status.as_bytes());
    }

    fn request_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let encoder = stream.state::<Kept>(slot).and_then(|kept| kept.request.clone());
        encoder.map_or(BodyStep::Pass, |encoder| compress(encoder, piece, self.request.stats.clone()))
    }

    fn response_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let encoder = stream.state::<Kept>(slot).and_then(|kept| kept.response.clone());
        encoder.map_or(BodyStep::Pass, |encoder| compress(encoder, piece, self.response.stats.clone()))
    }
}

/// Whether a message has a body, as far as its head says. `method` is that of a request.
fn has_body(headers: &Headers, method: Option<&Method>) -> bool {
    match (headers.get(Known::CONTENT_LENGTH), method) {
        (Some(length), _) => length != b"0",
        (None, None) => true,
        (None, Some(method)) => {
            headers.contains(Known::TRANSFER_ENCODING)
                || ![Method::GET, Method::HEAD, Method::OPTIONS, Method::DELETE, Method::TRACE]
                    .contains(method)
        }
    }
}

/// Compresses a piece at once, or beside the worker if it is long.
fn compress(encoder: Shared, piece: &BodyPiece<'_>, stats: DirectionStats) -> BodyStep {
    let (last, length) = (piece.last, piece.data.len());
    let settle = move |encoded: std::io::Result<Vec<u8>>| match encoded {
        Ok(encoded) => {
            stats.total_uncompressed_bytes().add(length as u64);
            stats.total_compressed_bytes().add(encoded.len() as u64);
            BodyStep::Replace(Bytes::from(encoded))
        }
        Err(_) => failed(),
    };
    if length <= AT_ONCE {
        return settle(encoder.lock().encode(piece.data, last));
    }
    let data = piece.data.to_vec();
    BodyStep::Wait(Box::pin(async move {
        let work = move || encoder.lock().encode(&data, last);
        offload::run(Lane::of(length), work).await.map_or_else(failed, settle)
    }))
}

/// Half of a body is compressed already: what remains can't go on as it is.
fn failed() -> BodyStep {
    BodyStep::Respond(Box::new(LocalReply::new(500, "", "compression_failed")))
}
