//! What metrics say of the store: APISIX's `etcd_reachable` and `etcd_modify_indexes`, and what of it is not in force.

use std::collections::BTreeMap;

use sixfold_core::metrics::Registry;

use crate::config::Provider;
use crate::resource::Kind;

sixfold_core::stat_block! {
    /// Numbers of the store, under `apisix_store.`: whether there is one that is written, whether it told its changes when it was
    /// asked last, and the largest revision of the resources of each kind.
    pub struct StoreStats {
        counters: [], gauges: [],
        numbers: [
            is_written, reachable, consumers, global_rules, protos, routes, services, ssls, stream_routes, upstreams,
            max_modify_index,
        ],
        histograms: [],
    }
}

sixfold_core::stat_block! {
    /// Numbers of the configuration, under `apisix_config.`: whether there is one, whether it could be read when it was looked
    /// at last, and how many resources of each kind were refused.
    pub struct ConfigStats {
        counters: [], gauges: [],
        numbers: [
            is_followed, is_read, consumers, consumer_groups, credentials, global_rules, plugin_configs, plugin_metadata,
            protos, routes, secrets, services, ssls, stream_routes, upstreams,
        ],
        histograms: [],
    }
}

/// The numbers of a store.
pub(super) struct Figures {
    /// Unless it is a file.
    store: Option<StoreStats>,
    config: ConfigStats,
}

impl Figures {
    /// Of a store of this kind.
    pub(super) fn new(provider: &Provider, registry: &Registry) -> Figures {
        let config = ConfigStats::new(registry, "apisix_config.");
        config.is_followed().set(1);
        let is_file = matches!(provider, Provider::Yaml | Provider::Json);
        let store = (!is_file).then(|| StoreStats::new(registry, "apisix_store."));
        store.iter().for_each(|stats| stats.is_written().set(1));
        Figures { store, config }
    }

    /// Whether the store has told what has changed.
    pub(super) fn told(&self, has: bool) {
        self.config.is_read().set(u64::from(has));
        if let Some(stats) = &self.store {
            stats.reachable().set(u64::from(has));
        }
    }

    /// The largest revisions among changes.
    pub(super) fn changed(&self, revisions: impl Iterator<Item = (Kind, u64)>) {
        let Some(stats) = &self.store else { return };
        for (kind, revision) in revisions {
            let of_kind = match kind {
                Kind::Consumer => Some(stats.consumers()),
                Kind::GlobalRule => Some(stats.global_rules()),
                Kind::Proto => Some(stats.protos()),
                Kind::Route => Some(stats.routes()),
                Kind::Service => Some(stats.services()),
                Kind::Ssl => Some(stats.ssls()),
                Kind::StreamRoute => Some(stats.stream_routes()),
                Kind::Upstream => Some(stats.upstreams()),
                _ => None,
            };
            for number in of_kind.into_iter().chain([stats.max_modify_index()]) {
                number.set(number.get().max(revision));
            }
        }
    }

    /// How many resources of each kind were refused.
    pub(super) fn refused(&self, numbers: &BTreeMap<Kind, u64>) {
        let stats = &self.config;
        for kind in Kind::ALL {
            let number = match kind {
                Kind::Consumer => stats.consumers(),
                Kind::ConsumerGroup => stats.consumer_groups(),
                Kind::Credential => stats.credentials(),
                Kind::GlobalRule => stats.global_rules(),
                Kind::PluginConfig => stats.plugin_configs(),
                Kind::PluginMetadata => stats.plugin_metadata(),
                Kind::Proto => stats.protos(),
                Kind::Route => stats.routes(),
                Kind::Secret => stats.secrets(),
                Kind::Service => stats.services(),
                Kind::Ssl => stats.ssls(),
                Kind::StreamRoute => stats.stream_routes(),
                Kind::Upstream => stats.upstreams(),
            };
            number.set(numbers.get(&kind).copied().unwrap_or(0));
        }
    }
}
