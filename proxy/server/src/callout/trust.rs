//! Whom callouts over TLS trust.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// Where systems keep their authorities.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// TLS settings, made when they are first needed.
pub(super) struct Trust {
    file: Option<PathBuf>,
    verified: OnceLock<Result<Arc<ClientConfig>, String>>,
    unverified: OnceLock<Result<Arc<ClientConfig>, String>>,
}

impl Trust {
    pub(super) fn new(file: Option<PathBuf>) -> Trust {
        Trust { file, verified: OnceLock::new(), unverified: OnceLock::new() }
    }

    /// Settings for a service that is verified or not.
    pub(super) fn client(&self, verify: bool) -> Result<Arc<ClientConfig>, String> {
        let made = if verify {
            self.verified.get_or_init(|| verified(&self.authorities()?))
        } else {
            self.unverified.get_or_init(unverified)
        };
        made.clone()
    }

    fn authorities(&self) -> Result<RootCertStore, String> {
        let found = self.file.clone().or_else(|| SYSTEM.iter().map(PathBuf::from).find(|p| p.exists()));
        let file = found.ok_or("no file of trusted certificates found")?;
        let wrong = |e: &dyn std::fmt::Display| format!("trusted certificates {}: {e}", file.display());
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&file).map_err(|e| wrong(&e))? {
            // A bundle may hold what no verifier can use; the rest of it is good.
            let _ = store.add(certificate.map_err(|e| wrong(&e))?);
        }
        if store.is_empty() { Err(wrong(&"none in it")) } else { Ok(store) }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn verified(store: &RootCertStore) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| e.to_string())?;
    Ok(Arc::new(builder.with_root_certificates(store.clone()).with_no_client_auth()))
}

fn unverified() -> Result<Arc<ClientConfig>, String> {
    let provider = provider();
    let anyone = Anyone(provider.signature_verification_algorithms);
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| e.to_string())?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(anyone));
    Ok(Arc::new(builder.with_no_client_auth()))
}

/// Takes any certificate: `ssl_verify: false`. Signatures are still checked.
#[derive(Debug)]
struct Anyone(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
