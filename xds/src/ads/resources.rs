//! Resources compiled to parts of the model, and changes to a [`Diff`] of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sixfold_core::cluster::{Assignment, Cluster};
use sixfold_core::error::ConfigError;
use sixfold_core::hcm::HttpConnectionManager;
use sixfold_core::listener::{Listener, NetworkFilter};
use sixfold_core::metrics::named_scope;
use sixfold_core::model::{ApplyError, Diff, ResourceKind};
use sixfold_core::router::{RouteTable, RouteTableCell, TableKey};
use sixfold_core::tls::Awaited;
use sixfold_xds_api::pb::envoy::config::cluster::v3::Cluster as ProtoCluster;
use sixfold_xds_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use sixfold_xds_api::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use sixfold_xds_api::pb::envoy::config::listener::v3::Listener as ProtoListener;
use sixfold_xds_api::values::{Result, required};
use sixfold_xds_api::{any, constraints, wire};
use tokio::sync::Notify;

use super::client::{Batches, Target};
use super::key::{Channel, Key};
use super::kind::Kind;
use super::machine::Failure;
use super::peer::StreamConfig;
use super::world::{Asks, Change, Compile, Compiled, Need};
use crate::api::Api;
use crate::cluster::Assigned;
use crate::context::Context;
use crate::ecds::Asked;
use crate::rds::{self, RouteConfigs, Source};
use crate::sds::{Checked, SecretKey, User};
use crate::tracker::Event;
use crate::{access_log, cluster, filters, listener, route};

/// A compiled resource.
#[derive(Debug)]
pub enum Part {
    /// A cluster, without its endpoints if those come by themselves.
    Cluster(Arc<Cluster>),
    /// The endpoints of a cluster.
    Endpoints(Assignment),
    /// A route configuration: a table for each list of filters that asks for it.
    Routes(Vec<(TableKey, Option<Arc<RouteTable>>)>),
    /// A secret.
    Secret(Checked),
    /// A configuration of a filter: the listeners that have it come with it.
    Extension,
    /// A listener.
    Listener(Arc<Listener>),
}

/// Compiles what streams and files bring.
pub struct Resources {
    context: Context,
    routes: RouteConfigs,
}

impl Resources {
    /// For the bootstrap of this context.
    pub fn new(context: Context) -> Resources {
        let context = of_stream(context);
        Resources { routes: RouteConfigs::new(context.clone()), context }
    }

    /// The service that a stream goes to. What names it was compiled with it, so that it can be again.
    fn api(&self, channel: &Channel) -> Option<Api> {
        let Source::Api(api) = channel.source() else { return None };
        let api = api.compile(&self.context);
        api.inspect_err(|error| tracing::error!("no stream of {channel}: {error}")).ok()
    }

    fn cluster(&self, name: &str, value: &[u8]) -> Result<Compiled<Part>> {
        let value: ProtoCluster = constraints::decode(value)?;
        same_name(&value.name, name)?;
        let compiled = cluster::compile(&self.context, &value, true)?;
        let mut asks = Asks::of_cluster(&self.context, &value)?;
        asks.add_secrets(compiled.config.all_tls().filter_map(|tls| tls.awaited()));
        Ok(Compiled { part: Part::Cluster(compiled), asks })
    }

    fn endpoints(name: &str, value: &[u8]) -> Result<Compiled<Part>> {
        let value: ClusterLoadAssignment = constraints::decode(value)?;
        same_name(&value.cluster_name, name)?;
        let (assignment, stale_after) = cluster::assigned(&value)?;
        let asks = Asks { stale_after, ..Asks::default() };
        Ok(Compiled { part: Part::Endpoints(assignment), asks })
    }

    fn routes(&mut self, source: &Source, name: &str, value: &[u8]) -> Result<Compiled<Part>> {
        same_name(wire::text(value, 1).unwrap_or_default(), name)?;
        let mut diff = Diff::default();
        self.routes.update(source, value, &mut diff)?;
        self.routes.hold(source, name);
        let mut clusters = BTreeSet::new();
        if diff.route_tables.is_empty() {
            // It is what it was, and so are its tables.
            let cells = self.context.compile.route_tables.of_name(name);
            let cells = cells.iter().filter(|cell| rds::asked(cell).is_some_and(|(of, _)| of == source));
            cells.filter_map(|cell| cell.load()).for_each(|table| named_by(&table, &mut clusters));
        }
        let tables = diff.route_tables.iter().filter_map(|(_, table)| table.as_deref());
        tables.for_each(|table| named_by(table, &mut clusters));
        let asks = Asks { needs: Vec::new(), clusters: clusters.into_iter().collect(), ..Asks::default() };
        Ok(Compiled { part: Part::Routes(diff.route_tables), asks })
    }

    /// Listeners have it as they are compiled. It is tried on those that name it next.
    fn extension(&self, key: &Key, value: &[u8]) -> Result<Compiled<Part>> {
        let value: TypedExtensionConfig = constraints::decode(value)?;
        same_name(&value.name, &key.name)?;
        let config = required(&value.typed_config, "typed_config")?;
        filters::check(&self.context, &key.name, config)?;
        self.context.extensions.try_out(key, config.clone());
        Ok(Compiled { part: Part::Extension, asks: Asks::default() })
    }

    fn listener(&mut self, name: &str, value: &[u8]) -> Result<Compiled<Part>> {
        let value: ProtoListener = constraints::decode(value)?;
        same_name(&value.name, name)?;
        self.context.extensions.take_asked();
        let listener = listener::compile(&self.context, &value)?;
        self.routes.fit(tables_of(&listener)).map_err(|error| {
            let reason = format!("the routes that it names don't go with its HTTP filters: {error}");
            ConfigError::new(reason).in_resource(format!("listener \"{name}\""))
        })?;
        let mut asks = Asks::of_listener(&listener);
        for Asked { key: Key { kind, source, name }, within } in self.context.extensions.take_asked() {
            let need = Need { kind, source, name, within };
            if !asks.needs.contains(&need) {
                asks.needs.push(need);
            }
        }
        Ok(Compiled { part: Part::Listener(Arc::new(listener)), asks })
    }
}

/// The key of a secret, if it is one.
fn secret(key: &Key) -> Option<SecretKey> {
    let Key { kind, source, name } = key;
    (*kind == Kind::Secret).then(|| SecretKey { source: source.clone(), name: name.clone() })
}

impl Batches for Resources {
    fn diff(&mut self, batch: Vec<Change<Part>>) -> Diff {
        let mut diff = Diff::default();
        for Change { kind, source, name, part } in batch {
            if kind == Kind::Routes {
                self.routes.release(&source, &name);
            }
            match part {
                Some(Part::Cluster(cluster)) => diff.clusters.push((name, Some(cluster))),
                Some(Part::Endpoints(hosts)) => diff.endpoints.push((name, hosts)),
                Some(Part::Routes(tables)) => diff.route_tables.extend(tables),
                Some(Part::Secret(secret)) => diff.contexts.extend(self.context.sds.put(secret)),
                Some(Part::Extension) => {}
                Some(Part::Listener(listener)) => diff.listeners.push((name, Some(listener))),
                None => match kind {
                    Kind::Cluster => diff.clusters.push((name, None)),
                    Kind::Listener => diff.listeners.push((name, None)),
                    // They have not come in time, and the cluster is not to wait for them any longer.
                    Kind::Endpoints => diff.endpoints.push((name, Assignment::default())),
                    // A table goes with its last listener. Secrets and extensions are in the parts that name them.
                    Kind::Routes | Kind::Secret | Kind::Extension => {}
                },
            }
        }
        for error in self.routes.complete(&mut diff) {
            tracing::error!("{error}");
        }
        no_second_wait(&diff);
        diff
    }

    fn target(&self, channel: &Channel) -> Option<Target> {
        Some(self.api(channel)?.target)
    }

    fn news(&self) -> Option<Arc<Notify>> {
        Some(self.context.sds.news())
    }

    fn set_context(&mut self, context: Context) {
        // What has come of extensions and clusters is what this stream has brought, whichever bootstrap names it.
        let (extensions, sent_clusters) =
            (self.context.extensions.clone(), self.context.sent_clusters.clone());
        self.context = Context { extensions, sent_clusters, ..of_stream(context) };
        self.routes.set_context(self.context.clone());
    }

    fn renewed(&mut self) -> Diff {
        let mut diff = Diff::default();
        let refused = self.routes.renew(&mut diff).into_iter().chain(self.routes.complete(&mut diff));
        refused.for_each(|error| tracing::error!("{error}"));
        diff
    }
}

impl Compile for Resources {
    type Part = Part;

    fn waits(&self, part: &Part) {
        if let Part::Cluster(cluster) = part {
            // It is 0 again when the cluster is in force.
            cluster.stats.warming_state().set(1);
        }
    }

    fn compile(&mut self, key: &Key, value: &[u8]) -> Result<Compiled<Part>> {
        let Key { kind, source, name } = key;
        // Of routes what has changed is looked at, secrets are wherever they come from.
        if !matches!(kind, Kind::Routes | Kind::Secret) {
            self.context.unknown.look(any::name_of_url(kind.type_url()), value)?;
        }
        match kind {
            Kind::Cluster => {
                let compiled = self.cluster(name, value)?;
                self.context.sent_clusters.add(name);
                Ok(compiled)
            }
            Kind::Endpoints => Resources::endpoints(name, value),
            Kind::Routes => self.routes(source, name, value),
            Kind::Listener => self.listener(name, value),
            Kind::Secret => {
                let key = SecretKey { source: source.clone(), name: name.clone() };
                let part = self.context.sds.check(&key, value).map(Part::Secret)?;
                Ok(Compiled { part, asks: Asks::default() })
            }
            Kind::Extension => self.extension(key, value),
        }
    }

    fn expect<'a>(&mut self, kind: Kind, values: impl Iterator<Item = &'a [u8]>) {
        if kind == Kind::Listener {
            access_log::expect(&*self.context.compile.log_sinks, values);
        }
    }

    fn missing(&mut self, key: &Key) {
        if let Some(secret) = secret(key) {
            self.context.sds.give_up(&secret);
        }
        if key.kind == Kind::Routes {
            self.routes.refuse(&key.source, &key.name);
        }
    }

    fn decide(&mut self, key: &Key, fits: bool) {
        if key.kind == Kind::Extension {
            self.context.extensions.decide(fits);
        }
    }

    fn note(&self, key: &Key, event: Event<'_>) {
        let stats = || Some(self.context.compile.clusters.find(&key.name)?.stats.clone());
        match event {
            Event::Expiring => {
                stats().into_iter().for_each(|stats| stats.assignment_timeout_received().inc())
            }
            Event::Stale => stats().into_iter().for_each(|stats| stats.assignment_stale().inc()),
            Event::Unassigned => stats().into_iter().for_each(|stats| stats.update_empty().inc()),
            event => self.context.tracker.note(key, event),
        }
    }

    fn forgive(&self, kind: Kind, is_told: &dyn Fn(&str) -> bool) {
        self.context.tracker.forgive(kind, is_told);
    }

    fn note_version(&self, kind: Kind, version: &str) {
        self.context.tracker.note_version(kind, version);
    }

    fn stream(&self, channel: &Channel) -> Option<StreamConfig> {
        Some(self.api(channel)?.stream)
    }

    /// Secrets of streams of their own are followed beside this, and wait for nothing here.
    fn elsewhere(&self, key: &Key) -> Option<bool> {
        let secret = secret(key).filter(|secret| secret.source != Source::Ads)?;
        Some(self.context.sds.is_over(&secret))
    }

    fn forget(&mut self, key: &Key) {
        self.note(key, Event::Gone);
        match key.kind {
            Kind::Extension => self.context.extensions.forget(key),
            Kind::Cluster => self.context.sent_clusters.remove(&key.name),
            Kind::Routes => self.routes.forget_unwanted(),
            _ => {}
        }
    }
}

impl Asks {
    /// What a cluster asks for: its endpoints, where they come by themselves, which it counts with the rest of its
    /// statistics.
    pub(crate) fn of_cluster(context: &Context, value: &ProtoCluster) -> Result<Asks> {
        let Some(Assigned { source, name, within }) = cluster::eds(context, value)? else {
            return Ok(Asks::default());
        };
        let need = Need { kind: Kind::Endpoints, source, name, within };
        let scope = named_scope(&["cluster", cluster::shown_name(value)]);
        Ok(Asks { scopes: [(need.key(), scope.into())].into(), needs: vec![need], ..Asks::default() })
    }

    /// What a listener asks for: routes that come by themselves, and the clusters that it leads to itself.
    pub(crate) fn of_listener(listener: &Listener) -> Asks {
        let (mut needs, mut clusters, mut scopes) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
        for chain in listener.chains.iter().chain(&listener.default_chain) {
            match &chain.filter {
                NetworkFilter::Http(manager) => {
                    let needed = routes_of(manager, &mut needs, &mut clusters);
                    let scope = |key: &Key| named_scope(&["http", &manager.stat_prefix, "rds", &key.name]);
                    // Of several that share one the first counts it, as in Envoy.
                    needed.into_iter().for_each(|key| {
                        scopes.entry(key).or_insert_with_key(|key| scope(key).into());
                    });
                }
                NetworkFilter::Tcp(proxy) => route::clusters_of(&proxy.cluster, &mut |name| {
                    clusters.insert(name.clone());
                }),
                NetworkFilter::Routed(_) | NetworkFilter::Direct(_) => {}
            }
        }
        let clusters = clusters.into_iter().collect();
        let mut asks = Asks { needs, clusters, scopes, ..Asks::default() };
        asks.add_secrets(listener.tls().filter_map(|tls| tls.awaited()));
        asks
    }

    /// Secrets that come by streams. Those of files are there, if they ever are.
    pub(crate) fn add_secrets<'a>(&mut self, awaited: impl Iterator<Item = &'a Awaited>) {
        let owners = awaited.filter_map(|awaited| awaited.owner::<User>());
        for (SecretKey { source, name }, within) in owners.flat_map(User::streamed) {
            let need = Need { kind: Kind::Secret, source: source.clone(), name: name.clone(), within };
            if !self.needs.contains(&need) {
                self.needs.push(need);
            }
        }
    }
}

/// What comes by a stream is compiled with this.
fn of_stream(context: Context) -> Context {
    Context { of_stream: true, validate_clusters: true, ads: true, ..context }
}

/// What of a change was not put in force.
pub(super) fn failures(errors: Vec<ApplyError>) -> Vec<Failure> {
    let failure = |ApplyError { kind, name, reason }| {
        let kind = match kind {
            ResourceKind::Endpoints => Kind::Endpoints,
            ResourceKind::Listener => Kind::Listener,
        };
        Failure { kind, name, reason }
    };
    errors.into_iter().map(failure).collect()
}

/// A resource must be called as the one that was asked for.
fn same_name(found: &str, name: &str) -> Result<()> {
    if found == name {
        return Ok(());
    }
    Err(ConfigError::field("name", format!("is \"{found}\" in a resource that comes as \"{name}\"")))
}

/// Adds what a connection manager needs; answers the routes that come by themselves.
fn routes_of(
    manager: &HttpConnectionManager,
    needs: &mut Vec<Need>,
    clusters: &mut BTreeSet<Arc<str>>,
) -> Option<Key> {
    match rds::asked(&manager.routes) {
        Some((source, name)) => {
            let (source, name) = (source.clone(), name.clone());
            let need = Need { kind: Kind::Routes, source, name, within: manager.first_table };
            let key = need.key();
            if !needs.contains(&need) {
                needs.push(need);
            }
            Some(key)
        }
        None => {
            manager.routes.load().iter().for_each(|table| named_by(table, clusters));
            None
        }
    }
}

/// The places of the tables of a listener.
fn tables_of(listener: &Listener) -> impl Iterator<Item = &Arc<RouteTableCell>> {
    listener.chains.iter().chain(&listener.default_chain).filter_map(|chain| match &chain.filter {
        NetworkFilter::Http(manager) => Some(&manager.routes),
        _ => None,
    })
}

/// What listeners needed they were held back for, as long as they may be: nobody waits for it once more.
fn no_second_wait(diff: &Diff) {
    let comes = |cell: &RouteTableCell| diff.route_tables.iter().any(|(key, _)| *key == cell.key);
    for listener in diff.listeners.iter().filter_map(|(_, listener)| listener.as_deref()) {
        for chain in listener.chains.iter().chain(&listener.default_chain) {
            if let NetworkFilter::Http(manager) = &chain.filter
                && rds::asked(&manager.routes).is_some()
                && manager.routes.is_awaited()
                && !comes(&manager.routes)
            {
                manager.routes.refuse();
            }
        }
    }
}

/// The clusters that a table leads to.
fn named_by(table: &RouteTable, clusters: &mut BTreeSet<Arc<str>>) {
    let mut add = |name: &Arc<str>| {
        clusters.insert(name.clone());
    };
    table.routes().for_each(|route| route::named_by(route, &mut add));
}

#[cfg(test)]
mod tests;
