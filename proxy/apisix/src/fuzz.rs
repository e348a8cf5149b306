//! What must hold for any bytes at all that stand in a configuration file. The fuzz target in `proxy/fuzz`
//! calls [`load`], and so does a test on stable; a broken promise is a failed assertion.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use sixfold_core::access_log::{LogSink, LogTarget, OpenLog};
use sixfold_core::document::Format;
use sixfold_core::plugin::{BuildContext, Callout, CalloutError, CalloutFuture, CalloutRequest, Registry};
use sixfold_core::router::RouteTableCell;

use crate::config::{Config, Environment};
use crate::file::{self, Item};
use crate::source::{ROUTE_TABLE, Resources, Setup, Source};

const CONFIG: &str = "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}";

/// The bytes as an apisix.yaml, an apisix.json and a config.yaml.
///
/// Splitting a file must give what parsing it gives; a file that was taken must be taken again without a
/// change; one that was refused must say why.
pub fn load(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let environment = Environment::Fixed(HashMap::new());
    if let Err(errors) = Config::parse(text, "config.yaml", &environment) {
        assert!(!errors.is_empty(), "refused without a reason");
    }
    split_agrees_with_parse(text);
    let Ok(config) = Config::parse(CONFIG, "config.yaml", &environment) else { return };
    let mut source = Source::new(config, PathBuf::new(), setup(Registry::new()));
    for (format, name) in [(Format::Yaml, "apisix.yaml"), (Format::Json, "apisix.json")] {
        let resources = Resources { text, format, name };
        match source.update(resources) {
            Ok(_) => {
                let again = source.update(resources);
                assert!(again.is_ok_and(|diff| diff.is_empty()), "the same file is a change");
            }
            Err(errors) => assert!(!errors.is_empty(), "refused without a reason"),
        }
    }
}

fn split_agrees_with_parse(text: &str) {
    let Some(items) = file::split(text) else { return };
    let Some(nodes) = items.iter().map(Item::parse).collect::<Option<Vec<_>>>() else { return };
    let whole = file::parse(text, Format::Yaml, &Environment::Fixed(HashMap::new()));
    let whole = whole.unwrap_or_else(|errors| {
        assert!(errors.is_empty(), "the split takes what the parser refuses: {errors:?}");
        Vec::new()
    });
    assert_eq!(items.len(), whole.len(), "another number of items");
    for ((split, node), parsed) in items.iter().zip(nodes).zip(whole) {
        assert_eq!((split.section, split.index), (parsed.section, parsed.index));
        // Places may differ by where an empty value is said to be.
        let parsed = parsed.parse().map(|node| (node.place, node.to_json()));
        assert_eq!(Some((node.place, node.to_json())), parsed, "another item");
    }
}

/// A setup that reaches nothing outside of this process.
pub(crate) fn setup(registry: Registry) -> Setup {
    Setup {
        registry,
        context: BuildContext {
            callout: Arc::new(Nowhere),
            metrics: sixfold_core::metrics::Registry::new(),
            shared: Arc::default(),
            resource: "".into(),
            attributes: Arc::new(serde_json::Value::Null),
        },
        clusters: Arc::default(),
        routes: RouteTableCell::new(ROUTE_TABLE, None),
        logs: Arc::new(Nowhere),
        environment: Environment::Fixed(HashMap::new()),
    }
}

struct Nowhere;

impl Callout for Nowhere {
    fn send(&self, _: CalloutRequest) -> CalloutFuture {
        Box::pin(async { Err(CalloutError::Timeout) })
    }
}

impl LogSink for Nowhere {
    fn write(&self, _: &[u8]) {}
}

impl OpenLog for Nowhere {
    fn open(&self, _: &LogTarget) -> Result<Arc<dyn LogSink>, String> {
        Ok(Arc::new(Nowhere))
    }
}
