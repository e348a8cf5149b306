//! An Envoy bootstrap as an APISIX gateway: static listeners with their routes, clusters and the filters that have a
//! counterpart. Whatever comes from a control plane is not there to be taken over.

mod chain;
mod cluster;
mod filters;
mod headers;
mod listener;
mod matching;
mod route;
mod virtual_host;

use super::Stop;
use super::document::{self, field, fields, items_of, text_of};
use super::pieces::Ids;
use super::report::{Imported, Part};
use serde_json::{Map, Value, json};
use sixfold_core::document::{Node, Object, Value as Written};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is known while the file is read.
struct Import {
    out: Imported,
    file: Arc<str>,
    /// Where names of files are looked for that are not absolute.
    root: PathBuf,
    ids: Ids,
    clusters: BTreeMap<String, Node>,
    /// Those that some route leads to.
    used: BTreeSet<String>,
    /// Upstreams with what they are made of, so that equal ones are one.
    upstreams: Vec<(String, Map<String, Value>)>,
    ssls: Vec<Value>,
    stream_routes: Vec<Value>,
    ports: Ports,
}

/// What is listened on: address and port.
#[derive(Debug, Default)]
struct Ports {
    plain: Vec<Value>,
    tls: Vec<Value>,
    streams: Vec<String>,
}

/// Keys at the top that say nothing of requests.
const WITHOUT_EFFECT: &[&str] = &[
    "node",
    "stats_config",
    "stats_flush_interval",
    "use_tcp_for_dns_lookups",
    "header_prefix",
    "typed_dns_resolver_config",
    "dns_resolution_config",
    "watchdog",
    "watchdogs",
    "enable_dispatcher_stats",
    "bootstrap_extensions",
    "inline_headers",
    "memory_allocator_manager",
    "default_socket_interface",
    "deferred_stat_options",
    "application_log_config",
];

/// Reads a file.
///
/// # Errors
/// A file that can't be read, is no YAML or JSON, or another program's.
pub(super) fn import(path: &Path) -> Result<Imported, Stop> {
    let mut document = document::read(path)?;
    document::is_of(&document, "envoy", "an Envoy bootstrap (static_resources)")?;
    in_snake_case(&mut document.root);
    let mut import = Import {
        out: Imported::default(),
        file: document.file.clone(),
        root: path.parent().unwrap_or(Path::new(".")).to_owned(),
        ids: Ids::default(),
        clusters: BTreeMap::new(),
        used: BTreeSet::new(),
        upstreams: Vec::new(),
        ssls: Vec::new(),
        stream_routes: Vec::new(),
        ports: Ports::default(),
    };
    import.top(&document.root);
    let empty = Node { place: document.root.place, value: Written::Null };
    let resources = field(&document.root, "static_resources").unwrap_or(&empty);
    for cluster in items_of(resources, "clusters") {
        import.clusters.insert(text_of(cluster, "name").unwrap_or_default(), cluster.clone());
    }
    let routes = import.listeners(resources);
    import.clusters_left();
    import.finish(routes);
    Ok(import.out)
}

impl Import {
    fn part(&self, what: impl Into<String>, node: &Node) -> Part {
        Part::new(what, &self.file, node.place)
    }

    fn top(&mut self, root: &Node) {
        let mut part = self.part("bootstrap", root);
        for entry in fields(root) {
            let place = entry.key_place;
            match entry.key.as_str() {
                "static_resources" => {}
                "admin" => part.approximate(
                    "admin",
                    place,
                    "the control API (9090), /status (7085) and metrics (9091)",
                ),
                "dynamic_resources" => {
                    let note =
                        "what a control plane says is not in the file: `sixfold envoy` follows it as it is";
                    part.manual("dynamic_resources", place, note);
                }
                "tracing" => part.unsupported("tracing", place, "there is no tracing of APISIX's routes"),
                "overload_manager" => {
                    part.unsupported("overload_manager", place, "see docs/reference/limits.md")
                }
                "stats_sinks" => part.manual("stats_sinks", place, "write the plugin prometheus"),
                "layered_runtime" | "runtime" => {
                    part.approximate(&entry.key, place, "defaults are taken in place of what runtime says");
                }
                key if WITHOUT_EFFECT.contains(&key) => part.exact(key),
                key => part.unknown(key, place),
            }
        }
        self.out.take(part);
        for entry in field(root, "static_resources").into_iter().flat_map(fields) {
            if !matches!(entry.key.as_str(), "listeners" | "clusters") {
                let mut part = Part::new("static_resources", &self.file, entry.key_place);
                part.manual(&entry.key, entry.key_place, "write what it is used for");
                self.out.take(part);
            }
        }
    }

    /// Clusters that no route leads to.
    fn clusters_left(&mut self) {
        for (name, node) in self.clusters.clone() {
            if !self.used.contains(&name) {
                let mut part = self.part(format!("cluster \"{name}\""), &node);
                part.exact("no route leads to it");
                self.out.take(part);
            }
        }
    }

    fn finish(&mut self, routes: Vec<Value>) {
        let upstreams = std::mem::take(&mut self.upstreams).into_iter().map(|(id, upstream)| {
            let mut whole = Map::from_iter([("id".to_owned(), Value::from(id))]);
            whole.extend(upstream);
            Value::Object(whole)
        });
        let upstreams = upstreams.collect();
        self.out.section("upstreams", upstreams);
        self.out.section("routes", routes);
        self.out.section("ssls", std::mem::take(&mut self.ssls));
        self.out.section("stream_routes", std::mem::take(&mut self.stream_routes));
        let Ports { plain, tls, streams } = std::mem::take(&mut self.ports);
        let ssl = match tls.is_empty() {
            true => json!({"enable": false}),
            false => json!({"enable": true, "listen": tls}),
        };
        let mut apisix = json!({"router": {"http": "radixtree_host_uri"}, "node_listen": plain, "ssl": ssl});
        if let (false, Value::Object(apisix)) = (streams.is_empty(), &mut apisix) {
            apisix.insert("proxy_mode".to_owned(), "http&stream".into());
            apisix.insert("stream_proxy".to_owned(), json!({"tcp": streams}));
        }
        self.out.config.insert("apisix".to_owned(), apisix);
        self.out.finish();
    }
}

/// Envoy's names of fields as they are in its messages, where JSON's spelling is used.
fn in_snake_case(node: &mut Node) {
    match &mut node.value {
        Written::Array(items) => items.iter_mut().for_each(in_snake_case),
        Written::Object(object) => {
            let mut entries = std::mem::take(object).into_entries();
            for entry in &mut entries {
                in_snake_case(&mut entry.value);
                if entry.key.bytes().all(|byte| byte.is_ascii_alphanumeric())
                    && entry.key.starts_with(|char: char| char.is_ascii_lowercase())
                {
                    entry.key = snake(&entry.key);
                }
            }
            *object = Object::new(entries).unwrap_or_default();
        }
        _ => {}
    }
}

fn snake(name: &str) -> String {
    name.chars().fold(String::new(), |mut text, char| {
        if char.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(char.to_ascii_lowercase());
        text
    })
}

/// The last part of a type's name: `HttpConnectionManager`.
fn type_of(node: &Node) -> String {
    let name = text_of(node, "@type").unwrap_or_default();
    name.rsplit('.').next().unwrap_or_default().to_owned()
}

/// Address and port of a `socket_address`.
fn socket_address(node: &Node) -> Option<(String, u16)> {
    let address = field(node, "socket_address")?;
    let port = document::whole_of(address, "port_value").and_then(|port| u16::try_from(port).ok())?;
    Some((text_of(address, "address").unwrap_or_default(), port))
}

/// Seconds of a duration: `1.5s`, a number, or `{seconds, nanos}`.
fn duration(node: &Node) -> Option<f64> {
    if node.as_object().is_some() {
        let of = |name: &str| document::number_of(node, name).unwrap_or(0.0);
        return Some(of("seconds") + of("nanos") / 1e9);
    }
    let text = document::text(node)?;
    text.strip_suffix('s').unwrap_or(&text).parse().ok()
}

fn duration_of(node: &Node, name: &str) -> Option<f64> {
    field(node, name).and_then(duration)
}

/// The text of a `DataSource`, its file read.
fn data(node: &Node, root: &Path) -> Option<String> {
    if let Some(text) = text_of(node, "inline_string") {
        return Some(text);
    }
    if let Some(name) = text_of(node, "environment_variable") {
        return Some(format!("$env://{name}"));
    }
    std::fs::read_to_string(root.join(text_of(node, "filename")?)).ok()
}

/// An enum's value in capitals.
fn word_of(node: &Node, name: &str) -> String {
    text_of(node, name).unwrap_or_default().to_ascii_uppercase().replace('-', "_")
}
