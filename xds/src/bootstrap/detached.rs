//! An environment that reaches nothing outside of this process: for checking bootstraps.

use std::sync::Arc;

use serde_json::Value;
use sixfold_core::access_log::{LogSink, LogTarget, OpenLog};
use sixfold_core::metrics;
use sixfold_core::plugin::{BuildContext, Callout, CalloutError, CalloutFuture, CalloutRequest, Registry};

use super::Environment;

impl Environment {
    /// An environment whose results are thrown away: no access log is opened, no callout is sent.
    pub fn detached(plugins: Registry) -> Environment {
        let registry = metrics::Registry::new();
        Environment {
            clusters: Arc::default(),
            registry: registry.clone(),
            plugins,
            build: BuildContext {
                callout: Arc::new(Nowhere),
                metrics: registry,
                shared: Arc::default(),
                resource: "".into(),
                attributes: Arc::new(Value::Null),
            },
            open_log: Arc::new(Nowhere),
            local_address: None,
        }
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
