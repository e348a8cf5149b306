//! What is changed of requests and responses.

use super::{Made, Taken};
use crate::import::document::{field, fields, text_of, texts_of, truth_of};
use crate::import::written::{REQUEST_ID, RESPONSE_REWRITE};
use serde_json::{Map, Value, json};
use sixfold_core::document::Node;

/// `NAME:VALUE`
fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once(':').unwrap_or((text, ""));
    (name.trim().to_owned(), value.trim().to_owned())
}

/// A value with Kong's templates as variables; `None` if it has others.
fn value(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("$(") {
        let (inner, behind) = after.split_once(')')?;
        let (kind, name) = inner.trim().split_once('.')?;
        let is_name =
            |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        if !is_name(name) {
            return None;
        }
        let variable = match kind {
            "headers" => format!("${{http_{}}}", name.to_ascii_lowercase().replace('-', "_")),
            "query_params" => format!("${{arg_{name}}}"),
            _ => return None,
        };
        out.push_str(&literal(before));
        out.push_str(&variable);
        rest = behind;
    }
    out.push_str(&literal(rest));
    Some(out)
}

/// A text that has no variables.
fn literal(text: &str) -> String {
    text.replace('$', "\\$")
}

/// What is done to headers.
#[derive(Default)]
struct Headers {
    set: Map<String, Value>,
    add: Map<String, Value>,
    remove: Vec<String>,
}

impl Headers {
    /// `headers` of one of remove, rename, replace, add, append.
    fn take(&mut self, operation: &str, list: &[String], taken: &mut Taken<'_>, node: &Node) {
        let field = format!("{operation}.headers");
        let note = match operation {
            "add" => Some("is added where the header is there, too"),
            "replace" => Some("is set where the header is not there, too"),
            "rename" => Some("is set where the header is not there, too, to nothing"),
            _ => None,
        };
        for text in list {
            let (name, given) = pair(text);
            let Some(given) = value(&given) else {
                taken.part.manual(&field, node.place, format!("{text}: its template has no variable here"));
                continue;
            };
            match operation {
                "remove" => self.remove.push(name),
                "replace" => drop(self.set.insert(name, given.into())),
                "rename" => {
                    let variable = format!("$http_{}", name.to_ascii_lowercase().replace('-', "_"));
                    self.set.insert(given, variable.into());
                    self.remove.push(name);
                }
                _ => drop(self.add.insert(name, given.into())),
            }
        }
        match note {
            Some(note) => taken.part.approximate(&field, node.place, note),
            None => taken.part.exact(&field),
        }
    }
}

const OPERATIONS: [&str; 5] = ["remove", "rename", "replace", "add", "append"];

pub(super) fn request(taken: &mut Taken<'_>, made: &mut Made) {
    let config = &taken.plugin.config;
    let mut headers = Headers::default();
    for entry in fields(config) {
        match entry.key.as_str() {
            "http_method" => {
                made.rewrite
                    .extend(text_of(config, "http_method").map(|name| ("method".to_owned(), name.into())));
                taken.part.exact("http_method");
            }
            operation if OPERATIONS.contains(&operation) => {
                for part in fields(&entry.value) {
                    let list = texts_of(&entry.value, &part.key);
                    match part.key.as_str() {
                        _ if list.is_empty() => {}
                        "headers" => headers.take(operation, &list, taken, &part.value),
                        "uri" => {
                            replaced(list.first().map_or("", String::as_str), taken, part.key_place, made)
                        }
                        name => {
                            let name = format!("{operation}.{name}");
                            taken.part.unsupported(
                                &name,
                                part.key_place,
                                "queries and bodies are not changed",
                            );
                        }
                    }
                }
            }
            key => taken.part.unknown(key, entry.key_place),
        }
    }
    let mut changes = Map::new();
    if !headers.set.is_empty() {
        changes.insert("set".to_owned(), Value::Object(headers.set));
    }
    if !headers.add.is_empty() {
        changes.insert("add".to_owned(), Value::Object(headers.add));
    }
    if !headers.remove.is_empty() {
        changes.insert("remove".to_owned(), json!(headers.remove));
    }
    if !changes.is_empty() {
        made.rewrite.insert("headers".to_owned(), Value::Object(changes));
    }
}

/// `replace.uri`
fn replaced(given: &str, taken: &mut Taken<'_>, place: sixfold_core::error::Place, made: &mut Made) {
    match value(given).filter(|uri| uri.starts_with('/')) {
        Some(uri) => {
            made.rewrite.insert("uri".to_owned(), uri.into());
            taken.part.exact("replace.uri");
        }
        None => taken.part.manual("replace.uri", place, "write `regex_uri` of the plugin proxy-rewrite"),
    }
}

pub(super) fn response(taken: &mut Taken<'_>, made: &mut Made) {
    let config = &taken.plugin.config;
    let mut headers = Headers::default();
    for entry in fields(config) {
        for part in fields(&entry.value) {
            let list = texts_of(&entry.value, &part.key);
            match (entry.key.as_str(), part.key.as_str()) {
                _ if list.is_empty() => {}
                ("rename", _) => {
                    taken.part.unsupported("rename", part.key_place, "headers are set, added and removed")
                }
                (operation, "headers") if OPERATIONS.contains(&operation) => {
                    headers.take(operation, &list, taken, &part.value);
                }
                (operation, name) => {
                    let name = format!("{operation}.{name}");
                    taken.part.unsupported(&name, part.key_place, "JSON is not changed: see `filters`");
                }
            }
        }
        if entry.value.as_object().is_none() {
            taken.part.unknown(&entry.key, entry.key_place);
        }
    }
    let mut changes = Map::new();
    if !headers.set.is_empty() {
        changes.insert("set".to_owned(), Value::Object(headers.set));
    }
    if !headers.add.is_empty() {
        let lines =
            headers.add.iter().map(|(name, value)| format!("{name}: {}", value.as_str().unwrap_or_default()));
        changes.insert("add".to_owned(), lines.collect());
    }
    if !headers.remove.is_empty() {
        changes.insert("remove".to_owned(), json!(headers.remove));
    }
    if !changes.is_empty() {
        made.plugins.insert(RESPONSE_REWRITE.to_owned(), json!({"headers": changes}));
    }
}

pub(super) fn correlation_id(taken: &mut Taken<'_>, made: &mut Made) {
    let config = &taken.plugin.config;
    let generator = text_of(config, "generator").unwrap_or_else(|| "uuid#counter".to_owned());
    for entry in fields(config) {
        match entry.key.as_str() {
            key @ ("header_name" | "echo_downstream") => taken.part.exact(key),
            "generator" if generator == "uuid" => taken.part.exact("generator"),
            "generator" => {}
            key => taken.part.unknown(key, entry.key_place),
        }
    }
    if generator != "uuid" {
        let place = field(config, "generator").map_or(taken.plugin.node.place, |node| node.place);
        taken.part.approximate("generator", place, "is a UUID");
    }
    let name = text_of(config, "header_name").unwrap_or_else(|| "Kong-Request-ID".to_owned());
    let plugin = json!({
        "header_name": name, "algorithm": "uuid", "include_in_response": truth_of(config, "echo_downstream", false),
    });
    made.plugins.insert(REQUEST_ID.to_owned(), plugin);
}
