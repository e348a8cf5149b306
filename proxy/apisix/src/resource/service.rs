//! `service`.

use serde::Deserialize;

use super::{Id, Labels, Plugins, Upstream};

/// What routes share.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// In apisix.yaml the position in the list stands in for an absent one.
    pub id: Option<Id>,
    /// For people, logs and metrics.
    pub name: Option<String>,
    /// For people.
    pub desc: Option<String>,
    /// For people and tools.
    pub labels: Option<Labels>,
    /// Seconds since the epoch.
    #[serde(default, deserialize_with = "super::optional_integer")]
    pub create_time: Option<i64>,
    /// Seconds since the epoch.
    #[serde(default, deserialize_with = "super::optional_integer")]
    pub update_time: Option<i64>,
    /// Plugins that a route's replace by name.
    pub plugins: Option<Plugins>,
    /// Where requests go, written in place.
    pub upstream: Option<Upstream>,
    /// Where requests go, by reference.
    pub upstream_id: Option<Id>,
    /// Lua.
    pub script: Option<String>,
    /// Lets a client upgrade to WebSocket.
    pub enable_websocket: Option<bool>,
    /// Hosts of routes that have none of their own.
    pub hosts: Option<Vec<String>>,
}
