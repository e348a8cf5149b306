//! How load spreads over priority levels, and when a level panics (source/common/upstream/
//! load_balancer_impl.cc, `recalculatePerPriorityState` and what follows it).

use super::BalanceConfig;
use crate::cluster::{HostSet, PriorityLevel, TriedHost};

/// Which endpoints of a level take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// The healthy ones.
    Healthy,
    /// The degraded ones.
    Degraded,
    /// All, since the level panics.
    All,
}

/// Shares of the load in percent, level by level.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Loads {
    healthy: Vec<u32>,
    degraded: Vec<u32>,
    panic: Vec<bool>,
    /// Capacity in percent of what each level is meant to carry.
    capacity: Vec<Capacity>,
    /// The one answer there is, when there is but one.
    only: Option<(usize, Class)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Capacity {
    healthy: u32,
    degraded: u32,
}

impl Loads {
    /// The shares for these endpoints.
    pub(super) fn new(hosts: &HostSet, config: &BalanceConfig) -> Loads {
        let capacity: Vec<Capacity> = hosts
            .levels
            .iter()
            .map(|l| Capacity::of(l, l.overprovisioning.unwrap_or(config.overprovisioning)))
            .collect();
        let mut loads = Loads::spread(capacity);
        loads.panic = vec![false; hosts.levels.len()];
        if total(&loads.capacity) < 100 {
            for (panic, level) in loads.panic.iter_mut().zip(&hosts.levels) {
                *panic = panics(level, config.panic_threshold);
            }
            if !loads.panic.is_empty() && loads.panic.iter().all(|p| *p) {
                loads.spread_by_size(hosts);
            }
        }
        loads.settle();
        if hosts.total() == 0 && config.panic_threshold > 0.0 {
            // Nobody is there to take what the first level is given, and it panics over that.
            loads.only = Some((0, Class::All));
        }
        loads
    }

    /// Load by capacity: healthy capacity from the first level down, then degraded capacity.
    fn spread(capacity: Vec<Capacity>) -> Loads {
        let (mut healthy, mut degraded) = (vec![0; capacity.len()], vec![0; capacity.len()]);
        let total = total(&capacity);
        if total > 0 {
            let mut left = 100;
            let mut take = |load: &mut u32, capacity: u32| {
                *load = left.min((capacity * 100).checked_div(total).unwrap_or(0));
                left -= *load;
            };
            healthy.iter_mut().zip(&capacity).for_each(|(load, c)| take(load, c.healthy));
            degraded.iter_mut().zip(&capacity).for_each(|(load, c)| take(load, c.degraded));
            // What rounding left over goes to the first level that has anything.
            if let Some(first) = capacity.iter().position(|c| c.healthy > 0) {
                healthy[first] += left;
            } else if let Some(first) = capacity.iter().position(|c| c.degraded > 0) {
                degraded[first] += left;
            }
        }
        let mut loads = Loads { panic: vec![false; capacity.len()], healthy, degraded, capacity, only: None };
        loads.settle();
        loads
    }

    /// Every level panics: load by the number of endpoints.
    fn spread_by_size(&mut self, hosts: &HostSet) {
        let total = hosts.total() as u64;
        self.degraded.fill(0);
        self.healthy.fill(0);
        if total == 0 {
            return;
        }
        let mut left = 100;
        for (load, level) in self.healthy.iter_mut().zip(&hosts.levels) {
            *load = (level.members.len() as u64 * 100 / total) as u32;
            left -= *load;
        }
        if let Some(first) = self.healthy.iter_mut().find(|l| **l > 0) {
            *first += left;
        }
    }

    fn settle(&mut self) {
        self.only = None;
        if let Some(level) = self.healthy.iter().position(|l| *l == 100) {
            self.only = Some((level, self.class(level, Class::Healthy)));
        } else if let Some(level) = self.degraded.iter().position(|l| *l == 100) {
            self.only = Some((level, self.class(level, Class::Degraded)));
        }
    }

    fn class(&self, level: usize, class: Class) -> Class {
        if self.panics(level) { Class::All } else { class }
    }

    /// Whether a level sends to all its endpoints.
    pub(super) fn panics(&self, level: usize) -> bool {
        self.panic.get(level).copied().unwrap_or(false)
    }

    /// The level for a request with this random number or hash; `None` when no level has load.
    #[inline]
    pub(super) fn choose(&self, random: u64) -> Option<(usize, Class)> {
        if self.only.is_some() {
            return self.only;
        }
        let at = (random % 100 + 1) as u32;
        let mut sum = 0;
        for (class, loads) in [(Class::Healthy, &self.healthy), (Class::Degraded, &self.degraded)] {
            for (level, load) in loads.iter().enumerate() {
                sum += load;
                if at <= sum {
                    return Some((level, self.class(level, class)));
                }
            }
        }
        None
    }

    /// The shares once the levels of tried hosts are left out: Envoy's `previous_priorities`, which looks
    /// anew after every `frequency` attempts. `None` leaves the shares as they are.
    pub(super) fn without_tried(&self, tried: &[TriedHost], frequency: u32) -> Option<Loads> {
        let frequency = frequency.max(1) as usize;
        let mut excluded = vec![false; self.capacity.len()];
        let mut adjusted = None;
        let mut since = 0;
        for (i, _) in tried.iter().enumerate() {
            if !(i + 1 - since).is_multiple_of(frequency) {
                continue;
            }
            for earlier in &tried[since..=i] {
                if let Some(level) = excluded.get_mut(earlier.member.priority as usize) {
                    *level = true;
                }
            }
            let mut capacity = self.masked(&excluded);
            if total(&capacity) == 0 {
                // Every level was tried: all of them count again.
                excluded.fill(false);
                since = i + 1;
                capacity = self.masked(&excluded);
            }
            adjusted = (total(&capacity) > 0).then(|| Loads::spread(capacity));
        }
        adjusted.map(|mut loads| {
            loads.panic.clone_from(&self.panic);
            loads.settle();
            loads
        })
    }

    fn masked(&self, excluded: &[bool]) -> Vec<Capacity> {
        let of = |(c, out): (&Capacity, &bool)| if *out { Capacity::default() } else { *c };
        self.capacity.iter().zip(excluded).map(of).collect()
    }
}

impl Capacity {
    fn of(level: &PriorityLevel, overprovisioning: u32) -> Capacity {
        let count = level.members.len().saturating_sub(level.excluded) as u64;
        let share = |hosts: usize| match count {
            0 => 0,
            count => (u64::from(overprovisioning) * hosts as u64 / count).min(100) as u32,
        };
        Capacity { healthy: share(level.healthy.len()), degraded: share(level.degraded.len()) }
    }
}

fn total(capacity: &[Capacity]) -> u32 {
    capacity.iter().map(|c| c.healthy + c.degraded).sum::<u32>().min(100)
}

/// Whether so few endpoints of a level can be used that all of them are.
pub(super) fn panics(level: &PriorityLevel, threshold: f64) -> bool {
    let count = level.members.len().saturating_sub(level.excluded);
    let usable = level.healthy.len() + level.degraded.len();
    let percent = if count == 0 { 0.0 } else { 100.0 * usable as f64 / count as f64 };
    percent < threshold.min(100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::testing::{host_set, tried};
    use crate::cluster::EdsHealth::{self, Degraded, Draining, Healthy, Unhealthy};

    fn level(healthy: usize, degraded: usize, unhealthy: usize) -> Vec<EdsHealth> {
        [vec![Healthy; healthy], vec![Degraded; degraded], vec![Unhealthy; unhealthy]].concat()
    }

    fn loads(levels: &[Vec<EdsHealth>]) -> Loads {
        Loads::new(&host_set(levels), &BalanceConfig::default())
    }

    #[test]
    fn load_follows_healthy_capacity() {
        for (levels, healthy) in [
            (vec![level(1, 0, 0), level(1, 0, 0)], vec![100, 0]),
            (vec![level(1, 0, 1), level(1, 0, 0)], vec![70, 30]),
            (vec![level(2, 0, 3), level(2, 0, 3)], vec![56, 44]),
            (vec![level(1, 0, 4), level(1, 0, 0)], vec![28, 72]),
            (vec![level(3, 0, 1), level(1, 0, 0)], vec![100, 0]),
            (vec![level(0, 1, 0), level(1, 0, 0)], vec![0, 100]),
            (vec![vec![], level(1, 0, 0)], vec![0, 100]),
        ] {
            assert_eq!(loads(&levels).healthy, healthy, "{levels:?}");
        }
    }

    #[test]
    fn overprovisioning_can_be_turned_off() {
        let set = host_set(&[level(1, 0, 1), level(1, 0, 0)]);
        let config = BalanceConfig { overprovisioning: 100, ..BalanceConfig::default() };
        // What discovery says counts more.
        let mut said = host_set(&[level(5, 0, 5)]);
        said.levels.iter_mut().for_each(|level| level.overprovisioning = Some(200));
        assert_eq!(Loads::new(&said, &config).capacity[0].healthy, 100);
        assert_eq!(Loads::new(&set, &config).healthy, [50, 50]);
    }

    #[test]
    fn degraded_capacity_helps_before_panic() {
        let loads = loads(&[level(1, 1, 2)]);
        assert_eq!((&loads.healthy, &loads.degraded), (&vec![50], &vec![50]));
        assert_eq!(
            (loads.choose(49), loads.choose(50)),
            (Some((0, Class::Healthy)), Some((0, Class::Degraded)))
        );
    }

    #[test]
    fn a_level_panics_below_the_threshold_unless_others_carry_the_load() {
        assert_eq!(loads(&[level(1, 0, 4)]).choose(0), Some((0, Class::All)));
        assert_eq!(loads(&[level(1, 0, 4), level(1, 0, 0)]).choose(0), Some((0, Class::Healthy)));
        let off = BalanceConfig { panic_threshold: 0.0, ..BalanceConfig::default() };
        assert_eq!(Loads::new(&host_set(&[level(0, 0, 2)]), &off).choose(0), None);
        assert_eq!(Loads::new(&host_set(&[]), &off).choose(0), None);
        // They panicked in silence.
        assert_eq!(loads(&[]).choose(0), Some((0, Class::All)));
        assert_eq!(loads(&[vec![], vec![]]).choose(99), Some((0, Class::All)));
    }

    #[test]
    fn levels_that_all_panic_share_by_size() {
        let loads = loads(&[level(0, 0, 3), level(0, 0, 1)]);
        assert_eq!(loads.healthy, [75, 25]);
        assert_eq!(loads.choose(80), Some((1, Class::All)));
    }

    #[test]
    fn draining_hosts_do_not_count() {
        let set = [level(1, 0, 0), vec![Draining; 9]].concat();
        assert_eq!(loads(&[set]).choose(99), Some((0, Class::Healthy)));
    }

    #[test]
    fn tried_levels_are_left_out_and_come_back() {
        let set = host_set(&[level(1, 0, 0), level(1, 0, 0)]);
        let all: Vec<_> = set.iter().cloned().collect();
        let loads = Loads::new(&set, &BalanceConfig::default());
        let chosen = |hosts: &[usize], frequency| {
            let tried: Vec<TriedHost> = hosts.iter().map(|i| tried(&all[*i])).collect();
            loads.without_tried(&tried, frequency).as_ref().unwrap_or(&loads).choose(7).unwrap().0
        };
        assert_eq!(chosen(&[0], 1), 1);
        assert_eq!(chosen(&[0], 2), 0);
        assert_eq!(chosen(&[0, 0], 2), 1);
        assert_eq!(chosen(&[0, 1], 1), 0);
        assert_eq!(chosen(&[0, 1, 0], 1), 1);
    }
}
