//! Services that filters ask over gRPC (`GrpcService`).

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::format::Format;
use sixfold_core::headers::{HeaderName, Headers};
use sixfold_core::plugin::{BuildContext, grpc};
use sixfold_core::stream::Stream;
use sixfold_xds_api::any::json_to_struct;
use sixfold_xds_api::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use sixfold_xds_api::pb::envoy::config::core::v3::{ApiVersion, GrpcService, HeaderValue, Metadata};
use sixfold_xds_api::pb::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use sixfold_xds_api::pb::google::protobuf::Duration as ProtoDuration;
use sixfold_xds_api::target::GrpcTarget;
use sixfold_xds_api::values::{Result, enum_value, header_name, required, timeout_or};
use sixfold_xds_api::{format, refuse};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a service's message that are taken, unless the configuration says less: what waits in memory for a request
/// must have a bound. Envoy has none.
pub(crate) const MAX_MESSAGE: usize = 1 << 20;

/// What services of rate limits are asked.
pub(crate) const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// How long their answers may take where the configuration does not say.
const RATE_LIMIT_TIMEOUT: Duration = Duration::from_millis(20);

/// A service that is never called, for a filter that is not without one.
pub(crate) fn stand_in() -> GrpcService {
    let target = EnvoyGrpc { cluster_name: "-".to_owned(), ..EnvoyGrpc::default() };
    GrpcService { target_specifier: Some(TargetSpecifier::EnvoyGrpc(target)), ..GrpcService::default() }
}

/// A service, and what every call says beside its message.
pub(crate) struct Service {
    pub(crate) client: grpc::Client,
    metadata: Box<[(HeaderName, Format)]>,
}

impl Service {
    /// The service of a filter whose calls take `default` at most where it does not say so; a `timeout` of 0 is none.
    ///
    /// # Errors
    /// What is not supported, and a cluster without a name.
    pub(crate) fn new(
        value: &GrpcService,
        default: Option<Duration>,
        context: &BuildContext,
    ) -> Result<Service> {
        let GrpcService { timeout, initial_metadata, retry_policy, target_specifier: _ } = value;
        refuse!(retry_policy);
        let target = GrpcTarget::of(value)?;
        refuse::unset(&target.retry, "retry_policy").in_key("envoy_grpc")?;
        let timeout = timeout_or(timeout, default, "timeout")?;
        let metadata =
            initial_metadata.iter().enumerate().map(|(index, value)| metadata(value).in_index(index));
        let metadata = metadata.collect::<Result<_>>().in_key("initial_metadata")?;
        Ok(Service { client: target.client(timeout, MAX_MESSAGE, context), metadata })
    }

    /// The service of a filter's field `rate_limit_service` (config/ratelimit/v3/rls.proto). The time of a call is the
    /// filter's, whatever the service says of its own.
    ///
    /// # Errors
    /// What is not supported, and what is missing.
    pub(crate) fn of_rate_limits(
        value: &Option<RateLimitServiceConfig>,
        timeout: &Option<ProtoDuration>,
        context: &BuildContext,
    ) -> Result<Service> {
        let timeout = timeout_or(timeout, Some(RATE_LIMIT_TIMEOUT), "timeout")?;
        let RateLimitServiceConfig { grpc_service, transport_api_version } =
            required(value, "rate_limit_service")?;
        let service = || {
            check_version(*transport_api_version)?;
            let mut grpc = required(grpc_service, "grpc_service")?.clone();
            grpc.timeout = None;
            Service::new(&grpc, timeout, context).in_key("grpc_service")
        };
        service().in_key("rate_limit_service")
    }

    /// What a call for this request says beside its message and what the client says of each.
    pub(crate) fn headers(&self, stream: &Stream) -> Headers {
        let mut headers = Headers::new();
        let mut value = Vec::new();
        for (name, format) in &self.metadata {
            value.clear();
            format.write_header(stream, &mut value);
            headers.append(name, &value);
        }
        headers
    }
}

/// What a service is told of a request's dynamic metadata: these namespaces, of which a later value takes an earlier one's
/// place.
pub(crate) fn told_metadata(stream: &Stream, namespaces: &[Arc<str>]) -> Metadata {
    let mut told = Metadata::default();
    for namespace in namespaces {
        let entries = stream.metadata.iter().filter(|(of, ..)| of == namespace);
        let values: serde_json::Map<_, _> =
            entries.map(|(_, key, value)| (key.to_string(), value.clone())).collect();
        if !values.is_empty() {
            told.filter_metadata.insert(namespace.to_string(), json_to_struct(values));
        }
    }
    told
}

fn metadata(value: &HeaderValue) -> Result<(HeaderName, Format)> {
    let HeaderValue { key, value, raw_value } = value;
    let text = match (value.is_empty(), raw_value.is_empty()) {
        (_, true) => value.as_str(),
        (true, false) => std::str::from_utf8(raw_value)
            .map_err(|_| ConfigError::field("raw_value", "must be UTF-8 to hold a format"))?,
        (false, false) => {
            return Err(ConfigError::field("raw_value", "must not be given together with value"));
        }
    };
    Ok((header_name(key, "key")?, format::text(text).in_key("value")?))
}

/// Messages of other versions than the third, which is meant where none is named, are not spoken.
pub(crate) fn check_version(value: i32) -> Result<()> {
    match enum_value(value, "transport_api_version")? {
        ApiVersion::Auto | ApiVersion::V3 => Ok(()),
        other => {
            let reason = format!("{} is not supported, V3 is", other.as_str_name());
            Err(ConfigError::field("transport_api_version", reason))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Where the field was left out, the configuration was refused.
    #[test]
    fn the_third_version_is_meant_where_none_is_named() {
        assert!([0, 2].into_iter().all(|value| check_version(value).is_ok()));
        for value in [1, 77] {
            let error = check_version(value).unwrap_err().to_string();
            assert!(error.contains("transport_api_version"), "{error}");
        }
    }
}
