//! Names of secrets and where each comes from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sixfold_core::error::{ConfigContext, ConfigError, Faults, collect};
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

impl SecretKey {
    /// The file that it is in, if it is in one.
    pub(super) fn path(&self) -> Option<&PathBuf> {
        match &self.source {
            Source::Path(path) => Some(path),
            Source::Ads | Source::Api(_) => None,
        }
    }
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
    let key = SecretKey { source, name };
    match &key.source {
        Source::Api(api) => drop(api.compile(context).in_key("api_config_source").in_key("sds_config")?),
        // One that is in use may be gone for a moment, while it is being replaced.
        Source::Path(path) if !context.sds.knows(&key) => {
            rds::must_be_there(config, path).in_key("sds_config")?
        }
        Source::Path(_) | Source::Ads => {}
    }
    Ok(Some(Reference { key, within, role }))
}

/// All that settings of a filter chain name and that come by themselves.
pub(super) fn references_of_server(
    context: &Context,
    value: &DownstreamTlsContext,
) -> Result<Vec<Reference>> {
    let mut faults = Faults::default();
    let mut all = faults.take(references(context, value.common_tls_context.as_ref()));
    if let Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(keys)) =
        &value.session_ticket_keys_type
    {
        let found = reference(context, keys, Role::Tickets);
        all.extend(faults.take(found.in_key("session_ticket_keys_sds_secret_config")));
    }
    faults.end(all)
}

/// All that settings of either side name and that come by themselves.
pub(super) fn references(context: &Context, value: Option<&CommonTlsContext>) -> Result<Vec<Reference>> {
    const VALIDATION: &str = "validation_context_sds_secret_config";
    let Some(value) = value else { return Ok(Vec::new()) };
    let certificates = value.tls_certificate_sds_secret_configs.iter().enumerate().map(|(index, value)| {
        let found = reference(context, value, Role::Certificate);
        found.in_index(index).in_key("tls_certificate_sds_secret_configs")
    });
    let of_validation = |value| reference(context, value, Role::Validation).in_key(VALIDATION);
    let validation = match &value.validation_context_type {
        Some(ValidationContextType::ValidationContextSdsSecretConfig(value)) => of_validation(value),
        Some(ValidationContextType::CombinedValidationContext(value)) => {
            let named = value.validation_context_sds_secret_config.as_ref();
            named.map_or(Ok(None), of_validation).in_key("combined_validation_context")
        }
        _ => Ok(None),
    };
    let all = collect(certificates.chain([validation])).in_key("common_tls_context")?;
    Ok(all.into_iter().flatten().collect())
}
