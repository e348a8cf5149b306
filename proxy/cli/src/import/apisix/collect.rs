//! What the Admin API lists (both of its versions), and keys of an etcd.

use super::{Import, SECTIONS};
use crate::import::document::{field, fields, items, text_of};
use crate::import::report::Part;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sixfold_core::document::{Node, Options, Value};
use sixfold_core::error::Place;

/// How deep lists are looked for.
const MAX_DEPTH: usize = 6;

/// Whether it is what somebody has asked an APISIX or its etcd for.
pub(super) fn is_collected(root: &Node) -> bool {
    let is_list = |name: &str| field(root, name).is_some_and(|list| list.as_array().is_some());
    let is_answer = |node: &Node| field(node, "list").is_some() || field(node, "node").is_some();
    match &root.value {
        Value::Array(items) => items.iter().all(is_collected),
        Value::Object(object) => {
            is_list("list")
                || is_list("kvs")
                || field(root, "node").is_some_and(|node| node.get("key").is_some())
                || field(root, "key").is_some() && field(root, "value").is_some()
                || !object.is_empty()
                    && fields(root).all(|entry| section_of(&entry.key).is_some() && is_answer(&entry.value))
        }
        _ => false,
    }
}

fn section_of(name: &str) -> Option<&'static str> {
    // Version 2 has `ssl` and `proto`.
    let name = match name {
        "ssl" => "ssls",
        "proto" => "protos",
        name => name,
    };
    SECTIONS.iter().map(|(section, _)| *section).find(|section| *section == name)
}

/// Section and id of a key: `/apisix/routes/1`, `/apisix/consumers/jack/credentials/one`.
fn of_key(key: &str) -> Option<(&'static str, String)> {
    let parts: Vec<&str> = key.split('/').filter(|part| !part.is_empty()).collect();
    let at = parts.iter().position(|part| section_of(part).is_some())?;
    let id = parts.get(at + 1..).filter(|id| !id.is_empty())?;
    Some((section_of(parts.get(at)?)?, id.join("/")))
}

impl Import {
    pub(super) fn collect(&mut self, root: &Node) {
        self.collect_below(root, 0);
    }

    fn collect_below(&mut self, node: &Node, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        if let Some(of_list) = node.as_array() {
            return of_list.iter().for_each(|item| self.collect_below(item, depth + 1));
        }
        if let Some(pairs) = field(node, "kvs") {
            return items(pairs).iter().for_each(|pair| self.pair(pair));
        }
        if let (Some(key), Some(value)) = (text_of(node, "key"), field(node, "value")) {
            return self.resource(&key, value);
        }
        for name in ["list", "node", "nodes"] {
            if let Some(below) = field(node, name) {
                self.collect_below(below, depth + 1);
            }
        }
        for entry in fields(node) {
            if section_of(&entry.key).is_some() {
                self.collect_below(&entry.value, depth + 1);
            }
        }
    }

    fn resource(&mut self, key: &str, value: &Node) {
        if let Some((section, id)) = of_key(key) {
            return self.item(section, value, Some(id));
        }
        let mut part = Part::new(format!("key \"{key}\""), &self.file, value.place);
        if key.ends_with("/plugins") {
            part.manual("", value.place, "write the list into `plugins` of config.yaml");
        }
        self.out.take(part);
    }

    /// A key and a value of etcd, in base64.
    fn pair(&mut self, pair: &Node) {
        let decoded = |name: &str| String::from_utf8(STANDARD.decode(text_of(pair, name)?).ok()?).ok();
        let (Some(key), Some(text)) = (decoded("key"), decoded("value")) else { return };
        let Ok(mut value) = Node::parse(&text, &Options::for_file("value.json")) else { return };
        // Places within a value are none of the file's.
        put(&mut value, pair.place);
        if value.as_object().is_some() || key.ends_with("/plugins") {
            self.resource(&key, &value);
        }
    }
}

fn put(node: &mut Node, place: Place) {
    node.place = place;
    match &mut node.value {
        Value::Array(items) => items.iter_mut().for_each(|item| put(item, place)),
        Value::Object(object) => object.values_mut().for_each(|value| put(value, place)),
        _ => {}
    }
}
