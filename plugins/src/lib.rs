//! Plugins of sixfold: APISIX plugins and Envoy HTTP filters, one module each.
//!
//! A plugin is a module of `apisix` or `envoy` with a `factory()`, and a line in `factories` there. APISIX's
//! plugins keep their schema as data in `plugins/schemas`. Parts below several plugins are in `shared`.

mod apisix;
mod envoy;
mod shared;
#[cfg(test)]
mod testing;

pub use apisix::prometheus;
pub use shared::tower_layer;

use sixfold_core::plugin::Registry;

/// Every plugin of this crate, by APISIX's name or the type URL of an Envoy filter.
pub fn registry() -> Registry {
    let mut registry = Registry::new();
    for factory in apisix::factories().into_iter().chain(envoy::factories()) {
        registry.add(factory);
    }
    registry
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn every_apisix_plugin_has_a_schema_that_is_json() {
        let registry = super::registry();
        let schemas: Vec<_> = registry.names().filter_map(|n| registry.get(n).unwrap().schema()).collect();
        assert_eq!(schemas.len(), 6);
        for schema in schemas {
            let schema: serde_json::Value = serde_json::from_str(schema).unwrap();
            assert_eq!(schema["type"], "object");
        }
        assert_eq!(registry.get("limit-count").unwrap().priority(), 1002);
    }

    #[test]
    fn the_guide_s_example_is_this_file_and_works() {
        let guide = include_str!("../../docs/plugins/write-one.md");
        assert!(
            guide.contains(include_str!("apisix/stamp.rs")),
            "docs/plugins/write-one.md shows another plugin"
        );
        let build = |config| super::apisix::stamp::factory().build(&config, &crate::testing::context());
        let plugin = build(serde_json::json!({"name": "x-served-by", "value": "sixfold"})).unwrap();
        let mut stream = crate::testing::stream("/", &[]);
        assert!(crate::testing::now(plugin.header_filter(&mut stream, 0)).is_none());
        assert_eq!(stream.response.headers.get("x-served-by"), Some(&b"sixfold"[..]));
        let refused = build(serde_json::json!({"name": "no name", "value": ""})).err();
        assert_eq!(refused.as_deref(), Some("name: 'no name' is not a header name"));
    }
}
