//! Checks as APISIX has them: rounds of probes, and nodes that leave and come back by what is counted of them.

use super::CHECKED;
use super::probe::Target;
use parking_lot::Mutex;
use sixfold_core::cluster::{ActiveCheck, Cluster, CountedChecks, Counts, Host, Reasons, Seen};
use sixfold_core::plugin::Callout;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;

/// No interval is longer.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Who checks the nodes of each cluster, by its name.
#[derive(Default)]
pub(super) struct Counted(Mutex<HashMap<Arc<str>, Checker>>);

/// The task of one cluster; it ends when this is dropped.
struct Checker {
    rounds: Arc<Rounds>,
    task: AbortHandle,
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What outlives changes of a cluster that leave its checks as they are.
struct Rounds {
    checks: Arc<CountedChecks>,
    /// When nodes are probed next: those that are used, and the others.
    due: Mutex<[Option<Instant>; 2]>,
}

impl Rounds {
    /// The first ones come after their interval, as in APISIX.
    fn new(checks: Arc<CountedChecks>) -> Rounds {
        let rounds = Rounds { checks, due: Mutex::default() };
        *rounds.due.lock() = [true, false].map(|usable| rounds.after(usable, Instant::now()));
        rounds
    }

    fn after(&self, usable: bool, now: Instant) -> Option<Instant> {
        let ActiveCheck { healthy_interval, unhealthy_interval, .. } = &self.checks.active;
        let interval = if usable { healthy_interval } else { unhealthy_interval };
        interval.map(|interval| now + interval.clamp(Duration::from_millis(1), LONGEST))
    }

    /// Whether a round of either kind is due now; the next one of it is due later then.
    fn take_due(&self, now: Instant) -> [bool; 2] {
        let mut due = self.due.lock();
        [(0, true), (1, false)].map(|(index, usable)| {
            let is_due = due[index].is_some_and(|due| due <= now);
            if is_due {
                due[index] = self.after(usable, now);
            }
            is_due
        })
    }

    /// Ends when a round is due.
    async fn wait(&self) {
        let next = self.due.lock().iter().flatten().min().copied();
        match next {
            Some(next) => tokio::time::sleep_until(next).await,
            None => std::future::pending().await,
        }
    }
}

impl Counted {
    /// Checks the nodes of a cluster in place of those of the one before it.
    pub(super) fn watch(
        &self,
        cluster: &Arc<Cluster>,
        callout: &Arc<dyn Callout>,
        runtime: impl FnOnce() -> Option<Handle>,
    ) {
        let name = &cluster.config.name;
        let Some(checks) = &cluster.config.checks else {
            if self.0.lock().remove(name).is_some() {
                acquit(cluster);
            }
            return;
        };
        let mut checkers = self.0.lock();
        let before = checkers.remove(name).map(|checker| checker.rounds.clone());
        let before = before.filter(|before| before.checks.fingerprint == checks.fingerprint);
        let rounds = before.unwrap_or_else(|| Arc::new(Rounds::new(checks.clone())));
        let Some(runtime) = runtime() else { return };
        let task = runtime.spawn(run(Arc::downgrade(cluster), rounds.clone(), callout.clone()));
        checkers.insert(name.clone(), Checker { rounds, task: task.abort_handle() });
    }

    pub(super) fn forget(&self, name: &str) {
        self.0.lock().remove(name);
    }
}

/// Takes back what checks that are no more had against the nodes.
fn acquit(cluster: &Cluster) {
    let hosts = cluster.hosts.load();
    hosts.iter().for_each(|member| member.host.forget_counts());
    if hosts.iter().fold(false, |changed, member| member.host.set_reason(CHECKED, false) | changed) {
        cluster.refresh();
    }
}

/// Looks after the nodes of a cluster.
async fn run(cluster: Weak<Cluster>, rounds: Arc<Rounds>, callout: Arc<dyn Callout>) {
    let Some(news) = cluster.upgrade().and_then(|cluster| cluster.news().cloned()) else { return };
    let mut probes = Probes {
        permits: Arc::new(Semaphore::new(rounds.checks.active.concurrency.max(1))),
        rounds,
        callout,
        nodes: HashMap::new(),
        running: JoinSet::new(),
    };
    loop {
        let Some(current) = cluster.upgrade() else { return };
        settle(&current);
        for (is_due, usable) in probes.rounds.take_due(Instant::now()).into_iter().zip([true, false]) {
            if is_due {
                probes.start(&current, usable);
            }
        }
        drop(current);
        tokio::select! {
            () = news.notified() => {}
            () = probes.rounds.wait() => {}
            Some(ended) = probes.running.join_next() => probes.take(ended),
        }
    }
}

/// Has the cluster use the nodes that what is counted says.
fn settle(cluster: &Cluster) {
    let mut changed = false;
    for member in cluster.hosts.load().iter() {
        let host = &member.host;
        let counts = host.counts();
        let usable = counts.health.is_usable();
        if host.set_reason(Reasons::ACTIVE_CHECK, !usable) {
            changed = true;
            tell(cluster, host, counts);
        }
    }
    if changed {
        cluster.refresh();
    }
}

fn tell(cluster: &Cluster, host: &Host, counts: Counts) {
    let Counts { successes, http_failures, tcp_failures, timeouts, health } = counts;
    tracing::warn!(
        cluster = &*cluster.config.name,
        endpoint = %host.label,
        successes,
        http_failures,
        tcp_failures,
        timeouts,
        "a node is {} now",
        health.name()
    );
}

/// Probes of a cluster's nodes; they end when this is dropped.
struct Probes {
    rounds: Arc<Rounds>,
    callout: Arc<dyn Callout>,
    permits: Arc<Semaphore>,
    /// By the number of the host.
    nodes: HashMap<u64, Probed>,
    running: JoinSet<(u64, Target)>,
}

/// A node that is probed.
enum Probed {
    /// How it is asked the next time.
    Known(Target),
    /// It is being asked by that task, unless that has failed.
    Asked(AbortHandle),
}

impl Probes {
    /// Asks all nodes that are used, or all others, but those whose last probe has not come to an end.
    fn start(&mut self, cluster: &Cluster, usable: bool) {
        while let Some(ended) = self.running.try_join_next() {
            self.take(ended);
        }
        let hosts = cluster.hosts.load();
        let ids: HashSet<u64> = hosts.iter().map(|member| member.host.id).collect();
        self.nodes.retain(|id, _| ids.contains(id));
        for member in hosts.iter().filter(|member| member.host.counts().health.is_usable() == usable) {
            let host = &member.host;
            let active = &self.rounds.checks.active;
            let target = match self.nodes.remove(&host.id) {
                Some(Probed::Asked(task)) if !task.is_finished() => {
                    self.nodes.insert(host.id, Probed::Asked(task));
                    continue;
                }
                Some(Probed::Known(target)) => target,
                _ => Target::of_node(cluster, active, host, self.callout.clone()),
            };
            let (id, host, checks, permits) =
                (host.id, host.clone(), self.rounds.checks.clone(), self.permits.clone());
            let task = self.running.spawn(async move {
                let _permit = permits.acquire().await;
                let asked = tokio::time::timeout(checks.active.timeout, target.see(&checks.active)).await;
                if let Some(seen) = asked.unwrap_or(Some(Seen::Timeout)) {
                    host.count(seen, &checks.active.limits);
                }
                (id, target)
            });
            self.nodes.insert(id, Probed::Asked(task));
        }
    }

    /// Keeps the target of a probe that has ended for the next one. After one that has failed that is made anew.
    fn take(&mut self, ended: Result<(u64, Target), JoinError>) {
        match ended {
            Ok((id, target)) => {
                if let Some(place) = self.nodes.get_mut(&id) {
                    *place = Probed::Known(target);
                }
            }
            Err(error) => tracing::error!("a probe has failed: {error}"),
        }
    }
}
