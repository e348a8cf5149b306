//! APISIX's roundrobin: interleaved weighted turns, as lua-resty-balancer gives them.

use super::super::Choice;
use super::super::worker::PerWorker;
use super::{Picker, gcd};
use crate::cluster::Host;
use parking_lot::Mutex;
use std::sync::Arc;

/// Turns, kept by each worker.
pub(in super::super) struct RoundRobin;

pub(in super::super) struct Group {
    nodes: Vec<(Arc<Host>, i64)>,
    step: i64,
    top: i64,
    /// Picks after which every node with a weight has come up.
    period: i64,
    turns: PerWorker<Mutex<Turn>>,
}

/// Where a worker stands: the node to look at next and the weight a node must have now.
struct Turn {
    next: usize,
    bar: i64,
}

impl Picker for RoundRobin {
    type Group = Group;

    fn prepare(&self, nodes: Vec<Arc<Host>>, workers: usize) -> Group {
        let step = i64::from(nodes.iter().map(|h| h.weight()).fold(0, gcd)).max(1);
        let nodes: Vec<_> =
            nodes.into_iter().map(|h| (i64::from(h.weight()), h)).map(|(w, h)| (h, w)).collect();
        let top = nodes.iter().map(|n| n.1).max().unwrap_or(0);
        let period = nodes.iter().map(|n| n.1 / step + 1).sum();
        let len = nodes.len().max(1);
        let turns = PerWorker::new(workers, || Mutex::new(Turn { next: fastrand::usize(..len), bar: top }));
        Group { nodes, step, top, period, turns }
    }

    fn pick<'g>(
        &self,
        group: &'g Group,
        choice: &Choice<'_>,
        allowed: impl Fn(&Host) -> bool,
    ) -> Option<&'g Arc<Host>> {
        let mut turn = group.turns.get(choice.worker).lock();
        (0..group.period).find_map(|_| group.advance(&mut turn).filter(|node| allowed(node)))
    }
}

impl Group {
    /// The next node whose weight reaches the bar; the bar is lowered after each pass.
    fn advance(&self, turn: &mut Turn) -> Option<&Arc<Host>> {
        while !self.nodes.is_empty() {
            let rest = self.nodes.get(turn.next..).unwrap_or_default();
            if let Some((i, node)) = rest.iter().enumerate().find(|(_, n)| n.1 >= turn.bar) {
                turn.next += i + 1;
                return Some(&node.0);
            }
            turn.next = 0;
            turn.bar -= self.step;
            if turn.bar <= 0 {
                turn.bar = self.top;
            }
        }
        None
    }
}
