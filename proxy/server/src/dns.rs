//! Names to addresses. [`DnsCache`] asks once for all who want to know; [`Discoverer`] keeps the endpoints of DNS
//! clusters as it says.

mod cache;
mod discovery;
mod entry;
mod files;
mod pace;
mod resolver;
#[cfg(test)]
mod tests;

pub use cache::DnsCache;
pub use discovery::Discoverer;

use sixfold_core::cluster::{DnsFamily, DnsServers};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How names are resolved.
#[derive(Debug, Clone)]
pub struct ResolverConfig {
    /// Servers to ask over UDP, then TCP; empty takes the system's.
    pub servers: Vec<SocketAddr>,
    /// Completes names with the system's search domains, whoever is asked (APISIX `enable_resolv_search_opt`); true by
    /// default.
    pub search: bool,
    /// Bounds one question to one server, 5 s by default.
    pub timeout: Duration,
    /// Questions after the first one failed, 2 by default.
    pub attempts: usize,
    /// How long a question that nobody answers may hold up those for other names, 1 s by default. It goes on after
    /// that unless too many do.
    pub turn: Duration,
    /// Shorter lifetimes of records are taken for this, 1 s by default.
    pub min_ttl: Duration,
    /// Longer lifetimes of records are taken for this, one day by default.
    pub max_ttl: Duration,
    /// How long addresses are kept of a name that is said to have none any more, 30 s by default: a server that
    /// lost its zone for a moment shall not empty an upstream (HAProxy's `hold nx`).
    pub hold_empty: Duration,
    /// Names that need no server, `/etc/hosts` by default; looked at every second, beside the workers.
    pub hosts_file: Option<PathBuf>,
    /// The system's servers, `/etc/resolv.conf` by default; looked at every second too. Without it they are the one on
    /// this machine (resolv.conf(5)).
    pub system_file: PathBuf,
}

impl Default for ResolverConfig {
    fn default() -> ResolverConfig {
        ResolverConfig {
            servers: Vec::new(),
            search: true,
            timeout: Duration::from_secs(5),
            attempts: 2,
            turn: Duration::from_secs(1),
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(86_400),
            hold_empty: Duration::from_secs(30),
            hosts_file: Some("/etc/hosts".into()),
            system_file: "/etc/resolv.conf".into(),
        }
    }
}

/// Why a name has no answer. That a name does not exist is an answer, and an empty one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// The thread that asks can't be started.
    #[error("DNS: {0}")]
    Setup(String),
    /// No server answered, or one failed.
    #[error("cannot resolve '{name}': {reason}")]
    Failed {
        /// The name.
        name: Arc<str>,
        /// What went wrong.
        reason: String,
    },
    /// As many names are asked for as there may be at once.
    #[error("cannot resolve '{0}': too many names at once")]
    Busy(Arc<str>),
}

/// What is asked. Equal questions have one answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// The name, in lower case; with a dot at its end no search domain is tried.
    name: Arc<str>,
    family: DnsFamily,
    servers: Option<Arc<DnsServers>>,
}

impl Question {
    /// The addresses of a name, of the families wanted. `servers` are asked, or those of the process.
    pub fn new(name: &str, family: DnsFamily, servers: Option<Arc<DnsServers>>) -> Question {
        Question { name: name.to_ascii_lowercase().into(), family, servers }
    }

    /// The address that the name is itself, in brackets or not.
    fn literal(&self) -> Option<IpAddr> {
        self.name.trim_start_matches('[').trim_end_matches(']').parse().ok()
    }
}

/// The addresses of a name.
#[derive(Debug, Clone)]
pub struct Answer {
    /// In the server's order; empty when the name has none.
    pub addresses: Arc<[IpAddr]>,
    /// Until when they are good, within the configured bounds.
    pub until: Instant,
}
