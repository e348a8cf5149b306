//! Upstreams compiled to clusters, and to what routes have to know of them.

mod checks;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde_json::{Value, json};
use sixfold_core::cluster::{
    Address, BalanceConfig, BreakerLimits, ClusterConfig, ClusterPolicy, Discovery, DnsBackoff, DnsFamily,
    DnsOptions, DnsServers, HeaderCase, HostConfig, Http1Options, Http2Options, Policy, UpstreamProtocol,
};
use sixfold_core::format::Format;
use sixfold_core::hcm::Profile;
use sixfold_core::headers::HeaderRules;
use sixfold_core::message;
use sixfold_core::metadata::Metadata;
use sixfold_core::retry::{RetryOn, RetryPolicy};
use sixfold_core::route;
use sixfold_core::tls::ClientTls;

use crate::config::Config;
use crate::item::violation;
use crate::resource::{HashOn, Nodes, PassHost, Scheme, Timeout, Upstream};
use crate::schema::{Schema, Violation};
use crate::shared::Shared;

pub(crate) use self::checks::compile as compile_checks;

/// The kind of discovery that there is: a service is what DNS says of its name.
const DNS: &str = "dns";

/// Each timeout of an upstream that gives none.
const DEFAULT_TIMEOUT: f64 = 60.0;

/// What routes have to know of the upstream they send to. Nodes are not part of it, so that a change of nodes
/// touches no route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Forwarding {
    pub(crate) timeouts: Timeouts,
    /// How long a stream may be silent both ways, if the upstream says it.
    pub(crate) silence: Option<Duration>,
    pub(crate) pass_host: route::PassHost,
    pub(crate) hash_key: Option<HashKey>,
}

/// What chash hashes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum HashKey {
    /// The variable of this name.
    Variable(String),
    /// Variables in text.
    Template(String),
}

/// Timeouts towards an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Timeouts {
    /// To connect.
    pub(crate) connect: Duration,
    /// Between two writes.
    pub(crate) send: Duration,
    /// Between two reads.
    pub(crate) read: Duration,
}

/// What the policy of an upstream's cluster is made of.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Terms {
    /// Some node has a name.
    named: bool,
    /// Whom discovery asks for it; `None` asks whom everybody asks.
    servers: Option<Arc<DnsServers>>,
    protocol: UpstreamProtocol,
    scheme: message::Scheme,
    balancer: Balancer,
    connect: Duration,
    retries: u32,
    retry_timeout: Option<Duration>,
    idle_timeout: Duration,
    max_requests: u32,
    max_idle: usize,
}

/// APISIX's balancers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Balancer {
    RoundRobin,
    Chash,
    LeastConn,
    Ewma,
    /// One that APISIX does not have, which its requests find out.
    Unknown,
}

/// Everything that is wrong with an upstream beyond its schema.
pub(crate) fn check(upstream: &Upstream) -> Vec<Violation> {
    let mut violations = Vec::new();
    if let Some(kind) = upstream.discovery_type.as_ref().filter(|kind| *kind != DNS) {
        let reason = format!("not supported: service discovery ({kind}); dns is");
        violations.push(violation(&["discovery_type"], reason));
    }
    violations.extend(upstream.checks.iter().flat_map(checks::check));
    if let Err(reason) = hosts(upstream) {
        let field = if upstream.nodes.is_some() { "nodes" } else { "service_name" };
        violations.push(violation(&[field], reason));
    }
    if upstream.pass_host == PassHost::Rewrite && upstream.upstream_host.as_ref().is_none_or(String::is_empty)
    {
        let reason = "`upstream_host` can't be empty when `pass_host` is `rewrite`";
        violations.push(violation(&["upstream_host"], reason));
    }
    if Balancer::named(&upstream.balancer) == Balancer::Chash {
        violations.extend(check_hash_key(upstream));
    }
    violations
}

/// What is odd about an upstream and taken all the same.
pub(crate) fn warnings(upstream: &Upstream) -> Vec<Violation> {
    let mut warnings = Vec::new();
    if Balancer::named(&upstream.balancer) == Balancer::Unknown {
        let reason = format!(
            "invalid balancer type: {}; requests are answered with 502 unless there is one node",
            upstream.balancer
        );
        warnings.push(violation(&["type"], reason));
    }
    if upstream.scheme == Scheme::Kafka {
        let reason = "kafka is not spoken here: requests are answered with 503";
        warnings.push(violation(&["scheme"], reason));
    }
    warnings
}

/// What `key` is with `hash_on: vars`.
pub(crate) static HASH_VARIABLE: LazyLock<Schema> = LazyLock::new(|| {
    Schema::builtin(
        r#"{"type": "string", "pattern": "^((uri|server_name|server_addr|request_uri|remote_port|remote_addr|query_string|host|hostname|mqtt_client_id)|arg_[0-9a-zA-z_-]+)$"}"#,
    )
});

/// What `key` is with `hash_on: header` or `cookie`.
pub(crate) static HASH_NAME: LazyLock<Schema> =
    LazyLock::new(|| Schema::builtin(r#"{"type": "string", "pattern": "^[a-zA-Z0-9-_]+$"}"#));

fn check_hash_key(upstream: &Upstream) -> Option<Violation> {
    let schema = match upstream.hash_on {
        HashOn::Consumer => return None,
        HashOn::Cookie | HashOn::Header => Some(&*HASH_NAME),
        HashOn::Vars => Some(&*HASH_VARIABLE),
        HashOn::VarsCombinations => None,
    };
    let Some(key) = &upstream.key else {
        return Some(violation(&["key"], "missing key"));
    };
    let error = schema?.validate(&mut Value::String(key.clone())).err()?;
    Some(violation(&["key"], format!("invalid configuration: {error}")))
}

impl Forwarding {
    pub(crate) fn of(upstream: &Upstream) -> Forwarding {
        let key = upstream.key.as_deref().unwrap_or_default();
        let hash_key = match upstream.hash_on {
            _ if upstream.balancer != "chash" => None,
            HashOn::Consumer => Some(HashKey::Variable("consumer_name".to_owned())),
            HashOn::Cookie => Some(HashKey::Variable(format!("cookie_{key}"))),
            HashOn::Header => {
                Some(HashKey::Variable(format!("http_{}", key.to_ascii_lowercase().replace('-', "_"))))
            }
            HashOn::Vars => Some(HashKey::Variable(key.to_owned())),
            HashOn::VarsCombinations => Some(HashKey::Template(key.to_owned())),
        };
        let timeout = Timeout { connect: DEFAULT_TIMEOUT, send: DEFAULT_TIMEOUT, read: DEFAULT_TIMEOUT };
        Forwarding {
            timeouts: upstream.timeout.unwrap_or(timeout).into(),
            silence: upstream.timeout.map(|timeout| seconds(timeout.send.max(timeout.read))),
            pass_host: match upstream.pass_host {
                PassHost::Node => route::PassHost::Node,
                PassHost::Pass => route::PassHost::Pass,
                PassHost::Rewrite => {
                    route::PassHost::Rewrite(upstream.upstream_host.clone().unwrap_or_default().into())
                }
            },
            hash_key,
        }
    }

    /// The hash policy of a route to a chash upstream.
    ///
    /// # Errors
    /// A template that can't be read.
    pub(crate) fn hash_policy(&self) -> Result<Option<route::HashPolicy>, String> {
        let format = match &self.hash_key {
            None => None,
            Some(HashKey::Variable(name)) => Some(Format::variable(name)),
            Some(HashKey::Template(text)) => Some(Format::apisix(text)?),
        };
        Ok(format.map(|format| route::HashPolicy { input: route::HashInput::Key(format), terminal: true }))
    }
}

impl From<Timeout> for Timeouts {
    fn from(timeout: Timeout) -> Timeouts {
        let Timeout { connect, send, read } = timeout;
        Timeouts { connect: seconds(connect), send: seconds(send), read: seconds(read) }
    }
}

/// The configuration and the endpoints of an upstream's cluster.
///
/// # Errors
/// What [`check`] finds in nodes.
pub(crate) fn compile(
    name: &Arc<str>,
    upstream: &Upstream,
    tls: Option<Arc<ClientTls>>,
    config: &Config,
    policies: &Shared<Terms, ClusterPolicy>,
) -> Result<(ClusterConfig, Vec<HostConfig>), String> {
    // Nobody here speaks to brokers, so there is nobody to be chosen.
    let hosts = if upstream.scheme == Scheme::Kafka { Vec::new() } else { hosts(upstream)? };
    let terms = Terms::of(upstream, &hosts, config);
    let policy = policies.get(terms, |terms| Ok::<_, String>(terms.policy()));
    let config = ClusterConfig {
        name: name.clone(),
        observability_name: name.clone(),
        eds_service_name: None,
        tls,
        socket_matches: Default::default(),
        mesh: None,
        metadata: Metadata::default(),
        maintenance: 0,
        manner: None,
        policy: policy?,
    };
    Ok((config, hosts))
}

impl Terms {
    fn of(upstream: &Upstream, hosts: &[HostConfig], config: &Config) -> Terms {
        let (pool, keepalive) = (upstream.keepalive_pool, config.http.upstream_keepalive);
        let servers = config.dns_discovery.as_ref().filter(|_| upstream.nodes.is_none());
        let retries = upstream.retries.unwrap_or_else(|| (hosts.len() as i64 - 1).max(0));
        Terms {
            named: hosts.iter().any(|host| matches!(host.address, Address::Name(..))),
            servers: servers
                .map(|servers| Arc::new(DnsServers { addresses: servers.clone(), ..DnsServers::default() })),
            protocol: protocol(upstream.scheme),
            scheme: if upstream.scheme.is_tls() { message::Scheme::Https } else { message::Scheme::Http },
            balancer: Balancer::named(&upstream.balancer),
            connect: seconds(upstream.timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.connect)),
            retries: clamp(retries),
            retry_timeout: upstream.retry_timeout.filter(|deadline| *deadline > 0.0).map(seconds),
            idle_timeout: pool.map_or(keepalive.timeout, |pool| seconds(pool.idle_timeout)),
            max_requests: pool.map_or(keepalive.requests, |pool| clamp(pool.requests)),
            max_idle: pool.map_or(keepalive.size, |pool| clamp(pool.size)) as usize,
        }
    }

    fn policy(&self) -> ClusterPolicy {
        // What has no lifetime is asked for again after the shortest that a record can have.
        let dns = DnsOptions {
            refresh: Duration::from_secs(1),
            respect_ttl: true,
            failure: Some(DnsBackoff { base: Duration::from_secs(2), max: Duration::from_secs(10) }),
            family: DnsFamily::V4Preferred,
            servers: self.servers.clone(),
            ..DnsOptions::default()
        };
        ClusterPolicy {
            discovery: if self.named { Discovery::StrictDns(dns) } else { Discovery::Static },
            connect_timeout: self.connect,
            protocol: self.protocol,
            profile: Profile::Apisix,
            http1: Http1Options { header_case: HeaderCase::Preserve, ..Http1Options::default() },
            http2: Http2Options::default(),
            header_rules: HeaderRules::APISIX,
            scheme: self.scheme,
            idle_timeout: Some(self.idle_timeout),
            max_connection_duration: None,
            max_stream_duration: None,
            max_host_connections: u32::MAX,
            max_requests_per_connection: Some(self.max_requests),
            max_idle: self.max_idle,
            breaker: BreakerLimits::UNLIMITED,
            high_breaker: BreakerLimits::UNLIMITED,
            tracks_remaining: [false; 2],
            retry: Some(Arc::new(self.retry_policy())),
            buffer_limit: 1 << 20,
            health_check: None,
            checks: None,
            outlier_detection: None,
            balance: BalanceConfig { policy: self.balancer.policy(), ..BalanceConfig::default() },
            source_address: None,
            tcp_keepalive: None,
            exchange: None,
            proxy_protocol: None,
            own_zone: Arc::default(),
            statistics: false,
            added_via_api: false,
        }
    }

    /// nginx's `proxy_next_upstream error timeout`, without a pause between attempts.
    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy {
            on: RetryOn::NGINX_ERROR_TIMEOUT,
            num_retries: self.retries,
            base_interval: Duration::ZERO,
            max_interval: Duration::ZERO,
            deadline: self.retry_timeout,
            ..RetryPolicy::default()
        }
    }
}

impl Balancer {
    fn named(name: &str) -> Balancer {
        match name {
            "roundrobin" => Balancer::RoundRobin,
            "chash" => Balancer::Chash,
            "least_conn" => Balancer::LeastConn,
            "ewma" => Balancer::Ewma,
            _ => Balancer::Unknown,
        }
    }

    fn policy(self) -> Policy {
        match self {
            Balancer::RoundRobin => Policy::ApisixRoundRobin,
            Balancer::Chash => Policy::ApisixChash,
            Balancer::LeastConn => Policy::ApisixLeastConn,
            Balancer::Ewma => Policy::ApisixEwma,
            Balancer::Unknown => Policy::ApisixUnknown,
        }
    }
}

fn protocol(scheme: Scheme) -> UpstreamProtocol {
    match scheme {
        Scheme::Grpc | Scheme::Grpcs => UpstreamProtocol::Http2,
        // Of streams nothing is understood; a route of HTTP that leads there speaks what is nearest.
        _ => UpstreamProtocol::Http1,
    }
}

/// The endpoints. APISIX prefers large priorities, the model small ones.
fn hosts(upstream: &Upstream) -> Result<Vec<HostConfig>, String> {
    let nodes = match (&upstream.nodes, &upstream.service_name) {
        (Some(nodes), _) => nodes.to_list()?,
        // One name, which stands for as many nodes as DNS says.
        (None, Some(service)) => Nodes::Map([(service.clone(), 1.into())].into_iter().collect()).to_list()?,
        (None, None) => Vec::new(),
    };
    let mut levels: Vec<i64> = nodes.iter().map(|node| node.priority).collect();
    levels.sort_unstable_by_key(|priority| std::cmp::Reverse(*priority));
    levels.dedup();
    nodes
        .into_iter()
        .map(|node| {
            let port = match node.port.map(u16::try_from) {
                Some(Ok(port)) => port,
                Some(Err(_)) => return Err(format!("invalid port {}", node.port.unwrap_or_default())),
                None => upstream.scheme.default_port().unwrap_or(80),
            };
            let host = node.host.trim_start_matches('[').trim_end_matches(']');
            let address = match host.parse::<IpAddr>() {
                Ok(ip) => Address::Ip(SocketAddr::new(ip, port)),
                Err(_) if host.contains(':') => {
                    Address::Ip(with_port(host).ok_or_else(|| format!("invalid host {}", node.host))?)
                }
                Err(_) => Address::Name(host.to_ascii_lowercase(), port),
            };
            let hostname = if matches!(address, Address::Name(..)) { host } else { "" };
            let mut config = HostConfig::new(address);
            if !hostname.is_empty() {
                config.hostname = hostname.into();
            }
            config.weight =
                u32::try_from(node.weight).map_err(|_| format!("invalid weight {}", node.weight))?;
            config.priority =
                levels.iter().position(|level| *level == node.priority).unwrap_or_default() as u32;
            if let Some(metadata) = node.metadata {
                config.metadata.insert("apisix", json!(metadata));
            }
            Ok(config)
        })
        .collect()
}

/// A host that has its port in it, which nginx takes before any other.
fn with_port(host: &str) -> Option<SocketAddr> {
    let address: SocketAddrV4 = host.parse().ok()?;
    (address.port() > 0).then_some(SocketAddr::V4(address))
}

/// Seconds as the schemas let them through: positive, and a fraction perhaps. What a `Duration` can't hold is
/// for ever.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

fn clamp(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}
