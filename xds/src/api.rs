//! A gRPC service that resources come from (`api_config_source`).

use std::sync::Arc;

use prost::Message;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::Headers;
use sixfold_xds_api::pb::envoy::config::core::v3::api_config_source::ApiType;
use sixfold_xds_api::pb::envoy::config::core::v3::{
    ApiConfigSource, ApiVersion, GrpcService, HeaderValue, RateLimitSettings, RetryPolicy,
};
use sixfold_xds_api::refuse;
use sixfold_xds_api::target::GrpcTarget;
use sixfold_xds_api::values::{Result, back_off, enum_value};

use crate::ads::{BackoffConfig, Flavor, RateLimit, StreamConfig, Target};
use crate::context::Context;

/// Bytes of a message of a control plane that are taken, as much as pilot-agent takes: whole worlds are sent in one.
const MAX_MESSAGE: usize = i32::MAX as usize;

/// A service as it is configured, to tell it from others: the encoded message.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ApiSource(Arc<[u8]>);

/// A service that can be asked.
pub(crate) struct Api {
    pub(crate) stream: StreamConfig,
    pub(crate) target: Target,
}

impl ApiSource {
    pub(crate) fn new(value: &ApiConfigSource) -> ApiSource {
        ApiSource(value.encode_to_vec().into())
    }

    pub(crate) fn compile(&self, context: &Context) -> Result<Api> {
        // It was encoded here.
        let value = ApiConfigSource::decode(&*self.0).map_err(|error| ConfigError::new(error.to_string()))?;
        compile(context, &value)
    }
}

impl std::fmt::Debug for ApiSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("api_config_source")
    }
}

pub(crate) fn compile(context: &Context, api: &ApiConfigSource) -> Result<Api> {
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
    if enum_value::<ApiVersion>(*transport_api_version, "transport_api_version")? == ApiVersion::V2 {
        return Err(ConfigError::field("transport_api_version", "V2 is not supported"));
    }
    let flavor = match enum_value(*api_type, "api_type")? {
        ApiType::Grpc => Flavor::State,
        ApiType::DeltaGrpc => Flavor::Delta,
        other => {
            return Err(ConfigError::field("api_type", format!("{} is not supported", other.as_str_name())));
        }
    };
    refuse!(cluster_names, config_validators);
    let [service] = grpc_services.as_slice() else {
        let reason = format!("there must be one, not {}", grpc_services.len());
        return Err(ConfigError::field("grpc_services", reason));
    };
    let (target, backoff) = target(context, service).in_index(0).in_key("grpc_services")?;
    let rate = rate_limit_settings.as_ref().map(rate_limit).transpose().in_key("rate_limit_settings")?;
    let stream = StreamConfig { flavor, node_always: !set_node_on_first_message_only, backoff, rate };
    Ok(Api { stream, target })
}

fn target(context: &Context, value: &GrpcService) -> Result<(Target, BackoffConfig)> {
    // A stream has no end, whatever time a call has.
    let GrpcService { timeout: _, initial_metadata, retry_policy, target_specifier: _ } = value;
    refuse!(retry_policy);
    let target = GrpcTarget::of(value)?;
    let mut metadata = Headers::new();
    for HeaderValue { key, value, raw_value } in initial_metadata {
        let value = if value.is_empty() { raw_value } else { value.as_bytes() };
        metadata.push(key.to_ascii_lowercase().as_bytes(), value);
    }
    let backoff = || {
        context.has_static_cluster(target.cluster).in_key("cluster_name")?;
        backoff(target.retry).in_key("retry_policy")
    };
    let backoff = backoff().in_key("envoy_grpc")?;
    let grpc = target.client(None, MAX_MESSAGE, &context.compile.build);
    Ok((Target { grpc, metadata }, backoff))
}

fn rate_limit(value: &RateLimitSettings) -> Result<RateLimit> {
    let (RateLimitSettings { max_tokens, fill_rate }, default) = (value, RateLimit::default());
    let fill_rate = fill_rate.as_ref().map_or(default.fill_rate, |rate| rate.value);
    // Protobuf's rule lets infinity and what is not a number pass.
    if !fill_rate.is_finite() || fill_rate <= 0.0 {
        return Err(ConfigError::field("fill_rate", "must be greater than 0"));
    }
    let burst = max_tokens.map_or(default.burst, |max| max.value);
    if burst == 0 {
        return Err(ConfigError::field("max_tokens", "must be greater than 0: nothing would ever be sent"));
    }
    Ok(RateLimit { burst, fill_rate })
}

/// `retry_back_off`; a stream is opened again for ever, whatever `num_retries` says.
fn backoff(value: Option<&RetryPolicy>) -> Result<BackoffConfig> {
    let Some(given) = value.and_then(|value| value.retry_back_off.as_ref()) else {
        return Ok(BackoffConfig::default());
    };
    let (base, max) = back_off(&given.base_interval, &given.max_interval).in_key("retry_back_off")?;
    Ok(BackoffConfig { base, max })
}
