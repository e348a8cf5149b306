//! The URIs of APISIX's routes: what a path must be like, and which goes first.

use super::ApisixRouter;
use crate::error::ConfigError;
use crate::fast_hash::FastHasher;
use crate::regex::Regex;
use crate::route::{HostPattern, Route};
use crate::router::index::Captures;
use std::cmp::Reverse;
use std::hash::Hasher;
use std::sync::Arc;

/// The path condition of one URI of a route.
#[derive(Debug)]
pub(in crate::router) struct Parameters {
    pub(in crate::router) literal: Box<[u8]>,
    pub(in crate::router) exact: bool,
    /// The whole URI with its parameters, when its segments name any.
    pattern: Option<Box<Pattern>>,
    /// Hosts, where they are a condition.
    hosts: Box<[HostPattern]>,
    /// Length of the URI as configured.
    length: usize,
    /// Its route's place among those of equal precedence.
    order: u64,
}

/// A URI as an expression, and what its groups are called.
#[derive(Debug)]
struct Pattern {
    regex: Regex,
    names: Box<[Arc<str>]>,
}

/// What decides the precedence of a URI, ascending: exact paths come from a hash table and go before all
/// prefixes; prefixes are met on the way up from the deepest node, and those of one node are sorted by priority
/// and by the length of the URI.
pub(super) type Key = (bool, Reverse<usize>, Reverse<i64>, Reverse<usize>, u64);

/// One URI of one route.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) parameters: Arc<Parameters>,
    pub(super) route: Arc<Route>,
}

impl Entry {
    pub(super) fn new(
        uri: &str,
        of: &Arc<Route>,
        order: u64,
        router: ApisixRouter,
    ) -> Result<Entry, ConfigError> {
        let parameters = Parameters::new(uri, router)
            .map_err(|reason| ConfigError::field("uri", format!("\"{uri}\" can't be compiled: {reason}")))?;
        let hosts = match router {
            ApisixRouter::HostUri => Box::default(),
            _ => of.ids.hosts.iter().map(|host| HostPattern::parse(host)).collect(),
        };
        Ok(Entry { parameters: Arc::new(Parameters { hosts, order, ..parameters }), route: of.clone() })
    }

    pub(super) fn key(&self) -> Key {
        let Parameters { exact, literal, length, order, .. } = &*self.parameters;
        let depth = if *exact { 0 } else { literal.len() };
        (!exact, Reverse(depth), Reverse(self.route.priority), Reverse(*length), *order)
    }
}

/// What every path of a URI begins with.
pub(super) fn literal(uri: &str, router: ApisixRouter) -> Box<[u8]> {
    let cut = cut(uri, router).unwrap_or(uri.len());
    uri.as_bytes().get(..cut).unwrap_or_default().into()
}

/// Where a URI stops to be literal: at its first parameter, or at its star.
fn cut(uri: &str, router: ApisixRouter) -> Option<usize> {
    let colon = if router == ApisixRouter::UriWithParameter { uri.find(':') } else { None };
    colon.or_else(|| uri.find('*'))
}

/// A number for these bytes, all of whose bits depend on all of them. They come from the configuration or are
/// looked up only, so that nobody gains by choosing them.
#[inline]
pub(super) fn spread(bytes: &[u8]) -> usize {
    let mut hasher = FastHasher::default();
    hasher.write(bytes);
    let hash = hasher.finish();
    (hash ^ (hash >> 32)) as usize
}

impl Parameters {
    /// From a URI as configured. With [`ApisixRouter::UriWithParameter`] `:name` segments are parameters.
    pub(super) fn new(uri: &str, router: ApisixRouter) -> Result<Parameters, String> {
        let parts = |literal: &str, exact, pattern| Parameters {
            literal: literal.as_bytes().into(),
            exact,
            pattern,
            hosts: Box::default(),
            length: uri.len(),
            order: 0,
        };
        let Some(cut) = cut(uri, router) else { return Ok(parts(uri, true, None)) };
        let colon = router == ApisixRouter::UriWithParameter && uri.contains(':');
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
                (_, Some(name)) if colon => {
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
            let regex = Regex::search(&pattern).map_err(|e| e.to_string())?;
            Some(Box::new(Pattern { regex, names: names.into() }))
        };
        Ok(parts(literal, false, pattern))
    }

    /// Whether the path is meant, and the host where that is a condition.
    pub(in crate::router) fn matches(&self, path: &[u8], authority: &[u8]) -> bool {
        (if self.exact { path == &*self.literal } else { path.starts_with(&self.literal) })
            && self.rest_matches(path, authority)
    }

    /// What is left to check of a path that the tree has led to.
    pub(in crate::router) fn rest_matches(&self, path: &[u8], authority: &[u8]) -> bool {
        (self.hosts.is_empty() || self.hosts.iter().any(|host| host.matches(authority)))
            && self.pattern.as_ref().is_none_or(|pattern| pattern.regex.find(path) == Some(0..path.len()))
    }

    /// Hosts, where they are a condition.
    pub(in crate::router) fn hosts(&self) -> &[HostPattern] {
        &self.hosts
    }

    /// The expression that paths must match, if there is one.
    pub(in crate::router) fn expression(&self) -> Option<&Regex> {
        self.pattern.as_ref().map(|pattern| &pattern.regex)
    }

    /// Keeps the values of the parameters.
    pub(in crate::router) fn capture(&self, path: &[u8], captures: &mut Captures) {
        let Some(Pattern { regex, names }) = self.pattern.as_deref() else { return };
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
