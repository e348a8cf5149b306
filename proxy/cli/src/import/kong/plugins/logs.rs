//! Who is told of requests.

use super::{Made, Taken};
use crate::import::document::{field, fields, number_of, seconds, text_of};
use crate::import::written::{FILE_LOGGER, HTTP_LOGGER, PROMETHEUS};
use serde_json::{Map, Value, json};

pub(super) fn prometheus(taken: &mut Taken<'_>, made: &mut Made) {
    let note = "the metrics have APISIX's names, and are on port 9091";
    taken.part.approximate("", taken.plugin.node.place, note);
    made.plugins.insert(PROMETHEUS.to_owned(), json!({"prefer_name": true}));
}

pub(super) fn http_log(taken: &mut Taken<'_>, made: &mut Made) {
    let config = &taken.plugin.config;
    let Some(uri) = text_of(config, "http_endpoint") else {
        return taken.part.manual("http_endpoint", taken.plugin.node.place, "write `uri` of http-logger");
    };
    let mut plugin = Map::from_iter([("uri".to_owned(), Value::from(uri))]);
    for entry in fields(config) {
        match entry.key.as_str() {
            key @ ("http_endpoint" | "keepalive") => taken.part.exact(key),
            "method" if text_of(config, "method").as_deref() == Some("POST") => taken.part.exact("method"),
            "content_type" if text_of(config, "content_type").is_some_and(|kind| kind.contains("json")) => {
                taken.part.exact("content_type");
            }
            "ssl_verify" => {
                plugin.insert("ssl_verify".to_owned(), entry.value.to_json());
                taken.part.exact("ssl_verify");
            }
            "timeout" => {
                let whole = number_of(config, "timeout").map_or(3.0, |time| (time / 1000.0).ceil().max(1.0));
                plugin.insert("timeout".to_owned(), seconds(whole));
                taken.part.exact("timeout");
            }
            "headers" => {
                let own = field(config, "headers").and_then(|headers| {
                    fields(headers).find(|entry| entry.key.eq_ignore_ascii_case("authorization"))
                });
                let value = own.and_then(|own| crate::import::document::items(&own.value).first()?.as_str());
                plugin.extend(value.map(|value| ("auth_header".to_owned(), value.into())));
                taken.part.approximate("headers", entry.key_place, "Authorization alone is sent");
            }
            "queue" | "retry_count" | "queue_size" | "flush_timeout" => {
                let note = "batches are those of http-logger's own settings";
                taken.part.approximate(&entry.key, entry.key_place, note);
            }
            "custom_fields_by_lua" => {
                taken.part.manual("custom_fields_by_lua", entry.key_place, "write `log_format_extra`");
            }
            key => taken.part.unknown(key, entry.key_place),
        }
    }
    taken.part.approximate(
        "entries",
        taken.plugin.node.place,
        "are those of http-logger: write `log_format`",
    );
    made.plugins.insert(HTTP_LOGGER.to_owned(), Value::Object(plugin));
}

pub(super) fn file_log(taken: &mut Taken<'_>, made: &mut Made) {
    let config = &taken.plugin.config;
    for entry in fields(config) {
        match entry.key.as_str() {
            key @ ("path" | "reopen") => taken.part.exact(key),
            "custom_fields_by_lua" => {
                taken.part.manual("custom_fields_by_lua", entry.key_place, "write `log_format_extra`");
            }
            key => taken.part.unknown(key, entry.key_place),
        }
    }
    let Some(path) = text_of(config, "path") else {
        return taken.part.manual("path", taken.plugin.node.place, "write `path` of file-logger");
    };
    taken.part.approximate(
        "entries",
        taken.plugin.node.place,
        "are those of file-logger: write `log_format`",
    );
    made.plugins.insert(FILE_LOGGER.to_owned(), json!({"path": path}));
}
