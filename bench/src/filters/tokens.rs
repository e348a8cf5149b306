//! RequestAuthentication as istiod writes it, with a key of the configuration, and a token that it has signed.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sixfold_xds_api::pb::envoy::extensions::filters::http::jwt_authn::v3::JwtAuthentication;

use super::{Ready, chain, context, request};

const KEYS: &str = include_str!("../../../xds/conformance/certs/jwks.json");
const TOKENS: &str = include_str!("../../../xds/conformance/certs/tokens.json");

/// Each request's token is verified: none is short enough to be kept.
pub(super) fn verified() -> Result<Ready> {
    judged(&json!({"jwt_max_token_size": 1}))
}

/// The token came before.
pub(super) fn cached() -> Result<Ready> {
    judged(&Value::Null)
}

fn judged(cache: &Value) -> Result<Ready> {
    let config = json!({
        "providers": {"origins-0": {
            "issuer": "issuer.example", "local_jwks": {"inline_string": KEYS}, "forward": true,
            "payload_in_metadata": "payload", "jwt_cache_config": cache,
            "normalize_payload_in_metadata": {"space_delimited_claims": ["scope", "permission"]}}},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "origins-0"}}],
        "bypass_cors_preflight": true,
    });
    let tokens: Value = serde_json::from_str(TOKENS)?;
    let token = tokens.get("alice").and_then(Value::as_str).context("there is no token of alice")?;
    let line = format!("Bearer {token}");
    let request = move || request("/api/v1/items?page=2", &[("authorization", &line)]);
    Ok(Ready { chain: chain::<JwtAuthentication>(config, &context())?, request: Box::new(request) })
}
