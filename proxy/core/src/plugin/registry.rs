//! The plugins this binary has.

use super::{
    ApisixFactory, Callout, Consumers, FilterFactory, NetworkFilterFactory, PluginMetadata, PublicApis,
};
use crate::access_log::MakeSink;
use crate::cluster::{ClusterCell, Clusters};
use crate::export::{self, Background};
use crate::interned::Interned;
use crate::metrics;
use crate::runtime::Runtime;
use crate::secret::{NoSecrets, SecretSource};
use crate::workload::Workload;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use std::any::Any;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What a plugin may use when it is built.
#[derive(Clone)]
pub struct BuildContext {
    /// Sends requests of plugins that wait for a service.
    pub callout: Arc<dyn Callout>,
    /// Runs what is told to services beside the request path.
    pub background: Arc<dyn Background>,
    /// Opens the files of plugins that write logs.
    pub log_sinks: Arc<dyn MakeSink>,
    /// Statistics.
    pub metrics: metrics::Registry,
    /// State that plugins share over the whole process and over configuration changes, such as limiters.
    pub shared: Arc<SharedState>,
    /// What has the configuration: the key of an APISIX resource (`/apisix/services/1`; all its routes share
    /// the instance), or the Envoy route's name; of a filter that [tells them apart](FilterFactory::told_apart) its name,
    /// virtual host and route (`limits/shop/default`), as far as its settings lie there.
    pub resource: Arc<str>,
    /// Prefix of statistics of who has the plugin, with its final dot: `http.PREFIX.` of a connection manager.
    pub scope: Arc<str>,
    /// Attributes of `plugin_attr.<name>`.
    pub attributes: Arc<Value>,
    /// The clusters in force.
    pub clusters: Arc<Clusters>,
    /// What this proxy is one of (`node.cluster` of an Envoy bootstrap).
    pub local_cluster: Arc<str>,
    /// Who this proxy is in its mesh.
    pub node: Arc<LocalNode>,
    /// Which way the connections of the listener go.
    pub direction: TrafficDirection,
    /// Values of the runtime layers.
    pub runtime: Arc<Runtime>,
    /// The host's own address, where it is known.
    pub local_address: Option<IpAddr>,
    /// Secrets that the configuration names.
    pub secrets: Arc<dyn SecretSource>,
    /// What the filter is called in its connection manager's list; empty for a plugin of APISIX.
    pub filter: Arc<str>,
    /// Whether this proxy is to fail checks of its health (`POST /healthcheck/fail`).
    pub failing_checks: Arc<AtomicBool>,
    /// What plugins of APISIX are told for the whole gateway.
    pub metadata: Arc<PluginMetadata>,
    /// Whether that is all that they are told, as where one resource is looked at by itself before it is written. Else more may
    /// come with the resource.
    pub metadata_is_whole: bool,
    /// The endpoints of the plugins of APISIX that may be used.
    pub public_apis: Arc<PublicApis>,
    /// The consumers that plugins of APISIX find by credentials.
    pub consumers: Arc<Consumers>,
    /// The cluster of this proxy and those like it (`cluster_manager.local_cluster_name`).
    pub peers: Option<Arc<str>>,
    /// Ports on which a gateway is listened to by TLS: what clients are sent to who have come without.
    pub tls_ports: Arc<[u16]>,
}

impl BuildContext {
    /// For no resource yet, with nothing shared so far.
    pub fn new(callout: Arc<dyn Callout>, metrics: metrics::Registry) -> BuildContext {
        BuildContext {
            callout,
            background: Arc::new(export::Nowhere),
            log_sinks: Arc::new(crate::detached::Nowhere),
            metrics,
            shared: Arc::default(),
            resource: "".into(),
            scope: "".into(),
            attributes: Arc::default(),
            clusters: Arc::default(),
            local_cluster: "".into(),
            node: Arc::default(),
            direction: TrafficDirection::Unspecified,
            runtime: Arc::default(),
            local_address: None,
            secrets: Arc::new(NoSecrets),
            filter: "".into(),
            failing_checks: Arc::default(),
            metadata: Arc::default(),
            metadata_is_whole: false,
            public_apis: Arc::default(),
            consumers: Arc::default(),
            peers: None,
            tls_ports: Arc::default(),
        }
    }
}

impl BuildContext {
    /// The place of the cluster of an upstream that a plugin of this resource brings
    /// ([`BroughtUpstream`](super::BroughtUpstream)).
    pub fn brought_cluster(&self, name: &str) -> Arc<ClusterCell> {
        self.clusters.cell(&brought_name(&self.resource, name))
    }
}

/// What the cluster of an upstream is called that a plugin of an APISIX resource (`/apisix/routes/1`) brings.
pub fn brought_name(resource: &str, name: &str) -> String {
    format!("{}/{name}", resource.strip_prefix("/apisix/").unwrap_or(resource))
}

/// Which way the connections of a listener go (Envoy's `traffic_direction`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TrafficDirection {
    /// That is not said, as of gateways' listeners.
    #[default]
    Unspecified,
    /// To the workload that this proxy is the sidecar of.
    Inbound,
    /// From that workload.
    Outbound,
}

/// Who a proxy is in its mesh: the `node` of an Envoy bootstrap, as far as its telemetry tells of it.
#[derive(Debug, Clone, Default)]
pub struct LocalNode {
    /// `id`
    pub id: Box<str>,
    /// `metadata`, with `REGION` and `AVAILABILITY_ZONE` from `locality` where they are missing.
    pub metadata: Map<String, Value>,
}

impl LocalNode {
    /// The workload that it is the proxy of; `additional` are the labels that are told beside Istio's own.
    pub fn workload(&self, additional: &[Box<str>]) -> Workload {
        Workload::of_metadata(&self.metadata, additional)
    }
}

type Shared = dyn Any + Send + Sync;

/// State by key that outlives a plugin's instance.
#[derive(Default)]
pub struct SharedState {
    values: Mutex<Interned<String, Shared>>,
}

impl SharedState {
    /// The value under `key`, made when nobody holds one. `make` runs without a lock and may ask for other values; of
    /// two that are made at the same moment the first to be there is both callers'.
    pub fn get_or_insert<T: Send + Sync + 'static>(&self, key: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let known =
            |values: &Interned<String, Shared>| values.get(key).and_then(|value| value.downcast().ok());
        if let Some(value) = known(&self.values.lock()) {
            return value;
        }
        let made = Arc::new(make());
        let mut values = self.values.lock();
        if let Some(value) = known(&values) {
            return value;
        }
        values.insert(key.to_owned(), &(made.clone() as Arc<Shared>));
        made
    }
}

/// The plugins this binary has. Filled once at start.
#[derive(Default, Clone)]
pub struct Registry {
    /// By name. A plugin's index among them is its part of a [`Slot`](super::Slot).
    apisix: Arc<BTreeMap<&'static str, (u16, Arc<ApisixFactory>)>>,
    /// By type of the configuration.
    filters: Arc<BTreeMap<String, Arc<FilterFactory>>>,
    /// Network filters, by type of the configuration.
    network: Arc<BTreeMap<String, Arc<NetworkFilterFactory>>>,
    /// Filters that other builds of the binary have, and how to come by them.
    absent: Arc<BTreeMap<&'static str, &'static str>>,
}

impl Registry {
    /// These plugins of APISIX and filters of Envoy; of two with one name the second counts.
    pub fn new(
        apisix: impl IntoIterator<Item = ApisixFactory>,
        filters: impl IntoIterator<Item = FilterFactory>,
    ) -> Registry {
        let apisix: BTreeMap<_, _> = apisix.into_iter().map(|factory| (factory.name, factory)).collect();
        let indexed = (0u16..).zip(apisix).map(|(index, (name, factory))| (name, (index, Arc::new(factory))));
        let filters = filters.into_iter().map(|factory| (factory.config_type.clone(), Arc::new(factory)));
        Registry {
            apisix: Arc::new(indexed.collect()),
            filters: Arc::new(filters.collect()),
            network: Arc::default(),
            absent: Arc::default(),
        }
    }

    /// The same with these network filters of Envoy.
    #[must_use]
    pub fn with_network_filters(self, filters: impl IntoIterator<Item = NetworkFilterFactory>) -> Registry {
        let filters = filters.into_iter().map(|factory| (factory.config_type.clone(), Arc::new(factory)));
        Registry { network: Arc::new(filters.collect()), ..self }
    }

    /// With another filter of Envoy, in the place of one that the same type configures.
    #[must_use]
    pub fn with_filter(mut self, factory: FilterFactory) -> Registry {
        Arc::make_mut(&mut self.filters).insert(factory.config_type.clone(), Arc::new(factory));
        self
    }

    /// The plugin of APISIX with this name, and its index.
    pub fn apisix(&self, name: &str) -> Option<(u16, &Arc<ApisixFactory>)> {
        self.apisix.get(name).map(|(index, factory)| (*index, factory))
    }

    /// Says of a filter that this build does not have how to come by it.
    #[must_use]
    pub fn without_filter(mut self, config_type: &'static str, how: &'static str) -> Registry {
        Arc::make_mut(&mut self.absent).insert(config_type, how);
        self
    }

    /// How to come by the filter that is configured by this type, where another build of the binary has it.
    pub fn absent_filter(&self, config_type: &str) -> Option<&'static str> {
        self.absent.get(config_type).copied()
    }

    /// The filter of Envoy that is configured by this type.
    pub fn filter(&self, config_type: &str) -> Option<&Arc<FilterFactory>> {
        self.filters.get(config_type)
    }

    /// The filter of Envoy that takes settings of this type from routes, else the one that is configured by it.
    pub fn filter_of_routes(&self, kind: &str) -> Option<&Arc<FilterFactory>> {
        let takes = |factory: &&Arc<FilterFactory>| factory.override_type.as_deref() == Some(kind);
        self.filters.values().find(takes).or_else(|| self.filter(kind))
    }

    /// The network filter of Envoy that is configured by this type.
    pub fn network_filter(&self, config_type: &str) -> Option<&Arc<NetworkFilterFactory>> {
        self.network.get(config_type)
    }

    /// Names of APISIX's plugins, sorted.
    pub fn apisix_names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.apisix.keys().copied()
    }

    /// Types of Envoy's filters, sorted.
    pub fn filter_types(&self) -> impl Iterator<Item = &str> + '_ {
        self.filters.keys().map(String::as_str)
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.apisix_names()).entries(self.filter_types()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shared_while_somebody_holds_them() {
        let shared = SharedState::default();
        let one = shared.get_or_insert("a", || 1);
        assert_eq!((*shared.get_or_insert("a", || 2), *shared.get_or_insert("b", || 3)), (1, 3));
        drop(one);
        assert_eq!(*shared.get_or_insert("a", || 4), 4);
    }

    /// Making one under the lock kept it from using another, and everybody else waiting.
    #[test]
    fn a_value_may_be_made_of_another() {
        let shared = SharedState::default();
        assert_eq!(*shared.get_or_insert("a", || *shared.get_or_insert("b", || 1) + 1), 2);
    }
}
