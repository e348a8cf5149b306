//! `ssl` resources compiled to TLS settings, and TLS towards upstreams.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::Value;
use sixfold_core::error::ConfigError;
use sixfold_core::tls::{
    ClientContext, ClientSettings, ClientTls, Identity, NamedContexts, Pem, Protocols, ServerContext,
    ServerSettings, Tickets, TlsVersion, Validation,
};
use xxhash_rust::xxh64::xxh64;

use crate::client_certificate::{self, Asks, VerifiedNames};
use crate::config::Config;
use crate::resource::{ClientVerification, Ssl, Upstream};
use crate::secret;
use crate::source::SourceContext;

/// The key of the file that they are in.
pub(crate) const AUTHORITIES: &str = "apisix.ssl.ssl_trusted_certificate";

/// Reads the file of authorities that servers are verified by, for nothing but whether it can be used: it is read
/// again as it changes.
///
/// # Errors
/// A file that can't be used, as a fault of its key.
pub(crate) fn authorities(config: &Config) -> Result<(), ConfigError> {
    let Some(file) = config.ssl.trusted_file() else { return Ok(()) };
    let trusted_ca = Some(Pem::File(file.to_owned()));
    let validation = Some(Validation { trusted_ca, ..Validation::default() });
    let context = ClientContext::new(ClientSettings { validation, ..ClientSettings::default() });
    context.map(drop).map_err(|error| config.fault(AUTHORITIES, error.to_string()))
}

/// The compiled certificates that clients may see, in their order.
#[derive(Default)]
pub(crate) struct Certificates(Vec<Arc<ServerCertificate>>);

/// An `ssl` for clients.
pub(crate) struct ServerCertificate {
    names: Box<[Box<str>]>,
    /// What it asks of the client.
    asks: Asks,
    /// Fingerprint of what the context was made of.
    print: u64,
    context: Arc<ServerContext>,
    /// The same for streams, where no protocol is agreed on; `None` where none come in by TLS.
    streams: Option<Arc<ServerContext>>,
}

/// An `ssl` for upstreams.
pub(crate) struct ClientCertificate {
    cert: Box<str>,
    key: Box<str>,
}

impl ServerCertificate {
    /// Compiles one; what is the same in `before` is taken from it.
    ///
    /// # Errors
    /// The field and the reason.
    pub(crate) fn new(
        ssl: &Ssl,
        config: &Config,
        before: Option<&Arc<ServerCertificate>>,
    ) -> Result<Arc<ServerCertificate>, ConfigError> {
        checked(ssl)?;
        let client = ssl.client.as_ref().map(|client| (&client.ca, client.depth));
        let asks = asks(ssl);
        let parts = (&ssl.cert, &ssl.key, &ssl.certs, &ssl.keys, client, lets_in(&asks), &ssl.ssl_protocols);
        let print = xxh64(format!("{parts:?}").as_bytes(), 0);
        // A dot at the end of a name says nothing, as in what clients ask for.
        let names: Box<[Box<str>]> =
            ssl.server_names().map(|name| name.strip_suffix('.').unwrap_or(name).into()).collect();
        let before = before.filter(|before| before.print == print);
        if let Some(before) = before.filter(|before| before.names == names && before.asks == asks) {
            return Ok(before.clone());
        }
        let compile = |settings| ServerContext::new(settings).map_err(|error| worded(error, as_written));
        let (context, streams) = match before {
            Some(before) => (before.context.clone(), before.streams.clone()),
            None => {
                let by_tls = config.stream_proxy.tcp.iter().any(|listen| listen.tls);
                // There are no paths in streams which could ask for none.
                let of_streams = || ServerSettings { alpn: Vec::new(), ..settings(ssl, config, false) };
                (
                    compile(settings(ssl, config, lets_in(&asks)))?,
                    by_tls.then(|| compile(of_streams())).transpose()?,
                )
            }
        };
        Ok(Arc::new(ServerCertificate { names, asks, print, context, streams }))
    }
}

impl ClientCertificate {
    /// Checks one; the same as `before` is the same object.
    ///
    /// # Errors
    /// The field and the reason.
    pub(crate) fn new(
        ssl: &Ssl,
        before: Option<&Arc<ClientCertificate>>,
    ) -> Result<Arc<ClientCertificate>, ConfigError> {
        if let Some(before) = before.filter(|before| *before.cert == *ssl.cert && *before.key == *ssl.key) {
            return Ok(before.clone());
        }
        let identity = Some(identity(&ssl.cert, &ssl.key));
        let made = ClientContext::new(ClientSettings { identity, ..ClientSettings::default() });
        made.map_err(|error| worded(error, as_written))?;
        Ok(Arc::new(ClientCertificate { cert: ssl.cert.as_str().into(), key: ssl.key.as_str().into() }))
    }
}

impl Certificates {
    pub(crate) fn new(all: Vec<Arc<ServerCertificate>>) -> Certificates {
        Certificates(all)
    }

    /// Whether both show the same to everyone.
    pub(crate) fn same(&self, other: &Certificates) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// The contexts by server name, and the one for clients that no name fits: the certificate for `*`, else
    /// that of `fallback_sni`.
    pub(crate) fn contexts(&self, config: &Config) -> (Option<Arc<ServerContext>>, NamedContexts) {
        self.shown(config, |certificate| Some(&certificate.context))
    }

    /// The same for streams.
    pub(crate) fn of_streams(&self, config: &Config) -> (Option<Arc<ServerContext>>, NamedContexts) {
        self.shown(config, |certificate| certificate.streams.as_ref())
    }

    fn shown(
        &self,
        config: &Config,
        context: impl Fn(&ServerCertificate) -> Option<&Arc<ServerContext>>,
    ) -> (Option<Arc<ServerContext>>, NamedContexts) {
        let (mut default, mut named) = (None, NamedContexts::new());
        for certificate in &self.0 {
            let Some(context) = context(certificate) else { continue };
            for name in &certificate.names {
                match &**name {
                    "*" => default = default.or_else(|| Some(context.clone())),
                    name => named.push((name.to_ascii_lowercase().into(), context.clone())),
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

    /// Every server name, and what its certificate asks of the client; nothing if none asks for anything.
    pub(crate) fn verified_names(&self) -> VerifiedNames {
        let names = self.0.iter().flat_map(|of| of.names.iter().map(|name| (name.clone(), of.asks.clone())));
        let names: Vec<_> = names.collect();
        VerifiedNames(if names.iter().any(|(_, asks)| *asks != Asks::Nothing) { names } else { Vec::new() })
    }
}

/// Whether a server name of a certificate, perhaps with a star for one label, is for `host`.
fn covers(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(rest) => host.split_once('.').is_some_and(|(_, parent)| parent == rest),
        None => name == host,
    }
}

/// What APISIX says of a text that is no certificate.
pub(crate) const NO_CERTIFICATE: &str = "failed to parse cert: PEM_read_bio_X509_AUX() failed";

/// What APISIX says of a text that is no private key.
const NO_KEY: &str = "failed to parse key: PEM_read_bio_PrivateKey() failed";

/// What is said of a key that another certificate has.
const OF_ANOTHER: &str = "does not belong to the certificate";

/// The fault of compiled settings as one of what they were compiled from: its fields, which `written` tells, and APISIX's words
/// (`apisix/ssl.lua`) in front of what is wrong.
fn worded(error: ConfigError, written: fn(&str) -> String) -> ConfigError {
    let each = error.into_all().into_iter().map(|fault| {
        let Some(field) = fault.field.as_deref() else { return fault };
        if fault.reason.contains(OF_ANOTHER) {
            // It is a key. APISIX does not look whose, and so has no words for it. The answer has the reason alone.
            let (key, cert) = (written(field), written(&field.replace("private_key", "certificate_chain")));
            let words = format!("the private key in `{key}` {OF_ANOTHER} in `{cert}`");
            return ConfigError { reason: of_pair(pair(field), &words), ..fault };
        }
        let words = match field.rsplit('.').next().unwrap_or(field) {
            "certificate_chain" => NO_CERTIFICATE.to_owned(),
            "private_key" => NO_KEY.to_owned(),
            "trusted_ca" => format!("failed to validate client_cert: {NO_CERTIFICATE}"),
            _ => return fault,
        };
        let words = of_pair(pair(field), &words);
        ConfigError { reason: format!("{words}: {}", fault.reason), ..fault }
    });
    let all = each.reduce(ConfigError::and).unwrap_or_default();
    all.renamed(written)
}

/// What APISIX says of a certificate or a key, the first pair of which is 0.
pub(crate) fn of_pair(pair: usize, words: &str) -> String {
    match pair {
        0 => words.to_owned(),
        pair => format!("failed to handle cert-key pair[{pair}]: {words}"),
    }
}

/// A fault in APISIX's words alone.
pub(crate) fn in_words_alone(mut fault: ConfigError) -> ConfigError {
    for words in [NO_CERTIFICATE, NO_KEY] {
        if let Some(at) = fault.reason.find(words) {
            fault.reason.truncate(at + words.len());
        }
    }
    fault
}

/// Which pair a field of compiled settings is of: 0 is the first.
fn pair(field: &str) -> usize {
    let pair = field.strip_prefix("tls_certificates[").and_then(|rest| rest.split_once(']'));
    pair.and_then(|(index, _)| index.parse::<usize>().ok()).unwrap_or(0)
}

/// Where an `ssl` has what compiled settings call `field`: its first pair stands in `cert` and `key`, the others in lists.
fn as_written(field: &str) -> String {
    let index = pair(field);
    let name = match field.rsplit('.').next().unwrap_or(field) {
        "certificate_chain" => "cert",
        "private_key" => "key",
        "trusted_ca" => return "client.ca".to_owned(),
        "tls_minimum_protocol_version" => return "ssl_protocols".to_owned(),
        other => return other.to_owned(),
    };
    index.checked_sub(1).map_or_else(|| name.to_owned(), |index| format!("{name}s[{index}]"))
}

/// Where an upstream has what compiled settings call `field`.
fn in_upstream(field: &str) -> String {
    let name = match field.rsplit('.').next().unwrap_or(field) {
        "certificate_chain" => "client_cert",
        "private_key" => "client_key",
        other => other,
    };
    format!("tls.{name}")
}

/// Refuses patterns of paths that can't be read.
fn checked(ssl: &Ssl) -> Result<(), ConfigError> {
    match asks(ssl) {
        Asks::Certificate(paths) if !paths.is_empty() => client_certificate::skips(&paths)
            .map(drop)
            .map_err(|reason| ConfigError::field("client.skip_mtls_uri_regex", reason)),
        _ => Ok(()),
    }
}

fn asks(ssl: &Ssl) -> Asks {
    let paths = |client: &ClientVerification| client.skip_mtls_uri_regex.clone().unwrap_or_default().into();
    ssl.client.as_ref().map_or(Asks::Nothing, |client| Asks::Certificate(paths(client)))
}

/// Whether the handshake succeeds without a valid certificate, since some paths ask for none.
fn lets_in(asks: &Asks) -> bool {
    matches!(asks, Asks::Certificate(paths) if !paths.is_empty())
}

/// With `open` clients without a certificate get through the handshake.
fn settings(ssl: &Ssl, config: &Config, open: bool) -> ServerSettings {
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
            // Without TLS 1.2 none of them counts.
            cipher_suites: match versions.contains(&TlsVersion::V12) {
                true => config.ssl.ciphers.clone(),
                false => Vec::new(),
            },
            ..Protocols::default()
        },
        validation: client.map(|client| Validation {
            trusted_ca: Some(pem(&client.ca)),
            max_depth: usize::try_from(client.depth).ok(),
            accept_untrusted: open,
            ..Validation::default()
        }),
        require_client_certificate: client.is_some() && !open,
        tickets: Tickets::Own,
        session_ids: true,
        server_names: Vec::new(),
    }
}

/// TLS of an upstream's cluster, which is called `cluster`; its server is not verified, as in APISIX, and is sent the request's host.
///
/// # Errors
/// A certificate that can't be used.
pub(crate) fn towards_upstream(
    cluster: &str,
    upstream: &Upstream,
    certificate: Option<&ClientCertificate>,
    context: &SourceContext,
) -> Result<Option<Arc<ClientTls>>, ConfigError> {
    if !upstream.scheme.is_tls() {
        return Ok(None);
    }
    let resolved = |field: &str, text: &str| -> Result<String, ConfigError> {
        let mut value = Value::String(text.to_owned());
        let resolved = secret::resolve_all(&mut value, &context.environment);
        resolved.map_err(|faults| {
            let reasons: Vec<String> = faults.into_iter().map(|fault| fault.message).collect();
            ConfigError::field(field, reasons.join("; "))
        })?;
        Ok(value.as_str().unwrap_or_default().to_owned())
    };
    let tls = upstream.tls.as_ref();
    let in_place = tls.and_then(|tls| tls.client_cert.as_deref().zip(tls.client_key.as_deref()));
    let identity = match (certificate, in_place) {
        (Some(certificate), _) => Some(identity(&certificate.cert, &certificate.key)),
        (_, Some((cert, key))) => {
            Some(identity(&resolved("tls.client_cert", cert)?, &resolved("tls.client_key", key)?))
        }
        _ => None,
    };
    let settings = ClientSettings { identity, auto_sni: true, ..ClientSettings::default() };
    let cache = &context.compile.tls_clients;
    let compiled = cache.context(settings).map_err(|error| worded(error, in_upstream))?;
    Ok(Some(cache.place(cluster, compiled)))
}

fn identity(cert: &str, key: &str) -> Identity {
    Identity { chain: pem(cert), key: pem(key) }
}

fn pem(text: &str) -> Pem {
    Pem::Inline(text.as_bytes().into())
}
