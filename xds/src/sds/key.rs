//! Names of secrets and where each comes from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret, secret,
};
use sixfold_xds_api::values::{Result, not_empty};

use crate::context::Context;
use crate::rds::{self, Source};

/// A secret: where it comes from, and its name there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretKey {
    pub(crate) source: Source,
    pub(crate) name: Arc<str>,
}

/// A secret that settings name.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    pub(crate) key: SecretKey,
    /// How long to wait for the first; `None` is for ever.
    pub(crate) within: Option<Duration>,
    pub(crate) role: Role,
}

/// What a secret is named for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Certificate,
    Validation,
    Tickets,
    Text,
}

impl Role {
    pub(super) fn fits(self, secret: &Secret) -> bool {
        match secret.r#type {
            Some(secret::Type::TlsCertificate(_)) => self == Role::Certificate,
            Some(secret::Type::ValidationContext(_)) => self == Role::Validation,
            Some(secret::Type::SessionTicketKeys(_)) => self == Role::Tickets,
            Some(secret::Type::GenericSecret(_)) => self == Role::Text,
            None => false,
        }
    }
}

/// Where settings find the secrets that they name.
pub(crate) struct Lookup<'a> {
    /// Those of the bootstrap, by name.
    pub(crate) statics: &'a BTreeMap<String, Arc<Secret>>,
    /// The others that have come.
    pub(crate) come: &'a dyn Fn(&SecretKey) -> Option<Arc<Secret>>,
}

impl Lookup<'_> {
    /// The secret that is named; `None` when it has not come.
    pub(crate) fn find(&self, value: &SdsSecretConfig) -> Result<Option<Arc<Secret>>> {
        let SdsSecretConfig { name, sds_config } = value;
        let Some(config) = sds_config else {
            let found = self.statics.get(name).cloned();
            let missing = || ConfigError::field("name", format!("there is no secret \"{name}\""));
            return found.ok_or_else(missing).map(Some);
        };
        let (source, _) = rds::any_source(config).in_key("sds_config")?;
        Ok((self.come)(&SecretKey { source, name: name.as_str().into() }))
    }
}

/// The secret that is named, if it comes by itself.
pub(super) fn reference(context: &Context, value: &SdsSecretConfig, role: Role) -> Result<Option<Reference>> {
    let SdsSecretConfig { name, sds_config: Some(config) } = value else { return Ok(None) };
    let name = not_empty(name, "name")?.into();
    let (source, within) = rds::source_of_secrets(context, config).in_key("sds_config")?;
    if let Source::Api(api) = &source {
        drop(api.compile(context).in_key("api_config_source").in_key("sds_config")?);
    }
    Ok(Some(Reference { key: SecretKey { source, name }, within, role }))
}

/// All that settings of a filter chain name and that come by themselves.
pub(super) fn references_of_server(
    context: &Context,
    value: &DownstreamTlsContext,
) -> Result<Vec<Reference>> {
    let mut all = references(context, value.common_tls_context.as_ref())?;
    if let Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(keys)) =
        &value.session_ticket_keys_type
    {
        let found = reference(context, keys, Role::Tickets);
        all.extend(found.in_key("session_ticket_keys_sds_secret_config")?);
    }
    Ok(all)
}

/// All that settings of either side name and that come by themselves.
pub(super) fn references(context: &Context, value: Option<&CommonTlsContext>) -> Result<Vec<Reference>> {
    const VALIDATION: &str = "validation_context_sds_secret_config";
    let mut all = Vec::new();
    let Some(value) = value else { return Ok(all) };
    for (index, value) in value.tls_certificate_sds_secret_configs.iter().enumerate() {
        let found = reference(context, value, Role::Certificate);
        let found = found.in_index(index).in_key("tls_certificate_sds_secret_configs");
        all.extend(found.in_key("common_tls_context")?);
    }
    match &value.validation_context_type {
        Some(ValidationContextType::ValidationContextSdsSecretConfig(value)) => {
            let found = reference(context, value, Role::Validation).in_key(VALIDATION);
            all.extend(found.in_key("common_tls_context")?);
        }
        Some(ValidationContextType::CombinedValidationContext(value)) => {
            if let Some(value) = &value.validation_context_sds_secret_config {
                let found = reference(context, value, Role::Validation).in_key(VALIDATION);
                let found = found.in_key("combined_validation_context");
                all.extend(found.in_key("common_tls_context")?);
            }
        }
        _ => {}
    }
    Ok(all)
}
