//! ADC's declarative files (`adc.yaml`): routes within services, credentials within consumers, objects of plugins.

use super::Import;
use crate::import::document::{field, fields, items, items_of, text_of};
use crate::import::pieces::{Ids, named};
use serde_json::{Map, Value, json};
use sixfold_core::document::Node;

/// Whether it has what an apisix.yaml does not have.
pub(super) fn is_adc(root: &Node) -> bool {
    let nested = |list: &str, names: &[&str]| {
        items_of(root, list).iter().any(|item| names.iter().any(|name| item.get(name).is_some()))
    };
    nested("services", &["routes", "stream_routes", "path_prefix"])
        || nested("consumers", &["credentials"])
        || nested("ssls", &["certificates"])
        || nested("consumer_groups", &["consumers"])
        || ["global_rules", "plugin_metadata"]
            .iter()
            .any(|name| field(root, name).is_some_and(|node| node.as_object().is_some()))
}

impl Import {
    pub(super) fn of_adc(&mut self, root: &Node) {
        let mut ids = Ids::default();
        for service in items_of(root, "services") {
            self.adc_service(service, &mut ids);
        }
        for upstream in items_of(root, "upstreams") {
            self.adc_item("upstreams", upstream, &mut ids);
        }
        for consumer in items_of(root, "consumers") {
            self.adc_consumer(consumer, None);
        }
        for group in items_of(root, "consumer_groups") {
            let id = self.adc_item("consumer_groups", group, &mut ids);
            for consumer in items_of(group, "consumers") {
                self.adc_consumer(consumer, Some(&id));
            }
        }
        for ssl in items_of(root, "ssls") {
            self.adc_ssl(ssl, &mut ids);
        }
        for list in ["global_rules", "plugin_metadata"] {
            for entry in field(root, list).into_iter().flat_map(fields) {
                let value = entry.value.to_json();
                let mut item = Map::from_iter([("id".to_owned(), Value::from(entry.key.as_str()))]);
                let section = if list == "global_rules" { "global_rules" } else { "plugin_metadata" };
                match value {
                    Value::Object(fields) if section == "plugin_metadata" => item.extend(fields),
                    value => drop(item.insert("plugins".to_owned(), json!({entry.key.as_str(): value}))),
                }
                self.push(section, &entry.value, item);
            }
        }
    }

    /// A resource with an id of its own, or of its name; answers it.
    fn adc_item(&mut self, section: &'static str, node: &Node, ids: &mut Ids) -> String {
        let (id, value) = described(node, ids, &["routes", "stream_routes", "consumers"]);
        self.push(section, node, value);
        id
    }

    fn adc_service(&mut self, node: &Node, ids: &mut Ids) {
        let kept = ["routes", "stream_routes", "path_prefix", "strip_path_prefix"];
        let (id, mut service) = described(node, ids, &kept);
        let of_upstream = |upstream: &Node, ids: &mut Ids| {
            let (_, mut upstream) = described(upstream, ids, &[]);
            upstream.remove("id");
            Value::Object(upstream)
        };
        if let Some(upstream) = field(node, "upstream") {
            service.insert("upstream".to_owned(), of_upstream(upstream, ids));
        }
        // Those that `traffic-split` chooses from, by id.
        service.remove("upstreams");
        self.push("services", node, service);
        for upstream in items_of(node, "upstreams") {
            self.adc_item("upstreams", upstream, ids);
        }
        let prefix = text_of(node, "path_prefix").unwrap_or_default();
        for (list, section) in [("routes", "routes"), ("stream_routes", "stream_routes")] {
            for route in items_of(node, list) {
                let (_, mut value) = described(route, ids, &[]);
                value.insert("service_id".to_owned(), id.as_str().into());
                if !prefix.is_empty()
                    && let Some(Value::Array(uris)) = value.get_mut("uris")
                {
                    uris.iter_mut().for_each(|uri| {
                        *uri = format!("{prefix}{}", uri.as_str().unwrap_or_default()).into()
                    });
                }
                self.push(section, route, value);
            }
        }
        if field(node, "strip_path_prefix").is_some()
            && let Some(service) = self.items.iter_mut().rev().find(|item| item.section == "services")
        {
            let note = "write `regex_uri` of the plugin proxy-rewrite";
            service.part.manual("strip_path_prefix", node.place, note);
        }
    }

    fn adc_consumer(&mut self, node: &Node, group: Option<&str>) {
        let name = named(&text_of(node, "username").unwrap_or_default(), "-_", 200);
        let (_, mut value) = described(node, &mut Ids::default(), &["credentials"]);
        value.remove("id");
        value.insert("username".to_owned(), name.as_str().into());
        if let Some(group) = group {
            value.insert("group_id".to_owned(), group.into());
        }
        self.push("consumers", node, value);
        for (at, credential) in items_of(node, "credentials").iter().enumerate() {
            let own = text_of(credential, "name").unwrap_or_else(|| (at + 1).to_string());
            let mut item = Map::from_iter([(
                "id".to_owned(),
                Value::from(format!("{name}/credentials/{}", named(&own, "-_.", 56))),
            )]);
            let config = field(credential, "config").map_or_else(|| json!({}), Node::to_json);
            let kind = text_of(credential, "type").unwrap_or_default();
            item.insert("plugins".to_owned(), json!({ kind: config }));
            self.push("consumers", credential, item);
        }
    }

    fn adc_ssl(&mut self, node: &Node, ids: &mut Ids) {
        let (_, mut value) = described(node, ids, &["certificates"]);
        let of = |name: &str| -> Vec<String> {
            items_of(node, "certificates").iter().filter_map(|pair| text_of(pair, name)).collect()
        };
        let (certificates, keys) = (of("certificate"), of("key"));
        let halves = |list: &[String]| list.split_first().map(|(first, rest)| (first.clone(), rest.to_vec()));
        if let (Some((cert, certs)), Some((key, keys))) = (halves(&certificates), halves(&keys)) {
            value.insert("cert".to_owned(), cert.into());
            value.insert("key".to_owned(), key.into());
            if !certs.is_empty() {
                value.insert("certs".to_owned(), json!(certs));
                value.insert("keys".to_owned(), json!(keys));
            }
        }
        self.push("ssls", node, value);
    }
}

/// Id and fields of a resource, without those and with `desc` for `description`.
fn described(node: &Node, ids: &mut Ids, without: &[&str]) -> (String, Map<String, Value>) {
    let first = || items(node).first().and_then(|_| text_of(node, "snis"));
    let name = text_of(node, "id").or_else(|| text_of(node, "name")).or_else(first);
    let id = ids.id(&name.unwrap_or_else(|| format!("line-{}", node.place.line)));
    let mut value = Map::from_iter([("id".to_owned(), Value::from(id.as_str()))]);
    for entry in fields(node).filter(|entry| !without.contains(&entry.key.as_str()) && entry.key != "id") {
        let key = if entry.key == "description" { "desc" } else { &entry.key };
        value.insert(key.to_owned(), entry.value.to_json());
    }
    (id, value)
}
