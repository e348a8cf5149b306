//! Circuit breakers: limits of a cluster that all workers share.

use super::{Cluster, Host};
use crate::metrics::{Block, Computed, Gauge, named_scope};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

/// Limits of one priority (config/cluster/v3/circuit_breaker.proto Thresholds).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerLimits {
    /// Connections, 1024 by default.
    pub max_connections: u32,
    /// Requests waiting for a connection, 1024 by default.
    pub max_pending: u32,
    /// Requests under way, over either version of HTTP, 1024 by default.
    pub max_requests: u32,
    /// Retries under way, 3 by default.
    pub max_retries: u32,
    /// Replaces `max_retries`.
    pub retry_budget: Option<RetryBudget>,
}

/// Retries in proportion to requests (RetryBudget).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Share of active and pending requests, 20 by default.
    pub percent: f64,
    /// Retries that are always allowed, 3 by default.
    pub min_concurrency: u32,
}

impl Default for BreakerLimits {
    fn default() -> BreakerLimits {
        BreakerLimits {
            max_connections: 1024,
            max_pending: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
        }
    }
}

impl BreakerLimits {
    /// No limit at all: APISIX's upstreams.
    pub const UNLIMITED: BreakerLimits = BreakerLimits {
        max_connections: u32::MAX,
        max_pending: u32::MAX,
        max_requests: u32::MAX,
        max_retries: u32::MAX,
        retry_budget: None,
    };
}

/// What a breaker counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Open connections.
    Connections,
    /// Requests waiting for a connection.
    Pending,
    /// Requests under way.
    Requests,
    /// Retries under way.
    Retries,
}

/// Counts of one priority against its limits; cloning shares them.
#[derive(Debug, Clone)]
pub struct Breaker {
    limits: BreakerLimits,
    /// What nothing limits is not counted either: workers would only pass its cache line around.
    counts: Option<Arc<Counts>>,
}

/// Counts of resources.
#[derive(Debug, Default)]
struct Counts {
    now: [AtomicU32; 4],
    /// A bit for each resource that there ever was one of.
    ever: AtomicU8,
}

impl Counts {
    /// Counts one more; answers how many there were.
    fn add(&self, resource: Resource) -> u32 {
        let bit = 1 << resource as u8;
        // Read by all and written once, as few as there are resources.
        if self.ever.load(Relaxed) & bit == 0 {
            self.ever.fetch_or(bit, Relaxed);
        }
        self.now[resource as usize].fetch_add(1, Relaxed)
    }

    fn remove(&self, resource: Resource) {
        self.now[resource as usize].fetch_sub(1, Relaxed);
    }
}

impl Breaker {
    /// Nothing is under way yet.
    pub fn new(limits: BreakerLimits) -> Breaker {
        Breaker { limits, counts: (limits != BreakerLimits::UNLIMITED).then(Arc::default) }
    }

    /// The one of the cluster's next version: other limits, and what is under way goes on to count against them. Where more
    /// connections are open than a lower limit allows it begins anew, as Envoy does: those of before take no further request, and to wait
    /// for their ends would keep every other endpoint from having one.
    pub fn next(&self, limits: BreakerLimits) -> Breaker {
        let next = Breaker::new(limits);
        let limit = limits.max_connections;
        // Forced ones stand above a limit that is the same.
        let beyond = limit < self.limits.max_connections && self.count(Resource::Connections) > limit;
        let counts = next.counts.map(|new| self.counts.clone().filter(|_| !beyond).unwrap_or(new));
        Breaker { counts, ..next }
    }

    /// Whether a permit counts here, where anything does.
    fn covers(&self, permit: &Permit) -> bool {
        match (&self.counts, &permit.counts) {
            (None, _) => true,
            (Some(own), Some(its)) => Arc::ptr_eq(own, its),
            (Some(_), None) => false,
        }
    }

    /// How many there are now; 0 without limits.
    pub fn count(&self, resource: Resource) -> u32 {
        self.counts.as_ref().map_or(0, |counts| counts.now[resource as usize].load(Relaxed))
    }

    /// Whether there ever was one, with limits.
    fn was_ever(&self, resource: Resource) -> bool {
        self.counts.as_ref().is_some_and(|counts| counts.ever.load(Relaxed) & 1 << resource as u8 != 0)
    }

    /// The limit in force now.
    pub fn limit(&self, resource: Resource) -> u32 {
        match resource {
            Resource::Connections => self.limits.max_connections,
            Resource::Pending => self.limits.max_pending,
            Resource::Requests => self.limits.max_requests,
            Resource::Retries => match self.limits.retry_budget {
                None => self.limits.max_retries,
                Some(budget) => {
                    let under_way = self.count(Resource::Requests) + self.count(Resource::Pending);
                    let share = (f64::from(under_way) * budget.percent / 100.0) as u32;
                    share.max(budget.min_concurrency)
                }
            },
        }
    }

    /// Takes one if the limit allows it; dropping the permit gives it back.
    pub fn acquire(&self, resource: Resource) -> Option<Permit> {
        if let Some(counts) = &self.counts {
            let limit = self.limit(resource);
            if counts.add(resource) >= limit {
                counts.remove(resource);
                return None;
            }
        }
        Some(Permit { counts: self.counts.clone(), resource })
    }

    /// Takes one whatever the limit says.
    pub fn force(&self, resource: Resource) -> Permit {
        if let Some(counts) = &self.counts {
            counts.add(resource);
        }
        Permit { counts: self.counts.clone(), resource }
    }
}

/// One of a counted resource, given back on drop.
#[derive(Debug)]
pub struct Permit {
    counts: Option<Arc<Counts>>,
    resource: Resource,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(counts) = &self.counts {
            counts.remove(self.resource);
        }
    }
}

/// Leave to have one connection: the cluster's limit holds it, and the endpoint's where it has one.
#[derive(Debug)]
pub struct ConnectionPermit {
    cluster: Permit,
    host: Option<Arc<Host>>,
    high: bool,
    /// The limit of the cluster, and the one of the endpoint, that it was taken under.
    under: [u32; 2],
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        if let Some(host) = &self.host {
            host.reserved_connections.fetch_sub(1, Relaxed);
        }
    }
}

crate::stat_block! {
    /// Under `cluster.NAME.circuit_breakers.PRIORITY.`: 1 where nothing more is allowed.
    pub struct OpenStats {
        counters: [],
        gauges: [cx_open, cx_pool_open, rq_open, rq_pending_open, rq_retry_open],
        histograms: [],
    }
}

crate::stat_block! {
    /// Beside them, with `track_remaining`: how many more are allowed.
    pub struct RemainingStats {
        counters: [],
        gauges: [remaining_cx, remaining_pending, remaining_retries, remaining_rq],
        numbers: [remaining_cx_pools],
        histograms: [],
    }
}

impl Breaker {
    /// Its statistics as they are now. Nothing limits pools of connections.
    fn show(&self, scope: &str, tracks_remaining: bool, show: &mut dyn FnMut(&Arc<Block>)) {
        let open = OpenStats::apart(scope);
        // As in Envoy nothing is said of what there never was one of.
        let tell = |resource, gauge: Gauge<'_>| {
            let count = self.count(resource);
            if self.was_ever(resource) {
                gauge.set(u64::from(count > 0 && count >= self.limit(resource)));
            }
        };
        tell(Resource::Connections, open.cx_open());
        tell(Resource::Requests, open.rq_open());
        tell(Resource::Pending, open.rq_pending_open());
        tell(Resource::Retries, open.rq_retry_open());
        if self.was_ever(Resource::Connections) {
            open.cx_pool_open().set(0);
        }
        open.shared().into_iter().for_each(&mut *show);
        if !tracks_remaining {
            return;
        }
        let left = |resource| u64::from(self.limit(resource).saturating_sub(self.count(resource)));
        let remaining = RemainingStats::apart(scope);
        remaining.remaining_cx().set(left(Resource::Connections));
        remaining.remaining_cx_pools().set(u64::MAX);
        remaining.remaining_pending().set(left(Resource::Pending));
        remaining.remaining_retries().set(left(Resource::Retries));
        remaining.remaining_rq().set(left(Resource::Requests));
        remaining.shared().into_iter().for_each(show);
    }
}

/// Envoy's gauges of circuit breakers, from the counts that there are anyway.
impl Computed for Cluster {
    fn compute(&self, show: &mut dyn FnMut(&Arc<Block>)) {
        if !self.is_in_force() {
            return;
        }
        let breakers = [("default", &self.breaker), ("high", &self.high_breaker)];
        for ((priority, breaker), tracks) in breakers.into_iter().zip(self.config.tracks_remaining) {
            let scope =
                named_scope(&["cluster", &self.config.observability_name, "circuit_breakers", priority]);
            breaker.show(&scope, tracks, show);
        }
    }
}

impl Cluster {
    /// The breaker of one of the two priorities.
    pub fn breaker(&self, high: bool) -> &Breaker {
        if high { &self.high_breaker } else { &self.breaker }
    }

    /// Leave to open a connection to an endpoint, if the cluster's limit and the endpoint's allow one more.
    pub fn connection(&self, host: &Arc<Host>, high: bool) -> Option<ConnectionPermit> {
        let limit = self.config.max_host_connections;
        let mut taken = None;
        if limit != u32::MAX {
            let before = host.reserved_connections.fetch_add(1, Relaxed);
            taken = Some(host.clone());
            if before >= limit {
                host.reserved_connections.fetch_sub(1, Relaxed);
                return None;
            }
        }
        match self.breaker(high).acquire(Resource::Connections) {
            Some(permit) => Some(self.connection_permit(permit, taken, high)),
            None => {
                if let Some(host) = taken {
                    host.reserved_connections.fetch_sub(1, Relaxed);
                }
                None
            }
        }
    }

    /// Whether one connection fewer would give leave for another. It would not while forced ones stand above a limit.
    pub fn wants_one_closed(&self, host: &Host, high: bool) -> bool {
        let breaker = self.breaker(high);
        breaker.count(Resource::Connections) <= breaker.limit(Resource::Connections)
            && host.reserved_connections.load(Relaxed) <= self.config.max_host_connections
    }

    /// The same whatever the limits say.
    pub fn force_connection(&self, host: &Arc<Host>, high: bool) -> ConnectionPermit {
        let limited = self.config.max_host_connections != u32::MAX;
        if limited {
            host.reserved_connections.fetch_add(1, Relaxed);
        }
        let cluster = self.breaker(high).force(Resource::Connections);
        self.connection_permit(cluster, limited.then(|| host.clone()), high)
    }

    fn connection_permit(&self, cluster: Permit, host: Option<Arc<Host>>, high: bool) -> ConnectionPermit {
        let under = [self.breaker(high).limits.max_connections, self.config.max_host_connections];
        ConnectionPermit { cluster, host, high, under }
    }

    /// Whether a connection may take another request. One of an earlier version of the cluster may not where it was not
    /// counted and now would be, or where the limits have come down and it is one too many.
    pub fn keeps(&self, permit: &ConnectionPermit) -> bool {
        let breaker = self.breaker(permit.high);
        let (limit, of_host) = (breaker.limits.max_connections, self.config.max_host_connections);
        let [before, of_host_before] = permit.under;
        let uncounted = !breaker.covers(&permit.cluster) || (of_host != u32::MAX && permit.host.is_none());
        let beyond = limit < before && breaker.count(Resource::Connections) > limit;
        let beyond_host = of_host < of_host_before
            && permit.host.as_ref().is_some_and(|host| host.reserved_connections.load(Relaxed) > of_host);
        !uncounted && !beyond && !beyond_host
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Address, ClusterConfig, HostConfig};
    use super::*;
    use crate::metrics::Registry;

    #[test]
    fn permits_stop_at_the_limit_and_come_back() {
        let breaker = Breaker::new(BreakerLimits { max_retries: 2, ..BreakerLimits::default() });
        let first = breaker.acquire(Resource::Retries);
        let second = breaker.acquire(Resource::Retries);
        assert!(first.is_some() && second.is_some() && breaker.acquire(Resource::Retries).is_none());
        drop(first);
        assert!(breaker.acquire(Resource::Retries).is_some());
    }

    /// Only the cluster's connections had a limit.
    #[test]
    fn an_endpoint_has_a_limit_of_its_own() {
        let mut config = ClusterConfig::named("c");
        config.max_host_connections = 1;
        config.breaker.max_connections = 3;
        let hosts: Vec<_> =
            [1, 2, 3].map(|n| HostConfig::new(Address::Ip(([10, 0, 0, n], 80).into()))).into();
        let cluster = Cluster::new(config, hosts, None, &Registry::new()).unwrap();
        let hosts: Vec<_> = cluster.hosts.load().iter().map(|m| m.host.clone()).collect();
        let first = cluster.connection(&hosts[0], false);
        assert!(first.is_some() && cluster.connection(&hosts[0], false).is_none());
        assert!(cluster.wants_one_closed(&hosts[0], false));
        let forced = cluster.force_connection(&hosts[0], false);
        assert!(!cluster.wants_one_closed(&hosts[0], false), "one more would have to go");
        assert!(cluster.wants_one_closed(&hosts[1], false), "the cluster's limit is not passed");
        let second = cluster.connection(&hosts[1], false).unwrap();
        assert!(cluster.connection(&hosts[2], false).is_none(), "the cluster's limit");
        assert!(cluster.connection(&hosts[2], true).is_some(), "another priority's limit");
        drop((first, forced));
        let again = cluster.connection(&hosts[0], false);
        assert!(again.is_some(), "the endpoint's place came back, and the refused attempts took none");
        drop((second, again));
        assert_eq!(hosts.iter().map(|h| h.reserved_connections.load(Relaxed)).sum::<u32>(), 0);
        assert_eq!(cluster.breaker.count(Resource::Connections), 0);
    }

    /// Each version of a cluster began to count at nothing, and the connections of the one before stayed.
    #[test]
    fn what_is_under_way_counts_against_the_limits_of_the_next_version() {
        let registry = Registry::new();
        let next = |previous: Option<&Cluster>, max_connections, of_host| {
            let breaker = match max_connections {
                u32::MAX => BreakerLimits::UNLIMITED,
                _ => BreakerLimits { max_connections, ..BreakerLimits::default() },
            };
            let mut config = ClusterConfig::named("c");
            (config.breaker, config.max_host_connections) = (breaker, of_host);
            let hosts = vec![HostConfig::new(Address::Ip(([10, 0, 0, 1], 80).into()))];
            Cluster::new(config, hosts, previous, &registry).unwrap()
        };
        let first = next(None, 2, u32::MAX);
        let host = first.hosts.load().iter().next().unwrap().host.clone();
        let [one, two] = [(); 2].map(|()| first.connection(&host, false).unwrap());
        let request = first.breaker.acquire(Resource::Requests);
        let second = next(Some(&first), 3, u32::MAX);
        assert_eq!(second.breaker.count(Resource::Requests), 1);
        let three = second.connection(&host, false).unwrap();
        assert!(second.connection(&host, false).is_none() && second.keeps(&one) && second.keeps(&three));
        // Fewer are allowed than there are: those go, and are in nobody's way.
        let third = next(Some(&second), 1, u32::MAX);
        assert!([&one, &two, &three].iter().all(|before| !third.keeps(before)));
        let own = third.connection(&host, false).unwrap();
        assert!(third.keeps(&own) && third.connection(&host, false).is_none());
        drop((one, two, three, request));
        let counts =
            [Resource::Connections, Resource::Requests].map(|resource| third.breaker.count(resource));
        assert_eq!(counts, [1, 0]);
        let two = own;
        // Of a time without limits nothing was counted.
        let fourth = next(Some(&third), u32::MAX, u32::MAX);
        let four = fourth.connection(&host, false).unwrap();
        assert!(fourth.keeps(&two) && fourth.keeps(&four));
        let fifth = next(Some(&fourth), 5, u32::MAX);
        assert!(!fifth.keeps(&two) && !fifth.keeps(&four));
        let sixth = next(Some(&fifth), 5, 3);
        let [five, six] = [(); 2].map(|()| sixth.connection(&host, false).unwrap());
        assert!(sixth.keeps(&five) && next(Some(&sixth), 5, 2).keeps(&five));
        let last = next(Some(&sixth), 5, 1);
        assert!(!last.keeps(&five));
        drop(six);
        assert!(last.keeps(&five) && last.connection(&host, false).is_none());
    }

    #[test]
    fn what_nothing_limits_is_not_counted() {
        let breaker = Breaker::new(BreakerLimits::UNLIMITED);
        let taken = [breaker.acquire(Resource::Requests), Some(breaker.force(Resource::Connections))];
        assert!(taken.iter().all(Option::is_some));
        assert_eq!((breaker.count(Resource::Requests), breaker.count(Resource::Connections)), (0, 0));
    }

    #[test]
    fn a_budget_follows_the_requests() {
        let budget = RetryBudget { percent: 50.0, min_concurrency: 1 };
        let breaker = Breaker::new(BreakerLimits { retry_budget: Some(budget), ..BreakerLimits::default() });
        assert_eq!(breaker.limit(Resource::Retries), 1);
        let requests: Vec<_> = (0..10).map(|_| breaker.acquire(Resource::Requests)).collect();
        assert_eq!(breaker.limit(Resource::Retries), 5);
        drop(requests);
        assert_eq!(breaker.limit(Resource::Retries), 1);
    }
}
