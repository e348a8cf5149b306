//! Routes of TCP and UDP: which connections go where (APISIX's stream_routes).
//!
//! A listener of these has one chain, whatever the routes are: they stand in a table that a connection looks at once, when it
//! begins. A change of the table touches no connection that is there.

#[cfg(test)]
mod tests;

use super::{ConnectionFilter, TcpProxy, TcpStats};
use crate::access_log::AccessLog;
use crate::connection::Connection;
use crate::route::Route;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// One route of TCP and UDP.
#[derive(Debug)]
pub struct L4Route {
    /// What it is called, for variables and metrics.
    pub route: Arc<Route>,
    /// Which connections it takes.
    pub condition: L4Condition,
    /// Its plugins, in the order in which they run.
    pub filters: Arc<[Arc<dyn ConnectionFilter>]>,
    /// What is done with its connections. A plugin may choose another cluster than its.
    pub proxy: Arc<TcpProxy>,
}

/// Which connections a route takes. What is `None` asks nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct L4Condition {
    /// The name that the client asks for by TLS, in lower case; behind a `*` at its beginning, how that ends.
    pub server_name: Option<Box<str>>,
    /// The client.
    pub remote: Option<IpNet>,
    /// The address of ours that the client has come to.
    pub local: Option<IpNet>,
    /// The port of ours.
    pub port: Option<u16>,
}

/// What conditions look at.
#[derive(Debug, Clone, Copy)]
pub struct L4Subject<'a> {
    /// The name that the client has asked for by TLS, in lower case.
    pub server_name: Option<&'a str>,
    /// The client.
    pub remote: SocketAddr,
    /// The address of ours that it has come to.
    pub local: SocketAddr,
}

impl L4Condition {
    fn takes(&self, subject: &L4Subject<'_>) -> bool {
        self.remote.is_none_or(|network| network.contains(&subject.remote.ip()))
            && self.local.is_none_or(|network| network.contains(&subject.local.ip()))
            && self.port.is_none_or(|port| port == subject.local.port())
    }
}

/// All routes, by what their conditions ask.
///
/// Those for the client's server name go first: the exact one, then wildcards, the longest first; a wildcard stands for
/// any number of labels (apisix/stream/router/ip_port.lua). Of one name, and of those without, the first that takes the
/// connection is the one.
#[derive(Debug, Default)]
pub struct L4Routes {
    exact: HashMap<Box<str>, Vec<Arc<L4Route>>>,
    /// By what follows the `*`.
    wildcards: HashMap<Box<str>, Vec<Arc<L4Route>>>,
    /// How long the endings of wildcards are.
    lengths: BTreeSet<usize>,
    unnamed: Vec<Arc<L4Route>>,
}

impl L4Routes {
    /// Routes in their order.
    pub fn new(routes: impl IntoIterator<Item = Arc<L4Route>>) -> L4Routes {
        let mut all = L4Routes::default();
        for route in routes {
            let list = match route.condition.server_name.as_deref() {
                None => &mut all.unnamed,
                Some(name) => match name.strip_prefix('*') {
                    None => all.exact.entry(name.into()).or_default(),
                    Some(ending) => {
                        all.lengths.insert(ending.len());
                        all.wildcards.entry(ending.into()).or_default()
                    }
                },
            };
            list.push(route);
        }
        all
    }

    fn all(&self) -> impl Iterator<Item = &Arc<L4Route>> {
        self.exact.values().chain(self.wildcards.values()).flatten().chain(&self.unnamed)
    }

    /// The route of a connection.
    pub fn find(&self, subject: &L4Subject<'_>) -> Option<&Arc<L4Route>> {
        let named = subject.server_name.and_then(|name| self.named(name, subject));
        named.or_else(|| self.unnamed.iter().find(|route| route.condition.takes(subject)))
    }

    fn named(&self, name: &str, subject: &L4Subject<'_>) -> Option<&Arc<L4Route>> {
        let takes = |route: &&Arc<L4Route>| route.condition.takes(subject);
        if let Some(found) = self.exact.get(name).and_then(|routes| routes.iter().find(takes)) {
            return Some(found);
        }
        let endings = self.lengths.iter().rev().filter_map(|length| {
            let ending = name.get(name.len().checked_sub(*length)?..)?;
            self.wildcards.get(ending)
        });
        endings.flatten().find(takes)
    }
}

/// The place of the routes in force, which listeners look at.
#[derive(Debug, Default)]
pub struct L4Table(ArcSwap<L4Routes>);

impl L4Table {
    /// The route of a connection, which it keeps.
    pub fn find(&self, subject: &L4Subject<'_>) -> Option<Arc<L4Route>> {
        self.0.load().find(subject).cloned()
    }

    /// Prepares other routes; nobody sees them before [`L4Change::put_in_force`].
    pub fn change(self: &Arc<L4Table>, routes: L4Routes) -> L4Change {
        L4Change { table: self.clone(), routes: Arc::new(routes) }
    }
}

/// Other routes for a table.
#[derive(Debug)]
pub struct L4Change {
    table: Arc<L4Table>,
    routes: Arc<L4Routes>,
}

impl L4Change {
    /// Has connections that begin from now on find the routes, and their plugins begin what they do by themselves. Answers
    /// those of before, which one may still look at.
    pub fn put_in_force(self) -> Arc<L4Routes> {
        self.routes.all().flat_map(|route| &*route.filters).for_each(|filter| filter.in_force());
        self.table.0.swap(self.routes)
    }
}

/// The end of a listener's chain that passes bytes on as a table of routes says.
#[derive(Debug)]
pub struct L4Proxy {
    /// Where it listens, as it was configured: `0.0.0.0:9100`.
    pub address: Arc<str>,
    /// The routes.
    pub routes: Arc<L4Table>,
    /// The server name of clients that ask for none by TLS (APISIX's `fallback_sni`), in lower case.
    pub fallback_name: Option<Arc<str>>,
    /// Peers whose word on the client's address by the PROXY protocol is taken (nginx's `set_real_ip_from`).
    pub trusted: Vec<IpNet>,
    /// Statistics under `stream.ADDRESS.`.
    pub stats: Arc<TcpStats>,
    /// What goes to and comes from endpoints, under the same prefix.
    pub upstream: Arc<L4Stats>,
    /// Tells endpoints the addresses of a connection by the PROXY protocol, version 1.
    pub proxy_protocol: bool,
    /// Access logs of all its connections.
    pub access_logs: Vec<AccessLog>,
    /// How much UDP may hold.
    pub udp: UdpLimits,
}

impl L4Proxy {
    /// The client of a connection, which conditions, variables and plugins see.
    pub fn client(&self, connection: &Connection) -> SocketAddr {
        let peer = connection.direct_remote;
        let believed = self.trusted.iter().any(|network| network.contains(&peer.ip()));
        if believed { connection.remote } else { peer }
    }
}

/// Bounds of what clients can have a listener of UDP hold, for each of its workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpLimits {
    /// Clients at once; beyond that those that were silent for longest leave.
    pub sessions: usize,
    /// Bytes of datagrams that wait for an endpoint, of all clients together.
    pub waiting: usize,
}

impl UdpLimits {
    /// Clients of one worker at once, at most.
    pub const SESSIONS: usize = 8 << 10;
}

impl Default for UdpLimits {
    fn default() -> UdpLimits {
        UdpLimits { sessions: UdpLimits::SESSIONS, waiting: 4 << 20 }
    }
}

/// How long both sides of a connection may be silent where its upstream says nothing (nginx's `proxy_timeout`).
pub const SILENCE: Duration = Duration::from_secs(600);

crate::stat_block! {
    /// Sessions under way, bytes between this proxy and their endpoints, datagrams that found no room, and sessions of UDP
    /// that had to leave for others.
    pub struct L4Stats {
        counters: [upstream_rx_bytes_total, upstream_tx_bytes_total, datagrams_dropped, sessions_displaced],
        gauges: [sessions_active], histograms: [],
    }
}

impl std::fmt::Debug for L4Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("L4Stats")
    }
}
