//! What changes compile to. A candidate that is dropped has changed nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sixfold_core::cluster::ClusterCell;
use sixfold_core::error::ConfigError;
use sixfold_core::fast_hash::FastSet;
use sixfold_core::model::Diff;
use sixfold_core::route::Route as CoreRoute;
use sixfold_core::router::{ApisixRoute, ApisixRoutes, RouteTable, TableOptions};

use super::ROUTE_TABLE;
use super::batch::{Batch, Pending};
use super::l4::StreamRoutes;
use super::record::{Built, BuiltCluster, Fresh, Record};
use super::roll::Roll;
use super::state::{Fault, Global, Held, Refused, State};
use crate::config::EnabledPlugins;
use crate::listener::{self, Listening};
use crate::plugin::{Catalog, ChainCache, GlobalPlugins, PluginSet, merge};
use crate::resource::{Id, Kind};
use crate::route::{Lack, Linkage, Parts, Template};
use crate::store::Key;
use crate::tls::{Certificates, ClientCertificate};
use crate::upstream::Forwarding;

/// A state to come, told by its differences.
pub(super) struct Candidate {
    pub(super) pending: BTreeMap<Key, Pending>,
    pub(super) answered: BTreeSet<Key>,
    pub(super) refused: BTreeMap<Key, Refused>,
    catalog: Arc<Catalog>,
    listed: Option<EnabledPlugins>,
    routes: Routes,
    stream_routes: StreamRoutes,
    table: Option<ApisixRoutes>,
    global: Option<Global>,
    roll: Option<Roll>,
    certificates: Option<Certificates>,
    listening: Option<Listening>,
    pub(super) diff: Diff,
}

/// Routes that are compiled anew, or gone.
type Routes = Vec<(Id, Option<Arc<CoreRoute>>)>;

/// Compiles what fits together.
pub(super) struct Linker<'a, 'b> {
    pub(super) batch: &'b Batch<'a>,
    chains: &'b mut ChainCache,
    global: Option<Global>,
    diff: Diff,
    /// What is odd about resources together.
    warnings: Vec<Fault>,
}

impl Candidate {
    /// Takes out of a batch what is wrong, and compiles the rest.
    ///
    /// # Errors
    /// What is wrong with listeners, which come of config.yaml.
    pub(super) fn new(batch: &mut Batch<'_>, chains: &mut ChainCache) -> Result<Candidate, ConfigError> {
        batch.take_up();
        loop {
            batch.settle();
            if !certify(batch) {
                break;
            }
        }
        batch.look_at_unread();
        let state = batch.state;
        let (global, diff, warnings) = Default::default();
        let mut linker = Linker { batch, chains, global, diff, warnings };
        let certificates = linker.certificates();
        linker.global(certificates.as_ref().unwrap_or(&state.certificates));
        linker.clusters();
        let roll = linker.consumers();
        linker.metadata();
        let (routes, table) = linker.routes();
        let (stream_routes, l4) = linker.stream_routes();
        linker.diff.l4 = l4;
        let listening = linker.listeners(certificates.as_ref())?;
        let Linker { global, diff, warnings, .. } = linker;
        batch.warnings.extend(warnings);
        Ok(Candidate {
            pending: std::mem::take(&mut batch.pending),
            answered: std::mem::take(&mut batch.answered),
            refused: std::mem::take(&mut batch.refused),
            catalog: batch.catalog.clone(),
            listed: batch.listed.clone(),
            routes,
            stream_routes,
            table,
            global,
            roll,
            certificates,
            listening,
            diff,
        })
    }

    /// Makes this the state; answers how the model changes.
    pub(super) fn accept(self, state: &mut State) -> Diff {
        let Candidate {
            mut diff, pending, answered, refused, catalog, listed, routes, table, global, ..
        } = self;
        let mut replaced: (Vec<Held>, Vec<Arc<CoreRoute>>, Vec<Refused>) = Default::default();
        for (key, pending) in pending {
            replaced.0.extend(state.resources.remove(&key));
            if let Pending::Put(order, fresh) = pending {
                state.resources.insert(key, Held { order, record: fresh.record });
            }
        }
        for (id, route) in routes {
            replaced.1.extend(match route {
                Some(route) => state.routes.insert(id, route),
                None => state.routes.remove(&id),
            });
        }
        for (id, linked) in self.stream_routes {
            match linked {
                Some(linked) => drop(state.stream_routes.insert(id, linked)),
                None => drop(state.stream_routes.remove(&id)),
            }
        }
        replaced.2.extend(answered.iter().filter_map(|key| state.refused.remove(key)));
        state.refused.extend(refused);
        (state.catalog, state.listed) = (Some(catalog), listed);
        state.table = table.unwrap_or_else(|| std::mem::take(&mut state.table));
        state.global = global.unwrap_or_else(|| std::mem::take(&mut state.global));
        state.roll = self.roll.unwrap_or_else(|| std::mem::take(&mut state.roll));
        state.certificates = self.certificates.unwrap_or_else(|| std::mem::take(&mut state.certificates));
        state.listening = self.listening.or(state.listening.take());
        diff.replaced = Some(Box::new(replaced));
        diff
    }
}

/// The faults of what is refused that are not those of `state`.
pub(super) fn new_faults(refused: &BTreeMap<Key, Refused>, state: &State) -> Vec<Fault> {
    let known = |key: &Key| state.refused.get(key).map(|refused| &refused.faults);
    let fresh = refused.iter().filter(|(key, refused)| known(key) != Some(&refused.faults));
    let mut faults: Vec<Fault> = fresh.flat_map(|(_, refused)| refused.faults.iter().cloned()).collect();
    faults.dedup();
    faults
}

/// Builds the clusters of upstreams that show a certificate of another resource; tells whether something had to
/// be taken out for it.
fn certify(batch: &mut Batch<'_>) -> bool {
    let fresh = batch.pending.keys().filter(|key| key.kind != Kind::Ssl).cloned();
    let mut concerned: Vec<(Key, Key)> = fresh.map(|key| (key.clone(), key)).collect();
    for ssl in batch.pending.keys().filter(|key| key.kind == Kind::Ssl) {
        concerned.extend(batch.steady_dependents(ssl).map(|dependent| (dependent.clone(), ssl.clone())));
    }
    let mut refused = false;
    for (key, cause) in concerned {
        let Some((record, certificate)) = to_certify(batch, &key) else { continue };
        let held = batch.state.resources.get(&key);
        let before = held.map(|held| &*held.record);
        match batch.builder.certify(&key, &record, &certificate, before) {
            Ok(record) => {
                let (order, template, value) = match batch.pending.remove(&key) {
                    Some(Pending::Put(order, fresh)) => (order, fresh.template, fresh.value),
                    _ => (held.map_or(0, |held| held.order), None, None),
                };
                batch.pending.insert(key, Pending::Put(order, Fresh { record, template, value }));
            }
            Err(error) => {
                let waiting = batch.take_out(&cause);
                batch.refuse(cause, vec![Fault { about: key, error }], waiting);
                refused = true;
            }
        }
    }
    refused
}

/// The record of an upstream whose cluster does not show the certificate that it should.
fn to_certify(batch: &Batch<'_>, key: &Key) -> Option<(Arc<Record>, Arc<ClientCertificate>)> {
    let record = batch.get(key)?;
    record.certified.as_ref()?;
    let Built::Client(certificate) =
        &batch.get(&Key::new(Kind::Ssl, record.refers(Kind::Ssl)?.clone()))?.body
    else {
        return None;
    };
    let shown = record.cluster.as_ref().and_then(|cluster| cluster.certificate.as_ref());
    let current = shown.is_some_and(|shown| Arc::ptr_eq(shown, certificate));
    (!current).then(|| (record.clone(), certificate.clone()))
}

impl<'a> Linker<'a, '_> {
    fn changes(&self, kind: Kind) -> bool {
        self.batch.pending.keys().any(|key| key.kind == kind)
    }

    pub(super) fn before(&self, key: &Key) -> Option<&'a Arc<Record>> {
        self.batch.state.resources.get(key).map(|held| &held.record)
    }

    /// The certificates, if they change.
    fn certificates(&self) -> Option<Certificates> {
        let server = |record: &Arc<Record>| match &record.body {
            Built::Server(certificate) => Some(certificate.clone()),
            _ => None,
        };
        let next = || Certificates::new(self.batch.all(Kind::Ssl).into_iter().filter_map(server).collect());
        self.changes(Kind::Ssl).then(next).filter(|next| !next.same(&self.batch.state.certificates))
    }

    fn global(&mut self, certificates: &Certificates) {
        let before = &self.batch.state.global;
        let names = certificates.verified_names();
        if !self.changes(Kind::GlobalRule) && names == before.names {
            return;
        }
        let rules: Vec<_> =
            self.batch.all(Kind::GlobalRule).into_iter().map(|record| record.plugins.clone()).collect();
        let same = rules.len() == before.rules.len()
            && rules.iter().zip(&before.rules).all(|(a, b)| Arc::ptr_eq(a, b));
        if same && names == before.names {
            return;
        }
        let set = PluginSet::of_global_rules(rules.iter().map(|rule| &**rule));
        let set = Arc::new(GlobalPlugins::new(names.guard(), set));
        let chain = self.chains.chain(&set, &PluginSet::default());
        self.global = Some(Global { rules, names, set, chain });
    }

    fn clusters(&mut self) {
        for (key, pending) in &self.batch.pending {
            let old = self.before(key).and_then(|record| record.cluster.as_ref());
            let new = pending.record().and_then(|record| record.cluster.as_ref());
            match (old, new) {
                (Some(old), Some(new)) if Arc::ptr_eq(old, new) => {}
                (_, Some(new)) => self.diff.clusters.push((new.name.clone(), Some(new.cluster.clone()))),
                (Some(old), None) => self.diff.clusters.push((old.name.clone(), None)),
                (None, None) => {}
            }
            let old = self.before(key).map(|record| &*record.brought).unwrap_or_default();
            let new = pending.record().map(|record| &*record.brought).unwrap_or_default();
            let gone = old.iter().filter(|old| new.iter().all(|new| new.name != old.name));
            let come = new.iter().filter(|new| !old.iter().any(|old| Arc::ptr_eq(old, new)));
            let come = come.map(|new| (new.name.clone(), Some(new.cluster.clone())));
            self.diff.clusters.extend(gone.map(|old| (old.name.clone(), None)).chain(come));
        }
    }

    /// What plugins are told for the whole gateway, as far as it changes.
    fn metadata(&mut self) {
        let place = &self.batch.builder.context.compile.build.metadata;
        for (key, pending) in self.batch.pending.iter().filter(|(key, _)| key.kind == Kind::PluginMetadata) {
            let of = |record: &Arc<Record>| match &record.body {
                Built::Metadata(plugin, prepared) => Some((*plugin, prepared.clone())),
                _ => None,
            };
            let next = pending.record();
            if next.zip(self.before(key)).is_some_and(|(next, before)| Arc::ptr_eq(next, before)) {
                continue;
            }
            match next.map(of) {
                Some(told) => {
                    self.diff.metadata.extend(told.map(|(plugin, next)| place.change(plugin, next)))
                }
                None => {
                    let gone = self.before(key).and_then(of);
                    self.diff.metadata.extend(gone.map(|(plugin, _)| place.change(plugin, None)));
                }
            }
        }
    }

    /// The consumers, if they change.
    fn consumers(&mut self) -> Option<Roll> {
        let kinds = [Kind::Consumer, Kind::ConsumerGroup, Kind::Credential];
        if !kinds.into_iter().any(|kind| self.changes(kind)) {
            return None;
        }
        let place = &self.batch.builder.context.compile.build.consumers;
        let (roll, change, odd) = self.batch.state.roll.next(self.batch, place);
        self.warnings.extend(odd);
        self.diff.consumers = Some(change).filter(|change| !change.is_empty());
        Some(roll)
    }

    /// Routes that are not what they were, by themselves or for what they hang on.
    fn dirty(&self) -> FastSet<Id> {
        let resources = &self.batch.state.resources;
        if self.global.is_some() {
            let pending = self.batch.pending.keys().filter(|key| key.kind == Kind::Route);
            let all = resources.of(Kind::Route).map(|(id, _)| id);
            return all.chain(pending.map(|key| &key.id)).cloned().collect();
        }
        let mut dirty = FastSet::default();
        for (key, pending) in &self.batch.pending {
            let (old, new) = (self.before(key), pending.record());
            let same =
                old.zip(new).is_some_and(|(old, new)| old.means_the_same(new) && faces_the_same(old, new));
            if key.kind == Kind::Route {
                let order = match pending {
                    Pending::Put(order, _) => Some(*order),
                    Pending::Delete => None,
                };
                if !same || order != resources.get(key).map(|held| held.order) {
                    dirty.insert(key.id.clone());
                }
            } else if !same {
                self.mark(key, &mut dirty);
            }
        }
        dirty
    }

    /// Marks the routes that hang on a resource, directly or by their service.
    fn mark(&self, key: &Key, dirty: &mut FastSet<Id>) {
        for dependent in self.batch.state.resources.dependents(key) {
            match dependent.kind {
                Kind::Route => {
                    dirty.insert(dependent.id.clone());
                }
                Kind::Service => self.mark(dependent, dirty),
                _ => {}
            }
        }
    }

    fn routes(&mut self) -> (Routes, Option<ApisixRoutes>) {
        let (state, router) = (self.batch.state, self.batch.builder.config.router.into());
        let (mut gone, mut come, mut routes) = (Vec::new(), Vec::new(), Vec::new());
        for id in self.dirty() {
            let key = Key { kind: Kind::Route, id };
            let old = state.routes.get(&key.id);
            let (order, record, template) = match self.batch.pending.get(&key) {
                Some(Pending::Put(order, fresh)) => (*order, Some(&fresh.record), fresh.template.as_deref()),
                Some(Pending::Delete) => (0, None, None),
                None => match state.resources.get(&key) {
                    Some(held) => (held.order, Some(&held.record), None),
                    None => continue,
                },
            };
            let linkage = record.and_then(|record| match &record.body {
                Built::Route(linkage) if linkage.enabled => Some((record, &**linkage)),
                _ => None,
            });
            let Some((record, linkage)) = linkage else {
                gone.extend(old.cloned());
                routes.push((key.id, None));
                continue;
            };
            let template = template.cloned().or_else(|| Some(Template::again(old?, linkage)));
            let linked = template.map(|template| self.link(&key, record, linkage, template));
            let ready = linked.and_then(|linked| {
                let route = Arc::new(linked.ok()?);
                Some((route.clone(), ApisixRoute::new(route, order, router).ok()?))
            });
            // Its parts were compiled when they were read, so this can't fail; the route would stay as it is.
            let Some((route, ready)) = ready else { continue };
            gone.extend(old.cloned());
            come.push(ready);
            routes.push((key.id, Some(route)));
        }
        let first = state.listening.is_none();
        if gone.is_empty() && come.is_empty() && self.global.is_none() && !first {
            return (routes, None);
        }
        let before = if first { ApisixRoutes::new(router) } else { state.table.clone() };
        let table = before.next(&gone, &come);
        let chain = self.global.as_ref().unwrap_or(&state.global).chain.clone();
        let options = TableOptions { chain, ..TableOptions::default() };
        let compiled = RouteTable::apisix(ROUTE_TABLE, options, table.clone());
        self.diff
            .route_tables
            .push((self.batch.builder.context.routes.key.clone(), Some(Arc::new(compiled))));
        self.chains.sweep();
        (routes, Some(table))
    }

    fn link(
        &mut self,
        key: &Key,
        record: &Record,
        linkage: &Linkage,
        template: Template,
    ) -> Result<CoreRoute, String> {
        let service = record.refers(Kind::Service);
        let service =
            service.and_then(|id| Some((id, self.batch.get(&Key::new(Kind::Service, id.clone()))?)));
        let plugin_config = record.refers(Kind::PluginConfig);
        let plugin_config =
            plugin_config.and_then(|id| self.batch.get(&Key::new(Kind::PluginConfig, id.clone())));
        let sets =
            [Some(&record.plugins), plugin_config.map(|r| &r.plugins), service.map(|(_, r)| &r.plugins)];
        let lacks = self.lacks(record, service.map(|(_, record)| &**record));
        // Without its service or plugin config nobody knows which plugins a route has.
        let plugins = match lacks {
            Some(Lack::Service | Lack::PluginConfig) => PluginSet::default(),
            Some(Lack::Upstream) | None => merge(sets.into_iter().flatten().map(|set| &**set)),
        };
        let global = &self.global.as_ref().unwrap_or(&self.batch.state.global).set;
        let chain = self.chains.chain(global, &plugins);
        let parts = Parts {
            id: &key.id,
            linkage,
            service: service.and_then(|(id, record)| match &record.body {
                Built::Service(parts) => Some((id, &**parts)),
                _ => None,
            }),
            upstream: self.upstream(record, service.map(|(_, record)| &**record)),
            lacks,
            chain,
            options: &self.batch.builder.shared.options,
        };
        template.link(&parts)
    }

    /// What a route refers to and is not there, by itself or by its service; in APISIX's order.
    fn lacks(&self, route: &Record, service: Option<&Record>) -> Option<Lack> {
        let lacks = |record: &Record, kind: Kind| {
            let id = record.refers(kind);
            id.is_some_and(|id| self.batch.get(&Key::new(kind, id.clone())).is_none())
        };
        let own = || route.refers(Kind::Upstream).is_some() || route.cluster.is_some();
        let upstream = || if own() { Some(route) } else { service };
        if lacks(route, Kind::PluginConfig) {
            Some(Lack::PluginConfig)
        } else if lacks(route, Kind::Service) {
            Some(Lack::Service)
        } else {
            upstream().filter(|of| lacks(of, Kind::Upstream)).map(|_| Lack::Upstream)
        }
    }

    /// The cluster that a route sends to: an id goes before an upstream in place, the route before its service.
    pub(super) fn upstream<'r>(
        &'r self,
        route: &'r Record,
        service: Option<&'r Record>,
    ) -> Option<(Arc<ClusterCell>, &'r Forwarding)> {
        let named =
            |record: &Record| record.refers(Kind::Upstream).map(|id| Key::new(Kind::Upstream, id.clone()));
        let of = |record: &'r Record| -> Option<&'r Arc<BuiltCluster>> {
            match named(record) {
                Some(key) => self.batch.get(&key)?.cluster.as_ref(),
                None => record.cluster.as_ref(),
            }
        };
        let built = of(route).or_else(|| of(service?))?;
        Some((self.batch.builder.context.compile.clusters.cell_of(&built.name), &*built.forwarding))
    }

    /// Listeners depend on config.yaml alone; certificates go into force with the change, never before it.
    fn listeners(&mut self, certificates: Option<&Certificates>) -> Result<Option<Listening>, ConfigError> {
        let (state, config) = (self.batch.state, self.batch.builder.config);
        if let Some(listening) = &state.listening {
            let changes = certificates.map(|certificates| listening.changes(certificates, config));
            self.diff.contexts.extend(changes.into_iter().flatten());
            return Ok(None);
        }
        let (listening, listeners) = listener::compile(config, self.batch.builder.context)?;
        let named = listeners.into_iter().map(|listener| (listener.name.clone(), Some(Arc::new(listener))));
        self.diff.listeners.extend(named);
        let certificates = certificates.unwrap_or(&state.certificates);
        self.diff.contexts.extend(listening.changes(certificates, config));
        Ok(Some(listening))
    }
}

/// Whether routes must know the same of the upstream that a resource is or brings.
pub(super) fn faces_the_same(old: &Record, new: &Record) -> bool {
    match (&old.cluster, &new.cluster) {
        (Some(old), Some(new)) => Arc::ptr_eq(&old.forwarding, &new.forwarding),
        (None, None) => true,
        _ => false,
    }
}
