//! The plugins this binary has.

use super::{ApisixFactory, Callout, FilterFactory};
use crate::metrics;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a plugin may use when it is built.
#[derive(Clone)]
pub struct BuildContext {
    /// Sends requests of plugins that wait for a service.
    pub callout: Arc<dyn Callout>,
    /// Statistics.
    pub metrics: metrics::Registry,
    /// State that plugins share over the whole process and over configuration changes, such as limiters.
    pub shared: Arc<SharedState>,
    /// What has the configuration: the key of an APISIX resource (`/apisix/services/1`; all its routes share
    /// the instance), or the Envoy route's name.
    pub resource: Arc<str>,
    /// Attributes of `plugin_attr.<name>`.
    pub attributes: Arc<Value>,
}

/// State by key that outlives a plugin's instance.
#[derive(Default)]
pub struct SharedState {
    values: parking_lot::Mutex<BTreeMap<String, std::sync::Weak<dyn std::any::Any + Send + Sync>>>,
}

impl SharedState {
    /// The value under `key`, made when nobody holds one.
    pub fn get_or_insert<T: Send + Sync + 'static>(&self, key: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let mut values = self.values.lock();
        let found = values.get(key).and_then(std::sync::Weak::upgrade).and_then(|v| v.downcast::<T>().ok());
        if let Some(value) = found {
            return value;
        }
        values.retain(|_, v| v.strong_count() > 0);
        let value = Arc::new(make());
        let weak: std::sync::Weak<dyn std::any::Any + Send + Sync> = Arc::downgrade(&value) as _;
        values.insert(key.to_owned(), weak);
        value
    }
}

/// The plugins this binary has. Filled once at start.
#[derive(Default, Clone)]
pub struct Registry {
    /// By name. A plugin's index among them is its part of a [`Slot`](super::Slot).
    apisix: Arc<BTreeMap<&'static str, (u16, Arc<ApisixFactory>)>>,
    /// By type of the configuration.
    filters: Arc<BTreeMap<String, Arc<FilterFactory>>>,
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
        Registry { apisix: Arc::new(indexed.collect()), filters: Arc::new(filters.collect()) }
    }

    /// The plugin of APISIX with this name, and its index.
    pub fn apisix(&self, name: &str) -> Option<(u16, &Arc<ApisixFactory>)> {
        self.apisix.get(name).map(|(index, factory)| (*index, factory))
    }

    /// The filter of Envoy that is configured by this type.
    pub fn filter(&self, config_type: &str) -> Option<&Arc<FilterFactory>> {
        self.filters.get(config_type)
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
