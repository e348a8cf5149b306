//! From the merged document to [`Config`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use sixfold_core::document::{Node, Value};
use sixfold_core::error::ConfigError;

use super::{
    AccessLog, AccessLogEscape, Config, Deployment, Environment, HttpConfig, ListenAddress, Provider, RealIp,
    Role, RouterKind, SslConfig, UpstreamKeepalive, Written,
};

/// Reads every key that has a meaning.
///
/// # Errors
/// Every value that can't be read.
pub(super) fn read(
    document: &Node,
    written: Written,
    environment: &Environment,
) -> Result<Config, Vec<ConfigError>> {
    let mut reader = Reader { errors: Vec::new() };
    let config = reader.config(document, written, environment);
    if reader.errors.is_empty() {
        return Ok(config);
    }
    // A default has no place of its own: that of the nearest key above it which is written.
    let place = |error: ConfigError| match (error.place, &error.field) {
        (None, Some(field)) => config.written.fault(field, error.reason.clone()),
        _ => error,
    };
    Err(reader.errors.into_iter().map(place).collect())
}

/// Reads field by field and collects what is wrong, so that one run shows every fault.
struct Reader {
    errors: Vec<ConfigError>,
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

impl Reader {
    fn fault(&mut self, field: &Field<'_>, reason: impl Into<String>) {
        let error = ConfigError::field(&field.path, reason);
        self.errors.push(match field.node {
            Some(node) if node.place.line > 0 => error.at(node.place),
            _ => error,
        });
    }

    /// What `read` makes of a field that is there; `wanted` is named if it makes nothing of it.
    fn optional<T>(
        &mut self,
        field: &Field<'_>,
        wanted: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let node = field.node?;
        let value = read(&node.value);
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
        read: impl FnOnce(&Value) -> Option<T>,
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
        self.optional(field, "a list of strings", |value| match value {
            Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
            _ => None,
        })
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

    fn config(&mut self, document: &Node, written: Written, environment: &Environment) -> Config {
        let root = Field { node: Some(document), path: String::new() };
        let (apisix, nginx) = (root.key("apisix"), root.key("nginx_config"));
        let deployment = self.deployment(&root.key("deployment"));
        let (http_listeners, https_listeners) = self.listeners(&apisix);
        Config {
            deployment,
            instance_id: self.text(&apisix.key("id")),
            http_listeners,
            https_listeners,
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
            dns_resolver: self.texts(&apisix.key("dns_resolver")),
            dns_resolver_valid: self.optional_duration(&apisix.key("dns_resolver_valid")),
            enable_resolv_search_opt: self.flag(&apisix.key("enable_resolv_search_opt")),
            resolver_timeout: self.duration(&apisix.key("resolver_timeout")),
            disable_upstream_healthcheck: self.flag(&apisix.key("disable_upstream_healthcheck")),
            worker_processes: self.workers(&apisix, &nginx, environment),
            worker_shutdown_timeout: self.duration(&nginx.key("worker_shutdown_timeout")),
            http: self.http(&nginx.key("http")),
            plugins: self.texts(&root.key("plugins")),
            plugin_attr: self.plugin_attr(&root.key("plugin_attr")),
            reports: Vec::new(),
            written,
        }
    }

    fn deployment(&mut self, deployment: &Field<'_>) -> Deployment {
        let role_field = deployment.key("role");
        let role = self.text(&role_field);
        let (role, section) = match role.as_deref() {
            Some("traditional") => (Role::Traditional, "role_traditional"),
            Some("data_plane") => (Role::DataPlane, "role_data_plane"),
            other => {
                let other = other.unwrap_or_default();
                self.fault(
                    &role_field,
                    format!("role \"{other}\" is not supported; data_plane and traditional are"),
                );
                return Deployment { role: Role::DataPlane, provider: Provider::Yaml };
            }
        };
        let provider_field = deployment.key(section).key("config_provider");
        let provider = match self.text(&provider_field).as_deref() {
            Some("yaml") => Provider::Yaml,
            Some("json") if role == Role::DataPlane => Provider::Json,
            other => {
                let other = other.unwrap_or_default();
                let default = if provider_field.node.is_some_and(|node| node.place.line == 0) {
                    ", the default,"
                } else {
                    ""
                };
                let reason = format!(
                    "config_provider \"{other}\"{default} is not supported: resources are read from a file beside this \
                     one; write `deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}` for \
                     apisix.yaml, or `json` for apisix.json"
                );
                self.fault(&provider_field, reason);
                Provider::Yaml
            }
        };
        Deployment { role, provider }
    }

    fn listeners(&mut self, apisix: &Field<'_>) -> (Vec<ListenAddress>, Vec<ListenAddress>) {
        let ipv6 = self.flag(&apisix.key("enable_ipv6"));
        let mut http = self.listen_list(&apisix.key("node_listen"), "apisix.node_listen", 9080, ipv6);
        let proxied = apisix.key("proxy_protocol");
        if let Some(port) = self.port(&proxied.key("listen_http_port")) {
            let list = "apisix.proxy_protocol.listen_http_port";
            http.extend(
                any_address(port, ipv6)
                    .map(|ip| ListenAddress { proxy_protocol: true, ..listen(ip, list, 0) }),
            );
        }
        let ssl = apisix.key("ssl");
        let mut https = Vec::new();
        if self.flag(&ssl.key("enable")) {
            https = self.listen_list(&ssl.key("listen"), "apisix.ssl.listen", 9443, ipv6);
            if let Some(port) = self.port(&proxied.key("listen_https_port")) {
                let list = "apisix.proxy_protocol.listen_https_port";
                https.extend(
                    any_address(port, ipv6)
                        .map(|ip| ListenAddress { proxy_protocol: true, ..listen(ip, list, 0) }),
                );
            }
        }
        (http, https)
    }

    /// A port, a list of ports, or a list of `{ip, port}`.
    fn listen_list(
        &mut self,
        field: &Field<'_>,
        list: &'static str,
        default_port: u16,
        ipv6: bool,
    ) -> Vec<ListenAddress> {
        let mut addresses = Vec::new();
        let entries = match field.node.map(|node| &node.value) {
            Some(Value::Array(_)) => field.items(),
            Some(_) => vec![field.clone()],
            None => Vec::new(),
        };
        for (index, entry) in entries.into_iter().enumerate() {
            let any = |port| any_address(port, ipv6).map(move |address| listen(address, list, index));
            if !matches!(entry.node.map(|node| &node.value), Some(Value::Object(_))) {
                let port = self.port(&entry);
                addresses.extend(port.into_iter().flat_map(any));
                continue;
            }
            self.listen_keys(&entry);
            let port = match entry.key("port").node {
                Some(_) => self.port(&entry.key("port")),
                None => Some(default_port),
            };
            let Some(port) = port else { continue };
            match entry.key("ip").node {
                Some(_) => {
                    let ip = self.ip(&entry.key("ip"));
                    addresses.extend(ip.map(|ip| listen(SocketAddr::new(ip, port), list, index)));
                }
                None => addresses.extend(any(port)),
            }
        }
        addresses
    }

    fn listen_keys(&mut self, entry: &Field<'_>) {
        let known = ["ip", "port", "enable_http2", "enable_http3"];
        let object = entry.node.and_then(Node::as_object);
        for item in object.map(|object| object.entries()).unwrap_or_default() {
            if !known.contains(&item.key.as_str()) {
                let error = ConfigError::unknown_key(&item.key, known)
                    .in_key(&format!("{}.{}", entry.path, item.key));
                self.errors.push(error.at(item.key_place));
            }
        }
        if self.flag(&entry.key("enable_http3")) {
            self.fault(&entry.key("enable_http3"), "not supported: HTTP/3 is not part of the gateway");
        }
        if entry.key("enable_http2").node.is_some() {
            self.fault(&entry.key("enable_http2"), "APISIX removed it in favour of apisix.enable_http2");
        }
    }

    fn ssl(&mut self, ssl: &Field<'_>) -> SslConfig {
        let words = |text: Option<String>, separator: char| {
            let text = text.unwrap_or_default();
            text.split(separator).map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        let protocols: Vec<String> = words(self.text(&ssl.key("ssl_protocols")), ' ');
        for protocol in &protocols {
            if !["TLSv1.2", "TLSv1.3"].contains(&protocol.as_str()) {
                let reason = format!("{protocol} is not supported; TLSv1.2 and TLSv1.3 are");
                self.fault(&ssl.key("ssl_protocols"), reason);
            }
        }
        SslConfig {
            protocols,
            trusted_certificate: self.text(&ssl.key("ssl_trusted_certificate")).unwrap_or_default(),
            fallback_sni: self.text(&ssl.key("fallback_sni")),
        }
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

    fn server(&mut self, field: &Field<'_>) -> Option<SocketAddr> {
        field.node?;
        let ip = self.ip(&field.key("ip")).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        self.port(&field.key("port")).map(|port| SocketAddr::new(ip, port))
    }

    fn workers(&mut self, apisix: &Field<'_>, nginx: &Field<'_>, environment: &Environment) -> Option<usize> {
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
            access_log: self.access_log(http),
            upstream_keepalive: UpstreamKeepalive {
                size: self.count(&upstream.key("keepalive")),
                requests: self.count(&upstream.key("keepalive_requests")),
                timeout: self.duration(&upstream.key("keepalive_timeout")),
            },
        }
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
        let path = self.text(&http.key("access_log")).unwrap_or_default();
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

    fn plugin_attr(&mut self, field: &Field<'_>) -> BTreeMap<String, serde_json::Value> {
        let attributes = self.optional(field, "plugins' names with their settings", |value| match value {
            Value::Object(object) => {
                Some(object.entries().iter().map(|e| (e.key.clone(), e.value.to_json())).collect())
            }
            Value::Array(items) if items.is_empty() => Some(BTreeMap::new()),
            _ => None,
        });
        attributes.unwrap_or_default()
    }
}

/// The value as an error shows it, long and nested ones by their kind.
fn shown(node: &Node) -> String {
    match &node.value {
        Value::String(text) if text.len() <= 40 => format!("\"{text}\""),
        Value::Number(number) => number.to_string(),
        _ => node.kind().to_owned(),
    }
}

/// Every address of this machine, with the twin for IPv6 that APISIX adds.
fn any_address(port: u16, ipv6: bool) -> impl Iterator<Item = SocketAddr> {
    let v6 = ipv6.then(|| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    std::iter::once(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).chain(v6)
}

fn listen(address: SocketAddr, list: &'static str, index: usize) -> ListenAddress {
    ListenAddress { address, proxy_protocol: false, list, index }
}

/// A port. 0 lets the system choose one, which tests want.
fn port(value: &Value) -> Option<u16> {
    match value {
        Value::Number(number) => number.as_u64().and_then(|port| u16::try_from(port).ok()),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// nginx's size: a number, with `k`, `m` or `g` behind it.
fn size(value: &Value) -> Option<u64> {
    let text = match value {
        Value::Number(number) => return number.as_u64(),
        Value::String(text) => text.trim(),
        _ => return None,
    };
    let (digits, unit) = match text.as_bytes().last()?.to_ascii_lowercase() {
        b'k' => (text.get(..text.len() - 1)?, 1u64 << 10),
        b'm' => (text.get(..text.len() - 1)?, 1 << 20),
        b'g' => (text.get(..text.len() - 1)?, 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

fn seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

/// nginx's time: numbers with units (`1h30m`, `500ms`), seconds without one.
fn nginx_time(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = rest.get(..letters)?;
        rest = rest.get(letters..)?.trim_start();
        let part = match unit {
            "ms" => Duration::from_millis(number),
            "" | "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            "d" => Duration::from_secs(number.checked_mul(86_400)?),
            _ => return None,
        };
        total = total.checked_add(part)?;
    }
    Some(total)
}
