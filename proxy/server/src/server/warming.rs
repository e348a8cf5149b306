//! Clusters that are not yet fit to take the place of what is in force.
//!
//! A cluster whose endpoints nobody knows yet would answer 503 where the one before it still serves. So it waits
//! here for its first news, or until it has waited long enough; the control thread goes on meanwhile.

use crate::dns::Discoverer;
use sixfold_core::cluster::{Cluster, Discovery, HostConfig};
use sixfold_core::model::Diff;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};

/// How long a cluster waits for the first answer of DNS: Envoy's default of `initial_fetch_timeout`.
const FIRST_ANSWER: Duration = Duration::from_secs(15);

sixfold_core::stat_block! {
    /// Statistics under `cluster_manager.`.
    pub struct WarmingStats { counters: [], gauges: [warming_clusters], histograms: [] }
}

/// The candidates, by name: a later one takes the place of one that waits.
pub(super) struct Warming {
    waiting: HashMap<Arc<str>, Candidate>,
    /// What they wait for; ends with the candidate's name and number.
    ends: JoinSet<(Arc<str>, u64)>,
    numbers: u64,
    stats: WarmingStats,
}

struct Candidate {
    /// Tells it from others of its name.
    number: u64,
    cluster: Arc<Cluster>,
    end: AbortHandle,
}

/// What a candidate waits for.
enum Wait {
    /// Every name has been looked up once, well or badly.
    Answers(oneshot::Receiver<()>),
    /// Endpoints have come by a change of their own.
    Endpoints(Duration),
}

impl Warming {
    pub(super) fn new(registry: &sixfold_core::metrics::Registry) -> Warming {
        let stats = WarmingStats::new(registry, "cluster_manager.");
        Warming { waiting: HashMap::new(), ends: JoinSet::new(), numbers: 0, stats }
    }

    /// Takes the clusters out of `diff` that must wait, and puts those in that wait no longer; answers the names
    /// of the former. Discovery begins for every cluster that needs it; without a discoverer names get no
    /// endpoints, and nothing waits for them.
    pub(super) fn hold_back(&mut self, diff: &mut Diff, discoverer: Option<&Discoverer>) -> Vec<Arc<str>> {
        let mut held = Vec::new();
        for (name, cluster) in std::mem::take(&mut diff.clusters) {
            self.take(&name);
            let wait = cluster.as_ref().and_then(|cluster| wait_of(cluster, discoverer));
            match (cluster, wait) {
                (Some(cluster), Some(wait)) => {
                    held.push(name.clone());
                    self.hold(name, cluster, wait);
                }
                (cluster, _) => diff.clusters.push((name, cluster)),
            }
        }
        for (name, hosts) in std::mem::take(&mut diff.endpoints) {
            match self.endpoints(&name, hosts) {
                Ok(cluster) => {
                    held.retain(|held| *held != name);
                    diff.clusters.push((name, Some(cluster)));
                }
                Err(hosts) => diff.endpoints.push((name, hosts)),
            }
        }
        self.count();
        held
    }

    /// The next candidate that need not wait any longer. Never ends while nothing waits; may be dropped.
    pub(super) async fn warm(&mut self) -> (Arc<str>, Arc<Cluster>) {
        loop {
            match self.ends.join_next().await {
                Some(Ok((name, number))) if self.waiting.get(&name).is_some_and(|c| c.number == number) => {
                    if let Some(cluster) = self.take(&name) {
                        self.count();
                        return (name, cluster);
                    }
                }
                // Taken back in the meantime.
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    fn hold(&mut self, name: Arc<str>, cluster: Arc<Cluster>, wait: Wait) {
        let number = self.numbers;
        self.numbers += 1;
        let key = name.clone();
        let end = self.ends.spawn(async move {
            match wait {
                // Too late is as good as badly answered.
                Wait::Answers(first) => drop(tokio::time::timeout(FIRST_ANSWER, first).await),
                Wait::Endpoints(limit) => tokio::time::sleep(limit).await,
            }
            (key, number)
        });
        self.waiting.insert(name, Candidate { number, cluster, end });
    }

    /// Gives endpoints to the candidate that waits for them; gives them back when none does.
    fn endpoints(&mut self, name: &str, hosts: Vec<HostConfig>) -> Result<Arc<Cluster>, Vec<HostConfig>> {
        let waits = |c: &Candidate| matches!(c.cluster.config.discovery, Discovery::Eds(_));
        if !self.waiting.get(name).is_some_and(waits) {
            return Err(hosts);
        }
        match self.take(name) {
            Some(cluster) => {
                cluster.update_hosts(hosts);
                Ok(cluster)
            }
            None => Err(hosts),
        }
    }

    fn take(&mut self, name: &str) -> Option<Arc<Cluster>> {
        let candidate = self.waiting.remove(name)?;
        candidate.end.abort();
        Some(candidate.cluster)
    }

    fn count(&self) {
        self.stats.warming_clusters().set(self.waiting.len() as u64);
    }
}

/// What a cluster must wait for; `None` when its endpoints are known, from the one before it too.
fn wait_of(cluster: &Arc<Cluster>, discoverer: Option<&Discoverer>) -> Option<Wait> {
    let first = discoverer.and_then(|discoverer| discoverer.start(cluster));
    match cluster.config.discovery {
        Discovery::Eds(limit) => (cluster.hosts.load().total() == 0).then_some(Wait::Endpoints(limit)),
        _ => first.filter(|_| !cluster.is_resolved()).map(Wait::Answers),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sixfold_core::cluster::{Address, ClusterConfig};
    use sixfold_core::metrics::Registry;

    const LIMIT: Duration = Duration::from_secs(3);

    fn eds(previous: Option<&Cluster>) -> Arc<Cluster> {
        let mut config = ClusterConfig::named("c");
        config.discovery = Discovery::Eds(LIMIT);
        Cluster::new(config, Vec::new(), previous, &Registry::new()).unwrap()
    }

    fn change(cluster: &Arc<Cluster>) -> Diff {
        Diff { clusters: vec![("c".into(), Some(cluster.clone()))], ..Diff::default() }
    }

    fn endpoints(port: u16) -> Vec<(Arc<str>, Vec<HostConfig>)> {
        vec![("c".into(), vec![HostConfig::new(Address::Ip(([127, 0, 0, 1], port).into()))])]
    }

    /// Names in the diff after what must wait was taken out, and how many wait.
    fn hold(warming: &mut Warming, mut diff: Diff) -> (Diff, usize) {
        warming.hold_back(&mut diff, None);
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
        tokio::time::timeout(LIMIT * 2, warming.warm()).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_for_ever() {
        let mut warming = Warming::new(&Registry::new());
        let (start, cluster) = (tokio::time::Instant::now(), eds(None));
        hold(&mut warming, change(&cluster));
        let (name, warm) = warming.warm().await;
        assert!(Arc::ptr_eq(&warm, &cluster));
        assert_eq!((&*name, start.elapsed(), warming.stats.warming_clusters().get()), ("c", LIMIT, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_candidate_takes_the_place_of_one_that_waits() {
        let mut warming = Warming::new(&Registry::new());
        let (first, second) = (eds(None), eds(None));
        hold(&mut warming, change(&first));
        tokio::time::sleep(LIMIT / 2).await;
        let start = tokio::time::Instant::now();
        assert_eq!(hold(&mut warming, change(&second)).1, 1);
        let (_, warm) = warming.warm().await;
        assert!(Arc::ptr_eq(&warm, &second));
        assert_eq!(start.elapsed(), LIMIT, "the wait begins anew");
        // A removal ends the wait as well.
        hold(&mut warming, change(&first));
        let gone = Diff { clusters: vec![("c".into(), None)], ..Diff::default() };
        let (diff, waiting) = hold(&mut warming, gone);
        assert_eq!((diff.clusters.len(), waiting), (1, 0));
    }

    #[tokio::test]
    async fn a_cluster_whose_endpoints_are_known_does_not_wait() {
        let mut warming = Warming::new(&Registry::new());
        let first = eds(None);
        first.update_hosts(endpoints(1).remove(0).1);
        let second = eds(Some(&first));
        let (diff, waiting) = hold(&mut warming, change(&second));
        assert_eq!((diff.clusters.len(), waiting, second.hosts.load().total()), (1, 0, 1));
    }
}
