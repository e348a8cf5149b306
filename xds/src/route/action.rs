//! Routes that forward.

use std::sync::Arc;
use std::time::Duration;

use sixfold_core::error::{ConfigContext, ConfigError, Faults};
use sixfold_core::matcher::HeaderTarget;
use sixfold_core::route::{
    Forward, ForwardOptions, HostRewrite, InternalRedirect, PathRewrite, RouteLimits, Timeouts,
};
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::core::v3::{RoutingPriority, TypedExtensionConfig};
use sixfold_xds_api::pb::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, HostRewriteSpecifier, InternalRedirectAction, MaxStreamDuration,
    UpgradeConfig, upgrade_config::ConnectConfig,
};
use sixfold_xds_api::pb::envoy::config::route::v3::{
    HedgePolicy, RateLimit, RouteAction, RouteMatch, route_match::PathSpecifier,
};
use sixfold_xds_api::pb::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;
use sixfold_xds_api::pb::google::protobuf::BoolValue;

use super::{Scope, cluster, hash, internal, mirror, template};
use crate::filters::Level;
use crate::retry;
use sixfold_xds_api::values::{
    Result, bool_or, enum_value, optional_duration, regex_rewrite, required, timeout_or, u32_or,
};
use sixfold_xds_api::{format, metadata, rate_limit};
use sixfold_xds_api::{refuse, refused};

/// Whole response, unless the route says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// config/route/v3 RouteAction.
pub(super) fn forward(
    scope: &Scope<'_>,
    value: &RouteAction,
    r#match: &RouteMatch,
    levels: &[Level<'_>],
) -> Result<Forward> {
    let RouteAction {
        cluster_not_found_response_code,
        metadata_match,
        prefix_rewrite: _,
        regex_rewrite: _,
        path_rewrite_policy: _,
        path_rewrite: _,
        append_x_forwarded_host,
        timeout: _,
        idle_timeout: _,
        flush_timeout: _,
        early_data_policy,
        retry_policy,
        retry_policy_typed_config,
        request_mirror_policies,
        priority,
        rate_limits,
        include_vh_rate_limits,
        hash_policy,
        // Settings of a filter.
        cors: _,
        max_grpc_timeout: _,
        grpc_timeout_offset: _,
        upgrade_configs,
        internal_redirect_policy: _,
        internal_redirect_action: _,
        max_internal_redirects: _,
        hedge_policy,
        max_stream_duration: _,
        cluster_specifier,
        host_rewrite_specifier,
    } = value;
    let mut faults = Faults::default();
    faults.take(refused!(early_data_policy, retry_policy_typed_config));
    let cluster = faults.keep(cluster::choice(scope, cluster_specifier, metadata_match, levels));
    let host_rewrite = host_rewrite_specifier.as_ref().map(host_rewrite).transpose();
    let retry = retry_policy.as_ref().map(retry::policy).transpose().in_key("retry_policy");
    let of_host = scope.host.and_then(|host| host.hedge);
    let mirrors = faults.take(mirror::policies(scope, request_mirror_policies));
    let options = ForwardOptions {
        mirrors: mirrors.or_else(|| scope.mirrors.cloned()),
        cluster_not_found: match faults
            .take(enum_value(*cluster_not_found_response_code, "cluster_not_found_response_code"))
        {
            ClusterNotFoundResponseCode::ServiceUnavailable => 503,
            ClusterNotFoundResponseCode::NotFound => 404,
            ClusterNotFoundResponseCode::InternalServerError => 500,
        },
        path_rewrite: faults.take(path_rewrite(value, r#match)).map(Box::new),
        host_rewrite: faults.take(host_rewrite).flatten().map(Box::new),
        append_x_forwarded_host: *append_x_forwarded_host,
        timeouts: faults.take(timeouts(value)),
        retry: faults.take(retry).map(Arc::new),
        hash: faults.take(hash::policies(hash_policy, "hash_policy")),
        metadata_match: metadata::criteria(metadata_match),
        upgrades: faults.take(upgrades(upgrade_configs)),
        connect_tcp: faults.take(connect_tcp(upgrade_configs)),
        high_priority: faults.take(enum_value::<RoutingPriority>(*priority, "priority"))
            == RoutingPriority::High,
        hedge_on_per_try_timeout: hedge(hedge_policy.as_ref().or(of_host)),
        internal_redirect: faults.take(followed(value)).map(Box::new),
        rate_limits: faults.take(route_limits(scope, rate_limits, include_vh_rate_limits)),
        ..ForwardOptions::default()
    };
    let cluster = faults.kept(cluster)?;
    faults.end(Forward { cluster, options: options.into() })
}

/// What rate limits are told of requests of the route.
fn route_limits(
    scope: &Scope<'_>,
    policies: &[RateLimit],
    include: &Option<BoolValue>,
) -> Result<Option<Arc<RouteLimits>>> {
    let policies =
        rate_limit::policies(policies, &scope.context.node.cluster, &scope.context.runtime, "rate_limits")?;
    let include_virtual_host = bool_or(include, false);
    let said = !policies.is_empty() || include_virtual_host;
    Ok(said.then(|| Arc::new(RouteLimits { policies, include_virtual_host })))
}

/// Whether slow attempts are hedged. The rest of the policy does nothing in Envoy.
fn hedge(value: Option<&HedgePolicy>) -> bool {
    let Some(value) = value else { return false };
    let HedgePolicy { initial_requests: _, additional_request_chance: _, hedge_on_per_try_timeout } = value;
    *hedge_on_per_try_timeout
}

/// The redirects that are followed here: the policy, or its older form.
fn followed(value: &RouteAction) -> Result<Option<InternalRedirect>> {
    if let Some(policy) = &value.internal_redirect_policy {
        return internal::policy(policy).map(Some).in_key("internal_redirect_policy");
    }
    let (action, max) = (value.internal_redirect_action, &value.max_internal_redirects);
    let action = enum_value::<InternalRedirectAction>(action, "internal_redirect_action")?;
    let follows = action == InternalRedirectAction::HandleInternalRedirect;
    Ok(follows.then(|| InternalRedirect { max: u32_or(max, 1), ..InternalRedirect::default() }))
}

fn timeouts(value: &RouteAction) -> Result<Timeouts> {
    let stream = value.max_stream_duration.unwrap_or_default();
    let MaxStreamDuration { max_stream_duration, grpc_timeout_header_max, grpc_timeout_header_offset } =
        stream;
    let of_stream = |value, field| optional_duration(value, field).in_key("max_stream_duration");
    let by_stream = value.max_stream_duration.is_some();
    let mut faults = Faults::default();
    let request = faults.take(timeout_or(&value.timeout, Some(DEFAULT_TIMEOUT), "timeout"));
    let max = of_stream(&grpc_timeout_header_max, "grpc_timeout_header_max");
    let offset = of_stream(&grpc_timeout_header_offset, "grpc_timeout_header_offset");
    let timeouts = Timeouts {
        request: request.filter(|_| !by_stream),
        by_stream,
        idle: faults.take(optional_duration(&value.idle_timeout, "idle_timeout")),
        flush: faults.take(optional_duration(&value.flush_timeout, "flush_timeout")),
        max_stream: faults.take(of_stream(&max_stream_duration, "max_stream_duration")),
        grpc_timeout_header_max: faults.take(max),
        grpc_timeout_header_offset: faults.take(offset),
        max_grpc: faults.take(optional_duration(&value.max_grpc_timeout, "max_grpc_timeout")),
        grpc_offset: faults.take(optional_duration(&value.grpc_timeout_offset, "grpc_timeout_offset")),
        ..Timeouts::default()
    };
    faults.end(timeouts)
}

/// At most one of the four ways to rewrite a path.
fn path_rewrite(value: &RouteAction, r#match: &RouteMatch) -> Result<Option<PathRewrite>> {
    let given = [
        ("prefix_rewrite", !value.prefix_rewrite.is_empty()),
        ("regex_rewrite", value.regex_rewrite.is_some()),
        ("path_rewrite_policy", value.path_rewrite_policy.is_some()),
        ("path_rewrite", !value.path_rewrite.is_empty()),
    ];
    let mut given = given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name);
    let Some(name) = given.next() else { return Ok(None) };
    if let Some(other) = given.next() {
        return Err(ConfigError::field(other, format!("must not be given together with {name}")));
    }
    let has_template = matches!(r#match.path_specifier, Some(PathSpecifier::PathMatchPolicy(_)));
    if let Some(rewrite) = &value.regex_rewrite {
        let (regex, rewrite) = regex_rewrite(rewrite).in_key("regex_rewrite")?;
        return Ok(Some(PathRewrite::Regex(regex, rewrite)));
    }
    if let Some(policy) = &value.path_rewrite_policy {
        if !has_template {
            return Err(ConfigError::field(name, "needs path_match_policy in the match"));
        }
        let rewrite = rewrite_policy(policy).in_key(name)?;
        return template::rewrite(&rewrite, r#match)
            .map(|parts| Some(PathRewrite::Template(parts)))
            .in_key(name);
    }
    if !value.path_rewrite.is_empty() {
        return Ok(Some(PathRewrite::Format(format::text(&value.path_rewrite).in_key(name)?)));
    }
    if has_template {
        return Err(ConfigError::field(name, "can't be used with path_match_policy"));
    }
    Ok(Some(PathRewrite::Prefix(value.prefix_rewrite.as_bytes().into())))
}

fn rewrite_policy(value: &TypedExtensionConfig) -> Result<String> {
    let TypedExtensionConfig { name, typed_config } = value;
    let config = required(typed_config, "typed_config")?;
    let kind = any::type_name(config).in_key("typed_config")?;
    if kind != "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig" {
        return Err(refuse::extension("path rewrite policy", name, &kind));
    }
    let UriTemplateRewriteConfig { path_template_rewrite } = any::unpack(config).in_key("typed_config")?;
    Ok(path_template_rewrite)
}

fn host_rewrite(value: &HostRewriteSpecifier) -> Result<Option<HostRewrite>> {
    Ok(Some(match value {
        HostRewriteSpecifier::HostRewriteLiteral(host) => HostRewrite::Literal(host.as_bytes().into()),
        HostRewriteSpecifier::AutoHostRewrite(on) if on.value => HostRewrite::Endpoint,
        HostRewriteSpecifier::AutoHostRewrite(_) => return Ok(None),
        HostRewriteSpecifier::HostRewriteHeader(name) => HostRewrite::Header(HeaderTarget::of_request(name)),
        HostRewriteSpecifier::HostRewritePathRegex(rewrite) => {
            let (regex, rewrite) = regex_rewrite(rewrite).in_key("host_rewrite_path_regex")?;
            HostRewrite::PathRegex(regex, rewrite)
        }
        HostRewriteSpecifier::HostRewrite(text) => {
            HostRewrite::Format(format::text(text).in_key("host_rewrite")?)
        }
    }))
}

/// Whether CONNECT ends at this proxy.
fn connect_tcp(values: &[UpgradeConfig]) -> Result<bool> {
    let mut ends = false;
    for (index, value) in values.iter().enumerate() {
        let Some(ConnectConfig { proxy_protocol_config, allow_post }) = &value.connect_config else {
            continue;
        };
        let refused = || {
            refuse!(proxy_protocol_config, allow_post);
            Ok(())
        };
        refused().in_key("connect_config").in_index(index).in_key("upgrade_configs")?;
        ends = true;
    }
    Ok(ends)
}

fn upgrades(values: &[UpgradeConfig]) -> Result<crate::Upgrades> {
    let mut upgrades: Vec<(Box<str>, bool)> = Vec::with_capacity(values.len());
    for (index, value) in values.iter().enumerate() {
        let UpgradeConfig { upgrade_type, enabled, connect_config } = value;
        let upgrade = upgrade_type.to_ascii_lowercase();
        let reason = if upgrades.iter().any(|(other, _)| **other == *upgrade) {
            Some(("upgrade_type", format!("\"{upgrade_type}\" is given twice")))
        } else if connect_config.is_some() && upgrade != "connect" {
            Some(("connect_config", "is for the upgrade type CONNECT alone".to_owned()))
        } else {
            None
        };
        if let Some((field, reason)) = reason {
            return Err(ConfigError::field(field, reason).in_index(index).in_key("upgrade_configs"));
        }
        upgrades.push((upgrade.into(), bool_or(enabled, true)));
    }
    Ok(upgrades.into())
}
