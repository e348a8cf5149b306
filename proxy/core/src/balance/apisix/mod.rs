//! What all of APISIX's balancers share: groups of nodes by priority, health, nodes that were tried
//! (apisix/balancer.lua, apisix/balancer/priority.lua).

mod chash;
mod ewma;
mod least_conn;
mod round_robin;

pub(super) use chash::Chash;
pub(super) use ewma::Ewma;
pub(super) use least_conn::LeastConn;
pub(super) use round_robin::RoundRobin;

use super::{Balancer, Choice};
use crate::cluster::{Health, Host, HostSet, Outcome};
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
    fn prepare(&self, nodes: Vec<Arc<Host>>, workers: usize) -> Self::Group;

    /// A node that is `allowed`; `None` when none is.
    fn pick<'g>(
        &self,
        group: &'g Self::Group,
        choice: &Choice<'_>,
        allowed: impl Fn(&Host) -> bool,
    ) -> Option<&'g Arc<Host>>;

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
    /// The only node there is, whatever its health.
    single: Option<Arc<Host>>,
    groups: Vec<G>,
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
    fn choose(&self, choice: &Choice<'_>) -> Option<Arc<Host>> {
        let state = self.state.load();
        if let Some(single) = &state.single {
            return Some(single.clone());
        }
        let allowed = |host: &Host| {
            let up = !P::KEEPS_DOWN || state.ignore_health || is_up(host);
            up && !choice.tried.iter().any(|t| t.host.id == host.id)
        };
        state.groups.iter().find_map(|g| self.picker.pick(g, choice, allowed)).cloned()
    }

    fn report(&self, host: &Host, outcome: &Outcome) {
        self.picker.report(host, outcome);
    }

    fn update(&self, hosts: &HostSet) {
        let ignore_health = !hosts.iter().any(|h| is_up(h));
        let kept = |h: &&Arc<Host>| P::KEEPS_DOWN || ignore_health || is_up(h);
        let groups = hosts.levels.iter().map(|l| l.all.iter().filter(kept).cloned().collect::<Vec<_>>());
        let groups = groups.filter(|g| !g.is_empty()).map(|g| self.picker.prepare(g, self.workers)).collect();
        let single = (P::SKIPS_SINGLE && hosts.total() == 1).then(|| hosts.iter().next().cloned()).flatten();
        self.state.store(Arc::new(State { single, groups, ignore_health }));
    }
}

fn is_up(host: &Host) -> bool {
    matches!(host.health(), Health::Healthy | Health::Degraded)
}

/// Greatest common divisor; that of 0 and n is n.
fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
