#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use sixfold_core::cluster::{Address, ClusterConfig, HostConfig};
use sixfold_core::detached::Nowhere;
use sixfold_core::metrics::Registry;
use sixfold_core::tls::ClientTls;
use std::io::Write;

const LIMIT: Duration = Duration::from_secs(3);

fn eds(previous: Option<&Cluster>) -> Arc<Cluster> {
    eds_with(ClusterConfig::named("c"), previous)
}

fn eds_with(mut config: ClusterConfig, previous: Option<&Cluster>) -> Arc<Cluster> {
    config.discovery = Discovery::Eds(LIMIT);
    Cluster::new(config, Vec::new(), previous, &Registry::new()).unwrap()
}

fn change(cluster: &Arc<Cluster>) -> Diff {
    Diff { clusters: vec![("c".into(), Some(cluster.clone()))], ..Diff::default() }
}

fn endpoints(port: u16) -> Vec<(Arc<str>, Assignment)> {
    vec![("c".into(), vec![HostConfig::new(Address::Ip(([127, 0, 0, 1], port).into()))].into())]
}

async fn warm_cluster(warming: &mut Warming) -> (Arc<str>, Arc<Cluster>) {
    match warming.warm().await {
        Warm::Cluster(name, cluster) => (name, cluster),
        Warm::Listener(name, _) => panic!("listener {name}"),
    }
}

/// Names in the diff after what must wait was taken out, and how many wait.
fn hold(warming: &mut Warming, diff: Diff) -> (Diff, usize) {
    hold_beside(warming, diff, &Clusters::default())
}

/// The same beside what is in force.
fn hold_beside(warming: &mut Warming, mut diff: Diff, clusters: &Clusters) -> (Diff, usize) {
    let checker = HealthChecker::new(Arc::new(Nowhere), Registry::new());
    warming.hold_back(&mut diff, &Helpers { clusters, discoverer: None, checker: &checker });
    (diff, warming.stats.warming_clusters().get() as usize)
}

#[tokio::test(start_paused = true)]
async fn endpoints_end_the_wait() {
    let mut warming = Warming::new(&Registry::new());
    let cluster = eds(None);
    let (diff, waiting) = hold(&mut warming, change(&cluster));
    assert_eq!((diff.clusters.len(), waiting), (0, 1));
    let (diff, waiting) = hold(&mut warming, Diff { endpoints: endpoints(1), ..Diff::default() });
    let (_, warm) = &diff.clusters[0];
    assert!(Arc::ptr_eq(warm.as_ref().unwrap(), &cluster));
    assert_eq!((diff.endpoints.len(), waiting, cluster.hosts.load().total()), (0, 0, 1));
    // The next ones are for the cluster in force, and a cluster that comes with its endpoints waits not.
    let (diff, _) = hold(&mut warming, Diff { endpoints: endpoints(1), ..Diff::default() });
    assert_eq!((diff.clusters.len(), diff.endpoints.len()), (0, 1));
    let (diff, waiting) = hold(&mut warming, Diff { endpoints: endpoints(1), ..change(&eds(None)) });
    assert_eq!((diff.clusters.len(), diff.endpoints.len(), waiting), (1, 0, 0));
    assert!(tokio::time::timeout(LIMIT * 2, warming.warm()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn nothing_waits_for_ever() {
    let mut warming = Warming::new(&Registry::new());
    let (start, cluster) = (tokio::time::Instant::now(), eds(None));
    hold(&mut warming, change(&cluster));
    let (name, warm) = warm_cluster(&mut warming).await;
    assert!(Arc::ptr_eq(&warm, &cluster));
    assert_eq!((&*name, start.elapsed(), warming.stats.warming_clusters().get()), ("c", LIMIT, 0));
}

#[tokio::test(start_paused = true)]
async fn a_later_candidate_takes_the_place_of_one_that_waits() {
    let mut warming = Warming::new(&Registry::new());
    let (first, second) = (eds(None), eds(None));
    hold(&mut warming, change(&first));
    let start = tokio::time::Instant::now();
    tokio::time::sleep(LIMIT / 2).await;
    assert_eq!(hold(&mut warming, change(&second)).1, 1);
    let (_, warm) = warm_cluster(&mut warming).await;
    assert!(Arc::ptr_eq(&warm, &second));
    assert_eq!(start.elapsed(), LIMIT, "the same endpoints are waited for");
    // A removal ends the wait as well.
    hold(&mut warming, change(&first));
    let gone = Diff { clusters: vec![("c".into(), None)], ..Diff::default() };
    let (diff, waiting) = hold(&mut warming, gone);
    assert_eq!((diff.clusters.len(), waiting), (1, 0));
}

/// A cluster that waits for its secrets for so long.
fn lacking(limit: Duration, service: Option<&str>, previous: Option<&Cluster>) -> Arc<Cluster> {
    let tls = ClientTls::awaiting(None, |_| Awaited::new(Arc::new(()), Some(limit), || {}));
    let eds_service_name = service.map(Into::into);
    eds_with(ClusterConfig { tls: Some(tls), eds_service_name, ..ClusterConfig::named("c") }, previous)
}

/// What serves had only the endpoints of the moment at which its candidate began to wait.
#[tokio::test(start_paused = true)]
async fn endpoints_are_for_the_cluster_in_force_too() {
    let (mut warming, clusters) = (Warming::new(&Registry::new()), Clusters::default());
    let before = eds(None);
    before.assign(endpoints(1).remove(0).1);
    clusters.cell("c").swap(Some(before.clone()));
    let ports = |cluster: &Cluster| {
        let hosts = cluster.hosts.load();
        hosts.iter().map(|member| member.host.label.to_string()).collect::<Vec<_>>()
    };
    for (service, for_both) in [(None, true), (Some("other"), false)] {
        let next = lacking(LIMIT, service, Some(&before));
        assert_eq!(hold_beside(&mut warming, change(&next), &clusters).1, 1);
        let diff = Diff { endpoints: endpoints(2), ..Diff::default() };
        let (diff, waiting) = hold_beside(&mut warming, diff, &clusters);
        assert_eq!((diff.endpoints.len(), waiting), (usize::from(for_both), 1), "{service:?}");
        assert_eq!(ports(&next), ["127.0.0.1:2"]);
    }
}

/// Each assignment began all waits anew: a cluster whose endpoints changed often never came into force.
#[tokio::test(start_paused = true)]
async fn endpoints_do_not_lengthen_other_waits() {
    let mut warming = Warming::new(&Registry::new());
    let (start, next) = (Instant::now(), lacking(LIMIT * 2, None, None));
    hold(&mut warming, change(&next));
    for port in 1..6 {
        tokio::time::sleep(LIMIT / 3).await;
        let (_, waiting) = hold(&mut warming, Diff { endpoints: endpoints(port), ..Diff::default() });
        assert_eq!(waiting, 1);
    }
    let (_, warm) = warm_cluster(&mut warming).await;
    assert!(Arc::ptr_eq(&warm, &next) && start.elapsed() == LIMIT * 2, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_cluster_whose_endpoints_are_known_does_not_wait() {
    let mut warming = Warming::new(&Registry::new());
    let first = eds(None);
    first.assign(endpoints(1).remove(0).1);
    let second = eds(Some(&first));
    let (diff, waiting) = hold(&mut warming, change(&second));
    assert_eq!((diff.clusters.len(), waiting, second.hosts.load().total()), (1, 0, 1));
}

/// An endpoint that connections can be opened to, but that says nothing on them before it is told to.
fn answers_when_told() -> (Address, std::sync::mpsc::Sender<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Ip(listener.local_addr().unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        if told.recv().is_ok() {
            let open = |stream: std::io::Result<std::net::TcpStream>| {
                let mut stream = stream.unwrap();
                stream.write_all(b"well").unwrap();
                stream
            };
            let _open: Vec<_> = listener.incoming().map(open).collect();
        }
    });
    (address, tell)
}

/// Endpoints that answered at once were sometimes checked before anybody asked whether they are to be waited for.
#[tokio::test]
async fn a_cluster_waits_for_its_first_checks_unless_some_endpoint_is_well() {
    use sixfold_core::cluster::{HealthCheck, Intervals, Probe, TcpProbe};
    let day = Duration::from_secs(86_400);
    let check = HealthCheck {
        fingerprint: 1,
        timeout: Duration::from_secs(60),
        intervals: Intervals {
            healthy: day,
            unhealthy: day,
            to_healthy: day,
            to_unhealthy: day,
            no_traffic: day,
            no_traffic_healthy: day,
        },
        initial_jitter: Duration::ZERO,
        jitter: Duration::ZERO,
        jitter_percent: 0,
        unhealthy_threshold: 1,
        healthy_threshold: 1,
        reuse_connection: true,
        port: None,
        log_failures: false,
        log_success: false,
        events: Vec::new(),
        probe: Probe::Tcp(TcpProbe { send: Vec::new(), receive: vec![b"well".to_vec()] }),
    };
    let check = Arc::new(check);
    let (address, tell) = answers_when_told();
    let make = |discovery: Discovery, previous: Option<&Cluster>| {
        let mut config = ClusterConfig::named("c");
        (config.discovery, config.health_check) = (discovery, Some(check.clone()));
        let endpoints = vec![HostConfig::new(address.clone())];
        Cluster::new(config, endpoints, previous, &Registry::new()).unwrap()
    };
    let mut warming = Warming::new(&Registry::new());
    let checker = HealthChecker::new(Arc::new(Nowhere), Registry::new());
    let clusters = Clusters::default();
    let helpers = Helpers { clusters: &clusters, discoverer: None, checker: &checker };
    let first = make(Discovery::Static, None);
    let mut diff = change(&first);
    assert_eq!(warming.hold_back(&mut diff, &helpers).len(), 1);
    tell.send(()).unwrap();
    let Warm::Cluster(_, warm) = warming.warm().await else { panic!("a cluster") };
    checker.take_over(&warm);
    assert!(Arc::ptr_eq(&warm, &first) && first.hosts.load().healthy() == 1);
    let mut diff = change(&make(Discovery::Static, Some(&first)));
    assert_eq!((warming.hold_back(&mut diff, &helpers).len(), diff.clusters.len()), (0, 1));
    // Endpoints that come later are checked before they are waited for no longer.
    let (address, tell) = answers_when_told();
    let mut config = ClusterConfig::named("d");
    (config.discovery, config.health_check) = (Discovery::Eds(LIMIT), Some(check));
    let eds = Cluster::new(config, Vec::new(), None, &Registry::new()).unwrap();
    let mut diff = Diff { clusters: vec![("d".into(), Some(eds.clone()))], ..Diff::default() };
    diff.endpoints = vec![("d".into(), vec![HostConfig::new(address)].into())];
    assert_eq!(warming.hold_back(&mut diff, &helpers).len(), 1);
    tell.send(()).unwrap();
    let Warm::Cluster(name, warm) = warming.warm().await else { panic!("a cluster") };
    checker.take_over(&warm);
    assert_eq!((&*name, eds.hosts.load().healthy()), ("d", 1));
}
