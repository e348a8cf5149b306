//! `apisix.proxy_mode` and `apisix.stream_proxy`: which kinds of traffic are served, and where streams come in.

use sixfold_core::listener::BindAddress;

/// Which kinds of traffic a process serves (`apisix.proxy_mode`), HTTP alone by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyMode {
    /// `http`.
    Http,
    /// `stream`: TCP and UDP, and no HTTP.
    Stream,
    /// `http&stream`.
    HttpAndStream,
}

impl ProxyMode {
    /// Whether HTTP is served.
    pub fn has_http(self) -> bool {
        self != ProxyMode::Stream
    }

    /// Whether TCP and UDP are, without which there are no stream routes.
    pub fn has_streams(self) -> bool {
        self != ProxyMode::Http
    }
}

/// Where streams come in (`apisix.stream_proxy`); nothing unless `apisix.proxy_mode` has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamProxy {
    /// `tcp`.
    pub tcp: Vec<StreamListen>,
    /// `udp`.
    pub udp: Vec<StreamListen>,
}

impl StreamProxy {
    /// Whether nothing comes in.
    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty()
    }
}

/// One address at which streams come in. A bare port is one of IPv4, as in nginx; a range has one for each of its ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamListen {
    /// Where.
    pub address: BindAddress,
    /// Whether clients speak TLS, by the certificates of `ssls`.
    pub tls: bool,
    /// Whether connections begin with a PROXY protocol header: the entry's own `proxy_protocol`, else
    /// `apisix.proxy_protocol.enable_tcp_pp`.
    pub proxy_protocol: bool,
    /// Whether upstreams are sent such a header: the entry's own `proxy_protocol_to_upstream`, else
    /// `apisix.proxy_protocol.enable_tcp_pp_to_upstream`.
    pub proxy_protocol_to_upstream: bool,
    /// The key that it is from: `apisix.stream_proxy.tcp` or `apisix.stream_proxy.udp`.
    pub list: &'static str,
    /// Which entry of that list.
    pub index: usize,
}

impl StreamListen {
    /// Whether it is one of UDP.
    pub fn is_udp(&self) -> bool {
        self.list.ends_with("udp")
    }

    /// The key that it is from, with its place in the list.
    pub fn key(&self) -> String {
        format!("{}[{}]", self.list, self.index)
    }
}
