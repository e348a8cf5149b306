//! Looks at a whole configuration (`apisix/admin/config_validate.lua`).

use std::collections::HashSet;

use serde_json::{Map, Value};
use sixfold_core::document::{Format, Node, Options};

use super::check::{self, Subject};
use super::message::{AdminReply, AdminRequest, read_json};
use super::resource::id_text;
use crate::resource::Kind;
use crate::schema::lua_type;
use crate::source::Checker;

/// The lists of a configuration.
pub(super) const SECTIONS: &[&str] = &[
    "routes",
    "services",
    "upstreams",
    "consumers",
    "consumer_groups",
    "ssls",
    "global_rules",
    "plugin_configs",
    "plugin_metadata",
    "protos",
    "stream_routes",
    "secrets",
    "plugins",
];

/// What is wrong with a configuration.
#[derive(Debug)]
pub(super) struct Fault {
    section: &'static str,
    /// The id of the item and its place in the list, from 0.
    item: Option<(Value, usize)>,
    /// In APISIX's words.
    pub(super) reason: String,
    /// What is added to them where all faults are told.
    more: String,
}

impl Fault {
    pub(super) fn shown(self) -> Value {
        let mut shown = Map::new();
        shown.insert("resource_type".to_owned(), self.section.into());
        if let Some((id, index)) = self.item {
            shown.insert("resource_id".to_owned(), id);
            shown.insert("index".to_owned(), index.into());
        }
        shown.insert("error".to_owned(), format!("{}{}", self.reason, self.more).into());
        Value::Object(shown)
    }
}

/// The key of a list's version.
pub(super) fn version_key(section: &str) -> String {
    format!("{section}_conf_version")
}

/// The configuration in a body, of JSON or YAML.
pub(super) fn body(request: &AdminRequest, limit: usize) -> Result<Map<String, Value>, AdminReply> {
    let wrong = |reason: String| AdminReply::bad(format!("invalid request body: {reason}"));
    let body = request.bytes(limit)?.ok_or_else(|| wrong("empty request body".to_owned()))?;
    let yaml = request.header("content-type").is_some_and(|kind| kind.starts_with("application/yaml"));
    let value = if yaml {
        let options = Options { format: Format::Yaml, allow_empty: true, ..Options::default() };
        let read = std::str::from_utf8(body).ok().and_then(|text| Node::parse(text, &options).ok());
        read.map(|node| node.to_json())
            .filter(|value| value.is_object() || value.is_array())
            .ok_or_else(|| wrong("invalid yaml request body".to_owned()))?
    } else {
        read_json(body).map_err(|error| wrong(error.to_string()))?
    };
    match value {
        Value::Object(body) => Ok(body),
        // An empty list is an empty table.
        Value::Array(items) if items.is_empty() => Ok(Map::new()),
        _ => Err(wrong("expected an object".to_owned())),
    }
}

/// What is wrong, up to so many faults. What resources refer to is not looked for.
pub(super) fn faults(checker: &Checker, body: &Map<String, Value>, limit: usize) -> Vec<Fault> {
    let mut faults = Vec::new();
    for section in SECTIONS {
        let version = version_key(section);
        if let Some(value) = body.get(&version).filter(|value| !value.is_number()) {
            let reason = format!("{version} must be a number");
            let more = format!(", got {}", lua_type(value));
            faults.push(Fault { section, item: None, reason, more });
        }
        let items = body.get(*section).and_then(Value::as_array);
        let mut ids = HashSet::new();
        for (index, item) in items.into_iter().flatten().enumerate() {
            if faults.len() >= limit {
                return faults;
            }
            let id = item.get("id").or_else(|| item.get("username")).cloned().unwrap_or_else(|| "".into());
            let mut add = |reason: String| {
                let item = Some((id.clone(), index));
                faults.push(Fault { section, item, reason, more: String::new() });
            };
            if let Err(reason) = check_item(checker, section, item) {
                add(reason);
            }
            if let Some(reason) = duplicate(section, item, &mut ids) {
                add(reason);
            }
        }
    }
    faults
}

fn check_item(checker: &Checker, section: &str, item: &Value) -> Result<(), String> {
    let Some(kind) = Kind::from_section(section) else { return Ok(()) };
    let mut item = item.clone();
    if let Value::Object(item) = &mut item {
        item.shift_remove("modifiedIndex");
    }
    let id = item.get("id").and_then(id_text);
    let (kind, parent, id) = match (kind, id.as_deref()) {
        (Kind::Consumer, Some(id)) if id.contains("/credentials/") => {
            let (consumer, credential) = id.split_once("/credentials/").unwrap_or_default();
            (Kind::Credential, Some(consumer), Some(credential))
        }
        (Kind::Consumer, _) => (Kind::Consumer, None, None),
        (Kind::Secret, id) => {
            let id = id.unwrap_or("nil");
            let parts = id.split_once('/').ok_or_else(|| format!("invalid secret id: {id}"))?;
            (Kind::Secret, Some(parts.0), Some(parts.1))
        }
        (kind, id) => (kind, None, id),
    };
    if kind == Kind::Credential
        && let (Value::Object(item), Some(id)) = (&mut item, id)
    {
        // The schema has the credential's own alone.
        item.insert("id".to_owned(), id.into());
    }
    check::check(checker, None, &Subject { kind, id, parent }, &item)
}

fn duplicate(section: &str, item: &Value, ids: &mut HashSet<String>) -> Option<String> {
    let id = item.get("id").and_then(id_text);
    let (id, what) = match (section, id) {
        ("consumers", Some(id)) => (id, "credential id"),
        ("consumers", None) => (item.get("username").and_then(id_text)?, "username"),
        (_, id) => (id?, "id"),
    };
    let again = ids.contains(&id);
    let reason = again.then(|| format!("found duplicate {what} {id} in {section}"));
    ids.insert(id);
    reason
}
