//! Network filters: what is done with a connection.

use std::sync::Arc;
use std::time::Duration;

use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::header_ops::HeaderOps;
use sixfold_core::listener::{
    ConnectAttempts, ConnectionFilter, ConnectionLimit, ConnectionRbac, NetworkFilter, RbacSettings,
    TcpProxy, TcpStats,
};
use sixfold_core::metrics::named_scope;
use sixfold_core::route::{ClusterChoice, HashInput, HashPolicy, WeightedCluster, WeightedClusters};
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::core::v3::Metadata;
use sixfold_xds_api::pb::envoy::config::listener::v3::{Filter, filter::ConfigType};
use sixfold_xds_api::pb::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit as ProtoLimit;
use sixfold_xds_api::pb::envoy::extensions::filters::network::direct_response::v3::Config as DirectResponse;
use sixfold_xds_api::pb::envoy::extensions::filters::network::mongo_proxy::v3::MongoProxy;
use sixfold_xds_api::pb::envoy::extensions::filters::network::rbac::v3::{
    Rbac as ProtoRbac, rbac::EnforcementType,
};
use sixfold_xds_api::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy as ProtoTcp;
use sixfold_xds_api::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use sixfold_xds_api::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster as ProtoWeighted,
};
use sixfold_xds_api::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;

use super::ChainPlace;
use crate::context::Context;
use crate::{access_log, hcm, route};
use sixfold_xds_api::matching::Data;
use sixfold_xds_api::values::{
    Result, data_source, enum_value, not_empty, one_of, required, timeout_or, u32_in,
};
use sixfold_xds_api::{metadata, rbac, refuse};

/// Filters before the one that ends a chain.
type Before = Arc<[Arc<dyn ConnectionFilter>]>;

/// The filters of a chain: those before the last one, and the one that ends the chain.
pub(super) fn filters(
    context: &Context,
    values: &[Filter],
    place: ChainPlace,
) -> Result<(Before, NetworkFilter)> {
    let mut before: Vec<Arc<dyn ConnectionFilter>> = Vec::new();
    let parts = values.iter().enumerate().map(|(index, value)| one(context, value, place).in_index(index));
    for ((index, value), part) in values.iter().enumerate().zip(collect(parts)?) {
        match part {
            Part::Before(filter) => before.push(filter),
            Part::Nothing => {}
            Part::Last(_) if index + 1 < values.len() => {
                let reason = format!("must not come after \"{}\", which ends the chain", value.name);
                return Err(ConfigError::new(reason).in_index(index + 1));
            }
            Part::Last(filter) => return Ok((before.into(), filter)),
        }
    }
    match values.last() {
        // Envoy takes such a chain, and closes its connections.
        None => Ok((Arc::default(), NetworkFilter::Direct(Default::default()))),
        Some(last) => {
            let reason = format!("\"{}\" does not end the chain, and nothing follows it", last.name);
            Err(ConfigError::new(reason).in_index(values.len() - 1))
        }
    }
}

/// What a filter is in its chain.
enum Part {
    Before(Arc<dyn ConnectionFilter>),
    Last(NetworkFilter),
    /// One that does nothing here.
    Nothing,
}

fn one(context: &Context, value: &Filter, place: ChainPlace) -> Result<Part> {
    let Filter { name, config_type } = value;
    let config = match config_type {
        Some(ConfigType::TypedConfig(config)) => config,
        Some(ConfigType::ConfigDiscovery(_)) => {
            return Err(ConfigError::field("config_discovery", "is not supported"));
        }
        None => return Err(ConfigError::field("typed_config", "is missing")),
    };
    let filter = match any::type_name(config).in_key("typed_config")?.as_str() {
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            any::resolve(config)
                .and_then(|(_, manager)| hcm::compile(context, &manager, place))
                .map(|manager| Part::Last(NetworkFilter::Http(Arc::new(manager))))
        }
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => any::unpack(config)
            .and_then(|proxy| tcp_proxy(context, &proxy, place.buffer_limit))
            .map(|proxy| Part::Last(NetworkFilter::Tcp(Arc::new(proxy)))),
        "envoy.extensions.filters.network.direct_response.v3.Config" => any::unpack(config)
            .and_then(|DirectResponse { response }| {
                response.as_ref().map(data_source).transpose().in_key("response")
            })
            .map(|bytes| Part::Last(NetworkFilter::Direct(bytes.unwrap_or_default().into()))),
        "envoy.extensions.filters.network.rbac.v3.RBAC" => any::unpack(config)
            .and_then(|value| connection_rbac(context, &value))
            .map(|rbac| Part::Before(Arc::new(rbac))),
        "envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy" => {
            any::unpack(config).and_then(|proxy| observer(&proxy)).map(|()| Part::Nothing)
        }
        "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit" => any::unpack(config)
            .and_then(|limit| connection_limit(context, &limit))
            .map(|limit| Part::Before(Arc::new(limit))),
        other => match context.compile.plugins.network_filter(other) {
            Some(factory) => any::resolve(config)
                .and_then(|(_, config)| factory.build(&config, &context.build("")))
                .map(Part::Before),
            None => return Err(refuse::extension("network filter", name, other)),
        },
    };
    filter.in_key("typed_config")
}

fn connection_rbac(context: &Context, value: &ProtoRbac) -> Result<ConnectionRbac> {
    let ProtoRbac {
        rules,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix: shadow_prefix,
        stat_prefix,
        enforcement_type,
        delay_deny,
    } = value;
    let prefix = not_empty(stat_prefix, "stat_prefix")?;
    let data = Data::Connection;
    let rules = rbac::engine((rules, "rules"), (matcher, "matcher"), data)?;
    let shadow = rbac::engine((shadow_rules, "shadow_rules"), (shadow_matcher, "shadow_matcher"), data)?;
    let settings = RbacSettings {
        rules,
        shadow,
        shadow_prefix: shadow_prefix.clone(),
        continuous: enum_value::<EnforcementType>(*enforcement_type, "enforcement_type")?
            == EnforcementType::Continuous,
        delay: timeout_or(delay_deny, None, "delay_deny")?.unwrap_or_default(),
    };
    Ok(ConnectionRbac::new(context.compile.metrics(), prefix, settings))
}

/// Without delays and logs all that it does is counting commands, which is not done here.
fn observer(value: &MongoProxy) -> Result<()> {
    let MongoProxy { stat_prefix, access_log, delay, emit_dynamic_metadata, commands: _, max_bson_depth: _ } =
        value;
    refuse!(access_log, delay, emit_dynamic_metadata);
    not_empty(stat_prefix, "stat_prefix").map(drop)
}

fn connection_limit(context: &Context, value: &ProtoLimit) -> Result<ConnectionLimit> {
    let ProtoLimit { stat_prefix, max_connections, delay, runtime_enabled } = value;
    refuse!(runtime_enabled);
    let prefix = not_empty(stat_prefix, "stat_prefix")?;
    let max = required(max_connections, "max_connections")?.value;
    if max == 0 {
        return Err(ConfigError::field("max_connections", "must be at least 1"));
    }
    let delay = timeout_or(delay, None, "delay")?.unwrap_or_default();
    Ok(ConnectionLimit::new(context.compile.metrics(), prefix, max, delay))
}

fn tcp_proxy(context: &Context, value: &ProtoTcp, buffer_limit: usize) -> Result<TcpProxy> {
    let ProtoTcp {
        stat_prefix,
        on_demand,
        metadata_match,
        idle_timeout,
        downstream_idle_timeout,
        upstream_idle_timeout,
        access_log,
        max_connect_attempts,
        backoff_options,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval,
        flush_access_log_on_connected,
        access_log_options,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy,
        upstream_connect_mode,
        max_early_data_bytes,
        check_drain_close,
        cluster_specifier,
    } = value;
    refuse!(
        on_demand,
        downstream_idle_timeout,
        upstream_idle_timeout,
        backoff_options,
        tunneling_config,
        max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval,
        flush_access_log_on_connected,
        access_log_options,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy,
        upstream_connect_mode,
        max_early_data_bytes,
        check_drain_close
    );
    let prefix = not_empty(stat_prefix, "stat_prefix")?;
    let hash = hash_policy.iter().enumerate().map(|(index, policy)| match &policy.policy_specifier {
        Some(PolicySpecifier::SourceIp(_)) => Ok(HashPolicy { input: HashInput::SourceIp, terminal: false }),
        _ => Err(ConfigError::new("only source_ip is supported").in_index(index).in_key("hash_policy")),
    });
    Ok(TcpProxy {
        stat_prefix: prefix.into(),
        stats: Arc::new(TcpStats::new(context.compile.metrics(), &named_scope(&["tcp", prefix]))),
        cluster: match one_of::<ProtoTcp, _>(cluster_specifier, "cluster_specifier")? {
            ClusterSpecifier::Cluster(name) => named(context, name).in_key("cluster")?,
            ClusterSpecifier::WeightedClusters(value) => ClusterChoice::Weighted(Box::new(
                weighted(context, value, metadata_match).in_key("weighted_clusters")?,
            )),
        },
        idle_timeout: timeout_or(idle_timeout, Some(Duration::from_secs(3600)), "idle_timeout")?,
        max_duration: timeout_or(
            max_downstream_connection_duration,
            None,
            "max_downstream_connection_duration",
        )?,
        attempts: ConnectAttempts::Fixed(u32_in(
            max_connect_attempts,
            1,
            1..=u32::MAX,
            "max_connect_attempts",
        )?),
        hash: hash.collect::<Result<_>>()?,
        metadata_match: metadata::criteria(metadata_match),
        buffer_limit,
        access_logs: access_log::logs(context, access_log, "access_log")?,
    })
}

/// Envoy does not check that the cluster of a TCP proxy exists.
fn named(context: &Context, name: &str) -> Result<ClusterChoice> {
    if name.is_empty() {
        return Err(ConfigError::new("must not be empty"));
    }
    Ok(ClusterChoice::Named(route::cluster_cell(context, false, name)?))
}

fn weighted(
    context: &Context,
    value: &ProtoWeighted,
    of_proxy: &Option<Metadata>,
) -> Result<WeightedClusters> {
    let of_proxy = metadata::criteria(of_proxy);
    let members = value.clusters.iter().enumerate().map(|(index, value)| {
        let ClusterWeight { name, weight, metadata_match } = value;
        let compiled = || {
            if *weight == 0 {
                return Err(ConfigError::field("weight", "must be at least 1"));
            }
            Ok(WeightedCluster {
                cluster: named(context, name).in_key("name")?,
                weight: u64::from(*weight),
                request_headers: HeaderOps::default(),
                response_headers: HeaderOps::default(),
                host_rewrite: None,
                metadata_match: of_proxy.merged(metadata::criteria(metadata_match).iter()),
                chain: None,
            })
        };
        compiled().in_index(index).in_key("clusters")
    });
    let clusters: Box<[WeightedCluster]> = collect(members)?.into();
    if clusters.is_empty() {
        return Err(ConfigError::field("clusters", "must not be empty"));
    }
    let total = clusters.iter().map(|member| member.weight).sum();
    Ok(WeightedClusters { clusters, total, random_header: None, use_hash: false })
}
