//! `service`.

use super::{Id, Plugins, Upstream};

resource! {
    /// What routes share.
    pub struct Service {
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
}
