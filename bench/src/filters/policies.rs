//! A hundred AuthorizationPolicies as istiod writes them; the request is one that the last of them fits.

use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use sixfold_xds_api::pb::envoy::extensions::filters::http::rbac::v3::Rbac;

use super::{Ready, chain, context, request};

const POLICIES: usize = 100;
/// In the order of their names.
const LAST: usize = POLICIES - 1;

/// Rules of a policy: what is done, and by whom.
type Rules = (Vec<Value>, Vec<Value>);

pub(super) fn of_paths() -> Result<Ready> {
    let path = |n| json!({"or_rules": {"rules": [path(&format!("/api/v1/items{n}/list"))]}});
    let policy = |n| (vec![path(n), get()], vec![account("frontend")]);
    allowed_by(policy, "/api/v1/items99/list?page=2")
}

pub(super) fn of_principals() -> Result<Ready> {
    allowed_by(|n| (vec![json!({"any": true})], vec![account(&of(n))]), "/api/v1/items/list")
}

pub(super) fn of_one_path() -> Result<Ready> {
    allowed_by(|n| (vec![of_items(), get()], vec![account(&of(n))]), "/api/v1/items")
}

pub(super) fn of_namespaces() -> Result<Ready> {
    let namespace = |n| if n == LAST { "shop".to_owned() } else { format!("team-{n}") };
    let from = |n| {
        let regex = format!(".*/ns/{}/.*", namespace(n));
        json!({"or_ids": {"ids": [{"authenticated": {"principal_name": {"safe_regex": {"regex": regex}}}}]}})
    };
    allowed_by(|n| (vec![of_items(), get()], vec![from(n)]), "/api/v1/items")
}

pub(super) fn of_addresses() -> Result<Ready> {
    let third = |n| if n == LAST { 1 } else { n + 100 };
    let from = |n| {
        let range = json!({"address_prefix": format!("10.{}.0.0", third(n)), "prefix_len": 16});
        json!({"or_ids": {"ids": [{"direct_remote_ip": range}]}})
    };
    allowed_by(|n| (vec![of_items(), get()], vec![from(n)]), "/api/v1/items")
}

fn of(policy: usize) -> String {
    if policy == LAST { "frontend".to_owned() } else { format!("team-{policy}") }
}

fn of_items() -> Value {
    json!({"or_rules": {"rules": [path("/api/v1/items")]}})
}

fn get() -> Value {
    json!({"or_rules": {"rules": [{"header": {"name": ":method", "string_match": {"exact": "GET"}}}]}})
}

fn path(path: &str) -> Value {
    json!({"url_path": {"path": {"exact": path}}})
}

fn account(name: &str) -> Value {
    let name = json!({"exact": format!("spiffe://cluster.local/ns/shop/sa/{name}")});
    json!({"or_ids": {"ids": [{"authenticated": {"principal_name": name}}]}})
}

fn allowed_by(policy: impl Fn(usize) -> Rules, target: &'static str) -> Result<Ready> {
    let policies = (0..POLICIES).map(|n| {
        let (what, by_whom) = policy(n);
        let policy = json!({
            "permissions": [{"and_rules": {"rules": what}}], "principals": [{"and_ids": {"ids": by_whom}}]});
        (format!("ns[shop]-policy[p{n:02}]-rule[0]"), policy)
    });
    let policies: serde_json::Map<String, Value> = policies.collect();
    let config = json!({"rules": {"policies": policies}, "shadow_rules_stat_prefix": "istio_dry_run_allow_"});
    let chain = chain::<Rbac>(config, &context())?;
    let connection = request(target, &[]).connection;
    let request = move || {
        let mut stream = request(target, &[]);
        stream.connection = Arc::clone(&connection);
        stream
    };
    Ok(Ready { chain, request: Box::new(request) })
}
