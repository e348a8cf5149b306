//! `sixfold envoy`: serving by an Envoy bootstrap.

use crate::Failure;
use crate::ads::Following;
use crate::arguments::{EnvoyOptions, LogForm, Mode, Strategy};
use crate::control::{Administration, Configuration};
use crate::failure::Unread;
use crate::logging::Log;
use crate::process::{ENVOY_PATIENCE, Process, ProcessOptions, Reloads, tell};
use crate::signals::{Event, Events};
use crate::upgrade::{Predecessor, Upgrade, Uses};
use crate::{logging, signals};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sixfold_core::access_log::AccessLog;
use sixfold_core::compile::CompileContext;
use sixfold_core::document::MAX_DOCUMENT_BYTES;
use sixfold_core::error::ConfigError;
use sixfold_core::files;
use sixfold_core::listener::BindAddress;
use sixfold_core::metrics;
use sixfold_core::model::Diff;
use sixfold_core::overload::Overload;
use sixfold_core::stats_sink::Sinks;
use sixfold_server::admin::{Admin, ServerInfo, Statistics};
use sixfold_server::callout::CalloutConfig;
use sixfold_server::descriptors;
use sixfold_server::dns::ResolverConfig;
use sixfold_server::drain::DrainStrategy;
use sixfold_server::server::Server;
use sixfold_server::stats_sinks::{self, Refresh};
use sixfold_server::surface::Surface;
use sixfold_server::worker::Options;
use sixfold_xds::bootstrap::{self, Compiled, Document, Fixed, NodeNames, ProcessContext, Sources};
use sixfold_xds::dump::Shown;
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Serves until it is told to end.
pub(crate) fn run(options: EnvoyOptions) -> Result<(), Failure> {
    if options.hot_restart_version {
        // Where Envoy writes it.
        eprintln!("disabled");
        return Ok(());
    }
    let log = logging::start(&logging::LogSettings {
        level: &options.log_level,
        components: &options.component_log_level,
        form: if options.log_format.as_deref() == Some("json") { LogForm::Json } else { LogForm::Text },
        path: options.log_path.as_deref(),
    })?;
    if let Some(extensions) = &options.disable_extensions {
        tracing::warn!(%extensions, "--disable-extensions has no effect: configuration may use them");
    }
    if options.mode == Mode::Validate {
        crate::validate::envoy(&Text::of(&options)?)?;
        writeln!(std::io::stdout(), "configuration '{}' OK", name_of(&options))?;
        return Ok(());
    }
    let (sender, events) = signals::listen()?;
    let predecessor = Predecessor::meet(&options.upgrade)?;
    let served = serve(options, log, &predecessor, (&events, &sender));
    served.inspect_err(|failure| predecessor.refuse(failure))
}

fn serve(
    options: EnvoyOptions,
    log: Log,
    predecessor: &Predecessor,
    (events, sender): (&Events, &SyncSender<Event>),
) -> Result<(), Failure> {
    descriptors::raise_limit();
    let process = Process::start(process_options(&options, log.metrics, predecessor))?;
    let compile = CompileContext { local_address: Some(local_address()), ..process.compile.clone() };
    let process_context = ProcessContext::doing(options.accepted.on_unknown(), compile);
    process_context.tracker.set_drain_time(process.server.shared().options.drain_time);
    let text = Text::of(&options)?;
    if let Some(warning) = crate::validate::second_document(&text) {
        tracing::warn!("{warning}");
    }
    let Compiled { diff, admin, mut tags, sinks, overload, followed, shown, fixed } =
        text.load(&process_context)?;
    tags.fixed.extend(options.stats_tag.iter().cloned());
    if let Some(settings) = overload {
        process.server.set_overload(Overload::new(settings, &process.metrics));
    }
    // It is as long as there are routes, and nobody reads it again.
    drop(text);
    let mut names = Names::of(&diff);
    names.add_late(followed.late_listeners());
    let shown = Arc::new(Mutex::new(shown));
    let configuration = Configuration {
        bootstrap: shown.clone(),
        tracker: process_context.tracker.clone(),
        secrets: process_context.secrets.clone(),
    };
    let control = Administration::new(&process, log.levels, sender.clone(), configuration);
    let (address, access_logs) =
        admin.map_or((None, Vec::new()), |admin| (Some(admin.address), admin.access_logs));
    let tags = Arc::new(tags);
    let admin =
        Arc::new(administration(&options, &process, access_logs, tags.clone(), fixed.node(), control));
    let administered =
        address.map(|address| serve_administration(&options, &admin, &address, predecessor)).transpose()?;
    process.upgrade.keep(administered, Uses::Nothing);
    tell_services(sinks, &process, &tags, &admin);
    let (following, initialized) =
        crate::ads::start(followed, process.server.clone(), process.metrics.clone())?;
    let rest = move || -> Result<(), Failure> {
        // The static listeners are open meanwhile: some of them are what a control plane's agent is asked by.
        initialized.wait();
        Ok(())
    };
    let live = process.go_live(diff, ENVOY_PATIENCE, rest, (events, sender))?;
    if !live || options.mode == Mode::InitOnly {
        return Ok(());
    }
    let server = process.server.clone();
    let mut in_force = InForce { options, process_context, server, names, shown, following, at_start: fixed };
    let reloads = Reloads::start(move || tell(in_force.reload()))?;
    process.announce(predecessor.clone(), || true)?;
    process.serve(events, sender, || reloads.ask())
}

/// What there is of the bootstrap that was read last.
struct InForce {
    options: EnvoyOptions,
    process_context: ProcessContext,
    server: Server,
    names: Names,
    shown: Arc<Mutex<Shown>>,
    following: Following,
    at_start: Fixed,
}

impl InForce {
    /// Reads the bootstrap again. What is known of one is known once it is in force: one that is refused leaves nothing
    /// behind.
    fn reload(&mut self) -> Result<(), Failure> {
        let text = Text::of(&self.options)?;
        let Compiled { mut diff, followed, shown, fixed, .. } = text.load(&self.process_context)?;
        let names = self.names.replaced(&mut diff, followed.late_listeners());
        // What it waits for is asked for meanwhile, and must not come before it. By then it is refused no more, but for what
        // happens between its sockets are reserved and they listen.
        let (following, mut before) = (&self.following, None);
        let follow = || before = Some(following.follow(followed.statics()));
        let applied = self.server.apply_before(diff, follow);
        if let (Err(_), Some(before)) = (&applied, before) {
            following.follow(before);
        }
        applied?;
        following.compare(&followed.ads);
        for key in self.at_start.changed(&fixed) {
            tracing::warn!("{}: {key} has changed, which a new start alone takes", text.name);
        }
        self.names = names;
        *self.shown.lock() = shown;
        Ok(())
    }
}

fn process_options(
    options: &EnvoyOptions,
    metrics: metrics::Registry,
    predecessor: &Predecessor,
) -> ProcessOptions {
    let default = Options::default();
    let drain_time = Duration::from_secs(options.drain_time_s);
    ProcessOptions {
        metrics,
        options: Options {
            concurrency: options.concurrency.unwrap_or(default.concurrency).max(1),
            drain_time,
            drain_strategy: match options.drain_strategy {
                Strategy::Gradual => DrainStrategy::Gradual,
                Strategy::Immediate => DrainStrategy::Immediate,
            },
            inheritance: predecessor.inheritance().clone(),
            ..default
        },
        flush_interval: Duration::from_millis(options.file_flush_interval_msec),
        resolver: ResolverConfig::default(),
        callout: CalloutConfig::default(),
        drain_limit: drain_time,
        upgrade: Upgrade::new(Some(&options.upgrade)),
        rotation: None,
    }
}

/// The address that packets to other machines leave from, or as in Envoy that of the loopback interface where there are
/// none. Nothing is sent to find it out.
fn local_address() -> IpAddr {
    let outgoing = || {
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        // An address for documentation (RFC 5737): it is routed as any other.
        socket.connect("192.0.2.1:9").ok()?;
        let address = socket.local_addr().ok()?.ip();
        (!address.is_unspecified()).then_some(address)
    };
    outgoing().unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// The command line as `/server_info` shows it, with what Envoy has of options that there are not here.
fn shown_options(options: &EnvoyOptions, concurrency: usize) -> Value {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let path =
        |value: &Option<PathBuf>| value.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    json!({
        "base_id": "0",
        "concurrency": concurrency,
        "config_path": path(&options.config_path),
        "config_yaml": text(&options.config_yaml),
        "admin_address_path": path(&options.admin_address_path),
        "local_address_ip_version": "v4",
        "log_level": options.log_level,
        "component_log_level": options.component_log_level,
        "log_format": text(&options.log_format),
        "log_path": path(&options.log_path),
        "service_cluster": text(&options.node.service_cluster),
        "service_node": text(&options.node.service_node),
        "service_zone": text(&options.node.service_zone),
        "file_flush_interval": seconds(options.file_flush_interval_msec),
        "drain_time": format!("{}s", options.drain_time_s),
        "drain_strategy": match options.drain_strategy {
            Strategy::Gradual => "Gradual",
            Strategy::Immediate => "Immediate",
        },
        "mode": "Serve",
        "disable_hot_restart": true,
        "restart_epoch": 0,
    })
}

/// Milliseconds as protobuf writes a duration.
fn seconds(millis: u64) -> String {
    match (millis / 1000, millis % 1000) {
        (seconds, 0) => format!("{seconds}s"),
        (seconds, rest) => format!("{seconds}.{rest:03}s"),
    }
}

/// What the administration shows, be it that nobody can ask for it.
fn administration(
    options: &EnvoyOptions,
    process: &Process,
    access_logs: Vec<AccessLog>,
    tags: Arc<metrics::TagRules>,
    node: Value,
    control: Administration,
) -> Admin {
    Admin {
        metrics: process.metrics.clone(),
        tags,
        statistics: Statistics::new(&process.metrics),
        hosts: options.admin_host.clone(),
        clusters: process.compile.clusters.clone(),
        lifecycle: process.lifecycle.clone(),
        started: process.started,
        info: ServerInfo {
            version: format!("sixfold/{}", env!("CARGO_PKG_VERSION")),
            options: shown_options(options, process.server.shared().options.concurrency),
            node,
        },
        concurrency: process.server.shared().options.concurrency,
        control: Arc::new(control),
        access_logs,
        flushes: OnceLock::new(),
    }
}

fn serve_administration(
    options: &EnvoyOptions,
    admin: &Arc<Admin>,
    address: &BindAddress,
    predecessor: &Predecessor,
) -> Result<Surface, Failure> {
    let Some(address) = address.ip() else {
        return Err(Failure::new("admin: address: only IP addresses are supported"));
    };
    let opened = admin.access_logs.iter().try_for_each(|log| log.sink.open());
    opened.map_err(|reason| Failure::new(format!("admin: access_log: {reason}")))?;
    let surface = admin
        .start(address, predecessor.inheritance())
        .map_err(|e| Failure::new(format!("admin: address: {address}: {e}")))?;
    if let Some(path) = &options.admin_address_path {
        std::fs::write(path, surface.address.to_string())
            .map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
    }
    tracing::info!(address = %surface.address, "administration");
    Ok(surface)
}

/// Begins to tell services of statistics, if there are any.
fn tell_services(sinks: Sinks, process: &Process, tags: &Arc<metrics::TagRules>, admin: &Arc<Admin>) {
    let refreshed = admin.clone();
    let refresh: Refresh = Arc::new(move || refreshed.refresh());
    let background = &*process.compile.build.background;
    if let Some(ask) = stats_sinks::start(sinks, &process.metrics, tags, &refresh, background) {
        admin.flushes.get_or_init(|| ask);
    }
}

/// The text of a bootstrap, and the name it has in errors.
pub(crate) struct Text {
    pub(crate) text: String,
    pub(crate) name: String,
    /// A text of the command line that is merged over it.
    over: Option<String>,
    /// Who this is, where the command line says so.
    node: NodeNames,
}

/// The name of what `--config-yaml` gives.
const INLINE: &str = "--config-yaml";

fn name_of(options: &EnvoyOptions) -> String {
    options.config_path.as_ref().map_or_else(|| INLINE.to_owned(), |path| path.display().to_string())
}

impl Text {
    /// Of this name.
    pub(crate) fn new(text: impl Into<String>, name: impl Into<String>) -> Text {
        Text { text: text.into(), name: name.into(), over: None, node: NodeNames::default() }
    }

    /// What the options name: a file, a text, or a text that is merged over a file. As for Envoy an empty text is none.
    fn of(options: &EnvoyOptions) -> Result<Text, Failure> {
        let file = options.config_path.as_deref().map(Text::read).transpose()?;
        let inline = options.config_yaml.clone().filter(|text| !text.is_empty());
        let text = match (file, inline) {
            (Some(file), inline) => Text { over: inline, ..file },
            (None, Some(inline)) => Text::new(inline, INLINE),
            (None, None) => return Err(Failure::new("one of --config-path and --config-yaml is needed")),
        };
        Ok(text.of_node(options.node.names()))
    }

    /// A file.
    pub(crate) fn read(path: &std::path::Path) -> Result<Text, Unread> {
        let name = path.display().to_string();
        let bytes = files::read(path, MAX_DOCUMENT_BYTES)
            .map_err(|e| Unread::Away(Failure::new(format!("{name}: {e}"))))?;
        let text = ConfigError::utf8(bytes).map_err(|error| Unread::Wrong(error.in_file(&name).into()))?;
        Ok(Text::new(text, name))
    }

    /// The same for this node, whatever it says itself.
    pub(crate) fn of_node(self, node: NodeNames) -> Text {
        Text { node, ..self }
    }

    /// Compiles it.
    pub(crate) fn load(&self, context: &ProcessContext) -> Result<Compiled, Failure> {
        let own = Document { text: &self.text, name: &self.name };
        let over = self.over.as_deref().map(|text| Document { text, name: INLINE });
        let documents = std::iter::once(own).chain(over).collect();
        let sources = Sources { documents, node: self.node.clone() };
        bootstrap::load_merged(&sources, context).map_err(Failure::from)
    }

    /// As a document.
    pub(crate) fn document(&self) -> Result<Value, Failure> {
        let document = sixfold_xds_api::parse_bootstrap(&self.text, &self.name)?.to_json();
        if !document.is_object() {
            return Err(ConfigError::new("must be an object").in_file(&self.name).into());
        }
        Ok(document)
    }
}

/// Names of static resources, so that those that are gone after a reload are taken away.
#[derive(Default)]
struct Names {
    clusters: BTreeSet<Arc<str>>,
    listeners: BTreeSet<Arc<str>>,
}

impl Names {
    fn of(diff: &Diff) -> Names {
        Names {
            clusters: diff.clusters.iter().map(|(name, _)| name.clone()).collect(),
            listeners: diff.listeners.iter().map(|(name, _)| name.clone()).collect(),
        }
    }

    /// Adds listeners that are not in the change, but come into force by themselves.
    fn add_late<'a>(&mut self, late: impl Iterator<Item = &'a Arc<str>>) {
        self.listeners.extend(late.cloned());
    }

    /// Adds to `diff` what was there before and is not in it. Answers the names once that is in force.
    /// Listeners of these `late` names stay what they are until they can be what they are to be.
    fn replaced<'a>(&self, diff: &mut Diff, late: impl Iterator<Item = &'a Arc<str>>) -> Names {
        let mut next = Names::of(diff);
        next.add_late(late);
        diff.clusters.extend(self.clusters.difference(&next.clusters).map(|name| (name.clone(), None)));
        diff.listeners.extend(self.listeners.difference(&next.listeners).map(|name| (name.clone(), None)));
        next
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::process::plugins;

    /// What is shown of the node is what was compiled.
    #[test]
    fn a_key_that_is_given_twice_is_shown_as_it_counts() {
        let text = Text::new("node: {id: a}\nnode: {id: b}\n", "e.yaml");
        let compiled = text.load(&ProcessContext::new(CompileContext::detached(plugins()))).unwrap();
        assert_eq!(compiled.fixed.node()["id"], "b");
        let node = sixfold_xds_api::wire::messages(&compiled.shown.encoded, &[1]).remove(0);
        assert_eq!(sixfold_xds_api::wire::text(&compiled.shown.encoded[node], 1), Some("b"));
    }

    #[test]
    fn what_is_gone_is_taken_away() {
        let diff = |names: &[&str]| Diff {
            clusters: names.iter().map(|name| ((*name).into(), None)).collect(),
            ..Diff::default()
        };
        let names = Names::of(&diff(&["a", "b"]));
        let mut next = diff(&["b"]);
        let names = names.replaced(&mut next, std::iter::empty());
        assert_eq!(next.clusters.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(names.clusters.len(), 1);
    }
}
