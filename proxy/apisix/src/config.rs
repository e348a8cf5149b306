//! APISIX's static configuration, `conf/config.yaml`.
//!
//! The user's file is merged over the defaults as APISIX does it, `${{VAR}}` is replaced, and every key is
//! held against a table: keys that the gateway reads, keys that must keep their default because ignoring
//! them would change what the gateway does, and keys that have no meaning here and are reported. A key that
//! is not in the table is ignored, as by APISIX, and reported with the nearest one that is.

mod admin;
mod environment;
mod etcd;
mod keys;
mod merge;
mod plugins;
mod ports;
mod read;
mod stream;
#[cfg(test)]
mod tests;
mod variables;
mod written;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;
use sixfold_core::document::{Format, Node, Options};
use sixfold_core::error::ConfigError;
use sixfold_core::format::BodyLimits;
use sixfold_core::router::ApisixRouter;

pub(crate) use self::variables::is_declared;
use self::written::Written;
pub(crate) use self::written::walk;
use crate::encryption::Keyring;
use crate::file;

pub use self::admin::{AdminConfig, AdminKey, AdminTls, ApiVersion, Role as AdminRole};
pub use self::environment::{EnvVars, Places, Replaced, Texts, substitute_text};
pub(crate) use self::environment::{UNSET, holds_unset, is_of_unset, substitute_file};
pub use self::etcd::{EtcdConfig, EtcdHost, EtcdTls, EtcdUser};
pub use self::keys::{Rule as KeyRule, keys};
pub use self::plugins::{EnabledPlugins, PluginNames};
pub use self::stream::{ProxyMode, StreamListen, StreamProxy};

/// The static configuration of a gateway.
#[derive(Debug, Clone)]
pub struct Config {
    /// `deployment`: where resources come from.
    pub deployment: Deployment,
    /// `apisix.id`.
    pub instance_id: Option<String>,
    /// Addresses for plain HTTP; none where `apisix.proxy_mode` has none.
    pub http_listeners: Vec<ListenAddress>,
    /// Addresses for TLS; empty when `apisix.ssl.enable` is off.
    pub https_listeners: Vec<ListenAddress>,
    /// `apisix.proxy_mode`.
    pub proxy_mode: ProxyMode,
    /// `apisix.stream_proxy`: addresses for TCP and UDP.
    pub stream_proxy: StreamProxy,
    /// There is no file: what it would say is not known.
    pub(crate) is_assumed: bool,
    /// The log of streams (`nginx_config.stream`); off by default.
    pub stream_log: Option<AccessLog>,
    /// Peers that are believed who the client is by the PROXY protocol, in streams (`nginx_config.stream.real_ip_from`).
    pub stream_real_ip_from: Vec<IpNet>,
    /// Whether listeners speak HTTP/2 too, in plain text by prior knowledge.
    pub enable_http2: bool,
    /// TLS towards clients.
    pub ssl: SslConfig,
    /// The router.
    pub router: RouterKind,
    /// Removes one `/` from the end of a path before routing.
    pub delete_uri_tail_slash: bool,
    /// Drops `;...` of each segment before routing, and refuses `.`, `..` and empty ones.
    pub normalize_uri_like_servlet: bool,
    /// Keeps `%2F` apart from `/` in routing.
    pub match_uri_encoded_slash: bool,
    /// Peers whose `X-Forwarded-*` are believed; `None` for the default (nobody's are, but
    /// `X-Forwarded-For` is kept).
    pub trusted_addresses: Option<Vec<IpNet>>,
    /// Where the client's address is taken from.
    pub real_ip: RealIp,
    /// Sends `X-APISIX-Upstream-Status` with every response, not only after a 5xx.
    pub show_upstream_status: bool,
    /// Whether `Server` tells the version.
    pub enable_server_tokens: bool,
    /// The Admin API, or with resources in a file of a `traditional` process the standalone API; `None` when it is not
    /// served.
    pub admin: Option<AdminConfig>,
    /// The status server.
    pub status: Option<SocketAddr>,
    /// The control API.
    pub control: Option<SocketAddr>,
    /// DNS servers instead of the system's.
    pub dns_resolver: Option<Vec<SocketAddr>>,
    /// DNS servers for upstreams of `discovery_type: dns` (`discovery.dns.servers`), instead of those of everybody.
    pub dns_discovery: Option<Vec<SocketAddr>>,
    /// How long an address is kept, instead of its TTL.
    pub dns_resolver_valid: Option<Duration>,
    /// Completes names with the system's search domains, whichever servers are asked.
    pub enable_resolv_search_opt: bool,
    /// How long a DNS server may take.
    pub resolver_timeout: Duration,
    /// Switches health checks off.
    pub disable_upstream_healthcheck: bool,
    /// Workers; `None` for one a core.
    pub worker_processes: Option<usize>,
    /// How long requests may go on after the gateway was told to stop.
    pub worker_shutdown_timeout: Duration,
    /// How much of request bodies variables read (`apisix.max_post_args_readable_size`, `graphql.max_size`).
    pub body_limits: BodyLimits,
    /// `nginx_config.http`.
    pub http: HttpConfig,
    /// Enabled plugins (`plugins`, `stream_plugins`).
    pub plugins: EnabledPlugins,
    /// Where the page of metrics is served; `None` when `plugin_attr.prometheus.enable_export_server` is off.
    pub metrics: Option<MetricsPage>,
    /// How access logs are rotated, where `plugins` lists `log-rotate`.
    pub log_rotate: Option<LogRotate>,
    /// `plugin_attr`: settings of plugins for the whole process.
    pub plugin_attr: BTreeMap<String, Value>,
    /// `apisix.data_encryption`: what is kept encrypted.
    pub data_encryption: DataEncryption,
    /// Settings that have no effect here, for the log.
    pub reports: Vec<ConfigError>,
    written: Written,
}

/// What is kept encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataEncryption {
    /// Encrypts the fields that plugins' schemas name, where resources are written through the Admin API.
    pub enable_encrypt_fields: bool,
    /// The keys; without any nothing is encrypted.
    pub keyring: Arc<Keyring>,
}

/// Where resources come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// What this process does.
    pub role: Role,
    /// Where resources are read.
    pub provider: Provider,
    /// The folder of the embedded store (`deployment.embedded.directory`, ours), below that of config.yaml; by default the one that
    /// systemd or an image names (`STATE_DIRECTORY`), else `data`. What was last read of an etcd is kept there, too.
    pub directory: PathBuf,
    /// How the etcd is reached that resources are in, if they are.
    pub etcd: Option<EtcdConfig>,
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Serves the Admin API, and no traffic.
    ControlPlane,
    /// Serves traffic.
    DataPlane,
    /// Serves traffic and configuration.
    Traditional,
}

/// Where resources are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// A store in a file of this machine, which the Admin API writes.
    Embedded,
    /// An etcd that others write, too.
    Etcd,
    /// `apisix.json` beside config.yaml.
    Json,
    /// `apisix.yaml` beside config.yaml.
    Yaml,
}

/// One address that is listened on. An IPv6 address takes IPv6 only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenAddress {
    /// Address and port.
    pub address: SocketAddr,
    /// Whether connections begin with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// The key that it is from, such as `apisix.node_listen`.
    pub list: &'static str,
    /// Which entry of that list.
    pub index: usize,
}

/// TLS towards clients, where an ssl resource says nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SslConfig {
    /// Versions, such as `TLSv1.2`.
    pub protocols: Vec<String>,
    /// Cipher suites of TLS 1.2 by OpenSSL's names; empty for all.
    pub ciphers: Vec<String>,
    /// `system`, or a file with authorities that servers are verified by.
    pub trusted_certificate: String,
    /// The name that stands in for a client's missing SNI.
    pub fallback_sni: Option<String>,
}

/// The page of Prometheus's metrics (`plugin_attr.prometheus`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsPage {
    /// `export_addr`, 127.0.0.1:9091 by default.
    pub address: SocketAddr,
    /// `export_uri`, `/apisix/prometheus/metrics` by default.
    pub path: String,
}

/// Rotation of access logs (`plugin_attr.log-rotate`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRotate {
    /// `interval` in seconds, an hour by default; at its multiples.
    pub interval: Duration,
    /// `max_kept`: old files of a log, 168 by default.
    pub max_kept: usize,
    /// `max_size` in bytes, beyond which a file is rotated before its time; -1, the default, is any number.
    pub max_size: Option<u64>,
    /// `enable_compression`, off by default.
    pub enable_compression: bool,
}

/// APISIX's routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterKind {
    /// Hosts first, then paths.
    RadixtreeHostUri,
    /// Paths; hosts are a predicate.
    RadixtreeUri,
    /// As before, with `:name` segments.
    RadixtreeUriWithParameter,
}

/// Where the client's address is taken from (nginx's realip module).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealIp {
    /// A header's name, or `proxy_protocol`.
    pub header: String,
    /// Whether the last address that is not trusted counts instead of the last one.
    pub recursive: bool,
    /// Peers that are believed.
    pub from: Vec<IpNet>,
}

/// `nginx_config.http`.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpConfig {
    /// How long an idle connection of a client stays open.
    pub keepalive_timeout: Duration,
    /// For the whole head of a request.
    pub client_header_timeout: Duration,
    /// Between two reads of a request's body.
    pub client_body_timeout: Duration,
    /// Between two writes to a client that it takes something of.
    pub send_timeout: Duration,
    /// Bytes; `None` for no limit.
    pub client_max_body_size: Option<u64>,
    /// Whether header names may hold `_`; such headers are dropped otherwise.
    pub underscores_in_headers: bool,
    /// Whether the upstream's name is sent in TLS.
    pub proxy_ssl_server_name: bool,
    /// What `Content-Type` of texts names where it names none (`charset`), utf-8 by default; `None` for `off`.
    pub charset: Option<Box<str>>,
    /// The access log.
    pub access_log: Option<AccessLog>,
    /// What upstreams without a `keepalive_pool` have.
    pub upstream_keepalive: UpstreamKeepalive,
}

/// The access log of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// The file, relative to the working directory of the gateway.
    pub path: PathBuf,
    /// nginx variables in text.
    pub format: String,
    /// How characters are escaped in values.
    pub escape: AccessLogEscape,
}

/// How values of an access log are escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogEscape {
    /// `\xXX` for control characters, `"` and `\`.
    Default,
    /// As in JSON strings.
    Json,
    /// Not at all.
    None,
}

/// Idle connections to upstreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamKeepalive {
    /// Idle connections at most.
    pub size: u32,
    /// Requests on one connection.
    pub requests: u32,
    /// How long one stays open.
    pub timeout: Duration,
}

impl Config {
    /// What fields of plugins are kept encrypted with; `None` for resources that people write into a file.
    pub(crate) fn field_keyring(&self) -> Option<&Arc<Keyring>> {
        let is_file = matches!(self.deployment.provider, Provider::Yaml | Provider::Json);
        let encrypts = self.data_encryption.enable_encrypt_fields && !is_file;
        encrypts.then_some(&self.data_encryption.keyring)
    }

    /// Reads the text of a config.yaml; `file` names it in errors.
    ///
    /// # Errors
    /// Every key that is not supported or of the wrong type, every value that can't be read, and variables that
    /// are not set. An unknown key is reported: APISIX ignores it.
    pub fn parse(text: &str, file: &str, environment: &EnvVars) -> Result<Config, Vec<ConfigError>> {
        match Self::examine(text, file, environment) {
            (Some(config), errors) if errors.is_empty() => Ok(config),
            (_, errors) => Err(errors),
        }
    }

    /// [`Config::parse`] for whoever looks for faults: what can be read of the file, with defaults for what can't, and all
    /// that is wrong with it. There is nothing of a file that is no YAML.
    pub fn examine(text: &str, file: &str, environment: &EnvVars) -> (Option<Config>, Vec<ConfigError>) {
        let (config, errors) = Self::examine_unnamed(text, file, environment);
        (config, errors.into_iter().map(|error| error.in_file(file)).collect())
    }

    fn examine_unnamed(text: &str, file: &str, environment: &EnvVars) -> (Option<Config>, Vec<ConfigError>) {
        let (mut reports, mut errors) = (Vec::new(), Vec::new());
        let parsed = file::read_tree(text, Format::Yaml, &mut reports);
        let defaults = Node::parse(include_str!("config/defaults.yaml"), &Options::default());
        let ((user, texts), defaults) = match (parsed, defaults) {
            (Ok(user), Ok(defaults)) => (environment.substitute(user, &mut errors), defaults),
            (Err(error), _) | (_, Err(error)) => return (None, vec![error]),
        };
        let (merged, of_types) = merge::merge(&defaults, &user, &texts);
        add_untold(&mut errors, of_types);
        let mut of_keys = Vec::new();
        keys::check(&user, &defaults, &mut reports, &mut of_keys);
        add_untold(&mut errors, of_keys);
        let written = Written { file: file.to_owned(), document: user };
        let (mut config, unread) = read::read(&merged, &texts, written, environment, &mut reports);
        add_untold(&mut errors, unread);
        ports::check(&mut config, &mut reports, &mut errors);
        reports.retain(|report| !is_of_unset(report));
        errors.retain(|error| !is_of_unset(error));
        config.reports = reports.into_iter().map(|report| report.in_file(file)).collect();
        (Some(config), errors)
    }

    /// All that the text of a config.yaml comes to with the defaults, as a document, and what is wrong with the text.
    pub fn effective(text: &str, file: &str, environment: &EnvVars) -> (Option<Value>, Vec<ConfigError>) {
        let (config, errors) = Self::examine(text, file, environment);
        let parsed = file::read_tree(text, Format::Yaml, &mut Vec::new());
        let defaults = Node::parse(include_str!("config/defaults.yaml"), &Options::default());
        let document = parsed.and_then(|user| {
            let (user, texts) = environment.substitute(user, &mut Vec::new());
            Ok(merge::merge(&defaults?, &user, &texts).0.to_json())
        });
        (document.ok().filter(|_| config.is_some()), errors)
    }

    /// Whether the user's file itself has a key, such as `apisix.ssl.listen`; what it does not have is a default.
    pub fn is_written(&self, path: &str) -> bool {
        self.written.has(path)
    }

    /// The error of a key whose fault shows when it is put to use: a port that is taken, a file that can't be
    /// opened. It names the file, and the line of the key if the file has it.
    pub fn fault(&self, path: &str, reason: impl Into<String>) -> ConfigError {
        self.written.fault(path, reason.into())
    }

    /// The static configuration for resources that come with no config.yaml: APISIX's defaults, a file named
    /// apisix.yaml, and what `text` says beyond that.
    ///
    /// # Errors
    /// As [`Config::parse`].
    pub fn standalone(text: &str, environment: &EnvVars) -> Result<Config, Vec<ConfigError>> {
        const ROLE: &str = "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}\n";
        let config = Config::parse(&format!("{ROLE}{text}"), "config.yaml", environment)?;
        Ok(Config { is_assumed: text.is_empty(), ..config })
    }

    /// Whether stream routes have an address to listen on; what no config.yaml stands beside may have one.
    pub(crate) fn listens_to_streams(&self) -> bool {
        let has_address = !self.stream_proxy.tcp.is_empty() || !self.stream_proxy.udp.is_empty();
        self.is_assumed || self.proxy_mode.has_streams() && has_address
    }

    /// Whether resources come by the standalone API: the file is what they begin with.
    pub fn is_standalone_api(&self) -> bool {
        self.admin.is_some() && self.deployment.provider == Provider::Yaml
    }

    /// The file with the resources, beside the config.yaml in `directory`: `apisix.yaml`, or `apisix-x.yaml`
    /// with the profile `x`; that of the embedded store, if that is where they are, or the one that keeps what was last
    /// read of an etcd.
    pub fn resources_path(&self, directory: &Path, environment: &EnvVars) -> PathBuf {
        let kept = |name| directory.join(&self.deployment.directory).join(name);
        let extension = match self.deployment.provider {
            Provider::Embedded => return kept("resources.redb"),
            Provider::Etcd => return kept("etcd.redb"),
            Provider::Json => "json",
            Provider::Yaml => "yaml",
        };
        directory.join(match environment.get("APISIX_PROFILE").filter(|profile| !profile.is_empty()) {
            Some(profile) => format!("apisix-{profile}.{extension}"),
            None => format!("apisix.{extension}"),
        })
    }
}

/// Adds the faults of fields that nothing is told of yet: what one look finds, the next does not understand.
fn add_untold(errors: &mut Vec<ConfigError>, found: Vec<ConfigError>) {
    let told: Vec<_> = errors.iter().map(|error| error.field.clone()).collect();
    errors.extend(found.into_iter().filter(|error| error.field.is_none() || !told.contains(&error.field)));
}

/// The path of config.yaml in `directory`, for the profile of `environment`.
pub fn config_path(directory: &Path, environment: &EnvVars) -> PathBuf {
    directory.join(match environment.get("APISIX_PROFILE").filter(|profile| !profile.is_empty()) {
        Some(profile) => format!("config-{profile}.yaml"),
        None => "config.yaml".to_owned(),
    })
}

impl SslConfig {
    /// The file of authorities, unless they are the system's.
    pub fn trusted_file(&self) -> Option<&Path> {
        match self.trusted_certificate.as_str() {
            "" | "system" => None,
            file => Some(Path::new(file)),
        }
    }
}

impl From<RouterKind> for ApisixRouter {
    fn from(kind: RouterKind) -> ApisixRouter {
        match kind {
            RouterKind::RadixtreeHostUri => ApisixRouter::HostUri,
            RouterKind::RadixtreeUri => ApisixRouter::Uri,
            RouterKind::RadixtreeUriWithParameter => ApisixRouter::UriWithParameter,
        }
    }
}

impl ListenAddress {
    /// The key that it is from, with its place in the list.
    pub fn key(&self) -> String {
        format!("{}[{}]", self.list, self.index)
    }
}
