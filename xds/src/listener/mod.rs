//! Listeners.

mod chain;
mod inspect;
mod network;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use prost::{Message, Name};
use sixfold_core::error::{ConfigContext, ConfigError, Faults, collect};
use sixfold_core::listener::{
    BindAddress, FilterChain, FilterChains, Listener, ListenerStats, SocketRights, Spared,
};
use sixfold_core::matching::Tree;
use sixfold_core::metrics::named_scope;
use sixfold_core::plugin::TrafficDirection as Way;
use sixfold_xds_api::pb::envoy::config::core::v3::address::Address as ProtoAddress;
use sixfold_xds_api::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use sixfold_xds_api::pb::envoy::config::core::v3::{Address, SocketAddress, TrafficDirection};
use sixfold_xds_api::pb::envoy::config::listener::v3::listener::connection_balance_config::BalanceType;
use sixfold_xds_api::pb::envoy::config::listener::v3::listener::{ConnectionBalanceConfig, DeprecatedV1};
use sixfold_xds_api::pb::envoy::config::listener::v3::{AdditionalAddress, Listener as ProtoListener};

use crate::access_log;
use crate::context::Context;
use sixfold_xds_api::matching::{self, Data};
use sixfold_xds_api::pb::google::protobuf::StringValue;
use sixfold_xds_api::pb::xds::core::v3::TypedExtensionConfig;
use sixfold_xds_api::pb::xds::r#type::matcher::v3::Matcher;
use sixfold_xds_api::values::{
    Endpoint, Result, address, bool_or, buffer_limit, enum_value, required, tcp_keepalive, timeout_or, u32_or,
};
use sixfold_xds_api::{any, metadata, refuse, refused};

/// Bytes buffered for a connection unless the listener says otherwise.
const BUFFER_LIMIT: u32 = 1 << 20;
/// Length of the accept queue; the kernel cuts it to `net.core.somaxconn`, which is what Envoy takes.
const BACKLOG: u32 = 4096;

/// Compiles a listener. The error names it.
///
/// # Errors
/// The field and the reason.
pub fn compile(context: &Context, value: &ProtoListener) -> std::result::Result<Listener, ConfigError> {
    listener(context, value).in_resource("listener", &shown_name(value))
}

fn listener(context: &Context, value: &ProtoListener) -> Result<Listener> {
    let mut faults = Faults::default();
    faults.take(refuse_unsupported(value));
    let use_original_dst = bool_or(&value.use_original_dst, false);
    let addresses = faults.take(addresses(&value.address, &value.additional_addresses));
    let stats = stats_name(&value.stat_prefix, &addresses);
    let scope = named_scope(&["listener", &stats]);
    let direction = enum_value::<TrafficDirection>(value.traffic_direction, "traffic_direction");
    let direction = faults.take(direction);
    let place = ChainPlace {
        chain: 0,
        buffer_limit: buffer_limit(&value.per_connection_buffer_limit_bytes, BUFFER_LIMIT),
        outbound: direction == TrafficDirection::Outbound,
    };
    let context = &context.of_listener(match direction {
        TrafficDirection::Unspecified => Way::Unspecified,
        TrafficDirection::Inbound => Way::Inbound,
        TrafficDirection::Outbound => Way::Outbound,
    });
    let (chains, default_chain) = chains(context, value, &scope, place, &mut faults);
    let listener_filters = faults.take(inspect::filters(&value.listener_filters, use_original_dst));
    let access_logs = faults.take(access_log::logs(context, &value.access_log, "access_log"));
    let exact_balance = exact_balance(&value.connection_balance_config).in_key("connection_balance_config");
    let exact_balance = faults.take(exact_balance);
    let filters_timeout = &value.listener_filters_timeout;
    let filters_timeout =
        timeout_or(filters_timeout, Some(Duration::from_secs(15)), "listener_filters_timeout");
    let filters_timeout = faults.take(filters_timeout);
    faults.end(())?;
    let stats = ListenerStats::new(context.compile.metrics(), &scope);
    if chains.iter().chain(&default_chain).any(|chain| chain.tls.is_some()) {
        // Their names are there before the first connection.
        stats.tls();
    }
    let deprecated_bind =
        value.deprecated_v1.as_ref().and_then(|DeprecatedV1 { bind_to_port }| *bind_to_port);
    Ok(Listener {
        name: display_name(&value.name, &addresses).into(),
        bind: bool_or(&value.bind_to_port.or(deprecated_bind), true),
        listener_filters,
        filters_timeout,
        continue_on_timeout: value.continue_on_listener_filters_timeout,
        chains,
        default_chain,
        use_original_dst,
        access_logs,
        socket: SocketRights {
            transparent: bool_or(&value.transparent, false),
            freebind: bool_or(&value.freebind, false),
        },
        exact_balance,
        metadata: Arc::new(metadata::namespaces(&value.metadata)),
        spared: Spared { limit: value.ignore_global_conn_limit, load: value.bypass_overload_manager },
        backlog: u32_or(&value.tcp_backlog_size, BACKLOG),
        tcp_keepalive: tcp_keepalive(&value.tcp_keepalive),
        inbound: direction == TrafficDirection::Inbound,
        stats: Arc::new(stats),
        shape: shape(value),
        addresses,
    })
}

/// Counts the fields: what is not read by any part of this module is refused here.
fn refuse_unsupported(value: &ProtoListener) -> Result<()> {
    let ProtoListener {
        name: _,
        address: _,
        additional_addresses: _,
        stat_prefix: _,
        stats_matcher,
        filter_chains: _,
        fcds_config,
        filter_chain_matcher: _,
        use_original_dst: _,
        default_filter_chain: _,
        per_connection_buffer_limit_bytes: _,
        per_connection_buffer_high_watermark_timeout,
        metadata: _,
        deprecated_v1: _,
        drain_type,
        listener_filters: _,
        listener_filters_timeout: _,
        continue_on_listener_filters_timeout: _,
        transparent: _,
        freebind: _,
        socket_options,
        tcp_fast_open_queue_length,
        traffic_direction: _,
        udp_listener_config,
        api_listener,
        connection_balance_config: _,
        // Every worker has its own socket. Clients see no difference.
        reuse_port: _,
        enable_reuse_port: _,
        access_log: _,
        tcp_backlog_size: _,
        // Each connection is served by a task of its own, and its worker takes turns among them as they become ready.
        max_connections_to_accept_per_socket_event: _,
        bind_to_port: _,
        enable_mptcp,
        ignore_global_conn_limit: _,
        bypass_overload_manager: _,
        tcp_keepalive: _,
        listener_specifier,
    } = value;
    refused!(
        stats_matcher,
        fcds_config,
        per_connection_buffer_high_watermark_timeout,
        drain_type,
        socket_options,
        tcp_fast_open_queue_length,
        udp_listener_config,
        api_listener,
        enable_mptcp,
        listener_specifier
    )
}

/// The filter chains, and the one for connections that match none.
fn chains(
    context: &Context,
    value: &ProtoListener,
    scope: &str,
    place: ChainPlace,
    faults: &mut Faults,
) -> (FilterChains, Option<Arc<FilterChain>>) {
    let name = &value.name;
    let compile = |chain| chain::compile(context, name, scope, chain, place).map(Arc::new);
    let chains = value
        .filter_chains
        .iter()
        .enumerate()
        .map(|(index, chain)| compile(chain).in_index(index).in_key("filter_chains"));
    let chains = faults.take(collect(chains));
    let chains = match &value.filter_chain_matcher {
        None => FilterChains::new(chains).map_err(|reason| ConfigError::field("filter_chains", reason)),
        Some(tree) => by_tree(tree, chains),
    };
    let chains = faults.take(chains);
    let default_chain = value.default_filter_chain.as_ref().map(compile).transpose();
    let default_chain = faults.take(default_chain.in_key("default_filter_chain"));
    if value.filter_chains.is_empty() && value.default_filter_chain.is_none() {
        faults.take::<()>(Err(ConfigError::field("filter_chains", "must not be empty")));
    }
    (chains, default_chain)
}

/// Chains that a tree leads to.
fn by_tree(value: &Matcher, chains: Vec<Arc<FilterChain>>) -> Result<FilterChains> {
    let mut faults = Faults::default();
    let named = check_names(&chains).map_err(|reason| ConfigError::field("filter_chains", reason));
    faults.take(named);
    let tree = faults.keep(chain_tree(value, &chains).in_key("filter_chain_matcher"));
    let tree = faults.kept(tree)?;
    faults.end(FilterChains::by_tree(chains, tree))
}

/// They are told apart by their names.
fn check_names(chains: &[Arc<FilterChain>]) -> std::result::Result<(), String> {
    let mut names = BTreeSet::new();
    for (index, chain) in chains.iter().enumerate() {
        if chain.name.is_empty() {
            return Err(format!(
                "filter chain number {} needs a name, by which filter_chain_matcher leads to it",
                index + 1
            ));
        }
        if !names.insert(&chain.name) {
            return Err(format!("two filter chains have the name \"{}\"", chain.name));
        }
    }
    Ok(())
}

/// A tree whose actions are names of filter chains. A name that none has leads to no chain, as in Envoy.
fn chain_tree(value: &Matcher, chains: &[Arc<FilterChain>]) -> Result<Tree<Option<usize>>> {
    let mut act = |value: &TypedExtensionConfig| {
        let TypedExtensionConfig { name, typed_config } = value;
        let config = required(typed_config, "typed_config")?;
        let kind = any::type_name(config).in_key("typed_config")?;
        if kind != StringValue::full_name() {
            return Err(refuse::extension("action", name, &kind));
        }
        let StringValue { value: meant } = any::unpack(config).in_key("typed_config")?;
        Ok(chains.iter().position(|chain| *chain.name == *meant))
    };
    matching::tree(value, Data::Chain, &mut act)
}

fn addresses(first: &Option<Address>, additional: &[AdditionalAddress]) -> Result<Vec<BindAddress>> {
    let mut addresses = vec![bind_address(first, "address")?];
    for (index, value) in additional.iter().enumerate() {
        let AdditionalAddress { address, socket_options, tcp_keepalive } = value;
        let compiled = || {
            refuse!(socket_options, tcp_keepalive);
            bind_address(address, "address")
        };
        addresses.push(compiled().in_index(index).in_key("additional_addresses")?);
    }
    Ok(addresses)
}

/// What the filters of a chain are told of where they stand.
#[derive(Clone, Copy)]
pub(crate) struct ChainPlace {
    /// Tells the chain, as it is configured, from all others of the process; the chain itself fills it in.
    pub(crate) chain: u64,
    /// Bytes buffered for a connection.
    pub(crate) buffer_limit: usize,
    /// Whether the listener is for what goes out (`traffic_direction`).
    pub(crate) outbound: bool,
}

pub(crate) fn bind_address(value: &Option<Address>, field: &str) -> Result<BindAddress> {
    match address(value, field)? {
        Endpoint::Pipe(path) => Ok(BindAddress::Unix(path.into())),
        Endpoint::Socket(host, port) => match host.parse::<IpAddr>() {
            Ok(ip) if ip.is_ipv6() && has_ipv4_compat(value) => {
                Ok(BindAddress::DualStack(SocketAddr::new(ip, port)))
            }
            Ok(ip) => Ok(BindAddress::Ip(SocketAddr::new(ip, port))),
            Err(_) => {
                let reason = format!("\"{host}\" is no IP address");
                Err(ConfigError::field("socket_address.address", reason).in_key(field))
            }
        },
    }
}

/// Of an address of IPv6 whether clients of IPv4 are to reach it.
fn has_ipv4_compat(value: &Option<Address>) -> bool {
    let address = value.as_ref().and_then(|address| address.address.as_ref());
    matches!(address, Some(ProtoAddress::SocketAddress(SocketAddress { ipv4_compat: true, .. })))
}

fn exact_balance(value: &Option<ConnectionBalanceConfig>) -> Result<bool> {
    match value.as_ref().map(|value| &value.balance_type) {
        None => Ok(false),
        Some(Some(BalanceType::ExactBalance(_))) => Ok(true),
        Some(Some(BalanceType::ExtendBalance(_))) => {
            Err(ConfigError::field("extend_balance", "is not supported"))
        }
        Some(_) => Err(ConfigError::field("balance_type", "is not supported")),
    }
}

/// The name that errors have; the address of one without a name, as it is written.
fn shown_name(value: &ProtoListener) -> String {
    let address = match value.address.as_ref().and_then(|address| address.address.as_ref()) {
        Some(ProtoAddress::SocketAddress(socket)) => match socket.port_specifier {
            Some(PortSpecifier::PortValue(port)) => format!("{}:{port}", socket.address),
            _ => socket.address.clone(),
        },
        Some(ProtoAddress::Pipe(pipe)) => pipe.path.clone(),
        _ => String::new(),
    };
    if value.name.is_empty() { address } else { value.name.clone() }
}

/// The name; Envoy makes a random one up where there is none, and the address does as well.
fn display_name(name: &str, addresses: &[BindAddress]) -> String {
    match (name, addresses.first()) {
        ("", Some(address)) => address.to_string(),
        (name, _) => name.to_owned(),
    }
}

/// `127.0.0.1_8080`, `[__1]_8080`, or the prefix that is given.
fn stats_name(prefix: &str, addresses: &[BindAddress]) -> String {
    match (prefix, addresses.first()) {
        ("", Some(address)) => address.to_string().replace(':', "_"),
        (prefix, _) => prefix.to_owned(),
    }
}

/// Fingerprint of what needs new sockets or listener filters when it changes. The maps of metadata have no fixed
/// order on the wire and are left out.
fn shape(value: &ProtoListener) -> u64 {
    let rest = ProtoListener {
        filter_chains: Vec::new(),
        default_filter_chain: None,
        metadata: None,
        ..value.clone()
    };
    fingerprint(&rest.encode_to_vec())
}

/// The same for the same bytes, in every run.
fn fingerprint(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
