//! Plugins of sixfold: APISIX plugins and Envoy HTTP filters, one module each.
//!
//! A plugin is a module of `apisix` or `envoy` with a `factory()`, and a line in `factories` there. APISIX's
//! plugins keep their schema as data in `plugins/schemas`. Parts below several plugins are in `shared`.

mod apisix;
mod envoy;
pub mod fuzz;
mod shared;
#[cfg(test)]
mod testing;

pub use apisix::prometheus;
pub use shared::tower_layer;

use sixfold_core::plugin::Registry;

/// Every plugin of this crate.
pub fn registry() -> Registry {
    let registry = Registry::new(apisix::factories(), envoy::factories());
    let registry = registry.with_network_filters(envoy::network_factories());
    with_lua(registry)
}

#[cfg(feature = "lua")]
fn with_lua(registry: Registry) -> Registry {
    registry.with_filter(envoy::lua())
}

#[cfg(not(feature = "lua"))]
fn with_lua(registry: Registry) -> Registry {
    registry.without_filter(
        "envoy.extensions.filters.http.lua.v3.Lua",
        "this binary was built without it: build with --features lua",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::testing;
    use serde_json::json;

    #[test]
    fn every_apisix_plugin_has_a_schema_that_is_json() {
        let registry = super::registry();
        let factories: Vec<_> =
            registry.apisix_names().map(|name| registry.apisix(name).unwrap().1.clone()).collect();
        assert!(factories.len() > 6);
        let schemas = factories.iter().flat_map(|factory| {
            [Some(factory.schema), factory.consumer_schema, factory.metadata_schema].into_iter().flatten()
        });
        for schema in schemas {
            let schema: serde_json::Value = serde_json::from_str(schema).unwrap();
            assert_eq!(schema["type"], "object");
        }
        assert_eq!(registry.apisix("limit-count").unwrap().1.priority, 1002);
    }

    /// Defaults stand in the schema alone: what it fills in is all that a configuration may lack.
    #[test]
    fn the_least_configuration_is_enough() {
        for (name, config) in [
            ("cors", json!({})),
            ("echo", json!({"body": ""})),
            ("example-plugin", json!({"i": 0})),
            ("fault-injection", json!({"abort": {"http_status": 200}})),
            ("fault-injection", json!({"delay": {"duration": 1}})),
            ("forward-auth", json!({"uri": "http://a"})),
            ("ip-restriction", json!({"whitelist": ["::1"]})),
            ("limit-conn", json!({"conn": 1, "burst": 0, "default_conn_delay": 1, "key": "a"})),
            (
                "limit-conn",
                json!({"default_conn_delay": 1, "rules": [{"conn": 1, "burst": 0, "key": "$uri"}]}),
            ),
            ("limit-count", json!({"count": 1, "time_window": 1})),
            ("limit-count", json!({"rules": [{"count": 1, "time_window": 1, "key": "$uri"}]})),
            ("limit-req", json!({"rate": 1, "burst": 0, "key": "a"})),
            ("mocking", json!({"response_example": ""})),
            ("prometheus", json!({})),
            ("proxy-rewrite", json!({"host": "a"})),
            ("real-ip", json!({"source": "http_a"})),
            ("redirect", json!({"http_to_https": true})),
            ("request-id", json!({})),
            ("response-rewrite", json!({"filters": [{"regex": "a", "replace": "b"}]})),
            ("traffic-split", json!({"rules": [{}]})),
        ] {
            testing::plugin(name, &config);
        }
    }

    #[test]
    fn the_guide_s_example_is_this_file_and_works() {
        let guide = include_str!("../../docs/plugins/write-one.md");
        assert!(
            guide.contains(include_str!("apisix/stamp.rs")),
            "docs/plugins/write-one.md shows another plugin"
        );
        let build =
            |config| testing::build_with(&super::apisix::stamp::factory(), &config, &testing::context());
        let plugin = build(json!({"name": "x-served-by", "value": "sixfold"})).unwrap();
        let mut stream = testing::stream("/", &[]);
        assert!(testing::now(plugin.header_filter(&mut stream)).is_none());
        assert_eq!(stream.response.headers.get("x-served-by"), Some(&b"sixfold"[..]));
        let refused = build(json!({"name": "no name", "value": ""})).err();
        assert_eq!(refused.as_deref(), Some("name: 'no name' is not a header name"));
    }
}
