//! Parts of a bootstrap that are for the life of the process.

use prost::{Message, Name};
use serde_json::{Value, json};
use sixfold_core::overload::Settings as Load;
use sixfold_xds_api::json::print::{Mask, Pretty};
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::Bootstrap;
use sixfold_xds_api::pb::envoy::config::core::v3::Node;

/// What only a new start takes of a bootstrap.
#[derive(Debug, Default)]
pub struct Fixed {
    parts: Bootstrap,
    /// The limit of connections of all listeners, which the runtime may have.
    connections: Option<u64>,
}

impl Fixed {
    /// Those parts of a bootstrap, and of what its overload manager compiles to.
    pub(super) fn of(value: Bootstrap, load: Option<&Load>) -> Fixed {
        let Bootstrap { admin, node, stats_config, stats_sinks, stats_flush_interval, .. } = value;
        let Bootstrap { stats_flush, overload_manager, .. } = value;
        let parts = Bootstrap {
            admin,
            node,
            stats_config,
            stats_sinks,
            stats_flush_interval,
            stats_flush,
            overload_manager,
            ..Bootstrap::default()
        };
        let connections = load.and_then(|load| Some(load.connections.as_ref()?.max));
        Fixed { parts, connections }
    }

    /// Names of those that another bootstrap has otherwise.
    pub fn changed(&self, other: &Fixed) -> Vec<&'static str> {
        let (was, is) = (&self.parts, &other.parts);
        let same_manager = was.overload_manager == is.overload_manager;
        let all = [
            ("admin", was.admin == is.admin),
            ("node", was.node == is.node),
            ("stats_config", was.stats_config == is.stats_config),
            ("stats_sinks", was.stats_sinks == is.stats_sinks),
            ("stats_flush_interval", was.stats_flush_interval == is.stats_flush_interval),
            ("stats_flush_on_admin", was.stats_flush == is.stats_flush),
            ("overload_manager", same_manager),
            (
                "overload.global_downstream_max_connections",
                !same_manager || self.connections == other.connections,
            ),
        ];
        all.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
    }

    /// `node` in JSON.
    pub fn node(&self) -> Value {
        let node = self.parts.node.as_ref().map(Node::encode_to_vec).unwrap_or_default();
        let mut shown = Vec::new();
        let written = Pretty::new(&mut shown).message(&Node::full_name(), &node, &Mask::parse(""));
        written.ok().and_then(|()| serde_json::from_slice(&shown).ok()).unwrap_or_else(|| json!({}))
    }
}
