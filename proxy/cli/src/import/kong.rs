//! Kong's declarative configuration (`kong.yml`, decK's files): `_format_version` 1.1, 2.1 and 3.0.
//!
//! Routes are in the order of Kong's traditional router (`kong/router/transform.lua`), paths those of `get_upstream_uri`
//! (`kong/router/utils.lua`).

mod consumer;
mod entities;
mod names;
mod plugins;
mod route;
mod service;
mod upstream;

use super::Stop;
use super::document::{self, fields, text_of};
use super::pieces::Ids;
use super::report::{Imported, Part};
use super::written::LIMIT_COUNT;
use entities::{Entities, Scope};
use serde_json::{Map, Value, json};
use sixfold_core::document::Node;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What is known while the file is read.
struct Import {
    out: Imported,
    file: Arc<str>,
    entities: Entities,
    ids: Ids,
    /// Ids of upstreams by their name in Kong.
    upstreams: BTreeMap<String, Value>,
    /// Consumers' names here, by their place in the list.
    consumers: Vec<String>,
    /// Whether some count is shown under Kong's names.
    shows_limits: bool,
}

/// Reads a file.
///
/// # Errors
/// A file that can't be read, is no YAML or JSON, or another program's.
pub(super) fn import(path: &Path) -> Result<Imported, Stop> {
    let document = document::read(path)?;
    document::is_of(
        &document,
        "kong",
        "Kong's declarative configuration (_format_version, services, routes)",
    )
    .or_else(|error| match is_bare(&document.root) {
        true => Ok(()),
        false => Err(error),
    })?;
    let mut out = Imported::default();
    let entities = Entities::of(&document, &mut out);
    let mut import = Import {
        out,
        file: document.file.clone(),
        entities,
        ids: Ids::default(),
        upstreams: BTreeMap::new(),
        consumers: Vec::new(),
        shows_limits: false,
    };
    import.all();
    Ok(import.out)
}

/// Whether it is Kong's without its version: what APISIX does not have tells.
fn is_bare(root: &Node) -> bool {
    let of = |list: &str, keys: &[&str]| {
        document::items_of(root, list).iter().any(|item| keys.iter().any(|key| item.get(key).is_some()))
    };
    of("services", &["routes", "url", "host"]) || of("routes", &["paths", "strip_path", "service"])
}

impl Import {
    fn all(&mut self) {
        self.name_consumers();
        self.of_nowhere();
        let mut services = self.services();
        let routes = self.routes(&mut services);
        let consumers = self.consumers();
        let groups = self.groups();
        let globals = self.global_rules();
        let ssls = self.certificates();
        let services: Vec<Value> = services.into_iter().filter_map(|service| service.resource).collect();
        let upstreams: Vec<Value> = std::mem::take(&mut self.upstreams).into_values().collect();
        for (section, items) in [
            ("upstreams", upstreams),
            ("services", services),
            ("routes", routes),
            ("consumers", consumers),
            ("consumer_groups", groups),
            ("global_rules", globals),
            ("ssls", ssls),
        ] {
            self.out.section(section, items);
        }
        if self.shows_limits {
            let names = json!({
                "id": LIMIT_COUNT, "limit_header": "RateLimit-Limit", "remaining_header": "RateLimit-Remaining",
                "reset_header": "RateLimit-Reset",
            });
            self.out.section("plugin_metadata", vec![names]);
        }
        // Kong's own ports, unless kong.conf has others.
        let apisix = json!({
            "router": {"http": "radixtree_uri"},
            "node_listen": [{"port": 8000}],
            "ssl": {"enable": true, "listen": [{"port": 8443}]},
        });
        self.out.config.insert("apisix".to_owned(), apisix);
        self.out.finish();
    }

    fn part(&self, what: impl Into<String>, node: &Node) -> Part {
        Part::new(what, &self.file, node.place)
    }

    /// What all requests are told of, whatever they are, unless something narrower has it too.
    fn global_rules(&mut self) -> Vec<Value> {
        let mut rules = Vec::new();
        for plugin in self.entities.plugins.clone() {
            if !self.is_global_rule(&plugin) {
                continue;
            }
            let made = self.made(&[&plugin], false);
            if !made.plugins.is_empty() {
                let id = self.ids.id(&format!("global-{}", plugin.name));
                rules.push(json!({"id": id, "plugins": made.plugins}));
            }
        }
        rules
    }

    fn is_global_rule(&self, plugin: &entities::Plugin) -> bool {
        plugin.scope == Scope::default()
            && plugins::OBSERVERS.contains(&plugin.name.as_str())
            && !self.entities.scopes.narrow.contains(&plugin.name)
    }

    /// `certificates` with their `snis`.
    fn certificates(&mut self) -> Vec<Value> {
        let mut ssls = Vec::new();
        let certificates = self.entities.certificates.clone();
        for (node, names) in &certificates {
            let id = self
                .ids
                .id(&text_of(node, "id").unwrap_or_else(|| format!("certificate-{}", ssls.len() + 1)));
            let mut part = self.part(format!("certificate \"{id}\""), node);
            let mut ssl = Map::from_iter([("id".to_owned(), Value::from(id))]);
            for entry in fields(node) {
                let place = entry.key_place;
                match entry.key.as_str() {
                    name @ ("cert" | "key") => {
                        ssl.insert(name.to_owned(), text_of(node, name).unwrap_or_default().into());
                        part.exact(name);
                    }
                    name @ ("snis" | "id" | "tags" | "created_at" | "updated_at") => part.exact(name),
                    name @ ("cert_alt" | "key_alt") => {
                        let list = if name == "cert_alt" { "certs" } else { "keys" };
                        ssl.insert(list.to_owned(), json!([text_of(node, name).unwrap_or_default()]));
                        part.exact(name);
                    }
                    name => part.unknown(name, place),
                }
            }
            let is_readable =
                |name: &str| text_of(node, name).is_some_and(|text| text.contains("-----BEGIN "));
            if !is_readable("cert") || !is_readable("key") {
                let note = "not PEM: left out: write an ssl with the certificate and its key";
                part.manual("cert", node.place, note);
            } else if names.is_empty() {
                part.manual(
                    "snis",
                    node.place,
                    "it has no name: write an ssl with the names that are asked for",
                );
            } else {
                ssl.insert("snis".to_owned(), json!(names));
                ssls.push(Value::Object(ssl));
            }
            self.out.take(part);
        }
        ssls
    }
}
