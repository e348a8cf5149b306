//! Envoy's LEAST_REQUEST: the idlest of a few random hosts, or turns by weight over load.

use super::edf::Edf;
use super::levels::{Algorithm, LbContext, Weighted};
use super::round_robin::equal;
use super::slow_start::{SlowStart, factor};
use super::worker::{PerWorker, derive};
use crate::cluster::Member;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Requests under way decide; they are counted on the host, over all workers.
pub(super) struct LeastRequest {
    pub(super) choices: u32,
    pub(super) full_scan: bool,
    pub(super) bias: f64,
    pub(super) slow_start: Option<SlowStart>,
}

pub(super) enum Group {
    /// All weights are the same: hosts are compared.
    Equal(Vec<Arc<Member>>),
    /// Weights differ: turns.
    Weighted { hosts: Vec<Weighted>, queues: PerWorker<Mutex<Edf>> },
}

impl Algorithm for LeastRequest {
    type Group = Group;
    const HASHED: bool = false;

    fn prepare(&self, hosts: Vec<Weighted>, workers: usize) -> Group {
        if self.slow_start.is_none() && equal(&hosts) {
            return Group::Equal(hosts.into_iter().map(|h| h.member).collect());
        }
        let queues = PerWorker::new(workers, || Mutex::new(Edf::started(hosts.iter().map(|h| h.weight))));
        Group::Weighted { hosts, queues }
    }

    fn pick<'g>(&self, group: &'g Group, context: LbContext) -> Option<&'g Arc<Member>> {
        match group {
            Group::Equal(hosts) if self.full_scan => idlest(hosts, context.value),
            Group::Equal(hosts) => {
                let len = hosts.len().max(1) as u64;
                let draws = (0..u64::from(self.choices)).map(|i| derive(context.value, i) % len);
                // The first of the least loaded, as Envoy keeps its first draw on a tie.
                draws.filter_map(|i| hosts.get(i as usize)).min_by_key(|m| load(m))
            }
            Group::Weighted { hosts, queues } => {
                let index = queues
                    .get(context.worker)
                    .lock()
                    .pick(|i| hosts.get(i).map_or(0.0, |h| self.weight(h)))?;
                hosts.get(index).map(|h| &h.member)
            }
        }
    }
}

impl LeastRequest {
    fn weight(&self, host: &Weighted) -> f64 {
        let base = host.weight * factor(self.slow_start.as_ref(), &host.member.host);
        let load = f64::from(load(&host.member)) + 1.0;
        if self.bias == 1.0 { base / load } else { base / load.powf(self.bias) }
    }
}

/// Requests under way.
fn load(member: &Member) -> u32 {
    member.host.active_requests.load(Relaxed)
}

/// One of the hosts with the fewest requests, each as likely.
fn idlest(hosts: &[Arc<Member>], random: u64) -> Option<&Arc<Member>> {
    let mut best: Option<(&Arc<Member>, u32)> = None;
    let mut ties = 1;
    for host in hosts {
        let active = load(host);
        match best {
            Some((_, least)) if active > least => {}
            Some((_, least)) if active == least => {
                ties += 1;
                if derive(random, ties).is_multiple_of(ties) {
                    best = Some((host, active));
                }
            }
            _ => {
                best = Some((host, active));
                ties = 1;
            }
        }
    }
    best.map(|(host, _)| host)
}
