//! One choice of an endpoint among 3 and among 1,000, and one change of health.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use divan::{Bencher, black_box};
use serde_json::json;
use sixfold_bench::fixtures::hosts;
use sixfold_core::balance::build;
use sixfold_core::cluster::{
    Address, BalanceConfig, Choice, ClusterStats, Criteria, HostConfig, HostSet, Policy, Reasons,
    SubsetConfig, SubsetFallback, SubsetSelector,
};
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

/// What a change of one endpoint's health costs where subsets are one for each zone, version and endpoint.
#[divan::bench(args = [1_000])]
fn health_in_subsets(bencher: Bencher<'_, '_>, count: u16) {
    let endpoint = |nth: u16, mut config: HostConfig| {
        let labels =
            json!({"zone": nth % 3, "version": format!("v{}", nth % 10), "pod": format!("pod-{nth}")});
        config.metadata = json!({"envoy.lb": labels}).as_object().cloned().unwrap().into();
        config
    };
    let address = |nth: u16| Address::Ip(([10, 0, (nth >> 8) as u8, nth as u8], 80).into());
    let endpoints = (0..count).map(|nth| endpoint(nth, HostConfig::new(address(nth)))).collect();
    let selector = |keys: &[&str]| SubsetSelector {
        keys: keys.iter().map(|key| (*key).into()).collect(),
        single_host: false,
        fallback: None,
    };
    let subsets = SubsetConfig {
        fallback: SubsetFallback::Any,
        default_subset: Vec::new(),
        selectors: [selector(&["zone"]), selector(&["version", "zone"]), selector(&["pod"])].into(),
        locality_weights: false,
        scale_locality_weights: false,
        panic_mode_any: false,
        list_as_any: false,
        allow_redundant_keys: false,
        fallback_list: false,
    };
    let mut hosts = HostSet::new(endpoints, None);
    let stats = Arc::new(ClusterStats::named(&Registry::default(), "bench"));
    let config = BalanceConfig { subsets: Some(Arc::new(subsets)), ..BalanceConfig::default() };
    let balancer = build(&config, &hosts, &stats).unwrap();
    let mut ejected = false;
    bencher.bench_local(|| {
        ejected = !ejected;
        hosts.iter().next().unwrap().host.set_reason(Reasons::EJECTED, ejected);
        hosts = hosts.refreshed();
        balancer.update(black_box(&hosts));
    });
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
