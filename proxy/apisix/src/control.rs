//! The control API (`apisix/control/v1.lua`): what the gateway has in force, for those on its machine.

mod checkers;

pub use checkers::checkers_prefix;

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::admin::{
    AdminReply, AdminRequest, described_plugins, described_stream_plugins, kept_value, schema_named,
    schema_names,
};
use crate::config::{Config, EnabledPlugins, EnvVars, Provider};
use crate::encryption::without_clear_keys;
use crate::plugin::{self, Catalog};
use crate::reload::Reloads;
use crate::resource::Kind;
use crate::schema;
use crate::source::{Checker, InForce, RefusedResource, Serves};
use crate::store::{Kept, Key};
use sixfold_core::cluster::Clusters;
use sixfold_core::error::ConfigError;
use sixfold_core::plugin::Registry;

/// Answers requests of the control API.
pub struct ControlApi {
    in_force: Arc<InForce>,
    /// Where resources are from.
    provider: Provider,
    /// What upstreams have become.
    clusters: Arc<Clusters>,
    /// Schemas of plugins, which few ask for.
    make_checker: Box<dyn Fn(&Config) -> Checker + Send + Sync>,
    reloads: Arc<Reloads>,
    router: matchit::Router<Page>,
}

/// What is at a path, and by which method.
#[derive(Clone, Copy)]
enum Page {
    Schema,
    Checkers,
    Checker,
    All(Kind),
    One(Kind),
    AllMetadata,
    Metadata,
    /// What is not in force though it is written: ours.
    Refused,
    Collect,
    ReloadPlugins,
    /// That of the example-plugin.
    Hello,
}

const PAGES: &[(&str, Page)] = &[
    ("/v1/schema", Page::Schema),
    ("/v1/healthcheck", Page::Checkers),
    ("/v1/healthcheck/{*of}", Page::Checker),
    ("/v1/routes", Page::All(Kind::Route)),
    ("/v1/route/{id}", Page::One(Kind::Route)),
    ("/v1/services", Page::All(Kind::Service)),
    ("/v1/service/{id}", Page::One(Kind::Service)),
    ("/v1/upstreams", Page::All(Kind::Upstream)),
    ("/v1/upstream/{id}", Page::One(Kind::Upstream)),
    ("/v1/plugin_metadatas", Page::AllMetadata),
    ("/v1/plugin_metadata/{name}", Page::Metadata),
    ("/v1/refused", Page::Refused),
    ("/v1/gc", Page::Collect),
    ("/v1/plugins/reload", Page::ReloadPlugins),
    ("/v1/plugin/example-plugin/hello", Page::Hello),
];

impl Page {
    fn method(self) -> Method {
        match self {
            Page::Collect => Method::POST,
            Page::ReloadPlugins => Method::PUT,
            _ => Method::GET,
        }
    }
}

impl ControlApi {
    /// Of the resources in force, and of the clusters that they have become.
    pub fn new(
        config: &Config,
        (in_force, clusters): (Arc<InForce>, Arc<Clusters>),
        registry: Registry,
        environment: EnvVars,
        reloads: Arc<Reloads>,
    ) -> ControlApi {
        let mut router = matchit::Router::new();
        for (path, page) in PAGES {
            // They are told apart above.
            let _ = router.insert(*path, *page);
        }
        let provider = config.deployment.provider;
        let make_checker = Box::new(move |config: &Config| {
            Checker::new(config.clone(), registry.clone(), environment.clone())
        });
        ControlApi { in_force, provider, clusters, make_checker, reloads, router }
    }

    /// What knows the plugins by the lists that were read last.
    fn known(&self) -> Checker {
        (self.make_checker)(&self.reloads.current())
    }

    /// The answer to a request. It may read files.
    pub fn answer(&self, request: &AdminRequest) -> AdminReply {
        let path = request.decoded_path();
        let found = self.router.at(&path).ok().map(|found| *found.value);
        let Some(page) = found.filter(|page| page.method() == request.method) else {
            return AdminReply::page(StatusCode::NOT_FOUND);
        };
        let last = path.rsplit('/').next().unwrap_or_default();
        let answered = match page {
            Page::Schema => Ok(AdminReply::json(StatusCode::OK, &self.schema())),
            Page::Checkers => Ok(self.checkers(request)),
            Page::Checker => self.checker_of(request, &path),
            Page::All(kind) => Ok(self.all(kind)),
            Page::One(kind) => self.one(kind, last),
            Page::AllMetadata => Ok(self.all_metadata()),
            Page::Refused => Ok(self.refused()),
            Page::Metadata => self.metadata(last),
            Page::Collect => Ok(AdminReply::empty(StatusCode::OK)),
            Page::Hello if request.parameter("json").is_some() => {
                Ok(AdminReply::json(StatusCode::OK, &json!({"msg": "world"})))
            }
            Page::Hello => {
                Ok(AdminReply { content_type: "text/plain", ..AdminReply::text(StatusCode::OK, "world\n") })
            }
            Page::ReloadPlugins => match self.reloads.reload() {
                Ok(()) => Ok(AdminReply::text(StatusCode::OK, "done")),
                Err(reason) => Err(AdminReply::error(StatusCode::SERVICE_UNAVAILABLE, reason)),
            },
        };
        answered.unwrap_or_else(|refusal| refusal)
    }

    fn schema(&self) -> Value {
        let main =
            schema_names().iter().filter_map(|name| Some(((*name).to_owned(), schema_named(name)?.clone())));
        let main: Map<String, Value> = main.collect();
        let checker = self.known();
        json!({
            "main": main,
            "plugins": described_plugins(&checker),
            "stream_plugins": described_stream_plugins(&checker),
        })
    }

    fn all(&self, kind: Kind) -> AdminReply {
        let (all, checker) = (self.in_force.list(kind), self.known());
        let shown = all.iter().map(|(key, kept)| self.shown(key, kept, checker.catalog()));
        AdminReply::json(StatusCode::OK, &list(shown.collect()))
    }

    fn one(&self, kind: Kind, id: &str) -> Result<AdminReply, AdminReply> {
        let key = Key::new(kind, id);
        let missing = || AdminReply::error(StatusCode::NOT_FOUND, format!("{kind}[{id}] not found"));
        let kept = self.in_force.get(&key).ok_or_else(missing)?;
        let shown = self.shown(&key, &kept, self.known().catalog());
        Ok(AdminReply::json(StatusCode::OK, &shown))
    }

    /// A resource in force; with why what is written now is not, if that was refused.
    fn shown(&self, key: &Key, kept: &Kept, catalog: &Catalog) -> Value {
        let mut shown = in_memory(self.in_force.prefix(), key, kept, catalog);
        if let Some(refused) = self.in_force.refused_of(key) {
            shown["refused"] = faults(&refused.faults);
        }
        shown
    }

    /// What is written and not in force, and why.
    fn refused(&self) -> AdminReply {
        let shown = |RefusedResource { key, faults: told, serves }: RefusedResource| {
            let serves = match serves {
                Serves::Earlier => "an earlier value",
                Serves::Nothing => "nothing",
                Serves::Itself => "this value",
            };
            json!({"key": key.path(self.in_force.prefix()), "in_force": serves, "errors": faults(&told)})
        };
        let refused: Vec<Value> = self.in_force.refused().into_iter().map(shown).collect();
        let unread = self.in_force.why_unread();
        AdminReply::json(StatusCode::OK, &json!({"refused": refused, "unread": faults(&unread)}))
    }

    fn all_metadata(&self) -> AdminReply {
        let mut all = self.in_force.list(Kind::PluginMetadata);
        // By the list of plugins, as APISIX goes through it.
        let current = self.reloads.current();
        let place = |name: &str| match &current.plugins.http {
            Some(listed) => listed.place(name),
            None => plugin::in_order(None).iter().position(|other| *other == name),
        };
        all.sort_by_key(|(key, _)| place(key.id.as_str()).unwrap_or(usize::MAX));
        let shown = all.iter().map(|(_, kept)| kept_value(kept)).collect();
        AdminReply::json(StatusCode::OK, &list(shown))
    }

    fn metadata(&self, name: &str) -> Result<AdminReply, AdminReply> {
        let missing =
            || AdminReply::error(StatusCode::NOT_FOUND, format!("plugin metadata[{name}] not found"));
        let kept = self.in_force.get(&Key::new(Kind::PluginMetadata, name)).ok_or_else(missing)?;
        Ok(AdminReply::json(StatusCode::OK, &kept_value(&kept)))
    }
}

/// Faults by field and reason, and as the log has them.
fn faults(errors: &[ConfigError]) -> Value {
    let told = |error: &ConfigError| json!({"field": error.field, "reason": error.reason, "message": error.to_string()});
    errors.iter().map(told).collect()
}

/// An empty list is an empty table of Lua, which is written as an object.
fn list(items: Vec<Value>) -> Value {
    if items.is_empty() { Value::Object(Map::new()) } else { Value::Array(items) }
}

/// A resource as APISIX has it in memory: with its defaults.
fn in_memory(prefix: &str, key: &Key, kept: &Kept, catalog: &Catalog) -> Value {
    let mut value = kept_value(kept);
    let domain = has_domain(&value);
    fill(catalog, key.kind, &mut value);
    // Whoever asks needs no key.
    catalog.seal_private_keys(key.kind, &mut value);
    without_clear_keys(key.kind, &mut value);
    if let Value::Object(value) = &mut value {
        value.insert("id".to_owned(), key.id.as_str().into());
    }
    json!({
        "key": key.path(prefix),
        "value": value,
        "createdIndex": kept.created,
        "modifiedIndex": kept.modified,
        "orig_modifiedIndex": kept.modified,
        "clean_handlers": {},
        "update_count": 0,
        "has_domain": domain,
    })
}

/// Fills in what a resource leaves to defaults, and makes lists of its nodes. What can't be filled in stays as it is.
fn fill(catalog: &Catalog, kind: Kind, value: &mut Value) {
    let _ = schema::resource(kind).validate(value);
    let Value::Object(value) = value else { return };
    if let Some(Value::Object(plugins)) = value.get_mut("plugins") {
        plugins.iter_mut().for_each(|(name, config)| catalog.fill(name, config));
    }
    list_nodes(value);
    if let Some(Value::Object(upstream)) = value.get_mut("upstream") {
        list_nodes(upstream);
    }
}

/// Resources as APISIX has them in memory, for whoever compares them.
pub struct Defaults(Catalog);

impl Defaults {
    /// With the plugins of `registry`.
    pub fn new(registry: &Registry) -> Defaults {
        Defaults(Catalog::new(registry, &EnabledPlugins::default(), &BTreeMap::new()))
    }

    /// Fills in what a resource and its plugins leave to defaults; nodes become a list.
    pub fn fill(&self, kind: Kind, value: &mut Value) {
        fill(&self.0, kind, value);
    }
}

/// Makes a list of the nodes of an upstream that has them by address.
fn list_nodes(upstream: &mut Map<String, Value>) {
    let Some(Value::Object(nodes)) = upstream.get("nodes") else { return };
    let listed = nodes.iter().map(|(address, weight)| {
        // What is behind the last colon is a port, unless that is within an address.
        let port = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        match port.filter(|(host, _)| !host.contains(':') || host.ends_with(']')) {
            Some((host, port)) => json!({"host": host, "port": port, "weight": weight}),
            None => json!({"host": address, "weight": weight}),
        }
    });
    let listed = listed.collect();
    upstream.insert("nodes".to_owned(), Value::Array(listed));
}

/// Whether a node of the upstream that a resource is or brings has a name.
fn has_domain(value: &Value) -> bool {
    let nodes = value.get("nodes").or_else(|| value.get("upstream")?.get("nodes"));
    let is_name = |host: &str| host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_err();
    match nodes {
        Some(Value::Object(nodes)) => {
            nodes.keys().any(|node| is_name(node.rsplit_once(':').map_or(node.as_str(), |(host, _)| host)))
        }
        Some(Value::Array(nodes)) => {
            nodes.iter().any(|node| node.get("host").and_then(Value::as_str).is_some_and(is_name))
        }
        _ => false,
    }
}

impl std::fmt::Debug for ControlApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ControlApi")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn metadata_stands_in_the_order_of_the_list_of_plugins() {
        let told = |plugins: &str| {
            let text = format!("deployment: {{role: traditional}}\n{plugins}");
            let config = Config::parse(&text, "config.yaml", &crate::testing::environment()).unwrap();
            let in_force = Arc::new(InForce::new(Arc::new(crate::store::MemoryStore::default())));
            for name in ["example-plugin", "file-logger", "what"] {
                in_force.put(&Key::new(Kind::PluginMetadata, name), &json!({ "id": name }).to_string());
            }
            let (registry, environment) = (crate::testing::registry(), crate::testing::environment());
            let sources = (in_force, Arc::default());
            let api = ControlApi::new(&config, sources, registry, environment, Reloads::none(&config));
            let body = api.all_metadata().body;
            let all: Vec<Value> = serde_json::from_slice(&body).unwrap();
            all.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        // file-logger runs before example-plugin.
        assert_eq!(told(""), ["file-logger", "example-plugin", "what"]);
        assert_eq!(told("plugins: [what, example-plugin]\n"), ["what", "example-plugin", "file-logger"]);
    }

    /// One that a file has in the clear, or others have put into an etcd, was shown like that to whoever asked.
    #[test]
    fn private_keys_are_shown_encrypted() {
        let config = Config::standalone("", &crate::testing::environment()).unwrap();
        let catalog = Catalog::default().encrypted(&config);
        let value = json!({"upstream": {"tls": {"client_key": "\n-----BEGIN PRIVATE KEY-----"}}});
        let kept = Kept { value: value.to_string().into(), created: 1, modified: 2 };
        let shown = in_memory("/apisix", &Key::new(Kind::Route, "1"), &kept, &catalog);
        let key = shown["value"]["upstream"]["tls"]["client_key"].as_str().unwrap();
        assert!(!key.is_empty() && !key.contains("BEGIN"), "{key}");
    }

    #[test]
    fn nodes_are_listed_as_apisix_has_them_in_memory() {
        let shown = |value: Value| {
            let kept = Kept { value: value.to_string().into(), created: 1, modified: 2 };
            in_memory("/apisix", &Key::new(Kind::Upstream, "5"), &kept, &Catalog::default())
        };
        let shown_nodes =
            shown(json!({"id": 5, "nodes": {"127.0.0.1:80": 1, "[::1]:81": 2, "a.example": 3}}));
        assert_eq!(
            shown_nodes["value"]["nodes"],
            json!([
                {"host": "127.0.0.1", "port": 80, "weight": 1},
                {"host": "[::1]", "port": 81, "weight": 2},
                {"host": "a.example", "weight": 3},
            ])
        );
        assert_eq!((&shown_nodes["value"]["id"], &shown_nodes["has_domain"]), (&json!("5"), &json!(true)));
        assert_eq!(shown(json!({"nodes": {"[::1]:81": 2}}))["has_domain"], json!(false));
    }
}
