#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, context, stream};
use serde_json::json;

fn built(config: &str, levels: &[&str], context: &BuildContext) -> Result<testing::Alone, String> {
    testing::filter_of_in::<Config, Config>(&factory(), config, levels, context)
}

/// What is left by request rules, as `namespace.key` and value.
async fn left(rules: &str, headers: &[(&str, &str)]) -> Vec<(String, Value)> {
    let filter = built(&format!("request_rules: [{rules}]"), &[], &context()).unwrap();
    let mut stream = stream("/path?x=1", headers);
    assert!(filter.access(&mut stream).await.is_none());
    stream.metadata.into_iter().map(|(namespace, key, value)| (format!("{namespace}.{key}"), value)).collect()
}

fn one(key: &str, value: impl Into<Value>) -> Vec<(String, Value)> {
    vec![(key.to_owned(), value.into())]
}

#[tokio::test]
async fn headers_and_cookies_are_left_as_metadata() {
    let version = "{header: x-version, on_header_present: {metadata_namespace: n, key: v}, on_header_missing: {metadata_namespace: n, key: v, value: none}}";
    assert_eq!(left(version, &[("x-version", "2")]).await, one("n.v", "2"));
    assert_eq!(left(version, &[("x-version", "2"), ("x-version", "3")]).await, one("n.v", "2,3"));
    assert_eq!(left(version, &[]).await, one("n.v", "none"));
    assert!(left(version, &[("x-version", "")]).await.is_empty(), "there, but empty");
    let unnamed = "{header: ':path', on_header_present: {key: p}}";
    assert_eq!(left(unnamed, &[]).await, one(&format!("{NAME}.p"), "/path?x=1"));
    let cookie = "{cookie: s, on_header_present: {metadata_namespace: n, key: c, type: NUMBER}}";
    assert_eq!(left(cookie, &[("cookie", "a=b; s=7")]).await, one("n.c", 7));
    assert!(left(cookie, &[("cookie", "s=x")]).await.is_empty());
    let rewritten = "{header: x, on_header_present: {metadata_namespace: n, key: k, regex_value_rewrite: {pattern: {regex: 'v(.)'}, substitution: '\\1!'}}}";
    assert_eq!(left(rewritten, &[("x", "v1v2")]).await, one("n.k", "1!2!"));
    let decoded = "{header: x, on_header_present: {metadata_namespace: n, key: k, encode: BASE64}}";
    assert_eq!(left(decoded, &[("x", "aGk")]).await, one("n.k", "hi"));
    assert!(left(decoded, &[("x", "!")]).await.is_empty());
    let proto = "{header: x, on_header_present: {metadata_namespace: n, key: k, encode: BASE64, type: PROTOBUF_VALUE}}";
    assert_eq!(left(proto, &[("x", "GgJoaQ==")]).await, one("n.k", "hi"));
}

#[tokio::test]
async fn a_header_may_be_taken_away_and_responses_have_rules_too() {
    let context = context();
    let config = "{stat_prefix: s, request_rules: [{header: x, remove: true, on_header_present: {metadata_namespace: n, key: k}}], response_rules: [{header: ':status', on_header_present: {metadata_namespace: n, key: s}}]}";
    let filter = built(config, &[], &context).unwrap();
    let mut stream = stream("/", &[("x", &"y".repeat(MAX_VALUE))]);
    stream.response.status = 204;
    filter.access(&mut stream).await;
    assert!(!stream.request.headers.contains("x") && stream.metadata.is_empty(), "it is too long");
    filter.header_filter(&mut stream).await;
    assert_eq!(stream.metadata, [("n".into(), "s".into(), json!("204"))]);
    let counted = [
        "request_rules_processed",
        "request_metadata_added",
        "header_value_too_long",
        "response_rules_processed",
        "response_metadata_added",
    ];
    let counted = counted.map(|name| context.metrics.sum("http_filter_name.s.", name));
    assert_eq!(counted, [1, 0, 1, 1, 1]);
}

#[tokio::test]
async fn wrong_rules_are_refused_and_a_route_has_its_own() {
    let refused = |rule: &str| built(&format!("request_rules: [{rule}]"), &[], &context()).err().unwrap();
    for (rule, reason) in [
        ("{on_header_present: {key: k}}", "request_rules[0]: one of header and cookie is missing"),
        ("{header: x}", "request_rules[0]: one of on_header_present and on_header_missing is missing"),
        (
            "{header: x, cookie: y, on_header_present: {key: k}}",
            "request_rules[0].cookie: must not be given together with header",
        ),
        (
            "{cookie: y, remove: true, on_header_present: {key: k}}",
            "request_rules[0].remove: must not be given together with cookie",
        ),
        (
            "{header: ':path', remove: true, on_header_present: {key: k}}",
            "request_rules[0].remove: \":path\" can't be removed",
        ),
        (
            "{header: x, on_header_missing: {key: k}}",
            "request_rules[0].on_header_missing.value: must not be empty",
        ),
        (
            "{header: x, on_header_present: {key: k, value: v, regex_value_rewrite: {pattern: {regex: a}}}}",
            "request_rules[0].on_header_present.regex_value_rewrite: must not be given together with value",
        ),
    ] {
        assert_eq!(refused(rule), reason);
    }
    let empty = built("{}", &["{}"], &context()).err().unwrap();
    assert_eq!(empty, "settings of a route must have request_rules or response_rules");
    let of = |key: &str| {
        format!("request_rules: [{{header: x, on_header_present: {{metadata_namespace: n, key: {key}}}}}]")
    };
    let filter = built(&of("own"), &[&of("host"), &of("route")], &context()).unwrap();
    let mut stream = stream("/", &[("x", "1")]);
    filter.access(&mut stream).await;
    assert_eq!(stream.metadata, [("n".into(), "route".into(), json!("1"))]);
}
