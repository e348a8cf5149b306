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
mod original_dst;
mod priority;
mod random;
mod ring_hash;
mod round_robin;
mod slow_start;
mod subset;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod worker;
mod zones;

use crate::cluster::{
    BalanceConfig, Balancer, Cluster, ClusterConfig, ClusterStats, HostConfig, HostSet, Policy,
};
use slow_start::SlowStart;
use std::sync::Arc;

impl Cluster {
    /// [`Cluster::with_balancer`], with the balancer that `config` asks for.
    ///
    /// # Errors
    /// A message when it can't be built as configured.
    pub fn new(
        config: ClusterConfig,
        endpoints: Vec<HostConfig>,
        previous: Option<&Cluster>,
        registry: &crate::metrics::Registry,
    ) -> Result<Arc<Cluster>, String> {
        Cluster::with_balancer(config, endpoints, previous, registry, build)
    }
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
    if let Some(subsets) = &config.subsets {
        return Ok(Arc::new(subset::Subsets::new(subsets, config, hosts, workers, stats)?));
    }
    let slow_start = config.slow_start.map(SlowStart::new);
    let frame = Frame { config, hosts, stats, workers };
    Ok(match config.policy {
        Policy::RoundRobin => frame.leveled(round_robin::RoundRobin::new(slow_start, None)),
        Policy::ClientSideWeighted(ref reports) => {
            frame.leveled(round_robin::RoundRobin::new(slow_start, Some(reports.clone())))
        }
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
            let stats = stats.clone();
            frame.leveled(ring_hash::RingHash { min_size, max_size, murmur, use_hostname, stats })
        }
        Policy::Maglev { table_size, use_hostname } => {
            if table_size > MAX_MAGLEV || !is_prime(table_size) {
                return Err(format!("maglev: table size {table_size} must be a prime up to {MAX_MAGLEV}"));
            }
            frame.leveled(maglev::Maglev { table_size, use_hostname, stats: stats.clone() })
        }
        Policy::OriginalDst { cleanup } => Arc::new(original_dst::OriginalDst::new(cleanup)),
        Policy::ApisixRoundRobin => frame.grouped(apisix::RoundRobin),
        Policy::ApisixChash => frame.grouped(apisix::Chash),
        Policy::ApisixLeastConn => frame.grouped(apisix::LeastConn::default()),
        Policy::ApisixEwma => frame.grouped(apisix::Ewma),
        Policy::ApisixUnknown => frame.grouped(apisix::Unknown),
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
