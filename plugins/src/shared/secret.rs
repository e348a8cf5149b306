//! Secrets that clients show, compared so that the time taken tells nothing of them.

use aws_lc_rs::{constant_time, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

/// Whether two secrets are the same. The time depends on their lengths alone.
pub(crate) fn same(one: &[u8], other: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(one, other).is_ok()
}

/// What a secret is looked up by: where the look-up stops tells something of the digest, and so nothing of the secret.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// That of a secret.
    pub(crate) fn of(secret: &[u8]) -> Fingerprint {
        let mut fingerprint = [0; 32];
        let digest = digest::digest(&digest::SHA256, secret);
        fingerprint.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        Fingerprint(fingerprint)
    }

    /// Its bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What a secret is looked up by where it is compared whole behind that: short work, and nobody outside of the process
/// knows what it comes to.
pub(crate) fn tag(secret: &[u8]) -> [u8; 16] {
    static RANDOM: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    // Two inputs under one random key: SipHash's answers to them have nothing to do with each other.
    let [high, low] = [0u8, 1].map(|part| u128::from(RANDOM.hash_one((part, secret))));
    (high << 64 | low).to_ne_bytes()
}

/// A password as a file of htpasswd has it.
pub(crate) enum PasswordHash {
    /// `{SHA}`: base64 of the SHA-1 of the password. The text is kept, as Envoy compares it.
    Sha(Box<str>),
}

/// Bytes of a SHA-1 in base64.
const SHA_LEN: usize = 28;

impl PasswordHash {
    /// The hash in a line of htpasswd.
    ///
    /// # Errors
    /// It is of another kind, or too short or long.
    pub(crate) fn parse(text: &str) -> Result<PasswordHash, String> {
        let Some(sha) = text.strip_prefix("{SHA}") else {
            return Err("only hashes of the kind {SHA} are supported".to_owned());
        };
        if sha.len() != SHA_LEN {
            return Err(format!("the SHA hash has {} characters, and not {SHA_LEN}", sha.len()));
        }
        Ok(PasswordHash::Sha(sha.into()))
    }

    /// A hash of no password, for users that there are not: looking takes as long.
    pub(crate) fn of_nobody() -> PasswordHash {
        PasswordHash::Sha("-".repeat(SHA_LEN).into())
    }

    /// Whether it is of this password.
    pub(crate) fn is_of(&self, password: &[u8]) -> bool {
        let PasswordHash::Sha(expected) = self;
        let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, password);
        same(STANDARD.encode(digest.as_ref()).as_bytes(), expected.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tags_are_the_same_for_one_secret_alone() {
        assert_eq!(tag(b"one"), tag(b"one"));
        let all = [tag(b""), tag(b"one"), tag(b"One"), tag(b"one\0")];
        assert!((0..all.len()).all(|at| !all[..at].contains(&all[at])));
        // Neither half is made of the other.
        assert_ne!(tag(b"one")[..8], tag(b"one")[8..]);
    }

    #[test]
    fn secrets_are_compared_whole() {
        assert!(same(b"", b"") && same(b"abc", b"abc"));
        for (one, other) in [("abc", "abd"), ("abc", "ab"), ("abc", "abcd"), ("", "a"), ("abc", "ABC")] {
            assert!(!same(one.as_bytes(), other.as_bytes()));
            assert!(Fingerprint::of(one.as_bytes()) != Fingerprint::of(other.as_bytes()));
        }
    }

    #[test]
    fn passwords_are_those_of_their_hashes() {
        // htpasswd -nbs user test
        let hash = PasswordHash::parse("{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=").unwrap();
        assert!(hash.is_of(b"test") && !hash.is_of(b"Test") && !hash.is_of(b""));
        for bad in ["", "test", "{SHA}", "{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M", "$apr1$a$b", "$2y$05$a"] {
            assert!(PasswordHash::parse(bad).is_err(), "{bad}");
        }
        let nobody = PasswordHash::of_nobody();
        assert!(!nobody.is_of(b"") && !nobody.is_of(b"-"));
    }
}
