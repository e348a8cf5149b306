//! Clusters and their endpoints.
//!
//! A route holds a [`ClusterCell`], made when its name is first mentioned; what the name stands for is
//! swapped into the cell when configuration arrives. So a request looks no name up, a route may precede
//! its cluster, and replacing a cluster touches no route.

mod balancer;
mod breaker;
mod cells;
mod discovery;
mod endpoint;
mod grpc_stats;
mod health_check;
mod host;
mod in_flight;
mod members;
mod outlier;
mod stats;
#[cfg(test)]
mod tests;
mod tried;

pub(crate) use balancer::BuildBalancer;
pub use balancer::{BalanceConfig, Balancer, Choice, Policy};
pub use breaker::{Breaker, BreakerLimits, Permit, Resource, RetryBudget};
pub use cells::{ClusterCell, Clusters};
pub use discovery::{Discovery, DnsBackoff, DnsFamily, DnsOptions, DnsServers, OriginalDestination};
pub use endpoint::{Address, EdsHealth, EndpointCheck, HostConfig, Locality};
pub use health_check::{
    GrpcProbe, HealthCheck, HealthCheckStats, HttpProbe, Intervals, Probe, ProbeHeader, TcpProbe,
};
pub use host::{Health, Host, Reasons};
pub use in_flight::{InFlight, Origin, Outcome, OutcomeKind};
pub use members::{HostSet, Member, Members, PriorityLevel};
pub use outlier::{CAUSES, Cause, FailurePercentage, OutlierDetection, OutlierStats, Outliers, SuccessRate};
pub use stats::ClusterStats;
pub use tried::TriedHost;

use crate::headers::HeaderRules;
use crate::message::Scheme;
use crate::metadata::Metadata;
use crate::retry::RetryPolicy;
use crate::tls::ClientTls;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::any::Any;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A cluster in use: configuration, endpoints, balancer, and what all workers share of its state.
pub struct Cluster {
    /// As configured.
    pub config: ClusterConfig,
    /// Endpoints as configured, for DNS to resolve the names among them; empty where there is nothing to
    /// resolve, since the members then say all of it.
    pub endpoints: Box<[HostConfig]>,
    /// Endpoints by priority, replaced as a whole when one comes, goes or changes its health.
    pub hosts: ArcSwap<HostSet>,
    /// Chooses endpoints.
    pub balancer: Arc<dyn Balancer>,
    /// Statistics under `cluster.NAME.`.
    pub stats: Arc<ClusterStats>,
    /// Circuit breaker of ordinary requests.
    pub breaker: Breaker,
    /// Circuit breaker of requests with priority HIGH.
    pub high_breaker: Breaker,
    /// Held while the endpoints are replaced: discovery and health checks come from different threads.
    visibility: Mutex<Visibility>,
    /// What is counted of its endpoints to find outliers.
    pub outliers: Option<Arc<Outliers>>,
    /// Who works for it; most clusters have nobody.
    helpers: Mutex<Option<Box<Helpers>>>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cluster {}", self.config.name)
    }
}

/// Who works for a cluster.
#[derive(Default)]
struct Helpers {
    /// They end with it.
    attached: Vec<Box<dyn Any + Send>>,
    /// They are told when its endpoints have changed.
    observers: Vec<Weak<dyn HostObserver>>,
}

/// Whoever works with a cluster's endpoints.
pub trait HostObserver: Send + Sync {
    /// The endpoints are other ones, or of other health. Called while they are being replaced: it must not replace
    /// them itself.
    fn hosts_changed(&self, cluster: &Cluster);
}

/// What a cluster's changes are allowed to show of themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visibility {
    /// Not in force, not yet or no more: gauges and hosts belong to the one that is.
    Hidden,
    /// What its name stands for.
    InForce,
}

/// Protocol towards the endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 (with prior knowledge over plain text).
    Http2,
    /// What ALPN agrees on (`auto_config`).
    Auto,
    /// What the client spoke (`use_downstream_protocol_config`).
    Downstream,
}

/// A cluster as configured (Envoy's Cluster; APISIX's upstream).
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Its name.
    pub name: Arc<str>,
    /// Name in statistics: `alt_stat_name`, else the name (`%UPSTREAM_CLUSTER%`).
    pub observability_name: Arc<str>,
    /// TLS towards the endpoints; `None` is plain text.
    pub tls: Option<Arc<ClientTls>>,
    /// Metadata by namespace (`%CLUSTER_METADATA%`).
    pub metadata: Metadata,
    /// Share of requests that are dropped, EDS `drop_overloads`: of 1,000,000.
    pub drop_overload: u32,
    /// All the rest, which clusters that say the same may share: of thousands of clusters most do.
    pub policy: Arc<ClusterPolicy>,
}

/// How connections and requests to a cluster are made, whichever cluster it is.
#[derive(Debug, Clone)]
pub struct ClusterPolicy {
    /// How endpoints are found.
    pub discovery: Discovery,
    /// Bounds connecting and the TLS handshake, 5 s by default (APISIX 60 s).
    pub connect_timeout: Duration,
    /// Version spoken.
    pub protocol: UpstreamProtocol,
    /// HTTP/1 towards the endpoints.
    pub http1: Http1Options,
    /// HTTP/2 towards the endpoints.
    pub http2: Http2Options,
    /// What is let pass of responses' fields, over every version of HTTP.
    pub header_rules: HeaderRules,
    /// `https` with TLS: APISIX's `scheme`, and the `:scheme` sent over HTTP/2.
    pub scheme: Scheme,
    /// Connections without a request are closed after so long; 1 h by default (APISIX 60 s). `None` is never.
    pub idle_timeout: Option<Duration>,
    /// Connections are closed this long after they were opened. `None` is never.
    pub max_connection_duration: Option<Duration>,
    /// Bounds an upstream stream (`max_stream_duration`, 504 UMSDR).
    pub max_stream_duration: Option<Duration>,
    /// Requests on one connection before it is closed (`max_requests_per_connection`, APISIX's
    /// `keepalive_pool.requests`). `None` is unlimited.
    pub max_requests_per_connection: Option<u32>,
    /// Idle connections kept for each endpoint by each worker (APISIX's `keepalive_pool.size`).
    pub max_idle: usize,
    /// Limits of ordinary requests.
    pub breaker: BreakerLimits,
    /// Limits of requests with priority HIGH.
    pub high_breaker: BreakerLimits,
    /// Retry policy that replaces those of route and virtual host.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Bytes buffered for an upstream connection, 1 MiB by default.
    pub buffer_limit: usize,
    /// How endpoints are asked whether they are well; until they were, they get no traffic.
    pub health_check: Option<Arc<HealthCheck>>,
    /// Which endpoints are outliers, and leave for a while.
    pub outlier_detection: Option<Arc<OutlierDetection>>,
    /// How endpoints are chosen.
    pub balance: BalanceConfig,
    /// Local address to connect from.
    pub source_address: Option<std::net::SocketAddr>,
    /// TCP keep-alive of upstream connections: idle time, interval, probes.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Whether its statistics are counted: those of APISIX's upstreams no surface shows.
    pub statistics: bool,
    /// Whether the cluster came by an API rather than the static configuration (`added_via_api`).
    pub added_via_api: bool,
}

impl ClusterConfig {
    /// A static cluster with Envoy's defaults.
    pub fn named(name: &str) -> ClusterConfig {
        let name: Arc<str> = name.into();
        ClusterConfig {
            observability_name: name.clone(),
            name,
            tls: None,
            metadata: Metadata::default(),
            drop_overload: 0,
            policy: Arc::default(),
        }
    }

    /// Whether both find their endpoints by being asked for them, and in the same way.
    fn finds_the_same(&self, other: &ClusterConfig) -> bool {
        matches!(self.discovery, Discovery::OriginalDst(_))
            && self.discovery == other.discovery
            && self.balance.policy == other.balance.policy
    }
}

impl Deref for ClusterConfig {
    type Target = ClusterPolicy;

    #[inline]
    fn deref(&self) -> &ClusterPolicy {
        &self.policy
    }
}

/// Makes the policy its own first, if it was shared.
impl DerefMut for ClusterConfig {
    fn deref_mut(&mut self) -> &mut ClusterPolicy {
        Arc::make_mut(&mut self.policy)
    }
}

/// Envoy's defaults for static endpoints.
impl Default for ClusterPolicy {
    fn default() -> ClusterPolicy {
        ClusterPolicy {
            discovery: Discovery::Static,
            connect_timeout: Duration::from_secs(5),
            protocol: UpstreamProtocol::Http1,
            http1: Http1Options::default(),
            http2: Http2Options::default(),
            header_rules: HeaderRules::ENVOY,
            scheme: Scheme::Http,
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_stream_duration: None,
            max_requests_per_connection: None,
            max_idle: usize::MAX,
            breaker: BreakerLimits::default(),
            high_breaker: BreakerLimits::default(),
            retry: None,
            buffer_limit: 1 << 20,
            health_check: None,
            outlier_detection: None,
            balance: BalanceConfig::default(),
            source_address: None,
            tcp_keepalive: None,
            statistics: true,
            added_via_api: false,
        }
    }
}

/// TCP keep-alive probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpKeepalive {
    /// Silence before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
    /// Unanswered probes before the connection is dead.
    pub probes: Option<u32>,
}

/// HTTP/1 towards an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http1Options {
    /// Passes trailers.
    pub enable_trailers: bool,
    /// How names are spelled.
    pub header_case: HeaderCase,
    /// Passes on the reason phrases of responses. APISIX always does.
    pub forward_reason: bool,
    /// Bytes of a response head, 80 KiB by default.
    pub max_head_bytes: usize,
    /// Accepts a response with Content-Length and chunked, and drops the length.
    pub allow_chunked_length: bool,
}

impl Default for Http1Options {
    fn default() -> Http1Options {
        Http1Options {
            enable_trailers: false,
            header_case: HeaderCase::Lower,
            forward_reason: false,
            max_head_bytes: 80 << 10,
            allow_chunked_length: false,
        }
    }
}

/// How header names are spelled on HTTP/1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderCase {
    /// `content-length`
    #[default]
    Lower,
    /// `Content-Length`
    ProperCase,
    /// As the other side spelled it.
    Preserve,
}

/// HTTP/2 on either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http2Options {
    /// Streams at once; 1024 upstream and downstream by default here (Envoy 1.40).
    pub max_concurrent_streams: u32,
    /// Initial window of a stream, bytes; 256 KiB by default.
    pub stream_window: u32,
    /// Initial window of a connection, bytes. `None`: a client's connection gets 4 MiB; an upstream's is never what
    /// holds a stream back, so that slow readers starve nobody.
    pub connection_window: Option<u32>,
    /// Largest header list, bytes.
    pub max_header_list: u32,
    /// Resets (both ways) of streams without a response before the connection is closed.
    pub max_resets: u32,
    /// Frames that move nothing (PING, SETTINGS, PRIORITY, empty DATA, WINDOW_UPDATE without data, unknown ones) a
    /// second before it is closed.
    pub max_control_frames: u32,
    /// Extended CONNECT (RFC 8441).
    pub allow_connect: bool,
    /// Invalid messages reset their stream instead of closing the connection
    /// (`override_stream_error_on_invalid_http_message`).
    pub stream_error_on_invalid: bool,
}

impl Http2Options {
    /// Largest window that the protocol knows (RFC 9113 section 6.9.1).
    const MAX_WINDOW: u32 = (1 << 31) - 1;

    /// Window of a client's connection, bytes.
    pub fn downstream_window(&self) -> u32 {
        self.connection_window.unwrap_or(4 << 20)
    }

    /// Window of an upstream's connection, bytes: room for the windows of all its streams.
    pub fn upstream_window(&self) -> u32 {
        let all = self.stream_window.saturating_mul(self.max_concurrent_streams).min(Self::MAX_WINDOW);
        self.connection_window.unwrap_or(all)
    }
}

impl Default for Http2Options {
    fn default() -> Http2Options {
        Http2Options {
            max_concurrent_streams: 1024,
            stream_window: 256 << 10,
            connection_window: None,
            max_header_list: 60 << 10,
            max_resets: 200,
            max_control_frames: 10_000,
            allow_connect: false,
            stream_error_on_invalid: false,
        }
    }
}

impl Cluster {
    /// A cluster with these endpoints and the balancer that `build` makes for them. `previous` is the cluster that it may replace: endpoints that stay are
    /// the same hosts (with their connections, health and counters), and the statistics go on. A name among
    /// the endpoints stands for what it was resolved to in `previous`, else for nothing until discovery calls
    /// [`Cluster::update_hosts`].
    ///
    /// Nothing that is in force is touched, so that what is built may be dropped again:
    /// [`ClusterCell::swap`] puts it in force.
    ///
    /// # Errors
    /// `build`'s.
    pub(crate) fn with_balancer(
        config: ClusterConfig,
        endpoints: Vec<HostConfig>,
        previous: Option<&Cluster>,
        registry: &crate::metrics::Registry,
        build: BuildBalancer,
    ) -> Result<Arc<Cluster>, String> {
        let stats = match previous {
            Some(old) if old.config.observability_name == config.observability_name => old.stats.clone(),
            _ if !config.statistics => Arc::new(ClusterStats::none()),
            _ => Arc::new(ClusterStats::named(registry, &config.observability_name)),
        };
        let before = previous.map(|c| c.hosts.load_full());
        let eds = |config: &ClusterConfig| matches!(config.discovery, Discovery::Eds(_));
        let finds_the_same = previous.filter(|old| old.config.finds_the_same(&config));
        let set = match &before {
            // They are not the cluster's to say, so they stay.
            Some(before) if eds(&config) && previous.is_some_and(|c| eds(&c.config)) => before.refreshed(),
            Some(before) if finds_the_same.is_some() => before.refreshed(),
            before => {
                let resolved = endpoints.iter().flat_map(|e| known_addresses(e, before.as_deref())).collect();
                HostSet::with_reasons(resolved, before.as_deref(), initial(&config))
            }
        };
        let balancer = match finds_the_same {
            Some(old) => old.balancer.clone(),
            None => build(&config.balance, &set, &stats)?,
        };
        let goes_on = previous.is_some_and(|old| Arc::ptr_eq(&old.stats, &stats));
        let known = previous.and_then(|old| old.outliers.as_ref());
        let outliers = config
            .outlier_detection
            .as_ref()
            .map(|detection| Outliers::new(detection, known, registry, &config.observability_name, goes_on));
        let resolves = matches!(config.discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_));
        Ok(Arc::new(Cluster {
            breaker: Breaker::new(config.breaker),
            high_breaker: Breaker::new(config.high_breaker),
            hosts: ArcSwap::from_pointee(set),
            visibility: Mutex::new(Visibility::Hidden),
            helpers: Mutex::default(),
            outliers,
            endpoints: if resolves { endpoints.into() } else { Box::default() },
            balancer,
            stats,
            config,
        }))
    }

    /// Keeps what works for this cluster for as long as it lives: the subscriptions of its discovery. It must not
    /// hold the cluster itself.
    pub fn attach(&self, what: impl Any + Send) {
        self.helpers.lock().get_or_insert_default().attached.push(Box::new(what));
    }

    /// Tells `observer` when endpoints have come or gone, or changed their health, for as long as it lives.
    pub fn observe(&self, observer: Weak<dyn HostObserver>) {
        self.helpers.lock().get_or_insert_default().observers.push(observer);
    }

    /// Whether every name among the endpoints stands for an address already.
    pub fn is_resolved(&self) -> bool {
        self.endpoints.iter().all(|e| !self.stands_for(e).is_empty())
    }

    /// What one of the configured endpoints stands for now: itself, or the addresses that its name has.
    pub fn stands_for(&self, endpoint: &HostConfig) -> Vec<HostConfig> {
        known_addresses(endpoint, Some(&self.hosts.load()))
    }

    /// Replaces the endpoints (DNS, EDS) and tells the balancer; endpoints that stay keep their identity.
    pub fn update_hosts(&self, hosts: Vec<HostConfig>) {
        let visibility = self.visibility.lock();
        let before = self.hosts.load_full();
        let set = HostSet::with_reasons(hosts, Some(&before), initial(&self.config));
        self.publish(set, Some(&before), *visibility);
    }

    /// Takes a change of some endpoint's health into account.
    pub fn refresh(&self) {
        let visibility = self.visibility.lock();
        let before = self.hosts.load_full();
        self.publish(before.refreshed(), Some(&before), *visibility);
    }

    /// Shows the endpoints that the balancer has found by itself, and has it forget what nobody needs.
    pub fn tend(&self, now: Instant) {
        if !matches!(self.config.discovery, Discovery::OriginalDst(_)) {
            return;
        }
        let visibility = self.visibility.lock();
        let before = self.hosts.load_full();
        if let Some(found) = self.balancer.found(&before, now) {
            self.publish(HostSet::of_members(found, &before), Some(&before), *visibility);
        }
    }

    fn publish(&self, set: HostSet, before: Option<&HostSet>, visibility: Visibility) {
        let set = Arc::new(set);
        self.balancer.update(&set);
        if visibility == Visibility::InForce {
            self.show(&set, before);
        }
        self.hosts.store(set);
        let observers: Vec<_> = match &*self.helpers.lock() {
            Some(helpers) => helpers.observers.iter().filter_map(Weak::upgrade).collect(),
            None => return,
        };
        observers.iter().for_each(|observer| observer.hosts_changed(self));
    }

    /// Takes the place of `previous`. Hosts that `previous` has found since this was built are taken over.
    fn enter(&self, previous: Option<&Cluster>) {
        let live = previous.map(|c| c.hosts.load_full());
        let ended = self.outliers.is_none()
            && previous.and_then(|old| old.outliers.as_ref()).is_some_and(|outliers| outliers.end());
        let mut visibility = self.visibility.lock();
        *visibility = Visibility::InForce;
        let set = self.hosts.load_full();
        match live.as_deref().and_then(|live| set.adopting(live)) {
            Some(adopted) => self.publish(adopted, live.as_deref(), *visibility),
            None if ended => self.publish(set.refreshed(), live.as_deref(), *visibility),
            None => self.show(&set, live.as_deref()),
        }
    }

    /// Leaves its place to `successor`, or to nobody.
    fn leave(&self, successor: Option<&Cluster>) {
        *self.visibility.lock() = Visibility::Hidden;
        let now = successor.map(|c| c.hosts.load_full()).unwrap_or_default();
        now.mark(Some(&self.hosts.load()));
        let shares_statistics = successor.is_some_and(|next| Arc::ptr_eq(&next.stats, &self.stats));
        if !shares_statistics {
            // Requests may hold it for long.
            self.count_members(&HostSet::default());
        }
    }

    /// Tells hosts and statistics of the endpoints that are in force now.
    fn show(&self, set: &HostSet, before: Option<&HostSet>) {
        if let Some(outliers) = &self.outliers {
            outliers.follow(set);
        }
        if set.mark(before) {
            self.stats.membership_change().inc();
        }
        self.count_members(set);
    }

    fn count_members(&self, set: &HostSet) {
        self.stats.membership_total().set(set.total() as u64);
        self.stats.membership_healthy().set(set.healthy() as u64);
        self.stats.membership_degraded().set(set.degraded() as u64);
        self.stats.membership_excluded().set(set.excluded() as u64);
    }
}

/// What is held against endpoints that are new.
fn initial(config: &ClusterConfig) -> Reasons {
    if config.health_check.is_some() { Reasons::ACTIVE_CHECK } else { Reasons::empty() }
}

/// What an endpoint stands for before discovery has looked: itself, or the addresses its name had.
fn known_addresses(endpoint: &HostConfig, before: Option<&HostSet>) -> Vec<HostConfig> {
    let Address::Name(name, port) = &endpoint.address else { return vec![endpoint.clone()] };
    let hostname = endpoint.resolved_hostname(name);
    let same = |member: &&Arc<Member>| {
        let port_is = matches!(&member.host.address, Address::Ip(addr) if addr.port() == *port);
        port_is && member.host.hostname == hostname && member.priority == endpoint.priority
    };
    let members = before.iter().flat_map(|set| set.iter()).filter(same);
    let resolved = |m: &Arc<Member>| HostConfig {
        address: m.host.address.clone(),
        hostname: hostname.clone(),
        ..endpoint.clone()
    };
    members.map(resolved).collect()
}
