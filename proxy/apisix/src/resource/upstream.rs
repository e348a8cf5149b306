//! `upstream`: nodes and how to reach them.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Id, Timeout};

resource! {
    /// A group of servers.
    pub struct Upstream {
        /// The servers; this, or `service_name` with `discovery_type`.
        pub nodes: Option<Nodes>,
        /// Attempts after the first; one less than there are nodes when absent.
        #[serde(default, deserialize_with = "super::optional_integer")]
        pub retries: Option<i64>,
        /// Seconds after which no attempt is started; 0 is no limit.
        pub retry_timeout: Option<f64>,
        /// 60 s each when absent.
        pub timeout: Option<Timeout>,
        /// The client certificate.
        pub tls: Option<UpstreamTls>,
        /// `roundrobin`, `chash`, `least_conn` or `ewma`; the schema lets any text through, as APISIX's does.
        #[serde(rename = "type")]
        pub balancer: String,
        /// Health checks.
        pub checks: Option<HealthCheck>,
        /// What `key` names.
        pub hash_on: HashOn,
        /// What chash hashes.
        pub key: Option<String>,
        /// The protocol.
        pub scheme: Scheme,
        /// The kind of discovery that finds `service_name`.
        pub discovery_type: Option<String>,
        /// Where discovery looks.
        pub discovery_args: Option<DiscoveryArgs>,
        /// What the `Host` header says.
        pub pass_host: PassHost,
        /// The `Host` header for [`PassHost::Rewrite`].
        pub upstream_host: Option<String>,
        /// What discovery finds.
        pub service_name: Option<String>,
        /// The pool of idle connections.
        pub keepalive_pool: Option<KeepalivePool>,
    }
}

/// The servers of an upstream, in either of their forms.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Nodes {
    /// One by one.
    List(Vec<Node>),
    /// `host:port` to weight.
    Map(Map<String, Value>),
}

/// One server.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Node {
    /// An address or a domain.
    pub host: String,
    /// The scheme's own when absent.
    #[serde(default, deserialize_with = "super::optional_integer")]
    pub port: Option<i64>,
    /// Its share; 0 gets nothing.
    #[serde(deserialize_with = "super::integer")]
    pub weight: i64,
    /// Nodes of a lower one are used when all of a higher one have been tried.
    #[serde(default, deserialize_with = "super::integer")]
    pub priority: i64,
    /// Free data.
    pub metadata: Option<Map<String, Value>>,
}

/// How the gateway shows itself to the servers of an upstream.
#[derive(Debug, Clone, Deserialize)]
pub struct UpstreamTls {
    /// An ssl of type client; this or the two below.
    pub client_cert_id: Option<Id>,
    /// PEM.
    pub client_cert: Option<String>,
    /// PEM.
    pub client_key: Option<String>,
    /// Read by the scheme kafka alone.
    pub verify: bool,
}

/// What chash takes its key from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashOn {
    /// The consumer's name.
    Consumer,
    /// A cookie.
    Cookie,
    /// A header.
    Header,
    /// A variable.
    Vars,
    /// A template of variables.
    VarsCombinations,
}

/// The protocol towards an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// HTTP/2 with prior knowledge.
    Grpc,
    /// HTTP/2 over TLS.
    Grpcs,
    /// HTTP/1.1.
    Http,
    /// HTTP/1.1 over TLS.
    Https,
    /// Publish and subscribe over WebSocket.
    Kafka,
    /// For stream routes.
    Tcp,
    /// For stream routes.
    Tls,
    /// For stream routes.
    Udp,
}

/// What the `Host` header towards an upstream says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PassHost {
    /// The node's.
    Node,
    /// The client's.
    Pass,
    /// `upstream_host`.
    Rewrite,
}

/// Where discovery looks for a service.
#[derive(Debug, Clone, Deserialize)]
pub struct DiscoveryArgs {
    /// Nacos.
    pub namespace_id: Option<String>,
    /// Nacos.
    pub group_name: Option<String>,
}

/// The pool of idle connections to one server.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct KeepalivePool {
    /// Idle connections at most.
    #[serde(deserialize_with = "super::integer")]
    pub size: i64,
    /// Seconds.
    pub idle_timeout: f64,
    /// Requests on one connection.
    #[serde(deserialize_with = "super::integer")]
    pub requests: i64,
}

/// Health checks of an upstream.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// Probes that the gateway sends.
    pub active: Option<ActiveCheck>,
    /// What answers to clients' requests tell.
    pub passive: Option<PassiveCheck>,
}

/// What a probe speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeType {
    /// A request.
    Http,
    /// A request over TLS.
    Https,
    /// A connection.
    Tcp,
}

/// Probes that the gateway sends.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ActiveCheck {
    /// What a probe speaks.
    #[serde(rename = "type")]
    pub probe: ProbeType,
    /// Seconds.
    pub timeout: f64,
    /// Probes at a time.
    #[serde(deserialize_with = "super::integer")]
    pub concurrency: i64,
    /// The `Host` header.
    pub host: Option<String>,
    /// Instead of the node's.
    #[serde(default, deserialize_with = "super::optional_integer")]
    pub port: Option<i64>,
    /// The path.
    pub http_path: String,
    /// The method.
    pub http_method: String,
    /// The body.
    pub http_req_body: String,
    /// Whether the node's certificate is verified.
    pub https_verify_certificate: bool,
    /// `Name: value` each.
    pub req_headers: Option<Vec<String>>,
    /// When a node becomes healthy; without it healthy nodes are not probed.
    pub healthy: Option<ActiveHealthy>,
    /// When a node becomes unhealthy; without it unhealthy nodes are not probed.
    pub unhealthy: Option<ActiveUnhealthy>,
}

/// When probes make a node healthy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ActiveHealthy {
    /// Seconds between probes of a healthy node.
    #[serde(deserialize_with = "super::integer")]
    pub interval: i64,
    /// Good statuses.
    pub http_statuses: Vec<u16>,
    /// Good answers in a row.
    #[serde(deserialize_with = "super::integer")]
    pub successes: i64,
}

/// When probes make a node unhealthy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ActiveUnhealthy {
    /// Seconds between probes of an unhealthy node.
    #[serde(deserialize_with = "super::integer")]
    pub interval: i64,
    /// Bad statuses.
    pub http_statuses: Vec<u16>,
    /// Bad statuses in a row.
    #[serde(deserialize_with = "super::integer")]
    pub http_failures: i64,
    /// Failed connections in a row.
    #[serde(deserialize_with = "super::integer")]
    pub tcp_failures: i64,
    /// Timeouts in a row.
    #[serde(deserialize_with = "super::integer")]
    pub timeouts: i64,
}

/// What answers to clients' requests tell about a node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PassiveCheck {
    /// Which failures count.
    #[serde(rename = "type")]
    pub probe: ProbeType,
    /// When a node becomes healthy.
    pub healthy: Option<PassiveHealthy>,
    /// When a node becomes unhealthy.
    pub unhealthy: Option<PassiveUnhealthy>,
}

/// When answers make a node healthy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PassiveHealthy {
    /// Good statuses.
    pub http_statuses: Vec<u16>,
    /// Good answers in a row; 0 switches it off.
    #[serde(deserialize_with = "super::integer")]
    pub successes: i64,
}

/// When answers make a node unhealthy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PassiveUnhealthy {
    /// Bad statuses.
    pub http_statuses: Vec<u16>,
    /// Failed connections in a row; 0 switches it off.
    #[serde(deserialize_with = "super::integer")]
    pub tcp_failures: i64,
    /// Timeouts in a row; 0 switches it off.
    #[serde(deserialize_with = "super::integer")]
    pub timeouts: i64,
    /// Bad statuses in a row; 0 switches it off.
    #[serde(deserialize_with = "super::integer")]
    pub http_failures: i64,
}

impl Scheme {
    /// The port of a node that names none.
    pub fn default_port(self) -> Option<u16> {
        match self {
            Scheme::Grpc | Scheme::Http => Some(80),
            Scheme::Grpcs | Scheme::Https => Some(443),
            Scheme::Kafka | Scheme::Tcp | Scheme::Tls | Scheme::Udp => None,
        }
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(self) -> bool {
        matches!(self, Scheme::Grpcs | Scheme::Https | Scheme::Tls)
    }
}

impl Nodes {
    /// The nodes as a list.
    ///
    /// # Errors
    /// APISIX's message for a port of the map form that is none.
    pub fn to_list(&self) -> Result<Vec<Node>, String> {
        let map = match self {
            Nodes::List(nodes) => return Ok(nodes.clone()),
            Nodes::Map(map) => map,
        };
        map.iter()
            .map(|(address, weight)| {
                let (host, port) = split_address(address)?;
                let weight = weight.as_f64().unwrap_or_default() as i64;
                Ok(Node { host: host.to_owned(), port, weight, priority: 0, metadata: None })
            })
            .collect()
    }
}

/// Splits `host`, `host:port`, `[v6]` or `[v6]:port`.
fn split_address(address: &str) -> Result<(&str, Option<i64>), String> {
    let (host, port) = match address.rfind(']') {
        Some(end) => {
            let (host, rest) = address.split_at(end + 1);
            (host, rest.strip_prefix(':'))
        }
        None => match address.split_once(':') {
            // An IPv6 address without brackets has no port, as APISIX takes it.
            Some((_, rest)) if rest.contains(':') => (address, None),
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let port = port
        .map(|port| match port.parse::<i64>() {
            Ok(number) if (1..=65535).contains(&number) => Ok(number),
            _ => Err(format!("invalid port {port}")),
        })
        .transpose()?;
    Ok((host, port))
}
