//! Keeps the endpoints of DNS clusters as the cache says.

use super::Question;
use super::cache::{DnsCache, Subscription};
use super::entry::{Outcome, Reading, Subscriber};
use super::pace::Pace;
use parking_lot::Mutex;
use sixfold_core::cluster::{Address, Cluster, Discovery, DnsOptions, HostConfig};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the answers to a cluster's names are collected before its endpoints change: a balancer is built anew for
/// each change.
const SETTLE: Duration = Duration::from_millis(2);

/// Finds the endpoints of clusters.
#[derive(Clone)]
pub struct Discoverer {
    dns: DnsCache,
}

/// The endpoints of a cluster that has names. It lives as long as the cluster, which keeps it.
struct Endpoints {
    cluster: Weak<Cluster>,
    dns: DnsCache,
    /// One address stands for the name, and a name without one has what it had (LOGICAL_DNS).
    logical: bool,
    state: Mutex<State>,
    /// Whether a change is to be made in a moment.
    scheduled: AtomicBool,
    subscriptions: OnceLock<Vec<Subscription>>,
}

struct State {
    /// As configured.
    endpoints: Vec<Endpoint>,
    /// What they stand for is not what the cluster was given.
    changed: bool,
    /// Told when the first question about every name has come to an end.
    first: Option<oneshot::Sender<()>>,
}

/// A configured endpoint.
struct Endpoint {
    /// What it stands for.
    hosts: Vec<HostConfig>,
    /// What `hosts` was made of: addresses, and whether there are said to be none any more.
    made_of: Option<(Arc<[IpAddr]>, bool)>,
    /// Its first question has not come to an end.
    waits: bool,
}

impl Discoverer {
    /// Names are resolved by `dns`.
    pub fn new(dns: DnsCache) -> Discoverer {
        Discoverer { dns }
    }

    /// Keeps the cluster's endpoints fresh until the cluster is dropped. What is known of its names it has when this
    /// returns. The answer fires when the first question about every name has come to an end, well or badly:
    /// initialisation waits for it. `None` for clusters without discovery here.
    pub fn start(&self, cluster: &Arc<Cluster>) -> Option<oneshot::Receiver<()>> {
        let (options, logical) = match &cluster.config.discovery {
            Discovery::Static | Discovery::Eds(_) | Discovery::OriginalDst(_) => return None,
            Discovery::StrictDns(options) => (options, false),
            Discovery::LogicalDns(options) => (options, true),
        };
        let (done, first) = oneshot::channel();
        let endpoint = |config: &HostConfig| Endpoint {
            hosts: cluster.stands_for(config),
            made_of: None,
            waits: matches!(config.address, Address::Name(..)),
        };
        let all = cluster.endpoints.iter().map(endpoint).collect();
        let endpoints = Arc::new(Endpoints {
            cluster: Arc::downgrade(cluster),
            dns: self.dns.clone(),
            logical,
            state: Mutex::new(State { endpoints: all, changed: true, first: Some(done) }),
            scheduled: AtomicBool::new(false),
            subscriptions: OnceLock::new(),
        });
        // Set once, here.
        let _ = endpoints.subscriptions.set(endpoints.subscribe(cluster, options));
        endpoints.publish();
        cluster.attach(endpoints);
        Some(first)
    }
}

impl Endpoints {
    /// Subscribes to every name, and takes what is known of it.
    fn subscribe(self: &Arc<Endpoints>, cluster: &Cluster, options: &DnsOptions) -> Vec<Subscription> {
        let this: Arc<dyn Subscriber> = self.clone();
        let this = Arc::downgrade(&this);
        let pace = Pace::new(options, self.logical);
        let mut subscriptions = Vec::new();
        for (at, endpoint) in cluster.endpoints.iter().enumerate() {
            let Address::Name(name, _) = &endpoint.address else { continue };
            let question = Question::new(name, options.family, options.servers.clone());
            match self.dns.subscribe(&question, pace.clone(), this.clone(), at) {
                Ok((subscription, known)) => {
                    subscriptions.push(subscription);
                    if let Some(reading) = known {
                        // That others have asked counts as well.
                        cluster.stats.update_attempt().inc();
                        count(cluster, &reading);
                        self.take(cluster, at, &reading, true);
                    }
                }
                Err(error) => {
                    tracing::warn!(cluster = %cluster.config.name, %error, "a name is never asked for");
                    if let Some(endpoint) = self.state.lock().endpoints.get_mut(at) {
                        endpoint.waits = false;
                    }
                }
            }
        }
        subscriptions
    }

    /// Notes what is known of an endpoint, unless that is only what was known `before` the news; tells whether the
    /// cluster must hear of it.
    fn take(&self, cluster: &Cluster, at: usize, reading: &Reading, before: bool) -> bool {
        let mut state = self.state.lock();
        let (Some(config), Some(endpoint)) = (cluster.endpoints.get(at), state.endpoints.get_mut(at)) else {
            return false;
        };
        if before && endpoint.made_of.is_some() {
            return false;
        }
        endpoint.waits = false;
        let changed = endpoint.take(config, reading, self.logical);
        state.changed |= changed;
        state.changed || state.first.is_some() && state.is_complete()
    }

    /// Gives the cluster what its names stand for, if that has changed.
    fn publish(&self) {
        let Some(cluster) = self.cluster.upgrade() else { return };
        let mut state = self.state.lock();
        if std::mem::take(&mut state.changed) {
            cluster.update_hosts(state.endpoints.iter().flat_map(|e| &e.hosts).cloned().collect());
        }
        if state.is_complete()
            && let Some(first) = state.first.take()
        {
            // Nobody may wait for it.
            let _ = first.send(());
        }
    }

    /// Publishes in a moment, with what comes until then.
    fn schedule(&self, this: Weak<Endpoints>) {
        if self.scheduled.swap(true, Relaxed) {
            return;
        }
        self.dns.spawn(async move {
            tokio::time::sleep(SETTLE).await;
            if let Some(this) = this.upgrade() {
                this.scheduled.store(false, Relaxed);
                this.publish();
            }
        });
    }
}

impl Subscriber for Endpoints {
    fn asked(&self) {
        if let Some(cluster) = self.cluster.upgrade() {
            cluster.stats.update_attempt().inc();
        }
    }

    fn answered(self: Arc<Endpoints>, at: usize, reading: &Reading) {
        let Some(cluster) = self.cluster.upgrade() else { return };
        count(&cluster, reading);
        if self.take(&cluster, at, reading, false) {
            self.schedule(Arc::downgrade(&self));
        }
    }
}

impl State {
    fn is_complete(&self) -> bool {
        self.endpoints.iter().all(|endpoint| !endpoint.waits)
    }
}

impl Endpoint {
    /// Takes what is known of its name; tells whether it stands for something else by that.
    fn take(&mut self, config: &HostConfig, reading: &Reading, logical: bool) -> bool {
        let addresses = if logical { &reading.addresses } else { &reading.sorted };
        if self.made_of.as_ref().is_some_and(|(of, gone)| Arc::ptr_eq(of, addresses) && *gone == reading.gone)
        {
            return false;
        }
        self.made_of = Some((addresses.clone(), reading.gone));
        let hosts = hosts(config, addresses, logical);
        // Nothing known is not nothing; and LOGICAL_DNS never loses its address.
        if hosts.is_empty() && (logical || !reading.gone) || hosts == self.hosts {
            return false;
        }
        self.hosts = hosts;
        true
    }
}

/// Counts the end of a question. One without an address is a failure for LOGICAL_DNS, as for Envoy.
fn count(cluster: &Cluster, reading: &Reading) {
    let logical = matches!(cluster.config.discovery, Discovery::LogicalDns(_));
    match reading.outcome {
        Outcome::Failed(_) => cluster.stats.update_failure().inc(),
        Outcome::Empty if logical => cluster.stats.update_failure().inc(),
        Outcome::Empty => {
            cluster.stats.update_success().inc();
            cluster.stats.update_empty().inc();
        }
        Outcome::Unasked | Outcome::Answered(_) => cluster.stats.update_success().inc(),
    }
}

/// What an endpoint stands for: every address of its name, or one.
fn hosts(endpoint: &HostConfig, addresses: &[IpAddr], logical: bool) -> Vec<HostConfig> {
    let Address::Name(name, port) = &endpoint.address else { return vec![endpoint.clone()] };
    let hostname = endpoint.resolved_hostname(name);
    let take = if logical { 1 } else { addresses.len() };
    let host = |ip: &IpAddr| HostConfig {
        address: Address::Ip(SocketAddr::new(*ip, *port)),
        hostname: hostname.clone(),
        ..endpoint.clone()
    };
    addresses.iter().take(take).map(host).collect()
}
