//! An authority of a mesh, whose certificates nobody has had before.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// What trusts it: `validation_context` with its value.
    pub fn trusted(&self) -> String {
        format!("validation_context: {{trusted_ca: {{inline_string: {:?}}}}}", self.pem)
    }

    /// A certificate with its key, as the value of `tls_certificate`.
    pub fn identity(&self, uri: &str) -> String {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        certificate(&chain, &key.serialize_pem())
    }
}

/// A certificate with its key, as the value of `tls_certificate`.
pub fn certificate(chain: &str, key: &str) -> String {
    format!("{{certificate_chain: {{inline_string: {chain:?}}}, private_key: {{inline_string: {key:?}}}}}")
}
