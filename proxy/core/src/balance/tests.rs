//! What holds for every balancer, and the choices recorded of Envoy.
#![allow(clippy::unwrap_used, clippy::panic)]

mod apisix;
mod envoy;
mod subset;
mod zones;

use super::testing::*;
use crate::cluster::{
    Balancer, Choice, EdsHealth, Health, HostConfig, HostSet, Member, Outcome, Policy, TriedHost,
};
use crate::retry::HostPredicate;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Ports chosen over `n` requests of one worker.
fn counts(balancer: &dyn Balancer, n: usize) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..n {
        let host = balancer.choose(&request()).unwrap();
        *counts.entry(port(&host)).or_default() += 1;
    }
    counts
}

fn port(member: &Member) -> u16 {
    member.host.label.rsplit(':').next().unwrap().parse().unwrap()
}

#[test]
fn no_hosts_give_no_choice() {
    let none = HostSet::default();
    for policy in policies() {
        let balancer = balancer(policy.clone(), &none);
        assert!(balancer.choose(&request()).is_none(), "{policy:?}");
    }
}

/// Random sets of hosts and requests: a host that is down, does not count or was tried is never chosen
/// while another may be.
#[test]
fn no_balancer_takes_a_host_it_must_not() {
    use EdsHealth::{Degraded, Draining, Healthy, Timeout, Unhealthy};
    let mut random = fastrand::Rng::with_seed(7);
    let mut chosen = 0;
    for round in 0..300 {
        let level = |random: &mut fastrand::Rng| -> Vec<EdsHealth> {
            let kinds = [Healthy, Healthy, Healthy, Degraded, Unhealthy, Timeout, Draining];
            (0..random.usize(0..5)).map(|_| kinds[random.usize(..kinds.len())]).collect()
        };
        let hosts = host_set(&[level(&mut random), level(&mut random)]);
        let usable = |h: &Arc<Member>| matches!(h.health(), Health::Healthy | Health::Degraded);
        let tries: Vec<TriedHost> = hosts.iter().filter(|_| random.bool()).map(tried).collect();
        for policy in policies() {
            // Without panic: with it, Envoy sends to hosts that are down on purpose.
            let config = super::BalanceConfig {
                policy: policy.clone(),
                panic_threshold: 0.0,
                ..super::BalanceConfig::default()
            };
            let balancer = configured(&config, &hosts);
            let choice = Choice {
                attempt: tries.len() as u32,
                tried: &tries,
                predicates: &[HostPredicate::PreviousHosts],
                host_attempts: 2000,
                hash: random.bool().then(|| random.u64(..)),
                worker: random.usize(..WORKERS),
                ..request()
            };
            let Some(host) = balancer.choose(&choice) else { continue };
            chosen += 1;
            let apisix = format!("{policy:?}").starts_with("Apisix");
            let all_down = apisix && !hosts.iter().any(usable);
            assert!(
                usable(&host) || all_down || hosts.total() == 1,
                "{round} {policy:?}: {:?}",
                host.health()
            );
            // The random number of Envoy's levels is drawn anew for each reselection, a hash is not: a level
            // may have no host left for it.
            let level_has_other = hosts.levels[host.priority as usize]
                .healthy
                .iter()
                .any(|h| !tries.iter().any(|t| t.member.host.id == h.host.id));
            if host.health() == Health::Healthy && level_has_other && hosts.total() > 1 {
                assert!(!tries.iter().any(|t| t.member.host.id == host.host.id), "{round} {policy:?}");
            }
        }
    }
    assert!(chosen > 1000, "{chosen}");
}

#[test]
fn changed_health_is_followed_by_every_policy() {
    for policy in policies() {
        let before = weighted(&[1, 1, 1]);
        let balancer = balancer(policy.clone(), &before);
        let down = before.iter().nth(1).unwrap().clone();
        down.host.set_reason(crate::cluster::Reasons::EJECTED, true);
        let after = before.refreshed();
        balancer.update(&after);
        for _ in 0..200 {
            let host = balancer.choose(&request()).unwrap();
            assert_ne!(host.host.id, down.host.id, "{policy:?}");
        }
        down.host.set_reason(crate::cluster::Reasons::EJECTED, false);
        let again = after.refreshed();
        balancer.update(&again);
        let back = (0..2000).any(|_| balancer.choose(&request()).unwrap().host.id == down.host.id);
        assert!(back, "{policy:?}");
    }
}

/// A change of one level's health leaves the turns of the other as they stand: what was prepared for it is kept.
#[test]
fn a_flip_touches_its_own_level_alone() {
    let level = |priority: u32, weights: [u32; 3]| {
        weights.into_iter().map(move |w| (priority, w)).collect::<Vec<_>>()
    };
    for (policy, weights) in
        [(Policy::RoundRobin, [1; 3]), (Policy::RoundRobin, [1, 1, 4]), (Policy::ApisixRoundRobin, [1; 3])]
    {
        let all = [level(0, weights), level(1, [1; 3])].concat();
        let configs = all
            .iter()
            .zip(1..)
            .map(|((priority, w), port)| HostConfig { priority: *priority, ..host(port, *w) });
        let hosts = HostSet::new(configs.collect(), None);
        // Workers begin anywhere, so one balancer tells the order of turns to come.
        let period = weights.iter().sum::<u32>() as usize;
        let balancer = balancer(policy.clone(), &hosts);
        let next = || port(&balancer.choose(&request()).unwrap());
        let order: Vec<u16> = (0..period).map(|_| next()).collect();
        for turn in 0..4 * period {
            let spare = hosts.levels[1].members[turn % 3].clone();
            spare.host.set_reason(crate::cluster::Reasons::EJECTED, turn % 2 == 0);
            balancer.update(&hosts.refreshed());
            assert_eq!(next(), order[turn % period], "{policy:?}, turn {turn}");
        }
    }
}

/// Four threads choose while a fifth changes the endpoints; hashes keep to one host on every worker.
#[test]
fn workers_agree_on_hashes_and_survive_changes() {
    for policy in policies() {
        let hosts = weighted(&[1, 2, 3, 4]);
        let balancer = balancer(policy.clone(), &hosts);
        let hashed = policy.takes_hash();
        let chosen = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..WORKERS)
                .map(|worker| {
                    let balancer = &balancer;
                    scope.spawn(move || {
                        let one = |hash: u64| {
                            let hash = Some(hash.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                            let host = balancer.choose(&Choice { worker, hash, ..request() }).unwrap();
                            balancer.report(
                                &host.host,
                                &Outcome { worker, ..answered(std::time::Duration::from_millis(1)) },
                            );
                            port(&host)
                        };
                        (0..2000).map(one).collect::<Vec<_>>()
                    })
                })
                .collect();
            for _ in 0..5 {
                balancer.update(&hosts.refreshed());
            }
            threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
        });
        if hashed {
            assert!(chosen.windows(2).all(|w| w[0] == w[1]), "{policy:?}");
        }
    }
}

/// Taking one of n hosts away moves the keys it had, about 1/n, and few others: a ring of a least size gives
/// the hosts that stay more points.
#[test]
fn hashes_move_little_when_a_host_goes() {
    let ring_hash = ring(4096, 8 << 20, false, false);
    let maglev = Policy::Maglev { table_size: 65537, use_hostname: false };
    for (policy, slack) in [(ring_hash, 0.12), (maglev, 0.05), (Policy::ApisixChash, 0.0)] {
        let all = weighted(&[1; 10]);
        let less = HostSet::new((1..=9).map(|p| host(p, 1)).collect(), Some(&all));
        let balancer = balancer(policy.clone(), &all);
        let keys: Vec<u64> = (0..20_000).map(|_| fastrand::u64(..)).collect();
        let chosen = || -> Vec<u16> {
            keys.iter()
                .map(|k| port(&balancer.choose(&Choice { hash: Some(*k), ..request() }).unwrap()))
                .collect()
        };
        let before = chosen();
        balancer.update(&less);
        let after = chosen();
        let lost = before.iter().filter(|p| **p == 10).count() as f64 / keys.len() as f64;
        assert!((0.06..0.14).contains(&lost), "{policy:?}: {lost}");
        let moved = before.iter().zip(&after).filter(|(b, a)| **b != 10 && b != a).count();
        assert!(moved as f64 <= slack * keys.len() as f64, "{policy:?}: {moved}");
    }
}

#[test]
fn bad_settings_are_refused() {
    use super::{BalanceConfig, build};
    let stats = Arc::new(crate::cluster::ClusterStats::named(&crate::metrics::Registry::new(), "t"));
    let error = |policy| {
        let config = BalanceConfig { policy, ..BalanceConfig::default() };
        build(&config, &HostSet::default(), &stats).err().unwrap()
    };
    assert!(error(Policy::Maglev { table_size: 65536, use_hostname: false }).contains("prime"));
    assert!(error(Policy::Maglev { table_size: 0, use_hostname: false }).contains("prime"));
    assert!(error(ring(10, 5, false, false)).contains("ascend"));
    assert!(error(ring(1, u64::MAX, false, false)).contains("ascend"));
    assert!(error(Policy::LeastRequest { choices: 1, full_scan: false, bias: 1.0 }).contains("choice_count"));
    assert!(error(Policy::LeastRequest { choices: 2, full_scan: false, bias: f64::NAN }).contains("bias"));
}
