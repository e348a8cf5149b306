//! Which plugins are enabled.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// The plugins that are enabled, by name. Of a part that is `None` nothing is said: config.yaml enables all of those that the
/// gateway has then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnabledPlugins {
    /// Those of HTTP (`plugins`).
    pub http: Option<PluginNames>,
    /// Those of streams (`stream_plugins`).
    pub streams: Option<PluginNames>,
}

/// Names of plugins in the order in which they are listed. Lists with the same names are equal.
#[derive(Debug, Clone, Default)]
pub struct PluginNames(Vec<String>);

impl EnabledPlugins {
    /// None but those that are added.
    pub(crate) fn none() -> EnabledPlugins {
        EnabledPlugins { http: Some(PluginNames::default()), streams: Some(PluginNames::default()) }
    }

    /// Enables one more.
    pub(crate) fn add(&mut self, name: &str, of_streams: bool) {
        let part = if of_streams { &mut self.streams } else { &mut self.http };
        part.get_or_insert_default().0.push(name.to_owned());
    }

    /// Reads one list of both, as gateways of APISIX share it: `[{"name": "cors"}, {"name": "mqtt-proxy", "stream": true}]`.
    /// What is not in it is not enabled. `None` for what is no such list.
    pub(crate) fn of_list(text: &[u8]) -> Option<EnabledPlugins> {
        let listed: Vec<Value> = serde_json::from_slice(text).ok()?;
        let mut enabled = EnabledPlugins::none();
        for one in &listed {
            if let Some(name) = one.get("name").and_then(Value::as_str) {
                enabled.add(name, one.get("stream") == Some(&Value::Bool(true)));
            }
        }
        Some(enabled)
    }

    /// The list of both that [`EnabledPlugins::of_list`] reads.
    pub(crate) fn list(&self) -> String {
        let http = self.http.iter().flatten().map(|name| json!({ "name": name }));
        let streams = self.streams.iter().flatten().map(|name| json!({ "name": name, "stream": true }));
        Value::Array(http.chain(streams).collect()).to_string()
    }

    /// The same with the parts of `other` where nothing is said.
    #[must_use]
    pub(crate) fn or(self, other: &EnabledPlugins) -> EnabledPlugins {
        EnabledPlugins {
            http: self.http.or_else(|| other.http.clone()),
            streams: self.streams.or_else(|| other.streams.clone()),
        }
    }

    /// Whether something is said of either part.
    pub(crate) fn says_something(&self) -> bool {
        self.http.is_some() || self.streams.is_some()
    }
}

impl PluginNames {
    /// Whether this one is listed.
    pub fn contains(&self, name: &str) -> bool {
        self.place(name).is_some()
    }

    /// How many are listed before it.
    pub(crate) fn place(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|listed| listed == name)
    }
}

impl PartialEq for PluginNames {
    fn eq(&self, other: &PluginNames) -> bool {
        self.0.iter().collect::<BTreeSet<_>>() == other.0.iter().collect()
    }
}

impl Eq for PluginNames {}

impl<T: Into<String>> FromIterator<T> for PluginNames {
    fn from_iter<I: IntoIterator<Item = T>>(names: I) -> PluginNames {
        PluginNames(names.into_iter().map(Into::into).collect())
    }
}

impl<'a> IntoIterator for &'a PluginNames {
    type Item = &'a String;
    type IntoIter = std::slice::Iter<'a, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}
