//! `stream_route`.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Id, Plugins, Upstream};

resource! {
    /// Which connections a route of TCP or UDP takes, and where they go.
    pub struct StreamRoute {
        /// The client: an address or a CIDR.
        pub remote_addr: Option<String>,
        /// The listener's address, or a CIDR.
        pub server_addr: Option<String>,
        /// The listener's port.
        #[serde(default, deserialize_with = "super::optional_integer")]
        pub server_port: Option<i64>,
        /// The name in the client's TLS hello.
        pub sni: Option<String>,
        /// Where connections go, written in place.
        pub upstream: Option<Upstream>,
        /// Where connections go, by reference.
        pub upstream_id: Option<Id>,
        /// The service this route belongs to.
        pub service_id: Option<Id>,
        /// The route's plugins.
        pub plugins: Option<Plugins>,
        /// A protocol that is understood.
        pub protocol: Option<StreamProtocol>,
    }
}

/// A protocol on top of TCP that is understood (xRPC).
#[derive(Debug, Clone, Deserialize)]
pub struct StreamProtocol {
    /// `redis`, `dubbo`, ...
    pub name: String,
    /// The route that hands requests to this one.
    pub superior_id: Option<Id>,
    /// The protocol's own settings.
    pub conf: Option<Map<String, Value>>,
    /// What logs its requests.
    pub logger: Option<Vec<ProtocolLogger>>,
    /// Whether its requests are counted.
    pub metric: Option<ProtocolMetric>,
}

/// One logger of a protocol's requests.
#[derive(Debug, Clone, Deserialize)]
pub struct ProtocolLogger {
    /// The plugin.
    pub name: Option<String>,
    /// Logs only what it holds for.
    pub filter: Option<Vec<Value>>,
    /// The plugin's configuration.
    pub conf: Option<Map<String, Value>>,
}

/// Whether a protocol's requests are counted.
#[derive(Debug, Clone, Deserialize)]
pub struct ProtocolMetric {
    /// Whether they are.
    pub enable: bool,
}
