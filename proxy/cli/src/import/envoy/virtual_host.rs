//! Virtual hosts with their routes, in their order.

use super::Import;
use super::filters::Filters;
use super::headers::Changes;
use super::listener::Manager;
use crate::import::document::{field, fields, items_of, text_of, texts_of, truth_of};
use crate::import::ordered::{Entry, Path};
use crate::import::pieces::{escape, mock};
use crate::import::report::Part;
use crate::import::written::{MOCKING, REDIRECT};
use serde_json::{Map, Value, json};
use sixfold_core::document::Node;

/// Routes for the same hosts, of which the first that fits is taken.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// None for those that are for all hosts.
    pub(super) names: Vec<String>,
    pub(super) entries: Vec<Entry>,
}

/// What a route has of the levels above it.
pub(super) struct Above<'n> {
    pub(super) manager: &'n Manager,
    pub(super) filters: &'n Filters,
    pub(super) table: &'n Node,
    pub(super) host: &'n Node,
}

impl Import {
    /// The routes of a route configuration; those for all hosts come last.
    pub(super) fn route_table(&mut self, table: &Node, manager: &Manager, filters: &Filters) -> Vec<Hosts> {
        let mut part = self
            .part(format!("route configuration \"{}\"", text_of(table, "name").unwrap_or_default()), table);
        for entry in fields(table) {
            match entry.key.as_str() {
                "name"
                | "virtual_hosts"
                | "validate_clusters"
                | "max_direct_response_body_size_bytes"
                | "internal_only_headers"
                | "request_headers_to_add"
                | "request_headers_to_remove"
                | "response_headers_to_add"
                | "response_headers_to_remove"
                | "typed_per_filter_config" => {
                    part.exact(&entry.key);
                }
                "most_specific_header_mutations_wins" if !truth_of(table, &entry.key, false) => {
                    part.exact(&entry.key)
                }
                "vhds" => part.manual(
                    "vhds",
                    entry.key_place,
                    "virtual hosts of a control plane are not in the file",
                ),
                key => part.unknown(key, entry.key_place),
            }
        }
        self.out.take(part);
        let mut found = Vec::new();
        for host in items_of(table, "virtual_hosts") {
            found.extend(self.virtual_host(&Above { manager, filters, table, host }));
        }
        // A name that begins like another goes before all hosts, whole names and endings have a place of their own.
        found.sort_by_key(|hosts: &Hosts| hosts.names.is_empty() && !is_conditional(hosts));
        found
    }

    fn virtual_host(&mut self, above: &Above<'_>) -> Vec<Hosts> {
        let node = above.host;
        let name = text_of(node, "name").unwrap_or_default();
        let mut part = self.part(format!("virtual host \"{name}\""), node);
        for entry in fields(node) {
            match entry.key.as_str() {
                "name"
                | "domains"
                | "routes"
                | "request_headers_to_add"
                | "request_headers_to_remove"
                | "response_headers_to_add"
                | "response_headers_to_remove"
                | "retry_policy"
                | "cors"
                | "typed_per_filter_config"
                | "require_tls"
                | "metadata"
                | "virtual_clusters" => part.exact(&entry.key),
                "include_request_attempt_count" | "include_attempt_count_in_response" => {
                    part.unsupported(&entry.key, entry.key_place, "the header is not sent");
                }
                "rate_limits" => {
                    part.unsupported("rate_limits", entry.key_place, "there is no rate limit service")
                }
                "request_mirror_policies" => {
                    part.unsupported(&entry.key, entry.key_place, "requests are not mirrored")
                }
                key => part.unknown(key, entry.key_place),
            }
        }
        let (plain, starts) = domains(node, &mut part);
        self.out.take(part);
        let mut entries = Vec::new();
        if matches!(super::word_of(node, "require_tls").as_str(), "ALL" | "EXTERNAL_ONLY") {
            entries.push(to_https(&name, above.manager));
        }
        for route in items_of(node, "routes") {
            entries.extend(self.route(route, above));
        }
        let mut found = Vec::new();
        if let Some(names) = plain {
            let mut own = entries.clone();
            if !names.is_empty() {
                own.extend(nothing(&name, &entries, above.manager, None));
            }
            found.push(Hosts { names, entries: own });
        }
        for start in starts {
            let condition = json!(["host", "~~", format!("^{}", escape(&start))]);
            let mut own = entries.clone();
            own.iter_mut().for_each(|entry| entry.vars.push(condition.clone()));
            own.extend(nothing(&name, &entries, above.manager, Some(condition)));
            found.push(Hosts { names: Vec::new(), entries: own });
        }
        found
    }
}

fn is_conditional(hosts: &Hosts) -> bool {
    let is_of_host = |var: &Value| var.get(0) == Some(&json!("host"));
    hosts.entries.first().is_some_and(|entry| entry.vars.iter().any(is_of_host))
}

/// Names and endings of names (none for all), and beginnings of names.
fn domains(node: &Node, part: &mut Part) -> (Option<Vec<String>>, Vec<String>) {
    let (mut names, mut starts, mut is_for_all) = (Vec::new(), Vec::new(), false);
    for domain in texts_of(node, "domains") {
        let bare = match domain.rsplit_once(':') {
            Some((bare, port))
                if port == "*" || port.bytes().all(|byte| byte.is_ascii_digit()) && !bare.ends_with(':') =>
            {
                // Most have the name without a port beside it.
                bare.to_owned()
            }
            _ => domain,
        };
        match bare.strip_suffix('*') {
            Some("") => is_for_all = true,
            Some(start) => starts.push(start.to_owned()),
            None if names.contains(&bare) => {}
            None => names.push(bare),
        }
    }
    if is_for_all && !names.is_empty() {
        let place = field(node, "domains").map_or(node.place, |node| node.place);
        part.approximate("domains", place, "all hosts, of which the names that stand beside `*` are some");
        names.clear();
    }
    let plain = is_for_all || !names.is_empty();
    (plain.then_some(names), starts)
}

/// What a host answers where none of its routes fits, unless one always does: other hosts' routes are not looked at.
fn nothing(name: &str, entries: &[Entry], manager: &Manager, condition: Option<Value>) -> Option<Entry> {
    let fits_always = |entry: &Entry| {
        entry.vars.len() == manager.vars.len() && entry.paths.contains(&Path::Prefix("/".to_owned()))
    };
    if entries.iter().any(fits_always) {
        return None;
    }
    let vars = manager.vars.iter().cloned().chain(condition).collect();
    let route = Map::from_iter([("plugins".to_owned(), json!({MOCKING: mock(404, "")}))]);
    Some(Entry { id: format!("{name}.none"), paths: vec![Path::Prefix("/".to_owned())], vars, route })
}

/// `require_tls`
fn to_https(name: &str, manager: &Manager) -> Entry {
    let plugins = json!({REDIRECT: {"uri": "https://$host$request_uri", "ret_code": 301}});
    let vars = manager.vars.iter().cloned().chain([json!(["scheme", "==", "http"])]).collect();
    Entry {
        id: format!("{name}.tls"),
        paths: vec![Path::Prefix("/".to_owned())],
        vars,
        route: Map::from_iter([("plugins".to_owned(), plugins)]),
    }
}

impl Above<'_> {
    /// Changes to headers of all levels: the narrowest is done first, so that of two that set one header the widest counts.
    pub(super) fn changes(&self, route: &Node, direction: &str, part: &mut Part) -> Changes {
        let mut changes = Changes::default();
        changes.take(route, direction, part, true);
        changes.take(self.host, direction, part, false);
        changes.take(self.table, direction, part, false);
        changes
    }
}
