//! What all of APISIX's balancers share: groups of nodes by priority, health, nodes that were tried
//! (apisix/balancer.lua, apisix/balancer/priority.lua).

mod chash;
mod ewma;
mod least_conn;
mod round_robin;
mod unknown;

pub(super) use chash::Chash;
pub(super) use ewma::Ewma;
pub(super) use least_conn::LeastConn;
pub(super) use round_robin::RoundRobin;
pub(super) use unknown::Unknown;

use super::levels::same_members;
use crate::cluster::{Balancer, Choice, Health, Host, HostSet, Member, Outcome};
use arc_swap::ArcSwap;
use std::sync::Arc;

/// One of APISIX's algorithms.
pub(super) trait Picker: Send + Sync + 'static {
    /// What is prepared for the nodes of one priority.
    type Group: Send + Sync;

    /// Whether nodes that are down stay in the group, to be passed over at each pick: a ring must not move
    /// when health changes.
    const KEEPS_DOWN: bool = false;

    /// Whether an upstream of one node needs no pick.
    const SKIPS_SINGLE: bool = true;

    /// Prepares the nodes of one priority, in the configuration's order.
    fn prepare(&self, nodes: Vec<Arc<Member>>, workers: usize) -> Self::Group;

    /// The nodes that a group was prepared for, in their order.
    fn nodes(group: &Self::Group) -> impl Iterator<Item = &Arc<Member>>;

    /// A node that is `allowed`; `None` when none is.
    fn pick<'g>(
        &self,
        group: &'g Self::Group,
        choice: &Choice<'_>,
        allowed: impl Fn(&Member) -> bool,
    ) -> Option<&'g Arc<Member>>;

    /// Says that an attempt at a node has ended.
    fn report(&self, _host: &Host, _outcome: &Outcome) {}
}

/// A balancer over groups of nodes, the preferred one first.
pub(super) struct Grouped<P: Picker> {
    picker: P,
    workers: usize,
    state: ArcSwap<State<P::Group>>,
}

struct State<G> {
    /// The only node there is, whatever its health: then there are no groups.
    single: Option<Arc<Member>>,
    groups: Vec<Arc<G>>,
    /// Every node is down: health does not count.
    ignore_health: bool,
}

impl<P: Picker> Grouped<P> {
    /// A balancer with these nodes.
    pub(super) fn new(picker: P, hosts: &HostSet, workers: usize) -> Grouped<P> {
        let empty = State { single: None, groups: Vec::new(), ignore_health: false };
        let balancer = Grouped { picker, workers, state: ArcSwap::from_pointee(empty) };
        balancer.update(hosts);
        balancer
    }
}

impl<P: Picker> Balancer for Grouped<P> {
    fn choose(&self, choice: &Choice<'_>) -> Option<Arc<Member>> {
        let state = self.state.load();
        if let Some(single) = &state.single {
            return Some(single.clone());
        }
        let allowed = |node: &Member| {
            let up = !P::KEEPS_DOWN || state.ignore_health || is_up(node);
            up && !choice.tried.iter().any(|t| t.member.host.id == node.host.id)
        };
        state.groups.iter().find_map(|g| self.picker.pick(g, choice, allowed)).cloned()
    }

    fn report(&self, host: &Host, outcome: &Outcome) {
        self.picker.report(host, outcome);
    }

    fn update(&self, hosts: &HostSet) {
        if let (true, 1, Some(single)) = (P::SKIPS_SINGLE, hosts.total(), hosts.iter().next()) {
            let single = Some(single.clone());
            self.state.store(Arc::new(State { single, groups: Vec::new(), ignore_health: false }));
            return;
        }
        let before = self.state.load();
        let ignore_health = !hosts.iter().any(|m| is_up(m));
        let kept = |m: &&Arc<Member>| P::KEEPS_DOWN || ignore_health || is_up(m);
        let group = |nodes: Vec<Arc<Member>>| {
            let same = before.groups.iter().find(|g| same_members(P::nodes(g), &nodes)).cloned();
            same.unwrap_or_else(|| Arc::new(self.picker.prepare(nodes, self.workers)))
        };
        let nodes = hosts.levels.iter().map(|l| l.members.iter().filter(kept).cloned().collect::<Vec<_>>());
        let groups = nodes.filter(|nodes| !nodes.is_empty()).map(group).collect();
        self.state.store(Arc::new(State { single: None, groups, ignore_health }));
    }
}

fn is_up(node: &Member) -> bool {
    matches!(node.health(), Health::Healthy | Health::Degraded)
}

/// Greatest common divisor; that of 0 and n is n.
fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
