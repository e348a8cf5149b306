//! Retry policies.

use std::time::Duration;

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::matcher::HeaderTarget;
use sixfold_core::retry::{HostPredicate, RateLimitedBackOff, RetryOn, RetryPolicy};
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::route::v3::RetryPolicy as ProtoPolicy;
use sixfold_xds_api::pb::envoy::config::route::v3::retry_policy::{
    RateLimitedRetryBackOff, ResetHeaderFormat, RetryBackOff, RetryHostPredicate, RetryPriority,
    retry_host_predicate, retry_priority,
};
use sixfold_xds_api::pb::envoy::extensions::retry::host::omit_host_metadata::v3::OmitHostMetadataConfig;
use sixfold_xds_api::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;

use sixfold_xds_api::matcher;
use sixfold_xds_api::metadata;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{self, Result, enum_value, not_empty, positive_duration, timeout_or, u32_or};

/// config/route/v3 RetryPolicy.
pub(crate) fn policy(value: &ProtoPolicy) -> Result<RetryPolicy> {
    let ProtoPolicy {
        retry_on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_priority,
        retry_host_predicate,
        retry_options_predicates,
        host_selection_retry_max_attempts,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    } = value;
    refuse!(retry_options_predicates, refresh_cluster_on_retry);
    let (base_interval, max_interval) = back_off(retry_back_off).in_key("retry_back_off")?;
    // What can't be a status matches none, as in Envoy.
    let codes = retriable_status_codes.iter().filter_map(|code| u16::try_from(*code).ok());
    let response_headers = retriable_headers.iter().enumerate();
    Ok(RetryPolicy {
        // Envoy leaves tokens that it does not know out.
        on: RetryOn::parse(retry_on).0,
        num_retries: u32_or(num_retries, 1),
        per_try_timeout: timeout_or(per_try_timeout, None, "per_try_timeout")?,
        per_try_idle_timeout: timeout_or(per_try_idle_timeout, None, "per_try_idle_timeout")?,
        status_codes: codes.collect(),
        response_headers: response_headers
            .map(|(index, header)| matcher::response_header(header).in_index(index))
            .collect::<Result<_>>()
            .in_key("retriable_headers")?,
        request_headers: matcher::headers(retriable_request_headers, "retriable_request_headers")?,
        base_interval,
        max_interval,
        rate_limited: rate_limited_retry_back_off
            .as_ref()
            .map(rate_limited)
            .transpose()
            .in_key("rate_limited_retry_back_off")?,
        host_predicates: host_predicates(retry_host_predicate).in_key("retry_host_predicate")?,
        // The proto says i64 with 0 for the default of one.
        host_attempts: u32::try_from(*host_selection_retry_max_attempts).unwrap_or(u32::MAX).max(1),
        previous_priorities: retry_priority.as_ref().map(priority).transpose().in_key("retry_priority")?,
        deadline: None,
    })
}

fn back_off(value: &Option<RetryBackOff>) -> Result<(Duration, Duration)> {
    let Some(RetryBackOff { base_interval, max_interval }) = value else {
        let default = RetryPolicy::default();
        return Ok((default.base_interval, default.max_interval));
    };
    values::back_off(base_interval, max_interval)
}

fn rate_limited(value: &RateLimitedRetryBackOff) -> Result<RateLimitedBackOff> {
    let RateLimitedRetryBackOff { reset_headers, max_interval } = value;
    if reset_headers.is_empty() {
        return Err(ConfigError::field("reset_headers", "must not be empty"));
    }
    let headers = reset_headers.iter().enumerate().map(|(index, header)| {
        let format: ResetHeaderFormat = enum_value(header.format, "format").in_index(index)?;
        let target = HeaderTarget::of_response(not_empty(&header.name, "name").in_index(index)?);
        Ok((target, format == ResetHeaderFormat::UnixTimestamp))
    });
    Ok(RateLimitedBackOff {
        headers: headers.collect::<Result<_>>().in_key("reset_headers")?,
        max_interval: positive_duration(max_interval, Duration::from_secs(300), "max_interval")?,
    })
}

fn host_predicates(values: &[RetryHostPredicate]) -> Result<Vec<HostPredicate>> {
    values.iter().enumerate().map(|(index, value)| host_predicate(value).in_index(index)).collect()
}

fn host_predicate(value: &RetryHostPredicate) -> Result<HostPredicate> {
    let RetryHostPredicate { name, config_type } = value;
    let Some(retry_host_predicate::ConfigType::TypedConfig(config)) = config_type else {
        return Err(ConfigError::field("typed_config", "is missing"));
    };
    match any::type_name(config).in_key("typed_config")?.as_str() {
        "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate" => {
            Ok(HostPredicate::PreviousHosts)
        }
        "envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate" => {
            Ok(HostPredicate::OmitCanaryHosts)
        }
        "envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig" => {
            let OmitHostMetadataConfig { metadata_match } = any::unpack(config).in_key("typed_config")?;
            Ok(HostPredicate::OmitHostMetadata(metadata::load_balancing(&metadata_match)))
        }
        other => Err(refuse::extension("retry host predicate", name, other)),
    }
}

fn priority(value: &RetryPriority) -> Result<u32> {
    let RetryPriority { name, config_type } = value;
    let Some(retry_priority::ConfigType::TypedConfig(config)) = config_type else {
        return Err(ConfigError::field("typed_config", "is missing"));
    };
    let kind = any::type_name(config).in_key("typed_config")?;
    if kind != "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig" {
        return Err(refuse::extension("retry priority", name, &kind));
    }
    let config: PreviousPrioritiesConfig = any::unpack(config).in_key("typed_config")?;
    match u32::try_from(config.update_frequency) {
        Ok(frequency @ 1..) => Ok(frequency),
        _ => Err(ConfigError::field("typed_config.update_frequency", "must be at least 1")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::read;

    fn refused(yaml: &str) -> String {
        policy(&read(yaml)).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_envoys() {
        let policy = policy(&read("retry_on: '5xx,reset, bogus'")).unwrap();
        assert_eq!(policy.on, RetryOn::SERVER_ERROR | RetryOn::RESET);
        assert_eq!((policy.num_retries, policy.host_attempts), (1, 1));
        assert_eq!(policy.base_interval, Duration::from_millis(25));
        assert_eq!(policy.max_interval, Duration::from_millis(250));
    }

    #[test]
    fn predicates_and_priorities() {
        let policy = policy(&read(
            "retry_host_predicate:\n- {name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}\n- {name: m, typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig, metadata_match: {filter_metadata: {envoy.lb: {a: 1}}}}}\nretry_priority: {name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, update_frequency: 2}}\nretry_back_off: {base_interval: 1s}\nnum_retries: 0\n",
        ))
        .unwrap();
        assert_eq!(policy.host_predicates[0], HostPredicate::PreviousHosts);
        assert!(matches!(&policy.host_predicates[1], HostPredicate::OmitHostMetadata(map) if map["a"] == 1));
        assert_eq!((policy.previous_priorities, policy.num_retries), (Some(2), 0));
        assert_eq!(policy.max_interval, Duration::from_secs(10));
    }

    /// 5030 was refused.
    #[test]
    fn codes_that_are_no_status_match_none() {
        let policy = policy(&read("retriable_status_codes: [503, 5030, 70000]")).unwrap();
        assert_eq!(policy.status_codes, [503, 5030]);
    }

    #[test]
    fn bad_policies_name_the_field() {
        assert_eq!(
            refused("retry_back_off: {base_interval: 2s, max_interval: 1s}"),
            "retry_back_off.max_interval: must not be shorter than base_interval"
        );
        assert_eq!(refused("retry_back_off: {}"), "retry_back_off.base_interval: is missing");
        assert_eq!(refused("refresh_cluster_on_retry: true"), "refresh_cluster_on_retry: is not supported");
        assert_eq!(
            refused("rate_limited_retry_back_off: {}"),
            "rate_limited_retry_back_off.reset_headers: must not be empty"
        );
        assert_eq!(
            refused(
                "retry_host_predicate: [{name: x, typed_config: {'@type': type.googleapis.com/envoy.config.route.v3.Route}}]"
            ),
            "retry_host_predicate[0].typed_config: retry host predicate \"x\" of type envoy.config.route.v3.Route is not supported"
        );
    }
}
