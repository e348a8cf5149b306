//! Network filters: what is done with a connection.

use std::sync::Arc;
use std::time::Duration;

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::header_ops::HeaderOps;
use sixfold_core::listener::{NetworkFilter, TcpProxy, TcpStats};
use sixfold_core::route::{ClusterChoice, HashInput, HashPolicy, WeightedCluster, WeightedClusters};
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::listener::v3::{Filter, filter::ConfigType};
use sixfold_xds_api::pb::envoy::extensions::filters::network::direct_response::v3::Config as DirectResponse;
use sixfold_xds_api::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy as ProtoTcp;
use sixfold_xds_api::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use sixfold_xds_api::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster as ProtoWeighted,
};
use sixfold_xds_api::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;

use crate::context::Context;
use crate::{access_log, hcm, route};
use sixfold_xds_api::metadata;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, data_source, not_empty, required, timeout_or, u32_in};

/// The one filter of a chain. All that are supported end a chain, so there is exactly one.
pub(super) fn filter(context: &Context, values: &[Filter], buffer_limit: usize) -> Result<NetworkFilter> {
    let (first, rest) = values.split_first().ok_or_else(|| ConfigError::new("must not be empty"))?;
    let filter = one(context, first, buffer_limit).in_index(0)?;
    if rest.is_empty() {
        return Ok(filter);
    }
    Err(ConfigError::new(format!("must not come after \"{}\", which ends the chain", first.name)).in_index(1))
}

fn one(context: &Context, value: &Filter, buffer_limit: usize) -> Result<NetworkFilter> {
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
            any::unpack(config)
                .and_then(|manager| hcm::compile(context, &manager, buffer_limit))
                .map(|manager| NetworkFilter::Http(Arc::new(manager)))
        }
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => any::unpack(config)
            .and_then(|proxy| tcp_proxy(context, &proxy))
            .map(|proxy| NetworkFilter::Tcp(Arc::new(proxy))),
        "envoy.extensions.filters.network.direct_response.v3.Config" => any::unpack(config)
            .and_then(|DirectResponse { response }| {
                response.as_ref().map(data_source).transpose().in_key("response")
            })
            .map(|bytes| NetworkFilter::Direct(bytes.unwrap_or_default().into())),
        other => return Err(refuse::extension("network filter", name, other)),
    };
    filter.in_key("typed_config")
}

fn tcp_proxy(context: &Context, value: &ProtoTcp) -> Result<TcpProxy> {
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
        stats: Arc::new(TcpStats::new(&context.registry, &format!("tcp.{prefix}."))),
        cluster: match required(cluster_specifier, "cluster")? {
            ClusterSpecifier::Cluster(name) => named(context, name).in_key("cluster")?,
            ClusterSpecifier::WeightedClusters(value) => {
                ClusterChoice::Weighted(Box::new(weighted(context, value).in_key("weighted_clusters")?))
            }
        },
        idle_timeout: timeout_or(idle_timeout, Some(Duration::from_secs(3600)), "idle_timeout")?,
        max_duration: timeout_or(
            max_downstream_connection_duration,
            None,
            "max_downstream_connection_duration",
        )?,
        max_connect_attempts: u32_in(max_connect_attempts, 1, 1..=u32::MAX, "max_connect_attempts")?,
        hash: hash.collect::<Result<_>>()?,
        metadata_match: metadata::load_balancing(metadata_match),
        access_logs: access_log::logs(context, access_log, "access_log")?,
    })
}

/// Envoy does not check that the cluster of a TCP proxy exists.
fn named(context: &Context, name: &str) -> Result<ClusterChoice> {
    if name.is_empty() {
        return Err(ConfigError::new("must not be empty"));
    }
    Ok(ClusterChoice::Named(route::cluster_cell(context, None, name)?))
}

fn weighted(context: &Context, value: &ProtoWeighted) -> Result<WeightedClusters> {
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
                metadata_match: metadata::load_balancing(metadata_match),
                chain: None,
            })
        };
        compiled().in_index(index).in_key("clusters")
    });
    let clusters: Box<[WeightedCluster]> = members.collect::<Result<_>>()?;
    if clusters.is_empty() {
        return Err(ConfigError::field("clusters", "must not be empty"));
    }
    let total = clusters.iter().map(|member| member.weight).sum();
    Ok(WeightedClusters { clusters, total, random_header: None, use_hash: false })
}
