//! Under whose terms a connection is passed on.

use sixfold_core::access_log::AccessLog;
use sixfold_core::cluster::Cluster;
use sixfold_core::listener::{ConnectionFilter, L4Proxy, L4Route, L4Stats, TcpProxy, TcpStats};
use sixfold_core::proxy_protocol::{Told, Version};
use sixfold_core::stream::Stream;
use std::net::SocketAddr;
use std::sync::Arc;

/// The server name that endpoints are asked for where the client has asked for none (`proxy_ssl_name` of APISIX).
const NO_NAME: &str = "apisix_backend";

/// What a connection is passed on by.
#[derive(Clone)]
pub(crate) struct Terms {
    pub(crate) proxy: Arc<TcpProxy>,
    /// The route and its listener, where a table of routes has chosen.
    pub(crate) routed: Option<Routed>,
}

/// A connection that a table of routes has sent on.
#[derive(Clone)]
pub(crate) struct Routed {
    pub(crate) route: Arc<L4Route>,
    pub(crate) listener: Arc<L4Proxy>,
    /// The server name that the client has asked for by TLS which ends here.
    pub(crate) server_name: Option<Arc<str>>,
    /// The client, as far as whoever has told of it is believed.
    pub(crate) client: SocketAddr,
}

impl Terms {
    /// Those of a proxy alone.
    pub(crate) fn of(proxy: Arc<TcpProxy>) -> Terms {
        Terms { proxy, routed: None }
    }

    /// Those of a route.
    pub(crate) fn routed(routed: Routed) -> Terms {
        Terms { proxy: routed.route.proxy.clone(), routed: Some(routed) }
    }

    /// Says in a context whose connection it is.
    pub(crate) fn enter(&self, stream: &mut Stream) {
        if let Some(Routed { route, client, .. }) = &self.routed {
            stream.route = Some(route.route.clone());
            stream.remote = *client;
        }
    }

    /// Plugins of the route.
    pub(crate) fn filters(&self) -> Arc<[Arc<dyn ConnectionFilter>]> {
        self.routed.as_ref().map(|routed| routed.route.filters.clone()).unwrap_or_default()
    }

    pub(crate) fn stats(&self) -> &TcpStats {
        self.routed.as_ref().map_or(&self.proxy.stats, |routed| &routed.listener.stats)
    }

    /// What counts bytes to and from endpoints beside their cluster.
    pub(crate) fn upstream_stats(&self) -> Option<&L4Stats> {
        self.routed.as_ref().map(|routed| &*routed.listener.upstream)
    }

    pub(crate) fn access_logs(&self) -> impl Iterator<Item = &AccessLog> {
        let of_listener = self.routed.iter().flat_map(|routed| &routed.listener.access_logs);
        self.proxy.access_logs.iter().chain(of_listener)
    }

    /// The server name that endpoints are asked for by TLS: the client's, where routes have it.
    pub(super) fn asked_name(&self) -> Option<Arc<str>> {
        let routed = self.routed.as_ref()?;
        Some(routed.server_name.clone().unwrap_or_else(|| NO_NAME.into()))
    }

    /// What an endpoint is told of the client: as a cluster says, or by version 1 where its listener says so, which then counts
    /// whom the client has named.
    pub(super) fn told(&self, cluster: &Cluster, stream: &Stream) -> Option<Told> {
        let to = stream.connection.local;
        if self.routed.as_ref().is_some_and(|routed| routed.listener.proxy_protocol) {
            return Some(Told { version: Version::V1, from: stream.remote, to });
        }
        let version = cluster.config.proxy_protocol?;
        Some(Told { version, from: stream.connection.remote, to })
    }
}
