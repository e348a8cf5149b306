//! Zone-aware routing: requests stay in this proxy's own locality as far as that burdens no endpoint more than others
//! (source/extensions/load_balancing_policies/common/load_balancer_impl.cc, `ZoneAwareLoadBalancerBase`).

use super::priority::panics;
use super::worker::derive;
use crate::cluster::{ClusterStats, HostSet, Locality, Member, Members, PriorityLevel, ZoneAware};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Shares of localities are counted in parts of so many.
const WHOLE: u64 = 10_000;

/// How requests of the first level spread over its localities.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Zones {
    /// Of this proxy first, if there are endpoints there, then the others in order.
    pub(super) localities: Vec<Locality>,
    spread: Spread,
    /// Too many of the proxies in the local cluster are ill: what is known of their shares is worth nothing.
    unknown: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Spread {
    /// All of them stay.
    Stay,
    /// So many stay; the others go where there is capacity left, which is summed up from the first locality on.
    Share { stay: u64, left: Vec<u64> },
}

/// Where one request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To any locality.
    Anywhere,
    /// To this one.
    To(usize),
    /// To none.
    Nowhere,
}

impl Zones {
    /// For endpoints of a first level, and the proxies of the local cluster; `None` where requests spread without
    /// regard to localities.
    pub(super) fn new(
        config: &ZoneAware,
        level: &PriorityLevel,
        proxies: &HostSet,
        panic_threshold: f64,
        stats: &ClusterStats,
    ) -> Option<Zones> {
        stats.lb_recalculate_zone_structures().inc();
        let proxies = proxies.levels.first()?;
        let (localities, is_own) = ordered(&level.members, config);
        let (of_proxies, among_them) = ordered(&proxies.members, config);
        if localities.len() < 2 || of_proxies.len() < 2 {
            return None;
        }
        if !among_them {
            stats.lb_local_cluster_not_ok().inc();
            return None;
        }
        if (level.healthy.len() as u64) < config.min_size {
            stats.lb_zone_cluster_too_small().inc();
            return None;
        }
        let size = |member: &Member| if config.by_weight { u64::from(member.weight) } else { 1 };
        let (ours, theirs) = (Sizes::of(&proxies.healthy, size), Sizes::of(&level.healthy, size));
        let shares: Vec<(u64, u64)> = localities
            .iter()
            .map(|locality| match theirs.share(locality) {
                0 => (0, 0),
                share => (ours.share(locality), share),
            })
            .collect();
        let spread = spread(config, level, &localities, is_own, &shares);
        Some(Zones { localities, spread, unknown: panics(proxies, panic_threshold) })
    }

    /// Where a request with this random number goes.
    pub(super) fn choose(&self, config: &ZoneAware, fails: bool, random: u64, stats: &ClusterStats) -> Way {
        if derive(random, 1) % 100 >= u64::from(config.enabled) {
            return Way::Anywhere;
        }
        if self.unknown {
            stats.lb_local_cluster_not_ok().inc();
            return if fails { Way::Nowhere } else { Way::Anywhere };
        }
        let (stay, left) = match &self.spread {
            Spread::Stay => {
                stats.lb_zone_routing_all_directly().inc();
                return Way::To(0);
            }
            Spread::Share { stay, left } => (*stay, left),
        };
        if derive(random, 2) % WHOLE < stay {
            stats.lb_zone_routing_sampled().inc();
            return Way::To(0);
        }
        stats.lb_zone_routing_cross_zone().inc();
        let random = derive(random, 3);
        match left.last().copied().unwrap_or(0) {
            0 => {
                stats.lb_zone_no_capacity_left().inc();
                Way::To((random % left.len().max(1) as u64) as usize)
            }
            all => Way::To(left.partition_point(|sum| *sum <= random % all)),
        }
    }
}

fn spread(
    config: &ZoneAware,
    level: &PriorityLevel,
    localities: &[Locality],
    is_own: bool,
    shares: &[(u64, u64)],
) -> Spread {
    let own = localities.first().filter(|_| is_own);
    let (ours, theirs) = own.and(shares.first()).copied().unwrap_or_default();
    let is_here = |member: &&Arc<Member>| own == Some(member.locality());
    let forced = config
        .force_own
        .is_some_and(|least| own.is_some() && level.healthy.iter().filter(is_here).count() >= least as usize);
    if forced || theirs > 0 && theirs >= ours {
        return Spread::Stay;
    }
    let mut sum = 0;
    let left = shares.iter().enumerate().map(|(index, (ours, theirs))| {
        if !(index == 0 && is_own) {
            sum += theirs.saturating_sub(*ours);
        }
        sum
    });
    let left = left.collect();
    Spread::Share { stay: (theirs * WHOLE).checked_div(ours).unwrap_or(0), left }
}

/// The localities of members, this proxy's own first; and whether it is among them.
fn ordered(members: &Members, config: &ZoneAware) -> (Vec<Locality>, bool) {
    let mut all: Vec<Locality> = members.iter().map(|member| member.locality().clone()).collect();
    all.sort();
    all.dedup();
    let own = config.own.as_ref().and_then(|own| all.iter().position(|locality| locality == own));
    if let Some(own) = own {
        let own = all.remove(own);
        all.insert(0, own);
    }
    (all, own.is_some())
}

/// How much each locality has of all members.
struct Sizes<'m> {
    of: BTreeMap<&'m Locality, u64>,
    all: u64,
}

impl<'m> Sizes<'m> {
    fn of(members: &'m Members, size: impl Fn(&Member) -> u64) -> Sizes<'m> {
        let mut sizes = Sizes { of: BTreeMap::new(), all: 0 };
        for member in members.iter() {
            *sizes.of.entry(member.locality()).or_default() += size(member);
            sizes.all += size(member);
        }
        sizes
    }

    fn share(&self, locality: &Locality) -> u64 {
        let own = self.of.get(locality).copied().unwrap_or(0);
        (WHOLE * own).checked_div(self.all).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::{Clusters, EdsHealth, HostConfig};
    use crate::metrics::Registry;

    fn place(zone: &str) -> Locality {
        Locality { zone: zone.into(), ..Locality::default() }
    }

    /// Members by zone: so many well, so many ill.
    fn set(zones: &[(&str, usize, usize)]) -> HostSet {
        let mut hosts = Vec::new();
        for (zone, well, ill) in zones {
            for nth in 0..well + ill {
                let health = if nth < *well { EdsHealth::Healthy } else { EdsHealth::Unhealthy };
                let at = crate::balance::testing::host(1 + hosts.len() as u16, 1);
                hosts.push(HostConfig { locality: Some(Arc::new(place(zone))), health, ..at });
            }
        }
        HostSet::new(hosts, None)
    }

    fn config() -> ZoneAware {
        ZoneAware {
            local: Clusters::default().cell("local"),
            own: Some(place("b")),
            enabled: 100,
            min_size: 6,
            force_own: None,
            by_weight: false,
        }
    }

    fn stats() -> Arc<ClusterStats> {
        Arc::new(ClusterStats::named(&Registry::new(), "c"))
    }

    fn zones(
        config: &ZoneAware,
        endpoints: &[(&str, usize, usize)],
        proxies: &[(&str, usize, usize)],
    ) -> Option<Zones> {
        Zones::new(config, &set(endpoints).levels[0], &set(proxies), 50.0, &stats())
    }

    #[test]
    fn all_stay_where_the_zone_has_its_share_of_endpoints() {
        let even = zones(&config(), &[("a", 3, 0), ("b", 3, 0)], &[("a", 1, 0), ("b", 1, 0)]).unwrap();
        assert_eq!((&even.spread, &even.localities[0]), (&Spread::Stay, &place("b")));
        let more = zones(&config(), &[("a", 2, 0), ("b", 4, 0)], &[("a", 1, 0), ("b", 1, 0)]).unwrap();
        assert_eq!(more.spread, Spread::Stay);
    }

    /// The example of Envoy's source.
    #[test]
    fn what_the_zone_can_not_take_goes_where_capacity_is_left() {
        let endpoints = [("b", 25, 0), ("c", 50, 0), ("d", 25, 0)];
        let proxies = [("b", 4, 0), ("c", 4, 0), ("d", 2, 0)];
        let shared = zones(&config(), &endpoints, &proxies).unwrap();
        assert_eq!(shared.spread, Spread::Share { stay: 6250, left: vec![0, 1000, 1500] });
        let stats = stats();
        let mut counts = [0; 3];
        for _ in 0..20_000 {
            match shared.choose(&config(), false, fastrand::u64(..), &stats) {
                Way::To(at) => counts[at] += 1,
                other => assert_eq!(other, Way::Anywhere),
            }
        }
        for (count, share) in counts.iter().zip([0.625, 0.25, 0.125]) {
            assert!((f64::from(*count) / 20_000.0 - share).abs() < 0.02, "{counts:?}");
        }
        let routed = stats.lb_zone_routing_sampled().get() + stats.lb_zone_routing_cross_zone().get();
        assert_eq!(routed, 20_000);
    }

    #[test]
    fn a_zone_without_endpoints_sends_everything_elsewhere() {
        let endpoints = [("a", 4, 0), ("c", 4, 0)];
        let away = zones(&config(), &endpoints, &[("a", 1, 0), ("b", 1, 0)]).unwrap();
        // The proxies of zone a use half of all, which is what it has.
        assert_eq!(away.spread, Spread::Share { stay: 0, left: vec![0, 5000] });
        assert_eq!(away.choose(&config(), false, 7, &stats()), Way::To(1));
        let ill = zones(&config(), &[("a", 4, 0), ("b", 0, 4), ("c", 4, 0)], &[("a", 1, 0), ("b", 1, 0)]);
        assert_eq!(ill.unwrap().spread, Spread::Share { stay: 0, left: vec![0, 0, 5000] });
    }

    #[test]
    fn few_endpoints_or_zones_and_unknown_proxies_leave_it_alone() {
        let both = [("a", 1, 0), ("b", 1, 0)];
        let enough = [("a", 3, 0), ("b", 3, 0)];
        assert!(zones(&config(), &[("a", 2, 0), ("b", 3, 0)], &both).is_none(), "too small");
        assert!(zones(&ZoneAware { min_size: 1, ..config() }, &[("a", 2, 0), ("b", 3, 0)], &both).is_some());
        assert!(zones(&config(), &[("b", 6, 0)], &both).is_none());
        assert!(zones(&config(), &enough, &[("b", 2, 0)]).is_none());
        assert!(zones(&config(), &enough, &[("a", 1, 0), ("c", 1, 0)]).is_none(), "it is not among them");
        assert!(zones(&ZoneAware { own: None, ..config() }, &enough, &both).is_none());
        let ill = zones(&config(), &enough, &[("a", 1, 3), ("b", 1, 3)]).unwrap();
        let stats = stats();
        assert_eq!(ill.choose(&config(), false, 1, &stats), Way::Anywhere);
        assert_eq!(ill.choose(&config(), true, 1, &stats), Way::Nowhere);
        assert_eq!(stats.lb_local_cluster_not_ok().get(), 2);
        let off = ZoneAware { enabled: 0, ..config() };
        assert_eq!(zones(&off, &enough, &both).unwrap().choose(&off, false, 1, &stats), Way::Anywhere);
    }

    #[test]
    fn a_zone_can_be_forced_and_weights_can_count() {
        let (few, proxies) = ([("a", 5, 0), ("b", 1, 0)], [("a", 1, 0), ("b", 1, 0)]);
        assert!(matches!(zones(&config(), &few, &proxies).unwrap().spread, Spread::Share { .. }));
        let forced = |least| ZoneAware { force_own: Some(least), ..config() };
        assert_eq!(zones(&forced(1), &few, &proxies).unwrap().spread, Spread::Stay);
        assert!(matches!(zones(&forced(2), &few, &proxies).unwrap().spread, Spread::Share { .. }));
        let mut heavy = set(&few);
        let mut members = heavy.levels[0].members.to_vec();
        let own = Arc::make_mut(members.last_mut().unwrap());
        own.weight = 5;
        (heavy.levels[0].members, heavy.levels[0].healthy) = (members.clone().into(), members.into());
        let weighed = ZoneAware { by_weight: true, ..config() };
        let zones = Zones::new(&weighed, &heavy.levels[0], &set(&proxies), 50.0, &stats());
        assert_eq!(zones.unwrap().spread, Spread::Stay);
    }
}
