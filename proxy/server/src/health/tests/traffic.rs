//! What the traffic itself tells of endpoints.

use super::*;

pub(super) fn choose(cluster: &Arc<Cluster>) -> Option<InFlight> {
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
            attempt.answered(200, headers, true);
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
        max_ejected_percent: 100,
        consecutive_5xx: 3,
        consecutive_gateway: 0,
        consecutive_local: 0,
        success_rate: SuccessRate { hosts: 5, requests: 1000, stdev_factor: 1900 },
        failure_percentage: FailurePercentage { hosts: 5, requests: 1000, threshold: 85 },
        enforcing: [100; CAUSES],
        ..OutlierDetection::default()
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
        let is_grpc = headers.contains("grpc-status");
        let status = if is_grpc { 200 } else { 500 };
        attempt.begin(std::time::Instant::now(), is_grpc);
        attempt.answered(status, &headers, true);
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
        attempt.answered(200, &fields(head), false);
        attempt.trailed(&fields(trailers));
        weights.push(attempt.member().clone());
    }
    until("weighed", || weights.iter().map(|m| cluster.weight_of(m)).eq([1000, 500, 750])).await;
    assert_eq!(weights[0].weight, 1, "what is configured stays");
    let plain = ClusterConfig::named("c");
    let hosts = [1, 2, 3].map(|port| HostConfig::new(Address::Ip(([127, 0, 0, 1], port).into())));
    let plain = Cluster::new(plain, hosts.into(), Some(&cluster), &Registry::new()).unwrap();
    assert!(plain.hosts.load().iter().all(|m| plain.weight_of(m) == 1), "nor does a report count elsewhere");
}
