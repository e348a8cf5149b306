//! `plugin_attr`: what plugins are told for the whole process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use sixfold_core::document::Value;

use super::{Field, Reader};
use crate::config::{LogRotate, MetricsPage};

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

    /// Reads how access logs are rotated; answers it where the plugin is listed.
    pub(super) fn log_rotate(&mut self, root: &Field<'_>) -> Option<LogRotate> {
        let field = root.key("plugin_attr").key("log-rotate");
        let interval =
            self.optional(&field.key("interval"), "a number of seconds above 0", |value| match value {
                Value::Number(number) => number.as_u64().filter(|seconds| *seconds > 0),
                _ => None,
            });
        let max_kept = self.optional(&field.key("max_kept"), "a number of files", |value| match value {
            Value::Number(number) => number.as_u64().and_then(|files| usize::try_from(files).ok()),
            _ => None,
        });
        // As in APISIX, nothing that is not above 0 is a size.
        let max_size = self.optional(&field.key("max_size"), "a number of bytes", |value| match value {
            Value::Number(number) => number.as_i64(),
            _ => None,
        });
        let enable_compression = self.flag(&field.key("enable_compression"));
        let plugins = root.key("plugins").items();
        let listed = |item: &Field<'_>| {
            item.node.is_some_and(|node| matches!(&node.value, Value::String(name) if name == "log-rotate"))
        };
        plugins.iter().any(listed).then_some(LogRotate {
            interval: Duration::from_secs(interval?),
            max_kept: max_kept?,
            max_size: max_size.and_then(|size| u64::try_from(size).ok()).filter(|size| *size > 0),
            enable_compression,
        })
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
