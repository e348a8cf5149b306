//! What all of Envoy's balancers share: priority levels, panic, localities and the hosts a retry refuses.

use super::edf::Edf;
use super::priority::{Class, Loads};
use super::worker::{PerWorker, derive};
use super::{BalanceConfig, Balancer, Choice};
use crate::cluster::{ClusterStats, Host, HostSet, Locality, PriorityLevel};
use crate::retry::HostPredicate;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One way to choose among equals: what is prepared for a group of hosts, and how one of them is picked.
pub(super) trait Algorithm: Send + Sync + 'static {
    /// What is prepared when the group changes.
    type Group: Send + Sync;

    /// Whether the request's hash chooses, for the level too. Localities then only scale the weights.
    const HASHED: bool;

    /// Prepares a group; weights are those of the hosts, scaled by their localities for hashed algorithms.
    fn prepare(&self, hosts: Vec<Weighted>, workers: usize) -> Self::Group;

    /// A host of the group; `None` when it has none.
    fn pick<'g>(&self, group: &'g Self::Group, ask: Ask) -> Option<&'g Arc<Host>>;
}

/// A host and its share within a group.
#[derive(Debug, Clone)]
pub(super) struct Weighted {
    /// The host.
    pub(super) host: Arc<Host>,
    /// Its weight.
    pub(super) weight: f64,
}

/// What an algorithm gets of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    /// Worker that asks.
    pub(super) worker: usize,
    /// The request's hash for hashed algorithms, else a random number.
    pub(super) value: u64,
    /// Picks refused before this one.
    pub(super) refused: u32,
}

/// A balancer over priority levels.
pub(super) struct Leveled<A: Algorithm> {
    algorithm: A,
    config: BalanceConfig,
    workers: usize,
    stats: Arc<ClusterStats>,
    state: ArcSwap<State<A::Group>>,
}

struct State<G> {
    loads: Loads,
    levels: Vec<Level<G>>,
}

struct Level<G> {
    healthy: Source<G>,
    degraded: Source<G>,
    all: Source<G>,
}

/// The hosts of one health class of a level.
struct Source<G> {
    /// One group, or one a locality.
    groups: Vec<G>,
    /// Turns of the localities, if they have weights.
    turns: Option<Turns>,
}

struct Turns {
    weights: Vec<f64>,
    queues: PerWorker<Mutex<Edf>>,
}

impl<G> Source<G> {
    fn empty() -> Source<G> {
        Source { groups: Vec::new(), turns: None }
    }

    #[inline]
    fn group(&self, worker: usize) -> Option<&G> {
        match &self.turns {
            None => self.groups.first(),
            Some(turns) => {
                let mut queue = turns.queues.get(worker).lock();
                let index = queue.pick(|i| turns.weights.get(i).copied().unwrap_or_default())?;
                self.groups.get(index)
            }
        }
    }
}

impl<A: Algorithm> Leveled<A> {
    /// A balancer with these endpoints.
    pub(super) fn new(
        algorithm: A,
        config: BalanceConfig,
        hosts: &HostSet,
        workers: usize,
        stats: Arc<ClusterStats>,
    ) -> Leveled<A> {
        let empty = State { loads: Loads::new(&HostSet::default(), &config), levels: Vec::new() };
        let balancer = Leveled { algorithm, config, workers, stats, state: ArcSwap::from_pointee(empty) };
        balancer.update(hosts);
        balancer
    }

    fn level(&self, level: &PriorityLevel, panics: bool) -> Level<A::Group> {
        Level {
            healthy: self.source(level, &level.healthy, true),
            degraded: self.source(level, &level.degraded, true),
            all: if panics { self.source(level, &level.all, false) } else { Source::empty() },
        }
    }

    fn source(&self, level: &PriorityLevel, hosts: &[Arc<Host>], localities: bool) -> Source<A::Group> {
        if hosts.is_empty() {
            return Source::empty();
        }
        let weighted = |host: &Arc<Host>| Weighted { host: host.clone(), weight: f64::from(host.weight()) };
        let by_locality = localities && self.config.locality_weighted && !level.locality_weights.is_empty();
        if !by_locality {
            let group = self.algorithm.prepare(hosts.iter().map(weighted).collect(), self.workers);
            return Source { groups: vec![group], turns: None };
        }
        let mut split: BTreeMap<&Locality, Vec<Weighted>> = BTreeMap::new();
        for host in hosts {
            split.entry(&host.locality).or_default().push(weighted(host));
        }
        let share = |locality: &Locality, usable: usize| {
            let count = level.all.iter().filter(|h| h.locality == *locality).count();
            let weight = level.locality_weights.get(locality).copied().unwrap_or(0);
            let available = f64::from(self.config.overprovisioning) / 100.0 * usable as f64 / count as f64;
            f64::from(weight) * available.min(1.0)
        };
        if A::HASHED {
            return self.scaled(split, &level.locality_weights);
        }
        let weights: Vec<f64> = split.iter().map(|(l, hosts)| share(l, hosts.len())).collect();
        let groups = split.into_values().map(|hosts| self.algorithm.prepare(hosts, self.workers)).collect();
        let queues = PerWorker::new(self.workers, || Mutex::new(Edf::started(weights.iter().copied())));
        Source { groups, turns: Some(Turns { weights, queues }) }
    }

    /// One group whose weights are the locality's share times the host's share of its locality.
    fn scaled(
        &self,
        split: BTreeMap<&Locality, Vec<Weighted>>,
        weights: &BTreeMap<Locality, u32>,
    ) -> Source<A::Group> {
        let mut scaled = Vec::new();
        for (locality, hosts) in split {
            let share = f64::from(weights.get(locality).copied().unwrap_or(0));
            let sum: f64 = hosts.iter().map(|h| h.weight).sum();
            if share > 0.0 && sum > 0.0 {
                let scale = |h: Weighted| Weighted { weight: h.weight / sum * share, host: h.host };
                scaled.extend(hosts.into_iter().map(scale));
            }
        }
        Source { groups: vec![self.algorithm.prepare(scaled, self.workers)], turns: None }
    }

    fn choose_once(
        &self,
        state: &State<A::Group>,
        loads: &Loads,
        choice: &Choice<'_>,
        refused: u32,
    ) -> Option<Arc<Host>> {
        let value = match choice.hash {
            Some(hash) if A::HASHED => hash,
            _ if refused == 0 || A::HASHED => choice.random,
            _ => derive(choice.random, u64::from(refused)),
        };
        let (level, class) = loads.choose(value)?;
        let level = state.levels.get(level)?;
        let source = match class {
            Class::Healthy => &level.healthy,
            Class::Degraded => &level.degraded,
            Class::All => {
                self.stats.lb_healthy_panic.inc();
                if self.config.fail_on_panic {
                    return None;
                }
                &level.all
            }
        };
        // The level took the random number modulo 100; the host must not depend on that.
        let value = if A::HASHED { value } else { derive(value, u64::MAX - 1) };
        self.algorithm
            .pick(source.group(choice.worker)?, Ask { worker: choice.worker, value, refused })
            .cloned()
    }
}

impl<A: Algorithm> Balancer for Leveled<A> {
    fn choose(&self, choice: &Choice<'_>) -> Option<Arc<Host>> {
        let state = self.state.load();
        if choice.attempt == 0 {
            return self.choose_once(&state, &state.loads, choice, 0);
        }
        let adjusted = choice.previous_priorities.and_then(|f| state.loads.without_tried(choice.tried, f));
        let loads = adjusted.as_ref().unwrap_or(&state.loads);
        let mut refused = 0;
        loop {
            let host = self.choose_once(&state, loads, choice, refused)?;
            if refused >= choice.host_attempts || !refuses(choice, &host) {
                return Some(host);
            }
            refused += 1;
        }
    }

    fn update(&self, hosts: &HostSet) {
        let loads = Loads::new(hosts, &self.config);
        let level = |(i, l)| self.level(l, loads.panics(i));
        let levels = hosts.levels.iter().enumerate().map(level).collect();
        self.state.store(Arc::new(State { loads, levels }));
    }
}

/// Whether a retry host predicate is against the host.
fn refuses(choice: &Choice<'_>, host: &Host) -> bool {
    choice.predicates.iter().any(|predicate| match predicate {
        HostPredicate::PreviousHosts => choice.tried.iter().any(|t| t.host.id == host.id),
        HostPredicate::OmitCanaryHosts => host.is_canary(),
        HostPredicate::OmitHostMetadata(wanted) => {
            let metadata = host.metadata.get("envoy.lb");
            !wanted.is_empty() && wanted.iter().all(|(k, v)| metadata.and_then(|m| m.get(k)) == Some(v))
        }
    })
}
