//! Envoy's decompressor filter (source/extensions/filters/http/decompressor/decompressor_filter.cc): takes the coding off
//! bodies of requests and responses.

#[cfg(test)]
mod tests;

use crate::envoy;
use crate::shared::coding::{Coding, DecodeLibrary, Decoder, Undecodable, no_transform};
use bytes::Bytes;
use parking_lot::Mutex;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::{HeaderName, Headers, Known};
use sixfold_core::metrics::scope;
use sixfold_core::offload::{self, Lane};
use sixfold_core::plugin::{BodyPiece, BodyStep, BuildContext, Built, FilterFactory, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::http::decompressor::v3::Decompressor as Config;
use sixfold_xds_api::pb::envoy::extensions::filters::http::decompressor::v3::decompressor::{
    CommonDirectionConfig, RequestDirectionConfig, ResponseDirectionConfig,
};
use sixfold_xds_api::values::{bool_or, header_name, required, runtime_flag};
use std::sync::Arc;

/// Bytes of a piece that are decompressed on the worker; a longer one is decompressed beside it, the last as well.
const AT_ONCE: usize = 8 << 10;

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.decompressor.LIBRARY.CODING.`, and its `request.` or `response.`.
    pub struct DirectionStats {
        counters: [decompressed, not_decompressed, total_uncompressed_bytes, total_compressed_bytes],
        gauges: [],
        histograms: [],
    }
}

sixfold_core::stat_block! {
    /// Statistics of gzip under the library's prefix.
    pub struct GzipStats { counters: [zlib_data_error], gauges: [], histograms: [] }
}

sixfold_core::stat_block! {
    /// Statistics of brotli under the library's prefix.
    pub struct BrotliStats { counters: [brotli_error, brotli_output_overflow], gauges: [], histograms: [] }
}

sixfold_core::stat_block! {
    /// Statistics of zstd under the library's prefix.
    pub struct ZstdStats { counters: [zstd_generic_error], gauges: [], histograms: [] }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::routeless_filter(build)
}

#[allow(clippy::needless_pass_by_value)] // the form that `envoy::routeless_filter` asks for
fn build(config: Config, context: &BuildContext) -> Built {
    let filter = Decompressor::new(&config, context)?;
    let plugin = Plugin::of(filter)
        .access(Decompressor::access)
        .judging()
        .request_body(Decompressor::request_body)
        .header_filter(Decompressor::header_filter)
        .response_body(Decompressor::response_body);
    Ok(plugin.build())
}

struct Decompressor {
    library: DecodeLibrary,
    request: Direction,
    response: Direction,
    /// Upstreams are told that the coding may be used.
    advertises: bool,
    faults: Faults,
    /// Trailers that tell how long the body was before and after.
    compressed: HeaderName,
    uncompressed: HeaderName,
}

struct Direction {
    enabled: bool,
    ignores_no_transform: bool,
    stats: DirectionStats,
}

/// Where what can't be decoded is counted.
#[derive(Clone)]
enum Faults {
    Gzip(GzipStats),
    Brotli(BrotliStats),
    Zstd(ZstdStats),
}

impl Faults {
    fn count(&self, fault: Undecodable) {
        match (self, fault) {
            (Faults::Gzip(stats), _) => stats.zlib_data_error().inc(),
            (Faults::Brotli(stats), Undecodable::TooLong) => stats.brotli_output_overflow().inc(),
            (Faults::Brotli(stats), Undecodable::Invalid) => stats.brotli_error().inc(),
            (Faults::Zstd(stats), _) => stats.zstd_generic_error().inc(),
        }
    }
}

/// What is kept of a stream, by direction.
#[derive(Default)]
struct Kept {
    request: Option<Shared>,
    response: Option<Shared>,
}

/// A body under way, perhaps at work beside the worker.
type Shared = Arc<Mutex<Body>>;

struct Body {
    decoder: Decoder,
    compressed: u64,
    uncompressed: u64,
}

impl Decompressor {
    fn new(config: &Config, context: &BuildContext) -> Result<Decompressor, ConfigError> {
        let Config { decompressor_library, request_direction_config, response_direction_config } = config;
        let library = required(decompressor_library, "decompressor_library")
            .and_then(|library| DecodeLibrary::new(library).in_key("decompressor_library"))?;
        let prefix = scope(&[&context.scope, "decompressor", &library.name, library.coding.name()]);
        let direction = |config: Option<&CommonDirectionConfig>, name: &str| {
            let nothing = CommonDirectionConfig::default();
            let CommonDirectionConfig { enabled, ignore_no_transform_header } = config.unwrap_or(&nothing);
            Direction {
                enabled: runtime_flag(&context.runtime, enabled),
                ignores_no_transform: *ignore_no_transform_header,
                stats: DirectionStats::new(&context.metrics, &scope(&[&prefix, name])),
            }
        };
        let nothing = (RequestDirectionConfig::default(), ResponseDirectionConfig::default());
        let RequestDirectionConfig { common_config: of_requests, advertise_accept_encoding } =
            request_direction_config.as_ref().unwrap_or(&nothing.0);
        let ResponseDirectionConfig { common_config: of_responses } =
            response_direction_config.as_ref().unwrap_or(&nothing.1);
        let of_library = scope(&[&prefix, "decompressor_library"]);
        let trailer = |what: &str| {
            let name = format!("x-envoy-decompressor-{}-{what}-bytes", library.name);
            header_name(&name, "name").in_key("decompressor_library")
        };
        Ok(Decompressor {
            request: direction(of_requests.as_ref(), "request"),
            response: direction(of_responses.as_ref(), "response"),
            advertises: bool_or(advertise_accept_encoding, true),
            faults: match library.coding {
                Coding::Gzip => Faults::Gzip(GzipStats::new(&context.metrics, &of_library)),
                Coding::Brotli => Faults::Brotli(BrotliStats::new(&context.metrics, &of_library)),
                Coding::Zstd => Faults::Zstd(ZstdStats::new(&context.metrics, &of_library)),
            },
            compressed: trailer("compressed")?,
            uncompressed: trailer("uncompressed")?,
            library,
        })
    }

    /// What takes the coding off a message, if it has that coding, and the head of what it becomes.
    fn begin(&self, direction: &Direction, headers: &mut Headers) -> Option<Shared> {
        let may = direction.enabled && (direction.ignores_no_transform || !no_transform(headers));
        let body = if may && self.has_coding(headers) { self.library.decoder().ok() } else { None };
        let Some(decoder) = body else {
            direction.stats.not_decompressed().inc();
            return None;
        };
        direction.stats.decompressed().inc();
        headers.remove(Known::CONTENT_LENGTH);
        let codings = headers.get(Known::CONTENT_ENCODING).unwrap_or_default();
        match codings.iter().position(|b| *b == b',').and_then(|at| codings.get(at + 1..)) {
            Some(rest) => {
                let rest = rest.trim_ascii().to_vec();
                headers.set(Known::CONTENT_ENCODING, &rest);
            }
            None => {
                headers.remove(Known::CONTENT_ENCODING);
            }
        }
        Some(Arc::new(Mutex::new(Body { decoder, compressed: 0, uncompressed: 0 })))
    }

    /// Whether the first coding of the message is this one.
    fn has_coding(&self, headers: &Headers) -> bool {
        let first =
            headers.get(Known::CONTENT_ENCODING).and_then(|codings| codings.split(|b| *b == b',').next());
        first.is_some_and(|coding| {
            coding.trim_ascii().eq_ignore_ascii_case(self.library.coding.token().as_bytes())
        })
    }

    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        if self.response.enabled && self.advertises {
            advertise(&mut stream.request.headers, self.library.coding.token());
        }
        if has_request_body(stream)
            && let Some(body) = self.begin(&self.request, &mut stream.request.headers)
        {
            stream.change_state(slot, |kept: &mut Kept| kept.request = Some(body));
        }
        Step::Continue
    }

    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let headers = &mut stream.response.headers;
        if stream.ends_with_head || headers.get(Known::CONTENT_LENGTH) == Some(b"0") {
            return Step::Continue;
        }
        let Some(body) = self.begin(&self.response, headers) else { return Step::Continue };
        stream.change_state(slot, |kept: &mut Kept| kept.response = Some(body));
        Step::Continue
    }

    fn request_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        match stream.state::<Kept>(slot).and_then(|kept| kept.request.clone()) {
            Some(body) => self.decompress(body, &self.request, piece),
            None => BodyStep::Pass,
        }
    }

    fn response_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        match stream.state::<Kept>(slot).and_then(|kept| kept.response.clone()) {
            Some(body) => self.decompress(body, &self.response, piece),
            None => BodyStep::Pass,
        }
    }

    /// Decodes a piece at once, or beside the worker if it is long. What is no encoded body, or stands for more than it may,
    /// ends where that is seen, as in Envoy.
    fn decompress(&self, body: Shared, direction: &Direction, piece: &BodyPiece<'_>) -> BodyStep {
        let (stats, faults, length) = (direction.stats.clone(), self.faults.clone(), piece.data.len());
        let names = piece.last.then(|| [self.compressed.clone(), self.uncompressed.clone()]);
        let settle = move |Decoded { bytes, fault, lengths }: Decoded| {
            if let Some(fault) = fault {
                faults.count(fault);
            }
            stats.total_compressed_bytes().add(length as u64);
            stats.total_uncompressed_bytes().add(bytes.len() as u64);
            let Some(names) = names else { return BodyStep::Replace(bytes.into()) };
            let lengths = lengths.map(|length| length.to_string().into_bytes());
            BodyStep::Finish(bytes.into(), names.into_iter().zip(lengths).collect())
        };
        if length <= AT_ONCE {
            return settle(body.lock().decode(piece.data));
        }
        let data = piece.data.to_vec();
        BodyStep::Wait(Box::pin(async move {
            let work = move || body.lock().decode(&data);
            offload::run(Lane::of(length), work).await.map_or(BodyStep::Replace(Bytes::new()), settle)
        }))
    }
}

/// What came of a piece.
struct Decoded {
    bytes: Vec<u8>,
    /// Why there is no more.
    fault: Option<Undecodable>,
    /// Bytes of the body so far, before and after.
    lengths: [u64; 2],
}

impl Body {
    fn decode(&mut self, data: &[u8]) -> Decoded {
        let (bytes, fault) = self.decoder.decode(data);
        self.compressed += data.len() as u64;
        self.uncompressed += bytes.len() as u64;
        Decoded { bytes, fault, lengths: [self.compressed, self.uncompressed] }
    }
}

/// Whether there is a body to decode: one that has a coding.
fn has_request_body(stream: &Stream) -> bool {
    let headers = &stream.request.headers;
    headers.get(Known::CONTENT_LENGTH).map_or_else(
        || headers.contains(Known::TRANSFER_ENCODING) || headers.contains(Known::CONTENT_ENCODING),
        |length| length != b"0",
    )
}

/// Says that the coding may be used, once and without a weight (`addEncodingToAcceptEncoding`).
fn advertise(headers: &mut Headers, coding: &str) {
    let accept = headers.get(Known::ACCEPT_ENCODING).unwrap_or_default().to_vec();
    let is_other = |part: &&[u8]| {
        let name = part.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        !part.is_empty() && name != coding.as_bytes()
    };
    let others = accept.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(is_other);
    let all: Vec<&[u8]> = others.chain([coding.as_bytes()]).collect();
    headers.set(Known::ACCEPT_ENCODING, &all.join(&b','));
}
