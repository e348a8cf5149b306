//! Sets of hosts for tests.
#![allow(clippy::unwrap_used)]

use super::build_for;
use super::{BalanceConfig, Balancer, Policy};
use crate::cluster::{
    Address, Choice, ClusterStats, Criteria, EdsHealth, Host, HostConfig, HostSet, Member, Outcome,
    OutcomeKind, TriedHost,
};
use crate::metrics::Registry;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Workers that the balancers of tests are made for.
pub(super) const WORKERS: usize = 4;

/// A host at `127.0.0.1:port`.
pub(super) fn host(port: u16, weight: u32) -> HostConfig {
    let address = Address::Ip(([127, 0, 0, 1], port).into());
    HostConfig { weight, ..HostConfig::new(address) }
}

/// Hosts with these weights at ports from 1.
pub(super) fn weighted(weights: &[u32]) -> HostSet {
    HostSet::new(weights.iter().zip(1..).map(|(w, port)| host(port, *w)).collect(), None)
}

/// The same as a list.
pub(super) fn hosts(weights: &[u32]) -> Vec<Arc<Host>> {
    weighted(weights).iter().map(|m| m.host.clone()).collect()
}

/// Hosts by priority and health.
pub(super) fn host_set(levels: &[Vec<EdsHealth>]) -> HostSet {
    let mut configs = Vec::new();
    for (priority, level) in levels.iter().enumerate() {
        for health in level {
            let at = host(1 + configs.len() as u16, 1);
            configs.push(HostConfig { priority: priority as u32, health: *health, ..at });
        }
    }
    HostSet::new(configs, None)
}

/// An attempt at a host.
pub(super) fn tried(member: &Arc<Member>) -> TriedHost {
    TriedHost::new(member.clone(), Instant::now())
}

/// A response of worker 0 after `elapsed`.
pub(super) fn answered(elapsed: Duration) -> Outcome {
    let began = std::time::Instant::now();
    let span = Some((began, began + elapsed));
    Outcome { worker: 0, kind: OutcomeKind::Response, status: 200, span }
}

/// A balancer of a policy with defaults.
pub(super) fn balancer(policy: Policy, hosts: &HostSet) -> Arc<dyn Balancer> {
    configured(&BalanceConfig { policy, ..BalanceConfig::default() }, hosts)
}

/// A balancer of a configuration.
pub(super) fn configured(config: &BalanceConfig, hosts: &HostSet) -> Arc<dyn Balancer> {
    let stats = Arc::new(ClusterStats::named(&Registry::new(), "test"));
    build_for(config, hosts, &stats, WORKERS).unwrap()
}

/// A request without a hash.
pub(super) fn request() -> Choice<'static> {
    Choice {
        worker: 0,
        hash: None,
        random: fastrand::u64(..),
        attempt: 0,
        tried: &[],
        predicates: &[],
        host_attempts: 1,
        previous_priorities: None,
        subset: Criteria::NONE,
        destination: None,
    }
}

/// Every policy with its defaults.
pub(super) fn policies() -> Vec<Policy> {
    vec![
        Policy::RoundRobin,
        Policy::LeastRequest { choices: 2, full_scan: false, bias: 1.0 },
        Policy::LeastRequest { choices: 2, full_scan: true, bias: 1.0 },
        Policy::Random,
        Policy::ClientSideWeighted(Arc::default()),
        ring(1024, 8 << 20, false, false),
        Policy::Maglev { table_size: 65537, use_hostname: false },
        Policy::ApisixRoundRobin,
        Policy::ApisixChash,
        Policy::ApisixLeastConn,
        Policy::ApisixEwma,
    ]
}

/// A ring hash policy.
pub(super) fn ring(min_size: u64, max_size: u64, murmur: bool, use_hostname: bool) -> Policy {
    Policy::RingHash { min_size, max_size, murmur, use_hostname }
}
