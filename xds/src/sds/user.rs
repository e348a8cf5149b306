//! Settings of TLS that are made of secrets.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Weak};
use std::time::Duration;

use prost::Message;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::secret::{SecretSource, SecretText};
use sixfold_core::tls::{Awaited, ClientCache, ClientTls, ContextChange, ServerTls};
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::{
    DownstreamTlsContext, SdsSecretConfig, Secret, UpstreamTlsContext,
};
use sixfold_xds_api::values::Result;

use super::SocketStats;
use super::key::{Lookup, Reference, Role, SecretKey, reference, references, references_of_server};
use crate::context::Context;
use crate::rds::Source;
use crate::tls::{self, AutomaticNames};

/// Settings of one filter chain or one transport of a cluster, as they were sent, or the secret that a plugin names.
pub(crate) struct User {
    /// The secrets that they name and that come by themselves.
    named: Vec<Reference>,
    statics: Arc<BTreeMap<String, Arc<Secret>>>,
    cache: Arc<ClientCache>,
    /// What their statistics begin with.
    scope: Box<str>,
    /// Of scope and settings.
    print: u64,
    settings: Settings,
    stats: SocketStats,
}

enum Settings {
    Server { encoded: Box<[u8]>, server_names: Box<[String]>, place: Weak<ServerTls> },
    Client { encoded: Box<[u8]>, names: AutomaticNames, place: Weak<ClientTls> },
    Text { encoded: Box<[u8]>, place: Weak<SecretText> },
}

/// TLS of a filter chain for these server names. What is wrong in its settings is told whether its secrets have come or
/// not.
pub(crate) fn server(
    context: &Context,
    value: &DownstreamTlsContext,
    server_names: &[String],
    scope: &str,
) -> Result<Arc<ServerTls>> {
    let named = references_of_server(context, value)?;
    if named.is_empty() {
        let lookup = Lookup { statics: &context.secrets, come: &|_| None };
        // Those of the bootstrap are there.
        let missing = || ConfigError::field("common_tls_context", "lacks a secret");
        return tls::server_context(&lookup, value, server_names)?.map(ServerTls::single).ok_or_else(missing);
    }
    let stats = SocketStats::new(context.compile.metrics(), &format!("{scope}server_ssl_socket_factory."));
    context.sds.enter(&named, |come| {
        let lookup = Lookup { statics: &context.secrets, come };
        let compiled = tls::server_context(&lookup, value, server_names)?;
        let encoded = value.encode_to_vec().into();
        let mut user = None;
        let place = ServerTls::awaiting(compiled, |place| {
            let settings =
                Settings::Server { encoded, server_names: server_names.into(), place: place.clone() };
            let made = Arc::new(User::new(context, &named, scope, settings, stats.clone()));
            user = Some(made.clone());
            Awaited::new(made, longest(&named), move || stats.downstream_context_secrets_not_ready().inc())
        });
        Ok((place, user))
    })
}

/// TLS of a cluster.
pub(crate) fn client(
    context: &Context,
    value: &UpstreamTlsContext,
    names: AutomaticNames,
    scope: &str,
) -> Result<Arc<ClientTls>> {
    let named = references(context, value.common_tls_context.as_ref())?;
    let cache = &context.compile.tls_clients;
    if named.is_empty() {
        let lookup = Lookup { statics: &context.secrets, come: &|_| None };
        // Those of the bootstrap are there.
        let missing = || ConfigError::field("common_tls_context", "lacks a secret");
        let compiled = tls::client_context(cache, &lookup, value, names)?.ok_or_else(missing)?;
        return Ok(cache.place(scope, compiled));
    }
    let stats = SocketStats::new(context.compile.metrics(), &format!("{scope}client_ssl_socket_factory."));
    let encoded: Box<[u8]> = value.encode_to_vec().into();
    let earlier =
        context.sds.clients(print(scope, &encoded), |user| user.is_client(context, scope, &encoded, names));
    context.sds.enter(&named, |come| {
        let lookup = Lookup { statics: &context.secrets, come };
        let compiled = tls::client_context(cache, &lookup, value, names)?;
        // Compiled again with the same outcome: the connections go on.
        if let Some(compiled) = &compiled
            && let Some(place) = earlier.iter().find(|place| place.holds(compiled))
        {
            return Ok((place.clone(), None));
        }
        let mut user = None;
        let place = ClientTls::awaiting(compiled, |place| {
            let settings = Settings::Client { encoded, names, place: place.clone() };
            let made = Arc::new(User::new(context, &named, scope, settings, stats.clone()));
            user = Some(made.clone());
            Awaited::new(made, longest(&named), move || stats.upstream_context_secrets_not_ready().inc())
        });
        Ok((place, user))
    })
}

/// Secrets that plugins name, for [`BuildContext`](sixfold_core::plugin::BuildContext).
pub(crate) struct SecretsOf(Context);

impl SecretsOf {
    /// Those of what is compiled in this context.
    pub(crate) fn new(context: &Context) -> SecretsOf {
        // The lists of filters hold plugins, and those this.
        SecretsOf(Context { filter_lists: Arc::default(), ..context.clone() })
    }
}

impl SecretSource for SecretsOf {
    fn text(&self, described: &[u8]) -> Result<Arc<SecretText>> {
        let context = &self.0;
        let value = SdsSecretConfig::decode(described).map_err(|e| ConfigError::new(e.to_string()))?;
        let Some(named) = reference(context, &value, Role::Text)? else {
            let lookup = Lookup { statics: &context.secrets, come: &|_| None };
            let text = lookup.find(&value)?.map(|secret| tls::secret_text(&secret)).transpose()?;
            return Ok(SecretText::new(text));
        };
        let named = [named];
        context.sds.enter(&named, |come| {
            let lookup = Lookup { statics: &context.secrets, come };
            let text = lookup.find(&value)?.map(|secret| tls::secret_text(&secret)).transpose()?;
            let place = SecretText::new(text);
            let settings = Settings::Text { encoded: described.into(), place: Arc::downgrade(&place) };
            let user = Arc::new(User::new(context, &named, "", settings, SocketStats::none()));
            place.keep(user.clone());
            Ok((place, Some(user)))
        })
    }
}

/// By which settings are found again that were sent before.
fn print(scope: &str, encoded: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (scope, encoded).hash(&mut hasher);
    hasher.finish()
}

/// How long all of them may take together; `None` is for ever.
fn longest(named: &[Reference]) -> Option<Duration> {
    named.iter().map(|reference| reference.within).collect::<Option<Vec<_>>>()?.into_iter().max()
}

impl User {
    fn new(
        context: &Context,
        named: &[Reference],
        scope: &str,
        settings: Settings,
        stats: SocketStats,
    ) -> User {
        let (statics, cache) = (context.secrets.clone(), context.compile.tls_clients.clone());
        let (Settings::Server { encoded, .. }
        | Settings::Client { encoded, .. }
        | Settings::Text { encoded, .. }) = &settings;
        let print = print(scope, encoded);
        User { named: named.to_vec(), statics, cache, scope: scope.into(), print, settings, stats }
    }

    /// By which it is found again when the same is sent.
    pub(super) fn print(&self) -> u64 {
        self.print
    }

    /// Whether a cluster has sent the same before.
    fn is_client(&self, context: &Context, scope: &str, sent: &[u8], said: AutomaticNames) -> bool {
        let same = match &self.settings {
            Settings::Client { encoded, names, .. } => **encoded == *sent && *names == said,
            Settings::Server { .. } | Settings::Text { .. } => false,
        };
        same && *self.scope == *scope && self.statics == context.secrets
    }

    /// The place of a cluster, while it has it.
    pub(super) fn client_place(&self) -> Option<Arc<ClientTls>> {
        match &self.settings {
            Settings::Client { place, .. } => place.upgrade(),
            Settings::Server { .. } | Settings::Text { .. } => None,
        }
    }

    /// The secrets that they name and that come by themselves.
    pub(super) fn keys(&self) -> impl Iterator<Item = &SecretKey> {
        self.named.iter().map(|reference| &reference.key)
    }

    /// The secrets that come by streams, and how long each is waited for; `None` is for ever.
    pub(crate) fn streamed(&self) -> impl Iterator<Item = (&SecretKey, Option<Duration>)> {
        let of_file = |reference: &&Reference| matches!(reference.key.source, Source::Path(_));
        let streamed = self.named.iter().filter(move |reference| !of_file(reference));
        streamed.map(|reference| (&reference.key, reference.within))
    }

    /// The settings with the secrets that have come, to be shown; `None` when some have not, or nobody has the settings
    /// any more.
    pub(super) fn compile(
        &self,
        come: &dyn Fn(&SecretKey) -> Option<Arc<Secret>>,
    ) -> Result<Option<ContextChange>> {
        if self.lacks_one(come) {
            return Ok(None);
        }
        let lookup = Lookup { statics: &self.statics, come };
        let again = |error: prost::DecodeError| ConfigError::new(error.to_string());
        match &self.settings {
            Settings::Server { encoded, server_names, place } => {
                let Some(place) = place.upgrade() else { return Ok(None) };
                let value = DownstreamTlsContext::decode(&**encoded).map_err(again)?;
                let compiled =
                    tls::server_context(&lookup, &value, server_names).in_key("DownstreamTlsContext")?;
                Ok(compiled.map(|compiled| place.change(Some(compiled), Vec::new())))
            }
            Settings::Client { encoded, names, place } => {
                let Some(place) = place.upgrade() else { return Ok(None) };
                let value = UpstreamTlsContext::decode(&**encoded).map_err(again)?;
                let compiled = tls::client_context(&self.cache, &lookup, &value, *names);
                let compiled = compiled.in_key("UpstreamTlsContext")?;
                Ok(compiled.map(|compiled| place.change(compiled)))
            }
            Settings::Text { encoded, place } => {
                let Some(place) = place.upgrade() else { return Ok(None) };
                let value = SdsSecretConfig::decode(&**encoded).map_err(again)?;
                let text = lookup.find(&value)?.map(|secret| tls::secret_text(&secret)).transpose()?;
                Ok(text.map(|text| ContextChange::text(place, text)))
            }
        }
    }

    /// Whether a secret has not come, and those that have are of the kinds that they are named for. What else is wrong with
    /// settings that lack one was told when they came.
    fn lacks_one(&self, come: &dyn Fn(&SecretKey) -> Option<Arc<Secret>>) -> bool {
        let mut lacks = false;
        for Reference { key, role, .. } in &self.named {
            match come(key) {
                None => lacks = true,
                Some(secret) if !role.fits(&secret) => return false,
                Some(_) => {}
            }
        }
        lacks
    }

    /// Counts a change of them.
    pub(super) fn count_update(&self) {
        self.stats.ssl_context_update_by_sds().inc();
    }

    /// Says that a secret of theirs can't be used, so that nobody waits for it.
    pub(super) fn give_up(&self) {
        match &self.settings {
            Settings::Server { place, .. } => {
                place.upgrade().iter().filter_map(|place| place.awaited()).for_each(Awaited::end);
            }
            Settings::Client { place, .. } => {
                place.upgrade().iter().filter_map(|place| place.awaited()).for_each(Awaited::end);
            }
            // Nobody waits for it: requests are refused until it has come.
            Settings::Text { .. } => {}
        }
    }
}
