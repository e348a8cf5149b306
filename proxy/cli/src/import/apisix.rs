//! APISIX's own configuration: config.yaml, apisix.yaml, what its Admin API or etcd holds, and ADC's files. What is not taken
//! here is taken out, and named.

mod adc;
mod collect;
mod settle;

use super::Stop;
use super::document::{self, field, fields, text_of};
use super::report::{Imported, Part};
use serde_json::{Map, Value};
use sixfold_core::document::Node;
use std::path::Path;
use std::sync::Arc;

/// Lists of resources, with what one of each is called.
const SECTIONS: [(&str, &str); 12] = [
    ("routes", "route"),
    ("services", "service"),
    ("upstreams", "upstream"),
    ("ssls", "ssl"),
    ("plugin_configs", "plugin config"),
    ("consumers", "consumer"),
    ("consumer_groups", "consumer group"),
    ("global_rules", "global rule"),
    ("stream_routes", "stream route"),
    ("plugin_metadata", "metadata of plugin"),
    ("protos", "proto"),
    ("secrets", "secret"),
];

/// A resource, and where it comes from.
#[derive(Debug)]
struct Item {
    section: &'static str,
    value: Map<String, Value>,
    /// As it was written.
    node: Node,
    part: Part,
}

/// What is written, until it is what `validate` takes.
pub(super) struct Import {
    pub(super) out: Imported,
    file: Arc<str>,
    items: Vec<Item>,
    /// The config.yaml, if there is one, with the name and the places that it has.
    config: Option<(Arc<str>, Node, Part)>,
}

/// Reads a file, and the resources beside a config.yaml that has them in a file.
///
/// # Errors
/// A file that can't be read, is no YAML or JSON, or another program's.
pub(super) fn import(path: &Path) -> Result<Import, Stop> {
    let document = document::read_any(path)?;
    let mut import =
        Import { out: Imported::default(), file: document.file.clone(), items: Vec::new(), config: None };
    if collect::is_collected(&document.root) {
        import.collect(&document.root);
        import.write();
        return Ok(import);
    }
    let expected = "an apisix.yaml, a config.yaml, what the Admin API lists, keys of an etcd, or ADC's file";
    document::is_of(&document, "apisix", expected)?;
    match is_config(&document.root) {
        true => import.of_config(document, path)?,
        false => import.of_resources(&document.root),
    }
    import.write();
    Ok(import)
}

/// Whether it is a config.yaml: lists of resources are none.
fn is_config(root: &Node) -> bool {
    let has = |name: &str| root.get(name).is_some();
    let is_listed = SECTIONS.iter().any(|(section, _)| has(section));
    !is_listed && ["deployment", "apisix", "nginx_config", "plugin_attr"].iter().any(|name| has(name))
}

impl Import {
    fn of_resources(&mut self, root: &Node) {
        match adc::is_adc(root) {
            true => self.of_adc(root),
            false => self.of_lists(root),
        }
    }

    /// Lists of an apisix.yaml.
    fn of_lists(&mut self, root: &Node) {
        for entry in fields(root) {
            let Some((section, _)) = SECTIONS.iter().find(|(section, _)| *section == entry.key) else {
                let mut part = Part::new("file", &self.file, entry.key_place);
                match entry.key.as_str() {
                    "plugins" => part.manual("plugins", entry.key_place, "write it into config.yaml"),
                    key => part.approximate(key, entry.key_place, "is ignored, as by APISIX"),
                }
                self.out.take(part);
                continue;
            };
            for item in document::items(&entry.value) {
                self.item(section, item, None);
            }
        }
    }

    /// A config.yaml, and the resources beside it.
    fn of_config(&mut self, document: document::Document, path: &Path) -> Result<(), Stop> {
        let Value::Object(mut config) = document.root.to_json() else { return Ok(()) };
        let deployment = field(&document.root, "deployment");
        let role =
            deployment.and_then(|node| text_of(node, "role")).unwrap_or_else(|| "traditional".to_owned());
        let own = deployment.and_then(|node| field(node, &format!("role_{role}")));
        let provider = own.and_then(|own| text_of(own, "config_provider"));
        let name = match provider.as_deref() {
            Some("yaml") => Some("apisix.yaml"),
            Some("json") => Some("apisix.json"),
            _ => None,
        };
        let beside =
            name.map(|name| path.parent().unwrap_or(Path::new(".")).join(name)).filter(|path| path.exists());
        self.out.without_resources = true;
        if let Some(beside) = beside {
            let resources = document::read_any(&beside)?;
            self.file = resources.file.clone();
            self.of_resources(&resources.root);
            self.out.without_resources = false;
            let written = format!("role_{role}");
            if let Some(Value::Object(own)) =
                config.get_mut("deployment").and_then(|all| all.get_mut(written))
            {
                own.insert("config_provider".to_owned(), "yaml".into());
            }
        }
        let part = Part::new("config.yaml", &document.file, document.root.place);
        self.out.config = config;
        self.config = Some((document.file, document.root, part));
        Ok(())
    }

    /// Adds a resource as it was written, with the id that it has elsewhere.
    fn item(&mut self, section: &'static str, node: &Node, id: Option<String>) {
        let Value::Object(mut value) = node.to_json() else { return };
        value.retain(|_, value| !value.is_null());
        if let Some(id) = id {
            let key = if section == "consumers" && !id.contains('/') { "username" } else { "id" };
            value.insert(key.to_owned(), id.into());
        }
        self.push(section, node, value);
    }

    fn push(&mut self, section: &'static str, node: &Node, value: Map<String, Value>) {
        let kind = SECTIONS.iter().find(|(known, _)| *known == section).map_or(section, |(_, kind)| kind);
        let shown = |name: &str| match value.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let name = ["id", "username", "name", "uri"].iter().find_map(|name| shown(name));
        let name = name.map_or_else(String::new, |name| format!(" \"{name}\""));
        let kind = if name.contains("/credentials/") { "credential" } else { kind };
        let mut part = Part::new(format!("{kind}{name}"), &self.file, node.place);
        value.keys().for_each(|key| part.exact(key));
        self.items.push(Item { section, value, node: node.clone(), part });
    }

    /// Writes the lists of the result anew.
    fn write(&mut self) {
        self.out.resources.clear();
        for (section, _) in SECTIONS {
            let of = self.items.iter().filter(|item| item.section == section);
            self.out.section(section, of.map(|item| Value::Object(item.value.clone())).collect());
        }
        if self.config.is_none() {
            self.out.standalone();
        }
    }

    /// Tells what became of all parts, once they are as they stay.
    pub(super) fn finished(mut self) -> Imported {
        if let Some((_, root, mut part)) = self.config.take() {
            fields(&root)
                .filter(|entry| self.out.config.contains_key(&entry.key))
                .for_each(|entry| part.exact(&entry.key));
            self.out.take(part);
        }
        for item in self.items {
            self.out.take(item.part);
        }
        self.out.sort();
        self.out
    }
}
