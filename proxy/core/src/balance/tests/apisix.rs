//! APISIX's policies against direct models.

use super::super::testing::*;
use super::{counts, port};
use crate::cluster::{Choice, HostConfig, HostSet, Outcome, OutcomeKind, Policy, Reasons};
use std::collections::BTreeMap;
use std::time::Duration;

#[test]
fn turns_are_interleaved_and_exact() {
    let hosts = weighted(&[3, 1]);
    let rr = balancer(Policy::ApisixRoundRobin, &hosts);
    let order: String =
        (0..16).map(|_| char::from(b'a' + port(&rr.choose(&request()).unwrap()) as u8 - 1)).collect();
    // Each round gives the heavy node the passes that the other one's weight does not reach.
    assert!("aaabaaabaaabaaabaaab".contains(&order) || "aaba".repeat(6).contains(&order), "{order}");

    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..50 {
        let weights: Vec<u32> = (0..random.usize(2..6)).map(|_| random.u32(0..12)).collect();
        if weights.iter().all(|w| *w == 0) {
            continue;
        }
        let hosts = weighted(&weights);
        let rr = balancer(Policy::ApisixRoundRobin, &hosts);
        let divisor = (1..=12).rev().find(|d| weights.iter().all(|w| w % d == 0)).unwrap();
        let period = weights.iter().sum::<u32>() / divisor;
        // The first round starts anywhere in the first pass; every later one is whole.
        counts(&*rr, period as usize);
        let counts = counts(&*rr, period as usize);
        for (weight, port) in weights.iter().zip(1..) {
            let got = counts.get(&port).copied().unwrap_or(0);
            assert_eq!(got, (*weight / divisor) as usize, "{weights:?} {counts:?}");
        }
    }
}

#[test]
fn nodes_without_weight_get_nothing_unless_all_are() {
    let hosts = weighted(&[0, 2]);
    assert_eq!(counts(&*balancer(Policy::ApisixRoundRobin, &hosts), 20), BTreeMap::from([(2, 20)]));
    let none = weighted(&[0, 0]);
    assert_eq!(counts(&*balancer(Policy::ApisixRoundRobin, &none), 20), BTreeMap::from([(1, 10), (2, 10)]));
    let chash = balancer(Policy::ApisixChash, &none);
    assert!(chash.choose(&Choice { hash: Some(7), ..request() }).is_none(), "its ring has no points");
    let single = weighted(&[0]);
    for policy in [
        Policy::ApisixRoundRobin,
        Policy::ApisixChash,
        Policy::ApisixLeastConn,
        Policy::ApisixEwma,
        Policy::ApisixUnknown,
    ] {
        assert_eq!(counts(&*balancer(policy, &single), 3), BTreeMap::from([(1, 3)]));
    }
}

#[test]
fn an_unknown_balancer_picks_none_of_several() {
    let unknown = balancer(Policy::ApisixUnknown, &weighted(&[1, 1]));
    assert!(unknown.choose(&request()).is_none());
    unknown.update(&weighted(&[1]));
    assert!(unknown.choose(&request()).is_some());
}

/// The ring as the definition says: CRC-32 over "host NUL port" and the previous point.
fn ring_model(nodes: &[(u16, u32)], key: u32) -> u16 {
    let crc = |bytes: &[u8]| {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
            }
        }
        !crc
    };
    let mut points = Vec::new();
    for (port, weight) in nodes {
        let mut previous = 0u32;
        for _ in 0..160 * weight {
            let mut input = format!("127.0.0.1\0{port}").into_bytes();
            input.extend(previous.to_le_bytes());
            previous = crc(&input);
            points.push((previous, *port));
        }
    }
    points.sort();
    points.iter().find(|(point, _)| *point >= key).unwrap_or(&points[0]).1
}

#[test]
fn chash_is_the_ring_of_nginx() {
    // Weights 2, 4, 6 stand for 1, 2, 3: the common divisor goes out.
    let hosts = weighted(&[2, 4, 6]);
    let chash = balancer(Policy::ApisixChash, &hosts);
    let nodes = [(1, 1), (2, 2), (3, 3)];
    for key in (0..400u32).map(|i| i.wrapping_mul(0x9E37_79B9)).chain([0, u32::MAX]) {
        let host = chash.choose(&Choice { hash: Some(u64::from(key)), ..request() }).unwrap();
        assert_eq!(port(&host), ring_model(&nodes, key), "{key}");
    }
}

#[test]
fn chash_keeps_its_ring_when_a_node_is_down_and_retries_on_the_next() {
    let hosts = weighted(&[1, 1, 1]);
    let chash = balancer(Policy::ApisixChash, &hosts);
    let all: Vec<_> = hosts.iter().cloned().collect();
    let pick = |key: u32, tries: &[crate::cluster::TriedHost]| {
        let choice = Choice { hash: Some(u64::from(key)), tried: tries, ..request() };
        chash.choose(&choice).map(|h| port(&h))
    };
    let keys: Vec<u32> = (0..200u32).map(|i| i.wrapping_mul(0x9E37_79B9)).collect();
    let before: Vec<_> = keys.iter().map(|k| pick(*k, &[]).unwrap()).collect();
    let retried: Vec<_> = keys.iter().map(|k| pick(*k, &[tried(&all[0])]).unwrap()).collect();
    all[0].host.set_reason(Reasons::ACTIVE_CHECK, true);
    let down = hosts.refreshed();
    chash.update(&down);
    for ((key, before), retried) in keys.iter().zip(before).zip(retried) {
        let now = pick(*key, &[]).unwrap();
        assert_eq!(now, if before == 1 { retried } else { before });
        assert_ne!(now, 1);
        assert_eq!(pick(*key, &[tried(&all[1]), tried(&all[2])]), None);
    }
}

// A pick took a million turns, with its worker's lock held.
#[test]
fn huge_weights_do_not_make_huge_rounds() {
    let hosts = weighted(&[1_000_000, 1]);
    let rr = balancer(Policy::ApisixRoundRobin, &hosts);
    let tries = [tried(&hosts.iter().next().unwrap().clone())];
    let begin = std::time::Instant::now();
    for _ in 0..2000 {
        assert_eq!(port(&rr.choose(&Choice { tried: &tries, ..request() }).unwrap()), 2);
    }
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}

#[test]
fn huge_weights_do_not_make_huge_rings() {
    let hosts = weighted(&[1_000_003, 999_983]);
    let chash = balancer(Policy::ApisixChash, &hosts);
    let share = counts(&*chash, 2000)[&1];
    assert!(share.abs_diff(1000) < 150, "{share}");
}

#[test]
fn least_conn_counts_by_worker_and_weight() {
    let hosts = weighted(&[1, 1, 2]);
    let least = balancer(Policy::ApisixLeastConn, &hosts);
    // Held requests spread as the weights do.
    let held = counts(&*least, 40);
    assert_eq!(held, BTreeMap::from([(1, 10), (2, 10), (3, 20)]));
    // Another worker knows nothing of them.
    let other = Choice { worker: 1, ..request() };
    assert_eq!(port(&least.choose(&other).unwrap()), 3);
    // One that ends is the idlest now.
    let second = hosts.iter().nth(1).unwrap();
    let done = answered(Duration::ZERO);
    least.report(&second.host, &done);
    assert_eq!(port(&least.choose(&request()).unwrap()), 2);
    // Counts live on when the nodes change.
    least.report(&second.host, &done);
    let changed = HostSet::new(vec![host(1, 1), host(2, 1)], Some(&hosts));
    least.update(&changed);
    assert_eq!(port(&least.choose(&request()).unwrap()), 2);
    for _ in 0..5 {
        least.report(&second.host, &Outcome { worker: 3, ..done });
    }
}

#[test]
fn least_conn_never_prefers_a_loaded_node() {
    let mut random = fastrand::Rng::with_seed(11);
    let hosts = weighted(&[1; 5]);
    let least = balancer(Policy::ApisixLeastConn, &hosts);
    let mut active = [0u32; 5];
    for _ in 0..2000 {
        if random.bool() {
            let at = port(&least.choose(&request()).unwrap()) as usize - 1;
            assert_eq!(active[at], *active.iter().min().unwrap());
            active[at] += 1;
        } else {
            let at = random.usize(..5);
            if active[at] > 0 {
                active[at] -= 1;
                let host = hosts.iter().nth(at).unwrap();
                least.report(&host.host, &answered(Duration::ZERO));
            }
        }
    }
}

#[test]
fn ewma_takes_the_faster_of_two_on_every_worker() {
    let hosts = weighted(&[1, 1]);
    let ewma = balancer(Policy::ApisixEwma, &hosts);
    let slow = hosts.iter().next().unwrap();
    ewma.report(&slow.host, &answered(Duration::from_millis(200)));
    for worker in 0..WORKERS {
        let choice = Choice { worker, ..request() };
        assert_eq!(port(&ewma.choose(&choice).unwrap()), 2);
    }
    // No answer, no score.
    let other = hosts.iter().nth(1).unwrap();
    ewma.report(
        &other.host,
        &Outcome { status: 0, kind: OutcomeKind::Cancelled, ..answered(Duration::from_secs(60)) },
    );
    assert_eq!(port(&ewma.choose(&request()).unwrap()), 2);
}

#[test]
fn lower_groups_wait_for_the_higher() {
    for policy in [Policy::ApisixRoundRobin, Policy::ApisixChash, Policy::ApisixLeastConn, Policy::ApisixEwma]
    {
        let with = |port, priority| HostConfig { priority, ..host(port, 1) };
        let hosts = HostSet::new(vec![with(1, 0), with(2, 0), with(3, 1)], None);
        let all: Vec<_> = hosts.iter().cloned().collect();
        let balancer = balancer(policy.clone(), &hosts);
        let ports = counts(&*balancer, 100);
        assert!(!ports.contains_key(&3), "{policy:?}");
        let tries = [tried(&all[0]), tried(&all[1])];
        let choice = Choice { attempt: 2, tried: &tries, ..request() };
        assert_eq!(port(&balancer.choose(&choice).unwrap()), 3, "{policy:?}");
        // The higher group is down.
        all[0].host.set_reason(Reasons::ACTIVE_CHECK, true);
        all[1].host.set_reason(Reasons::EJECTED, true);
        let down = hosts.refreshed();
        balancer.update(&down);
        assert_eq!(counts(&*balancer, 20), BTreeMap::from([(3, 20)]), "{policy:?}");
        // Everything is down: health does not count.
        all[2].host.set_reason(Reasons::ACTIVE_CHECK, true);
        let none = down.refreshed();
        balancer.update(&none);
        assert!(!counts(&*balancer, 50).contains_key(&3), "{policy:?}");
    }
}

#[test]
fn a_single_node_is_used_whatever_happened() {
    let hosts = weighted(&[1]);
    let only = hosts.iter().next().unwrap();
    only.host.set_reason(Reasons::ACTIVE_CHECK, true);
    let hosts = hosts.refreshed();
    for policy in [Policy::ApisixRoundRobin, Policy::ApisixChash, Policy::ApisixEwma] {
        let tries = [tried(only)];
        let choice = Choice { attempt: 1, tried: &tries, ..request() };
        assert!(balancer(policy, &hosts).choose(&choice).is_some());
    }
}
