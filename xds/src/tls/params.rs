//! Versions, cipher suites and curves.

use sixfold_core::error::ConfigError;
use sixfold_core::tls::{Protocols, TlsVersion};
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::TlsParameters;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, enum_value};

pub(super) fn protocols(value: Option<&TlsParameters>) -> Result<Protocols> {
    let Some(value) = value else { return Ok(Protocols::default()) };
    let TlsParameters {
        tls_minimum_protocol_version,
        tls_maximum_protocol_version,
        cipher_suites,
        ecdh_curves,
        signature_algorithms,
        compliance_policies,
    } = value;
    refuse!(signature_algorithms, compliance_policies);
    let version = |value: i32, field: &str| {
        Ok(match enum_value(value, field)? {
            TlsProtocol::TlsAuto => None,
            TlsProtocol::TlSv12 => Some(TlsVersion::V12),
            TlsProtocol::TlSv13 => Some(TlsVersion::V13),
            TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
                return Err(ConfigError::field(field, "TLS 1.0 and 1.1 are not supported"));
            }
        })
    };
    let protocols = Protocols {
        min: version(*tls_minimum_protocol_version, "tls_minimum_protocol_version")?,
        max: version(*tls_maximum_protocol_version, "tls_maximum_protocol_version")?,
        cipher_suites: spoken(cipher_suites),
        curves: ecdh_curves.clone(),
    };
    protocols.check()?;
    Ok(protocols)
}

/// Cipher suites that Envoy has and rustls has not: exchange of keys by RSA or shared in advance, CBC, 3DES.
const UNSPOKEN: [&str; 15] = [
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-PSK-AES128-CBC-SHA",
    "ECDHE-PSK-AES256-CBC-SHA",
    "ECDHE-PSK-CHACHA20-POLY1305",
    "PSK-AES128-CBC-SHA",
    "PSK-AES256-CBC-SHA",
];

/// The suites that can be spoken; all of them if that leaves none, so that it is an error.
fn spoken(suites: &[String]) -> Vec<String> {
    let known = |name: &&str| !UNSPOKEN.contains(name);
    let left = suites.iter().map(|group| {
        let names = group.trim_matches(['[', ']']).split('|').filter(known).collect::<Vec<_>>();
        names.join("|")
    });
    let left: Vec<_> = left.filter(|group| !group.is_empty()).collect();
    if left.is_empty() { suites.to_vec() } else { left }
}
