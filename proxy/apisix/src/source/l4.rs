//! Stream routes linked with what they hang on, and put into their table.

use std::sync::Arc;

use sixfold_core::fast_hash::FastSet;
use sixfold_core::listener::{L4Change, L4Route, L4Routes};

use super::candidate::{Linker, faces_the_same};
use super::record::{Built, Record};
use crate::plugin::StreamPlugins;
use crate::resource::{Id, Kind};
use crate::store::Key;
use crate::stream_route::StreamParts;

/// Stream routes that are compiled anew, or gone.
pub(super) type StreamRoutes = Vec<(Id, Option<Linked>)>;

/// A stream route in its place.
#[derive(Clone)]
pub(super) struct Linked {
    order: u64,
    pub(super) route: Arc<L4Route>,
}

impl<'a> Linker<'a, '_> {
    /// What changes of stream routes. Their table is made anew from those that are there and those that come: it is a list of
    /// what was compiled.
    pub(super) fn stream_routes(&self) -> (StreamRoutes, Option<L4Change>) {
        if !self.batch.builder.config.proxy_mode.has_streams() {
            return (Vec::new(), None);
        }
        let state = self.batch.state;
        let mut routes = Vec::new();
        for id in self.dirty_streams() {
            let key = Key::new(Kind::StreamRoute, id.clone());
            let order = self.batch.order(&key);
            let record = self.batch.get(&key);
            let linked = order.zip(record).and_then(|(order, record)| {
                // Its parts were compiled when they were read, so this can't fail; the route would be left out.
                Some(Linked { order, route: Arc::new(self.stream_route(&id, record)?) })
            });
            routes.push((id, linked));
        }
        if routes.is_empty() {
            return (routes, None);
        }
        let changed: FastSet<&Id> = routes.iter().map(|(id, _)| id).collect();
        let kept =
            state.stream_routes.iter().filter(|(id, _)| !changed.contains(id)).map(|(_, linked)| linked);
        let mut all: Vec<&Linked> =
            kept.chain(routes.iter().filter_map(|(_, linked)| linked.as_ref())).collect();
        all.sort_by_key(|linked| linked.order);
        let table = L4Routes::new(all.into_iter().map(|linked| linked.route.clone()));
        let change = self.batch.builder.context.streams.table.change(table);
        (routes, Some(change))
    }

    /// Stream routes that are not what they were, by themselves or for what they hang on.
    fn dirty_streams(&self) -> FastSet<Id> {
        let mut dirty = FastSet::default();
        for (key, pending) in &self.batch.pending {
            let (old, new) = (self.before(key), pending.record());
            if key.kind == Kind::StreamRoute {
                let moved =
                    self.batch.order(key) != self.batch.state.resources.get(key).map(|held| held.order);
                let same = old.zip(new).is_some_and(|(old, new)| old.is_same_stream(new));
                if moved || !same {
                    dirty.insert(key.id.clone());
                }
                continue;
            }
            let same = old.zip(new).is_some_and(|(old, new)| old.is_same_to_streams(new));
            if !same {
                self.mark_streams(key, &mut dirty);
            }
        }
        dirty
    }

    fn mark_streams(&self, key: &Key, dirty: &mut FastSet<Id>) {
        for dependent in self.batch.state.resources.dependents(key) {
            match dependent.kind {
                Kind::StreamRoute => drop(dirty.insert(dependent.id.clone())),
                Kind::Service => self.mark_streams(dependent, dirty),
                _ => {}
            }
        }
    }

    fn stream_route(&self, id: &Id, record: &Record) -> Option<L4Route> {
        let Built::StreamRoute(template) = &record.body else { return None };
        // An upstream by id leaves nothing for the service to say (`stream_preread_phase`).
        let service = record.refers(Kind::Service).filter(|_| record.refers(Kind::Upstream).is_none());
        let service =
            service.and_then(|id| Some((id, self.batch.get(&Key::new(Kind::Service, id.clone()))?)));
        let upstream = self.upstream(record, service.map(|(_, record)| &**record));
        let nowhere = || self.batch.builder.context.compile.clusters.cell("");
        let parts = StreamParts {
            id,
            service: service.and_then(|(id, record)| match &record.body {
                Built::Service(parts) => Some((id, &**parts)),
                _ => None,
            }),
            cluster: upstream.as_ref().map_or_else(nowhere, |(cell, _)| cell.clone()),
            forwarding: upstream.map(|(_, forwarding)| forwarding),
            filters: record.streams.filters(service.map(|(_, record): (_, &Arc<Record>)| &*record.streams)),
            streams: &self.batch.builder.context.streams,
        };
        template.link(parts).ok()
    }
}

impl Record {
    /// Whether it is the same stream route.
    fn is_same_stream(&self, other: &Record) -> bool {
        match (&self.body, &other.body) {
            (Built::StreamRoute(a), Built::StreamRoute(b)) => a == b && self.is_same_to_streams(other),
            _ => false,
        }
    }

    /// Whether stream routes that hang on it are the same with either.
    fn is_same_to_streams(&self, other: &Record) -> bool {
        let body = match (&self.body, &other.body) {
            (Built::Service(a), Built::Service(b)) => a == b,
            (Built::Upstream, Built::Upstream) | (Built::StreamRoute(_), Built::StreamRoute(_)) => true,
            // No stream route hangs on anything else.
            _ => return true,
        };
        let same_plugins = |a: &Arc<StreamPlugins>, b: &Arc<StreamPlugins>| Arc::ptr_eq(a, b);
        body && same_plugins(&self.streams, &other.streams)
            && self.brings_upstream() == other.brings_upstream()
            && self.targets() == other.targets()
            && faces_the_same(self, other)
    }
}
