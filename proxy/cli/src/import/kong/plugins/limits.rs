//! How much is let through, and what is answered here.

use super::{Made, Taken};
use crate::import::document::{field, fields, number_of, text_of, truth_of, whole_of};
use crate::import::pieces::mock_of;
use crate::import::written::{LIMIT_COUNT, MOCKING};
use serde_json::{Map, Value, json};
use sixfold_core::document::Entry;

/// Kong's windows in seconds: its month has 30 days, its year 365.
const WINDOWS: [(&str, u64); 6] = [
    ("second", 1),
    ("minute", 60),
    ("hour", 3600),
    ("day", 86_400),
    ("month", 2_592_000),
    ("year", 31_536_000),
];

pub(super) fn rate_limiting(taken: &mut Taken<'_>, made: &mut Made) {
    let config = &taken.plugin.config;
    let windows: Vec<(u64, u64)> = WINDOWS
        .iter()
        .filter_map(|(name, seconds)| Some((whole_of(config, name).filter(|count| *count > 0)?, *seconds)))
        .collect();
    let key = limited_by(taken);
    let rejected = text_of(config, "error_message").unwrap_or_else(|| "API rate limit exceeded".to_owned());
    let mut plugin = Map::from_iter([
        ("rejected_code".to_owned(), json!(whole_of(config, "error_code").unwrap_or(429))),
        ("rejected_msg".to_owned(), rejected.into()),
        ("show_limit_quota_header".to_owned(), (!truth_of(config, "hide_client_headers", false)).into()),
        ("allow_degradation".to_owned(), truth_of(config, "fault_tolerant", true).into()),
    ]);
    for entry in fields(config) {
        rate_field(taken, entry);
    }
    redis(taken, &mut plugin);
    let place = taken.plugin.node.place;
    match windows.as_slice() {
        [] => return,
        [(count, seconds)] => {
            plugin.insert("count".to_owned(), (*count).into());
            plugin.insert("time_window".to_owned(), (*seconds).into());
            plugin.insert("group".to_owned(), taken.group.as_str().into());
            let kind = if key.is_some() { "var" } else { "constant" };
            plugin.insert("key_type".to_owned(), kind.into());
            plugin.insert("key".to_owned(), key.unwrap_or_else(|| "service".to_owned()).into());
        }
        _ => {
            let key = key.map_or_else(|| "service".to_owned(), |key| format!("${{{key}}}"));
            let rule = |(count, seconds): &(u64, u64)| {
                let name = WINDOWS.iter().find(|(_, of)| of == seconds).map_or("", |(name, _)| name);
                // Rules are told apart by their keys.
                json!({"count": count, "time_window": seconds, "key": format!("{key}-{name}"), "header_prefix": name})
            };
            plugin.insert("rules".to_owned(), windows.iter().map(rule).collect());
            if taken.plugin.scope.route.is_none() {
                taken.part.approximate("counts", place, "several are counted for each route by itself");
            }
        }
    }
    taken.part.approximate(
        "windows",
        place,
        "a window begins with its first request, not with the clock's minute",
    );
    made.plugins.insert(LIMIT_COUNT.to_owned(), Value::Object(plugin));
}

/// The variable that clients are told apart by; `None` if they are not.
fn limited_by(taken: &mut Taken<'_>) -> Option<String> {
    let config = &taken.plugin.config;
    let given = text_of(config, "limit_by").unwrap_or_else(|| "consumer".to_owned());
    let place = field(config, "limit_by").map_or(taken.plugin.node.place, |node| node.place);
    let of_header = || text_of(config, "header_name").map(|name| name.to_ascii_lowercase().replace('-', "_"));
    match given.as_str() {
        "consumer" | "credential" if taken.authenticates => {
            if given == "credential" {
                taken.part.approximate(
                    "limit_by",
                    place,
                    "by consumer: all credentials of one count together",
                );
            }
            Some("consumer_name".to_owned())
        }
        // Whom nobody knows is told apart by address, as in Kong.
        "consumer" | "credential" | "ip" => Some("remote_addr".to_owned()),
        "service" => None,
        "header" => match of_header() {
            Some(name) => Some(format!("http_{name}")),
            None => Some("remote_addr".to_owned()),
        },
        _ => {
            taken.part.manual("limit_by", place, "by address: write `key`");
            Some("remote_addr".to_owned())
        }
    }
}

fn rate_field(taken: &mut Taken<'_>, entry: &Entry) {
    match entry.key.as_str() {
        "policy" if text_of(&taken.plugin.config, "policy").as_deref() == Some("cluster") => {
            let note = "each gateway counts by itself: for counts in common write `policy: redis`";
            taken.part.approximate("policy", entry.key_place, note);
        }
        "sync_rate" if number_of(&taken.plugin.config, "sync_rate").is_some_and(|rate| rate > 0.0) => {
            taken.part.approximate("sync_rate", entry.key_place, "redis is asked for each request");
        }
        key @ ("second"
        | "minute"
        | "hour"
        | "day"
        | "month"
        | "year"
        | "limit_by"
        | "policy"
        | "header_name"
        | "error_code"
        | "error_message"
        | "hide_client_headers"
        | "fault_tolerant"
        | "redis"
        | "sync_rate"
        | "path"
        | "redis_host"
        | "redis_port"
        | "redis_password"
        | "redis_username"
        | "redis_database"
        | "redis_timeout"
        | "redis_ssl"
        | "redis_ssl_verify"
        | "redis_server_name") => taken.part.exact(key),
        key => taken.part.unknown(key, entry.key_place),
    }
}

/// Where it is counted, of `redis` or, before 3.6, of `redis_*`.
fn redis(taken: &Taken<'_>, plugin: &mut Map<String, Value>) {
    let config = &taken.plugin.config;
    if text_of(config, "policy").as_deref() != Some("redis") {
        return;
    }
    let nested = field(config, "redis");
    let of = |name: &str| {
        nested.and_then(|nested| field(nested, name)).or_else(|| field(config, &format!("redis_{name}")))
    };
    plugin.insert("policy".to_owned(), "redis".into());
    for (name, own) in [
        ("host", "redis_host"),
        ("port", "redis_port"),
        ("username", "redis_username"),
        ("password", "redis_password"),
        ("database", "redis_database"),
        ("timeout", "redis_timeout"),
        ("ssl", "redis_ssl"),
        ("ssl_verify", "redis_ssl_verify"),
    ] {
        plugin.extend(of(name).map(|value| (own.to_owned(), value.to_json())));
    }
}

pub(super) fn request_termination(taken: &mut Taken<'_>, made: &mut Made) {
    let config = &taken.plugin.config;
    let status = whole_of(config, "status_code").and_then(|code| u16::try_from(code).ok()).unwrap_or(503);
    let mut kind = "application/json".to_owned();
    let mut body = text_of(config, "message").map_or_else(
        || "{\"message\":\"Service unavailable\"}".to_owned(),
        |message| json!({"message": message}).to_string(),
    );
    if let Some(given) = text_of(config, "body") {
        body = given;
        kind =
            text_of(config, "content_type").unwrap_or_else(|| "application/json; charset=utf-8".to_owned());
    }
    for entry in fields(config) {
        match entry.key.as_str() {
            key @ ("status_code" | "message" | "body" | "content_type") => taken.part.exact(key),
            "echo" if !truth_of(config, "echo", false) => taken.part.exact("echo"),
            "trigger" => {
                let note = "answers all requests: write `_meta.filter` of the plugin mocking";
                taken.part.manual("trigger", entry.key_place, note);
            }
            key => taken.part.unknown(key, entry.key_place),
        }
    }
    made.plugins.insert(MOCKING.to_owned(), mock_of(status, &body, &kind));
}
