//! An environment that reaches nothing outside of this process.

use std::sync::Arc;

use sixfold_core::detached::Nowhere;
use sixfold_core::plugin::{BuildContext, Registry};

use super::Environment;

impl Environment {
    /// An environment whose results are thrown away: no access log is opened, no callout is sent.
    pub fn detached(plugins: Registry) -> Environment {
        let build = BuildContext::detached();
        Environment {
            clusters: Arc::default(),
            route_tables: Arc::default(),
            filter_lists: Arc::default(),
            registry: build.metrics.clone(),
            plugins,
            build,
            log_sinks: Arc::new(Nowhere),
            local_address: None,
        }
    }
}
