#![allow(clippy::single_range_in_vec_init, clippy::unwrap_used, clippy::panic)]

mod counted;
mod events;
mod judging;
mod probes;
mod traffic;

use super::probe::{contains_all, judge, serving};
use super::state::{Change, Failure, State, Taken, Verdict};
use super::*;
use crate::callout::{CalloutConfig, Callouts};
use crate::dns::{DnsCache, ResolverConfig};
use bytes::{BufMut, Bytes, BytesMut};
use sixfold_core::cluster::{
    Address, Choice, ClusterConfig, Criteria, EndpointCheck, GrpcProbe, Health, HealthCheck, HostConfig,
    HttpProbe, InFlight, Intervals, Probe, TcpProbe,
};
use sixfold_core::headers::Headers;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

fn http() -> HttpProbe {
    HttpProbe {
        host: String::new(),
        path: "/hc".to_owned(),
        method: http::Method::GET,
        send: Vec::new(),
        add: Vec::new(),
        remove: Vec::new(),
        http2: false,
        expected: vec![200..201],
        retriable: vec![503..504],
        receive: Vec::new(),
        service: None,
    }
}

fn check(interval: Duration, probe: Probe) -> HealthCheck {
    HealthCheck {
        fingerprint: 1,
        timeout: Duration::from_secs(5),
        intervals: Intervals {
            healthy: interval,
            unhealthy: interval,
            to_healthy: interval,
            to_unhealthy: interval,
            no_traffic: interval,
            no_traffic_healthy: interval,
        },
        initial_jitter: Duration::ZERO,
        jitter: Duration::ZERO,
        jitter_percent: 0,
        unhealthy_threshold: 2,
        healthy_threshold: 2,
        reuse_connection: true,
        port: None,
        log_failures: false,
        log_success: false,
        events: Vec::new(),
        probe,
    }
}

fn every_day(probe: Probe) -> HealthCheck {
    check(Duration::from_secs(86_400), probe)
}

const SOON: Duration = Duration::from_millis(10);

/// A server whose answers can be changed.
struct Endpoint {
    address: SocketAddr,
    status: Arc<AtomicU16>,
    asked: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Endpoint {
    async fn start() -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint {
            address: listener.local_addr().unwrap(),
            status: Arc::new(200.into()),
            asked: Arc::default(),
            connections: Arc::default(),
        };
        let Endpoint { status, asked, connections, .. } = &endpoint;
        let (status, asked, connections) = (status.clone(), asked.clone(), connections.clone());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                connections.fetch_add(1, Relaxed);
                let (status, asked) = (status.clone(), asked.clone());
                tokio::spawn(async move {
                    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
                    while let Ok(read @ 1..) = socket.read(&mut buffer).await {
                        head.extend_from_slice(&buffer[..read]);
                        if head.ends_with(b"\r\n\r\n") {
                            let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
                            let head = "GET /hc HTTP/1.1\r\nhost: c\r\nuser-agent: Envoy/HC\r\n\r\n";
                            assert_eq!(text, head);
                            asked.fetch_add(1, Relaxed);
                            let answer =
                                format!("HTTP/1.1 {} x\r\ncontent-length: 2\r\n\r\nok", status.load(Relaxed));
                            socket.write_all(answer.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        endpoint
    }

    fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

fn checker() -> HealthChecker {
    let dns = DnsCache::start(ResolverConfig::default()).unwrap();
    HealthChecker::new(Arc::new(Callouts::new(dns, CalloutConfig::default())), Registry::new())
}

fn cluster(addresses: &[SocketAddr], check: Option<HealthCheck>, previous: Option<&Cluster>) -> Arc<Cluster> {
    let mut config = ClusterConfig::named("c");
    config.health_check = check.map(Arc::new);
    let endpoints = addresses.iter().map(|address| HostConfig::new(Address::Ip(*address)));
    Cluster::new(config, endpoints.collect(), previous, &Registry::new()).unwrap()
}

/// The checks of a cluster that is in force now.
fn checks_of(checker: &HealthChecker, cluster: &Arc<Cluster>) -> Arc<Watched> {
    let watched = checker.watch(cluster).unwrap();
    checker.take_over(cluster);
    watched
}

fn healthy(cluster: &Cluster) -> usize {
    cluster.hosts.load().healthy()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// An address where nobody listens, for as long as the socket is held.
fn nobody() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap(), socket)
}

#[tokio::test]
async fn endpoints_get_traffic_when_they_are_well() {
    let (endpoint, checker, (nobody, _held)) = (Endpoint::start().await, checker(), nobody());
    let probe = || Probe::Http(Box::new(http()));
    let cluster = cluster(&[endpoint.address, nobody], Some(check(SOON, probe())), None);
    assert_eq!(healthy(&cluster), 0, "none was checked yet");
    let watched = checks_of(&checker, &cluster);
    assert!(!watched.is_all_checked());
    watched.all_checked().await;
    assert_eq!((healthy(&cluster), cluster.hosts.load().total()), (1, 2));
    assert_eq!(watched.stats.healthy().get(), 1);
    endpoint.status.store(500, Relaxed);
    until("unhealthy", || healthy(&cluster) == 0).await;
    endpoint.status.store(200, Relaxed);
    until("healthy", || healthy(&cluster) == 1).await;
    let stats = &watched.stats;
    assert!(stats.attempt().get() > 4 && stats.success().get() > 1 && stats.network_failure().get() > 0);
    assert!(stats.failure().get() > stats.network_failure().get(), "a status is no failure of the network");
    assert_eq!(endpoint.connections.load(Relaxed), 1, "it is kept");
    // An endpoint that leaves is checked no more.
    cluster.update_hosts(vec![HostConfig::new(Address::Ip(nobody))]);
    // One probe may be under way yet.
    for left in (0..5).rev() {
        let asked = endpoint.asked();
        tokio::time::sleep(SOON * 10).await;
        if endpoint.asked() == asked {
            break;
        }
        assert!(left > 0, "it is checked for ever");
    }
}

#[tokio::test]
async fn connections_are_kept_only_where_they_are_wanted() {
    let (endpoint, checker) = (Endpoint::start().await, checker());
    let fresh = HealthCheck { reuse_connection: false, ..check(SOON, Probe::Http(Box::new(http()))) };
    let cluster = cluster(&[endpoint.address], Some(fresh), None);
    checks_of(&checker, &cluster);
    until("asked", || endpoint.asked() > 3).await;
    assert!(endpoint.connections.load(Relaxed) > 3);
}

#[tokio::test]
async fn what_is_known_outlives_a_replacement() {
    let (endpoint, checker) = (Endpoint::start().await, checker());
    let every_day = || every_day(Probe::Http(Box::new(http())));
    let first = cluster(&[endpoint.address], Some(every_day()), None);
    checks_of(&checker, &first).all_checked().await;
    let second = cluster(&[endpoint.address], Some(every_day()), Some(&first));
    let watched = checker.watch(&second).unwrap();
    assert!(watched.is_all_checked() && healthy(&second) == 1);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(endpoint.asked(), 1, "nothing to ask for");
    checker.take_over(&second);
    // Another check asks anew, which does not count before it is the one in force.
    endpoint.status.store(500, Relaxed);
    let other = HealthCheck { fingerprint: 2, ..every_day() };
    let third = cluster(&[endpoint.address], Some(other), Some(&second));
    checker.watch(&third).unwrap().all_checked().await;
    second.refresh();
    assert_eq!((endpoint.asked(), healthy(&second), healthy(&third)), (2, 1, 1));
    checker.take_over(&third);
    assert_eq!((endpoint.asked(), healthy(&third)), (2, 0));
    // Without a check nothing is against them.
    let fourth = cluster(&[endpoint.address], None, Some(&third));
    assert!(checker.watch(&fourth).is_none());
    assert_eq!(healthy(&fourth), 0, "the one before is in force still");
    checker.take_over(&fourth);
    assert_eq!(healthy(&fourth), 1);
}

/// Nobody checked the cluster in force while a candidate was checked, whose endpoints may take their time or never come; and
/// what was found on its behalf took traffic from the other.
#[tokio::test]
async fn a_cluster_in_force_is_checked_until_another_takes_its_place() {
    let (endpoint, checker, (nobody, _held)) = (Endpoint::start().await, checker(), nobody());
    let probe = || Probe::Http(Box::new(http()));
    let first = cluster(&[endpoint.address], Some(check(SOON, probe())), None);
    checks_of(&checker, &first).all_checked().await;
    for (fingerprint, address) in [(1, nobody), (2, nobody), (2, endpoint.address)] {
        let other = HealthCheck { fingerprint, ..every_day(probe()) };
        let candidate = cluster(&[address], Some(other), Some(&first));
        checker.watch(&candidate).unwrap().all_checked().await;
        endpoint.status.store(500, Relaxed);
        until("unhealthy", || healthy(&first) == 0).await;
        endpoint.status.store(200, Relaxed);
        until("healthy", || healthy(&first) == 1).await;
    }
    // One without checks changes nothing before it is in force.
    assert!(checker.watch(&cluster(&[endpoint.address], None, Some(&first))).is_none());
    endpoint.status.store(500, Relaxed);
    until("unhealthy", || healthy(&first) == 0).await;
    checker.give_up("c");
    endpoint.status.store(200, Relaxed);
    until("healthy", || healthy(&first) == 1).await;
}

/// A candidate that is checked alike goes on with what is known, also of an endpoint that leaves the cluster in force.
#[tokio::test]
async fn what_the_cluster_in_force_no_longer_checks_its_successor_does() {
    let (endpoint, checker, (nobody, _held)) = (Endpoint::start().await, checker(), nobody());
    let slow = || HealthCheck {
        initial_jitter: Duration::from_secs(3600),
        ..every_day(Probe::Http(Box::new(http())))
    };
    let first = cluster(&[endpoint.address], Some(slow()), None);
    let in_force = checks_of(&checker, &first);
    let second = cluster(&[endpoint.address], Some(slow()), Some(&first));
    let next = checker.watch(&second).unwrap();
    assert!(!in_force.is_all_checked() && !next.is_all_checked());
    let due = || next.sessions.lock().values().next().unwrap().is_running();
    assert!(!due(), "the one in force does so");
    first.update_hosts(vec![HostConfig::new(Address::Ip(nobody))]);
    assert!(due());
}

/// Gauges followed the next change of health alone, and a wait could hang until its limit.
#[tokio::test]
async fn endpoints_that_leave_are_counted_no_more() {
    let (endpoint, checker) = (Endpoint::start().await, checker());
    let every_day = || every_day(Probe::Http(Box::new(http())));
    let first = cluster(&[endpoint.address], Some(every_day()), None);
    let watched = checks_of(&checker, &first);
    watched.all_checked().await;
    assert_eq!(watched.stats.healthy().get(), 1);
    first.update_hosts(Vec::new());
    assert_eq!(watched.stats.healthy().get(), 0);
    // One that has not been checked leaves nothing to wait for.
    let (nobody, _held) = nobody();
    let slow = HealthCheck { initial_jitter: Duration::from_secs(3600), ..every_day() };
    let second = cluster(&[nobody], Some(slow), None);
    let watched = checks_of(&checker, &second);
    assert!(!watched.is_all_checked());
    second.update_hosts(Vec::new());
    watched.all_checked().await;
}

/// What the old checks found as the new ones took over was never counted by these, which waited for it.
#[tokio::test]
async fn a_first_check_that_ends_as_another_cluster_takes_over_is_heard_of() {
    let checker = checker();
    for _ in 0..50 {
        let endpoint = Endpoint::start().await;
        let every_day = || every_day(Probe::Http(Box::new(http())));
        let first = cluster(&[endpoint.address], Some(every_day()), None);
        checks_of(&checker, &first);
        let second = cluster(&[endpoint.address], Some(every_day()), Some(&first));
        let next = checker.watch(&second).unwrap();
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..2000))).await;
        checker.take_over(&second);
        tokio::time::timeout(Duration::from_secs(60), next.all_checked()).await.unwrap();
        checker.forget("c");
    }
}
