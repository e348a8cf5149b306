//! Leaves that webpki does not take and BoringSSL does: those of X.509 version 1, which `openssl x509 -req` writes without
//! extensions, and those that may sign others. They are believed where an authority itself has signed them.

use super::verify::{Peer, check_validity};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved};
use x509_parser::asn1_rs::Any;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

/// Whether `leaf` is such a certificate and one of `roots` vouches for it at `now`; `None` where webpki's word counts.
pub(super) fn check(
    leaf: &CertificateDer<'_>,
    peer: Peer,
    roots: &[CertificateDer<'static>],
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Option<Result<(), Error>> {
    let x509 = parsed(leaf)?;
    let is_old = x509.version() == X509Version::V1 && x509.extensions().is_empty();
    if !is_old && !is_authority(&x509) {
        return None;
    }
    Some(check_validity(leaf, now).and_then(|()| {
        if !serves(&x509, peer) {
            return Err(Error::InvalidCertificate(CertificateError::InvalidPurpose));
        }
        let vouches = |root: &CertificateDer<'_>| {
            check_validity(root, now).is_ok()
                && parsed(root).is_some_and(|root| may_sign(&root) && signed(leaf, &x509, &root, algorithms))
        };
        match roots.iter().any(vouches) {
            true => Ok(()),
            false => Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
        }
    }))
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    let (rest, x509) = X509Certificate::from_der(certificate).ok()?;
    rest.is_empty().then_some(x509)
}

fn is_authority(x509: &X509Certificate<'_>) -> bool {
    matches!(x509.basic_constraints(), Ok(Some(constraints)) if constraints.value.ca)
}

/// Whether it may stand at the end of a chain, and says nothing critical that is not looked at here.
fn serves(x509: &X509Certificate<'_>, peer: Peer) -> bool {
    x509.extensions().iter().all(|extension| match extension.parsed_extension() {
        ParsedExtension::KeyUsage(usage) => usage.digital_signature(),
        ParsedExtension::ExtendedKeyUsage(usage) => {
            usage.any
                || match peer {
                    Peer::Client => usage.client_auth,
                    Peer::Server => usage.server_auth,
                }
        }
        ParsedExtension::BasicConstraints(_) | ParsedExtension::SubjectAlternativeName(_) => true,
        _ => !extension.critical,
    })
}

/// Whether it may sign a leaf of any name. One of version 1 is an authority if it names itself
/// as its issuer.
fn may_sign(root: &X509Certificate<'_>) -> bool {
    let signs = match root.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.key_cert_sign()),
        Err(_) => false,
    };
    let is_bound = !matches!(root.name_constraints(), Ok(None));
    let is_own = root.version() == X509Version::V1 && root.issuer().as_raw() == root.subject().as_raw();
    signs && !is_bound && (is_authority(root) || is_own)
}

/// Whether `root` signed `leaf` (RFC 5280 section 4.1.1.3), by one of `algorithms`.
fn signed(
    leaf: &[u8],
    x509: &X509Certificate<'_>,
    root: &X509Certificate<'_>,
    algorithms: &WebPkiSupportedAlgorithms,
) -> bool {
    if x509.issuer().as_raw() != root.subject().as_raw()
        || x509.signature_algorithm != x509.tbs_certificate.signature
    {
        return false;
    }
    let message = x509.tbs_certificate.as_ref();
    let Some(by) = contents(leaf).and_then(|parts| contents(parts.get(message.len()..)?)) else {
        return false;
    };
    let Some(of) = key_algorithm(root) else { return false };
    let key = &root.public_key().subject_public_key.data;
    let mut fitting = algorithms
        .all
        .iter()
        .filter(|it| it.signature_alg_id().as_ref() == by && it.public_key_alg_id().as_ref() == of);
    fitting.any(|it| it.verify_signature(key, message, &x509.signature_value.data).is_ok())
}

/// The algorithm of a certificate's key, without the head of its sequence.
fn key_algorithm<'a>(x509: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    contents(contents(x509.public_key().raw)?)
}

/// What is in the first element.
fn contents(der: &[u8]) -> Option<&[u8]> {
    Any::from_der(der).ok().map(|(_, element)| element.data)
}

/// Whether the key of a certificate that webpki does not read signed a handshake of TLS 1.2.
///
/// # Errors
/// It did not.
pub(super) fn verify_tls12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    by: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let x509 = parsed(certificate).ok_or(CertificateError::BadEncoding)?;
    let known = algorithms.mapping.iter().find(|(scheme, _)| *scheme == by.scheme);
    let (_, known) = known.ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
    let of = key_algorithm(&x509).ok_or(CertificateError::BadEncoding)?;
    let key = &x509.public_key().subject_public_key.data;
    let mut fitting = known.iter().filter(|it| it.public_key_alg_id().as_ref() == of);
    match fitting.any(|it| it.verify_signature(key, message, by.signature()).is_ok()) {
        true => Ok(HandshakeSignatureValid::assertion()),
        false => Err(CertificateError::BadSignature.into()),
    }
}

/// As [`verify_tls12`], of TLS 1.3.
///
/// # Errors
/// It did not.
pub(super) fn verify_tls13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    by: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let x509 = parsed(certificate).ok_or(CertificateError::BadEncoding)?;
    let key = SubjectPublicKeyInfoDer::from(x509.public_key().raw);
    verify_tls13_signature_with_raw_key(message, &key, by, algorithms)
}
