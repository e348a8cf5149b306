//! Versions, cipher suites and curves.

use sixfold_core::error::{ConfigError, Faults};
use sixfold_core::tls::{Protocols, TlsVersion};
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::TlsParameters;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use sixfold_xds_api::refused;
use sixfold_xds_api::values::{Result, enum_value};

use super::ciphers;

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
    let mut faults = Faults::default();
    faults.take(refused!(signature_algorithms, compliance_policies));
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
        min: faults.take(version(*tls_minimum_protocol_version, "tls_minimum_protocol_version")),
        max: faults.take(version(*tls_maximum_protocol_version, "tls_maximum_protocol_version")),
        cipher_suites: faults.take(ciphers::spoken(cipher_suites)),
        // Envoy hands them on as one list.
        curves: ecdh_curves.iter().flat_map(|item| item.split(':')).map(str::to_owned).collect(),
    };
    faults.take(protocols.check());
    faults.end(protocols)
}
