//! Envoy's subset load balancer (source/extensions/load_balancing_policies/subset): endpoints are divided by their
//! metadata when they change, each part with a balancer of its own; a choice is one look into a table.

use super::build_for;
use crate::cluster::{
    Asked, BalanceConfig, Balancer, Choice, ClusterStats, Criterion, HostSet, LoadPolicy, Locality, Member,
    Members, PriorityLevel, SubsetConfig, SubsetFallback, SubsetSelector, hash_of_key, hash_of_pairs,
};
use crate::fast_hash::FastMap;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Values of one endpoint's lists that count each by itself, over all keys of a selector: beyond it the rest is left out.
const MAX_COMBINATIONS: usize = 4096;

/// A balancer for each subset.
pub(super) struct Subsets {
    config: Arc<SubsetConfig>,
    /// How endpoints of a subset are chosen.
    inner: BalanceConfig,
    workers: usize,
    stats: Arc<ClusterStats>,
    /// Selectors by the hash of their keys.
    selectors: FastMap<u64, Vec<usize>>,
    state: ArcSwap<State>,
    /// What a change of health is taken over from; locked while endpoints change.
    division: Mutex<Division>,
}

/// How the endpoints are divided: what depends on which they are, and not on their health.
#[derive(Default)]
struct Division {
    /// The levels that were divided.
    levels: Vec<Members>,
    policy: Option<LoadPolicy>,
    groups: Vec<Group>,
}

/// Some of the endpoints, and who chooses among them.
struct Group {
    /// As the balancer was told last.
    hosts: HostSet,
    balancer: Arc<dyn Balancer>,
}

#[derive(Default)]
struct State {
    /// By the hash of their keys and values.
    subsets: FastMap<u64, Vec<Subset>>,
    any: Option<Arc<dyn Balancer>>,
    default: Option<Arc<dyn Balancer>>,
}

#[derive(Clone)]
struct Subset {
    /// In the order of the keys.
    pairs: Arc<[Criterion]>,
    chosen: Chosen,
}

#[derive(Clone)]
enum Chosen {
    By(Arc<dyn Balancer>),
    /// `single_host_per_subset`
    Single(Arc<Member>),
}

/// Endpoints of a subset while endpoints are divided.
struct Part {
    pairs: Vec<Criterion>,
    single: bool,
    levels: Vec<Vec<Arc<Member>>>,
}

impl Subsets {
    /// A balancer with these endpoints.
    ///
    /// # Errors
    /// A message when the policy within subsets can't be built as configured.
    pub(super) fn new(
        config: &Arc<SubsetConfig>,
        whole: &BalanceConfig,
        hosts: &HostSet,
        workers: usize,
        stats: &Arc<ClusterStats>,
    ) -> Result<Subsets, String> {
        let locality_weighted = whole.locality_weighted && config.locality_weights;
        let inner = BalanceConfig { subsets: None, locality_weighted, ..whole.clone() };
        // Whatever can be wrong is wrong without endpoints too.
        build_for(&inner, &HostSet::default(), stats, workers)?;
        let mut selectors: FastMap<u64, Vec<usize>> = FastMap::default();
        for (index, selector) in config.selectors.iter().enumerate() {
            let hash = selector.keys.iter().fold(0u64, |sum, key| sum.wrapping_add(hash_of_key(key)));
            selectors.entry(hash).or_default().push(index);
        }
        let (config, stats, state, division) =
            (config.clone(), stats.clone(), ArcSwap::default(), Mutex::default());
        let subsets = Subsets { config, inner, workers, stats, selectors, state, division };
        subsets.update(hosts);
        Ok(subsets)
    }

    /// Chooses by what is asked for. As in Envoy a subset that is there decides, even if it has no endpoint to give.
    fn choose_by<'a>(
        &'a self,
        state: &State,
        choice: &Choice<'_>,
        mut asked: Asked<'a>,
    ) -> Option<Arc<Member>> {
        // Every turn leaves keys out.
        loop {
            if self.config.allow_redundant_keys
                && let Some(selector) = self.config.selectors.iter().find(|s| asked.covers(&s.keys))
            {
                asked = asked.only(&selector.keys);
            }
            if let Some(subset) = state.find(asked) {
                self.stats.lb_subsets_selected().inc();
                return subset.chosen.choose(choice);
            }
            match self.selector(asked).and_then(|s| s.fallback.as_ref()) {
                None => return self.fall_back(state, choice),
                Some(SubsetFallback::None) => return None,
                Some(SubsetFallback::Any) => return state.any.as_ref()?.choose(choice),
                Some(SubsetFallback::Default) => return state.default.as_ref()?.choose(choice),
                Some(SubsetFallback::Keys(keys)) => asked = asked.only(keys),
            }
        }
    }

    /// The selector of exactly the keys that are asked for; the first one given.
    fn selector(&self, asked: Asked<'_>) -> Option<&SubsetSelector> {
        let at = self.selectors.get(&asked.keys_hash())?;
        at.iter().filter_map(|at| self.config.selectors.get(*at)).find(|s| asked.has_keys(&s.keys))
    }

    fn fall_back(&self, state: &State, choice: &Choice<'_>) -> Option<Arc<Member>> {
        let fallback = match self.config.fallback {
            SubsetFallback::Any => state.any.as_ref()?,
            SubsetFallback::Default => state.default.as_ref()?,
            _ => return None,
        };
        if let Some(member) = fallback.choose(choice) {
            self.stats.lb_subsets_fallback().inc();
            return Some(member);
        }
        let any = state.any.as_ref().filter(|_| self.config.panic_mode_any)?;
        let member = any.choose(choice)?;
        self.stats.lb_subsets_fallback_panic().inc();
        Some(member)
    }

    /// Divides the endpoints.
    fn divide(&self, hosts: &HostSet) -> FastMap<u64, Vec<Part>> {
        let mut parts: FastMap<u64, Vec<Part>> = FastMap::default();
        for (index, selector) in self.config.selectors.iter().enumerate() {
            // Of two with the same keys the first one counts.
            if self.config.selectors[..index].iter().any(|s| s.keys == selector.keys) {
                continue;
            }
            for (level, member) in levels(hosts) {
                for pairs in self.pairs_of(member, &selector.keys) {
                    let same = parts.entry(hash_of_pairs(pairs.iter())).or_default();
                    let at = same.iter().position(|p| p.pairs == pairs).unwrap_or_else(|| {
                        same.push(Part { pairs, single: selector.single_host, levels: Vec::new() });
                        same.len() - 1
                    });
                    let part = &mut same[at];
                    part.levels.resize_with(hosts.levels.len(), Vec::new);
                    part.levels[level].push(member.clone());
                }
            }
        }
        parts
    }

    /// The values that an endpoint has for the keys: none if it lacks one, several where lists count by their values.
    fn pairs_of(&self, member: &Member, keys: &[Box<str>]) -> Vec<Vec<Criterion>> {
        let Some(metadata) = member.metadata.get("envoy.lb") else { return Vec::new() };
        let mut all = vec![Vec::with_capacity(keys.len())];
        for key in keys {
            let Some(value) = metadata.get(&**key) else { return Vec::new() };
            let values = match value {
                Value::Array(values) if self.config.list_as_any => values.as_slice(),
                value => std::slice::from_ref(value),
            };
            let with = |pairs: &Vec<Criterion>, value: &Value| {
                let mut pairs = pairs.clone();
                pairs.push(Criterion::new(key, value.clone()));
                pairs
            };
            let combined = all.iter().flat_map(|pairs| values.iter().map(move |v| with(pairs, v)));
            all = combined.take(MAX_COMBINATIONS).collect();
        }
        all
    }

    fn is_default(&self, member: &Member) -> bool {
        let metadata = member.metadata.get("envoy.lb");
        self.config.default_subset.iter().all(|wanted| {
            let value = metadata.and_then(|m| m.get(&*wanted.key));
            value.is_some_and(|value| match value {
                Value::Array(values) if self.config.list_as_any => {
                    values.contains(&wanted.value) || *value == wanted.value
                }
                value => *value == wanted.value,
            })
        })
    }

    /// Some of the endpoints with the balancer before, brought to them, or a new one.
    fn group(
        &self,
        before: Option<&Arc<dyn Balancer>>,
        hosts: &HostSet,
        whole: &Wholes,
        levels: Vec<Members>,
    ) -> Option<Group> {
        let hosts = part_of(hosts, levels, whole);
        let balancer = match before {
            Some(balancer) => {
                balancer.update(&hosts);
                balancer.clone()
            }
            None => build_for(&self.inner, &hosts, &self.stats, self.workers).ok()?,
        };
        Some(Group { hosts, balancer })
    }

    fn subset(
        &self,
        before: &State,
        hosts: &HostSet,
        whole: &Wholes,
        part: Part,
        groups: &mut Vec<Group>,
    ) -> Option<Subset> {
        let hash = hash_of_pairs(part.pairs.iter());
        let known = before.subsets.get(&hash).and_then(|s| s.iter().find(|s| *s.pairs == *part.pairs));
        let chosen = if part.single {
            Chosen::Single(part.levels.iter().flatten().next()?.clone())
        } else {
            let known = known.and_then(|s| match &s.chosen {
                Chosen::By(balancer) => Some(balancer),
                Chosen::Single(_) => None,
            });
            let levels = part.levels.into_iter().map(Members::from).collect();
            let group = self.group(known, hosts, whole, levels)?;
            let balancer = group.balancer.clone();
            groups.push(group);
            Chosen::By(balancer)
        };
        let pairs = known.map_or_else(|| part.pairs.into(), |known| known.pairs.clone());
        Some(Subset { pairs, chosen })
    }

    /// What localities have in the whole, where the weights of parts are shared out by that.
    fn wholes(&self, hosts: &HostSet) -> Wholes {
        let scales = self.config.scale_locality_weights && self.inner.locality_weighted;
        let of = |level: &PriorityLevel| scales.then(|| Arc::new(counts(level)));
        hosts.levels.iter().map(of).collect()
    }

    fn defaults(&self, hosts: &HostSet) -> Vec<Members> {
        let of =
            |level: &PriorityLevel| level.members.iter().filter(|m| self.is_default(m)).cloned().collect();
        hosts.levels.iter().map(of).collect()
    }

    /// Divides the endpoints anew. Balancers of parts that stay go on.
    fn divide_anew(&self, hosts: &HostSet) -> Division {
        let (before, whole) = (self.state.load(), self.wholes(hosts));
        let mut groups = Vec::new();
        let mut subsets: FastMap<u64, Vec<Subset>> = FastMap::default();
        for (hash, parts) in self.divide(hosts) {
            let make = |part| self.subset(&before, hosts, &whole, part, &mut groups);
            subsets.insert(hash, parts.into_iter().filter_map(make).collect());
        }
        let mut falling_back = |known: Option<&Arc<dyn Balancer>>, whole: &Wholes, levels: Vec<Members>| {
            let group = self.group(known, hosts, whole, levels)?;
            let balancer = group.balancer.clone();
            groups.push(group);
            Some(balancer)
        };
        let any = self.config.panic_mode_any || self.falls_back(&SubsetFallback::Any);
        let all = || hosts.levels.iter().map(|level| level.members.clone()).collect();
        let any = any.then(|| falling_back(before.any.as_ref(), &Wholes::new(), all())).flatten();
        let default = self.falls_back(&SubsetFallback::Default);
        let default =
            default.then(|| falling_back(before.default.as_ref(), &whole, self.defaults(hosts))).flatten();
        self.state.store(Arc::new(State { subsets, any, default }));
        Division { levels: all(), policy: hosts.policy, groups }
    }

    /// Whether anything falls back so.
    fn falls_back(&self, to: &SubsetFallback) -> bool {
        let of_selectors = self.config.selectors.iter().filter_map(|s| s.fallback.as_ref());
        of_selectors.chain([&self.config.fallback]).any(|fallback| fallback == to)
    }
}

/// Members by locality, of each level; `None` where that is of no matter.
type Wholes = Vec<Option<Arc<BTreeMap<Locality, usize>>>>;

/// Some of the endpoints as a set.
fn part_of(hosts: &HostSet, levels: Vec<Members>, whole: &Wholes) -> HostSet {
    let mut set = HostSet::sorted_out(levels.into_iter(), hosts.policy, hosts.version);
    for (level, whole) in set.levels.iter_mut().zip(whole) {
        level.whole.clone_from(whole);
    }
    set
}

impl Division {
    /// Whether these are the endpoints that were divided, whatever their health is.
    fn is_of(&self, hosts: &HostSet) -> bool {
        self.policy == hosts.policy
            && self.levels.len() == hosts.levels.len()
            && self.levels.iter().zip(&hosts.levels).all(|(had, level)| Arc::ptr_eq(had, &level.members))
    }
}

/// Members by locality.
fn counts(level: &PriorityLevel) -> BTreeMap<Locality, usize> {
    let mut counts = BTreeMap::new();
    level.members.iter().for_each(|m| *counts.entry(m.locality().clone()).or_default() += 1);
    counts
}

fn levels(hosts: &HostSet) -> impl Iterator<Item = (usize, &Arc<Member>)> {
    hosts.levels.iter().enumerate().flat_map(|(at, level)| level.members.iter().map(move |m| (at, m)))
}

impl State {
    #[inline]
    fn find(&self, asked: Asked<'_>) -> Option<&Subset> {
        let same_hash = self.subsets.get(&hash_of_pairs(asked.pairs()))?;
        same_hash.iter().find(|subset| asked.pairs().eq(subset.pairs.iter()))
    }
}

impl Chosen {
    fn choose(&self, choice: &Choice<'_>) -> Option<Arc<Member>> {
        match self {
            Chosen::By(balancer) => balancer.choose(choice),
            Chosen::Single(member) => Some(member.clone()),
        }
    }
}

impl Balancer for Subsets {
    fn choose(&self, choice: &Choice<'_>) -> Option<Arc<Member>> {
        let state = self.state.load();
        match choice.subset.fallbacks().filter(|_| self.config.fallback_list) {
            Some(list) => list.iter().find_map(|asked| self.choose_by(&state, choice, asked.all())),
            None => self.choose_by(&state, choice, choice.subset.all()),
        }
    }

    fn update(&self, hosts: &HostSet) {
        let mut division = self.division.lock();
        if !division.is_of(hosts) {
            *division = self.divide_anew(hosts);
            return;
        }
        // Only health has changed, of few: the others' balancers have nothing to hear.
        for group in division.groups.iter_mut().filter(|group| !group.hosts.is_sorted_out()) {
            group.hosts = group.hosts.refreshed();
            group.balancer.update(&group.hosts);
        }
    }

    fn reweigh(&self, _hosts: &HostSet, now: Instant) {
        self.division.lock().groups.iter().for_each(|group| group.balancer.reweigh(&group.hosts, now));
    }

    fn look_at_proxies(&self, _hosts: &HostSet) {
        self.division.lock().groups.iter().for_each(|group| group.balancer.look_at_proxies(&group.hosts));
    }

    fn subsets(&self) -> Option<usize> {
        Some(self.state.load().subsets.values().map(Vec::len).sum())
    }
}
