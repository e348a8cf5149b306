//! Zone-aware routing as a balancer does it.

use super::*;
use crate::balance::BalanceConfig;
use crate::cluster::{Cluster, ClusterCell, ClusterConfig, Clusters, Locality, ZoneAware};
use crate::metrics::Registry;

/// Endpoints of a zone from a port on: so many well, so many ill.
fn zone(name: &str, from: u16, well: u16, ill: u16) -> Vec<HostConfig> {
    let locality = Some(Arc::new(Locality { zone: name.into(), ..Locality::default() }));
    let endpoint = |nth: u16| HostConfig {
        locality: locality.clone(),
        locality_weight: Some(1),
        health: if nth < well { EdsHealth::Healthy } else { EdsHealth::Unhealthy },
        ..host(from + nth, 1)
    };
    (0..well + ill).map(endpoint).collect()
}

/// Puts a local cluster of these proxies of the zones a and b in force.
fn put(cell: &ClusterCell, a: (u16, u16), b: (u16, u16)) {
    let proxies = [zone("a", 100, a.0, a.1), zone("b", 200, b.0, b.1)].concat();
    let before = cell.load();
    let config = ClusterConfig::named("local");
    cell.swap(Some(Cluster::new(config, proxies, before.as_deref(), &Registry::new()).unwrap()));
}

/// For a proxy in the zone b.
fn config(local: &Arc<ClusterCell>) -> BalanceConfig {
    let zone = ZoneAware {
        local: local.clone(),
        own: Some(Locality { zone: "b".into(), ..Locality::default() }),
        enabled: 100,
        min_size: 6,
        force_own: None,
        by_weight: false,
    };
    BalanceConfig { zone: Some(Arc::new(zone)), ..BalanceConfig::default() }
}

/// Three endpoints of each zone, those of b from port 11 on.
fn endpoints() -> HostSet {
    HostSet::new([zone("a", 1, 3, 0), zone("b", 11, 3, 0)].concat(), None)
}

/// Percent of many picks that are of the zone b.
fn share_of_own(balancer: &dyn Balancer) -> usize {
    let counts = counts(balancer, 3000);
    assert!(counts.values().all(|count| *count > 0));
    counts.iter().filter(|(port, _)| **port > 10).map(|(_, count)| count).sum::<usize>() / 30
}

#[test]
fn requests_stay_in_their_zone_and_shares_follow_the_proxies() {
    let local = Clusters::default().cell("local");
    put(&local, (1, 0), (1, 0));
    let hosts = endpoints();
    let balancer = configured(&config(&local), &hosts);
    assert_eq!(share_of_own(&*balancer), 100);
    // Three quarters of the proxies share half of the endpoints: two thirds of their requests stay.
    put(&local, (1, 0), (3, 0));
    assert_eq!(share_of_own(&*balancer), 100, "nobody has looked");
    balancer.look_at_proxies(&hosts);
    assert!(share_of_own(&*balancer).abs_diff(67) <= 4);
    local.load().unwrap().update_hosts([zone("a", 100, 3, 0), zone("b", 200, 1, 0)].concat());
    balancer.look_at_proxies(&hosts);
    assert_eq!(share_of_own(&*balancer), 100);
    local.swap(None);
    balancer.look_at_proxies(&hosts);
    assert!(share_of_own(&*balancer).abs_diff(50) <= 4, "nothing is known of the proxies");
}

#[test]
fn weights_of_localities_leave_no_room_for_zones() {
    let local = Clusters::default().cell("local");
    put(&local, (1, 0), (1, 0));
    let hosts = endpoints();
    let config = BalanceConfig { locality_weighted: true, ..config(&local) };
    let balancer = configured(&config, &hosts);
    assert!(share_of_own(&*balancer).abs_diff(50) <= 1);
    put(&local, (1, 0), (9, 0));
    balancer.look_at_proxies(&hosts);
    assert!(share_of_own(&*balancer).abs_diff(50) <= 1);
}

#[test]
fn with_an_ill_local_cluster_requests_go_anywhere_or_fail() {
    let local = Clusters::default().cell("local");
    put(&local, (1, 3), (1, 3));
    let (hosts, anywhere) = (endpoints(), config(&local));
    assert!(share_of_own(&*configured(&anywhere, &hosts)).abs_diff(50) <= 1);
    let failing = configured(&BalanceConfig { fail_on_panic: true, ..anywhere }, &hosts);
    assert!(failing.choose(&request()).is_none());
    put(&local, (1, 0), (1, 0));
    failing.look_at_proxies(&hosts);
    assert_eq!(share_of_own(&*failing), 100);
}
