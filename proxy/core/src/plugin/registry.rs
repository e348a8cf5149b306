//! The plugins this binary has.

use super::{Callout, Plugin};
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

/// Makes instances of one plugin.
pub trait PluginFactory: Send + Sync {
    /// APISIX's name, or the type URL of an Envoy filter's configuration.
    fn name(&self) -> &'static str;

    /// APISIX's priority constant; Envoy's filters have none and keep the configuration's order.
    fn priority(&self) -> i64 {
        0
    }

    /// Schema (draft-07) of the configuration, as APISIX's Admin API serves it; `None` for Envoy filters.
    fn schema(&self) -> Option<&'static str> {
        None
    }

    /// What every resource that has this plugin must have in common with others: the name of the agreement, and
    /// what is agreed on (limit-count's groups). A resource that differs from those of its name is refused.
    fn agreement(&self, _config: &Value) -> Option<(String, String)> {
        None
    }

    /// An instance from a configuration that its schema has accepted and filled with defaults.
    ///
    /// # Errors
    /// A message that names the field and the reason.
    fn build(&self, _config: &Value, _context: &BuildContext) -> Result<Arc<dyn Plugin>, String> {
        Err(format!("{} is no plugin of APISIX", self.name()))
    }

    /// An instance of an Envoy HTTP filter from its configuration (the bytes of the `Any`) and the
    /// overrides that apply to the route, least specific first.
    ///
    /// # Errors
    /// A message that names the field and the reason.
    fn build_filter(
        &self,
        _config: &[u8],
        _overrides: &[&[u8]],
        _context: &BuildContext,
    ) -> Result<Arc<dyn Plugin>, String> {
        Err(format!("{} is not an Envoy filter", self.name()))
    }
}

/// Every plugin by name. Filled once at start.
#[derive(Default, Clone)]
pub struct Registry {
    factories: BTreeMap<&'static str, Arc<dyn PluginFactory>>,
}

impl Registry {
    /// No plugins.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// Adds one; a second of the same name takes the first one's place.
    pub fn add(&mut self, factory: Arc<dyn PluginFactory>) {
        self.factories.insert(factory.name(), factory);
    }

    /// The factory of a name.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn PluginFactory>> {
        self.factories.get(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.factories.keys().copied()
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}
