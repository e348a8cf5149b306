//! What of config.yaml is read again while the gateway runs: its lists of plugins and their attributes
//! (`PUT /apisix/admin/plugins/reload`, and the same of the control API).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use crate::admin::merge;
use crate::config::{Config, EnabledPlugins};
use crate::store::Notify;

/// Reads config.yaml; why that can't be.
type Load = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// The configuration with the lists of plugins in force, and who is told that they have changed.
pub struct Reloads {
    load: Load,
    current: Mutex<Arc<Config>>,
    wake: Mutex<Option<Notify>>,
}

impl Reloads {
    /// Of the configuration that the gateway has started with; `load` reads it again.
    pub fn new(config: Config, load: impl Fn() -> Result<Config, String> + Send + Sync + 'static) -> Reloads {
        Reloads { load: Box::new(load), current: Mutex::new(Arc::new(config)), wake: Mutex::default() }
    }

    /// Of a configuration that stays.
    #[cfg(test)]
    pub(crate) fn none(config: &Config) -> Arc<Reloads> {
        let stays = config.clone();
        Arc::new(Reloads::new(config.clone(), move || Ok(stays.clone())))
    }

    /// The configuration as it was read at the start, with the lists of plugins that were read last.
    pub(crate) fn current(&self) -> Arc<Config> {
        self.current.lock().clone()
    }

    /// Who takes what has changed.
    pub(crate) fn wakes(&self, notify: Notify) {
        *self.wake.lock() = Some(notify);
    }

    /// Reads the lists again. What is different by them is in force a moment later.
    ///
    /// # Errors
    /// What is wrong in the file: then nothing changes.
    pub(crate) fn reload(&self) -> Result<(), String> {
        let mut fresh = (self.load)()?;
        let before = self.current();
        let mut next = (*before).clone();
        next.plugins = std::mem::take(&mut fresh.plugins).or(&before.plugins);
        // What is not written stays as it was: APISIX lays the file over what it has read before.
        for (plugin, mut attributes) in std::mem::take(&mut fresh.plugin_attr) {
            if let Value::Object(attributes) = &mut attributes {
                attributes.retain(|name, _| fresh.is_written(&format!("plugin_attr.{plugin}.{name}")));
            }
            match (next.plugin_attr.get_mut(&plugin), attributes) {
                (Some(Value::Object(before)), Value::Object(after)) => merge(before, after),
                (_, attributes) => drop(next.plugin_attr.insert(plugin, attributes)),
            }
        }
        if parts(&before) == parts(&next) {
            return Ok(());
        }
        *self.current.lock() = Arc::new(next);
        if let Some(wake) = &*self.wake.lock() {
            wake();
        }
        Ok(())
    }
}

fn parts(config: &Config) -> (&EnabledPlugins, &BTreeMap<String, Value>) {
    (&config.plugins, &config.plugin_attr)
}

impl Config {
    /// Takes the lists of plugins and their attributes of another one.
    pub(crate) fn take_plugins(&mut self, other: &Config) {
        self.plugins.clone_from(&other.plugins);
        self.plugin_attr.clone_from(&other.plugin_attr);
    }
}

impl std::fmt::Debug for Reloads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reloads")
    }
}
