//! The command line.

use crate::Failure;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use sixfold_xds::bootstrap::NodeNames;
use sixfold_xds::unknown::OnUnknown;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A data-plane proxy that takes APISIX's and Envoy's configuration.
///
/// Without a command the options are those of `sixfold envoy`, so that the binary can stand in for Envoy's.
#[derive(Debug, Parser)]
#[command(name = "sixfold", version, propagate_version = false, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What a process that serves is told by signals, for its help and its manual page.
const SIGNALS: &str = "Signals:
  SIGTERM  end when the connections have, or after the drain time; twice: at once
  SIGINT   the same within half a second
  SIGHUP   read the configuration again
  SIGUSR1  open logs anew, after a rotation
  SIGUSR2  start the binary anew, which takes over the listening sockets once it is ready; if it fails, go on";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve as an APISIX gateway: config.yaml, and apisix.yaml beside it
    #[command(after_long_help = SIGNALS)]
    Run(RunOptions),
    /// Serve as Envoy: a bootstrap file and Envoy's options
    #[command(version, display_name = "sixfold", after_long_help = SIGNALS)]
    Envoy(Box<EnvoyOptions>),
    /// Check a configuration file without serving; what is wrong is printed as file:line:column
    Validate(ValidateOptions),
    /// Say what a request would meet, and why: listener, filter chain, virtual host, route, filters, cluster, endpoints
    Explain(Box<ExplainOptions>),
    /// Print the resources of an APISIX gateway as apisix.yaml or apisix.json, wherever they are kept
    Dump(DumpOptions),
    /// Look whether what a configuration needs is there: ports, files, certificates, servers, names; exits with 0 if all is
    /// well, with 1 if there are faults, with 2 if it can't look
    Doctor(DoctorOptions),
    /// Say what two configurations do not have in common, after defaults; exits with 0 if nothing, with 1 if something, with 2 if
    /// they can't be compared
    Diff(DiffOptions),
    /// Write a configuration file anew, with its keys in one order and indentation, and its comments
    Fmt(FmtOptions),
    /// Write another proxy's configuration as config.yaml and apisix.yaml, and report what became of each part; exits with 1
    /// if some is left to do by hand or is not imported, with 2 if it is used wrongly
    Import(ImportOptions),
    /// Ask a running gateway whether it serves: exits with 0 if it does, with 1 if it does not
    Status(StatusOptions),
    /// Show what a running proxy is doing, again and again: connections, requests and failures by listener, route and cluster
    Top(TopOptions),
    /// Serve a gateway on loopback with routes to try
    Quickstart(QuickstartOptions),
    /// Envoy's control-plane protocol
    Xds {
        /// What to do
        #[command(subcommand)]
        command: XdsCommand,
    },
    /// Print the version
    Version {
        /// How it is written
        #[arg(short, long, value_enum, default_value_t = OutputForm::Text)]
        output: OutputForm,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a manual page, or write all of them
    Man {
        /// The command that it is about; without one, that of the program
        #[arg(value_name = "COMMAND", conflicts_with = "directory")]
        command: Vec<String>,
        /// Write every page to this directory, which must be there
        #[arg(long)]
        directory: Option<PathBuf>,
    },
}

/// Commands of `sixfold xds`.
#[derive(Debug, Subcommand)]
pub(crate) enum XdsCommand {
    /// Serve the Envoy resources of a folder as a control plane, for tests and trials
    Serve(XdsServeOptions),
}

/// Options of `sixfold xds serve`.
#[derive(Debug, Args)]
pub(crate) struct XdsServeOptions {
    /// The folder; its YAML and JSON files, and those of its folders, are followed as they change
    pub(crate) folder: PathBuf,
    /// Where to listen: an address with a port, 0 for any free one, or unix:PATH
    #[arg(long, default_value = "127.0.0.1:18000")]
    pub(crate) listen: String,
    /// Take faults from standard input: cut, garbage, flood N, hang, resume, delay MILLISECONDS, refuse, accept
    #[arg(long)]
    pub(crate) faults: bool,
    #[command(flatten)]
    pub(crate) log: LogOptions,
}

/// Options of `sixfold run`.
#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    /// APISIX's config.yaml; apisix.yaml is read from the same directory. By default conf/config.yaml, or
    /// conf/config-PROFILE.yaml with APISIX_PROFILE
    #[arg(short, long)]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) upgrade: UpgradeOptions,
    #[command(flatten)]
    pub(crate) log: LogOptions,
}

/// How a new process takes the place of a running one (SIGUSR2).
#[derive(Debug, Clone, Args)]
pub(crate) struct UpgradeOptions {
    /// File for the id of the process that serves
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Seconds that a new process has after SIGUSR2 until it is ready to take over
    #[arg(long, default_value_t = 60)]
    pub(crate) upgrade_timeout_s: u64,
    /// The process that has started this one gives it its sockets over standard input
    #[arg(long, hide = true)]
    pub(crate) take_over: bool,
}

/// Options of `sixfold quickstart`.
#[derive(Debug, Args)]
pub(crate) struct QuickstartOptions {
    /// Port of the gateway on 127.0.0.1; 9080 by default, or any other if that is taken
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Directory that config.yaml and the store are written to; a new one for temporary files by default
    #[arg(long)]
    pub(crate) directory: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) log: LogOptions,
}

/// Options of `sixfold validate`.
#[derive(Debug, Args)]
pub(crate) struct ValidateOptions {
    /// An Envoy bootstrap, an APISIX config.yaml or an apisix.yaml; which one is told by its content
    #[arg(short, long)]
    pub(crate) config: PathBuf,
    /// Refuse what is only warned of: keys of APISIX's files that are unknown or have no effect, repeated keys
    #[arg(long)]
    pub(crate) strict: bool,
    /// How what was found is written: lines, or one JSON object on standard output
    #[arg(short, long, value_enum, default_value_t = OutputForm::Text)]
    pub(crate) output: OutputForm,
    #[command(flatten)]
    pub(crate) node: NodeOptions,
}

/// Who this process is; of an Envoy bootstrap alone.
#[derive(Debug, Clone, Args)]
pub(crate) struct NodeOptions {
    /// Name of the service this process belongs to; goes before the bootstrap's node.cluster
    #[arg(long)]
    pub(crate) service_cluster: Option<String>,
    /// Name of this node; goes before the bootstrap's node.id
    #[arg(long)]
    pub(crate) service_node: Option<String>,
    /// Zone of this node; goes before the bootstrap's node.locality.zone
    #[arg(long)]
    pub(crate) service_zone: Option<String>,
}

impl NodeOptions {
    /// As they are compiled. As in Envoy an empty one is none: a script's variable that is not set takes nothing from the file.
    pub(crate) fn names(&self) -> NodeNames {
        let NodeOptions { service_cluster, service_node, service_zone } = self;
        let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        NodeNames { id: given(service_node), cluster: given(service_cluster), zone: given(service_zone) }
    }
}

/// `NAME:VALUE` as Envoy takes it (source/common/stats/tag_utility.cc).
fn stats_tag(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("must be NAME:VALUE")?;
    if !name.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err("the name must be of letters and digits".to_owned());
    }
    if value.is_empty() || value.contains('.') {
        return Err("the value must not be empty, nor hold a dot".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Options of `sixfold doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorOptions {
    /// An Envoy bootstrap, an APISIX config.yaml or an apisix.yaml; which one is told by its content
    #[arg(short, long)]
    pub(crate) config: PathBuf,
    /// How what was found is written: a line each, or one JSON object
    #[arg(short, long, value_enum, default_value_t = OutputForm::Text)]
    pub(crate) output: OutputForm,
}

/// Options of `sixfold diff`.
#[derive(Debug, Args)]
pub(crate) struct DiffOptions {
    /// An Envoy bootstrap, an APISIX config.yaml or an apisix.yaml
    pub(crate) old: PathBuf,
    /// Another one of the same kind
    pub(crate) new: PathBuf,
    /// How differences are written: lines, or one JSON object
    #[arg(short, long, value_enum, default_value_t = OutputForm::Text)]
    pub(crate) output: OutputForm,
}

/// Options of `sixfold fmt`.
#[derive(Debug, Args)]
pub(crate) struct FmtOptions {
    /// An Envoy bootstrap, an APISIX config.yaml or an apisix.yaml
    pub(crate) file: PathBuf,
    /// Write nothing; exit with 1 if it would be written otherwise
    #[arg(long)]
    pub(crate) check: bool,
}

/// Options of `sixfold import`.
#[derive(Debug, Args)]
pub(crate) struct ImportOptions {
    /// Whose configuration it is
    #[arg(long, value_enum)]
    pub(crate) from: ImportFrom,
    /// The file; those that it includes are read too
    pub(crate) file: PathBuf,
    /// Directory that config.yaml and apisix.yaml are written to
    #[arg(long, default_value = ".")]
    pub(crate) directory: PathBuf,
    /// Replace files that are there
    #[arg(long)]
    pub(crate) force: bool,
    /// How the report is written
    #[arg(short, long, value_enum, default_value_t = OutputForm::Text)]
    pub(crate) output: OutputForm,
}

/// Whose configuration `sixfold import` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImportFrom {
    /// APISIX's config.yaml or apisix.yaml, an export of its Admin API or of etcd, ADC's adc.yaml.
    Apisix,
    /// An Envoy bootstrap.
    Envoy,
    /// Kong's declarative configuration, decK's files too.
    Kong,
    /// nginx.conf.
    Nginx,
}

/// Options of `sixfold top`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("watched").required(true).args(["config", "admin"]))]
pub(crate) struct TopOptions {
    /// The gateway's config.yaml, whose page of metrics is read (plugin_attr.prometheus)
    #[arg(short, long)]
    pub(crate) config: Option<PathBuf>,
    /// The administration of a proxy in Envoy's mode, this one or Envoy, whose /stats are read: 127.0.0.1:15000
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin: Option<String>,
    /// Seconds between two looks
    #[arg(long, default_value_t = 2.0)]
    pub(crate) interval: f64,
    /// End after so many tables; on a terminal there is no end, elsewhere one table
    #[arg(long)]
    pub(crate) count: Option<u32>,
}

/// Options of `sixfold dump`.
#[derive(Debug, Args)]
pub(crate) struct DumpOptions {
    /// An APISIX config.yaml, or an apisix.yaml. Of a gateway that runs and keeps its resources itself they are asked of its
    /// Admin API
    #[arg(short, long)]
    pub(crate) config: PathBuf,
    /// How it is written: as apisix.yaml, or as apisix.json
    #[arg(short, long, value_enum, default_value_t = DumpForm::Yaml)]
    pub(crate) output: DumpForm,
}

/// How `sixfold dump` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DumpForm {
    /// As apisix.yaml.
    Yaml,
    /// As apisix.json.
    Json,
}

/// Options of `sixfold status`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("asked").args(["config", "address", "admin"]))]
pub(crate) struct StatusOptions {
    /// The gateway's config.yaml, whose apisix.status is asked
    #[arg(short, long)]
    pub(crate) config: Option<PathBuf>,
    /// The status server to ask; by default 127.0.0.1:7085, as of apisix.status
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: Option<String>,
    /// The administration of a proxy in Envoy's mode, this one or Envoy, whose /ready is asked: 127.0.0.1:15000
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin: Option<String>,
    /// Ask only whether the process answers, not whether its configuration has come
    #[arg(long)]
    pub(crate) live: bool,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t = OutputForm::Text)]
    pub(crate) output: OutputForm,
}

/// Options of `sixfold explain`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("explained").required(true).args(["config", "admin", "dump"]))]
pub(crate) struct ExplainOptions {
    /// Method of the request
    pub(crate) method: String,
    /// Its URL, http://HOST:PORT/PATH?QUERY, or a path, whose host is then that of -H 'host: HOST'
    pub(crate) url: String,
    /// A header of it; may be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub(crate) headers: Vec<String>,
    /// An Envoy bootstrap, an APISIX config.yaml or an apisix.yaml; which one is told by its content
    #[arg(short, long)]
    pub(crate) config: Option<PathBuf>,
    /// The administration of a running proxy, this one or Envoy, whose /config_dump is read: 127.0.0.1:15000
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin: Option<String>,
    /// A file with a /config_dump
    #[arg(long, value_name = "FILE")]
    pub(crate) dump: Option<PathBuf>,
    /// The listener that the connection comes to; by default that of its destination, else of the URL's port
    #[arg(long, value_name = "NAME")]
    pub(crate) listener: Option<String>,
    /// Server name of the TLS handshake; by default the URL's host if it is https
    #[arg(long, value_name = "NAME")]
    pub(crate) sni: Option<String>,
    /// Protocol that the TLS handshake offers; may be given several times
    #[arg(long, value_name = "PROTOCOL")]
    pub(crate) alpn: Vec<String>,
    /// The client's address, with or without a port; 127.0.0.1 by default
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) source: Option<String>,
    /// Address and port that the connection is meant for; by default those of the URL, if its host is an address
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) destination: Option<std::net::SocketAddr>,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t = OutputForm::Text)]
    pub(crate) output: OutputForm,
    /// The URI in the certificate that the client shows, as `spiffe://cluster.local/ns/default/sa/shop`
    #[arg(long, value_name = "URI")]
    pub(crate) peer: Option<String>,
    /// The consumer that the request is from, in place of the one that plugins find by its credentials; of APISIX
    /// configurations
    #[arg(long, value_name = "NAME")]
    pub(crate) consumer: Option<String>,
    /// List every route that was passed over, however many there are
    #[arg(long)]
    pub(crate) all: bool,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputForm {
    /// For people.
    Text,
    /// As one JSON object.
    Json,
}

/// How the process's own log looks.
#[derive(Debug, Args)]
pub(crate) struct LogOptions {
    /// Level: trace, debug, info, warn, error, off; or tracing's directives, `info,sixfold_server=debug`
    #[arg(long, default_value = "info")]
    pub(crate) log_level: String,
    /// text or json
    #[arg(long, value_enum, default_value_t = LogForm::Text)]
    pub(crate) log_format: LogForm,
}

/// How a line of the process's own log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogForm {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Envoy's options (operations/cli.rst).
#[derive(Debug, Clone, Args)]
pub(crate) struct EnvoyOptions {
    /// Bootstrap file, YAML or JSON
    #[arg(short = 'c', long)]
    pub(crate) config_path: Option<PathBuf>,
    /// Bootstrap as YAML text; merged over that of the file
    #[arg(long)]
    pub(crate) config_yaml: Option<String>,
    /// Number of workers; one a core by default
    #[arg(long)]
    pub(crate) concurrency: Option<usize>,
    /// What to do: serve, validate, init_only
    #[arg(long, default_value = "serve")]
    pub(crate) mode: Mode,
    /// Level: trace, debug, info, warning, error, critical, off
    #[arg(short, long, default_value = "info")]
    pub(crate) log_level: String,
    /// Levels of components: upstream:debug,config:trace
    #[arg(long, default_value = "")]
    pub(crate) component_log_level: String,
    /// `json` for JSON; patterns of Envoy's logger have no effect
    #[arg(long)]
    pub(crate) log_format: Option<String>,
    /// File for the log instead of standard error
    #[arg(long)]
    pub(crate) log_path: Option<PathBuf>,
    /// Milliseconds after which access logs are written at the latest
    #[arg(long, default_value_t = 10_000)]
    pub(crate) file_flush_interval_msec: u64,
    /// Seconds that draining may take
    #[arg(long, default_value_t = 600)]
    pub(crate) drain_time_s: u64,
    /// How clients are told to go while draining: gradual or immediate
    #[arg(long, default_value = "gradual")]
    pub(crate) drain_strategy: Strategy,
    #[command(flatten)]
    pub(crate) node: NodeOptions,
    /// File that the administration address is written to
    #[arg(long)]
    pub(crate) admin_address_path: Option<PathBuf>,
    /// Name that requests to the administration interface may have as Host, beside addresses and localhost
    #[arg(long)]
    pub(crate) admin_host: Vec<String>,
    /// Print the version that hot restarts must agree on, and end: disabled
    #[arg(long)]
    pub(crate) hot_restart_version: bool,
    /// A tag of every statistic, NAME:VALUE; may be given several times
    #[arg(long, value_parser = stats_tag)]
    pub(crate) stats_tag: Vec<(String, String)>,
    /// Extensions that configuration may not use; has no effect, as it must be told
    #[arg(long, hide = true)]
    pub(crate) disable_extensions: Option<String>,
    #[command(flatten)]
    pub(crate) upgrade: UpgradeOptions,
    #[command(flatten)]
    pub(crate) accepted: AcceptedOptions,
}

/// Options that Envoy's users pass and that change nothing here: there is no hot restart and no shared memory,
/// unknown fields of files are always refused, and access logs are written once they
/// have 64 KiB, which is Envoy's default.
#[derive(Debug, Clone, Args)]
pub(crate) struct AcceptedOptions {
    #[arg(long, hide = true)]
    base_id: Option<String>,
    #[arg(long, hide = true)]
    use_dynamic_base_id: bool,
    #[arg(long, hide = true)]
    base_id_path: Option<PathBuf>,
    #[arg(long, hide = true)]
    restart_epoch: Option<u32>,
    #[arg(long, hide = true)]
    disable_hot_restart: bool,
    #[arg(long, hide = true)]
    skip_hot_restart_on_no_parent: bool,
    #[arg(long, hide = true)]
    skip_hot_restart_parent_stats: bool,
    #[arg(long, hide = true)]
    parent_shutdown_time_s: Option<u64>,
    #[arg(long, hide = true)]
    socket_path: Option<String>,
    #[arg(long, hide = true)]
    socket_mode: Option<String>,
    #[arg(long, hide = true)]
    allow_unknown_fields: bool,
    #[arg(long, hide = true)]
    allow_unknown_static_fields: bool,
    #[arg(long, hide = true)]
    reject_unknown_dynamic_fields: bool,
    #[arg(long, hide = true)]
    ignore_unknown_dynamic_fields: bool,
    #[arg(long, hide = true)]
    skip_deprecated_logs: bool,
    #[arg(long, hide = true)]
    local_address_ip_version: Option<String>,
    #[arg(long, hide = true)]
    log_format_escaped: bool,
    #[arg(long, hide = true)]
    enable_fine_grain_logging: bool,
    #[arg(long, hide = true)]
    enable_mutex_tracing: bool,
    #[arg(long, hide = true)]
    enable_core_dump: bool,
    #[arg(long, hide = true)]
    cpuset_threads: bool,
    #[arg(long, hide = true)]
    file_flush_min_size_kb: Option<u32>,
    #[arg(long, hide = true)]
    log_stacktrace_single_entry: bool,
}

impl AcceptedOptions {
    /// What becomes of unknown fields that control planes send: Envoy's options win in this order.
    pub(crate) fn on_unknown(&self) -> OnUnknown {
        match (self.reject_unknown_dynamic_fields, self.ignore_unknown_dynamic_fields) {
            (true, _) => OnUnknown::Reject,
            (false, true) => OnUnknown::Ignore,
            (false, false) => OnUnknown::Warn,
        }
    }
}

/// Envoy's `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Serves.
    Serve,
    /// Checks the configuration and ends.
    Validate,
    /// Starts everything that the configuration needs, and ends.
    #[value(name = "init_only")]
    InitOnly,
}

/// Envoy's `--drain-strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Strategy {
    /// A growing share of responses.
    Gradual,
    /// Every response.
    Immediate,
}

/// Reads the command line; wrong ones end the process with clap's message.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Command {
    Cli::parse_from(with_command(arguments.collect())).command
}

/// Puts `envoy` before the options of a process that was started as Envoy: by a name that ends in `envoy`, or
/// with options and no command.
fn with_command(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    let named_envoy = name.is_some_and(|name| name.to_string_lossy().ends_with("envoy"));
    let first = arguments.get(1).map(|argument| argument.to_string_lossy().into_owned());
    let own = ["-h", "--help", "-V", "--version"];
    let only_options = first.as_deref().is_some_and(|first| first.starts_with('-') && !own.contains(&first));
    if named_envoy || only_options {
        arguments.insert(1, "envoy".into());
    }
    arguments
}

/// `sixfold version`
pub(crate) fn print_version(output: OutputForm) -> Result<(), Failure> {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    match output {
        OutputForm::Text => writeln!(std::io::stdout(), "sixfold {VERSION}")?,
        OutputForm::Json => writeln!(std::io::stdout(), "{}", serde_json::json!({"version": VERSION}))?,
    }
    Ok(())
}

/// `sixfold completions`
pub(crate) fn print_completions(shell: Shell) -> Result<(), Failure> {
    // The library ends the process where it can't write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sixfold", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}

/// `sixfold man`: the page of a command, `["xds", "serve"]`, or all pages into a directory.
pub(crate) fn print_manual(names: &[String], directory: Option<&Path>) -> Result<(), Failure> {
    let mut command = Cli::command();
    command.build();
    if let Some(directory) = directory {
        return write_manuals(&command, "sixfold", directory);
    }
    let mut title = command.get_name().to_owned();
    for name in names {
        let found = command.find_subcommand(name).cloned();
        command = found.ok_or_else(|| Failure::new(format!("sixfold has no command {}", names.join(" "))))?;
        title = format!("{title}-{name}");
    }
    Ok(std::io::stdout().write_all(&manual(command, &title)?)?)
}

/// Writes the page of a command and those below it.
fn write_manuals(command: &clap::Command, title: &str, directory: &Path) -> Result<(), Failure> {
    std::fs::write(directory.join(format!("{title}.1")), manual(command.clone(), title)?)?;
    let mut shown =
        command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help");
    shown.try_for_each(|below| write_manuals(below, &format!("{title}-{}", below.get_name()), directory))
}

/// A page in troff, for `man`; `title` is what the program calls itself, `sixfold-run`.
fn manual(command: clap::Command, title: &str) -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.display_name(title)).render(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn parsed(line: &str) -> Command {
        let arguments = line.split(' ').map(OsString::from).collect();
        Cli::try_parse_from(with_command(arguments)).unwrap().command
    }

    fn envoy(line: &str) -> EnvoyOptions {
        let Command::Envoy(options) = parsed(line) else { panic!("{line} is not envoy") };
        *options
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn envoys_options_need_no_command() {
        let line = "-c b.json --concurrency 1 --use-dynamic-base-id --disable-hot-restart \
                    --file-flush-interval-msec 100 --log-level error";
        for line in [
            format!("sixfold {line}"),
            format!("/usr/local/bin/envoy {line}"),
            format!("sixfold envoy {line}"),
        ] {
            let options = envoy(&line);
            assert_eq!(options.config_path.as_deref(), Some(Path::new("b.json")));
            assert_eq!((options.concurrency, options.file_flush_interval_msec), (Some(1), 100));
            assert_eq!(options.log_level, "error");
        }
    }

    #[test]
    fn what_istios_agent_passes_is_taken() {
        let options = envoy(
            "/usr/local/bin/envoy -c etc/istio/proxy/envoy-rev.json --drain-time-s 45 --drain-strategy immediate \
             --local-address-ip-version v4 --file-flush-interval-msec 1000 --disable-hot-restart \
             --allow-unknown-static-fields -l warning --component-log-level misc:error --skip-deprecated-logs \
             --concurrency 2",
        );
        assert_eq!((options.drain_time_s, options.drain_strategy), (45, Strategy::Immediate));
        assert_eq!(options.component_log_level, "misc:error");
    }

    /// Five of them were refused.
    #[test]
    fn every_option_of_envoy_is_taken() {
        // What its `--help` lists.
        let options = "--admin-address-path a --allow-unknown-fields --allow-unknown-static-fields --base-id 1 \
             --base-id-path a --component-log-level a:info --concurrency 1 --config-path a --config-yaml a \
             --cpuset-threads --disable-extensions a/b,c/d --disable-hot-restart --drain-strategy gradual \
             --drain-time-s 1 --enable-core-dump --enable-fine-grain-logging --enable-mutex-tracing \
             --file-flush-interval-msec 1 --file-flush-min-size-kb 1 --hot-restart-version \
             --ignore-unknown-dynamic-fields --local-address-ip-version v6 --log-format a --log-format-escaped \
             --log-level info --log-path a --log-stacktrace-single-entry --mode init_only \
             --parent-shutdown-time-s 1 --reject-unknown-dynamic-fields --restart-epoch 1 --service-cluster a \
             --service-node a --service-zone a --skip-deprecated-logs --skip-hot-restart-on-no-parent \
             --skip-hot-restart-parent-stats --socket-mode 600 --socket-path a --stats-tag a:b --use-dynamic-base-id";
        let options = envoy(&format!("sixfold envoy {options}"));
        assert!(options.hot_restart_version);
        assert_eq!(options.disable_extensions.as_deref(), Some("a/b,c/d"));
    }

    /// They were taken and had no effect. What is refused is what Envoy 1.40 refuses.
    #[test]
    fn tags_of_statistics_are_read_as_by_envoy() {
        let of = |tag: &str| stats_tag(tag).ok();
        let tag = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        assert_eq!((of("foo:bar"), of("1a:b:c")), (tag("foo", "bar"), tag("1a", "b:c")));
        assert_eq!((of("a:b-c_d/e f"), of(":b")), (tag("a", "b-c_d/e f"), tag("", "b")));
        for wrong in ["a", "a_b:c", "a.b:c", "a-b:c", "a:b.c", "a:"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        let options = envoy("sixfold envoy -c a --stats-tag a:b --stats-tag c:d");
        assert_eq!(options.stats_tag.len(), 2);
    }

    #[test]
    fn the_version_is_an_option_of_envoys_too() {
        for line in [
            "sixfold --version",
            "sixfold envoy --version",
            "/usr/bin/envoy --version",
            "sixfold -c a --version",
        ] {
            let arguments = line.split(' ').map(OsString::from).collect();
            let shown = Cli::try_parse_from(with_command(arguments)).unwrap_err();
            assert_eq!(shown.kind(), clap::error::ErrorKind::DisplayVersion, "{line}");
            assert_eq!(shown.to_string(), concat!("sixfold ", env!("CARGO_PKG_VERSION"), "\n"), "{line}");
        }
    }

    #[test]
    fn commands_stay_commands() {
        assert!(matches!(parsed("sixfold run -c x.yaml"), Command::Run(_)));
        assert!(matches!(parsed("sixfold validate -c x.yaml"), Command::Validate(_)));
        assert!(matches!(parsed("sixfold version"), Command::Version { .. }));
        assert!(matches!(parsed("sixfold completions bash"), Command::Completions { .. }));
        assert!(matches!(parsed("sixfold status --address 127.0.0.1:1"), Command::Status(_)));
        assert!(matches!(parsed("sixfold man xds serve"), Command::Man { .. }));
    }
}
