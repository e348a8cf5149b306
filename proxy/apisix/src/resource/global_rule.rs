//! `global_rule`.

use serde::Deserialize;

use super::{Id, Plugins};

/// Plugins that run for every request, before the route's in each phase.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GlobalRule {
    /// In apisix.yaml the position in the list stands in for an absent one.
    pub id: Option<Id>,
    /// Seconds since the epoch.
    #[serde(default, deserialize_with = "super::optional_integer")]
    pub create_time: Option<i64>,
    /// Seconds since the epoch.
    #[serde(default, deserialize_with = "super::optional_integer")]
    pub update_time: Option<i64>,
    /// A plugin that two rules have runs in neither.
    pub plugins: Plugins,
}
