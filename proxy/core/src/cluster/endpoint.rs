//! Endpoints as configuration or discovery gives them.

use crate::metadata::Metadata;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

/// Where an endpoint listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// IP address and port.
    Ip(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
    /// A name to be resolved: what a DNS cluster's configuration holds. Never in a [`Host`] of a live set.
    Name(String, u16),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Ip(addr) => write!(f, "{addr}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
            Address::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// An endpoint as configured or discovered.
#[derive(Debug, Clone, PartialEq)]
pub struct HostConfig {
    /// Where it listens.
    pub address: Address,
    /// Its name, for Host, SNI and hashing: Envoy's `hostname`, or the DNS name; may be empty.
    pub hostname: Arc<str>,
    /// Load balancing weight, 1 by default. APISIX allows 0.
    pub weight: u32,
    /// 0 is preferred. (APISIX's larger-first node priority is turned around when it is compiled.)
    pub priority: u32,
    /// Region, zone, sub-zone; `None` where nothing is said of it.
    pub locality: Option<Arc<Locality>>,
    /// Weight of its locality; `None` when localities carry none.
    pub locality_weight: Option<u32>,
    /// Metadata by namespace.
    pub metadata: Metadata,
    /// What discovery says of its health.
    pub health: EdsHealth,
    /// How its checks differ from those of the cluster's others; `None` where they don't.
    pub check: Option<Arc<EndpointCheck>>,
}

/// Endpoints of a cluster, and what is said of them together (endpoint/v3 ClusterLoadAssignment).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Assignment {
    /// All of them.
    pub hosts: Vec<HostConfig>,
    /// In place of the cluster's own; `None` leaves that.
    pub policy: Option<LoadPolicy>,
}

impl From<Vec<HostConfig>> for Assignment {
    fn from(hosts: Vec<HostConfig>) -> Assignment {
        Assignment { hosts, policy: None }
    }
}

/// What holds for all endpoints together (`policy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadPolicy {
    /// Overprovisioning factor, percent.
    pub overprovisioning: u32,
    /// Requests of a million that are not sent to any of them (`drop_overloads`).
    pub drop_overload: u32,
}

/// How one endpoint is checked (endpoint/v3 Endpoint.HealthCheckConfig).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointCheck {
    /// Port of the check in place of the endpoint's, and of one that the check has (`port_value`).
    pub port: Option<u16>,
    /// Host of the check in place of the one that the check has (`hostname`).
    pub host: Option<Arc<str>>,
    /// Where it is checked, in place of its own address and any port (`address`).
    pub address: Option<Address>,
    /// It is not checked, and counts as what discovery says of it (`disable_active_health_check`).
    pub disabled: bool,
}

impl HostConfig {
    /// An endpoint of weight 1 without a name.
    pub fn new(address: Address) -> HostConfig {
        HostConfig {
            address,
            hostname: Arc::default(),
            weight: 1,
            priority: 0,
            locality: None,
            locality_weight: None,
            metadata: Metadata::default(),
            health: EdsHealth::Unknown,
            check: None,
        }
    }

    /// The hostname of endpoints that `name` was resolved to: the configured one, else the name.
    pub fn resolved_hostname(&self, name: &str) -> Arc<str> {
        if self.hostname.is_empty() { name.into() } else { self.hostname.clone() }
    }
}

/// Where an endpoint stands (core/v3/base.proto Locality).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Sub-zone.
    pub sub_zone: Arc<str>,
}

impl Locality {
    /// Of what says nothing of it.
    pub fn unknown() -> &'static Locality {
        static UNKNOWN: LazyLock<Locality> = LazyLock::new(Locality::default);
        &UNKNOWN
    }
}

/// What discovery says of an endpoint (core/v3/health_check.proto HealthStatus).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EdsHealth {
    /// Nothing: taken for healthy.
    #[default]
    Unknown,
    /// Healthy.
    Healthy,
    /// Gets no traffic.
    Unhealthy,
    /// Gets no new traffic and is left out of the counts.
    Draining,
    /// Gets no traffic.
    Timeout,
    /// Gets traffic when there are not enough healthy ones.
    Degraded,
}
