//! Route tables: which virtual host and which route a request is for.

mod apisix;
mod bucket;
mod domains;
mod explain;
pub mod fuzz;
mod index;
mod radix;
mod tables;
mod template;
#[cfg(test)]
mod tests;

pub use apisix::{ApisixRoute, ApisixRouter, ApisixRoutes};
pub use domains::Domain;
pub use explain::{Explained, Lost, Passed};
pub(crate) use radix::Tree as Radix;
pub use tables::{FiltersId, RouteTableCell, RouteTables, TableKey};
pub use template::{Template, parse_rewrite};

use crate::error::ConfigError;
use crate::header_ops::HeaderOps;
use crate::headers::HeaderName;
use crate::lookup::{self, Lookup, Wants};
use crate::matching::{Subject, Tree};
use crate::metadata::Metadata;
use crate::plugin::{Begins, Chain};
use crate::rate_limit::LimitPolicy;
use crate::regex::{Regex, work};
use crate::retry::RetryPolicy;
use crate::route::{RequireTls, Route, VirtualCluster};
use crate::stream::Stream;
use apisix::ApisixHosts;
use domains::Domains;
use index::Index;
use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

/// Bytes that the expressions of all candidates together may scan to find the route of one request: 5,000 of them
/// on a path of 800 bytes, some ten milliseconds.
const MAX_SCANNED: usize = 4 << 20;

/// The path a route is for.
#[derive(Debug)]
pub enum PathMatch {
    /// Starts with; the flag ignores ASCII case. Also APISIX's `/foo*`.
    Prefix(Box<[u8]>, bool),
    /// Equal; the flag ignores ASCII case.
    Exact(Box<[u8]>, bool),
    /// Prefix followed by the end or a `/`; the flag ignores ASCII case.
    SeparatedPrefix(Box<[u8]>, bool),
    /// Envoy's `safe_regex`: the whole path.
    Regex(Box<Regex>),
    /// Envoy's `path_match_policy` with a uri_template.
    Template(Box<Template>),
    /// CONNECT requests alone.
    Connect,
}

/// Settings of a table beside its routes.
#[derive(Debug, Default)]
pub struct TableOptions {
    /// Cuts a port off the host before it is looked up.
    pub ignore_port: bool,
    /// Drops `;…` of every path segment before matching.
    pub ignore_path_parameters: bool,
    /// Header changes on requests.
    pub request_headers: HeaderOps,
    /// Header changes on responses.
    pub response_headers: HeaderOps,
    /// Order of levels: table, virtual host, route instead of the reverse.
    pub most_specific_wins: bool,
    /// Taken off requests from outside.
    pub internal_only_headers: Vec<HeaderName>,
    /// Chain for requests that no route takes (APISIX's global rules).
    pub chain: Option<Arc<Chain>>,
}

impl TableOptions {
    /// Whether there is anything that is done to a request or its response once the route is known.
    fn change_requests(&self) -> bool {
        let changes = [&self.request_headers, &self.response_headers];
        changes.iter().any(|ops| !ops.is_empty())
            || !self.internal_only_headers.is_empty()
            || self.most_specific_wins
    }
}

/// Settings of a virtual host beside its routes.
#[derive(Debug, Default)]
pub struct VirtualHostOptions {
    /// Whether plain-text requests are redirected.
    pub require_tls: RequireTls,
    /// Header changes on requests.
    pub request_headers: HeaderOps,
    /// Header changes on responses.
    pub response_headers: HeaderOps,
    /// Sends `x-envoy-attempt-count` upstream.
    pub attempt_count: bool,
    /// Sends `x-envoy-attempt-count` to the client.
    pub attempt_count_in_response: bool,
    /// Sends `x-envoy-is-timeout-retry` upstream on retries.
    pub is_timeout_retry: bool,
    /// Policy of routes that have none.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Bytes kept for a retry, for routes that do not say.
    pub body_buffer_limit: Option<u64>,
    /// Virtual clusters, in order.
    pub virtual_clusters: Vec<VirtualCluster>,
    /// Chain for requests without a route, in the place of the connection manager's (APISIX's global rules).
    pub chain: Option<Arc<Chain>>,
    /// Metadata by namespace.
    pub metadata: Metadata,
    /// What rate limits are told of requests.
    pub rate_limits: Box<[LimitPolicy]>,
}

/// What a request keeps of its virtual host: everything but the routes, which go with their table.
#[derive(Debug)]
pub struct VirtualHost {
    /// Name in the configuration.
    pub name: Arc<str>,
    /// Its settings.
    pub options: VirtualHostOptions,
}

/// A virtual host with its routes, indexed: a part of a table.
#[derive(Debug)]
pub struct HostRoutes {
    host: Arc<VirtualHost>,
    index: Index,
    tree: Option<Box<RouteTree>>,
    /// What plugins of it begin when a table that has it goes into force.
    begins: Begins,
}

/// Routes that a tree leads to.
#[derive(Debug)]
struct RouteTree {
    tree: Tree<RouteList>,
    /// All of them.
    routes: Vec<Arc<Route>>,
}

/// Routes of which the first that fits is taken, indexed: what a tree leads to.
#[derive(Debug)]
pub struct RouteList(Index);

impl RouteList {
    /// These routes in this order.
    pub fn new(routes: Vec<Arc<Route>>) -> RouteList {
        RouteList(Index::of_list(routes))
    }
}

/// A compiled route table. No request holds it longer than its look-up takes: one that runs for days must not
/// keep thousands of routes from being freed.
#[derive(Debug)]
pub struct RouteTable {
    /// Name of the route configuration.
    pub name: Arc<str>,
    /// Everything but virtual hosts.
    pub options: Arc<TableOptions>,
    /// Whether the options change anything of a request or its response.
    counts: bool,
    hosts: Hosts,
    begins: Begins,
    origin: Option<Arc<dyn Any + Send + Sync>>,
}

/// How a table chooses by host.
#[derive(Debug)]
enum Hosts {
    /// Envoy: one virtual host, and no other if its routes do not match.
    Domains(Domains),
    /// APISIX: every host that fits, the most specific first.
    Apisix(Box<ApisixHosts>),
}

/// What a lookup found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Virtual host of the request.
    pub virtual_host: Arc<VirtualHost>,
    /// Its first matching route, if there is one.
    pub route: Option<Arc<Route>>,
    /// That there is no route because trying all candidates would have taken too long: which one the request is for is not
    /// known.
    pub cut_short: bool,
    /// That conditions depend on the request's body, which was not read: with so many bytes of it there may be another route.
    pub wants: Option<Box<Wants>>,
}

impl VirtualHost {
    /// A virtual host by itself.
    pub fn new(name: &str, options: VirtualHostOptions) -> Arc<VirtualHost> {
        Arc::new(VirtualHost { name: name.into(), options })
    }
}

impl HostRoutes {
    /// A virtual host whose routes are tried in this order, as Envoy does.
    pub fn new(name: &str, options: VirtualHostOptions, routes: Vec<Arc<Route>>) -> Arc<HostRoutes> {
        let begins = HostRoutes::begins(&options, &routes);
        let index = Index::of_list(routes);
        Arc::new(HostRoutes { host: VirtualHost::new(name, options), index, tree: None, begins })
    }

    /// A virtual host whose routes are led to by a tree (Envoy's `matcher`). A route at its end must fit too.
    pub fn of_tree(name: &str, options: VirtualHostOptions, tree: Tree<RouteList>) -> Arc<HostRoutes> {
        let mut routes = Vec::new();
        tree.each(&mut |list| routes.extend_from_slice(list.0.routes()));
        let begins = HostRoutes::begins(&options, &routes);
        let tree = Some(Box::new(RouteTree { tree, routes }));
        Arc::new(HostRoutes { host: VirtualHost::new(name, options), index: Index::default(), tree, begins })
    }

    fn begins(options: &VirtualHostOptions, routes: &[Arc<Route>]) -> Begins {
        Begins::of_chains(options.chain.iter().chain(routes.iter().flat_map(|route| route.chains())))
    }

    /// The routes in the configuration's order.
    pub fn routes(&self) -> &[Arc<Route>] {
        self.tree.as_ref().map_or_else(|| self.index.routes(), |tree| &tree.routes)
    }

    fn find(&self, path: &[u8], stream: &Stream, captures: &mut index::Captures) -> Option<&Arc<Route>> {
        self.list(stream)?.find(path, stream, captures)
    }

    /// The routes that a request is looked for among: all of them, or those that a tree leads to.
    fn list(&self, stream: &Stream) -> Option<&Index> {
        match &self.tree {
            None => Some(&self.index),
            Some(tree) => tree.tree.find(Subject::Stream(stream)).map(|list| &list.0),
        }
    }
}

impl RouteTable {
    /// Envoy's table: virtual hosts with their domains.
    ///
    /// # Errors
    /// A domain that is there twice (upper and lower case are alike), is empty, or holds a `*` that is
    /// neither its first nor its last character.
    pub fn new(
        name: &str,
        options: TableOptions,
        hosts: Vec<(Vec<String>, Arc<HostRoutes>)>,
    ) -> Result<RouteTable, ConfigError> {
        Ok(RouteTable::of(name, options, Hosts::Domains(Domains::new(hosts)?)))
    }

    /// APISIX's table of these routes, which it shares with the tables before and after it.
    pub fn apisix(name: &str, options: TableOptions, routes: ApisixRoutes) -> RouteTable {
        let shell = VirtualHostOptions { chain: options.chain.clone(), ..VirtualHostOptions::default() };
        RouteTable::of(name, options, Hosts::Apisix(Box::new(ApisixHosts::new(name, shell, routes))))
    }

    fn of(name: &str, options: TableOptions, hosts: Hosts) -> RouteTable {
        let counts = options.change_requests();
        let of_hosts = match &hosts {
            Hosts::Domains(domains) => Begins::all(domains.all().iter().map(|host| &host.begins)),
            Hosts::Apisix(hosts) => hosts.begins(),
        };
        let begins = Begins::all([&of_hosts, &Begins::of_chains(options.chain.iter())].into_iter());
        RouteTable { name: name.into(), options: Arc::new(options), counts, hosts, begins, origin: None }
    }

    /// Has the plugins of its routes begin what they do by themselves.
    fn begin(&self) {
        self.begins.begin();
    }

    /// The options, for a request to keep: most tables have none that mean anything to it, and a count that all workers
    /// share is not for nothing.
    #[inline]
    pub fn options_of_requests(&self) -> Option<Arc<TableOptions>> {
        self.counts.then(|| self.options.clone())
    }

    /// Remembers what the table was compiled from, for whoever compiles its next version.
    #[must_use]
    pub fn with_origin(self, origin: Arc<dyn Any + Send + Sync>) -> RouteTable {
        RouteTable { origin: Some(origin), ..self }
    }

    /// What it was compiled from, if it remembers such a thing.
    pub fn origin<T: Any>(&self) -> Option<&T> {
        self.origin.as_ref()?.downcast_ref()
    }

    /// The virtual hosts in the configuration's order; none of APISIX's table.
    pub fn virtual_hosts(&self) -> &[Arc<HostRoutes>] {
        match &self.hosts {
            Hosts::Domains(domains) => domains.all(),
            Hosts::Apisix(_) => &[],
        }
    }

    /// The virtual host and the route for the request of `stream`; `None` when no virtual host fits. Path
    /// captures of the route are left in `stream.captures`.
    ///
    /// A request whose candidates would have to scan more than a bound has no route, and never one behind those that
    /// were not tried.
    pub fn find(&self, stream: &mut Stream) -> Option<Found> {
        stream.captures.clear();
        let mut captures = std::mem::take(&mut stream.captures);
        let path = self.path(stream);
        work::grant(MAX_SCANNED);
        let once = Lookup::begin();
        // Of whoever has looked before.
        lookup::take_wants();
        let mut found = match &self.hosts {
            Hosts::Domains(domains) => {
                domains.find(&stream.request.authority, self.options.ignore_port).map(|host| Found {
                    virtual_host: host.host.clone(),
                    route: host.find(&path, stream, &mut captures).cloned(),
                    cut_short: false,
                    wants: None,
                })
            }
            Hosts::Apisix(hosts) => Some(Found {
                virtual_host: hosts.virtual_host().clone(),
                route: hosts.find(&path, stream, &mut captures).cloned(),
                cut_short: false,
                wants: None,
            }),
        };
        if let Some(found) = &mut found {
            found.cut_short = found.route.is_none() && work::is_spent();
            found.wants = lookup::take_wants();
        }
        work::grant(usize::MAX);
        drop(once);
        drop(path);
        stream.captures = captures;
        found
    }

    /// Every route of the table.
    pub fn routes(&self) -> Box<dyn Iterator<Item = &Arc<Route>> + '_> {
        match &self.hosts {
            Hosts::Domains(domains) => Box::new(domains.all().iter().flat_map(|host| host.routes())),
            Hosts::Apisix(hosts) => Box::new(hosts.routes()),
        }
    }

    /// The path as this table matches it.
    fn path<'a>(&self, stream: &'a Stream) -> Cow<'a, [u8]> {
        if matches!(self.hosts, Hosts::Apisix(_)) && !stream.vars.is_empty() {
            // What nginx's normalisation has decoded.
            let uri = stream.var(crate::path::MATCH_URI).or_else(|| stream.var("uri"));
            return Cow::Borrowed(uri.unwrap_or_else(|| stream.request.target.path()));
        }
        let path = stream.request.target.path();
        if self.options.ignore_path_parameters && memchr::memchr(b';', path).is_some() {
            Cow::Owned(without_parameters(path))
        } else {
            Cow::Borrowed(path)
        }
    }
}

/// Drops `;` and what follows of every segment.
fn without_parameters(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut inside = false;
    for &b in path {
        inside = (inside || b == b';') && b != b'/';
        if !inside {
            out.push(b);
        }
    }
    out
}

impl PathMatch {
    /// Whether a path without its query is meant. [`PathMatch::Connect`] asks for the method instead and is
    /// never met by a path.
    pub fn matches(&self, path: &[u8]) -> bool {
        fn starts(path: &[u8], prefix: &[u8], ignore_case: bool) -> bool {
            path.get(..prefix.len())
                .is_some_and(|p| if ignore_case { p.eq_ignore_ascii_case(prefix) } else { p == prefix })
        }
        if path.is_empty() {
            return false;
        }
        match self {
            PathMatch::Prefix(prefix, i) => starts(path, prefix, *i),
            PathMatch::Exact(want, i) => path.len() == want.len() && starts(path, want, *i),
            PathMatch::SeparatedPrefix(prefix, i) => {
                starts(path, prefix, *i) && path.get(prefix.len()).is_none_or(|b| *b == b'/')
            }
            PathMatch::Regex(regex) => regex.is_match(path),
            PathMatch::Template(template) => template.matches(path),
            PathMatch::Connect => false,
        }
    }
}
