//! `server` blocks: where they listen, and their locations as routes that are chosen as nginx chooses locations.
//!
//! nginx takes an exact location, else remembers the longest prefix, and unless that is final the first expression that
//! matches. Here the longest path wins before priorities are looked at: so a prefix has a route for each expression with a
//! higher priority than its own.

use super::location::{INHERITED, Kind, inherited_as};
use super::parse::Directive;
use super::{Import, Match};
use crate::import::pieces::mock;
use crate::import::written::{MOCKING, REDIRECT};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Priority of what the rewrites of a server do, above all expressions of its locations.
const REWRITES: usize = 100_000;

/// An address of `listen`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Listen {
    ip: String,
    port: u16,
    tls: bool,
    is_default: bool,
}

/// A server, read.
struct Server<'d> {
    directive: &'d Directive,
    listens: Vec<Listen>,
    names: Vec<String>,
    is_default: bool,
}

impl Import {
    pub(super) fn servers(&mut self, blocks: &[&Directive], above: &[&Directive]) {
        let mut servers: Vec<Server<'_>> = blocks.iter().map(|block| self.server_head(block)).collect();
        let ports: BTreeSet<u16> = servers.iter().flat_map(|one| &one.listens).map(|one| one.port).collect();
        for port in &ports {
            let on_port = |server: &Server<'_>| server.listens.iter().any(|listen| listen.port == *port);
            let named = servers.iter().position(|server| {
                server.listens.iter().any(|listen| listen.port == *port && listen.is_default)
            });
            let default = named.or_else(|| servers.iter().position(on_port));
            if let Some(server) = default.and_then(|at| servers.get_mut(at)) {
                server.is_default = true;
            }
        }
        self.listens(&servers);
        for server in &servers {
            self.server(server, ports.len() > 1, above);
        }
    }

    fn server_head<'d>(&mut self, directive: &'d Directive) -> Server<'d> {
        let (mut listens, mut names) = (Vec::new(), Vec::new());
        for one in &directive.block {
            match one.name.as_str() {
                "listen" => match listen(one) {
                    Some(listen) => {
                        listens.push(listen);
                        self.exact(one, "");
                    }
                    None => self.add(Match::Unsupported, one, "not an address with a port"),
                },
                "server_name" => {
                    for name in &one.arguments {
                        match name.strip_prefix('.') {
                            Some(rest) => names.extend([rest.to_owned(), format!("*.{rest}")]),
                            None if name.starts_with('~') || name.ends_with(".*") => {
                                self.add(
                                    Match::Manual,
                                    one,
                                    format!("write routes with vars of host for {name}"),
                                );
                            }
                            None if name == "_" || name.is_empty() => {}
                            None => names.push(name.to_ascii_lowercase()),
                        }
                    }
                    self.exact(one, "");
                }
                _ => {}
            }
        }
        if listens.is_empty() {
            listens.push(Listen { ip: "0.0.0.0".to_owned(), port: 80, tls: false, is_default: false });
        }
        Server { directive, listens, names, is_default: false }
    }

    fn listens(&mut self, servers: &[Server<'_>]) {
        let all = servers.iter().flat_map(|server| &server.listens);
        let (tls, plain): (BTreeSet<_>, BTreeSet<_>) =
            all.map(|listen| (listen.tls, listen.ip.clone(), listen.port)).partition(|(tls, ..)| *tls);
        let list = |listens: BTreeSet<(bool, String, u16)>| -> Vec<Value> {
            listens.into_iter().map(|(_, ip, port)| json!({"ip": ip, "port": port})).collect()
        };
        let ssl = match tls.is_empty() {
            true => json!({"enable": false}),
            false => json!({"enable": true, "listen": list(tls)}),
        };
        let apisix = json!({
            "router": {"http": "radixtree_host_uri"}, "node_listen": list(plain), "ssl": ssl,
        });
        self.out.config.insert("apisix".to_owned(), apisix);
    }

    fn server(&mut self, server: &Server<'_>, by_port: bool, above: &[&Directive]) {
        let block = &server.directive.block;
        // What `if` of a server does it does before a location is looked for.
        let is_passed_on = |one: &&Directive| one.name == "if" || INHERITED.contains(&one.name.as_str());
        let own: Vec<&Directive> = block.iter().filter(is_passed_on).collect();
        let is_own = |name: &str| own.iter().any(|one| inherited_as(&one.name) == inherited_as(name));
        let passed_on: Vec<&Directive> =
            above.iter().filter(|one| !is_own(&one.name)).chain(&own).copied().collect();
        let (mut locations, mut rewrites) = (Vec::new(), Vec::new());
        let mut answer = None;
        for one in block {
            match one.name.as_str() {
                "location" => match Kind::of(&one.arguments) {
                    Some(kind) => {
                        self.exact(one, "");
                        let within: Vec<&Directive> = one.block.iter().collect();
                        let route = self.behaviour(&kind, &within, &passed_on);
                        locations.push((kind, route));
                    }
                    None => self.unknown(one),
                },
                "return" => {
                    let behaviour = self.behaviour(&Kind::Prefix("/".to_owned()), &[one], &passed_on);
                    answer.get_or_insert(behaviour);
                }
                "rewrite" => {
                    let route = self.behaviour(&Kind::Prefix("/".to_owned()), &[one], &passed_on);
                    // Of others it has been told that they are to be written by hand.
                    if route.get("plugins").is_some_and(|plugins| plugins.get(REDIRECT).is_some()) {
                        rewrites.push((Kind::Regex("~~", one.argument(0).to_owned()), route));
                    }
                }
                "listen" | "server_name" | "ssl_certificate_key" => {}
                "ssl_certificate" => self.ssl(one, server),
                "ssl_protocols"
                | "ssl_ciphers"
                | "ssl_session_cache"
                | "ssl_session_timeout"
                | "ssl_prefer_server_ciphers"
                | "http2" => {
                    self.add(Match::Approximate, one, "one setting for all: apisix.ssl");
                }
                "if" => {}
                name if INHERITED.contains(&name) => {}
                name if super::WITHOUT_EFFECT.contains(&name) => self.exact(one, "does not change answers"),
                "root" | "index" => {
                    self.add(Match::Unsupported, one, "files are not served: keep nginx for them")
                }
                _ => self.unknown(one),
            }
        }
        if let Some(answer) = answer {
            (locations, rewrites) = (vec![(Kind::Prefix("/".to_owned()), answer)], Vec::new());
        }
        let is_root = |kind: &Kind| matches!(kind, Kind::Prefix(path) | Kind::Final(path) if path == "/");
        if !locations.iter().any(|(kind, _)| is_root(kind)) {
            let none = json!({"plugins": {MOCKING: mock(404, "")}});
            let Value::Object(none) = none else { return };
            locations.push((Kind::Prefix("/".to_owned()), none));
        }
        self.routes(server, by_port, &locations, &rewrites);
    }

    /// A route for each location, and for each that an expression may take its requests.
    fn routes(
        &mut self,
        server: &Server<'_>,
        by_port: bool,
        locations: &[(Kind, Map<String, Value>)],
        rewrites: &[(Kind, Map<String, Value>)],
    ) {
        let expressions: Vec<_> =
            locations.iter().filter(|(kind, _)| matches!(kind, Kind::Regex(..))).collect();
        for (kind, route) in locations {
            let (uri, takes) = match kind {
                Kind::Exact(path) => (path.clone(), false),
                Kind::Prefix(path) => (format!("{path}*"), true),
                Kind::Final(path) => (format!("{path}*"), false),
                Kind::Regex(..) => continue,
            };
            self.add_route(server, by_port, &uri, None, 0, route);
            self.with_slash(server, by_port, kind, locations);
            let above = rewrites.iter().enumerate().map(|(at, one)| (REWRITES + rewrites.len() - at, one));
            let expressions = expressions.iter().enumerate().filter(|_| takes);
            let expressions = expressions.map(|(at, one)| (expressions_left(locations) - at, *one));
            let all: Vec<_> = above.chain(expressions).collect();
            for (priority, (kind, route)) in all {
                self.add_route(server, by_port, &uri, Some(kind), priority, route);
            }
        }
    }

    /// nginx sends who asks for `/a` to `/a/`, if that is passed on and nothing else is for `/a`
    /// (`ngx_http_find_static_location`).
    fn with_slash(
        &mut self,
        server: &Server<'_>,
        by_port: bool,
        kind: &Kind,
        locations: &[(Kind, Map<String, Value>)],
    ) {
        let (Kind::Prefix(path) | Kind::Final(path)) = kind else { return };
        let Some(bare) = path.strip_suffix('/').filter(|bare| !bare.is_empty()) else { return };
        let is_bare = |(kind, _): &(Kind, Map<String, Value>)| matches!(kind, Kind::Exact(path) | Kind::Prefix(path) | Kind::Final(path) if path == bare);
        let passes = |(other, route): &(Kind, Map<String, Value>)| {
            other == kind && (route.contains_key("upstream") || route.contains_key("upstream_id"))
        };
        if locations.iter().any(is_bare) || !locations.iter().any(passes) {
            return;
        }
        let redirect = json!({"uri": path, "ret_code": 301, "append_query_string": true});
        let route = Map::from_iter([("plugins".to_owned(), json!({REDIRECT: redirect}))]);
        self.add_route(server, by_port, bare, None, 0, &route);
    }

    fn add_route(
        &mut self,
        server: &Server<'_>,
        by_port: bool,
        uri: &str,
        expression: Option<&Kind>,
        priority: usize,
        route: &Map<String, Value>,
    ) {
        let mut vars = Vec::new();
        if let Some(Kind::Regex(operator, expression)) = expression {
            vars.push(json!(["uri", operator, expression]));
        }
        if by_port {
            let ports: Vec<String> = server.listens.iter().map(|listen| listen.port.to_string()).collect();
            vars.push(json!(["server_port", "in", ports]));
        }
        let mut whole = Map::new();
        whole.insert("id".to_owned(), (self.routes.len() + 1).to_string().into());
        whole.insert("uri".to_owned(), uri.into());
        if priority > 0 {
            whole.insert("priority".to_owned(), priority.into());
        }
        if !vars.is_empty() {
            whole.insert("vars".to_owned(), Value::Array(vars));
        }
        whole.extend(route.clone());
        if !server.names.is_empty() {
            let mut named = whole.clone();
            named.insert("hosts".to_owned(), json!(server.names));
            self.routes.push(Value::Object(named));
        }
        if server.is_default || server.names.is_empty() {
            whole.insert("id".to_owned(), (self.routes.len() + 1).to_string().into());
            self.routes.push(Value::Object(whole));
        }
    }

    /// A certificate, its files read.
    fn ssl(&mut self, one: &Directive, server: &Server<'_>) {
        let key = server.directive.block.iter().find(|other| other.name == "ssl_certificate_key");
        let root = Path::new(&*one.file).parent().unwrap_or(Path::new("."));
        let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
        let certificate = read(one.argument(0));
        let private = key.and_then(|key| read(key.argument(0)));
        let (Some(certificate), Some(private)) = (certificate, private) else {
            return self.add(
                Match::Manual,
                one,
                "its files can't be read: write an ssl with the certificate and its key",
            );
        };
        if server.names.is_empty() {
            return self.add(
                Match::Manual,
                one,
                "the server has no name: write an ssl with the names that are asked for",
            );
        }
        let id = (self.ssls.len() + 1).to_string();
        self.ssls.push(json!({"id": id, "snis": server.names, "cert": certificate, "key": private}));
        self.exact(one, "");
    }
}

fn expressions_left(locations: &[(Kind, Map<String, Value>)]) -> usize {
    locations.iter().filter(|(kind, _)| matches!(kind, Kind::Regex(..))).count()
}

/// `listen ADDRESS:PORT`, `listen PORT`, with `ssl`, `default_server` and what does not matter.
fn listen(one: &Directive) -> Option<Listen> {
    let text = one.argument(0);
    let (ip, port) = match text.rsplit_once(':') {
        Some((ip, port)) if !text.starts_with("unix:") => (ip, port.parse().ok()?),
        _ => match text.parse() {
            Ok(port) => ("0.0.0.0", port),
            Err(_) => (text, 80),
        },
    };
    let ip = if ip == "*" { "0.0.0.0" } else { ip.trim_start_matches('[').trim_end_matches(']') };
    ip.parse::<std::net::IpAddr>().ok()?;
    let has = |word: &str| one.arguments.iter().any(|argument| argument == word);
    let is_default = has("default_server") || has("default");
    Some(Listen { ip: ip.to_owned(), port, tls: has("ssl"), is_default })
}
