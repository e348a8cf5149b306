//! The HTTP connection manager.

mod client;
mod edge;
mod protocol;
mod reply;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use sixfold_core::error::{ConfigContext, ConfigError, Faults};
use sixfold_core::metrics::named_scope;
use sixfold_core::hcm::{
    CodecType, ConnectionTimeouts, EscapedSlashes, HttpConnectionManager, HttpStats, PathOptions, Profile,
    SpanKind,
};
use sixfold_core::plugin::Chain;
use sixfold_core::router::{RouteTable, RouteTableCell, TableOptions};
use sixfold_xds_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType as ProtoCodec, PathWithEscapedSlashesAction, RouteSpecifier, StripPortMode, UpgradeConfig,
};
use sixfold_xds_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager as ProtoManager;

use crate::context::Context;
use crate::filters::{self, HttpFilters};
use crate::listener::ChainPlace;
use crate::rds::{self, Subscription};
use crate::{access_log, route, trace};
use sixfold_xds_api::pb::envoy::extensions::filters::http::router::v3::Router;
use sixfold_xds_api::values::{Result, bool_or, duration_or, enum_value, not_empty, one_of, timeout_or};
use sixfold_xds_api::wire::{self, Split, decode};
use sixfold_xds_api::{refuse, refused};

/// Field numbers of `route_config.virtual_hosts.routes`.
const ROUTES: [u32; 3] = [4, 2, 3];

/// Compiles an encoded connection manager of a filter chain.
pub(crate) fn compile(context: &Context, encoded: &[u8], place: ChainPlace) -> Result<HttpConnectionManager> {
    let Split { rest, parts } = wire::split(encoded, &ROUTES)?;
    let value = &decode::<ProtoManager>(&rest)?;
    let mut faults = Faults::default();
    faults.take(refuse_unsupported(value));
    let kind = if place.outbound { SpanKind::Client } else { SpanKind::Server };
    let by_request_id = faults.take(edge::traces_by_request_id(value));
    let tracing = value.tracing.as_ref().map(|tracing| trace::compile(context, tracing, kind, by_request_id));
    let tracing = faults.take(tracing.transpose().in_key("tracing"));
    let prefix = faults.take(not_empty(&value.stat_prefix, "stat_prefix"));
    let mut of_filters = Faults::default();
    let scope = format!("http.{prefix}.");
    let (filters, router) = filters::compile(context, &value.http_filters, &scope, &mut of_filters);
    let filters_are_whole = faults.keep(of_filters.end(())).is_some();
    let common = value.common_http_protocol_options.unwrap_or_default();
    let http = faults.keep(protocol::server(value, &common));
    let codec = faults.keep(codec(value));
    let timeouts = faults.keep(timeouts(value, http.as_ref()));
    let path = faults.keep(path_options(context, value));
    let client_address = faults.keep(client::address(value));
    let headers = faults.keep(edge::headers(context, value));
    let upgrades = faults.take(upgrades(&value.upgrade_configs));
    let access_logs = faults.take(access_log::logs(context, &value.access_log, "access_log"));
    let local_reply =
        value.local_reply_config.as_ref().map(|config| reply::local(context, config)).transpose();
    let local_reply = faults.take(local_reply.in_key("local_reply_config")).unwrap_or_default();
    let options = filters::router_options(router.as_ref().unwrap_or(&Router::default()));
    let last = value.http_filters.len().saturating_sub(1);
    let options = faults.keep(options.in_key("typed_config").in_index(last).in_key("http_filters"));
    let routes = match filters_are_whole {
        true if router.is_some() => faults.keep(routes(context, place, filters, value, &parts)),
        true => faults.keep(no_routes(context, &filters)),
        false => {
            look_at_routes(context, &filters, value, &parts, &mut faults);
            None
        }
    };
    let Routes { cell, first_table, chain } = faults.kept(routes)?;
    let (http, codec, timeouts) = (faults.kept(http)?, faults.kept(codec)?, faults.kept(timeouts)?);
    let (path, client_address) = (faults.kept(path)?, faults.kept(client_address)?);
    let (headers, router) = (faults.kept(headers)?, faults.kept(options)?);
    faults.end(())?;
    Ok(HttpConnectionManager {
        profile: Profile::Envoy,
        stat_prefix: prefix.into(),
        stats: Arc::new(HttpStats::new(context.compile.metrics(), &named_scope(&["http", prefix]))),
        codec,
        routes: cell,
        first_table,
        chain,
        http1: http.http1,
        http2: http.http2,
        header_rules: http.header_rules,
        path,
        client_address,
        headers,
        timeouts,
        upgrades,
        access_logs,
        local_reply,
        router,
        max_requests_per_connection: http.max_requests,
        buffer_limit: place.buffer_limit,
        max_body: None,
        show_upstream_status: false,
        charset: None,
        tracing: tracing.map(Box::new),
    })
}

fn codec(value: &ProtoManager) -> Result<CodecType> {
    match enum_value(value.codec_type, "codec_type")? {
        ProtoCodec::Auto => Ok(CodecType::Auto),
        ProtoCodec::Http1 => Ok(CodecType::Http1),
        ProtoCodec::Http2 => Ok(CodecType::Http2),
        ProtoCodec::Http3 => Err(ConfigError::field("codec_type", "HTTP3 is not supported")),
    }
}

/// Counts the fields: what is not read by any part of this module is refused here.
fn refuse_unsupported(value: &ProtoManager) -> Result<()> {
    let ProtoManager {
        codec_type: _,
        stat_prefix: _,
        http_filters: _,
        add_user_agent: _,
        tracing: _,
        common_http_protocol_options: _,
        http1_safe_max_connection_duration,
        http_protocol_options: _,
        http2_protocol_options: _,
        http3_protocol_options,
        server_name: _,
        server_header_transformation: _,
        scheme_header_transformation: _,
        max_request_headers_kb: _,
        stream_idle_timeout: _,
        stream_flush_timeout,
        request_timeout: _,
        request_headers_timeout: _,
        drain_timeout: _,
        drain_timeout_jitter,
        delayed_close_timeout: _,
        access_log: _,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        use_remote_address: _,
        xff_num_trusted_hops: _,
        original_ip_detection_extensions: _,
        early_header_mutation_extensions,
        internal_address_config: _,
        skip_xff_append: _,
        via: _,
        generate_request_id: _,
        preserve_external_request_id: _,
        always_set_request_id_in_response: _,
        forward_client_cert_details: _,
        set_current_client_cert_details: _,
        forward_client_cert_matcher,
        proxy_100_continue: _,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        upgrade_configs: _,
        normalize_path: _,
        merge_slashes: _,
        path_with_escaped_slashes_action: _,
        request_id_extension: _,
        local_reply_config: _,
        strip_matching_host_port: _,
        stream_error_on_invalid_http_message: _,
        path_normalization_options,
        strip_trailing_host_dot: _,
        proxy_status_config: _,
        typed_header_validation_config,
        append_x_forwarded_port: _,
        append_local_overload,
        add_proxy_protocol_connection_state,
        forward_proto_config,
        route_specifier: _,
        strip_port_mode: _,
    } = value;
    refused!(
        http1_safe_max_connection_duration,
        http3_protocol_options,
        stream_flush_timeout,
        drain_timeout_jitter,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        early_header_mutation_extensions,
        forward_client_cert_matcher,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        path_normalization_options,
        typed_header_validation_config,
        append_local_overload,
        add_proxy_protocol_connection_state,
        forward_proto_config,
    )
}

/// What a connection manager has of its routes.
struct Routes {
    cell: Arc<RouteTableCell>,
    first_table: Option<Duration>,
    /// The chain of requests without settings of their own, by the same filters as those of the routes.
    chain: Arc<Chain>,
}

fn routes(
    context: &Context,
    place: ChainPlace,
    filters: HttpFilters,
    value: &ProtoManager,
    routes: &[Vec<&[u8]>],
) -> Result<Routes> {
    match one_of::<ProtoManager, _>(&value.route_specifier, "route_specifier")? {
        RouteSpecifier::RouteConfig(config) => {
            let mut faults = Faults::default();
            let chain = faults.keep(filters.base_chain());
            let table =
                faults.keep(route::table(context, &filters, config, routes, None).in_key("route_config"));
            let (chain, table) = (faults.kept(chain)?, faults.kept(table)?);
            let cell = context.compile.route_tables.own(Arc::new(table));
            Ok(Routes { cell, first_table: None, chain })
        }
        RouteSpecifier::Rds(rds) => {
            let Subscription { cell, first_table, filters } =
                rds::subscribe(context, place, filters, rds).in_key("rds")?;
            Ok(Routes { cell, first_table, chain: filters.list.base_chain()? })
        }
        RouteSpecifier::ScopedRoutes(_) => Err(ConfigError::field("scoped_routes", "is not supported")),
    }
}

/// Notes what is wrong with routes whose connection manager is refused for its filters, and with the settings of those
/// filters that are right.
fn look_at_routes(
    context: &Context,
    filters: &HttpFilters,
    value: &ProtoManager,
    routes: &[Vec<&[u8]>],
    faults: &mut Faults,
) {
    faults.keep(filters.base_chain());
    match &value.route_specifier {
        Some(RouteSpecifier::RouteConfig(config)) => {
            faults.keep(route::table(context, filters, config, routes, None).in_key("route_config"));
        }
        Some(_) => {}
        None => {
            faults.keep(one_of::<ProtoManager, _>(&value.route_specifier, "route_specifier"));
        }
    }
}

/// The routes of a connection manager without any filter. Envoy leaves its requests without an answer until they time
/// out.
fn no_routes(context: &Context, filters: &HttpFilters) -> Result<Routes> {
    let table = RouteTable::new("", TableOptions::default(), Vec::new())?;
    Ok(Routes {
        cell: context.compile.route_tables.own(Arc::new(table)),
        first_table: None,
        chain: filters.base_chain()?,
    })
}

/// Every bootstrap of Istio's agent says false.
const REJECT_FRAGMENT: &str = "envoy.reloadable_features.http_reject_path_with_fragment";

fn path_options(context: &Context, value: &ProtoManager) -> Result<PathOptions> {
    let by_default = context.runtime.enabled("http_connection_manager.normalize_path", 0);
    let strip_any_port = matches!(value.strip_port_mode, Some(StripPortMode::StripAnyHostPort(true)));
    if strip_any_port && value.strip_matching_host_port {
        let reason = "must not be given together with strip_any_host_port";
        return Err(ConfigError::field("strip_matching_host_port", reason));
    }
    let action = enum_value(value.path_with_escaped_slashes_action, "path_with_escaped_slashes_action")?;
    Ok(PathOptions {
        normalize: bool_or(&value.normalize_path, by_default),
        merge_slashes: value.merge_slashes,
        cut_fragment: !context.runtime.flag(REJECT_FRAGMENT, true),
        escaped_slashes: match action {
            PathWithEscapedSlashesAction::ImplementationSpecificDefault
            | PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::Keep,
            PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::Reject,
            PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
            PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
        },
        strip_matching_port: value.strip_matching_host_port,
        strip_any_port,
        strip_trailing_dot: value.strip_trailing_host_dot,
        apisix: None,
    })
}

fn timeouts(value: &ProtoManager, http: Option<&protocol::Server>) -> Result<ConnectionTimeouts> {
    let default = ConnectionTimeouts::default();
    let mut faults = Faults::default();
    let stream_idle = timeout_or(&value.stream_idle_timeout, default.stream_idle, "stream_idle_timeout");
    let headers = timeout_or(&value.request_headers_timeout, None, "request_headers_timeout");
    let drain = duration_or(&value.drain_timeout, Duration::from_secs(5), "drain_timeout");
    let close = duration_or(&value.delayed_close_timeout, Duration::from_secs(1), "delayed_close_timeout");
    let timeouts = ConnectionTimeouts {
        stream_idle: faults.take(stream_idle),
        request: faults.take(timeout_or(&value.request_timeout, None, "request_timeout")),
        // Bounded by the stream's idle timeout in Envoy.
        body: None,
        send: None,
        request_headers: faults.take(headers),
        max_stream: http.and_then(|http| http.max_stream),
        idle: http.and_then(|http| http.idle),
        max_connection: http.and_then(|http| http.max_connection),
        drain: faults.take(drain),
        delayed_close: faults.take(close),
    };
    faults.end(timeouts)
}

fn upgrades(values: &[UpgradeConfig]) -> Result<crate::Upgrades> {
    let mut upgrades: Vec<(Box<str>, bool)> = Vec::with_capacity(values.len());
    for (index, UpgradeConfig { upgrade_type, filters, enabled }) in values.iter().enumerate() {
        let upgrade = upgrade_type.to_ascii_lowercase();
        let checked = if upgrades.iter().any(|(other, _)| **other == *upgrade) {
            Err(ConfigError::field("upgrade_type", format!("\"{upgrade_type}\" is given twice")))
        } else {
            refuse::unset(filters, "filters")
        };
        checked.in_index(index).in_key("upgrade_configs")?;
        upgrades.push((upgrade.into(), bool_or(enabled, true)));
    }
    Ok(upgrades.into())
}
