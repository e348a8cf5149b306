//! Listeners, filter chains and network filters.

mod chain_match;
mod connection_limit;
mod exchange;
mod filter;
mod l4;
mod ports;
mod rbac;

pub use chain_match::{FilterChains, MatchInput};
pub use connection_limit::ConnectionLimit;
pub use filter::{ClientBytes, Closing, ConnectionFilter, FilterStep, MAX_HELD, Resume};
pub use l4::{
    L4Change, L4Condition, L4Proxy, L4Route, L4Routes, L4Stats, L4Subject, L4Table, SILENCE, UdpLimits,
};
pub use ports::PortSet;
pub use rbac::{ConnectionRbac, RbacSettings};

use crate::access_log::AccessLog;
use crate::cluster::{Criteria, TcpKeepalive};
use crate::hcm::HttpConnectionManager;
use crate::metadata::Metadata;
use crate::metrics::Registry;
use crate::route::{ClusterChoice, HashPolicy};
use crate::tls::{ServerTls, TlsSide, TlsStats};
use bytes::Bytes;
use ipnet::IpNet;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A listener as compiled from a source.
#[derive(Debug)]
pub struct Listener {
    /// Its name; unique.
    pub name: Arc<str>,
    /// Sockets it opens; empty for a listener that does not bind.
    pub addresses: Vec<BindAddress>,
    /// Whether sockets are opened at all (`bind_to_port`).
    pub bind: bool,
    /// Filters that look at the first bytes, in order.
    pub listener_filters: Vec<ListenerFilter>,
    /// How long they may take, 15 s by default; `None` is for ever.
    pub filters_timeout: Option<Duration>,
    /// Goes on without an answer of the filters instead of closing.
    pub continue_on_timeout: bool,
    /// Filter chains, and how they are told apart.
    pub chains: FilterChains,
    /// Chain of connections that no other takes.
    pub default_chain: Option<Arc<FilterChain>>,
    /// Hands connections to the listener of their original destination.
    pub use_original_dst: bool,
    /// Access logs of connections that no chain takes, and of all when they end.
    pub access_logs: Vec<AccessLog>,
    /// What its sockets may do.
    pub socket: SocketRights,
    /// Moves accepted connections to the worker with the fewest (`exact_balance`).
    pub exact_balance: bool,
    /// What of the process's load does not concern it.
    pub spared: Spared,
    /// What logs say of it (`METADATA(LISTENER)`).
    pub metadata: Arc<Metadata>,
    /// Length of the accept queue.
    pub backlog: u32,
    /// TCP keep-alive of accepted connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Traffic direction: inbound listeners are drained by `drain_listeners?inboundonly`.
    pub inbound: bool,
    /// Statistics under `listener.ADDRESS.`.
    pub stats: Arc<ListenerStats>,
    /// Fingerprint of everything that needs new sockets or new listener filters when it changes; chains
    /// are compared one by one.
    pub shape: u64,
}

/// What of the process's load does not concern a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spared {
    /// Its connections are no part of those that the process may have (`ignore_global_conn_limit`).
    pub limit: bool,
    /// It accepts, whatever the load is (`bypass_overload_manager`).
    pub load: bool,
}

crate::stat_block! {
    /// The fixed part of a listener's statistics.
    pub struct ListenerCounts {
        counters: [
            downstream_cx_total, downstream_cx_destroy, downstream_cx_overload_reject,
            downstream_global_cx_overflow, downstream_pre_cx_timeout, downstream_cx_transport_socket_connect_timeout,
            downstream_listener_filter_error, downstream_listener_filter_remote_close, no_filter_chain_match,
        ],
        gauges: [downstream_cx_active, downstream_pre_cx_active],
        histograms: [downstream_cx_length_ms],
        zeros: [
            Counter "downstream_cx_overflow", Counter "extension_config_missing", Histogram "connections_accepted_per_socket_event", Counter "network_extension_config_missing",
        ],
    }
}

/// Statistics of a listener.
pub struct ListenerStats {
    counts: ListenerCounts,
    tls: OnceLock<TlsStats>,
    registry: Registry,
    prefix: Box<str>,
}

impl ListenerStats {
    /// Zeros under `prefix`.
    pub fn new(registry: &Registry, prefix: &str) -> ListenerStats {
        ListenerStats {
            counts: ListenerCounts::new(registry, prefix),
            tls: OnceLock::new(),
            registry: registry.clone(),
            prefix: prefix.into(),
        }
    }

    /// Those of TLS, which are shown from the first call on.
    pub fn tls(&self) -> &TlsStats {
        self.tls.get_or_init(|| TlsStats::new(&self.registry, &self.prefix, TlsSide::Server))
    }
}

impl Deref for ListenerStats {
    type Target = ListenerCounts;
    fn deref(&self) -> &ListenerCounts {
        &self.counts
    }
}

impl std::fmt::Debug for ListenerStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ListenerStats")
    }
}

/// What the sockets of a listener may do. Those that are open keep what they had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SocketRights {
    /// Takes connections to other machines' addresses that the kernel hands it (`transparent`, IP_TRANSPARENT).
    pub transparent: bool,
    /// Listens on an address that the machine does not have yet (`freebind`, IP_FREEBIND).
    pub freebind: bool,
}

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BindAddress {
    /// IP and port; port 0 is any free one. One of IPv6 is for IPv6 alone.
    Ip(SocketAddr),
    /// An IPv6 address that clients of IPv4 reach too, by addresses mapped to IPv6 (Envoy's `ipv4_compat`).
    DualStack(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
    /// IP and port of UDP: its chain ends in an [`L4Proxy`].
    Udp(SocketAddr),
}

impl BindAddress {
    /// The IP address and port of TCP; `None` for others.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            BindAddress::Ip(address) | BindAddress::DualStack(address) => Some(*address),
            BindAddress::Unix(_) | BindAddress::Udp(_) => None,
        }
    }

    /// Whether some clients would reach either, so that one is in the way of the other.
    pub fn overlaps(&self, other: &BindAddress) -> bool {
        match (self, other) {
            (BindAddress::Udp(one), BindAddress::Udp(two)) => {
                BindAddress::Ip(*one).overlaps(&BindAddress::Ip(*two))
            }
            _ => match (self.ip(), other.ip()) {
                (Some(one), Some(two)) => one == two || self.takes_in(two) || other.takes_in(one),
                _ => self == other,
            },
        }
    }

    /// Whether it stands for all addresses on its port, and this is one of them.
    fn takes_in(&self, address: SocketAddr) -> bool {
        let both = matches!(self, BindAddress::DualStack(_));
        self.ip().is_some_and(|all| {
            let family = both || all.is_ipv4() == address.is_ipv4();
            all.ip().is_unspecified() && all.port() == address.port() && family
        })
    }
}

impl std::fmt::Display for BindAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BindAddress::Ip(address) | BindAddress::DualStack(address) => address.fmt(f),
            BindAddress::Unix(path) => path.display().fmt(f),
            BindAddress::Udp(address) => write!(f, "{address}/udp"),
        }
    }
}

/// A filter that looks at the first bytes of a connection.
#[derive(Debug, Clone, PartialEq)]
pub enum ListenerFilter {
    /// Finds SNI and ALPN.
    TlsInspector,
    /// Tells HTTP versions apart on plain text.
    HttpInspector,
    /// PROXY protocol v1 and v2.
    ProxyProtocol {
        /// Lets connections without it through.
        optional: bool,
        /// Versions that are accepted: v1, v2.
        versions: (bool, bool),
        /// Accepts a v2 header of an unspecified family, as the specification and nginx do; Envoy closes.
        unspecified: bool,
    },
    /// `SO_ORIGINAL_DST`, or of a transparent socket the address that it has.
    OriginalDst,
    /// Has endpoints see the client's address (`original_src`), with this mark on the packets.
    OriginalSrc(u32),
    /// Another one, but not for connections to these destinations (`filter_disabled`).
    Except(PortSet, Box<ListenerFilter>),
}

impl ListenerFilter {
    /// The filter that looks at a connection to `destination`, if one does; `None` is a unix socket's.
    pub fn for_destination(&self, destination: Option<SocketAddr>) -> Option<&ListenerFilter> {
        match self {
            ListenerFilter::Except(ports, _) if ports.contains(destination) => None,
            ListenerFilter::Except(_, filter) => filter.for_destination(destination),
            filter => Some(filter),
        }
    }
}

/// Connections that are meant, and what is done with them.
#[derive(Debug)]
pub struct FilterChain {
    /// Its name; may be empty.
    pub name: Arc<str>,
    /// Condition.
    pub matches: FilterChainMatch,
    /// TLS to terminate; `None` is plain text.
    pub tls: Option<Arc<ServerTls>>,
    /// How long the handshake may take (nginx's `ssl_handshake_timeout`, Envoy's `transport_socket_connect_timeout`).
    pub handshake_timeout: Duration,
    /// Filters that stand before the one which ends the chain, in order.
    pub filters: Arc<[Arc<dyn ConnectionFilter>]>,
    /// What is done: the filter that ends the chain.
    pub filter: NetworkFilter,
    /// What logs say of it (`METADATA(LISTENER_FILTER_CHAIN)`).
    pub metadata: Arc<Metadata>,
    /// Fingerprint of the chain's configuration: an equal one keeps its connections.
    pub fingerprint: u64,
}

/// Condition of a filter chain (listener_components.proto FilterChainMatch). Empty lists do not ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterChainMatch {
    /// Destination port.
    pub destination_port: Option<u16>,
    /// Destination ranges; the longest that fits decides.
    pub destination: Vec<IpNet>,
    /// Server names, lower case: exact or `*.suffix`.
    pub server_names: Vec<Box<str>>,
    /// `tls` or `raw_buffer`.
    pub transport: Option<Box<str>>,
    /// ALPN protocols.
    pub application_protocols: Vec<Box<str>>,
    /// Ranges of the peer.
    pub direct_source: Vec<IpNet>,
    /// Kind of source.
    pub source_type: SourceType,
    /// Ranges of the client address.
    pub source: Vec<IpNet>,
    /// Ports of the client.
    pub source_ports: Vec<u16>,
}

/// `source_type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum SourceType {
    /// Any source.
    #[default]
    Any,
    /// The same address or loopback.
    SameIpOrLoopback,
    /// Any other.
    External,
}

/// What is done with the connections of a chain.
#[derive(Debug)]
pub enum NetworkFilter {
    /// HTTP.
    Http(Arc<HttpConnectionManager>),
    /// Passes bytes to a cluster.
    Tcp(Arc<TcpProxy>),
    /// Passes bytes to where a table of routes says.
    Routed(Arc<L4Proxy>),
    /// Writes this and closes.
    Direct(Bytes),
}

impl Listener {
    /// TLS of its chains.
    pub fn tls(&self) -> impl Iterator<Item = &Arc<ServerTls>> {
        self.chains.iter().chain(&self.default_chain).filter_map(|chain| chain.tls.as_ref())
    }

    /// Has the plugins of its connection managers and their routes, and its network filters, begin what they do by
    /// themselves: it is in force.
    pub(crate) fn enter(&self) {
        for chain in self.chains.iter().chain(&self.default_chain) {
            chain.filters.iter().for_each(|filter| filter.in_force());
            if let NetworkFilter::Http(manager) = &chain.filter {
                manager.chain.begin();
                manager.routes.enter();
            }
        }
    }

    /// Every access log that it writes.
    pub fn access_logs(&self) -> impl Iterator<Item = &AccessLog> {
        let chains = self.chains.iter().chain(&self.default_chain);
        self.access_logs.iter().chain(chains.flat_map(|chain| chain.filter.access_logs()))
    }
}

impl NetworkFilter {
    fn access_logs(&self) -> &[AccessLog] {
        match self {
            NetworkFilter::Http(manager) => &manager.access_logs,
            NetworkFilter::Tcp(proxy) => &proxy.access_logs,
            NetworkFilter::Routed(proxy) => &proxy.access_logs,
            NetworkFilter::Direct(_) => &[],
        }
    }
}

/// Envoy's tcp_proxy; APISIX's passthrough.
#[derive(Debug)]
pub struct TcpProxy {
    /// Prefix of statistics.
    pub stat_prefix: Arc<str>,
    /// Statistics under `tcp.PREFIX.`.
    pub stats: Arc<TcpStats>,
    /// Where to.
    pub cluster: ClusterChoice,
    /// Silence both ways before it closes, 1 h by default; `None` is never.
    pub idle_timeout: Option<Duration>,
    /// Whole connection.
    pub max_duration: Option<Duration>,
    /// Attempts to connect.
    pub attempts: ConnectAttempts,
    /// What is hashed.
    pub hash: Vec<HashPolicy>,
    /// Subset of the cluster.
    pub metadata_match: Criteria,
    /// Bytes of either side that may wait, 1 MiB by default (`per_connection_buffer_limit_bytes`). A read takes a quarter of
    /// it at most, but 16 KiB may always be read.
    pub buffer_limit: usize,
    /// Access logs.
    pub access_logs: Vec<AccessLog>,
}

/// How often a TCP proxy tries to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectAttempts {
    /// So often (Envoy's `max_connect_attempts`, 1 by default).
    Fixed(u32),
    /// As the retry policy of the cluster says (APISIX's `retries` and `retry_timeout`).
    OfCluster,
}

crate::stat_block! {
    /// Statistics of a TCP proxy.
    pub struct TcpStats {
        counters: [
            downstream_cx_total, downstream_cx_no_route, downstream_cx_rx_bytes_total, downstream_cx_tx_bytes_total,
            idle_timeout, max_downstream_connection_duration, upstream_flush_total,
        ],
        gauges: [downstream_cx_rx_bytes_buffered, downstream_cx_tx_bytes_buffered, upstream_flush_active],
        histograms: [],
        zeros: [
            Counter "downstream_cx_drain_close", Counter "downstream_cx_overload_close",
            Counter "downstream_flow_control_paused_reading_total", Counter "downstream_flow_control_resumed_reading_total",
            Counter "early_data_received_count_total", Counter "route_delayed_total",
        ],
    }
}

impl std::fmt::Debug for TcpStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TcpStats")
    }
}

/// A listener that does not bind and resets what comes.
#[cfg(test)]
pub(crate) fn fixture(name: &str) -> Listener {
    Listener {
        name: name.into(),
        addresses: Vec::new(),
        bind: false,
        listener_filters: Vec::new(),
        filters_timeout: None,
        continue_on_timeout: false,
        chains: FilterChains::default(),
        default_chain: None,
        use_original_dst: false,
        access_logs: Vec::new(),
        socket: SocketRights::default(),
        exact_balance: false,
        spared: Spared::default(),
        metadata: Arc::default(),
        backlog: 0,
        tcp_keepalive: None,
        inbound: false,
        stats: Arc::new(ListenerStats::new(&crate::metrics::Registry::new(), "listener.")),
        shape: 0,
    }
}
