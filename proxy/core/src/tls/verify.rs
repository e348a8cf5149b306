//! Verification of the peer's certificate.

use super::certificate::{Origin, alternative_names, describe, ip, sha256, sha256_hex};
use super::{Pem, direct, reason};
use crate::error::{ConfigContext, ConfigError, Faults, collect};
use crate::matcher::StringMatcher;
use base64::Engine;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use std::path::PathBuf;
use std::sync::Arc;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How a peer's certificate is verified (Envoy's CertificateValidationContext).
#[derive(Debug, Default)]
pub struct Validation {
    /// Authorities; without them only pins count.
    pub trusted_ca: Option<Pem>,
    /// Revocation lists. Every certificate of the chain must be covered by one.
    pub crl: Option<Pem>,
    /// Looks the leaf alone up in the lists.
    pub only_leaf_crl: bool,
    /// SHA-256 of the leaf in hexadecimal, with or without colons (`verify_certificate_hash`).
    pub hashes: Vec<String>,
    /// SHA-256 of the leaf's public key in base64 (`verify_certificate_spki`).
    pub spki: Vec<String>,
    /// Names of which one must match; empty does not ask.
    pub sans: Vec<SanMatcher>,
    /// Goes on whatever the outcome (`ACCEPT_UNTRUSTED`); [`super::ServerContext::validates`] tells it.
    pub accept_untrusted: bool,
    /// Intermediate certificates that may be used; `None` is no limit.
    pub max_depth: Option<usize>,
    /// Clients are not told which authorities their certificate may be of (`suppress_client_ca_list`).
    pub hides_authorities: bool,
}

/// The file in which this system keeps the authorities that it trusts, if there is one.
pub fn system_authorities() -> Option<PathBuf> {
    const KNOWN: [&str; 4] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    KNOWN.iter().map(PathBuf::from).find(|path| path.exists())
}

impl Validation {
    /// Whether it can be compiled.
    ///
    /// # Errors
    /// Names the field and what is wrong with it.
    pub fn check(self) -> Result<(), ConfigError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        PeerCheck::new(self, |of| Authorities::new(of, Peer::Server, &provider)).map(drop)
    }
}

/// Kind of a subject alternative name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanKind {
    /// URI, such as a SPIFFE identity.
    Uri,
    /// DNS name; an exact matcher takes the certificate's wildcards into account.
    Dns,
    /// IP address in its usual text form.
    Ip,
    /// E-mail address.
    Email,
}

/// A test of one kind of subject alternative names (`match_typed_subject_alt_names`).
#[derive(Debug)]
pub struct SanMatcher {
    /// The kind looked at.
    pub kind: SanKind,
    /// The test.
    pub matcher: StringMatcher,
}

impl SanMatcher {
    fn matches(&self, name: &GeneralName<'_>) -> bool {
        match (self.kind, name) {
            (SanKind::Uri, GeneralName::URI(uri)) => self.matcher.matches(uri.as_bytes()),
            (SanKind::Email, GeneralName::RFC822Name(mail)) => self.matcher.matches(mail.as_bytes()),
            (SanKind::Ip, GeneralName::IPAddress(bytes)) => {
                ip(bytes).is_some_and(|ip| self.matcher.matches(ip.to_string().as_bytes()))
            }
            (SanKind::Dns, GeneralName::DNSName(dns)) => match &self.matcher {
                StringMatcher::Exact(wanted, _) => dns_matches(dns, wanted),
                matcher => matcher.matches(dns.as_bytes()),
            },
            _ => false,
        }
    }
}

/// Whether a DNS name of a certificate stands for `wanted`; a wildcard stands for one label.
fn dns_matches(pattern: &str, wanted: &[u8]) -> bool {
    let pattern = pattern.as_bytes();
    if pattern.eq_ignore_ascii_case(wanted) {
        return true;
    }
    let Some(suffix) = pattern.strip_prefix(b"*") else { return false };
    let Some(dot) = wanted.iter().position(|b| *b == b'.') else { return false };
    suffix.starts_with(b".") && dot > 0 && wanted.get(dot..).is_some_and(|w| w.eq_ignore_ascii_case(suffix))
}

/// Why a certificate is refused, beyond what webpki says.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The names of the certificate, and those expected.
    #[error("{0}")]
    San(String),
    /// The certificate's SHA-256 in hexadecimal.
    #[error("neither hash nor public key is among those expected, certificate's SHA-256 is {0}")]
    Pin(String),
}

fn refuse(refusal: Refusal) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
}

/// Compiled verification, of either side.
#[derive(Debug)]
pub(super) struct PeerCheck {
    authorities: Option<Arc<Authorities>>,
    hashes: Vec<[u8; 32]>,
    spki: Vec<[u8; 32]>,
    sans: Vec<SanMatcher>,
    max_depth: Option<usize>,
    pub(super) accept_untrusted: bool,
    /// Clients are not told of the authorities.
    hides_authorities: bool,
}

/// Who vouches for certificates, and what was revoked. Thousands of clusters may have them alike.
#[derive(Debug)]
pub(super) struct Authorities {
    chain: Chain,
    /// Leaves that are authorities themselves: webpki takes no authority for an end entity.
    roots: Vec<CertificateDer<'static>>,
    /// What else vouches for leaves that webpki does not take; without revocation lists, which webpki looks into.
    direct: Option<(Peer, WebPkiSupportedAlgorithms)>,
    /// Where they come from.
    origin: Box<str>,
}

#[derive(Debug)]
enum Chain {
    Clients(Arc<dyn ClientCertVerifier>),
    Servers(Arc<WebPkiServerVerifier>),
}

/// Whose certificates are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Client,
    Server,
}

impl Authorities {
    /// # Errors
    /// `trusted_ca` or `crl` is no good.
    pub(super) fn new(
        validation: &Validation,
        peer: Peer,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<Authorities>, ConfigError> {
        let missing = || ConfigError::field("trusted_ca", "is missing");
        let ca = validation.trusted_ca.as_ref().ok_or_else(missing)?;
        let mut faults = Faults::default();
        let roots = faults.keep(ca.certificates().map_err(|e| ConfigError::field("trusted_ca", e)));
        let crls = validation.crl.as_ref().map(Pem::revocation_lists);
        let crls = crls.transpose().map_err(|e| ConfigError::field("crl", e));
        let crls = faults.take(crls).unwrap_or_default();
        let roots = faults.kept(roots)?;
        faults.end(())?;
        let chain = Chain::new(&roots, crls, validation.only_leaf_crl, peer, provider)?;
        let algorithms = provider.signature_verification_algorithms;
        let direct = validation.crl.is_none().then_some((peer, algorithms));
        Ok(Arc::new(Authorities { chain, roots, direct, origin: ca.origin() }))
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.roots.iter().any(|root| root == leaf) {
            return check_validity(leaf, now);
        }
        self.chain.check(leaf, intermediates, now).or_else(|error| {
            let (peer, algorithms) = self.direct.as_ref().ok_or_else(|| error.clone())?;
            direct::check(leaf, *peer, &self.roots, algorithms, now).unwrap_or(Err(error))
        })
    }
}

/// What can't be looked at without an authority.
fn without_authorities(validation: &Validation) -> Result<(), ConfigError> {
    if !validation.sans.is_empty() {
        let reason = "names can be matched only with a trusted_ca";
        return Err(ConfigError::field("match_typed_subject_alt_names", reason));
    }
    if validation.crl.is_some() {
        return Err(ConfigError::field("crl", "revocation lists need a trusted_ca"));
    }
    Ok(())
}

impl PeerCheck {
    /// `authorities` makes them where there is a `trusted_ca`.
    ///
    /// # Errors
    /// Names the field and what is wrong with it.
    pub(super) fn new(
        validation: Validation,
        authorities: impl FnOnce(&Validation) -> Result<Arc<Authorities>, ConfigError>,
    ) -> Result<PeerCheck, ConfigError> {
        let mut faults = Faults::default();
        let no = |h: &str, form: &str| ConfigError::new(format!("\"{h}\" is no SHA-256 in {form}"));
        let hashes = validation.hashes.iter().map(|h| hash(h).ok_or_else(|| no(h, "hexadecimal")));
        let hashes = faults.take(collect(hashes).in_key("verify_certificate_hash"));
        let spki = validation.spki.iter().map(|h| spki_hash(h).ok_or_else(|| no(h, "base64")));
        let spki = faults.take(collect(spki).in_key("verify_certificate_spki"));
        let authorities = match &validation.trusted_ca {
            None => {
                faults.take(without_authorities(&validation));
                None
            }
            Some(_) => faults.keep(authorities(&validation)),
        };
        faults.end(PeerCheck {
            authorities,
            hashes,
            spki,
            sans: validation.sans,
            max_depth: validation.max_depth,
            accept_untrusted: validation.accept_untrusted,
            hides_authorities: validation.hides_authorities,
        })
    }

    /// The first authority.
    pub(super) fn authority(&self) -> Option<Origin> {
        let authorities = self.authorities.as_deref()?;
        let certificate = Arc::new(describe(authorities.roots.first()?)?);
        Some(Origin { path: authorities.origin.clone(), certificate })
    }

    /// Whether the peer's certificate is what the configuration asks for.
    pub(super) fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.check_with(leaf, intermediates, now, |check| check.check_names(leaf))
    }

    /// The same, in Envoy's order (`verifyCertificate` in common/tls/cert_validator/default_validator.cc): who vouches for
    /// it, what `names` says of its names, what is pinned.
    fn check_with(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        names: impl FnOnce(&PeerCheck) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let used = self.max_depth.map_or(intermediates.len(), |depth| depth.min(intermediates.len()));
        if let Some(authorities) = self.authorities.as_deref() {
            authorities.check(leaf, intermediates.get(..used).unwrap_or_default(), now)?;
        }
        names(self)?;
        let pinned = !self.hashes.is_empty() || !self.spki.is_empty();
        if pinned && !self.is_pinned(leaf) {
            return Err(refuse(Refusal::Pin(sha256_hex(leaf))));
        }
        Ok(())
    }

    /// Whether a name of the certificate is among those that are configured.
    fn check_names(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        if self.sans.is_empty() || self.has_name(leaf) {
            return Ok(());
        }
        let expected = self.sans.iter().map(reason::asked);
        Err(refuse(Refusal::San(reason::names(names(leaf).into_iter(), expected))))
    }

    fn is_pinned(&self, leaf: &CertificateDer<'_>) -> bool {
        if self.hashes.contains(&sha256(leaf)) {
            return true;
        }
        !self.spki.is_empty()
            && X509Certificate::from_der(leaf)
                .is_ok_and(|(_, x509)| self.spki.contains(&sha256(x509.public_key().raw)))
    }

    fn has_name(&self, leaf: &CertificateDer<'_>) -> bool {
        let Ok((_, x509)) = X509Certificate::from_der(leaf) else { return false };
        alternative_names(&x509).iter().any(|name| self.sans.iter().any(|m| m.matches(name)))
    }
}

/// The names of a certificate, to be told.
fn names(leaf: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, x509)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    alternative_names(&x509).iter().filter_map(reason::presented).collect()
}

/// Whether a certificate is valid for a name; if not, the error has the certificate's names as they are, where webpki's has
/// its own way of writing them.
fn check_sent_name(leaf: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    verify_server_name(&ParsedCertificate::try_from(leaf)?, name).map_err(|error| match error {
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { expected, .. }) => {
            let presented = names(leaf);
            Error::InvalidCertificate(CertificateError::NotValidForNameContext { expected, presented })
        }
        other => other,
    })
}

impl Chain {
    fn new(
        roots: &[CertificateDer<'static>],
        crls: Vec<CertificateRevocationListDer<'static>>,
        only_leaf_crl: bool,
        peer: Peer,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Chain, ConfigError> {
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(roots.iter().cloned());
        if added == 0 {
            return Err(ConfigError::field("trusted_ca", "no certificate can serve as an authority"));
        }
        let failed = |e: rustls::server::VerifierBuilderError| ConfigError::field("crl", e.to_string());
        let store = Arc::new(store);
        match peer {
            Peer::Client => {
                let builder = WebPkiClientVerifier::builder_with_provider(store, provider.clone());
                let builder = builder.with_crls(crls);
                let builder = match only_leaf_crl {
                    true => builder.only_check_end_entity_revocation(),
                    false => builder,
                };
                Ok(Chain::Clients(builder.build().map_err(failed)?))
            }
            Peer::Server => {
                let builder = WebPkiServerVerifier::builder_with_provider(store, provider.clone());
                let builder = builder.with_crls(crls);
                let builder = match only_leaf_crl {
                    true => builder.only_check_end_entity_revocation(),
                    false => builder,
                };
                Ok(Chain::Servers(builder.build().map_err(failed)?))
            }
        }
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        match self {
            Chain::Clients(verifier) => verifier.verify_client_cert(leaf, intermediates, now).map(|_| ()),
            Chain::Servers(verifier) => {
                // The chain alone is wanted. The verifier checks the name last, so an error about the name
                // says that the chain is good.
                let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
                match verifier.verify_server_cert(leaf, intermediates, &name, &[], now) {
                    Ok(_) => Ok(()),
                    Err(Error::InvalidCertificate(
                        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                    )) => Ok(()),
                    Err(e) => Err(e),
                }
            }
        }
    }
}

pub(super) fn check_validity(leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let (_, x509) = X509Certificate::from_der(leaf)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let problem = match x509.validity() {
        v if now < v.not_before.timestamp() => CertificateError::NotValidYet,
        v if now > v.not_after.timestamp() => CertificateError::Expired,
        _ => return Ok(()),
    };
    Err(Error::InvalidCertificate(problem))
}

fn hash(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u32> =
        text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|d| (d[0] * 16 + d[1]) as u8).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}

fn spki_hash(text: &str) -> Option<[u8; 32]> {
    base64::engine::general_purpose::STANDARD.decode(text).ok()?.try_into().ok()
}

/// The part of both verifiers that proves that a peer owns its key; it is the same for clients and servers. What webpki does
/// not read of a certificate was looked at before, or nobody asks for it.
macro_rules! verify_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            rustls::crypto::verify_tls12_signature(message, cert, signed, &self.algorithms)
                .or_else(|_| direct::verify_tls12(message, cert, signed, &self.algorithms))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            rustls::crypto::verify_tls13_signature(message, cert, signed, &self.algorithms)
                .or_else(|_| direct::verify_tls13(message, cert, signed, &self.algorithms))
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

/// Whether clients are asked for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// None is looked at: there is nothing to verify it against.
    No,
    /// It may be missing.
    Optional,
    /// Without one the handshake fails.
    Required,
}

impl Asked {
    /// As Envoy has it (common/tls/cert_validator/default_validator.cc): names and pins need a certificate to look at,
    /// unless the untrusted are accepted; `require_client_certificate` is heard where there is an authority. Who accepts
    /// the untrusted by name asks for certificates that nobody verifies.
    pub(super) fn of(validation: Option<&Validation>, flag: bool) -> Asked {
        let Some(of) = validation else { return Asked::No };
        let listed = !(of.hashes.is_empty() && of.spki.is_empty() && of.sans.is_empty());
        let trusts = of.trusted_ca.is_some();
        match (flag && trusts) || (listed && !of.accept_untrusted) {
            true => Asked::Required,
            false if trusts || listed || of.accept_untrusted => Asked::Optional,
            false => Asked::No,
        }
    }
}

/// Verifies clients.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) check: Arc<PeerCheck>,
    /// Whether a client without a certificate is refused.
    pub(super) required: bool,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        let told = Some(&self.check).filter(|check| !check.hides_authorities);
        match told.and_then(|check| check.authorities.as_ref()).map(|of| &of.chain) {
            Some(Chain::Clients(verifier)) => verifier.root_hint_subjects(),
            _ => &[],
        }
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if !self.check.accept_untrusted {
            self.check.check(leaf, intermediates, now)?;
        }
        Ok(ClientCertVerified::assertion())
    }

    verify_signatures!();
}

/// What the name that was sent to a server has to do with its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SentName {
    /// Nothing.
    Ignored,
    /// The certificate must be valid for it too (`auto_san_validation`).
    Checked,
    /// It must be valid for it, and for none of the names that are configured, which serve where no name is sent
    /// (`auto_sni_san_validation`).
    InPlace,
}

/// Verifies servers. Without a check every certificate will do, as in Envoy without a validation context;
/// the server must own its key all the same.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) check: Option<PeerCheck>,
    pub(super) sent_name: SentName,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(check) = self.check.as_ref().filter(|c| !c.accept_untrusted) {
            let sent = || check_sent_name(leaf, server_name);
            check.check_with(leaf, intermediates, now, |check| match (self.sent_name, server_name) {
                (SentName::Checked, _) => sent().and_then(|()| check.check_names(leaf)),
                (SentName::InPlace, ServerName::DnsName(_)) => sent(),
                _ => check.check_names(leaf),
            })?;
        }
        Ok(ServerCertVerified::assertion())
    }

    verify_signatures!();
}
