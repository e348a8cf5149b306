//! Clusters and listeners that are not yet fit to take the place of what is in force.
//!
//! A cluster whose endpoints or secrets nobody knows yet would answer 503 where the one before it still serves, and a
//! listener whose routes have not come 404, one without its secrets nothing at all. So they wait here for their first news, or until they have waited long enough; the
//! control thread goes on meanwhile.

use super::WarmingNames;
use super::waiting::Waiting;
use crate::dns::Discoverer;
use crate::health::{HealthChecker, Watched};
use sixfold_core::cluster::{Assignment, Cluster, Clusters, Discovery};
use sixfold_core::listener::{Listener, NetworkFilter};
use sixfold_core::model::Diff;
use sixfold_core::router::RouteTableCell;
use sixfold_core::tls::{Awaited, ServerTls};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long a cluster waits for the first answer of DNS: Envoy's default of `initial_fetch_timeout`.
const FIRST_ANSWER: Duration = Duration::from_secs(15);
/// How long it waits for the first check of its endpoints, beyond the time of one check.
const FIRST_CHECK: Duration = Duration::from_secs(15);

sixfold_core::stat_block! {
    /// Statistics under `cluster_manager.`.
    pub struct WarmingStats {
        counters: [cluster_added, cluster_modified, cluster_removed], gauges: [warming_clusters], histograms: [],
    }
}

/// The candidates.
pub(super) struct Warming {
    clusters: Waiting<Candidate>,
    listeners: Waiting<Arc<Listener>>,
    stats: WarmingStats,
}

/// Clusters that must wait, and whether each waits for secrets, among other things.
pub(super) type Cold = HashMap<Arc<str>, bool>;

/// A cluster that waits.
struct Candidate {
    cluster: Arc<Cluster>,
    /// The checks of its endpoints.
    checks: Option<Arc<Watched>>,
    /// Since when endpoints of its name are waited for.
    since: Instant,
    /// Dropped when its endpoints come, which ends the wait for them and no other.
    until_endpoints: Option<oneshot::Sender<()>>,
}

/// What becomes of a candidate that is given endpoints.
enum Given {
    /// It waits for nothing else.
    Warm(Arc<Cluster>),
    /// It waits on, and the cluster in force is to have them too.
    Both,
    /// It waits on, and the cluster in force finds its endpoints otherwise.
    Alone,
}

/// A candidate that need not wait any longer.
pub(super) enum Warm {
    Cluster(Arc<str>, Arc<Cluster>),
    Listener(Arc<str>, Arc<Listener>),
}

/// What a cluster waits for.
enum Wait {
    /// Every name has been looked up once, well or badly.
    Answers(oneshot::Receiver<()>),
    /// Endpoints have come by a change of their own, or this much has passed since they were first waited for.
    Endpoints(Duration),
    /// Nothing but secrets and the first checks, where there are such.
    Rest,
}

/// Who finds the endpoints of clusters, and who checks them.
pub(super) struct Helpers<'a> {
    /// Those in force: endpoints that come for a candidate are theirs too.
    pub(super) clusters: &'a Clusters,
    /// Without it names get no endpoints, and nothing waits for them.
    pub(super) discoverer: Option<&'a Discoverer>,
    pub(super) checker: &'a HealthChecker,
}

impl Warming {
    pub(super) fn new(registry: &sixfold_core::metrics::Registry) -> Warming {
        let stats = WarmingStats::new(registry, "cluster_manager.");
        Warming { clusters: Waiting::new(), listeners: Waiting::new(), stats }
    }

    /// Counts the clusters that come, change and go.
    pub(super) fn count_changes(&self, diff: &Diff, known: &Clusters) {
        for (name, cluster) in &diff.clusters {
            match (cluster.is_some(), known.find(name).is_some()) {
                (true, false) => self.stats.cluster_added().inc(),
                (true, true) => self.stats.cluster_modified().inc(),
                (false, true) => self.stats.cluster_removed().inc(),
                (false, false) => {}
            }
        }
    }

    /// Takes the clusters out of `diff` that must wait, and puts those in that wait no longer; answers the names
    /// of the former. Discovery and checks begin for every cluster that wants them.
    pub(super) fn hold_back(&mut self, diff: &mut Diff, helpers: &Helpers<'_>) -> Cold {
        let mut held = Cold::new();
        for (name, cluster) in std::mem::take(&mut diff.clusters) {
            let earlier = self.clusters.take(&name);
            let Some(cluster) = cluster else {
                helpers.checker.give_up(&name);
                diff.clusters.push((name, None));
                continue;
            };
            let checks = helpers.checker.watch(&cluster);
            match wait_of(&cluster, checks.as_deref(), helpers.discoverer) {
                Some(wait) => {
                    held.insert(name.clone(), lacks_secret(&cluster));
                    let earlier = earlier.filter(|earlier| finds_alike(&earlier.cluster, &cluster));
                    let since = earlier.map_or_else(Instant::now, |earlier| earlier.since);
                    self.hold(name, cluster, checks, wait, since);
                }
                None => diff.clusters.push((name, Some(cluster))),
            }
        }
        for (name, hosts) in std::mem::take(&mut diff.endpoints) {
            match self.give(&name, &hosts, helpers.clusters) {
                Some(Given::Warm(cluster)) => {
                    held.remove(&name);
                    diff.clusters.push((name, Some(cluster)));
                }
                Some(Given::Alone) => {}
                Some(Given::Both) | None => diff.endpoints.push((name, hosts)),
            }
        }
        self.count();
        held
    }

    /// Takes the listeners out of `diff` that must wait for secrets, or for route tables which neither are there nor
    /// come with it. It is to be applied next. While the process is `starting` they wait together: who finds one of them open
    /// may take it that all are, as with Envoy, whose workers start when everything has come.
    pub(super) fn hold_back_listeners(&mut self, diff: &mut Diff, starting: bool) {
        let changed = std::mem::take(&mut diff.listeners);
        let of = |listener: Option<&Listener>| listener.map_or_else(Waits::default, |l| Waits::of(l, diff));
        let mut waits: Vec<Waits> = changed.iter().map(|(_, listener)| of(listener.as_deref())).collect();
        if starting {
            let all = waits.iter().fold(Waits::default(), |all, one| all.and(one));
            waits.fill(all);
        }
        for ((name, listener), waits) in changed.into_iter().zip(waits) {
            self.listeners.take(&name);
            match &listener {
                Some(held) if !waits.is_empty() => self.listeners.hold(name, held.clone(), waits.end()),
                _ => diff.listeners.push((name, listener)),
            }
        }
    }

    /// Names of clusters and of listeners that wait.
    pub(super) fn names(&self) -> WarmingNames {
        WarmingNames { clusters: self.clusters.names(), listeners: self.listeners.names() }
    }

    /// Listeners that wait.
    pub(super) fn listeners(&self) -> usize {
        self.listeners.len()
    }

    /// The next candidate that need not wait any longer. Never ends while nothing waits; may be dropped.
    pub(super) async fn warm(&mut self) -> Warm {
        tokio::select! {
            (name, candidate) = self.clusters.next() => {
                self.count();
                Warm::Cluster(name, candidate.cluster)
            }
            (name, listener) = self.listeners.next() => Warm::Listener(name, listener),
        }
    }

    fn hold(
        &mut self,
        name: Arc<str>,
        cluster: Arc<Cluster>,
        checks: Option<Arc<Watched>>,
        wait: Wait,
        since: Instant,
    ) {
        let (until_endpoints, come) = oneshot::channel();
        let until_endpoints = Some(until_endpoints);
        let candidate =
            Candidate { cluster: cluster.clone(), checks: checks.clone(), since, until_endpoints };
        self.clusters.hold(name, candidate, async move {
            let secrets = first_secrets(cluster.config.all_tls().filter_map(|tls| tls.awaited()));
            tokio::join!(secrets, endpoints(wait, since, come));
            if let Some(checks) = checks {
                let time = cluster.config.health_check.as_ref().map_or(Duration::ZERO, |check| check.timeout);
                // An endpoint that is silent has failed by then.
                let limit = time.saturating_add(FIRST_CHECK);
                let _ = tokio::time::timeout(limit, checks.all_checked()).await;
            }
        });
    }

    /// Gives endpoints to the candidate that finds its own so; `None` when there is none. What it waits for beside them
    /// goes on as it began: who sends endpoints again and again must not keep it waiting.
    fn give(&mut self, name: &str, hosts: &Assignment, in_force: &Clusters) -> Option<Given> {
        let candidate = self.clusters.get_mut(name)?;
        if !is_eds(&candidate.cluster) {
            return None;
        }
        candidate.cluster.assign(hosts.clone());
        candidate.until_endpoints = None;
        if !waits_further(&candidate.cluster, candidate.checks.as_deref()) {
            return self.clusters.take(name).map(|candidate| Given::Warm(candidate.cluster));
        }
        let shared = in_force.find(name).is_some_and(|in_force| finds_alike(&in_force, &candidate.cluster));
        Some(if shared { Given::Both } else { Given::Alone })
    }

    fn count(&self) {
        self.stats.warming_clusters().set(self.clusters.len() as u64);
    }
}

fn is_eds(cluster: &Cluster) -> bool {
    matches!(cluster.config.discovery, Discovery::Eds(_))
}

/// Whether the endpoints of both come by the same assignments.
fn finds_alike(one: &Cluster, other: &Cluster) -> bool {
    let service = |cluster: &'_ Cluster| match &cluster.config.eds_service_name {
        Some(name) => name.clone(),
        None => cluster.config.name.clone(),
    };
    is_eds(one) && is_eds(other) && service(one) == service(other)
}

/// Ends when a cluster has its endpoints, or has waited for them for long enough. `come` ends when some are assigned.
async fn endpoints(wait: Wait, since: Instant, come: oneshot::Receiver<()>) {
    match wait {
        Wait::Rest => {}
        // Too late is as good as badly answered.
        Wait::Answers(first) => drop(tokio::time::timeout(FIRST_ANSWER, first).await),
        Wait::Endpoints(limit) => match since.checked_add(limit) {
            Some(until) => drop(tokio::time::timeout_at(until, come).await),
            None => drop(come.await),
        },
    }
}

/// What a cluster must wait for; `None` when its endpoints are known, from the one before it too, and one of them is
/// well, and its secrets have come.
fn wait_of(
    cluster: &Arc<Cluster>,
    checks: Option<&Watched>,
    discoverer: Option<&Discoverer>,
) -> Option<Wait> {
    let first = discoverer.and_then(|discoverer| discoverer.start(cluster));
    let wait = match cluster.config.discovery {
        Discovery::Eds(limit) => (cluster.hosts.load().total() == 0).then_some(Wait::Endpoints(limit)),
        _ => first.filter(|_| !cluster.is_resolved()).map(Wait::Answers),
    };
    wait.or_else(|| waits_further(cluster, checks).then_some(Wait::Rest))
}

/// Whether a cluster whose endpoints are known waits for its secrets, or for the first checks.
fn waits_further(cluster: &Cluster, checks: Option<&Watched>) -> bool {
    lacks_secret(cluster) || checks.is_some_and(|checks| must_be_checked(cluster, checks))
}

fn lacks_secret(cluster: &Cluster) -> bool {
    cluster.config.all_tls().any(|tls| awaits(tls.awaited()))
}

fn awaits(secrets: Option<&Awaited>) -> bool {
    secrets.is_some_and(Awaited::is_awaited)
}

/// Whether no endpoint would get traffic only since none was checked yet.
fn must_be_checked(cluster: &Cluster, checks: &Watched) -> bool {
    !checks.is_all_checked() && cluster.hosts.load().healthy() == 0
}

/// What a listener waits for.
#[derive(Clone, Default)]
struct Waits {
    tables: Vec<Missing>,
    secrets: Vec<Arc<ServerTls>>,
}

impl Waits {
    fn of(listener: &Listener, diff: &Diff) -> Waits {
        let secrets = listener.tls().filter(|tls| awaits(tls.awaited())).cloned().collect();
        Waits { tables: missing_tables(listener, diff), secrets }
    }

    fn and(mut self, other: &Waits) -> Waits {
        self.tables.extend(other.tables.iter().cloned());
        self.secrets.extend(other.secrets.iter().cloned());
        self
    }

    fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.secrets.is_empty()
    }

    async fn end(self) {
        let of = self.secrets.iter().filter_map(|tls| tls.awaited());
        tokio::join!(first_tables(self.tables), first_secrets(of));
    }
}

/// A place for a table, and how long it is waited for.
type Missing = (Arc<RouteTableCell>, Option<Duration>);

/// The tables of a listener that nothing has come for, nor comes with `diff`.
fn missing_tables(listener: &Listener, diff: &Diff) -> Vec<Missing> {
    let comes = |cell: &RouteTableCell| diff.route_tables.iter().any(|(key, _)| *key == cell.key);
    let chains = listener.chains.iter().chain(&listener.default_chain);
    let managers = chains.filter_map(|chain| match chain.filter.last() {
        NetworkFilter::Http(manager) => Some(manager),
        _ => None,
    });
    let missing = managers.filter(|manager| manager.routes.is_awaited() && !comes(&manager.routes));
    missing.map(|manager| (manager.routes.clone(), manager.first_table)).collect()
}

/// Waits for all of them at once, each as long as it may take.
async fn first_tables(missing: Vec<Missing>) {
    let start = Instant::now();
    for (cell, limit) in missing {
        match limit.and_then(|limit| start.checked_add(limit)) {
            // The listener serves without it then.
            Some(until) => drop(tokio::time::timeout_at(until, cell.first()).await),
            None => cell.first().await,
        }
    }
}

/// Waits for all of them at once, each as long as it may take.
async fn first_secrets(secrets: impl Iterator<Item = &Awaited>) {
    let start = Instant::now();
    for awaited in secrets {
        match awaited.limit.and_then(|limit| start.checked_add(limit)) {
            // Handshakes fail until they come.
            Some(until) => drop(tokio::time::timeout_at(until, awaited.first()).await),
            None => awaited.first().await,
        }
    }
}

#[cfg(test)]
mod tests {
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
}
