//! What a `/config_dump` shows (admin/v3/config_dump.proto), compiled as it was when it came: as what comes by streams, of which
//! one that can't be compiled holds up no other.
//!
//! Endpoints become part of their clusters, as far as the dump has them. Secrets are no part of a dump, so that TLS is left
//! out: of a filter chain that terminates it its conditions stay. So are filters that need a secret.

mod secrets;
#[cfg(test)]
mod tests;

use super::faulty::{Faulty, FaultyListener};
use crate::Failure;
use crate::envoy::Text;
use serde_json::{Map, Value, json};
use sixfold_core::document::{Node, Options};
use sixfold_core::error::ConfigError;
use sixfold_core::model::Diff;
use sixfold_xds::Context;
use sixfold_xds::ads::{Batches, Change, Compile, Compiled, Key, Kind, Part, Resources};
use sixfold_xds::bootstrap::ProcessContext;
use sixfold_xds::rds::Source;
use sixfold_xds_api::any::name_of_url;
use sixfold_xds_api::json::encode_node;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What was found in a dump.
#[derive(Default)]
struct Parts {
    node: Option<Value>,
    runtime: Option<Value>,
    listeners: Vec<Value>,
    clusters: Vec<Value>,
    extensions: Vec<Value>,
    routes: Vec<Value>,
    endpoints: BTreeMap<String, Value>,
    /// Filters that were left out.
    left_out: Vec<ConfigError>,
}

/// Compiles the dump of this name, and answers what of it can't be.
///
/// # Errors
/// A text that is no JSON, or no dump.
pub(super) fn compile(text: &str, name: &str, process: &ProcessContext) -> Result<(Diff, Faulty), Failure> {
    let mut parts = Parts::read(text).map_err(|error| error.in_file(name))?;
    let name = format!("the dump of {name}");
    let bootstrap = Text::new(parts.bootstrap().to_string(), name);
    let context = bootstrap.load(process)?.followed.context;
    // Also what can't be compiled here is there.
    let bootstrap_clusters =
        parts.clusters.iter().filter_map(|cluster| self::text(cluster, "name")).collect();
    let context = Context { bootstrap_clusters: Arc::new(bootstrap_clusters), ..context };
    let resources = Resources::new(context);
    let faulty = Faulty { others: std::mem::take(&mut parts.left_out), ..Faulty::default() };
    Ok(Making { resources, batch: Vec::new(), faulty }.make(&parts))
}

/// What is compiled, one after the other in the order in which one needs another.
struct Making {
    resources: Resources,
    batch: Vec<Change<Part>>,
    faulty: Faulty,
}

impl Making {
    fn make(mut self, parts: &Parts) -> (Diff, Faulty) {
        for cluster in &parts.clusters {
            match self.compile(Kind::Cluster, cluster) {
                (name, Ok(Compiled { part, .. })) => self.add(Kind::Cluster, name, part),
                (_, Err(error)) => self.faulty.others.push(error),
            }
        }
        let mut missing = BTreeMap::new();
        for extension in &parts.extensions {
            match self.compile(Kind::Extension, extension) {
                (name, Ok(_)) => self.resources.decide(&Key::of_name(Kind::Extension, &name), true),
                (name, Err(error)) => drop(missing.insert(name, error)),
            }
        }
        for listener in &parts.listeners {
            match self.compile(Kind::Listener, listener) {
                (name, Ok(Compiled { part, asks })) => {
                    let mut needs = asks.needs.iter().filter(|need| need.kind == Kind::Extension);
                    match needs.find_map(|need| missing.get(&need.name)) {
                        Some(error) => {
                            self.faulty.listeners.push(FaultyListener::new(name, listener, error.clone()));
                        }
                        None => self.add(Kind::Listener, name, part),
                    }
                }
                (name, Err(error)) => self.faulty.listeners.push(FaultyListener::new(name, listener, error)),
            }
        }
        // For the listeners that have come by now.
        for routes in &parts.routes {
            match self.compile(Kind::Routes, routes) {
                (name, Ok(Compiled { part, .. })) => self.add(Kind::Routes, name, part),
                (name, Err(error)) => drop(self.faulty.routes.insert(name, error)),
            }
        }
        self.faulty.others.extend(missing.into_values());
        (self.resources.diff(self.batch), self.faulty)
    }

    /// The name of a resource, and what it compiles to.
    fn compile(&mut self, kind: Kind, value: &Value) -> (Arc<str>, Result<Compiled<Part>, ConfigError>) {
        let name: Arc<str> = text(value, "name").unwrap_or_default().into();
        let options = Options { wide_numbers_as_text: true, ..Options::envoy("dump.json") };
        let node = Node::parse(&value.to_string(), &options);
        let encoded = node.and_then(|node| encode_node(name_of_url(kind.type_url()), &node));
        let compiled = encoded.and_then(|value| self.resources.compile(&Key::of_name(kind, &name), &value));
        let compiled = compiled.map_err(|mut error| {
            // In a line that nobody has seen.
            error.place = None;
            error.in_resource(format!("{} \"{name}\"", kind.noun()))
        });
        (name, compiled)
    }

    fn add(&mut self, kind: Kind, name: Arc<str>, part: Part) {
        let name = match &part {
            // One that has none is given one.
            Part::Listener(listener) => listener.name.clone(),
            _ => name,
        };
        self.batch.push(Change { kind, source: Source::Ads, name, part: Some(part) });
    }
}

impl Parts {
    fn read(text: &str) -> Result<Parts, ConfigError> {
        let mut dump: Value =
            serde_json::from_str(text).map_err(|error| ConfigError::new(error.to_string()))?;
        let Some(sections) = dump.get_mut("configs").and_then(Value::as_array_mut) else {
            return Err(ConfigError::field("configs", "is missing: this is no config_dump"));
        };
        let mut parts = Parts::default();
        sections.iter_mut().for_each(|section| parts.add(section));
        parts.settle();
        Ok(parts)
    }

    fn add(&mut self, section: &mut Value) {
        let kind = section.get("@type").and_then(Value::as_str).unwrap_or_default().to_owned();
        match kind.rsplit('.').next().unwrap_or_default() {
            "BootstrapConfigDump" => {
                self.node = section.pointer("/bootstrap/node").cloned();
                self.runtime = section.pointer("/bootstrap/layered_runtime").cloned();
            }
            "ListenersConfigDump" => {
                self.listeners.extend(each(section, "static_listeners", "/listener"));
                self.listeners.extend(each(section, "dynamic_listeners", "/active_state/listener"));
            }
            "ClustersConfigDump" => {
                self.clusters.extend(each(section, "static_clusters", "/cluster"));
                self.clusters.extend(each(section, "dynamic_active_clusters", "/cluster"));
                self.clusters.extend(each(section, "dynamic_warming_clusters", "/cluster"));
            }
            "EcdsConfigDump" => self.extensions.extend(each(section, "ecds_filters", "/ecds_filter")),
            "RoutesConfigDump" => {
                self.routes.extend(each(section, "dynamic_route_configs", "/route_config"));
            }
            "EndpointsConfigDump" => {
                let static_ones = each(section, "static_endpoint_configs", "/endpoint_config");
                let dynamic = each(section, "dynamic_endpoint_configs", "/endpoint_config");
                let all = static_ones.into_iter().chain(dynamic);
                self.endpoints.extend(all.filter_map(|of| Some((text(&of, "cluster_name")?, of))));
            }
            _ => {}
        }
    }

    /// Takes out what a dump does not tell, and has the rest come from one source.
    fn settle(&mut self) {
        self.listeners.iter_mut().for_each(settle_listener);
        for (kind, values) in [(Kind::Listener, &mut self.listeners), (Kind::Routes, &mut self.routes)] {
            for value in values {
                let resource = format!("{} \"{}\"", kind.noun(), text(value, "name").unwrap_or_default());
                secrets::leave_out(&resource, value, &mut self.left_out);
            }
        }
        let endpoints = std::mem::take(&mut self.endpoints);
        self.clusters.iter_mut().for_each(|cluster| settle_cluster(cluster, &endpoints));
        // One that warms up is there twice where another is in force, and so is one that the bootstrap has too.
        let mut names = BTreeSet::new();
        self.clusters.retain(|cluster| text(cluster, "name").is_none_or(|name| names.insert(name)));
    }

    /// A bootstrap of what counts for all resources.
    fn bootstrap(&self) -> Value {
        let mut bootstrap = Map::new();
        if let Some(node) = self.node.as_ref().and_then(Value::as_object) {
            let kept = node.iter().filter(|(key, _)| matches!(key.as_str(), "id" | "cluster" | "locality"));
            let kept = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
            bootstrap.insert("node".into(), Value::Object(kept));
        }
        let runtime = self.runtime.clone().map(without_rtds);
        bootstrap.extend(runtime.map(|runtime| ("layered_runtime".to_owned(), runtime)));
        Value::Object(bootstrap)
    }
}

/// The elements of a list of a section, each at a path within.
fn each(section: &mut Value, list: &str, path: &str) -> Vec<Value> {
    let items = section.get_mut(list).and_then(Value::as_array_mut);
    let found = items.into_iter().flatten().filter_map(|item| item.pointer_mut(path).map(Value::take));
    found.map(without_type).collect()
}

/// A resource is an Any in a dump; here its type is known.
fn without_type(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.shift_remove("@type");
    }
    value
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key)?.as_str().map(str::to_owned)
}

/// Layers that a control plane fills are not known.
fn without_rtds(mut runtime: Value) -> Value {
    if let Some(layers) = runtime.get_mut("layers").and_then(Value::as_array_mut) {
        layers.retain(|layer| layer.get("rtds_layer").is_none());
    }
    runtime
}

fn settle_listener(listener: &mut Value) {
    let Some(object) = listener.as_object_mut() else { return };
    object.shift_remove("access_log");
    let chains = object.get_mut("filter_chains").and_then(Value::as_array_mut);
    chains.into_iter().flatten().for_each(settle_chain);
    if let Some(chain) = object.get_mut("default_filter_chain") {
        settle_chain(chain);
    }
}

fn settle_chain(chain: &mut Value) {
    let Some(object) = chain.as_object_mut() else { return };
    object.shift_remove("transport_socket");
    let filters = object.get_mut("filters").and_then(Value::as_array_mut);
    for config in filters.into_iter().flatten().filter_map(|filter| filter.get_mut("typed_config")) {
        let Some(manager) = config.as_object_mut() else { continue };
        manager.shift_remove("access_log");
        // Wherever it came from, it is in the dump if it has come.
        manager.get_mut("rds").into_iter().for_each(by_ads);
        let filters = manager.get_mut("http_filters").and_then(Value::as_array_mut);
        let discovered =
            filters.into_iter().flatten().filter_map(|filter| filter.get_mut("config_discovery"));
        discovered.for_each(by_ads);
    }
}

fn by_ads(named: &mut Value) {
    if let Some(named) = named.as_object_mut() {
        named.insert("config_source".into(), json!({"ads": {}}));
    }
}

fn settle_cluster(cluster: &mut Value, endpoints: &BTreeMap<String, Value>) {
    let Some(object) = cluster.as_object_mut() else { return };
    object.shift_remove("transport_socket");
    object.shift_remove("transport_socket_matches");
    object.shift_remove("health_checks");
    if object.get("type").and_then(Value::as_str) != Some("EDS") {
        return;
    }
    let service = object.shift_remove("eds_cluster_config").and_then(|config| text(&config, "service_name"));
    let name = object.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    object.insert("type".into(), "STATIC".into());
    let known = service.and_then(|service| endpoints.get(&service)).or_else(|| endpoints.get(&name));
    let mut assignment = known.cloned().unwrap_or_else(|| json!({}));
    assignment["cluster_name"] = name.into();
    object.insert("load_assignment".into(), assignment);
}
