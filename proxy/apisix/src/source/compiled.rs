//! What items compile to, and how one state of it differs from the next.

use std::sync::Arc;

use sixfold_core::cluster::Cluster;
use sixfold_core::error::ConfigError;
use sixfold_core::fast_hash::FastMap;
use sixfold_core::model::Diff;
use sixfold_core::plugin::Chain;
use sixfold_core::route::Route as CoreRoute;
use sixfold_core::router::{RouteTable, TableOptions};

use super::read::{Entry, Items};
use super::{ROUTE_TABLE, Setup};
use crate::client_certificate::VerifiedNames;
use crate::config::Config;
use crate::item::{Body, Parsed, resource_name};
use crate::listener::{self, Listening};
use crate::plugin::{ChainCache, PluginSet, merge};
use crate::resource::{Id, Kind, Route, Service, Upstream};
use crate::route::{self, Parts};
use crate::tls::Certificates;
use crate::upstream::{self, Facing};

/// The compiled state of a source.
#[derive(Default)]
pub(super) struct Compiled {
    /// Of resources that have plugins.
    sets: FastMap<(Kind, Id), Arc<BuiltSet>>,
    global: Global,
    /// By the resource that is the upstream, or brings it.
    clusters: FastMap<(Kind, Id), Arc<BuiltCluster>>,
    routes: FastMap<Id, Arc<BuiltRoute>>,
    /// In the order of the file.
    order: Vec<Arc<CoreRoute>>,
    listening: Option<Listening>,
    certificates: Certificates,
}

/// The plugins of a resource.
struct BuiltSet {
    parsed: Arc<Parsed>,
    set: Arc<PluginSet>,
}

/// The plugins of all global rules as one.
#[derive(Default)]
struct Global {
    rules: Vec<Arc<PluginSet>>,
    names: VerifiedNames,
    set: Arc<PluginSet>,
    chain: Option<Arc<Chain>>,
}

struct BuiltCluster {
    name: Arc<str>,
    /// Fingerprint of the upstream.
    print: u64,
    certificate: Option<Arc<Parsed>>,
    cluster: Arc<Cluster>,
    facing: Arc<Facing>,
}

struct BuiltRoute {
    from: RouteOrigin,
    route: Arc<CoreRoute>,
}

/// Everything that a compiled route was made of. Equal origins make equal routes.
struct RouteOrigin {
    parsed: Arc<Parsed>,
    service: Option<Arc<Parsed>>,
    plugin_config: Option<Arc<Parsed>>,
    upstream: Option<((Kind, Id), Arc<Facing>)>,
    global: Arc<PluginSet>,
}

/// Compiles the next state on the ground of the one before.
struct Step<'a> {
    before: &'a Compiled,
    next: Compiled,
    items: &'a Items,
    config: &'a Config,
    setup: &'a Setup,
    diff: Diff,
    errors: Vec<ConfigError>,
}

impl Compiled {
    /// The state for `items`, and what changes in the model.
    pub(super) fn next(
        &self,
        items: &Items,
        config: &Config,
        setup: &Setup,
        chains: &mut ChainCache,
    ) -> Result<(Compiled, Diff), Vec<ConfigError>> {
        let (next, diff, errors) = (self.room_for_next(), Diff::default(), Vec::new());
        let mut step = Step { before: self, next, items, config, setup, diff, errors };
        step.certificates();
        step.plugin_sets();
        step.global(chains);
        step.clusters();
        step.routes(chains);
        step.table();
        step.listeners();
        if !step.errors.is_empty() {
            return Err(step.errors);
        }
        step.contexts();
        chains.sweep();
        Ok((step.next, step.diff))
    }
}

impl Compiled {
    /// Nothing, with room for as much as there is here.
    fn room_for_next(&self) -> Compiled {
        let mut next = Compiled::default();
        next.sets.reserve(self.sets.len());
        next.clusters.reserve(self.clusters.len());
        next.routes.reserve(self.routes.len());
        next.order.reserve(self.order.len());
        next
    }
}

#[cfg(test)]
impl Compiled {
    pub(super) fn route(&self, id: &str) -> Option<Arc<CoreRoute>> {
        self.routes.get(&Id::from(id)).map(|built| built.route.clone())
    }

    pub(super) fn server_tls(&self) -> Option<&Arc<sixfold_core::tls::ServerTls>> {
        self.listening.as_ref().map(Listening::tls)
    }

    pub(super) fn global_chain(&self) -> Option<&Arc<Chain>> {
        self.global.chain.as_ref()
    }
}

fn same(a: Option<&Arc<Parsed>>, b: Option<&Arc<Parsed>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

impl<'a> Step<'a> {
    fn fault(&mut self, kind: Kind, entry: &Entry, field: &str, reason: impl Into<String>) {
        let place = sixfold_core::error::Place::new(entry.line, 1);
        let error = ConfigError::field(field, reason).at(place);
        self.errors.push(error.in_resource(resource_name(kind, &entry.id)));
    }

    fn certificates(&mut self) {
        let (certificates, faults) =
            Certificates::next(&self.before.certificates, self.items.of(Kind::Ssl), self.config);
        self.next.certificates = certificates;
        self.errors.extend(faults);
    }

    fn plugin_sets(&mut self) {
        for kind in [Kind::GlobalRule, Kind::PluginConfig, Kind::Service, Kind::Route] {
            for entry in self.items.of(kind).iter().filter(|entry| !entry.parsed.plugins.is_empty()) {
                let key = (kind, entry.id.clone());
                let before =
                    self.before.sets.get(&key).filter(|built| Arc::ptr_eq(&built.parsed, &entry.parsed));
                let built = match before {
                    Some(built) => built.clone(),
                    None => {
                        let resource = format!("/apisix/{}/{}", kind.section(), entry.id);
                        match PluginSet::build(&entry.parsed.plugins, &resource, &self.setup.context) {
                            Ok(set) => {
                                Arc::new(BuiltSet { parsed: entry.parsed.clone(), set: Arc::new(set) })
                            }
                            Err((plugin, reason)) => {
                                let reason = format!(
                                    "failed to check the configuration of plugin {plugin} err: {reason}"
                                );
                                self.fault(kind, entry, &format!("plugins.{plugin}"), reason);
                                continue;
                            }
                        }
                    }
                };
                self.next.sets.insert(key, built);
            }
        }
    }

    fn set(&self, kind: Kind, id: &Id) -> Option<&Arc<PluginSet>> {
        self.next.sets.get(&(kind, id.clone())).map(|built| &built.set)
    }

    fn global(&mut self, chains: &mut ChainCache) {
        let rules = self.items.of(Kind::GlobalRule).iter();
        let rules: Vec<_> =
            rules.filter_map(|entry| self.set(Kind::GlobalRule, &entry.id).cloned()).collect();
        let before = &self.before.global;
        let names = self.next.certificates.verified_names();
        let same_rules = rules.len() == before.rules.len()
            && rules.iter().zip(&before.rules).all(|(a, b)| Arc::ptr_eq(a, b));
        let set = match same_rules && names == before.names {
            true => before.set.clone(),
            false => {
                let set = PluginSet::of_global_rules(rules.iter().map(|rule| &**rule));
                Arc::new(set.guarded_by(names.guard()))
            }
        };
        let chain = chains.chain(&set, &PluginSet::default());
        self.next.global = Global { rules, names, set, chain };
    }

    fn clusters(&mut self) {
        for kind in [Kind::Upstream, Kind::Service, Kind::Route] {
            for entry in self.items.of(kind) {
                if let Some(upstream) = own_upstream(&entry.parsed) {
                    self.cluster(kind, entry, upstream);
                }
            }
        }
        let gone = self.before.clusters.iter().filter(|(key, _)| !self.next.clusters.contains_key(*key));
        self.diff.clusters.extend(gone.map(|(_, built)| (built.name.clone(), None)));
    }

    fn cluster(&mut self, kind: Kind, entry: &Entry, upstream: &Upstream) {
        let key = (kind, entry.id.clone());
        let certificate = upstream.tls.as_ref().and_then(|tls| tls.client_cert_id.as_ref());
        let certificate = certificate.and_then(|id| self.items.get(Kind::Ssl, id)).cloned();
        let print = entry.parsed.upstream_print;
        let before = self.before.clusters.get(&key);
        let kept = before
            .filter(|built| built.print == print && same(built.certificate.as_ref(), certificate.as_ref()));
        if let Some(built) = kept {
            self.next.clusters.insert(key, built.clone());
            return;
        }
        let name = before.map_or_else(|| cluster_name(kind, &entry.id), |built| built.name.clone());
        let tls = crate::tls::towards_upstream(upstream, certificate.as_deref(), self.setup);
        let compiled = tls.and_then(|tls| {
            let keepalive = self.config.http.upstream_keepalive;
            let (config, hosts) = upstream::compile(&name, upstream, tls, keepalive)?;
            let previous = before.map(|built| &*built.cluster);
            Cluster::new(config, hosts, previous, &self.setup.context.metrics)
        });
        match compiled {
            Ok(cluster) => {
                let facing = Arc::new(Facing::of(upstream));
                self.diff.clusters.push((name.clone(), Some(cluster.clone())));
                let built = BuiltCluster { name, print, certificate, cluster, facing };
                self.next.clusters.insert(key, Arc::new(built));
            }
            Err(reason) => {
                let field = if kind == Kind::Upstream { "nodes" } else { "upstream" };
                self.fault(kind, entry, field, reason);
            }
        }
    }

    fn routes(&mut self, chains: &mut ChainCache) {
        for entry in self.items.of(Kind::Route) {
            let Body::Route(route) = &entry.parsed.body else { continue };
            if route.status {
                self.route(entry, route, chains);
            }
        }
    }

    fn route(&mut self, entry: &Entry, route: &'a Route, chains: &mut ChainCache) {
        let items = self.items;
        let service = route.service_id.as_ref().and_then(|id| Some((id, items.get(Kind::Service, id)?)));
        let plugin_config = route.plugin_config_id.as_ref();
        let plugin_config = plugin_config.and_then(|id| Some((id, items.get(Kind::PluginConfig, id)?)));
        let before = self.before.routes.get(&entry.id);
        let kept = before.filter(|built| {
            Arc::ptr_eq(&built.from.parsed, &entry.parsed)
                && Arc::ptr_eq(&built.from.global, &self.next.global.set)
                && same(built.from.service.as_ref(), service.map(|(_, parsed)| parsed))
                && same(built.from.plugin_config.as_ref(), plugin_config.map(|(_, parsed)| parsed))
                && self.faces_the_same(built.from.upstream.as_ref())
        });
        let built = match kept {
            Some(built) => built.clone(),
            None => match self.compile_route(entry, route, service, plugin_config, chains) {
                Ok(built) => Arc::new(built),
                Err((field, reason)) => return self.fault(Kind::Route, entry, field, reason),
            },
        };
        self.next.order.push(built.route.clone());
        self.next.routes.insert(entry.id.clone(), built);
    }

    /// Whether a cluster still asks of its routes what it asked before. Which cluster it is follows from the
    /// route and its service.
    fn faces_the_same(&self, upstream: Option<&((Kind, Id), Arc<Facing>)>) -> bool {
        let Some((key, facing)) = upstream else { return true };
        let cluster = self.next.clusters.get(key);
        cluster.is_some_and(|built| Arc::ptr_eq(&built.facing, facing) || built.facing == *facing)
    }

    fn compile_route(
        &self,
        entry: &Entry,
        route: &Route,
        service: Option<(&Id, &Arc<Parsed>)>,
        plugin_config: Option<(&Id, &Arc<Parsed>)>,
        chains: &mut ChainCache,
    ) -> Result<BuiltRoute, (&'static str, String)> {
        let service_body = service.and_then(|(id, parsed)| match &parsed.body {
            Body::Service(service) => Some((id, &**service)),
            _ => None,
        });
        let upstream = upstream_of(&entry.id, route, service_body)
            .and_then(|key| self.next.clusters.get_key_value(&key));
        let sets = [
            self.set(Kind::Route, &entry.id),
            plugin_config.and_then(|(id, _)| self.set(Kind::PluginConfig, id)),
            service.and_then(|(id, _)| self.set(Kind::Service, id)),
        ];
        let plugins = merge(sets.into_iter().flatten().map(|set| &**set));
        let parts = Parts {
            id: &entry.id,
            route,
            service: service_body,
            upstream: upstream.map(|(_, built)| (self.setup.clusters.cell(&built.name), &*built.facing)),
            chain: chains.chain(&self.next.global.set, &plugins),
        };
        Ok(BuiltRoute {
            route: Arc::new(route::compile(&parts)?),
            from: RouteOrigin {
                parsed: entry.parsed.clone(),
                service: service.map(|(_, parsed)| parsed.clone()),
                plugin_config: plugin_config.map(|(_, parsed)| parsed.clone()),
                upstream: upstream.map(|(key, built)| (key.clone(), built.facing.clone())),
                global: self.next.global.set.clone(),
            },
        })
    }

    fn table(&mut self) {
        let (before, next) = (&self.before.order, &self.next.order);
        let routes_same =
            before.len() == next.len() && before.iter().zip(next).all(|(a, b)| Arc::ptr_eq(a, b));
        let global_same = Arc::ptr_eq(&self.before.global.set, &self.next.global.set);
        if (routes_same && global_same && self.before.listening.is_some()) || !self.errors.is_empty() {
            return;
        }
        let options = TableOptions { chain: self.next.global.chain.clone(), ..TableOptions::default() };
        match RouteTable::apisix(ROUTE_TABLE, options, self.config.router.into(), next) {
            Ok(table) => self.diff.route_tables.push((ROUTE_TABLE.into(), Some(Arc::new(table)))),
            Err(error) => self.errors.push(error),
        }
    }

    /// Certificates go into force with the change, never before it.
    fn contexts(&mut self) {
        let Some(listening) = &self.next.listening else { return };
        if self.before.listening.is_none() || !self.next.certificates.same(&self.before.certificates) {
            self.diff.contexts.push(listening.change(&self.next.certificates, self.config));
        }
    }

    /// Listeners depend on config.yaml alone; certificates are shown by the ones that are there.
    fn listeners(&mut self) {
        if let Some(listening) = &self.before.listening {
            self.next.listening = Some(listening.clone());
            return;
        }
        match listener::compile(self.config, self.setup) {
            Ok((listening, listeners)) => {
                let named =
                    listeners.into_iter().map(|listener| (listener.name.clone(), Some(Arc::new(listener))));
                self.diff.listeners.extend(named);
                self.next.listening = Some(listening);
            }
            Err(error) => self.errors.push(error),
        }
    }
}

/// The upstream that a resource brings itself.
fn own_upstream(parsed: &Parsed) -> Option<&Upstream> {
    match &parsed.body {
        Body::Upstream(upstream) => Some(upstream),
        Body::Service(service) => service.upstream.as_ref(),
        Body::Route(route) => route.upstream.as_ref(),
        _ => None,
    }
}

/// The cluster of the upstream that a resource is or brings.
fn cluster_name(kind: Kind, id: &Id) -> Arc<str> {
    format!("{}/{id}", kind.section()).into()
}

/// The cluster that a route sends to: an id goes before an upstream in place, the route before its service.
fn upstream_of(id: &Id, route: &Route, service: Option<(&Id, &Service)>) -> Option<(Kind, Id)> {
    if let Some(upstream) = &route.upstream_id {
        return Some((Kind::Upstream, upstream.clone()));
    }
    if route.upstream.is_some() {
        return Some((Kind::Route, id.clone()));
    }
    let (service_id, service) = service?;
    match (&service.upstream_id, &service.upstream) {
        (Some(upstream), _) => Some((Kind::Upstream, upstream.clone())),
        (None, Some(_)) => Some((Kind::Service, service_id.clone())),
        (None, None) => None,
    }
}
