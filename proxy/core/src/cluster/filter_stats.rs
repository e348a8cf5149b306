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
    /// Has `count` count under `prefix`, in what whoever comes first makes. Nothing is cloned for it: all workers would
    /// write to one place.
    pub(super) fn count(&self, prefix: &Arc<str>, make: impl Fn() -> T, count: impl FnOnce(&T)) {
        let is_it = |(of, _): &&(Arc<str>, T)| Arc::ptr_eq(of, prefix) || of == prefix;
        if let Some(known) = self.0.load().as_deref() {
            if let Some((_, counts)) = known.iter().find(is_it) {
                return count(counts);
            }
            if known.len() >= MAX_PREFIXES {
                return;
            }
        }
        self.0.rcu(|known| {
            let mut all = known.as_deref().cloned().unwrap_or_default();
            if !all.iter().any(|known| is_it(&known)) && all.len() < MAX_PREFIXES {
                all.push((prefix.clone(), make()));
            }
            Some(Arc::new(all))
        });
        if let Some((_, counts)) = self.0.load().as_deref().and_then(|known| known.iter().find(is_it)) {
            count(counts);
        }
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
    use std::cell::Cell;

    #[test]
    fn filters_with_one_prefix_count_together() {
        let registry = Registry::new();
        let stats = ClusterStats::named(&registry, "c");
        let (none, waf): (Arc<str>, Arc<str>) = ("".into(), "waf".into());
        stats.count_authz(&none, |counts| counts.ok().inc());
        stats.count_authz(&"".into(), |counts| counts.ok().inc());
        stats.count_authz(&waf, |counts| counts.denied().inc());
        stats.count_rate_limit(&none, |counts| counts.over_limit().inc());
        assert_eq!(registry.sum("cluster.c.ext_authz.", "ok"), 2);
        assert_eq!(registry.sum("cluster.c.ext_authz.waf.", "denied"), 1);
        assert_eq!(registry.sum("cluster.c.ratelimit.", "over_limit"), 1);
        for n in 0..2 * MAX_PREFIXES {
            stats.count_authz(&n.to_string().into(), |_| {});
        }
        stats.count_authz(&"one-too-many".into(), |_| panic!("there is no more room"));
    }

    /// Counts are shared, and every request of every worker wrote to how often they are.
    #[test]
    fn who_counts_clones_nothing() {
        struct Counts<'c>(&'c Cell<u32>);
        impl Clone for Counts<'_> {
            fn clone(&self) -> Self {
                self.0.set(self.0.get() + 1);
                Counts(self.0)
            }
        }
        let (clones, counted, prefix) = (Cell::new(0), Cell::new(0), "waf".into());
        let all = ByPrefix::default();
        for _ in 0..3 {
            all.count(&prefix, || Counts(&clones), |_| counted.set(counted.get() + 1));
        }
        assert_eq!((counted.get(), clones.get()), (3, 0));
    }
}
