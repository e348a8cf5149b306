//! The process's own log: to standard error or a file, with levels that can change while it runs.

use crate::Failure;
use crate::arguments::LogForm;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Registry, reload};

/// Changes levels. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Levels {
    handle: reload::Handle<EnvFilter, Registry>,
    current: Arc<Mutex<Current>>,
}

#[derive(Clone)]
struct Current {
    all: String,
    components: BTreeMap<String, String>,
}

/// Envoy's names of components, and where the same is done here.
const COMPONENTS: &[(&str, &str)] = &[
    ("admin", "sixfold_server::admin"),
    ("config", "sixfold_xds"),
    ("conn_handler", "sixfold_server::listener"),
    ("connection", "sixfold_server::listener"),
    ("dns", "sixfold_server::dns"),
    ("ext_authz", "sixfold_plugins"),
    ("filter", "sixfold_plugins"),
    ("hc", "sixfold_server::health"),
    ("http", "sixfold_server::http"),
    ("http2", "sixfold_server::h2"),
    ("jwt", "sixfold_plugins"),
    ("main", "sixfold"),
    ("pool", "sixfold_server::upstream"),
    ("rbac", "sixfold_plugins"),
    ("router", "sixfold_server::http"),
    ("runtime", "sixfold_core::runtime"),
    ("secret", "sixfold_xds"),
    ("upstream", "sixfold_server::upstream"),
];

/// How the log is started.
pub(crate) struct Setup<'a> {
    /// Level of everything, or tracing's directives.
    pub(crate) level: &'a str,
    /// `component:level`, separated by commas.
    pub(crate) components: &'a str,
    /// How a line looks.
    pub(crate) form: LogForm,
    /// File; standard error without one.
    pub(crate) path: Option<&'a Path>,
}

/// Starts the log of the process.
pub(crate) fn start(setup: &Setup<'_>) -> Result<Levels, Failure> {
    let mut current = Current { all: level(setup.level), components: BTreeMap::new() };
    for (component, name) in setup.components.split(',').filter_map(|pair| pair.split_once(':')) {
        current.components.insert(component.to_owned(), level(name));
    }
    let (filter, handle) = reload::Layer::new(current.filter().map_err(Failure::new)?);
    let writer = match setup.path {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path);
            let file = file.map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
            BoxMakeWriter::new(file)
        }
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    let registry = tracing_subscriber::registry().with(filter);
    let installed = match setup.form {
        LogForm::Text => tracing::subscriber::set_global_default(registry.with(layer)),
        LogForm::Json => tracing::subscriber::set_global_default(registry.with(layer.json())),
    };
    installed.map_err(|e| Failure::new(e.to_string()))?;
    Ok(Levels { handle, current: Arc::new(Mutex::new(current)) })
}

/// Envoy's name of a level in tracing's words.
fn level(name: &str) -> String {
    match name {
        "warning" => "warn",
        "critical" | "fatal" => "error",
        other => other,
    }
    .to_owned()
}

impl Current {
    fn filter(&self) -> Result<EnvFilter, String> {
        let mut directives = self.all.clone();
        for (component, level) in &self.components {
            // A component that does not exist here has nothing to say at any level.
            if let Some((_, target)) = COMPONENTS.iter().find(|(name, _)| name == component) {
                directives = format!("{directives},{target}={level}");
            }
        }
        EnvFilter::try_new(&directives).map_err(|e| format!("log level {directives}: {e}"))
    }
}

impl Levels {
    /// Sets levels (`None`: of everything) and answers what holds now.
    pub(crate) fn set(&self, levels: &[(Option<String>, String)]) -> Result<Vec<(String, String)>, String> {
        let mut current = self.current.lock();
        let mut next = current.clone();
        for (component, name) in levels {
            let name = level(name);
            if !["trace", "debug", "info", "warn", "error", "off"].contains(&name.as_str()) {
                return Err(format!("unknown logger level: {name}"));
            }
            match component {
                None => {
                    next.all = name;
                    next.components.clear();
                }
                Some(component) if COMPONENTS.iter().any(|(known, _)| known == component) => {
                    next.components.insert(component.clone(), name);
                }
                Some(component) => return Err(format!("unknown logger name: {component}")),
            }
        }
        self.handle.reload(next.filter()?).map_err(|e| e.to_string())?;
        *current = next;
        let of = |(name, _): &(&str, &str)| {
            let level = current.components.get(*name).unwrap_or(&current.all);
            ((*name).to_owned(), level.clone())
        };
        Ok(COMPONENTS.iter().map(of).collect())
    }
}
