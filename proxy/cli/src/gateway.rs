//! `sixfold run`: serving as an APISIX gateway.

use crate::Failure;
use crate::admin::{self, Sources};
use crate::arguments::{RunOptions, UpgradeOptions};
use crate::logging::{self, Log};
use crate::process::{APISIX_PATIENCE, Process, ProcessOptions};
use crate::signals::{self, Event, Events};
use crate::upgrade::{Predecessor, Upgrade, Uses};
use sixfold_apisix::config::{Config, EnvVars, ListenAddress, LogRotate, config_path};
use sixfold_apisix::control::checkers_prefix;
use sixfold_apisix::{Feed, Loaded, Reloads, SourceContext, Update};
use sixfold_core::error::{ConfigError, tell_most};
use sixfold_core::listener::{BindAddress, SocketRights};
use sixfold_core::metrics::Registry;
use sixfold_plugins::prometheus;
use sixfold_server::callout::CalloutConfig;
use sixfold_server::descriptors;
use sixfold_server::dns::ResolverConfig;
use sixfold_server::drain::DrainStrategy;
use sixfold_server::inheritance::Inheritance;
use sixfold_server::log_file::Rotation;
use sixfold_server::sockets;
use sixfold_server::status::{MetricsServer, Readiness, StatusServer};
use sixfold_server::surface::{Answer, Surface};
use sixfold_server::worker::Options;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// When access logs are written at the latest.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// Serves until it is told to end.
pub(crate) fn run(options: &RunOptions) -> Result<(), Failure> {
    let log = logging::start(&logging::LogSettings {
        level: &options.log.log_level,
        components: "",
        form: options.log.log_format,
        path: None,
    })?;
    // As in APISIX, a file that is named is that file, whatever the profile.
    let chosen = || config_path(Path::new("conf"), &EnvVars::Process);
    serve(&options.config.clone().unwrap_or_else(chosen), log, Some(&options.upgrade), |_| {})
}

/// Serves the configuration at `path`; `on_start` is called once it takes traffic. Without options of upgrades no other
/// process takes this one's place.
pub(crate) fn serve(
    path: &Path,
    log: Log,
    upgrade: Option<&UpgradeOptions>,
    on_start: impl FnOnce(&Process),
) -> Result<(), Failure> {
    let (sender, events) = signals::listen()?;
    let predecessor = upgrade.map_or_else(|| Ok(Predecessor::nobody()), Predecessor::meet)?;
    let served = serve_after(&predecessor, path, log, Upgrade::new(upgrade), on_start, (&events, &sender));
    served.inspect_err(|failure| predecessor.refuse(failure))
}

fn serve_after(
    predecessor: &Predecessor,
    path: &Path,
    log: Log,
    upgrade: Upgrade,
    on_start: impl FnOnce(&Process),
    (events, sender): (&Events, &SyncSender<Event>),
) -> Result<(), Failure> {
    let inheritance = predecessor.inheritance();
    descriptors::raise_limit();
    // How many workers there are must be known before anything is compiled.
    let mut config = sixfold_apisix::load_config(path, &EnvVars::Process)?;
    let more = |more| tracing::warn!(more, "more warnings; `sixfold validate` lists all of them");
    tell_most(&config.reports, |report| tracing::warn!("{report}"), more);
    config.body_limits.put_in_force();
    make_log_folder(&config)?;
    leave_out_taken(&mut config, inheritance)?;
    let process = Process::start(process_options(&config, log.metrics, (inheritance.clone(), upgrade)))?;
    let context = SourceContext::new(process.compile.clone(), EnvVars::Process);
    let readiness = Readiness::default();
    process.upgrade.keep(status(&config, &readiness, &process, inheritance)?, Uses::Nothing);
    let told = prometheus::shared(&process.compile.build.shared, &attributes(&config), &process.metrics);
    process.upgrade.keep(metrics(&config, &process, inheritance)?, Uses::Nothing);
    admin::say_where(&config, path, &context);
    let was_loaded = predecessor.take_store()?;
    let Loaded { mut source, update, standalone } = sixfold_apisix::load(config.clone(), path, context)?;
    update.log();
    let build = &process.compile.build;
    let (consumers, metadata) = (build.consumers.clone(), build.metadata.clone());
    let store = source.store().clone();
    process.upgrade.set_store(store.clone());
    let clusters = process.compile.clusters.clone();
    // Settings that can't be used are told by who needs them.
    if let Ok(told) = &told {
        let prefix = checkers_prefix(config.deployment.provider, store.prefix());
        told.tell_of_upstreams(clusters.clone(), prefix.to_owned());
    }
    let reloads = Arc::new(Reloads::new(config.clone(), reading(path)));
    source.follow(reloads.clone());
    let in_force = source.in_force().clone();
    let sources = Sources {
        config: &config,
        path,
        reloads,
        store,
        in_force,
        standalone,
        consumers,
        clusters,
        metadata,
    };
    process.upgrade.keep(control(&sources, inheritance)?, Uses::Store);
    process.upgrade.keep(admin_api(&sources, inheritance)?, Uses::Store);
    let Update { diff, .. } = update;
    if !process.go_live(diff, APISIX_PATIENCE, || Ok(()), (events, sender))? {
        return Ok(());
    }
    // Nothing may have been put to the standalone API yet, or an etcd is waited for.
    if source.store().is_loaded() {
        readiness.set(Ok(()));
    }
    let (server, store) = (process.server.clone(), source.store().clone());
    let applied = readiness.clone();
    let feed = Feed::start(source, move |diff| {
        let ready = store.is_loaded();
        for error in server.apply_blocking(diff).err().into_iter().flatten() {
            tracing::error!("part of a change is not in force: {error}");
        }
        if ready {
            readiness.set(Ok(()));
        }
    })?;
    on_start(&process);
    process.announce(predecessor.clone(), move || !was_loaded || applied.is_ready())?;
    process.serve(events, sender, || feed.look())
}

/// Reads config.yaml again.
fn reading(path: &Path) -> impl Fn() -> Result<Config, String> + use<> {
    let path = path.to_owned();
    move || {
        let read = sixfold_apisix::load_config(&path, &EnvVars::Process);
        read.map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }
}

/// Makes the folder of an access log below the working directory: `logs` is part of an installation of APISIX,
/// and the default.
fn make_log_folder(config: &Config) -> Result<(), Failure> {
    let logs = [("http", &config.http.access_log), ("stream", &config.stream_log)];
    for (section, log) in logs {
        let folder = log.as_ref().and_then(|log| log.path.parent());
        let Some(folder) = folder.filter(|folder| folder.is_relative()) else { continue };
        std::fs::create_dir_all(folder).map_err(|error| {
            let reason = format!("can't make the folder {}: {error}", folder.display());
            config.fault(&format!("nginx_config.{section}.access_log"), reason)
        })?;
    }
    Ok(())
}

/// Takes the listeners for TLS away when their port is the default and is taken: another gateway runs here, and
/// nobody has asked for TLS. Any other address that can't be listened on is an error of its key.
fn leave_out_taken(config: &mut Config, inheritance: &Inheritance) -> Result<(), Failure> {
    // Given back at once, and opened with the options of the listener when that goes into force. Nothing listens until then:
    // who connected now would be reset, or take the gateway for one that serves.
    let bind = |address: &BindAddress| match inheritance.has(address) {
        true => Ok(()),
        false => sockets::reserve(address, 1, false, SocketRights::default()).map(drop),
    };
    let opened = |listen: &ListenAddress| bind(&BindAddress::Ip(listen.address));
    let (mut faults, mut tls) = (Vec::new(), true);
    let tls_is_default = !config.is_written("apisix.ssl");
    for listen in config.http_listeners.iter().chain(&config.https_listeners) {
        let (Err(error), address) = (opened(listen), listen.address) else { continue };
        if tls_is_default && listen.list == "apisix.ssl.listen" {
            tracing::warn!(%address, %error, "no TLS: apisix.ssl.listen has its default, which can't be opened");
            tls = false;
        } else {
            faults.push(config.fault(&listen.key(), format!("can't listen on {address}: {error}")));
        }
    }
    for listen in config.stream_proxy.tcp.iter().chain(&config.stream_proxy.udp) {
        let Some(address) = listen.address.ip() else { continue };
        let bound = if listen.is_udp() { BindAddress::Udp(address) } else { BindAddress::Ip(address) };
        if let Err(error) = bind(&bound) {
            faults.push(config.fault(&listen.key(), format!("can't listen on {bound}: {error}")));
        }
    }
    // Half of it, by IPv6 alone, would be worse than none.
    config.https_listeners.retain(|listen| tls || listen.list != "apisix.ssl.listen");
    if faults.is_empty() { Ok(()) } else { Err(faults.into()) }
}

fn process_options(
    config: &Config,
    metrics: Registry,
    (inheritance, upgrade): (Inheritance, Upgrade),
) -> ProcessOptions {
    let default = Options::default();
    ProcessOptions {
        metrics,
        options: Options {
            concurrency: config.worker_processes.unwrap_or(default.concurrency).max(1),
            drain_time: config.worker_shutdown_timeout,
            drain_strategy: DrainStrategy::Immediate,
            inheritance,
            ..default
        },
        flush_interval: FLUSH_INTERVAL,
        resolver: resolver(config),
        callout: callout(config),
        drain_limit: config.worker_shutdown_timeout,
        upgrade,
        rotation: config.log_rotate.as_ref().map(rotation),
    }
}

/// How access logs are rotated.
fn rotation(settings: &LogRotate) -> Rotation {
    let LogRotate { interval, max_kept, max_size, enable_compression } = *settings;
    Rotation { interval, max_kept, max_size, enable_compression }
}

/// How names are looked up.
pub(crate) fn resolver(config: &Config) -> ResolverConfig {
    let mut resolver = ResolverConfig {
        timeout: config.resolver_timeout,
        search: config.enable_resolv_search_opt,
        ..ResolverConfig::default()
    };
    resolver.servers.extend(config.dns_resolver.iter().flatten());
    if let Some(valid) = config.dns_resolver_valid {
        (resolver.min_ttl, resolver.max_ttl) = (valid, valid);
    }
    resolver
}

/// How others are asked.
pub(crate) fn callout(config: &Config) -> CalloutConfig {
    CalloutConfig { trusted: config.ssl.trusted_file().map(Path::to_owned) }
}

fn status(
    config: &Config,
    readiness: &Readiness,
    process: &Process,
    inheritance: &Inheritance,
) -> Result<Option<Surface>, Failure> {
    let Some(address) = config.status else { return Ok(None) };
    let server = StatusServer { readiness: readiness.clone(), lifecycle: process.lifecycle.clone() };
    surface(config, "status", "apisix.status", (address, inheritance), Arc::new(server))
}

/// Attributes of the plugin prometheus.
fn attributes(config: &Config) -> serde_json::Value {
    config.plugin_attr.get("prometheus").cloned().unwrap_or_default()
}

/// Serves the page of metrics unless `plugin_attr.prometheus.enable_export_server` is off.
fn metrics(
    config: &Config,
    process: &Process,
    inheritance: &Inheritance,
) -> Result<Option<Surface>, Failure> {
    let Some(page) = &config.metrics else { return Ok(None) };
    let metrics = prometheus::shared(&process.compile.build.shared, &attributes(config), &process.metrics);
    let fault = |error: ConfigError| {
        let error = error.in_key("plugin_attr.prometheus");
        config.fault(error.field.as_deref().unwrap_or_default(), error.reason.clone())
    };
    let metrics = metrics.map_err(fault)?;
    let server =
        MetricsServer { path: page.path.clone(), exporter: Arc::new(move |out| metrics.render(out)) };
    let key = "plugin_attr.prometheus.export_addr";
    surface(config, "metrics", key, (page.address, inheritance), Arc::new(server))
}

/// Serves the control API unless `apisix.enable_control` is off.
fn control(sources: &Sources<'_>, inheritance: &Inheritance) -> Result<Option<Surface>, Failure> {
    let Some(address) = sources.config.control else { return Ok(None) };
    let server = Arc::new(sources.control());
    surface(sources.config, "control", "apisix.control", (address, inheritance), server)
}

/// Serves the Admin API, if this process is one that does.
fn admin_api(sources: &Sources<'_>, inheritance: &Inheritance) -> Result<Option<Surface>, Failure> {
    let config = sources.config;
    let Some(settings) = &config.admin else { return Ok(None) };
    let (server, tls) = (Arc::new(sources.admin(settings)?), admin::tls(config, settings)?);
    let key = "deployment.admin.admin_listen";
    started(config, "admin", key, settings.address, |address| {
        Surface::start_with("admin", address, server, tls, inheritance)
    })
}

/// Starts a server beside the gateway. An address that can't be had is not worth a gateway that does not start,
/// unless it was asked for: then it is an error of its key.
fn surface(
    config: &Config,
    name: &str,
    key: &str,
    (address, inheritance): (SocketAddr, &Inheritance),
    answer: Arc<dyn Answer>,
) -> Result<Option<Surface>, Failure> {
    let start = |address| Surface::start_with(name, address, answer, None, inheritance);
    started(config, name, key, address, start)
}

fn started(
    config: &Config,
    name: &str,
    key: &str,
    address: SocketAddr,
    start: impl FnOnce(SocketAddr) -> std::io::Result<Surface>,
) -> Result<Option<Surface>, Failure> {
    match start(address) {
        Ok(surface) => Ok(Some(surface)),
        Err(error) if !config.is_written(key) => {
            tracing::warn!(%address, %error, "no {name}: {key} has its default, which can't be opened");
            Ok(None)
        }
        Err(error) => Err(config.fault(key, format!("can't listen on {address}: {error}")).into()),
    }
}
