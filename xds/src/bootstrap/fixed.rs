//! Parts of a bootstrap that are for the life of the process.

use prost::{Message, Name};
use serde_json::{Value, json};
use sixfold_xds_api::json::print::{Mask, Pretty};
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::Bootstrap;
use sixfold_xds_api::pb::envoy::config::core::v3::Node;

/// What only a new start takes of a bootstrap.
#[derive(Debug, Default)]
pub struct Fixed(Bootstrap);

impl Fixed {
    /// Those parts of a bootstrap.
    pub(super) fn of(value: Bootstrap) -> Fixed {
        let Bootstrap { admin, node, stats_config, stats_sinks, stats_flush_interval, .. } = value;
        let Bootstrap { stats_flush, overload_manager, .. } = value;
        Fixed(Bootstrap {
            admin,
            node,
            stats_config,
            stats_sinks,
            stats_flush_interval,
            stats_flush,
            overload_manager,
            ..Bootstrap::default()
        })
    }

    /// Names of those that another bootstrap has otherwise.
    pub fn changed(&self, other: &Fixed) -> Vec<&'static str> {
        let (was, is) = (&self.0, &other.0);
        let all = [
            ("admin", was.admin == is.admin),
            ("node", was.node == is.node),
            ("stats_config", was.stats_config == is.stats_config),
            ("stats_sinks", was.stats_sinks == is.stats_sinks),
            ("stats_flush_interval", was.stats_flush_interval == is.stats_flush_interval),
            ("stats_flush_on_admin", was.stats_flush == is.stats_flush),
            ("overload_manager", was.overload_manager == is.overload_manager),
        ];
        all.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
    }

    /// `node` in JSON.
    pub fn node(&self) -> Value {
        let node = self.0.node.as_ref().map(Node::encode_to_vec).unwrap_or_default();
        let mut shown = Vec::new();
        let written = Pretty::new(&mut shown).message(&Node::full_name(), &node, &Mask::parse(""));
        written.ok().and_then(|()| serde_json::from_slice(&shown).ok()).unwrap_or_else(|| json!({}))
    }
}
