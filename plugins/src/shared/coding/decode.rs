//! Decompression, in which few bytes may stand for very many: a body gives no more than a multiple of its length, and a
//! piece no more than a multiple of its own beside the block that it ends.

use super::Coding;
use brotli_decompressor::DecompressorWriter;
use flate2::{Decompress, FlushDecompress, Status};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use sixfold_xds_api::pb::envoy::extensions::compression::brotli::decompressor::v3::Brotli;
use sixfold_xds_api::pb::envoy::extensions::compression::gzip::decompressor::v3::Gzip;
use sixfold_xds_api::pb::envoy::extensions::compression::zstd::decompressor::v3::Zstd;
use sixfold_xds_api::values::{data_source, required, u32_in};
use sixfold_xds_api::{any, refuse};
use std::io::{self, Write};
use std::sync::Arc;
use zstd::stream::write::Decoder as ZstdDecoder;

/// How many times longer than the body what it stands for may be (`max_inflate_ratio`).
const RATIO: u32 = 100;

/// Bytes that a decoder reads or writes at a time.
const CHUNK: usize = 4096;

/// Bytes of a block that come out only when all of it is there: zstd's are the longest.
const BLOCK: usize = 128 << 10;

/// How bodies are decompressed (an extension of category `envoy.compression.decompressor`).
#[derive(Debug, Clone)]
pub(crate) struct DecodeLibrary {
    /// The coding.
    pub(crate) coding: Coding,
    /// What the configuration calls it.
    pub(crate) name: String,
    window_bits: u8,
    ratio: usize,
    dictionary: Option<Arc<[u8]>>,
}

/// A body on its way through a library.
pub(crate) struct Decoder {
    kind: Kind,
    ratio: usize,
    /// Bytes that the body may still stand for.
    allowed: usize,
}

enum Kind {
    Gzip(Decompress, u8),
    Brotli(Box<DecompressorWriter<Bounded>>),
    Zstd(Box<ZstdDecoder<'static, Bounded>>),
    /// Nothing more comes out of it.
    Over,
}

/// Why no more comes out of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undecodable {
    /// It is not what its coding says.
    Invalid,
    /// It stands for more than a body of its length may.
    TooLong,
}

/// Bytes up to a bound.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = self.limit.saturating_sub(self.bytes.len());
        if room < data.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DecodeLibrary {
    /// From an extension.
    ///
    /// # Errors
    /// A library that there is not, settings that are not valid.
    pub(crate) fn new(value: &TypedExtensionConfig) -> Result<DecodeLibrary, ConfigError> {
        let TypedExtensionConfig { name, typed_config } = value;
        let config = required(typed_config, "typed_config")?;
        let kind = any::type_name(config).in_key("typed_config")?;
        let plain = |coding| DecodeLibrary {
            coding,
            name: name.clone(),
            window_bits: 15,
            ratio: RATIO as usize,
            dictionary: None,
        };
        let library = match kind.as_str() {
            "envoy.extensions.compression.gzip.decompressor.v3.Gzip" => {
                let Gzip { window_bits, chunk_size: _, max_inflate_ratio } = any::unpack(config)?;
                let bits = u32_in(&window_bits, 15, 9..=15, "typed_config.window_bits")?;
                let ratio = u32_in(&max_inflate_ratio, RATIO, 1..=1032, "typed_config.max_inflate_ratio")?;
                let window_bits = u8::try_from(bits).unwrap_or(15);
                DecodeLibrary { window_bits, ratio: ratio as usize, ..plain(Coding::Gzip) }
            }
            "envoy.extensions.compression.brotli.decompressor.v3.Brotli" => {
                // How memory is used does not show.
                let Brotli { disable_ring_buffer_reallocation: _, chunk_size: _ } = any::unpack(config)?;
                plain(Coding::Brotli)
            }
            "envoy.extensions.compression.zstd.decompressor.v3.Zstd" => {
                let Zstd { dictionaries, chunk_size: _ } = any::unpack(config)?;
                let dictionary = match dictionaries.as_slice() {
                    [] => None,
                    [one] => Some(
                        data_source(one).in_index(0).in_key("dictionaries").in_key("typed_config")?.into(),
                    ),
                    _ => {
                        return Err(ConfigError::field(
                            "typed_config.dictionaries",
                            "more than one is not supported",
                        ));
                    }
                };
                DecodeLibrary { dictionary, ..plain(Coding::Zstd) }
            }
            other => return Err(refuse::extension("decompressor library", name, other)),
        };
        library.decoder().map_err(|error| ConfigError::field("typed_config", error.to_string()))?;
        Ok(library)
    }

    /// For a body that begins.
    ///
    /// # Errors
    /// Settings that the library does not take, or no memory for it.
    pub(crate) fn decoder(&self) -> io::Result<Decoder> {
        let kind = match (self.coding, &self.dictionary) {
            (Coding::Gzip, _) => Kind::Gzip(Decompress::new_gzip(self.window_bits), self.window_bits),
            (Coding::Brotli, _) => Kind::Brotli(Box::new(DecompressorWriter::new(Bounded::default(), CHUNK))),
            (Coding::Zstd, None) => Kind::Zstd(Box::new(ZstdDecoder::new(Bounded::default())?)),
            (Coding::Zstd, Some(dictionary)) => {
                Kind::Zstd(Box::new(ZstdDecoder::with_dictionary(Bounded::default(), dictionary)?))
            }
        };
        Ok(Decoder { kind, ratio: self.ratio, allowed: 0 })
    }
}

impl Decoder {
    /// What a piece stands for, as far as that can be told, and why there is no more.
    pub(crate) fn decode(&mut self, data: &[u8]) -> (Vec<u8>, Option<Undecodable>) {
        let of_piece = data.len().saturating_mul(self.ratio);
        self.allowed = self.allowed.saturating_add(of_piece);
        let limit = self.allowed.min(of_piece.saturating_add(BLOCK));
        let (decoded, fault) = match &mut self.kind {
            Kind::Gzip(decompress, bits) => inflate(decompress, *bits, data, limit),
            Kind::Brotli(writer) => {
                writer.get_mut().limit = limit;
                let written = writer.write_all(data).and_then(|()| writer.flush());
                (std::mem::take(&mut writer.get_mut().bytes), fault(written))
            }
            Kind::Zstd(decoder) => {
                decoder.get_mut().limit = limit;
                let written = decoder.write_all(data).and_then(|()| decoder.flush());
                (std::mem::take(&mut decoder.get_mut().bytes), fault(written))
            }
            Kind::Over => (Vec::new(), None),
        };
        self.allowed = self.allowed.saturating_sub(decoded.len());
        if fault.is_some() {
            self.kind = Kind::Over;
        }
        (decoded, fault)
    }
}

fn fault(written: io::Result<()>) -> Option<Undecodable> {
    written.err().map(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => Undecodable::TooLong,
        _ => Undecodable::Invalid,
    })
}

fn inflate(
    decompress: &mut Decompress,
    bits: u8,
    data: &[u8],
    limit: usize,
) -> (Vec<u8>, Option<Undecodable>) {
    let mut out = Vec::with_capacity(data.len().saturating_mul(3).min(limit));
    let mut rest = data;
    loop {
        let before = (decompress.total_in(), out.len());
        let status = decompress.decompress_vec(rest, &mut out, FlushDecompress::None);
        let taken = usize::try_from(decompress.total_in() - before.0).unwrap_or(usize::MAX);
        rest = rest.get(taken..).unwrap_or_default();
        let moved = taken > 0 || out.len() > before.1;
        match status {
            Err(_) => return (out, Some(Undecodable::Invalid)),
            // Another member may follow (RFC 1952, section 2.2).
            Ok(Status::StreamEnd) if rest.is_empty() => return (out, None),
            Ok(Status::StreamEnd) => *decompress = Decompress::new_gzip(bits),
            Ok(_) if out.len() < out.capacity() && (rest.is_empty() || !moved) => return (out, None),
            Ok(_) if out.len() >= limit => return (out, Some(Undecodable::TooLong)),
            Ok(_) => out.reserve_exact(CHUNK.max(out.len()).min(limit - out.len())),
        }
    }
}
