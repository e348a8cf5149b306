//! Envoy's subset load balancer (source/extensions/load_balancing_policies/subset): endpoints are divided by their
//! metadata when they change, each part with a balancer of its own; a choice is one look into a table.

use super::build_for;
use crate::cluster::{
    Asked, BalanceConfig, Balancer, Choice, ClusterStats, Criterion, HostSet, Member, PriorityLevel,
    SubsetConfig, SubsetFallback, SubsetSelector, hash_of_key, hash_of_pairs,
};
use crate::fast_hash::FastMap;
use arc_swap::ArcSwap;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

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
        let (config, stats, state) = (config.clone(), stats.clone(), ArcSwap::default());
        let subsets = Subsets { config, inner, workers, stats, selectors, state };
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

    /// The balancer before, brought to these endpoints, or a new one.
    fn balancer(&self, before: Option<&Arc<dyn Balancer>>, set: &HostSet) -> Option<Arc<dyn Balancer>> {
        match before {
            Some(balancer) => {
                balancer.update(set);
                Some(balancer.clone())
            }
            None => build_for(&self.inner, set, &self.stats, self.workers).ok(),
        }
    }

    fn subset(&self, before: &State, hosts: &HostSet, part: Part) -> Option<Subset> {
        let hash = hash_of_pairs(part.pairs.iter());
        let known = before.subsets.get(&hash).and_then(|s| s.iter().find(|s| *s.pairs == *part.pairs));
        let chosen = if part.single {
            Chosen::Single(part.levels.iter().flatten().next()?.clone())
        } else {
            let known = known.and_then(|s| match &s.chosen {
                Chosen::By(balancer) => Some(balancer),
                Chosen::Single(_) => None,
            });
            Chosen::By(self.balancer(known, &self.part_of(hosts, part.levels))?)
        };
        let pairs = known.map_or_else(|| part.pairs.into(), |known| known.pairs.clone());
        Some(Subset { pairs, chosen })
    }

    /// Some of the endpoints as a set.
    fn part_of(&self, hosts: &HostSet, members: Vec<Vec<Arc<Member>>>) -> HostSet {
        let mut set = HostSet::sorted_out(members.into_iter().map(Into::into), hosts.policy, hosts.version);
        if self.config.scale_locality_weights && self.inner.locality_weighted {
            for (level, whole) in set.levels.iter_mut().zip(&hosts.levels) {
                level.whole = Some(Arc::new(counts(whole)));
            }
        }
        set
    }

    fn default_set(&self, hosts: &HostSet) -> HostSet {
        let of =
            |level: &PriorityLevel| level.members.iter().filter(|m| self.is_default(m)).cloned().collect();
        self.part_of(hosts, hosts.levels.iter().map(of).collect())
    }

    /// Whether anything falls back so.
    fn falls_back(&self, to: &SubsetFallback) -> bool {
        let of_selectors = self.config.selectors.iter().filter_map(|s| s.fallback.as_ref());
        of_selectors.chain([&self.config.fallback]).any(|fallback| fallback == to)
    }
}

/// Members by locality.
fn counts(level: &PriorityLevel) -> BTreeMap<crate::cluster::Locality, usize> {
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
        let before = self.state.load();
        let mut subsets: FastMap<u64, Vec<Subset>> = FastMap::default();
        for (hash, parts) in self.divide(hosts) {
            let made = parts.into_iter().filter_map(|part| self.subset(&before, hosts, part)).collect();
            subsets.insert(hash, made);
        }
        let any = self.config.panic_mode_any || self.falls_back(&SubsetFallback::Any);
        let any = any.then(|| self.balancer(before.any.as_ref(), hosts)).flatten();
        let default = self.falls_back(&SubsetFallback::Default);
        let default =
            default.then(|| self.balancer(before.default.as_ref(), &self.default_set(hosts))).flatten();
        self.state.store(Arc::new(State { subsets, any, default }));
    }

    fn subsets(&self) -> Option<usize> {
        Some(self.state.load().subsets.values().map(Vec::len).sum())
    }
}
