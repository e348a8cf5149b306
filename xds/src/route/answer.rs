//! Routes that answer by themselves: direct responses.

use std::sync::Arc;

use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::route::DirectResponse;
use sixfold_xds_api::pb::envoy::config::route::v3::DirectResponseAction;

use super::Scope;
use sixfold_xds_api::format;
use sixfold_xds_api::values::{Result, data_source, status};

/// config/route/v3 DirectResponseAction.
pub(super) fn direct(scope: &Scope<'_>, value: &DirectResponseAction) -> Result<DirectResponse> {
    let DirectResponseAction { status: code, body, body_format } = value;
    let body = body.as_ref().map(data_source).transpose().in_key("body")?.unwrap_or_default();
    if body.len() > scope.max_direct_body {
        let reason = format!("has {} bytes, more than the limit of {}", body.len(), scope.max_direct_body);
        return Err(ConfigError::field("body", reason));
    }
    Ok(DirectResponse {
        status: status(*code, "status")?,
        body: body.into(),
        body_format: body_format.as_ref().map(format::body).transpose().in_key("body_format")?.map(Arc::new),
    })
}
