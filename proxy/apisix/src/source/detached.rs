//! A setup that reaches nothing outside of this process: for checking configuration and for tests.

use std::sync::Arc;

use serde_json::Value;
use sixfold_core::access_log::{LogSink, LogTarget, OpenLog};
use sixfold_core::metrics;
use sixfold_core::plugin::{BuildContext, Callout, CalloutError, CalloutFuture, CalloutRequest, Registry};
use sixfold_core::router::RouteTableCell;

use super::{ROUTE_TABLE, Setup};
use crate::config::Environment;

impl Setup {
    /// A setup whose results are thrown away: no access log is opened, no callout is sent, and no model sees
    /// what is compiled.
    pub fn detached(registry: Registry, environment: Environment) -> Setup {
        Setup {
            registry,
            context: BuildContext {
                callout: Arc::new(Nowhere),
                metrics: metrics::Registry::new(),
                shared: Arc::default(),
                resource: "".into(),
                attributes: Arc::new(Value::Null),
            },
            clusters: Arc::default(),
            routes: RouteTableCell::new(ROUTE_TABLE, None),
            logs: Arc::new(Nowhere),
            environment,
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
