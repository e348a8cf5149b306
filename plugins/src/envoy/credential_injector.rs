//! Envoy's credential_injector filter (source/extensions/filters/http/credential_injector, source/extensions/http/
//! injected_credentials): says for whoever stands behind this proxy who they are.

mod client_credentials;
#[cfg(test)]
mod tests;

use crate::envoy;
use client_credentials::ClientCredentials;
use prost::Message;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::{HeaderName, Known, is_clean};
use sixfold_core::metrics;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::secret::SecretText;
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::http::credential_injector::v3::CredentialInjector as Config;
use sixfold_xds_api::pb::envoy::extensions::http::injected_credentials::generic::v3::Generic;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::SdsSecretConfig;
use sixfold_xds_api::values::{header_name, required};
use sixfold_xds_api::{any, refuse};
use std::sync::Arc;

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.credential_injector.`.
    pub struct InjectorStats { counters: [injected, failed, already_exists], gauges: [], histograms: [] }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::routeless_filter(build)
}

#[allow(clippy::needless_pass_by_value)] // the form that `envoy::routeless_filter` asks for
fn build(config: Config, context: &BuildContext) -> Built {
    let Config { overwrite, allow_request_without_credential, credential } = config;
    let scope = metrics::scope(&[&context.scope, "credential_injector"]);
    let extension = required(&credential, "credential")?;
    let typed = required(&extension.typed_config, "typed_config").in_key("credential")?;
    let kind = any::type_name(typed).in_key("typed_config").in_key("credential")?;
    let credential = match kind.as_str() {
        "envoy.extensions.http.injected_credentials.generic.v3.Generic" => {
            any::unpack(typed).and_then(|value| Credential::generic(&value, context))
        }
        "envoy.extensions.http.injected_credentials.oauth2.v3.OAuth2" => any::unpack(typed)
            .and_then(|value| ClientCredentials::new(&value, context, &scope))
            .map(|client| {
                let header = Known::AUTHORIZATION.into();
                Credential { header, prefix: Box::default(), source: Source::Client(client) }
            }),
        other => {
            return Err(refuse::extension("injected credential", &extension.name, other).in_key("credential"));
        }
    };
    let filter = Injector {
        credential: credential.in_key("typed_config").in_key("credential")?,
        overwrite,
        optional: allow_request_without_credential,
        stats: InjectorStats::new(&context.metrics, &scope),
    };
    let is_fetched = matches!(filter.credential.source, Source::Client(_));
    let plugin = Plugin::of(filter).access(Injector::access).in_force(Injector::begin);
    Ok(if is_fetched { plugin.foretelling(Injector::foretell) } else { plugin.judging() }.build())
}

/// The place of a secret that a message names.
pub(crate) fn secret(
    value: &Option<SdsSecretConfig>,
    context: &BuildContext,
    field: &str,
) -> Result<Arc<SecretText>, ConfigError> {
    context.secrets.text(&required(value, field)?.encode_to_vec()).in_key(field)
}

/// A secret's text without the line end that files have.
pub(crate) fn text_of(secret: &SecretText) -> Option<String> {
    let bytes = secret.load()?;
    let text = std::str::from_utf8(&bytes).ok()?.trim_end_matches(['\r', '\n']);
    (!text.is_empty()).then(|| text.to_owned())
}

struct Injector {
    credential: Credential,
    overwrite: bool,
    /// Requests go on without a credential.
    optional: bool,
    stats: InjectorStats,
}

/// What is injected, and where.
struct Credential {
    header: HeaderName,
    prefix: Box<str>,
    source: Source,
}

enum Source {
    Secret(Arc<SecretText>),
    Client(Arc<ClientCredentials>),
}

impl Credential {
    fn generic(value: &Generic, context: &BuildContext) -> Result<Credential, ConfigError> {
        let Generic { credential, header, header_value_prefix } = value;
        let header = match header.as_str() {
            "" => Known::AUTHORIZATION.into(),
            name => header_name(name, "header")?,
        };
        if !is_clean(header_value_prefix.as_bytes()) {
            return Err(ConfigError::field("header_value_prefix", "can't be in the value of a header"));
        }
        let source = Source::Secret(secret(credential, context, "credential")?);
        Ok(Credential { header, prefix: header_value_prefix.as_str().into(), source })
    }

    /// The value of the header now.
    fn value(&self) -> Option<Vec<u8>> {
        let value = match &self.source {
            Source::Secret(secret) => [self.prefix.as_bytes(), text_of(secret)?.as_bytes()].concat(),
            Source::Client(client) => client.bearer()?.as_bytes().to_vec(),
        };
        Some(value).filter(|value| is_clean(value))
    }
}

impl Injector {
    /// Has the token fetched that is injected.
    fn begin(&self) {
        if let Source::Client(client) = &self.credential.source {
            client.start();
        }
    }

    fn access<'a>(&'a self, stream: &'a mut Stream, _: Slot) -> Step<'a> {
        match &self.credential.source {
            Source::Client(client) if !client.is_decided() => Step::Wait(Box::pin(async move {
                client.decided().await;
                self.inject(stream)
            })),
            _ => self.inject(stream),
        }
    }

    /// What may become of a request, of a credential that is fetched.
    fn foretell(&self, stream: &Stream) -> Vec<String> {
        let header = self.credential.header.as_str();
        if !self.overwrite && stream.request.headers.contains(&self.credential.header) {
            return Vec::new();
        }
        let set = format!("sets {header} to the token that it has fetched");
        let refuses = "answers 401 (failed_to_inject_credential) where it has none".to_owned();
        if self.optional { vec![set] } else { vec![set, refuses] }
    }

    fn inject<'s>(&self, stream: &mut Stream) -> Step<'s> {
        let headers = &mut stream.request.headers;
        if !self.overwrite && headers.contains(&self.credential.header) {
            self.stats.already_exists().inc();
            return Step::Continue;
        }
        match self.credential.value() {
            Some(value) => {
                headers.set(&self.credential.header, &value);
                self.stats.injected().inc();
                Step::Continue
            }
            None => {
                self.stats.failed().inc();
                if self.optional {
                    return Step::Continue;
                }
                Step::Respond(LocalReply::new(
                    401,
                    "Failed to inject credential.",
                    "failed_to_inject_credential",
                ))
            }
        }
    }
}
