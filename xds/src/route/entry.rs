//! One route: its conditions, and what it carries beside its action.

use std::sync::Arc;

use sixfold_core::error::{ConfigContext, ConfigError, Faults};
use sixfold_core::headers::is_clean;
use sixfold_core::route::{Action, Decorator, Ids, PathMatch, Predicate, RareOptions, Route, RouteStats};
use sixfold_xds_api::pb::envoy::config::route::v3::route_match::{PathSpecifier, TlsContextMatchOptions};
use sixfold_xds_api::pb::envoy::config::route::v3::{
    Decorator as ProtoDecorator, Route as ProtoRoute, RouteMatch, route,
};
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::FilterStateMatcher;
use sixfold_xds_api::pb::envoy::r#type::matcher::v3::filter_state_matcher::Matcher;
use sixfold_xds_api::{header_ops, matcher, metadata, refused};

use crate::filters::Level;
use crate::trace;

use super::{Scope, action, answer, body_limit, template};
use sixfold_xds_api::values::{Result, bool_or, full_regex, not_empty, one_of, required, runtime_fraction};

/// config/route/v3 Route.
pub(super) fn route(scope: &Scope<'_>, value: &ProtoRoute) -> Result<Route> {
    let ProtoRoute {
        name,
        r#match,
        metadata: route_metadata,
        decorator,
        tracing: route_tracing,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        per_request_buffer_limit_bytes,
        stat_prefix,
        request_body_buffer_limit,
        route_specifiers,
        action: route_action,
    } = value;
    let mut faults = Faults::default();
    faults.take(refused!(route_specifiers));
    let r#match = faults.keep(required(r#match, "match"));
    let conditions = r#match.and_then(|value| faults.keep(conditions(scope, value).in_key("match")));
    let cors = match route_action {
        Some(route::Action::Route(action)) => action.cors.as_ref(),
        _ => None,
    };
    let mut levels = vec![scope.table_level()];
    levels.extend(scope.host.map(super::OfHost::level));
    levels.push(Level::new(typed_per_filter_config).with_cors(cors, "route.cors").named(name));
    let chain = faults.take(scope.filters.chain(&levels, name));
    let nothing = RouteMatch::default();
    let action = one_of::<ProtoRoute, _>(route_action, "action").and_then(|action| match action {
        route::Action::Route(value) => {
            let forward = action::forward(scope, value, r#match.unwrap_or(&nothing), &levels);
            forward.map(Action::Forward).in_key("route")
        }
        route::Action::Redirect(value) => sixfold_xds_api::redirect::redirect(value)
            .map(|redirect| Action::Redirect(Box::new(redirect)))
            .in_key("redirect"),
        route::Action::DirectResponse(value) => {
            answer::direct(scope, value).map(|answer| Action::Direct(answer.into())).in_key("direct_response")
        }
        route::Action::NonForwardingAction(_) => Ok(Action::NonForwarding),
        route::Action::FilterAction(_) => Err(ConfigError::field("filter_action", "is not supported")),
    });
    let action = faults.keep(action);
    let (request_headers, response_headers) = faults.take(header_ops::both(
        (request_headers_to_add, request_headers_to_remove),
        (response_headers_to_add, response_headers_to_remove),
    ));
    let limit = body_limit(per_request_buffer_limit_bytes, request_body_buffer_limit);
    let rare = RareOptions {
        body_buffer_limit: faults.take(limit),
        decorator: faults.take(decorator.as_ref().map(compile_decorator).transpose().in_key("decorator")),
        tracing: {
            let compiled = route_tracing.as_ref().map(|value| trace::of_route(scope.context, value));
            faults.take(compiled.transpose().in_key("tracing"))
        },
    };
    let (path, predicates) = faults.kept(conditions)?;
    let action = faults.kept(action)?;
    faults.end(())?;
    Ok(Route {
        name: name.as_str().into(),
        ids: Ids::default(),
        path,
        predicates,
        priority: 0,
        action,
        request_headers,
        response_headers,
        chain,
        metadata: metadata::namespaces(route_metadata),
        stats: (!stat_prefix.is_empty()).then(|| {
            let prefix = format!("vhost.{}.route.{stat_prefix}.", scope.host_name());
            Arc::new(RouteStats::new(scope.context.compile.metrics(), &prefix))
        }),
        rare: rare.boxed(),
    })
}

fn compile_decorator(value: &ProtoDecorator) -> Result<Decorator> {
    let ProtoDecorator { operation, propagate } = value;
    let operation = not_empty(operation, "operation")?;
    if !is_clean(operation.as_bytes()) {
        return Err(ConfigError::field("operation", "can't be sent as the value of a header"));
    }
    Ok(Decorator { operation: operation.into(), propagate: bool_or(propagate, true) })
}

fn of_filter_state(value: &FilterStateMatcher) -> Result<Predicate> {
    let FilterStateMatcher { key, matcher: test } = value;
    let key = not_empty(key, "key")?.into();
    match test {
        Some(Matcher::StringMatch(test)) => {
            let test = matcher::string(test).in_key("string_match")?;
            Ok(Predicate::FilterState { key, test })
        }
        // Objects that are addresses there are none.
        Some(Matcher::AddressMatch(_)) => Err(ConfigError::field("address_match", "is not supported")),
        None => Err(ConfigError::field("matcher", "is missing")),
    }
}

/// The path and the other conditions, in Envoy's order of checks.
fn conditions(scope: &Scope<'_>, value: &RouteMatch) -> Result<(PathMatch, Arc<[Predicate]>)> {
    let RouteMatch {
        case_sensitive,
        runtime_fraction: fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = value;
    let mut faults = Faults::default();
    let mut predicates = Vec::new();
    if let Some(fraction) = fraction {
        let fraction = runtime_fraction(&scope.context.runtime, fraction).in_key("runtime_fraction");
        predicates.extend(faults.keep(fraction).map(Predicate::Fraction));
    }
    predicates.extend(grpc.as_ref().map(|_| Predicate::Grpc));
    let headers = faults.take(matcher::headers(headers, "headers"));
    predicates.extend(headers.into_iter().map(Predicate::Header));
    for (index, query) in query_parameters.iter().enumerate() {
        let query = matcher::query(query).in_index(index).in_key("query_parameters");
        predicates.extend(faults.keep(query).map(Predicate::Query));
    }
    for (index, cookie) in cookies.iter().enumerate() {
        let cookie = matcher::cookie(cookie).in_index(index).in_key("cookies");
        predicates.extend(faults.keep(cookie).map(Predicate::Cookie));
    }
    if let Some(TlsContextMatchOptions { presented, validated }) = tls_context {
        let wanted = |value: &Option<sixfold_xds_api::pb::google::protobuf::BoolValue>| {
            value.as_ref().map(|v| v.value)
        };
        predicates.push(Predicate::Tls { presented: wanted(presented), validated: wanted(validated) });
    }
    for (index, metadata) in dynamic_metadata.iter().enumerate() {
        let metadata = matcher::metadata(metadata).in_index(index).in_key("dynamic_metadata");
        predicates.extend(faults.keep(metadata).map(|metadata| Predicate::Metadata(metadata.into())));
    }
    for (index, state) in filter_state.iter().enumerate() {
        let state = of_filter_state(state).in_index(index).in_key("filter_state");
        predicates.extend(faults.keep(state));
    }
    let ignore_case = !bool_or(case_sensitive, true);
    let given = one_of::<RouteMatch, _>(path_specifier, "path_specifier");
    let path = faults.keep(given.and_then(|given| path(given, ignore_case)));
    let path = faults.kept(path)?;
    faults.end((path, predicates.into()))
}

fn path(value: &PathSpecifier, ignore_case: bool) -> Result<PathMatch> {
    let bytes = |text: &str| -> Box<[u8]> { text.as_bytes().into() };
    Ok(match value {
        PathSpecifier::Prefix(prefix) => PathMatch::Prefix(bytes(prefix), ignore_case),
        PathSpecifier::Path(path) => PathMatch::Exact(bytes(path), ignore_case),
        PathSpecifier::PathSeparatedPrefix(prefix) => {
            PathMatch::SeparatedPrefix(bytes(separated_prefix(prefix)?), ignore_case)
        }
        // Envoy ignores `case_sensitive` here.
        PathSpecifier::SafeRegex(regex) => PathMatch::Regex(full_regex(regex).in_key("safe_regex")?.into()),
        PathSpecifier::ConnectMatcher(_) => PathMatch::Connect,
        PathSpecifier::PathMatchPolicy(policy) => PathMatch::Template(
            template::pattern(&matcher::path_template(policy).in_key("path_match_policy")?)?.into(),
        ),
    })
}

/// route_components.proto: `^[^?#]+[^?#/]$`, or a single character that is none of these.
fn separated_prefix(prefix: &str) -> Result<&str> {
    let prefix = not_empty(prefix, "path_separated_prefix")?;
    if prefix.contains(['?', '#']) || prefix.ends_with('/') {
        let reason = format!("\"{prefix}\" must hold no \"?\" or \"#\" and must not end in \"/\"");
        return Err(ConfigError::field("path_separated_prefix", reason));
    }
    Ok(prefix)
}
