//! What consumers and their credentials say of plugins.

use serde_json::Value;
use sixfold_core::plugin::{Consumers, Credential, Kind, Registry};

use super::{Catalog, Of, On, PluginConfig, below, table};
use crate::config::EnvVars;
use crate::resource::Plugins;
use crate::schema::{Schema, Step, Violation, is_secret_reference};
use crate::secret;

/// How a consumer authenticates with one plugin.
#[derive(Clone)]
pub(crate) struct CredentialConfig {
    /// The plugin.
    pub(crate) plugin: &'static str,
    /// What the plugin has made of it.
    pub(crate) credential: Credential,
}

/// What a consumer says of plugins, checked.
#[derive(Default)]
pub(crate) struct OfConsumer {
    /// Those that run for its requests.
    pub(crate) plugins: Vec<PluginConfig>,
    /// How it authenticates.
    pub(crate) credentials: Vec<CredentialConfig>,
    /// What is wrong.
    pub(crate) refused: Vec<Violation>,
    /// References that lead to nothing, and keys that verify nothing: nobody authenticates with what they are part of.
    pub(crate) unresolved: Vec<Violation>,
}

/// What is wrong with a credential of a plugin that does not authenticate.
pub(crate) const NO_AUTH: &str = "only supports auth type plugins in consumer credential";

impl Catalog {
    /// Checks the plugins of a consumer: what it says of those that authenticate is how it does.
    pub(crate) fn check_consumer(&self, plugins: &Plugins, environment: &EnvVars) -> OfConsumer {
        let mut said = OfConsumer::default();
        for (name, config) in plugins {
            let authenticates = self.plugins.get(name.as_str()).is_some_and(|e| e.factory.kind == Kind::Auth);
            let checked = if authenticates {
                self.credential(name, config, environment, &mut said)
            } else {
                self.check_one(On::Requests, name, config, environment)
                    .map(|plugin| said.plugins.push(plugin))
            };
            let refused = checked.err().into_iter().flatten();
            said.refused.extend(refused.map(|fault| below(name, fault)));
        }
        said
    }

    /// Checks the one plugin of a credential, which must be one that authenticates.
    pub(crate) fn check_credential(&self, plugins: &Plugins, environment: &EnvVars) -> OfConsumer {
        let mut said = self.check_consumer(plugins, environment);
        for plugin in std::mem::take(&mut said.plugins) {
            let path = vec![Step::Key(plugin.factory.name.to_owned())];
            said.refused.push(Violation::new(path, NO_AUTH));
        }
        said
    }

    fn credential(
        &self,
        name: &str,
        config: &Value,
        environment: &EnvVars,
        said: &mut OfConsumer,
    ) -> Result<(), Vec<Violation>> {
        let entry = self.entry(name)?;
        let (mut config, meta) = table(On::Requests, name, config)?;
        self.open(entry, Of::Consumer, &mut config);
        let all = |faults: Vec<Violation>| -> Vec<Violation> {
            faults.into_iter().map(|fault| On::Requests.reworded(name, fault)).collect()
        };
        let meta = meta?;
        let schema = entry.consumer_schema.as_ref().unwrap_or(&entry.schema);
        let right = schema.validate_all(&mut config);
        if meta.disable {
            return Ok(());
        }
        right.map_err(all)?;
        if let Err(unresolved) = secret::resolve_all(&mut config, environment) {
            said.unresolved.extend(unresolved.into_iter().map(|fault| below(name, fault)));
            return Ok(());
        }
        let credential = entry.factory.credential(&config).map_err(|error| {
            let path = error.field.iter().map(|field| Step::Key(field.to_string())).collect();
            all(vec![Violation::new(path, error.reason)])
        })?;
        if let Some(reason) = &credential.unusable {
            let path = reason.field.iter().map(|field| Step::Key(field.to_string())).collect();
            said.unresolved.push(below(name, Violation::new(path, reason.reason.clone())));
        }
        said.credentials.push(CredentialConfig { plugin: entry.factory.name, credential });
        Ok(())
    }
}

/// In APISIX's words, who else is found by what these plugins say of the consumer `username`, or of its credential. It is
/// looked for among the consumers in force: what else is written at this moment is not seen.
pub fn duplicate_key(
    plugins: &Plugins,
    username: &str,
    credential: Option<&str>,
    registry: &Registry,
    consumers: &Consumers,
) -> Option<String> {
    plugins.iter().find_map(|(name, config)| {
        let (_, factory) = registry.apisix(name)?;
        config.get(factory.found_by)?.as_str().filter(|key| !is_secret_reference(key))?;
        let mut given = config.clone();
        let schema = Schema::builtin(factory.consumer_schema?);
        schema.validate(&mut given).ok()?;
        let said = factory.credential(&given).ok()?;
        let owner = consumers.of(factory.name).find(&said.key)?;
        let same_consumer = *owner.consumer.name == *username;
        let is_itself = match credential {
            Some(id) => same_consumer && owner.credential.as_deref() == Some(id),
            // A consumer may repeat what one of its credentials says.
            None => same_consumer,
        };
        if is_itself {
            return None;
        }
        let whose = match &owner.credential {
            Some(id) => format!("credential: {id} of consumer: {}", owner.consumer.name),
            None => format!("consumer: {}", owner.consumer.name),
        };
        Some(format!("duplicate {} of plugin {name} found with {whose}", factory.found_by))
    })
}
