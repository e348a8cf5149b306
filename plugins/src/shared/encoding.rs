//! Encodings of bodies that plugins can undo.

use brotli_decompressor::Decompressor;
use flate2::read::MultiGzDecoder;
use std::io::Read;

/// An encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Gzip,
    Brotli,
}

/// Why a body was not decoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undecoded {
    #[error("the body is not what its encoding says: {0}")]
    Invalid(#[from] std::io::Error),
    #[error("the decoded body is longer than {0} bytes")]
    TooLong(usize),
}

/// Bytes of compressed input that brotli reads at a time.
const BUFFER: usize = 4096;

impl Encoding {
    /// The encoding that a Content-Encoding names; `None` for any other.
    pub(crate) fn named(value: &[u8]) -> Option<Encoding> {
        match value.trim_ascii() {
            b"gzip" => Some(Encoding::Gzip),
            b"br" => Some(Encoding::Brotli),
            _ => None,
        }
    }

    /// The body without its encoding, of at most `limit` bytes. An empty one has none, whatever its head says.
    pub(crate) fn decode(self, body: &[u8], limit: usize) -> Result<Vec<u8>, Undecoded> {
        match self {
            _ if body.is_empty() => Ok(Vec::new()),
            Encoding::Gzip => read(MultiGzDecoder::new(body), limit),
            Encoding::Brotli => read(Decompressor::new(body, BUFFER), limit),
        }
    }
}

fn read(body: impl Read, limit: usize) -> Result<Vec<u8>, Undecoded> {
    let mut decoded = Vec::new();
    body.take(limit as u64 + 1).read_to_end(&mut decoded)?;
    if decoded.len() > limit { Err(Undecoded::TooLong(limit)) } else { Ok(decoded) }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    pub(crate) fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// One uncompressed block of up to 64 KiB behind a header for a window of 64 KiB (RFC 7932, section 9.2), and the
    /// empty last block.
    pub(crate) fn brotli(text: &[u8]) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap() - 1;
        // WBITS 16 is one zero bit; ISLAST 0; MNIBBLES 4 is two zero bits; 16 bits of length; ISUNCOMPRESSED.
        let head: u32 = length << 4 | 1 << 20;
        let mut out = head.to_le_bytes()[..3].to_vec();
        out.extend_from_slice(text);
        out.push(3);
        out
    }

    #[test]
    fn bodies_are_decoded_within_a_bound() {
        for (name, encoded) in [("gzip", gzip(b"hello")), ("br", brotli(b"hello"))] {
            let encoding = Encoding::named(name.as_bytes()).unwrap();
            assert_eq!(encoding.decode(&encoded, 5).unwrap(), b"hello", "{name}");
            assert!(matches!(encoding.decode(&encoded, 4), Err(Undecoded::TooLong(4))), "{name}");
            assert!(matches!(encoding.decode(&encoded[..4], 5), Err(Undecoded::Invalid(_))), "{name}");
            assert!(matches!(encoding.decode(b"hello", 5), Err(Undecoded::Invalid(_))), "{name}");
            assert!(matches!(encoding.decode(b"", 5), Ok(empty) if empty.is_empty()), "{name}");
        }
        let bomb = gzip(&vec![0; 50 << 20]);
        assert!(bomb.len() < 64 << 10);
        assert!(matches!(Encoding::Gzip.decode(&bomb, 1 << 20), Err(Undecoded::TooLong(_))));
        assert_eq!([Encoding::named(b"zstd"), Encoding::named(b"gzip, br")], [None, None]);
    }
}
