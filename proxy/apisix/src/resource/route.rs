//! `route`.

use serde_json::Value;

use super::{Id, Plugins, Timeout, Upstream};

resource! {
    /// Which requests a route takes, and what happens to them.
    pub struct Route {
        /// The path; this or `uris`.
        pub uri: Option<String>,
        /// Several paths.
        pub uris: Option<Vec<String>>,
        /// Among routes with the same path the largest is asked first.
        #[serde(deserialize_with = "super::integer")]
        pub priority: i64,
        /// Any method when empty.
        #[serde(default)]
        pub methods: Vec<String>,
        /// A host; this or `hosts`.
        pub host: Option<String>,
        /// Several hosts.
        pub hosts: Option<Vec<String>>,
        /// An address or a CIDR; this or `remote_addrs`.
        pub remote_addr: Option<String>,
        /// Several addresses or CIDRs.
        pub remote_addrs: Option<Vec<String>>,
        /// Instead of the upstream's.
        pub timeout: Option<Timeout>,
        /// Expressions over variables of the request.
        pub vars: Option<Vec<Value>>,
        /// Lua.
        pub filter_func: Option<String>,
        /// Lua.
        pub script: Option<String>,
        /// The id that the dashboard keeps a script under.
        pub script_id: Option<Id>,
        /// The route's own plugins.
        pub plugins: Option<Plugins>,
        /// A plugin config whose plugins fill the gaps.
        pub plugin_config_id: Option<Id>,
        /// Where requests go, written in place.
        pub upstream: Option<Upstream>,
        /// The service this route belongs to.
        pub service_id: Option<Id>,
        /// Where requests go, by reference.
        pub upstream_id: Option<Id>,
        /// Lets a client upgrade to WebSocket; the service's value holds when absent.
        pub enable_websocket: Option<bool>,
        /// Whether the route takes part in routing.
        #[serde(deserialize_with = "super::enabled")]
        pub status: bool,
    }
}

impl Route {
    /// The paths, of `uri` or of `uris`.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.uri.iter().chain(self.uris.iter().flatten()).map(String::as_str)
    }

    /// The route's own hosts, of `host` or of `hosts`.
    pub fn own_hosts(&self) -> impl Iterator<Item = &str> {
        self.host.iter().chain(self.hosts.iter().flatten()).map(String::as_str)
    }

    /// The client addresses, of `remote_addr` or of `remote_addrs`.
    pub fn client_addresses(&self) -> impl Iterator<Item = &str> {
        self.remote_addr.iter().chain(self.remote_addrs.iter().flatten()).map(String::as_str)
    }
}
