//! TLS of filter chains and clusters.

use std::sync::Arc;

use prost::{Message, Name};
use sixfold_core::cluster::UpstreamProtocol;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::tls::{
    ClientContext, ClientSettings, ClientTls, Identity, Pem, Protocols, SanKind, SanMatcher, ServerContext,
    ServerSettings, ServerTls, TlsVersion, Validation,
};
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::core::v3::{
    DataSource, TransportSocket, data_source, transport_socket::ConfigType,
};
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
    SubjectAltNameMatcher, TlsCertificate, TlsParameters, UpstreamTlsContext, secret,
};

use crate::cluster::Protocol;
use crate::context::Context;
use sixfold_xds_api::matcher;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, bool_or, enum_value, required};

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";

/// The transport socket of a filter chain; `None` is plain text.
pub(crate) fn server(context: &Context, socket: &Option<TransportSocket>) -> Result<Option<Arc<ServerTls>>> {
    let Some(tls) = of_socket::<DownstreamTlsContext>(socket)? else { return Ok(None) };
    let settings = server_settings(context, &tls).in_key("typed_config")?;
    let compiled = ServerContext::new(settings).in_key("common_tls_context").in_key("typed_config")?;
    Ok(Some(ServerTls::single(compiled)))
}

/// The transport socket of a cluster; `None` is plain text.
pub(crate) fn client(
    context: &Context,
    socket: &Option<TransportSocket>,
    protocol: &Protocol,
) -> Result<Option<Arc<ClientTls>>> {
    let Some(tls) = of_socket::<UpstreamTlsContext>(socket)? else {
        // What is asked for by auto_sni and auto_san_validation is of no matter without TLS, but nobody could agree on
        // a protocol.
        if protocol.protocol == UpstreamProtocol::Auto {
            return Err(ConfigError::new("must be one of TLS for auto_config, which asks endpoints by ALPN"));
        }
        return Ok(None);
    };
    let settings = client_settings(context, &tls, protocol).in_key("typed_config")?;
    let compiled = ClientContext::new(settings).in_key("common_tls_context").in_key("typed_config")?;
    Ok(Some(ClientTls::new(Some(compiled))))
}

/// The TLS settings of a socket, `None` if it is plain text.
fn of_socket<M: Message + Default + Name>(socket: &Option<TransportSocket>) -> Result<Option<M>> {
    let Some(TransportSocket { name, config_type }) = socket else { return Ok(None) };
    let config = match config_type {
        Some(ConfigType::TypedConfig(config)) => config,
        None => return Err(ConfigError::field("typed_config", "is missing")),
    };
    let kind = any::type_name(config).in_key("typed_config")?;
    if kind == RAW_BUFFER {
        return Ok(None);
    }
    if kind != M::full_name() {
        return Err(refuse::extension("transport socket", name, &kind));
    }
    any::unpack(config).map(Some).in_key("typed_config")
}

fn server_settings(context: &Context, value: &DownstreamTlsContext) -> Result<ServerSettings> {
    let DownstreamTlsContext {
        common_tls_context,
        require_client_certificate,
        require_sni,
        disable_stateful_session_resumption,
        session_timeout,
        ocsp_staple_policy,
        full_scan_certs_on_sni_mismatch,
        prefer_client_ciphers,
        session_ticket_keys_type,
    } = value;
    refuse!(
        require_sni,
        session_timeout,
        ocsp_staple_policy,
        full_scan_certs_on_sni_mismatch,
        prefer_client_ciphers
    );
    let stateless_off = match session_ticket_keys_type {
        None => false,
        Some(SessionTicketKeysType::DisableStatelessSessionResumption(off)) => *off,
        Some(SessionTicketKeysType::SessionTicketKeys(_)) => {
            return Err(ConfigError::field("session_ticket_keys", "is not supported"));
        }
        Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(_)) => {
            return Err(ConfigError::field("session_ticket_keys_sds_secret_config", "is not supported"));
        }
    };
    let common = common(context, common_tls_context).in_key("common_tls_context")?;
    if common.identities.is_empty() {
        return Err(ConfigError::field("common_tls_context", "holds no certificate"));
    }
    Ok(ServerSettings {
        identities: common.identities,
        alpn: common.alpn,
        protocols: common.protocols,
        validation: common.validation,
        require_client_certificate: bool_or(require_client_certificate, false),
        // Tickets are the only way sessions are resumed here.
        resumption: !(stateless_off || *disable_stateful_session_resumption),
    })
}

fn client_settings(
    context: &Context,
    value: &UpstreamTlsContext,
    protocol: &Protocol,
) -> Result<ClientSettings> {
    let UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation,
        allow_renegotiation,
        max_session_keys,
        // Only matters for key exchange by RSA, which there is not.
        enforce_rsa_key_usage: _,
    } = value;
    refuse!(allow_renegotiation);
    let mut common = common(context, common_tls_context).in_key("common_tls_context")?;
    if common.identities.len() > 1 {
        return Err(ConfigError::field(
            "common_tls_context.tls_certificates",
            "a client has one certificate",
        ));
    }
    // common.proto: by default clients go up to TLS 1.2, servers up to 1.3.
    common.protocols.max = common.protocols.max.or(Some(TlsVersion::V12));
    Ok(ClientSettings {
        identity: common.identities.pop(),
        alpn: common.alpn,
        protocols: common.protocols,
        validation: common.validation,
        sni: (!sni.is_empty()).then(|| sni.clone()),
        auto_sni: protocol.auto_sni,
        auto_host_sni: *auto_host_sni,
        auto_san_validation: *auto_sni_san_validation || protocol.auto_san_validation,
        resumption: max_session_keys.as_ref().is_none_or(|max| max.value > 0),
    })
}

/// What both sides have.
struct Common {
    identities: Vec<Identity>,
    alpn: Vec<String>,
    protocols: Protocols,
    validation: Option<Validation>,
}

fn common(context: &Context, value: &Option<CommonTlsContext>) -> Result<Common> {
    let default = CommonTlsContext::default();
    let CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        alpn_protocols,
        custom_handshaker,
        key_log,
        validation_context_type,
    } = value.as_ref().unwrap_or(&default);
    refuse!(
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        custom_handshaker,
        key_log
    );
    let mut identities = Vec::new();
    for (index, value) in tls_certificates.iter().enumerate() {
        identities.push(identity(value).in_index(index).in_key("tls_certificates")?);
    }
    for (index, value) in tls_certificate_sds_secret_configs.iter().enumerate() {
        let of_secret = match static_secret(context, value) {
            Ok(secret::Type::TlsCertificate(certificate)) => identity(certificate),
            Ok(_) => Err(ConfigError::field("name", "the secret is no tls_certificate")),
            Err(error) => Err(error),
        };
        identities.push(of_secret.in_index(index).in_key("tls_certificate_sds_secret_configs")?);
    }
    Ok(Common {
        identities,
        alpn: alpn_protocols.clone(),
        protocols: protocols(tls_params.as_ref()).in_key("tls_params")?,
        validation: validation_context_type
            .as_ref()
            .map(|value| validation_type(context, value))
            .transpose()?,
    })
}

/// A secret of the bootstrap by its name.
fn static_secret<'a>(context: &'a Context, value: &SdsSecretConfig) -> Result<&'a secret::Type> {
    let SdsSecretConfig { name, sds_config } = value;
    refuse!(sds_config);
    let found = context.secrets.get(name).and_then(|secret| secret.r#type.as_ref());
    found.ok_or_else(|| ConfigError::field("name", format!("there is no secret \"{name}\"")))
}

fn protocols(value: Option<&TlsParameters>) -> Result<Protocols> {
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
    Ok(Protocols {
        min: version(*tls_minimum_protocol_version, "tls_minimum_protocol_version")?,
        max: version(*tls_maximum_protocol_version, "tls_maximum_protocol_version")?,
        cipher_suites: cipher_suites.clone(),
        curves: ecdh_curves.clone(),
    })
}

fn identity(value: &TlsCertificate) -> Result<Identity> {
    let TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        // Files are read again when the resource is compiled again.
        watched_directory: _,
        private_key_provider,
        password,
        ocsp_staple,
        signed_certificate_timestamp,
        tls_params,
    } = value;
    refuse!(pkcs12, private_key_provider, password, ocsp_staple, signed_certificate_timestamp, tls_params);
    Ok(Identity {
        chain: required(certificate_chain, "certificate_chain")
            .and_then(|source| pem(source).in_key("certificate_chain"))?,
        key: required(private_key, "private_key").and_then(|source| pem(source).in_key("private_key"))?,
    })
}

fn pem(source: &DataSource) -> Result<Pem> {
    match &source.specifier {
        Some(data_source::Specifier::Filename(path)) => Ok(Pem::File(path.into())),
        _ => sixfold_xds_api::values::data_source(source).map(Pem::Inline),
    }
}

fn validation_type(context: &Context, value: &ValidationContextType) -> Result<Validation> {
    let unsupported = |field: &str| Err(ConfigError::field(field, "is not supported"));
    match value {
        ValidationContextType::ValidationContext(value) => validation(value).in_key("validation_context"),
        ValidationContextType::ValidationContextSdsSecretConfig(config) => secret_validation(context, config)
            .and_then(validation)
            .in_key("validation_context_sds_secret_config"),
        ValidationContextType::CombinedValidationContext(value) => {
            combined(context, value).in_key("combined_validation_context")
        }
        ValidationContextType::ValidationContextCertificateProvider(_) => {
            unsupported("validation_context_certificate_provider")
        }
        ValidationContextType::ValidationContextCertificateProviderInstance(_) => {
            unsupported("validation_context_certificate_provider_instance")
        }
    }
}

fn secret_validation<'a>(
    context: &'a Context,
    config: &SdsSecretConfig,
) -> Result<&'a CertificateValidationContext> {
    match static_secret(context, config)? {
        secret::Type::ValidationContext(value) => Ok(value),
        _ => Err(ConfigError::field("name", "the secret is no validation_context")),
    }
}

/// The secret's message merged into the default one: what it sets wins, lists are joined.
fn combined(context: &Context, value: &CombinedCertificateValidationContext) -> Result<Validation> {
    let CombinedCertificateValidationContext {
        default_validation_context,
        validation_context_sds_secret_config,
        validation_context_certificate_provider,
        validation_context_certificate_provider_instance,
    } = value;
    refuse!(validation_context_certificate_provider, validation_context_certificate_provider_instance);
    let mut merged = required(default_validation_context, "default_validation_context")?.clone();
    let config = required(validation_context_sds_secret_config, "validation_context_sds_secret_config")?;
    let secret = secret_validation(context, config).in_key("validation_context_sds_secret_config")?;
    merged
        .merge(secret.encode_to_vec().as_slice())
        .map_err(|error| ConfigError::field("validation_context_sds_secret_config", error.to_string()))?;
    validation(&merged).in_key("default_validation_context")
}

fn validation(value: &CertificateValidationContext) -> Result<Validation> {
    let CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory: _,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl,
        max_verify_depth,
        // The list of authorities is a hint to clients.
        suppress_client_ca_list: _,
    } = value;
    refuse!(
        ca_certificate_provider_instance,
        system_root_certs,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        allow_expired_certificate,
        custom_validator_config
    );
    let sans =
        match_typed_subject_alt_names.iter().enumerate().map(|(index, value)| san(value).in_index(index));
    Ok(Validation {
        trusted_ca: trusted_ca.as_ref().map(pem).transpose().in_key("trusted_ca")?,
        crl: crl.as_ref().map(pem).transpose().in_key("crl")?,
        only_leaf_crl: *only_verify_leaf_cert_crl,
        hashes: verify_certificate_hash.clone(),
        spki: verify_certificate_spki.clone(),
        sans: sans.collect::<Result<_>>().in_key("match_typed_subject_alt_names")?,
        accept_untrusted: match enum_value(*trust_chain_verification, "trust_chain_verification")? {
            TrustChainVerification::VerifyTrustChain => false,
            TrustChainVerification::AcceptUntrusted => true,
        },
        max_depth: max_verify_depth.as_ref().map(|depth| depth.value as usize),
    })
}

fn san(value: &SubjectAltNameMatcher) -> Result<SanMatcher> {
    let SubjectAltNameMatcher { san_type, matcher: test, oid } = value;
    refuse!(oid);
    let kind = match enum_value(*san_type, "san_type")? {
        SanType::Email => SanKind::Email,
        SanType::Dns => SanKind::Dns,
        SanType::Uri => SanKind::Uri,
        SanType::IpAddress => SanKind::Ip,
        SanType::OtherName => return Err(ConfigError::field("san_type", "OTHER_NAME is not supported")),
        SanType::Unspecified => return Err(ConfigError::field("san_type", "is missing")),
    };
    let test = required(test, "matcher")?;
    Ok(SanMatcher { kind, matcher: matcher::string(test).in_key("matcher")? })
}
