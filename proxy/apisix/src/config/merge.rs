//! The user's config.yaml over the defaults, by APISIX's rules.

use sixfold_core::document::{Entry, Node, Object, Value};
use sixfold_core::error::ConfigError;

use super::Texts;

/// Objects merge key by key, arrays replace, null deletes. With it comes every value whose type differs from its
/// default's, in APISIX's words; of a variable the text counts where the default is one. Defaults have no places.
pub(super) fn merge(defaults: &Node, user: &Node, texts: &Texts) -> (Node, Vec<ConfigError>) {
    let defaults = Node::from_json(defaults.to_json());
    let mut merge = Merge { texts, path: Vec::new(), errors: Vec::new() };
    let merged = merge.node(&defaults, user);
    (merged, merge.errors)
}

struct Merge<'t> {
    texts: &'t Texts,
    path: Vec<String>,
    errors: Vec<ConfigError>,
}

impl Merge<'_> {
    fn node(&mut self, default: &Node, user: &Node) -> Node {
        match (&default.value, &user.value) {
            // An empty file or section, and an empty table of either kind, change nothing in an object.
            (Value::Object(_), Value::Null) if self.path.is_empty() => default.clone(),
            (Value::Object(_), Value::Array(items)) if items.is_empty() => default.clone(),
            (Value::Object(default), Value::Object(of_user)) => {
                Node { place: user.place, value: Value::Object(self.objects(default, of_user)) }
            }
            (default, value) if same_type(default, value) || exempt(&self.path) => user.clone(),
            (default, value) => {
                if let Some(text) = self.texts.of(user).filter(|_| matches!(default, Value::String(_))) {
                    return Node { place: user.place, value: text };
                }
                let message = format!(
                    "failed to merge, path[{}] expect: {}, but got: {}",
                    self.path.join("->"),
                    lua_type(default),
                    lua_type(value)
                );
                self.errors.push(ConfigError::field(&self.path.join("."), message).at(user.place));
                user.clone()
            }
        }
    }

    fn objects(&mut self, defaults: &Object, user: &Object) -> Object {
        let mut entries: Vec<Entry> = Vec::with_capacity(defaults.len() + user.len());
        for entry in defaults.entries() {
            let Some(of_user) = user.entry(&entry.key) else {
                entries.push(entry.clone());
                continue;
            };
            if of_user.value.is_null() {
                continue;
            }
            self.path.push(entry.key.clone());
            let value = self.node(&entry.value, &of_user.value);
            self.path.pop();
            entries.push(Entry { key: entry.key.clone(), key_place: of_user.key_place, value });
        }
        let own = user
            .entries()
            .iter()
            .filter(|entry| defaults.get(&entry.key).is_none() && !entry.value.is_null());
        entries.extend(own.cloned());
        // The keys of both objects are unique, so their union is.
        Object::new(entries).unwrap_or_default()
    }
}

/// Lua has one type for arrays and objects.
fn same_type(default: &Value, value: &Value) -> bool {
    lua_type(default) == lua_type(value)
}

/// The places where APISIX lets types differ.
fn exempt(path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    matches!(
        path.as_slice(),
        ["nginx_config", _, ..] | ["apisix", "node_listen"] | ["apisix", "data_encryption", "keyring"]
    )
}

fn lua_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) | Value::Object(_) => "table",
    }
}
