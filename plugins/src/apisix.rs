//! APISIX's plugins, and what all of them use: templates, answers.

pub(crate) mod authentication;
mod basic_auth;
mod consumer_restriction;
mod cors;
mod echo;
mod example_plugin;
mod fault_injection;
mod file_logger;
mod forward_auth;
mod http_logger;
mod ip_restriction;
mod jwt_auth;
mod key_auth;
mod limit_conn;
mod limit_count;
mod limit_req;
mod mocking;
pub mod prometheus;
mod proxy_rewrite;
mod public_api;
mod real_ip;
mod redirect;
mod request_id;
mod response_rewrite;
/// The example of `docs/plugins/write-one.md`, compiled as it stands there.
#[cfg(test)]
pub(crate) mod stamp;
mod traffic_split;

use sixfold_core::error::ConfigError;
use sixfold_core::format::Format;
use sixfold_core::plugin::{ApisixFactory, LocalReply};
use sixfold_core::stream::Stream;

/// All of them.
pub(crate) fn factories() -> Vec<ApisixFactory> {
    vec![
        basic_auth::factory(),
        consumer_restriction::factory(),
        cors::factory(),
        echo::factory(),
        example_plugin::factory(),
        fault_injection::factory(),
        file_logger::factory(),
        forward_auth::factory(),
        http_logger::factory(),
        ip_restriction::factory(),
        jwt_auth::factory(),
        key_auth::factory(),
        limit_conn::factory(),
        limit_count::factory(),
        limit_req::factory(),
        mocking::factory(),
        prometheus::factory(),
        proxy_rewrite::factory(),
        public_api::factory(),
        real_ip::factory(),
        redirect::factory(),
        request_id::factory(),
        response_rewrite::factory(),
        traffic_split::factory(),
    ]
}

/// An answer with `{"error_msg": …}`, as APISIX's plugins give it.
pub(crate) fn error_reply(status: u16, message: &str) -> LocalReply {
    let body = format!("{}\n", serde_json::json!({ "error_msg": message }));
    LocalReply::new(status, body, "")
}

/// An answer with `{"message": …}`, as APISIX's plugins refuse a request.
pub(crate) fn message_reply(status: u16, message: &str) -> LocalReply {
    let body = format!("{}\n", serde_json::json!({ "message": message }));
    LocalReply::new(status, body, "")
}

/// The value of a template: a missing variable is nothing.
pub(crate) fn value(format: &Format, stream: &Stream) -> Vec<u8> {
    let mut out = Vec::new();
    format.write_value(stream, &mut out);
    out
}

/// A template of APISIX's variables.
///
/// # Errors
/// What is no template.
pub(crate) fn template(text: &str) -> Result<Format, ConfigError> {
    Format::apisix(text).map_err(ConfigError::new)
}
