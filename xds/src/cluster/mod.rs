//! Clusters.

mod balance;
mod breaker;
pub(crate) mod dns;
mod eds;
mod endpoints;
mod health;
mod original_dst;
mod outlier;
mod protocol;
mod subset;
#[cfg(test)]
mod tests;

pub(crate) use eds::{Assigned, assigned, eds};
pub(crate) use endpoints::place;
pub use endpoints::{LoadAssignment, compile as endpoints};
pub(crate) use protocol::Protocol;

use std::sync::Arc;
use std::time::Duration;

use prost::Name;
use sixfold_core::cluster::{
    Address, Cluster, ClusterConfig, ClusterPolicy, Discovery, HealthCheck, HostConfig, MeshCluster, Probe,
    UpstreamProtocol,
};
use sixfold_core::error::{ConfigContext, ConfigError, Faults, collect};
use sixfold_core::message::Scheme;
use sixfold_core::metrics::named_scope;
use sixfold_core::peer_exchange::PeerExchange;
use sixfold_core::runtime::Runtime;
use sixfold_xds_api::istio_pb::envoy::tcp::metadataexchange::config::MetadataExchange;
use sixfold_xds_api::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use sixfold_xds_api::pb::envoy::config::cluster::v3::{
    Cluster as ProtoCluster, Filter, UpstreamConnectionOptions,
};
use sixfold_xds_api::pb::envoy::config::core::v3::{BindConfig, TcpKeepalive};
use sixfold_xds_api::pb::google::protobuf::BoolValue;

use self::breaker::Limits;
use crate::context::Context;
use crate::tls::Transports;
use sixfold_xds_api::values::{
    Result, bool_or, buffer_limit, enum_value, ip_address, not_empty, positive_duration, required,
    tcp_keepalive,
};
use sixfold_xds_api::{any, metadata, refuse, workload};

/// Bytes buffered for an upstream connection unless the cluster says otherwise.
const BUFFER_LIMIT: u32 = 1 << 20;

/// Compiles a cluster and puts it beside the one of its name that there is, whose endpoints, connections and
/// statistics go on where they are equal. The error names it.
///
/// # Errors
/// The field and the reason.
pub fn compile(
    context: &Context,
    value: &ProtoCluster,
    added_via_api: bool,
) -> std::result::Result<Arc<Cluster>, ConfigError> {
    let previous = context.compile.clusters.find(&value.name);
    let compiled = || {
        let (mut config, hosts) = parts(context, value)?;
        config.added_via_api = added_via_api;
        Cluster::new(config, hosts, previous.as_deref(), context.compile.metrics()).map_err(ConfigError::new)
    };
    compiled().in_resource("cluster", &value.name)
}

fn parts(context: &Context, value: &ProtoCluster) -> Result<(ClusterConfig, Vec<HostConfig>)> {
    let mut faults = Faults::default();
    faults.take(refuse_unsupported(value));
    let exchange = faults.take(exchange(context, &value.filters));
    let name = faults.take(not_empty(&value.name, "name"));
    let discovery = faults.keep(discovery(context, value));
    let load = endpoints::compile(value.load_assignment.as_ref()).in_key("load_assignment");
    let load = faults.keep(load);
    if let (Some(discovery), Some(load)) = (&discovery, &load) {
        faults.take(check_addresses(discovery, &load.hosts).in_key("load_assignment"));
    }
    let protocol = faults.keep(protocol::compile(value));
    let observability_name = shown_name(value);
    let scope = named_scope(&["cluster", observability_name]);
    let transports = protocol.as_ref().map(|of| Transports::of(context, value, of, &scope));
    let transports = faults.take(transports.transpose()).unwrap_or_default();
    let Transports { tls, matches: socket_matches, proxy_protocol } = transports;
    let is_custom = matches!(value.cluster_discovery_type, Some(ClusterDiscoveryType::ClusterType(_)));
    let balance = faults.keep(balance::compile(context, value, discovery.is_some() || !is_custom));
    let limits = breaker::limits(&context.runtime, &value.name, value.circuit_breakers.as_ref());
    let limits = faults.keep(limits.in_key("circuit_breakers"));
    let connect_timeout =
        positive_duration(&value.connect_timeout, Duration::from_secs(5), "connect_timeout");
    let connect_timeout = faults.take(connect_timeout);
    let check = protocol.as_ref().map(|of| health_check(context, value, of.protocol)).transpose();
    let health_check = faults.take(check.in_key("health_checks")).flatten();
    let outlier = value.outlier_detection.as_ref();
    let outlier = outlier.map(|detection| outlier::compile(context, detection, &value.name)).transpose();
    let outlier_detection = faults.take(outlier.in_key("outlier_detection"));
    let source = value.upstream_bind_config.as_ref().map(source_address).transpose();
    let source_address = faults.take(source.in_key("upstream_bind_config")).flatten();
    let keepalive = faults.take(keepalive(&value.upstream_connection_options));
    let (discovery, load, protocol) = (faults.kept(discovery)?, faults.kept(load)?, faults.kept(protocol)?);
    let (mut balance, limits) = (faults.kept(balance)?, faults.kept(limits)?);
    faults.end(())?;
    balance.overprovisioning = load.overprovisioning;
    balance.drop_overload = load.drop_overload;
    let any_tls = tls.is_some() || socket_matches.iter().any(|socket| socket.tls.is_some());
    // What is asked for by auto_sni and auto_san_validation is of no matter without TLS, but nobody could agree on a
    // protocol.
    if !any_tls && protocol.protocol == UpstreamProtocol::Auto {
        let reason = "must be one of TLS for auto_config, which asks endpoints by ALPN";
        return Err(ConfigError::field("transport_socket", reason));
    }
    let policy = ClusterPolicy {
        connect_timeout,
        scheme: if tls.is_some() { Scheme::Https } else { Scheme::Http },
        buffer_limit: buffer_limit(&value.per_connection_buffer_limit_bytes, BUFFER_LIMIT),
        health_check,
        outlier_detection,
        balance,
        source_address,
        tcp_keepalive: tcp_keepalive(&keepalive),
        exchange,
        proxy_protocol,
        own_zone: context.locality.as_ref().map(|own| own.zone.clone()).unwrap_or_default(),
        ..policy(discovery, protocol, &limits)
    };
    let metadata = metadata::namespaces(&value.metadata);
    let config = ClusterConfig {
        observability_name: observability_name.into(),
        mesh: Some(Arc::new(MeshCluster::new(name, &metadata))),
        eds_service_name: service_name(value),
        tls,
        socket_matches,
        metadata,
        maintenance: maintenance(&context.runtime, name),
        policy: policy.into(),
        ..ClusterConfig::named(name)
    };
    Ok((config, load.hosts))
}

/// The name that statistics have (`alt_stat_name`).
pub(crate) fn shown_name(value: &ProtoCluster) -> &str {
    if value.alt_stat_name.is_empty() { &value.name } else { &value.alt_stat_name }
}

/// The policy as far as discovery, protocol and limits say it.
fn policy(discovery: Discovery, protocol: Protocol, limits: &Limits) -> ClusterPolicy {
    ClusterPolicy {
        discovery,
        protocol: protocol.protocol,
        http1: protocol.http1,
        http2: protocol.http2,
        header_rules: protocol.header_rules,
        idle_timeout: protocol.idle_timeout,
        max_connection_duration: protocol.max_connection_duration,
        max_stream_duration: protocol.max_stream_duration,
        max_requests_per_connection: protocol.max_requests_per_connection,
        // Envoy keeps every connection until its idle timeout.
        max_idle: usize::MAX,
        max_host_connections: limits.host_connections,
        breaker: limits.default,
        high_breaker: limits.high,
        tracks_remaining: limits.tracks_remaining,
        retry: protocol.retry,
        statistics: true,
        added_via_api: false,
        ..ClusterPolicy::default()
    }
}

/// The name that endpoints come by, if the cluster gives them one.
fn service_name(value: &ProtoCluster) -> Option<Arc<str>> {
    let name = value.eds_cluster_config.as_ref().map(|eds| eds.service_name.as_str());
    name.filter(|name| !name.is_empty()).map(Arc::from)
}

/// Percent of requests that the runtime has a cluster turn away (source/common/upstream/upstream_impl.cc,
/// `maintenanceMode`).
fn maintenance(runtime: &Runtime, name: &str) -> u8 {
    runtime.integer(&format!("upstream.maintenance_mode.{name}"), 0).min(100) as u8
}

/// Counts the fields: what is not read by any part of this module is refused here.
fn refuse_unsupported(value: &ProtoCluster) -> Result<()> {
    let ProtoCluster {
        transport_socket_matches: _,
        transport_socket_matcher,
        name: _,
        alt_stat_name: _,
        stats_matcher,
        eds_cluster_config: _,
        connect_timeout: _,
        per_connection_buffer_limit_bytes: _,
        per_connection_buffer_high_watermark_timeout,
        lb_policy: _,
        load_assignment: _,
        health_checks: _,
        max_requests_per_connection: _,
        circuit_breakers: _,
        upstream_http_protocol_options: _,
        common_http_protocol_options: _,
        http_protocol_options: _,
        http2_protocol_options: _,
        typed_extension_protocol_options: _,
        dns_refresh_rate: _,
        dns_jitter: _,
        dns_failure_refresh_rate: _,
        respect_dns_ttl: _,
        dns_lookup_family: _,
        dns_resolvers: _,
        use_tcp_for_dns_lookups: _,
        dns_resolution_config: _,
        typed_dns_resolver_config: _,
        // Nothing waits for a cluster to become warm.
        wait_for_warm_on_init: _,
        outlier_detection: _,
        cleanup_interval: _,
        upstream_bind_config: _,
        lb_subset_config: _,
        common_lb_config: _,
        transport_socket: _,
        metadata: _,
        protocol_selection: _,
        upstream_connection_options: _,
        close_connections_on_host_health_failure,
        // An endpoint that discovery takes away always leaves at once, whatever its checks say.
        ignore_health_on_host_removal: _,
        filters: _,
        load_balancing_policy: _,
        lrs_server,
        lrs_report_endpoint_metrics,
        track_timeout_budgets,
        upstream_config,
        track_cluster_stats,
        preconnect_policy,
        connection_pool_per_downstream_connection,
        queuing_policies,
        cluster_discovery_type: _,
        lb_config: _,
    } = value;
    refuse!(
        transport_socket_matcher,
        stats_matcher,
        per_connection_buffer_high_watermark_timeout,
        close_connections_on_host_health_failure,
        lrs_server,
        lrs_report_endpoint_metrics,
        track_timeout_budgets,
        upstream_config,
        track_cluster_stats,
        preconnect_policy,
        connection_pool_per_downstream_connection,
        queuing_policies
    );
    Ok(())
}

/// Envoy's network filters of upstream connections, of which one is known: the exchange of peers.
fn exchange(context: &Context, filters: &[Filter]) -> Result<Option<Arc<PeerExchange>>> {
    let one = |Filter { name, typed_config, config_discovery }: &Filter| {
        refuse!(config_discovery);
        let config = required(typed_config, "typed_config")?;
        match any::type_name(config).in_key("typed_config")? {
            kind if kind == MetadataExchange::full_name() => any::unpack(config)
                .and_then(|config| workload::exchange(&config, &context.compile.build))
                .in_key("typed_config"),
            kind => Err(refuse::extension("filter", name, &kind)),
        }
    };
    let all = filters.iter().enumerate().map(|(index, filter)| one(filter).in_index(index));
    let mut all = collect(all).in_key("filters")?;
    match all.len() {
        0 | 1 => Ok(all.pop()),
        _ => Err(ConfigError::new("there can be one exchange of metadata").in_index(1).in_key("filters")),
    }
}

fn discovery(context: &Context, value: &ProtoCluster) -> Result<Discovery> {
    let kind = match &value.cluster_discovery_type {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(kind)) => enum_value(*kind, "type")?,
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return dns::custom(context, custom).in_key("cluster_type");
        }
    };
    if let Some(Assigned { within, .. }) = eds::eds_unseen(context, value)? {
        // It is waited for where endpoints come from; whoever waits here does so until it is told to stop.
        return Ok(Discovery::Eds(within.unwrap_or(Duration::MAX)));
    }
    match kind {
        DiscoveryType::Static => Ok(Discovery::Static),
        DiscoveryType::StrictDns => Ok(Discovery::StrictDns(dns::options(context, value)?)),
        DiscoveryType::LogicalDns => Ok(Discovery::LogicalDns(dns::options(context, value)?)),
        DiscoveryType::Eds => Err(ConfigError::field("eds_cluster_config", "is missing")),
        DiscoveryType::OriginalDst => original_dst::discovery(value).map(Discovery::OriginalDst),
    }
}

/// Names are for DNS clusters, and a LOGICAL_DNS cluster has exactly one.
fn check_addresses(discovery: &Discovery, hosts: &[HostConfig]) -> Result<()> {
    match discovery {
        Discovery::Static => match hosts.iter().find(|host| matches!(host.address, Address::Name(..))) {
            Some(host) => {
                let reason = format!("\"{}\" is no IP address; a name needs type STRICT_DNS", host.address);
                Err(ConfigError::field("endpoints", reason))
            }
            None => Ok(()),
        },
        Discovery::LogicalDns(_) if hosts.len() != 1 => {
            let reason = format!("LOGICAL_DNS needs exactly one endpoint, not {}", hosts.len());
            Err(ConfigError::field("endpoints", reason))
        }
        _ => Ok(()),
    }
}

fn health_check(
    context: &Context,
    value: &ProtoCluster,
    protocol: UpstreamProtocol,
) -> Result<Option<Arc<HealthCheck>>> {
    let check = health::compile(context, &value.health_checks, &value.name)?;
    let is_grpc = check.as_ref().is_some_and(|check| matches!(check.probe, Probe::Grpc(_)));
    if is_grpc && protocol == UpstreamProtocol::Http1 {
        let error = ConfigError::field("grpc_health_check", "needs a cluster that speaks HTTP/2");
        return Err(error.in_index(0));
    }
    Ok(check)
}

fn source_address(value: &BindConfig) -> Result<Option<std::net::SocketAddr>> {
    let BindConfig {
        source_address,
        freebind,
        socket_options,
        extra_source_addresses,
        additional_source_addresses,
        local_address_selector,
        validate_network_namespaces,
    } = value;
    let freebind: &Option<BoolValue> = freebind;
    let freebind = &bool_or(freebind, false);
    refuse!(
        freebind,
        socket_options,
        extra_source_addresses,
        additional_source_addresses,
        local_address_selector,
        validate_network_namespaces
    );
    source_address.as_ref().map(ip_address).transpose().in_key("source_address")
}

fn keepalive(value: &Option<UpstreamConnectionOptions>) -> Result<Option<TcpKeepalive>> {
    let Some(value) = value else { return Ok(None) };
    let UpstreamConnectionOptions {
        tcp_keepalive,
        set_local_interface_name_on_upstream_connections,
        happy_eyeballs_config,
    } = value;
    let refused = || {
        refuse!(set_local_interface_name_on_upstream_connections, happy_eyeballs_config);
        Ok(())
    };
    refused().in_key("upstream_connection_options")?;
    Ok(*tcp_keepalive)
}
