//! Envoy's bootstrap: static resources, runtime, administration.

mod detached;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sixfold_core::access_log::{AccessLog, OpenLog};
use sixfold_core::cluster::{Clusters, DnsServers};
use sixfold_core::document::{Node as DocumentNode, Options};
use sixfold_core::error::{ConfigContext, ConfigError, Place};
use sixfold_core::listener::BindAddress;
use sixfold_core::model::Diff;
use sixfold_core::router::RouteTables;
use sixfold_core::runtime::Runtime;
use sixfold_core::{metrics, plugin};
use sixfold_xds_api::any::struct_to_json;
use sixfold_xds_api::load_bootstrap;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::bootstrap::StaticResources;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::runtime_layer::LayerSpecifier;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::{
    Admin as ProtoAdmin, Bootstrap, LayeredRuntime, RuntimeLayer,
};
use sixfold_xds_api::pb::envoy::config::core::v3::Node as ProtoNode;
use sixfold_xds_api::pb::envoy::config::metrics::v3::StatsConfig;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::Secret;

use crate::context::{Context, Node};
use crate::rds::FilterLists;
use crate::{access_log, cluster, listener};
use sixfold_xds_api::values::Result;
use sixfold_xds_api::{destructure, refuse};

/// What the process gives to compile a bootstrap with.
#[derive(Clone)]
pub struct Environment {
    /// Cluster names of the process.
    pub clusters: Arc<Clusters>,
    /// Route tables of the process.
    pub route_tables: Arc<RouteTables>,
    /// Filters of connection managers whose routes come by themselves, over all bootstraps of the process.
    pub filter_lists: Arc<FilterLists>,
    /// Where statistics are registered.
    pub registry: metrics::Registry,
    /// HTTP filters by type.
    pub plugins: plugin::Registry,
    /// What filters may use.
    pub build: plugin::BuildContext,
    /// Opens access logs.
    pub open_log: Arc<dyn OpenLog>,
    /// The host's own address that is not loopback, for X-Forwarded-For.
    pub local_address: Option<std::net::IpAddr>,
}

/// A compiled bootstrap.
pub struct Compiled {
    /// Static clusters and listeners.
    pub diff: Diff,
    /// The administration listener, if there is one.
    pub admin: Option<Admin>,
    /// Statistics: tags and which are made at all, as configured.
    pub stats: Option<StatsConfig>,
    /// For resources that come later.
    pub context: Context,
}

/// The administration listener.
#[derive(Debug)]
pub struct Admin {
    /// Where it listens.
    pub address: BindAddress,
    /// Its access logs.
    pub access_logs: Vec<AccessLog>,
}

/// Reads and compiles a bootstrap (YAML, or JSON for a file called `*.json`).
///
/// # Errors
/// The first thing that is wrong, with file, line, column, resource and field. Nothing of it is used then.
pub fn load(text: &str, file: &str, environment: &Environment) -> std::result::Result<Compiled, ConfigError> {
    let bootstrap = load_bootstrap(text, file)?;
    compile(&bootstrap, environment).map_err(|located| {
        let mut error = *located.error;
        error.place = error.place.or_else(|| place_of(text, file, &located.path));
        error.in_file(file)
    })
}

/// An error, and the path of its field from the root of the document.
struct Located {
    error: Box<ConfigError>,
    path: String,
}

impl From<ConfigError> for Located {
    fn from(error: ConfigError) -> Located {
        Located { path: error.field.clone().unwrap_or_default(), error: Box::new(error) }
    }
}

fn in_list(error: ConfigError, list: &str, index: usize) -> Located {
    let path =
        error.clone().in_index(index).in_key(list).in_key("static_resources").field.unwrap_or_default();
    Located { error: Box::new(error), path }
}

fn compile(value: &Bootstrap, environment: &Environment) -> std::result::Result<Compiled, Located> {
    refuse_unsupported(value)?;
    let default = StaticResources::default();
    let StaticResources { listeners, clusters, secrets } =
        value.static_resources.as_ref().unwrap_or(&default);
    let context =
        context(value, clusters.iter().map(|cluster| cluster.name.clone()).collect(), secrets, environment)?;
    let mut diff = Diff::default();
    let mut names = BTreeSet::new();
    for (index, value) in clusters.iter().enumerate() {
        if !names.insert(&value.name) {
            let error = ConfigError::field("name", "is given twice");
            return Err(in_list(error.in_resource(format!("cluster \"{}\"", value.name)), "clusters", index));
        }
        let cluster =
            cluster::compile(&context, value, false).map_err(|error| in_list(error, "clusters", index))?;
        diff.clusters.push((cluster.config.name.clone(), Some(cluster)));
    }
    let mut names = BTreeSet::new();
    for (index, value) in listeners.iter().enumerate() {
        let listener =
            listener::compile(&context, value).map_err(|error| in_list(error, "listeners", index))?;
        if !names.insert(listener.name.clone()) {
            let error = ConfigError::field("name", "is given twice");
            return Err(in_list(
                error.in_resource(format!("listener \"{}\"", listener.name)),
                "listeners",
                index,
            ));
        }
        diff.listeners.push((listener.name.clone(), Some(Arc::new(listener))));
    }
    let admin =
        value.admin.as_ref().map(|value| admin(&context, value)).transpose().in_key("admin")?.flatten();
    Ok(Compiled { diff, admin, stats: value.stats_config.clone(), context })
}

fn context(
    value: &Bootstrap,
    static_clusters: BTreeSet<String>,
    secrets: &[Secret],
    environment: &Environment,
) -> Result<Context> {
    let ProtoNode { id, cluster, .. } = value.node.clone().unwrap_or_default();
    let Environment {
        clusters,
        route_tables,
        filter_lists,
        registry,
        plugins,
        build,
        open_log,
        local_address,
    } = environment.clone();
    Ok(Context {
        clusters,
        route_tables,
        filter_lists,
        registry,
        runtime: Arc::new(runtime(value.layered_runtime.as_ref()).in_key("layered_runtime")?),
        plugins,
        build,
        open_log,
        secrets: Arc::new(secrets.iter().map(|secret| (secret.name.clone(), secret.clone())).collect()),
        node: Node { id, cluster },
        local_address,
        dns_servers: cluster::dns::servers(
            &value.typed_dns_resolver_config,
            &value.dns_resolution_config,
            DnsServers { tcp_only: value.use_tcp_for_dns_lookups, ..cluster::dns::ordinary() },
        )?,
        static_clusters: Some(Arc::new(static_clusters)),
        ads: false,
    })
}

/// The merged layers: later ones win. Nested objects are keys with dots.
fn runtime(value: Option<&LayeredRuntime>) -> Result<Runtime> {
    let mut values = BTreeMap::new();
    for (index, RuntimeLayer { name: _, layer_specifier }) in
        value.iter().flat_map(|value| value.layers.iter().enumerate())
    {
        let unsupported =
            |field: &str| Err(ConfigError::field(field, "is not supported").in_index(index).in_key("layers"));
        match layer_specifier {
            Some(LayerSpecifier::StaticLayer(layer)) => {
                flatten("", &struct_to_json(layer.clone()), &mut values);
            }
            // Empty until somebody changes it over the administration interface.
            Some(LayerSpecifier::AdminLayer(_)) => {}
            Some(LayerSpecifier::DiskLayer(_)) => return unsupported("disk_layer"),
            Some(LayerSpecifier::RtdsLayer(_)) => return unsupported("rtds_layer"),
            None => return unsupported("layer_specifier"),
        }
    }
    Ok(Runtime::new(values))
}

fn flatten(prefix: &str, value: &serde_json::Value, values: &mut BTreeMap<String, serde_json::Value>) {
    match value {
        // A share is an object that is a value.
        serde_json::Value::Object(map) if !map.contains_key("numerator") => {
            for (key, value) in map {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, values);
            }
        }
        // Plain numbers of a YAML file that are no 32-bit integers have come as text.
        serde_json::Value::String(text) => {
            let number = text.parse().ok().and_then(serde_json::Number::from_f64);
            values.insert(prefix.to_owned(), number.map_or_else(|| value.clone(), serde_json::Value::Number));
        }
        _ => {
            values.insert(prefix.to_owned(), value.clone());
        }
    }
}

fn admin(context: &Context, value: &ProtoAdmin) -> Result<Option<Admin>> {
    let ProtoAdmin {
        access_log,
        access_log_path,
        // Where a CPU profile would be written; none is made.
        profile_path: _,
        address,
        socket_options,
        ignore_global_conn_limit: _,
        allow_paths,
    } = value;
    refuse!(socket_options, allow_paths);
    if !matches!(access_log_path.as_str(), "" | "/dev/null") {
        return Err(ConfigError::field("access_log_path", "is not supported, access_log is"));
    }
    if address.is_none() {
        return Ok(None);
    }
    Ok(Some(Admin {
        address: listener::bind_address(address, "address")?,
        access_logs: access_log::logs(context, access_log, "access_log")?,
    }))
}

/// Counts the fields: what is not read by any part of this module is refused here.
fn refuse_unsupported(value: &Bootstrap) -> Result<()> {
    destructure!(
        Bootstrap {
            node: _,
            static_resources: _,
            stats_config: _,
            // Statistics are summed up when they are asked for.
            stats_flush_interval: _,
            layered_runtime: _,
            admin: _,
            use_tcp_for_dns_lookups: _,
            dns_resolution_config: _,
            typed_dns_resolver_config: _
        } refusing {
            node_context_params,
            dynamic_resources,
            cluster_manager,
            hds_config,
            flags_path,
            stats_sinks,
            deferred_stat_options,
            watchdog,
            watchdogs,
            tracing,
            overload_manager,
            enable_dispatcher_stats,
            header_prefix,
            stats_server_version_override,
            bootstrap_extensions,
            fatal_actions,
            config_sources,
            default_config_source,
            default_socket_interface,
            certificate_provider_instances,
            inline_headers,
            perf_tracing_file_path,
            default_regex_engine,
            xds_delegate_extension,
            xds_config_tracker_extension,
            listener_manager,
            application_log_config,
            grpc_async_client_manager_config,
            memory_allocator_manager,
            enable_worker_cpu_affinity,
            stats_flush,
            stats_eviction,
        } = value
    );
    Ok(())
}

/// Looks a path up in the text again: messages have no places. The deepest part of it that is there counts.
fn place_of(text: &str, file: &str, path: &str) -> Option<Place> {
    let root = DocumentNode::parse(text, &Options::for_file(file)).ok()?;
    let mut node = &root;
    let mut place = root.place;
    let parts = path.split(['.', '[']).map(|part| part.trim_end_matches(']')).filter(|part| !part.is_empty());
    for part in parts {
        let next = match (part.parse::<usize>(), node.as_array()) {
            (Ok(index), Some(items)) => items.get(index).map(|item| (item.place, item)),
            _ => node.as_object().and_then(|object| {
                let entry = object.entry(part).or_else(|| object.entry(&camel_case(part)))?;
                Some((entry.key_place, &entry.value))
            }),
        };
        let Some((found, inner)) = next else { break };
        (place, node) = (found, inner);
    }
    Some(place)
}

fn camel_case(name: &str) -> String {
    let mut parts = name.split('_');
    let mut camel = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut chars = part.chars();
        camel.extend(chars.next().map(|first| first.to_ascii_uppercase()));
        camel.push_str(chars.as_str());
    }
    camel
}

#[cfg(test)]
mod tests;
