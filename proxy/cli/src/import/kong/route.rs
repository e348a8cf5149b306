//! Routes, in the order in which Kong looks at them.

use super::Import;
use super::entities::{Plugin, Route, Scope, name};
use super::plugins::{AUTHENTICATE, Made, OBSERVERS, keeps_out};
use super::service::Service;
use crate::import::document::{field, fields, items, text, text_of, texts_of, truth_of, whole_of};
use crate::import::ordered::{self, Entry, Path};
use crate::import::pieces::{escape, groups, hoist, mock, mock_of};
use crate::import::report::Part;
use crate::import::written::{MOCKING, PROXY_REWRITE, REDIRECT};
use serde_json::{Map, Value, json};
use sixfold_core::document::Node;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// What Kong looks at first: how many kinds of conditions there are, before 3.0 which, whether hosts are whole names, how
/// many headers there are, expressions, their priority, length (`get_priority`).
type Rank = (u32, u32, bool, usize, bool, u64, usize);

/// An entry before it has its place.
struct Ranked {
    rank: Rank,
    entry: Entry,
    service: Option<usize>,
    /// Plugins that are not the route's own.
    wide: BTreeSet<String>,
}

/// Hosts, or a condition in their place.
type Hosts = (Vec<String>, Option<Value>);

impl Import {
    pub(super) fn routes(&mut self, services: &mut [Service]) -> Vec<Value> {
        let mut ranked = Vec::new();
        for (at, route) in self.entities.routes.clone().iter().enumerate() {
            ranked.extend(self.route(at, route, services));
        }
        ranked.sort_by_key(|one| Reverse(one.rank));
        Self::share(&mut ranked, services);
        let entries: Vec<Entry> = ranked.into_iter().map(|one| one.entry).collect();
        ordered::routes(&entries, &mut self.ids)
    }

    /// Gives services what all their routes have of them.
    fn share(ranked: &mut [Ranked], services: &mut [Service]) {
        let mut of_services: BTreeMap<usize, Vec<&mut Ranked>> = BTreeMap::new();
        for one in ranked.iter_mut() {
            if let Some(service) = one.service {
                of_services.entry(service).or_default().push(one);
            }
        }
        for (at, routes) in of_services {
            let wide = routes.iter().map(|one| one.wide.clone());
            let names = wide.reduce(|names, wide| names.intersection(&wide).cloned().collect());
            let mut members: Vec<_> = routes
                .into_iter()
                .filter_map(|one| one.entry.route.get_mut("plugins")?.as_object_mut())
                .collect();
            let shared = hoist(&mut members, &names.unwrap_or_default());
            let resource =
                services.get_mut(at).and_then(|service| service.resource.as_mut()?.as_object_mut());
            if let Some(resource) = resource.filter(|_| !shared.is_empty()) {
                resource.insert("plugins".to_owned(), Value::Object(shared));
            }
        }
        for one in ranked {
            let is_empty = |plugins: &Value| plugins.as_object().is_some_and(Map::is_empty);
            if one.entry.route.get("plugins").is_some_and(is_empty) {
                one.entry.route.remove("plugins");
            }
        }
    }

    /// The entries of a route: one for each path, and for hosts that are told apart otherwise.
    fn route(&mut self, at: usize, route: &Route, services: &[Service]) -> Vec<Ranked> {
        let node = &route.node;
        let mut part = self.part(format!("route \"{}\"", name(node)), node);
        let service = route.service.and_then(|of| services.get(of));
        let is_served = route.service.is_none() || service.is_some_and(|service| service.resource.is_some());
        let protocols = texts_of(node, "protocols");
        let is_http = protocols.is_empty()
            || protocols
                .iter()
                .any(|one| matches!(one.as_str(), "http" | "https" | "grpc" | "grpcs" | "ws" | "wss"));
        if !is_http || !is_served || field(node, "expression").is_some() {
            let place = field(node, "expression").map_or(node.place, |node| node.place);
            match (is_http, is_served) {
                (false, _) => {
                    part.manual("protocols", place, "write stream_routes (docs/reference/streams.md)")
                }
                (_, false) => part.exact("is not served, as its service is not"),
                _ => part.manual("expression", place, "write uri, hosts and vars of a route"),
            }
            self.out.take(part);
            return Vec::new();
        }
        for entry in fields(node) {
            route_field(&mut part, &entry.key, entry.key_place);
        }
        let effective = self.effective(at, route.service);
        let authenticates = effective.iter().any(|plugin| AUTHENTICATE.contains(&plugin.name.as_str()));
        let mut made = self.made(&effective.iter().collect::<Vec<_>>(), authenticates);
        let own_service = route.service.and_then(|of| self.entities.services.get(of));
        let is_chained = |node: &Node| field(node, "filter_chains").is_some();
        made.closed |= self.entities.chained || is_chained(node) || own_service.is_some_and(is_chained);
        made.closed |= self.entities.plugins_of_route(at, route.service).iter().any(|plugin| {
            let is_on = truth_of(&plugin.node, "enabled", true);
            let is_of_some = !plugin.scope.is_of_everybody() && !plugin.scope.is_of_consumer_alone();
            is_of_some && is_on && keeps_out(&plugin.name)
        });
        let ranked = self.entries(node, route.service, service, &made, &mut part);
        self.out.take(part);
        ranked
    }

    /// The plugins that run for a route: of one name the narrowest.
    fn effective(&self, at: usize, service: Option<usize>) -> Vec<Plugin> {
        let mut found: Vec<(u32, &Plugin)> = Vec::new();
        for plugin in self.entities.plugins_of_route(at, service) {
            let Scope { service: of_service, route: of_route, .. } = plugin.scope;
            if !plugin.scope.is_of_everybody() || !truth_of(&plugin.node, "enabled", true) {
                continue;
            }
            if OBSERVERS.contains(&plugin.name.as_str()) && self.is_global_rule(plugin) {
                continue;
            }
            let narrowness = u32::from(of_service.is_some()) + 2 * u32::from(of_route.is_some());
            match found.iter_mut().find(|(_, known)| known.name == plugin.name) {
                Some((known, _)) if *known >= narrowness => {}
                Some(place) => *place = (narrowness, plugin),
                None => found.push((narrowness, plugin)),
            }
        }
        found.into_iter().map(|(_, plugin)| plugin.clone()).collect()
    }

    fn entries(
        &mut self,
        node: &Node,
        of: Option<usize>,
        service: Option<&Service>,
        made: &Made,
        part: &mut Part,
    ) -> Vec<Ranked> {
        let hosts = hosts(node, part);
        let (header_count, mut vars) = headers(node);
        let snis = texts_of(node, "snis");
        if !snis.is_empty() {
            vars.push(json!(["OR", ["scheme", "==", "http"], ["ssl_server_name", "in", snis]]));
        }
        let secure = self.secure(node, part);
        if let Secure::PlainAlone = secure {
            vars.push(json!(["scheme", "==", "http"]));
        }
        let paths = texts_of(node, "paths");
        let has = |name: &str| u32::from(!field(node, name).map_or(&[][..], items).is_empty());
        let headers_weight = u32::from(header_count > 0);
        let weight = has("methods") + has("hosts") + headers_weight + has("snis") + has("paths");
        let is_plain = !hosts.is_empty() && !texts_of(node, "hosts").iter().any(|host| host.contains('*'));
        let of_old = |name: &str, bit: u32| if self.entities.version < 3 { has(name) << bit } else { 0 };
        let kinds = of_old("hosts", 4)
            + if self.entities.version < 3 { headers_weight << 3 } else { 0 }
            + of_old("paths", 2)
            + of_old("methods", 1)
            + of_old("snis", 0);
        let priority = whole_of(node, "regex_priority").unwrap_or(0);
        let base = self.base(node, service, made);
        let mut found = Vec::new();
        let paths: Vec<Option<&String>> =
            if paths.is_empty() { vec![None] } else { paths.iter().map(Some).collect() };
        for given in paths {
            let path = self.path(given.map_or("/", String::as_str));
            let is_regex = matches!(path, Path::Regex(_));
            let length = if is_regex { 0 } else { given.map_or(0, String::len) };
            let rank = (
                weight,
                kinds,
                is_plain,
                header_count,
                is_regex,
                if is_regex { priority } else { 0 },
                length,
            );
            let mut route = base.clone();
            rewrite(&path, node, service, made, &mut route);
            for (hosts, condition) in all(&hosts) {
                let mut route = route.clone();
                if !hosts.is_empty() {
                    route.insert("hosts".to_owned(), json!(hosts));
                }
                let vars: Vec<Value> = vars.iter().cloned().chain(condition).collect();
                let entry = Entry { id: name(node), paths: vec![path.clone()], vars, route };
                if let Secure::Redirect(redirect) = &secure {
                    found.push(to_https(&entry, redirect, rank));
                }
                let service = of.filter(|_| !made.closed);
                found.push(Ranked { rank, entry, service, wide: made.wide.clone() });
            }
        }
        found
    }

    /// A path as Kong reads it: an expression begins with `~`, before 3.0 it has characters that paths do not have.
    fn path(&self, given: &str) -> Path {
        if let Some(expression) = given.strip_prefix('~') {
            return Path::Regex(expression.to_owned());
        }
        let is_path = |byte: u8| byte.is_ascii_alphanumeric() || b"._~/%-".contains(&byte);
        match self.entities.version < 3 && !given.bytes().all(is_path) {
            true => Path::Regex(given.to_owned()),
            false => Path::Prefix(given.to_owned()),
        }
    }

    fn secure(&self, node: &Node, part: &mut Part) -> Secure {
        let protocols = texts_of(node, "protocols");
        let has = |names: &[&str]| {
            protocols.is_empty() || protocols.iter().any(|one| names.contains(&one.as_str()))
        };
        let place = field(node, "protocols").map_or(node.place, |node| node.place);
        match (has(&["http", "grpc", "ws"]), has(&["https", "grpcs", "wss"])) {
            (true, false) => Secure::PlainAlone,
            (false, true) => {
                let code =
                    whole_of(node, "https_redirect_status_code").and_then(|code| u16::try_from(code).ok());
                let plugins = match code.unwrap_or(426) {
                    426 => {
                        json!({MOCKING: mock_of(426, "{\"message\":\"Please use HTTPS protocol\"}", "application/json")})
                    }
                    code => json!({REDIRECT: {"uri": "https://$host$request_uri", "ret_code": code}}),
                };
                if code.unwrap_or(426) == 426 {
                    part.approximate("protocols", place, "426 over HTTP without `Upgrade`");
                }
                Secure::Redirect(plugins)
            }
            _ => Secure::Any,
        }
    }

    /// A route but for its path, its hosts and its conditions.
    fn base(&mut self, node: &Node, service: Option<&Service>, made: &Made) -> Map<String, Value> {
        let mut route = Map::from_iter([("name".to_owned(), Value::from(name(node)))]);
        let methods = texts_of(node, "methods");
        if !methods.is_empty() {
            route.insert("methods".to_owned(), json!(methods));
        }
        let mut plugins = made.plugins.clone();
        if made.closed {
            plugins = Map::from_iter([(MOCKING.to_owned(), mock(403, ""))]);
        } else if let Some(service) = service {
            route.insert("service_id".to_owned(), service.id.as_str().into());
            route.insert("enable_websocket".to_owned(), true.into());
            if truth_of(node, "preserve_host", false) {
                let id = format!("{}.preserve_host", service.id);
                let mut upstream = service.preserving.clone();
                upstream.insert("id".to_owned(), id.as_str().into());
                self.upstreams.insert(id.clone(), Value::Object(upstream));
                route.insert("upstream_id".to_owned(), id.into());
            }
        } else if !plugins.contains_key(MOCKING) && !plugins.contains_key(REDIRECT) {
            let body = "{\"message\":\"no Service found with those values\"}";
            plugins.insert(MOCKING.to_owned(), mock_of(503, body, "application/json"));
        }
        route.insert("plugins".to_owned(), Value::Object(plugins));
        route
    }
}

/// What becomes of requests without TLS.
enum Secure {
    Any,
    PlainAlone,
    /// They are answered by these plugins.
    Redirect(Value),
}

fn all(hosts: &[Hosts]) -> Vec<Hosts> {
    if hosts.is_empty() { vec![(Vec::new(), None)] } else { hosts.to_vec() }
}

/// The route that tells plain requests to use TLS, before the one that it is of.
fn to_https(entry: &Entry, plugins: &Value, rank: Rank) -> Ranked {
    let mut entry = entry.clone();
    for key in ["service_id", "upstream_id", "enable_websocket"] {
        entry.route.remove(key);
    }
    entry.id.push_str(".http");
    entry.route.insert("plugins".to_owned(), plugins.clone());
    entry.vars.push(json!(["scheme", "==", "http"]));
    Ranked { rank, entry, service: None, wide: BTreeSet::new() }
}

fn route_field(part: &mut Part, key: &str, place: sixfold_core::error::Place) {
    match key {
        "name"
        | "id"
        | "methods"
        | "hosts"
        | "paths"
        | "headers"
        | "regex_priority"
        | "strip_path"
        | "preserve_host"
        | "tags"
        | "service"
        | "created_at"
        | "updated_at"
        | "plugins"
        | "protocols"
        | "https_redirect_status_code"
        | "snis"
        | "path_handling"
        | "request_buffering"
        | "response_buffering" => part.exact(key),
        "filter_chains" => part.unsupported(key, place, "lets in nobody: there is no Wasm"),
        "sources" | "destinations" => {
            part.unsupported(key, place, "routes of HTTP are not chosen by addresses")
        }
        _ => part.unknown(key, place),
    }
}

/// Hosts that APISIX takes, and for each `name.*` a condition.
fn hosts(node: &Node, part: &mut Part) -> Vec<Hosts> {
    let place = field(node, "hosts").map_or(node.place, |node| node.place);
    let (mut plain, mut found) = (Vec::new(), Vec::new());
    for host in texts_of(node, "hosts") {
        let bare = match host.rsplit_once(':') {
            Some((bare, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                part.approximate("hosts", place, "on any port");
                bare.to_owned()
            }
            _ => host,
        };
        match bare.strip_suffix('*') {
            Some(start) => {
                found.push((Vec::new(), Some(json!(["host", "~~", format!("^{}", escape(start))]))))
            }
            None => plain.push(bare),
        }
    }
    if !plain.is_empty() {
        found.insert(0, (plain, None));
    }
    found
}

/// How many headers a route asks for, and the conditions; values are compared in any case.
fn headers(node: &Node) -> (usize, Vec<Value>) {
    let Some(headers) = field(node, "headers") else { return (0, Vec::new()) };
    let condition = |entry: &sixfold_core::document::Entry| {
        let variable = format!("http_{}", entry.key.to_ascii_lowercase().replace('-', "_"));
        let values: Vec<String> = items(&entry.value).iter().filter_map(text).collect();
        match values.as_slice() {
            [one] if one.starts_with("~*") => json!([variable, "~*", one.trim_start_matches("~*")]),
            _ => {
                let choices: Vec<String> = values.iter().map(|value| escape(value)).collect();
                json!([variable, "~*", format!("^(?:{})$", choices.join("|"))])
            }
        }
    };
    let conditions: Vec<Value> = fields(headers).map(condition).collect();
    (conditions.len(), conditions)
}

/// `proxy-rewrite` of a route: what plugins say, and what takes the place of its path.
fn rewrite(path: &Path, node: &Node, service: Option<&Service>, made: &Made, route: &mut Map<String, Value>) {
    if made.closed || service.is_none() {
        return;
    }
    let mut rewrite = made.rewrite.clone();
    if !rewrite.contains_key("uri") {
        let base = service.map_or("/", |service| service.path.as_str());
        let is_joined = text_of(node, "path_handling").as_deref() == Some("v1");
        let pairs = pairs(path, truth_of(node, "strip_path", true), base, is_joined);
        if !pairs.is_empty() {
            rewrite.insert("regex_uri".to_owned(), json!(pairs));
        }
    }
    if !rewrite.is_empty()
        && let Some(plugins) = route.get_mut("plugins").and_then(Value::as_object_mut)
    {
        plugins.insert(PROXY_REWRITE.to_owned(), Value::Object(rewrite));
    }
}

/// Expressions and replacements of the path, of which the first that matches counts.
fn pairs(path: &Path, strips: bool, base: &str, is_joined: bool) -> Vec<String> {
    let stem = base.trim_end_matches('/');
    let pair = |expression: String, replacement: String| [expression, replacement];
    // In a replacement `$` begins a group.
    let (stem, root) =
        (stem.replace('$', "$$"), if stem.is_empty() { "/".to_owned() } else { stem.replace('$', "$$") });
    let whole = if base.len() > 1 && base.ends_with('/') { format!("{stem}/") } else { root.clone() };
    if !strips || matches!(path, Path::Prefix(path) if path == "/") {
        return match stem.is_empty() {
            true => Vec::new(),
            false => {
                [pair("^/$".to_owned(), whole), pair("^/(.*)$".to_owned(), format!("{stem}/$1"))].concat()
            }
        };
    }
    let (matched, group, ends_with_slash) = match path {
        Path::Regex(expression) => {
            (format!("^(?:{})", expression.trim_start_matches('^')), groups(expression) + 1, false)
        }
        Path::Prefix(path) | Path::Exact(path) => (format!("^{}", escape(path)), 1, path.ends_with('/')),
        Path::AnyCase(_) => return Vec::new(),
    };
    if is_joined && !base.ends_with('/') && !base.is_empty() {
        return pair(format!("{matched}(.*)$"), format!("{stem}${group}")).to_vec();
    }
    let slash = if ends_with_slash { "" } else { "/?" };
    let rest = pair(format!("{matched}{slash}(.*)$"), format!("{stem}/${group}"));
    match ends_with_slash || stem.is_empty() {
        true => rest.to_vec(),
        false => [pair(format!("{matched}$"), root), rest].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a path, as Kong's documentation has it in its table of `path_handling`.
    fn sent(path: &str, strips: bool, base: &str, asked: &str) -> String {
        let path = match path.strip_prefix('~') {
            Some(expression) => Path::Regex(expression.to_owned()),
            None => Path::Prefix(path.to_owned()),
        };
        let pairs = pairs(&path, strips, base, false);
        for pair in pairs.chunks(2) {
            let [expression, replacement] = pair else { continue };
            let Ok(expression) = regex::Regex::new(expression) else { continue };
            if expression.is_match(asked) {
                return expression.replace(asked, replacement.as_str()).into_owned();
            }
        }
        asked.to_owned()
    }

    #[test]
    fn paths_are_joined_as_kong_joins_them() {
        for (path, strips, base, asked, expected) in [
            ("/fv0", true, "/s", "/fv0/req", "/s/req"),
            ("/fv0", true, "/s", "/fv0req", "/s/req"),
            ("/fv0", true, "/s/", "/fv0req", "/s/req"),
            ("/fv0", true, "/s", "/fv0", "/s"),
            ("/fv0", true, "/s/", "/fv0", "/s"),
            ("/fv0/", true, "/s", "/fv0/", "/s/"),
            ("/fv0/", true, "/s", "/fv0/req", "/s/req"),
            ("/fv0", true, "/", "/fv0", "/"),
            ("/fv0", true, "/", "/fv0/req", "/req"),
            ("/fv0", false, "/s", "/fv0/req", "/s/fv0/req"),
            ("/", true, "/s", "/", "/s"),
            ("/", true, "/s/", "/", "/s/"),
            ("/", true, "/s", "/req", "/s/req"),
            ("/", true, "/", "/req", "/req"),
            ("~/v[0-9]+", true, "/s", "/v12/req", "/s/req"),
            ("~/(a|b)/(c)", true, "/s", "/a/c/req", "/s/req"),
            ("~/v[0-9]+$", true, "/s", "/v12", "/s"),
        ] {
            assert_eq!(sent(path, strips, base, asked), expected, "{path} {strips} {base} {asked}");
        }
    }
}
