//! TLS towards clients.

use super::certificate::to_pem;
use super::tickets::{self, KeyedTickets, Tickets};
use super::verify::{Authorities, ClientVerifier, Peer, PeerCheck};
use super::{
    Awaited, ContextChange, Held, Identity, NameTable, Origin, Protocols, Validation, cipher_name,
    curve_name, describe,
};
use crate::connection::{Certificate, TlsInfo};
use crate::error::{ConfigContext, ConfigError, Faults};
use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CipherSuite, HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection, SignatureAlgorithm,
    SupportedCipherSuite,
};
use std::sync::{Arc, Weak};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Settings of one context (Envoy's DownstreamTlsContext; APISIX's `ssl`).
#[derive(Debug)]
pub struct ServerSettings {
    /// Certificates, at least one. Chosen by server name, ECDSA before RSA where the client can, else the
    /// first.
    pub identities: Vec<Identity>,
    /// ALPN protocols in order of preference. A client that offers none of them gets none.
    pub alpn: Vec<String>,
    /// Versions and cipher suites.
    pub protocols: Protocols,
    /// How a client's certificate is verified; `None` asks for none unless one is required.
    pub validation: Option<Validation>,
    /// Refuses clients without a certificate.
    pub require_client_certificate: bool,
    /// Lets clients resume sessions that they keep. But for configured keys a replaced context resumes none of its
    /// predecessor's.
    pub tickets: Tickets,
    /// Lets clients of TLS 1.2 resume sessions that are kept here, where they take no tickets; on by default.
    pub session_ids: bool,
    /// The names that clients ask for to come here, where that is said elsewhere (`filter_chain_match.server_names`);
    /// none by default. Sessions by configured keys are of these names alone.
    pub server_names: Vec<String>,
}

impl Default for ServerSettings {
    fn default() -> ServerSettings {
        ServerSettings {
            identities: Vec::new(),
            alpn: Vec::new(),
            protocols: Protocols::default(),
            validation: None,
            require_client_certificate: false,
            tickets: Tickets::default(),
            session_ids: true,
            server_names: Vec::new(),
        }
    }
}

/// Compiled settings.
#[derive(Debug)]
pub struct ServerContext {
    config: Arc<ServerConfig>,
    /// For clients whose ALPN has nothing in common with ours.
    without_alpn: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    check: Option<Arc<PeerCheck>>,
}

/// TLS of a filter chain: what it holds can be replaced, which touches handshakes to come alone.
pub struct ServerTls {
    state: ArcSwap<State>,
    /// Secrets that come by themselves, if it is made of such.
    awaited: Option<Box<Awaited>>,
}

pub(super) struct State {
    default: Option<Arc<ServerContext>>,
    named: NameTable<Arc<ServerContext>>,
}

/// Server names with their contexts.
pub type NamedContexts = Vec<(Box<str>, Arc<ServerContext>)>;

impl ServerTls {
    /// With a context for clients that name none of `named`; without one they are refused. Until secrets
    /// have arrived both may be empty: all handshakes fail.
    pub fn new(default: Option<Arc<ServerContext>>, named: NamedContexts) -> Arc<ServerTls> {
        Arc::new(ServerTls { state: ArcSwap::from_pointee(State::new(default, named)), awaited: None })
    }

    /// One context for all.
    pub fn single(context: Arc<ServerContext>) -> Arc<ServerTls> {
        ServerTls::new(Some(context), Vec::new())
    }

    /// One context for all that is made of secrets which come by themselves; `None` until they have come.
    pub fn awaiting(
        context: Option<Arc<ServerContext>>,
        awaited: impl FnOnce(&Weak<ServerTls>) -> Awaited,
    ) -> Arc<ServerTls> {
        Arc::new_cyclic(|this| {
            let awaited = awaited(this);
            if context.is_some() {
                awaited.end();
            }
            let state = ArcSwap::from_pointee(State::new(context, Vec::new()));
            ServerTls { state, awaited: Some(Box::new(awaited)) }
        })
    }

    /// The secrets that it is made of, where these come by themselves.
    pub fn awaited(&self) -> Option<&Awaited> {
        self.awaited.as_deref()
    }

    /// Replaces the contexts.
    pub fn replace(&self, default: Option<Arc<ServerContext>>, named: NamedContexts) {
        self.show(Arc::new(State::new(default, named)));
    }

    pub(super) fn show(&self, state: Arc<State>) {
        self.state.store(state);
        self.awaited.iter().for_each(|awaited| awaited.end());
    }

    /// Prepares other contexts; nothing is shown before [`ContextChange::put_in_force`].
    pub fn change(
        self: &Arc<ServerTls>,
        default: Option<Arc<ServerContext>>,
        named: NamedContexts,
    ) -> ContextChange {
        ContextChange::server(self.clone(), Arc::new(State::new(default, named)))
    }

    /// The context for a client that asks for this name; a dot at its end says nothing.
    pub fn context(&self, server_name: Option<&str>) -> Option<Arc<ServerContext>> {
        let state = self.state.load();
        let server_name = server_name.map(|name| name.strip_suffix('.').unwrap_or(name));
        server_name.and_then(|name| state.named.get(name)).or(state.default.as_ref()).cloned()
    }
}

impl ServerTls {
    /// Every context, for pages that show certificates; one may come several times.
    pub fn contexts(&self) -> Vec<Arc<ServerContext>> {
        let state = self.state.load();
        state.default.iter().chain(state.named.values()).cloned().collect()
    }
}

impl State {
    fn new(default: Option<Arc<ServerContext>>, named: NamedContexts) -> State {
        let mut table = NameTable::default();
        for (name, context) in named {
            table.insert(&name, context);
        }
        State { default, named: table }
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls")
    }
}

impl ServerContext {
    /// Compiles settings.
    ///
    /// # Errors
    /// Names the field, the file and the reason.
    pub fn new(settings: ServerSettings) -> Result<Arc<ServerContext>, ConfigError> {
        let provider = settings.protocols.provider()?;
        let versions = settings.protocols.versions()?;
        let tls13 = versions.iter().any(|v| v.version == ProtocolVersion::TLSv1_3);
        let mut faults = Faults::default();
        let certificates = faults.keep(Certificates::new(&settings.identities, &provider, tls13));
        let asks = settings.validation.is_some() || settings.require_client_certificate;
        let kinship = match (&settings.tickets, &certificates) {
            (Tickets::Keys(_), Some(certificates)) => faults.take(tickets::kinship(
                settings.validation.as_ref(),
                settings.require_client_certificate,
                &settings.server_names,
                certificates.all.iter().map(|entry| &entry.shown),
            )),
            _ => Vec::new(),
        };
        let check = settings.validation.map(|validation| {
            PeerCheck::new(validation, |of| Authorities::new(of, Peer::Client, &provider)).map(Arc::new)
        });
        let check = faults.take(check.transpose());
        let certificates = Arc::new(faults.kept(certificates)?);
        faults.end(())?;
        let verifier = ClientVerifier {
            check: check.clone(),
            required: settings.require_client_certificate,
            algorithms: provider.signature_verification_algorithms,
        };
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|e| ConfigError::new(e.to_string()))?;
        let builder = match asks {
            true => builder.with_client_cert_verifier(Arc::new(verifier)),
            false => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(certificates.clone());
        // Tickets hold the whole session, so that any worker can take it up.
        match &settings.tickets {
            Tickets::Off => config.send_tls13_tickets = 0,
            Tickets::Own => {
                config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()
                    .map_err(|e| ConfigError::new(format!("no session tickets: {e}")))?;
            }
            Tickets::Keys(keys) => {
                config.ticketer = KeyedTickets::new(keys, &kinship).in_key("session_ticket_keys")?;
            }
        }
        if !settings.session_ids {
            config.session_storage = Arc::new(NoServerSessionStorage {});
        }
        let without_alpn = Arc::new(config.clone());
        config.alpn_protocols = settings.alpn.into_iter().map(String::into_bytes).collect();
        Ok(Arc::new(ServerContext { config: Arc::new(config), without_alpn, certificates, check }))
    }

    /// The configuration for a client, and the certificate that it will see.
    pub fn choose(&self, hello: &ClientHello<'_>) -> (Arc<ServerConfig>, Option<Arc<Certificate>>) {
        let ours = &self.config.alpn_protocols;
        let common = hello.alpn().is_none_or(|mut offered| offered.any(|p| ours.iter().any(|o| o == p)));
        let config = if common { &self.config } else { &self.without_alpn };
        let entry = self.certificates.choose(hello);
        (config.clone(), entry.map(|e| e.shown.clone()))
    }

    /// Its certificates, for `/certs`.
    pub fn held(&self) -> Held {
        let own = self.certificates.all.iter();
        let own = own.map(|e| Origin { path: e.origin.clone(), certificate: e.shown.clone() });
        Held { authority: self.check.as_ref().and_then(|check| check.authority()), own: own.collect() }
    }

    /// Our certificates.
    pub fn certificates(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        self.certificates.all.iter().map(|e| &e.shown)
    }

    /// Whether a client's certificates are what the validation asks for: what `ACCEPT_UNTRUSTED` left open.
    pub fn validates(&self, chain: &[CertificateDer<'_>]) -> bool {
        match (&self.check, chain) {
            (Some(check), [leaf, rest @ ..]) if check.accept_untrusted => {
                check.check(leaf, rest, UnixTime::now()).is_ok()
            }
            // The handshake would have failed.
            (Some(_), [_, ..]) => true,
            _ => false,
        }
    }

    /// What is known of a connection after its handshake. `local` comes from [`ServerContext::choose`].
    pub fn info(&self, connection: &ServerConnection, local: Option<Arc<Certificate>>) -> TlsInfo {
        let chain = connection.peer_certificates().unwrap_or_default();
        let peer = chain.first().and_then(|der| describe(der)).map(Arc::new);
        let pem = || chain.iter().map(|der| to_pem(der)).collect::<String>();
        TlsInfo {
            version: version_name(connection.protocol_version()),
            cipher: connection.negotiated_cipher_suite().map_or("", |s| cipher_name(s.suite())),
            curve: connection.negotiated_key_exchange_group().map_or("", |group| curve_name(group.name())),
            server_name: connection.server_name().map(|name| name.to_ascii_lowercase().into()),
            alpn: connection.alpn_protocol().map(Into::into),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            peer_validated: self.validates(chain),
            peer_chain_pem: peer.is_some().then(|| pem().into()),
            peer,
            local,
        }
    }
}

/// `TLSv1.2` or `TLSv1.3`.
pub(super) fn version_name(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "",
    }
}

/// The certificates of a context by name.
#[derive(Debug)]
struct Certificates {
    all: Vec<Entry>,
    /// Positions in `all`.
    ecdsa: NameTable<usize>,
    others: NameTable<usize>,
    /// Whether TLS 1.3 is spoken, whose suites go with any key.
    tls13: bool,
}

#[derive(Debug)]
struct Entry {
    key: Arc<CertifiedKey>,
    shown: Arc<Certificate>,
    /// Where it comes from.
    origin: Box<str>,
}

impl Certificates {
    fn new(
        identities: &[Identity],
        provider: &CryptoProvider,
        tls13: bool,
    ) -> Result<Certificates, ConfigError> {
        let (ecdsa, others) = (NameTable::default(), NameTable::default());
        let mut certificates = Certificates { all: Vec::new(), ecdsa, others, tls13 };
        let mut faults = Faults::default();
        for (i, identity) in identities.iter().enumerate() {
            let failed = |e: ConfigError| e.in_index(i).in_key("tls_certificates");
            let key = faults.keep(load_identity(identity, provider).map_err(failed));
            let Some(key) = key else { continue };
            let shown = key.cert.first().and_then(|der| describe(der)).unwrap_or_default();
            let table = match key.key.algorithm() {
                SignatureAlgorithm::ECDSA | SignatureAlgorithm::ED25519 => &mut certificates.ecdsa,
                _ => &mut certificates.others,
            };
            for name in names_of(&shown) {
                table.insert(&name, i);
            }
            let origin = identity.chain.origin();
            certificates.all.push(Entry { key: Arc::new(key), shown: Arc::new(shown), origin });
        }
        faults.end(())?;
        match certificates.all.is_empty() {
            true => Err(ConfigError::field("tls_certificates", "at least one certificate is needed")),
            false => Ok(certificates),
        }
    }

    fn choose(&self, hello: &ClientHello<'_>) -> Option<&Entry> {
        let usable = |entry: &&Entry| self.suits(entry, hello);
        let at = |i: &usize| self.all.get(*i);
        let named = hello.server_name().and_then(|name| {
            let ecdsa = self.ecdsa.get(name).and_then(at).filter(usable);
            ecdsa.or_else(|| self.others.get(name).and_then(at).filter(usable))
        });
        named.or_else(|| self.all.iter().find(usable)).or(self.all.first())
    }

    /// Whether the client can verify the key's signatures, and over TLS 1.2 has a suite for its kind.
    fn suits(&self, entry: &Entry, hello: &ClientHello<'_>) -> bool {
        let kind = entry.key.key.algorithm();
        let for_kind = |suite: &CipherSuite| {
            let suite = ALL_CIPHER_SUITES.iter().find(|s| s.suite() == *suite);
            suite.is_some_and(|s| match s {
                SupportedCipherSuite::Tls13(_) => self.tls13,
                SupportedCipherSuite::Tls12(_) => s.usable_for_signature_algorithm(kind),
            })
        };
        entry.key.key.choose_scheme(hello.signature_schemes()).is_some()
            && hello.cipher_suites().iter().any(for_kind)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(&hello).map(|e| e.key.clone())
    }
}

/// Names a certificate is chosen by: its DNS names, else its common name (RFC 6125 section 6.4.4).
fn names_of(certificate: &Certificate) -> Vec<String> {
    if !certificate.dns_sans.is_empty() {
        return certificate.dns_sans.clone();
    }
    let common = certificate.subject.split(',').find_map(|part| part.strip_prefix("CN="));
    common.into_iter().map(str::to_owned).collect()
}

/// Reads a certificate chain and the key that belongs to it.
pub(super) fn load_identity(
    identity: &Identity,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, ConfigError> {
    let mut faults = Faults::default();
    let chain = identity.chain.certificates().map_err(|e| ConfigError::field("certificate_chain", e));
    let key = identity.key.private_key().map_err(|e| ConfigError::field("private_key", e));
    let (chain, key) = (faults.keep(chain), faults.keep(key));
    let (chain, key) = (faults.kept(chain)?, faults.kept(key)?);
    let wrong = |reason: String| ConfigError::field("private_key", reason);
    let key =
        provider.key_provider.load_private_key(key).map_err(|e| wrong(format!("{:?}: {e}", identity.key)))?;
    let leaf =
        chain.first().ok_or_else(|| ConfigError::field("certificate_chain", "holds no certificate"))?;
    let (_, leaf) = X509Certificate::from_der(leaf)
        .map_err(|e| ConfigError::field("certificate_chain", format!("{:?}: {e}", identity.chain)))?;
    // Compared here: rustls would refuse certificates of X.509 version 1, which are served all the same.
    if key.public_key().is_some_and(|own| own.as_ref() != leaf.public_key().raw) {
        let (key, chain) = (&identity.key, &identity.chain);
        return Err(wrong(format!("{key:?} does not belong to the certificate in {chain:?}")));
    }
    Ok(CertifiedKey::new(chain, key))
}
