//! `consumer`, `credential` and `consumer_group`.

use serde::Deserialize;

use super::{Id, Labels, Plugins};

/// A user of the gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consumer {
    /// Beside the username, which is what it is found by.
    pub id: Option<Id>,
    /// The id.
    pub username: String,
    /// The group whose plugins it shares.
    pub group_id: Option<Id>,
    /// For people.
    pub desc: Option<String>,
    /// For people and tools; `custom_id` is told to upstreams.
    pub labels: Option<Labels>,
    /// Seconds since the epoch.
    #[serde(default, deserialize_with = "super::optional_integer")]
    pub create_time: Option<i64>,
    /// Seconds since the epoch.
    #[serde(default, deserialize_with = "super::optional_integer")]
    pub update_time: Option<i64>,
    /// How it authenticates, and what runs for it.
    pub plugins: Option<Plugins>,
}

resource! {
    /// One more way for a consumer to authenticate.
    pub struct Credential {
        /// One plugin that authenticates.
        pub plugins: Option<Plugins>,
    }
}

resource! {
    /// Plugins that consumers share.
    pub struct ConsumerGroup {
        /// A consumer's own replace them by name.
        pub plugins: Plugins,
    }
}
