//! One choice of an endpoint among 3 and among 1,000.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use divan::{Bencher, black_box};
use sixfold_bench::fixtures::hosts;
use sixfold_core::balance::build;
use sixfold_core::cluster::{BalanceConfig, Choice, ClusterStats, Criteria, Policy};
use sixfold_core::metrics::Registry;

fn main() {
    divan::main();
}

#[divan::bench(args = [3, 1_000])]
fn round_robin(bencher: Bencher<'_, '_>, count: u16) {
    choose(bencher, count, Policy::RoundRobin);
}

#[divan::bench(args = [3, 1_000])]
fn least_request(bencher: Bencher<'_, '_>, count: u16) {
    choose(bencher, count, Policy::LeastRequest { choices: 2, full_scan: false, bias: 1.0 });
}

#[divan::bench(args = [3, 1_000])]
fn ring_hash(bencher: Bencher<'_, '_>, count: u16) {
    let policy = Policy::RingHash { min_size: 1_024, max_size: 8 << 20, murmur: false, use_hostname: false };
    choose(bencher, count, policy);
}

#[divan::bench(args = [3, 1_000])]
fn apisix_round_robin(bencher: Bencher<'_, '_>, count: u16) {
    choose(bencher, count, Policy::ApisixRoundRobin);
}

#[divan::bench(args = [3, 1_000])]
fn apisix_chash(bencher: Bencher<'_, '_>, count: u16) {
    choose(bencher, count, Policy::ApisixChash);
}

#[divan::bench(args = [3, 1_000])]
fn apisix_ewma(bencher: Bencher<'_, '_>, count: u16) {
    choose(bencher, count, Policy::ApisixEwma);
}

fn choose(bencher: Bencher<'_, '_>, count: u16, policy: Policy) {
    let hosts = hosts(count);
    let stats = Arc::new(ClusterStats::named(&Registry::default(), "bench"));
    let balancer = build(&BalanceConfig { policy, ..BalanceConfig::default() }, &hosts, &stats).unwrap();
    let mut random = 1_u64;
    bencher.bench_local(|| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let choice = Choice {
            worker: 0,
            hash: Some(random),
            random,
            attempt: 0,
            tried: &[],
            predicates: &[],
            host_attempts: 1,
            previous_priorities: None,
            subset: Criteria::NONE,
            destination: None,
        };
        black_box(balancer.choose(black_box(&choice)))
    });
}
