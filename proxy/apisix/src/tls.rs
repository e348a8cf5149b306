//! `ssl` resources compiled to TLS settings, and TLS towards upstreams.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use sixfold_core::error::{ConfigError, Place};
use sixfold_core::tls::{
    ClientContext, ClientSettings, ClientTls, Identity, NamedContexts, Pem, Protocols, ServerContext,
    ServerSettings, TlsVersion, Validation,
};

use crate::client_certificate::VerifiedNames;
use crate::config::Config;
use crate::item::{Body, Parsed, resource_name};
use crate::resource::{Id, Kind, Ssl, SslType, Upstream};
use crate::secret;
use crate::source::{Entry, Setup};

/// The compiled certificates that clients may see.
#[derive(Default)]
pub(crate) struct Certificates {
    /// In the order of the file.
    built: Vec<Built>,
}

struct Built {
    id: Id,
    parsed: Arc<Parsed>,
    context: Arc<ServerContext>,
}

impl Certificates {
    /// Those of `entries`; what has not changed is taken from `before`.
    pub(crate) fn next(
        before: &Certificates,
        entries: &[Entry],
        config: &Config,
    ) -> (Certificates, Vec<ConfigError>) {
        let known: HashMap<&Id, &Built> = before.built.iter().map(|built| (&built.id, built)).collect();
        let (mut next, mut errors) = (Certificates::default(), Vec::new());
        for entry in entries {
            let Body::Ssl(ssl) = &entry.parsed.body else { continue };
            if ssl.usage != SslType::Server || !ssl.status {
                continue;
            }
            let kept = known.get(&entry.id).filter(|built| Arc::ptr_eq(&built.parsed, &entry.parsed));
            let context = match kept {
                Some(built) => Ok(built.context.clone()),
                None => checked(ssl).and_then(|()| ServerContext::new(settings(ssl, config))),
            };
            match context {
                Ok(context) => {
                    next.built.push(Built { id: entry.id.clone(), parsed: entry.parsed.clone(), context });
                }
                Err(error) => {
                    let error = error.at(Place::new(entry.line, 1));
                    errors.push(error.in_resource(resource_name(Kind::Ssl, &entry.id)));
                }
            }
        }
        (next, errors)
    }

    /// Whether both show the same to everyone.
    pub(crate) fn same(&self, other: &Certificates) -> bool {
        let same = |(a, b): (&Built, &Built)| Arc::ptr_eq(&a.context, &b.context);
        self.built.len() == other.built.len() && self.built.iter().zip(&other.built).all(same)
    }

    /// The contexts by server name, and the one for clients that no name fits: the certificate for `*`, else
    /// that of `fallback_sni`.
    pub(crate) fn contexts(&self, config: &Config) -> (Option<Arc<ServerContext>>, NamedContexts) {
        let (mut default, mut named) = (None, NamedContexts::new());
        for built in &self.built {
            let Body::Ssl(ssl) = &built.parsed.body else { continue };
            for name in ssl.server_names() {
                match name {
                    "*" => default = default.or_else(|| Some(built.context.clone())),
                    name => named.push((name.to_ascii_lowercase().into(), built.context.clone())),
                }
            }
        }
        let fallback = config.ssl.fallback_sni.as_deref().map(str::to_ascii_lowercase);
        let default = default.or_else(|| {
            let fallback = fallback?;
            let (_, context) = named.iter().find(|(name, _)| covers(name, &fallback))?;
            Some(context.clone())
        });
        (default, named)
    }

    /// Every server name, and whether its certificate asks for one of the client; nothing if none does.
    pub(crate) fn verified_names(&self) -> VerifiedNames {
        let ssls = self.built.iter().filter_map(|built| match &built.parsed.body {
            Body::Ssl(ssl) => Some(ssl),
            _ => None,
        });
        let names = ssls.flat_map(|ssl| ssl.server_names().map(|name| (name.into(), ssl.client.is_some())));
        let names: Vec<_> = names.collect();
        VerifiedNames(if names.iter().any(|(_, verified)| *verified) { names } else { Vec::new() })
    }
}

/// Whether a server name of a certificate, perhaps with a star for one label, is for `host`.
fn covers(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(rest) => host.split_once('.').is_some_and(|(_, parent)| parent == rest),
        None => name == host,
    }
}

/// Refuses what would weaken or widen the check of clients in silence.
fn checked(ssl: &Ssl) -> Result<(), ConfigError> {
    let skips = ssl.client.as_ref().and_then(|client| client.skip_mtls_uri_regex.as_ref());
    match skips {
        Some(paths) if !paths.is_empty() => {
            Err(ConfigError::field("client.skip_mtls_uri_regex", "is not supported"))
        }
        _ => Ok(()),
    }
}

fn settings(ssl: &Ssl, config: &Config) -> ServerSettings {
    let versions: Vec<&String> = match &ssl.ssl_protocols {
        Some(protocols) if !protocols.is_empty() => protocols.iter().collect(),
        _ => config.ssl.protocols.iter().collect(),
    };
    let versions: Vec<TlsVersion> = versions.iter().filter_map(|name| TlsVersion::parse(name).ok()).collect();
    let client = ssl.client.as_ref();
    ServerSettings {
        identities: ssl.pairs().map(|(cert, key)| identity(cert, key)).collect(),
        alpn: if config.enable_http2 {
            vec!["h2".to_owned(), "http/1.1".to_owned()]
        } else {
            vec!["http/1.1".to_owned()]
        },
        protocols: Protocols {
            min: versions.iter().min().copied(),
            max: versions.iter().max().copied(),
            ..Protocols::default()
        },
        validation: client.map(|client| Validation {
            trusted_ca: Some(pem(&client.ca)),
            max_depth: usize::try_from(client.depth).ok(),
            ..Validation::default()
        }),
        require_client_certificate: client.is_some(),
        resumption: true,
    }
}

/// TLS of an upstream's cluster; its server is not verified, as in APISIX, and is sent the request's host.
///
/// # Errors
/// A certificate that can't be used.
pub(crate) fn towards_upstream(
    upstream: &Upstream,
    certificate: Option<&Parsed>,
    setup: &Setup,
) -> Result<Option<Arc<ClientTls>>, String> {
    if !upstream.scheme.is_tls() {
        return Ok(None);
    }
    let resolved = |text: &str| -> Result<String, String> {
        let mut value = Value::String(text.to_owned());
        secret::resolve_all(&mut value, &setup.environment)?;
        Ok(value.as_str().unwrap_or_default().to_owned())
    };
    let tls = upstream.tls.as_ref();
    let in_place = tls.and_then(|tls| tls.client_cert.as_deref().zip(tls.client_key.as_deref()));
    let identity = match (certificate.map(|parsed| &parsed.body), in_place) {
        (Some(Body::Ssl(ssl)), _) => Some(identity(&ssl.cert, &ssl.key)),
        (_, Some((cert, key))) => Some(identity(&resolved(cert)?, &resolved(key)?)),
        _ => None,
    };
    let settings = ClientSettings { identity, auto_sni: true, ..ClientSettings::default() };
    let context = ClientContext::new(settings).map_err(|e| e.to_string())?;
    Ok(Some(ClientTls::new(Some(context))))
}

fn identity(cert: &str, key: &str) -> Identity {
    Identity { chain: pem(cert), key: pem(key) }
}

fn pem(text: &str) -> Pem {
    Pem::Inline(text.as_bytes().into())
}
