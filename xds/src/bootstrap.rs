//! Envoy's bootstrap: static resources, runtime, administration.

mod ads;
mod faults;
mod fixed;
mod manager;
mod odd;
mod overload;
mod runtime;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use prost::{Message, Name};
use serde_json::{Map, Value};
use sixfold_core::access_log::AccessLog;
use sixfold_core::cluster::DnsServers;
use sixfold_core::compile::CompileContext;
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::listener::{BindAddress, Listener};
use sixfold_core::metrics;
use sixfold_core::model::Diff;
use sixfold_core::overload::Settings as Load;
use sixfold_core::plugin::LocalNode;
use sixfold_core::stats_sink::Sinks;
use sixfold_xds_api::any::{self, struct_to_json};
use sixfold_xds_api::constraints;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::bootstrap::{DynamicResources, StaticResources};
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::{Admin as ProtoAdmin, Bootstrap};
use sixfold_xds_api::pb::envoy::config::core::v3::{
    Locality as ProtoLocality, Node as ProtoNode, TypedExtensionConfig,
};
use sixfold_xds_api::pb::envoy::config::listener::v3::Listener as ProtoListener;
use sixfold_xds_api::pb::envoy::config::trace::v3::Tracing;
use sixfold_xds_api::pb::envoy::extensions::regex_engines::v3::GoogleRe2;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use sixfold_xds_api::pb::google::protobuf::Struct;

pub use self::ads::Ads;
use self::faults::{Faults, Unread};
pub use self::fixed::Fixed;
pub use self::odd::odd_settings;
pub(crate) use self::runtime::values as runtime_values;
pub use self::sources::{Document, NodeNames, Sources};
use crate::ads::{Asks, Key, Kind, Static, Statics};
use crate::context::{Context, Node};
use crate::dump::Shown;
use crate::rds::FilterLists;
use crate::sds::Secrets;
use crate::skipped::{BOOTSTRAP_EXTENSION, is_skipped};
use crate::tracker::Tracker;
use crate::unknown::{OnUnknown, Unknown};
use crate::{access_log, cluster, listener, stats, stats_sinks, trace};
use sixfold_xds_api::values::{Result, required};
use sixfold_xds_api::{destructure, refuse};

/// What the process gives to compile its bootstraps with, one after the other.
#[derive(Clone)]
pub struct ProcessContext {
    /// What any source compiles with.
    pub compile: CompileContext,
    /// Filters of connection managers whose routes come by themselves, over all bootstraps of the process.
    pub filter_lists: Arc<FilterLists>,
    /// Secrets that come by themselves, over all bootstraps of the process.
    pub secrets: Arc<Secrets>,
    /// What came by itself, to be shown.
    pub tracker: Arc<Tracker>,
    /// What is done about fields that nobody here knows.
    pub unknown: Arc<Unknown>,
}

impl ProcessContext {
    /// For the first bootstrap of a process.
    pub fn new(compile: CompileContext) -> ProcessContext {
        ProcessContext::doing(OnUnknown::default(), compile)
    }

    /// The same with what is done about fields that come by themselves and that nobody here knows.
    pub fn doing(on_unknown: OnUnknown, compile: CompileContext) -> ProcessContext {
        let unknown = Arc::new(Unknown::new(on_unknown, compile.metrics()));
        let secrets = Arc::new(Secrets::new(compile.metrics().clone(), unknown.clone()));
        ProcessContext { compile, filter_lists: Arc::default(), secrets, tracker: Arc::default(), unknown }
    }
}

/// A compiled bootstrap.
pub struct Compiled {
    /// Static clusters and listeners.
    pub diff: Diff,
    /// The administration listener, if there is one.
    pub admin: Option<Admin>,
    /// Statistics: their tags, and which are shown at all.
    pub tags: metrics::TagRules,
    /// Who is told of statistics.
    pub sinks: Sinks,
    /// What comes later.
    pub followed: Followed,
    /// What is done under load, if anything is.
    pub overload: Option<Load>,
    /// Itself, to be shown.
    pub shown: Shown,
    /// What of it is for the life of the process.
    pub fixed: Fixed,
}

/// Where resources come from after the bootstrap.
pub struct Followed {
    /// What they are compiled with.
    pub context: Context,
    /// Control planes and files.
    pub ads: Ads,
    /// Who asks those that secrets come from.
    pub node: ProtoNode,
}

impl Followed {
    /// Names of listeners that come into force when the configurations of their filters have come.
    pub fn late_listeners(&self) -> impl Iterator<Item = &Arc<str>> {
        let late = |resource: &Static| matches!(resource, Static::Late(_));
        self.ads.config.statics.iter().filter(move |(_, resource)| late(resource)).map(|(key, _)| &key.name)
    }

    /// What the bootstrap says itself.
    pub fn statics(&self) -> Statics {
        Statics { context: self.context.clone(), resources: self.ads.config.statics.clone() }
    }
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
/// What is wrong, each with file, line, column, resource and field, in the order of the file: values that don't fit their
/// types, what breaks a rule of its definition and what can't be compiled. Nothing of it is used then.
pub fn load(
    text: &str,
    file: &str,
    process: &ProcessContext,
) -> std::result::Result<Compiled, Vec<ConfigError>> {
    load_merged(&Sources::one(text, file), process)
}

/// The same of several texts.
///
/// # Errors
/// As [`load`], each with the file that it is in.
pub fn load_merged(
    sources: &Sources<'_>,
    process: &ProcessContext,
) -> std::result::Result<Compiled, Vec<ConfigError>> {
    let (mut bootstrap, unread) = sources.read()?;
    bootstrap.node = Some(node(&bootstrap));
    let mut faults = Faults::default();
    let encoded = bootstrap.encode_to_vec();
    if unread.is_empty() {
        access_log::expect(&*process.compile.log_sinks, std::iter::once(&*encoded));
    }
    let compiled = compile(&bootstrap, process, &mut faults);
    let missing = Unread::new(&unread);
    faults.leave_out_consequences(&missing);
    faults.broken_rules(&bootstrap, constraints::faults(&Bootstrap::full_name(), &encoded), &missing);
    faults.add_unread(&bootstrap, unread);
    match compiled {
        Some((diff, admin, tags, sinks, overload, followed)) if faults.is_empty() => {
            let shown = Shown { encoded: encoded.into(), at: SystemTime::now() };
            let fixed = Fixed::of(bootstrap, overload.as_ref());
            Ok(Compiled { diff, admin, tags, sinks, overload, followed, shown, fixed })
        }
        _ => Err(sources.placed(faults.into_found())),
    }
}

/// What of a [`Compiled`] is compiled.
type Parts = (Diff, Option<Admin>, metrics::TagRules, Sinks, Option<Load>, Followed);

/// Compiles what can be; without faults it is whole.
fn compile(value: &Bootstrap, process: &ProcessContext, faults: &mut Faults) -> Option<Parts> {
    faults.take(refuse_unsupported(value));
    let default = StaticResources::default();
    let StaticResources { listeners, clusters, secrets } =
        value.static_resources.as_ref().unwrap_or(&default);
    let names = clusters.iter().map(|cluster| cluster.name.clone()).collect();
    let context = context(value, names, secrets, process, faults);
    // A bootstrap with a fault changes nothing.
    let (mut diff, mut statics) = (Diff { whole: true, ..Diff::default() }, BTreeMap::new());
    let mut names = BTreeSet::new();
    let mut secret_names = BTreeSet::new();
    for (index, secret) in secrets.iter().enumerate() {
        if !secret_names.insert(&secret.name) {
            let twice = Err(ConfigError::field("name", "is given twice"));
            faults.take_item::<()>(twice.in_resource("secret", &secret.name), "secrets", index);
        }
    }
    for (index, value) in clusters.iter().enumerate() {
        if !names.insert(&value.name) {
            let twice = Err(ConfigError::field("name", "is given twice"));
            faults.take_item::<()>(twice.in_resource("cluster", &value.name), "clusters", index);
            continue;
        }
        let cluster = faults.take_item(cluster::compile(&context, value, false), "clusters", index);
        let asks = Asks::of_cluster(&context, value).in_resource("cluster", &value.name);
        if let Some(mut asks) = faults.take_item(asks, "clusters", index) {
            let tls = cluster.iter().flat_map(|cluster| cluster.config.all_tls());
            asks.add_secrets(tls.filter_map(|tls| tls.awaited()));
            statics.insert(Key::of_name(Kind::Cluster, &value.name.as_str().into()), Static::InForce(asks));
        }
        diff.clusters.extend(cluster.map(|cluster| (cluster.config.name.clone(), Some(cluster))));
    }
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeMap::new());
    for (index, value) in listeners.iter().enumerate() {
        context.extensions.take_asked();
        let listener = faults.take_item(listener::compile(&context, value), "listeners", index);
        let Some(listener) = listener else { continue };
        if !names.insert(listener.name.clone()) {
            let twice = Err(ConfigError::field("name", "is given twice"));
            faults.take_item::<()>(twice.in_resource("listener", &listener.name), "listeners", index);
            continue;
        }
        let taken = own_address(&listener, &mut addresses);
        faults.take_item(taken.in_resource("listener", &listener.name), "listeners", index);
        let key = Key::of_name(Kind::Listener, &listener.name);
        if context.extensions.take_asked().is_empty() {
            statics.insert(key, Static::InForce(Asks::of_listener(&listener)));
            diff.listeners.push((listener.name.clone(), Some(Arc::new(listener))));
        } else {
            let named = ProtoListener { name: listener.name.to_string(), ..value.clone() };
            statics.insert(key, Static::Late(named.encode_to_vec().into()));
        }
    }
    let admin = value.admin.as_ref().map(|value| admin(&context, value)).transpose().in_key("admin");
    let admin = faults.take(admin);
    let tags = faults.take(stats::tags(value.stats_config.as_ref()).in_key("stats_config"));
    let sinks = faults.take(stats_sinks::compile(&context, value));
    let overload = overload::compile(value.overload_manager.as_ref(), &context.runtime);
    let overload = faults.take(overload.in_key("overload_manager"));
    let default = DynamicResources::default();
    let dynamic = value.dynamic_resources.as_ref().unwrap_or(&default);
    let ads = ads::compile(&context, dynamic, node(value), statics).in_key("dynamic_resources");
    let followed = Followed { context, ads: faults.take(ads)?, node: node(value) };
    Some((diff, admin?.flatten(), tags?, sinks?, overload?, followed))
}

/// Who asks, in the words of the bootstrap.
fn node(value: &Bootstrap) -> ProtoNode {
    let mut node = value.node.clone().unwrap_or_default();
    if node.user_agent_name.is_empty() {
        node.user_agent_name = "sixfold".to_owned();
    }
    node
}

/// Who this proxy is for its peers.
fn local_node(id: &str, metadata: Option<Struct>, locality: Option<&ProtoLocality>) -> LocalNode {
    let mut metadata = match struct_to_json(metadata.unwrap_or_default()) {
        Value::Object(metadata) => metadata,
        _ => Map::new(),
    };
    for (key, place) in
        locality.iter().flat_map(|at| [("REGION", &at.region), ("AVAILABILITY_ZONE", &at.zone)])
    {
        if !place.is_empty() {
            metadata.entry(key).or_insert_with(|| place.as_str().into());
        }
    }
    LocalNode { id: id.into(), metadata }
}

fn context(
    value: &Bootstrap,
    static_clusters: BTreeSet<String>,
    secrets: &[Secret],
    process: &ProcessContext,
    faults: &mut Faults,
) -> Context {
    let ProtoNode { id, cluster, locality, metadata, .. } = value.node.clone().unwrap_or_default();
    let own = local_node(&id, metadata, locality.as_ref());
    let locality = locality.as_ref().map(cluster::place);
    let ProcessContext { mut compile, filter_lists, secrets: sds, tracker, unknown } = process.clone();
    compile.build.local_cluster = cluster.as_str().into();
    compile.build.node = Arc::new(own);
    let of_bootstrap = |secret: &Secret| (secret.name.clone(), Arc::new(secret.clone()));
    let listeners = value.static_resources.iter().flat_map(|resources| &resources.listeners);
    let listeners = listeners.map(|listener| &*listener.name).collect();
    let runtime = runtime::compile(value.layered_runtime.as_ref(), &listeners).in_key("layered_runtime");
    let runtime = faults.take(runtime);
    let runtime = Arc::new(runtime.unwrap_or_default());
    (compile.build.runtime, compile.build.local_address) = (runtime.clone(), compile.local_address);
    let servers = faults.take(cluster::dns::servers(
        &value.typed_dns_resolver_config,
        &value.dns_resolution_config,
        DnsServers { tcp_only: value.use_tcp_for_dns_lookups, ..cluster::dns::ordinary() },
    ));
    let of_all = value
        .cluster_manager
        .as_ref()
        .map(|value| manager::compile(value, &static_clusters))
        .transpose()
        .in_key("cluster_manager");
    let manager::OfAll { outlier_log, local_cluster } = faults.take(of_all).flatten().unwrap_or_default();
    compile.build.peers.clone_from(&local_cluster);
    let mut context = Context {
        compile,
        tracer: None,
        exporters: Arc::default(),
        local_cluster,
        locality,
        outlier_log,
        filter_lists,
        runtime,
        secrets: Arc::new(secrets.iter().map(of_bootstrap).collect()),
        sds,
        tracker,
        unknown,
        extensions: Arc::default(),
        node: Node { id, cluster, whole: Arc::new(value.node.clone().unwrap_or_default()) },
        dns_servers: servers.flatten(),
        bootstrap_clusters: Arc::new(static_clusters),
        sent_clusters: Arc::default(),
        validate_clusters: true,
        of_stream: false,
        ads: value.dynamic_resources.as_ref().is_some_and(|dynamic| dynamic.ads_config.is_some()),
    };
    let tracer = value.tracing.as_ref().and_then(|Tracing { http }| http.as_ref());
    let tracer = tracer.map(|provider| trace::provider(&context, provider)).transpose();
    context.tracer = faults.take(tracer.in_key("http").in_key("tracing")).flatten();
    context
}

/// Two listeners can't have one address, unless its port is any that is free.
fn own_address(listener: &Listener, taken: &mut BTreeMap<String, Arc<str>>) -> Result<()> {
    let fixed = listener.addresses.iter().filter(|address| address.ip().is_none_or(|ip| ip.port() != 0));
    for address in fixed.filter(|_| listener.bind) {
        if let Some(other) = taken.insert(format!("{address:?}"), listener.name.clone()) {
            let reason = format!("is that of listener \"{other}\" too");
            return Err(ConfigError::field("address", reason));
        }
    }
    Ok(())
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
    if address.is_none() {
        return Ok(None);
    }
    let mut access_logs = access_log::logs(context, access_log, "access_log")?;
    // The older form of a log in a file.
    if !matches!(access_log_path.as_str(), "" | "/dev/null") {
        access_logs.push(access_log::default_file(context, access_log_path).in_key("access_log_path")?);
    }
    let address = listener::bind_address(address, "address")?;
    if address.ip().is_none() {
        let reason = "is not supported: the administration listens on an IP address";
        return Err(ConfigError::field("pipe", reason).in_key("address"));
    }
    Ok(Some(Admin { address, access_logs }))
}

/// Counts the fields: what is not read by any part of this module is refused here.
fn refuse_unsupported(value: &Bootstrap) -> Result<()> {
    destructure!(
        Bootstrap {
            node: _,
            dynamic_resources: _,
            static_resources: _,
            stats_config: _,
            stats_flush_interval: _,
            stats_flush: _,
            stats_sinks: _,
            layered_runtime: _,
            admin: _,
            cluster_manager: _,
            overload_manager: _,
            bootstrap_extensions,
            default_regex_engine,
            // A handle is made when it is first counted, whatever this says.
            deferred_stat_options: _,
            // Statistics stay while what they count is there.
            stats_eviction: _,
            // Lines of the process's own log have the form that the command line gives them.
            application_log_config: _,
            tracing: _,
            use_tcp_for_dns_lookups: _,
            dns_resolution_config: _,
            typed_dns_resolver_config: _
        } refusing {
            node_context_params,
            hds_config,
            flags_path,
            watchdog,
            watchdogs,
            enable_dispatcher_stats,
            header_prefix,
            stats_server_version_override,
            fatal_actions,
            config_sources,
            default_config_source,
            default_socket_interface,
            certificate_provider_instances,
            inline_headers,
            perf_tracing_file_path,
            xds_delegate_extension,
            xds_config_tracker_extension,
            listener_manager,
            grpc_async_client_manager_config,
            memory_allocator_manager,
            enable_worker_cpu_affinity,
        } = value
    );
    let extensions = bootstrap_extensions.iter().enumerate();
    let extensions = collect(extensions.map(|(index, extension)| known_extension(extension).in_index(index)));
    let engine = default_regex_engine.as_ref().map_or(Ok(()), regex_engine).in_key("default_regex_engine");
    collect([extensions.in_key("bootstrap_extensions").map(drop), engine]).map(drop)
}

/// All patterns are of RE2's language, whose engine is the one that Envoy has built in.
fn regex_engine(value: &TypedExtensionConfig) -> Result<()> {
    let TypedExtensionConfig { name, typed_config } = value;
    let config = required(typed_config, "typed_config")?;
    match any::type_name(config).in_key("typed_config")? {
        kind if kind == GoogleRe2::full_name() => Ok(()),
        kind => Err(refuse::extension("regular expression engine", name, &kind)),
    }
}

fn known_extension(value: &TypedExtensionConfig) -> Result<()> {
    let TypedExtensionConfig { name, typed_config } = value;
    let config = typed_config.as_ref().ok_or_else(|| ConfigError::field("typed_config", "is missing"))?;
    match any::type_name(config).in_key("typed_config")?.as_str() {
        kind if is_skipped(BOOTSTRAP_EXTENSION, name, kind) => Ok(()),
        kind => Err(refuse::extension(BOOTSTRAP_EXTENSION, name, kind)),
    }
}

#[cfg(test)]
mod tests;
