//! Redirects: of routes, and of what answers in the place of responses.

use crate::pb::envoy::config::route::v3::RedirectAction;
use crate::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use crate::values::{Result, enum_value, port, regex_rewrite};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::route::{Redirect, RedirectPath};

/// config/route/v3 RedirectAction.
///
/// # Errors
/// Values that the fields can't have.
pub fn redirect(value: &RedirectAction) -> Result<Redirect> {
    let RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = value;
    Ok(Redirect {
        status: match enum_value(*response_code, "response_code")? {
            RedirectResponseCode::MovedPermanently => 301,
            RedirectResponseCode::Found => 302,
            RedirectResponseCode::SeeOther => 303,
            RedirectResponseCode::TemporaryRedirect => 307,
            RedirectResponseCode::PermanentRedirect => 308,
        },
        scheme: match scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) if !scheme.is_empty() => {
                Some(scheme.as_str().into())
            }
            _ => None,
        },
        host: (!host_redirect.is_empty()).then(|| host_redirect.as_str().into()),
        port: match port_redirect {
            0 => None,
            given => Some(port(*given, "port_redirect")?),
        },
        path: match path_rewrite_specifier {
            None => RedirectPath::Keep,
            Some(PathRewriteSpecifier::PathRedirect(path)) if path.is_empty() => RedirectPath::Keep,
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) if prefix.is_empty() => RedirectPath::Keep,
            Some(PathRewriteSpecifier::PathRedirect(path)) => RedirectPath::Replace(path.as_bytes().into()),
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
                RedirectPath::Prefix(prefix.as_bytes().into())
            }
            Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
                let (regex, rewrite) = regex_rewrite(rewrite).in_key("regex_rewrite")?;
                RedirectPath::Regex(regex, rewrite)
            }
            Some(PathRewriteSpecifier::PathRewrite(_)) => {
                return Err(ConfigError::field("path_rewrite", "is not supported"));
            }
        },
        strip_query: *strip_query,
    })
}
