//! JSON Web Tokens and the keys that they are verified with (RFC 7515, 7517, 7518, 7519, 8037).
//!
//! Key objects are made when a key set arrives, each for the algorithms that its type allows: what a token says of its
//! algorithm chooses among them and can make none of another kind.

mod fault;
mod key;
mod keys;
#[cfg(test)]
pub(crate) mod tests;
mod token;

pub(crate) use fault::Fault;
pub(crate) use key::{Algorithm, OneKey};
pub(crate) use keys::KeySet;
pub(crate) use token::{Parts, Token};

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::borrow::Cow;

/// base64url (RFC 4648 section 5), with or without padding, as Envoy takes it.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true)
        .with_encode_padding(false),
);

/// The bytes that a text in base64url stands for.
pub(crate) fn from_base64url(text: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    BASE64URL.decode(text).ok()
}

/// The bytes that a text in base64url with spaces in it, and padding that is whole or not there, stands for, as Envoy reads tokens
/// and keys (`absl::WebSafeBase64Unescape`).
fn from_spaced_base64url(text: &[u8]) -> Option<Vec<u8>> {
    // C's isspace: Rust's has no vertical tab.
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let text: Cow<'_, [u8]> = match text.iter().any(is_space) {
        true => text.iter().copied().filter(|byte| !is_space(byte)).collect(),
        false => text.into(),
    };
    (!text.ends_with(b"=") || text.len().is_multiple_of(4)).then_some(())?;
    from_base64url(text)
}

/// Bytes in base64url without padding.
pub(crate) fn to_base64url(bytes: impl AsRef<[u8]>) -> String {
    BASE64URL.encode(bytes)
}
