//! What is configured, and what is waited for.

use super::commands::json;
use super::{Admin, DumpRequest};
use crate::surface::{Query, Reply};
use http::StatusCode;
use regex::Regex;
use serde_json::{Value, json as object};

/// A pattern of all of a text, as RE2's full match. What is wrong in it is told of the pattern as it was given.
fn whole(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(pattern).and_then(|_| Regex::new(&format!("^(?:{pattern})$")))
}

/// `/config_dump` (server/admin/config_dump_handler.cc)
pub(super) fn config_dump(admin: &Admin, query: &Query) -> Reply {
    let plain = |status, body| Reply { content_type: "text/plain", ..Reply::text(status, body) };
    let given = |name: &str| query.get(name).filter(|value| !value.is_empty());
    let name_regex = match given("name_regex").map(whole).transpose() {
        Ok(pattern) => pattern,
        Err(error) => {
            let pattern = query.get("name_regex").unwrap_or_default();
            let reason = format!("INVALID_ARGUMENT: Error while parsing name_regex from {pattern}: {error}");
            return plain(StatusCode::BAD_REQUEST, reason);
        }
    };
    let request = DumpRequest {
        resource: given("resource").map(str::to_owned),
        mask: given("mask").map(str::to_owned),
        name_regex,
        include_eds: query.has("include_eds"),
    };
    match admin.control.config_dump(request) {
        Ok(write) => Reply { content_type: "application/json", ..Reply::written(write) },
        Err((status, reason)) => plain(status, reason),
    }
}

/// `/init_dump`: what has not come yet, by who waits for it (server/admin/init_dump_handler.cc).
pub(super) fn init_dump(admin: &Admin, query: &Query) -> Reply {
    let waiting = admin.control.waiting();
    let target = |kind: &str, name: &str| format!("target {kind}-init-target {name}");
    let clusters = waiting.clusters.iter().map(|name| target("Cluster", name));
    let listeners = waiting.listeners.iter().map(|name| target("Listener", name));
    let managers: Vec<(&str, Vec<String>)> = match query.get("mask").filter(|mask| !mask.is_empty()) {
        None => vec![("init manager Server", clusters.chain(listeners).collect())],
        Some("listener") => vec![("init manager Listener", listeners.collect())],
        Some(_) => Vec::new(),
    };
    let managers = managers.into_iter().filter(|(_, targets)| !targets.is_empty());
    let managers: Vec<Value> =
        managers.map(|(name, targets)| object!({"name": name, "target_names": targets})).collect();
    json(&if managers.is_empty() { object!({}) } else { object!({ "unready_targets_dumps": managers }) })
}
