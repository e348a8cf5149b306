//! Takes out of the result what `validate` refuses, until it takes all of it.

use super::Import;
use crate::import::Stop;
use crate::import::document::field;
use crate::import::pieces::mock;
use crate::import::report::Match;
use crate::import::target::Target;
use crate::import::written::MOCKING;
use serde_json::{Map, Value};
use sixfold_apisix::Findings;
use sixfold_core::document::Node;
use sixfold_core::error::{ConfigError, FaultKind, Place};
use std::path::Path;

/// Each round takes out what the one before has left.
const MAX_ROUNDS: usize = 16;

/// Plugins that may be left out without letting anybody in, with what there is in their place; nothing if there is nothing.
const LETS_NOBODY_IN: &[(&str, &str)] = &[
    ("zipkin", ""),
    ("skywalking", ""),
    ("opentelemetry", ""),
    ("node-status", "`sixfold status`, and the metrics"),
    ("server-info", "the control API"),
    ("log-rotate", "it into `plugins` of config.yaml (docs/reference/operations.md)"),
    ("error-log-logger", "the log of the process"),
    ("skywalking-logger", "http-logger or file-logger"),
    ("kafka-logger", "http-logger or file-logger"),
    ("rocketmq-logger", "http-logger or file-logger"),
    ("clickhouse-logger", "http-logger"),
    ("elasticsearch-logger", "http-logger"),
    ("loki-logger", "http-logger"),
    ("splunk-hec-logging", "http-logger"),
    ("google-cloud-logging", "http-logger"),
    ("tencent-cloud-cls", "http-logger"),
    ("sls-logger", "http-logger"),
    ("loggly", "http-logger"),
    ("lago", "http-logger"),
    ("tcp-logger", "http-logger or file-logger"),
    ("udp-logger", "http-logger or file-logger"),
    ("syslog", "http-logger or file-logger"),
    ("datadog", "prometheus"),
    ("proxy-mirror", ""),
    ("gzip", ""),
    ("brotli", ""),
    ("proxy-cache", ""),
    ("proxy-buffering", ""),
    ("proxy-control", ""),
    ("batch-requests", ""),
    ("api-breaker", "`checks.passive` of the upstream"),
    ("client-control", "nginx_config.http.client_max_body_size, which is for all"),
    ("body-transformer", "response-rewrite with `filters`"),
    ("grpc-transcode", "grpc_json_transcoder of `sixfold envoy`"),
    ("grpc-web", "grpc_web of `sixfold envoy`"),
    ("degraphql", "proxy-rewrite"),
    ("attach-consumer-label", ""),
    ("inspect", ""),
    ("ocsp-stapling", ""),
    ("gm", ""),
    ("ext-plugin-post-resp", "a plugin in Rust (docs/plugins/write-one.md)"),
];

/// What there is in the place of plugins that may keep somebody out.
const INSTEAD: &[(&str, &str)] = &[
    ("hmac-auth", "key-auth, jwt-auth or forward-auth"),
    ("ldap-auth", "basic-auth or forward-auth"),
    ("openid-connect", "jwt-auth or forward-auth"),
    ("authz-casdoor", "forward-auth"),
    ("authz-casbin", "consumer-restriction or forward-auth"),
    ("authz-keycloak", "forward-auth"),
    ("cas-auth", "forward-auth"),
    ("opa", "forward-auth"),
    ("wolf-rbac", "forward-auth"),
    ("multi-auth", "routes with one plugin each"),
    ("jwe-decrypt", "jwt-auth"),
    ("ua-restriction", "`vars` over http_user_agent"),
    ("referer-restriction", "`vars` over http_referer"),
    ("uri-blocker", "`vars` over uri, and the plugin mocking"),
    ("csrf", "forward-auth"),
    ("request-validation", "forward-auth"),
    ("workflow", "routes with `vars`"),
    ("serverless-post-function", "docs/plugins/without-lua.md"),
];

impl Import {
    /// Looks at what is written as `validate` does, and takes out what it refuses.
    ///
    /// # Errors
    /// A file that can't be written.
    pub(in crate::import) fn settle(&mut self, target: &Target) -> Result<(), Stop> {
        let config = target.config().display().to_string();
        for _ in 0..MAX_ROUNDS {
            target.write(&self.out)?;
            let Findings { errors, warnings } = target.look();
            let places = Places::of(&target.resources());
            let mut is_changed = false;
            for error in &errors {
                is_changed |= match error.file.as_deref() == Some(&*config) {
                    true => self.take_key_out(error),
                    false => self.take_out(error, &places),
                };
            }
            if !is_changed {
                self.odd(&warnings, &places, &config);
                return Ok(());
            }
            let (kept, left_out): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.items).into_iter().partition(|item| !item.value.is_empty());
            self.items = kept;
            for item in left_out {
                self.out.take(item.part.without_exact());
            }
            self.write();
        }
        Ok(())
    }

    /// Takes out what is wrong with a resource; answers whether something was.
    fn take_out(&mut self, error: &ConfigError, places: &Places) -> bool {
        let Some(at) = places.item(error.place) else { return false };
        let Some(item) = self.items.iter_mut().filter(|item| item.section == at.0).nth(at.1) else {
            return false;
        };
        let written = error.field.clone().unwrap_or_default();
        let place = place_of(&item.node, &written);
        let ConfigError { reason, kind, .. } = error;
        if *kind == FaultKind::UnsetVariable {
            item.part.manual(&written, place, format!("{reason}: set it where the gateway runs"));
            return false;
        }
        let plugin = written.strip_prefix("plugins.").and_then(|rest| {
            let plugins = item.value.get("plugins")?.as_object()?;
            plugins
                .keys()
                .find(|name| {
                    rest.strip_prefix(name.as_str())
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
                })
                .cloned()
        });
        match plugin {
            Some(plugin) => leave_plugin_out(item, &plugin, place, error),
            None if matches!(written.as_str(), "filter_func" | "script") => {
                item.value.remove(&written);
                item.part.not_exact(&written);
                close(item);
                item.part.manual(&written, place, format!("lets in nobody: {reason}"));
            }
            None => {
                item.value.clear();
                let field = if written.is_empty() { String::new() } else { written };
                item.part.add(Match::Manual, &field, place, format!("left out: {reason}"));
            }
        }
        true
    }

    /// Takes a key out of config.yaml.
    fn take_key_out(&mut self, error: &ConfigError) -> bool {
        let Some((_, root, part)) = &mut self.config else { return false };
        let written = error.field.clone().unwrap_or_default();
        let place = place_of(root, &written);
        if !remove(&mut self.out.config, &written) {
            return false;
        }
        part.manual(&written, place, format!("left out: {}", error.reason));
        true
    }

    /// What is taken, and odd.
    fn odd(&mut self, warnings: &[ConfigError], places: &Places, config: &str) {
        for warning in warnings {
            let written = warning.field.clone().unwrap_or_default();
            if warning.file.as_deref() == Some(config) {
                if let Some((_, root, part)) = &mut self.config {
                    part.approximate(&written, place_of(root, &written), warning.reason.clone());
                }
            } else if let Some((section, at)) = places.item(warning.place)
                && let Some(item) = self.items.iter_mut().filter(|item| item.section == section).nth(at)
            {
                item.part.approximate(&written, place_of(&item.node, &written), warning.reason.clone());
            }
        }
    }
}

/// Takes a plugin out: one that may keep somebody out leaves a door that is closed.
fn leave_plugin_out(item: &mut super::Item, name: &str, place: Place, error: &ConfigError) {
    let reason = &error.reason;
    if item.section == "stream_routes" {
        // Nothing answers 403 there: without the route there is no connection.
        item.value.clear();
        return item.part.manual(&format!("plugins.{name}"), place, format!("left out: {reason}"));
    }
    if let Some(Value::Object(plugins)) = item.value.get_mut("plugins") {
        plugins.remove(name);
    }
    let is_absent = error.kind == FaultKind::UnknownPlugin;
    let field = format!("plugins.{name}");
    match LETS_NOBODY_IN.iter().find(|(known, _)| *known == name).filter(|_| is_absent) {
        Some((_, "")) => item.part.unsupported(&field, place, reason.as_str()),
        Some((_, instead)) => item.part.manual(&field, place, format!("{reason}; write {instead}")),
        None => {
            close(item);
            let instead = INSTEAD.iter().find(|(known, _)| *known == name);
            let instead = instead.map_or_else(String::new, |(_, instead)| format!("; write {instead}"));
            item.part.manual(&field, place, format!("lets in nobody: {reason}{instead}"));
        }
    }
}

/// Has a resource answer 403 until somebody has written what is left to write.
fn close(item: &mut super::Item) {
    if matches!(
        item.section,
        "plugin_metadata" | "protos" | "secrets" | "stream_routes" | "ssls" | "upstreams"
    ) {
        return;
    }
    let plugins = item.value.entry("plugins").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(plugins) = plugins {
        plugins.insert(MOCKING.to_owned(), mock(403, ""));
    }
}

/// Removes the key of a path with dots.
fn remove(object: &mut Map<String, Value>, path: &str) -> bool {
    if object.remove(path).is_some() {
        return true;
    }
    for (at, _) in path.match_indices(['.', '[']) {
        let (Some(name), Some(rest)) = (path.get(..at), path.get(at + 1..)) else { continue };
        match object.get_mut(name) {
            Some(Value::Object(below)) => return remove(below, rest) || object.remove(name).is_some(),
            Some(_) => return object.remove(name).is_some(),
            None => {}
        }
    }
    false
}

/// Where the deepest part of a path stands in what somebody has written.
fn place_of(node: &Node, path: &str) -> Place {
    let (mut node, mut rest, mut place) = (node, path, node.place);
    'deeper: while !rest.is_empty() {
        // Names may have dots in them: the longest that is there.
        let ends = rest.match_indices(['.', '[']).map(|(at, _)| at).chain([rest.len()]);
        for end in ends.collect::<Vec<_>>().into_iter().rev() {
            let Some(name) = rest.get(..end) else { continue };
            let entry = node.as_object().and_then(|object| object.entry(name));
            if let (Some(entry), Some(below)) = (entry, field(node, name)) {
                (place, node) = (entry.key_place, below);
                rest = rest.get(end + 1..).unwrap_or_default();
                continue 'deeper;
            }
        }
        break;
    }
    if place.line == 0 { node.place } else { place }
}

/// Where items stand in the apisix.yaml that was written.
struct Places(Vec<(u32, &'static str, usize)>);

impl Places {
    fn of(file: &Path) -> Places {
        let root = std::fs::read_to_string(file)
            .ok()
            .and_then(|text| Node::parse_file_text(&text, "apisix.yaml").ok());
        let mut found = Vec::new();
        for (section, _) in super::SECTIONS {
            let items = root.as_ref().and_then(|root| field(root, section)).and_then(Node::as_array);
            for (at, item) in items.unwrap_or_default().iter().enumerate() {
                found.push((item.place.line, section, at));
            }
        }
        found.sort_unstable();
        Places(found)
    }

    fn item(&self, place: Option<Place>) -> Option<(&'static str, usize)> {
        let line = place?.line;
        let (_, section, at) = self.0.iter().rev().find(|(begin, ..)| *begin <= line)?;
        Some((section, *at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::plugins;

    /// Plugins that had come since were said not to be there.
    #[test]
    fn what_is_told_of_is_not_there_and_what_is_to_be_written_is() {
        let registry = plugins();
        let is_there = |name: &str| registry.apisix(name).is_some();
        for (name, instead) in LETS_NOBODY_IN.iter().chain(INSTEAD) {
            assert!(!is_there(name), "{name}");
            let looks_like_one = |word: &&str| word.ends_with("-logger") || word.ends_with("-auth");
            let named = instead.split([' ', ',']).filter(looks_like_one).find(|word| !is_there(word));
            assert_eq!(named, None, "of {name}");
        }
    }
}
