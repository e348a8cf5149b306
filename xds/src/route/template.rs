//! Envoy's uri_template extensions.

use sixfold_core::error::ConfigError;
use sixfold_core::route::TemplatePart;
use sixfold_core::router::{Template, parse_rewrite};
use sixfold_xds_api::pb::envoy::config::route::v3::RouteMatch;
use sixfold_xds_api::pb::envoy::config::route::v3::route_match::PathSpecifier;

use sixfold_xds_api::matcher;
use sixfold_xds_api::values::Result;

/// A `path_template`.
pub(super) fn pattern(text: &str) -> Result<Template> {
    Template::parse(text).map_err(|reason| ConfigError::field("path_match_policy.typed_config", reason))
}

/// A `path_template_rewrite` for the template that the route matches.
pub(super) fn rewrite(text: &str, r#match: &RouteMatch) -> Result<Box<[TemplatePart]>> {
    let Some(PathSpecifier::PathMatchPolicy(policy)) = &r#match.path_specifier else {
        return Err(ConfigError::new("needs path_match_policy in the match"));
    };
    let template = pattern(&matcher::path_template(policy)?)?;
    parse_rewrite(text, &template).map_err(|reason| ConfigError::field("typed_config", reason))
}
