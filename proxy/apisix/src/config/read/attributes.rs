//! `plugin_attr`: what plugins are told for the whole process.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use sixfold_core::document::Value;

use super::{Field, Reader};
use crate::config::MetricsPage;

impl Reader<'_> {
    /// The attributes of each plugin, defaults among them.
    pub(super) fn plugin_attr(&mut self, field: &Field<'_>) -> BTreeMap<String, serde_json::Value> {
        let attributes = self.optional(field, "plugins' names with their settings", |value| match value {
            Value::Object(object) => {
                Some(object.entries().iter().map(|e| (e.key.clone(), e.value.to_json())).collect())
            }
            Value::Array(items) if items.is_empty() => Some(BTreeMap::new()),
            _ => None,
        });
        attributes.unwrap_or_default()
    }

    /// Reads what the prometheus plugin is told; the plugin itself takes it from the attributes once more.
    pub(super) fn prometheus(&mut self, field: &Field<'_>) -> Option<MetricsPage> {
        self.text(&field.key("metric_prefix"));
        let wanted = "a list of ascending numbers";
        self.optional(&field.key("default_buckets"), wanted, |value| match value {
            Value::Array(items) => {
                let bounds: Vec<f64> =
                    items.iter().map(|item| item.to_json().as_f64()).collect::<Option<_>>()?;
                (!bounds.is_empty() && bounds.is_sorted_by(|a, b| a < b)).then_some(())
            }
            _ => None,
        });
        for metric in ["http_status", "http_latency", "bandwidth"] {
            self.metric(&field.key("metrics").key(metric));
        }
        let address = self.server(&field.key("export_addr"));
        let path = self.optional(&field.key("export_uri"), "a path", |value| match value {
            Value::String(text) if text.starts_with('/') => Some(text.clone()),
            _ => None,
        });
        let address: SocketAddr = address?;
        self.flag(&field.key("enable_export_server")).then_some(MetricsPage { address, path: path? })
    }

    fn metric(&mut self, field: &Field<'_>) {
        self.optional(&field.key("expire"), "a number of seconds", |value| match value {
            Value::Number(number) => number.as_u64(),
            _ => None,
        });
        self.optional(&field.key("extra_labels"), "a list of labels, each with its value", |value| {
            let Value::Array(items) = value else { return None };
            let is_label = |value: &Value| match value {
                Value::Object(object) => object.entries().iter().all(|entry| entry.value.as_str().is_some()),
                _ => false,
            };
            items.iter().all(|item| is_label(&item.value)).then_some(())
        });
    }
}
