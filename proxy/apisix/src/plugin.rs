//! Plugins as resources name them: checked against their schemas when an item is read, built when it is used.

mod meta;
mod names;
mod set;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use sixfold_core::error::nearest;
use sixfold_core::plugin::{ApisixFactory, Registry};

pub(crate) use self::meta::Meta;
pub(crate) use self::set::{ChainCache, GlobalPlugins, PluginSet, merge};
use crate::config::EnvVars;
use crate::resource::Plugins;
use crate::schema::{self, Schema, Step, Violation};
use crate::secret;
use xxhash_rust::xxh64::xxh64;

/// The plugins that resources may use.
pub(crate) struct Catalog {
    plugins: BTreeMap<&'static str, Entry>,
    /// Those that the gateway has and the list of plugins has not.
    disabled: BTreeSet<&'static str>,
}

struct Entry {
    /// Index among the registry's plugins, which their state is found by.
    index: u16,
    factory: Arc<ApisixFactory>,
    schema: Schema,
    attributes: Arc<Value>,
}

/// A plugin of a resource, its configuration accepted and filled with defaults.
#[derive(Clone)]
pub(crate) struct PluginConfig {
    pub(crate) index: u16,
    pub(crate) factory: Arc<ApisixFactory>,
    pub(crate) config: Value,
    pub(crate) attributes: Arc<Value>,
    pub(crate) meta: Meta,
    /// Fingerprint of the configuration as written.
    pub(crate) print: u64,
}

/// What a plugin must have in common with those of other resources: all of one name agree.
#[derive(Debug, Clone)]
pub(crate) struct Agreement {
    pub(crate) name: Arc<str>,
    /// Fingerprint of what is agreed on.
    pub(crate) print: u64,
    /// Where a resource says it.
    pub(crate) field: Box<str>,
    /// Why one that differs is refused.
    pub(crate) reason: &'static str,
}

impl PluginConfig {
    pub(crate) fn agreement(&self) -> Option<Agreement> {
        let (name, of) = self.factory.agreement(&self.config)?;
        let plugin = self.factory.name;
        Some(Agreement {
            name: format!("{plugin} {name}").into(),
            print: xxh64(of.as_bytes(), 0),
            field: format!("plugins.{plugin}.group").into(),
            reason: "group conf mismatched",
        })
    }
}

impl Catalog {
    /// Every plugin of `registry` that is in `enabled`; `None` enables all. Names that nobody knows are
    /// logged, as APISIX does it.
    pub(crate) fn new(
        registry: &Registry,
        enabled: Option<&BTreeSet<String>>,
        attributes: &BTreeMap<String, Value>,
    ) -> Catalog {
        for name in enabled.into_iter().flatten().filter(|name| registry.apisix(name).is_none()) {
            tracing::warn!(plugin = name, "enabled, but not part of this gateway");
        }
        let mut plugins = BTreeMap::new();
        let is_enabled = |name: &&str| enabled.is_none_or(|enabled| enabled.contains(*name));
        for name in registry.apisix_names().filter(is_enabled) {
            let Some((index, factory)) = registry.apisix(name) else { continue };
            let attributes = Arc::new(attributes.get(name).cloned().unwrap_or(Value::Null));
            let (factory, schema) = (factory.clone(), Schema::builtin(factory.schema));
            plugins.insert(name, Entry { index, factory, schema, attributes });
        }
        let disabled = registry.apisix_names().filter(|name| !plugins.contains_key(name)).collect();
        Catalog { plugins, disabled }
    }

    /// Checks the plugins of a resource: those that are right, and every fault of the others, in APISIX's words.
    pub(crate) fn check(
        &self,
        plugins: &Plugins,
        environment: &EnvVars,
    ) -> (Vec<PluginConfig>, Vec<Violation>) {
        let (mut accepted, mut refused) = (Vec::new(), Vec::new());
        for (name, config) in plugins {
            match self.check_one(name, config, environment) {
                Ok(plugin) => accepted.extend(plugin),
                Err(violations) => refused.extend(violations.into_iter().map(|mut violation| {
                    violation.path.insert(0, Step::Key(name.clone()));
                    violation
                })),
            }
        }
        (accepted, refused)
    }

    /// Why there is no plugin of this name, in APISIX's words and what helps beyond them.
    fn unknown(&self, name: &str) -> String {
        let hint = if self.disabled.contains(name) {
            ": it is not in the list of plugins".to_owned()
        } else if names::APISIX.contains(&name) {
            ": not supported yet".to_owned()
        } else {
            let known = self.plugins.keys().copied().chain(names::APISIX.iter().copied());
            nearest(name, known).map_or_else(String::new, |near| format!("; did you mean \"{near}\"?"))
        };
        format!("unknown plugin [{name}]{hint}")
    }

    /// `None` for a plugin that is switched off.
    fn check_one(
        &self,
        name: &str,
        config: &Value,
        environment: &EnvVars,
    ) -> Result<Option<PluginConfig>, Vec<Violation>> {
        let fault = |message: String| Violation::new(Vec::new(), message);
        let Some(entry) = self.plugins.get(name) else {
            return Err(vec![fault(self.unknown(name))]);
        };
        let refused = |violation: Violation| Violation {
            message: format!("failed to check the configuration of plugin {name} err: {}", violation.message),
            ..violation
        };
        let print = xxh64(config.to_string().as_bytes(), 0);
        let mut config = match config {
            // Lua's empty table.
            Value::Array(items) if items.is_empty() => Value::Object(serde_json::Map::new()),
            config => config.clone(),
        };
        let (true, meta) = (config.is_object(), take_meta(&mut config)) else {
            return Err(vec![fault(format!("invalid plugin conf {config} for plugin [{name}]"))]);
        };
        let (meta, mut violations) = match meta {
            Ok(meta) => (meta, Vec::new()),
            Err(violations) => (Meta::default(), violations),
        };
        let right = entry
            .schema
            .validate_all(&mut config)
            .and_then(|()| secret::resolve_all(&mut config, environment));
        if !meta.disable {
            violations.extend(right.err().into_iter().flatten());
        }
        if !violations.is_empty() {
            return Err(violations.into_iter().map(refused).collect());
        }
        Ok((!meta.disable).then(|| PluginConfig {
            index: entry.index,
            factory: entry.factory.clone(),
            config,
            attributes: entry.attributes.clone(),
            meta,
            print,
        }))
    }
}

/// Takes `_meta` out of a configuration and checks it.
fn take_meta(config: &mut Value) -> Result<Meta, Vec<Violation>> {
    let Some(mut meta) = config.as_object_mut().and_then(|map| map.shift_remove("_meta")) else {
        return Ok(Meta::default());
    };
    let below = |mut violation: Violation| {
        violation.path.insert(0, Step::Key("_meta".to_owned()));
        let message = format!("property \"_meta\" validation failed: {}", violation.message);
        Violation { message, ..violation }
    };
    let checked = schema::plugin_meta().validate_all(&mut meta);
    checked.map_err(|violations| violations.into_iter().map(below).collect::<Vec<_>>())?;
    Meta::read(&meta).map_err(|message| vec![below(Violation::new(Vec::new(), message))])
}
