//! Content codings of bodies that stream: gzip, brotli and zstd, both ways.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub(crate) use decode::{DecodeLibrary, Decoder, Undecodable};
pub(crate) use encode::{EncodeLibrary, Encoder};

use sixfold_core::headers::{Headers, Known};
use sixfold_xds_api::pb::envoy::extensions::compression::brotli::compressor::v3 as brotli;
use sixfold_xds_api::pb::envoy::extensions::compression::gzip::compressor::v3 as gzip;
use sixfold_xds_api::pb::envoy::extensions::compression::zstd::compressor::v3 as zstd;

/// A coding of the registry of HTTP content codings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Brotli,
    Zstd,
}

impl Coding {
    /// As Content-Encoding spells it.
    pub(crate) fn token(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Brotli => "br",
            Coding::Zstd => "zstd",
        }
    }

    /// As statistics spell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Coding::Brotli => "brotli",
            other => other.token(),
        }
    }
}

/// The parts of a list.
pub(crate) fn parts(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == b',').map(<[u8]>::trim_ascii)
}

/// Whether nobody is to change the message (RFC 9111, section 5.2.2.6).
pub(crate) fn no_transform(headers: &Headers) -> bool {
    let mut parts = headers.get_all(Known::CACHE_CONTROL).flat_map(parts);
    parts.any(|part| part.eq_ignore_ascii_case(b"no-transform"))
}
