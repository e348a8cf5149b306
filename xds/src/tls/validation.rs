//! How the certificate of the other side is verified.

use prost::Message;
use sixfold_core::error::{ConfigContext, ConfigError, Faults, collect};
use sixfold_core::tls::{SanKind, SanMatcher, Validation};
use sixfold_xds_api::matcher;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SdsSecretConfig, SubjectAltNameMatcher, secret,
};
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::StringMatcher;
use sixfold_xds_api::values::{Result, enum_value, required};
use sixfold_xds_api::{refuse, refused};

use super::pem;
use crate::sds::Lookup;

/// What a context says of it: nothing, or what there is of it.
pub(super) enum Wanted {
    /// A certificate of any kind will do.
    Nothing,
    /// All of it.
    Whole(Validation),
    /// A secret that has not come is a part of it.
    NotYet,
}

/// In the place of what is wrong stands nothing.
pub(super) fn compile(
    lookup: &Lookup<'_>,
    value: Option<&ValidationContextType>,
    faults: &mut Faults,
) -> Wanted {
    let unsupported = |field: &str| Err(ConfigError::field(field, "is not supported"));
    let mut within = Faults::default();
    let (result, key) = match value {
        None => return Wanted::Nothing,
        Some(ValidationContextType::ValidationContext(value)) => {
            (Ok(Some(validation(value, &mut within))), "validation_context")
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            let secret = of_secret(lookup, config);
            let value = secret.map(|value| value.map(|value| validation(&value, &mut within)));
            (value, "validation_context_sds_secret_config")
        }
        Some(ValidationContextType::CombinedValidationContext(value)) => {
            (combined(lookup, value, &mut within), "combined_validation_context")
        }
        Some(ValidationContextType::ValidationContextCertificateProvider(_)) => {
            faults.take::<()>(unsupported("validation_context_certificate_provider"));
            return Wanted::Nothing;
        }
        Some(ValidationContextType::ValidationContextCertificateProviderInstance(_)) => {
            faults.take::<()>(unsupported("validation_context_certificate_provider_instance"));
            return Wanted::Nothing;
        }
    };
    let wanted = match within.keep(result) {
        None => Wanted::Nothing,
        Some(None) => Wanted::NotYet,
        Some(Some(validation)) => Wanted::Whole(validation),
    };
    faults.take(within.end(()).in_key(key));
    wanted
}

fn of_secret(lookup: &Lookup<'_>, config: &SdsSecretConfig) -> Result<Option<CertificateValidationContext>> {
    let Some(secret) = lookup.find(config)? else { return Ok(None) };
    match &secret.r#type {
        Some(secret::Type::ValidationContext(value)) => Ok(Some(value.clone())),
        _ => Err(ConfigError::field("name", format!("secret \"{}\" is no validation_context", config.name))),
    }
}

/// The secret's message merged into the default one: what it sets wins, lists are joined.
fn combined(
    lookup: &Lookup<'_>,
    value: &CombinedCertificateValidationContext,
    faults: &mut Faults,
) -> Result<Option<Validation>> {
    const SECRET: &str = "validation_context_sds_secret_config";
    let CombinedCertificateValidationContext {
        default_validation_context,
        validation_context_sds_secret_config,
        validation_context_certificate_provider,
        validation_context_certificate_provider_instance,
    } = value;
    refuse!(validation_context_certificate_provider, validation_context_certificate_provider_instance);
    let mut merged = required(default_validation_context, "default_validation_context")?.clone();
    let secret = of_secret(lookup, required(validation_context_sds_secret_config, SECRET)?).in_key(SECRET)?;
    if let Some(secret) = &secret {
        merged
            .merge(secret.encode_to_vec().as_slice())
            .map_err(|error| ConfigError::field(SECRET, error.to_string()))?;
    }
    // What is wrong in the default one is told before the secret comes.
    let mut within = Faults::default();
    let compiled = validation(&merged, &mut within);
    faults.take(within.end(()).in_key("default_validation_context"));
    Ok(secret.map(|_| compiled))
}

/// In the place of what is wrong stands nothing.
pub(super) fn validation(value: &CertificateValidationContext, faults: &mut Faults) -> Validation {
    let CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory: _,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names: untyped,
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
    faults.take(refused!(
        ca_certificate_provider_instance,
        system_root_certs,
        require_signed_certificate_timestamp,
        allow_expired_certificate,
        custom_validator_config
    ));
    let typed = match_typed_subject_alt_names.iter().enumerate();
    let typed = typed.map(|(index, value)| san(value).in_index(index));
    let mut sans = faults.take(collect(typed).in_key("match_typed_subject_alt_names"));
    let untyped = untyped.iter().enumerate().map(|(index, value)| of_any_kind(value).in_index(index));
    sans.extend(faults.take(collect(untyped).in_key("match_subject_alt_names")).into_iter().flatten());
    let crl = faults.take(crl.as_ref().map(pem).transpose().in_key("crl"));
    let trust = enum_value(*trust_chain_verification, "trust_chain_verification");
    let trust = faults.keep(trust).unwrap_or(TrustChainVerification::VerifyTrustChain);
    let trusted_ca = faults.keep(trusted_ca.as_ref().map(pem).transpose().in_key("trusted_ca"));
    // What needs an authority would be told to lack it.
    let Some(trusted_ca) = trusted_ca else { return Validation::default() };
    Validation {
        trusted_ca,
        crl,
        only_leaf_crl: *only_verify_leaf_cert_crl,
        hashes: verify_certificate_hash.clone(),
        spki: verify_certificate_spki.clone(),
        sans,
        accept_untrusted: trust == TrustChainVerification::AcceptUntrusted,
        max_depth: max_verify_depth.as_ref().map(|depth| depth.value as usize),
    }
}

/// The older form of a matcher looks at names of every kind (common/tls/cert_validator/default_validator.cc).
fn of_any_kind(value: &StringMatcher) -> Result<[SanMatcher; 4]> {
    let of = |kind| Ok(SanMatcher { kind, matcher: matcher::string(value)? });
    Ok([of(SanKind::Uri)?, of(SanKind::Dns)?, of(SanKind::Email)?, of(SanKind::Ip)?])
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
