//! Circuit breakers: limits of a cluster that all workers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

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
    counts: Option<Counts>,
}

type Counts = Arc<[AtomicU32; 4]>;

impl Breaker {
    /// Nothing is under way yet.
    pub fn new(limits: BreakerLimits) -> Breaker {
        Breaker { limits, counts: (limits != BreakerLimits::UNLIMITED).then(Counts::default) }
    }

    /// How many there are now; 0 without limits.
    pub fn count(&self, resource: Resource) -> u32 {
        self.counts.as_ref().map_or(0, |counts| counts[resource as usize].load(Relaxed))
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
            let count = &counts[resource as usize];
            if count.fetch_add(1, Relaxed) >= limit {
                count.fetch_sub(1, Relaxed);
                return None;
            }
        }
        Some(Permit { counts: self.counts.clone(), resource })
    }

    /// Takes one whatever the limit says.
    pub fn force(&self, resource: Resource) -> Permit {
        if let Some(counts) = &self.counts {
            counts[resource as usize].fetch_add(1, Relaxed);
        }
        Permit { counts: self.counts.clone(), resource }
    }
}

/// One of a counted resource, given back on drop.
#[derive(Debug)]
pub struct Permit {
    counts: Option<Counts>,
    resource: Resource,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(counts) = &self.counts {
            counts[self.resource as usize].fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_stop_at_the_limit_and_come_back() {
        let breaker = Breaker::new(BreakerLimits { max_retries: 2, ..BreakerLimits::default() });
        let first = breaker.acquire(Resource::Retries);
        let second = breaker.acquire(Resource::Retries);
        assert!(first.is_some() && second.is_some() && breaker.acquire(Resource::Retries).is_none());
        drop(first);
        assert!(breaker.acquire(Resource::Retries).is_some());
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
