//! Envoy's policies: turns, localities, retries, and the recorded choices of its hashes.

use super::super::testing::*;
use super::{counts, port};
use crate::cluster::EdsHealth::{Healthy, Unhealthy};
use crate::cluster::{BalanceConfig, Choice, HostConfig, HostSet, Locality, Policy};
use crate::retry::HostPredicate;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use xxhash_rust::xxh64::xxh64;

const USERS: [&[&str]; 17] = [
    &["alice"],
    &["bob"],
    &["carol"],
    &["dave"],
    &["erin"],
    &["frank"],
    &["grace"],
    &["heidi"],
    &["ivan"],
    &["judy"],
    &["1"],
    &["2"],
    &["3"],
    &[""],
    &["alice", "bob"],
    &["alice", "bob"],
    &["alice,bob"],
];

/// Hosts `a`, `b`, … with hash keys `host-a`, …, weights and health as given.
fn keyed(hosts: &[(&str, u32, crate::cluster::EdsHealth)]) -> HostSet {
    let config = |(i, (name, weight, health)): (usize, &(&str, u32, crate::cluster::EdsHealth))| {
        let metadata = serde_json::json!({"envoy.lb": {"hash_key": format!("host-{name}")}});
        let metadata = metadata.as_object().cloned().unwrap().into();
        HostConfig {
            health: *health,
            metadata,
            hostname: format!("name-{name}").into(),
            ..host(i as u16 + 1, *weight)
        }
    };
    HostSet::new(hosts.iter().enumerate().map(config).collect(), None)
}

fn choices(policy: Policy, hosts: &HostSet) -> String {
    let balancer = balancer(policy, hosts);
    let choose = |values: &&[&str]| {
        let hash = values.iter().fold(0, |seed, v| xxh64(v.as_bytes(), seed));
        let host = balancer.choose(&Choice { hash: Some(hash), ..request() }).unwrap();
        host.host.hostname.chars().last().unwrap()
    };
    USERS.iter().map(choose).collect()
}

/// Nothing told how even the tables of hashes are.
#[test]
fn tables_of_hashes_tell_their_sizes() {
    let registry = crate::metrics::Registry::new();
    let stats = std::sync::Arc::new(crate::cluster::ClusterStats::named(&registry, "c"));
    let hosts = keyed(&[("a", 1, Healthy), ("b", 1, Healthy)]);
    let shown = |scope: &str, names: &[&str]| -> Vec<u64> {
        names.iter().map(|name| registry.sum(scope, name)).collect()
    };
    let build = |policy| {
        let config = BalanceConfig { policy, ..BalanceConfig::default() };
        crate::balance::build(&config, &hosts, &stats).unwrap()
    };
    let names = ["size", "min_hashes_per_host", "max_hashes_per_host"];
    let _ring = build(ring(1024, 8 << 20, false, false));
    assert_eq!(shown("cluster.c.ring_hash_lb.", &names), [0, 0, 0], "it is not in force");
    stats.show_table();
    assert_eq!(shown("cluster.c.ring_hash_lb.", &names), [1024, 512, 512]);
    let _maglev = build(Policy::Maglev { table_size: 65537, use_hostname: false });
    stats.show_table();
    let names = ["min_entries_per_host", "max_entries_per_host"];
    assert_eq!(shown("cluster.c.maglev_lb.", &names), [32768, 32769]);
}

#[test]
fn hashes_choose_what_envoy_chose() {
    let abc = keyed(&[("a", 1, Healthy), ("b", 1, Healthy), ("c", 1, Healthy)]);
    let default = || ring(1024, 8 << 20, false, false);
    let maglev = || Policy::Maglev { table_size: 65537, use_hostname: false };
    assert_eq!(choices(default(), &abc), "acbccccacbbccaaaa");
    assert_eq!(choices(ring(1024, 8 << 20, true, false), &abc), "bcbbacccabbcccbbc");
    assert_eq!(choices(ring(16, 16, false, false), &abc), "bbababab bbabbabba".replace(' ', ""));
    assert_eq!(choices(maglev(), &abc), "abbbbbccbcbcabbbb");
    let weights = keyed(&[("a", 1, Healthy), ("b", 5, Healthy)]);
    assert_eq!(choices(default(), &weights), "babbbbbbbbbbbbbbb");
    let without_b = keyed(&[("a", 1, Healthy), ("b", 1, Unhealthy), ("c", 1, Healthy)]);
    assert_eq!(choices(default(), &without_b), "acaccccacaaacaaaa");

    // By hostname; the metadata key would go first.
    let config = |(name, port): (&str, u16)| HostConfig { hostname: name.into(), ..host(port, 1) };
    let named = [("name-a", 1), ("name-b", 2), ("name-c", 3)].map(config);
    let named = HostSet::new(named.into(), None);
    assert_eq!(choices(ring(1024, 8 << 20, false, true), &named), "caaacabab bcbacbba".replace(' ', ""));
}

#[test]
fn maglev_does_not_depend_on_the_order_of_hosts() {
    let abc = keyed(&[("a", 1, Healthy), ("b", 2, Healthy), ("c", 3, Healthy)]);
    let cba = keyed(&[("c", 3, Healthy), ("b", 2, Healthy), ("a", 1, Healthy)]);
    let small = Policy::Maglev { table_size: 7, use_hostname: false };
    assert_eq!(choices(small.clone(), &abc), choices(small, &cba));
}

#[test]
fn turns_are_exact_over_a_period() {
    let equal = weighted(&[1, 1, 1]);
    let rr = balancer(Policy::RoundRobin, &equal);
    assert_eq!(counts(&*rr, 9), BTreeMap::from([(1, 3), (2, 3), (3, 3)]));
    assert_eq!(counts(&*rr, 30), BTreeMap::from([(1, 10), (2, 10), (3, 10)]));

    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..50 {
        let weights: Vec<u32> = (0..random.usize(2..6)).map(|_| 1 << random.u32(0..5)).collect();
        let hosts = weighted(&weights);
        let period: u32 = weights.iter().sum();
        if weights.iter().all(|w| *w == weights[0]) {
            continue;
        }
        for policy in [Policy::RoundRobin, Policy::LeastRequest { choices: 2, full_scan: false, bias: 1.0 }] {
            let balancer = balancer(policy, &hosts);
            let counts = counts(&*balancer, period as usize * 10);
            for (weight, port) in weights.iter().zip(1..) {
                let got = counts.get(&port).copied().unwrap_or(0);
                assert!(got.abs_diff(*weight as usize * 10) <= 1, "{weights:?} {counts:?}");
            }
        }
    }
}

#[test]
fn every_worker_takes_its_own_turns() {
    let hosts = weighted(&[1, 1]);
    let rr = balancer(Policy::RoundRobin, &hosts);
    for worker in 0..WORKERS {
        let pick = || port(&rr.choose(&Choice { worker, ..request() }).unwrap());
        let first = pick();
        for other in (0..WORKERS).filter(|w| *w != worker) {
            rr.choose(&Choice { worker: other, ..request() });
        }
        assert_ne!(first, pick(), "another worker moved the turn of {worker}");
    }
}

#[test]
fn least_request_avoids_busy_hosts() {
    let hosts = weighted(&[1, 1]);
    let busy = hosts.iter().next().unwrap();
    busy.host.active_requests.store(3, Relaxed);
    let full = balancer(Policy::LeastRequest { choices: 2, full_scan: true, bias: 1.0 }, &hosts);
    assert_eq!(counts(&*full, 50), BTreeMap::from([(2, 50)]));
    // Two draws see both hosts half the time.
    let two = balancer(Policy::LeastRequest { choices: 2, full_scan: false, bias: 1.0 }, &hosts);
    let share = counts(&*two, 4000)[&2] as f64 / 4000.0;
    assert!((0.7..0.8).contains(&share), "{share}");
    // With weights the load divides the weight: 8 / 4 against 1.
    let hosts = weighted(&[8, 1]);
    hosts.iter().next().unwrap().host.active_requests.store(3, Relaxed);
    let edf = balancer(Policy::LeastRequest { choices: 2, full_scan: false, bias: 1.0 }, &hosts);
    let counts = counts(&*edf, 3000);
    assert!(counts[&1].abs_diff(2000) < 20, "{counts:?}");
}

#[test]
fn random_is_even_and_ignores_weights() {
    let hosts = weighted(&[1, 9]);
    let counts = counts(&*balancer(Policy::Random, &hosts), 4000);
    assert!(counts[&1].abs_diff(2000) < 200, "{counts:?}");
}

#[test]
fn a_missing_hash_is_random() {
    let hosts = weighted(&[1, 1, 1]);
    for policy in [ring(1024, 8 << 20, false, false), Policy::Maglev { table_size: 251, use_hostname: false }]
    {
        assert_eq!(counts(&*balancer(policy, &hosts), 60).len(), 3);
    }
}

fn localities(weights: &[(&str, u32, &[crate::cluster::EdsHealth])]) -> HostSet {
    let mut configs = Vec::new();
    for (zone, weight, members) in weights {
        for health in *members {
            let locality = Some(Locality { zone: (*zone).into(), ..Locality::default() }.into());
            let at = host(configs.len() as u16 + 1, 1);
            configs.push(HostConfig { locality, locality_weight: Some(*weight), health: *health, ..at });
        }
    }
    HostSet::new(configs, None)
}

fn by_locality(policy: Policy, hosts: &HostSet) -> std::sync::Arc<dyn super::Balancer> {
    configured(&BalanceConfig { policy, locality_weighted: true, ..BalanceConfig::default() }, hosts)
}

#[test]
fn localities_share_by_weight_and_health() {
    let hosts = localities(&[("z1", 9, &[Healthy]), ("z2", 1, &[Healthy])]);
    let plain = counts(&*by_locality(Policy::RoundRobin, &hosts), 100);
    assert!(plain[&1].abs_diff(90) <= 1, "{plain:?}");
    let hashed = counts(&*by_locality(ring(1024, 8 << 20, false, false), &hosts), 4000);
    assert!(hashed[&1].abs_diff(3600) < 200, "{hashed:?}");
    // Half of z1 healthy: 1.4 / 2 of its weight.
    let hosts = localities(&[("z1", 10, &[Healthy, Unhealthy]), ("z2", 7, &[Healthy])]);
    let counts = counts(&*by_locality(Policy::RoundRobin, &hosts), 100);
    assert!(counts[&1].abs_diff(50) <= 1, "{counts:?}");
}

#[test]
fn levels_and_panic_share_as_recorded() {
    let share = |levels: &[Vec<crate::cluster::EdsHealth>]| {
        let hosts = host_set(levels);
        counts(&*balancer(Policy::RoundRobin, &hosts), 4000)
    };
    assert_eq!(share(&[vec![Healthy], vec![Healthy]]), BTreeMap::from([(1, 4000)]));
    let half = share(&[vec![Healthy, Unhealthy], vec![Healthy]]);
    assert!(half[&1].abs_diff(2800) < 150, "{half:?}");
    let panic = share(&[vec![Healthy, Unhealthy, Unhealthy, Unhealthy, Unhealthy]]);
    assert_eq!(panic, (1..=5).map(|port| (port, 800)).collect());
    let working = share(&[vec![Healthy, Unhealthy, Unhealthy, Unhealthy, Unhealthy], vec![Healthy]]);
    assert!(working[&1].abs_diff(1120) < 150 && working.len() == 2, "{working:?}");
    let hosts = host_set(&[vec![Unhealthy]]);
    let config = BalanceConfig { fail_on_panic: true, ..BalanceConfig::default() };
    assert!(configured(&config, &hosts).choose(&request()).is_none());
}

#[test]
fn retries_refuse_hosts_and_move_on() {
    let canary = serde_json::json!({"envoy.lb": {"canary": true, "stage": "new"}})
        .as_object()
        .cloned()
        .unwrap()
        .into();
    let marked = HostConfig { metadata: canary, ..host(1, 1) };
    let hosts = HostSet::new(vec![marked, host(2, 1)], None);
    let all: Vec<_> = hosts.iter().cloned().collect();
    let rr = balancer(Policy::RoundRobin, &hosts);
    let tries = [tried(&all[0])];
    let stage = BTreeMap::from([("stage".to_owned(), serde_json::json!("new"))]);
    for predicate in
        [HostPredicate::PreviousHosts, HostPredicate::OmitCanaryHosts, HostPredicate::OmitHostMetadata(stage)]
    {
        let predicates = [predicate];
        for _ in 0..10 {
            let choice =
                Choice { attempt: 1, tried: &tries, predicates: &predicates, host_attempts: 3, ..request() };
            assert_eq!(port(&rr.choose(&choice).unwrap()), 2, "{predicates:?}");
        }
    }
    // After the reselections allowed, the last pick is used anyway.
    let tries = [tried(&all[0]), tried(&all[1])];
    let predicates = [HostPredicate::PreviousHosts];
    let choice = Choice { attempt: 2, tried: &tries, predicates: &predicates, host_attempts: 3, ..request() };
    assert!(rr.choose(&choice).is_some());
}

#[test]
fn previous_priorities_turn_a_retry_to_another_level() {
    let hosts = host_set(&[vec![Healthy], vec![Healthy]]);
    let all: Vec<_> = hosts.iter().cloned().collect();
    let rr = balancer(Policy::RoundRobin, &hosts);
    let tries = [tried(&all[0])];
    let choice = Choice { attempt: 1, tried: &tries, previous_priorities: Some(1), ..request() };
    assert_eq!(rr.choose(&choice).unwrap().priority, 1);
}

#[test]
fn slow_start_holds_new_hosts_back() {
    let old = weighted(&[1]);
    std::thread::sleep(Duration::from_millis(60));
    let hosts = HostSet::new(vec![host(1, 1), host(2, 1)], Some(&old));
    let config = BalanceConfig {
        slow_start: Some((Duration::from_millis(50), 1.0, 10.0)),
        ..BalanceConfig::default()
    };
    let window = BalanceConfig { slow_start: Some((Duration::from_secs(3600), 1.0, 10.0)), ..config.clone() };
    let aged = configured(&config, &old);
    assert_eq!(counts(&*aged, 10), BTreeMap::from([(1, 10)]));
    // Both hosts are new for an hour's window: equal again.
    let even = counts(&*configured(&window, &hosts), 100);
    assert!(even[&1].abs_diff(50) <= 2, "{even:?}");
}

/// Weights that endpoints report change the turns of all workers; endpoints that come later have the median.
#[test]
fn reported_weights_make_the_turns() {
    let reports = crate::cluster::LoadReports { blackout: Duration::ZERO, ..Default::default() };
    let policy = Policy::ClientSideWeighted(reports.clone().into());
    let hosts = weighted(&[7, 1, 1]);
    let balancer = balancer(policy, &hosts);
    let shares = |worker| {
        let mut counts = BTreeMap::new();
        for _ in 0..300 {
            let chosen = balancer.choose(&Choice { worker, ..request() }).unwrap();
            *counts.entry(port(&chosen)).or_insert(0) += 1;
        }
        counts.into_values().collect::<Vec<u32>>()
    };
    assert_eq!(shares(0), [100, 100, 100], "what is configured does not count");
    let now = std::time::Instant::now();
    for (member, cpu) in hosts.iter().zip(["0.1", "0.2"]) {
        let mut fields = crate::headers::Headers::new();
        let name = crate::headers::HeaderName::new("endpoint-load-metrics").unwrap();
        fields.append(&name, format!("TEXT cpu_utilization:{cpu},rps_fractional:100").as_bytes());
        assert!(reports.take(&fields, &member.host, now));
    }
    balancer.reweigh(&hosts, now + Duration::from_millis(5));
    for worker in 0..WORKERS {
        for (share, expected) in shares(worker).into_iter().zip([133, 67, 100]) {
            assert!(share.abs_diff(expected) <= 2, "{share} of {expected}");
        }
    }
    let more = HostSet::new((1..=4).map(|p| host(p, 1)).collect(), Some(&hosts));
    balancer.update(&more);
    assert!(shares(0)[3].abs_diff(75) <= 2, "it has the median");
}

/// As Envoy counts it, unless panic is turned off.
#[test]
fn a_cluster_without_endpoints_panics() {
    let registry = crate::metrics::Registry::new();
    let stats = std::sync::Arc::new(crate::cluster::ClusterStats::named(&registry, "c"));
    let panics = |config: &BalanceConfig, hosts: &HostSet| {
        let before = stats.lb_healthy_panic().get();
        let balancer = super::super::build_for(config, hosts, &stats, WORKERS).unwrap();
        assert!(balancer.choose(&request()).is_none());
        stats.lb_healthy_panic().get() - before
    };
    let none = HostSet::default();
    for policy in [Policy::RoundRobin, Policy::Random, ring(1024, 8 << 20, false, false)] {
        let config = BalanceConfig { policy, ..BalanceConfig::default() };
        assert_eq!(panics(&config, &none), 1);
        assert_eq!(panics(&BalanceConfig { fail_on_panic: true, ..config.clone() }, &none), 1);
        assert_eq!(panics(&BalanceConfig { panic_threshold: 0.0, ..config }, &none), 0);
    }
}
