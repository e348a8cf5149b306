//! `plugin_config`.

use serde::Deserialize;

use super::{Id, Labels, Plugins};

/// Plugins that routes share.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginConfig {
    /// What routes refer to.
    pub id: Option<Id>,
    /// For people.
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
    /// They fill the gaps of a route's own.
    pub plugins: Plugins,
}
