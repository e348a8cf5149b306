//! Clusters and their endpoints.
//!
//! A route holds a [`ClusterCell`], made when its name is first mentioned; what the name stands for is
//! swapped into the cell when configuration arrives. So a request looks no name up, a route may precede
//! its cluster, and replacing a cluster touches no route.

mod balancer;
mod breaker;
mod cells;
mod config;
mod counted;
mod discovery;
mod endpoint;
mod event_log;
mod filter_stats;
mod grpc_stats;
mod hash_stats;
mod health_check;
mod host;
mod in_flight;
mod load_report;
mod members;
mod mesh;
mod outlier;
mod protocol;
mod socket;
mod stats;
mod subset;
#[cfg(test)]
mod tests;
mod tried;

pub(crate) use balancer::BuildBalancer;
pub use balancer::{BalanceConfig, Balancer, Choice, Policy, ZoneAware};
pub use breaker::{Breaker, BreakerLimits, ConnectionPermit, Permit, Resource, RetryBudget};
pub use cells::{ClusterCell, Clusters};
pub use config::{ClusterConfig, ClusterPolicy};
pub use counted::{ActiveCheck, CountedChecks, Counts, Limits, NodeHealth, Seen};
pub use discovery::{Discovery, DnsBackoff, DnsFamily, DnsOptions, DnsServers, OriginalDestination};
pub use endpoint::{Address, Assignment, EdsHealth, EndpointCheck, HostConfig, LoadPolicy, Locality};
pub use event_log::{Event, EventLog};
pub use filter_stats::{AuthzCounts, RateLimitCounts};
pub(crate) use hash_stats::{HashTable, share};
pub use hash_stats::{MaglevStats, RingStats};
pub use health_check::{
    GrpcProbe, HealthCheck, HealthCheckStats, HttpProbe, Intervals, Probe, ProbeHeader, TcpProbe,
};
pub use host::{Health, Host, Reasons};
pub use in_flight::{InFlight, Origin, Outcome, OutcomeKind};
pub(crate) use load_report::mixed;
pub use load_report::{LoadReports, Map as MetricMap, Metric, Reported};
pub use members::{HostSet, Member, Members, PriorityLevel};
pub use mesh::MeshCluster;
pub use outlier::{CAUSES, Cause, FailurePercentage, OutlierDetection, OutlierStats, Outliers, SuccessRate};
pub use protocol::{HeaderCase, Http1Options, Http2Keepalive, Http2Options, TcpKeepalive, UpstreamProtocol};
pub use socket::SocketMatch;
pub use stats::{ClusterStats, ResponseKind};
pub(crate) use subset::{Asked, hash_of_key, hash_of_pairs};
pub use subset::{Criteria, Criterion, SubsetConfig, SubsetFallback, SubsetSelector};
pub use tried::TriedHost;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Instant;
use tokio::sync::Notify;

/// A cluster in use: configuration, endpoints, balancer, and what all workers share of its state.
pub struct Cluster {
    /// As configured.
    pub config: ClusterConfig,
    /// Endpoints as configured, for DNS to resolve the names among them; empty where there is nothing to
    /// resolve, since the members then say all of it.
    pub endpoints: Box<[HostConfig]>,
    /// Endpoints by priority, replaced as a whole when one comes, goes or changes its health.
    pub hosts: ArcSwap<HostSet>,
    /// Chooses endpoints.
    pub balancer: Arc<dyn Balancer>,
    /// Statistics under `cluster.NAME.`.
    pub stats: Arc<ClusterStats>,
    /// Circuit breaker of ordinary requests.
    pub breaker: Breaker,
    /// Circuit breaker of requests with priority HIGH.
    pub high_breaker: Breaker,
    /// Requests of a million that are not forwarded.
    drop_overload: AtomicU32,
    /// Held while the endpoints are replaced: discovery and health checks come from different threads.
    visibility: Mutex<Visibility>,
    /// What is counted of its endpoints to find outliers.
    pub outliers: Option<Arc<Outliers>>,
    /// Woken when workers have heard of an endpoint what its checker is to see, where endpoints are checked. It goes on
    /// with the next cluster of the name: answers to requests of this one may still be coming.
    news: Option<Arc<Notify>>,
    /// Who works for it; most clusters have nobody.
    helpers: Mutex<Option<Box<Helpers>>>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cluster {}", self.config.name)
    }
}

/// Who works for a cluster.
#[derive(Default)]
struct Helpers {
    /// They end with it.
    attached: Vec<Box<dyn Any + Send>>,
    /// They are told when its endpoints have changed.
    observers: Vec<Weak<dyn HostObserver>>,
}

/// Whoever works with a cluster's endpoints.
pub trait HostObserver: Send + Sync {
    /// The endpoints are other ones, or of other health. Called while they are being replaced: it must not replace
    /// them itself.
    fn hosts_changed(&self, cluster: &Cluster);
}

/// What a cluster's changes are allowed to show of themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visibility {
    /// Not in force, not yet or no more: gauges and hosts belong to the one that is.
    Hidden,
    /// What its name stands for.
    InForce,
}

impl Cluster {
    /// A cluster with these endpoints and the balancer that `build` makes for them. `previous` is the cluster that it may replace: endpoints that stay are
    /// the same hosts (with their connections, health and counters), and the statistics go on. A name among
    /// the endpoints stands for what it was resolved to in `previous`, else for nothing until discovery calls
    /// [`Cluster::update_hosts`].
    ///
    /// Nothing that is in force is touched, so that what is built may be dropped again:
    /// [`ClusterCell::swap`] puts it in force.
    ///
    /// # Errors
    /// `build`'s.
    pub(crate) fn with_balancer(
        config: ClusterConfig,
        endpoints: Vec<HostConfig>,
        previous: Option<&Cluster>,
        registry: &crate::metrics::Registry,
        build: BuildBalancer,
    ) -> Result<Arc<Cluster>, String> {
        let stats = match previous {
            Some(old) if old.config.observability_name == config.observability_name => old.stats.clone(),
            _ if !config.statistics => Arc::new(ClusterStats::none()),
            _ => Arc::new(ClusterStats::named(registry, &config.observability_name)),
        };
        if config.all_tls().next().is_some() {
            // Its names are there before its first connection.
            stats.tls();
        }
        let before = previous.map(|c| c.hosts.load_full());
        let eds = |config: &ClusterConfig| matches!(config.discovery, Discovery::Eds(_));
        let finds_the_same = previous.filter(|old| old.config.finds_the_same(&config));
        let set = match &before {
            // They are not the cluster's to say, so they stay.
            Some(before) if eds(&config) && previous.is_some_and(|c| eds(&c.config)) => before.of(&config),
            Some(before) if finds_the_same.is_some() => before.refreshed(),
            before => {
                let resolved = endpoints.iter().flat_map(|e| known_addresses(e, before.as_deref())).collect();
                HostSet::of_cluster(&config, resolved, before.as_deref(), initial(&config))
            }
        };
        let balancer = match finds_the_same {
            Some(old) => old.balancer.clone(),
            None => build(&config.balance, &set, &stats)?,
        };
        let goes_on = previous.is_some_and(|old| Arc::ptr_eq(&old.stats, &stats));
        let known = previous.and_then(|old| old.outliers.as_ref());
        let outliers = config
            .outlier_detection
            .as_ref()
            .map(|detection| Outliers::new(detection, known, registry, &config.observability_name, goes_on));
        let news = (config.health_check.is_some() || config.checks.is_some()).then(|| {
            let known = previous.and_then(|old| old.news.clone());
            known.unwrap_or_default()
        });
        let resolves = matches!(config.discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_));
        let cluster = Arc::new(Cluster {
            breaker: Breaker::new(config.breaker),
            high_breaker: Breaker::new(config.high_breaker),
            drop_overload: AtomicU32::new(dropped(&config, &set)),
            hosts: ArcSwap::from_pointee(set),
            visibility: Mutex::new(Visibility::Hidden),
            helpers: Mutex::default(),
            news,
            outliers,
            endpoints: if resolves { endpoints.into() } else { Box::default() },
            balancer,
            stats,
            config,
        });
        if cluster.stats.are_shown() {
            let shown: std::sync::Weak<Cluster> = Arc::downgrade(&cluster);
            registry.register_computed(shown);
        }
        Ok(cluster)
    }

    /// Whether its name stands for it.
    pub(crate) fn is_in_force(&self) -> bool {
        *self.visibility.lock() == Visibility::InForce
    }

    /// Keeps what works for this cluster for as long as it lives: the subscriptions of its discovery. It must not
    /// hold the cluster itself.
    pub fn attach(&self, what: impl Any + Send) {
        self.helpers.lock().get_or_insert_default().attached.push(Box::new(what));
    }

    /// Tells `observer` when endpoints have come or gone, or changed their health, for as long as it lives.
    pub fn observe(&self, observer: Weak<dyn HostObserver>) {
        self.helpers.lock().get_or_insert_default().observers.push(observer);
    }

    /// An endpoint has asked, in an answer to a request, to get no others: whoever checks it is told. For workers, which
    /// wait for no checker.
    pub(super) fn told_to_leave(&self, host: &Host) {
        if let Some(news) = self.news.as_ref().filter(|_| host.depart()) {
            news.notify_one();
        }
    }

    /// Counts what was seen of an endpoint by a client's request, where that counts. For workers, which wait for no
    /// checker.
    pub fn saw(&self, host: &Host, seen: Seen) {
        if let (Some(checks), Some(news)) = (&self.config.checks, &self.news)
            && host.count(seen, &checks.passive)
        {
            news.notify_one();
        }
    }

    /// Counts the end of a stream that did not reach its endpoint, where ends count ([`CountedChecks::ends_count`]).
    pub fn saw_no_way(&self, host: &Host) {
        if self.config.checks.as_ref().is_some_and(|checks| checks.ends_count) {
            self.saw(host, Seen::TcpFailure);
        }
    }

    /// What wakes the one who checks the endpoints, when some have asked to be left alone ([`Host::take_departure`]) or
    /// what is counted of them decides ([`Host::counts`]). `None` where they are not checked.
    pub fn news(&self) -> Option<&Arc<Notify>> {
        self.news.as_ref()
    }

    fn observers(&self) -> Vec<Arc<dyn HostObserver>> {
        let helpers = self.helpers.lock();
        let observers = helpers.iter().flat_map(|helpers| &helpers.observers);
        observers.filter_map(Weak::upgrade).collect()
    }

    /// Whether every name among the endpoints stands for an address already.
    pub fn is_resolved(&self) -> bool {
        self.endpoints.iter().all(|e| !self.stands_for(e).is_empty())
    }

    /// What one of the configured endpoints stands for now: itself, or the addresses that its name has.
    pub fn stands_for(&self, endpoint: &HostConfig) -> Vec<HostConfig> {
        known_addresses(endpoint, Some(&self.hosts.load()))
    }

    /// Replaces the endpoints (DNS, EDS) and tells the balancer; endpoints that stay keep their identity.
    pub fn update_hosts(&self, hosts: Vec<HostConfig>) {
        let visibility = self.visibility.lock();
        let before = self.hosts.load_full();
        let set = HostSet::of_cluster(&self.config, hosts, Some(&before), initial(&self.config));
        self.publish(set, Some(&before), *visibility);
    }

    /// The same with what holds for all of them (EDS). Whoever brings them counts that they have come.
    pub fn assign(&self, assignment: Assignment) {
        let Assignment { hosts, policy } = assignment;
        let visibility = self.visibility.lock();
        let before = self.hosts.load_full();
        let set = HostSet::of_cluster(&self.config, hosts, Some(&before), initial(&self.config));
        if set.is_as(&before) && *visibility == Visibility::InForce {
            self.stats.update_no_rebuild().inc();
        }
        self.count_heaviest(&set);
        self.publish(set.under(policy), Some(&before), *visibility);
    }

    fn count_heaviest(&self, set: &HostSet) {
        let heaviest = set.iter().map(|member| member.weight).max();
        self.stats.max_host_weight().set(heaviest.unwrap_or_default().max(1).into());
    }

    /// Requests of a million that are not to be forwarded (`drop_overloads`); rarely any.
    #[inline]
    pub fn drop_overload(&self) -> u32 {
        self.drop_overload.load(Relaxed)
    }

    /// Takes a change of some endpoint's health into account.
    pub fn refresh(&self) {
        let visibility = self.visibility.lock();
        let before = self.hosts.load_full();
        self.publish(before.refreshed(), Some(&before), *visibility);
    }

    /// The weight that the balancer gives an endpoint: what it has reported, where that counts in place of what is
    /// configured.
    pub fn weight_of(&self, member: &Member) -> u32 {
        let reported = self.config.balance.policy.load_reports().and_then(|_| member.host.reported());
        reported.map_or(member.weight, Reported::weight)
    }

    /// Has the balancer make weights of what endpoints have reported ([`LoadReports::update`]).
    pub fn reweigh(&self, now: Instant) {
        let _visibility = self.visibility.lock();
        self.balancer.reweigh(&self.hosts.load(), now);
    }

    /// Whether [`Cluster::tend`] has something to do with it.
    pub(crate) fn is_tended(&self) -> bool {
        self.config.balance.zone.is_some() || matches!(self.config.discovery, Discovery::OriginalDst(_))
    }

    /// Shows the endpoints that the balancer has found by itself, and has it forget what nobody needs. Has it look at
    /// the local cluster where that matters.
    pub(crate) fn tend(&self, now: Instant) {
        if self.config.balance.zone.is_some() {
            let _visibility = self.visibility.lock();
            self.balancer.look_at_proxies(&self.hosts.load());
        }
        if !matches!(self.config.discovery, Discovery::OriginalDst(_)) {
            return;
        }
        let visibility = self.visibility.lock();
        let before = self.hosts.load_full();
        if let Some(found) = self.balancer.found(&before, now) {
            self.publish(HostSet::of_members(found, &before), Some(&before), *visibility);
        }
    }

    fn publish(&self, set: HostSet, before: Option<&HostSet>, visibility: Visibility) {
        let set = Arc::new(set);
        self.drop_overload.store(dropped(&self.config, &set), Relaxed);
        self.balancer.update(&set);
        if visibility == Visibility::InForce {
            self.show(&set, before);
        }
        self.hosts.store(set);
        self.observers().iter().for_each(|observer| observer.hosts_changed(self));
    }

    /// Takes the place of `previous`. Hosts that `previous` has found since this was built are taken over.
    fn enter(&self, previous: Option<&Cluster>) {
        let live = previous.map(|c| c.hosts.load_full());
        let ended = self.outliers.is_none()
            && previous.and_then(|old| old.outliers.as_ref()).is_some_and(|outliers| outliers.end());
        let mut visibility = self.visibility.lock();
        *visibility = Visibility::InForce;
        let set = self.hosts.load_full();
        match live.as_deref().and_then(|live| set.adopting(live)) {
            Some(adopted) => self.publish(adopted, live.as_deref(), *visibility),
            None if ended => self.publish(set.refreshed(), live.as_deref(), *visibility),
            None => self.show(&set, live.as_deref()),
        }
    }

    /// Leaves its place to `successor`, or to nobody.
    fn leave(&self, successor: Option<&Cluster>) {
        *self.visibility.lock() = Visibility::Hidden;
        let now = successor.map(|c| c.hosts.load_full()).unwrap_or_default();
        now.mark(Some(&self.hosts.load()));
        let shares_statistics = successor.is_some_and(|next| Arc::ptr_eq(&next.stats, &self.stats));
        if !shares_statistics {
            // Requests may hold it for long.
            self.count_members(&HostSet::default());
        }
    }

    /// Tells hosts and statistics of the endpoints that are in force now.
    fn show(&self, set: &HostSet, before: Option<&HostSet>) {
        if let Some(outliers) = &self.outliers {
            outliers.follow(set);
        }
        if set.mark(before) {
            self.stats.membership_change().inc();
            self.count_matches(set, before);
        }
        // Envoy has another way to change the one endpoint of LOGICAL_DNS.
        if matches!(self.config.discovery, Discovery::StrictDns(_)) && set.total() > 0 {
            self.count_heaviest(set);
        }
        self.stats.warming_state().set(0);
        self.stats.show_table();
        self.count_members(set);
        self.stats.count_zones(&self.config.own_zone, set.iter());
    }

    /// Counts endpoints that have come, each of which finds its socket once. Those that `transport_socket_matches` tell
    /// apart are not counted.
    fn count_matches(&self, set: &HostSet, before: Option<&HostSet>) {
        if self.config.socket_matches.is_empty() {
            let known: HashSet<u64> = before.into_iter().flat_map(HostSet::iter).map(|m| m.host.id).collect();
            let come = set.iter().filter(|member| !known.contains(&member.host.id)).count();
            self.stats.total_match_count().add(come as u64);
        }
    }

    fn count_members(&self, set: &HostSet) {
        self.stats.membership_total().set(set.total() as u64);
        self.stats.membership_healthy().set(set.healthy() as u64);
        self.stats.membership_degraded().set(set.degraded() as u64);
        self.stats.membership_excluded().set(set.excluded() as u64);
        if let Some(subsets) = self.balancer.subsets() {
            let (now, active) = (subsets as u64, self.stats.lb_subsets_active());
            // By how many they have become more or less: one that takes another's place is not counted.
            self.stats.lb_subsets_created().add(now.saturating_sub(active.get()));
            self.stats.lb_subsets_removed().add(active.get().saturating_sub(now));
            active.set(now);
        }
    }
}

fn dropped(config: &ClusterConfig, set: &HostSet) -> u32 {
    set.policy.map_or(config.balance.drop_overload, |policy| policy.drop_overload)
}

/// What is held against endpoints that are new.
fn initial(config: &ClusterConfig) -> Reasons {
    if config.health_check.is_some() { Reasons::ACTIVE_CHECK } else { Reasons::empty() }
}

/// What an endpoint stands for before discovery has looked: itself, or the addresses its name had.
fn known_addresses(endpoint: &HostConfig, before: Option<&HostSet>) -> Vec<HostConfig> {
    let Address::Name(name, port) = &endpoint.address else { return vec![endpoint.clone()] };
    let hostname = endpoint.resolved_hostname(name);
    let same = |member: &&Arc<Member>| {
        let port_is = matches!(&member.host.address, Address::Ip(addr) if addr.port() == *port);
        port_is && member.host.hostname == hostname && member.priority == endpoint.priority
    };
    let members = before.iter().flat_map(|set| set.iter()).filter(same);
    let resolved = |m: &Arc<Member>| HostConfig {
        address: m.host.address.clone(),
        hostname: hostname.clone(),
        ..endpoint.clone()
    };
    members.map(resolved).collect()
}
