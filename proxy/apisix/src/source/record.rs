//! What is kept of a resource that was read: what others need of it, compiled, and no more.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use sixfold_core::cluster::Cluster;
use sixfold_core::error::{ConfigContext, ConfigError, Faults, Place, collect};
use sixfold_core::plugin::{BroughtUpstream, brought_name};
use xxhash_rust::xxh64::xxh64;

use sixfold_core::plugin::Prepared;

use super::SourceContext;
use crate::config::{Config, EnabledPlugins};
use crate::item::{Body, Parsed, Reference, fault};
use crate::plugin::{
    Agreement, Catalog, CredentialConfig, OF_PROCESS, PluginConfig, PluginSet, StreamPlugins,
};
use crate::resource::{Id, Kind, Labels, Service, Ssl, SslType, Upstream};
use crate::route::{Linkage, Manner, Template};
use crate::schema::{self, Violation};
use crate::shared::SharedParts;
use crate::store::Key;
use crate::stream_route::StreamTemplate;
use crate::tls::{ClientCertificate, ServerCertificate};
use crate::upstream::{self, Forwarding};

/// A resource that is valid by itself, compiled as far as that goes without others.
#[derive(Clone)]
pub(super) struct Record {
    pub(super) revision: u64,
    pub(super) references: Box<[Reference]>,
    pub(super) plugins: Arc<PluginSet>,
    /// Its plugins as they work on streams: of a stream route or a service.
    pub(super) streams: Arc<StreamPlugins>,
    /// What its plugins must have in common with those of others.
    pub(super) agreements: Box<[Agreement]>,
    /// Of the upstream that it is or brings.
    pub(super) cluster: Option<Arc<BuiltCluster>>,
    /// Of the upstreams that its plugins bring.
    pub(super) brought: Box<[Arc<BuiltCluster>]>,
    /// An upstream with a certificate of another resource, which may change without it.
    pub(super) certified: Option<Arc<Upstream>>,
    pub(super) body: Built,
}

/// What a kind needs beside.
#[derive(Clone)]
pub(super) enum Built {
    /// Its plugins are all there is to it.
    Plugins,
    Consumer(Box<ConsumerParts>),
    /// How a consumer authenticates beside.
    Credential(Box<[CredentialConfig]>),
    Upstream,
    Route(Box<Linkage>),
    Service(Box<ServiceParts>),
    StreamRoute(Box<StreamTemplate>),
    /// Shown to clients.
    Server(Arc<ServerCertificate>),
    /// Shown to upstreams.
    Client(Arc<ClientCertificate>),
    /// Of this plugin.
    Metadata(&'static str, Option<Prepared>),
    /// An ssl that is switched off, and what nothing here has a use for.
    Off,
}

/// What routes take from their service.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ServiceParts {
    pub(crate) name: Arc<str>,
    pub(crate) hosts: Option<Box<[Box<str>]>>,
    pub(crate) websocket: Option<bool>,
}

/// What a consumer is beside the plugins that it brings.
#[derive(Clone)]
pub(super) struct ConsumerParts {
    pub(super) labels: Labels,
    /// How it authenticates.
    pub(super) credentials: Box<[CredentialConfig]>,
}

/// The cluster of an upstream.
pub(super) struct BuiltCluster {
    pub(super) name: Arc<str>,
    /// Fingerprint of the upstream.
    print: u64,
    pub(super) certificate: Option<Arc<ClientCertificate>>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) forwarding: Arc<Forwarding>,
}

/// An upstream to be built.
struct Described<'a> {
    /// What its cluster is called.
    name: Arc<str>,
    upstream: &'a Upstream,
    print: u64,
    certificate: Option<&'a Arc<ClientCertificate>>,
    /// Whether plugins may choose it.
    chosen: bool,
}

/// A record that is new, and what is needed of it once.
#[derive(Clone)]
pub(super) struct Fresh {
    pub(super) record: Arc<Record>,
    /// Of a route that takes part in routing and was not there like that before.
    pub(super) template: Option<Box<Template>>,
    /// What it was read from, of kinds that are shown; `None` of one that is as it was.
    pub(super) value: Option<Bytes>,
}

/// Builds records.
pub(super) struct Builder<'a> {
    pub(super) config: &'a Config,
    pub(super) context: &'a SourceContext,
    pub(super) shared: &'a SharedParts,
}

impl Record {
    /// The resource of a kind that this one refers to.
    pub(super) fn refers(&self, kind: Kind) -> Option<&Id> {
        self.references.iter().find(|reference| reference.key.kind == kind).map(|r| &r.key.id)
    }

    /// Whether it is or brings an upstream.
    pub(super) fn brings_upstream(&self) -> bool {
        self.cluster.is_some() || self.certified.is_some()
    }

    /// Why this resource can't be what `reference` wants.
    pub(super) fn refuses(&self, reference: &Reference) -> Option<String> {
        let wrong = reference.key.kind == Kind::Ssl && !matches!(self.body, Built::Client(_));
        wrong.then(|| format!("ssl \"{}\" is not of type client", reference.key.id))
    }

    /// Whether routes that hang on it are the same with either.
    pub(super) fn means_the_same(&self, other: &Record) -> bool {
        let body = match (&self.body, &other.body) {
            (Built::Route(a), Built::Route(b)) => a.print == b.print,
            (Built::Service(a), Built::Service(b)) => a == b,
            (Built::Plugins, Built::Plugins) | (Built::Upstream, Built::Upstream) => true,
            _ => false,
        };
        body && Arc::ptr_eq(&self.plugins, &other.plugins)
            && self.brings_upstream() == other.brings_upstream()
            && self.targets() == other.targets()
    }

    /// What it refers to.
    pub(super) fn targets(&self) -> Vec<(Kind, Id)> {
        self.references.iter().map(|r| (r.key.kind, r.key.id.clone())).collect()
    }
}

impl Builder<'_> {
    /// Compiles what was read; `before` is the resource as it was.
    ///
    /// # Errors
    /// The field and the reason.
    pub(super) fn build(
        &self,
        key: &Key,
        revision: u64,
        parsed: Parsed,
        catalog: &Catalog,
        before: Option<&Record>,
    ) -> Result<Fresh, ConfigError> {
        let Parsed { mut references, plugins, credentials, warnings: _, upstream_print, print, body } =
            parsed;
        references.extend(consumer_of(key));
        let mut faults = Faults::default();
        let agreements = plugins.iter().filter_map(|plugin| plugin.agreement()).collect();
        let kept = before.map(|before| &before.plugins);
        let brought = faults.take(self.brought(key, &plugins, before)).into();
        let streams = faults.take(self.streams(key, &plugins, catalog, before));
        let plugins = faults.take(self.plugins(key, &plugins, kept));
        let mut template = None;
        let (upstream, body) = match body {
            Body::GlobalRule | Body::PluginConfig | Body::ConsumerGroup => (None, Built::Plugins),
            Body::Consumer(consumer) => {
                let (labels, credentials) = (consumer.labels.unwrap_or_default(), credentials.into());
                (None, Built::Consumer(Box::new(ConsumerParts { labels, credentials })))
            }
            Body::Unused => (None, Built::Off),
            Body::Metadata(plugin, prepared) => (None, Built::Metadata(plugin, prepared)),
            Body::Credential => (None, Built::Credential(credentials.into())),
            Body::Upstream(upstream) => (Some(*upstream), Built::Upstream),
            Body::Service(service) => {
                let parts = ServiceParts::of(&service);
                (service.upstream, Built::Service(Box::new(parts)))
            }
            Body::Route(route) => {
                let linkage = Linkage::of(&route, print);
                let same = before.is_some_and(|before| match &before.body {
                    Built::Route(before) => before.print == print && before.enabled,
                    _ => false,
                });
                if linkage.enabled && !same {
                    let read = Template::of(&route, self.config.router.into());
                    let read = read.map_err(|(field, reason)| ConfigError::field(field, reason));
                    template = faults.keep(read).map(Box::new);
                }
                (route.upstream, Built::Route(Box::new(linkage)))
            }
            Body::StreamRoute(route) => {
                let template = StreamTemplate::of(&route);
                (route.upstream, Built::StreamRoute(Box::new(template)))
            }
            Body::Ssl(ssl) => (None, faults.keep(self.certificate(&ssl, before)).unwrap_or(Built::Off)),
        };
        let (mut cluster, mut certified) = (None, None);
        let shows_other = references.iter().any(|reference| reference.key.kind == Kind::Ssl);
        match upstream {
            Some(upstream) if shows_other => certified = Some(Arc::new(upstream)),
            Some(upstream) => {
                let built = self.own_cluster(key, &upstream, upstream_print, None, before);
                cluster = faults.keep(built.map_err(|reason| upstream_fault(key.kind, reason)));
            }
            None => {}
        }
        let references = references.into();
        let record =
            Record { revision, references, plugins, streams, agreements, cluster, brought, certified, body };
        faults.end(Fresh { record: Arc::new(record), template, value: None })
    }

    /// Builds the plugins of a resource; `before` are those it had.
    ///
    /// # Errors
    /// What is wrong with each of them.
    pub(super) fn plugins(
        &self,
        key: &Key,
        plugins: &[PluginConfig],
        before: Option<&Arc<PluginSet>>,
    ) -> Result<Arc<PluginSet>, ConfigError> {
        // Those of a stream route do nothing elsewhere.
        let plugins = if key.kind == Kind::StreamRoute { &[] } else { plugins };
        PluginSet::build(plugins, &resource_name(key), &self.context.compile.build, before).in_key("plugins")
    }

    /// Builds the plugins of a stream route, or those that a service brings to such.
    fn streams(
        &self,
        key: &Key,
        plugins: &[PluginConfig],
        catalog: &Catalog,
        before: Option<&Record>,
    ) -> Result<Arc<StreamPlugins>, ConfigError> {
        let (before, context) = (before.map(|before| &before.streams), &self.context.compile.build);
        let name = || resource_name(key);
        match key.kind {
            Kind::StreamRoute => StreamPlugins::build(plugins, &name(), context, before).in_key("plugins"),
            Kind::Service if self.config.proxy_mode.has_streams() => {
                let plugins = catalog.streams_of_service(plugins);
                Ok(StreamPlugins::of_service(&plugins, &name(), context, before))
            }
            _ => Ok(StreamPlugins::none()),
        }
    }

    /// The record with the cluster of its upstream, which shows this certificate.
    ///
    /// # Errors
    /// The field and the reason.
    pub(super) fn certify(
        &self,
        key: &Key,
        record: &Record,
        certificate: &Arc<ClientCertificate>,
        before: Option<&Record>,
    ) -> Result<Arc<Record>, ConfigError> {
        let Some(upstream) = &record.certified else { return Ok(Arc::new(record.clone())) };
        // Which upstream it is is told by the certificate and by the text; the latter is new with the record.
        let built = self.own_cluster(key, upstream, record.revision, Some(certificate), before);
        let built = built.map_err(|reason| upstream_fault(key.kind, reason))?;
        Ok(Arc::new(Record { cluster: Some(built), ..record.clone() }))
    }

    /// The cluster of the upstream that a resource is or brings itself.
    fn own_cluster(
        &self,
        key: &Key,
        upstream: &Upstream,
        print: u64,
        certificate: Option<&Arc<ClientCertificate>>,
        before: Option<&Record>,
    ) -> Result<Arc<BuiltCluster>, ConfigError> {
        let before = before.and_then(|record| record.cluster.as_ref());
        let name = before.map_or_else(|| cluster_name(key), |built| built.name.clone());
        // That of a route or a service is its own; plugins may choose any other.
        let chosen = key.kind == Kind::Upstream;
        self.cluster(&Described { name, upstream, print, certificate, chosen }, before)
    }

    /// The clusters of the upstreams that plugins of a resource bring.
    fn brought(
        &self,
        key: &Key,
        plugins: &[PluginConfig],
        before: Option<&Record>,
    ) -> Result<Vec<Arc<BuiltCluster>>, ConfigError> {
        let of = |plugin: &PluginConfig| {
            let brought = plugin.factory.upstreams(&plugin.config).into_iter();
            let built = brought.map(|brought| {
                let BroughtUpstream { name, field, config } = brought;
                let name: Arc<str> = brought_name(&resource_name(key), &name).into();
                let kept = before.and_then(|record| record.brought.iter().find(|built| built.name == name));
                self.brought_cluster(name, config, kept).in_key(&field)
            });
            collect(built).in_key(plugin.factory.name).in_key("plugins")
        };
        Ok(collect(plugins.iter().map(of))?.into_iter().flatten().collect())
    }

    fn brought_cluster(
        &self,
        name: Arc<str>,
        mut config: Value,
        before: Option<&Arc<BuiltCluster>>,
    ) -> Result<Arc<BuiltCluster>, ConfigError> {
        let print = xxh64(config.to_string().as_bytes(), 0);
        schema::resource(Kind::Upstream).validate_all(&mut config).or_else(refused)?;
        let upstream: Upstream =
            serde_json::from_value(config).map_err(|error| ConfigError::new(error.to_string()))?;
        refused(upstream::check(&upstream))?;
        let described = Described { name, upstream: &upstream, print, certificate: None, chosen: true };
        self.cluster(&described, before)
    }

    fn cluster(
        &self,
        described: &Described<'_>,
        before: Option<&Arc<BuiltCluster>>,
    ) -> Result<Arc<BuiltCluster>, ConfigError> {
        let Described { name, upstream, print, certificate, chosen } = described;
        let same_certificate = |built: &BuiltCluster| match (&built.certificate, certificate) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        if let Some(built) = before.filter(|built| built.print == *print && same_certificate(built)) {
            return Ok(built.clone());
        }
        let tls = crate::tls::towards_upstream(name, upstream, certificate.map(|c| &**c), self.context)?;
        let (mut config, hosts) = upstream::compile(name, upstream, tls, self.config, &self.shared.policies)
            .map_err(ConfigError::new)?;
        if let Some(checks) =
            upstream::compile_checks(name, upstream, self.config, self.context).map_err(ConfigError::new)?
        {
            // What follows is a policy of its own: most upstreams have no checks and share theirs.
            config.checks = Some(checks);
        }
        let forwarding = self.shared.forwardings.get(Forwarding::of(upstream), |forwarding| {
            // So that no route finds out when it is linked.
            forwarding.hash_policy()?;
            Ok::<_, String>(forwarding.clone())
        });
        let forwarding = forwarding.map_err(ConfigError::new)?;
        if *chosen {
            let manner = self.shared.options.get(Manner::of_chosen(&forwarding), Manner::options);
            config.manner = Some(manner.map_err(ConfigError::new)?);
        }
        let previous = before.map(|built| &*built.cluster);
        let cluster = Cluster::new(config, hosts, previous, self.context.compile.metrics())
            .map_err(ConfigError::new)?;
        let (name, certificate) = (name.clone(), certificate.cloned());
        Ok(Arc::new(BuiltCluster { name, print: *print, certificate, cluster, forwarding }))
    }

    fn certificate(&self, ssl: &Ssl, before: Option<&Record>) -> Result<Built, ConfigError> {
        if !ssl.status {
            return Ok(Built::Off);
        }
        Ok(match (ssl.usage, before.map(|before| &before.body)) {
            (SslType::Server, before) => {
                let kept = match before {
                    Some(Built::Server(certificate)) => Some(certificate),
                    _ => None,
                };
                Built::Server(ServerCertificate::new(ssl, self.config, kept)?)
            }
            (SslType::Client, before) => {
                let kept = match before {
                    Some(Built::Client(certificate)) => Some(certificate),
                    _ => None,
                };
                Built::Client(ClientCertificate::new(ssl, kept)?)
            }
        })
    }

    /// The plugins that resources may use, when the source lists these. Names that nobody knows are logged, as APISIX does it.
    pub(super) fn catalog(&self, listed: Option<&EnabledPlugins>) -> Arc<Catalog> {
        let enabled = listed.unwrap_or(&self.config.plugins);
        let registry = &self.context.compile.plugins;
        let is_missing =
            |name: &&String| !OF_PROCESS.contains(&name.as_str()) && registry.apisix(name).is_none();
        for name in enabled.http.iter().flatten().filter(is_missing) {
            tracing::warn!(plugin = name, "enabled, but not part of this gateway");
        }
        let runs_on_streams =
            |name: &str| registry.apisix(name).is_some_and(|(_, factory)| factory.streams.is_some());
        for name in enabled.streams.iter().flatten().filter(|name| !runs_on_streams(name)) {
            tracing::warn!(plugin = name, "enabled for streams, but not part of this gateway");
        }
        let catalog = Catalog::new(registry, enabled, &self.config.plugin_attr);
        Arc::new(catalog.encrypted(self.config))
    }
}

impl ServiceParts {
    fn of(service: &Service) -> ServiceParts {
        ServiceParts {
            name: service.name.as_deref().map(Into::into).unwrap_or_default(),
            hosts: service
                .hosts
                .as_ref()
                .map(|hosts| hosts.iter().map(|host| host.as_str().into()).collect()),
            websocket: service.enable_websocket,
        }
    }
}

/// The consumer that a credential is of, without which it is nobody's.
fn consumer_of(key: &Key) -> Option<Reference> {
    let (consumer, _) = key.of_consumer()?;
    let key = Key::new(Kind::Consumer, consumer);
    Some(Reference { key, field: "id", place: Place::new(1, 1), lets_go: true })
}

/// The fault of a cluster as one of its resource: what names no field of the upstream is of its nodes.
fn upstream_fault(kind: Kind, error: ConfigError) -> ConfigError {
    let names_field = error.field.is_some();
    match kind {
        Kind::Upstream if names_field => error,
        Kind::Upstream => error.in_key("nodes"),
        _ => error.in_key("upstream"),
    }
}

/// Violations as one error, if there are any.
fn refused(violations: Vec<Violation>) -> Result<(), ConfigError> {
    collect::<()>(violations.into_iter().map(|violation| Err(fault(violation)))).map(|_| ())
}

/// What plugins know a resource by.
fn resource_name(key: &Key) -> String {
    format!("/apisix/{}/{}", key.kind.section(), key.id)
}

/// The cluster of the upstream that a resource is or brings.
fn cluster_name(key: &Key) -> Arc<str> {
    format!("{}/{}", key.kind.section(), key.id).into()
}
