//! Subsets: which endpoints a request's metadata chooses, whatever comes, goes or fails.

use super::super::testing::*;
use super::port;
use crate::cluster::EdsHealth::{self, Healthy, Unhealthy};
use crate::cluster::{
    BalanceConfig, Balancer, Choice, Criteria, Criterion, HostConfig, HostSet, LoadReports, Locality, Policy,
    Reasons, SubsetConfig, SubsetFallback, SubsetSelector,
};
use crate::headers::Headers;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

fn endpoint(port: u16, health: EdsHealth, metadata: &Value) -> HostConfig {
    let metadata = json!({"envoy.lb": metadata}).as_object().cloned().unwrap().into();
    HostConfig { health, metadata, ..host(port, 1) }
}

/// a: v1 prod, b: v2 prod, c: v2 dev, at ports 1 to 3.
fn three() -> Vec<HostConfig> {
    vec![
        endpoint(1, Healthy, &json!({"version": "v1", "stage": "prod", "tags": ["x", "y"]})),
        endpoint(2, Healthy, &json!({"version": "v2", "stage": "prod", "tags": ["y"]})),
        endpoint(3, Healthy, &json!({"version": "v2", "stage": "dev"})),
    ]
}

fn keys(names: &[&str]) -> Box<[Box<str>]> {
    names.iter().map(|name| (*name).into()).collect()
}

fn selector(names: &[&str]) -> SubsetSelector {
    SubsetSelector { keys: keys(names), single_host: false, fallback: None }
}

fn config(selectors: Vec<SubsetSelector>) -> SubsetConfig {
    SubsetConfig {
        fallback: SubsetFallback::None,
        default_subset: vec![Criterion::new("stage", json!("dev"))],
        selectors: selectors.into(),
        locality_weights: false,
        scale_locality_weights: false,
        panic_mode_any: false,
        list_as_any: false,
        allow_redundant_keys: false,
        fallback_list: false,
    }
}

fn divided(config: SubsetConfig, hosts: Vec<HostConfig>) -> Arc<dyn Balancer> {
    let config = BalanceConfig { subsets: Some(Arc::new(config)), ..BalanceConfig::default() };
    configured(&config, &HostSet::new(hosts, None))
}

/// Ports that requests of this metadata come to; none is 503.
fn ports(balancer: &dyn Balancer, asked: Value) -> BTreeSet<u16> {
    let subset = Criteria::new(&serde_json::from_value(asked).unwrap());
    let choose = |_| balancer.choose(&Choice { subset: &subset, ..request() });
    (0..24).filter_map(choose).map(|m| port(&m)).collect()
}

#[test]
fn exactly_the_keys_of_a_selector_choose_a_subset() {
    let balancer = divided(config(vec![selector(&["stage", "version"]), selector(&["version"])]), three());
    assert_eq!(balancer.subsets(), Some(5));
    for (asked, expected) in [
        (json!({"version": "v1"}), vec![1]),
        (json!({"version": "v2"}), vec![2, 3]),
        (json!({"version": "v2", "stage": "dev"}), vec![3]),
        (json!({"version": "v1", "stage": "dev"}), vec![]),
        (json!({"stage": "prod"}), vec![]),
        (json!({"version": "v2", "stage": "dev", "more": 1}), vec![]),
        (json!({}), vec![]),
    ] {
        assert_eq!(ports(&*balancer, asked.clone()), expected.into_iter().collect(), "{asked}");
    }
}

#[test]
fn the_cluster_and_its_selectors_say_what_is_done_without_a_subset() {
    let of = |fallback: &SubsetFallback, own: Option<SubsetFallback>| {
        let selectors = vec![SubsetSelector { fallback: own, ..selector(&["version"]) }];
        let balancer = divided(SubsetConfig { fallback: fallback.clone(), ..config(selectors) }, three());
        let of = |asked| ports(&*balancer, asked).into_iter().collect::<Vec<_>>();
        (of(json!({"version": "v9"})), of(json!({"other": 1})), of(json!({"version": "v1"})))
    };
    use SubsetFallback::{Any, Default, None as Nothing};
    assert_eq!(of(&Nothing, None), (vec![], vec![], vec![1]));
    assert_eq!(of(&Any, None), (vec![1, 2, 3], vec![1, 2, 3], vec![1]));
    assert_eq!(of(&Default, None), (vec![3], vec![3], vec![1]));
    assert_eq!(of(&Any, Some(Nothing)), (vec![], vec![1, 2, 3], vec![1]));
    assert_eq!(of(&Nothing, Some(Any)), (vec![1, 2, 3], vec![], vec![1]));
    assert_eq!(of(&Nothing, Some(Default)), (vec![3], vec![], vec![1]));
}

#[test]
fn fewer_keys_are_asked_for_again_until_a_subset_is_found() {
    let to = |names: &[&str]| Some(SubsetFallback::Keys(keys(names)));
    let selectors = vec![
        SubsetSelector { fallback: to(&["stage", "version"]), ..selector(&["stage", "tag", "version"]) },
        SubsetSelector { fallback: to(&["version"]), ..selector(&["stage", "version"]) },
        selector(&["version"]),
    ];
    let balancer = divided(config(selectors), three());
    let asked = json!({"stage": "none", "tag": "none", "version": "v2"});
    assert_eq!(ports(&*balancer, asked), [2, 3].into());
    assert_eq!(ports(&*balancer, json!({"stage": "dev", "tag": "none", "version": "v2"})), [3].into());
    assert_eq!(ports(&*balancer, json!({"stage": "dev", "tag": "none", "version": "v9"})), [].into());
}

#[test]
fn lists_count_whole_or_by_their_values() {
    let whole = divided(config(vec![selector(&["tags"])]), three());
    assert_eq!(ports(&*whole, json!({"tags": ["x", "y"]})), [1].into());
    assert_eq!(ports(&*whole, json!({"tags": "y"})), [].into());
    let any = SubsetConfig { list_as_any: true, ..config(vec![selector(&["tags", "version"])]) };
    let any = divided(any, three());
    assert_eq!(ports(&*any, json!({"tags": "y", "version": "v1"})), [1].into());
    assert_eq!(ports(&*any, json!({"tags": "y", "version": "v2"})), [2].into());
    assert_eq!(ports(&*any, json!({"tags": ["x", "y"], "version": "v1"})), [].into());
}

#[test]
fn redundant_keys_and_lists_of_fallbacks_are_taken_where_they_are_asked_for() {
    let selectors = || vec![selector(&["stage", "version"]), selector(&["version"])];
    let redundant = divided(SubsetConfig { allow_redundant_keys: true, ..config(selectors()) }, three());
    assert_eq!(ports(&*redundant, json!({"version": "v2", "more": 1})), [2, 3].into());
    assert_eq!(ports(&*redundant, json!({"version": "v2", "stage": "dev", "more": 1})), [3].into());
    let asked = json!({"stage": "dev", "fallback_list": [{"version": "v1"}, {"version": "v2"}]});
    let list = divided(SubsetConfig { fallback_list: true, ..config(selectors()) }, three());
    assert_eq!(ports(&*list, asked.clone()), [3].into());
    assert_eq!(ports(&*divided(config(selectors()), three()), asked), [].into());
}

#[test]
fn a_subset_of_one_host_is_the_first_whatever_its_health() {
    let single = SubsetSelector { single_host: true, ..selector(&["version"]) };
    let mut hosts = three();
    hosts[1].health = Unhealthy;
    assert_eq!(ports(&*divided(config(vec![single]), hosts), json!({"version": "v2"})), [2].into());
}

/// A subset that is there decides: only where it panics are its unhealthy endpoints taken.
#[test]
fn health_counts_within_a_subset() {
    let mut hosts = three();
    (hosts[1].health, hosts[2].health) = (Unhealthy, Healthy);
    let any = || SubsetConfig { fallback: SubsetFallback::Any, ..config(vec![selector(&["version"])]) };
    assert_eq!(ports(&*divided(any(), hosts.clone()), json!({"version": "v2"})), [3].into());
    hosts[2].health = Unhealthy;
    assert_eq!(ports(&*divided(any(), hosts.clone()), json!({"version": "v2"})), [2, 3].into(), "panic");
    // Without panic the default subset has nothing to give, and all endpoints may be taken instead.
    let of = |panic_mode_any| {
        let subsets = SubsetConfig { fallback: SubsetFallback::Default, panic_mode_any, ..any() };
        let subsets = Some(Arc::new(subsets));
        let config = BalanceConfig { subsets, panic_threshold: 0.0, ..BalanceConfig::default() };
        ports(&*configured(&config, &HostSet::new(hosts.clone(), None)), json!({"version": "v9"}))
    };
    assert_eq!((of(false), of(true)), ([].into(), [1].into()));
}

#[test]
fn weights_of_localities_are_scaled_by_what_a_subset_has_of_them() {
    let zone = |name: &str| Some(Arc::new(Locality { zone: name.into(), ..Locality::unknown().clone() }));
    let of = |port, version: &str, zoned: &str| HostConfig {
        locality: zone(zoned),
        locality_weight: Some(50),
        ..endpoint(port, Healthy, &json!({"version": version}))
    };
    let hosts: Vec<_> = [of(1, "v1", "a"), of(2, "v1", "b")]
        .into_iter()
        .chain((3..7).map(|port| of(port, "v2", "b")))
        .collect();
    let share = |scale: bool| {
        let subsets = SubsetConfig {
            locality_weights: true,
            scale_locality_weights: scale,
            ..config(vec![selector(&["version"])])
        };
        let subsets = Some(Arc::new(subsets));
        let config = BalanceConfig { subsets, locality_weighted: true, ..BalanceConfig::default() };
        let balancer = configured(&config, &HostSet::new(hosts.clone(), None));
        let subset = Criteria::new(&serde_json::from_value(json!({"version": "v1"})).unwrap());
        let choose = |_| port(&balancer.choose(&Choice { subset: &subset, ..request() }).unwrap());
        (0..600).map(choose).filter(|port| *port == 1).count()
    };
    // One of the one endpoint in zone a, one of the five in zone b: 50 against 10.
    assert!((299..=301).contains(&share(false)) && (499..=501).contains(&share(true)));
}

/// Random endpoints that come and go: what is kept up to date chooses among the same endpoints as what is made anew,
/// and those are the ones that a search finds.
#[test]
fn subsets_that_are_kept_are_those_that_a_search_finds() {
    let mut random = fastrand::Rng::with_seed(11);
    let names = ["a", "b", "c"];
    let selectors = || vec![selector(&["a", "b"]), selector(&["a"]), selector(&["c"])];
    let balancer = divided(config(selectors()), Vec::new());
    let mut before = HostSet::default();
    let mut found = 0;
    for round in 0..400 {
        let hosts: Vec<HostConfig> = (1..random.u16(2..12))
            .map(|port| {
                let given = names.iter().filter(|_| random.u8(..4) > 0).collect::<Vec<_>>();
                let metadata: BTreeMap<_, _> = given.iter().map(|n| (**n, random.u8(..2))).collect();
                endpoint(port, Healthy, &json!(metadata))
            })
            .collect();
        let set = HostSet::new(hosts.clone(), Some(&before));
        balancer.update(&set);
        before = set;
        let fresh = divided(config(selectors()), hosts.clone());
        assert_eq!(balancer.subsets(), fresh.subsets(), "round {round}");
        let mut asked: BTreeMap<String, Value> = BTreeMap::new();
        for name in names {
            if random.bool() {
                asked.insert(name.to_owned(), json!(random.u8(..3)));
            }
        }
        let named: Vec<&str> = asked.keys().map(String::as_str).collect();
        let known = [vec!["a", "b"], vec!["a"], vec!["c"]].contains(&named);
        let fits = |host: &HostConfig| {
            let metadata = host.metadata.get("envoy.lb").unwrap();
            known && asked.iter().all(|(key, value)| metadata.get(key) == Some(value))
        };
        let expected: BTreeSet<u16> =
            (1..).zip(&hosts).filter(|(_, h)| fits(h)).map(|(port, _)| port).collect();
        found += expected.len();
        assert_eq!(ports(&*balancer, json!(asked)), expected, "round {round}: {asked:?}");
    }
    assert!(found > 100, "hardly anything is found: {found}");
}

/// Every change of health had the metadata of all endpoints read and hashed again, and all balancers made anew.
#[test]
fn health_is_heard_of_by_those_alone_who_have_the_endpoint() {
    let hosts = HostSet::new(three(), None);
    let config = SubsetConfig { fallback: SubsetFallback::Any, ..config(vec![selector(&["version"])]) };
    let config =
        BalanceConfig { subsets: Some(Arc::new(config)), panic_threshold: 0.0, ..BalanceConfig::default() };
    let balancer = configured(&config, &hosts);
    let all = || {
        let of = |asked: Value| ports(&*balancer, asked).into_iter().collect::<Vec<_>>();
        [of(json!({"version": "v1"})), of(json!({"version": "v2"})), of(json!({"version": "v3"}))]
    };
    let second = hosts.iter().find(|member| port(member) == 2).unwrap().host.clone();
    let mut now = hosts.refreshed();
    assert_eq!(all(), [vec![1], vec![2, 3], vec![1, 2, 3]]);
    second.set_reason(Reasons::EJECTED, true);
    // One that has come back before anybody looked, and one that nobody was told of yet.
    for (ejected, expected) in
        [(true, [vec![1], vec![3], vec![1, 3]]), (false, [vec![1], vec![2, 3], vec![1, 2, 3]])]
    {
        second.set_reason(Reasons::EJECTED, ejected);
        now = now.refreshed();
        balancer.update(&now);
        assert_eq!(all(), expected);
    }
    // Others than before are divided anew.
    balancer.update(&HostSet::new(three()[1..].to_vec(), Some(&now)));
    assert_eq!((all(), balancer.subsets()), ([vec![2, 3], vec![2, 3], vec![2, 3]], Some(1)));
}

/// Only the first subset of an endpoint heard of the weight that it reports.
#[test]
fn reported_weights_are_heard_of_in_every_subset() {
    let reports = LoadReports { blackout: Duration::ZERO, ..LoadReports::default() };
    let both = json!({"version": "1", "stage": "p"});
    let hosts = HostSet::new((1..=2).map(|p| endpoint(p, Healthy, &both)).collect(), None);
    let config = BalanceConfig {
        policy: Policy::ClientSideWeighted(reports.clone().into()),
        subsets: Some(Arc::new(config(vec![selector(&["version"]), selector(&["stage"])]))),
        ..BalanceConfig::default()
    };
    let balancer = configured(&config, &hosts);
    let now = std::time::Instant::now();
    for (member, cpu) in hosts.iter().zip(["0.1", "0.9"]) {
        let mut fields = Headers::new();
        let text = format!("TEXT cpu_utilization:{cpu},rps_fractional:100");
        fields.set("endpoint-load-metrics", text.as_bytes());
        assert!(reports.take(&fields, &member.host, now));
    }
    balancer.reweigh(&hosts, now + Duration::from_millis(5));
    for asked in [json!({"version": "1"}), json!({"stage": "p"})] {
        let subset = Criteria::new(&serde_json::from_value(asked).unwrap());
        let choose = |_| balancer.choose(&Choice { subset: &subset, ..request() });
        let first = (0..100).filter_map(choose).filter(|m| port(m) == 1).count();
        assert!(first.abs_diff(90) <= 1, "{first} of 100");
    }
}
