//! The filter's messages, compiled.

use super::check::Shape;
use super::{AuthzStats, ExtAuthz, NAME, Note, Service, http};
use crate::envoy::{authz, mutations::Rules, service};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::metrics;
use sixfold_core::plugin::BuildContext;
use sixfold_xds_api::any::struct_to_json;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_authz::v3::check_settings::ServiceOverride;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz::Services;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz_per_route::Override;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_authz::v3::{
    BufferSettings, CheckSettings, ExtAuthz as ProtoAuthz, ExtAuthzPerRoute,
};
use sixfold_xds_api::values::{Result, bool_or, one_of, runtime_fraction, status};
use sixfold_xds_api::{destructure, matcher};
use std::collections::HashMap;

/// What of the request's body the service sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Body {
    /// Bytes of it.
    pub(super) max: usize,
    /// The beginning of a longer one is enough; else such a request is refused.
    pub(super) partial: bool,
    /// It is sent as bytes and not as text.
    pub(super) as_bytes: bool,
}

/// What the levels of a route say together.
#[derive(Default)]
pub(super) struct OfRoute {
    extensions: HashMap<String, String>,
    body: BodyOfRoute,
    service: Option<ServiceOverride>,
}

#[derive(Default)]
enum BodyOfRoute {
    /// As the filter says.
    #[default]
    Unsaid,
    None,
    Other(Body),
}

/// The filter of a route.
pub(super) fn compile(value: &ProtoAuthz, of_route: OfRoute, context: &BuildContext) -> Result<ExtAuthz> {
    destructure!(ProtoAuthz {
        transport_api_version,
        failure_mode_allow,
        failure_mode_allow_header_add,
        with_request_body,
        clear_route_cache,
        status_on_error,
        validate_mutations,
        metadata_context_namespaces,
        // Nothing here leaves messages in the metadata of a request, a connection or a route.
        typed_metadata_context_namespaces: _,
        route_metadata_context_namespaces,
        route_typed_metadata_context_namespaces: _,
        filter_enabled,
        filter_enabled_metadata,
        deny_at_disable,
        include_peer_certificate,
        stat_prefix,
        bootstrap_metadata_labels_key,
        allowed_headers,
        disallowed_headers,
        include_tls_session,
        charge_cluster_response_stats,
        encode_raw_headers,
        decoder_header_mutation_rules,
        enable_dynamic_metadata_ingestion,
        filter_metadata,
        emit_filter_state_stats,
        max_denied_response_body_bytes,
        // Calls have no spans.
        emit_client_span: _,
        services
    } refusing { enforce_response_header_limits, shadow_mode } = value);
    let body = with_request_body.as_ref().map(body).transpose().in_key("with_request_body")?;
    let own = one_of::<ProtoAuthz, _>(services, "services")?;
    // The filter's own service must be one even where the route has another.
    let compiled = match own {
        Services::GrpcService(grpc) => {
            service::check_version(*transport_api_version)?;
            grpc_service(grpc, context).in_key("grpc_service")?
        }
        Services::HttpService(http) => http_service(http, context).in_key("http_service")?,
    };
    let (service, older) = match (&of_route.service, own) {
        (Some(ServiceOverride::GrpcService(grpc)), _) => {
            (grpc_service(grpc, context).in_key("grpc_service").in_key("check_settings")?, None)
        }
        (Some(ServiceOverride::HttpService(http)), _) => {
            let service = http_service(http, context).in_key("http_service").in_key("check_settings")?;
            (service, http::allowed_headers(http))
        }
        (None, Services::HttpService(http)) => (compiled, http::allowed_headers(http)),
        (None, Services::GrpcService(_)) => (compiled, None),
    };
    if allowed_headers.is_some() && older.is_some() {
        let reason = "must not be given together with http_service.authorization_request.allowed_headers";
        return Err(ConfigError::field("allowed_headers", reason));
    }
    let is_http = matches!(service, Service::Http(_));
    let allowed = allowed_headers.as_ref().or(older);
    let allowed = allowed.map(matcher::strings).transpose().in_key("allowed_headers")?;
    let allowed = allowed.map(Vec::into_boxed_slice);
    let shape = Shape {
        allowed: if is_http { Some(http::with_always_told(allowed.unwrap_or_default())) } else { allowed },
        disallowed: matcher::strings_of(disallowed_headers, "disallowed_headers")?,
        raw: *encode_raw_headers,
        certificate: include_peer_certificate.then(Shape::certificate).transpose()?,
        tls_session: *include_tls_session,
        labels: authz::labels(context, bootstrap_metadata_labels_key),
        extensions: of_route.extensions,
        metadata: metadata_context_namespaces.iter().map(|name| name.as_str().into()).collect(),
        route_metadata: route_metadata_context_namespaces.iter().map(|name| name.as_str().into()).collect(),
    };
    let fraction = filter_enabled.as_ref().map(|share| runtime_fraction(&context.runtime, share));
    let note = (filter_metadata.is_some() || *emit_filter_state_stats).then(|| Note {
        key: context.filter.clone(),
        metadata: match filter_metadata.clone().map(struct_to_json) {
            Some(serde_json::Value::Object(map)) => map,
            _ => serde_json::Map::new(),
        },
        latency: *emit_filter_state_stats,
    });
    Ok(ExtAuthz {
        service,
        shape,
        body: match of_route.body {
            BodyOfRoute::Unsaid => body,
            BodyOfRoute::None => None,
            BodyOfRoute::Other(body) => Some(body),
        },
        enabled: fraction.transpose().in_key("filter_enabled")?,
        enabled_metadata: filter_enabled_metadata
            .as_ref()
            .map(matcher::metadata)
            .transpose()
            .in_key("filter_enabled_metadata")?,
        deny_at_disable: deny_at_disable
            .as_ref()
            .is_some_and(|flag| context.runtime.flag(&flag.runtime_key, bool_or(&flag.default_value, false))),
        allow_on_error: *failure_mode_allow,
        tell_upstream_of_error: *failure_mode_allow_header_add,
        status_on_error: match status_on_error {
            Some(code) => status(u32::try_from(code.code).unwrap_or(0), "status_on_error.code")?,
            None => 403,
        },
        clear_route: *clear_route_cache,
        validate: *validate_mutations,
        rules: decoder_header_mutation_rules
            .as_ref()
            .map(Rules::new)
            .transpose()
            .in_key("decoder_header_mutation_rules")?,
        takes_metadata: bool_or(enable_dynamic_metadata_ingestion, true),
        max_denied_body: *max_denied_response_body_bytes as usize,
        charge_cluster: bool_or(charge_cluster_response_stats, true),
        note,
        stat_prefix: stat_prefix.as_str().into(),
        namespace: NAME.into(),
        stats: AuthzStats::new(
            &context.metrics,
            &metrics::scope(&[&context.scope, "ext_authz", stat_prefix]),
        ),
    })
}

/// The levels together: extensions of all, the rest of the most specific; `None` where that turns the filter off. Where a still
/// more specific level says something of another filter's type, of the last one the service counts, and not what it says of
/// bodies or whether it is off: Envoy looks for these two at the most specific level of all, for the others at all of its type.
pub(super) fn of_route(overrides: &[ExtAuthzPerRoute], superseded: bool) -> Result<Option<OfRoute>> {
    let mut together = OfRoute::default();
    let mut disabled = false;
    for ExtAuthzPerRoute { r#override } in overrides {
        match one_of::<ExtAuthzPerRoute, _>(r#override, "override")? {
            Override::Disabled(value) => {
                disabled = *value;
                (together.body, together.service) = (BodyOfRoute::Unsaid, None);
            }
            Override::CheckSettings(settings) => {
                disabled = false;
                check_settings(settings, &mut together).in_key("check_settings")?;
            }
        }
    }
    if superseded {
        (disabled, together.body) = (false, BodyOfRoute::Unsaid);
    }
    Ok((!disabled).then_some(together))
}

fn check_settings(value: &CheckSettings, together: &mut OfRoute) -> Result<()> {
    let CheckSettings {
        context_extensions,
        disable_request_body_buffering,
        with_request_body,
        // Calls have no spans.
        emit_client_span: _,
        service_override,
    } = value;
    together.extensions.extend(context_extensions.clone());
    together.body = match (with_request_body, disable_request_body_buffering) {
        (Some(_), true) => {
            let reason = "must not be given together with disable_request_body_buffering";
            return Err(ConfigError::field("with_request_body", reason));
        }
        (Some(settings), false) => BodyOfRoute::Other(body(settings).in_key("with_request_body")?),
        (None, true) => BodyOfRoute::None,
        (None, false) => BodyOfRoute::Unsaid,
    };
    together.service.clone_from(service_override);
    Ok(())
}

fn body(value: &BufferSettings) -> Result<Body> {
    let BufferSettings { max_request_bytes, allow_partial_message, pack_as_bytes } = *value;
    if max_request_bytes == 0 {
        return Err(ConfigError::field("max_request_bytes", "must be greater than 0"));
    }
    Ok(Body { max: max_request_bytes as usize, partial: allow_partial_message, as_bytes: pack_as_bytes })
}

fn grpc_service(
    value: &sixfold_xds_api::pb::envoy::config::core::v3::GrpcService,
    context: &BuildContext,
) -> Result<Service> {
    service::Service::new(value, Some(authz::TIMEOUT), context).map(Service::Grpc)
}

fn http_service(
    value: &sixfold_xds_api::pb::envoy::extensions::filters::http::ext_authz::v3::HttpService,
    context: &BuildContext,
) -> Result<Service> {
    http::HttpService::new(value, authz::TIMEOUT, context).map(Service::Http)
}
