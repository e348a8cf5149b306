//! A cluster as configured.

use super::{
    BalanceConfig, BreakerLimits, CountedChecks, Discovery, HealthCheck, Http1Options, Http2Options,
    MeshCluster, OutlierDetection, SocketMatch, TcpKeepalive, UpstreamProtocol,
};
use crate::headers::HeaderRules;
use crate::message::Scheme;
use crate::metadata::Metadata;
use crate::peer_exchange::PeerExchange;
use crate::profile::Profile;
use crate::proxy_protocol;
use crate::retry::RetryPolicy;
use crate::tls::ClientTls;
use std::any::Any;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

/// A cluster as configured (Envoy's Cluster; APISIX's upstream).
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Its name.
    pub name: Arc<str>,
    /// Name in statistics: `alt_stat_name`, else the name (`%UPSTREAM_CLUSTER%`).
    pub observability_name: Arc<str>,
    /// The name that its endpoints come by, where that is another (`eds_cluster_config.service_name`).
    pub eds_service_name: Option<Arc<str>>,
    /// TLS towards endpoints that nothing of `socket_matches` is for; `None` is plain text.
    pub tls: Option<Arc<ClientTls>>,
    /// Transports of endpoints by their metadata; the first that matches counts.
    pub socket_matches: Arc<[SocketMatch]>,
    /// Metadata by namespace (`%CLUSTER_METADATA%`).
    pub metadata: Metadata,
    /// What of it a mesh wants to know; `None` for clusters of which nobody asks.
    pub mesh: Option<Arc<MeshCluster>>,
    /// Percent of requests that are turned away (the runtime key `upstream.maintenance_mode.NAME`), 0 by default.
    pub maintenance: u8,
    /// How requests are sent to it by a plugin that has chosen it in the place of the route's own, as the source has prepared it
    /// for [`crate::stream::Upstream::destination`]; a cluster itself knows nothing of requests.
    pub manner: Option<Arc<dyn Any + Send + Sync>>,
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
    /// Whose manners HTTP/1 towards the endpoints has: those of whoever described the cluster, whoever a connection is
    /// opened for, since all its requests share connections.
    pub profile: Profile,
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
    /// Connections to each endpoint, over all workers (`per_host_thresholds`); `u32::MAX` is no limit, the default.
    pub max_host_connections: u32,
    /// Limits of ordinary requests.
    pub breaker: BreakerLimits,
    /// Limits of requests with priority HIGH.
    pub high_breaker: BreakerLimits,
    /// Whether statistics say what each of the two still allows (`track_remaining`).
    pub tracks_remaining: [bool; 2],
    /// Retry policy that replaces those of route and virtual host.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Bytes buffered for an upstream connection, 1 MiB by default.
    pub buffer_limit: usize,
    /// How endpoints are asked whether they are well; until they were, they get no traffic.
    pub health_check: Option<Arc<HealthCheck>>,
    /// How nodes are checked as APISIX does it, and get traffic until they have failed.
    pub checks: Option<Arc<CountedChecks>>,
    /// Which endpoints are outliers, and leave for a while.
    pub outlier_detection: Option<Arc<OutlierDetection>>,
    /// How endpoints are chosen.
    pub balance: BalanceConfig,
    /// Local address to connect from.
    pub source_address: Option<std::net::SocketAddr>,
    /// TCP keep-alive of upstream connections: idle time, interval, probes.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// How both ends of its connections tell each other who they are, where handshakes agree on that.
    pub exchange: Option<Arc<PeerExchange>>,
    /// How endpoints are told whose connection they are given (Envoy's `upstream_proxy_protocol`).
    pub proxy_protocol: Option<proxy_protocol::Version>,
    /// The zone that this proxy is in, by which responses are counted; empty where that is not known.
    pub own_zone: Arc<str>,
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
            eds_service_name: None,
            tls: None,
            socket_matches: Arc::default(),
            metadata: Metadata::default(),
            mesh: None,
            maintenance: 0,
            manner: None,
            policy: Arc::default(),
        }
    }

    /// Whether both find their endpoints by being asked for them, and in the same way.
    pub(super) fn finds_the_same(&self, other: &ClusterConfig) -> bool {
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
            profile: Profile::Envoy,
            http1: Http1Options::default(),
            http2: Http2Options::default(),
            header_rules: HeaderRules::ENVOY,
            scheme: Scheme::Http,
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_stream_duration: None,
            max_requests_per_connection: None,
            max_idle: usize::MAX,
            max_host_connections: u32::MAX,
            breaker: BreakerLimits::default(),
            high_breaker: BreakerLimits::default(),
            tracks_remaining: [false; 2],
            retry: None,
            buffer_limit: 1 << 20,
            health_check: None,
            checks: None,
            outlier_detection: None,
            balance: BalanceConfig::default(),
            source_address: None,
            tcp_keepalive: None,
            exchange: None,
            proxy_protocol: None,
            own_zone: Arc::default(),
            statistics: true,
            added_via_api: false,
        }
    }
}
