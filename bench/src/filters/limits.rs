//! Limits of so many requests that none is refused.

use anyhow::Result;
use serde_json::{Value, json};
use sixfold_xds_api::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;

use super::{Ready, chain, context, request};

pub(super) fn one_bucket() -> Result<Ready> {
    limited(json!({}))
}

pub(super) fn descriptors() -> Result<Ready> {
    let listed = (1..=100).map(|n| descriptor(&format!("tenant-{n}")));
    limited(json!({"descriptors": listed.collect::<Vec<_>>(), "rate_limits": by_tenant()}))
}

pub(super) fn values() -> Result<Ready> {
    limited(json!({"descriptors": [descriptor("")], "rate_limits": by_tenant()}))
}

fn bucket() -> Value {
    json!({"max_tokens": 4_000_000_000u32, "tokens_per_fill": 4_000_000_000u32, "fill_interval": "1s"})
}

fn descriptor(tenant: &str) -> Value {
    json!({"entries": [{"key": "tenant", "value": tenant}], "token_bucket": bucket()})
}

fn by_tenant() -> Value {
    json!([{"actions": [{"request_headers": {"header_name": "x-tenant", "descriptor_key": "tenant"}}]}])
}

fn limited(more: Value) -> Result<Ready> {
    let always = json!({"default_value": {"numerator": 100, "denominator": "HUNDRED"}});
    let mut config = json!({
        "stat_prefix": "http_local_rate_limiter", "token_bucket": bucket(), "filter_enabled": always,
        "filter_enforced": always});
    if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
        config.extend(more);
    }
    let request = || request("/api/v1/items", &[("x-tenant", "tenant-77")]);
    Ok(Ready { chain: chain::<LocalRateLimit>(config, &context())?, request: Box::new(request) })
}
