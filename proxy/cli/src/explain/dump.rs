//! A bootstrap that compiles to what a `/config_dump` shows (admin/v3/config_dump.proto).
//!
//! What came from a control plane becomes static: listeners, clusters, the route configurations that listeners name, and the
//! endpoints of clusters as far as the dump has them. Secrets are no part of a dump, so that TLS is left out: of a
//! filter chain that terminates it its conditions stay.

#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};
use sixfold_core::error::ConfigError;
use std::collections::BTreeMap;

/// What was found in a dump.
#[derive(Default)]
struct Parts {
    node: Option<Value>,
    runtime: Option<Value>,
    listeners: Vec<Value>,
    clusters: Vec<Value>,
    routes: BTreeMap<String, Value>,
    endpoints: BTreeMap<String, Value>,
}

/// The bootstrap.
///
/// # Errors
/// A text that is no JSON, or no dump.
pub(super) fn bootstrap(text: &str) -> Result<Value, ConfigError> {
    let mut dump: Value = serde_json::from_str(text).map_err(|error| ConfigError::new(error.to_string()))?;
    let Some(sections) = dump.get_mut("configs").and_then(Value::as_array_mut) else {
        return Err(ConfigError::field("configs", "is missing: this is no config_dump"));
    };
    let mut parts = Parts::default();
    sections.iter_mut().for_each(|section| parts.add(section));
    Ok(parts.rebuilt())
}

impl Parts {
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
            }
            "RoutesConfigDump" => {
                let static_ones = each(section, "static_route_configs", "/route_config");
                let routes =
                    static_ones.into_iter().chain(each(section, "dynamic_route_configs", "/route_config"));
                self.routes.extend(routes.filter_map(|table| Some((text(&table, "name")?, table))));
            }
            "EndpointsConfigDump" => {
                let static_ones = each(section, "static_endpoint_configs", "/endpoint_config");
                let all = static_ones.into_iter().chain(each(
                    section,
                    "dynamic_endpoint_configs",
                    "/endpoint_config",
                ));
                self.endpoints.extend(all.filter_map(|of| Some((text(&of, "cluster_name")?, of))));
            }
            _ => {}
        }
    }

    fn rebuilt(mut self) -> Value {
        let (routes, endpoints) = (std::mem::take(&mut self.routes), std::mem::take(&mut self.endpoints));
        self.listeners.iter_mut().for_each(|listener| settle_listener(listener, &routes));
        self.clusters.iter_mut().for_each(|cluster| settle_cluster(cluster, &endpoints));
        // A static cluster whose endpoints a dump tells too is there twice.
        let mut names = std::collections::BTreeSet::new();
        self.clusters.retain(|cluster| text(cluster, "name").is_none_or(|name| names.insert(name)));
        let mut bootstrap = Map::new();
        if let Some(node) = self.node.as_ref().and_then(Value::as_object) {
            let kept = node.iter().filter(|(key, _)| matches!(key.as_str(), "id" | "cluster" | "locality"));
            bootstrap
                .insert("node".into(), Value::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect()));
        }
        bootstrap
            .extend(self.runtime.take().map(|runtime| ("layered_runtime".to_owned(), without_rtds(runtime))));
        let statics = json!({"listeners": self.listeners, "clusters": self.clusters});
        bootstrap.insert("static_resources".into(), statics);
        Value::Object(bootstrap)
    }
}

/// The elements of a list of a section, each at a path within.
fn each(section: &mut Value, list: &str, path: &str) -> Vec<Value> {
    let items = section.get_mut(list).and_then(Value::as_array_mut);
    let found = items.into_iter().flatten().filter_map(|item| item.pointer_mut(path).map(Value::take));
    found.map(without_type).collect()
}

/// A resource is an Any in a dump; in a bootstrap its type is known.
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

fn settle_listener(listener: &mut Value, routes: &BTreeMap<String, Value>) {
    let Some(object) = listener.as_object_mut() else { return };
    object.shift_remove("access_log");
    let chains = object.get_mut("filter_chains").and_then(Value::as_array_mut);
    chains.into_iter().flatten().for_each(|chain| settle_chain(chain, routes));
    if let Some(chain) = object.get_mut("default_filter_chain") {
        settle_chain(chain, routes);
    }
}

fn settle_chain(chain: &mut Value, routes: &BTreeMap<String, Value>) {
    let Some(object) = chain.as_object_mut() else { return };
    object.shift_remove("transport_socket");
    let filters = object.get_mut("filters").and_then(Value::as_array_mut);
    for config in filters.into_iter().flatten().filter_map(|filter| filter.get_mut("typed_config")) {
        let Some(manager) = config.as_object_mut() else { continue };
        manager.shift_remove("access_log");
        let name = manager.get("rds").and_then(|rds| text(rds, "route_config_name"));
        if let Some(table) = name.and_then(|name| routes.get(&name)) {
            manager.shift_remove("rds");
            manager.insert("route_config".into(), table.clone());
        }
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
