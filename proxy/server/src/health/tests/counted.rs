//! APISIX's checks.

use super::*;
use parking_lot::Mutex;
use sixfold_core::cluster::{ActiveCheck, CountedChecks, Limits, ProbeHeader, Seen};
use sixfold_core::headers::HeaderName;
use sixfold_core::plugin::{Callout, CalloutFuture, CalloutRequest, CalloutStreamFuture};

fn limits() -> Limits {
    Limits {
        healthy_statuses: [200].into(),
        unhealthy_statuses: [500].into(),
        successes: 2,
        http_failures: 2,
        tcp_failures: 2,
        timeouts: 2,
    }
}

fn checks(interval: Option<Duration>) -> CountedChecks {
    let add = ProbeHeader {
        name: HeaderName::as_spelled("X-Probe").unwrap(),
        value: b"1".to_vec(),
        replaces: false,
    };
    let active = ActiveCheck {
        http: Some(HttpProbe { path: "/status".to_owned(), add: vec![add], ..super::http() }),
        timeout: Duration::from_secs(5),
        concurrency: 2,
        address_host: Some("n.example".into()),
        healthy_interval: interval,
        unhealthy_interval: interval,
        limits: limits(),
        ..ActiveCheck::default()
    };
    CountedChecks { fingerprint: 1, active, passive: limits(), ends_count: false }
}

fn counted(
    addresses: &[SocketAddr],
    checks: Option<CountedChecks>,
    previous: Option<&Cluster>,
) -> Arc<Cluster> {
    let mut config = ClusterConfig::named("c");
    config.profile = sixfold_core::hcm::Profile::Apisix;
    config.checks = checks.map(Arc::new);
    let endpoints = addresses.iter().map(|address| HostConfig::new(Address::Ip(*address)));
    Cluster::new(config, endpoints.collect(), previous, &Registry::new()).unwrap()
}

/// A node whose status can be changed, with the last head that it was sent.
async fn node(status: u16) -> (SocketAddr, Arc<AtomicU16>, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (status, head): (Arc<AtomicU16>, Arc<Mutex<String>>) = (Arc::new(status.into()), Arc::default());
    let (answers, heads) = (status.clone(), head.clone());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            let read = socket.read(&mut buffer).await.unwrap_or(0);
            *heads.lock() = String::from_utf8_lossy(&buffer[..read]).into_owned();
            let answer = format!("HTTP/1.1 {} x\r\ncontent-length: 2\r\n\r\nok", answers.load(Relaxed));
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    (address, status, head)
}

#[tokio::test]
async fn nodes_are_well_until_probes_have_failed_and_come_back() {
    let ((address, status, head), checker, (nobody, _held)) = (node(200).await, checker(), nobody());
    let cluster = counted(&[address, nobody], Some(checks(Some(SOON))), None);
    assert!(checker.watch(&cluster).is_none(), "nothing waits for APISIX's checks");
    assert_eq!(healthy(&cluster), 2, "new nodes are well");
    checker.take_over(&cluster);
    until("one left", || healthy(&cluster) == 1).await;
    until("asked", || !head.lock().is_empty()).await;
    let asked = head.lock().clone();
    assert!(asked.starts_with("GET /status HTTP/1.1\r\nHost: n.example\r\n"), "{asked}");
    assert!(asked.contains("X-Probe: 1\r\n") && !asked.to_lowercase().contains("user-agent"), "{asked}");
    status.store(500, Relaxed);
    until("none left", || healthy(&cluster) == 0).await;
    status.store(404, Relaxed);
    tokio::time::sleep(SOON * 5).await;
    assert_eq!(healthy(&cluster), 0, "a status of neither list says nothing");
    status.store(200, Relaxed);
    until("back", || healthy(&cluster) == 1).await;
}

/// A connection was a panic with it, and the node was never asked again.
#[tokio::test]
async fn a_time_that_no_clock_can_tell_ends_no_checks() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut checks = checks(Some(SOON));
    (checks.active.http, checks.active.timeout) = (None, Duration::MAX);
    let (checker, cluster) = (checker(), counted(&[listener.local_addr().unwrap()], Some(checks), None));
    assert!(checker.watch(&cluster).is_none());
    checker.take_over(&cluster);
    for _ in 0..3 {
        tokio::time::timeout(Duration::from_secs(20), listener.accept()).await.unwrap().unwrap();
    }
}

/// Counts what is asked, and fails at each.
#[derive(Default)]
struct Fails(std::sync::atomic::AtomicUsize);

impl Callout for Fails {
    fn send(&self, _: CalloutRequest) -> CalloutFuture {
        self.0.fetch_add(1, Relaxed);
        panic!("a probe has failed")
    }

    fn open(&self, request: CalloutRequest) -> CalloutStreamFuture {
        drop(self.send(request));
        panic!("not asked for")
    }
}

// The node counted as being asked for good.
#[tokio::test]
async fn a_node_whose_probe_has_failed_is_probed_again() {
    let (fails, (nobody, _held)) = (Arc::new(Fails::default()), nobody());
    let checker = HealthChecker::new(fails.clone(), Registry::new());
    let cluster = counted(&[nobody], Some(checks(Some(SOON))), None);
    checker.take_over(&cluster);
    until("asked again", || fails.0.load(Relaxed) > 2).await;
    assert_eq!(healthy(&cluster), 1);
}

#[tokio::test]
async fn answers_to_clients_count_too_and_outlive_changes() {
    let (checker, (nobody, _held), (other, _held2)) = (checker(), nobody(), nobody());
    let first = counted(&[nobody, other], Some(checks(None)), None);
    checker.take_over(&first);
    let host = first.hosts.load().iter().next().unwrap().host.clone();
    first.saw(&host, Seen::Status(500));
    first.saw(&host, Seen::TcpFailure);
    assert_eq!(healthy(&first), 2);
    first.saw(&host, Seen::Status(500));
    until("left", || healthy(&first) == 1).await;
    // Another node comes, and what is known of this one stays.
    let (third, _held3) = super::nobody();
    let second = counted(&[nobody, other, third], Some(checks(None)), Some(&first));
    checker.take_over(&second);
    assert_eq!(healthy(&second), 2);
    second.saw(&host, Seen::Status(200));
    second.saw(&host, Seen::Status(200));
    until("back", || healthy(&second) == 3).await;
    // Without checks nothing is against it, and nothing known of it.
    second.saw(&host, Seen::TcpFailure);
    second.saw(&host, Seen::TcpFailure);
    until("left again", || healthy(&second) == 2).await;
    let last = counted(&[nobody, other], None, Some(&second));
    checker.take_over(&last);
    assert_eq!((healthy(&last), host.counts().tcp_failures), (2, 0));
}

#[tokio::test]
async fn a_connection_is_enough_where_no_request_is_made() {
    let ((address, ..), checker, (nobody, _held)) = (node(500).await, checker(), nobody());
    let mut tcp = checks(Some(SOON));
    tcp.active.http = None;
    let cluster = counted(&[address, nobody], Some(tcp), None);
    checker.take_over(&cluster);
    until("one left", || healthy(&cluster) == 1).await;
    let hosts = cluster.hosts.load();
    let states: Vec<_> = hosts.iter().map(|member| member.host.counts().health.name()).collect();
    assert_eq!(states, ["healthy", "unhealthy"]);
}
