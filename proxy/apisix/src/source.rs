//! The source of configuration: files in, changes of the model out.
//!
//! A [`Source`] keeps what it has read by the fingerprint of each item's text and what it has compiled by
//! what it was compiled from. A change of the file therefore costs the splitting of its text, and then only
//! what the changed items touch. A file with any fault changes nothing.

mod compiled;
mod detached;
mod read;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sixfold_core::access_log::OpenLog;
use sixfold_core::cluster::Clusters;
use sixfold_core::document::Format;
use sixfold_core::error::ConfigError;
use sixfold_core::model::{Diff, Model};
use sixfold_core::plugin::{BuildContext, Registry};
use sixfold_core::router::RouteTableCell;

use self::compiled::Compiled;
pub(crate) use self::read::Entry;
use self::read::Items;
use crate::config::{Config, Environment, Provider};
use crate::file;
use crate::plugin::ChainCache;

/// The name of the route table that every listener of APISIX's configuration uses.
pub const ROUTE_TABLE: &str = "apisix";

/// What a source is given by the process it is part of.
#[derive(Clone)]
pub struct Setup {
    /// The plugins that resources may use.
    pub registry: Registry,
    /// What plugins are built with; `resource` and `attributes` are filled in for each.
    pub context: BuildContext,
    /// The names of clusters.
    pub clusters: Arc<Clusters>,
    /// The place of the route table.
    pub routes: Arc<RouteTableCell>,
    /// Opens the access log.
    pub logs: Arc<dyn OpenLog>,
    /// The variables that configuration may refer to.
    pub environment: Environment,
}

impl Setup {
    /// A setup for `model`, with the variables of this process.
    pub fn new(
        model: &mut Model,
        registry: Registry,
        context: BuildContext,
        logs: Arc<dyn OpenLog>,
    ) -> Setup {
        Setup {
            registry,
            context,
            clusters: model.clusters().clone(),
            routes: model.table_cell(ROUTE_TABLE),
            logs,
            environment: Environment::Process,
        }
    }
}

/// A text with resources, and the name it has in errors.
#[derive(Debug, Clone, Copy)]
pub struct Resources<'a> {
    /// The text of an apisix.yaml or an apisix.json.
    pub text: &'a str,
    /// Which of the two.
    pub format: Format,
    /// The file's name.
    pub name: &'a str,
}

/// APISIX's configuration, kept so that the next change is cheap.
pub struct Source {
    setup: Setup,
    config: Config,
    resources: PathBuf,
    items: Items,
    compiled: Compiled,
    chains: ChainCache,
}

/// What [`load`] answers: the source, and the change that brings an empty model to it.
pub struct Loaded {
    /// For changes to come.
    pub source: Source,
    /// To be applied first.
    pub diff: Diff,
}

/// Reads config.yaml at `config_path`, without the resources.
///
/// # Errors
/// Everything that is wrong in the file.
pub fn load_config(config_path: &Path, environment: &Environment) -> Result<Config, Vec<ConfigError>> {
    let name = config_path.display().to_string();
    let text = file::read(config_path).map_err(|e| vec![e])?;
    Config::parse(&text, &name, environment)
}

/// Reads the resources (`apisix.yaml` or `apisix.json`) beside the config.yaml at `config_path`, which is
/// `config`.
///
/// # Errors
/// Everything that is wrong with them, and what of `config` can't be put to use.
pub fn load(config: Config, config_path: &Path, setup: Setup) -> Result<Loaded, Vec<ConfigError>> {
    let directory = config_path.parent().unwrap_or(Path::new("."));
    let resources = config.resources_path(directory, &setup.environment);
    let mut source = Source::new(config, resources, setup);
    let diff = source.reload()?;
    Ok(Loaded { source, diff })
}

/// Reads the same files as [`load`] and compiles them, for nothing but what that finds; answers the settings
/// that have no effect.
///
/// # Errors
/// Everything that is wrong in either file.
pub fn validate(
    config_path: &Path,
    registry: Registry,
    environment: Environment,
) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
    let config = load_config(config_path, &environment)?;
    let loaded = load(config, config_path, Setup::detached(registry, environment))?;
    Ok(loaded.source.config.reports)
}

impl Source {
    /// A source that has read no resources yet; `resources` is the file that [`Source::reload`] reads.
    pub fn new(config: Config, resources: PathBuf, setup: Setup) -> Source {
        let (items, compiled, chains) = (Items::default(), Compiled::default(), ChainCache::default());
        Source { setup, config, resources, items, compiled, chains }
    }

    /// The static configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The file with resources, for [`crate::watch::FileWatcher`].
    pub fn resources(&self) -> &Path {
        &self.resources
    }

    /// Reads the file with resources again.
    ///
    /// # Errors
    /// Everything that is wrong with it, a missing `#END` among it. What was read before stays in force.
    pub fn reload(&mut self) -> Result<Diff, Vec<ConfigError>> {
        let text = file::read(&self.resources).map_err(|e| vec![e])?;
        let name = self.resources.display().to_string();
        let format = match self.config.deployment.provider {
            Provider::Json => Format::Json,
            Provider::Yaml => Format::Yaml,
        };
        if format == Format::Yaml && !file::is_complete(&text) {
            let reason =
                "the file does not end with #END: it is not written to its end, or the marker is missing";
            return Err(vec![ConfigError::new(reason).in_file(name)]);
        }
        self.update(Resources { text: &text, format, name: &name })
    }

    /// Takes `resources` in place of what was read before; answers what changes.
    ///
    /// # Errors
    /// Everything that is wrong with them. What was read before stays in force.
    pub fn update(&mut self, resources: Resources<'_>) -> Result<Diff, Vec<ConfigError>> {
        let named = |errors: Vec<ConfigError>| -> Vec<ConfigError> {
            errors.into_iter().map(|error| error.in_file(resources.name)).collect()
        };
        let items = self.items.read(resources, &self.config, &self.setup).map_err(named)?;
        let (compiled, mut diff) =
            self.compiled.next(&items, &self.config, &self.setup, &mut self.chains).map_err(named)?;
        let items = std::mem::replace(&mut self.items, items);
        let compiled = std::mem::replace(&mut self.compiled, compiled);
        diff.replaced = Some(Box::new((items, compiled)));
        Ok(diff)
    }
}

#[cfg(test)]
impl Source {
    pub(crate) fn server_tls(&self) -> Option<&Arc<sixfold_core::tls::ServerTls>> {
        self.compiled.server_tls()
    }

    pub(crate) fn chain_of(&self, route: &str) -> Option<Arc<sixfold_core::plugin::Chain>> {
        self.compiled.route(route)?.chain.clone()
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "source {}", self.resources.display())
    }
}
