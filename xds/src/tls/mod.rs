//! TLS of filter chains and clusters.

mod ciphers;
mod params;
mod socket;
#[cfg(test)]
mod tests;
mod validation;

use std::sync::Arc;

use sixfold_core::error::{ConfigContext, ConfigError, Faults};
use sixfold_core::tls::{
    ClientCache, ClientContext, ClientSettings, Identity, Pem, Protocols, ServerContext, ServerSettings,
    Tickets, TlsVersion, Validation,
};
use sixfold_xds_api::pb::envoy::config::core::v3::{DataSource, data_source};
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, GenericSecret, Secret, TlsCertificate, TlsSessionTicketKeys,
    UpstreamTlsContext, common_tls_context, secret,
};
use sixfold_xds_api::values::{Result, bool_or, required};
use sixfold_xds_api::{refuse, refused};

use crate::sds::Lookup;
pub(crate) use socket::{Transports, server};
use validation::Wanted;

/// What a cluster says of the names of its endpoints, beside their TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AutomaticNames {
    /// `auto_sni`
    pub(crate) sni: bool,
    /// `auto_san_validation`
    pub(crate) san_validation: bool,
}

/// The settings of a filter chain for these server names, compiled; `None` when a secret of them has not come.
pub(crate) fn server_context(
    lookup: &Lookup<'_>,
    value: &DownstreamTlsContext,
    server_names: &[String],
) -> Result<Option<Arc<ServerContext>>> {
    let mut faults = Faults::default();
    let settings = server_settings(lookup, value, server_names, &mut faults);
    // What it was made of is looked at where something else is wrong, too.
    let made = settings.map(ServerContext::new).transpose();
    let made = made.map_err(|error| error.renamed(|field| as_written(field, &value.common_tls_context)));
    let made = faults.take(made);
    faults.end(made)
}

/// The settings of a cluster, compiled; `None` when a secret of them has not come.
pub(crate) fn client_context(
    cache: &ClientCache,
    lookup: &Lookup<'_>,
    value: &UpstreamTlsContext,
    names: AutomaticNames,
) -> Result<Option<Arc<ClientContext>>> {
    let mut faults = Faults::default();
    let settings = client_settings(lookup, value, names, &mut faults);
    let made = settings.map(|settings| cache.context(settings)).transpose();
    let made = made.map_err(|error| error.renamed(|field| as_written(field, &value.common_tls_context)));
    let made = faults.take(made);
    faults.end(made)
}

/// Where the user has written what the compiled settings call `field`.
fn as_written(field: &str, common: &Option<CommonTlsContext>) -> String {
    use common_tls_context::ValidationContextType;
    const COMMON: &str = "common_tls_context";
    let none = CommonTlsContext::default();
    let common = common.as_ref().unwrap_or(&none);
    let head = field.split(['.', '[']).next().unwrap_or_default();
    match head {
        // Those of a secret are told by their number.
        "sni" | "session_ticket_keys" => field.to_owned(),
        "cipher_suites" | "ecdh_curves" | "tls_minimum_protocol_version" => {
            format!("{COMMON}.tls_params.{field}")
        }
        // A client has one certificate.
        "certificate_chain" | "private_key" if common.tls_certificates.is_empty() => {
            format!("{COMMON}.tls_certificate_sds_secret_configs[0]")
        }
        "certificate_chain" | "private_key" => format!("{COMMON}.tls_certificates[0].{field}"),
        // Those of secrets come behind the others.
        "tls_certificates" => {
            let index =
                field.strip_prefix("tls_certificates[").and_then(|rest| rest.split(']').next()?.parse().ok());
            match index.and_then(|index: usize| index.checked_sub(common.tls_certificates.len())) {
                Some(secret) => format!("{COMMON}.tls_certificate_sds_secret_configs[{secret}]"),
                None => format!("{COMMON}.{field}"),
            }
        }
        _ => match &common.validation_context_type {
            Some(ValidationContextType::ValidationContext(_)) => {
                format!("{COMMON}.validation_context.{field}")
            }
            Some(ValidationContextType::ValidationContextSdsSecretConfig(_)) => {
                format!("{COMMON}.validation_context_sds_secret_config")
            }
            Some(ValidationContextType::CombinedValidationContext(combined)) => {
                let default = combined.default_validation_context.as_ref();
                let own = match head {
                    "trusted_ca" => default.is_some_and(|of| of.trusted_ca.is_some()),
                    "crl" => default.is_some_and(|of| of.crl.is_some()),
                    _ => true,
                };
                match own {
                    true => {
                        format!("{COMMON}.combined_validation_context.default_validation_context.{field}")
                    }
                    false => {
                        format!("{COMMON}.combined_validation_context.validation_context_sds_secret_config")
                    }
                }
            }
            _ => format!("{COMMON}.{field}"),
        },
    }
}

/// Whether a secret is fit for use, whoever uses it.
pub(crate) fn check_secret(value: &Secret) -> Result<()> {
    match &value.r#type {
        Some(secret::Type::TlsCertificate(value)) => {
            identity(value).and_then(|identity| identity.check()).in_key("tls_certificate")
        }
        Some(secret::Type::ValidationContext(value)) => {
            let mut faults = Faults::default();
            let validation = validation::validation(value, &mut faults);
            faults.take(validation.check());
            faults.end(()).in_key("validation_context")
        }
        Some(secret::Type::SessionTicketKeys(value)) => {
            ticket_keys(value).and_then(|tickets| tickets.check()).in_key("session_ticket_keys")
        }
        Some(secret::Type::GenericSecret(value)) => text(value).map(drop).in_key("generic_secret"),
        None => Err(ConfigError::field("type", "is missing")),
    }
}

/// The text of a secret that is one. Who asks for an empty one finds none.
pub(crate) fn secret_text(value: &Secret) -> Result<Box<[u8]>> {
    match &value.r#type {
        Some(secret::Type::GenericSecret(generic)) => {
            let text = text(generic).in_key("generic_secret")?;
            if text.is_empty() {
                tracing::warn!("the secret \"{}\" is empty: it is not there for what needs it", value.name);
            }
            Ok(text)
        }
        _ => Err(ConfigError::new(format!("the secret \"{}\" is no generic_secret", value.name))),
    }
}

fn text(value: &GenericSecret) -> Result<Box<[u8]>> {
    let GenericSecret { secret, secrets } = value;
    refuse!(secrets);
    Ok(sixfold_xds_api::values::data_source(required(secret, "secret")?).in_key("secret")?.into())
}

/// `None` when a secret of it has not come, or nothing can be made of it; in the place of what is wrong stands nothing.
fn server_settings(
    lookup: &Lookup<'_>,
    value: &DownstreamTlsContext,
    server_names: &[String],
    faults: &mut Faults,
) -> Option<ServerSettings> {
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
    faults.take(refused!(
        require_sni,
        session_timeout,
        ocsp_staple_policy,
        full_scan_certs_on_sni_mismatch,
        prefer_client_ciphers
    ));
    let tickets = faults.keep(tickets(lookup, session_ticket_keys_type)).unwrap_or(Some(Tickets::Own));
    let mut within = Faults::default();
    let common = common(lookup, common_tls_context, &mut within);
    let is_sound = faults.keep(within.end(()).in_key("common_tls_context")).is_some();
    let common = common?;
    if common.identities.is_empty() {
        if is_sound {
            faults.take::<()>(Err(ConfigError::field("common_tls_context", "holds no certificate")));
        }
        return None;
    }
    Some(ServerSettings {
        identities: common.identities,
        alpn: common.alpn,
        protocols: common.protocols,
        validation: common.validation,
        require_client_certificate: bool_or(require_client_certificate, false),
        tickets: tickets?,
        session_ids: !*disable_stateful_session_resumption,
        server_names: server_names.to_vec(),
    })
}

/// `None` when the secret has not come.
fn tickets(lookup: &Lookup<'_>, value: &Option<SessionTicketKeysType>) -> Result<Option<Tickets>> {
    const SECRET: &str = "session_ticket_keys_sds_secret_config";
    Ok(Some(match value {
        Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)) => Tickets::Off,
        None | Some(SessionTicketKeysType::DisableStatelessSessionResumption(false)) => Tickets::Own,
        Some(SessionTicketKeysType::SessionTicketKeys(value)) => {
            ticket_keys(value).in_key("session_ticket_keys")?
        }
        Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(named)) => {
            let Some(secret) = lookup.find(named).in_key(SECRET)? else { return Ok(None) };
            match &secret.r#type {
                Some(secret::Type::SessionTicketKeys(value)) => ticket_keys(value).in_key(SECRET)?,
                _ => {
                    let reason = format!("secret \"{}\" is no session_ticket_keys", named.name);
                    return Err(ConfigError::field("name", reason).in_key(SECRET));
                }
            }
        }
    }))
}

fn ticket_keys(value: &TlsSessionTicketKeys) -> Result<Tickets> {
    let key = |(index, source)| pem(source).in_index(index).in_key("keys");
    value.keys.iter().enumerate().map(key).collect::<Result<_>>().map(Tickets::Keys)
}

/// `None` when a secret of it has not come; in the place of what is wrong stands nothing.
fn client_settings(
    lookup: &Lookup<'_>,
    value: &UpstreamTlsContext,
    names: AutomaticNames,
    faults: &mut Faults,
) -> Option<ClientSettings> {
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
    faults.take(refused!(allow_renegotiation));
    let none = CommonTlsContext::default();
    let fit = of_client(common_tls_context.as_ref().unwrap_or(&none), *auto_sni_san_validation);
    let is_fit = faults.keep(fit).is_some();
    let mut within = Faults::default();
    let common = common(lookup, common_tls_context, &mut within);
    let is_sound = faults.keep(within.end(()).in_key("common_tls_context")).is_some();
    let mut common = common?;
    let trusts = common.validation.as_ref().is_some_and(|validation| validation.trusted_ca.is_some());
    if *auto_sni_san_validation && !trusts && is_fit && is_sound {
        let reason = "needs a trusted_ca in the validation context";
        faults.take::<()>(Err(ConfigError::field("auto_sni_san_validation", reason)));
    }
    // common.proto: by default clients go up to TLS 1.2, servers up to 1.3.
    common.protocols.max = common.protocols.max.or(Some(TlsVersion::V12));
    Some(ClientSettings {
        identity: common.identities.pop(),
        alpn: common.alpn,
        protocols: common.protocols,
        validation: common.validation,
        sni: (!sni.is_empty()).then(|| sni.clone()),
        auto_sni: names.sni,
        auto_host_sni: *auto_host_sni,
        auto_san_validation: names.san_validation,
        auto_sni_san_validation: *auto_sni_san_validation,
        resumption: max_session_keys.as_ref().is_none_or(|max| max.value > 0),
    })
}

/// What a server may say and a client may not.
fn of_client(common: &CommonTlsContext, auto_sni_san_validation: bool) -> Result<()> {
    if common.tls_certificates.len() + common.tls_certificate_sds_secret_configs.len() > 1 {
        let reason = "a client has one certificate";
        return Err(ConfigError::field("common_tls_context.tls_certificates", reason));
    }
    // What else is wrong with them is told of both sides.
    if alpn(&common.alpn_protocols).is_ok_and(|names| names.iter().any(String::is_empty)) {
        let reason = "an empty name can't be offered to a server";
        return Err(ConfigError::field("common_tls_context.alpn_protocols", reason));
    }
    if auto_sni_san_validation && common.validation_context_type.is_none() {
        let reason = "needs a validation context, without which no certificate is looked at";
        return Err(ConfigError::field("auto_sni_san_validation", reason));
    }
    Ok(())
}

/// Names of protocols. Envoy takes them apart at commas once more (common/tls/context_impl.cc, `parseAlpnProtocols`).
fn alpn(values: &[String]) -> Result<Vec<String>> {
    // One that is empty is none; two are two empty names.
    if values.len() < 2 && values.iter().all(String::is_empty) {
        return Ok(Vec::new());
    }
    // As Envoy has them before it takes them apart; TLS has no room for more.
    let together = values.iter().map(|value| value.len() + 1).sum::<usize>().saturating_sub(1);
    if together >= usize::from(u16::MAX) {
        let reason = format!("all names must have less than 65535 bytes together, not {together}");
        return Err(ConfigError::field("alpn_protocols", reason));
    }
    let mut names = Vec::new();
    for (index, value) in values.iter().enumerate() {
        for name in value.split(',') {
            // RFC 7301, section 3.1: one byte says how long it is.
            if name.len() > usize::from(u8::MAX) {
                let reason = format!("a name has 255 bytes at most, not {}", name.len());
                return Err(ConfigError::new(reason).in_index(index).in_key("alpn_protocols"));
            }
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// What both sides have.
struct Common {
    identities: Vec<Identity>,
    alpn: Vec<String>,
    protocols: Protocols,
    validation: Option<Validation>,
}

/// `None` when a secret of it has not come; what else is wrong is told all the same, and in its place stands nothing.
fn common(lookup: &Lookup<'_>, value: &Option<CommonTlsContext>, faults: &mut Faults) -> Option<Common> {
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
    faults.take(refused!(
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        custom_handshaker,
        key_log
    ));
    let (mut identities, mut whole) = (Vec::new(), true);
    for (index, value) in tls_certificates.iter().enumerate() {
        identities.extend(faults.keep(identity(value).in_index(index).in_key("tls_certificates")));
    }
    for (index, value) in tls_certificate_sds_secret_configs.iter().enumerate() {
        let of_secret = || match lookup.find(value)?.as_deref().map(|secret| &secret.r#type) {
            None => Ok(None),
            Some(Some(secret::Type::TlsCertificate(certificate))) => identity(certificate).map(Some),
            Some(_) => {
                let reason = format!("secret \"{}\" is no tls_certificate", value.name);
                Err(ConfigError::field("name", reason))
            }
        };
        match faults.keep(of_secret().in_index(index).in_key("tls_certificate_sds_secret_configs")) {
            Some(Some(identity)) => identities.push(identity),
            Some(None) => whole = false,
            None => {}
        }
    }
    if whole && identities.len() < tls_certificates.len() + tls_certificate_sds_secret_configs.len() {
        // What is wrong with the others would be told of others' positions.
        identities.clear();
    }
    let alpn = faults.take(alpn(alpn_protocols));
    let protocols = faults.take(params::protocols(tls_params.as_ref()).in_key("tls_params"));
    let validation = match validation::compile(lookup, validation_context_type.as_ref(), faults) {
        Wanted::Nothing => None,
        Wanted::Whole(validation) => Some(validation),
        Wanted::NotYet => return None,
    };
    if !whole {
        faults.take(validation.map(Validation::check).transpose().in_key("validation_context"));
        return None;
    }
    Some(Common { identities, alpn, protocols, validation })
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
    let part = |source: &Option<DataSource>, field: &str| {
        required(source, field).and_then(|source| pem(source).in_key(field))
    };
    let mut faults = Faults::default();
    let chain = faults.keep(part(certificate_chain, "certificate_chain"));
    let key = faults.keep(part(private_key, "private_key"));
    Ok(Identity { chain: faults.kept(chain)?, key: faults.kept(key)? })
}

fn pem(source: &DataSource) -> Result<Pem> {
    match &source.specifier {
        Some(data_source::Specifier::Filename(path)) => Ok(Pem::File(path.into())),
        _ => sixfold_xds_api::values::data_source(source).map(Pem::Inline),
    }
}
