//! The health of nodes, as `/v1/healthcheck` tells it.

use std::fmt::Write;

use http::StatusCode;
use serde_json::{Value, json};
use sixfold_core::cluster::{Cluster, CountedChecks, Host};

use super::{ControlApi, list};
use crate::admin::{AdminReply, AdminRequest, kept_value};
use crate::config::Provider;
use crate::resource::Kind;
use crate::store::{Kept, Key};

/// Kinds of resources that are upstreams or bring them, in the order in which they are told.
const KINDS: [Kind; 4] = [Kind::Route, Kind::StreamRoute, Kind::Service, Kind::Upstream];

impl ControlApi {
    /// Of every upstream with checks.
    pub(super) fn checkers(&self, request: &AdminRequest) -> AdminReply {
        let mut all = Vec::new();
        for kind in KINDS {
            let kept = self.in_force.list(kind);
            all.extend(kept.iter().filter_map(|(key, kept)| self.checker(key, kept)));
        }
        match wants_page(request) {
            true => page(&all),
            false => AdminReply::json(StatusCode::OK, &list(all)),
        }
    }

    /// Of one, by the kind and id in the path.
    pub(super) fn checker_of(&self, request: &AdminRequest, path: &str) -> Result<AdminReply, AdminReply> {
        let not_found = |reason: String| AdminReply::error(StatusCode::NOT_FOUND, reason);
        let mut segments = path.split('/').skip(3);
        let section = segments.next().unwrap_or_default();
        let id = segments.next().filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| not_found(format!("missing src id for src type {section}")))?;
        let Some(kind) = KINDS.into_iter().find(|kind| kind.section() == section) else {
            return Err(AdminReply::error(StatusCode::BAD_REQUEST, format!("invalid src type {section}")));
        };
        let key = Key::new(kind, id);
        let kept = self.in_force.get(&key).ok_or_else(|| not_found(format!("{section}[{id}] not found")))?;
        let checker = self.checker(&key, &kept);
        let checker = checker.ok_or_else(|| not_found(format!("no checker for {section}[{id}]")))?;
        Ok(match wants_page(request) {
            true => page(&[checker]),
            false => AdminReply::json(StatusCode::OK, &checker),
        })
    }

    /// What is known of the nodes of a resource's upstream; `None` for one without checks.
    fn checker(&self, key: &Key, kept: &Kept) -> Option<Value> {
        let value = kept_value(kept);
        let checks = value.get("checks").or_else(|| value.get("upstream")?.get("checks"))?;
        let kind = |of: &str| checks.get(of)?.get("type")?.as_str();
        let kind = kind("active").or_else(|| kind("passive")).unwrap_or("http");
        let prefix = checkers_prefix(self.provider, self.in_force.prefix());
        let cluster = self.clusters.find(&format!("{}/{}", key.kind.section(), key.id));
        let nodes = cluster.map(|cluster| nodes(&cluster)).unwrap_or_default();
        Some(json!({"name": key.path(prefix), "type": kind, "nodes": list(nodes)}))
    }
}

/// What keys of checkers begin with: nothing where resources are from a file.
pub fn checkers_prefix(provider: Provider, of_store: &str) -> &str {
    match provider {
        Provider::Yaml | Provider::Json => "",
        _ => of_store,
    }
}

/// The nodes that are checked; what stands for one target of probes is told once, as in APISIX.
fn nodes(cluster: &Cluster) -> Vec<Value> {
    let Some(checks) = &cluster.config.checks else { return Vec::new() };
    let mut nodes: Vec<Value> = Vec::new();
    for member in cluster.hosts.load().iter() {
        let node = node(&member.host, checks);
        let same = |other: &&Value| ["ip", "port", "hostname"].iter().all(|name| other[name] == node[name]);
        if !nodes.iter().any(|other| same(&other)) {
            nodes.push(node);
        }
    }
    nodes
}

fn node(host: &Host, checks: &CountedChecks) -> Value {
    let (ip, port) = checks.target(host);
    let counts = host.counts();
    let mut node = json!({
        "ip": ip,
        "port": port,
        "hostname": checks.active.address_host.as_deref().unwrap_or(&ip),
        "status": counts.health.name(),
        "counter": {
            "success": counts.successes,
            "http_failure": counts.http_failures,
            "tcp_failure": counts.tcp_failures,
            "timeout_failure": counts.timeouts,
        },
    });
    let name = Some(&*host.hostname).filter(|name| !name.is_empty());
    if let Some(header) = checks.active.host.as_deref().or(name) {
        node["hostheader"] = header.into();
    }
    node
}

fn wants_page(request: &AdminRequest) -> bool {
    request.header("accept").is_some_and(|accept| accept.contains("text/html"))
}

/// The same for people.
fn page(checkers: &[Value]) -> AdminReply {
    let mut rows = String::new();
    let mut index = 0;
    for checker in checkers {
        for node in checker["nodes"].as_array().into_iter().flatten() {
            index += 1;
            let status = node["status"].as_str().unwrap_or_default();
            let usable = matches!(status, "healthy" | "mostly_healthy");
            let row = if usable { "<tr>" } else { "<tr bgcolor=\"#FF0000\">" };
            let counter = |name: &str| node["counter"][name].to_string();
            let address = format!("{}:{}", text(&node["ip"]), node["port"]);
            let cells = [
                index.to_string(),
                text(&checker["name"]),
                text(&checker["type"]),
                address,
                status.to_owned(),
                counter("success"),
                counter("tcp_failure"),
                counter("http_failure"),
                counter("timeout_failure"),
            ];
            let cells: String = cells.iter().map(|cell| format!("    <td>{cell}</td>\n")).collect();
            // Writing to a string can't fail.
            let _ = write!(rows, "  {row}\n{cells}  </tr>\n");
        }
    }
    let heads = [
        "Index",
        "Upstream",
        "Check type",
        "Host",
        "Status",
        "Success counts",
        "TCP Failures",
        "HTTP Failures",
        "TIMEOUT Failures",
    ];
    let heads: String = heads.iter().map(|head| format!("    <th>{head}</th>\n")).collect();
    let page = format!(
        "<html xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n  <title>Upstream check status</title>\n</head>\n\
         <body>\n<h1>Upstream check status</h1>\n<table cellspacing=\"0\" cellpadding=\"3\" border=\"1\">\n  \
         <tr bgcolor=\"#C0C0C0\">\n{heads}  </tr>\n{rows}</table>\n</body>\n</html>\n"
    );
    AdminReply { content_type: "text/html", ..AdminReply::text(StatusCode::OK, page) }
}

/// Text that is no markup.
fn text(value: &Value) -> String {
    let value = value.as_str().unwrap_or_default();
    value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sixfold_core::cluster::{ActiveCheck, Address, ClusterConfig, HostConfig, Limits, Seen};
    use sixfold_core::metrics::Registry;
    use std::sync::Arc;

    fn checked(port: Option<u16>) -> Arc<Cluster> {
        let limits = Limits {
            healthy_statuses: [200].into(),
            unhealthy_statuses: [500].into(),
            successes: 1,
            http_failures: 1,
            tcp_failures: 1,
            timeouts: 1,
        };
        let active = ActiveCheck { port, limits: limits.clone(), ..ActiveCheck::default() };
        let checks = CountedChecks { active, passive: limits, ..CountedChecks::default() };
        let mut config = ClusterConfig::named("routes/1");
        config.checks = Some(Arc::new(checks));
        let hosts = [80, 81].map(|port| HostConfig::new(Address::Ip(([127, 0, 0, 1], port).into())));
        Cluster::new(config, hosts.into(), None, &Registry::new()).unwrap()
    }

    #[test]
    fn nodes_are_told_as_apisix_tells_its_targets() {
        let cluster = checked(None);
        let hosts = cluster.hosts.load();
        cluster.saw(&hosts.iter().next().unwrap().host, Seen::Status(500));
        let counter =
            |http: u8| json!({"success": 0, "http_failure": http, "tcp_failure": 0, "timeout_failure": 0});
        let node = |port: u16, status: &str, http: u8| json!({"ip": "127.0.0.1", "port": port, "hostname": "127.0.0.1", "status": status, "counter": counter(http)});
        assert_eq!(nodes(&cluster), [node(80, "unhealthy", 1), node(81, "healthy", 0)]);
        assert_eq!(nodes(&checked(Some(9))), [node(9, "healthy", 0)], "one target stands for both");
        let shown = page(&[json!({"name": "/routes/<1>", "type": "http", "nodes": nodes(&cluster)})]);
        let shown = String::from_utf8(shown.body.to_vec()).unwrap();
        assert!(
            shown.contains("<tr bgcolor=\"#FF0000\">\n    <td>1</td>\n    <td>/routes/&lt;1&gt;</td>"),
            "{shown}"
        );
    }
}
