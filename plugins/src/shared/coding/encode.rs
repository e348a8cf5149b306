//! Compression.

use super::{Coding, brotli, gzip, zstd};
use ::brotli::CompressorWriter;
use ::brotli::enc::BrotliEncoderParams;
use ::brotli::enc::backward_references::BrotliEncoderMode;
use ::zstd::stream::write::Encoder as ZstdEncoder;
use ::zstd::zstd_safe::{CParameter, Strategy};
use flate2::{Compress, Compression, FlushCompress, Status};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use sixfold_xds_api::values::{data_source, enum_value, required, u32_in};
use sixfold_xds_api::{any, refuse};
use std::io::{self, Write};
use std::sync::Arc;

/// Bytes that an encoder writes at a time.
const CHUNK: usize = 4096;

/// How bodies are compressed (an extension of category `envoy.compression.compressor`).
#[derive(Debug, Clone)]
pub(crate) struct EncodeLibrary {
    /// The coding.
    pub(crate) coding: Coding,
    /// What the configuration calls it.
    pub(crate) name: String,
    settings: Settings,
}

#[derive(Debug, Clone)]
enum Settings {
    Gzip { level: Compression, window_bits: u8 },
    Brotli(Box<BrotliEncoderParams>),
    Zstd { level: i32, checksum: bool, strategy: Option<Strategy>, dictionary: Option<Arc<[u8]>> },
}

/// A body on its way through a library.
pub(crate) enum Encoder {
    Gzip(Compress),
    Brotli(Box<CompressorWriter<Vec<u8>>>),
    Zstd(Box<ZstdEncoder<'static, Vec<u8>>>),
    /// It has written its end.
    Over,
}

impl EncodeLibrary {
    /// From an extension.
    ///
    /// # Errors
    /// A library that there is not, settings that are not valid.
    pub(crate) fn new(value: &TypedExtensionConfig) -> Result<EncodeLibrary, ConfigError> {
        let TypedExtensionConfig { name, typed_config } = value;
        let config = required(typed_config, "typed_config")?;
        let kind = any::type_name(config).in_key("typed_config")?;
        let (coding, settings) = match kind.as_str() {
            "envoy.extensions.compression.gzip.compressor.v3.Gzip" => {
                (Coding::Gzip, of_gzip(&any::unpack(config)?))
            }
            "envoy.extensions.compression.brotli.compressor.v3.Brotli" => {
                (Coding::Brotli, of_brotli(&any::unpack(config)?))
            }
            "envoy.extensions.compression.zstd.compressor.v3.Zstd" => {
                (Coding::Zstd, of_zstd(&any::unpack(config)?))
            }
            other => return Err(refuse::extension("compressor library", name, other)),
        };
        let library =
            EncodeLibrary { coding, name: name.clone(), settings: settings.in_key("typed_config")? };
        // What the library does not take is told now and not by the first response.
        library.encoder().map_err(|error| ConfigError::field("typed_config", error.to_string()))?;
        Ok(library)
    }

    /// For a body that begins.
    ///
    /// # Errors
    /// Settings that the library does not take, or no memory for it.
    pub(crate) fn encoder(&self) -> io::Result<Encoder> {
        Ok(match &self.settings {
            Settings::Gzip { level, window_bits } => Encoder::Gzip(Compress::new_gzip(*level, *window_bits)),
            Settings::Brotli(params) => {
                Encoder::Brotli(Box::new(CompressorWriter::with_params(Vec::new(), CHUNK, params)))
            }
            Settings::Zstd { level, checksum, strategy, dictionary } => {
                let mut encoder = match dictionary {
                    Some(dictionary) => ZstdEncoder::with_dictionary(Vec::new(), *level, dictionary),
                    None => ZstdEncoder::new(Vec::new(), *level),
                }?;
                encoder.set_parameter(CParameter::ChecksumFlag(*checksum))?;
                if let Some(strategy) = strategy {
                    encoder.set_parameter(CParameter::Strategy(*strategy))?;
                }
                Encoder::Zstd(Box::new(encoder))
            }
        })
    }
}

fn of_gzip(value: &gzip::Gzip) -> Result<Settings, ConfigError> {
    let gzip::Gzip {
        // Memory and the size of pieces are the library's business: neither shows.
        memory_level: _,
        compression_level,
        // The library chooses by level.
        compression_strategy: _,
        window_bits,
        chunk_size: _,
    } = value;
    let level = match u32::try_from(*compression_level) {
        Ok(0) => Compression::default(),
        Ok(level @ 1..=9) => Compression::new(level),
        _ => return Err(ConfigError::field("compression_level", "must be between 0 and 9")),
    };
    let window_bits = u32_in(window_bits, 12, 9..=15, "window_bits")?;
    Ok(Settings::Gzip { level, window_bits: u8::try_from(window_bits).unwrap_or(15) })
}

fn of_brotli(value: &brotli::Brotli) -> Result<Settings, ConfigError> {
    let brotli::Brotli {
        quality,
        encoder_mode,
        window_bits,
        input_block_bits,
        chunk_size: _,
        disable_literal_context_modeling,
    } = value;
    let number = |value, default, range, field| u32_in(value, default, range, field).map(|n| n as i32);
    let mode = match enum_value(*encoder_mode, "encoder_mode")? {
        brotli::brotli::EncoderMode::Default | brotli::brotli::EncoderMode::Generic => {
            BrotliEncoderMode::BROTLI_MODE_GENERIC
        }
        brotli::brotli::EncoderMode::Text => BrotliEncoderMode::BROTLI_MODE_TEXT,
        brotli::brotli::EncoderMode::Font => BrotliEncoderMode::BROTLI_MODE_FONT,
    };
    Ok(Settings::Brotli(Box::new(BrotliEncoderParams {
        quality: number(quality, 3, 0..=11, "quality")?,
        mode,
        lgwin: number(window_bits, 18, 10..=24, "window_bits")?,
        lgblock: number(input_block_bits, 24, 16..=24, "input_block_bits")?,
        disable_literal_context_modeling: i32::from(*disable_literal_context_modeling),
        ..BrotliEncoderParams::default()
    })))
}

fn of_zstd(value: &zstd::Zstd) -> Result<Settings, ConfigError> {
    let zstd::Zstd { compression_level, enable_checksum, strategy, dictionary, chunk_size: _ } = value;
    use zstd::zstd::Strategy as Proto;
    let strategy = match enum_value(*strategy, "strategy")? {
        Proto::Default => None,
        Proto::Fast => Some(Strategy::ZSTD_fast),
        Proto::Dfast => Some(Strategy::ZSTD_dfast),
        Proto::Greedy => Some(Strategy::ZSTD_greedy),
        Proto::Lazy => Some(Strategy::ZSTD_lazy),
        Proto::Lazy2 => Some(Strategy::ZSTD_lazy2),
        Proto::Btlazy2 => Some(Strategy::ZSTD_btlazy2),
        Proto::Btopt => Some(Strategy::ZSTD_btopt),
        Proto::Btultra => Some(Strategy::ZSTD_btultra),
        Proto::Btultra2 => Some(Strategy::ZSTD_btultra2),
    };
    let dictionary = dictionary.as_ref().map(data_source).transpose().in_key("dictionary")?;
    Ok(Settings::Zstd {
        level: u32_in(compression_level, 3, 1..=22, "compression_level")? as i32,
        checksum: *enable_checksum,
        strategy,
        dictionary: dictionary.map(Into::into),
    })
}

impl Encoder {
    /// What goes on of a piece: all of it, so that what was sent can be read, and with the `last` one the end.
    ///
    /// # Errors
    /// What the library says; nothing more can be encoded then.
    pub(crate) fn encode(&mut self, data: &[u8], last: bool) -> io::Result<Vec<u8>> {
        match self {
            Encoder::Gzip(compress) => {
                let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
                deflate(compress, data, flush)
            }
            Encoder::Brotli(writer) => {
                writer.write_all(data)?;
                if !last {
                    writer.flush()?;
                    return Ok(std::mem::take(writer.get_mut()));
                }
                match std::mem::replace(self, Encoder::Over) {
                    Encoder::Brotli(writer) => Ok(writer.into_inner()),
                    _ => Ok(Vec::new()),
                }
            }
            Encoder::Zstd(encoder) => {
                encoder.write_all(data)?;
                if !last {
                    encoder.flush()?;
                    return Ok(std::mem::take(encoder.get_mut()));
                }
                match std::mem::replace(self, Encoder::Over) {
                    Encoder::Zstd(encoder) => encoder.finish(),
                    _ => Ok(Vec::new()),
                }
            }
            Encoder::Over => Ok(Vec::new()),
        }
    }
}

fn deflate(compress: &mut Compress, data: &[u8], flush: FlushCompress) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity((data.len() / 2).max(CHUNK / 4));
    let before = compress.total_in();
    loop {
        let taken = usize::try_from(compress.total_in() - before).unwrap_or(usize::MAX);
        let status = compress.compress_vec(data.get(taken..).unwrap_or_default(), &mut out, flush)?;
        let has_room = out.len() < out.capacity();
        match (flush, status) {
            (FlushCompress::Finish, Status::StreamEnd) => return Ok(out),
            // All that there is has been written once there is room left.
            (FlushCompress::Sync, _) if has_room => return Ok(out),
            _ => out.reserve(CHUNK),
        }
    }
}
