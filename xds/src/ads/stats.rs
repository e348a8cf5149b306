//! Statistics, under Envoy's names.

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

/// What the client counts.
pub(super) struct Stats {
    pub(super) control_plane: ControlPlaneStats,
    clusters: SubscriptionStats,
    listeners: SubscriptionStats,
}

impl Stats {
    pub(super) fn new(registry: &Registry) -> Stats {
        let stats = Stats {
            control_plane: ControlPlaneStats::new(registry, "control_plane."),
            clusters: SubscriptionStats::new(registry, "cluster_manager.cds."),
            listeners: SubscriptionStats::new(registry, "listener_manager.lds."),
        };
        stats.clusters.update_attempt().inc();
        stats.listeners.update_attempt().inc();
        stats
    }

    /// Those of a subscription to a whole type.
    pub(super) fn of(&self, kind: Kind) -> Option<&SubscriptionStats> {
        match kind {
            Kind::Cluster => Some(&self.clusters),
            Kind::Listener => Some(&self.listeners),
            _ => None,
        }
    }

    /// A response was taken, or a part of it refused.
    pub(super) fn answered(&self, kind: Kind, refused: bool) {
        let Some(stats) = self.of(kind) else { return };
        stats.update_attempt().inc();
        if refused { stats.update_rejected().inc() } else { stats.update_success().inc() }
    }

    /// The stream has ended.
    pub(super) fn disconnected(&self) {
        self.control_plane.connected_state().set(0);
        self.clusters.update_failure().inc();
        self.listeners.update_failure().inc();
    }
}
