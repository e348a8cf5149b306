//! How a cluster's endpoints are found, as configured.

use crate::matcher::HeaderTarget;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How endpoints are found.
#[derive(Debug, Clone, PartialEq)]
pub enum Discovery {
    /// Fixed addresses.
    Static,
    /// Every address that DNS gives for each name.
    StrictDns(DnsOptions),
    /// One address of the first name; connections to earlier ones live on.
    LogicalDns(DnsOptions),
    /// They come by changes of their own ([`crate::model::Diff::endpoints`]); a cluster that is new waits so
    /// long for the first (Envoy's `initial_fetch_timeout`, 15 s by default).
    Eds(Duration),
    /// There are those that connections were meant for (Envoy's ORIGINAL_DST).
    OriginalDst(OriginalDestination),
}

/// Where the destination of a request is read. What names none goes nowhere.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OriginalDestination {
    /// Header with address and port, which goes before the address that the connection was meant for
    /// (`use_http_header`, `http_header_name`).
    pub header: Option<HeaderTarget>,
    /// Port in place of the destination's (`upstream_port_override`).
    pub port: Option<u16>,
}

/// How names are resolved, and how often.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DnsOptions {
    /// Interval between look-ups, 5 s by default (Envoy `dns_refresh_rate`).
    pub refresh: Duration,
    /// Takes the records' TTL instead, unless it is 0 (`respect_dns_ttl`; always for APISIX).
    pub respect_ttl: bool,
    /// Shorter TTLs are taken for this (`dns_min_refresh_rate`). 0 by default.
    pub min_ttl: Duration,
    /// Added to the interval: anything below this, by chance (`dns_jitter`). 0 by default.
    pub jitter: Duration,
    /// Interval after failures; `None` is that between look-ups.
    pub failure: Option<DnsBackoff>,
    /// Which families are wanted.
    pub family: DnsFamily,
    /// Whom to ask; `None` asks those of the process.
    pub servers: Option<Arc<DnsServers>>,
}

impl Default for DnsOptions {
    fn default() -> DnsOptions {
        DnsOptions {
            refresh: Duration::from_secs(5),
            respect_ttl: false,
            min_ttl: Duration::ZERO,
            jitter: Duration::ZERO,
            failure: None,
            family: DnsFamily::Auto,
            servers: None,
        }
    }
}

/// Time between questions that fail: anything below a limit, by chance; the limit doubles with every failure
/// (Envoy `dns_failure_refresh_rate`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DnsBackoff {
    /// First limit.
    pub base: Duration,
    /// Largest limit, ten times the first by default.
    pub max: Duration,
}

/// Servers that names are asked of (Envoy's `typed_dns_resolver_config`, `dns_resolution_config`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct DnsServers {
    /// Their addresses; empty takes the system's.
    pub addresses: Vec<SocketAddr>,
    /// Asks these only where the system names none (`use_resolvers_as_fallback`).
    pub fallback: bool,
    /// Asks over TCP alone (`use_tcp_for_dns_lookups`).
    pub tcp_only: bool,
    /// Completes names with the system's search domains (`no_default_search_domain` turned around).
    pub search: bool,
    /// Bounds one question to one server; `None` is the process's (`query_timeout_seconds`).
    pub timeout: Option<Duration>,
    /// Questions until one is answered; `None` is as many as the process asks (`query_tries`).
    pub tries: Option<u32>,
    /// Begins with another server each time (`rotate_nameservers`); else the one that answers best is asked.
    pub rotate: bool,
}

/// Which addresses of a name are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DnsFamily {
    /// IPv6, and IPv4 only if there is none (Envoy's AUTO).
    #[default]
    Auto,
    /// IPv4 alone.
    V4Only,
    /// IPv6 alone.
    V6Only,
    /// IPv4, and IPv6 only if there is none (APISIX's order).
    V4Preferred,
    /// Both.
    All,
}
