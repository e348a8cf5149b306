//! Redirects that the proxy follows itself.

use sixfold_core::error::{ConfigContext, ConfigError, Faults, collect};
use sixfold_core::headers::HeaderName;
use sixfold_core::internal_redirect::{CODES, InternalRedirect, RedirectPredicate};
use sixfold_xds_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use sixfold_xds_api::pb::envoy::config::route::v3::InternalRedirectPolicy;
use sixfold_xds_api::pb::envoy::extensions::internal_redirect::allow_listed_routes::v3::AllowListedRoutesConfig;
use sixfold_xds_api::values::{Result, header_name, required, u32_or};
use sixfold_xds_api::{any, refuse};

/// config/route/v3 InternalRedirectPolicy.
pub(super) fn policy(value: &InternalRedirectPolicy) -> Result<InternalRedirect> {
    let InternalRedirectPolicy {
        max_internal_redirects,
        redirect_response_codes,
        predicates,
        allow_cross_scheme_redirect,
        response_headers_to_copy,
    } = value;
    let mut faults = Faults::default();
    let of_envoy = |code: &u32| u16::try_from(*code).ok().filter(|code| CODES.contains(code));
    let codes = match redirect_response_codes.is_empty() {
        true => vec![302],
        // Others are ignored.
        false => redirect_response_codes.iter().filter_map(of_envoy).collect(),
    };
    let predicates = predicates.iter().enumerate().map(|(index, value)| predicate(value).in_index(index));
    let headers = response_headers_to_copy.iter().enumerate();
    let headers = headers.map(|(index, name)| copied(name).in_index(index));
    let policy = InternalRedirect {
        max: u32_or(max_internal_redirects, 1),
        codes,
        allow_cross_scheme: *allow_cross_scheme_redirect,
        predicates: faults.take(collect(predicates).in_key("predicates")).into(),
        copied_headers: faults.take(collect(headers).in_key("response_headers_to_copy")).into(),
    };
    faults.end(policy)
}

fn copied(name: &str) -> Result<HeaderName> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(ConfigError::new(format!("\"{name}\": pseudo headers and host may not be copied")));
    }
    header_name(name, "").map_err(|error| ConfigError::new(error.reason))
}

fn predicate(value: &TypedExtensionConfig) -> Result<RedirectPredicate> {
    let TypedExtensionConfig { name, typed_config } = value;
    let config = required(typed_config, "typed_config")?;
    match any::type_name(config).in_key("typed_config")?.as_str() {
        "envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig" => {
            let AllowListedRoutesConfig { allowed_route_names } =
                any::unpack(config).in_key("typed_config")?;
            let names = allowed_route_names.iter().map(|name| name.as_str().into());
            Ok(RedirectPredicate::AllowedRoutes(names.collect()))
        }
        "envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig" => {
            Ok(RedirectPredicate::PreviousRoutes)
        }
        "envoy.extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig" => {
            Ok(RedirectPredicate::SafeCrossScheme)
        }
        other => Err(refuse::extension("internal redirect predicate", name, other)),
    }
}
