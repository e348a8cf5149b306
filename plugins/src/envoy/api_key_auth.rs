//! Envoy's api_key_auth filter (source/extensions/filters/http/api_key_auth): clients known by a key.

#[cfg(test)]
mod tests;

use crate::envoy;
use crate::shared::secret::Fingerprint;
use crate::shared::{cookies, query};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::{HeaderName, is_clean};
use sixfold_core::matcher::cookie;
use sixfold_core::message::RequestHead;
use sixfold_core::metrics;
use sixfold_core::plugin::{
    BuildContext, Built, FilterFactory, LocalReply, OwnedHeaders, Plugin, Slot, Step,
};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::http::api_key_auth::v3::{
    ApiKeyAuth as Config, ApiKeyAuthPerRoute, Credential, Forwarding as ProtoForwarding, KeySource,
};
use sixfold_xds_api::values::header_name;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.api_key_auth.`.
    pub struct ApiKeyStats { counters: [allowed, unauthorized, forbidden], gauges: [], histograms: [] }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build)
}

/// Each part that the most specific level gives takes the place of the filter's, and what is forwarded does in any case.
fn build(config: Config, mut overrides: Vec<ApiKeyAuthPerRoute>, context: &BuildContext) -> Built {
    let Config { credentials, key_sources, forwarding } = config;
    let mut filter = ApiKeyAuth {
        clients: clients(&credentials)?,
        sources: sources(&key_sources)?,
        forwarding: forwarding.as_ref().map(Forwarding::new).transpose()?.unwrap_or_default(),
        others: OwnedHeaders::default(),
        allowed: None,
        stats: ApiKeyStats::new(&context.metrics, &metrics::scope(&[&context.scope, "api_key_auth"])),
    };
    if let Some(of_route) = overrides.pop() {
        let ApiKeyAuthPerRoute { credentials, key_sources, allowed_clients, forwarding } = of_route;
        if !credentials.is_empty() {
            filter.clients = clients(&credentials)?;
        }
        if !key_sources.is_empty() {
            filter.sources = sources(&key_sources)?;
        }
        // What the route leaves out here is not the filter's, as in Envoy.
        let of_filter = std::mem::take(&mut filter.forwarding);
        filter.forwarding = forwarding.as_ref().map(Forwarding::new).transpose()?.unwrap_or_default();
        filter.others = of_filter.told;
        let allowed: HashSet<String> = allowed_clients.into_iter().collect();
        filter.allowed = Some(allowed).filter(|allowed| !allowed.is_empty());
    }
    Ok(Plugin::of(filter).access(ApiKeyAuth::access).judging().build())
}

struct ApiKeyAuth {
    /// Clients by their keys.
    clients: BTreeMap<Fingerprint, String>,
    sources: Box<[Source]>,
    forwarding: Forwarding,
    /// The filter's header of that kind, where a route has another: clients do not say by it who they are either.
    others: OwnedHeaders,
    /// Clients that may pass; `None` lets all.
    allowed: Option<HashSet<String>>,
    stats: ApiKeyStats,
}

/// Where a key may stand.
enum Source {
    Header(HeaderName),
    Query(Box<str>),
    Cookie(Box<str>),
}

/// What the upstream gets.
#[derive(Default)]
struct Forwarding {
    /// The header that tells it which client it is.
    told: OwnedHeaders,
    hide_credentials: bool,
}

fn clients(credentials: &[Credential]) -> Result<BTreeMap<Fingerprint, String>, ConfigError> {
    let mut clients = BTreeMap::new();
    for (index, Credential { key, client }) in credentials.iter().enumerate() {
        let wrong = |field, reason: &str| Err(ConfigError::field(field, reason).in_index(index));
        if !is_clean(client.as_bytes()) {
            return wrong("client", "can't be the value of a header").in_key("credentials");
        }
        if clients.insert(Fingerprint::of(key.as_bytes()), client.clone()).is_some() {
            return wrong("key", "is the key of another client too").in_key("credentials");
        }
    }
    Ok(clients)
}

fn sources(values: &[KeySource]) -> Result<Box<[Source]>, ConfigError> {
    let source = |(index, value): (usize, &KeySource)| {
        let KeySource { header, query, cookie } = value;
        Ok(match (header.as_str(), query.as_str(), cookie.as_str()) {
            ("", "", "") => {
                let reason = "one of header, query and cookie is missing";
                return Err(ConfigError::new(reason).in_index(index).in_key("key_sources"));
            }
            ("", "", cookie) => Source::Cookie(cookie.into()),
            ("", query, _) => Source::Query(query.into()),
            (header, _, _) => {
                Source::Header(header_name(header, "header").in_index(index).in_key("key_sources")?)
            }
        })
    };
    values.iter().enumerate().map(source).collect()
}

impl Forwarding {
    fn new(value: &ProtoForwarding) -> Result<Forwarding, ConfigError> {
        let ProtoForwarding { header, hide_credentials } = value;
        let told = (!header.is_empty()).then(|| header_name(header, "header")).transpose();
        let told = OwnedHeaders::new(told.in_key("forwarding")?.into_iter().collect());
        Ok(Forwarding { told, hide_credentials: *hide_credentials })
    }
}

impl Source {
    fn key<'r>(&self, request: &'r RequestHead) -> Option<Cow<'r, [u8]>> {
        let key = match self {
            Source::Header(name) => {
                let value = request.headers.get(name)?;
                Cow::Borrowed(value.strip_prefix(b"Bearer ").unwrap_or(value))
            }
            Source::Query(name) => query::parameter(request.target.query(), name.as_bytes())?,
            Source::Cookie(name) => Cow::Borrowed(cookie(&request.headers, name.as_bytes())?),
        };
        Some(key).filter(|key| !key.is_empty())
    }

    fn clear(&self, request: &mut RequestHead) {
        match self {
            Source::Header(name) => {
                request.headers.remove(name);
            }
            Source::Query(name) => query::remove_parameter(&mut request.target, name.as_bytes()),
            Source::Cookie(name) => cookies::clear(&mut request.headers, "cookie", name.as_bytes()),
        }
    }
}

impl ApiKeyAuth {
    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        if self.sources.is_empty() {
            return self.refuse(401, "missing_key_sources");
        }
        if self.clients.is_empty() {
            return self.refuse(401, "missing_credentials");
        }
        let request = &mut stream.request;
        let Some(key) = self.sources.iter().find_map(|source| source.key(request)) else {
            return self.refuse(401, "missing_api_key");
        };
        let Some(client) = self.clients.get(&Fingerprint::of(&key)) else {
            return self.refuse(401, "unknown_api_key");
        };
        if self.allowed.as_ref().is_some_and(|allowed| !allowed.contains(client)) {
            return self.refuse(403, "client_not_allowed");
        }
        self.forwarding.told.strip(&mut request.headers);
        self.others.strip(&mut request.headers);
        if self.forwarding.hide_credentials {
            self.sources.iter().for_each(|source| source.clear(request));
        }
        if let Some(header) = self.forwarding.told.names().first() {
            request.headers.set(header, client.as_bytes());
        }
        self.stats.allowed().inc();
        Step::Continue
    }

    fn refuse(&self, status: u16, details: &'static str) -> Step<'_> {
        let body = if status == 401 {
            self.stats.unauthorized().inc();
            "Client authentication failed."
        } else {
            self.stats.forbidden().inc();
            "Client is forbidden."
        };
        Step::Respond(LocalReply::new(status, body, details))
    }
}
