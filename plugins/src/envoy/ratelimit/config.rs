//! The filter's messages, compiled.

use super::{NAME, RateLimit, RequestKind};
use crate::envoy::service::Service;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::header_ops::HeaderOps;
use sixfold_core::plugin::BuildContext;
use sixfold_core::rate_limit::OfHost;
use sixfold_core::runtime::Fraction;
use sixfold_xds_api::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ratelimit::v3::rate_limit::XRateLimitHeadersRfcVersion;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ratelimit::v3::rate_limit_per_route::{
    OverrideOptions, VhRateLimitsOptions,
};
use sixfold_xds_api::pb::envoy::extensions::filters::http::ratelimit::v3::{
    RateLimit as ProtoLimit, RateLimitPerRoute,
};
use sixfold_xds_api::pb::envoy::r#type::v3::HttpStatus;
use sixfold_xds_api::values::{Result, enum_value, not_empty, runtime_fraction, status};
use sixfold_xds_api::{header_ops, rate_limit};

/// gRPC's UNAVAILABLE and RESOURCE_EXHAUSTED.
const UNAVAILABLE: u32 = 14;
const RESOURCE_EXHAUSTED: u32 = 8;

pub(super) fn compile(
    value: &ProtoLimit,
    of_route: Option<&RateLimitPerRoute>,
    context: &BuildContext,
) -> Result<RateLimit> {
    let ProtoLimit {
        domain,
        stage,
        request_type,
        timeout,
        failure_mode_deny,
        rate_limited_as_resource_exhausted,
        rate_limit_service,
        enable_x_ratelimit_headers,
        disable_x_envoy_ratelimited_header,
        rate_limited_status,
        response_headers_to_add,
        status_on_error,
        stat_prefix,
        filter_enabled,
        filter_enforced,
        failure_mode_deny_percent,
        rate_limits,
        metadata_namespace,
        enable_retry_after_header,
    } = value;
    if *stage > 10 {
        return Err(ConfigError::field("stage", "must be at most 10"));
    }
    let default = RateLimitPerRoute::default();
    let RateLimitPerRoute {
        vh_rate_limits,
        override_option,
        rate_limits: of_route_limits,
        domain: of_route_domain,
    } = of_route.unwrap_or(&default);
    if enum_value::<OverrideOptions>(*override_option, "override_option")? != OverrideOptions::Default {
        return Err(ConfigError::field("override_option", "is not supported"));
    }
    let domain = not_empty(domain, "domain")?;
    let policies = match of_route_limits.as_slice() {
        [] => rate_limits,
        of_route => of_route,
    };
    let policies = rate_limit::policies(policies, &context.local_cluster, &context.runtime, "rate_limits")?;
    let limited = status_or(rate_limited_status, 429, "rate_limited_status")?;
    let share = |value: &Option<RuntimeFractionalPercent>, key: &str, field: &str| match value {
        Some(value) => runtime_fraction(&context.runtime, value).in_key(field),
        None => Ok(Fraction::new(context.runtime.integer(key, 100), 100)),
    };
    Ok(RateLimit {
        service: Service::of_rate_limits(rate_limit_service, timeout, context)?,
        domain: if of_route_domain.is_empty() { domain.to_owned() } else { of_route_domain.clone() },
        stage: *stage,
        kind: match request_type.as_str() {
            "internal" => RequestKind::Internal,
            "external" => RequestKind::External,
            "both" | "" => RequestKind::Both,
            other => {
                let reason = format!("must be internal, external or both, not \"{other}\"");
                return Err(ConfigError::field("request_type", reason));
            }
        },
        policies,
        of_host: match enum_value(*vh_rate_limits, "vh_rate_limits")? {
            VhRateLimitsOptions::Override => OfHost::Fallback,
            VhRateLimitsOptions::Include => OfHost::Included,
            VhRateLimitsOptions::Ignore => OfHost::Ignored,
        },
        enabled: share(filter_enabled, "ratelimit.http_filter_enabled", "filter_enabled")?,
        enforced: share(filter_enforced, "ratelimit.http_filter_enforcing", "filter_enforced")?,
        denied_on_error: match failure_mode_deny_percent {
            Some(value) => runtime_fraction(&context.runtime, value).in_key("failure_mode_deny_percent")?,
            None => Fraction::new(u64::from(*failure_mode_deny), 1),
        },
        status_on_error: status_or(status_on_error, 500, "status_on_error")?,
        // What is no error is no answer to one who is beyond a limit.
        limited_status: if limited < 400 { 429 } else { limited },
        limited_grpc: Some(if *rate_limited_as_resource_exhausted {
            RESOURCE_EXHAUSTED
        } else {
            UNAVAILABLE
        }),
        tells_limited: !disable_x_envoy_ratelimited_header,
        x_ratelimit: enum_value::<XRateLimitHeadersRfcVersion>(
            *enable_x_ratelimit_headers,
            "enable_x_ratelimit_headers",
        )? == XRateLimitHeadersRfcVersion::DraftVersion03,
        retry_after: *enable_retry_after_header,
        response_headers: HeaderOps {
            add: header_ops::additions(response_headers_to_add, "response_headers_to_add")?,
            ..HeaderOps::default()
        },
        namespace: if metadata_namespace.is_empty() { NAME } else { metadata_namespace }.into(),
        stat_prefix: stat_prefix.as_str().into(),
    })
}

fn status_or(value: &Option<HttpStatus>, default: u16, field: &str) -> Result<u16> {
    let Some(HttpStatus { code }) = value else { return Ok(default) };
    status(u32::try_from(*code).unwrap_or(0), "code").in_key(field)
}
