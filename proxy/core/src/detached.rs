//! Surroundings that reach nothing outside of this process: for checking configuration, whose result is thrown
//! away, and for tests.

use crate::access_log::{LogSink, LogTarget, OpenLog};
use crate::metrics;
use crate::plugin::{
    BuildContext, Callout, CalloutError, CalloutFuture, CalloutRequest, CalloutStreamFuture,
};
use serde_json::Value;
use std::sync::Arc;

/// Opens no log and sends no callout: every callout times out at once.
pub struct Nowhere;

impl Callout for Nowhere {
    fn send(&self, _: CalloutRequest) -> CalloutFuture {
        Box::pin(async { Err(CalloutError::Timeout) })
    }

    fn open(&self, _: CalloutRequest) -> CalloutStreamFuture {
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

impl BuildContext {
    /// Surroundings of plugins that are built to be thrown away.
    pub fn detached() -> BuildContext {
        BuildContext {
            callout: Arc::new(Nowhere),
            metrics: metrics::Registry::new(),
            shared: Arc::default(),
            resource: "".into(),
            attributes: Arc::new(Value::Null),
        }
    }
}
