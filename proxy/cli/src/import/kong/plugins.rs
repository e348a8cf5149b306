//! Kong's plugins as APISIX's.

mod access;
mod limits;
mod logs;
mod transform;

use super::Import;
use super::entities::Plugin;
use crate::import::document::{fields, truth_of};
use crate::import::pieces::mock;
use crate::import::report::Part;
use crate::import::written::MOCKING;
use serde_json::{Map, Value};
use sixfold_core::document::{Node, Value as Written};
use std::collections::BTreeSet;

/// Plugins that only tell of requests: for all requests they are global rules.
pub(super) const OBSERVERS: &[&str] = &["prometheus", "http-log", "file-log", "correlation-id"];

/// Plugins that tell who asks.
pub(super) const AUTHENTICATE: &[&str] = &["key-auth", "key-auth-enc", "basic-auth", "jwt"];

/// Plugins without a counterpart that keep nobody out: what they are for, and what there is in their place.
const LEFT_OUT: &[(&str, &str)] = &[
    ("proxy-cache", "answers are not cached"),
    ("proxy-cache-advanced", "answers are not cached"),
    (
        "request-size-limiting",
        "there is one size for all: nginx_config.http.client_max_body_size of config.yaml",
    ),
    ("tcp-log", "write http-logger or file-logger"),
    ("udp-log", "write http-logger or file-logger"),
    ("syslog", "write http-logger or file-logger"),
    ("loggly", "write http-logger or file-logger"),
    ("kafka-log", "write http-logger or file-logger"),
    ("datadog", "write prometheus"),
    ("statsd", "write prometheus"),
    ("statsd-advanced", "write prometheus"),
    ("zipkin", "there is no tracing of APISIX's routes yet"),
    ("opentelemetry", "there is no tracing of APISIX's routes yet"),
    ("grpc-web", "`sixfold envoy` has grpc_web"),
    ("grpc-gateway", "`sixfold envoy` has grpc_json_transcoder"),
    ("session", "there are no sessions"),
    ("canary", "write traffic-split"),
    ("route-by-header", "write traffic-split"),
    ("upstream-timeout", "write `timeout` of the upstream"),
    ("rate-limiting-advanced", "write limit-count with `rules`"),
    ("response-ratelimiting", "answers are not counted"),
    ("response-transformer-advanced", "write response-rewrite"),
    ("aws-lambda", "there are no functions"),
    ("azure-functions", "there are no functions"),
];

/// Of those there is a counterpart, which is not written.
const MANUAL: &[&str] = &[
    "request-size-limiting",
    "tcp-log",
    "udp-log",
    "syslog",
    "loggly",
    "datadog",
    "statsd",
    "canary",
    "route-by-header",
    "upstream-timeout",
    "rate-limiting-advanced",
    "response-transformer-advanced",
];

/// What comes of plugins.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) plugins: Map<String, Value>,
    /// Of the proxy-rewrite, which paths are part of, too.
    pub(super) rewrite: Map<String, Value>,
    /// Whether something that may keep requests out was not taken over.
    pub(super) closed: bool,
    /// Plugins of a service, or of all requests.
    pub(super) wide: BTreeSet<String>,
}

impl Made {
    /// Has requests answered by 403 if something that may keep them out is missing.
    pub(super) fn close(&mut self) {
        if self.closed {
            self.plugins = Map::from_iter([(MOCKING.to_owned(), mock(403, ""))]);
        }
    }
}

/// A plugin that is taken over.
struct Taken<'p> {
    plugin: &'p Plugin,
    part: Part,
    /// Whether a plugin beside it tells who asks.
    authenticates: bool,
    /// What counts of it are shared by: its place in the file.
    group: String,
}

impl Import {
    /// What comes of plugins that run together.
    pub(super) fn made(&mut self, plugins: &[&Plugin], authenticates: bool) -> Made {
        let mut made = Made::default();
        for plugin in plugins {
            if !truth_of(&plugin.node, "enabled", true) {
                continue;
            }
            let what = format!("plugin {}{}", plugin.name, plugin.of);
            let mut part = self.part(what, &plugin.node);
            if AUTHENTICATE.contains(&plugin.name.as_str()) && !plugin.scope.is_of_everybody() {
                part.manual(
                    "",
                    plugin.node.place,
                    "who asks is known before the consumer is: write it at the route",
                );
                self.out.take(part);
                continue;
            }
            frame(plugin, &mut part);
            let group = format!("kong-{}-{}", plugin.name, plugin.node.place.line);
            let mut taken = Taken { plugin, part, authenticates, group };
            let known: BTreeSet<String> = made.plugins.keys().cloned().collect();
            self.take_over(&mut taken, &mut made);
            if plugin.scope.route.is_none() {
                made.wide.extend(made.plugins.keys().filter(|name| !known.contains(*name)).cloned());
            }
            self.out.take(taken.part);
        }
        made
    }

    fn take_over(&mut self, taken: &mut Taken<'_>, made: &mut Made) {
        match taken.plugin.name.as_str() {
            "key-auth" | "key-auth-enc" => access::key_auth(self, taken, made),
            "basic-auth" => access::basic_auth(self, taken, made),
            "jwt" => access::jwt(self, taken, made),
            "acl" => access::acl(self, taken, made),
            "ip-restriction" => access::ip_restriction(taken, made),
            "cors" => access::cors(taken, made),
            "rate-limiting" => {
                self.shows_limits |= !truth_of(&taken.plugin.config, "hide_client_headers", false);
                limits::rate_limiting(taken, made);
            }
            "request-termination" => limits::request_termination(taken, made),
            "request-transformer" | "request-transformer-advanced" => transform::request(taken, made),
            "response-transformer" => transform::response(taken, made),
            "correlation-id" => transform::correlation_id(taken, made),
            "prometheus" => logs::prometheus(taken, made),
            "http-log" => logs::http_log(taken, made),
            "file-log" => logs::file_log(taken, made),
            name => left_out(name, taken, made),
        }
    }

    /// Plugins for what nothing else is made of: of something that is not in the file, or of several things at once.
    pub(super) fn of_nowhere(&mut self) {
        for plugin in self.entities.plugins.clone() {
            let scope = plugin.scope;
            let places = [scope.service, scope.route, scope.consumer, scope.group];
            let what = format!("plugin {}{}", plugin.name, plugin.of);
            let mut part = self.part(what, &plugin.node);
            if places.contains(&Some(usize::MAX)) {
                part.manual("", plugin.node.place, "what it names is not in the file");
            } else if !truth_of(&plugin.node, "enabled", true) {
                part.exact("is off");
            } else if !scope.is_of_everybody() && !scope.is_of_consumer_alone() {
                let note = match keeps_out(&plugin.name) {
                    true => {
                        "lets in nobody there, for it is for a consumer and a route at once: write `_meta.filter`"
                    }
                    false => "for a consumer and a route at once: write `_meta.filter`",
                };
                part.manual("", plugin.node.place, note);
            } else {
                continue;
            }
            self.out.take(part);
        }
    }
}

/// Whether somebody may be kept out by a plugin, who is let in without it.
pub(super) fn keeps_out(name: &str) -> bool {
    const LETS_IN: &[&str] = &[
        "rate-limiting",
        "cors",
        "request-transformer",
        "request-transformer-advanced",
        "response-transformer",
    ];
    let is_left_out = LEFT_OUT.iter().any(|(known, _)| *known == name);
    !LETS_IN.contains(&name) && !OBSERVERS.contains(&name) && !is_left_out
}

/// The fields of a plugin beside its configuration.
fn frame(plugin: &Plugin, part: &mut Part) {
    for entry in fields(&plugin.node) {
        match entry.key.as_str() {
            "name" | "config" | "enabled" | "tags" | "id" | "service" | "route" | "consumer"
            | "consumer_group" | "created_at" | "updated_at" | "_config" | "run_on" | "instance_name"
            | "protocols" => {}
            "ordering" => part.manual("ordering", entry.key_place, "write `_meta.priority`"),
            key => part.unknown(key, entry.key_place),
        }
    }
    references(&plugin.config, part);
}

/// Values that are elsewhere and can't be had from there.
fn references(node: &Node, part: &mut Part) {
    match &node.value {
        Written::String(text) if text.contains("{vault://") || text.contains("${{") => {
            part.manual("config", node.place, format!("{text}: write the value, or `$env://NAME`"));
        }
        Written::Array(items) => items.iter().for_each(|item| references(item, part)),
        Written::Object(object) => object.entries().iter().for_each(|entry| references(&entry.value, part)),
        _ => {}
    }
}

/// A plugin that is not taken over: what may be a guard closes its routes.
fn left_out(name: &str, taken: &mut Taken<'_>, made: &mut Made) {
    let place = taken.plugin.node.place;
    match LEFT_OUT.iter().find(|(known, _)| *known == name) {
        Some((_, note)) if MANUAL.contains(&name) => taken.part.manual("", place, *note),
        Some((_, note)) => taken.part.unsupported("", place, *note),
        None => {
            made.closed = true;
            let note = match name {
                "bot-detection" => "lets in nobody: write `vars` over http_user_agent",
                "pre-function" | "post-function" => {
                    "lets in nobody: what of Lua can be said otherwise is in docs/plugins/without-lua.md"
                }
                "hmac-auth"
                | "ldap-auth"
                | "oauth2"
                | "openid-connect"
                | "oauth2-introspection"
                | "mtls-auth"
                | "ldap-auth-advanced"
                | "vault-auth"
                | "saml"
                | "jwt-signer" => "lets in nobody: write key-auth, basic-auth, jwt-auth or forward-auth",
                _ => {
                    "lets in nobody, for it may keep requests out: write what does the same, or take it away"
                }
            };
            taken.part.manual("", place, note);
        }
    }
}
