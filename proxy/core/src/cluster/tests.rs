//! What building a cluster leaves alone, and what putting it in force does.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::cluster::{BalanceConfig, Choice, Policy};
use crate::metrics::{Registry, Sample};
use std::collections::BTreeMap;
use std::time::Duration;

fn endpoint(port: u16, weight: u32) -> HostConfig {
    HostConfig { weight, ..HostConfig::new(Address::Ip(([127, 0, 0, 1], port).into())) }
}

fn cluster(endpoints: Vec<HostConfig>, previous: Option<&Cluster>, registry: &Registry) -> Arc<Cluster> {
    let balance = BalanceConfig { policy: Policy::ApisixLeastConn, ..BalanceConfig::default() };
    let mut config = ClusterConfig::named("c");
    config.balance = balance;
    Cluster::new(config, endpoints, previous, registry).unwrap()
}

fn member(cluster: &Cluster, port: u16) -> Arc<Member> {
    let is = |m: &&Arc<Member>| m.host.label.ends_with(&format!(":{port}"));
    cluster.hosts.load().iter().find(is).unwrap().clone()
}

/// Thousands of each are there with thousands of upstreams. A cluster was 712 bytes and a member 152.
#[test]
fn what_there_is_many_of_is_small() {
    let sizes = [size_of::<Cluster>(), size_of::<Member>(), size_of::<Host>()];
    assert!(sizes.iter().zip([304, 56, 192]).all(|(size, most)| *size <= most), "{sizes:?}");
}

/// Ports of 40 requests, each under way until the last has been chosen.
fn traffic(cluster: &Arc<Cluster>) -> BTreeMap<String, usize> {
    let choice = |random| Choice {
        worker: 0,
        hash: None,
        random,
        attempt: 0,
        tried: &[],
        predicates: &[],
        host_attempts: 1,
        previous_priorities: None,
        subset: Criteria::NONE,
        destination: None,
    };
    let flights: Vec<_> = (0..40).filter_map(|n| cluster.choose(&choice(n))).collect();
    let mut ports = BTreeMap::new();
    for flight in &flights {
        *ports.entry(flight.host().label.to_string()).or_default() += 1;
    }
    ports
}

/// Everything that a request or an operator could notice of a cluster.
fn shown(cell: &ClusterCell, registry: &Registry) -> (Vec<String>, BTreeMap<String, usize>, Vec<Sample>) {
    let cluster = cell.load().unwrap();
    let hosts = cluster.hosts.load();
    let show = |m: &Arc<Member>| {
        format!("{} {} {:?} {:?} {}", m.host.id, m.weight, m.reasons(), m.health(), m.host.is_removed())
    };
    (hosts.iter().map(show).collect(), traffic(&cluster), registry.samples())
}

/// A candidate that was refused for another reason took a weight to 0 all the same, and health with it.
#[test]
fn a_cluster_that_is_built_and_dropped_changes_nothing() {
    let registry = Registry::new();
    let cell = Clusters::default().cell("c");
    cell.swap(Some(cluster(vec![endpoint(1, 1), endpoint(2, 1)], None, &registry)));
    let live = cell.load().unwrap();
    let before = shown(&cell, &registry);
    let unhealthy = HostConfig { health: EdsHealth::Unhealthy, ..endpoint(2, 9) };
    for endpoints in [vec![endpoint(1, 0), unhealthy], vec![endpoint(3, 1)], Vec::new()] {
        let candidate = cluster(endpoints.clone(), Some(&live), &registry);
        candidate.update_hosts(endpoints);
        candidate.refresh();
        assert_eq!(shown(&cell, &registry), before);
        drop(candidate);
        assert_eq!(shown(&cell, &registry), before);
    }
}

#[test]
fn what_is_put_in_force_counts() {
    let registry = Registry::new();
    let cell = Clusters::default().cell("c");
    let first = cluster(vec![endpoint(1, 1), endpoint(2, 1)], None, &registry);
    assert_eq!(first.stats.membership_total().get(), 0);
    cell.swap(Some(first.clone()));
    assert_eq!((first.stats.membership_total().get(), first.stats.membership_change().get()), (2, 1));
    let draining = HostConfig { health: EdsHealth::Draining, ..endpoint(2, 5) };
    let second = cluster(vec![endpoint(1, 3), draining], Some(&first), &registry);
    cell.swap(Some(second.clone()));
    let stats = &second.stats;
    let members =
        (stats.membership_total().get(), stats.membership_healthy().get(), stats.membership_excluded().get());
    assert_eq!((members, stats.membership_change().get()), ((2, 1, 1), 1));
    assert_eq!(member(&first, 1).host.id, member(&second, 1).host.id);
    assert_eq!((member(&first, 1).weight, member(&second, 1).weight), (1, 3));
    // Late news of a replaced cluster count no more.
    first.update_hosts(vec![]);
    assert_eq!(stats.membership_total().get(), 2);
    cell.swap(None);
    assert_eq!(stats.membership_total().get(), 0);
}

#[test]
fn hosts_know_whether_the_cluster_in_force_has_them() {
    let registry = Registry::new();
    let cell = Clusters::default().cell("c");
    let first = cluster(vec![endpoint(1, 1), endpoint(2, 1)], None, &registry);
    cell.swap(Some(first.clone()));
    let [one, two] = [1, 2].map(|port| member(&first, port).host.clone());
    let removed = || (one.is_removed(), two.is_removed());
    assert_eq!(removed(), (false, false));
    first.update_hosts(vec![endpoint(1, 1)]);
    assert_eq!(removed(), (false, true));
    let second = cluster(vec![endpoint(1, 2), endpoint(3, 1)], Some(&first), &registry);
    assert_eq!(removed(), (false, true));
    cell.swap(Some(second.clone()));
    assert_eq!(removed(), (false, true));
    let third = cluster(vec![endpoint(3, 1)], Some(&second), &registry);
    cell.swap(Some(third));
    assert_eq!(removed(), (true, true));
    // The one that was replaced last still knows it, so it comes back as itself.
    let fourth = cluster(vec![endpoint(1, 1)], Some(&second), &registry);
    cell.swap(Some(fourth));
    assert_eq!(removed(), (false, true));
    cell.swap(None);
    assert_eq!(removed(), (true, true));
}

/// Discovery may find a host between the building of a cluster and its coming into force.
#[test]
fn hosts_found_meanwhile_are_taken_over() {
    let registry = Registry::new();
    let cell = Clusters::default().cell("c");
    let first = cluster(vec![endpoint(1, 1)], None, &registry);
    cell.swap(Some(first.clone()));
    let second = cluster(vec![endpoint(1, 1), endpoint(2, 7)], Some(&first), &registry);
    first.update_hosts(vec![endpoint(1, 1), endpoint(2, 1)]);
    let found = member(&first, 2).host.clone();
    assert_ne!(member(&second, 2).host.id, found.id);
    cell.swap(Some(second.clone()));
    assert_eq!((member(&second, 2).host.id, member(&second, 2).weight), (found.id, 7));
    assert!(!found.is_removed());
    assert_eq!(traffic(&second).get("127.0.0.1:2"), Some(&35));
}

/// Two endpoints at one address were two hosts at first and one host after the next change.
#[test]
fn one_address_is_one_host() {
    let twice = || vec![endpoint(1, 1), HostConfig { priority: 1, ..endpoint(1, 2) }];
    let first = HostSet::new(twice(), None);
    let ids = |set: &HostSet| set.iter().map(|m| m.host.id).collect::<Vec<_>>();
    assert_eq!(ids(&first)[0], ids(&first)[1]);
    let second = HostSet::new(twice(), Some(&first));
    assert_eq!((ids(&first), second.total()), (ids(&second), 2));
}

/// Members that are equal to before are the same, so that balancers see what stays.
#[test]
fn only_what_changes_makes_a_new_member() {
    let first = HostSet::new(vec![endpoint(1, 1), endpoint(2, 1)], None);
    let second = HostSet::new(vec![endpoint(1, 1), endpoint(2, 2)], Some(&first));
    let at = |set: &HostSet, n| set.iter().nth(n).cloned().unwrap();
    assert!(Arc::ptr_eq(&at(&first, 0), &at(&second, 0)));
    assert!(!Arc::ptr_eq(&at(&first, 1), &at(&second, 1)));
    assert!(Arc::ptr_eq(&at(&first, 1).host, &at(&second, 1).host));
}

/// What was against endpoints goes with what found it.
#[test]
fn ejections_end_with_their_detection_and_go_on_without_it_changing() {
    use crate::cluster::{CAUSES, FailurePercentage, Outcome, OutcomeKind, OutlierDetection};
    use std::time::Instant;
    let detection = OutlierDetection {
        max_ejected_percent: 100,
        consecutive_5xx: 1,
        consecutive_gateway: 0,
        consecutive_local: 0,
        failure_percentage: FailurePercentage { hosts: 5, requests: 100, threshold: 85 },
        enforcing: [100; CAUSES],
        ..OutlierDetection::default()
    };
    let registry = Registry::new();
    let cell = Clusters::default().cell("c");
    let put = |detection: Option<&OutlierDetection>| {
        let mut config = ClusterConfig::named("c");
        config.outlier_detection = detection.cloned().map(Arc::new);
        let previous = cell.load();
        let endpoints = vec![endpoint(1, 1), endpoint(2, 1)];
        let cluster = Cluster::new(config, endpoints, previous.as_deref(), &registry).unwrap();
        cell.swap(Some(cluster.clone()));
        cluster
    };
    let first = put(Some(&detection));
    let outliers = first.outliers.clone().unwrap();
    let host = member(&first, 1).host.clone();
    outliers.report(&host, &Outcome { worker: 0, kind: OutcomeKind::Response, status: 500, span: None });
    assert!(outliers.eject(Instant::now()));
    first.refresh();
    assert_eq!(first.hosts.load().healthy(), 1);
    let second = put(Some(&detection));
    assert_eq!(second.hosts.load().healthy(), 1);
    let third = put(None);
    assert_eq!((third.hosts.load().healthy(), third.stats.membership_healthy().get()), (2, 2));
}

/// Envoy's gauges of circuit breakers were missing.
#[test]
fn breakers_show_what_they_allow_once_their_cluster_is_in_force() {
    let registry = Registry::new();
    let shown = |name: &str| {
        let name = format!("cluster.c.circuit_breakers.{name}");
        registry.samples().into_iter().find(|sample| sample.name == name).map(|sample| sample.value)
    };
    let gauge = |n| Some(crate::metrics::Value::Gauge(n));
    let mut config = ClusterConfig::named("c");
    config.breaker = BreakerLimits { max_connections: 2, max_retries: 0, ..BreakerLimits::default() };
    config.tracks_remaining = [true, false];
    let cluster = Cluster::new(config, vec![endpoint(1, 1)], None, &registry).unwrap();
    assert_eq!(shown("default.cx_open"), None);
    let cell = Clusters::default().cell("c");
    cell.swap(Some(cluster.clone()));
    assert_eq!((shown("default.cx_open"), shown("default.rq_retry_open")), (gauge(0), gauge(0)));
    assert_eq!((shown("default.remaining_cx"), shown("high.remaining_cx")), (gauge(2), None));
    let permits = [(); 2].map(|()| cluster.breaker.acquire(Resource::Connections).unwrap());
    assert_eq!((shown("default.cx_open"), shown("default.remaining_cx")), (gauge(1), gauge(0)));
    assert_eq!((shown("high.cx_open"), shown("default.rq_open")), (gauge(0), gauge(0)));
    drop(permits);
    assert_eq!(shown("default.cx_open"), gauge(0));
    cell.swap(None);
    assert_eq!(shown("default.cx_open"), None);
}

/// As Envoy counts them: `zone.FROM.TO.` where both are known, and `canary.`.
#[test]
fn responses_are_counted_by_zone() {
    let registry = Registry::new();
    let config = |shown: &str| {
        let mut config = ClusterConfig::named("c");
        (config.own_zone, config.observability_name) = ("a".into(), shown.into());
        config.discovery = Discovery::Eds(Duration::from_secs(15));
        config
    };
    let of = |port, zone: &str| {
        let locality = super::Locality { zone: zone.into(), ..Default::default() };
        HostConfig { locality: Some(Arc::new(locality)), ..endpoint(port, 1) }
    };
    let cluster = Cluster::new(config("c"), Vec::new(), None, &registry).unwrap();
    let cell = super::Clusters::default().cell("c");
    cell.swap(Some(cluster.clone()));
    cluster.assign(vec![of(1, "a"), of(2, "b"), of(3, "b"), endpoint(4, 1)].into());
    assert_eq!((cluster.stats.update_no_rebuild().get(), cluster.stats.max_host_weight().get()), (0, 1));
    cluster.assign(vec![of(1, "a"), of(2, "b"), of(3, "b"), endpoint(4, 1)].into());
    assert_eq!(cluster.stats.update_no_rebuild().get(), 1);
    let answer = |cluster: &Cluster, port| {
        cluster.stats.of_zone(&member(cluster, port), |responses| responses.count(200));
    };
    (1..=4).for_each(|port| answer(&cluster, port));
    // It was never in force.
    let candidate = Cluster::new(config("c"), vec![of(5, "c")], None, &registry).unwrap();
    answer(&candidate, 5);
    let shown: Vec<String> =
        registry.samples().into_iter().map(|sample| sample.name).filter(|n| n.contains("zone.")).collect();
    for name in ["cluster.c.zone.a.a.upstream_rq_200", "cluster.c.zone.a.b.upstream_rq_2xx"] {
        assert!(shown.iter().any(|shown| shown == name), "{name} of {shown:?}");
    }
    assert!(!shown.iter().any(|shown| shown.contains("zone.a.c") || shown.contains("zone.a..")), "{shown:?}");
    // The endpoints go on under statistics of another name, which know the zone b first.
    cluster.assign(vec![of(2, "b"), of(1, "a")].into());
    let next = Cluster::new(config("d"), Vec::new(), Some(&cluster), &registry).unwrap();
    assert!(Arc::ptr_eq(&member(&cluster, 2), &member(&next, 2)));
    cell.swap(Some(next.clone()));
    // A request of before is still under way.
    answer(&cluster, 2);
    answer(&next, 2);
    let counted = ["c.zone.a.a", "c.zone.a.b", "d.zone.a.a", "d.zone.a.b"].map(|of| {
        let name = format!("cluster.{of}.upstream_rq_200");
        let sample = registry.samples().into_iter().find(|sample| sample.name == name);
        sample.map(|sample| sample.value)
    });
    use crate::metrics::Value::Counter;
    let [in_a, in_b, ..] = &counted;
    assert_eq!((in_a, in_b), (&Some(Counter(1)), &Some(Counter(2))), "{counted:?}");
    assert!(matches!(&counted[2..], [None | Some(Counter(0)), Some(Counter(1))]), "{counted:?}");
}

/// A look once a second at the local cluster made weights too, whatever their period.
#[test]
fn tending_leaves_reported_weights_alone() {
    use crate::cluster::{LoadReports, ZoneAware};
    let reports = LoadReports { blackout: Duration::ZERO, ..LoadReports::default() };
    let mut config = ClusterConfig::named("c");
    config.balance.policy = Policy::ClientSideWeighted(reports.clone().into());
    let zone = ZoneAware {
        local: Clusters::default().cell("local"),
        own: None,
        enabled: 100,
        min_size: 6,
        force_own: None,
        by_weight: false,
    };
    config.balance.zone = Some(Arc::new(zone));
    let cluster = Cluster::new(config, vec![endpoint(1, 3), endpoint(2, 4)], None, &Registry::new()).unwrap();
    let now = Instant::now();
    for (port, load) in [(1, "0.1"), (2, "0.2")] {
        let mut fields = crate::headers::Headers::new();
        let report = format!("TEXT cpu_utilization:{load},rps_fractional:100");
        fields.append("endpoint-load-metrics", report.as_bytes());
        assert!(reports.take(&fields, &member(&cluster, port).host, now));
    }
    let weights = || [1, 2].map(|port| cluster.weight_of(&member(&cluster, port)));
    let before = weights();
    cluster.tend(now + Duration::from_millis(5));
    assert_eq!(weights(), before);
    cluster.reweigh(now + Duration::from_millis(5));
    assert_eq!(weights(), [1000, 500]);
}

/// It was, of endpoints that come by themselves alone.
#[test]
fn the_heaviest_of_endpoints_that_change_is_shown() {
    let shown = |discovery: Discovery| {
        let mut config = ClusterConfig::named("c");
        config.discovery = discovery;
        let cluster = Cluster::new(config, Vec::new(), None, &Registry::new()).unwrap();
        cluster.update_hosts(vec![endpoint(1, 3), endpoint(2, 2)]);
        assert_eq!(cluster.stats.max_host_weight().get(), 0, "it is not in force yet");
        super::Clusters::default().cell("c").swap(Some(cluster.clone()));
        cluster.stats.max_host_weight().get()
    };
    let dns = super::DnsOptions::default;
    assert_eq!([Discovery::StrictDns(dns()), Discovery::LogicalDns(dns())].map(shown), [3, 0]);
}
