//! Tasks of the control side that keep the endpoints of DNS clusters fresh.

use super::{Answer, DnsError, Resolver};
use sixfold_core::cluster::{Address, Cluster, Discovery, DnsOptions, HostConfig};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A dropped cluster's task ends after at most so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts a task for each DNS cluster.
#[derive(Clone)]
pub struct Discoverer {
    resolver: Arc<Resolver>,
    runtime: tokio::runtime::Handle,
}

impl Discoverer {
    /// Tasks run on `runtime`: the control side's, never a worker's.
    pub fn new(resolver: Arc<Resolver>, runtime: tokio::runtime::Handle) -> Discoverer {
        Discoverer { resolver, runtime }
    }

    /// Keeps the cluster's endpoints fresh until the cluster is dropped. The answer fires when the first
    /// look-up of every name has come to an end, well or badly: initialisation waits for it. `None` for
    /// clusters without names.
    pub fn start(&self, cluster: &Arc<Cluster>) -> Option<oneshot::Receiver<()>> {
        let (options, logical) = match &cluster.config.discovery {
            Discovery::Static | Discovery::Eds(_) => return None,
            Discovery::StrictDns(options) => (options.clone(), false),
            Discovery::LogicalDns(options) => (options.clone(), true),
        };
        let (done, first) = oneshot::channel();
        let known = |hosts| Known { hosts, empty_since: None };
        let names = cluster.endpoints.iter().map(|e| known(cluster.stands_for(e))).collect();
        let task = Task {
            resolver: self.resolver.clone(),
            cluster: Arc::downgrade(cluster),
            options,
            logical,
            names,
        };
        self.runtime.spawn(task.run(done));
        Some(first)
    }
}

struct Task {
    resolver: Arc<Resolver>,
    cluster: Weak<Cluster>,
    options: DnsOptions,
    logical: bool,
    /// What each endpoint stands for, also from the cluster before this one.
    names: Vec<Known>,
}

/// What an endpoint stands for since its last good answer.
struct Known {
    hosts: Vec<HostConfig>,
    /// When its name was first said to have no address any more.
    empty_since: Option<Instant>,
}

impl Known {
    /// Takes an answer; tells whether that changes anything. An empty one does once it has been given for `hold`.
    fn answered(&mut self, hosts: Vec<HostConfig>, hold: Duration) -> bool {
        if !hosts.is_empty() || self.hosts.is_empty() {
            self.empty_since = None;
        } else if self.empty_since.get_or_insert_with(Instant::now).elapsed() < hold {
            return false;
        }
        let changed = self.hosts != hosts;
        self.hosts = hosts;
        changed
    }
}

impl Task {
    async fn run(mut self, done: oneshot::Sender<()>) {
        let mut done = Some(done);
        let mut first = true;
        while let Some(cluster) = self.cluster.upgrade() {
            let wait = self.refresh(&cluster, first).await;
            drop(cluster);
            first = false;
            if let Some(done) = done.take() {
                let _ = done.send(());
            }
            self.sleep(wait).await;
        }
    }

    /// Looks every name up; answers when to look again.
    async fn refresh(&mut self, cluster: &Cluster, first: bool) -> Duration {
        let lookups = cluster.endpoints.iter().map(|endpoint| {
            let resolver = &self.resolver;
            let family = self.options.family;
            async move {
                match &endpoint.address {
                    Address::Name(name, _) => Some(resolver.resolve(name, family).await),
                    _ => None,
                }
            }
        });
        cluster.stats.update_attempt().inc();
        let answers = futures_util::future::join_all(lookups).await;
        let mut wait: Option<Duration> = None;
        let mut changed = first;
        let (mut failed, mut empty) = (false, true);
        for ((endpoint, known), answer) in cluster.endpoints.iter().zip(&mut self.names).zip(answers) {
            match answer {
                None => empty = false,
                Some(Ok(answer)) => {
                    wait = Some(wait.map_or(answer.ttl, |w| w.min(answer.ttl)));
                    empty &= answer.addresses.is_empty();
                    let hosts = endpoints(endpoint, &answer, self.logical);
                    changed |= known.answered(hosts, self.resolver.hold_empty);
                }
                Some(Err(error)) => {
                    self::report(cluster, &error);
                    failed = true;
                }
            }
        }
        if failed {
            cluster.stats.update_failure().inc();
        } else {
            cluster.stats.update_success().inc();
        }
        if empty && !failed {
            cluster.stats.update_empty().inc();
        }
        if changed {
            cluster.update_hosts(self.names.iter().flat_map(|known| known.hosts.clone()).collect());
        }
        match wait {
            Some(ttl) if self.options.respect_ttl && !failed => ttl,
            _ => self.options.refresh.max(Duration::from_millis(1)),
        }
    }

    /// Waits, but not for a cluster that is gone.
    async fn sleep(&self, wait: Duration) {
        let mut left = wait;
        while !left.is_zero() && self.cluster.strong_count() > 0 {
            let step = left.min(PATIENCE);
            tokio::time::sleep(step).await;
            left -= step;
        }
    }
}

fn report(cluster: &Cluster, error: &DnsError) {
    tracing::warn!(cluster = %cluster.config.name, %error, "DNS look-up failed, the endpoints stay as they are");
}

/// What an endpoint stands for: every address of its name, or one.
fn endpoints(endpoint: &HostConfig, answer: &Answer, logical: bool) -> Vec<HostConfig> {
    let Address::Name(name, port) = &endpoint.address else { return vec![endpoint.clone()] };
    let mut addresses = answer.addresses.clone();
    if !logical {
        // Servers rotate their answers; that is no change.
        addresses.sort_unstable();
        addresses.dedup();
    }
    let take = if logical { 1 } else { addresses.len() };
    let host = |ip| HostConfig {
        address: Address::Ip(SocketAddr::new(ip, *port)),
        hostname: endpoint.resolved_hostname(name),
        ..endpoint.clone()
    };
    addresses.into_iter().take(take).map(host).collect()
}
