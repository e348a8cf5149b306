//! From the merged document to [`Config`].

mod admin;
mod attributes;
mod deployment;
mod listen;
mod stream;
mod values;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use sixfold_core::document::{Node, Value};
use sixfold_core::error::ConfigError;
use sixfold_core::format::BodyLimits;
use sixfold_core::tls::is_cipher_suite;

use crate::encryption::Keyring;

use self::values::{network, nginx_time, port, seconds, shown, size};
use super::{
    AccessLog, AccessLogEscape, Config, DataEncryption, EnabledPlugins, EnvVars, HttpConfig, PluginNames,
    RealIp, Role, RouterKind, SslConfig, Texts, UpstreamKeepalive, Written,
};

/// Reads every key that has a meaning. Every value that can't be read is an error, and a default stands for it; keys that
/// nobody knows are reported.
pub(super) fn read(
    document: &Node,
    texts: &Texts,
    written: Written,
    environment: &EnvVars,
    reports: &mut Vec<ConfigError>,
) -> (Config, Vec<ConfigError>) {
    let mut reader = Reader { texts, errors: Vec::new(), reports };
    let config = reader.config(document, written, environment);
    // A default has no place of its own: that of the nearest key above it which is written.
    let place = |error: ConfigError| match (error.place, &error.field) {
        (None, Some(field)) => config.written.fault(field, error.reason.clone()),
        _ => error,
    };
    let errors = reader.errors.into_iter().map(place).collect();
    (config, errors)
}

/// Reads field by field and collects what is wrong, so that one run shows every fault.
struct Reader<'r> {
    /// Of variables that were taken for numbers.
    texts: &'r Texts,
    errors: Vec<ConfigError>,
    reports: &'r mut Vec<ConfigError>,
}

/// A value, its path for errors, and whether it is there at all.
#[derive(Clone)]
struct Field<'a> {
    node: Option<&'a Node>,
    path: String,
}

impl<'a> Field<'a> {
    fn key(&self, key: &str) -> Field<'a> {
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Field { node: self.node.and_then(|node| node.get(key)).filter(|node| !node.is_null()), path }
    }

    fn items(&self) -> Vec<Field<'a>> {
        let items = self.node.and_then(Node::as_array).unwrap_or_default();
        let field = |(i, node)| Field { node: Some(node), path: format!("{}[{i}]", self.path) };
        items.iter().enumerate().map(field).collect()
    }
}

impl Reader<'_> {
    fn fault(&mut self, field: &Field<'_>, reason: impl Into<String>) {
        let error = ConfigError::field(&field.path, reason);
        self.errors.push(match field.node {
            Some(node) if node.place.line > 0 => error.at(node.place),
            _ => error,
        });
    }

    /// What `read` makes of a field that is there, or of its text if it came of a variable; `wanted` is named if it makes nothing
    /// of either.
    fn optional<T>(
        &mut self,
        field: &Field<'_>,
        wanted: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        let node = field.node?;
        let value = read(&node.value).or_else(|| read(&self.texts.of(node)?));
        if value.is_none() {
            self.fault(field, format!("expected {wanted}, found {}", shown(node)));
        }
        value
    }

    fn required<T>(
        &mut self,
        field: &Field<'_>,
        wanted: &str,
        fallback: T,
        read: impl Fn(&Value) -> Option<T>,
    ) -> T {
        self.optional(field, wanted, read).unwrap_or(fallback)
    }

    /// `true` and `false`, and nginx's `on` and `off` (which YAML reads as booleans without quotes).
    fn flag(&mut self, field: &Field<'_>) -> bool {
        self.required(field, "true or false", false, |value| match value {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) if text == "on" => Some(true),
            Value::String(text) if text == "off" => Some(false),
            _ => None,
        })
    }

    fn text(&mut self, field: &Field<'_>) -> Option<String> {
        self.optional(field, "a string", |value| match value {
            Value::String(text) => Some(text.clone()),
            _ => None,
        })
    }

    fn texts(&mut self, field: &Field<'_>) -> Option<Vec<String>> {
        self.optional(field, "a list of strings", |value| matches!(value, Value::Array(_)).then_some(()))?;
        let items = field.items();
        let texts: Vec<String> = items.iter().filter_map(|item| self.text(item)).collect();
        (texts.len() == items.len()).then_some(texts)
    }

    fn port(&mut self, field: &Field<'_>) -> Option<u16> {
        self.optional(field, "a port", port)
    }

    fn ip(&mut self, field: &Field<'_>) -> Option<IpAddr> {
        self.optional(field, "an IP address", |value| match value {
            Value::String(text) => text.trim_matches(['[', ']']).parse().ok(),
            _ => None,
        })
    }

    fn duration(&mut self, field: &Field<'_>) -> Duration {
        self.optional_duration(field).unwrap_or_default()
    }

    fn optional_duration(&mut self, field: &Field<'_>) -> Option<Duration> {
        self.optional(field, "a time such as 60s", |value| match value {
            Value::String(text) => nginx_time(text),
            Value::Number(number) => seconds(number.as_f64()?),
            _ => None,
        })
    }

    /// A list of `ADDRESS` and `ADDRESS:PORT`.
    fn dns_servers(&mut self, field: &Field<'_>) -> Option<Vec<SocketAddr>> {
        self.optional(field, "a list of addresses", |value| matches!(value, Value::Array(_)).then_some(()))?;
        let mut servers = Vec::new();
        for item in field.items() {
            servers.extend(self.optional(&item, "an address, or one with a port", |value| {
                let Value::String(text) = value else { return None };
                let alone = || Some(SocketAddr::new(text.trim_matches(['[', ']']).parse().ok()?, 53));
                text.parse().ok().or_else(alone)
            }));
        }
        Some(servers)
    }

    fn networks(&mut self, field: &Field<'_>) -> Option<Vec<IpNet>> {
        field.node?;
        let mut networks = Vec::new();
        for item in field.items() {
            // `unix:` is about peers on a Unix socket, and no listener is one.
            if item.node.and_then(Node::as_str) == Some("unix:") {
                continue;
            }
            networks.extend(self.optional(&item, "an IP address or a CIDR", |value| match value {
                Value::String(text) => network(text),
                _ => None,
            }));
        }
        Some(networks)
    }

    fn config(&mut self, document: &Node, written: Written, environment: &EnvVars) -> Config {
        let root = Field { node: Some(document), path: String::new() };
        let (apisix, nginx) = (root.key("apisix"), root.key("nginx_config"));
        let deployment = self.deployment(&root.key("deployment"), environment);
        let proxy_mode = self.proxy_mode(&apisix.key("proxy_mode"));
        let (mut http_listeners, mut https_listeners) = self.listeners(&apisix);
        // A control plane serves no traffic.
        if !proxy_mode.has_http() || deployment.role == Role::ControlPlane {
            (http_listeners, https_listeners) = Default::default();
        }
        let admin_api = root.key("deployment").key("admin");
        let admin = self.admin(&apisix, &admin_api, deployment.role, proxy_mode);
        if let (Some(admin), false) = (&admin, written.has("deployment.admin.admin_listen.ip")) {
            self.warn_of_loopback(admin, &admin_api);
        }
        Config {
            is_assumed: false,
            deployment,
            admin,
            instance_id: self.optional(&apisix.key("id"), "a string", |value| match value {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            }),
            http_listeners,
            https_listeners,
            proxy_mode,
            stream_proxy: self.stream_proxy(&apisix, proxy_mode),
            stream_log: self.access_log(&nginx.key("stream")),
            stream_real_ip_from: self.networks(&nginx.key("stream").key("real_ip_from")).unwrap_or_default(),
            enable_http2: self.flag(&apisix.key("enable_http2")),
            ssl: self.ssl(&apisix.key("ssl")),
            router: self.router(&apisix.key("router").key("http")),
            delete_uri_tail_slash: self.flag(&apisix.key("delete_uri_tail_slash")),
            normalize_uri_like_servlet: self.flag(&apisix.key("normalize_uri_like_servlet")),
            match_uri_encoded_slash: self.flag(&apisix.key("match_uri_encoded_slash")),
            trusted_addresses: self.networks(&apisix.key("trusted_addresses")),
            real_ip: self.real_ip(&nginx.key("http")),
            show_upstream_status: self.flag(&apisix.key("show_upstream_status_in_response_header")),
            enable_server_tokens: self.flag(&apisix.key("enable_server_tokens")),
            status: self.server(&apisix.key("status")),
            control: if self.flag(&apisix.key("enable_control")) {
                self.server(&apisix.key("control"))
            } else {
                None
            },
            dns_discovery: self.dns_servers(&root.key("discovery").key("dns").key("servers")),
            dns_resolver: self.dns_servers(&apisix.key("dns_resolver")),
            dns_resolver_valid: self.optional_duration(&apisix.key("dns_resolver_valid")),
            enable_resolv_search_opt: self.flag(&apisix.key("enable_resolv_search_opt")),
            resolver_timeout: self.duration(&apisix.key("resolver_timeout")),
            disable_upstream_healthcheck: self.flag(&apisix.key("disable_upstream_healthcheck")),
            worker_processes: self.workers(&apisix, &nginx, environment),
            worker_shutdown_timeout: self.duration(&nginx.key("worker_shutdown_timeout")),
            body_limits: self.body_limits(&apisix, &root.key("graphql")),
            http: self.http(&nginx.key("http")),
            plugins: EnabledPlugins {
                http: self.texts(&root.key("plugins")).map(PluginNames::from_iter),
                streams: self.texts(&root.key("stream_plugins")).map(PluginNames::from_iter),
            },
            log_rotate: self.log_rotate(&root),
            metrics: self.prometheus(&root.key("plugin_attr").key("prometheus")),
            plugin_attr: self.plugin_attr(&root.key("plugin_attr")),
            data_encryption: self.data_encryption(&apisix.key("data_encryption")),
            reports: Vec::new(),
            written,
        }
    }

    fn data_encryption(&mut self, field: &Field<'_>) -> DataEncryption {
        let keyring = field.key("keyring");
        let is_list = keyring.node.is_some_and(|node| node.as_array().is_some());
        let keys = if is_list { self.texts(&keyring) } else { self.text(&keyring).map(|one| vec![one]) };
        let keyring = Keyring::new(keys.iter().flatten().map(String::as_str)).unwrap_or_else(|length| {
            let reason = format!("a key has 16 or 32 bytes, and not {length}");
            self.fault(&keyring, reason);
            Keyring::default()
        });
        DataEncryption {
            enable_encrypt_fields: self.flag(&field.key("enable_encrypt_fields")),
            keyring: Arc::new(keyring),
        }
    }

    fn ssl(&mut self, ssl: &Field<'_>) -> SslConfig {
        let words = |text: Option<String>, separator: char| {
            let text = text.unwrap_or_default();
            text.split(separator).map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        let field = ssl.key("ssl_protocols");
        let protocols = words(self.text(&field), ' ');
        let spoken = |name: &str| ["TLSv1.2", "TLSv1.3"].contains(&name);
        let protocols = self.those_there_are(&field, protocols, spoken, "TLSv1.2 and TLSv1.3");
        let field = ssl.key("ssl_ciphers");
        let ciphers = words(self.text(&field), ':');
        let ciphers = self.those_there_are(&field, ciphers, is_cipher_suite, "those of rustls");
        SslConfig {
            protocols,
            ciphers,
            trusted_certificate: self.text(&ssl.key("ssl_trusted_certificate")).unwrap_or_default(),
            fallback_sni: self.text(&ssl.key("fallback_sni")),
        }
    }

    /// The names of a list that mean something here: others are left out, and reported, where some remain.
    fn those_there_are(
        &mut self,
        field: &Field<'_>,
        mut names: Vec<String>,
        is_there: impl Fn(&str) -> bool,
        known: &str,
    ) -> Vec<String> {
        let others: Vec<String> = names.extract_if(.., |name| !is_there(name)).collect();
        let Some(node) = field.node.filter(|_| !others.is_empty()) else { return names };
        let (others, verb) = (others.join(", "), if others.len() == 1 { "is" } else { "are" });
        if names.is_empty() {
            self.fault(field, format!("{others} {verb} not supported; {known} are"));
        } else {
            let reason = format!("{others} {verb} left out: {known} are supported");
            self.reports.push(ConfigError::field(&field.path, reason).at(node.place));
        }
        names
    }

    fn router(&mut self, field: &Field<'_>) -> RouterKind {
        // A deleted key falls back to the plain router, as in APISIX.
        self.required(field, "a router", RouterKind::RadixtreeUri, |value| match value {
            Value::String(text) => match text.as_str() {
                "radixtree_host_uri" => Some(RouterKind::RadixtreeHostUri),
                "radixtree_uri" => Some(RouterKind::RadixtreeUri),
                "radixtree_uri_with_parameter" => Some(RouterKind::RadixtreeUriWithParameter),
                _ => None,
            },
            _ => None,
        })
    }

    fn real_ip(&mut self, http: &Field<'_>) -> RealIp {
        RealIp {
            header: self.text(&http.key("real_ip_header")).unwrap_or_default(),
            recursive: self.flag(&http.key("real_ip_recursive")),
            from: self.networks(&http.key("real_ip_from")).unwrap_or_default(),
        }
    }

    fn body_limits(&mut self, apisix: &Field<'_>, graphql: &Field<'_>) -> BodyLimits {
        let number = |value: &Value| match value {
            Value::Number(number) => number.as_u64().and_then(|count| usize::try_from(count).ok()),
            _ => None,
        };
        let fields = self.required(
            &apisix.key("max_post_args_readable_size"),
            "a number of MiB, or 0 for no limit",
            0,
            number,
        );
        let graphql = self.required(&graphql.key("max_size"), "a number of bytes", 0, number);
        // In MiB; 0 is no limit.
        let fields = if fields == 0 { usize::MAX } else { fields.saturating_mul(1 << 20) };
        BodyLimits { fields, graphql }
    }

    fn server(&mut self, field: &Field<'_>) -> Option<SocketAddr> {
        field.node?;
        let ip = self.ip(&field.key("ip")).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        self.port(&field.key("port")).map(|port| SocketAddr::new(ip, port))
    }

    fn workers(&mut self, apisix: &Field<'_>, nginx: &Field<'_>, environment: &EnvVars) -> Option<usize> {
        if self.flag(&apisix.key("enable_dev_mode")) {
            return Some(1);
        }
        if let Some(count) = environment.get("APISIX_WORKER_PROCESSES") {
            let count = count.parse().ok().filter(|count| *count > 0);
            if count.is_none() {
                self.errors.push(ConfigError::field("APISIX_WORKER_PROCESSES", "expected a positive number"));
            }
            return count;
        }
        let field = nginx.key("worker_processes");
        self.required(&field, "a number of workers, or auto", None, |value| match value {
            Value::String(text) if text == "auto" => Some(None),
            Value::String(text) => text.parse().ok().filter(|count| *count > 0).map(Some),
            Value::Number(number) => {
                let count = number.as_u64().and_then(|count| usize::try_from(count).ok());
                count.filter(|count| *count > 0).map(Some)
            }
            _ => None,
        })
    }

    fn http(&mut self, http: &Field<'_>) -> HttpConfig {
        let upstream = http.key("upstream");
        HttpConfig {
            keepalive_timeout: self.duration(&http.key("keepalive_timeout")),
            client_header_timeout: self.duration(&http.key("client_header_timeout")),
            client_body_timeout: self.duration(&http.key("client_body_timeout")),
            send_timeout: self.duration(&http.key("send_timeout")),
            // nginx's 0 is no limit.
            client_max_body_size: Some(self.required(
                &http.key("client_max_body_size"),
                "a size such as 10m",
                0,
                size,
            ))
            .filter(|size| *size > 0),
            underscores_in_headers: self.flag(&http.key("underscores_in_headers")),
            proxy_ssl_server_name: self.flag(&http.key("proxy_ssl_server_name")),
            charset: self.charset(&http.key("charset")),
            access_log: self.access_log(http),
            upstream_keepalive: UpstreamKeepalive {
                size: self.count(&upstream.key("keepalive")),
                requests: self.count(&upstream.key("keepalive_requests")),
                timeout: self.duration(&upstream.key("keepalive_timeout")),
            },
        }
    }

    /// The name of a charset, or `off`, which YAML reads as a boolean without quotes.
    fn charset(&mut self, field: &Field<'_>) -> Option<Box<str>> {
        let is_name = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:+".contains(&b))
        };
        self.optional(field, "the name of a charset, or off", |value| match value {
            Value::Bool(false) => Some(None),
            Value::String(text) if text == "off" => Some(None),
            Value::String(text) if is_name(text) => Some(Some(text.as_str().into())),
            _ => None,
        })
        .flatten()
    }

    fn count(&mut self, field: &Field<'_>) -> u32 {
        self.required(field, "a positive number", 1, |value| match value {
            Value::Number(number) => {
                number.as_u64().and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0)
            }
            Value::String(text) => text.parse().ok().filter(|count| *count > 0),
            _ => None,
        })
    }

    fn access_log(&mut self, http: &Field<'_>) -> Option<AccessLog> {
        let enabled = self.flag(&http.key("enable_access_log"));
        let wanted =
            "the path of a file, without blanks and variables; syslog and formats by name are not supported";
        let path = self.required(&http.key("access_log"), wanted, String::new(), |value| match value {
            Value::String(text) if is_path(text) || !enabled => Some(text.clone()),
            _ => None,
        });
        let format = self.text(&http.key("access_log_format")).unwrap_or_default();
        let escape_field = http.key("access_log_format_escape");
        let escape =
            self.required(&escape_field, "default, json or none", AccessLogEscape::Default, |value| {
                match value {
                    Value::String(text) => match text.as_str() {
                        "default" => Some(AccessLogEscape::Default),
                        "json" => Some(AccessLogEscape::Json),
                        "none" => Some(AccessLogEscape::None),
                        _ => None,
                    },
                    _ => None,
                }
            });
        (enabled && path != "off").then(|| AccessLog { path: PathBuf::from(path), format, escape })
    }
}

/// Whether a parameter of nginx's `access_log` is the path of one file.
fn is_path(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with("syslog:")
        && !text.contains(|c: char| c == '$' || c.is_whitespace())
}
