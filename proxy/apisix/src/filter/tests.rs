#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;
use sixfold_core::plugin::ChainBuilder;

use super::*;
use crate::testing;

/// What the filter comes to with these levels, the connection manager's first.
fn filter(levels: &[Value]) -> Result<Vec<String>, String> {
    let registry = with_plugins_filter(testing::registry(), EnvVars::Fixed(HashMap::new()));
    let levels: Vec<Vec<u8>> = levels.iter().map(|level| level.to_string().into_bytes()).collect();
    let (config, overrides) = levels.split_first().unwrap();
    let overrides: Vec<&[u8]> = overrides.iter().map(Vec::as_slice).collect();
    let context =
        BuildContext { scope: "http.in.".into(), resource: "limits/shop".into(), ..testing::build_context() };
    let factory = registry.filter(PLUGINS_FILTER).unwrap();
    let plugin = factory.build(&FilterConfig { config, overrides: &overrides, superseded: false }, &context);
    let mut builder = ChainBuilder::new().reverse_response();
    let told = |error: ConfigError| {
        let all: Vec<String> = error.into_all().iter().map(ToString::to_string).collect();
        all.join("\n")
    };
    builder.add("apisix", plugin.map_err(told)?);
    Ok(builder.build().members().iter().map(|member| member.name.to_string()).collect())
}

#[allow(clippy::needless_pass_by_value)]
fn plugins(plugins: Value) -> Value {
    json!({ "plugins": plugins })
}

#[test]
fn plugins_run_as_parts_of_the_filter() {
    let config = plugins(json!({"refuse": {"status": 401}, "marker": {"text": "filter-marker"}}));
    assert_eq!(filter(&[config]).unwrap(), ["apisix/refuse"], "a plugin without handlers is not there");
    let built = testing::built();
    let marker = built.iter().find(|(_, config)| config["text"] == "filter-marker").unwrap();
    assert_eq!(marker.0, "http.in.limits/shop");
    assert_eq!(marker.1["count"], 7, "defaults are filled in");
    assert_eq!(filter(&[plugins(json!({}))]).unwrap(), ["apisix"], "it does nothing");
}

#[test]
fn a_route_s_plugins_lie_over_those_of_wider_levels() {
    let wide = plugins(json!({"refuse": {"status": 401}}));
    assert_eq!(filter(&[wide.clone(), plugins(json!({"other": {}}))]).unwrap(), ["apisix/refuse"]);
    let off = plugins(json!({"refuse": {"_meta": {"disable": true}}}));
    assert_eq!(filter(&[wide.clone(), off.clone()]).unwrap(), ["apisix"], "nothing is left");
    let on = plugins(json!({"refuse": {"status": 403}}));
    assert_eq!(filter(&[wide, off, on]).unwrap(), ["apisix/refuse"]);
}

/// In APISIX's words, with the path of the field, and all of them.
#[test]
fn faults_are_told_where_they_are() {
    for (config, expected) in [
        (
            plugins(json!({"marker": {"text": 1}})),
            "value.plugins.marker.text: failed to check the configuration of plugin marker err: property \"text\" \
             validation failed: wrong type: expected string, got number",
        ),
        (
            plugins(json!({"marker": {"text": "unbuildable"}})),
            "value.plugins.marker.text: failed to check the configuration of plugin marker err: can't be built",
        ),
        (
            plugins(json!({"markr": {}})),
            "value.plugins.markr: unknown plugin [markr]; did you mean \"marker\"?",
        ),
        (plugins(json!(1)), "value.plugins: must be an object"),
        (json!({}), "value.plugins: is missing"),
        (json!({"plugin": {}, "plugins": {}}), "value.plugin: unknown field; did you mean \"plugins\"?"),
        (json!([]), "value: must be an object"),
    ] {
        assert_eq!(filter(&[config]).unwrap_err(), expected);
    }
    let (broken, fine) = (plugins(json!({"markr": {}})), plugins(json!({"refuse": {}})));
    assert_eq!(filter(&[broken, fine]).unwrap(), ["apisix/refuse"], "a wider level's faults are told there");
    let two = plugins(json!({"marker": {}, "refuse": {"_meta": 1}}));
    let said = filter(&[plugins(json!({})), two]).unwrap_err();
    assert!(said.contains("plugins.marker") && said.contains("plugins.refuse"), "{said}");
}

#[test]
fn registry_keeps_the_filters_it_has() {
    let registry = with_plugins_filter(testing::registry(), testing::environment());
    assert!(registry.filter("envoy.filter").is_some());
    let factory: &Arc<FilterFactory> = registry.filter(PLUGINS_FILTER).unwrap();
    assert!(factory.json && factory.told_apart && !factory.stateless);
}
