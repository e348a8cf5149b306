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
use std::collections::{HashMap, HashSet};
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
        counters: [cluster_added, cluster_modified, cluster_removed, cluster_updated],
        gauges: [warming_clusters],
        histograms: [],
        zeros: [
            Counter "cluster_updated_via_merge", Counter "update_merge_cancelled", Counter "update_out_of_merge_window",
        ],
    }
}

/// The candidates.
pub(super) struct Warming {
    clusters: Waiting<Candidate>,
    listeners: Waiting<Arc<Listener>>,
    stats: WarmingStats,
}

/// Clusters that must wait, and what for.
pub(super) type Cold = HashMap<Arc<str>, Lack>;

/// What a cluster that must wait lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// Secrets, which may take longer than the rest.
    Secrets,
    /// Endpoints, or their first checks.
    Endpoints,
}

impl Lack {
    fn of(cluster: &Cluster) -> Lack {
        if lacks_secret(cluster) { Lack::Secrets } else { Lack::Endpoints }
    }
}

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

    /// Counts the clusters that come, change and go, and those that get other endpoints than those that they began with.
    pub(super) fn count_changes(&self, diff: &Diff, known: &Clusters) {
        let begin: HashSet<&str> = diff.clusters.iter().map(|(name, _)| &**name).collect();
        let had_some = |name: &str| known.find(name).is_some_and(|it| it.hosts.load().total() > 0);
        let updated = diff.endpoints.iter().filter(|(name, _)| !begin.contains(&**name) && had_some(name));
        self.stats.cluster_updated().add(updated.count() as u64);
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
                    held.insert(name.clone(), Lack::of(&cluster));
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
        cluster.stats.warming_state().set(1);
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
    let managers = chains.filter_map(|chain| match &chain.filter {
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
mod tests;
