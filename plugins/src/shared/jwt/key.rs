//! Keys, each with what it may verify.

use super::{Fault, Token, from_spaced_base64url};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{self, ParsedPublicKey, RsaPublicKeyComponents, VerificationAlgorithm};
use aws_lc_rs::{constant_time, hmac};
use serde_json::{Map, Value};
use std::borrow::Cow;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// How a token is signed (RFC 7518 section 3.1, RFC 8037). There is no `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
    Hs256,
    Hs384,
    Hs512,
}

use Algorithm::{EdDsa, Es256, Es384, Es512, Hs256, Hs384, Hs512, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};

const OF_RSA: [Algorithm; 6] = [Rs256, Rs384, Rs512, Ps256, Ps384, Ps512];
const OF_SECRETS: [Algorithm; 3] = [Hs256, Hs384, Hs512];

impl Algorithm {
    /// The algorithm of that name.
    pub(crate) fn named(name: &str) -> Option<Algorithm> {
        Some(match name {
            "RS256" => Rs256,
            "RS384" => Rs384,
            "RS512" => Rs512,
            "PS256" => Ps256,
            "PS384" => Ps384,
            "PS512" => Ps512,
            "ES256" => Es256,
            "ES384" => Es384,
            "ES512" => Es512,
            "EdDSA" => EdDsa,
            "HS256" => Hs256,
            "HS384" => Hs384,
            "HS512" => Hs512,
            _ => return None,
        })
    }

    /// How signatures by public keys are verified.
    fn of_public_keys(self) -> Option<&'static dyn VerificationAlgorithm> {
        Some(match self {
            Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            Es256 => &signature::ECDSA_P256_SHA256_FIXED,
            Es384 => &signature::ECDSA_P384_SHA384_FIXED,
            Es512 => &signature::ECDSA_P521_SHA512_FIXED,
            EdDsa => &signature::ED25519,
            Hs256 | Hs384 | Hs512 => return None,
        })
    }

    /// How signatures by RSA keys of fewer than 2,048 bits are verified.
    fn of_short_keys(self) -> Option<&'static dyn VerificationAlgorithm> {
        match self {
            Rs256 => Some(&signature::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY),
            Rs512 => Some(&signature::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY),
            _ => None,
        }
    }

    /// Whether whoever verifies could sign too.
    pub(crate) fn is_of_secrets(self) -> bool {
        OF_SECRETS.contains(&self)
    }

    /// The signature at the length that verifying takes, `None` if it can't be one. Of an ECDSA signature the halves are the two
    /// numbers to Envoy, of any length, and an odd byte is of neither (source/common/jwt/verify.cc, `verifySignatureEC`).
    fn fixed(self, signature: &[u8]) -> Option<Cow<'_, [u8]>> {
        let length = match self {
            Es256 => 32,
            Es384 => 48,
            Es512 => 66,
            _ => return Some(signature.into()),
        };
        let half = signature.len() / 2;
        if signature.len() == 2 * length || half == 0 {
            return Some(signature.into());
        }
        let mut fixed = Vec::with_capacity(2 * length);
        for number in signature.chunks_exact(half).take(2) {
            let number = without_zeros(number);
            fixed.resize(fixed.len() + length.checked_sub(number.len())?, 0);
            fixed.extend_from_slice(number);
        }
        Some(fixed.into())
    }

    fn of_secrets(self) -> hmac::Algorithm {
        match self {
            Hs384 => hmac::HMAC_SHA384,
            Hs512 => hmac::HMAC_SHA512,
            _ => hmac::HMAC_SHA256,
        }
    }
}

/// One key of a set.
pub(super) struct Key {
    /// Its name; empty if it has none.
    pub(super) kid: Box<str>,
    /// The one algorithm that it is for; empty if it does not say.
    pub(super) alg: Box<str>,
    /// Prepared for each algorithm that its type allows.
    verifiers: Box<[(Algorithm, Verifier)]>,
}

enum Verifier {
    Public(ParsedPublicKey),
    Secret(Box<hmac::Key>),
}

impl Verifier {
    fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Verifier::Public(key) => key.verify_sig(signed, signature).is_ok(),
            Verifier::Secret(key) => {
                let tag = hmac::sign(key, signed);
                constant_time::verify_slices_are_equal(tag.as_ref(), signature).is_ok()
            }
        }
    }
}

/// A key for one algorithm: what a token says of its own chooses nothing.
pub(crate) struct OneKey {
    algorithm: Algorithm,
    verifier: Verifier,
}

impl OneKey {
    /// A secret, of an algorithm of secrets.
    pub(crate) fn of_secret(algorithm: Algorithm, secret: &[u8]) -> OneKey {
        let key = hmac::Key::new(algorithm.of_secrets(), secret);
        OneKey { algorithm, verifier: Verifier::Secret(Box::new(key)) }
    }

    /// A public key in PEM (RFC 7468), of an algorithm of public keys. An RSA key has 2,048 to 8,192 bits, for RFC 7518
    /// section 3.3 forbids shorter ones; from 1,024 bits on they are in use all the same, by RS256 and RS512.
    ///
    /// # Errors
    /// It is none, or none of that algorithm.
    pub(crate) fn of_pem(algorithm: Algorithm, pem: &str) -> Result<OneKey, String> {
        let mut method =
            algorithm.of_public_keys().ok_or("is a public key, which the algorithm does not use")?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| "is no PEM")?;
        if pem.label != "PUBLIC KEY" {
            return Err(format!("is PEM of {}, and not of PUBLIC KEY", pem.label));
        }
        let (_, info) = SubjectPublicKeyInfo::from_der(&pem.contents).map_err(|_| "is no public key")?;
        if let Ok(PublicKey::RSA(rsa)) = info.parsed() {
            let bits = rsa.key_size();
            let short = algorithm.of_short_keys().filter(|_| bits < 2048);
            let least = if short.is_some() { 1024 } else { 2048 };
            if !(least..=8192).contains(&bits) {
                return Err(format!("is an RSA key of {bits} bits, and not of {least} to 8192"));
            }
            method = short.unwrap_or(method);
        }
        let key = ParsedPublicKey::new(method, pem.contents)
            .map_err(|_| "is no public key of the algorithm".to_owned())?;
        Ok(OneKey { algorithm, verifier: Verifier::Public(key) })
    }

    /// What it is for.
    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether the signature over these bytes is by this key.
    pub(crate) fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        self.verifier.verifies(signed, signature)
    }
}

/// Members of a key (RFC 7517), with words for what is wrong with them.
struct Members<'a>(&'a Map<String, Value>);

impl Members<'_> {
    fn optional(&self, name: &str) -> Result<&str, String> {
        match self.0.get(name) {
            None => Ok(""),
            Some(value) => value.as_str().ok_or_else(|| format!("[{name}] is no text")),
        }
    }

    fn text(&self, name: &str) -> Result<&str, String> {
        match self.optional(name)? {
            "" => Err(format!("[{name}] is missing")),
            text => Ok(text),
        }
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>, String> {
        from_spaced_base64url(self.text(name)?.as_bytes()).ok_or_else(|| format!("[{name}] is no base64url"))
    }
}

impl Key {
    /// A key of a set.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn of_jwk(jwk: &Map<String, Value>) -> Result<Key, String> {
        let members = Members(jwk);
        let kty = members.text("kty")?;
        // Envoy takes a kid or alg of another type for none.
        let kid = members.optional("kid").unwrap_or_default();
        let alg = members.optional("alg").unwrap_or_default();
        let verifiers = match kty {
            "RSA" => rsa(&members, alg)?,
            "EC" => elliptic(&members, alg)?,
            "OKP" => edwards(&members, alg)?,
            "oct" => secret(&members, alg)?,
            other => return Err(format!("[kty] \"{other}\" is not supported")),
        };
        Ok(Key { kid: kid.into(), alg: alg.into(), verifiers })
    }

    /// The RSA key of a certificate, as Google publishes its keys.
    ///
    /// # Errors
    /// It has none.
    pub(super) fn of_certificate(kid: &str, pem: &str) -> Result<Key, String> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|e| e.to_string())?;
        let certificate = pem.parse_x509().map_err(|e| e.to_string())?;
        let verifiers = public(&OF_RSA, certificate.public_key().raw)?;
        Ok(Key { kid: kid.into(), alg: "".into(), verifiers })
    }

    /// Whether the token may be signed with it: by its name and its algorithm, as far as both sides give them.
    pub(super) fn is_meant(&self, token: &Token) -> bool {
        (token.kid.is_empty() || self.kid.is_empty() || token.kid == self.kid)
            && (self.alg.is_empty() || Algorithm::named(&self.alg) == Some(token.algorithm))
    }

    /// Whether the token is signed with it.
    ///
    /// # Errors
    /// It is not, or can't be by this type of key.
    pub(super) fn verify(&self, token: &Token) -> Result<(), Fault> {
        let found = self.verifiers.iter().find(|(algorithm, _)| *algorithm == token.algorithm);
        let verified = match found {
            Some((EdDsa, _)) if token.signature().len() != 64 => return Err(Fault::Ed25519Length),
            Some((algorithm, verifier)) => algorithm
                .fixed(token.signature())
                .is_some_and(|signature| verifier.verifies(token.signed(), &signature)),
            None => false,
        };
        if verified { Ok(()) } else { Err(Fault::NotVerified) }
    }
}

/// Those of the algorithms that the key is for.
fn meant<'a>(algorithms: &'a [Algorithm], alg: &str) -> impl Iterator<Item = Algorithm> + 'a {
    let one = Algorithm::named(alg);
    let any = alg.is_empty();
    algorithms.iter().copied().filter(move |algorithm| any || one == Some(*algorithm))
}

fn public(algorithms: &[Algorithm], key: &[u8]) -> Result<Box<[(Algorithm, Verifier)]>, String> {
    let prepared = algorithms.iter().filter_map(|algorithm| {
        let parsed = ParsedPublicKey::new(algorithm.of_public_keys()?, key);
        Some(parsed.map(|key| (*algorithm, Verifier::Public(key))).map_err(|e| e.to_string()))
    });
    prepared.collect()
}

type Verifiers = Result<Box<[(Algorithm, Verifier)]>, String>;

/// RFC 7518 section 6.3.1. Keys of less than 2,048 bits verify nothing: RFC 7518 section 3.3 forbids them.
fn rsa(members: &Members<'_>, alg: &str) -> Verifiers {
    if !alg.is_empty() && !alg.starts_with("RS") && !alg.starts_with("PS") {
        return Err(format!("[alg] \"{alg}\" is none of an RSA key"));
    }
    let number = |name| members.bytes(name).map(|bytes| without_zeros(&bytes).to_vec());
    let (n, e) = (number("n")?, number("e")?);
    if e != [3] && e != [1, 0, 1] {
        return Err("[e] is neither 3 nor 65537".to_owned());
    }
    let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
    if !(2048..=8192).contains(&bits) {
        return Err(format!("[n] has {bits} bits, and not 2048 to 8192"));
    }
    let der = RsaPublicKeyComponents { n, e }.as_der().map_err(|_| "[n] is no modulus".to_owned())?;
    let algorithms: Vec<Algorithm> = meant(&OF_RSA, alg).collect();
    public(&algorithms, der.as_ref())
}

/// Numbers may be written with zeros in front.
fn without_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

/// RFC 7518 section 6.2.1. Algorithm and curve go together; one says the other, and neither is P-256, as in Envoy.
fn elliptic(members: &Members<'_>, alg: &str) -> Verifiers {
    let (algorithm, curve, length) = match (alg, members.optional("crv")?) {
        ("ES256", "P-256" | "") | ("", "P-256" | "") => (Es256, "P-256", 32),
        ("ES384", "P-384" | "") | ("", "P-384") => (Es384, "P-384", 48),
        ("ES512", "P-521" | "") | ("", "P-521") => (Es512, "P-521", 66),
        (alg, crv) => return Err(format!("[alg] \"{alg}\" and [crv] \"{crv}\" are none of an EC key")),
    };
    // An uncompressed point: its coordinates at their full length.
    let mut point = vec![4];
    for name in ["x", "y"] {
        let bytes = members.bytes(name)?;
        let bytes = without_zeros(&bytes);
        let zeros = usize::checked_sub(length, bytes.len());
        let zeros = zeros.ok_or_else(|| format!("[{name}] is too long for {curve}"))?;
        point.resize(point.len() + zeros, 0);
        point.extend_from_slice(bytes);
    }
    public(&[algorithm], &point)
}

/// RFC 8037: Ed25519 alone.
fn edwards(members: &Members<'_>, alg: &str) -> Verifiers {
    match (alg, members.text("crv")?) {
        ("" | "EdDSA", "Ed25519") => {}
        (alg, crv) => return Err(format!("[alg] \"{alg}\" and [crv] \"{crv}\" are none of an OKP key")),
    }
    let key = members.bytes("x")?;
    if key.len() != 32 {
        return Err("[x] has not 32 bytes".to_owned());
    }
    public(&[EdDsa], &key)
}

/// RFC 7518 section 6.4.
fn secret(members: &Members<'_>, alg: &str) -> Verifiers {
    if !alg.is_empty() && !matches!(alg, "HS256" | "HS384" | "HS512") {
        return Err(format!("[alg] \"{alg}\" is none of a secret"));
    }
    let secret = members.bytes("k")?;
    if secret.is_empty() {
        return Err("[k] is empty".to_owned());
    }
    let key = |algorithm: Algorithm| {
        (algorithm, Verifier::Secret(Box::new(hmac::Key::new(algorithm.of_secrets(), &secret))))
    };
    Ok(meant(&OF_SECRETS, alg).map(key).collect())
}
