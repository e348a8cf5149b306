//! Load balancers.
//!
//! One trait carries the choice, the exclusion of hosts that were tried, and feedback. State that belongs to
//! the whole process (rings, ewma scores, active requests) lives in the balancer or the host; a position that
//! belongs to one worker (round robin, least_conn) is kept per worker inside the balancer.

mod apisix;
mod edf;
mod least_request;
mod levels;
mod maglev;
mod priority;
mod random;
mod ring_hash;
mod round_robin;
mod slow_start;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod worker;

use crate::cluster::{ClusterStats, Host, HostSet, Member, Outcome};
use crate::retry::HostPredicate;
use crate::stream::Tried;
use slow_start::SlowStart;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

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
    pub tried: &'a [Tried],
    /// Envoy's retry host predicates, in force from the second attempt on.
    pub predicates: &'a [HostPredicate],
    /// Choices made before a refused host is taken anyway (`host_selection_retry_max_attempts`).
    pub host_attempts: u32,
    /// `previous_priorities` update frequency, from the second attempt on.
    pub previous_priorities: Option<u32>,
    /// Metadata that chooses a subset.
    pub subset: &'a BTreeMap<String, serde_json::Value>,
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
}

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
    /// Whether localities are chosen by their weights first.
    pub locality_weighted: bool,
    /// Slow start window and aggression, minimum weight percent.
    pub slow_start: Option<(Duration, f64, f64)>,
}

impl Default for BalanceConfig {
    fn default() -> BalanceConfig {
        BalanceConfig {
            policy: Policy::RoundRobin,
            panic_threshold: 50.0,
            fail_on_panic: false,
            overprovisioning: 140,
            locality_weighted: false,
            slow_start: None,
        }
    }
}

/// Algorithms.
#[derive(Debug, Clone, PartialEq)]
pub enum Policy {
    /// Envoy's ROUND_ROBIN: EDF when weights differ.
    RoundRobin,
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
    /// APISIX's roundrobin: interleaved weighted round robin of lua-resty-balancer.
    ApisixRoundRobin,
    /// APISIX's chash: 160 points per weight unit, CRC-32, ring over all nodes.
    ApisixChash,
    /// APISIX's least_conn, per worker.
    ApisixLeastConn,
    /// APISIX's ewma: two choices by decayed response time, shared by all workers.
    ApisixEwma,
}

/// The balancer of a configuration.
///
/// # Errors
/// A message when the configuration can't be used.
pub fn build(
    config: &BalanceConfig,
    hosts: &HostSet,
    stats: &Arc<ClusterStats>,
) -> Result<Arc<dyn Balancer>, String> {
    build_for(config, hosts, stats, crate::metrics::workers())
}

fn build_for(
    config: &BalanceConfig,
    hosts: &HostSet,
    stats: &Arc<ClusterStats>,
    workers: usize,
) -> Result<Arc<dyn Balancer>, String> {
    let slow_start = config.slow_start.map(SlowStart::new);
    let frame = Frame { config, hosts, stats, workers };
    Ok(match config.policy {
        Policy::RoundRobin => frame.leveled(round_robin::RoundRobin { slow_start }),
        Policy::LeastRequest { choices, full_scan, bias } => {
            if choices < 2 {
                return Err(format!("least request: choice_count must be at least 2, not {choices}"));
            }
            if !bias.is_finite() || bias < 0.0 {
                return Err(format!("least request: active_request_bias must not be {bias}"));
            }
            frame.leveled(least_request::LeastRequest { choices, full_scan, bias, slow_start })
        }
        Policy::Random => frame.leveled(random::Random),
        Policy::RingHash { min_size, max_size, murmur, use_hostname } => {
            if min_size > max_size || min_size == 0 || max_size > MAX_RING {
                return Err(format!(
                    "ring hash: sizes {min_size} to {max_size} must ascend from 1 to {MAX_RING}"
                ));
            }
            frame.leveled(ring_hash::RingHash { min_size, max_size, murmur, use_hostname })
        }
        Policy::Maglev { table_size, use_hostname } => {
            if table_size > MAX_MAGLEV || !is_prime(table_size) {
                return Err(format!("maglev: table size {table_size} must be a prime up to {MAX_MAGLEV}"));
            }
            frame.leveled(maglev::Maglev { table_size, use_hostname })
        }
        Policy::ApisixRoundRobin => frame.grouped(apisix::RoundRobin),
        Policy::ApisixChash => frame.grouped(apisix::Chash),
        Policy::ApisixLeastConn => frame.grouped(apisix::LeastConn::default()),
        Policy::ApisixEwma => frame.grouped(apisix::Ewma),
    })
}

/// Envoy's bound of ring sizes.
const MAX_RING: u64 = 8 << 20;

/// Envoy's bound of table sizes.
const MAX_MAGLEV: u64 = 5_000_011;

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

/// What every balancer is built from.
struct Frame<'a> {
    config: &'a BalanceConfig,
    hosts: &'a HostSet,
    stats: &'a Arc<ClusterStats>,
    workers: usize,
}

impl Frame<'_> {
    fn leveled(&self, algorithm: impl levels::Algorithm) -> Arc<dyn Balancer> {
        let (config, stats) = (self.config.clone(), self.stats.clone());
        Arc::new(levels::Leveled::new(algorithm, config, self.hosts, self.workers, stats))
    }

    fn grouped(&self, picker: impl apisix::Picker) -> Arc<dyn Balancer> {
        Arc::new(apisix::Grouped::new(picker, self.hosts, self.workers))
    }
}
