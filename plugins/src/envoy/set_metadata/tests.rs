#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, context, stream};
use serde_json::json;

/// What is left, as one object by namespace and key, of a request that had `a.b` set to a list before.
async fn left(config: &str, levels: &[&str]) -> (Value, u64) {
    let context = context();
    let filter = testing::filter_of_in::<Config, Config>(&factory(), config, levels, &context).unwrap();
    let mut stream = stream("/", &[]);
    stream.metadata.push(("a".into(), "b".into(), json!([1])));
    assert!(filter.access(&mut stream).await.is_none());
    let mut all = json!({});
    for (namespace, key, value) in stream.metadata {
        all[&*namespace][&*key] = value;
    }
    (all, context.metrics.sum("set_metadata.", "overwrite_denied"))
}

#[tokio::test]
async fn values_are_left_merged_or_denied() {
    let config = "metadata: [{metadata_namespace: n, value: {k: {x: 1, l: [1]}}}, {metadata_namespace: n, allow_overwrite: true, value: {k: {y: 2, l: [2]}, s: t}}, {metadata_namespace: a, value: {b: 0}}, {metadata_namespace: none}]";
    assert_eq!(
        left(config, &[]).await,
        (json!({"a": {"b": [1]}, "n": {"k": {"x": 1, "l": [1, 2], "y": 2}, "s": "t"}}), 1)
    );
}

#[tokio::test]
async fn the_older_form_adds_to_what_is_there_and_a_level_to_both() {
    let config = "{metadata_namespace: a, value: {b: [2], c: true}}";
    assert_eq!(left(config, &[]).await, (json!({"a": {"b": [1, 2], "c": true}}), 0));
    let level = "{metadata: [{metadata_namespace: r, value: {of: route}}]}";
    let own = json!({"a": {"b": [1, 2], "c": true}, "r": {"of": "route"}});
    assert_eq!(left(config, &["{metadata_namespace: h, value: {of: host}}", level]).await, (own, 0));
}
