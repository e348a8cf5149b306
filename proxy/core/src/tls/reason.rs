//! Why a handshake failed, in words for logs: rustls shows most of its reasons by the names of Rust's types.

use super::certificate::ip;
use super::verify::{Refusal, SanMatcher};
use crate::matcher::StringMatcher;
use rustls::{CertRevocationListError, CertificateError, Error, OtherError};
use std::fmt::{Debug, Write};
use x509_parser::extensions::GeneralName;

/// Names that a reason tells at most, and characters of one: the peer has written them.
const NAMES: usize = 16;
const LENGTH: usize = 256;

/// The reason in plain words, those of Envoy where it has them (`verify cert failed: ...`).
pub fn reason(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(reason) => format!("verify cert failed: {}", of_certificate(reason)),
        Error::InvalidCertRevocationList(reason) => {
            format!("invalid certificate revocation list: {}", of_list(reason))
        }
        Error::InappropriateMessage { expect_types, got_type } => {
            unexpected("message", got_type, expect_types)
        }
        Error::InappropriateHandshakeMessage { expect_types, got_type } => {
            unexpected("handshake message", got_type, expect_types)
        }
        Error::InvalidMessage(what) => format!("received corrupt message: {}", words(what)),
        Error::PeerIncompatible(what) => format!("peer is incompatible: {}", words(what)),
        Error::PeerMisbehaved(what) => format!("peer misbehaved: {}", words(what)),
        Error::AlertReceived(alert) => format!("received fatal alert: {}", words(alert)),
        Error::InvalidEncryptedClientHello(what) => {
            format!("encrypted client hello failure: {}", words(what))
        }
        Error::InconsistentKeys(what) => format!("keys may not be consistent: {}", words(what)),
        // Text already.
        other => other.to_string(),
    }
}

/// In the words of OpenSSL, which Envoy's are, where a reason has no more to tell.
fn of_certificate(reason: &CertificateError) -> String {
    let plain = match reason {
        CertificateError::UnknownIssuer => "unable to get local issuer certificate",
        CertificateError::Expired => "certificate has expired",
        CertificateError::NotValidYet => "certificate is not yet valid",
        CertificateError::Revoked => "certificate revoked",
        CertificateError::UnknownRevocationStatus => "unable to get certificate CRL",
        CertificateError::ExpiredRevocationList => "CRL has expired",
        CertificateError::BadSignature => "certificate signature failure",
        CertificateError::InvalidPurpose => "unsupported certificate purpose",
        CertificateError::UnsupportedSignatureAlgorithmContext { .. } => "unsupported signature algorithm",
        CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "signature algorithm that does not go with the public key"
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = [expected.to_str().into_owned()];
            return names(presented.iter().cloned(), expected.into_iter());
        }
        CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYetContext { .. }
        | CertificateError::ExpiredRevocationListContext { .. }
        | CertificateError::InvalidPurposeContext { .. } => return reason.to_string(),
        CertificateError::Other(OtherError(own)) => {
            return match own.downcast_ref::<Refusal>() {
                Some(refusal) => refusal.to_string(),
                None => words(own),
            };
        }
        other => return words(other),
    };
    plain.to_owned()
}

fn of_list(reason: &CertRevocationListError) -> String {
    match reason {
        CertRevocationListError::UnsupportedSignatureAlgorithmContext { .. } => {
            "unsupported signature algorithm".to_owned()
        }
        CertRevocationListError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "signature algorithm that does not go with the public key".to_owned()
        }
        CertRevocationListError::Other(OtherError(own)) => words(own),
        other => words(other),
    }
}

fn unexpected(kind: &str, got: &impl Debug, expected: &[impl Debug]) -> String {
    let expected: Vec<String> = expected.iter().map(words).collect();
    format!("received unexpected {kind}: got {} when expecting {}", words(got), expected.join(" or "))
}

/// Which names a certificate has, and which it should have.
pub(super) fn names(
    presented: impl Iterator<Item = String>,
    expected: impl Iterator<Item = String>,
) -> String {
    format!("SAN matcher, certificate SANs are {}, expected {}", list(presented), list(expected))
}

fn list(names: impl Iterator<Item = String>) -> String {
    let mut text = String::from("[");
    for (i, name) in names.take(NAMES + 1).enumerate() {
        text.push_str(if i == 0 { "" } else { ", " });
        match i {
            NAMES => text.push_str("..."),
            _ => text.extend(name.chars().take(LENGTH).map(|c| if c.is_control() { '?' } else { c })),
        }
    }
    text.push(']');
    text
}

/// A subject alternative name as it is matched; `None` for kinds that are not.
pub(super) fn presented(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(text) | GeneralName::URI(text) | GeneralName::RFC822Name(text) => {
            Some((*text).to_owned())
        }
        GeneralName::IPAddress(bytes) => ip(bytes).map(|ip| ip.to_string()),
        _ => None,
    }
}

/// What a matcher of names asks for.
pub(super) fn asked(of: &SanMatcher) -> String {
    let (kind, text) = match &of.matcher {
        StringMatcher::Exact(text, _) => ("", &**text),
        StringMatcher::Prefix(text, _) => ("prefix ", &**text),
        StringMatcher::Suffix(text, _) => ("suffix ", &**text),
        StringMatcher::Contains(text, _) => ("part ", &**text),
        StringMatcher::Regex(regex) => ("regex ", regex.source().as_bytes()),
    };
    format!("{kind}{}", String::from_utf8_lossy(text))
}

/// The name of a variant as words: of most of its errors rustls has no other text.
fn words(variant: &(impl Debug + ?Sized)) -> String {
    let mut name = String::new();
    // Writing to a String can't fail.
    let _ = write!(name, "{variant:?}");
    let (mut text, mut before) = (String::with_capacity(name.len() + 16), ' ');
    let mut chars = name.chars().take(LENGTH).peekable();
    while let Some(c) = chars.next() {
        let ends_acronym = chars.peek().is_some_and(char::is_ascii_lowercase);
        let begins = match c {
            'A'..='Z' => !before.is_ascii_uppercase() || ends_acronym,
            // Not in 0x63.
            '0'..='9' => before.is_ascii_lowercase() && before != 'x',
            _ => !c.is_ascii_alphanumeric(),
        };
        if begins && !text.is_empty() && !text.ends_with(' ') {
            text.push(' ');
        }
        if c.is_ascii_alphanumeric() {
            text.push(c.to_ascii_lowercase());
        }
        before = c;
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{AlertDescription, InvalidMessage, PeerIncompatible};
    use std::sync::Arc;

    /// They were `invalid peer certificate: Other(OtherError(San))`, `UnknownIssuer` and the like.
    #[test]
    fn no_reason_names_a_type() {
        let of = |error| reason(&error);
        assert_eq!(
            of(Error::AlertReceived(AlertDescription::UnknownPSKIdentity)),
            "received fatal alert: unknown psk identity"
        );
        assert_eq!(of(Error::AlertReceived(AlertDescription::UnknownCA)), "received fatal alert: unknown ca");
        assert_eq!(
            of(Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13)),
            "peer is incompatible: server does not support tls 12 or 13"
        );
        assert_eq!(
            of(Error::InvalidMessage(InvalidMessage::MissingData("ServerName"))),
            "received corrupt message: missing data server name"
        );
        let certificate = |reason| of(Error::InvalidCertificate(reason));
        assert_eq!(
            certificate(CertificateError::UnknownIssuer),
            "verify cert failed: unable to get local issuer certificate"
        );
        assert_eq!(
            certificate(CertificateError::UnhandledCriticalExtension),
            "verify cert failed: unhandled critical extension"
        );
        let other = std::io::Error::other("MaximumDepth(3)");
        let other = certificate(CertificateError::Other(OtherError(Arc::new(other))));
        assert_eq!(other, "verify cert failed: custom kind other error maximum depth 3");
        let expected = vec![rustls::HandshakeType::Finished, rustls::HandshakeType::CertificateVerify];
        assert_eq!(
            of(Error::InappropriateHandshakeMessage {
                expect_types: expected,
                got_type: rustls::HandshakeType::Unknown(99)
            }),
            "received unexpected handshake message: got handshake type 0x63 when expecting finished or certificate verify"
        );
    }

    #[test]
    fn names_of_the_peer_are_bounded_and_one_line() {
        let many = (0..40).map(|i| format!("n{i}"));
        let text = names(many, ["a\nb".to_owned()].into_iter());
        assert!(text.ends_with("n15, ...], expected [a?b]"), "{text}");
        assert_eq!(list(["x".repeat(1000)].into_iter()).len(), LENGTH + 2);
        assert_eq!(list(std::iter::empty()), "[]");
    }
}
