//! `_meta`, which every plugin's configuration may have.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use sixfold_core::expr::Expr;
use sixfold_core::format::{BodyVariable, noticing_bodies};
use sixfold_core::plugin::Guard;

/// What `_meta` says.
#[derive(Clone, Default)]
pub(crate) struct Meta {
    /// Leaves the plugin out.
    pub(crate) disable: bool,
    /// Instead of the plugin's own priority.
    pub(crate) priority: Option<i64>,
    /// Runs the plugin only for requests that it holds for.
    filter: Option<Arc<Expr>>,
    /// Whether that has variables of the request's body.
    pub(crate) body_variables: Vec<Arc<BodyVariable>>,
    /// Instead of the body of the plugin's refusals.
    error_response: Option<Bytes>,
}

/// What is wrong with one beyond its schema.
pub(super) enum MetaFault {
    /// `pre_function` is Lua.
    Lua,
    /// `filter` is no expression, for this reason.
    Filter(String),
}

impl Meta {
    /// Reads a value that has passed its schema.
    pub(super) fn read(meta: &Value) -> Result<Meta, MetaFault> {
        if meta.get("pre_function").is_some() {
            return Err(MetaFault::Lua);
        }
        let (filter, body_variables) = noticing_bodies(|| meta.get("filter").map(Expr::new).transpose());
        let filter = filter.map_err(|e| MetaFault::Filter(e.to_string()))?;
        Ok(Meta {
            disable: meta.get("disable").and_then(Value::as_bool).unwrap_or(false),
            priority: meta.get("priority").and_then(Value::as_f64).map(|priority| priority as i64),
            filter: filter.map(Arc::new),
            body_variables,
            error_response: meta.get("error_response").map(|body| match body {
                Value::String(text) => Bytes::from(text.clone()),
                other => Bytes::from(format!("{other}\n")),
            }),
        })
    }

    /// What goes around the plugin.
    pub(super) fn guard(&self) -> Guard {
        Guard { when: self.filter.clone(), refusal: self.error_response.clone() }
    }
}
