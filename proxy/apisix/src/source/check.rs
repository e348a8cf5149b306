//! Looks at a configuration for nothing but what is wrong with it.
//!
//! Whoever serves needs all of a file or nothing of it; whoever checks one wants to hear everything. So a fault of
//! config.yaml leaves its defaults in place for a look at the resources, and a fault of their file as a whole leaves
//! the resources that can be read.

use std::path::Path;
use std::sync::Arc;

use sixfold_core::detached::LogCheck;
use sixfold_core::document::Format;
use sixfold_core::error::ConfigError;
use sixfold_core::plugin::Registry;

use super::{Source, SourceContext, format};
use crate::config::{Config, EnvVars, Provider};
use crate::store::{FileStore, Store};
use crate::{file, tls};

/// What checking a configuration has found.
#[derive(Debug, Default)]
pub struct Findings {
    /// What is wrong.
    pub errors: Vec<ConfigError>,
    /// What is odd and taken all the same.
    pub warnings: Vec<ConfigError>,
}

/// Reads the same files as [`load`](super::load) and compiles them, for nothing but what that finds: all of both files.
///
/// `open` opens what is no file, unless config.yaml is wrong; why that can't be is answered beside what was found.
pub fn validate<E>(
    config_path: &Path,
    registry: Registry,
    environment: EnvVars,
    open: impl FnOnce(&Config) -> Result<Arc<dyn Store>, E>,
) -> (Findings, Option<E>) {
    let mut findings = Findings::default();
    let Some(config) = findings.configuration(config_path, &environment) else { return (findings, None) };
    let mut context = SourceContext::detached(registry, environment.clone());
    context.compile.log_sinks = Arc::new(LogCheck { makes_folders: true });
    let directory = config_path.parent().unwrap_or(Path::new("."));
    let resources = config.resources_path(directory, &environment);
    let has_none = config.is_standalone_api() && !resources.exists();
    let is_wrong = !findings.errors.is_empty();
    if has_none || is_wrong && !resources.exists() {
        // Who knows what config.yaml should have said of them.
        return (findings, None);
    }
    if matches!(config.deployment.provider, Provider::Embedded | Provider::Etcd) {
        if is_wrong {
            return (findings, None);
        }
        match open(&config) {
            Ok(store) => {
                let etcd = config.deployment.etcd.as_ref().map(|etcd| format!("etcd {}", etcd.prefix));
                let name = etcd.unwrap_or_else(|| resources.display().to_string());
                findings.kept(config, store, context, &name);
            }
            Err(error) => return (findings, Some(error)),
        }
    } else {
        let store = FileStore::new(resources, format(&config), environment);
        findings.resources(config, store, context);
    }
    (findings, None)
}

/// Compiles an apisix.yaml or apisix.json by itself, with APISIX's defaults for what its config.yaml would say,
/// as [`validate`].
pub fn validate_resources(path: &Path, registry: Registry, environment: EnvVars) -> Findings {
    let mut findings = Findings::default();
    match Config::standalone("", &environment) {
        Ok(config) => {
            let format = Format::from_file_name(&path.to_string_lossy());
            let store = FileStore::new(path.to_owned(), format, environment.clone());
            findings.resources(config, store, SourceContext::detached(registry, environment));
        }
        Err(errors) => findings.errors = errors,
    }
    findings
}

impl Findings {
    /// Reads config.yaml, with defaults for what is wrong in it; all of them for one that is no YAML.
    fn configuration(&mut self, path: &Path, environment: &EnvVars) -> Option<Config> {
        let text = file::read(path).map_err(|error| self.errors.push(error)).ok()?;
        let (config, errors) = Config::examine(&text, &path.display().to_string(), environment);
        self.errors.extend(errors);
        let config = match config {
            Some(config) => config,
            None => Config::standalone("", environment).ok()?,
        };
        self.warnings.extend(config.reports.iter().cloned());
        if self.errors.iter().all(|error| error.field.as_deref() != Some(tls::AUTHORITIES)) {
            self.errors.extend(tls::authorities(&config).err());
        }
        Some(config)
    }

    /// Looks at resources that are no text; errors name them and the store. What is wrong in an etcd is a warning: anybody may
    /// write there at any time, and gateways start without it.
    fn kept(&mut self, config: Config, store: Arc<dyn Store>, context: SourceContext, name: &str) {
        let is_shared = config.deployment.provider == Provider::Etcd;
        match Source::new(config, store, context).pull() {
            Ok(update) => {
                let refused = if is_shared { &mut self.warnings } else { &mut self.errors };
                refused.extend(update.refused.into_iter().map(|error| error.in_file(name)));
                self.warnings.extend(update.warnings.into_iter().map(|error| error.in_file(name)));
            }
            Err(errors) => self.errors.extend(errors),
        }
    }

    fn resources(&mut self, config: Config, store: FileStore, context: SourceContext) {
        let store = Arc::new(store);
        let mut source = Source::new(config, store.clone(), context);
        let (mut warnings, mut found) = Default::default();
        let taken = source.take(|batch| {
            (warnings, found) = store.look_through(batch);
            Ok(Vec::new())
        });
        match taken {
            Ok(update) => {
                found.extend(update.refused);
                warnings.extend(update.warnings);
            }
            Err(errors) => found.extend(errors),
        }
        found.sort_by(|a: &ConfigError, b| (&a.file, a.place).cmp(&(&b.file, b.place)));
        self.errors.extend(found);
        self.warnings.extend(warnings);
    }
}
