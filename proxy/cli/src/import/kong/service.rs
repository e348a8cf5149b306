//! Services, each with the upstream of its routes.

use super::Import;
use super::entities::name;
use crate::import::document::{field, fields, number_of, seconds_of, text, text_of, truth_of, whole_of};
use crate::import::report::Part;
use serde_json::{Map, Value, json};
use sixfold_core::document::Node;

/// A service as its routes see it.
#[derive(Debug, Clone)]
pub(super) struct Service {
    /// `None` where it is switched off, or something else than HTTP.
    pub(super) resource: Option<Value>,
    pub(super) id: String,
    /// Before the path of a request; `/` if there is nothing.
    pub(super) path: String,
    /// The upstream whose requests keep the client's Host.
    pub(super) preserving: Map<String, Value>,
}

/// Where a service is, of its own fields or of `url`.
struct Target {
    protocol: String,
    host: String,
    port: u16,
    path: Option<String>,
    /// Whether the port of `url` is no number.
    is_odd: bool,
}

impl Import {
    pub(super) fn services(&mut self) -> Vec<Service> {
        let nodes = self.entities.services.clone();
        nodes.iter().map(|node| self.service(node)).collect()
    }

    fn service(&mut self, node: &Node) -> Service {
        let id = self.ids.id(&name(node));
        let mut part = self.part(format!("service \"{}\"", name(node)), node);
        let target = target(node);
        let scheme = match target.protocol.as_str() {
            "http" | "ws" => Some("http"),
            "https" | "wss" => Some("https"),
            name @ ("grpc" | "grpcs") => Some(name),
            _ => None,
        };
        let mut upstream = Map::from_iter([("id".to_owned(), Value::from(id.as_str()))]);
        for entry in fields(node) {
            self.service_field(&mut part, &entry.key, entry.key_place, node);
        }
        let is_off = !truth_of(node, "enabled", true);
        match scheme {
            Some(scheme) => upstream.extend(self.upstream_of(&target, scheme, node, &mut part)),
            None => {
                let place = field(node, "protocol").map_or(node.place, |node| node.place);
                part.manual("protocol", place, "write stream_routes (docs/reference/streams.md)");
            }
        }
        self.out.take(part);
        let resource = (scheme.is_some() && !is_off).then(|| {
            self.upstreams.insert(id.clone(), Value::Object(upstream.clone()));
            json!({"id": id, "name": name(node), "upstream_id": id})
        });
        upstream.insert("pass_host".to_owned(), "pass".into());
        upstream.remove("upstream_host");
        Service { resource, id, path: target.path.unwrap_or_else(|| "/".to_owned()), preserving: upstream }
    }

    fn service_field(&mut self, part: &mut Part, key: &str, place: sixfold_core::error::Place, node: &Node) {
        match key {
            "name" | "id" | "url" | "protocol" | "host" | "port" | "path" | "retries" | "connect_timeout"
            | "write_timeout" | "read_timeout" | "enabled" | "tags" | "created_at" | "updated_at"
            | "routes" | "plugins" | "tls_verify_depth" | "tls_sans" => part.exact(key),
            "tls_verify" if !truth_of(node, "tls_verify", false) => part.exact(key),
            "tls_verify" | "ca_certificates" => {
                part.manual(
                    key,
                    place,
                    "certificates of upstreams are not verified: keep to a network that is yours",
                );
            }
            "filter_chains" => part.unsupported(key, place, "lets in nobody: there is no Wasm"),
            "client_certificate" => self.client_certificate(part, place, node),
            _ => part.unknown(key, place),
        }
    }

    fn client_certificate(&mut self, part: &mut Part, place: sixfold_core::error::Place, node: &Node) {
        let named = field(node, "client_certificate");
        let is_there = named.is_some_and(|named| self.certificate(named).is_some());
        match is_there {
            true => part.exact("client_certificate"),
            false => part.manual("client_certificate", place, "it is not there: write `tls` of the upstream"),
        }
    }

    fn certificate(&self, named: &Node) -> Option<&Node> {
        let all = self.entities.certificates.iter();
        all.map(|(node, _)| node).find(|certificate| super::entities::names(named, certificate))
    }

    /// The upstream of a service: nodes and balancer of the entity that its host names, else the host itself.
    fn upstream_of(
        &mut self,
        target: &Target,
        scheme: &str,
        node: &Node,
        part: &mut Part,
    ) -> Map<String, Value> {
        let mut upstream = match self.named_upstream(&target.host) {
            Some(named) => named,
            None => {
                let nodes = json!([{"host": target.host, "port": target.port, "weight": 1}]);
                Map::from_iter([
                    ("type".to_owned(), "roundrobin".into()),
                    ("nodes".to_owned(), nodes),
                    ("pass_host".to_owned(), "node".into()),
                ])
            }
        };
        if let Some(name) = target.host.strip_prefix("${{").and_then(|rest| rest.strip_suffix("}}")) {
            part.manual("host", node.place, format!("set {name} where the gateway runs"));
        }
        if target.is_odd {
            part.manual(
                "url",
                node.place,
                format!("its port is no number, and is {} here: write it", target.port),
            );
        }
        if target.host.is_empty() {
            part.manual("host", node.place, "write the nodes of its upstream");
            upstream.insert("nodes".to_owned(), json!([]));
        }
        upstream.insert("scheme".to_owned(), scheme.into());
        upstream.insert("retries".to_owned(), whole_of(node, "retries").unwrap_or(5).into());
        let time = |name: &str| seconds_of(number_of(node, name).unwrap_or(60_000.0).max(1.0));
        let times = json!({"connect": time("connect_timeout"), "send": time("write_timeout"), "read": time("read_timeout")});
        upstream.insert("timeout".to_owned(), times);
        let certificate = field(node, "client_certificate").and_then(|named| self.certificate(named));
        if let Some(certificate) = certificate {
            let shown = |name: &str| text_of(certificate, name).unwrap_or_default();
            upstream
                .insert("tls".to_owned(), json!({"client_cert": shown("cert"), "client_key": shown("key")}));
        }
        upstream
    }
}

fn target(node: &Node) -> Target {
    let url = field(node, "url").and_then(text).filter(|url| !url.starts_with("$env://"));
    let of_url = url.as_deref().and_then(|url| {
        let (protocol, rest) = url.split_once("://")?;
        let (authority, path) = match rest.find('/') {
            Some(at) => (rest.get(..at)?, rest.get(at..).map(str::to_owned)),
            None => (rest, None),
        };
        let default = if matches!(protocol, "https" | "wss" | "grpcs") { 443 } else { 80 };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !port.contains(']') => (host, port.parse().ok()),
            _ => (authority, Some(default)),
        };
        let is_odd = port.is_none();
        let port = port.unwrap_or(default);
        Some(Target { protocol: protocol.to_owned(), host: host.to_owned(), port, path, is_odd })
    });
    let of_url = of_url.unwrap_or(Target {
        protocol: "http".to_owned(),
        host: String::new(),
        // Kong's default, whatever the protocol.
        port: 80,
        path: None,
        is_odd: false,
    });
    let host = text_of(node, "host").unwrap_or(of_url.host);
    // A node is no plugin's configuration: the variable's place is in the file itself.
    let host = match host.strip_prefix("$env://") {
        Some(name) => format!("${{{{{name}}}}}"),
        None => host.trim_matches(['[', ']']).to_owned(),
    };
    let port = whole_of(node, "port").and_then(|port| u16::try_from(port).ok());
    Target {
        protocol: text_of(node, "protocol").unwrap_or(of_url.protocol),
        host,
        port: port.unwrap_or(of_url.port),
        path: text_of(node, "path").or(of_url.path).filter(|path| path.starts_with('/')),
        is_odd: of_url.is_odd && port.is_none(),
    }
}
