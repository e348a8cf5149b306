//! Certificates, keys and revocation lists in PEM, from files or from the configuration itself.

use super::server::load_identity;
use crate::error::ConfigError;
use crate::files;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use std::borrow::Cow;
use std::path::PathBuf;
use x509_parser::x509::X509Version;

/// The largest file of PEM; the certificates of all authorities of the world are a quarter of one MiB.
const MAX_PEM_BYTES: usize = 16 << 20;

/// Where PEM comes from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Pem {
    /// The configuration itself.
    Inline(Vec<u8>),
    /// A file, read when the configuration is compiled.
    File(PathBuf),
}

impl std::fmt::Debug for Pem {
    /// Leaves the content out: it may be a private key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Pem::Inline(bytes) => write!(f, "{} bytes of inline PEM", bytes.len()),
            Pem::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A certificate chain with its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The certificate, then those that lead to its authority.
    pub chain: Pem,
    /// Its private key: PKCS #8, PKCS #1 or SEC 1, not encrypted.
    pub key: Pem,
}

impl Identity {
    /// Whether it can be read, and the key belongs to the certificate.
    ///
    /// # Errors
    /// Names the field and what is wrong with it.
    pub fn check(&self) -> Result<(), ConfigError> {
        load_identity(self, &aws_lc_rs::default_provider()).map(drop)
    }
}

impl Pem {
    pub(super) fn read(&self) -> Result<Cow<'_, [u8]>, String> {
        match self {
            Pem::Inline(bytes) => Ok(Cow::Borrowed(bytes)),
            Pem::File(path) => {
                let read = files::read_promptly(path, MAX_PEM_BYTES).map(Cow::Owned);
                read.map_err(|e| format!("can't read {}: {e}", path.display()))
            }
        }
    }

    /// What errors call it.
    fn label(&self) -> Cow<'_, str> {
        match self {
            Pem::Inline(_) => "inline PEM".into(),
            Pem::File(path) => path.to_string_lossy(),
        }
    }

    /// Where it comes from as `/certs` shows it: a file, or as in Envoy `<inline>`.
    pub(super) fn origin(&self) -> Box<str> {
        match self {
            Pem::Inline(_) => "<inline>".into(),
            Pem::File(path) => path.to_string_lossy().into(),
        }
    }

    fn items<T: PemObject>(&self, what: &str) -> Result<Vec<T>, String> {
        let text = self.read()?;
        let items = T::pem_slice_iter(&text).collect::<Result<Vec<T>, _>>();
        match items {
            Err(e) => Err(format!("{}: not valid PEM: {e}", self.label())),
            Ok(items) if items.is_empty() => Err(format!("{}: no {what} in PEM form", self.label())),
            Ok(items) => Ok(items),
        }
    }

    /// All certificates, at least one, each of them well-formed.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let certificates: Vec<CertificateDer<'static>> = self.items("certificate")?;
        for (i, der) in certificates.iter().enumerate() {
            x509_parser::parse_x509_certificate(der)
                .map_err(|e| format!("{}: certificate {}: {e}", self.label(), i + 1))?;
        }
        Ok(certificates)
    }

    /// All revocation lists, at least one.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn revocation_lists(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
        let lists: Vec<CertificateRevocationListDer<'static>> = self.items("revocation list")?;
        for (i, der) in lists.iter().enumerate() {
            // webpki takes none of these, and does not say why.
            if let Ok((_, list)) = x509_parser::parse_x509_crl(der)
                && (list.version() != Some(X509Version::V2) || list.extensions().is_empty())
            {
                let reason = "must be of version 2 and have a CRL number (RFC 5280 section 5.2.3)";
                return Err(format!("{}: revocation list {} {reason}", self.label(), i + 1));
            }
        }
        Ok(lists)
    }

    /// The first private key.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn private_key(&self) -> Result<PrivateKeyDer<'static>, String> {
        use rustls::pki_types::pem::Error;
        let text = self.read()?;
        PrivateKeyDer::from_pem_slice(&text).map_err(|e| match e {
            Error::NoItemsFound if memchr::memmem::find(&text, b"ENCRYPTED PRIVATE KEY").is_some() => {
                format!("{}: encrypted private keys are not supported", self.label())
            }
            Error::NoItemsFound => format!("{}: no private key in PEM form", self.label()),
            e => format!("{}: not valid PEM: {e}", self.label()),
        })
    }
}
