//! APISIX's least_conn: the least of (1 + requests under way) / weight, each worker by its own count.

use super::super::worker::{PerWorker, derive};
use super::Picker;
use crate::cluster::{Choice, Host, Member, Outcome};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};

/// Counts by host, which outlive changes of the nodes.
#[derive(Default)]
pub(in super::super) struct LeastConn {
    counts: ArcSwap<HashMap<u64, Weak<Count>>>,
}

/// Requests under way by worker.
type Count = PerWorker<AtomicU32>;

pub(in super::super) struct Group {
    nodes: Vec<(Arc<Member>, Arc<Count>)>,
}

impl Picker for LeastConn {
    type Group = Group;
    const SKIPS_SINGLE: bool = false;

    fn prepare(&self, nodes: Vec<Arc<Member>>, workers: usize) -> Group {
        let mut counts = HashMap::clone(&self.counts.load());
        let mut with_count = |node: Arc<Member>| {
            let count = counts.get(&node.host.id).and_then(Weak::upgrade);
            let count = count.unwrap_or_else(|| Arc::new(PerWorker::new(workers, AtomicU32::default)));
            counts.insert(node.host.id, Arc::downgrade(&count));
            (node, count)
        };
        let nodes = nodes.into_iter().map(&mut with_count).collect();
        counts.retain(|_, c| c.strong_count() > 0);
        self.counts.store(Arc::new(counts));
        Group { nodes }
    }

    fn nodes(group: &Group) -> impl Iterator<Item = &Arc<Member>> {
        group.nodes.iter().map(|(node, _)| node)
    }

    fn pick<'g>(
        &self,
        group: &'g Group,
        choice: &Choice<'_>,
        allowed: impl Fn(&Member) -> bool,
    ) -> Option<&'g Arc<Member>> {
        let load = |count: &Count| u64::from(count.get(choice.worker).load(Relaxed)) + 1;
        // Equals take turns by chance: the scan starts anywhere.
        let len = group.nodes.len();
        let start = (derive(choice.random, 0) % len.max(1) as u64) as usize;
        let (before, after) = group.nodes.split_at_checked(start)?;
        let nodes = after.iter().chain(before).filter(|(node, _)| allowed(node));
        let (node, count) = nodes.min_by(|(a, x), (b, y)| {
            // load / weight, multiplied out; a node without weight comes last.
            let (a, b) = (u64::from(a.weight), u64::from(b.weight));
            (a == 0).cmp(&(b == 0)).then((load(x) * b.max(1)).cmp(&(load(y) * a.max(1))))
        })?;
        count.get(choice.worker).fetch_add(1, Relaxed);
        Some(node)
    }

    fn report(&self, host: &Host, outcome: &Outcome) {
        if let Some(count) = self.counts.load().get(&host.id).and_then(Weak::upgrade) {
            let _ = count.get(outcome.worker).fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
        }
    }
}
