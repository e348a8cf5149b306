//! Envoy's HTTP filters, and what all of them use: their factories, and shares of requests from their
//! protobuf messages.

mod adaptive_concurrency;
mod admission_control;
mod alpn;
mod api_key_auth;
mod authz;
mod bandwidth_limit;
mod basic_auth;
#[cfg(test)]
mod body_readers;
mod buffer;
mod compressor;
mod cors;
mod credential_injector;
mod csrf;
mod custom_response;
mod decompressor;
mod ext_authz;
mod ext_proc;
mod fault;
#[cfg(test)]
mod foretold;
mod grpc_http1_bridge;
pub(crate) mod grpc_json_transcoder;
mod grpc_stats;
mod grpc_web;
mod header_mutation;
mod header_to_metadata;
mod health_check;
mod http_service;
mod istio_stats;
mod jwt_authn;
mod local_ratelimit;
#[cfg(feature = "lua")]
mod lua;
mod mutations;
mod network;
mod oauth2;
mod on_demand;
mod peer_metadata;
mod ratelimit;
mod rbac;
mod service;
mod set_filter_state;
mod set_metadata;
#[cfg(test)]
mod settings_alone;
mod stateful_session;
mod token_endpoint;

use aws_lc_rs::digest;
use prost::{Message, Name};
use sixfold_core::error::ConfigError;
use sixfold_core::headers::Known;
use sixfold_core::message::RequestHead;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, NetworkFilterFactory};
use std::fmt::Write as _;

/// All of them.
pub(crate) fn factories() -> [FilterFactory; 34] {
    [
        adaptive_concurrency::factory(),
        admission_control::factory(),
        alpn::factory(),
        api_key_auth::factory(),
        bandwidth_limit::factory(),
        basic_auth::factory(),
        buffer::factory(),
        compressor::factory(),
        cors::factory(),
        credential_injector::factory(),
        csrf::factory(),
        custom_response::factory(),
        decompressor::factory(),
        ext_authz::factory(),
        ext_proc::factory(),
        fault::factory(),
        grpc_http1_bridge::factory(),
        grpc_json_transcoder::factory(),
        grpc_stats::factory(),
        grpc_web::factory(),
        header_mutation::factory(),
        header_to_metadata::factory(),
        health_check::factory(),
        istio_stats::factory(),
        jwt_authn::factory(),
        local_ratelimit::factory(),
        oauth2::factory(),
        on_demand::factory(),
        peer_metadata::factory(),
        ratelimit::factory(),
        rbac::factory(),
        set_filter_state::factory(),
        set_metadata::factory(),
        stateful_session::factory(),
    ]
}

/// The network filters among them, which stand before the last one of their chain.
pub(crate) fn network_factories() -> [NetworkFilterFactory; 5] {
    network::factories()
}

/// The filter that runs scripts.
#[cfg(feature = "lua")]
pub(crate) fn lua() -> FilterFactory {
    lua::factory()
}

/// The factory of a filter that `build` makes of its configuration and the overrides for a route, the least
/// specific first.
pub(crate) fn filter<M, O>(build: fn(M, Vec<O>, &BuildContext) -> Built) -> FilterFactory
where
    M: Message + Default + Name + 'static,
    O: Message + Default + Name + 'static,
{
    FilterFactory::new(M::full_name(), O::full_name(), move |given, context| {
        let overrides = given.overrides.iter().map(|bytes| decode(bytes)).collect::<Result<_, _>>()?;
        build(decode(given.config)?, overrides, context)
    })
}

/// The factory of a filter that routes can't say anything about but whether it runs.
pub(crate) fn routeless_filter<M>(build: fn(M, &BuildContext) -> Built) -> FilterFactory
where
    M: Message + Default + Name + 'static,
{
    FilterFactory::new(M::full_name(), None, move |given, context| build(decode(given.config)?, context))
}

/// Bytes of a path that a realm has.
const MAX_REALM_PATH: usize = 256;

/// The URI that the client asked for, as `www-authenticate` tells its realm (`Http::Utility::buildOriginalUri`).
pub(crate) fn realm(request: &RequestHead) -> Vec<u8> {
    let headers = &request.headers;
    let path = headers.get(Known::X_ENVOY_ORIGINAL_PATH).unwrap_or(request.target.full());
    let path = path.get(..MAX_REALM_PATH).unwrap_or(path);
    let scheme = headers.get(Known::X_FORWARDED_PROTO).unwrap_or_default();
    let mut realm = [scheme, b"://", &request.authority, path].concat();
    // It stands between quotes.
    realm.retain(|byte| *byte != b'"' && *byte != b'\\');
    realm
}

/// A key of [`BuildContext::shared`] for what belongs to one connection manager and this configuration.
fn shared_key(what: &str, config: &[u8], context: &BuildContext) -> String {
    let mut key = format!("{what} {} ", context.scope);
    for byte in digest::digest(&digest::SHA256, config).as_ref() {
        let _ = write!(key, "{byte:02x}");
    }
    key
}

/// A filter's message from its bytes.
fn decode<M: Message + Default + Name>(bytes: &[u8]) -> Result<M, ConfigError> {
    M::decode(bytes).map_err(|e| ConfigError::new(format!("is not a valid {}: {e}", M::full_name())))
}
