//! TLS towards endpoints.

use super::reuse::Parts;
use super::server::version_name;
use super::verify::{PeerCheck, SentName, ServerVerifier};
use super::{
    Awaited, ContextChange, Held, Identity, Origin, Protocols, Validation, cipher_name, curve_name, describe,
};
use crate::connection::TlsInfo;
use crate::error::{ConfigError, Faults};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, ConfigBuilder, HandshakeKind, SignatureScheme, WantsVerifier};
use std::sync::{Arc, OnceLock, Weak};

/// Longest server name, bytes (RFC 1035 section 2.3.4, and more than any that a handshake takes).
const MAX_NAME: usize = 255;

/// Settings (Envoy's UpstreamTlsContext; APISIX's `upstream.tls`).
#[derive(Debug)]
pub struct ClientSettings {
    /// Certificate shown when the endpoint asks for one.
    pub identity: Option<Identity>,
    /// ALPN protocols; empty offers what the caller asks for.
    pub alpn: Vec<String>,
    /// Versions and cipher suites.
    pub protocols: Protocols,
    /// How the endpoint's certificate is verified; `None` takes any, as Envoy and APISIX do.
    pub validation: Option<Validation>,
    /// Server name that is sent and, with `auto_san_validation`, checked.
    pub sni: Option<String>,
    /// Sends the request's Host without its port in place of `sni`.
    pub auto_sni: bool,
    /// Sends the endpoint's own name in place of `sni` (`auto_host_sni`).
    pub auto_host_sni: bool,
    /// The certificate must be valid for the name that was sent.
    pub auto_san_validation: bool,
    /// The same, in place of the names that `validation` lists; those serve where no name is sent.
    pub auto_sni_san_validation: bool,
    /// Resumes sessions, on by default.
    pub resumption: bool,
}

impl Default for ClientSettings {
    fn default() -> ClientSettings {
        ClientSettings {
            identity: None,
            alpn: Vec::new(),
            protocols: Protocols::default(),
            validation: None,
            sni: None,
            auto_sni: false,
            auto_host_sni: false,
            auto_san_validation: false,
            auto_sni_san_validation: false,
            resumption: true,
        }
    }
}

/// What is offered by ALPN when the settings list nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AlpnOffer {
    /// Nothing.
    #[default]
    None,
    /// `http/1.1`
    Http1,
    /// `h2`
    Http2,
    /// `h2`, then `http/1.1`
    Auto,
}

/// Protocols that are offered to an endpoint whatever its cluster says. A clone is the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AlpnList(Arc<Box<[Box<[u8]>]>>);

impl AlpnList {
    /// These, in this order.
    pub fn new<'p>(protocols: impl IntoIterator<Item = &'p [u8]>) -> AlpnList {
        AlpnList(Arc::new(protocols.into_iter().map(Into::into).collect()))
    }
}

/// Lists that a context keeps configurations for: a configuration names a few of them.
const MAX_LISTS: usize = 16;

/// Compiled settings.
#[derive(Debug)]
pub struct ClientContext {
    base: Base,
    /// Those with protocols that requests brought along.
    listed: Mutex<Vec<(AlpnList, Arc<ClientConfig>)>>,
    /// One for each [`AlpnOffer`]; they share the rest. Made for the first connection: most of a thousand clusters never
    /// have one, and the sessions of each take kilobytes.
    configs: OnceLock<[Arc<ClientConfig>; 4]>,
    sni: Option<Box<str>>,
    auto_sni: bool,
    auto_host_sni: bool,
    /// The certificate that is shown to endpoints.
    own: Option<Origin>,
}

/// What connections are configured with. All that can be wrong with it has been looked at.
#[derive(Debug)]
struct Base {
    builder: ConfigBuilder<ClientConfig, WantsVerifier>,
    verifier: Arc<ServerVerifier>,
    identity: Option<Arc<CertifiedKey>>,
    alpn: Vec<String>,
    resumption: bool,
}

/// TLS of a cluster: what it holds can be replaced, which touches handshakes to come alone.
pub struct ClientTls {
    context: ArcSwapOption<ClientContext>,
    /// Secrets that come by themselves, if it is made of such.
    awaited: Option<Box<Awaited>>,
}

impl ClientTls {
    /// With a context, or `None` until secrets have arrived: connecting fails.
    pub fn new(context: Option<Arc<ClientContext>>) -> Arc<ClientTls> {
        Arc::new(ClientTls { context: ArcSwapOption::from(context), awaited: None })
    }

    /// With secrets that come by themselves; `context` is `None` until they have come.
    pub fn awaiting(
        context: Option<Arc<ClientContext>>,
        awaited: impl FnOnce(&Weak<ClientTls>) -> Awaited,
    ) -> Arc<ClientTls> {
        Arc::new_cyclic(|this| {
            let awaited = awaited(this);
            if context.is_some() {
                awaited.end();
            }
            ClientTls { context: ArcSwapOption::from(context), awaited: Some(Box::new(awaited)) }
        })
    }

    /// The secrets that it is made of, where these come by themselves.
    pub fn awaited(&self) -> Option<&Awaited> {
        self.awaited.as_deref()
    }

    /// Replaces the context.
    pub fn replace(&self, context: Option<Arc<ClientContext>>) {
        self.context.store(context);
        self.awaited.iter().for_each(|awaited| awaited.end());
    }

    /// Prepares another context; nothing is shown before [`ContextChange::put_in_force`].
    pub fn change(self: &Arc<ClientTls>, context: Arc<ClientContext>) -> ContextChange {
        ContextChange::client(self.clone(), context)
    }

    /// Whether it is this context that it holds now.
    pub fn holds(&self, context: &Arc<ClientContext>) -> bool {
        self.context.load().as_ref().is_some_and(|held| Arc::ptr_eq(held, context))
    }

    /// The context now.
    pub fn context(&self) -> Option<Arc<ClientContext>> {
        self.context.load_full()
    }
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientTls")
    }
}

impl Base {
    fn configs(&self) -> [Arc<ClientConfig>; 4] {
        let builder =
            self.builder.clone().dangerous().with_custom_certificate_verifier(self.verifier.clone());
        let mut base = match &self.identity {
            Some(key) => builder.with_client_cert_resolver(Arc::new(Always(key.clone()))),
            None => builder.with_no_client_auth(),
        };
        if !self.resumption {
            base.resumption = Resumption::disabled();
        }
        let offers: [&[&str]; 4] = [&[], &["http/1.1"], &["h2"], &["h2", "http/1.1"]];
        offers.map(|offer| {
            let mut config = base.clone();
            config.alpn_protocols = match self.alpn.is_empty() {
                true => offer.iter().map(|p| p.as_bytes().to_vec()).collect(),
                false => self.alpn.iter().map(|p| p.as_bytes().to_vec()).collect(),
            };
            Arc::new(config)
        })
    }
}

impl ClientContext {
    /// Compiles settings.
    ///
    /// # Errors
    /// Names the field, the file and the reason.
    pub fn new(settings: ClientSettings) -> Result<Arc<ClientContext>, ConfigError> {
        ClientContext::with(&Parts::default(), settings)
    }

    /// The same; what other settings are made of too is shared with them.
    pub(super) fn with(parts: &Parts, settings: ClientSettings) -> Result<Arc<ClientContext>, ConfigError> {
        if settings.sni.as_ref().is_some_and(|sni| sni.len() > MAX_NAME || sni.contains('\0')) {
            return Err(ConfigError::field("sni", "not a server name"));
        }
        let provider = parts.provider(&settings.protocols)?;
        let versions = settings.protocols.versions()?;
        let mut faults = Faults::default();
        let check = settings.validation.map(|of| PeerCheck::new(of, |of| parts.authorities(of, &provider)));
        let check = faults.take(check.transpose());
        let identity = settings.identity.as_ref().map(|identity| parts.identity(identity, &provider));
        let identity = faults.take(identity.transpose());
        faults.end(())?;
        let leaf = identity.as_ref().and_then(|key| key.cert.first());
        let own = leaf.and_then(|der| describe(der)).zip(settings.identity.as_ref());
        let own = own.map(|(certificate, identity)| Origin {
            path: identity.chain.origin(),
            certificate: Arc::new(certificate),
        });
        let verifier = ServerVerifier {
            check,
            sent_name: match (settings.auto_san_validation, settings.auto_sni_san_validation) {
                (true, _) => SentName::Checked,
                (false, true) => SentName::InPlace,
                (false, false) => SentName::Ignored,
            },
            algorithms: provider.signature_verification_algorithms,
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|e| ConfigError::new(e.to_string()))?;
        let base = Base {
            builder,
            verifier: Arc::new(verifier),
            identity,
            alpn: settings.alpn,
            resumption: settings.resumption,
        };
        Ok(Arc::new(ClientContext {
            base,
            listed: Mutex::default(),
            configs: OnceLock::new(),
            sni: settings.sni.map(Into::into),
            auto_sni: settings.auto_sni,
            auto_host_sni: settings.auto_host_sni,
            own,
        }))
    }

    /// Its certificates, for `/certs`.
    pub fn held(&self) -> Held {
        let authority = self.base.verifier.check.as_ref().and_then(PeerCheck::authority);
        Held { authority, own: self.own.iter().cloned().collect() }
    }

    /// The configuration with this offer.
    pub fn config(&self, offer: AlpnOffer) -> Arc<ClientConfig> {
        let [none, http1, http2, auto] = self.configs.get_or_init(|| self.base.configs());
        match offer {
            AlpnOffer::None => none,
            AlpnOffer::Http1 => http1,
            AlpnOffer::Http2 => http2,
            AlpnOffer::Auto => auto,
        }
        .clone()
    }

    /// The configuration with these protocols, whatever the settings say.
    pub fn offering(&self, list: &AlpnList) -> Arc<ClientConfig> {
        let mut listed = self.listed.lock();
        if let Some((_, config)) = listed.iter().find(|(known, _)| known == list) {
            return config.clone();
        }
        let mut config = (*self.config(AlpnOffer::None)).clone();
        config.alpn_protocols = list.0.iter().map(|protocol| protocol.to_vec()).collect();
        let config = Arc::new(config);
        if listed.len() >= MAX_LISTS {
            listed.remove(0);
        }
        listed.push((list.clone(), config.clone()));
        config
    }

    /// The server name that a request to `authority` brings along (`auto_sni`): its host without the port, in lower
    /// case. `None` where the name does not depend on the request, or there is no host. Connections with different
    /// names are not to be shared, and those with the same one are, however it was spelled.
    pub fn name_of_request(&self, authority: &[u8]) -> Option<Box<str>> {
        if !self.auto_sni {
            return None;
        }
        let text = String::from_utf8_lossy(authority);
        let host = without_port(&text);
        // What is cut is no server name in any case: nobody is to hold a client's kilobytes for it.
        let host = host.chars().take(MAX_NAME + 1).map(|c| c.to_ascii_lowercase()).collect::<String>();
        (!host.is_empty()).then(|| host.into())
    }

    /// Whether a name that is sent must be a host's name, which an address is not (`auto_sni_san_validation`).
    pub fn sends_names_alone(&self) -> bool {
        self.base.verifier.sent_name == SentName::InPlace
    }

    /// The server name at the endpoint called `hostname`; `of_request` is [`ClientContext::name_of_request`].
    pub fn server_name<'a>(&'a self, of_request: Option<&'a str>, hostname: &'a str) -> Option<&'a str> {
        if self.auto_sni {
            return of_request;
        }
        if self.auto_host_sni && !hostname.is_empty() {
            return Some(hostname);
        }
        self.sni.as_deref().filter(|s| !s.is_empty())
    }

    /// What is known of a connection after its handshake.
    pub fn info(&self, connection: &ClientConnection) -> TlsInfo {
        let chain = connection.peer_certificates().unwrap_or_default();
        TlsInfo {
            version: version_name(connection.protocol_version()),
            cipher: connection.negotiated_cipher_suite().map_or("", |s| cipher_name(s.suite())),
            curve: connection.negotiated_key_exchange_group().map_or("", |group| curve_name(group.name())),
            alpn: connection.alpn_protocol().map(Into::into),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            peer: chain.first().and_then(|der| describe(der)).map(Arc::new),
            local: self.own.as_ref().map(|own| own.certificate.clone()),
            ..TlsInfo::default()
        }
    }
}

/// The host of an authority: without a port, an IPv6 address without its brackets.
fn without_port(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Shows one certificate to every endpoint that asks.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.key.choose_scheme(schemes).map(|_| self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
