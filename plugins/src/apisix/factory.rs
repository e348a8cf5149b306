//! Factories of plugins that are configured by JSON.

use serde::de::DeserializeOwned;
use serde_json::Value;
use sixfold_core::plugin::{BuildContext, Plugin, PluginFactory};
use std::marker::PhantomData;
use std::sync::Arc;

/// What building a plugin comes to.
pub(crate) type Made = Result<Arc<dyn Plugin>, String>;

/// The factory of one of APISIX's plugins: `make` gets the configuration as its own type.
pub(crate) fn apisix<C: DeserializeOwned + 'static>(
    name: &'static str,
    priority: i64,
    schema: &'static str,
    make: fn(C, &BuildContext) -> Made,
) -> Arc<dyn PluginFactory> {
    Arc::new(Factory { name, priority, schema, make, config: PhantomData })
}

struct Factory<C> {
    name: &'static str,
    priority: i64,
    schema: &'static str,
    make: fn(C, &BuildContext) -> Made,
    config: PhantomData<fn() -> C>,
}

impl<C: DeserializeOwned + 'static> PluginFactory for Factory<C> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn priority(&self) -> i64 {
        self.priority
    }

    fn schema(&self) -> Option<&'static str> {
        Some(self.schema)
    }

    fn build(&self, config: &Value, context: &BuildContext) -> Made {
        let config = C::deserialize(config).map_err(|e| e.to_string())?;
        (self.make)(config, context)
    }
}
