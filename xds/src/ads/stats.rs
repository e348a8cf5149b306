//! Statistics, under Envoy's names.

use std::collections::BTreeMap;

use sixfold_core::metrics::Registry;

use super::kind::Kind;

sixfold_core::stat_block! {
    /// Statistics of the stream, under `control_plane.`.
    pub struct ControlPlaneStats {
        counters: [rate_limit_enforced], gauges: [connected_state, pending_requests], histograms: []
    }
}

sixfold_core::stat_block! {
    /// Statistics of a subscription, under `cluster_manager.cds.` and `listener_manager.lds.`.
    pub struct SubscriptionStats {
        counters: [update_attempt, update_success, update_failure, update_rejected, init_fetch_timeout],
        gauges: [], histograms: []
    }
}

/// What is counted of the types of which everything is wanted.
pub(super) struct Stats(BTreeMap<Kind, SubscriptionStats>);

impl Stats {
    pub(super) fn new(registry: &Registry, kinds: impl Iterator<Item = Kind>) -> Stats {
        let of = |kind| {
            let prefix = match kind {
                Kind::Cluster => "cluster_manager.cds.",
                Kind::Listener => "listener_manager.lds.",
                _ => return None,
            };
            let stats = SubscriptionStats::new(registry, prefix);
            stats.update_attempt().inc();
            Some((kind, stats))
        };
        Stats(kinds.filter_map(of).collect())
    }

    /// Those of a type.
    pub(super) fn of(&self, kind: Kind) -> Option<&SubscriptionStats> {
        self.0.get(&kind)
    }

    /// A response was taken, or a part of it refused.
    pub(super) fn answered(&self, kind: Kind, refused: bool) {
        let Some(stats) = self.of(kind) else { return };
        stats.update_attempt().inc();
        if refused { stats.update_rejected().inc() } else { stats.update_success().inc() }
    }
}
