//! The process's own log: to standard error or a file, with levels that can change while it runs.
//!
//! Whoever logs formats a line and copies it into a bounded buffer; a thread of the log's own writes it. So a
//! standard error that nobody reads stops no worker: lines are dropped, counted, and told of later.

mod line;
mod sites;

use crate::Failure;
use crate::arguments::LogForm;
use line::Lines;
use parking_lot::Mutex;
use sites::Sites;
use sixfold_core::access_log::LogTarget;
use sixfold_core::metrics;
use sixfold_server::log_file::{FileStats, Flush, LAST_WRITE, Output};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Registry, reload};

/// What the end of the process writes out.
static OUTPUT: OnceLock<(Arc<Output>, Sites)> = OnceLock::new();

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
    ("health_checker", "sixfold_server::health"),
    ("http", "sixfold_server::http"),
    ("http2", "sixfold_server::h2"),
    ("jwt", "sixfold_plugins"),
    ("main", "sixfold"),
    ("pool", "sixfold_server::upstream"),
    ("rbac", "sixfold_plugins"),
    ("rds", "sixfold_xds::rds"),
    ("router", "sixfold_server::http"),
    ("runtime", "sixfold_core::runtime"),
    ("secret", "sixfold_xds::sds"),
    ("upstream", "sixfold_server::upstream"),
];

/// Envoy's other components: tools set their levels, too, and they have nothing to say at any.
const SILENT: &[&str] = &[
    "a2a",
    "ai_protocol_manager",
    "alternate_protocols_cache",
    "assert",
    "aws",
    "backtrace",
    "basic_auth",
    "cache_filter",
    "client",
    "compression",
    "credential_injector",
    "decompression",
    "dubbo",
    "dynamic_modules",
    "envoy_bug",
    "ext_proc",
    "file",
    "forward_proxy",
    "geolocation",
    "golang",
    "grpc",
    "happy_eyeballs",
    "hystrix",
    "init",
    "io",
    "ip_tagging",
    "json_rpc",
    "kafka",
    "key_value_store",
    "local_rate_limit",
    "lua",
    "matcher",
    "mcp",
    "misc",
    "mongo",
    "multi_connection",
    "notification",
    "oauth2",
    "quic",
    "quic_stream",
    "rate_limit_quota",
    "redis",
    "rocketmq",
    "sse",
    "stats",
    "stats_sinks",
    "tap",
    "testing",
    "thrift",
    "tracing",
    "udp",
    "wasm",
    "websocket",
];

/// How the log is started.
pub(crate) struct LogSettings<'a> {
    /// Level of everything, or tracing's directives.
    pub(crate) level: &'a str,
    /// `component:level`, separated by commas.
    pub(crate) components: &'a str,
    /// How a line looks.
    pub(crate) form: LogForm,
    /// File; standard error without one.
    pub(crate) path: Option<&'a Path>,
}

/// A log that runs.
pub(crate) struct Log {
    /// Its levels.
    pub(crate) levels: Levels,
    /// Where it counts what it drops (`process_log.write_dropped`); the process registers the rest there.
    pub(crate) metrics: metrics::Registry,
}

/// Starts the log of the process.
pub(crate) fn start(settings: &LogSettings<'_>) -> Result<Log, Failure> {
    let mut current = Current { all: level(settings.level), components: BTreeMap::new() };
    for (component, name) in settings.components.split(',').filter_map(|pair| pair.split_once(':')) {
        current.components.insert(component.to_owned(), level(name));
    }
    let (filter, handle) = reload::Layer::new(current.filter().map_err(Failure::new)?);
    let metrics = metrics::Registry::new();
    let sites = Sites::default();
    let target = settings.path.map_or(LogTarget::Stderr, |path| LogTarget::File(path.to_owned()));
    let stats = Arc::new(FileStats::new(&metrics, "process_log."));
    let tell = sites.clone();
    let output = Output::start("log", &target, Flush::AtOnce, stats, Some(Box::new(move || tell.tell())));
    let name =
        || settings.path.map_or_else(|| "standard error".to_owned(), |path| path.display().to_string());
    let output = Arc::new(output.map_err(|e| Failure::new(format!("{}: {e}", name())))?);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(Lines { output: output.clone(), form: settings.form })
        .with_ansi(false);
    let registry = tracing_subscriber::registry().with(filter).with(sites.clone());
    let installed = match settings.form {
        LogForm::Text => tracing::subscriber::set_global_default(registry.with(layer)),
        LogForm::Json => tracing::subscriber::set_global_default(registry.with(layer.json())),
    };
    installed.map_err(|e| Failure::new(e.to_string()))?;
    // A second log is refused above.
    let _ = OUTPUT.set((output, sites));
    log_panics();
    Ok(Log { levels: Levels { handle, current: Arc::new(Mutex::new(current)) }, metrics })
}

/// Writes what is left of the log and answers whether that was possible; waits at most 2 s, since nobody may
/// read it.
pub(crate) fn finish() -> bool {
    OUTPUT.get().is_none_or(|(output, sites)| {
        sites.tell();
        output.flush(Instant::now() + LAST_WRITE)
    })
}

/// Opens the log's file anew, after it was moved away.
pub(crate) fn reopen() {
    if let Some((output, _)) = OUTPUT.get() {
        output.reopen();
    }
}

/// A panic is a line of the log: the usual hook writes to standard error itself, and would wait for it.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("no reason is given");
        tracing::error!(target: sites::PANIC, %place, "panic: {reason}");
    }));
}

/// Whether Envoy has a component of this name.
fn is_component(name: &str) -> bool {
    COMPONENTS.iter().any(|(known, _)| *known == name) || SILENT.contains(&name)
}

/// A level in Envoy's words.
fn shown(level: &str) -> &str {
    if level == "warn" { "warning" } else { level }
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

/// Directives that let a level hold for our own crates alone. What else is linked says nothing but errors, and
/// h2 nothing at all, since its warnings are one for each wrong frame of a peer. A directive that names one of
/// them (`info,h2=debug`) has the last word.
fn with_quiet_dependencies(directives: &str) -> Result<String, String> {
    let parts = || directives.split(',').map(str::trim).filter(|part| !part.is_empty());
    let (named, levels): (Vec<&str>, Vec<&str>) = parts().partition(|part| part.contains(['=', '[']));
    // The last one counts, as in tracing; without any nothing is logged but what is named.
    let mut level = LevelFilter::OFF;
    for text in levels {
        level = text.parse().map_err(|_| format!("unknown log level: {text}"))?;
    }
    let others = level.min(LevelFilter::ERROR);
    let own = format!("{others},h2=off,sixfold={level}");
    Ok(named.iter().fold(own, |all, directive| format!("{all},{directive}")))
}

impl Current {
    fn filter(&self) -> Result<EnvFilter, String> {
        let mut directives = with_quiet_dependencies(&self.all)?;
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
                return Err("unknown logger level".to_owned());
            }
            match component {
                None => {
                    next.all = name;
                    next.components.clear();
                }
                Some(component) if is_component(component) => {
                    next.components.insert(component.clone(), name);
                }
                Some(_) => return Err("unknown logger name".to_owned()),
            }
        }
        self.handle.reload(next.filter()?).map_err(|e| e.to_string())?;
        *current = next;
        let of = |name: &str| {
            let level = current.components.get(name).unwrap_or(&current.all);
            (name.to_owned(), shown(level).to_owned())
        };
        let mut all: Vec<_> =
            COMPONENTS.iter().map(|(name, _)| *name).chain(SILENT.iter().copied()).collect();
        all.sort_unstable();
        Ok(all.into_iter().map(of).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn dependencies_are_quiet_unless_they_are_named() {
        for (level, directives) in [
            ("info", "error,h2=off,sixfold=info"),
            ("debug", "error,h2=off,sixfold=debug"),
            ("off", "off,h2=off,sixfold=off"),
            ("info,sixfold_server::http=debug", "error,h2=off,sixfold=info,sixfold_server::http=debug"),
            ("h2=trace,warn", "error,h2=off,sixfold=warn,h2=trace"),
            ("sixfold_core=debug", "off,h2=off,sixfold=off,sixfold_core=debug"),
        ] {
            assert_eq!(with_quiet_dependencies(level).unwrap(), directives);
            EnvFilter::try_new(directives).unwrap();
        }
        assert_eq!(with_quiet_dependencies("loud").unwrap_err(), "unknown log level: loud");
    }
}
