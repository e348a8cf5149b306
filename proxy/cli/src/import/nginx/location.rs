//! What is done with the requests of a location.

use super::parse::Directive;
use super::upstream::address;
use super::{Import, Match, WITHOUT_EFFECT, seconds};
use crate::import::pieces::{escape, mock};
use crate::import::written::{IP_RESTRICTION, LIMIT_REQ, MOCKING, PROXY_REWRITE, REDIRECT, RESPONSE_REWRITE};
use serde_json::{Map, Value, json};

/// Directives that a block passes on to those within it, unless they have some of that name.
pub(super) const INHERITED: &[&str] = &[
    "proxy_set_header",
    "add_header",
    "allow",
    "deny",
    "limit_req",
    "limit_req_status",
    "proxy_connect_timeout",
    "proxy_read_timeout",
    "proxy_send_timeout",
    "proxy_next_upstream",
    "proxy_next_upstream_tries",
    "auth_basic",
    "auth_basic_user_file",
    "auth_request",
    "auth_jwt",
    "satisfy",
    "secure_link",
    "ssl_verify_client",
];

/// What a directive is called where a level that has some of its own takes none from above: rules of access are one list
/// (`ngx_http_access_merge_loc_conf`).
pub(super) fn inherited_as(name: &str) -> &str {
    if name == "deny" { "allow" } else { name }
}

/// What keeps requests out and is not taken over, with its counterpart. Until somebody has written that, nobody is let in.
const KEEPS_OUT: &[(&str, &str)] = &[
    ("auth_basic", "the plugin basic-auth and its consumers"),
    ("auth_request", "the plugin forward-auth"),
    ("auth_jwt", "the plugin jwt-auth and its consumers"),
    ("satisfy", "plugins that let in whom it does"),
    ("secure_link", "a plugin that checks the link"),
    ("limit_except", "routes by method"),
    ("internal", "the route that is meant"),
    ("ssl_verify_client", "`client` of the ssl"),
];

/// How a location is chosen (`location` of ngx_http_core_module).
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// `= PATH`
    Exact(String),
    /// `PATH`
    Prefix(String),
    /// `^~ PATH`: expressions are not looked at.
    Final(String),
    /// `~ EXPRESSION`, with `~*` in any case; the operator of `vars` for it.
    Regex(&'static str, String),
}

impl Kind {
    /// Of the arguments of `location`; `None` for named ones.
    pub(super) fn of(arguments: &[String]) -> Option<Kind> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Some(match words.as_slice() {
            ["=", path] => Kind::Exact((*path).to_owned()),
            ["^~", path] => Kind::Final((*path).to_owned()),
            ["~", expression] => Kind::Regex("~~", (*expression).to_owned()),
            ["~*", expression] => Kind::Regex("~*", (*expression).to_owned()),
            [path] if path.starts_with('/') => Kind::Prefix((*path).to_owned()),
            _ => return None,
        })
    }
}

/// What is gathered of a location.
#[derive(Default)]
struct Gathered {
    plugins: Map<String, Value>,
    /// Headers to set, and those to take away.
    set: Map<String, Value>,
    remove: Vec<Value>,
    /// Of the proxy-rewrite.
    rewrite: Map<String, Value>,
    answers: bool,
    target: Option<String>,
    host: Option<String>,
    timeout: Map<String, Value>,
    retries: Option<u64>,
    /// `allow` and `deny`, if they can be taken over.
    access: Access,
    /// Whether something that keeps requests out was not taken over.
    closed: bool,
    /// Whether a location within it keeps requests out, which come to this one here.
    closed_within: bool,
    websocket: bool,
    response: Map<String, Value>,
}

impl Import {
    /// A route without its conditions.
    pub(super) fn behaviour(
        &mut self,
        kind: &Kind,
        own: &[&Directive],
        above: &[&Directive],
    ) -> Map<String, Value> {
        let is_own = |name: &str| own.iter().any(|one| inherited_as(&one.name) == inherited_as(name));
        let passed_on = above.iter().filter(|one| one.name == "if" || !is_own(&one.name));
        let all: Vec<&Directive> = passed_on.chain(own).copied().collect();
        let access = Access::of(&all);
        let mut gathered = Gathered { closed: access == Access::Unknown, access, ..Gathered::default() };
        for one in &all {
            self.one(kind, one, &all, &mut gathered);
        }
        self.route(gathered)
    }

    fn one(&mut self, kind: &Kind, one: &Directive, all: &[&Directive], found: &mut Gathered) {
        match one.name.as_str() {
            "return" => self.answer(one, found),
            "rewrite" => self.rewrite(one, found),
            "proxy_pass" => self.proxy_pass(kind, one, found),
            "proxy_set_header" => self.header(one, found),
            "add_header" => {
                found.response.insert(one.argument(0).to_owned(), one.argument(1).into());
                match one.argument(2) {
                    "always" => self.exact(one, ""),
                    _ => self.add(Match::Approximate, one, "on every answer, whatever its status"),
                }
            }
            "proxy_connect_timeout" => self.timeout(one, "connect", found),
            "proxy_read_timeout" => self.timeout(one, "read", found),
            "proxy_send_timeout" => self.timeout(one, "send", found),
            "proxy_next_upstream_tries" => {
                found.retries = one.argument(0).parse::<u64>().ok().and_then(|tries| tries.checked_sub(1));
                self.exact(one, "");
            }
            "proxy_next_upstream" => {
                self.add(Match::Approximate, one, "what is tried again is not configured")
            }
            "limit_req" => self.limit(one, all, found),
            "limit_req_status" => self.exact(one, ""),
            "allow" | "deny" if found.access == Access::Unknown => {
                self.add(
                    Match::Manual,
                    one,
                    "let in nobody: write the plugin ip-restriction, which has one list",
                );
            }
            "allow" | "deny" => self.exact(one, ""),
            "auth_basic" | "auth_request" | "auth_jwt" | "ssl_verify_client" if one.argument(0) == "off" => {
                self.exact(one, "");
            }
            "satisfy" if one.argument(0) == "all" => self.exact(one, ""),
            "auth_basic_user_file" => self.add(Match::Manual, one, "its passwords are hashed"),
            "if" if refuses(one) => {
                found.closed = true;
                self.add(Match::Manual, one, "let in nobody: write routes with vars for it");
            }
            "location" if keeps_out(one) => {
                found.closed_within = true;
                self.add(Match::Manual, one, "let in nobody, nor to what is around it: write a route for it");
            }
            name if KEEPS_OUT.iter().any(|(of, _)| *of == name) => {
                found.closed = true;
                let counterpart = KEEPS_OUT.iter().find(|(of, _)| *of == name).map_or("", |(_, of)| of);
                self.add(Match::Manual, one, format!("let in nobody: write {counterpart}"));
            }
            "limit_conn" => self.add(Match::Manual, one, "write the plugin limit-conn"),
            "client_max_body_size" => {
                self.add(Match::Manual, one, "there is one for all: nginx_config.http.client_max_body_size");
            }
            "root" | "alias" | "try_files" | "index" | "autoindex" | "fastcgi_pass" | "uwsgi_pass" => {
                self.add(
                    Match::Unsupported,
                    one,
                    "files and FastCGI are not served: keep nginx for them, as an upstream",
                );
            }
            name if WITHOUT_EFFECT.contains(&name) => self.exact(one, "does not change answers"),
            _ => self.unknown(one),
        }
    }

    /// `return CODE [TEXT]`, `return CODE URL`, `return URL`
    fn answer(&mut self, one: &Directive, found: &mut Gathered) {
        if found.answers {
            return self.exact(one, "never reached");
        }
        let (code, text) = match one.argument(0).parse::<u16>() {
            Ok(code) => (code, one.arguments.get(1).cloned()),
            Err(_) => (302, Some(one.argument(0).to_owned())),
        };
        found.answers = true;
        match (code, text) {
            (301 | 302 | 303 | 307 | 308, Some(url)) => {
                let is_relative = url.starts_with('/');
                found.plugins.insert(REDIRECT.to_owned(), json!({"uri": url, "ret_code": code}));
                match is_relative {
                    true => self.add(Match::Approximate, one, "Location is written without scheme and host"),
                    false => self.exact(one, ""),
                }
            }
            (444, _) => {
                found.plugins.insert(MOCKING.to_owned(), mock(403, ""));
                self.add(Match::Approximate, one, "answers with 403 in place of closing the connection");
            }
            (code, text) => {
                let body = text.clone().unwrap_or_default();
                found.plugins.insert(MOCKING.to_owned(), mock(code, &body));
                match text {
                    Some(body) if body.contains('$') => {
                        self.add(Match::Manual, one, "variables of the text are not replaced")
                    }
                    None if code >= 300 => self.add(Match::Approximate, one, "with an empty body"),
                    _ => self.exact(one, ""),
                }
            }
        }
    }

    /// `rewrite EXPRESSION REPLACEMENT [FLAG]`
    fn rewrite(&mut self, one: &Directive, found: &mut Gathered) {
        let (expression, replacement, flag) = (one.argument(0), one.argument(1), one.argument(2));
        let pair = json!([expression, replacement]);
        let is_url = replacement.starts_with("http://") || replacement.starts_with("https://");
        match flag {
            _ if replacement.ends_with('?') => {
                self.add(Match::Manual, one, "taking the query away has no counterpart")
            }
            "permanent" | "redirect" | "" | "last" | "break"
                if flag == "permanent" || flag == "redirect" || is_url =>
            {
                let code = if flag == "permanent" { 301 } else { 302 };
                found.plugins.insert(REDIRECT.to_owned(), json!({"regex_uri": pair, "ret_code": code}));
                self.add(
                    Match::Approximate,
                    one,
                    "Location is written without scheme and host where the replacement is",
                );
            }
            "break" if found.rewrite.contains_key("regex_uri") => {
                self.add(Match::Manual, one, "a second one: add it to regex_uri of the plugin proxy-rewrite");
            }
            "break" => {
                found.rewrite.insert("regex_uri".to_owned(), pair);
                self.exact(one, "");
            }
            _ => self.add(
                Match::Manual,
                one,
                "another location is not looked for: write the route that is meant",
            ),
        }
    }

    /// `proxy_pass SCHEME://TARGET[URI]`
    fn proxy_pass(&mut self, kind: &Kind, one: &Directive, found: &mut Gathered) {
        let url = one.argument(0);
        let target = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let Some(target) = target.filter(|target| !target.contains('$') && !target.starts_with("unix:"))
        else {
            return self.add(
                Match::Manual,
                one,
                "a target of variables or a unix socket: write the upstream",
            );
        };
        let (authority, uri) = target.find('/').map_or((target, None), |at| {
            let (authority, uri) = target.split_at(at);
            (authority, Some(uri))
        });
        let is_known = self.upstreams.contains_key(authority) || address(authority, 80).is_some();
        if !is_known {
            return self.add(Match::Manual, one, "write the upstream");
        }
        found.target =
            Some(format!("{}{authority}", if url.starts_with("https:") { "https://" } else { "http://" }));
        match (kind, uri) {
            (_, Some(_)) if found.rewrite.contains_key("regex_uri") => {
                self.exact(one, "the path is that of the rewrite")
            }
            (Kind::Prefix(path) | Kind::Final(path), Some(uri)) => {
                let expression = format!("^{}(.*)$", escape(path));
                found.rewrite.insert("regex_uri".to_owned(), json!([expression, format!("{uri}$1")]));
                self.exact(one, "");
            }
            (Kind::Exact(_), Some(uri)) => {
                found.rewrite.insert("uri".to_owned(), uri.into());
                self.exact(one, "");
            }
            _ => self.exact(one, ""),
        }
    }

    /// `proxy_set_header NAME VALUE`
    fn header(&mut self, one: &Directive, found: &mut Gathered) {
        let (name, value) = (one.argument(0), one.argument(1));
        let lower = name.to_ascii_lowercase();
        match (lower.as_str(), value) {
            ("host", value) => {
                found.host = Some(value.to_owned());
                match value {
                    "$host" => self.add(Match::Approximate, one, "with the port, if the client names one"),
                    "$http_host" | "$proxy_host" => self.exact(one, ""),
                    value if value.contains('$') => self.add(Match::Manual, one, "write upstream_host"),
                    _ => self.exact(one, ""),
                }
            }
            ("x-real-ip", "$remote_addr")
            | ("x-forwarded-for", "$proxy_add_x_forwarded_for")
            | ("x-forwarded-proto", "$scheme") => self.exact(one, "is set unasked"),
            ("upgrade", "$http_upgrade") | ("connection", "upgrade" | "$connection_upgrade") => {
                found.websocket = true;
                self.exact(one, "");
            }
            ("connection", "") => self.exact(one, "connections to upstreams are kept unasked"),
            (_, "") => {
                found.remove.push(name.into());
                self.exact(one, "");
            }
            _ => {
                found.set.insert(name.to_owned(), value.into());
                self.exact(one, "");
            }
        }
    }

    fn timeout(&mut self, one: &Directive, key: &str, found: &mut Gathered) {
        match seconds(one.argument(0)) {
            Some(seconds) => {
                found.timeout.insert(key.to_owned(), json!(seconds));
                self.exact(one, "");
            }
            None => self.add(Match::Manual, one, "not a time that is understood"),
        }
    }

    /// `limit_req zone=NAME [burst=N] [nodelay]`
    fn limit(&mut self, one: &Directive, all: &[&Directive], found: &mut Gathered) {
        let zone = one.arguments.iter().find_map(|text| text.strip_prefix("zone="));
        let Some(zone) = zone.and_then(|zone| self.zones.get(zone)) else {
            return self.add(Match::Manual, one, "its zone is not understood: write the plugin limit-req");
        };
        let burst = one.arguments.iter().find_map(|text| text.strip_prefix("burst=")?.parse::<u32>().ok());
        let status = all.iter().find(|other| other.name == "limit_req_status");
        let status = status.and_then(|status| status.argument(0).parse::<u16>().ok()).unwrap_or(503);
        let limit = json!({
            "rate": zone.rate, "burst": burst.unwrap_or(0), "nodelay": one.arguments.iter().any(|text| text == "nodelay"),
            "key": zone.key, "key_type": "var", "rejected_code": status,
        });
        if found.plugins.insert(LIMIT_REQ.to_owned(), limit).is_some() {
            return self.add(Match::Manual, one, "a second limit: one was taken");
        }
        self.add(Match::Approximate, one, "counted for the route, not for all that share the zone");
    }

    /// The route that comes of it.
    fn route(&mut self, mut found: Gathered) -> Map<String, Value> {
        let mut route = Map::new();
        if found.closed_within {
            (found.answers, found.closed) = (false, true);
            found.plugins.remove(REDIRECT);
        }
        let answers = found.answers;
        // nginx answers and redirects before it looks who asks.
        if !answers {
            match std::mem::take(&mut found.access) {
                _ if found.closed => {
                    found.plugins.insert(MOCKING.to_owned(), mock(403, ""));
                }
                Access::Nobody => {
                    found.plugins.insert(MOCKING.to_owned(), mock(403, ""));
                }
                Access::Only(list) => {
                    found.plugins.insert(IP_RESTRICTION.to_owned(), json!({"whitelist": list}));
                }
                Access::Without(list) => {
                    found.plugins.insert(IP_RESTRICTION.to_owned(), json!({"blacklist": list}));
                }
                Access::All | Access::Unknown => {}
            }
        }
        let mut headers = Map::new();
        if !found.set.is_empty() {
            headers.insert("set".to_owned(), Value::Object(found.set));
        }
        if !found.remove.is_empty() {
            headers.insert("remove".to_owned(), Value::Array(found.remove));
        }
        if !headers.is_empty() {
            found.rewrite.insert("headers".to_owned(), Value::Object(headers));
        }
        let answers = answers || found.plugins.contains_key(MOCKING);
        let target = found.target.filter(|_| !answers);
        if target.is_none() && !answers {
            found.plugins.insert(MOCKING.to_owned(), mock(404, ""));
        }
        if target.is_some() && !found.rewrite.is_empty() {
            found.plugins.insert(PROXY_REWRITE.to_owned(), Value::Object(found.rewrite));
        }
        if !found.response.is_empty() {
            found.plugins.insert(RESPONSE_REWRITE.to_owned(), json!({"headers": {"set": found.response}}));
        }
        if let Some(target) = target {
            let is_plain = found.host.is_none() && found.timeout.is_empty() && found.retries.is_none();
            let (scheme, name) = target.split_once("://").unwrap_or(("http", &target));
            if is_plain && scheme == "http" && self.upstreams.contains_key(name) {
                route.insert("upstream_id".to_owned(), name.into());
            } else {
                let upstream = self.inline(scheme, name, found.host.as_deref(), found.timeout, found.retries);
                route.insert("upstream".to_owned(), upstream);
            }
        }
        if found.websocket {
            route.insert("enable_websocket".to_owned(), true.into());
        }
        if !found.plugins.is_empty() {
            route.insert("plugins".to_owned(), Value::Object(found.plugins));
        }
        route
    }

    /// An upstream of its own: a block's with other settings, or one server.
    fn inline(
        &self,
        scheme: &str,
        name: &str,
        host: Option<&str>,
        mut timeout: Map<String, Value>,
        retries: Option<u64>,
    ) -> Value {
        let mut upstream = match self.upstreams.get(name) {
            Some(Value::Object(block)) => block.clone(),
            _ => {
                let default = if scheme == "https" { 443 } else { 80 };
                let (node, port) = address(name, default).unwrap_or_default();
                let nodes = json!([{"host": node, "port": port, "weight": 1}]);
                let fields = [
                    ("type", json!("roundrobin")),
                    ("nodes", nodes),
                    ("pass_host", json!("rewrite")),
                    ("upstream_host", json!(name)),
                ];
                fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            }
        };
        upstream.remove("id");
        if scheme == "https" {
            upstream.insert("scheme".to_owned(), "https".into());
        }
        match host {
            Some("$host" | "$http_host") => {
                upstream.insert("pass_host".to_owned(), "pass".into());
                upstream.remove("upstream_host");
            }
            Some(host) if !host.contains('$') => {
                upstream.insert("upstream_host".to_owned(), host.into());
            }
            _ => {}
        }
        if !timeout.is_empty() {
            for key in ["connect", "send", "read"] {
                timeout.entry(key).or_insert(json!(60));
            }
            upstream.insert("timeout".to_owned(), Value::Object(timeout));
        }
        if let Some(retries) = retries {
            upstream.insert("retries".to_owned(), retries.into());
        }
        Value::Object(upstream)
    }
}

/// What `allow` and `deny` come to, of which nginx takes the first that fits.
#[derive(Debug, Default, PartialEq)]
enum Access {
    /// Everybody is let in.
    #[default]
    All,
    /// Nobody is.
    Nobody,
    /// These alone are.
    Only(Vec<Value>),
    /// All but these are.
    Without(Vec<Value>),
    /// One list does not say it.
    Unknown,
}

impl Access {
    fn of(directives: &[&Directive]) -> Access {
        let rules: Vec<(bool, &str)> = directives
            .iter()
            .filter(|one| one.name == "allow" || one.name == "deny")
            .map(|one| (one.name == "allow", one.argument(0)))
            .collect();
        let end = rules.iter().position(|(_, who)| *who == "all");
        let named = rules.get(..end.unwrap_or(rules.len())).unwrap_or_default();
        // Whom nothing fits is let in.
        let lets_rest_in = end.and_then(|at| rules.get(at)).is_none_or(|(allows, _)| *allows);
        let list = || named.iter().map(|(_, who)| Value::from(*who)).collect();
        let is_address =
            |who: &str| who.split('/').next().is_some_and(|ip| ip.parse::<std::net::IpAddr>().is_ok());
        match (named.iter().all(|(allows, _)| *allows != lets_rest_in), lets_rest_in) {
            _ if !named.iter().all(|(_, who)| is_address(who)) => Access::Unknown,
            (false, true) if named.iter().all(|(allows, _)| *allows) => Access::All,
            (false, false) if named.iter().all(|(allows, _)| !*allows) => Access::Nobody,
            (false, _) => Access::Unknown,
            (true, true) if named.is_empty() => Access::All,
            (true, false) if named.is_empty() => Access::Nobody,
            (true, true) => Access::Without(list()),
            (true, false) => Access::Only(list()),
        }
    }
}

/// Whether a block turns requests away.
fn refuses(block: &Directive) -> bool {
    block
        .block
        .iter()
        .any(|one| one.name == "deny" || one.name == "return" && one.argument(0).starts_with('4'))
}

/// Whether a location keeps some of its requests out, or one within it does.
fn keeps_out(location: &Directive) -> bool {
    let does = |one: &Directive| match one.name.as_str() {
        "if" => refuses(one),
        "location" => keeps_out(one),
        name => KEEPS_OUT.iter().any(|(of, _)| *of == name) && one.argument(0) != "off",
    };
    refuses(location) || location.block.iter().any(does)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_let_in_is_never_more_than_in_nginx() {
        let of = |rules: &[(&str, &str)]| {
            let rule = |(name, who): &(&str, &str)| Directive {
                name: (*name).to_owned(),
                arguments: vec![(*who).to_owned()],
                block: Vec::new(),
                file: "f".into(),
                line: 1,
            };
            let directives: Vec<Directive> = rules.iter().map(rule).collect();
            Access::of(&directives.iter().collect::<Vec<_>>())
        };
        let list = |who: &str| vec![Value::from(who)];
        assert_eq!(of(&[]), Access::All);
        assert_eq!(of(&[("deny", "all")]), Access::Nobody);
        assert_eq!(of(&[("deny", "all"), ("allow", "10.0.0.0/8")]), Access::Nobody);
        assert_eq!(of(&[("allow", "10.0.0.0/8"), ("deny", "all")]), Access::Only(list("10.0.0.0/8")));
        assert_eq!(of(&[("deny", "10.0.0.1")]), Access::Without(list("10.0.0.1")));
        assert_eq!(of(&[("deny", "10.0.0.1"), ("allow", "all")]), Access::Without(list("10.0.0.1")));
        assert_eq!(of(&[("allow", "10.0.0.1")]), Access::All);
        assert_eq!(of(&[("deny", "10.0.0.1"), ("allow", "10.0.0.0/8"), ("deny", "all")]), Access::Unknown);
        assert_eq!(of(&[("deny", "unix:")]), Access::Unknown);
    }
}
