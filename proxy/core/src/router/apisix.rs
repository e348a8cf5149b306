//! APISIX's routers: which URIs a route is for, and which route goes first (lua-resty-radixtree).
//!
//! Routes lie in parts: by host, and within a host by the first directories of their path. Tables share
//! parts, so that a change of one route sorts the routes of its part alone.

mod hosts;
mod paths;
#[cfg(test)]
mod tests;
mod uri;

use super::index::{Captures, Index};
use super::{VirtualHost, VirtualHostOptions};
use crate::error::ConfigError;
use crate::fast_hash::FastSet;
use crate::plugin::Begins;
use crate::route::Route;
use crate::stream::Stream;
use hosts::{HostMap, Side};
use paths::{Edits, Paths};
use smallvec::SmallVec;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
pub(super) use uri::Parameters;
use uri::{Entry, literal};

/// `apisix.router.http`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ApisixRouter {
    /// `radixtree_host_uri`: hosts first, then URIs. The default.
    #[default]
    HostUri,
    /// `radixtree_uri`: URIs; hosts are a condition among others.
    Uri,
    /// `radixtree_uri_with_parameter`: as `radixtree_uri`, and `:name` stands for a segment.
    UriWithParameter,
}

/// A route that is ready for a table.
#[derive(Debug, Clone)]
pub struct ApisixRoute {
    route: Arc<Route>,
    /// One for each URI.
    entries: Box<[Entry]>,
}

impl ApisixRoute {
    /// Whether a URI can be compiled.
    ///
    /// # Errors
    /// Why not.
    pub fn check_uri(uri: &str, router: ApisixRouter) -> Result<(), String> {
        Parameters::new(uri, router).map(|_| ())
    }

    /// Prepares a route for the URIs and hosts that its `ids` tell. Among routes of equal precedence the one
    /// with the least `order` goes first.
    ///
    /// # Errors
    /// A URI that can't be compiled.
    pub fn new(route: Arc<Route>, order: u64, router: ApisixRouter) -> Result<ApisixRoute, ConfigError> {
        let entries = route.ids.uris.iter().map(|uri| Entry::new(uri, &route, order, router));
        let entries = entries.collect::<Result<_, _>>()?;
        Ok(ApisixRoute { route, entries })
    }
}

/// The routes of a table. Cloning shares them; [`ApisixRoutes::next`] leaves what was there as it is.
#[derive(Debug, Clone, Default)]
pub struct ApisixRoutes {
    router: ApisixRouter,
    exact: HostMap,
    /// By length of the text behind the star, longest first.
    suffixes: Vec<(usize, HostMap)>,
    any: Paths,
    /// Those whose plugins begin something when they go into force. Nearly always none.
    beginning: Vec<Arc<Route>>,
}

impl ApisixRoutes {
    /// No routes.
    pub fn new(router: ApisixRouter) -> ApisixRoutes {
        ApisixRoutes { router, ..ApisixRoutes::default() }
    }

    /// The same without `gone` and with `come`. A route that has changed is in both.
    #[must_use]
    pub fn next(&self, gone: &[Arc<Route>], come: &[ApisixRoute]) -> ApisixRoutes {
        let mut changes: BTreeMap<Side, Edits> = BTreeMap::new();
        for route in gone {
            for side in self.sides(route) {
                let literals = route.ids.uris.iter().map(|uri| literal(uri, self.router));
                changes.entry(side).or_default().gone.extend(literals);
            }
        }
        for ApisixRoute { route, entries } in come {
            for side in self.sides(route) {
                changes.entry(side).or_default().come.extend(entries.iter().cloned());
            }
        }
        let gone: FastSet<usize> = gone.iter().map(|route| Arc::as_ptr(route) as usize).collect();
        let mut next = self.clone();
        for (side, edits) in changes {
            next.edit(side, edits, &gone);
        }
        next.beginning.retain(|route| !gone.contains(&(Arc::as_ptr(route) as usize)));
        let begins = |route: &&Arc<Route>| !Begins::of_chains(route.chains()).is_empty();
        next.beginning.extend(come.iter().map(|come| &come.route).filter(begins).cloned());
        next
    }

    /// The hosts under which a route lies.
    fn sides(&self, route: &Route) -> SmallVec<[Side; 2]> {
        if self.router != ApisixRouter::HostUri || route.ids.hosts.is_empty() {
            return [Side::Any].into_iter().collect();
        }
        let mut sides: SmallVec<[Side; 2]> = route.ids.hosts.iter().map(|host| Side::of(host)).collect();
        sides.sort();
        sides.dedup();
        sides
    }

    fn edit(&mut self, side: Side, edits: Edits, gone: &FastSet<usize>) {
        match side {
            Side::Any => self.any = self.any.next(edits, gone),
            Side::Exact(host) => self.exact.edit(&host, edits, gone),
            Side::Suffix(end) => {
                let at = self.suffixes.partition_point(|(len, _)| *len > end.len());
                if self.suffixes.get(at).is_none_or(|(len, _)| *len != end.len()) {
                    self.suffixes.insert(at, (end.len(), HostMap::default()));
                }
                let map = &mut self.suffixes[at].1;
                map.edit(&end, edits, gone);
                if map.is_empty() {
                    self.suffixes.remove(at);
                }
            }
        }
    }

    /// All routes, those of one host together; a route of several hosts or URIs several times.
    pub(super) fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        let wild = self.suffixes.iter().flat_map(|(_, map)| map.all());
        self.exact.all().chain(wild).chain([&self.any]).flat_map(Paths::routes)
    }

    pub(super) fn find(&self, path: &[u8], stream: &Stream, captures: &mut Captures) -> Option<&Arc<Route>> {
        if !self.exact.is_empty() || !self.suffixes.is_empty() {
            let host: SmallVec<[u8; 64]> =
                stream.request.server_name().iter().map(u8::to_ascii_lowercase).collect();
            for paths in self.of_host(&host) {
                if let Some(route) = paths.find(path, stream, captures) {
                    return Some(route);
                }
            }
        }
        self.any.find(path, stream, captures)
    }

    /// The paths of routes for this host, in lower case, the most specific first; those for all hosts are not among them.
    #[inline]
    fn of_host(&self, host: &[u8]) -> impl Iterator<Item = &Paths> {
        let wild = self.suffixes.iter().filter_map(move |(len, map)| {
            map.get(host.len().checked_sub(*len).and_then(|at| host.get(at..))?)
        });
        self.exact.get(host).into_iter().chain(wild)
    }
}

/// A table of these routes.
#[derive(Debug)]
pub(super) struct ApisixHosts {
    /// What stands for the virtual host, which APISIX does not have.
    shell: Arc<VirtualHost>,
    routes: ApisixRoutes,
}

impl ApisixHosts {
    pub(super) fn new(name: &str, shell: VirtualHostOptions, routes: ApisixRoutes) -> ApisixHosts {
        ApisixHosts { shell: VirtualHost::new(name, shell), routes }
    }

    pub(super) fn begins(&self) -> Begins {
        Begins::of_chains(self.routes.beginning.iter().flat_map(|route| route.chains()))
    }

    pub(super) fn virtual_host(&self) -> &Arc<VirtualHost> {
        &self.shell
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.routes()
    }

    pub(super) fn find(&self, path: &[u8], stream: &Stream, captures: &mut Captures) -> Option<&Arc<Route>> {
        self.routes.find(path, stream, captures)
    }

    /// The indexes of routes for the request's host, in the order in which they are asked.
    pub(super) fn indexes(&self, stream: &Stream) -> Vec<&Arc<Index>> {
        let host = stream.request.server_name().to_ascii_lowercase();
        let paths = self.routes.of_host(&host).chain([&self.routes.any]);
        paths.flat_map(Paths::deepest_first).collect()
    }
}

/// The same by APISIX's rules told one by one, every route in turn: the route, and how many had the right path
/// and host. What the tables are checked against.
pub(super) fn scan<'a>(
    routes: &'a [(u64, Arc<Route>)],
    router: ApisixRouter,
    path: &[u8],
    stream: &Stream,
) -> (Option<&'a Arc<Route>>, usize) {
    let host = stream.request.server_name().to_ascii_lowercase();
    let mut fitting = Vec::new();
    for (order, of) in routes {
        for uri in &of.ids.uris {
            let Ok(entry) = Entry::new(uri, of, *order, router) else { continue };
            if !entry.parameters.matches(path, &stream.request.authority) {
                continue;
            }
            // In the host router whole hosts go first, then longer ends, then routes for all hosts.
            let by_host = router == ApisixRouter::HostUri && !of.ids.hosts.is_empty();
            let rank = |pattern: &str| match pattern.to_ascii_lowercase().rsplit_once('*') {
                None => (pattern.to_ascii_lowercase().as_bytes() == host).then_some((0, Reverse(0))),
                Some((_, end)) => host.ends_with(end.as_bytes()).then_some((1, Reverse(end.len()))),
            };
            let host_rank = if by_host {
                of.ids.hosts.iter().filter_map(|host| rank(host)).min()
            } else {
                Some((2, Reverse(0)))
            };
            if let Some(host_rank) = host_rank {
                fitting.push((host_rank, entry.key(), of));
            }
        }
    }
    fitting.sort_by_key(|(host_rank, key, _)| (*host_rank, *key));
    let count = fitting.len();
    let fulfilled = |route: &Route| route.predicates.iter().all(|p| p.matches(stream));
    (fitting.into_iter().map(|(_, _, route)| route).find(|route| fulfilled(route)), count)
}
