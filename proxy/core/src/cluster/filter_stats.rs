//! What filters count by the cluster that a request would go to: `cluster.NAME.ext_authz.`, `cluster.NAME.ratelimit.`.

use crate::metrics::{Registry, scope};
use arc_swap::ArcSwapOption;
use std::sync::Arc;

crate::stat_block! {
    /// Answers of authorisation services, as Envoy names them.
    pub struct AuthzCounts { counters: [ok, denied, error, failure_mode_allowed], gauges: [], histograms: [] }
}

crate::stat_block! {
    /// Answers of rate limit services, as Envoy names them.
    pub struct RateLimitCounts {
        counters: [ok, over_limit, error, failure_mode_allowed], gauges: [], histograms: []
    }
}

/// Prefixes (`stat_prefix` of the filters) that a cluster counts apart; what is beyond them is not counted.
const MAX_PREFIXES: usize = 16;

/// Counts by the prefix of the filter that has them made. There are as many as there are filters with a prefix of their
/// own, which are few.
pub(super) struct ByPrefix<T>(ArcSwapOption<Vec<(Arc<str>, T)>>);

impl<T> Default for ByPrefix<T> {
    fn default() -> ByPrefix<T> {
        ByPrefix(ArcSwapOption::empty())
    }
}

impl<T: Clone> ByPrefix<T> {
    /// The counts under `prefix`, made of their scope by whoever asks first.
    pub(super) fn get(&self, prefix: &Arc<str>, make: impl Fn() -> T) -> Option<T> {
        let find = |known: &Vec<(Arc<str>, T)>| {
            known
                .iter()
                .find(|(of, _)| Arc::ptr_eq(of, prefix) || of == prefix)
                .map(|(_, counts)| counts.clone())
        };
        if let Some(found) = self.0.load().as_deref().and_then(find) {
            return Some(found);
        }
        self.0.rcu(|known| {
            let mut all = known.as_deref().cloned().unwrap_or_default();
            if find(&all).is_none() && all.len() < MAX_PREFIXES {
                all.push((prefix.clone(), make()));
            }
            Some(Arc::new(all))
        });
        self.0.load().as_deref().and_then(find)
    }
}

impl AuthzCounts {
    pub(super) fn of_cluster(registry: &Registry, cluster: &str, prefix: &str) -> AuthzCounts {
        AuthzCounts::new(registry, &scope(&[cluster, "ext_authz", prefix]))
    }
}

impl RateLimitCounts {
    pub(super) fn of_cluster(registry: &Registry, cluster: &str, prefix: &str) -> RateLimitCounts {
        RateLimitCounts::new(registry, &scope(&[cluster, "ratelimit", prefix]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::ClusterStats;

    #[test]
    fn filters_with_one_prefix_count_together() {
        let registry = Registry::new();
        let stats = ClusterStats::named(&registry, "c");
        let (none, waf): (Arc<str>, Arc<str>) = ("".into(), "waf".into());
        stats.authz(&none).unwrap().ok().inc();
        stats.authz(&"".into()).unwrap().ok().inc();
        stats.authz(&waf).unwrap().denied().inc();
        stats.rate_limit(&none).unwrap().over_limit().inc();
        assert_eq!(registry.sum("cluster.c.ext_authz.", "ok"), 2);
        assert_eq!(registry.sum("cluster.c.ext_authz.waf.", "denied"), 1);
        assert_eq!(registry.sum("cluster.c.ratelimit.", "over_limit"), 1);
        for n in 0..2 * MAX_PREFIXES {
            stats.authz(&n.to_string().into());
        }
        assert!(stats.authz(&"one-too-many".into()).is_none());
    }
}
