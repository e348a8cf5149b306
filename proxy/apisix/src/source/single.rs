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
        let environment = &self.context.environment;
        let reader = Reader { catalog: &self.catalog, environment, hints: false, elsewhere: true };
        let shared = SharedParts::default();
        let builder = Builder { config: &self.config, context: &self.context, shared: &shared };
        match reader.read(key, &Node::from_json(value.clone())) {
            Ok(parsed) => {
                let built = builder.build(key, 0, parsed, &self.catalog, None);
                let all = built.err().map(ConfigError::into_all).unwrap_or_default();
                all.into_iter().map(tls::in_words_alone).collect()
            }
            Err(Refusal { mut errors, plugins, .. }) => {
                let built = builder.plugins(key, &plugins, None);
                errors.extend(built.err().into_iter().flat_map(ConfigError::into_all));
                errors
            }
        }
    }
}
