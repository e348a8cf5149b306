//! Consumers with their credentials and groups.

use super::Import;
use super::entities::{CREDENTIALS, Credential, name};
use crate::import::document::{field, fields, text_of};
use crate::import::pieces::named;
use crate::import::report::Part;
use serde_json::{Map, Value, json};
use sixfold_core::document::Node;
use std::collections::{HashMap, HashSet};

impl Import {
    /// What consumers are called here: letters, digits, `-` and `_`.
    pub(super) fn name_consumers(&mut self) {
        let mut taken = HashSet::new();
        for node in &self.entities.consumers {
            let base = named(&name(node), "-_", 200);
            let mut own = base.clone();
            let mut count = 2;
            while !taken.insert(own.clone()) {
                own = format!("{base}_{count}");
                count += 1;
            }
            self.consumers.push(own);
        }
    }

    /// Consumers, each with its credentials behind it.
    pub(super) fn consumers(&mut self) -> Vec<Value> {
        let mut found = Vec::new();
        let mut credentials: HashMap<usize, Vec<Credential>> = HashMap::new();
        for one in &self.entities.credentials {
            credentials.entry(one.consumer).or_default().push(one.clone());
        }
        for (at, node) in self.entities.consumers.clone().iter().enumerate() {
            let own = self.consumers.get(at).cloned().unwrap_or_default();
            let mut part = self.part(format!("consumer \"{}\"", name(node)), node);
            let mut consumer = Map::from_iter([("username".to_owned(), Value::from(own.as_str()))]);
            for entry in fields(node) {
                match entry.key.as_str() {
                    "username" if text_of(node, "username").as_deref() != Some(own.as_str()) => {
                        let note = format!("is {own}, also in X-Consumer-Username: others are not taken");
                        part.approximate("username", entry.key_place, note);
                    }
                    "custom_id" => {
                        let labels = json!({"custom_id": text_of(node, "custom_id")});
                        consumer.insert("labels".to_owned(), labels);
                        part.exact("custom_id");
                    }
                    key @ ("username" | "id" | "tags" | "plugins" | "created_at" | "updated_at"
                    | "groups" | "type") => {
                        part.exact(key);
                    }
                    key if CREDENTIALS.iter().any(|(list, _)| *list == key) => {}
                    key => part.unknown(key, entry.key_place),
                }
            }
            self.group_of(at, node, &mut part, &mut consumer);
            let scoped: Vec<_> = self.entities.plugins_of_consumer(at).cloned().collect();
            let mut made = self.made(&scoped.iter().collect::<Vec<_>>(), true);
            made.close();
            if !made.plugins.is_empty() {
                consumer.insert("plugins".to_owned(), Value::Object(made.plugins));
            }
            found.push(Value::Object(consumer));
            for (number, credential) in credentials.get(&at).into_iter().flatten().enumerate() {
                found.extend(self.credential(&own, number + 1, credential, &mut part));
            }
            self.out.take(part);
        }
        found
    }

    fn group_of(&self, at: usize, node: &Node, part: &mut Part, consumer: &mut Map<String, Value>) {
        let groups = self.entities.groups_of(at);
        let place = field(node, "groups").map_or(node.place, |node| node.place);
        if let Some(group) = groups.first().and_then(|first| self.entities.groups.get(*first)) {
            consumer.insert("group_id".to_owned(), named(&name(group), "-_.", 56).into());
        }
        if groups.len() > 1 {
            part.manual("groups", place, "in the first one: a consumer is in one group");
        }
    }

    /// A credential as an item of the consumers.
    fn credential(
        &mut self,
        consumer: &str,
        number: usize,
        one: &Credential,
        part: &mut Part,
    ) -> Option<Value> {
        let Credential { list, node, .. } = one;
        let of = |name: &str| text_of(node, name);
        let plugin = CREDENTIALS.iter().find(|(known, _)| known == list).map_or("", |(_, plugin)| plugin);
        let config = match *list {
            "acls" => {
                part.exact(&format!("acls {}", of("group").unwrap_or_default()));
                return None;
            }
            "keyauth_credentials" => json!({"key": of("key")}),
            "basicauth_credentials" => {
                let password = of("password").unwrap_or_default();
                let is_hash = password.len() == 40 && password.bytes().all(|byte| byte.is_ascii_hexdigit());
                if !self.entities.transforms || is_hash {
                    part.manual(list, node.place, "its password is hashed: write it, or a new one");
                    return None;
                }
                json!({"username": of("username"), "password": password})
            }
            "jwt_secrets" => self.jwt_secret(node, part)?,
            _ => {
                part.unsupported(list, node.place, "there is no plugin for it");
                return None;
            }
        };
        if config.as_object().is_some_and(|config| config.values().any(Value::is_null)) {
            part.manual(list, node.place, "Kong makes up what is not there: write it");
            return None;
        }
        for entry in fields(node) {
            const KNOWN: &[&str] = &[
                "id",
                "key",
                "username",
                "password",
                "secret",
                "algorithm",
                "rsa_public_key",
                "tags",
                "consumer",
                "created_at",
            ];
            match entry.key.as_str() {
                "ttl" => {
                    part.manual(&format!("{list}.ttl"), entry.key_place, "it does not end: take it away then")
                }
                key if KNOWN.contains(&key) => {}
                key => part.unknown(&format!("{list}.{key}"), entry.key_place),
            }
        }
        part.exact(list);
        let plugins = Map::from_iter([((*plugin).to_owned(), config)]);
        Some(json!({"id": format!("{consumer}/credentials/{number}"), "plugins": plugins}))
    }

    fn jwt_secret(&self, node: &Node, part: &mut Part) -> Option<Value> {
        let of = |name: &str| text_of(node, name);
        let algorithm = of("algorithm").unwrap_or_else(|| "HS256".to_owned());
        let Some(key) = of("key") else {
            part.manual("jwt_secrets", node.place, "Kong makes up its key: write it");
            return None;
        };
        if algorithm.starts_with("HS") {
            let mut made = json!({"key": key, "secret": of("secret"), "algorithm": algorithm});
            if self.entities.encodes_secrets
                && let Some(made) = made.as_object_mut()
            {
                made.insert("base64_secret".to_owned(), true.into());
            }
            return Some(made);
        }
        Some(json!({"key": key, "algorithm": algorithm, "public_key": of("rsa_public_key")}))
    }

    /// `consumer_groups` with their plugins.
    pub(super) fn groups(&mut self) -> Vec<Value> {
        let mut found = Vec::new();
        for (at, node) in self.entities.groups.clone().iter().enumerate() {
            let mut part = self.part(format!("consumer group \"{}\"", name(node)), node);
            for entry in fields(node) {
                match entry.key.as_str() {
                    key
                    @ ("name" | "id" | "tags" | "plugins" | "consumers" | "created_at" | "updated_at") => {
                        part.exact(key)
                    }
                    key => part.unknown(key, entry.key_place),
                }
            }
            let scoped = self.entities.plugins.iter().filter(|plugin| plugin.scope.group == Some(at));
            let scoped: Vec<_> =
                scoped.filter(|plugin| plugin.scope.is_of_consumer_alone()).cloned().collect();
            let mut made = self.made(&scoped.iter().collect::<Vec<_>>(), true);
            made.close();
            self.out.take(part);
            found.push(json!({"id": named(&name(node), "-_.", 56), "plugins": made.plugins}));
        }
        found
    }
}
