//! A setup that reaches nothing outside of this process.

use std::sync::Arc;

use sixfold_core::detached::Nowhere;
use sixfold_core::plugin::{BuildContext, Registry};
use sixfold_core::router::{RouteTableCell, TableKey};

use super::{ROUTE_TABLE, Setup};
use crate::config::Environment;

impl Setup {
    /// A setup whose results are thrown away: no access log is opened, no callout is sent, and no model sees
    /// what is compiled.
    pub fn detached(registry: Registry, environment: Environment) -> Setup {
        Setup {
            registry,
            context: BuildContext::detached(),
            clusters: Arc::default(),
            routes: RouteTableCell::new(TableKey::named(ROUTE_TABLE), None),
            logs: Arc::new(Nowhere),
            environment,
        }
    }
}
