//! `upstreams` with their `targets`, balancers and health checks.

use super::Import;
use crate::import::document::{field, fields, number_of, text_of, whole_of};
use crate::import::report::Part;
use serde_json::{Map, Value, json};
use sixfold_core::document::{Entry, Node};

/// The port of a target that names none.
const TARGET_PORT: u16 = 8000;

impl Import {
    /// Nodes and balancer of the upstream of this name, if there is one.
    pub(super) fn named_upstream(&mut self, host: &str) -> Option<Map<String, Value>> {
        let (node, targets) = self.entities.upstream(host)?.clone();
        let mut part = self.part(format!("upstream \"{host}\""), &node);
        let mut upstream = balancer(&node, &mut part);
        for entry in fields(&node) {
            self.upstream_field(&mut part, entry, &node, &mut upstream);
        }
        let nodes: Vec<Value> = targets.iter().filter_map(|target| self.target(target, &mut part)).collect();
        upstream.insert("nodes".to_owned(), nodes.into());
        let own = text_of(&node, "host_header");
        upstream.insert("pass_host".to_owned(), if own.is_some() { "rewrite" } else { "node" }.into());
        upstream.extend(own.map(|own| ("upstream_host".to_owned(), own.into())));
        self.out.take(part);
        Some(upstream)
    }

    fn upstream_field(
        &mut self,
        part: &mut Part,
        entry: &Entry,
        node: &Node,
        upstream: &mut Map<String, Value>,
    ) {
        match entry.key.as_str() {
            "name"
            | "id"
            | "algorithm"
            | "slots"
            | "tags"
            | "targets"
            | "host_header"
            | "created_at"
            | "updated_at"
            | "hash_on"
            | "hash_on_header"
            | "hash_on_cookie"
            | "hash_on_cookie_path"
            | "hash_on_query_arg"
            | "hash_on_uri_capture" => part.exact(&entry.key),
            "hash_fallback"
            | "hash_fallback_header"
            | "hash_fallback_query_arg"
            | "hash_fallback_uri_capture" => {
                let none = text_of(node, &entry.key).as_deref() == Some("none");
                match none {
                    true => part.exact(&entry.key),
                    false => part.approximate(
                        &entry.key,
                        entry.key_place,
                        "what has nothing to hash goes by address",
                    ),
                }
            }
            "healthchecks" => checks(&entry.value, part, upstream),
            "use_srv_name" => {
                part.unsupported(&entry.key, entry.key_place, "names of SRV records are not Hosts")
            }
            "client_certificate" => {
                part.manual(&entry.key, entry.key_place, "write `tls` of the upstream");
            }
            key => part.unknown(key, entry.key_place),
        }
    }

    /// A node of `HOST[:PORT]`, `weight`.
    fn target(&mut self, target: &Node, part: &mut Part) -> Option<Value> {
        let given = text_of(target, "target")?;
        let (host, port) = match given.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host.to_owned(), port.parse().unwrap_or(TARGET_PORT))
            }
            _ => (given.clone(), TARGET_PORT),
        };
        for entry in fields(target) {
            match entry.key.as_str() {
                "target" | "weight" | "tags" | "id" | "upstream" | "created_at" | "updated_at" => {}
                key => part.unknown(&format!("target {given}.{key}"), entry.key_place),
            }
        }
        let weight = whole_of(target, "weight").unwrap_or(100);
        Some(json!({"host": host.trim_matches(['[', ']']), "port": port, "weight": weight}))
    }
}

/// `algorithm` and what it hashes.
fn balancer(node: &Node, part: &mut Part) -> Map<String, Value> {
    let place = field(node, "algorithm").map_or(node.place, |node| node.place);
    let hash_on = text_of(node, "hash_on").unwrap_or_else(|| "none".to_owned());
    // Of the oldest format there is no algorithm.
    let default = if hash_on == "none" { "round-robin" } else { "consistent-hashing" };
    let algorithm = text_of(node, "algorithm").unwrap_or_else(|| default.to_owned());
    let of = |name: &str| text_of(node, name).unwrap_or_default();
    let made = match (algorithm.as_str(), hash_on.as_str()) {
        ("least-connections", _) => json!({"type": "least_conn"}),
        ("latency", _) => json!({"type": "ewma"}),
        ("consistent-hashing" | "sticky-sessions", hash_on) => {
            let note = "in a ring of its own: other requests meet other targets";
            part.approximate("algorithm", place, note);
            match hash_on {
                "ip" => json!({"type": "chash", "hash_on": "vars", "key": "remote_addr"}),
                "consumer" => json!({"type": "chash", "hash_on": "consumer"}),
                "header" => json!({"type": "chash", "hash_on": "header", "key": of("hash_on_header")}),
                "cookie" => json!({"type": "chash", "hash_on": "cookie", "key": of("hash_on_cookie")}),
                "path" => json!({"type": "chash", "hash_on": "vars", "key": "uri"}),
                "query_arg" => {
                    json!({"type": "chash", "hash_on": "vars", "key": format!("arg_{}", of("hash_on_query_arg"))})
                }
                _ => {
                    part.manual("hash_on", place, "taken in turn: write `key` of the upstream");
                    json!({"type": "roundrobin"})
                }
            }
        }
        ("round-robin", _) => json!({"type": "roundrobin"}),
        _ => {
            part.unsupported("algorithm", place, "taken in turn");
            json!({"type": "roundrobin"})
        }
    };
    made.as_object().cloned().unwrap_or_default()
}

/// `healthchecks`, whose names are those of APISIX but for a few.
fn checks(node: &Node, part: &mut Part, upstream: &mut Map<String, Value>) {
    let (active, passive) = (field(node, "active"), field(node, "passive"));
    let is_on = |side: Option<&Node>, half: &str, names: &[&str]| {
        let half = side.and_then(|side| field(side, half));
        half.is_some_and(|half| {
            names.iter().any(|name| number_of(half, name).is_some_and(|value| value > 0.0))
        })
    };
    // A check of no interval is none.
    let is_active = is_on(active, "healthy", &["interval"]) || is_on(active, "unhealthy", &["interval"]);
    let is_passive = is_on(passive, "unhealthy", &["http_failures", "tcp_failures", "timeouts"]);
    if number_of(node, "threshold").is_some_and(|value| value > 0.0) {
        part.unsupported("healthchecks.threshold", node.place, "there is no least share of healthy nodes");
    }
    let Some(active) = active.filter(|_| is_active) else {
        match is_passive {
            true => part.manual(
                "healthchecks.passive",
                node.place,
                "counts beside active checks alone: write both",
            ),
            false => part.exact("healthchecks"),
        }
        return;
    };
    let mut made = Map::from_iter([("active".to_owned(), active_check(active))]);
    if let Some(passive) = passive.filter(|_| is_passive) {
        let halves = halves(
            passive,
            &["http_statuses", "successes"],
            &["http_statuses", "http_failures", "tcp_failures", "timeouts"],
        );
        made.insert("passive".to_owned(), Value::Object(halves));
    }
    upstream.insert("checks".to_owned(), Value::Object(made));
    part.exact("healthchecks");
}

fn active_check(node: &Node) -> Value {
    let mut check = halves(
        node,
        &["interval", "http_statuses", "successes"],
        &["interval", "http_statuses", "http_failures", "tcp_failures", "timeouts"],
    );
    let kind = text_of(node, "type").unwrap_or_else(|| "http".to_owned());
    check.insert("type".to_owned(), if kind == "grpc" { "tcp".to_owned() } else { kind }.into());
    for (name, of) in [("timeout", "timeout"), ("concurrency", "concurrency"), ("http_path", "http_path")] {
        check.extend(field(node, name).map(|value| (of.to_owned(), value.to_json())));
    }
    check.extend(text_of(node, "https_sni").map(|host| ("host".to_owned(), host.into())));
    let verifies = field(node, "https_verify_certificate");
    check.extend(verifies.map(|value| ("https_verify_certificate".to_owned(), value.to_json())));
    let headers = field(node, "headers").map(|headers| {
        let lines = fields(headers).flat_map(|entry| {
            let values =
                crate::import::document::items(&entry.value).iter().filter_map(crate::import::document::text);
            values.map(|value| format!("{}: {value}", entry.key)).collect::<Vec<_>>()
        });
        json!(lines.collect::<Vec<String>>())
    });
    check.extend(headers.map(|headers| ("req_headers".to_owned(), headers)));
    Value::Object(check)
}

/// `healthy` and `unhealthy`: numbers of 0 switch a kind off, and are left to the default where that is not possible.
fn halves(node: &Node, healthy: &[&str], unhealthy: &[&str]) -> Map<String, Value> {
    let half = |name: &str, keys: &[&str]| {
        let half = field(node, name)?;
        let kept = keys.iter().filter_map(|key| {
            let value = field(half, key)?;
            let is_off = number_of(half, key) == Some(0.0) && matches!(*key, "interval" | "successes");
            (!is_off).then(|| ((*key).to_owned(), value.to_json()))
        });
        Some((name.to_owned(), Value::Object(kept.collect())))
    };
    half("healthy", healthy).into_iter().chain(half("unhealthy", unhealthy)).collect()
}
