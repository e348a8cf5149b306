//! APISIX's plugins as an HTTP filter of an Envoy configuration.
//!
//! The filter is configured by JSON, which a `TypedStruct` carries: `plugins` as a route of APISIX has them. Settings of a
//! virtual host or route are of the same form; a plugin that they name takes the place of the one of that name of a wider
//! level, and `_meta.disable` takes it away, as a route of APISIX does with the plugins of its service.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::Value;
use sixfold_core::error::{ConfigContext, ConfigError, Faults};
use sixfold_core::plugin::{BuildContext, Built, FilterConfig, FilterFactory, Kind, Plugin, Registry};

use crate::config::{EnabledPlugins, EnvVars};
use crate::item;
use crate::plugin::{Catalog, On, PluginConfig, PluginSet};
use crate::resource::Plugins;
use crate::schema::Step;

/// The type that configures the filter, behind the last slash of a `TypedStruct`'s `type_url`.
pub const PLUGINS_FILTER: &str = "sixfold.plugins.v1.Plugins";

/// The filter that runs plugins of `registry`. What they refer to as `$env://NAME` is a variable of `environment`.
fn plugins_filter(registry: &Registry, environment: EnvVars) -> FilterFactory {
    let catalog = Catalog::new(registry, &EnabledPlugins::default(), &BTreeMap::new());
    let name = || PLUGINS_FILTER.to_owned();
    let build = move |given: &FilterConfig<'_>, context: &BuildContext| {
        build(&catalog, &environment, given, context).in_key("value")
    };
    FilterFactory::new(name(), name(), build).json().told_apart().reads_all_levels()
}

/// The plugins of one route, by name.
#[derive(Default)]
struct Merged(BTreeMap<String, PluginConfig>);

fn build(
    catalog: &Catalog,
    environment: &EnvVars,
    given: &FilterConfig<'_>,
    context: &BuildContext,
) -> Built {
    let mut merged = Merged::default();
    let mut levels = std::iter::once(given.config).chain(given.overrides.iter().copied()).peekable();
    while let Some(level) = levels.next() {
        let added = merged.add(catalog, environment, level);
        // What is wrong with a wider level is told there, and not by each of its routes.
        if levels.peek().is_none() {
            added?;
        }
    }
    let plugins: Vec<PluginConfig> = merged.0.into_values().collect();
    // Two connection managers never count together.
    let resource = format!("{}{}", context.scope, context.resource);
    let set = PluginSet::build(&plugins, &resource, context, None).in_key("plugins")?;
    Ok(Plugin::of_parts(set.parts()))
}

impl Merged {
    /// Lays what a level says over what wider ones have said.
    fn add(&mut self, catalog: &Catalog, environment: &EnvVars, level: &[u8]) -> Result<(), ConfigError> {
        let plugins = plugins(level)?;
        let (mut accepted, mut refused) = catalog.check(On::Requests, &plugins, environment);
        refused.extend(accepted.iter_mut().flat_map(|plugin| std::mem::take(&mut plugin.unresolved)));
        let mut faults = Faults::default();
        // Envoy's configuration has no consumers that one could find.
        for plugin in accepted.iter().filter(|plugin| plugin.factory.kind == Kind::Auth) {
            let reason = "needs consumers, which only APISIX's configuration has";
            faults.take::<()>(Err(ConfigError::new(reason).in_key(plugin.factory.name).in_key("plugins")));
        }
        for plugin in accepted.iter().filter(|plugin| plugin.factory.needs_upstreams()) {
            let reason = "needs upstreams, which only APISIX's configuration has";
            faults.take::<()>(Err(ConfigError::new(reason).in_key(plugin.factory.name).in_key("plugins")));
        }
        for mut violation in refused {
            violation.path.insert(0, Step::Key("plugins".to_owned()));
            faults.take::<()>(Err(item::fault(violation)));
        }
        faults.end(())?;
        self.0.retain(|name, _| !plugins.contains_key(name));
        self.0.extend(accepted.into_iter().map(|plugin| (plugin.factory.name.to_owned(), plugin)));
        Ok(())
    }
}

/// `plugins` of a configuration.
fn plugins(level: &[u8]) -> Result<Plugins, ConfigError> {
    let value = serde_json::from_slice(level).map_err(|error| ConfigError::new(error.to_string()))?;
    let Value::Object(fields) = value else { return Err(ConfigError::new("must be an object")) };
    let mut plugins = None;
    let mut faults = Faults::default();
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("plugins", Value::Object(given)) => plugins = Some(given),
            ("plugins", _) => faults.take(Err(ConfigError::field("plugins", "must be an object"))),
            _ => faults.take(Err(ConfigError::unknown_key(&name, ["plugins"]).in_key(&name))),
        }
    }
    faults.end(())?;
    plugins.ok_or_else(|| ConfigError::field("plugins", "is missing"))
}

/// The registry with this filter among the others.
pub fn with_plugins_filter(registry: Registry, environment: EnvVars) -> Registry {
    let filter = plugins_filter(&registry, environment);
    registry.with_filter(filter)
}
