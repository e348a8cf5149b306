//! The filter's messages, compiled.

use super::attributes::Attributes;
use super::session::Times;
use super::{BodyMode, ExtProc, Mode, ProcStats, RouteCache, Settings};
use crate::envoy::mutations::Rules;
use crate::envoy::service::Service;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::metrics;
use sixfold_core::plugin::BuildContext;
use sixfold_core::stream::FilterObject;
use sixfold_xds_api::any::struct_to_json;
use sixfold_xds_api::pb::envoy::config::core::v3::GrpcService;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_proc::v3::ext_proc_per_route::Override;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_proc::v3::external_processor::RouteCacheAction;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_proc::v3::metadata_options::MetadataNamespaces;
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::{
    BodySendMode, HeaderSendMode,
};
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_proc::v3::{
    ExtProcOverrides, ExtProcPerRoute, ExternalProcessor, HeaderForwardingRules, MetadataOptions,
    ProcessingMode,
};
use sixfold_xds_api::values::{Result, bool_or, duration_or, enum_value, one_of, required, status};
use sixfold_xds_api::{destructure, matcher};
use std::sync::Arc;
use std::time::Duration;

/// How long an answer may take where the configuration does not say.
const MESSAGE_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a stream that is only looked at stays after its request.
const DEFERRED_CLOSE: Duration = Duration::from_secs(5);

/// The filter of a route; `None` where it is off.
pub(super) fn compile(
    value: &ExternalProcessor,
    overrides: &[ExtProcPerRoute],
    context: &BuildContext,
) -> Result<Option<ExtProc>> {
    destructure!(ExternalProcessor {
        grpc_service,
        failure_mode_allow,
        processing_mode,
        request_attributes,
        response_attributes,
        message_timeout,
        stat_prefix,
        mutation_rules,
        max_message_timeout,
        forward_rules,
        filter_metadata,
        allow_mode_override,
        disable_immediate_response,
        metadata_options,
        observability_mode,
        disable_clear_route_cache,
        route_cache_action,
        deferred_close_timeout,
        allowed_override_modes,
        status_on_error,
        allow_content_length_header,
        // Calls have no spans.
        emit_client_span: _
    } refusing {
        http_service,
        processing_request_modifier,
        on_processing_response,
        send_body_without_waiting_for_header_response,
    } = value);
    let mut settings = Own {
        service: required(grpc_service, "grpc_service")?.clone(),
        mode: mode(&processing_mode.unwrap_or_default()).in_key("processing_mode")?,
        request_attributes,
        response_attributes,
        metadata: metadata_options.clone().unwrap_or_default(),
        allow_on_error: *failure_mode_allow,
    };
    let mut off = false;
    for ExtProcPerRoute { r#override } in overrides {
        match one_of::<ExtProcPerRoute, _>(r#override, "override")? {
            Override::Disabled(disabled) => off = *disabled,
            Override::Overrides(overrides) => {
                off = false;
                settings.lay_over(overrides).in_key("overrides")?;
            }
        }
    }
    if off {
        return Ok(None);
    }
    // A stream lasts as long as its request: the time of a service is that of a call with one answer, as in Envoy. What bounds
    // the stream is the time of each message.
    settings.service.timeout = None;
    let route_cache = route_cache(*route_cache_action, *disable_clear_route_cache)?;
    let (told_metadata, taken_metadata) = namespaces(&settings.metadata).in_key("metadata_options")?;
    let default = HeaderForwardingRules::default();
    let HeaderForwardingRules { allowed_headers, disallowed_headers } =
        forward_rules.as_ref().unwrap_or(&default);
    let list = |list, field| matcher::strings_of(list, field).in_key("forward_rules");
    let note = filter_metadata.clone().map(|metadata| FilterObject {
        key: context.filter.clone(),
        value: struct_to_json(metadata).to_string().into_bytes().into(),
        hashable: false,
        read_only: false,
    });
    let modes = allowed_override_modes.iter().enumerate().map(|(index, value)| mode(value).in_index(index));
    let modes = modes.collect::<Result<_>>().in_key("allowed_override_modes")?;
    Ok(Some(ExtProc(Arc::new(Settings {
        service: Service::new(&settings.service, None, context).in_key("grpc_service")?,
        mode: settings.mode,
        times: Times {
            message: duration_or(message_timeout, MESSAGE_TIMEOUT, "message_timeout")?,
            most: duration_or(max_message_timeout, Duration::ZERO, "max_message_timeout")?,
        },
        allow_on_error: settings.allow_on_error,
        status_on_error: match status_on_error {
            Some(code) => status(u32::try_from(code.code).unwrap_or(0), "status_on_error.code")?,
            None => 500,
        },
        rules: Rules::new(&mutation_rules.clone().unwrap_or_default()).in_key("mutation_rules")?,
        allow_content_length: *allow_content_length_header,
        allowed: allowed_headers.is_some().then(|| list(allowed_headers, "allowed_headers")).transpose()?,
        disallowed: list(disallowed_headers, "disallowed_headers")?,
        request_attributes: Attributes::new(settings.request_attributes, "request_attributes")?,
        response_attributes: Attributes::new(settings.response_attributes, "response_attributes")?,
        override_modes: (*allow_mode_override && !observability_mode).then_some(modes),
        answers: !disable_immediate_response,
        route_cache,
        observes: *observability_mode,
        deferred_close: duration_or(deferred_close_timeout, DEFERRED_CLOSE, "deferred_close_timeout")?,
        told_metadata,
        taken_metadata,
        note,
        stats: ProcStats::new(&context.metrics, &metrics::scope(&[&context.scope, "ext_proc", stat_prefix])),
    }))))
}

/// What routes may say otherwise.
struct Own<'a> {
    service: GrpcService,
    mode: Mode,
    request_attributes: &'a [String],
    response_attributes: &'a [String],
    metadata: MetadataOptions,
    allow_on_error: bool,
}

impl<'a> Own<'a> {
    #[allow(deprecated)]
    fn lay_over(&mut self, value: &'a ExtProcOverrides) -> Result<()> {
        destructure!(ExtProcOverrides {
            processing_mode,
            request_attributes,
            response_attributes,
            grpc_service,
            metadata_options,
            grpc_initial_metadata,
            failure_mode_allow,
            // Calls have no spans.
            emit_client_span: _
        } refusing { async_mode, processing_request_modifier } = value);
        if let Some(value) = processing_mode {
            self.mode = mode(value).in_key("processing_mode")?;
        }
        if !request_attributes.is_empty() {
            self.request_attributes = request_attributes;
        }
        if !response_attributes.is_empty() {
            self.response_attributes = response_attributes;
        }
        if let Some(service) = grpc_service {
            self.service = service.clone();
        }
        // Of two values with one name the route's counts.
        for value in grpc_initial_metadata {
            self.service.initial_metadata.retain(|own| !own.key.eq_ignore_ascii_case(&value.key));
            self.service.initial_metadata.push(value.clone());
        }
        let MetadataOptions {
            forwarding_namespaces,
            receiving_namespaces,
            cluster_metadata_forwarding_namespaces,
        } = metadata_options.clone().unwrap_or_default();
        let own = &mut self.metadata;
        own.forwarding_namespaces = forwarding_namespaces.or(own.forwarding_namespaces.take());
        own.receiving_namespaces = receiving_namespaces.or(own.receiving_namespaces.take());
        own.cluster_metadata_forwarding_namespaces =
            cluster_metadata_forwarding_namespaces.or(own.cluster_metadata_forwarding_namespaces.take());
        self.allow_on_error = bool_or(failure_mode_allow, self.allow_on_error);
        Ok(())
    }
}

type Namespaces = Box<[Arc<str>]>;

/// Namespaces that are told and those that are taken.
fn namespaces(value: &MetadataOptions) -> Result<(Namespaces, Namespaces)> {
    destructure!(MetadataOptions { forwarding_namespaces, receiving_namespaces }
        refusing { cluster_metadata_forwarding_namespaces } = value);
    let names = |value: &Option<MetadataNamespaces>| match value {
        Some(MetadataNamespaces {
            untyped,
            // Nothing here leaves messages in the metadata of a request.
            typed: _,
        }) => untyped.iter().map(|name| name.as_str().into()).collect(),
        None => Box::default(),
    };
    Ok((names(forwarding_namespaces), names(receiving_namespaces)))
}

fn route_cache(action: i32, disabled: bool) -> Result<RouteCache> {
    Ok(match (enum_value(action, "route_cache_action")?, disabled) {
        (RouteCacheAction::Default, false) => RouteCache::Told,
        (RouteCacheAction::Default, true) => RouteCache::Retain,
        (_, true) => {
            let reason = "must not be given together with route_cache_action";
            return Err(ConfigError::field("disable_clear_route_cache", reason));
        }
        (RouteCacheAction::Clear, false) => RouteCache::Clear,
        (RouteCacheAction::Retain, false) => RouteCache::Retain,
    })
}

/// A mode as the configuration says it: heads are sent unless it says otherwise, bodies and trailers are not.
fn mode(value: &ProcessingMode) -> Result<Mode> {
    let none = Mode { headers: [true; 2], body: [BodyMode::None; 2], trailers: [false; 2] };
    Mode::overridden(value, none)
}

impl Mode {
    /// A mode in which what `value` leaves to the default is that of `own`.
    pub(super) fn overridden(value: &ProcessingMode, own: Mode) -> Result<Mode> {
        let ProcessingMode {
            request_header_mode,
            response_header_mode,
            request_body_mode,
            response_body_mode,
            request_trailer_mode,
            response_trailer_mode,
        } = *value;
        let sent = |value: i32, own: bool, field| {
            Ok(match enum_value(value, field)? {
                HeaderSendMode::Default => own,
                HeaderSendMode::Send => true,
                HeaderSendMode::Skip => false,
            })
        };
        let body = |value: i32, field| {
            Ok(match enum_value(value, field)? {
                BodySendMode::None => BodyMode::None,
                BodySendMode::Streamed => BodyMode::Streamed,
                BodySendMode::Buffered => BodyMode::Buffered,
                BodySendMode::BufferedPartial => BodyMode::BufferedPartial,
                BodySendMode::FullDuplexStreamed => BodyMode::FullDuplex,
                BodySendMode::Grpc => return Err(ConfigError::field(field, "GRPC is not supported")),
            })
        };
        Ok(Mode {
            headers: [
                sent(request_header_mode, own.headers[0], "request_header_mode")?,
                sent(response_header_mode, own.headers[1], "response_header_mode")?,
            ],
            body: [
                body(request_body_mode, "request_body_mode")?,
                body(response_body_mode, "response_body_mode")?,
            ],
            trailers: [
                sent(request_trailer_mode, own.trailers[0], "request_trailer_mode")?,
                sent(response_trailer_mode, own.trailers[1], "response_trailer_mode")?,
            ],
        })
    }
}
