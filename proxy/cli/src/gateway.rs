//! `sixfold run`: serving as an APISIX gateway.

use crate::Failure;
use crate::arguments::RunOptions;
use crate::logging;
use crate::process::{Process, Setup};
use crate::signals::{self, Event};
use sixfold_apisix::config::{Config, Environment};
use sixfold_apisix::watch::FileWatcher;
use sixfold_apisix::{Loaded, Setup as SourceSetup};
use sixfold_server::callout::CalloutConfig;
use sixfold_server::dns::ResolverConfig;
use sixfold_server::drain::DrainStrategy;
use sixfold_server::status::{MetricsServer, Readiness, StatusServer};
use sixfold_server::surface::Surface;
use sixfold_server::worker::Options;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// When access logs are written at the latest.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// Serves until it is told to end.
pub(crate) fn run(options: &RunOptions) -> Result<(), Failure> {
    logging::start(&logging::Setup {
        level: &options.log.log_level,
        components: "",
        form: options.log.log_format,
        path: None,
    })?;
    serve(&options.config, |_| {})
}

/// Serves the configuration at `path`; `started` is called once it takes traffic.
pub(crate) fn serve(path: &Path, started: impl FnOnce(&Process)) -> Result<(), Failure> {
    let (sender, events) = signals::listen()?;
    let config = static_configuration(path)?;
    let process = Process::start(setup(&config)?)?;
    let setup = {
        let mut model = process.server.model().lock();
        SourceSetup::new(
            &mut model,
            process.plugins.clone(),
            process.build.clone(),
            Arc::new(process.logs.clone()),
        )
    };
    let Loaded { mut source, diff } = sixfold_apisix::load(path, setup)?;
    let readiness = Readiness::default();
    let _status = config.status.map(|address| status(address, &readiness)).transpose()?;
    let _metrics = metrics(&config, &process)?;
    process.go_live(diff)?;
    readiness.set(Ok(()));
    let _watcher = watch(source.resources().to_owned(), sender.clone())?;
    started(&process);
    process.serve(&events, &sender, move || Ok(source.reload()?))
}

/// Reads config.yaml: how many workers there are must be known before anything is compiled.
fn static_configuration(path: &Path) -> Result<Config, Failure> {
    let name = path.display().to_string();
    let text = sixfold_apisix::file::read(path)?;
    Ok(Config::parse(&text, &name, &Environment::Process)?)
}

fn setup(config: &Config) -> Result<Setup, Failure> {
    let default = Options::default();
    let mut resolver = ResolverConfig { timeout: config.resolver_timeout, ..ResolverConfig::default() };
    for server in config.dns_resolver.iter().flatten() {
        resolver.servers.push(dns_server(server)?);
    }
    if let Some(valid) = config.dns_resolver_valid {
        (resolver.min_ttl, resolver.max_ttl) = (valid, valid);
    }
    let trusted = config.ssl.trusted_certificate.as_str();
    Ok(Setup {
        options: Options {
            concurrency: config.worker_processes.unwrap_or(default.concurrency).max(1),
            drain_time: config.worker_shutdown_timeout,
            drain_strategy: DrainStrategy::Immediate,
        },
        flush_interval: FLUSH_INTERVAL,
        resolver,
        callout: CalloutConfig { trusted: (!matches!(trusted, "" | "system")).then(|| trusted.into()) },
        drain_limit: config.worker_shutdown_timeout,
    })
}

/// `ADDRESS` or `ADDRESS:PORT`.
fn dns_server(text: &str) -> Result<SocketAddr, Failure> {
    text.parse()
        .or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, 53)))
        .map_err(|_| Failure::new(format!("apisix.dns_resolver: \"{text}\" is not an address")))
}

fn status(address: SocketAddr, readiness: &Readiness) -> Result<Surface, Failure> {
    Surface::start("status", address, Arc::new(StatusServer(readiness.clone())))
        .map_err(|e| Failure::new(format!("apisix.status: {address}: {e}")))
}

/// Serves the page of metrics unless `plugin_attr.prometheus.enable_export_server` is off. An address that is
/// taken is not worth a gateway that does not start, unless it was asked for.
fn metrics(config: &Config, process: &Process) -> Result<Option<Surface>, Failure> {
    let attributes = config.plugin_attr.get("prometheus").cloned().unwrap_or_default();
    if attributes["enable_export_server"] == false {
        return Ok(None);
    }
    let wrong = |reason: String| Failure::new(format!("plugin_attr.prometheus: {reason}"));
    let metrics = sixfold_plugins::prometheus::shared(&process.build.shared, &attributes, &process.metrics);
    let metrics = metrics.map_err(wrong)?;
    let ip = attributes["export_addr"]["ip"].as_str().unwrap_or("127.0.0.1");
    let port = attributes["export_addr"]["port"].as_u64().unwrap_or(9091);
    let address: SocketAddr =
        format!("{ip}:{port}").parse().map_err(|e| wrong(format!("export_addr: {ip}:{port}: {e}")))?;
    let path =
        attributes["export_uri"].as_str().unwrap_or(sixfold_plugins::prometheus::EXPORT_URI).to_owned();
    let server = MetricsServer { path, exporter: Arc::new(move || metrics.render()) };
    match Surface::start("metrics", address, Arc::new(server)) {
        Ok(surface) => Ok(Some(surface)),
        Err(error) if attributes["export_addr"].is_null() => {
            tracing::warn!(%address, %error, "the page of metrics is not served");
            Ok(None)
        }
        Err(error) => Err(wrong(format!("export_addr: {address}: {error}"))),
    }
}

/// Asks for a reload whenever the file has changed.
fn watch(path: PathBuf, events: std::sync::mpsc::Sender<Event>) -> Result<FileWatcher, Failure> {
    Ok(FileWatcher::start(vec![path], move || {
        // Nobody listens any more when the process is about to end.
        let _ = events.send(Event::Reload);
    })?)
}
