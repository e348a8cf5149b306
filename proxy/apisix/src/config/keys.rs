//! Every key of config.yaml, and what becomes of it.

use sixfold_core::document::{Node, Object, Value};
use sixfold_core::error::ConfigError;

/// What becomes of a key.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// It is read.
    Read,
    /// It has no meaning here; a value other than the default is reported with the reason.
    Report(&'static str),
    /// Ignoring it would change what the gateway does; a value other than the default is refused with the reason.
    Refuse(&'static str),
}

use Rule::{Read, Refuse, Report};

const LUA: &str = "Lua is not run; plugins that are written in it are refused where they are used";
const SNIPPET: &str = "nginx's configuration language is not read";
const DISCOVERY: &str = "dns is the only discovery that there is; upstreams that need another are refused";
const NGINX: &str = "it tunes nginx's own memory or processes and has no meaning here";

const ABSENT: &str = "the plugin is not part of the gateway, or has no attributes here";
const ABSENT_METRIC: &str = "the plugins that it is about are not part of the gateway";

/// A path ends the description of everything below it.
const KEYS: &[(&str, Rule)] = &[
    ("apisix.id", Read),
    ("apisix.node_listen", Read),
    ("apisix.enable_admin", Read),
    ("apisix.enable_dev_mode", Read),
    ("apisix.enable_reuseport", Report("listeners always have a socket for each worker")),
    ("apisix.show_upstream_status_in_response_header", Read),
    ("apisix.enable_ipv6", Read),
    ("apisix.enable_http2", Read),
    ("apisix.proxy_protocol.listen_http_port", Read),
    ("apisix.proxy_protocol.listen_https_port", Read),
    ("apisix.proxy_protocol.enable_tcp_pp", Read),
    ("apisix.proxy_protocol.enable_tcp_pp_to_upstream", Read),
    ("apisix.enable_server_tokens", Read),
    ("apisix.extra_lua_path", Report(LUA)),
    ("apisix.extra_lua_cpath", Report(LUA)),
    ("apisix.lua_module_hook", Refuse("Lua is not run")),
    ("apisix.proxy_cache", Report("no plugin that caches is part of the gateway")),
    ("apisix.delete_uri_tail_slash", Read),
    ("apisix.normalize_uri_like_servlet", Read),
    ("apisix.match_uri_encoded_slash", Read),
    ("apisix.max_post_args_readable_size", Read),
    ("apisix.router.http", Read),
    ("apisix.router.ssl", Refuse("radixtree_sni is the only one")),
    ("apisix.proxy_mode", Read),
    ("apisix.stream_proxy.tcp", Read),
    ("apisix.stream_proxy.udp", Read),
    ("apisix.dns_resolver", Read),
    ("apisix.dns_resolver_valid", Read),
    ("apisix.resolver_timeout", Read),
    ("apisix.enable_resolv_search_opt", Read),
    ("apisix.ssl.enable", Read),
    ("apisix.ssl.listen", Read),
    ("apisix.ssl.ssl_protocols", Read),
    ("apisix.ssl.ssl_ciphers", Read),
    ("apisix.ssl.ssl_session_tickets", Report("sessions are always resumed by tickets whose keys change")),
    ("apisix.ssl.ssl_trusted_certificate", Read),
    ("apisix.ssl.fallback_sni", Read),
    ("apisix.enable_control", Read),
    ("apisix.control.ip", Read),
    ("apisix.control.port", Read),
    ("apisix.control.router", Report("the control API has one router")),
    ("apisix.disable_sync_configuration_during_start", Report("an etcd is read before anything is served")),
    ("apisix.disable_upstream_healthcheck", Read),
    ("apisix.trusted_addresses", Read),
    ("apisix.data_encryption.enable_encrypt_fields", Read),
    ("apisix.data_encryption.keyring", Read),
    ("apisix.lru", Report("no cache of this kind exists")),
    ("apisix.tracing", Report("it switches tracing of Lua on")),
    ("apisix.worker_startup_time_threshold", Report("it is for workers of Lua that are started anew")),
    ("apisix.status.ip", Read),
    ("apisix.status.port", Read),
    ("nginx_config.user", Report(NGINX)),
    ("nginx_config.error_log", Report("the gateway logs to standard error")),
    ("nginx_config.error_log_level", Report("the level is an option of the command line")),
    ("nginx_config.worker_processes", Read),
    ("nginx_config.enable_cpu_affinity", Report(NGINX)),
    ("nginx_config.worker_rlimit_nofile", Report(NGINX)),
    ("nginx_config.worker_rlimit_core", Report(NGINX)),
    ("nginx_config.worker_shutdown_timeout", Read),
    ("nginx_config.max_pending_timers", Report(NGINX)),
    ("nginx_config.max_running_timers", Report(NGINX)),
    ("nginx_config.event.worker_connections", Report(NGINX)),
    ("nginx_config.envs", Report("every variable of the environment can be read")),
    ("nginx_config.meta", Report(NGINX)),
    ("nginx_config.stream.enable_access_log", Read),
    ("nginx_config.stream.access_log", Read),
    ("nginx_config.stream.access_log_format", Read),
    ("nginx_config.stream.access_log_format_escape", Read),
    ("nginx_config.stream.real_ip_from", Read),
    ("nginx_config.stream.metrics_zone_size", Report(NGINX)),
    ("nginx_config.stream.lua_shared_dict", Report(NGINX)),
    ("nginx_config.main_configuration_snippet", Refuse(SNIPPET)),
    ("nginx_config.http_configuration_snippet", Refuse(SNIPPET)),
    ("nginx_config.http_server_configuration_snippet", Refuse(SNIPPET)),
    ("nginx_config.http_server_location_configuration_snippet", Refuse(SNIPPET)),
    ("nginx_config.http_admin_configuration_snippet", Refuse(SNIPPET)),
    ("nginx_config.http_end_configuration_snippet", Refuse(SNIPPET)),
    ("nginx_config.stream_configuration_snippet", Refuse(SNIPPET)),
    ("nginx_config.http.enable_access_log", Read),
    ("nginx_config.http.access_log", Read),
    ("nginx_config.http.access_log_buffer", Report("the access log has a buffer of its own")),
    ("nginx_config.http.access_log_format", Read),
    ("nginx_config.http.access_log_format_escape", Read),
    ("nginx_config.http.keepalive_timeout", Read),
    ("nginx_config.http.client_header_timeout", Read),
    ("nginx_config.http.client_body_timeout", Read),
    ("nginx_config.http.client_max_body_size", Read),
    ("nginx_config.http.send_timeout", Read),
    ("nginx_config.http.underscores_in_headers", Read),
    ("nginx_config.http.real_ip_header", Read),
    ("nginx_config.http.real_ip_recursive", Read),
    ("nginx_config.http.real_ip_from", Read),
    ("nginx_config.http.proxy_ssl_server_name", Read),
    ("nginx_config.http.upstream.keepalive", Read),
    ("nginx_config.http.upstream.keepalive_requests", Read),
    ("nginx_config.http.upstream.keepalive_timeout", Read),
    ("nginx_config.http.charset", Read),
    ("nginx_config.http.variables_hash_max_size", Report(NGINX)),
    ("nginx_config.http.lua_shared_dict", Report(NGINX)),
    ("nginx_config.http.custom_lua_shared_dict", Report(NGINX)),
    ("graphql.max_size", Read),
    ("plugins", Read),
    ("stream_plugins", Read),
    ("plugin_attr.prometheus.export_uri", Read),
    ("plugin_attr.prometheus.metric_prefix", Read),
    ("plugin_attr.prometheus.enable_export_server", Read),
    ("plugin_attr.prometheus.export_addr.ip", Read),
    ("plugin_attr.prometheus.export_addr.port", Read),
    ("plugin_attr.prometheus.default_buckets", Read),
    ("plugin_attr.prometheus.refresh_interval", Report("the page is written when it is asked for")),
    ("plugin_attr.prometheus.metrics.http_status.expire", Read),
    ("plugin_attr.prometheus.metrics.http_status.extra_labels", Read),
    ("plugin_attr.prometheus.metrics.http_latency.expire", Read),
    ("plugin_attr.prometheus.metrics.http_latency.extra_labels", Read),
    ("plugin_attr.prometheus.metrics.bandwidth.expire", Read),
    ("plugin_attr.prometheus.metrics.bandwidth.extra_labels", Read),
    ("plugin_attr.prometheus.llm_latency_buckets", Report(ABSENT_METRIC)),
    ("plugin_attr.prometheus.llm_prompt_tokens_buckets", Report(ABSENT_METRIC)),
    ("plugin_attr.prometheus.llm_completion_tokens_buckets", Report(ABSENT_METRIC)),
    ("plugin_attr.prometheus.ai_cache_embedding_latency_buckets", Report(ABSENT_METRIC)),
    ("plugin_attr.ai-proxy", Report(ABSENT)),
    ("plugin_attr.batch-requests", Report(ABSENT)),
    ("plugin_attr.dubbo-proxy", Report(ABSENT)),
    ("plugin_attr.inspect", Report(ABSENT)),
    ("plugin_attr.log-rotate.interval", Read),
    ("plugin_attr.log-rotate.max_kept", Read),
    ("plugin_attr.log-rotate.max_size", Read),
    ("plugin_attr.log-rotate.enable_compression", Read),
    (
        "plugin_attr.log-rotate.timeout",
        Report("logs are compressed in the process, and nobody waits for that"),
    ),
    ("plugin_attr.opentelemetry", Report(ABSENT)),
    ("plugin_attr.proxy-mirror", Report(ABSENT)),
    ("plugin_attr.redirect", Report(ABSENT)),
    ("plugin_attr.server-info", Report(ABSENT)),
    ("plugin_attr.skywalking", Report(ABSENT)),
    ("plugin_attr.zipkin", Report(ABSENT)),
    ("discovery.dns.servers", Read),
    (
        "discovery.dns.resolv_conf",
        Report("services are asked of apisix.dns_resolver, or of the system's servers"),
    ),
    ("discovery.dns.order", Report("IPv4 addresses are asked for, and IPv6 if there are none")),
    ("discovery.eureka", Report(DISCOVERY)),
    ("discovery.nacos", Report(DISCOVERY)),
    ("discovery.consul", Report(DISCOVERY)),
    ("discovery.consul_kv", Report(DISCOVERY)),
    ("discovery.kubernetes", Report(DISCOVERY)),
    ("discovery.tars", Report(DISCOVERY)),
    ("wasm", Report("WASM plugins are not run; they are refused where they are used")),
    (
        "xrpc",
        Report("no protocol over streams is part of the gateway; stream routes that have one are refused"),
    ),
    (
        "ext-plugin",
        Report("no plugin runner is started; ext-plugin-* plugins are refused where they are used"),
    ),
    ("deployment.role", Read),
    ("deployment.role_traditional.config_provider", Read),
    ("deployment.role_data_plane.config_provider", Read),
    ("deployment.role_control_plane.config_provider", Read),
    ("deployment.admin.admin_key_required", Read),
    ("deployment.admin.admin_key", Read),
    ("deployment.admin.enable_admin_cors", Read),
    ("deployment.admin.enable_admin_ui", Report("there is no user interface")),
    ("deployment.admin.allow_admin", Read),
    ("deployment.admin.admin_listen.ip", Read),
    ("deployment.admin.admin_listen.port", Read),
    ("deployment.admin.https_admin", Read),
    ("deployment.admin.admin_api_mtls", Read),
    ("deployment.admin.admin_api_version", Read),
    ("deployment.embedded.directory", Read),
    ("deployment.etcd.host", Read),
    ("deployment.etcd.prefix", Read),
    ("deployment.etcd.timeout", Read),
    ("deployment.etcd.watch_timeout", Read),
    ("deployment.etcd.resync_delay", Read),
    ("deployment.etcd.health_check_timeout", Read),
    ("deployment.etcd.startup_retry", Read),
    ("deployment.etcd.user", Read),
    ("deployment.etcd.password", Read),
    ("deployment.etcd.tls.cert", Read),
    ("deployment.etcd.tls.key", Read),
    ("deployment.etcd.tls.verify", Read),
    ("deployment.etcd.tls.sni", Read),
];

/// Every key that is known, with what becomes of it; a path stands for everything below it.
pub fn keys() -> &'static [(&'static str, Rule)] {
    KEYS
}

/// Holds the user's file against the table: `reports` gets what has no effect, `errors` every value that would
/// be ignored to harm.
pub(super) fn check(
    user: &Node,
    defaults: &Node,
    reports: &mut Vec<ConfigError>,
    errors: &mut Vec<ConfigError>,
) {
    let mut walk = Walk { errors, reports };
    if let Some(object) = user.as_object() {
        walk.object(object, Some(defaults), "");
    } else if !user.is_null() {
        walk.errors.push(ConfigError::new(format!("expected keys, found {}", user.kind())).at(user.place));
    }
}

struct Walk<'a> {
    errors: &'a mut Vec<ConfigError>,
    reports: &'a mut Vec<ConfigError>,
}

impl Walk<'_> {
    fn object(&mut self, object: &Object, defaults: Option<&Node>, prefix: &str) {
        for entry in object.entries() {
            let path = if prefix.is_empty() { entry.key.clone() } else { format!("{prefix}.{}", entry.key) };
            let default = defaults.and_then(|defaults| defaults.get(&entry.key));
            if let Some((_, rule)) = KEYS.iter().find(|(key, _)| *key == path) {
                self.apply(*rule, &entry.value, default, &path);
            } else if children(&path).next().is_some() {
                self.section(&entry.value, default, &path);
            } else {
                let report = ConfigError::unknown_key(&entry.key, children(prefix));
                self.reports.push(report.in_key(&path).at(entry.key_place));
            }
        }
    }

    fn section(&mut self, value: &Node, default: Option<&Node>, path: &str) {
        match &value.value {
            Value::Object(below) => self.object(below, default, path),
            Value::Null => {}
            Value::Array(items) if items.is_empty() => {}
            _ => {
                let reason = format!("expected keys, found {}", value.kind());
                self.errors.push(ConfigError::field(path, reason).at(value.place));
            }
        }
    }

    fn apply(&mut self, rule: Rule, value: &Node, default: Option<&Node>, path: &str) {
        let unchanged = match default {
            Some(default) => value.to_json() == default.to_json(),
            None => says_nothing(&value.value),
        };
        match rule {
            Rule::Read => {}
            _ if unchanged => {}
            Rule::Report(reason) => {
                self.reports
                    .push(ConfigError::field(path, format!("has no effect: {reason}")).at(value.place));
            }
            Rule::Refuse(reason) => {
                self.errors
                    .push(ConfigError::field(path, format!("not supported: {reason}")).at(value.place));
            }
        }
    }
}

/// A value that a key without a default may have and still be off.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// The names right below a path, some of them more than once.
fn children(prefix: &str) -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(move |(key, _)| {
        let below = match prefix {
            "" => *key,
            prefix => key.strip_prefix(prefix)?.strip_prefix('.')?,
        };
        below.split('.').next()
    })
}
