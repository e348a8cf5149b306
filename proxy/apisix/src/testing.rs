//! Plugins and surroundings for tests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use sixfold_core::access_log::{LogSink, LogTarget, OpenLog};
use sixfold_core::plugin::{
    BuildContext, Callout, CalloutError, CalloutFuture, CalloutRequest, Phases, Plugin, PluginFactory,
    Registry,
};

use crate::config::{Config, Environment};
use crate::fuzz;
use crate::source::{Setup, Source};

/// Every configuration that was built, with the resource it was built for.
static BUILT: Mutex<Vec<(String, Value)>> = Mutex::new(Vec::new());

pub(crate) fn built() -> Vec<(String, Value)> {
    BUILT.lock().clone()
}

struct Factory {
    name: &'static str,
    priority: i64,
    schema: Option<&'static str>,
}

struct Instance(&'static str);

impl Plugin for Instance {
    fn name(&self) -> &str {
        self.0
    }

    fn phases(&self) -> Phases {
        Phases::ACCESS
    }
}

impl PluginFactory for Factory {
    fn name(&self) -> &'static str {
        self.name
    }

    fn priority(&self) -> i64 {
        self.priority
    }

    fn schema(&self) -> Option<&'static str> {
        self.schema
    }

    fn build(&self, config: &Value, context: &BuildContext) -> Result<Arc<dyn Plugin>, String> {
        if config.get("text").and_then(Value::as_str) == Some("unbuildable") {
            return Err("text can't be built".to_owned());
        }
        BUILT.lock().push((context.resource.to_string(), config.clone()));
        Ok(Arc::new(Instance(self.name)))
    }
}

pub(crate) fn registry() -> Registry {
    const MARKER: &str = r#"{
        "type": "object",
        "properties": {"text": {"type": "string"}, "count": {"type": "integer", "default": 7}},
        "required": ["text"]
    }"#;
    const ANY: &str = r#"{"type": "object"}"#;
    let mut registry = Registry::new();
    for (name, priority, schema) in [
        ("marker", 100, Some(MARKER)),
        ("other", 200, Some(ANY)),
        ("late", 50, Some(ANY)),
        ("prometheus", 10, Some(ANY)),
        ("envoy.filter", 0, None),
    ] {
        registry.add(Arc::new(Factory { name, priority, schema }));
    }
    registry
}

pub(crate) fn context() -> BuildContext {
    setup().context
}

pub(crate) fn environment() -> Environment {
    Environment::Fixed(HashMap::new())
}

pub(crate) fn setup() -> Setup {
    fuzz::setup(registry())
}

/// A source with a static configuration of which `extra` is part.
pub(crate) fn source(extra: &str) -> Source {
    let text =
        format!("deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n{extra}");
    let config = Config::parse(&text, "config.yaml", &environment()).unwrap();
    Source::new(config, PathBuf::from("apisix.yaml"), setup())
}
