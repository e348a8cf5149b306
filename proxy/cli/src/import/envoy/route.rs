//! Routes: what is done with the requests that they take.

use super::cluster::Use;
use super::filters::with_headers;
use super::matching::{Matched, redirect_code};
use super::virtual_host::Above;
use super::{Import, duration, duration_of};
use crate::import::document::{field, fields, items_of, seconds, text_of, truth_of, whole_of};
use crate::import::ordered::{Entry, Path};
use crate::import::pieces::{escape, mock};
use crate::import::report::Part;
use crate::import::written::{MOCKING, PROXY_REWRITE, REDIRECT, TRAFFIC_SPLIT};
use serde_json::{Map, Value, json};
use sixfold_core::document::{Entry as Field, Node};

/// What is gathered of a route.
#[derive(Default)]
struct Gathered {
    route: Map<String, Value>,
    plugins: Map<String, Value>,
    rewrite: Map<String, Value>,
}

/// Seconds that Envoy waits for an answer where a route does not say.
const TIMEOUT: f64 = 15.0;

impl Import {
    pub(super) fn route(&mut self, node: &Node, above: &Above<'_>) -> Option<Entry> {
        let host = text_of(above.host, "name").unwrap_or_default();
        let name = text_of(node, "name").filter(|name| !name.is_empty());
        let shown = name
            .as_ref()
            .map_or_else(|| format!("route of virtual host \"{host}\""), |name| format!("route \"{name}\""));
        let mut part = self.part(shown, node);
        let matches = field(node, "match");
        let Some(matches) = matches else {
            part.manual("match", node.place, "the route is left out: it takes nothing");
            self.out.take(part);
            return None;
        };
        let Matched { paths, vars: conditions, is_whole } = self.matched(matches, &mut part);
        // Whom a route turns away a later one would let in.
        if !is_whole && !turns_away(node) {
            self.out.take(part);
            return None;
        }
        let filtered = above.filters.of(node, above, &mut part);
        let mut gathered = Gathered { plugins: filtered.plugins, ..Gathered::default() };
        let request = above.changes(node, "request", &mut part);
        let response = above.changes(node, "response", &mut part);
        for entry in fields(node) {
            self.action(entry, &paths, above, &mut part, &mut gathered);
        }
        let Gathered { mut route, mut plugins, mut rewrite } = gathered;
        with_headers(&request, &response, &mut rewrite, &mut plugins);
        if !rewrite.is_empty() {
            plugins.insert(PROXY_REWRITE.to_owned(), Value::Object(rewrite));
        }
        if filtered.closed {
            route.clear();
            plugins = Map::from_iter([(MOCKING.to_owned(), mock(403, ""))]);
        }
        if !plugins.is_empty() {
            route.insert("plugins".to_owned(), Value::Object(plugins));
        }
        self.out.take(part);
        let vars = above.manager.vars.iter().cloned().chain(conditions).collect();
        let mut whole = Map::from_iter(name.clone().map(|name| ("name".to_owned(), Value::from(name))));
        whole.extend(route);
        Some(Entry { id: name.unwrap_or(host), paths, vars, route: whole })
    }

    fn action(
        &mut self,
        entry: &Field,
        paths: &[Path],
        above: &Above<'_>,
        part: &mut Part,
        found: &mut Gathered,
    ) {
        let place = entry.key_place;
        match entry.key.as_str() {
            "match"
            | "request_headers_to_add"
            | "request_headers_to_remove"
            | "response_headers_to_add"
            | "response_headers_to_remove"
            | "typed_per_filter_config" => {}
            "name" | "metadata" | "decorator" | "stat_prefix" | "per_request_buffer_limit_bytes" => {
                part.exact(&entry.key)
            }
            "route" => self.forward(&entry.value, paths, above, part, found),
            "redirect" => {
                found.plugins.insert(REDIRECT.to_owned(), redirect(&entry.value, paths, part));
            }
            "direct_response" => {
                let status = whole_of(&entry.value, "status").and_then(|code| u16::try_from(code).ok());
                let body = field(&entry.value, "body");
                let text = body.and_then(|body| super::data(body, &self.root));
                if body.is_some() && text.is_none() {
                    part.manual("direct_response.body", place, "its file can't be read: write it");
                }
                let mocked = mock(status.unwrap_or(200), &text.unwrap_or_default());
                found.plugins.insert(MOCKING.to_owned(), mocked);
                match body.is_none() && status.is_some_and(|code| code >= 300) {
                    true => part.approximate("direct_response", place, "with a page in place of no body"),
                    false => part.exact("direct_response"),
                }
            }
            "tracing" => part.unsupported("tracing", place, "there is no tracing of APISIX's routes"),
            key => {
                part.manual(key, place, "answers 503: write what it is to do");
                found.plugins.insert(MOCKING.to_owned(), mock(503, ""));
            }
        }
    }

    fn forward(
        &mut self,
        node: &Node,
        paths: &[Path],
        above: &Above<'_>,
        part: &mut Part,
        found: &mut Gathered,
    ) {
        let mut of = Use { retries: self.retries(node, above, part), ..Use::default() };
        of.hash = hash(node, part);
        of.by_node = truth_of(node, "auto_host_rewrite", false);
        for entry in fields(node) {
            self.forward_field(entry, node, paths, part, found);
        }
        let websocket = items_of(node, "upgrade_configs")
            .iter()
            .any(|one| super::word_of(one, "upgrade_type") == "WEBSOCKET");
        if websocket || above.manager.websocket {
            found.route.insert("enable_websocket".to_owned(), true.into());
        }
        let weighted = field(node, "weighted_clusters");
        let target = match weighted {
            Some(weighted) => self.weighted(weighted, &of, part, found),
            None => text_of(node, "cluster"),
        };
        let upstream = target.as_deref().and_then(|name| self.upstream(name, &of));
        let Some(upstream) = upstream else {
            let place = field(node, "cluster").map_or(node.place, |node| node.place);
            part.manual(
                "route.cluster",
                place,
                "answers 503: its nodes are not in the file: write the upstream",
            );
            found.plugins.insert(MOCKING.to_owned(), mock(503, ""));
            return;
        };
        let connect = self.connect_timeout(target.as_deref().unwrap_or_default());
        let time = field(node, "timeout").and_then(duration).unwrap_or(TIMEOUT);
        // None at all is an hour.
        let time = if time == 0.0 { 3600.0 } else { time };
        let timeout = json!({"connect": seconds(connect), "send": seconds(time), "read": seconds(time)});
        found.route.insert("timeout".to_owned(), timeout);
        found.route.insert("upstream_id".to_owned(), upstream.into());
    }

    fn forward_field(
        &self,
        entry: &Field,
        node: &Node,
        paths: &[Path],
        part: &mut Part,
        found: &mut Gathered,
    ) {
        let (name, place) = (format!("route.{}", entry.key), entry.key_place);
        let given = || text_of(node, &entry.key).unwrap_or_default();
        match entry.key.as_str() {
            "cluster"
            | "weighted_clusters"
            | "upgrade_configs"
            | "cors"
            | "priority"
            | "idle_timeout"
            | "max_grpc_timeout"
            | "grpc_timeout_offset"
            | "max_stream_duration"
            | "include_vh_rate_limits"
            | "append_x_forwarded_host"
            | "cluster_not_found_response_code" => part.exact(&name),
            "retry_policy" | "hash_policy" => {}
            "timeout" => part.approximate(&name, place, "for each wait by itself, not for all of them"),
            "auto_host_rewrite" => {
                part.approximate(&name, place, "with the port, where it is not that of the scheme")
            }
            "prefix_rewrite" => {
                found.rewrite.extend(prefix(paths, &given()));
                part.exact(&name);
            }
            "regex_rewrite" => {
                let pattern = field(&entry.value, "pattern").and_then(|pattern| text_of(pattern, "regex"));
                let pattern = pattern.unwrap_or_default();
                let replacement = substitution(&text_of(&entry.value, "substitution").unwrap_or_default());
                match pattern.starts_with('^') {
                    true => part.exact(&name),
                    false => part.approximate(&name, place, "the first match, not all"),
                }
                found.rewrite.insert("regex_uri".to_owned(), json!([pattern, replacement]));
            }
            "host_rewrite_literal" | "host_rewrite" => {
                found.rewrite.insert("host".to_owned(), given().into());
                part.exact(&name);
            }
            "host_rewrite_header" | "auto_host_rewrite_header" | "host_rewrite_path_regex" => {
                part.manual(&name, place, "write `upstream_host` of the upstream");
            }
            "request_mirror_policies" | "request_mirror_policy" => {
                part.unsupported(&name, place, "requests are not mirrored")
            }
            "rate_limits" => part.unsupported(&name, place, "there is no rate limit service"),
            "metadata_match" => {
                part.unsupported(&name, place, "all nodes: write an upstream for each subset")
            }
            "internal_redirect_policy" | "internal_redirect_action" => {
                part.unsupported(&name, place, "redirections go to the client");
            }
            "hedge_policy" => part.unsupported(&name, place, "requests are sent once"),
            "cluster_header" | "cluster_specifier_plugin" => {}
            _ => part.unknown(&name, place),
        }
    }

    /// How often a request is sent again.
    fn retries(&self, node: &Node, above: &Above<'_>, part: &mut Part) -> u64 {
        let policy = field(node, "retry_policy").or_else(|| field(above.host, "retry_policy"));
        let Some(policy) = policy else { return 0 };
        let note = "when nothing came back; what else is tried again is not configured";
        part.approximate("route.retry_policy", policy.place, note);
        whole_of(policy, "num_retries").unwrap_or(1)
    }

    /// `weighted_clusters` as traffic-split; answers the first cluster, whose upstream the route has.
    fn weighted(&mut self, node: &Node, of: &Use, part: &mut Part, found: &mut Gathered) -> Option<String> {
        let (mut first, mut shares) = (None, Vec::new());
        for one in items_of(node, "clusters") {
            let name = text_of(one, "name").unwrap_or_default();
            let Some(upstream) = self.upstream(&name, of) else {
                part.manual(
                    "route.weighted_clusters",
                    one.place,
                    format!("{name} is left out: write its upstream"),
                );
                continue;
            };
            shares.push(json!({"upstream_id": upstream, "weight": whole_of(one, "weight").unwrap_or(0)}));
            first.get_or_insert(name);
            for entry in fields(one) {
                if !matches!(entry.key.as_str(), "name" | "weight") {
                    let name = format!("route.weighted_clusters.{}", entry.key);
                    part.manual(&name, entry.key_place, "write a route for that share");
                }
            }
        }
        if shares.len() > 1 {
            let split = json!({"rules": [{"weighted_upstreams": shares}]});
            found.plugins.insert(TRAFFIC_SPLIT.to_owned(), split);
        }
        first
    }
}

/// Whether a route answers with an error.
fn turns_away(node: &Node) -> bool {
    field(node, "direct_response")
        .and_then(|answer| whole_of(answer, "status"))
        .is_some_and(|status| status >= 400)
}

/// The first hash policy: `hash_on` and `key`.
fn hash(node: &Node, part: &mut Part) -> Option<(&'static str, String)> {
    let policies = items_of(node, "hash_policy");
    let policy = policies.first()?;
    if policies.len() > 1 {
        part.approximate("route.hash_policy", policy.place, "the first one alone");
    }
    let of = |kind: &str, name: &str| field(policy, kind).and_then(|node| text_of(node, name));
    let found = of("header", "header_name")
        .map(|name| ("header", name))
        .or_else(|| of("cookie", "name").map(|name| ("cookie", name)))
        .or_else(|| of("query_parameter", "name").map(|name| ("vars", format!("arg_{name}"))))
        .or_else(|| of("connection_properties", "source_ip").map(|_| ("vars", "remote_addr".to_owned())));
    match (&found, field(policy, "cookie").and_then(|cookie| duration_of(cookie, "ttl"))) {
        (None, _) => part.manual("route.hash_policy", policy.place, "write `key` of the upstream"),
        (_, Some(_)) => part.approximate("route.hash_policy", policy.place, "the cookie is not made here"),
        _ => part.exact("route.hash_policy"),
    }
    found
}

/// `prefix_rewrite` of proxy-rewrite.
fn prefix(paths: &[Path], given: &str) -> Map<String, Value> {
    let replacement = given.replace('$', "$$");
    let (flags, path) = match paths {
        [Path::AnyCase(path), ..] => ("(?i)", Some(&**path)),
        [path, ..] => ("", Some(path)),
        [] => ("", None),
    };
    let pair = |expression: String, replacement: String| {
        Map::from_iter([("regex_uri".to_owned(), json!([expression, replacement]))])
    };
    match (path, paths.len()) {
        (Some(Path::Prefix(path)), _) | (Some(Path::Exact(path)), 2..) => {
            pair(format!("{flags}^{}(.*)$", escape(path)), format!("{replacement}$1"))
        }
        _ => Map::from_iter([("uri".to_owned(), Value::from(given))]),
    }
}

/// RE2's replacement (`\1`) as APISIX's (`$1`).
fn substitution(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some(digit) if digit.is_ascii_digit() => out.push_str(&format!("${{{digit}}}")),
                Some(other) => out.push(other),
                None => {}
            },
            char => out.push(char),
        }
    }
    out
}

/// `redirect` as the plugin.
fn redirect(node: &Node, paths: &[Path], part: &mut Part) -> Value {
    let secure = truth_of(node, "https_redirect", false);
    let scheme = match (secure, text_of(node, "scheme_redirect")) {
        (true, _) => "https".to_owned(),
        (_, Some(scheme)) => scheme,
        _ => "$scheme".to_owned(),
    };
    let is_other_scheme = scheme != "$scheme";
    let mut host = text_of(node, "host_redirect")
        .unwrap_or_else(|| if is_other_scheme { "$host" } else { "$http_host" }.to_owned());
    if let Some(port) = whole_of(node, "port_redirect") {
        host = format!("{}:{port}", if host == "$http_host" { "$host" } else { &host });
    }
    for entry in fields(node) {
        match entry.key.as_str() {
            "host_redirect" | "path_redirect" | "prefix_rewrite" | "regex_rewrite" | "https_redirect"
            | "scheme_redirect" | "port_redirect" | "response_code" | "strip_query" => {
                part.exact(&format!("redirect.{}", entry.key))
            }
            key => part.unknown(&format!("redirect.{key}"), entry.key_place),
        }
    }
    let code = redirect_code(node);
    let strips = truth_of(node, "strip_query", false);
    let rewritten = match (text_of(node, "prefix_rewrite"), field(node, "regex_rewrite")) {
        (Some(given), _) => {
            prefix(paths, &given).remove("regex_uri").or_else(|| Some(json!(["^.*$", given])))
        }
        (None, Some(rewrite)) => {
            let pattern =
                field(rewrite, "pattern").and_then(|pattern| text_of(pattern, "regex")).unwrap_or_default();
            let replacement = substitution(&text_of(rewrite, "substitution").unwrap_or_default());
            Some(json!([pattern, replacement]))
        }
        _ => None,
    };
    if let Some(pair) = rewritten {
        // Variables are not replaced beside groups.
        let is_known = !host.contains('$') && !scheme.contains('$');
        let replacement = pair.get(1).and_then(Value::as_str).unwrap_or_default();
        let replacement =
            if is_known { format!("{scheme}://{host}{replacement}") } else { replacement.to_owned() };
        match (is_known, is_other_scheme) {
            (true, _) => {}
            (false, true) => {
                part.manual("redirect", node.place, "Location has no scheme and host: write `regex_uri`")
            }
            (false, false) => {
                part.approximate("redirect", node.place, "Location is written without scheme and host")
            }
        }
        return json!({"regex_uri": [pair.get(0), replacement], "ret_code": code, "append_query_string": !strips});
    }
    let path = text_of(node, "path_redirect");
    let has_query = path.as_deref().is_some_and(|path| path.contains('?'));
    let uri = match path {
        Some(path) => format!("{scheme}://{host}{}", path.replace('$', "\\$")),
        None => format!("{scheme}://{host}$uri"),
    };
    json!({"uri": uri, "ret_code": code, "append_query_string": !strips && !has_query})
}
