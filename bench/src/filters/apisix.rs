//! APISIX's plugins as routes commonly have them.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use sixfold_core::plugin::{BuildContext, ByKey, ChainBuilder, Consumer, Consumers, Credential, Identity};

use super::{Ready, context, request};

/// Consumers of which one shows its key.
const CONSUMERS: usize = 10_000;

/// A token by `my-secret-key` of the consumer `user-key`, until 2100.
const TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.\
                     eyJrZXkiOiJ1c2VyLWtleSIsImV4cCI6NDEwMjQ0NDgwMH0.\
                     Vvic3mhd6gbgARxkxqhMpPP3ztQv08bELL9zrsGED8o";

/// What stands before a service for the whole world, by priority.
pub(super) fn gateway() -> Result<Ready> {
    let listed = ["10.0.0.0/8", "127.0.0.1", "192.168.0.0/16"];
    let plugins = [
        (
            "real-ip",
            json!({"source": "http_x_forwarded_for", "trusted_addresses": ["10.0.0.0/8"], "recursive": false}),
        ),
        (
            "request-id",
            json!({"header_name": "X-Request-Id", "include_in_response": true, "algorithm": "uuid",
                "range_id": {"length": 16, "char_set": "abcdef"}}),
        ),
        (
            "cors",
            json!({"allow_origins": "https://a.test,https://b.test", "allow_methods": "*",
                "allow_headers": "*", "max_age": 5, "allow_credential": false}),
        ),
        ("ip-restriction", json!({"whitelist": listed, "message": "no", "response_code": 403})),
        (
            "proxy-rewrite",
            json!({"headers": {"set": {"X-To-Upstream": "1"}}, "use_real_request_uri_unsafe": false}),
        ),
        ("limit-count", limit()),
        (
            "response-rewrite",
            json!({"headers": {"set": {"X-To-Client": "1"}}, "body_base64": false,
                "max_resp_body_size": 1 << 20}),
        ),
        ("prometheus", json!({"prefer_name": false})),
    ];
    let headers = &[("origin", "https://a.test"), ("x-forwarded-for", "192.168.1.2")];
    ready(&plugins, &context(), headers)
}

/// What counts requests and tells how many there were.
pub(super) fn counted() -> Result<Ready> {
    let plugins = [("limit-count", limit()), ("prometheus", json!({"prefer_name": false}))];
    ready(&plugins, &context(), &[])
}

fn limit() -> Value {
    json!({"count": 1u64 << 50, "time_window": 3600, "window_type": "fixed", "key": "remote_addr", "key_type": "var",
        "rejected_code": 503, "policy": "local", "allow_degradation": false, "show_limit_quota_header": true,
        "sync_interval": -1.0})
}

/// A token of a secret.
pub(super) fn jwt_auth() -> Result<Ready> {
    let said = json!({"key": "user-key", "secret": "my-secret-key", "algorithm": "HS256", "base64_secret": false,
        "lifetime_grace_period": 0});
    let config = json!({"header": "authorization", "query": "jwt", "cookie": "jwt", "hide_credentials": false,
        "key_claim_name": "key", "realm": "jwt", "store_in_ctx": false});
    let context = known("jwt-auth", [said])?;
    let line = format!("Bearer {TOKEN}");
    ready(&[("jwt-auth", config)], &context, &[("authorization", &line)])
}

/// One of many keys.
pub(super) fn key_auth() -> Result<Ready> {
    let said = (0..CONSUMERS).map(|n| json!({"key": format!("the-key-of-consumer-{n}")}));
    let config = json!({"header": "apikey", "query": "apikey", "hide_credentials": false, "realm": "key"});
    let context = known("key-auth", said)?;
    ready(&[("key-auth", config)], &context, &[("apikey", "the-key-of-consumer-7777")])
}

/// A context with consumers who say this of a plugin.
fn known(plugin: &'static str, said: impl IntoIterator<Item = Value>) -> Result<BuildContext> {
    let registry = sixfold_plugins::registry();
    let (_, factory) = registry.apisix(plugin).with_context(|| format!("no plugin {plugin}"))?;
    let (mut by_name, mut by_key) = (ByKey::default(), ByKey::default());
    for (number, said) in said.into_iter().enumerate() {
        let name = format!("consumer-{number}");
        let Credential { key, proof, .. } = factory.credential(&said).map_err(|error| anyhow!("{error}"))?;
        let consumer = Arc::new(Consumer::new(name.as_str().into(), None, Vec::new()));
        let identity = Arc::new(Identity::new(consumer, None, proof));
        by_name.insert(name.as_bytes().into(), identity.clone());
        by_key.insert(key, identity);
    }
    let consumers = Arc::new(Consumers::default());
    drop(consumers.change(by_name, BTreeMap::from([(plugin, by_key)])).put_in_force());
    Ok(BuildContext { consumers, ..context() })
}

/// A chain of plugins, by priority, and a request with these headers.
fn ready(plugins: &[(&str, Value)], context: &BuildContext, headers: &[(&str, &str)]) -> Result<Ready> {
    let registry = sixfold_plugins::registry();
    let mut builder = ChainBuilder::new();
    for (name, config) in plugins {
        let (_, factory) = registry.apisix(name).with_context(|| format!("no plugin {name}"))?;
        builder.add(name, factory.build(config, context).map_err(|error| anyhow!("{name}: {error}"))?);
    }
    let headers: Vec<(String, String)> =
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let request = move || {
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        request("/api/v1/items?page=2", &headers)
    };
    Ok(Ready { chain: Arc::new(builder.build()), request: Box::new(request) })
}
