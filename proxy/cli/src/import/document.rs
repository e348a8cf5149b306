//! Documents of YAML and JSON that are imported, and whose they are.

use super::Stop;
use crate::envoy::Text;
use serde_json::Value;
use sixfold_core::document::{self, Entry, Node, Options};
use sixfold_core::error::ConfigError;
use std::path::Path;
use std::sync::Arc;

/// A document with the name that its places have.
pub(super) struct Document {
    pub(super) file: Arc<str>,
    pub(super) root: Node,
}

/// Reads a document that is an object: of a key that is given twice the last one counts, as for most readers.
pub(super) fn read(path: &Path) -> Result<Document, Stop> {
    let document = read_any(path)?;
    match document.root.as_array() {
        Some(_) => Err(misuse(&document.file, "is an array, and no configuration")),
        None => Ok(document),
    }
}

/// Reads a document that is an object or a list.
pub(super) fn read_any(path: &Path) -> Result<Document, Stop> {
    let Text { text, name, .. } = text_of_file(path)?;
    if text.as_bytes().first().is_some_and(|byte| b"{[".contains(byte)) {
        // JSON is read as YAML too, but for tabs.
        if let Ok(root) = Node::parse(&text, &options("f.json")) {
            return Ok(Document { file: name.into(), root });
        }
    }
    match Node::parse(&text, &options(&name)) {
        Ok(root) if root.as_object().is_some() || root.as_array().is_some() || root.is_null() => {
            Ok(Document { file: name.into(), root })
        }
        Ok(_) if is_nginx(&text) => Err(other_kind(&name, "nginx.conf", "nginx")),
        Ok(root) => Err(misuse(&name, format!("is {}, and no configuration", root.kind()))),
        Err(_) if is_nginx(&text) => Err(other_kind(&name, "nginx.conf", "nginx")),
        Err(error) => Err(error.in_file(&name).into()),
    }
}

fn options(name: &str) -> Options {
    Options { allow_empty: true, last_key_counts: true, lenient: true, ..Options::for_file(name) }
}

fn is_nginx(text: &str) -> bool {
    let words = ["http {", "server {", "location ", "upstream ", "events {"];
    words.iter().any(|word| text.lines().any(|line| line.trim_start().starts_with(word)))
}

/// A file, as it is.
fn text_of_file(path: &Path) -> Result<Text, Stop> {
    Text::read(path).map_err(|unread| Stop::Misuse(unread.into()))
}

fn misuse(name: &str, reason: impl Into<String>) -> Stop {
    Stop::Misuse(ConfigError::new(reason).in_file(name).into())
}

fn other_kind(name: &str, what: &str, from: &str) -> Stop {
    misuse(name, format!("looks like {what}; try --from {from}"))
}

/// Keys at the top that tell whose a document is, the surest first.
const KEYS: [(&str, &str, &[&str]); 6] = [
    (
        "envoy",
        "an Envoy bootstrap",
        &["static_resources", "staticResources", "dynamic_resources", "dynamicResources", "layered_runtime"],
    ),
    ("kong", "Kong's declarative configuration", &["_format_version", "_info", "_workspace"]),
    ("apisix", "APISIX's config.yaml", &["deployment", "nginx_config", "apisix", "plugin_attr"]),
    (
        "apisix",
        "APISIX's resources",
        &["ssls", "global_rules", "stream_routes", "plugin_configs", "consumer_groups", "list", "kvs"],
    ),
    ("apisix", "APISIX's resources", &["routes", "services", "upstreams", "consumers", "plugin_metadata"]),
    ("envoy", "an Envoy bootstrap", &["admin", "node", "cluster_manager"]),
];

/// Refuses a document that is another program's, by what it looks like.
pub(super) fn is_of(document: &Document, wanted: &str, expected: &str) -> Result<(), Stop> {
    let has = |keys: &[&str]| keys.iter().any(|key| document.root.get(key).is_some());
    let found = KEYS.iter().find(|(_, _, keys)| has(keys));
    match found {
        Some((from, ..)) if *from == wanted => Ok(()),
        Some((from, what, _)) => Err(other_kind(&document.file, what, from)),
        None => Err(misuse(&document.file, format!("is not what is expected: {expected}"))),
    }
}

/// A look at a file before it is read as nginx's, which has no keys at its top.
pub(super) fn is_no_document(path: &Path) -> Result<(), Stop> {
    let Text { text, name, .. } = text_of_file(path)?;
    let Ok(root) = Node::parse(&text, &options(&name)) else { return Ok(()) };
    let has = |keys: &[&str]| keys.iter().any(|key| root.get(key).is_some());
    match KEYS.iter().find(|(_, _, keys)| has(keys)) {
        Some((from, what, _)) => Err(other_kind(&name, what, from)),
        None => Ok(()),
    }
}

/// The fields of an object that have a value.
pub(super) fn fields(node: &Node) -> impl Iterator<Item = &Entry> {
    let entries = node.as_object().map_or(&[][..], |object| object.entries());
    entries.iter().filter(|entry| !entry.value.is_null())
}

/// The value of a field, if it has one.
pub(super) fn field<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    node.get(name).filter(|value| !value.is_null())
}

/// A text, also of a number or a boolean.
pub(super) fn text(node: &Node) -> Option<String> {
    match &node.value {
        document::Value::String(text) => Some(text.clone()),
        document::Value::Number(number) => Some(number.to_string()),
        document::Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

pub(super) fn text_of(node: &Node, name: &str) -> Option<String> {
    field(node, name).and_then(text)
}

/// A number, also of a text.
pub(super) fn number(node: &Node) -> Option<f64> {
    match &node.value {
        document::Value::Number(number) => number.as_f64(),
        document::Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

pub(super) fn number_of(node: &Node, name: &str) -> Option<f64> {
    field(node, name).and_then(number)
}

/// A whole number, also of a text.
pub(super) fn whole_of(node: &Node, name: &str) -> Option<u64> {
    let number =
        number_of(node, name).filter(|number| number.fract() == 0.0 && (0.0..1e15).contains(number))?;
    format!("{number:.0}").parse().ok()
}

pub(super) fn truth(node: &Node) -> Option<bool> {
    match &node.value {
        document::Value::Bool(value) => Some(*value),
        _ => None,
    }
}

/// A boolean, or what is the default.
pub(super) fn truth_of(node: &Node, name: &str, default: bool) -> bool {
    field(node, name).and_then(truth).unwrap_or(default)
}

/// The items of a list; one value that is none is a list of itself.
pub(super) fn items(node: &Node) -> &[Node] {
    match &node.value {
        document::Value::Array(items) => items,
        document::Value::Null => &[],
        _ => std::slice::from_ref(node),
    }
}

pub(super) fn items_of<'n>(node: &'n Node, name: &str) -> &'n [Node] {
    field(node, name).map_or(&[], items)
}

pub(super) fn texts_of(node: &Node, name: &str) -> Vec<String> {
    items_of(node, name).iter().filter_map(text).collect()
}

/// Seconds of milliseconds, in a number that has no fraction if it needs none.
pub(super) fn seconds_of(milliseconds: f64) -> Value {
    seconds(milliseconds / 1000.0)
}

pub(super) fn seconds(seconds: f64) -> Value {
    match format!("{seconds:.0}").parse::<u64>() {
        Ok(whole) if seconds.fract() == 0.0 => whole.into(),
        _ => seconds.into(),
    }
}
