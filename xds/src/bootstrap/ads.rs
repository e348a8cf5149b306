//! `dynamic_resources`: what a control plane is asked for, and how it is reached.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::Headers;
use sixfold_core::plugin::grpc::Client as Grpc;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::bootstrap::DynamicResources;
use sixfold_xds_api::pb::envoy::config::core::v3::api_config_source::ApiType;
use sixfold_xds_api::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use sixfold_xds_api::pb::envoy::config::core::v3::{
    ApiConfigSource, ApiVersion, ConfigSource, GrpcService, HeaderValue, Node, RetryPolicy,
};
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, enum_value, not_empty, one_of, positive_duration};

use crate::ads::{AdsConfig, Asks, BackoffConfig, Flavor, Kind, Target};
use crate::context::Context;
use crate::rds::{self, Source};

/// Bytes of a message of a control plane that are taken, as much as pilot-agent takes: whole worlds are sent in one.
const MAX_MESSAGE: usize = i32::MAX as usize;

/// A control plane to follow.
pub struct Ads {
    /// What is asked.
    pub config: AdsConfig,
    /// Where.
    pub target: Target,
}

/// Reads `dynamic_resources`; `statics` are the static resources.
pub(super) fn compile(
    context: &Context,
    value: &DynamicResources,
    node: Node,
    statics: BTreeMap<(Kind, Arc<str>), Asks>,
) -> Result<Option<Ads>> {
    let DynamicResources { lds_config, lds_resources_locator, cds_config, cds_resources_locator, ads_config } =
        value;
    refuse!(lds_resources_locator, cds_resources_locator);
    let mut wildcards = BTreeMap::new();
    let configs = [(Kind::Cluster, cds_config, "cds_config"), (Kind::Listener, lds_config, "lds_config")];
    for (kind, value, field) in configs {
        if let Some(value) = value {
            wildcards.insert(kind, over_ads(context, value).in_key(field)?);
        }
    }
    let Some(api) = ads_config else { return Ok(None) };
    if node.id.is_empty() || node.cluster.is_empty() {
        let reason = "needs the id and the cluster of a node: give them in \"node\" or with --service-node and --service-cluster";
        return Err(ConfigError::field("ads_config", reason));
    }
    let ads = || {
        let ApiConfigSource {
            api_type,
            transport_api_version,
            cluster_names,
            grpc_services,
            // These two are for REST.
            refresh_delay: _,
            request_timeout: _,
            rate_limit_settings,
            set_node_on_first_message_only,
            config_validators,
        } = api;
        refuse!(cluster_names, rate_limit_settings, config_validators);
        if enum_value::<ApiVersion>(*transport_api_version, "transport_api_version")? == ApiVersion::V2 {
            return Err(ConfigError::field("transport_api_version", "V2 is not supported"));
        }
        let flavor = match enum_value(*api_type, "api_type")? {
            ApiType::Grpc => Flavor::State,
            ApiType::DeltaGrpc => Flavor::Delta,
            other => {
                return Err(ConfigError::field(
                    "api_type",
                    format!("{} is not supported", other.as_str_name()),
                ));
            }
        };
        let [service] = grpc_services.as_slice() else {
            let reason = format!("there must be one, not {}", grpc_services.len());
            return Err(ConfigError::field("grpc_services", reason));
        };
        let (target, backoff) = target(context, service).in_index(0).in_key("grpc_services")?;
        let node_always = !set_node_on_first_message_only;
        Ok(Ads { config: AdsConfig { flavor, node, node_always, wildcards, backoff, statics }, target })
    };
    ads().in_key("ads_config").map(Some)
}

/// How long the first response is waited for.
fn over_ads(context: &Context, value: &ConfigSource) -> Result<Option<Duration>> {
    match rds::source(context, value)? {
        (Source::Ads, within) => Ok(within),
        _ => Err(ConfigError::new("only ads is supported")),
    }
}

fn target(context: &Context, value: &GrpcService) -> Result<(Target, BackoffConfig)> {
    // A stream has no end, whatever time a call has.
    let GrpcService { timeout: _, initial_metadata, retry_policy, target_specifier } = value;
    refuse!(retry_policy);
    let TargetSpecifier::EnvoyGrpc(grpc) = one_of::<GrpcService, _>(target_specifier, "target_specifier")?
    else {
        return Err(ConfigError::field("google_grpc", "is not supported, envoy_grpc is"));
    };
    let EnvoyGrpc {
        cluster_name,
        authority,
        retry_policy,
        max_receive_message_length,
        skip_envoy_headers: _,
    } = grpc;
    let mut metadata = Headers::new();
    for HeaderValue { key, value, raw_value } in initial_metadata {
        let value = if value.is_empty() { raw_value } else { value.as_bytes() };
        metadata.push(key.to_ascii_lowercase().as_bytes(), value);
    }
    let named = || {
        let name = not_empty(cluster_name, "cluster_name")?;
        if !context.static_clusters.as_ref().is_some_and(|known| known.contains(name)) {
            return Err(ConfigError::field("cluster_name", format!("there is no static cluster \"{name}\"")));
        }
        Ok((name, backoff(retry_policy.as_ref()).in_key("retry_policy")?))
    };
    let (name, backoff) = named().in_key("envoy_grpc")?;
    let grpc = Grpc {
        callout: context.compile.build.callout.clone(),
        cluster: context.compile.clusters.cell(name),
        authority: if authority.is_empty() { name.to_owned() } else { authority.clone() },
        timeout: Duration::MAX,
        max_message: max_receive_message_length.map_or(MAX_MESSAGE, |length| length.value as usize),
    };
    Ok((Target { grpc, metadata }, backoff))
}

/// `retry_back_off`; a stream is opened again for ever, whatever `num_retries` says.
fn backoff(value: Option<&RetryPolicy>) -> Result<BackoffConfig> {
    let default = BackoffConfig::default();
    let Some(given) = value.and_then(|value| value.retry_back_off.as_ref()) else { return Ok(default) };
    let base =
        positive_duration(&given.base_interval, default.base, "base_interval").in_key("retry_back_off")?;
    let max = positive_duration(&given.max_interval, base * 10, "max_interval").in_key("retry_back_off")?;
    if max < base {
        return Err(ConfigError::field("max_interval", "must not be less than base_interval")
            .in_key("retry_back_off"));
    }
    Ok(BackoffConfig { base, max })
}

#[cfg(test)]
mod tests;
