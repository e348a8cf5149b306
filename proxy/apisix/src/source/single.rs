//! Looks at single resources before they are kept.

use std::sync::Arc;

use serde_json::Value;
use sixfold_core::document::Node;
use sixfold_core::error::ConfigError;
use sixfold_core::plugin::{PluginMetadata, Registry};

use super::SourceContext;
use super::record::Builder;
use crate::config::{Config, EnvVars};
use crate::encryption::Turn;
use crate::item::{Reader, Refusal};
use crate::plugin::{Agreement, Catalog};
use crate::shared::SharedParts;
use crate::store::Key;
use crate::tls;

/// Reads and compiles resources as a [`Source`](super::Source) does, for nothing but what is wrong with them: what they
/// are compiled with is not the gateway's.
pub(crate) struct Checker {
    config: Config,
    context: SourceContext,
    catalog: Arc<Catalog>,
}

impl Checker {
    /// By the settings of `config`, with the plugins that it enables.
    pub(crate) fn new(config: Config, registry: Registry, environment: EnvVars) -> Checker {
        let catalog = Catalog::new(&registry, &config.plugins, &config.plugin_attr);
        let catalog = Arc::new(catalog.encrypted(&config));
        Checker { config, context: SourceContext::detached(registry, environment), catalog }
    }

    /// With what plugins are told by metadata that is in force.
    pub(crate) fn with_metadata(mut self, metadata: Arc<PluginMetadata>) -> Checker {
        let build = &mut self.context.compile.build;
        (build.metadata, build.metadata_is_whole) = (metadata, true);
        self
    }

    /// The plugins that resources may use.
    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Encrypts what is kept like that of a resource.
    pub(crate) fn seal(&self, key: &Key, value: &mut Value) {
        self.catalog.turn(Turn::Seal, key, value);
    }

    /// Decrypts what plugins keep encrypted of a resource, but not its private keys.
    pub(crate) fn open_fields(&self, key: &Key, value: &mut Value) {
        self.catalog.turn_fields(Turn::Open, key, value);
    }

    /// Every plugin there is, enabled or not.
    pub(crate) fn registry(&self) -> &Registry {
        &self.context.compile.plugins
    }

    /// What a plugin of a resource must have in common with that of others, if there is such a thing.
    pub(crate) fn agreement(&self, plugin: &str, config: &Value) -> Option<Agreement> {
        self.catalog.agreement(plugin, config, &self.context.environment)
    }

    /// All that is wrong with a value by itself, in APISIX's words alone.
    pub(crate) fn faults(&self, key: &Key, value: &Value) -> Vec<ConfigError> {
        self.all_faults(key, value, false).into_iter().map(tls::in_words_alone).collect()
    }

    /// The same with what helps beyond APISIX's words, and the name of the resource.
    pub(crate) fn explained_faults(&self, key: &Key, value: &Value) -> Vec<ConfigError> {
        let all = self.all_faults(key, value, true).into_iter();
        all.map(|fault| ConfigError { place: None, ..fault.in_resource(key.to_string()) }).collect()
    }

    fn all_faults(&self, key: &Key, value: &Value, hints: bool) -> Vec<ConfigError> {
        let environment = &self.context.environment;
        let reader = Reader { catalog: &self.catalog, environment, hints, elsewhere: true };
        let shared = SharedParts::default();
        let builder = Builder { config: &self.config, context: &self.context, shared: &shared };
        match reader.read(key, &Node::from_json(value.clone())) {
            Ok(parsed) => {
                let built = builder.build(key, 0, parsed, &self.catalog, None);
                built.err().map(ConfigError::into_all).unwrap_or_default()
            }
            Err(Refusal { mut errors, plugins, .. }) => {
                let built = builder.plugins(key, &plugins, None);
                errors.extend(built.err().into_iter().flat_map(ConfigError::into_all));
                errors
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::resource::Kind;
    use crate::testing;
    use serde_json::json;

    /// By the Admin API a missing feature could not be told from a typo.
    #[test]
    fn faults_are_explained_beside_apisix_s_words() {
        let config = Config::standalone("", &testing::environment()).unwrap();
        let checker = Checker::new(config, testing::registry(), testing::environment());
        let key = Key::new(Kind::Route, "1");
        let plugins = json!({"openid-connect": {}, "markr": {}});
        let value = json!({"uri": "/a", "plugins": plugins, "upstream": {"nodes": {}}});
        let told = |faults: Vec<ConfigError>| -> Vec<String> {
            faults.iter().map(|fault| fault.reason.clone()).collect()
        };
        let plain = told(checker.faults(&key, &value));
        assert_eq!(plain, ["unknown plugin [openid-connect]", "unknown plugin [markr]"]);
        let explained = checker.explained_faults(&key, &value);
        assert_eq!(
            explained.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "route \"1\": plugins.openid-connect: unknown plugin [openid-connect]; not supported yet",
                "route \"1\": plugins.markr: unknown plugin [markr]; did you mean \"marker\"?",
            ]
        );
    }
}
