//! APISIX's roundrobin: interleaved weighted turns, as lua-resty-balancer gives them.

use super::super::worker::PerWorker;
use super::{Picker, gcd};
use crate::cluster::{Choice, Member};
use parking_lot::Mutex;
use std::sync::Arc;

/// Turns of one pick. Weights that have nothing in common make rounds of millions, in which few nodes come up but the heaviest.
const MOST_TURNS: i64 = 4096;

/// Turns, kept by each worker.
pub(in super::super) struct RoundRobin;

pub(in super::super) struct Group {
    nodes: Vec<Arc<Member>>,
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

    fn prepare(&self, nodes: Vec<Arc<Member>>, workers: usize) -> Group {
        let weights = || nodes.iter().map(|n| i64::from(n.weight));
        let step = i64::from(nodes.iter().map(|n| n.weight).fold(0, gcd)).max(1);
        let top = weights().max().unwrap_or(0);
        let period = weights().map(|weight| weight / step + 1).sum();
        let len = nodes.len().max(1);
        let turns = PerWorker::new(workers, || Mutex::new(Turn { next: fastrand::usize(..len), bar: top }));
        Group { nodes, step, top, period, turns }
    }

    fn nodes(group: &Group) -> impl Iterator<Item = &Arc<Member>> {
        group.nodes.iter()
    }

    fn pick<'g>(
        &self,
        group: &'g Group,
        choice: &Choice<'_>,
        allowed: impl Fn(&Member) -> bool,
    ) -> Option<&'g Arc<Member>> {
        let mut turn = group.turns.get(choice.worker).lock();
        let taken = (0..group.period.min(MOST_TURNS))
            .find_map(|_| group.advance(&mut turn).filter(|node| allowed(node)));
        // Those that are left have their turns so seldom that the heaviest has nearly all of them.
        taken.or_else(|| {
            let left = group.nodes.iter().filter(|node| node.weight > 0 && allowed(node));
            left.max_by_key(|node| node.weight)
        })
    }
}

impl Group {
    /// The next node whose weight reaches the bar; the bar is lowered after each pass.
    fn advance(&self, turn: &mut Turn) -> Option<&Arc<Member>> {
        while !self.nodes.is_empty() {
            let rest = self.nodes.get(turn.next..).unwrap_or_default();
            if let Some((i, node)) = rest.iter().enumerate().find(|(_, n)| i64::from(n.weight) >= turn.bar) {
                turn.next += i + 1;
                return Some(node);
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
