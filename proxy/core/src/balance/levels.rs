//! What all of Envoy's balancers share: priority levels, panic, localities and the hosts a retry refuses.

use super::edf::Edf;
use super::priority::{Class, Loads};
use super::worker::{PerWorker, derive};
use super::zones::{Way, Zones};
use crate::cluster::{
    BalanceConfig, Balancer, Choice, ClusterStats, HostSet, Locality, Member, Members, PriorityLevel,
};
use crate::retry::HostPredicate;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// One way to choose among equals: what is prepared for a group of hosts, and how one of them is picked.
pub(super) trait Algorithm: Send + Sync + 'static {
    /// What is prepared when the group changes.
    type Group: Send + Sync;

    /// Whether the request's hash chooses, for the level too. Localities then only scale the weights.
    const HASHED: bool;

    /// The weight of an endpoint.
    fn weight(&self, member: &Member) -> f64 {
        f64::from(member.weight)
    }

    /// Brings the weights of the endpoints up to date, where they change by themselves; tells whether any has changed.
    fn reweigh(&self, _hosts: &HostSet, _now: Instant) -> bool {
        false
    }

    /// Prepares a group; weights are those of the hosts, scaled by their localities for hashed algorithms.
    fn prepare(&self, hosts: Vec<Weighted>, workers: usize) -> Self::Group;

    /// A host of the group; `None` when it has none.
    fn pick<'g>(&self, group: &'g Self::Group, context: LbContext) -> Option<&'g Arc<Member>>;
}

/// A host and its share within a group.
#[derive(Debug, Clone)]
pub(super) struct Weighted {
    /// The host, as the set has it.
    pub(super) member: Arc<Member>,
    /// Its weight.
    pub(super) weight: f64,
}

/// What an algorithm gets of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct LbContext {
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
    /// The proxies of the local cluster that `zones` was made of.
    proxies: Option<Arc<HostSet>>,
    zones: Option<(Zones, Arc<Split<G>>)>,
}

/// The first level by locality.
struct Split<G> {
    /// What it was made from.
    members: [Members; 2],
    localities: Vec<Locality>,
    healthy: Vec<G>,
    degraded: Vec<G>,
}

struct Level<G> {
    /// As the level has it.
    whole: Option<Arc<BTreeMap<Locality, usize>>>,
    /// All, by which localities are scaled.
    members: Members,
    overprovisioning: Option<u32>,
    healthy: Arc<Source<G>>,
    degraded: Arc<Source<G>>,
    all: Arc<Source<G>>,
}

/// One of a level's sources.
type Part<G> = fn(&Level<G>) -> &Arc<Source<G>>;

/// The hosts of one health class of a level.
struct Source<G> {
    /// What it was made from.
    members: Members,
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
        Source { members: Members::default(), groups: Vec::new(), turns: None }
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
        let loads = Loads::new(&HostSet::default(), &config);
        let empty = State { loads, levels: Vec::new(), proxies: None, zones: None };
        let balancer = Leveled { algorithm, config, workers, stats, state: ArcSwap::from_pointee(empty) };
        balancer.update(hosts);
        balancer
    }

    /// What is prepared for a level; what `before` has for the same members is taken over, turns and all.
    fn level(
        &self,
        level: &PriorityLevel,
        panics: bool,
        before: Option<&Level<A::Group>>,
    ) -> Level<A::Group> {
        // The share of a locality depends on all of its members.
        let scaled_alike = before.is_some_and(|b| {
            !self.config.locality_weighted
                || b.overprovisioning == level.overprovisioning
                    && b.whole == level.whole
                    && same_members(b.members.iter(), &level.members)
        });
        let source = |of: Part<A::Group>, members: &Members, classed: bool| {
            let kept = before.map(of).filter(|s| same_members(s.members.iter(), members));
            match kept {
                Some(kept) if scaled_alike || !classed => kept.clone(),
                _ => Arc::new(self.source(level, members, classed)),
            }
        };
        let all = if panics { level.members.clone() } else { Members::default() };
        Level {
            healthy: source(|l| &l.healthy, &level.healthy, true),
            degraded: source(|l| &l.degraded, &level.degraded, true),
            all: source(|l| &l.all, &all, false),
            members: level.members.clone(),
            overprovisioning: level.overprovisioning,
            whole: level.whole.clone(),
        }
    }

    /// Prepares all levels; what is there for the same members is taken over if it `goes_on`.
    fn rebuild(&self, hosts: &HostSet, goes_on: bool) {
        let before = self.state.load();
        let loads = Loads::new(hosts, &self.config);
        let known = |i: usize| before.levels.get(i).filter(|_| goes_on);
        let level = |(i, l)| self.level(l, loads.panics(i), known(i));
        let levels = hosts.levels.iter().enumerate().map(level).collect();
        let proxies = self.proxies();
        let zones = self.zones(hosts, proxies.as_deref(), before.zones.as_ref().filter(|_| goes_on));
        self.state.store(Arc::new(State { loads, levels, proxies, zones }));
    }

    /// The proxies of the local cluster, where they matter.
    fn proxies(&self) -> Option<Arc<HostSet>> {
        let zone = self.config.zone.as_ref().filter(|_| !A::HASHED && !self.config.locality_weighted)?;
        Some(zone.local.load()?.hosts.load_full())
    }

    fn zones(
        &self,
        hosts: &HostSet,
        proxies: Option<&HostSet>,
        before: Option<&(Zones, Arc<Split<A::Group>>)>,
    ) -> Option<(Zones, Arc<Split<A::Group>>)> {
        let (config, level) = (self.config.zone.as_ref()?, hosts.levels.first()?);
        let zones = Zones::new(config, level, proxies?, self.config.panic_threshold, &self.stats)?;
        let is_of = |split: &Split<A::Group>| {
            let [healthy, degraded] = &split.members;
            split.localities == zones.localities
                && same_members(healthy.iter(), &level.healthy)
                && same_members(degraded.iter(), &level.degraded)
        };
        let known = before.map(|(_, split)| split).filter(|split| is_of(split)).cloned();
        let split = known.unwrap_or_else(|| Arc::new(self.split(level, &zones.localities)));
        Some((zones, split))
    }

    fn split(&self, level: &PriorityLevel, localities: &[Locality]) -> Split<A::Group> {
        let groups = |members: &Members| {
            let of = |locality: &Locality| {
                let here = members.iter().filter(|member| member.locality() == locality);
                self.algorithm.prepare(here.map(|member| self.weighted(member)).collect(), self.workers)
            };
            localities.iter().map(of).collect()
        };
        Split {
            members: [level.healthy.clone(), level.degraded.clone()],
            localities: localities.to_vec(),
            healthy: groups(&level.healthy),
            degraded: groups(&level.degraded),
        }
    }

    fn weighted(&self, member: &Arc<Member>) -> Weighted {
        Weighted { member: member.clone(), weight: self.algorithm.weight(member) }
    }

    /// The group that chooses for a request of the first level, if its locality does; the error has none choose.
    fn group_of_zone<'s>(
        &self,
        state: &'s State<A::Group>,
        (level, class): (usize, Class),
        random: u64,
    ) -> Result<Option<&'s A::Group>, ()> {
        let (Some((zones, split)), Some(config)) = (&state.zones, &self.config.zone) else { return Ok(None) };
        let groups = match class {
            Class::Healthy => &split.healthy,
            Class::Degraded => &split.degraded,
            Class::All => return Ok(None),
        };
        if level != 0 {
            return Ok(None);
        }
        match zones.choose(config, self.config.fail_on_panic, random, &self.stats) {
            Way::Anywhere => Ok(None),
            Way::Nowhere => Err(()),
            Way::To(at) => groups.get(at).map(Some).ok_or(()),
        }
    }

    fn source(&self, level: &PriorityLevel, members: &Members, classed: bool) -> Source<A::Group> {
        if members.is_empty() {
            return Source::empty();
        }
        let weighted = |m: &Arc<Member>| self.weighted(m);
        let localities = match classed && self.config.locality_weighted {
            true => Localities::of(level),
            false => Localities::default(),
        };
        let (groups, turns) = if localities.0.is_empty() {
            (vec![self.algorithm.prepare(members.iter().map(weighted).collect(), self.workers)], None)
        } else {
            let mut split: BTreeMap<&Locality, Vec<Weighted>> = BTreeMap::new();
            for member in members.iter() {
                split.entry(member.locality()).or_default().push(weighted(member));
            }
            match A::HASHED {
                true => (vec![self.algorithm.prepare(localities.scaled(split), self.workers)], None),
                false => {
                    let overprovisioning = level.overprovisioning.unwrap_or(self.config.overprovisioning);
                    let weights = localities.shares(&split, overprovisioning);
                    let prepare = |hosts| self.algorithm.prepare(hosts, self.workers);
                    (split.into_values().map(prepare).collect(), Some(self.turns(weights)))
                }
            }
        };
        Source { members: members.clone(), groups, turns }
    }

    fn turns(&self, weights: Vec<f64>) -> Turns {
        let queues = PerWorker::new(self.workers, || Mutex::new(Edf::started(weights.iter().copied())));
        Turns { weights, queues }
    }

    fn choose_once(
        &self,
        state: &State<A::Group>,
        loads: &Loads,
        choice: &Choice<'_>,
        refused: u32,
    ) -> Option<Arc<Member>> {
        let value = match choice.hash {
            Some(hash) if A::HASHED => hash,
            _ if refused == 0 || A::HASHED => choice.random,
            _ => derive(choice.random, u64::from(refused)),
        };
        let chosen = loads.choose(value)?;
        if chosen.1 == Class::All {
            self.stats.lb_healthy_panic().inc();
            if self.config.fail_on_panic {
                return None;
            }
        }
        let level = state.levels.get(chosen.0)?;
        let source = match chosen.1 {
            Class::Healthy => &level.healthy,
            Class::Degraded => &level.degraded,
            Class::All => &level.all,
        };
        // The level took the random number modulo 100; the host must not depend on that.
        let value = if A::HASHED { value } else { derive(value, u64::MAX - 1) };
        let group = match self.group_of_zone(state, chosen, value) {
            Ok(Some(group)) => group,
            Ok(None) => source.group(choice.worker)?,
            Err(()) => return None,
        };
        self.algorithm.pick(group, LbContext { worker: choice.worker, value, refused }).cloned()
    }
}

impl<A: Algorithm> Balancer for Leveled<A> {
    fn choose(&self, choice: &Choice<'_>) -> Option<Arc<Member>> {
        let state = self.state.load();
        if choice.attempt == 0 {
            return self.choose_once(&state, &state.loads, choice, 0);
        }
        let adjusted = choice.previous_priorities.and_then(|f| state.loads.without_tried(choice.tried, f));
        let loads = adjusted.as_ref().unwrap_or(&state.loads);
        let mut refused = 0;
        loop {
            let member = self.choose_once(&state, loads, choice, refused)?;
            if refused >= choice.host_attempts || !refuses(choice, &member) {
                return Some(member);
            }
            refused += 1;
        }
    }

    fn update(&self, hosts: &HostSet) {
        let changed = self.algorithm.reweigh(hosts, Instant::now());
        self.rebuild(hosts, !changed);
    }

    fn reweigh(&self, hosts: &HostSet, now: Instant) {
        if self.algorithm.reweigh(hosts, now) {
            self.rebuild(hosts, false);
        }
    }

    fn look_at_proxies(&self, hosts: &HostSet) {
        let now = self.proxies();
        if now.as_ref().map(Arc::as_ptr) != self.state.load().proxies.as_ref().map(Arc::as_ptr) {
            self.rebuild(hosts, true);
        }
    }
}

/// The weights that the configuration gives to localities of a level, and how many members each has.
#[derive(Default)]
struct Localities<'l>(BTreeMap<&'l Locality, (u32, usize)>);

impl<'l> Localities<'l> {
    /// Nothing when no locality has a weight.
    fn of(level: &'l PriorityLevel) -> Localities<'l> {
        let mut all: BTreeMap<&Locality, (u32, usize)> = BTreeMap::new();
        for member in level.members.iter() {
            let entry = all.entry(member.locality()).or_default();
            entry.0 = member.locality_weight().unwrap_or(entry.0);
            entry.1 += 1;
        }
        let weighted = level.members.iter().any(|m| m.locality_weight().is_some());
        if !weighted {
            return Localities::default();
        }
        if let Some(whole) = &level.whole {
            for (locality, (weight, members)) in &mut all {
                let whole = whole.get(*locality).copied().unwrap_or(*members).max(1);
                *weight = (f64::from(*weight) * *members as f64 / whole as f64).round() as u32;
            }
        }
        Localities(all)
    }

    /// The shares of `usable` hosts: their locality's weight, less when too few of its hosts are among them.
    fn shares(&self, usable: &BTreeMap<&Locality, Vec<Weighted>>, overprovisioning: u32) -> Vec<f64> {
        let share = |(locality, hosts): (&&Locality, &Vec<Weighted>)| {
            let (weight, count) = self.0.get(*locality).copied().unwrap_or_default();
            let available = f64::from(overprovisioning) / 100.0 * hosts.len() as f64 / count.max(1) as f64;
            f64::from(weight) * available.min(1.0)
        };
        usable.iter().map(share).collect()
    }

    /// One group whose weights are the locality's share times the host's share of its locality.
    fn scaled(&self, split: BTreeMap<&Locality, Vec<Weighted>>) -> Vec<Weighted> {
        let mut scaled = Vec::new();
        for (locality, hosts) in split {
            let share = self.0.get(locality).map_or(0.0, |(weight, _)| f64::from(*weight));
            let sum: f64 = hosts.iter().map(|h| h.weight).sum();
            if share > 0.0 && sum > 0.0 {
                let scale = |h: Weighted| Weighted { weight: h.weight / sum * share, member: h.member };
                scaled.extend(hosts.into_iter().map(scale));
            }
        }
        scaled
    }
}

/// Whether both are the same members in the same order.
pub(super) fn same_members<'a>(mut a: impl Iterator<Item = &'a Arc<Member>>, b: &[Arc<Member>]) -> bool {
    b.iter().all(|b| a.next().is_some_and(|a| Arc::ptr_eq(a, b))) && a.next().is_none()
}

/// Whether a retry host predicate is against the host.
fn refuses(choice: &Choice<'_>, member: &Member) -> bool {
    choice.predicates.iter().any(|predicate| match predicate {
        HostPredicate::PreviousHosts => choice.tried.iter().any(|t| t.member.host.id == member.host.id),
        HostPredicate::OmitCanaryHosts => member.is_canary(),
        HostPredicate::OmitHostMetadata(wanted) => {
            let metadata = member.metadata.get("envoy.lb");
            !wanted.is_empty() && wanted.iter().all(|(k, v)| metadata.and_then(|m| m.get(k)) == Some(v))
        }
    })
}
