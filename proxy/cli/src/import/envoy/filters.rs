//! HTTP filters as plugins of the routes that they run for.

use super::headers::Changes;
use super::virtual_host::Above;
use super::{Import, duration_of, type_of, word_of};
use crate::import::document::{field, fields, items_of, number_of, seconds, text_of, truth_of, whole_of};
use crate::import::pieces;
use crate::import::report::Part;
use crate::import::written::{CORS, FAULT_INJECTION, IP_RESTRICTION, LIMIT_COUNT, RESPONSE_REWRITE};
use serde_json::{Map, Value, json};
use sixfold_core::document::{Entry as Field, Node};

/// The filters of a connection manager, in their order.
#[derive(Debug, Default)]
pub(super) struct Filters(Vec<Filter>);

#[derive(Debug)]
struct Filter {
    name: String,
    /// The last part of its type: `Cors`.
    kind: String,
    config: Node,
    is_off: bool,
}

/// Filters that keep nobody out and are left out, with what there is in their place.
const LEFT_OUT: &[(&str, &str)] = &[
    ("Compressor", ""),
    ("Gzip", ""),
    ("Decompressor", ""),
    ("GrpcWeb", ""),
    ("GrpcJsonTranscoder", ""),
    ("grpc_stats.FilterConfig", ""),
    ("grpc_http1_bridge.Config", ""),
    ("grpc_http1_reverse_bridge.FilterConfig", ""),
    ("header_to_metadata.Config", ""),
    ("set_metadata.Config", ""),
    ("alpn.FilterConfig", ""),
    ("RateLimit", "limit-count with `policy: redis`, for limits that gateways share"),
    ("BandwidthLimit", ""),
    ("AdaptiveConcurrency", ""),
    ("AdmissionControl", ""),
    ("Tap", ""),
    ("OnDemand", ""),
    ("StatefulSession", "an upstream with `type: chash` by a cookie"),
    ("CacheConfig", ""),
    ("IPTagging", ""),
    ("HeaderMutation", "proxy-rewrite and response-rewrite with `headers`"),
    ("Buffer", "nginx_config.http.client_max_body_size, which is for all"),
    ("HealthCheck", "a route with the plugin mocking"),
    ("CustomResponse", "response-rewrite"),
    ("PeerMetadata", ""),
    ("SetFilterState", ""),
    ("CredentialInjector", "proxy-rewrite with `headers`"),
    ("AwsRequestSigning", ""),
    ("CdnLoopConfig", ""),
    ("GrpcStats", ""),
];

/// What there is in the place of filters that may keep somebody out.
const INSTEAD: &[(&str, &str)] = &[
    ("ExtAuthz", "forward-auth"),
    ("JwtAuthentication", "jwt-auth and its consumers"),
    ("BasicAuth", "basic-auth and its consumers"),
    ("ApiKeyAuth", "key-auth and its consumers"),
    ("OAuth2", "forward-auth"),
    ("RBAC", "ip-restriction, or routes with `vars`"),
    ("CsrfPolicy", "forward-auth"),
    ("Lua", "what of Lua can be said otherwise is in docs/plugins/without-lua.md"),
    ("LuaPerRoute", "what of Lua can be said otherwise is in docs/plugins/without-lua.md"),
    ("ExternalProcessor", "forward-auth"),
    ("Wasm", "a plugin in Rust (docs/plugins/write-one.md)"),
];

/// What comes of filters for a route.
#[derive(Debug, Default)]
pub(super) struct Filtered {
    pub(super) plugins: Map<String, Value>,
    /// Whether something that may keep requests out was not taken over.
    pub(super) closed: bool,
}

impl Import {
    /// The filters of a connection manager; what is left out of them is told once.
    pub(super) fn filters(&mut self, manager: &Node) -> Filters {
        let mut found = Vec::new();
        for one in items_of(manager, "http_filters") {
            let name = text_of(one, "name").unwrap_or_default();
            let config = field(one, "typed_config").or_else(|| field(one, "config")).unwrap_or(one).clone();
            let kind = kind_of(&config, &name);
            let mut part = self.part(format!("filter \"{name}\""), one);
            let is_off = truth_of(one, "disabled", false);
            if field(one, "config_discovery").is_some() {
                part.manual("config_discovery", one.place, "lets in nobody: what it says is not in the file");
            }
            match kind.as_str() {
                "Router" => {
                    self.out.take(part);
                    continue;
                }
                "Cors" | "CorsPolicy" | "HTTPFault" | "LocalRateLimit" | "Plugins" => {}
                "RBAC" => {}
                kind => match LEFT_OUT.iter().find(|(known, _)| *known == kind) {
                    Some((_, "")) => part.unsupported("", one.place, "there is no counterpart"),
                    Some((_, instead)) => part.manual("", one.place, format!("write {instead}")),
                    None => {
                        let instead = INSTEAD.iter().find(|(known, _)| *known == kind);
                        let instead =
                            instead.map_or("what does the same, or take it away", |(_, instead)| instead);
                        part.manual("", one.place, format!("lets in nobody: write {instead}"));
                    }
                },
            }
            self.out.take(part);
            found.push(Filter { name, kind, config, is_off });
        }
        Filters(found)
    }
}

/// What a filter is, of its type, or of its name where there is no type.
fn kind_of(config: &Node, name: &str) -> String {
    match type_of(config).as_str() {
        "TypedStruct" => {
            let url = text_of(config, "type_url").unwrap_or_default();
            if url.ends_with("sixfold.plugins.v1.Plugins") { "Plugins".to_owned() } else { url }
        }
        "" => match name {
            "envoy.router" | "envoy.filters.http.router" => "Router".to_owned(),
            "envoy.cors" | "envoy.filters.http.cors" => "Cors".to_owned(),
            other => other.to_owned(),
        },
        // A library of somebody's own.
        "Config" if text_of(config, "@type").is_some_and(|kind| kind.contains(".golang.")) => {
            "Golang".to_owned()
        }
        // Many filters have one of that name, guards among them.
        kind @ ("Config" | "FilterConfig") => {
            let url = text_of(config, "@type").unwrap_or_default();
            let is_version =
                |part: &&str| part.strip_prefix('v').is_some_and(|rest| rest.starts_with(char::is_numeric));
            let package = url.rsplit('.').skip(1).find(|part| !is_version(part)).unwrap_or_default();
            format!("{package}.{kind}")
        }
        kind => kind.to_owned(),
    }
}

impl Filters {
    /// What comes of the filters for a route, of whose levels the narrowest counts.
    pub(super) fn of(&self, route: &Node, above: &Above<'_>, part: &mut Part) -> Filtered {
        let mut filtered = Filtered { closed: above.manager.closed, ..Filtered::default() };
        for filter in &self.0 {
            if let Some(member) = filter.of_member(route) {
                // A share of the requests has another filter than the rest, which routes have no word for.
                if !filter.is_harmless() {
                    let name = format!("route.weighted_clusters.typed_per_filter_config.{}", filter.name);
                    part.manual(&name, member.key_place, "lets in nobody: write a route for that share");
                    filtered.closed = true;
                }
                continue;
            }
            let own = [route, above.host, above.table].into_iter().find_map(|level| {
                let by_name = field(level, "typed_per_filter_config")?;
                fields(by_name).find(|entry| entry.key == filter.name).map(|entry| &entry.value)
            });
            let is_off = own.map_or(filter.is_off, |own| truth_of(own, "disabled", false));
            if is_off {
                continue;
            }
            let own = own.map(|own| match (type_of(own).as_str(), field(own, "config")) {
                ("FilterConfig", Some(config)) => config,
                _ => own,
            });
            filter.take_over(own, route, above, part, &mut filtered);
        }
        filtered
    }
}

impl Filter {
    /// What a member of `weighted_clusters` has in the place of the filter.
    fn of_member<'n>(&self, route: &'n Node) -> Option<&'n Field> {
        let weighted = field(field(route, "route")?, "weighted_clusters")?;
        let own =
            items_of(weighted, "clusters").iter().filter_map(|one| field(one, "typed_per_filter_config"));
        own.flat_map(fields).find(|entry| entry.key == self.name)
    }

    /// Whether it keeps nobody out, or nobody who is not told by a count.
    fn is_harmless(&self) -> bool {
        matches!(self.kind.as_str(), "Cors" | "CorsPolicy" | "HTTPFault" | "LocalRateLimit")
            || LEFT_OUT.iter().any(|(known, _)| *known == self.kind)
    }

    fn take_over(
        &self,
        own: Option<&Node>,
        route: &Node,
        above: &Above<'_>,
        part: &mut Part,
        filtered: &mut Filtered,
    ) {
        let plugins = &mut filtered.plugins;
        match self.kind.as_str() {
            "Cors" | "CorsPolicy" => {
                let old = field(route, "route").and_then(|action| field(action, "cors"));
                if let Some(policy) = own.or(old).or_else(|| field(above.host, "cors")) {
                    plugins.insert(CORS.to_owned(), cors(policy, part));
                }
            }
            "HTTPFault" => {
                let config = own.unwrap_or(&self.config);
                plugins.extend(fault(config, part).map(|plugin| (FAULT_INJECTION.to_owned(), plugin)));
            }
            "LocalRateLimit" => {
                let config = own.unwrap_or(&self.config);
                plugins.extend(limit(config, part).map(|plugin| (LIMIT_COUNT.to_owned(), plugin)));
            }
            "Plugins" => {
                for config in [Some(&self.config), own].into_iter().flatten() {
                    let of = field(config, "value").and_then(|value| field(value, "plugins"));
                    let Some((of, Value::Object(written))) = of.map(|of| (of, of.to_json())) else {
                        continue;
                    };
                    let registry = crate::process::plugins();
                    if let Some(unknown) = written.keys().find(|name| registry.apisix(name).is_none()) {
                        let note = format!("lets in nobody: there is no plugin {unknown}");
                        part.manual(&self.name, of.place, note);
                        filtered.closed = true;
                    }
                    plugins.extend(written);
                }
                part.exact(&self.name);
            }
            "RBAC" => {
                // A route's own without rules is none.
                let config = own.map_or(Some(&self.config), |own| field(own, "rbac"));
                match config.map_or(Some(None), addresses) {
                    Some(plugin) => {
                        plugins.extend(plugin.map(|plugin| (IP_RESTRICTION.to_owned(), plugin)));
                    }
                    None => {
                        let place = config.map_or(route.place, |config| config.place);
                        let note = "lets in nobody: write ip-restriction, or routes with `vars`";
                        part.manual(&self.name, place, note);
                        filtered.closed = true;
                    }
                }
            }
            _ => filtered.closed |= !self.is_harmless(),
        }
    }
}

fn cors(policy: &Node, part: &mut Part) -> Value {
    let credentials = truth_of(policy, "allow_credentials", false);
    let mut plugin = Map::new();
    let (mut whole, mut expressions) = (Vec::new(), Vec::new());
    for one in items_of(policy, "allow_origin_string_match") {
        let expression = ["prefix", "suffix", "contains"].iter().find_map(|kind| {
            let text = pieces::escape(&text_of(one, kind)?);
            Some(match *kind {
                "prefix" => format!("^{text}"),
                "suffix" => format!("{text}$"),
                _ => text,
            })
        });
        let regex = || Some(format!("^(?:{})$", text_of(field(one, "safe_regex")?, "regex")?));
        match text_of(one, "exact") {
            Some(exact) => whole.push(exact),
            None => expressions.extend(expression.or_else(regex)),
        }
    }
    whole.extend(crate::import::document::texts_of(policy, "allow_origin"));
    pieces::origins(&whole, &expressions, credentials, &mut plugin);
    let list = |name: &str| text_of(policy, name).map(|text| text.replace(' ', ""));
    for (name, own) in [
        ("allow_methods", "allow_methods"),
        ("allow_headers", "allow_headers"),
        ("expose_headers", "expose_headers"),
    ] {
        if let Some(list) = list(name).filter(|list| !list.is_empty()) {
            let all = list == "*" && credentials;
            plugin.insert(own.to_owned(), if all { "**".to_owned() } else { list }.into());
        } else if credentials && name != "expose_headers" {
            plugin.insert(own.to_owned(), "**".into());
        }
    }
    let age = number_of(policy, "max_age").map_or(json!(-1), seconds);
    plugin.insert("max_age".to_owned(), age);
    plugin.insert("allow_credential".to_owned(), credentials.into());
    let is_part = field(policy, "filter_enabled").is_some_and(|percent| !is_whole(percent));
    match is_part || field(policy, "shadow_enabled").is_some() {
        true => part.approximate("cors", policy.place, "for all requests"),
        false => part.exact("cors"),
    }
    Value::Object(plugin)
}

/// Whether a runtime's fraction is that of all.
fn is_whole(percent: &Node) -> bool {
    field(percent, "default_value").is_some_and(|value| share(value) >= 100.0)
}

/// A `FractionalPercent` in percent.
fn share(node: &Node) -> f64 {
    let of = match word_of(node, "denominator").as_str() {
        "TEN_THOUSAND" | "1" => 100.0,
        "MILLION" | "2" => 10_000.0,
        _ => 1.0,
    };
    number_of(node, "numerator").unwrap_or(0.0) / of
}

fn fault(config: &Node, part: &mut Part) -> Option<Value> {
    let mut plugin = Map::new();
    let percent = |node: &Node| field(node, "percentage").map_or(0.0, share).round();
    if let Some(abort) = field(config, "abort") {
        let Some(status) = whole_of(abort, "http_status") else {
            part.manual("fault.abort", abort.place, "write `http_status`");
            return None;
        };
        plugin.insert(
            "abort".to_owned(),
            json!({"http_status": status, "percentage": seconds(percent(abort))}),
        );
    }
    if let Some(delay) = field(config, "delay") {
        let time = duration_of(delay, "fixed_delay").unwrap_or(0.0);
        plugin.insert(
            "delay".to_owned(),
            json!({"duration": seconds(time), "percentage": seconds(percent(delay))}),
        );
    }
    for entry in fields(config) {
        if !matches!(entry.key.as_str(), "@type" | "abort" | "delay") {
            part.manual(&format!("fault.{}", entry.key), entry.key_place, "for all requests: write `vars`");
        }
    }
    if !plugin.is_empty() {
        part.exact("fault");
    }
    (!plugin.is_empty()).then_some(Value::Object(plugin))
}

fn limit(config: &Node, part: &mut Part) -> Option<Value> {
    let bucket = field(config, "token_bucket")?;
    if !field(config, "filter_enforced").is_some_and(is_whole) {
        part.approximate("local_ratelimit", config.place, "is not enforced, so it is left out");
        return None;
    }
    let window = duration_of(bucket, "fill_interval").unwrap_or(1.0).ceil().max(1.0);
    let count = whole_of(bucket, "tokens_per_fill").or_else(|| whole_of(bucket, "max_tokens"))?.max(1);
    let code = field(config, "status").and_then(|status| number_of(status, "code")).unwrap_or(429.0);
    if field(config, "descriptors").is_some_and(|node| node.as_array().is_some()) {
        part.manual("local_ratelimit.descriptors", config.place, "write limit-count with `rules`");
    }
    part.approximate(
        "local_ratelimit",
        config.place,
        "so many in each window, counted for the route by itself",
    );
    Some(json!({
        "count": count, "time_window": seconds(window), "key_type": "constant", "key": "route",
        "rejected_code": seconds(code), "rejected_msg": "local_rate_limited", "show_limit_quota_header": false,
    }))
}

/// ip-restriction of rules that ask for addresses alone; `Some(None)` where there are no rules, `None` for all others.
fn addresses(config: &Node) -> Option<Option<Value>> {
    let Some(rules) = field(config, "rules") else {
        return field(config, "matcher").is_none().then_some(None);
    };
    let mut list = Vec::new();
    for policy in fields(field(rules, "policies")?) {
        let is_any = |node: &Node| truth_of(node, "any", false);
        if !items_of(&policy.value, "permissions").iter().all(is_any)
            || field(&policy.value, "condition").is_some()
        {
            return None;
        }
        for principal in items_of(&policy.value, "principals") {
            let range = ["direct_remote_ip", "remote_ip", "source_ip"]
                .iter()
                .find_map(|name| field(principal, name))?;
            let prefix = text_of(range, "address_prefix")?;
            list.push(match whole_of(range, "prefix_len") {
                Some(length) => format!("{prefix}/{length}"),
                None => prefix,
            });
        }
    }
    if list.is_empty() {
        return None;
    }
    let name =
        if matches!(word_of(rules, "action").as_str(), "DENY" | "1") { "blacklist" } else { "whitelist" };
    matches!(word_of(rules, "action").as_str(), "" | "ALLOW" | "0" | "DENY" | "1")
        .then(|| Some(json!({name: list, "message": "RBAC: access denied"})))
}

/// Plugins that change headers.
pub(super) fn with_headers(
    request: &Changes,
    response: &Changes,
    rewrite: &mut Map<String, Value>,
    plugins: &mut Map<String, Value>,
) {
    if !request.is_empty() {
        rewrite.insert("headers".to_owned(), request.of_request());
    }
    if !response.is_empty() {
        plugins.insert(RESPONSE_REWRITE.to_owned(), json!({"headers": response.of_response()}));
    }
}
