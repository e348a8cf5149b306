//! Kong's entities, nested or not, with what they belong to.

use super::names::Names;
use crate::import::document::{Document, field, fields, items, items_of, text, text_of, truth_of};
use crate::import::report::{Imported, Part};
use crate::import::written::{BASIC_AUTH, JWT_AUTH, KEY_AUTH};
use sixfold_core::document::{Node, Object, Value};
use std::collections::{HashMap, HashSet};

/// Which requests a plugin is for: places in the lists of [`Entities`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) service: Option<usize>,
    pub(super) route: Option<usize>,
    pub(super) consumer: Option<usize>,
    pub(super) group: Option<usize>,
}

#[derive(Debug, Clone)]
pub(super) struct Plugin {
    pub(super) name: String,
    pub(super) node: Node,
    pub(super) config: Node,
    pub(super) scope: Scope,
    /// What it stands in: ` of route "shop"`.
    pub(super) of: String,
}

#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) node: Node,
    pub(super) service: Option<usize>,
}

/// A credential, of the consumer that it stands in or names.
#[derive(Debug, Clone)]
pub(super) struct Credential {
    /// The list that it stands in.
    pub(super) list: &'static str,
    pub(super) node: Node,
    pub(super) consumer: usize,
}

/// Lists of credentials, of those that are taken over the plugin.
pub(super) const CREDENTIALS: [(&str, &str); 9] = [
    ("keyauth_credentials", KEY_AUTH),
    ("basicauth_credentials", BASIC_AUTH),
    ("jwt_secrets", JWT_AUTH),
    ("acls", ""),
    ("hmacauth_credentials", ""),
    ("oauth2_credentials", ""),
    ("mtls_auth_credentials", ""),
    ("keyauth_enc_credentials", ""),
    ("basicauth_brute_force", ""),
];

#[derive(Debug, Default)]
pub(super) struct Entities {
    /// 1, 2 or 3 of `_format_version`; 3 if it is not there.
    pub(super) version: u32,
    /// Whether passwords are readable.
    pub(super) transforms: bool,
    pub(super) services: Vec<Node>,
    pub(super) routes: Vec<Route>,
    pub(super) plugins: Vec<Plugin>,
    pub(super) consumers: Vec<Node>,
    pub(super) groups: Vec<Node>,
    pub(super) credentials: Vec<Credential>,
    /// With their targets.
    pub(super) upstreams: Vec<(Node, Vec<Node>)>,
    /// With their names.
    pub(super) certificates: Vec<(Node, Vec<String>)>,
    /// Whether filters of Wasm are chained for all requests.
    pub(super) chained: bool,
    /// decK's configurations that plugins share, by name.
    shared: Vec<(String, Node)>,
    service_names: Names,
    route_names: Names,
    consumer_names: Names,
    /// Places of upstreams, by what people call them.
    upstream_names: HashMap<String, usize>,
    pub(super) scopes: Scopes,
    /// Whether secrets of JWT are in base64.
    pub(super) encodes_secrets: bool,
}

/// Which plugins are for what: places in the list of them.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    routes: HashMap<usize, Vec<usize>>,
    services: HashMap<usize, Vec<usize>>,
    consumers: HashMap<usize, Vec<usize>>,
    all: Vec<usize>,
    /// Names of those that are not for all requests.
    pub(super) narrow: HashSet<String>,
}

impl Scopes {
    fn of(plugins: &[Plugin]) -> Scopes {
        let mut found = Scopes::default();
        for (at, Plugin { name, scope, .. }) in plugins.iter().enumerate() {
            if *scope != Scope::default() {
                found.narrow.insert(name.clone());
            }
            if let (Some(consumer), true) = (scope.consumer, scope.is_of_consumer_alone()) {
                found.consumers.entry(consumer).or_default().push(at);
            }
            match (scope.route, scope.service) {
                (Some(route), _) => found.routes.entry(route).or_default().push(at),
                (None, Some(service)) => found.services.entry(service).or_default().push(at),
                (None, None) => found.all.push(at),
            }
        }
        found
    }
}

/// What at the top says nothing of requests.
const WITHOUT_EFFECT: &[&str] = &[
    "_format_version",
    "_transform",
    "_info",
    "_workspace",
    "_comment",
    "_ignore",
    "_konnect",
    "_plugin_configs",
];

impl Entities {
    pub(super) fn of(document: &Document, out: &mut Imported) -> Entities {
        let root = &document.root;
        let version = text_of(root, "_format_version").and_then(|text| text.get(..1)?.parse().ok());
        let mut found = Entities {
            version: version.unwrap_or(3),
            transforms: truth_of(root, "_transform", true),
            chained: field(root, "filter_chains").is_some(),
            ..Entities::default()
        };
        if let Some(shared) = field(root, "_plugin_configs") {
            found.shared = fields(shared).map(|entry| (entry.key.clone(), entry.value.clone())).collect();
        }
        let defaults = field(root, "_info").and_then(|info| field(info, "defaults"));
        let default = |kind: &str| defaults.and_then(|defaults| field(defaults, kind));
        found.consumers(root);
        for service in items_of(root, "services") {
            found.service(&with_defaults(service, default("service")), default("route"));
        }
        for route in items_of(root, "routes") {
            let service = field(route, "service").and_then(|of| found.service_of(of));
            found.route(with_defaults(route, default("route")), service);
        }
        let targets = Owned::of(root, "targets", "upstream", "upstreams");
        for (at, upstream) in items_of(root, "upstreams").iter().enumerate() {
            let mut own = items_of(upstream, "targets").to_vec();
            own.extend(targets.of_owner(at).cloned());
            found.upstream_names.entry(name(upstream)).or_insert(at);
            found.upstreams.push((with_defaults(upstream, default("upstream")), own));
        }
        found.certificates(root);
        for plugin in items_of(root, "plugins") {
            found.top_plugin(plugin);
        }
        found.rest(document, out);
        found.scopes = Scopes::of(&found.plugins);
        let encodes =
            |plugin: &Plugin| plugin.name == "jwt" && truth_of(&plugin.config, "secret_is_base64", false);
        found.encodes_secrets = found.plugins.iter().any(encodes);
        found
    }

    fn consumers(&mut self, root: &Node) {
        for consumer in items_of(root, "consumers") {
            let at = self.consumers.len();
            let consumer = with_defaults(consumer, None);
            self.consumer_names.add(at, &consumer);
            self.consumers.push(consumer.clone());
            for (list, _) in CREDENTIALS {
                let own = items_of(&consumer, list).iter().cloned();
                self.credentials.extend(own.map(|node| Credential { list, node, consumer: at }));
            }
        }
        for (list, _) in CREDENTIALS {
            for node in items_of(root, list) {
                let consumer = field(node, "consumer").and_then(|of| self.consumer_of(of));
                let found =
                    consumer.map(|consumer| Credential { list, node: with_defaults(node, None), consumer });
                self.credentials.extend(found);
            }
        }
        self.groups = items_of(root, "consumer_groups").to_vec();
        for (at, consumer) in self.consumers.clone().iter().enumerate() {
            let scope = Scope { consumer: Some(at), ..Scope::default() };
            self.plugins(consumer, scope, &of("consumer", consumer));
        }
        for (at, group) in self.groups.clone().iter().enumerate() {
            let scope = Scope { group: Some(at), ..Scope::default() };
            self.plugins(group, scope, &of("consumer group", group));
        }
    }

    fn service(&mut self, service: &Node, route: Option<&Node>) {
        let at = self.services.len();
        let scope = Scope { service: Some(at), ..Scope::default() };
        self.service_names.add(at, service);
        self.services.push(service.clone());
        self.plugins(service, scope, &of("service", service));
        for one in items_of(service, "routes") {
            self.route(with_defaults(one, route), Some(at));
        }
    }

    fn route(&mut self, route: Node, service: Option<usize>) {
        let at = self.routes.len();
        let scope = Scope { route: Some(at), ..Scope::default() };
        self.route_names.add(at, &route);
        self.plugins(&route, scope, &of("route", &route));
        self.routes.push(Route { node: route, service });
    }

    fn plugins(&mut self, within: &Node, scope: Scope, of: &str) {
        for plugin in items_of(within, "plugins") {
            self.plugin(plugin, scope, of.to_owned());
        }
    }

    fn plugin(&mut self, node: &Node, scope: Scope, of: String) {
        let own = field(node, "config").cloned().unwrap_or(Node { place: node.place, value: Value::Null });
        let shared = text_of(node, "_config").and_then(|name| {
            self.shared.iter().find(|(known, _)| *known == name).map(|(_, config)| config.clone())
        });
        let config = with_defaults(&own, shared.as_ref());
        let name = text_of(node, "name").unwrap_or_default();
        self.plugins.push(Plugin { name, node: node.clone(), config, scope, of });
    }

    /// A plugin at the top, for what it names.
    fn top_plugin(&mut self, node: &Node) {
        let mut shown = String::new();
        let mut of = |kind: &str| {
            let named = field(node, kind)?;
            shown = format!(" of {} \"{}\"", kind.replace('_', " "), reference(named));
            Some(named)
        };
        let (service, route, consumer, group) =
            (of("service"), of("route"), of("consumer"), of("consumer_group"));
        let scope = Scope {
            service: service.map(|named| self.service_of(named).unwrap_or(usize::MAX)),
            route: route.map(|named| self.route_names.find(named).unwrap_or(usize::MAX)),
            consumer: consumer.map(|named| self.consumer_of(named).unwrap_or(usize::MAX)),
            group: group
                .map(|named| self.groups.iter().position(|group| names(named, group)).unwrap_or(usize::MAX)),
        };
        self.plugin(node, scope, shown);
    }

    fn service_of(&self, named: &Node) -> Option<usize> {
        self.service_names.find(named)
    }

    pub(super) fn consumer_of(&self, named: &Node) -> Option<usize> {
        self.consumer_names.find(named)
    }

    fn certificates(&mut self, root: &Node) {
        let snis = Owned::of(root, "snis", "certificate", "certificates");
        for (at, certificate) in items_of(root, "certificates").iter().enumerate() {
            let named = |sni: &Node| text_of(sni, "name").or_else(|| text(sni));
            let own = items_of(certificate, "snis").iter().chain(snis.of_owner(at));
            self.certificates.push((with_defaults(certificate, None), own.filter_map(named).collect()));
        }
    }

    /// What else is at the top.
    fn rest(&self, document: &Document, out: &mut Imported) {
        const TAKEN: &[&str] = &[
            "services",
            "routes",
            "plugins",
            "consumers",
            "consumer_groups",
            "upstreams",
            "targets",
            "certificates",
            "snis",
        ];
        let mut top = Part::new("file", &document.file, document.root.place);
        for entry in fields(&document.root) {
            match entry.key.as_str() {
                name if TAKEN.contains(&name) || CREDENTIALS.iter().any(|(list, _)| *list == name) => {}
                name if WITHOUT_EFFECT.contains(&name) => top.exact(name),
                "ca_certificates" => {
                    let note = "write them into `client.ca` of an ssl, or the machine's trust";
                    top.manual("ca_certificates", entry.key_place, note);
                }
                "vaults" => {
                    top.manual("vaults", entry.key_place, "variables of the environment alone: `$env://NAME`")
                }
                "filter_chains" => {
                    top.unsupported("filter_chains", entry.key_place, "lets in nobody: there is no Wasm");
                }
                name => top.unknown(name, entry.key_place),
            }
        }
        out.take(top);
    }
}

/// Items of a list at the top that name what they belong to, by its place.
struct Owned<'n>(HashMap<usize, Vec<&'n Node>>);

impl<'n> Owned<'n> {
    fn of(root: &'n Node, list: &str, owner: &str, owners: &str) -> Owned<'n> {
        let (names, mut found) = (Names::of(items_of(root, owners)), HashMap::<_, Vec<_>>::new());
        for item in items_of(root, list) {
            if let Some(at) = field(item, owner).and_then(|of| names.find(of)) {
                found.entry(at).or_default().push(item);
            }
        }
        Owned(found)
    }

    fn of_owner(&self, at: usize) -> impl Iterator<Item = &'n Node> {
        self.0.get(&at).into_iter().flatten().copied()
    }
}

/// ` of service "shop"`
fn of(kind: &str, node: &Node) -> String {
    format!(" of {kind} \"{}\"", name(node))
}

/// What people call an entity.
pub(super) fn name(node: &Node) -> String {
    let given = ["name", "username", "custom_id", "id"].iter().find_map(|key| text_of(node, key));
    given.unwrap_or_else(|| format!("of line {}", node.place.line))
}

/// Whether a reference (a name, an id, or an object with one of them) is to this entity.
pub(super) fn names(reference: &Node, entity: &Node) -> bool {
    let is = |key: &str, wanted: &str| text_of(entity, key).is_some_and(|known| known == wanted);
    match text(reference) {
        Some(wanted) => ["name", "id", "username"].iter().any(|key| is(key, &wanted)),
        None => ["name", "id", "username"]
            .iter()
            .any(|key| text_of(reference, key).is_some_and(|wanted| is(key, &wanted))),
    }
}

fn reference(node: &Node) -> String {
    text(node).unwrap_or_else(|| name(node))
}

/// An object with what it does not have itself, and with references to values as they are written here.
fn with_defaults(node: &Node, defaults: Option<&Node>) -> Node {
    let own = node.as_object().map(Object::entries).unwrap_or_default();
    let inherited = defaults.and_then(Node::as_object).map(Object::entries).unwrap_or_default();
    let is_own = |key: &str| own.iter().any(|entry| entry.key == key);
    let entries = own.iter().chain(inherited.iter().filter(|entry| !is_own(&entry.key))).cloned().collect();
    let value = Object::new(entries).map_or(Value::Null, Value::Object);
    let mut node = Node { place: node.place, value };
    resolve(&mut node);
    node
}

/// Writes `{vault://env/NAME}` and decK's `${{ env "NAME" }}` as `$env://NAME`.
fn resolve(node: &mut Node) {
    match &mut node.value {
        Value::String(text) => {
            if let Some(name) = variable(text) {
                *text = format!("$env://{name}");
            }
        }
        Value::Array(items) => items.iter_mut().for_each(resolve),
        Value::Object(object) => object.values_mut().for_each(resolve),
        _ => {}
    }
}

fn variable(text: &str) -> Option<String> {
    if let Some(name) = text.strip_prefix("{vault://env/").and_then(|rest| rest.strip_suffix('}')) {
        // As Kong does: `my-secret` is MY_SECRET.
        return Some(name.to_ascii_uppercase().replace('-', "_"));
    }
    let within = text.strip_prefix("${{")?.strip_suffix("}}")?.trim().strip_prefix("env")?.trim();
    Some(within.trim_matches(['"', '\'']).to_owned())
}

impl Entities {
    /// The upstream that people call by this name, with its targets.
    pub(super) fn upstream(&self, name: &str) -> Option<&(Node, Vec<Node>)> {
        self.upstreams.get(*self.upstream_names.get(name)?)
    }

    /// The plugins that may run for a route, but for those of consumers, in the order of the file.
    pub(super) fn plugins_of_route(&self, at: usize, service: Option<usize>) -> Vec<&Plugin> {
        let Scopes { routes, services, all, .. } = &self.scopes;
        let of_service = service.and_then(|service| services.get(&service));
        let mut found: Vec<usize> =
            routes.get(&at).into_iter().chain(of_service).chain([all]).flatten().copied().collect();
        found.sort_unstable();
        let plugins = found.into_iter().filter_map(|at| self.plugins.get(at));
        plugins.filter(|plugin| plugin.scope.service.is_none_or(|of| service == Some(of))).collect()
    }

    /// The plugins of all requests of a consumer.
    pub(super) fn plugins_of_consumer(&self, at: usize) -> impl Iterator<Item = &Plugin> {
        let found = self.scopes.consumers.get(&at).into_iter().flatten();
        found.filter_map(move |at| self.plugins.get(*at))
    }

    /// Names of the consumers that are in some of these groups of `acls`, in the order of the file.
    pub(super) fn members(&self, groups: &[String]) -> Vec<usize> {
        let is_in = |credential: &&Credential| {
            credential.list == "acls"
                && text_of(&credential.node, "group").is_some_and(|group| groups.contains(&group))
        };
        let mut found: Vec<usize> = self.credentials.iter().filter(is_in).map(|one| one.consumer).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The groups that a consumer is in, by their place.
    pub(super) fn groups_of(&self, consumer: usize) -> Vec<usize> {
        let Some(node) = self.consumers.get(consumer) else { return Vec::new() };
        let named = items_of(node, "groups").iter();
        let mut found: Vec<usize> =
            named.filter_map(|named| self.groups.iter().position(|group| names(named, group))).collect();
        for (at, group) in self.groups.iter().enumerate() {
            let members = field(group, "consumers").map_or(&[][..], items);
            if members.iter().any(|member| names(member, node)) && !found.contains(&at) {
                found.push(at);
            }
        }
        found
    }
}

impl Scope {
    /// Whether it is for all requests of a consumer, or of a group of them.
    pub(super) fn is_of_consumer_alone(&self) -> bool {
        self.service.is_none() && self.route.is_none()
    }

    /// Whether it is for requests whoever sends them.
    pub(super) fn is_of_everybody(&self) -> bool {
        self.consumer.is_none() && self.group.is_none()
    }
}
