//! Statistics, under Envoy's names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sixfold_core::metrics::{Registry, Text};
use xxhash_rust::xxh64::xxh64;

use super::key::{Channel, Key};
use super::kind::Kind;
use super::users::Count;
use crate::rds::Source;

sixfold_core::stat_block! {
    /// Statistics of a stream, under `control_plane.`.
    pub struct ControlPlaneCounts {
        counters: [rate_limit_enforced], gauges: [connected_state, pending_requests], histograms: []
    }
}

sixfold_core::stat_block! {
    /// Statistics of a subscription (config/subscription.h). `version` is the xxHash64 of the version in force,
    /// `update_time` when it came, in milliseconds since 1970, `update_duration` how long it took to take it, in
    /// milliseconds.
    pub struct SubscriptionCounts {
        counters: [update_attempt, update_success, update_failure, update_rejected, init_fetch_timeout],
        gauges: [],
        numbers: [version, update_time],
        histograms: [update_duration],
    }
}

sixfold_core::stat_block! {
    /// What is counted of clusters and route configurations beside (upstream/cds_api_impl.h,
    /// rds/rds_route_config_subscription.h). `config_reload_time_ms` is when something came last that was another, in
    /// milliseconds since 1970.
    pub struct ReloadCounts {
        counters: [config_reload], gauges: [], numbers: [config_reload_time_ms], histograms: []
    }
}

sixfold_core::stat_block! {
    /// What is counted of route configurations alone: responses without the one that was asked for.
    pub struct EmptyCounts {
        counters: [update_empty], gauges: [], histograms: []
    }
}

sixfold_core::stat_block! {
    /// Clusters that wait here, before they are known to who puts them in force and counts those that wait there.
    pub struct WarmingClusters { counters: [], gauges: [warming_clusters], histograms: [] }
}

sixfold_core::stat_block! {
    /// The same of listeners.
    pub struct WarmingListeners { counters: [], gauges: [total_listeners_warming], histograms: [] }
}

/// What is counted of a stream.
pub(super) struct ControlPlaneStats {
    pub(super) counts: ControlPlaneCounts,
    /// What the control plane calls itself (`DiscoveryResponse.control_plane.identifier`).
    pub(super) identifier: Arc<Text>,
}

impl ControlPlaneStats {
    pub(super) fn new(registry: &Registry, prefix: &str) -> ControlPlaneStats {
        ControlPlaneStats {
            counts: ControlPlaneCounts::new(registry, prefix),
            identifier: registry.text(&format!("{prefix}identifier")),
        }
    }
}

/// What is counted of a subscription.
pub(super) struct Subscription {
    pub(super) counts: SubscriptionCounts,
    version_text: Arc<Text>,
    reloads: Option<ReloadCounts>,
    empty: Option<EmptyCounts>,
}

impl Subscription {
    /// One that begins. To ask for it is an attempt of its own, which to read a file is not.
    fn new(registry: &Registry, prefix: &str, kind: Kind, of_file: bool) -> Subscription {
        let counts = SubscriptionCounts::new(registry, prefix);
        if !of_file {
            counts.update_attempt().inc();
        }
        Subscription {
            counts,
            version_text: registry.text(&format!("{prefix}version_text")),
            reloads: matches!(kind, Kind::Cluster | Kind::Routes)
                .then(|| ReloadCounts::new(registry, prefix)),
            empty: (kind == Kind::Routes).then(|| EmptyCounts::new(registry, prefix)),
        }
    }

    /// A response was taken.
    pub(super) fn taken(&self, version: &str, took: Duration) {
        self.counts.update_attempt().inc();
        self.counts.update_success().inc();
        self.counts.version().set(xxh64(version.as_bytes(), 0));
        self.version_text.set(version);
        self.counts.update_time().set(now());
        self.counts.update_duration().record(millis(took));
    }

    /// A response was refused, or a part of it.
    pub(super) fn refused(&self) {
        self.counts.update_attempt().inc();
        self.counts.update_rejected().inc();
    }

    /// The stream has ended.
    pub(super) fn failed(&self) {
        self.counts.update_attempt().inc();
        self.counts.update_failure().inc();
    }

    /// Nothing has come in time.
    pub(super) fn timed_out(&self) {
        self.counts.update_attempt().inc();
        self.counts.init_fetch_timeout().inc();
    }

    /// A response has nothing of what was asked for.
    pub(super) fn came_empty(&self) {
        if let Some(empty) = &self.empty {
            empty.update_empty().inc();
        }
    }

    /// What was taken is another than before.
    pub(super) fn reloaded(&self) {
        if let Some(reloads) = &self.reloads {
            reloads.config_reload().inc();
            reloads.config_reload_time_ms().set(now());
        }
    }
}

/// What is counted of subscriptions: to all clusters, to all listeners, to each route configuration, and to the endpoints
/// of each cluster.
pub(super) struct Stats {
    registry: Registry,
    clusters: WarmingClusters,
    listeners: WarmingListeners,
    wildcards: BTreeMap<Kind, Subscription>,
    /// By the prefixes under which they are counted, which are several where clusters share an assignment.
    resources: BTreeMap<Key, Vec<(Arc<str>, Subscription)>>,
}

impl Stats {
    /// Those of these types have everything from a source.
    pub(super) fn new<'a>(registry: &Registry, kinds: impl Iterator<Item = (Kind, &'a Source)>) -> Stats {
        let of = |(kind, source): (Kind, &Source)| {
            let prefix = match kind {
                Kind::Cluster => "cluster_manager.cds.",
                Kind::Listener => "listener_manager.lds.",
                _ => return None,
            };
            Some((kind, Subscription::new(registry, prefix, kind, is_file(source))))
        };
        Stats {
            registry: registry.clone(),
            clusters: WarmingClusters::new(registry, "cluster_manager."),
            listeners: WarmingListeners::new(registry, "listener_manager."),
            wildcards: kinds.filter_map(of).collect(),
            resources: BTreeMap::new(),
        }
    }

    /// So many clusters and listeners wait.
    pub(super) fn warm(&self, (clusters, listeners): (usize, usize)) {
        self.clusters.warming_clusters().set(clusters as u64);
        self.listeners.total_listeners_warming().set(listeners as u64);
    }

    /// Those of a type of which everything is wanted.
    pub(super) fn of(&self, kind: Kind) -> Option<&Subscription> {
        self.wildcards.get(&kind)
    }

    /// Those of one resource, where it is counted by itself.
    pub(super) fn of_key(&self, key: &Key) -> impl Iterator<Item = &Subscription> {
        self.resources.get(key).into_iter().flatten().map(|(_, subscription)| subscription)
    }

    /// A resource is counted elsewhere from now on.
    pub(super) fn count(&mut self, count: Count) {
        match count {
            Count::Under(key, prefix) => {
                let begun = Subscription::new(&self.registry, &prefix, key.kind, is_file(&key.source));
                self.resources.entry(key).or_default().push((prefix, begun));
            }
            Count::NoLonger(key, prefix) => {
                self.resources.entry(key).or_default().retain(|(known, _)| *known != prefix);
            }
            Count::Nowhere(key) => drop(self.resources.remove(&key)),
        }
    }

    /// A stream has ended.
    pub(super) fn failed(&self, channel: &Channel, wildcards: &BTreeMap<Kind, Channel>) {
        let all = wildcards.iter().filter(|(_, of)| *of == channel).filter_map(|(kind, _)| self.of(*kind));
        let single = self.resources.keys().filter(|key| Channel::of(key.kind, &key.source) == *channel);
        all.chain(single.flat_map(|key| self.of_key(key))).for_each(Subscription::failed);
    }
}

fn is_file(source: &Source) -> bool {
    matches!(source, Source::Path(_))
}

/// In milliseconds since 1970.
pub(crate) fn now() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}
