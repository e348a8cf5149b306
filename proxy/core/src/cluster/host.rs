//! Endpoints and the sets they form.

use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

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
    /// Region, zone, sub-zone.
    pub locality: Locality,
    /// Weight of its locality; `None` when localities carry none.
    pub locality_weight: Option<u32>,
    /// Metadata by namespace.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// What discovery says of its health.
    pub health: EdsHealth,
}

impl HostConfig {
    /// An endpoint of weight 1 without a name.
    pub fn new(address: Address) -> HostConfig {
        HostConfig {
            address,
            hostname: "".into(),
            weight: 1,
            priority: 0,
            locality: Locality::default(),
            locality_weight: None,
            metadata: serde_json::Map::new(),
            health: EdsHealth::Unknown,
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

/// How an endpoint counts for the balancers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Takes traffic.
    Healthy,
    /// Takes traffic when the healthy ones are too few.
    Degraded,
    /// Takes none.
    Unhealthy,
    /// Takes none and does not count among the endpoints.
    Excluded,
}

/// Reasons against an endpoint, set by health checkers, outlier detection and discovery; any one is enough.
pub mod reason {
    /// Discovery says unhealthy or timeout.
    pub const DISCOVERY: u32 = 1;
    /// The active checker failed it.
    pub const ACTIVE_CHECK: u32 = 2;
    /// Outlier detection or APISIX's passive check ejected it.
    pub const EJECTED: u32 = 4;
    /// Discovery says draining: excluded.
    pub const DRAINING: u32 = 8;
    /// Discovery or a check says degraded.
    pub const DEGRADED: u32 = 16;
    /// Not checked yet: excluded.
    pub const PENDING_CHECK: u32 = 32;
}

/// An endpoint in use. It keeps its identity while its address stays in the cluster.
#[derive(Debug)]
pub struct Host {
    /// Number in this process, never used again: the key of connection pools.
    pub id: u64,
    /// As configured when it appeared; weight and metadata live below.
    pub address: Address,
    /// Name for Host, SNI and hashing.
    pub hostname: Arc<str>,
    /// `ip:port` or the path, ready for logs and hash keys.
    pub label: Arc<str>,
    /// Priority level.
    pub priority: u32,
    /// Region, zone, sub-zone.
    pub locality: Locality,
    /// Metadata by namespace.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// Weight now.
    pub weight: AtomicU32,
    /// Bits of [`reason`].
    pub reasons: AtomicU32,
    /// Requests under way, over all workers.
    pub active_requests: AtomicU32,
    /// Connections open, over all workers.
    pub active_connections: AtomicU32,
    /// Requests ever sent.
    pub total_requests: AtomicU64,
    /// Requests that failed.
    pub failed_requests: AtomicU64,
    /// Connections ever opened.
    pub total_connections: AtomicU64,
    /// Connections that failed.
    pub failed_connections: AtomicU64,
    /// APISIX's ewma: score in milliseconds and the moment of its last update.
    pub ewma: Mutex<(f64, Option<Instant>)>,
    /// When it joined, for slow start.
    pub joined: Instant,
}

static NEXT_HOST: AtomicU64 = AtomicU64::new(1);

impl Host {
    fn new(config: HostConfig) -> Host {
        Host {
            id: NEXT_HOST.fetch_add(1, Relaxed),
            label: config.address.to_string().into(),
            address: config.address,
            hostname: config.hostname,
            priority: config.priority,
            locality: config.locality,
            metadata: config.metadata,
            weight: AtomicU32::new(config.weight),
            reasons: AtomicU32::new(reasons_of(config.health)),
            active_requests: AtomicU32::new(0),
            active_connections: AtomicU32::new(0),
            total_requests: AtomicU64::new(0),
            failed_requests: AtomicU64::new(0),
            total_connections: AtomicU64::new(0),
            failed_connections: AtomicU64::new(0),
            ewma: Mutex::new((0.0, None)),
            joined: Instant::now(),
        }
    }

    /// How the endpoint counts now.
    pub fn health(&self) -> Health {
        let reasons = self.reasons.load(Relaxed);
        if reasons & (reason::DRAINING | reason::PENDING_CHECK) != 0 {
            Health::Excluded
        } else if reasons & (reason::DISCOVERY | reason::ACTIVE_CHECK | reason::EJECTED) != 0 {
            Health::Unhealthy
        } else if reasons & reason::DEGRADED != 0 {
            Health::Degraded
        } else {
            Health::Healthy
        }
    }

    /// Sets or clears one [`reason`]; tells whether that changed anything. Call [`super::Cluster::refresh`]
    /// afterwards.
    pub fn set_reason(&self, bit: u32, on: bool) -> bool {
        let before =
            if on { self.reasons.fetch_or(bit, Relaxed) } else { self.reasons.fetch_and(!bit, Relaxed) };
        (before & bit != 0) != on
    }

    /// Weight now.
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    /// Whether `envoy.lb` metadata marks it as a canary.
    pub fn is_canary(&self) -> bool {
        self.metadata.get("envoy.lb").and_then(|m| m.get("canary")).and_then(|v| v.as_bool()).unwrap_or(false)
    }
}

fn reasons_of(health: EdsHealth) -> u32 {
    match health {
        EdsHealth::Unknown | EdsHealth::Healthy => 0,
        EdsHealth::Unhealthy | EdsHealth::Timeout => reason::DISCOVERY,
        EdsHealth::Draining => reason::DRAINING,
        EdsHealth::Degraded => reason::DEGRADED,
    }
}

/// The endpoints of a cluster at one moment.
#[derive(Debug, Default)]
pub struct HostSet {
    /// Priority levels from 0; a level without endpoints is empty.
    pub levels: Vec<PriorityLevel>,
    /// Grows with every change: what balancers compare to see whether their structures are current.
    pub version: u64,
}

/// The endpoints of one priority, sorted out by health.
#[derive(Debug, Default)]
pub struct PriorityLevel {
    /// All, in the configuration's order.
    pub all: Vec<Arc<Host>>,
    /// Those that take traffic.
    pub healthy: Vec<Arc<Host>>,
    /// Those that help out.
    pub degraded: Vec<Arc<Host>>,
    /// Number of those that do not count.
    pub excluded: usize,
    /// Weights of localities, where the configuration gives them.
    pub locality_weights: BTreeMap<Locality, u32>,
}

impl PriorityLevel {
    fn sort_out(&mut self) {
        let of =
            |health: Health| self.all.iter().filter(|h| h.health() == health).cloned().collect::<Vec<_>>();
        let (healthy, degraded, excluded) =
            (of(Health::Healthy), of(Health::Degraded), of(Health::Excluded).len());
        self.healthy = healthy;
        self.degraded = degraded;
        self.excluded = excluded;
    }
}

impl HostSet {
    /// Sorts endpoints into levels; those at an address and priority that `before` had keep their identity.
    pub fn new(configs: Vec<HostConfig>, before: Option<&HostSet>) -> HostSet {
        let mut known: HashMap<(&Address, u32, &str), &Arc<Host>> = HashMap::new();
        for host in before.iter().flat_map(|s| s.levels.iter()).flat_map(|l| &l.all) {
            known.insert((&host.address, host.priority, &host.hostname), host);
        }
        let mut levels: Vec<PriorityLevel> = Vec::new();
        for config in configs {
            let at = config.priority as usize;
            if levels.len() <= at {
                levels.resize_with(at + 1, PriorityLevel::default);
            }
            let level = &mut levels[at];
            if let Some(weight) = config.locality_weight {
                level.locality_weights.insert(config.locality.clone(), weight);
            }
            let kept = known
                .get(&(&config.address, config.priority, &*config.hostname))
                .filter(|h| h.metadata == config.metadata && h.locality == config.locality);
            level.all.push(match kept {
                Some(host) => {
                    host.weight.store(config.weight, Relaxed);
                    let discovery = reason::DISCOVERY | reason::DRAINING | reason::DEGRADED;
                    let others = host.reasons.load(Relaxed) & !discovery;
                    host.reasons.store(others | reasons_of(config.health), Relaxed);
                    Arc::clone(host)
                }
                None => Arc::new(Host::new(config)),
            });
        }
        levels.iter_mut().for_each(PriorityLevel::sort_out);
        HostSet { levels, version: before.map_or(1, |s| s.version + 1) }
    }

    /// The same endpoints sorted out anew.
    pub fn refreshed(&self) -> HostSet {
        let levels = self.levels.iter().map(|level| {
            let mut level = PriorityLevel {
                all: level.all.clone(),
                locality_weights: level.locality_weights.clone(),
                ..PriorityLevel::default()
            };
            level.sort_out();
            level
        });
        HostSet { levels: levels.collect(), version: self.version + 1 }
    }

    /// All endpoints, level by level.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.levels.iter().flat_map(|l| &l.all)
    }

    /// Number of endpoints.
    pub fn total(&self) -> usize {
        self.levels.iter().map(|l| l.all.len()).sum()
    }

    /// Number of healthy endpoints.
    pub fn healthy(&self) -> usize {
        self.levels.iter().map(|l| l.healthy.len()).sum()
    }

    /// Number of degraded endpoints.
    pub fn degraded(&self) -> usize {
        self.levels.iter().map(|l| l.degraded.len()).sum()
    }

    /// Number of endpoints that do not count.
    pub fn excluded(&self) -> usize {
        self.levels.iter().map(|l| l.excluded).sum()
    }
}
