//! APISIX's routers: which URIs a route is for, and which route goes first (lua-resty-radixtree).

use super::index::{Captures, Index, Test};
use super::{VirtualHost, VirtualHostOptions};
use crate::error::ConfigError;
use crate::matcher::HostPattern;
use crate::regex::Regex;
use crate::route::Route;
use smallvec::SmallVec;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

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

/// Tables by the whole host, or by its end.
type Tables = HashMap<Box<[u8]>, Index>;

/// Tables by host: every table whose host fits is tried, the most specific first.
#[derive(Debug)]
pub(super) struct ApisixHosts {
    /// What stands for the virtual host, which APISIX does not have.
    shell: Arc<VirtualHost>,
    exact: Tables,
    /// By length of the text behind the star, longest first.
    suffixes: Vec<(usize, Tables)>,
    any: Index,
}

/// The path condition of one URI of a route.
#[derive(Debug)]
pub(super) struct Parameters {
    pub(super) literal: Box<[u8]>,
    pub(super) exact: bool,
    /// The whole URI with its parameters, when its segments name any.
    pattern: Option<(Regex, Box<[Arc<str>]>)>,
    /// Hosts, where they are a condition.
    hosts: Box<[HostPattern]>,
}

/// One URI of one route, with what decides its precedence.
struct Entry {
    key: (bool, Reverse<usize>, Reverse<i64>, Reverse<usize>),
    parameters: Parameters,
    route: Arc<Route>,
}

impl ApisixHosts {
    pub(super) fn new(
        name: &str,
        shell: VirtualHostOptions,
        router: ApisixRouter,
        routes: &[Arc<Route>],
    ) -> Result<ApisixHosts, ConfigError> {
        let mut any = Vec::new();
        let mut exact: HashMap<Box<[u8]>, Vec<Entry>> = HashMap::new();
        let mut suffixes: HashMap<Box<[u8]>, Vec<Entry>> = HashMap::new();
        for route in routes {
            let by_host = router == ApisixRouter::HostUri && !route.ids.hosts.is_empty();
            for uri in &route.ids.uris {
                if !by_host {
                    any.push(Entry::new(uri, route, router)?);
                    continue;
                }
                for host in &route.ids.hosts {
                    let entry = Entry::new(uri, route, router)?;
                    let host = host.to_ascii_lowercase();
                    // Only a star in front is one: the tree holds reversed hosts, and cuts at their first star.
                    match host.rsplit_once('*') {
                        Some((_, suffix)) => suffixes.entry(suffix.as_bytes().into()),
                        None => exact.entry(host.as_bytes().into()),
                    }
                    .or_default()
                    .push(entry);
                }
            }
        }
        let mut by_length: Vec<(usize, Tables)> = Vec::new();
        for (suffix, entries) in suffixes {
            let at = by_length.iter().position(|(len, _)| *len == suffix.len()).unwrap_or_else(|| {
                by_length.push((suffix.len(), HashMap::new()));
                by_length.len() - 1
            });
            by_length[at].1.insert(suffix, index(entries));
        }
        by_length.sort_by_key(|(len, _)| Reverse(*len));
        Ok(ApisixHosts {
            shell: Arc::new(VirtualHost::new(name, shell, Vec::new())),
            exact: exact.into_iter().map(|(host, entries)| (host, index(entries))).collect(),
            suffixes: by_length,
            any: index(any),
        })
    }

    pub(super) fn virtual_host(&self) -> &Arc<VirtualHost> {
        &self.shell
    }

    /// All routes, those of one host together.
    pub(super) fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        let wild = self.suffixes.iter().flat_map(|(_, map)| map.values());
        self.exact.values().chain(wild).chain([&self.any]).flat_map(|index| index.routes())
    }

    pub(super) fn find(
        &self,
        path: &[u8],
        stream: &crate::stream::Stream,
        captures: &mut Captures,
    ) -> Option<&Arc<Route>> {
        if !self.exact.is_empty() || !self.suffixes.is_empty() {
            let host: SmallVec<[u8; 64]> =
                stream.request.server_name().iter().map(u8::to_ascii_lowercase).collect();
            let wild = self.suffixes.iter().filter_map(|(len, map)| {
                map.get(host.len().checked_sub(*len).and_then(|at| host.get(at..))?)
            });
            for index in self.exact.get(&host[..]).into_iter().chain(wild) {
                if let Some(route) = index.find(path, stream, captures) {
                    return Some(route);
                }
            }
        }
        self.any.find(path, stream, captures)
    }
}

fn index(mut entries: Vec<Entry>) -> Index {
    entries.sort_by_key(|entry| entry.key);
    let (routes, tests) =
        entries.into_iter().map(|e| (e.route, Test::Apisix(Box::new(e.parameters)))).unzip();
    Index::new(routes, tests)
}

/// The same by APISIX's rules told one by one, every route in turn: the route, and how many had the right path
/// and host. What the tables are checked against.
pub(super) fn scan<'a>(
    routes: &'a [Arc<Route>],
    router: ApisixRouter,
    path: &[u8],
    stream: &crate::stream::Stream,
) -> (Option<&'a Arc<Route>>, usize) {
    let host = stream.request.server_name().to_ascii_lowercase();
    let mut fitting = Vec::new();
    for (order, of) in routes.iter().enumerate() {
        for uri in &of.ids.uris {
            let Ok(entry) = Entry::new(uri, of, router) else { continue };
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
                fitting.push((host_rank, entry.key, order, of));
            }
        }
    }
    fitting.sort_by_key(|(host_rank, key, order, _)| (*host_rank, *key, *order));
    let count = fitting.len();
    let fulfilled = |route: &Route| route.predicates.iter().all(|p| p.matches(stream));
    (fitting.into_iter().map(|(_, _, _, route)| route).find(|route| fulfilled(route)), count)
}

impl Entry {
    fn new(uri: &str, of: &Arc<Route>, router: ApisixRouter) -> Result<Entry, ConfigError> {
        let parameters =
            Parameters::new(uri, router == ApisixRouter::UriWithParameter).map_err(|reason| {
                ConfigError::field("uri", reason).in_resource(format!("route \"{}\"", of.ids.route))
            })?;
        let hosts = match router {
            ApisixRouter::HostUri => Box::default(),
            _ => of.ids.hosts.iter().map(|host| HostPattern::parse(host)).collect(),
        };
        // Exact paths come from a hash table and go before all prefixes; prefixes are met on the way up from
        // the deepest node, and those of one node are sorted by priority and by the length of the URI.
        let depth = if parameters.exact { 0 } else { parameters.literal.len() };
        let key = (!parameters.exact, Reverse(depth), Reverse(of.priority), Reverse(uri.len()));
        Ok(Entry { key, parameters: Parameters { hosts, ..parameters }, route: of.clone() })
    }
}

impl Parameters {
    /// From a URI as configured. `colon` makes `:name` segments parameters.
    fn new(uri: &str, colon: bool) -> Result<Parameters, String> {
        let colon = if colon { uri.find(':') } else { None };
        let Some(cut) = colon.or_else(|| uri.find('*')) else {
            return Ok(Parameters {
                literal: uri.as_bytes().into(),
                exact: true,
                pattern: None,
                hosts: Box::default(),
            });
        };
        let literal = uri.get(..cut).unwrap_or_default();
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut pattern = String::with_capacity(uri.len() + 24);
        for (i, segment) in uri.split('/').enumerate() {
            if i > 0 {
                pattern.push('/');
            }
            // A segment that is no parameter goes in as it is: APISIX takes it for a part of the regex.
            match (segment.strip_prefix('*'), segment.strip_prefix(':')) {
                (Some(name), _) => {
                    names.push(if name.is_empty() { ":ext" } else { name }.into());
                    pattern.push_str(r"((.|\n)*)");
                }
                (_, Some(name)) if colon.is_some() => {
                    names.push(name.into());
                    pattern.push_str("([^/]+)");
                }
                _ => pattern.push_str(segment),
            }
        }
        let rest_only = names.len() == 1 && uri.len() == literal.len() + 1 && literal.bytes().all(is_plain);
        let pattern = if names.is_empty() || rest_only {
            None
        } else {
            Some((Regex::search(&pattern).map_err(|e| e.to_string())?, names.into()))
        };
        Ok(Parameters { literal: literal.as_bytes().into(), exact: false, pattern, hosts: Box::default() })
    }

    /// Whether the path is meant, and the host where that is a condition.
    pub(super) fn matches(&self, path: &[u8], authority: &[u8]) -> bool {
        (if self.exact { path == &*self.literal } else { path.starts_with(&self.literal) })
            && self.rest_matches(path, authority)
    }

    /// What is left to check of a path that the tree has led to.
    pub(super) fn rest_matches(&self, path: &[u8], authority: &[u8]) -> bool {
        (self.hosts.is_empty() || self.hosts.iter().any(|host| host.matches(authority)))
            && self.pattern.as_ref().is_none_or(|(regex, _)| regex.find(path) == Some(0..path.len()))
    }

    /// Hosts, where they are a condition.
    pub(super) fn hosts(&self) -> &[HostPattern] {
        &self.hosts
    }

    /// Keeps the values of the parameters.
    pub(super) fn capture(&self, path: &[u8], captures: &mut Captures) {
        let Some((regex, names)) = &self.pattern else { return };
        let Some(groups) = regex.captures(path) else { return };
        // Names meet groups by their number, and `((.|\n)*)` has two.
        for (name, value) in names.iter().zip(groups.iter().skip(1)) {
            if let Some(value) = value {
                captures.push((name.clone(), value.to_vec()));
            }
        }
    }
}

/// A byte that means itself in a regex, or at least matches itself.
fn is_plain(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"/-_.~%=&,;:@!'".contains(&b)
}
