//! What cookies and the state of a sign-in are secured with, as Envoy does it, so that either reads what the other has
//! written.

use crate::shared::jwt::{from_base64url, to_base64url};
use crate::shared::secret::same;
use aws_lc_rs::cipher::{
    AES_256, DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::{digest, hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Bytes of an initialisation vector of AES.
const IV_LEN: usize = 16;

/// The secret of `hmac_secret`.
pub(super) struct Secret<'s>(pub(super) &'s [u8]);

impl Secret<'_> {
    /// base64 of the HMAC-SHA256 of a message.
    pub(super) fn sign(&self, message: &[u8]) -> String {
        STANDARD.encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, self.0), message))
    }

    /// Whether that is its signature.
    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        same(self.sign(message).as_bytes(), signature)
    }

    fn key(&self) -> Option<UnboundCipherKey> {
        UnboundCipherKey::new(&AES_256, digest::digest(&digest::SHA256, self.0).as_ref()).ok()
    }

    /// AES-256-CBC under the digest of the secret: the vector and the ciphertext in base64url.
    pub(super) fn encrypt(&self, text: &str) -> Option<String> {
        let mut sealed = text.as_bytes().to_vec();
        let key = PaddedBlockEncryptingKey::cbc_pkcs7(self.key()?).ok()?;
        let DecryptionContext::Iv128(iv) = key.encrypt(&mut sealed).ok()? else { return None };
        Some(to_base64url([iv.as_ref().as_slice(), &sealed].concat()))
    }

    /// What was encrypted so.
    pub(super) fn decrypt(&self, text: &[u8]) -> Option<String> {
        let mut sealed = from_base64url(text)?;
        let iv: [u8; IV_LEN] = sealed.get(..IV_LEN)?.try_into().ok()?;
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(self.key()?).ok()?;
        let sealed = sealed.get_mut(IV_LEN..).filter(|sealed| !sealed.is_empty())?;
        let plain = key.decrypt(sealed, DecryptionContext::Iv128(iv.into())).ok()?;
        String::from_utf8(plain.to_vec()).ok()
    }
}

/// So many random bytes; `None` if the system has none.
pub(super) fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).ok()?;
    Some(bytes)
}

/// The challenge of a verifier (RFC 7636 section 4.2, S256).
pub(super) fn challenge(verifier: &str) -> String {
    to_base64url(digest::digest(&digest::SHA256, verifier.as_bytes()))
}
