//! What metrics say of the store: APISIX's `etcd_reachable` and `etcd_modify_indexes`.

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

/// The numbers of a store.
pub(super) struct Figures(Option<StoreStats>);

impl Figures {
    /// Of a store of this kind; a file has none.
    pub(super) fn new(provider: &Provider, registry: &Registry) -> Figures {
        if matches!(provider, Provider::Yaml | Provider::Json) {
            return Figures(None);
        }
        let stats = StoreStats::new(registry, "apisix_store.");
        stats.is_written().set(1);
        Figures(Some(stats))
    }

    /// Whether the store has told what has changed.
    pub(super) fn told(&self, has: bool) {
        if let Some(stats) = &self.0 {
            stats.reachable().set(u64::from(has));
        }
    }

    /// The largest revisions among changes.
    pub(super) fn changed(&self, revisions: &BTreeMap<Kind, u64>) {
        let Some(stats) = &self.0 else { return };
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
                number.set(number.get().max(*revision));
            }
        }
    }
}
