//! Envoy's ROUND_ROBIN: turns by index, or by deadline when weights differ.

use super::edf::Edf;
use super::levels::{Algorithm, LbContext, Weighted};
use super::slow_start::{SlowStart, factor};
use super::worker::PerWorker;
use crate::cluster::{HostSet, LoadReports, Member, mixed};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

/// Turns, kept by each worker.
pub(super) struct RoundRobin {
    slow_start: Option<SlowStart>,
    /// Weights are those that endpoints report.
    reports: Option<Arc<LoadReports>>,
    /// Tells the weights apart that turns were last made of: other groups of the cluster's endpoints bring the same
    /// endpoints up to date.
    weighed: AtomicU64,
}

impl RoundRobin {
    pub(super) fn new(slow_start: Option<SlowStart>, reports: Option<Arc<LoadReports>>) -> RoundRobin {
        RoundRobin { slow_start, reports, weighed: AtomicU64::new(0) }
    }
}

pub(super) enum Group {
    /// All weights are the same.
    Equal { members: Vec<Arc<Member>>, next: PerWorker<AtomicUsize> },
    /// Weights differ, or change with age.
    Weighted { hosts: Vec<Weighted>, queues: PerWorker<Mutex<Edf>> },
}

impl Algorithm for RoundRobin {
    type Group = Group;
    const HASHED: bool = false;

    fn weight(&self, member: &Member) -> f64 {
        let reported = self.reports.as_ref().and_then(|_| member.host.reported());
        f64::from(reported.map_or(member.weight, |reported| reported.weight()))
    }

    fn reweigh(&self, hosts: &HostSet, now: Instant) -> bool {
        let Some(reports) = &self.reports else { return false };
        let weights = hosts.levels.iter().map(|level| reports.weigh(&level.members, now));
        let weights = weights.fold(1, mixed);
        self.weighed.swap(weights, Relaxed) != weights
    }

    fn prepare(&self, hosts: Vec<Weighted>, workers: usize) -> Group {
        if self.slow_start.is_none() && equal(&hosts) {
            let len = hosts.len().max(1);
            let next = PerWorker::new(workers, || AtomicUsize::new(fastrand::usize(..len)));
            let members = hosts.into_iter().map(|h| h.member).collect();
            return Group::Equal { members, next };
        }
        let queues = PerWorker::new(workers, || Mutex::new(Edf::started(hosts.iter().map(|h| h.weight))));
        Group::Weighted { hosts, queues }
    }

    #[inline]
    fn pick<'g>(&self, group: &'g Group, context: LbContext) -> Option<&'g Arc<Member>> {
        match group {
            Group::Equal { members, next } => {
                // One worker alone writes here: no locked instruction is needed.
                let next = next.get(context.worker);
                let turn = next.load(Relaxed);
                next.store(turn.wrapping_add(1), Relaxed);
                members.get(turn % members.len().max(1))
            }
            Group::Weighted { hosts, queues } => {
                let weight = |i: usize| {
                    hosts.get(i).map_or(0.0, |h| h.weight * factor(self.slow_start.as_ref(), &h.member.host))
                };
                let index = queues.get(context.worker).lock().pick(weight)?;
                hosts.get(index).map(|h| &h.member)
            }
        }
    }
}

/// Whether all weights are the same.
pub(super) fn equal(hosts: &[Weighted]) -> bool {
    hosts.windows(2).all(|pair| pair[0].weight == pair[1].weight)
}
