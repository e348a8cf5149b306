//! Versions, cipher suites and curves as far as rustls has them.

use crate::error::{ConfigContext, ConfigError, Faults, collect};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::{CipherSuite, NamedGroup, SupportedCipherSuite, SupportedProtocolVersion, version};
use std::sync::Arc;

/// Versions of TLS. Older ones don't exist here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.2
    V12,
    /// TLS 1.3
    V13,
}

impl TlsVersion {
    /// From Envoy's (`TLSv1_2`) or nginx's (`TLSv1.2`) spelling.
    ///
    /// # Errors
    /// Names a version that is not supported.
    pub fn parse(text: &str) -> Result<TlsVersion, String> {
        match text {
            "TLSv1_2" | "TLSv1.2" => Ok(TlsVersion::V12),
            "TLSv1_3" | "TLSv1.3" => Ok(TlsVersion::V13),
            other => Err(format!("\"{other}\" is not supported; there are TLSv1.2 and TLSv1.3")),
        }
    }
}

/// What is negotiated (Envoy's TlsParameters; APISIX's `ssl_protocols` and `ssl_ciphers`). The default is all
/// that rustls has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Protocols {
    /// Lowest version.
    pub min: Option<TlsVersion>,
    /// Highest version.
    pub max: Option<TlsVersion>,
    /// Cipher suites of TLS 1.2 in order of preference, with OpenSSL's or IANA's names; empty for all. Those
    /// of TLS 1.3 can't be chosen, as in Envoy.
    pub cipher_suites: Vec<String>,
    /// Key exchange groups in order of preference, with OpenSSL's names; empty for all.
    pub curves: Vec<String>,
}

impl Protocols {
    /// Whether there is anything to negotiate.
    ///
    /// # Errors
    /// Names the field and what is wrong with it.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.provider().map(drop)
    }

    pub(super) fn versions(&self) -> Result<Vec<&'static SupportedProtocolVersion>, ConfigError> {
        let (min, max) = (self.min.unwrap_or(TlsVersion::V12), self.max.unwrap_or(TlsVersion::V13));
        if min > max {
            let reason = "the lowest TLS version is above the highest";
            return Err(ConfigError::field("tls_minimum_protocol_version", reason));
        }
        let all = [(TlsVersion::V13, &version::TLS13), (TlsVersion::V12, &version::TLS12)];
        Ok(all.into_iter().filter(|(v, _)| (min..=max).contains(v)).map(|(_, v)| v).collect())
    }

    pub(super) fn provider(&self) -> Result<Arc<CryptoProvider>, ConfigError> {
        let (mut provider, mut faults) = (aws_lc_rs::default_provider(), Faults::default());
        let names = self.cipher_suites.iter().flat_map(|s| s.trim_matches(['[', ']']).split('|'));
        let named = faults.take(collect(names.map(cipher_suite)).in_key("cipher_suites"));
        let curves = faults.take(collect(self.curves.iter().map(|name| curve(name))).in_key("ecdh_curves"));
        let versions = faults.take(self.versions());
        faults.end(())?;
        if !self.cipher_suites.is_empty() {
            let tls13 = provider.cipher_suites.iter().filter(|s| is_tls13(s)).copied();
            provider.cipher_suites = tls13.chain(named).collect();
        }
        // Suites of a version that is not spoken would be offered all the same.
        provider.cipher_suites.retain(|s| versions.iter().any(|v| v.version == s.version().version));
        if provider.cipher_suites.is_empty() {
            return Err(ConfigError::field("cipher_suites", "none belongs to the TLS versions chosen"));
        }
        if !self.curves.is_empty() {
            provider.kx_groups = curves;
        }
        Ok(Arc::new(provider))
    }
}

fn is_tls13(suite: &SupportedCipherSuite) -> bool {
    matches!(suite, SupportedCipherSuite::Tls13(_))
}

/// Whether there is a cipher suite of this name, OpenSSL's or IANA's.
pub fn is_cipher_suite(name: &str) -> bool {
    cipher_suite(name).is_ok()
}

fn cipher_suite(name: &str) -> Result<SupportedCipherSuite, ConfigError> {
    let found = aws_lc_rs::ALL_CIPHER_SUITES
        .iter()
        .find(|s| name == cipher_name(s.suite()) || s.suite().as_str().is_some_and(|iana| iana == name));
    found.copied().ok_or_else(|| {
        let known: Vec<_> = aws_lc_rs::ALL_CIPHER_SUITES.iter().map(|s| cipher_name(s.suite())).collect();
        ConfigError::new(format!("cipher suite \"{name}\" is not supported; there are {}", known.join(", ")))
    })
}

fn curve(name: &str) -> Result<&'static dyn SupportedKxGroup, ConfigError> {
    use aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
    Ok(match name {
        "X25519" => X25519,
        "P-256" | "prime256v1" | "secp256r1" => SECP256R1,
        "P-384" | "secp384r1" => SECP384R1,
        "X25519MLKEM768" => X25519MLKEM768,
        _ => {
            let known = "X25519, P-256, P-384, X25519MLKEM768";
            return Err(ConfigError::new(format!("curve \"{name}\" is not supported; there are {known}")));
        }
    })
}

/// BoringSSL's name of a group of the key exchange; empty for one that it does not have.
pub fn curve_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        NamedGroup::secp521r1 => "P-521",
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        _ => "",
    }
}

/// OpenSSL's name of a cipher suite, which logs show.
pub fn cipher_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        other => other.as_str().unwrap_or("unknown"),
    }
}
