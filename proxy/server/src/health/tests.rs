#![allow(clippy::single_range_in_vec_init, clippy::unwrap_used, clippy::panic)]
use super::probe::{contains_all, judge, serving};
use super::state::{Change, State, Verdict};
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
        probe,
    }
}

fn every_day(probe: Probe) -> HealthCheck {
    check(Duration::from_secs(86_400), probe)
}

const SOON: Duration = Duration::from_millis(10);

fn passed() -> Verdict {
    Verdict::Passed { degraded: false }
}

/// Takes verdicts one after the other; what is against the endpoint after each.
fn course(check: &HealthCheck, reasons: Reasons, verdicts: &[Verdict]) -> Vec<(Change, Reasons)> {
    let (mut state, mut reasons) = (State::new(Duration::ZERO), reasons);
    let mut take = |verdict| {
        let changes = state.judge(check, reasons, verdict);
        for (reason, on) in changes.reasons {
            reasons.set(reason, on);
        }
        (changes.kind, reasons)
    };
    verdicts.iter().map(&mut take).collect()
}

#[test]
fn thresholds_are_envoys() {
    use Change::{Changed, Pending, Unchanged};
    let check = every_day(Probe::Tcp(TcpProbe::default()));
    let (well, ill) = (Reasons::empty(), Reasons::ACTIVE_CHECK);
    let (silent, failed) = (Verdict::silent("timeout"), Verdict::failed("status 500"));
    let retriable =
        Verdict::Failed { network: false, retriable: true, exclude: false, reason: String::new() };
    for (from, verdicts, expected) in [
        (ill, vec![passed(), passed()], vec![(Changed, well), (Unchanged, well)]),
        (
            ill,
            vec![silent.clone(), passed(), passed()],
            vec![(Unchanged, ill), (Pending, ill), (Changed, well)],
        ),
        (
            ill,
            vec![silent.clone(), passed(), silent.clone(), passed(), passed()],
            vec![(Unchanged, ill), (Pending, ill), (Unchanged, ill), (Pending, ill), (Changed, well)],
        ),
        (well, vec![silent.clone(), silent], vec![(Pending, well), (Changed, ill)]),
        (
            well,
            vec![retriable.clone(), passed(), retriable],
            vec![(Pending, well), (Unchanged, well), (Pending, well)],
        ),
        // What the endpoint says itself is enough.
        (well, vec![failed], vec![(Changed, ill)]),
    ] {
        assert_eq!(course(&check, from, &verdicts), expected, "{verdicts:?}");
    }
    let degraded = Verdict::Passed { degraded: true };
    let (shy, excluded) = (Reasons::DEGRADED_CHECK, ill | Reasons::EXCLUDED_CHECK);
    assert_eq!(course(&check, well, &[degraded, passed()]), [(Changed, shy), (Changed, well)]);
    let leave = Verdict::Failed { network: false, retriable: false, exclude: true, reason: String::new() };
    let back = [(Changed, excluded), (Changed, ill), (Changed, well)];
    assert_eq!(course(&check, well, &[leave, passed(), passed()]), back);
    assert_eq!(excluded.health(), Health::Excluded);
}

#[test]
fn intervals_go_by_traffic_outcome_and_what_is_pending() {
    let mut check = every_day(Probe::Tcp(TcpProbe::default()));
    let seconds = Duration::from_secs;
    check.intervals = Intervals {
        healthy: seconds(1),
        unhealthy: seconds(2),
        to_healthy: seconds(3),
        to_unhealthy: seconds(4),
        no_traffic: seconds(5),
        no_traffic_healthy: seconds(6),
    };
    let state = State::new(Duration::ZERO);
    for (traffic, passed, change, expected) in [
        (true, true, Change::Unchanged, 1),
        (true, false, Change::Changed, 2),
        (true, true, Change::Pending, 3),
        (true, false, Change::Pending, 4),
        (false, false, Change::Unchanged, 5),
        (false, true, Change::Pending, 5),
        (false, true, Change::Changed, 6),
    ] {
        assert_eq!(state.wait(&check, change, passed, traffic), seconds(expected));
    }
    (check.jitter, check.jitter_percent) = (seconds(1), 100);
    let waits: Vec<_> = (0..300).map(|_| state.wait(&check, Change::Unchanged, true, true)).collect();
    assert!(waits.iter().all(|wait| (seconds(1)..seconds(3)).contains(wait)));
    assert!(waits.iter().any(|wait| *wait > seconds(2)), "both are added");
}

#[test]
fn answers_are_judged_by_status_body_and_headers() {
    let mut probe = http();
    probe.expected = vec![200..300];
    probe.receive = vec![b"one".to_vec(), b"two".to_vec()];
    let says = |name: &str| {
        let mut headers = Headers::new();
        headers.set(name, b"true");
        headers
    };
    let none = Headers::new();
    assert_eq!(judge(&probe, 204, &none, b"one, two"), passed());
    assert!(!judge(&probe, 204, &none, b"two, one").passed());
    assert!(matches!(
        judge(&probe, 503, &none, b""),
        Verdict::Failed { retriable: true, network: false, .. }
    ));
    assert!(matches!(
        judge(&probe, 500, &none, b""),
        Verdict::Failed { retriable: false, network: false, .. }
    ));
    let degraded = judge(&probe, 200, &says("x-envoy-degraded"), b"onetwo");
    assert_eq!(degraded, Verdict::Passed { degraded: true });
    let leave = judge(&probe, 200, &says("x-envoy-immediate-health-check-fail"), b"onetwo");
    assert!(matches!(leave, Verdict::Failed { exclude: true, retriable: false, .. }));
    probe.service = Some(sixfold_core::matcher::StringMatcher::exact("true"));
    assert!(judge(&probe, 200, &says("x-envoy-upstream-healthchecked-cluster"), b"onetwo").passed());
    assert!(!judge(&probe, 200, &none, b"onetwo").passed());
    assert!(contains_all(b"", &[]) && !contains_all(b"aa", &[b"a".to_vec(), b"aa".to_vec()]));
    assert_eq!([serving(&[8, 1]), serving(&[8, 2]), serving(&[])], [Some(1), Some(2), None]);
}

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
                            let head = "GET /hc HTTP/1.1\r\nHost: c\r\nuser-agent: Envoy/HC\r\n\r\n";
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
    tokio::time::sleep(SOON * 5).await;
    let asked = endpoint.asked();
    tokio::time::sleep(SOON * 10).await;
    assert_eq!(endpoint.asked(), asked);
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

#[tokio::test]
async fn an_endpoint_may_be_checked_elsewhere_as_another_or_not_at_all() {
    let (endpoint, checker, (nobody, _held)) = (Endpoint::start().await, checker(), nobody());
    let with = |check: EndpointCheck| HostConfig {
        check: Some(Arc::new(check)),
        ..HostConfig::new(Address::Ip(nobody))
    };
    let port = EndpointCheck { port: Some(endpoint.address.port()), ..EndpointCheck::default() };
    let elsewhere = EndpointCheck {
        address: Some(Address::Ip(endpoint.address)),
        host: Some("c".into()),
        ..EndpointCheck::default()
    };
    let disabled = EndpointCheck { disabled: true, ..EndpointCheck::default() };
    // The check's own host and port count less.
    let mut probe = http();
    probe.host = "other".to_owned();
    let other = HealthCheck { port: Some(1), ..every_day(Probe::Http(Box::new(probe))) };
    for (own, check) in [
        (port, HealthCheck { port: Some(1), ..every_day(Probe::Http(Box::new(http()))) }),
        (elsewhere, other),
        (disabled, every_day(Probe::Http(Box::new(http())))),
    ] {
        let mut config = ClusterConfig::named("c");
        config.health_check = Some(Arc::new(HealthCheck { unhealthy_threshold: 1, ..check }));
        let cluster = Cluster::new(config, vec![with(own.clone())], None, &Registry::new()).unwrap();
        assert_eq!(healthy(&cluster), usize::from(own.disabled));
        checks_of(&checker, &cluster).all_checked().await;
        assert_eq!(healthy(&cluster), 1, "{own:?}");
        // What is said of it may change while it is there.
        cluster.update_hosts(vec![HostConfig::new(Address::Ip(nobody))]);
        until("checked at its own port", || healthy(&cluster) == 0).await;
        let disabled = EndpointCheck { disabled: true, ..EndpointCheck::default() };
        cluster.update_hosts(vec![with(disabled)]);
        until("not checked", || healthy(&cluster) == 1).await;
    }
    assert_eq!(endpoint.asked(), 2);
}

#[tokio::test]
async fn tcp_checks_connect_and_may_ask() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut buffer = [0; 4];
            if socket.read_exact(&mut buffer).await.is_ok() && &buffer == b"PING" {
                socket.write_all(b"+PO").await.unwrap();
                socket.write_all(b"NG\r\n").await.unwrap();
            }
        }
    });
    let checker = checker();
    for (send, receive, well) in [("", "", 1), ("PING", "PONG", 1), ("PONG", "PONG", 0)] {
        let receive = Some(receive.as_bytes().to_vec()).filter(|piece| !piece.is_empty());
        let probe = TcpProbe { send: send.into(), receive: receive.into_iter().collect() };
        let cluster = cluster(&[address], Some(every_day(Probe::Tcp(probe))), None);
        checks_of(&checker, &cluster).all_checked().await;
        assert_eq!(healthy(&cluster), well, "{send}");
    }
    let (nobody, _held) = nobody();
    let cluster = cluster(&[nobody], Some(every_day(Probe::Tcp(TcpProbe::default()))), None);
    checks_of(&checker, &cluster).all_checked().await;
    assert_eq!(healthy(&cluster), 0);
}

/// A gRPC health service that answers with this status.
async fn grpc_service(status: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let mut server = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((mut request, mut respond))) = server.accept().await {
                tokio::spawn(async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let message = request.body_mut().data().await.unwrap().unwrap();
                    assert_eq!(&message[..], b"\0\0\0\0\x05\x0A\x03svc");
                    let mut answer = BytesMut::new();
                    answer.put_slice(&[0, 0, 0, 0, 2, 8, status]);
                    let response = http::Response::builder().header("content-type", "application/grpc");
                    let mut out = respond.send_response(response.body(()).unwrap(), false).unwrap();
                    out.send_data(Bytes::from(answer), false).unwrap();
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    out.send_trailers(trailers).unwrap();
                });
            }
        }
    });
    address
}

#[tokio::test]
async fn grpc_checks_ask_for_a_service() {
    let checker = checker();
    for (status, well) in [(1, 1), (2, 0)] {
        let address = grpc_service(status).await;
        let probe = GrpcProbe { service: "svc".to_owned(), authority: String::new(), metadata: Vec::new() };
        let cluster = cluster(&[address], Some(every_day(Probe::Grpc(probe))), None);
        checks_of(&checker, &cluster).all_checked().await;
        assert_eq!(healthy(&cluster), well, "{status}");
    }
}

fn choose(cluster: &Arc<Cluster>) -> Option<InFlight> {
    cluster.choose(&Choice {
        worker: 0,
        hash: None,
        random: 0,
        attempt: 0,
        tried: &[],
        predicates: &[],
        host_attempts: 1,
        previous_priorities: None,
        subset: Criteria::NONE,
        destination: None,
    })
}

/// By a header of an answer to a request (x-envoy-immediate-health-check-fail).
#[tokio::test]
async fn an_endpoint_may_ask_to_be_left_alone() {
    let (endpoint, checker) = (Endpoint::start().await, checker());
    let cluster = cluster(&[endpoint.address], Some(every_day(Probe::Http(Box::new(http())))), None);
    let cell = sixfold_core::cluster::Clusters::default().cell("c");
    cell.swap(Some(cluster.clone()));
    let watched = checks_of(&checker, &cluster);
    watched.all_checked().await;
    let mut leave = Headers::new();
    leave.set("x-envoy-immediate-health-check-fail", b"true");
    // The worker that heard it waited for whoever held this.
    let sessions = watched.sessions.lock();
    let mut attempts: Vec<_> = (0..3).map(|_| choose(&cluster).unwrap()).collect();
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for (attempt, headers) in attempts.iter_mut().zip([&leave, &leave, &Headers::new()]) {
            attempt.answered(200, headers);
        }
        let _ = done.send(());
    });
    let waited = is_done.recv_timeout(Duration::from_secs(5)).is_err();
    drop(sessions);
    assert!(!waited, "a worker waits for the checker");
    until("left alone", || healthy(&cluster) == 0).await;
    let hosts = cluster.hosts.load();
    let reasons = hosts.iter().next().unwrap().host.reasons();
    assert_eq!(reasons, Reasons::ACTIVE_CHECK | Reasons::EXCLUDED_CHECK);
    assert_eq!((watched.stats.passive_failure().get(), watched.stats.failure().get()), (1, 1));
    assert_eq!(watched.stats.healthy().get(), 0);
}

/// Workers only count: somebody else takes the endpoint out of the balancer's hands, and lets it come back.
#[tokio::test]
async fn outliers_leave_and_come_back() {
    use sixfold_core::cluster::{CAUSES, FailurePercentage, OutcomeKind, OutlierDetection, SuccessRate};
    let detection = OutlierDetection {
        interval: SOON,
        base_ejection: SOON * 5,
        max_ejection: SOON * 5,
        jitter: Duration::ZERO,
        max_ejected_percent: 100,
        always_one: false,
        back_by_check: true,
        split_local: false,
        consecutive_5xx: 3,
        consecutive_gateway: 0,
        consecutive_local: 0,
        success_rate: SuccessRate { hosts: 5, requests: 1000, stdev_factor: 1900 },
        failure_percentage: FailurePercentage { hosts: 5, requests: 1000, threshold: 85 },
        enforcing: [100; CAUSES],
    };
    let mut config = ClusterConfig::named("c");
    config.outlier_detection = Some(Arc::new(detection));
    let address = Address::Ip(([127, 0, 0, 1], 1).into());
    let cluster = Cluster::new(config, vec![HostConfig::new(address)], None, &Registry::new()).unwrap();
    let cell = sixfold_core::cluster::Clusters::default().cell("c");
    cell.swap(Some(cluster.clone()));
    let checker = checker();
    assert!(checker.watch(&cluster).is_none());
    checker.take_over(&cluster);
    // Nobody looked after those of the cluster in force while a candidate without outlier detection warmed up.
    let address = Address::Ip(([127, 0, 0, 1], 1).into());
    let next = Cluster::new(
        ClusterConfig::named("c"),
        vec![HostConfig::new(address)],
        Some(&cluster),
        &Registry::new(),
    );
    assert!(checker.watch(&next.unwrap()).is_none());
    // The status of gRPC in a head counts in place of the other, in which nothing is wrong.
    let mut unavailable = Headers::new();
    unavailable.set("grpc-status", b"14");
    for headers in [Headers::new(), unavailable, Headers::new()] {
        let mut attempt = choose(&cluster).unwrap();
        let status = if headers.contains("grpc-status") { 200 } else { 500 };
        attempt.answered(status, &headers);
        attempt.end(OutcomeKind::Response, status, std::time::Instant::now());
    }
    until("ejected", || healthy(&cluster) == 0).await;
    until("back", || healthy(&cluster) == 1).await;
}

/// Workers note what endpoints report, with heads and with trailers, and the balancer hears of it here.
#[tokio::test]
async fn reported_weights_are_made_of_reports() {
    use sixfold_core::cluster::{LoadReports, Policy};
    let mut config = ClusterConfig::named("c");
    let update = Duration::from_millis(1);
    let reports = LoadReports { blackout: Duration::ZERO, update, ..LoadReports::default() };
    config.balance.policy = Policy::ClientSideWeighted(reports.into());
    let hosts = [1, 2, 3].map(|port| HostConfig::new(Address::Ip(([127, 0, 0, 1], port).into())));
    let cluster = Cluster::new(config, hosts.into(), None, &Registry::new()).unwrap();
    let cell = sixfold_core::cluster::Clusters::default().cell("c");
    cell.swap(Some(cluster.clone()));
    let checker = checker();
    checker.take_over(&cluster);
    let report = |cpu: &str| {
        let mut headers = Headers::new();
        let text = format!("TEXT cpu_utilization:{cpu},rps_fractional:100");
        headers.set("endpoint-load-metrics", text.as_bytes());
        headers
    };
    let mut weights = Vec::new();
    for (head, trailers) in [("0.1", "0.9"), ("", "0.2"), ("", "")] {
        let fields = |cpu: &str| if cpu.is_empty() { Headers::new() } else { report(cpu) };
        let mut attempt = choose(&cluster).unwrap();
        attempt.answered(200, &fields(head));
        attempt.trailed(&fields(trailers));
        weights.push(attempt.member().clone());
    }
    until("weighed", || weights.iter().map(|m| m.weight_in_use()).eq([1000, 500, 750])).await;
    assert_eq!(weights[0].weight, 1, "what is configured stays");
}
