//! Clusters as upstreams: one for each way in which routes use them.

use super::{Import, duration_of, socket_address, type_of, word_of};
use crate::import::document::{field, fields, items_of, number_of, seconds, text_of, whole_of};
use crate::import::report::Part;
use serde_json::{Map, Value, json};
use sixfold_core::document::{Entry, Node};

/// How a route uses a cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Use {
    pub(super) retries: u64,
    /// Whether nodes are asked under their own names.
    pub(super) by_node: bool,
    /// `hash_on` and `key` of a hash policy.
    pub(super) hash: Option<(&'static str, String)>,
}

impl Import {
    /// The id of the upstream of a cluster, if there is one.
    pub(super) fn upstream(&mut self, name: &str, of: &Use) -> Option<String> {
        let node = self.clusters.get(name)?.clone();
        self.used.insert(name.to_owned());
        let mut part = self.part(format!("cluster \"{name}\""), &node);
        let upstream = self.upstream_of(&node, of, &mut part);
        self.out.take(part);
        let upstream = upstream?;
        if let Some((id, _)) = self.upstreams.iter().find(|(id, known)| {
            *known == upstream
                && (id == name || id.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
        }) {
            return Some(id.clone());
        }
        let id = self.ids.id(name);
        self.upstreams.push((id.clone(), upstream));
        Some(id)
    }

    fn upstream_of(&self, node: &Node, of: &Use, part: &mut Part) -> Option<Map<String, Value>> {
        let kind = word_of(node, "type");
        if !matches!(kind.as_str(), "" | "STATIC" | "STRICT_DNS" | "LOGICAL_DNS") {
            let place = field(node, "type").map_or(node.place, |node| node.place);
            part.manual(
                "type",
                place,
                format!("{kind}: its endpoints are not in the file: write `nodes` of an upstream"),
            );
            return None;
        }
        let mut upstream = balancer(node, of, part);
        let nodes = nodes(node, part);
        upstream.insert("nodes".to_owned(), nodes.into());
        upstream.insert("pass_host".to_owned(), if of.by_node { "node" } else { "pass" }.into());
        upstream.insert("retries".to_owned(), of.retries.into());
        let (mut secure, mut multiplexed) = (false, false);
        for entry in fields(node) {
            match entry.key.as_str() {
                "transport_socket" => secure |= transport(entry, part, &mut upstream, &self.root),
                "http2_protocol_options" => {
                    multiplexed = true;
                    part.exact("http2_protocol_options");
                }
                "typed_extension_protocol_options" => multiplexed |= protocols(entry, part),
                "health_checks" => checks(&entry.value, part, &mut upstream),
                "connect_timeout" | "name" | "type" | "lb_policy" | "load_assignment" | "hosts" => {
                    part.exact(&entry.key)
                }
                key => cluster_field(key, entry, part),
            }
        }
        let scheme = match (secure, multiplexed) {
            (false, false) => "http",
            (true, false) => "https",
            (false, true) => "grpc",
            (true, true) => "grpcs",
        };
        upstream.insert("scheme".to_owned(), scheme.into());
        Some(upstream)
    }

    /// Seconds until a connection to a cluster is there.
    pub(super) fn connect_timeout(&self, name: &str) -> f64 {
        self.clusters.get(name).and_then(|node| duration_of(node, "connect_timeout")).unwrap_or(5.0)
    }
}

/// Fields of a cluster beside those that an upstream is made of.
fn cluster_field(key: &str, entry: &Entry, part: &mut Part) {
    let place = entry.key_place;
    match key {
        "dns_lookup_family"
        | "dns_refresh_rate"
        | "respect_dns_ttl"
        | "alt_stat_name"
        | "wait_for_warm_on_init"
        | "per_connection_buffer_limit_bytes"
        | "upstream_connection_options"
        | "common_lb_config"
        | "metadata"
        | "dns_resolvers"
        | "dns_failure_refresh_rate"
        | "common_http_protocol_options"
        | "http_protocol_options"
        | "max_requests_per_connection"
        | "track_cluster_stats"
        | "cleanup_interval"
        | "ignore_health_on_host_removal"
        | "close_connections_on_host_health_failure"
        | "ring_hash_lb_config"
        | "maglev_lb_config"
        | "least_request_lb_config"
        | "round_robin_lb_config"
        | "dns_jitter"
        | "preconnect_policy" => part.exact(key),
        "outlier_detection" => {
            part.manual(key, place, "write `checks.passive` of the upstream, beside active ones");
        }
        "circuit_breakers" => {
            part.unsupported(key, place, "there are no limits by upstream; limit-conn has them by key")
        }
        "upstream_bind_config" => part.unsupported(key, place, "the machine chooses the address"),
        "lb_subset_config" => part.unsupported(key, place, "write an upstream for each subset"),
        "load_balancing_policy" => part.manual(key, place, "write `type` of the upstream"),
        _ => part.unknown(key, place),
    }
}

fn balancer(node: &Node, of: &Use, part: &mut Part) -> Map<String, Value> {
    let place = field(node, "lb_policy").map_or(node.place, |node| node.place);
    let made = match word_of(node, "lb_policy").as_str() {
        "" | "ROUND_ROBIN" => json!({"type": "roundrobin"}),
        "LEAST_REQUEST" => {
            part.approximate("lb_policy", place, "the node with the fewest requests of all, not of two");
            json!({"type": "least_conn"})
        }
        "RANDOM" => {
            part.approximate("lb_policy", place, "in turn");
            json!({"type": "roundrobin"})
        }
        "RING_HASH" | "MAGLEV" => match &of.hash {
            Some((hash_on, key)) => {
                part.approximate("lb_policy", place, "in a ring of its own: other requests meet other nodes");
                json!({"type": "chash", "hash_on": hash_on, "key": key})
            }
            None => {
                part.approximate("lb_policy", place, "in turn where a route has no hash policy");
                json!({"type": "roundrobin"})
            }
        },
        name => {
            part.manual("lb_policy", place, format!("{name}: taken in turn"));
            json!({"type": "roundrobin"})
        }
    };
    made.as_object().cloned().unwrap_or_default()
}

/// Endpoints with their weights; those of a higher priority number are backups.
fn nodes(node: &Node, part: &mut Part) -> Vec<Value> {
    let mut found = Vec::new();
    let assignment = field(node, "load_assignment");
    for locality in assignment.map_or(&[][..], |assignment| items_of(assignment, "endpoints")) {
        let priority =
            whole_of(locality, "priority").and_then(|priority| i64::try_from(priority).ok()).unwrap_or(0);
        for one in items_of(locality, "lb_endpoints") {
            let address = field(one, "endpoint").and_then(|endpoint| field(endpoint, "address"));
            let Some((host, port)) = address.and_then(socket_address) else {
                part.unsupported("load_assignment", one.place, "nodes are addresses or names with a port");
                continue;
            };
            let weight = whole_of(one, "load_balancing_weight").unwrap_or(1);
            let is_out = matches!(word_of(one, "health_status").as_str(), "UNHEALTHY" | "DRAINING");
            let weight = if is_out { 0 } else { weight };
            found.push(json!({"host": host, "port": port, "weight": weight, "priority": -priority}));
        }
        if field(locality, "load_balancing_weight").is_some() {
            part.approximate("load_balancing_weight", locality.place, "of a locality is not looked at");
        }
    }
    // Of the oldest form.
    for (host, port) in items_of(node, "hosts").iter().filter_map(socket_address) {
        found.push(json!({"host": host, "port": port, "weight": 1}));
    }
    if found.iter().all(|node| node.get("priority") == Some(&json!(0))) {
        for node in &mut found {
            node.as_object_mut().and_then(|node| node.remove("priority"));
        }
    }
    found
}

/// `transport_socket`: whether TLS is begun.
fn transport(
    entry: &Entry,
    part: &mut Part,
    upstream: &mut Map<String, Value>,
    root: &std::path::Path,
) -> bool {
    let Some(config) = field(&entry.value, "typed_config") else { return false };
    if type_of(config) != "UpstreamTlsContext" {
        part.unsupported(
            "transport_socket",
            entry.key_place,
            format!("{}: there is TLS alone", type_of(config)),
        );
        return false;
    }
    if let Some(sni) = text_of(config, "sni") {
        part.approximate("sni", entry.key_place, format!("is asked for as the request's Host, not as {sni}"));
    }
    let common = field(config, "common_tls_context");
    for entry in common.into_iter().flat_map(fields) {
        match entry.key.as_str() {
            "alpn_protocols" | "tls_params" => part.exact(&entry.key),
            "tls_certificates" => {
                let of = |name: &str| {
                    let pair = items_of(common?, "tls_certificates").first()?;
                    super::data(field(pair, name)?, root)
                };
                match (of("certificate_chain"), of("private_key")) {
                    (Some(cert), Some(key)) => {
                        let tls = json!({"client_cert": cert, "client_key": key});
                        upstream.insert("tls".to_owned(), tls);
                        part.exact("tls_certificates");
                    }
                    _ => part.manual(
                        "tls_certificates",
                        entry.key_place,
                        "its files can't be read: write `tls`",
                    ),
                }
            }
            key => {
                let note = "certificates of upstreams are not verified: keep to a network that is yours";
                part.manual(key, entry.key_place, note);
            }
        }
    }
    true
}

/// `HttpProtocolOptions`: whether it is HTTP/2.
fn protocols(entry: &Entry, part: &mut Part) -> bool {
    let options = fields(&entry.value).find(|entry| entry.key.ends_with("HttpProtocolOptions"));
    let Some(options) = options else {
        part.unknown("typed_extension_protocol_options", entry.key_place);
        return false;
    };
    part.exact("typed_extension_protocol_options");
    let explicit = field(&options.value, "explicit_http_config");
    if field(&options.value, "auto_config").is_some()
        || field(&options.value, "use_downstream_protocol_config").is_some()
    {
        part.approximate("typed_extension_protocol_options", entry.key_place, "is HTTP/1.1");
    }
    explicit.is_some_and(|explicit| {
        field(explicit, "http2_protocol_options").is_some()
            || explicit.get("http2_protocol_options").is_some()
    })
}

/// The first health check of a cluster.
fn checks(node: &Node, part: &mut Part, upstream: &mut Map<String, Value>) {
    let all = crate::import::document::items(node);
    let Some(check) = all.first() else { return };
    if all.len() > 1 {
        part.approximate("health_checks", node.place, "the first one alone");
    }
    let time =
        |name: &str, default: f64| seconds(duration_of(check, name).unwrap_or(default).ceil().max(1.0));
    let count = |name: &str| number_of(check, name).unwrap_or(1.0).max(1.0);
    let http = field(check, "http_health_check");
    let kind = if http.is_some() { "http" } else { "tcp" };
    let mut active = Map::from_iter([
        ("type".to_owned(), kind.into()),
        ("timeout".to_owned(), time("timeout", 1.0)),
        (
            "healthy".to_owned(),
            json!({"interval": time("interval", 1.0), "successes": seconds(count("healthy_threshold"))}),
        ),
    ]);
    let failures = seconds(count("unhealthy_threshold"));
    let unhealthy = json!({
        "interval": time("interval", 1.0), "http_failures": failures, "tcp_failures": failures, "timeouts": failures,
    });
    active.insert("unhealthy".to_owned(), unhealthy);
    if let Some(http) = http {
        active.insert("http_path".to_owned(), text_of(http, "path").unwrap_or_else(|| "/".to_owned()).into());
        active.extend(text_of(http, "host").map(|host| ("host".to_owned(), host.into())));
        part.exact("health_checks");
    } else if field(check, "tcp_health_check").is_some() {
        part.exact("health_checks");
    } else {
        part.approximate("health_checks", check.place, "whether the port is open");
    }
    upstream.insert("checks".to_owned(), json!({"active": active}));
}
