//! What a cluster wants of its load balancer; [`crate::balance`] has them.

use super::{
    ClusterCell, ClusterStats, Criteria, Host, HostSet, LoadReports, Locality, Member, Outcome, SubsetConfig,
    TriedHost,
};
use crate::retry::HostPredicate;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a balancer may look at.
pub struct Choice<'a> {
    /// Number of the worker that asks.
    pub worker: usize,
    /// Hash of the request, if a policy gave one.
    pub hash: Option<u64>,
    /// A random number, fresh for this choice.
    pub random: u64,
    /// Attempts before this one.
    pub attempt: u32,
    /// Hosts tried before, in order.
    pub tried: &'a [TriedHost],
    /// Envoy's retry host predicates, in force from the second attempt on.
    pub predicates: &'a [HostPredicate],
    /// Choices made before a refused host is taken anyway (`host_selection_retry_max_attempts`).
    pub host_attempts: u32,
    /// `previous_priorities` update frequency, from the second attempt on.
    pub previous_priorities: Option<u32>,
    /// Metadata that chooses a subset.
    pub subset: &'a Criteria,
    /// Where an ORIGINAL_DST cluster is to connect to; others do not look at it.
    pub destination: Option<SocketAddr>,
}

/// Hosts that are looked at before one that was tried already is taken again.
const HOST_ATTEMPTS: u32 = 5;

impl<'a> Choice<'a> {
    /// For an attempt that no retry policy rules: hosts that were tried are avoided, as by Envoy's `previous_hosts`.
    pub fn avoiding(
        tried: &'a [TriedHost],
        worker: usize,
        hash: Option<u64>,
        subset: &'a Criteria,
    ) -> Choice<'a> {
        Choice {
            worker,
            hash,
            random: fastrand::u64(..),
            attempt: u32::try_from(tried.len()).unwrap_or(u32::MAX),
            tried,
            predicates: if tried.is_empty() { &[] } else { &[HostPredicate::PreviousHosts] },
            host_attempts: HOST_ATTEMPTS,
            previous_priorities: None,
            subset,
            destination: None,
        }
    }
}

/// Chooses endpoints of one cluster.
pub trait Balancer: Send + Sync {
    /// The endpoint for a request; `None` when none may be used (503 UH).
    fn choose(&self, choice: &Choice<'_>) -> Option<Arc<Member>>;

    /// Says that an attempt at a host chosen here has ended; once for each choice, by the same worker.
    fn report(&self, _host: &Host, _outcome: &Outcome) {}

    /// Says that the endpoints, or the health of some, have changed; runs on the control side before requests
    /// see the new set, or right after. Structures that are costly to build are built here, for the groups of
    /// endpoints that differ from before.
    fn update(&self, _hosts: &HostSet) {}

    /// Makes weights of what endpoints have reported, where they do; runs on the control side.
    fn reweigh(&self, _hosts: &HostSet, _now: Instant) {}

    /// Looks whether the proxies of the local cluster are others, where shares depend on them ([`ZoneAware`]). Asked
    /// about once a second on the control side.
    fn look_at_proxies(&self, _hosts: &HostSet) {}

    /// The endpoints there are now, if they are others than those `shown`: of a balancer that finds them by itself,
    /// and forgets those that are not needed. Asked about once a second on the control side.
    fn found(&self, _shown: &HostSet, _now: Instant) -> Option<Vec<Arc<Member>>> {
        None
    }

    /// Number of subsets, if there are any.
    fn subsets(&self) -> Option<usize> {
        None
    }
}

/// Makes the balancer of a configuration; the error is a message.
pub(crate) type BuildBalancer =
    fn(&BalanceConfig, &HostSet, &Arc<ClusterStats>) -> Result<Arc<dyn Balancer>, String>;

/// How a cluster's endpoints are chosen, as configured.
#[derive(Debug, Clone, PartialEq)]
pub struct BalanceConfig {
    /// The algorithm.
    pub policy: Policy,
    /// Share of healthy endpoints below which all of a level are used, percent; 50 by default.
    pub panic_threshold: f64,
    /// `fail_traffic_on_panic`
    pub fail_on_panic: bool,
    /// Overprovisioning factor, percent; 140 by default.
    pub overprovisioning: u32,
    /// Requests of a million that are not forwarded at all (`drop_overloads`); 0 by default.
    pub drop_overload: u32,
    /// Whether localities are chosen by their weights first.
    pub locality_weighted: bool,
    /// Whether requests stay in this proxy's locality where they can; hashes do not look at it, nor does it count
    /// beside `locality_weighted`.
    pub zone: Option<Arc<ZoneAware>>,
    /// Slow start window and aggression, minimum weight percent.
    pub slow_start: Option<(Duration, f64, f64)>,
    /// Subsets of the endpoints, each with the algorithm for itself.
    pub subsets: Option<Arc<SubsetConfig>>,
}

impl Default for BalanceConfig {
    fn default() -> BalanceConfig {
        BalanceConfig {
            policy: Policy::RoundRobin,
            panic_threshold: 50.0,
            fail_on_panic: false,
            overprovisioning: 140,
            drop_overload: 0,
            locality_weighted: false,
            zone: None,
            slow_start: None,
            subsets: None,
        }
    }
}

/// Zone-aware routing (`zone_aware_lb_config`).
#[derive(Debug, Clone)]
pub struct ZoneAware {
    /// The cluster of this proxy and those like it (`cluster_manager.local_cluster_name`).
    pub local: Arc<ClusterCell>,
    /// Where this proxy is (`node.locality`).
    pub own: Option<Locality>,
    /// Percent of requests that are routed so (`routing_enabled`), 100 by default.
    pub enabled: u32,
    /// Healthy endpoints that there must be (`min_cluster_size`), 6 by default.
    pub min_size: u64,
    /// With so many healthy endpoints in its own locality all requests stay there (`force_local_zone`).
    pub force_own: Option<u32>,
    /// Shares are those of weights, not of numbers of endpoints (`locality_basis`).
    pub by_weight: bool,
}

impl PartialEq for ZoneAware {
    fn eq(&self, other: &ZoneAware) -> bool {
        let ZoneAware { local, own, enabled, min_size, force_own, by_weight } = self;
        Arc::ptr_eq(local, &other.local)
            && (own, enabled, min_size, force_own, by_weight)
                == (&other.own, &other.enabled, &other.min_size, &other.force_own, &other.by_weight)
    }
}

/// Algorithms.
#[derive(Debug, Clone, PartialEq)]
pub enum Policy {
    /// Envoy's ROUND_ROBIN: EDF when weights differ.
    RoundRobin,
    /// Turns by weights that endpoints report themselves (Envoy's client_side_weighted_round_robin).
    ClientSideWeighted(Arc<LoadReports>),
    /// Envoy's LEAST_REQUEST.
    LeastRequest {
        /// Random picks compared, 2 by default.
        choices: u32,
        /// Looks at every host (`FULL_SCAN`).
        full_scan: bool,
        /// `active_request_bias`, 1.0 by default.
        bias: f64,
    },
    /// Envoy's RANDOM.
    Random,
    /// Envoy's RING_HASH.
    RingHash {
        /// 1024 by default.
        min_size: u64,
        /// 8 Mi by default.
        max_size: u64,
        /// MurmurHash2 instead of xxHash64.
        murmur: bool,
        /// Hashes the hostname instead of the address.
        use_hostname: bool,
    },
    /// Envoy's MAGLEV.
    Maglev {
        /// Prime, 65537 by default.
        table_size: u64,
        /// Hashes the hostname instead of the address.
        use_hostname: bool,
    },
    /// The destination that the client meant, whatever it is (Envoy's ORIGINAL_DST clusters).
    OriginalDst {
        /// How often endpoints that nobody needs are forgotten (`cleanup_interval`), 5 s by default.
        cleanup: Duration,
    },
    /// APISIX's roundrobin: interleaved weighted round robin of lua-resty-balancer.
    ApisixRoundRobin,
    /// APISIX's chash: 160 points per weight unit, CRC-32, ring over all nodes.
    ApisixChash,
    /// APISIX's least_conn, per worker.
    ApisixLeastConn,
    /// APISIX's ewma: two choices by decayed response time, shared by all workers.
    ApisixEwma,
    /// Of a name that APISIX has no balancer for: of several nodes it picks none, and a single one needs no pick.
    ApisixUnknown,
}

impl Policy {
    /// How endpoints report their load, where that is of any matter.
    #[inline]
    pub fn load_reports(&self) -> Option<&LoadReports> {
        match self {
            Policy::ClientSideWeighted(reports) => Some(reports),
            _ => None,
        }
    }

    /// Whether a request's hash chooses.
    pub fn takes_hash(&self) -> bool {
        matches!(self, Policy::RingHash { .. } | Policy::Maglev { .. } | Policy::ApisixChash)
    }
}
